"""Neuron programs as C: the statements of one loop over a population.

Integer programs carry the interval of every expression (`spikec.ir.ranges`), so that each operation is done in int32_t where
that provably holds its operands and result, else in int64_t. Float programs carry NumPy's types, found by asking NumPy, so
that every operation is done in the type in which the interpreter does it. What does not change from step to step is
computed here, by the interpreter's own `evaluate`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from spikec.ir.interpret import evaluate, float_truth
from spikec.ir.neuron import COMPARISONS, LOGIC, STEP, Call, Expr, Num, Program, Var
from spikec.ir.ranges import INT64, Interval, ProgramRanges
from spikec.ir.types import Array, short_dtype

#: C types by short name; "u8" holds 0 and 1, "u16" is of parameters, "b" is a truth value in a local variable.
C_TYPES: Final[dict[str, str]] = {
    "u8": "uint8_t",
    "i8": "int8_t",
    "u16": "uint16_t",
    "i16": "int16_t",
    "i32": "int32_t",
    "i64": "int64_t",
    "f32": "float",
    "f64": "double",
    "b": "int",
}
_WORDS: Final = re.compile(r"@?\w+")
_INT32: Final[Interval] = (-(1 << 31), (1 << 31) - 1)
_INT16: Final[Interval] = (-(1 << 15), (1 << 15) - 1)


class Unsupported(Exception):
    """The program holds something that this backend does not compile; the message says what."""


def fits32(interval: Interval) -> bool:
    """Whether an interval lies in int32_t."""
    return _INT32[0] <= interval[0] and interval[1] <= _INT32[1]


def literal(value: Any, kind: str) -> str:
    """A number as C text of the type, exact: decimal integers, hexadecimal floats, INFINITY by name."""
    if kind in ("f32", "f64"):
        number = float(value)
        suffix = "f" if kind == "f32" else ""
        if math.isnan(number):
            return "NAN" if kind == "f32" else "(double)NAN"
        if math.isinf(number):
            text = "INFINITY" if kind == "f32" else "(double)INFINITY"
            return f"(-{text})" if number < 0 else text
        if number == int(number) and abs(number) < 1 << 20 and math.copysign(1, number) > 0:
            return f"{int(number)}.0{suffix}"
        text = number.hex().replace("0000000p", "p") + suffix
        return f"({text})" if text.startswith("-") else text
    number = int(value)
    if kind == "i64":
        if number == INT64[0]:
            return "(-INT64_C(9223372036854775807) - 1)"
        return f"INT64_C({number})" if number >= 0 else f"(-INT64_C({-number}))"
    if number == _INT32[0]:
        return "(-2147483647 - 1)"
    return str(number) if number >= 0 else f"({number})"


@dataclass(frozen=True)
class Operand:
    """How the loop reads an input or a parameter: C text of its value as stored, and the stored type's short name.

    `value` instead of text: known when the network is compiled (a scalar, or an array that does not vary). Where `text` is an
    element of an array, `pointer` is the array, and the value is the element times 2^`shift`.
    """

    text: str = ""
    kind: str = "i32"
    value: Any = None
    pointer: str = ""
    shift: int = 0
    stored: str = ""  # the type of the array, where it is not `kind`


@dataclass
class Loop:
    """The body of a loop: lines, and which inputs, parameters and states it reads and writes.

    `tables` are parameter arrays that were computed while compiling, by the name under which the lines read them.
    """

    lines: list[str]
    uses: set[str]
    emits: list[str]
    tables: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class _Line:
    """One local variable: what it is called, its text, and the locals that the text reads."""

    name: str
    text: str
    reads: frozenset[str]


# ------------------------------------------------------------------------------------------------------------- integers


@dataclass(frozen=True)
class _Int:
    """C text, its type ("b", "i16", "i32", "i64") and its interval; `number` where it is a literal."""

    text: str
    kind: str
    interval: Interval
    number: int | None = None

    def as_(self, kind: str) -> str:
        """The text as a value of another type; the interval says that it fits."""
        if self.number is not None:
            return literal(self.number, kind)
        if self.kind == kind or (self.kind in ("b", "i16") and kind == "i32"):
            return self.text
        return f"({C_TYPES[kind]}){self.text}"


def _constant(value: int, kind: str = "i32") -> _Int:
    if kind != "b" and not fits32((value, value)):
        kind = "i64"
    return _Int(literal(value, kind), kind, (value, value), value)


class _Writer:
    """What both levels share: locals in order, and which of them are needed."""

    def __init__(self) -> None:
        self.lines: list[_Line] = []
        self.versions: dict[str, int] = {}

    def local(self, name: str, kind: str, text: str) -> str:
        """Declare the next version of a variable."""
        version = self.versions.get(name, 0)
        self.versions[name] = version + 1
        local = f"{name}_{version}"
        self.lines.append(_Line(local, f"const {C_TYPES[kind]} {local} = {text};", frozenset(_WORDS.findall(text))))
        return local

    def needed(self, roots: set[str]) -> list[str]:
        """The declarations that the roots depend on, in order; `roots` grows to all of them."""
        kept = []
        for line in reversed(self.lines):
            if line.name in roots:
                roots |= line.reads
                kept.append(line.text)
        return kept[::-1]


class _IntLoop(_Writer):
    shifts = False  # a product with 2^n - 1 that is shifted right by n becomes a difference, even where it fits

    def __init__(
        self, program: Program, ranges: ProgramRanges, operands: Mapping[str, Operand], merged: tuple[Expr, str] | None = None
    ) -> None:
        super().__init__()
        self.program, self.ranges, self.operands, self.merged = program, ranges, operands, merged
        self.env: dict[str, _Int] = {}
        self.sources: dict[str, str] = {}  # local -> the input, parameter or state that it loads

    def load(self, name: str) -> _Int:
        """A variable's current version; the first reading of an operand declares it."""
        if name in self.env:
            found = self.env[name]
        else:
            operand = self.operands[name]
            if operand.value is not None:
                return _constant(int(operand.value))
            kind = operand.kind if operand.kind in ("i16", "i64") else "i32"
            local = self.local(name, kind, operand.text)
            self.sources[local] = name
            found = self.env[name] = _Int(local, kind, {"i16": _INT16, "i32": _INT32, "i64": INT64}[kind])
        return found

    def expr(self, expr: Expr, index: int) -> _Int:
        interval = self.ranges.values.get((index, expr))
        if isinstance(expr, Num):
            return _constant(int(expr.value))
        if isinstance(expr, Var):
            if interval is not None and interval[0] == interval[1]:
                truth = expr.name in self.env and self.env[expr.name].kind == "b"
                return _constant(interval[0], "b" if truth else "i32")
            found = self.load(expr.name)
            return _Int(found.text, found.kind, interval or found.interval, found.number)
        assert isinstance(expr, Call) and interval is not None
        if self.merged is not None and expr == self.merged[0]:
            # The sum has been added to the state already.
            found = self.load(self.merged[1])
            return _Int(found.text, found.kind, interval)
        result = self.call(expr, index, interval)
        if interval[0] == interval[1] and result.number is None:
            return _constant(interval[0], result.kind if result.kind == "b" else "i32")
        return result

    def call(self, expr: Call, index: int, interval: Interval) -> _Int:
        op = expr.op
        if op == "select":
            return self.select(expr, index, interval)
        if op in ("rtz", ">>") and (trick := self.scaled(expr, index, interval)):
            return trick
        args = [self.expr(arg, index) for arg in expr.args]
        a, b = args[0], args[-1]
        if op in LOGIC:
            if op == "not":
                return _Int(f"(!{a.text})", "b", interval)
            return _Int(f"({a.text} {'&' if op == 'and' else '|'} {b.text})", "b", interval)
        if op in COMPARISONS:
            kind = _wide(a.interval, b.interval)
            left, right = a.as_(kind), b.as_(kind)
            if left == right:  # compilers take a comparison with itself for a mistake
                return _constant(int(op in ("<=", ">=", "==")), "b")
            return _Int(f"({left} {op} {right})", "b", interval)
        if op in ("wrap", "clip"):
            return self.narrowing(expr, a, interval)
        if op in ("+", "-") and _short(interval, a, b):
            # Kept in 16 bits, so that twice as many fit into a vector.
            return _Int(f"(int16_t)({a.as_('i16')} {op} {b.as_('i16')})", "i16", interval)
        if op in ("+", "-", "*"):
            kind = _wide(interval, a.interval, b.interval)
            left, right = a.as_(kind), b.as_(kind)
            if op != "-" and a.number is None and b.number is None:  # so that equal expressions are equal text: see comparisons
                left, right = sorted((left, right))
            return _Int(f"({left} {op} {right})", kind, interval)
        if op in ("neg", "abs"):
            kind = _wide(interval, a.interval)
            return _Int(f"(-{a.as_(kind)})" if op == "neg" else f"spk_abs{kind[1:]}({a.as_(kind)})", kind, interval)
        if op in ("min", "max", "rem"):
            kind = _wide(interval, a.interval, b.interval)
            return _Int(f"spk_{op}{kind[1:]}({a.as_(kind)}, {b.as_(kind)})", kind, interval)
        kind = _wide(interval, a.interval)
        most = 30 if op == "<<" else 31
        if b.interval[1] > most:
            kind = "i64"
        name = {"<<": "shl", ">>": "sar", "rtz": "rtz"}[op]
        return _Int(f"spk_{name}{kind[1:]}({a.as_(kind)}, {b.as_('i32')})", kind, interval)

    def narrowing(self, expr: Call, a: _Int, interval: Interval) -> _Int:
        bits = expr.args[1]
        assert isinstance(bits, Num)
        n = int(bits.value)
        half = 1 << (n - 1)
        low = -half if expr.op == "wrap" else 1 - half
        if low <= a.interval[0] and a.interval[1] < half:
            return a
        kind = "i16" if expr.op == "clip" and a.kind == "i16" else "i32" if n < 32 and fits32(a.interval) else "i64"
        op, second = expr.op, str(n)
        if op == "clip":  # one comparison where only one end can be passed
            op = "min" if low <= a.interval[0] else "max" if a.interval[1] < half else "clip"
            second = literal(low if op == "max" else half - 1, kind)
        return _Int(f"spk_{op}{kind[1:]}({a.as_(kind)}, {second})", kind, interval)

    def scaled(self, expr: Call, index: int, interval: Interval) -> _Int | None:
        """A product shifted right whose product alone needs 64 bits, in 32."""
        product, bits = expr.args
        if not (isinstance(product, Call) and product.op == "*" and isinstance(bits, Num)):
            return None
        whole = self.ranges.values[index, product]
        n = int(bits.value)
        if (fits32(whole) and not self.shifts) or not fits32(interval) or not 1 <= n <= 30:
            return None
        pair = [self.expr(arg, index) for arg in product.args]
        for x, k in (pair, pair[::-1]):
            low, high = k.interval
            if expr.op == ">>" and k.number == (1 << n) - 1 and fits32((x.interval[0], x.interval[1] + k.number)):
                return _Int(self.decayed(x, n), "i32", interval)
            if not fits32(whole) and low >= 0 and ((1 << n) - 1) * high < 1 << 32 and fits32(x.interval) and fits32(k.interval):
                return _Int(self.product("rtz" if expr.op == "rtz" else "sar", x, k, n), "i32", interval)
        return None

    def decayed(self, x: _Int, n: int) -> str:
        """floor(x * (2^n - 1) / 2^n) = x - ceil(x / 2^n)."""
        text = x.as_("i32")
        return f"({text} - spk_sar32({text} + {(1 << n) - 1}, {n}))"

    def product(self, op: str, x: _Int, k: _Int, n: int) -> str:
        """The text of a product shifted right, in 32 bits."""
        return f"spk_mul_{op}32({x.as_('i32')}, {k.as_('i32')}, {n})"

    def select(self, expr: Call, index: int, interval: Interval) -> _Int:
        condition = self.expr(expr.args[0], index)
        if condition.number is not None:
            chosen = self.expr(expr.args[1 if condition.number else 2], index)
            return _Int(chosen.text, chosen.kind, interval, chosen.number)
        yes, no = self.expr(expr.args[1], index), self.expr(expr.args[2], index)
        kind = "b" if yes.kind == no.kind == "b" else "i32" if fits32(interval) else "i64"
        if _short(interval, yes, no):
            kind = "i16"
        return _Int(f"({condition.text} ? {yes.as_(kind)} : {no.as_(kind)})", kind, interval)


