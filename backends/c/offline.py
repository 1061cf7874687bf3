"""Offline mode: whole samples, layer by layer over blocks of steps. Writes offline.c, which a program links only if it wants it.

A row is a step of a sample; the samples follow each other, and every state begins anew where one does. A block of rows goes
through one layer after the other, so that a layer's weights are read once a block. Layers whose weights a matrix unit takes have
two ways: event by event, with the same kernels as one step at a time, or as tiles (spk_tiles.h); which one is decided for every
block by how many events there are.

A loop (a strongly connected part of the graph) goes through a block row by row, all of its layers in turn; what stands before and
behind it goes layer by layer. A delay is a matter of which row is read: a wire that is read late keeps the last rows of the block
before, and in front of them a row of zeros for what lies before a sample.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from spikec.backends.c.absorb import absorbed
from spikec.backends.c.assembly import Assembly, embedded, header_name
from spikec.backends.c.elements import Elements
from spikec.backends.c.exprs import C_TYPES, Lanes, vector_loop
from spikec.backends.c.forms import Choices
from spikec.backends.c.parts import API, WIDTH, Member, Network, event_room, tail
from spikec.backends.c.plan import Halo, Layout, Read, Stored, Sum, Weighted, arranged, order_of
from spikec.backends.c.sums import _SumState
from spikec.backends.c.tiles import GROUP, PAIR, RUN, Tiles, tiles_of
from spikec.ir.graph import Graph
from spikec.ir.interpret import Wire, record_name
from spikec.ir.neuron import STEP, Call, Expr, Var
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Pool, Ref, spread
from spikec.ir.ranges import of_array
from spikec.ir.types import Array, narrowest
from spikec.ir.windows import ALWAYS, needed

#: Rows of a block: the most, unless what is kept of them would take more than so many bytes.
_ROWS: Final = 128
_BLOCK: Final = 3 << 19
#: A list of events is longer than one in so many of its places rarely, and what is behind it is not touched.
_SPARSE: Final = 8
#: Sums of 16 bits in a vector.
_VECTOR: Final = 32
#: What a row costs in nanoseconds because it is one of a block, about, and parts of a nanosecond that are counted.
_APART: Final = 30.0
_FINE: Final = 16
#: Layers with fewer connections a step are not worth a matrix unit.
_SMALL: Final = 1 << 10
#: Inputs that are active at the crossover, at most, for tiles to be kept; tiles may take so many times the weights' bytes.
_ACTIVE: Final = {"dense": 0.35, "conv": 0.04}
_GROWTH: Final = 4


@dataclass
class Offline:
    """What offline mode needs: offline.c, the binary file it may link, bytes of memory, and whether anything is tiled."""

    source: str
    binary: bytes | None
    binary_source: str | None
    bytes: int
    layers: tuple[str, ...]  # the populations whose sums a matrix unit may do

    @property
    def header(self) -> str:
        """offline.h."""
        return (
            "/* offline.h - offline mode is explained in spk.h. Written by spikec. */\n#ifndef SPK_OFFLINE_BYTES\n"
            f"#define SPK_OFFLINE_BYTES {self.bytes}u /* for spk_offline, whatever the alignment and the machine */\n#endif\n"
        )


@dataclass
class _Tiled:
    """A layer that the matrix unit may do: its sum, its population (None: the sums themselves are kept), the pool in front, the
    tiles."""

    total: Sum
    node: Neuron | None
    pool: Pool | None
    layout: Layout | None  # of what the tiles read
    tiles: Tiles | None = None
    lanes: Lanes | None = None
    moved: tuple[str, int, list[str]] | None = None  # where the tiles read, bytes of a row, and the lines that make one


def offline(graph: Graph, network: Network, choices: Choices | None = None, *, force: bool = False, embed: bool = True) -> Offline:
    """Offline mode for a generated network. `embed=False` writes every number as text, however many; `force` makes tiles wherever
    they are possible, and uses them always, for tests."""
    if not by_blocks(graph):
        return _steps(network)
    observed = {port.wire for port in network.ports}
    whole = absorbed(graph, observed, (choices or Choices()).absorbs)
    return _Blocks(whole, network, observed, choices, force).written(embed)


def _named(text: str, network: Network) -> str:
    p = network.prefix
    return text.replace("@header@", header_name(p)).replace("@n@", p).replace("@N@", p.upper())


def _steps(network: Network) -> Offline:
    """One step after the other."""
    why = "/* No layer gains from a matrix unit, or ports trail the model: one step after the other. */\n"
    return Offline(_named(f"{_HEAD}\n{_INCLUDES}\n{why}{_STEPS}", network), None, None, network.bytes, ())


def by_blocks(graph: Graph) -> bool:
    """Whether layers can run over many steps before the next: integers, and every port shows the model's own step."""
    return bool(graph.inputs) and graph.level != "float" and graph.max_lag == 0


def loops(graph: Graph) -> list[list[str]]:
    """The nodes in the order in which they run over a block, those of a loop together: the strongly connected parts of the graph,
    whatever the delays, each behind those that it reads; inside one the order of a step (Tarjan, 1972)."""
    place = {node.name: k for k, node in enumerate(graph.order)}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    waiting: set[str] = set()
    found: list[list[str]] = []
    for root in graph.order:
        if root.name in index:
            continue
        work = [(root.name, iter(root.inputs))]
        index[root.name] = low[root.name] = len(index)
        stack.append(root.name)
        waiting.add(root.name)
        while work:
            name, refs = work[-1]
            ref = next(refs, None)
            if ref is not None and ref.node not in index:
                index[ref.node] = low[ref.node] = len(index)
                stack.append(ref.node)
                waiting.add(ref.node)
                work.append((ref.node, iter(graph[ref.node].inputs)))
            elif ref is not None:
                if ref.node in waiting:
                    low[name] = min(low[name], index[ref.node])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    part = stack[stack.index(name) :]
                    del stack[-len(part) :]
                    waiting.difference_update(part)
                    found.append(sorted(part, key=place.__getitem__))
    return found


def looped(graph: Graph) -> set[str]:
    """The nodes that are part of a loop."""
    own = {node.name for node in graph.nodes if any(ref.node == node.name for ref in node.inputs)}
    return own.union(*(part for part in loops(graph) if len(part) > 1))


def apart(graph: Graph) -> set[Wire]:
    """Sums that are added to others in a loop and depend on nothing in it: kept for themselves they are done before, as a block."""
    inside = looped(graph)
    return {
        (ref.node, "")
        for node in graph.nodes
        if isinstance(node, Add) and node.name in inside
        for ref in node.inputs
        if ref.node not in inside and isinstance(graph[ref.node], (Dense, Conv)) and ref.delay == 0
    }


