/* api.c - fuzzes the interface of spk.h: what a program may do wrong gives a status code, and never touches memory.
 *
 * The input chooses a network and then one call after the other: steps with events in and out of range, in and out of order,
 * repeated, too many or claimed to be too many; arrays with values in and out of bounds; reads of any port, state and counter; and
 * damage to the weights, which spk_check has to find. All that a network is given lies in blocks of exactly its size, so that the
 * address sanitizer sees any byte beyond. After an error nothing may have changed. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "spk.h"

extern const spk_model *const fuzz_models[];
extern const unsigned fuzz_models_count;
extern unsigned char *const fuzz_weights;
extern const size_t fuzz_weights_size;
extern const unsigned fuzz_weights_model; /* which network they belong to */

typedef struct source {
  const uint8_t *at;
  size_t left;
} source;

static unsigned take(source *s) {
  if (s->left == 0) { return 0; }
  s->left--;
  return *s->at++;
}

static uint32_t take4(source *s) {
  uint32_t value = take(s);
  value |= (uint32_t)take(s) << 8;
  value |= (uint32_t)take(s) << 16;
  return value | (uint32_t)take(s) << 24;
}

static size_t width(unsigned type) {
  return type == SPK_I8 ? 1u : type == SPK_I16 ? 2u : type == SPK_I32 || type == SPK_F32 ? 4u : 8u;
}

static void need(int condition) {
  if (!condition) { abort(); }
}

/* Events or an array for one input; *index and *value are to be freed. */
static void fill(source *s, const spk_port *p, spk_in *in, uint32_t **index, uint8_t **value) {
  const unsigned kind = take(s);
  uint32_t count = 0, i, last = 0;
  *index = NULL;
  *value = NULL;
  if (kind % 4u == 0) { /* silence */
  } else if (kind % 4u == 1u) {
    count = p->size;
  } else {
    count = take(s) % 64u;
    if (kind & 16u) { count = take4(s) % (p->size + 3u); }
    *index = (uint32_t *)malloc((count ? count : 1u) * sizeof **index);
    need(*index != NULL);
    for (i = 0; i < count; i++) {
      const unsigned step = take(s);
      /* Mostly rising, sometimes anything. */
      last = step == 255u ? take4(s) : last + step % 32u + (kind & 32u ? 0u : 1u);
      (*index)[i] = (i == 0 && step != 255u) ? last - 1u : last;
    }
  }
  if (count != 0 && (kind % 4u == 1u || kind & 64u)) {
    const size_t bytes = count * width(p->type);
    *value = (uint8_t *)malloc(bytes);
    need(*value != NULL);
    for (i = 0; i < bytes; i++) { (*value)[i] = (uint8_t)(kind & 8u ? take(s) : i % width(p->type) == 0 ? take(s) & 1u : 0u); }
    /* Floating-point networks take any number that is one. */
    if (p->type == SPK_F32) {
      for (i = 0; i < count; i++) {
        float f;
        memcpy(&f, *value + i * 4u, 4);
        f = f > -1e6f && f < 1e6f ? f : 0.0f;
        memcpy(*value + i * 4u, &f, 4);
      }
    }
  }
  in->index = *index;
  in->value = *value;
  /* A claim beyond the input's size has to be refused before anything is read. */
  in->count = kind & 128u && *index != NULL ? p->size + 1u + take4(s) % (UINT32_MAX - p->size) : count;
}

