/* spk_conv.h - a convolution that scatters: an event adds, for every tap of the kernel that reaches an output, one row of
 * weights (one for each output channel of the group). Included once for each layer; one axis of space is height 1.
 *
 * SPK_NAME     name of the function
 * SPK_ACC      type of an accumulator; the compiler of the network has proven that no partial sum leaves it
 * SPK_WEIGHT   type of a weight; stored as (in, kernel height, kernel width, out / groups)
 * SPK_INDEX    type of an event
 * SPK_CIN, SPK_HI, SPK_WI       input channels, height, width
 * SPK_COUT, SPK_HO, SPK_WO    output channels, height, width
 * SPK_KH, SPK_KW, SPK_SH, SPK_SW, SPK_PH, SPK_PW, SPK_DH, SPK_DW   kernel, stride, padding, dilation
 * SPK_GROUPS   groups
 * SPK_IN_LAST, SPK_OUT_LAST   1: channels are the last axis, 0: the first
 * SPK_X, SPK_PRODUCT, SPK_DELAY   as in spk_dense.h; delays are stored like the weights
 *
 * Returns the number of connections used. */
#define SPK_OG (SPK_COUT / SPK_GROUPS)
#define SPK_IG (SPK_CIN / SPK_GROUPS)
static uint64_t SPK_NAME(SPK_ACC *SPK_RESTRICT acc,
#if defined(SPK_DELAY)
                         const uint32_t *SPK_RESTRICT slot, const SPK_DELAY *SPK_RESTRICT delay,
#endif
                         const SPK_WEIGHT *SPK_RESTRICT weight, const SPK_INDEX *SPK_RESTRICT event, uint32_t count
#if defined(SPK_X)
                         , const SPK_X *SPK_RESTRICT x
#endif
) {
  uint64_t used = 0;
  uint32_t e;
  for (e = 0; e < count; e++) {
    const uint32_t id = event[e];
    const uint32_t pixel = SPK_IN_LAST ? id / SPK_CIN : id % (SPK_HI * SPK_WI);
    const uint32_t c = SPK_IN_LAST ? id % SPK_CIN : id / (SPK_HI * SPK_WI);
    const int32_t y = (int32_t)(pixel / SPK_WI) + SPK_PH;
    const int32_t xx = (int32_t)(pixel % SPK_WI) + SPK_PW;
    const uint32_t first = c / SPK_IG * SPK_OG;
    const size_t row = (size_t)c * (SPK_KH * SPK_KW * SPK_OG);
    int32_t ky, kx;
#if defined(SPK_X)
    const SPK_PRODUCT value = (SPK_PRODUCT)x[id];
#endif
    for (ky = 0; ky < SPK_KH; ky++) {
      const int32_t ty = y - ky * SPK_DH;
      if (ty < 0 || ty % SPK_SH != 0 || ty / SPK_SH >= SPK_HO) { continue; }
      for (kx = 0; kx < SPK_KW; kx++) {
        const int32_t tx = xx - kx * SPK_DW;
        if (tx < 0 || tx % SPK_SW != 0 || tx / SPK_SW >= SPK_WO) { continue; }
        {
          const uint32_t place = (uint32_t)(ty / SPK_SH) * SPK_WO + (uint32_t)(tx / SPK_SW);
          const size_t tap = row + (size_t)(ky * SPK_KW + kx) * SPK_OG;
          const SPK_WEIGHT *SPK_RESTRICT w = weight + tap;
          const size_t base = SPK_OUT_LAST ? (size_t)place * SPK_COUT + first : (size_t)first * (SPK_HO * SPK_WO) + place;
          const size_t stride = SPK_OUT_LAST ? 1 : SPK_HO * SPK_WO;
          uint32_t o;
          used += SPK_OG;
          for (o = 0; o < SPK_OG; o++) {
#if defined(SPK_DELAY)
            SPK_ACC *a = acc + slot[delay[tap + o]] + base + o * stride;
#else
            SPK_ACC *a = acc + base + o * stride;
#endif
#if defined(SPK_X)
            *a = (SPK_ACC)(*a + (SPK_ACC)((SPK_PRODUCT)w[o] * value));
#else
            *a = (SPK_ACC)(*a + (SPK_ACC)w[o]);
#endif
          }
        }
      }
    }
  }
  return used;
}
#undef SPK_OG
#undef SPK_IG
#undef SPK_NAME
#undef SPK_ACC
#undef SPK_WEIGHT
#undef SPK_INDEX
#undef SPK_CIN
#undef SPK_HI
#undef SPK_WI
#undef SPK_COUT
#undef SPK_HO
#undef SPK_WO
#undef SPK_KH
#undef SPK_KW
#undef SPK_SH
#undef SPK_SW
#undef SPK_PH
#undef SPK_PW
#undef SPK_DH
#undef SPK_DW
#undef SPK_GROUPS
#undef SPK_IN_LAST
#undef SPK_OUT_LAST
#undef SPK_X
#undef SPK_PRODUCT
#undef SPK_DELAY
