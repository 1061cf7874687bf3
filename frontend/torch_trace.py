"""Trace a PyTorch model with a time loop, or one that does a single step a call, into a float graph.

`trace` is the whole interface; design §9 says how it works, `spikec.frontend.tracing` holds its parts.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from spikec.diagnostics import CompileError, Loc
from spikec.frontend.registry import FRAMEWORKS, Leaf, leaf_of, register_neuron
from spikec.frontend.tracing.axes import Layout
from spikec.frontend.tracing.build import Built, build, snake
from spikec.frontend.tracing.check import compare, second_example
from spikec.frontend.tracing.fold import Folded, count_steps, fold
from spikec.frontend.tracing.record import Files, Recorder, failure, recording, run_model, shared_keys, tensors_in
from spikec.frontend.tracing.steps import AxisChoice, Choices, SingleStep, choose_axes
from spikec.frontend.tracing.values import Record, Value, live_ops, product, values_in
from spikec.frontend.weights import Origins, find_origins, load_weights
from spikec.ir.graph import Graph
from spikec.ir.rules import verify
from spikec.ir.types import KINDS, Kind

#: Steps that a model which does one step a call is run for, if the caller does not say.
DEFAULT_STEPS = 5


def trace(
    model: torch.nn.Module,
    example_input: Any,
    *,
    time_axis: AxisChoice = "auto",
    batch_axis: AxisChoice = "auto",
    steps: int | None = None,
    name: str | None = None,
    source_file: str | None = None,
    dt: float | None = None,
    check: bool = True,
    input_kind: Kind | None = None,
) -> Graph:
    """The float graph that computes what the model computes, verified, and compared with the model unless `check` is False.

    example_input: what the model takes: a tensor, a tuple of them, or a dict by parameter name. time_axis, batch_axis: its
    axes where they are not found by themselves; None: there is none. A model without a time axis gets one frame, which is fed at
    every step: time_axis=None, steps=T. A model without a loop does one step a call and keeps its states itself (hidden states);
    it is called `steps` times. source_file: the name to print for the file that the model comes from. dt: seconds per step.
    input_kind: "spike", "graded" or "value"; by default spike if the example holds only 0 and 1.

    Outputs are named by the keys of a returned dict, else after the node: `lif2`, `lif2_mem`. A tensor with one entry per step
    is the output of all steps; one of the last step only (`return spk`), and a sum, mean or maximum over time, is an output
    whose last step is the answer. Raises CompileError SPK101 to SPK111.
    """
    choices = Choices(time_axis, batch_axis, steps)
    return _traced(model, example_input, choices, name, source_file, dt, check, input_kind).graph


def trace_model(
    model: torch.nn.Module,
    example_input: Any,
    *,
    time_axis: AxisChoice = "auto",
    batch_axis: AxisChoice = "auto",
    steps: int | None = None,
    name: str | None = None,
    source_file: str | None = None,
    dt: float | None = None,
    input_kind: Kind | None = None,
) -> tuple[Graph, Origins | None]:
    """As `trace`, and where the graph's arrays come from, so that other weights need no new trace."""
    choices = Choices(time_axis, batch_axis, steps)
    built = _traced(model, example_input, choices, name, source_file, dt, True, input_kind)
    return built.graph, find_origins(built)


def _traced(
    model: torch.nn.Module,
    example_input: Any,
    choices: Choices,
    name: str | None,
    source_file: str | None,
    dt: float | None,
    check: bool,
    input_kind: Kind | None,
) -> Built:
    tracer = _Tracer(model, choices, name, source_file, dt, input_kind)
    example = _as_inputs(model, example_input)
    built = tracer.trace(example, capture=True)
    if check or built.folded.assumes:
        compare(built, tracer.files)
    if check:
        again = tracer.again(example, built)
        if again is not None:
            compare(again, tracer.files)
            if again.graph != built.graph and count_steps(built.folded, again.folded):
                built, again = tracer.rebuilt(built), tracer.rebuilt(again)
                compare(built, tracer.files)
                compare(again, tracer.files)
            if again.graph != built.graph:
                raise CompileError(
                    "SPK108",
                    "another input, of another length, gives another graph: the model's computation depends on its input",
                    loc=tracer.loc,
                    notes=[_first_difference(str(built.graph), str(again.graph))],
                    fix="where it divides by the number of steps, do that once, after the last step",
                )
    return built


