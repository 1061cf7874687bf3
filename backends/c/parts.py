"""What a generated network consists of, and the names of types in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from typing import Final

import numpy as np

from spikec.backends.c.memory import ALIGN
from spikec.backends.c.plan import Halo, Stored
from spikec.ir.interpret import Wire
from spikec.ir.ops import Neuron
from spikec.memory import LayerMemory

API: Final = {"i8": "SPK_I8", "i16": "SPK_I16", "i32": "SPK_I32", "i64": "SPK_I64", "f32": "SPK_F32", "f64": "SPK_F64"}
KIND: Final = {"spike": "SPK_SPIKE", "graded": "SPK_GRADED", "value": "SPK_VALUE"}
WIDTH: Final = {"u8": 1, "i8": 1, "u16": 2, "i16": 2, "i32": 4, "i64": 8, "f32": 4, "f64": 8}
DTYPE: Final = {
    "u8": np.uint8,
    "i8": np.int8,
    "u16": np.uint16,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "f32": np.float32,
    "f64": np.float64,
}


def width_of(c_type: str) -> int:
    """Bytes of a number of this C type."""
    return {"uint8_t": 1, "int8_t": 1, "uint16_t": 2, "int16_t": 2, "int32_t": 4, "uint32_t": 4, "float": 4}.get(c_type, 8)


def kernel_files() -> dict[str, str]:
    """The hand-written headers by name, in a fixed order."""
    folder = files("spikec.backends.c") / "kernels"
    return {
        item.name: item.read_text(encoding="utf-8")
        for item in sorted(folder.iterdir(), key=lambda f: f.name)
        if item.name.endswith(".h")
    }


def event_room(stored: Stored) -> int:
    """Elements of one step's event list; the fast listing writes up to 32 beyond the last event."""
    return stored.size + 32 if stored.index == "uint16_t" else stored.size


#: Fewer neurons than that at the end of a population are computed one by one.
FEW: Final = 5


def tail(size: int) -> int:
    """Room behind an array that a population reads or writes in vectors beyond its last neuron, of up to 32 lanes."""
    return max(-size % 32 if size % 64 >= FEW else 0, rest(size))


def overrun(size: int, bits: int) -> int:
    """Elements that vectors with lanes of so many bits read beyond the last neuron, at most."""
    return -size % (512 // bits) if size % 64 >= FEW else 0


def lanes(size: int) -> int:
    """Elements of a row that is added in few runs over the events (spk_simd.h): sixteen, thirty-two, or vectors of 64 bytes."""
    return next((whole for whole in (16, 32) if size <= whole), -(-size // 64) * 64)


def rest(size: int) -> int:
    """Elements that fill a row of accumulators up to whole vectors of sixteen."""
    return -size % 16


@dataclass(frozen=True)
class Port:
    """One row of the network's tables: what the interface calls it, and where and how it lies."""

    name: str
    wire: Wire  # a wire, or node and state
    size: int
    kind: str
    api: str
    lag: int


@dataclass
class Network:
    """A generated network: its text, its large arrays, and its tables for whoever calls it."""

    prefix: str
    header: str
    source: str
    binary: bytes | None
    binary_source: str | None
    inputs: list[Port]
    ports: list[Port]
    outputs: int
    states: list[Port]
    counters: list[str]
    bytes: int
    constants: int = 0
    shared: int = 0  # bytes of the area that buffers of a step share
    memory: list[LayerMemory] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def output(self, name: str) -> int:
        """The number of the port that an output has."""
        return [port.name for port in self.ports[: self.outputs]].index(name)


@dataclass
class StateRow:
    """A state of a population, the member that holds it, its type, and the room around if it is a map that has some."""

    node: Neuron
    state: str
    member: str
    kind: str
    halo: Halo | None = None


@dataclass
class Member:
    """A buffer in the network's memory; `width` is bytes an element. `step`: what is in it is of no use after the step. `made`:
    weights that spk_init writes, and a reset leaves as they are."""

    name: str
    c_type: str
    length: int
    width: int
    owner: str = ""
    step: bool = False
    made: bool = False

    @property
    def aligned(self) -> bool:
        """Whether it begins a cache line."""
        return self.c_type != "uint32_t" or self.length * self.width >= ALIGN
