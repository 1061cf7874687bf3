"""What several passes need: replacing and removing nodes in an immutable graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from spikec.diagnostics import Loc
from spikec.ir.graph import Graph
from spikec.ir.ops import Node, Ref, Sparse
from spikec.ir.types import Array


def redirect(nodes: Iterable[Node], targets: Mapping[tuple[str, str], Ref]) -> list[Node]:
    """Every reference to a (node, port) in `targets` reads the given wire instead; delays add up."""

    def moved(ref: Ref) -> Ref:
        while (ref.node, ref.port) in targets:
            ref = composed(ref, targets[ref.node, ref.port])
        return ref

    result = []
    for node in nodes:
        inputs = tuple(moved(ref) for ref in node.inputs)
        result.append(node if inputs == node.inputs else replace(node, inputs=inputs))
    return result


def fresh_name(taken: set[str], base: str) -> str:
    """A name that is not taken yet, which it is from now on."""
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


def composed(ref: Ref, behind: Ref) -> Ref:
    """What `ref` reads if the node that it names passes on what `behind` reads."""
    init = None
    if ref.init is not None or behind.init is not None:
        like = behind.init if ref.init is None else ref.init
        assert like is not None
        parts = [np.zeros((part.delay, *like.shape[1:]), like.dtype) if part.init is None else part.init for part in (ref, behind)]
        init = np.concatenate(parts)
    return Ref(behind.node, behind.port, behind.delay + ref.delay, init)


def one_by_one(name: str, ref: Ref, weight: Array, loc: Loc | None, *, single: bool = False) -> Sparse:
    """A synapse of one weight for every neuron, from neuron to neuron; single: from the one element of a source to all.

    weight (neurons,).
    """
    rows = np.arange(weight.size + 1)
    columns = np.zeros(weight.size, np.int64) if single else rows[:-1]
    fan_in = 1 if single else weight.size
    return Sparse(name=name, inputs=(ref,), weight=weight, indices=columns, indptr=rows, fan_in=fan_in, loc=loc)


def redirect_outputs(outputs: Iterable[tuple[str, Ref]], targets: Mapping[tuple[str, str], Ref]) -> list[tuple[str, Ref]]:
    """The same for graph outputs, which read without delay: a target with a delay is not followed."""
    result = []
    for name, ref in outputs:
        while (ref.node, ref.port) in targets and not targets[ref.node, ref.port].delay:
            ref = targets[ref.node, ref.port]
        result.append((name, ref))
    return result


def reachable(graph: Graph) -> set[str]:
    """Names of the nodes that an output depends on, now or in a later step."""
    table = graph.by_name
    seen: set[str] = set()
    stack = [ref.node for _, ref in graph.outputs]
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            stack.extend(ref.node for ref in table[name].inputs)
    return seen
