"""Decisions before any C is written: how each wire is stored, in which order, how far back, and what is computed where.

A reshape is the same buffer under another name. A convolution's outputs lie channels last, and so does everything that is
computed from them element by element, where nothing speaks against it; `Layout` is such an order. Weighted sums that only
meet in an `add` share its accumulators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from spikec.backends.c.grouped import Grouped
from spikec.ir.graph import Graph
from spikec.ir.interpret import Wire
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Node, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.ranges import Interval, Ranges, graph_ranges, hull, of_array
from spikec.ir.types import DTYPES, Array, is_float, narrowest, short_dtype

Weighted = Dense | Sparse | Conv
#: (channels, space): element c * space + s is stored at s * channels + c.
Layout = tuple[int, int]


@dataclass(frozen=True)
class Halo:
    """Room around the rows of a map, channels last, so that a convolution need not look where the map ends: element (y, x) is
    at base + y * pitch + x. What stands between the end of a row and the beginning of the next serves both."""

    width: int
    rows: int
    pitch: int
    base: int
    length: int

    def place(self, index: Array) -> Array:
        """Where the elements of the map lie."""
        place: Array = self.base + index // self.width * self.pitch + index % self.width
        return place


@dataclass
class Stored:
    """A buffer: which wire it holds and how."""

    wire: Wire
    size: int
    kind: str  # element type: "u8" for 0 and 1, else i8 ... f64
    api: str  # element type in the interface
    interval: Interval  # of the values, at integer levels
    binary: bool
    layout: Layout | None = None
    shift: int = 0  # the value is the number stored * 2^shift
    member: str = ""  # name in the network's struct
    dense_depth: int = -1  # how far back the array is read; -1: never
    list_depth: int = -1  # the same for the list of events
    plain: bool = False  # somebody needs the values as they are, without shift
    observed: bool = False  # readable after a step
    listed: bool = False  # kept as a list of events only
    halo: Halo | None = None

    @property
    def ring(self) -> int:
        """Steps that are kept."""
        return max(self.dense_depth, self.list_depth, 0) + 1

    @property
    def index(self) -> str:
        """Type of an event."""
        return "uint16_t" if self.size <= 1 << 16 else "uint32_t"


@dataclass(frozen=True)
class Read:
    """An operand: the buffer, how many steps back, and its first values (delay, size) in row-major order."""

    stored: Stored
    delay: int
    init: Array | None = None


@dataclass
class Sum:
    """Weighted sums added up in one set of accumulators, with other operands added at the end."""

    node: Node
    parts: list[Weighted]
    rest: list[Ref] = field(default_factory=list)


def is_binary(graph: Graph) -> dict[Wire, bool]:
    """Wires that hold 0 and 1 only, at the float level, where no interval says so."""
    found: dict[Wire, bool] = {}
    for _ in range(2):
        for node in graph.order:
            for index, (port, type_) in enumerate(graph.types[node.name]):
                if isinstance(node, (Input, Neuron)):
                    value = type_.kind == "spike"
                    if isinstance(node, Neuron):
                        value = node.program.emits[index].kind == "spike"
                elif isinstance(node, Constant):
                    value = bool(np.isin(node.value, (0, 1)).all())
                elif isinstance(node, (Reshape, Gather, Concat)) or (isinstance(node, Pool) and node.mode == "max"):
                    value = all(found.get((r.node, r.port), True) for r in node.inputs)
                else:
                    value = False
                found[node.name, port] = value
    for node in graph.nodes:
        for ref in node.inputs:
            if ref.init is not None and not np.isin(ref.init, (0, 1)).all():
                found[ref.node, ref.port] = False
    return found


def float_kinds(graph: Graph) -> dict[Wire, str]:
    """The types that NumPy's promotion gives at the float level, which a declared dtype does not always tell."""
    kinds: dict[Wire, str] = {(n.name, p): t.dtype for n in graph.nodes for p, t in graph.types[n.name]}
    for _ in range(2):
        for node in graph.order:
            if isinstance(node, (Input, Neuron)):
                continue
            dtypes = [DTYPES[kinds[ref.node, ref.port]] for ref in node.inputs]
            if isinstance(node, Constant):
                dtypes = [node.value.dtype]
            elif isinstance(node, (Dense, Sparse, Conv)):
                dtypes += [node.weight.dtype] + ([node.bias.dtype] if node.bias is not None else [])
            elif isinstance(node, Scale):
                dtypes += [a.dtype for a in (node.factor, node.offset) if a is not None and not (a.size == 1 and a.ndim <= 1)]
            kinds[node.name, ""] = short_dtype(np.zeros(0, np.result_type(*dtypes)))
    return kinds


