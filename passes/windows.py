"""Windows: a population and the weights in front of it compute only in some of a sample's steps.

Before its `start` a population rests, from its `stop` on it sends nothing (`spikec.ir.windows`). Where nothing can have reached it
yet, as behind delays, and silence changes nothing, it starts late exactly. Beyond that the calibration data tell which steps carry
no decision: from both ends of every window, and from the end of all at once, steps go in halving portions, what saves most first,
as long as the share of the answers lost by all of it together, and its standard error, stay within the budget. What a population
does in each part of a sample, its window, the operations that are saved and the cost are in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np

from spikec.counts import Counts, count, operations_by_layer
from spikec.diagnostics import CompileError
from spikec.inputs import thinned
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, Interpreter, default_record, interpret
from spikec.ir.ops import Input, Neuron
from spikec.ir.rules import verify
from spikec.ir.types import DTYPES, Array
from spikec.ledger import Ledger
from spikec.passes.costs import Judge
from spikec.passes.groups import WEIGHTED
from spikec.score import answers

#: Calibration samples that are looked at: what is lost are few of them.
SAMPLES: Final = 512
#: Activity is told for so many parts of a sample.
PARTS: Final = 8

#: Population -> its first step and the step before which it stops.
Spans = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Windows:
    """Give every population the steps in which it computes. Takes and gives the float level; approximate, always asked for.

    windows_loss: the share of right answers (with labels) that may be lost, or of answers that may change. The windows are those of
    samples as long as the calibration data's; in a longer one nothing is sent after them.
    """

    windows_loss: float | None = None
    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    name: ClassVar[str] = "windows"
    levels: ClassVar[tuple[str, ...]] = ("float",)
    #: Options that ask for this pass.
    asked_by: ClassVar[tuple[str, ...]] = ("windows_loss",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The graph with windows. Raises CompileError SPK001 for a budget out of range, no data, or labels for every step."""
        if self.windows_loss is None or not 0 <= self.windows_loss < 1:
            raise CompileError("SPK001", f"windows_loss is a share from 0 up to but without 1, not {self.windows_loss}")
        if self.labels is not None and self.labels.ndim != 1:
            raise CompileError("SPK001", "windows_loss needs one label a sample: with one for every step, all of them decide")
        judge = Judge(graph, self.calibrate, self.labels, "--windows-loss", SAMPLES)
        steps = judge.steps
        before = interpret(graph, judge.data, record=default_record(graph))
        exact = {name: (min(first, steps), steps) for name, first in late_starts(graph, steps).items()}
        work = _work(graph, judge.data, before)
        judges = (Judge(graph, thinned(judge.data), self.labels, "", SAMPLES), judge)
        found, figures = _search(graph, judges, exact, work, self.windows_loss)
        after = with_windows(graph, found, steps)
        now = interpret(after, judge.data, record=default_record(after))
        one, two = count(graph, judge.data, before.records), count(after, judge.data, now.records)
        for node in graph.neurons:
            rates = _activity(before.records[node.name])
            ledger.record(node, "convention", "spikes a neuron and step, by parts of a sample", measured=rates)
            first, last = found[node.name]
            if (first, last) == (0, steps):
                continue
            saved = {"first step": float(first), "stops at": float(last), "of steps": float(steps)}
            saved |= {"operations": _total(two[node.name]), "of operations": _total(one[node.name])}
            what = f"computes in steps {first} to {last - 1} of {steps} only" if last > first else f"computes in no step of {steps}"
            if (first, last) == exact[node.name]:
                ledger.record(node, "exact", f"{what}: nothing reaches it before", measured=saved)
            else:
                ledger.record(node, "approximation", what, asked=f"--windows-loss {self.windows_loss:g}", measured=saved)
        if after is graph:
            what = f"every step of every layer is needed to lose at most {self.windows_loss:g} of the answers"
            ledger.record("", "convention", what)
            return graph
        whole = {"operations": sum(map(_total, two.values())), "of operations": sum(map(_total, one.values()))}
        ledger.record("", "convention", "cost of the windows on the calibration data", measured={**whole, **figures})
        return after


def with_windows(graph: Graph, windows: Mapping[str, tuple[int, int]], steps: int) -> Graph:
    """The graph whose populations compute from the first step on and before the second; those with all of the steps as they are."""
    nodes = []
    for node in graph.nodes:
        if isinstance(node, Neuron) and windows[node.name] != (0, steps):
            first, last = windows[node.name]
            node = replace(node, start=first, stop=last)
        nodes.append(node)
    return graph if nodes == list(graph.nodes) else verify(graph.with_nodes(nodes))


