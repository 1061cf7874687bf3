/* spk_vector.h - what the loops over populations are made of: vectors of 16 and 32 bits, truth values of their lanes, and the
 * list of those that are true. AVX-512, AVX2, SSE2 and NEON; SPK_VECTOR is 0 where there is none of them or with
 * -DSPK_NO_SIMD, and the loops' plain C99 then does everything.
 *
 * spk_x16, spk_x32   vectors of SPK_N16 and SPK_N32 numbers
 * spk_m16, spk_m32   a truth value for each: bits of a mask with AVX-512, else a lane of ones or zeros
 * spk_OP16(a, b)     lane by lane; nothing overflows, which the compiler of the network has proven
 * spk_list16_u16 ... the numbers of the true lanes among 64 neurons, appended to a list of events */
#ifndef SPK_VECTOR_H
#define SPK_VECTOR_H
#include "spk_simd.h"

#if SPK_SIMD && (defined(__clang__) || __GNUC__ >= 9)
#define SPK_VECTOR 1
#else
#define SPK_VECTOR 0
#endif

#if SPK_VECTOR
#define SPK_FN SPK_INLINE_ANY
#if defined(__AVX512BW__)
#define SPK_BYTES_V 64
#elif defined(__AVX2__)
#define SPK_BYTES_V 32
#else
#define SPK_BYTES_V 16
#endif
#define SPK_N16 (SPK_BYTES_V / 2u)
#define SPK_N32 (SPK_BYTES_V / 4u)
typedef int16_t spk_x16 __attribute__((vector_size(SPK_BYTES_V), may_alias));
typedef uint16_t spk_u16v __attribute__((vector_size(SPK_BYTES_V), may_alias));
typedef int32_t spk_x32 __attribute__((vector_size(SPK_BYTES_V), may_alias));
typedef uint32_t spk_u32v __attribute__((vector_size(SPK_BYTES_V), may_alias));
typedef int16_t spk_any_x16 __attribute__((vector_size(SPK_BYTES_V), aligned(1), may_alias));
typedef int32_t spk_any_x32 __attribute__((vector_size(SPK_BYTES_V), aligned(1), may_alias));
typedef int8_t spk_x16_i8 __attribute__((vector_size(SPK_BYTES_V / 2), may_alias));
typedef uint8_t spk_x16_u8 __attribute__((vector_size(SPK_BYTES_V / 2), may_alias));
typedef int8_t spk_x32_i8 __attribute__((vector_size(SPK_BYTES_V / 4), may_alias));
typedef uint8_t spk_x32_u8 __attribute__((vector_size(SPK_BYTES_V / 4), may_alias));
typedef int16_t spk_x32_i16 __attribute__((vector_size(SPK_BYTES_V / 2), may_alias));

/* Numbers of another width are read and written through a vector of that width. */
#define SPK_MEMORY(W, KIND)                                                                                                \
  SPK_FN spk_x##W spk_load##W##_##KIND(const void *p) {                                                                    \
    spk_x##W##_##KIND narrow;                                                                                              \
    memcpy(&narrow, p, sizeof narrow);                                                                                     \
    return __builtin_convertvector(narrow, spk_x##W);                                                                      \
  }                                                                                                                        \
  SPK_FN void spk_store##W##_##KIND(void *p, spk_x##W x) {                                                                 \
    const spk_x##W##_##KIND narrow = __builtin_convertvector(x, spk_x##W##_##KIND);                                        \
    memcpy(p, &narrow, sizeof narrow);                                                                                     \
  }
SPK_MEMORY(16, i8)
SPK_MEMORY(16, u8)
SPK_MEMORY(32, i8)
SPK_MEMORY(32, u8)
#undef SPK_MEMORY

