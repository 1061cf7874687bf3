"""Many random networks in one translation unit, so that one run of the C compiler serves them all; and what `equal` means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from strategies import graphs, random_inputs

from spikec.backends.c.forms import Choices
from spikec.backends.c.generate import generate
from spikec.backends.c.library import Compiled, build_library, find_compiler, missing_compiler
from spikec.backends.c.parts import Network, kernel_files
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, default_record, interpret, record_name
from spikec.ir.types import DTYPES, Array

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


def many_sources(
    graphs: Sequence[Graph], observe: Sequence[Sequence[str]], choices: Sequence[Choices | None] | None = None
) -> tuple[dict[str, str | bytes], list[object]]:
    """The files of one library for all graphs; all.c includes every network, each with a prefix of its own."""
    sources: dict[str, str | bytes] = dict(kernel_files())
    for name in ("spk.h", "host.c"):
        sources[name] = (files("spikec.backends.c") / "folder" / name).read_text(encoding="utf-8")
    networks: list[object] = []
    for number, (graph, names) in enumerate(zip(graphs, observe, strict=True)):
        network = generate(graph, prefix=f"n{number}_", observe=names, embed=False, choices=choices[number] if choices else None)
        sources[f"n{number}_network.h"] = network.header
        sources[f"n{number}_network.c"] = network.source
        networks.append(network)
    sources["all.c"] = "".join(f'#include "n{number}_network.c"\n' for number in range(len(networks)))
    return sources, networks


def compile_many(graphs: Sequence[Graph], observe: Sequence[Sequence[str]], flags: Sequence[str] = FLAGS) -> list[Compiled]:
    """One library for all graphs; `observe` names the wires to read besides those that are always readable."""
    sources, networks = many_sources(graphs, observe)
    path = build_library(sources, ["all.c", "host.c"], flags=flags)
    return [Compiled(path, network) for network in networks]


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


# --------------------------------------------------------------------------- a program of its own, for whatever processor

_DRIVER = """#include <stdio.h>
#include <stdlib.h>
#include "spk.h"
spk_status spk_host_run(const spk_model *, void *, size_t, spk_in *, uint32_t, uint32_t, uint32_t, const void *const *, uint32_t,
                        const uint32_t *, void *const *, void *const *, uint64_t *);
@declarations@
static const spk_model *const models[] = {@models@};
static const unsigned padding[] = {@padding@};
static size_t width(unsigned type) { return type == SPK_I8 ? 1u : type == SPK_I16 ? 2u : type == SPK_I32 || type == SPK_F32 ? 4u : 8u; }
int main(void) {
  FILE *const file = fopen("inputs.bin", "rb");
  size_t n, k;
  for (n = 0; n < sizeof models / sizeof models[0]; n++) {
    const spk_model *m = models[n];
    void *input[4], *record[64], *state[64];
    uint32_t port[64];
    void *memory = malloc(m->size());
    spk_in *in = calloc(m->inputs + 1u, sizeof *in);
    for (k = 0; k < m->inputs; k++) {
      const size_t bytes = (size_t)@batch@ * @steps@ * m->input[k].size * width(m->input[k].type);
      input[k] = malloc(bytes);
      if (fread(input[k], 1, bytes, file) != bytes) { return 2; }
    }
    for (k = 0; k < m->ports; k++) {
      port[k] = (uint32_t)k;
      record[k] = malloc((size_t)@batch@ * @steps@ * m->port[k].size * width(m->port[k].type));
    }
    for (k = 0; k < m->states; k++) { state[k] = malloc((size_t)@batch@ * m->state[k].size * width(m->state[k].type)); }
    if (spk_host_run(m, memory, m->size(), in, @batch@, @steps@, padding[n], (const void *const *)input, m->ports, port,
                     record, state, NULL) != SPK_OK) { return 3; }
    for (k = 0; k < m->ports; k++) {
      fwrite(record[k], (size_t)@batch@ * @steps@ * m->port[k].size, width(m->port[k].type), stdout);
      free(record[k]);
    }
    for (k = 0; k < m->states; k++) {
      fwrite(state[k], (size_t)@batch@ * m->state[k].size, width(m->state[k].type), stdout);
      free(state[k]);
    }
    for (k = 0; k < m->inputs; k++) { free(input[k]); }
    free(memory);
    free(in);
  }
  fclose(file);
  return 0;
}
"""


@dataclass(frozen=True)
class BatchProgram:
    """A C program that runs many networks on inputs that it reads from inputs.bin and prints all that they give, as bytes."""

    sources: dict[str, str | bytes]
    expected: list[tuple[str, Array]]
    compiled = ("driver.c", "all.c", "host.c")

    def write(self, folder: Path) -> None:
        for name, content in self.sources.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    def differences(self, printed: bytes) -> list[str]:
        """Every port and final state that is not what the reference gives."""
        size = sum(array.nbytes for _, array in self.expected)
        if len(printed) != size:
            return [f"{len(printed)} bytes, not {size}"]
        found, at = [], 0
        for name, want in self.expected:
            have = np.frombuffer(printed, want.dtype, want.size, at).reshape(want.shape)
            at += want.nbytes
            if not np.array_equal(want, have, equal_nan=want.dtype.kind == "f"):
                found.append(f"{name}: first at {np.argwhere(want != have)[0]}")
        return found


def batch_program(
    graphs_: Sequence[Graph], batch: int, steps: int, choices: Sequence[Choices | None] | None = None
) -> BatchProgram:
    """The program for some graphs and random inputs. All wires of every other graph are compared, outputs and populations of all."""
    observe = [all_wires(graph) if n % 2 else () for n, graph in enumerate(graphs_)]
    sources, made = many_sources(graphs_, observe, choices)
    networks = [network for network in made if isinstance(network, Network)]
    data, expected = b"", []
    for number, (graph, network, names) in enumerate(zip(graphs_, networks, observe, strict=True)):
        inputs = random_inputs(graph, batch, steps, 7)
        data += b"".join(np.ascontiguousarray(inputs[p.name], DTYPES[p.api]).tobytes() for p in network.inputs)
        want = interpret(graph, inputs, record=names or default_record(graph))
        for at, port in enumerate(network.ports):
            table = want.outputs if at < network.outputs else want.records
            expected.append((f"{number}: {port.name}", table[port.name].astype(DTYPES[port.api])))
        for port in network.states:
            node, state = port.wire
            expected.append((f"{number}: {port.name}", want.states[node][state].astype(DTYPES[port.api])))
    driver = _DRIVER
    for key, value in (
        ("declarations", "\n".join(f"extern const spk_model {n.prefix}network;" for n in networks)),
        ("models", ", ".join(f"&{n.prefix}network" for n in networks)),
        ("padding", ", ".join(f"{graph.max_lag}u" for graph in graphs_)),
        ("batch", str(batch)),
        ("steps", str(steps)),
    ):
        driver = driver.replace(f"@{key}@", value)
    return BatchProgram({**sources, "driver.c": driver, "inputs.bin": data}, expected)


def drawn_graphs(level: str, count: int, number: int) -> list[Graph]:
    """Random graphs, always the same for a number."""
    drawn: list[Graph] = []

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(graphs(level))
    def draw(graph: Graph) -> None:
        drawn.append(graph)

    draw()
    return drawn
