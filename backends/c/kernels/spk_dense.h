/* spk_dense.h - a dense layer, one event at a time: an event of input i adds row i of the weights (in, out) to the
 * accumulators. Included once for each layer.
 *
 * SPK_NAME    name of the function
 * SPK_ACC     type of an accumulator; the compiler of the network has proven that no partial sum leaves it
 * SPK_WEIGHT  type of a weight
 * SPK_INDEX   type of an event
 * SPK_IN      inputs; SPK_OUT outputs; an event e means input e % SPK_IN of the group e / SPK_IN of outputs
 * SPK_ONE     1 if there is only one such group
 * SPK_X       type of an event's value, SPK_PRODUCT a type that holds value * weight; undefined where every value is 1
 * SPK_DELAY   type of the delays (in, out); undefined where there are none. Then the accumulators are a ring, and
 *             slot[d] is where the accumulators of d steps later begin
 *
 * SPK_STRIDE  elements from one row of weights to the next, SPK_OUT if not given; what stands between is zero
 * SPK_FAST    1 if weights are int8_t, accumulators int16_t and events uint16_t in one group of outputs, all values are 1, and
 *             SPK_STRIDE is a multiple of 16 for which the accumulators have room. The weights of even outputs are then
 *             stored with 128 added, and blocks of outputs stay in vector registers while the loop runs over the events (spk_simd.h)
 * SPK_WIDE    with SPK_FAST, where accumulators are int32_t: no sum of so many rows leaves 16 bits. The sums of as many events at a
 *             time are made in 16 bits and added to the accumulators, which have room for SPK_OUT
 * SPK_RUN     elements of a row that are added, SPK_STRIDE if not given; only with SPK_FAST. What is beyond SPK_STRIDE belongs to the
 *             next row, and the sums of it to nothing
 * SPK_FRESH   1 if what stands in the accumulators before is no matter; only with SPK_FAST
 *
 * Otherwise four rows at a time while there are as many: the accumulators are then read and written once for four events. */
#include "spk_simd.h"
/* Outputs whose sums of 16 bits lie on the stack at a time. */
#define SPK_PANEL 512u
#if !defined(SPK_STRIDE)
#define SPK_STRIDE SPK_OUT
#endif
#if !defined(SPK_RUN)
#define SPK_RUN SPK_STRIDE
#endif
#if defined(SPK_X)
#define SPK_TERM(w) ((SPK_ACC)((SPK_PRODUCT)(w) * value))
#else
#define SPK_TERM(w) ((SPK_ACC)(w))
#endif

