"""The operations: few, frozen, each with its equation and its own shape rule (design §3.2).

Shapes leave out batch and time. `x[t]` is the operand at step t; a reference may read an earlier step. Every node has a `name`,
its operands `inputs`, the place `loc` in the user's model, and `lag`: how many steps after the model's own step its result
appears (0 until retiming). Arrays are copied and made read-only when the node is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np

from spikec.diagnostics import CompileError, Loc
from spikec.ir.neuron import Program
from spikec.ir.types import (
    DTYPES,
    Array,
    Kind,
    Level,
    TensorType,
    default_dtype,
    freeze,
    is_float,
    short_dtype,
)


@dataclass(frozen=True)
class Ref:
    """Reads output `port` ("" is the first) of node `node`, `delay` steps ago.

    Before step 0 the value is zero, or `init[k]` of shape (delay, *shape), which is the value at step k - delay.
    """

    node: str
    port: str = ""
    delay: int = 0
    init: Array | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.init is not None:
            object.__setattr__(self, "init", freeze(self.init))

    def later(self, steps: int) -> Ref:
        """The same wire, read `steps` further back; before step `steps` that is zero."""
        init = self.init
        if init is not None and steps:
            init = np.concatenate([np.zeros((steps, *init.shape[1:]), init.dtype), init])
        return replace(self, delay=self.delay + steps, init=init)

    def __str__(self) -> str:
        port = f".{self.port}" if self.port else ""
        return f"%{self.node}{port}" + (f"[t-{self.delay}]" if self.delay else "")


Ports = tuple[tuple[str, TensorType], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """What all operations share. `infer` gives the types of the outputs from those of the operands."""

    name: str
    inputs: tuple[Ref, ...] = ()
    loc: Loc | None = None
    lag: int = 0

    op: ClassVar[str]
    arity: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, (np.ndarray, np.generic)):
                object.__setattr__(self, item.name, self._array(value))
        if self.arity is not None and len(self.inputs) != self.arity:
            self.fail("SPK302", f"{self.op} takes {self.arity} operand(s), not {len(self.inputs)}")

    def _array(self, value: Any) -> Array:
        array = freeze(value)
        if array.dtype not in DTYPES.values():
            self.fail("SPK309", f"arrays of type {array.dtype} are not supported")
        return array

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """Output ports and types; None while an operand on a cycle is still unknown."""
        raise AssertionError("every operation has its own rule")

    def fail(self, code: str, message: str, **more: Any) -> NoReturn:
        """Raise a CompileError at this node."""
        raise CompileError(code, f"%{self.name}: {message}", loc=self.loc, **more)

    def _output(self, kind: Kind, shape: tuple[int, ...], dtype: str) -> Ports:
        return (("", TensorType(kind, shape, dtype)),)


def _promote(level: Level, kind: Kind, declared: str, *dtypes: str) -> str:
    """Declared dtype, else NumPy's promotion at the float level and the default width at integer levels."""
    if declared:
        return declared
    if level != "float":
        return default_dtype(kind, level)
    if not any(map(is_float, dtypes)):
        return "f32"
    return short_dtype(np.zeros(0, np.result_type(*(DTYPES[dtype] for dtype in dtypes))))


def _known(operands: Sequence[TensorType | None]) -> list[TensorType] | None:
    return None if any(item is None for item in operands) else [item for item in operands if item]


def _joint_kind(operands: Sequence[TensorType]) -> Kind:
    kinds = {item.kind for item in operands}
    return "spike" if kinds == {"spike"} else "graded" if "value" not in kinds else "value"


@dataclass(frozen=True, kw_only=True, eq=False)
class Input(Node):
    """y[t] = the data at step t. `bounds` (inclusive) is what integer data may hold; the runner checks it.

    Where the user's data are not what the graph takes, the runner turns one into the other, alike for every backend: `unit` is what
    1 stands for, so that data x become round(x / unit); `encode` names an encoder (see `spikec.runtime.encoders.encode`).
    """

    type: TensorType
    bounds: tuple[int, int] | None = None
    unit: float | None = None
    encode: str = ""
    op: ClassVar[str] = "input"
    arity: ClassVar[int | None] = 0

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """The declared type."""
        return (("", self.type),)


