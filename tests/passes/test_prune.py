"""Prune: the share that was asked for goes, the least of effect first, and what stays computes what a masked network does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
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
from spikec.ir.ops import Conv, Dense, Pool, Ref, Reshape, Sparse
from spikec.ir.rules import verify
from spikec.ledger import Ledger
from spikec.passes.prune import TRIED, Prune


def net(seed: int = 0, hidden: int = 16) -> Graph:
    rng = np.random.default_rng(seed)
    w1, w2 = rng.normal(0, 0.5, (hidden, 12)).astype(F), rng.normal(0, 0.5, (4, hidden)).astype(F)
    return verify(
        graph(
            spikes((12,)),
            dense("fc1", "in", w1),
            leaky("l1", "fc1", 0.9),
            dense("fc2", "l1", w2),
            leaky("l2", "fc2", 0.9),
            out=["l2"],
        )
    )


def conv_net(seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    return verify(
        graph(
            spikes((2, 8, 8)), Conv(name="c1", inputs=(Ref("in"),), weight=rng.normal(0, 0.5, (8, 2, 3, 3)).astype(F), padding=(1, 1)), leaky("l1", "c1"),
            Pool(name="p", inputs=(Ref("l1"),), mode="average", kernel=(2, 2)), Conv(name="c2", inputs=(Ref("p"),), weight=rng.normal(0, 0.5, (8, 8, 3, 3)).astype(F)), leaky("l2", "c2"),
            Reshape(name="f", inputs=(Ref("l2"),), shape=(32,)), dense("fc", "f", rng.normal(0, 0.5, (4, 32)).astype(F)), leaky("l3", "fc"), out=["l3"],
        )
    )  # fmt: skip


def data(shape: tuple[int, ...] = (12,), seed: int = 1) -> dict[str, Any]:
    return {"in": random_spikes((5, 20, *shape), seed)}


def pruned(g: Graph, **options: Any) -> tuple[Graph, Ledger]:
    ledger = Ledger()
    ledger.pass_name = "prune"
    return verify(Prune(**options).run(g, ledger)), ledger


def count(g: Graph) -> int:
    return sum(int(np.count_nonzero(node.weight)) for node in g.nodes if isinstance(node, (Dense, Sparse, Conv)))


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("calibrate", [None, data()], ids=["magnitude", "activity"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_share_that_was_asked_for(share: float, calibrate: Any, scope: str) -> None:
    g = net()
    # A whole hidden neuron that loses its readers goes with the synapses that it read: at least the share, then.
    after, ledger = pruned(g, prune=share, prune_scope=scope, prune_structured=0.0, calibrate=calibrate)
    left = count(after) / count(g)
    assert left <= 1 - share + 0.02
    assert left >= (1 - share) * 0.35
    if share:
        assert sum(e.changed for e in ledger if e.what == "synapses pruned") == pytest.approx(share * count(g), abs=2)
        assert {e.asked for e in ledger if e.kind == "approximation"} == {"--prune"}
    else:
        assert after == g
        assert not [e for e in ledger if e.kind == "approximation"]


def test_the_smallest_go_first_within_a_layer() -> None:
    g = net()
    after, _ = pruned(g, prune=0.4, prune_scope="layer")
    before, left = g["fc1"].weight, after["fc1"].weight
    assert before.shape == left.shape
    assert np.abs(before[left == 0]).max() <= np.abs(before[left != 0]).min()


def test_a_source_that_never_sends_ranks_last() -> None:
    g = net()
    x = data()
    x["in"][:, :, :6] = 0
    after, _ = pruned(g, prune=0.4, prune_structured=0.0, calibrate=x)
    assert np.count_nonzero(after["fc1"].weight[:, -6:]) > 0.9 * 6 * 16
    assert after["fc1"].weight.shape[1] < 12 or np.count_nonzero(after["fc1"].weight[:, :6]) < 0.2 * 6 * 16


@settings(max_examples=40, deadline=None)
@given(graphs("float"), st.sampled_from([0.2, 0.5, 0.95]), st.booleans(), st.integers(0, 99))
def test_what_stays_computes_what_the_masked_network_does(g: Graph, share: float, with_data: bool, seed: int) -> None:
    """The ledger's own masks, put into the graph by hand, and no neuron removed; with data other weights make good, and round."""
    x = random_inputs(g, 3, 9, seed)
    pass_ = Prune(prune=share, prune_structured=0.0, calibrate=x if with_data else None)
    after = verify(pass_.run(g, Ledger()))
    if with_data:
        assert [after.type_of(ref) for _, ref in after.outputs] == [g.type_of(ref) for _, ref in g.outputs]
        cut = pass_.cut(g, pass_.activity(g), Ledger())
        assert count(after) <= count(cut) <= count(g)
        return
    masks = pass_.masks(g, pass_.activity(g))
    cut = g.with_nodes(
        replace(n, weight=np.where(masks[n.name], n.weight, n.weight.dtype.type(0))) if n.name in masks else n for n in g.nodes
    )
    one, two = interpret(cut, x, steps=9), interpret(after, x, steps=9)
    for name, value in one.outputs.items():
        np.testing.assert_array_equal(value, two.outputs[name], err_msg=name)


