/* spk_flags.h - from bytes to the list of those that are not zero, without a branch that depends on the data; and lists of events
 * that are checked and copied. */
#ifndef SPK_FLAGS_H
#define SPK_FLAGS_H

#if defined(__AVX512F__) && defined(__GNUC__) && !defined(SPK_NO_SIMD)
#include <immintrin.h>

/* Whether every number is larger than the one before; the last ones of a list are as quick as the others. */
static SPK_UNUSED int spk_rising(const uint32_t *SPK_RESTRICT index, uint32_t count) {
  __mmask16 falling = 0;
  uint32_t i;
  for (i = 1; i < count; i += 16u) {
    const __mmask16 lanes = (__mmask16)(count - i < 16u ? (1u << (count - i)) - 1u : 0xffffu);
    const __m512i here = _mm512_maskz_loadu_epi32(lanes, index + i), before = _mm512_maskz_loadu_epi32(lanes, index + i - 1u);
    falling |= _mm512_mask_cmple_epu32_mask(lanes, here, before);
  }
  return falling == 0;
}

/* A list in sixteen bits; `event` needs room for 15 more. */
static SPK_UNUSED void spk_narrow(const uint32_t *SPK_RESTRICT index, uint32_t count, uint16_t *SPK_RESTRICT event) {
  uint32_t i;
  for (i = 0; i < count; i += 16u) {
    const __mmask16 lanes = (__mmask16)(count - i < 16u ? (1u << (count - i)) - 1u : 0xffffu);
    const __m512i wide = _mm512_maskz_loadu_epi32(lanes, index + i);
    _mm256_storeu_si256((__m256i *)(void *)(event + i), _mm512_cvtepi32_epi16(wide));
  }
}
#else
static SPK_UNUSED void spk_narrow(const uint32_t *SPK_RESTRICT index, uint32_t count, uint16_t *SPK_RESTRICT event) {
  uint32_t i;
  for (i = 0; i < count; i++) { event[i] = (uint16_t)index[i]; }
}

static SPK_UNUSED int spk_rising(const uint32_t *SPK_RESTRICT index, uint32_t count) {
  uint32_t falling = 0;
  uint32_t i;
  for (i = 1; i < count; i++) { falling |= (uint32_t)(index[i] <= index[i - 1u]); }
  return falling == 0;
}
#endif

#if defined(__AVX512VBMI2__) && defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(SPK_NO_SIMD)
#include <immintrin.h>

/* Thirty-two bytes at a time: the numbers of those that are not zero are compressed to the front and stored; the next store overwrites
 * what stands behind them. `event` needs room for 32 more than `size`. */
static SPK_UNUSED uint32_t spk_flags_list(const uint8_t *SPK_RESTRICT x, uint32_t size, uint16_t *SPK_RESTRICT event) {
  static const uint16_t first[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                     16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
  const __m512i lanes = _mm512_loadu_si512((const void *)first);
  uint32_t count = 0;
  uint32_t i = 0;
  for (; i + 32u <= size; i += 32u) {
    const __m256i flags = _mm256_loadu_si256((const __m256i *)(const void *)(x + i));
    const __mmask32 ones = _mm256_test_epi8_mask(flags, flags);
    const __m512i numbers = _mm512_add_epi16(lanes, _mm512_set1_epi16((short)i));
    _mm512_storeu_si512((void *)(event + count), _mm512_maskz_compress_epi16(ones, numbers));
    count += (uint32_t)__builtin_popcount(ones);
  }
  for (; i < size; i++) {
    event[count] = (uint16_t)i;
    count += x[i] != 0;
  }
  return count;
}
#elif defined(__SSE2__) && defined(__GNUC__) && !defined(SPK_NO_SIMD)
#include <immintrin.h>

/* A bit for every byte of 64 that is not zero. */
static inline uint64_t spk_flags_bits(const uint8_t *x) {
#if defined(__AVX2__)
  const __m256i zero = _mm256_setzero_si256();
  const __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)x);
  const __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(x + 32));
  const uint32_t low = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, zero));
  const uint32_t high = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(b, zero));
  return ~((uint64_t)high << 32 | low);
