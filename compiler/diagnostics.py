"""Errors a user sees: a stable code, the place in the user's model, and the cure.

A user's mistake is a `CompileError`; anything else that escapes is our bug. Codes never change their meaning and are
never reused; `CODES` is the list that the documentation prints and that `tests/errors/` covers one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

CODES: dict[str, str] = {
    # 0xx: the command line, files, data
    "SPK001": "unknown option or bad option value",
    "SPK002": "file not found or not readable",
    "SPK003": "MODEL cannot be loaded",
    "SPK004": "unknown target",
    "SPK005": "unknown pass",
    "SPK006": "input data has the wrong shape",
    "SPK007": "input data has the wrong type or values",
    "SPK008": "output location cannot be written",
    "SPK009": "an optional package is missing",
    "SPK010": "unknown node, output or state name",
    "SPK011": "unknown backend",
    "SPK012": "the target file is not valid",
    # 1xx: tracing a model
    "SPK101": "unsupported module",
    "SPK102": "unsupported operation",
    "SPK103": "control flow or a Python number depends on input values",
    "SPK104": "the time steps differ from one another",
    "SPK105": "the axes of the example input can be read in two ways",
    "SPK106": "a tensor of unknown origin, or a detour through NumPy",
    "SPK107": "a random operation",
    "SPK108": "the traced graph does not compute what the model computes",
    "SPK109": "the model fails on the example input",
    "SPK110": "the surrogate gradient is not a Heaviside step in the forward pass",
    "SPK111": "a state is edited in a way that cannot be followed",
    "SPK112": "the weights file does not fit the model",
    # 2xx: what the target cannot do
    "SPK201": "the target has no such neuron",
    "SPK202": "the target has no such operation",
    "SPK203": "a number exceeds the target's range",
    "SPK204": "a cycle is too short for the target's timing",
    "SPK205": "a delay exceeds the target's maximum",
    "SPK206": "a node cannot start late exactly",
    "SPK207": "an approximation that was not asked for (--strict)",
    "SPK208": "input of this kind cannot be sent to the target",
    "SPK209": "the network does not fit into the target's memory",
    "SPK218": "an integer can wrap or saturate (--prove-ranges)",
    "SPK219": "a budget cannot be met",
    "SPK220": "no spiking counterpart: the activations cannot be converted",
    "SPK230": "the network needs more cores than there are",
    "SPK231": "a neuron's synapses do not fit on a core",
    "SPK232": "a core has too few axons",
    # 3xx: the IR and its text form
    "SPK301": "syntax error in IR text",
    "SPK302": "the graph is not well formed",
    "SPK303": "IR text of a newer version",
    "SPK304": "an array is missing or damaged",
    "SPK305": "a weight or parameter is not finite",
    "SPK306": "a delay is negative or not an integer",
    "SPK307": "a cycle without delay",
    "SPK308": "an integer could exceed its declared width",
    "SPK309": "shapes or types do not fit",
    # 4xx: build folders
    "SPK401": "not a build folder",
    "SPK402": "the build folder is damaged",
    "SPK403": "the build folder was made by another version",
    "SPK404": "the build does not hold what was asked for",
    # 5xx: backends and the tools they need
    "SPK501": "no C compiler, or the C compiler failed",
    "SPK502": "the backend cannot run this graph",
    "SPK503": "the stream is closed, or the backend has none",
    "SPK510": "the Lava environment cannot be made",
    "SPK511": "Lava is not installed",
    "SPK512": "the Lava run exceeded its time limit",
    "SPK513": "the Lava run failed",
}


@dataclass(frozen=True)
class Loc:
    """A place in the user's model: file (as the user names it), 1-based line (0: unknown), and module path."""

    file: str
    line: int = 0
    path: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where} ({self.path})" if self.path else where


Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Diagnostic:
    """One message. `notes` explain, `fix` says what to do; both are whole sentences without a final newline."""

    code: str
    message: str
    loc: Loc | None = None
    notes: tuple[str, ...] = ()
    fix: str | None = None
    severity: Severity = "error"

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unknown diagnostic code {self.code}")

    def __str__(self) -> str:
        place = f"{self.loc}: " if self.loc else ""
        lines = [f"{place}{self.severity}[{self.code}]: {self.message}"]
        lines += [f"  note: {note}" for note in self.notes]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        """The same as plain data, for `--json`."""
        loc = {"file": self.loc.file, "line": self.loc.line, "path": self.loc.path} if self.loc else None
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "loc": loc,
            "notes": list(self.notes),
            "fix": self.fix,
        }


class CompileError(Exception):
    """The user's mistake, or a limit of the target: one or several diagnostics, reported together."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        loc: Loc | None = None,
        notes: Iterable[str] = (),
        fix: str | None = None,
    ) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = (Diagnostic(code, message, loc=loc, notes=tuple(notes), fix=fix),)
        super().__init__(str(self.diagnostics[0]))

    @classmethod
    def many(cls, diagnostics: Iterable[Diagnostic]) -> CompileError:
        """All violations at once, in the order in which they were found."""
        found = tuple(diagnostics)
        if not found:
            raise ValueError("CompileError.many needs at least one diagnostic")
        error = cls(found[0].code, found[0].message)
        error.diagnostics = found
        error.args = ("\n".join(str(item) for item in found),)
        return error

    @property
    def code(self) -> str:
        """The code of the first diagnostic."""
        return self.diagnostics[0].code


class PassBug(Exception):
    """A pass produced a graph that breaks a rule: our bug, named after the pass."""
