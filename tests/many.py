"""Many random networks in one translation unit, so that one run of the C compiler serves them all."""

from __future__ import annotations

from collections.abc import Sequence

from spikec.backends.c.backend import library_sources
from spikec.backends.c.generate import generate, kernel_files
from spikec.backends.c.library import Compiled, build_library
from spikec.ir.graph import Graph

from importlib.resources import files

#: Quick to compile, and strict: what the emitted Makefile demands is demanded here.
FLAGS = (
    "-std=c99", "-ffp-contract=off", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror",
)  # fmt: skip


def compile_many(graphs: Sequence[Graph], observe: Sequence[Sequence[str]], flags: Sequence[str] = FLAGS) -> list[Compiled]:
    """One library for all graphs; `observe` names the wires to read besides those that are always readable."""
    sources: dict[str, str | bytes] = dict(kernel_files())
    for name in ("spk.h", "host.c"):
        sources[name] = (files("spikec.backends.c") / "folder" / name).read_text(encoding="utf-8")
    networks = []
    for number, (graph, names) in enumerate(zip(graphs, observe, strict=True)):
        network = generate(graph, prefix=f"n{number}_", observe=names, embed=False)
        sources[f"n{number}_network.h"] = network.header
        sources[f"n{number}_network.c"] = network.source
        networks.append(network)
    sources["all.c"] = "".join(f'#include "n{number}_network.c"\n' for number in range(len(networks)))
    path = build_library(sources, ["all.c", "host.c"], flags=flags)
    return [Compiled(path, network) for network in networks]
