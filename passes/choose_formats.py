"""Dense or sparse, by the synaptic memory that each takes on the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spikec.bits import synapse_bits
from spikec.ir.connections import connections
from spikec.ir.graph import Graph
from spikec.ir.ops import Dense, Node, Sparse
from spikec.ledger import Ledger
from spikec.target import Target


@dataclass(frozen=True)
class ChooseFormats:
    """Each matrix in the cheaper of two formats: all places, or an index with every weight that is not zero. Fixed level, exact."""

    target: Target
    name: ClassVar[str] = "choose-formats"
    levels: ClassVar[tuple[str, ...]] = ("fixed",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The same connections; the target's `dense_synapse_bits` and `sparse_synapse_bits` decide, less for fewer bits."""
        return graph.with_nodes(self._cheaper(node, graph, ledger) for node in graph.nodes)

    def _cheaper(self, node: Node, graph: Graph, ledger: Ledger) -> Node:
        if not isinstance(node, (Dense, Sparse)) or len(graph.type_of(node.inputs[0]).shape) != 1:
            return node
        (width,) = graph.type_of(node.inputs[0]).shape
        (out,) = graph.shape_of(node.name)
        table = connections(node, (width,))
        place = table.rows.astype(np.int64) * width + table.columns
        per_place, per_index = synapse_bits(self.target, node.weight)
        dense, sparse = out * width * per_place, len(place) * per_index
        told = f"dense {dense} bits, sparse {sparse}"
        if isinstance(node, Dense) and sparse < dense:
            weight, indices, indptr, delay = table.compressed()
            ledger.record(node, "exact", f"kept as a sparse matrix ({told})")
            return Sparse(
                name=node.name,
                inputs=node.inputs,
                weight=weight,
                indices=indices,
                indptr=indptr,
                fan_in=width,
                bias=node.bias,
                delay=None if node.delay is None else delay,
                dtype=node.dtype,
                loc=node.loc,
                lag=node.lag,
            )
        # Two connections between the same two neurons do not fit into one place of a matrix.
        if isinstance(node, Sparse) and dense <= sparse and len(np.unique(place)) == len(place):
            matrix, delays = np.zeros((out, width), node.weight.dtype), np.zeros((out, width), np.int32)
            matrix[table.rows, table.columns], delays[table.rows, table.columns] = table.weight, table.delay
            ledger.record(node, "exact", f"kept as a dense matrix ({told})")
            return Dense(
                name=node.name,
                inputs=node.inputs,
                weight=matrix,
                bias=node.bias,
                delay=None if node.delay is None else delays,
                dtype=node.dtype,
                loc=node.loc,
                lag=node.lag,
            )
        return node
