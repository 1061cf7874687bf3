/* spk_tiles.h - a set of weights and the population behind it, for many steps at once, on the matrix unit. Included once for each
 * such pair of layers.
 *
 * A row is a step: its inputs are bytes. Weights and population are cut into panels of SPK_WIDE neurons; each pair of 16 of
 * them has a list of the places in a row from which 64 bytes are taken, and of the tiles of weights that they meet. So a
 * convolution is a dense layer most of whose places are left out and whose tiles occur many times. For 32 rows the sums of a
 * panel are added up; its neurons, which stay in registers from step to step, are computed while the unit adds up the next.
 *
 * SPK_NAME     prefix of the functions; it has _take, _keep, _count, _first, _row and _last (see offline.py) and the type _held
 * SPK_NET      type of the network's memory
 * SPK_WIDE     neurons of a panel: 32 or 64
 * SPK_PANELS   number of panels
 * SPK_X_PITCH  bytes from row to row of the inputs
 * SPK_SHARE    rows of neurons that are computed for each step of the sums of the next panel
 * SPK_BIAS     what the sums begin with (int32_t), undefined where that is zero
 *
 * `fired` are the spikes of each port; they are counted.
 * order[] is the panels in the order in which they are computed;
 * start[p * pairs + k] to start[p * pairs + k + 1] are the places of pair k of panel p: from[] in a row, and tile[] in `weight`,
 * in units of the two tiles of a pair. */
#define SPK_PAIRS_OF (SPK_WIDE / 32)
#define SPK_SOME SPK_CAT(SPK_NAME, _some)
#define SPK_HELD SPK_CAT(SPK_NAME, _held)

/* Neurons of a panel for rows `begin` to end - 1 of a group; `t` is the step of the first, and what is returned that of the next. */
static SPK_APART uint32_t SPK_SOME(SPK_NET *net, SPK_HELD *held, const int32_t *sums, size_t first, uint32_t group, uint32_t begin,
                                   uint32_t end, uint32_t t, uint32_t steps) {
  uint32_t r;
  for (r = begin; r < end; r++) {
    if (t == 0) { SPK_CAT(SPK_NAME, _first)(first, held); }
    SPK_CAT(SPK_NAME, _row)(net, first, sums + r * SPK_WIDE, held, group + r);
    if (++t == steps) {
      SPK_CAT(SPK_NAME, _last)(net, first, held, group + r);
      t = 0;
    }
  }
  return t;
}

