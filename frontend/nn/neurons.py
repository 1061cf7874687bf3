"""Spiking layers that train with surrogate gradients and compile exactly.

Each layer states its equations; `spikec.compile` takes the same equations as its neuron program, so that a compiled network in
floats gives the very spikes of the trained one. Decays are multiples of 1/4096, as Loihi 2 holds them.

A layer does one step a call and keeps its state until `reset`; with `time_axis=k` a call does all steps along that axis of its
input, from a fresh state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal, TypeAlias

import torch
from torch import nn

from spikec.frontend.nn.grid import DECAY_UNIT, straight_through
from spikec.frontend.nn.surrogate import Surrogate, fast_sigmoid

#: A number, one number per neuron, or one per channel in the shape that broadcasts against a step's input.
Number: TypeAlias = "float | torch.Tensor"


class Stateful(nn.Module):
    """What all layers with a memory share: state, reset, and the loop over time.

    states: names of the attributes that hold the state between calls, None before the first.
    """

    states: tuple[str, ...] = ()

    def __init__(self, time_axis: int | None) -> None:
        super().__init__()
        if time_axis is not None and (isinstance(time_axis, bool) or not isinstance(time_axis, int)):
            raise ValueError(f"time_axis is a number or None, not {time_axis!r}")
        self.time_axis = time_axis
        self.reset()

    def reset(self) -> None:
        """Forget the past: the next call begins from a fresh state."""
        for name in self.states:
            self.__dict__[name] = None

    def _number(self, name: str, value: Number, learn: Collection[str]) -> None:
        """A parameter if it is to be learnt, else a buffer: both are saved with the model."""
        tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()).clone().detach()
        if name in learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)


def reset(model: nn.Module) -> None:
    """Forget the past of every layer of a model. Call it before each batch, as in `forward`'s first line."""
    for module in model.modules():
        if isinstance(module, Stateful):
            module.reset()


