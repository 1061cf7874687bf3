"""From a model to a build: `spikec.compile`, and loading the user's own model file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_type_hints

import numpy as np

from spikec.backend import load_backend
from spikec.bits import read_bits
from spikec.build import Build, golden_inputs, load
from spikec.counts import SYNAPTIC, synapses
from spikec.cutoff import Cutoff, calibrate_steps
from spikec.cutoff import calibrate as calibrate_cutoff
from spikec.diagnostics import CompileError
from spikec.files import check_path
from spikec.folder import is_build
from spikec.headroom import head_room
from spikec.inputs import check_inputs, drawn, frames
from spikec.ir.graph import Graph
from spikec.ir.rules import verify
from spikec.ir.text import read_graph, write_graph
from spikec.ir.types import KINDS, Array, Kind
from spikec.ledger import Ledger
from spikec.models import torch_module, traced
from spikec.options import fits, typed
from spikec.pipeline import OPTIONAL, Stage, load_pass, run_passes, with_matching, with_optional
from spikec.score import answers, check_labels, classes, scored_output
from spikec.spelling import did_you_mean
from spikec.target import FOLDER, Target, load_target, parse_target

if TYPE_CHECKING:
    pass

#: Told about every stage as soon as it is there.
OnStage = Callable[[Stage], None]
#: Formats that are whole graphs -> "module:function". The function takes the path and by keyword name, dt, ledger and what the
#: module's OPTIONS lists.
_READERS: Final = {
    ".net": "spikec.frontend.slayer:read_net",
    ".nir": "spikec.frontend.nir:load_nir",
    ".onnx": "spikec.frontend.onnx:read_onnx",
}
#: The formats that are written, the same way; the function takes the graph, the path and the ledger.
_WRITERS: Final = {
    ".net": "spikec.frontend.slayer:write_net",
    ".nir": "spikec.frontend.nir:write_nir",
    ".onnx": "spikec.frontend.onnx:write_onnx",
    ".sir": "spikec.ir.text:write_graph",
}
#: Formats that hold networks of activations, which are made to spike where nothing else is said.
_ANNS: Final = (".onnx",)
#: What makes a network of activations spike, before all other passes; and the steps that a frame is fed for, if nothing is said.
_TO_SPIKING: Final = ("fold-scale", "ann-to-snn")
FRAME_STEPS: Final = 100
_SPIKING_OPTIONS: Final = frozenset({"percentile", "fire", "reset", "initial", "readout", "measured"})
#: The target where none is named and the model is no build, which has its own.
DEFAULT_TARGET: Final = "loihi2"
#: Options whose default is "auto"; None means something else there.
_AUTO: Final = ("time_axis", "batch_axis")
#: Either asks for early answers.
_EARLY: Final = ("cutoff", "cutoff_steps")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")


@typed(
    target="name",
    strict="flag",
    prove_ranges="flag",
    cutoff="number",
    cutoff_steps="number",
    time_axis="whole|string|none",
    batch_axis="whole|string|none",
    input_kind="string",
    small="flag",
    spiking="flag",
    on_stage="function",
)
def compile(
    model: Any,
    example_input: Any = None,
    *,
    target: str | None = None,
    calibrate: Any = None,
    labels: Any = None,
    bits: int | str | Sequence[int] | Mapping[str, int] | None = None,
    strict: bool = False,
    prove_ranges: bool = False,
    cutoff: float | None = None,
    cutoff_steps: float | None = None,
    max_ram: int | None = None,
    max_flash: int | None = None,
    small: bool = False,
    fit: str | None = None,
    name: str | None = None,
    time_axis: int | str | None = "auto",
    batch_axis: int | str | None = "auto",
    steps: int | None = None,
    dt: float | None = None,
    input_kind: Kind | None = None,
    weights: str | Path | None = None,
    spiking: bool | None = None,
    dump_ir: str | Path | None = None,
    on_stage: OnStage | None = None,
    **options: Any,
) -> Build:
    """Compile a trained model for a target.

    model: a torch module; "file.py:name", where name is a module, a module class that needs no arguments, or a function that
    returns a module; a `.sir` file; a SLAYER `.net`, `.nir` or `.onnx` file, whose options (see `spikec.frontend.slayer`,
    `spikec.frontend.nir` and `spikec.frontend.onnx`) are taken as well; a Graph; a Build or its folder, which is compiled again
    from the graph that it began with.
    example_input: what the model itself takes. Needed for a torch module; a "file.py:name" may instead define `example_input`, a
    tensor or a function returning one. An array is made a tensor. time_axis, batch_axis, steps, dt (seconds per step),
    input_kind, name: see `spikec.trace`. weights: a state dict to load first; a build of a torch model takes it without a new
    trace, and refuses it where only a new trace would be exact.
    target: the name of a target, or a `.toml` file; by default loihi2, or what the build was compiled for, with its options.
    calibrate: input data (batch, T, *shape), or a mapping by input name; labels: (batch,) integers. bits: bits of a weight; for a
    target that runs floats it asks for integers instead. A number, one a layer ([8, 4, 8], or by name {"fc2": 4}), or "mixed": what
    costs the least within max_bytes (`spikec.bits`).
    small: weights of pruned layers in the fewest bytes of program and memory, not in the least time; a budget of `max_bytes` too.
    cutoff: the share of the answers that early ones may lose; cutoff_steps: the share of the steps that they may take on average,
    in its stead (see `spikec.cutoff`).
    max_ram, max_flash: bytes that the emitted C may take, in place of the target's own limits; without flash, constants count as
    RAM. fit: "one-core", or "4-cores": fewer bits, neurons and synapses until the network passes all design rules on so many
    cores, as little as the calibration data allow (`spikec.fit`). spiking: make a network of ReLUs spike (see
    `spikec.passes.ann_to_snn`, whose options are taken); by default where the model is an `.onnx`. calibrate may be frames
    (samples, *shape) where steps is given or the network is made to spike: each is fed for `steps` steps, 100 by default.
    strict: refuse every approximation that was not asked for. prove_ranges: refuse a network in which any integer can wrap or
    saturate, in the worst case (see `Build.ranges`). dump_ir: a folder for the graph after every pass, which is written
    even where a later pass fails. on_stage: called with every stage. options: options of the target's passes, by name.

    Raises CompileError for everything that the user can mend, with all violations found.
    """
    if fit is not None:
        arguments = {**{key: value for key, value in locals().items() if key not in ("fit", "options")}, **options}
        from spikec.fit import fitted

        return fitted(compile, target_of(model, target), fit, arguments)
    build = _build_of(model)
    chosen, text = (build.target, build.target_text) if build and target is None else find_target(target or DEFAULT_TARGET)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    asked = _Asked(read_bits(bits), strict, prove_ranges, max_ram, max_flash, small, cutoff, cutoff_steps, spiking, options)
    ledger = Ledger()
    if build is not None:
        asked = asked.after(build, target is None, calibrate is not None, ledger)
    chosen = _limited(chosen, asked)
    module, read = _reader(model)
    readers = frozenset(module.OPTIONS if module else ())
    asked_spiking = asked.spiking or (asked.spiking is None and bool(asked.options.keys() & _SPIKING_OPTIONS - readers))
    is_ann_file = isinstance(model, (str, os.PathLike)) and os.fspath(model).endswith(_ANNS)
    spiking = asked_spiking or (asked.spiking is None and is_ann_file)
    passes = [*(_TO_SPIKING if spiking else ()), *chosen.passes]
    if asked.bits is not None and chosen.level == "float" and "to-fixed" not in passes:
        passes += ["fold-scale", "to-fixed"]
    given: dict[str, Any] = {"target": chosen, "calibrate": None, "labels": None, "scales": None}
    given |= {"bits": asked.bits, "strict": asked.strict}
    reading = {key: value for key, value in asked.options.items() if key in readers}
    asked = replace(asked, options={key: value for key, value in asked.options.items() if key not in readers})
    if "input_kind" in readers and input_kind is not None:
        reading["input_kind"] = input_kind
    _check_names(model, module, passes, asked.options, given, chosen)
    passes = with_optional(passes, {**asked.options, "bits": asked.bits})
    if "prune" in passes and "choose-formats" not in passes and chosen.has("sparse_synapse_bits"):
        passes.append("choose-formats")
    _check_kinds(passes, asked.options, input_kind, dt, name)
    frame_steps = steps if steps is not None else FRAME_STEPS
    if isinstance(frame_steps, bool) or not isinstance(frame_steps, int) or frame_steps < 1:
        raise CompileError("SPK001", f"steps is a whole number of at least 1, not {steps!r}")
    check_path("weights", weights)
    check_path("dump_ir", dump_ir)
    if spiking and time_axis == "auto":
        time_axis = None  # a network of activations takes frames
    axes = {"time_axis": time_axis, "batch_axis": batch_axis, "steps": steps, "dt": dt, "input_kind": input_kind}
    plain = {"example_input": example_input, "weights": weights, **axes}
    if spiking:
        plain |= {"time_axis": "auto", "steps": None}
    of_torch = [key for key, value in plain.items() if (value != "auto" if key in _AUTO else value is not None)]
    if calibrate is not None and "steps" in of_torch:
        of_torch.remove("steps")  # frames to calibrate on are fed for so many steps
    origins = build.origins if build and weights is None else None
    if build is not None:
        graph = _graph_of(build, name, [key for key in of_torch if key != "weights"], weights)
    elif isinstance(model, Graph):
        graph = _plain_graph(model, name, of_torch, "a graph")
    elif read is not None:
        if wrong := [key for key in of_torch if key != "dt" and key not in reading]:
            raise CompileError("SPK001", f"{wrong[0]} belongs to a torch model; {os.fspath(model)} is a graph already")
        graph = read(Path(model), name=name, dt=dt, ledger=ledger, **reading)
    elif isinstance(model, (str, os.PathLike)) and Path(os.fspath(model)).suffix == ".sir":
        graph = _plain_graph(read_graph(Path(model)), name, of_torch, os.fspath(model))
    else:
        graph, origins = traced(model, example_input, weights, name, axes)

    watch = _Dump(Path(dump_ir)) if dump_ir is not None else None

    def seen(stage: Stage) -> None:
        if watch:
            watch(stage)
        if on_stage:
            on_stage(stage)

    if asked.bits is not None and graph.level != "float":
        raise CompileError("SPK001", f"bits={asked.bits}: the graph holds integers already")
    if spiking and not asked_spiking and not _is_ann(graph):
        passes = [each for each in passes if each not in _TO_SPIKING]
        spiking = False
    if calibrate is not None:
        framed = spiking or steps is not None
        calibrate = frames(graph, calibrate, frame_steps, own=steps is None) if framed else check_inputs(graph, calibrate)
        given["calibrate"] = calibrate
    if labels is not None:
        given["labels"] = _labels(labels, calibrate, graph)
    if calibrate is not None:
        passes = with_matching(passes, graph)
    stages = run_passes(graph, passes, {**given, **asked.options}, ledger, seen)
    if asked.strict:
        ledger.strict()
    last = stages[-1].graph
    if asked.prove_ranges:
        _prove(last, chosen, calibrate)
    if found := list(load_backend(chosen.backend, chosen).check(last)):
        raise CompileError.many(found)
    early = _cutoff(last, given, asked.cutoff, asked.cutoff_steps, ledger, chosen)
    made = Build(stages, ledger, chosen, text, golden_inputs(last, calibrate), asked.told(), origins=origins)
    made.cutoff = early
    return made


@dataclass(frozen=True)
class _Asked:
    """What a compilation is asked for beside the model and its data; the names are those of `compile`."""

    bits: Any
    strict: bool
    prove_ranges: bool
    max_ram: int | None
    max_flash: int | None
    small: bool
    cutoff: float | None
    cutoff_steps: float | None
    spiking: bool | None
    options: dict[str, Any]

    def __post_init__(self) -> None:
        if self.cutoff is not None and self.cutoff_steps is not None:
            what = "cutoff says which share of the answers may be lost, cutoff_steps which share of the steps they take"
            raise CompileError("SPK001", f"{what}: both are asked for", fix="give one of them: the other is what comes of it")

    def after(self, build: Build, same_target: bool, calibrated: bool, ledger: Ledger) -> _Asked:
        """The same for a build that is compiled again: what it was asked for holds where nothing else is said, for its own target.

        Its cutoff was chosen on calibration data, and is chosen anew or left out.
        """
        was_spiking = "ann-to-snn" in build.stage_names
        if not same_target:
            return replace(self, spiking=True) if self.spiking is None and was_spiking else self  # it still has to spike
        kept = dict(build.options)
        flags = {key: kept.pop(key, False) or getattr(self, key) for key in ("strict", "prove_ranges", "small")}
        values = {key: kept.pop(key, None) for key in ("bits", "max_ram", "max_flash", *_EARLY)}
        if any(getattr(self, key) is not None for key in _EARLY):
            values |= dict.fromkeys(_EARLY)  # one takes the other's place
        values |= {key: own for key in values if (own := getattr(self, key)) is not None}
        for key in _EARLY:
            if getattr(self, key) is None and values[key] is not None and not calibrated:
                what = f"the build's {key}={values[key]} is left out: its margin is chosen anew on calibration data only"
                ledger.record("", "convention", what)
                values[key] = None
        spiking = was_spiking if self.spiking is None else self.spiking
        return replace(self, **flags, **values, spiking=spiking, options={**kept, **self.options})

    def told(self) -> dict[str, Any]:
        """What a build keeps of it."""
        found = {"bits": self.bits, "strict": self.strict}
        found |= {"prove_ranges": True} if self.prove_ranges else {}
        found |= {key: asked for key in _EARLY if (asked := getattr(self, key)) is not None}
        found |= {"max_ram": self.max_ram, "max_flash": self.max_flash}
        found |= {"small": True} if self.small else {}
        return {key: value for key, value in {**found, **self.options}.items() if _plain(value)}


def _check_names(
    model: Any, module: Any, passes: Sequence[str], options: Mapping[str, Any], given: Mapping[str, Any], target: Target
) -> None:
    """SPK001 for an option that neither a pass nor the file's reader takes."""
    known = {item.name for each in (*passes, *OPTIONAL) for item in fields(load_pass(each))}  # type: ignore[arg-type]  # dataclasses
    free = sorted((known - set(given)) | set(module.OPTIONS if module else ()))
    for key in options:
        if key not in free:
            what = f"'{Path(os.fspath(model)).suffix}' and the target" if module else "the target"
            fix = did_you_mean(key, free) if free else None
            raise CompileError("SPK001", f"unknown option '{key}' for {what} '{target.name}'", fix=fix)


