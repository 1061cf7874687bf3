"""What a recorded run consists of: values, constants, and the operations between them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from spikec.diagnostics import Loc
from spikec.ir.types import Array


@dataclass(eq=False)
class Const:
    """A constant: the array as torch holds it, and where it comes from (`fc1.weight`), if the model owns it."""

    array: Array
    name: str = ""
    #: Keys of the state dict from which it was computed by a layer on constants alone.
    keys: frozenset[str] = frozenset()


Number = int | float | bool


class StepCount(float):
    """The number of steps of this run (or its reciprocal), where the code divides by it after the last step."""

    reciprocal: bool = False


@dataclass(eq=False)
class Value:
    """What one tensor holds that derives from the input. `tensor` is the model's own value, kept for comparison."""

    shape: tuple[int, ...]
    op: Op | None = None
    port: int = 0
    boolean: bool = False
    tensor: Any = None
    version: int = 0
    #: A tensor that is filled entry by entry along an axis (`out[t] = spk`).
    filling: Filling | None = None
    #: The entries along an axis that the tensor was put together from: reading one is reading what went in.
    rows: tuple[int, tuple[Operand, ...]] | None = None
    #: Why nothing may be computed from this.
    refused: str = ""


@dataclass(eq=False)
class Filling:
    """Entries written so far, by position along `axis` of a tensor that began as `base`."""

    axis: int
    base: Any
    entries: dict[int, Value]


Operand = Value | Const | Number


@dataclass(eq=False)
class Op:
    """One recorded operation. `event` is its place in the log of all calls, `path` the module it ran in."""

    kind: str
    operands: tuple[Operand, ...]
    attrs: dict[str, Any]
    outputs: list[Value]
    loc: Loc | None
    path: str
    site: int
    event: int
    label: str = ""

    @property
    def values(self) -> Iterator[Value]:
        """The operands that derive from the input."""
        return (item for item in self.operands if isinstance(item, Value))


@dataclass
class Record:
    """A finished run: operations in order, the site of every call, inputs, and the structure the model returned.

    shadows: operations on constants alone, at sites that compute with values of the input in later steps.
    """

    ops: list[Op]
    events: list[int]
    shadows: list[Op] = field(default_factory=list)
    #: The model's state dict, and its keys of which something else than a layer's weights was made.
    state: dict[str, Any] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    inputs: list[Value] = field(default_factory=list)
    input_names: list[str] = field(default_factory=list)
    returned: Any = None
    module_types: dict[str, str] = field(default_factory=dict)


def live_ops(record: Record, like: bool = False) -> set[Op]:
    """The operations that something returned depends on; `like`: also those at the same places of the code in other steps."""
    live: set[Op] = set()
    stack = [value.op for value in values_in(record.returned) if value.op]
    while stack:
        while stack:
            op = stack.pop()
            if op not in live:
                live.add(op)
                stack += [value.op for value in op.values if value.op]
        if like:
            sites = {op.site for op in live}
            stack = [op for op in record.ops if op.site in sites and op not in live]
    return live


def shape_of(operand: Operand) -> tuple[int, ...]:
    """Shape of a value or constant; () for a number."""
    array = getattr(operand, "array", operand)
    return tuple(getattr(array, "shape", ()))


def product(sizes: Sequence[int]) -> int:
    """Product of integers; 1 if there are none."""
    return reduce(operator.mul, sizes, 1)


def values_in(item: Any) -> Iterator[Value]:
    """The values in a returned structure."""
    if isinstance(item, Value):
        yield item
    elif isinstance(item, dict):
        for inner in item.values():
            yield from values_in(inner)
    elif isinstance(item, (tuple, list)):
        for inner in item:
            yield from values_in(inner)
