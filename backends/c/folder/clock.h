/* clock.h - the time, and a histogram of how long steps take. For the programs around the network; the network has no clock. */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdint.h>
#include <stdio.h>
#include <time.h>

/* Nanoseconds of a clock that never goes back. */
static inline uint64_t clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Bin 4 * k + q holds 2^k * (1 + q / 4) to the next; below 4 ns a bin is a nanosecond. */
typedef struct histogram {
  uint64_t bin[256], count, most;
} histogram;

static inline unsigned histogram_bin(uint64_t ns) {
  unsigned k = 0;
  if (ns < 4u) { return (unsigned)ns; }
  while (ns >> (k + 1u) != 0) { k++; }
  return 4u * (k - 1u) + (unsigned)(ns >> (k - 2u) & 3u);
}

/* Where a bin begins. */
static inline uint64_t histogram_edge(unsigned bin) {
  return bin < 4u ? bin : (uint64_t)(4u + bin % 4u) << (bin / 4u - 1u);
}

static inline void histogram_add(histogram *h, uint64_t ns) {
  h->bin[histogram_bin(ns)]++;
  h->count++;
  if (ns > h->most) { h->most = ns; }
}

/* The end of the bin that the share `part` of `whole` of the values does not exceed. */
static inline uint64_t histogram_below(const histogram *h, uint64_t part, uint64_t whole) {
  uint64_t seen = 0;
  unsigned bin = 0;
  for (bin = 0; bin < 255u; bin++) {
    seen += h->bin[bin];
    if (seen * whole >= h->count * part) { break; }
  }
  return histogram_edge(bin + 1u) < h->most ? histogram_edge(bin + 1u) : h->most;
}

static inline void histogram_print(const histogram *h, FILE *file, const char *what) {
  uint64_t tallest = 1;
  unsigned bin, first = 256, last = 0;
  if (h->count == 0) {
    fprintf(file, "%s: nothing was measured\n", what);
    return;
  }
  fprintf(file, "%s of %llu steps: half within %.3f us, 99 %% within %.3f us, 99.9 %% within %.3f us, the longest %.3f us\n", what,
          (unsigned long long)h->count, (double)histogram_below(h, 1, 2) * 1e-3, (double)histogram_below(h, 99, 100) * 1e-3,
          (double)histogram_below(h, 999, 1000) * 1e-3, (double)h->most * 1e-3);
  for (bin = 0; bin < 256u; bin++) {
    if (h->bin[bin] == 0) { continue; }
    if (first == 256u) { first = bin; }
    last = bin;
    tallest = h->bin[bin] > tallest ? h->bin[bin] : tallest;
  }
  for (bin = first; bin <= last; bin++) {
    const unsigned length = (unsigned)(h->bin[bin] * 50u / tallest);
    unsigned k;
    fprintf(file, "%12.3f us %10llu ", (double)histogram_edge(bin) * 1e-3, (unsigned long long)h->bin[bin]);
    for (k = 0; k < length; k++) { fputc('#', file); }
    fputc('\n', file);
  }
}

#endif