def _check_kinds(passes: Sequence[str], options: Mapping[str, Any], input_kind: Any, dt: Any, name: Any) -> None:
    """SPK001 for a value that is of another type than its option."""
    for each in passes:
        hints = get_type_hints(load_pass(each))
        for key in options.keys() & hints.keys():
            if not fits(options[key], hints[key]):
                wanted = getattr(hints[key], "__name__", str(hints[key])).replace("None", "none")
                raise CompileError("SPK001", f"the option '{key}' of the pass '{each}' takes {wanted}, not {options[key]!r}")
    if input_kind is not None and input_kind not in KINDS:
        raise CompileError("SPK001", f"'{input_kind}' is no kind of input", fix=f"choose one of {', '.join(KINDS)}")
    if dt is not None and (isinstance(dt, bool) or not isinstance(dt, (int, float))):
        raise CompileError("SPK001", f"dt is a number of seconds, not {dt!r}")
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise CompileError("SPK001", f"a graph's name consists of letters, digits, _ and ., not '{name}'")


def _prove(graph: Graph, target: Target, calibrate: Mapping[str, Array] | None) -> None:
    """SPK218 for everything that can wrap or saturate, with what happens on the calibration data."""
    if graph.level == "float":
        what = f"prove_ranges is for integers; the target '{target.name}' runs this network in floats"
        raise CompileError("SPK001", what, fix="ask for integers: --bits 8")
    data = check_inputs(graph, calibrate) if calibrate is not None else None
    if found := head_room(graph, target, data).diagnostics():
        raise CompileError.many(found)


