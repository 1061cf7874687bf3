"""A trained network of activations in ONNX as a float graph: what it computes for one frame, at every step.

A value is either an array that is known now (weights, shapes) or a wire of the graph, whose shape leaves out the batch. Operators
that only move numbers about are applied to the positions of the numbers, which gives one `gather`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic, Loc
from spikec.frontend.onnx.file import element_name, onnx, tensor
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Concat, Conv, Dense, Gather, Input, Neuron, Node, Pool, Ref, Reshape, Scale
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import DTYPES, Array, Kind, TensorType
from spikec.ledger import Ledger

#: Stands for the batch in shapes that the network computes; any arithmetic on it makes a shape that fits nothing.
BATCH: Final = (1 << 40) + 12345
#: Numbers in a frame.
MOST: Final = 1 << 26
RELU: Final = "neuron @relu(x) { y = max(x, 0) emit y }"
CLIP: Final = "neuron @clip(x) params(low, high) { y = min(max(x, low), high) emit y }"
_CONTROL: Final = ("If", "Loop", "Scan", "SequenceMap")
_QUANTISED: Final = ("Quantize", "Dequantize", "QLinear", "DynamicQuantize", "ConvInteger", "MatMulInteger")
_DAMAGED: Final = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, ZeroDivisionError, MemoryError)


@dataclass(frozen=True)
class Wire:
    """An output of a node, (batch, *shape)."""

    ref: Ref
    type: TensorType

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the batch."""
        return self.type.shape


Value = Array | Wire


