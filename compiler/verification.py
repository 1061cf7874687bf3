"""Does an engine compute what the reference computes? Every spike and every final state, and where they first part.

At integer levels equal means equal. At the float level sums depend on their order: spikes are still counted one by one, a
state counts as different where it is further off than `FLOAT_TOLERANCE` of the layer's largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, default_record, record_name
from spikec.ir.ops import Neuron
from spikec.ir.types import Array

FLOAT_TOLERANCE: Final = 1e-4


@dataclass(frozen=True)
class Row:
    """One layer (or output) on one backend: how many of its spikes and final states differ from the reference's."""

    backend: str
    layer: str
    spikes: int
    states: int


@dataclass(frozen=True)
class Divergence:
    """The earliest difference found: the first layer, in data-flow order, that is wrong at the first step at which any is."""

    backend: str
    layer: str
    variable: str
    sample: int
    neuron: tuple[int, ...]
    step: int
    expected: float
    got: float
    cause: str

    def text(self) -> str:
        """A sentence or two."""
        where = f"%{self.layer}{list(self.neuron)}" if self.neuron else f"%{self.layer}"
        return (
            f"{self.backend}: first divergence at {where}, sample {self.sample}, step {self.step}: "
            f"{self.variable} is {self.got:.17g}, the reference has {self.expected:.17g}\n  likely cause: {self.cause}"
        )


@dataclass(frozen=True)
class Verification:
    """The outcome: a row per backend and layer, the first divergence of each backend, and why a backend was left out."""

    samples: int
    steps: int
    rows: tuple[Row, ...]
    divergences: tuple[Divergence, ...]
    skipped: Mapping[str, str]
    seconds: Mapping[str, float]

    @property
    def ok(self) -> bool:
        """Whether nothing differs on any backend that ran; False if none ran."""
        return bool(self.rows) and not any(row.spikes or row.states for row in self.rows)

    def text(self) -> str:
        """A table for people."""
        lines = [f"{'engine':12} {'layer':24} {'mismatching spikes':>19} {'final states':>13}"]
        lines += [f"{row.backend:12} {row.layer:24} {row.spikes:19} {row.states:13}" for row in self.rows]
        lines += [f"{name}: {why}" for name, why in self.skipped.items()]
        lines += [item.text() for item in self.divergences]
        lines.append(
            f"{self.samples} samples of {self.steps} steps: "
            + ("equal everywhere" if self.ok else "NOT equal" if self.rows else "nothing was compared")
        )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "ok": self.ok,
            "samples": self.samples,
            "steps": self.steps,
            "rows": [asdict(row) for row in self.rows],
            "divergences": [asdict(item) for item in self.divergences],
            "skipped": dict(self.skipped),
            "seconds": dict(self.seconds),
        }


def different(expected: Array, got: Array, *, exact: bool) -> Array:
    """Which elements differ; NaN equals NaN. Another shape differs everywhere."""
    if expected.shape != got.shape:
        return np.ones(expected.shape, bool)
    equal = expected == got
    if expected.dtype.kind == "f":
        equal |= np.isnan(expected) & np.isnan(got)
        if not exact:
            largest = float(np.abs(expected, where=np.isfinite(expected), out=np.zeros(expected.shape)).max(initial=0.0))
            with np.errstate(invalid="ignore"):
                equal |= np.abs(expected - got) <= FLOAT_TOLERANCE * max(largest, 1.0)
    return np.asarray(~equal)


def compare(graph: Graph, backend: str, expected: Execution, got: Execution) -> list[Row]:
    """A row per population, and per output that is not a population."""
    exact = graph.level != "float"
    rows = []
    populations = set()
    for node in graph.neurons:
        spikes = 0
        for port, type_ in graph.types[node.name]:
            name = record_name((node.name, port))
            populations.add((node.name, port))
            same = exact or type_.kind == "spike"
            spikes += int(different(expected.records[name], got.records[name], exact=same).sum())
        states = sum(
            int(different(values, got.states[node.name][state], exact=exact).sum())
            for state, values in expected.states.get(node.name, {}).items()
        )
        rows.append(Row(backend, node.name, spikes, states))
    for name, ref in graph.outputs:
        if (ref.node, ref.port) not in populations:
            same = exact or graph.type_of(ref).kind == "spike"
            wrong = different(expected.outputs[name], got.outputs[name], exact=same)
            rows.append(Row(backend, f"output {name}", int(wrong.sum()), 0))
    return rows


