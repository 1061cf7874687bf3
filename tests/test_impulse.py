"""Latencies measured on what was built are the model's; a wrong one is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import native

import spikec
from spikec import cli
from spikec.backends.lava.environment import LavaEnvironment
from spikec.impulse import NEVER, arrivals, impulses, measure
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Ref, Reshape
from spikec.ir.types import TensorType


def lif(name: str, ref: Ref, vth: int = 10) -> Neuron:
    given = {"du": 4095, "dv": 4096, "vth": vth, "bias_mant": 0, "bias_exp": 0}
    return Neuron(
        name=name, inputs=(ref,), program=native("LIF"), params={key: np.asarray(value, np.int32) for key, value in given.items()}
    )


def net() -> Graph:
    """A convolution, a skip with a delay, delays per connection and a loop; a layer that never fires."""
    rng = np.random.default_rng(0)
    delays = rng.integers(0, 6, (3, 8)).astype(np.int32)
    nodes = (
        Input(name="in", type=TensorType("spike", (1, 4, 4), "i8")),
        Conv(name="c", inputs=(Ref("in"),), weight=np.full((2, 1, 3, 3), 20, np.int16)),
        lif("l1", Ref("c")),
        Reshape(name="flat", inputs=(Ref("l1"),), shape=(8,)),
        Dense(name="fc", inputs=(Ref("flat"),), weight=np.full((3, 8), 30, np.int16), delay=delays),
        Reshape(name="pixels", inputs=(Ref("in"),), shape=(16,)),
        Dense(name="skip", inputs=(Ref("pixels", delay=2),), weight=np.full((3, 16), 4, np.int16)),
        Dense(name="loop", inputs=(Ref("l2", delay=3),), weight=np.full((3, 3), -2, np.int16)),
        Add(name="sum", inputs=(Ref("fc"), Ref("skip"), Ref("loop"))),
        lif("l2", Ref("sum"), 20),
        Dense(name="weak", inputs=(Ref("l2"),), weight=np.full((1, 3), 2, np.int16)),
        lif("mute", Ref("weak"), 1000),
    )
    return Graph("net", "fixed", nodes, (("l2", Ref("l2")), ("mute", Ref("mute"))))


def test_impulses_hold_silence_all_and_single_elements() -> None:
    data = impulses(net())["in"]
    assert data.shape[0] == 3 + 12 and data.shape[1] >= 6 + 5 + 3 + 2
    assert not data[0].any() and data[1].sum() == 16 and data[2, 1:].all() and (data[3:].sum(axis=(1, 2, 3, 4)) == 1).all()


def test_arrivals() -> None:
    values = np.zeros((3, 6, 2))
    values[:, :, 1] = 7
    values[1, 4, 0], values[2, 1:, 1] = 1, 8
    assert arrivals(values).tolist() == [[3, NEVER], [NEVER, 0]]


@pytest.mark.parametrize("backends", [["numpy", "c"], ["lava"]])
def test_latencies_of_the_artefact_are_the_models(backends: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if backends == ["lava"]:
        environment: LavaEnvironment = request.getfixturevalue("lava_env")
        assert environment.python.exists()
    build = spikec.compile(net())
    build.save(tmp_path / "build")
    found = build.impulses(backends)
    assert found.ok and found.unreached == ("mute",)
    firsts = {path.wire: path.measured for path in found.paths if path.backend == backends[0]}
    assert firsts["l1"] == 0 and firsts["l2"] is not None and firsts["mute"] is None
    assert sum(path.latencies for path in found.paths) > 100
    if backends == ["lava"]:
        assert {"c", "sum", "weak"} <= set(firsts), "Lava shows synaptic sums as well"
    assert "no impulse reached mute" in found.text() and "every latency is the graph's" in found.text()


def test_a_wrong_latency_is_found() -> None:
    """An engine on which one layer's synapses are a step late, and one whose whole output is."""
    model = net()

    def late(node: Any) -> Any:
        return replace(node, inputs=(node.inputs[0].later(1),)) if node.name == "skip" else node

    wrong = model.with_nodes(late(node) for node in model.nodes)
    runs = {
        "right": lambda inputs, wires: interpret(model, inputs, record=wires),
        "wrong": lambda inputs, wires: interpret(wrong, inputs, record=wires),
    }
    found = measure(model, model, runs)
    assert not found.ok and "NOT the graph's latencies" in found.text()
    bad = {(path.backend, path.wire) for path in found.paths if path.differing}
    assert ("wrong", "sum") in bad and not any(backend == "right" for backend, _ in bad)
    assert ("wrong", "c") not in bad and ("wrong", "l1") not in bad
    assert not measure(model, model, {}).ok


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "build"
    spikec.compile(net()).save(folder)
    assert cli.main(["verify", str(folder), "--impulse", "--backends", "numpy"]) == 0
    assert "every latency is the graph's" in capsys.readouterr().out
    assert cli.main(["verify", str(folder), "--impulse", "--backends", "numpy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert cli.main(["verify", str(folder), "--impulse", "--input", "x.npz"]) == 1
    assert "leave out --input" in capsys.readouterr().err
