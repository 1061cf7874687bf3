"""The reference backend: the interpreter behind the backend protocol."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spikec.diagnostics import Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, Interpreter, interpret
from spikec.ir.types import DTYPES, Array

if TYPE_CHECKING:
    from spikec.backend import Golden, Progress
    from spikec.cutoff import Cutoff
    from spikec.target import Target


class ReferenceBackend:
    """Runs every graph at every level; it needs no files of its own."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def available(self) -> str | None:
        """Always."""
        return None

    def check(self, graph: Graph) -> Iterator[Diagnostic]:
        """Nothing that the verifier accepts is refused."""
        return iter(())

    def emit(self, graph: Graph, folder: Path, golden: Golden | None = None, cutoff: Cutoff | None = None) -> None:
        """Writes nothing: the graph itself is what is run."""

    def run(
        self,
        graph: Graph,
        inputs: Mapping[str, Array],
        *,
        record: Collection[str] = (),
        artefact: Path | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
        steps: int | None = None,
    ) -> Execution:
        """Interpret the graph."""
        return interpret(graph, inputs, record=record, steps=steps)

    def stream(self, graph: Graph) -> ReferenceStepper:
        """One sample, step by step (`spikec.stream`)."""
        return ReferenceStepper(graph)


class ReferenceStepper:
    """The interpreter, one step at a time."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.reset()

    def reset(self) -> None:
        """Back to before the first step."""
        self._machine = Interpreter(self.graph, 1)
        self._now: dict[tuple[str, str], Array] = {}

    def step(self, inputs: Mapping[str, Array]) -> None:
        """One step."""
        self._now = self._machine.step({name: array[None] for name, array in inputs.items()})

    def read(self, wire: str) -> Array:
        """A wire after the last step; zero before the first."""
        node, _, port = wire.partition(".")
        if (node, port) in self._now:
            return np.asarray(self._now[node, port][0])
        type_ = dict(self.graph.types[node])[port]
        return np.zeros(type_.shape, np.int64 if self.graph.level != "float" else DTYPES[type_.dtype])

    def state(self, node: str, name: str) -> Array:
        """A state after the last step."""
        return np.array(self._machine.states[node][name][0])
