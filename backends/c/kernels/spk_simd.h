/* spk_simd.h - vectors of the width that the machine has, from the compiler's own vector types, so that one text serves
 * AVX-512, AVX2, SSE2 and NEON. SPK_SIMD is 0 where the compiler has none; every kernel has plain C99 beside it, with the
 * same result to the bit. */
#ifndef SPK_SIMD_H
#define SPK_SIMD_H

#if defined(SPK_NO_SIMD) || !defined(__GNUC__) || (!defined(__clang__) && __GNUC__ < 9)
#define SPK_SIMD 0
#elif defined(__AVX512BW__)
#define SPK_SIMD 64 /* bytes of a vector */
#define SPK_SIMD_BLOCK 16 /* vectors of accumulators that stay in registers */
#elif defined(__AVX2__)
#define SPK_SIMD 32
#define SPK_SIMD_BLOCK 8
#elif defined(__aarch64__)
#define SPK_SIMD 16
#define SPK_SIMD_BLOCK 16
#elif defined(__SSE2__) || defined(__ARM_NEON)
#define SPK_SIMD 16
#define SPK_SIMD_BLOCK 8
#else
#define SPK_SIMD 0
#endif

#if defined(__GNUC__)
#define SPK_INLINE_ANY static inline __attribute__((always_inline))
#else
#define SPK_INLINE_ANY static
#endif

#if SPK_SIMD
typedef int8_t spk_v8 __attribute__((vector_size(SPK_SIMD / 2)));
typedef int16_t spk_v16 __attribute__((vector_size(SPK_SIMD)));
#define SPK_LANES (SPK_SIMD / 2)
#define SPK_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define SPK_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SPK_UNROLL _Pragma("GCC unroll 16")
#endif

/* acc[0 .. n * SPK_LANES) += the rows of all events, n a constant: the accumulators are read and written once. Eight-bit
 * weights. */
SPK_INLINE void spk_rows_v16(int16_t *SPK_RESTRICT acc, const int8_t *SPK_RESTRICT weight, size_t stride,
                             const uint16_t *SPK_RESTRICT event, uint32_t count, const uint32_t n) {
  spk_v16 sum[SPK_SIMD_BLOCK];
  uint32_t e, j;
  SPK_UNROLL for (j = 0; j < n; j++) { memcpy(&sum[j], acc + j * SPK_LANES, sizeof sum[j]); }
  for (e = 0; e < count; e++) {
    const int8_t *row = weight + event[e] * stride;
    SPK_UNROLL for (j = 0; j < n; j++) {
      spk_v8 w;
      memcpy(&w, row + j * SPK_LANES, sizeof w);
      sum[j] += __builtin_convertvector(w, spk_v16);
    }
  }
  SPK_UNROLL for (j = 0; j < n; j++) { memcpy(acc + j * SPK_LANES, &sum[j], sizeof sum[j]); }
}

/* The same for sixteen outputs: the narrowest row there is. */
typedef int8_t spk_w8 __attribute__((vector_size(16)));
typedef int16_t spk_w16 __attribute__((vector_size(32)));
SPK_INLINE void spk_rows_16(int16_t *SPK_RESTRICT acc, const int8_t *SPK_RESTRICT weight, size_t stride,
                            const uint16_t *SPK_RESTRICT event, uint32_t count) {
  spk_w16 sum;
  uint32_t e;
  memcpy(&sum, acc, sizeof sum);
  for (e = 0; e < count; e++) {
    spk_w8 w;
    memcpy(&w, weight + event[e] * stride, sizeof w);
    sum += __builtin_convertvector(w, spk_w16);
  }
  memcpy(acc, &sum, sizeof sum);
}
#endif

#endif
