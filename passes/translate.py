"""One population's program into integers, expression by expression.

A variable that is an amount is held at the weights' scale with some fraction bits more, a pure number with fraction bits of its
own; a factor becomes an integer and a shift. What rounding costs is kept in `errors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.algebra import Match, match
from spikec.ir.interpret import evaluate, float_truth
from spikec.ir.neuron import COMPARISONS, LOGIC, STEP, Assign, Call, Expr, Num, Program, State, Var, call
from spikec.ir.ops import Neuron
from spikec.ir.text import parse_program
from spikec.ir.types import Array, integers
from spikec.ledger import Ledger
from spikec.passes.units import is_constant, is_truth

#: States saturate here, so that state * factor >> shift can be done in 32 bits; and so that a state and a sum of a few
#: thousand weights can be added in 16.
STATE_BITS: Final = 30
NARROW_BITS: Final = 15
#: Fraction bits of a factor, at most; and of a pure number.
FACTOR_BITS: Final = 15
NUMBER_BITS: Final = 16
#: Fraction bits of an amount on top of the weights' scale, at most.
FRACTION_BITS: Final = 12

Scaled = tuple[Expr, float]


class Widths(NamedTuple):
    """Bits of a state, and of one that needs no fraction; fraction bits of a factor and of a pure number."""

    state: int = STATE_BITS
    whole: int = STATE_BITS
    factor: int = FACTOR_BITS
    number: int = NUMBER_BITS


def translate(
    node: Neuron,
    units: Mapping[str, int],
    operands: Mapping[str, float],
    biases: Mapping[str, Array],
    scale: float,
    largest: float,
    widths: Widths,
) -> tuple[Neuron, Translator]:
    """A population in integers, and the translator with its scales and errors (see there for the arguments). largest: what amounts
    hardly exceed (see `largest_amount`), 0 if that is unknown.

    Without factors, constants that are whole at the weights' scale need no fraction bits, and whole numbers none either.
    """
    translator = Translator(node, units, operands, biases, scale, 0, widths.whole, widths.factor, 0)
    result = translator.node()
    if translator.shifted or any(np.any(error) for _, error in translator.errors):
        fraction = fraction_bits(largest, scale, widths.state)
        translator = Translator(node, units, operands, biases, scale, fraction, widths.state, widths.factor, widths.number)
        result = translator.node()
    return result, translator


def largest_amount(node: Neuron, records: Mapping[str, Array] | None) -> float:
    """An amount that states hardly exceed: eight times what calibration shows, else sixteen times the threshold."""
    seen = [f"{node.name}.{e.name}" if i else node.name for i, e in enumerate(node.program.emits) if e.kind != "spike"]
    if records is not None and seen:
        return max(8 * float(np.max(np.abs(records[name]), initial=0.0)) for name in seen)
    compared = [np.asarray(node.params[name]) for name in sorted(_compared(node.program))]
    return max((16 * float(np.max(np.abs(a[np.isfinite(a)]), initial=0.0)) for a in compared), default=0.0)


def thresholds(node: Neuron) -> Array | None:
    """What a population's amounts are compared with, by neuron; None where that is no parameter, or not above 0."""
    compared = [np.asarray(node.params[name], np.float64) for name in sorted(_compared(node.program))]
    positive = [array for array in compared if np.all(np.isfinite(array) & (array > 0))]
    return max(positive, key=lambda array: float(array.mean()), default=None)


def fraction_bits(largest: float, scale: float, bits: int = STATE_BITS) -> int:
    """Fraction bits that leave states of `bits` bits head-room, four times the largest amount that is expected."""
    room = (1 << (bits - 1)) / (4 * largest * scale or 1.0)
    return min(FRACTION_BITS, math.floor(math.log2(room)))


def divisor(expr: Expr, node: Neuron) -> tuple[Expr, float] | None:
    """The dividend and the divisor of a quotient by one positive number that is the same for all neurons."""
    if not (isinstance(expr, Call) and expr.op == "/" and is_constant(expr.args[1], set(node.program.params))):
        return None
    env = {k: (v.item() if v.size == 1 else v.astype(np.float64)) for k, v in node.params.items()}
    value = np.asarray(evaluate(expr.args[1], env, float_truth), np.float64)
    return (expr.args[0], float(value.flat[0])) if value.size and (value == value.flat[0]).all() and value.flat[0] > 0 else None


