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
 * SPK_ROWS    events that are taken side by side, where accumulators are more than the first cache holds and the connections of
 *             an input are in the order of their targets; undefined: one after the other. The order of additions then changes,
 *             which only integers allow
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
/* Connections between two looks ahead, and of a row before its neighbour's turn. */
#if defined(SPK_ROWS)
#define SPK_PIECE 32u
#else
#define SPK_PIECE 64u
#endif
/* Fetches a piece of the connections from number `first` on. */
#define SPK_AHEAD(first)                                                                                                       \
  do {                                                                                                                         \
    const char *const to = (const char *)(target + (first));                                                                   \
    const char *const by = (const char *)(weight + (first));                                                                   \
    uint32_t line;                                                                                                             \
    for (line = 0; line < SPK_PIECE * sizeof *target; line += 64u) { SPK_PREFETCH(to + line); }                                \
    for (line = 0; line < SPK_PIECE * sizeof *weight; line += 64u) { SPK_PREFETCH(by + line); }                                \
  } while (0)

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
#if defined(SPK_ROWS)
  for (e = 0; e < count; e += SPK_ROWS) {
    const uint32_t rows = count - e < SPK_ROWS ? count - e : SPK_ROWS;
    uint32_t at[SPK_ROWS], end[SPK_ROWS], ahead[SPK_ROWS];
    uint32_t longest = 0;
    uint32_t r;
    for (r = 0; r < rows; r++) {
      const uint32_t id = event[e + r];
      at[r] = start[id];
      end[r] = start[id + 1u];
      ahead[r] = start[event[e + r + SPK_ROWS < count ? e + r + SPK_ROWS : e + r]];
      used += end[r] - at[r];
      longest = end[r] - at[r] > longest ? end[r] - at[r] : longest;
    }
    /* Rows advance together: targets of the same piece of different rows lie near each other, so that accumulators are still in the
     * first cache when the next row comes to them. The rows of the next events are fetched as far as these are done. */
    for (; longest >= SPK_PIECE; longest -= SPK_PIECE) {
      for (r = 0; r < rows; r++) {
        const uint32_t stop = at[r] + SPK_PIECE;
        uint32_t k = at[r];
#if defined(SPK_X)
        const SPK_PRODUCT value = (SPK_PRODUCT)x[event[e + r]];
#endif
        if (end[r] - k < SPK_PIECE) { continue; }
        SPK_AHEAD(ahead[r]);
        for (; k < stop; k++) { SPK_CONNECT(k); }
        at[r] = stop;
        ahead[r] += SPK_PIECE;
      }
    }
    for (r = 0; r < rows; r++) {
      uint32_t k = at[r];
#if defined(SPK_X)
      const SPK_PRODUCT value = (SPK_PRODUCT)x[event[e + r]];
#endif
      SPK_AHEAD(ahead[r]);
      for (; k < end[r]; k++) { SPK_CONNECT(k); }
    }
  }
#else
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
      uint32_t next = start[event[e + 2u < count ? e + 2u : e]];
      for (; end - k >= SPK_PIECE; next += SPK_PIECE) {
        const uint32_t stop = k + SPK_PIECE;
        SPK_AHEAD(next);
        for (; k < stop; k++) { SPK_CONNECT(k); }
      }
      SPK_AHEAD(next);
    }
    for (; k < end; k++) { SPK_CONNECT(k); }
  }
#endif
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
#undef SPK_ROWS
#undef SPK_AHEAD
#undef SPK_PIECE
