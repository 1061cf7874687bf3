"""The worst case of every element of a wire: that of whole wires (`graph_ranges`), followed through sums element by element."""

from __future__ import annotations

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Concat, Conv, Dense, Gather, Node, Ref, Reshape, Scale, Sparse, spread
from spikec.ir.ranges import Interval, Ranges, hull, of_array
from spikec.ir.types import Array

#: The least and the largest value of every element.
Bounds = tuple[Array, Array]


def bounds_of(graph: Graph, ref: Ref, ranges: Ranges) -> Bounds:
    """The worst case of every element that a reference reads."""
    node, shape = graph[ref.node], graph.type_of(ref).shape
    low, high = _node_bounds(graph, node, ref.port, shape, ranges)
    if ref.delay:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        if ref.init is not None:
            low, high = np.minimum(low, ref.init.min(axis=0)), np.maximum(high, ref.init.max(axis=0))
    return low, high


def _node_bounds(graph: Graph, node: Node, port: str, shape: tuple[int, ...], ranges: Ranges) -> Bounds:
    if isinstance(node, (Dense, Sparse, Conv)):
        return _weighted(graph, node, shape, _wire(ranges, node.inputs[0], graph))
    if isinstance(node, (Add, Reshape, Gather, Scale, Concat)) and all(
        ref.delay == 0 for ref in node.inputs
    ):  # a cycle needs a delay: this ends
        parts = [bounds_of(graph, ref, ranges) for ref in node.inputs]
        if isinstance(node, Add):
            return sum(p[0] for p in parts), sum(p[1] for p in parts)  # type: ignore[return-value]  # arrays, there is an operand
        if isinstance(node, Concat):
            return np.concatenate([p[0] for p in parts], node.axis), np.concatenate([p[1] for p in parts], node.axis)
        ((low, high),) = parts
        if isinstance(node, Reshape):
            return low.reshape(shape), high.reshape(shape)
        if isinstance(node, Gather):
            return low.ravel()[node.indices], high.ravel()[node.indices]
        factor, offset = spread(node.factor.astype(np.int64), shape), 0 if node.offset is None else spread(node.offset, shape)
        return np.minimum(low * factor, high * factor) + offset, np.maximum(low * factor, high * factor) + offset
    whole = ranges.wires.get((node.name, port), (0, 0))
    return np.full(shape, whole[0], np.int64), np.full(shape, whole[1], np.int64)


def _wire(ranges: Ranges, ref: Ref, graph: Graph) -> Interval:
    interval = hull(ranges.wires.get((ref.node, ref.port), (0, 0)), (0, 0))
    return interval if ref.init is None else hull(interval, of_array(ref.init))


def _weighted(graph: Graph, node: Dense | Sparse | Conv, shape: tuple[int, ...], x: Interval) -> Bounds:
    """Worst-case sums, target by target; for a convolution the whole kernel counts everywhere."""
    wide = node.weight.astype(np.int64)
    if isinstance(node, Sparse):
        positive, negative = (np.zeros(len(node.indptr) - 1, np.int64) for _ in range(2))
        np.add.at(positive, node.rows, np.maximum(wide, 0))
        np.add.at(negative, node.rows, np.minimum(wide, 0))
    else:
        axes = tuple(range(1, wide.ndim))
        positive, negative = np.maximum(wide, 0).sum(axis=axes), np.minimum(wide, 0).sum(axis=axes)
    bias = np.int64(0) if node.bias is None else node.bias.astype(np.int64)
    low, high = positive * x[0] + negative * x[1] + bias, positive * x[1] + negative * x[0] + bias
    if isinstance(node, Conv):
        low, high = (array.reshape(-1, *(1,) * (len(shape) - 1)) for array in (low, high))
    return np.broadcast_to(low, shape), np.broadcast_to(high, shape)
