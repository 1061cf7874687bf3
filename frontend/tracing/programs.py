"""Write a region of element-wise cells as one neuron program."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikec.frontend.tracing.fold import Cell, Read
from spikec.frontend.tracing.values import Const, Number, StepCount
from spikec.ir.neuron import (
    COMPARISONS,
    LOGIC,
    RESERVED,
    STEP,
    Assign,
    Call,
    Emit,
    Expr,
    Num,
    Program,
    State,
    Var,
    substitute,
    variables,
)
from spikec.ir.types import Array

Port = tuple[Cell, int]


@dataclass
class RegionProgram:
    """A program and how it is wired: inputs in order, parameters, initial states, and which cell output each port and state is."""

    program: Program
    inputs: list[Read]
    params: dict[str, Array]
    init: dict[str, Array]
    ports: list[Port]
    states: dict[str, Port]
    #: Outputs that are the same variable as one of `ports`.
    twins: dict[Port, Port]


@dataclass
class _Writer:
    cells: list[Cell]
    outside: set[Port]
    constant: Callable[[Cell, Const | Number], Array]
    dtype: Any
    names: set[str] = field(default_factory=set)
    inputs: list[tuple[str, Read]] = field(default_factory=list)
    states: dict[tuple[Cell, int, bytes], str] = field(default_factory=dict)
    init: dict[str, Array] = field(default_factory=dict)
    params: dict[str, Array] = field(default_factory=dict)
    by_content: dict[tuple[object, ...], str] = field(default_factory=dict)
    variables: dict[Port, str] = field(default_factory=dict)
    inline: dict[Port, Expr] = field(default_factory=dict)
    body: list[Assign] = field(default_factory=list)
    booleans: set[str] = field(default_factory=set)
    thresholds: dict[float, str] = field(default_factory=dict)

    def name(self, wanted: str) -> str:
        """A fresh variable name."""
        base = re.sub(r"\W", "_", wanted).strip("_") or "c"
        base = f"p_{base}" if base in RESERVED or base[0].isdigit() else base
        number, chosen = 1, base
        while chosen in self.names:
            number += 1
            chosen = f"{base}{number}"
        self.names.add(chosen)
        return chosen

    # ------------------------------------------------------------------------------------------------------ operands

    def operand(self, cell: Cell, item: Read | Const | Number, role: str) -> Expr:
        if isinstance(item, Read):
            return self.read(item)
        if isinstance(item, bool):
            return Num(int(item))
        if isinstance(item, StepCount):
            count = Call("+", (Var(STEP), Num(1)))
            return Call("/", (Num(1), count)) if item.reciprocal else count
        if isinstance(item, (int, float)):
            known = self.thresholds.get(float(item))
            if known and role == "reset":
                return Var(known)
            role = "beta" if role == "reset" else role
            if item in (0, 1, -1) and role != "theta":
                return Num(int(item))
            if item == 0 or not np.isfinite(item):
                return Num(item)
            return self.parameter(role, np.asarray(float(item), self.dtype))
        role = "beta" if role == "reset" else role
        array = self.constant(cell, item)
        if array.ndim == 0 and array in (0, 1, -1) and not item.name and role != "theta":
            return Num(int(array))
        return self.parameter(item.name.rpartition(".")[2] or role, array)

    def parameter(self, wanted: str, array: Array) -> Expr:
        key = (array.shape, array.dtype.str, array.tobytes(), wanted)
        if key not in self.by_content:
            self.by_content[key] = self.name(wanted)
            self.params[self.by_content[key]] = array
        return Var(self.by_content[key])

    def read(self, read: Read) -> Expr:
        port = (read.cell, read.port)
        if read.cell in self.cells and read.delay == 0:
            return self.inline[port] if port in self.inline else Var(self.variables[port])
        if read.cell in self.cells and read.delay == 1:
            return Var(self.state(read))
        for name, known in self.inputs:
            same = (known.cell, known.port, known.delay) == (read.cell, read.port, read.delay)
            if same and [id(item) for item in known.init.values()] == [id(item) for item in read.init.values()]:
                return Var(name)
        name = self.name("x")
        self.inputs.append((name, read))
        return Var(name)

    def state(self, read: Read) -> str:
        begin = read.init.get(0, 0)
        array = self.constant(read.cell, begin)
        if isinstance(begin, float):
            array = array.astype(self.dtype)
        key = (read.cell, read.port, array.tobytes() + str(array.shape).encode())
        if np.all(array == 0):
            key = (read.cell, read.port, b"")
        if key not in self.states:
            boolean = read.cell.op.outputs[read.port].boolean
            self.states[key] = self.name("spiked" if boolean else "v")
            if np.any(array != 0):
                self.init[self.states[key]] = array
        return self.states[key]

    def is_boolean(self, expr: Expr) -> bool:
        if isinstance(expr, Var):
            return expr.name in self.booleans
        if isinstance(expr, Call):
            if expr.op == "select":
                return all(self.is_boolean(arg) for arg in expr.args[1:])
            return expr.op in COMPARISONS or expr.op in LOGIC
        return False

    def truth(self, expr: Expr) -> Expr:
        return expr if self.is_boolean(expr) else Call("!=", (expr, Num(0)))

    # ---------------------------------------------------------------------------------------------------- statements

    def element(self, cell: Cell) -> Expr:
        fn = cell.op.attrs["fn"]
        role = {"*": "beta", "/": "tau", "+": "offset", "-": "offset"}.get(fn, "theta" if fn in COMPARISONS else "c")
        if fn in ("-", "+") and self._feeds_comparison(cell):
            role = "theta"
        if fn == "*" and any(read.cell.op.outputs[read.port].boolean for read in cell.cells):
            role = "reset"
        args = [self.operand(cell, item, role) for item in cell.reads]
        if fn in LOGIC:
            args = [self.truth(arg) for arg in args]
        if fn == "select":
            args[0] = self.truth(args[0])
        expr: Expr = Call(fn, tuple(args))
        # (a - b) > 0 is a > b, to the last bit: subtraction never rounds a difference to zero.
        if fn in ("<", "<=", ">", ">=") and args[1] == Num(0) and isinstance(args[0], Call) and args[0].op == "-":
            expr = Call(fn, args[0].args)
        return expr

    def _feeds_comparison(self, cell: Cell) -> bool:
        return any(
            other.op.kind == "ew"
            and other.op.attrs["fn"] in COMPARISONS
            and any(r.cell is cell and r.delay == 0 for r in other.cells)
            for other in self.cells
        )

    def leaf(self, cell: Cell) -> None:
        """A neuron module whose state is handled by the user: its program's statements, on renamed variables."""
        leaf, names = cell.op.attrs["leaf"], cell.op.attrs["variables"]
        program: Program = leaf.general or leaf.program
        values: dict[str, Expr] = {}
        for operand, item in zip((*program.inputs, *program.state_names), cell.reads, strict=True):
            values[operand] = self.operand(cell, item, "c")
        for parameter in program.params:
            values[parameter] = self.parameter(parameter, self.constant(cell, Const(leaf.params[parameter])))
        for statement in program.body:
            fresh = self.name(f"{statement.name}_new" if statement.name in program.state_names else statement.name)
            self.assign(fresh, substitute(statement.expr, values))
            values[statement.name] = Var(fresh)
        for port, name in enumerate(names):
            value = values[name]
            assert isinstance(value, Var)
            self.variables[cell, port] = value.name

    def assign(self, name: str, expr: Expr) -> None:
        self.body.append(Assign(name, expr))
        if self.is_boolean(expr):
            self.booleans.add(name)

    def write(self) -> None:
        reads = [r for cell in self.cells for r in cell.cells if r.cell in self.cells]
        for read in reads:
            if read.delay == 1:
                self.state(read)
        for cell in self.cells:  # thresholds first, so that the reset finds them
            if cell.op.kind == "ew":
                for item in cell.reads:
                    compares = cell.op.attrs["fn"] in COMPARISONS or self._feeds_comparison(cell)
                    if (
                        compares
                        and isinstance(item, (int, float))
                        and not isinstance(item, bool)
                        and item != 0
                        and np.isfinite(item)
                    ):
                        theta = self.parameter("theta", np.asarray(float(item), self.dtype))
                        assert isinstance(theta, Var)
                        self.thresholds[float(item)] = theta.name
        uses: dict[Port, int] = {}
        for read in reads:
            weight = 2 if read.delay else 1
            uses[read.cell, read.port] = uses.get((read.cell, read.port), 0) + weight
        for cell in self.cells:
            if cell.op.kind == "leaf":
                self.leaf(cell)
                continue
            expr = self.element(cell)
            once = uses.get((cell, 0), 0) == 1 and (cell, 0) not in self.outside
            if once:
                self.inline[cell, 0] = expr
                continue
            name = self.name("s" if cell.op.outputs[0].boolean else "m")
            self.variables[cell, 0] = name
            self.assign(name, expr)
        self._carry()

    def _carry(self) -> None:
        """Hand each state what the next step reads: by its own name where nothing reads the old value afterwards."""
        for (cell, port, _), state in self.states.items():
            name = self.variables[cell, port]
            at = next(i for i, statement in enumerate(self.body) if statement.name == name)
            read_later = any(state in set(variables(statement.expr)) for statement in self.body[at + 1 :])
            taken = name in self.booleans or name in self.states.values()
            if read_later or taken:
                self.body.append(Assign(state, Var(name)))
                continue
            swap = {name: Var(state)}
            self.body = [Assign(state if i == at else s.name, substitute(s.expr, swap)) for i, s in enumerate(self.body)]
            self.variables = {key: state if value == name else value for key, value in self.variables.items()}
        # A state that several statements hand on must be written after its last reading.
        order = {name: i for i, name in enumerate(self.states.values())}
        late = [s for s in self.body if s.name in order and isinstance(s.expr, Var)]
        self.body = [s for s in self.body if s not in late] + late


