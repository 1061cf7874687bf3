"""Connections: torch's linear and convolutional layers on a weight grid, sparse ones, and ones with delays."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from spikec.frontend.nn import functional
from spikec.frontend.nn.grid import Grid, straight_through
from spikec.frontend.nn.neurons import Stateful


class Linear(nn.Linear):
    """`torch.nn.Linear` whose weights lie on a grid, in training and afterwards.

    Args:
        in_features, out_features, bias: as in torch.
        grid: the `Grid` of the weights; the stored ones stay real and train straight through. None: no grid.

    Shape:
        (..., in_features) to (..., out_features).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, grid: Grid | None = None, **more: Any) -> None:
        super().__init__(in_features, out_features, bias, **more)
        self.grid = grid

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x W^T + b with W and b on the grid."""
        return nn.functional.linear(input, *_on_grid(self))


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d` whose weights lie on a grid.

    Args:
        grid: as in `Linear`; everything else as in torch.
    """

    def __init__(self, *args: Any, grid: Grid | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.grid = grid

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The convolution with weights and bias on the grid."""
        return self._conv_forward(input, *_on_grid(self))


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` whose weights lie on a grid.

    Args:
        grid: as in `Linear`; everything else as in torch.
    """

    def __init__(self, *args: Any, grid: Grid | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.grid = grid

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The convolution with weights and bias on the grid."""
        return self._conv_forward(input, *_on_grid(self))


class SparseLinear(nn.Module):
    """A linear layer that has only some connections; the graph holds these and no zeros.

    Args:
        in_features, out_features, bias: as in `torch.nn.Linear`.
        density: share of the connections that there are, drawn at random by `seed`, equally many into each neuron.
        mask: instead of density: (out_features, in_features), not zero where there is a connection.
        grid: as in `Linear`.

    Attributes:
        weight: (connections,), row by row. indices: (connections,), their sources. indptr: (out_features + 1,).

    Shape:
        (..., in_features) to (..., out_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        density: float = 0.1,
        mask: torch.Tensor | None = None,
        seed: int = 0,
        grid: Grid | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.grid = in_features, out_features, grid
        if mask is None:
            if not 0 < density <= 1:
                raise ValueError(f"density is above 0 and at most 1, not {density}")
            fan_in = max(1, round(density * in_features))
            order = torch.rand(out_features, in_features, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
            mask = torch.zeros(out_features, in_features).scatter(1, order[:, :fan_in], 1.0)
        if tuple(mask.shape) != (out_features, in_features):
            raise ValueError(f"the mask has shape {tuple(mask.shape)}, not ({out_features}, {in_features})")
        rows, columns = torch.nonzero(mask, as_tuple=True)
        counts = torch.bincount(rows, minlength=out_features)
        self.register_buffer("indices", columns)
        self.register_buffer("indptr", torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]))
        bound = 1 / math.sqrt(max(1, len(columns) // max(1, out_features)))
        self.weight = nn.Parameter(torch.empty(len(columns)).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound)) if bias else None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x W^T + b."""
        weight, bias = _on_grid(self)
        return functional.sparse_linear(input, weight, self.indices, self.indptr, bias)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, connections={len(self.weight)}, bias={self.bias is not None}"


class _Delays(Stateful):
    """Keeps the steps that its delays reach back to."""

    history: functional.History

    def reset(self) -> None:
        """Forget the past."""
        self.history = functional.History()


class DelayLinear(_Delays):
    r"""A linear layer each of whose connections has a delay of its own.

    .. code-block:: text

        y[t, o] = sum_i weight[o, i] x[t - d[o, i], i] + bias[o],   x[t] = 0 for t < 0

    In training a delay is a real number and x is interpolated between the steps around it, so that its gradient says whether later
    or earlier is better; in eval mode, and so when compiled, it is the nearest whole number. `round_delays()` settles them, for the
    last rounds of training.

    Args:
        in_features, out_features, bias: as in `torch.nn.Linear`.
        max_delay: the longest delay, in steps; Loihi 2 has 62.
        delay: (out_features, in_features) or a number to begin with; default: drawn evenly from 0 to max_delay.
        learn_delay: whether delays are trained.
        grid: as in `Linear`.
        time_axis: None: a call is a step; else the axis along which a call does all steps, 0 or 1.

    Shape:
        (batch, in_features) to (batch, out_features); with time_axis (batch, T, ...) or (T, batch, ...) in both.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        max_delay: int,
        delay: float | torch.Tensor | None = None,
        learn_delay: bool = True,
        grid: Grid | None = None,
        time_axis: int | None = None,
    ) -> None:
        super().__init__(time_axis)
        if isinstance(max_delay, bool) or not isinstance(max_delay, int) or max_delay < 0:
            raise ValueError(f"max_delay is a whole number of steps from 0, not {max_delay!r}")
        if time_axis not in (None, 0, 1):
            raise ValueError(f"time_axis is 0, 1 or None, not {time_axis}")
        self.in_features, self.out_features, self.max_delay, self.grid = in_features, out_features, max_delay, grid
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound)) if bias else None
        begin = torch.rand(out_features, in_features) * max_delay if delay is None else torch.as_tensor(delay).float()
        self._number("delay", begin.expand(out_features, in_features), ("delay",) if learn_delay else ())

    def delays(self) -> torch.Tensor:
        """The delays in steps: real numbers in training, whole ones in eval mode."""
        held: torch.Tensor = self.delay
        inside = torch.clamp(held, 0, self.max_delay)
        return inside if self.training else straight_through(inside, 1.0, 0.0, float(self.max_delay))

    def round_delays(self) -> None:
        """Make every delay the whole number that eval mode takes it for."""
        with torch.no_grad():
            self.delay.copy_(torch.round(torch.clamp(self.delay, 0, self.max_delay)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One step, or all of them along time_axis."""
        operands = _on_grid(self, self.delays())
        return functional.delay_linear(x, *operands, longest=self.max_delay, time_axis=self.time_axis, history=self.history)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, max_delay={self.max_delay}, bias={self.bias is not None}"


class AxonalDelay(_Delays):
    """Hands its input on some steps later: y[t, i] = x[t - delay[i], i], and 0 before.

    Args:
        delay: whole numbers of steps, one for all or a tensor with one for each neuron.
        time_axis: as in `DelayLinear`.

    Shape:
        (batch, ...) to the same; with time_axis one axis more in both.
    """

    def __init__(self, delay: int | torch.Tensor, *, time_axis: int | None = None) -> None:
        super().__init__(time_axis)
        given = torch.as_tensor(delay)
        if given.is_floating_point() or given.dtype == torch.bool or bool((given < 0).any()):
            raise ValueError(f"delays are whole numbers from 0, not {delay}")
        if time_axis not in (None, 0, 1):
            raise ValueError(f"time_axis is 0, 1 or None, not {time_axis}")
        self.register_buffer("delay", given.long().clone())

    @property
    def longest(self) -> int:
        """The longest delay, in steps."""
        return int(self.delay.max())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One step, or all of them along time_axis."""
        return functional.delay_axons(x, self.delay, longest=self.longest, time_axis=self.time_axis, history=self.history)


def _on_grid(module: Any, *between: torch.Tensor) -> tuple[Any, ...]:
    """Weight, what stands between, and bias; both on the module's grid if it has one."""
    grid: Grid | None = module.grid
    if grid is None:
        return (module.weight, *between, module.bias)
    return (grid(module.weight), *between, None if module.bias is None else grid.bias(module.bias))
