"""An early answer: the same on every engine, within its budget, and the C engine stops there."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from nets import F, dense, graph, leaky, spikes

import spikec
from spikec.cutoff import Cutoff, calibrate, calibrate_steps
from spikec.diagnostics import CompileError
from spikec.inputs import drawn, thinned
from spikec.score import answers

OUTPUTS = arrays(np.int64, array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(-3, 3))


def by_hand(output: Any, margin: Any) -> tuple[list[int], list[int]]:
    """The rule, one step after the other."""
    found: tuple[list[int], list[int]] = ([], [])
    for sample in output.tolist():
        sums = [0] * len(sample[0])
        for number, row in enumerate(sample):
            sums = [a + b for a, b in zip(sums, row, strict=True)]
            first, second = (*sorted(sums, reverse=True), 0)[:2]
            ahead = first - second if len(sums) > 1 else abs(first)
            enough = margin if isinstance(margin, int) else margin[min(number, len(margin) - 1)]
            if ahead >= enough or number == len(sample) - 1:
                found[0].append(sums.index(max(sums)))
                found[1].append(number + 1)
                break
    return found


@settings(deadline=None)
@given(OUTPUTS, st.integers(1, 6) | st.lists(st.integers(0, 6), min_size=1, max_size=9).map(tuple))
def test_the_rule(output: Any, margin: Any) -> None:
    decision = Cutoff("o", margin, 0.0).decide(output)
    assert (decision.answers.tolist(), decision.steps.tolist()) == by_hand(output, margin)


@settings(deadline=None)
@given(OUTPUTS.filter(lambda output: output.shape[2] > 1), st.sampled_from([0.0, 0.1, 0.5]), st.booleans())
def test_the_budget_holds_on_the_calibration_data(output: Any, budget: float, with_labels: bool) -> None:
    labels = np.arange(len(output)) % output.shape[2] if with_labels else None
    cutoff = calibrate(output, labels, "o", budget)
    found, final = cutoff.decide(output).answers, answers(output)
    lost = np.mean(found != final) if labels is None else np.mean(final == labels) - np.mean(found == labels)
    assert lost <= budget
    margins = cutoff.margins(output.shape[1])
    assert len(margins) == output.shape[1] and not np.any(np.diff(margins[np.isfinite(margins)]) > 0)
    assert cutoff == Cutoff.of_json(json.loads(json.dumps(cutoff.as_json())))


@settings(deadline=None)
@given(OUTPUTS.filter(lambda output: output.shape[2] > 1), st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 99))
def test_the_budget_holds_with_less_input_too(output: Any, budget: float, seed: int) -> None:
    labels = np.arange(len(output)) % output.shape[2]
    rng = np.random.default_rng(seed)
    harder = [output * (rng.random(output.shape) < 0.8) for _ in range(2)]
    cutoff = calibrate(output, labels, "o", budget, harder)
    for each in (output, *harder):
        assert np.mean(answers(each) == labels) - np.mean(cutoff.decide(each).answers == labels) <= budget
    assert cutoff.decide(output).mean_steps >= calibrate(output, labels, "o", budget).decide(output).mean_steps


@settings(deadline=None)
@given(
    OUTPUTS.filter(lambda output: output.shape[2] > 1),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    st.integers(0, 99),
    st.booleans(),
)
def test_a_share_of_the_steps_is_kept_to_with_the_least_loss(output: Any, share: float, seed: int, with_labels: bool) -> None:
    """No more steps than asked for; and neither a constant margin that takes as few, nor all answers after the last of these steps,
    lose less, or as little where more steps are taken."""
    steps = output.shape[1]
    share = max(share, 1 / steps)
    labels = np.arange(len(output)) % output.shape[2] if with_labels else None
    harder = [output * (np.random.default_rng(seed).random(output.shape) < 0.8)]

    def lost(margin: Cutoff) -> int:
        right = [answers(each) if labels is None else labels for each in (output, *harder)]
        pairs = zip((output, *harder), right, strict=True)
        return sum(int(np.sum(answers(each) == y) - np.sum(margin.decide(each).answers == y)) for each, y in pairs)

    found = calibrate_steps(output, labels, "o", share, harder)
    assert found == Cutoff.of_json(json.loads(json.dumps(found.as_json()))) and found.asked == f"--cutoff-steps {share:g}"
    taken = found.decide(output).mean_steps
    assert taken <= share * steps
    fitting = [one for m in range(3 * steps + 1) if (one := Cutoff("o", m, None)).decide(output).mean_steps <= share * steps]
    most = max(fitting, key=lambda one: one.margin if isinstance(one.margin, int) else 0)
    fixed = Cutoff("o", (*(math.inf,) * (int(share * steps + 1e-9) - 1), 0.0), None)
    assert lost(found) <= lost(fixed)
    if most.margin:
        assert lost(found) < lost(most) or (lost(found) == lost(most) and taken >= most.decide(output).mean_steps)
    if share == 1:
        assert not found.early and taken == steps


def test_a_share_of_the_steps_asks_for_a_step() -> None:
    output = np.zeros((4, 10, 2), np.int64)
    for share in (0.09, 1.01, 1.1, -1.0, float("nan"), float("inf")):
        with pytest.raises(CompileError, match=r"at most 1 and at least 1/10, not .*: there are 10"):
            calibrate_steps(output, None, "o", share)
    assert calibrate_steps(output, None, "o", 0.1).decide(output).mean_steps == 1
    assert calibrate_steps(output, None, "o", 0.57).decide(output).mean_steps == 5, "nothing leads: as late as may be"
    assert calibrate_steps(np.zeros((4, 49, 2), np.int64), None, "o", 1 / 49).decide(output).mean_steps == 1


def test_the_fewest_answers_in_half_of_the_steps(tmp_path: Path) -> None:
    """From the options to the emitted C, and when it is compiled again."""
    x = data()
    build = spikec.compile(net(), target="host", bits=8, calibrate=x, cutoff_steps=0.5)
    (entry,) = [e for e in build.ledger if e.pass_name == "cutoff"]
    assert entry.asked == "--cutoff-steps 0.5" and 5 < entry.measured["mean steps"] <= 10
    assert build.decide(x).mean_steps == entry.measured["mean steps"]
    build.save(tmp_path / "build")
    assert "from --cutoff-steps 0.5." in (tmp_path / "build" / "c" / "cutoff.h").read_text()
    kept = spikec.load(tmp_path / "build")
    assert kept.cutoff == build.cutoff
    again = spikec.compile(kept, calibrate=x)
    assert again.cutoff == build.cutoff and again.options["cutoff_steps"] == 0.5
    other = spikec.compile(kept, calibrate=x, cutoff=0.1)
    assert other.options["cutoff"] == 0.1 and "cutoff_steps" not in other.options
    without = spikec.compile(kept)
    assert without.cutoff is None and any("cutoff_steps=0.5 is left out" in entry.what for entry in without.ledger)
    whole = spikec.compile(net(), target="host", bits=8, calibrate=x, cutoff_steps=1.0)
    (entry,) = [e for e in whole.ledger if e.pass_name == "cutoff"]
    assert entry.what.startswith("answers are given after the whole run (") and whole.decide(x).mean_steps == 20


@pytest.mark.parametrize(("share", "step"), [(0.5, 10), (0.05, 1)])
def test_where_nothing_leads_answers_come_after_a_step(share: float, step: int, tmp_path: Path) -> None:
    """A margin of 0 would answer after the first step, whatever was allowed."""
    x = np.zeros((4, 20, 16), F)
    build = spikec.compile(net(), target="host", bits=8, calibrate=x, cutoff_steps=share)
    (entry,) = [e for e in build.ledger if e.pass_name == "cutoff"]
    assert entry.what.startswith(f"answers are given after step {step}, whatever leads")
    seen = data()
    folder = emitted(build, tmp_path / "build")
    given = told(seen, build.graph().max_lag)
    done = subprocess.run(["./network", "--answers"], cwd=folder, input=given, capture_output=True, text=True, check=False)
    program = [int(line.split()[2]) for line in done.stdout.splitlines()]
    assert program == [step] * len(seen), done.stderr
    for engine in ("reference", "numpy", "c"):
        assert (build.decide(seen, engine).steps == step).all()


def test_answers_that_hang_on_a_spike_come_later() -> None:
    """In the samples themselves the first lead is never wrong; with less input it is."""
    output = np.zeros((100, 10, 2), np.int64)
    output[:, 0, 0] = output[:, 4:, 0] = 1
    labels = np.zeros(100, np.int64)
    harder = output.copy()
    harder[:10, 0] = [0, 1]
    assert calibrate(output, labels, "o", 0.01).decide(output).mean_steps == 1
    assert calibrate(output, labels, "o", 0.01, [harder]).decide(output).mean_steps > 4
    given = {"in": np.ones((40, 5, 100), np.int8)}
    found = thinned(given)["in"]
    assert found.dtype == np.int8 and 0.88 < found.mean() < 0.92
    draws = [each["in"] for each in drawn(given)]
    assert len({draw.tobytes() for draw in draws}) == 4
    easy = output.copy()  # what one draw allows, another does not
    assert calibrate(output, labels, "o", 0.01, [easy, harder]) == calibrate(output, labels, "o", 0.01, [harder])


def test_a_cutoff_is_calibrated_on_every_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    from spikec import driver

    seen: list[Any] = []
    monkeypatch.setattr(driver, "calibrate_cutoff", lambda *args: seen.append(args) or calibrate(*args))
    spikec.compile(net(), target="host", bits=8, calibrate=data(), cutoff=0.1)
    ((output, _, _, _, harder),) = seen
    assert len({each.tobytes() for each in (output, *harder)}) == 5


def test_late_steps_need_less_of_a_lead() -> None:
    """Wrong classes lead by 3 early on, and no step is sure before the end; late leads of 1 are right."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    output = np.zeros((400, 20, 2), np.int64)
    early, rows = rng.random(400) < 0.5, np.arange(400)
    output[rows[early, None], np.arange(3), 1 - labels[early, None]] = 1  # three for the wrong one, then five for the right one
    output[rows[early, None], np.arange(8, 13), labels[early, None]] = 1
    output[rows[~early], 12, labels[~early]] = 1
    cutoff = calibrate(output, labels, "o", 0.0)
    assert isinstance(cutoff.margin, tuple) and "at first and" in cutoff.text()
    decision = cutoff.decide(output)
    assert (decision.answers == labels).all()
    one = min(
        (Cutoff("o", m, 0.0).decide(output) for m in (1, 2, 3, 4, 5, 6)), key=lambda d: (np.mean(d.answers != labels), d.mean_steps)
    )
    assert decision.mean_steps < one.mean_steps


