"""How the weights of a layer of spikes are stored: whole rows, blocks of neighbours, packed with a bit a place, or a list.

A spike adds one row. On vectors a whole row is quick even where most of it is zero, so that a form has to leave out much, or in
whole vectors, before it saves time; without vectors every zero that is left out does. Packed rows are whole rows that the program
holds without the zeros, and that spk_init writes out into the network's memory. The prices of `_PRICES` are times of one row,
measured by `make bench-sparsity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from spikec.backends.c.parts import lanes
from spikec.ir.types import Array

if TYPE_CHECKING:
    from spikec.target import Target

#: Widths of blocks that there is code for: neighbouring targets of a source.
BLOCKS: Final = (8, 16, 32)
FORMS: Final = ("rows", "packed", "block8", "block16", "block32", "steps", "list")
#: Matrices of more places than that are kept as lists, whatever else would save.
LARGE: Final = 1 << 24


@dataclass(frozen=True)
class Choices:
    """What the backend chooses by. vector: bytes of a vector of the target. small: the fewest bytes, not the least time.
    packed: weights may be written out into the network's memory. form: one of FORMS for every layer that can have it, instead of
    the best. products: layers of values are multiplied all at once."""

    vector: int = 32
    small: bool = False
    packed: bool = True
    form: str = ""
    products: bool = True

    @property
    def absorbs(self) -> float:
        """The share of a layer's sources that must have connections, so that the others have empty rows instead of a choice at
        every step. Packed, an empty row is a bit."""
        return 0.25 if self.packed and not self.small else 0.5

    @classmethod
    def of(cls, target: Target | None, *, small: bool = False, packed: bool = True) -> Choices:
        """Those for a target; `small` also where it was asked for. Where constants lie in flash, RAM is too dear for a copy."""
        small = small or (target is not None and target.has("small"))
        known = target is not None and target.has("vector_bytes")
        packed = packed and not (target is not None and target.has("flash"))
        vector = target.integer("vector_bytes") if target is not None and known else cls.vector
        return cls(vector=vector, small=small, packed=packed)


class _Prices(NamedTuple):
    """What a step costs in any form but rows, and an event; then 64 places of a whole row, a block of 8, 16 and 32, and a
    connection of a list."""

    step: float
    event: float
    places: float
    block: tuple[float, float, float]
    connection: float


#: The share of the sources that is reckoned to send at a step.
_ACTIVE: Final = 0.05
#: By bytes of a vector: nanoseconds on the machine of README.md for x86, instructions for Arm's 16 and for 0, where there is none.
_PRICES: Final = {
    64: _Prices(15, 0.5, 0.47, (1.0, 0.95, 1.35), 0.58),
    32: _Prices(15, 0.5, 0.91, (0.9, 0.9, 1.5), 0.56),
    16: _Prices(40, 20, 12, (9.5, 15.4, 25.7), 7.4),
    0: _Prices(40, 40, 382, (60, 112, 214), 8),
}


@dataclass(frozen=True)
class Form:
    """A way to store a layer: its kind, bytes of constants, cycles an event, and bytes that it takes of the network's memory."""

    name: str
    bytes: int
    cycles: float
    memory: int = 0

    @property
    def width(self) -> int:
        """Of a block; 0 where there are none."""
        return int(self.name.removeprefix("block")) if self.name.startswith("block") else 0


def blocks_of(present: Array, width: int) -> Array:
    """(sources, targets): where blocks of `width` targets begin that hold all that is there; the fewest that do.

    A block begins where something is that no block before it holds. It need not begin at a multiple of the width: neurons that a
    pass removed would have moved all blocks behind them.
    """
    begins = np.zeros(present.shape, bool)
    until = np.zeros(len(present), np.int64)
    for target in range(present.shape[1]):
        here = present[:, target] & (until <= target)
        begins[:, target] = here
        until[here] = target + width
    return begins


def steps(matrix: Array) -> tuple[Array, Array]:
    """Connections of (sources, targets) as spk_steps.h has them, and where the sources begin."""
    source, target = np.nonzero(matrix)
    first = np.diff(source, prepend=-1) != 0
    gap = target - np.where(first, 0, np.roll(target, 1))
    extra = np.where(gap > 0, (gap - 1) // 255, 0)
    sizes = np.bincount(source, weights=1 + extra, minlength=len(matrix)).astype(np.int64)
    start = np.concatenate([[0], np.cumsum(sizes + sizes % 2)])
    pairs = np.zeros(start[-1], np.int64)
    # Where a connection stands: behind all before it in its row, and behind the fillers of its own step.
    ends = np.cumsum(1 + extra)
    before = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    at = start[source] + ends - 1 - before[source]
    for back in range(1, int(extra.max(initial=0)) + 1):
        pairs[at[extra >= back] - back] = 255
    pairs[at] = (matrix[source, target].astype(np.int64) << 8) | (gap - 255 * extra)
    return pairs.astype(np.int16), start


def pays(packed: int, whole: int) -> bool:
    """Whether so many packed bytes instead of whole rows are worth the network's memory: a quarter is saved."""
    return 4 * packed <= 3 * whole


def forms(present: Array, stride: int, vector: int, weight: int = 1) -> list[Form]:
    """Every form of (sources, targets) with its bytes and cycles; `stride`: places of a whole row, `weight`: bytes of one."""
    prices = _PRICES[max(size for size in _PRICES if size <= vector)]
    sources, targets = present.shape
    count = int(np.count_nonzero(present))
    mean = count / max(sources, 1)
    index = 2 if targets <= 1 << 16 else 4
    event = prices.event + prices.step / max(_ACTIVE * sources, 1)
    found = [Form("rows", sources * stride * weight, prices.places * stride / 64)]
    packed = -(-sources // 8) + int(present.any(axis=1).sum()) * -(-targets // 8) + count
    if weight == 1 and pays(packed, sources * targets):
        found.append(Form("packed", packed, found[0].cycles, sources * lanes(targets)))
    for place, width in enumerate(BLOCKS):
        blocks = int(blocks_of(present, width).sum())
        size = 4 * (sources + 1) + blocks * (2 + width * weight)
        found.append(Form(f"block{width}", size, event + prices.block[place] * blocks / max(sources, 1)))
    listed = event + prices.connection * mean
    found.append(Form("list", 4 * (sources + 1) + count * (index + weight), listed))
    if weight == 1:
        pairs, _ = steps(present.astype(np.int8))
        found.append(Form("steps", 4 * (sources + 1) + pairs.nbytes, event + prices.connection * pairs.size / max(sources, 1)))
    return found


def connection(vector: int) -> float:
    """What a connection costs that is added by itself."""
    return _PRICES[max(size for size in _PRICES if size <= vector)].connection


def choose(found: Sequence[Form], *, small: bool) -> Form:
    """The least time, or the fewest bytes, memory counted as well; where two are within a tenth of each other, the better in the
    other respect."""

    def first(form: Form) -> float:
        return form.bytes + form.memory if small else form.cycles

    def second(form: Form) -> float:
        return form.cycles if small else form.bytes

    best = min(first(form) for form in found)
    return min((form for form in found if first(form) <= 1.1 * best), key=second)
