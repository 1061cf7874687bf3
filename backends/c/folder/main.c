/* main.c - runs the network on a text file or on standard input and prints what it emits, or compares with what the file
 * says it should emit.
 *
 *     network [--latency] [FILE]    run; print how long the steps took to standard error
 *     network --check FILE          compare; exit status 1 if anything differs
 *     network --answers [FILE]      one line a sample, `answer CLASS STEPS`: as soon as it is clear (cutoff.h), and no step more
 *     network --events ...          run on a stream of address events: see stream.c
 *     network-offline --check FILE  compare what offline mode (spk_offline) gives for all samples at once: see whole.h
 *
 * The file consists of words; a line is
 *
 *     spk 1                     format and version, first
 *     tolerance X               floating-point networks: values may differ by X * max(1, |value|)
 *     sample                    begin afresh
 *     step                      the next step; the lines that follow belong to it
 *     in NAME E...              what arrives at an input: elements, each `number` or `number:value`, numbers rising
 *     out NAME E...             what an output must hold: all elements that are not zero
 *     port NAME E...            the same for another port
 *     state NAME V...           what a state must be after this step, all values
 *     answer CLASS STEPS        what the answer must be by now, and how many steps of its output it took
 *
 * Output has the same form, so that it can be stored and compared. Numbers are decimal; floats may be hexadecimal. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "clock.h"
#include "cutoff.h"
#include "network.h"
#include "stream.h"
#include "whole.h"

typedef struct number {
  int64_t i;
  double f;
} number;

static const spk_model *const model = &spk_network;
static FILE *file;
static const char *file_name = "standard input";
static unsigned long line = 1;
static char word[512];
static int at_end_of_line = 1;

static void fail(const char *what, const char *about) {
  fprintf(stderr, "%s:%lu: %s%s%s\n", file_name, line, what, about[0] ? ": " : "", about);
  exit(1);
}

static const char *message(spk_status status) {
#define SPK_STATUS_TEXT(name, code, meaning) case name: return meaning;
  switch (status) {
    SPK_STATUS_LIST(SPK_STATUS_TEXT)
    default: return "unknown status";
  }
}

/* The next word of this line; 0 at its end. */
static int next_word(void) {
  size_t n = 0;
  int c = getc(file);
  while (c == ' ' || c == '\t' || c == '\r') { c = getc(file); }
  while (c != EOF && c != ' ' && c != '\t' && c != '\r' && c != '\n') {
    if (n + 1 == sizeof word) { fail("a word is too long", ""); }
    word[n++] = (char)c;
    c = getc(file);
  }
  word[n] = 0;
  at_end_of_line = c == '\n' || c == EOF;
  if (c != EOF) { ungetc(c, file); }
  return n > 0;
}

/* To the next line that holds a word; 0 at the end of the file. */
static int next_line(void) {
  for (;;) {
    int c = getc(file);
    while (c != EOF && c != '\n') { c = getc(file); }
    if (c == EOF) { return 0; }
    line++;
    if (next_word()) { return 1; }
  }
}

static int is_float(unsigned type) { return type == SPK_F32 || type == SPK_F64; }

static number parse(const char *text, unsigned type) {
  number result = {0, 0};
  char *end = NULL;
  if (is_float(type)) {
    result.f = strtod(text, &end);
  } else {
    result.i = (int64_t)strtoll(text, &end, 10);
  }
  if (end == text || *end != 0) { fail("not a number", text); }
  return result;
}

static void store(void *values, uint32_t at, unsigned type, number value) {
  switch (type) {
    case SPK_I8: ((int8_t *)values)[at] = (int8_t)value.i; break;
    case SPK_I16: ((int16_t *)values)[at] = (int16_t)value.i; break;
    case SPK_I32: ((int32_t *)values)[at] = (int32_t)value.i; break;
    case SPK_I64: ((int64_t *)values)[at] = value.i; break;
    case SPK_F32: ((float *)values)[at] = (float)value.f; break;
    default: ((double *)values)[at] = value.f; break;
  }
}

