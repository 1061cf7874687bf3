"""The network as C: data, one loop for each population, and the step function. Text only; nothing is written here.

Everything at file scope begins with the prefix ("spk_" in a folder of its own), so that several networks fit into one
translation unit. Names, order and numbers depend on the graph alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, Final

import numpy as np

from spikec.backends.c.exprs import C_TYPES, Loop, Operand, Unsupported, fits32, float_loop, integer_loop, literal
from spikec.backends.c.plan import (
    Layout,
    Plan,
    Read,
    Stored,
    Sum,
    Weighted,
    arranged,
    common_shift,
    order_of,
    place_of,
    state_kinds,
    weighted_interval,
)
from spikec.diagnostics import Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import Wire, record_name
from spikec.ir.neuron import STEP
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Node, Pool, Ref, Reshape, Scale, Sparse, spread
from spikec.ir.ranges import Interval, hull, input_range, of_array
from spikec.ir.text import duration_text
from spikec.ir.types import Array, int_range, is_float, narrowest

_API: Final = {"i8": "SPK_I8", "i16": "SPK_I16", "i32": "SPK_I32", "i64": "SPK_I64", "f32": "SPK_F32", "f64": "SPK_F64"}
_KIND: Final = {"spike": "SPK_SPIKE", "graded": "SPK_GRADED", "value": "SPK_VALUE"}
_WIDTH: Final = {"u8": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "f32": 4, "f64": 8}
_DTYPE: Final = {
    "u8": np.uint8,
    "i8": np.int8,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "f32": np.float32,
    "f64": np.float64,
}
#: Weights of a convolution of at most so many are kept in 16 bits, which saves widening them at every event.
_WIDEN: Final = 1 << 14
#: Arrays of at least so many elements go to a binary file if the numbers of a network would fill more text than that.
_LARGE: Final = 1024
_MUCH_TEXT: Final = 1 << 20


def kernel_files() -> dict[str, str]:
    """The hand-written headers by name, in a fixed order."""
    folder = files("spikec.backends.c") / "kernels"
    return {
        item.name: item.read_text(encoding="utf-8")
        for item in sorted(folder.iterdir(), key=lambda f: f.name)
        if item.name.endswith(".h")
    }


def _event_room(stored: Stored) -> int:
    """Elements of one step's event list; the fast listing writes up to 32 beyond the last event."""
    return stored.size + 32 if stored.index == "uint16_t" else stored.size


def _rest(size: int) -> int:
    """Elements that fill a row of accumulators up to whole vectors of sixteen."""
    return -size % 16


@dataclass(frozen=True)
class Port:
    """One row of the network's tables: what the interface calls it, and where and how it lies."""

    name: str
    wire: Wire  # a wire, or node and state
    size: int
    kind: str
    api: str
    lag: int


@dataclass
class Network:
    """A generated network: its text, its large arrays, and its tables for whoever calls it."""

    prefix: str
    header: str
    source: str
    binary: bytes | None
    binary_source: str | None
    inputs: list[Port]
    ports: list[Port]
    outputs: int
    states: list[Port]
    counters: list[str]
    bytes: int
    constants: int = 0
    notes: list[str] = field(default_factory=list)


def unsupported(graph: Graph) -> list[Diagnostic]:
    """What this backend cannot compile, all at once."""
    found = []
    generator: _Generator | None = None
    for node in graph.nodes:
        if graph.level == "float":
            for _, type_ in graph.types[node.name]:
                if not is_float(type_.dtype):
                    found.append(_refuse(node, f"an integer ({type_.dtype}) in a graph of floats"))
        if isinstance(node, Neuron) and graph.level == "float":
            try:
                generator = generator or _Generator(graph, "x_", set())
                generator.check_neuron(node)
            except Unsupported as error:
                found.append(_refuse(node, f"@{node.program.name}: {error}"))
    return found


def _refuse(node: Node, what: str) -> Diagnostic:
    return Diagnostic(
        "SPK502",
        f"%{node.name}: the C backend does not compile {what}",
        loc=node.loc,
        fix="run it on the reference or NumPy backend",
    )


def generate(graph: Graph, *, prefix: str = "spk_", observe: Sequence[str] = (), embed: bool = True) -> Network:
    """The C of a graph. Readable afterwards: outputs, every port of every population, and the wires in `observe`.

    `embed=False` writes every number as text, however many.
    """
    wires: dict[str, Wire] = {}
    for node in graph.neurons:
        for port, _ in graph.types[node.name]:
            wires[record_name((node.name, port))] = (node.name, port)
    for name in observe:
        node_name, _, port = name.partition(".")
        wires[name] = (node_name, port)
    observed = {*wires.values(), *((ref.node, ref.port) for _, ref in graph.outputs)}
    return _Generator(graph, prefix, observed).network(wires, embed)


@dataclass
class _Member:
    name: str
    c_type: str
    length: int
    width: int


