"""The ledger: what every pass changed, exact or not, and what it cost.

An entry is either `exact` (a rewrite that keeps every spike) or `approximation` (a rounded decay, a clipped weight, a dropped
bias) or `convention` (a choice that a format leaves open). Approximations carry counts and magnitudes and, where calibration data
was given, the measured change of spikes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from spikec.diagnostics import CompileError, Diagnostic, Loc
from spikec.ir.ops import Node

EntryKind = Literal["exact", "approximation", "convention"]


@dataclass(frozen=True)
class Entry:
    """One change. `changed` of `total` elements; `largest` is the greatest change, in the unit that `what` names.

    `asked` is what the user asked for that implies it (an option's name), empty if nothing did. `measured` holds figures from
    calibration data: numbers only.
    """

    pass_name: str
    node: str
    kind: EntryKind
    what: str
    changed: int = 0
    total: int = 0
    largest: float = 0.0
    asked: str = ""
    loc: Loc | None = None
    measured: Mapping[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """One or two lines for people."""
        share = f" ({self.changed} of {self.total}, at most {self.largest:.4g})" if self.total else ""
        # A unit stands in `what` already.
        figures = "".join(f"; {name} {value:.6g}" for name, value in self.measured.items() if name != "unit")
        place = f"%{self.node}: " if self.node else ""
        return f"{self.pass_name}: {self.kind}: {place}{self.what}{share}{figures}"


class Ledger:
    """Entries in the order in which passes made them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.pass_name = ""

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def record(self, node: Node | str, kind: EntryKind, what: str, **more: Any) -> None:
        """Add an entry for the pass that is running; a node gives its name and place."""
        name, loc = (node, None) if isinstance(node, str) else (node.name, node.loc)
        self.entries.append(Entry(self.pass_name, name, kind, what, loc=loc, **more))

    def strict(self) -> None:
        """Raise CompileError SPK207 for every approximation that nothing the user asked for implies (`--strict`)."""
        found = [
            Diagnostic("SPK207", f"{e.pass_name}: %{e.node}: {e.what}" if e.node else f"{e.pass_name}: {e.what}", loc=e.loc)
            for e in self.entries
            if e.kind == "approximation" and not e.asked
        ]
        if found:
            raise CompileError.many(found)

    def as_json(self) -> list[dict[str, Any]]:
        """Plain data, in order."""
        rows = []
        for entry in self.entries:
            row = asdict(entry)
            row["pass"] = row.pop("pass_name")
            row["measured"] = {k: float(v) for k, v in entry.measured.items()}
            rows.append(row)
        return rows
