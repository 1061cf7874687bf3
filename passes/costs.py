"""What a change of a float network costs on calibration data: answers lost, and the scaling of what a population receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from spikec.diagnostics import CompileError
from spikec.inputs import recode
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Neuron, Node, Ref
from spikec.ir.types import Array
from spikec.passes.groups import WEIGHTED
from spikec.score import answers, scored_output

#: At most so many calibration samples are looked at, unless a pass says otherwise.
SAMPLES: Final = 256


class Judge:
    """Compares changed graphs with the graph at hand, by their answers to the same data.

    The loss is the share of right answers that is lost, with labels (samples,), else the share of answers that differ.
    """

    def __init__(
        self, graph: Graph, calibrate: Mapping[str, Array] | None, labels: Array | None, option: str, samples: int = SAMPLES
    ) -> None:
        if calibrate is None:
            raise CompileError(
                "SPK001", f"{option} needs calibration data to measure its cost on", fix="give calibrate (--calibrate)"
            )
        self.graph = graph
        self.data = {name: array[:samples] for name, array in calibrate.items()}
        self.name = scored_output(graph)
        self.labels = labels[:samples] if labels is not None and labels.ndim == 1 else None
        self.output = interpret(graph, self.data).outputs[self.name]
        self.answers = answers(self.output)

    @property
    def steps(self) -> int:
        """Steps of a sample."""
        return int(self.output.shape[1])

    def figures(self, changed: Graph) -> dict[str, float]:
        """The cost of a changed graph: `loss`, answers changed and, with labels, the score before and after."""
        return self.of(answers(interpret(changed, recode(self.graph, changed, self.data)).outputs[self.name]))

    def of(self, found: Array) -> dict[str, float]:
        """The same for answers (samples,)."""
        changed = float(np.mean(found != self.answers))
        if self.labels is None:
            return {"loss": changed, "answers changed": changed}
        before, after = float(np.mean(self.answers == self.labels)), float(np.mean(found == self.labels))
        return {"loss": before - after, "answers changed": changed, "accuracy before": before, "accuracy after": after}

    def error(self, found: Array) -> float:
        """The standard error of that loss: of n answers the root of those lost and gained, over n."""
        right = self.answers if self.labels is None else self.labels
        return float(np.sqrt(np.count_nonzero((found == right) != (self.answers == right)))) / len(found)


def scaled_inputs(graph: Graph, node: Neuron, gains: Mapping[int, float], bias: float = 1.0) -> dict[str, Node] | None:
    """Layers of weights with operands of a population scaled, by operand number; their biases by `bias` more.

    None where something else than layers of weights and sums of them lies in front, or where somebody else reads them too.
    """
    table: dict[str, Node] = {}
    for number, gain in gains.items():
        stack: list[Ref] = [node.inputs[number]]
        while stack:
            ref = stack.pop()
            source = graph[ref.node]
            if len(graph.users[ref.node]) != 1 or any(shown.node == ref.node for _, shown in graph.outputs) or ref.node in table:
                return None
            if isinstance(source, Add):
                stack += source.inputs
            elif isinstance(source, WEIGHTED):
                add = None if source.bias is None else (source.bias * (gain * bias)).astype(source.bias.dtype)
                table[source.name] = replace(source, weight=(source.weight * gain).astype(source.weight.dtype), bias=add)
            else:
                return None
    return table
