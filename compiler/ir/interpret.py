"""The reference interpreter: the one definition of what a graph means, at every level.

Clock-driven and written to be read. All samples of a batch run side by side; values have shape (batch, *shape). At the
float level numbers keep the dtypes that NumPy's promotion gives (literals and scalar parameters are weak, as in torch); at
integer levels everything is int64, which the verifier proves to suffice, and only `wrap` and `clip` narrow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.neuron import STEP, Call, Expr, Num, Program, Var
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
from spikec.ir.types import DTYPES, Array, is_float

Wire = tuple[str, str]


# ------------------------------------------------------------------------------------------------------- expressions


def _rtz(x: Any, bits: Any) -> Any:
    """Shift toward zero, sign(x) * (|x| >> bits): one more than the floor where that is below the quotient."""
    inexact = (x < 0) & ((x & ((1 << bits) - 1)) != 0)
    return (x >> bits) + (inexact if isinstance(inexact, bool) else inexact.astype(np.int64))


def _wrap(x: Any, bits: Any) -> Any:
    """Two's complement of `bits` bits: -2^(n-1) to 2^(n-1) - 1."""
    half = 1 << (bits - 1)
    return ((x + half) & ((1 << bits) - 1)) - half


def _clip(x: Any, bits: Any) -> Any:
    """Saturate symmetrically at +-(2^(n-1) - 1), as Loihi's membrane does."""
    limit = (1 << (bits - 1)) - 1
    return np.minimum(np.maximum(x, -limit), limit)


_EVALUATE: dict[str, Callable[..., Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: np.true_divide(a, b),
    "neg": lambda a: -a,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<<": lambda a, b: a << b,
    ">>": lambda a, b: a >> b,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "floor": np.floor,
    "round": np.rint,
    "rem": np.remainder,
    "exp": np.exp,
    "rtz": _rtz,
    "wrap": _wrap,
    "clip": _clip,
}


def evaluate(expr: Expr, values: Mapping[str, Any], truth: Callable[[Any], Any]) -> Any:
    """The value of an expression; `truth` turns truth values into numbers where arithmetic needs them."""
    if isinstance(expr, Num):
        return expr.value
    if isinstance(expr, Var):
        return values[expr.name]
    assert isinstance(expr, Call)
    args = [evaluate(arg, values, truth) for arg in expr.args]
    if expr.op == "select":
        if isinstance(args[0], (bool, np.bool_)):
            result = args[1] if args[0] else args[2]
        else:
            a, b = args[1:]
            if not (_is_truth(a) and _is_truth(b)):
                a, b = truth(a), truth(b)
            result = np.where(args[0], a, b)
            if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
                # Two literals have no type of their own; the default is torch's.
                result = result.astype(np.float32 if truth is float_truth else np.int64)
    elif expr.op in ("and", "or", "not"):
        result = _EVALUATE[expr.op](*args)
    else:
        result = _EVALUATE[expr.op](*(truth(arg) for arg in args))
    # A NumPy scalar would be strong in promotion; a Python number stays weak.
    return result.item() if isinstance(result, np.generic) else result


def _is_truth(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) == np.bool_


def float_truth(value: Any) -> Any:
    """Truth values as 0.0 and 1.0 in the narrowest float."""
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    return value.astype(np.float32) if _is_truth(value) else value


def fixed_truth(value: Any) -> Any:
    """Truth values as 0 and 1 in int64."""
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    return value.astype(np.int64) if _is_truth(value) else value


def run_program(program: Program, values: dict[str, Any], truth: Callable[[Any], Any]) -> dict[str, Any]:
    """Run the statements once, top to bottom; returns all variables as they stand at the end."""
    states = set(program.state_names)
    for statement in program.body:
        value = evaluate(statement.expr, values, truth)
        values[statement.name] = truth(value) if statement.name in states else value
    return values


# -------------------------------------------------------------------------------------------------------------- sums


def _exact(product: Callable[[Any, Any], Array], x: Array, weight: Array) -> Array:
    """An integer sum of products, through float64 where that is exact (it has BLAS), else in int64."""
    if x.dtype.kind == "f":
        return product(x, weight)
    largest = int(np.abs(x).max(initial=0)) * int(np.abs(weight.astype(np.int64)).max(initial=0))
    if largest * weight.size < 1 << 53:
        return product(x.astype(np.float64), weight.astype(np.float64)).astype(np.int64)
    return product(x, weight.astype(np.int64))


def _conv(node: Conv, x: Array, weight: Array) -> Array:
    space = weight.ndim - 2
    groups = node.groups
    pad = [(0, 0), (0, 0), *((p, p) for p in node.padding)]
    padded = np.pad(x, pad)
    reach = [d * (k - 1) + 1 for d, k in zip(node.dilation, weight.shape[2:], strict=True)]
    axes = tuple(range(2, 2 + space))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    every = [slice(None, None, s) for s in node.stride]
    inside = [slice(None, None, d) for d in node.dilation]
    windows = windows[(slice(None), slice(None), *every, *inside)]
    kernel_axes = list(range(2 + space, 2 + 2 * space))
    step_in, step_out = x.shape[1] // groups, weight.shape[0] // groups
    parts = []
    for group in range(groups):
        part = windows[:, group * step_in : (group + 1) * step_in]
        kernel = weight[group * step_out : (group + 1) * step_out]
        summed = np.tensordot(part, kernel, axes=([1, *kernel_axes], list(range(1, 2 + space))))
        parts.append(np.moveaxis(summed, -1, 1))
    return np.concatenate(parts, axis=1)


def _sparse(node: Sparse, x: Array, weight: Array) -> Array:
    dtype = np.int64 if x.dtype.kind != "f" else np.result_type(x, weight)
    total = np.zeros((x.shape[0], len(node.indptr) - 1), dtype)
    np.add.at(total.T, node.rows, (x[:, node.indices] * weight).T)
    return total


def _pool(node: Pool, x: Array) -> Array:
    space = len(node.kernel)
    if x.dtype.kind == "f":
        low: Any = -np.inf
    else:
        low = np.iinfo(np.int64).min
    fill = low if node.mode == "max" else 0
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in node.padding)], constant_values=fill)
    axes = tuple(range(2, 2 + space))
    windows = np.lib.stride_tricks.sliding_window_view(padded, node.kernel, axis=axes)
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in node.stride))]
    inner = tuple(range(2 + space, 2 + 2 * space))
    if node.mode == "max":
        return np.asarray(windows.max(axis=inner))
    total = windows.sum(axis=inner, dtype=x.dtype)
    return np.asarray(total if node.mode == "sum" else total / total.dtype.type(np.prod(node.kernel)))


