"""Scales that go into the weights in front of them: the text before and after, and the same numbers where rewrites go wrong."""

from __future__ import annotations

import numpy as np
import pytest
from nets import LEAKY, dense, sir, values
from nets import graph as graph_

from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Ref, Scale
from spikec.ir.rules import verify
from spikec.ir.text import print_graph
from spikec.ledger import Ledger
from spikec.passes.fold_scale import FoldScale


def folded(graph: Graph) -> tuple[Graph, list[str]]:
    ledger = Ledger()
    ledger.pass_name = "fold-scale"
    return verify(FoldScale().run(graph, ledger)), [entry.text() for entry in ledger]


def test_before_and_after() -> None:
    graph = sir(
        """
  %x = input : value<1x3>
  %c = conv(%x) weight=[[[1.0, 2.0]], [[0.5, -1.0]]] bias=[1.0, 2.0] : value<2x2>
  %n = scale(%c) factor=[2.0, -4.0] offset=[0.5, 0.0] : value<2x2>
  output %n
"""
    )
    after, told = folded(graph)
    assert print_graph(after)[0] == (
        """sir 1

graph @g level=float {
  %x = input : value<1x3>
  %c = conv(%x) weight=[[[2.0, 4.0]], [[-2.0, 4.0]]] bias=[2.5, -8.0]
      : value<2x2>
  output n = %c
}
"""
    )
    assert told == ["fold-scale: exact: %n: folded into the weights of %c, up to rounding"]


# Body, how many scales stay, over x of shape (3,) or (2, 3); all numbers are such that every product is exact.
CASES = {
    "dense, scalar": ("%d = dense(%x) weight=[[1.0, 2.0, -1.0]] : value<1>\n%s = scale(%d) factor=0.5 : value<1>\noutput %s", 0),
    "dense, one each": ("%d = dense(%x) weight=[[1.0, 2.0, -1.0], [0.0, 1.0, 0.5]] bias=[1.0, 2.0] : value<2>\n%s = scale(%d) factor=[2.0, 4.0] offset=3.0 : value<2>\noutput %s", 0),
    "sparse": ("%d = sparse(%x) weight=[1.0, -2.0, 3.0] indices=i64[2, 0, 1] indptr=i64[0, 1, 3] fan_in=3 : value<2>\n%s = scale(%d) factor=[2.0, -4.0] offset=[1.0, 0.5] : value<2>\noutput %s", 0),
    "twice": ("%d = dense(%x) weight=[[1.0, 2.0, -1.0]] : value<1>\n%s = scale(%d) factor=0.5 offset=1.0 : value<1>\n%t = scale(%s) factor=[4.0] : value<1>\noutput %t", 0),
    "delay on a connection": ("%d = dense(%x) weight=[[1.0, 2.0, -1.0]] delay=i64[[0, 2, 1]] : value<1>\n%s = scale(%d) factor=0.5 offset=1.0 : value<1>\noutput %s", 0),
    "read later": ("%d = dense(%x) weight=[[1.0, 2.0, -1.0]] bias=[1.0] : value<1>\n%s = scale(%d) factor=0.5 : value<1>\n%t = add(%s[t-1], %s) : value<1>\noutput %t", 0),
    "fork before": ("%d = dense(%x) weight=[[1.0, 2.0, -1.0]] : value<1>\n%s = scale(%d) factor=0.5 : value<1>\n%t = add(%d, %s) : value<1>\noutput %t", 1),
    "an output in front": ("%d = dense(%x) weight=[[1.0, 2.0, -1.0]] : value<1>\n%s = scale(%d) factor=0.5 : value<1>\noutput %d\noutput %s", 1),
    "fork after": ("%d = dense(%x) weight=[[1.0, 2.0, -1.0]] : value<1>\n%s = scale(%d) factor=0.5 : value<1>\n%t = add(%s, %s) : value<1>\noutput %t\noutput %s", 0),
    "behind a delay": ("%d = dense(%x) weight=[[1.0, 2.0, -1.0]] : value<1>\n%s = scale(%d[t-1]) factor=0.5 offset=1.0 : value<1>\noutput %s", 1),
    "first": ("%s = scale(%x) factor=0.5 offset=1.0 : value<3>\n%d = dense(%s) weight=[[1.0, 2.0, -1.0]] : value<1>\noutput %d", 1),
    "shared weights": ("%d = dense(%x) weight=@w : value<1>\n%e = dense(%x[t-1]) weight=@w : value<1>\n%s = scale(%d) factor=0.5 : value<1>\n%t = add(%s, %e) : value<1>\noutput %t", 0),
    "wider": ("%d = dense(%x) weight=[[1.0, 2.0, -1.0], [0.5, 1.0, 0.0]] : value<2>\n%s = scale(%d) factor=f64[0.5, 0.25] : value<2, f64>\noutput %s", 1),
}  # fmt: skip


