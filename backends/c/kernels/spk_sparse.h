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
#if defined(SPK_DELAY)
#define SPK_PLACE(k) (slot[delay[k]] + target[k])
#else
#define SPK_PLACE(k) target[k]
#endif
#if defined(SPK_X)
#define SPK_CONNECT(k) acc[SPK_PLACE(k)] = (SPK_ACC)(acc[SPK_PLACE(k)] + (SPK_ACC)((SPK_PRODUCT)weight[k] * value))
#else
#define SPK_CONNECT(k) acc[SPK_PLACE(k)] = (SPK_ACC)(acc[SPK_PLACE(k)] + (SPK_ACC)weight[k])
#endif
/* Connections between two looks ahead. */
#define SPK_PIECE 64u

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
    /* The connections of the event after the next come from far away: fetch a piece of them with every piece that is added. A
     * burst would fill the processor's list of pending loads, and the accumulators would wait behind it. */
    {
      const uint32_t next = start[event[e + 2u < count ? e + 2u : e]];
      const SPK_TARGET *to = target + next;
      const SPK_WEIGHT *by = weight + next;
      for (; end - k >= SPK_PIECE; to += SPK_PIECE, by += SPK_PIECE) {
        const uint32_t stop = k + SPK_PIECE;
        uint32_t line;
        for (line = 0; line < SPK_PIECE * sizeof *to; line += 64u) { SPK_PREFETCH((const char *)to + line); }
        for (line = 0; line < SPK_PIECE * sizeof *by; line += 64u) { SPK_PREFETCH((const char *)by + line); }
        for (; k < stop; k++) { SPK_CONNECT(k); }
      }
      SPK_PREFETCH(to);
      SPK_PREFETCH(to + SPK_PIECE / 2u);
      SPK_PREFETCH(by);
    }
    for (; k < end; k++) { SPK_CONNECT(k); }
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
#undef SPK_PLACE
#undef SPK_CONNECT
#undef SPK_PIECE
