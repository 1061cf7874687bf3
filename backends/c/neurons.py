"""Populations: one function with one loop for each, and the list of who fired."""

from __future__ import annotations

import re

import numpy as np

from spikec.backends.c.exprs import C_TYPES, Loop, Operand, float_loop, integer_loop
from spikec.backends.c.plan import arranged, state_kinds
from spikec.backends.c.writer import Writer
from spikec.ir.interpret import record_name
from spikec.ir.neuron import STEP
from spikec.ir.ops import Neuron, spread
from spikec.ir.ranges import of_array
from spikec.ir.types import Array, narrowest


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
                result[name] = Operand(f"{self.parameter(node, name, array, kind)}[i]", kind)
        for owner, state, _, kind in self.states:
            if owner is node:
                result[state] = Operand(f"s_{state}[i]", kind)
        result[STEP] = Operand("t", "i32")
        return result

    def parameter(self, node: Neuron, name: str, array: Array, kind: str) -> str:
        """A parameter as an array in the order of the population."""
        stored = self.plan.stored[node.name, ""]
        shape = self.graph.shape_of(node.name)
        full = np.broadcast_to(spread(array, shape), shape).reshape(-1)
        return self.constant(f"{node.name}_{name}", kind, arranged(full, stored.layout))

    def loop(self, node: Neuron) -> Loop:
        """The program as the body of a loop."""

        def store(state: str, text: str) -> str:
            kind = next(kind for owner, name, _, kind in self.states if owner is node and name == state)
            return f"s_{state}[i] = ({C_TYPES[kind]}){text};"

        operands = self.operands(node)
        if self.plan.ranges is not None:
            return integer_loop(node.program, self.plan.ranges.neurons[node.name], operands, store)
        kinds = {name: kind for owner, name, _, kind in self.states if owner is node}
        emitted = [self.plan.stored[node.name, port].kind for port, _ in self.graph.types[node.name]]
        return float_loop(node.program, operands, kinds, store, emitted)

    def check_neuron(self, node: Neuron) -> None:
        """Raise Unsupported if the program cannot be compiled."""
        kinds = state_kinds(self.plan, node)
        self.states = [(node, name, "", kind) for name, kind in kinds.items()]
        self.loop(node)

    def neuron(self, node: Neuron) -> None:
        """The function, its call, the list of events and the counter."""
        ports = self.graph.types[node.name]
        first = self.plan.stored[node.name, ""]
        loop = self.loop(node)
        lines = list(loop.lines)
        shape = self.graph.shape_of(node.name)
        for name, table in loop.tables.items():
            kind = {4: "f32", 8: "f64"}[table.dtype.itemsize] if table.dtype.kind == "f" else "i64"
            full = np.broadcast_to(table, shape).reshape(-1)
            data = self.constant(f"{node.name}_{name}", kind, arranged(full, first.layout))
            lines = [line.replace(f"@{name}@", f"{data}[i]") for line in lines]
        function = self.name(f"{self.p}{node.name}_update")
        parameters: list[str] = []
        arguments: list[str] = []
        before: list[str] = []
        for number, (name, ref) in enumerate(zip(node.program.inputs, node.inputs, strict=True)):
            if name in loop.uses:
                read = self.plan.read(ref)
                before.append(self.pointer(f"x{number}", read))
                parameters.append(f"const {C_TYPES[read.stored.kind]} *SPK_RESTRICT x{number}")
                arguments.append(f"x{number}")
        for owner, state, member, kind in self.states:
            if owner is node and state in loop.uses:
                parameters.append(f"{C_TYPES[kind]} *SPK_RESTRICT s_{state}")
                arguments.append(f"net->{member}")
        for number, (emit, (port, _)) in enumerate(zip(loop.emits, ports, strict=True)):
            stored = self.plan.stored[node.name, port]
            parameters.append(f"{C_TYPES[stored.kind]} *SPK_RESTRICT y{number}")
            arguments.append(self.array(stored))
            lines.append(f"y{number}[i] = ({C_TYPES[stored.kind]}){emit};")
        if any(re.search(r"\bt\b", line) for line in lines):
            parameters.append("int32_t t")
            arguments.append("net->t")
            self.uses_time = True
        body = "\n".join(f"    {line}" for line in lines)
        head = f"static void {function}({', '.join(parameters)}) {{"
        unused = "  (void)t;\n" if parameters[-1] == "int32_t t" else ""
        self.functions.append(f"{head}\n  uint32_t i;\n{unused}  for (i = 0; i < {first.size}u; i++) {{\n{body}\n  }}\n}}")
        self.title(node)
        self.line("{")
        for text in before:
            self.line(text)
        if node.start:
            self.line(f"if (net->t >= {node.start}) {{")
        self.line(f"{function}({', '.join(arguments)});")
        if node.start:
            self.line("} else {")
            for port, _ in ports:
                stored = self.plan.stored[node.name, port]
                self.line(self.cleared(stored))
            self.line("}")
        for port, type_ in ports:
            stored = self.plan.stored[node.name, port]
            self.listing(stored)
            if type_.kind == "spike":
                counter = self.count(f"{record_name((node.name, port))} spikes")
                if stored.list_depth >= 0:
                    self.line(f"net->count[{counter}] += {self.events(stored)[1]};")
                else:
                    self.line(f"{{ const uint8_t *y = {self.array(stored)}; uint32_t fired = 0;")
                    self.line(f"  for (i = 0; i < {stored.size}u; i++) {{ fired += y[i]; }}")
                    self.line(f"  net->count[{counter}] += fired; }}")
        self.line("}")
