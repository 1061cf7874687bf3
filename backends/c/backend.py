"""The C backend: writes the folder, and runs it on the host as a shared library."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from spikec.backends.c.answers import cutoff_header
from spikec.backends.c.forms import Choices
from spikec.backends.c.generate import generate, unsupported
from spikec.backends.c.golden import golden_text
from spikec.backends.c.library import Compiled, build_library, find_compiler, matrix_unit, missing_compiler
from spikec.backends.c.limits import over_limits
from spikec.backends.c.offline import Offline, offline
from spikec.backends.c.parts import Network, Port, kernel_files
from spikec.backends.c.stepper import CStepper
from spikec.cutoff import Cutoff, Decision
from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, default_record, extent, record_name
from spikec.ir.types import DTYPES, Array, int_range, is_float
from spikec.memory import Memory

if TYPE_CHECKING:
    from spikec.backend import Golden, Progress
    from spikec.target import Target

_STATIC: Final = (
    "spk.h", "spk_encode.h", "main.c", "stream.c", "stream.h", "whole.c", "whole.h", "clock.h", "host.c", "decide.c",
    "answer.h",
    "embed.c", "Makefile", "CMakeLists.txt",
)  # fmt: skip
#: Samples between two reports of progress.
_CHUNK: Final = 64
#: Steps times bytes of weights up to which starting threads takes longer than they save.
_LITTLE: Final = 1 << 19


def folder_files(
    graph: Graph,
    network: Network,
    target: Target | None = None,
    whole: Offline | None = None,
    cutoff: Cutoff | None = None,
) -> dict[str, str | bytes]:
    """Every file of the folder except the golden vectors, by name; those of offline mode if it is given."""
    source = files("spikec.backends.c") / "folder"
    result: dict[str, str | bytes] = {name: (source / name).read_text(encoding="utf-8") for name in _STATIC}
    result |= kernel_files()
    result["network.h"] = network.header
    result["network.c"] = network.source
    result["cutoff.h"] = cutoff_header(graph, network, cutoff)
    if network.binary is not None and network.binary_source is not None:
        result["weights.bin"] = network.binary
        result["weights.c"] = network.binary_source
        if '#include "pages.h"' in network.binary_source:
            result["pages.h"] = (source / "pages.h").read_text(encoding="utf-8")
    if whole is not None:
        result |= offline_files(whole)
    if target is not None and target.compiler.prefix:
        result["target.mk"] = _makefile(target)
        result["toolchain.cmake"] = _toolchain(target)
    result["README.md"] = _readme(graph, network, target, (source / "README.in").read_text(encoding="utf-8"))
    return result


def offline_files(whole: Offline) -> dict[str, str | bytes]:
    """The files of offline mode."""
    result: dict[str, str | bytes] = {"offline.c": whole.source, "offline.h": whole.header}
    if whole.binary is not None and whole.binary_source is not None:
        result["offline_weights.bin"] = whole.binary
        if '#include "pages.h"' in whole.binary_source:
            result["pages.h"] = (files("spikec.backends.c") / "folder" / "pages.h").read_text(encoding="utf-8")
        result["offline_weights.c"] = whole.binary_source
    return result


def _makefile(target: Target) -> str:
    tools = target.compiler
    return (
        f"# What builds for {target.description.split(':')[0]}; read by the Makefile.\n"
        f"CROSS := {tools.prefix}\nFLAGS_OF_TARGET := {tools.flags}\nMACHINE := {tools.machine}\n"
        f"EMULATOR := {tools.emulator}\nSYSTEM := {tools.system}\n" + ("CFLAGS ?= -O2\n" if tools.system == "none" else "")
    )


def _toolchain(target: Target) -> str:
    tools = target.compiler
    system = "Generic" if tools.system == "none" else "Linux"
    lines = [
        f"# What builds for {target.description.split(':')[0]}: cmake -DCMAKE_TOOLCHAIN_FILE=toolchain.cmake",
        f"set(CMAKE_SYSTEM_NAME {system})",
        f"set(CMAKE_SYSTEM_PROCESSOR {tools.machine or 'arm'})",
        f"set(CMAKE_C_COMPILER {tools.prefix}gcc)",
        f'set(SPK_ARCH "{tools.flags}" CACHE STRING "flags for the processor")',
    ]
    if tools.system == "none":
        lines.append("set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)")
    else:
        lines.append("set(CMAKE_EXE_LINKER_FLAGS_INIT -static)")
    if tools.emulator:
        lines.append(f"set(CMAKE_CROSSCOMPILING_EMULATOR {tools.emulator})")
    return "\n".join(lines) + "\n"


def _for_target(target: Target | None) -> str:
    if target is None or not target.compiler.prefix:
        return ""
    tools = target.compiler
    if tools.system == "none":
        return (
            f"`make` builds libnetwork.a for {target.description.split(':')[0]} with {tools.prefix}gcc and prints its size;\n"
            "`make check` checks the same sources on this machine.\n\n"
        )
    return (
        f"It is for {target.name}: on the board `make` takes its own compiler, elsewhere {tools.prefix}gcc, and `make check`\n"
        f"{tools.emulator}. The flags are `{tools.flags}`. `make CC=cc` builds for this machine.\n\n"
    )


def _readme(graph: Graph, network: Network, target: Target | None, text: str) -> str:
    def rows(what: str, ports: list[Port]) -> list[str]:
        return [f"| {what} | {p.name} | {p.size} | {p.api} | {p.kind} | {p.lag} |" for p in ports]

    table = rows("input", network.inputs) + rows("output", network.ports[: network.outputs])
    table += rows("port", network.ports[network.outputs :]) + rows("state", network.states)
    for key, value in (
        ("name", graph.name),
        ("target", _for_target(target)),
        ("ports", "\n".join(table)),
        ("bytes", f"{network.bytes:,}"),
        ("weights", f"{network.constants:,}"),
        ("notes", "".join(f"\n{note}" for note in network.notes)),
    ):
        text = text.replace(f"@{key}@", value)
    return text.rstrip() + "\n"


#: What the shared library is compiled from.
_LIBRARY: Final = ("network.c", "weights.c", "host.c", "decide.c", "offline.c", "offline_weights.c")


def library_sources(files_: Mapping[str, str | bytes]) -> tuple[dict[str, str | bytes], list[str]]:
    """What the shared library is made of: all that the compiler reads, and the files it is given."""
    chosen = {n: c for n, c in files_.items() if n.endswith((".h", ".bin")) or n in _LIBRARY}
    return chosen, [name for name in _LIBRARY if name in chosen]


@lru_cache(maxsize=4)
def _generated(graph: Graph, observe: tuple[str, ...], choices: Choices) -> Network:
    """The C of a graph: it is asked for its size, written and compiled."""
    return generate(graph, observe=observe, choices=choices)


@lru_cache(maxsize=4)
def _offline(graph: Graph, observe: tuple[str, ...], choices: Choices) -> Offline:
    """Offline mode for the same network."""
    return offline(graph, _generated(graph, observe, choices), choices)


@lru_cache(maxsize=16)
def _compiled(graph: Graph, observe: tuple[str, ...], choices: Choices) -> Compiled:
    network = _generated(graph, observe, choices)
    whole = _offline(graph, observe, choices) if matrix_unit() else None
    if whole is not None and not whole.layers:
        whole = None
    sources, names = library_sources(folder_files(graph, network, whole=whole))
    return Compiled(build_library(sources, names), network, whole is not None)


def checked_inputs(graph: Graph, network: Network, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs in the types of the interface. Raises CompileError SPK007 where a value does not fit."""
    result = {}
    for node, port in zip(graph.inputs, network.inputs, strict=True):
        array = np.asarray(inputs[node.name])
        if array.shape[2:] != node.type.shape:
            raise CompileError(
                "SPK006", f"input '{node.name}' has shape {array.shape}, not (batch, T, {node.type.shape})", loc=node.loc
            )
        if is_float(port.api):
            result[node.name] = array.astype(DTYPES[port.api], copy=False)
            continue
        low, high = int_range(port.api)
        if array.size and (array.dtype.kind == "f" and not np.all(array == np.floor(array))):
            raise CompileError("SPK007", f"input '{node.name}' must hold integers", loc=node.loc)
        if array.size and (array.min() < low or array.max() > high):
            raise CompileError("SPK007", f"input '{node.name}' holds values outside {low} to {high}", loc=node.loc)
        result[node.name] = array.astype(DTYPES[port.api], copy=False)
    return result


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collect(
    graph: Graph,
    compiled: Compiled,
    inputs: Mapping[str, Array],
    record: Collection[str],
    progress: Progress | None = None,
    threads: int | None = None,
    steps: int | None = None,
) -> Execution:
    """Run whole samples on a compiled network and return what `interpret` returns; `threads` samples at once."""
    network = compiled.network
    batch, steps = extent(inputs, steps)
    given = checked_inputs(graph, network, inputs)
    place = {port.name: network.outputs + k for k, port in enumerate(network.ports[network.outputs :])}
    ports = [*range(network.outputs), *(place[name] for name in record)]
    little = batch * steps * network.constants < _LITTLE
    threads = max(1, min(threads or (1 if little else _processors()), batch))
    size = min(_CHUNK, max(1, -(-batch // threads)))
    begins = list(range(0, batch, size)) if batch else [0]
    done = 0

    def run(begin: int) -> tuple[list[Array], list[Array], int]:
        chunk = {name: array[begin : begin + size] for name, array in given.items()}
        count = min(size, batch - begin)
        if compiled.tiles and steps:
            found, final, _ = compiled.run_whole(chunk, count, steps, ports)
            return found, final, count
        # The call leaves Python's lock to the other threads, and the network keeps nothing outside the memory that it is given.
        found, final, _ = compiled.run(chunk, count, steps, graph.max_lag, ports)
        return found, final, count

    records: list[list[Array]] = []
    states: list[list[Array]] = []
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
        for found, final, count in map(run, begins) if pool is None else pool.map(run, begins):
            records.append(found)
            states.append(final)
            done += count
            if progress is not None:
                progress(done, batch)
    integer = graph.level != "float"

    def whole(parts: list[Array], shape: tuple[int, ...], lead: int) -> Array:
        joined = np.concatenate(parts)
        joined = joined.astype(np.int64) if integer else joined
        return joined.reshape(*joined.shape[:lead], *shape)

    def shape_of(port: Port) -> tuple[int, ...]:
        return dict(graph.types[port.wire[0]])[port.wire[1]].shape

    values = [whole([part[k] for part in records], shape_of(network.ports[number]), 2) for k, number in enumerate(ports)]
    names = [port.name for port in network.ports[: network.outputs]]
    outputs = dict(zip(names, values[: network.outputs], strict=True))
    kept = dict(zip(record, values[network.outputs :], strict=True))
    ends: dict[str, dict[str, Any]] = {node.name: {} for node in graph.neurons}
    for k, port in enumerate(network.states):
        ends[port.wire[0]][port.wire[1]] = whole([part[k] for part in states], graph.shape_of(port.wire[0]), 1)
    return Execution(outputs, kept, ends)


class CBackend:
    """Event-driven C99: a folder that builds anywhere with make, and the same code as a library on this machine."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def available(self) -> str | None:
        """None if there is a C compiler."""
        return None if find_compiler() else missing_compiler()

    def check(self, graph: Graph) -> Iterator[Diagnostic]:
        """What cannot be compiled (see `unsupported`), and where it exceeds the target's memory (see `over_limits`)."""
        found = unsupported(graph)
        yield from found
        if not found and self.target is not None and (self.target.has("ram") or self.target.has("flash")):
            yield from over_limits(graph, self._network(graph), self.target)

    def memory(self, graph: Graph) -> Memory:
        """What the network takes, layer by layer. Raises CompileError SPK502."""
        self._require(graph)
        network = self._network(graph)
        return Memory(network.bytes, network.shared, network.constants, tuple(network.memory))

    def emit(self, graph: Graph, folder: Path, golden: Golden | None = None, cutoff: Cutoff | None = None) -> None:
        """Write the folder; needs no compiler. Raises CompileError SPK502."""
        self._require(graph)
        network = self._network(graph)
        contents = folder_files(graph, network, self.target, _offline(graph, (), self._choices(graph)), cutoff)
        contents["memory.txt"] = self.memory(graph).text()
        if golden is not None:
            contents["golden.txt"] = golden_text(graph, network, golden, cutoff)
        for name, content in contents.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    def run(
        self,
        graph: Graph,
        inputs: Mapping[str, Array],
        *,
        record: Collection[str] = (),
        artefact: Path | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
        threads: int | None = None,
        steps: int | None = None,
    ) -> Execution:
        """Compile (or take the kept library) and run, on all processors unless `threads` says how many.

        Raises CompileError SPK501, SPK502, SPK006, SPK007, SPK010.
        """
        self._require(graph)
        wires = {record_name((node, port)) for node, ports in graph.types.items() for port, _ in ports}
        for name in record:
            if name not in wires:
                raise CompileError("SPK010", f"there is no wire '{name}' to record")
        usual = set(default_record(graph))
        observe = tuple(sorted(name for name in set(record) if name not in usual))
        return collect(
            graph, _compiled(graph, observe, self._choices(graph)), inputs, tuple(dict.fromkeys(record)), progress, threads, steps
        )

    def stream(self, graph: Graph) -> CStepper:
        """One sample, step by step (`spikec.stream`). Raises CompileError SPK501, SPK502."""
        self._require(graph)
        return CStepper(graph, _compiled(graph, (), self._choices(graph)))

    def decide(self, graph: Graph, inputs: Mapping[str, Array], cutoff: Cutoff) -> Decision:
        """Answers as soon as the cutoff allows, with not a step more computed. A graph of integers. Raises as `run` does."""
        self._require(graph)
        network = self._network(graph)
        given = checked_inputs(graph, network, inputs)
        margins = cutoff.margins(next(iter(given.values())).shape[1])
        return _compiled(graph, (), self._choices(graph)).decide(given, graph.max_lag, network.output(cutoff.output), margins)

    def _network(self, graph: Graph) -> Network:
        return _generated(graph, (), self._choices(graph))

    def _choices(self, graph: Graph) -> Choices:
        """The quickest forms of weights, or the smallest where only these fit the target's memory."""
        target, quick = self.target, Choices.of(self.target)
        if target is None or not (target.has("ram") or target.has("flash")):
            return quick
        others = (Choices.of(target, packed=False), Choices.of(target, small=True))
        fits = (choices for choices in (quick, *others) if not any(over_limits(graph, _generated(graph, (), choices), target)))
        return next(fits, quick)

    def _require(self, graph: Graph) -> None:
        found = unsupported(graph)
        if found:
            raise CompileError.many(found)
