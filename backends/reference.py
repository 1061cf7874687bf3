"""The reference backend: the interpreter behind the backend protocol."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spikec.diagnostics import Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, interpret
from spikec.ir.types import Array

if TYPE_CHECKING:
    from spikec.backend import Golden, Progress
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

    def emit(self, graph: Graph, folder: Path, golden: Golden | None = None) -> None:
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
    ) -> Execution:
        """Interpret the graph."""
        return interpret(graph, inputs, record=record)