@dataclass(frozen=True)
class _Inputs:
    """The example as positional and keyword arguments of the model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: tuple[str, ...]

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [*self.args, *self.kwargs.values()]

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> _Inputs:
        count = len(self.args)
        return _Inputs(tuple(tensors[:count]), dict(zip(self.kwargs, tensors[count:], strict=True)), self.names)


def _as_inputs(model: torch.nn.Module, example: Any) -> _Inputs:
    try:
        parameters = [
            p
            for p in inspect.signature(model.forward).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        parameters = []
    if isinstance(example, Mapping):
        kwargs = {key: _tensor(item) for key, item in example.items()}
        return _Inputs((), kwargs, tuple(kwargs))
    items = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    names = [p.name.strip("_") or "input" for p in parameters[: len(items)]]
    names += [f"input{i}" for i in range(len(names), len(items))]
    return _Inputs(tuple(_tensor(item) for item in items), {}, tuple(names))


def _tensor(item: Any) -> torch.Tensor:
    try:
        tensor = item if isinstance(item, torch.Tensor) else torch.as_tensor(item)
    except (TypeError, ValueError, RuntimeError):
        raise CompileError("SPK007", f"the example input must be a tensor or an array, not {type(item).__name__}") from None
    if tensor.layout is not torch.strided:
        raise CompileError("SPK007", "the example input is a sparse tensor", fix="pass example.to_dense()")
    if tensor.is_complex() or tensor.dtype in (torch.float16, torch.bfloat16):
        raise CompileError("SPK007", f"the example input has the type {tensor.dtype}", fix="use float32 or float64")
    if tensor.numel() == 0:
        raise CompileError("SPK006", f"the example input of shape {tuple(tensor.shape)} is empty")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise CompileError("SPK007", "the example input holds NaN or infinity")
    return tensor.detach()


class _Stepper(torch.nn.Module):
    """Calls a model that does one step a call, once for every entry of a first axis."""

    def __init__(self, model: torch.nn.Module, steps: int) -> None:
        super().__init__()
        self.__dict__["inner"] = model
        self.count = steps

    def forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        outs = []
        for step in range(self.count):
            outs.append(self.__dict__["inner"](*(a[step] for a in args), **{k: a[step] for k, a in kwargs.items()}))
        return _transposed(outs)


def _transposed(items: list[Any]) -> Any:
    """A list of equal structures as a structure of lists."""
    first = items[0]
    if isinstance(first, Mapping):
        return {key: _transposed([item[key] for item in items]) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_transposed([item[i] for item in items]) for i in range(len(first)))
    return items


class _Tracer:
    def __init__(
        self,
        model: torch.nn.Module,
        choices: Choices,
        name: str | None,
        source_file: str | None,
        dt: float | None,
        kind: Kind | None,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise CompileError("SPK003", f"the model must be a torch.nn.Module, not {type(model).__name__}")
        for axis in (choices.time_axis, choices.batch_axis):
            if not (axis is None or axis == "auto" or (isinstance(axis, int) and not isinstance(axis, bool))):
                raise CompileError("SPK001", f"an axis is a number, None or 'auto', not {axis!r}")
        if kind is not None and kind not in KINDS:
            raise CompileError("SPK001", f"input_kind is one of {', '.join(KINDS)}, not {kind!r}")
        self.model, self.choices, self.dt, self.kind = model, choices, dt, kind
        self.files = Files(_file_of(model), source_file)
        self.loc = Loc(self.files.shown, _line_of(model)) if self.files.model_file else None
        self.name = name or snake(type(model).__name__)
        self.single = 0
        #: Sites of which operations on constants are recorded too.
        self.shadowed: frozenset[int] = frozenset()

    def trace(self, example: _Inputs, capture: bool) -> Built:
        kinds: list[Kind] = [self.kind or _kind(item) for item in example.tensors]
        double = any(item.dtype == torch.float64 for item in example.tensors)
        choices = self.choices
        record, layout = None, None
        if not self.single:
            record = self.record(example, capture)
            try:
                layout = choose_axes(record, choices, self.loc)
            except SingleStep:
                self.single = choices.steps or DEFAULT_STEPS
        if self.single:
            record, layout = self.single_steps(example, capture)
        assert record is not None and layout is not None
        folded = fold(record, layout)
        if folded.late - self.shadowed:
            self.shadowed |= folded.late
            return self.trace(example, capture)
        return self.built(folded, kinds, "f64" if double else "f32")

    def built(self, folded: Folded, kinds: list[Kind], dtype: str) -> Built:
        built = build(folded, self.name, kinds, dtype, self.dt)
        verify(built.graph)
        return built

    def rebuilt(self, built: Built) -> Built:
        """Built again, after something was learnt about its cells."""
        inputs = built.graph.inputs
        return self.built(built.folded, [node.type.kind for node in inputs], inputs[0].type.dtype)

    def single_steps(self, example: _Inputs, capture: bool) -> tuple[Record, Layout]:
        """A model that does one step a call: several calls on frames that differ."""
        count = self.single
        if count < 3:
            raise CompileError(
                "SPK105", f"steps={count} is too few to tell the first step from the others", fix="pass at least steps=3"
            )
        frames = [torch.stack([item if k == 0 else second_example(item, seed=k) for k in range(count)]) for item in example.tensors]
        record = self.record(example.with_tensors(frames), capture, steps=count)
        batch = self.choices.batch_axis
        shifted = batch + 1 if isinstance(batch, int) and batch >= 0 else batch
        return record, choose_axes(record, Choices(0, shifted, None, added=1), self.loc)

    def record(self, example: _Inputs, capture: bool, steps: int = 0) -> Record:
        """Run a fresh copy of the model, states reset, and record it."""
        model = copy_model(self.model)
        leaves = self.leaves(model)
        inputs = example.with_tensors([item.clone() for item in example.tensors])
        with ExitStack() as stack:
            packages = _frameworks(model)
            for package in packages:
                stack.enter_context(getattr(package, "isolated", nullcontext)(model))
            recorder = stack.enter_context(recording(model, leaves, self.files, capture, self.shadowed))
            recorder.insides = [package.inside for package in packages if hasattr(package, "inside")]
            record = recorder.result
            record.touched |= shared_keys(self.model)
            with recorder.pause():
                for tensor, name in zip(inputs.tensors, example.names, strict=True):
                    value = Value(tuple(tensor.shape), boolean=tensor.dtype == torch.bool)
                    recorder.hang(tensor, value)
                    record.inputs.append(value)
                    record.input_names.append(name)
            try:
                if steps:
                    returned = run_model(_Stepper(model, steps), (inputs.args, inputs.kwargs), {})
                else:
                    returned = run_model(model, inputs.args, inputs.kwargs)
            except CompileError:
                raise
            except RecursionError:
                raise
            except Exception as error:
                raise failure(error, self.files, self.loc) from None
            recorder.current = (self.loc, -1, len(record.events))
            with recorder.pause():
                record.returned = _structure(recorder, returned)
                if not any(True for _ in values_in(record.returned)):
                    recorder.fail("SPK102", "the model returns nothing that depends on its input")
        live = live_ops(record, like=True)
        record.ops = [op for op in record.ops if op in live]
        return record

    def leaves(self, model: torch.nn.Module) -> dict[str, Leaf]:
        found: dict[str, Leaf] = {}
        for path, module in model.named_modules():
            try:
                leaf = leaf_of(module)
            except CompileError as error:
                first = error.diagnostics[0]
                where = Loc(self.files.shown, 0, path)
                raise CompileError(first.code, first.message, loc=where, notes=first.notes, fix=first.fix) from None
            if leaf is not None:
                found[path] = leaf
        return found

    def again(self, example: _Inputs, built: Built) -> Built | None:
        """The trace of a second random input, longer and of another batch if the model takes that."""
        layout, record = built.folded.layout, built.folded.record
        attempts = [(True, True), (True, False), (False, False)]
        for longer, wider in attempts:
            tensors = []
            for index, (item, value) in enumerate(zip(example.tensors, record.inputs, strict=True)):
                changed = second_example(item, seed=100 + index)
                offset = 1 if self.single else 0
                axes = layout.axes[value][offset:]
                changed = changed.reshape([atom.size for axis in axes for atom in axis])
                for position, atom in enumerate(atom for axis in axes for atom in axis):
                    if (longer and atom in layout.time) or (wider and atom in layout.batch):
                        extra = second_example(changed, seed=200 + index).narrow(position, 0, 1)
                        changed = torch.cat([changed, extra], dim=position)
                sizes = iter(changed.shape)
                changed = changed.reshape([product([next(sizes) for _ in axis]) for axis in axes])
                tensors.append(changed)
            try:
                return self.trace(example.with_tensors(tensors), capture=True)
            except CompileError:
                if not longer:
                    raise
        return None


def _structure(recorder: Recorder, item: Any) -> Any:
    """The returned structure with values in the place of tensors; constants are left out."""
    if isinstance(item, torch.Tensor):
        value = recorder.value_of(item)
        if value is not None and value.refused:
            recorder.refuse(value)
        if value is not None and value.filling is not None:
            recorder.fail("SPK111", "the model returns a tensor of which not all entries were written")
        return value
    if isinstance(item, Mapping):
        return {key: _structure(recorder, inner) for key, inner in item.items()}
    if isinstance(item, (tuple, list)):
        return tuple(_structure(recorder, inner) for inner in item)
    return None


def copy_model(model: torch.nn.Module) -> torch.nn.Module:
    """A deep copy in eval mode; states that still hang on a training graph are detached."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in tensors_in(vars(module)):
            if tensor.grad_fn is not None:
                memo[id(tensor)] = tensor.detach().clone()
    try:
        with ExitStack() as stack:
            for package in _frameworks(model):
                stack.enter_context(getattr(package, "copying", nullcontext)())
            copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise CompileError(
            "SPK003", f"the model cannot be copied: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
        ) from None
    copied.eval()
    for package in _frameworks(copied):
        for module in copied.modules() if hasattr(package, "reset") else ():
            package.reset(module)
    return copied