def late_starts(graph: Graph, steps: int) -> dict[str, int]:
    """For every population, in how many steps it is certainly at rest: no input can have reached it, and it does nothing alone.

    What happens before an input arrives does not depend on it: a run on zeros shows it.
    """
    arrival = _arrivals(graph)
    limit = {node.name: min(arrival.get(node.name, 0), steps) for node in graph.neurons}
    found = dict.fromkeys(limit, 0)
    machine = Interpreter(graph, 1)
    silence = {node.name: np.zeros((1, *node.type.shape), DTYPES[node.type.dtype]) for node in graph.inputs}
    begin = {name: {key: value.copy() for key, value in states.items()} for name, states in machine.states.items()}
    for step in range(max(limit.values(), default=0)):
        now = machine.step(silence)
        for node in graph.neurons:
            rests = all(np.array_equal(value, begin[node.name][key]) for key, value in machine.states[node.name].items())
            quiet = not any(now[node.name, port].any() for port, _ in graph.types[node.name])
            if rests and quiet and step < limit[node.name] and found[node.name] == step:
                found[node.name] = step + 1
    return found


def _arrivals(graph: Graph) -> dict[str, int]:
    """The first step in which an input can matter to a node; those that no input reaches are left out."""
    found = {node.name: 0 for node in graph.inputs}
    changed = True
    while changed:
        changed = False
        for node in graph.nodes:
            if isinstance(node, Input):
                continue
            own = 0
            if isinstance(node, WEIGHTED) and node.delay is not None and node.weight.any():
                own = int(node.delay[node.weight != 0].min())
            reached = [found[ref.node] + ref.delay + own for ref in node.inputs if ref.node in found]
            if reached and min(reached) < found.get(node.name, 1 << 62):
                found[node.name], changed = min(reached), True
    return found


def _search(
    graph: Graph, judges: tuple[Judge, Judge], begin: Spans, work: Mapping[str, Array], budget: float
) -> tuple[Spans, dict[str, float]]:
    """The windows after all steps that may go, and what they cost together: less of the input, then all of it.

    work: operations of every population, step by step.
    """
    steps, kept = judges[0].steps, dict(begin)

    def cost(windows: Spans) -> dict[str, float] | None:
        """None where it is too much."""
        changed, end = with_windows(graph, windows, steps), max(1, *(last for _, last in windows.values()))
        figures: dict[str, float] = {}
        for judge in judges:
            data = {name: array[:, :end] for name, array in judge.data.items()}  # nothing is sent afterwards
            found = answers(interpret(changed, data).outputs[judge.name])
            figures = {"loss with less input": figures.get("loss", 0.0), **judge.of(found)}
            if figures["loss"] + judge.error(found) > budget:
                return None
        return figures

    figures = cost(kept) or {}
    portion = max(1, steps // 4)
    least = max(1, steps // 64)
    while True:
        failed: set[tuple[str, bool]] = set()
        while moves := [move for move in _moves(kept, portion) if move[:2] not in failed]:
            name, at_end, changed = max(moves, key=lambda move: _saved(work, kept, move[2]))
            if _saved(work, kept, changed) > 0:
                found = cost(changed)
                if found is not None:
                    kept, figures = changed, found
                    continue
            failed.add((name, at_end))
        if portion == least:
            return kept, figures
        portion = max(least, portion // 2)


def _moves(windows: Spans, portion: int) -> list[tuple[str, bool, Spans]]:
    """What may be tried: whose window, whether at its end, and the windows then; the nameless one is all ends together."""
    found = []
    for name, (first, last) in windows.items():
        if last - first >= portion:
            found.append((name, True, {**windows, name: (first, last - portion)}))
            found.append((name, False, {**windows, name: (first + portion, last)}))
    if len(windows) > 1 and all(last - first >= portion for first, last in windows.values()):
        found.append(("", True, {name: (first, last - portion) for name, (first, last) in windows.items()}))
    return found


def _saved(work: Mapping[str, Array], before: Spans, after: Spans) -> float:
    return sum(
        float(work[name][before[name][0] : before[name][1]].sum() - work[name][after[name][0] : after[name][1]].sum())
        for name in before
    )


def _work(graph: Graph, data: Mapping[str, Array], run: Execution) -> dict[str, Array]:
    """Synaptic operations and updates of every population in every step (T,)."""
    received = operations_by_layer(graph, data, run.records)
    found = {}
    for node in graph.neurons:
        record = run.records[node.name]
        own = np.full(record.shape[1], float(record[:, :1].size))
        found[node.name] = own + received[node.name].sum(axis=0) if node.name in received else own
    return found


def _activity(record: Array) -> dict[str, float]:
    """Spikes a neuron and step, in each part of a sample; record (batch, T, *shape)."""
    rate = (record != 0).reshape(*record.shape[:2], -1).mean(axis=(0, 2))
    parts = np.array_split(np.arange(len(rate)), min(PARTS, len(rate)))
    return {f"steps {part[0]} to {part[-1]}": float(rate[part].mean()) for part in parts if len(part)}


def _total(counts: Counts) -> float:
    return float(counts.synaptic_operations + counts.updates)
