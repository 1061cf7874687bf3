"""Populations cut into shards that fit on a core, and what each shard takes there.

A core holds the states of its neurons and the synapses that end on them: its memory is charged by the rows of weights that its
neurons read, its input axons by the distinct sources, its output axons by the cores that read its neurons, its neuron groups by
the populations. A population of channels is cut by position, so that a shard's sources are neighbours, or by channel, so that it
holds few kernels: whichever takes fewer shards. One with a single axis is cut by index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from spikec.bits import synapse_bits
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.types import Array
from spikec.target import Target


@dataclass
class Shard:
    """Some neurons of one population: flat indices, words of synaptic memory, and the sources by node (flat truths)."""

    population: str
    members: Array
    words: int
    sources: dict[str, Array] = field(repr=False)

    @property
    def axons(self) -> int:
        """Distinct sources that reach it."""
        return sum(int(np.count_nonzero(mask)) for mask in self.sources.values())


@dataclass(frozen=True)
class Limits:
    """What a core offers."""

    neurons: int
    words: int
    axons_in: int
    axons_out: int
    word_bits: int
    target: Target
    groups: int
    delay_bits: int

    @classmethod
    def of(cls, target: Target) -> Limits:
        """From a target's numbers."""
        return cls(
            target.integer("core_neurons"),
            target.integer("core_words"),
            target.integer("core_axons_in"),
            target.integer("core_axons_out"),
            target.integer("core_word_bits"),
            target,
            target.integer("core_neuron_groups") if target.has("core_neuron_groups") else target.integer("core_neurons"),
            target.integer("delay_synapse_bits") if target.has("delay_synapse_bits") else 0,
        )

    def holds(self, neurons: int, words: int, axons: int) -> bool:
        """Whether so much fits on one core."""
        return neurons <= self.neurons and words <= self.words and axons <= self.axons_in


