"""Record one run of a model: every operation on what derives from the input, at torch's function level.

The model runs as it is; a `Value` is hung on every tensor that derives from the input, and each operation becomes one or a few
`Op`s of the small vocabulary in `operations`. Everything else is a constant, copied at the moment an operation reads it.
An `Op` knows where it stands in the user's source and its *site*: the code positions of the whole call stack, equal for the
same operation in another round of a loop.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from spikec.diagnostics import CompileError, Loc
from spikec.frontend.registry import Leaf
from spikec.frontend.tracing import moves, neurons, operations
from spikec.frontend.tracing.handling import execute
from spikec.frontend.tracing.values import Const, Op, Operand, Record, Value
from spikec.ir.types import Array

TAG = "_spikec_tag"
#: Keep the model's own values for the comparison afterwards only up to so many numbers.
CAPTURE_LIMIT = 1 << 28
_HERE = str(Path(__file__).resolve().parent.parent)
#: Layers are the user's code as far as a loop's rounds are concerned, though no place in it is printed.
_LAYERS = str(Path(_HERE, "nn"))
_LIBRARIES = tuple({*(str(Path(p)) for p in sysconfig.get_paths().values()), str(Path(torch.__file__).parent), _HERE})


class Files:
    """How source files are named: relative to the model's own file, which goes under the name the user gave it."""

    def __init__(self, model_file: str | None, shown: str | None) -> None:
        self.model_file = str(Path(model_file).resolve()) if model_file else None
        self.shown = shown or (Path(model_file).name if model_file else "<model>")
        self.cache: dict[str, str | None] = {}

    def name(self, filename: str) -> str | None:
        """The name to print; None for a library's file."""
        if filename not in self.cache:
            self.cache[filename] = self._name(filename)
        return self.cache[filename]

    def _name(self, filename: str) -> str | None:
        if filename.startswith("<") and not filename.startswith(("<string>", "<stdin>", "<ipython")):
            return None
        full = filename if filename.startswith("<") else str(Path(filename).resolve())
        if full == self.model_file:
            return self.shown
        if any(full.startswith(library + "/") for library in _LIBRARIES) or "site-packages" in full:
            return None
        if self.model_file and not full.startswith("<"):
            try:
                inner = Path(full).relative_to(Path(self.model_file).parent).as_posix()
            except ValueError:
                return Path(full).name
            return (Path(self.shown).parent / inner).as_posix()
        return Path(full).name


@dataclass
class _Tag:
    value: Value | None  # None: a constant made by a call that was seen
    version: int


