"""SpikingJelly's neuron modules as programs. Tested with SpikingJelly 2.0.0 (the package `activation_based`).

| module | charge |
|---|---|
| IFNode | v = v + x |
| LIFNode, decay_input=True (default) | v = v + (x - (v - v_reset)) / tau |
| LIFNode, decay_input=False | v = v - (v - v_reset) / tau + x |
| ParametricLIFNode | as LIFNode, times sigmoid(w) in the place of the division by tau |

then s = v >= v_threshold, and the reset: v = v_reset (hard), or v = v - s v_threshold (soft, v_reset=None; in the charge it is
then 0). A state begins at v_reset, or at 0. In step mode 'm' a module does all steps of axis 0 by itself.

Any other module is traced like hand-written code, and so is the inside of the operators that SpikingJelly registers with torch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import numpy as np
import torch
from spikingjelly.activation_based import base, neuron

from spikec.diagnostics import CompileError
from spikec.frontend.registry import Leaf, Support
from spikec.frontend.tracing.neurons import step_kind
from spikec.ir.neuron import Assign, Emit, Expr, Program, State, Var, call
from spikec.ir.types import Array

VERSION = "2.0.0"

_V, _X, _S, _THETA, _RESET = (Var(name) for name in ("v", "x", "s", "theta", "v_reset"))
_PACKAGE: Final = "spikingjelly.activation_based."
_KINDS: Final = {neuron.IFNode: "if", neuron.LIFNode: "lif", neuron.ParametricLIFNode: "plif"}


_REFUSED: Final = {
    "EIFNode": "its charge takes the exponential of the membrane",
    "ComplementaryLIFNode": "its charge takes the sigmoid of a state",
    "ILIFNode": "its spikes count to more than one, by a function that is no step",
    "PSN": "a neuron sees all steps at once, later ones too",
    "MaskedPSN": "it weighs every step in its own way",
    "SlidingPSN": "it multiplies whole sequences by a matrix over time",
    "DSRIFNode": "it gives rates of whole sequences, and no spikes",
    "DSRLIFNode": "it gives rates of whole sequences, and no spikes",
    "FewSpikeNode": "it codes a number by the times of its spikes, with another weight at every step",
    "STBIFNode": "its spikes are positive and negative levels",
    "NoisyCUBALIFNode": "it draws random numbers",
    "NoisyILCCUBALIFNode": "it draws random numbers",
    "NoisyNonSpikingIFNode": "it draws random numbers",
}  # fmt: skip
_REFUSED_LAYERS: Final = {
    "Conv3d": "the IR has one and two dimensions",
    "ConvTranspose1d": "transposed convolutions are not in the IR",
    "ConvTranspose2d": "transposed convolutions are not in the IR",
    "GroupNorm": "it divides by a deviation of its input",
    "BatchNormThroughTime1d": "it has another norm for every step",
    "BatchNormThroughTime2d": "it has another norm for every step",
    "DropConnectLinear": "it draws random numbers, also in eval mode",
    "TLastSeqToANNContainer": "it runs its layers under torch.vmap; put time first, and use SeqToANNContainer",
}
_NEURONS: Final = ("IFNode", "LIFNode", "ParametricLIFNode")
_LAYERS: Final = (
    "Linear", "Conv1d", "Conv2d", "BatchNorm1d", "BatchNorm2d", "AvgPool1d", "AvgPool2d", "MaxPool1d", "MaxPool2d",
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "Flatten", "Dropout", "Dropout2d", "SynapseFilter", "VotingLayer",
    "LinearRecurrentContainer", "ElementWiseRecurrentContainer", "StepModeContainer",
)  # fmt: skip
_INSIDE: Final = (
    "QIFNode", "IzhikevichNode", "KLIFNode", "LIAFNode", "CUBALIFNode", "HalfThresholdIFNode", "ActivationAwareIFNode",
    "TernaryIFNode", "TernaryLIFNode", "RAFNode", "SimpleIFNode", "SimpleLIFNode", "SLTTLIFNode",
)  # fmt: skip
SUPPORT: Final = (
    *(
        Support(module, option, "exact", note)
        for module in _NEURONS
        for option, note in (
            ("", ""),
            ("step_mode='s'", ""),
            ("step_mode='m'", "time is axis 0"),
            ("v_reset=None", "reset by subtraction"),
            ("v_reset=0.0", ""),
            ("v_reset of any other value", "the state begins there"),
            ("v_threshold", ""),
            ("detach_reset=True", "changes gradients only"),
            ("store_v_seq=True", "v_seq can be used and returned"),
            ("surrogate_function", "probed to be a step, with >= or >"),
        )
    ),
    *(Support(module, f"decay_input={value}", "exact") for module in _NEURONS[1:] for value in (True, False)),
    Support("LIFNode", "tau", "exact"),
    Support("ParametricLIFNode", "init_tau, w", "exact", "the learned rate"),
    *(Support(module, "surrogate_function that is no step", "refused", "also one with spiking=False") for module in _NEURONS),
    *(Support(module, "low precision (spikingjelly's precision)", "refused", "runs on a GPU only") for module in _NEURONS),
    *(Support(module, "", "exact", "traced inside") for module in _INSIDE),
    Support("GatedLIFNode", "conduct equal at all steps", "exact", "traced inside"),
    Support("GatedLIFNode", "conduct that differs from step to step", "refused", "every step would be another network"),
    *(Support(module, "", "refused", reason) for module, reason in _REFUSED.items()),
    *(Support(f"layer.{name}", mode, "exact") for name in _LAYERS for mode in ("step_mode='s'", "step_mode='m'")),
    *(Support(f"layer.{name}", "", "exact") for name in ("SeqToANNContainer", "MultiStepContainer", "TLastMultiStepContainer")),
    *(Support(f"layer.{name}", "", "refused", reason) for name, reason in _REFUSED_LAYERS.items()),
    *(Support(f"functional.{name}", "", "exact", "in the model, or before") for name in ("reset_net", "set_step_mode")),
)


def leaf_of(module: Any) -> Leaf | None:
    """The program of a SpikingJelly module; None for one that is traced inside. SPK101 or SPK110 for what cannot be had."""
    name = type(module).__name__
    if type(module).__module__.startswith(_PACKAGE):
        reason = _REFUSED.get(name, "") if "neuron" in type(module).__module__ else _REFUSED_LAYERS.get(name, "")
        if reason:
            raise CompileError("SPK101", f"{name} is not supported: {reason}")
    kind = _KINDS.get(type(module))
    if kind is None:
        return None
    if module._neuron_precision is not None:
        raise CompileError(
            "SPK101",
            f"{type(module).__name__} with a precision of its own is not supported: it runs on a GPU only",
            fix="leave out the conversion to a lower precision; spikec quantizes after training",
        )
    compare = step_kind(module.surrogate_function)
    if compare is None:
        raise CompileError(
            "SPK110",
            "surrogate_function is not a Heaviside step of its input in the forward pass",
            fix="use a class of spikingjelly.activation_based.surrogate with spiking=True",
        )
    hard = module.v_reset is not None
    rest = float(module.v_reset) if hard else 0.0
    params = {"theta": _array(module.v_threshold)}
    decay = kind == "lif" or kind == "plif"
    if kind == "lif":
        params["tau"] = _array(module.tau)
    if kind == "plif":
        params["rate"] = _array(module.w.sigmoid())
    if rest:
        params["v_reset"] = _array(rest)
    decayed = decay and bool(module.decay_input)
    name = kind + ("_decayed_input" if decayed else "") + ("_hard" if hard else "_soft") + ("" if compare == ">=" else "_gt")
    return Leaf(
        program=_program(name, tuple(params), _charge(kind, decayed, rest), compare, hard, rest),
        params=params,
        arguments=("x",),
        returns=("s",),
        hidden={"v": "v"},
        mismatch_resets=True,
        time_axis=0 if module.step_mode == "m" else None,
        history={"v": "v_seq"} if module.store_v_seq else {},
    )


def _charge(kind: str, decayed: bool, rest: float) -> Expr:
    """The membrane after the input, in SpikingJelly's own order of operations."""
    if kind == "if":
        return _V + _X
    above: Expr = _V - _RESET if rest else _V

    def part(x: Expr) -> Expr:
        return x / Var("tau") if kind == "lif" else x * Var("rate")

    return _V + part(_X - above) if decayed else _V - part(above) + _X