def _short(interval: Interval, a: _Int, b: _Int) -> bool:
    """Whether an operation on two operands can be done in 16 bits: both are there in 16, or literals, and so is the result."""
    both = (a.kind == "i16" or a.number is not None) and (b.kind == "i16" or b.number is not None)
    held = all(_INT16[0] <= low and high <= _INT16[1] for low, high in (interval, a.interval, b.interval))
    return both and held and "i16" in (a.kind, b.kind)


def _wide(*intervals: Interval) -> str:
    return "i32" if all(fits32(interval) for interval in intervals) else "i64"


def integer_loop(
    program: Program,
    ranges: ProgramRanges,
    operands: Mapping[str, Operand],
    store: Callable[[str, str], str],
    merged: tuple[Expr, str] | None = None,
) -> Loop:
    """The body of a population's loop. `operands` holds inputs, parameters, states and `t`; `store(state, text)` writes one.

    `merged` is a sum of a state and an input that stands in the state's array when the loop begins.
    """
    writer = _IntLoop(program, ranges, operands, merged)
    states = set(program.state_names)
    changed: dict[str, _Int] = {}
    for index, statement in enumerate(program.body):
        found = writer.expr(statement.expr, index)
        truth = found.kind == "b" and statement.name not in states
        if found.number is None:
            kind = "b" if truth else "i16" if found.kind == "i16" else "i32" if fits32(found.interval) else "i64"
            local = writer.local(statement.name, kind, found.as_(kind))
            found = _Int(local, kind, found.interval)
        elif found.kind == "b" and not truth:
            found = _constant(found.number)
        writer.env[statement.name] = found
        if statement.name in states:
            changed[statement.name] = found
    emits = [writer.load(emit.name) for emit in program.emits]
    roots = {value.text for value in (*emits, *changed.values()) if value.number is None}
    lines = writer.needed(roots)
    lines += [store(name, value.text) for name, value in changed.items()]
    uses = {writer.sources[local] for local in roots if local in writer.sources} | set(changed)
    return Loop(lines, uses, [value.text for value in emits])


