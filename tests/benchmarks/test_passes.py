"""`make bench-passes`: losses are paired, what is missed is told, finished rows are kept, and what the ledger does not list counts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import tasks  # noqa: E402 - the path comes first

import passes  # noqa: E402 - the path comes first
import spikec  # noqa: E402 - the path comes first


def outcome(lost: int, gained: int, **figures: float) -> passes.Found:
    """Of 100 answers some lost and some gained; 90 were right."""
    before = np.arange(100) < 90
    after = before.copy()
    after[:lost] = False
    after[90 : 90 + gained] = True
    return passes.Found(before, after, figures)


def test_loss_is_net_and_has_an_interval_around_it() -> None:
    row = passes.Row("x", 1.0, {}, [outcome(3, 1), outcome(1, 1), outcome(2, 2)])
    mean, low, high = row.loss()
    assert mean == pytest.approx(2 / 3)
    assert low < mean < high
    assert high - low > 1
    same = passes.Row("x", 0.0, {}, [outcome(0, 0)])
    assert same.loss() == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("limit", "most", "met"),
    [(1.0, {}, True), (0.5, {}, False), (1.0, {"bytes": 0.3}, True), (1.0, {"bytes": 0.2}, False), (None, {}, None)],
)
def test_a_row_is_met_when_loss_and_figures_are(limit: float | None, most: dict[str, float], met: bool | None) -> None:
    row = passes.Row("x", limit, most, [outcome(1, 0, bytes=0.25), outcome(2, 1, bytes=0.25)])
    assert row.met() is met
    assert ("**no**" in row.text("digits")) is (met is False)


def test_the_table_counts_what_is_demanded_and_missed_and_names_what_does_not_apply(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    none = passes.Found(outcome(0, 0).before, outcome(0, 0).before, reason="does not apply: why")
    rows = {"8bits": outcome(1, 0, bytes=0.25), "pruned": outcome(0, 0, bytes=0.1, time=0.5), "early": none}
    text, demanded, missed = passes.table(["a"], ["8bits", "pruned", "early"], {("a", 0): (outcome(0, 0).before, rows)})
    assert (demanded, missed) == (2, 1)
    lines = text.splitlines()
    assert lines[2].startswith("| a | float, 1 seeds | 90.00 %")
    assert "+1.00" in lines[3] and lines[3].endswith("| **no** |")
    assert "bytes 0.1 (≤ 0.15)" in lines[4] and lines[4].endswith("| yes |")
    assert "does not apply: why" in lines[5]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{passes.BEGIN}\nold\n{passes.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(passes, "PAGE", page)
    passes.write(text)
    assert page.read_text(encoding="utf-8") == f"before\n{passes.BEGIN}\n{text}\n{passes.END}\nafter\n"


def bench() -> Any:
    rng = np.random.default_rng(0)
    x, y = (rng.random((40, 6, 8)) < 0.4).astype(np.uint8), rng.integers(0, 3, 40)
    graph = tasks.feedforward([8, 12, 3], 0, 0.9)
    split = tasks.Split(x, y)
    return passes.Bench(tasks.Task("tiny", split, split, lambda seed: graph, 1), 1)


def test_a_finished_row_is_kept_until_what_decides_it_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tasks, "KEPT", tmp_path)
    made = []

    def measure(one: Any) -> passes.Found:
        made.append(one)
        return outcome(1, 0, bytes=0.5)

    monkeypatch.setattr(passes, "ROWS", {"8bits": ("x", None, {}, measure)})
    monkeypatch.setattr(passes.inspect, "getsource", lambda _: "measure")
    first, again = passes.measured(bench(), "8bits"), passes.measured(bench(), "8bits")
    assert len(made) == 1
    np.testing.assert_array_equal(first.after, again.after)
    assert again.figures == {"bytes": 0.5}
    other = bench()
    other.task = replace(other.task, epochs=2)
    passes.measured(other, "8bits")
    assert len(made) == 2
    passes.measured(other, "8bits", again=True)
    assert len(made) == 3
    other.task = replace(other.task, whole=0.5)
    passes.measured(other, "8bits")
    assert len(made) == 4


def test_what_is_kept_makes_a_table_and_the_rest_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks, "KEPT", tmp_path)
    one = bench()
    passes.measured(one, "8bits")
    found = passes.latest([("tiny", seed, ["8bits", "pruned"]) for seed in range(2)])
    assert list(found) == [("tiny", 1)]
    np.testing.assert_array_equal(found["tiny", 1][0], one.right)
    assert list(found["tiny", 1][1]) == ["8bits"]
    assert "tiny, seed 1: pruned is not measured yet" in capsys.readouterr().err


def test_a_tenth_of_the_synapses_is_left_whatever_share_of_the_neurons_goes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes.Bench, "recover", lambda self, build: build)
    for whole, most in ((None, 12), (0.5, 6)):
        one = bench()
        one.task = replace(one.task, whole=whole)
        assert passes.synapses(one.pruned.graph()) <= round(0.1 * passes.synapses(one.graph))
        assert passes.hidden(one.pruned.graph()) <= most


def test_where_test_samples_are_few_there_are_more_seeds() -> None:
    units = passes.units_of(["digits", "spoken"], ["8bits", "pruned"], None, 0)
    assert [unit[:2] for unit in units[:4]] == [("digits", 0), ("spoken", 0), ("digits", 1), ("spoken", 1)]
    assert sum("pruned" in rows for _, _, rows in units) == 3 + 6 and sum("8bits" in rows for _, _, rows in units) == 3 + 10
    assert passes.units_of(["spoken"], ["pruned"], 2, 10) == [("spoken", 10, ["pruned"]), ("spoken", 11, ["pruned"])]


def test_a_task_says_how_many_neurons_go_where_answers_come_early() -> None:
    for fewer, left in ((0.5, 6), (0.25, 9)):
        one = bench()
        one.task = replace(one.task, fewer=fewer)
        assert passes.hidden(one.fewer.graph()) == left
        assert passes.both(one).figures["neurons"] == left / 12


def test_neurons_are_halved_where_they_run_and_time_falls() -> None:
    one = bench()
    half = one.compile(bits=8, prune_structured=0.5)
    for engine in ("reference", "numpy", "c"):
        assert passes.hidden_that_ran(half, one.task.test.x[:2], engine) == 6
    assert passes.hidden(one.graph) == 12
    assert 0 < passes.time_ratio(half, one.plain, one.task.test.x) < 5
    assert passes.size_ratio(half, one.graph) < passes.size_ratio(one.plain, one.graph)


def test_half_of_the_steps_is_half_of_the_steps_where_it_runs() -> None:
    one = bench()
    found = passes.shorter(one)
    assert found.figures["steps"] == 0.5
    build = one.compile(bits=8, steps_to=3)
    assert build.run(one.task.test.x, "c").outputs["lif2"].shape[1] == 3


def test_windows_say_how_much_is_left_to_do() -> None:
    one = bench()
    x = one.task.train.x.copy()
    x[:, 3:] = 0
    one.calibration = {"calibrate": x, "labels": one.task.train.y}
    found = passes.windows(one)  # nothing is sent in the second half of what it is calibrated on
    assert 0 < found.figures["operations"] < 0.9
    assert len(found.after) == 40


def test_rows_of_delays() -> None:
    assert passes.rows_of("spoken", ["8bits", "windows", "delay-step"]) == ["8bits", "windows"]
    assert passes.rows_of("spoken-delays", ["8bits", "windows", "delay-step"]) == ["8bits", "delay-step"]
    one = bench()
    one.graph = tasks.with_delays(one.graph, "fc1", 7, 3)
    found = {key: passes.ROWS[key][3](one).figures for key in passes.DELAYS}
    assert found["delay-step"]["delays"] == 4 and found["delay-step"]["longest"] == 6
    assert found["delay-share"]["delays"] <= 4
    assert found["delay-short"]["longest"] == 3 and found["delay-short"]["memory"] < 1
    assert found["delay-axonal"]["delays"] <= 8
    assert passes.delay_values(one.graph) == list(range(8))


def test_pictures_are_moved_by_one_place_each_way() -> None:
    pictures = np.zeros((1, 2, 3, 3), np.uint8)
    pictures[0, :, 1, 1], pictures[0, 1, 0, 2] = 1, 1
    moved = tasks._moved(tasks.Split(pictures.reshape(1, 2, 9), np.array([4])), 3)
    assert moved.x.shape == (5, 2, 9) and moved.y.tolist() == [4] * 5
    at = [tuple(map(tuple, np.argwhere(one[1].reshape(3, 3)))) for one in moved.x]
    assert at == [((0, 2), (1, 1)), ((0, 1),), ((1, 2), (2, 1)), ((0, 1), (1, 0)), ((1, 2),)]


def test_nothing_changes_by_surprise() -> None:
    found = passes.unasked(bench())
    assert found.figures == {"host": 0, "loihi2": 0}


def test_the_given_network_of_integers_as_floats_fires_nearly_the_same() -> None:
    if not (tasks.DATA / "lavadl_mnist_cuba").is_dir():
        pytest.skip(f"{tasks.DATA / 'lavadl_mnist_cuba'} is not there")
    from spikec.frontend.slayer import read_net

    fixed = read_net(tasks.DATA / "lavadl_mnist_cuba" / "trained_mnist_network.net", delay_shift=False)
    x = (np.random.default_rng(0).random((8, 20, 784)) < 0.05).astype(np.int8)
    one = spikec.compile(fixed, target="host").run(x, "numpy", record="all").records["layer0"]
    two = spikec.compile(tasks.cuba_network(), target="host").run(x, "numpy", record="all").records["layer0"]
    assert one.sum() > 100
    assert np.count_nonzero(one != two) < 0.02 * one.sum()


def test_settings_are_chosen_on_training_samples_alone() -> None:
    """The fifths that `--validate` tests on are apart, make up the training samples, and are not among what is learnt from."""
    x = np.arange(23, dtype=np.uint8).reshape(23, 1, 1)
    whole = tasks.Split(x, np.arange(23) % 3)
    tested = []
    for fold in range(tasks.FOLDS):
        learnt, held_out = tasks.fold_of(whole, fold)
        assert not set(learnt.x.ravel()) & set(held_out.x.ravel())
        assert len(learnt.y) + len(held_out.y) == 23
        assert np.array_equal(held_out.y, held_out.x.ravel() % 3)
        tested += list(held_out.x.ravel())
    assert sorted(tested) == list(range(23))


def test_recordings_that_follow_one_another_are_held_out_together() -> None:
    """Neighbours of what is learnt are as easy; the test samples are the first recordings, which have none on one side."""
    turn = np.tile(np.arange(5, 50), 4)
    whole = tasks.Split(np.arange(len(turn)).reshape(-1, 1, 1), np.repeat(np.arange(4), 45), turn)
    for fold in range(tasks.FOLDS):
        _, held_out = tasks.fold_of(whole, fold)
        assert sorted(turn[held_out.x.ravel()]) == sorted(np.tile(np.arange(5 + 9 * fold, 14 + 9 * fold), 4))
        assert np.array_equal(np.bincount(held_out.y), [9, 9, 9, 9])
