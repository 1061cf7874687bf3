"""The scale of a group on a chip: a power of two where that is exact, else the one that changes the fewest spikes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret, record_name
from spikec.ir.neuron import Emit, Program
from spikec.ir.ops import Input, Neuron, Node, Ref
from spikec.ir.types import Array, TensorType
from spikec.ledger import Ledger
from spikec.passes.chip_grid import AMOUNTS, ChipGrid, one_each
from spikec.passes.chip_numbers import convert
from spikec.passes.groups import Group
from spikec.passes.payloads import Payload
from spikec.passes.rounding import moments
from spikec.passes.translate import level_scale, levels

#: Candidate scales, as multiples of the largest that clips no weight.
CANDIDATES: Final = (1.0, 0.98, 1.02, 0.95, 1.05, 0.92, 1.1, 0.88, 1.16, 0.84, 1.25, 0.8, 1.4, 1.6)
#: At most so many calibration samples are used for the search.
SEARCH_SAMPLES: Final = 96


def group_scale(
    grid: ChipGrid,
    group: Group,
    graph: Graph,
    records: Mapping[str, Array] | None,
    payloads: Mapping[str, Payload],
    kept: Mapping[str, float] | None,
) -> float:
    """The scale of a group: one that is to be kept, else an exact one, else the one that changes the fewest spikes."""
    for node in group.weighted:
        if node.name in (kept or {}):
            return (kept or {})[node.name]
    most = min(grid.sum_limit(group, graph, payloads, records), grid.reach_limit(group, records))
    largest = min(grid.weight_limit(group), most)
    exact = exact_scale(grid, group, largest)
    if counted := [distance for node in group.neurons for distance in levels(node)]:
        fitting = level_scale(largest if exact is None else exact, counted[0])
        return exact if exact == fitting else level_scale(largest, counted[0])
    if exact is not None:
        return exact
    if records is None or not _spiking(group) or not group.weighted:
        return largest
    best, fewest = largest, math.inf
    for factor in CANDIDATES:
        scale = min(largest * factor, grid.other_limits(group), most)
        changed = changed_spikes(grid, group, graph, records, scale)
        if changed < fewest:
            best, fewest = scale, changed
    return best


def exact_scale(grid: ChipGrid, group: Group, largest: float) -> float | None:
    """The largest power of two that represents weights, thresholds and biases without rounding."""
    shift = 1 << grid.target.integer("membrane_shift")
    for power in range(math.floor(math.log2(largest)), math.floor(math.log2(largest)) - 24, -1):
        scale = 2.0**power
        multiples = [(node.weight, 1 if one_each(node) else grid.step(node.name)) for node in group.weighted]
        for node in group.neurons:
            if grid.native(node) is None:
                continue
            amounts = grid.by_rule(node, *AMOUNTS)
            multiples += [(amount[np.isfinite(amount)], 1) for amount in amounts]
            for bias in grid.by_rule(node, "bias"):
                multiples.append((bias * shift, 1 << grid.bias_exponent(bias * shift * scale)))
        if all(_whole(array.astype(np.float64) * scale / unit) for array, unit in multiples):
            return scale
    return None


def group_moments(
    grid: ChipGrid,
    group: Group,
    graph: Graph,
    records: Mapping[str, Array] | None,
    scale: float,
) -> dict[str, Array]:
    """What the rounding of a group's weights at a scale looks at, by layer; nothing where the nearest weights change no more
    spikes."""
    if records is None or not group.neurons:
        return {}
    found = {node.name: moment for node in group.weighted if (moment := moments(graph, node, records)) is not None}
    if not found or not _spiking(group):
        return found
    nearest = changed_spikes(grid, group, graph, records, scale)
    return found if nearest and changed_spikes(grid, group, graph, records, scale, found) < nearest else {}


def changed_spikes(
    grid: ChipGrid,
    group: Group,
    graph: Graph,
    records: Mapping[str, Array],
    scale: float,
    seen: Mapping[str, Array] | None = None,
) -> int:
    """Spikes of the group's populations that change at a scale, when they get the float network's spikes."""
    own = {node.name for node in group.nodes}
    inputs: dict[str, Input] = {}
    data: dict[str, Array] = {}
    nodes = []
    for node in convert(grid, group.nodes, graph, scale, records, Ledger(), {}, seen=seen):
        refs = []
        for ref in node.inputs:
            if ref.node in own and graph.type_of(ref).kind == "value":
                refs.append(ref)
                continue
            name = f"from {ref.node} {ref.port}"  # a name that no node has
            kind, sent = graph.type_of(ref).kind, records[ref.node]
            spiking = kind == "spike"
            bounds = None if spiking else (min(int(sent.min(initial=0)), 0), max(int(sent.max(initial=0)), 1))
            type_ = TensorType("spike" if spiking else "graded", graph.type_of(ref).shape, "i8" if spiking else "i32")
            inputs[name] = Input(name=name, type=type_, bounds=bounds)
            data[name] = sent
            refs.append(replace(ref, node=name, port=""))
        nodes.append(replace(node, inputs=tuple(refs)))
    outputs = tuple((node.name, Ref(node.name)) for node in _spiking(group))
    alone = Graph("search", "fixed", (*inputs.values(), *nodes), outputs)
    result = interpret(alone, data)
    return sum(int(np.count_nonzero(result.outputs[n.name] != records[n.name])) for n in _spiking(group))


def _spiking(group: Group) -> list[Neuron]:
    return [node for node in group.neurons if node.program.emits[0].kind != "value"]


def _whole(array: Array) -> bool:
    return bool(np.all(np.isfinite(array)) and np.all(array == np.rint(array)))


def _showing(grid: ChipGrid, graph: Graph) -> Graph:
    """The graph with the currents to look at that are membranes."""
    nodes: list[Node] = []
    for node in graph.nodes:
        state = grid.kept_current(node) if isinstance(node, Neuron) else None
        if isinstance(node, Neuron) and state is not None and all(emit.name != state for emit in node.program.emits):
            old = node.program
            emits = (*old.emits, Emit(state, "value"))
            program = Program(f"{old.name}_{state}", old.inputs, old.params, old.states, old.body, emits)
            nodes.append(replace(node, program=program))
        else:
            nodes.append(node)
    return graph.with_nodes(nodes)


def float_run(grid: ChipGrid, graph: Graph, calibrate: Mapping[str, Array] | None) -> dict[str, Array] | None:
    """What every wire of spikes or payloads carries, and what populations give and hold, on a few samples."""
    if calibrate is None:
        return None
    graph = _showing(grid, graph)
    data = {name: array[:SEARCH_SAMPLES] for name, array in calibrate.items()}
    kept = {node.name for node in graph.nodes if graph.types[node.name][0][1].kind != "value"} | {n.name for n in graph.neurons}
    wires = [record_name((name, port)) for name, ports in graph.types.items() if name in kept for port, _ in ports]
    return interpret(graph, data, record=wires).records