def added_to(program: Program, name: str) -> tuple[Expr, str] | None:
    """Where an input does nothing but get added to a state: the sum, and the state, whose value before is read nowhere else."""
    found: list[tuple[Call, str]] = []
    reads: dict[str, int] = dict.fromkeys((name, *program.state_names), 0)
    old = set(program.state_names)

    def walk(expr: Expr) -> None:
        if isinstance(expr, Var) and (expr.name == name or expr.name in old):
            reads[expr.name] += 1
        if isinstance(expr, Call):
            if expr.op == "+" and all(isinstance(arg, Var) for arg in expr.args):
                names = [arg.name for arg in expr.args if isinstance(arg, Var)]
                other = names[1 - names.index(name)] if name in names else ""
                if other in old:
                    found.append((expr, other))
            for arg in expr.args:
                walk(arg)

    for statement in program.body:
        walk(statement.expr)
        old.discard(statement.name)
    if len(found) != 1 or reads[name] != 1 or reads[found[0][1]] != 1 or found[0][1] in old:
        return None
    return found[0]


# -------------------------------------------------------------------------------------------------------------- vectors


class _VectorLoop(_IntLoop):
    """The same statements with the functions of spk_vector.h, for lanes of 16 or of 32 bits. Everything fits the lanes, or
    Unsupported is raised."""

    def __init__(
        self,
        program: Program,
        ranges: ProgramRanges,
        operands: Mapping[str, Operand],
        merged: tuple[Expr, str] | None,
        bits: int,
        shifts: bool = False,
    ) -> None:
        super().__init__(program, ranges, operands, merged)
        self.bits, self.kind, self.shifts = bits, f"i{bits}", shifts
        self.span = _INT16 if bits == 16 else _INT32
        self.clipped: dict[str, tuple[_Int, Interval]] = {}  # text -> what it was before it was clipped, and to what

    def local(self, name: str, kind: str, text: str) -> str:
        """Declare the next version of a variable."""
        version = self.versions.get(name, 0)
        self.versions[name] = version + 1
        local = f"{name}_{version}"
        c_type = f"spk_m{self.bits}" if kind == "b" else f"spk_x{self.bits}"
        self.lines.append(_Line(local, f"const {c_type} {local} = {text};", frozenset(_WORDS.findall(text))))
        return local

    def fitting(self, text: str, interval: Interval) -> _Int:
        """A result in a lane."""
        if not (self.span[0] <= interval[0] and interval[1] <= self.span[1]):
            raise Unsupported(f"a value beyond {self.bits} bits")
        return _Int(text, self.kind, interval)

    def lanes(self, value: _Int) -> str:
        """The text as a vector of numbers."""
        if value.number is not None:
            self.fitting("", value.interval)
            return f"spk_set{self.bits}({literal(value.number, 'i32')})"
        return f"spk_number{self.bits}({value.text})" if value.kind == "b" else value.text

    def truth(self, value: _Int) -> str:
        """The text as a truth value of each lane."""
        return f"spk_truth{self.bits}({int(value.number != 0)})" if value.number is not None else value.text

    def load(self, name: str) -> _Int:
        if name in self.env:
            return self.env[name]
        operand = self.operands[name]
        if operand.value is not None:
            return _constant(int(operand.value))
        kind = operand.stored or operand.kind
        if not operand.pointer or int(kind[1:]) > self.bits or (kind == "u16" and self.bits == 16):
            raise Unsupported("an operand wider than the lanes")
        text = f"spk_load{self.bits}_{kind}({operand.pointer} + i)"
        if operand.shift:
            text = f"spk_vshl{self.bits}({text}, {operand.shift})"
        local = self.local(name, self.kind, text)
        self.sources[local] = name
        found = self.env[name] = _Int(local, self.kind, self.span)
        return found

    def call(self, expr: Call, index: int, interval: Interval) -> _Int:
        op, w = expr.op, self.bits
        if op == "select":
            return self.select(expr, index, interval)
        if op in ("rtz", ">>") and (trick := self.scaled(expr, index, interval)):
            return trick
        args = [self.expr(arg, index) for arg in expr.args]
        a, b = args[0], args[-1]
        if op in LOGIC:
            texts = ", ".join(self.truth(arg) for arg in args)
            return _Int(f"spk_{op}{w}({texts})", "b", interval)
        if op in COMPARISONS:
            left, right = self.lanes(self.unclipped(op, a, b)), self.lanes(b)
            if left == right:
                return _constant(int(op in ("<=", ">=", "==")), "b")
            name = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}[op]
            return _Int(f"spk_{name}{w}({left}, {right})", "b", interval)
        if op in ("wrap", "clip"):
            return self.narrowing(expr, a, interval)
        if op in ("<<", ">>", "rtz"):
            if b.number is None or not 0 <= b.number < w:
                raise Unsupported("a shift that varies")
            if b.number == 0:
                return self.fitting(self.lanes(a), interval)
            name = {"<<": "vshl", ">>": "vsar", "rtz": "vrtz"}[op]
            return self.fitting(f"spk_{name}{w}({self.lanes(a)}, {b.number})", interval)
        if op in ("neg", "abs"):
            return self.fitting(f"spk_{'neg' if op == 'neg' else 'vabs'}{w}({self.lanes(a)})", interval)
        names = {"+": "add", "-": "sub", "*": "mul", "min": "vmin", "max": "vmax"}
        if op not in names:
            raise Unsupported(op)
        return self.fitting(f"spk_{names[op]}{w}({self.lanes(a)}, {self.lanes(b)})", interval)

    def narrowing(self, expr: Call, a: _Int, interval: Interval) -> _Int:
        bits = expr.args[1]
        assert isinstance(bits, Num)
        n, w, text = int(bits.value), self.bits, self.lanes(a)
        half = 1 << (n - 1)
        low = -half if expr.op == "wrap" else 1 - half
        if low <= a.interval[0] and a.interval[1] < half:
            return a
        if expr.op == "wrap":
            return self.fitting(f"spk_vwrap{w}({text}, {n})" if n < w else text, interval)
        if a.interval[1] >= half:
            text = f"spk_vmin{w}({text}, spk_set{w}({literal(half - 1, 'i32')}))"
        if a.interval[0] < low:
            text = f"spk_vmax{w}({text}, spk_set{w}({literal(low, 'i32')}))"
        self.clipped[text] = (a, (low, half - 1))
        return self.fitting(text, interval)

    def unclipped(self, op: str, a: _Int, b: _Int) -> _Int:
        """What to compare with b in the place of a: the number before it was clipped, where that changes nothing, so that the two
        do not wait for each other."""
        before, (low, high) = self.clipped.get(a.text, (a, (0, 0)))
        if before is a:
            return a
        above = low < b.interval[0] and b.interval[1] <= high  # a >= b where `before` >= b
        below = low <= b.interval[0] and b.interval[1] < high  # a > b where `before` > b
        held = {">=": above, "<": above, ">": below, "<=": below}.get(op, above and below)
        return before if held else a

    def scaled(self, expr: Call, index: int, interval: Interval) -> _Int | None:
        return super().scaled(expr, index, interval) if self.bits == 32 else None

    def decayed(self, x: _Int, n: int) -> str:
        text = self.lanes(x)
        return f"spk_sub32({text}, spk_vsar32(spk_add32({text}, spk_set32({(1 << n) - 1})), {n}))"

    def product(self, op: str, x: _Int, k: _Int, n: int) -> str:
        return f"spk_vmul_{op}32({self.lanes(x)}, {self.lanes(k)}, {n})"

    def select(self, expr: Call, index: int, interval: Interval) -> _Int:
        condition = self.expr(expr.args[0], index)
        if condition.number is not None:
            chosen = self.expr(expr.args[1 if condition.number else 2], index)
            return _Int(chosen.text, chosen.kind, interval, chosen.number)
        yes, no = self.expr(expr.args[1], index), self.expr(expr.args[2], index)
        if yes.kind == no.kind == "b":
            raise Unsupported("a selection between truth values")
        if yes.number == 0:
            return self.fitting(f"spk_unless{self.bits}({self.truth(condition)}, {self.lanes(no)})", interval)
        return self.fitting(f"spk_select{self.bits}({self.truth(condition)}, {self.lanes(yes)}, {self.lanes(no)})", interval)