def write_region(
    cells: list[Cell], outside: Iterable[Port], name: str, constant: Callable[[Cell, Const | Number], Array], dtype: Any
) -> RegionProgram:
    """The program of a region. outside: the outputs that somebody else reads; dtype: of numbers in the code."""
    wanted = list(dict.fromkeys(outside))
    writer = _Writer(cells, set(wanted), constant, dtype)
    writer.write()
    ports = sorted(wanted, key=lambda port: not port[0].op.outputs[port[1]].boolean)
    emits: list[Emit] = []
    kept: list[Port] = []
    seen: dict[str, Port] = {}
    twins: dict[Port, Port] = {}
    for port in ports:
        variable = writer.variables[port]
        if variable in seen:
            twins[port] = seen[variable]
            continue
        seen[variable] = port
        kept.append(port)
        emits.append(Emit(variable, "spike" if variable in writer.booleans else "value"))
    program = Program(
        name,
        tuple(item for item, _ in writer.inputs),
        tuple(writer.params),
        tuple(State(item) for item in writer.states.values()),
        tuple(writer.body),
        tuple(emits),
    )
    states = {state: (cell, port) for (cell, port, _), state in writer.states.items()}
    return RegionProgram(program, [read for _, read in writer.inputs], writer.params, writer.init, kept, states, twins)
