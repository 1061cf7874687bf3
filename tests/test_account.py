"""Nothing changes by surprise: with no optimization asked for, all that differs between the trained network and what runs is listed.

The check is tested too: a graph or a ledger that was tampered with is found out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, random_spikes, spikes, values
from strategies import graphs, random_inputs

import spikec
from spikec.account import unaccounted
from spikec.build import Build
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Conv, Neuron, Pool, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ledger import Ledger
from spikec.pipeline import Stage

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits" / "model.py"
#: Targets of integers, and what asks for them.
INTEGERS: list[tuple[str, dict[str, Any]]] = [("loihi2", {}), ("host", {"bits": 8}), ("rpi4", {"bits": 4})]


def feedforward() -> Graph:
    rng = np.random.default_rng(0)
    return graph(
        spikes((12,)),
        dense("fc1", "in", rng.normal(0.1, 0.3, (10, 12)).astype(F), rng.normal(0, 0.1, 10).astype(F)),
        leaky("l1", "fc1", beta=rng.uniform(0.5, 0.99, 10).astype(F)),
        dense("fc2", "l1", rng.normal(0.1, 0.3, (4, 10)).astype(F), rng.normal(0, 0.1, 4).astype(F)),
        leaky("l2", "fc2", beta=0.9, theta=rng.uniform(0.5, 1.5, 4).astype(F)), out=["l2"],
    )  # fmt: skip


def convolutional() -> Graph:
    rng = np.random.default_rng(1)
    return graph(
        spikes((2, 8, 8)), Conv(name="c1", inputs=(Ref("in"),), weight=rng.normal(0, 0.5, (4, 2, 3, 3)).astype(F), padding=(1, 1)), leaky("l1", "c1"),
        Pool(name="p", inputs=(Ref("l1"),), mode="sum", kernel=(2, 2)), Conv(name="c2", inputs=(Ref("p"),), weight=rng.normal(0, 0.3, (4, 4, 3, 3)).astype(F)), leaky("l2", "c2"),
        Reshape(name="f", inputs=(Ref("l2"),), shape=(16,)), dense("fc", "f", rng.normal(0, 0.5, (4, 16)).astype(F)), leaky("l3", "fc"), out=["l3"],
    )  # fmt: skip


def recurrent() -> Graph:
    rng = np.random.default_rng(2)
    return graph(
        spikes((6,)), dense("f", "in", rng.normal(0, 0.6, (8, 6)).astype(F)), dense("r", Ref("l1", delay=1), rng.normal(0, 0.3, (8, 8)).astype(F)),
        Add(name="s", inputs=(Ref("f"), Ref("r"))), leaky("l1", "s", 0.8), dense("o", "l1", rng.normal(0, 0.6, (3, 8)).astype(F)), leaky("l2", "o", 0.9),
        out=["l2"],
    )  # fmt: skip


NETS = {"feedforward": feedforward, "convolutional": convolutional, "recurrent": recurrent}


@pytest.fixture(scope="module")
def made() -> Any:
    """Builds by network, target and whether they were calibrated."""
    kept: dict[Any, Build] = {}

    def build(net: str, target: str, options: dict[str, Any], calibrated: bool = False) -> Build:
        key = (net, target, calibrated)
        if key not in kept:
            g = verify(NETS[net]())
            data = {"calibrate": random_spikes((6, 10, *g.inputs[0].type.shape), 3)} if calibrated else {}
            kept[key] = spikec.compile(g, target=target, **options, **data)
        return kept[key]

    return build


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(("target", "options"), INTEGERS)
@pytest.mark.parametrize("net", NETS)
def test_all_that_differs_is_listed(net: str, target: str, options: Any, calibrated: bool, made: Any) -> None:
    assert unaccounted(made(net, target, options, calibrated)) == []


@pytest.mark.parametrize("target", ["reference", "host", "rpi4"])
@pytest.mark.parametrize("net", NETS)
def test_floats_run_the_very_graph(net: str, target: str) -> None:
    g = verify(NETS[net]())
    build = spikec.compile(g, target=target)
    assert build.graph() == g and not list(build.ledger)
    assert unaccounted(build) == []


@pytest.mark.parametrize(("target", "options"), INTEGERS)
def test_the_digits_network(target: str, options: Any) -> None:
    import torch

    build = spikec.compile(
        f"{DIGITS}:load", torch.zeros(20, 1, 64), time_axis=0, batch_axis=1, input_kind="spike", target=target, **options
    )
    assert unaccounted(build) == []


@settings(max_examples=40, deadline=None)
@given(graphs(level="float"), st.sampled_from(INTEGERS), st.integers(0, 99), st.booleans())
def test_random_networks(g: Graph, kind: Any, seed: int, calibrated: bool) -> None:
    target, options = kind
    data = {"calibrate": random_inputs(g, 3, 6, seed)} if calibrated and g.inputs else {}
    try:
        build = spikec.compile(g, target=target, **options, **data)
    except CompileError:
        return
    assert unaccounted(build) == []


# ---------------------------------------------------------------------------------------------------------- tampering


def changed(build: Build, node: str, **more: Any) -> Build:
    """The build with a node of the quantizer's graph replaced."""
    stages = []
    for stage in build.stages:
        g = stage.graph
        if stage.name in ("quantize", "to-fixed"):
            g = g.with_nodes(replace(n, **more) if n.name == node else n for n in g.nodes)
        stages.append(Stage(stage.name, g, 0.0))
    return Build(stages, build.ledger, build.target, build.target_text, {}, build.options)