class _Blocks(Elements, Assembly):
    """A network over blocks of rows."""

    binary = "offline_weights.bin"
    marks = "SPK_ALIGNED SPK_UNUSED"  # tiles are used where there is a unit

    def __init__(self, graph: Graph, network: Network, observed: set[Wire], choices: Choices | None, force: bool) -> None:
        super().__init__(graph, f"{network.prefix}offline_", observed | apart(graph), choices)
        self.network, self.force = network, force
        self.inside = looped(graph)
        self.past: dict[str, int] = {}  # member -> rows before those of a block, where earlier steps are read
        self.tiled: dict[str, _Tiled] = {}  # by the name of the sum
        self.local: dict[str, Neuron] = {}  # sums that live within a row, and the population that reads each
        self.flagged: set[Wire] = set()  # kept as bytes only; who needs a list makes it
        self.rowed: dict[str, int] = {}  # member -> elements of a row
        self.beginning: dict[str, list[str]] = {}  # population -> the lines that reset its states
        self.units: list[str] = []
        self.totals: dict[Wire, int] = {}
        self.late: dict[Wire, str] = {}  # what counts the spikes of such a row, once it is moved
        self.brief: dict[Wire, _Tiled] = {}  # wires whose rows are moved as they come, and then of no use
        for total in self.plan.sums.values():
            reader = self.reader(total)
            outside = total.node.name not in self.inside
            if reader is not None and reader.name not in self.inside and len(reader.inputs) == 1 and outside:
                found = self.candidate(total, reader)
            else:
                found = self.candidate(total, None) if outside else None
            if found is not None:
                self.tiled[total.node.name] = found
            if reader is not None and (found is None or found.node is not None):
                self.local[total.node.name] = reader

    # ------------------------------------------------------------------------------------------------- what is tiled

    def candidate(self, total: Sum, node: Neuron | None) -> _Tiled | None:
        """A layer that the matrix unit may do, as far as can be seen before anything is prepared. `node`: its population, if
        that is computed with it."""
        part = total.parts[0]
        if not self.integer or len(total.parts) > 1 or total.rest or not isinstance(part, (Dense, Conv)) or part.delay is not None:
            return None
        read, pool = self.plan.weighted_read(part.inputs[0])
        if read.init is not None or not read.stored.binary or (node is not None and (node.start or node.stop is not None)):
            return None
        if isinstance(part, Dense) and len(self.graph.shape_of(total.node.name)) > 1:
            return None
        if pool is not None and int(np.prod(pool.kernel)) > 127:
            return None
        if node is not None and (any(emit.kind != "spike" for emit in node.program.emits) or _reads_step(node)):
            return None
        if node is None and needed(self.graph, total.node.name) != ALWAYS:  # in some steps it is not computed
            return None
        layout = read.stored.layout
        if pool is not None and layout is not None:
            shape = self.graph.shape_of(pool.name)
            layout = (shape[0], int(np.prod(shape[1:])))
        return _Tiled(total, node, pool, layout)

    def merge(self, total: Sum, state: _SumState) -> bool:
        return total.node.name not in self.tiled and super().merge(total, state)

    def halo(self, total: Sum) -> Halo | None:
        """Rows of whole vectors, for parts that add whole vectors."""
        found = None if total.node.name in self.tiled else super().halo(total)
        stored = self.plan.stored[total.node.name, ""]
        if found is None or stored.layout is None or not any(self.by_vectors(part) for part in total.parts):
            return found
        pitch = -(-found.pitch // _VECTOR) * _VECTOR
        base = found.base // found.pitch * pitch + found.base % found.pitch
        length = found.length + (found.length // found.pitch + 1) * (pitch - found.pitch) + 4 * _VECTOR
        return replace(found, pitch=pitch, base=base, length=length) if length // stored.layout[0] < 1 << 16 else found

    def by_vectors(self, part: Weighted) -> bool:
        """Whether events add whole vectors that hold several places of the map: where those of a channel follow each other along
        a row, and each would else wait for parts of what the one before has written. Events of one place wait longer so."""
        if not isinstance(part, Conv) or len(part.weight) not in (_VECTOR // 2, _VECTOR // 4):
            return False
        across = -(-part.weight.shape[-1] // part.stride[-1])
        places = _VECTOR // len(part.weight)
        stored = self.plan.stored[part.name, ""]
        read, pool = self.plan.weighted_read(part.inputs[0])
        along = read.stored.layout is None and pool is None
        return along and self.in_rows(part, stored) and -(-(across + places - 1) // places) < across

    def in_halo(self, part: Conv, weight: Array, halo: Halo) -> tuple[str, Array, dict[str, Any]]:
        """Weights as whole vectors, for each place that an event may have in the first of them."""
        header, rows, sizes = super().in_halo(part, weight, halo)
        if not self.by_vectors(part) or halo.pitch % _VECTOR:
            return header, rows, sizes
        high, across = int(sizes["SPK_NY"][:-1]), int(sizes["SPK_NX"][:-1])
        places = _VECTOR // len(weight)
        vectors = -(-(across + places - 1) // places)
        taps = rows.reshape(-1, high, across, len(weight))
        full = np.zeros((len(taps), places, high, vectors * places, len(weight)), rows.dtype)
        for place in range(places):
            full[:, place, :, place : place + across] = taps
        return "spk_convpair.h", full, {**sizes, "SPK_NX": f"{vectors}u"}

    def prepare(self, total: Sum) -> None:
        """As ever; a layer that turns out not to be tiled is prepared once more, since it may then be kept in other ways."""
        found = self.tiled.get(total.node.name)
        stored = self.plan.stored[total.node.name, ""]
        before = (stored.kind, stored.shift, stored.halo, list(self.members), set(self.names), set(self.rings))
        super().prepare(total)
        if found is None:
            return
        self.cut(found)
        if found.tiles is None:
            del self.tiled[total.node.name]
            if (reader := self.reader(total)) is not None:
                self.local[total.node.name] = reader
            stored.kind, stored.shift, stored.halo, self.members, self.names, self.rings = before
            super().prepare(total)

    def cut(self, found: _Tiled) -> None:
        """The tiles of a layer, if it is to have any."""
        total = found.total
        state = self.sum_state[total.node.name]
        part = total.parts[0]
        read, _ = self.plan.weighted_read(part.inputs[0])
        weight = part.weight >> state.shift
        late = state.bias is not None and not state.early
        fits = (narrowest(*of_array(weight)) or "i64") == "i8" and state.kind in ("i16", "i32")
        source = self.plan.stored[total.node.name, ""]
        connections = part.weight.size if isinstance(part, Dense) else part.weight[0].size * source.size
        if fits and state.direct and not late and not state.delayed and (self.force or connections >= _SMALL):
            assert isinstance(part, (Dense, Conv))
            shape = self.graph.type_of(part.inputs[0]).shape
            into = (int(np.prod(shape)),) if isinstance(part, Dense) else shape
            found.tiles = tiles_of(part, weight, into, self.graph.shape_of(part.name), found.layout, source.layout)
        if found.tiles is not None:
            found.tiles.kept = found.node is None
        if found.tiles is not None and not self.worth(found.tiles, part, read.stored.size):
            found.tiles = None

    def worth(self, tiles: Tiles, part: Any, inputs: int) -> bool:
        """Whether tiles are to be kept."""
        if not tiles.run or int(tiles.reach.max(initial=0)) > 127:
            return False
        if self.force:
            return True
        small = len(tiles.packed) * RUN * PAIR <= max(_GROWTH * part.weight.size, 1 << 16)
        return small and tiles.gain <= _ACTIVE[tiles.kind] * inputs

    def choose_lanes(self, node: Neuron) -> None:
        super().choose_lanes(node)
        for name, found in list(self.tiled.items()):
            if found.node is None or found.node is not node:
                continue
            assert self.plan.ranges is not None
            kinds = {row.state: row.kind for row in self.states if row.node is node}
            found.lanes = vector_loop(node.program, self.plan.ranges.neurons[node.name], self.operands(node), kinds, shifts=True)
            if found.lanes is None:
                del self.tiled[name]

    # ------------------------------------------------------------------------------------------------------- storage

    def buffer(self, node: Node, stored: Stored) -> None:
        """A wire between two layers is kept for all rows of a block; one that tiles read as bytes, with room behind."""
        sources = {self.plan.weighted_read(found.total.parts[0].inputs[0])[0].stored.wire for found in self.tiled.values()}
        past = stored.ring - 1
        if stored.wire in sources:
            stored.dense_depth = max(stored.dense_depth, 0)
            if past == 0:
                stored.list_depth = -1
                self.flagged.add(stored.wire)
        lists = isinstance(node, Neuron) and node.name in self.lanes and stored.list_depth >= 0
        lists = lists and all(found.node is not node for found in self.tiled.values())
        if stored.observed and stored.dense_depth < 0 and lists:
            stored.listed = True
        elif stored.observed or not isinstance(node, Input):
            stored.dense_depth = max(stored.dense_depth, 0)
        stored.member = self.name("x_" + record_name(stored.wire).replace(".", "_"))
        row = stored.wire[0] not in self.local
        if stored.dense_depth >= 0:
            length = stored.halo.length + tail(stored.size) if stored.halo else _whole(stored.size)
            self.members.append(Member(stored.member, C_TYPES[stored.kind], length, WIDTH[stored.kind], stored.wire[0]))
            if row:
                self.rowed[stored.member], self.past[stored.member] = length, past
        if stored.list_depth >= 0 or stored.wire in self.flagged:
            room, width = event_room(stored), 2 if stored.index == "uint16_t" else 4
            self.members.append(Member(f"e_{stored.member}", stored.index, room, width, stored.wire[0]))
            self.members.append(Member(f"n_{stored.member}", "uint32_t", 1, 4, stored.wire[0]))
            if row and stored.wire not in self.flagged:
                for member, pitch in ((f"e_{stored.member}", room), (f"n_{stored.member}", 1)):
                    self.rowed[member], self.past[member] = pitch, past
            if past:
                self.initial.append(f"net->n_{stored.member}[0] = 0;")
        if past and stored.dense_depth >= 0:
            self.initial.append(f"memset(net->{stored.member}, 0, {self.rowed[stored.member]}u * sizeof *net->{stored.member});")

    def rests(self, node: Neuron) -> None:
        """Every row is computed: what is at rest is known one step at a time only."""
        return

    def initialise(self, node: Neuron, *arguments: Any) -> None:
        before = len(self.initial)
        super().initialise(node, *arguments)
        self.beginning.setdefault(node.name, []).extend(self.initial[before:])

    def ordered(self) -> list[Member]:
        """What is kept of every row comes last: nothing of it is read before it is written, so it need not be cleared."""
        return sorted(self.members, key=lambda member: (member.name in self.rowed, member.aligned))

    def padded(self, array: Array) -> Array:
        flat = array.reshape(-1)
        return np.pad(flat, (0, _whole(array.shape[-1]) - array.shape[-1])) if self.integer else flat

    def packed(self, name: str, rows: Array, width: int, even: int = 0, odd: int = 0) -> str:
        """Whole rows: a block of steps reads them where they lie."""
        return self.constant(name, "i8", rows)

    def laid(self, array: Array) -> Array:
        return self.padded(array)

    def tight(self, rows: Array, out: int, state: _SumState, stored: Stored) -> bool:
        """Never: sums of a block of steps lie side by side."""
        return False

    def lead(self, member: str) -> int:
        """Rows before the first of a block: one of zeros, and those that are read late."""
        past = self.past.get(member, 0)
        return past + 1 if past else 0

    def base(self, member: str) -> str:
        """Where the first row of a block lies."""
        lead = self.lead(member)
        return f"net->{member}" + (f" + {lead * self.rowed[member]}u" if lead else "")

    def row(self, member: str, delay: int) -> str:
        """The number of the row of an earlier step, that of zeros where it lies before the sample."""
        lead = self.lead(member)
        number = f"r + {lead - delay}u" if lead else "r"
        return f"(net->t >= {delay} ? {number} : 0)" if delay else f"({number})" if lead else number

    def array(self, stored: Stored, delay: int = 0) -> str:
        pitch = self.rowed.get(stored.member)
        if stored.wire in self.brief:
            return f"net->{stored.member} + (size_t)r * net->apart_{stored.member}[0]"
        return f"net->{stored.member}" + ("" if pitch is None else f" + (size_t){self.row(stored.member, delay)} * {pitch}u")

    def cleared(self, stored: Stored) -> str:
        pitch = self.rowed.get(stored.member, _whole(stored.size))
        return f"memset({self.array(stored)}, 0, {pitch}u * sizeof *net->{stored.member});"

    def events(self, stored: Stored, delay: int = 0) -> tuple[str, str]:
        member = stored.member
        if stored.wire in self.flagged:
            made = f"{self.compact(stored.kind, stored.index, stored.size)}({self.array(stored)}, net->e_{member})"
            self.line(f"net->n_{member}[0] = {made};")
        pitch = self.rowed.get(f"e_{member}")
        if pitch is None:
            return f"net->e_{member}", f"net->n_{member}[0]"
        row = self.row(f"e_{member}", delay)
        return f"net->e_{member} + (size_t){row} * {pitch}u", f"net->n_{member}[{row}]"

    def arriving(self, part: Weighted, read: Read, rows: Stored, events: str, count: str) -> None:
        """As ever where it is noted when a source sends; else rows are looked up in the lists of the steps before."""
        found, x = self.later[part.name], read.stored
        if not found.whole:
            super().arriving(part, read, rows, events, count)
            return
        self.scratch[rows.index] = max(self.scratch.get(rows.index, 0), rows.size)
        delays = self.constant(f"{part.name}_delay", "i64", found.delay + read.delay, "uint32_t")
        member = f"e_{x.member}"
        lead, pitch = self.lead(member), self.rowed[member]
        self.line(f"const uint32_t sent = {count};")
        self.line(f"{rows.index} *event = net->scratch{16 if rows.index == 'uint16_t' else 32};")
        self.line("uint32_t count = 0, k;")
        self.line(f"for (k = 0; k < {len(found.delay)}u; k++) {{")
        self.line(f"  const uint32_t row = (uint32_t)net->t >= {delays}[k] ? r + {lead}u - {delays}[k] : 0;")
        self.line(f"  const {x.index} *from = net->{member} + (size_t)row * {pitch}u;")
        self.line(f"  for (i = 0; i < net->n_{x.member}[row]; i++) {{")
        self.line(f"    event[count++] = ({rows.index})(from[i] + k * {x.size}u);")
        self.line("  }")
        self.line("}")

    def fired(self, stored: Stored, counter: int) -> None:
        found = self.brief.get(stored.wire)
        if found is not None and found.pool is not None and int(np.prod(found.pool.kernel)) * 8 < 256:
            # Of rows that are summed as they come the sums are counted, which are fewer.
            assert found.moved is not None and found.tiles is not None
            size, shift = int(np.prod(self.graph.shape_of(found.pool.name))), (found.tiles.shifts or (0,))[0]
            sums = f"spk_ones({found.moved[0]} + (size_t)r * {found.moved[1]}u + {shift}u, {size}u)"
            self.late[stored.wire] = f"net->count[{counter}] += {sums};"
            self.line(f"if (!net->early_{stored.member}[0]) {{")
            self.line(f"net->count[{counter}] += spk_ones({self.array(stored)}, {stored.size}u);")
            self.line("}")
            return
        self.line(f"net->count[{counter}] += spk_ones({self.array(stored)}, {stored.size}u);")

    def input(self, node: Input, number: int) -> None:
        stored = self.plan.stored[node.name, ""]
        if stored.wire not in self.flagged or stored.api != "i8":
            begin = len(self.steps)
            super().input(node, number)
            if node.type.kind == "spike" and stored.dense_depth < 0 and stored.index == "uint16_t" and self.integer:
                self.listed_input(node, number, begin)
            return
        # Taken over while it is checked.
        total = f"&net->total[{self.total(stored.wire)}]"
        call = f"spk_flag_row(in + {number}, {stored.size}u, {self.array(stored)}, {total})"
        self.checks.append(f"  if ((status = {call}) != SPK_OK) {{ return status; }}")

    def listed_input(self, node: Input, number: int, begin: int) -> None:
        """A list of events is taken over while it is checked; anything else in two steps."""
        del self.steps[begin:]
        self.checks.pop()
        stored = self.plan.stored[node.name, ""]
        name = next(text.split()[2] for text in reversed(self.functions) if '"spk_input.h"' in text)
        self.functions.append(
            f"static spk_status {name}_take(const spk_in *in, uint16_t *SPK_RESTRICT event, uint32_t *count) {{\n"
            f"  spk_status status;\n"
            f"  if (in->index != NULL && in->value == NULL) {{ return spk_list_row(in, {stored.size}u, event, count); }}\n"
            f"  status = {name}_check(in);\n"
            f"  if (status == SPK_OK) {{ *count = {name}_load(in, NULL, event); }}\n"
            "  return status;\n}"
        )
        events, count = self.events(stored)
        self.checks.append(f"  if ((status = {name}_take(in + {number}, {events}, &{count})) != SPK_OK) {{ return status; }}")

    def total(self, wire: Wire) -> int:
        """Where the number of a wire's spikes in the block is kept."""
        return self.totals.setdefault(wire, len(self.totals))

    # --------------------------------------------------------------------------------------------------------- units

    def written(self, embed: bool) -> Offline:
        """offline.c and what belongs to it."""
        self.storage()
        for member in self.members:
            if member.name.startswith("s_"):
                member.length = max(member.length, _whole(member.length))
        numbers = {node.name: number for number, node in enumerate(self.graph.inputs)}
        for names in loops(self.graph):
            begin = len(self.steps)
            nodes = [self.graph[name] for name in names]
            first: Sequence[str] = ()
            for node in nodes:
                if node.name in self.plan.alias or node.name in self.plan.folded or node.name in self.local:
                    continue
                if isinstance(node, Neuron):
                    first = self.population(node)
                elif node.name in self.plan.sums:
                    self.sum(self.plan.sums[node.name])
                    if node.name in self.tiled:
                        first = self.tiles(self.tiled[node.name])
                else:
                    self.element(node, numbers)
            self.unit(nodes, begin, first)
        for index, size in sorted(self.scratch.items()):
            bits = 16 if index == "uint16_t" else 32
            self.members.append(Member(f"scratch{bits}", index, size, bits // 8))
        return self.text(self.network, embed) if self.tiled else _steps(self.network)

    def population(self, node: Neuron) -> Sequence[str]:
        """A population with the sums that it alone reads; what does all rows at once, if there is a matrix unit."""
        sums = [name for name, reader in self.local.items() if reader is node]
        for name in sums:
            self.sum(self.plan.sums[name])
        before = self.hurry(node)
        self.neuron(node)
        for found in before:
            assert found.moved is not None
            member = self.read_by(found).member
            self.line(f"if (net->early_{member}[0]) {{")
            for line in (*found.moved[2], self.late.get(self.read_by(found).wire, "")):
                self.line(line)
            self.line("}")
        tiled = self.tiled.get(sums[0]) if len(sums) == 1 else None
        return self.tiles(tiled) if tiled is not None else ()

    def hurry(self, node: Neuron) -> list[_Tiled]:
        """The layers behind a population for which its rows are moved as they come, while they are in the nearest cache: then
        one row is enough, unless it is recorded. Only where nobody else reads them, and tiles were used for the block before."""
        if any(found.node is node for found in self.tiled.values()):
            return []
        result = []
        for found in self.tiled.values():
            wire = self.read_by(found).wire
            if self.delay_of(found):
                continue
            moves = found.pool is not None or (found.tiles is not None and found.tiles.shifts not in ((), (0,)))
            if moves and wire[0] == node.name and wire in self.counts_of(node) and len(list(self.plan.users(wire))) == 1:
                self.brief[wire] = found
                member = self.read_by(found).member
                self.members += [Member(f"{what}_{member}", "uint32_t", 1, 4, node.name) for what in ("early", "apart")]
                self.initial.append(f"net->early_{member}[0] = 1;")
                self.prepare_moved(found)
                result.append(found)
        return result

    def read_by(self, found: _Tiled) -> Stored:
        """What a layer reads, before a pool."""
        return self.plan.weighted_read(found.total.parts[0].inputs[0])[0].stored

    def delay_of(self, found: _Tiled) -> int:
        """By how many steps a layer reads late."""
        return self.plan.weighted_read(found.total.parts[0].inputs[0])[0].delay

    def unit(self, nodes: Sequence[Node], begin: int, first: Sequence[str] = ()) -> None:
        """The function of a layer, or of all layers of a loop: all rows of a block, one after the other; `first` may do them all at
        once."""
        lines = self.steps[begin:]
        if not lines:
            return
        name = self.name(f"{self.p}{nodes[-1].name}_rows")
        resets, finals, counted = [], [], [pair for node in nodes for pair in self.counted(node)]
        for node in nodes:
            states = [(number, row) for number, row in enumerate(self.states) if row.node is node]
            resets += [f"memset(net->{row.member}, 0, sizeof net->{row.member});" for _, row in states]
            resets += self.beginning.get(node.name, [])
            finals += [f"{self.p}final(net, {number}u, r);" for number, _ in states]
        # What is under way for later steps: accumulators of connections with delays, and the rows that wait.
        named = set(re.findall(r"net->(\w+)", "\n".join(lines)))
        rings = sorted(int(ring[4:]) for ring in named if re.fullmatch(r"pos_\d+", ring))
        for member in self.members if rings else ():
            if member.name in named and member.name.startswith(("a_", "w_")):
                resets.append(f"memset(net->{member.name}, 0, sizeof net->{member.name});")
        body = [
            f"static SPK_APART void {name}(struct {self.p}state *net, const uint32_t rows) {{",
            "  uint32_t r, i;",
            "  uint32_t step = net->first;",
            "  (void)i;",
            *(f"  net->total[{place}] = net->count[{counter}];" for place, counter in counted),
            *(f"  {line}" for node in nodes for line in self.apart(node)),
            *first,
            "  for (r = 0; r < rows; r++) {",
            "  SPK_TILE_WARM();",
        ]
        if any("in + " in line for line in lines) and isinstance(nodes[0], Input):
            body.append(f"  const spk_in *const in = net->in + (size_t)r * {len(self.graph.inputs)}u;")
        body.append("  net->t = (int32_t)step;")
        body += [f"  net->pos_{ring} = step % {ring}u;" for ring in rings]
        if resets:
            body += ["  if (step == 0) {", *(f"    {line}" for line in resets), "  }"]
        body += [f"  {line}" if line else "" for line in lines]
        body.append("  if (++step == net->steps) {")
        body += [f"    {line}" for line in finals]
        body += ["    step = 0;", "  }", "  }"]
        body += [f"  net->total[{place}] = net->count[{counter}] - net->total[{place}];" for place, counter in counted]
        body.append("}")
        self.functions.append("\n".join(body))
        self.units.append(name)

    def apart(self, node: Node) -> list[str]:
        """How far apart the rows of a population lie that are of use for a moment, unless somebody records them."""
        lines = []
        for wire in self.brief if isinstance(node, Neuron) else ():
            if wire[0] == node.name:
                member = self.plan.stored[wire].member
                numbers = [k for k, port in enumerate(self.network.ports) if self.plan.read(Ref(*port.wire)).stored.wire == wire]
                wanted = " || ".join(["!net->early_" + member + "[0]", *(f"spk_recorded(net->out, {k}u)" for k in numbers)])
                lines.append(f"net->apart_{member}[0] = {wanted} ? {self.rowed[member]}u : 0;")
        return lines

    def counts_of(self, node: Neuron) -> list[Wire]:
        """The wires of a population whose spikes in a block are counted while they come."""
        wires = [(node.name, port) for port, _ in self.graph.types[node.name]]
        return [wire for wire in wires if wire in self.flagged and self.plan.stored[wire].api == "i8"]

    def counted(self, node: Node) -> list[tuple[int, int]]:
        """Where the spikes of a block that a matrix unit may read are counted, and the counters."""
        if not isinstance(node, Neuron):
            return []
        wires = [(node.name, port) for port, type_ in self.graph.types[node.name] if type_.kind == "spike"]
        return [(self.total(wire), self.counters.index(f"{record_name(wire)} spikes")) for wire in wires if wire in self.flagged]

    def tiles(self, found: _Tiled) -> list[str]:
        """The functions for the matrix unit, and the lines that begin the layer: whether it is used, and what is counted then."""
        tiles, node, part = found.tiles, found.node, found.total.parts[0]
        assert tiles is not None
        layer = (node or found.total.node).name
        p, name = self.p, self.name(f"{self.p}tile_{layer}")
        read, _ = self.plan.weighted_read(part.inputs[0])
        source, pitch = read.stored, self.rowed[read.stored.member]
        self.functions.append(self.neurons(found, name))
        state = self.sum_state[found.total.node.name]
        macros: dict[str, Any] = {
            "SPK_NAME": name,
            "SPK_NET": f"struct {p}state",
            "SPK_WIDE": tiles.wide,
            "SPK_PANELS": f"{tiles.panels}u",
        }
        macros["SPK_SHARE"] = f"{tiles.share}u"
        if state.bias is not None:
            bias = np.zeros(tiles.panels * tiles.wide, np.int64)
            bias[: len(state.bias)] = state.bias >> state.shift
            macros["SPK_BIAS"] = self.constant(f"{layer}_tile_bias", "i32", bias)
        before: list[str] = []
        x, x_pitch = self.base(source.member), pitch
        sender, port = source.wire
        plain = isinstance(self.graph[sender], (Input, Neuron)) and dict(self.graph.types[sender])[port].kind == "spike"
        plain = plain and source.wire in self.flagged and source.api == "i8"
        ports = [port for port, _ in self.graph.types[node.name]] if node is not None else []
        lines = ["  {"]
        if delay := read.delay:
            # The rows as they arrive, which at the beginning of a sample are zeros.
            member = self.name(f"d_{layer}")
            self.members.append(Member(member, "uint8_t", pitch, 1, layer))
            self.rowed[member] = pitch
            x = f"net->{member}"
            lines += [
                "    uint32_t t = step;",
                "    for (r = 0; r < rows; r++) {",
                "      net->t = (int32_t)t;",
                f"      memcpy({x} + (size_t)r * {pitch}u, {self.array(source, delay)}, {pitch}u);",
                "      if (++t == net->steps) { t = 0; }",
                "    }",
            ]
        late = x
        price, spent = round(tiles.event() * _FINE), round(tiles.nanoseconds * _FINE)
        saved = "(int64_t)1 << 40" if self.force else f"(int64_t)(events * {price}u) - (int64_t)rows * {spent}"
        events, least = f"net->total[{self.total(source.wire)}]", 0 if self.force else round(tiles.crossover() * 256)
        if delay or not plain:
            ones = self.constant(f"ones_{source.size}", "i8", np.pad(np.ones(source.size, np.int64), (0, pitch - source.size)))
            events = f"spk_total({x}, {ones}, {pitch}u, {pitch}u, rows)"
        lines += [
            f"    const uint64_t events = {events};",
            f"    uint64_t fired[{max(len(ports), 1)}] = {{0}};",
            f"    const int busy = SPK_TILE_BUSY(events * 256u >= (uint64_t)rows * {least}u);",
        ]
        shifts, apart = tiles.shifts or (0,), self.copies_apart(found)
        busy = "busy"
        if found.pool is not None or shifts != (0,):
            self.prepare_moved(found, f"{late} + (size_t)r * {pitch}u" if delay else "")
            assert found.moved is not None
            x, x_pitch, each = found.moved
            before = ["for (r = 0; r < rows; r++) {", *(f"  {line}" for line in each), "}"]
            if source.wire in self.brief:
                early = f"net->early_{source.member}[0]"
                lines += [f"    const uint32_t early = {early};", f"    {early} = (uint32_t)busy; /* in the next block */"]
                before[0] = "for (r = 0; !early && r < rows; r++) {"
                busy = "early || busy"
        lines.append(f"    if ({busy}) {{")
        macros["SPK_X_PITCH"] = f"{x_pitch}u"
        constants = [
            self.constant(f"{layer}_order", "i64", np.array(tiles.order), "uint32_t"),
            self.constant(f"{layer}_start", "i64", np.array(tiles.start), "uint32_t"),
            self.constant(f"{layer}_run", "i64", self.places(tiles, apart), "uint32_t"),
            self.constant(f"{layer}_tile", "i64", np.array(tiles.tile), "uint32_t"),
            self.constant(f"{layer}_packed", "i8", tiles.weights),
        ]
        header = [f"#define {key} {value}" for key, value in macros.items()]
        self.functions.append("\n".join([*header, '#include "spk_tiles.h"']))
        lines += [f"      {line}" for line in before]
        count = f"events * {tiles.unit}u"
        if not (tiles.reach == 1).all():
            into = self.graph.type_of(part.inputs[0])
            order = order_of(found.layout, int(np.prod(into.shape)))
            reach = np.pad(tiles.reach, (shifts[0], apart - len(order) - shifts[0]))
            table = self.constant(f"{part.name}_reach", "i8", reach)
            count = f"spk_total({x}, {table}, {x_pitch}u, {apart}u, rows) * {tiles.unit}u"
        lines += [
            f"      net->gain += {saved};",
            f"      net->count[{self.counters.index(f'{part.name} events')}] += events;",
            f"      net->count[{self.counters.index(f'{part.name} operations')}] += {count};",
            f"      {name}_tiles(net, {x}, {', '.join(constants)}, rows, step, net->steps, fired);",
        ]
        if node is None:
            lines.append("      (void)fired;")
        for number, port in enumerate(ports or [""]):
            wire = self.plan.stored[layer, port]
            if node is not None:
                counter = self.counters.index(f"{record_name((node.name, port))} spikes")
                lines.append(f"      net->count[{counter}] += fired[{number}];")
            if wire.list_depth >= 0:
                lines.append("      for (r = 0; r < rows; r++) {")
                events, room = self.events(wire)
                made = f"{self.compact(wire.kind, wire.index, wire.size)}({self.array(wire)}, {events})"
                lines += [f"        {room} = {made};", "      }"]
        for place, counter in self.counted(node) if node is not None else ():
            lines.append(f"      net->total[{place}] = net->count[{counter}] - net->total[{place}];")
        return [*lines, "      return;", "    }", "  }"]

    def places(self, tiles: Tiles, apart: int) -> Array:
        """Where the runs begin in a row."""
        shifts = tiles.shifts or (0,)
        return np.array([copy * apart + shifts[copy] + begin for copy, begin in tiles.run], np.int64)

    def copies_apart(self, found: _Tiled) -> int:
        """Bytes from one copy of a row to the next."""
        assert found.tiles is not None
        size = int(np.prod(self.graph.shape_of(found.pool.name))) if found.pool is not None else self.read_by(found).size
        return -(-(size + max(found.tiles.shifts or (0,))) // RUN) * RUN

    def prepare_moved(self, found: _Tiled, row: str = "") -> None:
        """Inputs that tiles do not read where they lie: sums over windows, copies from which runs are whole cache lines. `row`:
        text of a row, if it is not that of the wire."""
        assert found.tiles is not None
        if found.moved is not None:
            return
        shifts, source, apart = found.tiles.shifts or (0,), self.read_by(found), self.copies_apart(found)
        size = int(np.prod(self.graph.shape_of(found.pool.name))) if found.pool is not None else source.size
        layer = (found.node or found.total.node).name
        member = self.name(f"p_{layer}")
        pitch = (apart * len(shifts) // RUN | 1) * RUN
        self.members.append(Member(member, "uint8_t", pitch, 1, layer))
        self.rowed[member] = pitch
        first = f"net->{member} + (size_t)r * {pitch}u + {shifts[0]}u"
        row = row or self.array(source)
        lines = [f"memcpy({first}, {row}, {size}u);" if found.pool is None else f"{self.pooling(found, source)}({row}, {first});"]
        row = row if found.pool is None else first
        for copy, shift in enumerate(shifts[1:], start=1):
            lines.append(f"memcpy(net->{member} + (size_t)r * {pitch}u + {copy * apart + shift}u, {row}, {size}u);")
        found.moved = f"net->{member}", pitch, lines

    def pooling(self, found: _Tiled, source: Stored) -> str:
        """The function for a sum over windows."""
        pool = found.pool
        assert pool is not None
        into, out = self.graph.type_of(pool.inputs[0]).shape, self.graph.shape_of(pool.name)
        name = self.name(f"{self.p}tile_{(found.node or found.total.node).name}_pool")
        two = [(1, *axis) if len(axis) == 1 else tuple(axis) for axis in (into[1:], out[1:], pool.kernel, pool.stride)]
        space, out_space, kernel, stride = two
        vectors = source.layout is not None and found.layout is not None and into[0] % 8 == 0
        self.kernel(
            "spk_pool.h", SPK_NAME=name, SPK_X="uint8_t", SPK_Y="uint8_t", SPK_MAX=0, SPK_NAN=0, SPK_C=f"{into[0]}u",
            SPK_PACKED=int(vectors),
            SPK_HI=space[0], SPK_WI=space[1], SPK_HO=out_space[0], SPK_WO=out_space[1], SPK_KH=kernel[0], SPK_KW=kernel[1],
            SPK_SH=stride[0], SPK_SW=stride[1], SPK_PH=0, SPK_PW=0, SPK_IN_LAST=int(source.layout is not None),
            SPK_OUT_LAST=int(found.layout is not None),
        )  # fmt: skip
        return name

    def neurons(self, found: _Tiled, name: str) -> str:
        """The population for panels whose states are held in vectors: read, written, begun, a row, what a sample leaves."""
        lanes, tiles, node = found.lanes, found.tiles, found.node
        assert tiles is not None
        if node is None:
            return self.kept_sums(found, name)
        assert lanes is not None
        w, rows = lanes.bits, [(k, row) for k, row in enumerate(self.states) if row.node is node]
        net, each = f"struct {self.p}state *net", f"for (j = 0; j < {tiles.wide}u / SPK_N{w}; j++)"
        held = f"{name}_held *SPK_RESTRICT held"

        def function(what: str, parameters: str, lines: Sequence[str]) -> list[str]:
            body = [f"    {line}" for line in lines]
            unused = [f"  (void){parameter.split()[-1].lstrip('*')};" for parameter in parameters.split(", ")]
            begin = [f"SPK_INLINE_ANY void {name}_{what}({parameters}) {{", *unused]
            return [
                *begin,
                "  uint32_t j;",
                f"  SPK_UNROLL {each} {{",
                f"    const size_t k = i + j * SPK_N{w};",
                "    (void)k;",
                *body,
                "  }",
                "}",
            ]

        take = [f"held->{row.state}[j] = spk_load{w}_{row.kind}(net->{row.member} + k);" for _, row in rows]
        keep = [f"spk_store{w}_{row.kind}(net->{row.member} + k, held->{row.state}[j]);" for _, row in rows]
        ports = range(len(self.graph.types[node.name]))
        take += [f"held->fired{number}[j] = spk_set{w}(0);" for number in ports]
        size = self.plan.stored[node.name, ""].size
        count = [f"fired[{number}] += spk_lanes{w}(held->fired{number}[j], k < {size}u ? {size}u - k : 0);" for number in ports]
        first = [f"held->{row.state}[j] = {self.first_value(node, row.state, row.kind, w)};" for _, row in rows]
        step = [self.held_line(line, w) for line in lanes.lines]
        step = [f"const int32_t *const x0 = sums + j * SPK_N{w};", "(void)x0;", *step]
        for number, (port, _) in enumerate(self.graph.types[node.name]):
            wire = self.plan.stored[node.name, port]
            at = f"{self.base(wire.member)} + (size_t)row * {self.rowed[wire.member]}u + k"
            step.append(f"spk_flags{w}({at}, {lanes.emits[number]});")
            step.append(f"held->fired{number}[j] = spk_more{w}(held->fired{number}[j], {lanes.emits[number]});")
        finals = [f"  {self.p}part(net, {k}u, row, (uint32_t)i, {tiles.wide}u);" for k, _ in rows]
        held_are = [row.state for _, row in rows] + [f"fired{number}" for number in ports]
        members = " ".join(f"spk_x{w} {each}[{tiles.wide}u / SPK_N{w}];" for each in held_are)
        out = [f"typedef struct {name}_held {{ {members} }} {name}_held;"]
        out += function("take", f"{net}, size_t i, {held}", take)
        out += function("keep", f"{net}, size_t i, const {held}", keep)
        out += function("count", f"size_t i, const {held}, uint64_t *fired", count)
        out += function("first", f"size_t i, {held}", first)
        out += function("row", f"{net}, size_t i, const int32_t *SPK_RESTRICT sums, {held}, uint32_t row", step)
        out += [
            f"static void {name}_last({net}, size_t i, const {held}, uint32_t row) {{",
            f"  {name}_keep(net, i, held);",
            *finals,
        ]
        out += ["  (void)row;", "}"]
        return "\n".join(out)

    def kept_sums(self, found: _Tiled, name: str) -> str:
        """The same for sums that are kept as they are: there is nothing to hold, and no spike."""
        tiles, stored = found.tiles, self.plan.stored[found.total.node.name, ""]
        assert tiles is not None
        w = 16 if stored.kind == "i16" else 32
        net, held = f"struct {self.p}state *net", f"{name}_held *SPK_RESTRICT held"
        store = (
            f"spk_store{w}_{stored.kind}({self.base(stored.member)} + (size_t)row * {self.rowed[stored.member]}u + i + j * SPK_N{w}"
        )
        return f"""typedef struct {name}_held {{ uint32_t none; }} {name}_held;
SPK_INLINE_ANY void {name}_take({net}, size_t i, {held}) {{ (void)net; (void)i; held->none = 0; }}
SPK_INLINE_ANY void {name}_keep({net}, size_t i, const {held}) {{ (void)net; (void)i; (void)held; }}
SPK_INLINE_ANY void {name}_count(size_t i, const {held}, uint64_t *fired) {{ (void)i; (void)held; (void)fired; }}
SPK_INLINE_ANY void {name}_first(size_t i, {held}) {{ (void)i; (void)held; }}
SPK_INLINE_ANY void {name}_row({net}, size_t i, const int32_t *SPK_RESTRICT sums, {held}, uint32_t row) {{
  uint32_t j;
  (void)held;
  SPK_UNROLL for (j = 0; j < {tiles.wide}u / SPK_N{w}; j++) {{
    {store}, spk_sum{w}(sums + j * SPK_N{w}));
  }}
}}
static void {name}_last({net}, size_t i, const {held}, uint32_t row) {{ (void)net; (void)i; (void)held; (void)row; }}"""

    def held_line(self, line: str, w: int) -> str:
        """A line of the loop in vectors, with sums out of tiles and states that are held."""
        line = re.sub(rf"spk_load{w}_\w+\(x0 \+ i\)", f"spk_sum{w}(x0)", line)
        line = re.sub(rf"spk_load{w}_\w+\(s_(\w+) \+ i\)", r"held->\1[j]", line)
        line = re.sub(rf"spk_store{w}_\w+\(s_(\w+) \+ i, (.*)\);$", r"held->\1[j] = \2;", line)
        return line.replace(" + i)", " + k)")

    def row_view(self, stored: Stored, api: str, rows: int) -> str:
        """A row of the table of views for a wire that is kept as lists: those of a block are its ring."""
        (channels, space), room, lead = stored.layout or (0, 0), event_room(stored), self.lead(f"e_{stored.member}")
        source, width = ("SPK_FROM_LIST16", 2) if stored.index == "uint16_t" else ("SPK_FROM_LIST32", 4)
        struct = f"offsetof(struct {self.p}state, "
        return (
            f"{{{struct}e_{stored.member}) + {lead * room * width}u, {struct}slot), {struct}n_{stored.member}) + {lead * 4}u, "
            f"{rows}u, {stored.size}u, {channels}u, {space}u, 0u, {room}u, {source}, {API[api]}, 0}}"
        )

    def first_value(self, node: Neuron, state: str, kind: str, w: int) -> str:
        """A state at the beginning of a sample, as text."""
        declared = next(item.init for item in node.program.states if item.name == state)
        if state not in node.init:
            return f"spk_set{w}({int(declared)})"
        shape = self.graph.shape_of(node.name)
        full = np.broadcast_to(spread(node.init[state], shape), shape).reshape(-1)
        if bool((full == full[0]).all()):
            return f"spk_set{w}({int(full[0])})"
        data = self.constant(
            f"{node.name}_{state}_first", kind, self.padded(arranged(full, self.plan.stored[node.name, ""].layout))
        )
        return f"spk_load{w}_{kind}({data} + k)"

    # ---------------------------------------------------------------------------------------------------------- text

    def text(self, network: Network, embed: bool) -> Offline:
        """The file."""
        p = self.p
        states_are = [(row.node.name, row.state) for row in self.states]
        if sorted(self.counters) != sorted(network.counters) or states_are != [port.wire for port in network.states]:
            raise AssertionError("offline mode counts or keeps something else than the network")
        row_bytes = sum(
            member.length * member.width // (_SPARSE if member.name.startswith("e_") else 1)
            for member in self.members
            if member.name in self.rowed
        )
        rows = _ROWS
        while rows > GROUP and rows * row_bytes > _BLOCK:
            rows //= 2
        for member in self.members:
            if member.name in self.rowed:
                member.length = member.length * (rows + self.lead(member.name)) + RUN
        wide = max((found.tiles.wide for found in self.tiled.values() if found.tiles is not None), default=0)
        self.join()
        data, binary, binary_source = self.data(embed)
        if binary_source is not None:
            binary_source = embedded("offline_weights", p, len(binary or b""))
        fields = [f"  {'SPK_ALIGNED ' if m.aligned else ''}{m.c_type} {m.name}[{max(m.length, 1)}];" for m in self.ordered()]
        if wide:
            fields.append(f"  SPK_ALIGNED int32_t sums[2][{GROUP * wide}];")
        views, steps = [], []
        for port in network.ports:
            stored = self.plan.read(Ref(*port.wire)).stored
            if stored.listed:
                views.append(self.row_view(stored, port.api, rows))
                steps.append("0u")
                continue
            pitch = self.rowed.get(stored.member)
            view = self.view(stored.member, stored.size, stored.kind, port.api, stored.layout, stored.shift, 1)
            lead = self.lead(stored.member) * (pitch or 0) * WIDTH[stored.kind]
            views.append(view.replace(f"{stored.member})", f"{stored.member}) + {lead}u", 1) if lead else view)
            steps.append(f"{(pitch or 0) * WIDTH[stored.kind]}u")
        states = []
        for row, port in zip(self.states, network.states, strict=True):
            layout = self.plan.stored[row.node.name, ""].layout
            states.append(self.view(row.member, port.size, row.kind, port.api, layout, 0, 1, row.halo))
        where = [self.counters.index(name) for name in network.counters]
        checks = [line.replace("(in + ", f"(in + (size_t)r * {len(self.graph.inputs)}u + ") for line in self.checks]
        resets = []
        for state in self.states:
            resets.append(f"  memset(net->{state.member}, 0, sizeof net->{state.member});")
        resets += [f"  {line}" for line in self.initial]
        out = [
            _HEAD,
            f'#include "{header_name(network.prefix)}"',
            "",
            '#include "spk_core.h"',
            '#include "spk_int.h"' if self.integer else '#include "spk_float.h"\n#include "spk_int.h"',
            '#include "spk_vector.h"',
            '#include "spk_offline.h"',
            "",
            "#if SPK_TILES",
            data,
            "",
            f"enum {{ {p}block = {rows} }}; /* rows: steps that go through a layer before the next */",
            f"struct {p}state {{",
            "  int32_t t;      /* step of the row that is computed */",
            "  uint32_t first; /* step of the block's first row */",
            "  uint32_t steps; /* steps of a sample */",
            "  uint32_t slot;  /* row whose events are read */",
            "  int64_t gain;   /* what tiles have saved, in the least parts of nanoseconds */",
            *(f"  uint32_t pos_{ring};" for ring in sorted(self.rings)),
            "  uint64_t row;   /* the block's first row, counted over all samples */",
            "  const spk_in *in;",
            "  const spk_whole *out;",
            f"  uint64_t count[{max(len(self.counters), 1)}];",
            f"  uint64_t total[{max(len(self.totals), 1)}]; /* spikes of the block */",
            *fields,
            "};",
            f"typedef struct {p}state {p}memory;",
            "",
            *(_table("spk_view", f"{p}port_view", views)),
            *(_table("size_t", f"{p}port_row", steps)),
            *(_table("spk_view", f"{p}state_view", states)),
            *(_table("uint32_t", f"{p}counter", [f"{number}u" for number in where])),
            _FINAL.replace("@p@", p).replace("@n@", network.prefix) if states else "",
            *(text + "\n" for text in self.functions),
            f"static void {p}reset({p}memory *net) {{",
            "  uint32_t i;",
            "  (void)i;",
            "  (void)net;",
            *resets,
            "}",
            "",
            f"static spk_status {p}check({p}memory *net, const uint32_t rows) {{",
            "  const spk_in *const in = net->in;",
            "  spk_status status = SPK_OK;",
            "  uint32_t r;",
            "  for (r = 0; r < rows; r++) {",
            *(f"  {line}" for line in checks),
            "  }",
            "  return status;",
            "}",
            "",
        ]
        main = _MAIN.replace("@p@", p).replace("@n@", network.prefix).replace("@inputs@", str(len(self.graph.inputs)))
        kept = next((member.name for member in self.ordered() if member.name in self.rowed), None)
        zeroed = "sizeof *net" if kept is None else f"offsetof(struct {p}state, {kept})"
        main = main.replace("@zeroed@", zeroed)
        probe = _PROBE if self.inside or any(self.past.values()) else _LEFT
        main = main.replace("@probe@", probe.replace("@base@", str(round(_APART * _FINE))))
        calls = [f'    {unit}(net, rows);\n    SPK_PHASE("{unit.removeprefix(p).removesuffix("_rows")}");' for unit in self.units]
        main = main.replace("@units@", "\n".join(calls))
        late = []
        for member in self.ordered():
            if past := self.past.get(member.name):
                pitch = self.rowed[member.name]
                from_ = f"net->{member.name} + (size_t)(rows + 1u) * {pitch}u"
                late.append(f"    memmove(net->{member.name} + {pitch}u, {from_}, {past * pitch}u * sizeof *net->{member.name});")
        main = main.replace("@late@", "\n".join(late))
        finals = [f"      {p}final(net, {number}u, 0);" for number in range(len(states))]
        main = main.replace("@finals@", "\n".join(finals))
        main = main.replace("@ports@", str(len(network.ports))).replace("@counters@", str(len(self.counters)))
        if not self.counters:
            main = re.sub(r"  for \(k = 0; status == SPK_OK && out->counter.*?\n  }\n", "", main, flags=re.S)
        bytes_ = 128 + 8 * (max(len(self.counters), 1) + max(len(self.totals), 1)) + 2 * GROUP * wide * 4 + 64
        for member in self.ordered():
            bytes_ += -(-max(member.length, 1) * member.width // 64) * 64 + 64
        bytes_ = max(bytes_, network.bytes)
        out += [
            f"typedef char {p}check_size[sizeof({p}memory) + 63u <= {bytes_}u ? 1 : -1];",
            "",
            main,
            "#else",
            _named(_STEPS, network).rstrip(),
            "#endif",
        ]
        layers = tuple((found.node or found.total.node).name for found in self.tiled.values())
        return Offline("\n".join(out) + "\n", binary, binary_source, bytes_, layers)


def _whole(size: int) -> int:
    """Elements of a row: whole panels of 64, and what vectors write behind. An odd number of panels, so that rows do not meet in
    the same sets of a cache."""
    return (-(-(size + tail(size)) // 64) | 1) * 64


def _reads_step(node: Neuron) -> bool:
    def walk(expr: Expr) -> bool:
        if isinstance(expr, Var):
            return expr.name == STEP
        return isinstance(expr, Call) and any(walk(arg) for arg in expr.args)

    return any(walk(statement.expr) for statement in node.program.body)


def _table(c_type: str, name: str, rows: Sequence[str]) -> list[str]:
    return [f"static const {c_type} {name}[{len(rows)}] = {{\n" + "\n".join(f"  {row}," for row in rows) + "\n};"] if rows else []


_HEAD: Final = """/* offline.c - whole samples at once: spk_offline of spk.h. A program that never calls it needs no such file.
 * Written by spikec. */"""

_INCLUDES: Final = """#include "@header@"

#include "spk_core.h"
#include "spk_offline.h"
"""

#: How many rows are left for blocks: all; or, where there are loops or delays, those of the first sample first.
_LEFT: Final = "    const uint64_t left = (uint64_t)samples * steps - row;"
_PROBE: Final = """    /* The first sample fills blocks of its own: where the unit saves too little, the others run step by step. */
    const uint64_t left = (row < steps ? steps : (uint64_t)samples * steps) - row;
    if (SPK_TILES_LEAVE && row == steps && net->gain < (int64_t)steps * @base@) { break; }"""

_STEPS: Final = """size_t @n@offline_size(void) { return @n@size(); }

int @n@offline_tiles(void) { return 0; }

spk_status @n@offline(void *memory, size_t bytes, uint32_t samples, uint32_t steps, const spk_in *in, const spk_whole *out) {
  static const spk_in none[@N@INPUTS] = {{NULL, NULL, 0}};
  return spk_whole_steps(&@n@network, none, memory, bytes, 0, samples, steps, in, out);
}
"""

_FINAL: Final = """
/* States as a sample leaves them: whole, or the neurons `first` to first + count - 1 in the order in which they lie. */
static SPK_UNUSED void @p@final(const @p@memory *net, uint32_t state, uint32_t r) {
  const spk_port *const port = @n@network.state + state;
  const uint64_t sample = (net->row + r) / net->steps;
  if (net->out->state == NULL || net->out->state[state] == NULL) { return; }
  spk_view_read(@p@state_view + state, net, (unsigned char *)net->out->state[state] + sample * port->size * spk_width(port->type));
}

static SPK_UNUSED void @p@part(const @p@memory *net, uint32_t state, uint32_t r, uint32_t first, uint32_t count) {
  const spk_port *const port = @n@network.state + state;
  const uint64_t sample = (net->row + r) / net->steps;
  if (net->out->state == NULL || net->out->state[state] == NULL) { return; }
  spk_view_part(@p@state_view + state, net, first, count,
                (unsigned char *)net->out->state[state] + sample * port->size * spk_width(port->type));
}
"""

_MAIN: Final = """size_t @n@offline_size(void) { return sizeof(@p@memory) + 63u > @n@size() ? sizeof(@p@memory) + 63u : @n@size(); }

int @n@offline_tiles(void) { return spk_tiles_allowed(); }

spk_status @n@offline(void *memory, size_t bytes, uint32_t samples, uint32_t steps, const spk_in *in, const spk_whole *out) {
  @p@memory *net;
  spk_status status = SPK_OK;
  uint64_t row;
  uint32_t k, rows = 0;
  if (memory == NULL || in == NULL || out == NULL || bytes < @n@offline_size()) { return SPK_E_MEMORY; }
  if (steps > (uint32_t)INT32_MAX) { return SPK_E_STEPS; }
  for (k = 0; k < out->records; k++) {
    if (out->port[k] >= @ports@u) { return SPK_E_PORT; }
  }
  if (!spk_tiles_allowed()) {
    static const spk_in none[@inputs@] = {{NULL, NULL, 0}};
    return spk_whole_steps(&@n@network, none, memory, bytes, 0, samples, steps, in, out);
  }
  net = (@p@memory *)(void *)((unsigned char *)memory + (63u & (0u - (unsigned)((uintptr_t)memory & 63u))));
  memset(net, 0, @zeroed@); /* what rows are read from is written before */
  net->steps = steps;
  net->out = out;
  if (steps == 0) {
    net->steps = 1;
    @p@reset(net);
    for (net->row = 0; net->row < samples; net->row++) {
@finals@
    }
    return SPK_OK;
  }
  @p@reset(net);
  spk_tiles_begin();
  SPK_PHASE("begin");
  for (row = 0; row < (uint64_t)samples * steps; row += rows) {
@probe@
    rows = left < @p@block ? (uint32_t)left : (uint32_t)@p@block;
    net->row = row;
    net->first = (uint32_t)(row % steps);
    net->in = in + row * @inputs@u;
    memset(net->total, 0, sizeof net->total);
    status = @p@check(net, rows);
    if (status != SPK_OK) { break; }
    SPK_PHASE("check");
@units@
    for (k = 0; k < out->records; k++) {
      const uint32_t number = out->port[k];
      const size_t width = @n@network.port[number].size * spk_width(@n@network.port[number].type);
      unsigned char *const to = (unsigned char *)out->record[k] + row * width;
      spk_rows_read(@p@port_view + number, net, @p@port_row[number], &net->slot, rows, to);
    }
@late@
    SPK_PHASE("records");
  }
  spk_tiles_end();
  for (k = 0; status == SPK_OK && out->counter != NULL && k < @counters@u; k++) {
    out->counter[k] += net->count[@p@counter[k]];
  }
  if (status == SPK_OK && row < (uint64_t)samples * steps) {
    static const spk_in none[@inputs@] = {{NULL, NULL, 0}};
    return spk_whole_steps(&@n@network, none, memory, bytes, 1, samples, steps, in, out);
  }
  return status;
}
"""
