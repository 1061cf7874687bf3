"""Hypothesis strategies: random neuron programs, graphs, and inputs that the verifier always accepts.

Every number carries a bound on its size in bits while an expression is built, so that no example is thrown away for an
overflow; structure is drawn by hypothesis (and shrinks), the contents of arrays come from a drawn seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from spikec.ir.graph import Graph
from spikec.ir.neuron import Assign, Call, Emit, Expr, Num, Program, State, Var, call
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
    broadcasts,
)
from spikec.ir.rules import verify
from spikec.ir.types import DTYPES, Array, Kind, TensorType

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Sized(NamedTuple):
    """An expression and a bound: |value| < 2^bits."""

    expr: Expr
    bits: int


def _below(draw: Draw, n: int) -> int:
    return int(draw(st.integers(0, n - 1)))


def _chance(draw: Draw, one_in: int) -> bool:
    return _below(draw, one_in) == one_in - 1


# ------------------------------------------------------------------------------------------------- fixed-level programs


class _Exprs:
    """Draws expressions over the variables set so far."""

    def __init__(self, draw: Draw, numbers: list[Sized], most: int = 44) -> None:
        self.draw = draw
        self.numbers = numbers
        self.truths: list[Expr] = []
        self.most = most

    def number(self, depth: int) -> Sized:
        found = self._number(depth)
        if found.bits > self.most:
            bits = self.draw(st.integers(3, 33))
            return Sized(call(self.draw(st.sampled_from(["wrap", "clip"])), found.expr, bits), bits)
        return found

    def _number(self, depth: int) -> Sized:
        draw = self.draw
        if depth == 0 or _chance(draw, 5):
            if _chance(draw, 4):
                value = draw(st.one_of(st.integers(-5, 5), st.integers(-300, 300), st.integers(-(1 << 33), 1 << 33)))
                return Sized(Num(value), max(abs(value).bit_length(), 1))
            return self.numbers[_below(draw, len(self.numbers))]
        op = draw(
            st.sampled_from(
                ["+", "-", "*", "select", "rtz", ">>", "neg", "<<", "abs", "min", "max", "rem", "wrap", "clip", "truth"]
            )
        )
        if op == "truth":
            return (
                Sized(call("+", self.truth(depth - 1), self.number(0).expr), 46)
                if _chance(draw, 2)
                else Sized(call("*", self.truth(depth - 1), self.number(0).expr), self.most)
            )
        a = self.number(depth - 1)
        if op in ("neg", "abs"):
            return Sized(call(op, a.expr), a.bits + 1)
        if op in ("wrap", "clip"):
            bits = draw(st.integers(2, 40))
            return Sized(call(op, a.expr, bits), bits)
        if op == "rtz":
            return Sized(call(op, a.expr, draw(st.integers(0, 40))), a.bits)
        if op in ("<<", ">>"):
            amount: Any = draw(st.integers(0, 12))
            if _chance(draw, 3):
                inner = self.number(0)
                amount = call("min", call("max", inner.expr, 0), amount)
                return Sized(call(op, a.expr, amount), a.bits + (12 if op == "<<" else 0))
            return Sized(call(op, a.expr, amount), a.bits + (amount if op == "<<" else 0))
        if op == "rem":
            if _chance(draw, 3):
                return Sized(call(op, a.expr, call("max", call("clip", self.number(0).expr, 12), 1)), 12)
            divisor = draw(st.integers(1, 40)) * draw(st.sampled_from([1, 1, -1]))
            return Sized(call(op, a.expr, divisor), 7)
        b = self.number(depth - 1)
        if op == "*":
            return Sized(call(op, a.expr, b.expr), a.bits + b.bits) if a.bits + b.bits < 60 else a
        if op == "select":
            return Sized(call(op, self.truth(depth - 1), a.expr, b.expr), max(a.bits, b.bits))
        return Sized(call(op, a.expr, b.expr), max(a.bits, b.bits) + (op in "+-"))

    def truth(self, depth: int) -> Expr:
        draw = self.draw
        if self.truths and _chance(draw, 4):
            return self.truths[_below(draw, len(self.truths))]
        if depth > 0 and _chance(draw, 3):
            op = draw(st.sampled_from(["and", "or", "not", "select"]))
            count = {"not": 1, "select": 3}.get(op, 2)
            return Call(op, tuple(self.truth(depth - 1) for _ in range(count)))
        op = draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
        d = max(depth - 1, 0)
        return call(op, self.number(d).expr, self.number(d).expr)


def _state_dtype(draw: Draw, bits: int) -> str:
    wide = [name for name, size in (("i8", 8), ("i16", 16), ("i32", 32), ("i64", 64)) if size >= bits]
    return str(draw(st.sampled_from([wide[0], wide[0], *wide])))


@dataclass
class MadeProgram:
    """A program, the width of each parameter, each state and each emission in bits."""

    program: Program
    params: dict[str, int]
    states: dict[str, int]
    emits: list[int]


@st.composite
def fixed_programs(draw: Draw, name: str = "p", inputs: tuple[int, ...] = (12,), spikes_only: bool = False) -> MadeProgram:
    """A fixed-level program for inputs of the given widths; states are always narrowed by clip or wrap."""
    params = {f"p{i}": draw(st.integers(1, 14)) for i in range(_below(draw, 4))}
    states = {f"s{i}": draw(st.integers(2, 34)) for i in range(_below(draw, 4))}
    numbers = [Sized(Var(f"a{i}"), bits) for i, bits in enumerate(inputs)]
    numbers += [Sized(Var(n), bits) for n, bits in (*params.items(), *states.items())]
    if not numbers or _chance(draw, 3):
        numbers.append(Sized(Var("t"), 31))
    exprs = _Exprs(draw, numbers)
    body: list[Assign] = []
    for index in range(_below(draw, 3)):
        if _chance(draw, 3):
            body.append(Assign(f"b{index}", exprs.truth(2)))
            exprs.truths.append(Var(f"b{index}"))
        else:
            found = exprs.number(3)
            body.append(Assign(f"x{index}", found.expr))
            numbers.append(Sized(Var(f"x{index}"), found.bits))
    for state, bits in states.items():
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 0]))):
            found = exprs.number(3)
            body.append(Assign(state, call(draw(st.sampled_from(["clip", "wrap"])), found.expr, bits)))
    emits: list[Emit] = []
    sizes = []
    body.append(Assign("spike", exprs.truth(3)))
    emits.append(Emit("spike", "spike" if spikes_only else draw(st.sampled_from(["spike", "spike", "spike", "value", "graded"]))))
    sizes.append(1)
    if states and _chance(draw, 3):
        state = draw(st.sampled_from(sorted(states)))
        body.append(Assign(state, call("select", Var("spike"), draw(st.integers(-1, 1)), Var(state))))
    if not spikes_only and _chance(draw, 2):
        bits = draw(st.integers(2, 14))
        body.append(Assign("out", call(draw(st.sampled_from(["clip", "wrap"])), exprs.number(2).expr, bits)))
        emits.insert(_below(draw, 2), Emit("out", draw(st.sampled_from(["value", "graded"]))))
        sizes.insert(0 if emits[0].name == "out" else 1, bits)
    declared = tuple(
        State(n, draw(st.sampled_from([0, 0, 1, -1, (1 << (bits - 1)) - 1])), _state_dtype(draw, bits))
        for n, bits in states.items()
    )
    names = tuple(f"a{i}" for i in range(len(inputs)))
    program = Program(name, names, tuple(params), declared, tuple(body), tuple(emits))
    return MadeProgram(program, params, states, sizes)


# ------------------------------------------------------------------------------------------------- float-level programs

_EIGHTHS = st.integers(-24, 24).map(lambda n: n / 8)


class _FloatExprs:
    """Expressions of multiples of 1/8 whose every intermediate value is exact in 24 bits; `Sized.bits` counts bits."""

    def __init__(self, draw: Draw, numbers: list[Sized], clock: bool) -> None:
        self.draw, self.numbers, self.clock = draw, numbers, clock

    def leaf(self) -> Sized:
        return self.numbers[_below(self.draw, len(self.numbers))]

    def weak(self) -> Sized:
        return Sized(Num(self.draw(_EIGHTHS)), 8)

    def number(self, depth: int) -> Sized:
        draw = self.draw
        if depth == 0 or _chance(draw, 4):
            return self.leaf()
        op = draw(st.sampled_from(["+", "-", "*", "/", "neg", "abs", "min", "max", "select", "floor", "round", "rem"]))
        a = self.number(depth - 1)
        if op in ("neg", "abs", "floor", "round"):
            return Sized(call(op, a.expr), a.bits + (op == "round"))
        if op == "/":
            return Sized(call("/", a.expr, draw(st.sampled_from([2, 4.0, 0.5]))), a.bits + 2)
        if op == "rem":
            return Sized(call("rem", a.expr, draw(st.sampled_from([1, 2.5, -3, 4.0]))), max(a.bits, 8))
        b = self.weak() if _chance(draw, 3) else self.number(depth - 1)
        if op == "*":
            return Sized(call("*", a.expr, b.expr), a.bits + b.bits) if a.bits + b.bits < 22 else a
        if max(a.bits, b.bits) > 21:
            return self.leaf()
        if op == "select":
            return Sized(call("select", self.truth(depth - 1), a.expr, b.expr), max(a.bits, b.bits))
        pair = (a.expr, b.expr) if _chance(draw, 2) else (b.expr, a.expr)
        return Sized(call(op, *pair), max(a.bits, b.bits) + 1)

    def truth(self, depth: int) -> Expr:
        draw = self.draw
        if depth > 0 and _chance(draw, 3):
            op = draw(st.sampled_from(["and", "or", "not"]))
            return Call(op, tuple(self.truth(depth - 1) for _ in range(1 if op == "not" else 2)))
        if self.clock and _chance(draw, 4):
            array = call(">", self.leaf().expr, draw(_EIGHTHS))
            return call("or", array, call("==", call("rem", Var("t"), draw(st.integers(1, 4))), 0))
        op = draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
        other = self.weak().expr if _chance(draw, 2) else self.number(max(depth - 1, 0)).expr
        return call(op, self.number(max(depth - 1, 0)).expr, other)


def _eighths(expr: Expr) -> Expr:
    """Back to multiples of 1/8 within +-16."""
    return call("min", call("max", call("*", call("floor", call("*", expr, 8)), 0.125), -16), 16)


@st.composite
def float_programs(draw: Draw, name: str = "p", inputs: tuple[int, ...] = (10,), spikes_only: bool = False) -> MadeProgram:
    """A float-level program whose arithmetic is exact for inputs that are multiples of 1/8 of the given widths."""
    params = {f"p{i}": 7 for i in range(_below(draw, 3))}
    states = {f"s{i}": 8 for i in range(_below(draw, 3))}
    numbers = [Sized(Var(f"a{i}"), bits) for i, bits in enumerate(inputs)] + [Sized(Var(n), 8) for n in states]
    numbers = numbers or [Sized(Var("s0"), 8)]
    if not inputs and not states:
        states["s0"] = 8
    exprs = _FloatExprs(draw, numbers, _chance(draw, 3))
    body: list[Assign] = []
    if _chance(draw, 2):
        found = exprs.number(2)
        body.append(Assign("x0", found.expr))
        numbers.append(Sized(Var("x0"), found.bits))
    if params and _chance(draw, 3):
        body.append(Assign("x1", call("select", call(">", call("exp", Var("p0")), exprs.leaf().expr), exprs.leaf().expr, 0)))
    for param in params:
        base = exprs.leaf()
        if base.bits + 7 < 22:
            numbers.append(Sized(call("*", base.expr, Var(param)), base.bits + 7))
    for state in states:
        body.append(Assign(state, _eighths(exprs.number(3).expr)))
    body.append(Assign("spike", exprs.truth(2)))
    emits = [Emit("spike", "spike")]
    sizes = [1]
    if states:
        state = draw(st.sampled_from(sorted(states)))
        body.append(Assign(state, call("select", Var("spike"), 0, Var(state))))
        if not spikes_only and _chance(draw, 2):
            emits.append(Emit(state, draw(st.sampled_from(["value", "graded"]))))
            sizes.append(8)
    declared = tuple(State(n, draw(st.sampled_from([0, 0, 0.5, -1]))) for n in states)
    names = tuple(f"a{i}" for i in range(len(inputs)))
    return MadeProgram(Program(name, names, tuple(params), declared, tuple(body), tuple(emits)), params, states, sizes)


# -------------------------------------------------------------------------------------------------------------- graphs


@dataclass
class _Wire:
    ref: Ref
    shape: tuple[int, ...]
    bits: int
    kind: Kind


class _Builder:
    """Grows a graph node by node over the wires that exist so far."""

    def __init__(self, draw: Draw, level: str) -> None:
        self.draw = draw
        self.fixed = level != "float"
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.nodes: list[Node] = []
        self.wires: list[_Wire] = []
        self.programs = 0
        self.lags = _chance(draw, 4)
        self.most = 20 if self.fixed else 12

    # arrays

    def ints(self, bits: int, shape: tuple[int, ...]) -> Array:
        """Integers of at most so many bits, in styles that the backends treat differently; multiples of 1/8 at the float level."""
        rng = self.rng
        if not self.fixed:
            return (rng.integers(-8, 9, shape) / 8 * (rng.random(shape) < 0.7)).astype(np.float32)
        style = _below(self.draw, 5)
        top = (1 << bits) - 1
        values = rng.integers(-top, top + 1, shape)
        if style == 1:
            values = np.where(rng.random(shape) < 0.3, values, 0)
        if style == 2:
            values = values >> 2 << 2
        if style == 3:
            values = np.abs(values)
        narrow = np.int8 if bits <= 7 else np.int16 if bits <= 15 else np.int32
        return np.asarray(values).astype(self.draw(st.sampled_from([narrow, narrow, np.int32, np.int64])))

    def node(self, cls: type[Node], /, **more: Any) -> Node:
        lag = _below(self.draw, 3) if self.lags else 0
        made = cls(name=f"n{len(self.nodes)}", lag=lag, **more)
        self.nodes.append(made)
        return made

    def add(self, cls: type[Node], shape: tuple[int, ...], bits: int, kind: Kind, /, **more: Any) -> _Wire:
        made = self.node(cls, **more)
        self.wires.append(_Wire(Ref(made.name), shape, bits, kind))
        return self.wires[-1]

    # references

    def pick(self, accept: Callable[[_Wire], bool] = lambda _: True) -> _Wire | None:
        """A wire to read, sometimes some steps back, sometimes with initial values."""
        found = [w for w in self.wires if accept(w)]
        if not found:
            return None
        wire = found[-1 - min(_below(self.draw, len(found)), _below(self.draw, len(found)))]
        if wire.ref.delay == 0 and _chance(self.draw, 4):
            wire = _Wire(Ref(wire.ref.node, wire.ref.port, 1 + _below(self.draw, 4)), wire.shape, wire.bits, wire.kind)
        if wire.ref.delay and _chance(self.draw, 4):
            init = self.init((wire.ref.delay, *wire.shape), wire)
            wire = _Wire(Ref(wire.ref.node, wire.ref.port, wire.ref.delay, init), wire.shape, wire.bits, wire.kind)
        return wire

    def init(self, shape: tuple[int, ...], wire: _Wire) -> Array:
        if wire.kind == "spike":
            dtype = np.int8 if self.fixed else np.float32
            return (self.rng.random(shape) < 0.4).astype(dtype)
        if self.fixed:
            return self.rng.integers(-(1 << wire.bits) + 1, 1 << wire.bits, shape).astype(np.int32)
        return (self.rng.integers(-8, 9, shape) / 8).astype(np.float32)

    def delays(self, shape: tuple[int, ...]) -> Array | None:
        if not _chance(self.draw, 4) or 0 in shape:
            return None
        return self.rng.integers(0, 1 + _below(self.draw, 5), shape).astype(np.int16)

    # operations; each returns whether it could be made

    def source(self) -> None:
        draw = self.draw
        shape = draw(st.sampled_from([(1,), (3,), (5,), (17,), (40,), (2, 5), (3, 4, 4), (1, 6, 5), (2, 9)]))
        kind: Kind = draw(st.sampled_from(["spike", "spike", "graded", "value"]))
        if kind == "spike":
            self.add(Input, shape, 1, kind, type=TensorType(kind, shape, "i8" if self.fixed else "f32"))
        elif self.fixed:
            bits = draw(st.integers(1, 9))
            top = (1 << bits) - 1
            low = -top if _chance(draw, 2) else 0
            type_ = TensorType(kind, shape, draw(st.sampled_from(["i32", "i16", "i64"])))
            self.add(Input, shape, bits, kind, type=type_, bounds=(low, top))
        else:
            self.add(Input, shape, 6, kind, type=TensorType(kind, shape, "f32"))

    def weight_bits(self, wire: _Wire, fan_in: int) -> int:
        room = min(24, 31 - wire.bits - fan_in.bit_length() - 1)
        return int(self.draw(st.sampled_from([b for b in (1, 4, 7, 7, 8, 12) if b <= room] or [1])))

    def dense(self) -> bool:
        wire = self.pick(lambda w: bool(w.shape) and w.bits <= self.most)
        if wire is None:
            return False
        fan_in, out = wire.shape[-1], self.draw(st.sampled_from([1, 2, 4, 7, 16, 33]))
        bits = self.weight_bits(wire, fan_in) if self.fixed else 4
        self.add(
            Dense,
            (*wire.shape[:-1], out),
            bits + wire.bits + fan_in.bit_length() + 1,
            "value",
            inputs=(wire.ref,),
            weight=self.ints(bits, (out, fan_in)),
            bias=self.ints(bits, (out,)) if _chance(self.draw, 2) else None,
            delay=self.delays((out, fan_in)),
        )
        return True

    def sparse(self) -> bool:
        wire = self.pick(lambda w: len(w.shape) == 1 and w.bits <= self.most)
        if wire is None:
            return False
        fan_in, out = wire.shape[0], self.draw(st.sampled_from([1, 3, 8, 21]))
        degree = self.rng.integers(0, min(fan_in, 6) + 1, out)
        count = int(degree.sum())
        bits = self.weight_bits(wire, 8) if self.fixed else 4
        self.add(
            Sparse,
            (out,),
            bits + wire.bits + 5,
            "value",
            inputs=(wire.ref,),
            weight=self.ints(bits, (count,)),
            indices=self.rng.integers(0, fan_in, count).astype(np.int32),
            indptr=np.concatenate([[0], np.cumsum(degree)]).astype(np.int32),
            fan_in=fan_in,
            bias=self.ints(bits, (out,)) if _chance(self.draw, 2) else None,
            delay=self.delays((count,)),
        )
        return True

    def conv(self) -> bool:
        wire = self.pick(lambda w: len(w.shape) in (2, 3) and w.bits <= self.most and w.shape[0] <= 8)
        if wire is None:
            return False
        draw = self.draw
        channels, *space = wire.shape
        groups = draw(st.sampled_from([g for g in (1, 1, channels, 2) if channels % g == 0]))
        out = groups * draw(st.sampled_from([1, 2, 3]))
        kernel, stride, padding, dilation, size = [], [], [], [], []
        for n in space:
            k, s, p, d = (draw(st.sampled_from(c)) for c in ((1, 2, 3), (1, 1, 2, 3), (0, 1, 2), (1, 1, 2)))
            if n + 2 * p < d * (k - 1) + 1:
                k, d = 1, 1
            kernel.append(k), stride.append(s), padding.append(p), dilation.append(d)
            size.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
        fan_in = channels // groups * int(np.prod(kernel))
        bits = self.weight_bits(wire, fan_in) if self.fixed else 3
        shape = (out, channels // groups, *kernel)
        self.add(
            Conv,
            (out, *size),
            bits + wire.bits + fan_in.bit_length() + 1,
            "value",
            inputs=(wire.ref,),
            weight=self.ints(bits, shape),
            bias=self.ints(bits, (out,)) if _chance(draw, 2) else None,
            stride=tuple(stride),
            padding=tuple(padding),
            dilation=tuple(dilation),
            groups=groups,
            delay=self.delays(shape),
        )
        return True

    def pool(self) -> bool:
        wire = self.pick(lambda w: len(w.shape) in (2, 3) and w.bits <= 22 - 10 * (not self.fixed))
        if wire is None:
            return False
        draw = self.draw
        channels, *space = wire.shape
        kernel = tuple(draw(st.sampled_from([k for k in (1, 2, 3) if k <= n])) for n in space)
        stride = tuple(draw(st.sampled_from([1, 2, k])) for k in kernel)
        padding = tuple(draw(st.sampled_from([0, k // 2])) for k in kernel)
        mode = draw(st.sampled_from(["sum", "max"] if self.fixed or int(np.prod(kernel)) & 1 else ["sum", "max", "average"]))
        if int(np.prod(kernel)) not in (1, 2, 4) and mode == "average":
            mode = "sum"
        size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(space, padding, kernel, stride, strict=True)]
        kind: Kind = wire.kind if mode == "max" else "value" if wire.kind == "value" else "graded"
        bits = wire.bits + (4 if mode != "max" else 0)
        self.add(Pool, (channels, *size), bits, kind, inputs=(wire.ref,), mode=mode, kernel=kernel, stride=stride, padding=padding)
        return True

    def add_op(self) -> bool:
        first = self.pick(lambda w: w.bits <= 24)
        if first is None:
            return False
        operands = [first]
        for _ in range(_below(self.draw, 3)):
            other = self.pick(lambda w: w.shape == first.shape and w.bits <= 24)
            assert other is not None
            operands.append(other)
        kind: Kind = "value" if any(w.kind == "value" for w in operands) else "graded"
        self.add(Add, first.shape, max(w.bits for w in operands) + 2, kind, inputs=tuple(w.ref for w in operands))
        return True

    def concat(self) -> bool:
        first = self.pick(lambda w: bool(w.shape))
        if first is None:
            return False
        axis = _below(self.draw, len(first.shape))
        other = self.pick(
            lambda w: (
                len(w.shape) == len(first.shape)
                and w.shape[:axis] == first.shape[:axis]
                and w.shape[axis + 1 :] == first.shape[axis + 1 :]
            )
        )
        assert other is not None
        shape = (*first.shape[:axis], first.shape[axis] + other.shape[axis], *first.shape[axis + 1 :])
        kinds = {first.kind, other.kind}
        kind: Kind = "spike" if kinds == {"spike"} else "graded" if "value" not in kinds else "value"
        self.add(Concat, shape, max(first.bits, other.bits), kind, inputs=(first.ref, other.ref), axis=axis)
        return True

    def reshape(self) -> bool:
        wire = self.pick()
        if wire is None:
            return False
        size = int(np.prod(wire.shape))
        shapes = [(size,), (1, size), (size, 1)]
        if size % 2 == 0:
            shapes += [(2, size // 2), (size // 2, 2), (1, 2, size // 2)]
        shape = self.draw(st.sampled_from(shapes))
        self.add(Reshape, shape, wire.bits, wire.kind, inputs=(wire.ref,), shape=shape)
        return True

    def gather(self) -> bool:
        wire = self.pick()
        if wire is None:
            return False
        shape = self.draw(st.sampled_from([(1,), (4,), (2, 3), (2, 3, 3)]))
        indices = self.rng.integers(0, int(np.prod(wire.shape)), shape).astype(np.int32)
        self.add(Gather, shape, wire.bits, wire.kind, inputs=(wire.ref,), indices=indices)
        return True

    def like(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape for a parameter of a population."""
        options = [(), (), (1,), shape] + ([shape[:1]] if len(shape) > 1 else [])
        return tuple(self.draw(st.sampled_from([o for o in options if broadcasts(o, shape)])))

    def scale(self) -> bool:
        wire = self.pick(lambda w: w.bits <= self.most)
        if wire is None:
            return False
        factor = self.ints(7, self.like(wire.shape))
        offset = self.ints(10, self.like(wire.shape)) if _chance(self.draw, 2) else None
        kind: Kind = "graded" if wire.kind != "value" and offset is None else "value"
        bits = max(wire.bits + 7, 10) + 1 if self.fixed else wire.bits + 4
        self.add(Scale, wire.shape, bits, kind, inputs=(wire.ref,), factor=factor, offset=offset)
        return True

    def constant(self) -> bool:
        shape = self.draw(st.sampled_from([(1,), (3,), (2, 5)]))
        kind: Kind = self.draw(st.sampled_from(["value", "graded", "spike"]))
        value = self.init(shape, _Wire(Ref(""), shape, 6, kind))
        self.add(Constant, shape, 6, kind, value=value, kind=kind, start=_below(self.draw, 4))
        return True

    def neuron(self) -> bool:
        first = self.pick(lambda w: w.bits <= 26 - 10 * (not self.fixed))
        if first is None:
            return False
        operands = [first]
        while _chance(self.draw, 4):
            other = self.pick(lambda w: w.shape == first.shape and w.bits <= 26 - 10 * (not self.fixed))
            assert other is not None
            operands.append(other)
        self.population(first.shape, tuple(w.ref for w in operands), tuple(w.bits for w in operands))
        return True

    def lonely(self) -> bool:
        """A population without inputs: its shape comes from a parameter or an initial state."""
        self.population(self.draw(st.sampled_from([(1,), (4,), (2, 3)])), (), ())
        return True

    def dense_to(self, shape: tuple[int, ...]) -> None:
        """A dense layer from any wire to any shape."""
        wire = next(w for w in self.wires if w.ref.node != "loop")
        size = int(np.prod(wire.shape))
        flat = self.add(Reshape, (size,), wire.bits, wire.kind, inputs=(wire.ref,), shape=(size,))
        out = int(np.prod(shape))
        summed = self.add(Dense, (out,), 15, "value", inputs=(flat.ref,), weight=self.ints(3, (out, size)))
        self.add(Reshape, shape, 15, "value", inputs=(summed.ref,), shape=shape)

    def population(self, shape: tuple[int, ...], refs: tuple[Ref, ...], bits: tuple[int, ...], name: str = "") -> None:
        draw = self.draw
        make = fixed_programs if self.fixed else float_programs
        made: MadeProgram = draw(make(f"p{self.programs}", bits, bool(name)))
        self.programs += 1
        params: dict[str, Array] = {}
        init: dict[str, Array] = {}
        program = made.program
        for key, width in made.params.items():
            where = self.like(shape)
            top = (1 << width) - 1
            values: Any = self.rng.integers(-top, top + 1, where) if self.fixed else self.rng.integers(-8, 9, where) / 8
            params[key] = np.asarray(values).astype(np.int32 if self.fixed else np.float32)
        for state in program.states:
            if _chance(draw, 4):
                where = self.like(shape)
                width = made.states[state.name]
                top = (1 << (width - 1)) - 1
                raw: Any = self.rng.integers(-top, top + 1, where) if self.fixed else self.rng.integers(-8, 9, where) / 8
                init[state.name] = np.asarray(raw).astype(np.int64 if self.fixed else np.float32)
        if not refs and not any(a.shape == shape for a in (*params.values(), *init.values())):
            if not (params or program.states):
                return
            dtype = np.int32 if self.fixed else np.float32
            if params:
                params[next(iter(params))] = np.ones(shape, dtype)
            else:
                init[program.states[0].name] = np.ones(shape, dtype)
        if not refs:
            # Exactly one shape, else it could be read in two ways.
            for table in (params, init):
                for key, array in table.items():
                    if array.shape and array.shape != shape:
                        table[key] = np.broadcast_to(array.ravel()[:1], shape).copy()
        lag = _below(draw, 3) if self.lags else 0
        start = draw(st.sampled_from([0, 0, 0, 1, 3]))
        length = draw(st.sampled_from([None, None, None, 0, 2, 5]))
        node = Neuron(
            name=name or f"n{len(self.nodes)}",
            inputs=refs,
            program=program,
            params=params,
            init=init,
            start=start,
            stop=None if length is None else start + length,
            lag=lag,
        )
        self.nodes.append(node)
        if not name:
            for index, emit in enumerate(program.emits):
                port = "" if index == 0 else emit.name
                self.wires.append(_Wire(Ref(node.name, port), shape, made.emits[index], emit.kind))


