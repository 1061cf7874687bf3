"""The NumPy engine: only active inputs are added up, and what no cycle forbids is done for all steps at once.

The graph falls into its strongly connected components. A component of one node without a cycle runs over the whole
time axis before the next begins (a dense layer is then one product for all steps and samples); a cycle runs step by step.
At integer levels arithmetic is int32 where `spikec.ir.ranges` proves that it suffices, else int64, and products go through
BLAS in floating point where every sum is exact. Results equal the interpreter's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, Wire, extent, float_truth, record_name, run_program
from spikec.ir.neuron import COMPARISONS, LOGIC, STEP, Call, Expr, Num, Program, Var
from spikec.ir.ops import (
    Add,
    Concat,
    Constant,
    Conv,
    Dense,
    Gather,
    Input,
    Neuron,
    Node,
    Pool,
    Ref,
    Reshape,
    Scale,
    Sparse,
    spread,
)
from spikec.ir.ranges import INT64, Interval, ProgramRanges, Ranges, graph_ranges, of_array
from spikec.ir.types import DTYPES, Array, is_float, narrowest

if TYPE_CHECKING:
    from spikec.backend import Golden, Progress
    from spikec.cutoff import Cutoff
    from spikec.target import Target

#: Traces of a chunk of samples stay below this many bytes.
_CHUNK_BYTES: Final = 1 << 28
#: A gathered row costs about as much as so many rows of a BLAS product.
_CROSSOVER: Final = 24
#: A convolution of at most so many connections is also kept as a list of them.
_MOST_CONNECTIONS: Final = 1 << 22
#: So many connections of a layer are kept in small types; an input's are copied together where they are so many on average.
_MANY_CONNECTIONS: Final = 1 << 20
_LONG_ROW: Final = 64
#: Connections that are gathered at a time.
_GATHERED: Final = 1 << 15
_INT32: Final[Interval] = (-(1 << 31), (1 << 31) - 1)


# ------------------------------------------------------------------------------------------------- weighted operations


class _Matrix:
    """A dense matrix (in, out): `x @ matrix` for x (rows, in)."""

    def __init__(self, matrix: Array, dtype: Any, bound: int | None, spikes: bool) -> None:
        self.spikes = spikes
        self.dtype = dtype
        exact: Any = np.int64  # the type in which sums are exact, and BLAS can be used for the floating ones
        if bound is None:
            exact = dtype
        elif bound < 1 << 24:
            exact = np.float32
        elif bound < 1 << 53:
            exact = np.float64
        self.exact = exact
        self.rows = np.ascontiguousarray(matrix, exact)

    def apply(self, x: Array) -> Array:
        """The product, by rows of the firing inputs or by BLAS, whichever is less work."""
        if len(x) == 1:
            (column,) = x[0].nonzero()
            if not len(column):
                return np.zeros((1, self.rows.shape[1]), self.dtype)
            if len(column) * _CROSSOVER >= x.size:
                return np.asarray(x.astype(self.exact, copy=False) @ self.rows).astype(self.dtype, copy=False)
            return self._sum(x[0], column)[None].astype(self.dtype, copy=False)
        count = int(np.count_nonzero(x))
        if count == 0:
            return np.zeros((len(x), self.rows.shape[1]), self.dtype)
        if count * _CROSSOVER >= x.size or self.rows.size == 0:
            return np.asarray(x.astype(self.exact, copy=False) @ self.rows).astype(self.dtype, copy=False)
        row, column = np.nonzero(x)
        total = np.zeros((len(x), self.rows.shape[1]), self.dtype)
        ends = np.searchsorted(row, np.arange(len(x) + 1)).tolist()
        for number, (begin, end) in enumerate(pairwise(ends)):
            if end > begin:
                total[number] = self._sum(x[number], column[begin:end])
        return total

    def _sum(self, x: Array, column: Array) -> Array:
        """The rows of one sample's active inputs, added up."""
        parts = self.rows.take(column, 0)
        if not self.spikes:
            parts = parts * x[column].astype(self.exact)[:, None]
        return np.asarray(np.add.reduce(parts, axis=0))


class _Connections:
    """Stored connections, sorted by source: for x (rows, in) gives (rows, out)."""

    def __init__(
        self,
        source: Array,
        target: Array,
        weight: Array,
        fan_in: int,
        out: int,
        dtype: Any,
        bound: int | None,
        spikes: bool = False,
    ) -> None:
        self.spikes = spikes
        order = np.argsort(source, kind="stable")
        #: Many connections are kept in small types, which are read from memory more quickly than NumPy's own.
        small = order.size >= _MANY_CONNECTIONS
        self.target = target[order].astype(np.uint16 if small and out <= 1 << 16 else np.int32 if small else np.int64)
        self.weight = weight[order]
        #: Rows so long are copied one by one, which is quicker than looking up each connection.
        self.rows = order.size >= _LONG_ROW * fan_in
        self.start = np.searchsorted(source[order], np.arange(fan_in + 1))
        self.out = out
        self.dtype = dtype
        self.counting = bound is not None and bound < 1 << 53
        self.double = self.weight if small or not self.counting else self.weight.astype(np.float64)

    def apply(self, x: Array) -> Array:
        """Add up the connections of the active inputs only, so many rows at a time that what is gathered stays in the cache."""
        row, column = np.nonzero(x)
        first, length = self.start[column], self.start[column + 1] - self.start[column]
        ends = np.cumsum(length)
        if len(x) == 1 or not len(ends) or ends[-1] <= _GATHERED:
            return self._some(x, row, column, first, length, ends)
        result = np.zeros((len(x), self.out), self.dtype)
        bounds = np.searchsorted(row, np.arange(len(x) + 1))  # where each row's active inputs begin
        reached = np.concatenate([[0], ends])[bounds]  # and its connections
        begin = 0
        while begin < len(x):
            past = reached[begin]
            # As many rows as fit, one at least.
            end = int(np.searchsorted(reached[begin + 1 :], past + _GATHERED, side="right")) + begin
            end = max(min(end, len(x)), begin + 1)
            part = slice(bounds[begin], bounds[end])
            result[begin:end] = self._some(
                x[begin:end], row[part] - begin, column[part], first[part], length[part], ends[part] - past
            )
            begin = end
        return result

    def _some(self, x: Array, row: Array, column: Array, first: Array, length: Array, ends: Array) -> Array:
        total = int(ends[-1]) if len(ends) else 0
        # The positions of all connections of all active inputs, input by input.
        where: Any
        if self.rows and total:
            where = [slice(begin, end) for begin, end in zip(first.tolist(), (first + length).tolist(), strict=True)]
            place = np.concatenate([self.target[part] for part in where], dtype=np.int64)
        else:
            where = np.arange(total) + np.repeat(first - (ends - length), length)
            place = self.target[where].astype(np.int64, copy=False)
        if len(x) > 1:
            place = place + np.repeat(row * self.out, length)
        if self.counting:
            weight = self._values(self.double, where, np.float64)
            if not self.spikes:
                weight = weight * np.repeat(x[row, column], length)
            return np.bincount(place, weight, minlength=len(x) * self.out).astype(self.dtype).reshape(len(x), self.out)
        result = np.zeros(len(x) * self.out, self.dtype)
        np.add.at(result, place, self._values(self.weight, where, self.dtype) * np.repeat(x[row, column], length))
        return result.reshape(len(x), self.out)

    @staticmethod
    def _values(array: Array, where: Any, dtype: Any) -> Array:
        if isinstance(where, list):
            return np.concatenate([array[part] for part in where], dtype=dtype)
        return np.asarray(array[where].astype(dtype, copy=False))


