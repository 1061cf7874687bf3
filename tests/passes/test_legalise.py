"""Legalise: users' programs as native ones, gains in weights, sums of spikes as sums of synapses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import LEAKY, F, dense, graph, leaky, random_spikes, sir, spikes, values

import spikec
from spikec.diagnostics import CompileError, Loc
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Neuron, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ledger import Ledger
from spikec.passes.legalise import Legalise
from spikec.target import load_target

LOIHI = load_target("loihi2")
GAINED = parse_program("neuron @gained(x) params(beta, g) state(m = 0) { m = beta * m + g * x s = m > 1 m = m - s * m emit s, m }")


def legal(g: Graph, **options: Any) -> tuple[Graph, Ledger]:
    ledger = Ledger()
    return verify(Legalise(LOIHI, **options).run(verify(g), ledger)), ledger


def check(g: Graph, spikes_needed: bool = True) -> Graph:
    """Dyadic numbers: every intermediate value is exact, so there is no mismatch."""
    after, _ = legal(g)
    x = {node.name: random_spikes((4, 8, *node.type.shape), 3) for node in g.inputs}
    one, two = interpret(g, x, steps=8), interpret(after, x, steps=8)
    total = 0.0
    for name, value in one.outputs.items():
        np.testing.assert_array_equal(value, two.outputs[name], err_msg=name)
        total += float(value.sum())
    assert total or not spikes_needed
    assert {n.program.name.split("_")[0] for n in after.neurons} <= {"lif"}
    again, _ = legal(after)
    x64 = interpret(again, x, steps=8)
    for name, value in one.outputs.items():
        np.testing.assert_array_equal(value, x64.outputs[name], err_msg="already done")
    return after


W = np.array([[0.5, 1.0, -0.5], [1.0, 0.25, 0.5]], F)
W2 = np.array([[0.75, 1.0], [1.0, -0.25]], F)


def test_text_before_and_after() -> None:
    body = """
      %in = input : spike<2>
      %fc1 = dense(%in) weight=[[1.0, 0.5], [0.25, 1.0]] bias=[0.5, 0.0] : value<2>
      %l1 = neuron @gained(%fc1) beta=0.5 g=2.0 : spike<2>, m: value<2>
      %skip = add(%l1, %in[t-1]) : graded<2>
      %fc2 = dense(%skip) weight=[[1.0, 0.5]] bias=[0.25] : value<1>
      %l2 = neuron @gained(%fc2) beta=0.5 g=1.0 : spike<1>, m: value<1>
      output %l2
      output mem = %l2.m"""
    before = sir(body, GAINED.text())
    after, ledger = legal(before)
    assert (
        str(after)
        == """sir 1

neuron @lif(a) params(alpha, beta, theta, bias) state(u = 0, v = 0) {
  u = alpha * u + a
  v = beta * v + u + bias
  s = v > theta
  v = select(s, 0, v)
  emit s
}

neuron @lif_v(a) params(alpha, beta, theta, bias) state(u = 0, v = 0) {
  u = alpha * u + a
  v = beta * v + u + bias
  s = v > theta
  v = select(s, 0, v)
  emit s, v
}

