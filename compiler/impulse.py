"""How long a spike takes to every layer: measured on what was built, and compared with the model's own graph.

A run of silence and runs with impulses (every input element alone for some, all at once, all from then on) differ from the moment
an impulse arrives. That moment, for every element of every layer's spikes and of every synaptic sum that the engine shows, is the
latency of the shortest path; it has to be the one of the graph before it was moved to the target's timing.

A layer that none of this makes fire is driven directly: in a second run it, and every other such layer, fires in the step in which
anything arrives at it. Its synapses, delays and place are what was built; only its threshold is out of the way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, interpret, record_name
from spikec.ir.neuron import Program
from spikec.ir.ops import Constant, Input, Neuron, Node
from spikec.ir.ranges import input_range
from spikec.ir.text import parse_program
from spikec.ir.types import Array

#: The step of the impulse, single elements that get one of their own, random patterns and the shares of elements that are on in
#: them, steps beside those that the delays take, and steps that are run at most.
AT: Final = 1
ALONE: Final = 12
PATTERNS: Final = (0.5, 0.25, 0.5, 0.25, 0.1, 0.75)
STEPS: Final = 24
MOST_STEPS: Final = 300
NEVER: Final = -1

#: Runs a graph, the built one or one like it: graph, inputs, wires to record -> execution.
Run = Callable[[Graph, Mapping[str, Array], tuple[str, ...]], Execution]


@dataclass(frozen=True)
class Path:
    """What arrives at one layer: after how many steps first (None: never), by the graph and as measured; and how many of all
    latencies, one per impulse and element, differ. driven: in the run in which layers fire at anything that arrives."""

    backend: str
    wire: str
    expected: int | None
    measured: int | None
    latencies: int
    differing: int
    driven: bool = False


@dataclass(frozen=True)
class Unreached:
    """A layer that no impulse made fire as it is, and why. driven: its latency was measured without its threshold."""

    layer: str
    why: str
    driven: bool


@dataclass(frozen=True)
class Impulses:
    """The outcome for all engines; `unreached` are layers that no impulse made fire as they are; of those that are not driven
    either, nothing is known."""

    paths: tuple[Path, ...]
    unreached: tuple[Unreached, ...]

    @property
    def ok(self) -> bool:
        """Whether some latency was measured and all are the graph's."""
        return any(path.latencies for path in self.paths) and not any(path.differing for path in self.paths)

    def text(self) -> str:
        """A table for people."""
        lines = [f"{'engine':12} {'layer':24} {'first arrival':>14} {'by the graph':>13} {'latencies':>10} {'differing':>10}"]
        for path in self.paths:
            measured, expected = ("never" if n is None else str(n) for n in (path.measured, path.expected))
            wire = f"{path.wire} *" if path.driven else path.wire
            lines.append(f"{path.backend:12} {wire:24} {measured:>14} {expected:>13} {path.latencies:>10} {path.differing:>10}")
        if any(path.driven for path in self.paths):
            lines.append("* measured while the layers below fire at anything that arrives")
        for item in self.unreached:
            known = "" if item.driven else "; its latency is NOT known: feed real data to compare it (--input)"
            lines.append(f"{item.layer}: no impulse made it fire as it is: {item.why}{known}")
        lines.append("every latency is the graph's" if self.ok else "NOT the graph's latencies")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "ok": self.ok,
            "paths": [asdict(path) for path in self.paths],
            "unreached": [asdict(item) for item in self.unreached],
        }


def impulses(graph: Graph) -> dict[str, Array]:
    """Samples of silence (the first), of all elements at once, of all from then on, of single elements for every input, and of some
    elements at random from then on: what excites one neuron keeps another quiet."""
    steps = min(MOST_STEPS, STEPS + sum(_reach(graph, name) for name in graph.by_name))
    counts = {node.name: min(node.type.size, ALONE) for node in graph.inputs}
    samples = 3 + sum(counts.values()) + len(PATTERNS)
    rng = np.random.Generator(np.random.PCG64(0))
    result: dict[str, Array] = {}
    row = 3
    for node in graph.inputs:
        data = np.zeros((samples, steps, node.type.size), np.int64)
        value = _value(node)
        data[1, AT], data[2, AT:] = value, value
        for element in np.linspace(0, node.type.size - 1, counts[node.name]).astype(int):
            data[row, AT, element] = value
            row += 1
        for last, share in enumerate(PATTERNS, samples - len(PATTERNS)):
            data[last, AT:] = value * (rng.random(node.type.size) < share)
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
    read = {record_name((ref.node, ref.port)) for node in model.neurons for ref in node.inputs}
    found = interpret(model, inputs, record=tuple(dict.fromkeys((*same, *sorted(read), *(node.name for node in model.neurons)))))
    expected = {name: arrivals(array) for name, array in found.records.items()}
    paths = _paths(built, runs, inputs, same, expected)
    quiet = {node.name: node for node in model.neurons if not np.any(expected[node.name] != NEVER)}
    driven = [name for name, node in quiet.items() if name in same and _drivable(model, node, built)]
    if driven:
        open_model, open_built = _driven(model, driven), _driven(built, driven)
        after = {name: arrivals(array) for name, array in interpret(open_model, inputs, record=same).records.items()}
        # Only what the first run says nothing about: a layer that fired there was measured as it is.
        more = tuple(name for name in same if not np.any(expected[name] != NEVER) and np.any(after[name] != NEVER))
        for backend, run in runs.items() if more else ():
            try:
                paths += [replace(path, driven=True) for path in _paths(open_built, {backend: run}, inputs, more, after)]
            except CompileError as error:
                if error.code != "SPK502":  # an engine that has no such neuron: its latency stays unknown, which is told
                    raise
    seen = [{path.wire for path in paths if path.driven and path.backend == backend} for backend in runs]
    known = set.intersection(*seen) if seen else set()
    told = [Unreached(name, _why(model, built, node, found.records, expected), name in known) for name, node in quiet.items()]
    reached = {node.name for node in model.neurons} - quiet.keys() - set(same)
    told += [Unreached(name, "what was built has no layer of that name and shape", False) for name in sorted(reached)]
    return Impulses(tuple(paths), tuple(told))


