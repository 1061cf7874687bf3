/* spk_offline.h - whole samples at once: what every generated offline.c uses. Here: the processor's matrix unit (or, with
 * -DSPK_TILES_PLAIN, the same operations in plain C, for tests), sums over bytes, final states, and the way that works for any
 * network: one step after the other.
 *
 * The matrix unit (Intel AMX) holds tiles of 16 rows of 64 bytes. A product takes 16 rows of 64 values of 8 bits and 64 rows of
 * 16 weights, and adds to 16 x 16 sums of 32 bits, all of it exact. */
#ifndef SPK_OFFLINE_H
#define SPK_OFFLINE_H
#include "spk_core.h"
#include "spk_flags.h"
#include "spk_vector.h"

#if SPK_VECTOR && defined(SPK_TILES_PLAIN)
#define SPK_TILES 1
#elif SPK_VECTOR && (defined(__AMX_INT8__) || defined(__AMXINT8__)) && defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__x86_64__) && defined(__linux__)
#define SPK_TILES 1
#define SPK_AMX 1
#else
#define SPK_TILES 0
#endif

#if SPK_TILES
#define SPK_APART __attribute__((noinline))
/* Behind each layer of a block; whoever measures them defines it. */
#if !defined(SPK_PHASE)
#define SPK_PHASE(name) ((void)0)
#endif
/* Whether a block has enough events for tiles; -DSPK_TILES_NEVER leaves them unused, to measure blocks without a matrix unit. */
#if defined(SPK_TILES_NEVER)
#define SPK_TILES_LEAVE 0
#else
#define SPK_TILES_LEAVE 1
#endif
#if defined(SPK_TILES_NEVER)
#define SPK_TILE_BUSY(enough) 0
#elif !defined(SPK_TILE_BUSY)
#define SPK_TILE_BUSY(enough) (enough)
#endif
/* Rows that a tile kernel takes at a time: two tiles. */
#define SPK_GROUP 32u
#if SPK_AMX
#include <immintrin.h>
#define SPK_TILE_LOCALS
#define SPK_TILE_LOAD(n, p, stride) _tile_loadd(n, (const void *)(p), (long)(stride))
/* Weights: each is used once a group, so they should not drive the inputs out of the nearest cache. */
#define SPK_TILE_STREAM(n, p) _tile_stream_loadd(n, (const void *)(p), 64)
#define SPK_TILE_ZERO(n) _tile_zero(n)
#define SPK_TILE_ADD(c, a, b) _tile_dpbusd(c, a, b)
#define SPK_TILE_STORE(n, p, stride) _tile_stored(n, (void *)(p), (long)(stride))
/* After some ten microseconds without work the unit is switched off, and the next product then takes three microseconds (measured
 * on Sapphire Rapids): one in each row of what is done without it keeps it on. */
#define SPK_TILE_WARM() _tile_dpbusd(0, 4, 6)

