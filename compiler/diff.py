"""Two graphs compared: their texts line by line, and of arrays how many elements changed and how far."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.ops import Neuron, Node
from spikec.ir.text import print_graph
from spikec.ir.types import Array, short_dtype


@dataclass(frozen=True)
class ArrayChange:
    """An array that differs, as `node.field`. before, after: shape and type. changed of total elements, by at most `largest`;
    both are 0 where the shapes differ, so that elements cannot be compared."""

    name: str
    before: str
    after: str
    changed: int = 0
    total: int = 0
    largest: float = 0.0

    def text(self) -> str:
        """One line for people."""
        if not self.total:
            return f"{self.name}: {self.before} became {self.after}"
        kind = self.before if self.before == self.after else f"{self.before} became {self.after}"
        if not self.changed:
            return f"{self.name}: {kind}, the same numbers"
        return f"{self.name}: {kind}, {self.changed} of {self.total} changed, by at most {self.largest:.6g}"


@dataclass(frozen=True)
class Difference:
    """What differs between two graphs: a unified diff of their texts ("" where they are equal), and the arrays."""

    lines: str
    arrays: tuple[ArrayChange, ...]

    @property
    def equal(self) -> bool:
        """Whether the graphs are equal in every line and every number."""
        return not self.lines and not self.arrays

    def text(self) -> str:
        """For people: the diff, then a line for each array."""
        if not self.arrays:
            return self.lines
        return "\n".join(filter(None, [self.lines.rstrip("\n"), "", "arrays:", *(f"  {a.text()}" for a in self.arrays)])) + "\n"

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"equal": self.equal, "diff": self.lines, "arrays": [asdict(item) for item in self.arrays]}


def diff(a: Graph, b: Graph, names: tuple[str, str] = ("a", "b")) -> Difference:
    """What changed from graph a to graph b. names: what the two are called in the diff's head."""
    before, after = (print_graph(graph)[0].splitlines(keepends=True) for graph in (a, b))
    lines = "".join(difflib.unified_diff(before, after, *names))
    return Difference(lines, tuple(_arrays(a, b)))


def _arrays(a: Graph, b: Graph) -> Iterator[ArrayChange]:
    for node in a.nodes:
        if node.name not in b:
            continue
        old, new = dict(_of(node)), dict(_of(b[node.name]))
        for name, array in old.items():
            if name in new and (found := _change(f"{node.name}.{name}", array, new[name])):
                yield found


def _of(node: Node) -> Iterator[tuple[str, Array]]:
    for item in fields(node):
        value = getattr(node, item.name)
        if isinstance(value, np.ndarray):
            yield item.name, value
    if isinstance(node, Neuron):
        yield from node.params.items()
        yield from ((f"init.{name}", array) for name, array in node.init.items())
    for number, ref in enumerate(node.inputs):
        if ref.init is not None:
            yield f"in{number}.init", ref.init


def _change(name: str, old: Array, new: Array) -> ArrayChange | None:
    before, after = (f"{'x'.join(map(str, array.shape)) or 'scalar'} {short_dtype(array)}" for array in (old, new))
    if old.shape != new.shape:
        return ArrayChange(name, before, after)
    changed = int(np.count_nonzero(old != new))
    if not changed and old.dtype == new.dtype:
        return None
    largest = float(np.max(np.abs(new.astype(np.float64) - old.astype(np.float64)))) if changed else 0.0
    return ArrayChange(name, before, after, changed, old.size, largest)
