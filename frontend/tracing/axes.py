"""What every axis of every recorded tensor is: time, batch, or features. Found from where the input's axes go.

An axis is a tuple of *atoms* (an axis of the input, or one that an operation made); flattening time and batch together gives
an axis of two atoms. The time axis is the one that the model walks through index by index; the batch axis is the one that goes
through every operation untouched. `coords` say at which index of an atom a value stands: the largest among what it was made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikec.diagnostics import CompileError
from spikec.frontend.tracing.values import Const, Op, Operand, Record, Value, product, shape_of


@dataclass(eq=False)
class Atom:
    """An indivisible axis. `source` is (input, axis) for an axis of the input; `repeats` one along which nothing changes."""

    size: int
    source: tuple[int, int] | None = None
    repeats: bool = False


Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]


@dataclass(eq=False)
class Layout:
    """The result: axes and coordinates of every value, and what was done with each atom."""

    axes: dict[Value, Axes] = field(default_factory=dict)
    coords: dict[Value, dict[Atom, int]] = field(default_factory=dict)
    picked: dict[Atom, set[int]] = field(default_factory=dict)
    #: Atoms that an operation mixed, merged with features or treated entry by entry, and where.
    features: dict[Atom, Op] = field(default_factory=dict)
    #: Axes of the input that the model takes apart into two, by (input, axis), and the sizes of both.
    cuts: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    time: set[Atom] = field(default_factory=set)
    batch: set[Atom] = field(default_factory=set)
    steps: int = 0

    def outer(self, axis: Axis) -> bool | None:
        """True for an axis of time and batch only, False for features only, None for a mixture."""
        kinds = {
            atom in self.time or atom in self.batch for atom in axis if atom.size > 1 or atom in self.time or atom in self.batch
        }
        return None if len(kinds) > 1 else next(iter(kinds), False)

    def timed(self, value: Value) -> bool:
        """Whether a value has a time axis."""
        return any(atom in self.time for axis in self.axes[value] for atom in axis)

    def step(self, value: Value) -> int | None:
        """The latest step that a value depends on; None for one that covers all steps."""
        found = [k for atom, k in self.coords[value].items() if atom in self.time]
        return max(found) if found else None

    def feature_axes(self, value: Value, op: Op) -> list[int]:
        """The positions of the axes that are neither time nor batch; SPK102 where they are mixed."""
        result = []
        for position, axis in enumerate(self.axes[value]):
            outer = self.outer(axis)
            if outer is None:
                what = "time" if any(atom in self.time for atom in axis) else "the batch"
                raise CompileError("SPK102", f"an axis mixes {what} with features, in shape {value.shape}", loc=op.loc)
            if not outer:
                result.append(position)
        return result

    def shape(self, value: Value, op: Op) -> tuple[int, ...]:
        """The shape of one step of one sample."""
        return tuple(value.shape[position] for position in self.feature_axes(value, op))


def find_axes(
    record: Record, pivot: int | None, steps: int, cuts: Mapping[tuple[int, int], tuple[int, int]] | None = None
) -> Layout:
    """Follow the axes through all operations. `pivot`: the site whose k-th call begins step k, where no axis is walked through.

    cuts: axes of the input that are two in one from the start, such as batch and time.
    """
    layout = Layout()
    for index, value in enumerate(record.inputs):
        layout.axes[value] = tuple(
            tuple(Atom(part, (index, axis)) for part in (cuts or {}).get((index, axis), (size,)))
            for axis, size in enumerate(value.shape)
        )
        layout.coords[value] = {}
    clock = Atom(steps)
    calls, event = -1, -1
    for op in record.ops:
        coords: dict[Atom, int] = {}
        for value in op.values:
            for atom, k in layout.coords[value].items():
                coords[atom] = max(coords.get(atom, -1), k)
        axes = _RULES[op.kind](layout, op, coords)
        if pivot is not None and op.site == pivot:
            calls += op.event != event
            event = op.event
            coords[clock] = calls
        for output in op.outputs:
            if len(axes) != len(output.shape) or any(
                product([a.size for a in x]) != n for x, n in zip(axes, output.shape, strict=True)
            ):
                raise AssertionError(f"axes {[[a.size for a in x] for x in axes]} of {op.kind} do not fit {output.shape}")
            layout.axes[output], layout.coords[output] = axes, coords
    if pivot is not None:
        layout.time.add(clock)
    return layout


# ------------------------------------------------------------------------------------------------------------- rules


def _mark(layout: Layout, axis: Axis, op: Op) -> None:
    for atom in axis:
        layout.features.setdefault(atom, op)


def _uniform(array: Any, axis: int) -> bool:
    first = np.take(array, [0], axis=axis)
    return (
        bool(np.all((array == first) | (np.isnan(array) & np.isnan(first))))
        if array.dtype.kind == "f"
        else bool(np.all(array == first))
    )


def _broadcast(layout: Layout, op: Op, operands: Sequence[Operand], shape: Sequence[int]) -> Axes:
    """The axes of operands that are aligned at their last axes."""
    result: list[Axis] = []
    for back in range(len(shape), 0, -1):
        size = shape[-back]
        found: list[Axis] = []
        for operand in operands:
            own = shape_of(operand)
            if len(own) < back or own[-back] != size:
                continue
            if isinstance(operand, Value):
                found.append(layout.axes[operand][-back])
        chosen = next((axis for axis in found if all(a.source or a.repeats for a in axis)), found[0] if found else (Atom(size),))
        real = next((axis for axis in found if any(a.source for a in axis)), chosen)
        if real and chosen != real and all(a.repeats for a in chosen):
            chosen = real
        for axis in found:
            if axis != chosen:
                _clash(layout, op, axis, chosen)
        for operand in operands:
            own = shape_of(operand)
            if (
                isinstance(operand, Const)
                and len(own) >= back
                and own[-back] == size > 1
                and not _uniform(operand.array, len(own) - back)
            ):
                _mark(layout, chosen, op)
        result.append(chosen)
    return tuple(result)


def _clash(layout: Layout, op: Op, one: Axis, other: Axis) -> None:
    """Two axes laid over each other. Those of two inputs may both be time or both batch; anything else is a feature."""
    for a, b in zip(one, other, strict=False):
        if a.source and b.source and a.source[0] != b.source[0]:
            continue
        if a.repeats or b.repeats or (a.size == 1 and b.size == 1):
            continue
        _mark(layout, (a, b), op)
    if len(one) != len(other):
        _mark(layout, (*one, *other), op)


def _elementwise(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    return _broadcast(layout, op, op.operands, op.outputs[0].shape)


def _leaf(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    params = [Const(array) for array in op.attrs["leaf"].params.values()]
    return _broadcast(layout, op, (*op.operands, *params), op.outputs[0].shape)


def _walk(layout: Layout, op: Op) -> None:
    """An operation that goes through all steps of an axis by itself."""
    (x,) = op.values
    if op.attrs.get("time_axis") is not None:
        for atom in layout.axes[x][op.attrs["time_axis"]]:
            layout.picked.setdefault(atom, set()).update(range(atom.size))


def _same(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    (x,) = op.values
    _walk(layout, op)
    delays = op.attrs["delay"].array
    for axis in layout.axes[x][len(x.shape) - delays.ndim :]:
        _mark(layout, axis, op)
    return layout.axes[x]


def _linear(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    (x,) = op.values
    _walk(layout, op)
    _mark(layout, layout.axes[x][-1], op)
    return (*layout.axes[x][:-1], (Atom(op.outputs[0].shape[-1]),))


def _spatial(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    (x,) = op.values
    kept = len(x.shape) - op.attrs["space"] - (op.kind == "conv")
    for axis in layout.axes[x][kept:]:
        _mark(layout, axis, op)
    return (*layout.axes[x][:kept], *((Atom(n),) for n in op.outputs[0].shape[kept:]))


def _affine(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    (x,) = op.values
    if len(x.shape) > 1:
        _mark(layout, layout.axes[x][1], op)
    return layout.axes[x]


def _reshape(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    """Regroup the atoms in row-major order; an atom that is cut becomes several new ones."""
    (x,) = op.values
    rest = [atom for axis in layout.axes[x] for atom in axis]
    result: list[Axis] = []
    shape = op.outputs[0].shape
    for position, size in enumerate(shape):
        group: list[Atom] = []
        have = 1
        if size == 1 and rest and rest[0].size > 1 and rest[0].source is not None:
            layout.cuts.setdefault(rest[0].source, (1, rest[0].size))
        while rest and (have < size or (size == 1 and not group and rest[0].size == 1)):
            atom = rest.pop(0)
            if have < size and (size % (have * atom.size)) != 0:
                _mark(layout, (atom,), op)
                need = size // have if size % have == 0 else 0
                if not need or atom.size % need:
                    rest.insert(0, Atom(atom.size))
                    group, have = _scramble(layout, op, group, rest, size), size
                    break
                if atom.source is not None and not group:
                    layout.cuts.setdefault(atom.source, (need, atom.size // need))
                rest.insert(0, Atom(atom.size // need))
                atom = Atom(need)
            group.append(atom)
            have *= atom.size
        # Axes of length 1 go with the axis before them when no axis of length 1 is left for them.
        while rest and rest[0].size == 1 and not any(n == 1 for n in shape[position + 1 :]):
            group.append(rest.pop(0))
        result.append(tuple(group) if group else (Atom(1),))
    return tuple(result)


def _scramble(layout: Layout, op: Op, group: list[Atom], rest: list[Atom], size: int) -> list[Atom]:
    """A cut that does not fall on a boundary: the atoms involved are features from here on."""
    _mark(layout, tuple(group), op)
    total = product([atom.size for atom in (*group, *rest)])
    for atom in rest:
        _mark(layout, (atom,), op)
    rest.clear()
    rest.append(Atom(total // size))
    return [Atom(size)]


def _squeeze(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    (x,) = op.values
    return tuple(axis for position, axis in enumerate(layout.axes[x]) if position not in op.attrs["axes"])


def _unsqueeze(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    (x,) = op.values
    axes = list(layout.axes[x])
    axes.insert(op.attrs["axis"], (Atom(1),))
    return tuple(axes)


def _permute(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    (x,) = op.values
    return tuple(layout.axes[x][dim] for dim in op.attrs["dims"])


def _expand(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    (x,) = op.operands
    own = shape_of(x)
    result: list[Axis] = []
    shape = op.outputs[0].shape
    for position, size in enumerate(shape):
        back = len(shape) - position
        if isinstance(x, Value) and back <= len(own) and own[-back] == size:
            result.append(layout.axes[x][-back])
        else:
            result.append((Atom(size, repeats=True),))
    return tuple(result)


def _pick(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    (x,) = op.values
    position = op.attrs["axis"]
    _take(layout, op, layout.axes[x][position], op.attrs["index"], coords)
    return layout.axes[x][:position] + layout.axes[x][position + 1 :]


def _take(layout: Layout, op: Op, axis: Axis, index: int, coords: dict[Atom, int]) -> None:
    large = [atom for atom in axis if atom.size > 1]
    if len(large) > 1:
        _mark(layout, axis, op)
    for atom in large if len(large) == 1 else axis[:1] if not large else ():
        layout.picked.setdefault(atom, set()).add(index)
        coords[atom] = max(index, coords.get(atom, -1))


def _gather(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    (x,) = op.values
    position, indices = op.attrs["axis"], op.attrs["indices"]
    axes = list(layout.axes[x])
    _mark(layout, axes[position], op)
    axes[position] = (Atom(len(indices)),)
    return tuple(axes)


def _side_by_side(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    """A stack over all indices of an atom is that atom again."""
    position = op.attrs["axis"]
    shape = op.outputs[0].shape
    rows = [item for item in op.operands if not isinstance(item, (int, float))]
    if op.kind == "cat":
        rest = [_Cut(item, position) for item in rows]
        others = _broadcast(layout, op, [r for r in rows if r is rows[0]] if len(rows) == 1 else rows, _without(shape, position, 1))
        others = others[:position] + others[position + 1 :]
        single = all(cut.size == 1 for cut in rest)
    else:
        others = _broadcast(layout, op, rows, _without(shape, position, None))
        single = True
    axis = _time_axis(layout, op, coords) if single else None
    if axis is None and op.kind == "cat":
        for item in rows:
            if isinstance(item, Value):
                _mark(layout, layout.axes[item][position], op)
    axis = axis or (Atom(shape[position]),)
    return (*others[:position], axis, *others[position:])


@dataclass
class _Cut:
    operand: Operand
    position: int

    @property
    def size(self) -> int:
        return shape_of(self.operand)[self.position]


def _without(shape: Sequence[int], position: int, instead: int | None) -> tuple[int, ...]:
    middle = () if instead is None else (instead,)
    return (*shape[:position], *middle, *shape[position + 1 :])


def _time_axis(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axis | None:
    count = len(op.operands)
    first = op.operands[0]
    if count > 1 and all(item is first for item in op.operands):
        return (Atom(count, repeats=True),)
    values = [item if isinstance(item, Value) else None for item in op.operands]
    last = values[-1]
    if count < 2 or last is None:
        return None
    for atom in layout.coords[last]:
        if atom.size != count:
            continue
        # Entry k stands at step k; earlier entries may be constants, or stand a step or more behind (a delay).
        found = [None if value is None else layout.coords[value].get(atom) for value in values]
        late = count - 1 - (found[-1] if found[-1] is not None else -count)
        if late < count // 2 and all(
            k == i - late or (k is None and i <= late) or (late == 0 and i == 0 and k is None) for i, k in enumerate(found)
        ):
            coords.pop(atom, None)
            return (atom,)
    return None


def _reduce(layout: Layout, op: Op, coords: dict[Atom, int]) -> Axes:
    (x,) = op.values
    result: list[Axis] = []
    for position, axis in enumerate(layout.axes[x]):
        if position not in op.attrs["axes"]:
            result.append(axis)
            continue
        for atom in axis:
            if atom not in layout.picked:
                layout.features.setdefault(atom, op)
            coords[atom] = atom.size - 1
        if op.attrs["keepdim"]:
            result.append((Atom(1),))
    return tuple(result)


_RULES = {
    "ew": _elementwise,
    "leaf": _leaf,
    "carry": _elementwise,
    "linear": _linear,
    "delay": _same,
    "conv": _spatial,
    "pool": _spatial,
    "affine": _affine,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "expand": _expand,
    "pick": _pick,
    "gather": _gather,
    "stack": _side_by_side,
    "cat": _side_by_side,
    "reduce": _reduce,
}