class _Generator:
    def __init__(self, graph: Graph, prefix: str, observed: set[Wire]) -> None:
        self.graph, self.p = graph, prefix
        self.plan = Plan(graph, observed)
        self.integer = self.plan.integer
        self.members: list[_Member] = []
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
        self.states: list[tuple[Neuron, str, str, str]] = []  # node, state, member, kind
        self.uses_time = False

    # --------------------------------------------------------------------------------------------------- small parts

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
        self.members.append(_Member(found, c_type, length, width))
        return found

    def constant(self, name: str, kind: str, array: Array, c_type: str = "") -> str:
        """An array of numbers; equal ones are kept once."""
        data = np.ascontiguousarray(array.ravel())
        c_type = c_type or C_TYPES[kind]
        key = (c_type, data.astype(_DTYPE[kind]).tobytes())
        if key not in self.constants:
            found = self.name(self.p + name)
            self.constants[key] = found
            self.arrays.append((found, c_type, data.astype(_DTYPE[kind])))
        return self.constants[key]

    def indices(self, name: str, array: Array, most: int) -> tuple[str, str]:
        """An array of numbers below `most`, and its type."""
        c_type, kind = ("uint16_t", "i32") if most <= 1 << 16 else ("uint32_t", "i64")
        return self.constant(name, kind, array, c_type), c_type

    def count(self, what: str) -> int:
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
        return f"net->e_{stored.member} + {slot} * {_event_room(stored)}u", f"net->n_{stored.member}[{slot}]"

    def compact(self, kind: str, index: str, size: int) -> str:
        """The function that lists what is not zero."""
        key = (kind, index, size)
        if key not in self.compacts:
            name = self.name(f"{self.p}list_{kind}_{size}")
            self.compacts[key] = name
            flags = int(_WIDTH[kind] == 1 and index == "uint16_t")
            self.kernel("spk_events.h", SPK_NAME=name, SPK_X=C_TYPES[kind], SPK_INDEX=index, SPK_SIZE=f"{size}u", SPK_FLAGS=flags)
        return self.compacts[key]

    def kernel(self, header: str, **macros: Any) -> None:
        """An instance of a hand-written kernel."""
        lines = [f"#define {name} {value}".rstrip() for name, value in macros.items()]
        self.functions.append("\n".join([*lines, f'#include "{header}"']))

    def line(self, text: str) -> None:
        self.steps.append("  " + text)

    def title(self, node: Node) -> None:
        operands = ", ".join(str(ref) for ref in node.inputs)
        program = f" @{node.program.name}" if isinstance(node, Neuron) else ""
        place = f"  {node.loc}" if node.loc else ""
        text = f"%{node.name} = {node.op}{program}({operands}){place}".replace("*/", "* /").replace("\\", "/")
        self.steps += ["", f"  /* {text} */"]

    def value(self, stored: Stored, pointer: str, index: str) -> Operand:
        """An element as an operand of a loop."""
        text = f"{pointer}[{index}]"
        if stored.shift == 0:
            return Operand(text, stored.kind)
        kind = "i32" if fits32(stored.interval) and stored.kind != "i64" else "i64"
        return Operand(f"({C_TYPES[kind]}){text} * {literal(1 << stored.shift, kind)}", kind)

    # ------------------------------------------------------------------------------------------------------- storage

    def storage(self) -> None:
        """Members for every buffer that somebody reads. Sums come first: they may change how a buffer is kept."""
        for node in self.graph.nodes:
            if node.name in self.plan.sums:
                self.prepare(self.plan.sums[node.name])
        for wire, stored in self.plan.stored.items():
            node = self.graph[wire[0]]
            if wire[0] in self.plan.folded:
                continue
            if stored.ring > 1:
                self.rings.add(stored.ring)
            stored.member = self.name("x_" + record_name(wire).replace(".", "_"))
            if stored.dense_depth >= 0 or not isinstance(node, Input):
                stored.dense_depth = max(stored.dense_depth, 0)
                room = stored.size * stored.ring + _rest(stored.size)
                self.members.append(_Member(stored.member, C_TYPES[stored.kind], room, _WIDTH[stored.kind]))
            if stored.list_depth >= 0:
                width = 2 if stored.index == "uint16_t" else 4
                self.members.append(_Member(f"e_{stored.member}", stored.index, _event_room(stored) * stored.ring, width))
                self.members.append(_Member(f"n_{stored.member}", "uint32_t", stored.ring, 4))
        for node in self.graph.neurons:
            kinds = state_kinds(self.plan, node)
            size = self.plan.stored[node.name, ""].size
            for state in node.program.states:
                name = self.member(f"s_{node.name}_{state.name}", C_TYPES[kinds[state.name]], size, _WIDTH[kinds[state.name]])
                self.states.append((node, state.name, name, kinds[state.name]))
                self.initialise(node, state.name, state.init, name, kinds[state.name])

    def initialise(self, node: Neuron, state: str, value: int | float, name: str, kind: str) -> None:
        """The line that resets a state."""
        stored = self.plan.stored[node.name, ""]
        shape = self.graph.shape_of(node.name)
        if state in node.init:
            full = np.broadcast_to(spread(node.init[state], shape), shape).reshape(-1)
        else:
            full = np.full(stored.size, value, _DTYPE[kind])
        full = full.astype(_DTYPE[kind])
        if not full.size or not full.any():
            return
        if bool((full == full[0]).all()):
            self.initial.append(f"for (i = 0; i < {stored.size}u; i++) {{ net->{name}[i] = {literal(full[0], kind)}; }}")
        else:
            data = self.constant(f"{node.name}_{state}_init", kind, arranged(full, stored.layout))
            self.initial.append(f"memcpy(net->{name}, {data}, sizeof net->{name});")

    # ---------------------------------------------------------------------------------------------------------- sums

    def prepare(self, total: Sum) -> None:
        """Choose the accumulators of a sum: their type, the power of two that is taken out, and where they lie."""
        stored = self.plan.stored[total.node.name, ""]
        state = self.sum_state[total.node.name] = _SumState()
        bias: Any = None
        for part in total.parts:
            if part.bias is not None:
                wide = part.bias.astype(np.int64) if self.integer else part.bias
                like = self.graph.shape_of(part.name)
                full = wide.reshape(-1, *(1,) * (len(like) - 1)) if isinstance(part, Conv) else wide
                flat = np.broadcast_to(full, like).reshape(-1)
                bias = flat if bias is None else bias + flat
        state.bias = None if bias is None else arranged(np.asarray(bias), stored.layout)
        state.delayed = any(part.delay is not None and part.delay.size for part in total.parts)
        if self.integer:
            shift = min(common_shift([part.weight for part in total.parts]), 16)
            if all(_weight_kind(part.weight >> shift) == _weight_kind(part.weight) for part in total.parts):
                shift = 0
            state.shift = shift
            span: Interval = (0, 0)
            for part in total.parts:
                one = weighted_interval(part, self.plan.read(part.inputs[0]).stored.interval)
                span = (span[0] + one[0], span[1] + one[1])
            state.span = span
            low, high = span[0] >> shift, -(-span[1] >> shift)
            state.early = state.bias is not None and not state.delayed and not (state.bias & ((1 << shift) - 1)).any()
            if state.early:
                first, last = of_array(state.bias >> shift)
                low, high = low + min(first, 0), high + max(last, 0)
            state.kind = narrowest(low, high) or "i64"
            state.kind = "i16" if state.kind == "i8" else state.kind
        else:
            x_kinds = [self.plan.read(part.inputs[0]).stored for part in total.parts]
            parts = [
                np.result_type(_DTYPE["f32" if x.kind == "u8" else x.kind], part.weight.dtype)
                for x, part in zip(x_kinds, total.parts, strict=True)
            ]
            state.kind = {4: "f32", 8: "f64"}[np.result_type(*parts).itemsize]
            state.early = state.bias is not None and not state.delayed and state.bias.dtype == _DTYPE[state.kind]
        late = state.bias is not None and not state.early
        state.direct = not (late or state.delayed or total.rest or (state.shift and stored.plain))
        state.direct = state.direct and (self.integer or state.kind == stored.kind)
        if state.direct:
            if self.integer and state.shift == 0:  # first values of a reference may be larger than any sum
                state.kind = narrowest(*hull((low, high), stored.interval)) or "i64"
                state.kind = "i16" if state.kind == "i8" else state.kind
            stored.kind, stored.shift = state.kind, state.shift
            return
        length = stored.size
        if state.delayed:
            state.depth = max(int(part.delay.max()) for part in total.parts if part.delay is not None) + 1
            length *= state.depth
            if state.depth > 1:
                self.rings.add(state.depth)
        room = length + _rest(stored.size)
        state.member = self.member(f"a_{total.node.name}", C_TYPES[state.kind], room, _WIDTH[state.kind])

    def sum(self, total: Sum) -> None:
        """Start from the bias, add the rows of the events, and finish where the accumulators are not yet the result."""
        stored = self.plan.stored[total.node.name, ""]
        state = self.sum_state[total.node.name]
        ring = state.delayed and state.depth > 1
        self.title(total.node)
        self.line("{")
        here = (
            self.array(stored)
            if state.direct
            else f"net->{state.member}" + (f" + net->pos_{state.depth} * {stored.size}u" if ring else "")
        )
        self.line(f"{C_TYPES[state.kind]} *acc = {here};")
        if state.early:
            start = state.bias >> state.shift if self.integer else state.bias
            data = self.constant(f"{total.node.name}_bias", state.kind, start)
            self.line(f"memcpy(acc, {data}, {stored.size}u * sizeof *acc);")
        elif not state.delayed:
            self.line(f"memset(acc, 0, {stored.size}u * sizeof *acc);")
        if state.delayed:
            self.line(f"uint32_t slot[{state.depth}];")
            if ring:
                place = f"(net->pos_{state.depth} + i) % {state.depth}u * {stored.size}u"
                self.line(f"for (i = 0; i < {state.depth}u; i++) {{ slot[i] = {place}; }}")
            else:
                self.line("slot[0] = 0;")
        for part in total.parts:
            self.weighted(part, state, stored)
        if not state.direct:
            self.finish(total, state, stored)
            if state.delayed:
                self.line(f"memset(acc, 0, {stored.size}u * sizeof *acc);")
        self.line("}")
        self.listing(stored)

    def finish(self, total: Sum, state: _SumState, stored: Stored) -> None:
        """result = accumulator * 2^shift + bias + the other operands, in this order."""
        terms: list[tuple[Read | None, str, Interval]] = []
        pointer_lines: list[str] = []
        acc = Operand("acc[i]", state.kind)
        if self.integer:
            terms.append((None, acc.text, state.span))
            if state.bias is not None and not state.early:
                kind = narrowest(*of_array(state.bias)) or "i64"
                data = self.constant(f"{total.node.name}_bias", kind, state.bias)
                terms.append((None, f"{data}[i]", of_array(state.bias)))
        texts: list[str] = []
        for number, ref in enumerate(total.rest):
            pointer_lines.append(self.pointer(f"b{number}", self.plan.read(ref)))
        for text in pointer_lines:
            self.line(text)
        self.line(f"{C_TYPES[stored.kind]} *y = {self.array(stored)};")
        if self.integer:
            bias = of_array(state.bias) if state.bias is not None else (0, 0)
            whole = (state.span[0] + min(bias[0], 0), state.span[1] + max(bias[1], 0))
            prefix = whole
            for ref in total.rest:
                interval = self.plan.read(ref).stored.interval
                prefix = (prefix[0] + interval[0], prefix[1] + interval[1])
                whole = hull(whole, prefix)
            kind = "i32" if fits32(whole) else "i64"
            scale = f" * {literal(1 << state.shift, kind)}" if state.shift else ""
            texts = [f"({C_TYPES[kind]})acc[i]{scale}"]
            texts += [f"({C_TYPES[kind]}){text}" for _, text, _ in terms[1:]]
            for number, ref in enumerate(total.rest):
                operand = self.value(self.plan.read(ref).stored, f"b{number}", "i")
                texts.append(f"({C_TYPES[kind]})({operand.text})")
        else:
            kind = stored.kind
            texts = [f"({C_TYPES[kind]})acc[i]"]
            if state.bias is not None and not state.early:
                bias_kind = {4: "f32", 8: "f64"}[state.bias.dtype.itemsize]
                data = self.constant(f"{total.node.name}_bias", bias_kind, state.bias)
                texts.append(f"({C_TYPES[kind]}){data}[i]")
            texts += [f"({C_TYPES[kind]})b{number}[i]" for number in range(len(total.rest))]
        self.line(f"for (i = 0; i < {stored.size}u; i++) {{ y[i] = ({C_TYPES[stored.kind]})({' + '.join(texts)}); }}")

    def weighted(self, part: Weighted, state: _SumState, stored: Stored) -> None:
        """One call of a kernel: the events of the operand add their rows."""
        read, pool = self.plan.weighted_read(part.inputs[0])
        source = read
        if pool is not None:
            window = self.plan.stored[pool.name, ""]
            read = Read(replace(window, kind="u8", binary=True, layout=None), 0)
        x = read.stored
        delayed = state.delayed
        name = self.name(f"{self.p}{part.name}_add")
        weight = part.weight >> state.shift if self.integer else part.weight
        w_kind = _weight_kind(weight) if self.integer else state.kind
        macros: dict[str, Any] = {
            "SPK_NAME": name,
            "SPK_ACC": C_TYPES[state.kind],
            "SPK_WEIGHT": C_TYPES[w_kind],
            "SPK_INDEX": x.index,
        }
        if not x.binary:
            macros["SPK_X"] = C_TYPES[x.kind]
            if self.integer:
                both = hull(state.span, (state.span[0] >> state.shift, -(-state.span[1] >> state.shift)))
                both = hull(both, hull(of_array(weight), x.interval))
                macros["SPK_PRODUCT"] = "int32_t" if fits32(both) else "int64_t"
            else:
                macros["SPK_PRODUCT"] = C_TYPES[state.kind]
        delay: Any = None
        if delayed:
            delay = part.delay if part.delay is not None else np.zeros(part.weight.shape, np.int64)
            macros["SPK_DELAY"] = "uint8_t" if state.depth <= 256 else "uint16_t" if state.depth <= 1 << 16 else "uint32_t"
        order = order_of(x.layout, x.size)
        arguments: list[str] = []
        result = ""
        if isinstance(part, Dense):
            out, fan_in = part.weight.shape
            one = x.size == fan_in
            rows = weight.T[order] if one else weight.T
            fast = one and w_kind == "i8" and macros["SPK_ACC"] == "int16_t" and macros["SPK_INDEX"] == "uint16_t"
            macros |= {"SPK_IN": f"{fan_in}u", "SPK_OUT": f"{out}u", "SPK_ONE": int(one), "SPK_FAST": int(fast)}
            if fast and not delayed:
                # Whole vectors: the weights behind the last output are zero, and the accumulators have room.
                rows = np.pad(rows, ((0, 0), (0, _rest(out))))
                macros["SPK_STRIDE"] = f"{rows.shape[1]}u"
            arguments = [self.constant(f"{part.name}_weight", w_kind, rows)]
            if delayed:
                arguments.append(self.delays(part.name, delay.T[order] if one else delay.T, macros["SPK_DELAY"]))
            header, operations = "spk_dense.h", f"* {out}u"
        elif isinstance(part, Sparse):
            place = place_of(x.layout, x.size)[part.indices]
            by_source = np.argsort(place, kind="stable")
            start = np.searchsorted(place[by_source], np.arange(part.fan_in + 1))
            target, macros["SPK_TARGET"] = self.indices(f"{part.name}_target", part.rows[by_source], max(stored.size, 1))
            start_name = self.constant(f"{part.name}_start", "i64", start, "uint32_t")
            if delayed:
                arguments.append(self.delays(part.name, delay[by_source], macros["SPK_DELAY"]))
            arguments += [start_name, target, self.constant(f"{part.name}_weight", w_kind, weight[by_source])]
            header, operations, result = "spk_sparse.h", "", "used"
        else:
            header, operations, result = "spk_conv.h", "", "used"
            macros |= self.conv_sizes(part, read, stored)
            if delayed:
                arguments.append(self.delays(part.name, _tap_rows(delay, part.groups), macros["SPK_DELAY"]))
            rows = _tap_rows(weight, part.groups)
            plain = self.integer and not delayed and part.groups == 1 and set(part.dilation) == {1} and stored.layout is not None
            if plain and (x.binary or not x.kind.startswith("f")):
                header = "spk_convrow.h"
                rows = _phase_rows(weight, part.stride)
                if w_kind == "i8" and weight.size <= _WIDEN:
                    w_kind, macros["SPK_WEIGHT"] = "i16", "int16_t"
            arguments.append(self.constant(f"{part.name}_weight", w_kind, rows))
        self.kernel(header, **macros)
        # The operand's events and, unless all are 1, its values.
        self.line("{")
        events, count = self.events(source.stored, source.delay)
        if pool is None:
            self.line(f"const {x.index} *event = {events};")
            self.line(f"uint32_t count = {count};")
        else:
            self.renumbered(pool, source.stored, x, events, count)
        if not x.binary or read.init is not None:
            self.line(self.pointer("x", read))
        if read.init is not None:
            self.scratch[x.index] = max(self.scratch.get(x.index, 0), _event_room(x))
            scratch = f"net->scratch{16 if x.index == 'uint16_t' else 32}"
            count = f"{self.compact(x.kind, x.index, x.size)}(x, {scratch})"
            self.line(f"if (net->t < {read.delay}) {{ count = {count}; event = {scratch}; }}")
        head = ["slot"] if delayed else []
        target_name = f"net->{state.member}" if delayed else "acc"
        tail = ["event", "count"] + ([] if x.binary else ["x"])
        call = f"{name}({', '.join([target_name, *head, *arguments, *tail])});"
        events_counter = self.count(f"{part.name} events")
        operations_counter = self.count(f"{part.name} operations")
        self.line(f"net->count[{events_counter}] += count;")
        if result:
            self.line(f"net->count[{operations_counter}] += {call}")
        else:
            self.line(f"net->count[{operations_counter}] += (uint64_t)count {operations};")
            self.line(call)
        self.line("}")

    def renumbered(self, pool: Pool, source: Stored, window: Stored, events: str, count: str) -> None:
        """Spikes as events of the window that each lies in; a window may occur several times."""
        shape = self.graph.type_of(pool.inputs[0]).shape
        where = np.indices(shape)
        out = self.graph.shape_of(pool.name)
        inside = tuple(axis // k for axis, k in zip(where[1:], pool.kernel, strict=True))
        numbers = np.ravel_multi_index((where[0], *inside), out).ravel()[order_of(source.layout, source.size)]
        table, c_type = self.indices(f"{pool.name}_window", numbers, max(window.size, 1))
        self.scratch[window.index] = max(self.scratch.get(window.index, 0), source.size + 32)
        self.line(f"const {source.index} *from = {events};")
        self.line(f"const uint32_t count = {count};")
        self.line(f"{window.index} *event = net->scratch{16 if window.index == 'uint16_t' else 32};")
        cast = "" if c_type == window.index else f"({window.index})"
        self.line(f"for (i = 0; i < count; i++) {{ event[i] = {cast}{table}[from[i]]; }}")

    def delays(self, name: str, array: Array, c_type: str) -> str:
        kind = {"uint8_t": "u8", "uint16_t": "i32", "uint32_t": "i64"}[c_type]
        return self.constant(f"{name}_delay", kind, array, c_type)

    def conv_sizes(self, part: Conv, read: Read, stored: Stored) -> dict[str, Any]:
        into = self.graph.type_of(part.inputs[0]).shape
        out = self.graph.shape_of(part.name)
        two = [
            (1, *axis) if len(axis) == 1 else tuple(axis)
            for axis in (into[1:], out[1:], part.weight.shape[2:], part.stride, part.dilation)
        ]
        space, out_space, kernel, stride, dilation = two
        padding = (0, *part.padding) if len(part.padding) == 1 else part.padding
        return {
            "SPK_CIN": f"{into[0]}u", "SPK_HI": f"{space[0]}u", "SPK_WI": f"{space[1]}u",
            "SPK_COUT": f"{out[0]}u", "SPK_HO": out_space[0], "SPK_WO": out_space[1],
            "SPK_KH": kernel[0], "SPK_KW": kernel[1], "SPK_SH": stride[0], "SPK_SW": stride[1],
            "SPK_PH": padding[0], "SPK_PW": padding[1], "SPK_DH": dilation[0], "SPK_DW": dilation[1],
            "SPK_GROUPS": f"{part.groups}u",
            "SPK_IN_LAST": int(read.stored.layout is not None), "SPK_OUT_LAST": int(stored.layout is not None),
        }  # fmt: skip

    # --------------------------------------------------------------------------------------------------------- reads

    def pointer(self, name: str, read: Read) -> str:
        """A local pointer to an operand's values, its first values included."""
        stored = read.stored
        c_type = C_TYPES[stored.kind]
        text = self.array(stored, read.delay)
        if read.init is not None:
            data = self.constant(f"{stored.member}_first", stored.kind, arranged(read.init, stored.layout))
            text = f"net->t < {read.delay} ? {data} + (size_t)net->t * {stored.size}u : {text}"
        return f"const {c_type} *{name} = {text};"

    def listing(self, stored: Stored) -> None:
        """The events of a buffer that was just written."""
        if stored.list_depth < 0:
            return
        events, count = self.events(stored)
        self.line(f"{count} = {self.compact(stored.kind, stored.index, stored.size)}({self.array(stored)}, {events});")

    # ------------------------------------------------------------------------------------------------------ the rest

    def input(self, node: Input, number: int) -> None:
        stored = self.plan.stored[node.name, ""]
        name = self.name(f"{self.p}{node.name}_in")
        low, high = input_range(node) if self.integer else (0, 0)
        macros: dict[str, Any] = {
            "SPK_NAME": name,
            "SPK_API": C_TYPES[stored.api],
            "SPK_X": C_TYPES[stored.kind],
            "SPK_INDEX": stored.index,
            "SPK_SIZE": f"{stored.size}u",
            "SPK_BINARY": int(node.type.kind == "spike"),
            "SPK_LIST": int(stored.list_depth >= 0),
            "SPK_DENSE": int(stored.dense_depth >= 0),
        }
        if self.integer and node.type.kind != "spike" and (low, high) != int_range(stored.api):
            macros["SPK_LOW"], macros["SPK_HIGH"] = literal(low, "i64"), literal(high, "i64")
        self.kernel("spk_input.h", **macros)
        self.checks.append(f"  if ((status = {name}_check(in + {number})) != SPK_OK) {{ return status; }}")
        events, count = self.events(stored) if stored.list_depth >= 0 else ("NULL", "")
        array = self.array(stored) if stored.dense_depth >= 0 else "NULL"
        self.title(node)
        call = f"{name}_load(in + {number}, {array}, {events});"
        self.line(f"{count} = {call}" if count else f"(void){call}")

    def constant_node(self, node: Constant) -> None:
        stored = self.plan.stored[node.name, ""]
        data = self.constant(f"{node.name}_value", stored.kind, arranged(node.value.reshape(-1), stored.layout))
        self.title(node)
        if node.start:
            self.line(f"if (net->t < {node.start}) {{")
            self.line(f"  {self.cleared(stored)}")
            self.line("} else {")
        self.line(f"memcpy({self.array(stored)}, {data}, {stored.size}u * sizeof *net->{stored.member});")
        if node.start:
            self.line("}")
        self.listing(stored)

    def elementwise(self, node: Node, texts: Callable[[list[Operand]], str], tables: Sequence[tuple[Array, str]] = ()) -> None:
        """y[i] = text of the operands' elements."""
        stored = self.plan.stored[node.name, ""]
        self.title(node)
        self.line("{")
        operands = []
        for number, ref in enumerate(node.inputs):
            read = self.plan.read(ref)
            self.line(self.pointer(f"x{number}", read))
            operands.append(self.value(read.stored, f"x{number}", "i"))
        self.line(f"{C_TYPES[stored.kind]} *y = {self.array(stored)};")
        self.line(f"for (i = 0; i < {stored.size}u; i++) {{ y[i] = ({C_TYPES[stored.kind]})({texts(operands)}); }}")
        self.line("}")
        self.listing(stored)

    def add(self, node: Add) -> None:
        stored = self.plan.stored[node.name, ""]
        kind = stored.kind
        if self.integer:
            prefix: Interval = (0, 0)
            whole = prefix
            for ref in node.inputs:
                one = self.plan.read(ref).stored.interval
                prefix = (prefix[0] + one[0], prefix[1] + one[1])
                whole = hull(hull(whole, prefix), one)
            kind = "i32" if fits32(whole) else "i64"
        self.elementwise(node, lambda xs: " + ".join(f"({C_TYPES[kind]})({x.text})" for x in xs))

    def scale(self, node: Scale) -> None:
        stored = self.plan.stored[node.name, ""]
        x = self.plan.read(node.inputs[0]).stored
        kind = stored.kind
        if self.integer:
            factor = of_array(node.factor)
            offset = of_array(node.offset) if node.offset is not None else (0, 0)
            corners = [a * b for a in hull(x.interval, (0, 0)) for b in factor]
            whole = hull(
                hull((min(corners) + min(offset[0], 0), max(corners) + max(offset[1], 0)), factor), hull(offset, x.interval)
            )
            kind = "i32" if fits32(whole) else "i64"

        def text(xs: list[Operand]) -> str:
            parts = [f"({C_TYPES[kind]})({xs[0].text}) * ({C_TYPES[kind]}){self.table(node, 'factor', node.factor, kind)}"]
            if node.offset is not None:
                parts.append(f"({C_TYPES[kind]}){self.table(node, 'offset', node.offset, kind)}")
            return " + ".join(parts)

        self.elementwise(node, text)

    def table(self, node: Node, name: str, array: Array, kind: str) -> str:
        """Element i of a scalar, a full array or one number per channel, as text."""
        shape = self.graph.shape_of(node.name)
        full = np.broadcast_to(spread(array, shape), shape).reshape(-1)
        if full.size and bool((full == full[0]).all()):
            number = np.float32(full[0]) if kind == "f32" else full[0]
            return literal(number, kind)
        stored = self.plan.stored[node.name, ""]
        own = (narrowest(*of_array(full)) or "i64") if self.integer else {4: "f32", 8: "f64"}[array.dtype.itemsize]
        return f"{self.constant(f'{node.name}_{name}', own, arranged(full, stored.layout))}[i]"

    def copy(self, node: Node) -> None:
        """Gather, concat, and a reshape of an earlier step."""
        stored = self.plan.stored[node.name, ""]
        c_type = C_TYPES[stored.kind]
        self.title(node)
        self.line("{")
        self.line(f"{c_type} *y = {self.array(stored)};")
        offset = 0
        for number, ref in enumerate(node.inputs):
            read = self.plan.read(ref)
            self.line(self.pointer(f"x{number}", read))
            if isinstance(node, Gather):
                place = place_of(read.stored.layout, read.stored.size)[node.indices.reshape(-1)]
                data, _ = self.indices(f"{node.name}_from", place, max(read.stored.size, 1))
                element = self.value(read.stored, "x0", f"{data}[i]")
                self.line(f"for (i = 0; i < {stored.size}u; i++) {{ y[i] = ({c_type})({element.text}); }}")
                continue
            if isinstance(node, Concat):
                shape = self.graph.type_of(ref).shape
                outer = int(np.prod(shape[: node.axis], dtype=np.int64))
                inner = int(np.prod(shape[node.axis :], dtype=np.int64))
                whole = stored.size // outer if outer else 0
            else:
                outer, inner, whole = 1, stored.size, stored.size
            if outer == 1:
                element = self.value(read.stored, f"x{number}", "i")
                self.line(f"for (i = 0; i < {inner}u; i++) {{ y[{offset}u + i] = ({c_type})({element.text}); }}")
            else:
                element = self.value(read.stored, f"x{number}", "i")
                place_text = f"i / {inner}u * {whole}u + {offset}u + i % {inner}u"
                self.line(f"for (i = 0; i < {outer * inner}u; i++) {{ y[{place_text}] = ({c_type})({element.text}); }}")
            offset += inner
        self.line("}")
        self.listing(stored)

    def pool(self, node: Pool) -> None:
        read = self.plan.read(node.inputs[0])
        x, stored = read.stored, self.plan.stored[node.name, ""]
        into, out = self.graph.type_of(node.inputs[0]).shape, self.graph.shape_of(node.name)
        space, out_space = ((1, *axis) if len(axis) == 1 else tuple(axis) for axis in (into[1:], out[1:]))
        kernel, stride = ((1, *axis) if len(axis) == 1 else tuple(axis) for axis in (node.kernel, node.stride))
        padding = (0, *node.padding) if len(node.padding) == 1 else node.padding
        name = self.name(f"{self.p}{node.name}_pool")
        macros: dict[str, Any] = {
            "SPK_NAME": name, "SPK_X": C_TYPES[x.kind], "SPK_Y": C_TYPES[stored.kind],
            "SPK_MAX": int(node.mode == "max"), "SPK_NAN": int(not self.integer and stored.kind != "u8"),
            "SPK_C": f"{into[0]}u", "SPK_HI": space[0], "SPK_WI": space[1], "SPK_HO": out_space[0], "SPK_WO": out_space[1],
            "SPK_KH": kernel[0], "SPK_KW": kernel[1], "SPK_SH": stride[0], "SPK_SW": stride[1],
            "SPK_PH": padding[0], "SPK_PW": padding[1],
            "SPK_IN_LAST": int(x.layout is not None), "SPK_OUT_LAST": int(stored.layout is not None),
        }  # fmt: skip
        if node.mode == "average":
            macros["SPK_SCALE"] = literal(float(np.prod(node.kernel)), stored.kind)
        self.kernel("spk_pool.h", **macros)
        self.title(node)
        self.line("{")
        self.line(self.pointer("x", read))
        self.line(f"{name}(x, {self.array(stored)});")
        self.line("}")
        self.listing(stored)

    # -------------------------------------------------------------------------------------------------------- neurons

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
        stored = self.plan.stored[node.name, ""]
        shape = self.graph.shape_of(node.name)
        full = np.broadcast_to(spread(array, shape), shape).reshape(-1)
        return self.constant(f"{node.name}_{name}", kind, arranged(full, stored.layout))

    def loop(self, node: Neuron) -> Loop:
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

    # ------------------------------------------------------------------------------------------------------- assembly

    def network(self, probes: Mapping[str, Wire], embed: bool) -> Network:
        graph, p = self.graph, self.p
        self.sum_state: dict[str, _SumState] = {}
        self.checks: list[str] = []
        self.storage()
        inputs = {node.name: number for number, node in enumerate(graph.inputs)}
        for node in graph.order:
            if node.name in self.plan.alias or node.name in self.plan.folded:
                continue
            if node.name in self.plan.sums:
                self.sum(self.plan.sums[node.name])
            elif isinstance(node, Input):
                self.input(node, inputs[node.name])
            elif isinstance(node, Constant):
                self.constant_node(node)
            elif isinstance(node, Neuron):
                self.neuron(node)
            elif isinstance(node, Add):
                self.add(node)
            elif isinstance(node, Scale):
                self.scale(node)
            elif isinstance(node, Pool):
                self.pool(node)
            else:
                assert isinstance(node, (Concat, Gather, Reshape))
                self.copy(node)
        for index, size in sorted(self.scratch.items()):
            bits = 16 if index == "uint16_t" else 32
            self.members.append(_Member(f"scratch{bits}", index, size, bits // 8))
        ports = [self.port(name, (ref.node, ref.port)) for name, ref in graph.outputs]
        ports += [self.port(name, wire) for name, wire in probes.items()]
        states = []
        for node, state, _, kind in self.states:
            declared = next(s.dtype for s in node.program.states if s.name == state)
            api = declared if self.integer else kind
            states.append(
                Port(f"{node.name}.{state}", (node.name, state), self.plan.stored[node.name, ""].size, "value", api, node.lag)
            )
        in_ports = [
            Port(n.name, (n.name, ""), n.type.size, n.type.kind, self.plan.stored[n.name, ""].api, n.lag) for n in graph.inputs
        ]
        total = (
            64
            + 64 * -(-8 * max(len(self.counters), 1) // 64)
            + sum(64 * -(-m.length * m.width // 64) for m in self.members if m.length)
        )
        total += 64 * -(-4 * len(self.rings) // 64)
        result = Network(p, "", "", None, None, in_ports, ports, len(graph.outputs), states, self.counters, total + 63)
        result.constants = sum(array.nbytes for _, _, array in self.arrays)
        data, result.binary, result.binary_source = self.data(embed)
        result.source = self.source(result, data)
        result.header = self.header(result)
        return result

    def port(self, name: str, wire: Wire) -> Port:
        stored = self.plan.read(Ref(*wire)).stored
        type_ = dict(self.graph.types[wire[0]])[wire[1]]
        return Port(name, wire, stored.size, type_.kind, stored.api, self.graph[wire[0]].lag)

    def data(self, embed: bool) -> tuple[str, bytes | None, str | None]:
        """The arrays: as text, or the large ones of a large network as a binary file and the source that links it."""
        text_size = sum(3 * a.size * max(1, a.itemsize // 2) for _, _, a in self.arrays)
        large = embed and text_size > _MUCH_TEXT
        texts, fields, blob = [], [], bytearray()
        for name, c_type, array in self.arrays:
            width = {"uint8_t": 1, "int8_t": 1, "uint16_t": 2, "int16_t": 2, "int32_t": 4, "uint32_t": 4, "float": 4}.get(c_type, 8)
            if large and array.size >= _LARGE:
                blob += bytes(-len(blob) % 64)
                fields.append((name, c_type, array.size, len(blob)))
                numpy_type = {"uint16_t": np.uint16, "uint32_t": np.uint32}.get(c_type, array.dtype)
                blob += np.ascontiguousarray(array.astype(numpy_type)).astype(np.dtype(numpy_type).newbyteorder("<")).tobytes()
                assert np.dtype(numpy_type).itemsize == width
                continue
            kind = (
                next(k for k, v in C_TYPES.items() if v == c_type)
                if c_type in C_TYPES.values()
                else "i32"
                if c_type == "uint16_t"
                else "i64"
            )
            if c_type == "uint32_t":
                numbers = [f"{int(n)}u" for n in array]
            elif kind in ("f32", "f64", "i64"):
                numbers = [literal(n, kind) for n in array]
            else:
                numbers = [literal(n, "i32") for n in array.tolist()]
            rows = _rows(numbers or ["0"])
            texts.append(f"static const {c_type} {name}[{max(array.size, 1)}] SPK_ALIGNED = {{\n{rows}\n}};")
        if not fields:
            return "\n\n".join(texts), None, None
        blob += bytes(-len(blob) % 64)
        struct = [f"struct {self.p}weights {{"]
        struct += [f"  SPK_ALIGNED {c_type} {name}[{size}];" for name, c_type, size, _ in fields]
        struct += ["};", f"extern const struct {self.p}weights {self.p}weights;"]
        for name, _, _, at in fields:
            struct.append(f"typedef char {name}_check[offsetof(struct {self.p}weights, {name}) == {at} ? 1 : -1];")
        struct.append(f"typedef char {self.p}weights_check[sizeof(struct {self.p}weights) == {len(blob)} ? 1 : -1];")
        struct += [f"#define {name} {self.p}weights.{name}" for name, *_ in fields]
        note = "/* Large arrays stand in weights.bin, in this order, little-endian, each at a multiple of 64 bytes. */"
        return "\n\n".join(["\n".join([note, *struct]), *texts]), bytes(blob), _WEIGHTS.replace("@prefix@", self.p)

    def view(self, stored_member: str, size: int, kind: str, api: str, layout: Layout | None, shift: int, ring: int) -> str:
        channels, space = layout or (0, 0)
        source = "SPK_FROM_U8" if kind == "u8" else _API[kind]
        position = f"offsetof(struct {self.p}state, pos_{ring})" if ring > 1 else "0"
        return (
            f"{{offsetof(struct {self.p}state, {stored_member}), {position}, {ring}u, {size}u, {channels}u, {space}u, "
            f"{source}, {_API[api]}, {shift}}}"
        )

    def source(self, network: Network, data: str) -> str:
        p = self.p
        out = [
            f'#include "{_header_name(p)}"',
            "",
            '#include "spk_core.h"',
            '#include "spk_int.h"' if self.integer else '#include "spk_float.h"\n#include "spk_int.h"',
            "",
            f"typedef char {p}check_abi[SPK_ABI == 1 ? 1 : -1];",
            "",
            data,
            "",
            "/* The network's memory. Steps begin at 0; pos_N is where the current step lies in rings of N steps. */",
            f"struct {p}state {{",
            "  int32_t t;",
            *(f"  uint32_t pos_{ring};" for ring in sorted(self.rings)),
            f"  uint64_t count[{max(len(self.counters), 1)}];",
            *(f"  SPK_ALIGNED {m.c_type} {m.name}[{max(m.length, 1)}];" for m in self.members),
            "};",
            f"typedef char {p}check_size[sizeof(struct {p}state) + 63 <= {network.bytes} ? 1 : -1];",
            "",
            *(text + "\n" for text in self.functions),
            f"spk_status {p}step(spk_net *handle, const spk_in *in) {{",
            f"  struct {p}state *net = (struct {p}state *)(void *)handle;",
            *(["  spk_status status;"] if self.checks else []),
            *([] if not self.slots else [f"  uint32_t {', '.join(f'at_{r}_{d}' for r, d in sorted(self.slots))};"]),
            "  uint32_t i;",
            "  (void)i;",
            *([] if self.checks else ["  (void)in;"]),
            *self.checks,
        ]
        out.append("  if (net->t == INT32_MAX) { return SPK_E_STEPS; }" if self.uses_time else "")
        for ring in sorted(self.rings):
            out.append(f"  net->pos_{ring} = net->pos_{ring} + 1u == {ring}u ? 0 : net->pos_{ring} + 1u;")
        for ring, delay in sorted(self.slots):
            back = f"net->pos_{ring} >= {delay}u ? net->pos_{ring} - {delay}u : net->pos_{ring} + {ring - delay}u"
            out.append(f"  at_{ring}_{delay} = {back if delay else f'net->pos_{ring}'};")
        out += self.steps
        out += [
            "",
            "  if (net->t < INT32_MAX) { net->t++; }",
            "  return SPK_OK;",
            "}",
            "",
            f"void {p}reset(spk_net *handle) {{",
            f"  struct {p}state *net = (struct {p}state *)(void *)handle;",
            "  uint32_t i;",
            "  (void)i;",
            "  memset(net, 0, sizeof *net);",
            *(f"  net->pos_{ring} = {ring - 1}u;" for ring in sorted(self.rings)),
            *(f"  {line}" for line in self.initial),
            "}",
            "",
            f"size_t {p}size(void) {{ return {network.bytes}u; }}",
            "",
            f"spk_status {p}init(void *memory, size_t bytes, spk_net **net) {{",
            "  if (memory == NULL || net == NULL || bytes < " + f"{network.bytes}u) {{ return SPK_E_MEMORY; }}",
            "  *net = (spk_net *)(void *)((unsigned char *)memory + (63u & (0u - (unsigned)((uintptr_t)memory & 63u))));",
            f"  {p}reset(*net);",
            "  return SPK_OK;",
            "}",
            "",
        ]
        out += self.tables(network)
        return "\n".join(out) + "\n"

    def tables(self, network: Network) -> list[str]:
        p = self.p
        views = []
        for port in network.ports:
            stored = self.plan.read(Ref(*port.wire)).stored
            views.append(self.view(stored.member, stored.size, stored.kind, port.api, stored.layout, stored.shift, stored.ring))
        states = []
        for (node, _, member, kind), port in zip(self.states, network.states, strict=True):
            layout = self.plan.stored[node.name, ""].layout
            states.append(self.view(member, port.size, kind, port.api, layout, 0, 1))
        out = []

        def table(c_type: str, name: str, rows: Sequence[str]) -> None:
            if rows:
                out.append(
                    f"static const {c_type} {p}{name}[{len(rows)}] = {{\n" + "\n".join(f"  {row}," for row in rows) + "\n};\n"
                )

        def rows(ports: Sequence[Port]) -> list[str]:
            return [f'{{"{q.name}", {q.size}u, {q.lag}u, {_KIND[q.kind]}, {_API[q.api]}}}' for q in ports]

        table("spk_port", "input_table", rows(network.inputs))
        table("spk_port", "port_table", rows(network.ports))
        table("spk_view", "port_view", views)
        table("spk_port", "state_table", rows(network.states))
        table("spk_view", "state_view", states)
        table("char *const", "counter_table", [f'"{name}"' for name in network.counters])

        def reader(name: str, what: str, count: int, ok: str, arguments: str) -> None:
            body = (
                f"  if ({what} >= {count}u) {{ return SPK_E_PORT; }}\n{ok}\n  return SPK_OK;"
                if count
                else (
                    "  "
                    + " ".join(f"(void){a.split()[-1].lstrip('*')};" for a in ["*net", what, *arguments.split(", ")])
                    + "\n  return SPK_E_PORT;"
                )
            )
            out.append(f"spk_status {p}{name}(const spk_net *net, uint32_t {what}, {arguments}) {{\n{body}\n}}\n")

        reader("read", "port", len(network.ports), f"  spk_view_read({p}port_view + port, net, values);", "void *values")
        reader(
            "read_events", "port", len(network.ports),
            f"  *count = spk_view_events({p}port_view + port, net, index);", "uint32_t *index, uint32_t *count",
        )  # fmt: skip
        reader("read_state", "state", len(network.states), f"  spk_view_read({p}state_view + state, net, values);", "void *values")
        reader(
            "read_counter", "counter", len(network.counters),
            f"  *value = ((const struct {p}state *)(const void *)net)->count[counter];", "uint64_t *value",
        )  # fmt: skip
        ref = {key: f"{p}{key}_table" if n else "NULL" for key, n in (
            ("input", len(network.inputs)), ("port", len(network.ports)),
            ("state", len(network.states)), ("counter", len(network.counters)),
        )}  # fmt: skip
        out.append(
            f"const spk_model {p}network = {{\n  SPK_ABI, {len(network.inputs)}u, {network.outputs}u, {len(network.ports)}u, "
            f'{len(network.states)}u, {len(network.counters)}u, "{self.graph.name}",\n'
            f"  {ref['input']}, {ref['port']}, {ref['state']}, {ref['counter']},\n"
            f"  {p}size, {p}init, {p}reset, {p}step, {p}read, {p}read_events, {p}read_state, {p}read_counter,\n}};"
        )
        return out

    def header(self, network: Network) -> str:
        p, graph = self.p, self.graph
        big = p.upper()
        dt = "" if graph.dt is None else f", {duration_text(graph.dt)} a step"
        lines = [
            f"/* {_header_name(p)} - the network '{graph.name}'{dt}. Written by spikec; the interface is explained in spk.h. */",
            f"#ifndef {big}NETWORK_H",
            f"#define {big}NETWORK_H",
            "",
            '#include "spk.h"',
            "",
            f"#define {big}BYTES {network.bytes}u /* for {p}init, whatever the alignment */",
            f"#define {big}INPUTS {max(len(network.inputs), 1)}",
            "",
        ]
        for what, ports in (
            ("INPUT", network.inputs),
            ("OUTPUT", network.ports[: network.outputs]),
            ("PORT", network.ports[network.outputs :]),
            ("STATE", network.states),
        ):
            base = network.outputs if what == "PORT" else 0
            for number, port in enumerate(ports):
                label = self.name(f"{big}{what}_{port.name.upper().replace('.', '_')}")
                lines.append(f"#define {label} {base + number}u /* {port.size} x {port.api}, {port.kind}, lag {port.lag} */")
        if p != "spk_":
            lines += [
                "",
                f"size_t {p}size(void);",
                f"spk_status {p}init(void *memory, size_t bytes, spk_net **net);",
                f"void {p}reset(spk_net *net);",
                f"spk_status {p}step(spk_net *net, const spk_in *in);",
                f"spk_status {p}read(const spk_net *net, uint32_t port, void *values);",
                f"spk_status {p}read_events(const spk_net *net, uint32_t port, uint32_t *index, uint32_t *count);",
                f"spk_status {p}read_state(const spk_net *net, uint32_t state, void *values);",
                f"spk_status {p}read_counter(const spk_net *net, uint32_t counter, uint64_t *value);",
                f"extern const spk_model {p}network;",
            ]
        return "\n".join([*lines, "", "#endif"]) + "\n"


@dataclass
class _SumState:
    """What `prepare` decided: the accumulators' type, interval (times 2^shift), bias in the order of the buffer."""

    kind: str = "i32"
    shift: int = 0
    span: Interval = (0, 0)
    bias: Any = None
    early: bool = False  # the accumulators start from the bias
    delayed: bool = False
    depth: int = 1
    direct: bool = True  # the accumulators are the result
    member: str = ""


def _weight_kind(weight: Array) -> str:
    return narrowest(*of_array(weight)) or "i64"


def _tap_rows(weight: Array, groups: int) -> Array:
    """(out, in / groups, *kernel) -> (in, *kernel, out / groups)."""
    out = len(weight) // groups
    return np.concatenate([np.moveaxis(weight[g * out : (g + 1) * out], 0, -1) for g in range(groups)])


def _phase_rows(weight: Array, stride: Sequence[int]) -> Array:
    """(out, in, *kernel) -> (in, ...): the taps of each phase of the stride together, backwards, out last (spk_convrow.h)."""
    two = weight.reshape(*weight.shape[:2], 1, -1) if weight.ndim == 3 else weight
    sh, sw = (1, *stride) if weight.ndim == 3 else tuple(stride)
    taps = np.moveaxis(two, 0, -1)  # (in, kernel height, kernel width, out)
    parts = [
        taps[:, py::sh, px::sw][:, ::-1, ::-1].reshape(len(taps), -1)
        for py in range(min(sh, taps.shape[1]))
        for px in range(min(sw, taps.shape[2]))
    ]
    return np.concatenate(parts, axis=1)


def _rows(numbers: Sequence[str], width: int = 118) -> str:
    lines, line = [], " "
    for number in numbers:
        if len(line) + len(number) + 2 > width:
            lines.append(line)
            line = " "
        line += f" {number},"
    return "\n".join([*lines, line])


def _header_name(prefix: str) -> str:
    return "network.h" if prefix == "spk_" else f"{prefix}network.h"


_WEIGHTS: Final = """/* weights.c - links weights.bin. `make EMBED=array` does without the assembler's .incbin. */
#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__)
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "weights.bin is little-endian"
#endif
#endif

#if defined(SPK_EMBED_ARRAY)
#include "weights_array.h"
#elif defined(__APPLE__)
__asm__(".const\\n.balign 64\\n.globl _@prefix@weights\\n_@prefix@weights:\\n.incbin \\"weights.bin\\"\\n.text\\n");
#else
__asm__(".section .rodata\\n.balign 64\\n.globl @prefix@weights\\n@prefix@weights:\\n.incbin \\"weights.bin\\"\\n.text\\n");
#endif

typedef int spk_weights_are_linked;
"""
