"""Fold a run of T steps into one step: a network of cells that read each other in the same step or some steps ago.

A `Cell` is one operation of the steady step, or one that does all steps at once. Every step is compared with the steady one; the
first may differ only by reading initial values where later ones read what the step before left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikec.diagnostics import CompileError
from spikec.frontend.tracing.axes import Layout
from spikec.frontend.tracing.steps import assign_steps
from spikec.frontend.tracing.values import Const, Number, Op, Operand, Record, StepCount, Value, live_ops


@dataclass(eq=False)
class Read:
    """An operand of a cell: output `port` of `cell`, `delay` steps ago. init: what stood there before step 0, by step."""

    cell: Cell
    port: int
    delay: int
    init: dict[int, Const | Number] = field(default_factory=dict)


@dataclass(eq=False)
class Cell:
    """One operation a step. runs: the recorded operation by step; {-1: op} for one that did all steps at once.

    observed: constants that stood for an output at a step at which the model did not compute it (port, step).
    stand_ins: what was used instead of an output at step 0, by port (`v = x if v is None else beta * v + x`). Both are assumptions,
    which the comparison with the model confirms or refutes.
    """

    op: Op
    reads: list[Read | Const | Number] = field(default_factory=list)
    runs: dict[int, Op] = field(default_factory=dict)
    observed: dict[tuple[int, int], Const | Number] = field(default_factory=dict)
    stand_ins: dict[int, Source] = field(default_factory=dict)

    @property
    def cells(self) -> Iterator[Read]:
        """The operands that are outputs of cells."""
        return (item for item in self.reads if isinstance(item, Read))


@dataclass(frozen=True)
class Source:
    """Where a value comes from: step s of it is output `port` of `cell` at step s - back. step None: it covers all steps."""

    cell: Cell
    port: int
    step: int | None
    back: int = 0
    init: tuple[Const | Number, ...] = ()


@dataclass
class Folded:
    """The cells in program order, and the source of every returned value by its path in the returned structure."""

    cells: list[Cell]
    inputs: list[Cell]
    returned: list[tuple[tuple[str | int, ...], Source]]
    layout: Layout
    record: Record

    @property
    def assumes(self) -> bool:
        """Whether something was assumed about the first steps that only the comparison with the model can confirm."""
        return any(cell.observed or cell.stand_ins for cell in self.cells)

    @property
    def late(self) -> set[int]:
        """Sites of operations that had constants alone to work on in the first step."""
        return {cell.op.site for cell in self.cells if -1 not in cell.runs and 0 not in cell.runs}


def count_steps(one: Folded, other: Folded) -> bool:
    """Find the numbers that are the number of steps, in two runs of different lengths, and mark them in both.

    Only what is computed once, after the last step, may use it: it is then known that t + 1 steps have been done. False where
    the runs differ in anything else.
    """
    if len(one.cells) != len(other.cells) or one.layout.steps == other.layout.steps:
        return False
    marked = False
    for a, b in zip(one.cells, other.cells, strict=True):
        if a.op.kind != b.op.kind or len(a.reads) != len(b.reads):
            return False
        for index, pair in enumerate(zip(a.reads, b.reads, strict=True)):
            if any(isinstance(item, (Read, Const)) for item in pair) or pair[0] == pair[1]:
                continue
            lengths = one.layout.steps, other.layout.steps
            reciprocal = pair == tuple(1 / n for n in lengths)
            last = a.op.kind == "ew" and all(set(c.runs) == {f.layout.steps - 1} for c, f in ((a, one), (b, other)))
            if not last or not (reciprocal or pair == lengths):
                return False
            for cell, item in zip((a, b), pair, strict=True):
                count = StepCount(item)  # type: ignore[arg-type]  # neither a Read nor a Const
                count.reciprocal = reciprocal
                cell.reads[index] = count
            marked = True
    return marked


def _different(op: Op, step: int, how: str, twin: Op | None = None) -> CompileError:
    if twin is not None:
        return CompileError(
            "SPK104",
            f"{op.path} computes step {step} and {twin.path} another: a module for every step is another network at every step",
            loc=op.loc,
            fix="use one module for all steps; batch norms that differ from step to step (BNTT) cannot be folded into one weight",
        )
    return CompileError(
        "SPK104",
        f"step {step} {how}",
        loc=op.loc,
        notes=["a graph does the same in every step; only the initial values of the first may differ"],
        fix="make every step do the same, or compute what differs outside the model",
    )


def left_out(op: Op, step: int, steady: int) -> CompileError:
    """The error for an operation that a step does not do, where initial values cannot explain it."""
    error = _different(op, step, f"leaves out {op.label}, which step {steady} does here")
    first = error.diagnostics[0]
    if step:
        return error
    fix = "let states begin as tensors (torch.zeros, torch.full) and not as Python numbers, and do the same in every step"
    return CompileError(first.code, first.message, loc=first.loc, notes=first.notes, fix=fix)


class _Folder:
    def __init__(self, record: Record, layout: Layout) -> None:
        self.record, self.layout = record, layout
        self.steps = assign_steps(record, layout)
        self.last = layout.steps - 1
        self.steady = max(self.last - 1, 1)
        self.cells: list[Cell] = []
        self.by_op: dict[Op, Cell] = {}
        self.sources: dict[Value, Source | Const | Number] = {}
        self.inputs = [Cell(Op("input", (), {"index": i}, [value], None, "", -1, -1)) for i, value in enumerate(record.inputs)]
        for cell, value in zip(self.inputs, record.inputs, strict=True):
            cell.runs[-1] = cell.op
            self.sources[value] = Source(cell, 0, None)

    # ---------------------------------------------------------------------------------------------------- which cell

    def fold(self) -> Folded:
        self.live = live_ops(self.record)
        by_step: dict[int, dict[tuple[int, int], Op]] = defaultdict(dict)
        counts: dict[tuple[int, int], int] = defaultdict(int)
        for op in self.record.ops:
            step = self.steps[op]
            if step is None or self.structural(op):
                continue
            key = (op.site, counts[step, op.site])
            counts[step, op.site] += 1
            by_step[step][key] = op
        body = by_step[self.steady]
        cells = {key: Cell(op) for key, op in body.items()}
        for step in range(self.layout.steps):
            for key, op in by_step[step].items():
                if key in cells:
                    cells[key].runs[step] = op
                    self.by_op[op] = cells[key]
                elif step == self.last:
                    self.by_op[op] = Cell(op, runs={step: op})
                elif op in self.live:
                    twin = next((other for other in body.values() if _alike(op, other)), None)
                    raise _different(op, step, f"does {op.label} here, which step {self.steady} does not", twin)
        common: dict[object, Cell] = {}
        for op in self.record.ops:
            if self.structural(op):
                continue
            if self.steps[op] is None:
                reads = [self._read(item, None, op) for item in op.operands] if not self.joins_steps(op) else [self._joined(op)]
                key_all = (op.kind, _signature(op), *(_read_key(read) for read in reads))
                cell = common.get(key_all)
                if cell is None:
                    cell = common[key_all] = Cell(op, reads, {-1: op})
                    self.cells.append(cell)
                self.by_op[op] = cell
            elif op in self.by_op:
                cell = self.by_op[op]
                if cell.op is op:
                    self.cells.append(cell)
        for cell in self.cells:
            if -1 not in cell.runs:
                home = self.steady if self.steady in cell.runs else self.last
                cell.reads = [self._read(item, home, cell.op) for item in cell.op.operands]
        for cell in self.cells:
            if -1 not in cell.runs:
                self._compare_steps(cell)
        returned = list(self._returned(self.record.returned, ()))
        self._read_shadows(cells)
        for cell in cells.values():
            self._excuse(cell)
        self._share_initial_values()
        self._sort()
        return Folded(self.cells, self.inputs, returned, self.layout, self.record)

    def _differs(self, op: Op, step: int, how: str) -> None:
        raise _different(op, step, how)

    def _sort(self) -> None:
        """Same-step operands first, else program order."""
        done: set[Cell] = set(self.inputs)
        result: list[Cell] = []

        def visit(cell: Cell) -> None:
            stack = [(cell, iter([r.cell for r in cell.cells if r.delay == 0]))]
            done.add(cell)
            while stack:
                top, rest = stack[-1]
                for inner in rest:
                    if inner not in done:
                        done.add(inner)
                        stack.append((inner, iter([r.cell for r in inner.cells if r.delay == 0])))
                        break
                else:
                    result.append(top)
                    stack.pop()

        for cell in self.cells:
            if cell not in done:
                visit(cell)
        self.cells = result

    # --------------------------------------------------------------------------------------------------------- reads

    def _compare_steps(self, cell: Cell) -> None:
        """Compare every step of a cell with the steady one, and collect initial values."""
        signature = _signature(cell.op)
        for step, op in cell.runs.items():
            if op.kind != cell.op.kind or _signature(op) != signature or len(op.operands) != len(cell.op.operands):
                if op in self.live:
                    self._differs(op, step, f"does {op.label} here with other settings than step {self.steady}")
                continue
            for read, item in zip(cell.reads, self._in_order(cell, op, step), strict=True):
                self._compare(cell, read, item, step, op)

    def _read_shadows(self, cells: dict[tuple[int, int], Cell]) -> None:
        """Initial values that only operations on constants have read: `b = rho * b + s` with two constants in the first step."""
        shadows = set(self.record.shadows)
        calls: dict[int, list[Op]] = defaultdict(list)
        sites = {op.site for op in shadows}
        for each in sorted((*shadows, *(op for op in self.record.ops if op.site in sites)), key=self._order().__getitem__):
            calls[each.site].append(each)
        for (site, count), cell in cells.items():
            a_step = sum(1 for other, _ in cells if other == site)
            for step in range(self.layout.steps):
                place = step * a_step + count
                if step in cell.runs or place >= len(calls.get(site, ())):
                    continue
                op = calls[site][place]
                if op not in shadows or len(op.operands) != len(cell.reads):
                    continue
                items = op.operands
                if op.kind == "ew" and op.attrs["fn"] in ("+", "*") and self._crossed(cell, items):
                    items = items[::-1]
                for read, item in zip(cell.reads, items, strict=True):
                    if isinstance(read, Read) and not isinstance(item, Value) and step < read.delay:
                        read.init.setdefault(step, item)

    def _order(self) -> dict[Op, tuple[int, int]]:
        return {op: (op.event, at) for ops in (self.record.shadows, self.record.ops) for at, op in enumerate(ops)}

    @staticmethod
    def _crossed(cell: Cell, items: Sequence[Operand]) -> bool:
        """Python calls `0 * x` as x * 0."""
        fixed = [None if isinstance(read, Read) else _constant_key(read) for read in cell.reads]
        here = [None if isinstance(item, Value) else _constant_key(item) for item in items]
        return any(k is not None and k != here[i] and k == here[1 - i] for i, k in enumerate(fixed))

    def _share_initial_values(self) -> None:
        """A cell that does not run at step 0 takes the initial value that another one was seen to read there."""
        seen: dict[tuple[Cell, int, int], Const | Number] = {}
        reads = [read for cell in self.cells for read in cell.cells if read.delay]
        for read in reads:
            for step, constant in read.init.items():
                seen.setdefault((read.cell, read.port, step - read.delay), constant)
        for read in reads:
            for step in range(read.delay):
                found = seen.get((read.cell, read.port, step - read.delay))
                if found is not None:
                    read.init.setdefault(step, found)

    def _in_order(self, cell: Cell, op: Op, step: int) -> tuple[Operand, ...]:
        """The operands as in the steady step: Python calls `0 + x` as x + 0."""
        if op.kind != "ew" or op.attrs["fn"] not in ("+", "*") or len(op.operands) != 2:
            return op.operands
        wanted = [(r.cell, r.port, r.delay) if isinstance(r, Read) else _constant_key(r) for r in cell.reads]
        here = [self._reference(item, step, op) for item in op.operands]
        straight = (here[0] == wanted[0]) + (here[1] == wanted[1])
        crossed = (here[1] == wanted[0]) + (here[0] == wanted[1])
        return op.operands if straight >= crossed else op.operands[::-1]

    def _excuse(self, cell: Cell) -> None:
        """An operation may be missing at a step only if all that it would read there is from before the first step."""
        if cell.op not in self.live:
            return
        for step in range(self.layout.steps):
            if step in cell.runs:
                continue
            if step == 0 and cell.stand_ins:
                continue
            if step == self.last and not any(seen == step for _, seen in cell.observed):
                continue  # it is for the next step, of which there is none: whatever reads it here would differ
            for read in cell.cells:
                before = step - read.delay
                if before >= 0 and (before in read.cell.runs or -1 in read.cell.runs):
                    raise left_out(cell.op, step, self.steady)

    def _compare(self, cell: Cell, read: Read | Const | Number, item: Operand, step: int, op: Op) -> None:
        here = self._reference(item, step, op)
        if not isinstance(read, Read):
            if here != _constant_key(read) and op in self.live:
                self._differs(op, step, f"uses another constant in {op.label} than step {self.steady}")
            return
        if here == (read.cell, read.port, read.delay):
            return
        resolved = self._resolve(item, op) if isinstance(item, Value) else item
        if isinstance(resolved, (Const, int, float)):
            before = step - read.delay
            if before < 0:
                read.init[step] = resolved
                return
            if before not in read.cell.runs and -1 not in read.cell.runs:
                read.cell.observed[read.port, before] = resolved
                return
        elif self._stands_in(read.cell, read.port, step - read.delay, resolved):
            return
        if op in self.live:
            self._differs(op, step, f"reads something else in {op.label} than step {self.steady}")

    def _stands_in(self, cell: Cell, port: int, step: int, source: object) -> bool:
        """Note what is used at step 0 instead of a cell that does not run there."""
        if step != 0 or 0 in cell.runs or -1 in cell.runs or not isinstance(source, Source) or source.step not in (None, 0):
            return False
        cell.stand_ins[port] = source
        return True

    def _reference(self, item: Operand, step: int | None, op: Op) -> object:
        if not isinstance(item, Value):
            return _constant_key(item)
        source = self._resolve(item, op)
        if not isinstance(source, Source):
            return _constant_key(source)
        return (source.cell, source.port, self._delay(source, step, op))

    def _read(self, item: Operand, step: int | None, op: Op) -> Read | Const | Number:
        if not isinstance(item, Value):
            return item
        source = self._resolve(item, op)
        if not isinstance(source, Source):
            return source
        read = Read(source.cell, source.port, self._delay(source, step, op))
        if source.step is None:
            read.init.update(enumerate(source.init))
        return read

    def _delay(self, source: Source, step: int | None, op: Op) -> int:
        if source.step is None:
            return source.back
        if step is None:
            raise CompileError("SPK104", f"{op.label} on all steps at once reads a value of step {source.step} alone", loc=op.loc)
        delay = step - (source.step - source.back)
        if delay < 0:
            raise CompileError(
                "SPK104",
                f"step {step} reads a value that is computed at step {source.step}, in the future",
                loc=op.loc,
                fix="a network that begins when another has ended is two networks: compile them one by one",
            )
        return delay

    # ------------------------------------------------------------------------------------------------------- sources

    def structural(self, op: Op) -> bool:
        """Whether an operation only moves along time or batch: it makes no cell."""
        output = op.outputs[0]
        axes = self.layout.axes
        if op.kind == "carry":
            return True
        if op.kind == "pick":
            (x,) = op.values
            return any(atom in self.layout.time for atom in axes[x][op.attrs["axis"]])
        if op.kind == "stack":
            return any(atom in self.layout.time for atom in axes[output][op.attrs["axis"]])
        if op.kind in ("reshape", "squeeze", "unsqueeze", "expand", "permute"):
            source = op.operands[0]
            if not isinstance(source, Value):
                return False
            if op.kind == "permute":
                kept = self.layout.feature_axes(source, op)
                order = [dim for dim in op.attrs["dims"] if dim in kept]
                return order == sorted(order)
            return self.layout.shape(source, op) == self.layout.shape(output, op)
        return False

    def joins_steps(self, op: Op) -> bool:
        """Whether this concatenates tensors of one step each along the time axis."""
        axes = self.layout.axes
        return op.kind == "cat" and any(atom in self.layout.time for atom in axes[op.outputs[0]][op.attrs["axis"]])

    def _joined(self, op: Op) -> Read | Const | Number:
        source = self._stack(op)
        if not isinstance(source, Source):
            return source
        return Read(source.cell, source.port, source.back, dict(enumerate(source.init)))

    def _resolve(self, value: Value, reader: Op) -> Source | Const | Number:
        found = self.sources.get(value)
        if found is None:
            found = self.sources[value] = self._find(value, reader)
        return found

    def _find(self, value: Value, reader: Op) -> Source | Const | Number:
        op = value.op
        if op is None:
            raise CompileError("SPK111", "a tensor is read before all of its entries are written", loc=reader.loc)
        if op in self.by_op:
            return Source(self.by_op[op], value.port, self.steps[op])
        if not self.structural(op):
            step = self.steps[op]
            raise CompileError("SPK104", f"this reads a value that only step {step} computes", loc=reader.loc)
        if op.kind == "carry":
            left = op.operands[0]
            return self._resolve(left, reader) if isinstance(left, Value) else left
        if op.kind == "pick":
            return self._entry(op)
        if op.kind == "stack":
            return self._stack(op)
        (x,) = op.values
        return self._resolve(x, reader)

    def _entry(self, op: Op) -> Source | Const | Number:
        (x,) = op.values
        source = self._resolve(x, op)
        if not isinstance(source, Source):
            return source
        index = int(op.attrs["index"])
        if source.step is not None:
            return source
        if index < source.back and index < len(source.init):
            return source.init[index]
        return Source(source.cell, source.port, index, source.back)

    def _stack(self, op: Op) -> Source | Const | Number:
        entries = [self._resolve(item, op) if isinstance(item, Value) else item for item in op.operands]
        last = entries[-1]
        if not isinstance(last, Source):
            return last
        if last.step is None:
            return last
        back = len(entries) - 1 - (last.step - last.back)
        init: list[Const | Number] = []
        for step, entry in enumerate(entries):
            if isinstance(entry, Source):
                if (entry.cell, entry.port, (entry.step or 0) - entry.back) == (last.cell, last.port, step - back):
                    continue
                if not self._stands_in(last.cell, last.port, step - back, entry):
                    self._differs(op, step, "puts something else in the stack than the last step")
            elif step < back:
                init.append(entry)
            elif step - back not in last.cell.runs:
                last.cell.observed[last.port, step - back] = entry
            else:
                self._differs(op, step, "puts a constant in the stack")
        return Source(last.cell, last.port, None, back, tuple(init))

    # ------------------------------------------------------------------------------------------------------- returned

    def _returned(self, item: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Source]]:
        if isinstance(item, Value):
            reader = item.op or Op("output", (), {}, [], None, "", -1, -1)
            source = self._resolve(item, reader)
            if isinstance(source, Source):
                if source.step is not None and source.step != self.last:
                    raise CompileError(
                        "SPK104", f"the model returns a value of step {source.step}, which is not the last", loc=reader.loc
                    )
                yield path, source
        elif isinstance(item, dict):
            for key, inner in item.items():
                yield from self._returned(inner, (*path, key))
        elif isinstance(item, (tuple, list)):
            series = self._series(item)
            if series is not None:
                yield path, series
                return
            for index, inner in enumerate(item):
                yield from self._returned(inner, (*path, index))

    def _series(self, items: Any) -> Source | None:
        """A list with one tensor a step is the same as their stack."""
        if len(items) != self.layout.steps or not all(isinstance(item, Value) for item in items):
            return None
        sources = [self._resolve(item, item.op) for item in items]
        first = sources[-1]
        if not isinstance(first, Source):
            return None
        same = all(
            isinstance(s, Source) and (s.cell, s.port, s.step) == (first.cell, first.port, step) for step, s in enumerate(sources)
        )
        return Source(first.cell, first.port, None, first.back, first.init) if same else None


def _alike(op: Op, other: Op) -> bool:
    """Whether two modules of one list do the same kind of thing."""
    same = [part for part in zip(op.path.split("."), other.path.split("."), strict=False) if part[0] != part[1]]
    return op.kind == other.kind and len(same) == 1 and all(part.isdigit() for part in same[0])


def _read_key(read: Read | Const | Number) -> object:
    if not isinstance(read, Read):
        return _constant_key(read)
    return (read.cell, read.port, read.delay, *(_constant_key(item) for item in read.init.values()))


def _constant_key(item: Const | Number) -> object:
    if isinstance(item, Const):
        return ("const", id(item))
    return ("number", type(item).__name__, item)


def _signature(op: Op) -> tuple[object, ...]:
    """The settings of an operation in a form that compares equal from step to step."""
    result: list[object] = []
    for key, item in op.attrs.items():
        if isinstance(item, np.ndarray):
            result.append((key, item.shape, item.tobytes()))
        elif isinstance(item, Const):
            result.append((key, item.array.shape, item.array.dtype.str, item.array.tobytes() if not item.name else item.name))
        elif key == "leaf":
            result.append((key, id(item)))
        else:
            result.append((key, item))
    return tuple(result)


def fold(record: Record, layout: Layout) -> Folded:
    """The cells of one step. Raises CompileError SPK104 where a step differs from the others."""
    return _Folder(record, layout).fold()