@st.composite
def graphs(draw: Draw, level: str = "fixed") -> Graph:
    """A feed-forward or recurrent graph of any of the operations, always well formed."""
    builder = _Builder(draw, level)
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        builder.source()
    # A population that is read (some steps back) before it exists closes a cycle.
    loop: _Wire | None = None
    if _chance(draw, 2):
        shape = draw(st.sampled_from([(4,), (9,), (2, 5), (2, 4, 4)]))
        loop = _Wire(Ref("loop", "", 1 + _below(draw, 3)), shape, 1, "spike")
        builder.wires.append(loop)
    makers = [
        builder.dense, builder.neuron, builder.dense, builder.neuron, builder.conv, builder.sparse, builder.add_op, builder.pool,
        builder.concat, builder.reshape, builder.gather, builder.scale, builder.constant, builder.lonely,
    ]  # fmt: skip
    for _ in range(draw(st.integers(1, 7))):
        makers[_below(draw, len(makers))]()
    if loop is not None:
        # Types on a cycle are inferred from a member that also reads something outside it.
        ready = builder.pick(lambda w: w.shape == loop.shape and w.ref.node != "loop" and w.bits <= 14)
        builder.dense_to(loop.shape)
        outside = builder.wires[-1]
        if ready is None or _chance(draw, 2):
            ready = ready or loop
            total = builder.add(Add, loop.shape, 17, "value", inputs=(outside.ref, ready.ref))
            builder.population(loop.shape, (total.ref,), (17,), "loop")
        else:
            builder.population(loop.shape, (outside.ref, ready.ref), (15, ready.bits), "loop")
    builder.neuron()
    made = [node for node in builder.nodes if not isinstance(node, Input)]
    outputs = [(builder.nodes[-1].name, Ref(builder.nodes[-1].name))]
    for node in made[:-1]:
        if _chance(draw, 3):
            outputs.append((f"o_{node.name}", Ref(node.name)))
    return Graph("g", level, tuple(builder.nodes), tuple(outputs))