def test_half_of_the_neurons_go() -> None:
    g = net()
    after, ledger = pruned(g, prune_structured=0.5, calibrate=data())
    assert (g.shape_of("l1"), after.shape_of("l1"), after.shape_of("l2")) == ((16,), (8,), (4,))
    assert next(e.asked for e in ledger if e.kind == "approximation") == "--prune-structured 0.5"
    c = conv_net()
    after, _ = pruned(c, prune_structured=0.5, calibrate=data((2, 8, 8)))
    assert (after.shape_of("l1"), after.shape_of("l2"), after.shape_of("l3")) == ((4, 8, 8), (4, 2, 2), (4,))
    assert after["c2"].weight.shape == (4, 4, 3, 3)


def test_dormant_neurons_go_first() -> None:
    g = net()
    weight = g["fc1"].weight.copy()
    weight[[1, 5, 6]] = -1  # nothing but inhibition: never fires, though nothing in the graph proves it
    g = verify(g.with_nodes(replace(node, weight=weight) if node.name == "fc1" else node for node in g.nodes))
    silent = np.flatnonzero(~interpret(g, data(), record=["l1"]).records["l1"].any(axis=(0, 1)))
    assert {1, 5, 6} <= set(silent.tolist())
    after, _ = pruned(g, prune_structured=len(silent) / 16, calibrate=data())
    np.testing.assert_array_equal(after["fc1"].weight, np.delete(weight, silent, axis=0))
    x = data()
    np.testing.assert_array_equal(interpret(g, x).outputs["l2"], interpret(after, x).outputs["l2"])


def doubled(seed: int = 3) -> Graph:
    """Every hidden neuron twice, so that half of them can be spared."""
    rng = np.random.default_rng(seed)
    w1, w2 = rng.normal(0, 0.5, (16, 12)).astype(F), rng.normal(0, 0.5, (4, 16)).astype(F)
    layers = dense("fc1", "in", np.repeat(w1, 2, axis=0)), dense("fc2", "l1", np.repeat(w2, 2, axis=1))
    return verify(graph(spikes((12,)), layers[0], leaky("l1", "fc1", 0.9), layers[1], leaky("l2", "fc2", 0.9), out=["l2"]))


def one_by_one() -> Graph:
    """Each class has one neuron of its own that tells it, beside many weights of no account."""
    rng = np.random.default_rng(4)
    w1, w2 = (rng.normal(0, 0.01, shape).astype(F) for shape in ((8, 8), (8, 8)))
    np.fill_diagonal(w1, 1.5)
    np.fill_diagonal(w2, 1.5)
    return verify(graph(spikes((8,)), dense("fc1", "in", w1), leaky("l1", "fc1", 0.5), dense("fc2", "l1", w2), leaky("l2", "fc2", 0.5), out=["l2"]))  # fmt: skip


def shares(ledger: Ledger) -> list[float]:
    return [entry.measured["share"] for entry in ledger if entry.what == TRIED]


def test_neurons_go_whole_where_that_costs_no_more() -> None:
    g, x = doubled(), {"in": random_spikes((64, 20, 12), 5)}
    after, ledger = pruned(g, prune=0.7, calibrate=x)
    assert shares(ledger) == [0.25]
    assert after.shape_of("l1") == (24,)
    assert 0.28 * count(g) <= count(after) <= 0.3 * count(g) + 1
    assert {e.asked for e in ledger if e.kind == "approximation"} == {"--prune"}
    single, _ = pruned(g, prune=0.7, prune_structured=0.0, calibrate=x)
    assert single.shape_of("l1")[0] > 24


def test_neurons_that_are_needed_stay() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 8, 96)
    x = (rng.random((96, 12, 8)) < np.where(np.arange(8) == y[:, None], 0.9, 0.02)[:, None]).astype(F)
    after, ledger = pruned(one_by_one(), prune=0.8, calibrate={"in": x}, labels=y)
    assert shares(ledger) == [0.0]
    assert after.shape_of("l1") == (8,)
    found = next(e.measured for e in ledger if e.what == TRIED)
    assert found["right with single synapses"] > 0.95 > found["with 0.25 of the neurons"]


@pytest.mark.parametrize(
    "options",
    [{"prune_scope": "layer"}, {"prune_pattern": "2:4"}, {"prune_structured": 0.0}, {"keep_layers": ("fc2",)}, {"calibrate": None}],
)
def test_neurons_stay_where_nothing_says_that_they_may_go(options: dict[str, Any]) -> None:
    x = {"in": random_spikes((64, 20, 12), 5)}
    after, ledger = pruned(doubled(), **{"prune": 0.3, "calibrate": x, **options})
    assert not shares(ledger)
    assert after.shape_of("l1") == (32,)


