"""Weights that read chosen elements of a wire of spikes read the wire itself, with zeros for the others.

Pruning leaves such choices where sources have no connection left. To copy the rest at every step, and to list it again, costs
more than the zeros do: a spike without connections is an empty row.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.interpret import Wire
from spikec.ir.ops import Dense, Gather, Node, Ref, Sparse


def absorbed(graph: Graph, observed: Collection[Wire], least: float = 0.5) -> Graph:
    """The same sums without gathers that only weights read. Graphs of integers; this share of the elements must be chosen."""
    if graph.level == "float":
        return graph
    nodes = {node.name: _widened(node, graph, least) for node in graph.nodes}
    read = {ref.node for node in nodes.values() for ref in node.inputs} | {name for name, _ in observed}
    read |= {ref.node for _, ref in graph.outputs}
    left = [node for node in nodes.values() if node.name in read or not isinstance(graph[node.name], Gather)]
    return graph if left == list(graph.nodes) else graph.with_nodes(left)


def _widened(node: Node, graph: Graph, least: float) -> Node:
    if not isinstance(node, (Dense, Sparse)) or node.delay is not None:
        return node
    (ref,) = node.inputs
    gather = graph[ref.node]
    if not isinstance(gather, Gather) or ref.init is not None or gather.inputs[0].init is not None:
        return node
    source = gather.inputs[0]
    type_, chosen = graph.type_of(source), gather.indices
    if type_.kind != "spike" or len(type_.shape) != 1 or chosen.ndim != 1 or chosen.size < least * type_.size:
        return node
    if (np.diff(chosen) <= 0).any():
        return node
    inputs = (Ref(source.node, source.port, source.delay + ref.delay),)
    if isinstance(node, Sparse):
        return replace(node, inputs=inputs, indices=chosen[node.indices].astype(node.indices.dtype), fan_in=type_.size)
    weight = np.zeros((len(node.weight), type_.size), node.weight.dtype)
    weight[:, chosen] = node.weight
    return replace(node, inputs=inputs, weight=weight)
