"""Fewer steps: several steps of the input become one, and decays and weights are adjusted.

A state that decays by d a step decays by d^k in k of them. What arrives in k steps adds up with decays between 1 and d^(k-1), on
average (1 - d^k) / (k (1 - d)), by which the weights in front are scaled, once for every decaying state that the input goes
through; a bias, which arrives at every step, k times that. Delays are divided by k. A neuron that fired more than once in k steps
fires once, and spikes of the input that fall together become one. What is lost by that is made up for by weights that are larger by
a factor (BOOSTS), and where spikes are many, by decays that stay as they are: all are tried on the calibration data, and the least
loss counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.neuron import COMPARISONS, LOGIC, STEP, Assign, Call, Expr, Num, Program, Var, variables
from spikec.ir.ops import Input, Neuron, Node, Ref
from spikec.ir.rules import verify
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.costs import Judge, scaled_inputs
from spikec.passes.groups import WEIGHTED
from spikec.score import answers

#: Factors that are tried for the weights.
BOOSTS: Final = (1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class Shorten:
    """Run the network in fewer, longer steps. Takes and gives the float level; approximate, always asked for.

    steps_to: at most so many steps for samples as long as those of the calibration data. steps_loss: instead, the fewest steps at
    which no larger share of the answers is lost. Samples of any length are then merged by the same factor as they come in.
    """

    steps_to: int | None = None
    steps_loss: float | None = None
    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    name: ClassVar[str] = "shorten"
    levels: ClassVar[tuple[str, ...]] = ("float",)
    #: Options that ask for this pass.
    asked_by: ClassVar[tuple[str, ...]] = ("steps_to", "steps_loss")

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The graph in longer steps. Raises CompileError SPK001 for options out of range, SPK220 for what has no longer step."""
        option = "--steps-to" if self.steps_to is not None else "--steps-loss"
        if self.steps_to is not None and self.steps_loss is not None:
            raise CompileError("SPK001", "give steps_to or steps_loss, not both")
        if self.steps_to is not None and self.steps_to < 1:
            raise CompileError("SPK001", f"steps_to must be at least 1, not {self.steps_to}")
        if self.steps_loss is not None and not 0 <= self.steps_loss < 1:
            raise CompileError("SPK001", f"steps_loss is a share from 0 up to but without 1, not {self.steps_loss}")
        judge = Judge(graph, self.calibrate, self.labels, option)
        ledger.record(
            graph.output(judge.name).node, "convention", "loss if the answer is read after so many steps", measured=_curve(judge)
        )
        factor = -(-judge.steps // self.steps_to) if self.steps_to is not None else 1
        if factor == 1 and self.steps_to is not None:
            return graph
        if self.steps_loss is not None:
            best = None
            while factor < judge.steps:
                found = _best(graph, judge, factor + 1)
                if found[0]["loss"] > self.steps_loss:
                    break
                factor, best = factor + 1, found
            if best is None:
                ledger.record("", "convention", f"no fewer steps lose at most {self.steps_loss:g} of the answers")
                return graph
        else:
            best = _best(graph, judge, factor)
        cost, after, how = best
        figures = {"steps": float(-(-judge.steps // factor)), "of steps": float(judge.steps), **cost}
        ledger.record(
            "",
            "approximation",
            f"{factor} steps become one, {how}",
            asked=f"{option} {self.steps_to if self.steps_to is not None else self.steps_loss}",
            measured=figures,
        )
        return after


def _best(graph: Graph, judge: Judge, factor: int) -> tuple[dict[str, float], Graph, str]:
    """Of all adjustments the one with the least loss, the first of equals: what it costs, the graph, and what it is."""
    found = []
    for powers in (True, False):
        for boost in BOOSTS:
            after = in_longer_steps(graph, factor, powers, boost)
            how = f"decays {f'to the power {factor}' if powers else 'as before'}, weights times {boost:g}"
            found.append((judge.figures(after), after, how))
    return min(found, key=lambda item: item[0]["loss"])


def _curve(judge: Judge) -> dict[str, float]:
    """The loss of an answer after a quarter, half and so on of the steps, and the fewest steps that lose nothing from there on."""
    losses = [judge.of(answers(judge.output[:, : steps + 1]))["loss"] for steps in range(judge.steps)]
    lossless = next((steps for steps in range(judge.steps, 0, -1) if losses[steps - 1] > 0), 0) + 1
    places = sorted({max(1, round(judge.steps * part / 8)) for part in range(1, 9)})
    return {**{f"after {steps}": losses[steps - 1] for steps in places}, "steps without loss": float(lossless)}


def in_longer_steps(graph: Graph, factor: int, powers: bool = True, boost: float = 1.0) -> Graph:
    """The graph in which one step stands for `factor` of them. powers: adjust decays, and weights for them; boost: a further factor
    of the weights. Raises CompileError SPK220."""
    table: dict[str, Node] = {}
    for node in graph.neurons:
        slower = _slower(node, factor)
        table[node.name] = slower if powers else node
        gains = {number: boost * (_gain(node, name, factor) if powers else 1) for number, name in enumerate(node.program.inputs)}
        front = scaled_inputs(graph, node, gains, bias=factor)
        if front is None or front.keys() & table.keys():
            node.fail("SPK220", "has no longer steps: something else than layers of weights of its own lies in front of it")
        table.update(front)
    nodes: list[Node] = []
    for each in graph.nodes:
        if isinstance(each, Input):
            if each.type.kind != "spike" or each.encode:
                each.fail("SPK220", "has no longer steps: only plain spikes can be merged")
            nodes.append(replace(each, encode=f"merge:every={factor}"))
            continue
        changed = table.get(each.name, each)
        if isinstance(changed, WEIGHTED) and changed.delay is not None:
            changed = replace(changed, delay=np.rint(changed.delay / factor).astype(changed.delay.dtype))
        nodes.append(replace(changed, inputs=tuple(_nearer(each, ref, factor) for ref in changed.inputs)))
    return verify(graph.with_nodes(nodes))


def _nearer(node: Node, ref: Ref, factor: int) -> Ref:
    if ref.init is not None:
        node.fail("SPK220", f"has no longer steps: {ref} has values before step 0")
    return replace(ref, delay=max(1, round(ref.delay / factor))) if ref.delay else ref


# -------------------------------------------------------------------------------------------------------------- programs


def decays_of(program: Program) -> dict[str, Expr]:
    """For every state that is multiplied by a parameter or a number, that factor."""
    found: dict[str, Expr] = {}
    states = set(program.state_names)

    def look(expr: Expr) -> None:
        if isinstance(expr, Call):
            if expr.op == "*":
                for one, other in (expr.args, expr.args[::-1]):
                    constant = isinstance(other, Num) or (isinstance(other, Var) and other.name in program.params)
                    if isinstance(one, Var) and one.name in states and constant:
                        found[one.name] = other
            for arg in expr.args:
                look(arg)

    for statement in program.body:
        look(statement.expr)
    return found


def linear_states(program: Program, source: str) -> set[str]:
    """The states that an input goes into without a comparison in between."""
    reached = {source}

    def reads(expr: Expr) -> bool:
        if isinstance(expr, Var):
            return expr.name in reached
        if not isinstance(expr, Call) or expr.op in COMPARISONS or expr.op in LOGIC:
            return False
        return any(reads(arg) for arg in (expr.args[1:] if expr.op == "select" else expr.args))

    size = 0
    while size != len(reached):
        size = len(reached)
        reached |= {statement.name for statement in program.body if reads(statement.expr)}
    return reached & set(program.state_names)


def _value(node: Neuron, factor: Expr) -> Array:
    return np.asarray(factor.value if isinstance(factor, Num) else node.params[factor.name] if isinstance(factor, Var) else 1.0)


def _gain(node: Neuron, source: str, factor: int) -> float:
    decays = decays_of(node.program)
    gain = 1.0 / factor
    for name in sorted(linear_states(node.program, source)):
        decay = _value(node, decays[name]).astype(np.float64) if name in decays else np.ones(())
        parts = np.where(decay == 1, factor, (1 - decay**factor) / np.where(decay == 1, 1, 1 - decay))
        gain *= float(parts.mean())
    return gain


def _slower(node: Neuron, factor: int) -> Neuron:
    program = node.program
    if any(STEP in variables(statement.expr) for statement in program.body) or node.start or node.stop is not None:
        node.fail("SPK220", "has no longer steps: its neurons count steps")
    decays = decays_of(program)
    states = set(program.state_names)
    used = {one.name for one in decays.values() if isinstance(one, Var)}
    reads = dict.fromkeys(used, 0)
    products = dict.fromkeys(used, 0)

    def power(expr: Expr) -> Expr:
        if isinstance(expr, Var) and expr.name in reads:
            reads[expr.name] += 1
        if not isinstance(expr, Call):
            return expr
        args = tuple(power(arg) for arg in expr.args)
        if expr.op == "*":
            for place, (one, other) in enumerate((expr.args, expr.args[::-1])):
                if isinstance(one, Var) and one.name in states:
                    if isinstance(other, Num):
                        number = Num(float(other.value) ** factor)
                        return Call("*", (args[0], number) if place == 0 else (number, args[1]))
                    if isinstance(other, Var) and other.name in used:
                        products[other.name] += 1
        return Call(expr.op, args)

    body = tuple(Assign(s.name, power(s.expr)) for s in program.body)
    if mixed := sorted(name for name in used if reads[name] != products[name]):
        node.fail("SPK220", f"has no longer steps: {mixed[0]} is more than a decay")
    params = {k: (v.astype(np.float64) ** factor).astype(v.dtype) if k in used else v for k, v in node.params.items()}
    return replace(node, program=replace(program, body=body), params=params)
