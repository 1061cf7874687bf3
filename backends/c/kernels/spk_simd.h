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

/* SPK_LANES: numbers of a vector; SPK_PAIRS: vectors of bytes whose sums fit into the registers. */
#if defined(SPK_NO_SIMD) || !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#define SPK_SIMD 0
#elif defined(__AVX512BW__)
#include <immintrin.h>
#define SPK_SIMD 1
#define SPK_LANES 32u
#define SPK_PAIRS 8u
#elif defined(__AVX2__)
#include <immintrin.h>
#define SPK_SIMD 1
#define SPK_LANES 16u
#define SPK_PAIRS 4u
#elif defined(__SSE2__)
#include <emmintrin.h>
#define SPK_SIMD 1
#define SPK_LANES 8u
#define SPK_PAIRS 4u
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define SPK_SIMD 1
#define SPK_LANES 8u
#if defined(__aarch64__)
#define SPK_PAIRS 12u
#else
#define SPK_PAIRS 4u
#endif
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
/* Sums of rows of bytes. A word holds two outputs, the even one in its low byte, stored with 128 added, and the odd one in its
 * high byte. Then the sum of the words is even + 256 * odd, and the sum of the words shifted right by eight is odd: two additions
 * and a shift for two vectors of outputs, without widening. All of it is modulo 2^16, where the results fit.
 *
 * The functions below do that for vectors of 16, 32 or 64 bytes: `zip` puts even and odd outputs side by side. */
#if defined(__aarch64__)
/* Four vectors are one instruction. */
#define SPK_TOGETHER 4u
#define SPK_FETCH(BYTES, X, FROM, N)                                                                                       \
  if (N >= 4u) {                                                                                                           \
    const uint16x8x4_t four = vld1q_u16_x4((const uint16_t *)(const void *)(FROM));                                        \
    X[0] = (spk_w16)four.val[0];                                                                                           \
    X[1] = (spk_w16)four.val[1];                                                                                           \
    X[2] = (spk_w16)four.val[2];                                                                                           \
    X[3] = (spk_w16)four.val[3];                                                                                           \
  } else {                                                                                                                 \
    memcpy(X, FROM, N * 16u);                                                                                              \
  }
