"""Which of its neighbours on a grid a weight becomes: not each the nearest, but all of a neuron together the least error.

What a neuron integrates is a sum over sources that are active together, so the error of one weight can be made good by the others.
Weights are rounded source by source, and the error of each is spread over those that are still to come by least squares on the
calibration data (Frantar et al., GPTQ, ICLR 2023), here on what membranes see of spikes: spikes that decay as the membrane does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.interpret import record_name
from spikec.ir.neuron import Call, Expr, Var
from spikec.ir.ops import Dense, Neuron, Node
from spikec.ir.types import Array

#: What the ledger adds where weights were not each rounded to the nearest.
TOGETHER: Final = ", a neuron's together on the calibration data"
#: Layers with more sources keep the nearest: the work grows with their square.
SOURCES: Final = 2048
#: At most so many steps of the calibration data, all samples together, are looked at.
STEPS: Final = 16384
#: Added to the diagonal of second moments, as a share of its mean: few data do not tell all sources apart.
_DAMPING: Final = 0.01
#: Sources whose errors reach the rest at once.
_BLOCK: Final = 64
#: The longest memory that is taken from a neuron: one that never leaks is reset at times.
_SLOWEST: Final = 0.95


def moments(graph: Graph, node: Node, records: Mapping[str, Array] | None) -> Array | None:
    """The second moments (sources, sources) of what a layer reads, as its populations' membranes see it; None where the nearest
    weights will do: without data, with delays, and for what is no full matrix."""
    seen = traces(graph, node, records)
    return None if seen is None else np.asarray(seen.T @ seen)


def traces(graph: Graph, node: Node, records: Mapping[str, Array] | None) -> Array | None:
    """What a layer reads as its populations' membranes see it, decaying as they do: (samples and steps, sources).

    None without data, with delays, and for what is no full matrix of a size to be worked with.
    """
    if records is None or not isinstance(node, Dense) or node.delay is not None:
        return None
    (ref,) = node.inputs
    sent = records.get(record_name((ref.node, ref.port)))
    if sent is None or sent.ndim != 3 or not 1 < sent.shape[2] <= SOURCES:
        return None
    seen = sent.astype(np.float64)[: max(1, STEPS // sent.shape[1])]
    decay = _decay(graph, node)
    for t in range(1, seen.shape[1]):
        seen[:, t] += decay * seen[:, t - 1]
    return seen.reshape(-1, seen.shape[2])


def _decay(graph: Graph, node: Node) -> float:
    """How much of a membrane behind a layer is kept from step to step; the mean of the slowest state's."""
    found = [0.0]
    waiting, known = [node], {node.name}
    while waiting:
        for user, _ in graph.users[waiting.pop().name]:
            if isinstance(user, Neuron):
                found.append(min(_slowest(user), _SLOWEST))
            elif user.name not in known and not isinstance(user, Dense):
                known.add(user.name)
                waiting.append(user)
    return max(found)


def _slowest(node: Neuron) -> float:
    """The largest share that is kept of one of a population's states; the mean of its neurons'."""
    return max((float(found.mean()) for name in node.program.state_names if (found := kept(node, name)) is not None), default=0.0)


def kept(node: Neuron, state: str) -> Array | None:
    """The share of a state that is left after a step, by neuron: a factor of 0 to 1 in a program; None where none is found."""
    found: list[Array] = []

    def visit(expr: Expr) -> None:
        if isinstance(expr, Call):
            for one, two in (expr.args[:2], expr.args[1::-1]) if expr.op == "*" else ():
                if isinstance(one, Var) and one.name in node.params and two == Var(state):
                    factor = np.asarray(node.params[one.name], np.float64)
                    if np.all((factor >= 0) & (factor <= 1)):
                        found.append(factor)
            for arg in expr.args:
                visit(arg)

    for statement in node.program.body:
        visit(statement.expr)
    return max(found, key=lambda factor: float(factor.mean()), default=None)


def rounded(wanted: Array, step: int, low: int, high: int, moment: Array | None) -> Array:
    """Multiples of `step` from low to high for wanted weights: the nearest, or with a moment (weights (targets, sources), then) all
    of a target together; those that are zero stay so."""
    top = 0.0 if moment is None else float(np.trace(moment)) / len(moment)
    if moment is None or not top:
        return np.asarray(np.clip(step * np.rint(wanted / step), low, high))
    damped = moment + _DAMPING * top * np.eye(len(moment))
    order = np.argsort(-np.diagonal(damped), kind="stable")
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    left, there = wanted[:, order].astype(np.float64), wanted[:, order] != 0
    result, error = np.zeros_like(left), np.zeros_like(left)
    for begin in range(0, len(order), _BLOCK):
        end = min(begin + _BLOCK, len(order))
        for k in range(begin, end):
            column = left[:, k]
            result[:, k] = np.where(there[:, k], np.clip(step * np.rint(column / step), low, high), 0)
            error[:, k] = (column - result[:, k]) / upper[k, k]
            left[:, k + 1 : end] -= np.outer(error[:, k], upper[k, k + 1 : end])
        left[:, end:] -= error[:, begin:end] @ upper[begin:end, end:]
    whole = np.zeros_like(result)
    whole[:, order] = result
    return whole
