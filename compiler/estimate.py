"""What an inference takes on the target: operations counted, time and energy from published costs, with error bars.

Every figure in joules or seconds is an estimate and carries the label of its source, which is data of the target (`[[costs]]`).
The model of energy is a sum of operations times their cost; that of time is the structural bound of Timcheck et al. 2026
(arXiv 2601.10035): a step lasts no less than the most loaded core's updates or synaptic operations, or the barrier between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Final

import numpy as np

from spikec.counts import SYNAPTIC, Counts
from spikec.ir.graph import Graph
from spikec.ir.ops import Conv, Dense, Input, Neuron, Sparse
from spikec.ir.types import Array
from spikec.shards import core_traffic
from spikec.target import Costs, Target

_PREFIXES: Final = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))


@dataclass(frozen=True)
class Interval:
    """An estimate and its bounds; value is None where only the bounds are known."""

    value: float | None
    low: float
    high: float
    unit: str

    def text(self) -> str:
        """As in `1.2 µJ (0.9 to 2 µJ)`."""
        bounds = f"{quantity(self.low, self.unit)} to {quantity(self.high, self.unit)}"
        return bounds if self.value is None else f"{quantity(self.value, self.unit)} ({bounds})"


def quantity(value: float, unit: str) -> str:
    """Three digits and a prefix."""
    if unit not in ("J", "s", "W"):
        return f"{value:.3g} {unit}"
    scale, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s), _PREFIXES[-1])
    return f"{value / scale:.3g} {prefix}{unit}"


@dataclass(frozen=True)
class Baseline:
    """The same network without spikes: multiply-adds of `passes` dense passes on a processor, and their energy."""

    multiply_adds: int
    passes: int
    energy: Interval
    label: str
    source: str


@dataclass(frozen=True)
class Estimate:
    """Means over the samples of a run, for one inference of so many steps.

    spikes, synaptic_operations, updates, messages: as in `spikec.counts`. hops: between cores, None where neurons have no cores;
    between: messages from a core to another one, None where this run's are not known.
    energy (joules), power (watts), ops_per_joule (synaptic operations), time (seconds): None where the target states no costs;
    `notes` then says so. labels: what joules and seconds are of.
    """

    samples: int
    steps: int
    spikes: float
    synaptic_operations: float
    updates: float
    messages: float
    hops: float | None
    energy: Interval | None
    time: Interval | None
    power: Interval | None
    ops_per_joule: Interval | None
    baseline: Baseline | None
    energy_label: str = ""
    time_label: str = ""
    between: float | None = None
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of everything that is known, for tables."""
        rows = [
            ("synaptic operations", f"{self.synaptic_operations:,.1f}"),
            ("neuron updates", f"{self.updates:,.1f}"),
            ("spikes", f"{self.spikes:,.1f}"),
            ("messages", f"{self.messages:,.1f}"),
        ]
        if self.between is not None:
            rows.append(("messages between cores", f"{self.between:,.1f}"))
        if self.hops is not None:
            rows.append(("hops", f"{self.hops:,.1f}"))
        if self.energy is not None:
            rows.append(("energy", f"{self.energy.text()}, {self.energy_label}"))
        if self.time is not None:
            rows.append(("time", f"{self.time.text()}, {self.time_label}"))
        if self.power is not None:
            rows.append(("power", f"{self.power.text()}, {self.energy_label}"))
        if self.ops_per_joule is not None:
            rows.append(("synaptic operations a joule", f"{self.ops_per_joule.text().replace(' /J', '')}, {self.energy_label}"))
        if (dense := self.baseline) is not None:
            passes = "one dense pass" if dense.passes == 1 else f"{dense.passes} dense passes"
            rows.append(("without spikes", f"{dense.multiply_adds:,} multiply-adds in {passes}"))
            rows.append(("energy without spikes", f"{dense.energy.text()}, {dense.label}"))
        return rows

    def text(self) -> str:
        """For people: a table, the sources, the notes."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        lines = [f"an inference of {self.steps} steps, mean of {self.samples} sample{'s' * (self.samples != 1)}:"]
        lines += [f"  {name:{width}}  {value}" for name, value in rows]
        lines += [f"source: {source}" for source in self.sources]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """What an estimate needs beside the run: the target, the network as the user made it, and what placement measured."""

    target: Target
    model: Callable[[], Graph]
    hops_a_step: float | None = field(default=None)


def estimate(
    graph: Graph,
    counts: Mapping[str, Counts],
    samples: int,
    steps: int,
    setting: Setting,
    sent: Mapping[str, Array] | None = None,
) -> Estimate:
    """The estimate for a run of `samples` samples of `steps` steps with these counts.

    graph: what ran. sent: what every neuron sent in the run (flat) by population: with them hops are this run's, if neurons have
    cores; else those that placement found. Energy is that of the first of the target's cost models; its bounds enclose all of them
    with their errors.
    """
    target, notes = setting.target, []
    whole = {
        name: sum(getattr(item, name) for item in counts.values()) / max(samples, 1)
        for name in ("spikes", "synaptic_operations", "updates", "messages")
    }
    hops = None if setting.hops_a_step is None else setting.hops_a_step * steps
    between = None
    if sent is not None and graph.level == "placed" and graph.neurons and target.has("mesh_width"):
        between, hops = (value / max(samples, 1) for value in core_traffic(graph, target, sent))
    work = {
        "synaptic_operation": whole["synaptic_operations"],
        "update": whole["updates"],
        "spike": whole["spikes"],
        "message": whole["messages"],
        "hop": hops or 0.0,
    }
    priced = [model for model in target.costs if model.energy]
    timed = [model for model in target.costs if model.time]
    energy = _energy(priced, work)
    time = _time(graph, counts, samples, steps, timed[0], target) if timed else None
    power = per_joule = None
    if energy is None:
        notes.append(f"the target '{target.name}' states no energy per operation, so energy is not estimated")
    else:
        if hops is None:
            notes.append("neurons have no cores: energy leaves out what a message takes from core to core")
        elif between is not None:
            notes.append("hops are those of this run's messages between cores; the way of input and output is not known")
        else:
            notes.append("hops a step are those that placement found, on the calibration data where there was any")
        notes += [model.note for model in (*priced, *timed[:1]) if model.note]
        if graph.dt:
            seconds = steps * graph.dt
            power = Interval(_over(energy.value, seconds), energy.low / seconds, energy.high / seconds, "W")
            notes.append(f"power is that of real time, {graph.dt:g} s a step")
        elif time is not None and time.low > 0:
            power = Interval(None, energy.low / time.high, energy.high / time.low, "W")
            notes.append("power is that of running as fast as the bound on time allows")
        operations = work["synaptic_operation"]
        if energy.low > 0 and energy.value:
            per_joule = Interval(operations / energy.value, operations / energy.high, operations / energy.low, "/J")
    if graph.level == "float" and target.level != "float":
        notes.append("counted on the network as trained, not on what the target runs")
    baseline = _baseline(setting.model(), steps, target.baseline) if target.baseline else None
    if baseline is not None:
        notes.append(
            "without spikes, the network is taken to run once"
            if baseline.passes == 1
            else "without spikes, the network is taken to run at every step, because it has delays or loops"
        )
        if target.baseline and target.baseline.note:
            notes.append(target.baseline.note)
    used = [*priced, *(model for model in timed[:1] if time is not None and model not in priced)]
    return Estimate(
        samples,
        steps,
        hops=hops,
        between=between,
        energy=energy,
        time=time,
        power=power,
        ops_per_joule=per_joule,
        baseline=baseline,
        energy_label=priced[0].label if priced else "",
        time_label=timed[0].label if time is not None else "",
        sources=tuple(_source(model) for model in (*used, *([target.baseline] if target.baseline else []))),
        notes=tuple(dict.fromkeys(notes)),
        **whole,
    )


def _source(model: Costs) -> str:
    error = f"; stated error {100 * model.error:g} %" if model.error else ""
    return f"{model.label} ({model.status}): {model.source}{error}"


def _over(value: float | None, by: float) -> float | None:
    return None if value is None else value / by


def _energy(models: list[Costs], work: Mapping[str, float]) -> Interval | None:
    """Joules: the first model's, between the least and the most that any of them allows with its error."""
    if not models:
        return None
    sums = [
        [1e-12 * sum(work.get(name, 0.0) * cost[k] for name, cost in model.energy.items()) for k in range(3)] for model in models
    ]
    low = min(total[0] * (1 - model.error) for total, model in zip(sums, models, strict=True))
    high = max(total[2] * (1 + model.error) for total, model in zip(sums, models, strict=True))
    return Interval(sums[0][1], low, high, "J")


