"""Floats to a chip's integers at a given scale: weights, thresholds, decays, biases and initial states, each rounding told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.neuron import Emit, Program, Var
from spikec.ir.ops import Conv, Dense, Neuron, Node, Sparse
from spikec.ir.text import parse_program
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.mantissas import stored
from spikec.native import begun
from spikec.passes.chip_grid import AMOUNTS, ChipGrid, one_each
from spikec.passes.groups import WEIGHTED
from spikec.passes.rounding import TOGETHER, rounded
from spikec.passes.translate import Widths, largest_amount, translate
from spikec.passes.units import infer_units, is_truth
from spikec.target import NativeNeuron


def convert(
    grid: ChipGrid,
    nodes: Iterable[Node],
    graph: Graph,
    scale: float,
    records: Mapping[str, Array] | None,
    ledger: Ledger,
    units: dict[tuple[str, str], float],
    carried: Mapping[str, float] | None = None,
    seen: Mapping[str, Array] | None = None,
) -> list[Node]:
    """The nodes of a group in the target's integers at a scale; the ledger is told every rounding, and `units`, by node and port,
    what 1 is in the model. carried: by layer, the unit of the messages that it reads, which its weights here are multiplied by.
    seen: by layer, what its rounding is to look at (see `spikec.passes.rounding`)."""
    return [
        _custom(grid, node, graph, scale, records, ledger, units)
        if isinstance(node, Neuron) and grid.native(node) is None
        else _neuron(grid, node, scale, ledger, units)
        if isinstance(node, Neuron)
        else _weights(grid, node, scale, ledger, (carried or {}).get(node.name, 1.0), (seen or {}).get(node.name))
        if isinstance(node, WEIGHTED)
        else replace(node, dtype="")  # type: ignore[call-arg]  # only some operations have a dtype
        if hasattr(node, "dtype")
        else node
        for node in nodes
    ]


def _weights(
    grid: ChipGrid, node: Dense | Sparse | Conv, scale: float, ledger: Ledger, carried: float, moment: Array | None
) -> Node:
    if one_each(node):
        return _one_each(grid, node, scale, ledger)
    wanted = node.weight.astype(np.float64) * scale
    step, bottom, top = grid.layer_grid(node, wanted)
    nearest = step * np.rint(wanted / step)
    weight = rounded(wanted, step, bottom, top, moment)
    clipped = int(np.count_nonzero((nearest > top) | (nearest < bottom)))
    own = scale * carried  # of the model's weights
    error = np.abs(weight - wanted) / own
    if np.any(error):
        what = f"weights to multiples of {step / own:.6g}" + (f", {clipped} of them clipped" if clipped else "")
        what += TOGETHER if moment is not None else ""
        _approximate(grid, ledger, node, what, error, measured={"scale": scale})
    else:
        ledger.record(node, "exact", f"weights are multiples of {step / own:.6g}", measured={"scale": scale})
    return replace(node, weight=weight.astype(np.int16), dtype="")


def _one_each(grid: ChipGrid, node: Sparse, scale: float, ledger: Ledger) -> Node:
    """Weights of which every neuron has one are whole numbers: where mantissas do not hold them, sums of two."""
    wanted = node.weight.astype(np.float64) * scale
    whole = np.rint(wanted).astype(np.int64)
    error = np.abs(whole - wanted) / scale
    if np.any(error):
        _approximate(grid, ledger, node, f"weights to multiples of {1 / scale:.6g}", error)
    else:
        ledger.record(node, "exact", f"weights are multiples of {1 / scale:.6g}")
    if stored(whole, grid.target) is not None:
        return replace(node, weight=whole.astype(np.int32), dtype="")
    ledger.record(node, "exact", "its weights are sums of two, with exponents of their own")
    step, top = grid.target.integer("weight_step"), grid.target.integer("weight_max")
    while np.max(np.abs(step * np.rint(whole / step))) > top * step // 2:
        step *= 2
    # The first of two is never zero where the second is not: the larger ones make one synapse process.
    coarse = np.rint(whole / step).astype(np.int64)
    coarse = step * np.where(coarse == 0, np.sign(whole), coarse)
    both = np.stack([coarse, whole - coarse], axis=1).reshape(-1).astype(np.int32)
    return replace(node, weight=both, indices=np.repeat(node.indices, 2), indptr=2 * node.indptr, dtype="")


def _custom(
    grid: ChipGrid,
    node: Neuron,
    graph: Graph,
    scale: float,
    records: Mapping[str, Array] | None,
    ledger: Ledger,
    units: dict[tuple[str, str], float],
) -> Node:
    """A program that the target lacks, in the target's widths."""
    operands = {
        name: scale if graph.type_of(ref).kind == "value" else 1.0
        for name, ref in zip(node.program.inputs, node.inputs, strict=True)
    }
    bits, decay = grid.target.integer("membrane_bits"), grid.target.integer("decay_bits")
    widths = Widths(bits, bits, decay, decay)
    made, translator = translate(node, infer_units(node, graph), operands, {}, scale, largest_amount(node, records), widths)
    for what, error in translator.errors:
        if np.any(error):
            _approximate(grid, ledger, node, what, error)
        else:
            ledger.record(node, "exact", what)
    if "clip" in made.program.operations():
        limits = (f"{n} at +-{((1 << (bits - 1)) - 1) / translator.scale_of(n):.4g}" for n in node.program.state_names)
        ledger.record(node, "convention", f"states saturate: {', '.join(limits)}")
    translator.tell_rounding(made, ledger)
    for index, emit in enumerate(node.program.emits):
        units[node.name, emit.name if index else ""] = 1 / translator.scale_of(emit.name)
    sent = node.program.emits[0]
    counted = sent.kind == "spike" or is_truth(Var(sent.name), node.program) or translator.scale_of(sent.name) == 1.0
    readers = [user for user, at in graph.users[node.name] if user.inputs[at].port == ""]
    if readers and not counted:
        node.fail(
            "SPK202",
            f"sends {sent.name}, which is no whole number, to %{readers[0].name}; {grid.target.name} sends whole ones",
            fix="count spikes with it (floor of the membrane by a constant), or use the target host",
        )
    return made


