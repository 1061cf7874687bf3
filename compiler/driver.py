"""From a model to a build: `spikec.compile`, and loading the user's own model file."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, get_type_hints

import numpy as np

from spikec.backend import load_backend
from spikec.bits import read_bits
from spikec.build import Build, golden_inputs, load
from spikec.counts import SYNAPTIC, synapses
from spikec.cutoff import Cutoff
from spikec.cutoff import calibrate as calibrate_cutoff
from spikec.diagnostics import CompileError, Loc
from spikec.files import check_file, check_path, reading
from spikec.folder import is_build
from spikec.headroom import head_room
from spikec.inputs import check_inputs, frames
from spikec.ir.graph import Graph
from spikec.ir.rules import verify
from spikec.ir.text import read_graph, write_graph
from spikec.ir.types import KINDS, Array, Kind
from spikec.ledger import Ledger
from spikec.options import fits, typed
from spikec.pipeline import OPTIONAL, Stage, load_pass, run_passes, with_optional
from spikec.score import answers, check_labels, classes, scored_output
from spikec.spelling import did_you_mean
from spikec.target import FOLDER, Target, load_target, parse_target

if TYPE_CHECKING:
    from torch import nn

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
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")


@dataclass(frozen=True)
class UserModel:
    """A torch module out of the user's file, and the example input that the file gives, if it does."""

    model: nn.Module
    example_input: Any
    file: str


