"""A network as a hypergraph: every source with the neurons that it reaches is a hyperedge, weighted by how often it sends.

A vertex is a handful of neurons of one population (`atoms`), or, when coarser, a cluster of them. Sources that reach the same
vertices are one `net`: it counts once on every core where any of them lies. What a core needs for a set of vertices (axons, words
of memory) follows from the nets as well. Matrices are sparse; rows are nets, columns vertices.

After Ronzani and Silvano 2026, "A Case for Hypergraphs to Model and Map SNNs on Neuromorphic Hardware" (arXiv 2601.16118).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy import sparse

from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.types import Array
from spikec.shards import Cutter, Limits, positions

#: Vertices, and entries of the matrix of pins, that a hypergraph may have.
VERTICES, PINS = 12_000, 3_000_000
#: Vertices that a full core should be made of, at least.
PARTS: Final = 8


@dataclass(frozen=True)
class Level:
    """A hypergraph. V vertices, N nets, T dense layers, S rows of memory that are rounded up one by one.

    neurons (V,); kinds (V, populations) truths; pins (N, V) truths as CSR. Of a net: width, the sources that reach each of its
    vertices; words, the memory that it takes on a core; outside, messages a step from inputs; rate and count (N, V), messages a
    step from its sources, and their number, at the vertices that they lie in. dense (T, V): rows of a dense layer; columns (N, T):
    columns of it that a net stands for; dense_bits (T,). rows (S, V): synapses of a source; row_count and row_bits (S,).
    slack: words that rounding may add on a core.
    """

    neurons: Array
    kinds: Array
    pins: Any
    width: Array
    words: Array
    outside: Array
    rate: Any
    count: Any
    dense: Array
    columns: Any
    dense_bits: Array
    rows: Any
    row_count: Array
    row_bits: Array
    slack: int

    @property
    def size(self) -> int:
        """V."""
        return len(self.neurons)

    def coarser(self, cluster: Array) -> Level:
        """The hypergraph whose vertices are clusters of this one's; cluster (V,) numbers them from 0."""
        count = int(cluster.max()) + 1
        joined = sparse.csr_array((np.ones(self.size), (np.arange(self.size), cluster)), shape=(self.size, count))
        kinds = np.zeros((count, self.kinds.shape[1]), bool)
        np.logical_or.at(kinds, cluster, self.kinds)
        return Level(
            np.bincount(cluster, weights=self.neurons, minlength=count).astype(np.int64),
            kinds,
            _truths(self.pins @ joined),
            self.width,
            self.words,
            self.outside,
            (self.rate @ joined).tocsr(),
            (self.count @ joined).tocsr(),
            self.dense @ joined,
            self.columns,
            self.dense_bits,
            (self.rows @ joined).tocsr(),
            self.row_count,
            self.row_bits,
            self.slack,
        )

    def needs(self, limits: Limits) -> Array:
        """(3, V): words, axons in and neurons that each vertex takes alone."""
        words = self.words @ self.pins
        for k, bits in enumerate(self.dense_bits):
            columns = self.columns[:, [k]].toarray().ravel() @ self.pins
            words = words + columns * -(-self.dense[k] * bits // limits.word_bits)
        rounded = self.rows.copy()
        own = np.repeat(np.arange(rounded.shape[0]), np.diff(rounded.indptr))
        rounded.data = -(-rounded.data * self.row_bits[own] // limits.word_bits)
        return np.stack([words + self.row_count @ rounded, self.width @ self.pins, self.neurons.astype(np.float64)])


@dataclass(frozen=True)
class Atoms:
    """Which neurons are a vertex: by population, the vertex of every neuron (flat), vertices numbered through."""

    of: Mapping[str, Array]
    size: int


def _truths(matrix: Any) -> Any:
    result = matrix.tocsr(copy=True)
    result.eliminate_zeros()
    result.data = np.ones(len(result.data))
    result.sort_indices()
    return result


@dataclass(frozen=True)
class _Reach:
    """Which vertices depend on each element of a wire: row `cls[element]` of `table` (classes, V), entries are counts."""

    cls: Array
    table: Any

    def rows(self) -> Any:
        """By element (flat), as a sparse matrix."""
        return self.table[self.cls.ravel()]


class _Walk:
    """Goes from populations back to their sources and collects nets and memory."""

    def __init__(self, graph: Graph, limits: Limits, atoms: Atoms) -> None:
        self.graph, self.limits, self.atoms = graph, limits, atoms
        self.cutter = Cutter(graph, limits)
        self.sources: dict[str, list[_Reach]] = {}
        # Rows of memory with the classes of their columns: (pins, how many, bits), and dense layers (rows of every vertex, bits).
        self.present: list[tuple[Any, Array]] = []
        self.rounded: list[tuple[Any, Array, int]] = []
        self.dense: list[tuple[Array, Any, Array, int]] = []
        self.kernels = 0

    def population(self, node: Neuron) -> None:
        own = self.atoms.of[node.name]
        identity = sparse.eye_array(self.atoms.size, format="csr")
        for ref in node.inputs:
            self.back(ref, _Reach(own.reshape(self.graph.shape_of(node.name)), identity))

    def back(self, ref: Ref, reach: _Reach) -> None:
        node = self.graph[ref.node]
        if isinstance(node, (Neuron, Input, Constant)):
            self.sources.setdefault(node.name, []).append(reach)
            return
        shapes = [self.graph.type_of(operand).shape for operand in node.inputs]
        if isinstance(node, Dense):
            found = [self._dense(node, reach, shapes[0])]
        elif isinstance(node, Sparse):
            found = [self._sparse(node, reach)]
        elif isinstance(node, Conv):
            found = [self._conv(node, reach, shapes[0])]
        elif isinstance(node, (Add, Scale)):
            found = [reach for _ in node.inputs]
        elif isinstance(node, Reshape):
            found = [_Reach(reach.cls.reshape(shapes[0]), reach.table)]
        elif isinstance(node, Concat):
            cuts = np.cumsum([shape[node.axis] for shape in shapes])[:-1]
            found = [_Reach(part, reach.table) for part in np.split(reach.cls, cuts, axis=node.axis)]
        elif isinstance(node, Gather):
            size = int(np.prod(shapes[0]))
            taken = node.indices.ravel()
            picks = sparse.csr_array((np.ones(len(taken)), (taken, np.arange(len(taken)))), shape=(size, len(taken)))
            found = [self._elements(picks @ reach.rows(), shapes[0])]
        else:
            assert isinstance(node, Pool)
            found = [self._pool(node, reach, shapes[0])]
        for operand, part in zip(node.inputs, found, strict=True):
            self.back(operand, part)

    def _elements(self, table: Any, shape: tuple[int, ...]) -> _Reach:
        return _Reach(np.arange(int(np.prod(shape))).reshape(shape), table)

    def _dense(self, node: Dense, reach: _Reach, shape: tuple[int, ...]) -> _Reach:
        bits = self.cutter.bits(node)
        found, tables, offset = [], [], 0
        for block in reach.cls.reshape(-1, reach.cls.shape[-1]):
            kinds, inverse = np.unique(block, return_inverse=True)
            order = np.argsort(inverse, kind="stable")
            starts = np.searchsorted(inverse[order], np.arange(len(kinds)))
            pattern = np.logical_or.reduceat(node.weight[order] != 0, starts, axis=0)
            if np.count_nonzero(pattern) > PINS:  # nearly full, or it were sparse: taken as full
                pattern = np.broadcast_to(pattern.any(axis=0), pattern.shape)
            packed = np.ascontiguousarray(np.packbits(pattern, axis=0).T)
            _, first, cls = np.unique(packed, axis=0, return_index=True, return_inverse=True)
            table = _truths(sparse.csr_array(pattern[:, first].T.astype(np.float64)) @ reach.table[kinds])
            self.dense.append((np.bincount(inverse) @ reach.table[kinds], table, np.bincount(cls.ravel()), bits))
            found.append(cls.ravel() + offset)
            tables.append(table)
            offset += table.shape[0]
        return _Reach(np.concatenate(found).reshape(shape), sparse.vstack(tables, format="csr"))

    def _sparse(self, node: Sparse, reach: _Reach) -> _Reach:
        live = node.weight != 0
        places = (node.indices[live], np.asarray(node.rows)[live])
        fan = sparse.csr_array((np.ones(len(places[0])), places), shape=(node.fan_in, len(node.indptr) - 1))
        table = (fan @ reach.rows()).tocsr()
        self.rounded.append((table, np.ones(node.fan_in), self.cutter.bits(node)))
        return _Reach(np.arange(node.fan_in), _truths(table))

    def _conv(self, node: Conv, reach: _Reach, shape: tuple[int, ...]) -> _Reach:
        windows = _windows(shape[1:], reach.cls.shape[1:], node.weight.shape[2:], node.stride, node.padding, node.dilation)
        channels = reach.cls.shape[0]
        group, depth = channels // node.groups, node.weight.shape[1]
        rows = reach.rows()
        area, field = windows.shape[1], windows.shape[0]
        every = sparse.csr_array((np.ones(channels * area), (np.repeat(np.arange(channels), area), np.arange(channels * area))))
        taps = int(np.prod(node.weight.shape[1:]))
        words = taps * self.cutter.bits(node) / self.limits.word_bits
        self.present.append((_truths(every @ rows), np.full(channels, words)))
        self.kernels += 1
        cls, tables = [], []
        for g in range(node.groups):
            own = np.arange(g * group * area, (g + 1) * group * area)
            merge = sparse.csr_array((np.ones(len(own)), (np.tile(np.arange(area), group), own)), shape=(area, channels * area))
            table = _truths(windows @ _truths(merge @ rows))
            self.present.append((table, np.full(field, float(depth))))
            tables.append(table)
            cls.append(np.tile(np.arange(g * field, (g + 1) * field), depth))
        return _Reach(np.concatenate(cls).reshape(shape), sparse.vstack(tables, format="csr"))

    def _pool(self, node: Pool, reach: _Reach, shape: tuple[int, ...]) -> _Reach:
        ones = (1,) * len(node.kernel)
        windows = _windows(shape[1:], reach.cls.shape[1:], node.kernel, node.stride, node.padding, ones)
        spread = sparse.kron(sparse.eye_array(shape[0], format="csr"), windows, format="csr")
        return self._elements(_truths(spread @ reach.rows()), shape)


def _windows(
    space: tuple[int, ...],
    out: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Any:
    """(positions read, positions of windows): which window reads which position."""
    result = sparse.eye_array(1, format="csr")
    for n, m, k, s, p, d in zip(space, out, kernel, stride, padding, dilation, strict=True):
        place = (np.arange(m) * s - p)[:, None] + np.arange(k) * d
        window, tap = np.nonzero((place >= 0) & (place < n))
        axis = sparse.csr_array((np.ones(len(window)), (place[window, tap], window)), shape=(n, m))
        result = sparse.kron(result, axis, format="csr")
    return result


# Atoms ---------------------------------------------------------------------------------------------------------------


def _sizes(graph: Graph, cutter: Cutter, node: Neuron, limits: Limits, most: int) -> tuple[Array, int]:
    """The order of a population's neurons in which neighbours belong together, and how many of them make a vertex."""
    shape = graph.shape_of(node.name)
    size = int(np.prod(shape))
    channels = shape[0] if len(shape) > 1 else 1
    order = positions(shape)

    def share(count: int, members: Array) -> float:
        shard = cutter.shard(node, members[:count])
        return max(len(shard.members) / limits.neurons, shard.words / limits.words, shard.axons / limits.axons_in)

    run = 1
    if channels > 1:  # all channels of a position, or else some of them at many positions
        run = channels
        if share(channels, order) > 1 / PARTS:
            run = 1
            blocks = 1
            while blocks < channels and share(-(-channels // blocks), order) > 1 / PARTS:
                blocks *= 2
            per = -(-channels // blocks)
            order = order.reshape(-1, channels)
            order = np.concatenate([order[:, k : k + per].ravel() for k in range(0, channels, per)])
            run = per
    sparsely = _reads_sparsely(graph, node)
    while run < size and (size / run > most or not sparsely) and share(2 * run, order) <= (0.5 if size / run > most else 1 / PARTS):
        run *= 2
        if channels > 1 and size / run <= most:
            break
    return order, run


def _reads_sparsely(graph: Graph, node: Neuron) -> bool:
    """Whether neurons of a population differ in their sources: they must not be taken together untested."""
    stack, seen = [ref.node for ref in node.inputs], set[str]()
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        item = graph[name]
        if isinstance(item, (Sparse, Neuron, Input)) or (isinstance(item, Dense) and len(graph.shape_of(name)) > 1):
            return True
        if not isinstance(item, (Dense, Conv, Constant)):
            stack += [ref.node for ref in item.inputs]
    return False


def atoms(graph: Graph, limits: Limits, most: int = VERTICES) -> Atoms:
    """The vertices of a graph: at most about so many, each at most a part of a core where neurons allow."""
    cutter = Cutter(graph, limits)
    total = sum(int(np.prod(graph.shape_of(node.name))) for node in graph.neurons)
    found: dict[str, Array] = {}
    offset = 0
    for node in graph.neurons:
        size = int(np.prod(graph.shape_of(node.name)))
        if not size:
            found[node.name] = np.zeros(0, np.int64)
            continue
        order, run = _sizes(graph, cutter, node, limits, max(1, most * size // total))
        own = np.empty(size, np.int64)
        own[order] = np.arange(size) // run + offset
        offset = int(own.max()) + 1
        found[node.name] = own
    return Atoms(found, offset)


# Building ------------------------------------------------------------------------------------------------------------


def pins_of(graph: Graph, given: Atoms) -> int:
    """How many entries the matrices of sparse layers would have, at most."""
    return sum(len(node.indices) for node in graph.nodes if isinstance(node, Sparse)) if given.size else 0


def hypergraph(graph: Graph, limits: Limits, given: Atoms, rates: Mapping[str, Array]) -> Level:
    """The network's hypergraph over these vertices; rates: messages a step of every source, flat, by node."""
    walk = _Walk(graph, limits, given)
    for node in graph.neurons:
        if given.of[node.name].size:
            walk.population(node)
    size, names = given.size, [node.name for node in graph.neurons]
    tables: list[Any] = []
    columns: dict[str, list[Array]] = {"width": [], "words": [], "outside": []}
    rate: list[Any] = []
    count: list[Any] = []
    dense: list[tuple[int, Any, Array]] = []

    def add(table: Any, width: Array, words: Array, outside: Array, rated: Any = None, counted: Any = None) -> None:
        empty = sparse.csr_array(table.shape)
        tables.append(table)
        for name, column in (("width", width), ("words", words), ("outside", outside)):
            columns[name].append(column)
        rate.append(empty if rated is None else rated)
        count.append(empty if counted is None else counted)

    for name, reaches in walk.sources.items():
        cls, table = _united(reaches)
        classes = table.shape[0]
        width = np.bincount(cls, minlength=classes).astype(np.float64)
        if name in given.of:
            at = (cls, given.of[name])
            rated = sparse.coo_array((rates[name], at), shape=(classes, size)).tocsr()
            counted = sparse.coo_array((np.ones(len(cls)), at), shape=(classes, size)).tocsr()
            add(table, width, np.zeros(classes), np.zeros(classes), rated, counted)
        else:
            add(table, width, np.zeros(classes), np.bincount(cls, weights=rates[name], minlength=classes))
    for table, words in walk.present:
        zero = np.zeros(table.shape[0])
        add(table, zero, words, zero)
    for number, (_, table, classes, _) in enumerate(walk.dense):
        dense.append((sum(t.shape[0] for t in tables), table, classes))
        zero = np.zeros(table.shape[0])
        add(table, zero, zero, zero)
        assert number + 1 == len(dense)
    pins = sparse.vstack(tables, format="csr") if tables else sparse.csr_array((0, size))
    own = sparse.lil_array((pins.shape[0], len(dense)))
    for number, (begin, table, classes) in enumerate(dense):
        own[begin : begin + table.shape[0], [number]] = classes[:, None]
    first, merged = _alike(pins)
    merge = sparse.csr_array((np.ones(len(merged)), (merged, np.arange(len(merged)))), shape=(len(first), len(merged)))
    stacked = {name: merge @ np.concatenate(parts) if parts else np.zeros(len(first)) for name, parts in columns.items()}
    kinds = np.zeros((size, len(names)), bool)
    for number, name in enumerate(names):
        kinds[given.of[name], number] = True
    rows = sparse.vstack([part for part, _, _ in walk.rounded], format="csr") if walk.rounded else sparse.csr_array((0, size))
    row_first, row_merged = _alike(rows)
    both = [np.concatenate([part[k] * np.ones(part[0].shape[0]) for part in walk.rounded] or [np.zeros(0)]) for k in (1, 2)]
    bits, same = both[1], row_merged
    if len(np.unique(bits)) > 1:  # layers with and without delays do not share rows
        row_first, same = np.arange(rows.shape[0]), np.arange(rows.shape[0])
    return Level(
        np.bincount(np.concatenate([given.of[name] for name in names] or [np.zeros(0, np.int64)]), minlength=size),
        kinds,
        _truths(pins[first]),
        stacked["width"],
        stacked["words"],
        stacked["outside"],
        (merge @ sparse.vstack(rate)).tocsr() if rate else pins,
        (merge @ sparse.vstack(count)).tocsr() if count else pins,
        np.stack([part[0] for part in walk.dense]) if walk.dense else np.zeros((0, size)),
        (merge @ own.tocsr()).tocsr(),
        np.array([part[3] for part in walk.dense], np.int64),
        rows[row_first],
        np.bincount(same, weights=both[0], minlength=len(row_first)),
        bits[row_first],
        walk.kernels,
    )


def _united(reaches: list[_Reach]) -> tuple[Array, Any]:
    """One class for every element (flat), and its vertices, over all the ways that lead to a source."""
    cls, table = reaches[0].cls.ravel(), reaches[0].table
    for other in reaches[1:]:
        pairs, joined = np.unique(np.stack([cls, other.cls.ravel()]), axis=1, return_inverse=True)
        cls, table = joined.ravel(), _truths(table[pairs[0]] + other.table[pairs[1]])
    used, cls = np.unique(cls, return_inverse=True)
    return cls.ravel(), _truths(table[used])


def _alike(matrix: Any) -> tuple[Array, Array]:
    """Rows that are equal: the first of each, and for every row the number of its kind."""
    if not matrix.shape[0]:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rng = np.random.default_rng(0)
    salt = rng.integers(0, 2**62, matrix.shape[1], dtype=np.uint64)
    values = salt[matrix.indices] * matrix.data.astype(np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    _, first, kind = np.unique(sums[matrix.indptr[1:]] - sums[matrix.indptr[:-1]], return_index=True, return_inverse=True)
    return first, kind.ravel()