def _limited(target: Target, asked: _Asked) -> Target:
    """The target with the limits that the user set."""
    limits = {"max_ram": asked.max_ram, "max_flash": asked.max_flash}
    for key, value in limits.items():
        if value is not None and (not fits(value, int) or value < 1):
            raise CompileError("SPK001", f"{key} is a whole number of bytes above 0, not {value!r}")
    said = [key for key, value in limits.items() if value is not None] + (["small"] if asked.small else [])
    if said and target.backend != "c":
        raise CompileError("SPK001", f"{said[0]} is for targets that C is emitted for; '{target.name}' is not one of them")
    return target.as_asked({**limits, "small": asked.small, "max_bytes": asked.options.get("max_bytes")})


@typed(
    time_axis="whole|string|none",
    batch_axis="whole|string|none",
    steps="whole",
    name="string",
    dt="number",
    input_kind="string",
    weights="path",
)
def trace(
    model: Any,
    example_input: Any = None,
    *,
    time_axis: int | str | None = "auto",
    batch_axis: int | str | None = "auto",
    steps: int | None = None,
    name: str | None = None,
    dt: float | None = None,
    input_kind: Kind | None = None,
    weights: str | Path | None = None,
) -> Graph:
    """The float graph of a torch module or of a "file.py:name", before any pass.

    time_axis, batch_axis: which axes of the example input are time and batch; "auto" finds out and refuses to guess. time_axis=None
    with steps=T is a constant frame fed at every step. dt: seconds per step, if the model means any. input_kind: "spike", "graded"
    or "value"; by default spike where the example holds only 0 and 1. See `spikec.compile`.
    """
    return traced(
        model,
        example_input,
        weights,
        name,
        {"time_axis": time_axis, "batch_axis": batch_axis, "steps": steps, "dt": dt, "input_kind": input_kind},
    )[0]


