"""The Lava backend: a readable Python package for Loihi 2, run on Lava's bit-accurate simulation in its own interpreter.

Lava never runs inside this process: it declares another Python, forks a process for every part of a network, and can
hang. The package that `emit` writes is what `run` runs, as a program with a time limit.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spikec.backends.lava import environment
from spikec.backends.lava.emit import COPIED, npz, write_package
from spikec.backends.lava.plan import Plan, make_plan, require_plan
from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, extent, interpret, record_name
from spikec.ir.types import Array

if TYPE_CHECKING:
    from spikec.backend import Golden, Progress
    from spikec.cutoff import Cutoff
    from spikec.target import Target

# A run of the package takes the samples side by side as one large network; it holds at most so many connections and
# numbers that pass between processes at once, whose channels lie in shared memory (often only 64 MB).
_CONNECTIONS = 2_000_000
_NUMBERS = 400_000
# A generous time limit: seconds to start, per step and process, and per connection and step. Measured: 0.7 s, 0.2 ms, 3 ns.
_START_SECONDS = 60.0
_MOST_BUSY = 8.0
_STEP_SECONDS = 0.02
_CONNECTION_SECONDS = 1e-6
# Steps that one part of a network may be ahead of another (CHANNEL_SIZE in run.py), and seconds between looks at how far a run is.
_CHANNEL = 8
_LOOK_SECONDS = 0.2
_CAUSES = (
    "Lava waits for ever, without a word, for a part that failed or for one that nothing feeds; "
    "run.py in the package, run by hand, shows what there is to see."
)


class LavaBackend:
    """Emits and runs graphs of level fixed; neurons that Lava lacks become processes generated from their programs."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def available(self) -> str | None:
        """None if Lava is installed for spikec; reads a marker file only."""
        return None if environment.locate() is not None else "not installed (spikec setup lava)"

    def check(self, graph: Graph) -> Iterator[Diagnostic]:
        """Everything in the graph that Lava has no process for, or would compute otherwise."""
        return iter(make_plan(graph, self.target).problems)

    def emit(self, graph: Graph, folder: Path, golden: Golden | None = None, cutoff: Cutoff | None = None) -> None:
        """Write network.py, run.py, weights.npz, golden.npz and README.md. Raises CompileError SPK502."""
        write_package(require_plan(graph, self.target), folder, golden)

    def run(
        self,
        graph: Graph,
        inputs: Mapping[str, Array],
        *,
        record: Collection[str] = (),
        artefact: Path | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
        steps: int | None = None,
    ) -> Execution:
        """Run the package in Lava's interpreter. Raises SPK502, SPK511 (not installed), SPK512 (time), SPK513 (failed)."""
        plan = require_plan(graph, self.target)
        lava = environment.require()
        wires = self._wires(plan, record)
        batch, length = extent(inputs, steps)
        if 0 in (batch, length):
            return interpret(graph, inputs, record=record, steps=steps)  # nothing for Lava to do; the interpreter knows the shapes
        deadline = None if timeout is None else time.monotonic() + timeout
        with tempfile.TemporaryDirectory(prefix="spikec-lava-") as scratch:
            package = self._package(plan, artefact, Path(scratch))
            parts = _split(plan, batch)
            steps = length + plan.graph.max_lag
            stop = threading.Event()
            limit, patience = _limits(plan, length, max(part.stop - part.start for part in parts))

            def one(number: int) -> dict[str, Array]:
                given, result = Path(scratch, f"in{number}.npz"), Path(scratch, f"out{number}.npz")
                part = parts[number]
                given.write_bytes(npz({name: array[part].astype(np.int32) for name, array in inputs.items()}))
                left = limit if deadline is None else deadline - time.monotonic()
                command: list[str | Path] = [package / "run.py", "--input", given, "--output", result]
                command += ["--copies", str(part.stop - part.start), "--patience", f"{patience:.0f}"]
                command += ["--steps", counter(number), *(["--record", *wires] if wires else [])]
                command += [] if inputs else ["--length", str(length)]
                _run(lava, command, given.parent, left, limit if timeout is None else timeout, stop)
                if not result.is_file():
                    raise CompileError("SPK513", f"the Lava run of {package / 'run.py'} wrote no result")
                with np.load(result) as file:
                    found = {name: file[name] for name in file.files}
                given.unlink()
                result.unlink()
                return found

            def counter(number: int) -> Path:
                return Path(scratch, f"steps{number}")

            def done(number: int) -> int:
                with contextlib.suppress(OSError, ValueError, IndexError):  # not there yet
                    return int(np.fromfile(counter(number), np.int64)[0])
                return 0

            found = _run_all(one, done, len(parts), steps, progress, stop)
        return self._execution(plan, {name: np.concatenate([p[name] for p in found]) for name in found[0]}, record)

    def _wires(self, plan: Plan, record: Collection[str]) -> list[str]:
        wires = []
        for name in record:
            wire = plan.wire(name)
            if wire is None:
                known = {record_name((node, port)) for node, ports in plan.graph.types.items() for port, _ in ports}
                what = "cannot be recorded on Lava" if name in known else "there is no such wire to record"
                fix = "record a population, an input, or the sum that enters a population"
                raise CompileError("SPK010", f"'{name}': {what}", fix=fix)
            wires.append(wire)
        return list(dict.fromkeys(wires))

    def _package(self, plan: Plan, artefact: Path | None, scratch: Path) -> Path:
        """The folder to run: the artefact where there is one, else a fresh one."""
        if artefact is not None:
            for name in (*COPIED, "network.py", "weights.npz"):
                if not (artefact / name).is_file():
                    raise CompileError("SPK402", f"{artefact / name} is missing", fix="compile the model again")
            return artefact.resolve()
        package = scratch / "package"
        package.mkdir()
        write_package(plan, package, None)
        return package

    def _execution(self, plan: Plan, found: Mapping[str, Array], record: Collection[str]) -> Execution:
        def get(name: str) -> Array:
            return found[name].astype(np.int64)

        states: dict[str, dict[str, Array]] = {}
        for name, item in plan.populations.items():
            states[name] = {state: get(f"state.{name}.{variable}") for state, variable in item.process.states.items()}
        outputs = {name: get(f"output.{name}") for name in plan.outputs}
        return Execution(outputs, {name: get(f"record.{plan.wire(name)}") for name in record}, states)


