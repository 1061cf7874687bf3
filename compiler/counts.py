"""What a run costs, counted: spikes, synaptic operations, neuron updates, messages (design §8).

All are exact integers, and none depends on the backend:
- *spikes*: values other than zero that an input or a population sends; a population's dense values (a membrane that is an
  output) are not spikes;
- *synaptic operations*: every spike times the connections that it meets, those of weight zero and those that a convolution's
  padding or stride cuts off left out, counted for the population that receives them; none in steps in which no population looks
  at the sum (`spikec.ir.windows`);
- *updates*: every neuron of a population once a step, from its `start` on and before its `stop`;
- *messages*: every spike times the nodes (synaptic nodes and populations) that receive it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.interpret import Wire, interpret, record_name
from spikec.ir.ops import Constant, Conv, Dense, Input, Neuron, Node, Ref, Sparse
from spikec.ir.types import Array
from spikec.ir.windows import inside, needed

SYNAPTIC: Final = (Dense, Sparse, Conv)


@dataclass(frozen=True)
class Counts:
    """Whole numbers over all samples and steps of a run."""

    spikes: int = 0
    synaptic_operations: int = 0
    updates: int = 0
    messages: int = 0


def synapses(node: Dense | Sparse | Conv, shape: tuple[int, ...]) -> int:
    """The connections of a synaptic node whose operand has this shape, weights of zero left out."""
    if isinstance(node, Dense):
        return int(np.count_nonzero(node.weight)) * math.prod(shape[:-1])
    return int(np.count_nonzero(node.weight)) if isinstance(node, Sparse) else int(fan_out(node, shape).sum())


def fan_out(node: Dense | Sparse | Conv, shape: tuple[int, ...]) -> Array:
    """For every element of the operand (shape), how many connections with a weight other than zero leave it."""
    if isinstance(node, Dense):
        return np.broadcast_to(np.count_nonzero(node.weight, axis=0).astype(np.int64), shape)
    present = (node.weight != 0).astype(np.int64)
    if isinstance(node, Sparse):
        return np.bincount(node.indices.astype(np.int64), weights=present, minlength=node.fan_in).astype(np.int64)
    group = node.weight.shape[0] // node.groups
    # (in, *kernel): how many output channels each tap of each input channel feeds.
    taps = np.concatenate([present[g * group : (g + 1) * group].sum(axis=0) for g in range(node.groups)])
    for axis, size in enumerate(shape[1:]):
        # reach[k, i]: whether tap k, somewhere, falls on position i of this axis.
        stride, pad, dilation = node.stride[axis], node.padding[axis], node.dilation[axis]
        kernel = node.weight.shape[2 + axis]
        count = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        reach = np.zeros((kernel, size), np.int64)
        for k in range(kernel):
            positions = np.arange(count) * stride + k * dilation - pad
            reach[k, positions[(positions >= 0) & (positions < size)]] = 1
        taps = np.moveaxis(np.tensordot(taps, reach, axes=([1], [0])), -1, taps.ndim - 1)
    return taps


def logical_delay(graph: Graph, node: Node, ref: Ref) -> int:
    """The delay of a reference in the model's own steps, whatever the lags."""
    return ref.delay + graph[ref.node].lag - node.lag


def _wire(graph: Graph, ref: Ref) -> Wire:
    return (ref.node, ref.port)


def _traces(graph: Graph, inputs: Mapping[str, Array], records: Mapping[str, Array], wanted: list[Wire]) -> dict[Wire, Array]:
    """The values (batch, T, *shape) of wires, from the inputs and the recorded populations.

    What lies between (reshape, concat, pool …) has no state of its own: it is interpreted with the records as inputs.
    """
    given: dict[Wire, Array] = {}
    for node in graph.nodes:
        for port, _ in graph.types[node.name]:
            wire = (node.name, port)
            if isinstance(node, Input):
                given[wire] = inputs[node.name]
            elif record_name(wire) in records:
                given[wire] = records[record_name(wire)]
    needed = [wire for wire in dict.fromkeys(wanted) if wire not in given]
    if not needed:
        return {wire: given[wire] for wire in wanted}
    names = {wire: graph.fresh_name(f"wire{number}") for number, wire in enumerate(given)}
    nodes: list[Node] = []
    sources: dict[str, Array] = {}
    seen: set[str] = set()
    stack = [wire[0] for wire in needed]
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        node = graph[name]
        operands = []
        for ref in node.inputs:
            wire = _wire(graph, ref)
            delay = logical_delay(graph, node, ref)
            if wire in given:
                if names[wire] not in sources:
                    sources[names[wire]] = given[wire]
                    nodes.append(Input(name=names[wire], type=graph.type_of(ref)))
                operands.append(Ref(names[wire], "", delay, ref.init if delay == ref.delay else None))
            else:
                operands.append(Ref(ref.node, ref.port, delay, ref.init if delay == ref.delay else None))
                stack.append(ref.node)
        nodes.append(replace(node, inputs=tuple(operands), lag=0))
    part = Graph(graph.name, graph.level, tuple(nodes), (), graph.dt)
    steps = next(iter(given.values())).shape[1]
    found = interpret(part, sources, record=[record_name(wire) for wire in needed], steps=steps).records
    return {wire: given[wire] if wire in given else found[record_name(wire)] for wire in wanted}


