/* spk_sparse.h - stored connections only: the connections of input i are start[i] ... start[i + 1] - 1, each with a target
 * and a weight. Included once for each layer.
 *
 * SPK_NAME    name of the function
 * SPK_ACC     type of an accumulator; the compiler of the network has proven that no partial sum leaves it
 * SPK_WEIGHT  type of a weight
 * SPK_INDEX   type of an event
 * SPK_TARGET  type of a target
 * SPK_X       type of an event's value, SPK_PRODUCT a type that holds value * weight; undefined where every value is 1
 * SPK_DELAY   type of a connection's delay; undefined where there are none. Then the accumulators are a ring, and slot[d]
 *             is where the accumulators of d steps later begin
 *
 * Returns the number of connections used. */
static uint64_t SPK_NAME(SPK_ACC *SPK_RESTRICT acc,
#if defined(SPK_DELAY)
                         const uint32_t *SPK_RESTRICT slot, const SPK_DELAY *SPK_RESTRICT delay,
#endif
                         const uint32_t *SPK_RESTRICT start, const SPK_TARGET *SPK_RESTRICT target,
                         const SPK_WEIGHT *SPK_RESTRICT weight, const SPK_INDEX *SPK_RESTRICT event, uint32_t count
#if defined(SPK_X)
                         , const SPK_X *SPK_RESTRICT x
#endif
) {
  uint64_t used = 0;
  uint32_t e;
  for (e = 0; e < count; e++) {
    const uint32_t end = start[event[e] + 1u];
    uint32_t k = start[event[e]];
#if defined(SPK_X)
    const SPK_PRODUCT value = (SPK_PRODUCT)x[event[e]];
#endif
    used += end - k;
    /* The connections of the event after the next come from far away: fetch them while this one is added. */
    if (e + 2u < count) {
      const uint32_t last = start[event[e + 2u] + 1u];
      uint32_t ahead;
      for (ahead = start[event[e + 2u]]; ahead < last; ahead += 64u / (uint32_t)sizeof(SPK_TARGET)) { SPK_PREFETCH(target + ahead); }
      for (ahead = start[event[e + 2u]]; ahead < last; ahead += 64u / (uint32_t)sizeof(SPK_WEIGHT)) { SPK_PREFETCH(weight + ahead); }
    }
    for (; k < end; k++) {
#if defined(SPK_DELAY)
      SPK_ACC *a = acc + slot[delay[k]] + target[k];
#else
      SPK_ACC *a = acc + target[k];
#endif
#if defined(SPK_X)
      *a = (SPK_ACC)(*a + (SPK_ACC)((SPK_PRODUCT)weight[k] * value));
#else
      *a = (SPK_ACC)(*a + (SPK_ACC)weight[k]);
#endif
    }
  }
  return used;
}
#undef SPK_NAME
#undef SPK_ACC
#undef SPK_WEIGHT
#undef SPK_INDEX
#undef SPK_TARGET
#undef SPK_X
#undef SPK_PRODUCT
#undef SPK_DELAY
