/* spk_convrow.h - a convolution that scatters, for channels last and one group: the outputs that an event reaches along a
 * row lie side by side, and so do their weights, so that an event adds one run of numbers for every row that it reaches.
 * Included once for each layer; one axis of space is height 1.
 *
 * An event at (y, x) reaches output row (y + pad - k) / stride for the taps k that are equal to y + pad modulo the stride.
 * The weights of the taps that go together (a phase) are stored together, in the order of the outputs, that is backwards:
 * (in, phase y, phase x, taps y, taps x, out), phases one after the other without gaps.
 *
 * SPK_NAME, SPK_ACC, SPK_WEIGHT, SPK_INDEX, SPK_X   as in spk_conv.h; a value times a weight fits SPK_ACC
 * SPK_CIN, SPK_HI, SPK_WI, SPK_COUT, SPK_HO, SPK_WO, SPK_KH, SPK_KW, SPK_SH, SPK_SW, SPK_PH, SPK_PW, SPK_IN_LAST
 *
 * Returns the number of connections used. */
#include "spk_simd.h"
/* Taps of phase p of a kernel of k taps at stride s, and where the phase begins: taps of the phases before it. */
#define SPK_TAPS(k, s, p) (((k) - (p) + (s)-1) / (s))
#define SPK_BEFORE(k, s, p) ((p) * ((k) / (s)) + ((p) < (k) % (s) ? (p) : (k) % (s)))
#define SPK_RUN SPK_CAT(SPK_NAME, _run)
#define SPK_EVENT SPK_CAT(SPK_NAME, _event)

SPK_INLINE_ANY void SPK_RUN(SPK_ACC *SPK_RESTRICT a, const SPK_WEIGHT *SPK_RESTRICT w, const uint32_t n
#if defined(SPK_X)
                            , const SPK_ACC value
#endif
) {
  uint32_t i;
  for (i = 0; i < n; i++) {
#if defined(SPK_X)
    a[i] = (SPK_ACC)(a[i] + (SPK_ACC)(w[i] * value));
#else
    a[i] = (SPK_ACC)(a[i] + w[i]);
#endif
  }
}

#if defined(SPK_X)
#define SPK_PASS , value
#else
#define SPK_PASS
#endif

/* One event of which `nx` taps, a constant, lie in a row. */
SPK_INLINE_ANY uint32_t SPK_EVENT(SPK_ACC *SPK_RESTRICT acc, const SPK_WEIGHT *SPK_RESTRICT w, int32_t ty, int32_t tx, int32_t ny,
                                  const int32_t nx
#if defined(SPK_X)
                                  , const SPK_ACC value
#endif
) {
  const int32_t j0 = ty < 0 ? -ty : 0;
  const int32_t j1 = ny < SPK_HO - ty ? ny : SPK_HO - ty;
  int32_t j;
  if (tx >= 0 && tx + nx <= SPK_WO) {
    for (j = j0; j < j1; j++) {
      SPK_RUN(acc + (size_t)((ty + j) * SPK_WO + tx) * SPK_COUT, w + (size_t)(j * nx) * SPK_COUT, (uint32_t)nx * SPK_COUT SPK_PASS);
    }
    return j1 > j0 ? (uint32_t)((j1 - j0) * nx) * SPK_COUT : 0u;
  }
  {
    const int32_t i0 = tx < 0 ? -tx : 0;
    const int32_t i1 = nx < SPK_WO - tx ? nx : SPK_WO - tx;
    if (i1 <= i0 || j1 <= j0) { return 0; }
    for (j = j0; j < j1; j++) {
      int32_t i;
      for (i = i0; i < i1; i++) {
        SPK_RUN(acc + (size_t)((ty + j) * SPK_WO + tx + i) * SPK_COUT, w + (size_t)(j * nx + i) * SPK_COUT, SPK_COUT SPK_PASS);
      }
    }
    return (uint32_t)((j1 - j0) * (i1 - i0)) * SPK_COUT;
  }
}

static uint64_t SPK_NAME(SPK_ACC *SPK_RESTRICT acc, const SPK_WEIGHT *SPK_RESTRICT weight, const SPK_INDEX *SPK_RESTRICT event,
                         uint32_t count
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
    const int32_t yy = (int32_t)(pixel / SPK_WI) + SPK_PH;
    const int32_t xx = (int32_t)(pixel % SPK_WI) + SPK_PW;
    const int32_t py = yy % SPK_SH, px = xx % SPK_SW;
    const int32_t ny = SPK_TAPS(SPK_KH, SPK_SH, py), nx = SPK_TAPS(SPK_KW, SPK_SW, px);
    const SPK_WEIGHT *w = weight + (size_t)c * (SPK_KH * SPK_KW * SPK_COUT) +
                          (size_t)(SPK_BEFORE(SPK_KH, SPK_SH, py) * SPK_KW + ny * SPK_BEFORE(SPK_KW, SPK_SW, px)) * SPK_COUT;
    const int32_t ty = yy / SPK_SH - (ny - 1), tx = xx / SPK_SW - (nx - 1);
#if defined(SPK_X)
    const SPK_ACC value = (SPK_ACC)x[id];
#endif
    /* A phase has one of two numbers of taps; each gets code of its own. */
    if (nx == SPK_TAPS(SPK_KW, SPK_SW, 0)) {
      used += SPK_EVENT(acc, w, ty, tx, ny, SPK_TAPS(SPK_KW, SPK_SW, 0) SPK_PASS);
    } else if (SPK_KW / SPK_SW > 0) {
      used += SPK_EVENT(acc, w, ty, tx, ny, SPK_KW / SPK_SW SPK_PASS);
    }
  }
  return used;
}
#undef SPK_TAPS
#undef SPK_BEFORE
#undef SPK_RUN
#undef SPK_EVENT
#undef SPK_PASS
#undef SPK_NAME
#undef SPK_ACC
#undef SPK_WEIGHT
#undef SPK_INDEX
#undef SPK_X
#undef SPK_PRODUCT
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
