/* spk_convgroup.h - a convolution that scatters, in groups, with or without dilation, into a map with room around it: an event
 * adds SPK_ROWS by SPK_TAPS runs of SPK_RUN numbers at constant distances, without looking where the map ends. Included once for
 * each layer; one axis of space is height 1.
 *
 * By taps, channels last: a run is the outputs of a group, filled up with zeros, which do no harm to the next group; what lands
 * in the room around is never read, and may wrap. By planes, channels first: a run is a row of the kernel; where it reaches over
 * an edge the weights are zero, for which the table chooses among several sets of weights.
 *
 * SPK_NAME, SPK_INDEX, SPK_X         as in spk_conv.h; a value times a weight fits an accumulator
 * SPK_ACC, SPK_UACC, SPK_WIDTH       type of accumulators and weights, int16_t or int32_t, the same without sign, and its bytes
 * SPK_CIN, SPK_PIXELS, SPK_IN_LAST   input channels and the places of a channel; 1: channels are the last axis, 0: the first
 * SPK_IG, SPK_OG                     input and output channels of a group
 * SPK_BETWEEN                        elements from the outputs of a group to those of the next
 * SPK_UNIT                           elements of a unit of the table's places
 * SPK_ROW, SPK_TAP                   elements from one row, and one tap, to the next
 *
 * `where` holds three numbers for each place of the input: how many places of the output it reaches (bits 0 to 7), which set of
 * weights it takes (8 to 15), and where its first run lands (from 16). `weight` is (set, in, SPK_ROWS, SPK_TAPS, SPK_RUN). Returns
 * the number of connections used. */
#include "spk_simd.h"
#define SPK_ADD SPK_CAT(SPK_NAME, _run)
#define SPK_V SPK_CAT(SPK_NAME, _v)
#if SPK_SIMD && SPK_RUN * SPK_WIDTH % 64 == 0 && defined(__AVX512BW__)
#define SPK_SPAN 64u
#elif SPK_SIMD && SPK_RUN * SPK_WIDTH % 32 == 0 && defined(__AVX2__)
#define SPK_SPAN 32u
#elif SPK_SIMD && SPK_RUN * SPK_WIDTH % 16 == 0
#define SPK_SPAN 16u
#elif SPK_SIMD && SPK_RUN * SPK_WIDTH % 8 == 0
#define SPK_SPAN 8u
#else
#define SPK_SPAN 0u
#endif
#if SPK_SPAN
typedef SPK_UACC SPK_V __attribute__((vector_size(SPK_SPAN), aligned(2), may_alias));
#endif

SPK_INLINE_ANY void SPK_ADD(SPK_ACC *a, const SPK_ACC *SPK_RESTRICT w
#if defined(SPK_X)
                            , const SPK_ACC value
#endif
) {
  uint32_t i;
#if SPK_TAP < SPK_RUN || SPK_ROW < SPK_RUN
  /* Runs overlap. gcc 12 with -O3 (-fpredictive-commoning) then takes what it read before a store that overlaps in part. */
  SPK_OPAQUE(a);
#endif
#if SPK_SPAN
  SPK_UNROLL for (i = 0; i < SPK_RUN; i += SPK_SPAN / SPK_WIDTH) {
    SPK_V *to = (SPK_V *)(void *)(a + i);
#if defined(SPK_X)
    *to += *(const SPK_V *)(const void *)(w + i) * (SPK_UACC)value;
#else
    *to += *(const SPK_V *)(const void *)(w + i);
#endif
  }
#else
  for (i = 0; i < SPK_RUN; i++) {
#if defined(SPK_X)
    a[i] = (SPK_ACC)((uint32_t)a[i] + (uint32_t)w[i] * (uint32_t)value);
#else
    a[i] = (SPK_ACC)((uint32_t)a[i] + (uint32_t)w[i]);
#endif
  }
#endif
}

static uint64_t SPK_NAME(SPK_ACC *SPK_RESTRICT acc, const uint32_t *SPK_RESTRICT where, const SPK_ACC *SPK_RESTRICT weight,
                         const SPK_INDEX *SPK_RESTRICT event, uint32_t count
#if defined(SPK_X)
                         , const SPK_X *SPK_RESTRICT x
#endif
) {
  uint64_t used = 0;
  uint32_t e;
  for (e = 0; e < count; e++) {
    const uint32_t id = event[e];
    const uint32_t pixel = SPK_IN_LAST ? id / SPK_CIN : id % SPK_PIXELS;
    const uint32_t c = SPK_IN_LAST ? id % SPK_CIN : id / SPK_PIXELS;
    const uint32_t place = where[pixel];
    const SPK_ACC *w = weight + (size_t)((place >> 8 & 255u) * SPK_CIN + c) * (SPK_ROWS * SPK_TAPS * SPK_RUN);
    SPK_ACC *a = acc + (size_t)(place >> 16) * SPK_UNIT + (size_t)(c / SPK_IG) * SPK_BETWEEN;
    uint32_t j, k;
#if defined(SPK_X)
    const SPK_ACC value = (SPK_ACC)x[id];
#define SPK_PASS , value
#else
#define SPK_PASS
#endif
    SPK_OPAQUE(w);
    SPK_OPAQUE(a);
    used += place & 255u;
    SPK_UNROLL for (j = 0; j < SPK_ROWS; j++) {
      SPK_UNROLL for (k = 0; k < SPK_TAPS; k++) {
        SPK_ADD(a + j * SPK_ROW + k * SPK_TAP, w + (j * SPK_TAPS + k) * SPK_RUN SPK_PASS);
      }
    }
  }
  return used * SPK_OG;
}
#undef SPK_ADD
#undef SPK_V
#undef SPK_SPAN
#undef SPK_PASS
#undef SPK_NAME
#undef SPK_ACC
#undef SPK_UACC
#undef SPK_WIDTH
#undef SPK_WEIGHT
#undef SPK_INDEX
#undef SPK_X
#undef SPK_PRODUCT
#undef SPK_CIN
#undef SPK_PIXELS
#undef SPK_IN_LAST
#undef SPK_IG
#undef SPK_OG
#undef SPK_BETWEEN
#undef SPK_UNIT
#undef SPK_ROWS
#undef SPK_ROW
#undef SPK_TAPS
#undef SPK_TAP
#undef SPK_RUN