/* Whether the system lets this process use the matrix unit: the processor has it, and its state is saved. */
static SPK_UNUSED int spk_tiles_allowed(void) {
  long result;
  /* arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA); it fails on an older kernel and on a processor without it */
  __asm__ volatile("syscall" : "=a"(result) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
  return result == 0;
}

static SPK_UNUSED void spk_tiles_begin(void) {
  unsigned char config[64];
  int k;
  memset(config, 0, sizeof config);
  config[0] = 1; /* the palette of eight tiles of 1 KB */
  for (k = 0; k < 8; k++) {
    config[16 + 2 * k] = 64; /* bytes a row */
    config[48 + k] = 16;     /* rows */
  }
  /* gcc takes the intrinsics for readers of a few bytes, or of none: what tiles read must be in memory before. */
  __asm__ volatile("" : : "r"(config) : "memory");
  _tile_loadconfig(config);
}

static SPK_UNUSED void spk_tiles_end(void) { _tile_release(); }
#else
#define SPK_TILE_LOCALS unsigned char spk_tile[8][1024];
#define SPK_TILE_LOAD(n, p, stride) spk_tile_load(spk_tile[n], (const unsigned char *)(const void *)(p), (size_t)(stride))
#define SPK_TILE_STREAM(n, p) spk_tile_load(spk_tile[n], (const unsigned char *)(const void *)(p), 64u)
#define SPK_TILE_ZERO(n) memset(spk_tile[n], 0, sizeof spk_tile[n])
#define SPK_TILE_WARM() ((void)0)
#define SPK_TILE_ADD(c, a, b) spk_tile_add(spk_tile[c], spk_tile[a], spk_tile[b])
#define SPK_TILE_STORE(n, p, stride) spk_tile_store(spk_tile[n], (unsigned char *)(void *)(p), (size_t)(stride))
static SPK_UNUSED void spk_tile_load(unsigned char *tile, const unsigned char *p, size_t stride) {
  uint32_t r;
  for (r = 0; r < 16u; r++) { memcpy(tile + r * 64u, p + r * stride, 64); }
}
static SPK_UNUSED void spk_tile_store(const unsigned char *tile, unsigned char *p, size_t stride) {
  uint32_t r;
  for (r = 0; r < 16u; r++) { memcpy(p + r * stride, tile + r * 64u, 64); }
}
static SPK_UNUSED void spk_tile_add(unsigned char *c, const unsigned char *a, const unsigned char *b) {
  uint32_t m, n, k;
  for (m = 0; m < 16u; m++) {
    for (n = 0; n < 16u; n++) {
      int32_t sum;
      memcpy(&sum, c + m * 64u + n * 4u, 4);
      for (k = 0; k < 64u; k++) {
        int8_t w;
        memcpy(&w, b + k / 4u * 64u + n * 4u + k % 4u, 1);
        sum += (int32_t)a[m * 64u + k] * w;
      }
      memcpy(c + m * 64u + n * 4u, &sum, 4);
    }
  }
}
static SPK_UNUSED int spk_tiles_allowed(void) { return 1; }
static SPK_UNUSED void spk_tiles_begin(void) {}
static SPK_UNUSED void spk_tiles_end(void) {}
#endif

/* Sums of 32 bits as lanes of 32 or 16 bits; the compiler of the network has proven that they fit. */
SPK_INLINE_ANY spk_x32 spk_sum32(const int32_t *p) { return *(const spk_x32 *)(const void *)p; }
SPK_INLINE_ANY spk_x16 spk_sum16(const int32_t *p) {
#if defined(__AVX512BW__)
  const __m256i low = _mm512_cvtepi32_epi16(_mm512_loadu_si512((const void *)p));
  const __m256i high = _mm512_cvtepi32_epi16(_mm512_loadu_si512((const void *)(p + 16)));
  return (spk_x16)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#else
  int16_t narrow[SPK_N16];
  uint32_t k;
  for (k = 0; k < SPK_N16; k++) { narrow[k] = (int16_t)p[k]; }
  return *(const spk_any_x16 *)(const void *)narrow;
#endif
}

/* Lanes in which something is true count one more; the sum of the first `most` lanes, all of them where there are no more. */
#if defined(__AVX512BW__)
SPK_INLINE_ANY spk_x16 spk_more16(spk_x16 x, spk_m16 m) {
  return (spk_x16)_mm512_mask_sub_epi16((__m512i)x, m, (__m512i)x, _mm512_set1_epi16(-1));
}
SPK_INLINE_ANY spk_x32 spk_more32(spk_x32 x, spk_m32 m) {
  return (spk_x32)_mm512_mask_sub_epi32((__m512i)x, m, (__m512i)x, _mm512_set1_epi32(-1));
}
#else
SPK_INLINE_ANY spk_x16 spk_more16(spk_x16 x, spk_m16 m) { return x - m; }
SPK_INLINE_ANY spk_x32 spk_more32(spk_x32 x, spk_m32 m) { return x - m; }
#endif
#if defined(__AVX512BW__)
SPK_INLINE_ANY uint64_t spk_lanes16(spk_x16 x, size_t most) {
  const __mmask32 which = most < 32u ? (__mmask32)((1u << most) - 1u) : (__mmask32)-1;
  const __m512i one = _mm512_set1_epi16(1);
  return (uint64_t)(uint32_t)_mm512_reduce_add_epi32(_mm512_madd_epi16(_mm512_maskz_mov_epi16(which, (__m512i)x), one));
}
SPK_INLINE_ANY uint64_t spk_lanes32(spk_x32 x, size_t most) {
  const __mmask16 which = most < 16u ? (__mmask16)((1u << most) - 1u) : (__mmask16)-1;
  return (uint64_t)(uint32_t)_mm512_mask_reduce_add_epi32(which, (__m512i)x);
}
#else
#define SPK_TALLY(W)                                                                                                      \
  SPK_INLINE_ANY uint64_t spk_lanes##W(spk_x##W x, size_t most) {                                                          \
    uint64_t sum = 0;                                                                                                      \
    uint32_t k;                                                                                                            \
    for (k = 0; k < SPK_N##W; k++) { sum += k < most ? (uint64_t)x[k] : 0; }                                               \
    return sum;                                                                                                            \
  }
SPK_TALLY(16)
SPK_TALLY(32)
#undef SPK_TALLY
#endif

/* The sum of x[i] * times[i] over the first `length` bytes, a multiple of 64, of `rows` rows that are `pitch` bytes apart. Both are
 * at most 127. */
static SPK_UNUSED uint64_t spk_total(const uint8_t *SPK_RESTRICT x, const int8_t *SPK_RESTRICT times, uint32_t pitch, uint32_t length,
                                     uint32_t rows) {
  uint64_t total = 0;
  uint32_t r = 0, i;
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  /* A lane takes four products at a time, and so many rows before it is full. */
  const uint32_t most = 1u + 32000u / (length / 64u + 1u);
  while (r < rows) {
    const uint32_t end = rows - r < most ? rows : r + most;
    __m512i sum = _mm512_setzero_si512(), other = _mm512_setzero_si512();
    for (; r < end; r++, x += pitch) {
      for (i = 0; i + 128u <= length; i += 128u) {
        sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512((const void *)(x + i)), _mm512_loadu_si512((const void *)(times + i)));
        other = _mm512_dpbusd_epi32(other, _mm512_loadu_si512((const void *)(x + i + 64)), _mm512_loadu_si512((const void *)(times + i + 64)));
      }
      if (i < length) {
        sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512((const void *)(x + i)), _mm512_loadu_si512((const void *)(times + i)));
      }
    }
    total += (uint64_t)(uint32_t)_mm512_reduce_add_epi32(sum) + (uint64_t)(uint32_t)_mm512_reduce_add_epi32(other);
  }
