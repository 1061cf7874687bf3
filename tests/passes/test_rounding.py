"""Weights that are rounded together: on the grid, and with less error in what neurons integrate than the nearest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Dense, Input, Neuron, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.ledger import Ledger
from spikec.passes import chip_scale, to_fixed
from spikec.passes.quantize import Quantize
from spikec.passes.rounding import SOURCES, kept, moments, rounded
from spikec.passes.to_fixed import ToFixed
from spikec.target import load_target

LIF = parse_program(
    "neuron @lif(x) params(beta, theta) state(v = 0) {\nv = beta * v + x\ns = v > theta\nv = select(s, 0, v)\nemit s\n}"
)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 5),
    columns=st.integers(1, 90),
    step=st.sampled_from([1, 2, 8]),
    sparsity=st.sampled_from([0.0, 0.6]),
)
def test_on_the_grid_and_no_worse_than_the_nearest(seed: int, rows: int, columns: int, step: int, sparsity: float) -> None:
    rng = np.random.default_rng(seed)
    wanted = rng.normal(0, 12 * step, (rows, columns)) * (rng.random((rows, columns)) >= sparsity)
    sent = (rng.random((400, 3)) @ rng.random((3, columns)) > rng.random((400, columns))).astype(np.float64)
    low, high = -16 * step, 15 * step
    grid = rounded(wanted, step, low, high, None)
    got = rounded(wanted, step, low, high, sent.T @ sent)
    assert not np.any(got % step) and got.min(initial=0) >= low and got.max(initial=0) <= high
    assert not np.any(got[wanted == 0])
    assert np.array_equal(rounded(grid, step, low, high, sent.T @ sent), grid), "what is on the grid stays"


def test_errors_of_sources_that_are_active_together_make_good_for_one_another() -> None:
    """Two sources that always send at once: 0.4 and 0.4 are one step in all, not none."""
    both = np.array([[4.0, 4.0], [4.0, 4.0]])
    assert rounded(np.array([[0.4, 0.4]]), 1, -8, 7, both).sum() == 1
    assert rounded(np.array([[0.4, 0.4]]), 1, -8, 7, np.diag([4.0, 4.0])).sum() == 0
    assert rounded(np.array([[0.4, 0.4]]), 1, -8, 7, None).sum() == 0
    rng = np.random.default_rng(0)
    wanted = rng.normal(0, 3, (20, 200))
    sent = (rng.random((3000, 10)) @ rng.random((10, 200)) > 3).astype(np.float64)
    errors = [float(np.square(sent @ (rounded(wanted, 1, -16, 15, m) - wanted).T).mean()) for m in (None, sent.T @ sent)]
    assert errors[1] < 0.5 * errors[0]


def network(seed: int, sources: int = 30) -> Graph:
    rng = np.random.default_rng(seed)
    nodes = [Input(name="in", type=TensorType("spike", (sources,), "f32"))]
    before, width = "in", sources
    for k, size in enumerate((40, 20), 1):
        weight = rng.normal(0.1, 1.5 / np.sqrt(width), (size, width)).astype(np.float32)
        nodes.append(Dense(name=f"fc{k}", inputs=(Ref(before),), weight=weight))
        params = {"beta": np.float32(0.9), "theta": np.float32(1)}
        nodes.append(Neuron(name=f"l{k}", inputs=(Ref(f"fc{k}"),), program=LIF, params=params))
        before, width = f"l{k}", size
    return verify(Graph("net", "float", tuple(nodes), (("l2", Ref("l2")),)))


@pytest.mark.parametrize("target", ["host", "loihi2"])
def test_fewer_spikes_change_and_the_ledger_says_how(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    changed = {True: 0, False: 0}
    quantizer = ToFixed if target == "host" else Quantize
    # Rates of few causes, as data have them: sources are active together.
    rates = [np.kron(rng.random((40, 1, 5)) ** 2, np.ones(6)) for _ in range(3)]
    samples = [(rng.random((40, 20, 30)) < rate).astype(np.float64) for rate in rates]
    for together in changed:
        for seed, x in enumerate(samples):
            graph, ledger = network(seed), Ledger()
            found = quantizer(load_target(target), 6, calibrate={"in": x[:20]}).run(graph, ledger)
            assert any("together" in entry.what for entry in ledger) == together
            runs = [interpret(item, {"in": x[20:]}, record=["l1", "l2"]).records for item in (graph, found)]
            changed[together] += sum(int(np.count_nonzero(runs[0][k] != runs[1][k])) for k in ("l1", "l2"))
        for module in (to_fixed, chip_scale):
            monkeypatch.setattr(module, "moments", lambda *_: None)
    assert changed[True] < 0.9 * changed[False]


def test_what_a_membrane_keeps_is_read_from_the_program() -> None:
    graph = network(0)
    found = kept(graph["l1"], "v")
    assert found is not None and float(found) == np.float32(0.9)
    assert kept(graph["l1"], "s") is None
    x = np.zeros((1, 3, 30))
    x[0, 0, 4] = 1
    seen = moments(graph, graph["fc1"], {"in": x})
    assert seen is not None
    decay = float(np.float32(0.9))
    assert seen[4, 4] == pytest.approx(1 + decay**2 + decay**4) and np.count_nonzero(seen) == 1


def test_large_layers_and_layers_with_delays_keep_the_nearest() -> None:
    graph = network(0)
    data = {"in": np.ones((1, 4, 30))}
    delayed = Dense(name="fc1", inputs=(Ref("in"),), weight=graph["fc1"].weight, delay=np.ones((40, 30), np.int32))
    assert moments(graph, graph["fc1"], data) is not None
    assert moments(graph, delayed, data) is None and moments(graph, graph["fc1"], None) is None
    large = network(0, SOURCES + 1)
    assert moments(large, large["fc1"], {"in": np.ones((1, 4, SOURCES + 1))}) is None