#: Runs some samples for some steps on the backend that is in question: inputs -> execution.
Run = Callable[[Mapping[str, Array], int], Execution]


def locate(
    graph: Graph,
    backend: str,
    inputs: Mapping[str, Array],
    expected: Execution,
    got: Execution,
    reference: Run,
    suspect: Run,
) -> Divergence | None:
    """Where a backend first parts from the reference.

    The sample with the earliest wrong emission is run again, for fewer and fewer steps: final states after step t are what tells
    which variable is wrong at step t. The step found is one where everything is right before and something is wrong after.
    """
    sample, last = _earliest(graph, expected, got)
    if sample is None:
        return None
    one = {name: array[sample : sample + 1] for name, array in inputs.items()}
    seen: dict[int, tuple[Execution, Execution]] = {}

    def wrong_after(steps: int) -> list[tuple[str, str, Array]]:
        cut = {name: array[:, :steps] for name, array in one.items()}
        if steps not in seen:
            seen[steps] = (reference(cut, steps), suspect(cut, steps))
        return list(_wrong_at_end(graph, *seen[steps]))

    right, wrong = 0, last + 1
    if not wrong_after(wrong):  # a run of its own is right: the samples of a batch influence one another
        return _plain(graph, backend, sample, last, expected, got, "right when this sample runs alone for so many steps")
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if wrong_after(middle):
            wrong = middle
        else:
            right = middle
    layer, variable, mask = wrong_after(wrong)[0]
    index = tuple(int(i) for i in np.argwhere(mask)[0])
    fires = any(also[index] for name, port, also in wrong_after(wrong) if name == layer and port not in _states(graph, layer))
    want, have = (_value(execution, layer, variable)[index] for execution in seen[wrong])
    cause = _cause(graph, layer, variable, wrong - 1, float(want), float(have), expected, got, fires)
    return Divergence(backend, layer, variable, sample, index[1:], wrong - 1, float(want), float(have), cause)


def _earliest(graph: Graph, expected: Execution, got: Execution) -> tuple[int | None, int]:
    """The sample and step of the earliest wrong emission; where only final states are wrong, the last step."""
    best: tuple[int, int] | None = None
    for values, mine in _emissions(graph, expected, got):
        mask = different(values, mine, exact=graph.level != "float")
        if mask.any():
            places = np.argwhere(mask.reshape(*mask.shape[:2], -1).any(axis=2))
            step, sample = min((int(t), int(n)) for n, t in places)
            best = min(best, (step, sample)) if best else (step, sample)
    if best:
        return best[1], best[0]
    for node in graph.order:
        for state, values in expected.states.get(node.name, {}).items():
            mask = different(values, got.states[node.name][state], exact=graph.level != "float")
            if mask.any():
                steps = next(iter((*expected.outputs.values(), *expected.records.values()))).shape[1]
                return int(np.argwhere(mask)[0][0]), steps - 1
    return None, 0


def _emissions(graph: Graph, expected: Execution, got: Execution) -> list[tuple[Array, Array]]:
    pairs = [(expected.records[name], got.records[name]) for name in default_record(graph)]
    return pairs + [(expected.outputs[name], got.outputs[name]) for name, _ in graph.outputs]


