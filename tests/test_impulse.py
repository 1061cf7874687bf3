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
from spikec.diagnostics import CompileError
from spikec.impulse import NEVER, PATTERNS, Unreached, arrivals, impulses, measure
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Constant, Conv, Dense, Input, Neuron, Node, Ref, Reshape
from spikec.ir.text import parse_program
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


def test_impulses_hold_silence_all_single_elements_and_patterns() -> None:
    data = impulses(net())["in"]
    assert data.shape[0] == 3 + 12 + len(PATTERNS) and data.shape[1] >= 6 + 5 + 3 + 2
    assert not data[0].any() and data[1].sum() == 16 and data[2, 1:].all() and (data[3:15].sum(axis=(1, 2, 3, 4)) == 1).all()
    patterns = data[15:, 1:]
    assert (patterns == patterns[:, :1]).all() and len(np.unique(patterns[:, 0].reshape(len(PATTERNS), -1), axis=0)) == len(
        PATTERNS
    )
    assert not data[:, 0].any()


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
    assert found.ok and [(item.layer, item.driven) for item in found.unreached] == [("mute", True)]
    firsts = {path.wire: path.measured for path in found.paths if path.backend == backends[0] and not path.driven}
    assert firsts["l1"] == 0 and firsts["l2"] is not None and firsts["mute"] is None
    assert [path.measured for path in found.paths if path.driven] == [0] * len(backends)
    assert sum(path.latencies for path in found.paths) > 100
    if backends == ["lava"]:
        assert {"c", "sum", "weak"} <= set(firsts), "Lava shows synaptic sums as well"
    assert "mute: no impulse made it fire as it is: threshold not reached: what arrives changes by 6 at most\n" in found.text()
    assert "every latency is the graph's" in found.text()


def test_a_wrong_latency_is_found() -> None:
    """An engine on which one layer's synapses are a step late, and one whose whole output is."""
    model = net()

    def late(node: Any) -> Any:
        return replace(node, inputs=(node.inputs[0].later(1),)) if node.name == "skip" else node

    runs = {
        "right": lambda graph, inputs, wires: interpret(graph, inputs, record=wires),
        "wrong": lambda graph, inputs, wires: interpret(graph.with_nodes(map(late, graph.nodes)), inputs, record=wires),
    }
    found = measure(model, model, runs)
    assert not found.ok and "NOT the graph's latencies" in found.text()
    bad = {(path.backend, path.wire) for path in found.paths if path.differing}
    assert ("wrong", "sum") in bad and not any(backend == "right" for backend, _ in bad)
    assert ("wrong", "c") not in bad and ("wrong", "l1") not in bad
    assert not measure(model, model, {}).ok


def test_a_wrong_latency_behind_a_layer_that_never_fires_is_found() -> None:
    """Driven directly, the layers behind it are compared as well."""
    base = net()
    nodes: list[Node] = [
        *base.nodes,
        Dense(name="far", inputs=(Ref("mute", delay=2),), weight=np.full((2, 1), 90, np.int16)),
        lif("last", Ref("far")),
    ]
    model = Graph("net", "fixed", tuple(nodes), (("last", Ref("last")),))

    def late(name: str) -> Any:
        def run(graph: Graph, inputs: Any, wires: Any) -> Any:
            moved = (replace(n, inputs=(n.inputs[0].later(1),)) if n.name == name else n for n in graph.nodes)
            return interpret(graph.with_nodes(moved), inputs, record=wires)

        return run

    found = measure(model, model, {"right": late(""), "weak is late": late("weak"), "far is late": late("far")})
    bad = {(path.backend, path.wire) for path in found.paths if path.differing and path.driven}
    late_ones = {("weak is late", name) for name in ("mute", "far", "last")}
    assert bad == late_ones | {("far is late", "far"), ("far is late", "last")} and not found.ok
    assert found.unreached == (
        Unreached("mute", "threshold not reached: what arrives changes by 6 at most", True),
        Unreached("last", "silent: nothing arrives, as mute does not fire either", True),
    )


