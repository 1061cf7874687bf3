"""Search: how much can be pruned, how few bits and steps are enough, for a score and a budget?

`spikec.tune` compiles a model again and again, with another share of synapses and neurons pruned, other bits, another cutoff and
other epochs of recovery, and scores every build on labelled data that no pass has seen. Optuna (Akiba et al. 2019) proposes what to
try: its tree-structured Parzen estimator for several objectives (Ozaki et al. 2022), score up, bytes and synaptic operations down,
with the budget as constraints. All trials are in a journal in the output folder, so that a search can be interrupted, resumed,
prolonged, or asked again with another budget.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from spikec.bits import CHIP_WIDTHS
from spikec.build import Build, load
from spikec.counts import operations
from spikec.diagnostics import CompileError
from spikec.driver import FRAME_STEPS, decide_early
from spikec.driver import compile as compile_model
from spikec.files import reading
from spikec.inputs import check_inputs, frames
from spikec.ir.text import npz_bytes, read_npz
from spikec.ir.types import Array
from spikec.progress import Bar
from spikec.recovery import recover
from spikec.score import check_labels, classes, score, scored_output
from spikec.spelling import did_you_mean

#: What a budget may limit, and what each is.
FIGURES: Final = {
    "bytes": "constants of the network in the emitted C, in bytes",
    "synapses": "weights other than zero",
    "operations": "synaptic operations a sample",
    "steps": "steps until the answer, on average",
}
#: What the search makes better: the score up, these down.
_SMALLER: Final = ("bytes", "operations")
#: What a pass looks at, at most; a recovery looks at all.
_CALIBRATION: Final = 512
_JOURNAL, _SEARCH, _START, _DATA = "trials.journal", "search.json", "start", "data.npz"
_POLL: Final = 0.2


@dataclass(frozen=True)
class Trial:
    """One point: its options, its score on the held-out samples, its figures (see FIGURES), its build's folder if that is kept."""

    number: int
    options: Mapping[str, Any]
    score: float
    figures: Mapping[str, float]
    folder: Path | None

    def beats(self, other: Trial, names: Iterable[str]) -> bool:
        """Whether it is nowhere worse, and better somewhere; of equals the earlier is better."""
        mine = (-self.score, *(self.figures[name] for name in names))
        its = (-other.score, *(other.figures[name] for name in names))
        return all(a <= b for a, b in zip(mine, its, strict=True)) and (mine != its or self.number < other.number)

    def excess(self, budget: Mapping[str, float], min_score: float | None) -> dict[str, float]:
        """By how much of itself each limit is missed; empty if all are met."""
        over = {name: self.figures[name] / limit - 1 for name, limit in budget.items() if self.figures[name] > limit}
        if min_score is not None and self.score < min_score:
            over["score"] = 1 - self.score / min_score
        return over


