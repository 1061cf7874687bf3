/* whole.h - main.c with offline mode: built with -DSPK_CHECK_WHOLE and linked with whole.c and offline.c, `--check` takes what must come
 * out from spk_offline, which gets all samples of the file at once, not from spk_step. */
#ifndef WHOLE_H
#define WHOLE_H
#include "spk.h"

#if defined(SPK_CHECK_WHOLE)
enum { whole_built = 1 };
/* First all of the file is noted: samples, the input of every step (one entry for each input), ports and states that are compared. */
void whole_sample(void);
void whole_step(const spk_in *in);
void whole_want(int is_state, uint32_t number);
/* Then it is run; NULL, or what is wrong. */
const char *whole_run(void);
/* What a port or a state is after a step of a sample; NULL, or what is wrong. */
const char *whole_read(int is_state, uint32_t number, unsigned long sample, unsigned long step, void *values);
const char *whole_way(void);
void whole_free(void);
#else
enum { whole_built = 0 };
#define whole_sample() ((void)0)
#define whole_step(in) ((void)(in))
#define whole_want(is_state, number) ((void)0)
#define whole_run() NULL
#define whole_read(is_state, number, sample, step, values) NULL
#define whole_way() ""
#define whole_free() ((void)0)
#endif
#endif
