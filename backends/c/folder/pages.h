/* pages.h - moves many weights onto large pages when the program starts, on Linux. -DSPK_SMALL_PAGES leaves them where they are.
 *
 * The rows of random inputs lie in random pages of 4 KB, more of them than the processor remembers the addresses of. So every whole
 * large page of weights gets memory of its own, at the same address and with the same content. Nothing is done where the system has
 * no large pages (transparent_hugepage is "never") or the weights are more than an eighth of its memory. */
#ifndef PAGES_H
#define PAGES_H

#if defined(__linux__) && defined(__GNUC__) && !defined(SPK_SMALL_PAGES)
#define PAGES_MOVED
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int pages_told(const char *path, char *text, int size) {
  FILE *const file = fopen(path, "r");
  const int found = file != NULL && fgets(text, size, file) != NULL;
  if (file != NULL) { fclose(file); }
  return found;
}

static void pages_move(const void *weights, size_t bytes) {
  static const char folder[] = "/sys/kernel/mm/transparent_hugepage/";
  char path[80], text[80];
  const long small = sysconf(_SC_PAGESIZE), all = sysconf(_SC_PHYS_PAGES);
  uintptr_t page, begin, end;
  unsigned char *room, *from;
  size_t length;
  snprintf(path, sizeof path, "%senabled", folder);
  if (!pages_told(path, text, (int)sizeof text) || strstr(text, "[never]") != NULL) { return; }
  snprintf(path, sizeof path, "%shpage_pmd_size", folder);
  if (!pages_told(path, text, (int)sizeof text)) { return; }
  page = (uintptr_t)strtoul(text, NULL, 10);
  if (small <= 0 || all <= 0 || page <= (uintptr_t)small || (page & (page - 1u)) != 0) { return; }
  begin = ((uintptr_t)weights + page - 1u) & ~(page - 1u);
  end = ((uintptr_t)weights + bytes) & ~(page - 1u);
  if (end <= begin || bytes / (size_t)small > (size_t)all / 8u) { return; }
  length = (size_t)(end - begin);
  room = (unsigned char *)mmap(NULL, length + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if ((void *)room == MAP_FAILED) { return; }
  from = room + (page - ((uintptr_t)room & (page - 1u)));
  if (madvise(from, length, MADV_HUGEPAGE) == 0) {
    size_t at;
    for (at = 0; at < length; at += page) {
      /* Page by page: at no time is more than one of them there twice. */
      unsigned char *const to = (unsigned char *)begin + at;
      memcpy(from + at, to, page);
      if (mremap(from + at, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) {
        perror("the weights cannot be moved to large pages; compile with -DSPK_SMALL_PAGES");
        abort();
      }
    }
    mprotect((void *)begin, length, PROT_READ);
    munmap(room, (size_t)(from - room));
    munmap(from + length, page - (size_t)(from - room));
  } else {
    munmap(room, length + page);
  }
}
#endif

#endif
