/* phases.h - how long each layer of offline mode takes. Included in front of offline.c by the compiler's -include, and by
 * benchmarks/c/offline.c where -DPHASES asks for it. */
#ifndef PHASES_H
#define PHASES_H
void phase_note(const char *name);
#define SPK_PHASE(name) phase_note(name)
#endif
