/* spk_multiply.h - sums of products of bytes, or of bytes and 16-bit numbers, that stay in vector registers (spk_product.h). All of
 * it is modulo 2^32.
 *
 * SPK_MULTIPLY  2: bytes without sign by bytes with one, in fours (VNNI); 3: bytes with sign, in fours (Arm's dot product); 1:
 *               16-bit numbers only; 0: plain C99
 * SPK_OUTS      outputs that are summed at a time */
#ifndef SPK_MULTIPLY_H
#define SPK_MULTIPLY_H
#include "spk_simd.h"

#if defined(__AVX512BW__)
#define SPK_OUTS 128u
#else
#define SPK_OUTS 64u
#endif
#if !SPK_SIMD
#define SPK_MULTIPLY 0
#elif (defined(__AVX512VNNI__) && defined(__AVX512BW__)) || defined(__AVXVNNI__)
#define SPK_MULTIPLY 2
#elif defined(__ARM_FEATURE_DOTPROD) && defined(__aarch64__)
#define SPK_MULTIPLY 3
#else
#define SPK_MULTIPLY 1
#endif

#if SPK_SIMD
#if defined(__AVX512BW__)
typedef __m512i spk_p;
#define SPK_P_BYTES 64u
#define spk_p_zero() _mm512_setzero_si512()
#define spk_p_load(p) _mm512_loadu_si512((const void *)(p))
#define spk_p_store(p, v) _mm512_storeu_si512((void *)(p), v)
#define spk_p_four8(v) _mm512_set1_epi32(v)
#define spk_p_four16(v) _mm512_set1_epi64(v)
#define spk_p_signed(p) _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define spk_p_raised(p) _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#if defined(__AVX512VNNI__)
#define spk_p_bytes(a, u, s) _mm512_dpbusd_epi32(a, u, s)
#define spk_p_words(a, x, w) _mm512_dpwssd_epi32(a, x, w)
#else
#define spk_p_bytes(a, u, s) a
#define spk_p_words(a, x, w) _mm512_add_epi32(a, _mm512_madd_epi16(x, w))
#endif
#elif defined(__AVX2__)
typedef __m256i spk_p;
#define SPK_P_BYTES 32u
#define spk_p_zero() _mm256_setzero_si256()
#define spk_p_load(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define spk_p_store(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define spk_p_four8(v) _mm256_set1_epi32(v)
#define spk_p_four16(v) _mm256_set1_epi64x(v)
#define spk_p_signed(p) _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define spk_p_raised(p) _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#if defined(__AVXVNNI__)
#define spk_p_bytes(a, u, s) _mm256_dpbusd_avx_epi32(a, u, s)
#else
#define spk_p_bytes(a, u, s) a
#endif
#define spk_p_words(a, x, w) _mm256_add_epi32(a, _mm256_madd_epi16(x, w))
#elif defined(__SSE2__)
typedef __m128i spk_p;
#define SPK_P_BYTES 16u
#define spk_p_zero() _mm_setzero_si128()
#define spk_p_store(p, v) _mm_storeu_si128((__m128i *)(void *)(p), v)
#define spk_p_four16(v) _mm_set1_epi64x(v)
SPK_INLINE_ANY __m128i spk_p_signed(const int8_t *p) {
  const __m128i x = _mm_loadl_epi64((const __m128i *)(const void *)p);
  return _mm_srai_epi16(_mm_unpacklo_epi8(x, x), 8);
}
#define spk_p_raised(p) _mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)(const void *)(p)), _mm_setzero_si128())
#define spk_p_words(a, x, w) _mm_add_epi32(a, _mm_madd_epi16(x, w))
#endif
#endif

