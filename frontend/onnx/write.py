"""A float graph as an ONNX model: one `Scan` over time, made of standard operators.

Inputs and outputs are (batch, T, *shape). What the scan carries from step to step are the states of the neurons and, of every wire
that is read some steps later, its past (batch, steps, *shape), the oldest first. In the body a node of the graph keeps its name.
A graph that was retimed is fed zeros for the largest lag, and its outputs are cut, as the interpreter does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Loc
from spikec.frontend.onnx.emit import Emitter, Symbol, of_wire
from spikec.frontend.onnx.file import onnx, tensor
from spikec.ir.graph import Graph
from spikec.ir.interpret import Interpreter, Wire, float_truth, record_name
from spikec.ir.neuron import STEP
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
)
from spikec.ir.text import parse_graph, print_graph
from spikec.ir.types import DTYPES, Array
from spikec.version import __version__

OPSET: Final = 18
#: The oldest format of the container that knows the operator set; newer ones keep older runtimes out.
IR_VERSION: Final = 8
_TEXT, _HASH = "spikec.graph", "spikec.sha256"


def model_of(graph: Graph, record: Collection[str] = ()) -> Any:
    """The ONNX model of a float graph. Raises CompileError SPK502, SPK010, SPK009."""
    if graph.level != "float":
        raise CompileError(
            "SPK502",
            f"ONNX is written from the float level; {graph.name} is at the level '{graph.level}'",
            fix="take the graph before it became integers: spikec show BUILD --level float, or the .sir of an earlier pass",
        )
    return _Writer(graph, tuple(record)).model()


def graph_inside(model: Any, path: Path) -> Graph | None:
    """The graph that spikec left in a model that it wrote; None if it wrote none. Raises CompileError SPK003 if it was changed."""
    notes = {item.key: item.value for item in model.metadata_props}
    if _TEXT not in notes:
        return None
    loc = Loc(path.name)
    if notes.get(_HASH) != _fingerprint(model.graph, notes[_TEXT]):
        raise CompileError(
            "SPK003",
            "spikec wrote this model, and it was changed since: what it says and the graph in its metadata differ",
            loc=loc,
            fix="take the file as it was written, or the .sir it came from",
        )
    package = onnx()
    arrays = {proto.name: tensor(package, proto, path.parent, loc) for proto in model.graph.initializer}
    return parse_graph(notes[_TEXT], arrays)


def _fingerprint(graph: Any, text: str) -> str:
    return hashlib.sha256(graph.SerializeToString(deterministic=True) + text.encode()).hexdigest()


class _Writer:
    def __init__(self, graph: Graph, record: tuple[str, ...]) -> None:
        self.graph = graph
        self.package = onnx()
        self.text, arrays = print_graph(graph)
        self.initializers: dict[str, Array] = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        self.body = Emitter(self.initializers)
        self.outer = Emitter(self.initializers)
        self.outer.used = self.body.used  # names differ across both
        self.outer._known = self.body._known
        wires = {record_name((node, port)): (node, port) for node, ports in graph.types.items() for port, _ in ports}
        for name in record:
            if name not in wires:
                raise CompileError("SPK010", f"there is no wire '{name}' to record")
        self.wanted: dict[str, Wire] = {name: wires[name] for name in record}
        self.wanted |= {name: (ref.node, ref.port) for name, ref in graph.outputs}
        # The interpreter itself says which types its arithmetic has.
        self.machine = Interpreter(graph, 1)
        self.dtypes = self._types()
        self.start = Interpreter(graph, 1)
        self.values: dict[Wire, str] = {}
        self.clock = ""
        #: State in, its first value, state out, element type, shape.
        self.carried: list[tuple[str, str, str, np.dtype[Any], tuple[int | str, ...]]] = []
        self.past: dict[Wire, str] = {}

    def _types(self) -> dict[Wire, np.dtype[Any]]:
        """The element type of every wire. Before its first step a wire has the type that it declares: it may be another one."""
        history = self.machine._history
        frame = {node.name: np.zeros((1, *node.type.shape), DTYPES[node.type.dtype]) for node in self.graph.inputs}
        with np.errstate(all="ignore"):
            found = {wire: value.dtype for wire, value in self.machine.step(frame).items()}
            declared = {wire: DTYPES[dict(self.graph.types[wire[0]])[wire[1]].dtype] for wire in history}
            if any(found[wire] != dtype for wire, dtype in declared.items()):
                for _ in range(sum(past.maxlen or 0 for past in history.values()) + 1):
                    found = {wire: np.result_type(found[wire], value) for wire, value in self.machine.step(frame).items()}
        return found

    # ------------------------------------------------------------------------------------------------------- the model

    def model(self) -> Any:
        helper = self.package.helper
        graph, outer, body = self.graph, self.outer, self.body
        for name in (*(node.name for node in graph.inputs), *self.wanted, STEP):
            body.used.add(name)
        lag = graph.max_lag
        one = outer.constant(np.asarray([1], np.int64))
        inputs = [
            helper.make_tensor_value_info(n.name, body.code(DTYPES[n.type.dtype]), ["batch", "steps", *n.type.shape])
            for n in graph.inputs
        ]
        if graph.inputs:
            sizes = outer.op("Shape", [graph.inputs[0].name], "sizes")
            self.batch = outer.op("Slice", [sizes, outer.constant(np.asarray([0], np.int64)), one], "batch")
            length = outer.op("Squeeze", [outer.op("Slice", [sizes, one, outer.constant(np.asarray([2], np.int64))])], "steps")
        else:
            length = outer.fresh("steps")
            inputs = [helper.make_tensor_value_info(length, body.code(np.dtype(np.int64)), [])]
            self.batch = one
        total = outer.op("Add", [length, outer.constant(lag, np.int64)]) if lag else length
        clock = outer.op("Range", [outer.constant(0, np.int64), total, outer.constant(1, np.int64)], "clock")

        self.clock = body.fresh("t")
        scanned, fed = [], []
        for source in graph.inputs:
            value = body.fresh(f"{source.name}[t]")
            code = body.code(DTYPES[source.type.dtype])
            scanned.append(helper.make_tensor_value_info(value, code, ["batch", *source.type.shape]))
            self.values[source.name, ""] = value
            fed.append(self._padded(source, lag))
        scanned.append(helper.make_tensor_value_info(self.clock, body.code(np.dtype(np.int64)), []))
        self._pasts()
        for node in graph.order:
            body.prefix, body.comment = node.name, str(node.loc) if node.loc else ""
            if isinstance(node, Neuron):
                self._neuron(node)
            elif not isinstance(node, Input):
                self.values[node.name, ""] = body.op("Identity", [self._compute(node)], f"{node.name}[t]")
        body.comment = ""
        self._remember()
        outputs, results = [], []
        for name, wire in self.wanted.items():
            body.prefix = name
            shape = dict(graph.types[wire[0]])[wire[1]].shape
            value = body.op("Identity", [self.values[wire]], f"{name}[out]")
            outputs.append(helper.make_tensor_value_info(value, body.code(self.dtypes[wire]), ["batch", *shape]))
            results.append(helper.make_tensor_value_info(name, body.code(self.dtypes[wire]), ["batch", "steps", *shape]))

        before = [helper.make_tensor_value_info(state, body.code(d), list(shape)) for state, _, _, d, shape in self.carried]
        after = [helper.make_tensor_value_info(state, body.code(d), list(shape)) for _, _, state, d, shape in self.carried]
        inside = helper.make_graph(body.nodes, "step", [*before, *scanned], [*after, *outputs])
        ends = [outer.fresh(f"{state}[T]") for _, _, state, _, _ in self.carried]
        spans = [name if not lag else outer.fresh(f"{name}[late]") for name in self.wanted]
        outer.nodes.append(
            helper.make_node(
                "Scan",
                [*(first for _, first, _, _, _ in self.carried), *fed, clock],
                [*ends, *spans],
                name=graph.name,
                body=inside,
                num_scan_inputs=len(scanned),
                scan_input_axes=[1] * len(fed) + [0],
                scan_output_axes=[1] * len(spans),
            )
        )
        if lag:
            self._cut(spans, length)
        made = helper.make_graph(
            outer.nodes,
            graph.name,
            inputs,
            results,
            [self.package.numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )
        model = helper.make_model(
            made,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="spikec",
            producer_version=__version__,
        )
        helper.set_model_props(model, {_TEXT: self.text, _HASH: _fingerprint(model.graph, self.text)})
        return model

    def _padded(self, node: Input, lag: int) -> str:
        if not lag:
            return node.name
        self.outer.prefix = node.name
        shape = self.outer.op("Concat", [self.batch, self.outer.constant(np.asarray([lag, *node.type.shape], np.int64))], axis=0)
        zeros = self.outer.op("Expand", [self.outer.constant(0, DTYPES[node.type.dtype]), shape])
        return self.outer.op("Concat", [node.name, zeros], f"{node.name}[padded]", axis=1)

    def _cut(self, spans: Sequence[str], length: str) -> None:
        """Every output from the step at which its node does the model's first."""
        outer = self.outer
        axis = outer.constant(np.asarray([1], np.int64))
        for span, (name, wire) in zip(spans, self.wanted.items(), strict=True):
            lag = outer.constant(np.asarray([self.graph[wire[0]].lag], np.int64))
            end = outer.op("Add", [outer.op("Unsqueeze", [length, outer.constant(np.asarray([0], np.int64))]), lag])
            outer.nodes.append(self.package.helper.make_node("Slice", [span, lag, end, axis], [name], name=f"{name}/Slice"))

    # ------------------------------------------------------------------------------------------------------ the carried

    def _whole(self, emitter: Emitter, shape: tuple[int, ...]) -> str:
        """The shape (batch, *shape) as a value; made outside the body."""
        outer = self.outer
        outer.prefix = emitter.prefix
        if not shape:
            return self.batch
        return outer.op("Concat", [self.batch, outer.constant(np.asarray(shape, np.int64))], axis=0)

    def _carry(self, label: str, first: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
        """A state of the scan: its value in the body. `first` broadcasts to (*shape)."""
        if first.size and (first == first.ravel()[0]).all():
            first = np.asarray(first.ravel()[0])
        self.outer.prefix = label
        begin = self.outer.op(
            "Expand", [self.outer.constant(first, dtype, f"{label}.init"), self._whole(self.outer, shape)], f"{label}[0]"
        )
        state = self.body.fresh(f"{label}[t-1]")
        self.carried.append((state, begin, "", dtype, ("batch", *shape)))
        return state

    def _leave(self, state: str, value: str, label: str) -> None:
        """What the next step finds in a state."""
        index = next(i for i, item in enumerate(self.carried) if item[0] == state)
        out = self.body.op("Identity", [value], f"{label}[t+1]")
        begin, dtype, shape = self.carried[index][1], self.carried[index][3], self.carried[index][4]
        self.carried[index] = (state, begin, out, dtype, shape)

    def _pasts(self) -> None:
        for wire, history in self.machine._history.items():
            shape = dict(self.graph.types[wire[0]])[wire[1]].shape
            label = f"{record_name(wire)}.past"
            assert history.maxlen is not None
            self.past[wire] = self._carry(label, np.zeros(()), (history.maxlen, *shape), self.dtypes[wire])

    def _remember(self) -> None:
        body = self.body
        axis = body.constant(np.asarray([1], np.int64))
        for wire, history in self.machine._history.items():
            label = f"{record_name(wire)}.past"
            body.prefix = label
            newest = body.op("Unsqueeze", [self.values[wire], axis])
            if history.maxlen != 1:
                end = body.constant(np.asarray([history.maxlen], np.int64))
                rest = body.op("Slice", [self.past[wire], axis, end, axis])
                newest = body.op("Concat", [rest, newest], axis=1)
            self._leave(self.past[wire], newest, label)

    def _read(self, ref: Ref, extra: int = 0) -> Symbol:
        """What a reference reads at this step, `extra` steps further back."""
        wire = (ref.node, ref.port)
        back = ref.delay + extra
        dtype = self.dtypes[wire]
        if not back:
            return of_wire(self.values[wire], dtype)
        body = self.body
        found = body.op("Gather", [self.past[wire], body.constant(-back, np.int64)], axis=1)
        if ref.init is not None:
            init = ref.later(extra).init
            assert init is not None
            last = body.constant(back - 1, np.int64)
            when = body.op("Min", [self.clock, last])
            early = body.op("Gather", [body.constant(init.astype(dtype)), when], axis=0)
            before = body.op("Less", [self.clock, body.constant(back, np.int64)])
            found = body.op("Where", [before, early, found])
        return of_wire(found, dtype)

    # ------------------------------------------------------------------------------------------------------- operations

    def _compute(self, node: Node) -> str:
        body, graph = self.body, self.graph
        dtype = self.dtypes[node.name, ""]
        shape = graph.shape_of(node.name)
        if isinstance(node, (Dense, Sparse, Conv)):
            return self._weighted(node)
        if isinstance(node, Constant):
            value = body.op("Expand", [body.constant(node.value), self._whole(body, shape)])
            if not node.start:
                return value
            running = body.op("GreaterOrEqual", [self.clock, body.constant(node.start, np.int64)])
            return body.op("Where", [running, value, body.constant(0, node.value.dtype)])
        operands = [self._read(ref) for ref in node.inputs]
        if isinstance(node, Add):
            total = operands[0]
            for operand in operands[1:]:
                total = body.apply("+", [total, operand])
            return body.tensor(total, dtype)
        if isinstance(node, Concat):
            return body.op("Concat", [body.tensor(operand, dtype) for operand in operands], axis=node.axis + 1)
        (x,) = operands
        assert x.name is not None
        if isinstance(node, Reshape):
            return self._reshaped(x.name, shape)
        if isinstance(node, Gather):
            return body.op("Gather", [self._reshaped(x.name, (-1,)), body.constant(node.indices.astype(np.int64))], axis=1)
        if isinstance(node, Pool):
            return self._pool(node, x)
        assert isinstance(node, Scale)
        result = body.apply("*", [x, Symbol(None, self.machine._param(node.factor, shape))])
        if node.offset is not None:
            result = body.apply("+", [result, Symbol(None, self.machine._param(node.offset, shape))])
        return body.tensor(result, dtype)

    def _reshaped(self, x: str, shape: tuple[int, ...]) -> str:
        if 0 in shape:  # in a constant shape 0 would mean the size that there was
            return self.body.op("Reshape", [x, self._whole(self.body, shape)], allowzero=1)
        return self.body.op("Reshape", [x, self.body.constant(np.asarray([0, *shape], np.int64))])

    def _weighted(self, node: Dense | Sparse | Conv) -> str:
        body = self.body
        (ref,) = node.inputs
        dtype = np.result_type(self.dtypes[ref.node, ref.port], node.weight.dtype)
        delays = [0] if node.delay is None else [int(d) for d in np.unique(node.delay)] or [0]
        total = ""
        for delay in delays:
            weight = node.weight
            if node.delay is not None:
                weight = np.where(node.delay == delay, weight, weight.dtype.type(0))
            x = body.tensor(self._read(ref, delay), dtype)
            part = self._product(node, x, weight.astype(dtype, copy=False), dtype)
            total = body.op("Add", [total, part]) if total else part
        if node.bias is None:
            return total
        bias = node.bias.reshape(-1, *(1,) * (node.weight.ndim - 2)) if isinstance(node, Conv) else node.bias
        both = np.result_type(dtype, bias.dtype)
        return body.op("Add", [body.cast(total, dtype, both), body.constant(bias, both)])

    def _product(self, node: Dense | Sparse | Conv, x: str, weight: Array, dtype: np.dtype[Any]) -> str:
        body = self.body
        shape = self.graph.type_of(node.inputs[0]).shape
        if isinstance(node, Dense):
            if len(shape) == 1 and dtype.kind == "f":
                return body.op("Gemm", [x, body.constant(weight)], transB=1)
            return body.op("MatMul", [x, body.constant(weight.T)])
        if isinstance(node, Sparse):
            return self._scattered(node, x, weight, dtype)
        if dtype == np.float32:
            return body.op(
                "Conv",
                [x, body.constant(weight)],
                strides=list(node.stride),
                pads=list(node.padding) * 2,
                dilations=list(node.dilation),
                group=node.groups,
                kernel_shape=list(weight.shape[2:]),
            )
        # Runtimes have convolutions in float32 only: the windows are gathered and multiplied.
        out = self.graph.shape_of(node.name)
        windows = self._windows(x, shape, weight.shape[2:], node.stride, node.padding, node.dilation, dtype)
        parts = []
        step_in, step_out = weight.shape[1], weight.shape[0] // node.groups
        for group in range(node.groups):
            channels = body.constant(np.arange(group * step_in, (group + 1) * step_in))
            part = body.op("Transpose", [body.op("Gather", [windows, channels], axis=1)], perm=[0, 2, 1, 3])
            rows = body.op("Reshape", [part, body.constant(np.asarray([0, math.prod(out[1:]), -1], np.int64))])
            kernel = weight[group * step_out : (group + 1) * step_out].reshape(step_out, -1).T
            parts.append(body.op("Transpose", [body.op("MatMul", [rows, body.constant(kernel)])], perm=[0, 2, 1]))
        joined = parts[0] if len(parts) == 1 else body.op("Concat", parts, axis=1)
        return self._reshaped(joined, out)

    def _windows(
        self,
        x: str,
        shape: tuple[int, ...],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        dtype: np.dtype[Any],
    ) -> str:
        """(batch, channels, places, taps): what a window sees at each of its places, zero beyond the edge."""
        body = self.body
        size = math.prod(shape)
        positions = np.pad(np.arange(size).reshape(shape), [(0, 0), *((p, p) for p in padding)], constant_values=size)
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        axes = tuple(range(1, len(shape)))
        seen = np.lib.stride_tricks.sliding_window_view(positions, reach, axis=axes)
        seen = seen[(slice(None), *(slice(None, None, s) for s in stride), *(slice(None, None, d) for d in dilation))]
        seen = seen.reshape(shape[0], -1, math.prod(kernel))
        flat = self._reshaped(x, (-1,))
        zero = body.op("Expand", [body.constant(0, dtype), self._whole(body, (1,))])
        return body.op("Gather", [body.op("Concat", [flat, zero], axis=1), body.constant(seen.astype(np.int64))], axis=1)

    def _scattered(self, node: Sparse, x: str, weight: Array, dtype: np.dtype[Any]) -> str:
        body = self.body
        zeros = body.op("Expand", [body.constant(0, dtype), self._whole(body, (len(node.indptr) - 1,))])
        if not weight.size:
            return zeros
        rows = body.op("Expand", [body.constant(node.rows.astype(np.int64)), self._whole(body, weight.shape)])
        picked = body.op("Gather", [x, body.constant(node.indices.astype(np.int64))], axis=1)
        parts = body.op("Mul", [picked, body.constant(weight)])
        return body.op("ScatterElements", [zeros, rows, parts], axis=1, reduction="add")

    def _pool(self, node: Pool, x: Symbol) -> str:
        body = self.body
        assert x.name is not None
        dtype, shape = x.dtype, self.graph.type_of(node.inputs[0]).shape
        window: dict[str, Any] = {"strides": list(node.stride), "pads": list(node.padding) * 2, "kernel_shape": list(node.kernel)}
        if node.mode == "max":
            return body.op("MaxPool", [x.name], **window)
        if dtype == np.float32:  # an average pool times its window's size would round twice
            ones = body.constant(np.ones((shape[0], 1, *node.kernel), np.float32))
            total = body.op("Conv", [x.name, ones], group=shape[0], **window)
        else:
            ones_ = (1,) * len(node.kernel)
            windows = self._windows(x.name, shape, node.kernel, node.stride, node.padding, ones_, dtype)
            summed = body.op("ReduceSum", [windows, body.constant(np.asarray([3], np.int64))], keepdims=0)
            total = self._reshaped(summed, self.graph.shape_of(node.name))
        if node.mode == "sum":
            return total
        return body.op("Div", [total, body.constant(np.prod(node.kernel), dtype)])

    # ---------------------------------------------------------------------------------------------------------- neurons

    def _neuron(self, node: Neuron) -> None:
        body = self.body
        program, shape = node.program, self.graph.shape_of(node.name)
        values = {name: self._read(ref) for name, ref in zip(program.inputs, node.inputs, strict=True)}
        for name, param in self.machine._params[node.name].items():
            values[name] = Symbol(None, param)
        values[STEP] = Symbol(self.clock, 1)
        states = {}
        for name, first in self.start.states[node.name].items():
            states[name] = self._carry(f"{node.name}.{name}", first[0], shape, first.dtype)
            values[name] = of_wire(states[name], first.dtype)
        for statement in program.body:
            value = body.express(statement.expr, values)
            values[statement.name] = self._truth(value) if statement.name in states else value
        waiting = body.op("Less", [self.clock, body.constant(node.start, np.int64)]) if node.start else ""
        if node.stop is not None:
            over = body.op("GreaterOrEqual", [self.clock, body.constant(node.stop, np.int64)])
            waiting = body.op("Or", [waiting, over]) if waiting else over
        for emit, (port, type_) in zip(program.emits, self.graph.types[node.name], strict=True):
            dtype = DTYPES[type_.dtype]
            sent = self._full(values[emit.name], shape, dtype)
            if waiting:
                sent = body.op("Where", [waiting, body.constant(0, dtype), sent])
            label = record_name((node.name, port))
            self.values[node.name, port] = body.op("Identity", [sent], f"{label}[t]")
        for name, state in states.items():
            kept = self._full(values[name], shape, self.start.states[node.name][name].dtype)
            if waiting:
                kept = body.op("Where", [waiting, state, kept])
            self._leave(state, kept, f"{node.name}.{name}")

    def _truth(self, symbol: Symbol) -> Symbol:
        """A truth value as the number that a state holds."""
        if symbol.dtype != np.bool_:
            return symbol
        sample = float_truth(symbol.sample)
        if symbol.name is None:
            return Symbol(None, sample)
        return Symbol(self.body.cast(symbol.name, symbol.dtype, Symbol("", sample).dtype), sample, symbol.full)

    def _full(self, symbol: Symbol, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
        """A symbol for every neuron of every sample."""
        name = self.body.tensor(self._truth(symbol), dtype)
        return name if symbol.full else self.body.op("Expand", [name, self._whole(self.body, shape)])
