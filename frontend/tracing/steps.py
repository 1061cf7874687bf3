"""Which axis is time, which is the batch, and which round of the loop every operation belongs to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spikec.diagnostics import CompileError, Loc
from spikec.frontend.tracing.axes import Atom, Layout, find_axes
from spikec.frontend.tracing.values import Op, Record, Value

AxisChoice = int | None | str


@dataclass(frozen=True)
class Choices:
    """What the caller said about the example input: an axis, None (there is none) or "auto"."""

    time_axis: AxisChoice = "auto"
    batch_axis: AxisChoice = "auto"
    steps: int | None = None
    #: Leading axes that the tracer added, which the caller does not know of.
    added: int = 0


class SingleStep(Exception):  # not an error: the model does one step a call
    """The model has no loop: it does one step a call and keeps its states itself."""


def choose_axes(record: Record, choices: Choices, loc: Loc | None) -> Layout:
    """The layout with its time and batch axes named. Raises SingleStep, or CompileError SPK105 where there are two readings."""
    layout = find_axes(record, None, 0)
    if choices.time_axis == "auto":
        layout = _cut(record, layout)
    chosen = _time_atoms(record, layout, choices, loc)
    if chosen:
        layout.time = chosen
        layout.steps = next(iter(chosen)).size
        if choices.steps is not None and choices.steps != layout.steps:
            _ambiguous(
                f"the model does {layout.steps} steps on this example, but steps={choices.steps} was passed", loc, "leave out steps"
            )
    else:
        steps = _steps_without_axis(record, choices, loc)
        pivot = _pivot(record, steps, loc)
        layout = find_axes(record, pivot, steps)
        layout.steps = steps
        layout.time |= {
            atom
            for axes in layout.axes.values()
            for axis in axes
            for atom in axis
            if atom.repeats and atom.size == steps and atom in layout.picked
        }
    if layout.steps < 3:
        raise CompileError(
            "SPK105",
            f"the example has {layout.steps} step(s), too few to tell the first step from the others",
            loc=loc,
            fix="pass an example of at least 3 steps",
        )
    layout.batch = _batch_atoms(record, layout, choices, loc)
    return layout


def _cut(record: Record, layout: Layout) -> Layout:
    """The layout in which an axis of the input that holds both batch and time, taken apart by the model, is two."""
    walked = {(index, axis) for index, axis, atom in _input_atoms(record, layout) if _walked(layout, atom)}
    cuts = {place: sizes for place, sizes in layout.cuts.items() if (sizes[0] == 1 and place in walked) or not walked}
    if not cuts:
        return layout
    cut = find_axes(record, None, 0, cuts)
    times = {(index, axis) for index, axis, atom in _input_atoms(record, cut) if _walked(cut, atom)}
    return cut if times & set(cuts) else layout


def _input_atoms(record: Record, layout: Layout) -> Iterator[tuple[int, int, Atom]]:
    """Input, axis and atom: an axis that holds both batch and time has two."""
    for index, value in enumerate(record.inputs):
        for axis, atoms in enumerate(layout.axes[value]):
            yield from ((index, axis, atom) for atom in atoms)


def _ambiguous(message: str, loc: Loc | None, fix: str, notes: Sequence[str] = ()) -> None:
    raise CompileError("SPK105", message, loc=loc, fix=fix, notes=notes)


def _walked(layout: Layout, atom: Atom) -> bool:
    return atom.size > 1 and layout.picked.get(atom, set()) == set(range(atom.size))


def _input_name(record: Record, index: int) -> str:
    return f"input '{record.input_names[index]}'" if len(record.inputs) > 1 else "the example"


def _time_atoms(record: Record, layout: Layout, choices: Choices, loc: Loc | None) -> set[Atom]:
    found: set[Atom] = set()
    for index, value in enumerate(record.inputs):
        atoms = [axis[0] for axis in layout.axes[value]]
        walking = {axis: atom for own, axis, atom in _input_atoms(record, layout) if own == index and _walked(layout, atom)}
        walked = list(walking)
        if isinstance(choices.time_axis, int):
            if not -len(atoms) <= choices.time_axis < len(atoms):
                _ambiguous(
                    f"time_axis={choices.time_axis}, but {_input_name(record, index)} has shape {value.shape}",
                    loc,
                    "count axes from 0",
                )
            axis = choices.time_axis % len(atoms)
            if walked and axis not in walked:
                _ambiguous(
                    f"time_axis={axis} was passed, but the model walks through axis {walked[0]} of shape {value.shape}",
                    loc,
                    f"pass time_axis={walked[0]}, or leave it out",
                )
            found.add(atoms[axis])
        elif choices.time_axis == "auto":
            if len(walked) > 1:
                both = " and ".join(map(str, walked))
                _ambiguous(
                    f"the model walks through axes {both} of {_input_name(record, index)}, shape {value.shape}",
                    loc,
                    f"say which one is time: time_axis={walked[0]} or time_axis={walked[1]}",
                )
            found |= set(walking.values())
        elif walked:
            _ambiguous(
                f"time_axis=None was passed, but the model walks through axis {walked[0]} of {_input_name(record, index)}, "
                f"shape {value.shape}",
                loc,
                f"pass time_axis={walked[0]}, or leave it out",
            )
    if not isinstance(choices.time_axis, int):
        repeated = {atom for atom in layout.picked if atom.repeats and _walked(layout, atom)}
        found |= repeated
    if len({atom.size for atom in found}) > 1:
        sizes = " and ".join(str(size) for size in sorted({atom.size for atom in found}))
        _ambiguous(f"the model walks through axes of {sizes} entries: the number of steps is not clear", loc, "pass time_axis")
    return found


def _chain(record: Record) -> int:
    """The longest chain of a neuron module's own state: one call a step."""
    depth: dict[Value, int] = {}
    longest = 0
    for op in record.ops:
        if op.kind != "leaf":
            continue
        count = len(op.attrs["leaf"].program.inputs)
        before = [
            depth[v]
            for v in op.operands[count:]
            if isinstance(v, Value) and v in depth and v.op is not None and v.op.attrs["leaf"] is op.attrs["leaf"]
        ]
        here = max(before, default=0) + 1
        longest = max(longest, here)
        for output in op.outputs:
            depth[output] = here
    return longest