graph @g level=float {
  %in = input : spike<2>
  %fc1 = dense(%in) weight=[[2.0, 1.0], [0.5, 2.0]] bias=[1.0, 0.0] : value<2>
  %l1 = neuron @lif(%fc1) alpha=f64(0.0) beta=f64(0.5) theta=f64(1.0)
      bias=f64(0.0) : spike<2>
  %fc2_0 = dense(%l1) weight=[[1.0, 0.5]] bias=[0.25] : value<1>
  %fc2_1 = dense(%in[t-1]) weight=[[1.0, 0.5]] : value<1>
  %fc2 = add(%fc2_0, %fc2_1) : value<1>
  %l2 = neuron @lif_v(%fc2) alpha=f64(0.0) beta=f64(0.5) theta=f64(1.0)
      bias=f64(0.0) : spike<1>, v: value<1>
  output %l2
  output mem = %l2.v
}
"""
    )
    check(before)
    assert [(e.node, e.kind, e.what) for e in ledger] == [
        ("l1", "exact", "@gained is loihi2's @lif (m is v)"),
        ("l2", "exact", "@gained is loihi2's @lif (m is v)"),
        ("fc1", "exact", "weights multiplied by the input gain of %l1_gain"),
        ("fc2", "exact", "split over the 2 operands of %skip"),
    ]


def gained(name: str, source: str | Ref, g: Any = 2.0) -> Neuron:
    ref = Ref(source) if isinstance(source, str) else source
    return Neuron(name=name, inputs=(ref,), program=GAINED, params={"beta": F(0.5), "g": np.asarray(g, F)})


CONV = np.array([[[1.0, 0.5]], [[0.25, 1.0]]], F)
TOPOLOGIES: dict[str, Graph] = {
    "plain": graph(spikes((3,)), dense("d", "in", W), leaky("l", "d"), out=["l", ("v", Ref("l", "v"))]),
    "per neuron": graph(spikes((3,)), dense("d", "in", W, [0.5, 0.25]), leaky("l", "d", beta=[0.5, 0.25], theta=[1.0, 0.5]), out=["l"]),
    "gain through a sum": graph(
        spikes((3,)), dense("d", "in", W), dense("r", Ref("l", delay=1), W2), Add(name="s", inputs=(Ref("d"), Ref("r"))), gained("l", "s", [2.0, 0.5]), out=["l"]
    ),
    "gain on a layer with a name that exists": graph(spikes((3,)), dense("d", "in", W), gained("l", "d"), dense("l_gain", "l", W2), gained("m", "l_gain"), out=["m"]),
    "skip of a skip": graph(
        spikes((2,)), dense("d", "in", W2), leaky("a", "d"), Add(name="s", inputs=(Ref("a"), Ref("in", delay=1))), Add(name="q", inputs=(Ref("s", delay=2), Ref("a"))), dense("e", Ref("q", delay=1), W2, [0.5, 0.0]), leaky("b", "e"), out=["b"]
    ),
    "sum read twice": graph(
        spikes((2,)), dense("d", "in", W2), leaky("a", "d"), Add(name="s", inputs=(Ref("a"), Ref("in"))), dense("e", "s", W2), dense("f", Ref("s", delay=1), W2), Add(name="q", inputs=(Ref("e"), Ref("f"))), leaky("b", "q"), out=["b"]
    ),
    "the same spikes twice": graph(spikes((2,)), Add(name="s", inputs=(Ref("in"), Ref("in"))), dense("e", "s", W2), leaky("b", "e"), out=["b"]),
    "concat with delays": graph(
        spikes((2,)), dense("d", "in", W2), leaky("a", "d"), Concat(name="c", inputs=(Ref("a", delay=1), Ref("in"), Ref("a"))), dense("e", Ref("c", delay=1), np.tile(W2, 3), delay=np.arange(12).reshape(2, 6) % 3), leaky("b", "e"), out=["b"]
    ),
    "initial values under a delayed read": graph(
        spikes((2,)), Add(name="s", inputs=(Ref("in", delay=1, init=np.ones((1, 2), F)), Ref("in"))), dense("e", Ref("s", delay=2), W2), leaky("b", "e"), out=["b"]
    ),
    "spikes into a neuron": graph(spikes((2,)), leaky("a", "in", theta=0.75), leaky("b", Ref("a", delay=1), theta=0.5), out=["a", "b"]),
    "a sum of spikes into a neuron": graph(
        spikes((2,)), dense("d", "in", W2), leaky("a", "d"), Add(name="s", inputs=(Ref("a"), Ref("in", delay=1))), leaky("b", "s"), out=["b"]
    ),
    "spikes added to a current": graph(spikes((2,)), dense("d", "in", W2), Add(name="s", inputs=(Ref("d"), Ref("in"))), leaky("b", "s"), dense("b_from_in", "b", W2), leaky("c", "b_from_in"), out=["c"]),
    "spikes of two axes": graph(spikes((2, 3)), leaky("a", "in", theta=0.5), Reshape(name="f", inputs=(Ref("a"),), shape=(6,)), dense("d", "f", np.tile(W, 2)), leaky("b", "d"), out=["b"]),
    "gather": graph(spikes((3,)), Gather(name="g", inputs=(Ref("in"),), indices=np.array([2, 0, 2, 1])), dense("d", Ref("g", delay=1), np.tile(W2, 2)), leaky("l", "d"), out=["l"]),
    "constant current": graph(spikes((3,)), dense("d", "in", W), Constant(name="c", value=np.array([0.5, 0.25], F), start=2), Add(name="s", inputs=(Ref("d"), Ref("c"))), leaky("l", "s"), out=["l"]),
    "shared weights": graph(spikes((3,)), dense("d", "in", W), gained("a", "d", 1.0), leaky("b", "d"), out=["a", "b"]),
    "recurrent without a synapse": graph(spikes((2,)), dense("d", "in", W2), Add(name="s", inputs=(Ref("d"), Ref("l", delay=1))), leaky("l", "s"), out=["l"]),
    "output is an input": graph(spikes((2,)), out=["in"]),
    "zero size": graph(spikes((0,)), dense("d", "in", np.zeros((2, 0), F), [0.75, 1.5]), leaky("l", "d"), out=["l"]),
    "double precision": graph(spikes((3,), dtype="f64"), dense("d", "in", W.astype(np.float64), dtype="f64"), leaky("l", "d", dtype="f64"), out=["l"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TOPOLOGIES)
def test_topologies(case: str) -> None:
    check(TOPOLOGIES[case], spikes_needed="zero" not in case)


def test_initial_states_move_to_the_native_names() -> None:
    g = graph(
        spikes((3,)), dense("d", "in", W), leaky("l", "d", init={"v": np.array([0.5, 0.75], F)}), out=["l", ("v", Ref("l", "v"))]
    )
    after = check(g)
    assert after["l"].init["v"].tolist() == [0.5, 0.75] and "u" not in after["l"].init
    declared = parse_program("neuron @begin(x) state(m = 0.5) { m = 0.5 * m + x s = m > 1 m = select(s, 0, m) emit s }")
    after = check(graph(spikes((3,)), dense("d", "in", W), Neuron(name="l", inputs=(Ref("d"),), program=declared), out=["l"]))
    assert after["l"].init["v"] == 0.5


def neurons_only(g: Graph) -> Graph:
    """The neurons' rewrite alone, for a target that also has convolutions."""
    from dataclasses import replace

    target = replace(LOIHI, operations=(*LOIHI.operations, "conv"))
    after = verify(Legalise(target).run(verify(g), Ledger()))
    x = {node.name: random_spikes((4, 8, *node.type.shape), 3) for node in g.inputs}
    one, two = interpret(g, x, steps=8), interpret(after, x, steps=8)
    for name, value in one.outputs.items():
        np.testing.assert_array_equal(value, two.outputs[name], err_msg=name)
        assert value.any()
    return after


