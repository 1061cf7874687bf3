"""Place: every neuron on a core, no core over its limits, fewer hops than in order or at random, and the same spikes."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import dense, graph, native, random_spikes, spikes
from strategies import graphs, random_inputs

import spikec
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Conv, Dense, Input, Neuron, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_graph, print_graph
from spikec.ledger import Ledger
from spikec.passes.place import Place, anneal
from spikec.passes.shards import Cutter, Limits
from spikec.target import load_target

TARGET = load_target("loihi2")
LIMITS = Limits.of(TARGET)


def lif(name: str, source: str) -> Neuron:
    params = {"du": 4095, "dv": 400, "vth": 60, "bias_mant": 0, "bias_exp": 0}
    return Neuron(name=name, inputs=(Ref(source),), program=native("LIF"), params={k: np.int32(v) for k, v in params.items()})


def layers(*sizes: int, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    nodes: list[Any] = [spikes((sizes[0],), dtype="i8")]
    before = "in"
    for k, (a, b) in enumerate(pairwise(sizes)):
        w = (2 * rng.integers(-127, 128, (b, a))).astype(np.int16)
        nodes += [dense(f"fc{k}", before, w), lif(f"l{k}", f"fc{k}")]
        before = f"l{k}"
    return verify(graph(*nodes, out=[before], level="fixed"))


def conv_net(side: int, channels: int) -> Graph:
    rng = np.random.default_rng(0)
    w1 = (2 * rng.integers(-9, 10, (channels, 2, 3, 3))).astype(np.int16)
    w2 = (2 * rng.integers(-9, 10, (channels, channels, 3, 3))).astype(np.int16)
    w3 = (2 * rng.integers(-9, 10, (10, channels * side * side))).astype(np.int16)
    size = channels * side * side
    tail: list[Any] = (
        [Reshape(name="f", inputs=(Ref("l2"),), shape=(size,)), dense("fc", "f", w3), lif("l3", "fc")] if size < 8_000 else []
    )
    return verify(
        graph(
            Input(name="in", type=spikes((2, side, side), dtype="i8").type),
            Conv(name="c1", inputs=(Ref("in"),), weight=w1, padding=(1, 1)), lif("l1", "c1"),
            Conv(name="c2", inputs=(Ref("l1"),), weight=w2, padding=(1, 1)), lif("l2", "c2"), *tail,
            out=["l3" if tail else "l2"], level="fixed",
        )
    )  # fmt: skip


def placed(g: Graph, **options: Any) -> tuple[Graph, dict[str, float]]:
    ledger = Ledger()
    after = verify(Place(TARGET, **options).run(g, ledger))
    return after, dict(next(e.measured for e in ledger if e.what == "every neuron has a core"))


def check_limits(g: Graph) -> None:
    """Add up, core by core, what lies there, from the placed graph alone."""
    cutter = Cutter(g, LIMITS)
    neurons: dict[int, int] = {}
    words: dict[int, int] = {}
    sources: dict[int, dict[str, Any]] = {}
    for node in g.neurons:
        assert node.core is not None
        for core in np.unique(node.core).tolist():
            shard = cutter.shard(node, np.flatnonzero(node.core.ravel() == core))
            neurons[core] = neurons.get(core, 0) + len(shard.members)
            words[core] = words.get(core, 0) + shard.words
            table = sources.setdefault(core, {})
            for name, mask in shard.sources.items():
                table[name] = table[name] | mask if name in table else mask
    assert max(neurons.values()) <= LIMITS.neurons
    assert max(words.values()) <= LIMITS.words
    assert max(sum(int(m.sum()) for m in table.values()) for table in sources.values()) <= LIMITS.axons_in
    assert all(core % 128 < 128 for core in neurons)


@pytest.mark.parametrize("g", [layers(64, 96, 64, 10), layers(784, 512, 256, 10), conv_net(16, 8)], ids=["small", "wide", "conv"])
def test_limits_and_the_same_spikes(g: Graph) -> None:
    after, figures = placed(g)
    check_limits(after)
    assert after.level == "placed"
    x = {"in": random_spikes((2, 12, *g.shape_of("in")), 1, 0.2)}
    one, two = interpret(g, x), interpret(after, x)
    for name, value in one.outputs.items():
        np.testing.assert_array_equal(value, two.outputs[name])
    assert figures["hops a step"] <= figures["hops in order"] + 1e-9
    text, arrays = print_graph(after)
    assert parse_graph(text, arrays) == after


def test_a_small_network_takes_one_core() -> None:
    after, figures = placed(layers(64, 96, 64, 10))
    assert (figures["cores"], figures["messages between cores a step"]) == (1, 0)
    assert {int(c) for node in after.neurons for c in np.unique(node.core)} == {0}


def test_fewer_hops_than_at_random() -> None:
    _, figures = placed(conv_net(32, 16))
    assert figures["cores"] > 6
    assert figures["hops a step"] < 0.8 * figures["hops at random"]
    _, random = placed(conv_net(32, 16), place="random")
    assert random["hops a step"] == pytest.approx(figures["hops at random"])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), st.integers(3, 6))
def test_annealing_finds_the_optimum_of_small_layouts(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    traffic = rng.random((count, count)) * (rng.random((count, count)) < 0.5)
    np.fill_diagonal(traffic, 0)
    place = rng.integers(0, 6, (count, 2))
    hops = np.abs(place[:, None] - place).sum(-1)

    def cost(order: Any) -> float:
        return float(np.sum(traffic * hops[np.ix_(order, order)]))

    best = min(cost(list(order)) for order in permutations(range(count)))
    assert cost(anneal(traffic, hops, 0)) <= best * 1.05 + 1e-9


@settings(max_examples=40, deadline=None)
@given(graphs("fixed"), st.integers(0, 99))
def test_random_graphs(g: Graph, seed: int) -> None:
    after, _ = placed(g)
    x = random_inputs(g, 2, 6, seed)
    one, two = interpret(g, x, steps=6), interpret(after, x, steps=6)
    for name, value in one.outputs.items():
        np.testing.assert_array_equal(value, two.outputs[name])


def test_networks_that_are_too_large_are_refused_with_all_rules_at_once() -> None:
    g = layers(784, 2048, 2048, 10)
    with pytest.raises(CompileError) as caught:
        placed(g, chips=1)
    (found,) = caught.value.diagnostics
    assert found.code == "SPK230"
    assert "1 chip(s) of loihi2 have 120" in found.message and "%l1" in found.message
    assert found.fix is not None and "--chips" in found.fix and "--prune-structured" in found.fix
    wide = Dense(name="fc", inputs=(Ref("in"),), weight=np.full((200, 17_000), [[2], [-254]] * 100, np.int16))
    with pytest.raises(CompileError) as caught:
        placed(verify(graph(spikes((17_000,), dtype="i8"), wide, lif("l", "fc"), out=["l"], level="fixed")), chips=1)
    codes = {d.code for d in caught.value.diagnostics}
    assert codes == {"SPK230", "SPK231", "SPK232"}, caught.value
    assert any("one neuron is reached by 17000 axons; a core of loihi2 takes 16000" in d.message for d in caught.value.diagnostics)


def test_bad_options_and_graphs() -> None:
    with pytest.raises(CompileError, match="place is annealed or sequential or random, not 'best'"):
        placed(layers(4, 3), place="best")
    with pytest.raises(CompileError, match="chips must be at least 1, not 0"):
        placed(layers(4, 3), chips=0)
    after, _ = placed(layers(4, 3))
    with pytest.raises(CompileError, match="has cores, but the level is fixed"):
        verify(after.with_nodes(after.nodes, level="fixed"))
    with pytest.raises(CompileError, match="needs a core for every neuron"):
        verify(layers(4, 3).with_nodes(layers(4, 3).nodes, level="placed"))


def test_through_the_driver() -> None:
    build = spikec.compile(layers(20, 30, 10), target="loihi2")
    assert build.stage_names[-1] == "place"
    assert build.graph().level == "placed"
    x = random_spikes((3, 9, 20), 2)
    found = [build.run(x, name).outputs["l1"] for name in ("reference", "numpy", "c")]
    assert all(np.array_equal(found[0], other) for other in found[1:])