def _events_per_site(record: Record) -> dict[int, int]:
    events: dict[int, set[int]] = defaultdict(set)
    for op in record.ops:
        events[op.site].add(op.event)
    return {site: len(found) for site, found in events.items()}


def _steps_without_axis(record: Record, choices: Choices, loc: Loc | None) -> int:
    chain = _chain(record)
    counts = _events_per_site(record)
    repeated = [n for n in counts.values() if n > 1]
    if not repeated:
        raise SingleStep
    if chain > 1:
        if choices.steps is not None and choices.steps != chain:
            _ambiguous(
                f"the model does {chain} steps on this example, but steps={choices.steps} was passed",
                loc,
                f"pass steps={chain}, or leave it out",
            )
        return chain
    if choices.steps is None:
        calls = Counter(record.events)
        usual = Counter(calls[site] for site, n in counts.items() if n > 1).most_common(1)[0][0]
        _ambiguous(
            "no axis of the example is walked through, and the number of steps is not clear",
            loc,
            f"if the example is one frame that is fed at every step, pass steps={usual} (or how many the loop does)",
        )
    assert choices.steps is not None
    return choices.steps


def _pivot(record: Record, steps: int, loc: Loc | None) -> int:
    counts = _events_per_site(record)
    calls = Counter(record.events)  # constants included: in the first step an operation may only have those to work on
    for op in record.ops:
        if counts[op.site] == steps == calls[op.site]:
            return op.site
    if all(n == 1 for n in counts.values()):
        raise SingleStep
    usual = Counter(calls[site] for site in counts if calls[site] > 1).most_common(1)[0][0]
    raise CompileError(
        "SPK105",
        f"no operation is done {steps} times on this example; most of those in a loop are done {usual} times",
        loc=loc,
        fix=f"pass steps={usual}, if that is the number of time steps",
    )


