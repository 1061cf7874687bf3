"""Search: the front is one, its builds score what is said, it resumes, and the same seed gives the same trials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, spikes

import spikec
from spikec.cli import main
from spikec.diagnostics import CompileError
from spikec.ir.text import write_graph
from spikec.tuning import FIGURES, Trial, Tuning, _Lock, _shown, front_of, measured, tune

CLASSES, INPUTS = 4, 16


def task(samples: int = 80, seed: int = 1) -> tuple[Any, Any]:
    """Four rate patterns, and the network that has one detector for each of them."""
    patterns = np.random.default_rng(0).random((CLASSES, INPUTS)) < 0.5
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, samples)
    rates = np.where(patterns[labels], 0.5, 0.1)
    return (rng.random((samples, 12, INPUTS)) < rates[:, None, :]).astype(F), labels


def net() -> Any:
    rng = np.random.default_rng(2)
    patterns = np.random.default_rng(0).random((CLASSES, INPUTS)) < 0.5
    detect = np.repeat(np.where(patterns, 0.3, -0.3), 4, axis=0) + rng.normal(0, 0.05, (4 * CLASSES, INPUTS))
    join = np.repeat(np.eye(CLASSES), 4, axis=1) * 0.6 + rng.normal(0, 0.02, (CLASSES, 4 * CLASSES))
    return graph(
        spikes((INPUTS,)), dense("a", "in", detect.astype(F)), leaky("l1", "a", 0.75), dense("b", "l1", join.astype(F)), leaky("l2", "b", 0.75), out=["l2"]
    )  # fmt: skip


def search(folder: Path, **more: Any) -> Any:
    x, y = task()
    return tune(net(), data=x, labels=y, output=folder, **{"target": "host", "trials": 6, "bits": (8, 4), **more})


@pytest.fixture(scope="module")
def found(tmp_path_factory: Any) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("tune") / "out"
    return folder, search(folder)


def test_a_front_and_its_files(found: tuple[Path, Any]) -> None:
    folder, result = found
    assert len(result.trials) == 6 and result.samples == 24
    for trial in result.front:
        for other in result.trials:
            mine, its = ((-t.score, t.figures["bytes"], t.figures["operations"]) for t in (trial, other))
            assert not (all(a <= b for a, b in zip(its, mine, strict=True)) and its != mine)
        assert trial.folder is not None and (trial.folder / "manifest.json").is_file()
    told = json.loads((folder / "front.json").read_text())
    assert told["front"] == [trial.number for trial in result.front]
    assert (folder / "front.txt").read_text() == result.text() + "\n"
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG") and b"<svg" in (folder / "front.svg").read_bytes()
    # A build stays only where some budget might ask for it.
    kept = {trial.number for trial in front_of(result.trials, FIGURES)}
    assert {int(place.name) for place in (folder / "builds").iterdir()} == kept


def test_a_build_scores_what_is_said(found: tuple[Path, Any]) -> None:
    """Against the reference, counted anew: the held-out samples are the first of the seed's permutation."""
    _, result = found
    x, y = task()
    check = np.sort(np.random.Generator(np.random.PCG64(0)).permutation(len(y))[:24])
    for trial in result.front:
        build = spikec.load(trial.folder)
        run = build.run(x[check], "reference", "all")
        output = run.outputs["l2"]
        found_answers = build.cutoff.decide(output).answers if build.cutoff else output.sum(1).argmax(1)
        assert trial.score == pytest.approx(np.mean(found_answers == y[check]))
        assert trial.figures["bytes"] == build.memory().constants
        if build.cutoff is None:
            whole = sum(item.synaptic_operations for item in run.counts.values())
            assert trial.figures["operations"] == pytest.approx(whole / 24)
        else:
            assert trial.figures["steps"] == pytest.approx(build.decide(x[check]).mean_steps)
        assert trial.options["bits"] in (8, 4)


def test_interrupted_and_whole_are_the_same(found: tuple[Path, Any], tmp_path: Path) -> None:
    _, whole = found
    search(tmp_path / "s", trials=3)
    again = search(tmp_path / "s")
    assert [(t.options, t.score, t.figures) for t in again.trials] == [(t.options, t.score, t.figures) for t in whole.trials]
    with pytest.raises(CompileError, match="holds another search: seed 0, not 5") as caught:
        search(tmp_path / "s", seed=5)
    assert caught.value.diagnostics[0].code == "SPK001"


def test_a_budget(found: tuple[Path, Any]) -> None:
    """The same trials under another budget: only those that meet it, or the nearest is named."""
    folder, whole = found
    limit = float(np.median([trial.figures["bytes"] for trial in whole.trials]))
    within = search(folder, budget={"bytes": limit})
    assert within.front and all(trial.figures["bytes"] <= limit for trial in within.front)
    assert all(trial.folder is not None for trial in within.front)
    with pytest.raises(CompileError, match=r"none of 6 trials meets the budget; the nearest is trial \d+ .* bytes of 1") as caught:
        search(folder, budget={"bytes": 1}, min_score=0.01)
    assert caught.value.diagnostics[0].code == "SPK219"


def test_several_processes(tmp_path: Path) -> None:
    result = search(tmp_path / "s", jobs=2, trials=3)
    assert len(result.trials) >= 3 and result.front
    assert not (tmp_path / "s" / "data.npz").exists()