@typed(
    target="name",
    strict="flag",
    prove_ranges="flag",
    cutoff="number",
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
    small: weights of pruned layers in the fewest bytes, not those that take the least time; a budget of `max_bytes` does so too.
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
    build, again = _build_of(model), None
    bits = read_bits(bits)
    chosen, text = (build.target, build.target_text) if build and target is None else find_target(target or DEFAULT_TARGET)
    if build is not None and target is None:
        kept = dict(build.options)
        bits = kept.pop("bits", None) if bits is None else bits
        strict = kept.pop("strict", False) or strict
        prove_ranges = kept.pop("prove_ranges", False) or prove_ranges
        max_ram = kept.pop("max_ram", None) if max_ram is None else max_ram
        max_flash = kept.pop("max_flash", None) if max_flash is None else max_flash
        small = kept.pop("small", False) or small
        again = kept.pop("cutoff", None)
        if cutoff is not None or calibrate is not None:
            cutoff, again = again if cutoff is None else cutoff, None
        spiking = "ann-to-snn" in build.stage_names if spiking is None else spiking
        options = {**kept, **options}
    elif build is not None and spiking is None and "ann-to-snn" in build.stage_names:
        spiking = True  # for another target it still has to spike
    chosen = _limited(chosen, max_ram, max_flash, small, options)
    asked_spiking = spiking or (spiking is None and bool(options.keys() & _SPIKING_OPTIONS - _reader_options(model)))
    spiking = asked_spiking or (spiking is None and isinstance(model, (str, os.PathLike)) and os.fspath(model).endswith(_ANNS))
    passes = [*(_TO_SPIKING if spiking else ()), *chosen.passes]
    if bits is not None and chosen.level == "float" and "to-fixed" not in passes:
        passes += ["fold-scale", "to-fixed"]
    known = {item.name for each in (*passes, *OPTIONAL) for item in fields(load_pass(each))}  # type: ignore[arg-type]  # dataclasses
    module, read = _reader(model)
    reading = {key: options.pop(key) for key in module.OPTIONS if key in options} if module else {}
    if module and "input_kind" in module.OPTIONS and input_kind is not None:
        reading["input_kind"] = input_kind
    if spiking and time_axis == "auto":
        time_axis = None  # a network of activations takes frames
    frame_steps = steps if steps is not None else FRAME_STEPS
    if isinstance(frame_steps, bool) or not isinstance(frame_steps, int) or frame_steps < 1:
        raise CompileError("SPK001", f"steps is a whole number of at least 1, not {steps!r}")
    given: dict[str, Any] = {"target": chosen, "calibrate": None, "labels": None, "scales": None, "bits": bits, "strict": strict}
    free = sorted((known - set(given)) | set(module.OPTIONS if module else ()))
    for key in options:
        if key not in free:
            what = f"'{Path(os.fspath(model)).suffix}' and the target" if module else "the target"
            raise CompileError(
                "SPK001",
                f"unknown option '{key}' for {what} '{chosen.name}'",
                fix=did_you_mean(key, free) if free else None,
            )
    passes = with_optional(passes, {**options, "bits": bits})
    if "prune" in passes and "choose-formats" not in passes and chosen.has("sparse_synapse_bits"):
        passes.append("choose-formats")
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
    axes = {"time_axis": time_axis, "batch_axis": batch_axis, "steps": steps, "dt": dt, "input_kind": input_kind}
    check_path("weights", weights)
    check_path("dump_ir", dump_ir)
    plain = {"example_input": example_input, "weights": weights, **axes}
    if spiking:
        plain |= {"time_axis": "auto", "steps": None}
    asked = [key for key, value in plain.items() if value is not None and not (key in _AUTO and value == "auto")]
    asked += [key for key in _AUTO if plain[key] is None]
    given_graph = [key for key in asked if key != "steps" or calibrate is None]  # frames to calibrate on are fed for so many steps
    ledger = Ledger()
    if again is not None:
        ledger.record(
            "", "convention", f"the build's cutoff={again} is left out: its margin is chosen anew on calibration data only"
        )
    origins = build.origins if build else None
    if build is not None:
        graph = _graph_of(build, name, [key for key in given_graph if key != "weights"], weights)
        origins = None if weights is not None else origins
    elif isinstance(model, Graph):
        graph = _plain_graph(model, name, given_graph, "a graph")
    elif read is not None:
        if wrong := [key for key in given_graph if key != "dt" and key not in reading]:
            raise CompileError("SPK001", f"{wrong[0]} belongs to a torch model; {os.fspath(model)} is a graph already")
        graph = read(Path(model), name=name, dt=dt, ledger=ledger, **reading)
    elif isinstance(model, (str, os.PathLike)) and Path(os.fspath(model)).suffix == ".sir":
        graph = _plain_graph(read_graph(Path(model)), name, given_graph, os.fspath(model))
    else:
        graph, origins = _traced(model, example_input, weights, name, axes)

    watch = _Dump(Path(dump_ir)) if dump_ir is not None else None

    def seen(stage: Stage) -> None:
        if watch:
            watch(stage)
        if on_stage:
            on_stage(stage)

    if bits is not None and graph.level != "float":
        raise CompileError("SPK001", f"bits={bits}: the graph holds integers already")
    if spiking and not asked_spiking and not _is_ann(graph):
        passes = [each for each in passes if each not in _TO_SPIKING]
        spiking = False
    if calibrate is not None:
        framed = spiking or steps is not None
        calibrate = frames(graph, calibrate, frame_steps, own=steps is None) if framed else check_inputs(graph, calibrate)
        given["calibrate"] = calibrate
    if labels is not None:
        given["labels"] = _labels(labels, calibrate, graph)
    stages = run_passes(graph, passes, {**given, **options}, ledger, seen)
    if strict:
        ledger.strict()
    last = stages[-1].graph
    if prove_ranges:
        _prove(last, chosen, calibrate)
    if found := list(load_backend(chosen.backend, chosen).check(last)):
        raise CompileError.many(found)
    if cutoff is not None:
        early = _cutoff(last, given, cutoff, ledger, chosen)
    told = {
        key: value
        for key, value in {
            "bits": bits,
            "strict": strict,
            **({"prove_ranges": True} if prove_ranges else {}),
            **({"cutoff": cutoff} if cutoff is not None else {}),
            "max_ram": max_ram,
            "max_flash": max_flash,
            **({"small": True} if small else {}),
            **options,
        }.items()
        if _plain(value)
    }
    made = Build(stages, ledger, chosen, text, golden_inputs(last, calibrate), told, origins=origins)
    made.cutoff = early if cutoff is not None else None
    return made


def _prove(graph: Graph, target: Target, calibrate: Mapping[str, Array] | None) -> None:
    """SPK218 for everything that can wrap or saturate, with what happens on the calibration data."""
    if graph.level == "float":
        what = f"prove_ranges is for integers; the target '{target.name}' runs this network in floats"
        raise CompileError("SPK001", what, fix="ask for integers: --bits 8")
    data = check_inputs(graph, calibrate) if calibrate is not None else None
    if found := head_room(graph, target, data).diagnostics():
        raise CompileError.many(found)


def _limited(target: Target, max_ram: int | None, max_flash: int | None, small: bool, options: Mapping[str, Any]) -> Target:
    """The target with the limits that the user set."""
    limits = {key: value for key, value in (("ram", max_ram), ("flash", max_flash)) if value is not None}
    for key, value in limits.items():
        if not fits(value, int) or value < 1:
            raise CompileError("SPK001", f"max_{key} is a whole number of bytes above 0, not {value!r}")
        if target.backend != "c":
            raise CompileError("SPK001", f"max_{key} is for targets that C is emitted for; '{target.name}' is not one of them")
    if small and target.backend != "c":
        raise CompileError("SPK001", f"small is for targets that C is emitted for; '{target.name}' is not one of them")
    given = {"max_ram": max_ram, "max_flash": max_flash, "small": small, "max_bytes": options.get("max_bytes")}
    return target.as_asked(given)


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
    return _traced(
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


def _reader_options(model: Any) -> frozenset[str]:
    module, _ = _reader(model)
    return frozenset(module.OPTIONS if module else ())


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


def _cutoff(graph: Graph, given: Mapping[str, Any], budget: float, ledger: Ledger, target: Target) -> Cutoff:
    """The margin for an early answer, from the last graph on the calibration data."""
    if given["calibrate"] is None:
        raise CompileError("SPK001", "cutoff needs calibration data to choose its margin on", fix="give calibrate (--calibrate)")
    labels = given["labels"] if given["labels"] is not None and given["labels"].ndim == 1 else None
    name = scored_output(graph)
    inputs = check_inputs(graph, given["calibrate"])
    output = load_backend("numpy", target).run(graph, inputs, record=()).outputs[name]
    found = calibrate_cutoff(output, labels, name, budget)
    decided = found.decide(output)
    lost = np.mean(decided.answers != answers(output))
    ledger.pass_name = "cutoff"
    ledger.record(
        graph.output(name).node,
        "approximation",
        f"answers are given as soon as one class leads by {found.margin:.6g}",
        asked=f"--cutoff {budget}",
        measured={"mean steps": decided.mean_steps, "of steps": float(output.shape[1]), "answers changed": float(lost)},
    )
    return found


def decide_early(build: Build, calibrate: Mapping[str, Array], labels: Array | None, budget: float) -> None:
    """Give a build that was changed after compiling a cutoff, calibrated on data as the user has them."""
    given = {"calibrate": calibrate, "labels": labels}
    build.cutoff = _cutoff(build.graph(), given, budget, build.ledger, build.target)


def _labels(labels: Any, calibrate: Mapping[str, Any] | None, graph: Graph) -> Any:
    if calibrate is None:
        raise CompileError("SPK001", "labels need calibration data to belong to")
    samples, steps = next((data.shape[:2] for data in calibrate.values()), (0, 0))
    return check_labels(labels, samples, steps, classes(graph))


def _torch() -> ModuleType:
    try:
        return import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise CompileError(
            "SPK009", "a torch model needs PyTorch, which is not installed", fix="pip install 'spikec[torch]'"
        ) from None


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
    _torch()
    from spikec.frontend.weights import with_weights

    return with_weights(graph, build.origins, weights)


def _traced(
    model: Any, example_input: Any, weights: str | Path | None, name: str | None, axes: Mapping[str, Any]
) -> tuple[Graph, dict[str, Any] | None]:
    if isinstance(model, (str, os.PathLike)):
        with user_code(os.fspath(model)) as found:
            example = example_input if example_input is not None else found.example_input
            return _trace_module(found.model, example, weights, name, axes, found.file)
    torch = _torch()
    if not isinstance(model, torch.nn.Module):
        raise CompileError(
            "SPK003",
            f"a model is a torch module, a Graph, 'file.py:name', or a .nir, .net, .onnx or .sir file, not {type(model).__name__}",
            fix="instantiate it: Net()" if inspect.isclass(model) else None,
        )
    return _trace_module(model, example_input, weights, name, axes, None)


def _trace_module(
    model: Any,
    example_input: Any,
    weights: str | Path | None,
    name: str | None,
    axes: Mapping[str, Any],
    file: str | None,
) -> tuple[Graph, dict[str, Any] | None]:
    torch = _torch()
    from spikec.frontend import torch_trace

    if example_input is None:
        where = ", or define example_input in the model's file" if file else ""
        raise CompileError(
            "SPK001",
            "an example input is needed to trace the model",
            fix=f"give example_input, as the model takes it{where} (command line: --example or --input-shape)",
        )
    if weights is not None:
        model = torch_trace.copy_model(model)  # the user's own stays as it is
        torch_trace.load_weights(model, weights)
    real = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
    example = _tensors(example_input, torch, real[0] if real else torch.get_default_dtype())
    return torch_trace.trace_model(model, example, name=name, source_file=file, **axes)


def _tensors(example: Any, torch: ModuleType, dtype: Any) -> Any:
    """NumPy arrays as tensors in the model's own floats; tensors as they are; within tuples, lists and mappings as well."""
    if isinstance(example, Mapping):
        return {key: _tensors(item, torch, dtype) for key, item in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(_tensors(item, torch, dtype) for item in example)
    if isinstance(example, np.ndarray) and example.dtype.kind in "biuf":
        return torch.as_tensor(example.copy()).to(dtype)
    return example


@contextmanager
def user_code(spec: str) -> Iterator[UserModel]:
    """Run the user's file and find the model in it; while this is open, the file's own imports work.

    Afterwards sys.path and sys.modules are as before: neither the file nor what it imported from its own folder stays. Raises
    CompileError SPK002 or SPK003, at the line of the user's file that failed.
    """
    text, colon, wanted = spec.rpartition(":")
    if not colon or "/" in wanted or wanted.endswith(".py"):
        text, wanted = spec, ""
    path = Path(text)
    if path.suffix != ".py":
        raise CompileError("SPK003", f"'{spec}' is not a model", fix="give file.py:name, or a .nir, .net, .onnx or .sir file")
    check_file(path)
    with reading(path):
        path.open("rb").close()
    torch = _torch()
    before, search = dict(sys.modules), list(sys.path)
    folder = path.resolve().parent
    sys.path.insert(0, str(folder))
    try:
        module = _execute(path)
        model = _find(module, path, wanted, torch)
        example = getattr(module, "example_input", None)
        if callable(example) and not isinstance(example, torch.Tensor):
            example = _call(example, path, "example_input()")
        yield UserModel(model, example, path.name)
    finally:
        sys.path[:] = search
        for key, loaded in list(sys.modules.items()):
            if before.get(key) is not loaded and _inside(loaded, folder):
                if key in before:
                    sys.modules[key] = before[key]
                else:
                    del sys.modules[key]


def _inside(module: ModuleType, folder: Path) -> bool:
    """Whether a module came out of the user's folder, and not out of an environment that lies in it."""
    file = getattr(module, "__file__", None)
    if not file:
        return False
    path = Path(file).resolve()
    return path.is_relative_to(folder) and "site-packages" not in path.parts


def _execute(path: Path) -> ModuleType:
    key = path.stem
    if key in sys.modules or key in sys.stdlib_module_names or not key.isidentifier():
        key = f"spikec_model_{key}"
    spec = importlib.util.spec_from_file_location(key, path.resolve())
    if spec is None or spec.loader is None:
        raise CompileError("SPK003", f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickles look their module up there
    loader = spec.loader
    _guard(lambda: loader.exec_module(module), path, "importing the file")
    return module


def _guard(action: Callable[[], Any], path: Path, what: str) -> Any:
    """Run the user's code; whatever it raises is told at the last line of the user's file that led there."""
    try:
        return action()
    except CompileError:
        raise
    except SyntaxError as error:
        loc = Loc(path.name, (error.lineno or 0) if error.filename == str(path.resolve()) else 0)
        raise CompileError("SPK003", f"{what} failed: {error.msg}", loc=loc) from None
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path.resolve())]
        first = (str(error).splitlines() or [""])[0]
        loc = Loc(path.name, (lines[-1] or 0) if lines else 0)
        raise CompileError("SPK003", f"{what} failed: {type(error).__name__}: {first}", loc=loc) from error


def _call(function: Callable[[], Any], path: Path, what: str) -> Any:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        line = getattr(getattr(function, "__code__", None), "co_firstlineno", 0)
        raise CompileError(
            "SPK003",
            f"{what} needs arguments: {error}",
            loc=Loc(path.name, line),
            fix="write a function without arguments that returns the model, and name that",
        ) from None
    except ValueError:
        pass  # no signature to look at
    return _guard(function, path, what)


def _find(module: ModuleType, path: Path, wanted: str, torch: ModuleType) -> nn.Module:
    models = [
        name
        for name, value in vars(module).items()
        if isinstance(value, torch.nn.Module)
        or (inspect.isclass(value) and issubclass(value, torch.nn.Module) and value.__module__ == module.__name__)
    ]
    functions = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not wanted:
        raise CompileError(
            "SPK003",
            f"{path}: which model? A file is given with a name in it",
            fix=f"give {path}:name, with one of {', '.join(models or functions) or 'its own names'}",
        )
    if not hasattr(module, wanted):
        raise CompileError("SPK003", f"{path}: there is no '{wanted}' in it", fix=did_you_mean(wanted, [*models, *functions]))
    value = getattr(module, wanted)
    if not isinstance(value, torch.nn.Module) and callable(value):
        value = _call(value, path, f"{wanted}()")
    if not isinstance(value, torch.nn.Module):
        raise CompileError("SPK003", f"{path}: '{wanted}' gives {type(value).__name__}, not a torch module")
    return value


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
