"""From trained floats to the target's integers: weights, thresholds, decays and biases (loihi2.md 8.3).

All weights that reach a population, its threshold and its bias share one scale S, because the target shifts both the synaptic
sum and the threshold by the same number of bits: W = step * round(S w / step), vth = round(S theta), bias = round(2^shift S b).
S is a power of two where that makes everything exact; otherwise it is searched for on the calibration data, by the spikes that
change, a little beyond the scale at which the largest weight is clipped; without data it is the largest that clips nothing. With
data a neuron's weights are then rounded together (`spikec.passes.rounding`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np

from spikec.bits import CHIP_WIDTHS, MIXED, bits_text, widths_of
from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.ops import Constant, Input, Neuron, Node
from spikec.ir.rules import verify
from spikec.ir.types import Array, TensorType
from spikec.ledger import Ledger
from spikec.passes.chip_bias import place_biases
from spikec.passes.chip_grid import ChipGrid, one_each
from spikec.passes.chip_headroom import check_head_room
from spikec.passes.chip_numbers import convert
from spikec.passes.chip_scale import changed_spikes, float_run, group_moments, group_scale
from spikec.passes.groups import WEIGHTED, groups_of, measure
from spikec.passes.mixed import Quantise, choose_widths
from spikec.passes.payloads import (
    Payload,
    as_integers,
    by_range,
    carrying,
    check_options,
    choose,
    message_unit,
    real_inputs,
    tell,
)
from spikec.passes.readouts import tell_units
from spikec.target import Target

#: At most so many calibration samples are used for each payload that is tried.
TRIAL_SAMPLES: Final = 24


@dataclass(frozen=True)
class Quantize:
    """Float patterns to fixed native programs. Takes the float level (legalised), gives the fixed level; approximate.

    bits: width of a weight, 8 by default and out of the target's legal set; or one a layer, or "mixed" within max_bytes
    (`spikec.bits`). calibrate: (samples, T, *shape) by input name.
    labels: (samples,), to measure the accuracy by spike count of the first output. scales: by layer, a scale that is to be kept,
    the one for which the weights were trained. input_bits: of a payload, where inputs hold real numbers (by default as many as
    change the fewest spikes); input_max: the largest magnitude of such inputs, where there are no calibration data to tell it.
    """

    target: Target
    bits: int | str | None = None
    max_bytes: int | None = None
    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    scales: Mapping[str, float] | None = None
    input_bits: int | None = None
    input_max: float | None = None
    name: ClassVar[str] = "quantize"
    levels: ClassVar[tuple[str, ...]] = ("float",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """A graph of integers. Raises CompileError SPK203 with everything that exceeds the target's range."""
        grid = self._grid(graph, ledger)
        given, calibrate = graph, self.calibrate
        payloads = self._payloads(grid, graph, ledger)
        carried = {node.name: message_unit(graph, node, payloads) for node in graph.nodes if isinstance(node, WEIGHTED)}
        if payloads:
            graph = carrying(graph, payloads)
            calibrate = self._carried(payloads)
        graph = place_biases(grid, graph, ledger)
        problems = [problem for node in graph.neurons for problem in grid.problems(node)]
        if problems:
            raise CompileError.many(problems)
        records = float_run(grid, graph, calibrate)
        converted: dict[str, Node] = {}
        units: dict[tuple[str, str], float] = {}
        for group in groups_of(graph):
            scale = group_scale(grid, group, graph, records, payloads, self.scales)
            seen = group_moments(grid, group, graph, records, scale)
            for node in convert(grid, group.nodes, graph, scale, records, ledger, units, carried, seen):
                converted[node.name] = node
                if not isinstance(node, Neuron):
                    units[node.name, ""] = 1 / scale
        nodes = [converted.get(node.name) or _other(node, payloads) for node in graph.nodes]
        result = graph.with_nodes(nodes, level="fixed")
        try:
            verify(result)
        except CompileError as error:
            raise CompileError.many(
                Diagnostic("SPK203", d.message, loc=d.loc, notes=d.notes, fix=d.fix) for d in error.diagnostics
            ) from None
        tell_units(graph, ledger, units, {})
        check_head_room(grid, given, result, self.calibrate, ledger)
        measure(given, result, self.calibrate, self.labels, ledger)
        return result

    def weight_grids(self, graph: Graph) -> dict[str, tuple[int, int, int]]:
        """Legal weights of every layer: the distance of two, the least and the largest."""
        grid = self._grid(graph, Ledger())
        return {name: grid.weight_grid(name) for name in grid.widths}

    def _grid(self, graph: Graph, ledger: Ledger) -> ChipGrid:
        if self.bits == MIXED:
            widths = choose_widths(graph, ledger, self._trial(graph), CHIP_WIDTHS, self.calibrate, self.labels, self.max_bytes)
        else:
            own = [node.name for node in graph.nodes if one_each(node)]
            widths = widths_of(self.bits, graph, CHIP_WIDTHS, self.target.name, own)
        return ChipGrid(self.target, widths, "" if self.bits is None else f"--bits {self.bits}")

    def _trial(self, graph: Graph) -> Quantise:
        def trial(widths: Mapping[str, int], data: Mapping[str, Array], scales: Mapping[str, float]) -> tuple[Graph, Ledger]:
            told = Ledger()
            return replace(self, bits=bits_text(widths), calibrate=data, labels=None, scales=scales).run(graph, told), told

        return trial

    # Payloads --------------------------------------------------------------------------------------------------------

    def _payloads(self, grid: ChipGrid, graph: Graph, ledger: Ledger) -> dict[str, Payload]:
        """How every real-valued input is sent."""
        inputs = real_inputs(graph)
        if not inputs:
            return {}
        check_options(inputs, self.calibrate, self.input_bits, self.input_max)
        asked = "input_bits" if self.input_bits is not None else ""
        if self.input_bits is not None or self.calibrate is None:
            chosen = by_range(inputs, self.calibrate, self.input_bits or 8, self.input_max)
        else:
            chosen = choose(graph, self.calibrate, lambda found: self._lost(grid, graph, found))
        tell(ledger, inputs, chosen, self.calibrate, asked)
        return chosen

    def _carried(self, payloads: Mapping[str, Payload]) -> dict[str, Array] | None:
        if self.calibrate is None:
            return None
        return {name: payloads[name].of(data) if name in payloads else data for name, data in self.calibrate.items()}

    def _lost(self, grid: ChipGrid, graph: Graph, payloads: Mapping[str, Payload]) -> float:
        """Spikes that change in the populations that real-valued inputs reach, at the largest scale, on a few samples."""
        assert self.calibrate is not None
        few = {name: array[:TRIAL_SAMPLES] for name, array in self.calibrate.items()}
        trial = place_biases(grid, carrying(graph, payloads), Ledger())
        wanted = float_run(grid, graph, few)
        carried = {name: payloads[name].of(data) if name in payloads else data for name, data in few.items()}
        sent = {**(wanted or {}), **carried}
        samples, steps = next(iter(few.values())).shape[:2]
        sent |= {node.name: np.ones((samples, steps, *node.value.shape)) for node in trial.nodes if isinstance(node, Constant)}
        total = 0
        for group in groups_of(trial):
            if group.neurons and any(trial.type_of(node.inputs[0]).kind != "spike" for node in group.weighted):
                scale = min(grid.weight_limit(group), grid.sum_limit(group, trial, payloads))
                total += changed_spikes(grid, group, trial, sent, scale)
        return total


def _other(node: Node, payloads: Mapping[str, Payload]) -> Node:
    """Nodes outside all groups carry spikes and payloads only."""
    if isinstance(node, Input) and node.name in payloads:
        return as_integers(node, payloads[node.name])
    if isinstance(node, Input):
        return replace(node, type=TensorType("spike", node.type.shape, "i8"))
    if isinstance(node, Constant):
        return replace(node, value=node.value.astype(np.int32))
    return node
