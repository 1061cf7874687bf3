"""The memory plan: buffers that are live together never share memory, and the plan needs no more than it says."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from many import batch_program, compile_many, differences, drawn_graphs, require_compiler
from strategies import random_inputs

from spikec.backends.c.backend import CBackend, collect
from spikec.backends.c.generate import generate
from spikec.backends.c.memory import Life, most_live, place
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Dense, Input, Neuron, Node, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType


@st.composite
def lives(draw: st.DrawFn) -> list[Life]:
    spans = draw(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 30), st.integers(0, 10)), max_size=40))
    return [Life(f"b{n}", size, first, first + more) for n, (size, first, more) in enumerate(spans)]


@given(lives(), st.sampled_from([1, 16, 64]))
def test_no_two_live_buffers_overlap(items: list[Life], align: int) -> None:
    offsets, total = place(items, align)
    assert set(offsets) == {item.name for item in items}
    for item in items:
        assert offsets[item.name] % align == 0 and offsets[item.name] + item.size <= total
        for other in items:
            if other is not item and item.size and other.size and item.meets(other):
                a, b = offsets[item.name], offsets[other.name]
                assert a + item.size <= b or b + other.size <= a, (item, other)
    assert most_live(items) <= total <= sum(-(-item.size // align) * align for item in items)


def test_what_is_never_live_together_shares_all() -> None:
    items = [Life("a", 100, 0, 1), Life("b", 60, 2, 3), Life("c", 40, 2, 2), Life("d", 30, 1, 2)]
    offsets, total = place(items)
    assert (offsets["a"], total) == (0, 130)
    assert place([Life("a", 100, 0, 0), Life("b", 99, 1, 1)]) == ({"a": 0, "b": 0}, 100)


def deep(layers: int) -> Graph:
    """A chain of populations of 64: accumulators of one layer are of no use two layers on."""
    program = parse_program(
        "neuron @p(a) state(v: i16 = 0) {\nv = clip(rtz(v, 1) + a, 12)\ns = v > 90\nv = select(s, 0, v)\nemit s\n}"
    )
    rng = np.random.default_rng(0)
    nodes: list[Node] = [Input(name="x", type=TensorType("spike", (64,), "i8"))]
    for n in range(layers):
        weight = rng.integers(-60, 90, (64, 64)).astype(np.int8)
        nodes.append(Dense(name=f"fc{n}", inputs=(Ref(nodes[-1].name),), weight=weight))
        nodes.append(Neuron(name=f"l{n}", inputs=(Ref(f"fc{n}"),), program=program))
    return verify(Graph("deep", "fixed", tuple(nodes), (("out", Ref(nodes[-1].name)),)))


def test_equal_weights_and_parameters_are_stored_once() -> None:
    require_compiler()
    different = deep(3)
    weight = different["fc0"].weight
    program = parse_program(
        "neuron @q(a) params(theta) state(v: i16 = 0) {\nv = clip(rtz(v, 1) + a, 12)\ns = v > theta\nv = select(s, 0, v)\nemit s\n}"
    )

    def shared(theta: list[int]) -> Graph:
        nodes = [replace(node, weight=weight.copy()) if isinstance(node, Dense) else node for node in different.nodes]
        params = {"theta": np.array(theta, np.int32)}
        nodes = [replace(node, program=program, params=params) if isinstance(node, Neuron) else node for node in nodes]
        return verify(different.with_nodes(nodes))

    equal, uneven = shared([90] * 64), shared([*range(60, 124)])
    assert generate(different).constants == 3 * weight.size
    assert generate(equal).constants == weight.size
    assert generate(uneven).constants == weight.size + 64  # thresholds of all three layers, a byte each
    graphs = [equal, uneven]
    for graph, compiled in zip(graphs, compile_many(graphs, [("l0", "l1")] * 2), strict=True):
        inputs = random_inputs(graph, 2, 9, 1)
        wanted = interpret(graph, inputs, record=["l0", "l1"])
        assert wanted.records["l1"].any()
        assert differences(wanted, collect(graph, compiled, inputs, ("l0", "l1"))) == []


def test_a_deep_network_needs_the_accumulators_of_one_layer() -> None:
    require_compiler()
    graphs = [deep(2), deep(12)]
    two, twelve = (generate(graph) for graph in graphs)
    assert two.shared == twelve.shared == 64 * 2  # one row of accumulators; spikes are kept as lists, to be read
    assert [row.layer for row in two.memory] == ["x", "fc0", "l0", "fc1", "l1"]
    assert sum(row.constants for row in two.memory) == two.constants == 2 * 64 * 64
    for graph, compiled in zip(graphs, compile_many(graphs, [(), ()]), strict=True):
        inputs = random_inputs(graph, 2, 9, 1)
        wanted = interpret(graph, inputs, record=["l0"])
        assert wanted.outputs["out"].any()
        assert differences(wanted, collect(graph, compiled, inputs, ("l0",))) == []


def test_the_size_is_exact_and_checked_by_the_compiler(tmp_path: Path) -> None:
    """SPK_BYTES is what the struct takes plus what aligning it may cost; a network that says less does not build."""
    require_compiler()
    for number, graph in enumerate([deep(3), *drawn_graphs("fixed", 12, 5), *drawn_graphs("float", 6, 5)]):
        network = generate(graph)
        folder = tmp_path / str(number)
        folder.mkdir()
        CBackend(None).emit(graph, folder)
        source = (folder / "network.c").read_text()
        assert f"sizeof(struct spk_state) + 63 <= {network.bytes} " in source
        (folder / "network.c").write_text(source.replace(f"+ 63 <= {network.bytes} ", f"+ 63 == {network.bytes} "))
        subprocess.run(["cc", "-std=c99", "-fsyntax-only", "network.c"], cwd=folder, check=True)
        (folder / "network.c").write_text(source.replace(f"<= {network.bytes} ", f"<= {network.bytes - 1} "))
        done = subprocess.run(
            ["cc", "-std=c99", "-fsyntax-only", "network.c"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0 and "check_size" in done.stderr
        kept = sum(row.kept for row in network.memory)
        assert network.shared + kept <= network.bytes
        assert int(re.findall(r"#define SPK_BYTES (\d+)u", (folder / "network.h").read_text())[0]) == network.bytes


PARAMETERS = parse_program(
    "neuron @p(a) params(decay, gain, th, low) state(v: i32 = 0) {\nv = clip((v * decay >> 15) + (a * gain >> 8) + low, 24)\ns = v > th\n"
    "v = select(s, 0, v)\nemit s\n}"
)


def uneven(size: int, number: int) -> Graph:
    """Neurons with parameters of 8, 16 and 32 bits and of 16 without sign, rows and products that fill no vector."""
    rng = np.random.default_rng(number)

    def weights(out: int, fan_in: int) -> np.ndarray:
        return rng.integers(-60, 61, (out, fan_in)).astype(np.int8)

    def neuron(name: str, source: str, size: int) -> Neuron:
        bounds = {"decay": (20000, 32768), "gain": (100, 65536), "th": (3000, 1 << 20), "low": (-9, 100)}
        params = {key: rng.integers(low, high, size).astype(np.int32) for key, (low, high) in bounds.items()}
        return Neuron(name=name, inputs=(Ref(source),), program=PARAMETERS, params=params)

    nodes: list[Node] = [
        Input(name="x", type=TensorType("graded", (5,), "i8"), bounds=(-7, 7)),
        Dense(name="fc", inputs=(Ref("x"),), weight=weights(size, 5), bias=rng.integers(-9, 9, size).astype(np.int32)),
        neuron("l", "fc", size),
        Dense(name="out", inputs=(Ref("l"),), weight=weights(size // 3 + 1, size)),
        neuron("o", "out", size // 3 + 1),
    ]
    return verify(Graph("net", "fixed", tuple(nodes), (("o", Ref("o")),)))


@pytest.mark.parametrize(
    "flags", ["-march=native -fsanitize=address,undefined", "-mavx2 -mpopcnt -fsanitize=address", "-DSPK_NO_SIMD"]
)
def test_arrays_of_a_small_network_are_the_room_of_each_other(flags: str, tmp_path: Path) -> None:
    require_compiler()
    graphs = [uneven(size, number) for number, size in enumerate((1, 6, 17, 36, 47, 64, 70, 101, 130))]
    program = batch_program(graphs, 2, 9)
    program.write(tmp_path)
    subprocess.run(["cc", "-std=c99", "-O1", *flags.split(), "-o", "driver", *program.compiled], cwd=tmp_path, check=True)
    printed = subprocess.run(["./driver"], cwd=tmp_path, check=True, capture_output=True).stdout
    assert program.differences(printed) == []
    small = generate(graphs[3])
    weights, parameters = 36 * 5 + 13 * 36, (36 + 13) * (2 + 2 + 4 + 1)
    assert weights + parameters + 2 * 36 < small.constants < 1.15 * (weights + parameters + 2 * 36)