static number load(const void *values, uint32_t at, unsigned type) {
  number result = {0, 0};
  switch (type) {
    case SPK_I8: result.i = ((const int8_t *)values)[at]; break;
    case SPK_I16: result.i = ((const int16_t *)values)[at]; break;
    case SPK_I32: result.i = ((const int32_t *)values)[at]; break;
    case SPK_I64: result.i = ((const int64_t *)values)[at]; break;
    case SPK_F32: result.f = (double)((const float *)values)[at]; break;
    default: result.f = ((const double *)values)[at]; break;
  }
  return result;
}

static void *room(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size);
  if (memory == NULL) { fail("out of memory", ""); }
  return memory;
}

static uint32_t find(const spk_port *table, uint32_t from, uint32_t to) {
  uint32_t k;
  if (!next_word()) { fail("a name is missing", ""); }
  for (k = from; k < to; k++) {
    if (strcmp(table[k].name, word) == 0) { return k; }
  }
  fail("there is nothing of this name", word);
  return 0;
}

/* `number` or `number:value`, rising. */
static uint32_t element(const spk_port *p, int64_t *last, number *value) {
  char *colon = strchr(word, ':');
  int64_t index;
  if (colon != NULL) { *colon = 0; }
  index = parse(word, SPK_I64).i;
  if (index < 0 || index >= (int64_t)p->size || index <= *last) { fail("an element is out of range or out of order", word); }
  *last = index;
  value->i = 1;
  value->f = 1;
  if (colon != NULL) { *value = parse(colon + 1, p->type); }
  return (uint32_t)index;
}

static void print_port(const spk_port *p, const char *kind, const void *values) {
  uint32_t k;
  printf("%s %s", kind, p->name);
  for (k = 0; k < p->size; k++) {
    const number value = load(values, k, p->type);
    if (is_float(p->type) ? !(value.f >= 0 && value.f <= 0) : value.i != 0) {
      printf(" %lu", (unsigned long)k);
      if (p->kind != SPK_SPIKE) {
        if (is_float(p->type)) {
          printf(":%a", value.f);
        } else {
          printf(":%lld", (long long)value.i);
        }
      }
    }
  }
  printf("\n");
}

static unsigned long compared, different, samples, steps;

static void compare(const spk_port *p, const void *want, const void *have, double tolerance) {
  uint32_t k;
  for (k = 0; k < p->size; k++) {
    const number w = load(want, k, p->type), h = load(have, k, p->type);
    int same = w.i == h.i;
    compared++;
    if (is_float(p->type)) {
      const double gap = w.f > h.f ? w.f - h.f : h.f - w.f;
      const double size = w.f < 0 ? -w.f : w.f;
      same = (w.f <= h.f && w.f >= h.f) || (p->kind != SPK_SPIKE && gap <= tolerance * (size > 1 ? size : 1)) ||
             (!(w.f <= 0) && !(w.f > 0) && !(h.f <= 0) && !(h.f > 0));
    }
    if (!same && different++ < 10) {
      if (is_float(p->type)) {
        fprintf(stderr, "%s:%lu: sample %lu, step %lu, %s[%lu]: %a, expected %a\n", file_name, line, samples - 1, steps - 1,
                p->name, (unsigned long)k, h.f, w.f);
      } else {
        fprintf(stderr, "%s:%lu: sample %lu, step %lu, %s[%lu]: %lld, expected %lld\n", file_name, line, samples - 1,
                steps - 1, p->name, (unsigned long)k, (long long)h.i, (long long)w.i);
      }
    }
  }
}

/* Whether the answer line that was just read says what was found. */
static void compare_answer(const spk_answer *found) {
  int64_t wanted[2] = {0, 0};
  uint32_t k;
  for (k = 0; k < 2; k++) {
    if (!next_word()) { fail("a number is missing", ""); }
    wanted[k] = parse(word, SPK_I64).i;
  }
  compared++;
  if ((wanted[0] != (int64_t)spk_answer_class(found) || wanted[1] != (int64_t)found->steps) && different++ < 10) {
    fprintf(stderr, "%s:%lu: sample %lu: answer %lu after %lu steps, expected %lld after %lld\n", file_name, line, samples - 1,
            (unsigned long)spk_answer_class(found), (unsigned long)found->steps, (long long)wanted[0], (long long)wanted[1]);
  }
}

static void print_answer(const spk_answer *found) {
  printf("answer %lu %lu\n", (unsigned long)spk_answer_class(found), (unsigned long)found->steps);
}