class Plan:
    """Everything that is decided about a graph; `observed` wires must be readable after a step."""

    def __init__(self, graph: Graph, observed: set[Wire], *, products: bool = True, vector: int = 32) -> None:
        self.products = products
        self.vector = vector
        self.graph = graph
        self.observed = observed
        self.integer = graph.level != "float"
        self.ranges: Ranges | None = graph_ranges(graph) if self.integer else None
        self.alias = {node.name: node.inputs[0] for node in graph.nodes if isinstance(node, Reshape) and node.inputs[0].delay == 0}
        self.stored = self._stored()
        self.sums = self._sums()
        self.folded = {part.name for s in self.sums.values() for part in s.parts if part.name != s.node.name}
        self.pools = self._pools()
        self.folded |= set(self.pools)
        self._layouts()
        self._needs()

    # ---------------------------------------------------------------------------------------------------- operands

    def read(self, ref: Ref) -> Read:
        """What a reference reads, seen through reshapes."""
        delay, init = ref.delay, self._flat(ref)
        node, port = ref.node, ref.port
        while node in self.alias:
            inner = self.alias[node]
            node, port = inner.node, inner.port
        return Read(self.stored[node, port], delay, init)

    def weighted_read(self, ref: Ref) -> tuple[Read, Pool | None]:
        """The operand of a weight: where its events come from, and the pool that renumbers them on the way, if one does."""
        pool = self.pools.get(self._through(ref)[0])
        if pool is None:
            return self.read(ref), None
        inner = self.read(pool.inputs[0])
        return Read(inner.stored, inner.delay + ref.delay), pool

    def _flat(self, ref: Ref) -> Array | None:
        return None if ref.init is None else ref.init.reshape(ref.delay, -1)

    def users(self, wire: Wire) -> Iterator[tuple[Node, Ref]]:
        """Who reads a buffer, through reshapes too."""
        for node in self.graph.nodes:
            if node.name in self.alias:
                continue
            for ref in node.inputs:
                if self.read(ref).stored.wire == wire:
                    yield node, ref

    # ------------------------------------------------------------------------------------------------------ buffers

    def _stored(self) -> dict[Wire, Stored]:
        graph = self.graph
        binary = {} if self.integer else is_binary(graph)
        kinds = {} if self.integer else float_kinds(graph)
        inits: dict[Wire, Interval] = {}
        if self.integer:
            for node in graph.nodes:
                for ref in node.inputs:
                    if ref.init is not None:
                        wire = self._through(ref)
                        inits[wire] = hull(inits.get(wire, (0, 0)), of_array(ref.init))
        found: dict[Wire, Stored] = {}
        for node in graph.nodes:
            if node.name in self.alias:
                continue
            for port, type_ in graph.types[node.name]:
                wire = (node.name, port)
                if self.ranges is not None:
                    interval = hull(self.ranges.wires[wire], (0, 0))
                    interval = hull(interval, inits.get(wire, interval))
                    zero_one = interval[1] <= 1 and interval[0] == 0
                    kind = "u8" if zero_one else narrowest(*interval) or "i64"
                    found[wire] = Stored(wire, type_.size, kind, type_.dtype, interval, zero_one)
                else:
                    kind = "u8" if binary[wire] else kinds[wire]
                    api = kinds[wire]
                    found[wire] = Stored(wire, type_.size, kind, api, (0, 0), binary[wire])
        return found

    def _through(self, ref: Ref) -> Wire:
        node, port = ref.node, ref.port
        while node in self.alias:
            node, port = self.alias[node].node, self.alias[node].port
        return (node, port)

    # --------------------------------------------------------------------------------------------------------- sums

    def _sums(self) -> dict[str, Sum]:
        readers: dict[Wire, int] = {}
        for node in self.graph.nodes:
            if node.name not in self.alias:
                for ref in node.inputs:
                    wire = self._through(ref)
                    readers[wire] = readers.get(wire, 0) + 1
        seen = {self._through(Ref(*wire)) for wire in self.observed}
        sums: dict[str, Sum] = {}
        for node in self.graph.nodes:
            if isinstance(node, (Dense, Sparse, Conv)):
                sums.setdefault(node.name, Sum(node, [node]))
            elif isinstance(node, Add):
                parts: list[Weighted] = []
                rest: list[Ref] = []
                for ref in node.inputs:
                    wire = self._through(ref)
                    part = self.graph[wire[0]]
                    if (
                        isinstance(part, (Dense, Sparse, Conv))
                        and part.delay is None
                        and ref.delay == 0
                        and readers[wire] == 1
                        and wire not in seen
                        and (self.integer or self.stored[wire].kind == self.stored[node.name, ""].kind)
                        and (self.integer or part.weight.dtype == DTYPES[self.stored[wire].kind])
                    ):
                        parts.append(part)
                    else:
                        rest.append(ref)
                if parts:
                    sums[node.name] = Sum(node, parts, rest)
        for total in list(sums.values()):
            if isinstance(total.node, Add):
                for part in total.parts:
                    sums.pop(part.name, None)
        return sums

    def _pools(self) -> dict[str, Pool]:
        """Sums over windows that tile a map of spikes and feed nothing but weights: a spike then is an event of its window, and
        the sum is never computed."""
        seen = {self._through(Ref(*wire)) for wire in self.observed}
        weighted = {part.name for total in self.sums.values() for part in total.parts}
        found: dict[str, Pool] = {}
        for node in self.graph.nodes:
            if not (self.integer and isinstance(node, Pool) and node.mode == "sum" and node.stride == node.kernel):
                continue
            (ref,) = node.inputs
            space = self.graph.type_of(ref).shape[1:]
            tiled = not any(node.padding) and all(n % k == 0 for n, k in zip(space, node.kernel, strict=True))
            readers = [(user, item) for user, item in self.users((node.name, "")) if user.name != node.name]
            plain = all(user.name in weighted and item.init is None for user, item in readers)
            if tiled and plain and readers and ref.init is None and self.read(ref).stored.binary and (node.name, "") not in seen:
                found[node.name] = node
        return found

    # ------------------------------------------------------------------------------------------------------ layouts

    def _layouts(self) -> None:
        """Buffers that must lie in the same order form a class; a class lies channels last if a convolution writes to it
        and every member can."""
        parent: dict[Wire, Wire] = {wire: wire for wire in self.stored}

        def root(wire: Wire) -> Wire:
            while parent[wire] != wire:
                wire = parent[wire]
            return wire

        wanted: dict[Wire, set[Layout]] = {}
        flat: dict[Wire, Layout] = {}  # convolutions that would rather not
        pooled: set[Wire] = set()
        refused: set[Wire] = set()
        for node in self.graph.nodes:
            if node.name in self.alias:
                continue
            outputs = [(node.name, port) for port, _ in self.graph.types[node.name]]
            shape = self.graph.shape_of(node.name)
            own: Layout = (shape[0], int(np.prod(shape[1:], dtype=np.int64))) if len(shape) > 1 else (1, 1)
            operands = [self._through(ref) for ref in node.inputs]
            if isinstance(node, (Neuron, Add, Scale)):
                for wire in (*operands, *outputs):
                    parent[root(wire)] = root(outputs[0])
                    wanted.setdefault(wire, set()).add(("elementwise", *own))  # type: ignore[arg-type]  # a mark of three, told from a layout by its length
            elif isinstance(node, Conv):
                if self.integer and node.groups > 1 and node.delay is None and self.grouped(node).planes:
                    flat[outputs[0]] = own
                else:
                    wanted.setdefault(outputs[0], set()).add(own)
                into = self.graph.type_of(node.inputs[0]).shape
                wanted.setdefault(operands[0], set()).add(("elementwise", into[0], int(np.prod(into[1:]))))  # type: ignore[arg-type]  # a mark of three, told from a layout by its length
            elif isinstance(node, Pool):
                if node.name not in self.pools:
                    pooled.update(operands)
                into = self.graph.type_of(node.inputs[0]).shape
                wanted.setdefault(operands[0], set()).add(("elementwise", into[0], int(np.prod(into[1:]))))  # type: ignore[arg-type]  # a mark of three, told from a layout by its length
                wanted.setdefault(outputs[0], set()).add(("elementwise", *own))  # type: ignore[arg-type]  # a mark of three, told from a layout by its length
            elif isinstance(node, Dense):
                refused.update(outputs)
                if len(self.graph.type_of(node.inputs[0]).shape) > 1:
                    refused.update(operands)
            elif isinstance(node, (Gather, Sparse)):
                refused.update(outputs)
            else:
                refused.update((*operands, *outputs))
        classes: dict[Wire, list[Wire]] = {}
        for wire in self.stored:
            classes.setdefault(root(wire), []).append(wire)
        for members in classes.values():
            marks = {mark for wire in members for mark in wanted.get(wire, ())}
            layouts = {mark for mark in marks if len(mark) == 2}
            if not layouts and not pooled.isdisjoint(members):
                layouts = {flat[wire] for wire in members if wire in flat}
            if len(layouts) != 1 or any(wire in refused for wire in members):
                continue
            (layout,) = layouts
            if min(layout) > 1 and all(mark[-2:] == layout for mark in marks):
                for wire in members:
                    self.stored[wire].layout = layout

    def grouped(self, part: Conv) -> Grouped:
        """A convolution with the shapes that it has here."""
        return Grouped(part, self.graph.type_of(part.inputs[0]).shape, self.graph.shape_of(part.name), self.vector)

    # -------------------------------------------------------------------------------------------------------- needs

    def _needs(self) -> None:
        for wire in self.observed:
            stored = self.stored[self._through(Ref(*wire))]
            stored.observed = True
        for node in self.graph.nodes:
            if node.name in self.alias or node.name in self.folded:
                continue
            total = self.sums.get(node.name)
            if total is None:
                for ref in node.inputs:
                    self._dense(self.read(ref), isinstance(node, Pool))
                continue
            for part in total.parts:
                read, _ = self.weighted_read(part.inputs[0])
                if self.multiplied(total, part):
                    self._dense(read, True)
                    continue
                read.stored.list_depth = max(read.stored.list_depth, read.delay)
                if not read.stored.binary:
                    self._dense(read, True)
                elif read.init is not None:
                    self._dense(read, False)
            for ref in total.rest:
                self._dense(self.read(ref), False)

    def multiplied(self, total: Sum, part: Weighted) -> bool:
        """Whether a layer of values takes them all at once, as a product of bytes (spk_product.h), not one after the other."""
        if not (self.products and self.integer and isinstance(part, Dense)) or any(
            other.delay is not None for other in total.parts
        ):
            return False
        read, pool = self.weighted_read(part.inputs[0])
        x = read.stored
        if pool is not None or x.binary or x.size != part.weight.shape[1] or not 0 < x.size <= 1 << 18 or not part.weight.size:
            return False
        weight = part.weight >> min(common_shift([other.weight for other in total.parts]), 16)
        ends = [weighted_interval(other, self.weighted_read(other.inputs[0])[0].stored.interval) for other in total.parts]
        limits = ((of_array(weight), 8), (x.interval, 16), (tuple(map(sum, zip(*ends, strict=True))), 31))
        return all(-(1 << bits - 1) <= low and high < 1 << bits - 1 for (low, high), bits in limits)

    def _dense(self, read: Read, plain: bool) -> None:
        read.stored.dense_depth = max(read.stored.dense_depth, read.delay)
        if plain or read.init is not None:
            read.stored.plain = True