def _is_count(expr: Expr, counts: Collection[str]) -> bool:
    if isinstance(expr, Var):
        return expr.name in counts
    if not isinstance(expr, Call):
        return False
    if expr.op in ("floor", "round"):
        return isinstance(expr.args[0], Call) and expr.args[0].op == "/"
    others = [arg for arg in (expr.args[1:] if expr.op == "select" else expr.args) if not _is_count(arg, counts)]
    whole = all(isinstance(arg, Num) and float(arg.value).is_integer() for arg in others)
    return expr.op in ("+", "-", "min", "max", "neg", "select") and whole and len(others) < len(expr.args) - (expr.op == "select")


def levels(node: Neuron) -> list[float]:
    """The distances of the levels that a program counts in its amounts, as in floor(v / threshold)."""
    found: list[float] = []

    def visit(expr: Expr) -> None:
        if isinstance(expr, Call):
            if expr.op in ("floor", "round") and (divided := divisor(expr.args[0], node)):
                found.append(divided[1])
            for arg in expr.args:
                visit(arg)

    for statement in node.program.body:
        visit(statement.expr)
    return found


def level_scale(scale: float, distance: float) -> float:
    """The nearest smaller scale at which levels of this distance lie a power of two apart, so that counting them is a shift."""
    return float(2.0 ** math.floor(math.log2(scale * distance)) / distance)


def leaves_less(node: Neuron) -> bool:
    """Whether a population takes off its membrane all that it counts, so that less than one level is left."""
    for left in ("u - n * drop", "select(n == 0, u, 0)"):
        params = "beta, per, drop" if "drop" in left else "beta, per"
        body = f"u = beta * v + a n = max(floor(u * per), 0) v = {left}"
        pattern = parse_program(f"neuron @counting(a) params({params}) state(v = 0) {{ {body} emit n: graded }}")
        found = match(node.program, node.params, pattern)
        if isinstance(found, Match) and np.allclose(found.params.get("drop", 1 / found.params["per"]) * found.params["per"], 1):
            return True
    return False


def _compared(program: Program) -> set[str]:
    """Parameters that occur in a comparison."""
    found: set[str] = set()

    def visit(expr: Expr, inside: bool) -> None:
        if isinstance(expr, Var) and inside:
            found.add(expr.name)
        if isinstance(expr, Call):
            for arg in expr.args:
                visit(arg, inside or expr.op in COMPARISONS)

    for statement in program.body:
        visit(statement.expr, False)
    return found & set(program.params)