def test_neurons_alone_never_take_more_than_was_asked_for() -> None:
    g, x = doubled(), {"in": random_spikes((64, 20, 12), 5)}
    after, ledger = pruned(g, prune=0.1, calibrate=x)  # a quarter of the neurons would take a quarter of the synapses
    assert not shares(ledger)
    assert count(after) >= 0.88 * count(g)
    budget, ledger = pruned(g, max_synapses=200, calibrate=x)
    assert shares(ledger) == [0.25]
    assert 190 <= count(budget) <= 200


@pytest.mark.parametrize("width", [4, 16])
def test_blocks_of_targets_go_together(width: int) -> None:
    g = net(hidden=32)
    after, _ = pruned(g, prune=0.5, prune_pattern=f"block{width}", keep_layers=("fc2",))
    blocks = (after["fc1"].weight != 0).reshape(-1, width, after["fc1"].weight.shape[1])
    assert set(np.unique(blocks.sum(axis=1))) == {0, width}
    assert blocks.sum() / (32 * 12) == pytest.approx(0.5, abs=0.05)


def test_two_of_four() -> None:
    g = net()
    after, _ = pruned(g, prune_pattern="2:4")
    groups = (after["fc1"].weight != 0).reshape(4, 4, -1)
    assert set(np.unique(groups.sum(axis=1))) == {2}
    before = np.abs(g["fc1"].weight).reshape(4, 4, -1)
    assert np.all(np.where(groups, before, np.inf).min(axis=1) >= np.where(groups, 0, before).max(axis=1))


@pytest.mark.parametrize(("option", "budget"), [("max_synapses", 100), ("max_bytes", 120), ("max_synapses", 100_000)])
def test_budgets(option: str, budget: int) -> None:
    g = net()
    after, _ = pruned(g, **{option: budget})
    if budget > 1000:
        assert after == g
    elif option == "max_synapses":
        assert 60 <= count(after) <= budget
    else:
        assert sum(min(3 * np.count_nonzero(n.weight), n.weight.size) for n in after.nodes if isinstance(n, Dense)) <= budget


def test_layers_that_stay_whole_are_a_list_or_a_tuple() -> None:
    found = [spikec.compile(net(), target="host", bits=8, prune=0.5, keep_layers=names) for names in (["fc2"], ("fc2",))]
    assert found[0].graph().fingerprint == found[1].graph().fingerprint


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"prune": 1.0}, "SPK001", "prune is a share from 0 up to but without 1, not 1.0"),
        ({"prune_structured": -0.1}, "SPK001", "prune_structured is a share"),
        ({"prune": 0.5, "prune_scope": "all"}, "SPK001", "prune_scope is 'global' or 'layer', not 'all'"),
        ({"prune": 0.5, "prune_pattern": "4:2"}, "SPK001", "'4:2' is no pattern"),
        ({"prune": 0.5, "prune_pattern": "block1"}, "SPK001", "'block1' is no pattern"),
        ({"prune": 0.5, "keep_layers": ("fc9",)}, "SPK010", "keep_layers: there is no layer 'fc9'"),
        ({"max_synapses": 0}, "SPK001", "max_synapses must be at least 1, not 0"),
        ({"max_bytes": 1, "keep_layers": ("fc1",)}, "SPK219", "no pruning reaches 1 bytes"),
    ],
)
def test_bad_options(options: dict[str, Any], code: str, text: str) -> None:
    with pytest.raises(CompileError) as caught:
        pruned(net(), **options)
    assert caught.value.diagnostics[0].code == code
    assert text in caught.value.diagnostics[0].message


def test_through_the_driver(tmp_path: Path) -> None:
    g = net(hidden=64)
    x = data()
    for target, more in (("host", {"bits": 8}), ("loihi2", {})):
        build = spikec.compile(g, target=target, calibrate=x, prune=0.6, prune_structured=0.5, **more)
        assert build.stage_names[:3] == ["input", "canonicalise", "prune"]
        assert 24 <= build.graph().shape_of("l1")[0] <= 32  # a neuron that lost all of its synapses goes too
        build.save(tmp_path / target)
        again = spikec.load(tmp_path / target)
        engines = [again.run(x, backend=name).outputs["l2"] for name in ("reference", "numpy", "c")]
        for other in engines[1:]:
            np.testing.assert_array_equal(engines[0], other)
    with pytest.raises(CompileError, match="'prune_scope' does nothing without one of prune, prune_structured"):
        spikec.compile(g, target="host", prune_scope="layer")
    assert "prune" not in spikec.compile(g, target="host").stage_names
