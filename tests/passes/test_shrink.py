"""Shrink: what cannot matter goes, and every output stays as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import LEAKY, F, dense, graph, leaky, native, sir, spikes, values
from strategies import graphs, random_inputs

from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Neuron, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.rules import verify
from spikec.ledger import Ledger
from spikec.passes.shrink import Shrink, shrink


def small(g: Graph) -> tuple[Graph, Ledger]:
    ledger = Ledger()
    return verify(Shrink().run(verify(g), ledger)), ledger


def check(g: Graph, seed: int = 0, steps: int = 9) -> Graph:
    after, _ = small(g)
    x = random_inputs(g, 3, steps, seed)
    one, two = interpret(g, x, steps=steps), interpret(after, x, steps=steps)
    for name, value in one.outputs.items():
        np.testing.assert_array_equal(value, two.outputs[name], err_msg=name)
    again, ledger = small(after)
    assert again == after and not len(ledger), "already done"
    return after


def sizes(g: Graph) -> dict[str, int]:
    return {node.name: int(np.prod(g.shape_of(node.name))) for node in g.neurons}


def test_text_before_and_after() -> None:
    body = """
      %in = input : spike<3>
      %fc1 = dense(%in) weight=[[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.5, 0.0, 1.0]] : value<3>
      %l1 = neuron @leaky(%fc1) beta=[0.5, 0.25, 0.125] theta=1.0 : spike<3>, v: value<3>
      %fc2 = dense(%l1) weight=[[1.0, 4.0, 0.0]] bias=[0.5] : value<1>
      %l2 = neuron @leaky(%fc2) beta=0.5 theta=1.0 : spike<1>, v: value<1>
      output %l2"""
    after, ledger = small(sir(body, LEAKY.text()))
    assert (
        str(after).split("graph @g")[1]
        == """ level=float {
  %in = input : spike<3>
  %in_kept = gather(%in) indices=i32[0, 2] : spike<2>
  %fc1 = dense(%in_kept) weight=[[1.0, 2.0]] : value<1>
  %l1 = neuron @leaky(%fc1) beta=[0.5] theta=1.0 : spike<1>, v: value<1>
  %fc2 = dense(%l1) weight=[[1.0]] bias=[0.5] : value<1>
  %l2 = neuron @leaky(%fc2) beta=0.5 theta=1.0 : spike<1>, v: value<1>
  output %l2
}
"""
    )
    assert [(e.node, e.changed, e.total) for e in ledger] == [("in", 1, 3), ("l1", 2, 3)]
    check(sir(body, LEAKY.text()))


def holes(shape: tuple[int, ...], seed: int, dead_rows: Any = (), dead_columns: Any = ()) -> Any:
    """A dyadic weight with whole rows and columns of zeros."""
    w = np.random.default_rng(seed).integers(-4, 5, shape).astype(F) / 4
    w[list(dead_rows)] = 0
    w[:, list(dead_columns)] = 0
    return w


def two_layers(w1: Any, w2: Any, *between: Any, read: str = "l1", **more: Any) -> Graph:
    return graph(
        spikes((w1.shape[1],)),
        dense("fc1", "in", w1),
        leaky("l1", "fc1", **more),
        *between,
        dense("fc2", read, w2),
        leaky("l2", "fc2"),
        out=["l2"],
    )


INIT = np.ones((1, 4), F)
#: case -> (graph, neurons left)
TOPOLOGIES: dict[str, tuple[Graph, dict[str, int]]] = {
    "a neuron without input": (two_layers(holes((4, 3), 0, [1]), holes((2, 4), 1)), {"l1": 3, "l2": 2}),
    "a neuron that nobody reads": (two_layers(holes((4, 3), 0), holes((2, 4), 1, (), [2])), {"l1": 3, "l2": 2}),
    "a neuron with a bias fires alone": (
        graph(spikes((3,)), dense("fc1", "in", holes((4, 3), 0, [1]), np.array([0, 2, 0, 0], F)), leaky("l1", "fc1"), dense("fc2", "l1", holes((2, 4), 1)), leaky("l2", "fc2"), out=["l2"]),
        {"l1": 4, "l2": 2},
    ),
    "a bias that never reaches the threshold": (
        graph(spikes((3,)), dense("fc1", "in", holes((4, 3), 0, [1]), np.array([0, 0.25, 0, 0], F)), leaky("l1", "fc1"), dense("fc2", "l1", holes((2, 4), 1)), leaky("l2", "fc2"), out=["l2"]),
        {"l1": 4, "l2": 2},
    ),
    "an initial state fires": (two_layers(holes((4, 3), 0, [1]), holes((2, 4), 1), init={"v": np.array([0, 4, 0, 0], F)}), {"l1": 4, "l2": 2}),
    "an initial state fades": (two_layers(holes((4, 3), 0, [1]), holes((2, 4), 1), init={"v": np.array([0, 0.5, 0, 0], F)}), {"l1": 3, "l2": 2}),
    "a negative threshold fires": (two_layers(holes((4, 3), 0, [1]), holes((2, 4), 1), theta=-1.0), {"l1": 4, "l2": 2}),
    "outputs stay": (graph(spikes((3,)), dense("fc1", "in", holes((4, 3), 0, [1, 2])), leaky("l1", "fc1"), out=["l1"]), {"l1": 4}),
    "fork after": (
        graph(spikes((3,)), dense("fc1", "in", holes((4, 3), 0)), leaky("l1", "fc1"), dense("fc2", "l1", holes((2, 4), 1, (), [0, 1])), dense("fc3", Ref("l1", delay=1), holes((2, 4), 2, (), [0, 2])), Add(name="s", inputs=(Ref("fc2"), Ref("fc3"))), leaky("l2", "s"), out=["l2"]),
        {"l1": 3, "l2": 2},
    ),
    "fork before": (
        graph(spikes((3,)), dense("fc1", "in", holes((4, 3), 0, (), [0])), dense("fc2", Ref("in", delay=2), holes((4, 3), 3, (), [0, 1])), Add(name="s", inputs=(Ref("fc1"), Ref("fc2"))), leaky("l1", "s"), out=["l1"]),
        {"l1": 4},
    ),
    "recurrent": (
        graph(spikes((3,)), dense("fc", "in", holes((4, 3), 0, [0, 1])), dense("rec", Ref("l1", delay=1), holes((4, 4), 1, [0])), Add(name="s", inputs=(Ref("fc"), Ref("rec"))), leaky("l1", "s"), dense("fc2", "l1", np.ones((2, 4), F)), leaky("l2", "fc2"), out=["l2"]),
        {"l1": 3, "l2": 2},
    ),
    "a loop that only feeds itself": (
        graph(spikes((3,)), dense("fc", "in", holes((4, 3), 0)), Sparse(name="rec", inputs=(Ref("l1", delay=1),), weight=np.ones(4, F), indices=np.arange(4), indptr=np.arange(5), fan_in=4), leaky("l1", "rec"), dense("fc2", "l1", np.ones((4, 4), F)), Add(name="s", inputs=(Ref("fc"), Ref("fc2"))), leaky("l2", "s"), out=["l2"]),
        {"l1": 1, "l2": 4},
    ),
    "before step 0 a wire carries spikes": (
        graph(spikes((3,)), dense("fc", "in", holes((4, 3), 0, [0])), leaky("l1", "fc"), dense("fc2", Ref("l1", delay=1, init=INIT), 2 * np.eye(2, 4, dtype=F)), leaky("l2", "fc2"), out=["l2"]),
        {"l1": 2, "l2": 2},
    ),
    "a residual sum keeps both sides": (
        graph(spikes((3,)), dense("fc1", "in", holes((3, 3), 0, [1])), leaky("l1", "fc1"), Add(name="s", inputs=(Ref("l1"), Ref("in"))), dense("fc2", "s", np.ones((2, 3), F)), leaky("l2", "fc2"), out=["l2"]),
        {"l1": 3, "l2": 2},
    ),
    "the membrane is read": (two_layers(holes((4, 3), 0, [1]), holes((2, 4), 1, (), [2]), Scale(name="m", inputs=(Ref("l1", port="v"),), factor=np.asarray(F(2))), read="m"), {"l1": 2, "l2": 2}),
    "concat, gather, reshape": (
        graph(
            spikes((3,)), dense("fc1", "in", holes((4, 3), 0, [1])), leaky("l1", "fc1"), dense("fc2", "in", holes((2, 3), 4)), leaky("l2", "fc2"), Concat(name="c", inputs=(Ref("l1"), Ref("l2")), axis=0),
            Gather(name="g", inputs=(Ref("c"),), indices=np.array([5, 4, 3, 1, 0, 0])), Reshape(name="r", inputs=(Ref("g"),), shape=(2, 3)), Reshape(name="f", inputs=(Ref("r"),), shape=(6,)), dense("fc3", "f", holes((2, 6), 5, (), [0])), leaky("l3", "fc3"), out=["l3"],
        ),
        {"l1": 3, "l2": 2, "l3": 2},
    ),
    "channels": (
        graph(
            spikes((2, 6, 6)), Conv(name="c1", inputs=(Ref("in"),), weight=holes((4, 2, 3, 3), 0, [1]), padding=(1, 1)), leaky("l1", "c1", beta=np.array([0.5, 0.25, 0.5, 0.125])), Pool(name="p", inputs=(Ref("l1"),), mode="sum", kernel=(2, 2)),
            Conv(name="c2", inputs=(Ref("p"),), weight=holes((3, 4, 3, 3), 1, (), [2])), leaky("l2", "c2"), Reshape(name="f", inputs=(Ref("l2"),), shape=(3,)), dense("fc", "f", holes((2, 3), 2, (), [1])), leaky("l3", "fc"), out=["l3"],
        ),
        {"l1": 2 * 36, "l2": 2, "l3": 2},
    ),
    "one dead place in a channel stays": (
        graph(spikes((1, 4)), Conv(name="c", inputs=(Ref("in"),), weight=np.ones((2, 1, 1), F)), leaky("l1", "c"), Reshape(name="f", inputs=(Ref("l1"),), shape=(8,)), dense("fc", "f", holes((2, 8), 0, (), [0, 4, 5, 6, 7])), leaky("l2", "fc"), out=["l2"]),
        {"l1": 4, "l2": 2},
    ),
    "depthwise": (
        graph(spikes((4, 5)), Conv(name="c", inputs=(Ref("in"),), weight=holes((4, 1, 3), 0, [1, 3]), groups=4), leaky("l1", "c"), Reshape(name="f", inputs=(Ref("l1"),), shape=(12,)), dense("fc", "f", holes((2, 12), 1)), leaky("l2", "fc"), out=["l2"]),
        {"l1": 6, "l2": 2},
    ),
    "two groups": (
        graph(spikes((4, 5)), Conv(name="c", inputs=(Ref("in"),), weight=holes((6, 2, 3), 0, [0, 1, 2]), groups=2), leaky("l1", "c"), Reshape(name="f", inputs=(Ref("l1"),), shape=(18,)), dense("fc", "f", holes((2, 18), 1)), leaky("l2", "fc"), out=["l2"]),
        {"l1": 9, "l2": 2},
    ),
    "sparse": (
        graph(spikes((4,)), Sparse(name="s", inputs=(Ref("in"),), weight=np.array([1, 2, 0, 1], F), indices=np.array([0, 1, 3, 1]), indptr=np.array([0, 2, 3, 4]), fan_in=4), leaky("l1", "s"), Sparse(name="s2", inputs=(Ref("l1"),), weight=np.array([1, 2, 1], F), indices=np.array([0, 1, 2]), indptr=np.array([0, 2, 3]), fan_in=3, delay=np.array([0, 1, 2])), leaky("l2", "s2"), out=["l2"]),
        {"l1": 2, "l2": 2},
    ),
    "delays": (two_layers(holes((4, 3), 0, [1]), holes((2, 4), 1)), {"l1": 3, "l2": 2}),
    "an always-on source": (
        graph(Constant(name="on", value=np.array([1, 0, 1], F), kind="spike"), dense("fc", "on", np.ones((2, 3), F)), leaky("l", "fc"), out=["l"]),
        {"l": 2},
    ),
    "all of it dead": (two_layers(np.zeros((4, 3), F), holes((2, 4), 1)), {"l1": 1, "l2": 2}),
    "zero size": (graph(spikes((0,)), dense("d", "in", np.zeros((2, 0), F)), leaky("l", "d"), out=["l"]), {"l": 2}),
    "first and last": (graph(values((3,)), leaky("l", "in"), out=["l"]), {"l": 3}),
    "two inputs of a batched dense": (graph(spikes((2, 3)), Dense(name="d", inputs=(Ref("in"),), weight=holes((4, 3), 0, [1])), leaky("l1", "d"), Dense(name="e", inputs=(Ref("l1"),), weight=holes((2, 4), 1)), leaky("l2", "e"), out=["l2"]), {"l1": 8, "l2": 4}),
}  # fmt: skip


@pytest.mark.parametrize("case", TOPOLOGIES)
def test_topologies(case: str) -> None:
    before, wanted = TOPOLOGIES[case]
    assert sizes(check(before, steps=12)) == wanted


@settings(max_examples=60, deadline=None)
@given(graphs("fixed"), st.integers(0, 99))
def test_random_fixed_graphs(g: Graph, seed: int) -> None:
    check(g, seed)


@settings(max_examples=60, deadline=None)
@given(graphs("float"), st.integers(0, 99))
def test_random_float_graphs(g: Graph, seed: int) -> None:
    check(g, seed)


@settings(max_examples=60, deadline=None)
@given(graphs("fixed"), st.integers(0, 9999))
def test_random_graphs_with_dead_weights(g: Graph, seed: int) -> None:
    """Whole rows and columns become zero, so that there is something to remove."""
    rng = np.random.default_rng(seed)
    nodes = []
    for node in g.nodes:
        if isinstance(node, (Dense, Conv)) and node.weight.size:
            weight = node.weight.copy()
            weight[rng.random(len(weight)) < 0.5] = 0
            weight[:, rng.random(weight.shape[1]) < 0.5] = 0
            node = replace(node, weight=weight, bias=None if rng.random() < 0.5 else node.bias)
        elif isinstance(node, Sparse):
            node = replace(node, weight=np.where(rng.random(node.weight.shape) < 0.7, 0, node.weight).astype(node.weight.dtype))
        nodes.append(node)
    check(verify(g.with_nodes(nodes)), seed)


def lif(name: str, source: str, **params: Any) -> Neuron:
    given_ = {"du": 4095, "dv": 100, "vth": 50, "bias_mant": 0, "bias_exp": 0} | params
    return Neuron(
        name=name, inputs=(Ref(source),), program=native("LIF"), params={k: np.asarray(v, np.int32) for k, v in given_.items()}
    )


def fixed_net(w: Any, **params: Any) -> Graph:
    w = np.asarray(w, np.int16)
    return graph(
        spikes((w.shape[1],), dtype="i8"),
        dense("fc", "in", w),
        lif("l1", "fc", **params),
        dense("fc2", "l1", np.full((2, len(w)), 60, np.int16)),
        lif("l2", "fc2"),
        out=["l2"],
        level="fixed",
    )


def test_neurons_that_can_never_fire_by_range_analysis() -> None:
    # Without a leak of v (dv = 0) any positive input adds up; with dv = 4096 the sum itself has to exceed the threshold.
    w = [[20, 20, 8], [20, 20, 20], [-20, 60, -20], [50, 0, 0], [-9, -9, -9]]
    after = check(fixed_net(w, dv=4096))
    assert sizes(after)["l1"] == 2
    np.testing.assert_array_equal(after["fc"].weight, np.array(w)[[1, 2]])
    assert sizes(check(fixed_net(w, dv=0)))["l1"] == 4  # only the one with nothing but inhibition is silent
    assert sizes(check(fixed_net(w, dv=4096, vth=[50, 100, 50, 49, 0])))["l1"] == 2


def test_a_bias_counts_in_the_range_analysis() -> None:
    assert sizes(check(fixed_net([[20, 20], [20, 20]], dv=4096, bias_mant=[0, 1000], bias_exp=0)))["l1"] == 1


def test_pruned_neurons_go_where_the_structure_lets_them() -> None:
    g, _ = TOPOLOGIES["a residual sum keeps both sides"]
    ledger = Ledger()
    assert sizes(shrink(g, ledger, {"l1": np.array([True, True, True])}))["l1"] == 3, "the sum holds them"
    g = two_layers(holes((4, 3), 7), holes((2, 4), 8))
    silent = np.array([True, False, True, False])
    after = shrink(g, ledger, {"l1": silent})
    assert sizes(after)["l1"] == 2
    w = g["fc2"].weight.copy()
    w[:, silent] = 0
    cut = g.with_nodes(replace(node, weight=w) if node.name == "fc2" else node for node in g.nodes)
    x = random_inputs(g, 3, 9, 1)
    np.testing.assert_array_equal(interpret(cut, x).outputs["l2"], interpret(after, x).outputs["l2"])
    assert "pruned" in next(e.what for e in ledger if e.node == "l1")
