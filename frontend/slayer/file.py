"""Reading HDF5 without trusting it: whole numbers of a sane size, text, and groups, each failure a CompileError at its place.

A `.net` file comes from anywhere, so nothing is followed out of it (external links, external or virtual storage), nothing is
unpickled, and sizes are looked at before anything is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from spikec.diagnostics import CompileError, Loc
from spikec.files import check_file, reading
from spikec.ir.types import Array
from spikec.runtime.trial import hdf5_trial

#: More elements than this in one array, or neurons or connections in one layer, are a damaged or hostile file.
MAX_ELEMENTS: Final = 1 << 26
_LARGEST: Final = (1 << 31) - 1
_LONGEST_TEXT: Final = 1024


class Group:
    """A group of the file under its path, as in `layer/3/neuron`."""

    def __init__(self, h5py: Any, group: Any, file: str, path: str = "") -> None:
        self._h5py = h5py
        self._group = group
        self.file = file
        self.path = path

    @property
    def loc(self) -> Loc:
        """The place of this group."""
        return Loc(self.file, 0, self.path)

    def fail(self, code: str, message: str, *, at: str = "", fix: str | None = None) -> NoReturn:
        """Raise a CompileError at this group, or at one of its members."""
        raise CompileError(code, message, loc=Loc(self.file, 0, self._at(at)), fix=fix)

    def bad(self, key: str, what: str, *, code: str = "SPK003", fix: str | None = None) -> NoReturn:
        """Raise a CompileError about a member: what is wrong with it, as in `holds text, not numbers`."""
        self.fail(code, f"'{key}' {what}", at=key, fix=fix)

    def _at(self, key: str) -> str:
        return "/".join(part for part in (self.path, key) if part)

    def __contains__(self, key: str) -> bool:
        return self._member(key) is not None

    def names(self) -> list[str]:
        """Names of all members."""
        with self._reading(""):
            return [str(key) for key in self._group]

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Whatever the HDF5 library raises is a damaged file."""
        try:
            yield
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
            first = (str(error).strip("'\"").splitlines() or [type(error).__name__])[0]
            self.fail("SPK003", f"cannot be read; the file is damaged ({first})", at=key)

    def _member(self, key: str) -> Any:
        with self._reading(key):
            group = self._group
            parts = key.split("/")
            for number, part in enumerate(parts):
                link = group.get(part, getlink=True)
                if link is None:
                    return None
                if isinstance(link, self._h5py.ExternalLink):
                    self.bad(key, "is a link into another file, which is not followed")
                group = group.get(part)
                if group is None or (number < len(parts) - 1 and not isinstance(group, self._h5py.Group)):
                    return None
            return group

    def child(self, key: str) -> Group:
        """A group inside this one."""
        found = self._member(key)
        if not isinstance(found, self._h5py.Group):
            what = "is missing" if found is None else "is an array, not a group"
            self.bad(key, what)
        return Group(self._h5py, found, self.file, self._at(key))

    def is_group(self, key: str) -> bool:
        """Whether a member is a group; False where it is missing."""
        return isinstance(self._member(key), self._h5py.Group)

    def _dataset(self, key: str) -> tuple[Any, np.dtype[Any], tuple[int, ...]]:
        """An array that may be read, its element type and its shape."""
        found = self._member(key)
        if found is None:
            self.bad(key, "is missing")
        if not isinstance(found, self._h5py.Dataset):
            self.bad(key, "is a group, not an array")
        with self._reading(key):
            dtype, shape, elsewhere = found.dtype, found.shape, found.is_virtual or found.external
        if shape is None:
            self.bad(key, "is empty")
        if math.prod(shape) > MAX_ELEMENTS:
            self.bad(key, f"has the absurd shape {tuple(shape)}: {math.prod(shape)} elements")
        if elsewhere:
            self.bad(key, "is stored in another file, which is not followed")
        return found, dtype, tuple(shape)

    def text(self, key: str) -> str:
        """A string: scalar, or an array of one."""
        dataset, dtype, shape = self._dataset(key)
        if math.prod(shape) == 1 and dtype.itemsize <= _LONGEST_TEXT:
            with self._reading(key):
                item = np.asarray(dataset[()]).reshape(-1)[0]
            if isinstance(item, bytes):
                return item.decode("utf-8", "replace")
            if isinstance(item, str):
                return str(item)
        self.bad(key, f"is an array of {dtype} of shape {shape}, not a text")

    def integers(self, key: str) -> Array:
        """Whole numbers below 2^31 in magnitude as int64, of whatever type they are stored as; any other number is an error."""
        dataset, dtype, _ = self._dataset(key)
        if dtype.kind not in "biuf":
            self.bad(key, f"holds {dtype}, not numbers")
        with self._reading(key):
            value = np.asarray(dataset[()])
        if value.dtype.kind == "f":
            wide = value.astype(np.float64)
            self._refuse(key, wide, ~np.isfinite(wide), "which is not a finite number")
            fix = "export the quantised network: the file holds integers, in units of 1/64 of a weight"
            self._refuse(key, wide, wide != np.rint(wide), "which is not a whole number", fix)
            value = wide
        elif value.dtype.kind == "b":
            value = value.astype(np.int64)
        self._refuse(key, value, (value > _LARGEST) | (value < -_LARGEST), "which is beyond 32 bits")
        return np.asarray(value.astype(np.int64))

    def _refuse(self, key: str, value: Array, bad: Array, what: str, fix: str | None = None) -> None:
        if np.any(bad):
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            place = f" at {list(index)}" if index else ""
            self.bad(key, f"holds {value[index]}{place}, {what} ({int(np.sum(bad))} of {value.size})", fix=fix)

    def integer(self, key: str, default: int | None = None) -> int:
        """One whole number: a scalar, or an array of one."""
        if default is not None and key not in self:
            return default
        value = self.integers(key)
        if value.size != 1:
            self.bad(key, f"has shape {value.shape}, not one number")
        return int(value.reshape(()))


@contextmanager
def open_file(path: Path) -> Iterator[Group]:
    """The root group of an HDF5 file. Raises CompileError SPK002, SPK003, and SPK009 without h5py."""
    try:
        h5py = import_module("h5py")
    except ModuleNotFoundError:
        raise CompileError(
            "SPK009", "reading SLAYER files (.net) needs h5py, which is not installed", fix="pip install 'spikec[slayer]'"
        ) from None
    check_file(path)
    with reading(path):
        path.open("rb").close()
    fix = "export the network again; a file that was cut off in a download or a copy cannot be repaired"
    if broken := hdf5_trial(h5py, path):
        raise CompileError("SPK003", f"{path}: not a readable HDF5 file ({broken})", fix=fix)
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError) as error:
        detail = str(error)
        inside = detail[detail.find("(") + 1 : detail.rfind(")")] if "(" in detail else detail
        raise CompileError("SPK003", f"{path}: not a readable HDF5 file ({inside})", fix=fix) from None
    with file:
        yield Group(h5py, file, path.name)
