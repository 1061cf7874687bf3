"""The pieces that every part of a generated network is written with: members, constants, events of a step, lines."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from spikec.backends.c.exprs import C_TYPES, Lanes, Operand, fits32, literal
from spikec.backends.c.forms import Choices, pays
from spikec.backends.c.parts import DTYPE, WIDTH, Member, StateRow, event_room, lanes, tail
from spikec.backends.c.plan import Plan, Read, Stored, arranged
from spikec.ir.graph import Graph
from spikec.ir.interpret import Wire
from spikec.ir.neuron import Expr
from spikec.ir.ops import Neuron, Node
from spikec.ir.types import Array
from spikec.ir.windows import Window

#: Types of arrays that no kind stands for.
_UNSIGNED: Final = {"uint16_t": np.uint16, "uint32_t": np.uint32}


def packed_rows(rows: Array, width: int, even: int, odd: int) -> tuple[Array, Array]:
    """(sources, stride) rows as spk_packed.h has them: bits for rows and for places that are no zeros, and what stands there."""
    there = rows[:, :width] != np.resize(np.array([even, odd], np.int8), width)
    used = there.any(axis=1)
    places = np.packbits(there[used], axis=1, bitorder="little").ravel()
    return np.concatenate([np.packbits(used, bitorder="little"), places]), rows[:, :width][there]


class Writer:
    """A network in the making. What is computed where is decided by the plan; the parts write into the lists here."""

    def __init__(self, graph: Graph, prefix: str, observed: set[Wire], choices: Choices | None = None) -> None:
        self.graph, self.p = graph, prefix
        self.choices = choices or Choices()
        self.plan = Plan(graph, observed, products=self.choices.products, vector=0 if self.choices.small else self.choices.vector)
        self.integer = self.plan.integer
        self.members: list[Member] = []
        self.names: set[str] = set()
        self.constants: dict[tuple[str, bytes], str] = {}
        self.arrays: list[tuple[str, str, Array]] = []  # name, C type, contents
        self.functions: list[str] = []
        self.compacts: dict[tuple[str, str, int], str] = {}
        self.rings: set[int] = set()
        self.slots: set[tuple[int, int]] = set()
        self.steps: list[str] = []
        self.scratch: dict[str, int] = {}
        self.counters: list[str] = []
        self.initial: list[str] = []
        self.states: list[StateRow] = []
        self.merged: dict[str, tuple[str, Expr, str]] = {}  # population -> its sum, the expression that it is, and the state
        self.lanes: dict[str, Lanes] = {}  # populations that are computed in vectors
        self.uses_time = False
        self.checks: list[str] = []
        self.owner = ""  # the layer that is being written
        self.owners: dict[str, str] = {}  # array -> layer
        self.blocks: list[int] = []  # where in `steps` each layer begins
        self.tails: dict[str, int] = {}  # array -> elements behind it that are read and not used
        self.unpacked: dict[tuple[int, bytes], str] = {}  # whole rows -> the member that spk_init writes them to
        self.unpacks: list[str] = []
        self.shared: dict[str, tuple[str, int]] = {}  # member of a step -> the shared area and the element where it begins

    @staticmethod
    def within(window: Window) -> str:
        """The question whether a step lies in a window; nothing where every step does."""
        first, last = window
        parts = [f"net->t >= {first}"] if first else []
        return " && ".join([*parts, *([] if last is None else [f"net->t < {last}"])])

    def name(self, wanted: str) -> str:
        """A name that nothing else has."""
        found, number = wanted, 2
        while found in self.names:
            found, number = f"{wanted}_{number}", number + 1
        self.names.add(found)
        return found

    def member(self, name: str, c_type: str, length: int, width: int) -> str:
        """A buffer in the network's memory."""
        found = self.name(name)
        self.members.append(Member(found, c_type, length, width, self.owner))
        return found

    def constant(self, name: str, kind: str, array: Array, c_type: str = "") -> str:
        """An array of numbers; equal ones are kept once."""
        data = np.ascontiguousarray(array.ravel())
        c_type = c_type or C_TYPES[kind]
        data = data.astype(_UNSIGNED.get(c_type, DTYPE[kind]))
        key = (c_type, data.tobytes())
        if key not in self.constants:
            found = self.name(self.p + name)
            self.constants[key] = found
            self.owners[found] = self.owner
            self.arrays.append((found, c_type, data))
        return self.constants[key]

    def overruns(self, name: str, count: int) -> str:
        """Note that so many elements behind an array are read, of whatever value."""
        self.tails[name] = max(self.tails.get(name, 0), count)
        return name

    def packed(self, name: str, rows: Array, width: int, even: int = 0, odd: int = 0) -> str:
        """Rows of bytes that lie packed among the constants (spk_packed.h), and are written out when a network is made: text of the
        array. rows: (sources, stride) as the kernel reads them; behind `width` they are zeros, which are `even` and `odd` there."""
        rows = np.ascontiguousarray(rows, np.int8)
        key = (width, rows.tobytes())
        if key not in self.unpacked:
            bits, values = packed_rows(rows, width, even, odd)
            if not self.unpacked:
                self.functions.insert(0, '#include "spk_packed.h"')
            member = self.member(f"w_{name}", "int8_t", rows.size, 1)
            self.members[-1].made = True
            where = [self.constant(f"{name}_places", "u8", bits), self.constant(name, "i8", values)]
            sizes = ", ".join(f"{size}u" for size in (len(rows), width, rows.shape[1]))
            self.unpacks.append(f"spk_unpack(state->{member}, {sizes}, {', '.join(where)}, {even}, {odd});")
            self.unpacked[key] = f"net->{member}"
        return self.unpacked[key]

    def rows(self, name: str, rows: Array, zero: int, unused: int) -> str:
        """Rows of bytes among which `zero` stands for no weight, packed where that is allowed and pays: text of the array. The last
        bytes of the last row may be any."""
        bits, values = packed_rows(rows, rows.shape[1], zero, zero)
        if self.choices.packed and not self.choices.small and pays(bits.size + values.size, rows.size):
            return self.packed(name, rows, rows.shape[1], zero, zero)
        return self.overruns(self.constant(name, "i8", rows.ravel()[: rows.size - unused]), unused)

    def room(self, size: int) -> int:
        """Elements behind accumulators: whole vectors of a population, and of packed rows."""
        return max(tail(size), lanes(size) - size if self.choices.packed else 0)

    def padded(self, array: Array) -> Array:
        """An array with room behind that vectors may read, in a network of integers."""
        flat = array.reshape(-1)
        return np.pad(flat, (0, tail(array.shape[-1]))) if self.integer else flat

    def indices(self, name: str, array: Array, most: int) -> tuple[str, str]:
        """An array of numbers below `most`, and its type."""
        c_type, kind = ("uint16_t", "i32") if most <= 1 << 16 else ("uint32_t", "i64")
        return self.constant(name, kind, array, c_type), c_type

    def count(self, what: str) -> int:
        """The number of a new counter."""
        self.counters.append(what)
        return len(self.counters) - 1

    def slot(self, stored: Stored, delay: int) -> str:
        """The place of a past step in a ring: text of a number of elements, "" where there is one step only."""
        if stored.ring == 1:
            return ""
        self.rings.add(stored.ring)
        self.slots.add((stored.ring, delay))
        return f"at_{stored.ring}_{delay}"

    def array(self, stored: Stored, delay: int = 0) -> str:
        """Pointer to the values of a step."""
        slot = self.slot(stored, delay)
        return f"net->{stored.member}" + (f" + {slot} * {stored.size}u" if slot else "")

    def cleared(self, stored: Stored) -> str:
        """The statement that sets the current step to zero."""
        if stored.ring == 1:  # all of it, room included: gcc takes a part of so many bytes as the array has elements for a slip
            return f"memset(net->{stored.member}, 0, sizeof net->{stored.member});"
        return f"memset({self.array(stored)}, 0, {stored.size}u * sizeof *net->{stored.member});"

    def events(self, stored: Stored, delay: int = 0) -> tuple[str, str]:
        """Pointer to the events of a step, and how many."""
        slot = self.slot(stored, delay)
        if not slot:
            return f"net->e_{stored.member}", f"net->n_{stored.member}[0]"
        return f"net->e_{stored.member} + {slot} * {event_room(stored)}u", f"net->n_{stored.member}[{slot}]"

    def compact(self, kind: str, index: str, size: int) -> str:
        """The function that lists what is not zero."""
        key = (kind, index, size)
        if key not in self.compacts:
            name = self.name(f"{self.p}list_{kind}_{size}")
            self.compacts[key] = name
            flags = int(WIDTH[kind] == 1 and index == "uint16_t")
            self.kernel("spk_events.h", SPK_NAME=name, SPK_X=C_TYPES[kind], SPK_INDEX=index, SPK_SIZE=f"{size}u", SPK_FLAGS=flags)
        return self.compacts[key]

    def kernel(self, header: str, **macros: Any) -> None:
        """An instance of a hand-written kernel."""
        lines = [f"#define {name} {value}".rstrip() for name, value in macros.items()]
        self.functions.append("\n".join([*lines, f'#include "{header}"']))

    def line(self, text: str) -> None:
        """A line of the step function."""
        self.steps.append("  " + text)

    def title(self, node: Node) -> None:
        """A comment that says what follows; everything until the next one belongs to this layer."""
        self.owner = node.name
        self.blocks.append(len(self.steps))
        operands = ", ".join(str(ref) for ref in node.inputs)
        program = f" @{node.program.name}" if isinstance(node, Neuron) else ""
        place = f"  {node.loc}" if node.loc else ""
        text = f"%{node.name} = {node.op}{program}({operands}){place}".replace("*/", "* /").replace("\\", "/")
        self.steps += ["", f"  /* {text} */"]

    def value(self, stored: Stored, pointer: str, index: str) -> Operand:
        """An element as an operand of a loop."""
        text = f"{pointer}[{index}]"
        if stored.shift == 0:
            return Operand(text, stored.kind, pointer=pointer)
        kind = "i32" if fits32(stored.interval) and stored.kind != "i64" else "i64"
        text = f"({C_TYPES[kind]}){text} * {literal(1 << stored.shift, kind)}"
        return Operand(text, kind, pointer=pointer, shift=stored.shift, stored=stored.kind)

    def pointer(self, name: str, read: Read) -> str:
        """A local pointer to an operand's values, its first values included."""
        stored = read.stored
        c_type = C_TYPES[stored.kind]
        text = self.array(stored, read.delay)
        if read.init is not None:
            data = self.constant(f"{stored.member}_first", stored.kind, self.padded(arranged(read.init, stored.layout)))
            text = f"net->t < {read.delay} ? {data} + (size_t)net->t * {stored.size}u : {text}"
        return f"const {c_type} *{name} = {text};"

    def listing(self, stored: Stored) -> None:
        """The events of a buffer that was just written."""
        if stored.list_depth < 0 or stored.listed:
            return
        events, count = self.events(stored)
        self.line(f"{count} = {self.compact(stored.kind, stored.index, stored.size)}({self.array(stored)}, {events});")
