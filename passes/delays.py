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
    shorter of two) that max_delay allows. share_delays: "axonal" gives every source one delay, the weighted median of its
    synapses'; a number makes the delays of a layer so many values at most, the best in the sum of |weight| times steps; both before
    max_delay and delay_step. Delays of synapses of weight zero are dropped, and those that a whole layer shares are
    moved to its operand, both exactly.
    """

    max_delay: int | None = None
    delay_step: int | None = None
    share_delays: int | str | None = None
    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    name: ClassVar[str] = "delays"
    levels: ClassVar[tuple[str, ...]] = ("float",)
    #: Options that ask for this pass.
    asked_by: ClassVar[tuple[str, ...]] = ("max_delay", "delay_step", "share_delays")

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The graph with other delays. Raises CompileError SPK001 for an option out of range."""
        if self.max_delay is not None and self.max_delay < 0:
            raise CompileError("SPK001", f"max_delay must be at least 0, not {self.max_delay}")
        if self.delay_step is not None and self.delay_step < 1:
            raise CompileError("SPK001", f"delay_step must be at least 1, not {self.delay_step}")
        share = self.share_delays
        if share is not None and share != "axonal" and not (isinstance(share, int) and share >= 1):
            raise CompileError("SPK001", f"share_delays is 'axonal' or how many values a layer may have, not {share!r}")
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
        now = np.where(live, self._rounded(self._shared(node, graph, before)), 0)
        change = np.abs(now - before)
        if change.any():
            given = {"max-delay": self.max_delay, "delay-step": self.delay_step, "share-delays": self.share_delays}
            asked = " ".join(f"--{option} {value}" for option, value in given.items() if value is not None)
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

    def _shared(self, node: Dense | Sparse | Conv, graph: Graph, delay: Array) -> Array:
        """Delays of fewer values: one a source, or a few a layer; those of weightless synapses do not count."""
        if self.share_delays is None:
            return delay
        weight = np.abs(node.weight).astype(np.float64)
        if self.share_delays != "axonal":
            assert isinstance(self.share_delays, int)
            values, place = np.unique(delay, return_inverse=True)
            mass = np.bincount(place.ravel(), weights=weight.ravel(), minlength=len(values))
            return np.asarray(few_values(values, mass, self.share_delays)[place.reshape(delay.shape)])
        if isinstance(node, Conv):
            # A kernel has a delay for each input channel and tap, at every position the same: one a channel.
            sources = np.zeros(delay.shape, np.int64) + np.arange(delay.shape[1]).reshape(1, -1, *(1,) * (delay.ndim - 2))
            width = delay.shape[0] // node.groups
            sources += (np.arange(delay.shape[0]) // width * delay.shape[1]).reshape(-1, *(1,) * (delay.ndim - 1))
        elif isinstance(node, Dense):
            sources = np.broadcast_to(np.arange(delay.shape[1]), delay.shape)
        else:
            sources = node.indices
        found = np.array(delay)
        for source in np.unique(sources[weight > 0]):
            own = sources == source
            found[own] = few_values(*_masses(delay[own], weight[own]), 1)[0]
        return found

    def _rounded(self, delay: Array) -> Array:
        step = self.delay_step or 1
        found = -((step - 2 * delay) // (2 * step)) * step if step > 1 else delay
        if self.max_delay is not None:
            found = np.minimum(found, self.max_delay // step * step)
        return np.asarray(found)


def _masses(delay: Array, weight: Array) -> tuple[Array, Array]:
    """The different delays, rising, and the sum of the weights of each."""
    values, place = np.unique(delay, return_inverse=True)
    return values, np.bincount(place.ravel(), weights=weight.ravel(), minlength=len(values))


def few_values(values: Array, mass: Array, most: int) -> Array:
    """For each of these values, rising, the one that stands for it, of at most so many: those with the least sum of mass times
    distance. Optimal, by dynamic programming over the groups that neighbours form; a group is stood for by its weighted median.
    """
    count = len(values)
    if count <= most:
        return values.copy()
    cost = np.zeros((count, count))
    middle = np.zeros((count, count), np.int64)
    for first in range(count):
        for last in range(first, count):
            part, sums = values[first : last + 1], np.cumsum(mass[first : last + 1])
            median = int(np.searchsorted(sums, sums[-1] / 2))
            middle[first, last] = part[median]
            cost[first, last] = float(np.sum(mass[first : last + 1] * np.abs(part - part[median])))
    best = cost[0].copy()
    cuts: list[Array] = []
    for _ in range(1, most):
        # The last group begins after `cut`.
        total = np.array(
            [[best[cut] + cost[cut + 1, last] if cut < last else np.inf for cut in range(count)] for last in range(count)]
        )
        cuts.append(np.where(total.min(axis=1) < best, total.argmin(axis=1), -1))
        best = np.minimum(best, total.min(axis=1))
    found, last = values.copy(), count - 1
    for cut in (*reversed(cuts), None):
        begin = -1 if cut is None else int(cut[last])
        if begin < 0 and cut is not None:
            continue  # as good with one group fewer
        found[begin + 1 : last + 1] = middle[begin + 1, last]
        last = begin
    return found


def is_axonal(node: Dense | Sparse | Conv, shape: tuple[int, ...]) -> bool:
    """Whether all synapses of a source have the same delay; the operand has this shape."""
    table = connections(node, shape)
    low = np.full(table.shape[1], np.iinfo(np.int64).max)
    high = np.full(table.shape[1], -1)
    np.minimum.at(low, table.columns, table.delay)
    np.maximum.at(high, table.columns, table.delay)
    return bool(np.all((high < 0) | (low == high)))
