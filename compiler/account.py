"""Does the ledger account for every difference between the network as trained and what runs?

Looked at are the graphs themselves, not what the passes say of their work: a pass that changed the graph has to have recorded
something; only the quantizer may approximate where nothing was asked for; and between the graphs before and after it, populations
and synapses are the same, and every weight, decay, threshold and bias differs from the integer that stands for it, over its scale,
just by as much, at as many places, as its entry says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from spikec.build import Build
from spikec.ir.graph import Graph
from spikec.ir.neuron import Call, Expr, Num
from spikec.ir.ops import Concat, Conv, Dense, Gather, Input, Neuron, Reshape, Sparse
from spikec.ir.types import Array
from spikec.ledger import Entry
from spikec.passes.groups import silent_value
from spikec.pipeline import QUANTIZERS, Stage
from spikec.target import NativeNeuron, Target

WEIGHTED = (Dense, Sparse, Conv)


def unaccounted(build: Build) -> list[str]:
    """What differs and stands in no entry of the ledger, in words; nothing in a sound build without optimizations."""
    entries, stages = list(build.ledger), build.stages
    found = [f"{e.pass_name}: an approximation that nobody asked for: {e.what}" for e in entries if _unasked(e)]
    for before, after in pairwise(stages):
        own = [entry for entry in entries if entry.pass_name == after.name]
        if not own and _differs(before, after):
            found.append(f"{after.name}: changed the graph and recorded nothing")
        if after.name in QUANTIZERS:
            found += _numbers(before.graph, after.graph, own, build.target, after.name == "quantize")
    return found


def _unasked(entry: Entry) -> bool:
    return entry.kind == "approximation" and not entry.asked and entry.pass_name not in QUANTIZERS


def _differs(before: Stage, after: Stage) -> bool:
    return before.graph is not after.graph and before.graph != after.graph


def _numbers(before: Graph, after: Graph, entries: Sequence[Entry], target: Target, messages: bool) -> Iterator[str]:
    """Differences across the quantizer. messages: weights have taken in the unit of the messages that they read."""
    by_node: dict[str, list[Entry]] = {}
    for entry in entries:
        by_node.setdefault(entry.node, []).append(entry)
    scales = {entry.node: entry.measured["scale"] for entry in entries if "scale" in entry.measured}
    one, two = ({node.name: graph.shape_of(node.name) for node in graph.neurons} for graph in (before, after))
    if one != two:
        yield f"populations differ: {sorted(set(one.items()) ^ set(two.items()))}"
        return
    moved = [name for name, own in by_node.items() if any("becomes a synapse" in e.what for e in own)]
    given = [node for node in before.nodes if isinstance(node, WEIGHTED)]
    expected = {f"{node.name}_sum" if node.name in moved else node.name: node for node in given}
    layers = {node.name: node for node in after.nodes if isinstance(node, WEIGHTED)}
    extra = sorted(set(layers) - set(expected) - {f"{name}_bias" for name in moved})
    missing = sorted(set(expected) - set(layers))
    if extra or missing:
        yield f"layers of weights differ: {', '.join([*extra, *missing])}"
    for name, node in expected.items():
        told = [entry for entry in by_node.get(name, []) if entry.what.startswith("weights")]
        if name not in layers or not told:
            yield f"%{name}: its weights have no entry"
            continue
        # Synapses with exponents, which are not trained again, have their unit in words only, to six digits.
        scale = scales.get(name) or 1 / float(told[0].what.split("multiples of ")[1].split(",")[0])
        weight = node.weight.astype(np.float64)
        if layers[name].weight.shape != weight.shape:
            yield f"%{name}: its weights have another shape"
            continue
        carried = _message_unit(after, layers[name]) if messages else 1.0
        error = np.abs(layers[name].weight / scale / carried - weight)
        yield from _compared(
            name, "weights", error, by_node.get(name, []), (1e-9 if name in scales else 1e-5) * float(np.abs(weight).max(initial=0))
        )
    for population in before.neurons:
        fixed = after[population.name]
        assert isinstance(fixed, Neuron)
        native, own = target.native(fixed.program), by_node.get(population.name, [])
        if fixed.program.operations() & {">>", "rtz"} and _leaks(fixed) and not any("at every step" in e.what for e in own):
            yield f"%{population.name}: its states are rounded at every step, and no entry says so"
        if native is None or not native.rules:
            if not own and population.program.body != fixed.program.body and (population.params or _literals(population)):
                yield f"%{population.name}: its program has changed without an entry"
            continue
        # A layer's bias that moved is in the neuron's; one that is a synapse is not.
        behind = _behind(population.name, before)
        entered = any("bias moves into" in entry.what for name in behind for entry in by_node.get(name, ()))
        offset = silent_value(before, population.inputs[0]) if entered else np.zeros(1)
        scale = next((scales[name] for name in _behind(population.name, after) if name in scales), 0.0)
        yield from _native(population, fixed, native, own, scale, target, offset)


def _message_unit(graph: Graph, node: Dense | Sparse | Conv) -> float:
    """What a 1 that a layer reads stands for."""
    source = graph[node.inputs[0].node]
    while isinstance(source, (Reshape, Gather, Concat)):
        source = graph[source.inputs[0].node]
    return source.unit if isinstance(source, Input) and source.unit is not None else 1.0


def _leaks(node: Neuron) -> bool:
    """Whether decays of a native neuron do anything but keep or forget; a generated program says what it does by its shifts."""
    decays = [node.params[name] for name in ("du", "dv", "di", "dtheta", "dr") if name in node.params]
    return not decays or any(np.any((decay > 0) & (decay < 4095)) for decay in decays)


def _literals(node: Neuron) -> bool:
    """Whether numbers stand in a program."""

    def found(expr: Expr) -> bool:
        return isinstance(expr, Num) or (isinstance(expr, Call) and any(map(found, expr.args)))

    return any(found(statement.expr) for statement in node.program.body)


def _behind(name: str, graph: Graph) -> list[str]:
    """The layers of weights that a population receives from."""
    found: list[str] = []
    waiting = [ref.node for ref in graph[name].inputs]
    while waiting:
        node = graph[waiting.pop()]
        if isinstance(node, WEIGHTED):
            found.append(node.name)
        elif not isinstance(node, Neuron):
            waiting += [ref.node for ref in node.inputs]
    return found


def _native(
    node: Neuron, fixed: Neuron, native: NativeNeuron, entries: Sequence[Entry], scale: float, target: Target, offset: Array
) -> Iterator[str]:
    """The parameters of a native neuron, by the rules that make them."""
    one, shift = 1 << target.integer("decay_bits"), 1 << target.integer("membrane_shift")
    biases: dict[str, Array] = {}
    for name, rule in native.rules.items():
        kind, source = rule.split()
        value = np.asarray(node.params[source], np.float64) if source in node.params else None
        if value is None or not np.all(np.isfinite(value)):
            continue
        got = np.asarray(fixed.params[name], np.float64)
        if kind in ("decay", "decay_minus_one"):
            error = np.abs((got + (kind == "decay_minus_one")) / one - (1 - value))
            yield from _compared(node.name, "decay", error, entries, 1e-9)
        elif kind in ("threshold", "lower_threshold", "amount") and scale:
            what = "amount" if kind == "amount" else "threshold"
            yield from _compared(node.name, what, np.abs(got / scale - value), entries, 1e-9 * float(np.abs(value).max(initial=1)))
        elif kind in ("bias", "bias_exponent"):
            biases[kind] = got
    if len(biases) == 2 and scale:
        source = next(rule.split()[1] for rule in native.rules.values() if rule.startswith("bias "))
        told = biases["bias"] * 2.0 ** biases["bias_exponent"] / (scale * shift)
        error = np.abs(told - (np.asarray(node.params[source], np.float64) + offset))
        yield from _compared(node.name, "bias", error, entries, 1e-9 * float(np.abs(told).max(initial=1)))


def _compared(name: str, what: str, error: Array, entries: Sequence[Entry], slack: float) -> Iterator[str]:
    """The entry of a kind of numbers against the differences that are there."""
    count, largest = int(np.count_nonzero(error > slack)), float(np.max(error, initial=0.0))
    told = [entry for entry in entries if entry.kind == "approximation" and entry.what.startswith(what)]
    if not count:
        return
    if not told:
        yield f"%{name}: {count} {what} differ by up to {largest:.4g} without an entry"
    elif not any(abs(entry.largest - largest) <= 1e-6 * largest + slack and entry.changed >= count for entry in told):
        stated = ", ".join(f"{entry.changed}, at most {entry.largest:.4g}" for entry in told)
        yield f"%{name}: {count} {what} differ by up to {largest:.4g}, but the ledger says {stated}"