@dataclass
class Lanes:
    """A loop's body for vectors: lines, the truth values emitted, and the width of a lane in bits."""

    lines: list[str]
    emits: list[str]
    bits: int


def vector_loop(
    program: Program,
    ranges: ProgramRanges,
    operands: Mapping[str, Operand],
    kinds: Mapping[str, str],
    merged: tuple[Expr, str] | None = None,
    *,
    shifts: bool = False,
) -> Lanes | None:
    """The body in vectors, of the narrowest lanes that hold everything; None where that is not possible. `kinds` are the types
    that states are kept in; every emission is a truth value. `shifts`: a decay by 2^-n without a product, which takes longer
    where a state is in a register from step to step."""
    for bits in (16, 32):
        try:
            return _vector_body(_VectorLoop(program, ranges, operands, merged, bits, shifts), kinds)
        except Unsupported:
            continue
    return None


def _vector_body(writer: _VectorLoop, kinds: Mapping[str, str]) -> Lanes:
    program, bits = writer.program, writer.bits
    changed: dict[str, _Int] = {}
    for index, statement in enumerate(program.body):
        found = writer.expr(statement.expr, index)
        truth = found.kind == "b" and statement.name not in kinds
        if found.number is None:
            text = found.text if truth else writer.lanes(found)
            local = writer.local(statement.name, "b" if truth else writer.kind, text)
            if text in writer.clipped:
                writer.clipped[local] = writer.clipped[text]
            found = _Int(local, "b" if truth else writer.kind, found.interval)
        elif found.kind == "b" and not truth:
            found = _constant(found.number)
        writer.env[statement.name] = found
        if statement.name in kinds:
            changed[statement.name] = found
    emits = [writer.load(emit.name) for emit in program.emits]
    if any(emit.kind != "b" for emit in emits):
        raise Unsupported("an emission that is no truth value")
    if any(int(kinds[name][1:]) > bits for name in changed):
        raise Unsupported("a state wider than the lanes")
    stores = [f"spk_store{bits}_{kinds[name]}(s_{name} + i, {writer.lanes(value)});" for name, value in changed.items()]
    texts = [writer.truth(emit) for emit in emits]
    roots = {value.text for value in (*emits, *changed.values()) if value.number is None}
    return Lanes([*writer.needed(roots), *stores], texts, bits)


