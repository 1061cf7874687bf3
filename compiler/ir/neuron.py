"""Neurons are programs: a few assignments that every backend executes once a step (design §3.3).

The meaning of an expression is defined by `spikec.ir.interpret`; this module holds only the form: three kinds of
expression (`Num`, `Var`, `Call`), assignments, and `Program`. Expressions are built by the text parser or with Python's own
operators, which return `Call`s.
"""

from __future__ import annotations

import keyword
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from spikec.diagnostics import CompileError
from spikec.ir.types import DTYPES, Kind

#: Operation -> number of operands. The first group is written infix.
INFIX: Final = {
    "or": 1,
    "and": 2,
    "<": 4,
    "<=": 4,
    ">": 4,
    ">=": 4,
    "==": 4,
    "!=": 4,
    "<<": 5,
    ">>": 5,
    "+": 6,
    "-": 6,
    "*": 7,
    "/": 7,
}
PREFIX: Final = {"not": 3, "neg": 8}
FUNCTIONS: Final = {
    "select": 3,
    "abs": 1,
    "min": 2,
    "max": 2,
    "floor": 1,
    "round": 1,
    "rem": 2,
    "exp": 1,
    "wrap": 2,
    "clip": 2,
    "rtz": 2,
}
COMPARISONS: Final = frozenset({"<", "<=", ">", ">=", "==", "!="})
LOGIC: Final = frozenset({"and", "or", "not"})
#: Their second operand is a literal number of bits.
NARROWING: Final = frozenset({"wrap", "clip", "rtz"})
FLOAT_ONLY: Final = frozenset({"/", "floor", "round", "exp"})
FIXED_ONLY: Final = frozenset({"<<", ">>", "wrap", "clip", "rtz"})
#: Reads the step counter: 0 at the first step of a sample.
STEP: Final = "t"
RESERVED: Final = frozenset(
    {*FUNCTIONS, *LOGIC, STEP, "emit", "neuron", "params", "state", "inf", "nan", "init", "start", "lag", "dtype"}
)
WIDTH: Final = 80
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PROGRAM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*\Z")


class Expr:
    """An expression over a population; all operators build a `Call`, comparisons included."""

    __slots__ = ()

    def __add__(self, other: Operand) -> Call:
        return Call("+", (self, lift(other)))

    def __radd__(self, other: Operand) -> Call:
        return Call("+", (lift(other), self))

    def __sub__(self, other: Operand) -> Call:
        return Call("-", (self, lift(other)))

    def __rsub__(self, other: Operand) -> Call:
        return Call("-", (lift(other), self))

    def __mul__(self, other: Operand) -> Call:
        return Call("*", (self, lift(other)))

    def __rmul__(self, other: Operand) -> Call:
        return Call("*", (lift(other), self))

    def __truediv__(self, other: Operand) -> Call:
        return Call("/", (self, lift(other)))

    def __rtruediv__(self, other: Operand) -> Call:
        return Call("/", (lift(other), self))

    def __neg__(self) -> Call:
        return Call("neg", (self,))

    def __lt__(self, other: Operand) -> Call:
        return Call("<", (self, lift(other)))

    def __le__(self, other: Operand) -> Call:
        return Call("<=", (self, lift(other)))

    def __gt__(self, other: Operand) -> Call:
        return Call(">", (self, lift(other)))

    def __ge__(self, other: Operand) -> Call:
        return Call(">=", (self, lift(other)))

    def __lshift__(self, other: Operand) -> Call:
        return Call("<<", (self, lift(other)))

    def __rshift__(self, other: Operand) -> Call:
        return Call(">>", (self, lift(other)))

    def __and__(self, other: Operand) -> Call:
        return Call("and", (self, lift(other)))

    def __or__(self, other: Operand) -> Call:
        return Call("or", (self, lift(other)))

    def __invert__(self) -> Call:
        return Call("not", (self,))


Operand = Expr | int | float


@dataclass(frozen=True, slots=True)
class Num(Expr):
    """A literal; weak in promotion: it takes the dtype of what it meets."""

    value: int | float


@dataclass(frozen=True, slots=True)
class Var(Expr):
    """An input, parameter, state, earlier assignment, or the step counter `t`."""

    name: str


@dataclass(frozen=True, slots=True)
class Call(Expr):
    """An operation on operands; `op` is a key of INFIX, PREFIX or FUNCTIONS."""

    op: str
    args: tuple[Expr, ...]