def test_a_budget_leaves_room_for_the_error_of_the_estimate() -> None:
    """One answer lost of 100 is an estimate of 1 point, give or take 1: too much for a budget of 1 point, not for one of 2."""
    output = np.zeros((100, 10, 2), np.int64)
    output[:, 0, 0] = 1
    output[0, 5:, 1] = 1
    labels = np.zeros(100, np.int64)
    labels[0] = 1
    assert calibrate(output, labels, "o", 0.01).decide(output).answers[0] == 1
    assert calibrate(output, labels, "o", 0.02).decide(output).mean_steps == 1


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
    for margin in (2, (9, 4, 3, 2), tuple(range(12, -8, -1))):  # shorter than the run, and as long
        build.cutoff = Cutoff("l2", margin, 0.0)
        wanted, found = build.decide(x), build.decide(x, "c")
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
        build = spikec.compile(g, target="host", bits=8, calibrate=data(), **({"cutoff": 0.1} if classes > 1 else {}))
        build.cutoff = build.cutoff or Cutoff("v", 1_000_000, 0.1)
        wanted, found = build.decide(data(20, 3)), build.decide(data(20, 3), "c")
        np.testing.assert_array_equal(found.answers, wanted.answers)
        np.testing.assert_array_equal(found.steps, wanted.steps)


