"""The synapses as functions. The tracer takes each call as one operation of the graph, whatever it computes inside."""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function


def sparse_linear(
    input: torch.Tensor, weight: torch.Tensor, indices: torch.Tensor, indptr: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b with W in compressed rows.

    input (..., in); weight and indices (connections,): the weight and the source of each; indptr (out + 1,): where each row begins;
    bias (out,). Returns (..., out).
    """
    operands = (input, weight, indices, indptr) if bias is None else (input, weight, indices, indptr, bias)
    if has_torch_function(operands):
        return handle_torch_function(sparse_linear, operands, input, weight, indices, indptr, bias)
    size = indptr.shape[0] - 1
    rows = torch.repeat_interleave(torch.arange(size, device=indptr.device), indptr.diff())
    dense = torch.zeros(size, input.shape[-1], dtype=weight.dtype, device=weight.device).index_put((rows, indices), weight)
    return functional.linear(input, dense, bias)


class History:
    """The last steps of an input, which delays reach back to. steps (longest, *input's shape), None before the first call."""

    def __init__(self) -> None:
        self.steps: torch.Tensor | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> History:
        copied = History()
        copied.steps = None if self.steps is None else self.steps.detach().clone()
        return copied

    def lengthen(self, x: torch.Tensor, longest: int) -> torch.Tensor:
        """The steps kept so far and the new one, (longest + 1, *x's shape)."""
        if self.steps is None or self.steps.shape[1:] != x.shape:
            self.steps = x.new_zeros(longest, *x.shape)
        whole = torch.cat([self.steps, x.unsqueeze(0)])
        self.steps = whole[1:]
        return whole


def _past(input: torch.Tensor, time_axis: int | None, history: History | None, longest: int) -> torch.Tensor:
    """The steps that are asked for with `longest` earlier ones in front, time first."""
    if time_axis is None:
        return (history or History()).lengthen(input, longest)
    sequence = input.movedim(time_axis, 0)
    return torch.cat([sequence.new_zeros(longest, *sequence.shape[1:]), sequence])


def delay_linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    delay: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    longest: int,
    time_axis: int | None = None,
    history: History | None = None,
) -> torch.Tensor:
    """y[t, o] = sum_i w[o, i] x[t - d[o, i], i] + b[o], with zeros before the first step.

    input (batch, in), one step, the earlier ones are in `history`; or (batch, T, in) or (T, batch, in), all steps, by time_axis.
    weight (out, in); delay (out, in), from 0 to `longest`: between whole numbers x is interpolated; bias (out,).
    Returns the same with `out` in the place of `in`.
    """
    operands = (input, weight, delay) if bias is None else (input, weight, delay, bias)
    if has_torch_function(operands):
        more = {"longest": longest, "time_axis": time_axis, "history": history}
        return handle_torch_function(delay_linear, operands, input, weight, delay, bias, **more)
    steps = torch.arange(longest, -1, -1, device=delay.device, dtype=delay.dtype)
    share = torch.clamp(1 - (delay.unsqueeze(-1) - steps).abs(), min=0)  # a whole delay: 1 at its own step, 0 elsewhere
    past = _past(input, time_axis, history, longest)
    out = functional.conv1d(past.permute(1, 2, 0), weight.unsqueeze(-1) * share, bias).permute(2, 0, 1)
    return out.squeeze(0) if time_axis is None else out.movedim(0, time_axis)


def delay_axons(
    input: torch.Tensor, delay: torch.Tensor, *, longest: int, time_axis: int | None = None, history: History | None = None
) -> torch.Tensor:
    """y[t, i] = x[t - d[i], i], with zeros before the first step.

    input (batch, *shape) or with a time axis, as in `delay_linear`; delay: whole numbers from 0 to `longest`, one or `shape`.
    Returns the shape of the input.
    """
    if has_torch_function((input, delay)):
        more = {"longest": longest, "time_axis": time_axis, "history": history}
        return handle_torch_function(delay_axons, (input, delay), input, delay, **more)
    past = _past(input, time_axis, history, longest)
    length = past.shape[0] - longest
    if delay.ndim == 0:
        begin = longest - int(delay)
        out = past[begin : begin + length]
    else:
        at = torch.arange(length, device=past.device).view(-1, *(1,) * (past.ndim - 1)) + longest - delay
        out = torch.gather(past, 0, at.expand(length, *past.shape[1:]))
    return out.squeeze(0) if time_axis is None else out.movedim(0, time_axis)