#if SPK_SIMD && !defined(__ARM_NEON)
#if SPK_MULTIPLY == 2
/* Each lane of 32 bits is an output. `swapped`: the values have the sign, not the weights. */
SPK_INLINE_ANY void spk_multiply_bytes(uint32_t *SPK_RESTRICT sum, const int8_t *SPK_RESTRICT weight, const size_t stride,
                                       const unsigned char *SPK_RESTRICT x, const uint16_t *SPK_RESTRICT list, uint32_t n,
                                       const uint32_t vectors, const int swapped) {
  spk_p acc[SPK_OUTS * 4u / SPK_P_BYTES];
  uint32_t e, j;
  SPK_UNROLL for (j = 0; j < vectors; j++) { acc[j] = spk_p_zero(); }
  for (e = 0; e < n; e++) {
    const int8_t *w = weight + list[e] * stride;
    int32_t four;
    spk_p value;
    memcpy(&four, x + list[e] * 4u, sizeof four);
    value = spk_p_four8(four);
    SPK_UNROLL for (j = 0; j < vectors; j++) {
      const spk_p by = spk_p_load(w + j * SPK_P_BYTES);
      acc[j] = swapped ? spk_p_bytes(acc[j], by, value) : spk_p_bytes(acc[j], value, by);
    }
  }
  SPK_UNROLL for (j = 0; j < vectors; j++) { spk_p_store(sum + j * (SPK_P_BYTES / 4u), acc[j]); }
}
#endif

/* Two lanes of 32 bits are an output. */
SPK_INLINE_ANY void spk_multiply_words(uint32_t *SPK_RESTRICT sum, const int8_t *SPK_RESTRICT weight, const size_t stride,
                                       const int16_t *SPK_RESTRICT x, const uint16_t *SPK_RESTRICT list, uint32_t n,
                                       const uint32_t vectors, const int raised) {
  uint32_t half[8u * (SPK_P_BYTES / 4u)];
  spk_p acc[8];
  uint32_t e, j;
  SPK_UNROLL for (j = 0; j < vectors; j++) { acc[j] = spk_p_zero(); }
  for (e = 0; e < n; e++) {
    const int8_t *w = weight + list[e] * stride;
    int64_t four;
    spk_p value;
    memcpy(&four, x + list[e] * 4u, sizeof four);
    value = spk_p_four16(four);
    SPK_UNROLL for (j = 0; j < vectors; j++) {
      const int8_t *from = w + j * (SPK_P_BYTES / 2u);
      acc[j] = spk_p_words(acc[j], value, raised ? spk_p_raised(from) : spk_p_signed(from));
    }
  }
  SPK_UNROLL for (j = 0; j < vectors; j++) { spk_p_store(half + j * (SPK_P_BYTES / 4u), acc[j]); }
  for (j = 0; j < vectors * (SPK_P_BYTES / 8u); j++) { sum[j] = half[2u * j] + half[2u * j + 1u]; }
}
#endif

#if SPK_SIMD && defined(__ARM_NEON)
#if SPK_MULTIPLY == 3
SPK_INLINE_ANY void spk_multiply_dot(uint32_t *SPK_RESTRICT sum, const int8_t *SPK_RESTRICT weight, const size_t stride,
                                     const unsigned char *SPK_RESTRICT x, const uint16_t *SPK_RESTRICT list, uint32_t n,
                                     const uint32_t vectors) {
  int32x4_t acc[SPK_OUTS / 4u];
  uint32_t e, j;
  SPK_UNROLL for (j = 0; j < vectors; j++) { acc[j] = vdupq_n_s32(0); }
  for (e = 0; e < n; e++) {
    const int8_t *w = weight + list[e] * stride;
    int32_t four;
    memcpy(&four, x + list[e] * 4u, sizeof four);
    {
      const int8x16_t value = vreinterpretq_s8_s32(vdupq_n_s32(four));
      SPK_UNROLL for (j = 0; j < vectors; j++) { acc[j] = vdotq_s32(acc[j], vld1q_s8(w + j * 16u), value); }
    }
  }
  SPK_UNROLL for (j = 0; j < vectors; j++) { vst1q_u32(sum + j * 4u, vreinterpretq_u32_s32(acc[j])); }
}
#endif

