/* stream.c - runs the network on a stream of address events: a file, a pipe, standard input, or a device that a camera's driver
 * writes events to.
 *
 *     network --events [OPTIONS] [FILE]
 *
 * --shape C,H,W   events are `t x y p` with polarity p, and address (p * H + y) * W + x; with C = 1 polarity is left out of account
 * --binary        records of 8 bytes, little-endian: uint32 t, uint32 address; with --shape uint32 t, uint16 x, uint16 y + 2^15 p
 * --input NAME    which input they go to, if there are several; the others stay silent
 * --step-us N     microseconds of a step, where the network does not say (SPK_STEP_US)
 * --start T       the time at which step 0 begins; the first event's otherwise
 * --steps N       stop after so many steps; otherwise with the last event
 * --pace          a step is not computed before its time is over by the clock, as in front of a camera
 * --latency       print how long the steps took, to standard error
 *
 * Without --binary an event is a line, `t address` or `t x y p`: whole numbers, apart by spaces or commas; what begins with # is
 * left out. t is in microseconds and never falls (with --pace an event that comes late counts for the current step). An input
 * of spikes sees at most one event an element and step; any other sees their number.
 *
 * For every step in which an output is not silent a line is printed: step, name of the output, elements (`number` or
 * `number:value`). Steps are the model's: the lag of an output is taken off. */
#define _POSIX_C_SOURCE 200809L
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <unistd.h>

#include "clock.h"
#include "network.h"

static const spk_model *const model = &spk_network;
static int fd;
static const char *name = "standard input";
static unsigned char buffer[1 << 16];
static size_t filled, used;
static int ended;
static unsigned long place; /* lines or records read */
static unsigned long channels, height, width;
static int binary;

static void die(const char *what, const char *about) {
  fprintf(stderr, "%s: %s%s%s\n", name, what, about[0] ? ": " : "", about);
  exit(1);
}

static void die_at(const char *what) {
  fprintf(stderr, "%s:%lu: %s\n", name, place, what);
  exit(1);
}

/* A whole number at the beginning of `text`; where it ends. */
static const char *whole(const char *text, unsigned long long *value) {
  unsigned long long n = 0;
  const char *at = text;
  while (*at >= '0' && *at <= '9') {
    const unsigned digit = (unsigned)(*at++ - '0');
    if (n > (~0ull - digit) / 10u) { return text; }
    n = n * 10u + digit;
  }
  *value = n;
  return at;
}

static unsigned long long option(const char *what, const char *text) {
  unsigned long long value = 0;
  const char *end = text == NULL ? NULL : whole(text, &value);
  if (end == NULL || end == text || *end != 0) {
    fprintf(stderr, "%s takes a whole number\n", what);
    exit(2);
  }
  return value;
}

/* More bytes: 1; none before the deadline (0: wait for ever): 0; the end: -1. */
static int fill(uint64_t deadline) {
  memmove(buffer, buffer + used, filled - used);
  filled -= used;
  used = 0;
  for (;;) {
    const uint64_t now = deadline ? clock_ns() : 0;
    const uint64_t left = deadline > now ? deadline - now : 0;
    struct timespec patience;
    fd_set wait;
    ssize_t got;
    int ready;
    patience.tv_sec = (time_t)(left / 1000000000u);
    patience.tv_nsec = (long)(left % 1000000000u);
    FD_ZERO(&wait);
    FD_SET(fd, &wait);
    ready = pselect(fd + 1, &wait, NULL, NULL, deadline ? &patience : NULL, NULL);
    if (ready < 0 && errno == EINTR) { continue; }
    if (ready == 0) { return 0; }
    got = read(fd, buffer + filled, sizeof buffer - filled);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) { continue; }
    if (got < 0) { die("cannot be read", strerror(errno)); }
    if (got == 0) { return -1; }
    filled += (size_t)got;
    return 1;
  }
}