#else
  const __m128i zero = _mm_setzero_si128();
  uint64_t bits = 0;
  int k;
  for (k = 0; k < 4; k++) {
    const __m128i part = _mm_loadu_si128((const __m128i *)(const void *)(x + 16 * k));
    bits |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(part, zero)) << (16 * k);
  }
  return ~bits;
#endif
}

/* Sixty-four bytes at a time. Four numbers are stored whatever there is, which is free of branches where few fire; the next
 * store overwrites what is too much. `event` needs room for 4 more than `size`. */
static SPK_UNUSED uint32_t spk_flags_list(const uint8_t *SPK_RESTRICT x, uint32_t size, uint16_t *SPK_RESTRICT event) {
  uint32_t count = 0;
  uint32_t i = 0;
  for (; i + 64u <= size; i += 64u) {
    uint64_t bits = spk_flags_bits(x + i);
#if defined(__POPCNT__)
    const uint32_t ones = (uint32_t)__builtin_popcountll(bits);
    uint16_t *to = event + count;
    uint32_t k;
    if (bits == 0) { continue; }
    for (k = 0; k < 4u; k++) {
      /* Without a bit left this stores a number that the next store overwrites. */
      to[k] = (uint16_t)(i + (uint32_t)__builtin_ctzll(bits | UINT64_C(1) << 63));
      bits &= bits - 1u;
    }
    for (k = 4; k < ones; k++) {
      to[k] = (uint16_t)(i + (uint32_t)__builtin_ctzll(bits));
      bits &= bits - 1u;
    }
    count += ones;
#else
    while (bits != 0) {
      event[count++] = (uint16_t)(i + (uint32_t)__builtin_ctzll(bits));
      bits &= bits - 1u;
    }
#endif
  }
  for (; i < size; i++) {
    event[count] = (uint16_t)i;
    count += x[i] != 0;
  }
  return count;
}
#elif defined(__aarch64__) && defined(__ARM_NEON) && defined(__GNUC__) && !defined(SPK_NO_SIMD)
#include <arm_neon.h>