@dataclass(frozen=True, kw_only=True, eq=False)
class Constant(Node):
    """y[t] = value for t >= start, zero before: a source that is always on."""

    value: Array
    kind: Kind = "value"
    start: int = 0
    op: ClassVar[str] = "constant"
    arity: ClassVar[int | None] = 0

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """The shape of `value`."""
        dtype = short_dtype(self.value) if level == "float" else default_dtype(self.kind, level)
        return self._output(self.kind, self.value.shape, dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Node):
    """y[t, o] = sum_i weight[o, i] * x[t - delay[o, i], i] + bias[o]; acts on the last axis.

    weight (out, in); bias (out,); delay integers of weight's shape, >= 0. `dtype` is the accumulator's.
    """

    weight: Array
    bias: Array | None = None
    delay: Array | None = None
    dtype: str = ""
    op: ClassVar[str] = "dense"

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """(..., in) -> (..., out)."""
        if self.weight.ndim != 2:
            self.fail("SPK309", f"a dense weight has 2 axes (out, in), not shape {self.weight.shape}")
        out, fan_in = self.weight.shape
        _check_bias_delay(self, (out,), self.weight.shape)
        if (known := _known(operands)) is None:
            return None
        (x,) = known
        if not x.shape or x.shape[-1] != fan_in:
            self.fail("SPK309", f"the weight takes {fan_in} inputs but %{self.inputs[0].node} has shape {x.shape}")
        dtype = _promote(level, "value", self.dtype, x.dtype, short_dtype(self.weight), *_bias_dtype(self))
        return self._output("value", (*x.shape[:-1], out), dtype)

    def row(self, level: Level) -> Ports:
        """Its type if its input has one axis."""
        return self._output(
            "value", (self.weight.shape[0],), _promote(level, "value", self.dtype, short_dtype(self.weight), *_bias_dtype(self))
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sparse(Node):
    """The same sum over stored connections only: row o of a CSR matrix (out, in) is the fan-in of neuron o.

    indptr (out + 1,), indices and weight (connections,), bias (out,), delay (connections,). Input is one axis.
    """

    weight: Array
    indices: Array
    indptr: Array
    fan_in: int
    bias: Array | None = None
    delay: Array | None = None
    dtype: str = ""
    op: ClassVar[str] = "sparse"

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """(in,) -> (out,)."""
        if self.weight.ndim != 1 or self.indices.shape != self.weight.shape or self.indptr.ndim != 1 or not self.indptr.size:
            self.fail("SPK309", "a sparse weight needs one-dimensional weight, indices and indptr that fit")
        if self.indices.dtype.kind != "i" or self.indptr.dtype.kind != "i":
            self.fail("SPK309", "indices and indptr must be integers")
        out, count = len(self.indptr) - 1, len(self.weight)
        if self.indptr[0] != 0 or self.indptr[-1] != count or np.any(np.diff(self.indptr) < 0):
            self.fail("SPK309", "indptr must rise from 0 to the number of connections")
        if count and (self.indices.min() < 0 or self.indices.max() >= self.fan_in):
            self.fail("SPK309", f"indices must lie in 0 to {self.fan_in - 1}")
        _check_bias_delay(self, (out,), self.weight.shape)
        if (known := _known(operands)) is None:
            # The rows tell the shape even on a cycle that nothing enters.
            return self._output("value", (out,), _promote(level, "value", self.dtype, short_dtype(self.weight), *_bias_dtype(self)))
        (x,) = known
        if x.shape != (self.fan_in,):
            self.fail("SPK309", f"fan_in is {self.fan_in} but %{self.inputs[0].node} has shape {x.shape}")
        dtype = _promote(level, "value", self.dtype, x.dtype, short_dtype(self.weight), *_bias_dtype(self))
        return self._output("value", (out,), dtype)

    @property
    def rows(self) -> Array:
        """The target of every connection, in storage order."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Node):
    """Cross-correlation as in torch.

    y[t, o, p] = sum_{i, k} weight[o, i, k] * x[t - delay[o, i, k], i, p*stride + k*dilation - padding] + bias[o].
    x (in, *space) with 1 or 2 axes of space; weight (out, in / groups, *kernel); bias (out,); delay as weight.
    """

    weight: Array
    bias: Array | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    delay: Array | None = None
    dtype: str = ""
    op: ClassVar[str] = "conv"

    def __post_init__(self) -> None:
        super().__post_init__()
        space = self.weight.ndim - 2
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)) or (default,) * space)

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """(in, *space) -> (out, *space')."""
        space = self.weight.ndim - 2
        if space not in (1, 2):
            self.fail("SPK309", f"a convolution has 1 or 2 axes of space, not weight shape {self.weight.shape}")
        if {len(self.stride), len(self.padding), len(self.dilation)} != {space}:
            self.fail("SPK309", f"stride, padding and dilation need {space} numbers each")
        if min(self.stride) < 1 or min(self.dilation) < 1 or min(self.padding) < 0 or self.groups < 1:
            self.fail("SPK309", "stride, dilation and groups must be at least 1 and padding at least 0")
        out, per_group = self.weight.shape[:2]
        if out % self.groups:
            self.fail("SPK309", f"{out} output channels do not split into {self.groups} groups")
        _check_bias_delay(self, (out,), self.weight.shape)
        if (known := _known(operands)) is None:
            return None
        (x,) = known
        if len(x.shape) != space + 1 or x.shape[0] != per_group * self.groups:
            wanted = f"({per_group * self.groups}, {'height, width' if space == 2 else 'length'})"
            self.fail("SPK309", f"the kernel takes shape {wanted} but %{self.inputs[0].node} has shape {x.shape}")
        size = window_shape(self, x.shape[1:], self.weight.shape[2:], self.dilation)
        dtype = _promote(level, "value", self.dtype, x.dtype, short_dtype(self.weight), *_bias_dtype(self))
        return self._output("value", (out, *size), dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(Node):
    """Sum, average (padding counted) or maximum over windows of each channel; x (channels, *space)."""

    mode: Literal["sum", "average", "max"]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dtype: str = ""
    op: ClassVar[str] = "pool"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stride", tuple(self.stride) or tuple(self.kernel))
        object.__setattr__(self, "padding", tuple(self.padding) or (0,) * len(self.kernel))

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """(channels, *space) -> (channels, *space')."""
        if self.mode not in ("sum", "average", "max"):
            self.fail("SPK302", f"unknown pool mode '{self.mode}'")
        if self.mode == "average" and level != "float":
            self.fail("SPK302", "an average pool exists at the float level only")
        if (known := _known(operands)) is None:
            return None
        (x,) = known
        if len(x.shape) != len(self.kernel) + 1:
            self.fail("SPK309", f"the window has {len(self.kernel)} axes but the operand has shape {x.shape}")
        if {len(self.stride), len(self.padding)} != {len(self.kernel)} or not self.kernel:
            self.fail("SPK309", f"stride and padding need {len(self.kernel)} numbers each")
        if min(*self.kernel, *self.stride) < 1 or min(self.padding) < 0:
            self.fail("SPK309", "kernel and stride must be at least 1 and padding at least 0")
        if self.mode == "max" and any(2 * p > k for p, k in zip(self.padding, self.kernel, strict=True)):
            self.fail("SPK309", f"padding {self.padding} is more than half of the window {self.kernel}")
        size = window_shape(self, x.shape[1:], self.kernel, (1,) * len(self.kernel))
        kind: Kind = x.kind if self.mode == "max" else "value" if x.kind == "value" else "graded"
        dtype = self.dtype or (x.dtype if self.mode == "max" else _promote(level, kind, "", x.dtype))
        return self._output(kind, (x.shape[0], *size), dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Node):
    """y[t] = x0[t] + x1[t] + ... , operands of equal shape, added from left to right."""

    dtype: str = ""
    op: ClassVar[str] = "add"
    arity: ClassVar[int | None] = None

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """The common shape."""
        if not operands:
            self.fail("SPK302", "add needs at least one operand")
        known = [item for item in operands if item]
        if not known:
            return None
        if len({item.shape for item in known}) > 1:
            shapes = ", ".join(f"%{r.node} {o.shape}" for r, o in zip(self.inputs, operands, strict=True) if o)
            self.fail("SPK309", f"the operands of add differ in shape: {shapes}")
        kind: Kind = "value" if any(item.kind == "value" for item in known) else "graded"
        return self._output(kind, known[0].shape, _promote(level, kind, self.dtype, *(o.dtype for o in known)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Node):
    """The operands one after the other along `axis` (0 is the first axis after batch)."""

    axis: int = 0
    op: ClassVar[str] = "concat"
    arity: ClassVar[int | None] = None

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """Sizes add up along the axis."""
        if not operands:
            self.fail("SPK302", "concat needs at least one operand")
        if (known := _known(operands)) is None:
            return None
        first = known[0].shape
        if not 0 <= self.axis < len(first):
            self.fail("SPK309", f"axis {self.axis} does not exist in shape {first}")
        rest = {(item.shape[: self.axis], item.shape[self.axis + 1 :]) for item in known}
        if len(rest) > 1 or any(len(item.shape) != len(first) for item in known):
            self.fail("SPK309", f"the operands of concat do not fit: {[item.shape for item in known]}")
        length = sum(item.shape[self.axis] for item in known)
        shape = (*first[: self.axis], length, *first[self.axis + 1 :])
        kind = _joint_kind(known)
        return self._output(kind, shape, _promote(level, kind, "", *(item.dtype for item in known)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reshape(Node):
    """The same numbers in row-major order under another shape; flatten is a reshape."""

    shape: tuple[int, ...]
    op: ClassVar[str] = "reshape"

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """The given shape."""
        if (known := _known(operands)) is None:
            return None
        (x,) = known
        if int(np.prod(self.shape, dtype=np.int64)) != x.size:
            self.fail("SPK309", f"shape {x.shape} cannot become {self.shape}")
        return self._output(x.kind, self.shape, x.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gather(Node):
    """y.flat[k] = x.flat[indices.flat[k]], in the shape of `indices`: slicing, permuting, flipping, repeating."""

    indices: Array
    op: ClassVar[str] = "gather"

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """The shape of `indices`."""
        if (known := _known(operands)) is None:
            return None
        (x,) = known
        if self.indices.dtype.kind != "i" or (self.indices.size and (self.indices.min() < 0 or self.indices.max() >= x.size)):
            self.fail("SPK309", f"indices must be integers in 0 to {x.size - 1}")
        return self._output(x.kind, self.indices.shape, x.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Node):
    """y[t] = factor * x[t] + offset; both scalars, of x's shape, or one number per channel (axis 0)."""

    factor: Array
    offset: Array | None = None
    dtype: str = ""
    op: ClassVar[str] = "scale"

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """The operand's shape."""
        if (known := _known(operands)) is None:
            return None
        (x,) = known
        for name, array in (("factor", self.factor), ("offset", self.offset)):
            if array is not None and not broadcasts(array.shape, x.shape):
                self.fail("SPK309", f"{name} of shape {array.shape} does not fit shape {x.shape}")
        kind: Kind = "graded" if x.kind != "value" and self.offset is None else "value"
        # A single number is a scalar, which promotes nothing.
        arrays = [a for a in (self.factor, self.offset) if a is not None and not (a.size == 1 and a.ndim <= 1)]
        dtypes = [x.dtype, *map(short_dtype, arrays)]
        return self._output(kind, x.shape, _promote(level, kind, self.dtype, *dtypes))


@dataclass(frozen=True, kw_only=True, eq=False)
class Neuron(Node):
    """A population: `program` runs once a step for every neuron.

    params: one array per parameter of the program: a scalar, the population's shape, or one per channel (axis 0).
    init: initial states that differ from the program's, in the same shapes. start: before this step the population emits
    zeros and its states keep their initial values. stop: from this step on it emits zeros and its states stay as they are; None is
    never. dtype: of numbers emitted (default: as the operands promote, i32 at
    integer levels). core: at the placed level, which core of the target each neuron lies on, integers of the population's shape.
    """

    program: Program
    params: Mapping[str, Array] = field(default_factory=dict)
    init: Mapping[str, Array] = field(default_factory=dict)
    start: int = 0
    stop: int | None = None
    dtype: str = ""
    core: Array | None = None
    op: ClassVar[str] = "neuron"
    arity: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("params", "init"):
            given: Mapping[str, Any] = getattr(self, name)
            object.__setattr__(self, name, MappingProxyType({k: self._array(v) for k, v in given.items()}))
        if len(self.inputs) != len(self.program.inputs):
            self.fail("SPK302", f"@{self.program.name} takes {len(self.program.inputs)} inputs, not {len(self.inputs)}")
        missing = [name for name in self.program.params if name not in self.params]
        unknown = sorted(set(self.params) - set(self.program.params))
        if missing or unknown:
            what = f"parameter {missing[0]} is missing" if missing else f"there is no parameter {unknown[0]}"
            self.fail("SPK302", f"@{self.program.name}: {what}")
        strange = sorted(set(self.init) - set(self.program.state_names))
        if strange:
            self.fail("SPK302", f"@{self.program.name} has no state {strange[0]}")

    def runs(self, step: int) -> bool:
        """Whether the program runs in this step: from `start` on and before `stop`."""
        return step >= self.start and (self.stop is None or step < self.stop)

    def infer(self, operands: Sequence[TensorType | None], level: Level) -> Ports | None:
        """The operands' common shape, for every emission."""
        known = [item for item in operands if item]
        if not known:
            if operands:
                return None
            shapes = {a.shape for a in (*self.params.values(), *self.init.values()) if a.shape}
            if len(shapes) != 1:
                self.fail("SPK309", "a population without inputs needs parameters that tell its shape")
            shape = shapes.pop()
        else:
            shape = known[0].shape
            if len({item.shape for item in known}) > 1:
                self.fail("SPK309", f"the inputs differ in shape: {[item.shape for item in known]}")
        for name, array in (*self.params.items(), *self.init.items()):
            if not broadcasts(array.shape, shape):
                self.fail("SPK309", f"{name} has shape {array.shape}, which does not fit the population {shape}")
        arrays = [short_dtype(a) for a in (*self.params.values(), *self.init.values()) if a.ndim]
        ports = []
        for index, emit in enumerate(self.program.emits):
            dtype = _promote(level, emit.kind, self.dtype, *(item.dtype for item in known), *arrays)
            if emit.kind == "spike" and level != "float":
                dtype = default_dtype("spike", level)
            ports.append(("" if index == 0 else emit.name, TensorType(emit.kind, shape, dtype)))
        return tuple(ports)


def broadcasts(array: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a scalar, of the population's shape, or one number per channel (axis 0)."""
    return array in ((), (1,), shape) or (len(array) == 1 and len(shape) > 1 and array[0] == shape[0])


def spread(array: Array, shape: tuple[int, ...]) -> Array:
    """A parameter in a form that NumPy broadcasts against (batch, *shape)."""
    if array.ndim == 1 and len(shape) > 1 and array.shape != (1,):
        return array.reshape(array.shape[0], *(1,) * (len(shape) - 1))
    return array


def window_shape(node: Node, space: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """floor((n + 2p - d (k - 1) - 1) / s) + 1 on every axis."""
    stride: tuple[int, ...] = node.stride  # type: ignore[attr-defined]  # Conv and Pool have both
    padding: tuple[int, ...] = node.padding  # type: ignore[attr-defined]  # as above
    size = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(space, padding, dilation, kernel, stride, strict=True)
    )
    if min(size) < 1:
        node.fail("SPK309", f"the window {tuple(kernel)} is larger than the input {tuple(space)}")
    return size


def _bias_dtype(node: Dense | Sparse | Conv) -> list[str]:
    return [] if node.bias is None else [short_dtype(node.bias)]


def _check_bias_delay(node: Dense | Sparse | Conv, bias: tuple[int, ...], delay: tuple[int, ...]) -> None:
    if node.bias is not None and node.bias.shape != bias:
        node.fail("SPK309", f"the bias has shape {node.bias.shape}, not {bias}")
    if node.delay is not None:
        if node.delay.shape != delay:
            node.fail("SPK309", f"the delays have shape {node.delay.shape}, not {delay}")
        if node.delay.dtype.kind != "i" or (node.delay.size and node.delay.min() < 0):
            node.fail("SPK306", "delays must be integers and not negative")


OPS: dict[str, type[Node]] = {
    cls.op: cls for cls in (Input, Constant, Dense, Sparse, Conv, Pool, Add, Concat, Reshape, Gather, Scale, Neuron)
}
