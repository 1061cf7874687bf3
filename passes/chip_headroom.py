"""Whether a chip's registers hold the sums and currents of a graph of integers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.headroom import head_room
from spikec.inputs import recode
from spikec.ir.bounds import bounds_of
from spikec.ir.graph import Graph
from spikec.ir.ops import Neuron, spread
from spikec.ir.ranges import graph_ranges
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.chip_grid import ChipGrid


def check_head_room(grid: ChipGrid, given: Graph, graph: Graph, calibrate: Mapping[str, Array] | None, ledger: Ledger) -> None:
    """Sums that the target cannot hold are refused; a current that could wrap, in the worst case, is told."""
    found = graph_ranges(graph)
    wires = found.wires
    limit = grid.target.integer("sum_max")
    shift = grid.target.integer("membrane_shift")
    one = 1 << grid.target.integer("decay_bits")
    top = (1 << (grid.target.integer("membrane_bits") - 1)) - 1
    problems = []
    wrapping: list[tuple[Neuron, Array]] = []
    for node in graph.neurons:
        native = grid.target.native(node.program)
        most = limit if native is not None else top
        largest = max((abs(int(end)) for ref in node.inputs for end in wires[ref.node, ref.port]), default=0)
        if largest > most:
            problems.append(
                Diagnostic(
                    "SPK203",
                    f"%{node.name}: its inputs can sum to {largest}; {grid.target.name} holds sums up to {most}",
                    loc=node.loc,
                    fix="let fewer inputs reach a neuron, or spread them over several",
                )
            )
        if native is None:
            continue
        decay = next((name for name, rule in native.rules.items() if rule.startswith("decay_minus_one")), None)
        if decay is None:
            continue
        # The gain of the leak is the sum of its geometric series.
        shape = graph.shape_of(node.name)
        sums = np.zeros(shape, np.int64)
        for ref in node.inputs:
            sums = np.maximum(sums, np.max(np.abs(np.stack(bounds_of(graph, ref, found))), axis=0))
        kept = np.broadcast_to(spread(node.params[decay], shape), shape).astype(np.float64) + 1
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(sums == 0, 0.0, sums * float(1 << shift) * one / kept)
        if np.max(reach, initial=0) > top:
            wrapping.append((node, reach))
    if problems:
        raise CompileError.many(problems)
    if wrapping:
        data = None if calibrate is None else recode(given, graph, calibrate)
        _wrapping(grid, graph, wrapping, data, top, ledger)


def _wrapping(
    grid: ChipGrid, graph: Graph, found: list[tuple[Neuron, Array]], data: Mapping[str, Array] | None, top: int, ledger: Ledger
) -> None:
    """Currents that wrap in the worst case. Without data that is an approximation; with data only what wraps on them is."""
    rows = head_room(graph, grid.target, data).rows if data is not None else ()
    for node, reach in found:
        worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(reach)), reach.shape))
        who = ", ".join(map(str, worst))
        what = f"in the worst case the current of neuron {who} reaches {float(reach.max()):.4g} and wraps at {top + 1}"
        count = int(np.count_nonzero(reach > top))
        what += f" ({count} of {reach.size} neurons)" if count > 1 else ""
        own = [row for row in rows if row.population == node.name and row.beyond == "wraps"]
        if data is None:
            ledger.record(node, "approximation", what, asked=grid.asked)
            continue
        happened = next((row.happened for row in own if row.happened is not None), None)
        if happened is not None:
            place = ", ".join(map(str, happened.neuron))
            what = f"the current of neuron {place} reaches {happened.value} {happened.cause} and wraps at {top + 1}"
            ledger.record(node, "approximation", what, asked=grid.asked)
            continue
        largest = max((max(-row.calibrated[0], row.calibrated[1]) for row in own if row.calibrated), default=0)
        what += f"; on the calibration data it reaches {largest}, {100 * largest / (top + 1):.3g} % of that"
        ledger.record(node, "convention", what)