@dataclass
class Use:
    """One operator of the file: its attributes and operands, and where messages about it point."""

    op: str
    name: str
    attributes: Mapping[str, Any]
    operands: list[Value | None]
    outputs: list[str]
    loc: Loc

    def fail(self, message: str, code: str = "SPK102", fix: str | None = None) -> NoReturn:
        """Raise a CompileError about this operator."""
        raise CompileError(code, f"{self.op} '{self.name}': {message}", loc=self.loc, fix=fix)

    def wire(self, index: int = 0) -> Wire:
        """An operand that must depend on the input."""
        value = self.operands[index] if index < len(self.operands) else None
        if not isinstance(value, Wire):
            self.fail(f"operand {index + 1} is {'missing' if value is None else 'a constant'}; it must come from the input")
        return value

    def array(self, index: int, default: Any = None) -> Array:
        """An operand that must be known now."""
        value = self.operands[index] if index < len(self.operands) else None
        if isinstance(value, Wire):
            self.fail(f"operand {index + 1} depends on the input; only constants are supported there")
        if value is None:
            if default is None:
                self.fail(f"operand {index + 1} is missing", "SPK003")
            return np.asarray(default)
        return value

    def ints(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        return tuple(int(n) for n in self.attributes.get(name, default))


class Reader:
    """Goes through the operators in order and builds the graph; what is not supported is collected and told at once."""

    def __init__(self, model: Any, path: Path, kind: Kind, ledger: Ledger | None) -> None:
        self.package = onnx()
        self.model, self.path, self.kind, self.ledger = model, path, kind, ledger
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.taken: set[str] = set()
        self.batch: dict[str, int] = {}
        self.opset = max(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
        self.results = {item.name for item in model.graph.output}
        self.readers: dict[str, int] = {}

    def graph(self, name: str) -> Graph:
        """The verified graph. Raises CompileError with everything that is not supported."""
        self._refuse_unknown()
        source = self.model.graph
        loc = Loc(self.path.name)
        if source.sparse_initializer:
            raise CompileError("SPK102", "sparse initializers are not supported", loc=loc, fix="save the weights densely")
        for node in source.node:
            for operand in node.input:
                self.readers[operand] = self.readers.get(operand, 0) + 1
        for proto in source.initializer:
            self.values[proto.name] = tensor(self.package, proto, self.path.parent, loc)
        for item in source.input:
            if item.name not in self.values:
                self._input(item)
        for node in source.node:
            self._step(node)
        outputs = []
        for item in source.output:
            value = self.values.get(item.name)
            if not isinstance(value, Wire):
                what = "does not depend on the input" if value is not None else "is computed by no operator"
                raise CompileError("SPK003", f"the output '{item.name}' {what}", loc=loc)
            outputs.append((_word(item.name, "."), value.ref))
        return verify(Graph(name, "float", tuple(self.nodes), tuple(outputs)))

    def _refuse_unknown(self) -> None:
        found = []
        for index, node in enumerate(self.model.graph.node):
            known = node.op_type in HANDLERS or node.op_type in STATIC
            if known and node.domain in ("", "ai.onnx"):
                continue
            label = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            notes: tuple[str, ...] = ()
            fix = f"supported are {', '.join(sorted(HANDLERS))}"
            if node.op_type in _CONTROL:
                notes = ("a network that runs in steps by itself, or takes branches, is no network of activations",)
                fix = "give the network as a torch module, .nir or .sir"
            elif node.op_type.startswith(_QUANTISED) or node.op_type.endswith("Integer"):
                notes = ("the model is quantised already; spikec quantises for the target itself",)
                fix = "give the model as it was before quantisation, in float32"
            place = Loc(self.path.name, 0, node.name or f"node {index}")
            message = f"the operator {label} ('{node.name or (node.output[0] if node.output else index)}') is not supported"
            found.append(Diagnostic("SPK102", message, loc=place, notes=notes, fix=fix))
        if found:
            raise CompileError.many(found)

    def _input(self, item: Any) -> None:
        loc = Loc(self.path.name, 0, item.name)
        kind = item.type.WhichOneof("value")
        if kind != "tensor_type":
            raise CompileError("SPK102", f"the input '{item.name}' is no tensor but {kind or 'nothing'}", loc=loc)
        element = element_name(self.package, item.type.tensor_type.elem_type)
        if element not in ("FLOAT", "DOUBLE"):
            raise CompileError(
                "SPK309",
                f"the input '{item.name}' holds {element}; spikec reads FLOAT and DOUBLE",
                loc=loc,
                fix="export the model in float32",
            )
        dims = item.type.tensor_type.shape.dim
        if not item.type.tensor_type.HasField("shape") or not dims:
            raise CompileError("SPK309", f"the input '{item.name}' has no batch axis or no known shape", loc=loc)
        sizes = []
        for axis, dim in enumerate(dims):
            size = int(dim.dim_value) if dim.HasField("dim_value") else 0
            if axis and size < 1:
                raise CompileError(
                    "SPK309",
                    f"the input '{item.name}': the size of axis {axis} ({dim.dim_param or 'unnamed'}) is left open",
                    loc=loc,
                    fix="export the model with fixed sizes; only axis 0, the batch, may be open",
                )
            sizes.append(size)
        if math.prod(sizes[1:]) > MOST:
            raise CompileError("SPK309", f"the input '{item.name}' has {math.prod(sizes[1:])} numbers a frame", loc=loc)
        type_ = TensorType(self.kind, tuple(sizes[1:]), "f32" if element == "FLOAT" else "f64")
        node = Input(name=self.fresh(item.name), type=type_, loc=loc)
        self.nodes.append(node)
        self.values[item.name] = Wire(Ref(node.name), type_)
        self.batch[item.name] = sizes[0]

    def _step(self, node: Any) -> None:
        name = node.name or (node.output[0] if node.output else node.op_type)
        loc = Loc(self.path.name, 0, name)
        operands: list[Value | None] = []
        for operand in node.input:
            if operand and operand not in self.values:
                message = f"{node.op_type} '{name}': reads '{operand}', which nothing before it computes"
                raise CompileError("SPK003", message, loc=loc)
            operands.append(self.values[operand] if operand else None)
        use = Use(node.op_type, name, {}, operands, list(node.output), loc)
        try:
            use.attributes = {item.name: self._attribute(item, use) for item in node.attribute}
            static = node.op_type in STATIC and not any(isinstance(value, Wire) for value in operands)
            results: list[Value] | Value
            if static:
                results = STATIC[node.op_type](self, use)
            elif node.op_type in HANDLERS:
                results = HANDLERS[node.op_type](self, use)
            else:
                use.fail("is supported on shapes only, not on what depends on the input")
        except CompileError:
            raise
        except _DAMAGED as error:
            use.fail(f"is malformed ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})", "SPK003")
        for label, value in zip(node.output, results if isinstance(results, list) else [results], strict=False):
            if label:
                self.values[label] = value
        for label in list(node.output)[len(results) if isinstance(results, list) else 1 :]:
            if label and (self.readers.get(label) or label in self.results):
                use.fail(f"its output '{label}' is used; only the first is supported")

    def _attribute(self, item: Any, use: Use) -> Any:
        value = self.package.helper.get_attribute_value(item)
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, self.package.TensorProto):
            return tensor(self.package, value, self.path.parent, use.loc)
        return value

    # ------------------------------------------------------------------------------------------------- building blocks

    def fresh(self, label: str) -> str:
        """A name of the IR that is not taken yet."""
        base = name = _word(label)
        number = 2
        while name in self.taken:
            name, number = f"{base}_{number}", number + 1
        self.taken.add(name)
        return name

    def add(self, use: Use, cls: type[Node], wires: Sequence[Wire], **fields: Any) -> Wire:
        """A node of the graph, with its type inferred."""
        made = cls(name=self.fresh(use.name), inputs=tuple(wire.ref for wire in wires), loc=use.loc, **fields)
        ports = made.infer([wire.type for wire in wires], "float")
        assert ports is not None
        self.nodes.append(made)
        return Wire(Ref(made.name), ports[0][1])

    def moved(self, use: Use, wire: Wire, change: Callable[[Array], Array]) -> Wire:
        """What an operator that only moves numbers does, found by letting it move (1, *shape) positions; axis 0 must stay."""
        size = wire.type.size
        after = change(np.arange(size, dtype=np.int64).reshape(1, *wire.shape))
        if after.ndim < 1 or after.shape[0] != 1:
            use.fail("moves the batch axis")
        if np.array_equal(after.ravel(), np.arange(size)):
            shape = after.shape[1:]
            return wire if shape == wire.shape else self.add(use, Reshape, [wire], shape=shape)
        return self.add(use, Gather, [wire], indices=after[0].astype(np.int32 if size < 1 << 31 else np.int64))

    def weights(self, use: Use, index: int, wire: Wire) -> Array:
        """A constant operand in the wire's own element type."""
        array = use.array(index)
        wanted = DTYPES[wire.type.dtype]
        if array.dtype != wanted:
            use.fail(
                f"operand {index + 1} holds {array.dtype} where the input holds {wanted}", "SPK309", "export the model in float32"
            )
        return array


def _word(label: str, extra: str = "") -> str:
    return re.sub(rf"[^A-Za-z0-9_{extra}]+", "_", label).strip("_.") or "node"


# --------------------------------------------------------------------------------------------------------- linear layers


def _gemm(reader: Reader, use: Use) -> Wire:
    x = use.wire()
    if use.attributes.get("transA", 0):
        use.fail("transA moves the batch axis")
    if len(x.shape) != 1:
        use.fail(f"takes (batch, features), not {len(x.shape) + 1} axes", "SPK309")
    weight = reader.weights(use, 1, x)
    if weight.ndim != 2:
        use.fail(f"its weight has shape {weight.shape}", "SPK309")
    weight = weight if use.attributes.get("transB", 0) else weight.T
    weight = weight * weight.dtype.type(use.attributes.get("alpha", 1.0))
    bias = None
    if len(use.operands) > 2 and use.operands[2] is not None:
        given = reader.weights(use, 2, x) * weight.dtype.type(use.attributes.get("beta", 1.0))
        if given.ndim == 2 and given.shape[0] != 1:
            use.fail(f"its bias has shape {given.shape}", "SPK309")
        bias = np.broadcast_to(given.reshape(-1), (weight.shape[0],))
    return reader.add(use, Dense, [x], weight=weight, bias=bias)


def _matmul(reader: Reader, use: Use) -> Wire:
    x = use.wire()
    weight = reader.weights(use, 1, x)
    if weight.ndim != 2 or not x.shape:
        use.fail(f"its weight has shape {weight.shape}; (inputs, outputs) is supported", "SPK309")
    return reader.add(use, Dense, [x], weight=weight.T)


def _window(use: Use, space: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> tuple[Any, ...]:
    """Stride, and padding before and after on every axis."""
    count = len(kernel)
    stride = use.ints("strides", (1,) * count)
    if len(space) != count or len(stride) != count or len(dilation) != count or count not in (1, 2):
        use.fail(f"a window of {count} axes over {len(space)}; 1 and 2 axes of space are supported", "SPK309")
    if min((*stride, *dilation, *kernel)) < 1:
        use.fail("stride, dilation and window must be at least 1", "SPK309")
    auto = use.attributes.get("auto_pad", "NOTSET") or "NOTSET"
    if auto == "NOTSET":
        pads = use.ints("pads", (0,) * (2 * count))
        if len(pads) != 2 * count or min(pads) < 0:
            use.fail(f"pads {pads} do not fit or are negative", "SPK309")
        return stride, pads[:count], pads[count:]
    if auto == "VALID":
        return stride, (0,) * count, (0,) * count
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        use.fail(f"auto_pad={auto} is not known")
    before, after = [], []
    for n, k, s, d in zip(space, kernel, stride, dilation, strict=True):
        total = max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return stride, tuple(before), tuple(after)


def _conv(reader: Reader, use: Use) -> Wire:
    x = use.wire()
    weight = reader.weights(use, 1, x)
    kernel = weight.shape[2:]
    dilation = use.ints("dilations", (1,) * len(kernel))
    if use.ints("kernel_shape", kernel) != kernel:
        use.fail(f"kernel_shape {use.ints('kernel_shape', kernel)} is not that of the weight {kernel}", "SPK309")
    stride, before, after = _window(use, x.shape[1:], kernel, dilation)
    # Uneven padding is even padding under a kernel that has zeros on the other side.
    extra = []
    for low, high, d in zip(before, after, dilation, strict=True):
        if (high - low) % d:
            use.fail(f"pads {low} and {high} under a dilation of {d}", fix="pad evenly")
        extra.append((max(high - low, 0) // d, max(low - high, 0) // d))
    if any(map(any, extra)):
        weight = np.pad(weight, [(0, 0), (0, 0), *extra])
    padding = tuple(max(pair) for pair in zip(before, after, strict=True))
    bias = reader.weights(use, 2, x) if len(use.operands) > 2 and use.operands[2] is not None else None
    groups = int(use.attributes.get("group", 1))
    return reader.add(use, Conv, [x], weight=weight, bias=bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def _batch_norm(reader: Reader, use: Use) -> Wire:
    x = use.wire()
    if use.attributes.get("training_mode", 0):
        use.fail("is in training mode", fix="export the model after model.eval()")
    scale, shift, mean, variance = (reader.weights(use, index, x).astype(np.float64) for index in range(1, 5))
    if not x.shape or any(array.shape != x.shape[:1] for array in (scale, shift, mean, variance)):
        use.fail(f"its parameters do not have one number for each of the channels of {x.shape}", "SPK309")
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + float(use.attributes.get("epsilon", 1e-5)))
    dtype = DTYPES[x.type.dtype]
    return reader.add(use, Scale, [x], factor=factor.astype(dtype), offset=(shift - mean * factor).astype(dtype))


# ----------------------------------------------------------------------------------------------------------------- pools


def _pool_padding(use: Use, x: Wire, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if any(n != 1 for n in use.ints("dilations", (1,) * len(kernel))):
        use.fail("a pool with dilation is not supported")
    stride, before, after = _window(use, x.shape[1:], kernel, (1,) * len(kernel))
    if before != after:
        use.fail(f"uneven padding {before} and {after}", fix="pad evenly")
    if use.attributes.get("ceil_mode", 0):
        for n, k, s, p in zip(x.shape[1:], kernel, stride, before, strict=True):
            if (n + 2 * p - k) % s:
                use.fail("ceil_mode makes windows that reach beyond the input", fix="export it with ceil_mode=False")
    return stride, before


def _max_pool(reader: Reader, use: Use) -> Wire:
    x, kernel = use.wire(), use.ints("kernel_shape", ())
    stride, padding = _pool_padding(use, x, kernel)
    return reader.add(use, Pool, [x], mode="max", kernel=kernel, stride=stride, padding=padding)


def _average_pool(reader: Reader, use: Use) -> Wire:
    x, kernel = use.wire(), use.ints("kernel_shape", ())
    stride, padding = _pool_padding(use, x, kernel)
    if not any(padding) or use.attributes.get("count_include_pad", 0):
        return reader.add(use, Pool, [x], mode="average", kernel=kernel, stride=stride, padding=padding)
    # Only what lies inside counts: a sum, divided by how many that are at each place.
    total = reader.add(use, Pool, [x], mode="sum", kernel=kernel, stride=stride, padding=padding)
    counts: Array = np.ones(())
    for n, k, s, p, size in zip(x.shape[1:], kernel, stride, padding, total.shape[1:], strict=True):
        begin = np.arange(size) * s - p
        inside = np.minimum(begin + k, n) - np.maximum(begin, 0)
        counts = counts[..., None] * inside
    factor = np.broadcast_to(1 / counts, total.shape).astype(DTYPES[x.type.dtype])
    return reader.add(use, Scale, [total], factor=factor)


def _global_pool(mode: str) -> Callable[[Reader, Use], Wire]:
    def handler(reader: Reader, use: Use) -> Wire:
        x = use.wire()
        if len(x.shape) not in (2, 3):
            use.fail(f"takes 1 or 2 axes of space, not shape {x.shape}", "SPK309")
        return reader.add(use, Pool, [x], mode=mode, kernel=x.shape[1:])

    return handler


def _reduce_mean(reader: Reader, use: Use) -> Wire:
    x = use.wire()
    given = use.array(1) if len(use.operands) > 1 and use.operands[1] is not None else np.asarray(use.ints("axes", ()))
    rank = len(x.shape) + 1
    axes = sorted({int(axis) % rank for axis in given.ravel()})
    if axes != list(range(2, rank)) or rank not in (3, 4):
        use.fail(f"the mean over the axes {axes}; over all axes of space is supported")
    pooled = reader.add(use, Pool, [x], mode="average", kernel=x.shape[1:])
    if use.attributes.get("keepdims", 1):
        return pooled
    return reader.add(use, Reshape, [pooled], shape=x.shape[:1])


# ----------------------------------------------------------------------------------------------------------- element-wise


def _relu(reader: Reader, use: Use) -> Wire:
    return reader.add(use, Neuron, [use.wire()], program=parse_program(RELU))


def _clip(reader: Reader, use: Use) -> Wire:
    x = use.wire()
    dtype = DTYPES[x.type.dtype].type
    low, high = (float(use.array(index, default).item()) for index, default in ((1, -np.inf), (2, np.inf)))
    if np.isnan(low) or np.isnan(high):
        use.fail("its limits are not numbers", "SPK305")
    params = {"low": np.asarray(dtype(low)), "high": np.asarray(dtype(high))}
    return reader.add(use, Neuron, [x], program=parse_program(CLIP), params=params)


def _constant_operand(reader: Reader, use: Use, index: int, x: Wire) -> Array:
    """A constant as a scale holds it: one number, one a channel, or one an element."""
    array = reader.weights(use, index, x)
    while array.ndim > len(x.shape) and array.shape[0] == 1:
        array = array[0]
    try:
        full = np.broadcast_to(array, x.shape)
    except ValueError:
        use.fail(f"a constant of shape {array.shape} and values of shape (batch, {', '.join(map(str, x.shape))})", "SPK309")
    if array.size == 1:
        return array.reshape(())
    channel = full.reshape(full.shape[0], -1)
    if full.ndim > 1 and array.size == full.shape[0] and (channel == channel[:, :1]).all():
        return np.ascontiguousarray(channel[:, 0])
    return np.ascontiguousarray(full)


def _arithmetic(reader: Reader, use: Use) -> Wire:
    """Add, Sub, Mul and Div with a constant are a scale; Add and Sub of two wires a sum."""
    if len(use.operands) != 2:
        use.fail(f"takes 2 operands, not {len(use.operands)}", "SPK003")
    both = [isinstance(value, Wire) for value in use.operands]
    if all(both):
        a, b = use.wire(0), use.wire(1)
        if use.op not in ("Add", "Sub"):
            use.fail("the product or quotient of two values that depend on the input has no counterpart in a spiking network")
        if a.shape != b.shape:
            use.fail(f"the operands have shapes {a.shape} and {b.shape}; equal ones are supported", "SPK309")
        if use.op == "Sub":
            b = reader.add(use, Scale, [b], factor=np.asarray(-1, DTYPES[b.type.dtype]))
        return reader.add(use, Add, [a, b])
    first = both[0]
    x = use.wire(0 if first else 1)
    c = _constant_operand(reader, use, 1 if first else 0, x)
    one = np.ones((), c.dtype)
    if use.op == "Add":
        return reader.add(use, Scale, [x], factor=one, offset=c)
    if use.op == "Sub":
        return reader.add(use, Scale, [x], factor=one if first else -one, offset=-c if first else c)
    if use.op == "Mul":
        return reader.add(use, Scale, [x], factor=c)
    if not first:
        use.fail("a constant divided by what depends on the input")
    with np.errstate(all="ignore"):
        return reader.add(use, Scale, [x], factor=(1 / c.astype(np.float64)).astype(c.dtype))


def _sum(reader: Reader, use: Use) -> Wire:
    wires = [use.wire(index) for index in range(len(use.operands))]
    return reader.add(use, Add, wires)


def _same(reader: Reader, use: Use) -> Wire:
    if use.op == "Dropout" and len(use.operands) > 2 and use.operands[2] is not None and bool(use.array(2).any()):
        use.fail("drops at random: it is in training mode", fix="export the model after model.eval()")
    return use.wire()


def _cast(reader: Reader, use: Use) -> Wire:
    x, to = use.wire(), element_name(reader.package, int(use.attributes.get("to", 0)))
    if {"FLOAT": "f32", "DOUBLE": "f64"}.get(to) != x.type.dtype:
        use.fail(f"from {DTYPES[x.type.dtype]} to {to}", fix="export the model in float32 throughout")
    return x


def _softmax(reader: Reader, use: Use) -> Wire:
    x = use.wire()
    read = reader.readers.get(use.outputs[0], 0)
    if use.outputs[0] not in reader.results or read or len(x.shape) != 1 or int(use.attributes.get("axis", -1)) not in (-1, 1):
        use.fail("is supported as the last operator before an output only, over the classes")
    if reader.ledger is not None:
        what = f"the output '{use.outputs[0]}' is what enters the {use.op}: the order of the classes is the same"
        reader.ledger.record("", "convention", what)
    return x


# --------------------------------------------------------------------------------------------------------------- layouts


def _concat(reader: Reader, use: Use) -> Wire:
    wires = [use.wire(index) for index in range(len(use.operands))]
    axis = int(use.attributes["axis"])
    axis += len(wires[0].shape) + 1 if axis < 0 else 0
    if axis < 1:
        use.fail("joins the batch")
    return reader.add(use, Concat, wires, axis=axis - 1)


def _flatten(reader: Reader, use: Use) -> Wire:
    x = use.wire()
    rank = len(x.shape) + 1
    axis = int(use.attributes.get("axis", 1))
    axis += rank if axis < 0 else 0
    if axis != 1:
        use.fail(f"axis {axis} mixes the batch with other axes")
    return reader.moved(use, x, lambda p: p.reshape(1, -1))


def _reshape(reader: Reader, use: Use) -> Wire:
    x = use.wire()
    wanted = [int(n) for n in use.array(1).ravel()]
    if not wanted:
        use.fail("the batch axis is gone")
    if not use.attributes.get("allowzero", 0):
        sizes = (BATCH, *x.shape)
        wanted = [sizes[i] if n == 0 and i < len(sizes) else n for i, n in enumerate(wanted)]
    first, rest = wanted[0], wanted[1:]
    fixed = max(reader.batch.values(), default=0)
    known = math.prod(n for n in rest if n != -1)
    if first == -1 and -1 not in rest and known == x.type.size:
        first = BATCH
    if first != BATCH and not (first == fixed and first > 0):
        use.fail(
            f"the new shape {tuple('batch' if n == BATCH else n for n in wanted)} does not keep the batch axis",
            fix="export the model with a dynamic batch axis",
        )
    if any(n == BATCH for n in rest):
        use.fail("uses the size of the batch for another axis")
    return reader.moved(use, x, lambda p: p.reshape(1, *rest))


def _transpose(reader: Reader, use: Use) -> Wire:
    x = use.wire()
    order = use.ints("perm", range(len(x.shape), -1, -1))
    if not order or order[0] != 0:
        use.fail("moves the batch axis")
    return reader.moved(use, x, lambda p: p.transpose(order))


def _axes(use: Use) -> tuple[int, ...] | None:
    if len(use.operands) > 1 and use.operands[1] is not None:
        return tuple(int(n) for n in use.array(1).ravel())
    return use.ints("axes", ()) if "axes" in use.attributes else None


def _squeeze(reader: Reader, use: Use) -> Wire:
    x, axes = use.wire(), _axes(use)
    if axes is None:
        axes = tuple(i + 1 for i, n in enumerate(x.shape) if n == 1)
    if any(axis % (len(x.shape) + 1) == 0 for axis in axes):
        use.fail("removes the batch axis")
    return reader.moved(use, x, lambda p: np.squeeze(p, axes))


def _unsqueeze(reader: Reader, use: Use) -> Wire:
    x, axes = use.wire(), _axes(use) or ()
    if any(axis % (len(x.shape) + 1 + len(axes)) == 0 for axis in axes):
        use.fail("moves the batch axis")
    return reader.moved(use, x, lambda p: np.expand_dims(p, axes))


def _slices(use: Use, rank: int) -> tuple[slice, ...]:
    starts, ends = use.array(1).ravel(), use.array(2).ravel()
    axes = use.array(3, np.arange(len(starts))).ravel()
    steps = use.array(4, np.ones(len(starts), np.int64)).ravel()
    result = [slice(None)] * rank
    for begin, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop: int | None = int(end)
        if step < 0 and stop is not None and stop < -(1 << 31):
            stop = None
        result[int(axis) % rank] = slice(int(begin), stop, int(step))
    return tuple(result)


def _slice(reader: Reader, use: Use) -> Wire:
    x = use.wire()
    chosen = _slices(use, len(x.shape) + 1)
    if chosen[0] != slice(None):
        use.fail("cuts the batch")
    return reader.moved(use, x, lambda p: p[chosen])


def _gather(reader: Reader, use: Use) -> Wire:
    x, axis = use.wire(), int(use.attributes.get("axis", 0))
    if axis % (len(x.shape) + 1) == 0:
        use.fail("picks out of the batch")
    return reader.moved(use, x, lambda p: np.take(p, use.array(1), axis))


def _shape(reader: Reader, use: Use) -> Array:
    value = use.operands[0]
    sizes = [BATCH, *value.shape] if isinstance(value, Wire) else list(use.array(0).shape)
    return np.asarray(sizes[use.attributes.get("start", 0) : use.attributes.get("end", None)], np.int64)


# ------------------------------------------------------------------------------------------- what is known without input


def _constant(reader: Reader, use: Use) -> Array:
    for key in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if key in use.attributes:
            value = use.attributes[key]
            return np.asarray(value, None if key == "value" else np.float32 if "float" in key else np.int64)
    use.fail("holds no numbers")


def _static_cast(reader: Reader, use: Use) -> Array:
    return use.array(0).astype(reader.package.helper.tensor_dtype_to_np_dtype(int(use.attributes["to"])))


def _constant_of_shape(reader: Reader, use: Use) -> Array:
    shape = tuple(int(n) for n in use.array(0).ravel())
    if math.prod(shape) > 1 << 24:
        use.fail(f"makes {shape}")
    return np.full(shape, np.asarray(use.attributes.get("value", np.zeros(1, np.float32))).ravel()[0])


def _static_divide(a: Array, b: Array) -> Array:
    return a // b if a.dtype.kind in "iu" else a / b


def _binary(function: Callable[[Array, Array], Any]) -> Callable[[Reader, Use], Array]:
    return lambda reader, use: np.asarray(function(use.array(0), use.array(1)))


def _static_squeeze(reader: Reader, use: Use) -> Array:
    return np.squeeze(use.array(0), _axes(use))


HANDLERS: Final[dict[str, Callable[[Reader, Use], Any]]] = {
    "Add": _arithmetic,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "Div": _arithmetic,
    "Dropout": _same,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool("average"),
    "GlobalMaxPool": _global_pool("max"),
    "Identity": _same,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _arithmetic,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _arithmetic,
    "Sum": _sum,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
#: What is computed at once where nothing depends on the input: the arithmetic of shapes.
STATIC: Final[dict[str, Callable[[Reader, Use], Any]]] = {
    "Add": _binary(np.add),
    "Cast": _static_cast,
    "Concat": lambda reader, use: np.concatenate([use.array(i) for i in range(len(use.operands))], int(use.attributes["axis"])),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _binary(_static_divide),
    "Gather": lambda reader, use: np.asarray(np.take(use.array(0), use.array(1), int(use.attributes.get("axis", 0)))),
    "Identity": lambda reader, use: use.array(0),
    "Mul": _binary(np.multiply),
    "Reshape": lambda reader, use: use.array(0).reshape(tuple(int(n) for n in use.array(1).ravel())),
    "Shape": _shape,
    "Slice": lambda reader, use: use.array(0)[_slices(use, use.array(0).ndim)],
    "Squeeze": _static_squeeze,
    "Sub": _binary(np.subtract),
    "Transpose": lambda reader, use: use.array(0).transpose(use.attributes.get("perm")),
    "Unsqueeze": lambda reader, use: np.expand_dims(use.array(0), _axes(use) or ()),
}
