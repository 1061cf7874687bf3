"""One instance of the compiled network, stepped from Python."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from spikec.backends.c.library import Compiled, refused
from spikec.backends.c.parts import Port
from spikec.ir.graph import Graph
from spikec.ir.types import DTYPES, Array


class _In(ctypes.Structure):
    _fields_ = [("index", ctypes.c_void_p), ("value", ctypes.c_void_p), ("count", ctypes.c_uint32)]


class CStepper:
    """A network in memory of its own; events go in as lists of elements."""

    def __init__(self, graph: Graph, compiled: Compiled) -> None:
        self.graph, self.network = graph, compiled.network
        self._library, prefix = compiled.library, compiled.network.prefix
        self._call = {name: getattr(self._library, prefix + name) for name in ("init", "reset", "step", "read", "read_state")}
        self._memory = np.zeros(self.network.bytes, np.uint8)
        self._net = ctypes.c_void_p()
        where = ctypes.c_void_p(self._memory.ctypes.data)
        refused(self._call["init"](where, ctypes.c_size_t(self._memory.nbytes), ctypes.byref(self._net)))
        self._ports = {port.name: k for k, port in enumerate(self.network.ports)}
        for k, port in enumerate(self.network.ports[: self.network.outputs]):
            node, name = port.wire
            self._ports.setdefault(f"{node}.{name}" if name else node, k)
        self._states = {port.wire: k for k, port in enumerate(self.network.states)}

    def reset(self) -> None:
        """Back to before the first step."""
        self._call["reset"](self._net)

    def step(self, inputs: Mapping[str, Array]) -> None:
        """One step."""
        given = (_In * max(len(self.network.inputs), 1))()
        held: list[Any] = []  # alive until the call returns
        for row, port in zip(given, self.network.inputs, strict=False):
            flat = np.ascontiguousarray(inputs[port.name].reshape(-1), DTYPES[port.api])
            if port.kind == "value":
                held.append(flat)
                row.value = flat.ctypes.data
                continue
            index = np.flatnonzero(flat).astype(np.uint32)
            values = np.ascontiguousarray(flat[index])
            held += [index, values]
            row.index, row.value, row.count = index.ctypes.data, values.ctypes.data, len(index)
        refused(self._call["step"](self._net, given))

    def read(self, wire: str) -> Array:
        """A population or an output after the last step."""
        number = self._ports[wire]
        return self._array("read", number, self.network.ports[number])

    def state(self, node: str, name: str) -> Array:
        """A state after the last step."""
        number = self._states[node, name]
        return self._array("read_state", number, self.network.states[number])

    def _array(self, call: str, number: int, port: Port) -> Array:
        found = np.empty(port.size, DTYPES[port.api])
        refused(self._call[call](self._net, ctypes.c_uint32(number), ctypes.c_void_p(found.ctypes.data)))
        node, name = port.wire
        shape = self.graph.shape_of(node) if call == "read_state" else dict(self.graph.types[node])[name].shape
        return (found.astype(np.int64) if self.graph.level != "float" else found).reshape(shape)
