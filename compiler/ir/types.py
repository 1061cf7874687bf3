"""What flows along an edge, and the arrays that parametrise a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from spikec.diagnostics import CompileError

Array = NDArray[Any]
Level = Literal["float", "fixed", "placed"]
Kind = Literal["spike", "graded", "value"]

LEVELS: Final = ("float", "fixed", "placed")
KINDS: Final = ("spike", "graded", "value")
#: The short names used in text and in `TensorType.dtype`.
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}
_SHORT: Final = {dtype: short for short, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorType:
    """Kind, shape (without batch and time) and element type of one wire.

    `spike` is 0 or 1 and sparse; `graded` is a sparse integer or real payload; `value` is dense (a synaptic
    current, a membrane). The dtype is the storage that is declared for it: at the fixed level it is a promise
    that the verifier proves, never a place where a number is wrapped.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: str

    def text(self, level: Level) -> str:
        """As in `.sir`: `spike<12>`; the dtype is left out where it is the level's default."""
        shape = "x".join(str(n) for n in self.shape) if self.shape else "()"
        suffix = "" if self.dtype == default_dtype(self.kind, level) else f", {self.dtype}"
        return f"{self.kind}<{shape}{suffix}>"

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


def default_dtype(kind: Kind, level: Level) -> str:
    """The dtype that the text form leaves out: f32 for floats; at integer levels i8 for spikes, else i32."""
    if level == "float":
        return "f32"
    return "i8" if kind == "spike" else "i32"


def short_dtype(array: Array) -> str:
    """The short name of an array's dtype; KeyError for one that the IR does not hold."""
    return _SHORT[array.dtype]


def is_float(dtype: str) -> bool:
    """Whether a short dtype name is a floating-point one."""
    return dtype.startswith("f")


def int_range(dtype: str) -> tuple[int, int]:
    """Smallest and largest integer of a short dtype name."""
    if dtype == "bool":
        return (0, 1)
    info = np.iinfo(DTYPES[dtype])
    return (int(info.min), int(info.max))


def narrowest(low: int, high: int) -> str | None:
    """The narrowest signed integer dtype that holds [low, high]; None if none does."""
    for name in ("i8", "i16", "i32", "i64"):
        bottom, top = int_range(name)
        if bottom <= low and high <= top:
            return name
    return None


def integers(numbers: Any) -> Array:
    """Whole numbers, held as floats, in 32 bits, or in 64 where 32 do not hold them. Raises CompileError SPK203."""
    array = np.asarray(numbers)
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (low >= -(2.0**63) and high < 2.0**63):  # nan as well
        what = f"a number of {low if low < -high else high:g} is wider than 64 bits"
        raise CompileError("SPK203", what, fix="fewer bits, or compile for host or reference without --bits")
    narrow = low >= -(2.0**31) and high < 2.0**31
    return array.astype(np.int32 if narrow else np.int64)


def freeze(array: Any, dtype: Any = None) -> Array:
    """A read-only, C-contiguous copy in native byte order, so that nothing outside can change a graph."""
    copy: Array = np.array(array, dtype=dtype, order="C", copy=True)
    if copy.dtype == np.uint8 or copy.dtype == np.uint16:
        copy = copy.astype(np.int16 if copy.dtype == np.uint8 else np.int32)
    copy = copy.astype(copy.dtype.newbyteorder("="), copy=False)
    copy.setflags(write=False)
    return copy
