"""Targets are data: limits, widths, native neurons and costs, read from `targets/*.toml` (design §6).

Every number carries where it comes from and how sure it is; unknown keys are errors. A target names its backend and its
pipeline of passes by string.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from spikec.diagnostics import CompileError
from spikec.files import reading
from spikec.ir.neuron import Program
from spikec.ir.types import LEVELS

FOLDER: Final = Path(__file__).with_name("targets")
STATUS: Final = ("measured", "published", "estimated", "chosen")


@dataclass(frozen=True)
class Number:
    """A limit or cost: value, unit, status (measured, published, estimated, chosen by us) and source."""

    value: int | float
    unit: str
    status: str
    source: str


@dataclass(frozen=True)
class NativeNeuron:
    """A neuron program that the target runs as it is.

    `fixed` is the program in integers, exactly as the target computes it. `pattern` is the float program that users' programs
    are matched against up to algebra; without one the neuron is met at the fixed level only. A second neuron of the same name,
    without `fixed`, is the same process with another pattern. `rules` says how each fixed parameter comes from the pattern's (see
    `spikec.passes.quantize`). `late` maps a parameter that shifts when the population starts late,
    the phase of a periodic reset, to the parameter that is its period. `bias_synapse` names the bias parameters and the decay value
    at which a bias may arrive as a synaptic sum instead. `relay` are parameters, and the weight of a synapse, with which it passes
    every spike on and remembers nothing. `implementation` is for the backend.
    """

    name: str
    fixed: str
    pattern: str
    rules: Mapping[str, str]
    late: Mapping[str, str]
    bias_synapse: Mapping[str, Any]
    implementation: Mapping[str, Any]
    relay: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Toolchain:
    """What builds C for a target: the prefix of its tools ("aarch64-linux-gnu-"; "": this computer's own), the flags for its
    processor, what `cc -dumpmachine` begins with there, the emulator that runs its programs elsewhere, and its system: "linux" or
    "none".
    """

    prefix: str = ""
    flags: str = ""
    machine: str = ""
    emulator: str = ""
    system: str = "linux"


@dataclass(frozen=True)
class Costs:
    """What operations take, by one source: energy in picojoules, time in nanoseconds, each (low, likely, high).

    label: what the figures are of ("Loihi-1-equivalent"), said beside every number made of them. error: the relative error that the
    source states for its sums, 0 where it states none. note: what is left out.
    """

    label: str
    status: str
    source: str
    error: float = 0.0
    note: str = ""
    energy: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    time: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """Everything the compiler knows of a target."""

    name: str
    description: str
    backend: str
    passes: tuple[str, ...]
    level: str
    numbers: Mapping[str, Number] = field(default_factory=dict)
    operations: tuple[str, ...] = ()
    neurons: tuple[NativeNeuron, ...] = ()
    compiler: Toolchain = Toolchain()
    #: What operations take (`spikec.estimate`), the first the likeliest; and what a dense network takes elsewhere.
    costs: tuple[Costs, ...] = ()
    baseline: Costs | None = None

    def number(self, name: str) -> float:
        """A limit's value. KeyError if the target has no such limit: a bug in a pass."""
        return self.numbers[name].value

    def integer(self, name: str) -> int:
        """A limit that is a whole number."""
        return int(self.numbers[name].value)

    def has(self, name: str) -> bool:
        """Whether the target states such a limit."""
        return name in self.numbers

    def limited(self, limits: Mapping[str, int], source: str) -> Target:
        """The same target with limits in bytes that somebody chose, in place of its own."""
        chosen = {name: Number(value, "bytes", "chosen", source) for name, value in limits.items()}
        return replace(self, numbers={**self.numbers, **chosen})

    def as_asked(self, options: Mapping[str, object]) -> Target:
        """The same target with what a build's options say about memory: `max_ram`, `max_flash`, and `small` (or `max_bytes`), for
        which C keeps weights in the fewest bytes."""
        limits = {key: int(str(options[f"max_{key}"])) for key in ("ram", "flash") if options.get(f"max_{key}") is not None}
        if self.backend == "c" and (options.get("small") or options.get("max_bytes") is not None):
            limits["small"] = 1
        return self.limited(limits, "set by the user")

    def native(self, program: Program) -> NativeNeuron | None:
        """The native neuron that a program in integers is; a program may emit states on top (probes)."""
        from spikec.ir.text import parse_program

        for item in self.neurons:
            own = parse_program(item.fixed)
            same = (own.inputs, own.params, own.states, own.body) == (
                program.inputs,
                program.params,
                program.states,
                program.body,
            )
            # Emitted as what is for the graph to say: the process sends the same numbers.
            if same and [e.name for e in own.emits] == [e.name for e in program.emits[: len(own.emits)]]:
                return item
        return None


_TOP: Final = {
    "name",
    "description",
    "backend",
    "passes",
    "level",
    "operations",
    "numbers",
    "neuron",
    "compiler",
    "costs",
    "baseline",
}
_NUMBER: Final = {"value", "unit", "status", "source"}
_SYSTEMS: Final = ("linux", "none")
#: One line of words without anything that a shell or make would read: it goes into a Makefile.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_+=.,/ -]*")
_COSTS: Final = {item.name for item in fields(Costs)}
_OPERATIONS: Final = {"synaptic_operation", "update", "spike", "message", "hop", "step", "multiply_add", "weight"}
_NEURON: Final = {"name", "fixed", "pattern", "rules", "late", "bias_synapse", "implementation", "relay"}


def target_names() -> list[str]:
    """All targets that come with spikec."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_target(name: str) -> Target:
    """A target by name, or from a path ending in `.toml`. Raises CompileError SPK001, SPK004 or SPK012."""
    if not isinstance(name, str):
        raise CompileError("SPK001", f"target is a name, not {name!r}", fix="give the name of a target, or of a .toml file")
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    with reading(path):
        found = path.is_file()
    if ("/" in name and not name.endswith(".toml")) or not found:
        raise CompileError("SPK004", f"unknown target '{name}'", fix=f"choose one of {', '.join(target_names())}, or a .toml file")
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CompileError("SPK012", f"{path.name}: {error}") from None
    return parse_target(text, path.name)


def parse_target(text: str, file: str) -> Target:
    """A target from the text of its file. Raises CompileError SPK012 with what is wrong."""

    def bad(message: str) -> CompileError:
        return CompileError("SPK012", f"{file}: {message}")

    def known(table: Mapping[str, Any], keys: set[str], where: str) -> None:
        for key in table:
            if key not in keys:
                raise bad(f"unknown key '{key}' in {where}")

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise bad(str(error)) from None
    known(data, _TOP, "the target")
    for key in ("name", "description", "backend", "passes", "level"):
        if key not in data:
            raise bad(f"the key '{key}' is missing")
    for key in ("name", "description", "backend", "level"):
        if not isinstance(data[key], str):
            raise bad(f"{key} must be text")
    if data["level"] not in LEVELS:
        raise bad(f"level must be one of {', '.join(LEVELS)}")
    for key in ("passes", "operations"):
        if not isinstance(data.get(key, []), list) or not all(isinstance(item, str) for item in data.get(key, [])):
            raise bad(f"{key} must be a list of names")
    if not isinstance(data.get("numbers", {}), dict):
        raise bad("numbers must be a table")
    if not isinstance(data.get("neuron", []), list) or not all(isinstance(item, dict) for item in data.get("neuron", [])):
        raise bad("neuron must be a list of tables")
    numbers = {}
    for key, table in data.get("numbers", {}).items():
        if not isinstance(table, dict):
            raise bad(f"numbers.{key} must be a table")
        known(table, _NUMBER, f"numbers.{key}")
        if not isinstance(table.get("value"), (int, float)) or isinstance(table.get("value"), bool):
            raise bad(f"numbers.{key} has no value")
        if table.get("status") not in STATUS or not table.get("source"):
            raise bad(f"numbers.{key} needs a source and a status out of {', '.join(STATUS)}")
        numbers[key] = Number(table["value"], table.get("unit", ""), table["status"], table["source"])
    neurons: list[NativeNeuron] = []
    for table in data.get("neuron", []):
        known(table, _NEURON, "neuron")
        # The same name once more is the same process, met by another pattern.
        if first := next((item for item in neurons if item.name == table.get("name") and "fixed" not in table), None):
            neurons.append(replace(first, pattern=table.get("pattern", ""), rules={**first.rules, **table.get("rules", {})}))
            continue
        for key in ("name", "fixed"):
            if key not in table:
                raise bad(f"a neuron lacks the key '{key}'")
        neurons.append(
            NativeNeuron(
                table["name"],
                table["fixed"],
                table.get("pattern", ""),
                table.get("rules", {}),
                table.get("late", {}),
                table.get("bias_synapse", {}),
                table.get("implementation", {}),
                table.get("relay", {}),
            )
        )

    def costs(table: Any, where: str) -> Costs:
        if not isinstance(table, dict):
            raise bad(f"{where} must be a table")
        known(table, _COSTS, where)
        if table.get("status") not in STATUS or not all(isinstance(table.get(k), str) and table[k] for k in ("label", "source")):
            raise bad(f"{where} needs a label, a source and a status out of {', '.join(STATUS)}")
        error, note = table.get("error", 0.0), table.get("note", "")
        if isinstance(error, bool) or not isinstance(error, (int, float)) or not 0 <= error < 1 or not isinstance(note, str):
            raise bad(f"{where}: error is a share of 1, and note is text")
        found: dict[str, dict[str, tuple[float, float, float]]] = {}
        for kind in ("energy", "time"):
            entries = table.get(kind, {})
            if not isinstance(entries, dict):
                raise bad(f"{where}.{kind} must be a table")
            known(entries, _OPERATIONS, f"{where}.{kind}")
            found[kind] = {}
            for key, value in entries.items():
                three = value if isinstance(value, list) else [value] * 3
                plain = all(isinstance(item, (int, float)) and not isinstance(item, bool) and item >= 0 for item in three)
                if len(three) != 3 or not plain or sorted(three) != three:
                    raise bad(f"{where}.{kind}.{key} is a number, or [low, likely, high]")
                found[kind][key] = (float(three[0]), float(three[1]), float(three[2]))
        return Costs(table["label"], table["status"], table["source"], float(error), note, found["energy"], found["time"])

    if not isinstance(data.get("costs", []), list):
        raise bad("costs must be a list of tables")
    models = tuple(costs(table, f"costs[{number}]") for number, table in enumerate(data.get("costs", [])))
    baseline = costs(data["baseline"], "baseline") if "baseline" in data else None
    tools = data.get("compiler", {})
    if not isinstance(tools, dict):
        raise bad("compiler must be a table")
    known(tools, {item.name for item in fields(Toolchain)}, "compiler")
    for key, value in tools.items():
        if not isinstance(value, str) or not _PLAIN.fullmatch(value):
            raise bad(f"compiler.{key} must be plain text: letters, digits, spaces and _+=.,/-")
    if tools.get("system", "linux") not in _SYSTEMS:
        raise bad(f"compiler.system must be one of {', '.join(_SYSTEMS)}")
    return Target(
        data["name"],
        data["description"],
        data["backend"],
        tuple(data["passes"]),
        data["level"],
        numbers,
        tuple(data.get("operations", ())),
        tuple(neurons),
        Toolchain(**tools),
        models,
        baseline,
    )
