"""Pruning: synapses of little effect become zero, and whole neurons go.

Single synapses are ranked by their share of what reaches their layer: w^2, times the mean square of the source on the calibration
data (a synapse has an effect only when its source sends), divided by the sum over all synapses of the layer that rank at least as
high. That last step, layer-adaptive magnitude pruning (Lee et al., ICLR 2021), makes ranks of different layers comparable and never
empties a layer. Neurons are ranked by the mean square of what they send times the squares of the weights that read it, so that
dormant neurons go first. What was ranked low by mistake, a short fine-tune repairs: `spikec.recover`.

A neuron that goes takes all of its synapses with it, and saves every engine time that single synapses save none of. So where
calibration data tell what both cost, as many of the synapses that have to go do so with their neuron as costs no more answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np

from spikec.bits import FLOAT_BITS, MIXED, layer_bytes, widths_of
from spikec.diagnostics import CompileError
from spikec.inputs import recode
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret, record_name
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Neuron, Node, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.compensate import compensated, expendable, saliency, workable
from spikec.passes.groups import WEIGHTED, measure
from spikec.passes.rounding import STEPS, moments
from spikec.passes.shrink import shrink
from spikec.score import answers, scored_output
from spikec.target import Target

#: At most so many calibration samples are looked at.
SAMPLES: Final = 256
#: Share of the neurons that is tried to go whole where synapses have to go.
WHOLE: Final = 0.25
#: What the ledger says where it was tried.
TRIED: Final = "share of the neurons that goes whole"
#: And where neurons or synapses went.
GONE: Final = "neurons of little effect removed"
CUT: Final = "synapses pruned"
_PATTERN: Final = re.compile(r"(?:(\d+):(\d+)|block(\d+))")
Weighted = Dense | Sparse | Conv


@dataclass(frozen=True)
class Prune:
    """Remove synapses and neurons of little effect. Takes and gives the float level; approximate, always asked for.

    prune: share of all synapses to remove, 0 to 1. prune_structured: share of the neurons (of the channels, in a convolution) of
    every hidden layer to remove; prune is a share of what is left by then. None: with calibration data, WHOLE of them where no more
    answers are lost than with single synapses alone, as many synapses being left; 0: single synapses.
    prune_scope: "global" ranks all layers together, "layer" takes the share from each.
    prune_pattern: "" for single synapses; "block16" for 16 neighbouring targets of a source at once, which vector units use;
    "2:4" keeps 2 of every 4 neighbouring targets of a source, whatever the share. max_synapses, max_bytes: prune just as much as a
    budget asks for, the bytes being those of the weights, packed at their bits (32 where the target runs floats; mixed bits are
    themselves what keeps to it). keep_layers: names that stay whole.
    """

    prune: float | None = None
    prune_structured: float | None = None
    prune_scope: str = "global"
    prune_pattern: str = ""
    max_synapses: int | None = None
    max_bytes: int | None = None
    keep_layers: tuple[str, ...] = ()
    bits: int | str | None = None
    target: Target | None = None
    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    name: ClassVar[str] = "prune"
    levels: ClassVar[tuple[str, ...]] = ("float",)
    #: Options that ask for this pass.
    asked_by: ClassVar[tuple[str, ...]] = ("prune", "prune_structured", "prune_pattern", "max_synapses", "max_bytes")

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The smaller graph. Raises CompileError SPK001 for an option out of range, SPK219 for a budget that cannot be met."""
        self._check(graph)
        after = self._weighed(graph, ledger) if self._may_weigh(graph) else self._pruned(graph, ledger)
        measure(graph, after, self.calibrate, self.labels, ledger)
        return after

    def _pruned(self, graph: Graph, ledger: Ledger, weak: Mapping[str, Array] | None = None) -> Graph:
        """Without the neurons that were asked for, or those given, and without synapses."""
        before, activity = graph, self.activity(graph)
        if self.prune_structured or weak:
            asked = self._asked() if weak else f"--prune-structured {self.prune_structured}"
            weak = self._weak_neurons(graph, activity) if weak is None else weak
            graph = shrink(self._without_sources(graph, weak, ledger, asked), ledger, weak)
            activity = self.activity(graph)
            was, now = _neurons(before), _neurons(graph)
            ledger.record("", "approximation", GONE, changed=was - now, total=was, asked=asked)
        cut = self.cut(graph, activity, ledger)
        return shrink(cut, ledger) if cut is not graph else graph

    # How much goes whole ---------------------------------------------------------------------------------------------

    def _may_weigh(self, graph: Graph) -> bool:
        """Whether neurons may go for synapses, and there is what tells."""
        pattern = self._pattern()
        some = self.prune or self.max_synapses is not None or (self.max_bytes is not None and self.bits != MIXED)
        free = (
            self.prune_structured is None and self.prune_scope == "global" and not self.keep_layers and not (pattern and pattern[0])
        )
        return bool(some and free and self.calibrate is not None and graph.outputs)

    def _weighed(self, graph: Graph, ledger: Ledger) -> Graph:
        """The graph without single synapses; or without some neurons and fewer synapses besides, where no more answers are lost
        so, the standard error of the difference allowed for."""
        single, whole = Ledger(), Ledger()
        single.pass_name = whole.pass_name = ledger.pass_name
        one = self._pruned(graph, single)
        other = replace(self, prune_structured=WHOLE)._together(graph, whole) if single.entries else None  # else nothing has to go
        if other is None:
            ledger.entries += single.entries
            return one
        wanted = self._answers(graph, graph) if self.labels is None else self.labels
        before, after = (self._right(wanted, self._answers(graph, each)) for each in (one, other))
        change = after - before
        taken = bool(change.mean() >= -np.sqrt(np.square(change).sum()) / len(change))
        figures = {"share": WHOLE if taken else 0.0, "right with single synapses": float(before.mean())}
        figures[f"with {WHOLE:g} of the neurons"] = float(after.mean())
        ledger.record("", "convention", TRIED, measured=figures)
        ledger.entries += (whole if taken else single).entries
        return other if taken else one

    def _together(self, graph: Graph, ledger: Ledger) -> Graph | None:
        """Pruned with a share of the neurons, and of single synapses as many as are too many then; None if there are none."""
        weak = self._weak_neurons(graph, {}, made_good=True)
        if not any(mask.any() for mask in weak.values()):
            return None
        left = self.places(shrink(graph, Ledger(), weak))
        share = max(0.0, 1 - (1 - (self.prune or 0.0)) * self.places(graph) / max(left, 1))
        found = replace(self, prune=share)._pruned(graph, ledger, weak)
        return found if any(entry.what == CUT for entry in ledger) else None

    def places(self, graph: Graph) -> int:
        """Weights of the layers that lose some, those that are zero too."""
        return sum(node.weight.size for node in graph.nodes if isinstance(node, WEIGHTED) and self.takes(node, graph))

    def _answers(self, graph: Graph, changed: Graph) -> Array:
        """What a changed graph answers to the calibration data; of every step where every step has a label."""
        assert self.calibrate is not None
        output = interpret(changed, recode(graph, changed, self.calibrate)).outputs[scored_output(graph)]
        return answers(output, self.labels is not None and self.labels.ndim == 2)

    @staticmethod
    def _right(wanted: Array, found: Array) -> Array:
        """Of every sample the share of right answers (samples,); those below 0 do not count."""
        counted = (wanted >= 0).reshape(len(wanted), -1)
        right = (found == wanted).reshape(len(wanted), -1) & counted
        return np.asarray(right.sum(axis=1) / np.maximum(counted.sum(axis=1), 1))

    def _check(self, graph: Graph) -> None:
        for option, share in (("prune", self.prune), ("prune_structured", self.prune_structured)):
            if share is not None and not 0 <= share < 1:
                raise CompileError("SPK001", f"{option} is a share from 0 up to but without 1, not {share}")
        if self.prune_scope not in ("global", "layer"):
            raise CompileError("SPK001", f"prune_scope is 'global' or 'layer', not '{self.prune_scope}'")
        if self.prune_pattern and not self._pattern():
            raise CompileError("SPK001", f"'{self.prune_pattern}' is no pattern", fix="give one like block16 or 2:4")
        for option, budget in (("max_synapses", self.max_synapses), ("max_bytes", self.max_bytes)):
            if budget is not None and budget < 1:
                raise CompileError("SPK001", f"{option} must be at least 1, not {budget}")
        for name in self.keep_layers:
            if name not in graph:
                raise CompileError("SPK010", f"keep_layers: there is no layer '{name}'")

    def _pattern(self) -> tuple[int, int] | None:
        """(kept, of so many neighbours); blocks are (0, width)."""
        found = _PATTERN.fullmatch(self.prune_pattern)
        if not found:
            return None
        if found[3]:
            return (0, int(found[3])) if int(found[3]) > 1 else None
        return (int(found[1]), int(found[2])) if 0 < int(found[1]) < int(found[2]) else None

    def _widths(self, graph: Graph) -> dict[str, int]:
        """Bits of every layer's weights, as they will be stored."""
        layers = [node.name for node in graph.nodes if isinstance(node, WEIGHTED)]
        if self.bits is None and self.target is not None and self.target.level == "float":
            return dict.fromkeys(layers, FLOAT_BITS)
        try:
            return widths_of(None if self.bits == MIXED else self.bits, graph, range(1, 17), "a layer")
        except CompileError:  # layers that later passes make; the quantizer knows them
            return widths_of(None, graph, range(1, 17), "a layer")

    def takes(self, node: Weighted, graph: Graph) -> bool:
        """Whether a layer may lose synapses."""
        return node.name not in self.keep_layers and not isinstance(graph[node.inputs[0].node], Constant)

    # Synapses --------------------------------------------------------------------------------------------------------

    def activity(self, graph: Graph) -> dict[str, Array]:
        """What every source of weights sends on the calibration data: (2, *shape), mean and mean square; empty without data."""
        return _activity(graph, self.calibrate)

    def cut(self, graph: Graph, activity: Mapping[str, Array], ledger: Ledger) -> Graph:
        """The graph without the synapses that go, whose weights are zero, and with those that stay as they make good for them."""
        keep = self._chosen(graph, activity)
        if not keep:
            return graph
        cut = graph.with_nodes(self._cut(node, keep[node.name], ledger) if node.name in keep else node for node in graph.nodes)
        return self._compensated(graph, keep, ledger, self._asked()) if self.calibrate is not None else cut

    def _chosen(self, graph: Graph, activity: Mapping[str, Array]) -> dict[str, Array]:
        """Which synapses stay: with calibration data chosen in rounds, each of what the one before left and has made good for."""
        keep = self.masks(graph, activity)
        pattern = self._pattern() if self.prune_pattern else None
        if not keep or self.calibrate is None or (pattern and pattern[0]):
            return keep
        layers = {node.name: node for node in graph.nodes if isinstance(node, WEIGHTED) and node.name in keep}
        count = sum(node.weight.size for node in layers.values())
        left = sum(int(np.count_nonzero(mask)) for mask in keep.values()) / count
        data = self._seen()
        wires = [record_name((ref.node, ref.port)) for node in layers.values() for ref in node.inputs]
        records = interpret(graph, data, record=list(dict.fromkeys(wires))).records
        seen = {name: found for name, node in layers.items() if (found := moments(graph, node, records)) is not None}
        rounds = max(1, math.ceil(-math.log2(left))) if left else 1  # in each about half of what is left goes
        now, masks = graph, {name: np.asarray(node.weight != 0) for name, node in layers.items()}
        for number in range(1, rounds + 1):
            if not all(workable(masks[name]) for name in seen):
                return keep
            weights = {node.name: node.weight for node in now.nodes if isinstance(node, WEIGHTED)}
            strength = {name: saliency(weights[name], masks[name], found) for name, found in seen.items()}
            if number == rounds:
                return self.masks(now, activity, strength)
            rule = replace(self, prune=1 - left ** (number / rounds), max_synapses=None, max_bytes=None)
            masks = rule.masks(now, activity, strength)
            now = self._compensated(graph, masks, Ledger(), "")
        return keep

    def masks(self, graph: Graph, activity: Mapping[str, Array], matters: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Which synapses stay, by layer; nothing where none have to go.

        matters: of some layers, how much each synapse does, in place of its square times what its source sends.
        """
        layers = [node for node in graph.nodes if isinstance(node, WEIGHTED) and self.takes(node, graph)]
        strength = {node.name: np.square(node.weight.astype(np.float64)) * _of_source(node, activity) for node in layers}
        strength |= {name: array for name, array in (matters or {}).items() if name in strength}
        pattern = self._pattern() if self.prune_pattern else None
        if pattern and pattern[0]:
            masks = {node.name: _n_of_m(strength[node.name], *pattern) for node in layers}
            return masks
        width = pattern[1] if pattern else 1
        rank = {node.name: _adaptive(strength[node.name], width if node.weight.ndim > 1 else 1) for node in layers}
        total = sum(array.size for array in rank.values())
        if not total or (self.prune is None and self.max_synapses is None and self.max_bytes is None):
            return {}

        def kept(share: float) -> dict[str, Array]:
            if self.prune_scope == "layer":
                return {name: array >= _quantile(array, share) for name, array in rank.items()}
            limit = _quantile(np.concatenate([array.ravel() for array in rank.values()]), share)
            return {name: array >= limit for name, array in rank.items()}

        def synapses(masks: Mapping[str, Array]) -> int:
            return sum(int(np.count_nonzero(masks[node.name] & (node.weight != 0))) for node in layers)

        share = self.prune or 0.0
        others = [node for node in graph.nodes if isinstance(node, WEIGHTED) and node.name not in rank]
        fixed_count = sum(int(np.count_nonzero(node.weight)) for node in others)
        widths = self._widths(graph)
        fixed_bytes = sum(layer_bytes(node, widths[node.name]) for node in others)
        budgets: list[tuple[str, int, Callable[[Mapping[str, Array]], int]]] = []
        if self.max_synapses is not None:
            budgets.append(("synapses", self.max_synapses, lambda masks: synapses(masks) + fixed_count))
        if self.max_bytes is not None and self.bits != MIXED:
            budgets.append(
                (
                    "bytes",
                    self.max_bytes,
                    lambda masks: (
                        fixed_bytes + sum(layer_bytes(n, widths[n.name], masks[n.name] & (n.weight != 0)) for n in layers)
                    ),
                )
            )
        for what, budget, cost in budgets:
            share = max(share, _smallest_share(lambda s, cost=cost: cost(kept(s)), budget, what))  # type: ignore[misc]  # bound default
        return kept(share) if share > 0 else {}

    def _cut(self, node: Node, keep: Array, ledger: Ledger) -> Node:
        assert isinstance(node, WEIGHTED)
        gone = ~keep & (node.weight != 0)
        if not gone.any():
            return node
        asked = self._asked()
        ledger.record(
            node,
            "approximation",
            CUT,
            changed=int(np.count_nonzero(gone)),
            total=int(np.count_nonzero(node.weight)),
            largest=float(np.abs(node.weight[gone]).max()),
            asked=asked,
        )
        return replace(node, weight=np.where(keep, node.weight, node.weight.dtype.type(0)))

    def _asked(self) -> str:
        return next(f"--{option.replace('_', '-')}" for option in self.asked_by if getattr(self, option))

    def _compensated(self, graph: Graph, keep: Mapping[str, Array], ledger: Ledger, asked: str) -> Graph:
        return compensated(graph, keep, self._seen(), ledger, asked)

    def _seen(self) -> dict[str, Array]:
        """The calibration data that second moments are taken of: as many as tell sources apart."""
        return {name: array[: max(1, STEPS // array.shape[1])] for name, array in (self.calibrate or {}).items()}

    # Neurons ---------------------------------------------------------------------------------------------------------

    def _without_sources(self, graph: Graph, weak: Mapping[str, Array], ledger: Ledger, asked: str) -> Graph:
        """The graph whose layers do without what weak neurons send, if calibration data tell how."""
        keep = {}
        for node in graph.nodes:
            if isinstance(node, Dense) and self.takes(node, graph) and node.inputs[0].node in weak and not node.inputs[0].port:
                mask = weak[node.inputs[0].node]
                if mask.ndim == 1 and mask.any():
                    keep[node.name] = np.broadcast_to(~mask, node.weight.shape) & (node.weight != 0)
        return self._compensated(graph, keep, ledger, asked) if keep and self.calibrate is not None else graph

    def _readers(self, graph: Graph, node: Neuron) -> list[tuple[Array, Array]]:
        """Weights and second moments of the layers that read a population, from the calibration data; none if not of all."""
        users = [user for user, index in graph.users[node.name] if not user.inputs[index].port]
        layers = [user for user in users if isinstance(user, Dense) and user.delay is None]
        if self.calibrate is None or len(layers) < len(graph.users[node.name]) or len(graph.shape_of(node.name)) != 1:
            return []  # before anything is run
        records = interpret(graph, self._seen(), record=[record_name((node.name, ""))]).records
        found = []
        for layer in layers:
            seen = moments(graph, layer, records)
            if seen is None:
                return []
            found.append((layer.weight, seen))
        return found

    def _weak_neurons(self, graph: Graph, activity: Mapping[str, Array], made_good: bool = False) -> dict[str, Array]:
        """The share of every hidden population, or of its channels, with the least effect on its readers; or only of populations
        whose readers can make good for what goes."""
        effect: dict[str, Array] = {}
        for node in graph.nodes:
            if isinstance(node, WEIGHTED) and not isinstance(graph[node.inputs[0].node], Constant):
                for name, part in _effect_on(graph, node).items():
                    effect[name] = effect[name] + part if name in effect else part
        shown = {ref.node for _, ref in graph.outputs}
        weak = {}
        for node in graph.neurons:
            if node.name in effect and node.name not in shown and node.name not in self.keep_layers:
                value = effect[node.name] * _mean_square(activity, node.name, effect[node.name].shape)
                if value.ndim > 1:
                    value = np.broadcast_to(value.sum(axis=tuple(range(1, value.ndim)), keepdims=True), value.shape)
                units = len(value)
                order = np.argsort(value.reshape(units, -1)[:, 0], kind="stable")
                count = int((self.prune_structured or 0) * units)
                readers = self._readers(graph, node)
                if made_good and not readers:
                    continue
                mask = np.zeros(value.shape, bool)
                mask[expendable(readers, count) if readers else order[:count]] = True
                weak[node.name] = mask
        return weak


# ------------------------------------------------------------------------------------------------------------ ranking


def _adaptive(strength: Array, width: int) -> Array:
    """The share of each synapse, or block of `width` neighbouring targets, in all that are no weaker; in the weight's shape."""
    blocks = _blocks(strength, width) if width > 1 else strength.ravel()
    order = np.argsort(blocks, kind="stable")
    rest = np.cumsum(blocks[order][::-1])[::-1]
    share = np.empty_like(blocks)
    share[order] = blocks[order] / np.where(rest > 0, rest, 1)
    if width == 1:
        return share.reshape(strength.shape)
    rows = -(-strength.shape[0] // width)
    table = np.repeat(share.reshape(rows, -1), width, axis=0)[: strength.shape[0]]
    return np.asarray(table.reshape(strength.shape))


def _blocks(strength: Array, width: int) -> Array:
    """Sums over blocks of `width` neighbours on axis 0 (targets), row-major over (blocks, everything else)."""
    flat = strength.reshape(strength.shape[0], -1)
    padded = np.zeros((-(-flat.shape[0] // width) * width, flat.shape[1]))
    padded[: flat.shape[0]] = flat
    return np.asarray(padded.reshape(-1, width, flat.shape[1]).sum(axis=1).ravel())


def _n_of_m(strength: Array, n: int, m: int) -> Array:
    """Of every m neighbouring targets of a source the n strongest; a rest of fewer than m keeps n of them too."""
    if strength.ndim == 1:
        return np.ones(strength.shape, bool)
    flat = strength.reshape(strength.shape[0], -1)
    keep = np.zeros(flat.shape, bool)
    for start in range(0, len(flat), m):
        part = flat[start : start + m]
        best = np.argsort(-part, axis=0, kind="stable")[:n]
        np.put_along_axis(keep[start : start + m], best, True, axis=0)
    return keep.reshape(strength.shape)


def _quantile(ranks: Array, share: float) -> float:
    """The smallest rank that stays when this share goes."""
    flat = np.sort(ranks.ravel())
    return float(flat[min(round(share * flat.size), flat.size - 1)]) if flat.size else 0.0


def _smallest_share(cost: Callable[[float], int], budget: int, what: str) -> float:
    if cost(0.0) <= budget:
        return 0.0
    low, high = 0.0, 0.9999
    if cost(high) > budget:
        raise CompileError(
            "SPK219",
            f"no pruning reaches {budget} {what}: {cost(high)} are left",
            fix=f"allow more {what}, or remove neurons (--prune-structured)",
        )
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= budget else (middle, high)
    return high


# ----------------------------------------------------------------------------------------------------------- activity


def _activity(graph: Graph, calibrate: Mapping[str, Array] | None) -> dict[str, Array]:
    """What every source of weights sends on the calibration data: (2, *shape), mean and mean square; empty without data."""
    if calibrate is None:
        return {}
    data = {name: array[:SAMPLES] for name, array in calibrate.items()}
    wires = {(ref.node, ref.port) for node in graph.nodes if isinstance(node, WEIGHTED) for ref in node.inputs}
    wires |= {(node.name, "") for node in graph.neurons}
    records = interpret(graph, data, record=[record_name(wire) for wire in sorted(wires)]).records
    table = {}
    for wire in wires:
        values = records[record_name(wire)].astype(np.float64)
        table[record_name(wire)] = np.stack([values.mean(axis=(0, 1)), np.square(values).mean(axis=(0, 1))])
    return table


def _of_source(node: Weighted, activity: Mapping[str, Array]) -> Array:
    """The mean square of what each synapse reads, in a shape that broadcasts against the weight; 1 without data."""
    (ref,) = node.inputs
    found = activity.get(record_name((ref.node, ref.port)))
    if found is None:
        return np.ones(())
    # A source that was silent in this data may speak in other data: it ranks low, not at zero.
    square = np.maximum(found[1], 1e-3 * max(float(found[1].max(initial=0)), 1e-9))
    if isinstance(node, Sparse):
        return np.asarray(square[node.indices])
    if isinstance(node, Dense):
        return np.asarray(square.reshape(-1, square.shape[-1]).mean(axis=0))
    channels = square.reshape(square.shape[0], -1).mean(axis=1)
    width, outs = node.weight.shape[1], node.weight.shape[0] // node.groups
    rows = np.repeat(channels.reshape(node.groups, width), outs, axis=0)
    return rows.reshape(*rows.shape, *(1,) * (node.weight.ndim - 2))


def _mean_square(activity: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> Array:
    found = activity.get(record_name((name, "")))
    return np.ones(shape) if found is None else np.asarray(found[1])


def _effect_on(graph: Graph, node: Weighted) -> dict[str, Array]:
    """For the populations behind a layer, the sum of squares of the weights that read each neuron.

    What lies between (reshape, gather, concat, pools, sums, scales) is followed backwards.
    """
    square = np.square(node.weight.astype(np.float64))
    (ref,) = node.inputs
    shape = graph.type_of(ref).shape
    if isinstance(node, Dense):
        fan: Array = np.broadcast_to(square.sum(axis=0), shape)
    elif isinstance(node, Sparse):
        fan = np.bincount(node.indices, weights=square, minlength=node.fan_in)
    else:
        taps = square.reshape(node.groups, -1, *node.weight.shape[1:]).sum(axis=1)
        channels = taps.reshape(node.groups * node.weight.shape[1], -1).sum(axis=1)
        fan = np.broadcast_to(channels.reshape(-1, *(1,) * (len(shape) - 1)), shape)
    return _behind(graph, ref, fan)


def _behind(graph: Graph, ref: Ref, fan: Array, seen: frozenset[str] = frozenset()) -> dict[str, Array]:
    node = graph[ref.node]
    if node.name in seen:
        return {}
    seen |= {node.name}
    if isinstance(node, Neuron):
        return {node.name: fan}
    parts: list[tuple[Ref, Array]] = []
    if isinstance(node, (Add, Scale)):
        parts = [(operand, fan) for operand in node.inputs]
    elif isinstance(node, Reshape):
        parts = [(node.inputs[0], fan.reshape(graph.type_of(node.inputs[0]).shape))]
    elif isinstance(node, Gather):
        shape = graph.type_of(node.inputs[0]).shape
        size = int(np.prod(shape))
        parts = [(node.inputs[0], np.bincount(node.indices.ravel(), weights=fan.ravel(), minlength=size).reshape(shape))]
    elif isinstance(node, Concat):
        ends = np.cumsum([graph.type_of(operand).shape[node.axis] for operand in node.inputs])[:-1]
        parts = list(zip(node.inputs, np.split(fan, ends, axis=node.axis), strict=True))
    elif isinstance(node, Pool):
        shape = graph.type_of(node.inputs[0]).shape
        channels = fan.reshape(fan.shape[0], -1).mean(axis=1)
        parts = [(node.inputs[0], np.broadcast_to(channels.reshape(-1, *(1,) * (len(shape) - 1)), shape))]
    table: dict[str, Array] = {}
    for operand, part in parts:
        for name, value in _behind(graph, operand, np.asarray(part), seen).items():
            table[name] = table[name] + value if name in table else value
    return table


def _neurons(graph: Graph) -> int:
    return sum(graph.types[node.name][0][1].size for node in graph.neurons)
