"""Where did the accuracy go? The task's score after every pass, and the layer at which the worst pass lost it.

A layer's share of a pass's loss is measured by feeding the graph after the pass with the spikes that the layers had before it, one
layer more at a time: what the score gains when a layer is put right is what that layer had cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from spikec.backend import load_backend
from spikec.build import Build
from spikec.inputs import check_inputs, recode
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Input, Neuron
from spikec.ir.types import DTYPES, Array
from spikec.progress import Bar
from spikec.score import check_labels, classes, score, scored_output


@dataclass(frozen=True)
class Layer:
    """A population and what of the pass's loss it accounts for (a share of right answers); None where it cannot be told."""

    name: str
    loss: float | None


@dataclass(frozen=True)
class Bisection:
    """Score after every pass, the pass after which it fell most ("" if it never fell), and the layers of that pass."""

    scores: tuple[tuple[str, float], ...]
    worst: str
    layers: tuple[Layer, ...]
    samples: int

    @property
    def layer(self) -> str:
        """The layer that lost most, "" if none did."""
        told = [layer for layer in self.layers if layer.loss is not None and layer.loss > 0]
        return max(told, key=lambda layer: layer.loss or 0.0).name if told else ""

    def text(self) -> str:
        """A table for people."""
        lines = [f"{'after pass':16} {'score':>8} {'change':>8}"]
        before = None
        for name, value in self.scores:
            change = "" if before is None else f"{100 * (value - before):+8.2f}"
            lines.append(f"{name:16} {100 * value:7.2f}% {change:>8}".rstrip())
            before = value
        if not self.worst:
            lines.append(f"{self.samples} samples: the score never fell")
            return "\n".join(lines)
        rows: list[str] = []
        places = f"%{self.layer}"
        unknown: list[str] = []  # layers whose loss is in the figure of the next that has one
        for layer in self.layers:
            if layer.loss is None:
                unknown.append(layer.name)
                continue
            rows += [f"  %{name}: cannot be told apart, its loss is in that of %{layer.name}" for name in unknown]
            rows.append(f"  %{layer.name}: {100 * layer.loss:.2f} points")
            if layer.name == self.layer:
                places = " or ".join(f"%{name}" for name in (*unknown, layer.name))
            unknown = []
        rows += [f"  %{name}: cannot be told apart" for name in unknown]
        lines.append(
            f"{self.samples} samples: the score fell most in the pass {self.worst}" + (f", at {places}" if self.layer else "")
        )
        return "\n".join([*lines, *rows])

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "scores": dict(self.scores), "layer": self.layer}


def bisect(build: Build, data: Any, labels: Any) -> Bisection:
    """Score the graph after every pass on labelled data: (samples, T, *shape), labels as for `spikec.recover`.

    Raises CompileError SPK006, SPK007 or SPK010 for data that do not fit.
    """
    stages = build.stages
    inputs = check_inputs(stages[0].graph, data)
    samples, steps = next(iter(inputs.values())).shape[:2]
    labels = check_labels(labels, samples, steps, classes(stages[0].graph))
    output = scored_output(stages[0].graph)
    scores: list[tuple[str, float]] = []
    with Bar("scoring") as bar:
        for number, stage in enumerate(stages):
            fed = recode(stages[0].graph, stage.graph, inputs)
            scores.append((stage.name, score(_run(build, stage.graph, fed, output), labels)))
            bar(number + 1, len(stages) + 1)
        falls = [before - after for (_, before), (_, after) in pairwise(scores)]
        if not falls or max(falls) <= 0:
            return Bisection(tuple(scores), "", (), samples)
        place = falls.index(max(falls)) + 1
        layers = _layers(
            build, stages[place - 1].graph, stages[place].graph, stages[0].graph, inputs, labels, output, scores[place][1]
        )
        bar(len(stages) + 1, len(stages) + 1)
    return Bisection(tuple(scores), stages[place].name, layers, samples)


def _run(build: Build, graph: Graph, inputs: Mapping[str, Array], output: str) -> Array:
    """One output, by the quickest engine that takes the graph."""
    engine = load_backend("numpy", build.target)
    if engine.available() is None and not list(engine.check(graph)):
        return engine.run(graph, inputs, record=()).outputs[output]
    return interpret(graph, inputs).outputs[output]


def _layers(
    build: Build, before: Graph, after: Graph, first: Graph, inputs: Mapping[str, Array], labels: Array, output: str, own: float
) -> tuple[Layer, ...]:
    names = [node.name for node in before.order if isinstance(node, Neuron)]
    record = interpret(before, recode(first, before, inputs), record=names).records
    fed = dict(recode(first, after, inputs))
    graph, now, result = after, own, []
    for name in names:
        if not _can_be_fed(before, after, name):
            result.append(Layer(name, None))
            continue
        type_ = after.types[name][0][1]
        graph = graph.with_nodes(Input(name=name, type=type_, loc=node.loc) if node.name == name else node for node in graph.nodes)
        fed[name] = record[name].astype(DTYPES[type_.dtype])
        better = score(_run(build, graph, fed, output), labels)
        result.append(Layer(name, better - now))
        now = better
    return tuple(result)


def _can_be_fed(before: Graph, after: Graph, name: str) -> bool:
    """Whether a population's spikes before the pass can stand in for those after it."""
    if name not in after or not isinstance(after[name], Neuron) or after.max_lag or before.max_lag:
        return False
    (_, one), *_ = before.types[name]
    (_, two), *_ = after.types[name]
    ports = {ref.port for node in after.nodes for ref in node.inputs if ref.node == name}
    ports |= {ref.port for _, ref in after.outputs if ref.node == name}
    return one.kind == two.kind == "spike" and one.shape == two.shape and ports <= {""}