#define SPK_PLAIN(W, T, U)                                                                                                 \
  SPK_FN spk_x##W spk_load##W##_i##W(const void *p) { return *(const spk_any_x##W *)p; }                                   \
  SPK_FN void spk_store##W##_i##W(void *p, spk_x##W x) { *(spk_any_x##W *)p = x; }                                         \
  SPK_FN spk_x##W spk_set##W(T value) { return (spk_x##W){0} + value; }                                                    \
  SPK_FN spk_x##W spk_add##W(spk_x##W a, spk_x##W b) { return (spk_x##W)((U)a + (U)b); }                                   \
  SPK_FN spk_x##W spk_sub##W(spk_x##W a, spk_x##W b) { return (spk_x##W)((U)a - (U)b); }                                   \
  SPK_FN spk_x##W spk_mul##W(spk_x##W a, spk_x##W b) { return (spk_x##W)((U)a * (U)b); }                                   \
  SPK_FN spk_x##W spk_neg##W(spk_x##W a) { return (spk_x##W)((U){0} - (U)a); }                                             \
  SPK_FN spk_x##W spk_vsar##W(spk_x##W a, int n) { return a >> n; }                                                        \
  SPK_FN spk_x##W spk_vshr##W(spk_x##W a, int n) { return (spk_x##W)((U)a >> n); }                                         \
  SPK_FN spk_x##W spk_vshl##W(spk_x##W a, int n) { return (spk_x##W)((U)a << n); }                                         \
  /* sign(x) * (|x| >> n): a negative number is lifted by 2^n - 1 before the floor */                                      \
  SPK_FN spk_x##W spk_vrtz##W(spk_x##W a, int n) { return (a + (spk_x##W)((U)(a >> (W - 1)) >> (W - n))) >> n; }           \
  SPK_FN spk_x##W spk_vwrap##W(spk_x##W a, int n) { return (spk_x##W)((U)a << (W - n)) >> (W - n); }
SPK_PLAIN(16, int16_t, spk_u16v)
SPK_PLAIN(32, int32_t, spk_u32v)
#undef SPK_PLAIN

/* ------------------------------------------------------------------------------------------- smaller, larger, true, false */
#if defined(__AVX512BW__)
typedef __mmask32 spk_m16;
typedef __mmask16 spk_m32;
#define SPK_COMPARE(W, M)                                                                                                  \
  SPK_FN spk_x##W spk_vmin##W(spk_x##W a, spk_x##W b) { return (spk_x##W)_mm512_min_epi##W((__m512i)a, (__m512i)b); }      \
  SPK_FN spk_x##W spk_vmax##W(spk_x##W a, spk_x##W b) { return (spk_x##W)_mm512_max_epi##W((__m512i)a, (__m512i)b); }      \
  SPK_FN M spk_gt##W(spk_x##W a, spk_x##W b) { return _mm512_cmpgt_epi##W##_mask((__m512i)a, (__m512i)b); }                \
  SPK_FN M spk_ge##W(spk_x##W a, spk_x##W b) { return _mm512_cmpge_epi##W##_mask((__m512i)a, (__m512i)b); }                \
  SPK_FN M spk_eq##W(spk_x##W a, spk_x##W b) { return _mm512_cmpeq_epi##W##_mask((__m512i)a, (__m512i)b); }                \
  SPK_FN M spk_not##W(M m) { return (M)~m; }                                                                               \
  SPK_FN M spk_and##W(M a, M b) { return (M)(a & b); }                                                                     \
  SPK_FN M spk_or##W(M a, M b) { return (M)(a | b); }                                                                      \
  SPK_FN M spk_truth##W(int t) { return t ? (M)-1 : (M)0; }                                                                \
  SPK_FN spk_x##W spk_select##W(M m, spk_x##W a, spk_x##W b) {                                                             \
    return (spk_x##W)_mm512_mask_mov_epi##W((__m512i)b, m, (__m512i)a);                                                    \
  }                                                                                                                        \
  /* 0 where m, else a */                                                                                                  \
  SPK_FN spk_x##W spk_unless##W(M m, spk_x##W a) { return (spk_x##W)_mm512_maskz_mov_epi##W((M)~m, (__m512i)a); }          \
  SPK_FN spk_x##W spk_number##W(M m) { return (spk_x##W)_mm512_maskz_set1_epi##W(m, 1); }
