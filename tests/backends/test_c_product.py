"""Layers of values are multiplied all at once, four inputs at a time: the same bits as one after the other, on every processor."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from many import BatchProgram, batch_program, require_compiler

from spikec.backends.c.forms import Choices
from spikec.backends.c.generate import generate
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Dense, Input, Neuron, Node, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType

STRICT = ["-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
LIF = parse_program(
    "neuron @lif(a) params(th) state(v: i32 = 0) {\nv = clip(rtz(v * 3500, 12) + a, 24)\ns = v > th\nv = select(s, 0, v)\nemit s\n}"
)


def net(
    fan_in: int, out: int, bounds: tuple[int, int], most: int = 127, *, twice: bool = False, late: bool = False, kept: float = 1
) -> Graph:
    """A layer of values; twice: a second one in its sum, of the values of the step before; late: recurrent spikes as well; kept: the
    share of the weights that is left."""
    rng = np.random.default_rng(fan_in * 1000 + out)

    def weights(columns: int) -> np.ndarray:
        return (rng.integers(-most, most + 1, (out, columns)) * (rng.random((out, columns)) < kept)).astype(np.int16)

    nodes: list[Node] = [
        Input(name="x", type=TensorType("graded", (fan_in,), "i16" if bounds[1] < 1 << 15 else "i32"), bounds=bounds),
        Dense(name="fc", inputs=(Ref("x"),), weight=weights(fan_in), bias=rng.integers(-9, 9, out).astype(np.int32)),
    ]
    parts = ["fc"]
    if twice:
        nodes.append(Dense(name="before", inputs=(Ref("x", delay=1),), weight=weights(fan_in)))
        parts.append("before")
    if late:
        nodes.append(Dense(name="rec", inputs=(Ref("l", delay=1),), weight=weights(out)))
        parts.insert(0, "rec")
    if len(parts) > 1:
        nodes.append(Add(name="sum", inputs=tuple(map(Ref, parts))))
    th = max(most * (abs(bounds[0]) + bounds[1]), 1)
    nodes.append(Neuron(name="l", inputs=(Ref(nodes[-1].name),), program=LIF, params={"th": np.array(th, np.int32)}))
    return verify(Graph("net", "fixed", tuple(nodes), (("l", Ref("l")),)))


def nets() -> list[Graph]:
    """Values without sign, with one, of sixteen bits; sums of sixteen and of thirty-two bits; every rest of vectors and of fours."""
    graphs = []
    number = 0
    for fan_in, out in ((1, 1), (3, 16), (4, 17), (29, 64), (30, 150), (5, 300)):
        for bounds in ((0, 255), (-128, 127), (-3000, 20000), (0, 3), (-2, 2)):
            number += 1
            kept = 0.1 if number % 5 < 2 else 1
            graphs.append(net(fan_in, out, bounds, (127, 1)[number % 2], twice=number % 3 == 1, late=number % 4 == 2, kept=kept))
    return graphs


@pytest.fixture(scope="module")
def program() -> BatchProgram:
    return batch_program(nets(), 2, 5)


@pytest.mark.parametrize(
    "flags",
    [
        "-O1 -march=native", "-O1 -mavx512bw -mavx512vl", "-O1 -mavx2 -mavxvnni", "-O1 -mavx2 -fsanitize=address,undefined", "-O2",
        "-O1 -DSPK_NO_SIMD",
    ],
)  # fmt: skip
def test_products_are_exact(flags: str, program: BatchProgram, tmp_path: Path) -> None:
    require_compiler()
    for flag in flags.split():
        known = Path("/proc/cpuinfo").read_text().replace("avx_vnni", "avxvnni").split()
        if flag.startswith("-mavx") and flag[2:] not in known:
            pytest.skip(f"this processor has no {flag[2:]}")
    program.write(tmp_path)
    subprocess.run(["cc", *STRICT, *flags.split(), "-o", "driver", *program.compiled], cwd=tmp_path, check=True)
    printed = subprocess.run(["./driver"], cwd=tmp_path, check=True, capture_output=True).stdout
    assert program.differences(printed) == []


def test_where_products_are_taken() -> None:
    def taken(graph: Graph, **choices: bool) -> bool:
        return "spk_product.h" in generate(graph, choices=Choices(**choices)).source

    assert taken(net(20, 30, (0, 255)))
    assert not taken(net(20, 30, (0, 255)), products=False)
    assert not taken(net(20, 30, (0, 1)))  # spikes
    assert not taken(net(20, 30, (0, 40000)))  # more than sixteen bits with a sign
    assert not taken(net(20, 30, (0, 255), 3000))  # weights of more than a byte


def test_no_list_is_kept_where_no_event_is_read() -> None:
    assert "e_x_x" not in generate(net(20, 30, (0, 255))).source
    assert "e_x_x" in generate(net(20, 30, (0, 255)), choices=Choices(products=False)).source
