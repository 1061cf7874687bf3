"""Whether a population can be one of the target's own processes, with its numbers and its initial states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from spikec.ir.interpret import evaluate, fixed_truth
from spikec.ir.ops import Neuron, spread
from spikec.ir.text import parse_program
from spikec.ir.types import Array
from spikec.target import NativeNeuron, Target

#: A threshold is rounded to multiples of 64 in units of the states.
_ROUNDED: Final = 32


def native_process(target: Target, node: Neuron, shape: tuple[int, ...]) -> NativeNeuron | str:
    """The process of the target's library that a population in integers is, or why it is none."""
    native = target.native(node.program)
    if native is None or not native.implementation:
        return f"{target.name} has no process for @{node.program.name}"
    implementation = native.implementation
    name = implementation["process"]
    shown = {*implementation["states"], *implementation.get("outputs", {})}
    for emit in node.program.emits[1:]:
        if emit.name not in shown:
            return f"{emit.name} cannot be read from {name}"
    for param in implementation.get("one", ()):
        if np.ptp(node.params[param]):
            return f"{name} takes one {param} for all"
    for state, text in implementation.get("begins", {}).items():
        if np.any(_initial(node, state, shape) != _value(text, node, shape)):
            return f"{name} does not begin with this {state}"
    if node.stop is not None:
        return f"{name} cannot stop early"
    if node.start:
        if not native.bias_synapse:
            return f"{name} cannot start late with a bias or an initial state"
        low, high = node.params.get("vth_lo", np.zeros(())), node.params.get("vth_hi", np.zeros(()))
        if np.any(low > 0) or np.any(high < 0):
            return f"{name} would fire before it starts"
    return native


def begun(native: NativeNeuron, node: Neuron, init: Mapping[str, Array]) -> dict[str, Array]:
    """Initial states that the process sets itself, where the wanted ones differ from them by no more than a rounded threshold."""
    result: dict[str, Array] = {}
    for state, text in native.implementation.get("begins", {}).items():
        value = _value(text, node, ())
        wanted = np.asarray(init.get(state, 0))
        if np.any(wanted != value) and np.all(np.abs(wanted - value) <= _ROUNDED):
            result[state] = np.asarray(value, np.int32)
    return result


def _initial(node: Neuron, state: str, shape: tuple[int, ...]) -> Array:
    declared = next(item.init for item in node.program.states if item.name == state)
    return np.broadcast_to(spread(node.init.get(state, np.asarray(declared)), shape), shape)


def _value(text: str, node: Neuron, shape: tuple[int, ...]) -> Array:
    """An expression of the parameters; per neuron, or as they are where no shape is given."""
    params = {}
    for name, array in node.params.items():
        params[name] = (np.broadcast_to(spread(array, shape), shape) if shape else array).astype(np.int64)
    declared = f"params({', '.join(params)})" if params else ""
    program = parse_program(f"neuron @x() {declared} {{ x_ = {text} emit x_ }}")
    return np.asarray(evaluate(program.body[0].expr, params, fixed_truth))