#if defined(SPK_DELAY)
static void SPK_NAME(SPK_ACC *SPK_RESTRICT ring, const uint32_t *SPK_RESTRICT slot, const SPK_WEIGHT *SPK_RESTRICT weight,
                     const SPK_DELAY *SPK_RESTRICT delay, const SPK_INDEX *SPK_RESTRICT event, uint32_t count
#if defined(SPK_X)
                     , const SPK_X *SPK_RESTRICT x
#endif
) {
  uint32_t e;
  for (e = 0; e < count; e++) {
    const uint32_t row = SPK_ONE ? event[e] : event[e] % SPK_IN;
    const uint32_t group = SPK_ONE ? 0 : event[e] / SPK_IN * SPK_OUT;
    const SPK_WEIGHT *w = weight + (size_t)row * SPK_STRIDE;
    const SPK_DELAY *d = delay + (size_t)row * SPK_STRIDE;
    uint32_t o;
#if defined(SPK_X)
    const SPK_PRODUCT value = (SPK_PRODUCT)x[event[e]];
#endif
    for (o = 0; o < SPK_OUT; o++) {
      SPK_ACC *a = ring + slot[d[o]] + group + o;
      *a = (SPK_ACC)(*a + SPK_TERM(w[o]));
    }
  }
}
#else
static void SPK_NAME(SPK_ACC *SPK_RESTRICT acc, const SPK_WEIGHT *SPK_RESTRICT weight, const SPK_INDEX *SPK_RESTRICT event,
                     uint32_t count
#if defined(SPK_X)
                     , const SPK_X *SPK_RESTRICT x
#endif
) {
  uint32_t e = 0;
  uint32_t o = 0;
#if SPK_FAST && SPK_SIMD && defined(SPK_WIDE)
  do {
    const uint32_t some = count - e < SPK_WIDE ? count - e : SPK_WIDE;
    for (o = 0; o < SPK_RUN; o += SPK_PANEL) {
      int16_t sum[SPK_PANEL];
      const uint32_t end = SPK_OUT - o < SPK_PANEL ? SPK_OUT - o : SPK_PANEL;
      uint32_t k;
      if (SPK_RUN - o >= SPK_PANEL) {
        spk_rows(sum, weight + o, SPK_STRIDE, SPK_PANEL, event + e, some, 1);
      } else {
        spk_rows(sum, weight + o, SPK_STRIDE, SPK_RUN % SPK_PANEL, event + e, some, 1);
      }
      if (SPK_FRESH && e == 0) {
        for (k = 0; k < end; k++) { acc[o + k] = sum[k]; }
      } else {
        for (k = 0; k < end; k++) { acc[o + k] = (SPK_ACC)(acc[o + k] + sum[k]); }
      }
    }
    e += some;
  } while (e < count);
#elif SPK_FAST && SPK_SIMD
  (void)e;
  (void)o;
  spk_rows(acc, weight, SPK_STRIDE, SPK_RUN, event, count, SPK_FRESH);
#elif SPK_FAST && defined(SPK_WIDE)
  for (o = 0; SPK_FRESH && o < SPK_OUT; o++) { acc[o] = 0; }
  for (; e < count; e++) {
    const int8_t *SPK_RESTRICT w = weight + (size_t)event[e] * SPK_STRIDE;
    for (o = 0; o + 2u <= SPK_OUT; o += 2u) {
      acc[o] = (SPK_ACC)(acc[o] + (uint8_t)w[o] - 128);
      acc[o + 1u] = (SPK_ACC)(acc[o + 1u] + w[o + 1u]);
    }
    if (SPK_OUT % 2u != 0) { acc[SPK_OUT - 1u] = (SPK_ACC)(acc[SPK_OUT - 1u] + (uint8_t)w[SPK_OUT - 1u] - 128); }
  }
#elif SPK_FAST
  const int16_t bias = (int16_t)(uint16_t)(128u * count);
  for (o = 0; o < SPK_RUN; o += 2u) {
    acc[o] = (int16_t)((SPK_FRESH ? 0 : acc[o]) - bias);
    acc[o + 1u] = SPK_FRESH ? 0 : acc[o + 1u];
  }
  for (; e < count; e++) {
    const int8_t *SPK_RESTRICT w = weight + (size_t)event[e] * SPK_STRIDE;
    for (o = 0; o < SPK_RUN; o += 2u) {
      acc[o] = (int16_t)(acc[o] + (uint8_t)w[o]);
      acc[o + 1u] = (int16_t)(acc[o + 1u] + w[o + 1u]);
    }
  }
#else
#if !defined(SPK_X)
  if (SPK_ONE) {
    for (; e + 4u <= count; e += 4u) {
      const SPK_WEIGHT *SPK_RESTRICT w0 = weight + (size_t)event[e] * SPK_STRIDE;
      const SPK_WEIGHT *SPK_RESTRICT w1 = weight + (size_t)event[e + 1u] * SPK_STRIDE;
      const SPK_WEIGHT *SPK_RESTRICT w2 = weight + (size_t)event[e + 2u] * SPK_STRIDE;
      const SPK_WEIGHT *SPK_RESTRICT w3 = weight + (size_t)event[e + 3u] * SPK_STRIDE;
      for (o = 0; o < SPK_OUT; o++) {
        acc[o] = (SPK_ACC)(acc[o] + (SPK_ACC)((SPK_ACC)((SPK_ACC)w0[o] + (SPK_ACC)w1[o]) + (SPK_ACC)((SPK_ACC)w2[o] + (SPK_ACC)w3[o])));
      }
    }
  }
#endif
  for (; e < count; e++) {
    const uint32_t row = SPK_ONE ? event[e] : event[e] % SPK_IN;
    const SPK_WEIGHT *SPK_RESTRICT w = weight + (size_t)row * SPK_STRIDE;
    SPK_ACC *SPK_RESTRICT a = acc + (SPK_ONE ? 0 : event[e] / SPK_IN * SPK_OUT);
#if defined(SPK_X)
    const SPK_PRODUCT value = (SPK_PRODUCT)x[event[e]];
#endif
    for (o = 0; o < SPK_OUT; o++) { a[o] = (SPK_ACC)(a[o] + SPK_TERM(w[o])); }
  }
#endif
}
#endif
#undef SPK_NAME
#undef SPK_ACC
#undef SPK_WEIGHT
#undef SPK_INDEX
#undef SPK_IN
#undef SPK_OUT
#undef SPK_ONE
#undef SPK_X
#undef SPK_PRODUCT
#undef SPK_DELAY
#undef SPK_TERM
#undef SPK_FAST
#undef SPK_FRESH
#undef SPK_STRIDE
#undef SPK_RUN
#undef SPK_WIDE
#undef SPK_PANEL
