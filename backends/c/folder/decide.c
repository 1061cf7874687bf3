/* decide.c - whole samples in one call, each only as far as its answer is clear; for programs that load a shared library. */
#include "answer.h"

spk_status spk_host_decide(const spk_model *model, void *memory, size_t bytes, spk_in *in, uint32_t batch, uint32_t steps,
                           uint32_t padding, const void *const *input, uint32_t port, void *row, int64_t *sum,
                           const int64_t *margin, uint32_t margins, uint32_t *answer, uint32_t *used);

static size_t width(unsigned type) {
  return type == SPK_I8 ? 1u : type == SPK_I16 ? 2u : type == SPK_I32 || type == SPK_F32 ? 4u : 8u;
}

/* Run `batch` samples of at most `steps` steps. A sample ends as soon as the largest sum of the port's values leads the next by
 * that step's margin (one class alone: is that far from 0), or with its last step.
 *
 * in      room for model->inputs entries
 * input   for each input (batch, steps, size) values of its type
 * port    the output that answers, of integers; row has room for its values, sum for as many sums
 * margin  one for each step from the first on; the last of them for all that follow
 * answer  (batch) the class, the first of equals
 * used    (batch) steps that it took */
spk_status spk_host_decide(const spk_model *model, void *memory, size_t bytes, spk_in *in, uint32_t batch, uint32_t steps,
                           uint32_t padding, const void *const *input, uint32_t port, void *row, int64_t *sum,
                           const int64_t *margin, uint32_t margins, uint32_t *answer, uint32_t *used) {
  const spk_port *p = &model->port[port];
  spk_answer found = {p, margin, margins, sum, 0, 0};
  spk_net *net = NULL;
  spk_status status;
  uint32_t b, t, k;
  if (model->abi != SPK_ABI) { return SPK_E_ABI; }
  status = model->init(memory, bytes, &net);
  if (status != SPK_OK) { return status; }
  for (b = 0; b < batch; b++) {
    if (b > 0) { model->reset(net); }
    spk_answer_begin(&found);
    for (t = 0; t < steps + padding; t++) {
      for (k = 0; k < model->inputs; k++) {
        const size_t size = model->input[k].size * width(model->input[k].type);
        in[k].index = NULL;
        in[k].count = 0;
        in[k].value = t < steps ? (const unsigned char *)input[k] + ((size_t)b * steps + t) * size : NULL;
      }
      status = model->step(net, in);
      if (status != SPK_OK) { return status; }
      if (t < p->lag) { continue; }
      status = model->read(net, port, row);
      if (status != SPK_OK) { return status; }
      if (spk_answer_add(&found, row) || found.steps == steps) { break; }
    }
    used[b] = steps ? found.steps : 0;
    answer[b] = spk_answer_class(&found);
  }
  return SPK_OK;
}