#else
  for (; r < rows; r++, x += pitch) {
    for (i = 0; i < length; i++) { total += (uint64_t)x[i] * (uint64_t)times[i]; }
  }
#endif
  return total;
}
#endif

/* How many of `size` bytes that are 0 or 1 are 1; or the sum of bytes of which no eight are more than 255. */
static SPK_UNUSED uint32_t spk_ones(const uint8_t *x, uint32_t size) {
  uint32_t count = 0, i = 0;
#if defined(__AVX512BW__) && !defined(SPK_NO_SIMD)
  uint64_t part[8];
  __m512i sum = _mm512_setzero_si512();
  for (; i + 64u <= size; i += 64u) {
    sum = _mm512_add_epi64(sum, _mm512_sad_epu8(_mm512_loadu_si512((const void *)(x + i)), _mm512_setzero_si512()));
  }
  _mm512_storeu_si512((void *)part, sum);
  count = (uint32_t)(part[0] + part[1] + part[2] + part[3] + part[4] + part[5] + part[6] + part[7]);
#endif
  for (; i + 8u <= size; i += 8u) {
    uint64_t word;
    memcpy(&word, x + i, 8);
    count += (uint32_t)((word * 0x0101010101010101u) >> 56);
  }
  for (; i < size; i++) { count += x[i]; }
  return count;
}