def _batch_atoms(record: Record, layout: Layout, choices: Choices, loc: Loc | None) -> set[Atom]:
    found: set[Atom] = set()
    for index, value in enumerate(record.inputs):
        atoms = [axis[0] for axis in layout.axes[value]]
        if choices.batch_axis is None:
            continue
        if isinstance(choices.batch_axis, int):
            axis = choices.batch_axis % len(atoms) if -len(atoms) <= choices.batch_axis < len(atoms) else -1
            if axis < 0 or atoms[axis] in layout.time:
                what = "is the time axis" if axis >= 0 else f"does not exist in shape {value.shape}"
                _ambiguous(f"batch_axis={choices.batch_axis} {what}", loc, "pass the axis along which the samples lie")
            if atoms[axis] in layout.features:
                culprit = layout.features[atoms[axis]]
                raise CompileError(
                    "SPK102", f"{culprit.label} mixes the samples of the batch (axis {axis} of the example)", loc=culprit.loc
                )
            found.add(atoms[axis])
            continue
        every = [(axis, atom) for own, axis, atom in _input_atoms(record, layout) if own == index and atom not in layout.time]
        candidates = {axis: atom for axis, atom in every if atom not in layout.features and not _walked(layout, atom)}
        free, rest = list(candidates), [axis for axis, _ in every]
        if len(free) == 1 and len(rest) > 1:
            found |= set(candidates.values())
        elif free:
            shown = [axis - choices.added for axis in free]
            names = " or ".join(f"batch_axis={axis}" for axis in shown)
            time = "; if one axis is time, pass time_axis" if choices.added else ""
            _ambiguous(
                f"{_input_name(record, index)} has shape {value.shape[choices.added :]}, and the model treats the entries of "
                f"{'axis' if len(free) == 1 else 'axes'} {' and '.join(map(str, shown))} alike: which is the batch?",
                loc,
                f"pass {names}, or batch_axis=None if there is no batch{time}",
            )
        elif len(rest) > 1:
            _refuse_mixing(layout, choices, record, index)
    return found


def _refuse_mixing(layout: Layout, choices: Choices, record: Record, index: int) -> None:
    """No axis can be the batch: fine if layers and reshapes took them all, not if something mixed the samples."""
    for position, axis in enumerate(layout.axes[record.inputs[index]]):
        culprit = layout.features.get(axis[0])
        if axis[0] not in layout.time and culprit is not None and culprit.kind in ("reduce", "ew", "leaf"):
            _ambiguous(
                f"{culprit.label} treats the entries of axis {position - choices.added} of {_input_name(record, index)} "
                "differently or mixes them, so that no axis can be the batch",
                culprit.loc,
                "pass batch_axis=None if there is no batch; else let no sample depend on another",
            )


# ------------------------------------------------------------------------------------------------------- loop rounds


@dataclass
class _Loop:
    """One walk through the steps: its operations, the event at which each step reads something new, and what ran before."""

    ops: list[Op]
    marks: list[int]
    before: set[int]


def assign_steps(record: Record, layout: Layout) -> dict[Op, int | None]:
    """The step of every operation; None for one that does all steps at once or depends on none.

    An operation stands at the latest step that it depends on, or, where the user's code computes it in the next round of the
    loop before that round reads anything new (a recurrent connection), at that next step. Either reading is right; this one
    keeps the shape of the user's code.
    """
    steps: dict[Op, int | None] = {}
    last = layout.steps - 1
    loop = _Loop([], [], set())
    loops: list[_Loop] = []
    begins = 0
    for op in record.ops:
        early = layout.step(op.outputs[0])
        steps[op] = None if early is None or layout.timed(op.outputs[0]) else early
        if early is None or steps[op] is None or (op.kind == "pick" and _enters(layout, op)):
            continue
        if early == 0 and len(loop.marks) == last + 1 and op.event != loop.marks[-1]:
            begins = loop.marks[-1]
            loop = _Loop([], [], set())
        current = len(loop.marks) - 1
        if early == current + 1:
            if current == -1:
                loop.before = set(record.events[begins : op.event])
                loops.append(loop)
            loop.marks.append(op.event)
        elif early > current + 1:
            after = f"right after step {current}" if current >= 0 else "before any other"
            raise CompileError(
                "SPK104",
                f"this reads a value of step {early} {after}: the steps do not follow one another",
                loc=op.loc,
                fix="walk through the time axis from its first entry to its last, and read nothing of a later step",
            )
        else:
            steps[op] = current
        loop.ops.append(op)
    for loop in loops:
        _advance(record, loop, steps)
    return steps


def _enters(layout: Layout, op: Op) -> bool:
    """Whether a pick takes one step out of a sequence."""
    (x,) = op.values
    return any(atom in layout.time for atom in layout.axes[x][op.attrs["axis"]])


def _advance(record: Record, loop: _Loop, steps: dict[Op, int | None]) -> None:
    """Move what a round computes before its first new input from the end of the round before to its own."""
    begins = list(loop.marks)
    for step in range(1, len(begins)):
        while begins[step] - 1 > loop.marks[step - 1] and record.events[begins[step] - 1] in loop.before:
            begins[step] -= 1
    for op in loop.ops:
        home = steps[op] or 0
        if home + 1 < len(begins) and begins[home + 1] <= op.event < loop.marks[home + 1]:
            steps[op] = home + 1
