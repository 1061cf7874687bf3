"""How far sums and states reach, in the worst case and on data, and where one can wrap or saturate: which neuron, by what input.

The worst case is that of each neuron by itself: the sum of its own weights, its own parameters. It is sound and not always exact:
what several sources cannot send together is not known here, nor which states go together. What is measured on data is exact for
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic, Loc
from spikec.ir.bounds import Bounds, bounds_of
from spikec.ir.connections import connections
from spikec.ir.graph import Graph
from spikec.ir.interpret import Interpreter
from spikec.ir.neuron import Assign, Call, Expr, Num, Program
from spikec.ir.ops import Add, Conv, Dense, Gather, Neuron, Ref, Reshape, Sparse, spread
from spikec.ir.ranges import Interval, Overflow, ProgramRanges, graph_ranges, hull, initial_ranges, of_array, program_ranges
from spikec.ir.types import DTYPES, Array, int_range
from spikec.target import Target

#: With more different neurons than this in a population, the worst case is that of groups of them.
MANY: Final = 64
_LEAPS: Final = 6


@dataclass(frozen=True)
class Trouble:
    """A wrap or a saturation: of which neuron (index, and how many more), how far it reaches, and by what input.

    sample, step: where on the data; None for the worst case. sources: by node, the flat indices of what sends then (worst case).
    """

    neuron: tuple[int, ...]
    neurons: int
    value: int
    cause: str
    sample: int | None = None
    step: int | None = None
    sources: Mapping[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Reach:
    """One variable of one population: worst-case and calibrated interval, the width it has and what happens beyond."""

    population: str
    variable: str
    worst: Interval
    calibrated: Interval | None
    legal: Interval
    beyond: str
    possible: Trouble | None = None
    happened: Trouble | None = None
    loc: Loc | None = None

    @property
    def width(self) -> str:
        """The legal values in bits, and what happens beyond them."""
        bits = (self.legal[1] - self.legal[0]).bit_length()
        return f"{bits} bits" + (f", {self.beyond}" if self.beyond else "")


@dataclass(frozen=True)
class HeadRoom:
    """All variables of all populations."""

    rows: tuple[Reach, ...]

    def diagnostics(self) -> list[Diagnostic]:
        """Every wrap and saturation that can happen, the worst case and what happened on the data; severity error."""
        found = []
        for row in self.rows:
            if row.possible is None:
                continue
            trouble, notes = row.possible, []
            if row.happened is not None:
                seen = row.happened
                notes.append(f"on the data it happens: {_index(seen.neuron)} reaches {seen.value:,} {seen.cause}")
            elif row.calibrated is not None:
                notes.append(f"on the data it stays within {row.calibrated[0]:,} to {row.calibrated[1]:,}")
            more = f" (and {trouble.neurons - 1} more)" if trouble.neurons > 1 else ""
            found.append(
                Diagnostic(
                    "SPK218",
                    f"%{row.population}: {_index(trouble.neuron)}{more}: {row.variable} can reach {trouble.value:,} and "
                    f"{row.beyond or 'leaves its range'} beyond {row.legal[0]:,} to {row.legal[1]:,}",
                    loc=row.loc,
                    notes=(f"the worst case: {trouble.cause}", *notes),
                    fix="let fewer or weaker inputs reach the neuron, or let it leak faster",
                )
            )
        return found

    def text(self) -> str:
        """A table for people, and the troubles below it."""
        table = [["layer", "variable", "worst case", "on data", "width", ""]]
        for row in self.rows:
            told = "happens" if row.happened else "possible" if row.possible else "never" if row.beyond else ""
            seen = "" if row.calibrated is None else f"{row.calibrated[0]:,} to {row.calibrated[1]:,}"
            table.append([row.population, row.variable, f"{row.worst[0]:,} to {row.worst[1]:,}", seen, row.width, told])
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
        lines += [str(replace(item, severity="warning")) for item in self.diagnostics()]
        return "\n".join(lines) + "\n"

    def as_json(self) -> list[dict[str, Any]]:
        """The same as plain data."""
        return [{**asdict(row), "width": row.width, "loc": str(row.loc) if row.loc else None} for row in self.rows]


def head_room(graph: Graph, target: Target | None = None, data: Mapping[str, Array] | None = None) -> HeadRoom:
    """Intervals of a graph of integers. data: (batch, T, *shape) by input name, as the graph takes it."""
    if graph.level == "float":
        raise CompileError(
            "SPK404", "ranges are those of a graph of integers", fix="compile with --bits, or for a target of integers"
        )
    ranges = graph_ranges(graph)
    watch = _watch(graph, data) if data is not None and graph.neurons else None
    rows: list[Reach] = []
    for node in graph.neurons:
        bounds = [bounds_of(graph, ref, ranges) for ref in node.inputs]
        native = target is not None and target.native(node.program) is not None
        for number, (name, ref) in enumerate(zip(node.program.inputs, node.inputs, strict=True)):
            seen = watch.seen[node.name][f"in{number}"] if watch else None
            rows.append(_sum_row(graph, node, name, ref, bounds[number], target if native else None, seen))
        rows += _state_rows(graph, node, bounds, watch.seen[node.name] if watch else {})
    return HeadRoom(tuple(rows))


# -------------------------------------------------------------------------------------------------- what can be narrowed


@dataclass(frozen=True)
class _Site:
    """A place where a program narrows a number: `expr` in statement `statement`, evaluated where `where` holds."""

    statement: int
    variable: str
    expr: Expr
    legal: Interval
    beyond: str
    where: Expr | None


def sites(program: Program) -> list[_Site]:
    """Every wrap, clip and hand-written wrap (`select(x > c, x - 2c, ...)`) of a program, in order."""
    return [site for index, statement in enumerate(program.body) for site in _sites(statement.expr, index, statement.name, None)]


def _sites(expr: Expr, index: int, name: str, where: Expr | None) -> Iterator[_Site]:
    if not isinstance(expr, Call):
        return
    if expr.op in ("wrap", "clip"):
        half = 1 << (int(_number(expr.args[1])) - 1)
        legal = (-half, half - 1) if expr.op == "wrap" else (1 - half, half - 1)
        yield _Site(index, name, expr.args[0], legal, "wraps" if expr.op == "wrap" else "saturates", where)
    if expr.op == "select":
        condition, yes, no = expr.args
        if (legal_ := _wrapping(expr)) is not None:
            yield _Site(index, name, legal_[0], legal_[1], "wraps", where)
            return
        yield from _sites(condition, index, name, where)
        yield from _sites(yes, index, name, condition if where is None else Call("and", (where, condition)))
        turned = Call("not", (condition,))
        yield from _sites(no, index, name, turned if where is None else Call("and", (where, turned)))
        return
    for child in expr.args:
        yield from _sites(child, index, name, where)


def _number(expr: Expr) -> float:
    return expr.value if isinstance(expr, Num) else 0


def _wrapping(expr: Call) -> tuple[Expr, Interval] | None:
    """What `select(x > c, x - m, select(x <= -c, x + m, x))` wraps, and the values that it leaves alone."""
    upper, minus, rest = expr.args
    if not (isinstance(upper, Call) and isinstance(minus, Call) and isinstance(rest, Call) and rest.op == "select"):
        return None
    lower, plus, same = rest.args
    if not (isinstance(lower, Call) and isinstance(plus, Call)):
        return None
    x = upper.args[0]
    if any(part.args[0] != x for part in (minus, lower, plus)) or same != x or (minus.op, plus.op) != ("-", "+"):
        return None
    numbers = [part.args[1] for part in (upper, minus, lower, plus)]
    if not all(isinstance(item, Num) for item in numbers) or upper.op not in (">", ">=") or lower.op not in ("<", "<="):
        return None
    top, modulus, bottom, back = (int(_number(item)) for item in numbers)
    if modulus != back or modulus & (modulus - 1) or modulus < 2:
        return None
    return x, (bottom + (lower.op == "<="), top - (upper.op == ">="))


# ------------------------------------------------------------------------------------------------------------ worst case


def _sum_row(graph: Graph, node: Neuron, name: str, ref: Ref, bounds: Bounds, target: Target | None, seen: _Seen | None) -> Reach:
    """What arrives at an input. Native neurons of a target may hold less than the wire does."""
    low, high = bounds
    legal, beyond = int_range(graph.type_of(ref).dtype), ""
    if target is not None and target.has("sum_max"):
        most = target.integer("sum_max")
        legal, beyond = (-most, most), "leaves its range"
    possible = None
    if beyond and (low.min(initial=0) < legal[0] or high.max(initial=0) > legal[1]):
        over = np.maximum(np.abs(low), np.abs(high))
        at = int(np.argmax(over))
        up = int(high.ravel()[at]) >= -int(low.ravel()[at])
        text, sources = drivers(graph, ref, at, up)
        value = int((high if up else low).ravel()[at])
        shape = graph.shape_of(node.name)
        count = int(np.count_nonzero((low < legal[0]) | (high > legal[1])))
        possible = Trouble(_unravel(at, shape), count, value, f"{text} (a sum of {value:,})", sources=sources)
    worst = (int(low.min()), int(high.max())) if low.size else (0, 0)
    measured = seen.interval if seen else None
    happened = seen.trouble(graph, node, legal) if seen and beyond else None
    return Reach(node.name, name, worst, measured, legal, beyond, possible, happened, node.loc)


def _state_rows(graph: Graph, node: Neuron, bounds: list[Bounds], seen: Mapping[str, _Seen]) -> list[Reach]:
    shape = graph.shape_of(node.name)
    kinds = _Kinds(node, shape, bounds)
    places = sites(node.program)
    rows = []
    narrowed = {site.variable for site in places}
    for number, site in enumerate(places):
        interval, flagged, own = kinds.reach(site)
        possible = None
        if flagged.size:
            at = int(flagged[0])
            up = own[1] > site.legal[1] and own[1] - site.legal[1] >= site.legal[0] - own[0]
            parts = [drivers(graph, ref, at, up) for ref in node.inputs]
            total = sum(int(b[up].ravel()[at]) for b in (_spread(b, shape) for b in bounds))
            text = "; ".join(part[0] for part in parts) + f" (a sum of {total:,} at every step)"
            sources: dict[str, tuple[int, ...]] = {}
            for _, found in parts:
                sources |= found
            possible = Trouble(_unravel(at, shape), len(flagged), own[1] if up else own[0], text, sources=sources)
        found_here = seen.get(f"at{number}")
        measured = found_here.interval if found_here else None
        happened = found_here.trouble(graph, node, site.legal) if found_here else None
        rows.append(Reach(node.name, site.variable, interval, measured, site.legal, site.beyond, possible, happened, node.loc))
    for state in node.program.states:
        if state.name not in narrowed:
            found_here = seen.get(f"state {state.name}")
            legal = int_range(state.dtype)
            measured = found_here.interval if found_here else None
            rows.append(Reach(node.name, state.name, kinds.state(state.name), measured, legal, "", None, None, node.loc))
    return rows


def _spread(bounds: Bounds, shape: tuple[int, ...]) -> Bounds:
    return np.broadcast_to(bounds[0], shape), np.broadcast_to(bounds[1], shape)


class _Kinds:
    """The neurons of a population that differ in what they get or in their parameters, and the worst case of each."""

    def __init__(self, node: Neuron, shape: tuple[int, ...], bounds: list[Bounds]) -> None:
        self.node = node
        flat = [np.broadcast_to(side, shape).ravel() for pair in bounds for side in pair]
        self.names = (*node.params, *node.init)
        arrays = (*node.params.values(), *node.init.values())
        flat += [np.broadcast_to(spread(array, shape), shape).ravel() for array in arrays]
        size = int(np.prod(shape, dtype=np.int64))
        if flat and size:
            table, self.kind = np.unique(np.stack(flat, axis=1), axis=0, return_inverse=True)
            self.table = table.astype(np.int64)
            self.kind = self.kind.ravel()
        else:
            self.table, self.kind = np.zeros((min(size, 1), 0), np.int64), np.zeros(size, np.int64)
        self.fan_in = len(bounds)
        reach = np.abs(self.table[:, : 2 * self.fan_in]).max(axis=1, initial=0)
        self.order = np.argsort(-reach, kind="stable")
        self.cache: dict[tuple[int, ...], ProgramRanges] = {}
        if len(self.table) > MANY:  # the farthest by themselves, the others together
            self.groups = [(int(k),) for k in self.order[: MANY - 1]] + [tuple(int(k) for k in self.order[MANY - 1 :])]
        else:
            self.groups = [(int(k),) for k in self.order]

    def ranges(self, members: tuple[int, ...]) -> ProgramRanges:
        """Of what the members can do, all their intervals taken together."""
        if members not in self.cache:
            rows = self.table[list(members)]
            pairs = [(int(rows[:, 2 * i].min()), int(rows[:, 2 * i + 1].max())) for i in range(self.fan_in)]
            rest = {name: of_array(rows[:, 2 * self.fan_in + i]) for i, name in enumerate(self.names)}
            params = {name: rest[name] for name in self.node.params}
            begin = initial_ranges(self.node) | {name: rest[name] for name in self.node.init}
            try:
                self.cache[members] = program_ranges(self.node.program, pairs, params, begin, leaps=_LEAPS)
            except Overflow as error:
                self.node.fail("SPK308", f"@{self.node.program.name}: {error}, which no 64-bit integer holds")
        return self.cache[members]

    def reach(self, site: _Site) -> tuple[Interval, Array, Interval]:
        """The interval of what is narrowed; the neurons that can leave the legal values, worst first; the interval of that one."""
        total: Interval | None = None
        worst: list[tuple[int, tuple[int, ...], Interval]] = []
        for members in self.groups:
            own = self.ranges(members).values[site.statement, site.expr]
            total = own if total is None else hull(total, own)
            excess = max(own[1] - site.legal[1], site.legal[0] - own[0])
            if excess <= 0:
                continue
            if len(members) > 1:  # one by one as far as that is cheap; the rest cannot be excluded
                for kind in members[:MANY]:
                    alone, interval = self._excess(kind, site)
                    if alone > 0:
                        worst.append((alone, (kind,), interval))
                members = members[MANY:]
            if members:
                worst.append((excess, members, own))
        worst.sort(key=lambda item: (-item[0], item[1]))
        flagged = [np.flatnonzero(np.isin(self.kind, members)) for _, members, _ in worst]
        joined = np.concatenate(flagged) if flagged else np.zeros(0, np.int64)
        return total or (0, 0), joined, worst[0][2] if worst else (0, 0)

    def _excess(self, kind: int, site: _Site) -> tuple[int, Interval]:
        own = self.ranges((kind,)).values[site.statement, site.expr]
        return max(own[1] - site.legal[1], site.legal[0] - own[0]), own

    def state(self, name: str) -> Interval:
        """The interval of a state over all neurons."""
        total: Interval | None = None
        for members in self.groups:
            own = self.ranges(members).states[name]
            total = own if total is None else hull(total, own)
        return total or (0, 0)


def drivers(graph: Graph, ref: Ref, index: int, up: bool) -> tuple[str, dict[str, tuple[int, ...]]]:
    """What makes element `index` (flat) of a wire largest, or least: in words, and the elements of sources that send then."""
    node = graph[ref.node]
    if isinstance(node, (Dense, Sparse, Conv)):
        source = node.inputs[0]
        found = connections(node, graph.type_of(source).shape)
        mine = found.rows == index
        weight, column = found.weight[mine].astype(np.int64), found.columns[mine]
        chosen = np.unique(column[weight > 0 if up else weight < 0])
        sign = "positive" if up else "negative"
        count = len(np.unique(column))
        text = (
            f"{len(chosen)} of the {count} elements of %{source.node} that reach it, those of {sign} weight in %{node.name}, send"
        )
        return text, {source.node: tuple(int(i) for i in chosen)}
    if isinstance(node, Add):
        parts = [drivers(graph, item, index, up) for item in node.inputs if item.delay == 0 or item.node != ref.node]
        joined: dict[str, tuple[int, ...]] = {}
        for _, sources in parts:
            for name, indices in sources.items():
                joined[name] = tuple(sorted({*joined.get(name, ()), *indices}))
        return " and ".join(text for text, _ in parts), joined
    if isinstance(node, Reshape):
        return drivers(graph, node.inputs[0], index, up)
    if isinstance(node, Gather):
        return drivers(graph, node.inputs[0], int(node.indices.ravel()[index]), up)
    which = "largest" if up else "least"
    return f"%{ref.node} gives its {which} value", {ref.node: (index,)} if up else {}


# ---------------------------------------------------------------------------------------------------------------- on data


class _Seen:
    """Least and largest value so far, with neuron, sample and step of each."""

    def __init__(self) -> None:
        self.low: tuple[int, int, int, int] | None = None
        self.high: tuple[int, int, int, int] | None = None

    def add(self, values: Array, step: int) -> None:
        """values: (batch, *shape)."""
        if not values.size:
            return
        flat = values.reshape(values.shape[0], -1)
        for up in (False, True):
            sample, neuron = divmod(int(flat.argmax() if up else flat.argmin()), flat.shape[1])
            value = int(flat[sample, neuron])
            if up and (self.high is None or value > self.high[0]):
                self.high = (value, sample, step, neuron)
            if not up and (self.low is None or value < self.low[0]):
                self.low = (value, sample, step, neuron)

    @property
    def interval(self) -> Interval | None:
        """What was seen; None if nothing was."""
        return (self.low[0], self.high[0]) if self.low and self.high else None

    def trouble(self, graph: Graph, node: Neuron, legal: Interval) -> Trouble | None:
        """The farthest value beyond the legal ones."""
        if not (self.low and self.high):
            return None
        over, under = self.high[0] - legal[1], legal[0] - self.low[0]
        if max(over, under) <= 0:
            return None
        value, sample, step, neuron = self.high if over >= under else self.low
        place = _unravel(neuron, graph.shape_of(node.name))
        return Trouble(place, 1, value, f"in sample {sample} at step {step}", sample, step)


class _Watch(Interpreter):
    """The reference, with what every population narrows written down."""

    def __init__(self, graph: Graph, batch: int, steps: int) -> None:
        super().__init__(graph.with_nodes(_probed(n) if isinstance(n, Neuron) else n for n in graph.nodes), batch)
        self.length = steps
        self.seen: dict[str, dict[str, _Seen]] = {node.name: {} for node in graph.neurons}
        self.places = {node.name: sites(node.program) for node in graph.neurons}
        self.names = {node.name: _probe_names(node.program, len(self.places[node.name])) for node in graph.neurons}
        for node in graph.neurons:
            keys = [f"in{i}" for i in range(len(node.inputs))] + [f"at{i}" for i in range(len(self.places[node.name]))]
            keys += [f"state {state.name}" for state in node.program.states]
            self.seen[node.name] = {key: _Seen() for key in keys}

    def observe(self, node: Neuron, values: Mapping[str, Any]) -> None:
        """Write down the extremes of a step of the model's own."""
        step = self.t - node.lag
        if not 0 <= step < self.length:
            return
        shape = (self.batch, *self.graph.shape_of(node.name))
        own = self.seen[node.name]

        def add(key: str, value: Any) -> None:
            own[key].add(np.broadcast_to(self.truth(value), shape), step)

        for number, name in enumerate(node.program.inputs):
            add(f"in{number}", values[name])
        for number, name in enumerate(self.names[node.name]):
            add(f"at{number}", values[name])
        for state in node.program.states:
            add(f"state {state.name}", values[state.name])


