/* reader.c - fuzzes the two readers of the program around the network: FUZZ_STREAM the events of stream.c, otherwise the text of
 * main.c. Whatever the bytes are, the reader comes to its end or exits with a status; `exit` comes back here. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static jmp_buf back;
static _Noreturn void fuzz_exit(int status) { longjmp(back, status + 1); }
/* What the reader does not free when it exits is freed here: nothing must pile up over millions of runs. */
static void *blocks[64];
static unsigned held;
static void *fuzz_calloc(size_t count, size_t size) {
  void *block = calloc(count, size);
  if (held < 64u) { blocks[held++] = block; }
  return block;
}
static void fuzz_free(void *block) { (void)block; }
static int closed;
static int fuzz_fclose(FILE *file) {
  closed = 1;
  return fclose(file);
}
/* Messages are formatted and not shown: millions of them would be. */
static char shown[1024];
#define fprintf(stream, ...) ((void)(stream), snprintf(shown, sizeof shown, __VA_ARGS__))
#define fclose fuzz_fclose
#define exit fuzz_exit
#define calloc fuzz_calloc
#define free fuzz_free
#define main network_main
#include "main.c"
#undef main
#if defined(FUZZ_STREAM)
#define model stream_model
#define room stream_room
#define message stream_message
#define compare stream_compare
#define store stream_store
#undef SPK_STATUS_TEXT
#include "stream.c"
#undef model
#undef room
#undef message
#undef compare
#undef store
#else
int stream(int argc, char **argv) { return argc + (argv != NULL); }
#endif
#undef exit
#undef calloc
#undef free
#undef fclose
#undef fprintf

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc;
  (void)argv;
  return freopen("/dev/null", "w", stdout) == NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static int memory = -1;
  static char path[64], shape[] = "2,6,5";
  static char program[] = "network", events[] = "--events", binary_[] = "--binary", shape_[] = "--shape", steps[] = "--steps";
  static char few[] = "40", check[] = "--check", length[] = "--step-us", long_[] = "1000000000";
  char *argv[12] = {program};
  int argc = 1;
  const unsigned choice = size ? data[0] : 0;
  if (memory < 0) {
    memory = memfd_create("input", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
  }
  if (ftruncate(memory, 0) != 0 || pwrite(memory, data + (size != 0), size - (size != 0), 0) < 0) { abort(); }
#if defined(FUZZ_STREAM)
  filled = used = 0;
  ended = binary = 0;
  place = channels = height = width = 0;
  argv[argc++] = events;
  argv[argc++] = steps; /* time may be years: it stops */
  argv[argc++] = few;
  if (choice & 1u) { argv[argc++] = binary_; }
  if (choice & 2u) {
    argv[argc++] = shape_;
    argv[argc++] = shape;
  }
  if (choice & 4u) {
    argv[argc++] = length;
    argv[argc++] = long_;
  }
  (void)check;
#else
  line = 1;
  at_end_of_line = 1;
  compared = different = samples = 0;
  (void)shape;
  (void)events;
  (void)binary_;
  (void)shape_;
  (void)steps;
  (void)few;
  (void)length;
  (void)long_;
  if (choice & 1u) { argv[argc++] = check; }
#endif
  argv[argc++] = path;
  held = 0;
  closed = 0;
  if (setjmp(back) == 0) { (void)network_main(argc, argv); }
#if defined(FUZZ_STREAM)
  if (fd > 2) { close(fd); }
  fd = 0;
#else
  if (file != NULL && file != stdin && !closed) { fclose(file); }
  file = NULL;
#endif
  while (held > 0) { free(blocks[--held]); }
  return 0;
}
