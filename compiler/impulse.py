"""How long a spike takes to every layer: measured on what was built, and compared with the model's own graph.

A run of silence and runs with impulses (every input element alone for some, all at once, all from then on) differ from the moment
an impulse arrives. That moment, for every element of every layer's spikes and of every synaptic sum that the engine shows, is the
latency of the shortest path; it has to be the one of the graph before it was moved to the target's timing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, interpret
from spikec.ir.ops import Input, Neuron
from spikec.ir.ranges import input_range
from spikec.ir.types import Array

#: The step of the impulse, single elements that get one of their own, and steps that are run at most.
AT: Final = 1
ALONE: Final = 12
MOST_STEPS: Final = 300
NEVER: Final = -1

#: Runs the built graph: inputs, wires to record -> execution.
Run = Callable[[Mapping[str, Array], tuple[str, ...]], Execution]


@dataclass(frozen=True)
class Path:
    """What arrives at one layer: after how many steps first (None: never), by the graph and as measured; and how many of all
    latencies, one per impulse and element, differ."""

    backend: str
    wire: str
    expected: int | None
    measured: int | None
    latencies: int
    differing: int


@dataclass(frozen=True)
class Impulses:
    """The outcome for all engines; `unreached` are layers that no impulse made fire, of which nothing is known."""

    paths: tuple[Path, ...]
    unreached: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether some latency was measured and all are the graph's."""
        return any(path.latencies for path in self.paths) and not any(path.differing for path in self.paths)

    def text(self) -> str:
        """A table for people."""
        lines = [f"{'engine':12} {'layer':24} {'first arrival':>14} {'by the graph':>13} {'latencies':>10} {'differing':>10}"]
        for path in self.paths:
            measured, expected = ("never" if n is None else str(n) for n in (path.measured, path.expected))
            lines.append(
                f"{path.backend:12} {path.wire:24} {measured:>14} {expected:>13} {path.latencies:>10} {path.differing:>10}"
            )
        if self.unreached:
            lines.append(f"no impulse reached {', '.join(self.unreached)}: feed real data to compare them (--input)")
        lines.append("every latency is the graph's" if self.ok else "NOT the graph's latencies")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"ok": self.ok, "paths": [asdict(path) for path in self.paths], "unreached": list(self.unreached)}


def impulses(graph: Graph) -> dict[str, Array]:
    """Samples of silence (the first), of all elements at once, of all from then on, and of single elements, for every input."""
    steps = min(MOST_STEPS, 6 + sum(_reach(graph, name) for name in graph.by_name))
    counts = {node.name: min(node.type.size, ALONE) for node in graph.inputs}
    samples = 3 + sum(counts.values())
    result: dict[str, Array] = {}
    row = 3
    for node in graph.inputs:
        data = np.zeros((samples, steps, node.type.size), np.int64)
        value = _value(node)
        data[1, AT], data[2, AT:] = value, value
        for element in np.linspace(0, node.type.size - 1, counts[node.name]).astype(int):
            data[row, AT, element] = value
            row += 1
        result[node.name] = data.reshape(samples, steps, *node.type.shape)
    return result


def _value(node: Input) -> int:
    """The strongest message of an input, 2^16 at most."""
    low, high = input_range(node)
    return max(low, high, key=abs) if max(abs(low), abs(high)) < 1 << 16 else 1 << 16


def _reach(graph: Graph, name: str) -> int:
    node = graph[name]
    own = getattr(node, "delay", None)
    return max((ref.delay for ref in node.inputs), default=0) + (int(own.max(initial=0)) if own is not None else 0)


def arrivals(values: Array) -> Array:
    """The step at which each element of each sample first differs from the first sample, less that of the impulse; or NEVER."""
    differs = values[1:] != values[:1]
    return np.where(differs.any(axis=1), differs.argmax(axis=1) - AT, NEVER)


def wires(graph: Graph) -> tuple[str, ...]:
    """Every population's spikes, and the sum that enters it."""
    found: dict[str, None] = {}
    for node in graph.neurons:
        for ref in node.inputs:
            if not ref.port and not isinstance(graph[ref.node], (Neuron, Input)):
                found[ref.node] = None
        found[node.name] = None
    return tuple(found)


def measure(model: Graph, built: Graph, runs: Mapping[str, Run]) -> Impulses:
    """Latencies of `built` on some engines against those of `model`, the same graph before retiming."""
    inputs = impulses(model)
    names = tuple(name for name in wires(model) if name in built and not isinstance(built[name], Input))
    same = tuple(name for name in names if built.shape_of(name) == model.shape_of(name))
    expected = interpret(model, inputs, record=same).records
    populations = tuple(node.name for node in model.neurons if node.name in same)
    paths: list[Path] = []
    for backend, run in runs.items():
        try:
            found = run(inputs, same).records
        except CompileError as error:
            if error.code != "SPK010":
                raise
            found = run(inputs, populations).records  # an engine that shows populations only
        for name in same:
            if name in found:
                paths.append(_path(backend, name, arrivals(expected[name]), arrivals(found[name])))
    unreached = tuple(name for name in populations if not np.any(arrivals(expected[name]) != NEVER))
    return Impulses(tuple(paths), unreached)


def _path(backend: str, wire: str, expected: Array, measured: Array) -> Path:
    def first(steps: Array) -> int | None:
        return int(steps[steps != NEVER].min()) if np.any(steps != NEVER) else None

    counted = (expected != NEVER) | (measured != NEVER)
    return Path(backend, wire, first(expected), first(measured), int(counted.sum()), int(np.count_nonzero(expected != measured)))
