"""Random networks for Loihi 2: the network as it is = retimed on the reference = NumPy = C = Lava; spikes, messages and states.

`make test` takes 20 of them, `make test-lava-graphs` 200.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest
from chip_graphs import KINDS, chip_graph, drawn_programs, union
from many import differences

from spikec.backend import load_backend
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, default_record, interpret
from spikec.ir.ops import Constant, Neuron
from spikec.ir.rules import verify
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.pipeline import run_passes
from spikec.target import load_target

TARGET = load_target("loihi2")
#: Networks that run side by side, and how many such groups there are.
TOGETHER, GROUPS = 5, 40 if os.environ.get("SPIKEC_LAVA_GRAPHS") == "1" else 4
BATCH, STEPS = 2, 12
PROGRAMS = drawn_programs(1)


def spikes(graph: Graph, number: int) -> dict[str, Array]:
    rng = np.random.default_rng(number)
    rates = (0.1, 0.4, 0.8)
    found = {n.name: (rng.random((BATCH, STEPS, *n.type.shape)) < rng.choice(rates)).astype(np.int64) for n in graph.inputs}
    return {n.name: found[n.name] * rng.integers(*(n.bounds or (1, 1)), found[n.name].shape, endpoint=True) for n in graph.inputs}


def retimed(graph: Graph) -> Graph:
    """The passes of Loihi 2 from integers on."""
    return run_passes(graph, [name for name in TARGET.passes if name != "canonicalise"], {"target": TARGET}, Ledger())[-1].graph


def networks(group: int) -> list[Graph]:
    """The networks of a group: consecutive numbers, whose first layers take turns in kind. One that cannot be retimed, because wires
    of different length meet, makes way for another whose first layer is of the same kind."""
    found: list[Graph] = []
    for slot in range(TOGETHER):
        number = TOGETHER * group + slot
        while len(found) <= slot:
            graph = verify(chip_graph(number, PROGRAMS))
            number += 1000 * len(KINDS)
            try:
                retimed(graph)
            except CompileError as error:
                assert {d.code for d in error.diagnostics} <= {"SPK204", "SPK205", "SPK206"}
                continue
            found.append(graph)
    return found


@pytest.mark.usefixtures("lava_env")
@pytest.mark.parametrize("group", range(GROUPS))
def test_all_engines_agree(group: int) -> None:
    graphs = networks(group)
    before, after = verify(union(graphs, lambda g: g)), verify(union(graphs, retimed))
    x = spikes(before, group)
    record = default_record(before)
    expected = interpret(before, x, record=record)
    assert sum(int(np.count_nonzero(array)) for array in expected.outputs.values()) > 20, "hardly anything fires"

    def compared(found: Execution, what: str) -> None:
        wrong = differences(expected, found)
        assert not wrong, f"{what}: {len(wrong)}\n" + "\n".join(wrong[:5])

    moved = interpret(after, x, record=record)
    # Where retiming brings a bias through a synapse, the current holds it at the end instead of the membrane's sum.
    for node in before.neurons:
        now = after[node.name]
        assert isinstance(now, Neuron)
        if "bias_mant" in now.params and not np.array_equal(now.params["bias_mant"], node.params["bias_mant"]):
            expected.states[node.name]["u"] = moved.states[node.name]["u"]
    compared(moved, "reference, retimed")
    for name in ("numpy", "c", "lava"):
        backend = load_backend(name, TARGET)
        assert backend.available() is None and not list(backend.check(after)), name
        compared(backend.run(after, x, record=record), name)


def test_the_generator_reaches_every_kind_and_every_way_of_starting() -> None:
    """Otherwise the agreement above says less than it seems to."""
    kinds: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    for graph in (g for group in range(4) for g in networks(group)):
        after = retimed(graph)
        for node in after.neurons:
            native = TARGET.native(node.program)
            kinds[native.name if native else "program"] += 1
            ways["start"] += bool(node.start)
            ways["late"] += bool(node.lag)
        ways["bias synapse"] += any(isinstance(node, Constant) for node in after.nodes)
        ways["delays"] += any(getattr(node, "delay", None) is not None for node in after.nodes)
        ops = {node.op for node in graph.nodes}
        ways["pool"] += "pool" in ops
        ways["conv"] += any(node.op == "conv" for node in after.nodes)
        ways["conv as a matrix"] += any(node.op == "sparse" and node.name.endswith("_conv_matrix") for node in after.nodes)
        ways["messages"] += any(node.type.kind == "graded" for node in graph.inputs)
        readers = {n.name: {ref.node for ref in n.inputs} for n in graph.nodes}
        own = (read for name, read in readers.items() if "_" in name and name.split("_")[0] in read)
        ways["loop"] += any(True for _ in own)
    assert set(kinds) >= {"LIF", "LIFReset", "TernaryLIF", "ATRLIF", "RF", "RF_IZ", "GradedVec", "program"}, kinds
    assert all(ways[way] for way in ("start", "late", "delays", "loop", "pool", "conv", "conv as a matrix", "messages")), ways