def _split(plan: Plan, batch: int) -> list[slice]:
    """Which samples run side by side."""
    passing = sum(item.size for item in plan.populations.values()) * 4
    passing += sum(item.rows + item.columns for item in plan.synapses.values())
    together = min(_CONNECTIONS // max(plan.connections, 1), _NUMBERS // max(passing, 1), plan.most_copies)
    count = -(-batch // max(together, 1))
    ends = [batch * i // count for i in range(count + 1)]
    return [slice(begin, end) for begin, end in pairwise(ends)]


def _limits(plan: Plan, length: int, copies: int) -> tuple[float, float]:
    """Seconds that a run may take, and may take for a step: less, so that a hang is told by the package, which knows more of it."""
    processes = 4 * len(plan.populations) + len(plan.synapses) + len(plan.sources)
    reach = 1 + max((int(np.max(item.delay)) for item in plan.synapses.values()), default=0)
    each = _STEP_SECONDS * processes + _CONNECTION_SECONDS * plan.connections * copies * reach
    steps = length + plan.graph.max_lag
    return (_START_SECONDS + steps * each) * _busy(), 0.9 * (_START_SECONDS + min(steps, _CHANNEL) * each) * _busy()


def _busy() -> float:
    """How many programs want each processor at the moment: on a busy machine everything takes that much longer."""
    return min(max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0), _MOST_BUSY)


def _run(
    lava: environment.LavaEnvironment, command: list[str | Path], cwd: Path, left: float, timeout: float, stop: threading.Event
) -> None:
    """One run of the package, with so many seconds left of those that all runs have together."""
    try:
        if left <= 0:
            raise environment.out_of_time("run.py", timeout)
        lava.run(command, timeout=left, told=timeout, cwd=cwd, stop=stop)
    except CompileError as error:
        (problem,) = error.diagnostics
        if problem.code == "SPK512":
            notes = (_CAUSES, *useful_lines(problem.notes))
        else:
            notes = useful_lines(problem.notes)
        raise CompileError(problem.code, problem.message, notes=notes, fix=problem.fix) from None


def _run_all(
    one: Callable[[int], dict[str, Array]],
    done: Callable[[int], int],
    count: int,
    steps: int,
    progress: Progress | None,
    stop: threading.Event,
) -> list[dict[str, Array]]:
    """All runs, a few at a time; the first failure, or an interrupt, ends the others. Progress is told in steps of all runs."""
    if progress:
        progress(0, count * steps)
    with ThreadPoolExecutor(max_workers=max(1, min(count, (os.cpu_count() or 1)))) as pool:
        waiting = {pool.submit(one, number): number for number in range(count)}
        results: dict[int, dict[str, Array]] = {}
        try:
            while len(results) < count:
                for future in wait(waiting, _LOOK_SECONDS if progress else None, FIRST_COMPLETED).done:
                    results[waiting.pop(future)] = future.result()
                if progress:
                    progress(len(results) * steps + sum(min(done(number), steps) for number in waiting.values()), count * steps)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return [results[number] for number in range(count)]


def useful_lines(notes: tuple[str, ...]) -> tuple[str, ...]:
    """Without the frames of a traceback: what a person needs is the last line of it, and what a program said itself."""
    kept = []
    for line in notes:
        if line.startswith((" ", "\t", "Traceback", "Process ", "During handling", "The above exception", "^")):
            continue
        kept.append(re.sub(r"^error: ", "", line))
    return tuple(dict.fromkeys(kept))
