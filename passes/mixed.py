"""Mixed precision: how many bits each layer's weights get, so that all of them stay within a budget of bytes at the least cost.

Each layer's sensitivity is measured by itself: with only this layer at fewer bits, the share of spikes that change (the mean
over the populations) and the share of answers that change or, with labels, of right answers that are lost. What layers cost is
taken to add up; which width each gets is then a multiple-choice knapsack, which an integer program solves exactly. Equal widths
are taken instead where they fit and cost less, measured together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from spikec.bits import DEFAULT, layer_bytes
from spikec.diagnostics import CompileError
from spikec.inputs import recode
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret, record_name
from spikec.ir.ops import Neuron
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.chip_grid import one_each
from spikec.passes.costs import Judge
from spikec.passes.groups import WEIGHTED, groups_of
from spikec.progress import Bar
from spikec.score import answers

#: Widths that are tried, as far as the target has them.
TRIED: Final = (8, 6, 5, 4, 3, 2)
#: At most so many calibration samples are looked at.
SAMPLES: Final = 96
#: A graph of integers for these widths by layer, calibrated on these data, with these scales by layer kept, and what it recorded.
Quantise = Callable[[Mapping[str, int], Mapping[str, Array], Mapping[str, float]], tuple[Graph, Ledger]]
Table = dict[str, dict[int, float]]


def choose_widths(
    graph: Graph,
    ledger: Ledger,
    quantise: Quantise,
    legal: Sequence[int],
    calibrate: Mapping[str, Array] | None,
    labels: Array | None,
    budget: int | None,
) -> dict[str, int]:
    """Bits by layer. Raises CompileError SPK001 without calibration data or a budget, SPK219 for a budget that no widths meet."""
    layers = [node for node in graph.nodes if isinstance(node, WEIGHTED) and not one_each(node)]
    if budget is None:
        raise CompileError("SPK001", "mixed bits need a budget to share out", fix="give max_bytes (--max-bytes)")
    judge = _Sensitivity(graph, calibrate, labels)
    tried = [bits for bits in TRIED if bits in legal]
    bytes_ = {node.name: {bits: layer_bytes(node, bits) for bits in tried} for node in layers}
    least = sum(min(each.values()) for each in bytes_.values())
    if least > budget:
        raise CompileError(
            "SPK219",
            f"no widths reach {budget} bytes: the weights take {least} at {tried[-1]} bits each",
            fix="allow more bytes, or prune as well (--prune 0.5, --prune-structured 0.3)",
        )
    costs = _costs(graph, tried, quantise, judge)
    found = knapsack(costs, bytes_, budget)
    if found is None:
        raise CompileError(
            "SPK219",
            f"no widths that this network can be compiled with reach {budget} bytes",
            fix="allow more bytes, or prune as well (--prune 0.5, --prune-structured 0.3)",
        )
    # Costs do not quite add up: equal widths, where they fit, may be better after all.
    even = next((bits for bits in tried if sum(each[bits] for each in bytes_.values()) <= budget), None)
    if even is not None and found != (same := dict.fromkeys(found, even)):
        found = min((found, same), key=lambda widths: judge.cost(quantise(widths, judge.data, {})[0]))
    for node in layers:
        bits = found[node.name]
        figures = {"bits": float(bits), "bytes": float(bytes_[node.name][bits]), "cost alone": costs[node.name][bits]}
        ledger.record(node, "convention", f"its weights get {bits} bits", measured=figures)
    whole = {
        "bytes": float(sum(bytes_[name][bits] for name, bits in found.items())),
        f"bytes at {DEFAULT} bits": float(sum(each[DEFAULT] for each in bytes_.values())),
        "of": float(budget),
        **judge.figures(quantise(found, judge.data, {})[0]),
    }
    ledger.record("", "convention", "mixed precision: the weights, packed", measured=whole)
    return found


class _Sensitivity(Judge):
    """The judge of answers, and of spikes: changed ones as a share of the float network's, the mean over its populations."""

    def __init__(self, graph: Graph, calibrate: Mapping[str, Array] | None, labels: Array | None) -> None:
        few = None if calibrate is None else {name: array[:SAMPLES] for name, array in calibrate.items()}
        super().__init__(graph, few, None if labels is None else labels[:SAMPLES], "mixed bits")
        self.spiking = [node.name for node in graph.neurons if _spikes(node)]
        self.records = interpret(graph, self.data, record=self.spiking).records

    def figures(self, changed: Graph) -> dict[str, float]:
        """`loss` and answers as every judge has them, and `spikes changed`."""
        run = interpret(changed, recode(self.graph, changed, self.data), record=self.spiking)
        shares = []
        for name in self.spiking:
            before, after = self.records[record_name((name, ""))] != 0, run.records[record_name((name, ""))] != 0
            shares.append(float(np.count_nonzero(before != after)) / float(max(int(np.count_nonzero(before)), 1)))
        return {**self.of(answers(run.outputs[self.name])), "spikes changed": float(np.mean(shares)) if shares else 0.0}

    def cost(self, changed: Graph) -> float:
        """One number: the share of spikes that change, and that of answers."""
        figures = self.figures(changed)
        return figures["spikes changed"] + max(figures["loss"], 0.0)


