/* spk_packed.h - weights of which most are zero, without the zeros: a bit for each row, whether anything is in it, then for those
 * in which there is a bit for each place, every such row from a new byte on; the first is the lowest bit of a byte. And the bytes of
 * the places whose bit is set. spk_init writes them out as whole rows.
 *
 * A zero is not always stored as 0: `even` and `odd` are its bytes at even and odd places of a row. */
#ifndef SPK_PACKED_H
#define SPK_PACKED_H
#include "spk_simd.h"

static void spk_unpack(int8_t *SPK_RESTRICT to, size_t rows, size_t width, size_t stride, const uint8_t *SPK_RESTRICT bits,
                       const int8_t *SPK_RESTRICT weight, int8_t even, int8_t odd) {
  const int8_t zero[2] = {even, odd};
  const uint8_t *used = bits;
  size_t r, o, k;
  bits += (rows + 7u) / 8u;
  for (r = 0; r < rows; r++, to += stride) {
    o = 0;
#if SPK_SIMD && defined(__AVX512VBMI2__)
    if ((used[r / 8u] >> r % 8u & 1) != 0) {
      const __m512i zeros = _mm512_set1_epi16((short)((uint8_t)even | (uint8_t)odd << 8));
      for (; o + 64u <= width; o += 64u, bits += 8) {
        uint64_t there;
        memcpy(&there, bits, sizeof there);
        _mm512_storeu_si512((void *)(to + o), _mm512_mask_expandloadu_epi8(zeros, there, (const void *)weight));
        weight += __builtin_popcountll(there);
      }
    }
#endif
    for (k = o; k + 2u <= stride; k += 2u) { memcpy(to + k, zero, 2); }
    if (k < stride) { to[k] = even; }
    if ((used[r / 8u] >> r % 8u & 1) == 0) { continue; }
#if SPK_SIMD && !defined(__AVX512VBMI2__)
    for (; o + 64u <= width; o += 64u, bits += 8) {
      uint64_t left;
      memcpy(&left, bits, sizeof left);
      for (; left != 0; left &= left - 1u) { to[o + (size_t)__builtin_ctzll(left)] = *weight++; }
    }
#endif
    for (; o < width; o += 8u) {
      uint32_t left = *bits++;
      for (k = o; left != 0; left >>= 1, k++) {
        if ((left & 1u) != 0) { to[k] = *weight++; }
      }
    }
  }
}
#endif
