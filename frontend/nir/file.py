"""The HDF5 container of NIR files, read into plain dictionaries and written from them.

A group is a dictionary, a dataset an array or a string. Nothing is unpickled, no link is followed out of the file, and a
damaged file is a CompileError that names the place in it.
"""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Loc
from spikec.files import check_file, reading
from spikec.runtime.trial import trial

Tree = dict[str, Any]

#: The release of the format whose primitives are known here; written into files.
NIR_VERSION: Final = "1.0.8"
_DEEPEST: Final = 64
#: A dataset beyond so many bytes must be stored at all: gzip makes at most 1032 bytes of one.
_UNSUSPECTED: Final = 1 << 24
_DENSEST: Final = 1032
_DAMAGED: Final = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


def _h5py() -> ModuleType:
    try:
        return import_module("h5py")
    except ModuleNotFoundError as error:
        if error.name != "h5py":
            raise
        raise CompileError("SPK009", "NIR files need h5py, which is not installed", fix="pip install 'spikec[nir]'") from None


def read_tree(path: Path) -> Tree:
    """The graph in a NIR file as nested dictionaries. Raises CompileError SPK002, SPK003 or SPK009."""
    h5py = _h5py()
    check_file(path)
    with reading(path):
        path.open("rb").close()
    if broken := trial(lambda: _read(h5py, path)):
        raise CompileError("SPK003", f"{path}: not a readable HDF5 file ({broken})")
    return _read(h5py, path)


def _read(h5py: ModuleType, path: Path) -> Tree:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = str(error).partition("(")[2].rstrip(")") or str(error)
        raise CompileError("SPK003", f"{path}: not a readable HDF5 file ({reason})") from None
    with file:
        if not _heaps_are_whole(path.read_bytes()):
            raise CompileError("SPK003", f"{path}: not a readable HDF5 file (its texts are damaged)")
        try:
            recorded = str(file.attrs.get("__type__", "")).startswith("NIRGraphData")
            found = "node" in file and isinstance(file.get("node", getlink=True), h5py.HardLink)
            root = file["node"] if found else None
        except _DAMAGED as error:
            raise CompileError("SPK003", f"{path}: not a readable HDF5 file ({error})") from None
        if recorded:
            raise CompileError("SPK003", f"{path}: holds recorded data (NIRGraphData), not a graph")
        if not isinstance(root, h5py.Group):
            raise CompileError("SPK003", f"{path}: an HDF5 file, but not a NIR graph: it has no group 'node'")
        return _group(h5py, root, path.name, ())


def _heaps_are_whole(data: bytes) -> bool:
    """Whether the heaps that hold the texts can be walked to their ends; the HDF5 library walks a damaged one for ever.

    A heap is `GCOL`, version 1, its size, and then objects of 16 bytes of head and their content; number 0 is the free rest.
    """
    at = data.find(b"GCOL\x01\0\0\0")
    while at >= 0:
        end = at + int.from_bytes(data[at + 8 : at + 16], "little")
        position = at + 16
        if end > len(data):
            return False
        while position + 16 <= end:
            free = data[position : position + 2] == b"\0\0"
            size = int.from_bytes(data[position + 8 : position + 16], "little")
            if free and size < 16:
                return False
            position += size if free else 16 + (size + 7) // 8 * 8
        if position > end:
            return False
        at = data.find(b"GCOL\x01\0\0\0", at + 8)
    return True


def _group(h5py: ModuleType, group: Any, file: str, path: tuple[str, ...]) -> Tree:
    def bad(key: str | bytes, message: str) -> CompileError:
        own = key if isinstance(key, str) else repr(key)
        return CompileError("SPK003", f"'{'/'.join((*path, own))}' {message}", loc=Loc(file))

    if len(path) > _DEEPEST:
        raise bad("", f"is nested more than {_DEEPEST} deep")
    result: Tree = {}
    try:
        keys = list(group.keys())
    except _DAMAGED as error:
        raise bad("", f"is damaged ({error})") from None
    for key in keys:
        try:
            if not isinstance(key, str):
                raise ValueError("a name is not text")
            link = group.get(key, getlink=True)
            item = group[key] if isinstance(link, h5py.HardLink) else None
        except _DAMAGED as error:
            raise bad(key, f"is damaged ({error})") from None
        if item is None:
            raise bad(key, "is a link; spikec reads what the file itself holds")
        if isinstance(item, h5py.Group):
            result[key] = _group(h5py, item, file, (*path, key))
            continue
        if not isinstance(item, h5py.Dataset):
            raise bad(key, "is neither a group nor a dataset")
        try:
            elsewhere = item.is_virtual or bool(item.external)
            size, stored = int(item.nbytes), int(item.id.get_storage_size())
        except _DAMAGED as error:
            raise bad(key, f"is damaged ({error})") from None
        if elsewhere:
            raise bad(key, "is stored in another file; spikec reads what the file itself holds")
        if size > _UNSUSPECTED and size > _DENSEST * stored:
            raise bad(key, f"is damaged (it would have {size} bytes, and {stored} are stored)")
        try:
            value = item[()]
            result[key] = value.decode("utf-8") if isinstance(value, bytes) else value
        except _DAMAGED as error:
            raise bad(key, f"is damaged ({error})") from None
        if isinstance(value, h5py.Empty):
            raise bad(key, "is empty")
    return result


def write_tree(tree: Tree, path: Path) -> None:
    """Write a graph as `nir.write` lays it out; the same graph gives the same bytes. Raises CompileError SPK008 or SPK009."""
    h5py = _h5py()
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("version", data=NIR_VERSION, dtype=h5py.string_dtype())
        _write(h5py, file.create_group("node"), tree)
    try:
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise CompileError("SPK008", f"{path}: cannot be written ({error.strerror})") from None


def _write(h5py: ModuleType, group: Any, tree: Tree) -> None:
    for key, value in tree.items():
        if isinstance(value, dict):
            _write(h5py, group.create_group(key), value)
        elif isinstance(value, str):
            group.create_dataset(key, data=value, dtype=h5py.string_dtype())
        elif isinstance(value, np.ndarray) and value.ndim:
            text = value.dtype.kind == "O"
            dtype = h5py.string_dtype() if text else value.dtype
            group.create_dataset(key, data=value, dtype=dtype, compression=None if text or not value.size else "gzip")
        else:
            group.create_dataset(key, data=value)
