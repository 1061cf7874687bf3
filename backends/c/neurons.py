"""Populations: one function with one loop for each, and the list of who fired."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from spikec.backends.c.exprs import C_TYPES, Lanes, Loop, Operand, float_loop, integer_loop, literal, vector_loop
from spikec.backends.c.parts import FEW, StateRow, overrun
from spikec.backends.c.plan import Halo, Stored, arranged, state_kinds
from spikec.backends.c.quiet import resting
from spikec.backends.c.writer import Writer
from spikec.ir.interpret import record_name
from spikec.ir.neuron import STEP, Expr
from spikec.ir.ops import Neuron, spread
from spikec.ir.ranges import of_array
from spikec.ir.types import Array, narrowest

#: Steps without events after which a population is looked at, and what is kept for one that rests.
_LOOK: Final = 16
_AT_REST: Final = 255


class Neurons(Writer):
    """Populations."""

    def operands(self, node: Neuron) -> dict[str, Operand]:
        """Inputs, parameters and states as the loop reads them."""
        result: dict[str, Operand] = {}
        shape = self.graph.shape_of(node.name)
        for number, (name, ref) in enumerate(zip(node.program.inputs, node.inputs, strict=True)):
            result[name] = self.value(self.plan.read(ref).stored, f"x{number}", "i")
        for name in node.program.params:
            array = node.params[name]
            if array.size == 1 and array.ndim <= 1:
                result[name] = Operand(value=array.item())
            elif not self.integer:
                result[name] = Operand(value=np.broadcast_to(spread(array, shape), shape))
            elif bool((array == array.flat[0]).all()) if array.size else True:
                result[name] = Operand(value=int(array.flat[0]) if array.size else 0)
            else:
                kind = narrowest(*of_array(array)) or "i64"
                kind = "u16" if kind == "i32" and array.min() >= 0 and array.max() < 1 << 16 else kind
                data = self.parameter(node, name, array, kind)
                result[name] = Operand(f"{data}[i]", kind, pointer=data)
        for row in self.states:
            if row.node is node:
                result[row.state] = Operand(f"s_{row.state}[i]", row.kind, pointer=f"s_{row.state}")
        result[STEP] = Operand("t", "i32")
        return result

    def parameter(self, node: Neuron, name: str, array: Array, kind: str) -> str:
        """A parameter as an array in the order of the population."""
        stored = self.plan.stored[node.name, ""]
        shape = self.graph.shape_of(node.name)
        full = np.broadcast_to(spread(array, shape), shape).reshape(-1)
        return self.constant(f"{node.name}_{name}", kind, self.laid(arranged(full, stored.layout)))

    def laid(self, array: Array) -> Array:
        """A parameter's numbers as they lie among the constants; what vectors read behind them is found when all are known."""
        return array

    def loop(self, node: Neuron) -> Loop:
        """The program as the body of a loop."""
        kinds = {row.state: row.kind for row in self.states if row.node is node}

        def store(state: str, text: str) -> str:
            return f"s_{state}[i] = ({C_TYPES[kinds[state]]}){text};"

        operands = self.operands(node)
        if self.plan.ranges is not None:
            return integer_loop(node.program, self.plan.ranges.neurons[node.name], operands, store, self.in_state(node))
        emitted = [self.plan.stored[node.name, port].kind for port, _ in self.graph.types[node.name]]
        return float_loop(node.program, operands, kinds, store, emitted)

    def in_state(self, node: Neuron) -> tuple[Expr, str] | None:
        """The sum that is added to a state by the weights already, and that state."""
        return self.merged[node.name][1:] if node.name in self.merged else None

    def choose_lanes(self, node: Neuron) -> None:
        """Note the loop in vectors, where every emission is a spike and everything fits lanes of 32 bits."""
        if self.plan.ranges is None or any(emit.kind != "spike" for emit in node.program.emits):
            return
        kinds = {row.state: row.kind for row in self.states if row.node is node}
        ranges = self.plan.ranges.neurons[node.name]
        found = vector_loop(node.program, ranges, self.operands(node), kinds, self.in_state(node))
        if found is not None:
            self.lanes[node.name] = found

    def check_neuron(self, node: Neuron) -> None:
        """Raise Unsupported if the program cannot be compiled."""
        kinds = state_kinds(self.plan, node)
        self.states = [StateRow(node, name, "", kind) for name, kind in kinds.items()]
        self.loop(node)

    def neuron(self, node: Neuron) -> None:
        """The function, its call, the list of events and the counter."""
        ports = [(port, self.plan.stored[node.name, port], type_.kind) for port, type_ in self.graph.types[node.name]]
        first = self.plan.stored[node.name, ""]
        loop, lanes = self.loop(node), self.lanes.get(node.name)
        if lanes is not None:
            for operand in self.operands(node).values():
                if operand.pointer in self.owners:
                    self.overruns(operand.pointer, overrun(first.size, lanes.bits))
        halo = self.plan.stored[self.merged[node.name][0], ""].halo if node.name in self.merged else None
        self.title(node)
        self.line("{")
        function = _Function(self.name(f"{self.p}{node.name}_update"), self.with_tables(node, loop))
        for number, (name, ref) in enumerate(zip(node.program.inputs, node.inputs, strict=True)):
            if name in loop.uses and (
                node.name not in self.merged or self.plan.read(ref).stored.wire[0] != self.merged[node.name][0]
            ):
                read = self.plan.read(ref)
                halo = halo or read.stored.halo
                self.line(self.pointer(f"x{number}", read))
                function.add(f"const {C_TYPES[read.stored.kind]} *SPK_RESTRICT x{number}", f"x{number}", read.stored.halo)
        for row in self.states:
            if row.node is node and row.state in loop.uses:
                function.add(f"{C_TYPES[row.kind]} *SPK_RESTRICT s_{row.state}", f"net->{row.member}", row.halo)
        lists = []
        for number, (emit, (_, stored, _)) in enumerate(zip(loop.emits, ports, strict=True)):
            if stored.dense_depth >= 0:
                function.add(f"{C_TYPES[stored.kind]} *SPK_RESTRICT y{number}", self.array(stored))
                function.lines.append(f"y{number}[i] = ({C_TYPES[stored.kind]}){emit};")
            if lanes is not None and stored.list_depth >= 0:
                lists.append((number, emit, stored.index, *self.events(stored)))
        if any(re.search(r"\bt\b", line) for line in (*function.lines, *(emit for _, emit, *_ in lists))):
            function.add("int32_t t", "net->t")
            self.uses_time = True
        beyond = all(stored.dense_depth < 0 or stored.ring == 1 for _, stored, _ in ports)
        flags = [number for number, (_, stored, _) in enumerate(ports) if stored.dense_depth >= 0]
        self.functions.append(function.text(first.size, halo, lanes, flags, [row[:3] for row in lists], beyond=beyond))
        rests = self.rests(node)
        if rests is not None:
            counts, _, member = rests
            self.line(f"const uint32_t heard = {' + '.join(counts)};")
            self.line(f"if (heard == 0 && net->{member}[0] == {_AT_REST}u) {{")
            for _, stored, _ in ports:
                if stored.dense_depth >= 0:
                    self.line(self.cleared(stored))
                if stored.list_depth >= 0:
                    self.line(f"{self.events(stored)[1]} = 0;")
            self.line("} else {")
        window = self.within((node.start, node.stop))
        if window:
            self.line(f"if ({window}) {{")
        for *_, count in lists:
            self.line(f"{count} = 0;")
        last = [argument for *_, events, count in lists for argument in (events, f"&{count}")]
        if halo is None:
            self.line(f"{function.call(last, ranged=lanes is not None)};")
        else:
            self.line(f"for (i = 0; i < {halo.rows}u; i++) {{ {function.call(last, halo)}; }}")
        if window:
            self.line("} else {")
            for _, stored, _ in ports:
                if stored.dense_depth >= 0:
                    self.line(self.cleared(stored))
            for *_, count in lists:
                self.line(f"{count} = 0;")
            self.line("}")
        for number, (port, stored, kind) in enumerate(ports):
            if number not in [row[0] for row in lists]:
                self.listing(stored)
            if kind == "spike":
                counter = self.count(f"{record_name((node.name, port))} spikes")
                if stored.list_depth >= 0:
                    self.line(f"net->count[{counter}] += {self.events(stored)[1]};")
                else:
                    self.fired(stored, counter)
        if rests is not None:
            _, values, member = rests
            # After so many steps without events, look whether all states have come to rest.
            self.line(f"uint32_t silent = heard != 0 ? 0 : net->{member}[0] + 1u;")
            self.line(f"if (silent == {_LOOK}u) {{")
            self.line("uint32_t moved = 0;")
            for row in self.states:
                if row.node is node:
                    value = literal(values[row.state], row.kind)
                    self.line(f"for (i = 0; i < {first.size}u; i++) {{ moved |= net->{row.member}[i] != {value}; }}")
            self.line(f"silent = moved ? 0 : {_AT_REST}u;")
            self.line("}")
            self.line(f"net->{member}[0] = silent;")
            self.line("}")
        self.line("}")

    def rests(self, node: Neuron) -> tuple[list[str], dict[str, int], str] | None:
        """The numbers of events that reach a population, its states at rest, and the member that counts steps without events."""
        if any(row.halo is not None for row in self.states if row.node is node):
            return None
        found = resting(self.plan, node, lambda read: self.events(read.stored, read.delay)[1])
        if found is None:
            return None
        member = self.member(f"q_{node.name}", "uint32_t", 1, 4)
        self.initial.append(f"net->{member}[0] = {_AT_REST}u;")
        return *found, member

    def fired(self, stored: Stored, counter: int) -> None:
        """Count the spikes of a step that are kept as bytes."""
        self.line(f"{{ const uint8_t *y = {self.array(stored)}; uint32_t fired = 0;")
        self.line(f"  for (i = 0; i < {stored.size}u; i++) {{ fired += y[i]; }}")
        self.line(f"  net->count[{counter}] += fired; }}")

    def with_tables(self, node: Neuron, loop: Loop) -> list[str]:
        """The loop's lines, parameter arrays that were computed while compiling put in."""
        lines = list(loop.lines)
        stored = self.plan.stored[node.name, ""]
        for name, table in loop.tables.items():
            kind = {4: "f32", 8: "f64"}[table.dtype.itemsize] if table.dtype.kind == "f" else "i64"
            full = np.broadcast_to(table, self.graph.shape_of(node.name)).reshape(-1)
            data = self.constant(f"{node.name}_{name}", kind, arranged(full, stored.layout))
            lines = [line.replace(f"@{name}@", f"{data}[i]") for line in lines]
        return lines