class _Windows:
    """A convolution as one product per group over gathered windows, or as a list of connections when few inputs fire."""

    def __init__(
        self,
        node: Conv,
        weight: Array,
        shape: tuple[int, ...],
        out: tuple[int, ...],
        dtype: Any,
        bound: int | None,
        spikes: bool = False,
    ) -> None:
        self.spikes = spikes
        self.shape, self.out_shape, self.dtype = shape, out, dtype
        self.groups = node.groups
        channels, filters = shape[0], weight.shape[0]
        self.places = _window_places(shape[1:], out[1:], weight.shape[2:], node.stride, node.padding, node.dilation)
        exact: Any = dtype if bound is None else np.float32 if bound < 1 << 24 else np.float64 if bound < 1 << 53 else np.int64
        self.exact = exact
        per_in, per_out = channels // node.groups, filters // node.groups
        self.kernels = [weight[g * per_out : (g + 1) * per_out].reshape(per_out, -1).T.astype(exact) for g in range(node.groups)]
        self.per_in = per_in
        pixels, taps = self.places.shape
        self.connections: _Connections | None = None
        if pixels * taps * per_in * filters <= _MOST_CONNECTIONS:
            self.connections = self._list(weight, bound)

    def _list(self, weight: Array, bound: int | None) -> _Connections:
        pixels, taps = self.places.shape
        filters, per_in = weight.shape[:2]
        size_in, size_out = int(np.prod(self.shape[1:])), pixels
        o, i, p, k = np.ix_(np.arange(filters), np.arange(per_in), np.arange(pixels), np.arange(taps))
        inside = np.broadcast_to(self.places[None, None] >= 0, (filters, per_in, pixels, taps))
        group = o // (filters // self.groups)
        source = np.broadcast_to((group * per_in + i) * size_in + self.places[p, k], inside.shape)[inside]
        target = np.broadcast_to(o * size_out + p, inside.shape)[inside]
        values = np.broadcast_to(weight.reshape(filters, per_in, 1, taps), inside.shape)[inside]
        fan_in = self.shape[0] * size_in
        return _Connections(source, target, values, fan_in, filters * size_out, self.dtype, bound, self.spikes)

    def apply(self, x: Array) -> Array:
        """x (rows, in * space) -> (rows, out * space')."""
        rows = len(x)
        if self.connections is not None and int(np.count_nonzero(x)) * _CROSSOVER < x.size:
            return self.connections.apply(x)
        pixels, taps = self.places.shape
        channels = x.reshape(rows, self.shape[0], -1)
        padded = np.concatenate([channels, np.zeros((rows, self.shape[0], 1), x.dtype)], axis=2).astype(self.exact, copy=False)
        parts = []
        for group, kernel in enumerate(self.kernels):
            windows = padded[:, group * self.per_in : (group + 1) * self.per_in][:, :, self.places]
            columns = windows.transpose(0, 2, 1, 3).reshape(rows * pixels, self.per_in * taps)
            parts.append((columns @ kernel).reshape(rows, pixels, -1).transpose(0, 2, 1))
        return np.concatenate(parts, axis=1).reshape(rows, -1).astype(self.dtype, copy=False)


