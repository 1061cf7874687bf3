/* spk_pool.h - sum, average or maximum over windows of each channel. Included once for each pool; one axis of space is
 * height 1.
 *
 * SPK_NAME   name of the function
 * SPK_X      type of the values read, SPK_Y of those written; SPK_Y holds every partial sum
 * SPK_MAX    1: the maximum (of what lies inside), 0: the sum
 * SPK_NAN    1: the values are floating-point, and one that is no number wins a maximum
 * SPK_SCALE  the average divides by this; undefined otherwise
 * SPK_C, SPK_HI, SPK_WI, SPK_HO, SPK_WO, SPK_KH, SPK_KW, SPK_SH, SPK_SW, SPK_PH, SPK_PW   sizes, as in spk_conv.h
 * SPK_IN_LAST, SPK_OUT_LAST   1: channels are the last axis, 0: the first
 * SPK_PACKED  1: the sums of bytes in whole vectors of eight channels, which are last, and no window over an edge; may be undefined */
#if SPK_NAN
#define SPK_IS_NAN(v) ((v) != (v))
#else
#define SPK_IS_NAN(v) 0
#endif
#if SPK_PACKED
/* Sums of bytes, channels last before and after, no window over an edge: vectors of channels. */
#if SPK_C % 16u == 0
#define SPK_STEP 16u
#else
#define SPK_STEP 8u
#endif
static void SPK_NAME(const SPK_X *SPK_RESTRICT x, SPK_Y *SPK_RESTRICT y) {
  typedef uint8_t part __attribute__((vector_size(SPK_STEP), aligned(1), may_alias));
  uint32_t oy, ox, iy, ix, c;
  for (oy = 0; oy < SPK_HO; oy++) {
    for (ox = 0; ox < SPK_WO; ox++) {
      const SPK_X *const from = x + (size_t)(oy * SPK_SH * SPK_WI + ox * SPK_SW) * SPK_C;
      for (c = 0; c < SPK_C; c += SPK_STEP) {
        part total = *(const part *)(const void *)(from + c);
        for (iy = 0; iy < SPK_KH; iy++) {
          for (ix = iy == 0; ix < SPK_KW; ix++) { total += *(const part *)(const void *)(from + (size_t)(iy * SPK_WI + ix) * SPK_C + c); }
        }
        *(part *)(void *)(y + (size_t)(oy * SPK_WO + ox) * SPK_C + c) = total;
      }
    }
  }
}
#undef SPK_STEP
#elif SPK_IN_LAST && !SPK_NAN && !defined(SPK_SCALE)
/* Integers, channels last: all channels of a pixel at once. Where no window reaches over an edge its bounds are constants. */
#define SPK_INSIDE (SPK_PH == 0 && SPK_PW == 0 && (SPK_HO - 1) * SPK_SH + SPK_KH <= SPK_HI && (SPK_WO - 1) * SPK_SW + SPK_KW <= SPK_WI)
static void SPK_NAME(const SPK_X *SPK_RESTRICT x, SPK_Y *SPK_RESTRICT y) {
  uint32_t c;
  int32_t oy, ox, iy, ix;
  for (oy = 0; oy < SPK_HO; oy++) {
    for (ox = 0; ox < SPK_WO; ox++) {
      const int32_t y0 = oy * SPK_SH - (SPK_INSIDE ? 0 : SPK_PH), x0 = ox * SPK_SW - (SPK_INSIDE ? 0 : SPK_PW);
      const size_t to = (size_t)(oy * SPK_WO + ox);
      SPK_Y total[SPK_C];
      int found = 0;
      memset(total, 0, sizeof total);
      for (iy = y0 < 0 ? 0 : y0; iy < y0 + SPK_KH && (SPK_INSIDE || iy < SPK_HI); iy++) {
        for (ix = x0 < 0 ? 0 : x0; ix < x0 + SPK_KW && (SPK_INSIDE || ix < SPK_WI); ix++) {
          const SPK_X *SPK_RESTRICT from = x + (size_t)(iy * SPK_WI + ix) * SPK_C;
          for (c = 0; c < SPK_C; c++) {
#if SPK_MAX
            total[c] = !found || (SPK_Y)from[c] > total[c] ? (SPK_Y)from[c] : total[c];
#else
            total[c] = (SPK_Y)(total[c] + (SPK_Y)from[c]);
#endif
          }
          found = 1;
        }
      }
      (void)found;
      for (c = 0; c < SPK_C; c++) { y[SPK_OUT_LAST ? to * SPK_C + c : (size_t)c * (SPK_HO * SPK_WO) + to] = total[c]; }
    }
  }
}
#else
static void SPK_NAME(const SPK_X *SPK_RESTRICT x, SPK_Y *SPK_RESTRICT y) {
  uint32_t c;
  int32_t oy, ox, iy, ix;
  for (c = 0; c < SPK_C; c++) {
    for (oy = 0; oy < SPK_HO; oy++) {
      for (ox = 0; ox < SPK_WO; ox++) {
        const int32_t y0 = oy * SPK_SH - SPK_PH, x0 = ox * SPK_SW - SPK_PW;
        const size_t to = (size_t)(oy * SPK_WO + ox);
        SPK_Y total = 0;
#if SPK_MAX
        int found = 0;
#endif
        for (iy = y0 < 0 ? 0 : y0; iy < y0 + SPK_KH && iy < SPK_HI; iy++) {
          for (ix = x0 < 0 ? 0 : x0; ix < x0 + SPK_KW && ix < SPK_WI; ix++) {
            const size_t from = (size_t)(iy * SPK_WI + ix);
            const SPK_Y value = (SPK_Y)x[SPK_IN_LAST ? from * SPK_C + c : (size_t)c * (SPK_HI * SPK_WI) + from];
#if SPK_MAX
            if (!found || value > total || SPK_IS_NAN(value)) { total = value; }
            found = 1;
#else
            total = (SPK_Y)(total + value);
#endif
          }
        }
#if defined(SPK_SCALE)
        total = total / SPK_SCALE;
#endif
        y[SPK_OUT_LAST ? to * SPK_C + c : (size_t)c * (SPK_HO * SPK_WO) + to] = total;
      }
    }
  }
}
#endif
#undef SPK_INSIDE
#undef SPK_PACKED
#undef SPK_NAME
#undef SPK_X
#undef SPK_Y
#undef SPK_MAX
#undef SPK_SCALE
#undef SPK_NAN
#undef SPK_IS_NAN
#undef SPK_C
#undef SPK_HI
#undef SPK_WI
#undef SPK_HO
#undef SPK_WO
#undef SPK_KH
#undef SPK_KW
#undef SPK_SH
#undef SPK_SW
#undef SPK_PH
#undef SPK_PW
#undef SPK_IN_LAST
#undef SPK_OUT_LAST
