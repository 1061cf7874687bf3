"""What every graph must satisfy. `verify` runs after every frontend and every pass, always.

Each rule is a small generator of diagnostics; all of them are reported together, those that make later rules meaningless first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph, arrays_of
from spikec.ir.neuron import FIXED_ONLY, FLOAT_ONLY, Num
from spikec.ir.ops import Constant, Input, Neuron, Node
from spikec.ir.ranges import Ranges, graph_ranges
from spikec.ir.text import programs_of
from spikec.ir.types import DTYPES, LEVELS, int_range, is_float

_NAME = re.compile(r"[A-Za-z0-9_]+\Z")
_DOTTED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*\Z")


def _at(node: Node, code: str, message: str, fix: str | None = None) -> Diagnostic:
    return Diagnostic(code, f"%{node.name}: {message}", loc=node.loc, fix=fix)


def names(graph: Graph) -> Iterator[Diagnostic]:
    """Names are unique words; references read what exists."""
    if graph.level not in LEVELS:
        yield Diagnostic("SPK302", f"'{graph.level}' is not a level")
    if graph.dt is not None and not (math.isfinite(graph.dt) and graph.dt > 0):
        yield Diagnostic("SPK302", f"dt must be a positive number of seconds, not {graph.dt}")
    seen: set[str] = set()
    for node in graph.nodes:
        if not _NAME.match(node.name):
            yield _at(node, "SPK302", "a name consists of letters, digits and underscores")
        if node.name in seen:
            yield _at(node, "SPK302", "two nodes have this name")
        seen.add(node.name)
    outputs = [name for name, _ in graph.outputs]
    for what, name in (("graph", graph.name), *(("output", name) for name in outputs)):
        if not _DOTTED.match(name):
            yield Diagnostic("SPK302", f"the {what} '{name}': a name consists of letters, digits, underscores and dots")
    for name in sorted({n for n in outputs if outputs.count(n) > 1}):
        yield Diagnostic("SPK302", f"two outputs are called '{name}'")
    for name, ref in graph.outputs:
        if ref.delay:
            yield Diagnostic("SPK302", f"the output '{name}' reads an earlier step; give it a node of its own")
        if ref.node not in seen:
            yield Diagnostic("SPK302", f"the output '{name}' reads %{ref.node}, which does not exist")
    for node in graph.nodes:
        for ref in node.inputs:
            if ref.node not in seen:
                yield _at(node, "SPK302", f"reads %{ref.node}, which does not exist")


def delays(graph: Graph) -> Iterator[Diagnostic]:
    """Delays, lags and starts are whole and not negative; initial values belong to a delayed reference."""
    for node in graph.nodes:
        for ref in node.inputs:
            if ref.delay < 0:
                yield _at(node, "SPK306", f"reads %{ref.node} {-ref.delay} step(s) in the future")
            if ref.init is not None and (ref.delay == 0 or ref.init.shape[:1] != (ref.delay,)):
                yield _at(node, "SPK302", f"the initial values of {ref} need one entry per step of delay")
        if node.lag < 0 or getattr(node, "start", 0) < 0:
            yield _at(node, "SPK306", "lag and start cannot be negative")
        if isinstance(node, Neuron) and node.stop is not None and node.stop < node.start:
            yield _at(node, "SPK306", f"stops at step {node.stop}, before it starts at step {node.start}")


def cores(graph: Graph) -> Iterator[Diagnostic]:
    """At the placed level every neuron has a core, at others none has."""
    for node in graph.neurons:
        if (node.core is not None) != (graph.level == "placed"):
            what = "needs a core for every neuron" if graph.level == "placed" else f"has cores, but the level is {graph.level}"
            yield _at(node, "SPK302", what)
        elif node.core is not None and (
            node.core.dtype.kind != "i" or node.core.shape != graph.shape_of(node.name) or (node.core.size and node.core.min() < 0)
        ):
            yield _at(node, "SPK309", "cores are whole numbers, one for each neuron, and not negative")


def arrays(graph: Graph) -> Iterator[Diagnostic]:
    """Weights are finite; at integer levels all arrays are integers."""
    for node in graph.nodes:
        for name, array in arrays_of(node):
            if array.dtype.kind == "f":
                parameter = isinstance(node, Neuron) and name in node.params
                bad = np.isnan(array) if parameter else ~np.isfinite(array)
                if bad.any():
                    where = tuple(int(i) for i in np.argwhere(bad)[0])
                    place = f" at {list(where)}" if where else ""
                    yield _at(node, "SPK305", f"{name} holds {array[where]}{place} ({int(bad.sum())} of {array.size})")
                if graph.level != "float":
                    yield _at(node, "SPK302", f"{name} is {array.dtype} in a graph of integers")


def programs(graph: Graph) -> Iterator[Diagnostic]:
    """Programs use the operations of their level; states declare their width at integer levels."""
    try:
        found = programs_of(graph)
    except CompileError as error:
        yield error.diagnostics[0]
        return
    for program in found:
        if graph.level == "float":
            wrong = program.operations() & FIXED_ONLY
            level = "integer levels"
        else:
            wrong = program.operations() & FLOAT_ONLY
            level = "the float level"
            for state in program.states:
                if not state.dtype or is_float(state.dtype):
                    yield Diagnostic("SPK302", f"neuron @{program.name}: state {state.name} declares no integer width")
                if not isinstance(state.init, int):
                    yield Diagnostic("SPK302", f"neuron @{program.name}: state {state.name} must begin as an integer")
            for statement in program.body:
                stack = [statement.expr]
                while stack:
                    expr = stack.pop()
                    if isinstance(expr, Num) and isinstance(expr.value, float):
                        yield Diagnostic("SPK302", f"neuron @{program.name}: the literal {expr.value} is not an integer")
                    stack += getattr(expr, "args", ())
        for op in sorted(wrong):
            yield Diagnostic("SPK302", f"neuron @{program.name}: '{op}' exists at {level} only")


def types(graph: Graph) -> Iterator[Diagnostic]:
    """Types can be inferred, the initial values of references fit, and inputs have a type of their level."""
    try:
        graph.order  # noqa: B018  # raises where there is a cycle
        graph.types  # noqa: B018  # raises where one cannot be derived
    except CompileError as error:
        yield error.diagnostics[0]
        return
    for node in graph.nodes:
        for ref in node.inputs:
            if ref.init is not None and ref.init.shape[1:] != graph.type_of(ref).shape:
                yield _at(node, "SPK309", f"the initial values of {ref} have the wrong shape {ref.init.shape}")
            elif ref.init is not None and graph.type_of(ref).kind == "spike" and not np.isin(ref.init, (0, 1)).all():
                fix = "give 0 or 1, or let the wire carry numbers: a population that emits them as graded"
                yield _at(node, "SPK302", f"the initial values of {ref} are spikes, which are 0 or 1", fix)
        for _, type_ in graph.types[node.name]:
            if type_.dtype not in DTYPES:
                yield _at(node, "SPK309", f"'{type_.dtype}' is not a type of number")
            if any(n < 0 for n in type_.shape):
                yield _at(node, "SPK309", f"the shape {type_.shape} has a negative size")
            if graph.level != "float" and is_float(type_.dtype):
                yield _at(node, "SPK309", f"is {type_.dtype} in a graph of integers")
            if graph.level == "float" and isinstance(node, Input) and not is_float(type_.dtype):
                yield _at(node, "SPK309", f"is {type_.dtype} in a graph of floats")
        if isinstance(node, Input) and node.bounds is not None and node.bounds[0] > node.bounds[1]:
            yield _at(node, "SPK309", f"its bounds {node.bounds} are empty")
        if isinstance(node, Input) and node.unit is not None and not (0 < node.unit < np.inf and graph.level != "float"):
            yield _at(node, "SPK302", f"a unit is a number above 0 in a graph of integers, not {node.unit}")
        if isinstance(node, Constant) and node.kind == "spike" and not np.isin(node.value, (0, 1)).all():
            yield _at(node, "SPK302", "spikes are 0 or 1")
    for name, ref in graph.outputs:
        try:
            graph.type_of(ref)
        except CompileError as error:
            yield Diagnostic(error.code, f"output '{name}': {error.diagnostics[0].message}")


def widths(graph: Graph) -> Iterator[Diagnostic]:
    """At integer levels every declared width holds the worst case, and 64 bits hold every intermediate value."""
    if graph.level == "float":
        return
    try:
        found = graph_ranges(graph)
    except CompileError as error:
        yield from error.diagnostics
        return
    yield from _declared(graph, found)


def _declared(graph: Graph, found: Ranges) -> Iterator[Diagnostic]:
    for node in graph.nodes:
        for port, type_ in graph.types[node.name]:
            low, high = found.wires[node.name, port]
            bottom, top = int_range(type_.dtype)
            if low < bottom or high > top:
                port_text = f".{port}" if port else ""
                yield Diagnostic(
                    "SPK308",
                    f"%{node.name}{port_text}: can reach {low} to {high}, which {type_.dtype} does not hold",
                    loc=node.loc,
                    fix="declare a wider type, smaller weights, or narrower input bounds",
                )
        if isinstance(node, Neuron):
            for state in node.program.states:
                low, high = found.neurons[node.name].states[state.name]
                bottom, top = int_range(state.dtype)
                if low < bottom or high > top:
                    yield _at(
                        node,
                        "SPK308",
                        f"state {state.name} can reach {low} to {high}, which {state.dtype} does not hold",
                        fix="narrow it with clip or wrap, or declare a wider type",
                    )


def verify(graph: Graph) -> Graph:
    """The graph itself if it is well formed. Raises CompileError with every violation found."""
    for group in ((names, delays), (types,), (arrays, programs, cores), (widths,)):
        found = [diagnostic for rule in group for diagnostic in rule(graph)]
        if found:
            raise CompileError.many(found)
    return graph