/* Sixteen bytes at a time, four bits of a mask for each. */
static SPK_UNUSED uint32_t spk_flags_list(const uint8_t *SPK_RESTRICT x, uint32_t size, uint16_t *SPK_RESTRICT event) {
  uint32_t count = 0;
  uint32_t i = 0;
  for (; i + 16u <= size; i += 16u) {
    const uint8x16_t part = vld1q_u8(x + i);
    const uint8x8_t narrow = vshrn_n_u16(vreinterpretq_u16_u8(vtstq_u8(part, part)), 4);
    uint64_t bits = vget_lane_u64(vreinterpret_u64_u8(narrow), 0) & UINT64_C(0x1111111111111111);
    while (bits != 0) {
      event[count++] = (uint16_t)(i + ((uint32_t)__builtin_ctzll(bits) >> 2));
      bits &= bits - 1u;
    }
  }
  for (; i < size; i++) {
    event[count] = (uint16_t)i;
    count += x[i] != 0;
  }
  return count;
}
#else
/* Where the ones of a byte are. */
static const SPK_UNUSED uint8_t spk_flags_table[256][8] = {
  {0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}, {1, 0, 0, 0, 0, 0, 0, 0}, {0, 1, 0, 0, 0, 0, 0, 0},
  {2, 0, 0, 0, 0, 0, 0, 0}, {0, 2, 0, 0, 0, 0, 0, 0}, {1, 2, 0, 0, 0, 0, 0, 0}, {0, 1, 2, 0, 0, 0, 0, 0},
  {3, 0, 0, 0, 0, 0, 0, 0}, {0, 3, 0, 0, 0, 0, 0, 0}, {1, 3, 0, 0, 0, 0, 0, 0}, {0, 1, 3, 0, 0, 0, 0, 0},
  {2, 3, 0, 0, 0, 0, 0, 0}, {0, 2, 3, 0, 0, 0, 0, 0}, {1, 2, 3, 0, 0, 0, 0, 0}, {0, 1, 2, 3, 0, 0, 0, 0},
  {4, 0, 0, 0, 0, 0, 0, 0}, {0, 4, 0, 0, 0, 0, 0, 0}, {1, 4, 0, 0, 0, 0, 0, 0}, {0, 1, 4, 0, 0, 0, 0, 0},
  {2, 4, 0, 0, 0, 0, 0, 0}, {0, 2, 4, 0, 0, 0, 0, 0}, {1, 2, 4, 0, 0, 0, 0, 0}, {0, 1, 2, 4, 0, 0, 0, 0},
  {3, 4, 0, 0, 0, 0, 0, 0}, {0, 3, 4, 0, 0, 0, 0, 0}, {1, 3, 4, 0, 0, 0, 0, 0}, {0, 1, 3, 4, 0, 0, 0, 0},
  {2, 3, 4, 0, 0, 0, 0, 0}, {0, 2, 3, 4, 0, 0, 0, 0}, {1, 2, 3, 4, 0, 0, 0, 0}, {0, 1, 2, 3, 4, 0, 0, 0},
  {5, 0, 0, 0, 0, 0, 0, 0}, {0, 5, 0, 0, 0, 0, 0, 0}, {1, 5, 0, 0, 0, 0, 0, 0}, {0, 1, 5, 0, 0, 0, 0, 0},
  {2, 5, 0, 0, 0, 0, 0, 0}, {0, 2, 5, 0, 0, 0, 0, 0}, {1, 2, 5, 0, 0, 0, 0, 0}, {0, 1, 2, 5, 0, 0, 0, 0},
  {3, 5, 0, 0, 0, 0, 0, 0}, {0, 3, 5, 0, 0, 0, 0, 0}, {1, 3, 5, 0, 0, 0, 0, 0}, {0, 1, 3, 5, 0, 0, 0, 0},
  {2, 3, 5, 0, 0, 0, 0, 0}, {0, 2, 3, 5, 0, 0, 0, 0}, {1, 2, 3, 5, 0, 0, 0, 0}, {0, 1, 2, 3, 5, 0, 0, 0},
  {4, 5, 0, 0, 0, 0, 0, 0}, {0, 4, 5, 0, 0, 0, 0, 0}, {1, 4, 5, 0, 0, 0, 0, 0}, {0, 1, 4, 5, 0, 0, 0, 0},
  {2, 4, 5, 0, 0, 0, 0, 0}, {0, 2, 4, 5, 0, 0, 0, 0}, {1, 2, 4, 5, 0, 0, 0, 0}, {0, 1, 2, 4, 5, 0, 0, 0},
  {3, 4, 5, 0, 0, 0, 0, 0}, {0, 3, 4, 5, 0, 0, 0, 0}, {1, 3, 4, 5, 0, 0, 0, 0}, {0, 1, 3, 4, 5, 0, 0, 0},
  {2, 3, 4, 5, 0, 0, 0, 0}, {0, 2, 3, 4, 5, 0, 0, 0}, {1, 2, 3, 4, 5, 0, 0, 0}, {0, 1, 2, 3, 4, 5, 0, 0},
  {6, 0, 0, 0, 0, 0, 0, 0}, {0, 6, 0, 0, 0, 0, 0, 0}, {1, 6, 0, 0, 0, 0, 0, 0}, {0, 1, 6, 0, 0, 0, 0, 0},
  {2, 6, 0, 0, 0, 0, 0, 0}, {0, 2, 6, 0, 0, 0, 0, 0}, {1, 2, 6, 0, 0, 0, 0, 0}, {0, 1, 2, 6, 0, 0, 0, 0},
  {3, 6, 0, 0, 0, 0, 0, 0}, {0, 3, 6, 0, 0, 0, 0, 0}, {1, 3, 6, 0, 0, 0, 0, 0}, {0, 1, 3, 6, 0, 0, 0, 0},
  {2, 3, 6, 0, 0, 0, 0, 0}, {0, 2, 3, 6, 0, 0, 0, 0}, {1, 2, 3, 6, 0, 0, 0, 0}, {0, 1, 2, 3, 6, 0, 0, 0},
  {4, 6, 0, 0, 0, 0, 0, 0}, {0, 4, 6, 0, 0, 0, 0, 0}, {1, 4, 6, 0, 0, 0, 0, 0}, {0, 1, 4, 6, 0, 0, 0, 0},
  {2, 4, 6, 0, 0, 0, 0, 0}, {0, 2, 4, 6, 0, 0, 0, 0}, {1, 2, 4, 6, 0, 0, 0, 0}, {0, 1, 2, 4, 6, 0, 0, 0},
  {3, 4, 6, 0, 0, 0, 0, 0}, {0, 3, 4, 6, 0, 0, 0, 0}, {1, 3, 4, 6, 0, 0, 0, 0}, {0, 1, 3, 4, 6, 0, 0, 0},
  {2, 3, 4, 6, 0, 0, 0, 0}, {0, 2, 3, 4, 6, 0, 0, 0}, {1, 2, 3, 4, 6, 0, 0, 0}, {0, 1, 2, 3, 4, 6, 0, 0},
  {5, 6, 0, 0, 0, 0, 0, 0}, {0, 5, 6, 0, 0, 0, 0, 0}, {1, 5, 6, 0, 0, 0, 0, 0}, {0, 1, 5, 6, 0, 0, 0, 0},
  {2, 5, 6, 0, 0, 0, 0, 0}, {0, 2, 5, 6, 0, 0, 0, 0}, {1, 2, 5, 6, 0, 0, 0, 0}, {0, 1, 2, 5, 6, 0, 0, 0},
  {3, 5, 6, 0, 0, 0, 0, 0}, {0, 3, 5, 6, 0, 0, 0, 0}, {1, 3, 5, 6, 0, 0, 0, 0}, {0, 1, 3, 5, 6, 0, 0, 0},
  {2, 3, 5, 6, 0, 0, 0, 0}, {0, 2, 3, 5, 6, 0, 0, 0}, {1, 2, 3, 5, 6, 0, 0, 0}, {0, 1, 2, 3, 5, 6, 0, 0},
  {4, 5, 6, 0, 0, 0, 0, 0}, {0, 4, 5, 6, 0, 0, 0, 0}, {1, 4, 5, 6, 0, 0, 0, 0}, {0, 1, 4, 5, 6, 0, 0, 0},
  {2, 4, 5, 6, 0, 0, 0, 0}, {0, 2, 4, 5, 6, 0, 0, 0}, {1, 2, 4, 5, 6, 0, 0, 0}, {0, 1, 2, 4, 5, 6, 0, 0},
  {3, 4, 5, 6, 0, 0, 0, 0}, {0, 3, 4, 5, 6, 0, 0, 0}, {1, 3, 4, 5, 6, 0, 0, 0}, {0, 1, 3, 4, 5, 6, 0, 0},
  {2, 3, 4, 5, 6, 0, 0, 0}, {0, 2, 3, 4, 5, 6, 0, 0}, {1, 2, 3, 4, 5, 6, 0, 0}, {0, 1, 2, 3, 4, 5, 6, 0},
  {7, 0, 0, 0, 0, 0, 0, 0}, {0, 7, 0, 0, 0, 0, 0, 0}, {1, 7, 0, 0, 0, 0, 0, 0}, {0, 1, 7, 0, 0, 0, 0, 0},
  {2, 7, 0, 0, 0, 0, 0, 0}, {0, 2, 7, 0, 0, 0, 0, 0}, {1, 2, 7, 0, 0, 0, 0, 0}, {0, 1, 2, 7, 0, 0, 0, 0},
  {3, 7, 0, 0, 0, 0, 0, 0}, {0, 3, 7, 0, 0, 0, 0, 0}, {1, 3, 7, 0, 0, 0, 0, 0}, {0, 1, 3, 7, 0, 0, 0, 0},
  {2, 3, 7, 0, 0, 0, 0, 0}, {0, 2, 3, 7, 0, 0, 0, 0}, {1, 2, 3, 7, 0, 0, 0, 0}, {0, 1, 2, 3, 7, 0, 0, 0},
  {4, 7, 0, 0, 0, 0, 0, 0}, {0, 4, 7, 0, 0, 0, 0, 0}, {1, 4, 7, 0, 0, 0, 0, 0}, {0, 1, 4, 7, 0, 0, 0, 0},
  {2, 4, 7, 0, 0, 0, 0, 0}, {0, 2, 4, 7, 0, 0, 0, 0}, {1, 2, 4, 7, 0, 0, 0, 0}, {0, 1, 2, 4, 7, 0, 0, 0},
  {3, 4, 7, 0, 0, 0, 0, 0}, {0, 3, 4, 7, 0, 0, 0, 0}, {1, 3, 4, 7, 0, 0, 0, 0}, {0, 1, 3, 4, 7, 0, 0, 0},
  {2, 3, 4, 7, 0, 0, 0, 0}, {0, 2, 3, 4, 7, 0, 0, 0}, {1, 2, 3, 4, 7, 0, 0, 0}, {0, 1, 2, 3, 4, 7, 0, 0},
  {5, 7, 0, 0, 0, 0, 0, 0}, {0, 5, 7, 0, 0, 0, 0, 0}, {1, 5, 7, 0, 0, 0, 0, 0}, {0, 1, 5, 7, 0, 0, 0, 0},
  {2, 5, 7, 0, 0, 0, 0, 0}, {0, 2, 5, 7, 0, 0, 0, 0}, {1, 2, 5, 7, 0, 0, 0, 0}, {0, 1, 2, 5, 7, 0, 0, 0},
  {3, 5, 7, 0, 0, 0, 0, 0}, {0, 3, 5, 7, 0, 0, 0, 0}, {1, 3, 5, 7, 0, 0, 0, 0}, {0, 1, 3, 5, 7, 0, 0, 0},
  {2, 3, 5, 7, 0, 0, 0, 0}, {0, 2, 3, 5, 7, 0, 0, 0}, {1, 2, 3, 5, 7, 0, 0, 0}, {0, 1, 2, 3, 5, 7, 0, 0},
  {4, 5, 7, 0, 0, 0, 0, 0}, {0, 4, 5, 7, 0, 0, 0, 0}, {1, 4, 5, 7, 0, 0, 0, 0}, {0, 1, 4, 5, 7, 0, 0, 0},
  {2, 4, 5, 7, 0, 0, 0, 0}, {0, 2, 4, 5, 7, 0, 0, 0}, {1, 2, 4, 5, 7, 0, 0, 0}, {0, 1, 2, 4, 5, 7, 0, 0},
  {3, 4, 5, 7, 0, 0, 0, 0}, {0, 3, 4, 5, 7, 0, 0, 0}, {1, 3, 4, 5, 7, 0, 0, 0}, {0, 1, 3, 4, 5, 7, 0, 0},
  {2, 3, 4, 5, 7, 0, 0, 0}, {0, 2, 3, 4, 5, 7, 0, 0}, {1, 2, 3, 4, 5, 7, 0, 0}, {0, 1, 2, 3, 4, 5, 7, 0},
  {6, 7, 0, 0, 0, 0, 0, 0}, {0, 6, 7, 0, 0, 0, 0, 0}, {1, 6, 7, 0, 0, 0, 0, 0}, {0, 1, 6, 7, 0, 0, 0, 0},
  {2, 6, 7, 0, 0, 0, 0, 0}, {0, 2, 6, 7, 0, 0, 0, 0}, {1, 2, 6, 7, 0, 0, 0, 0}, {0, 1, 2, 6, 7, 0, 0, 0},
  {3, 6, 7, 0, 0, 0, 0, 0}, {0, 3, 6, 7, 0, 0, 0, 0}, {1, 3, 6, 7, 0, 0, 0, 0}, {0, 1, 3, 6, 7, 0, 0, 0},
  {2, 3, 6, 7, 0, 0, 0, 0}, {0, 2, 3, 6, 7, 0, 0, 0}, {1, 2, 3, 6, 7, 0, 0, 0}, {0, 1, 2, 3, 6, 7, 0, 0},
  {4, 6, 7, 0, 0, 0, 0, 0}, {0, 4, 6, 7, 0, 0, 0, 0}, {1, 4, 6, 7, 0, 0, 0, 0}, {0, 1, 4, 6, 7, 0, 0, 0},
  {2, 4, 6, 7, 0, 0, 0, 0}, {0, 2, 4, 6, 7, 0, 0, 0}, {1, 2, 4, 6, 7, 0, 0, 0}, {0, 1, 2, 4, 6, 7, 0, 0},
  {3, 4, 6, 7, 0, 0, 0, 0}, {0, 3, 4, 6, 7, 0, 0, 0}, {1, 3, 4, 6, 7, 0, 0, 0}, {0, 1, 3, 4, 6, 7, 0, 0},
  {2, 3, 4, 6, 7, 0, 0, 0}, {0, 2, 3, 4, 6, 7, 0, 0}, {1, 2, 3, 4, 6, 7, 0, 0}, {0, 1, 2, 3, 4, 6, 7, 0},
  {5, 6, 7, 0, 0, 0, 0, 0}, {0, 5, 6, 7, 0, 0, 0, 0}, {1, 5, 6, 7, 0, 0, 0, 0}, {0, 1, 5, 6, 7, 0, 0, 0},
  {2, 5, 6, 7, 0, 0, 0, 0}, {0, 2, 5, 6, 7, 0, 0, 0}, {1, 2, 5, 6, 7, 0, 0, 0}, {0, 1, 2, 5, 6, 7, 0, 0},
  {3, 5, 6, 7, 0, 0, 0, 0}, {0, 3, 5, 6, 7, 0, 0, 0}, {1, 3, 5, 6, 7, 0, 0, 0}, {0, 1, 3, 5, 6, 7, 0, 0},
  {2, 3, 5, 6, 7, 0, 0, 0}, {0, 2, 3, 5, 6, 7, 0, 0}, {1, 2, 3, 5, 6, 7, 0, 0}, {0, 1, 2, 3, 5, 6, 7, 0},
  {4, 5, 6, 7, 0, 0, 0, 0}, {0, 4, 5, 6, 7, 0, 0, 0}, {1, 4, 5, 6, 7, 0, 0, 0}, {0, 1, 4, 5, 6, 7, 0, 0},
  {2, 4, 5, 6, 7, 0, 0, 0}, {0, 2, 4, 5, 6, 7, 0, 0}, {1, 2, 4, 5, 6, 7, 0, 0}, {0, 1, 2, 4, 5, 6, 7, 0},
  {3, 4, 5, 6, 7, 0, 0, 0}, {0, 3, 4, 5, 6, 7, 0, 0}, {1, 3, 4, 5, 6, 7, 0, 0}, {0, 1, 3, 4, 5, 6, 7, 0},
  {2, 3, 4, 5, 6, 7, 0, 0}, {0, 2, 3, 4, 5, 6, 7, 0}, {1, 2, 3, 4, 5, 6, 7, 0}, {0, 1, 2, 3, 4, 5, 6, 7}};