/* The events of a step, checked, as a list of `event`s, which has room for 32 more than `size`. */
static SPK_UNUSED spk_status spk_list_row(const spk_in *in, uint32_t size, uint16_t *SPK_RESTRICT event, uint32_t *number) {
  const uint32_t *SPK_RESTRICT index = in->index;
  const uint32_t count = in->count;
  if (count > size || !spk_rising(index, count) || (count > 0 && index[count - 1u] >= size)) { return SPK_E_EVENT; }
  spk_narrow(index, count, event);
  *number = count;
  return SPK_OK;
}

/* The spikes that arrive at an input in a step, checked, as `size` bytes that are 0 or 1; their number is added to `total`. */
static SPK_UNUSED spk_status spk_flag_row(const spk_in *in, uint32_t size, uint8_t *SPK_RESTRICT x, uint64_t *total) {
  const int8_t *SPK_RESTRICT value = (const int8_t *)in->value;
  const uint32_t *SPK_RESTRICT index = in->index;
  const uint32_t count = in->count;
  uint32_t i, wrong = 0;
  if (index == NULL) {
    if (value == NULL) {
      memset(x, 0, size);
      return SPK_OK;
    }
    for (i = 0; i < size; i++) {
      wrong |= (uint8_t)value[i] & 0xfeu;
      x[i] = (uint8_t)value[i];
    }
    if (wrong) { return SPK_E_VALUE; }
    *total += spk_ones(x, size);
    return SPK_OK;
  }
  if (count > size) { return SPK_E_EVENT; }
  if (!spk_rising(index, count) || (count > 0 && index[count - 1u] >= size)) { return SPK_E_EVENT; }
#if SPK_VECTOR
  for (i = 0; i + SPK_BYTES_V <= size; i += SPK_BYTES_V) { *(spk_any_x32 *)(void *)(x + i) = spk_set32(0); }
  for (; i < size; i++) { x[i] = 0; }
#else
  memset(x, 0, size);
#endif
  if (value == NULL) {
    /* Eight at a time, and the last eight again: how many there are is not known to the processor's prediction. */
    if (count >= 8u) {
      for (i = 0;; i += 8u) {
        const uint32_t *const next = index + (i + 8u < count ? i : count - 8u);
        x[next[0]] = 1, x[next[1]] = 1, x[next[2]] = 1, x[next[3]] = 1;
        x[next[4]] = 1, x[next[5]] = 1, x[next[6]] = 1, x[next[7]] = 1;
        if (i + 8u >= count) { break; }
      }
    } else {
      for (i = 0; i < count; i++) { x[index[i]] = 1; }
    }
    *total += count;
    return SPK_OK;
  }
  for (i = 0; i < count; i++) {
    wrong |= (uint8_t)value[i] & 0xfeu;
    x[index[i]] = (uint8_t)value[i];
    *total += (uint8_t)value[i];
  }
  return wrong ? SPK_E_VALUE : SPK_OK;
}

/* Whether the caller wants a port. */
static SPK_UNUSED int spk_recorded(const spk_whole *out, uint32_t port) {
  uint32_t k;
  for (k = 0; k < out->records; k++) {
    if (out->port[k] == port) { return 1; }
  }
  return 0;
}

/* A port in rows that are `pitch` bytes apart, or in lists whose number is in `slot`, one row after the other into the caller's
 * array. */
static SPK_UNUSED void spk_rows_read(const spk_view *view, const void *memory, size_t pitch, uint32_t *slot, uint32_t rows,
                                     unsigned char *out) {
  const size_t width = view->size * spk_width(view->to);
  uint32_t r;
  if (view->from == SPK_FROM_U8 && view->to == SPK_I8 && view->space == 0) {
    const unsigned char *from = (const unsigned char *)memory + view->offset;
    for (r = 0; r < rows; r++) { memcpy(out + r * width, from + r * pitch, width); }
    return;
  }
  for (r = 0; r < rows; r++) {
    *slot = r;
    spk_view_read(view, (const unsigned char *)memory + r * pitch, out + r * width);
  }
}