@typed(path="path", name="string", dt="number")
def read_model(
    path: str | Path, *, name: str | None = None, dt: float | None = None, ledger: Ledger | None = None, **options: Any
) -> Graph:
    """The graph in a `.sir`, `.nir`, `.net` or `.onnx` file, before any pass.

    dt: seconds per step. options: those of the format's reader. ledger: told every convention that was used.
    """
    module, read = _reader(path)
    if read is not None:
        if wrong := [key for key in options if key not in module.OPTIONS]:
            raise CompileError(
                "SPK001", f"unknown option '{wrong[0]}' for '{Path(path).suffix}'", fix=did_you_mean(wrong[0], module.OPTIONS)
            )
        return read(Path(path), name=name, dt=dt, ledger=ledger if ledger is not None else Ledger(), **options)
    if Path(path).suffix != ".sir":
        raise CompileError("SPK003", f"'{path}' is not a graph", fix=f"give a {_either([*_READERS, '.sir'])} file")
    graph = read_graph(Path(path))
    if dt is not None and graph.dt is None:  # what a torch model seldom says, and NIR needs
        graph, dt = replace(graph, dt=dt), None
    asked = [key for key, value in {**options, "dt": dt}.items() if value is not None]
    return verify(_plain_graph(graph, name, asked, os.fspath(path)))


