"""Fold a factor and an offset per channel (a batch norm at inference) into the weights in front of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.ops import Conv, Dense, Node, Pool, Ref, Scale, Sparse
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.rewrite import redirect, redirect_outputs


@dataclass(frozen=True)
class FoldScale:
    """y = f (W x + b) + o becomes y = (f W) x + (f b + o), where nobody else reads the sum; a pool in between lets the scale
    through where that changes nothing. Float level, exact up to rounding."""

    name: ClassVar[str] = "fold-scale"
    levels: ClassVar[tuple[str, ...]] = ("float",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The same function without the scales that could be folded; the products are made in float64."""
        while True:
            scales = [node for node in graph.nodes if isinstance(node, Scale)]
            scale = next((node for node in scales if self._into(node, graph) is not None), None)
            if scale is None:
                swapped = next((new for node in scales if (new := self._before_pool(node, graph)) is not None), None)
                if swapped is None:
                    return graph
                graph = swapped
                continue
            before = self._into(scale, graph)
            assert before is not None
            ledger.record(scale, "exact", f"folded into the weights of %{before.name}, up to rounding")
            moved = {(scale.name, ""): Ref(before.name)}
            folded = _folded(before, scale)
            nodes = [folded if node is before else node for node in graph.nodes if node is not scale]
            graph = graph.with_nodes(redirect(nodes, moved), redirect_outputs(graph.outputs, moved))

    def _into(self, scale: Scale, graph: Graph) -> Dense | Conv | Sparse | None:
        """The layer that can take the scale in."""
        (ref,) = scale.inputs
        before = graph[ref.node]
        if not isinstance(before, (Dense, Conv, Sparse)) or ref.delay or len(graph.users[before.name]) > 1:
            return None
        if any(output.node == before.name for _, output in graph.outputs) or before.lag != scale.lag:
            return None
        if graph.types[before.name][0][1].dtype != graph.types[scale.name][0][1].dtype:
            return None
        shape = graph.shape_of(before.name)
        arrays = [array for array in (scale.factor, scale.offset) if array is not None]
        return before if all(_per_output(array, before, shape) is not None for array in arrays) else None

    def _before_pool(self, scale: Scale, graph: Graph) -> Graph | None:
        """The graph with the scale in front of the pool that it stands behind, where weights can take it in there."""
        (ref,) = scale.inputs
        pool = graph[ref.node]
        if not isinstance(pool, Pool) or ref.delay or len(graph.users[pool.name]) > 1 or pool.inputs[0].delay:
            return None
        if any(output.node == pool.name for _, output in graph.outputs) or pool.lag != scale.lag:
            return None
        if pool.mode == "max" and (scale.factor < 0).any():
            return None  # the largest becomes the smallest
        if scale.offset is not None and (pool.mode == "sum" or (pool.mode == "average" and any(pool.padding))):
            return None  # added as often as the window has places, or not to its padding
        shape = graph.shape_of(scale.name)
        factor = per_channel(scale.factor, shape)
        offset = None if scale.offset is None else per_channel(scale.offset, shape)
        if factor is None or (scale.offset is not None and offset is None):
            return None
        first = replace(scale, inputs=pool.inputs, factor=factor, offset=offset)
        moved = {(scale.name, ""): Ref(pool.name)}
        behind = replace(pool, inputs=(Ref(first.name),))
        nodes = redirect([node for node in graph.nodes if node is not scale], moved)
        place = next(index for index, node in enumerate(nodes) if node.name == pool.name)
        nodes[place : place + 1] = [first, behind]
        after = graph.with_nodes(nodes, redirect_outputs(graph.outputs, moved))
        return after if self._into(first, after) is not None else None


def per_channel(array: Array, shape: tuple[int, ...]) -> Array | None:
    """A scale's numbers in a form that fits other sizes of space, or None where they differ within a channel."""
    if array.size == 1 or (array.ndim == 1 and len(shape) > 1):
        return array
    flat = array.reshape(array.shape[0], -1)
    return flat[:, 0] if (flat == flat[:, :1]).all() else None


def _per_output(array: Array, node: Node, shape: tuple[int, ...]) -> Array | None:
    """One number for each output of the layer (its channels; a dense layer's last axis), or None where it is not so."""
    if array.size == 1:
        return np.asarray(array, np.float64).reshape(1)
    if isinstance(node, Conv):
        if array.ndim == 1 and len(shape) > 1:
            return array.astype(np.float64)
        flat = array.reshape(array.shape[0], -1)
        return flat[:, 0].astype(np.float64) if (flat == flat[:, :1]).all() else None
    return array.astype(np.float64) if len(shape) == 1 else None


def _folded(node: Dense | Conv | Sparse, scale: Scale) -> Node:
    shape = (1,) * 3 if isinstance(node, Conv) else (1,)
    factor = _per_output(scale.factor, node, shape)
    assert factor is not None
    dtype = node.weight.dtype if node.weight.dtype.kind == "f" else np.dtype(np.float32)
    count = len(node.indptr) - 1 if isinstance(node, Sparse) else node.weight.shape[0]
    factor = np.broadcast_to(factor, (count,))
    each = factor[node.rows] if isinstance(node, Sparse) else factor.reshape(-1, *(1,) * (node.weight.ndim - 1))
    bias = np.zeros(count) if node.bias is None else node.bias * factor
    if scale.offset is not None:
        offset = _per_output(scale.offset, node, shape)
        assert offset is not None
        bias = bias + offset
    kept = None if node.bias is None and scale.offset is None else bias.astype(dtype)
    return replace(node, weight=(node.weight * each).astype(dtype), bias=kept)