def _wrong_at_end(graph: Graph, expected: Execution, got: Execution) -> list[tuple[str, str, Array]]:
    """(node, variable, mask (1, *shape)) of what is wrong after the last step, in data-flow order, states before emissions."""
    exact = graph.level != "float"
    found = []
    for node in graph.order:
        if isinstance(node, Neuron):
            for state in node.program.state_names:
                mask = different(expected.states[node.name][state], got.states[node.name][state], exact=exact)
                if mask.any():
                    found.append((node.name, state, mask))
            for emit, (port, _) in zip(node.program.emits, graph.types[node.name], strict=True):
                name = record_name((node.name, port))
                mask = different(expected.records[name][:, -1], got.records[name][:, -1], exact=exact)
                if mask.any():
                    found.append((node.name, emit.name, mask))
    for name, ref in graph.outputs:
        if not isinstance(graph[ref.node], Neuron):
            mask = different(expected.outputs[name][:, -1], got.outputs[name][:, -1], exact=exact)
            if mask.any():
                found.append((ref.node, f"output {name}", mask))
    return found


def _states(graph: Graph, layer: str) -> tuple[str, ...]:
    node = graph[layer]
    return node.program.state_names if isinstance(node, Neuron) else ()


def _value(execution: Execution, layer: str, variable: str) -> Array:
    if variable.startswith("output "):
        return execution.outputs[variable.removeprefix("output ")][:, -1]
    if variable in execution.states.get(layer, {}):
        return execution.states[layer][variable]
    named = [name for name in execution.records if name == layer or name == f"{layer}.{variable}"]
    return execution.records[named[-1]][:, -1]


def _plain(
    graph: Graph, backend: str, sample: int, step: int, expected: Execution, got: Execution, cause: str
) -> Divergence | None:
    for name in (*default_record(graph), *(f"output {name}" for name, _ in graph.outputs)):
        source = name.removeprefix("output ")
        table = ("outputs", source) if name != source else ("records", source)
        values, mine = getattr(expected, table[0])[table[1]], getattr(got, table[0])[table[1]]
        mask = different(values, mine, exact=graph.level != "float")[sample, step]
        if mask.any():
            index = tuple(int(i) for i in np.argwhere(mask)[0])
            place = (sample, step, *index)
            return Divergence(backend, source, "emission", sample, index, step, float(values[place]), float(mine[place]), cause)
    return None


def _cause(
    graph: Graph,
    layer: str,
    variable: str,
    step: int,
    want: float,
    have: float,
    expected: Execution,
    got: Execution,
    fires: bool,
) -> str:
    """A guess from the shape of the difference, in the order of how telling it is; `fires`: the emission differs as well."""
    if layer in expected.records and (shift := _shifted(expected.records[layer], got.records[layer])):
        way = "late" if shift > 0 else "early"
        return f"the whole layer is {abs(shift)} step(s) {way}: the latency or lag of an edge"
    if graph.level == "float" and abs(want - have) <= FLOAT_TOLERANCE * max(abs(want), 1.0):
        return "floating-point sums taken in another order"
    is_state = variable in _states(graph, layer)
    if isinstance(graph[layer], Neuron) and not is_state:
        return "all states agree and the emission does not: the comparison with the threshold (> or >=) or what is emitted"
    if is_state and fires and 0 in (want, have):  # one of the two has just been reset
        return (
            "one fires and the other does not, after states that agreed: the threshold or how it is compared (> or >=), or what "
            f"was added to '{variable}' in this step"
        )
    if step == 0:
        return "wrong after the very first step: the initial state, the bias, or a weight"
    gap = abs(want - have)
    if gap == 1:
        return "off by one: a shift that rounds down where it should round toward zero, or the other way round"
    if gap and gap % (1 << 8) == 0 and (int(gap) & (int(gap) - 1)) == 0:
        return f"off by 2^{int(gap).bit_length() - 1}: an accumulator that wraps or saturates elsewhere"
    if is_state:
        return f"the update of '{variable}', or the synapses into %{layer}"
    return f"the operation %{layer} itself: everything before it agrees"


def _shifted(expected: Array, got: Array) -> int:
    """By how many steps one record is the other, shifted; 0 if it is not."""
    if expected.shape != got.shape or not expected.any():
        return 0
    for shift in range(1, min(5, expected.shape[1] - 1)):
        if expected[:, :-shift].any() and np.array_equal(expected[:, :-shift], got[:, shift:]):
            return shift
        if got[:, :-shift].any() and np.array_equal(got[:, :-shift], expected[:, shift:]):
            return -shift
    return 0