LOOPS = {
    "in a loop": (
        "%d = dense(%l[t-1]) weight=[[0.5, 1.0, -1.0], [0.0, 1.0, 0.5], [1.0, 0.5, 0.25]] bias=[0.5, 0.25, 0.0] : value<3>\n"
        "%s = scale(%d) factor=[0.5, 2.0, -1.0] offset=[0.25, 0.5, 0.0] : value<3>\n%t = add(%x, %s) : value<3>\n"
        "%l = neuron @leaky(%t) beta=0.5 theta=1.0 : spike<3>, v: value<3>\noutput %l\noutput v = %l.v",
        0,
    ),
    "in a loop, the delay before it": (
        "%d = dense(%l) weight=[[0.5, 1.0, -1.0], [0.0, 1.0, 0.5], [1.0, 0.5, 0.25]] : value<3>\n"
        "%s = scale(%d[t-1]) factor=[0.5, 2.0, -1.0] offset=[0.25, 0.5, 0.0] : value<3>\n%t = add(%x, %s) : value<3>\n"
        "%l = neuron @leaky(%t) beta=0.5 theta=1.0 : spike<3>, v: value<3>\noutput %l\noutput v = %l.v",
        1,
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops(name: str) -> None:
    body, stay = LOOPS[name]
    graph = sir(f"%x = input : value<3>\n{body}", LEAKY.text())
    after, _ = folded(graph)
    assert sum(node.op == "scale" for node in after.nodes) == stay
    x = np.random.default_rng(0).integers(-2, 5, (4, 9, 3)).astype(np.float32)
    wanted, found = interpret(graph, {"x": x}).outputs, interpret(after, {"x": x}).outputs
    assert 0 < wanted["l"].mean() < 1
    for output, array in wanted.items():
        assert np.array_equal(found[output], array)
    assert folded(after) == (after, []), "already folded"


def test_a_layer_of_nothing() -> None:
    """A scale over no neurons, and one over a layer that reads nothing."""
    for rows, columns in ((0, 3), (2, 0)):
        before = graph_(
            values((columns,), "x"),
            dense("d", "x", np.zeros((rows, columns), np.float32)),
            Scale(name="s", inputs=(Ref("d"),), factor=np.full(rows, 2, np.float32), offset=np.ones(rows, np.float32)),
            out=["s"],
        )
        after, told = folded(before)
        assert len(told) == 1 and "s" not in after
        x = np.zeros((2, 4, columns), np.float32)
        wanted = interpret(before, {"x": x}).outputs["s"]
        assert wanted.shape == (2, 4, rows) and np.all(wanted == 1)
        assert np.array_equal(interpret(after, {"x": x}).outputs["s"], wanted)


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_come_out(name: str) -> None:
    body, stay = CASES[name]
    body = body.replace("@w", "[[1.0, 2.0, -1.0]]")
    graph = sir(f"%x = input : value<3>\n{body}")
    after, _ = folded(graph)
    assert sum(node.op == "scale" for node in after.nodes) == stay
    x = np.random.default_rng(0).integers(-8, 9, (4, 6, 3)).astype(np.float32)
    wanted, found = interpret(graph, {"x": x}).outputs, interpret(after, {"x": x}).outputs
    for output, array in wanted.items():
        assert np.array_equal(found[output], array)
    assert folded(after) == (after, []), "already folded"


@pytest.mark.parametrize(
    ("factor", "stay"),
    [("2.0", 0), ("[2.0, 0.5]", 0), ("[[2.0, 2.0, 2.0], [0.5, 0.5, 0.5]]", 0), ("[[2.0, 2.0, 1.0], [0.5, 0.5, 0.5]]", 1)],
)
def test_a_convolution_takes_one_factor_a_channel(factor: str, stay: int) -> None:
    graph = sir(
        f"%x = input : value<2x3>\n%c = conv(%x) weight=[[[1.0]], [[-3.0]]] groups=2 bias=[1.0, 0.0] : value<2x3>\n"
        f"%s = scale(%c) factor={factor} offset={factor} : value<2x3>\noutput %s"
    )
    after, _ = folded(graph)
    assert sum(node.op == "scale" for node in after.nodes) == stay
    x = np.random.default_rng(0).integers(-8, 9, (2, 3, 2, 3)).astype(np.float32)
    assert np.array_equal(interpret(graph, {"x": x}).outputs["s"], interpret(after, {"x": x}).outputs["s"])


def test_a_dense_layer_over_several_rows_takes_a_number_only() -> None:
    graph = sir(
        "%x = input : value<2x3>\n%d = dense(%x) weight=[[1.0, 2.0, 3.0]] : value<2x1>\n%s = scale(%d) factor=[1.0, 2.0] : value<2x1>\noutput %s"
    )
    after, told = folded(graph)
    assert after == graph
    assert told == []


@pytest.mark.parametrize(
    ("pool", "scale", "stay"),
    [
        ("mode=max kernel=(2,)", "factor=[2.0, 0.5] offset=[1.0, -3.0]", 0),
        ("mode=max kernel=(2,) padding=(1,)", "factor=[2.0, 0.5] offset=[1.0, -3.0]", 0),
        ("mode=max kernel=(2,)", "factor=[2.0, -0.5]", 1),  # the largest would become the smallest
        ("mode=average kernel=(2,)", "factor=[2.0, -0.5] offset=[1.0, -3.0]", 0),
        ("mode=average kernel=(2,) padding=(1,)", "factor=[2.0, -0.5]", 0),
        ("mode=average kernel=(2,) padding=(1,)", "factor=[2.0, -0.5] offset=1.0", 1),  # padding would get it too
        ("mode=sum kernel=(2,)", "factor=0.25", 0),
        ("mode=sum kernel=(2,)", "factor=0.25 offset=1.0", 1),  # added once a place
    ],
)
def test_a_pool_lets_a_scale_through_where_nothing_changes(pool: str, scale: str, stay: int) -> None:
    size = 3 if "padding" in pool else 2
    graph = sir(
        f"%x = input : value<2x5>\n%c = conv(%x) weight=[[[1.0, 2.0]], [[-3.0, 1.0]]] groups=2 bias=[1.0, 0.0] : value<2x4>\n"
        f"%p = pool(%c) {pool} : value<2x{size}>\n%s = scale(%p) {scale} : value<2x{size}>\n"
        f"%r = reshape(%s) shape=({2 * size},) : value<{2 * size}>\noutput %r\noutput %s"
    )
    after, _ = folded(graph)
    assert sum(node.op == "scale" for node in after.nodes) == stay
    x = np.random.default_rng(0).integers(-8, 9, (2, 3, 2, 5)).astype(np.float32)
    wanted, found = interpret(graph, {"x": x}).outputs, interpret(after, {"x": x}).outputs
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        assert np.array_equal(found[name], array)
