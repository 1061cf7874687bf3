/* spk_convpair.h - as spk_convhalo.h, for maps of 8 or 16 channels and vectors of 32 numbers, which hold several places of the map.
 * An event adds whole vectors that begin where vectors of the map begin: then what one event writes is what the next one reads, not
 * a part of it, for which the processor would have to wait, and there are fewer of them. The weights are there for each place
 * that an event may have in its first vector, zeros around them. Included once for each layer.
 *
 * SPK_NX     vectors of a row; SPK_PITCH is whole vectors
 * the others as in spk_convhalo.h, and so are `where` and what is returned */
#include "spk_simd.h"
#define SPK_V SPK_CAT(SPK_NAME, _v)
typedef uint16_t SPK_V __attribute__((vector_size(64), aligned(2), may_alias));

static uint64_t SPK_NAME(int16_t *SPK_RESTRICT acc, const uint32_t *SPK_RESTRICT where, const int16_t *SPK_RESTRICT weight,
                         const SPK_INDEX *SPK_RESTRICT event, uint32_t count) {
  uint64_t used = 0;
  uint32_t e;
  for (e = 0; e < count; e++) {
    const uint32_t id = event[e];
    const uint32_t pixel = SPK_IN_LAST ? id / SPK_CIN : id % (SPK_HI * SPK_WI);
    const uint32_t c = SPK_IN_LAST ? id % SPK_CIN : id / (SPK_HI * SPK_WI);
    const uint32_t place = where[pixel];
    const uint32_t phase = c * (SPK_SH * SPK_SW) + (SPK_SH * SPK_SW == 1 ? 0 : place >> 8 & 255u);
    const uint32_t first = (place >> 16) % (32u / SPK_COUT);
    const int16_t *w = weight + (phase * (size_t)(32u / SPK_COUT) + first) * (SPK_NY * SPK_NX * 32u);
    int16_t *a = acc + (size_t)((place >> 16) - first) * SPK_COUT;
    uint32_t j, i;
    SPK_OPAQUE(w);
    SPK_OPAQUE(a);
    used += place & 255u;
    SPK_UNROLL for (j = 0; j < SPK_NY; j++) {
      SPK_UNROLL for (i = 0; i < SPK_NX; i++) {
        SPK_V *const to = (SPK_V *)(void *)(a + j * SPK_PITCH + i * 32u);
        *to += *(const SPK_V *)(const void *)(w + (j * SPK_NX + i) * 32u);
      }
    }
  }
  return used * SPK_COUT;
}
#undef SPK_V
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
