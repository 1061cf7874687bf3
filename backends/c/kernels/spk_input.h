/* spk_input.h - what arrives in a step: checked, then stored as an array, as a list of events, or as both. Included once
 * for each input.
 *
 * SPK_NAME          prefix of the two functions
 * SPK_API           type of a value in the interface
 * SPK_X             type of a value here
 * SPK_INDEX         type of an event here
 * SPK_SIZE          number of elements
 * SPK_LOW, SPK_HIGH smallest and largest value allowed; left undefined where any will do
 * SPK_BINARY        1: values are 0 and 1
 * SPK_LIST          1: the list of events is wanted
 * SPK_DENSE         1: the array is wanted
 * SPK_FLAGS         1: values are bytes that are 0 or 1, and events uint16_t with room for 32 more
 *
 * SPK_NAME_check looks at the data and changes nothing; SPK_NAME_load takes over what was checked and returns the number of
 * events, or 0 where no list is wanted. */
#include "spk_flags.h"
#include "spk_simd.h"
static spk_status SPK_CAT(SPK_NAME, _check)(const spk_in *in) {
  const SPK_API *value = (const SPK_API *)in->value;
  uint32_t i;
  if (in->index != NULL) {
    const uint32_t *SPK_RESTRICT index = in->index;
    if (in->count > SPK_SIZE) { return SPK_E_EVENT; }
    if (!spk_rising(index, in->count) || (in->count > 0 && index[in->count - 1u] >= SPK_SIZE)) { return SPK_E_EVENT; }
  }
#if defined(SPK_LOW) || SPK_BINARY
  if (value != NULL) {
    const uint32_t count = in->index != NULL ? in->count : SPK_SIZE;
    uint32_t bad = 0;
    for (i = 0; i < count; i++) {
#if SPK_BINARY
      bad |= (uint32_t)!(value[i] == 0 || value[i] == 1);
#else
      bad |= (uint32_t)(value[i] < SPK_LOW) | (uint32_t)(value[i] > SPK_HIGH);
#endif
    }
    if (bad) { return SPK_E_VALUE; }
  }
#endif
#if defined(SPK_LOW)
  if (in->index != NULL && value == NULL && in->count != 0 && (1 < SPK_LOW || 1 > SPK_HIGH)) { return SPK_E_VALUE; }
  if (in->index == NULL && value == NULL && (0 < SPK_LOW || 0 > SPK_HIGH)) { return SPK_E_VALUE; }
#endif
  (void)value;
  (void)i;
  return SPK_OK;
}

static uint32_t SPK_CAT(SPK_NAME, _load)(const spk_in *in, SPK_X *x, SPK_INDEX *event) {
  const SPK_API *value = (const SPK_API *)in->value;
  uint32_t count = 0;
  uint32_t i;
  (void)value;
  (void)i;
#if SPK_DENSE
  if (in->index == NULL && value != NULL) {
    for (i = 0; i < SPK_SIZE; i++) { x[i] = (SPK_X)value[i]; }
  } else {
    memset(x, 0, SPK_SIZE * sizeof *x);
    if (in->index != NULL) {
      for (i = 0; i < in->count; i++) { x[in->index[i]] = (SPK_X)(value != NULL ? value[i] : 1); }
    }
  }
#else
  (void)x;
#endif
#if SPK_LIST
  if (in->index != NULL) {
    if (value == NULL) {
      if (sizeof *event == 2) {
        spk_narrow(in->index, in->count, (uint16_t *)(void *)event);
      } else {
        memcpy(event, in->index, in->count * sizeof *event);
      }
      return in->count;
    }
    /* An event may carry a zero: it is none. */
    for (i = 0; i < in->count; i++) {
      event[count] = (SPK_INDEX)in->index[i];
      count += value[i] != 0;
    }
  } else if (value != NULL) {
#if SPK_FLAGS && SPK_SIMD
    return spk_flags_list((const uint8_t *)value, SPK_SIZE, event);
#endif
    for (i = 0; i < SPK_SIZE; i++) {
      event[count] = (SPK_INDEX)i;
      count += value[i] != 0;
    }
  }
#else
  (void)event;
#endif
  return count;
}
#undef SPK_NAME
#undef SPK_API
#undef SPK_X
#undef SPK_INDEX
#undef SPK_SIZE
#undef SPK_LOW
#undef SPK_HIGH
#undef SPK_BINARY
#undef SPK_LIST
#undef SPK_DENSE
#undef SPK_FLAGS