/* Runs or checks a file of text. */
static int text(int argc, char **argv) {
  static unsigned char memory[SPK_BYTES];
  static histogram taken;
  const int check = argc > 1 && strcmp(argv[1], "--check") == 0;
  const int answers = argc > 1 && strcmp(argv[1], "--answers") == 0;
  const int latency = argc > 1 && strcmp(argv[1], "--latency") == 0;
  const char *path = argc > 1 + check + answers + latency ? argv[1 + check + answers + latency] : NULL;
  spk_net *net = NULL;
  spk_in *in = (spk_in *)room(model->inputs, sizeof *in);
  uint32_t **index = (uint32_t **)room(model->inputs, sizeof *index);
  void **value = (void **)room(model->inputs, sizeof *value);
  void *have, *want;
  uint32_t most = 1, k;
  double tolerance = 0;
  int open = 0, waiting = 0, more, noting = whole_built && check;
  const char *wrong;
  /* Answers are of an output of integers; a network without one has none. */
  const int answering = model->outputs > 0 && !is_float(model->port[SPK_ANSWER_PORT].type);
  spk_answer answer = {&model->port[SPK_ANSWER_PORT], spk_margin, SPK_MARGINS, NULL, 0, 0};
  int asked = 0;
  if (answers && !answering) {
    fprintf(stderr, "--answers: the network has no output of integers to answer with: compile with --bits 8\n");
    return 1;
  }
  file = path != NULL ? fopen(path, "r") : stdin;
  if (path != NULL) { file_name = path; }
  if (file == NULL) {
    fprintf(stderr, "%s: cannot be read\n", path);
    return 1;
  }
  if (spk_check() != SPK_OK) { fail(message(SPK_E_WEIGHTS), ""); }
  if (model->abi != SPK_ABI || spk_init(memory, sizeof memory, &net) != SPK_OK) { fail(message(SPK_E_ABI), ""); }
  for (k = 0; k < model->inputs; k++) {
    index[k] = (uint32_t *)room(model->input[k].size, sizeof **index);
    value[k] = room(model->input[k].size, 8);
  }
  for (k = 0; k < model->ports; k++) { most = model->port[k].size > most ? model->port[k].size : most; }
  for (k = 0; k < model->states; k++) { most = model->state[k].size > most ? model->state[k].size : most; }
  have = room(most, 8);
  want = room(most, 8);
  answer.sum = (int64_t *)room(most, sizeof *answer.sum);
  if (!next_word() || strcmp(word, "spk") != 0 || !next_word() || strcmp(word, "1") != 0) { fail("the file does not begin with 'spk 1'", ""); }
  do {
    more = next_line();
    /* The first line that is no input ends the step's input. */
    if (waiting && (!more || strcmp(word, "in") != 0)) {
      if (noting) {
        whole_step(in);
      } else if (answers && (answer.clear || asked)) { /* nothing is left to be computed */
      } else if (!whole_built || !check) {
        const uint64_t from = clock_ns();
        const spk_status status = spk_step(net, in);
        histogram_add(&taken, clock_ns() - from);
        if (status != SPK_OK) { fail(message(status), ""); }
        if (answering && !answer.clear && steps >= answer.port->lag) {
          if (spk_read(net, SPK_ANSWER_PORT, have) != SPK_OK) { fail(message(SPK_E_PORT), ""); }
          (void)spk_answer_add(&answer, have);
        }
      }
      waiting = 0;
      steps++;
      if (!check && !answers) {
        printf("step\n");
        for (k = 0; k < model->outputs; k++) {
          if (spk_read(net, k, have) != SPK_OK) { fail(message(SPK_E_PORT), ""); }
          print_port(&model->port[k], "out", have);
        }
      }
    }
    if (!more && noting) { /* everything is known: once more from the beginning, and now compare */
      if ((wrong = whole_run()) != NULL) { fail(wrong, ""); }
      noting = open = 0;
      samples = 0;
      line = 1;
      rewind(file);
      if (!next_word()) { break; }
      more = next_line();
    }
    if (answers && open && !asked && (!more || strcmp(word, "sample") == 0)) { print_answer(&answer); }
    if (!more) { break; }
    if (strcmp(word, "tolerance") == 0) {
      if (!next_word()) { fail("a number is missing", ""); }
      tolerance = parse(word, SPK_F64).f;
    } else if (strcmp(word, "sample") == 0) {
      spk_reset(net);
      if (answering) { spk_answer_begin(&answer); }
      if (noting) { whole_sample(); }
      open = 1;
      asked = 0;
      samples++;
      steps = 0;
      if (!check && !answers) { printf(samples == 1 ? "spk 1\nsample\n" : "sample\n"); }
    } else if (strcmp(word, "step") == 0) {
      if (!open) { fail("a step before the first sample", ""); }
      for (k = 0; k < model->inputs; k++) {
        in[k].index = NULL;
        in[k].value = NULL;
        in[k].count = 0;
      }
      waiting = 1;
    } else if (strcmp(word, "in") == 0) {
      int64_t last = -1;
      uint32_t count = 0;
      if (!waiting) { fail("input outside a step", ""); }
      k = find(model->input, 0, model->inputs);
      while (!at_end_of_line && next_word()) {
        number v;
        index[k][count] = element(&model->input[k], &last, &v);
        store(value[k], count++, model->input[k].type, v);
      }
      in[k].index = index[k];
      in[k].value = value[k];
      in[k].count = count;
    } else if (strcmp(word, "out") == 0 || strcmp(word, "port") == 0 || strcmp(word, "state") == 0) {
      const int is_state = word[0] == 's', is_out = word[0] == 'o';
      const spk_port *table = is_state ? model->state : model->port;
      const uint32_t at = is_state ? find(table, 0, model->states)
                          : is_out ? find(table, 0, model->outputs) : find(table, model->outputs, model->ports);
      const spk_port *p = &table[at];
      int64_t last = -1;
      uint32_t count = 0;
      if (noting) { whole_want(is_state, at); }
      if (!check || noting) { continue; }
      memset(want, 0, (size_t)p->size * 8);
      while (!at_end_of_line && next_word()) {
        number v;
        if (is_state) {
          if (count == p->size) { fail("too many values", p->name); }
          store(want, count++, p->type, parse(word, p->type));
        } else {
          const uint32_t e = element(p, &last, &v);
          store(want, e, p->type, v);
        }
      }
      if (is_state && count != p->size) { fail("too few values", p->name); }
      if (whole_built) {
        if ((wrong = whole_read(is_state, at, samples - 1, steps - 1, have)) != NULL) { fail(wrong, p->name); }
      } else if ((is_state ? spk_read_state(net, at, have) : spk_read(net, at, have)) != SPK_OK) {
        fail(message(SPK_E_PORT), p->name);
      }
      compare(p, want, have, tolerance);
    } else if (strcmp(word, "answer") == 0) {
      if (!open || !answering) { fail("an answer of no sample, or of a network that gives none", ""); }
      if (answers && !asked) { print_answer(&answer); }
      if (check && !whole_built) { compare_answer(&answer); }
      asked = 1;
    } else {
      fail("unknown line", word);
    }
  } while (more);
  for (k = 0; k < model->inputs; k++) {
    free(index[k]);
    free(value[k]);
  }
  free(index);
  free(value);
  free(in);
  free(have);
  free(want);
  free(answer.sum);
  if (path != NULL) { fclose(file); }
  if (latency) { histogram_print(&taken, stderr, "latency"); }
  if (check) {
    printf("%s%s: %lu samples, %lu values compared, %lu differ\n", whole_way(), different || !compared ? "FAILED" : "ok", samples,
           compared, different);
    whole_free();
    return different || !compared;
  }
  return 0;
}

int main(int argc, char **argv) {
  const int option = argc > 1 && argv[1][0] == '-';
  const int check = option && strcmp(argv[1], "--check") == 0;
  if (option && strcmp(argv[1], "--events") == 0) { return stream(argc - 2, argv + 2); }
  if ((option && !check && strcmp(argv[1], "--answers") != 0 && strcmp(argv[1], "--latency") != 0) || argc > 2 + option || (check && argc < 3)) {
    fprintf(stderr, "usage: %s [--latency | --answers] [FILE]\n       %s --check FILE\n       %s --events [OPTIONS] [FILE]\n", argv[0],
            argv[0], argv[0]);
    return 2;
  }
  return text(argc, argv);
}
