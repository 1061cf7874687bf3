"""What neurons have of their own and a recovery trains beside the weights: biases, and thresholds and decays by neuron.

Few numbers, held finely in integers, that make good for a coarse grid of weights: a threshold of its own is a scale of a neuron's
own. Only what a population has as an array is trained; a number that all its neurons share stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.neuron import COMPARISONS, Call, Expr, Var
from spikec.ir.ops import Constant, Conv, Dense, Neuron, Sparse
from spikec.ir.rules import verify
from spikec.ir.types import Array
from spikec.ledger import Ledger

if TYPE_CHECKING:
    from spikec.frontend.nn.graph_module import GraphModule

Weighted = Dense | Sparse | Conv


def forms_of(graph: Graph) -> dict[str, dict[str, str]]:
    """By population, the parameters that are trained, and what they are: a "share" that is kept of a state, or "positive"."""
    found: dict[str, dict[str, str]] = {}
    for node in graph.neurons:
        factors, compared = _factors(node), _compared(node)
        for name, array in node.params.items():
            if array.size < 2 or array.dtype.kind != "f":
                continue
            if name in factors and np.all((array > 0) & (array < 1)):
                found.setdefault(node.name, {})[name] = "share"
            elif name in compared and np.all((array > 0) & np.isfinite(array)):
                found.setdefault(node.name, {})[name] = "positive"
    return found


def _calls(node: Neuron) -> list[Call]:
    waiting: list[Expr] = [statement.expr for statement in node.program.body]
    found = []
    while waiting:
        expr = waiting.pop()
        if isinstance(expr, Call):
            found.append(expr)
            waiting += expr.args
    return found


def _factors(node: Neuron) -> set[str]:
    """Parameters that a state is multiplied with."""
    states = set(node.program.state_names)
    pairs = [(one, two) for call in _calls(node) if call.op == "*" for one, two in (call.args, call.args[::-1])]
    return {one.name for one, two in pairs if isinstance(one, Var) and isinstance(two, Var) and two.name in states}


def _compared(node: Neuron) -> set[str]:
    return {arg.name for call in _calls(node) if call.op in COMPARISONS for arg in call.args if isinstance(arg, Var)}


def biased(graph: Graph) -> list[str]:
    """Layers whose biases are trained."""
    layers = [node for node in graph.nodes if isinstance(node, Weighted) and node.bias is not None]
    return [node.name for node in layers if not isinstance(graph[node.inputs[0].node], Constant)]


def with_trained(graph: Graph, source: Graph, module: GraphModule) -> Graph | None:
    """A graph with the biases and parameters that a module has of `source`; None where those of the graph are not the source's."""
    nodes = dict(graph.by_name)
    for name in biased(source):
        node, before = nodes.get(name), source[name]
        if not isinstance(node, Weighted) or not isinstance(before, Weighted) or node.bias is None or before.bias is None:
            return None
        if not np.array_equal(node.bias, before.bias):
            return None
        nodes[name] = replace(node, bias=_array(module.biases[module._keys[name]], node.bias))
    for name, forms in module.learnt.items():
        node, before = nodes.get(name), source[name]
        if not isinstance(node, Neuron) or not isinstance(before, Neuron):
            return None
        if not all(key in node.params and np.array_equal(node.params[key], before.params[key]) for key in forms):
            return None
        trained = {key: _array(module.param_of(name, key), node.params[key]) for key in forms}
        nodes[name] = replace(node, params={**node.params, **trained})
    return verify(graph.with_nodes(nodes[node.name] for node in graph.nodes))


def _array(tensor: Any, like: Array) -> Array:
    return np.asarray(tensor.detach().numpy()).astype(like.dtype)


def record(ledger: Ledger, source: Graph, trained: Graph) -> None:
    """Write down what differs."""
    for node in trained.nodes:
        before = source.by_name.get(node.name)
        pairs: Mapping[str, tuple[Array, Array]] = {}
        if isinstance(node, Weighted) and isinstance(before, Weighted) and node.bias is not None and before.bias is not None:
            pairs = {"biases": (before.bias, node.bias)}
        elif isinstance(node, Neuron) and isinstance(before, Neuron):
            pairs = {key: (before.params[key], value) for key, value in node.params.items() if key in before.params}
        for what, (old, new) in pairs.items():
            if old.shape == new.shape and (change := np.abs(new.astype(np.float64) - old)).any():
                ledger.record(
                    node,
                    "approximation",
                    f"{what} trained again",
                    changed=int(np.count_nonzero(change)),
                    total=int(change.size),
                    largest=float(change.max()),
                    asked="recover",
                )