/* Four lanes of 32 bits are an output. */
SPK_INLINE_ANY void spk_multiply_lanes(uint32_t *SPK_RESTRICT sum, const int8_t *SPK_RESTRICT weight, const size_t stride,
                                       const int16_t *SPK_RESTRICT x, const uint16_t *SPK_RESTRICT list, uint32_t n,
                                       const uint32_t outs, const int raised) {
  int32x4_t acc[8];
  uint32_t e, j;
  SPK_UNROLL for (j = 0; j < outs; j++) { acc[j] = vdupq_n_s32(0); }
  for (e = 0; e < n; e++) {
    const int8_t *w = weight + list[e] * stride;
    const int16x4_t value = vld1_s16(x + list[e] * 4u);
    SPK_UNROLL for (j = 0; j < outs; j += 2u) {
      const int8x8_t two = vld1_s8(w + j * 4u);
      const int16x8_t wide = raised ? vreinterpretq_s16_u16(vmovl_u8(vreinterpret_u8_s8(two))) : vmovl_s8(two);
      acc[j] = vmlal_s16(acc[j], vget_low_s16(wide), value);
      acc[j + 1u] = vmlal_s16(acc[j + 1u], vget_high_s16(wide), value);
    }
  }
  SPK_UNROLL for (j = 0; j < outs; j++) {
    const uint32x4_t four = vreinterpretq_u32_s32(acc[j]);
    const uint32x2_t two = vadd_u32(vget_low_u32(four), vget_high_u32(four));
    sum[j] = vget_lane_u32(vpadd_u32(two, two), 0);
  }
}
#endif

/* sum[0 .. SPK_OUTS), or as many as there is `room` for, a multiple of 16. `bytes` as SPK_AS_BYTES in spk_product.h. */
SPK_INLINE_ANY void spk_multiply(uint32_t *SPK_RESTRICT sum, const int8_t *SPK_RESTRICT weight, const size_t stride,
                                 const int16_t *SPK_RESTRICT x, const uint16_t *SPK_RESTRICT list, uint32_t n, const uint32_t room,
                                 const int bytes, const int raised) {
  uint32_t o;
  (void)bytes;
#if SPK_MULTIPLY == 2
  if (bytes) {
    if (room >= SPK_OUTS) {
      spk_multiply_bytes(sum, weight, stride, (const unsigned char *)x, list, n, SPK_OUTS * 4u / SPK_P_BYTES, bytes == 2);
    } else {
      for (o = 0; o < room; o += 16u) {
        spk_multiply_bytes(sum + o, weight + o * 4u, stride, (const unsigned char *)x, list, n, 64u / SPK_P_BYTES, bytes == 2);
      }
    }
    return;
  }
#elif SPK_MULTIPLY == 3
  if (bytes) {
    if (room >= SPK_OUTS) {
      spk_multiply_dot(sum, weight, stride, (const unsigned char *)x, list, n, SPK_OUTS / 4u);
    } else {
      for (o = 0; o < room; o += 16u) { spk_multiply_dot(sum + o, weight + o * 4u, stride, (const unsigned char *)x, list, n, 4u); }
    }
    return;
  }
#endif
#if SPK_SIMD && defined(__ARM_NEON)
  for (o = 0; o < room && o < SPK_OUTS; o += 8u) { spk_multiply_lanes(sum + o, weight + o * 4u, stride, x, list, n, 8u, raised); }
#elif SPK_SIMD
  for (o = 0; o + SPK_P_BYTES <= room && o < SPK_OUTS; o += SPK_P_BYTES) {
    spk_multiply_words(sum + o, weight + o * 4u, stride, x, list, n, 8u, raised);
  }
  for (; o < room && o < SPK_OUTS; o += 16u) {
    spk_multiply_words(sum + o, weight + o * 4u, stride, x, list, n, 128u / SPK_P_BYTES, raised);
  }
#else
  for (o = 0; o < SPK_OUTS; o++) { sum[o] = 0; }
  {
    const uint32_t end = room < SPK_OUTS ? room : SPK_OUTS;
    uint32_t e;
    for (e = 0; e < n; e++) {
      const int8_t *w = weight + list[e] * stride;
      const int16_t *by = x + list[e] * 4u;
      for (o = 0; o < end; o++, w += 4) {
        const int32_t a = raised ? (uint8_t)w[0] : w[0], b = raised ? (uint8_t)w[1] : w[1];
        const int32_t c = raised ? (uint8_t)w[2] : w[2], d = raised ? (uint8_t)w[3] : w[3];
        sum[o] += (uint32_t)(a * by[0]) + (uint32_t)(b * by[1]) + (uint32_t)(c * by[2]) + (uint32_t)(d * by[3]);
      }
    }
  }
#endif
}

#endif