SPK_COMPARE(16, spk_m16)
SPK_COMPARE(32, spk_m32)
SPK_FN spk_x32 spk_load32_i16(const void *p) { return (spk_x32)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
SPK_FN spk_x32 spk_load32_u16(const void *p) { return (spk_x32)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
SPK_FN void spk_store32_i16(void *p, spk_x32 x) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)x)); }
SPK_FN void spk_flags16(uint8_t *y, spk_m16 m) {
#if defined(__AVX512VL__)
  _mm256_storeu_si256((__m256i *)(void *)y, _mm256_maskz_mov_epi8(m, _mm256_set1_epi8(1)));
#else
  _mm256_storeu_si256((__m256i *)(void *)y, _mm512_cvtepi16_epi8(_mm512_maskz_set1_epi16(m, 1)));
#endif
}
SPK_FN void spk_flags32(uint8_t *y, spk_m32 m) {
#if defined(__AVX512VL__)
  _mm_storeu_si128((__m128i *)(void *)y, _mm_maskz_mov_epi8(m, _mm_set1_epi8(1)));
#else
  _mm_storeu_si128((__m128i *)(void *)y, _mm512_cvtepi32_epi8(_mm512_maskz_set1_epi32(m, 1)));
#endif
}
#else
typedef spk_x16 spk_m16;
typedef spk_x32 spk_m32;
#define SPK_COMPARE(W)                                                                                                     \
  SPK_FN spk_m##W spk_gt##W(spk_x##W a, spk_x##W b) { return (spk_m##W)(a > b); }                                          \
  SPK_FN spk_m##W spk_ge##W(spk_x##W a, spk_x##W b) { return (spk_m##W)(a >= b); }                                         \
  SPK_FN spk_m##W spk_eq##W(spk_x##W a, spk_x##W b) { return (spk_m##W)(a == b); }                                         \
  SPK_FN spk_m##W spk_not##W(spk_m##W m) { return ~m; }                                                                    \
  SPK_FN spk_m##W spk_and##W(spk_m##W a, spk_m##W b) { return a & b; }                                                     \
  SPK_FN spk_m##W spk_or##W(spk_m##W a, spk_m##W b) { return a | b; }                                                      \
  SPK_FN spk_m##W spk_truth##W(int t) { return spk_set##W(t ? -1 : 0); }                                                   \
  SPK_FN spk_x##W spk_select##W(spk_m##W m, spk_x##W a, spk_x##W b) { return (m & a) | (~m & b); }                         \
  SPK_FN spk_x##W spk_unless##W(spk_m##W m, spk_x##W a) { return ~m & a; }                                                 \
  SPK_FN spk_x##W spk_number##W(spk_m##W m) { return (spk_x##W){0} - m; }                                                  \
  SPK_FN void spk_flags##W(uint8_t *y, spk_m##W m) { spk_store##W##_u8(y, (spk_x##W){0} - m); }
SPK_COMPARE(16)
SPK_COMPARE(32)
#if defined(__AVX2__)
#define SPK_LEAST(W, OP) SPK_FN spk_x##W spk_v##OP##W(spk_x##W a, spk_x##W b) { return (spk_x##W)_mm256_##OP##_epi##W((__m256i)a, (__m256i)b); }
SPK_LEAST(16, min)
SPK_LEAST(16, max)
SPK_LEAST(32, min)
SPK_LEAST(32, max)
SPK_FN spk_x32 spk_load32_i16(const void *p) { return (spk_x32)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)p)); }
SPK_FN spk_x32 spk_load32_u16(const void *p) { return (spk_x32)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)); }
SPK_FN void spk_store32_i16(void *p, spk_x32 x) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)x, (__m256i)x), 0xd8);
  _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(packed));
}
#elif defined(__SSE2__)
SPK_FN spk_x16 spk_vmin16(spk_x16 a, spk_x16 b) { return (spk_x16)_mm_min_epi16((__m128i)a, (__m128i)b); }
SPK_FN spk_x16 spk_vmax16(spk_x16 a, spk_x16 b) { return (spk_x16)_mm_max_epi16((__m128i)a, (__m128i)b); }
SPK_FN spk_x32 spk_vmin32(spk_x32 a, spk_x32 b) { return spk_select32(spk_gt32(a, b), b, a); }
SPK_FN spk_x32 spk_vmax32(spk_x32 a, spk_x32 b) { return spk_select32(spk_gt32(a, b), a, b); }
SPK_FN spk_x32 spk_load32_i16(const void *p) {
  const __m128i words = _mm_loadl_epi64((const __m128i *)p);
  return (spk_x32)_mm_srai_epi32(_mm_unpacklo_epi16(words, words), 16);
}
SPK_FN spk_x32 spk_load32_u16(const void *p) {
  return (spk_x32)_mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i *)p), _mm_setzero_si128());
}
SPK_FN void spk_store32_i16(void *p, spk_x32 x) { _mm_storel_epi64((__m128i *)p, _mm_packs_epi32((__m128i)x, (__m128i)x)); }
#else
SPK_FN spk_x16 spk_vmin16(spk_x16 a, spk_x16 b) { return (spk_x16)vminq_s16((int16x8_t)a, (int16x8_t)b); }
SPK_FN spk_x16 spk_vmax16(spk_x16 a, spk_x16 b) { return (spk_x16)vmaxq_s16((int16x8_t)a, (int16x8_t)b); }
SPK_FN spk_x32 spk_vmin32(spk_x32 a, spk_x32 b) { return (spk_x32)vminq_s32((int32x4_t)a, (int32x4_t)b); }
SPK_FN spk_x32 spk_vmax32(spk_x32 a, spk_x32 b) { return (spk_x32)vmaxq_s32((int32x4_t)a, (int32x4_t)b); }
SPK_FN spk_x32 spk_load32_i16(const void *p) { return (spk_x32)vmovl_s16(vld1_s16((const int16_t *)p)); }
SPK_FN spk_x32 spk_load32_u16(const void *p) { return (spk_x32)vmovl_u16(vld1_u16((const uint16_t *)p)); }
SPK_FN void spk_store32_i16(void *p, spk_x32 x) { vst1_s16((int16_t *)p, vmovn_s32((int32x4_t)x)); }
#endif
#endif