@dataclass(frozen=True)
class Tuning:
    """What a search found: the Pareto front of the trials that meet the budget, best score first, and all trials."""

    front: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    failed: Mapping[int, str]
    samples: int
    budget: Mapping[str, float]
    min_score: float | None

    @property
    def best(self) -> Trial:
        """The one with the best score within the budget."""
        return self.front[0]

    def text(self) -> str:
        """The front as a table."""
        names = list(self.front[0].options)
        rows = [["trial", "score", *FIGURES, *(name.replace("_", "-") for name in names), "build"]]
        for trial in self.front:
            figures = [f"{trial.figures[name]:.6g}" if name == "steps" else f"{trial.figures[name]:.0f}" for name in FIGURES]
            options = [f"{trial.options[name]:g}" for name in names]
            place = "" if trial.folder is None else f"{trial.folder.parent.name}/{trial.folder.name}"
            rows.append([str(trial.number), f"{100 * trial.score:.2f}%", *figures, *options, place])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        limits = [f"{name} <= {limit:.10g}" for name, limit in self.budget.items()]
        limits += [f"score >= {self.min_score:g}"] if self.min_score is not None else []
        failed = f", {len(self.failed)} could not be compiled" if self.failed else ""
        lines.append(f"{len(self.trials)} trials on {self.samples} held-out samples{failed}; {', '.join(limits) or 'no budget'}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, with all trials."""
        return {
            "budget": dict(self.budget),
            "min_score": self.min_score,
            "samples": self.samples,
            "front": [trial.number for trial in self.front],
            "trials": [
                {
                    "number": trial.number,
                    "options": dict(trial.options),
                    "score": trial.score,
                    **trial.figures,
                    "build": None if trial.folder is None else f"{trial.folder.parent.name}/{trial.folder.name}",
                }
                for trial in self.trials
            ],
            "failed": {str(number): text for number, text in self.failed.items()},
        }


def tune(
    model: Any,
    example_input: Any = None,
    *,
    data: Any,
    labels: Any,
    output: str | Path,
    target: str | None = None,
    budget: Mapping[str, float] | None = None,
    min_score: float | None = None,
    trials: int = 50,
    jobs: int = 1,
    seed: int = 0,
    held_out: float = 0.3,
    bits: Sequence[int] | None = None,
    prune: float = 0.95,
    prune_structured: float = 0.7,
    cutoffs: Sequence[float] = (0.0, 0.005, 0.01, 0.02),
    epochs: Sequence[int] = (0,),
    **options: Any,
) -> Tuning:
    """Search for the builds of a model that no other beats in score, bytes and synaptic operations at once.

    model, example_input, target, options: as for `spikec.compile`; they hold for every trial. data (samples, T, *shape), or a
    mapping by input name; labels (samples,), or (samples, T) where every step has one. held_out: the share of the samples that
    builds are scored on; the passes are calibrated, and weights trained again, on the rest. With epochs, give samples that the
    network has not learnt: of those that it has, a build knows more than after a training without them. output: a folder for the
    journal of the trials, the front as table (front.txt, front.json) and plot (front.png, front.svg), and a ready build of each
    point (builds/). budget: limits by name out of FIGURES; min_score: the least score, as a share. trials: how many there shall be
    in all; a search that is asked for again in the same folder goes on from where it was, and may have another budget. jobs:
    processes. With one job the same seed gives the same trials, interrupted or not; with more, what is proposed depends on which
    ended before.
    bits: widths of a weight to try, by default those of the target from 8 down to 3. prune, prune_structured: the largest shares to
    try. cutoffs: losses allowed for an early answer, 0 for none. epochs: lengths of a recovery after compiling, 0 for none.

    Raises CompileError SPK001 for options out of range or a folder that holds another search, SPK009 without Optuna or matplotlib,
    SPK219 when no trial meets the budget, naming the nearest, and what `spikec.compile` raises.
    """
    _packages()
    limits = dict(budget or {})
    _check(limits, min_score, trials, jobs, held_out, prune, prune_structured, cutoffs, epochs)
    place = Path(output)
    start = compile_model(model, example_input, target=target, calibrate=_few(data), **options)
    graph = start.stages[0].graph
    spiking = "ann-to-snn" in start.stage_names
    inputs = (
        frames(graph, data, options.get("steps") or FRAME_STEPS, own=not options.get("steps"))
        if spiking
        else check_inputs(graph, data)
    )
    samples, steps = next(iter(inputs.values())).shape[:2]
    if labels is None:
        raise CompileError("SPK001", "tune needs labels to score the builds with", fix="give labels; in a file, under the key y")
    labels = check_labels(labels, samples, steps, classes(graph))
    if min(round(held_out * samples), samples - round(held_out * samples)) < 1:
        raise CompileError("SPK006", f"{samples} samples cannot be split into a calibration part and a held-out part")
    space: dict[str, Sequence[float]] = {
        "prune": [round(0.05 * i, 4) for i in range(int(prune / 0.05 + 1e-9) + 1)],
        "prune_structured": [round(0.05 * i, 4) for i in range(int(prune_structured / 0.05 + 1e-9) + 1)],
        "bits": sorted({*(_bits_of(start) if bits is None else bits)}, reverse=True),
        "cutoff": sorted({*cutoffs} if labels.ndim == 1 else {0.0}),
        "epochs": sorted({*epochs}),
    }
    if not space["bits"]:
        raise CompileError("SPK001", "bits: give at least one width")
    known = _known_widths(start)
    if strange := [width for width in space["bits"] if width not in known]:
        widths = f"{known[0]} to {known[-1]}" if list(known) == [*range(known[0], known[-1] + 1)] else ", ".join(map(str, known))
        raise CompileError("SPK001", f"{_words(strange)} bits: a weight has {widths} on {start.target.name}")
    search = _Search(place, start, inputs, labels, space, seed, held_out)
    _open(search)
    study = search.study(create=True)
    _mend(study)
    _first(study, space)
    if jobs > 1:
        _write(place / _DATA, npz_bytes({**{f"x.{name}": array for name, array in inputs.items()}, "y": labels}))
    with Bar("tuning") as bar:
        if jobs == 1:
            search.work(trials, limits, min_score, 0, bar)
        else:
            _spawn(search, trials, limits, min_score, jobs, bar)
    return _finish(search, limits, min_score)


class _Lock:
    """The journal's lock: the kernel's, which opens when a process is killed. Optuna's own is a file that stays."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self.held = -1

    def acquire(self) -> bool:
        """Wait for it."""
        import fcntl

        self.held = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self.held, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Give it back."""
        os.close(self.held)


class _Search:
    """What all processes of a search share: the start, the data, the space and the journal."""

    def __init__(
        self,
        folder: Path,
        start: Build,
        inputs: Mapping[str, Array],
        labels: Array,
        space: Mapping[str, Sequence[float]],
        seed: int,
        held_out: float,
    ) -> None:
        self.folder, self.start, self.space, self.seed, self.held_out = folder, start, space, seed, held_out
        self.inputs, self.labels = inputs, labels
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
        kept = round(held_out * len(labels))
        self.check, self.train = np.sort(order[:kept]), np.sort(order[kept:])

    def identity(self) -> dict[str, Any]:
        """What must be the same for two calls to be one search."""
        digest = hashlib.sha256()
        for name in sorted(self.inputs):
            digest.update(
                name.encode() + repr(self.inputs[name].shape).encode() + np.ascontiguousarray(self.inputs[name]).tobytes()
            )
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        ir = hashlib.sha256(self.start.ir(after="input").encode()).hexdigest()
        told = {key: list(value) if isinstance(value, tuple) else value for key, value in self.start.options.items()}
        return {
            "model": ir,
            "data": digest.hexdigest(),
            "target": hashlib.sha256(self.start.target_text.encode()).hexdigest(),
            "options": told,
            "space": {name: list(values) for name, values in self.space.items()},
            "seed": self.seed,
            "held_out": self.held_out,
        }

    def study(self, create: bool = False) -> Any:
        """The study in the folder's journal."""
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(self.folder / _JOURNAL), _Lock(self.folder)))
            if not create:
                return optuna.load_study(study_name="spikec", storage=storage)
            return optuna.create_study(
                study_name="spikec", storage=storage, directions=["maximize", *("minimize" for _ in _SMALLER)], load_if_exists=True
            )

    def work(self, trials: int, budget: Mapping[str, float], min_score: float | None, worker: int, bar: Bar | None) -> None:
        """Do trials until there are enough."""
        import optuna

        study = self.study()
        choices = {name: optuna.distributions.CategoricalDistribution(list(v)) for name, v in self.space.items() if len(v) > 1}
        for name in ("prune", "prune_structured"):
            if name in choices:
                choices[name] = optuna.distributions.FloatDistribution(0.0, self.space[name][-1], step=0.05)

        def violations(trial: Any) -> Sequence[float]:
            found: Sequence[float] = trial.user_attrs.get("violations", (1.0,))
            return found

        while (done := _done(study)) < trials:
            if bar:
                bar(done, trials)
            # A sampler per trial, so that an interrupted search goes on as if it had not been.
            number = (self.seed * 1_000_003 + done + 7919 * worker) % (1 << 32)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                study.sampler = optuna.samplers.TPESampler(
                    seed=number, n_startup_trials=min(16, max(4, trials // 4)), multivariate=True, constraints_func=violations
                )
                trial = study.ask(choices)
            chosen = {name: round(trial.params[name], 4) if name in choices else v[0] for name, v in self.space.items()}
            begin = time.monotonic()
            try:
                point = self._known(study, chosen) or self.point(chosen, trial.number)
            except CompileError as error:
                trial.set_user_attr("error", str(error))
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            trial.set_user_attr("options", chosen)
            trial.set_user_attr("figures", dict(point.figures))
            trial.set_user_attr("seconds", time.monotonic() - begin)
            over = [point.figures[name] / limit - 1 for name, limit in budget.items()]
            over += [min_score - point.score] if min_score is not None else []
            trial.set_user_attr("violations", over or [0.0])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                study.tell(trial, [point.score, *(point.figures[name] for name in _SMALLER)])

    def _known(self, study: Any, chosen: Mapping[str, Any]) -> Trial | None:
        """The same point, if it was there before."""
        return next((trial for trial in _points(self, study)[0] if trial.options == chosen), None)

    def point(self, chosen: Mapping[str, Any], number: int) -> Trial:
        """Compile, recover, score and save."""
        train = {name: array[self.train] for name, array in self.inputs.items()}
        seen = {name: array[:_CALIBRATION] for name, array in train.items()}
        labels = self.labels[self.train]
        cutoff = chosen["cutoff"] or None
        given = {key: chosen[key] for key in ("prune", "prune_structured") if chosen["prune"] or chosen["prune_structured"]}
        build = compile_model(
            self.start,
            calibrate=seen,
            labels=labels[:_CALIBRATION],
            bits=int(chosen["bits"]),
            cutoff=None if chosen["epochs"] else cutoff,
            **given,
        )
        if chosen["epochs"]:
            build = recover(build, train, labels, epochs=int(chosen["epochs"]), seed=self.seed)
            if cutoff:
                decide_early(build, seen, labels[:_CALIBRATION], cutoff)
        value, figures = measured(build, {name: array[self.check] for name, array in self.inputs.items()}, self.labels[self.check])
        folder = self.folder / "builds" / f"{number:04d}"
        build.save(folder)
        return Trial(number, chosen, value, figures, folder)


def measured(build: Build, inputs: Mapping[str, Array], labels: Array) -> tuple[float, dict[str, float]]:
    """The score of a build (its cutoff included) and its figures, on samples of the graph that it began with."""
    graph = build.graph()
    result = build.run(inputs, "numpy", "all")
    output = result.outputs[scored_output(graph)]
    work = operations(graph, check_inputs(graph, inputs), result.records)
    steps = np.full(len(output), output.shape[1])
    value = score(output, labels)
    if build.cutoff is not None:
        decided = build.cutoff.decide(output)
        steps = decided.steps
        counted = labels >= 0
        value = float(np.mean(decided.answers[counted] == labels[counted])) if counted.any() else 0.0
    before = np.arange(output.shape[1]) < steps[:, None]
    figures = {
        "bytes": float(build.memory().constants),
        "synapses": float(build.summary()["synapses"]),
        "operations": float((work * before).sum() / len(output)),
        "steps": float(steps.mean()),
    }
    return value, figures


# --------------------------------------------------------------------------------------------------------------- checks


def _packages() -> None:
    from importlib.util import find_spec

    for name, title in (("optuna", "Optuna"), ("matplotlib", "matplotlib")):
        if find_spec(name) is None:
            raise CompileError("SPK009", f"tune needs {title}, which is not installed", fix="pip install 'spikec[tune]'")


def _check(
    budget: Mapping[str, float],
    min_score: float | None,
    trials: int,
    jobs: int,
    held_out: float,
    prune: float,
    prune_structured: float,
    cutoffs: Sequence[float],
    epochs: Sequence[int],
) -> None:
    for name, limit in budget.items():
        if name not in FIGURES:
            raise CompileError("SPK001", f"a budget has no '{name}'", fix=did_you_mean(name, FIGURES))
        if not limit > 0:
            raise CompileError("SPK001", f"the budget of {name} must be above 0, not {limit}")
    wrong = [
        (min_score is not None and not 0 < min_score <= 1, f"min_score is a share above 0 and up to 1, not {min_score}"),
        (trials < 1, f"trials must be at least 1, not {trials}"),
        (jobs < 1, f"jobs must be at least 1, not {jobs}"),
        (not 0 < held_out < 1, f"held_out is a share between 0 and 1, not {held_out}"),
        (not 0 <= prune < 1, f"prune is a share from 0 up to but without 1, not {prune}"),
        (not 0 <= prune_structured < 1, f"prune_structured is a share from 0 up to but without 1, not {prune_structured}"),
        (not cutoffs or not all(0 <= one < 1 for one in cutoffs), f"cutoffs are shares from 0 up to but without 1, not {cutoffs}"),
        (not epochs or min(epochs, default=0) < 0, f"epochs must be 0 or more, not {epochs}"),
    ]
    for bad, message in wrong:
        if bad:
            percent = min_score if min_score is not None and 1 < min_score <= 100 and "min_score" in message else None
            raise CompileError("SPK001", message, fix=None if percent is None else f"{percent / 100:g} for {percent:g} %")


def _few(data: Any) -> Any:
    """As many of the samples as a pass looks at."""
    return {name: array[:_CALIBRATION] for name, array in data.items()} if isinstance(data, Mapping) else data[:_CALIBRATION]


def _known_widths(start: Build) -> Sequence[int]:
    """Widths of a weight that the target has, rising."""
    return sorted(CHIP_WIDTHS) if "quantize" in start.target.passes else range(2, 17)


def _bits_of(start: Build) -> Sequence[int]:
    """Those that are tried where nothing is said, from 8 down to 3."""
    if "quantize" not in start.target.passes:
        return (8, 6, 5, 4, 3)
    return [bits for bits in CHIP_WIDTHS if 3 <= bits <= 8]


# --------------------------------------------------------------------------------------------------------------- folder


def _write(path: Path, content: bytes) -> None:
    """A file that is there wholly or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CompileError("SPK008", f"{path}: cannot be written ({error.strerror})") from None


def _open(search: _Search) -> None:
    """A new search in an empty folder, or the one that is there, if it is the same."""
    place, told = search.folder, search.identity()
    note = place / _SEARCH
    try:
        place.mkdir(parents=True, exist_ok=True)
        others = [item.name for item in place.iterdir()]
    except OSError as error:
        raise CompileError("SPK008", f"{place}: cannot be written ({error.strerror})") from None
    if _SEARCH not in others:
        if others:
            raise CompileError("SPK008", f"{place}: holds files that are no search", fix="give a new folder")
        search.start.save(place / _START)
        _write(note, (json.dumps(told, indent=2) + "\n").encode())
        return
    with reading(note):
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            raise CompileError("SPK002", f"{note}: not readable", fix="give a new folder") from None
    if differ := list(_differences(before, json.loads(json.dumps(told)))):
        raise CompileError("SPK001", f"{place}: holds another search: {'; '.join(differ)}", fix="give a new folder")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    """In words, what of a search was otherwise: model and data by name, the rest with its values."""
    for key in now:
        then = before.get(key)
        if then == now[key]:
            continue
        if isinstance(now[key], dict) and isinstance(then, dict):
            yield from _differences({**dict.fromkeys(now[key]), **then}, {**dict.fromkeys(then), **now[key]})
        elif key in ("model", "data", "target"):
            yield f"of another {key}" if key != "data" else "of other data"
        else:
            yield f"{key.replace('_', ' ')} {_words(then)}, not {_words(now[key])}"


def _words(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]} to {value[-1]}" if len(value) > 6 else " ".join(map(str, value))
    return "left out" if value is None else str(value)


def _mend(study: Any) -> None:
    """Trials of processes that were killed are no longer running."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _first(study: Any, space: Mapping[str, Sequence[float]]) -> None:
    """Begin with nothing pruned and the most bits, and with the middle of everything."""
    known = [trial.params or trial.system_attrs.get("fixed_params") for trial in study.get_trials(deepcopy=False)]
    for share in (0.0, 0.5):
        point = {name: values[int(share * len(values))] for name, values in space.items() if len(values) > 1}
        if point and point not in known:
            study.enqueue_trial(point)
            known.append(point)


def _done(study: Any) -> int:
    """Trials that count: those that ended, those under way, and those that could not be compiled."""
    import optuna

    state = optuna.trial.TrialState
    ended = study.get_trials(deepcopy=False)
    return sum(t.state in (state.COMPLETE, state.RUNNING) or "error" in t.user_attrs for t in ended)


def _points(search: _Search, study: Any) -> tuple[list[Trial], dict[int, str]]:
    """All trials that ended, and why others could not be compiled."""
    import optuna

    points, failed = [], {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state == optuna.trial.TrialState.COMPLETE:
            folder = search.folder / "builds" / f"{trial.number:04d}"
            attrs = trial.user_attrs
            kept = folder if folder.is_dir() else None
            points.append(Trial(trial.number, attrs["options"], trial.values[0], attrs["figures"], kept))
        elif "error" in trial.user_attrs:
            failed[trial.number] = trial.user_attrs["error"]
    return points, failed


def _spawn(search: _Search, trials: int, budget: Mapping[str, float], min_score: float | None, jobs: int, bar: Bar) -> None:
    """Several processes on one journal."""
    task = {"trials": trials, "budget": dict(budget), "min_score": min_score}
    started = []
    try:
        for worker in range(jobs):
            note = json.dumps({**task, "worker": worker})
            command = [sys.executable, "-m", "spikec.tuning", str(search.folder), note]
            # Its input is a pipe that closes when this process ends, however it does.
            started.append(subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.PIPE))
        study = search.study()
        while any(process.poll() is None for process in started):
            bar(_done(study), trials)
            time.sleep(_POLL)
        for process in started:
            said = process.stderr.read() if process.stderr else b""
            if process.returncode:
                raise RuntimeError(f"a process of the search ended with status {process.returncode}: {said.decode()[-2000:]}")
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
                process.wait()
            for pipe in (process.stdin, process.stderr):
                if pipe:
                    pipe.close()
        (search.folder / _DATA).unlink(missing_ok=True)


def _worker(folder: Path, note: Mapping[str, Any]) -> None:
    told = json.loads((folder / _SEARCH).read_text(encoding="utf-8"))
    arrays = read_npz(folder / _DATA)
    inputs = {name.removeprefix("x."): array for name, array in arrays.items() if name.startswith("x.")}
    search = _Search(folder, load(folder / _START), inputs, arrays["y"], told["space"], told["seed"], told["held_out"])
    search.work(note["trials"], note["budget"], note["min_score"], note["worker"], None)


# ---------------------------------------------------------------------------------------------------------------- front


def front_of(trials: Sequence[Trial], names: Iterable[str]) -> list[Trial]:
    """The trials that no other beats in score and these figures, best score first."""
    names = tuple(names)
    kept = [one for one in trials if not any(other.beats(one, names) for other in trials if other is not one)]
    return sorted(kept, key=lambda trial: (-trial.score, *(trial.figures[name] for name in names), trial.number))


def _finish(search: _Search, budget: Mapping[str, float], min_score: float | None) -> Tuning:
    points, failed = _points(search, search.study())
    if not points:
        number, text = next(iter(failed.items()))
        raise CompileError("SPK219", f"none of {len(failed)} trials could be compiled; trial {number}: {text}")
    # What another budget might ask for stays; nothing else can ever be on a front.
    worth = {trial.number for trial in front_of(points, FIGURES)}
    for trial in points:
        if trial.folder and trial.number not in worth:
            shutil.rmtree(trial.folder)
    points, failed = _points(search, search.study())
    within = [trial for trial in points if not trial.excess(budget, min_score)]
    front = front_of([trial for trial in within if trial.number in worth], _SMALLER)
    result = Tuning(tuple(front), tuple(points), failed, len(search.check), budget, min_score)
    _write(search.folder / "front.json", (json.dumps(result.as_json(), indent=2) + "\n").encode())
    _plot(search.folder, result)
    if not within:
        near = min(points, key=lambda trial: sum(trial.excess(budget, min_score).values()))
        missed = [
            f"score {100 * near.score:.2f}% of {100 * (min_score or 0):g}%"
            if name == "score"
            else f"{near.figures[name]:.6g} {name} of {budget[name]:.10g}"
            for name in near.excess(budget, min_score)
        ]
        chosen = ", ".join(f"{name} {value:g}" for name, value in near.options.items())
        raise CompileError(
            "SPK219",
            f"none of {len(points)} trials meets the budget; the nearest is trial {near.number} ({chosen}): {', '.join(missed)}",
            fix="allow more, or search longer (--trials)",
        )
    _write(search.folder / "front.txt", (result.text() + "\n").encode())
    return result


def _plot(folder: Path, found: Tuning) -> None:
    """Score against bytes and against operations, all trials and the front, as PNG and SVG."""
    import io

    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "spikec"}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2, sharey=True), _SMALLER, strict=True):
            for trials, colour, label in ((found.trials, "lightgrey", "trials"), (found.front, "tab:blue", "front")):
                xs, ys = [trial.figures[name] for trial in trials], [100 * trial.score for trial in trials]
                axes.scatter(xs, ys, color=colour, label=label, zorder=2 if label == "front" else 1)
            for trial in found.front:
                place = (trial.figures[name], 100 * trial.score)
                axes.annotate(str(trial.number), place, (0, 5), textcoords="offset points", ha="center", fontsize=8)
            if name in found.budget:
                axes.axvline(found.budget[name], color="tab:red", linewidth=1, label="budget")
            if found.min_score is not None:
                axes.axhline(100 * found.min_score, color="tab:red", linewidth=1, linestyle="--", label="least score")
            axes.set(xlabel=FIGURES[name], ylabel="score in %" if name == _SMALLER[0] else "")
            axes.grid(alpha=0.3)
            axes.margins(y=0.08)
        bottom, below = _shown(found)
        if below:
            axes.set_ylim(bottom=bottom)
            axes.set_title(f"{below} of {len(found.trials)} trials lie below", loc="right", fontsize=8)
        axes.legend()
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            _write(folder / f"front.{kind}", buffer.getvalue())


def _shown(found: Tuning) -> tuple[float, int]:
    """From which score in percent on a plot shows what matters, and how many trials lie below."""
    wanted = [100 * trial.score for trial in found.front] + ([100 * found.min_score] if found.min_score is not None else [])
    if not wanted:
        return 0.0, 0
    bottom = min(wanted) - max(10.0, max(wanted) - min(wanted))
    return bottom, sum(100 * trial.score < bottom for trial in found.trials)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, killed or not."""
    import threading

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock would be missed at the end
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    _worker(Path(sys.argv[1]), json.loads(sys.argv[2]))
