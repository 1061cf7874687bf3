/* spk_encode.h - values to spikes: the rate encoder of spikec's Python runtime (runtime/encoders.py), bit for bit.
 *
 * Nothing but the five numbers of spk_encode_bits enters, so that a spike does not depend on the order in which anything is
 * computed: on the board, on the host and in Python the same sample gets the same spikes. */
#ifndef SPK_ENCODE_H
#define SPK_ENCODE_H

#include <stdint.h>

#define SPK_GOLDEN 0x9E3779B97F4A7C15u

/* SplitMix64's output function. */
static inline uint64_t spk_encode_mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

/* What a whole step has in common: compute it once, then spk_encode_bits for each element. */
static inline uint64_t spk_encode_step(uint64_t seed, uint64_t sample, uint64_t step) {
  uint64_t h = spk_encode_mix(seed + SPK_GOLDEN);
  h = spk_encode_mix(h + (sample + 1u) * SPK_GOLDEN);
  return spk_encode_mix(h + (step + 1u) * SPK_GOLDEN);
}

/* 32 random bits of an element in that step. */
static inline uint32_t spk_encode_bits(uint64_t step, uint64_t element) {
  return (uint32_t)(spk_encode_mix(step + (element + 1u) * SPK_GOLDEN) >> 32);
}

/* A probability from 0 to 1 as the number that the bits are compared with: floor(x * 2^32 + 1/2). Not a number and what is
 * below 0 count as 0, what is above 1 as 1. */
static inline uint64_t spk_encode_limit(double x) {
  if (!(x > 0)) { return 0; }
  return x >= 1 ? (uint64_t)1 << 32 : (uint64_t)(x * 4294967296.0 + 0.5);
}

/* The events of one step: element i fires with probability limit[i] / 2^32 (spk_encode_limit). `event` has room for `size`
 * elements; the number of events is returned. They rise, as spk_step wants them. */
static inline uint32_t spk_encode_rate(const uint64_t *limit, uint32_t size, uint64_t seed, uint64_t sample, uint64_t step,
                                       uint32_t *event) {
  const uint64_t h = spk_encode_step(seed, sample, step);
  uint32_t count = 0;
  uint32_t i;
  for (i = 0; i < size; i++) {
    event[count] = i;
    count += spk_encode_bits(h, i) < limit[i];
  }
  return count;
}

#endif
