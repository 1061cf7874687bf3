"""The hypergraph and its partition: what is kept up to date move by move is what is added up from nothing, and what cores need."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapped import conv_net, layers, lif, local
from nets import graph, spikes
from strategies import graphs

from spikec.ir.graph import Graph
from spikec.ir.ops import Neuron, Ref, Sparse
from spikec.ir.rules import verify
from spikec.passes.hypergraph import Atoms, Level, atoms, hypergraph
from spikec.passes.partition import Partition, matched, multilevel, refine
from spikec.shards import Cutter, Limits
from spikec.target import load_target

LIMITS = Limits.of(load_target("loihi2"))
SMALL = replace(LIMITS, neurons=12, words=200, axons_in=90, axons_out=200, groups=3)
TABLES = ("on", "rate", "count", "rows", "dense", "columns", "kinds", "reach", "neurons", "axons", "out", "words")


def random_rates(g: Graph, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {node.name: g.types[node.name][0][1].shape for node in g.nodes}
    return {name: rng.random(int(np.prod(shape))).round(3) for name, shape in shapes.items()}


def level(g: Graph, seed: int, most: int = 60) -> tuple[Level, Atoms, dict[str, Any]]:
    fine, rate = atoms(g, SMALL, most), random_rates(g, seed)
    return hypergraph(g, SMALL, fine, rate), fine, rate


def counted(g: Graph, fine: Atoms, rate: dict[str, Any], part: Any) -> tuple[float, dict[str, list[float]]]:
    """Messages, and what every core needs, from the sources of every core's neurons."""
    cutter, cores = Cutter(g, SMALL), int(part.max()) + 1
    homes = {name: part[own] for name, own in fine.of.items()}
    heard: list[dict[str, Any]] = [{} for _ in range(cores)]
    needs: dict[str, list[float]] = {"words": [0.0] * cores, "neurons": [0.0] * cores}
    for node, core in product(g.neurons, range(cores)):
        members = np.flatnonzero(homes[node.name] == core)
        shard = cutter.shard(node, members)
        needs["words"][core] += shard.words
        needs["neurons"][core] += len(members)
        for name, mask in shard.sources.items():
            heard[core][name] = heard[core][name] | mask if name in heard[core] else mask
    needs["axons"] = [float(sum(mask.sum() for mask in table.values())) for table in heard]
    needs["out"] = [0.0] * cores
    total = 0.0
    for core, table in enumerate(heard):
        for name, mask in table.items():
            for k in np.flatnonzero(mask).tolist():
                home = int(homes[name][k]) if name in homes else -1
                total += float(rate[name][k]) * (home != core)
                if home >= 0:
                    needs["out"][home] += 1
    return total, needs


NETWORKS = [conv_net(6, 3), layers(12, 20, 24, 5, seed=3), local(40, 2)]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(NETWORKS) | graphs("fixed"), st.integers(0, 999), st.integers(1, 5))
def test_sums_are_those_of_the_network(g: Graph, seed: int, cores: int) -> None:
    h, fine, rate = level(g, seed)
    part = np.random.default_rng(seed).integers(0, cores, h.size)
    if not h.size:
        return
    state = Partition(h, part, cores, SMALL)
    messages, needs = counted(g, fine, rate, part)
    assert state.messages() == pytest.approx(messages)
    for name in ("neurons", "axons", "out"):
        np.testing.assert_allclose(getattr(state, name)[: len(needs[name])], needs[name], err_msg=name)
    words = state.words[: len(needs["words"])]
    single = all(len(node.inputs) == 1 for node in g.nodes if not isinstance(node, Neuron))
    assert np.all(words >= np.array(needs["words"]) - h.slack - 1e-6)
    if single and g in NETWORKS:
        assert np.all(words <= np.array(needs["words"]) + 1e-6)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(NETWORKS) | graphs("fixed"), st.integers(0, 999), st.integers(2, 5))
