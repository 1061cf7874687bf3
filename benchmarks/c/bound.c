/* bound.c - what the processor can do at most, for the bounds of the four workloads. Prints three rates in 10^9 synaptic
 * operations a second, each the best of many short runs:
 *
 *     rows     bytes widened to 16 bits and added to accumulators in registers, rows of 512 in the first cache
 *     runs     sixteen 16-bit weights added to sixteen accumulators in memory (a load, an addition, a store)
 *     scatter  one weight added to an accumulator whose place is read from a list, both in the first cache
 *
 * Widening is what a row costs without the trick of spk_simd.h, so that a kernel can come closer to this bound than to its own. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512BW__)
#define BYTES 64
#define WIDEN(p) (v16)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#elif defined(__AVX2__)
#define BYTES 32
#define WIDEN(p) (v16)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#elif defined(__SSE2__)
#define BYTES 16
static inline __m128i widen(const void *p) {
  const __m128i x = _mm_loadl_epi64((const __m128i *)p);
  return _mm_srai_epi16(_mm_unpacklo_epi8(x, x), 8);
}
#define WIDEN(p) (v16)widen(p)
#else
#define BYTES 16
typedef int8_t v8 __attribute__((vector_size(8), aligned(1), may_alias));
#define WIDEN(p) __builtin_convertvector(*(const v8 *)(p), v16)
#endif
typedef int16_t v16 __attribute__((vector_size(BYTES), may_alias));
typedef int16_t run __attribute__((vector_size(BYTES < 32 ? BYTES : 32), may_alias));
enum { LANES = BYTES / 2, BLOCK = BYTES == 64 ? 16 : 8, ROWS = 32, EVENTS = 2000, REPEATS = 200 };

static int8_t weight[ROWS * 512] __attribute__((aligned(64)));
static int16_t wide[16384] __attribute__((aligned(64))), accumulator[8192] __attribute__((aligned(64)));
static uint16_t event[EVENTS];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double rows(void) {
  int o, e, j;
  for (o = 0; o < 512; o += BLOCK * LANES) {
    v16 sum[BLOCK];
    for (j = 0; j < BLOCK; j++) { sum[j] = (v16){0}; }
    for (e = 0; e < EVENTS; e++) {
      const int8_t *row = weight + event[e] % ROWS * 512 + o;
#pragma GCC unroll 16
      for (j = 0; j < BLOCK; j++) { sum[j] += WIDEN(row + j * LANES); }
    }
    for (j = 0; j < BLOCK; j++) { memcpy(accumulator + j * LANES, &sum[j], BYTES); }
    __asm__ volatile("" ::: "memory");
  }
  return EVENTS * 512.0;
}

static double runs(void) {
  int e, j;
  for (e = 0; e < EVENTS; e++) {
    int16_t *a = accumulator + event[e] % 448 * 16;
    const int16_t *w = wide + event[e] % 896 * 16;
#pragma GCC unroll 16
    for (j = 0; j < 9 * 16; j += (int)(sizeof(run) / 2)) { *(run *)(void *)(a + j) += *(const run *)(const void *)(w + j); }
  }
  __asm__ volatile("" ::: "memory");
  return EVENTS * 144.0;
}

static double scatter(void) {
  int e;
  for (e = 0; e < EVENTS; e++) { accumulator[event[e]] = (int16_t)(accumulator[event[e]] + weight[e]); }
  __asm__ volatile("" ::: "memory");
  return EVENTS;
}

static void report(const char *name, double (*work)(void)) {
  double best = 0;
  int r, k;
  for (r = 0; r < REPEATS; r++) {
    double done = 0, rate;
    const double begin = now();
    for (k = 0; k < 20; k++) { done += work(); }
    rate = done / (now() - begin) * 1e-9;
    best = rate > best ? rate : best;
  }
  printf("%s %.2f\n", name, best);
}

int main(void) {
  uint32_t seed = 1;
  int k;
  for (k = 0; k < EVENTS; k++) {
    seed = seed * 1664525u + 1013904223u;
    event[k] = (uint16_t)(seed >> 16 & 8191u);
  }
  report("rows", rows);
  report("runs", runs);
  report("scatter", scatter);
  return 0;
}
