/* harness.c - time a generated network on recorded events, one step at a time, and print its output counts.
 *
 *     ./harness events.bin rounds [samples [cpu]]      cpu: the processor's time instead of the wall's
 *
 * events.bin: int32 steps, samples, inputs, events; int32 ptr[samples * steps + 1]; uint16 index[events], sample by sample; without
 * events (inputs 0) the network runs on its own. Prints "round MS" for each round, the median over its samples, then "counts" and the
 * spikes of every output neuron of every sample, the bytes of memory, the synaptic operations of a sample and the peak memory of the
 * process in KB (0 where the system does not say). Only the events of the samples that are asked for are read, and turned into the
 * interface's 32-bit lists before the clock starts. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "network.h"
#include "spk.h"

static clockid_t clock_used = CLOCK_MONOTONIC;

static double now(void) {
  struct timespec t;
  clock_gettime(clock_used, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static long peak(void) {
  FILE *const status = fopen("/proc/self/status", "r");
  char line[128];
  long found = 0;
  while (status != NULL && fgets(line, sizeof line, status) != NULL) {
    if (strncmp(line, "VmHWM:", 6) == 0) { found = atol(line + 6); }
  }
  if (status != NULL) { fclose(status); }
  return found;
}

static int smaller(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static void *need(void *p) {
  if (p == NULL) { fprintf(stderr, "harness: out of memory\n"); exit(1); }
  return p;
}

int main(int argc, char **argv) {
  int32_t head[4];
  FILE *file;
  int32_t *ptr;
  uint16_t *narrow;
  uint32_t *index, *fired, *counts;
  size_t i, rows, events;
  int r, s, t, rounds, samples;
  spk_net *net = NULL;
  unsigned char *memory;
  double *times, operations = 0;
  const uint32_t outputs = spk_network.port[0].size;
  if (argc < 3) { fprintf(stderr, "usage: harness events.bin rounds [samples]\n"); return 2; }
  file = fopen(argv[1], "rb");
  if (file == NULL || fread(head, 4, 4, file) != 4) { fprintf(stderr, "harness: cannot read %s\n", argv[1]); return 1; }
  rounds = atoi(argv[2]);
  samples = argc > 3 ? atoi(argv[3]) : head[1];
  if (argc > 4 && strcmp(argv[4], "cpu") == 0) { clock_used = CLOCK_PROCESS_CPUTIME_ID; }
  if (rounds < 1 || samples < 1 || samples > head[1]) { fprintf(stderr, "harness: between 1 and %d samples\n", (int)head[1]); return 2; }
  rows = (size_t)head[0] * (size_t)head[1] + 1;
  ptr = need(malloc(rows * sizeof *ptr));
  if (fread(ptr, sizeof *ptr, rows, file) != rows) { fprintf(stderr, "harness: %s is too short\n", argv[1]); return 1; }
  events = (size_t)ptr[(size_t)head[0] * (size_t)samples];
  narrow = need(malloc((events + 1) * sizeof *narrow));
  index = need(malloc((events + 1) * sizeof *index));
  if (fread(narrow, sizeof *narrow, events, file) != events) { fprintf(stderr, "harness: %s is too short\n", argv[1]); return 1; }
  fclose(file);
  for (i = 0; i < events; i++) { index[i] = narrow[i]; }
  free(narrow);
  fired = need(malloc((size_t)outputs * sizeof *fired));
  counts = need(calloc((size_t)outputs * (size_t)samples, sizeof *counts));
  memory = need(malloc(spk_size()));
  if (spk_init(memory, spk_size(), &net) != SPK_OK) { return 1; }
  times = need(malloc((size_t)samples * sizeof *times));
  for (r = 0; r < rounds; r++) {
    for (s = 0; s < samples; s++) {
      const double begin = now();
      spk_reset(net);
      for (t = 0; t < head[0]; t++) {
        const size_t row = (size_t)s * (size_t)head[0] + (size_t)t;
        uint32_t k, n;
        spk_in in = {NULL, NULL, 0};
        in.index = index + ptr[row];
        in.count = (uint32_t)(ptr[row + 1] - ptr[row]);
        if (spk_step(net, &in) != SPK_OK || spk_read_events(net, 0, fired, &n) != SPK_OK) { return 1; }
        if (r == 0) {
          for (k = 0; k < n; k++) { counts[(size_t)s * outputs + fired[k]]++; }
        }
      }
      times[s] = now() - begin;
      for (i = 0; r == 0 && i < spk_network.counters; i++) {
        const char *const end = strstr(spk_network.counter[i], " operations");
        uint64_t value = 0;
        if (end != NULL && spk_read_counter(net, (uint32_t)i, &value) == SPK_OK) { operations += (double)value; }
      }
    }
    qsort(times, (size_t)samples, sizeof *times, smaller);
    printf("round %.6f\n", times[samples / 2]);
  }
  printf("counts");
  for (i = 0; i < (size_t)outputs * (size_t)samples; i++) { printf(" %u", counts[i]); }
  printf("\nbytes %lu\noperations %.0f\npeak %ld\n", (unsigned long)spk_size(), operations / samples, peak());
  return 0;
}
