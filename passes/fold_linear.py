"""Merge layers of weights that follow one another without a neuron in between; sum and average pools and scales are such layers.

Between two populations a target like Loihi has one layer of synapses. A pool is a convolution of each channel with ones, and
two convolutions are one whose kernel is the convolution of their kernels, with the strides multiplied; where a border stands
against that, the product of their matrices. Biases pass through as currents. A scale (of real-valued input, of spikes) is a weight
for each channel or element, and its offset a bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod
from typing import ClassVar

import numpy as np

from spikec.ir.connections import Connections, connections
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Constant, Conv, Dense, Node, Pool, Ref, Reshape, Scale, Sparse, spread, window_shape
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.fold_scale import per_channel
from spikec.passes.groups import WEIGHTED, spread_bias
from spikec.passes.rewrite import fresh_name, reachable
from spikec.target import Target

Weighted = Dense | Sparse | Conv
#: A product of this many numbers is still made as one matrix.
MOST = 1 << 27


@dataclass(frozen=True)
class FoldLinear:
    """One layer of weights where there were two. Exact: integers as they are, floats up to the rounding of the products.

    Runs only for targets without the operation `pool`, which are those that have one layer of synapses between populations.
    """

    target: Target
    name: ClassVar[str] = "fold-linear"
    levels: ClassVar[tuple[str, ...]] = ("float", "fixed")

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """A graph in which weights read no sums of other weights, as far as that can be had."""
        if "pool" in self.target.operations:
            return graph
        taken = set(graph.by_name)
        graph = graph.with_nodes(new for node in graph.nodes for new in _weights(node, graph, taken, ledger))
        while (after := self._once(graph, ledger)) is not None:
            graph = after
        alive = reachable(graph)
        return graph.with_nodes(node for node in graph.nodes if node.name in alive or node.op == "input")

    def _once(self, graph: Graph, ledger: Ledger) -> Graph | None:
        for node in graph.nodes:
            if isinstance(node, WEIGHTED) and (fixed := _constant(graph, node)):
                nodes = [new for item in graph.nodes for new in (fixed if item is node else [item])]
                ledger.record(node, "exact", "weights over a constant are a constant")
                return graph.with_nodes(nodes)
            if isinstance(node, WEIGHTED) and (found := _source(graph, node)):
                inner, delay = found
                new = _over_sum(graph, node, inner, delay, ledger) if isinstance(inner, Add) else _merged(graph, node, inner, delay)
                if new is None:
                    continue
                if not isinstance(inner, Add):
                    ledger.record(node, "exact", f"merged with the layer %{inner.name} before it")
                nodes = []
                for item in graph.nodes:
                    nodes += new if item is node else [item]
                return graph.with_nodes(nodes)
        return None


def _weights(node: Node, graph: Graph, taken: set[str], ledger: Ledger) -> list[Node]:
    """A pool or a scale as weights; any other node as it is."""
    if isinstance(node, Scale) and graph.level == "float":
        return scale_as_weights(node, graph, taken, ledger)
    return [_as_conv(node, graph, ledger) if isinstance(node, Pool) and node.mode != "max" else node]


def scale_as_weights(node: Scale, graph: Graph, taken: set[str], ledger: Ledger) -> list[Node]:
    """A scale as the convolution of each channel with its factor, or as one weight for each element; its offset as a bias."""
    shape = graph.shape_of(node.name)
    if len(shape) > 1:
        factor = per_channel(node.factor, shape)
        offset = None if node.offset is None else per_channel(node.offset, shape)
        if factor is not None and (node.offset is None or offset is not None):
            weight = np.broadcast_to(factor.ravel(), shape[:1]).reshape(-1, *(1,) * len(shape))
            bias = None if offset is None else np.broadcast_to(offset.ravel(), shape[:1])
            ledger.record(node, "exact", "the scale is a convolution of each channel with its factor")
            made = Conv(name=node.name, inputs=node.inputs, weight=weight, bias=bias, groups=shape[0], loc=node.loc, lag=node.lag)
            return [replace(made, dtype=node.dtype)]
    factor, offset = (None if array is None else np.ravel(spread(array, shape)) for array in (node.factor, node.offset))
    assert factor is not None
    size = prod(shape)
    (ref,) = node.inputs
    nodes: list[Node] = []
    flat = len(shape) == 1
    if not flat:
        now = Ref(ref.node, ref.port)  # a synapse can wait, a wire without one cannot
        nodes.append(Reshape(name=fresh_name(taken, f"{node.name}_flat"), inputs=(now,), shape=(size,), loc=node.loc))
        ref = Ref(nodes[0].name, "", ref.delay, None if ref.init is None else ref.init.reshape(ref.delay, -1))
    row = np.arange(size + 1)
    nodes.append(
        Sparse(
            name=node.name if flat else fresh_name(taken, f"{node.name}_factors"),
            inputs=(ref,),
            weight=np.broadcast_to(factor, (size,)),
            indices=row[:-1],
            indptr=row,
            fan_in=size,
            bias=None if offset is None else np.broadcast_to(offset, (size,)),
            dtype=node.dtype,
            loc=node.loc,
            lag=node.lag,
        )
    )
    if not flat:
        nodes.append(Reshape(name=node.name, inputs=(Ref(nodes[1].name),), shape=shape, loc=node.loc))
    ledger.record(node, "exact", "the scale is a weight for each element")
    return nodes


def _as_conv(node: Pool, graph: Graph, ledger: Ledger) -> Node:
    """A sum or average pool as the convolution of each channel with ones."""
    channels = graph.shape_of(node.name)[0]
    if graph.level == "float":
        value = np.float32(1 if node.mode == "sum" else 1 / prod(node.kernel))
        weight = np.full((channels, 1, *node.kernel), value)
    else:
        weight = np.ones((channels, 1, *node.kernel), np.int16)
    ledger.record(node, "exact", f"the {node.mode} pool is a convolution of each channel with {weight.flat[0]:.6g}")
    return Conv(
        name=node.name,
        inputs=node.inputs,
        weight=weight,
        stride=node.stride,
        padding=node.padding,
        groups=channels,
        dtype=node.dtype,
        loc=node.loc,
        lag=node.lag,
    )


def _source(graph: Graph, node: Node) -> tuple[Weighted | Add, int] | None:
    """The layer or sum that a layer of weights reads through nothing but reshapes, and how many steps ago."""
    if getattr(node, "delay", None) is not None:
        return None
    delay = 0
    ref = node.inputs[0]
    while True:
        if ref.init is not None:
            return None
        delay += ref.delay
        source = graph[ref.node]
        if not isinstance(source, Reshape):
            break
        ref = source.inputs[0]
    if isinstance(source, Add):
        return (source, delay) if any(_linear(graph, operand) for operand in source.inputs) else None
    if not isinstance(source, WEIGHTED) or source.delay is not None or source.inputs[0].init is not None:
        return None
    return source, delay


def _constant(graph: Graph, node: Weighted) -> list[Node]:
    """What weights make of a constant number, as a constant; nothing where they read anything else."""
    ref = node.inputs[0]
    delay, source, plain = ref.delay, graph[ref.node], ref.init is None
    while isinstance(source, Reshape):
        (ref,) = source.inputs
        delay, source, plain = delay + ref.delay, graph[ref.node], plain and ref.init is None
    if not isinstance(source, Constant) or source.kind != "value" or node.delay is not None or not plain:
        return []
    table = connections(node, graph.type_of(node.inputs[0]).shape)
    value = np.zeros(table.shape[0], np.result_type(source.value, node.weight))
    np.add.at(value, table.rows, table.weight * source.value.ravel()[table.columns])
    shape = graph.shape_of(node.name)
    made = Constant(name=node.name, value=value.reshape(shape), start=source.start + delay, loc=node.loc)
    if node.bias is None:
        return [made]
    taken = set(graph.by_name)
    made = replace(made, name=fresh_name(taken, f"{node.name}_constant"))
    bias = Constant(name=fresh_name(taken, f"{node.name}_bias"), value=spread_bias(node, shape), loc=node.loc)
    return [made, bias, Add(name=node.name, inputs=(Ref(made.name), Ref(bias.name)), loc=node.loc, dtype=node.dtype)]


def _linear(graph: Graph, ref: Ref) -> bool:
    node = graph[ref.node]
    while isinstance(node, Reshape):
        node = graph[node.inputs[0].node]
    if isinstance(node, Add):
        return any(_linear(graph, operand) for operand in node.inputs)
    return isinstance(node, WEIGHTED)


def _over_sum(graph: Graph, node: Node, inner: Add, delay: int, ledger: Ledger) -> list[Node]:
    """Weights over a sum are the sum of weights over its operands."""
    assert isinstance(node, WEIGHTED)
    taken = set(graph.by_name)
    shape = graph.type_of(node.inputs[0]).shape
    nodes: list[Node] = []
    parts: list[str] = []
    for number, operand in enumerate(inner.inputs):
        ref = operand.later(delay)
        if shape != graph.type_of(operand).shape:
            reshape = Reshape(name=fresh_name(taken, f"{node.name}_in{number}"), inputs=(ref,), shape=shape, loc=node.loc)
            nodes.append(reshape)
            ref = Ref(reshape.name)
        part = replace(node, name=fresh_name(taken, f"{node.name}_{number}"), inputs=(ref,), bias=None if number else node.bias)
        nodes.append(part)
        parts.append(part.name)
    ledger.record(node, "exact", f"split over the {len(parts)} operands of %{inner.name}")
    return [*nodes, Add(name=node.name, inputs=tuple(map(Ref, parts)), loc=node.loc, dtype=node.dtype)]


def _merged(graph: Graph, node: Node, inner: Node, delay: int) -> list[Node] | None:
    """The nodes that take a layer's place, with the layer before it in it; None where the product would be too large."""
    assert isinstance(node, WEIGHTED) and isinstance(inner, WEIGHTED)
    (ref,) = inner.inputs
    ref = ref.later(delay)
    shape, result = graph.type_of(ref).shape, graph.shape_of(node.name)
    taken = set(graph.by_name)
    offset = None
    if inner.bias is not None and inner.bias.any():
        before = spread_bias(inner, graph.shape_of(inner.name)).ravel()
        steps = connections(node, graph.type_of(node.inputs[0]).shape)
        offset = np.zeros(steps.shape[0], np.result_type(before, node.weight))
        np.add.at(offset, steps.rows, steps.weight * before[steps.columns])
        offset = offset.reshape(result)
    nodes: list[Node] = []
    name = node.name if offset is None else fresh_name(taken, f"{node.name}_linear")
    merged: Node | None = None
    if isinstance(node, Conv) and isinstance(inner, Conv) and graph.type_of(node.inputs[0]).shape == graph.shape_of(inner.name):
        merged = _convolved(replace(node, name=name), inner, shape, result)
    if merged is not None:
        nodes.append(replace(merged, inputs=(ref,)))
    else:
        made = _product(graph, node, inner, name, ref, shape, result, taken)
        if made is None:
            return None
        nodes += made
    if offset is not None:
        constant = Constant(name=fresh_name(taken, f"{node.name}_constant"), value=offset, start=delay, loc=node.loc)
        nodes += [constant, Add(name=node.name, inputs=(Ref(name), Ref(constant.name)), loc=node.loc, dtype=node.dtype)]
    return nodes


