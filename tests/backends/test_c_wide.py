"""Layers of bytes whose sums need 32 bits: made of sums of 16 bits, some events at a time; the same bits on every processor."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from many import BatchProgram, batch_program, require_compiler

from spikec.backends.c.generate import generate
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Dense, Input, Neuron, Node, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType

STRICT = ["-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
LIF = parse_program(
    "neuron @lif(a) params(th) state(v: i32 = 0) {\nv = clip(rtz(v * 3500, 12) + a, 24)\ns = v > th\nv = select(s, 0, v)\nemit s\n}"
)


def net(weight: Array, *, bias: bool = False, twice: bool = False) -> Graph:
    """A layer of spikes; twice: recurrent spikes in the same sum."""
    rng = np.random.default_rng(weight.size)
    out, fan_in = weight.shape
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (fan_in,), "i8")),
        Dense(
            name="fc",
            inputs=(Ref("x"),),
            weight=weight.astype(np.int16),
            bias=rng.integers(-900, 900, out).astype(np.int32) if bias else None,
        ),
    ]
    if twice:
        again = rng.integers(-127, 128, (out, out)).astype(np.int16)
        nodes += [
            Dense(name="rec", inputs=(Ref("l", delay=1),), weight=again),
            Add(name="sum", inputs=(Ref("fc"), Ref("rec"))),
        ]
    nodes.append(Neuron(name="l", inputs=(Ref(nodes[-1].name),), program=LIF, params={"th": np.array(3000, np.int32)}))
    return verify(Graph("net", "fixed", tuple(nodes), (("l", Ref("l")),)))


def extreme(out: int, fan_in: int, seed: int) -> Array:
    """Weights of one sign at the ends of a byte: with all inputs active the sums are as large as they get."""
    sign = np.where(np.random.default_rng(seed).random(out) < 0.5, -128, 127)
    return np.broadcast_to(sign[:, None], (out, fan_in)).copy()


def nets() -> list[Graph]:
    """Every rest of vectors and panels; more events than fit into 16 bits at once; weights of which more fit."""
    rng = np.random.default_rng(0)
    graphs = []
    for number, (fan_in, out) in enumerate(((600, 1), (700, 15), (520, 17), (300, 64), (259, 130), (900, 33))):
        graphs.append(net(extreme(out, fan_in, number), bias=number % 2 == 0, twice=number % 3 == 0))
        graphs.append(net(rng.integers(-9, 10, (out, fan_in)) * 14, bias=number % 2 == 1))
    graphs.append(net(extreme(513, 300, 1)))
    graphs.append(net(extreme(70, 2800, 4) * (rng.random((70, 2800)) < 0.1)))  # pruned: packed rows
    graphs.append(net(extreme(1040, 270, 2), twice=False, bias=True))
    return graphs


@pytest.fixture(scope="module")
def program() -> BatchProgram:
    return batch_program(nets(), 2, 4)


@pytest.mark.parametrize(
    "flags",
    ["-O1 -march=native", "-O2 -mavx2", "-O1 -mavx2 -fsanitize=address,undefined", "-O2", "-O3", "-O1 -DSPK_NO_SIMD"],
)
def test_sums_are_exact(flags: str, program: BatchProgram, tmp_path: Path) -> None:
    require_compiler()
    program.write(tmp_path)
    subprocess.run(["cc", *STRICT, *flags.split(), "-o", "driver", *program.compiled], cwd=tmp_path, check=True)
    printed = subprocess.run(["./driver"], cwd=tmp_path, check=True, capture_output=True).stdout
    assert program.differences(printed) == []


def test_pruned_layers_are_packed_and_wide() -> None:
    pruned = net(extreme(70, 2800, 4) * (np.random.default_rng(0).random((70, 2800)) < 0.1))
    assert {"packed", "SPK_WIDE"} <= set(re.findall(r"SPK_WIDE|packed", generate(pruned).source))


def test_how_many_events_fit() -> None:
    def wide(weight: Array) -> list[str]:
        return re.findall(r"#define SPK_WIDE (\d+)u", generate(net(weight)).source)

    assert wide(extreme(20, 300, 3)) == ["255"]  # 255 * 128 = 32640
    assert wide(np.full((20, 300), 127)) == ["258"]
    assert wide(np.full((20, 30), 127)) == []  # 16 bits hold all of them
    assert wide(np.full((20, 300), 300)) == []  # no bytes