def _neuron(grid: ChipGrid, node: Neuron, scale: float, ledger: Ledger, units: dict[tuple[str, str], float]) -> Node:
    native = grid.native(node)
    assert native is not None
    fixed = parse_program(native.fixed)
    extra = node.program.emits[1:]
    suffix = node.program.name.removeprefix(parse_program(native.pattern).name)
    program = Program(
        fixed.name + suffix,
        fixed.inputs,
        fixed.params,
        fixed.states,
        fixed.body,
        (*fixed.emits, *(Emit(e.name, "value") for e in extra)),
    )
    params: dict[str, Array] = {}
    for name in fixed.params:
        rule, source = native.rules[name].split()
        value = np.asarray(node.params[source], np.float64)
        params[name] = _rule(grid, rule, value, scale, node, ledger)
    membrane = scale * (1 << grid.target.integer("membrane_shift"))
    init = {k: _initial(grid, k, v.astype(np.float64), membrane, node, ledger) for k, v in node.init.items()}
    if reached := next((name for name, rule in native.rules.items() if rule.startswith("reached")), None):
        _reached(grid, node, native, reached, params, init, membrane, ledger)
    result = replace(node, program=program, params=params, init=init, dtype="")
    result = replace(result, init={**init, **begun(native, result, init)})
    if any(np.any((decay > 0) & (decay < 1)) for decay in grid.by_rule(node, "decay", "decay_minus_one")):
        ledger.record(node, "convention", f"what leaks is rounded toward zero at every step, to multiples of {1 / membrane:.6g}")
    for emit in extra:
        units[node.name, emit.name] = 1 / membrane
    return result


