/* spk_int.h - integer operations of neuron programs, defined for every operand that can occur.
 *
 * C99 leaves a right shift of a negative number to the implementation, and a left shift of one, or an overflow, undefined.
 * Here `>>` is a floor, `rtz` a shift toward zero, and nothing overflows as long as the result fits its type, which the
 * compiler of the network has proven. */
#ifndef SPK_INT_H
#define SPK_INT_H

#include <stdint.h>

typedef char spk_check_int[sizeof(int) >= 4 ? 1 : -1];
typedef char spk_check_twos_complement[(-1 & 3) == 3 ? 1 : -1];

#define SPK_DEFINE_INT(N, T, U)                                                                                    \
  /* floor(x / 2^n), 0 <= n < N */                                                                                 \
  static inline T spk_sar##N(T x, int n) {                                                                         \
    return ((T)-1 >> 1) == (T)-1 ? (T)(x >> n) : x < 0 ? (T)~(T)(~x >> n) : (T)(x >> n);                           \
  }                                                                                                                \
  /* sign(x) * (|x| >> n), 0 <= n < N */                                                                           \
  static inline T spk_rtz##N(T x, int n) {                                                                         \
    return x < 0 ? (T) - (T)(((U)0 - (U)x) >> n) : (T)((U)x >> n);                                                 \
  }                                                                                                                \
  /* x * 2^n where the result fits */                                                                              \
  static inline T spk_shl##N(T x, int n) { return (T)(x * ((T)1 << n)); }                                          \
  /* two's complement of n bits, 2 <= n < N */                                                                     \
  static inline T spk_wrap##N(T x, int n) {                                                                        \
    const U half = (U)1 << (n - 1);                                                                                \
    return (T)((T)(((U)x + half) & (half + (half - 1u))) - (T)half);                                               \
  }                                                                                                                \
  static inline T spk_min##N(T a, T b) { return a < b ? a : b; }                                                   \
  static inline T spk_max##N(T a, T b) { return a > b ? a : b; }                                                   \
  /* |x| where the result fits */                                                                                  \
  static inline T spk_abs##N(T x) { return x < 0 ? (T)-x : x; }                                                    \
  /* to -limit ... limit */                                                                                        \
  static inline T spk_clip##N(T x, T limit) { return x < -limit ? (T)-limit : x > limit ? limit : x; }             \
  /* the remainder with the sign of the divisor; 0 for a divisor of 0 */                                           \
  static inline T spk_rem##N(T a, T b) {                                                                           \
    const T r = (b == 0 || b == -1) ? 0 : (T)(a % b);                                                              \
    return (r != 0 && (r < 0) != (b < 0)) ? (T)(r + b) : r;                                                        \
  }
SPK_DEFINE_INT(32, int32_t, uint32_t)
SPK_DEFINE_INT(64, int64_t, uint64_t)
#undef SPK_DEFINE_INT

/* To -limit ... limit, in 16 bits. */
static inline int16_t spk_min16(int16_t a, int16_t b) { return a < b ? a : b; }
static inline int16_t spk_max16(int16_t a, int16_t b) { return a > b ? a : b; }
static inline int16_t spk_clip16(int16_t x, int16_t limit) {
  return x < -limit ? (int16_t)-limit : x > limit ? limit : x;
}

/* rtz(x * k, n) and floor(x * k / 2^n) without a 64-bit product. Exact for k >= 0 if (2^n - 1) * k < 2^32 and the result
 * fits: x = h * 2^n + l gives x * k / 2^n = h * k + l * k / 2^n, where h * k is whole. */
static inline int32_t spk_mul_rtz32(int32_t x, int32_t k, int n) {
  const uint32_t a = x < 0 ? (uint32_t)0 - (uint32_t)x : (uint32_t)x;
  const uint32_t mask = ((uint32_t)1 << n) - 1u;
  const int32_t r = (int32_t)((a >> n) * (uint32_t)k + (((a & mask) * (uint32_t)k) >> n));
  return x < 0 ? -r : r;
}

static inline int32_t spk_mul_sar32(int32_t x, int32_t k, int n) {
  const uint32_t mask = ((uint32_t)1 << n) - 1u;
  return spk_sar32(x, n) * k + (int32_t)((((uint32_t)x & mask) * (uint32_t)k) >> n);
}

#endif
