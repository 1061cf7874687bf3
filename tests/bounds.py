"""How many spikes may differ between two ways of adding up the same float numbers (design §10).

Step by step from the framework's own state: a spike may differ only where |v − θ| lies within the rounding bound of the sum that
made v. Everything is computed in float64 from the framework's own values, so that the bound is not itself rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]


def gamma(terms: int, unit: float) -> float:
    """γₙ = n u / (1 − n u): the relative error that n roundings can make (u is half the spacing at 1)."""
    return terms * unit / (1 - terms * unit)


def sum_bound(weight: Float, bias: Float | None, x: Float) -> Float:
    """Largest difference between two float orders of W x + b: 2 γₙ (|W| |x| + |b|), shape (..., out).

    weight (out, in) and bias (out,) in the dtype of the sum, x (..., in).
    """
    unit = float(np.finfo(weight.dtype).eps) / 2
    total = np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T
    if bias is not None:
        total = total + np.abs(bias.astype(np.float64))
    bound: Float = 2 * gamma(weight.shape[1] + 1, unit) * total
    return bound


def neuron_bound(v_before: Float, current: Float, theta: Float | float, dtype: type = np.float32) -> Float:
    """What the neuron's own four roundings (decay, input, reset, threshold) can add."""
    unit = float(np.finfo(dtype).eps) / 2
    bound: Float = gamma(4, unit) * (np.abs(v_before.astype(np.float64)) + np.abs(current.astype(np.float64)) + 2 * np.abs(theta))
    return bound


@dataclass(frozen=True)
class Flips:
    """Spikes that differ: how many, how many of them lie outside the bound, and of how many."""

    count: int
    outside: int
    total: int

    def __str__(self) -> str:
        return f"{self.count} of {self.total} spikes differ, {self.outside} of them outside the rounding bound"


def count_flips(ours: Float, theirs: Float, v: Float, theta: Float | float, bound: Float) -> Flips:
    """Compare spikes; v is the framework's membrane where it was compared with θ, bound as from the functions above."""
    differ = np.asarray(ours != theirs)
    allowed = np.abs(v.astype(np.float64) - theta) <= bound
    return Flips(int(differ.sum()), int((differ & ~allowed).sum()), differ.size)