def test_why_a_layer_is_not_reached() -> None:
    """Every reason; a layer with a bias of its own that arrives by a synapse in what was built cannot be driven, and that is said."""
    product = parse_program("neuron @product(a, b) { y = min(a * b, 1)\n emit y: graded }")
    nodes: tuple[Node, ...] = (
        Input(name="in", type=TensorType("spike", (2,), "i8")),
        Dense(name="up", inputs=(Ref("in"),), weight=np.full((2, 2), 30, np.int16)),
        lif("l", Ref("up")),
        lif("high", Ref("up"), 9000),
        Dense(name="of_high", inputs=(Ref("high"),), weight=np.full((2, 2), 30, np.int16)),
        Neuron(name="both", inputs=(Ref("up"), Ref("of_high")), program=product),
        Dense(name="down", inputs=(Ref("l"),), weight=np.full((2, 2), -30, np.int16)),
        lif("held", Ref("down")),
        Dense(name="against", inputs=(Ref("l"),), weight=np.full((2, 2), -30, np.int16)),
        Dense(name="with", inputs=(Ref("l"),), weight=np.full((2, 2), 30, np.int16)),
        Add(name="nothing", inputs=(Ref("against"), Ref("with"))),
        lif("cancelled", Ref("nothing")),
        Constant(name="on", value=np.array([1, 1], np.int32), kind="spike"),
        Dense(name="push", inputs=(Ref("on"),), weight=np.full((2, 2), 2, np.int16)),
        lif("alone", Ref("push"), 90),
    )
    names = ("both", "held", "cancelled", "alone", "high")
    model = Graph("net", "fixed", nodes, tuple((name, Ref(name)) for name in names))
    found = measure(model, model, {"reference": lambda graph, inputs, wires: interpret(graph, inputs, record=wires)})
    assert {item.layer: (item.why, item.driven) for item in found.unreached} == {
        "high": ("threshold not reached: what arrives changes by 60 at most", True),
        "both": ("gated: of_high, which it also reads, never changes", True),
        "held": ("inhibited: all that arrives, 60 at most, pulls it down", True),
        "cancelled": ("silent: what arrives cancels out", False),
        "alone": ("nothing leads to it from an input", False),
    }
    assert "alone: no impulse made it fire as it is: nothing leads to it from an input; its latency is NOT known" in found.text()
    biased = lif("high", Ref("sum"), 9000)
    more: tuple[Node, ...] = (
        Constant(name="bias", value=np.array([1, 1], np.int32), kind="spike"),
        Dense(name="from_bias", inputs=(Ref("bias"),), weight=np.full((2, 2), 2, np.int16)),
        Add(name="sum", inputs=(Ref("up"), Ref("from_bias"))),
        biased,
    )
    kept = tuple(node for node in nodes if node.name != "high")
    built = Graph("net", "fixed", (*kept[:3], *more, *kept[3:]), model.outputs)
    found = measure(model, built, {"reference": lambda graph, inputs, wires: interpret(graph, inputs, record=wires)})
    assert {item.layer: item.driven for item in found.unreached}["high"] is False


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "build"
    spikec.compile(net()).save(folder)
    assert cli.main(["verify", str(folder), "--impulse", "--backends", "numpy"]) == 0
    assert "every latency is the graph's" in capsys.readouterr().out
    assert cli.main(["verify", str(folder), "--impulse", "--backends", "numpy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert cli.main(["verify", str(folder), "--impulse", "--input", "x.npz"]) == 1
    assert "leave out --input" in capsys.readouterr().err


@pytest.mark.parametrize("code", ["SPK502", "SPK512"])
def test_an_engine_that_cannot_be_driven(code: str) -> None:
    model = net()

    def run(graph: Graph, inputs: Any, wires: Any) -> Any:
        if graph != model:
            raise CompileError(code, "no")
        return interpret(graph, inputs, record=wires)

    if code == "SPK502":
        found = measure(model, model, {"one": run})
        assert found.ok and [item.driven for item in found.unreached] == [False]
    else:
        with pytest.raises(CompileError, match="no"):
            measure(model, model, {"one": run})
