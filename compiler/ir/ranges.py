"""Worst-case intervals of every wire, state and expression of an integer graph.

Sound, by abstract interpretation: an interval holds every value that any input within bounds can produce. States and cycles
are found by iteration with widening to powers of two. The verifier uses it to prove that declared widths suffice, and
the C backend to choose its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.neuron import COMPARISONS, STEP, Call, Expr, Num, Program, Var, variables
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
from spikec.ir.types import Array, int_range

Interval = tuple[int, int]
Wire = tuple[str, str]
INT64: Interval = (-(1 << 63), (1 << 63) - 1)
#: A run is at most 2^31 steps long; the step counter's interval.
STEPS: Interval = (0, (1 << 31) - 1)
_TRUTH: Interval = (0, 1)
_EXACT_ROUNDS = 4


def hull(a: Interval, b: Interval) -> Interval:
    """The smallest interval that holds both."""
    return (min(a[0], b[0]), max(a[1], b[1]))


def of_array(array: Array) -> Interval:
    """Smallest and largest element; (0, 0) if there is none."""
    if not array.size:
        return (0, 0)
    return (int(array.min()), int(array.max()))


class Overflow(Exception):
    """An expression can leave int64; carries what and its interval."""

    def __init__(self, what: str, interval: Interval) -> None:
        super().__init__(f"{what} can reach {interval[0]} to {interval[1]}")


# ------------------------------------------------------------------------------------------------------- expressions


def _shift_left(a: Interval, b: Interval) -> Interval:
    _check_shift(b)
    corners = [x << n for x in a for n in b]
    return (min(corners), max(corners))


def _shift_right(a: Interval, b: Interval) -> Interval:
    _check_shift(b)
    corners = [x >> n for x in a for n in b]
    return (min(corners), max(corners))


def _check_shift(b: Interval) -> None:
    if b[0] < 0 or b[1] > 62:
        raise Overflow("a shift amount", b)


def _toward_zero(x: int, bits: int) -> int:
    return -(-x >> bits) if x < 0 else x >> bits


def _product(a: Interval, b: Interval) -> Interval:
    corners = [x * y for x in a for y in b]
    return (min(corners), max(corners))


def _absolute(a: Interval) -> Interval:
    low = 0 if a[0] <= 0 <= a[1] else min(abs(a[0]), abs(a[1]))
    return (low, max(abs(a[0]), abs(a[1])))


def _remainder(a: Interval, b: Interval) -> Interval:
    if b[0] <= 0 <= b[1]:
        raise Overflow("a divisor", b)
    if b[0] > 0:
        return a if a[0] >= 0 and a[1] < b[0] else (0, b[1] - 1)
    return (b[0] + 1, 0)


def _wrapped(a: Interval, bits: int) -> Interval:
    full = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return a if full[0] <= a[0] and a[1] <= full[1] else full


def _clipped(a: Interval, bits: int) -> Interval:
    limit = (1 << (bits - 1)) - 1
    return (min(max(a[0], -limit), limit), min(max(a[1], -limit), limit))


_RULES: dict[str, Callable[[Interval, Interval], Interval]] = {
    "+": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "-": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "*": _product,
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "<<": _shift_left,
    ">>": _shift_right,
    "rem": _remainder,
    "rtz": lambda a, b: (_toward_zero(a[0], b[0]), _toward_zero(a[1], b[0])),
    "wrap": lambda a, b: _wrapped(a, b[0]),
    "clip": lambda a, b: _clipped(a, b[0]),
}


@dataclass
class ProgramRanges:
    """States between steps, every expression by (statement, expression), variables at the end, emissions in order."""

    states: dict[str, Interval]
    values: dict[tuple[int, Expr], Interval] = field(default_factory=dict)
    final: dict[str, Interval] = field(default_factory=dict)


class _Evaluator:
    """One abstract pass over a program. Truth values are remembered as conditions, so that `select` can use them."""

    def __init__(self, program: Program, env: dict[str, Interval], out: dict[tuple[int, Expr], Interval] | None) -> None:
        self.env = env
        self.out = out
        self.known: dict[str, Expr] = {}
        for index, statement in enumerate(program.body):
            interval = self.eval(statement.expr, self.env, index)
            self.env[statement.name] = interval
            self.known = {k: e for k, e in self.known.items() if statement.name not in variables(e) and k != statement.name}
            if program.type_of(statement.name) == "bool" and statement.name not in variables(statement.expr):
                self.known[statement.name] = statement.expr

    def eval(self, expr: Expr, env: Mapping[str, Interval], index: int) -> Interval:
        result = self._eval(expr, env, index)
        if result[0] < INT64[0] or result[1] > INT64[1]:
            raise Overflow("an intermediate value", result)
        if self.out is not None:
            key = (index, expr)
            self.out[key] = hull(self.out[key], result) if key in self.out else result
        return result

    def _eval(self, expr: Expr, env: Mapping[str, Interval], index: int) -> Interval:
        if isinstance(expr, Num):
            return (int(expr.value), int(expr.value))
        if isinstance(expr, Var):
            return env[expr.name]
        assert isinstance(expr, Call)
        if expr.op == "select":
            condition, yes, no = expr.args
            test = self.eval(condition, env, index)
            parts = []
            for branch, truth, possible in ((yes, True, test[1] == 1), (no, False, test[0] == 0)):
                narrowed = self.refine(condition, truth, dict(env)) if possible else None
                # A branch that cannot be taken is still compiled; its expressions get the unrefined interval.
                value = self.eval(branch, env if narrowed is None else narrowed, index)
                if narrowed is not None:
                    parts.append(value)
            if not parts:
                raise Overflow("an empty selection", test)
            return parts[0] if len(parts) == 1 else hull(parts[0], parts[1])
        args = [self.eval(arg, env, index) for arg in expr.args]
        if expr.op in COMPARISONS:
            return _compare(expr.op, args[0], args[1])
        if expr.op == "neg":
            return (-args[0][1], -args[0][0])
        if expr.op == "abs":
            return _absolute(args[0])
        if expr.op == "not":
            return (1 - args[0][1], 1 - args[0][0])
        if expr.op == "and":
            return (min(args[0][0], args[1][0]), min(args[0][1], args[1][1]))
        if expr.op == "or":
            return (max(args[0][0], args[1][0]), max(args[0][1], args[1][1]))
        return _RULES[expr.op](args[0], args[1])

    def refine(self, condition: Expr, truth: bool, env: dict[str, Interval]) -> dict[str, Interval] | None:
        """What is known of the variables where a condition holds (or fails); None if that cannot happen."""
        if isinstance(condition, Var):
            if condition.name in self.known:
                return self.refine(self.known[condition.name], truth, env)
            return env
        if not isinstance(condition, Call):
            return env
        if condition.op == "not":
            return self.refine(condition.args[0], not truth, env)
        if (condition.op, truth) in (("and", True), ("or", False)):
            for part in condition.args:
                narrowed = self.refine(part, truth, env)
                if narrowed is None:
                    return None
                env = narrowed
            return env
        if condition.op not in COMPARISONS:
            return env
        op = condition.op if truth else _NEGATED[condition.op]
        left, right = condition.args
        for target, other, relation in ((left, right, op), (right, left, _MIRRORED[op])):
            if isinstance(target, Var):
                bound = self._eval(other, env, -1) if not isinstance(other, Var) else env[other.name]
                low, high = env[target.name]
                if relation in ("<", "<=", "=="):
                    high = min(high, bound[1] - (relation == "<"))
                if relation in (">", ">=", "=="):
                    low = max(low, bound[0] + (relation == ">"))
                if low > high:
                    return None
                env[target.name] = (low, high)
        return env


_NEGATED = {"<": ">=", ">=": "<", ">": "<=", "<=": ">", "==": "!=", "!=": "=="}
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


def _compare(op: str, a: Interval, b: Interval) -> Interval:
    always = {
        "<": a[1] < b[0],
        "<=": a[1] <= b[0],
        ">": a[0] > b[1],
        ">=": a[0] >= b[1],
        "==": a[0] == a[1] == b[0] == b[1],
        "!=": a[1] < b[0] or a[0] > b[1],
    }
    if always[op]:
        return (1, 1)
    return (0, 0) if always[_NEGATED[op]] else _TRUTH


def _widen(old: Interval, new: Interval) -> Interval:
    """Grow to the next power of two beyond, so that iteration ends."""
    low, high = new
    if low < old[0]:
        low = -(1 << (-low - 1).bit_length()) if low < 0 else 0
    if high > old[1]:
        high = (1 << high.bit_length()) - 1 if high > 0 else 0
    return (low, high)


def _limit(values: list[int]) -> int | None:
    """Where the last three of a sequence lead to if its differences shrink geometrically (Aitken), and a little beyond."""
    if len(values) < 3:
        return None
    first, second = values[-2] - values[-3], values[-1] - values[-2]
    if not 0 < abs(second) < abs(first) or (first < 0) != (second < 0):
        return None
    rest = second * second // (abs(first) - abs(second))
    slack = rest // 64 + 64
    return values[-1] + (rest + slack if second > 0 else -rest - slack)


def _leap(past: Mapping[str, list[Interval]], states: Mapping[str, Interval]) -> dict[str, Interval]:
    """The first state that still grows goes to where its growth leads; those that follow it have to wait."""
    for name, history in past.items():
        if len(history) > 1 and history[-1] != history[-2]:
            low, high = (_limit([interval[side] for interval in history]) for side in (0, 1))
            old = states[name]
            new = (old[0] if low is None else min(old[0], low), old[1] if high is None else max(old[1], high))
            return {**states, name: new}
    return dict(states)


def program_ranges(
    program: Program, inputs: list[Interval], params: Mapping[str, Interval], init: Mapping[str, Interval], leaps: int = 0
) -> ProgramRanges:
    """Intervals of a program for given inputs. Raises Overflow where int64 does not suffice.

    leaps: how often the limit of a slow leak is guessed before states grow to powers of two, which may be twice too far. A guess
    is no more than a wider interval: what is returned is an invariant in any case.
    """
    states = dict(init)
    past: dict[str, list[Interval]] = {name: [] for name in states}

    def once(before: Mapping[str, Interval], out: dict[tuple[int, Expr], Interval] | None) -> dict[str, Interval]:
        env = {STEP: STEPS, **params, **before, **dict(zip(program.inputs, inputs, strict=True))}
        return _Evaluator(program, env, out).env

    for round_ in range(200):
        env = once(states, None)
        grown = {name: hull(states[name], env[name]) for name in states}
        if grown == states:
            break
        for name, history in past.items():
            history.append(grown[name])
        if round_ < _EXACT_ROUNDS * (1 + leaps):
            states = grown
            if leaps and round_ % _EXACT_ROUNDS == _EXACT_ROUNDS - 1:
                states = _leap(past, grown)
                past = {name: [] for name in states}
        else:
            states = {n: _widen(states[n], grown[n]) for n in states}
    else:
        raise Overflow("a state", INT64)
    for _ in range(2 + 4 * leaps):  # widening went too far by up to a factor of two: any further pass is still an invariant
        env = once(states, None)
        states = {name: hull(init[name], env[name]) for name in states}
    result = ProgramRanges(states)
    result.final = once(states, result.values)
    return result


# ------------------------------------------------------------------------------------------------------------- wires


@dataclass
class Ranges:
    """Intervals of a graph: wires by (node, port), populations by node name."""

    wires: dict[Wire, Interval]
    neurons: dict[str, ProgramRanges]


def _weighted_range(weight: Array, axis_sum: Callable[[Array], Array], x: Interval, bias: Array | None) -> Interval:
    """Worst case of a sum of products over each target."""
    wide = weight.astype(object) if weight.dtype == np.int64 else weight.astype(np.int64)
    positive = axis_sum(np.maximum(wide, 0))
    negative = axis_sum(np.minimum(wide, 0))
    low = [int(p) * x[0] + int(n) * x[1] for p, n in zip(positive.ravel(), negative.ravel(), strict=True)]
    high = [int(p) * x[1] + int(n) * x[0] for p, n in zip(positive.ravel(), negative.ravel(), strict=True)]
    offsets = [int(b) for b in bias.ravel()] if bias is not None else [0] * len(low)
    if not low:
        return (0, 0)
    return (
        min(v + b for v, b in zip(low, offsets, strict=True)),
        max(v + b for v, b in zip(high, offsets, strict=True)),
    )


def _node_range(node: Node, operands: list[Interval], graph: Graph) -> Interval:
    if isinstance(node, Constant):
        return hull(of_array(node.value), (0, 0))
    if isinstance(node, Add):
        return (sum(o[0] for o in operands), sum(o[1] for o in operands))
    if isinstance(node, Concat):
        result = operands[0]
        for operand in operands[1:]:
            result = hull(result, operand)
        return result
    (x,) = operands
    # Padding and early steps bring zeros.
    zero = hull(x, (0, 0))
    if isinstance(node, Dense):
        return _weighted_range(node.weight, lambda w: w.sum(axis=1), zero, node.bias)
    if isinstance(node, Conv):
        return _weighted_range(node.weight, lambda w: w.sum(axis=tuple(range(1, w.ndim))), zero, node.bias)
    if isinstance(node, Sparse):

        def by_row(weight: Array) -> Array:
            total = np.zeros(len(node.indptr) - 1, weight.dtype)
            np.add.at(total, node.rows, weight)
            return total

        return _weighted_range(node.weight, by_row, zero, node.bias)
    if isinstance(node, (Reshape, Gather)):
        return x
    if isinstance(node, Pool):
        size = int(np.prod(node.kernel))
        return zero if node.mode == "max" else (zero[0] * size, zero[1] * size)
    assert isinstance(node, Scale)
    offset = of_array(node.offset) if node.offset is not None else (0, 0)
    low, high = _product(x, of_array(node.factor))
    return (low + offset[0], high + offset[1])


def input_range(node: Input) -> Interval:
    """What an input may hold: 0 and 1 for spikes, its bounds if declared, else its dtype's range."""
    if node.type.kind == "spike":
        return _TRUTH
    return node.bounds or int_range(node.type.dtype)