def test_moves_keep_the_sums(g: Graph, seed: int, cores: int) -> None:
    h, _, _ = level(g, seed)
    if not h.size:
        return
    rng = np.random.default_rng(seed)
    state = Partition(h, rng.integers(0, cores, h.size), cores, SMALL)
    for _ in range(40):
        vertex, core = int(rng.integers(h.size)), int(rng.integers(cores))
        home, before = int(state.part[vertex]), state.messages()
        most = state.gains(np.array([vertex]))[0]
        look = state.lift(vertex)
        others = np.delete(look.messages, home)
        assert most == pytest.approx(look.messages[home] - others.min())
        state.put(look, core)
        assert before - state.messages() == pytest.approx(look.messages[home] - look.messages[core])
    fresh = Partition(h, state.part, cores, SMALL)
    for name in TABLES:
        np.testing.assert_allclose(getattr(state, name), getattr(fresh, name), atol=1e-7, err_msg=name)


@settings(max_examples=9, deadline=None)
@given(st.sampled_from(NETWORKS), st.integers(0, 999))
def test_refining_saves_and_breaks_no_limit(g: Graph, seed: int) -> None:
    h, fine, rate = level(g, seed)
    cores = 2 * h.size
    start = np.arange(h.size)  # every vertex alone: few limits can be broken there
    state = Partition(h, start, cores, SMALL)
    over = state.out > SMALL.axons_out
    held = state.holds()
    before = state.messages()
    refine(state)
    assert state.messages() <= before + 1e-9
    assert state.holds() or not held
    assert not np.any((state.out > SMALL.axons_out) & ~over) or not held
    assert counted(g, fine, rate, state.part)[0] == pytest.approx(state.messages())


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(NETWORKS), st.integers(0, 999), st.integers(2, 6))
def test_a_coarser_hypergraph_says_the_same(g: Graph, seed: int, cores: int) -> None:
    h, _, _ = level(g, seed)
    cluster = matched(h, LIMITS)
    coarse = h.coarser(cluster)
    assert coarse.size < h.size
    part = np.random.default_rng(seed).integers(0, cores, coarse.size)
    one, two = Partition(coarse, part, cores, SMALL), Partition(h, part[cluster], cores, SMALL)
    assert one.messages() == pytest.approx(two.messages())
    for name in ("neurons", "axons", "out", "words"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), err_msg=name)
    alone = Partition(h, np.arange(h.size), h.size, SMALL)
    np.testing.assert_allclose(h.needs(SMALL), [alone.words, alone.axons, alone.neurons])


def test_the_optimum_of_small_networks() -> None:
    """Two cores, at most six vertices on each: all ways are tried, and the optimum is mostly found."""
    limits = replace(LIMITS, neurons=6)
    ratios = []
    for seed in range(8):
        g = local(10, seed)
        h = hypergraph(g, limits, atoms(g, limits), random_rates(g, seed))
        assert h.size == 10
        ways = (np.array([0, *bits]) for bits in product((0, 1), repeat=9) if 4 <= sum(bits) <= 6)
        best = min(Partition(h, part, 2, limits).messages() for part in ways)
        found = multilevel(h, limits, 2)
        assert found is not None
        state = Partition(h, found, 2, limits)
        assert state.holds() and state.messages() >= best - 1e-9
        ratios.append(state.messages() / best)
    assert np.mean(ratios) < 1.03 and np.median(ratios) < 1 + 1e-9, ratios


def test_synapses_of_a_source_on_a_vertex_are_counted() -> None:
    """A vertex of several neurons may have several synapses from one source: they share its words."""
    size = 24
    near = np.ones(size * 3, np.int16) * 2
    indices, indptr = np.tile(np.arange(3), size), 3 * np.arange(size + 1)
    layer = Sparse(name="s", inputs=(Ref("in"),), weight=near, indices=indices, indptr=indptr, fan_in=3)
    g = verify(graph(spikes((3,), dtype="i8"), layer, lif("l", "s"), out=["l"], level="fixed"))
    fine = Atoms({"l": np.arange(size) // 6}, 4)
    h = hypergraph(g, LIMITS, fine, random_rates(g, 0))
    part = np.array([0, 0, 1, 1])
    assert h.rows.toarray().tolist() == [[6] * 4]
    assert Partition(h, part, 2, LIMITS).words.tolist() == counted(g, fine, random_rates(g, 0), part)[1]["words"]