static uint32_t bytes4(const unsigned char *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* The address of an event of a camera. */
static uint32_t address(unsigned long long x, unsigned long long y, unsigned long long p) {
  if (x >= width || y >= height || p > 1u) { die_at("an event lies outside of --shape"); }
  return (uint32_t)(((channels == 1u ? 0 : p) * height + y) * width + x);
}

/* One line of text; 0 if there is no event in it. */
static int line_event(const char *text, unsigned long long *t, uint32_t *element) {
  unsigned long long number[5] = {0, 0, 0, 0, 0};
  unsigned count = 0;
  for (;;) {
    const char *end;
    while (*text == ' ' || *text == ',' || *text == '\t' || *text == '\r') { text++; }
    if (*text == 0 || *text == '#') { break; }
    end = count < 5u ? whole(text, &number[count]) : text;
    if (end == text) { die_at("not an event: whole numbers are wanted"); }
    text = end;
    count++;
  }
  if (count == 0) { return 0; }
  if (count != (width ? 4u : 2u)) { die_at(width ? "an event is t x y p" : "an event is t address (or t x y p, with --shape)"); }
  *t = number[0];
  if (width) {
    *element = address(number[1], number[2], number[3]);
  } else {
    if (number[1] > UINT32_MAX) { die_at("an address is out of range"); }
    *element = (uint32_t)number[1];
  }
  return 1;
}

/* The next event: 1; none before the deadline: 0; the end: -1. */
static int next_event(uint64_t deadline, unsigned long long *t, uint32_t *element) {
  for (;;) {
    if (binary) {
      if (filled - used >= 8u) {
        const unsigned char *p = buffer + used;
        const uint32_t where = bytes4(p + 4);
        used += 8u;
        place++;
        *t = bytes4(p);
        *element = width ? address(where & 0xFFFFu, where >> 16 & 0x7FFFu, where >> 31) : where;
        return 1;
      }
      if (ended && filled != used) { die("ends within a record", ""); }
    } else {
      unsigned char *end = memchr(buffer + used, '\n', filled - used);
      if (end == NULL && ended && filled > used) { end = buffer + filled; }
      if (end != NULL) {
        char *text = (char *)buffer + used;
        used = (size_t)(end - buffer) + (end != buffer + filled);
        if (end == buffer + filled && filled == sizeof buffer) { die_at("a line is too long"); }
        *end = 0;
        place++;
        if (line_event(text, t, element)) { return 1; }
        continue;
      }
      if (used == 0 && filled + 1u >= sizeof buffer) { die_at("a line is too long"); }
    }
    if (ended) { return -1; }
    {
      const int got = fill(deadline);
      if (got == 0) { return 0; }
      if (got < 0) { ended = 1; }
    }
  }
}

static void sleep_until(uint64_t deadline) {
  for (;;) {
    const uint64_t now = clock_ns();
    struct timespec rest;
    if (now >= deadline) { return; }
    rest.tv_sec = (time_t)((deadline - now) / 1000000000u);
    rest.tv_nsec = (long)((deadline - now) % 1000000000u);
    nanosleep(&rest, NULL);
  }
}

static void *room(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1u, size);
  if (memory == NULL) { die("out of memory", ""); }
  return memory;
}

static double value_of(const void *values, uint32_t at, unsigned type) {
  switch (type) {
    case SPK_I8: return ((const int8_t *)values)[at];
    case SPK_I16: return ((const int16_t *)values)[at];
    case SPK_I32: return ((const int32_t *)values)[at];
    case SPK_I64: return (double)((const int64_t *)values)[at];
    case SPK_F32: return (double)((const float *)values)[at];
    default: return ((const double *)values)[at];
  }
}

static void print_outputs(const spk_net *net, unsigned long long step, unsigned long long steps, uint32_t *index, void *values) {
  uint32_t k;
  for (k = 0; k < model->outputs; k++) {
    const spk_port *p = &model->port[k];
    uint32_t count = 0, i;
    if (step < p->lag || step - p->lag >= steps) { continue; }
    (void)model->read_events(net, k, index, &count);
    if (count == 0) { continue; }
    printf("%llu %s", step - p->lag, p->name);
    if (p->kind != SPK_SPIKE) { (void)model->read(net, k, values); }
    for (i = 0; i < count; i++) {
      printf(" %lu", (unsigned long)index[i]);
      if (p->kind != SPK_SPIKE) { printf(":%.9g", value_of(values, index[i], p->type)); }
    }
    printf("\n");
  }
}

/* How many events an element got in this step, in the input's type; saturating. */
static void store(void *values, uint32_t at, unsigned type, uint32_t count) {
  switch (type) {
    case SPK_I8: ((int8_t *)values)[at] = (int8_t)(count < INT8_MAX ? count : INT8_MAX); break;
    case SPK_I16: ((int16_t *)values)[at] = (int16_t)(count < INT16_MAX ? count : INT16_MAX); break;
    case SPK_I32: ((int32_t *)values)[at] = (int32_t)(count < INT32_MAX ? count : INT32_MAX); break;
    case SPK_I64: ((int64_t *)values)[at] = count; break;
    case SPK_F32: ((float *)values)[at] = (float)count; break;
    default: ((double *)values)[at] = count; break;
  }
}

static const char *message(spk_status status) {
#define SPK_STATUS_TEXT(id, code, meaning) case id: return meaning;
  switch (status) {
    SPK_STATUS_LIST(SPK_STATUS_TEXT)
    default: return "unknown status";
  }
}

