"""Convolutions that the target's own cannot compute become sparse matrices: those with delays, over selections, or too large.

Runs on the retimed graph, where the delay of every connection is known. Exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from spikec.ir.connections import connections
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Constant, Conv, Input, Neuron, Node, Ref, Reshape, Sparse
from spikec.ir.ranges import Ranges, graph_ranges
from spikec.ledger import Ledger
from spikec.passes.rewrite import fresh_name
from spikec.target import Target


@dataclass(frozen=True)
class LowerConv:
    """Convolution to sparse connections where the target's `conv_*` numbers demand it. Fixed level, exact."""

    target: Target
    name: ClassVar[str] = "lower-conv"
    levels: ClassVar[tuple[str, ...]] = ("fixed",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """A graph whose convolutions are the target's."""
        checker = _Checker(graph, self.target)
        taken = set(graph.by_name)
        nodes: list[Node] = []
        for node in graph.nodes:
            why = checker.why(node) if isinstance(node, Conv) else ""
            if not isinstance(node, Conv) or not why:
                nodes.append(node)
                continue
            ledger.record(node, "exact", f"the convolution becomes a sparse matrix: {why}")
            nodes += _matrix(node, graph, taken)
        return graph.with_nodes(nodes)


@dataclass
class _Checker:
    graph: Graph
    target: Target

    @cached_property
    def ranges(self) -> Ranges:
        return graph_ranges(self.graph)

    def why(self, node: Conv) -> str:
        """What stands against the target's convolution; empty if nothing does."""
        (ref,) = node.inputs
        limit = self.target.integer("conv_size_max")
        most = max(*node.weight.shape[2:], *node.stride, *node.padding, *node.dilation, node.groups)
        low, high = self.ranges.wires[node.name, ""]
        source = self.graph[ref.node]
        delay = ref.delay
        while isinstance(source, Reshape):
            delay += source.inputs[0].delay
            source = self.graph[source.inputs[0].node]
        if node.delay is not None or delay != self.target.integer("synapse_hop"):
            return "the target's has no delays"
        if most > limit:
            return f"its sizes go up to {most}, the target's up to {limit}"
        if max(high, -low - 1) >= 1 << (self.target.integer("conv_sum_bits") - 1):
            return f"its sums reach {max(high, -low)}, beyond the target's {self.target.integer('conv_sum_bits')} bits"
        if not isinstance(source, (Neuron, Input, Constant)):
            return f"it reads a part or a sum of several (%{source.name})"
        return "" if self._whole(node.name) else "its result is taken apart"

    def _whole(self, name: str) -> bool:
        """Whether populations and outputs read a sum as a whole, without delay."""
        for user, index in self.graph.users[name]:
            if user.inputs[index].delay or (isinstance(user, (Reshape, Add)) and not self._whole(user.name)):
                return False
            if not isinstance(user, (Reshape, Add, Neuron)):
                return False
        return True


def _matrix(node: Conv, graph: Graph, taken: set[str]) -> list[Node]:
    """The same sums as a sparse matrix between flat wires."""
    (ref,) = node.inputs
    type_ = graph.type_of(ref)
    table = connections(node, type_.shape)
    weight, indices, indptr, delay = table.compressed()
    lag = graph[ref.node].lag
    now = Ref(ref.node, ref.port)
    flat = Reshape(name=fresh_name(taken, f"{node.name}_flat"), inputs=(now,), shape=(type_.size,), loc=node.loc, lag=lag)
    init = None if ref.init is None else ref.init.reshape(ref.delay, -1)
    area = table.shape[0] // node.weight.shape[0]
    matrix = Sparse(
        name=fresh_name(taken, f"{node.name}_matrix"),
        inputs=(Ref(flat.name, "", ref.delay, init),),
        weight=weight,
        indices=indices,
        indptr=indptr,
        fan_in=type_.size,
        bias=None if node.bias is None else node.bias.repeat(area),
        delay=None if node.delay is None else delay,
        loc=node.loc,
        lag=node.lag,
    )
    shape = graph.shape_of(node.name)
    back = Reshape(name=node.name, inputs=(Ref(matrix.name),), shape=shape, loc=node.loc, lag=node.lag)
    return [flat, replace(matrix, dtype=node.dtype), back]
