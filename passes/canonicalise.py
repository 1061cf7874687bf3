"""Bring a graph into its plainest form: no node that does nothing, none that nobody reads, no number said for every neuron."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Concat, Conv, Dense, Gather, Input, Neuron, Node, Reshape, Scale, Sparse
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.rewrite import reachable, redirect, redirect_outputs


@dataclass(frozen=True)
class Canonicalise:
    """Remove identities, merge reshapes, drop zero biases and dead nodes; parameters and initial states that are equal over a
    population become one number. Any level, exact. Inputs and names stay."""

    name: ClassVar[str] = "canonicalise"
    levels: ClassVar[tuple[str, ...]] = ("float", "fixed")

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The same function with fewer nodes; exact, spike for spike."""
        while (after := self._once(graph, ledger)).nodes != graph.nodes:
            graph = after
        return after

    def _once(self, graph: Graph, ledger: Ledger) -> Graph:
        alive = reachable(graph)
        for node in graph.nodes:
            if node.name not in alive and not isinstance(node, Input):
                ledger.record(node, "exact", f"removed {node.op}: no output depends on it")
        graph = graph.with_nodes(n for n in graph.nodes if n.name in alive or isinstance(n, Input))
        nodes = [self._without_zero_bias(node, ledger) for node in graph.nodes]
        nodes = [self._with_scalars(node, ledger) for node in nodes]
        nodes = [self._merged_reshape(node, graph) for node in nodes]
        gone = {(node.name, ""): node.inputs[0] for node in nodes if self._is_identity(node, graph)}
        for _, ref in graph.outputs:
            # An output reads without delay, at its node's lag: what stands between it and another step has to stay.
            while (ref.node, ref.port) in gone:
                behind = gone[ref.node, ref.port]
                if behind.delay or graph[behind.node].lag != graph[ref.node].lag:
                    del gone[ref.node, ref.port]
                    break
                ref = behind
        for name, _ in gone:
            ledger.record(graph[name], "exact", f"removed {graph[name].op}: it changes nothing")
        names = {name for name, _ in gone}
        kept = redirect([node for node in nodes if node.name not in names], gone)
        return graph.with_nodes(kept, redirect_outputs(graph.outputs, gone))

    def _without_zero_bias(self, node: Node, ledger: Ledger) -> Node:
        if isinstance(node, (Dense, Sparse, Conv)) and node.bias is not None and not node.bias.any():
            ledger.record(node, "exact", "dropped a bias of zeros")
            return replace(node, bias=None)
        return node

    def _with_scalars(self, node: Node, ledger: Ledger) -> Node:
        if not isinstance(node, Neuron) or not node.inputs:  # without inputs the parameters tell its shape
            return node
        params = {name: _one(array) for name, array in node.params.items()}
        init = {name: _one(array) for name, array in node.init.items()}
        found = [name for name in params if params[name].shape != node.params[name].shape]
        found += [name for name in init if init[name].shape != node.init[name].shape]
        if not found:
            return node
        ledger.record(node, "exact", f"one number for all neurons: {', '.join(found)}")
        return replace(node, params=params, init=init)

    def _merged_reshape(self, node: Node, graph: Graph) -> Node:
        """A reshape of a reshape reads the first one's operand."""
        while isinstance(node, Reshape) and isinstance(graph[node.inputs[0].node], Reshape):
            (ref,) = node.inputs
            before = graph[ref.node].inputs[0]
            if ref.init is not None or before.init is not None:
                break
            node = replace(node, inputs=(before.later(ref.delay),))
        return node

    def _is_identity(self, node: Node, graph: Graph) -> bool:
        if len(node.inputs) != 1 or node.inputs[0].init is not None:
            return False
        before, after = graph.type_of(node.inputs[0]), graph.types[node.name][0][1]
        if before.shape != after.shape or before.dtype != after.dtype:
            return False
        if isinstance(node, Scale):
            return node.offset is None and bool(np.all(node.factor == 1))
        if isinstance(node, Gather):
            return bool(np.array_equal(node.indices.ravel(), np.arange(before.size)))
        return isinstance(node, (Reshape, Add, Concat))


def _one(array: Array) -> Array:
    """An array of one number, said more than once, as that number. To the bit: 0.0 and -0.0 differ, and a NaN equals itself."""
    if array.size < 2 or array.tobytes() != array.flat[0].tobytes() * array.size:
        return array
    return np.asarray(array.flat[0])
