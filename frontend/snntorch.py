"""snnTorch's neuron modules as programs. Tested with snnTorch 1.0.0.

`Leaky`, derived from its source and compared with it bit for bit (r: a spike left over from the step before, s: this step's):

| reset_mechanism | reset_delay=True (default) | reset_delay=False |
|---|---|---|
| subtract | r = v > th; v = (b v + x) - r th; s = v > th | the same, then v = v - (s - r) th |
| zero | v = select(v > th, 0, v); v = b v + x; s = v > th | v = b v + x; s = v > th; v = select(s, 0, v), for th >= 0 |
| none | v = b v + x; s = v > th | the same |

Any other neuron module of snnTorch is not in this table: its inside is traced like hand-written code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import snntorch
import torch

from spikec.diagnostics import CompileError
from spikec.frontend.registry import Leaf
from spikec.frontend.tracing.neurons import step_kind
from spikec.ir.neuron import Assign, Emit, Expr, Program, State, Var, call
from spikec.ir.types import Array

VERSION = "1.0.0"

_V, _X, _S, _R, _BETA, _THETA = (Var(name) for name in ("v", "x", "s", "r", "beta", "theta"))


def leaf_of(module: Any) -> Leaf | None:
    """The program of a snnTorch module; None for those whose inside is traced. SPK101 for an option that cannot be had."""
    if type(module) is snntorch.Leaky:
        return _leaky(module)
    return None


def _leaky(module: Any) -> Leaf:
    for option, reason in (
        ("inhibition", "lets only one neuron of the layer spike, which is not a neuron's own business"),
        ("state_quant", "rounds the membrane by rules of its own; spikec quantizes after training"),
    ):
        if getattr(module, option):
            raise CompileError("SPK101", f"Leaky with {option} is not supported: it {reason}")
    compare = step_kind(module.spike_grad)
    if compare is None:
        raise CompileError(
            "SPK110",
            "spike_grad is not a Heaviside step of its input in the forward pass",
            fix="use a function of snntorch.surrogate, or None",
        )
    base = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}.get(
        getattr(module.state_function, "__name__", ""), ""
    )
    value = ["subtract", "zero", "none"][int(module.reset_mechanism_val)]
    if not base or (base != value and not module.reset_delay):
        raise CompileError(
            "SPK101",
            f"Leaky was built with reset_mechanism '{base}' and later set to '{value}': snnTorch then mixes the two",
            fix=f"build it with reset_mechanism='{value}'",
        )
    theta = _array(module.threshold)
    params = {"beta": _array(module.beta.clamp(0, 1)), "theta": theta}
    factor = _array(module.graded_spikes_factor)
    graded = bool(np.any(factor != 1))
    if not np.all(np.isfinite(factor)) or not np.all(factor):
        raise CompileError("SPK101", "Leaky with a graded_spikes_factor of 0 is not supported: its reset divides by it")
    if graded:
        params["gain"] = factor
    plain = base == "zero" and not module.reset_delay and bool(np.all(theta >= 0))
    program = _program(base, bool(module.reset_delay), compare, graded, plain)
    general = _program(base, bool(module.reset_delay), compare, graded, False) if plain else None
    spike = "g" if graded else "s"
    both = module.output or not module.init_hidden
    return Leaf(
        program=program,
        params=params,
        arguments=("x", "v"),
        returns=(spike, "v") if both else (spike,),
        hidden={"v": "mem"},
        general=general,
        mismatch_resets=True,
    )


def _program(reset: str, delayed: bool, compare: str, graded: bool, plain: bool) -> Program:
    """`plain`: a membrane above the threshold never survives a step, so that there is nothing left over to reset."""
    fires = call(compare, _V, _THETA)
    carry: Expr = _BETA * _V + _X
    body: list[Assign] = []
    if reset == "subtract":
        body = [Assign("r", fires), Assign("v", carry - _R * _THETA), Assign("s", fires)]
        if not delayed:
            body.append(Assign("v", _V - (_S - _R) * _THETA))
    elif reset == "zero" and plain:
        body = [Assign("v", carry), Assign("s", fires), Assign("v", call("select", _S, 0, _V))]
    elif reset == "zero":
        body = [Assign("r", fires), Assign("v", call("select", _R, 0, _V)), Assign("v", carry), Assign("s", fires)]
        if not delayed:
            body.append(Assign("v", _V - (_S - _R) * _V))
    else:
        body = [Assign("v", carry), Assign("s", fires)]
    if graded:
        body.append(Assign("g", _S * Var("gain")))
    name = f"leaky_{reset}" + ("_delayed" if delayed and reset != "none" else "")
    name += "_general" if reset == "zero" and not delayed and not plain else ""
    name += ("_ge" if compare == ">=" else "") + ("_graded" if graded else "")
    params = ("beta", "theta", "gain") if graded else ("beta", "theta")
    emits = (Emit("g", "graded") if graded else Emit("s", "spike"), Emit("v", "value"))
    return Program(name, ("x",), params, (State("v"),), tuple(body), emits)


def _array(tensor: Any) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def reset(module: Any) -> None:
    """Forget what a module has seen."""
    if isinstance(module, snntorch.SpikingNeuron):
        for name in ("mem", "syn", "syn_exc", "syn_inh", "spk", "reset"):
            if isinstance(getattr(module, name, None), torch.Tensor):
                setattr(module, name, torch.zeros(0))


@contextmanager
def isolated(model: Any) -> Iterator[None]:
    """`snntorch.utils.reset` works on a list of all neurons ever made: during a run let it be those of the copy."""
    before = snntorch.SpikingNeuron.instances
    snntorch.SpikingNeuron.instances = [m for m in model.modules() if isinstance(m, snntorch.SpikingNeuron)]
    try:
        yield
    finally:
        snntorch.SpikingNeuron.instances = before
