"""Many random networks in one translation unit, so that one run of the C compiler serves them all; and what `equal` means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import pytest

from spikec.backends.c.generate import generate, kernel_files
from spikec.backends.c.library import Compiled, build_library, find_compiler, missing_compiler
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, record_name

#: Quick to compile, and as strict as the emitted Makefile.
FLAGS = (
    "-std=c99", "-ffp-contract=off", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror",
)  # fmt: skip


def require_compiler() -> None:
    """Skip where there is no C compiler; fail under CI=true, where nobody would notice."""
    if find_compiler() is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI=true, so the C tests must run: {missing_compiler()}")
        pytest.skip(missing_compiler())


def all_wires(graph: Graph) -> tuple[str, ...]:
    """Every wire of a graph under its recorded name."""
    return tuple(record_name((node.name, port)) for node in graph.nodes for port, _ in graph.types[node.name])


def many_sources(graphs: Sequence[Graph], observe: Sequence[Sequence[str]]) -> tuple[dict[str, str | bytes], list[object]]:
    """The files of one library for all graphs; all.c includes every network, each with a prefix of its own."""
    sources: dict[str, str | bytes] = dict(kernel_files())
    for name in ("spk.h", "host.c"):
        sources[name] = (files("spikec.backends.c") / "folder" / name).read_text(encoding="utf-8")
    networks: list[object] = []
    for number, (graph, names) in enumerate(zip(graphs, observe, strict=True)):
        network = generate(graph, prefix=f"n{number}_", observe=names, embed=False)
        sources[f"n{number}_network.h"] = network.header
        sources[f"n{number}_network.c"] = network.source
        networks.append(network)
    sources["all.c"] = "".join(f'#include "n{number}_network.c"\n' for number in range(len(networks)))
    return sources, networks


def compile_many(graphs: Sequence[Graph], observe: Sequence[Sequence[str]], flags: Sequence[str] = FLAGS) -> list[Compiled]:
    """One library for all graphs; `observe` names the wires to read besides those that are always readable."""
    sources, networks = many_sources(graphs, observe)
    path = build_library(sources, ["all.c", "host.c"], flags=flags)
    return [Compiled(path, network) for network in networks]  # type: ignore[arg-type]


def differences(want: Execution, have: Execution) -> list[str]:
    """Every output, record and final state that is not identical, with the first place where it differs."""
    found = []
    pairs = [(f"output {k}", want.outputs[k], have.outputs.get(k)) for k in want.outputs]
    pairs += [(f"record {k}", want.records[k], have.records.get(k)) for k in want.records]
    pairs += [
        (f"state {node}.{state}", value, have.states.get(node, {}).get(state))
        for node, values in want.states.items()
        for state, value in values.items()
    ]
    for name, a, b in pairs:
        if b is None:
            found.append(f"{name} is missing")
        elif a.shape != b.shape:
            found.append(f"{name}: shape {b.shape}, not {a.shape}")
        elif not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            where = tuple(int(i) for i in np.argwhere(a != b)[0])
            found.append(f"{name}{list(where)}: {b[where]}, not {a[where]}")
        elif name.startswith(("output", "record")) and a.dtype != b.dtype:
            found.append(f"{name}: type {b.dtype}, not {a.dtype}")
    return found