class Neuron(Stateful):
    """A layer of neurons. decays: which of its numbers are decays: kept in 0 to 1 and on the grid of multiples of 1/4096."""

    decays: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    def __init__(self, numbers: dict[str, Number], learn: Collection[str], time_axis: int | None) -> None:
        super().__init__(time_axis)
        if unknown := set(learn) - set(numbers):
            raise ValueError(f"{type(self).__name__} has no {', '.join(sorted(unknown))} to learn; it has {', '.join(numbers)}")
        for name, value in numbers.items():
            self._number(name, value, learn)
            if name in self.decays and not bool(((getattr(self, name) >= 0) & (getattr(self, name) <= 1)).all()):
                raise ValueError(f"{name} is a decay, from 0 (no memory) to 1 (no leak), not {value}")

    def number(self, name: str) -> torch.Tensor:
        """A number as the equations use it: a decay rounded to the grid, straight through."""
        held: torch.Tensor = getattr(self, name)
        return straight_through(held, DECAY_UNIT, 0.0, 1.0) if name in self.decays else held

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """One step: from the input to the output, changing the state."""
        raise NotImplementedError  # each neuron states its own step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One step, x (batch, ...); or all steps along time_axis, and the same shape out."""
        if self.time_axis is None:
            return self.step(x)
        self.reset()
        out = torch.stack([self.step(entry) for entry in x.unbind(self.time_axis)], dim=self.time_axis)
        self.reset()
        return out

    def state(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A state, or zeros before the first step and where the input has another shape."""
        held = getattr(self, name)
        return torch.zeros_like(like) if held is None or held.shape != like.shape else held

    def extra_repr(self) -> str:
        """The numbers, for `print(model)`."""
        parts = [f"{name}={self._shown(name)}" for name in self.numbers]
        return ", ".join([*parts, *self._options()])

    def _shown(self, name: str) -> str:
        held = self.number(name).detach()
        return f"{held.item():.6g}" if held.ndim == 0 else f"({', '.join(map(str, held.shape))})"

    def _options(self) -> Iterator[str]:
        if self.time_axis is not None:
            yield f"time_axis={self.time_axis}"


class Spiking(Neuron):
    """A layer that spikes. reset_by: a spike sets the membrane to 0 ("zero") or takes the threshold off it ("subtract")."""

    def __init__(
        self,
        numbers: dict[str, Number],
        learn: Collection[str],
        time_axis: int | None,
        reset_by: Literal["zero", "subtract"],
        surrogate: Surrogate | None,
    ) -> None:
        super().__init__(numbers, learn, time_axis)
        if reset_by not in ("zero", "subtract"):
            raise ValueError(f'reset_by is "zero" or "subtract", not {reset_by!r}')
        self.reset_by = reset_by
        self.surrogate = surrogate or fast_sigmoid()

    def fire(self, v: torch.Tensor, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Spikes, and the membrane that they leave. The reset itself has no gradient."""
        s = self.surrogate(v - theta)
        fired = s.detach()
        left = torch.where(fired > 0, torch.zeros_like(v), v) if self.reset_by == "zero" else v - fired * theta
        return s, left

    def _options(self) -> Iterator[str]:
        yield f'reset_by="{self.reset_by}"'
        yield from super()._options()


class LIF(Spiking):
    r"""Leaky integrate-and-fire neurons.

    .. code-block:: text

        v = beta v + x
        s = v > threshold
        v = 0 where s            (reset_by="zero")
        v = v - threshold s      (reset_by="subtract")

    Args:
        beta: decay of the membrane a step, 0 to 1, rounded to a multiple of 1/4096.
        threshold: above which it spikes, > 0.
        learn: which of "beta" and "threshold" are trained.
        reset_by: "zero" (what Loihi 2 has in its library) or "subtract".
        surrogate: the gradient of a spike; default `fast_sigmoid()`.
        time_axis: None: a call is a step; else the axis along which a call does all steps.

    Shape:
        input (batch, ...) and output the same; with time_axis one axis more in both. Output is 0.0 and 1.0.

    Numbers may be tensors: one per neuron, or in a shape that broadcasts against a step's input.
    """

    states = ("v",)
    decays = ("beta",)
    numbers = ("beta", "threshold")
    v: torch.Tensor | None

    def __init__(
        self,
        beta: Number = 0.9,
        threshold: Number = 1.0,
        *,
        learn: Collection[str] = (),
        reset_by: Literal["zero", "subtract"] = "zero",
        surrogate: Surrogate | None = None,
        time_axis: int | None = None,
    ) -> None:
        super().__init__({"beta": beta, "threshold": threshold}, learn, time_axis, reset_by, surrogate)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes of one step."""
        v = self.number("beta") * self.state("v", x) + x
        s, self.__dict__["v"] = self.fire(v, self.number("threshold"))
        return s


class CUBALIF(Spiking):
    r"""Current-based leaky integrate-and-fire neurons, as Loihi 2 has them.

    .. code-block:: text

        u = alpha u + x
        v = beta v + u + bias
        s = v > threshold
        v = 0 where s            (reset_by="zero")
        v = v - threshold s      (reset_by="subtract")

    Args:
        alpha: decay of the synaptic current a step, 0 (no memory) to 1, rounded to a multiple of 1/4096.
        beta: decay of the membrane a step, likewise.
        threshold: above which it spikes, > 0.
        bias: what the membrane receives at every step.
        learn: which of "alpha", "beta", "threshold" and "bias" are trained.
        reset_by, surrogate, time_axis: as in `LIF`.

    Shape:
        as in `LIF`.
    """

    states = ("u", "v")
    decays = ("alpha", "beta")
    numbers = ("alpha", "beta", "threshold", "bias")
    u: torch.Tensor | None
    v: torch.Tensor | None

    def __init__(
        self,
        alpha: Number = 0.5,
        beta: Number = 0.9,
        threshold: Number = 1.0,
        *,
        bias: Number = 0.0,
        learn: Collection[str] = (),
        reset_by: Literal["zero", "subtract"] = "zero",
        surrogate: Surrogate | None = None,
        time_axis: int | None = None,
    ) -> None:
        numbers: dict[str, Number] = {"alpha": alpha, "beta": beta, "threshold": threshold, "bias": bias}
        super().__init__(numbers, learn, time_axis, reset_by, surrogate)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes of one step."""
        u = self.number("alpha") * self.state("u", x) + x
        v = self.number("beta") * self.state("v", x) + u + self.number("bias")
        self.__dict__["u"] = u
        s, self.__dict__["v"] = self.fire(v, self.number("threshold"))
        return s


class ALIF(Spiking):
    r"""Leaky integrate-and-fire neurons whose threshold rises with every spike and falls back.

    .. code-block:: text

        v = beta v + x
        s = v > threshold + a
        v = 0 where s                  (reset_by="zero")
        v = v - (threshold + a) s      (reset_by="subtract")
        a = rho a + rise s

    Args:
        beta: decay of the membrane a step, 0 to 1, rounded to a multiple of 1/4096.
        rho: decay of the adaptation a step, likewise.
        threshold: at rest, > 0.
        rise: how much a spike raises the threshold.
        learn: which of "beta", "rho", "threshold" and "rise" are trained.
        reset_by, surrogate, time_axis: as in `LIF`.

    Shape:
        as in `LIF`.
    """

    states = ("v", "a")
    decays = ("beta", "rho")
    numbers = ("beta", "rho", "threshold", "rise")
    v: torch.Tensor | None
    a: torch.Tensor | None

    def __init__(
        self,
        beta: Number = 0.9,
        rho: Number = 0.99,
        threshold: Number = 1.0,
        rise: Number = 0.1,
        *,
        learn: Collection[str] = (),
        reset_by: Literal["zero", "subtract"] = "zero",
        surrogate: Surrogate | None = None,
        time_axis: int | None = None,
    ) -> None:
        numbers: dict[str, Number] = {"beta": beta, "rho": rho, "threshold": threshold, "rise": rise}
        super().__init__(numbers, learn, time_axis, reset_by, surrogate)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes of one step."""
        a = self.state("a", x)
        v = self.number("beta") * self.state("v", x) + x
        s, self.__dict__["v"] = self.fire(v, self.number("threshold") + a)
        self.__dict__["a"] = self.number("rho") * a + self.number("rise") * s
        return s


class LI(Neuron):
    r"""A readout that integrates and does not spike.

    .. code-block:: text

        v = beta v + x

    Args:
        beta: decay a step, 0 to 1 (a plain sum), rounded to a multiple of 1/4096.
        learn: ("beta",) trains it.
        time_axis: as in `LIF`.

    Shape:
        as in `LIF`; the output is v.
    """

    states = ("v",)
    decays = ("beta",)
    numbers = ("beta",)
    v: torch.Tensor | None

    def __init__(self, beta: Number = 0.9, *, learn: Collection[str] = (), time_axis: int | None = None) -> None:
        super().__init__({"beta": beta}, learn, time_axis)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """The membrane after one step."""
        v = self.number("beta") * self.state("v", x) + x
        self.__dict__["v"] = v
        return v
