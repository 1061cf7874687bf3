/* host.c - whole samples in one call, for programs that load the network as a shared library. */
#include <string.h>

#include "spk.h"

static size_t width(unsigned type) {
  return type == SPK_I8 ? 1u : type == SPK_I16 ? 2u : type == SPK_I32 || type == SPK_F32 ? 4u : 8u;
}

spk_status spk_host_run(const spk_model *model, void *memory, size_t bytes, spk_in *in, uint32_t batch, uint32_t steps,
                        uint32_t padding, const void *const *input, uint32_t records, const uint32_t *port,
                        void *const *record, void *const *state, uint64_t *counter);

/* Run `batch` samples of `steps` steps, each from the beginning, with `padding` more steps without input at the end of each.
 *
 * in       room for model->inputs entries
 * input    for each input (batch, steps, size) values of its type
 * port     the ports to record; record[k] is (batch, steps, size) and begins at the port's lag
 * state    for each state (batch, size), as it is after its own last step, or NULL
 * counter  for each counter the sum over the samples, or NULL */
spk_status spk_host_run(const spk_model *model, void *memory, size_t bytes, spk_in *in, uint32_t batch, uint32_t steps,
                        uint32_t padding, const void *const *input, uint32_t records, const uint32_t *port,
                        void *const *record, void *const *state, uint64_t *counter) {
  spk_net *net = NULL;
  spk_status status;
  uint32_t b, t, k;
  if (model->abi != SPK_ABI) { return SPK_E_ABI; }
  status = model->init(memory, bytes, &net);
  if (status != SPK_OK) { return status; }
  for (b = 0; b < batch; b++) {
    const uint32_t total = steps == 0 ? 0 : steps + padding;
    if (b > 0) { model->reset(net); }
    for (t = 0; t < total; t++) {
      for (k = 0; k < model->inputs; k++) {
        const size_t row = model->input[k].size * width(model->input[k].type);
        in[k].index = NULL;
        in[k].count = 0;
        in[k].value = t < steps ? (const unsigned char *)input[k] + ((size_t)b * steps + t) * row : NULL;
      }
      status = model->step(net, in);
      if (status != SPK_OK) { return status; }
      for (k = 0; k < records; k++) {
        const spk_port *p = &model->port[port[k]];
        if (t >= p->lag && t - p->lag < steps) {
          const size_t row = p->size * width(p->type);
          status = model->read(net, port[k], (unsigned char *)record[k] + ((size_t)b * steps + (t - p->lag)) * row);
          if (status != SPK_OK) { return status; }
        }
      }
      for (k = 0; k < model->states; k++) {
        const spk_port *p = &model->state[k];
        if (state[k] != NULL && t == steps - 1 + p->lag) {
          status = model->read_state(net, k, (unsigned char *)state[k] + (size_t)b * p->size * width(p->type));
          if (status != SPK_OK) { return status; }
        }
      }
    }
    for (k = 0; total == 0 && k < model->states; k++) {
      const spk_port *p = &model->state[k];
      if (state[k] == NULL) { continue; }
      status = model->read_state(net, k, (unsigned char *)state[k] + (size_t)b * p->size * width(p->type));
      if (status != SPK_OK) { return status; }
    }
    for (k = 0; counter != NULL && k < model->counters; k++) {
      uint64_t value = 0;
      status = model->read_counter(net, k, &value);
      if (status != SPK_OK) { return status; }
      counter[k] += value;
    }
  }
  return SPK_OK;
}
