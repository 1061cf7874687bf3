"""Biases moved until populations are as active in integers as they are in floats: what rounding took on average is given back.

Rounded weights shift what a neuron integrates, and in a recurrent network the shift feeds itself: single spikes cannot be kept, the
rates can. A neuron that fires too little on the calibration data gets the bias that makes up for it, one that fires too much loses
it, and a membrane that is an output its mean, in a few rounds of the whole network in integers. Only layers that have a bias take
part: for them it costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np

from spikec.bits import MIXED
from spikec.inputs import recode
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret, record_name
from spikec.ir.ops import Add, Conv, Dense, Neuron
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.payloads import real_inputs
from spikec.passes.quantize import Quantize
from spikec.passes.rounding import kept
from spikec.passes.to_fixed import ToFixed
from spikec.passes.translate import thresholds
from spikec.target import Target

#: Rounds of correction, and the share of a difference that each takes back.
ROUNDS: Final = 3
_PACE: Final = 0.7
#: A difference, in squares relative to what is wanted, that is left as it is: rates that are off by about 1 %.
ENOUGH: Final = 1e-4
#: At most so many calibration samples are looked at; the quantizer of a round sees all that it searches on, as it will after it.
SAMPLES: Final = 32
SEARCHED: Final = 96


@dataclass(frozen=True)
class _Place:
    """A layer whose bias moves a population, and by how much (gain, by neuron) for a difference of 1 in the population's mean.

    output: the output that shows its membrane; "" where the population is known by its spikes.
    """

    layer: str
    population: Neuron
    gain: Array
    output: str


@dataclass(frozen=True)
class MatchRates:
    """Biases for which the integers are as active as the floats. Takes and gives the float level; approximate.

    The options are the quantizer's that follows; without calibration data, with scales that are to be kept, and with bits that
    are still to be chosen, nothing happens.
    """

    target: Target
    bits: int | str | None = None
    calibrate: Mapping[str, Array] | None = None
    scales: Mapping[str, float] | None = None
    input_bits: int | None = None
    input_max: float | None = None
    name: ClassVar[str] = "match-rates"
    levels: ClassVar[tuple[str, ...]] = ("float",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The same network with other biases, those of the round that differed least."""
        places = _places(graph)
        if self.calibrate is None or self.scales is not None or self.bits == MIXED or not places:
            return graph
        data = {name: array[:SAMPLES] for name, array in self.calibrate.items()}
        seen = self.calibrate if real_inputs(graph) else {name: array[:SEARCHED] for name, array in self.calibrate.items()}
        wanted = _means(graph, data, places, {})
        now, rounds = graph, []
        for number in range(ROUNDS + 1):
            told = Ledger()
            integers = self._quantizer(seen).run(now, told)
            units = {entry.what.split()[2]: entry.measured["unit"] for entry in told if "unit" in entry.measured}
            found = _means(integers, recode(graph, integers, data), places, units)
            rounds.append((_distance(places, wanted, found), number, now))
            if rounds[-1][0] < ENOUGH:
                break
            if number < ROUNDS:
                now = _moved(now, places, wanted, found)
        (before, _, _), (after, number, best) = rounds[0], min(rounds, key=lambda item: item[:2])
        for place in {place.layer: place for place in places}.values() if number else ():
            change = np.abs(best[place.layer].bias - graph[place.layer].bias)  # type: ignore[attr-defined]  # a layer with a bias
            ledger.record(
                graph[place.layer],
                "approximation",
                "biases moved until the integers are as active as the floats",
                changed=int(np.count_nonzero(change)),
                total=int(change.size),
                largest=float(change.max(initial=0)),
                asked="--calibrate",
                measured={"difference before": before, "difference after": after},
            )
        return best

    def _quantizer(self, data: Mapping[str, Array]) -> Quantize | ToFixed:
        options = {"calibrate": data, "input_bits": self.input_bits, "input_max": self.input_max}
        if "quantize" in self.target.passes:
            return Quantize(self.target, self.bits, **options)  # type: ignore[arg-type]  # by name
        return ToFixed(self.target, self.bits or 8, **options)  # type: ignore[arg-type]  # by name


def _places(graph: Graph) -> list[_Place]:
    """Where a bias can be moved, and what tells how far: one layer for each population."""
    found: dict[str, _Place] = {}
    shown = {(ref.node, ref.port): name for name, ref in reversed(graph.outputs)}
    for node in graph.nodes:
        if not isinstance(node, (Dense, Conv)) or node.bias is None or node.bias.ndim != 1:
            continue
        population = _behind(graph, node.name)
        if population is None or population.name in found:
            continue
        emit = population.program.emits[0]
        if emit.kind == "spike":
            gain, output = thresholds(population), ""
        elif emit.kind == "value" and (population.name, "") in shown:
            leak = kept(population, emit.name)
            gain, output = None if leak is None else 1 - leak, shown[population.name, ""]
        else:
            continue
        if gain is not None and np.all(np.isfinite(gain)) and gain.ndim <= 1 and np.all(gain > 0):
            found[population.name] = _Place(node.name, population, gain, output)
    return list(found.values())


def _behind(graph: Graph, name: str) -> Neuron | None:
    """The one population that reads a layer, itself or in a sum; None where anything else does."""
    if any(ref.node == name for _, ref in graph.outputs) or len(graph.users[name]) != 1:
        return None
    ((user, at),) = graph.users[name]
    if user.inputs[at].delay:
        return None
    return user if isinstance(user, Neuron) else _behind(graph, user.name) if isinstance(user, Add) else None


def _means(graph: Graph, data: Mapping[str, Array], places: list[_Place], units: Mapping[str, float]) -> dict[str, Array]:
    """What every population shows on average: rates of spikes, membranes in the model's unit; by its name, for each bias."""
    wires = [record_name((place.population.name, "")) for place in places]
    run = interpret(graph, data, record=wires)
    result = {}
    for place, wire in zip(places, wires, strict=True):
        mean = run.records[wire].astype(np.float64).mean(axis=(0, 1)) * units.get(place.output, 1.0)
        result[place.population.name] = mean.reshape(len(mean), -1).mean(axis=1) if mean.ndim > 1 else mean
    return result


def _distance(places: list[_Place], wanted: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The squared difference relative to the square of what is wanted: of all rates together, and of each output's membranes."""
    total = 0.0
    for output in {place.output for place in places}:
        names = [place.population.name for place in places if place.output == output]
        off = sum(float(np.sum(np.square(found[name] - wanted[name]))) for name in names)
        total += off / (sum(float(np.sum(np.square(wanted[name]))) for name in names) or 1.0)
    return total


def _moved(graph: Graph, places: list[_Place], wanted: Mapping[str, Array], found: Mapping[str, Array]) -> Graph:
    """The graph with biases that take some of the difference back."""
    nodes = dict(graph.by_name)
    for place in places:
        node = nodes[place.layer]
        assert isinstance(node, (Dense, Conv)) and node.bias is not None
        name = place.population.name
        difference = wanted[name] - found[name]
        if difference.shape == node.bias.shape:
            change = _PACE * place.gain * difference
            nodes[node.name] = replace(node, bias=(node.bias + change).astype(node.bias.dtype))
    return graph.with_nodes(nodes[node.name] for node in graph.nodes)
