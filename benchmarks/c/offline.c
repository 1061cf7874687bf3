/* offline.c - whole samples at once against one step at a time, for a generated network on recorded events.
 *
 *     ./offline events.bin rounds
 *
 * events.bin as in harness.c. Groups of four samples take turns: offline on one core, one step at a time on one core, offline in
 * two threads. Prints the microseconds of a sample for each of the three, the least of all rounds for every group, and "same 1" if
 * all three gave the same spikes. With -DPHASES, and phases.h in front of the network's offline.c, instead the microseconds that each
 * layer of offline mode takes, of the quickest run of every group. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "network.h"
#include "offline.h"
#include "spk.h"

enum { GROUP = 4, MOST = 4096 };

static double now(void);

#if defined(PHASES)
#include "phases.h"
enum { NAMES = 64 };
static const char *phase[NAMES];
static double spent[NAMES], begun;
static unsigned phases;
void phase_note(const char *name) {
  const double time = now();
  unsigned k = 0;
  while (k < phases && strcmp(phase[k], name) != 0) { k++; }
  if (k == phases && phases < NAMES) { phase[phases++] = name; }
  if (k < NAMES) { spent[k] += time - begun; }
  begun = now();
}
#endif

typedef struct work {
  const spk_in *in;
  signed char *record;
  uint32_t samples, steps;
  unsigned char *memory;
  spk_status status;
} work;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void *need(void *p) {
  if (p == NULL) { fprintf(stderr, "offline: out of memory\n"); exit(1); }
  return p;
}

static void *run(void *argument) {
  work *const w = argument;
  const uint32_t port = 0;
  void *const record = w->record;
  const spk_whole whole = {1, &port, &record, NULL, NULL};
  w->status = spk_offline(w->memory, SPK_OFFLINE_BYTES, w->samples, w->steps, w->in, &whole);
  return NULL;
}

int main(int argc, char **argv) {
  static double best[3][MOST];
  int32_t head[4];
  FILE *const file = argc == 3 ? fopen(argv[1], "rb") : NULL;
  const uint32_t size = spk_network.port[0].size;
  int32_t *ptr;
  uint16_t *narrow;
  uint32_t *index;
  signed char *record[3];
  unsigned char *memory[2], *room;
  spk_in *in;
  spk_net *net = NULL;
  double sum[3] = {0, 0, 0};
  size_t rows, i, bytes;
  uint32_t samples, steps, s, t, group, k;
  int r;
  if (file == NULL || fread(head, 4, 4, file) != 4) { fprintf(stderr, "usage: offline events.bin rounds\n"); return 2; }
  steps = (uint32_t)head[0];
  samples = (uint32_t)head[1];
  rows = (size_t)steps * samples;
  bytes = rows * size;
  ptr = need(malloc((rows + 1) * sizeof *ptr));
  narrow = need(malloc(((size_t)head[3] + 1) * sizeof *narrow));
  index = need(malloc(((size_t)head[3] + 1) * sizeof *index));
  in = need(calloc(rows, sizeof *in));
  if (fread(ptr, sizeof *ptr, rows + 1, file) != rows + 1 || fread(narrow, sizeof *narrow, (size_t)head[3], file) != (size_t)head[3]) {
    fprintf(stderr, "offline: %s is too short\n", argv[1]);
    return 1;
  }
  fclose(file);
  for (i = 0; i < (size_t)head[3]; i++) { index[i] = narrow[i]; }
  for (i = 0; i < rows; i++) {
    in[i].index = index + ptr[i];
    in[i].count = (uint32_t)(ptr[i + 1] - ptr[i]);
  }
  for (k = 0; k < 3; k++) { record[k] = need(calloc(bytes, 1)); }
  for (k = 0; k < 2; k++) { memory[k] = need(malloc(SPK_OFFLINE_BYTES)); }
  room = need(malloc(SPK_BYTES));
  if (samples > MOST || spk_init(room, SPK_BYTES, &net) != SPK_OK) { return 1; }
#if defined(PHASES)
  {
    static double least[NAMES];
    double all = 0;
    uint32_t done = 0;
    for (group = 0; group < samples; group += GROUP) {
      const uint32_t count = samples - group < GROUP ? samples - group : GROUP;
      const size_t at = (size_t)group * steps;
      work one = {in + at, record[0] + at * size, count, steps, memory[0], SPK_OK};
      double best_all = 0, best_each[NAMES];
      memset(best_each, 0, sizeof best_each);
      for (r = 0; r < atoi(argv[2]); r++) {
        double time;
        memset(spent, 0, sizeof spent);
        time = begun = now();
        run(&one);
        time = now() - time;
        if (r > 0 && time >= best_all) { continue; }
        best_all = time;
        memcpy(best_each, spent, sizeof spent);
      }
      for (k = 0; k < NAMES; k++) { least[k] += best_each[k]; }
      all += best_all;
      done += count;
    }
    for (k = 0; k < phases; k++) { printf("%s %.2f\n", phase[k], least[k] / done); }
    printf("all %.2f\n", all / done);
    return 0;
  }
#endif
  for (r = 0; r < atoi(argv[2]); r++) {
    for (group = 0; group < samples; group += GROUP) {
      const uint32_t count = samples - group < GROUP ? samples - group : GROUP;
      const size_t first = (size_t)group * steps;
      double begin = now(), time;
      work one = {in + first, record[0] + first * size, count, steps, memory[0], SPK_OK}, two[2];
      pthread_t thread;
      run(&one);
      time = now() - begin;
      if (r == 0 || time < best[0][group / GROUP]) { best[0][group / GROUP] = time; }
      for (s = group; s < group + count; s++) { /* here the least of a sample: a group takes long enough to be interrupted */
        begin = now();
        spk_reset(net);
        for (t = 0; t < steps; t++) {
          const size_t row = (size_t)s * steps + t;
          if (spk_step(net, in + row) != SPK_OK || spk_read(net, 0, record[1] + row * size) != SPK_OK) { return 1; }
        }
        time = now() - begin;
        if (r == 0 || time < best[1][s]) { best[1][s] = time; }
      }
      two[0] = one;
      two[0].record = record[2] + first * size;
      two[0].samples = count / 2;
      two[1] = two[0];
      two[1].in += (size_t)(count / 2) * steps;
      two[1].record += (size_t)(count / 2) * steps * size;
      two[1].samples = count - count / 2;
      two[1].memory = memory[1];
      begin = now();
      if (pthread_create(&thread, NULL, run, &two[1]) != 0) { return 1; }
      run(&two[0]);
      pthread_join(thread, NULL);
      time = now() - begin;
      if (r == 0 || time < best[2][group / GROUP]) { best[2][group / GROUP] = time; }
      if (one.status != SPK_OK || two[0].status != SPK_OK || two[1].status != SPK_OK) { return 1; }
    }
  }
  for (group = 0; group < samples; group += GROUP) {
    sum[0] += best[0][group / GROUP];
    sum[2] += best[2][group / GROUP];
  }
  for (s = 0; s < samples; s++) { sum[1] += best[1][s]; }
  printf("%.4f %.4f %.4f tiles %d same %d\n", sum[0] / samples, sum[1] / samples, sum[2] / samples, spk_offline_tiles(),
         memcmp(record[0], record[1], bytes) == 0 && memcmp(record[2], record[1], bytes) == 0);
  return 0;
}
