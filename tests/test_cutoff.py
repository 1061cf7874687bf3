"""An early answer: the same on every engine, within its budget, and the C engine stops there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from nets import F, dense, graph, leaky, spikes

import spikec
from spikec.cutoff import Cutoff, calibrate
from spikec.diagnostics import CompileError
from spikec.score import answers

OUTPUTS = arrays(np.int64, array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(-3, 3))


def by_hand(output: Any, margin: float) -> tuple[list[int], list[int]]:
    """The rule, one step after the other."""
    found: tuple[list[int], list[int]] = ([], [])
    for sample in output.tolist():
        sums = [0] * len(sample[0])
        for number, row in enumerate(sample):
            sums = [a + b for a, b in zip(sums, row, strict=True)]
            first, second = (*sorted(sums, reverse=True), 0)[:2]
            ahead = first - second if len(sums) > 1 else abs(first)
            if ahead >= margin or number == len(sample) - 1:
                found[0].append(sums.index(max(sums)))
                found[1].append(number + 1)
                break
    return found


@settings(deadline=None)
@given(OUTPUTS, st.integers(1, 6))
def test_the_rule(output: Any, margin: int) -> None:
    decision = Cutoff("o", margin, 0.0).decide(output)
    assert (decision.answers.tolist(), decision.steps.tolist()) == by_hand(output, margin)


@settings(deadline=None)
@given(OUTPUTS, st.sampled_from([0.0, 0.1, 0.5]), st.booleans())
def test_the_budget_holds_on_the_calibration_data(output: Any, budget: float, with_labels: bool) -> None:
    labels = np.arange(len(output)) % output.shape[2] if with_labels else None
    cutoff = calibrate(output, labels, "o", budget)
    found, final = cutoff.decide(output).answers, answers(output)
    lost = np.mean(found != final) if labels is None else np.mean(final == labels) - np.mean(found == labels)
    assert lost <= budget


def net() -> Any:
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(0, 0.8, (24, 16)).astype(F), rng.normal(0, 0.8, (4, 24)).astype(F)
    return graph(
        spikes((16,)), dense("a", "in", w1), leaky("l1", "a", 0.75), dense("b", "l1", w2), leaky("l2", "b", 0.75), out=["l2"]
    )


def data(samples: int = 60, seed: int = 1) -> Any:
    return (np.random.default_rng(seed).random((samples, 20, 16)) < 0.3).astype(F)


@pytest.mark.parametrize("target", ["host", "loihi2"])
def test_every_engine_gives_the_same_answer_after_the_same_steps(target: str, tmp_path: Path) -> None:
    options = {"bits": 8} if target == "host" else {}
    build = spikec.compile(net(), target=target, calibrate=data(), cutoff=0.05, **options)
    assert build.cutoff is not None
    (entry,) = [e for e in build.ledger if e.pass_name == "cutoff"]
    assert entry.measured["mean steps"] < entry.measured["of steps"] == 20
    assert entry.measured["answers changed"] <= 0.05
    build.save(tmp_path / "b")
    build = spikec.load(tmp_path / "b")
    x = data(40, 7)
    wanted = build.decide(x)
    for engine in ("numpy", "c"):
        found = build.decide(x, engine)
        np.testing.assert_array_equal(found.answers, wanted.answers)
        np.testing.assert_array_equal(found.steps, wanted.steps)
    assert wanted.mean_steps < 20
    whole = answers(build.run(x).outputs["l2"])
    assert np.mean(whole != wanted.answers) < 0.3


@pytest.mark.usefixtures("lava_env")
def test_lava_too() -> None:
    build = spikec.compile(net(), target="loihi2", calibrate=data(), cutoff=0.05)
    x = data(10, 7)
    wanted, found = build.decide(x), build.decide(x, "lava")
    np.testing.assert_array_equal(found.answers, wanted.answers)
    np.testing.assert_array_equal(found.steps, wanted.steps)


def test_membranes_and_a_single_class() -> None:
    from spikec.ir.ops import Ref

    for classes in (1, 3):
        w = np.random.default_rng(0).normal(0, 0.8, (classes, 16)).astype(F)
        g = graph(spikes((16,)), dense("a", "in", w), leaky("l", "a", 0.75, 1e9), out=[("v", Ref("l", "v"))])
        build = spikec.compile(g, target="host", bits=8, calibrate=data(), cutoff=0.1)
        wanted, found = build.decide(data(20, 3)), build.decide(data(20, 3), "c")
        np.testing.assert_array_equal(found.answers, wanted.answers)
        np.testing.assert_array_equal(found.steps, wanted.steps)


def test_bad_options() -> None:
    for options, text in (
        ({"cutoff": 0.1}, "cutoff needs calibration data"),
        ({"cutoff": 1.0, "calibrate": data()}, "from 0 up to but without 1"),
    ):
        with pytest.raises(CompileError, match=text):
            spikec.compile(net(), target="host", bits=8, **options)
    with pytest.raises(CompileError, match="the build has no cutoff"):
        spikec.compile(net(), target="host", bits=8).decide(data())


def test_a_build_that_is_compiled_again_keeps_its_cutoff() -> None:
    """With calibration data; without, its margin cannot be chosen, and the ledger says so."""
    x = (np.random.default_rng(3).random((30, 20, 16)) < 0.4).astype(F)
    build = spikec.compile(net(), target="reference", calibrate=x, cutoff=0.1)
    again = spikec.compile(build, calibrate=x)
    assert again.cutoff == build.cutoff and again.options["cutoff"] == 0.1
    assert spikec.compile(build, calibrate=x, cutoff=0.0).options["cutoff"] == 0.0
    without = spikec.compile(build)
    assert without.cutoff is None and any("cutoff=0.1 is left out" in entry.what for entry in without.ledger)
