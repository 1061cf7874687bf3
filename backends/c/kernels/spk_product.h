/* spk_product.h - a dense layer of values: sums of weight * x over all inputs. Four inputs at a time, because processors multiply
 * and add bytes in fours (AVX-512 and AVX VNNI, Arm's dot product) or 16-bit numbers in twos (AVX-512, AVX2, SSE2); fours that are
 * zero are left out, so that few values cost little. Included once for each layer.
 *
 * SPK_NAME    name of the function
 * SPK_ACC     type of an accumulator, int16_t or int32_t: the compiler of the network has proven that no sum leaves it, and all
 *             here is modulo 2^32
 * SPK_X       type of a value; SPK_BYTE 1 if values are 0 to 255, 2 if they are -128 to 127, 3 if both (0 to 127), else 0 and they fit
 *             int16_t
 * SPK_IN      inputs; SPK_OUT outputs
 * SPK_FRESH   1 if what stands in the accumulators before is no matter
 * SPK_RAISED  1 if weights are stored with 128 added; then 128 times the sum of the values is taken off
 *
 * `weight` is int8_t, [inputs / 4][outputs][4], inputs rounded up to a multiple of 4 with zeros and outputs to one of 16; `own` has
 * room for the inputs, rounded up, and `list` for a quarter of them. Returns how many inputs were multiplied. */
#include "spk_multiply.h"
#define SPK_FOURS ((SPK_IN + 3u) / 4u)
#define SPK_ROOM ((SPK_OUT + 15u) / 16u * 16u)
/* SPK_AS_BYTES: the processor multiplies these bytes by those; 1: values without sign by weights with one, 2: the other way
 * round, 3: both with sign. */
#if SPK_MULTIPLY == 2 && (SPK_BYTE & 1) != 0 && !SPK_RAISED
#define SPK_AS_BYTES 1
#elif SPK_MULTIPLY == 2 && SPK_BYTE == 2 && SPK_RAISED
#define SPK_AS_BYTES 2
#elif SPK_MULTIPLY == 3 && (SPK_BYTE & 2) != 0 && !SPK_RAISED
#define SPK_AS_BYTES 3
#else
#define SPK_AS_BYTES 0
#endif

static uint32_t SPK_NAME(SPK_ACC *SPK_RESTRICT acc, const int8_t *SPK_RESTRICT weight, const SPK_X *SPK_RESTRICT x,
                         int16_t *SPK_RESTRICT own, uint16_t *SPK_RESTRICT list) {
  uint32_t n = 0, all = 0, g, o;
  for (g = 0; SPK_RAISED && g < SPK_IN; g++) {
    const int32_t value = x[g];
    all += (uint32_t)value;
  }
#if SPK_AS_BYTES
  for (g = 0; g < SPK_IN; g++) { ((unsigned char *)own)[g] = (unsigned char)x[g]; }
  for (; g < SPK_FOURS * 4u; g++) { ((unsigned char *)own)[g] = 0; }
  for (g = 0; g < SPK_FOURS; g++) {
    uint32_t four;
    memcpy(&four, (const unsigned char *)own + 4u * g, sizeof four);
    list[n] = (uint16_t)g;
    n += four != 0;
  }
#else
  for (g = 0; g < SPK_IN; g++) { own[g] = (int16_t)x[g]; }
  for (; g < SPK_FOURS * 4u; g++) { own[g] = 0; }
  for (g = 0; g < SPK_FOURS; g++) {
    uint64_t four;
    memcpy(&four, own + 4u * g, sizeof four);
    list[n] = (uint16_t)g;
    n += four != 0;
  }
#endif
  for (o = 0; o < SPK_ROOM; o += SPK_OUTS) {
    uint32_t sum[SPK_OUTS];
    const uint32_t end = SPK_OUT - o < SPK_OUTS ? SPK_OUT - o : SPK_OUTS;
    uint32_t k;
    spk_multiply(sum, weight + o * 4u, SPK_ROOM * 4u, own, list, n, SPK_ROOM - o, SPK_AS_BYTES, SPK_RAISED);
    for (k = 0; k < end; k++) { acc[o + k] = (SPK_ACC)((SPK_FRESH ? 0u : (uint32_t)acc[o + k]) + sum[k] - 128u * all); }
  }
  return n * 4u;
}
#undef SPK_FOURS
#undef SPK_ROOM
#undef SPK_AS_BYTES
#undef SPK_NAME
#undef SPK_ACC
#undef SPK_WEIGHT
#undef SPK_INDEX
#undef SPK_X
#undef SPK_PRODUCT
#undef SPK_BYTE
#undef SPK_IN
#undef SPK_OUT
#undef SPK_FRESH
#undef SPK_RAISED