@typed(source="path", place="path", name="string", dt="number", after="string", level="string")
def convert(
    source: str | Path,
    place: str | Path,
    *,
    name: str | None = None,
    dt: float | None = None,
    after: str | None = None,
    level: str | None = None,
    ledger: Ledger | None = None,
    **options: Any,
) -> Graph:
    """Read a graph in one format and write it in another, each known by its suffix: .sir, .nir, .onnx, .net.

    Nothing is compiled: the graph that is written computes what was read. source may be a build folder: its last graph is taken,
    or the one after the pass `after`, or the last one of the level `level`. options: the reader's. Returns the graph. Raises
    CompileError for what either format cannot say, SPK008 if the file cannot be written.
    """
    place = Path(place)
    if place.suffix not in _WRITERS:
        raise CompileError("SPK001", f"'{place}' is no format to write", fix=f"end the name in {_either(_WRITERS)}")
    if place.is_dir():
        raise CompileError("SPK008", f"{place}: cannot be written (it is a folder)")
    told = ledger if ledger is not None else Ledger()
    if is_build(Path(source)):
        asked = [*options, *(["dt"] if dt is not None else [])]
        graph = _plain_graph(load(source).graph(after, level), name, asked, os.fspath(source))
    elif after is not None or level is not None:
        raise CompileError("SPK001", f"{source} is one graph: after and level need a build folder")
    else:
        graph = read_model(source, name=name, dt=dt, ledger=told, **options)
    told.pass_name = "write"
    module, _, function = _WRITERS[place.suffix].partition(":")
    try:
        getattr(import_module(module), function)(graph, place, **({} if place.suffix == ".sir" else {"ledger": told}))
    except OSError as error:
        raise CompileError("SPK008", f"{place}: cannot be written ({error.strerror})") from None
    return graph


