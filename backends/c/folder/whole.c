/* whole.c - the samples of a file of text in one call of spk_offline for all of the same length, and what it recorded. */
#include "whole.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "network.h"
#include "offline.h"

/* Samples of the same number of steps: their numbers begin at `sample`. */
typedef struct group {
  unsigned long sample;
  uint32_t samples, steps;
  unsigned char **record, **state;
} group;

static const spk_model *const model = &spk_network;
static spk_in *rows;       /* model->inputs of every step */
static size_t *first;      /* the first step of every sample, and behind the last */
static group *groups;
static unsigned char *wanted; /* ports, then states */
static size_t steps, samples, number_of_groups;

static size_t width(unsigned type) {
  return type == SPK_I8 ? 1u : type == SPK_I16 ? 2u : type == SPK_I32 || type == SPK_F32 ? 4u : 8u;
}

static void *need(void *p) {
  if (p == NULL) {
    fprintf(stderr, "out of memory\n");
    exit(1);
  }
  return p;
}

static void *grown(void *p, size_t count, size_t size) { return need(realloc(p, (count > 0 ? count : 1) * size)); }

static void *copied(const void *from, size_t size) { return memcpy(need(malloc(size > 0 ? size : 1)), from, size); }

/* Steps by which the last port or state trails: a sample is so much longer in the file. */
static uint32_t lag(void) {
  uint32_t k, most = 0;
  for (k = 0; k < model->ports; k++) { most = model->port[k].lag > most ? model->port[k].lag : most; }
  for (k = 0; k < model->states; k++) { most = model->state[k].lag > most ? model->state[k].lag : most; }
  return most;
}

void whole_sample(void) {
  first = grown(first, samples + 2, sizeof *first);
  first[samples++] = steps;
  first[samples] = steps;
}

void whole_step(const spk_in *in) {
  uint32_t k;
  rows = grown(rows, (steps + 1) * model->inputs, sizeof *rows);
  for (k = 0; k < model->inputs; k++) {
    spk_in *const row = rows + steps * model->inputs + k;
    *row = in[k];
    if (in[k].index == NULL) { continue; }
    row->index = copied(in[k].index, in[k].count * sizeof *in[k].index);
    row->value = copied(in[k].value, in[k].count * width(model->input[k].type));
  }
  steps++;
  first[samples] = steps;
}

void whole_want(int is_state, uint32_t number) {
  if (wanted == NULL) { wanted = need(calloc(model->ports + model->states + 1u, 1)); }
  wanted[number + (is_state ? model->ports : 0)] = 1;
}

/* Run one group. */
static const char *run(group *g) {
  const uint32_t trail = lag();
  uint32_t *port = need(calloc(model->ports + 1u, sizeof *port));
  void **record = need(calloc(model->ports + 1u, sizeof *record));
  void **state = need(calloc(model->states + 1u, sizeof *state));
  spk_in *in = need(calloc((size_t)g->samples * g->steps * model->inputs + 1u, sizeof *in));
  unsigned char *memory = need(malloc(SPK_OFFLINE_BYTES));
  spk_whole out;
  spk_status status;
  uint32_t s, t, k;
  const char *wrong = NULL;
  out.records = 0;
  g->record = need(calloc(model->ports + 1u, sizeof *g->record));
  g->state = need(calloc(model->states + 1u, sizeof *g->state));
  for (k = 0; k < model->ports; k++) {
    if (wanted == NULL || !wanted[k]) { continue; }
    g->record[k] = need(malloc((size_t)g->samples * g->steps * model->port[k].size * width(model->port[k].type) + 1u));
    record[out.records] = g->record[k];
    port[out.records++] = k;
  }
  for (k = 0; k < model->states; k++) {
    if (wanted == NULL || !wanted[model->ports + k]) { continue; }
    g->state[k] = need(malloc((size_t)g->samples * model->state[k].size * width(model->state[k].type) + 1u));
    state[k] = g->state[k];
  }
  for (s = 0; s < g->samples; s++) {
    const spk_in *const from = rows + first[g->sample + s] * model->inputs;
    memcpy(in + (size_t)s * g->steps * model->inputs, from, (size_t)g->steps * model->inputs * sizeof *in);
    for (t = g->steps; t < g->steps + (g->steps > 0 ? trail : 0); t++) {
      for (k = 0; k < model->inputs; k++) {
        if (from[(size_t)t * model->inputs + k].index != NULL) { wrong = "a sample has input in the steps by which outputs trail"; }
      }
    }
  }
  out.port = port;
  out.record = record;
  out.state = state;
  out.counter = NULL;
  status = spk_offline(memory, SPK_OFFLINE_BYTES, g->samples, g->steps, in, &out);
  if (status != SPK_OK) { wrong = "spk_offline refuses the samples"; }
  free(memory);
  free(in);
  free(state);
  free(record);
  free(port);
  return wrong;
}

const char *whole_run(void) {
  const uint32_t trail = lag();
  size_t s;
  for (s = 0; s < samples; s++) {
    const size_t length = first[s + 1] - first[s];
    if (length > 0 && length <= trail) { return "a sample is shorter than its outputs trail"; }
    if (s > 0 && length == first[s] - first[s - 1]) {
      groups[number_of_groups - 1].samples++;
      continue;
    }
    groups = grown(groups, number_of_groups + 1, sizeof *groups);
    memset(groups + number_of_groups, 0, sizeof *groups);
    groups[number_of_groups].sample = (unsigned long)s;
    groups[number_of_groups].samples = 1;
    groups[number_of_groups++].steps = (uint32_t)(length > 0 ? length - trail : 0);
  }
  for (s = 0; s < number_of_groups; s++) {
    const char *const wrong = run(groups + s);
    if (wrong != NULL) { return wrong; }
  }
  return NULL;
}

const char *whole_read(int is_state, uint32_t number, unsigned long sample, unsigned long step, void *values) {
  const spk_port *const p = is_state ? &model->state[number] : &model->port[number];
  const size_t row = p->size * width(p->type);
  const group *g = groups;
  while (sample >= g->sample + g->samples) { g++; }
  if (step < p->lag || step - p->lag >= g->steps) { return "a port or a state is compared before its first step or after its last"; }
  if (is_state && step - p->lag + 1 != g->steps) { return "offline mode has states as the last step leaves them only"; }
  if (is_state) {
    memcpy(values, g->state[number] + (sample - g->sample) * row, row);
  } else {
    memcpy(values, g->record[number] + ((size_t)(sample - g->sample) * g->steps + (step - p->lag)) * row, row);
  }
  return NULL;
}

const char *whole_way(void) { return spk_offline_tiles() ? "offline, by blocks of steps: " : "offline, step by step: "; }

void whole_free(void) {
  size_t s;
  uint32_t k;
  for (s = 0; s < steps * model->inputs; s++) {
    union { const void *from; void *to; } index, value; /* both are our own copies, or NULL */
    index.from = rows[s].index;
    value.from = rows[s].value;
    free(index.to);
    free(value.to);
  }
  for (s = 0; s < number_of_groups; s++) {
    for (k = 0; k < model->ports; k++) { free(groups[s].record[k]); }
    for (k = 0; k < model->states; k++) { free(groups[s].state[k]); }
    free(groups[s].record);
    free(groups[s].state);
  }
  free(groups);
  free(wanted);
  free(first);
  free(rows);
}