def test_one_value_is_no_choice() -> None:
    """The answer would be 0 after one step, whatever the input."""
    g = graph(spikes((16,)), dense("a", "in", np.ones((1, 16), F)), leaky("l", "a", 0.75), out=["l"])
    with pytest.raises(CompileError, match="the output l has one value: nothing to choose from"):
        spikec.compile(g, target="host", bits=8, calibrate=data(), cutoff=0.1)


def test_labels_of_a_cutoff() -> None:
    x, rng = data(), np.random.default_rng(0)
    y = rng.integers(0, 4, len(x))
    options: dict[str, Any] = {"target": "host", "bits": 8, "calibrate": x, "cutoff": 0.1}
    with pytest.raises(CompileError, match="these labels ask for one at every step"):
        spikec.compile(net(), **options, labels=np.repeat(y[:, None], 20, axis=1))
    build = spikec.compile(net(), **options, labels=y)
    (entry,) = [e for e in build.ledger if e.pass_name == "cutoff"]
    assert entry.measured["accuracy"] >= entry.measured["accuracy of the whole run"] - 0.1
    (entry,) = [e for e in spikec.compile(net(), **options).ledger if e.pass_name == "cutoff"]
    assert "no labels" in entry.what and "accuracy" not in entry.measured
    # Samples that do not count change nothing.
    output = build.run(x).outputs["l2"]
    more, unknown = np.concatenate([output, output[::-1]]), np.concatenate([y, np.full(len(y), -1)])
    assert calibrate(more, unknown, "l2", 0.1) == calibrate(output, y, "l2", 0.1)


def test_where_nothing_leads_the_ledger_says_that_no_answer_is_early() -> None:
    """A silent output: no margin was ever reached, and "leads by inf" would tell nobody anything."""
    build = spikec.compile(net(), target="host", bits=8, calibrate=np.zeros((4, 20, 16), F), cutoff=0.1)
    assert build.cutoff is not None and not build.cutoff.early
    (entry,) = [e for e in build.ledger if e.pass_name == "cutoff"]
    assert "after the whole run" in entry.what and "inf" not in entry.what
    assert build.decide(data()).mean_steps == 20