class Cutter:
    """Cuts the populations of a graph."""

    def __init__(self, graph: Graph, limits: Limits) -> None:
        self.graph, self.limits = graph, limits
        self._bits: dict[str, int] = {}

    def bits(self, node: Dense | Sparse | Conv) -> int:
        """Bits of memory that a synapse takes: a sparse one has an index, one with a delay of its own that delay."""
        if node.name not in self._bits:
            full, listed = synapse_bits(self.limits.target, node.weight, not isinstance(node, Conv))
            more = 0 if node.delay is None else self.limits.delay_bits
            self._bits[node.name] = more + (listed if isinstance(node, Sparse) else full)
        return self._bits[node.name]

    def shard(self, node: Neuron, members: Array) -> Shard:
        """The shard of these neurons (flat indices), with what it takes."""
        mask = np.zeros(self.graph.shape_of(node.name), bool)
        mask.ravel()[members] = True
        found: dict[str, Array] = {}
        words = 0
        for ref in node.inputs:
            words += self._walk(ref, mask, found)
        return Shard(node.name, members, words, found)

    def cut(self, node: Neuron, most: int) -> list[Shard]:
        """As few shards of about equal size as fit, of at most so many neurons; single neurons where not even those do."""
        shape = self.graph.shape_of(node.name)
        order = np.arange(int(np.prod(shape)))
        if len(shape) < 2:
            return self._cut(node, order, most, len(order))
        by_position = self._cut(node, order.reshape(shape[0], -1).T.ravel(), most, len(order))
        if len(by_position) <= -(-len(order) // min(most, self.limits.neurons)):
            return by_position
        by_channel = self._cut(node, order, most, len(by_position))
        return by_channel if 0 < len(by_channel) < len(by_position) else by_position

    def _cut(self, node: Neuron, order: Array, most: int, bound: int) -> list[Shard]:
        """The neurons in this order, cut into as few runs as fit; nothing where more than `bound` are needed."""
        size = len(order)
        least = max(1, -(-size // min(most, self.limits.neurons)))
        good, bad = least, least - 1
        while good < size and not self._probe(node, order, good):  # double, then halve what is between
            bad, good = good, min(2 * good, size)
            if bad >= bound:
                return []
        while good - bad > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self._probe(node, order, middle) else (good, middle)
        while True:
            shards = []
            for part in np.array_split(order, good):
                shards.append(self.shard(node, part))
                if good < size and not self._fits(shards[-1]):
                    break
            else:
                return shards
            good = min(size, good + max(1, good // 50))

    def _probe(self, node: Neuron, order: Array, count: int) -> bool:
        """Whether the first, the middle and the last of so many runs fit, which tells most."""
        parts = np.array_split(order, count)
        return all(self._fits(self.shard(node, parts[k])) for k in dict.fromkeys((0, count // 2, count - 1)))

    def _fits(self, shard: Shard) -> bool:
        return self.limits.holds(len(shard.members), shard.words, shard.axons)

    def _words(self, counts: Array, bits: int) -> int:
        """Words of memory for sources with so many synapses on the core each; every source begins a new word."""
        return int(np.sum(-(-counts * bits // self.limits.word_bits)))

    def _walk(self, ref: Ref, mask: Array, found: dict[str, Array]) -> int:
        """Add the sources behind the elements in `mask` to `found`; returns the words of the synapses on the way."""
        node = self.graph[ref.node]
        if not mask.any():
            return 0
        if isinstance(node, (Neuron, Input, Constant)):
            flat = mask.ravel()
            found[node.name] = found[node.name] | flat if node.name in found else flat.copy()
            return 0
        if isinstance(node, (Dense, Sparse, Conv)):
            (operand,) = node.inputs
            columns, words = self._columns(node, mask, self.graph.type_of(operand).shape)
            return words + self._walk(operand, columns, found)
        shapes = [self.graph.type_of(operand).shape for operand in node.inputs]
        parts: list[Array]
        if isinstance(node, (Add, Scale)):
            parts = [mask for _ in node.inputs]
        elif isinstance(node, Reshape):
            parts = [mask.reshape(shapes[0])]
        elif isinstance(node, Concat):
            parts = np.split(mask, np.cumsum([shape[node.axis] for shape in shapes])[:-1], axis=node.axis)
        elif isinstance(node, Gather):
            flat = np.zeros(int(np.prod(shapes[0])), bool)
            flat[node.indices[mask]] = True
            parts = [flat.reshape(shapes[0])]
        else:
            assert isinstance(node, Pool)
            parts = [_spread(mask, shapes[0], node.kernel, node.stride, node.padding, (1,) * len(node.kernel))]
        return sum(self._walk(operand, part, found) for operand, part in zip(node.inputs, parts, strict=True))

    def _columns(self, node: Dense | Sparse | Conv, mask: Array, shape: tuple[int, ...]) -> tuple[Array, int]:
        """What a layer's chosen targets read, and the words that their synapses take."""
        bits = self.bits(node)
        if isinstance(node, Dense):
            rows = mask.reshape(-1, mask.shape[-1])
            columns = np.zeros((len(rows), shape[-1]), bool)
            words = 0
            for k, row in enumerate(rows):
                if row.any():
                    counts = np.count_nonzero(node.weight[row], axis=0)
                    columns[k] = counts > 0
                    # A full matrix keeps its zeros.
                    words += self._words(np.where(counts > 0, np.count_nonzero(row), 0), bits)
            return columns.reshape(shape), words
        if isinstance(node, Sparse):
            targets = np.flatnonzero(mask)
            lengths = np.diff(node.indptr)[targets]
            own = np.repeat(node.indptr[targets] - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
            counts = np.bincount(node.indices[own][node.weight[own] != 0], minlength=node.fan_in)
            return counts > 0, self._words(counts, bits)
        channels = mask.reshape(mask.shape[0], -1).any(axis=1)
        group = mask.shape[0] // node.groups
        columns = np.zeros(shape, bool)
        for g in range(node.groups):
            own = mask[g * group : (g + 1) * group]
            if own.any():
                place: Array = np.asarray(own.any(axis=0, keepdims=True))
                width = node.weight.shape[1]
                space = (1, *shape[1:])
                columns[g * width : (g + 1) * width] = _spread(
                    place, space, node.weight.shape[2:], node.stride, node.padding, node.dilation
                )
        # Positions share a kernel: it lies on the core once, and each source has one word that says where it begins.
        weights = int(np.count_nonzero(channels)) * int(np.prod(node.weight.shape[1:]))
        return columns, -(-weights * bits // self.limits.word_bits) + int(np.count_nonzero(columns))


def positions(shape: tuple[int, ...]) -> Array:
    """Flat indices of a population in an order of neighbours: channels of a position together, positions of two axes along a
    Z-order curve, so that a run of them is about a square."""
    flat = np.arange(int(np.prod(shape)))
    if len(shape) < 2:
        return flat
    order: Array = flat.reshape(shape[0], -1)
    if len(shape) == 3:
        y, x = np.divmod(np.arange(order.shape[1]), shape[2])
        code = np.zeros(len(y), np.int64)
        for bit in range(16):
            code |= ((y >> bit & 1) << 2 * bit + 1) | ((x >> bit & 1) << 2 * bit)
        order = order[:, np.argsort(code, kind="stable")]
    return np.asarray(order.T.ravel())


def _spread(
    mask: Array,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Array:
    """The positions (channels, *space) that windows at the positions in `mask` read."""
    result = mask
    for axis, (k, s, p, d) in enumerate(zip(kernel, stride, padding, dilation, strict=True), 1):
        out = np.zeros((*result.shape[:axis], shape[axis], *result.shape[axis + 1 :]), bool)
        moved, source = np.moveaxis(out, axis, 0), np.moveaxis(result, axis, 0)
        for tap in range(k):
            place = np.arange(len(source)) * s - p + tap * d
            inside = (place >= 0) & (place < shape[axis])
            moved[place[inside]] |= source[inside]
        result = out
    return result


@dataclass(frozen=True)
class CoreUse:
    """What lies on a core of a placed graph: its number on the board, and what it takes of every limit."""

    core: int
    populations: tuple[str, ...]
    neurons: int
    words: int
    axons_in: int
    axons_out: int

    def shares(self, limits: Limits) -> tuple[float, float, float, float]:
        """Of neurons, words, axons in and axons out, as parts of 1."""
        return (
            self.neurons / limits.neurons,
            self.words / limits.words,
            self.axons_in / limits.axons_in,
            self.axons_out / limits.axons_out,
        )


def core_use(graph: Graph, target: Target) -> list[CoreUse]:
    """By core of a placed graph, in the order of their numbers."""
    cutter = Cutter(graph, Limits.of(target))
    cores = {node.name: np.ravel(node.core) for node in graph.neurons if node.core is not None}
    readers = {name: np.zeros(core.size, np.int64) for name, core in cores.items()}
    found: list[tuple[int, list[Shard], int]] = []
    for number in np.unique(np.concatenate([*cores.values(), np.zeros(0, np.int64)])).astype(int).tolist():
        members = {node: np.flatnonzero(cores[node.name] == number) for node in graph.neurons}
        shards = [cutter.shard(node, own) for node, own in members.items() if len(own)]
        heard: dict[str, Array] = {}
        for shard in shards:
            for name, mask in shard.sources.items():
                heard[name] = heard[name] | mask if name in heard else mask
        for name in heard.keys() & readers.keys():
            readers[name] += heard[name]
        found.append((number, shards, sum(int(np.count_nonzero(mask)) for mask in heard.values())))
    return [
        CoreUse(
            number,
            tuple(shard.population for shard in shards),
            sum(len(shard.members) for shard in shards),
            sum(shard.words for shard in shards),
            axons,
            sum(int(readers[shard.population][shard.members].sum()) for shard in shards),
        )
        for number, shards, axons in found
    ]


def mesh_hops(target: Target, spots: Array) -> Array:
    """Hops between all pairs of spots (core numbers), (S, S): XY routing, and what crossing to another chip counts for."""
    wide, per_router = target.integer("mesh_width"), target.integer("router_cores")
    chip, rest = np.divmod(spots, target.integer("chip_cores"))
    y, x = np.divmod(rest // per_router, wide)
    hops = np.zeros((len(spots), len(spots)), np.float32)
    for axis, weight in ((chip, target.integer("chip_hops")), (x, 1), (y, 1)):
        hops += weight * np.abs(axis.astype(np.float32)[:, None] - axis.astype(np.float32))
    return hops


def core_traffic(graph: Graph, target: Target, sent: Mapping[str, Array]) -> tuple[float, float]:
    """Messages between cores, and hops, of a placed graph whose neurons sent so much: `sent` (flat) by population."""
    cutter = Cutter(graph, Limits.of(target))
    numbers = np.unique(np.concatenate([np.ravel(node.core) for node in graph.neurons if node.core is not None]))
    home = {node.name: np.searchsorted(numbers, np.ravel(node.core)) for node in graph.neurons if node.core is not None}
    traffic = np.zeros((len(numbers), len(numbers)))
    for core in range(len(numbers)):
        heard: dict[str, Array] = {}
        for node in graph.neurons:
            members = np.flatnonzero(home[node.name] == core)
            for name, mask in cutter.shard(node, members).sources.items() if len(members) else ():
                heard[name] = heard[name] | mask if name in heard else mask
        for name in heard.keys() & home.keys():
            mask = heard[name]
            traffic[:, core] += np.bincount(home[name][mask], weights=sent[name][mask], minlength=len(numbers))
    np.fill_diagonal(traffic, 0)
    return float(traffic.sum()), float(np.sum(traffic * mesh_hops(target, numbers)))


def rates(graph: Graph, calibrate: Mapping[str, Array] | None, default: float) -> dict[str, Array]:
    """Messages a step of every source (flat), from calibration data; the default without."""
    from spikec.ir.interpret import interpret

    names = [node.name for node in graph.nodes if isinstance(node, (Neuron, Input, Constant))]
    if calibrate is None:
        return {name: np.full(int(np.prod(graph.shape_of(name))), default) for name in names}
    data = {name: array[:32] for name, array in calibrate.items()}
    records = interpret(graph, data, record=names).records
    return {name: (records[name] != 0).mean(axis=(0, 1)).ravel() for name in names}