def test_one_parameter_per_channel() -> None:
    conv = Conv(name="c", inputs=(Ref("in"),), weight=CONV, bias=np.array([0.25, 0.5], F))
    # Two channels of two: an array per channel must not be taken for one along the last axis.
    full = np.array([[1.0, 0.5], [0.75, 0.25]], F)
    g = graph(spikes((1, 3)), conv, leaky("l", "c", beta=[0.5, 0.25], theta=full), out=["l"])
    after = neurons_only(g)
    assert after["l"].params["beta"].tolist() == [0.5, 0.25]
    assert after["l"].params["theta"].tolist() == full.tolist()
    g = graph(spikes((1, 3)), conv, gained("l", "c", [2.0, 0.5]), out=["l"])
    assert neurons_only(g)["c"].weight.tolist() == (CONV * np.array([2, 0.5]).reshape(2, 1, 1)).tolist()


def test_gains_on_spikes_are_weights() -> None:
    """Without a layer in front that could take them."""
    for size in ((4,), (2, 3)):
        per_channel = np.array([2.0, 0.5, 1.0, -1.0], F)[: size[0]]
        after = check(graph(spikes(size), gained("l", "in", per_channel), out=["l"]))
        assert not [n for n in after.nodes if isinstance(n, Scale)]


def test_a_gain_per_row_of_a_dense_layer_over_leading_axes_stays() -> None:
    # (2, 2): one gain a channel (axis 0) is not one gain a row of the weight (axis 1).
    g = graph(spikes((2, 2)), dense("d", "in", W2), gained("l", "d", [2.0, 0.5]), out=["l"])
    with pytest.raises(CompileError) as caught:
        legal(g)
    assert [d.code for d in caught.value.diagnostics] == ["SPK202"]
    assert caught.value.diagnostics[0].message == "%l_gain: loihi2 has no operation 'scale'"
    after = check(graph(spikes((2, 2)), dense("d", "in", W2), gained("l", "d", 2.0), out=["l"]))
    assert after["d"].weight.tolist() == (2 * W2).tolist()