def _watch(graph: Graph, data: Mapping[str, Array]) -> _Watch | None:
    first = next(iter(data.values()), None)
    if first is None:
        return None
    batch, steps = first.shape[:2]
    machine = _Watch(graph, batch, steps)
    for t in range(steps + graph.max_lag):
        machine.step(
            {
                node.name: data[node.name][:, t] if t < steps else np.zeros((batch, *node.type.shape), DTYPES[node.type.dtype])
                for node in graph.inputs
            }
        )
    return machine


def _probe_names(program: Program, count: int) -> list[str]:
    used = {*program.inputs, *program.params, *program.state_names, *(s.name for s in program.body)}
    stem = "probe"
    while any(name.startswith(stem) for name in used):
        stem += "_"
    return [f"{stem}{number}" for number in range(count)]


def _probed(node: Neuron) -> Neuron:
    """The population with what it narrows kept in variables of their own; 0 where that is not computed."""
    program = node.program
    places = sites(program)
    names = _probe_names(program, len(places))
    body: list[Assign] = []
    for index, statement in enumerate(program.body):
        for name, site in zip(names, places, strict=True):
            if site.statement == index:
                kept = site.expr if site.where is None else Call("select", (site.where, site.expr, Num(0)))
                body.append(Assign(name, kept))
        body.append(statement)
    changed = Program(program.name, program.inputs, program.params, program.states, tuple(body), program.emits)
    return replace(node, program=changed)


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(index, shape)) if shape else ()


def _index(neuron: tuple[int, ...]) -> str:
    return f"neuron {', '.join(map(str, neuron))}" if neuron else "the neuron"
