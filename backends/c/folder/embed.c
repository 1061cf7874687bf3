/* embed.c - writes a binary file as a C array, for compilers without an assembler that knows .incbin.
 *
 *     embed FILE NAME > weights_array.h */
#include <stdint.h>
#include <stdio.h>

int main(int argc, char **argv) {
  FILE *file = argc == 3 ? fopen(argv[1], "rb") : NULL;
  unsigned char word[8];
  unsigned long count = 0;
  if (file == NULL) {
    fprintf(stderr, "usage: embed FILE NAME\n");
    return 1;
  }
  printf("#include <stdint.h>\n#if defined(__GNUC__)\n__attribute__((aligned(64)))\n#endif\nconst uint64_t %s[] = {", argv[2]);
  while (fread(word, 1, sizeof word, file) == sizeof word) {
    uint64_t value = 0;
    int k;
    for (k = 7; k >= 0; k--) { value = value << 8 | word[k]; }
    printf("%s0x%llxu,", count++ % 6 ? "" : "\n", (unsigned long long)value);
  }
  printf("\n};\n");
  fclose(file);
  return 0;
}