def test_recovery_takes_part(tmp_path: Path) -> None:
    result = search(tmp_path / "s", trials=2, epochs=(1,), cutoffs=(0.05,), prune=0.5, prune_structured=0.0, bits=(4,))
    build = spikec.load(result.best.folder)
    assert "recover" in build.stage_names and build.cutoff is not None


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    x, y = task()
    write_graph(net(), tmp_path / "net.sir")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    np.savez(tmp_path / "plain.npz", x=x)
    line = ["tune", str(tmp_path / "net.sir"), "--target", "host", "--trials", "2", "--bits", "8", "-o", str(tmp_path / "s")]
    assert main([*line, "--calibrate", str(tmp_path / "data.npz"), "--budget", "bytes=1M", "--budget", "steps=12"]) == 0
    assert "2 trials on 24 held-out samples; bytes <= 1048576, steps <= 12" in capsys.readouterr().out
    assert main([*line, "--calibrate", str(tmp_path / "data.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 24
    assert main([*line, "--calibrate", str(tmp_path / "plain.npz")]) == 1
    assert "tune needs labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"budget": {"byte": 4}}, "a budget has no 'byte'"),
        ({"budget": {"bytes": 0}}, "the budget of bytes must be above 0"),
        ({"min_score": 1.5}, "min_score is a share"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"held_out": 1.0}, "held_out is a share"),
        ({"prune": 1.0}, "prune is a share"),
        ({"cutoffs": ()}, "cutoffs are shares"),
        ({"epochs": (-1,)}, "epochs must be 0 or more"),
        ({"bits": ()}, "at least one width"),
        ({"bits": (40,)}, "40 bits: a weight has 2 to 16 on host"),
        ({"min_score": 90}, r"min_score is a share above 0 and up to 1, not 90\n.*0.9 for 90 %"),
    ],
)
def test_errors(more: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=message):
        search(tmp_path / "s", **{"trials": 2, **more})


def test_without_optuna(monkeypatch: Any, tmp_path: Path) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else real(name, *rest))
    with pytest.raises(CompileError, match="tune needs Optuna") as caught:
        search(tmp_path / "s")
    assert caught.value.diagnostics[0].code == "SPK009" and "spikec[tune]" in str(caught.value)


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = "import sys, os, pathlib; from spikec.tuning import _Lock; _Lock(pathlib.Path(sys.argv[1])).acquire(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    lock = _Lock(tmp_path)
    assert lock.acquire()
    lock.release()


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    waits = (
        "import time; from spikec.tuning import _end_with_parent; _end_with_parent(); print('ready', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, waits], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(300):
        # A process that has ended may wait for whoever inherited it.
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the child goes on")


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    x, y = task()
    write_graph(net(), tmp_path / "net.sir")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    monkeypatch.setattr("spikec.tuning._Search.point", stop)
    line = ["tune", str(tmp_path / "net.sir"), "--target", "host", "-o", str(tmp_path / "s"), "--calibrate"]
    assert main([*line, str(tmp_path / "data.npz"), "--trials", "2"]) == 130
    assert f"the finished trials are in {tmp_path / 's'}: the same command goes on from there" in capsys.readouterr().err


def test_another_search_says_what_is_other(tmp_path: Path) -> None:
    search(tmp_path / "s", trials=1, bits=(8,))
    for more, text in (
        ({"bits": (8, 4)}, "holds another search: bits 8, not 8 4"),
        ({"target": "rpi5"}, "of another target"),
        ({"prune": 0.5}, "prune 0.0 to 0.95, not 0.0 to 0.5"),
    ):
        with pytest.raises(CompileError, match=text):
            search(tmp_path / "s", trials=1, **{"bits": (8,), **more})


def test_the_plot_shows_what_matters() -> None:
    def trial(number: int, score: float) -> Trial:
        return Trial(number, {}, score, dict.fromkeys(FIGURES, 1.0), None)

    trials = tuple(trial(i, score) for i, score in enumerate((0.95, 0.93, 0.84, 0.5, 0.1)))
    assert _shown(Tuning(trials[:2], trials, {}, 10, {}, None)) == (pytest.approx(83), 2)
    assert _shown(Tuning(trials[:1], trials, {}, 10, {}, 0.6)) == (pytest.approx(25), 1)
    assert _shown(Tuning((), trials, {}, 10, {}, None)) == (0.0, 0)


def test_a_folder_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(CompileError, match="holds files that are no search"):
        search(tmp_path)


POINTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=12)


@settings(deadline=None)
@given(POINTS, st.integers(0, 2))
def test_what_is_kept_holds_every_front(points: Any, most: int) -> None:
    """Whatever the budget of steps, its front consists of trials whose builds are kept."""
    trials = [
        Trial(i, {}, s, {"bytes": b, "operations": o, "steps": t, "synapses": 0}, None) for i, (s, b, o, t) in enumerate(points)
    ]
    kept = {trial.number for trial in front_of(trials, FIGURES)}
    within = [trial for trial in trials if trial.figures["steps"] <= most]

    def values(some: Any) -> set[Any]:
        return {(t.score, t.figures["bytes"], t.figures["operations"]) for t in front_of(some, ("bytes", "operations"))}

    assert values(within) == values([trial for trial in within if trial.number in kept])


def test_measured_counts_only_up_to_the_answer() -> None:
    x, y = task()
    build = spikec.compile(net(), target="host", bits=8, calibrate=x, labels=y, cutoff=0.05)
    early = measured(build, {"in": x}, y)[1]
    build.cutoff = None
    whole = measured(build, {"in": x}, y)[1]
    assert early["steps"] < whole["steps"] == 12
    assert 0 < early["operations"] < whole["operations"]
    assert early["bytes"] == whole["bytes"]