@dataclass
class _Function:
    """The function of a population: the loop's lines and what it is called with. A map with room around is a call for each
    row; its pointers are then such that the numbers of the elements still fit."""

    name: str
    lines: list[str]
    parameters: list[str] = field(default_factory=list)
    arguments: list[tuple[str, Halo | None]] = field(default_factory=list)

    def add(self, parameter: str, argument: str, halo: Halo | None = None) -> None:
        """One more parameter."""
        self.parameters.append(parameter)
        self.arguments.append((argument, halo))

    def names(self) -> list[str]:
        """The pointers among the parameters."""
        return [parameter.split()[-1].lstrip("*") for parameter in self.parameters if "*" in parameter]

    def call(self, last: list[str], row: Halo | None = None, *, ranged: bool = True) -> str:
        """The call for the whole population, or, in a loop over i, for a row of a map."""
        bounds = [] if not ranged else ["0"] if row is None else [f"(size_t)i * {row.width}u"]
        given = [
            text if halo is None else f"{text} + {halo.base}u + i * {halo.pitch - halo.width}u" for text, halo in self.arguments
        ]
        return f"{self.name}({', '.join([*bounds, *given, *last])})"

    def text(
        self,
        size: int,
        halo: Halo | None,
        lanes: Lanes | None,
        flags: list[int],
        lists: list[tuple[int, str, str]],
        *,
        beyond: bool,
    ) -> str:
        """The definition. `flags` are the ports whose values are stored; `lists` those whose events are listed here: number,
        what is emitted, and the type of an event. `beyond`: arrays have room behind the last neuron for a whole vector."""
        unused = ["  (void)t;"] if "int32_t t" in self.parameters else []
        body = [f"    {line}" for line in self.lines]
        if lanes is None and halo is None:
            head = f"static void {self.name}({', '.join(self.parameters)}) {{"
            return "\n".join([head, "  uint32_t i;", *unused, f"  for (i = 0; i < {size}u; i++) {{", *body, "  }", "}"])
        own = [f"{index} *SPK_RESTRICT e{k}, uint32_t *SPK_RESTRICT n{k}" for k, _, index in lists]
        parameters = ", ".join(["size_t i", *self.parameters, *own])
        begin = [f"SPK_INLINE_ANY void {self.name}({parameters}) {{", *unused, *(f"  uint32_t c{k} = *n{k};" for k, *_ in lists)]
        body += [f"    e{k}[c{k}] = ({index})i; c{k} += (uint32_t){emit};" for k, emit, index in lists]
        width = size if halo is None else halo.width
        end = [*(f"  *n{k} = c{k};" for k, *_ in lists), "}"]

        def one_by_one(count: int) -> list[str]:
            return [f"  for (k = 0; k < {count}u; k++, i++) {{", *body, "  }"] if count else []

        begin.insert(1, "  uint32_t k;")
        if lanes is not None and width >= 64:
            begin += ["#if SPK_VECTOR", *(f"  SPK_OPAQUE({name});" for name in self.names()), "#endif"]
        if lanes is None:
            return "\n".join([*begin, *one_by_one(width), *end])
        w = lanes.bits
        names = [parameter.split()[-1].lstrip("*") for parameter in self.parameters]
        masks = [f"m{k}" for k, *_ in lists]
        results = [f"spk_m{w} *{mask}" for mask in masks]
        inner = [
            "#if SPK_VECTOR",
            f"SPK_INLINE_ANY void {self.name}_lanes({', '.join(['size_t i', *self.parameters, *results])}) {{",
            "  (void)i;",
            *unused,
            *(f"  {line}" for line in lanes.lines),
            *(f"  spk_flags{w}(y{k} + i, {lanes.emits[k]});" for k in flags),
            *(f"  *m{k} = {lanes.emits[k]};" for k, *_ in lists),
            "}",
            "#endif",
        ]
        given = ", ".join([f"i + j * SPK_N{w}", *names, *(f"{m} + j" for m in masks)])
        whole = [
            *(["  spk_place at = spk_place_at((uint32_t)i);"] if lists else []),
            f"  for (k = 0; k < {width // 64}u; k++, i += 64u{', at = spk_place_next(at)' if lists else ''}) {{",
            *(f"    spk_m{w} {m}[64u / SPK_N{w}];" for m in masks),
            "    uint32_t j;",
            f"    SPK_UNROLL for (j = 0; j < 64u / SPK_N{w}; j++) {{ {self.name}_lanes({given}); }}",
            *(f"    c{k} = spk_list{w}_u{index[4:6]}(m{k}, (uint32_t)i, at, e{k}, c{k});" for k, _, index in lists),
            "  }",
        ]
        last = width % 64
        if last < FEW or halo is not None or not beyond:
            if width < 64:
                return "\n".join([*begin, *one_by_one(width), *end])
            loops = ["#if SPK_VECTOR", *whole, *one_by_one(last), "#else", *one_by_one(width), "#endif"]
            return "\n".join([*inner, *begin, *loops, *end])
        # What is computed beyond the last neuron is never read.
        part = [
            "  {",
            *(f"    spk_m{w} {m}[64u / SPK_N{w}];" for m in masks),
            "    uint32_t j;",
            f"    SPK_UNROLL for (j = 0; j < ({last}u + SPK_N{w} - 1u) / SPK_N{w}; j++) {{ {self.name}_lanes({given}); }}",
            f"    SPK_UNROLL for (j = ({last}u + SPK_N{w} - 1u) / SPK_N{w}; j < 64u / SPK_N{w}; j++) {{",
            *(f"      {m}[j] = spk_truth{w}(0);" for m in masks),
            "    }",
            *(f"    c{k} = spk_some_u{index[4:6]}(spk_bits{w}(m{k}), {last}u, (uint32_t)i, e{k}, c{k});" for k, _, index in lists),
            "  }",
        ]
        if width < 64:
            begin.remove("  uint32_t k;")
            loops = ["#if SPK_VECTOR", *part, "#else", "  {", "  uint32_t k;", *one_by_one(width), "  }", "#endif"]
        else:
            loops = ["#if SPK_VECTOR", *whole, *part, "#else", *one_by_one(width), "#endif"]
        return "\n".join([*inner, *begin, *loops, *end])
