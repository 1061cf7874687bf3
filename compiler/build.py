"""A build: the graph after every pass, the ledger, the target; it is printed, saved, loaded, run and verified."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from spikec.backend import Backend, Golden, Progress, load_backend
from spikec.counts import SYNAPTIC, synapses
from spikec.cutoff import Cutoff, Decision
from spikec.diagnostics import CompileError, Loc
from spikec.estimate import Setting
from spikec.files import check_path
from spikec.folder import json_text, read_manifest, seal, sha256, write_folder
from spikec.headroom import HeadRoom, head_room
from spikec.impulse import Impulses, Run
from spikec.impulse import measure as measure_impulses
from spikec.inputs import check_inputs, check_steps
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, default_record, extent, interpret
from spikec.ir.text import npz_bytes, print_graph, read_graph, read_npz, write_graph
from spikec.ir.types import LEVELS, Array, is_float
from spikec.ledger import Entry, Ledger
from spikec.memory import Memory
from spikec.names import find_wire
from spikec.options import typed
from spikec.pipeline import MATCHED, Stage
from spikec.result import Result
from spikec.spelling import did_you_mean
from spikec.stream import Stream
from spikec.target import Target, parse_target
from spikec.verification import Divergence, Row, Verification, compare, locate
from spikec.version import __version__

#: How many samples the golden vectors have, and how many steps where there is no calibration data to take them from.
GOLDEN_SAMPLES: Final = 3
GOLDEN_STEPS: Final = 16
#: What `verify` runs beside the reference where nothing is said, as far as it is there; the target's own backend as well.
ENGINES: Final = ("numpy", "c")
#: The report's name in a build folder.
REPORT: Final = "report.html"
#: Why a backend is not available, by backend: the codes of the tools that it needs.
_ABSENT: Final = {"c": "SPK501", "lava": "SPK511"}


@dataclass(frozen=True)
class StageFile:
    """A stage that still lies in a build folder."""

    name: str
    level: str
    path: Path


class Build:
    """What `spikec.compile` and `spikec.load` return.

    target, target_text: the target and its file. ledger: what the passes changed. golden: a few samples, (batch, T, *shape) by
    input name, that go into the artefact with what the reference gives for them. options: what the user asked for, plain values.
    folder: where the build was loaded from or saved to, None before. origins: which arrays of the first graph are which weights
    of the torch model (see `spikec.frontend.weights`); plain data, None where it was not made from one.
    """

    def __init__(
        self,
        stages: Iterable[Stage | StageFile],
        ledger: Ledger,
        target: Target,
        target_text: str,
        golden: Mapping[str, Array],
        options: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        origins: dict[str, Any] | None = None,
    ) -> None:
        self._stages: list[Stage | StageFile] = list(stages)
        self.ledger = ledger
        self.target = target
        self.target_text = target_text
        self.golden = dict(golden)
        self.options = dict(options or {})
        self.folder = folder
        #: When an answer may be given before the last step; None where nothing was asked for.
        self.cutoff: Cutoff | None = None
        self.origins = origins
        #: By level: what the last fresh start and the runs that continued it were fed, and how many steps that was.
        self._past: dict[str, tuple[dict[str, Array], int]] = {}

    def __repr__(self) -> str:
        names = " -> ".join(stage.name for stage in self._stages)
        return f"<spikec build of {self.graph().name} for {self.target.name}: {names}>"

    # ------------------------------------------------------------------------------------------------------- stages

    def _stage(self, index: int) -> Stage:
        stage = self._stages[index]
        if isinstance(stage, StageFile):
            stage = Stage(stage.name, read_graph(stage.path), 0.0)
            self._stages[index] = stage
        return stage

    @property
    def stages(self) -> list[Stage]:
        """The graph after every pass; the first is the frontend's. Seconds are 0 where the build was loaded."""
        return [self._stage(index) for index in range(len(self._stages))]

    @property
    def stage_names(self) -> list[str]:
        """Names of the stages, in order: "input", then the passes."""
        return [stage.name for stage in self._stages]

    @typed(after="string", level="string")
    def graph(self, after: str | None = None, level: str | None = None) -> Graph:
        """The graph after a pass, or the last one of a level (of floats that before biases were matched to the integers); without
        either the last of all.

        Raises CompileError SPK404 if the build does not hold it.
        """
        found = [
            index
            for index, stage in enumerate(self._stages)
            if (stage.name != MATCHED if after is None else stage.name == after) and (level is None or _level(stage) == level)
        ]
        if not found:
            if after is not None and after not in self.stage_names:
                raise CompileError("SPK404", f"the build has no stage '{after}'", fix=did_you_mean(after, self.stage_names))
            if level is not None and level not in LEVELS:
                raise CompileError("SPK404", f"there is no level '{level}'", fix=f"choose one of {', '.join(LEVELS)}")
            wanted = f"the stage '{after}' is not at the level '{level}'" if after else f"nothing at the level '{level}'"
            held = ", ".join(f"{stage.name} ({_level(stage)})" for stage in self._stages)
            raise CompileError("SPK404", f"the build holds {held}: {wanted}")
        return self._stage(found[-1]).graph

    @property
    def units(self) -> dict[str, float]:
        """What 1 is in the model, by output: `result.outputs[name] * build.units[name]` are the model's own numbers."""
        told = {e.what.split(" is in units of ")[0]: e.measured["unit"] for e in self.ledger if "unit" in e.measured}
        return {name: told.get(f"the output {name}", 1.0) for name, _ in self.graph().outputs}

    @typed(full="flag")
    def ir(self, after: str | None = None, level: str | None = None, full: bool = False) -> str:
        """The text of a graph, chosen as by `graph`. full: every array is written out."""
        return print_graph(self.graph(after, level), full=full)[0]

    # -------------------------------------------------------------------------------------------------------- files

    @typed(folder="path")
    def save(self, folder: str | Path) -> Path:
        """Write the build folder; an earlier build there is replaced in one step, anything else is left alone.

        Raises CompileError SPK008 if it cannot be written, and then leaves nothing behind. The same build gives the same bytes.
        """
        from spikec.report import render

        folder = Path(folder)
        stages = self.stages  # read all of them before anything is replaced: the place may be where they came from
        graph = stages[-1].graph
        backend = load_backend(self.target.backend, self.target)

        def fill(place: Path) -> None:
            (place / "ir").mkdir()
            listed = []
            for number, stage in enumerate(stages):
                file = f"ir/{number:02d}-{stage.name}.sir"
                write_graph(stage.graph, place / file)
                listed.append({"pass": stage.name, "level": stage.graph.level, "file": file})
            _write(place / "ledger.json", json_text(self.ledger.as_json()))
            _write(place / "target.toml", self.target_text)
            if self.origins is not None:
                _write(place / "weights.json", json_text(self.origins))
            (place / "golden.npz").write_bytes(npz_bytes(self.golden))
            own = place / self.target.backend
            own.mkdir()
            record = default_record(graph)
            golden = Golden(self.golden, interpret(graph, self.golden, record=record)) if self.golden else None
            backend.emit(graph, own, golden, self.cutoff)
            _write(place / REPORT, render(self, self._result(golden.expected) if golden else None))
            if not any(own.iterdir()):
                own.rmdir()
            seal(
                place,
                {
                    "spikec": __version__,
                    "name": graph.name,
                    "target": {"name": self.target.name, "sha256": sha256(self.target_text.encode())},
                    "backend": self.target.backend,
                    "options": self.options,
                    "dt": graph.dt,
                    "lag": graph.max_lag,
                    "cutoff": None if self.cutoff is None else self.cutoff.as_json(),
                    "inputs": {
                        node.name: {
                            "kind": node.type.kind,
                            "shape": list(node.type.shape),
                            "dtype": node.type.dtype,
                            "bounds": list(node.bounds) if node.bounds else None,
                            **({"unit": node.unit} if node.unit is not None else {}),
                            **({"encode": node.encode} if node.encode else {}),
                        }
                        for node in graph.inputs
                    },
                    "outputs": {
                        name: {
                            "kind": graph.type_of(ref).kind,
                            "shape": list(graph.type_of(ref).shape),
                            "lag": graph.output_lag(name),
                        }
                        for name, ref in graph.outputs
                    },
                    "stages": listed,
                },
            )

        write_folder(folder, fill)
        self.folder = folder
        return folder

    @typed(path="path")
    def report(self, path: str | Path | None = None, x: Any = None) -> Path:
        """The report, one HTML page: that of the build folder, or a new one at `path`, with rates and estimates from data x.

        x: as for `run`; without it the build's golden samples. Raises CompileError SPK001, SPK006, SPK007, SPK008, SPK404.
        """
        if path is None:
            if x is not None:
                raise CompileError("SPK001", "a report on other data needs a place", fix="report(path=..., x=...), -o FILE")
            if self.folder is None or not (self.folder / REPORT).is_file():
                what = "the build is not saved" if self.folder is None else f"{self.folder} was made without a report"
                raise CompileError("SPK404", what, fix="save the build first, or say where the report goes (path=..., -o FILE)")
            return self.folder / REPORT
        from spikec.report import render

        inputs = self.golden if x is None else check_inputs(self.graph(), x)
        graph = self.graph()
        ran = interpret(graph, inputs, record=default_record(graph)) if inputs else None
        text = render(self, None if ran is None else self._result(ran, inputs))
        path = Path(path)
        try:
            _write(path, text)
        except OSError as error:
            raise CompileError("SPK008", f"{path}: cannot be written ({error.strerror or error})") from None
        return path

    def _result(self, execution: Execution, inputs: Mapping[str, Array] | None = None) -> Result:
        """What the reference gave for the golden samples, or for other inputs, with everything recorded."""
        return Result.of(self.graph(), inputs or self.golden, execution, "reference", 0.0, 0, self._setting())

    # -------------------------------------------------------------------------------------------------------- runs

    def _backend(self, name: str, graph: Graph) -> Backend:
        """A backend that can run the graph here, else a CompileError with everything that stands against it."""
        backend = load_backend(name, self.target)
        if why := backend.available():
            raise CompileError(_ABSENT.get(name, "SPK502"), f"backend '{name}': {why}")
        if found := list(backend.check(graph)):
            raise CompileError.many(found)
        return backend

    def _artefact(self, name: str, graph: Graph) -> Path | None:
        """The folder that this backend emitted for this graph, if there is one."""
        if self.folder is None or name != self.target.backend or graph is not self.graph():
            return None
        place = self.folder / name
        return place if place.is_dir() else None

    def _execute(
        self,
        name: str,
        graph: Graph,
        inputs: Mapping[str, Array],
        record: Collection[str],
        timeout: float | None = None,
        progress: Progress | None = None,
        threads: int | None = None,
        steps: int | None = None,
    ) -> Execution:
        if threads is not None and (name != "c" or isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            what = f"the backend '{name}' has no threads" if name != "c" else f"threads is a number above 0, not {threads!r}"
            raise CompileError("SPK001", what)
        if timeout is not None and not 0 < timeout < math.inf:
            raise CompileError("SPK001", f"timeout is a number of seconds above 0, not {timeout:g}")
        backend = self._backend(name, graph)
        artefact = self._artefact(name, graph)
        more: dict[str, Any] = {} if threads is None else {"threads": threads}
        more |= {} if steps is None else {"steps": steps}
        return backend.run(graph, inputs, record=record, artefact=artefact, progress=progress, timeout=timeout, **more)

    @typed(backend="string", level="string")
    def stream(self, backend: str | None = None, *, level: str | None = None) -> Stream:
        """A network that is stepped while its input arrives, and keeps its state:

            with build.stream("c") as stream:
                for frame in camera:
                    out = stream.step(frame)["out"]         # or stream.step(events=[3, 17])

        backend: "c" (where there is a C compiler the default, else "numpy"), "numpy" or "reference". level: as for `run`. See
        `spikec.stream.Stream`. Raises CompileError SPK503 for a backend that runs whole samples only, SPK011, SPK404, SPK5xx.
        """
        graph = self.graph(level=level)
        name = backend or ("c" if load_backend("c", self.target).available() is None else "numpy")
        found: Any = self._backend(name, graph)
        if not hasattr(found, "stream"):
            raise CompileError("SPK503", f"the backend '{name}' runs whole samples only", fix="stream on c, numpy or reference")
        return Stream(graph, lambda: found.stream(graph))

    @typed(backend="string", record="string|strings", level="string", carry_state="flag", timeout="number", progress="function")
    def run(
        self,
        x: Any = None,
        backend: str | None = None,
        record: str | Sequence[str] | None = None,
        *,
        level: str | None = None,
        carry_state: bool = False,
        timeout: float | None = None,
        progress: Progress | None = None,
        threads: int | None = None,
        steps: int | None = None,
    ) -> Result:
        """Run samples: x is (batch, T, *shape), or a mapping by input name, or a list in the order of the inputs.

        steps: for how many steps frames x (batch, *shape) are shown; or those of a network without inputs, with one sample.

        backend: "reference" (the default), "numpy", "c" or "lava". record: layers to keep, by node name or module path, or "all".
        level: run the last graph of that level ("float", on the reference, is the network as trained) instead of the last of all.
        carry_state: go on from where the previous run of this level ended, instead of from the initial state. It is exact on every
        backend because the earlier input is run again in front, so its cost grows with the whole past; only the new steps are
        returned. timeout: seconds, for backends that run a process. threads: for "c", how many samples run at once, by default as
        many as there are processors. Raises CompileError: SPK006 and SPK007 for the data, SPK010,
        SPK011, SPK404, SPK5xx.
        """
        graph = self.graph(level=level)
        inputs, steps = check_steps(graph, x, steps)
        name = backend or "reference"
        wires = _wires(graph, record)
        skip = 0
        if carry_state and graph.level in self._past:
            past, before = self._past[graph.level]
            inputs, skip = _behind(past, inputs) if inputs else ({}, before)
            steps = None if steps is None else before + steps
        begin = time.perf_counter()
        execution = self._execute(name, graph, inputs, wires, timeout, progress, threads, steps)
        seconds = time.perf_counter() - begin
        self._past[graph.level] = (inputs, extent(inputs, steps)[1])
        return Result.of(graph, inputs, execution, name, seconds, skip, self._setting())

    def _setting(self) -> Setting:
        hops = [entry.measured["hops a step"] for entry in self.ledger if "hops a step" in entry.measured]
        return Setting(self.target, lambda: self._stage(0).graph, hops[-1] if hops and self.graph().level == "placed" else None)

    @typed(backend="string")
    def decide(self, x: Any, backend: str | None = None) -> Decision:
        """Answers of a classifier, each given as soon as the build's cutoff allows (`compile(..., cutoff=0.002)`).

        x, backend: as for `run`. Every engine gives the same answers after the same steps; the C engine also computes no step more.
        Raises CompileError SPK404 if the build has no cutoff.
        """
        if self.cutoff is None:
            raise CompileError("SPK404", "the build has no cutoff", fix="compile with cutoff=0.002 (--cutoff) and calibration data")
        graph = self.graph()
        inputs = check_inputs(graph, x)
        if backend == "c" and graph.level != "float":
            engine: Any = self._backend("c", graph)
            found: Decision = engine.decide(graph, inputs, self.cutoff)
            return found
        return self.cutoff.decide(self._execute(backend or "reference", graph, inputs, ()).outputs[self.cutoff.output])

    @typed(backends="strings", timeout="number", progress="function")
    def verify(
        self,
        x: Any = None,
        backends: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
        steps: int | None = None,
    ) -> Verification:
        """Run the last graph on several backends and compare every spike and every final state with the reference.

        x, steps: as for `run`; without x the build's own golden samples, or GOLDEN_STEPS steps where there are no inputs.
        backends: without them, those that are there and can run the graph; why others were left out is in `skipped`.
        A backend that is asked for by name and is not there is an error.
        """
        graph = self.graph()
        if x is None and graph.inputs and steps is None:
            inputs = self.golden
        else:
            inputs, steps = check_steps(graph, x, steps if steps is not None or graph.inputs else GOLDEN_STEPS)
        named = backends is not None
        wanted = list(dict.fromkeys(backends if backends is not None else (*ENGINES, self.target.backend)))
        record = default_record(graph)
        rows: list[Row] = []
        found: list[Divergence] = []
        skipped: dict[str, str] = {}
        seconds: dict[str, float] = {}
        begin = time.perf_counter()
        expected = self._execute("reference", graph, inputs, record, steps=steps)
        seconds["reference"] = time.perf_counter() - begin
        for name in wanted:
            if name == "reference":
                continue
            try:
                self._backend(name, graph)
            except CompileError as error:
                if named:
                    raise
                skipped[name] = error.diagnostics[0].message
                continue
            begin = time.perf_counter()
            got = self._execute(name, graph, inputs, record, timeout, progress, steps=steps)
            seconds[name] = time.perf_counter() - begin
            mine = compare(graph, name, expected, got)
            rows += mine
            if any(row.spikes or row.states for row in mine):
                first = locate(
                    graph,
                    name,
                    inputs,
                    expected,
                    got,
                    lambda cut, steps: interpret(graph, cut, record=record, steps=steps),
                    lambda cut, steps, name=name: self._execute(  # type: ignore[misc]  # bound default
                        name, graph, cut, record, timeout, steps=None if cut else steps
                    ),
                )
                found += [first] if first else []
        return Verification(*extent(inputs, steps), tuple(rows), tuple(found), skipped, seconds)

    @typed(backends="strings", timeout="number")
    def impulses(self, backends: Sequence[str] | None = None, *, timeout: float | None = None) -> Impulses:
        """Measure on what was built how long an impulse takes from the inputs to every layer, and compare with the model's graph.

        backends: as for `verify`; the target's own one runs the emitted artefact. Needs a graph of integers with inputs.
        """
        built = self.graph()
        if built.level == "float" or not built.inputs:
            raise CompileError(
                "SPK404",
                "impulses are sent through a graph of integers with inputs, and this build has none",
                fix="compile with --bits, or for a target of integers",
            )
        names = self.stage_names
        before = names.index("retime") - 1 if "retime" in names else len(names) - 1
        runs: dict[str, Run] = {}
        for name in backends if backends is not None else (*ENGINES, self.target.backend):
            try:
                self._backend(name, built)
            except CompileError:
                if backends is not None:
                    raise
                continue
            runs[name] = lambda graph, inputs, wires, name=name: self._execute(name, graph, inputs, wires, timeout)  # type: ignore[misc]  # bound default
        return measure_impulses(self._stage(before).graph, built, runs)

    def ranges(self, x: Any = None) -> HeadRoom:
        """How far every sum and state of every population reaches in the worst case and, with data, on them; where one can wrap or
        saturate, the neuron and the input that does it (`print(build.ranges().text())`).

        x: as for `run`. Raises CompileError SPK404 for a network of floats, SPK006 and SPK007 for the data.
        """
        graph = self.graph()
        return head_room(graph, self.target, None if x is None else check_inputs(graph, x))

    def memory(self) -> Memory:
        """Bytes of states, buffers and constants in the emitted C, layer by layer (`print(build.memory().text())`).

        Raises CompileError SPK502 for a graph that the C backend does not compile.
        """
        backend: Any = load_backend("c", self.target)
        found: Memory = backend.memory(self.graph())
        return found

    # ------------------------------------------------------------------------------------------------------ summary

    def summary(self) -> dict[str, Any]:
        """What a person wants to know first, as plain data: sizes, approximations, lag."""
        graph = self.graph()
        connections = sum(synapses(node, graph.type_of(node.inputs[0]).shape) for node in graph.nodes if isinstance(node, SYNAPTIC))
        return {
            "name": graph.name,
            "target": self.target.name,
            "backend": self.target.backend,
            "level": graph.level,
            "passes": self.stage_names[1:],
            "populations": [
                {"name": node.name, "neurons": graph.types[node.name][0][1].size, "program": node.program.name}
                for node in graph.neurons
            ],
            "neurons": sum(graph.types[node.name][0][1].size for node in graph.neurons),
            "synapses": connections,
            "lag": max((graph.output_lag(name) for name, _ in graph.outputs), default=0),
            "approximations": [entry.text() for entry in self.ledger if entry.kind == "approximation"],
            "conventions": [entry.text() for entry in self.ledger if entry.kind == "convention"],
            "exact": sum(entry.kind == "exact" for entry in self.ledger),
        }


def load(folder: str | Path) -> Build:
    """A build from its folder. Neither the training framework nor the frontend is needed to run it.

    Raises CompileError: SPK002 no such folder, SPK401 not a build, SPK402 damaged, SPK403 made by another version.
    """
    if folder is None:
        raise CompileError("SPK001", "a build is a path, not None")
    check_path("a build", folder)
    folder = Path(folder)
    manifest = read_manifest(folder)
    text = (folder / "target.toml").read_text(encoding="utf-8")
    ledger = Ledger()
    for row in json.loads((folder / "ledger.json").read_text(encoding="utf-8")):
        loc = Loc(**row.pop("loc")) if row["loc"] else row.pop("loc")
        ledger.entries.append(Entry(pass_name=row.pop("pass"), loc=loc, **row))
    stages = [StageFile(item["pass"], item["level"], folder / item["file"]) for item in manifest["stages"]]
    golden = read_npz(folder / "golden.npz")
    file = folder / "weights.json"
    origins = json.loads(file.read_text(encoding="utf-8")) if file.name in manifest["files"] else None
    target = parse_target(text, "target.toml")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in manifest["options"].items()}
    build = Build(stages, ledger, target.as_asked(options), text, golden, options, folder, origins)
    if found := manifest.get("cutoff"):
        build.cutoff = Cutoff.of_json(found)
    return build


