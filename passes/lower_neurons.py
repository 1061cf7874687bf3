"""Which populations the target's library has, and which run as programs of their own; the ledger says so of each of the latter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ledger import Ledger
from spikec.native import native_process
from spikec.passes.neurons import check_choice
from spikec.target import Target


@dataclass(frozen=True)
class LowerNeurons:
    """Account for every neuron that the target's library lacks. Fixed level; changes nothing.

    custom_neurons: "allow", or "refuse" to make it an error (see `Legalise`).
    """

    target: Target
    custom_neurons: str = "allow"
    name: ClassVar[str] = "lower-neurons"
    levels: ClassVar[tuple[str, ...]] = ("fixed",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The graph as it is. Raises CompileError with every SPK201."""
        check_choice(self.custom_neurons)
        problems = []
        for node in graph.neurons:
            found = native_process(self.target, node, graph.shape_of(node.name))
            if not isinstance(found, str):
                continue
            if self.custom_neurons == "refuse":
                fix = "custom_neurons=allow, or compile for host or reference"
                problems.append(Diagnostic("SPK201", f"%{node.name}: {found}", loc=node.loc, fix=fix))
            what = f"@{node.program.name} runs as a program of its own, exact in simulation; silicon needs microcode for it"
            ledger.record(node, "convention", f"{what} ({found})")
        if problems:
            raise CompileError.many(problems)
        return graph