def _channels(array: Array, ndim: int) -> Array:
    """A bias (channels,) against (batch, channels, *space)."""
    return array.reshape(-1, *(1,) * (ndim - 2))


# ------------------------------------------------------------------------------------------------------- interpreter


class Interpreter:
    """Runs a graph step by step for `batch` samples that begin together.

    `step` takes the input values of one step, each (batch, *shape), and returns every wire's value of that step.
    """

    def __init__(self, graph: Graph, batch: int) -> None:
        self.graph = graph
        self.batch = batch
        self.t = 0
        self.integer = graph.level != "float"
        self.truth = fixed_truth if self.integer else float_truth
        self.states = {node.name: self._initial(node) for node in graph.neurons}
        self._params = {
            node.name: {k: self._param(v, graph.shape_of(node.name)) for k, v in node.params.items()} for node in graph.neurons
        }
        self._history = {wire: deque[Array](maxlen=length) for wire, length in _history_lengths(graph).items()}
        self._now: dict[Wire, Array] = {}

    def _initial(self, node: Neuron) -> dict[str, Array]:
        shape = self.graph.shape_of(node.name)
        dtype: Any = np.int64
        if not self.integer:
            floats = [DTYPES[t.dtype] for t in map(self.graph.type_of, node.inputs) if is_float(t.dtype)]
            floats += [a.dtype for a in (*node.params.values(), *node.init.values()) if a.ndim]
            dtype = np.result_type(*floats) if floats else np.float32
        result = {}
        for state in node.program.states:
            value = spread(node.init[state.name], shape) if state.name in node.init else state.init
            result[state.name] = np.broadcast_to(np.asarray(value, dtype), (self.batch, *shape)).copy()
        return result

    def _param(self, array: Array, shape: tuple[int, ...]) -> Any:
        if array.size == 1 and array.ndim <= 1:
            return array.item()
        return spread(array.astype(np.int64) if self.integer else array, shape)

    def step(self, inputs: Mapping[str, Array]) -> dict[Wire, Array]:
        """One step. The result maps (node, port) to (batch, *shape)."""
        self._now = {}
        for node in self.graph.order:
            if isinstance(node, Input):
                given = np.asarray(inputs[node.name])
                target: Any = np.int64 if self.integer else DTYPES[node.type.dtype]
                self._now[node.name, ""] = given.astype(target)
            elif isinstance(node, Neuron):
                self._neuron(node)
            else:
                self._now[node.name, ""] = self._compute(node)
        for wire, past in self._history.items():
            past.append(self._now[wire])
        self.t += 1
        return self._now

    def read(self, ref: Ref, extra: int = 0) -> Array:
        """What a reference reads at this step, `extra` steps further back: the past is zero unless `init` says otherwise."""
        wire = (ref.node, ref.port)
        when = self.t - extra
        back = ref.delay + extra
        if back == 0:
            return self._now[wire]
        if when >= ref.delay:
            past = self._history[wire]
            return past[-back]
        type_ = self.graph.type_of(ref)
        dtype: Any = np.int64 if self.integer else DTYPES[type_.dtype]
        if ref.init is not None and when >= 0:
            return np.broadcast_to(ref.init[when].astype(dtype), (self.batch, *type_.shape))
        return np.zeros((self.batch, *type_.shape), dtype)

    def _weighted(self, node: Dense | Sparse | Conv, product: Callable[[Array, Array], Array]) -> Array:
        """The sum over connections, delay by delay."""
        (ref,) = node.inputs
        if node.delay is None:
            return _exact(product, self.read(ref), node.weight)
        total: Any = 0
        for delay in np.unique(node.delay) if node.delay.size else [0]:
            chosen = np.where(node.delay == delay, node.weight, node.weight.dtype.type(0))
            total = total + _exact(product, self.read(ref, int(delay)), chosen)
        return np.asarray(total)

    def _compute(self, node: Node) -> Array:
        if isinstance(node, (Dense, Sparse, Conv)):
            if isinstance(node, Dense):
                total = self._weighted(node, lambda x, w: x @ w.T)
            elif isinstance(node, Sparse):
                total = self._weighted(node, lambda x, w: _sparse(node, x, w))
            else:
                total = self._weighted(node, lambda x, w: _conv(node, x, w))
            if node.bias is None:
                return total
            bias = node.bias.astype(np.int64) if self.integer else node.bias
            return np.asarray(total + (_channels(bias, total.ndim) if isinstance(node, Conv) else bias))
        if isinstance(node, Constant):
            dtype: Any = np.int64 if self.integer else node.value.dtype
            value = node.value if self.t >= node.start else np.zeros_like(node.value)
            return np.broadcast_to(value.astype(dtype), (self.batch, *node.value.shape))
        operands = [self.read(ref) for ref in node.inputs]
        if isinstance(node, Add):
            total = operands[0]
            for operand in operands[1:]:
                total = total + operand
            return total
        if isinstance(node, Concat):
            return np.concatenate(operands, axis=node.axis + 1)
        (x,) = operands
        if isinstance(node, Reshape):
            return x.reshape(self.batch, *node.shape)
        if isinstance(node, Gather):
            return x.reshape(self.batch, -1)[:, node.indices]
        if isinstance(node, Pool):
            return _pool(node, x)
        assert isinstance(node, Scale)
        shape = x.shape[1:]
        result = x * self._param(node.factor, shape)
        return np.asarray(result if node.offset is None else result + self._param(node.offset, shape))

    def observe(self, node: Neuron, values: Mapping[str, Any]) -> None:
        """Told all variables of a population at the end of its step; for those who look inside a run."""

    def _neuron(self, node: Neuron) -> None:
        ports = self.graph.types[node.name]
        shape = (self.batch, *ports[0][1].shape)
        states = self.states[node.name]
        if not node.runs(self.t):
            for port, type_ in ports:
                self._now[node.name, port] = np.zeros(shape, np.int64 if self.integer else DTYPES[type_.dtype])
            return
        values: dict[str, Any] = {name: self.read(ref) for name, ref in zip(node.program.inputs, node.inputs, strict=True)}
        values |= self._params[node.name] | states | {STEP: self.t}
        values = run_program(node.program, values, self.truth)
        self.observe(node, values)
        for name in states:
            # A state keeps its dtype: a reset that assigns a literal must not change what the next step computes in.
            states[name] = np.array(np.broadcast_to(values[name], shape), states[name].dtype)
        for emit, (port, type_) in zip(node.program.emits, ports, strict=True):
            value = np.broadcast_to(self.truth(values[emit.name]), shape)
            self._now[node.name, port] = np.array(value, np.int64 if self.integer else DTYPES[type_.dtype])


