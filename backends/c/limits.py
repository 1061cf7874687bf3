"""Whether a network fits into its target's memory: the limits are the target's numbers, or what the user set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from spikec.backends.c.parts import Network
from spikec.diagnostics import Diagnostic
from spikec.ir.graph import Graph
from spikec.memory import LayerMemory

if TYPE_CHECKING:
    from spikec.target import Target

#: So many layers are named in a message, those that take most.
_NAMED = 5


def code_bytes(network: Network, target: Target) -> int:
    """About what the machine code of the network takes, where the target says what to reckon with; else 0."""
    if not target.has("code_base"):
        return 0
    return target.integer("code_base") + target.integer("code_layer") * len(network.memory)


def over_limits(graph: Graph, network: Network, target: Target) -> Iterator[Diagnostic]:
    """Every limit that the network breaks. Constants and code lie in flash where the target has any, else in RAM."""
    code = code_bytes(network, target)
    for limit, medium, option in (("ram", "RAM", "--max-ram"), ("flash", "flash", "--max-flash")):
        if not target.has(limit):
            continue
        most = target.integer(limit)
        held = limit == "flash" or not target.has("flash")
        need = (network.bytes if limit == "ram" else 0) + (network.constants + code if held else 0)
        if need <= most:
            continue

        def takes(row: LayerMemory, limit: str = limit, held: bool = held) -> int:
            return (row.kept + row.shared if limit == "ram" else 0) + (row.constants if held else 0)

        rows = sorted(network.memory, key=takes, reverse=True)
        notes = [f"%{row.layer}: {_parts(row, limit == 'ram', held)}" for row in rows[:_NAMED] if takes(row)]
        if len(rows) > _NAMED:
            notes.append(f"{len(rows) - _NAMED} more layers: {sum(takes(row) for row in rows[_NAMED:]):,} bytes")
        if held and code:
            notes.append(f"the code of the network: about {code:,} bytes")
        cures = ["fewer or smaller layers", f"{option} BYTES if the board has more"]
        if graph.level == "float":
            cures.insert(0, "--bits 8: a weight then takes one byte, not four")
        yield Diagnostic(
            "SPK209",
            f"the network needs {need:,} bytes of {medium}, '{target.name}' has {most:,}: {need - most:,} too many",
            loc=graph[rows[0].layer].loc if rows else None,
            notes=tuple(notes),
            fix="; or ".join(cures),
        )


def _parts(row: LayerMemory, memory: bool, held: bool) -> str:
    parts = [
        (row.kept, "own memory", memory),
        (row.shared, "memory that other layers use as well", memory),
        (row.constants, "constants", held),
    ]
    return ", ".join(f"{size:,} bytes of {what}" for size, what, counted in parts if counted and size)
