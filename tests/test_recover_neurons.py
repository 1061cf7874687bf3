"""What neurons have of their own is trained with the weights: biases, thresholds and decays, in recurrent networks above all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nets import dense, graph, spikes

import spikec
from spikec.account import unaccounted
from spikec.frontend.nn.graph_module import GraphModule
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Dense, Neuron, Ref
from spikec.ir.text import parse_program
from spikec.neurons import forms_of, with_trained
from spikec.score import score

LATE = "neuron @h(x) params(beta, theta) state(v = 0, z = 0) {\nv = beta * v + x - theta * z\ns = v > theta\nz = s\nemit s\n}"
TWO = LATE.replace("(x)", "(x, y)").replace("+ x", "+ x + y")
READ = "neuron @o(x) params(beta) state(v = 0) {\nv = beta * v + x\nemit v\n}"
OWN = {"theta", "beta"}


def network(joined: bool = False) -> Graph:
    """Ten recurrent neurons, each with a threshold, a decay and a bias; three membranes are the answer in every step."""
    rng = np.random.default_rng(3)

    def weight(*shape: int) -> np.ndarray[Any, Any]:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    params = {"beta": rng.uniform(0.7, 0.95, 10).astype(np.float32), "theta": rng.uniform(0.6, 1.4, 10).astype(np.float32)}
    back = Dense(name="back", inputs=(Ref("h", delay=1),), weight=weight(10, 10), bias=0.1 * weight(10))
    layers = [spikes((6,)), dense("fc", "in", weight(10, 6), 0.1 * weight(10)), back]
    layers += [Add(name="sum", inputs=(Ref("fc"), Ref("back")))] if joined else []
    inputs = (Ref("sum"),) if joined else (Ref("fc"), Ref("back"))
    hidden = Neuron(name="h", inputs=inputs, program=parse_program(LATE if joined else TWO), params=params)
    shown = Neuron(name="o", inputs=(Ref("out"),), program=parse_program(READ), params={"beta": np.float32(0.8)})
    out = weight(3, 10)
    unbiased = graph(*layers, hidden, dense("out", "h", out, np.zeros(3, np.float32)), shown, out=["o"])
    means = spikec.compile(unbiased, target="host").run(stimuli(50, 9), "numpy").outputs["o"].mean(axis=(0, 1))
    bias = (-0.2 * means).astype(np.float32)  # all answers are about as frequent
    return graph(*layers, hidden, dense("out", "h", out, bias), shown, out=["o"])


def stimuli(samples: int, seed: int) -> Any:
    """Spikes that come and go, 40 steps."""
    rng = np.random.default_rng(seed)
    rates = np.repeat(rng.uniform(0, 0.6, (samples, 4, 6)), 10, axis=1)
    return (rng.random(rates.shape) < rates).astype(np.float32)


def task(net: Graph, samples: int, seed: int) -> tuple[Any, Any]:
    """Stimuli, and what the network itself answers at every step."""
    x = stimuli(samples, seed)
    return x, spikec.compile(net, target="host").run(x, "numpy").outputs["o"].argmax(axis=-1)


@pytest.mark.parametrize(("target", "joined"), [("host", False), ("host", True), ("loihi2", True)])
def test_the_answers_come_back_and_what_was_trained_is_what_runs(target: str, joined: bool) -> None:
    net = network(joined)
    x, y = task(net, 96, 0)
    other, labels = task(net, 200, 1)
    build = spikec.compile(net, target=target, bits=2, calibrate=x[:32])
    settings = {"epochs": 20, "batch_size": 16, "drop": 0.0, "distill": False, "learning_rate": 0.02, "held_out": 0.0}
    better, plain = (spikec.recover(build, x, y, neurons=neurons, **settings) for neurons in (True, False))
    was, without, reached = (score(b.run(other, "numpy").outputs["o"], labels) for b in (build, plain, better))
    assert min(reached, without) > was + 0.05
    for found in (better, plain):
        (after,) = (entry.measured["score after"] for entry in found.ledger if "score after" in entry.measured)
        assert after == score(found.run(x, "numpy").outputs["o"], y)
    engines = [better.run(other[:10], name, record="all") for name in ("reference", "numpy", "c")]
    for engine in engines[1:]:
        for name, value in engines[0].records.items():
            np.testing.assert_array_equal(engine.records[name], value)
    told = {(entry.node, entry.what) for entry in better.ledger if entry.pass_name == "recover"}
    assert told >= {("fc", "biases trained again"), ("h", "theta trained again"), ("h", "beta trained again")}
    assert not unaccounted(better)
    # Thresholds and decays in front of the quantizer are the trained ones; without `neurons` they are the given ones.
    one, two = (b.graph(after="recover")["h"] for b in (better, plain))
    for name in OWN:
        assert not np.array_equal(one.params[name], net["h"].params[name])
        np.testing.assert_array_equal(two.params[name], net["h"].params[name])


def test_thresholds_that_are_wrong_are_learnt() -> None:
    """Those that are too low rise against those that are too high."""
    net = network(joined=True)
    x, y = task(net, 96, 0)
    hidden = net["h"]
    assert isinstance(hidden, Neuron)
    odd = np.arange(10) % 2 == 1
    wrong = (hidden.params["theta"] * np.where(odd, 0.4, 2.5)).astype(np.float32)
    nodes = [replace(n, params={**hidden.params, "theta": wrong}) if n.name == "h" else n for n in net.nodes]
    build = spikec.compile(net.with_nodes(nodes), target="host", bits=3, calibrate=x[:32])
    found = spikec.recover(build, x, y, epochs=20, batch_size=16, drop=0.0, distill=False, learning_rate=0.02)
    moved = np.log(found.graph(after="recover")["h"].params["theta"] / wrong)
    assert moved[odd].mean() > moved[~odd].mean() + 0.02


def test_pruning_while_training_takes_the_trained_numbers_along() -> None:
    net = network()
    x, y = task(net, 64, 0)
    build = spikec.compile(net, target="host", bits=8, calibrate=x[:32], prune=0.5)
    found = spikec.recover(build, x, y, epochs=4, batch_size=16, drop=0.0, gradual=True)
    assert found.stage_names.index("prune") < found.stage_names.index("recover")
    before, after = found.graph(after="recover")["h"], net["h"]
    assert all(not np.array_equal(before.params[name], after.params[name]) for name in OWN)
    assert any(entry.what == "theta trained again" for entry in found.ledger)


def test_what_is_trained() -> None:
    """Factors of states between 0 and 1, and thresholds; neither numbers that a population shares nor others of a neuron's own."""
    net = network()
    assert forms_of(net) == {"h": {"beta": "share", "theta": "positive"}}
    text = "neuron @n(x) params(a, b, c, d) state(v = 0) {\nv = a * v + b * x + d\ns = v > c\nv = select(s, 0, v)\nemit s\n}"
    each = np.linspace(0.1, 0.9, 4, dtype=np.float32)
    w = np.ones((4, 2), np.float32)

    def forms(**changed: Any) -> dict[str, dict[str, str]]:
        params = dict.fromkeys("abcd", each) | changed
        node = Neuron(name="n", inputs=(Ref("fc"),), program=parse_program(text), params=params)
        return forms_of(graph(spikes((2,)), dense("fc", "in", w), node, out=["n"]))

    assert forms() == {"n": {"a": "share", "c": "positive"}}
    assert forms(a=each + 0.1) == {"n": {"c": "positive"}}
    assert forms(a=each + 0.1, c=-each) == {}
    assert forms(a=np.float32(0.5), c=np.float32(1)) == {}