def random_inputs(graph: Graph, batch: int, steps: int, seed: int) -> dict[str, Array]:
    """Inputs that the graph's types and bounds allow: (batch, steps, *shape)."""
    rng = np.random.default_rng(seed)
    result: dict[str, Array] = {}
    for index, node in enumerate(graph.inputs):
        shape = (batch, steps, *node.type.shape)
        density = (0.1, 0.5, 0.9)[(seed + index) % 3]
        if node.type.kind == "spike":
            result[node.name] = (rng.random(shape) < density).astype(np.int8 if graph.level != "float" else DTYPES[node.type.dtype])
        elif graph.level == "float":
            result[node.name] = (rng.integers(-24, 25, shape) / 8 * (rng.random(shape) < density)).astype(DTYPES[node.type.dtype])
        else:
            low, high = node.bounds or (-128, 127)
            values = rng.integers(low, high + 1, shape)
            result[node.name] = np.where((rng.random(shape) < density) | (low > 0), values, 0)
    return result


def widened(graph: Graph, number: int) -> Graph:
    """The same graph with some inputs, weights, parameters and initial states in double precision."""
    rng = np.random.default_rng(number)

    def wide(value: Any) -> Any:
        return (
            value.astype(np.float64)
            if isinstance(value, np.ndarray) and value.dtype == np.float32 and rng.random() < 0.4
            else value
        )

    def changed(node: Node) -> Node:
        if isinstance(node, Input):
            return replace(node, type=TensorType(node.type.kind, node.type.shape, "f64" if rng.random() < 0.4 else "f32"))
        more: dict[str, Any] = {
            item.name: wide(getattr(node, item.name)) for item in fields(node) if item.name not in ("params", "init")
        }
        if isinstance(node, Neuron):
            more |= {key: {name: wide(array) for name, array in getattr(node, key).items()} for key in ("params", "init")}
        return replace(node, **more)

    return verify(graph.with_nodes(changed(node) for node in graph.nodes))