def _paths(
    graph: Graph, runs: Mapping[str, Run], inputs: Mapping[str, Array], names: tuple[str, ...], expected: Mapping[str, Array]
) -> list[Path]:
    populations = tuple(name for name in names if isinstance(graph[name], Neuron))
    paths: list[Path] = []
    for backend, run in runs.items():
        try:
            found = run(graph, inputs, names).records
        except CompileError as error:
            if error.code != "SPK010":
                raise
            found = run(graph, inputs, populations).records  # an engine that shows populations only
        paths += [_path(backend, name, expected[name], arrivals(found[name])) for name in names if name in found]
    return paths


def _drivable(model: Graph, node: Neuron, built: Graph) -> bool:
    """Whether a layer may fire at whatever arrives and still be compared: nothing may arrive but what the model sends."""
    there = built[node.name]
    if not isinstance(there, Neuron) or there.program != node.program or any(emit.kind == "value" for emit in node.program.emits):
        return False
    return not any(isinstance(source, Constant) for source in _senders(built, there) if source.name not in model)


def _senders(graph: Graph, node: Node) -> list[Node]:
    """What a layer's inputs come from, through everything that is no layer itself."""
    found, new = [], [graph[ref.node] for ref in node.inputs]
    while new:
        source = new.pop()
        found.append(source)
        if not isinstance(source, Neuron):
            new += [graph[ref.node] for ref in source.inputs]
    return found


def _driven(graph: Graph, names: Collection[str]) -> Graph:
    """The graph in which some populations fire in the step in which anything arrives at them."""

    def changed(node: Node) -> Node:
        if not isinstance(node, Neuron) or node.name not in names:
            return node
        return replace(node, program=_open(node.program), params={}, init={})

    return graph.with_nodes(changed(node) for node in graph.nodes)


def _open(program: Program) -> Program:
    """A program of the same inputs and emissions that fires when an input is not 0."""
    ports = [f"in{number}" for number, _ in enumerate(program.inputs)]
    sizes = [f"abs({port})" for port in ports]
    largest = sizes[0] if len(sizes) == 1 else f"max({', '.join(sizes)})"
    lines = [
        f"  {emit.name} = {largest} > 0" if emit.kind == "spike" else f"  {emit.name} = min({largest}, 1)" for emit in program.emits
    ]
    kinds = ", ".join(emit.name if emit.kind == "spike" else f"{emit.name}: {emit.kind}" for emit in program.emits)
    return parse_program("\n".join([f"neuron @{program.name}_driven({', '.join(ports)}) {{", *lines, f"  emit {kinds}", "}"]))


def _why(model: Graph, built: Graph, node: Neuron, records: Mapping[str, Array], expected: Mapping[str, Array]) -> str:
    """Why a layer does not fire."""
    if node.name not in built:
        return "what was built has no layer of that name"
    reads = [record_name((ref.node, ref.port)) for ref in node.inputs]
    still = [name for name in dict.fromkeys(reads) if not np.any(expected[name] != NEVER)]
    if len(still) == len(set(reads)):
        quiet = [source.name for source in _senders(model, node) if isinstance(source, Neuron) and source.name != node.name]
        silent = [name for name in dict.fromkeys(quiet) if not np.any(expected[name] != NEVER)]
        if not reads or not any(isinstance(source, (Input, Neuron)) for source in _senders(model, node)):
            return "nothing leads to it from an input"
        return (
            f"silent: nothing arrives, as {_listed(silent)} does not fire either" if silent else "silent: what arrives cancels out"
        )
    if still:
        return f"gated: {_listed(still)}, which it also reads, never changes"
    most = max(int(np.abs(records[name].astype(np.int64) - records[name][:1]).max(initial=0)) for name in reads)
    down = all(int((records[name].astype(np.int64) - records[name][:1]).max(initial=0)) <= 0 for name in reads)
    if down:
        return f"inhibited: all that arrives, {most} at most, pulls it down"
    return f"threshold not reached: what arrives changes by {most} at most"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def _path(backend: str, wire: str, expected: Array, measured: Array) -> Path:
    def first(steps: Array) -> int | None:
        return int(steps[steps != NEVER].min()) if np.any(steps != NEVER) else None

    counted = (expected != NEVER) | (measured != NEVER)
    return Path(backend, wire, first(expected), first(measured), int(counted.sum()), int(np.count_nonzero(expected != measured)))
