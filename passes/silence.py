"""Which neurons can be shown never to emit anything: by running them on silence, and by the worst case of their inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.interpret import Interpreter
from spikec.ir.neuron import STEP, variables
from spikec.ir.ops import Add, Concat, Conv, Dense, Gather, Input, Neuron, Node, Ref, Reshape, Scale, Sparse, spread
from spikec.ir.ranges import Interval, Overflow, Ranges, graph_ranges, hull, initial_ranges, of_array, program_ranges
from spikec.ir.types import Array

#: A neuron on silent input has to come to rest within so many steps to be called silent for ever.
REST_STEPS: Final = 256
#: With more different parameter sets than this the neurons of a population are looked at together.
MANY_KINDS: Final = 256
Bounds = tuple[Array, Array]


def ports_read(graph: Graph, node: Neuron) -> frozenset[str]:
    """The ports of a population that a node or an output reads."""
    read = {ref.port for _, ref in graph.outputs if ref.node == node.name}
    for user, _ in graph.users[node.name]:
        read |= {ref.port for ref in user.inputs if ref.node == node.name}
    return frozenset(read)


def never_emits(graph: Graph, node: Neuron, silent: list[Array]) -> Array:
    """Neurons (shape) whose operands are silent and that then stay silent for ever, on every port that is read.

    silent: one mask (shape) an operand. Shown by running the program until its states repeat.
    """
    shape = graph.shape_of(node.name)
    candidates = np.logical_and.reduce(silent) if silent else np.ones(shape, bool)
    if not candidates.any() or any(STEP in variables(statement.expr) for statement in node.program.body):
        return np.zeros(shape, bool)
    types = [graph.type_of(ref) for ref in node.inputs]
    inputs = [Input(name=f"in{number}", type=type_) for number, type_ in enumerate(types)]
    alone = replace(node, inputs=tuple(Ref(item.name) for item in inputs), lag=0, start=0)
    machine = Interpreter(Graph("silence", graph.level, (*inputs, alone), ()), 1)
    zeros = {item.name: np.zeros((1, *item.type.shape)) for item in inputs}
    heard, rest, quiet = ports_read(graph, node), np.zeros(shape, bool), candidates.copy()
    for _ in range(REST_STEPS):
        before = {name: value.copy() for name, value in machine.states[node.name].items()}
        now = machine.step(zeros)
        for port in heard:
            quiet &= now[node.name, port][0] == 0
        after = machine.states[node.name]
        same = [(before[name] == after[name])[0] for name in before]
        rest |= np.logical_and.reduce(same) if same else np.ones(shape, bool)
        if np.all(rest | ~quiet):
            break
    return np.asarray(quiet & rest)


def never_fires(graph: Graph) -> dict[str, Array]:
    """Neurons of a graph of integers whose worst-case inputs cannot make them emit, by population; those without any left out.

    The neurons are ordered by the largest input that they can get. An interval that holds the inputs of several neurons and does
    not suffice for one to fire does not suffice for any of them, so that the longest silent prefix is found by bisection.
    """
    ranges = graph_ranges(graph)
    found = {}
    for node in graph.neurons:
        heard = ports_read(graph, node)
        if not heard or not node.inputs:
            continue
        bounds = [_bounds(graph, ref, ranges) for ref in node.inputs]
        mask = _silent_prefix(node, graph.shape_of(node.name), bounds, heard)
        if mask.any():
            found[node.name] = mask
    return found


def _silent_prefix(node: Neuron, shape: tuple[int, ...], bounds: list[Bounds], heard: frozenset[str]) -> Array:
    lows = [np.broadcast_to(low, shape).ravel() for low, _ in bounds]
    highs = [np.broadcast_to(high, shape).ravel() for _, high in bounds]
    params = {name: np.broadcast_to(spread(array, shape), shape).ravel() for name, array in node.params.items()}
    init = {name: np.broadcast_to(spread(array, shape), shape).ravel() for name, array in node.init.items()}
    reach = np.max([np.maximum(np.abs(a), np.abs(b)) for a, b in zip(lows, highs, strict=True)], axis=0)

    def silent(chosen: Array) -> bool:
        inputs = [(int(low[chosen].min()), int(high[chosen].max())) for low, high in zip(lows, highs, strict=True)]
        own = {name: of_array(array[chosen]) for name, array in params.items()}
        begin = initial_ranges(node) | {name: of_array(array[chosen]) for name, array in init.items()}
        try:
            result = program_ranges(node.program, inputs, own, begin)
        except Overflow:
            return False
        ports = ["", *(emit.name for emit in node.program.emits[1:])]
        emitted = zip(ports, node.program.emits, strict=True)
        return all(result.final[emit.name] == (0, 0) for port, emit in emitted if port in heard)

    mask = np.zeros(reach.size, bool)
    for members in _alike([*params.values(), *init.values()], reach.size):
        order = members[np.argsort(reach[members], kind="stable")]
        low, high = 0, len(order)
        while low < high:
            middle = (low + high + 1) // 2
            if silent(order[:middle]):
                low = middle
            else:
                high = middle - 1
        mask[order[:low]] = True
    return mask.reshape(shape)


def _alike(arrays: list[Array], size: int) -> list[Array]:
    """Neurons with the same parameters together; all in one where nearly every neuron has its own."""
    if not arrays or not size:
        return [np.arange(size)]
    rows = np.stack(arrays, axis=1)
    _, kind = np.unique(rows, axis=0, return_inverse=True)
    if kind.max() >= MANY_KINDS:
        return [np.arange(size)]
    return [np.flatnonzero(kind.ravel() == number) for number in range(int(kind.max()) + 1)]


def _bounds(graph: Graph, ref: Ref, ranges: Ranges) -> Bounds:
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
        parts = [_bounds(graph, ref, ranges) for ref in node.inputs]
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