/* Elements `first` to first + count - 1 of a state, in the order in which they lie, to their places in the caller's array. */
static SPK_UNUSED void spk_view_part(const spk_view *view, const void *memory, uint32_t first, uint32_t count, void *out) {
  const unsigned char *const base = (const unsigned char *)memory + view->offset;
  uint32_t k;
  for (k = first; k < first + count && k < view->size; k++) {
    const uint32_t to = view->space ? k % view->channels * view->space + k / view->channels : k;
    int64_t value;
    switch (view->from) {
      case SPK_I8: { int8_t x; memcpy(&x, base + k, 1); value = x; break; }
      case SPK_I16: { int16_t x; memcpy(&x, base + k * 2u, 2); value = x; break; }
      default: { int32_t x; memcpy(&x, base + k * 4u, 4); value = x; break; }
    }
    switch (view->to) {
      case SPK_I8: { const int8_t x = (int8_t)value; memcpy((unsigned char *)out + to, &x, 1); break; }
      case SPK_I16: { const int16_t x = (int16_t)value; memcpy((unsigned char *)out + to * 2u, &x, 2); break; }
      case SPK_I32: { const int32_t x = (int32_t)value; memcpy((unsigned char *)out + to * 4u, &x, 4); break; }
      default: memcpy((unsigned char *)out + to * 8u, &value, 8); break;
    }
  }
}

/* Any network: one step after the other, the samples from `first` on, each from the beginning. A port with a lag is read as many steps later; `none`
 * is what arrives in a step without input. */
static SPK_UNUSED spk_status spk_whole_steps(const spk_model *model, const spk_in *none, void *memory, size_t bytes, uint32_t first,
                                             uint32_t samples, uint32_t steps, const spk_in *in, const spk_whole *out) {
  spk_net *net = NULL;
  spk_status status = model->init(memory, bytes, &net);
  uint32_t b, t, k, lag = 0;
  if (status != SPK_OK) { return status; }
  if (out == NULL || (in == NULL && model->inputs != 0 && steps != 0 && samples != 0)) { return SPK_E_MEMORY; }
  for (k = 0; k < out->records; k++) {
    if (out->port[k] >= model->ports) { return SPK_E_PORT; }
  }
  for (k = 0; k < model->ports; k++) { lag = model->port[k].lag > lag ? model->port[k].lag : lag; }
  for (k = 0; k < model->states; k++) { lag = model->state[k].lag > lag ? model->state[k].lag : lag; }
  for (b = first; b < samples; b++) {
    if (b > first) { model->reset(net); }
    for (t = 0; t < steps + (steps == 0 ? 0 : lag); t++) {
      status = model->step(net, t < steps ? in + ((size_t)b * steps + t) * model->inputs : none);
      if (status != SPK_OK) { return status; }
      for (k = 0; k < out->records; k++) {
        const spk_port *p = &model->port[out->port[k]];
        if (t >= p->lag && t - p->lag < steps) {
          const size_t row = p->size * spk_width(p->type);
          status = model->read(net, out->port[k], (unsigned char *)out->record[k] + ((size_t)b * steps + (t - p->lag)) * row);
          if (status != SPK_OK) { return status; }
        }
      }
      for (k = 0; out->state != NULL && k < model->states; k++) {
        const spk_port *p = &model->state[k];
        if (out->state[k] != NULL && t == steps - 1u + p->lag) {
          status = model->read_state(net, k, (unsigned char *)out->state[k] + (size_t)b * p->size * spk_width(p->type));
          if (status != SPK_OK) { return status; }
        }
      }
    }
    for (k = 0; steps == 0 && out->state != NULL && k < model->states; k++) {
      const spk_port *p = &model->state[k];
      if (out->state[k] == NULL) { continue; }
      status = model->read_state(net, k, (unsigned char *)out->state[k] + (size_t)b * p->size * spk_width(p->type));
      if (status != SPK_OK) { return status; }
    }
    for (k = 0; out->counter != NULL && k < model->counters; k++) {
      uint64_t value = 0;
      status = model->read_counter(net, k, &value);
      if (status != SPK_OK) { return status; }
      out->counter[k] += value;
    }
  }
  return SPK_OK;
}
#endif
