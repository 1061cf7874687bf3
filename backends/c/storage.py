"""The network's memory: a member for every buffer and every state."""

from __future__ import annotations

import numpy as np

from spikec.backends.c.exprs import C_TYPES, literal
from spikec.backends.c.parts import DTYPE, WIDTH, Member, event_room, rest
from spikec.backends.c.plan import arranged, state_kinds
from spikec.backends.c.sums import Sums
from spikec.ir.interpret import record_name
from spikec.ir.ops import Input, Neuron, spread


class Storage(Sums):
    """Buffers and states."""

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
                room = stored.size * stored.ring + rest(stored.size)
                self.members.append(Member(stored.member, C_TYPES[stored.kind], room, WIDTH[stored.kind]))
            if stored.list_depth >= 0:
                width = 2 if stored.index == "uint16_t" else 4
                self.members.append(Member(f"e_{stored.member}", stored.index, event_room(stored) * stored.ring, width))
                self.members.append(Member(f"n_{stored.member}", "uint32_t", stored.ring, 4))
        for node in self.graph.neurons:
            kinds = state_kinds(self.plan, node)
            size = self.plan.stored[node.name, ""].size
            for state in node.program.states:
                name = self.member(f"s_{node.name}_{state.name}", C_TYPES[kinds[state.name]], size, WIDTH[kinds[state.name]])
                self.states.append((node, state.name, name, kinds[state.name]))
                self.initialise(node, state.name, state.init, name, kinds[state.name])

    def initialise(self, node: Neuron, state: str, value: int | float, name: str, kind: str) -> None:
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
        if bool((full == full[0]).all()):
            self.initial.append(f"for (i = 0; i < {stored.size}u; i++) {{ net->{name}[i] = {literal(full[0], kind)}; }}")
        else:
            data = self.constant(f"{node.name}_{state}_init", kind, arranged(full, stored.layout))
            self.initial.append(f"memcpy(net->{name}, {data}, sizeof net->{name});")

    def bytes(self) -> int:
        """What the caller provides, whatever the alignment; scratch becomes a member here."""
        for index, size in sorted(self.scratch.items()):
            bits = 16 if index == "uint16_t" else 32
            self.members.append(Member(f"scratch{bits}", index, size, bits // 8))
        total = 64 + 64 * -(-8 * max(len(self.counters), 1) // 64) + 64 * -(-4 * len(self.rings) // 64)
        return total + sum(64 * -(-m.length * m.width // 64) for m in self.members if m.length) + 63