def lift(value: Operand) -> Expr:
    """A Python number as a literal; an expression as it is."""
    return value if isinstance(value, Expr) else Num(value)


def call(op: str, *args: Operand) -> Call:
    """`call("select", s, 0, v)`: the operations that have no Python operator."""
    return Call(op, tuple(lift(arg) for arg in args))


def children(expr: Expr) -> tuple[Expr, ...]:
    """The operands of an expression."""
    return expr.args if isinstance(expr, Call) else ()


def variables(expr: Expr) -> Iterator[str]:
    """Every variable read, in reading order, repeats included."""
    if isinstance(expr, Var):
        yield expr.name
    for child in children(expr):
        yield from variables(child)


def substitute(expr: Expr, values: Mapping[str, Expr]) -> Expr:
    """Replace variables by expressions, all at once."""
    if isinstance(expr, Var):
        return values.get(expr.name, expr)
    if isinstance(expr, Call):
        return Call(expr.op, tuple(substitute(arg, values) for arg in expr.args))
    return expr


def number_text(value: int | float) -> str:
    """A literal that reads back as the same Python number."""
    if isinstance(value, float):
        return repr(value)
    return str(int(value))


def expr_text(expr: Expr, parent: int = 0) -> str:
    """The expression as `.sir` text, with the fewest parentheses that keep its shape."""
    if isinstance(expr, Num):
        return number_text(expr.value)
    if isinstance(expr, Var):
        return expr.name
    assert isinstance(expr, Call)
    if expr.op in INFIX:
        level = INFIX[expr.op]
        left, right = expr.args
        # Comparisons do not chain; the others group to the left.
        left_level = level + 1 if expr.op in COMPARISONS else level
        text = f"{expr_text(left, left_level)} {expr.op} {expr_text(right, level + 1)}"
    elif expr.op in PREFIX:
        level = PREFIX[expr.op]
        sign = "-" if expr.op == "neg" else "not "
        operand = expr.args[0]
        inner = expr_text(operand, level)
        # A literal's own sign must not merge with the operator's: `-(2)` is neg of 2, `-2` the literal.
        if expr.op == "neg" and isinstance(operand, Num):
            inner = f"({inner})"
        text = sign + inner
    else:
        return f"{expr.op}({', '.join(expr_text(arg) for arg in expr.args)})"
    return f"({text})" if level < parent else text


@dataclass(frozen=True, slots=True)
class Assign:
    """`name = expr`: to a state or to a local, which later statements read."""

    name: str
    expr: Expr


@dataclass(frozen=True, slots=True)
class State:
    """What survives from step to step. `dtype` is declared at the fixed level and empty at the float level."""

    name: str
    init: int | float = 0
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Emit:
    """An emitted variable and what it is sent as; the first emission is the node's main output."""

    name: str
    kind: Kind


ExprType = Literal["bool", "number"]