/* Eight bytes at a time: gathered into the bits of a byte by a multiplication, looked up, and stored with the next list
 * overwriting what stands behind the ones. `event` needs room for 8 more than `size`. */
static SPK_UNUSED uint32_t spk_flags_list(const uint8_t *SPK_RESTRICT x, uint32_t size, uint16_t *SPK_RESTRICT event) {
  uint32_t count = 0;
  uint32_t i = 0;
  for (; i + 8u <= size; i += 8u) {
    uint32_t bits, ones;
    const uint8_t *where;
    uint32_t j;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint64_t word;
    memcpy(&word, x + i, 8);
    /* The top bit of every byte that is not zero, moved to the bottom. */
    word = ((((word & UINT64_C(0x7f7f7f7f7f7f7f7f)) + UINT64_C(0x7f7f7f7f7f7f7f7f)) | word) >> 7) & UINT64_C(0x0101010101010101);
    bits = (uint32_t)((word * UINT64_C(0x0102040810204080)) >> 56);
    ones = (uint32_t)((word * UINT64_C(0x0101010101010101)) >> 56);
#else
    bits = 0;
    ones = 0;
    for (j = 0; j < 8u; j++) {
      bits |= (uint32_t)(x[i + j] != 0) << j;
      ones += x[i + j] != 0;
    }
#endif
    where = spk_flags_table[bits];
    for (j = 0; j < 8u; j++) { event[count + j] = (uint16_t)(i + where[j]); }
    count += ones;
  }
  for (; i < size; i++) {
    event[count] = (uint16_t)i;
    count += x[i] != 0;
  }
  return count;
}
#endif

#endif
