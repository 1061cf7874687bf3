"""Spikes whose gradient is a smooth stand-in: a Heaviside step forwards, another function's slope backwards.

Each function here returns a surrogate: called with v − θ it gives 1.0 where that is above 0 and 0.0 elsewhere, in the same dtype.
The names follow Neftci, Mostafa and Zenke, "Surrogate gradient learning in spiking neural networks" (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

#: From v − θ to spikes.
Surrogate = Callable[[torch.Tensor], torch.Tensor]
#: From v − θ to the slope that stands in for the step's.
Slope = Callable[[torch.Tensor], torch.Tensor]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, slope: Slope) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * ctx.slope(x), None


def step(slope: Slope) -> Surrogate:
    """A Heaviside step with a slope of your own: a function from v − θ to a tensor of its shape."""
    return lambda x: _Step.apply(x, slope)


def fast_sigmoid(sharpness: float = 10.0) -> Surrogate:
    """The slope 1 / (1 + k |x|)², of x / (1 + k |x|) (Zenke and Ganguli 2018)."""
    return step(lambda x: 1 / (1 + sharpness * x.abs()) ** 2)


def arctan(alpha: float = 2.0) -> Surrogate:
    """The slope (α/2) / (1 + (π α x / 2)²), of arctan(π α x / 2) / π (Fang et al. 2021)."""
    return step(lambda x: alpha / 2 / (1 + (math.pi / 2 * alpha * x) ** 2))


def sigmoid(sharpness: float = 4.0) -> Surrogate:
    """The slope k σ(k x) (1 − σ(k x)), of the logistic function."""

    def slope(x: torch.Tensor) -> torch.Tensor:
        y = torch.sigmoid(sharpness * x)
        return sharpness * y * (1 - y)

    return step(slope)


def triangle(width: float = 1.0) -> Surrogate:
    """The slope max(0, 1 − |x| / w) / w (Bellec et al. 2018)."""
    return step(lambda x: torch.clamp(1 - x.abs() / width, min=0) / width)


def gaussian(sigma: float = 0.5) -> Surrogate:
    """The slope of a normal distribution's integral with this standard deviation."""
    return step(lambda x: torch.exp(-0.5 * (x / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi)))


def rectangle(width: float = 1.0) -> Surrogate:
    """The slope 1 / w for |x| < w / 2, and none outside (Wu et al. 2018)."""
    return step(lambda x: (x.abs() < width / 2).to(x.dtype) / width)
