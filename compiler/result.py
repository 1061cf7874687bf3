"""What a run returns: outputs, recorded layers, final states, counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from spikec.counts import Counts, count
from spikec.diagnostics import CompileError
from spikec.estimate import Estimate, Interval, Setting, dormant, estimate, spike_rate
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, default_record, record_name
from spikec.ir.types import Array
from spikec.names import find_wire
from spikec.options import typed
from spikec.spelling import did_you_mean


@dataclass(frozen=True, eq=False)
class Result:
    """One run. Arrays are aligned to the model's own steps: the lag of a retimed graph is already removed.

    outputs: (batch, T, *shape) by output name. records: the same by node name (`node.port` for a further port). states: final
    values (batch, *shape) by node and state. seconds: what the run took, wall clock, without checking the input.
    """

    backend: str
    outputs: Mapping[str, Array]
    records: Mapping[str, Array]
    states: Mapping[str, Mapping[str, Array]]
    seconds: float
    graph: Graph = field(repr=False)
    _inputs: Mapping[str, Array] = field(repr=False)
    _full: Mapping[str, Array] = field(repr=False)
    _skip: int = field(default=0, repr=False)
    _setting: Setting | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        graph: Graph,
        inputs: Mapping[str, Array],
        execution: Execution,
        backend: str,
        seconds: float,
        skip: int = 0,
        setting: Setting | None = None,
    ) -> Result:
        """From what a backend gave; the first `skip` steps only led up to this run."""
        return cls(
            backend,
            {name: array[:, skip:] for name, array in execution.outputs.items()},
            {name: array[:, skip:] for name, array in execution.records.items()},
            execution.states,
            seconds,
            graph,
            inputs,
            execution.records,
            skip,
            setting,
        )

    @property
    def samples(self) -> int:
        """How many samples ran."""
        return next((array.shape[0] for array in (*self.outputs.values(), *self.records.values())), 0)

    @property
    def steps(self) -> int:
        """T, the steps of this run."""
        return next((array.shape[1] for array in (*self.outputs.values(), *self.records.values())), 0)

    @typed(layer="string")
    def spikes(self, layer: str) -> Array:
        """What a layer emitted, (batch, T, *shape): by node name, module path in the user's model, or output name.

        Raises CompileError SPK010 if there is no such layer or it was not recorded.
        """
        if layer in self.records:
            return self.records[layer]
        wire = find_wire(self.graph, layer)
        if wire in self.records:
            return self.records[wire]
        for name, ref in self.graph.outputs:
            if wire == (f"{ref.node}.{ref.port}" if ref.port else ref.node):
                return self.outputs[name]
        raise CompileError("SPK010", f"the layer '{layer}' was not recorded", fix=f"run with record=['{layer}'] or 'all'")

    @typed(layer="string", name="string")
    def state(self, layer: str, name: str) -> Array:
        """A state after the last step, (batch, *shape). Raises CompileError SPK010 if there is no such layer or state."""
        node = find_wire(self.graph, layer).split(".")[0]
        states = self.states.get(node, {})
        if name not in states:
            if not states:
                raise CompileError("SPK010", f"the layer '{layer}' has no states")
            raise CompileError("SPK010", f"the layer '{layer}' has no state '{name}'", fix=did_you_mean(name, states))
        return states[name]

    @cached_property
    def counts(self) -> dict[str, Counts]:
        """Spikes, synaptic operations, updates and messages by layer (`spikec.counts`); needs a run with record="all"."""
        missing = [name for name in default_record(self.graph) if name not in self._full]
        if missing:
            raise CompileError("SPK010", f"the layer '{missing[0]}' was not recorded", fix="run with record='all'")
        return count(self.graph, self._inputs, self._full, skip=self._skip)

    @cached_property
    def spike_rate(self) -> dict[str, float]:
        """Spikes per neuron and step, by layer, of what sends spikes or messages; needs a run with record="all"."""
        return spike_rate(self.graph, self.counts, self.samples, self.steps)

    @cached_property
    def dormant(self) -> dict[str, Array]:
        """Neurons that sent nothing in this run, by layer: their flat numbers; needs a run with record="all"."""
        _ = self.counts  # says so where a layer was not recorded
        return dormant(self.graph, {name: array[:, self._skip :] for name, array in self._full.items()})

    @cached_property
    def estimate(self) -> Estimate:
        """Operations, time and energy of one inference on the target (`spikec.estimate`); needs a run with record="all"."""
        if self._setting is None:
            raise CompileError("SPK404", "the result belongs to no target", fix="run a build")
        counts = self.counts  # says so where a layer was not recorded
        first = {node.name: record_name((node.name, self.graph.types[node.name][0][0])) for node in self.graph.neurons}
        sent = {name: np.count_nonzero(self._full[wire][:, self._skip :], axis=(0, 1)).ravel() for name, wire in first.items()}
        return estimate(self.graph, counts, self.samples, self.steps, self._setting, sent)

    @property
    def energy(self) -> Interval | None:
        """Joules an inference, with bounds, of what `estimate.energy_label` says; None where the target states no costs."""
        return self.estimate.energy

    @property
    def power(self) -> Interval | None:
        """Watts, with bounds; None where the target states no costs."""
        return self.estimate.power

    @property
    def ops_per_joule(self) -> Interval | None:
        """Synaptic operations a joule, with bounds; None where the target states no costs."""
        return self.estimate.ops_per_joule