# --------------------------------------------------------------------------------------------------------------- floats

_Weak = Literal["wi", "wf", "wb"]
_WEAK_C: Final = {"wi": "i64", "wf": "f64", "wb": "b"}


@dataclass(frozen=True)
class _Real:
    """C text and its type: "f32", "f64", "i64" and "b" vary over the population; "wi", "wf", "wb" are Python numbers that
    depend on the step only; `known` is a value that depends on nothing (a Python number or an array of parameters)."""

    text: str = ""
    kind: str = ""
    known: Any = None

    @property
    def sample(self) -> Any:
        """Something of the same type for NumPy to promote."""
        if self.known is not None:
            return self.known if not isinstance(self.known, np.ndarray) else np.ones(1, self.known.dtype)
        if self.kind in ("wi", "wf", "wb"):
            return {"wi": 1, "wf": 1.0, "wb": True}[self.kind]
        return np.ones(1, {"f32": np.float32, "f64": np.float64, "i64": np.int64, "b": np.bool_}[self.kind])


def _kind_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "b" if value.dtype == np.bool_ else short_dtype(value)
    return "wb" if isinstance(value, bool) else "wi" if isinstance(value, int) else "wf"


class _FloatLoop(_Writer):
    def __init__(self, program: Program, operands: Mapping[str, Operand]) -> None:
        super().__init__()
        self.program, self.operands = program, operands
        self.env: dict[str, _Real] = {}
        self.sources: dict[str, str] = {}
        self.tables: dict[str, Array] = {}

    def load(self, name: str) -> _Real:
        if name not in self.env:
            operand = self.operands[name]
            if operand.value is not None:
                self.env[name] = _Real(known=operand.value)
            elif name == STEP:
                self.env[name] = _Real(operand.text, "wi")
                self.sources[operand.text] = STEP
            else:
                kind = "f32" if operand.kind == "u8" else operand.kind
                text = f"(float){operand.text}" if operand.kind == "u8" else operand.text
                local = self.local(name, kind, text)
                self.sources[local] = name
                self.env[name] = _Real(local, kind)
        return self.env[name]

    def as_(self, value: _Real, kind: str) -> str:
        """The text as another type, as NumPy converts."""
        if value.known is not None:
            if not isinstance(value.known, np.ndarray):
                return literal(np.float32(value.known) if kind == "f32" else value.known, kind)
            return f"({C_TYPES[kind]}){self.table(value.known)}"
        if _WEAK_C.get(value.kind, value.kind) == kind:
            return value.text
        return f"({C_TYPES[kind]}){value.text}"

    def table(self, array: Array) -> str:
        """A parameter array, or its one value."""
        if array.size and bool(np.all(array == array.flat[0])):
            return literal(array.flat[0], short_dtype(array) if array.dtype.kind == "f" else "i64")
        known = [name for name, found in self.tables.items() if found is array]
        name = known[0] if known else f"table{len(self.tables)}"
        self.tables[name] = array
        return f"@{name}@"

    def expr(self, expr: Expr) -> _Real:
        if isinstance(expr, Num):
            return _Real(known=expr.value)
        if isinstance(expr, Var):
            return self.load(expr.name)
        assert isinstance(expr, Call)
        args = [self.expr(arg) for arg in expr.args]
        names = [f"a{i}" for i in range(len(args))]
        probe = Call(expr.op, tuple(Var(name) for name in names))
        with np.errstate(all="ignore"):
            if all(arg.known is not None for arg in args):
                values = {name: arg.known for name, arg in zip(names, args, strict=True)}
                result = evaluate(probe, values, float_truth)
                return _Real(known=np.array(result) if isinstance(result, np.ndarray) else result)
            if expr.op == "select" and isinstance(args[0].known, bool):
                return args[1 if args[0].known else 2]
            kind = _kind_of(evaluate(probe, {n: a.sample for n, a in zip(names, args, strict=True)}, float_truth))
        return self.call(expr.op, args, kind)

    def call(self, op: str, args: list[_Real], kind: str) -> _Real:
        c_kind = _WEAK_C.get(kind, kind)
        if op == "exp":
            raise Unsupported("exp of anything but parameters")
        if op == "select":
            if args[0].kind == "wb" and _shape_kind(args[1]) != _shape_kind(args[2]):
                # Which of the two types the result has depends on the step.
                varying = args[1] if args[1].kind not in _WEAK_C and args[1].known is None else args[2]
                kind = c_kind = varying.kind
                if kind not in ("f32", "f64"):
                    raise Unsupported("a selection by the step between a number and a truth value")
            condition = self.as_(args[0], "b")
            return _Real(f"({condition} ? {self.as_(args[1], c_kind)} : {self.as_(args[2], c_kind)})", kind)
        if op in LOGIC:
            texts = [self.as_(arg, "b") for arg in args]
            text = f"(!{texts[0]})" if op == "not" else f"({texts[0]} {'&' if op == 'and' else '|'} {texts[1]})"
            return _Real(text, kind)
        if op in COMPARISONS:
            with np.errstate(all="ignore"):
                both = evaluate(Call("+", (Var("a"), Var("b"))), {"a": args[0].sample, "b": args[1].sample}, float_truth)
            operand = _kind_of(both)
            operand = _WEAK_C.get(operand, operand)
            left, right = (self.as_(arg, operand) for arg in args)
            if left == right or (op in ("==", "!=") and operand in ("f32", "f64")):
                if operand in ("f32", "f64"):
                    if op in ("<", ">", "<=", ">=") and left == right:
                        return _Real("0" if op in ("<", ">") else f"spk_eq{_suffix(operand)}({left}, {right})", kind)
                    return _Real(f"spk_{'eq' if op == '==' else 'ne'}{_suffix(operand)}({left}, {right})", kind)
                return _Real(str(int(op in ("<=", ">=", "=="))), kind)
            return _Real(f"({left} {op} {right})", kind)
        texts = [self.as_(arg, c_kind) for arg in args]
        if op in ("+", "-", "*", "/"):
            return _Real(f"({texts[0]} {op} {texts[1]})", kind)
        if op == "neg":
            return _Real(f"(-{texts[0]})", kind)
        if op in ("floor", "round") and c_kind == "i64":
            return _Real(texts[0], kind)
        return _Real(f"spk_{op}{_suffix(c_kind)}({', '.join(texts)})", kind)


