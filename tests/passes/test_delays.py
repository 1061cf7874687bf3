"""Delays: what is asked for, the nearest to what was, the cost in the ledger, and exact forms that compute the same."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, random_spikes, spikes

import spikec
from spikec.cli import main
from spikec.diagnostics import CompileError
from spikec.ir.interpret import interpret
from spikec.ir.ops import Dense
from spikec.ir.text import write_graph
from spikec.ledger import Ledger
from spikec.passes.delays import Delays, few_values, is_axonal


def net(delay: Any, weight: Any = None) -> Any:
    delay = np.asarray(delay)
    weight = np.random.default_rng(0).normal(0.4, 0.3, delay.shape).astype(F) if weight is None else np.asarray(weight, F)
    return graph(spikes((delay.shape[1],)), dense("a", "in", weight, delay=delay), leaky("n", "a", 0.75), out=["n"])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.none() | st.integers(0, 9), st.none() | st.integers(1, 5))
def test_the_nearest_that_is_allowed(seed: int, most: int | None, step: int | None) -> None:
    if most is None and step is None:
        return
    delay = np.random.default_rng(seed).integers(0, 12, (3, 4))
    g, ledger = net(delay), Ledger()
    after = Delays(max_delay=most, delay_step=step).run(g, ledger)
    found = after["a"]
    assert isinstance(found, Dense)
    now = np.full((3, 4), found.inputs[0].delay) if found.delay is None else found.delay
    allowed = np.array([d for d in range(0, 64, step or 1) if most is None or d <= most])
    wanted = allowed[np.abs(delay[..., None] - allowed).argmin(axis=-1)]
    np.testing.assert_array_equal(now, wanted)
    told = [entry for entry in ledger if entry.kind == "approximation"]
    assert sum(entry.changed for entry in told) == np.count_nonzero(wanted != delay)


def test_a_shared_delay_is_read_from_the_operand() -> None:
    """Exactly, also where a synapse of weight zero had another delay."""
    weight = np.array([[1.0, 0.5], [0.0, 2.0]])
    g, ledger = net([[3, 3], [9, 3]], weight), Ledger()
    after = Delays(delay_step=1).run(g, ledger)
    assert after["a"].delay is None and after["a"].inputs[0].delay == 3
    x = {"in": random_spikes((4, 20, 2), 1)}
    np.testing.assert_array_equal(interpret(after, x).outputs["n"], interpret(g, x).outputs["n"])
    assert [entry.kind for entry in ledger] == ["exact"]


def test_axonal_form_is_told() -> None:
    ledger = Ledger()
    g = net([[1, 4], [1, 4], [1, 5]])
    assert not is_axonal(g["a"], (2,))
    after = Delays(max_delay=4).run(g, ledger)
    assert is_axonal(after["a"], (2,))
    assert any(entry.what == "every source has one delay: axonal form" for entry in ledger)


def test_the_cost_is_measured_and_engines_agree() -> None:
    x = random_spikes((30, 20, 6), 2)
    g = net(np.random.default_rng(1).integers(0, 10, (4, 6)))
    build = spikec.compile(g, target="host", bits=8, calibrate=x, max_delay=6, delay_step=3)
    (entry,) = [entry for entry in build.ledger if entry.what.startswith("cost of the other delays")]
    before = interpret(g, {"in": x}).outputs["n"].sum(1).argmax(1)
    after = interpret(build.graph("delays"), {"in": x}).outputs["n"].sum(1).argmax(1)
    assert entry.measured["answers changed"] == np.mean(before != after)
    wanted = build.run(x).outputs["n"]
    for engine in ("numpy", "c"):
        np.testing.assert_array_equal(build.run(x, engine).outputs["n"], wanted)


def test_nothing_to_do() -> None:
    g = net([[1, 4], [2, 0]])
    assert Delays(max_delay=4).run(g, Ledger()) == g


@pytest.mark.parametrize("options", [{"max_delay": -1}, {"delay_step": 0}])
def test_options(options: Any) -> None:
    with pytest.raises(CompileError, match="must be at least"):
        Delays(**options).run(net([[1]]), Ledger())


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=6, unique_by=lambda one: one[0]),
    st.integers(1, 4),
)
def test_few_values_are_the_best(table: Any, most: int) -> None:
    values, mass = (np.array(column) for column in zip(*sorted(table), strict=True))
    found = few_values(values, mass.astype(float), most)
    assert len(np.unique(found)) <= most
    distance = lambda chosen: float((mass * np.abs(values[:, None] - np.array(chosen)).min(axis=1)).sum())
    best = min(
        distance(chosen) for count in range(1, min(most, len(values)) + 1) for chosen in combinations(values.tolist(), count)
    )
    assert float((mass * np.abs(values - found)).sum()) == best


@pytest.mark.parametrize("share", ["axonal", 1, 2, 3])
def test_shared_delays(share: Any) -> None:
    rng = np.random.default_rng(4)
    delay, weight = rng.integers(0, 9, (5, 6)), rng.normal(0.3, 0.5, (5, 6)).astype(F)
    x = random_spikes((8, 24, 6), 1)
    ledger = Ledger()
    after = Delays(share_delays=share, calibrate={"in": x}).run(net(delay, weight), ledger)
    found = after["a"]
    assert isinstance(found, Dense)
    if share == "axonal":
        assert found.delay is not None and is_axonal(found, (6,))
        for source in range(6):  # no other delay of the source is nearer, by weight
            cost = lambda d, source=source: float((np.abs(weight[:, source]) * np.abs(delay[:, source] - d)).sum())
            assert cost(found.delay[0, source]) == pytest.approx(min(cost(d) for d in range(9)))
    elif share == 1:
        assert found.delay is None and found.inputs[0].delay in delay
    else:
        assert found.delay is not None and len(np.unique(found.delay)) <= share
    (entry,) = [entry for entry in ledger if entry.kind == "approximation"]
    assert entry.asked == f"--share-delays {share}"
    assert any(entry.what.startswith("cost of the other delays") for entry in ledger)
    assert spikec.compile(after, target="host", bits=8).verify(x[:3], ["numpy", "c"]).ok


@pytest.mark.parametrize("share", [0, -1, "dendritic"])
def test_no_way_to_share(share: Any) -> None:
    with pytest.raises(CompileError) as caught:
        Delays(share_delays=share).run(net([[1, 2]]), Ledger())
    assert caught.value.diagnostics[0].code == "SPK001"


def test_sharing_from_the_command_line(tmp_path: Path) -> None:
    write_graph(net([[1, 4], [2, 4], [1, 5]]), tmp_path / "n.sir")
    for share, most in (("axonal", 2), ("1", 1)):
        command = ["compile", str(tmp_path / "n.sir"), "-o", str(tmp_path / "b"), "--target", "host", "--share-delays", share]
        assert main(command) == 0
        delay = spikec.load(tmp_path / "b").graph()["a"].delay
        assert len(np.unique(delay)) <= most if delay is not None else most == 1