static void one_step(source *s, const spk_model *m, spk_net *net, const unsigned char *memory, size_t bytes) {
  spk_in in[4];
  uint32_t *index[4], k;
  uint8_t *value[4];
  unsigned char *before = (unsigned char *)malloc(bytes);
  spk_status status;
  need(before != NULL && m->inputs <= 4u);
  memset(in, 0, sizeof in);
  for (k = 0; k < m->inputs; k++) { fill(s, &m->input[k], &in[k], &index[k], &value[k]); }
  memcpy(before, memory, bytes);
  status = m->step(net, in);
  need((unsigned)status < SPK_STATUS_COUNT);
  if (status != SPK_OK) { need(memcmp(before, memory, bytes) == 0); }
  for (k = 0; k < m->inputs; k++) {
    int bad = in[k].index != NULL && in[k].count > m->input[k].size;
    uint32_t i;
    for (i = 0; in[k].index != NULL && !bad && i < in[k].count; i++) {
      bad = in[k].index[i] >= m->input[k].size || (i > 0 && in[k].index[i] <= in[k].index[i - 1u]);
    }
    if (bad) { need(status != SPK_OK); }
    free(index[k]);
    free(value[k]);
  }
  free(before);
}

static void one_read(source *s, const spk_model *m, const spk_net *net) {
  const unsigned what = take(s) % 4u;
  const uint32_t number = take(s) % 8u == 7u ? take4(s) : take(s) % 16u;
  const spk_port *p = what == 2u ? (number < m->states ? &m->state[number] : NULL) : number < m->ports ? &m->port[number] : NULL;
  spk_status status;
  if (what == 3u) {
    uint64_t count = 0;
    status = m->read_counter(net, number, &count);
    need(status == (number < m->counters ? SPK_OK : SPK_E_PORT));
  } else if (what == 1u) {
    uint32_t *index = (uint32_t *)malloc((p != NULL ? p->size : 1u) * sizeof *index), count = 0, i;
    need(index != NULL);
    status = m->read_events(net, number, index, &count);
    need(status == (p != NULL ? SPK_OK : SPK_E_PORT));
    if (p != NULL) {
      need(count <= p->size);
      for (i = 0; i < count; i++) { need(index[i] < p->size && (i == 0 || index[i] > index[i - 1u])); }
    }
    free(index);
  } else {
    void *values = malloc(p != NULL ? p->size * width(p->type) : 1u);
    need(values != NULL);
    status = what == 2u ? m->read_state(net, number, values) : m->read(net, number, values);
    need(status == (p != NULL ? SPK_OK : SPK_E_PORT));
    free(values);
  }
}

/* What the weights are overwritten with, and back again. */
static void damage(source *s) {
  const spk_model *m = fuzz_models[fuzz_weights_model];
  const size_t at = take4(s) % fuzz_weights_size;
  const size_t most = fuzz_weights_size - at;
  const size_t length = (take(s) & 1u ? take4(s) : take(s)) % most;
  unsigned char *good = (unsigned char *)malloc(length + 1u);
  size_t i;
  need(good != NULL);
  memcpy(good, fuzz_weights + at, length);
  for (i = 0; i < length; i++) { fuzz_weights[at + i] = (unsigned char)(s->left ? take(s) : 0u); } /* cut off: zeros */
  need((m->check() == SPK_OK) == (memcmp(good, fuzz_weights + at, length) == 0));
  memcpy(fuzz_weights + at, good, length);
  free(good);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  source s = {data, size};
  const spk_model *m = fuzz_models[take(&s) % fuzz_models_count];
  const size_t bytes = m->size(), offset = take(&s) % 64u;
  unsigned char *whole = (unsigned char *)malloc(bytes + offset);
  unsigned calls = 0;
  spk_net *net = NULL;
  need(whole != NULL);
  need(m->init(whole + offset, bytes - 1u, &net) == SPK_E_MEMORY && m->init(NULL, bytes, &net) == SPK_E_MEMORY);
  need(m->init(whole + offset, bytes, &net) == SPK_OK && m->check() == SPK_OK);
  while (s.left != 0 && calls++ < 400u) {
    const unsigned call = take(&s) % 16u;
    if (call == 0) {
      m->reset(net);
    } else if (call == 1u) {
      damage(&s);
    } else if (call < 6u) {
      one_read(&s, m, net);
    } else {
      one_step(&s, m, net, whole + offset, bytes);
    }
  }
  free(whole);
  return 0;
}