#define SPK_DERIVED(W)                                                                                                     \
  SPK_FN spk_m##W spk_lt##W(spk_x##W a, spk_x##W b) { return spk_gt##W(b, a); }                                            \
  SPK_FN spk_m##W spk_le##W(spk_x##W a, spk_x##W b) { return spk_ge##W(b, a); }                                            \
  SPK_FN spk_m##W spk_ne##W(spk_x##W a, spk_x##W b) { return spk_not##W(spk_eq##W(a, b)); }                                \
  SPK_FN spk_x##W spk_vabs##W(spk_x##W a) { return spk_vmax##W(a, spk_neg##W(a)); }
SPK_DERIVED(16)
SPK_DERIVED(32)
#undef SPK_DERIVED

/* Products shifted right, as in spk_int.h: x = h * 2^n + l. */
SPK_FN spk_x32 spk_vmul_sar32(spk_x32 x, spk_x32 k, int n) {
  const spk_x32 l = x & spk_set32((int32_t)(((uint32_t)1 << n) - 1u));
  return (x >> n) * k + spk_vshr32(l * k, n);
}
SPK_FN spk_x32 spk_vmul_rtz32(spk_x32 x, spk_x32 k, int n) {
  const spk_x32 mask = spk_set32((int32_t)(((uint32_t)1 << n) - 1u));
  return (x >> n) * k + spk_vshr32((x & mask) * k + ((x >> 31) & mask), n);
}

/* ------------------------------------------------------------------------------------------------- from lanes to events */
/* Bit i is the truth of neuron i of 64. */
#if defined(__AVX512BW__)
SPK_FN uint64_t spk_bits16(const spk_m16 *m) { return m[0] | (uint64_t)m[1] << 32; }
SPK_FN uint64_t spk_bits32(const spk_m32 *m) {
  return m[0] | (uint64_t)m[1] << 16 | (uint64_t)m[2] << 32 | (uint64_t)m[3] << 48;
}
#elif defined(__AVX2__)
SPK_FN uint32_t spk_half16(spk_x16 a, spk_x16 b) {
  return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16((__m256i)a, (__m256i)b), 0xd8));
}
SPK_FN spk_x16 spk_pair32(spk_x32 a, spk_x32 b) {
  return (spk_x16)_mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)a, (__m256i)b), 0xd8);
}
SPK_FN uint64_t spk_bits16(const spk_m16 *m) { return spk_half16(m[0], m[1]) | (uint64_t)spk_half16(m[2], m[3]) << 32; }
SPK_FN uint64_t spk_bits32(const spk_m32 *m) {
  const uint32_t low = spk_half16(spk_pair32(m[0], m[1]), spk_pair32(m[2], m[3]));
  return low | (uint64_t)spk_half16(spk_pair32(m[4], m[5]), spk_pair32(m[6], m[7])) << 32;
}
#elif defined(__SSE2__)
SPK_FN uint64_t spk_part16(spk_x16 a, spk_x16 b) {
  return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16((__m128i)a, (__m128i)b));
}
SPK_FN spk_x16 spk_pair32(spk_x32 a, spk_x32 b) { return (spk_x16)_mm_packs_epi32((__m128i)a, (__m128i)b); }
SPK_FN uint64_t spk_bits16(const spk_m16 *m) {
  return spk_part16(m[0], m[1]) | spk_part16(m[2], m[3]) << 16 | spk_part16(m[4], m[5]) << 32 | spk_part16(m[6], m[7]) << 48;
}
SPK_FN uint64_t spk_bits32(const spk_m32 *m) {
  spk_x16 pair[8];
  int k;
  SPK_UNROLL for (k = 0; k < 8; k++) { pair[k] = spk_pair32(m[2 * k], m[2 * k + 1]); }
  return spk_bits16(pair);
}
#else
/* Eight bytes of ones or zeros become the bits of a byte: each keeps its own bit, and neighbours are added three times. */
SPK_FN uint64_t spk_weighted(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
  static const uint8_t weight[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t w = vld1q_u8(weight);
#if defined(__aarch64__)
  const uint8x16_t low = vpaddq_u8(vandq_u8(a, w), vandq_u8(b, w)), high = vpaddq_u8(vandq_u8(c, w), vandq_u8(d, w));
  const uint8x16_t both = vpaddq_u8(low, high);
  return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(both, both)), 0);
