/* spk_core.h - what every generated network uses: macros, and how a buffer is read through the interface. */
#ifndef SPK_CORE_H
#define SPK_CORE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "spk.h"

#if defined(__GNUC__)
#define SPK_RESTRICT __restrict__
#define SPK_ALIGNED __attribute__((aligned(64)))
#define SPK_UNUSED __attribute__((unused))
#define SPK_PREFETCH(p) __builtin_prefetch(p, 0, 1)
/* What is known about a pointer is forgotten: gcc else splits constant tables into an address for each load. */
#define SPK_OPAQUE(p) __asm__("" : "+r"(p))
#else
#define SPK_RESTRICT
#define SPK_ALIGNED
#define SPK_UNUSED
#define SPK_PREFETCH(p) ((void)(p))
#define SPK_OPAQUE(p) ((void)(p))
#endif

#define SPK_CAT_(a, b) a##b
#define SPK_CAT(a, b) SPK_CAT_(a, b)

/* A sum over little-endian words of 64 bits: any one word that is another gives another sum. */
static SPK_UNUSED uint64_t spk_sum(const unsigned char *bytes, size_t words) {
  uint64_t sum = 0;
  size_t i;
  for (i = 0; i < words; i++) {
    uint64_t z;
    memcpy(&z, bytes + i * 8u, 8);
    z += ((uint64_t)i + 1u) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    sum += z ^ (z >> 31);
  }
  return sum;
}

/* The type of a buffer: 0 and 1 in a byte, a list of the elements that are 1, or as in the interface. */
enum { SPK_FROM_U8 = 16, SPK_FROM_LIST16, SPK_FROM_LIST32 };

/* Where a port or a state lies in the network's memory. A buffer of several steps is a ring: `position` is where the number
 * of the current one is kept. Channels last means that element c * space + s is at s * channels + c; with room around a map,
 * rows of `width` elements are `pitch` apart. For a list, `counts` is where the number of its events is kept, and `pitch`
 * is how many elements a step of the ring has room for. */
typedef struct spk_view {
  size_t offset;
  size_t position;
  size_t counts;
  uint32_t ring;
  uint32_t size;
  uint32_t channels, space; /* 0: in order */
  uint32_t width, pitch;    /* width 0: rows follow each other */
  uint8_t from, to;         /* types */
  uint8_t shift;            /* the value is the number stored * 2^shift */
} spk_view;

static inline size_t spk_width(unsigned type) {
  return type == SPK_I8 || type == SPK_FROM_U8 ? 1u : type == SPK_I16 ? 2u : type == SPK_I32 || type == SPK_F32 ? 4u : 8u;
}

/* The list of a step: how many events there are, and the element of one of them. */
static SPK_UNUSED uint32_t spk_view_slot(const spk_view *view, const void *memory) {
  uint32_t slot = 0;
  if (view->ring > 1) { memcpy(&slot, (const unsigned char *)memory + view->position, sizeof slot); }
  return slot;
}

static SPK_UNUSED uint32_t spk_view_count(const spk_view *view, const void *memory) {
  uint32_t count;
  memcpy(&count, (const unsigned char *)memory + view->counts + spk_view_slot(view, memory) * sizeof count, sizeof count);
  return count;
}

static SPK_UNUSED uint32_t spk_view_event(const spk_view *view, const void *memory, uint32_t number) {
  const size_t at = (size_t)spk_view_slot(view, memory) * view->pitch + number;
  const unsigned char *base = (const unsigned char *)memory + view->offset;
  uint32_t event;
  if (view->from == SPK_FROM_LIST16) {
    uint16_t narrow;
    memcpy(&narrow, base + at * sizeof narrow, sizeof narrow);
    event = narrow;
  } else {
    memcpy(&event, base + at * sizeof event, sizeof event);
  }
  return view->space ? event % view->channels * view->space + event / view->channels : event;
}

/* Memory is read byte-wise, so that no assumption is made about the buffer's declared type. */
#define SPK_COPY(FROM, TO, SCALE)                                                                    \
  do {                                                                                               \
    for (i = 0; i < view->size; i++) {                                                               \
      const uint32_t k = view->space ? i % view->space * view->channels + i / view->space : i;       \
      const uint32_t j = view->width ? k / view->width * view->pitch + k % view->width : k;          \
      FROM value;                                                                                    \
      TO result;                                                                                     \
      memcpy(&value, base + j * sizeof value, sizeof value);                                         \
      result = (TO)(value SCALE);                                                                    \
      memcpy((unsigned char *)out + i * sizeof result, &result, sizeof result);                      \
    }                                                                                                \
  } while (0)
