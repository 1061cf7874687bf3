"""Weighted sums: accumulators, and a call of a kernel for each set of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Any, Final

import numpy as np

from spikec.backends.c.exprs import C_TYPES, Operand, added_to, fits32, literal
from spikec.backends.c.forms import LARGE, Form, blocks_of, choose, forms, steps
from spikec.backends.c.grouped import two
from spikec.backends.c.late import Late, arrivals
from spikec.backends.c.memory import ALIGN
from spikec.backends.c.parts import DTYPE, WIDTH, event_room, lanes, rest
from spikec.backends.c.plan import Halo, Read, Stored, Sum, Weighted, arranged, common_shift, order_of, place_of, weighted_interval
from spikec.backends.c.writer import Writer
from spikec.ir.ops import Conv, Dense, Neuron, Pool, Sparse
from spikec.ir.ranges import Interval, hull, of_array
from spikec.ir.types import Array, narrowest
from spikec.ir.windows import needed

#: Room behind rows is left out where it is at least this part of the network's weights.
_WORTH: Final = 64
#: Weights of a convolution of at most so many are kept in 16 bits, which saves widening them at every event.
_WIDEN: Final = 1 << 14
#: The largest number of sixteen bits.
_LARGEST: Final = (1 << 15) - 1
#: Forms that are whole rows when the network runs.
_ROWS: Final = ("rows", "packed")
#: Rows of connections that are added side by side, where there are more bytes of accumulators than _FIRST_CACHE and rows have at
#: least so many connections on average.
_BESIDE: Final = 16
_FIRST_CACHE: Final = 1 << 15
_LONG: Final = 64
#: A map's rows may take so many times the room to begin where vectors do.
_MORE: Final = 1.125


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
    into: str = ""  # the population whose state the accumulators are


@dataclass(frozen=True)
class _Formed:
    """How a set of weights is stored, and the matrix (sources, targets) in the order of the operand. narrow: weights are bytes,
    accumulators and events have 16 bits; wide: whole rows (_ROWS) of the same, with accumulators of 32."""

    form: Form
    matrix: Array
    narrow: bool
    wide: bool


class Sums(Writer):
    """Weighted sums."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sum_state: dict[str, _SumState] = {}
        self.formed: dict[str, _Formed | None] = {}
        self.later: dict[str, Late] = {}  # layers with delays, of which whole rows arrive

    def prepare(self, total: Sum) -> None:
        """Choose the accumulators of a sum: their type, the power of two that is taken out, and where they lie."""
        stored = self.plan.stored[total.node.name, ""]
        state = self.sum_state[total.node.name] = _SumState()
        stored.halo = self.halo(total)
        if self.merge(total, state):
            return
        bias: Any = None
        for part in total.parts:
            if part.bias is not None:
                wide = part.bias.astype(np.int64) if self.integer else part.bias
                like = self.graph.shape_of(part.name)
                full = wide.reshape(-1, *(1,) * (len(like) - 1)) if isinstance(part, Conv) else wide
                flat = np.broadcast_to(full, like).reshape(-1)
                bias = flat if bias is None else bias + flat
        state.bias = None if bias is None else arranged(np.asarray(bias), stored.layout)
        state.delayed = any(part.delay is not None and part.delay.any() for part in total.parts) and not self.arrive(total)
        if self.integer:
            shift = min(common_shift([part.weight for part in total.parts]), 16)
            if all(_weight_kind(part.weight >> shift) == _weight_kind(part.weight) for part in total.parts):
                shift = 0
            state.shift = shift
            span = state.span = self.span(total)
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
                np.result_type(DTYPE["f32" if x.kind == "u8" else x.kind], part.weight.dtype)
                for x, part in zip(x_kinds, total.parts, strict=True)
            ]
            state.kind = {4: "f32", 8: "f64"}[np.result_type(*parts).itemsize]
            state.early = state.bias is not None and not state.delayed and state.bias.dtype == DTYPE[state.kind]
        late = state.bias is not None and not state.early
        state.direct = not (late or state.delayed or total.rest or (state.shift and stored.plain))
        state.direct = state.direct and (self.integer or state.kind == stored.kind)
        if state.direct:
            if self.integer and state.shift == 0:  # first values of a reference may be larger than any sum
                state.kind = narrowest(*hull((low, high), stored.interval)) or "i64"
                state.kind = "i16" if state.kind == "i8" else state.kind
            stored.kind, stored.shift = state.kind, state.shift
            if stored.halo is not None and stored.kind not in self.halo_kinds(total):
                stored.halo = None
            return
        stored.halo = None
        length = stored.size
        if state.delayed:
            state.depth = max(int(part.delay.max()) for part in total.parts if part.delay is not None) + 1
            length *= state.depth
            if state.depth > 1:
                self.rings.add(state.depth)
        room = length + (self.room(stored.size) if self.integer else rest(stored.size))
        state.member = self.member(f"a_{total.node.name}", C_TYPES[state.kind], room, WIDTH[state.kind])
        self.members[-1].step = not state.delayed

    def arrive(self, total: Sum) -> bool:
        """Whether all delays of a sum are a matter of when a row is added. The fewest bytes are one delay for each connection."""
        found: dict[str, Late] = {}
        shift = min(common_shift([part.weight for part in total.parts]), 16) if self.integer else 0
        for part in total.parts:
            if part.delay is None or not part.delay.any():
                continue
            read, pool = self.plan.weighted_read(part.inputs[0])
            x = read.stored
            plain = self.integer and not self.choices.small and pool is None and read.init is None and x.binary
            if not plain or isinstance(part, Conv) or x.size != (part.weight.shape[1] if isinstance(part, Dense) else part.fan_in):
                return False
            narrow = _weight_kind(part.weight >> shift) == "i8"
            rows = arrivals(part, order_of(x.layout, x.size), self.choices.vector if narrow else 0)
            if rows is None:
                return False
            found[part.name] = rows
        for part in total.parts:
            if part.name in found and found[part.name].whole:
                read = self.plan.read(part.inputs[0])
                read.stored.list_depth = max(read.stored.list_depth, read.delay + found[part.name].longest)
        self.later |= found
        return True

    def span(self, total: Sum) -> Interval:
        """Worst case of the sum and of every partial sum, without bias."""
        ends = [weighted_interval(part, self.plan.read(part.inputs[0]).stored.interval) for part in total.parts]
        return (sum(low for low, _ in ends), sum(high for _, high in ends))

    def reader(self, total: Sum) -> Neuron | None:
        """The population that alone reads the sum, in the same step."""
        wire = (total.node.name, "")
        users = list(self.plan.users(wire))
        if len(users) != 1 or self.plan.stored[wire].observed:
            return None
        ((user, ref),) = users
        return user if isinstance(user, Neuron) and ref.delay == 0 and ref.init is None else None

    def merge(self, total: Sum, state: _SumState) -> bool:
        """Integrate and fire: a population that adds the sum to a state, and uses neither for anything else before, needs no
        sum: the rows of the events are added to the state. Only where 16 bits hold that."""
        stored = self.plan.stored[total.node.name, ""]
        node = self.reader(total)
        plain = all(part.bias is None and part.delay is None for part in total.parts) and not total.rest
        if self.plan.ranges is None or node is None or not plain:
            return False
        name = next(n for n, ref in zip(node.program.inputs, node.inputs, strict=True) if self.plan.read(ref).stored is stored)
        found = added_to(node.program, name)
        if found is None:
            return False
        span, held = self.span(total), self.plan.ranges.neurons[node.name].states[found[1]]
        whole = hull(held, (held[0] + span[0], held[1] + span[1]))
        if narrowest(*whole) not in ("i8", "i16"):
            return False
        if stored.halo is not None and "i16" not in self.halo_kinds(total):
            return False
        state.kind, state.span, state.into = "i16", span, node.name
        stored.kind = "i16"
        self.merged[node.name] = (total.node.name, *found)
        return True

    def halo(self, total: Sum) -> Halo | None:
        """The room around a map that convolutions alone write to and a population alone reads."""
        stored = self.plan.stored[total.node.name, ""]
        if not self.integer or total.rest or self.reader(total) is None:
            return None
        low, high, more = [0, 0], [0, 0], 0
        before, behind = 0, 0
        for part in total.parts:
            if not isinstance(part, Conv) or part.delay is not None:
                return None
            read, pool = self.plan.weighted_read(part.inputs[0])
            grouped = self.plan.grouped(part)
            if not self.in_rows(part, stored):
                if not grouped.fits(stored.layout is None):
                    return None
                more = max(more, grouped.run(planes=False))
                first, last = grouped.room()
                before, behind = max(before, first), max(behind, last)
            else:
                taps = _phase_taps(part)
                if part.bias is not None or taps[2] * 2 > part.weight[0, 0].size * 3:  # too many zeros would be added
                    return None
                if taps[0] * taps[1] > 255 or int(np.prod(part.stride)) > 256:
                    return None
                if not read.stored.binary and pool is None:
                    return None
            for axis, margin in enumerate(grouped.axes):
                low[axis], high[axis] = max(low[axis], margin.margins[0]), max(high[axis], margin.margins[1])
        out = self.graph.shape_of(total.node.name)
        rows, columns = two(out[1:])
        if stored.layout is None:
            base = -(-before // 32) * 32  # the map begins where a vector does
            return Halo(stored.size, 1, stored.size, base, base + stored.size + behind) if base + rows * columns < 1 << 16 else None
        channels = out[0]
        pitch = (columns + max(low[1], high[1])) * channels
        base = low[0] * pitch + low[1] * channels
        # Rows begin where vectors do, or cache lines for long ones, if that takes little more room.
        align = ALIGN if self.choices.vector > 16 else self.choices.vector
        unit = lcm(channels, 1 if self.choices.small else max(align // WIDTH["i16"], 1))
        if _up(pitch, unit) <= pitch * _MORE:
            pitch = _up(pitch, unit)
            base = _up(low[0] * pitch + low[1] * channels, unit)
        length = base + (rows - 1 + high[0]) * pitch + (columns + high[1]) * channels + more
        # Where an event lands is a table of sixteen bits, in units of channels.
        return Halo(columns * channels, rows, pitch, base, length) if length // channels < 1 << 16 else None

    def halo_kinds(self, total: Sum) -> tuple[str, ...]:
        """The types of accumulators that kernels for a map with room around take: those that hold every weight."""
        stored = self.plan.stored[total.node.name, ""]
        if any(isinstance(part, Conv) and self.in_rows(part, stored) for part in total.parts):
            return ("i16",)
        widest = {_weight_kind(part.weight) for part in total.parts}
        return ("i16", "i32") if widest <= {"i8", "i16"} else ("i32",) if "i64" not in widest else ()

    def in_rows(self, part: Conv, stored: Stored) -> bool:
        """Whether the outputs that an event reaches along a row lie side by side."""
        plain = self.integer and part.delay is None and part.groups == 1 and set(part.dilation) == {1}
        return plain and stored.layout is not None

    def sum(self, total: Sum) -> None:
        """Start from the bias, add the rows of the events, and finish where the accumulators are not yet the result."""
        stored = self.plan.stored[total.node.name, ""]
        state = self.sum_state[total.node.name]
        ring = state.delayed and state.depth > 1
        self.title(total.node)
        noted = any(part.name in self.later and not self.later[part.name].whole for part in total.parts)
        window = "" if state.delayed or noted or stored.observed else self.within(needed(self.graph, total.node.name))
        self.line(f"if ({window}) {{" if window else "{")
        here = (
            self.array(stored)
            if state.direct
            else f"net->{state.member}" + (f" + net->pos_{state.depth} * {stored.size}u" if ring else "")
        )
        self.line(f"{C_TYPES[state.kind]} *acc = {here};")
        if state.into:
            pass
        elif state.early:
            start = state.bias >> state.shift if self.integer else state.bias
            length = stored.size
            if stored.halo is not None:
                length = stored.halo.length
                start, inside = np.zeros(length, start.dtype), start
                start[stored.halo.place(np.arange(stored.size))] = inside
            data = self.constant(f"{total.node.name}_bias", state.kind, start)
            self.line(f"memcpy(acc, {data}, {length}u * sizeof *acc);")
        elif stored.halo is not None:
            self.line(f"memset(acc, 0, {stored.halo.length}u * sizeof *acc);")
        elif not state.delayed and not self.starts(total.parts[0], state, stored):
            self.line(f"memset(acc, 0, {stored.size}u * sizeof *acc);")
        if state.delayed:
            self.line(f"uint32_t slot[{state.depth}];")
            if ring:
                place = f"(net->pos_{state.depth} + i) % {state.depth}u * {stored.size}u"
                self.line(f"for (i = 0; i < {state.depth}u; i++) {{ slot[i] = {place}; }}")
            else:
                self.line("slot[0] = 0;")
        for part in total.parts:
            own = self.within(needed(self.graph, part.name)) if state.delayed else ""
            if own:
                self.line(f"if ({own}) {{")
            self.weighted(part, state, stored)
            if own:
                self.line("}")
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

    def form(self, part: Weighted, state: _SumState, stored: Stored) -> _Formed | None:
        """How the weights of spikes are stored; None where a kernel of its own takes them as they are."""
        if part.name not in self.formed:
            self.formed[part.name] = self._form(part, state, stored)
        return self.formed[part.name]

    def _form(self, part: Weighted, state: _SumState, stored: Stored) -> _Formed | None:
        if isinstance(part, Conv) or not self.integer or state.delayed:
            return None
        x = self.operand(part)
        matrix = self.later[part.name].matrix if part.name in self.later else _matrix(part)
        if matrix is None or not x.binary or x.size != len(matrix) or not matrix.size:
            return None
        matrix = (matrix >> state.shift)[order_of(x.layout, x.size)]
        kind, out = _weight_kind(matrix), matrix.shape[1]
        bytes_ = kind == "i8" and x.index == "uint16_t"
        narrow, wide = bytes_ and state.kind == "i16", bytes_ and state.kind == "i32"
        vectors = narrow or wide
        found = forms(matrix != 0, out + rest(out) if vectors else out, self.choices.vector if vectors else 0, WIDTH[kind])
        # The places of blocks are numbers of sixteen bits.
        widest = out if matrix.any() and stored.size <= 1 << 16 else 0
        found = [form for form in found if form.width <= widest]
        found = [form for form in found if form.memory == 0 or self.choices.packed]
        named = [form for form in found if form.name == self.choices.form]
        chosen = named[0] if named else choose(found, small=self.choices.small)
        return _Formed(chosen, matrix, narrow, wide and chosen.name in _ROWS)

    def operand(self, part: Weighted) -> Stored:
        """The buffer whose events a set of weights takes, as it takes them."""
        read, pool = self.plan.weighted_read(part.inputs[0])
        if part.name in self.later:
            return replace(read.stored, size=len(self.later[part.name].matrix), layout=None, list_depth=0)
        return read.stored if pool is None else replace(self.plan.stored[pool.name, ""], kind="u8", binary=True, layout=None)

    def starts(self, part: Weighted, state: _SumState, stored: Stored) -> bool:
        """Whether it is the first part, and its kernel writes the accumulators without reading them.

        It writes whole vectors: the end of the last one must not lie in an earlier step of a ring, which lies behind.
        """
        total = self.plan.sums[stored.wire[0]]
        first = part is total.parts[0] and not state.early and not state.into
        if self.plan.multiplied(total, part):
            return first
        formed = self.form(part, state, stored)
        if not first or formed is None or not (formed.narrow or formed.wide) or formed.form.name not in _ROWS:
            return False
        return not state.direct or stored.ring == 1 or self.stride(formed) == stored.size

    def stride(self, formed: _Formed) -> int:
        """Weights of a row that is added in whole vectors. Those behind the last output are zero, and the accumulators have room.
        Packed, they cost memory alone, and fewer runs over the events are worth that."""
        out = formed.matrix.shape[1]
        return lanes(out) if formed.form.name == "packed" else out + rest(out)

    def tight(self, rows: Array, out: int, state: _SumState, stored: Stored) -> bool:
        """Whether rows lie one behind the other without room: it must be worth it, and what is read behind a row, which belongs to
        the next, must not get into an earlier step of a ring."""
        whole = sum(part.weight.size for total in self.plan.sums.values() for part in total.parts)
        unused = len(rows) * (rows.shape[1] - out)
        return out < 64 and _WORTH * unused >= whole and (not state.direct or stored.ring == 1)

    def weighted(self, part: Weighted, state: _SumState, stored: Stored) -> None:
        """One call of a kernel: the events of the operand add their rows."""
        self.owner = part.name
        if self.plan.multiplied(self.plan.sums[stored.wire[0]], part):
            assert isinstance(part, Dense)
            self.product(part, state, stored)
            return
        read, pool = self.plan.weighted_read(part.inputs[0])
        source = read
        x = self.operand(part)
        # `where` of spk_convhalo.h says where the events of a window land: they need no other number.
        windows = pool if stored.halo is not None and isinstance(part, Conv) and self.in_rows(part, stored) else None
        if windows is not None:
            x, pool = source.stored, None
        if pool is not None:
            read = Read(x, 0)
        formed = self.form(part, state, stored)
        delayed = state.delayed
        name = self.name(f"{self.p}{part.name}_add")
        weight = part.weight >> state.shift if self.integer else part.weight
        w_kind = _weight_kind(weight if formed is None else formed.matrix) if self.integer else state.kind
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
        if formed is not None and formed.form.name not in _ROWS:
            more, arguments = self.shortened(part.name, formed, stored)
            macros |= more
            header = {"steps": "spk_steps.h", "list": "spk_sparse.h"}.get(formed.form.name, "spk_block.h")
            operations, result = "", "used"
        elif formed is not None or isinstance(part, Dense):
            matrix = weight.T if formed is None else formed.matrix  # only where it is no row for every element
            fan_in, out = matrix.shape
            one = x.size == fan_in
            rows = matrix[order] if one and formed is None else matrix
            fast = formed is not None and (formed.narrow or formed.wide)
            macros |= {"SPK_IN": f"{fan_in}u", "SPK_OUT": f"{out}u", "SPK_ONE": int(one), "SPK_FAST": int(fast)}
            if formed is not None and fast:
                rows = np.pad(rows, ((0, 0), (0, self.stride(formed) - out))).astype(np.int8)
                tight = formed.form.name == "rows" and self.tight(rows, out, state, stored)
                rows[:, ::2] ^= np.int8(-128)
                macros |= {"SPK_STRIDE": f"{out if tight else rows.shape[1]}u", "SPK_FRESH": int(self.starts(part, state, stored))}
                if tight:
                    macros["SPK_RUN"] = f"{rows.shape[1]}u"
                    rows = rows[:, :out]
            if formed is not None and formed.wide:
                macros["SPK_WIDE"] = f"{_LARGEST // max(int(np.abs(formed.matrix).max()), 1)}u"
            if formed is not None and formed.form.name == "packed":
                arguments = [self.packed(f"{part.name}_weight", rows, out, -128 if fast else 0)]
            else:
                arguments = [self.constant(f"{part.name}_weight", w_kind, rows)]
                self.overruns(arguments[0], rest(out) if fast else 0)
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
            scattered = stored.halo is not None and not self.in_rows(part, stored)
            macros |= self.scattered(part, read, stored, state.kind) if scattered else self.conv_sizes(part, read, stored)
            if delayed:
                arguments.append(self.delays(part.name, _tap_rows(delay, part.groups), macros["SPK_DELAY"]))
            rows = _tap_rows(weight, part.groups)
            if scattered:
                assert stored.halo is not None
                header, w_kind = "spk_convgroup.h", state.kind
                grouped, planes = self.plan.grouped(part), stored.layout is None
                unit = 1 if planes else len(weight)
                where = grouped.where(
                    planes, stored.halo.base // unit, grouped.axes[1].size if planes else stored.halo.pitch // unit
                )
                arguments.append(self.constant(f"{part.name}_where", "i64", where, "uint32_t"))
                rows = grouped.weights(weight, planes)
            elif stored.halo is not None:
                header, rows, own = self.in_halo(part, weight, stored.halo)
                macros |= own
                w_kind, macros["SPK_WEIGHT"] = "i16", "int16_t"
                arguments.append(self.constant(f"{part.name}_where", "i64", self.where(part, stored.halo, windows), "uint32_t"))
                if windows is not None:
                    height, width = two(self.graph.type_of(windows.inputs[0]).shape[1:])
                    macros |= {"SPK_HI": f"{height}u", "SPK_WI": f"{width}u"}
            elif self.in_rows(part, stored):
                header = "spk_convrow.h"
                rows = _phase_rows(weight, part.stride)
                if w_kind == "i8" and weight.size <= _WIDEN:
                    w_kind, macros["SPK_WEIGHT"] = "i16", "int16_t"
            arguments.append(self.constant(f"{part.name}_weight", w_kind, rows))
        if header == "spk_sparse.h" and self.beside(part, formed, state, stored):
            macros["SPK_ROWS"] = f"{_BESIDE}u"
        self.kernel(header, **macros)
        # The operand's events and, unless all are 1, its values.
        self.line("{")
        events, count = self.events(source.stored, source.delay)
        if part.name in self.later:
            self.arriving(part, source, x, events, count)
        elif pool is None:
            self.line(f"const {x.index} *event = {events};")
            self.line(f"uint32_t count = {count};")
        else:
            self.renumbered(pool, source.stored, x, events, count)
        if not x.binary or read.init is not None:
            self.line(self.pointer("x", read))
        if read.init is not None:
            self.scratch[x.index] = max(self.scratch.get(x.index, 0), event_room(x))
            scratch = f"net->scratch{16 if x.index == 'uint16_t' else 32}"
            count = f"{self.compact(x.kind, x.index, x.size)}(x, {scratch})"
            self.line(f"if (net->t < {read.delay}) {{ count = {count}; event = {scratch}; }}")
        head = ["slot"] if delayed else []
        target_name = f"net->{state.member}" if delayed else "acc"
        tail = ["event", "count"] + ([] if x.binary else ["x"])
        call = f"{name}({', '.join([target_name, *head, *arguments, *tail])});"
        events_counter = self.count(f"{part.name} events")
        operations_counter = self.count(f"{part.name} operations")
        sent = "sent" if part.name in self.later else "count"
        self.line(f"net->count[{events_counter}] += {sent};")
        if result:
            self.line(f"net->count[{operations_counter}] += {call}")
        else:
            self.line(f"net->count[{operations_counter}] += (uint64_t){sent} {operations};")
            self.line(call)
        if part.name in self.later and not self.later[part.name].whole:
            self.line("waiting[now] = 0;")
        self.line("}")

    def arriving(self, part: Weighted, read: Read, rows: Stored, events: str, count: str) -> None:
        """The rows that arrive at this step as events, and how many sources sent (spk_late.h)."""
        found, x = self.later[part.name], read.stored
        ring = x.ring if found.whole else found.longest + 1
        room = event_room(x) if found.whole else len(found.matrix)
        name = self.name(f"{self.p}{part.name}_arrive")
        self.rings.add(ring)
        back = found.delay + read.delay if found.whole else found.delay
        delay = self.constant(f"{part.name}_delay", "i64", back, "uint32_t")
        sizes = {"SPK_DELAYS": f"{len(found.delay)}u", "SPK_IN": f"{x.size}u"} if found.whole else {}
        self.kernel(
            "spk_late.h", SPK_NAME=name, SPK_FROM=x.index, SPK_INDEX=rows.index, SPK_RING=f"{ring}u", SPK_ROOM=f"{room}u",
            SPK_WHOLE=int(found.whole), **sizes,
        )  # fmt: skip
        self.line(f"const uint32_t sent = {count};")
        self.line(f"const uint32_t now = net->pos_{ring};")
        if found.whole:
            self.scratch[rows.index] = max(self.scratch.get(rows.index, 0), rows.size)
            self.line(f"{rows.index} *event = net->scratch{16 if rows.index == 'uint16_t' else 32};")
            self.line(f"const uint32_t count = {name}(net->e_{x.member}, net->n_{x.member}, {delay}, now, event);")
            return
        start = self.constant(f"{part.name}_rows", "i64", found.start, "uint32_t")
        lists = self.member(f"l_{part.name}", rows.index, ring * room, 2 if rows.index == "uint16_t" else 4)
        counts = self.member(f"w_{part.name}", "uint32_t", ring, 4)
        self.line(f"uint32_t *waiting = net->{counts};")
        self.line(f"const {rows.index} *event = net->{lists} + (size_t)now * {room}u;")
        self.line(f"const uint32_t count = {name}(net->{lists}, waiting, {start}, {delay}, now, {events}, sent);")

    def product(self, part: Dense, state: _SumState, stored: Stored) -> None:
        """One call of the kernel that multiplies values by weights, all at once."""
        read, _ = self.plan.weighted_read(part.inputs[0])
        x = read.stored
        out, fan_in = part.weight.shape
        low, high = x.interval
        byte = int(low >= 0 and high <= 255) + 2 * int(low >= -128 and high <= 127)
        raised = byte == 2 and self.choices.vector > 16
        rows = np.pad((part.weight >> state.shift).T[order_of(x.layout, x.size)], ((0, -fan_in % 4), (0, rest(out))))
        zero = -128 if raised else 0
        fours = rows.reshape(-1, 4, rows.shape[1]).transpose(0, 2, 1).astype(np.int8) ^ np.int8(zero)
        name = self.name(f"{self.p}{part.name}_add")
        self.kernel(
            "spk_product.h",
            SPK_NAME=name,
            SPK_ACC=C_TYPES[state.kind],
            SPK_X=C_TYPES[x.kind],
            SPK_BYTE=byte,
            SPK_IN=f"{fan_in}u",
            SPK_OUT=f"{out}u",
            SPK_FRESH=int(self.starts(part, state, stored)),
            SPK_RAISED=int(raised),
        )
        own = self.member(f"v_{part.name}", "int16_t", 4 * len(fours), 2)
        self.members[-1].step = True
        self.scratch["uint16_t"] = max(self.scratch.get("uint16_t", 0), len(fours))
        weight = self.rows(f"{part.name}_weight", fours.reshape(len(fours), -1), zero, 4 * rest(out))
        events, operations = self.count(f"{part.name} events"), self.count(f"{part.name} operations")
        self.line("{")
        self.line(self.pointer("x", read))
        self.line(f"const uint32_t count = {name}(acc, {weight}, x, net->{own}, net->scratch16);")
        self.line(f"net->count[{events}] += count;")
        self.line(f"net->count[{operations}] += (uint64_t)count * {out}u;")
        self.line("}")

    def shortened(self, name: str, formed: _Formed, stored: Stored) -> tuple[dict[str, Any], list[str]]:
        """Weights without the zeros: what the kernel is specialised for, and its arguments."""
        matrix, kind = formed.matrix, _weight_kind(formed.matrix)
        present, out = matrix != 0, matrix.shape[1]
        start = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
        if formed.form.name == "list":
            target, c_type = self.indices(f"{name}_target", np.nonzero(present)[1], max(stored.size, 1))
            begins = self.constant(f"{name}_start", "i64", start, "uint32_t")
            return {"SPK_TARGET": c_type}, [begins, target, self.constant(f"{name}_weight", kind, matrix[present])]
        if formed.form.name == "steps":
            pairs, start = steps(matrix)
            begins = self.constant(f"{name}_start", "i64", start, "uint32_t")
            return {}, [begins, self.constant(f"{name}_connection", "i16", pairs)]
        width = formed.form.width
        kept = blocks_of(present, width)
        source, begin = np.nonzero(kept)
        # The last block of a row lies earlier where it would reach beyond the last target.
        place = np.minimum(begin, out - width)
        columns = place[:, None] + np.arange(width)
        weights = np.where(columns >= begin[:, None], matrix[source[:, None], columns], 0)
        macros = {
            "SPK_B": f"{width}u",
            "SPK_MOST": f"{max(int(kept.sum(axis=1).max()), 1)}u",
            "SPK_BLOCKS": len(place),
            "SPK_NARROW": int(formed.narrow),
        }
        return macros, [
            self.constant(f"{name}_start", "i64", np.concatenate([[0], np.cumsum(kept.sum(axis=1))]), "uint32_t"),
            self.constant(f"{name}_place", "i32", place, "uint16_t"),
            self.constant(f"{name}_weight", kind, weights),
        ]

    def beside(self, part: Weighted, formed: _Formed | None, state: _SumState, stored: Stored) -> bool:
        """Whether rows of connections are added side by side: accumulators do not fit the first cache, and rows are long."""
        if not self.integer or state.delayed or self.choices.vector == 0:
            return False
        rows = self.operand(part).size if formed is not None else part.fan_in if isinstance(part, Sparse) else 1
        connections = part.weight.size if formed is None else int(np.count_nonzero(formed.matrix))
        return stored.size * WIDTH[state.kind] > _FIRST_CACHE and connections >= _LONG * rows

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

    def in_halo(self, part: Conv, weight: Array, halo: Halo) -> tuple[str, Array, dict[str, Any]]:
        """A convolution into a map with room around: the kernel, its weights and sizes."""
        taps = _phase_taps(part)
        sizes = {"SPK_NY": f"{taps[0]}u", "SPK_NX": f"{taps[1]}u", "SPK_PITCH": f"{halo.pitch}u"}
        return "spk_convhalo.h", _phase_rows(weight, part.stride, whole=True), sizes

    def where(self, part: Conv, halo: Halo, windows: Pool | None) -> Array:
        """For every place of the input: outputs reached, phase of the stride, and where the first tap lands (spk_convhalo.h). The
        input of a convolution of windows are the places in them."""
        into = two(self.graph.type_of(part.inputs[0]).shape[1:])
        out = two(self.graph.shape_of(part.name)[1:])
        padding = (0, *part.padding) if len(part.padding) == 1 else part.padding
        reach, phase, first = [], [], []
        for i, o, k, s, p in zip(into, out, two(part.weight.shape[2:]), two(part.stride), padding, strict=True):
            place = np.arange(i)[:, None] + p - np.arange(k)
            reach.append(((place % s == 0) & (place >= 0) & (place // s < o)).sum(axis=1))
            phase.append((np.arange(i) + p) % s)
            first.append((np.arange(i) + p) // s - (-(-k // s) - 1))
        channels = len(part.weight)
        lands = (halo.base + first[0][:, None] * halo.pitch) // channels + first[1]
        found: Array = lands << 16 | (phase[0][:, None] * two(part.stride)[1] + phase[1]) << 8 | reach[0][:, None] * reach[1]
        for axis, size in enumerate(two(windows.kernel) if windows is not None else ()):
            found = np.repeat(found, size, axis)
        return found

    def delays(self, name: str, array: Array, c_type: str) -> str:
        """Delays in the order of the weights."""
        kind = {"uint8_t": "u8", "uint16_t": "i32", "uint32_t": "i64"}[c_type]
        return self.constant(f"{name}_delay", kind, array, c_type)

    def scattered(self, part: Conv, read: Read, stored: Stored, kind: str) -> dict[str, Any]:
        """What spk_convgroup.h is specialised for."""
        grouped, halo = self.plan.grouped(part), stored.halo
        assert halo is not None
        height, width = grouped.axes
        out, size = grouped.out[0], height.size * width.size
        planes = stored.layout is None
        runs = (grouped.outputs, size, height.taps, height.apart * width.size)
        if not planes:
            runs = (height.taps, height.apart * halo.pitch, width.taps, width.apart * out)
        return {
            "SPK_UACC": f"u{C_TYPES[kind]}", "SPK_WIDTH": WIDTH[kind],
            "SPK_CIN": f"{grouped.into[0]}u", "SPK_PIXELS": f"{int(np.prod(grouped.into[1:]))}u",
            "SPK_IN_LAST": int(read.stored.layout is not None),
            "SPK_IG": f"{part.weight.shape[1]}u", "SPK_OG": f"{grouped.outputs}u",
            "SPK_BETWEEN": f"{grouped.outputs * (size if planes else 1)}u", "SPK_UNIT": "1u" if planes else f"{out}u",
            "SPK_ROWS": f"{runs[0]}u", "SPK_ROW": f"{runs[1]}u", "SPK_TAPS": f"{runs[2]}u", "SPK_TAP": f"{runs[3]}u",
            "SPK_RUN": f"{grouped.run(planes)}u",
        }  # fmt: skip

    def conv_sizes(self, part: Conv, read: Read, stored: Stored) -> dict[str, Any]:
        """The sizes that a convolution is specialised for."""
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


def _weight_kind(weight: Array) -> str:
    return narrowest(*of_array(weight)) or "i64"


def _matrix(part: Dense | Sparse) -> Array | None:
    """Weights as (sources, targets); None for a list of so few that a matrix would be no help."""
    if isinstance(part, Dense):
        return np.asarray(part.weight.T)
    shape = (part.fan_in, len(part.indptr) - 1)
    if shape[0] * shape[1] > min(LARGE, 40 * part.weight.size):
        return None
    matrix = np.zeros(shape, np.int64)
    np.add.at(matrix, (part.indices, part.rows), part.weight)
    return matrix


def _tap_rows(weight: Array, groups: int) -> Array:
    """(out, in / groups, *kernel) -> (in, *kernel, out / groups)."""
    out = len(weight) // groups
    return np.concatenate([np.moveaxis(weight[g * out : (g + 1) * out], 0, -1) for g in range(groups)])


def _up(number: int, unit: int) -> int:
    """The multiple of a unit that is no smaller."""
    return -(-number // unit) * unit


def _phase_taps(part: Conv) -> tuple[int, int, int]:
    """Taps of the longest phase of the stride in height and width, and the taps of all phases if all were as long."""
    kernel, stride = two(part.weight.shape[2:]), two(part.stride)
    height, width = (-(-k // s) for k, s in zip(kernel, stride, strict=True))
    return height, width, height * width * stride[0] * stride[1]


def _phase_rows(weight: Array, stride: Sequence[int], whole: bool = False) -> Array:
    """(out, in, *kernel) -> (in, ...): the taps of each phase of the stride together, backwards, out last (spk_convrow.h).

    `whole`: every phase is filled up with zeros in front to the length of the longest (spk_convhalo.h).
    """
    two = weight.reshape(*weight.shape[:2], 1, -1) if weight.ndim == 3 else weight
    sh, sw = (1, *stride) if weight.ndim == 3 else tuple(stride)
    taps = np.moveaxis(two, 0, -1)  # (in, kernel height, kernel width, out)
    if whole:
        taps = np.pad(taps, ((0, 0), (0, -taps.shape[1] % sh), (0, -taps.shape[2] % sw), (0, 0)))
    parts = [
        taps[:, py::sh, px::sw][:, ::-1, ::-1].reshape(len(taps), -1)
        for py in range(min(sh, taps.shape[1]))
        for px in range(min(sw, taps.shape[2]))
    ]
    return np.concatenate(parts, axis=1)