def _history_lengths(graph: Graph) -> dict[Wire, int]:
    """How many past steps of each wire somebody reads."""
    lengths: dict[Wire, int] = {}
    for node in graph.nodes:
        delay = getattr(node, "delay", None)
        extra = int(delay.max()) if delay is not None and delay.size else 0
        for ref in node.inputs:
            if ref.delay + extra:
                wire = (ref.node, ref.port)
                lengths[wire] = max(lengths.get(wire, 0), ref.delay + extra)
    return lengths


@dataclass
class Execution:
    """What a backend returns, aligned to the model's own steps (lags removed).

    outputs and records: (batch, T, *shape) by output name, and by node name, or `node.port` for a further port; states: final
    values after the node's last own step, (batch, *shape), by node and state. Integers are int64 at integer levels.
    """

    outputs: dict[str, Array]
    records: dict[str, Array] = field(default_factory=dict)
    states: dict[str, dict[str, Array]] = field(default_factory=dict)


def record_name(wire: Wire) -> str:
    """`node` for the first port, `node.port` for another."""
    return f"{wire[0]}.{wire[1]}" if wire[1] else wire[0]


def default_record(graph: Graph) -> tuple[str, ...]:
    """What `record="all"` means: every port of every population."""
    return tuple(record_name((node.name, port)) for node in graph.neurons for port, _ in graph.types[node.name])


