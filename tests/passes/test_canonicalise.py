"""Canonicalise: fewer nodes, the same function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import LEAKY, F, dense, graph, leaky, sir, spikes
from strategies import graphs, random_inputs

from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Concat, Conv, Gather, Neuron, Ref, Reshape, Scale
from spikec.ir.rules import verify
from spikec.ledger import Ledger
from spikec.passes.canonicalise import Canonicalise


def canonical(g: Graph) -> tuple[Graph, Ledger]:
    ledger = Ledger()
    return verify(Canonicalise().run(verify(g), ledger)), ledger


def check(g: Graph, seed: int = 0) -> Graph:
    after, _ = canonical(g)
    x = random_inputs(g, 3, 9, seed)
    one, two = interpret(g, x, steps=9), interpret(after, x, steps=9)
    assert [name for name, _ in after.outputs] == [name for name, _ in g.outputs]
    for name, value in one.outputs.items():
        np.testing.assert_array_equal(value, two.outputs[name], err_msg=name)
    again, ledger = canonical(after)
    assert again == after and not len(ledger), "already done"
    return after


def test_text_before_and_after() -> None:
    body = """
      %in = input : spike<2x2>
      %unread = input : spike<7>
      %a = reshape(%in) shape=(1, 4) : spike<1x4>
      %b = reshape(%a[t-1]) shape=(4,) : spike<4>
      %same = concat(%b) : spike<4>
      %fc = dense(%same) weight=[[1.0, 2.0, 3.0, 4.0]] bias=[0.0] : value<1>
      %one = scale(%fc) factor=1.0 : value<1>
      %l = neuron @leaky(%one) beta=0.5 theta=1.0 : spike<1>, v: value<1>
      %lost = scale(%l) factor=2.0 : graded<1>
      output %l"""
    before = sir(body, LEAKY.text())
    after, ledger = canonical(before)
    assert (
        str(after).split("graph @g")[1]
        == """ level=float {
  %in = input : spike<2x2>
  %unread = input : spike<7>
  %b = reshape(%in[t-1]) shape=(4,) : spike<4>
  %fc = dense(%b) weight=[[1.0, 2.0, 3.0, 4.0]] : value<1>
  %l = neuron @leaky(%fc) beta=0.5 theta=1.0 : spike<1>, v: value<1>
  output %l
}
"""
    )
    check(before)
    assert sorted((e.node, e.what) for e in ledger) == [
        ("a", "removed reshape: no output depends on it"),
        ("fc", "dropped a bias of zeros"),
        ("lost", "removed scale: no output depends on it"),
        ("one", "removed scale: it changes nothing"),
        ("same", "removed concat: it changes nothing"),
    ]
    assert {e.kind for e in ledger} == {"exact"}


W = np.array([[0.5, 1.0, -0.5], [1.0, 0.25, 0.5], [0.5, 0.5, 0.5]], F)
INIT = np.array([[1, 0, 1], [0, 1, 1]], F)

TOPOLOGIES: dict[str, Graph] = {
    "identity is an output": graph(spikes((3,)), Reshape(name="r", inputs=(Ref("in"),), shape=(3,)), out=["r"]),
    "identity of digits is an output": graph(spikes((3,), "0"), Reshape(name="1", inputs=(Ref("0"),), shape=(3,)), out=["1"]),
    "delayed identity is an output": graph(spikes((3,)), Add(name="r", inputs=(Ref("in", delay=2),)), out=["r"]),
    "identity of a delayed identity is an output": graph(
        spikes((3,)), Add(name="b", inputs=(Ref("in", delay=1),)), Reshape(name="r", inputs=(Ref("b"),), shape=(3,)), out=["r", "in"]
    ),
    "delays add up": graph(spikes((3,)), Add(name="b", inputs=(Ref("in", delay=1),)), dense("d", Ref("b", delay=2), W), leaky("l", "d"), out=["l"]),
    "initial values before a delayed identity": graph(
        spikes((3,)), Add(name="b", inputs=(Ref("in", delay=1),)), dense("d", Ref("b", delay=2, init=INIT), W), leaky("l", "d"), out=["l"]
    ),
    "initial values behind an identity": graph(
        spikes((3,)), Add(name="b", inputs=(Ref("in", delay=2, init=INIT),)), dense("d", Ref("b", delay=1), W), leaky("l", "d"), out=["l"]
    ),
    "fork": graph(
        spikes((3,)), Concat(name="c", inputs=(Ref("in"),)), dense("d", "c", W), dense("e", Ref("c", delay=1), W), Add(name="s", inputs=(Ref("d"), Ref("e"))), leaky("l", "s"), out=["l", "s"]
    ),
    "recurrent": graph(
        spikes((3,)), dense("d", "in", W), dense("r", Ref("i", delay=1), W, np.zeros(3, F)), Add(name="s", inputs=(Ref("d"), Ref("r"))), leaky("l", "s"), Add(name="i", inputs=(Ref("l"),)), out=["i"]
    ),
    "chain of identities": graph(
        spikes((3,)), Add(name="a", inputs=(Ref("in"),)), Scale(name="b", inputs=(Ref("a"),), factor=np.ones(3, F)),
        Gather(name="c", inputs=(Ref("b"),), indices=np.arange(3)), Reshape(name="d", inputs=(Ref("c"),), shape=(3, 1)), Add(name="e", inputs=(Ref("d"),)),
        Reshape(name="f", inputs=(Ref("e"),), shape=(3,)), dense("g", "f", W), out=["g"]
    ),
    "not identities": graph(
        spikes((3,)), Gather(name="a", inputs=(Ref("in"),), indices=np.array([2, 1, 0])), Scale(name="b", inputs=(Ref("a"),), factor=np.ones(3, F), offset=F(0.5)),
        Scale(name="c", inputs=(Ref("b"),), factor=F(2)), out=["c"]
    ),
    "wider type": graph(spikes((3,)), Scale(name="a", inputs=(Ref("in"),), factor=np.ones(3)), out=["a"]),
    "zero size": graph(spikes((0,)), Add(name="a", inputs=(Ref("in"),)), dense("d", "a", np.zeros((2, 0), F), np.zeros(2, F)), leaky("l", "d"), out=["l"]),
    "conv bias": graph(spikes((1, 5)), Conv(name="c", inputs=(Ref("in"),), weight=np.ones((2, 1, 3), F), bias=np.zeros(2, F)), leaky("l", "c"), out=["l"]),
    "only an input": graph(spikes((3,)), out=["in"]),
}  # fmt: skip
LEFT = {
    "identity is an output": ["in"],
    "delayed identity is an output": ["in", "r"],
    "identity of a delayed identity is an output": ["in", "b"],
    "chain of identities": ["in", "g"],
    "not identities": ["in", "a", "b", "c"],
    "wider type": ["in", "a"],
    "initial values before a delayed identity": ["in", "d", "l"],
}


def test_equal_parameters_become_one_number() -> None:
    """Of a population, a population of channels and one in a loop; what differs in one bit stays, and the loop runs as before."""
    beta = np.full(3, 0.75, F)
    nearly = np.array([0.75, 0.75, np.nextafter(F(0.75), F(1))], F)
    zeros = np.array([0.0, -0.0, 0.0], F)
    before = graph(
        spikes((3,)),
        dense("d", "in", W),
        dense("r", Ref("l", delay=1), W),
        Add(name="s", inputs=(Ref("d"), Ref("r"))),
        leaky("l", "s", beta, nearly, init={"v": np.full(3, 0.5, F)}),
        leaky("m", Ref("l", delay=2, init=INIT), nearly, np.full(3, 0.5, F), init={"v": zeros}),
        Reshape(name="x", inputs=(Ref("m"),), shape=(3, 1)),
        leaky("n", "x", beta, beta.reshape(3, 1)),
        leaky("n2", "x", np.asarray(F(0.75)), np.asarray(F(0.75))),
        Add(name="both", inputs=(Ref("n"), Ref("n2"))),
        out=["l", "m", "both"],
    )
    after = check(before)
    shapes = {name: {key: array.shape for key, array in {**after[name].params, **after[name].init}.items()} for name in "lmn"}
    assert shapes == {
        "l": {"beta": (), "theta": (3,), "v": ()},
        "m": {"beta": (3,), "theta": (), "v": (3,)},
        "n": {"beta": (), "theta": ()},
    }
    assert after["l"].params["beta"].dtype == F and after["l"].params["beta"] == F(0.75)
    told = {e.node: e.what for e in canonical(before)[1]}
    assert told == {"l": "one number for all neurons: beta, v", "m": "one number for all neurons: theta", "n": "one number for all neurons: beta, theta"}  # fmt: skip


@given(graphs("fixed") | graphs("float"), st.data())
@settings(max_examples=40, deadline=None)
def test_random_graphs_whose_parameters_are_said_for_every_neuron(g: Graph, data: st.DataObject) -> None:
    """A number for all neurons, written out for some parameters, becomes a number again; a single neuron's is none for all."""
    nodes = []
    for node in g.nodes:
        if isinstance(node, Neuron) and node.inputs:
            shape = g.shape_of(node.name)
            wide = {
                k: np.broadcast_to(a, shape).copy() if a.ndim == 0 and np.prod(shape) > 1 and data.draw(st.booleans()) else a
                for k, a in node.params.items()
            }
            node = replace(node, params=wide)
        nodes.append(node)
    after = check(verify(g.with_nodes(nodes)))
    assert after == canonical(g)[0]


@pytest.mark.parametrize("case", TOPOLOGIES)
def test_topologies(case: str) -> None:
    after = check(TOPOLOGIES[case])
    if case in LEFT:
        assert [node.name for node in after.nodes] == LEFT[case]
    if case == "initial values before a delayed identity":
        assert after["d"].inputs[0].init.tolist() == [*INIT.tolist(), [0, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(graphs("fixed"))
def test_random_fixed_graphs(g: Graph) -> None:
    check(g)


@settings(max_examples=40, deadline=None)
@given(graphs("float"))
def test_random_float_graphs(g: Graph) -> None:
    check(g)
