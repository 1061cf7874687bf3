/* spk_convhalo.h - a convolution that scatters into a map with room around it, channels last: an event adds one run of numbers
 * for every row that it reaches, without looking where the map ends. What lands in the room around is never read, and may
 * wrap. Included once for each layer; one axis of space is height 1.
 *
 * As in spk_convrow.h the weights of the taps that go together (a phase of the stride) are stored together, backwards; here
 * every phase is filled up with zeros to SPK_NY by SPK_NX taps: (in, phase y, phase x, SPK_NY, SPK_NX, out).
 *
 * SPK_NAME, SPK_INDEX   as in spk_conv.h; accumulators and weights are int16_t
 * SPK_CIN, SPK_HI, SPK_WI, SPK_COUT, SPK_SH, SPK_SW, SPK_IN_LAST
 * SPK_PITCH             elements from one row of the map to the next
 *
 * `where` holds three numbers for each place of the input: how many places of the output it reaches (bits 0 to 7), its phase (8 to
 * 15), and the place in `acc` where its first tap lands, in units of SPK_COUT (from 16). Returns the number of connections
 * used. */
#include "spk_simd.h"
#define SPK_RUN SPK_CAT(SPK_NAME, _run)
#define SPK_V SPK_CAT(SPK_NAME, _v)
/* A vector no longer than the channels: then what an event reads is what one before it wrote, not parts of two stores, for
 * which the processor would have to wait. */
#if SPK_SIMD && (SPK_COUT % 32u == 0) && defined(__AVX512BW__)
#define SPK_STEP 32u
#elif SPK_SIMD && (SPK_COUT % 16u == 0) && defined(__AVX2__)
#define SPK_STEP 16u
#elif SPK_SIMD && (SPK_COUT % 8u == 0)
#define SPK_STEP 8u
#elif SPK_SIMD && (SPK_COUT % 4u == 0)
#define SPK_STEP 4u
#else
#define SPK_STEP 1u
#endif
#if SPK_STEP > 1
typedef uint16_t SPK_V __attribute__((vector_size(2u * SPK_STEP), aligned(2), may_alias));
#endif

SPK_INLINE_ANY void SPK_RUN(int16_t *SPK_RESTRICT a, const int16_t *SPK_RESTRICT w) {
  uint32_t i;
#if SPK_STEP > 1
  /* In twos, for processors that load and store pairs. */
  SPK_UNROLL for (i = 0; i + 2u * SPK_STEP <= SPK_NX * SPK_COUT; i += 2u * SPK_STEP) {
    SPK_V *to = (SPK_V *)(void *)(a + i);
    const SPK_V *by = (const SPK_V *)(const void *)(w + i);
    const SPK_V first = to[0] + by[0], second = to[1] + by[1];
    to[0] = first;
    to[1] = second;
  }
  if (SPK_NX * SPK_COUT / SPK_STEP % 2u == 1u) {
    SPK_V *to = (SPK_V *)(void *)(a + i);
    *to += *(const SPK_V *)(const void *)(w + i);
  }
#else
  for (i = 0; i < SPK_NX * SPK_COUT; i++) { a[i] = (int16_t)(a[i] + w[i]); }
#endif
}

static uint64_t SPK_NAME(int16_t *SPK_RESTRICT acc, const uint32_t *SPK_RESTRICT where, const int16_t *SPK_RESTRICT weight,
                         const SPK_INDEX *SPK_RESTRICT event, uint32_t count) {
  uint64_t used = 0;
  uint32_t e;
  for (e = 0; e < count; e++) {
    const uint32_t id = event[e];
#if SPK_IN_LAST
    const uint32_t pixel = id / SPK_CIN, c = id % SPK_CIN;
#else
    /* An event camera's two polarities take no division. */
    const uint32_t c = SPK_CIN <= 2u ? (uint32_t)(id >= SPK_HI * SPK_WI) : id / (SPK_HI * SPK_WI);
    const uint32_t pixel = id - c * (SPK_HI * SPK_WI);
#endif
    const uint32_t place = where[pixel];
    const uint32_t phase = c * (SPK_SH * SPK_SW) + (SPK_SH * SPK_SW == 1 ? 0 : place >> 8 & 255u);
    const int16_t *w = weight + phase * (size_t)(SPK_NY * SPK_NX * SPK_COUT);
    int16_t *a = acc + (size_t)(place >> 16) * SPK_COUT;
    uint32_t j;
    SPK_OPAQUE(w);
    SPK_OPAQUE(a);
    used += place & 255u;
    SPK_UNROLL for (j = 0; j < SPK_NY; j++) { SPK_RUN(a + j * SPK_PITCH, w + j * (SPK_NX * SPK_COUT)); }
  }
  return used * SPK_COUT;
}
#undef SPK_RUN
#undef SPK_V
#undef SPK_STEP
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
#undef SPK_NY
#undef SPK_NX
#undef SPK_PITCH
#undef SPK_GROUPS
#undef SPK_IN_LAST
#undef SPK_OUT_LAST
