"""Which neurons can be shown never to emit anything: by running them on silence, and by the worst case of their inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from spikec.ir.bounds import Bounds, bounds_of
from spikec.ir.graph import Graph
from spikec.ir.interpret import Interpreter
from spikec.ir.neuron import STEP, variables
from spikec.ir.ops import Input, Neuron, Ref, spread
from spikec.ir.ranges import Overflow, graph_ranges, initial_ranges, of_array, program_ranges
from spikec.ir.types import Array

#: A neuron on silent input has to come to rest within so many steps to be called silent for ever.
REST_STEPS: Final = 256
#: With more different parameter sets than this the neurons of a population are looked at together.
MANY_KINDS: Final = 256


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
        bounds = [bounds_of(graph, ref, ranges) for ref in node.inputs]
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