@dataclass(frozen=True)
class Program:
    """A neuron: `inputs` arrive each step, `params` are constants, `states` survive, `body` runs, `emits` leave.

    Raises CompileError SPK302 if a name is unknown, used before it is set, reserved or defined twice, if an
    operation has the wrong number of operands, or if a truth value stands where a number is meant or the other way round.
    Truth values in arithmetic count as 0 and 1.
    """

    name: str
    inputs: tuple[str, ...]
    params: tuple[str, ...]
    states: tuple[State, ...]
    body: tuple[Assign, ...]
    emits: tuple[Emit, ...]
    _types: Mapping[str, ExprType] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _PROGRAM_NAME.match(self.name):
            self._fail("a program's name consists of letters, digits, underscores and dots")
        names = [*self.inputs, *self.params, *(state.name for state in self.states)]
        for name in names:
            if not _NAME.match(name) or keyword.iskeyword(name) or name in RESERVED:
                self._fail(f"'{name}' cannot be used as a name")
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            self._fail(f"'{duplicates[0]}' is declared twice")
        for state in self.states:
            if state.dtype and state.dtype not in DTYPES:
                self._fail(f"state '{state.name}' has the unknown type '{state.dtype}'")
        types: dict[str, ExprType] = dict.fromkeys([*names, STEP], "number")
        fixed_names = {*self.inputs, *self.params, STEP}
        state_names = {state.name for state in self.states}
        for statement in self.body:
            kind = self._check(statement.expr, types)
            if statement.name in fixed_names:
                self._fail(f"'{statement.name}' is an input or a parameter and cannot be assigned")
            if not _NAME.match(statement.name) or statement.name in RESERVED or keyword.iskeyword(statement.name):
                self._fail(f"'{statement.name}' cannot be used as a name")
            types[statement.name] = "number" if statement.name in state_names else kind
        if not self.emits:
            self._fail("nothing is emitted")
        for emit in self.emits:
            if emit.name not in types or emit.name == STEP:
                self._fail(f"emits '{emit.name}', which is not set")
            if emit.kind == "spike" and types[emit.name] != "bool":
                self._fail(f"emits '{emit.name}' as a spike, but it is a number, not a truth value")
        if len({emit.name for emit in self.emits}) < len(self.emits):
            self._fail("emits a variable twice")
        object.__setattr__(self, "_types", types)

    def _fail(self, message: str) -> None:
        raise CompileError("SPK302", f"neuron @{self.name}: {message}")

    def _check(self, expr: Expr, types: Mapping[str, ExprType]) -> ExprType:
        if isinstance(expr, Num):
            return "number"
        if isinstance(expr, Var):
            if expr.name not in types:
                self._fail(f"'{expr.name}' is read before it is set")
            return types[expr.name]
        assert isinstance(expr, Call)
        count = 2 if expr.op in INFIX else 1 if expr.op in PREFIX else FUNCTIONS.get(expr.op)
        if count is None:
            self._fail(f"unknown operation '{expr.op}'")
        if len(expr.args) != count:
            self._fail(f"'{expr.op}' takes {count} operands, not {len(expr.args)}")
        kinds = [self._check(arg, types) for arg in expr.args]
        if expr.op in LOGIC:
            if "number" in kinds:
                self._fail(f"'{expr.op}' needs truth values, not numbers")
            return "bool"
        if expr.op == "select":
            if kinds[0] != "bool":
                self._fail("the first operand of 'select' must be a truth value")
            return "bool" if kinds[1] == kinds[2] == "bool" else "number"
        if expr.op in NARROWING:
            bits = expr.args[1]
            low = 0 if expr.op == "rtz" else 2
            if not isinstance(bits, Num) or not isinstance(bits.value, int) or not low <= bits.value <= 63:
                self._fail(f"the second operand of '{expr.op}' must be a literal number of bits, {low} to 63")
        return "bool" if expr.op in COMPARISONS else "number"

    @cached_property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states, in order."""
        return tuple(state.name for state in self.states)

    def type_of(self, name: str) -> ExprType:
        """Whether a variable holds truth values or numbers at the end of the program."""
        return self._types[name]

    def operations(self) -> set[str]:
        """Every operation used."""
        return {op for statement in self.body for op in _operations(statement.expr)}

    def text(self) -> str:
        """The program as `.sir` text, in 80 columns; line breaks mean nothing to the parser."""
        pieces = [f"neuron @{self.name}({', '.join(self.inputs)})"]
        if self.params:
            pieces.append(f"params({', '.join(self.params)})")
        if self.states:
            declared = (f"{s.name}{f': {s.dtype}' if s.dtype else ''} = {number_text(s.init)}" for s in self.states)
            pieces.append(f"state({', '.join(declared)})")
        if len(" ".join(pieces)) + 2 > WIDTH:
            lines = [*(pieces[:1]), *(f"    {piece}" for piece in pieces[1:])]
        else:
            lines = [" ".join(pieces)]
        lines[-1] += " {"
        for statement in self.body:
            lines += _folded(f"  {statement.name} = {expr_text(statement.expr)}")
        lines += _folded(f"  emit {', '.join(self._emit_text(emit) for emit in self.emits)}")
        return "\n".join([*lines, "}"])

    def _emit_text(self, emit: Emit) -> str:
        return emit.name if emit.kind == self.default_kind(emit.name) else f"{emit.name}: {emit.kind}"

    def default_kind(self, name: str) -> Kind:
        """What a variable is emitted as where the text does not say: truth values as spikes, numbers as values."""
        return "spike" if self._types[name] == "bool" else "value"

    def renamed(self, name: str) -> Program:
        """The same program under another name."""
        return Program(name, self.inputs, self.params, self.states, self.body, self.emits)


def _folded(line: str) -> list[str]:
    """A long line broken at spaces."""
    return textwrap.wrap(
        line, WIDTH, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def _operations(expr: Expr) -> Iterable[str]:
    if isinstance(expr, Call):
        yield expr.op
        for arg in expr.args:
            yield from _operations(arg)