def test_numbers_that_another_pass_has_changed_are_not_taken_over() -> None:
    net = network()
    module = GraphModule(net, learnt=forms_of(net))
    with torch.no_grad():
        for value in (*module.params.values(), *module.biases.values()):
            value += 0.1
    found = with_trained(net, net, module)
    assert found is not None
    np.testing.assert_allclose(found["h"].params["theta"], net["h"].params["theta"] * np.exp(0.1), rtol=1e-5)
    np.testing.assert_allclose(found["fc"].bias, net["fc"].bias + 0.1, rtol=1e-5)
    assert with_trained(network(joined=True), net, module) is not None
    other = found.with_nodes(n for n in found.nodes)
    assert with_trained(other, net, module) is None


def test_the_factor_of_the_logits_is_that_with_which_labels_are_likeliest() -> None:
    from spikec.recovery import _sharpness

    generator = torch.Generator().manual_seed(0)
    answers = 3 * torch.randn((20, 100, 4), generator=generator)
    drawn = torch.multinomial((answers * 0.4).softmax(dim=-1).flatten(0, 1), 1, generator=generator).reshape(20, 100)
    drawn[:, :10] = -1
    assert _sharpness(torch, answers, drawn) == pytest.approx(0.4, rel=0.2)
    assert _sharpness(torch, answers, torch.full((20, 100), -1)) == 0