#else
#define SPK_TOGETHER 1u
#define SPK_FETCH(BYTES, X, FROM, N) X[0] = *(const spk_any##BYTES *)(const void *)(FROM);
#endif
#define SPK_SUMS(BYTES, ZIP)                                                                                               \
  typedef uint16_t spk_w##BYTES __attribute__((vector_size(BYTES), may_alias));                                            \
  typedef int16_t spk_s##BYTES __attribute__((vector_size(BYTES), may_alias));                                             \
  typedef uint16_t spk_any##BYTES __attribute__((vector_size(BYTES), aligned(1), may_alias));                          \
  ZIP                                                                                                                      \
  SPK_INLINE_ANY void spk_rows##BYTES(int16_t *SPK_RESTRICT acc, const int8_t *SPK_RESTRICT weight, size_t stride,         \
                                      const uint16_t *SPK_RESTRICT event, uint32_t count, const uint32_t n,                \
                                      const int fresh) {                                                                   \
    spk_w##BYTES all[SPK_PAIRS], odd[SPK_PAIRS];                                                                           \
    const uint32_t together = n < SPK_TOGETHER ? n : SPK_TOGETHER;                                                         \
    uint32_t e, j;                                                                                                         \
    SPK_UNROLL for (j = 0; j < n; j++) {                                                                                   \
      all[j] = (spk_w##BYTES){0};                                                                                          \
      odd[j] = (spk_w##BYTES){0};                                                                                          \
    }                                                                                                                      \
    for (e = 0; e < count; e++) {                                                                                          \
      const int8_t *row = weight + event[e] * stride;                                                                      \
      SPK_OPAQUE(row);                                                                                                     \
      SPK_UNROLL for (j = 0; j < n; j += SPK_TOGETHER) {                                                                   \
        spk_w##BYTES x[SPK_TOGETHER];                                                                                      \
        uint32_t k;                                                                                                        \
        SPK_FETCH(BYTES, x, row + j * BYTES##u, n)                                                                         \
        SPK_UNROLL for (k = 0; k < together; k++) {                                                                        \
          all[j + k] += x[k];                                                                                              \
          odd[j + k] += (spk_w##BYTES)((spk_s##BYTES)x[k] >> 8);                                                           \
        }                                                                                                                  \
      }                                                                                                                    \
    }                                                                                                                      \
    SPK_UNROLL for (j = 0; j < n; j++) {                                                                                   \
      const spk_w##BYTES even = all[j] - (odd[j] << 8) - (uint16_t)(128u * count);                                         \
      spk_any##BYTES *to = (spk_any##BYTES *)(void *)(acc + j * BYTES##u);                                         \
      spk_w##BYTES out[2];                                                                                                 \
      spk_zip##BYTES(even, odd[j], out);                                                                                   \
      if (!fresh) {                                                                                                        \
        out[0] += to[0];                                                                                                   \
        out[1] += to[1];                                                                                                   \
      }                                                                                                                    \
      to[0] = out[0];                                                                                                      \
      to[1] = out[1];                                                                                                      \
    }                                                                                                                      \
  }
#define SPK_ZIP(BYTES, FIRST, SECOND)                                                                                      \
  SPK_INLINE_ANY void spk_zip##BYTES(spk_w##BYTES a, spk_w##BYTES b, spk_w##BYTES *out) {                                  \
    out[0] = (spk_w##BYTES)FIRST;                                                                                          \
    out[1] = (spk_w##BYTES)SECOND;                                                                                         \
  }
#if defined(__ARM_NEON)
#if defined(__aarch64__)
SPK_SUMS(16, SPK_ZIP(16, vzip1q_u16((uint16x8_t)a, (uint16x8_t)b), vzip2q_u16((uint16x8_t)a, (uint16x8_t)b)))
#else
SPK_SUMS(16, SPK_ZIP(16, vzipq_u16((uint16x8_t)a, (uint16x8_t)b).val[0], vzipq_u16((uint16x8_t)a, (uint16x8_t)b).val[1]))
#endif
#else
SPK_SUMS(16, SPK_ZIP(16, _mm_unpacklo_epi16((__m128i)a, (__m128i)b), _mm_unpackhi_epi16((__m128i)a, (__m128i)b)))
#endif
#if defined(__AVX2__)
#define SPK_ZIPPED(SELECT)                                                                                                 \
  _mm256_permute2x128_si256(_mm256_unpacklo_epi16((__m256i)a, (__m256i)b), _mm256_unpackhi_epi16((__m256i)a, (__m256i)b), SELECT)
SPK_SUMS(32, SPK_ZIP(32, SPK_ZIPPED(0x20), SPK_ZIPPED(0x31)))
#undef SPK_ZIPPED
#endif
#if defined(__AVX512BW__)
#define SPK_HALVES(SELECT)                                                                                                 \
  _mm512_shuffle_i64x2(_mm512_unpacklo_epi16((__m512i)a, (__m512i)b), _mm512_unpackhi_epi16((__m512i)a, (__m512i)b), SELECT)
/* Lanes 0 and 1 of both, then 2 and 3; in each pair the second and third change places. */
#define SPK_ZIPPED(SELECT) _mm512_shuffle_i64x2(SPK_HALVES(SELECT), SPK_HALVES(SELECT), 0xd8)
SPK_SUMS(64, SPK_ZIP(64, SPK_ZIPPED(0x44), SPK_ZIPPED(0xee)))
#undef SPK_ZIPPED
#undef SPK_HALVES
#endif
#undef SPK_SUMS
#undef SPK_ZIP
#undef SPK_FETCH

/* acc[0 .. width) = or += the rows of all events, `stride` bytes apart. `width`, a constant, is a multiple of 16. */
SPK_INLINE_ANY void spk_rows(int16_t *SPK_RESTRICT acc, const int8_t *SPK_RESTRICT weight, const uint32_t stride,
                             const uint32_t width, const uint16_t *SPK_RESTRICT event, uint32_t count, const int fresh) {
  uint32_t o = 0;
#define SPK_BLOCK(BYTES, N)                                                                                                \
  for (; o + (N) * BYTES##u <= width; o += (N) * BYTES##u) {                                                               \
    spk_rows##BYTES(acc + o, weight + o, stride, event, count, N, fresh);                                                  \
  }
#if defined(__AVX512BW__)
  SPK_BLOCK(64, SPK_PAIRS)
  SPK_BLOCK(64, SPK_PAIRS / 2)
  SPK_BLOCK(64, 2u)
  SPK_BLOCK(64, 1u)
#elif defined(__AVX2__)
  SPK_BLOCK(32, SPK_PAIRS)
  SPK_BLOCK(32, 2u)
#elif defined(__aarch64__)
  for (; width - o >= 24u * 16u || width - o == 12u * 16u; o += 12u * 16u) { spk_rows16(acc + o, weight + o, stride, event, count, 12u, fresh); }
  SPK_BLOCK(16, 8u)
  SPK_BLOCK(16, 4u)
#else
  SPK_BLOCK(16, SPK_PAIRS)
  SPK_BLOCK(16, SPK_PAIRS / 2)
#endif
#if defined(__AVX2__)
  SPK_BLOCK(32, 1u)
#elif defined(__aarch64__)
  SPK_BLOCK(16, 2u)
#endif
  SPK_BLOCK(16, 1u)
#undef SPK_BLOCK
}

/* a[0 .. n) += w[0 .. n): bytes are widened; n, a constant, is a multiple of 8. */
SPK_INLINE_ANY void spk_widen_add(int16_t *SPK_RESTRICT a, const int8_t *SPK_RESTRICT w, const uint32_t n) {
  uint32_t i = 0;
#if defined(__AVX512BW__)
  SPK_UNROLL for (; i + 32u <= n; i += 32u) {
    const __m512i by = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(w + i)));
    _mm512_storeu_si512((void *)(a + i), _mm512_add_epi16(_mm512_loadu_si512((const void *)(a + i)), by));
  }
#endif
#if defined(__AVX2__)
  SPK_UNROLL for (; i + 16u <= n; i += 16u) {
    __m256i *to = (__m256i *)(void *)(a + i);
    const __m256i by = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(w + i)));
    _mm256_storeu_si256(to, _mm256_add_epi16(_mm256_loadu_si256(to), by));
  }
#endif
  SPK_UNROLL for (; i + 8u <= n; i += 8u) {
#if defined(__ARM_NEON)
    vst1q_s16(a + i, vaddw_s8(vld1q_s16(a + i), vld1_s8(w + i)));
#else
    __m128i *to = (__m128i *)(void *)(a + i);
    const __m128i x = _mm_loadl_epi64((const __m128i *)(const void *)(w + i));
    _mm_storeu_si128(to, _mm_add_epi16(_mm_loadu_si128(to), _mm_srai_epi16(_mm_unpacklo_epi8(x, x), 8)));
#endif
  }
}
#endif

#endif
