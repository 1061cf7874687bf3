"""One step at a time: what arrives goes in, what the network emits in the same step comes out, and the state stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from spikec.diagnostics import CompileError
from spikec.inputs import as_array, by_name, check_inputs
from spikec.ir.graph import Graph
from spikec.ir.ops import Input
from spikec.ir.types import DTYPES, Array
from spikec.names import find_wire
from spikec.spelling import did_you_mean


class Stepper(Protocol):
    """What a backend gives for a graph: one sample, step by step. Arrays are of the wires' shapes, without batch axis."""

    def step(self, inputs: Mapping[str, Array]) -> None:
        """One step; inputs by name, checked, (*shape)."""
        ...

    def read(self, wire: str) -> Array:
        """What a recordable wire holds after the last step."""
        ...

    def state(self, node: str, name: str) -> Array:
        """A state after the last step."""
        ...

    def reset(self) -> None:
        """Back to before the first step."""
        ...


class Stream:
    """A network that runs while its input arrives: `with build.stream() as stream: out = stream.step(x)`.

    t: steps done since the last reset. lag: what `step` returns at step t belongs to step t - lag of the model, 0 unless the target
    needs time for each synapse; in the first steps it is zero. graph: the graph that runs.
    """

    def __init__(self, graph: Graph, make: Callable[[], Stepper]) -> None:
        self.graph = graph
        self.t = 0
        self.lag = max((graph.output_lag(name) for name, _ in graph.outputs), default=0)
        self._stepper: Stepper | None = make()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back; a closed stream refuses further steps."""
        self._stepper = None

    def _open(self) -> Stepper:
        if self._stepper is None:
            raise CompileError("SPK503", "the stream is closed", fix="step inside the with block")
        return self._stepper

    def step(self, x: Any = None, *, events: Any = None) -> dict[str, Array]:
        """One step; the outputs by name, each (*shape).

        x: the input's values, (*shape), or a mapping by input name. events: instead of values the elements that fire, as flat
        numbers in any order, or a pair (numbers, values) for an input that is not of spikes; or a mapping of these. An input
        that is not given is silent. Raises CompileError SPK006, SPK007, SPK010; after an error the state is as before.
        """
        stepper = self._open()
        values = by_name(self.graph, x) if x is not None and not isinstance(x, Mapping) else dict(x or {})
        fired = self._given(events)
        for name in (*values, *fired):
            if name not in (names := [node.name for node in self.graph.inputs]):
                raise CompileError("SPK010", f"there is no input '{name}'", fix=did_you_mean(name, names))
        whole = {}
        for node in self.graph.inputs:
            if node.name in values and node.name in fired:
                raise CompileError("SPK006", f"the input '{node.name}' is given twice, as values and as events")
            if node.name in fired:
                whole[node.name] = _dense(node, fired[node.name])
            else:
                whole[node.name] = values.get(node.name, np.zeros(node.type.shape, DTYPES[node.type.dtype]))
        checked = check_inputs(self.graph, {name: _frame(self.graph, name, value) for name, value in whole.items()})
        stepper.step({name: array[0, 0] for name, array in checked.items()})
        self.t += 1
        return {name: stepper.read(f"{ref.node}.{ref.port}" if ref.port else ref.node) for name, ref in self.graph.outputs}

    def _given(self, events: Any) -> dict[str, Any]:
        if events is None:
            return {}
        if isinstance(events, Mapping):
            return dict(events)
        if len(self.graph.inputs) == 1:
            return {self.graph.inputs[0].name: events}
        raise CompileError(
            "SPK006",
            f"the graph has {len(self.graph.inputs)} inputs",
            fix=f"give events by name: {', '.join(node.name for node in self.graph.inputs)}",
        )

    def spikes(self, layer: str) -> Array:
        """What a population emitted in the last step, (*shape), by node name or module path. Raises CompileError SPK010."""
        wire = find_wire(self.graph, layer)
        if wire.split(".")[0] not in {node.name for node in self.graph.neurons} | {ref.node for _, ref in self.graph.outputs}:
            raise CompileError("SPK010", f"'{layer}' is no population and no output", fix="a stream shows populations and outputs")
        return self._open().read(wire)

    def state(self, layer: str, name: str) -> Array:
        """A state after the last step, (*shape). Raises CompileError SPK010."""
        node = find_wire(self.graph, layer).split(".")[0]
        found = {item.name: item.program.state_names for item in self.graph.neurons}
        if name not in found.get(node, ()):
            raise CompileError("SPK010", f"the layer '{layer}' has no state '{name}'", fix=did_you_mean(name, found.get(node, ())))
        return self._open().state(node, name)

    def reset(self) -> None:
        """Begin afresh: initial states, nothing under way."""
        self._open().reset()
        self.t = 0


def _frame(graph: Graph, name: str, value: Any) -> Array:
    """One step with the batch and time axes that `check_inputs` looks at."""
    node = next(node for node in graph.inputs if node.name == name)
    array = as_array(name, value)
    if array.shape != node.type.shape:
        raise CompileError(
            "SPK006", f"a step of the input '{name}' has the shape {node.type.shape}, not {array.shape}", loc=node.loc
        )
    return array[None, None]


def _dense(node: Input, events: Any) -> Array:
    """Events as an array: what is listed carries 1, or its own value."""
    values: Any = 1
    if isinstance(events, tuple):
        if len(events) != 2:
            raise CompileError("SPK007", f"the events of '{node.name}' are numbers, or a pair (numbers, values)")
        events, values = events
    index = np.asarray(events)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise CompileError("SPK007", f"the events of '{node.name}' are a list of element numbers, not {index.ndim}-d {index.dtype}")
    index = index.astype(np.int64)
    bad = (index < 0) | (index >= node.type.size)
    if bad.any():
        raise CompileError(
            "SPK007", f"the input '{node.name}' has the elements 0 to {node.type.size - 1}; an event is at {int(index[bad][0])}"
        )
    if len(np.unique(index)) != len(index):
        raise CompileError("SPK007", f"an element of the input '{node.name}' fires twice in one step", fix="give each element once")
    carried = np.asarray(values)
    if carried.ndim and carried.shape != index.shape:
        raise CompileError("SPK006", f"the input '{node.name}' got {len(index)} events and {carried.size} values")
    flat = np.zeros(node.type.size, carried.dtype if carried.ndim else DTYPES[node.type.dtype])
    flat[index] = carried
    return flat.reshape(node.type.shape)
