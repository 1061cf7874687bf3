/* spk.h - the interface of a compiled spiking network.
 *
 * A network lives in memory that the caller owns; nothing is allocated, nothing is global, and any number of instances may
 * run side by side in any number of threads. A step takes what arrives at the inputs in that step and leaves what the
 * network emits in the same step to be read:
 *
 *     static unsigned char memory[SPK_BYTES];           // SPK_BYTES stands in network.h
 *     spk_net *net;
 *     spk_init(memory, sizeof memory, &net);            // also resets
 *     spk_in in[SPK_INPUTS] = {{ events, NULL, count }};
 *     spk_step(net, in);
 *     spk_read_events(net, 0, fired, &count);           // port 0 is the first output
 *
 * Steps are those of the hardware: a port with `lag` r shows the model's step t at step t + r. */
#ifndef SPK_H
#define SPK_H

#include <stddef.h>
#include <stdint.h>

/* Changes when anything below changes its meaning; network.c refuses to be built with another one. */
#define SPK_ABI 2

/* X(name, number, meaning) */
#define SPK_STATUS_LIST(X)                                                   \
  X(SPK_OK, 0, "ok")                                                         \
  X(SPK_E_MEMORY, 1, "the memory is missing or too small")                   \
  X(SPK_E_PORT, 2, "there is no such port, state or counter")                \
  X(SPK_E_EVENT, 3, "an event is out of range, repeated or out of order")    \
  X(SPK_E_VALUE, 4, "a value is outside the range that the input declares")  \
  X(SPK_E_STEPS, 5, "the step counter is exhausted; reset the network")      \
  X(SPK_E_ABI, 6, "the network was built for another version of spk.h")      \
  X(SPK_E_WEIGHTS, 7, "the weights are not those of this network")

#define SPK_STATUS_ENUM(name, number, meaning) name = number,
typedef enum spk_status { SPK_STATUS_LIST(SPK_STATUS_ENUM) SPK_STATUS_COUNT } spk_status;

/* The type of a value in this interface. */
enum { SPK_I8, SPK_I16, SPK_I32, SPK_I64, SPK_F32, SPK_F64 };
/* What flows: 0 or 1; a sparse payload; a number everywhere. */
enum { SPK_SPIKE, SPK_GRADED, SPK_VALUE };

/* An input, a port that can be read, or a state. */
typedef struct spk_port {
  const char *name;
  uint32_t size; /* number of elements, in row-major order of the model's shape */
  uint32_t lag;  /* steps by which it trails the model's step */
  uint8_t kind;  /* SPK_SPIKE, SPK_GRADED or SPK_VALUE */
  uint8_t type;  /* SPK_I8 ... SPK_F64 */
} spk_port;

/* What arrives at one input in one step: a list of events, an array of all values, or nothing ({ NULL, NULL, 0 }). */
typedef struct spk_in {
  const uint32_t *index; /* events: `count` element numbers, strictly rising; NULL: not a list */
  const void *value;     /* one value an event (NULL: all are 1), or, where `index` is NULL, one an element, in the input's type */
  uint32_t count;        /* number of events; not read where `index` is NULL */
} spk_in;

typedef struct spk_net spk_net;

/* Whether the weights that stand in a file of their own (weights.bin) are whole and those of this network: SPK_OK or
 * SPK_E_WEIGHTS. It reads all of them, once is enough; without such a file it is SPK_OK at once. spk_step trusts them. */
spk_status spk_check(void);

/* Bytes that spk_init needs. */
size_t spk_size(void);

/* Make a network in `memory`, of any alignment, and reset it; weights of pruned layers that lie packed are written out into it.
 * SPK_E_MEMORY if `bytes` is less than spk_size(). */
spk_status spk_init(void *memory, size_t bytes, spk_net **net);

/* Back to step 0: states as declared, nothing under way, counters zero. */
void spk_reset(spk_net *net);

/* One step. `in` has one entry for each input. On an error nothing has changed. */
spk_status spk_step(spk_net *net, const spk_in *in);

/* Copy all values of a port, as of the last step, to `values` (spk_port.size elements of spk_port.type). */
spk_status spk_read(const spk_net *net, uint32_t port, void *values);

/* The elements of a port that are not zero, rising; `index` has room for spk_port.size. */
spk_status spk_read_events(const spk_net *net, uint32_t port, uint32_t *index, uint32_t *count);

/* Copy a state as it is after the last step. */
spk_status spk_read_state(const spk_net *net, uint32_t state, void *values);

/* A counter since the last reset. A layer of values multiplies them in groups of four: its events are what is in groups that are
 * not all zero. */
spk_status spk_read_counter(const spk_net *net, uint32_t counter, uint64_t *value);

/* Offline mode, in offline.c: whole samples in one call, for those who have all steps of a sample before they need its answer. A
 * program that does not call it leaves the file out. Where the processor has a matrix unit (Intel AMX) the network goes through all
 * steps of a block layer by layer, a loop of layers step by step, and uses the unit where it is faster; without one, with floats,
 * and where ports trail (lag), it runs one step after the other. Spikes, states and counters are those of spk_step, bit for bit. It is
 * reentrant as everything here is: several calls may run at once, each in memory of its own. */
typedef struct spk_whole {
  uint32_t records;     /* ports to record */
  const uint32_t *port; /* their numbers */
  void *const *record;  /* for each of them (samples, steps, size) values of its type, from the port's lag on */
  void *const *state;   /* for each state (samples, size) values as its last step leaves it, or NULL; NULL: no states */
  uint64_t *counter;    /* for each counter; what the samples count is added; or NULL */
} spk_whole;

/* Bytes that spk_offline needs: SPK_OFFLINE_BYTES of offline.h or, on this machine, less. */
size_t spk_offline_size(void);

/* 1 if a matrix unit is there, allowed by the system, and of use to this network. */
int spk_offline_tiles(void);

/* Run samples from the beginning, each of the same number of steps. `in` has an entry for each input of each step of each sample,
 * in this order; `memory` is of any alignment. After an error what was recorded is of no use. */
spk_status spk_offline(void *memory, size_t bytes, uint32_t samples, uint32_t steps, const spk_in *in, const spk_whole *out);

/* The same as data, for programs that serve any network. The first `outputs` ports are the model's outputs. */
typedef struct spk_model {
  uint32_t abi; /* SPK_ABI of the build */
  uint32_t inputs, outputs, ports, states, counters;
  const char *name;
  const spk_port *input, *port, *state;
  const char *const *counter; /* "layer spikes", "layer events", "layer operations" */
  spk_status (*check)(void);
  size_t (*size)(void);
  spk_status (*init)(void *memory, size_t bytes, spk_net **net);
  void (*reset)(spk_net *net);
  spk_status (*step)(spk_net *net, const spk_in *in);
  spk_status (*read)(const spk_net *net, uint32_t port, void *values);
  spk_status (*read_events)(const spk_net *net, uint32_t port, uint32_t *index, uint32_t *count);
  spk_status (*read_state)(const spk_net *net, uint32_t state, void *values);
  spk_status (*read_counter)(const spk_net *net, uint32_t counter, uint64_t *value);
} spk_model;

extern const spk_model spk_network;

#endif