def _program(name: str, params: tuple[str, ...], charge: Expr, compare: str, hard: bool, rest: float) -> Program:
    after: Expr = call("select", _S, _RESET if rest else 0, _V) if hard else _V - _S * _THETA
    body = (Assign("v", charge), Assign("s", call(compare, _V, _THETA)), Assign("v", after))
    return Program(name, ("x",), params, (State("v", rest or 0),), body, (Emit("s", "spike"), Emit("v", "value")))


def _array(item: Any) -> Array:
    if isinstance(item, torch.Tensor):
        array: Array = item.detach().cpu().numpy()
        return array
    return np.asarray(item, np.float64)


#: Operators that SpikingJelly registers with torch, and the module whose `_forward_impl` is what they do on a CPU.
_OPERATORS: Final = {
    f"sj_{name}::forward": f"spikingjelly._ops.{folder}.reference"
    for name, folder in (
        ("if", "if_"), ("lif", "lif"), ("plif", "plif"), ("qif", "qif"), ("eif", "eif"), ("izhikevich", "izhikevich"),
        ("ilif", "ilif"), ("activation_aware_if", "activation_aware_if"), ("stbif", "stbif"), ("clif", "clif"),
    )
}  # fmt: skip


def inside(operator: str) -> Callable[..., Any] | None:
    """What a registered operator does, in torch's own operations; None for an operator of somebody else."""
    if operator not in _OPERATORS:
        return None
    function: Callable[..., Any] = import_module(_OPERATORS[operator])._forward_impl
    return function


def reset(module: Any) -> None:
    """Forget what a module has seen."""
    if isinstance(module, base.MemoryModule):
        module.reset()