def test_sparse_layers_take_gains() -> None:
    s = Sparse(
        name="s",
        inputs=(Ref("in"),),
        weight=np.array([1, 0.5, 0.75], F),
        indices=np.array([0, 1, 2]),
        indptr=np.array([0, 1, 3]),
        fan_in=3,
        bias=np.array([0.25, 0.5], F),
    )
    for g in (2.0, [2.0], [2.0, 4.0]):
        scale = Scale(name="x", inputs=(Ref("s"),), factor=np.asarray(g, F))
        after = check(graph(spikes((3,)), s, scale, leaky("l", "x"), out=["l"]))
        assert after["s"].weight.tolist() == ([2.0, 1.0, 1.5] if np.size(g) == 1 else [2.0, 2.0, 3.0])


def test_everything_is_refused_at_once() -> None:
    delayed = parse_program("neuron @delayed(x) state(v = 0) { r = v > 1 v = select(r, 0, 0.5 * v + x) s = v > 1 emit s }")
    g = graph(
        values((2, 4), "frame"),
        Conv(name="c", inputs=(Ref("frame"),), weight=np.ones((2, 2, 1), F), loc=Loc("m.py", 5, "net.c")),
        Pool(name="p", inputs=(Ref("c"),), mode="average", kernel=(2,)),
        Reshape(name="f", inputs=(Ref("p"),), shape=(4,)),
        dense("d", "f", np.ones((2, 4), F)),
        Neuron(name="n", inputs=(Ref("d"),), program=delayed, loc=Loc("m.py", 9, "net.n")),
        leaky("l", "n"),
        dense("e", Ref("l", "v"), W2),
        leaky("k", "e"),
        out=["k"],
    )
    with pytest.raises(CompileError) as caught:
        legal(g, custom_neurons="refuse")
    assert [(d.code, str(d.loc or ""), d.message) for d in caught.value.diagnostics] == [
        ("SPK201", "m.py:9 (net.n)", "%n: loihi2 has no neuron that computes @delayed"),
        ("SPK201", "", "%l: loihi2 cannot send v to %e, only spikes"),
        ("SPK202", "", "%p: loihi2 has no operation 'pool'"),
        ("SPK202", "", "%d: its operand %f is not spikes, and a synapse of loihi2 takes spikes"),
    ]
    assert all(d.fix for d in caught.value.diagnostics)


def test_a_membrane_before_the_reset_cannot_be_shown() -> None:
    early = parse_program("neuron @early(x) state(v = 0) { m = 0.5 * v + x s = m > 1 v = select(s, 0, m) emit s, m }")
    node = Neuron(name="l", inputs=(Ref("d"),), program=early)
    check(graph(spikes((3,)), dense("d", "in", W), node, out=["l"]))
    shown = graph(spikes((3,)), dense("d", "in", W), node, out=["l", ("m", Ref("l", "m"))])
    with pytest.raises(CompileError) as caught:
        legal(shown, custom_neurons="refuse")
    (problem,) = caught.value.diagnostics
    assert problem.notes[0] == "the output m is not a state at the end of the step"
    assert legal(shown)[0]["l"].program == early
    assert LEAKY.emits[1].name == "v"