def _window_places(
    space: tuple[int, ...],
    out: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Array:
    """(pixels out, taps): the flat input pixel that a tap reads, -1 outside."""
    flat: Any = np.zeros((1, 1), np.int64)
    valid: Any = np.ones((1, 1), np.bool_)
    for n, m, k, s, p, d in zip(space, out, kernel, stride, padding, dilation, strict=True):
        at = np.arange(m)[:, None] * s + np.arange(k)[None, :] * d - p
        good = (at >= 0) & (at < n)
        flat = (flat[:, None, :, None] * n + at[None, :, None, :]).reshape(flat.shape[0] * m, flat.shape[1] * k)
        valid = (valid[:, None, :, None] & good[None, :, None, :]).reshape(flat.shape)
    return np.where(valid, flat, -1)


_Linear = _Matrix | _Connections | _Windows


# ------------------------------------------------------------------------------------------------------------ programs


def _shift_to_zero(x: Any, bits: int) -> Any:
    """Shift toward zero: what is below zero is first raised by 2^bits - 1."""
    if not isinstance(x, np.ndarray):
        return -(-x >> bits) if x < 0 else x >> bits
    width = 8 * x.dtype.itemsize
    if bits >= width:
        return np.zeros_like(x)
    raised = x >> (width - 1)
    raised &= (1 << bits) - 1
    raised += x
    raised >>= bits
    return raised


def _choose(condition: Any, yes: Any, no: Any) -> Any:
    if type(condition) is np.ndarray:
        return np.where(condition, yes, no)
    return yes if condition else no


def _settle(x: Any, condition: Any, value: Any) -> Any:
    """As `_choose(condition, value, x)`, in x itself, which nobody else holds."""
    if type(x) is np.ndarray and type(condition) is np.ndarray and x.shape == condition.shape:
        np.putmask(x, condition, value)
        return x
    return _choose(condition, value, x)


def _logical_not(x: Any) -> Any:
    return not x if isinstance(x, (bool, np.bool_)) else ~x


#: What is computed once where all operands are known.
_FOLDED: Final[dict[str, Callable[..., int]]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "neg": operator.neg, "<<": operator.lshift, ">>": operator.rshift,
}  # fmt: skip


class _Source:
    """A fixed-level program as the text of a Python function over NumPy arrays of one integer type."""

    def __init__(self, program: Program, ranges: ProgramRanges, params: Mapping[str, Any]) -> None:
        self.ranges = ranges
        self.narrow = all(_fits(interval) for interval in (*ranges.values.values(), *ranges.states.values()))
        self.dtype: Any = np.int32 if self.narrow else np.int64
        self.kinds: dict[str, bool] = {}
        self.scalars = {name: value for name, value in params.items() if isinstance(value, int)}
        self.constants: dict[str, Any] = {}
        lines = []
        for index, statement in enumerate(program.body):
            text, truth = self.settled(program, index) or self.expr(statement.expr, index)
            if statement.name in program.state_names:
                text, truth = (f"I({text})", False) if truth else (text, False)
            self.kinds[statement.name] = truth
            lines.append(f"    v_{statement.name} = {text}")
        arguments = ", ".join(f"v_{n}" for n in (*program.inputs, *program.state_names, STEP))
        emits = ", ".join(f"v_{emit.name}" for emit in program.emits)
        states = ", ".join(f"v_{name}" for name in program.state_names)
        text = "\n".join([f"def step({arguments}):", *lines, f"    return ({states}{',' if states else ''}), ({emits},)"])
        names: dict[str, Any] = {
            "np": np,
            "I": self.number,
            "rtz": _shift_to_zero,
            "choose": _choose,
            "settle": _settle,
            "negate": _logical_not,
            **{f"v_{name}": value for name, value in params.items()},
            **self.constants,
        }
        exec(text, names)  # our own text: names are checked identifiers, literals are numbers
        self.step: Callable[..., tuple[tuple[Any, ...], tuple[Any, ...]]] = names["step"]

    def number(self, x: Any) -> Any:
        """Truth values as numbers."""
        return int(x) if isinstance(x, (bool, np.bool_)) else x.astype(self.dtype)

    def fixed(self, expr: Expr) -> int | None:
        """The value of what is made of numbers and scalar parameters only."""
        if isinstance(expr, Num):
            return int(expr.value)
        if isinstance(expr, Var):
            return None if expr.name in self.kinds else self.scalars.get(expr.name)
        assert isinstance(expr, Call)
        if expr.op not in _FOLDED:
            return None
        parts = [self.fixed(arg) for arg in expr.args]
        return None if None in parts else _FOLDED[expr.op](*parts)

    def constant(self, value: int) -> str:
        """A number as an array without axes: NumPy takes several times as long to find a type for a number of Python's."""
        limits = np.iinfo(self.dtype)
        if not limits.min <= value <= limits.max:
            return f"({value})"
        name = f"k_{'m' if value < 0 else ''}{abs(value)}"
        self.constants[name] = np.array(value, self.dtype)
        return name

    def settled(self, program: Program, index: int) -> tuple[str, bool] | None:
        """`v = select(s, number, v)` where v is an array that this program made and no other name stands for."""
        name, expr = program.body[index].name, program.body[index].expr
        if not (isinstance(expr, Call) and expr.op == "select" and isinstance(expr.args[2], Var) and expr.args[2].name == name):
            return None
        value = self.fixed(expr.args[1])
        made = max((k for k in range(index) if program.body[k].name == name), default=-1)
        between = [(k, program.body[k].expr) for k in range(made + 1, index)]
        if value is None or made < 0 or not self.fresh(program.body[made].expr, made) or self.kinds[name]:
            return None
        if not all(self.fresh(other, k) for k, other in between):
            return None
        return f"settle(v_{name}, {self.expr(expr.args[0], index)[0]}, {self.constant(value)})", False

    def fresh(self, expr: Expr, index: int) -> bool:
        """Whether the value is an array of its own, not one that has another name already."""
        if not isinstance(expr, Call) or self.fixed(expr) is not None or expr.op == "select":
            return False
        if expr.op in ("clip", "wrap") and not self.narrows(expr, index):
            return self.fresh(expr.args[0], index)
        return True

    def expr(self, expr: Expr, index: int) -> tuple[str, bool]:
        """Text and whether it is a truth value."""
        value = self.fixed(expr)
        if value is not None:
            return self.constant(value), False
        if isinstance(expr, Var):
            return f"v_{expr.name}", self.kinds.get(expr.name, False)
        assert isinstance(expr, Call)
        parts = [self.expr(arg, index) for arg in expr.args]
        if expr.op == "select":
            truth = parts[1][1] and parts[2][1]
            yes, no = (text if truth or not is_truth else f"I({text})" for text, is_truth in parts[1:])
            return f"choose({parts[0][0]}, {yes}, {no})", truth
        if expr.op in LOGIC:
            if expr.op == "not":
                return f"negate({parts[0][0]})", True
            return f"({parts[0][0]} {'&' if expr.op == 'and' else '|'} {parts[1][0]})", True
        a, *rest = (f"I({text})" if truth else text for text, truth in parts)
        if expr.op in COMPARISONS:
            return f"({a} {expr.op} {rest[0]})", True
        if expr.op in ("+", "-", "*", "<<", ">>"):
            return f"({a} {expr.op} {rest[0]})", False
        if expr.op == "neg":
            return f"(-{a})", False
        if expr.op in ("wrap", "clip"):
            return self.narrowing(expr, a, index), False
        if expr.op == "rtz" and isinstance(expr.args[1], Num):
            rest = [str(int(expr.args[1].value))]
        call = {"abs": "np.abs", "min": "np.minimum", "max": "np.maximum", "rem": "np.remainder", "rtz": "rtz"}[expr.op]
        return f"{call}({', '.join([a, *rest])})", False

    def narrows(self, expr: Call, index: int) -> bool:
        """Whether a clip or a wrap can change anything."""
        bits = expr.args[1]
        assert isinstance(bits, Num)
        low, high = self.ranges.values.get((index, expr.args[0]), INT64)
        half = 1 << (int(bits.value) - 1)
        return not (-half < low and high < half)

    def narrowing(self, expr: Call, text: str, index: int) -> str:
        bits = expr.args[1]
        assert isinstance(bits, Num)
        n = int(bits.value)
        half = 1 << (n - 1)
        if not self.narrows(expr, index):
            return text
        if expr.op == "clip":
            return f"np.minimum(np.maximum({text}, {self.constant(1 - half)}), {self.constant(half - 1)})"
        if self.narrow and n > 30:
            text = f"np.asarray({text}, np.int64)"
        return f"((({text} + {half}) & {(1 << n) - 1}) - {half})"


def _fits(interval: Interval) -> bool:
    # Two bits of room: the sums inside `wrap` and the negations inside `rtz` stay in range.
    return _INT32[0] // 2 <= interval[0] and interval[1] <= _INT32[1] // 2


# -------------------------------------------------------------------------------------------------------------- engine


@dataclass
class _Trace:
    """The values of a wire: (length, batch, *shape); step t stands at t % length, and all steps are kept where length says so."""

    data: Array

    def at(self, t: int) -> Array:
        data: Array = self.data[t % len(self.data)]
        return data


class _Engine:
    """A graph made ready to run on any number of samples."""

    def __init__(self, graph: Graph, observed: set[Wire], *, whole: bool = True) -> None:
        """whole=False: everything runs step by step, and only what is read again is kept (`EventStepper`)."""
        self.graph = graph
        self.integer = graph.level != "float"
        self.ranges: Ranges | None = graph_ranges(graph) if self.integer else None
        self.components = list(_components(graph)) if whole else [(list(graph.order), True)]
        self.linear = {node.name: list(self._linear(node)) for node in graph.nodes if isinstance(node, (Dense, Sparse, Conv))}
        self.sources = {node.name: self._source(node) for node in graph.neurons} if self.integer else {}
        self.depth = self._depths(observed)

    def _source(self, node: Neuron) -> _Source:
        assert self.ranges is not None
        shape = self.graph.shape_of(node.name)
        ranges = self.ranges.neurons[node.name]
        narrow = all(_fits(i) for i in (*ranges.values.values(), *ranges.states.values()))
        params = {
            name: int(a.item()) if a.size == 1 and a.ndim <= 1 else spread(a.astype(np.int32 if narrow else np.int64), shape)
            for name, a in node.params.items()
        }
        return _Source(node.program, ranges, params)

    def _dtype(self, wire: Wire) -> Any:
        """Narrowest storage at integer levels."""
        assert self.ranges is not None
        low, high = self.ranges.wires[wire]
        return DTYPES[narrowest(low, high) or "i64"]

    def _linear(self, node: Dense | Sparse | Conv) -> Iterator[tuple[int, _Linear]]:
        """One weighted sum for each delay that occurs."""
        delays = [0] if node.delay is None or not node.delay.size else [int(d) for d in np.unique(node.delay)]
        x = self.graph.type_of(node.inputs[0])
        for delay in delays:
            chosen = None if node.delay is None or not node.delay.size else node.delay == delay
            if self.integer:
                assert self.ranges is not None
                low, high = self.ranges.wires[node.inputs[0].node, node.inputs[0].port]
                init = node.inputs[0].init
                if init is not None:
                    low, high = min(low, of_array(init)[0]), max(high, of_array(init)[1])
                magnitude = max(abs(low), abs(high), 1)
                wide = np.abs(node.weight.astype(np.float64))
                if isinstance(node, Sparse):
                    most = float(np.bincount(node.rows, wide, minlength=1).max(initial=0.0))
                else:
                    most = float(wide.reshape(len(wide), -1).sum(axis=1).max(initial=0.0))
                bound: int | None = int(most * magnitude * (1 + 2**-40)) + 1
                dtype: Any = np.int32 if bound is not None and bound <= _INT32[1] // 2 else np.int64
            else:
                low, high = INT64
                bound, dtype = None, np.result_type(DTYPES[x.dtype], node.weight)
            spikes = self.integer and low >= 0 and high <= 1
            if isinstance(node, Sparse):
                pick = slice(None) if chosen is None else chosen
                out = len(node.indptr) - 1
                source, target = node.indices[pick], node.rows[pick]
                yield delay, _Connections(source, target, node.weight[pick], node.fan_in, out, dtype, bound, spikes)
                continue
            weight = node.weight if chosen is None else np.where(chosen, node.weight, node.weight.dtype.type(0))
            if isinstance(node, Dense):
                yield delay, _Matrix(weight.T, dtype, bound, spikes)
            else:
                yield delay, _Windows(node, weight, x.shape, self.graph.shape_of(node.name), dtype, bound, spikes)

    def _depths(self, observed: set[Wire]) -> dict[Wire, int]:
        """How many past steps of a wire to keep; -1 for all of them."""
        place = {node.name: index for index, (nodes, _) in enumerate(self.components) for node in nodes}
        depth: dict[Wire, int] = {}
        for index, (nodes, cyclic) in enumerate(self.components):
            for node in nodes:
                for port, _ in self.graph.types[node.name]:
                    depth[node.name, port] = 0 if cyclic and (node.name, port) not in observed else -1
            for node in nodes:
                extra = max((delay for delay, _ in self.linear.get(node.name, ())), default=0)
                for ref in node.inputs:
                    wire = (ref.node, ref.port)
                    if place[ref.node] != index:
                        depth[wire] = -1
        for nodes, _ in self.components:
            for node in nodes:
                extra = max((delay for delay, _ in self.linear.get(node.name, ())), default=0)
                for ref in node.inputs:
                    wire = (ref.node, ref.port)
                    if depth[wire] >= 0:
                        depth[wire] = max(depth[wire], ref.delay + extra)
        return depth

    def bytes_per_sample(self, steps: int) -> int:
        """About how much memory the traces of one sample take."""
        total = 0
        for wire, depth in self.depth.items():
            type_ = dict(self.graph.types[wire[0]])[wire[1]]
            item = self._dtype(wire).itemsize if self.integer else DTYPES[type_.dtype].itemsize
            total += type_.size * item * (steps if depth < 0 else depth + 1)
        return total * 2

    # One run over a chunk of samples. Everything below works on (batch, *shape), or on (steps * batch, *shape) at once.

    def run(self, inputs: Mapping[str, Array], batch: int, length: int) -> tuple[dict[Wire, _Trace], dict[str, dict[str, Array]]]:
        """Traces of all wires and final states; inputs are (batch, T, *shape)."""
        steps = length + self.graph.max_lag
        traces: dict[Wire, _Trace] = {}
        final: dict[str, dict[str, Array]] = {}
        for nodes, cyclic in self.components:
            if not cyclic and not isinstance(nodes[0], Neuron):
                (node,) = nodes
                traces[node.name, ""] = _Trace(self._whole(node, inputs, traces, batch, length, steps))
                continue
            if not cyclic and self.integer:
                assert isinstance(nodes[0], Neuron)
                final[nodes[0].name] = self._alone(nodes[0], traces, batch, length, steps)
                continue
            states = {node.name: self._initial(node, batch) for node in nodes if isinstance(node, Neuron)}
            if self.integer:
                self._cycle(nodes, states, traces, final, batch, length, steps)
                continue
            for t in range(steps):
                for node in nodes:
                    self._step(node, states, traces, batch, t, steps)
                    if isinstance(node, Neuron) and t - node.lag == length - 1:
                        final[node.name] = {k: v.copy() for k, v in states[node.name].items()}
        return traces, final

    def _alone(self, node: Neuron, traces: dict[Wire, _Trace], batch: int, length: int, steps: int) -> dict[str, Array]:
        """A population outside any cycle, at integer levels: all steps of its inputs are there. Returns the final states."""
        source, ports = self.sources[node.name], self.graph.types[node.name]
        shape = (batch, *ports[0][1].shape)
        reads = [self._shifted(ref, traces, batch, steps, 0).astype(source.dtype, copy=False) for ref in node.inputs]
        written = []
        for port, type_ in ports:
            data = np.zeros((steps, batch, *type_.shape), self._dtype((node.name, port)))
            traces[node.name, port] = _Trace(data)
            written.append(data)
        states = list(self._initial(node, batch).values())
        final = {name: value.copy() for name, value in zip(node.program.state_names, states, strict=True)}
        step, last, spread_out = source.step, length - 1 + node.lag, np.broadcast_to
        end = steps if node.stop is None else min(node.stop, steps)
        for t in range(node.start, end):
            after, emitted = step(*[read[t] for read in reads], *states, t)
            for number, value in enumerate(after):
                if type(value) is not np.ndarray or value.dtype != source.dtype or value.shape != shape:
                    value = spread_out(np.asarray(value, source.dtype), shape)
                states[number] = value
            for data, value in zip(written, emitted, strict=True):
                data[t] = value
            if t == min(last, end - 1):
                final = {name: value.copy() for name, value in zip(node.program.state_names, states, strict=True)}
        return final

    def _cycle(
        self,
        nodes: list[Node],
        states: dict[str, dict[str, Array]],
        traces: dict[Wire, _Trace],
        final: dict[str, dict[str, Array]],
        batch: int,
        length: int,
        steps: int,
    ) -> None:
        """A cycle at integer levels, step by step. What does not change from step to step is looked up once."""
        for node in nodes:
            for port, type_ in self.graph.types[node.name]:
                depth = self.depth[node.name, port]
                shape = (steps if depth < 0 else depth + 1, batch, *type_.shape)
                traces[node.name, port] = _Trace(np.zeros(shape, self._dtype((node.name, port))))
        calls = [self._call(node, states, traces, batch, steps) for node in nodes]
        ends = [(node, node.lag + length - 1) for node in nodes if isinstance(node, Neuron)]
        for t in range(steps):
            for call in calls:
                call(t)
            for node, last in ends:
                if t == last:
                    final[node.name] = {k: v.copy() for k, v in states[node.name].items()}

    def _reader(self, ref: Ref, extra: int, traces: dict[Wire, _Trace], batch: int) -> Callable[[int], Array]:
        """What a reference reads at step t, `extra` steps further back."""
        data, back, delay = traces[ref.node, ref.port].data, ref.delay + extra, ref.delay
        kept = len(data)

        def read(t: int) -> Array:
            if t - extra < delay:
                return self._read(ref, traces, batch, t, extra)
            found: Array = data[(t - back) % kept]
            return found

        return read

    def _call(
        self, node: Node, states: dict[str, dict[str, Array]], traces: dict[Wire, _Trace], batch: int, steps: int
    ) -> Callable[[int], None]:
        """A step of a node of a cycle, as a function of t."""
        if isinstance(node, Neuron) and not node.start and node.stop is None:
            return self._population(node, states[node.name], traces, batch)
        if isinstance(node, (Dense, Add)) and (isinstance(node, Add) or len(self.graph.shape_of(node.name)) == 1):
            data = traces[node.name, ""].data
            kept = len(data)
            reads = [self._reader(ref, extra, traces, batch) for ref, extra in self._operands(node)]
            if isinstance(node, Add):
                kind = self._sum_type(node)

                def add(t: int) -> None:
                    total = reads[0](t).astype(kind, copy=False)
                    for read in reads[1:]:
                        total = total + read(t)
                    data[t % kept] = total

                return add
            linear = [item for _, item in self.linear[node.name]]
            bias = None if node.bias is None else node.bias.astype(np.int64)

            def weigh(t: int) -> None:
                total: Any = None
                for item, read in zip(linear, reads, strict=True):
                    x = read(t)
                    part = item.apply(x.reshape(-1, x.shape[-1]))
                    total = part if total is None else total + part
                total = total.reshape(data.shape[1:])
                data[t % kept] = total if bias is None else total + bias

            return weigh
        return lambda t: self._step(node, states, traces, batch, t, steps)

    def _sum_type(self, node: Add) -> Any:
        """A type that holds every operand and every partial sum."""
        assert self.ranges is not None
        low = high = 0
        widest: Any = np.int8
        for ref in node.inputs:
            span = self.ranges.wires[ref.node, ref.port]
            span = span if ref.init is None else (min(span[0], of_array(ref.init)[0]), max(span[1], of_array(ref.init)[1]))
            low, high = low + min(span[0], 0), high + max(span[1], 0)
            widest = np.result_type(widest, self._zero_type(ref))
        kind = narrowest(low, high)
        return np.int64 if kind is None else np.result_type(widest, DTYPES[kind])

    def _population(self, node: Neuron, states: dict[str, Array], traces: dict[Wire, _Trace], batch: int) -> Callable[[int], None]:
        source, names = self.sources[node.name], node.program.state_names
        shape = (batch, *self.graph.shape_of(node.name))
        reads = [self._reader(ref, 0, traces, batch) for ref in node.inputs]
        written = [(traces[node.name, port].data, len(traces[node.name, port].data)) for port, _ in self.graph.types[node.name]]
        step, dtype = source.step, source.dtype

        def fire(t: int) -> None:
            after, emitted = step(*[read(t).astype(dtype, copy=False) for read in reads], *states.values(), t)
            for name, value in zip(names, after, strict=True):
                if type(value) is not np.ndarray or value.dtype != dtype or value.shape != shape:
                    value = np.broadcast_to(np.asarray(value, dtype), shape)
                states[name] = value
            for (data, kept), value in zip(written, emitted, strict=True):
                data[t % kept] = value

        return fire

    def _step(
        self, node: Node, states: dict[str, dict[str, Array]], traces: dict[Wire, _Trace], batch: int, t: int, steps: int
    ) -> None:
        """One step of a node that is no input."""
        if isinstance(node, Neuron):
            self._neuron(node, states[node.name], traces, batch, t, steps)
            return
        value = self._apply(node, self._reads(node, traces, batch, t), batch, t)
        self._store((node.name, ""), traces, value, batch, t, steps)

    def _whole(
        self, node: Node, inputs: Mapping[str, Array], traces: dict[Wire, _Trace], batch: int, length: int, steps: int
    ) -> Array:
        """A node outside any cycle, for all steps: (steps, batch, *shape)."""
        type_ = self.graph.types[node.name][0][1]
        if isinstance(node, Input):
            dtype = self._dtype((node.name, "")) if self.integer else DTYPES[type_.dtype]
            data = np.zeros((steps, batch, *type_.shape), dtype)
            data[:length] = np.moveaxis(np.asarray(inputs[node.name]), 1, 0)
            return data
        if isinstance(node, Constant):
            data = np.zeros((steps, batch, *type_.shape), self._dtype((node.name, "")) if self.integer else node.value.dtype)
            data[node.start :] = node.value
            return data
        reads = []
        for ref, delay in self._operands(node):
            whole = self._shifted(ref, traces, batch, steps, delay)
            reads.append(whole.reshape(steps * batch, *whole.shape[2:]))
        value = self._apply(node, reads, steps * batch, 0)
        if self.integer:
            value = value.astype(self._dtype((node.name, "")), copy=False)
        return value.reshape(steps, batch, *value.shape[1:])

    def _operands(self, node: Node) -> list[tuple[Ref, int]]:
        """What a node reads: its operands, or its one operand once for each delay of its connections."""
        if node.name in self.linear:
            return [(node.inputs[0], delay) for delay, _ in self.linear[node.name]]
        return [(ref, 0) for ref in node.inputs]

    def _zero_type(self, ref: Ref) -> Any:
        return self._dtype((ref.node, ref.port)) if self.integer else DTYPES[self.graph.type_of(ref).dtype]

    def _shifted(self, ref: Ref, traces: dict[Wire, _Trace], batch: int, steps: int, extra: int) -> Array:
        """A wire over all steps as a reference reads it, `extra` steps further back."""
        data = traces[ref.node, ref.port].data
        if ref.delay + extra == 0:
            return data
        dtype = data.dtype if ref.init is None else np.result_type(data.dtype, ref.init.dtype if self.integer else data.dtype)
        result = np.zeros(data.shape, dtype)
        back = min(ref.delay + extra, steps)
        if ref.init is not None:
            seen = ref.init[: max(min(ref.delay, steps - extra), 0)]
            result[extra : extra + len(seen)] = seen[:, None]
        result[back:] = data[: steps - back]
        return result

    def _reads(self, node: Node, traces: dict[Wire, _Trace], batch: int, t: int) -> list[Array]:
        return [self._read(ref, traces, batch, t, extra) for ref, extra in self._operands(node)]

    def _read(self, ref: Ref, traces: dict[Wire, _Trace], batch: int, t: int, extra: int = 0) -> Array:
        when, back = t - extra, ref.delay + extra
        if when >= ref.delay:
            return traces[ref.node, ref.port].at(t - back)
        shape = self.graph.type_of(ref).shape
        dtype = self._zero_type(ref)
        if ref.init is not None and when >= 0:
            first = ref.init[when] if self.integer else ref.init[when].astype(dtype)
            return np.broadcast_to(first, (batch, *shape))
        return np.zeros((batch, *shape), dtype)

    def _store(self, wire: Wire, traces: dict[Wire, _Trace], value: Any, batch: int, t: int, steps: int) -> None:
        trace = traces.get(wire)
        if trace is None:
            type_ = dict(self.graph.types[wire[0]])[wire[1]]
            dtype = self._dtype(wire) if self.integer else value.dtype
            depth = self.depth[wire]
            trace = traces[wire] = _Trace(np.zeros((steps if depth < 0 else depth + 1, batch, *type_.shape), dtype))
        trace.data[t % len(trace.data)] = value

    def _initial(self, node: Neuron, batch: int) -> dict[str, Array]:
        shape = self.graph.shape_of(node.name)
        if self.integer:
            dtype: Any = self.sources[node.name].dtype
        else:
            floats = [DTYPES[t.dtype] for t in map(self.graph.type_of, node.inputs) if is_float(t.dtype)]
            floats += [a.dtype for a in (*node.params.values(), *node.init.values()) if a.ndim]
            dtype = np.result_type(*floats) if floats else np.float32
        result = {}
        for state in node.program.states:
            value = spread(node.init[state.name], shape) if state.name in node.init else state.init
            result[state.name] = np.broadcast_to(np.asarray(value, dtype), (batch, *shape)).copy()
        return result

    def _neuron(self, node: Neuron, states: dict[str, Array], traces: dict[Wire, _Trace], batch: int, t: int, steps: int) -> None:
        ports = self.graph.types[node.name]
        shape = (batch, *ports[0][1].shape)
        emitted: tuple[Any, ...]
        if not node.runs(t):
            emitted = tuple(np.zeros(shape, DTYPES[type_.dtype]) for _, type_ in ports)
        elif self.integer:
            source = self.sources[node.name]
            reads = (self._read(ref, traces, batch, t).astype(source.dtype, copy=False) for ref in node.inputs)
            after, emitted = source.step(*reads, *states.values(), t)
            for name, value in zip(node.program.state_names, after, strict=True):
                states[name] = value if isinstance(value, np.ndarray) and value.shape == shape else np.broadcast_to(value, shape)
                if states[name].dtype != source.dtype:
                    states[name] = states[name].astype(source.dtype)
        else:
            values: dict[str, Any] = {
                name: self._read(ref, traces, batch, t) for name, ref in zip(node.program.inputs, node.inputs, strict=True)
            }
            for name, array in node.params.items():
                values[name] = array.item() if array.size == 1 and array.ndim <= 1 else spread(array, shape[1:])
            values = run_program(node.program, values | states | {STEP: t}, float_truth)
            for name in states:
                states[name] = np.array(np.broadcast_to(values[name], shape), states[name].dtype)
            emitted = tuple(
                np.broadcast_to(float_truth(values[emit.name]), shape).astype(DTYPES[type_.dtype])
                for emit, (_, type_) in zip(node.program.emits, ports, strict=True)
            )
        for (port, _), value in zip(ports, emitted, strict=True):
            self._store((node.name, port), traces, value, batch, t, steps)

    def _apply(self, node: Node, reads: list[Array], rows: int, t: int) -> Array:
        """An operation without memory on (rows, *shape); weighted sums get one operand for each delay."""
        shape = self.graph.shape_of(node.name)
        if isinstance(node, (Dense, Sparse, Conv)):
            total: Any = None
            for (_, linear), x in zip(self.linear[node.name], reads, strict=True):
                flat = x.reshape(-1, x.shape[-1]) if isinstance(node, Dense) else x.reshape(rows, -1)
                part = linear.apply(flat)
                total = part if total is None else total + part
            total = total.reshape(rows, *shape)
            if node.bias is None:
                return np.asarray(total)
            bias = node.bias
            if self.integer:
                low, high = of_array(bias)
                bias = bias.astype(total.dtype if _fits((low, high)) else np.int64)
            return np.asarray(total + (bias.reshape(-1, *(1,) * (len(shape) - 1)) if isinstance(node, Conv) else bias))
        if isinstance(node, Constant):
            value = node.value if t >= node.start else np.zeros_like(node.value)
            return np.broadcast_to(value, (rows, *shape))
        if self.integer:
            low, high = self.ranges.wires[node.name, ""] if self.ranges else INT64
            wide = _fits((low, high)) and all(r.dtype.itemsize <= 4 for r in reads)
            kind: Any = np.int32 if wide else np.int64
        if isinstance(node, Add):
            sums = reads[0].astype(np.int64) if self.integer else reads[0]
            for operand in reads[1:]:
                sums = sums + operand
            return sums
        if isinstance(node, Concat):
            return np.concatenate(reads, axis=node.axis + 1)
        (x,) = reads
        if isinstance(node, Reshape):
            return x.reshape(rows, *shape)
        if isinstance(node, Gather):
            return np.asarray(x.reshape(rows, -1)[:, node.indices])
        if isinstance(node, Pool):
            return self._pool(node, x.astype(kind) if self.integer else x, shape)
        assert isinstance(node, Scale)
        result = x * self._scalar(node.factor, shape)
        return np.asarray(result if node.offset is None else result + self._scalar(node.offset, shape))

    def _scalar(self, array: Array, shape: tuple[int, ...]) -> Any:
        if self.integer:
            return spread(array.astype(np.int64), shape)
        return array.item() if array.size == 1 and array.ndim <= 1 else spread(array, shape)

    def _pool(self, node: Pool, x: Array, shape: tuple[int, ...]) -> Array:
        """Window position by window position over all outputs at once."""
        low: Any = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        fill = low if node.mode == "max" else 0
        padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in node.padding)], constant_values=fill)
        result: Any = None
        for offset in np.ndindex(*node.kernel):
            cut = tuple(slice(o, o + s * (n - 1) + 1, s) for o, s, n in zip(offset, node.stride, shape[1:], strict=True))
            part = padded[(slice(None), slice(None), *cut)]
            result = part.copy() if result is None else np.maximum(result, part) if node.mode == "max" else result + part
        if node.mode == "average":
            return np.asarray(result / x.dtype.type(np.prod(node.kernel)))
        return np.asarray(result)


