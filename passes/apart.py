"""One population as several: who can read them, what goes back to them, and the negative of what enters them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from spikec.diagnostics import Loc
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Conv, Dense, Node, Ref, Reshape, Sparse
from spikec.ir.types import Array
from spikec.passes.groups import WEIGHTED
from spikec.passes.rewrite import fresh_name, one_by_one


def apart(graph: Graph, name: str) -> bool:
    """Whether layers of weights alone read a wire, reshaped or as it is: they can read the parts of a sum instead."""
    if any(ref.node == name for _, ref in graph.outputs):
        return False
    for user, index in graph.users[name]:
        ref = user.inputs[index]
        if ref.port or ref.init is not None:
            return False
        if not isinstance(user, WEIGHTED) and not (isinstance(user, Reshape) and apart(graph, user.name)):
            return False
    return True


def read_apart(graph: Graph, nodes: list[Node], parts: Mapping[str, list[tuple[str, int]]], taken: set[str]) -> list[Node]:
    """Layers that read a population read its parts instead, each by weights times what a spike of it counts."""
    known = dict(parts)
    result: list[Node] = []
    for node in graph.order if parts else ():  # a reshape stands before its readers
        if isinstance(node, Reshape) and node.inputs[0].node in known:
            known[node.name] = [(fresh_name(taken, f"{node.name}_of_{name}"), emits) for name, emits in known[node.inputs[0].node]]
    for node in nodes:
        source = node.inputs[0].node if node.inputs else ""
        if source not in known or not isinstance(node, (*WEIGHTED, Reshape)):
            result.append(node)
            continue
        refs = [replace(node.inputs[0], node=name) for name, _ in known[source]]
        if isinstance(node, Reshape):
            result += [replace(node, name=name, inputs=(ref,)) for (name, _), ref in zip(known[node.name], refs, strict=True)]
            continue
        layers: list[Node] = []
        for (part, emits), ref in zip(known[source], refs, strict=True):
            weight = node.weight if emits == 1 else node.weight * emits
            bias = None if layers else node.bias
            layers.append(replace(node, name=fresh_name(taken, f"{node.name}_of_{part}"), inputs=(ref,), weight=weight, bias=bias))
        total = Add(name=node.name, inputs=tuple(Ref(layer.name) for layer in layers), loc=node.loc, dtype=node.dtype)
        result += [*layers, total]
    return result


def feedback(source: str, name: str, weight: Array, taken: set[str], loc: Loc | None) -> list[Node]:
    """A synapse from every neuron of a population to itself, a step later; weight in the population's shape. The last node's result
    has that shape too."""
    nodes: list[Node] = []
    operand = source
    if weight.ndim != 1:
        nodes.append(Reshape(name=fresh_name(taken, f"{name}_flat"), inputs=(Ref(source),), shape=(weight.size,), loc=loc))
        operand = nodes[-1].name
    nodes.append(one_by_one(name, Ref(operand, delay=1), weight.reshape(-1).astype(np.float64), loc))
    if weight.ndim != 1:
        nodes.append(Reshape(name=fresh_name(taken, f"{name}_shaped"), inputs=(Ref(name),), shape=weight.shape, loc=loc))
    return nodes


def negated(graph: Graph, ref: Ref, taken: set[str]) -> tuple[Ref, list[Node]] | None:
    """The negative of a synaptic sum: copies of its layers with negative weights. None where something else is in it."""
    node = graph[ref.node]
    if ref.init is not None or ref.port:
        return None
    name = fresh_name(taken, f"{node.name}_negative")
    if isinstance(node, (Dense, Sparse, Conv)):
        bias = None if node.bias is None else -node.bias
        return replace(ref, node=name), [replace(node, name=name, weight=-node.weight, bias=bias)]
    if not isinstance(node, (Add, Reshape)):
        return None
    nodes: list[Node] = []
    inputs = []
    for operand in node.inputs:
        found = negated(graph, operand, taken)
        if found is None:
            return None
        inputs.append(found[0])
        nodes += found[1]
    return replace(ref, node=name), [*nodes, replace(node, name=name, inputs=tuple(inputs))]
