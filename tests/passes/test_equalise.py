"""Equalise: the same spikes from neurons in units of their own, whose weights all use the grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, random_spikes, spikes
from strategies import graphs, random_inputs

import spikec
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Conv, Dense, Neuron, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ledger import Ledger
from spikec.passes.equalise import Equalise

#: Adapts: its threshold is a literal amount plus a literal amount times a count of spikes.
ADAPTING = parse_program(
    "neuron @a(x) params(beta, rho) state(v = 0, b = 0) {\nv = beta * v + x\nth = 0.5 + 0.25 * b\ns = v > th\n"
    "v = select(s, v - th, v)\nb = rho * b + s\nemit s\n}"
)
#: Squares its membrane: in another unit it is another neuron.
SQUARED = parse_program(
    "neuron @q(x) params(theta) state(v = 0) {\nv = 0.5 * v + x\ns = v * v > theta\nv = select(s, 0, v)\nemit s\n}"
)


def uneven(rows: int, columns: int, seed: int = 0) -> Any:
    """Rows whose largest weight is 1, 1/2, 1/4, … by turns: factors are powers of two, and exact."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(-64, 64, (rows, columns)).astype(F)
    whole[np.arange(rows), rng.integers(0, columns, rows)] = 64
    return whole / 64 / 2.0 ** (np.arange(rows) % 5)[:, None].astype(F)


def net(program: Any = None) -> Graph:
    rng = np.random.default_rng(3)
    hidden = leaky("l1", "fc1", 0.75)
    if program is not None:
        params = {name: F(0.5) for name in program.params}
        hidden = Neuron(name="l1", inputs=(Ref("fc1"),), program=program, params=params)
    w1 = uneven(20, 12)
    w2 = rng.integers(-8, 9, (4, 20)).astype(F) / 8
    nodes = (spikes((12,)), dense("fc1", "in", w1), hidden, dense("fc2", "l1", w2), leaky("l2", "fc2", 0.75))
    bias = rng.integers(0, 8, 20).astype(F) / 64
    return verify(graph(*(replace(n, bias=bias) if n.name == "fc1" else n for n in nodes), out=["l2"]))


def run(g: Graph) -> tuple[Graph, Ledger]:
    ledger = Ledger()
    ledger.pass_name = "equalise"
    return verify(Equalise(per_channel=True).run(g, ledger)), ledger


@pytest.mark.parametrize("program", [None, ADAPTING], ids=["leaky", "adapting"])
def test_the_same_spikes_and_every_row_as_large(program: Any) -> None:
    g = net(program)
    after, ledger = run(g)
    x = {"in": random_spikes((6, 25, 12), 1)}
    one, two = (interpret(each, x, record=["l1", "l2"]).records for each in (g, after))
    assert one["l1"].any()
    for name in ("l1", "l2"):
        np.testing.assert_array_equal(one[name], two[name])
    np.testing.assert_array_equal(np.abs(after["fc1"].weight).max(axis=1), np.ones(20, F))
    entry = next(e for e in ledger if e.node == "l1")
    assert entry.kind == "approximation" and entry.changed == 16 and entry.measured["largest factor"] == 16
    assert entry.asked == "--per-channel"


def test_channels_of_a_convolution() -> None:
    rng = np.random.default_rng(0)
    weight = uneven(6, 18).reshape(6, 2, 3, 3)
    conv = Conv(name="c", inputs=(Ref("in"),), weight=weight, bias=rng.integers(0, 4, 6).astype(F) / 64)
    g = verify(graph(spikes((2, 8, 8)), conv, leaky("l1", "c", 0.75), out=["l1"]))
    after, _ = run(g)
    x = {"in": random_spikes((3, 15, 2, 8, 8), 1)}
    np.testing.assert_array_equal(interpret(g, x).outputs["l1"], interpret(after, x).outputs["l1"])
    assert np.all(np.abs(after["c"].weight).reshape(6, -1).max(axis=1) == 1)


def test_what_has_another_answer_in_another_unit_stays() -> None:
    g = net(SQUARED)
    after, ledger = run(g)
    np.testing.assert_array_equal(after["fc1"].weight, g["fc1"].weight)
    assert not [e for e in ledger if e.node == "l1"]


@settings(max_examples=60, deadline=None)
@given(graphs("float"), st.integers(0, 99))
def test_random_graphs(g: Graph, seed: int) -> None:
    """With factors rounded down to powers of two, which floats multiply by exactly: the same outputs, bit for bit."""
    import spikec.passes.equalise as module

    before = module._factors
    module._factors = lambda *given: 2.0 ** np.floor(np.log2(before(*given)))
    try:
        after, _ = run(g)
    finally:
        module._factors = before
    x = random_inputs(g, 3, 9, seed)
    one, two = interpret(g, x, steps=9), interpret(after, x, steps=9)
    for name, value in one.outputs.items():
        np.testing.assert_array_equal(value, two.outputs[name], err_msg=name)


def test_fewer_spikes_change_at_four_bits() -> None:
    g, x = net(), random_spikes((40, 25, 12), 2)
    wanted = interpret(g, {"in": x}).outputs["l2"]
    changed = []
    for options in ({}, {"per_channel": True}):
        build = spikec.compile(g, target="host", bits=4, calibrate=x[:16], **options)
        found = build.run(x, "c", record="all")
        np.testing.assert_array_equal(found.outputs["l2"], build.run(x, "reference").outputs["l2"])
        changed.append(int(np.count_nonzero(found.outputs["l2"] != wanted)))
        layer = build.graph(level="fixed")["fc1"]
        assert isinstance(layer, Dense)
        assert (np.abs(layer.weight).max(axis=1) < 3).any() == (not options)
    assert changed[1] < 0.7 * changed[0]


def test_where_nothing_can_use_it() -> None:
    for target, options, text in (("loihi2", {}, "one for all neurons"), ("host", {}, "without bits")):
        with pytest.raises(CompileError) as caught:
            spikec.compile(net(), target=target, per_channel=True, **options)
        assert caught.value.diagnostics[0].code == "SPK001" and text in str(caught.value)
