"""ONNX files: the container, its tensors, and data beside it. A damaged file is a CompileError that names the place in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Loc
from spikec.files import check_file, reading
from spikec.ir.types import Array

#: The operators of older sets take some attributes as inputs or mean something else.
OLDEST: Final = 13
#: The format itself does not allow more.
LARGEST: Final = 2**31 - 1
_DAMAGED: Final = (ValueError, TypeError, OverflowError, MemoryError, KeyError, IndexError, AttributeError, RuntimeError)


def onnx() -> ModuleType:
    """The onnx package. Raises CompileError SPK009."""
    try:
        found = import_module("onnx")
        import_module("onnx.numpy_helper")
        return found
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "onnx":
            raise
        raise CompileError("SPK009", "ONNX files need onnx, which is not installed", fix="pip install 'spikec[onnx]'") from None


def read_model(path: Path) -> Any:
    """The model in a file, local functions inlined. Raises CompileError SPK002, SPK003, SPK009, SPK102."""
    package = onnx()
    check_file(path)
    with reading(path):
        size = path.stat().st_size
        if size > LARGEST:
            raise CompileError("SPK003", f"{path}: {size} bytes; an ONNX file has at most 2 GB, larger tensors lie beside it")
        data = path.read_bytes()
    loc = Loc(path.name)
    try:
        model = package.load_model_from_string(data)
    except Exception:  # protobuf has exceptions and texts of its own, which differ from version to version
        raise CompileError("SPK003", "not a readable ONNX file: it is damaged, cut off, or something else", loc=loc) from None
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise CompileError("SPK003", "not an ONNX model: there is no graph in it", loc=loc)
    if model.functions:
        try:
            model = import_module("onnx.inliner").inline_local_functions(model)
        except Exception as error:  # a C++ exception of any kind
            raise CompileError("SPK003", f"its local functions are damaged ({_first(error)})", loc=loc) from None
    if any(not isinstance(text, str) for text in _texts(model)):  # protobuf hands out what is no UTF-8 as bytes
        raise CompileError("SPK003", "not a readable ONNX file (a name in it is damaged)", loc=loc)
    _check_opset(package, model, loc)
    return model


def _texts(model: Any) -> Iterator[Any]:
    for item in model.opset_import:
        yield item.domain
    for note in model.metadata_props:
        yield from (note.key, note.value)
    for proto in model.graph.initializer:
        yield proto.name
        for entry in proto.external_data:
            yield from (entry.key, entry.value)
    for value in (*model.graph.input, *model.graph.output):
        yield value.name
        for dim in value.type.tensor_type.shape.dim:
            yield dim.dim_param
    for node in model.graph.node:
        yield from (node.op_type, node.name, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            yield attribute.t.name


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _check_opset(package: ModuleType, model: Any, loc: Loc) -> None:
    found = [item.version for item in model.opset_import if item.domain in ("", "ai.onnx")]
    newest = int(package.defs.onnx_opset_version())
    if not found:
        raise CompileError("SPK003", "the model names no operator set", loc=loc)
    if max(found) < OLDEST:
        raise CompileError(
            "SPK102",
            f"operator set {max(found)}; spikec reads {OLDEST} to {newest}",
            loc=loc,
            fix=f"export it with opset_version={OLDEST} or newer, or use onnx.version_converter",
        )
    if max(found) > newest:
        raise CompileError(
            "SPK102",
            f"operator set {max(found)}; the installed onnx package knows {OLDEST} to {newest}",
            loc=loc,
            fix="update onnx",
        )


def element_name(package: ModuleType, code: int) -> str:
    """The name of a tensor's element type: FLOAT, INT8."""
    try:
        return str(package.TensorProto.DataType.Name(code))
    except ValueError:
        return f"type {code}"


def tensor(package: ModuleType, proto: Any, folder: Path, loc: Loc) -> Array:
    """A tensor of the file as an array; data beside the file only from its own folder. Raises CompileError SPK002, SPK304."""
    name = proto.name or "a constant"
    try:
        dims = tuple(int(n) for n in proto.dims)
        dtype = np.dtype(package.helper.tensor_dtype_to_np_dtype(proto.data_type))
        count = math.prod(dims)
        if any(n < 0 for n in dims) or count * dtype.itemsize > LARGEST * 8:
            raise ValueError(f"shape {dims}")
        if proto.data_location == package.TensorProto.EXTERNAL:
            return _external(proto, dims, dtype, folder, loc)
        return np.asarray(package.numpy_helper.to_array(proto))
    except _DAMAGED as error:
        raise CompileError("SPK304", f"the tensor '{name}' is damaged ({_first(error)})", loc=loc) from None


def _external(proto: Any, dims: tuple[int, ...], dtype: np.dtype[Any], folder: Path, loc: Loc) -> Array:
    entries = {item.key: item.value for item in proto.external_data}
    where = entries.get("location", "")
    beside = folder.resolve()
    place = (beside / where).resolve()
    if not where or Path(where).is_absolute() or ".." in Path(where).parts or not place.is_relative_to(beside):
        raise CompileError(
            "SPK304",
            f"the tensor '{proto.name}' is said to lie in '{where}'; spikec reads data beside the model only from its own folder",
            loc=loc,
            fix="put the data file into the model's folder and save the model again",
        )
    check_file(place)
    offset, length = int(entries.get("offset", 0)), math.prod(dims) * dtype.itemsize
    with reading(place):
        size = place.stat().st_size
        if int(entries.get("length", length)) != length or offset < 0 or offset + length > size:
            raise CompileError(
                "SPK304", f"the tensor '{proto.name}' needs {length} bytes at {offset} of '{where}' ({size} bytes)", loc=loc
            )
        with place.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(dims)
