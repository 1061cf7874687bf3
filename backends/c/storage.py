"""The network's memory: a member for every buffer and every state."""

from __future__ import annotations

import re
from bisect import bisect
from typing import Any

import numpy as np

from spikec.backends.c.exprs import C_TYPES, literal
from spikec.backends.c.memory import ALIGN, Life, place
from spikec.backends.c.neurons import Neurons
from spikec.backends.c.parts import DTYPE, WIDTH, Member, StateRow, event_room, tail, width_of
from spikec.backends.c.plan import Halo, Stored, arranged, state_kinds
from spikec.backends.c.sums import Sums
from spikec.ir.interpret import record_name
from spikec.ir.ops import Constant, Input, Neuron, Node, spread
from spikec.memory import LayerMemory


class Storage(Sums, Neurons):
    """Buffers and states."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.layers: list[LayerMemory] = []

    def storage(self) -> None:
        """Members for every buffer that somebody reads. Sums come first: they may change how a buffer is kept."""
        for node in self.graph.nodes:
            if node.name in self.plan.sums:
                self.owner = node.name
                self.prepare(self.plan.sums[node.name])
        for node in self.graph.neurons:
            self.owner = node.name
            kinds = state_kinds(self.plan, node)
            stored = self.plan.stored[node.name, ""]
            for state in node.program.states:
                kind, length, halo = kinds[state.name], stored.size, None
                if self.merged.get(node.name, ("", None, ""))[2] == state.name:
                    total = self.plan.stored[self.merged[node.name][0], ""]
                    kind, halo = total.kind, total.halo
                    length = halo.length if halo else length
                length += self.room(stored.size) if self.integer else 0
                name = self.member(f"s_{node.name}_{state.name}", C_TYPES[kind], length, WIDTH[kind])
                if self.merged.get(node.name, ("", None, ""))[2] == state.name:
                    total.member = name
                self.states.append(StateRow(node, state.name, name, kind, halo))
                self.initialise(node, state.name, state.init, name, kind, halo)
            self.choose_lanes(node)
        merged = {total for total, _, _ in self.merged.values()}
        for wire, stored in self.plan.stored.items():
            if wire[0] in self.plan.folded or wire[0] in merged:
                continue
            self.buffer(self.graph[wire[0]], stored)

    def buffer(self, node: Node, stored: Stored) -> None:
        """The members of one wire: its values, its events, or both."""
        if stored.ring > 1:
            self.rings.add(stored.ring)
        stored.member = self.name("x_" + record_name(stored.wire).replace(".", "_"))
        lists = isinstance(node, Neuron) and node.name in self.lanes and self.integer
        if stored.observed and stored.dense_depth < 0 and lists:
            stored.list_depth = max(stored.list_depth, 0)
            stored.listed = True
        elif stored.observed or not isinstance(node, Input):
            stored.dense_depth = max(stored.dense_depth, 0)
        owner = stored.wire[0]
        if stored.dense_depth >= 0:
            room = self.room(stored.size) if self.integer and owner in self.plan.sums else tail(stored.size)
            length = (stored.halo.length if stored.halo else stored.size * stored.ring) + room
            step = stored.ring == 1 and not stored.observed and not isinstance(node, (Neuron, Constant))
            self.members.append(Member(stored.member, C_TYPES[stored.kind], length, WIDTH[stored.kind], owner, step))
        if stored.list_depth >= 0:
            width, room = (2 if stored.index == "uint16_t" else 4), event_room(stored) * stored.ring
            step = stored.ring == 1 and not stored.listed
            self.members.append(Member(f"e_{stored.member}", stored.index, room, width, owner, step))
            self.members.append(Member(f"n_{stored.member}", "uint32_t", stored.ring, 4, owner))

    def initialise(self, node: Neuron, state: str, value: int | float, name: str, kind: str, halo: Halo | None) -> None:
        """The line that resets a state."""
        stored = self.plan.stored[node.name, ""]
        shape = self.graph.shape_of(node.name)
        if state in node.init:
            full = np.broadcast_to(spread(node.init[state], shape), shape).reshape(-1)
        else:
            full = np.full(stored.size, value, DTYPE[kind])
        full = full.astype(DTYPE[kind])
        if not full.size or not full.any():
            return
        at = "i" if halo is None else f"{halo.base}u + i / {halo.width}u * {halo.pitch}u + i % {halo.width}u"
        if bool((full == full[0]).all()):
            self.initial.append(f"for (i = 0; i < {stored.size}u; i++) {{ net->{name}[{at}] = {literal(full[0], kind)}; }}")
        elif halo is not None:
            data = self.constant(f"{node.name}_{state}_init", kind, arranged(full, stored.layout))
            self.initial.append(f"for (i = 0; i < {stored.size}u; i++) {{ net->{name}[{at}] = {data}[i]; }}")
        else:
            data = self.constant(f"{node.name}_{state}_init", kind, arranged(full, stored.layout))
            self.initial.append(f"memcpy(net->{name}, {data}, {stored.size}u * sizeof *net->{name});")

    def share(self) -> None:
        """Let buffers of a step that are never live together share their place; call when the step function is written.

        A buffer is live from the first layer whose code names it to the last one. The shared areas have one element type each,
        so that no memory is ever read as another type than it was written as.
        """
        for index, size in sorted(self.scratch.items()):
            bits = 16 if index == "uint16_t" else 32
            self.members.append(Member(f"scratch{bits}", index, size, bits // 8, step=True))
        elsewhere = "\n".join([*self.functions, *self.initial, *self.checks])
        named: dict[str, list[int]] = {}
        for number, line in enumerate(self.steps):
            for name in re.findall(r"net->(\w+)", line):
                named.setdefault(name, []).append(bisect(self.blocks, number))
        by_type: dict[str, list[Member]] = {}
        for member in self.members:
            if member.step and member.name in named and not re.search(rf"\b{member.name}\b", elsewhere):
                by_type.setdefault(member.c_type, []).append(member)
        for c_type, members in by_type.items():
            width = members[0].width
            lives = [Life(m.name, m.length, min(named[m.name]), max(named[m.name])) for m in members]
            align = ALIGN // width
            offsets, total = place(lives, align)
            if -(-total // align) >= sum(-(-life.size // align) for life in lives):
                continue
            area = self.name(f"shared_{c_type.removesuffix('_t')}")
            self.shared |= {name: (area, offset) for name, offset in offsets.items()}
            self.members = [m for m in self.members if m.name not in offsets]
            self.members.append(Member(area, c_type, total, width))
            self.layers += [LayerMemory(m.owner, shared=m.length * width) for m in members]
        self.steps = [re.sub(r"net->(\w+)", self._place, line) for line in self.steps]

    def _place(self, found: re.Match[str]) -> str:
        if found[1] not in self.shared:
            return found[0]
        return f"(net->{self.shared[found[1]][0]} + {self.p}at_{found[1]})"

    def ordered(self) -> list[Member]:
        """The members as they lie in memory: a few numbers first, which need not begin a cache line, and
        last what a reset leaves."""
        return sorted(self.members, key=lambda member: (member.made, member.aligned))

    def bytes(self) -> int:
        """What the caller provides, whatever the alignment."""
        total = 8 * -(-4 * (1 + len(self.rings)) // 8) + 8 * max(len(self.counters), 1)
        for member in self.ordered():
            unit = ALIGN if member.aligned else member.width
            total = -(-total // unit) * unit + max(member.length, 1) * member.width
        return -(-total // ALIGN) * ALIGN + ALIGN - 1

    def memory(self) -> list[LayerMemory]:
        """What each layer takes, in the order of the graph."""
        rows = {node.name: LayerMemory(node.name) for node in self.graph.nodes}
        for member in self.members:
            if member.owner:
                rows[member.owner].kept += member.length * member.width
                rows[member.owner].unpacked += member.length * member.width if member.made else 0
        for item in self.layers:
            if item.layer:
                rows[item.layer].shared += item.shared
        for name, c_type, array in self.arrays:
            rows[self.owners[name]].constants += array.size * width_of(c_type)
        return [row for row in rows.values() if row.kept or row.shared or row.constants]