def _spikes(node: Neuron) -> bool:
    return node.program.emits[0].kind == "spike"


def _costs(graph: Graph, tried: Sequence[int], quantise: Quantise, judge: _Sensitivity) -> Table:
    """What each layer at each width costs more than all of them at the most bits; infinite where that cannot be compiled.

    Populations that the layer does not reach keep the scale that they have with the most bits.
    """
    groups = [[node.name for node in group.weighted] for group in groups_of(graph)]
    widest = {node.name: tried[0] for node in graph.nodes if isinstance(node, WEIGHTED)}
    whole, ledger = quantise(widest, judge.data, {})
    base = judge.cost(whole)
    scales = {entry.node: entry.measured["scale"] for entry in ledger if "scale" in entry.measured}
    costs: Table = {name: {tried[0]: 0.0} for name in widest}
    with Bar("measuring sensitivity") as bar:
        for number, name in enumerate(widest):
            joined = next(group for group in groups if name in group)
            kept = {key: scale for key, scale in scales.items() if not any(key.startswith(other) for other in joined)}
            for k, bits in enumerate(tried[1:]):
                try:
                    changed, _ = quantise({**widest, name: bits}, judge.data, kept)
                    costs[name][bits] = max(judge.cost(changed) - base, 0.0)
                except CompileError:
                    costs[name][bits] = np.inf
                bar(number * (len(tried) - 1) + k + 1, len(widest) * (len(tried) - 1))
    return costs


def knapsack(costs: Table, sizes: Mapping[str, Mapping[int, int]], budget: int) -> dict[str, int] | None:
    """One width for each layer: the least sum of costs among those whose sizes sum up to at most the budget, and of equals the most
    bits; None where there is none."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    choices = [(name, bits) for name, each in costs.items() for bits in each if np.isfinite(each[bits])]
    if {name for name, _ in choices} != set(costs):
        return None
    # A trifle for every bit that goes decides between widths that cost the same; it is well above the solver's tolerance of 1e-6.
    largest = max([costs[name][bits] for name, bits in choices]) or 1.0
    price = np.array([1e6 * costs[name][bits] / largest - 0.01 * bits for name, bits in choices])
    size = np.array([[float(sizes[name][bits]) for name, bits in choices]])
    one_each = np.array([[float(name == layer) for name, _ in choices] for layer in costs])
    limits = [LinearConstraint(one_each, 1, 1), LinearConstraint(size, -np.inf, budget)]
    result = milp(price, integrality=np.ones(len(choices)), bounds=Bounds(0, 1), constraints=limits, options={"mip_rel_gap": 0})
    if result.x is None:
        return None
    return {name: bits for (name, bits), taken in zip(choices, result.x, strict=True) if taken > 0.5}