def count(graph: Graph, inputs: Mapping[str, Array], records: Mapping[str, Array], *, skip: int = 0) -> dict[str, Counts]:
    """Counts by node name: every input, every population, and synaptic nodes that feed an output only.

    inputs and records as of one run, (batch, T, *shape), with every population recorded; the first `skip` steps are left out.
    """
    synaptic = [node for node in graph.nodes if isinstance(node, SYNAPTIC)]
    sent = [(node.name, port) for node in (*graph.inputs, *graph.neurons) for port, _ in graph.types[node.name]]
    wanted = [*sent, *(_wire(graph, node.inputs[0]) for node in synaptic)]
    traces = _traces(graph, inputs, records, wanted)
    table: dict[str, Counts] = {}
    for node in graph.nodes:
        if not isinstance(node, (Input, Neuron)):
            continue
        ports = [traces[node.name, port][:, skip:] for port, _ in graph.types[node.name]]
        events = [int(np.count_nonzero(values)) for values in ports]
        messages = sum(
            number * len(_listeners(graph, (node.name, port)))
            for number, (port, _) in zip(events, graph.types[node.name], strict=True)
        )
        updates = 0
        if isinstance(node, Neuron):
            ran = sum(node.runs(node.lag + skip + step) for step in range(ports[0].shape[1]))
            updates = ran * ports[0][:, 0].size if ran else 0
        kinds = [type_.kind for _, type_ in graph.types[node.name]]
        spikes = sum(n for n, kind in zip(events, kinds, strict=True) if isinstance(node, Input) or kind != "value")
        table[node.name] = Counts(spikes=spikes, updates=updates, messages=messages)
    for node in synaptic:
        values = traces[_wire(graph, node.inputs[0])][:, skip:]
        values = values[:, _heard(graph, node, values.shape[1], skip)]
        per_element = np.count_nonzero(values, axis=(0, 1))
        operations = int((per_element * fan_out(node, values.shape[2:])).sum())
        owner = _population(graph, node)
        before = table.get(owner, Counts())
        table[owner] = replace(before, synaptic_operations=before.synaptic_operations + operations)
    return {node.name: table[node.name] for node in graph.nodes if node.name in table}


def operations(graph: Graph, inputs: Mapping[str, Array], records: Mapping[str, Array]) -> Array:
    """Synaptic operations of every sample at every step, (batch, T); inputs and records as for `count`."""
    none = np.zeros(next(iter(inputs.values())).shape[:2], np.int64)
    return sum(operations_by_layer(graph, inputs, records).values(), none)


def operations_by_layer(graph: Graph, inputs: Mapping[str, Array], records: Mapping[str, Array]) -> dict[str, Array]:
    """The same by the population that receives them, (batch, T) each; those that receive through no synapse are left out."""
    synaptic = [node for node in graph.nodes if isinstance(node, SYNAPTIC)]
    traces = _traces(graph, inputs, records, [_wire(graph, node.inputs[0]) for node in synaptic])
    found: dict[str, Array] = {}
    for node in synaptic:
        values = traces[_wire(graph, node.inputs[0])]
        present = (values != 0).reshape(*values.shape[:2], -1).astype(np.float64)
        present[:, ~_heard(graph, node, present.shape[1])] = 0
        own = (present @ fan_out(node, values.shape[2:]).ravel()).astype(np.int64)
        owner = _population(graph, node)
        found[owner] = found[owner] + own if owner in found else own
    return found


def _heard(graph: Graph, node: Node, steps: int, skip: int = 0) -> Array:
    """In which steps, those of its source from `skip` on, what a synaptic node reads is added up."""
    (ref,) = node.inputs
    window, first = needed(graph, node.name), skip + graph[ref.node].lag + ref.delay
    return np.array([inside(window, first + step) for step in range(steps)], bool)


def _follow(graph: Graph, readers: list[Node]) -> list[Node]:
    """Populations and synaptic nodes that are reached through nodes that only rearrange or add."""
    found: dict[str, Node] = {}
    seen: set[str] = set()
    while readers:
        node = readers.pop(0)
        if node.name in seen:
            continue
        seen.add(node.name)
        if isinstance(node, (Neuron, *SYNAPTIC)):
            found[node.name] = node
        elif not isinstance(node, (Input, Constant)):
            readers += [user for user, _ in graph.users[node.name]]
    return list(found.values())


def _listeners(graph: Graph, wire: Wire) -> list[Node]:
    return _follow(graph, [user for user, index in graph.users[wire[0]] if user.inputs[index].port == wire[1]])


def _population(graph: Graph, node: Node) -> str:
    """The population that a synaptic node feeds (the first, where there are several), else its own name."""
    for reached in _follow(graph, [user for user, _ in graph.users[node.name]]):
        if isinstance(reached, Neuron):
            return reached.name
    return node.name
