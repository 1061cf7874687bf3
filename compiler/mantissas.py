"""How a target stores whole-number weights: mantissas of few bits, and one exponent for all weights of a synapse.

A weight is mantissa * 2^exponent. With an exponent below 0 the target drops bits of the sum; a mantissa is then a multiple of
2^-exponent, so that only zeros are dropped and the sum is exact, wherever the shift is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from spikec.ir.types import Array
from spikec.target import Target

#: Widths of a mantissa that there are.
WIDTHS: Final = (1, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Stored:
    """One exponent for all, and the bits of a mantissa, its sign included."""

    exponent: int
    bits: int

    def mantissas(self, weight: Array) -> Array:
        """The mantissas of weights."""
        whole = np.asarray(weight, np.int64)
        return whole >> self.exponent if self.exponent > 0 else whole << -self.exponent


#: All bits and no exponent.
PLAIN: Final = Stored(0, 8)


def stored(weight: Array, target: Target, reach: int = 0, exponents: bool = True) -> Stored | None:
    """The narrowest mantissas that hold these weights exactly, the exponent nearest to 0 among those; None where there are none.

    reach: the largest magnitude of a sum, which 32 bits must hold before an exponent below 0 shifts it. exponents: whether others
    than 0 are taken.
    """
    low, high = int(weight.min(initial=0)), int(weight.max(initial=0))
    if not low and not high:
        return Stored(0, WIDTHS[0])
    together = int(np.bitwise_or.reduce(np.abs(np.asarray(weight, np.int64)), axis=None))
    zeros = (together & -together).bit_length() - 1
    step, full = target.integer("weight_step"), target.integer("weight_bits")
    top, bottom = target.integer("weight_max"), target.integer("weight_min")
    dropped = step.bit_length() - 1  # of a mantissa of all bits
    best: Stored | None = None
    for exponent in range(target.integer("weight_exponent_min"), target.integer("weight_exponent_max") + 1):
        free = zeros - exponent - dropped  # bits that every mantissa has no use for
        if free < 0 or (exponent and not exponents) or (exponent < 0 and reach << -exponent >= 1 << 31):
            continue
        scaled = (low * 2.0**-exponent, high * 2.0**-exponent)
        if scaled[0] < bottom or scaled[1] > top:
            continue
        found = Stored(exponent, min(bits for bits in WIDTHS if bits >= min(full, max(full - free, 1))))
        if best is None or (found.bits, abs(exponent)) < (best.bits, abs(best.exponent)):
            best = found
    return best
