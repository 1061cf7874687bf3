"""What was pruned, made good by what is left: a neuron's other weights give its membrane what it had, as nearly as they can.

Neighbouring sources are active together, so most of what one sent can be told from others (Hassibi and Stork, 1993; layer by layer
on calibration data as in He et al., ICCV 2017). For every neuron of a layer the weights that are left are those of least squares
between the currents of the whole network and of the pruned one, both as the membrane sees them: spikes that decay as it does.
Layers go in the order of the data, so that each makes good what those in front of it could not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret, record_name
from spikec.ir.ops import Dense
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.groups import WEIGHTED
from spikec.passes.rounding import traces

#: What the ledger says where weights were adjusted.
MADE_GOOD: Final = "weights that are left make good for those that went, on the calibration data"
#: Added to the diagonal of second moments, as a share of its mean: few data do not tell all sources apart.
_DAMPING: Final = 0.03
#: What a source sends at least, as a share of the mean of all: one that was silent in the data may speak in others.
_SILENT: Final = 1e-3
#: A weight that is smaller than this share of the layer's largest is none.
_NOTHING: Final = 1e-7
#: Multiplications that solving all rows of a layer may take; above it weights stay as they are.
_WORK: Final = 3e10


def compensated(graph: Graph, masks: Mapping[str, Array], calibrate: Mapping[str, Array], ledger: Ledger, asked: str) -> Graph:
    """The graph with the weights in the masks, by layer name and in the weight's shape, and the others zero.

    Layers without a full matrix, with delays or of too many sources keep what is left of their weights as it is.
    """
    wires = [(ref.node, ref.port) for name in masks for ref in graph[name].inputs]
    names = [record_name(wire) for wire in dict.fromkeys(wires)]
    whole = interpret(graph, calibrate, record=names).records
    now = graph
    for node in [node for node in graph.order if isinstance(node, WEIGHTED) and node.name in masks]:
        keep = masks[node.name]
        weight = np.asarray(np.where(keep, node.weight, node.weight.dtype.type(0)))
        if isinstance(node, Dense) and node.delay is None and workable(keep):
            before = traces(graph, node, whole)
            after = None if before is None else traces(now, now[node.name], interpret(now, calibrate, record=names).records)
            if before is not None and after is not None:
                fitted = _fitted(node.weight.astype(np.float64), keep, before, after).astype(weight.dtype)
                change = np.abs(fitted - weight)
                figures = {"changed": int(np.count_nonzero(change)), "total": int(np.count_nonzero(keep))}
                ledger.record(node, "approximation", MADE_GOOD, **figures, largest=float(change.max(initial=0)), asked=asked)
                weight = fitted
        fitting = replace(node, weight=weight)
        now = now.with_nodes(fitting if each.name == node.name else each for each in now.nodes)
    return now


def saliency(weight: Array, keep: Array, moment: Array) -> Array:
    """By how much each weight (targets, sources) in the mask matters to its neuron's current when the others make good for it.

    w^2 / [H^-1]jj with the second moments H of the row's own sources (optimal brain surgeon); 0 outside the mask.
    """
    added = _damping(moment)
    damped = moment + added * np.eye(len(moment))
    result = np.zeros(weight.shape)
    patterns, which = np.unique(keep, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows, sources = np.flatnonzero(which.ravel() == number), np.flatnonzero(pattern)
        if len(sources):
            own = _unexplained(np.linalg.inv(damped[np.ix_(sources, sources)]), added)
            result[np.ix_(rows, sources)] = np.square(weight[np.ix_(rows, sources)].astype(np.float32)) * own
    return result.astype(np.float32).astype(np.float64)


def expendable(readers: list[tuple[Array, Array]], count: int) -> Array:
    """So many sources, one after the other: each the one whose currents the rest makes good best.

    readers: of every layer that reads them, the weights (targets, sources) and the second moments (sources, sources) of what it
    sees. Optimal brain surgeon, for all weights of a source at once. Work: count * sources * (sources + targets).
    """
    layers: list[tuple[Array, Array]] = []
    added = [_damping(moment) for _, moment in readers]
    for (weight, moment), more in zip(readers, added, strict=True):
        layers.append((weight.astype(np.float64), np.linalg.inv(moment + more * np.eye(len(moment)))))
    gone = np.zeros(readers[0][0].shape[1], bool)
    order = []
    for _ in range(count):
        cost = sum(
            np.square(w.astype(np.float32)).sum(axis=0) * _unexplained(inverse, more)
            for (w, inverse), more in zip(layers, added, strict=True)
        )
        worst = int(np.argmin(np.where(gone, np.inf, cost)))
        for number, (weight, inverse) in enumerate(layers):
            share = inverse[worst] / inverse[worst, worst]
            layers[number] = weight - np.outer(weight[:, worst], share), inverse - np.outer(inverse[:, worst], share)
        gone[worst] = True
        order.append(worst)
    return np.array(order, dtype=np.int64)


def _damping(moment: Array) -> float:
    return _DAMPING * float(np.trace(moment)) / len(moment) or 1.0


def _unexplained(inverse: Array, added: float) -> Array:
    """The part of each source's second moment that the others do not tell, from the inverse of all with `added` on the diagonal."""
    own = 1 / np.maximum(np.diagonal(inverse), 1e-30) - added  # of a source that went the first is 0
    # Sources that do the same tie, and stay tied: what solvers leave in the last digits changes from run to run.
    return np.asarray((np.maximum(own, 0) + _SILENT / _DAMPING * added).astype(np.float32).astype(np.float64))


def workable(keep: Array) -> bool:
    """Whether solving all rows of a mask, those with the same sources at once, is worth its time."""
    rows = np.unique(keep, axis=0)
    return float(np.sum(np.count_nonzero(rows, axis=1).astype(float) ** 3)) / 3 <= _WORK


def _fitted(weight: Array, keep: Array, before: Array, after: Array) -> Array:
    """The weights (targets, sources) in the mask whose sums of `after` (times, sources) are nearest to all weights' of `before`."""
    count = min(len(before), len(after))
    before, after = before[:count], after[:count]
    gram, wanted = after.T @ after, weight @ (before.T @ after)
    damping = _damping(gram)
    wanted += damping * weight
    gram = gram + damping * np.eye(len(gram))
    result = np.zeros_like(weight)
    patterns, which = np.unique(keep, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows, sources = np.flatnonzero(which.ravel() == number), np.flatnonzero(pattern)
        if len(sources):
            solved = np.linalg.solve(gram[np.ix_(sources, sources)], wanted[np.ix_(rows, sources)].T)
            result[np.ix_(rows, sources)] = solved.T
    # What solvers leave where a weight should be zero is none.
    return np.asarray(np.where(np.abs(result) > _NOTHING * np.max(np.abs(weight), initial=0), result, 0.0))
