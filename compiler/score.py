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
        what = f"the labels have shape {array.shape}, not ({samples},), one a sample, or ({samples}, {steps}), one a step"
        raise CompileError("SPK006", what, fix=_shape_cure(array, samples))
    if array.dtype.kind not in "iu":
        whole = array.dtype.kind in "bf" and bool(np.all(np.isfinite(array) & (array == np.floor(array))))
        cure = "labels are classes, counted from 0; a network that gives quantities has none"
        if whole:
            cure = "give y.astype(int)"
        elif array.dtype.kind not in "bf":
            cure = "number the classes from 0, in the order of the outputs"
        raise CompileError("SPK007", f"the labels are {array.dtype}, not whole numbers", fix=cure)
    if classes is not None and array.size and array.max() >= classes:
        what = f"the labels reach {array.max()}, but the output tells {classes} classes apart, 0 to {classes - 1}"
        one = array.max() == classes and array[array >= 0].min() == 1
        cure = "these count from 1: give y - 1" if one else "count classes from 0; a label below 0 is left out of the score"
        raise CompileError("SPK007", what, fix=cure)
    if array.size and array.max() < 0:
        raise CompileError("SPK007", "every label is below 0: none counts", fix="count classes from 0")
    return array


def _shape_cure(labels: Array, samples: int) -> str:
    """What makes labels of a wrong shape right, as far as it can be told."""
    if labels.shape == (samples, 1):
        return "give y[:, 0]"
    numbers = labels.ndim == 2 and len(labels) == samples and labels.dtype.kind in "biuf"
    if numbers and np.all((labels == 0) | (labels == 1)) and np.all(labels.sum(axis=1) == 1):
        return "these are one-hot: give y.argmax(axis=1)"
    return f"give a label for each of the {samples} samples, in their order"
