/* unit.c - nanoseconds of a product of the matrix unit (16 rows of 64 bytes, 64 x 16 weights), one after the other without loads, the
 * least of 30 rounds. Prints 0 where there is no unit, or the system does not let this process use it. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <string.h>
#include <time.h>

#if defined(__AMX_INT8__) && defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
enum { TIMES = 20000 };
static unsigned char tile[4096], config[64];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(void) {
  double least = 0;
  long result;
  int r, k;
  __asm__ volatile("syscall" : "=a"(result) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
  if (result != 0) {
    printf("0\n");
    return 0;
  }
  config[0] = 1;
  for (k = 0; k < 8; k++) {
    config[16 + 2 * k] = 64;
    config[48 + k] = 16;
  }
  __asm__ volatile("" : : "r"(config), "r"(tile) : "memory");
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, tile, 64);
  _tile_loadd(5, tile + 1024, 64);
  _tile_loadd(6, tile + 2048, 64);
  _tile_loadd(7, tile + 3072, 64);
  for (r = 0; r < 30; r++) {
    double time = now();
    for (k = 0; k < TIMES; k++) {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    time = (now() - time) / (4.0 * TIMES);
    if (r == 0 || time < least) { least = time; }
  }
  _tile_release();
  printf("%.4f\n", least);
  return 0;
}
#else
int main(void) {
  printf("0\n");
  return 0;
}
#endif
