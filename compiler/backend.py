"""What the driver asks of a backend, and the table of backends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol

from spikec.cutoff import Cutoff
from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution
from spikec.ir.types import Array
from spikec.target import Target

#: Called with (done, total) units of work, if a person is watching.
Progress = Callable[[int, int], None]

#: Backend name -> "module:Class". Explicit, so that a backend that cannot be imported is an error and not a gap.
BACKENDS: Final[dict[str, str]] = {
    "reference": "spikec.backends.reference:ReferenceBackend",
    "numpy": "spikec.backends.events:NumpyBackend",
    "c": "spikec.backends.c.backend:CBackend",
    "lava": "spikec.backends.lava.backend:LavaBackend",
}


@dataclass(frozen=True)
class Golden:
    """Sample inputs (batch, T, *shape) by input name, and what the reference gives for them, all ports and states."""

    inputs: Mapping[str, Array]
    expected: Execution


class Backend(Protocol):
    """A backend is made for one target and keeps no state between runs. Its results equal the interpreter's."""

    def __init__(self, target: Target) -> None: ...

    def available(self) -> str | None:
        """None if it can run here, else why not and the command that mends it; quick, starts no process."""
        ...

    def check(self, graph: Graph) -> Iterator[Diagnostic]:
        """Everything in the graph that this backend cannot run, all at once."""
        ...

    def emit(self, graph: Graph, folder: Path, golden: Golden | None = None, cutoff: Cutoff | None = None) -> None:
        """Write the backend's files into an existing empty folder; the same graph gives the same bytes.

        cutoff: when answers are given, for programs that give them.
        """
        ...

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
        """As `spikec.ir.interpret.interpret`: every sample begins afresh; lags are removed. `steps` is for a graph without inputs.

        `artefact` is a folder that `emit` wrote for this graph, `timeout` a limit in seconds for backends that run a process.
        """
        ...


def load_backend(name: str, target: Target) -> Backend:
    """The backend of that name. Raises CompileError SPK011."""
    if name not in BACKENDS:
        raise CompileError("SPK011", f"unknown backend '{name}'", fix=f"choose one of {', '.join(BACKENDS)}")
    module, _, cls = BACKENDS[name].partition(":")
    loaded: type[Backend] = getattr(import_module(module), cls)
    return loaded(target)
