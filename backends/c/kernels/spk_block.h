/* spk_block.h - a layer of which only blocks of neighbouring targets are stored, one event at a time: an event of input i adds
 * the blocks start[i] ... start[i + 1] - 1, each SPK_B weights, to the accumulators from place[k] on. Included once for each layer.
 *
 * SPK_NAME    name of the function
 * SPK_ACC     type of an accumulator; the compiler of the network has proven that no partial sum leaves it
 * SPK_WEIGHT  type of a weight
 * SPK_INDEX   type of an event
 * SPK_B       weights of a block
 * SPK_MOST    blocks of the longest row
 * SPK_BLOCKS  all blocks
 * SPK_NARROW  1 if weights are int8_t and accumulators int16_t: then a block is one vector or a few
 *
 * How many blocks a row has is not to be foreseen, and a loop over them would be left at another turn for every event. The
 * numbers of the blocks of many events are listed first, several at once, whether they are needed or not; then one long loop adds
 * them. Returns the number of weights added. */
#include "spk_simd.h"
#define SPK_ADD SPK_CAT(SPK_NAME, _block)
#define SPK_AT SPK_CAT(SPK_NAME, _at)
#define SPK_RISE SPK_CAT(SPK_NAME, _rise)
#if SPK_BLOCKS <= 65535
typedef uint16_t SPK_AT;
#else
typedef uint32_t SPK_AT;
#endif
/* Numbers that are written at once, and events that are listed before the blocks are added. */
#define SPK_ONCE 8u
#define SPK_EVENTS 32u

SPK_INLINE_ANY void SPK_ADD(SPK_ACC *SPK_RESTRICT a, const SPK_WEIGHT *SPK_RESTRICT w) {
#if SPK_NARROW && SPK_SIMD && SPK_B % 8u == 0
  spk_widen_add(a, w, SPK_B);
#else
  uint32_t o;
  for (o = 0; o < SPK_B; o++) { a[o] = (SPK_ACC)(a[o] + w[o]); }
#endif
}

/* to[0 .. SPK_ONCE) = first, first + 1, ... */
SPK_INLINE_ANY void SPK_RISE(SPK_AT *SPK_RESTRICT to, uint32_t first) {
#if SPK_SIMD && SPK_BLOCKS <= 65535
  typedef uint16_t eight __attribute__((vector_size(16)));
  const eight numbers = (eight){0, 1, 2, 3, 4, 5, 6, 7} + (uint16_t)first;
  memcpy(to, &numbers, sizeof numbers);
#else
  uint32_t j;
  for (j = 0; j < SPK_ONCE; j++) { to[j] = (SPK_AT)(first + j); }
#endif
}

static uint64_t SPK_NAME(SPK_ACC *SPK_RESTRICT acc, const uint32_t *SPK_RESTRICT start, const uint16_t *SPK_RESTRICT place,
                         const SPK_WEIGHT *SPK_RESTRICT weight, const SPK_INDEX *SPK_RESTRICT event, uint32_t count) {
  SPK_AT list[SPK_EVENTS * SPK_MOST + SPK_ONCE];
  uint64_t used = 0;
  uint32_t e = 0;
  while (e < count) {
    const uint32_t stop = count - e < SPK_EVENTS ? count : e + SPK_EVENTS;
    uint32_t n = 0, k;
    for (; e < stop; e++) {
      const uint32_t first = start[event[e]];
      const uint32_t blocks = start[event[e] + 1u] - first;
      SPK_RISE(list + n, first);
      for (k = SPK_ONCE; k < blocks; k += SPK_ONCE) { SPK_RISE(list + n + k, first + k); }
      n += blocks;
    }
    for (k = 0; k < n; k++) { SPK_ADD(acc + place[list[k]], weight + (size_t)list[k] * SPK_B); }
    used += n;
  }
  return used * SPK_B;
}
#undef SPK_ADD
#undef SPK_AT
#undef SPK_RISE
#undef SPK_ONCE
#undef SPK_EVENTS
#undef SPK_NAME
#undef SPK_ACC
#undef SPK_WEIGHT
#undef SPK_INDEX
#undef SPK_B
#undef SPK_MOST
#undef SPK_BLOCKS
#undef SPK_NARROW