def order_of(layout: Layout | None, size: int) -> Array:
    """For every place in a buffer, the element (row-major) that is stored there."""
    if layout is None:
        return np.arange(size)
    channels, space = layout
    return np.arange(size).reshape(channels, space).T.ravel()


def arranged(array: Array, layout: Layout | None) -> Array:
    """A row-major array (..., size) in the order of a buffer."""
    return array if layout is None else array[..., order_of(layout, array.shape[-1])]


def place_of(layout: Layout | None, size: int) -> Array:
    """For every element, its place in the buffer."""
    if layout is None:
        return np.arange(size)
    channels, space = layout
    return np.arange(size).reshape(space, channels).T.ravel()


def weighted_interval(node: Weighted, x: Interval) -> Interval:
    """Worst case of a weighted sum and of every partial sum, without bias."""
    wide = node.weight.astype(object) if node.weight.dtype == np.int64 else node.weight.astype(np.int64)
    low, high = min(x[0], 0), max(x[1], 0)
    if not wide.size:
        return (0, 0)
    if isinstance(node, Sparse):
        up = np.zeros(len(node.indptr) - 1, wide.dtype)
        down = up.copy()
        np.add.at(up, node.rows, np.maximum(wide, 0))
        np.add.at(down, node.rows, np.minimum(wide, 0))
    else:
        rows = wide.reshape(len(wide), -1)
        up, down = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    least = min(int(p) * low + int(n) * high for p, n in zip(up, down, strict=True))
    most = max(int(p) * high + int(n) * low for p, n in zip(up, down, strict=True))
    return (least, most)


def common_shift(arrays: list[Array]) -> int:
    """The largest k such that 2^k divides every element; 0 if all are zero."""
    bits = 0
    for array in arrays:
        bits |= int(np.bitwise_or.reduce(array.astype(np.int64).ravel(), initial=0))
    return (bits & -bits).bit_length() - 1 if bits else 0


def state_kinds(plan: Plan, node: Neuron) -> dict[str, str]:
    """How each state is stored: as narrow as proven, or in the type that the float level gives."""
    if plan.ranges is not None:
        states = plan.ranges.neurons[node.name].states
        return {name: narrowest(*states[name]) or "i64" for name in node.program.state_names}
    floats = [DTYPES[t.dtype] for t in map(plan.graph.type_of, node.inputs) if is_float(t.dtype)]
    floats += [a.dtype for a in (*node.params.values(), *node.init.values()) if a.ndim]
    kind = short_dtype(np.zeros(0, np.result_type(*floats) if floats else np.float32))
    return dict.fromkeys(node.program.state_names, kind)
