"""Memory limits as design rules: all of them at once, both numbers, each layer's part, and what to do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import spikec
from spikec.backends.c.backend import CBackend
from spikec.backends.c.limits import code_bytes
from spikec.backends.c.parts import Network
from spikec.cli import main
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.ops import Conv, Dense, Input, Neuron, Node, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.target import load_target
from support.builds import spikes, tiny

LIF = parse_program(
    "neuron @lif(x) params(beta, theta) state(v = 0) {\nv = beta * v + x\ns = v >= theta\nv = select(s, 0, v)\nemit s\n}"
)


def wide(width: int) -> Graph:
    """Two dense layers of floats, and a small one: width x width, width x 4."""
    rng = np.random.default_rng(0)
    nodes: list[Node] = [Input(name="x", type=TensorType("spike", (width,), "f32"))]
    for name, out in (("big", width), ("small", 4)):
        weight = (rng.integers(-64, 64, (out, width)) / 64).astype(np.float32)
        nodes.append(Dense(name=name, inputs=(Ref(nodes[-1].name),), weight=weight))
        params = {"beta": np.float32(0.875), "theta": np.float32(1)}
        nodes.append(Neuron(name=f"l_{name}", inputs=(Ref(name),), program=LIF, params=params))
    return verify(Graph("wide", "float", tuple(nodes), (("out", Ref("l_small")),)))


def test_both_limits_are_reported_with_both_numbers_and_the_layers() -> None:
    with pytest.raises(CompileError) as caught:
        spikec.compile(wide(700), target="cortex-m4", max_ram=4096)
    ram, flash = caught.value.diagnostics
    build = spikec.compile(wide(700), target="host")
    memory = build.memory()
    assert ram.code == flash.code == "SPK209"
    assert (
        ram.message == f"the network needs {memory.total:,} bytes of RAM, 'cortex-m4' has 4,096: {memory.total - 4096:,} too many"
    )
    need = memory.constants + 4096 + 1024 * len(memory.layers)
    assert flash.message == f"the network needs {need:,} bytes of flash, 'cortex-m4' has 1,048,576: {need - 1048576:,} too many"
    assert flash.notes[0] == "%big: 1,960,000 bytes of constants"
    assert any(note.startswith("%small: 11,200 bytes") for note in flash.notes)
    assert any("about 9,216 bytes" in note for note in flash.notes)
    assert str(flash.fix).startswith("--bits 8") and "--max-flash BYTES" in str(flash.fix)
    assert "--max-ram BYTES" in str(ram.fix)
    # The cure that is named is one.
    x = (np.random.default_rng(1).random((2, 10, 700)) < 0.1).astype(np.int8)
    assert spikec.compile(wide(700), target="cortex-m4", bits=8, calibrate=x).memory().constants < 1048576


def test_without_flash_the_constants_count_as_memory() -> None:
    memory = spikec.compile(wide(100), target="rpi5").memory()
    both = memory.total + memory.constants
    spikec.compile(wide(100), target="rpi5", max_ram=both)
    with pytest.raises(CompileError, match=rf"needs {both:,} bytes of RAM, 'rpi5' has {both - 1:,}: 1 too many"):
        spikec.compile(wide(100), target="rpi5", max_ram=both - 1)
    spikec.compile(wide(100), target="rpi5", max_ram=memory.total, max_flash=memory.constants)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "loihi2", "max_ram": 5}, "max_ram is for targets that C is emitted for; 'loihi2' is not one of them"),
        ({"target": "host", "max_flash": 0}, "max_flash is a whole number of bytes above 0, not 0"),
        ({"target": "host", "max_ram": "4K"}, "max_ram is a whole number of bytes above 0, not '4K'"),
    ],
)
def test_bad_limits(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CompileError, match="SPK001") as caught:
        spikec.compile(tiny(), calibrate=spikes(4), **arguments)
    assert caught.value.diagnostics[0].message == message


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from spikec.ir.text import write_graph

    write_graph(wide(40), tmp_path / "wide.sir")
    command = ["compile", str(tmp_path / "wide.sir"), "-o", str(tmp_path / "build"), "--target", "rpi4"]
    assert main([*command, "--max-ram", "2K"]) == 1
    assert "error[SPK209]: the network needs" in capsys.readouterr().err
    assert not (tmp_path / "build").exists()
    assert main([*command, "--max-ram", "2 MB"]) == 1
    assert "--max-ram is a number of bytes such as 65536, 64K or 2M, not '2 MB'" in capsys.readouterr().err
    assert main([*command, "--max-ram", "1M"]) == 0
    assert "bytes of states and buffers, 7,040 bytes of constants" in capsys.readouterr().out
    assert main(["show", str(tmp_path / "build"), "--memory"]) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "build" / "c" / "memory.txt").read_text() == spikec.load(tmp_path / "build").memory().text()
    assert main(["show", str(tmp_path / "build"), "--memory", "--json"]) == 0
    assert '"constants": 7040' in capsys.readouterr().out


def conv(channels: int, out: int, graded: bool = False) -> Graph:
    rng = np.random.default_rng(2)
    program = parse_program(
        "neuron @p(a) state(v: i32 = 0) {\nv = clip(rtz(v * 3900, 12) + a, 24)\ns = v > 90\nv = select(s, 0, v)\nemit s\n}"
    )
    nodes: list[Node] = [
        Input(name="x", type=TensorType("graded" if graded else "spike", (channels, 12, 12), "i8")),
        Conv(name="c1", inputs=(Ref("x"),), weight=rng.integers(-40, 60, (out, channels, 3, 3)).astype(np.int8), padding=(1, 1)),
        Neuron(name="l1", inputs=(Ref("c1"),), program=program),
        Reshape(name="flat", inputs=(Ref("l1"),), shape=(out * 144,)),
        Dense(name="fc", inputs=(Ref("flat"),), weight=rng.integers(-40, 60, (10, out * 144)).astype(np.int8)),
        Neuron(name="l2", inputs=(Ref("fc"),), program=program),
    ]
    return verify(Graph("conv", "fixed", tuple(nodes), (("out", Ref("l2")),)))


@pytest.mark.parametrize("name", ["cortex-m4", "cortex-m7"])
@pytest.mark.parametrize("net", ["dense", "conv", "graded", "float"])
def test_the_code_takes_no_more_than_is_reckoned(name: str, net: str, tools: Callable[..., None], tmp_path: Path) -> None:
    tools("arm-none-eabi-gcc")
    target = load_target(name)
    graph = {"dense": lambda: spikec.compile(wide(60), target="host", bits=8).graph(), "conv": lambda: conv(2, 8),
             "graded": lambda: conv(3, 20, graded=True), "float": lambda: wide(60)}[net]()  # fmt: skip
    CBackend(target).emit(graph, tmp_path)
    command = ["arm-none-eabi-gcc", *target.compiler.flags.split(), "-std=c99", "-ffp-contract=off", "-O2", "-c", "network.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    said = subprocess.run(["arm-none-eabi-size", "network.o"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    text, data, bss = map(int, said.splitlines()[-1].split()[:3])
    memory = CBackend(target).memory(graph)
    network = Network("", "", "", None, None, [], [], 0, [], [], 0, memory=list(memory.layers))
    assert data == bss == 0
    assert 1000 < text - memory.constants <= code_bytes(network, target)
