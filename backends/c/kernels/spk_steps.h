/* spk_steps.h - a layer of which only connections are stored, two bytes each: an event of input i adds the connections start[i] ...
 * start[i + 1] - 1. The low byte of one says how many targets further it lies than the one before, the high byte is its weight; a
 * step over more than 255 targets has connections of weight 0 on the way. Included once for each layer.
 *
 * SPK_NAME    name of the function
 * SPK_ACC     type of an accumulator; the compiler of the network has proven that no partial sum leaves it
 * SPK_INDEX   type of an event
 *
 * Rows have an even number of connections, the last perhaps a step of 0 with weight 0. Returns the number of connections used. */
#include "spk_int.h"
static uint64_t SPK_NAME(SPK_ACC *SPK_RESTRICT acc, const uint32_t *SPK_RESTRICT start, const int16_t *SPK_RESTRICT connection,
                         const SPK_INDEX *SPK_RESTRICT event, uint32_t count) {
  uint64_t used = 0;
  uint32_t e;
  for (e = 0; e < count; e++) {
    const int16_t *k = connection + start[event[e]];
    const int16_t *const end = connection + start[event[e] + 1u];
    SPK_ACC *a = acc;
    used += (uint64_t)(end - k);
    while (k < end) {
      const int32_t first = *k++;
      const int32_t second = *k++;
      a += first & 255;
      *a = (SPK_ACC)(*a + spk_sar32(first, 8));
      a += second & 255;
      *a = (SPK_ACC)(*a + spk_sar32(second, 8));
    }
  }
  return used;
}
#undef SPK_NAME
#undef SPK_ACC
#undef SPK_WEIGHT
#undef SPK_INDEX
