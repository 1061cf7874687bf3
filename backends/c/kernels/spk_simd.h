/* spk_simd.h - rows of eight-bit weights added to sixteen-bit accumulators that stay in vector registers: AVX-512, AVX2,
 * SSE2 and NEON. SPK_SIMD is 0 where there is none of them, or with -DSPK_NO_SIMD; every kernel has plain C99 beside it,
 * with the same result to the bit. (The compilers' own conversion of vectors is split into halves by gcc 12; hence the
 * processor's instructions by name.) */
#ifndef SPK_SIMD_H
#define SPK_SIMD_H

#if defined(__GNUC__)
#define SPK_INLINE_ANY static inline __attribute__((always_inline))
#else
#define SPK_INLINE_ANY static
#endif

/* SPK_LANES: numbers of a vector; SPK_SIMD_BLOCK: vectors of accumulators that fit into the registers. */
#if defined(SPK_NO_SIMD) || !defined(__GNUC__)
#define SPK_SIMD 0
#elif defined(__AVX512BW__)
#include <immintrin.h>
#define SPK_SIMD 1
#define SPK_LANES 32u
#define SPK_SIMD_BLOCK 16u
typedef __m512i spk_v16;
#define SPK_V_LOAD(p) _mm512_loadu_si512((const void *)(p))
#define SPK_V_STORE(p, v) _mm512_storeu_si512((void *)(p), v)
#define SPK_V_ADD(v, p) _mm512_add_epi16(v, _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(p))))
#elif defined(__AVX2__)
#include <immintrin.h>
#define SPK_SIMD 1
#define SPK_LANES 16u
#define SPK_SIMD_BLOCK 8u
typedef __m256i spk_v16;
#define SPK_V_LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define SPK_V_STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define SPK_V_ADD(v, p) _mm256_add_epi16(v, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(p))))
#elif defined(__SSE2__)
#include <emmintrin.h>
#define SPK_SIMD 1
#define SPK_LANES 8u
#define SPK_SIMD_BLOCK 8u
typedef __m128i spk_v16;
#define SPK_V_LOAD(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define SPK_V_STORE(p, v) _mm_storeu_si128((__m128i *)(void *)(p), v)
/* The byte twice in a word, shifted right with its sign. */
static inline __attribute__((always_inline)) __m128i spk_widen(const int8_t *p) {
  const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)p);
  return _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
}
#define SPK_V_ADD(v, p) _mm_add_epi16(v, spk_widen(p))
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define SPK_SIMD 1
#define SPK_LANES 8u
#if defined(__aarch64__)
#define SPK_SIMD_BLOCK 16u
#else
#define SPK_SIMD_BLOCK 8u
#endif
typedef int16x8_t spk_v16;
#define SPK_V_LOAD(p) vld1q_s16(p)
#define SPK_V_STORE(p, v) vst1q_s16(p, v)
#define SPK_V_ADD(v, p) vaddw_s8(v, vld1_s8(p))
#else
#define SPK_SIMD 0
#endif

#if defined(__clang__)
#define SPK_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define SPK_UNROLL _Pragma("GCC unroll 16")
#else
#define SPK_UNROLL
#endif

#if SPK_SIMD
/* acc[0 .. n * SPK_LANES) += the rows of all events, n a constant: the accumulators are read and written once. */
SPK_INLINE_ANY void spk_rows_v16(int16_t *SPK_RESTRICT acc, const int8_t *SPK_RESTRICT weight, size_t stride,
                                 const uint16_t *SPK_RESTRICT event, uint32_t count, const uint32_t n) {
  spk_v16 sum[SPK_SIMD_BLOCK];
  uint32_t e, j;
  SPK_UNROLL for (j = 0; j < n; j++) { sum[j] = SPK_V_LOAD(acc + j * SPK_LANES); }
  for (e = 0; e < count; e++) {
    const int8_t *row = weight + event[e] * stride;
    SPK_UNROLL for (j = 0; j < n; j++) { sum[j] = SPK_V_ADD(sum[j], row + j * SPK_LANES); }
  }
  SPK_UNROLL for (j = 0; j < n; j++) { SPK_V_STORE(acc + j * SPK_LANES, sum[j]); }
}

/* The same for sixteen outputs, the narrowest row that there is. */
SPK_INLINE_ANY void spk_rows_16(int16_t *SPK_RESTRICT acc, const int8_t *SPK_RESTRICT weight, size_t stride,
                                const uint16_t *SPK_RESTRICT event, uint32_t count) {
#if defined(__AVX512BW__)
  __m256i sum = _mm256_loadu_si256((const __m256i *)(const void *)acc);
  uint32_t e;
  for (e = 0; e < count; e++) {
    const __m128i row = _mm_loadu_si128((const __m128i *)(const void *)(weight + event[e] * stride));
    sum = _mm256_add_epi16(sum, _mm256_cvtepi8_epi16(row));
  }
  _mm256_storeu_si256((__m256i *)(void *)acc, sum);
#else
  spk_rows_v16(acc, weight, stride, event, count, 16u / SPK_LANES);
#endif
}
#endif

#endif