def golden_inputs(graph: Graph, calibrate: Mapping[str, Array] | None) -> dict[str, Array]:
    """The samples of the golden vectors: the first of the calibration data, else random ones that are always the same.

    graph: the last one, whose inputs say what may be fed.
    """
    if not graph.inputs:
        return {}
    if calibrate is not None:
        return check_inputs(graph, {name: array[:GOLDEN_SAMPLES] for name, array in calibrate.items()})
    generator = np.random.Generator(np.random.PCG64(0))
    data: dict[str, Array] = {}
    for node in graph.inputs:
        shape = (GOLDEN_SAMPLES, GOLDEN_STEPS, *node.type.shape)
        if node.encode:
            data[node.name] = np.broadcast_to(generator.random((shape[0], 1, *shape[2:])), shape)
        elif node.type.kind == "spike":
            data[node.name] = generator.integers(0, 2, shape)
        elif is_float(node.type.dtype) and node.bounds is None:
            data[node.name] = generator.integers(-8, 9, shape) / 8
        else:
            low, high = node.bounds or (-7, 7)
            data[node.name] = generator.integers(low, high + 1, shape) * (node.unit or 1)
    return check_inputs(graph, data)


def _level(stage: Stage | StageFile) -> str:
    return stage.level if isinstance(stage, StageFile) else stage.graph.level


def _wires(graph: Graph, record: str | Sequence[str] | None) -> tuple[str, ...]:
    if record is None:
        return ()
    if record == "all":
        return default_record(graph)
    names = [record] if isinstance(record, str) else record
    return tuple(dict.fromkeys(find_wire(graph, name) for name in names))


def _behind(past: Mapping[str, Array], now: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
    """The new input behind the earlier one, and how many steps that was."""
    joined = {}
    for name, array in now.items():
        if past[name].shape[0] != array.shape[0]:
            raise CompileError(
                "SPK006",
                f"carry_state: the earlier run had {past[name].shape[0]} samples, this one has {array.shape[0]}",
                fix="run without carry_state to start afresh",
            )
        joined[name] = np.concatenate([past[name], array], axis=1)
    return joined, next(iter(past.values())).shape[1]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