def _time(graph: Graph, counts: Mapping[str, Counts], samples: int, steps: int, model: Costs, target: Target) -> Interval | None:
    """Seconds. Where neurons have cores, the bound of the most loaded one; it is exceeded at most by doing everything in turn.

    Without cores, between work spread evenly over one chip and all of it on a single core.
    """
    updates, operations, step = (model.time.get(name, (0.0, 0.0, 0.0)) for name in ("update", "synaptic_operation", "step"))
    runs = max(samples * steps, 1)
    loads = _loads(graph, counts)
    if loads is None:
        if not target.has("chip_cores_usable"):
            return None
        cores = target.number("chip_cores_usable")
        all_updates = sum(item.updates for item in counts.values()) / runs
        all_operations = sum(item.synaptic_operations for item in counts.values()) / runs
        low = max(all_updates / cores * updates[0], all_operations / cores * operations[0], step[0])
        high = all_updates * updates[2] + all_operations * operations[2] + step[2]
        return Interval(None, 1e-9 * steps * low, 1e-9 * steps * high, "s")
    bounds = [max(np.max(loads[0]) / runs * updates[k], np.max(loads[1]) / runs * operations[k], step[k]) for k in (0, 1)]
    high = float(np.max(loads[0] * updates[2] + loads[1] * operations[2])) / runs + step[2]
    return Interval(1e-9 * steps * float(bounds[1]), 1e-9 * steps * float(bounds[0]), 1e-9 * steps * high, "s")


