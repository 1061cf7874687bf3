"""The task's score: how often a network's answer is the label."""

from __future__ import annotations

from typing import Any

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.types import Array


def answers(output: Array, per_step: bool = False) -> Array:
    """The class with the largest output summed over the steps (the first of equals); output (samples, T, classes).

    For spikes that is the most active neuron, for membranes the largest mean. per_step: an answer at every step, (samples, T).
    """
    flat = output.reshape(*output.shape[:2], -1)
    return np.asarray(flat.argmax(axis=2) if per_step else flat.sum(axis=1).argmax(axis=1))


def scored_output(graph: Graph) -> str:
    """The output that answers: the first of spikes, else the first. SPK010 if there is none."""
    if not graph.outputs:
        raise CompileError("SPK010", "the graph has no output to score")
    return next((name for name, ref in graph.outputs if graph.type_of(ref).kind == "spike"), graph.outputs[0][0])


def score(output: Array, labels: Array) -> float:
    """Share of right answers; labels (samples,), or (samples, T) where every step has one. Labels below 0 do not count."""
    labels = np.asarray(labels)
    counted = labels >= 0
    right = answers(output, per_step=labels.ndim == 2) == labels
    return float(right[counted].mean()) if counted.any() else 0.0


def classes(graph: Graph) -> int | None:
    """How many classes the output that is scored tells apart; None without outputs."""
    return graph.type_of(graph.output(scored_output(graph))).size if graph.outputs else None


def check_labels(labels: Any, samples: int, steps: int, classes: int | None = None) -> Array:
    """Labels as integers (samples,) or (samples, steps), below `classes`. Raises CompileError SPK006 or SPK007."""
    array = np.asarray(labels)
    if array.shape not in ((samples,), (samples, steps)):
        raise CompileError(
            "SPK006", f"the labels have shape {array.shape}, not ({samples},), one a sample, or ({samples}, {steps}), one a step"
        )
    if array.dtype.kind not in "iu":
        raise CompileError("SPK007", f"the labels are {array.dtype}, not whole numbers")
    if classes is not None and array.size and array.max() >= classes:
        what = f"the labels reach {array.max()}, but the output tells {classes} classes apart, 0 to {classes - 1}"
        raise CompileError("SPK007", what, fix="count classes from 0; a label below 0 is left out of the score")
    return array
