"""What the variables of a neuron program are: amounts, which scale with its input like a membrane, or pure numbers."""

from __future__ import annotations

from collections.abc import Collection

from spikec.ir.graph import Graph
from spikec.ir.neuron import COMPARISONS, LOGIC, STEP, Call, Expr, Num, Program, Var, variables
from spikec.ir.ops import Neuron


def infer_units(node: Neuron, graph: Graph, amounts: Collection[str] = ()) -> dict[str, int]:
    """1 for variables that are amounts (they scale with the synaptic sum), 0 for pure numbers.

    What an amount is added to, compared with or assigned from is an amount; a constant factor may turn a number into an amount
    (a threshold of 0.1 + 1.8 b), so nothing is concluded through it except from amounts. What is left is a number. amounts: inputs
    that are amounts though no synaptic sums, as a membrane that another population sends.
    """
    program = node.program
    constants = set(program.params)
    units: dict[str, int] = {STEP: 0}
    for name, ref in zip(program.inputs, node.inputs, strict=True):
        units[name] = 1 if name in amounts or graph.type_of(ref).kind == "value" else 0
    for statement in program.body:
        if _flag(statement.expr, program):
            units.setdefault(statement.name, 0)

    def amount(expr: Expr) -> bool:
        """Whether an amount is in it."""
        if isinstance(expr, Var):
            return units.get(expr.name) == 1
        if not isinstance(expr, Call) or is_constant(expr, constants) or is_truth(expr, program):
            return False
        if expr.op in ("floor", "round") and isinstance(expr.args[0], Call) and expr.args[0].op == "/":
            return False  # how many levels an amount has passed
        operands = expr.args[1:] if expr.op == "select" else expr.args[:1] if expr.op in ("/", "rem") else expr.args
        return any(amount(arg) for arg in operands)

    def spread(expr: Expr) -> None:
        """What stands beside an amount, without a factor, is one too."""
        if isinstance(expr, Var):
            if not is_truth(expr, program) and expr.name not in constants:
                units.setdefault(expr.name, 1)
        elif isinstance(expr, Call) and not is_truth(expr, program):
            if expr.op in ("+", "-", "neg", "min", "max", "abs"):
                for arg in expr.args:
                    spread(arg)
            elif expr.op == "select":
                for arg in expr.args[1:]:
                    spread(arg)

    def comparisons(expr: Expr) -> None:
        if isinstance(expr, Call):
            if expr.op in COMPARISONS and any(amount(arg) for arg in expr.args):
                for arg in expr.args:
                    spread(arg)
            for arg in expr.args:
                comparisons(arg)

    before: dict[str, int] = {}
    while units != before:
        before = dict(units)
        for statement in program.body:
            comparisons(statement.expr)
            if amount(statement.expr):
                units.setdefault(statement.name, 1)
            if units.get(statement.name) == 1:
                spread(statement.expr)
    return {name: units.get(name, 0) for name in (STEP, *program.inputs, *program.state_names, *(s.name for s in program.body))}


def _flag(expr: Expr, program: Program) -> bool:
    """A truth value, or a choice between literals: it counts and does not scale."""
    if is_truth(expr, program):
        return True
    return isinstance(expr, Call) and expr.op == "select" and all(isinstance(arg, Num) for arg in expr.args[1:])


def is_constant(expr: Expr, constants: set[str]) -> bool:
    """Whether an expression reads none but these variables."""
    return all(name in constants for name in variables(expr))


def is_truth(expr: Expr, program: Program) -> bool:
    """Whether an expression of a program is a truth value."""
    if isinstance(expr, Var):
        return (
            expr.name not in (*program.inputs, *program.params, *program.state_names, STEP) and program.type_of(expr.name) == "bool"
        )
    if not isinstance(expr, Call):
        return False
    if expr.op == "select":
        return is_truth(expr.args[1], program) and is_truth(expr.args[2], program)
    return expr.op in COMPARISONS or expr.op in LOGIC