def without(build: Build, words: str) -> Build:
    """The build with the entries gone that say this."""
    ledger = Ledger()
    ledger.entries = [entry for entry in build.ledger if words not in entry.what]
    return Build(build.stages, ledger, build.target, build.target_text, {}, build.options)


@pytest.mark.parametrize(("target", "options"), INTEGERS)
def test_a_weight_too_many(target: str, options: Any, made: Any) -> None:
    build = made("feedforward", target, options)
    name = "to-fixed" if "to-fixed" in build.stage_names else "quantize"
    weight = build.graph(after=name)["fc1"].weight.copy()
    weight[0, 0] += 32
    assert any("%fc1" in line and "weights differ" in line for line in unaccounted(changed(build, "fc1", weight=weight)))


@pytest.mark.parametrize(("param", "what"), [("dv", "decay"), ("vth", "threshold"), ("bias_mant", "bias")])
def test_a_parameter_that_is_not_as_told(param: str, what: str, made: Any) -> None:
    build = made("feedforward", "loihi2", {})
    node = build.graph(after="quantize")["l1"]
    assert isinstance(node, Neuron)
    other = changed(build, "l1", params={**node.params, param: node.params[param] + 9})
    assert any("%l1: " in line and what in line for line in unaccounted(other))


@pytest.mark.parametrize("words", ["weights", "decay", "threshold", "bias to"])
def test_an_entry_that_is_missing(words: str, made: Any) -> None:
    assert unaccounted(without(made("feedforward", "loihi2", {}), words))


def test_a_pass_that_says_nothing(made: Any) -> None:
    build = made("recurrent", "loihi2", {})
    ledger = Ledger()
    ledger.entries = [entry for entry in build.ledger if entry.pass_name != "retime"]
    silent = Build(build.stages, ledger, build.target, build.target_text, {}, build.options)
    assert "retime: changed the graph and recorded nothing" in unaccounted(silent)


def test_an_approximation_that_nobody_asked_for(made: Any) -> None:
    build = made("recurrent", "loihi2", {})
    ledger = Ledger()
    ledger.entries = list(build.ledger)
    ledger.pass_name = "legalise"
    ledger.record("l1", "approximation", "the threshold is left out")
    told = unaccounted(Build(build.stages, ledger, build.target, build.target_text, {}, build.options))
    assert told == ["legalise: an approximation that nobody asked for: the threshold is left out"]


def test_weights_that_read_messages_are_told_in_the_models_numbers() -> None:
    weight = np.random.default_rng(0).normal(0.2, 2, (6, 4)).astype(np.float32)
    net = graph(values((4,)), dense("fc", "in", weight), leaky("l", "fc", beta=0.875, theta=2.0))
    x = np.random.default_rng(1).integers(-1, 2, (4, 30, 4)).astype(np.float32) / 3
    build = spikec.compile(net, target="loihi2", calibrate=x)
    assert unaccounted(build) == []
    (entry,) = [e for e in build.ledger if e.node == "fc" and e.kind == "approximation"]
    source, layer = build.graph(after="quantize")["in"], build.graph(after="quantize")["fc"]
    assert source.unit not in (None, 1.0)
    error = np.abs(layer.weight / (entry.measured["scale"] * source.unit) - weight)
    assert entry.largest == pytest.approx(error.max(), rel=1e-4)
