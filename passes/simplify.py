"""Simpler neurons, where calibration data show that the answers stay.

Two things are tried, population by population, each on top of what was kept before: a state less (an adapting threshold stays at
its initial value, which makes adaptive LIF neurons LIF; a synaptic current loses its memory and its weights are scaled by what it
gathered, 1 / (1 - decay), which makes CUBA neurons LIF), and one value for the whole population in place of one per neuron or
channel. A replacement stays if the loss of all that were kept, measured together, is within the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.neuron import Assign, Call, Expr, Num, Program, Var, substitute, variables
from spikec.ir.ops import Neuron, Node
from spikec.ir.rules import verify
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.costs import Judge, scaled_inputs
from spikec.passes.shorten import decays_of, linear_states


@dataclass(frozen=True)
class Simplify:
    """Replace neurons by cheaper ones within a loss budget. Takes and gives the float level; approximate, always asked for.

    simplify: the share of right answers (with labels) that may be lost, or of answers that may change.
    """

    simplify: float | None = None
    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    name: ClassVar[str] = "simplify"
    levels: ClassVar[tuple[str, ...]] = ("float",)
    #: Options that ask for this pass.
    asked_by: ClassVar[tuple[str, ...]] = ("simplify",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The graph with simpler neurons. Raises CompileError SPK001 for a budget out of range or without calibration data."""
        if self.simplify is None or not 0 <= self.simplify < 1:
            raise CompileError("SPK001", f"simplify is a share from 0 up to but without 1, not {self.simplify}")
        judge = Judge(graph, self.calibrate, self.labels, "--simplify")
        now = graph
        for name in [node.name for node in graph.neurons]:
            tried: set[str] = set()
            while found := next((one for one in _candidates(now, name) if one[0] not in tried), None):
                what, parts = found
                tried.add(what)
                best: tuple[dict[str, float], Graph] | None = None
                for changed in parts:
                    figures = judge.figures(changed)
                    if best is None or figures["loss"] < best[0]["loss"]:
                        best = figures, changed
                assert best is not None
                if best[0]["loss"] <= self.simplify:
                    now = best[1]
                    ledger.record(now[name], "approximation", what, asked=f"--simplify {self.simplify}", measured=best[0])
                else:
                    ledger.record(now[name], "convention", f"not done, it costs too much: {what}", measured=best[0])
        return now


def _candidates(graph: Graph, name: str) -> Iterator[tuple[str, list[Graph]]]:
    """What may be tried for a population: what it is, and the graphs that do it, of which the best counts."""
    node = graph[name]
    assert isinstance(node, Neuron)
    reached = {state for source in node.program.inputs for state in linear_states(node.program, source)}
    states = node.program.state_names if len(node.program.state_names) > 1 else ()
    for state in sorted(states, key=lambda state: state in reached):  # what only adapts goes first
        simpler = without_state(node, state)
        if simpler is None:
            continue
        graphs = [_with(graph, {name: simpler})]
        front = _front(graph, node, state)
        if front:
            graphs.append(_with(graph, {name: simpler, **front}))
        yield f"the state {state} keeps no memory", graphs
    for param, array in node.params.items():
        if array.size > 1 and np.unique(array).size > 1:
            one = np.asarray(array.mean(), array.dtype)
            changed = replace(node, params={**node.params, param: one})
            yield (
                f"one {param} for all neurons, {float(one):.6g} (was {array.min():.6g} to {array.max():.6g})",
                [_with(graph, {name: changed})],
            )


def _with(graph: Graph, table: Mapping[str, Node]) -> Graph:
    return verify(graph.with_nodes(table.get(node.name, node) for node in graph.nodes))


def _front(graph: Graph, node: Neuron, state: str) -> dict[str, Node] | None:
    """The weights of the inputs that go through a state, scaled by what the state gathers of a constant stream."""
    factor = decays_of(node.program).get(state)
    if factor is None:
        return None
    decay = np.asarray(factor.value if isinstance(factor, Num) else node.params[factor.name] if isinstance(factor, Var) else 1)
    kept = 1 - float(decay.mean())
    through = [number for number, name in enumerate(node.program.inputs) if state in linear_states(node.program, name)]
    if kept <= 0 or not through:
        return None
    return scaled_inputs(graph, node, dict.fromkeys(through, 1 / kept))


def without_state(node: Neuron, state: str) -> Neuron | None:
    """The population with a state that is at its initial value whenever a step begins; None where that makes no neuron."""
    program = node.program
    begin = next(item for item in program.states if item.name == state)
    if state in node.init or state in (emit.name for emit in program.emits):
        return None
    body: list[Assign] = []
    known: dict[str, Expr] = {state: Num(begin.init)}
    for statement in program.body:
        expr = _folded(substitute(statement.expr, known))
        if statement.name == state:
            known.pop(state, None)
        body.append(Assign(statement.name, expr))
    # What nobody reads any more goes.
    needed = {emit.name for emit in program.emits} | {item.name for item in program.states if item.name != state}
    kept: list[Assign] = []
    for statement in reversed(body):
        if statement.name in needed or any(statement.name in variables(other.expr) for other in kept):
            kept.insert(0, statement)
    used = {name for statement in kept for name in variables(statement.expr)}
    params = tuple(name for name in program.params if name in used)
    if not set(program.inputs) <= used:
        return None
    states = tuple(item for item in program.states if item.name != state)
    if not any(item.name in used for item in states):
        return None
    simpler = Program(f"{program.name}_without_{state}", program.inputs, params, states, tuple(kept), program.emits)
    return replace(node, program=simpler, params={name: node.params[name] for name in params})


def _folded(expr: Expr) -> Expr:
    """The same without products and sums with zero."""
    if not isinstance(expr, Call):
        return expr
    args = tuple(_folded(arg) for arg in expr.args)
    zero = [isinstance(arg, Num) and arg.value == 0 for arg in args]
    if expr.op == "*" and any(zero):
        return Num(0)
    if expr.op == "+" and any(zero):
        return args[1] if zero[0] else args[0]
    if expr.op == "-" and zero[1]:
        return args[0]
    return Call(expr.op, args)
