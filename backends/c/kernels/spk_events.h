/* spk_events.h - from an array of values to the list of those that are not zero. Included once for each use.
 *
 * SPK_NAME   name of the function
 * SPK_X      type of the values
 * SPK_INDEX  type of an event: the number of an element
 * SPK_SIZE   number of values
 *
 * uint32_t SPK_NAME(const SPK_X *x, SPK_INDEX *event): writes the element numbers in rising order and returns how many
 * there are. `event` has room for SPK_SIZE; the store before the test is what makes it free of branches.
 * SPK_FLAGS  1 if values are bytes and events uint16_t: then eight at a time, from a table of where the ones of a
 *            byte are, or by the processor's own compression. `event` then has room for 32 more. */
#include "spk_flags.h"
#if SPK_FLAGS
static SPK_UNUSED uint32_t SPK_NAME(const SPK_X *SPK_RESTRICT x, SPK_INDEX *SPK_RESTRICT event) {
  return spk_flags_list((const uint8_t *)x, SPK_SIZE, event);
}
#else
static SPK_UNUSED uint32_t SPK_NAME(const SPK_X *SPK_RESTRICT x, SPK_INDEX *SPK_RESTRICT event) {
  uint32_t count = 0;
  uint32_t i = 0;
  if (sizeof(SPK_X) == 1) {
    /* Most words of eight flags are zero. */
    for (; i + 8u <= SPK_SIZE; i += 8u) {
      uint64_t word;
      uint32_t j;
      memcpy(&word, x + i, 8);
      if (word == 0) { continue; }
      for (j = i; j < i + 8u; j++) {
        event[count] = (SPK_INDEX)j;
        count += x[j] != 0;
      }
    }
  }
  for (; i < SPK_SIZE; i++) {
    event[count] = (SPK_INDEX)i;
    count += x[i] != 0;
  }
  return count;
}
#endif
#undef SPK_FLAGS
#undef SPK_NAME
#undef SPK_X
#undef SPK_INDEX
#undef SPK_SIZE
