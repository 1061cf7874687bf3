/* spk_float.h - floating-point operations of neuron programs, without libm and bit for bit as IEEE 754 has them. */
#ifndef SPK_FLOAT_H
#define SPK_FLOAT_H

#include <float.h>
#include <math.h> /* INFINITY and NAN; no function is called */
#include <stdint.h>

#if defined(__FAST_MATH__)
#error "this network must be compiled without -ffast-math"
#endif
typedef char spk_check_float[FLT_EVAL_METHOD == 0 && FLT_MANT_DIG == 24 && DBL_MANT_DIG == 53 ? 1 : -1];

/* Adding 2^23 (2^52) and taking it away again rounds to the nearest whole number, halves to even. */
#define SPK_DEFINE_FLOAT(S, T, BIG)                                                                                \
  static inline T spk_abs##S(T x) { return x < 0 ? -x : x + 0; }                                                   \
  /* the first if it is smaller or not a number, as NumPy */                                                       \
  static inline T spk_min##S(T a, T b) { return (a < b || a != a) ? a : b; }                                       \
  static inline T spk_max##S(T a, T b) { return (a > b || a != a) ? a : b; }                                       \
  static inline T spk_round##S(T x) {                                                                              \
    const T a = x < 0 ? -x : x;                                                                                    \
    const T r = (a + BIG) - BIG;                                                                                   \
    return !(a < BIG) || a == 0 ? x : x < 0 ? -r : r;                                                              \
  }                                                                                                                \
  static inline T spk_floor##S(T x) {                                                                              \
    const T r = spk_round##S(x);                                                                                   \
    return r > x ? r - 1 : r;                                                                                      \
  }                                                                                                                \
  /* a mod m for a >= 0, m > 0, both finite: exact, by long division in binary */                                  \
  static inline T spk_fmod##S(T a, T m) {                                                                          \
    while (a >= m) {                                                                                               \
      T d = m;                                                                                                     \
      while (d <= a / 2) { d += d; }                                                                               \
      a -= d;                                                                                                      \
    }                                                                                                              \
    return a;                                                                                                      \
  }                                                                                                                \
  /* the remainder with the sign of the divisor, as NumPy */                                                       \
  static inline T spk_rem##S(T a, T b) {                                                                           \
    const T m = b < 0 ? -b : b;                                                                                    \
    T r;                                                                                                           \
    if (!(m > 0) || a - a != 0) { return (T)NAN; }                                                                 \
    if (b - b != 0) { return (a < 0) == (b < 0) || a == 0 ? a : b; }                                               \
    r = a < 0 ? -spk_fmod##S(-a, m) : spk_fmod##S(a, m);                                                           \
    return (r < 0 || r > 0) ? ((r < 0) != (b < 0) ? r + b : r) : 0;                                                \
  }                                                                                                                \
  /* comparisons as functions, so that a comparison with itself is no mistake */                                   \
  static inline int spk_eq##S(T a, T b) { return a == b; }                                                         \
  static inline int spk_ne##S(T a, T b) { return a != b; }
SPK_DEFINE_FLOAT(f, float, 0x1p23f)
SPK_DEFINE_FLOAT(d, double, 0x1p52)
#undef SPK_DEFINE_FLOAT

#endif