def initial_ranges(node: Neuron) -> dict[str, Interval]:
    """Intervals of a population's initial states."""
    given = {name: of_array(array) for name, array in node.init.items()}
    return {s.name: given.get(s.name, (int(s.init), int(s.init))) for s in node.program.states}


def neuron_ranges(node: Neuron, operands: list[Interval]) -> ProgramRanges:
    """Intervals of one population; SPK308 where int64 does not suffice or a state grows without bound."""
    params = {name: of_array(array) for name, array in node.params.items()}
    try:
        return program_ranges(node.program, operands, params, initial_ranges(node))
    except Overflow as error:
        node.fail(
            "SPK308",
            f"@{node.program.name}: {error}, which no 64-bit integer holds",
            fix="narrow the state with wrap(x, bits) or clip(x, bits)",
        )


def graph_ranges(graph: Graph) -> Ranges:
    """Worst-case intervals of a graph of integers. Raises CompileError SPK308."""
    wires: dict[Wire, Interval] = {}
    neurons: dict[str, ProgramRanges] = {}

    def operand(ref: Ref) -> Interval:
        interval = wires.get((ref.node, ref.port), (0, 0))
        if ref.delay:
            interval = hull(interval, (0, 0))
            if ref.init is not None:
                interval = hull(interval, of_array(ref.init))
        return interval

    for round_ in range(200):
        before = dict(wires)
        for node in graph.order:
            found: dict[Wire, Interval]
            operands = [operand(ref) for ref in node.inputs]
            if isinstance(node, Input):
                found = {(node.name, ""): input_range(node)}
            elif isinstance(node, Neuron):
                result = neuron_ranges(node, operands)
                neurons[node.name] = result
                found = {}
                for emit, (port, _) in zip(node.program.emits, graph.types[node.name], strict=True):
                    interval = _TRUTH if emit.kind == "spike" else result.final[emit.name]
                    found[node.name, port] = hull(interval, (0, 0)) if node.start or node.stop is not None else interval
            else:
                found = {(node.name, ""): _node_range(node, operands, graph)}
            for wire, interval in found.items():
                if wire in before and round_ >= _EXACT_ROUNDS:
                    interval = _widen(before[wire], hull(before[wire], interval))
                elif wire in before:
                    interval = hull(before[wire], interval)
                if interval[0] < INT64[0] or interval[1] > INT64[1]:
                    node.fail("SPK308", f"its value can reach {interval[0]} to {interval[1]}, beyond 64 bits")
                wires[wire] = interval
        if wires == before:
            break
    else:
        raise CompileError("SPK308", "no bounds were found for the values on a cycle", fix="narrow a state with wrap or clip")
    return Ranges(wires, neurons)