def run_model(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The outermost frame of a recorded run; the call stack is read down to here."""
    return model(*args, **kwargs)


class Recorder(TorchFunctionMode):
    """The torch function mode that records. Use `record`, which also wraps the modules of the model."""

    def __init__(self, model: torch.nn.Module, files: Files, capture: bool, shadowed: Collection[int] = ()) -> None:
        super().__init__()
        self.files = files
        #: Sites of which operations on constants are kept as well: what a state begins with may be read there alone.
        self.shadowed = frozenset(shadowed)
        self.capture = capture
        self.captured = 0
        self.result = Record([], [])
        self.paused = False
        self.stack: list[tuple[str, Any]] = []
        self.sites: dict[tuple[object, ...], int] = {}
        self.codes: list[object] = []  # keeps code objects alive, so that their ids stay theirs
        self.consts: dict[tuple[object, ...], Const] = {}
        self.by_tensor: dict[tuple[int, int], tuple[Any, Const]] = {}
        # With the tensors themselves, so that no other one gets the id of one that is gone.
        self.owned = {id(tensor): (tensor, name) for tensor, name in _owned_tensors(model)}
        self.result.state = dict(model.state_dict(keep_vars=True))
        self.keys = {id(tensor): key for key, tensor in self.result.state.items()}
        #: Constants that a layer made of constants, and the keys of its weights.
        self.derived: dict[int, tuple[Any, frozenset[str]]] = {}
        self.current: tuple[Loc | None, int, int] = (None, 0, 0)
        #: What operators that a framework registers with torch do, by name (see registry.FRAMEWORKS).
        self.insides: list[Callable[[str], Callable[..., Any] | None]] = []
        #: What modules collect from call to call, by module and attribute: the entries so far.
        self.histories: dict[tuple[Any, str], list[Any]] = {}

    # ------------------------------------------------------------------------------------------------ reading tensors

    def value_of(self, tensor: Any) -> Value | None:
        """The value hung on a tensor; None for a constant."""
        tag: _Tag | None = getattr(tensor, TAG, None)
        if tag is None or tag.value is None:
            return None
        if tag.version != tensor._version:
            self.fail(
                "SPK111",
                "this tensor was changed in place through another tensor that shares its memory",
                fix="write the change as a new tensor, as in mem = mem * keep",
            )
        return moves.finished(self, tag.value)

    def touch(self, item: Any, derived: bool = False) -> None:
        """Note that tensors of the model's state become something else than weights of a layer; with `derived` also what was made
        of them already, where no constant of the graph will tell.
        """
        for tensor in tensors_in(item):
            if id(tensor) in self.keys:
                self.result.touched.add(self.keys[id(tensor)])
            if derived and id(tensor) in self.derived:
                self.result.touched |= self.derived[id(tensor)][1]

    def dynamic(self, item: Any) -> bool:
        """Whether a tensor derives from the input."""
        return isinstance(item, torch.Tensor) and self.value_of(item) is not None

    def operand(self, item: Any) -> Operand:
        """What an operation reads: a value, a number, or a copy of a constant tensor."""
        if isinstance(item, (bool, int, float)):
            return item
        if isinstance(item, torch.Tensor):
            value = self.value_of(item)
            if value is not None and value.filling is not None:
                self.fail("SPK111", "a tensor is read as a whole before all of its entries are written")
            return value or self.constant(item)
        if isinstance(item, np.generic):
            return item.item()  # type: ignore[no-any-return]  # of torch
        self.fail("SPK102", f"an operand of type {type(item).__name__} is not supported")

    def constant(self, tensor: Any) -> Const:
        """A copy of a constant tensor; equal ones are one object."""
        key = (id(tensor), tensor._version)
        if key in self.by_tensor:
            return self.by_tensor[key][1]
        name = self.keys.get(id(tensor)) or (self.owned[id(tensor)][1] if id(tensor) in self.owned else None)
        keys = self.derived[id(tensor)][1] if id(tensor) in self.derived else frozenset()
        if name is None and not hasattr(tensor, TAG) and not self._global(tensor):
            self.fail(
                "SPK106",
                f"a tensor of shape {tuple(tensor.shape)} comes from outside the traced operations, as from NumPy",
                fix="compute it with torch, or keep it in the model with register_buffer",
            )
        array = _numpy(tensor)
        content = (name or "", tuple(sorted(keys)), array.dtype.str, array.shape, hashlib.sha1(array.tobytes()).digest())
        const = self.consts.setdefault(content, Const(array, name or "", keys))
        if name is not None:
            self.by_tensor[key] = (tensor, const)
        return const

    def _global(self, tensor: Any) -> bool:
        frame = self._user_frame()
        return frame is not None and any(item is tensor for item in frame.f_globals.values())

    # ---------------------------------------------------------------------------------------------------- recording

    def emit(
        self,
        kind: str,
        operands: Sequence[Operand],
        shape: Sequence[int],
        *,
        tensor: Any = None,
        boolean: bool = False,
        label: str = "",
        **attrs: Any,
    ) -> Value:
        """Add an operation with one output."""
        op = self.add(kind, operands, attrs, label)
        value = Value(tuple(shape), op, 0, boolean)
        op.outputs.append(value)
        if tensor is not None:
            self.hang(tensor, value)
        return value

    def add(self, kind: str, operands: Sequence[Operand], attrs: dict[str, Any], label: str = "") -> Op:
        """Add an operation; the caller adds its outputs."""
        loc, site, event = self.current
        path = self.stack[-1][0] if self.stack else ""
        op = Op(kind, tuple(operands), attrs, [], loc, path, site, event, label or kind)
        self.result.ops.append(op)
        return op

    def hang(self, tensor: Any, value: Value) -> None:
        """Say that a tensor holds a value."""
        setattr(tensor, TAG, _Tag(value, tensor._version))
        if self.capture and value.tensor is None and tuple(tensor.shape) == value.shape:
            self.captured += tensor.numel()
            if self.captured > CAPTURE_LIMIT:
                self.capture = False
            value.tensor, value.version = tensor, tensor._version

    def mark_static(self, result: Any) -> None:
        """Say that the tensors in a result are constants of known origin."""
        for tensor in tensors_in(result):
            setattr(tensor, TAG, _Tag(None, 0))

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch instead of every function while the mode is on."""
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = operations.name_of(func)
        if name in operations.INVISIBLE:
            return func(*args, **kwargs)
        self.here()
        values = [self.value_of(item) for item in tensors_in((args, kwargs))]
        dynamic = [value for value in values if value is not None]
        for value in dynamic:
            if value.refused:
                self.refuse(value)
        operations.check_random(self, name, args, kwargs)
        if name not in operations.WEIGHTED:
            self.touch((args, kwargs), derived=not dynamic)
        if not dynamic:
            if self.current[1] in self.shadowed and operations.plain(name):
                result = self._shadow(name, func, args, kwargs)
            else:
                result = execute(func, args, kwargs)
            self.mark_static(result)
            if name in operations.WEIGHTED and isinstance(result, torch.Tensor):
                used = {self.keys[id(item)] for item in tensors_in((args, kwargs)) if id(item) in self.keys}
                used.update(key for item in tensors_in((args, kwargs)) for key in self.derived.get(id(item), (None, ()))[1])
                self.derived[id(result)] = (result, frozenset(used))
            return result
        operations.check_leak(self, name)
        inside = self.inside(func)
        if inside is not None:
            return self.opened(func, inside, args, kwargs)
        return operations.call(self, name, func, args, kwargs)

    def _shadow(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function on constants, and record it beside the others."""
        record, capture = self.result, self.capture
        ops, record.ops, self.capture = record.ops, record.shadows, False
        try:
            return operations.call(self, name, func, args, kwargs)
        finally:
            record.ops, self.capture = ops, capture

    def inside(self, func: Any) -> Callable[..., Any] | None:
        """What a registered operator does in torch's own operations, if one of the frameworks says so."""
        if not isinstance(func, torch._ops.OpOverload):
            return None
        found = (inside(func.name()) for inside in self.insides)
        return next((function for function in found if function is not None), None)

    def opened(self, func: Any, inside: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record what an operator does instead of the operator; its result must be the same."""
        with self.pause():
            wanted = execute(func, args, kwargs)
        with self:
            result = inside(*args, **kwargs)
        with self.pause():
            same = all(torch.equal(mine, theirs) for mine, theirs in zip(tensors_in(result), tensors_in(wanted), strict=True))
        if not same:
            self.fail(
                "SPK102", f"the operator {func.name()} does not do what its own definition in torch says, and is not supported"
            )
        return result

    def here(self, part: str = "") -> None:
        """Note the site and the place of the call that is being recorded; `part` tells apart what one call is recorded as."""
        frame: FrameType | None = sys._getframe(1)
        positions: list[object] = []
        loc = None
        while frame is not None and frame.f_code is not run_model.__code__:
            code = frame.f_code
            if not code.co_filename.startswith(_HERE) or code.co_filename.startswith(_LAYERS):
                positions += (id(code), frame.f_lasti)
                self.codes.append(code)
                if loc is None and (name := self.files.name(code.co_filename)):
                    path = self.stack[-1][0] if self.stack else ""
                    loc = Loc(name, frame.f_lineno, path)
            frame = frame.f_back
        key = (*(path for path, _ in self.stack[-1:]), part, *positions)
        if len(self.codes) > 4096:
            self.codes = list(dict.fromkeys(self.codes))
        site = self.sites.setdefault(key, len(self.sites))
        if loc is None and self.stack and self.files.model_file:
            loc = Loc(self.files.shown, 0, self.stack[-1][0])
        self.current = (loc, site, len(self.result.events))
        self.result.events.append(site)

    def _user_frame(self) -> FrameType | None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not run_model.__code__:
            if self.files.name(frame.f_code.co_filename):
                return frame
            frame = frame.f_back
        return None

    @property
    def module(self) -> Any:
        """The module whose forward is running."""
        return self.stack[-1][1] if self.stack else None

    def fail(self, code: str, message: str, **more: Any) -> NoReturn:
        """A CompileError at the call that is being recorded."""
        raise CompileError(code, message, loc=self.current[0], **more)

    def refuse(self, value: Value) -> NoReturn:
        """SPK102 for a value that nothing may be computed from."""
        raise CompileError(
            "SPK102",
            f"{value.refused} is not supported on values that depend on the input",
            loc=value.op.loc if value.op else None,
            fix=operations.fix_for(value.refused),
        )

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Run torch without recording."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    # ------------------------------------------------------------------------------------------------------ modules

    def wrap(self, model: torch.nn.Module, leaves: Mapping[str, Leaf]) -> None:
        """Follow the calls of every module of the (copied) model; neurons of the table are recorded as one operation."""
        for path in leaves:
            self.result.touched |= {key for key in self.result.state if not path or key.startswith(f"{path}.")}
        for path, module in model.named_modules():
            module.__dict__["forward"] = self._wrapped(path, module, module.forward, leaves.get(path))
            self.result.module_types[path] = type(module).__name__

    def _wrapped(self, path: str, module: Any, forward: Callable[..., Any], leaf: Leaf | None) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.stack.append((path, module))
            try:
                if leaf is not None and leaf.step is not None:
                    with leaf.step(module, partial(neurons.call_step, self, module, leaf)):
                        return forward(*args, **kwargs)
                if leaf is not None and not self.paused:
                    self.here()
                    return neurons.call_leaf(self, module, leaf, forward, args, kwargs)
                return forward(*args, **kwargs)
            except TypeError as error:
                # Raised by the call itself, before the first line of the forward: the arguments do not fit.
                if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                    error.__dict__["raised_by_torch"] = True
                raise
            finally:
                self.stack.pop()

        return run

    def surrogate(self, original: Any) -> Any:
        """A stand-in for `torch.autograd.Function.apply`: the forward pass is probed to be a Heaviside step."""

        @classmethod  # type: ignore[misc]  # torch is Any
        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            inner = original.__get__(None, cls)
            if self.paused:
                return inner(*args, **kwargs)
            self.here()
            if not any(self.dynamic(item) for item in args):
                with self.pause():
                    result = inner(*args, **kwargs)
                self.mark_static(result)
                return result
            return neurons.call_surrogate(self, cls, inner, args, kwargs)

        return apply

    def scripted(self, original: Any) -> Any:
        """A stand-in for the call of a `torch.jit.script` function: the Python function that it was made from."""

        def call(function: Any, *args: Any, **kwargs: Any) -> Any:
            source = getattr(function, "_torchdynamo_inline", None)
            return (original if self.paused or source is None else lambda _, *a, **k: source(*a, **k))(function, *args, **kwargs)

        return call


@contextmanager
def recording(
    model: torch.nn.Module, leaves: Mapping[str, Leaf], files: Files, capture: bool, shadowed: Collection[int] = ()
) -> Iterator[Recorder]:
    """A recorder that is switched on, over a model that may be changed."""
    recorder = Recorder(model, files, capture, shadowed)
    recorder.wrap(model, leaves)
    function: Any = torch.autograd.Function
    script: Any = torch.jit.ScriptFunction
    original, original_call = function.__dict__.get("apply"), script.__call__
    try:
        if original is not None:
            function.apply = recorder.surrogate(original)
        script.__call__ = recorder.scripted(original_call)
        with torch.no_grad(), recorder:
            yield recorder
    finally:
        script.__call__ = original_call
        if original is not None:
            function.apply = original


def failure(error: Exception, files: Files, loc: Loc | None = None) -> CompileError:
    """The model's own exception in one line, at the user's line that it came from, else at loc; one of ours is raised again."""
    last = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        last = trace.tb_frame.f_code.co_filename
        name = files.name(trace.tb_frame.f_code.co_filename)
        if name:
            loc = Loc(name, trace.tb_lineno)
        trace = trace.tb_next
    if last.startswith(_HERE) and not error.__dict__.get("raised_by_torch"):
        raise error
    text = " ".join(str(error).split())
    text = text if len(text) < 200 else text[:197] + "..."
    return CompileError(
        "SPK109",
        f"the model fails on the example input: {type(error).__name__}: {text}",
        loc=loc,
        fix="pass an example that the model itself accepts; `model(example)` must run",
    )


def tensors_in(item: Any) -> Iterator[Any]:
    """The tensors in a structure of lists, tuples and dicts."""
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, Mapping):
        for inner in item.values():
            yield from tensors_in(inner)
    elif isinstance(item, (tuple, list)):
        for inner in item:
            yield from tensors_in(inner)


def shared_keys(model: torch.nn.Module) -> set[str]:
    """Keys of the state of which another tensor of the model is a view, and changes with it. A copy of the model does not tell."""
    state = model.state_dict(keep_vars=True)
    own = {id(tensor) for tensor in state.values()}
    places = {tensor.untyped_storage().data_ptr(): key for key, tensor in state.items() if tensor.numel() and _dense(tensor)}
    others = (tensor for tensor, _ in _owned_tensors(model) if id(tensor) not in own and _dense(tensor))
    views = (tensor.untyped_storage().data_ptr() for tensor in others)
    return {places[place] for place in views if place in places}


def _dense(tensor: Any) -> bool:
    return bool(tensor.layout == torch.strided)


def _owned_tensors(model: torch.nn.Module) -> Iterable[tuple[Any, str]]:
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        found: list[tuple[str, Any]] = [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]
        for name, item in found:
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            inner = list(tensors_in(item))
            for index, tensor in enumerate(inner):
                yield tensor, prefix + (name if len(inner) == 1 else f"{name}_{index}")


def _numpy(tensor: Any) -> Array:
    plain = tensor.detach().cpu()
    if plain.dtype in (torch.float16, torch.bfloat16):
        plain = plain.float()
    array: Array = np.array(plain.resolve_conj().resolve_neg().numpy(), copy=True)
    array.setflags(write=False)
    return array