def _reached(
    grid: ChipGrid,
    node: Neuron,
    native: NativeNeuron,
    name: str,
    params: dict[str, Array],
    init: dict[str, Array],
    membrane: float,
    ledger: Ledger,
) -> None:
    """A threshold that is reached, where the target's is passed.

    v >= T is v + 1 > T, the 1 being a bias where the membrane keeps none of it, else v > T - 1 in the threshold's own units.
    """
    shift, forgets = grid.target.integer("membrane_shift"), 1 << grid.target.integer("decay_bits")
    mantissa, exponent = (native.bias_synapse[key] for key in ("mantissa", "exponent"))
    state = next(item for item in parse_program(native.pattern).state_names if item != native.bias_synapse["state"])
    decays = [params[k] for k, rule in native.rules.items() if rule.split()[0] == "decay"]
    if all(np.all(decay == forgets) for decay in decays) and not params[exponent].any() and not params[mantissa].any():
        params[mantissa] = params[mantissa] + np.int32(1)
        init[state] = params[mantissa]  # what it holds after any step without input
        return
    params[name] = np.maximum(params[name] - 1, 0).astype(np.int32)
    kept = [params[k] for k, rule in native.rules.items() if rule.split()[0] in ("decay", "decay_minus_one")]
    whole = all(np.all((k == 0) | (k == forgets) | (k == -1) | (k == forgets - 1)) for k in kept)
    if not whole or np.any((params[mantissa].astype(np.int64) << params[exponent]) % (1 << shift)):
        # Between two of its units a membrane with a leak passes what it does not reach.
        error = np.full(np.shape(params[name]), (1 - 2.0**-shift) * (1 << shift) / membrane)
        _approximate(grid, ledger, node, f"a threshold that is reached, as one that is passed {error.max():.6g} below", error)


def _initial(grid: ChipGrid, state: str, value: Array, membrane: float, node: Neuron, ledger: Ledger) -> Array:
    whole = np.rint(value * membrane)
    top = (1 << (grid.target.integer("membrane_bits") - 1)) - 1
    if np.any(np.abs(whole) > top):
        node.fail("SPK203", f"the initial {state} {float(np.abs(value).max()):.6g} exceeds the target's {top / membrane:.6g}")
    error = np.abs(whole / membrane - value)
    if np.any(error):
        _approximate(grid, ledger, node, f"initial {state} to multiples of {1 / membrane:.6g}", error)
    return whole.astype(np.int32)


def _rule(grid: ChipGrid, rule: str, value: Array, scale: float, node: Neuron, ledger: Ledger) -> Array:
    one = 1 << grid.target.integer("decay_bits")
    shift = 1 << grid.target.integer("membrane_shift")
    if rule in ("decay", "decay_minus_one"):
        whole = np.rint((1.0 - value) * one)
        error = np.abs(whole / one - (1.0 - value))
        if np.any(error):
            lost = int(np.count_nonzero((whole == 0) & (value < 1)))
            what = f"decay to multiples of 1/{one}" + (f", {lost} of them to no decay at all" if lost else "")
            _approximate(grid, ledger, node, what, error)
        return (whole - (rule == "decay_minus_one")).astype(np.int32)
    if rule in AMOUNTS:
        limit = grid.target.integer("threshold_max")
        whole = np.where(np.isfinite(value), np.rint(np.where(np.isfinite(value), value, 0) * scale), np.sign(value) * limit)
        error = np.where(np.isfinite(value), np.abs(whole / scale - np.where(np.isfinite(value), value, 0)), 0)
        if not np.all(np.isfinite(value)):
            ledger.record(node, "approximation", "an infinite threshold becomes the largest", asked=grid.asked)
        if np.any(error):
            what = "amount" if rule == "amount" else "threshold"
            _approximate(grid, ledger, node, f"{what} to multiples of {1 / scale:.6g}", error)
        return whole.astype(np.int32)
    if rule in ("bias", "bias_exponent"):
        wanted = value * scale * shift
        exponent = grid.bias_exponent(wanted)
        mantissa = np.rint(wanted / (1 << exponent))
        if rule == "bias_exponent":
            return np.asarray(exponent, np.int32)
        error = np.abs(mantissa * (1 << exponent) - wanted) / (scale * shift)
        if np.any(error):
            _approximate(grid, ledger, node, f"bias to multiples of {(1 << exponent) / (scale * shift):.6g}", error)
        return mantissa.astype(np.int32)
    whole = np.rint(value)
    # The target counts its steps from 1.
    return (whole + (rule == "next_step")).astype(np.int32)


def _approximate(grid: ChipGrid, ledger: Ledger, node: Node, what: str, error: Array, **more: Any) -> None:
    ledger.record(
        node,
        "approximation",
        what,
        changed=int(np.count_nonzero(error)),
        total=int(np.size(error)),
        largest=float(np.max(error)),
        asked=grid.asked,
        **more,
    )
