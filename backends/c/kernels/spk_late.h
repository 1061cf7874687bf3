/* spk_late.h - the rows of weights that arrive at a step, for a layer with delays. Included once for each layer.
 *
 * SPK_NAME    name of the function
 * SPK_FROM    type of an event of the sources
 * SPK_INDEX   type of the number of a row
 * SPK_RING    steps that are kept, SPK_ROOM elements from one of them to the next
 * SPK_WHOLE   1: there is a row for each of SPK_DELAYS delays and SPK_IN sources, and `list` has the events of the last steps, of
 *             which there are counts[step]. `delay` has the delays.
 *             0: row r of start[source] ... start[source + 1] - 1 arrives delay[r] steps after its source sent. `list` has
 *             the rows that arrive at the next steps.
 *
 * `now` is where the current step lies in the ring. Returns how many rows arrive: at `event`, or in the list of this step. */
#if SPK_WHOLE
static uint32_t SPK_NAME(const SPK_FROM *SPK_RESTRICT list, const uint32_t *SPK_RESTRICT counts, const uint32_t *SPK_RESTRICT delay,
                         uint32_t now, SPK_INDEX *SPK_RESTRICT event) {
  uint32_t count = 0;
  uint32_t k, i;
  for (k = 0; k < SPK_DELAYS; k++) {
    const uint32_t step = now >= delay[k] ? now - delay[k] : now + SPK_RING - delay[k];
    const SPK_FROM *SPK_RESTRICT from = list + (size_t)step * SPK_ROOM;
    SPK_INDEX *SPK_RESTRICT to = event + count;
    for (i = 0; i < counts[step]; i++) { to[i] = (SPK_INDEX)(from[i] + k * SPK_IN); }
    count += counts[step];
  }
  return count;
}
#else
static uint32_t SPK_NAME(SPK_INDEX *SPK_RESTRICT list, uint32_t *SPK_RESTRICT counts, const uint32_t *SPK_RESTRICT start,
                         const uint32_t *SPK_RESTRICT delay, uint32_t now, const SPK_FROM *SPK_RESTRICT event, uint32_t count) {
  uint32_t i, r;
  for (i = 0; i < count; i++) {
    for (r = start[event[i]]; r < start[event[i] + 1u]; r++) {
      const uint32_t step = now + delay[r] >= SPK_RING ? now + delay[r] - SPK_RING : now + delay[r];
      list[(size_t)step * SPK_ROOM + counts[step]++] = (SPK_INDEX)r;
    }
  }
  return counts[now];
}
#endif
#undef SPK_NAME
#undef SPK_FROM
#undef SPK_INDEX
#undef SPK_RING
#undef SPK_ROOM
#undef SPK_WHOLE
#undef SPK_DELAYS
#undef SPK_IN
