"""Compensate: what is left of a pruned layer gives the membranes what the whole layer gave, as nearly as least squares can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, random_spikes, spikes

from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.rules import verify
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.compensate import compensated, expendable, saliency
from spikec.passes.prune import Prune


def twins(copies: int = 2, seed: int = 0) -> Graph:
    """Eight hidden neurons, each of them `copies` times: all copies fire together, and each has weights of its own behind it."""
    rng = np.random.default_rng(seed)
    one = rng.integers(-8, 9, (8, 12)).astype(F) / 8
    behind = rng.integers(-8, 9, (4, 8 * copies)).astype(F) / 8
    return verify(
        graph(
            spikes((12,)),
            dense("fc1", "in", np.concatenate([one] * copies)),
            leaky("l1", "fc1", 0.5),
            dense("fc2", "l1", behind),
            leaky("l2", "fc2", 0.5),
            out=["l2"],
        )
    )


def outputs(g: Graph, x: Array) -> Array:
    return interpret(g, {"in": x}).outputs["l2"]


def test_of_neurons_that_fire_together_one_is_enough() -> None:
    """Half of the neurons go, one of each two, and the outputs on data that was not seen change by damping alone."""
    g, x = twins(), random_spikes((24, 20, 12), 1)
    after = verify(Prune(prune_structured=0.5, calibrate={"in": x}).run(g, Ledger()))
    assert after.shape_of("l1") == (8,)
    active = interpret(g, {"in": x}, record=["l1"]).records["l1"].mean(axis=(0, 1)) > 0.02
    kept = {tuple(row) for row in after["fc1"].weight}
    assert active.sum() > 8 and {tuple(row) for row in g["fc1"].weight[active]} <= kept, "not one of each two"
    unseen = random_spikes((24, 20, 12), 2)
    wanted = outputs(g, unseen)
    changed = np.mean(outputs(after, unseen) != wanted)
    assert wanted.any()
    assert changed < 0.03
    halves = g.with_nodes(replace(n, weight=np.where(np.arange(16) < 8, n.weight, F(0))) if n.name == "fc2" else n for n in g.nodes)
    assert np.mean(outputs(halves, unseen) != wanted) > 3 * changed, "nothing had to be made good"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.2, 0.5, 0.8]))
def test_the_currents_are_nearer_than_those_of_what_is_left(seed: int, share: float) -> None:
    """Of the first layer, whose input is the same for both: the error that a membrane sees, on the calibration data."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 1, (6, 10)).astype(F)
    g = verify(graph(spikes((10,)), dense("fc", "in", weight), leaky("l2", "fc", 0.75), out=["l2"]))
    x = random_spikes((8, 15, 10), seed)
    keep = rng.random(weight.shape) >= share
    ledger = Ledger()
    after = compensated(g, {"fc": keep}, {"in": x}, ledger, "--prune")["fc"].weight
    assert not after[~keep].any()
    seen = x.astype(np.float64).copy()
    for t in range(1, seen.shape[1]):
        seen[:, t] += 0.75 * seen[:, t - 1]
    flat = seen.reshape(-1, 10)

    def error(left: Array) -> float:
        return float(np.square(flat @ (left - weight).T).sum())

    assert error(after) <= error(np.where(keep, weight, 0)) + 1e-6
    (entry,) = [entry for entry in ledger if entry.kind == "approximation"]
    assert entry.node == "fc" and entry.asked == "--prune"


def test_a_weight_that_others_can_replace_matters_less() -> None:
    """Sources 0 and 1 always send the same; 2 is alone: at equal weights, and equal activity, only the last is dear."""
    rng = np.random.default_rng(0)
    x = (rng.random((400, 2)) < 0.3).astype(float)
    seen = np.stack([x[:, 0], x[:, 0], x[:, 1]], axis=1)
    moment = seen.T @ seen
    weight = np.ones((1, 3))
    found = saliency(weight, np.ones((1, 3), bool), moment)[0]
    assert found[0] == pytest.approx(found[1]) and found[2] > 5 * found[0]
    alone = saliency(weight, np.array([[True, False, True]]), moment)[0]
    assert alone[1] == 0 and alone[0] > 5 * found[0], "without its twin it is dear"
    assert expendable([(weight, moment)], 1)[0] in (0, 1)
    assert set(expendable([(weight, moment)], 2).tolist()) != {0, 1}


def test_layers_with_delays_keep_what_is_left() -> None:
    g = twins()
    delay = np.ones((4, 16), np.int64)
    g = verify(g.with_nodes(replace(n, delay=delay) if n.name == "fc2" else n for n in g.nodes))
    keep = np.arange(64).reshape(4, 16) % 2 == 0
    after = compensated(g, {"fc2": keep}, {"in": random_spikes((4, 10, 12), 1)}, Ledger(), "--prune")
    np.testing.assert_array_equal(after["fc2"].weight, np.where(keep, g["fc2"].weight, 0))
