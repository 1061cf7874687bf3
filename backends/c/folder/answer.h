/* answer.h - the answer of a classifier: the largest sum of an output's values, given as soon as it leads the next by enough.
 *
 *     static int64_t sum[SIZE];                                     one for every value of the output
 *     spk_answer answer = {&spk_network.port[SPK_ANSWER_PORT], spk_margin, SPK_MARGINS, sum, 0, 0};     from cutoff.h
 *     spk_answer_begin(&answer);                                    then step by step, from step `lag` of the output on:
 *     if (spk_answer_add(&answer, row)) { ... }                     row: what spk_read gives; 1 when it is clear
 *     spk_answer_class(&answer)                                     the first of equals */
#ifndef SPK_ANSWER_H
#define SPK_ANSWER_H
#include <string.h>

#include "spk.h"

typedef struct spk_answer {
  const spk_port *port;  /* an output of integers */
  const int64_t *margin; /* one for each step from the first on; the last of them for all that follow */
  uint32_t margins;
  int64_t *sum;
  uint32_t steps; /* that were added */
  int clear;
} spk_answer;

static inline void spk_answer_begin(spk_answer *a) {
  memset(a->sum, 0, a->port->size * sizeof *a->sum);
  a->steps = 0;
  a->clear = 0;
}

/* How far the largest sum leads the next; one sum alone: how far it is from 0. No branches: what leads changes with every sample. */
static inline int64_t spk_answer_lead(const int64_t *sum, uint32_t size) {
  int64_t first = sum[0], second = INT64_MIN;
  uint32_t k;
  if (size == 1) { return first < 0 ? -first : first; }
  for (k = 1; k < size; k++) {
    const int64_t low = sum[k] < first ? sum[k] : first;
    first = sum[k] > first ? sum[k] : first;
    second = low > second ? low : second;
  }
  return first - second;
}

/* Add what the port holds after a step; 1 if the answer is clear, from then on. */
static inline int spk_answer_add(spk_answer *a, const void *row) {
  const uint32_t size = a->port->size;
  uint32_t k;
  switch (a->port->type) {
    case SPK_I8: for (k = 0; k < size; k++) { a->sum[k] += ((const int8_t *)row)[k]; } break;
    case SPK_I16: for (k = 0; k < size; k++) { a->sum[k] += ((const int16_t *)row)[k]; } break;
    case SPK_I32: for (k = 0; k < size; k++) { a->sum[k] += ((const int32_t *)row)[k]; } break;
    default: for (k = 0; k < size; k++) { a->sum[k] += ((const int64_t *)row)[k]; } break;
  }
  k = a->steps < a->margins ? a->steps : a->margins - 1;
  a->steps++;
  a->clear = spk_answer_lead(a->sum, size) >= a->margin[k];
  return a->clear;
}

static inline uint32_t spk_answer_class(const spk_answer *a) {
  uint32_t best = 0, k;
  for (k = 1; k < a->port->size; k++) {
    if (a->sum[k] > a->sum[best]) { best = k; }
  }
  return best;
}
#endif