def find_target(name: str) -> tuple[Target, str]:
    """A target and the text of its file. Raises CompileError SPK004 or SPK012."""
    load_target(name)  # says what is wrong with a name that is none
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    text = path.read_text(encoding="utf-8")
    return parse_target(text, path.name), text


def target_of(model: Any, name: str | None) -> Target:
    """The target that `compile` would take."""
    build = _build_of(model) if name is None else None
    return build.target if build is not None else find_target(name or DEFAULT_TARGET)[0]


# ------------------------------------------------------------------------------------------------------------- models


def _reader(model: Any) -> tuple[Any, Callable[..., Graph] | None]:
    """The module and the function that read a file of a known format; nothing for any other model."""
    if not isinstance(model, (str, os.PathLike)) or (suffix := Path(os.fspath(model)).suffix) not in _READERS:
        return None, None
    name, _, function = _READERS[suffix].partition(":")
    module = import_module(name)
    return module, getattr(module, function)


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}"


def _is_ann(graph: Graph) -> bool:
    from spikec.passes.ann_to_snn import is_ann

    return is_ann(graph)


def _plain_graph(graph: Graph, name: str | None, asked: list[str], what: str) -> Graph:
    if asked:
        raise CompileError("SPK001", f"{asked[0]} belongs to a torch model; {what} is a graph already")
    return graph if name is None else Graph(name, graph.level, graph.nodes, graph.outputs, graph.dt)


def _plain(value: Any) -> bool:
    """Whether an option says something, and can be kept with the build."""
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(each, (bool, int, float, str)) for each in value)
    return value is not None and value is not False and isinstance(value, (bool, int, float, str))


#: From which share of right answers on samples look as if the network had learnt them, and what is said of early answers then.
_BY_HEART: Final = 0.995
_LEARNT: Final = (
    "; (nearly) all of the calibration data are answered right: if the network has learnt them, it is less sure of others, and"
    " loses more there, or takes more steps: calibrate on samples that it has not learnt"
)