def _frameworks(model: torch.nn.Module) -> list[Any]:
    """The table modules of the frameworks that the model uses."""
    names = {type(module).__module__.partition(".")[0] for module in model.modules()}
    names |= {cls.__module__.partition(".")[0] for module in model.modules() for cls in type(module).__mro__}
    return [import_module(FRAMEWORKS[name].partition(":")[0]) for name in sorted(names & set(FRAMEWORKS))]


def _kind(tensor: torch.Tensor) -> Kind:
    return "spike" if bool(((tensor == 0) | (tensor == 1)).all()) else "value"


def _file_of(model: torch.nn.Module) -> str | None:
    try:
        file = inspect.getfile(type(model))
    except (TypeError, OSError):
        return None
    libraries = Path(torch.__file__).parent, Path(__file__).resolve().parent
    return None if any(Path(file).resolve().is_relative_to(folder) for folder in libraries) else file


def _line_of(model: torch.nn.Module) -> int:
    try:
        return inspect.getsourcelines(type(model).forward)[1]
    except (TypeError, OSError):
        return 0


def _first_difference(one: str, other: str) -> str:
    for a, b in zip(one.splitlines(), other.splitlines(), strict=False):
        if a != b:
            return f"'{a.strip()}' against '{b.strip()}'"
    return "one has more nodes than the other"


__all__ = ["copy_model", "load_weights", "register_neuron", "trace", "trace_model"]
