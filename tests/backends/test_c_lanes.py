"""Loops over populations in vectors: lists of any number of spikes, and numbers that are compared before they are clipped."""

from __future__ import annotations

import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from many import differences, require_compiler

from spikec.backend import Golden
from spikec.backends.c.backend import CBackend
from spikec.backends.c.generate import generate
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret
from spikec.ir.ops import Dense, Input, Neuron, Node, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType

#: With the machine's own vectors, and with shorter ones or none.
FLAGS = ("-O2 -march=native", "-O2", "-O2 -DSPK_NO_SIMD")


@pytest.fixture(autouse=True)
def _compiler() -> None:
    require_compiler()


def checked(graph: Graph, inputs: dict[str, Array], folder: Path) -> None:
    """The emitted folder gives what the reference gives, whatever it is built with."""
    CBackend(None).emit(graph, folder, Golden(inputs, interpret(graph, inputs, record=default_record(graph))))
    for flags in FLAGS:
        subprocess.run(["make", "clean"], cwd=folder, check=True, capture_output=True)
        done = subprocess.run(["make", "check", f"CFLAGS={flags}"], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{flags}: {done.stderr}{done.stdout}"


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("size", [64, 150, 256])
def test_any_number_of_a_group_fires(bits: int, size: int, tmp_path: Path) -> None:
    program = parse_program(
        f"neuron @n(a) state(v: i{bits} = 0) {{\nv = clip(v + (a << {bits // 3}), {bits - 2})\ns = v > 5\nv = select(s, 0, v)\nemit s\n}}"
    )
    nodes: list[Node] = [
        Input(name="x", type=TensorType("graded", (size,), "i8")),
        Neuron(name="n", inputs=(Ref("x"),), program=program),
        Dense(name="w", inputs=(Ref("n"),), weight=np.random.default_rng(2).integers(-9, 10, (3, size)).astype(np.int8)),
        Neuron(name="m", inputs=(Ref("w"),), program=program),
    ]
    graph = verify(Graph("lists", "fixed", tuple(nodes), (("m", Ref("m")), ("n", Ref("n")))))
    rng = np.random.default_rng(1)
    counts = [0, 1, 2, 31, 32, 33, 34, 63, 64, 40, 5]
    data = np.zeros((2, len(counts), size), np.int8)
    for step, count in enumerate(counts):
        for begin in range(0, size, 64):
            group = min(64, size - begin)
            fires = np.arange(group) < min(count, group)
            data[0, step, begin : begin + group] = fires
            data[1, step, begin : begin + group] = rng.permutation(fires)
    fired = interpret(graph, {"x": data}).outputs["n"][0].sum(axis=-1)
    assert fired.max() == size and (fired == 0).any()
    checked(graph, {"x": data}, tmp_path)


def test_numbers_are_compared_before_they_are_clipped_only_where_that_is_the_same(tmp_path: Path) -> None:
    """Every comparison with every number around the two ends."""
    nodes: list[Node] = [Input(name="x", type=TensorType("graded", (64,), "i8"))]
    for number, (op, limit) in enumerate(product((">=", ">", "<", "<=", "==", "!="), (-32, -31, -30, 0, 30, 31, 32))):
        text = f"neuron @n{number // 7}(a) params(th) state(v: i16 = 0) {{\nv = clip(v + a, 6)\ns = v {op} th\nv = select(s, 0, v)\nemit s\n}}"
        params = {"th": np.array(limit, np.int32)}
        nodes.append(Neuron(name=f"n{number}", inputs=(Ref("x"),), program=parse_program(text), params=params))
    outputs = tuple((node.name, Ref(node.name)) for node in nodes[1:])
    graph = verify(Graph("clipped", "fixed", tuple(nodes), outputs))
    rng = np.random.default_rng(0)
    x = rng.choice(np.array([-64, -33, -32, -31, -30, -1, 0, 1, 29, 30, 31, 32, 33, 64], np.int8), (4, 12, 64))
    checked(graph, {"x": x}, tmp_path)
    assert differences(interpret(graph, {"x": x}), CBackend(None).run(graph, {"x": x})) == []
    source = generate(graph).source
    # Four limits of >= lie above the lower end and not above the upper one; the other three decide by themselves.
    assert source.count("spk_ge16(spk_add16(") == 4 and source.count("spk_ge16(v_1") == 0