static void SPK_CAT(SPK_NAME, _tiles)(SPK_NET *net, const uint8_t *x, const uint32_t *order, const uint32_t *start, const uint32_t *from,
                                      const uint32_t *tile, const int8_t *weight, const uint32_t rows, const uint32_t t0,
                                      const uint32_t steps, uint64_t *SPK_RESTRICT fired) {
  uint32_t group, turn, t_group = t0;
  uint32_t cur = 0;
  /* The panel whose sums are there, and whose neurons are still to come. */
  uint32_t waiting = 0, w_group = 0, w_panel = 0, w_t = 0;
  SPK_TILE_LOCALS
  for (group = 0; group < rows; group += SPK_GROUP) {
    const uint8_t *const a = x + (size_t)group * SPK_X_PITCH;
    const int both = rows - group > 16u; /* the last rows may fill one tile only */
    for (turn = 0; turn < SPK_PANELS; turn++) {
      const uint32_t p = order[turn];
      int32_t *const sums = net->sums[cur];
      const int32_t *const before = net->sums[cur ^ 1u];
      uint32_t done = 0;
      uint32_t pair;
      SPK_HELD held;
      SPK_CAT(SPK_NAME, _take)(net, (size_t)w_panel * SPK_WIDE, &held);
      for (pair = 0; pair < SPK_PAIRS_OF; pair++) {
        const uint32_t number = p * SPK_PAIRS_OF + pair;
        const uint32_t last = start[number + 1u];
        uint32_t k;
#if defined(SPK_BIAS)
        const int32_t *const b = SPK_BIAS + number * 32u;
        /* A stride of 0: every row of sums begins with the same. */
        SPK_TILE_LOAD(0, b, 0);
        SPK_TILE_LOAD(2, b, 0);
        SPK_TILE_LOAD(1, b + 16, 0);
        SPK_TILE_LOAD(3, b + 16, 0);
#else
        SPK_TILE_ZERO(0);
        SPK_TILE_ZERO(2);
        SPK_TILE_ZERO(1);
        SPK_TILE_ZERO(3);
#endif
        for (k = start[number]; k < last; k++) {
          const uint8_t *const at = a + from[k];
          const int8_t *const w = weight + (size_t)tile[k] * 2048u;
          SPK_TILE_LOAD(4, at, SPK_X_PITCH);
          SPK_TILE_STREAM(6, w);
          SPK_TILE_ADD(0, 4, 6);
          SPK_TILE_STREAM(7, w + 1024);
          SPK_TILE_ADD(1, 4, 7);
          if (both) {
            SPK_TILE_LOAD(5, at + (size_t)16 * SPK_X_PITCH, SPK_X_PITCH);
            SPK_TILE_ADD(2, 5, 6);
            SPK_TILE_ADD(3, 5, 7);
          }
          if (done < waiting) {
            const uint32_t end = done + SPK_SHARE < waiting ? done + SPK_SHARE : waiting;
            if (end - done == SPK_SHARE && w_t != 0 && w_t + SPK_SHARE < steps) {
              /* No sample begins or ends here, as mostly: the states stay in registers. */
              uint32_t r;
              for (r = 0; r < SPK_SHARE; r++) {
                SPK_CAT(SPK_NAME, _row)(net, (size_t)w_panel * SPK_WIDE, before + (done + r) * SPK_WIDE, &held, w_group + done + r);
              }
              w_t += SPK_SHARE;
            } else {
              SPK_HELD copy = held;
              w_t = SPK_SOME(net, &copy, before, (size_t)w_panel * SPK_WIDE, w_group, done, end, w_t, steps);
              held = copy;
            }
            done = end;
          }
        }
        SPK_TILE_STORE(0, sums + pair * 32u, SPK_WIDE * 4u);
        SPK_TILE_STORE(2, sums + pair * 32u + 16u * SPK_WIDE, SPK_WIDE * 4u);
        SPK_TILE_STORE(1, sums + pair * 32u + 16u, SPK_WIDE * 4u);
        SPK_TILE_STORE(3, sums + pair * 32u + 16u + 16u * SPK_WIDE, SPK_WIDE * 4u);
      }
      if (done < waiting) {
        SPK_HELD copy = held;
        (void)SPK_SOME(net, &copy, before, (size_t)w_panel * SPK_WIDE, w_group, done, waiting, w_t, steps);
        held = copy;
      }
      if (waiting) {
        SPK_CAT(SPK_NAME, _keep)(net, (size_t)w_panel * SPK_WIDE, &held);
        SPK_CAT(SPK_NAME, _count)((size_t)w_panel * SPK_WIDE, &held, fired);
      }
      waiting = rows - group < SPK_GROUP ? rows - group : SPK_GROUP;
      w_group = group;
      w_panel = p;
      w_t = t_group;
      cur ^= 1u;
    }
    t_group = (uint32_t)(((uint64_t)t_group + SPK_GROUP) % steps);
  }
  if (waiting) {
    SPK_HELD held;
    SPK_CAT(SPK_NAME, _take)(net, (size_t)w_panel * SPK_WIDE, &held);
    (void)SPK_SOME(net, &held, net->sums[cur ^ 1u], (size_t)w_panel * SPK_WIDE, w_group, 0, waiting, w_t, steps);
    SPK_CAT(SPK_NAME, _keep)(net, (size_t)w_panel * SPK_WIDE, &held);
    SPK_CAT(SPK_NAME, _count)((size_t)w_panel * SPK_WIDE, &held, fired);
  }
}
#undef SPK_PAIRS_OF
#undef SPK_SOME
#undef SPK_HELD
#undef SPK_NAME
#undef SPK_NET
#undef SPK_WIDE
#undef SPK_PANELS
#undef SPK_X_PITCH
#undef SPK_SHARE
#undef SPK_BIAS
