"""The user's own models: a torch module, or one in the user's file, to a graph."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from spikec.diagnostics import CompileError, Loc
from spikec.files import check_file, reading
from spikec.ir.graph import Graph
from spikec.spelling import did_you_mean

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class UserModel:
    """A torch module out of the user's file, and the example input that the file gives, if it does."""

    model: nn.Module
    example_input: Any
    file: str


def torch_module() -> ModuleType:
    """PyTorch. Raises CompileError SPK009 where it is not installed."""
    try:
        return import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise CompileError(
            "SPK009", "a torch model needs PyTorch, which is not installed", fix="pip install 'spikec[torch]'"
        ) from None


def traced(
    model: Any, example_input: Any, weights: str | Path | None, name: str | None, axes: Mapping[str, Any]
) -> tuple[Graph, dict[str, Any] | None]:
    """The float graph of a torch module or a "file.py:name", and where its parameters came from. axes: see `spikec.trace`."""
    if isinstance(model, (str, os.PathLike)):
        with user_code(os.fspath(model)) as found:
            example = example_input if example_input is not None else found.example_input
            return _trace_module(found.model, example, weights, name, axes, found.file)
    torch = torch_module()
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
    torch = torch_module()
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
    torch = torch_module()
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
