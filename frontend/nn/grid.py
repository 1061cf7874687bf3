"""Numbers as hardware holds them, in training: rounded forwards, as if they were not backwards (straight-through)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

#: A decay is a whole number of these on Loihi 2 (12 bits).
DECAY_UNIT = 1 / 4096


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, unit: float, low: float, high: float) -> torch.Tensor:
        ctx.save_for_backward((x >= low) & (x <= high))
        return torch.clamp(torch.round(x / unit) * unit, low, high)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None


def straight_through(x: torch.Tensor, unit: float, low: float, high: float) -> torch.Tensor:
    """x on the grid of multiples of `unit` from low to high; the gradient is that of x, and 0 outside the range.

    unit: a power of two, so that the rounded numbers are exact.
    """
    return _Straight.apply(x, unit, low, high)


@dataclass(frozen=True)
class Grid:
    """Weights of `bits` bits in multiples of `unit`: unit · k with −2^(bits−1) ≤ k < 2^(bits−1).

    With a unit that is a power of two the quantizer finds exactly these integers again, as long as all layers into a population
    have one unit and the threshold is a multiple of half of it. The default suits a threshold of 1 on Loihi 2: weights from −2 to
    1.98 in steps of 1/64.
    """

    bits: int = 8
    unit: float = 1 / 64

    def __post_init__(self) -> None:
        if self.bits < 1 or self.unit <= 0 or torch.frexp(torch.tensor(self.unit)).mantissa != 0.5:
            raise ValueError(f"a grid has at least 1 bit and a power of two as its unit, not bits={self.bits}, unit={self.unit}")

    @property
    def low(self) -> float:
        """The smallest number."""
        return -(2.0 ** (self.bits - 1)) * self.unit

    @property
    def high(self) -> float:
        """The largest number."""
        return (2.0 ** (self.bits - 1) - 1) * self.unit

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The weights on the grid, straight through."""
        return straight_through(weight, self.unit, self.low, self.high)

    def bias(self, bias: torch.Tensor) -> torch.Tensor:
        """A bias in the same unit; its range is wider than that of a weight."""
        return straight_through(bias, self.unit, -(2.0**20) * self.unit, 2.0**20 * self.unit)