#else
#define SPK_PADD(x) vpadd_u8(vget_low_u8(vandq_u8(x, w)), vget_high_u8(vandq_u8(x, w)))
  const uint8x8_t low = vpadd_u8(SPK_PADD(a), SPK_PADD(b)), high = vpadd_u8(SPK_PADD(c), SPK_PADD(d));
#undef SPK_PADD
  return vget_lane_u64(vreinterpret_u64_u8(vpadd_u8(low, high)), 0);
#endif
}
#if defined(__aarch64__)
SPK_FN uint8x16_t spk_part16(spk_x16 a, spk_x16 b) { return vuzp1q_u8((uint8x16_t)a, (uint8x16_t)b); }
SPK_FN spk_x16 spk_pair32(spk_x32 a, spk_x32 b) { return (spk_x16)vuzp1q_s16((int16x8_t)a, (int16x8_t)b); }
#else
SPK_FN uint8x16_t spk_part16(spk_x16 a, spk_x16 b) {
  return vcombine_u8(vmovn_u16((uint16x8_t)a), vmovn_u16((uint16x8_t)b));
}
SPK_FN spk_x16 spk_pair32(spk_x32 a, spk_x32 b) {
  return (spk_x16)vcombine_s16(vmovn_s32((int32x4_t)a), vmovn_s32((int32x4_t)b));
}
#endif
SPK_FN uint64_t spk_bits16(const spk_m16 *m) {
  return spk_weighted(spk_part16(m[0], m[1]), spk_part16(m[2], m[3]), spk_part16(m[4], m[5]), spk_part16(m[6], m[7]));
}
SPK_FN uint64_t spk_bits32(const spk_m32 *m) {
  spk_x16 pair[8];
  int k;
  SPK_UNROLL for (k = 0; k < 8; k++) { pair[k] = spk_pair32(m[2 * k], m[2 * k + 1]); }
  return spk_bits16(pair);
}
#endif

/* The bits of neurons `first` to first + 63 as events. Where counting bits is an instruction, four numbers are stored whatever
 * there is, which is free of branches where few fire; the next store overwrites what is too much: `event` needs room for 4
 * more. */
#define SPK_LIST(NAME, INDEX)                                                                                              \
  SPK_FN uint32_t NAME(uint64_t bits, uint32_t first, INDEX *SPK_RESTRICT event, uint32_t count) {                         \
    SPK_LIST_BODY(INDEX)                                                                                                   \
  }
#if defined(__POPCNT__)
#define SPK_LIST_BODY(INDEX)                                                                                               \
  const uint32_t ones = (uint32_t)__builtin_popcountll(bits);                                                              \
  INDEX *to = event + count;                                                                                               \
  uint32_t k;                                                                                                              \
  for (k = 0; k < 4u; k++) {                                                                                               \
    to[k] = (INDEX)(first + (uint32_t)__builtin_ctzll(bits | UINT64_C(1) << 63));                                          \
    bits &= bits - 1u;                                                                                                     \
  }                                                                                                                        \
  for (k = 4; k < ones; k++) {                                                                                             \
    to[k] = (INDEX)(first + (uint32_t)__builtin_ctzll(bits));                                                              \
    bits &= bits - 1u;                                                                                                     \
  }                                                                                                                        \
  return count + ones;
#else
#define SPK_LIST_BODY(INDEX)                                                                                               \
  while (bits != 0) {                                                                                                      \
    event[count++] = (INDEX)(first + (uint32_t)__builtin_ctzll(bits));                                                     \
    bits &= bits - 1u;                                                                                                     \
  }                                                                                                                        \
  return count;
