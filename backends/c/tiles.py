"""Weights as tiles for a matrix unit: where in a row of inputs 64 bytes are taken, and which 64 x 32 weights they meet.

A product of the unit takes 64 inputs that lie side by side. For each 32 outputs the inputs that they depend on are covered with
as few runs of 64 as possible; equal tiles of weights are kept once, so that a convolution has as many as its kernel has taps,
and those at the edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

import numpy as np

from spikec.backends.c.plan import Layout, order_of, place_of
from spikec.ir.ops import Conv, Dense
from spikec.ir.types import Array

#: Inputs of a product, rows (steps) that a kernel takes at a time, and outputs of a pair of tiles.
RUN: Final = 64
GROUP: Final = 32
PAIR: Final = 32
#: Connections of a convolution that are looked at one by one.
_MOST: Final = 1 << 24
#: Where the runs of a map should begin is seen from so many pairs, and tried for so many places.
_LOOKED: Final = 48
_LIKELY: Final = 4
#: Cycles of a run for a group of rows, if its lines are whole and if they are not, and of copying a byte of a group.
_WHOLE: Final = 80
_HALVES: Final = 125
_COPIED: Final = GROUP / 24
#: Nanoseconds of a product of the unit, loads and what is lost included, where lines are whole and where they are not; of a byte
#: that is copied; of an added weight (of a convolution: where the sums have room around the map, and where they have not) and of
#: an event, event by event: measured on Sapphire Rapids (issue 5, offline mode).
_PRODUCT: Final = {"dense": 5.1, "conv": 7.0, "copied": 9.5, "loose": 16.0}
_COPY: Final = 0.022
_ADDITION: Final = {"dense": 1 / 90, "conv": 1 / 64}
_SLOWER: Final = 1 / 20
_EVENT: Final = 1.0
#: Nanoseconds of a sum that is kept for itself: written, and read again by who adds to it.
_KEPT: Final = 0.06


@dataclass
class Tiles:
    """The weights of one layer. `start[pair]` to `start[pair + 1]` are its runs: where they begin, and their tiles."""

    wide: int  # neurons of a panel
    panels: int
    start: list[int] = field(default_factory=lambda: [0])
    run: list[tuple[int, int]] = field(default_factory=list)  # copy, place
    tile: list[int] = field(default_factory=list)
    packed: list[bytes] = field(default_factory=list)
    order: list[int] = field(default_factory=list)  # in which the panels are computed
    reach: Array = field(default_factory=lambda: np.zeros(0, np.int64))  # for every input, connections / `unit`
    unit: int = 1
    kind: str = "dense"
    kept: bool = False  # sums are kept, not taken by a population at once
    shifts: tuple[int, ...] = ()  # bytes before each copy of the inputs, so that all runs are whole cache lines; (): they are not

    @property
    def weights(self) -> Array:
        """All tiles, one after the other."""
        return np.frombuffer(b"".join(self.packed), np.int8)

    @property
    def products(self) -> float:
        """Products of the unit for each row."""
        return len(self.run) * 4 / GROUP

    @property
    def share(self) -> int:
        """Rows of neurons that are computed beside each run, so that all are done when the next sums are."""
        return min(-(-GROUP * self.panels // max(len(self.run), 1)), 8)

    @property
    def nanoseconds(self) -> float:
        """What a row takes on the unit."""
        aligned = "loose" if not self.shifts else "conv" if len(self.shifts) == 1 else "copied"
        copies = 0 if self.shifts in ((), (0,)) else len(self.shifts) * self.reach.size
        kept = self.wide * self.panels * _KEPT if self.kept else 0.0
        return self.products * _PRODUCT[self.kind if self.kind == "dense" else aligned] + copies * _COPY + kept

    def crossover(self, addition: float | None = None) -> float:
        """Events of a row from which on the unit is faster than adding event by event, as it is done beside tiles; `addition`:
        nanoseconds of a weight otherwise."""
        beside = _ADDITION["dense"] if self.kind == "dense" else _SLOWER
        return self.nanoseconds / self.event(beside if addition is None else addition)

    def event(self, addition: float | None = None) -> float:
        """Nanoseconds of an event that is added, one step at a time or with this price of a weight."""
        connections = float(self.reach.mean()) * self.unit if self.reach.size else 0.0
        return connections * (_ADDITION[self.kind] if addition is None else addition) + _EVENT

    @property
    def gain(self) -> float:
        """The same against the way in which events would be added if there were no tiles."""
        return self.crossover(_ADDITION[self.kind])


def tiles_of(
    part: Dense | Conv, weight: Array, into: tuple[int, ...], out: tuple[int, ...], source: Layout | None, target: Layout | None
) -> Tiles | None:
    """The tiles of a layer whose inputs and outputs (of shapes `into` and `out`) lie in these orders; None where there would be
    too many connections to look at."""
    connections = _dense(weight, source) if isinstance(part, Dense) else _conv(part, weight, into, source, target)
    if connections is None:
        return None
    places, values, inside = connections
    outputs, fan_in = len(places), int(np.prod(into, dtype=np.int64))
    wide = 32 if outputs <= 32 else 64
    panels = -(-outputs // wide)
    result = Tiles(wide, panels, kind="dense" if isinstance(part, Dense) else "conv")
    result.shifts = (0,) if isinstance(part, Dense) else _shifts(places, values)
    known: dict[bytes, int] = {}
    for pair in range(panels * wide // PAIR):
        block = slice(pair * PAIR, min((pair + 1) * PAIR, outputs))
        where, what = places[block], values[block]
        rows, entries = np.nonzero(what)
        needed, value = where[rows, entries], what[rows, entries]
        order = np.argsort(needed, kind="stable")
        needed, value, rows = needed[order], value[order], rows[order]
        for at, end, begin, copy in _cover(needed, result.shifts):
            tile = np.zeros((RUN, PAIR), np.int64)
            np.add.at(tile, (needed[at:end] - begin, rows[at:end]), value[at:end])
            packed = tile.astype(np.int8).reshape(RUN // 4, 4, PAIR // 16, 16).transpose(2, 0, 3, 1).tobytes()
            number = known.setdefault(packed, len(known))
            if number == len(result.packed):
                result.packed.append(packed)
            result.run.append((copy, begin))
            result.tile.append(number)
        result.start.append(len(result.run))
    result.order = list(range(panels)) if isinstance(part, Dense) else _downwards(out[-1], panels, wide, target)
    result.unit = outputs if isinstance(part, Dense) else max(part.weight.shape[0] // part.groups, 1)
    result.reach = np.ones(fan_in, np.int64) if inside is None else np.bincount(places[inside], minlength=fan_in) // result.unit
    return result


def _cover(needed: Array, shifts: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Runs that cover rising places, as few as possible: the places [at, end) of the list, where the run begins, and in which
    copy. In a copy that is moved by `shift` bytes a run begins at a multiple of 64."""
    found = []
    at = 0
    while at < len(needed):
        first = int(needed[at])
        begin, copy = max(((first + shift) // RUN * RUN - shift, k) for k, shift in enumerate(shifts)) if shifts else (first, 0)
        end = int(np.searchsorted(needed, begin + RUN))
        found.append((at, end, begin, copy))
        at = end
    return found


def _shifts(places: Array, values: Array) -> tuple[int, ...]:
    """Copies of a map in which runs are whole cache lines, if together with making the copies that takes less than reading
    lines in two halves."""
    pairs = -(-len(places) // PAIR)
    needed = []
    for pair in np.unique(np.linspace(0, pairs - 1, min(pairs, _LOOKED), dtype=np.int64)):
        block = slice(pair * PAIR, (pair + 1) * PAIR)
        needed.append(np.unique(places[block][values[block] != 0]))
    size = int(places.max(initial=0)) + 1
    loose = [run for each in needed for run in _cover(each, ())]
    begins, often = np.unique([-begin % RUN for _, _, begin, _ in loose], return_counts=True)
    likely = [int(shift) for shift in begins[np.argsort(-often, kind="stable")][:_LIKELY]]
    best: tuple[int, ...] = ()
    least: float = len(loose) * _HALVES
    for count in (1, 2):
        for shifts in combinations(sorted({0, *likely}), count):
            copies = 0 if shifts == (0,) else count * size * _COPIED * len(needed) / pairs
            cost = sum(len(_cover(each, shifts)) for each in needed) * _WHOLE + copies
            if cost < least:
                best, least = shifts, cost
    return best


def _downwards(width: int, panels: int, wide: int, target: Layout | None) -> list[int]:
    """Panels of a map column by column: what a panel reads is then mostly what the one before it, above, has read."""
    across = width * target[0] // wide if target is not None and width * target[0] % wide == 0 else 1
    return sorted(range(panels), key=lambda panel: (panel % across, panel))


#: For every output its inputs (as places in the buffer) and weights, and which of them exist (None: all).
_Connections = tuple[Array, Array, Array | None]


def _dense(weight: Array, source: Layout | None) -> _Connections:
    fan_in = weight.shape[1]
    return np.broadcast_to(np.arange(fan_in), weight.shape), weight[:, order_of(source, fan_in)], None


def _conv(part: Conv, weight: Array, into: tuple[int, ...], source: Layout | None, target: Layout | None) -> _Connections | None:
    """Inputs and weights of every output, outputs in the order in which they lie."""
    two = weight.reshape(*weight.shape[:2], -1, weight.shape[-1]) if weight.ndim == 4 else weight[:, :, None]
    space = (1, *into[1:]) if len(into) == 2 else into[1:]
    stride, padding, dilation = (
        (low, *axis) if len(axis) == 1 else tuple(axis) for low, axis in ((1, part.stride), (0, part.padding), (1, part.dilation))
    )
    kernel = two.shape[2:]
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(space, padding, dilation, kernel, stride, strict=True)]
    if int(np.prod(out)) * two.size > _MOST:
        return None
    channel, oy, ox = np.indices((len(two), *out)).reshape(3, -1, 1, 1, 1)
    each, ky, kx = np.indices(two.shape[1:])[:, None]
    y = oy * stride[0] - padding[0] + ky * dilation[0]
    x = ox * stride[1] - padding[1] + kx * dilation[1]
    held = len(two) // part.groups
    from_channel = channel // held * two.shape[1] + each
    inside = (y >= 0) & (y < space[0]) & (x >= 0) & (x < space[1])
    element = np.where(inside, (from_channel * space[0] + y) * space[1] + x, 0)
    place = place_of(source, int(np.prod(into)))[element]
    value = np.where(inside, two[channel[..., 0, 0, 0]], 0)
    order = order_of(target, len(place))
    flat = (len(place), -1)
    return place.reshape(flat)[order], value.reshape(flat)[order], np.broadcast_to(inside, place.shape).reshape(flat)[order]
