"""Delays: shorter and coarser ones, and the forms that cost less, which are recognised.

A target keeps a slot of a buffer for every step of the longest delay, so that shorter delays are less memory; delays of few values
share their slots. What needs no delay per synapse is written without: a layer whose delays are all alike reads its source that much
later. A layer in which every source has one delay is in axonal form; that is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.connections import connections
from spikec.ir.graph import Graph
from spikec.ir.ops import Conv, Dense, Node, Sparse
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.costs import Judge
from spikec.passes.groups import WEIGHTED, measure


@dataclass(frozen=True)
class Delays:
    """Shorten and round the delays of synapses. Takes and gives the float level; approximate, always asked for.

    max_delay: delays above so many steps become so many. delay_step: delays become multiples of so many steps, the nearest (the
    shorter of two) that max_delay allows. Delays of synapses of weight zero are dropped, and those that a whole layer shares are
    moved to its operand, both exactly.
    """

    max_delay: int | None = None
    delay_step: int | None = None
    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    name: ClassVar[str] = "delays"
    levels: ClassVar[tuple[str, ...]] = ("float",)
    #: Options that ask for this pass.
    asked_by: ClassVar[tuple[str, ...]] = ("max_delay", "delay_step")

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The graph with other delays. Raises CompileError SPK001 for an option out of range."""
        if self.max_delay is not None and self.max_delay < 0:
            raise CompileError("SPK001", f"max_delay must be at least 0, not {self.max_delay}")
        if self.delay_step is not None and self.delay_step < 1:
            raise CompileError("SPK001", f"delay_step must be at least 1, not {self.delay_step}")
        after = graph.with_nodes(self._node(node, graph, ledger) for node in graph.nodes)
        if any(a is not b for a, b in zip(graph.nodes, after.nodes, strict=True)):
            measure(graph, after, self.calibrate, self.labels, ledger)
            if self.calibrate is not None and graph.outputs:
                figures = Judge(graph, self.calibrate, self.labels, "").figures(after)
                ledger.record("", "convention", "cost of the other delays on the calibration data", measured=figures)
        return after

    def _node(self, node: Node, graph: Graph, ledger: Ledger) -> Node:
        if not isinstance(node, WEIGHTED) or node.delay is None:
            return node
        live = node.weight != 0
        before = np.where(live, node.delay, 0).astype(np.int64)
        now = np.where(live, self._rounded(before), 0)
        change = np.abs(now - before)
        if change.any():
            asked = f"--max-delay {self.max_delay}" if self.max_delay is not None else f"--delay-step {self.delay_step}"
            ledger.record(
                node,
                "approximation",
                f"delays of at most {before.max()} steps and {len(np.unique(before[live]))} values become at most {now.max()} "
                f"steps and {len(np.unique(now[live]))} values",
                changed=int(np.count_nonzero(change)),
                total=int(np.count_nonzero(live)),
                largest=float(change.max()),
                asked=asked,
            )
        values = np.unique(now[live])
        (ref,) = node.inputs
        if len(values) <= 1:
            delay = int(values[0]) if len(values) else 0
            ledger.record(node, "exact", f"all synapses share a delay of {delay} steps: the layer reads its operand so much later")
            return replace(node, delay=None, inputs=(ref.later(delay),))
        result = replace(node, delay=now.astype(node.delay.dtype))
        assert isinstance(result, (Dense, Sparse, Conv))
        if is_axonal(result, graph.type_of(ref).shape):
            ledger.record(node, "convention", "every source has one delay: axonal form")
        return result if not np.array_equal(now, node.delay) else node

    def _rounded(self, delay: Array) -> Array:
        step = self.delay_step or 1
        found = -((step - 2 * delay) // (2 * step)) * step if step > 1 else delay
        if self.max_delay is not None:
            found = np.minimum(found, self.max_delay // step * step)
        return np.asarray(found)


def is_axonal(node: Dense | Sparse | Conv, shape: tuple[int, ...]) -> bool:
    """Whether all synapses of a source have the same delay; the operand has this shape."""
    table = connections(node, shape)
    low = np.full(table.shape[1], np.iinfo(np.int64).max)
    high = np.full(table.shape[1], -1)
    np.minimum.at(low, table.columns, table.delay)
    np.maximum.at(high, table.columns, table.delay)
    return bool(np.all((high < 0) | (low == high)))