def _cutoff(
    graph: Graph, given: Mapping[str, Any], budget: float | None, share: float | None, ledger: Ledger, target: Target
) -> Cutoff | None:
    """The margin for an early answer, from the last graph on the calibration data; None where none is asked for."""
    if budget is None and share is None:
        return None
    option = "cutoff" if share is None else "cutoff_steps"
    if given["calibrate"] is None:
        raise CompileError("SPK001", f"{option} needs calibration data to choose its margin on", fix="give calibrate (--calibrate)")
    labels = given["labels"]
    if labels is not None and labels.ndim == 2:
        what = f"{option} gives one answer a sample, and these labels ask for one at every step"
        raise CompileError("SPK001", what, fix=f"leave {option} out, or give one label a sample")
    name = scored_output(graph)
    inputs = check_inputs(graph, given["calibrate"])
    engine = load_backend("numpy", target)
    output, *harder = (engine.run(graph, each, record=()).outputs[name] for each in chain([inputs], drawn(inputs)))
    if budget is not None:
        found = calibrate_cutoff(output, labels, name, budget, harder)
    else:
        found = calibrate_steps(output, labels, name, share or 0.0, harder)
    decided, final = found.decide(output), answers(output)
    measured = {
        "mean steps": decided.mean_steps,
        "of steps": float(output.shape[1]),
        "answers changed": float(np.mean(decided.answers != final)),
        "answers changed with less input": float(np.mean([found.decide(each).answers != answers(each) for each in harder])),
    }
    if labels is not None:
        counted = labels >= 0
        for when, answer in (("accuracy of the whole run", final), ("accuracy", decided.answers)):
            measured[when] = float(np.mean(answer[counted] == labels[counted]))
    ledger.pass_name = "cutoff"
    ledger.record(
        graph.output(name).node,
        "approximation",
        f"answers are given {found.text()}"
        + (": no lead on the calibration data allows an earlier one" if not found.early and share is None else "")
        + ("" if labels is not None else " (no labels: as few answers change as may be lost)")
        + (_LEARNT if found.early and measured.get("accuracy of the whole run", 0.0) >= _BY_HEART else ""),
        asked=found.asked,
        measured=measured,
    )
    return found


def decide_early(build: Build, calibrate: Mapping[str, Array], labels: Array | None, budget: float) -> None:
    """Give a build that was changed after compiling a cutoff, calibrated on data as the user has them."""
    given = {"calibrate": calibrate, "labels": labels}
    build.cutoff = _cutoff(build.graph(), given, budget, None, build.ledger, build.target)


def _labels(labels: Any, calibrate: Mapping[str, Any] | None, graph: Graph) -> Any:
    if calibrate is None:
        raise CompileError("SPK001", "labels need calibration data to belong to")
    samples, steps = next((data.shape[:2] for data in calibrate.values()), (0, 0))
    return check_labels(labels, samples, steps, classes(graph))


def _build_of(model: Any) -> Build | None:
    """A build, or the one in a build folder; None for any other model."""
    if isinstance(model, Build):
        return model
    return load(os.fspath(model)) if isinstance(model, (str, os.PathLike)) and is_build(Path(model)) else None


def _graph_of(build: Build, name: str | None, asked: list[str], weights: str | Path | None) -> Graph:
    """The graph that a build began with, with other weights if they are given."""
    graph = _plain_graph(build.graph("input"), name, asked, "a build")
    if weights is None:
        return graph
    torch_module()
    from spikec.frontend.weights import with_weights

    return with_weights(graph, build.origins, weights)


# -------------------------------------------------------------------------------------------------------------- dumps


class _Dump:
    """Writes every stage into a folder, and a table of what each pass took and left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = [f"{'pass':16} {'level':7} {'ms':>9} {'nodes':>6} {'neurons':>9} {'synapses':>10}"]
        self.number = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CompileError("SPK008", f"{folder}: cannot be written ({error.strerror})") from None

    def __call__(self, stage: Stage) -> None:
        graph = stage.graph
        neurons = sum(graph.types[node.name][0][1].size for node in graph.neurons)
        connections = sum(synapses(node, graph.type_of(node.inputs[0]).shape) for node in graph.nodes if isinstance(node, SYNAPTIC))
        self.lines.append(
            f"{stage.name:16} {graph.level:7} {stage.seconds * 1e3:9.1f} {len(graph.nodes):6} {neurons:9} {connections:10}"
        )
        try:
            write_graph(graph, self.folder / f"{self.number:02d}-{stage.name}.sir")
            (self.folder / "passes.txt").write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise CompileError("SPK008", f"{self.folder}: cannot be written ({error.strerror})") from None
        self.number += 1