def extent(inputs: Mapping[str, Array], steps: int | None) -> tuple[int, int]:
    """Samples and steps of a run: those of the inputs, or one sample of `steps` where there are none. Raises SPK006."""
    for array in inputs.values():
        return array.shape[0], array.shape[1]
    if steps is None:
        raise CompileError("SPK006", "a graph without inputs needs the number of steps", fix="run(steps=100), --steps 100")
    return 1, steps


def interpret(graph: Graph, inputs: Mapping[str, Array], *, record: Collection[str] = (), steps: int | None = None) -> Execution:
    """Run whole samples: inputs (batch, T, *shape) by input name; `steps` is needed only where there are none.

    Inputs are padded with zeros by the largest lag, and every node's result is read from the step at which it does the
    model's step, so that a retimed graph gives what the original gives.
    """
    batch, length = extent(inputs, steps)
    machine = Interpreter(graph, batch)
    kept: dict[str, list[Array]] = {name: [] for name in record}
    outputs: dict[str, list[Array]] = {name: [] for name, _ in graph.outputs}
    final: dict[str, dict[str, Array]] = {}
    wires = {record_name((node, port)): (node, port) for node, ports in graph.types.items() for port, _ in ports}
    for name in record:
        if name not in wires:
            raise CompileError("SPK010", f"there is no wire '{name}' to record")
    if length == 0:
        final = {n.name: {k: v.copy() for k, v in machine.states[n.name].items()} for n in graph.neurons if not n.lag}
    for t in range(length + graph.max_lag):
        frame = {
            node.name: inputs[node.name][:, t] if t < length else np.zeros((batch, *node.type.shape), DTYPES[node.type.dtype])
            for node in graph.inputs
        }
        now = machine.step(frame)
        for name in kept:
            wire = wires[name]
            if 0 <= t - graph[wire[0]].lag < length:
                kept[name].append(now[wire])
        for name, ref in graph.outputs:
            if 0 <= t - graph.output_lag(name) < length:
                outputs[name].append(now[ref.node, ref.port])
        for node in graph.neurons:
            if t - node.lag == length - 1:
                final[node.name] = {k: v.copy() for k, v in machine.states[node.name].items()}
    types = graph.types

    def stack(items: list[Array], wire: Wire) -> Array:
        if items:
            return np.stack(items, axis=1)
        type_ = dict(types[wire[0]])[wire[1]]
        return np.zeros((batch, 0, *type_.shape), np.int64 if machine.integer else DTYPES[type_.dtype])

    return Execution(
        {name: stack(items, (graph.output(name).node, graph.output(name).port)) for name, items in outputs.items()},
        {name: stack(items, wires[name]) for name, items in kept.items()},
        final,
    )