#define SPK_COPY_INT(FROM)                                                                           \
  switch (view->to) {                                                                                \
    case SPK_I8: SPK_COPY(FROM, int8_t, *scale); break;                                              \
    case SPK_I16: SPK_COPY(FROM, int16_t, *scale); break;                                            \
    case SPK_I32: SPK_COPY(FROM, int32_t, *scale); break;                                            \
    case SPK_I64: SPK_COPY(FROM, int64_t, *scale); break;                                            \
    case SPK_F32: SPK_COPY(FROM, float, ); break;                                                    \
    default: SPK_COPY(FROM, double, ); break;                                                        \
  }

static SPK_UNUSED void spk_view_read(const spk_view *view, const void *memory, void *out) {
  const unsigned char *base = (const unsigned char *)memory + view->offset;
  const int64_t scale = (int64_t)1 << view->shift;
  uint32_t slot = 0;
  uint32_t i;
  if (view->from >= SPK_FROM_LIST16) {
    const uint32_t count = spk_view_count(view, memory);
    const size_t width = spk_width(view->to);
    memset(out, 0, view->size * width);
    for (i = 0; i < count; i++) {
      const uint32_t j = spk_view_event(view, memory, i);
      switch (view->to) {
        case SPK_I8: ((int8_t *)out)[j] = 1; break;
        case SPK_I16: ((int16_t *)out)[j] = 1; break;
        case SPK_I32: ((int32_t *)out)[j] = 1; break;
        default: ((int64_t *)out)[j] = 1; break;
      }
    }
    return;
  }
  if (view->ring > 1) {
    memcpy(&slot, (const unsigned char *)memory + view->position, sizeof slot);
    base += (size_t)slot * view->size * spk_width(view->from);
  }
  if (view->space == 0 && view->width == 0 && view->shift == 0 && (view->from == view->to || (view->from == SPK_FROM_U8 && view->to == SPK_I8))) {
    memcpy(out, base, view->size * spk_width(view->from));
    return;
  }
  switch (view->from) {
    case SPK_FROM_U8: SPK_COPY_INT(uint8_t) break;
    case SPK_I8: SPK_COPY_INT(int8_t) break;
    case SPK_I16: SPK_COPY_INT(int16_t) break;
    case SPK_I32: SPK_COPY_INT(int32_t) break;
    case SPK_I64: SPK_COPY_INT(int64_t) break;
    case SPK_F32:
      if (view->to == SPK_F32) { SPK_COPY(float, float, ); } else { SPK_COPY(float, double, ); }
      break;
    default:
      if (view->to == SPK_F32) { SPK_COPY(double, float, ); } else { SPK_COPY(double, double, ); }
      break;
  }
}
#undef SPK_COPY_INT
#undef SPK_COPY

static SPK_UNUSED uint32_t spk_view_events(const spk_view *view, const void *memory, uint32_t *index) {
  const size_t width = spk_width(view->from);
  const unsigned char *base = (const unsigned char *)memory + view->offset;
  uint32_t count = 0;
  uint32_t i;
  if (view->from >= SPK_FROM_LIST16) {
    const uint32_t found = spk_view_count(view, memory);
    uint32_t c;
    if (view->space == 0) {
      for (i = 0; i < found; i++) { index[i] = spk_view_event(view, memory, i); }
      return found;
    }
    /* Events lie channels last; within a channel they rise. */
    for (c = 0; c < view->channels; c++) {
      for (i = 0; i < found; i++) {
        const uint32_t element = spk_view_event(view, memory, i);
        index[count] = element;
        count += element / view->space == c;
        if (count == found) { return count; }
      }
    }
    return count;
  }
  if (view->ring > 1) {
    uint32_t slot;
    memcpy(&slot, (const unsigned char *)memory + view->position, sizeof slot);
    base += (size_t)slot * view->size * width;
  }
  if (width == 1 && view->space == 0) {
    for (i = 0; i < view->size; i++) {
      index[count] = i;
      count += base[i] != 0;
    }
    return count;
  }
  for (i = 0; i < view->size; i++) {
    const uint32_t j = view->space ? i % view->space * view->channels + i / view->space : i;
    uint64_t bits = 0;
    if (view->from == SPK_F32) {
      float value;
      memcpy(&value, base + j * width, width);
      bits = !(value >= 0 && value <= 0);
    } else if (view->from == SPK_F64) {
      double value;
      memcpy(&value, base + j * width, width);
      bits = !(value >= 0 && value <= 0);
    } else {
      memcpy(&bits, base + j * width, width);
    }
    index[count] = i;
    count += bits != 0;
  }
  return count;
}

#endif