static int compare(const void *a, const void *b) {
  const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

int stream(int argc, char **argv) {
  static unsigned char memory[SPK_BYTES];
  static histogram taken;
  unsigned long long step_us = SPK_STEP_US, start = 0, limit = 0, t = 0, before = 0, step = 0, steps = 0, late = 0;
  int paced = 0, latency = 0, started = 0, have = 0, finished = 0, k;
  uint32_t chosen = 0, element = 0, lag = 0, most = 1, count, i;
  uint32_t *index, *seen, *found;
  void *value, *values;
  uint64_t began = 0;
  spk_in *in;
  spk_net *net = NULL;
  spk_status status;
  const char *wanted = NULL, *path = NULL;
  for (k = 0; k < argc; k++) {
    const char *next = k + 1 < argc ? argv[k + 1] : NULL;
    if (strcmp(argv[k], "--pace") == 0) {
      paced = 1;
    } else if (strcmp(argv[k], "--latency") == 0) {
      latency = 1;
    } else if (strcmp(argv[k], "--binary") == 0) {
      binary = 1;
    } else if (strcmp(argv[k], "--input") == 0 && next != NULL) {
      wanted = argv[++k];
    } else if (strcmp(argv[k], "--step-us") == 0) {
      step_us = option("--step-us", next);
      k++;
    } else if (strcmp(argv[k], "--start") == 0) {
      start = option("--start", next);
      started = 1;
      k++;
    } else if (strcmp(argv[k], "--steps") == 0) {
      limit = option("--steps", next);
      k++;
    } else if (strcmp(argv[k], "--shape") == 0 && next != NULL && sscanf(next, "%lu,%lu,%lu", &channels, &height, &width) == 3 &&
               (channels == 1 || channels == 2) && height > 0 && width > 0 && height < 32768u && width < 65536u) {
      k++;
    } else if (path == NULL && argv[k][0] != '-') {
      path = argv[k];
    } else {
      fprintf(stderr, "--events: unknown or incomplete option %s; they are explained at the top of stream.c\n", argv[k]);
      return 2;
    }
  }
  if (step_us == 0) {
    fprintf(stderr, "--events: the network does not say how long a step is: give --step-us\n");
    return 2;
  }
  for (chosen = 0; chosen < model->inputs; chosen++) {
    if (wanted == NULL ? model->inputs == 1 : strcmp(model->input[chosen].name, wanted) == 0) { break; }
  }
  if (chosen == model->inputs) {
    fprintf(stderr, "--events: %s\n", wanted ? "there is no input of that name" : "the network has not one input: choose with --input");
    return 2;
  }
  if (width && (uint64_t)channels * height * width != model->input[chosen].size) {
    fprintf(stderr, "--events: the input has %lu elements, --shape %lu\n", (unsigned long)model->input[chosen].size,
            channels * height * width);
    return 2;
  }
  fd = 0;
  if (path != NULL) {
    name = path;
    fd = open(path, O_RDONLY);
    if (fd < 0) { die("cannot be read", strerror(errno)); }
  }
  if (spk_check() != SPK_OK) { die(message(SPK_E_WEIGHTS), ""); }
  if (spk_init(memory, sizeof memory, &net) != SPK_OK) { die(message(SPK_E_MEMORY), ""); }
  for (i = 0; i < model->outputs; i++) {
    lag = model->port[i].lag > lag ? model->port[i].lag : lag;
    most = model->port[i].size > most ? model->port[i].size : most;
  }
  in = (spk_in *)room(model->inputs, sizeof *in);
  index = (uint32_t *)room(model->input[chosen].size, sizeof *index);
  seen = (uint32_t *)room(model->input[chosen].size, sizeof *seen);
  value = room(model->input[chosen].size, 8);
  found = (uint32_t *)room(most, sizeof *found);
  values = room(most, 8);
  while (!finished || step < steps + lag) {
    uint64_t from;
    count = 0;
    if (limit && !finished && step >= limit) {
      finished = 1;
      steps = limit;
    }
    while (!finished) {
      const uint64_t deadline = paced && began ? began + (step + 1u) * step_us * 1000u : 0;
      if (!have) {
        const int got = next_event(deadline, &t, &element);
        if (got < 0) {
          finished = 1;
          steps = limit ? limit : step + (count != 0);
          break;
        }
        if (got == 0) { break; } /* the step's time is over */
        if (!started) {
          start = t;
          started = 1;
        }
        if (!began && paced) { began = clock_ns(); }
        if (t < start || t < before) {
          if (!paced) { die_at("the time falls"); }
          t = before > start ? before : start;
        }
        before = t;
        have = 1;
        continue; /* the deadline is known now */
      }
      if ((t - start) / step_us > step) { break; }
      if ((t - start) / step_us < step) { late++; }
      have = 0;
      if (element >= model->input[chosen].size) { die_at("an address is out of range"); }
      if (seen[element]++ == 0) { index[count++] = element; }
    }
    if (finished && step >= steps + lag) { break; }
    if (paced && began) { sleep_until(began + (step + 1u) * step_us * 1000u); }
    qsort(index, count, sizeof *index, compare);
    for (i = 0; i < count; i++) {
      store(value, i, model->input[chosen].type, model->input[chosen].kind == SPK_SPIKE ? 1u : seen[index[i]]);
      seen[index[i]] = 0;
    }
    in[chosen].index = index;
    in[chosen].value = value;
    in[chosen].count = count;
    from = clock_ns();
    status = spk_step(net, in);
    histogram_add(&taken, clock_ns() - from);
    if (status != SPK_OK) { die_at(message(status)); }
    print_outputs(net, step, finished ? steps : ~0ull, found, values);
    if (paced && fflush(stdout) != 0) { break; }
    step++;
  }
  if (late) { fprintf(stderr, "%s: %llu events came late\n", name, late); }
  if (latency) { histogram_print(&taken, stderr, "latency"); }
  free(in);
  free(index);
  free(seen);
  free(value);
  free(found);
  free(values);
  if (path != NULL) { close(fd); }
  return 0;
}