def _loads(graph: Graph, counts: Mapping[str, Counts]) -> tuple[Array, Array] | None:
    """Updates and synaptic operations of every core; a population's operations are shared out evenly over its neurons."""
    placed = [(node, getattr(node, "core", None)) for node in graph.neurons]
    if not placed or any(core is None for _, core in placed):
        return None
    size = max(int(core.max(initial=0)) for _, core in placed) + 1  # type: ignore[union-attr]  # none is None, as just seen
    updates, operations = np.zeros(size), np.zeros(size)
    for node, core in placed:
        share = np.bincount(np.ravel(core), minlength=size) / max(np.size(core), 1)  # type: ignore[arg-type]  # as above
        own = counts.get(node.name, Counts())
        updates += share * own.updates
        operations += share * own.synaptic_operations
    return updates, operations


def multiply_adds(graph: Graph) -> int:
    """Multiply-adds of one dense pass: every weight of a full matrix or kernel, zero or not, at every position."""
    total = 0
    for node in graph.nodes:
        if isinstance(node, Conv):
            shape = graph.shape_of(node.name)
            total += prod(shape) * prod(node.weight.shape[1:])
        elif isinstance(node, Sparse):
            total += (len(node.indptr) - 1) * node.fan_in
        elif isinstance(node, Dense):
            total += prod(graph.shape_of(node.name)) * node.weight.shape[1]
    return total


def _baseline(model: Graph, steps: int, costs: Costs) -> Baseline:
    delayed = any(ref.delay for node in model.nodes for ref in node.inputs) or any(
        getattr(node, "delay", None) is not None for node in model.nodes if isinstance(node, SYNAPTIC)
    )
    passes = steps if delayed else 1
    operations = multiply_adds(model) * passes
    energy = _energy([costs], {"multiply_add": operations, "weight": operations})
    assert energy is not None
    return Baseline(operations, passes, energy, costs.label, costs.source)


def spike_rate(graph: Graph, counts: Mapping[str, Counts], samples: int, steps: int) -> dict[str, float]:
    """Spikes per neuron and step, of every input and population that sends spikes or messages."""
    rates = {}
    for node in graph.nodes:
        if isinstance(node, (Input, Neuron)) and (ports := [t for _, t in graph.types[node.name] if _sends(node, t.kind)]):
            slots = sum(type_.size for type_ in ports) * samples * steps
            rates[node.name] = counts[node.name].spikes / slots if slots else 0.0
    return rates


def dormant(graph: Graph, records: Mapping[str, Array]) -> dict[str, Array]:
    """Numbers of the neurons (flat, ascending) that sent nothing, of every population that sends spikes or messages."""
    found = {}
    for node in graph.neurons:
        sent = np.zeros(graph.types[node.name][0][1].size, bool)
        ports = [(port, type_) for port, type_ in graph.types[node.name] if _sends(node, type_.kind)]
        for port, _ in ports:
            values = records[f"{node.name}.{port}" if port else node.name]
            sent |= (values != 0).any(axis=(0, 1)).ravel()
        if ports:
            found[node.name] = np.flatnonzero(~sent)
    return found


def _sends(node: Input | Neuron, kind: str) -> bool:
    return isinstance(node, Input) or kind != "value"