@dataclass
class Translator:
    """One population's program into integers. Scales are real numbers: an integer n at scale s means n / s.

    units: from `infer_units`. operands: the scale of each input. biases: what is added to an input at every step. scale: the
    weights'; fraction: bits that amounts have on top of it. bits: width of a state; factor_bits, number_bits: fraction bits of a
    factor and of a pure number.
    """

    source: Neuron
    units: Mapping[str, int]
    operands: Mapping[str, float]
    biases: Mapping[str, Array]
    scale: float
    fraction: int
    bits: int = STATE_BITS
    factor_bits: int = FACTOR_BITS
    number_bits: int = NUMBER_BITS
    params: dict[str, Array] = field(default_factory=dict)
    errors: list[tuple[str, Array]] = field(default_factory=list)
    #: Whether some bits were shifted out.
    shifted: bool = False

    def node(self) -> Neuron:
        """The population in integers."""
        program = self.source.program
        body = []
        for statement in program.body:
            if is_truth(statement.expr, program) and statement.name not in program.state_names:
                expr = self.condition(statement.expr)
            else:
                expr = self.at(self.amount(statement.expr), self.scale_of(statement.name))
                if statement.name in program.state_names and _grows(statement.expr):
                    expr = call("clip", expr, self.bits)
                if statement.name in program.state_names and self._level is not None:
                    expr = Call("min", (expr, Num(self._level)))  # which it never exceeds: for the analysis of ranges
            body.append(Assign(statement.name, expr))
        states, init = [], {}
        for state in program.states:
            scale = self.scale_of(state.name)
            given = self.source.init.get(state.name)
            wanted = (np.asarray(state.init) if given is None else given).astype(np.float64) * scale
            begin = np.rint(wanted)
            if np.any(begin != wanted):
                self.errors.append((f"initial {state.name} to multiples of {1 / scale:.6g}", np.abs(begin - wanted) / scale))
            narrow = self.bits <= 16 and _clipped(state.name, body) and np.all(np.abs(begin) < 1 << (NARROW_BITS - 1))
            states.append(State(state.name, int(begin) if given is None else 0, "i16" if narrow else "i32"))
            if given is not None:
                init[state.name] = integers(begin)
        names = tuple(self.params)
        fixed = Program(f"{program.name}_{self.source.name}", program.inputs, names, tuple(states), tuple(body), program.emits)
        return replace(self.source, program=fixed, params=self.params, init=init, dtype="")

    def tell_rounding(self, made: Neuron, ledger: Ledger) -> None:
        """An entry where products of states are shifted, which rounds them at every step; one where nothing was rounded."""
        if not self.errors:
            ledger.record(made, "exact", "its program in integers")
        if made.program.operations() & {">>", "rtz"}:
            units = ", ".join(f"{name} to multiples of {1 / self.scale_of(name):.6g}" for name in made.program.state_names)
            ledger.record(made, "convention", f"rounded at every step: {units or 'products'}")

    def scale_of(self, name: str) -> float:
        """The scale at which a variable is held."""
        if name in self.operands:
            return self.operands[name]
        if name == STEP or name in self._counts:
            return 1.0
        return self.scale * 2.0**self.fraction if self.units.get(name, 0) else 2.0**self.number_bits

    @cached_property
    def _level(self) -> int | None:
        """The most that is left of a membrane whose levels are counted and taken off."""
        distances = levels(self.source)
        if not distances or not leaves_less(self.source):
            return None
        (state,) = self.source.program.state_names
        return round(self.scale_of(state) * distances[0]) - 1

    @cached_property
    def _counts(self) -> frozenset[str]:
        """Variables of a step that hold whole numbers: how many levels an amount has passed."""
        found: set[str] = set()
        program = self.source.program
        for statement in program.body:
            if statement.name not in program.state_names and _is_count(statement.expr, found):
                found.add(statement.name)
        again = {name for name in found if sum(s.name == name for s in program.body) > 1}
        return frozenset(found - again)

    def is_count(self, expr: Expr) -> bool:
        """Whether an expression is a whole number that was counted."""
        return _is_count(expr, self._counts)

    def value(self, expr: Expr) -> Array:
        """A constant expression as numbers."""
        env = {k: (v.item() if v.size == 1 and v.ndim <= 1 else v.astype(np.float64)) for k, v in self.source.params.items()}
        return np.asarray(evaluate(expr, env, float_truth), np.float64)

    def constant(self, expr: Expr) -> bool:
        """Whether an expression reads parameters and literals only."""
        return is_constant(expr, set(self.source.program.params))

    def is_amount(self, expr: Expr) -> bool:
        """Whether an expression is an amount, to be told from a pure number."""
        if isinstance(expr, Var):
            return bool(self.units.get(expr.name))
        if not isinstance(expr, Call) or is_truth(expr, self.source.program) or self.is_count(expr):
            return False
        operands = expr.args[1:] if expr.op == "select" else expr.args[:1] if expr.op in ("/", "rem") else expr.args
        return any(self.is_amount(arg) for arg in operands)

    def literal(self, wanted: Array, what: str, scale: float) -> Expr:
        """Whole numbers as a literal or a parameter."""
        whole = np.rint(wanted)
        whole = np.clip(np.where(np.isfinite(wanted), whole, np.sign(wanted) * 2.0**40), -(2.0**40), 2.0**40)
        self.errors.append((what, np.where(np.isfinite(wanted), np.abs(whole - wanted), 0) / scale))
        return self.whole(whole)

    def whole(self, numbers: Array) -> Expr:
        """Integers as they are: a literal, or a parameter where they differ from neuron to neuron."""
        if numbers.size == 1 and numbers.ndim <= 1:
            return Num(int(numbers.item()))
        wide = np.abs(numbers).max(initial=0) >= 1 << 31
        array = numbers.astype(np.int64 if wide else np.int32)
        for name, known in self.params.items():
            if np.array_equal(known, array):
                return Var(name)
        taken = {*self.source.program.inputs, *self.source.program.state_names, *(s.name for s in self.source.program.body)}
        number = len(self.params)
        while f"k{number}" in taken:
            number += 1
        self.params[f"k{number}"] = array
        return Var(f"k{number}")

    def at(self, scaled: Scaled, scale: float) -> Expr:
        """The same amount at another scale: a shift where the scales differ by a power of two, else a factor and a shift."""
        expr, own = scaled
        if isinstance(expr, Num):
            return self.literal(np.asarray(expr.value * (scale / own)), f"constants to multiples of {1 / scale:.6g}", scale)
        ratio = math.log2(scale / own)
        shift = round(ratio)
        if shift > _FARTHEST:
            raise CompileError(
                "SPK203",
                f"%{self.source.name}: what it reads is 2^{shift} times finer than what it holds, and no integer has so many bits",
                loc=self.source.loc,
                fix="the weights in front of it are far too small for its threshold or bias: train or scale them",
            )
        if abs(ratio - shift) < 1e-12:
            self.shifted |= shift < 0
            return call("<<", expr, shift) if shift > 0 else call(">>", expr, -shift) if shift < 0 else expr
        self.shifted = True
        bits = max(0, self.factor_bits - max(0, math.ceil(ratio)))
        k = self.literal(np.asarray(scale / own * 2.0**bits), "factors between scales", 2.0**bits)
        product = Call("*", (expr, k))
        return call(">>", product, bits) if bits else product

    def refuse(self, why: str) -> CompileError:
        """The error for what has no integer form."""
        return CompileError(
            "SPK202",
            f"%{self.source.name}: @{self.source.program.name} {why}",
            loc=self.source.loc,
            fix="write the neuron without it, or compile for host or reference without --bits",
        )

    def amount(self, expr: Expr) -> Scaled:
        """An expression of numbers, with its scale."""
        if self.constant(expr):
            scale = 2.0**self.number_bits
            return self.literal(self.value(expr) * scale, f"constants to {self.number_bits} fraction bits", scale), scale
        if isinstance(expr, Var):
            if is_truth(expr, self.source.program):
                return call("select", expr, 1, 0), 1.0
            if expr.name in self.biases:
                return self._biased(expr)
            return expr, self.scale_of(expr.name)
        assert isinstance(expr, Call)
        if is_truth(expr, self.source.program):
            return call("select", self.condition(expr), 1, 0), 1.0
        rule: Callable[..., Scaled] | None = {
            "+": self._sum,
            "-": self._sum,
            "min": self._sum,
            "max": self._sum,
            "*": self._product,
            "/": self._quotient,
            "select": self._select,
            "neg": self._unary,
            "abs": self._unary,
            "floor": self._floor,
            "round": self._floor,
            "rem": self._sum,
        }.get(expr.op)
        if rule is None:
            raise self.refuse(f"uses '{expr.op}', which has no integer form")
        return rule(expr)

    def _biased(self, expr: Var) -> Scaled:
        """A synaptic sum and the bias of the layers behind it, at the state's resolution."""
        scale = self.operands[expr.name] * 2.0**self.fraction
        bias = self.literal(self.biases[expr.name] * scale, f"bias to multiples of {1 / scale:.6g}", scale)
        return Call("+", (self.at((expr, self.operands[expr.name]), scale), bias)), scale

    def _common(self, *exprs: Expr, what: str) -> tuple[list[Expr], float]:
        """Operands at one scale: the finest that an amount among them has, else a number; constants follow."""
        parts: list[Scaled | None] = [None if self.constant(e) else self.amount(e) for e in exprs]
        known = [part[1] for part in parts if part is not None]
        amounts = [scale for scale in known if math.log2(scale / self.scale) % 1 == 0]
        scale = max(amounts or known, default=2.0**self.number_bits)
        finest = self.scale * 2.0**self.fraction
        values = [self.value(e) for e, part in zip(exprs, parts, strict=True) if part is None]
        if amounts and scale < finest and not all(_whole(v * scale) for v in values):
            scale = finest  # a constant beside a synaptic sum, such as a bias
        result = []
        for expr, part in zip(exprs, parts, strict=True):
            if part is None:
                result.append(self.literal(self.value(expr) * scale, f"{what} to multiples of {1 / scale:.6g}", scale))
            else:
                result.append(self.at(part, scale))
        return result, scale

    def _sum(self, expr: Call) -> Scaled:
        (left, right), scale = self._common(*expr.args, what="constants")
        return Call(expr.op, (left, right)), scale

    def _unary(self, expr: Call) -> Scaled:
        inner, scale = self.amount(expr.args[0])
        return Call(expr.op, (inner,)), scale

    def _floor(self, expr: Call) -> Scaled:
        (operand,) = expr.args
        if divided := divisor(operand, self.source):
            inner, scale = self.amount(divided[0])
            scale *= divided[1]  # n / s over c is n / (s c)
        else:
            inner, scale = self.amount(operand)
        bits = math.log2(scale)
        if abs(bits - round(bits)) > 1e-9 or bits < 0:
            raise self.refuse(f"uses '{expr.op}' of an amount, whose scale is not a power of two")
        if expr.op == "round" and bits >= 1:
            inner = Call("+", (inner, Num(1 << (round(bits) - 1))))
        return call(">>", inner, round(bits)) if bits else inner, 1.0

    def _select(self, expr: Call) -> Scaled:
        condition, yes, no = expr.args
        (a, b), scale = self._common(yes, no, what="constants")
        return Call("select", (self.condition(condition), a, b)), scale

    def _product(self, expr: Call) -> Scaled:
        left, right = expr.args
        for condition, other in ((left, right), (right, left)):
            if is_truth(condition, self.source.program):
                if self.constant(other):
                    wanted = self._constant_scale(expr)
                    value = self.literal(self.value(other) * wanted, f"constants to multiples of {1 / wanted:.6g}", wanted)
                    return call("select", self.condition(condition), value, 0), wanted
                inner, scale = self.amount(other)
                return call("select", self.condition(condition), inner, 0), scale
        for factor, other in ((left, right), (right, left)):
            if self.constant(factor):
                given = self.value(factor)
                if self.is_count(other) and given.size == 1 and given.item() > 0:
                    inner, own = self.amount(other)
                    return inner, own / given.item()  # n counts of c are n at the scale 1 / c
                return self._times(other, given)
        if self.is_amount(right):
            left, right = right, left
        (a, one), (b, two) = self.amount(left), self.amount(right)
        if self.is_amount(right):
            return self._square(Call("*", (a, b)), two), one
        bits = math.log2(two)
        product = Call("*", (a, b))
        self.shifted |= bits > 0
        return (call(">>", product, round(bits)) if bits > 0 else product), one

    def _square(self, product: Expr, scale: float) -> Expr:
        """A product of two amounts, brought back to the scale of one: divided by the other's scale, through a factor."""
        self.shifted = True
        exponent = math.floor(math.log2(scale))
        factor = 2.0**self.factor_bits / (scale / 2.0**exponent)
        k = self.literal(np.asarray(factor), "factors between scales", 2.0**self.factor_bits)
        bits = self.factor_bits + exponent
        early = min(max(0, 2 * self.bits + self.factor_bits + 4 - 62), max(bits, 0))  # the product with k fits 64 bits
        shifted = call(">>", product, early) if early else product
        return call(">>", Call("*", (shifted, k)), bits - early) if bits > early else Call("*", (shifted, k))

    def _constant_scale(self, expr: Expr) -> float:
        """The scale for a constant that only a truth value multiplies: the amounts', unless all is pure numbers."""
        return self.scale * 2.0**self.fraction if any(self.units.values()) else 2.0**self.number_bits

    def _quotient(self, expr: Call) -> Scaled:
        if not self.constant(expr.args[1]):
            raise self.refuse("divides by a variable")
        return self._times(expr.args[0], 1.0 / self.value(expr.args[1]))

    def _times(self, other: Expr, factor: Array) -> Scaled:
        """x * c as x * k >> n, with the fewest bits that are exact, else the most that stay in 32 bits."""
        inner, scale = self.amount(other)
        if np.all(factor == 1):
            return inner, scale
        if not np.all(np.isfinite(factor)):
            raise self.refuse("has a factor that is not finite")
        # A pure count (scale 1) has no fraction bits of its own to lose the product in.
        if scale == 1.0 and np.any(factor != np.rint(factor)):
            inner, scale = call("<<", inner, self.number_bits), 2.0**self.number_bits
        most = max(0, self.factor_bits - max(0, math.frexp(float(np.max(np.abs(factor))))[1] - 1))
        bits = next((n for n in range(most + 1) if np.all(factor * 2.0**n == np.rint(factor * 2.0**n))), most)
        k = self.literal(factor * 2.0**bits, f"factors to multiples of 1/{1 << bits}", 2.0**bits)
        product = Call("*", (inner, k))
        self.shifted |= bits > 0
        return (call(">>", product, bits) if bits else product), scale

    def condition(self, expr: Expr) -> Expr:
        """An expression of truth values. A constant on one side of a comparison is rounded so that nothing changes."""
        if isinstance(expr, Var):
            return expr
        assert isinstance(expr, Call)
        if expr.op in LOGIC:
            return Call(expr.op, tuple(self.condition(arg) for arg in expr.args))
        if expr.op == "select":
            return Call("select", tuple(self.condition(arg) for arg in expr.args))
        left, right = expr.args
        for variable, constant, op in ((left, right, expr.op), (right, left, _MIRRORED[expr.op])):
            if self.constant(constant) and not self.constant(variable):
                inner, scale = self.amount(variable)
                wanted = self.value(constant) * scale
                limit = 2.0**40
                wanted = np.clip(np.where(np.isnan(wanted), limit, wanted), -limit, limit)
                if op in (">", "<="):
                    return Call(op, (inner, self.whole(np.floor(wanted + 1e-9 * np.abs(wanted)))))
                if op in (">=", "<"):
                    return Call(op, (inner, self.whole(np.ceil(wanted - 1e-9 * np.abs(wanted)))))
                return Call(op, (inner, self.literal(wanted, "constants", scale)))
        (a, b), _ = self._common(left, right, what="constants")
        return Call(expr.op, (a, b))


def _whole(numbers: Array) -> bool:
    return bool(np.all(~np.isfinite(numbers) | (numbers == np.rint(numbers))))


def _clipped(state: str, body: list[Assign]) -> bool:
    """Whether nothing but a saturated value, a choice between such and zero, or a small literal is assigned to a state."""

    def small(expr: Expr) -> bool:
        if isinstance(expr, Num):
            return abs(expr.value) < 1 << (NARROW_BITS - 1)
        if isinstance(expr, Call) and expr.op == "select":
            return small(expr.args[1]) and small(expr.args[2])
        return expr == Var(state) or (isinstance(expr, Call) and expr.op == "clip")

    return all(small(statement.expr) for statement in body if statement.name == state)


#: A number cannot be shifted further and keep any of its bits in 64.
_FARTHEST: Final = 62
_MIRRORED: Final[dict[str, str]] = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


def _grows(expr: Expr) -> bool:
    """Whether an assignment can leave the range of what it reads: it adds or multiplies."""
    if not isinstance(expr, Call):
        return False
    return expr.op in ("+", "-", "*", "/") or any(_grows(arg) for arg in expr.args)
