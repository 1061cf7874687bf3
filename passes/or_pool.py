"""Maximum pools over spikes become neurons: a spike leaves a window in the step in which one arrives.

The maximum of zeros and ones is their disjunction: a sum over the window, and a neuron without memory that spikes above one half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.ops import Conv, Neuron, Node, Pool, Ref
from spikec.ir.text import parse_program
from spikec.ledger import Ledger
from spikec.passes.rewrite import fresh_name
from spikec.target import Target

_ANY = "neuron @any(a) state(v = 0) { v = 0 * v + a s = v > 0.5 v = select(s, 0, v) emit s }"


@dataclass(frozen=True)
class OrPool:
    """Maximum pools over spikes as neurons, for targets without the operation `pool`. Float level, exact."""

    target: Target
    name: ClassVar[str] = "or-pool"
    levels: ClassVar[tuple[str, ...]] = ("float",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """A graph without maximum pools over spikes."""
        if "pool" in self.target.operations:
            return graph
        program = parse_program(_ANY)
        taken = set(graph.by_name)
        nodes: list[Node] = []
        for node in graph.nodes:
            if not isinstance(node, Pool) or node.mode != "max" or graph.type_of(node.inputs[0]).kind != "spike":
                nodes.append(node)
                continue
            channels = graph.type_of(node.inputs[0]).shape[0]
            window = Conv(
                name=fresh_name(taken, f"{node.name}_sum"),
                inputs=node.inputs,
                weight=np.ones((channels, 1, *node.kernel), np.float32),
                stride=node.stride,
                padding=node.padding,
                groups=channels,
                loc=node.loc,
            )
            nodes += [window, Neuron(name=node.name, inputs=(Ref(window.name),), program=program, loc=node.loc)]
            ledger.record(node, "exact", "the maximum of spikes becomes a neuron that spikes when any of them is there")
        return graph.with_nodes(nodes)