def _shape_kind(value: _Real) -> str:
    """Whether a value varies over the population, and its type if so."""
    if value.known is not None:
        return short_dtype(value.known) if isinstance(value.known, np.ndarray) else "weak"
    return "weak" if value.kind in _WEAK_C else value.kind


def _suffix(kind: str) -> str:
    return {"f32": "f", "f64": "d", "i64": "64", "i32": "32"}[kind]


def float_loop(
    program: Program,
    operands: Mapping[str, Operand],
    states: Mapping[str, str],
    store: Callable[[str, str], str],
    emitted: list[str],
) -> Loop:
    """As `integer_loop`; `states` and `emitted` give the types in which states are kept and values sent."""
    writer = _FloatLoop(program, operands)
    changed: dict[str, str] = {}
    for statement in program.body:
        found = writer.expr(statement.expr)
        is_state = statement.name in states
        if is_state and _is_truth(found):
            found = _Real(writer.as_(found, "f32"), "f32") if found.known is None else _Real(known=float_truth(found.known))
        if found.known is None:
            c_kind = _WEAK_C.get(found.kind, found.kind)
            local = writer.local(statement.name, c_kind, found.text)
            found = _Real(local, found.kind)
        writer.env[statement.name] = found
        if is_state:
            changed[statement.name] = statement.name
    texts: dict[str, str] = {}
    for name in changed:
        found = writer.env[name]
        texts[name] = writer.local(f"next_{name}", states[name], writer.as_(found, states[name]))
        writer.env[name] = _Real(texts[name], states[name])
    emits = []
    for emit, kind in zip(program.emits, emitted, strict=True):
        found = writer.load(emit.name)
        emits.append(
            writer.local(f"emit_{emit.name}", "b" if kind == "u8" else kind, writer.as_(found, "b" if kind == "u8" else kind))
        )
    roots = {*emits, *texts.values()}
    lines = writer.needed(roots)
    lines += [store(name, text) for name, text in texts.items()]
    uses = {writer.sources[local] for local in roots if local in writer.sources} | set(changed)
    tables = {name: array for name, array in writer.tables.items() if f"@{name}" in roots}
    return Loop(lines, uses, emits, tables)


def _is_truth(value: _Real) -> bool:
    if value.known is not None:
        return isinstance(value.known, bool) or getattr(value.known, "dtype", None) == np.bool_
    return value.kind in ("b", "wb")