#endif
SPK_LIST(spk_events_u16, uint16_t)
SPK_LIST(spk_events_u32, uint32_t)
#undef SPK_LIST
#undef SPK_LIST_BODY

/* `at` follows `first` in a loop over groups of 64, where a vector of numbers costs less than one made anew. */
#if defined(__AVX512VBMI2__)
typedef __m512i spk_place;
SPK_FN spk_place spk_place_at(uint32_t first) { return _mm512_set1_epi16((short)first); }
SPK_FN spk_place spk_place_next(spk_place at) { return _mm512_add_epi16(at, _mm512_set1_epi16(64)); }
/* The numbers of the true lanes are compressed to the front as bytes, widened and stored: half of them, and the other half where
 * there are as many. What is stored too much the next store overwrites; it stays within the 64. */
SPK_FN uint32_t spk_squeeze(__mmask64 bits, spk_place at, uint16_t *SPK_RESTRICT event, uint32_t count) {
  static const uint8_t lane[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                   22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
                                   44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const __m512i found = _mm512_maskz_compress_epi8(bits, _mm512_loadu_si512((const void *)lane));
  const uint32_t ones = (uint32_t)__builtin_popcountll(bits);
  uint16_t *to = event + count;
  _mm512_storeu_si512((void *)to, _mm512_add_epi16(_mm512_cvtepu8_epi16(_mm512_castsi512_si256(found)), at));
  if (__builtin_expect(ones > 32u, 0)) {
    const __m512i more = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(found, 1));
    _mm512_storeu_si512((void *)(to + 32), _mm512_add_epi16(more, at));
  }
  return count + ones;
}
SPK_FN uint32_t spk_list16_u16(const spk_m16 *m, uint32_t first, spk_place at, uint16_t *SPK_RESTRICT event, uint32_t count) {
  (void)first;
  return spk_squeeze(_mm512_kunpackd(m[1], m[0]), at, event, count);
}
SPK_FN uint32_t spk_list32_u16(const spk_m32 *m, uint32_t first, spk_place at, uint16_t *SPK_RESTRICT event, uint32_t count) {
  (void)first;
  return spk_squeeze(_mm512_kunpackd(_mm512_kunpackw(m[3], m[2]), _mm512_kunpackw(m[1], m[0])), at, event, count);
}
/* The same for the true ones among `n` neurons, at most 63. */
SPK_FN uint32_t spk_some_u16(uint64_t bits, const uint32_t n, uint32_t first, uint16_t *SPK_RESTRICT event, uint32_t count) {
  return spk_squeeze(bits & (((uint64_t)1 << n) - 1u), spk_place_at(first), event, count);
}
#else
SPK_FN uint32_t spk_some_u16(uint64_t bits, const uint32_t n, uint32_t first, uint16_t *SPK_RESTRICT event, uint32_t count) {
  return spk_events_u16(bits & (((uint64_t)1 << n) - 1u), first, event, count);
}
typedef uint32_t spk_place;
SPK_FN spk_place spk_place_at(uint32_t first) { return first; }
SPK_FN spk_place spk_place_next(spk_place at) { return at; }
SPK_FN uint32_t spk_list16_u16(const spk_m16 *m, uint32_t first, spk_place at, uint16_t *SPK_RESTRICT event, uint32_t count) {
  (void)at;
  return spk_events_u16(spk_bits16(m), first, event, count);
}
SPK_FN uint32_t spk_list32_u16(const spk_m32 *m, uint32_t first, spk_place at, uint16_t *SPK_RESTRICT event, uint32_t count) {
  (void)at;
  return spk_events_u16(spk_bits32(m), first, event, count);
}
#endif
SPK_FN uint32_t spk_some_u32(uint64_t bits, const uint32_t n, uint32_t first, uint32_t *SPK_RESTRICT event, uint32_t count) {
  return spk_events_u32(bits & (((uint64_t)1 << n) - 1u), first, event, count);
}
SPK_FN uint32_t spk_list16_u32(const spk_m16 *m, uint32_t first, spk_place at, uint32_t *SPK_RESTRICT event, uint32_t count) {
  (void)at;
  return spk_events_u32(spk_bits16(m), first, event, count);
}
SPK_FN uint32_t spk_list32_u32(const spk_m32 *m, uint32_t first, spk_place at, uint32_t *SPK_RESTRICT event, uint32_t count) {
  (void)at;
  return spk_events_u32(spk_bits32(m), first, event, count);
}
#undef SPK_COMPARE
#undef SPK_LEAST
#undef SPK_FN
#endif
#endif