def test_samples_that_are_all_answered_right_may_have_been_learnt() -> None:
    """The network is surer of them than of others: answers as early as theirs cost other samples more than the share asked for."""
    x = data()
    right = answers(spikec.compile(net(), target="host", bits=8, calibrate=x).run(x).outputs["l2"])
    wrong = np.where(np.arange(len(x)) < len(x) // 10, (right + 1) % 4, right)
    for labels, told in ((right, True), (wrong, False), (None, False)):
        build = spikec.compile(net(), target="host", bits=8, calibrate=x, labels=labels, cutoff=0.1)
        (entry,) = [e for e in build.ledger if e.pass_name == "cutoff"]
        assert ("calibrate on samples that it has not learnt" in entry.what) is told


def test_bad_options() -> None:
    for options, text in (
        ({"cutoff": 0.1}, "cutoff needs calibration data"),
        ({"cutoff": 1.0, "calibrate": data()}, "from 0 up to but without 1"),
        ({"cutoff_steps": 0.5}, "cutoff_steps needs calibration data"),
        ({"cutoff_steps": 0.01, "calibrate": data()}, "at least 1/20, not 0.01: there are 20"),
        ({"cutoff": 0.1, "cutoff_steps": 0.5, "calibrate": data()}, "both are asked for"),
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


def emitted(build: Any, folder: Path) -> Path:
    build.save(folder)
    done = subprocess.run(["make"], cwd=folder / "c", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "c"


def told(x: Any, lag: int) -> str:
    """Samples in the words of main.c, with as many silent steps behind them as the answers are late."""
    lines = ["spk 1"]
    for sample in x:
        lines.append("sample")
        for row in sample:
            lines += ["step", "in in " + " ".join(map(str, np.flatnonzero(row)))]
        lines += ["step"] * lag
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("cutoff", [0.1, 0.0, None])
def test_the_emitted_program_answers_as_every_engine_does(cutoff: float | None, tmp_path: Path) -> None:
    x = data()
    build = spikec.compile(net(), target="host", bits=8, calibrate=x, cutoff=cutoff)
    folder = emitted(build, tmp_path / "build")
    lag = build.graph().max_lag
    done = subprocess.run(["./network", "--answers"], cwd=folder, input=told(x, lag), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.array([line.split()[1:] for line in done.stdout.splitlines()], np.int64)
    if cutoff is None:
        np.testing.assert_array_equal(found[:, 0], answers(build.run(x).outputs["l2"]))
        assert (found[:, 1] == x.shape[1]).all()
    else:
        wanted = build.decide(x, "reference")
        np.testing.assert_array_equal(found, np.stack([wanted.answers, wanted.steps], axis=1))
        assert cutoff == 0.0 or wanted.mean_steps < x.shape[1]


def test_the_golden_samples_have_their_answers(tmp_path: Path) -> None:
    build = spikec.compile(net(), target="host", bits=8, calibrate=data(), cutoff=0.1)
    folder = emitted(build, tmp_path / "build")
    golden = (folder / "golden.txt").read_text()
    lines = re.findall(r"^answer (\d+) (\d+)$", golden, re.MULTILINE)
    wanted = build.decide(build.golden)
    assert lines == [(str(a), str(b)) for a, b in zip(wanted.answers, wanted.steps, strict=True)]
    for goal in ("check", "sanitize"):
        done = subprocess.run(["make", goal], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for wrong in (f"answer {int(lines[0][0]) + 1} {lines[0][1]}", f"answer {lines[0][0]} {int(lines[0][1]) + 1}"):
        (folder / "other.txt").write_text(golden.replace("answer {} {}".format(*lines[0]), wrong, 1))
        done = subprocess.run(["./network", "--check", "other.txt"], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and f"answer {lines[0][0]} after {lines[0][1]} steps, expected" in done.stderr
    given = subprocess.run(["./network", "--answers", "golden.txt"], cwd=folder, capture_output=True, text=True, check=False)
    assert given.stdout.splitlines() == [f"answer {a} {b}" for a, b in lines]


def test_sums_of_floats_give_no_answers(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(0, 0.8, (4, 16)).astype(F)
    values = graph(spikes((16,)), dense("a", "in", weight), out=["a"])
    folder = emitted(spikec.compile(values, target="host", calibrate=data()), tmp_path / "values")
    done = subprocess.run(["./network", "--answers", "golden.txt"], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "--answers: the network has no output of integers to answer with: compile with --bits 8\n"