DELAYED = parse_program("neuron @delayed(x) params(b) state(v = 0) { r = v > 1 v = select(r, 0, b * v + x) s = v > 1 emit s }")


def test_a_refusal_names_the_alternatives_with_their_measured_cost() -> None:
    node = Neuron(name="l", inputs=(Ref("d"),), program=DELAYED, params={"b": F(0.5)})
    g = graph(spikes((3,)), dense("d", "in", 2 * W), node, out=["l"])
    zero = parse_program("neuron @zero(x) params(b) state(v = 0) { v = b * v + x s = v > 1 v = select(s, 0, v) emit s }")
    other = graph(*(Neuron(name="l", inputs=(Ref("d"),), program=zero, params={"b": F(0.5)}) if n is node else n for n in g.nodes))
    x = {"in": random_spikes((6, 20, 3), 4)}
    one, two = (interpret(each, x).outputs["l"] for each in (g, other))
    changed, total = int(np.count_nonzero(one != two)), int(one.sum())
    assert 0 < changed < total
    for calibrate, cost in (
        (x, f"changes {changed} of {total} spikes on the calibration data"),
        (None, "not measured, as there is no"),
    ):
        with pytest.raises(CompileError) as caught:
            legal(g, custom_neurons="refuse", calibrate=calibrate)
        (problem,) = caught.value.diagnostics
        assert problem.code == "SPK201" and "custom_neurons=allow" in (problem.fix or "")
        assert problem.notes[-2] == ("as a program of its own (custom_neurons=allow): changes no spike, needs microcode on silicon")
        assert problem.notes[-1].startswith(f"reset to zero in the same step, loihi2's own neuron: {cost}")
    with pytest.raises(CompileError, match="custom_neurons is one of allow, refuse, not 'maybe'"):
        legal(g, custom_neurons="maybe")


def test_a_flattened_sum_of_spikes_is_split_where_it_stands() -> None:
    """fc((a + c).flatten()): the two come in different steps on the chip, so each needs synapses of its own."""
    rng = np.random.default_rng(0)
    g = graph(
        spikes((2, 3)),
        dense("d1", "in", rng.normal(size=(3, 3)).astype(F)),
        leaky("a", "d1"),
        dense("d2", "a", rng.normal(size=(3, 3)).astype(F)),
        leaky("c", "d2"),
        Add(name="both", inputs=(Ref("a"), Ref("c"))),
        Concat(name="row", inputs=(Ref("a"), Ref("c"))),
        Reshape(name="f", inputs=(Ref("both"),), shape=(6,)),
        Reshape(name="f2", inputs=(Ref("row"),), shape=(12,)),
        dense("fc", "f", rng.normal(size=(2, 6)).astype(F)),
        dense("fc2", "f2", rng.normal(size=(2, 12)).astype(F)),
        leaky("l", "fc"),
        leaky("l2", "fc2"),
        out=["l", "l2"],
    )
    after = check(g)
    readers = [node for node in after.nodes if isinstance(node, Dense) and node.weight.shape[0] == 2]
    assert len(readers) == 4
    for node in readers:
        source = after[node.inputs[0].node]
        assert isinstance(source, Reshape) and isinstance(after[source.inputs[0].node], Neuron)


def test_maps_of_spikes_that_enter_late_wait_in_their_synapse() -> None:
    g = graph(spikes((2, 3)), leaky("l", Ref("in", delay=2)), out=["l"])
    after = check(g)
    assert [n.inputs[0].delay for n in after.nodes if isinstance(n, Sparse)] == [2]
    x = random_spikes((3, 9, 2, 3), 1)
    build = spikec.compile(g)
    np.testing.assert_array_equal(build.run(x).outputs["l"], build.run(x, level="float").outputs["l"])
    late = np.array([[[1, 0, 1], [0, 0, 1]], [[0, 1, 0], [1, 1, 0]]], F)
    check(graph(spikes((2, 3)), leaky("l", Ref("in", delay=2, init=late)), out=["l"]))