def _components(graph: Graph) -> Iterator[tuple[list[Node], bool]]:
    """Strongly connected components in an order of evaluation, and whether each is a cycle."""
    import networkx as nx

    position = {node.name: index for index, node in enumerate(graph.order)}
    net: Any = nx.DiGraph()
    net.add_nodes_from(position)
    net.add_edges_from((ref.node, node.name) for node in graph.nodes for ref in node.inputs)
    whole = nx.condensation(net)
    for index in nx.topological_sort(whole):
        names = sorted(whole.nodes[index]["members"], key=position.__getitem__)
        cyclic = len(names) > 1 or net.has_edge(names[0], names[0])
        yield [graph[name] for name in names], cyclic


@lru_cache(maxsize=8)
def _engine(graph: Graph, observed: frozenset[Wire]) -> _Engine:
    """Ranges, weights by row and programs as functions take longer than a short run: they are kept with the graph."""
    return _Engine(graph, set(observed))


def run_events(
    graph: Graph,
    inputs: Mapping[str, Array],
    *,
    record: Collection[str] = (),
    progress: Progress | None = None,
    steps: int | None = None,
) -> Execution:
    """As `interpret`, event-driven."""
    batch, length = extent(inputs, steps)
    wires = {record_name((node, port)): (node, port) for node, ports in graph.types.items() for port, _ in ports}
    for name in record:
        if name not in wires:
            raise CompileError("SPK010", f"there is no wire '{name}' to record")
    outputs = {name: (ref.node, ref.port) for name, ref in graph.outputs}
    kept = {name: wires[name] for name in record}
    wanted = {*outputs.values(), *kept.values()}
    engine = _engine(graph, frozenset(wanted))
    result: dict[Wire, Array] = {}
    states: dict[str, dict[str, Array]] = {}
    for node in graph.neurons:
        start = engine._initial(node, batch)
        states[node.name] = {k: v.astype(np.int64) if engine.integer else v for k, v in start.items()}
    for wire in wanted:
        type_ = dict(graph.types[wire[0]])[wire[1]]
        dtype: Any = np.int64 if engine.integer else DTYPES[type_.dtype]
        result[wire] = np.zeros((batch, length, *type_.shape), dtype)
    if length == 0 or batch == 0:
        return Execution({n: result[w] for n, w in outputs.items()}, {n: result[w] for n, w in kept.items()}, states)
    size = max(1, min(batch, _CHUNK_BYTES // max(engine.bytes_per_sample(length + graph.max_lag), 1)))
    for begin in range(0, batch, size):
        chunk = {name: array[begin : begin + size] for name, array in inputs.items()}
        count = min(size, batch - begin)
        traces, final = engine.run(chunk, count, length)
        for wire, array in result.items():
            lag = graph[wire[0]].lag
            data = np.moveaxis(traces[wire].data[lag : lag + length], 0, 1)
            if data.dtype != array.dtype and not engine.integer:
                array = result[wire] = array.astype(data.dtype)
            array[begin : begin + count] = data
        for name, values in final.items():
            for key, value in values.items():
                if value.dtype != states[name][key].dtype and not engine.integer:
                    states[name][key] = states[name][key].astype(value.dtype)
                states[name][key][begin : begin + count] = value
        if progress is not None:
            progress(begin + count, batch)
    return Execution({n: result[w] for n, w in outputs.items()}, {n: result[w] for n, w in kept.items()}, states)


class NumpyBackend:
    """The event-driven NumPy engine; runs every graph at every level and needs no files of its own."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def available(self) -> str | None:
        """Always."""
        return None

    def check(self, graph: Graph) -> Iterator[Diagnostic]:
        """Nothing that the verifier accepts is refused."""
        return iter(())

    def emit(self, graph: Graph, folder: Path, golden: Golden | None = None, cutoff: Cutoff | None = None) -> None:
        """Writes nothing: the graph itself is what is run."""

    def run(
        self,
        graph: Graph,
        inputs: Mapping[str, Array],
        *,
        record: Collection[str] = (),
        artefact: Path | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
        steps: int | None = None,
    ) -> Execution:
        """Run the graph; chunks of samples report progress."""
        return run_events(graph, inputs, record=record, progress=progress, steps=steps)

    def stream(self, graph: Graph) -> EventStepper:
        """One sample, step by step (`spikec.stream`)."""
        return EventStepper(graph)


class EventStepper:
    """The engine, one step at a time."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._engine = _Engine(graph, set(), whole=False)
        self.reset()

    def reset(self) -> None:
        """Back to before the first step."""
        self._t = 0
        self._traces: dict[Wire, _Trace] = {}
        self._states = {node.name: self._engine._initial(node, 1) for node in self.graph.neurons}

    def step(self, inputs: Mapping[str, Array]) -> None:
        """One step."""
        engine, t = self._engine, self._t
        for node in self.graph.order:
            if isinstance(node, Input):
                dtype = engine._dtype((node.name, "")) if engine.integer else DTYPES[node.type.dtype]
                engine._store((node.name, ""), self._traces, inputs[node.name][None].astype(dtype), 1, t, 1)
            else:
                engine._step(node, self._states, self._traces, 1, t, 1)
        self._t += 1

    def read(self, wire: str) -> Array:
        """A wire after the last step; zero before the first."""
        node, _, port = wire.partition(".")
        type_ = dict(self.graph.types[node])[port]
        if not self._t:
            return np.zeros(type_.shape, np.int64 if self._engine.integer else DTYPES[type_.dtype])
        value = self._traces[node, port].at(self._t - 1)[0]
        return np.array(value, np.int64 if self._engine.integer else value.dtype)

    def state(self, node: str, name: str) -> Array:
        """A state after the last step."""
        value = self._states[node][name][0]
        return np.array(value, np.int64 if self._engine.integer else value.dtype)