def _blocks(node: Conv, groups: int) -> Array:
    """Kernels (groups, out, in, *kernel) of a convolution seen as one of fewer groups: zeros where channels do not meet."""
    out, per_group = node.weight.shape[:2]
    inside = node.groups // groups
    result = np.zeros((groups, out // groups, per_group * inside, *node.weight.shape[2:]), node.weight.dtype)
    own = out // node.groups
    for group in range(node.groups):
        block, place = divmod(group, inside)
        rows = slice(place * own, (place + 1) * own)
        result[block, rows, place * per_group : (place + 1) * per_group] = node.weight[group * own : (group + 1) * own]
    return result


def _convolved(outer: Conv, inner: Conv, shape: tuple[int, ...], result: tuple[int, ...]) -> Conv | None:
    """One convolution for two, or None where the outer one's padding would not be the inner one's."""
    if outer.weight.ndim != inner.weight.ndim:
        return None
    middle = window_shape(inner, shape[1:], inner.weight.shape[2:], inner.dilation)
    for axis, (n, m) in enumerate(zip(shape[1:], middle, strict=True)):
        reach = inner.dilation[axis] * (inner.weight.shape[2 + axis] - 1)
        # What the outer one takes for padding has to be padding of the inner one as well.
        before = reach - inner.stride[axis] - inner.padding[axis] < 0
        if outer.padding[axis] and not (before and m * inner.stride[axis] - inner.padding[axis] >= n):
            return None
    groups = gcd(inner.groups, outer.groups)
    first, second = _blocks(inner, groups), _blocks(outer, groups)
    steps = [d * s for d, s in zip(outer.dilation, inner.stride, strict=True)]
    kernel = [
        (b - 1) * step + (a - 1) * d + 1
        for a, b, step, d in zip(first.shape[3:], second.shape[3:], steps, inner.dilation, strict=True)
    ]
    both = np.zeros((groups, second.shape[1], first.shape[2], *kernel), np.result_type(first, second, _wide(first)))
    for tap in np.ndindex(*second.shape[3:]):
        places = tuple(
            slice(k * step, k * step + (a - 1) * d + 1, d)
            for k, step, a, d in zip(tap, steps, first.shape[3:], inner.dilation, strict=True)
        )
        both[(slice(None), slice(None), slice(None), *places)] += np.einsum(
            "gom,gmi...->goi...", second[(slice(None), slice(None), slice(None), *tap)], first
        )
    made = replace(
        outer,
        weight=both.reshape(-1, *both.shape[2:]),
        stride=tuple(a * b for a, b in zip(inner.stride, outer.stride, strict=True)),
        padding=tuple(p * s + q for p, s, q in zip(outer.padding, inner.stride, inner.padding, strict=True)),
        dilation=(1,) * len(kernel),
        groups=groups,
    )
    size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(shape[1:], made.padding, kernel, made.stride, strict=True)]
    return made if tuple(size) == result[1:] else None


def _wide(array: Array) -> np.dtype[np.generic]:
    """Products of integers need more bits."""
    return np.dtype(np.int32) if array.dtype.kind != "f" else array.dtype


def _product(
    graph: Graph,
    node: Weighted,
    inner: Weighted,
    name: str,
    ref: Ref,
    shape: tuple[int, ...],
    result: tuple[int, ...],
    taken: set[str],
) -> list[Node] | None:
    """The product of the two matrices: dense where most of it is there, else sparse."""
    outer, first = connections(node, graph.type_of(node.inputs[0]).shape), connections(inner, shape)
    product = _times(outer, first)
    if product is None:
        return None
    bias = None if node.bias is None else spread_bias(node, result).ravel()
    size, width = outer.shape[0], first.shape[1]
    nodes: list[Node] = []
    if len(shape) > 1:
        now = Ref(ref.node, ref.port)  # a synapse can wait, a wire without one cannot
        flat = Reshape(name=fresh_name(taken, f"{node.name}_flat"), inputs=(now,), shape=(width,), loc=node.loc)
        nodes.append(flat)
        ref = Ref(flat.name, delay=ref.delay)
    made = name if len(result) == 1 else fresh_name(taken, f"{node.name}_matrix")
    if 2 * len(product.weight) >= size * width:
        weight = np.zeros((size, width), product.weight.dtype)
        weight[product.rows, product.columns] = product.weight
        nodes.append(Dense(name=made, inputs=(ref,), weight=weight, bias=bias, loc=node.loc, dtype=node.dtype))
    else:
        weight, indices, indptr, _ = product.compressed()
        sparse = Sparse(
            name=made, inputs=(ref,), weight=weight, indices=indices, indptr=indptr, fan_in=width, bias=bias, loc=node.loc
        )
        nodes.append(replace(sparse, dtype=node.dtype))
    if made != name:
        nodes.append(Reshape(name=name, inputs=(Ref(made),), shape=result, loc=node.loc))
    return nodes


def _times(outer: Connections, inner: Connections) -> Connections | None:
    """The matrix product, every place once."""
    order = np.argsort(inner.rows, kind="stable")
    rows, columns, weight = inner.rows[order], inner.columns[order], inner.weight[order]
    begin = np.searchsorted(rows, outer.columns, side="left")
    count = np.searchsorted(rows, outer.columns, side="right") - begin
    total = int(count.sum())
    if total > MOST:
        return None
    entry = np.repeat(np.arange(len(outer.rows)), count)
    within = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
    source = begin[entry] + within
    place = outer.rows[entry].astype(np.int64) * inner.shape[1] + columns[source]
    dtype = np.result_type(outer.weight, weight, _wide(weight))
    product = outer.weight[entry].astype(dtype) * weight[source]
    unique, turn = np.unique(place, return_inverse=True)
    summed = np.zeros(len(unique), dtype)
    np.add.at(summed, turn, product)
    shape = (outer.shape[0], inner.shape[1])
    return Connections(unique // shape[1], unique % shape[1], summed, np.zeros(len(unique), np.int64), shape)
