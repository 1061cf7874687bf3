"""snnTorch's neuron modules as programs. Tested with snnTorch 1.0.0.

Derived from their source and compared with them bit for bit (r: a spike left over from the step before, s: this step's; b, a:
the decays beta and alpha, clamped to [0, 1]; g: the input, with what comes back through the connection of RLeaky and RSynaptic):

| module | charge |
|---|---|
| Leaky, RLeaky | v = b v + g |
| Synaptic, RSynaptic | i = a i + g; v = b v + i |
| Alpha | e = a e + x; i = b i - x; v = (log(a) / (log(b) - log(a)) + 1) (e + i) |
| Lapicque | v = x R (1 / (R C)) dt + (1 - dt / (R C)) v; its beta only serves to find R or C |

| reset_mechanism | reset_delay=True (default) | reset_delay=False |
|---|---|---|
| subtract | r = v > th; charge; v = v - r th; s = v > th | the same, then v = v - (s - r) th |
| zero | r = v > th; charge; v = select(r, 0, v); s = v > th | charge; s = v > th; v = select(s, 0, v), where 0 does not fire |
| none | charge; s = v > th | the same |

Leaky, reset to zero a step late, does so before its charge. Alpha and Lapicque always reset a step late. Alpha's "subtract" is
e = e - r th; i = (1 - r) i; v = v + r i' with i' of the step before. `RSynaptic(reset_delay=False)` is broken in snnTorch: it fails
where a state is not passed, and resets as if delayed where all are; it is refused, with what to do.

The connection of RLeaky and RSynaptic (`recurrent`: a linear layer, a convolution, or a factor V) becomes a node of its own. Any
other neuron module of snnTorch is not in this table: its inside is traced like hand-written code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import snntorch
import torch

from spikec.diagnostics import CompileError
from spikec.frontend.registry import Leaf, Support, Synapse
from spikec.frontend.tracing.neurons import step_kind
from spikec.ir.neuron import Assign, Emit, Expr, Program, State, Var, call
from spikec.ir.types import Array

VERSION = "1.0.0"

_V, _X, _S, _R, _BETA, _ALPHA, _THETA = (Var(name) for name in ("v", "x", "s", "r", "beta", "alpha", "theta"))
_E, _I, _BACK = (Var(name) for name in ("e", "i", "back"))


@dataclass(frozen=True)
class _Kind:
    """What one module computes before the reset."""

    charge: tuple[Assign, ...]
    states: tuple[str, ...]
    #: Program state -> attribute of the module, in the order of `forward`'s arguments and results (after the spikes).
    hidden: dict[str, str]
    recurrent: bool = False
    #: The reset to zero comes before the charge, and not after it.
    resets_first: bool = False
    params: tuple[str, ...] = ("beta",)
    #: What the reset to zero clears.
    cleared: tuple[str, ...] = ("v",)


_KINDS: Final = {
    snntorch.Leaky: _Kind((Assign("v", _BETA * _V + _X),), ("v",), {"v": "mem"}, resets_first=True),
    snntorch.RLeaky: _Kind((Assign("v", _BETA * _V + _X + _BACK),), ("v",), {"v": "mem"}, recurrent=True),
    snntorch.Synaptic: _Kind(
        (Assign("i", _ALPHA * _I + _X), Assign("v", _BETA * _V + _I)),
        ("i", "v"),
        {"i": "syn", "v": "mem"},
        params=("alpha", "beta"),
    ),
    snntorch.RSynaptic: _Kind(
        (Assign("i", _ALPHA * _I + _X + _BACK), Assign("v", _BETA * _V + _I)),
        ("i", "v"),
        {"i": "syn", "v": "mem"},
        recurrent=True,
        params=("alpha", "beta"),
    ),
    snntorch.Alpha: _Kind(
        (Assign("e", _ALPHA * _E + _X), Assign("i", _BETA * _I - _X), Assign("v", Var("gain") * (_E + _I))),
        ("e", "i", "v"),
        {"e": "syn_exc", "i": "syn_inh", "v": "mem"},
        params=("alpha", "beta", "gain"),
        cleared=("e", "i", "v"),
    ),
    snntorch.Lapicque: _Kind((), ("v",), {"v": "mem"}, params=()),
}

_REFUSED: Final = {
    snntorch.LeakyParallel: "it runs a torch.nn.RNN over the whole sequence",
    snntorch.StateLeaky: "it computes all steps at once, as a convolution over time",
    snntorch.LinearLeaky: "it computes all steps at once, as a convolution over time",
    snntorch.AssociativeLeaky: "it keeps a matrix of products of its inputs",
    snntorch.SLSTM: "its gates are sigmoids and tanhs of its state",
    snntorch.SConv2dLSTM: "its gates are sigmoids and tanhs of its state",
}

_BASIC: Final = ("Leaky", "RLeaky", "Synaptic", "RSynaptic", "Alpha", "Lapicque")
SUPPORT: Final = (
    *(Support(module, "", "exact") for module in _BASIC),
    *(
        Support(module, option, "exact", note)
        for module in _BASIC
        for option, note in (
            ("reset_mechanism='subtract'", ""),
            ("reset_mechanism='zero'", ""),
            ("reset_mechanism='none'", ""),
            ("learn_beta, learn_threshold", ""),
            ("beta, threshold per neuron", "Lapicque takes one beta" if module == "Lapicque" else ""),
            ("init_hidden=True", ""),
            ("output=True", ""),
            ("graded_spikes_factor", "spikes are graded; not 0"),
            ("spike_grad, surrogate_disable", "probed to be a step, with > or >="),
        )
    ),
    *(Support(module, "reset_delay=False", "exact") for module in ("Leaky", "RLeaky", "Synaptic")),
    Support(
        "RSynaptic",
        "reset_delay=False",
        "refused",
        "broken in snnTorch 1.0.0: it fails with hidden states, and resets a step late where they are passed; use reset_delay=True",
    ),
    *(Support(module, "learn_alpha, alpha per neuron", "exact") for module in ("Synaptic", "RSynaptic", "Alpha")),
    *(
        Support(module, option, "exact", "a node of its own")
        for module in ("RLeaky", "RSynaptic")
        for option in ("all_to_all=True, linear_features", "all_to_all=True, conv2d_channels", "all_to_all=False, V")
    ),
    *(Support("Lapicque", option, "exact") for option in ("R, C", "beta, R", "beta, C", "time_step")),
    *(
        Support(module, option, "refused", note)
        for module in _BASIC
        for option, note in (
            ("inhibition=True", "only one neuron of the layer spikes, which is not a neuron's own business"),
            ("state_quant", "rounds the membrane by rules of its own; spikec quantizes after training"),
            ("spike_grad that is no step", "its forward pass must be 0 or 1"),
        )
    ),
    Support("DeltaLeaky", "", "exact", "traced inside"),
    *(Support(module.__name__, "", "refused", reason) for module, reason in _REFUSED.items()),
)


def leaf_of(module: Any) -> Leaf | None:
    """The program of a snnTorch module; None for those whose inside is traced. SPK101, SPK110 for options that cannot be had."""
    if type(module) in _REFUSED:
        name = type(module).__name__
        raise CompileError("SPK101", f"{name} is not supported: {_REFUSED[type(module)]}")
    kind = _KINDS.get(type(module))
    return None if kind is None else _leaf(module, kind)


def _leaf(module: Any, kind: _Kind) -> Leaf:
    name = type(module).__name__
    for option, reason in (
        ("inhibition", "lets only one neuron of the layer spike, which is not a neuron's own business"),
        ("state_quant", "rounds the membrane by rules of its own; spikec quantizes after training"),
    ):
        if getattr(module, option):
            raise CompileError("SPK101", f"{name} with {option} is not supported: it {reason}")
    compare = step_kind(module.spike_grad)
    if compare is None:
        raise CompileError(
            "SPK110",
            "spike_grad is not a Heaviside step of its input in the forward pass",
            fix="use a function of snntorch.surrogate, or None",
        )
    reset = _reset_of(module)
    delayed = bool(getattr(module, "reset_delay", True))
    if type(module) is snntorch.RSynaptic and not delayed:
        raise CompileError(
            "SPK101",
            "RSynaptic with reset_delay=False is not supported: snnTorch 1.0.0 fails on it where its states are hidden, and resets "
            "a step late all the same where they are passed",
            fix="build it with reset_delay=True",
        )
    theta = _array(module.threshold)
    params, charge = _parameters(module, kind)
    params["theta"] = theta
    if not all(np.all(np.isfinite(array)) for array in params.values()):
        raise CompileError("SPK101", f"{name} has parameters that are not finite: {', '.join(_not_finite(params))}")
    factor = _array(module.graded_spikes_factor)
    graded = bool(np.any(factor != 1))
    if not np.all(np.isfinite(factor)) or not np.all(factor):
        raise CompileError("SPK101", f"{name} with a graded_spikes_factor of 0 is not supported: its reset divides by it")
    if graded:
        params["factor"] = factor
    plain = reset == "zero" and not delayed and bool(np.all(theta >= 0 if compare == ">" else theta > 0))
    program = _program(module, kind, charge, tuple(params), reset, delayed, compare, graded, plain)
    general = _program(module, kind, charge, tuple(params), reset, delayed, compare, graded, False) if plain else None
    spike = "g" if graded else "s"
    both = module.output or not module.init_hidden
    hidden = {spike: "spk", **kind.hidden} if kind.recurrent else kind.hidden
    return Leaf(
        program=program,
        params=params,
        arguments=("x", *hidden),
        returns=(spike, *kind.hidden) if both else (spike,),
        hidden=hidden,
        general=general,
        mismatch_resets=True,
        synapses={"back": Synapse(spike, module.recurrent)} if kind.recurrent else {},
    )


def _reset_of(module: Any) -> str:
    """The mechanism the module was built with; SPK101 where a later change of it would mix two."""
    base = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}.get(
        getattr(module.state_function, "__name__", ""), ""
    )
    value = ["subtract", "zero", "none"][int(module.reset_mechanism_val)]
    if not base or (base != value and not getattr(module, "reset_delay", True)):
        raise CompileError(
            "SPK101",
            f"{type(module).__name__} was built with reset_mechanism '{base}' and later set to '{value}': snnTorch then mixes the "
            "two",
            fix=f"build it with reset_mechanism='{value}'",
        )
    return base


def _parameters(module: Any, kind: _Kind) -> tuple[dict[str, Array], tuple[Assign, ...]]:
    """Parameters as the module itself computes them, and the charge."""
    if type(module) is snntorch.Lapicque:
        return _lapicque(module)
    params = {name: getattr(module, name).clamp(0, 1) for name in kind.params if name != "gain"}
    if "gain" in kind.params:
        alpha, beta = torch.log(params["alpha"]), torch.log(params["beta"])
        params["gain"] = alpha / (beta - alpha) + 1
    return {name: _array(tensor) for name, tensor in params.items()}, kind.charge


def _lapicque(module: Any) -> tuple[dict[str, Array], tuple[Assign, ...]]:
    """Factors of 1 are left out: they change no bit."""
    rc = module.R * module.C
    factors = {"resistance": module.R, "rate": 1 / rc, "dt": module.time_step}
    params = {name: _array(torch.as_tensor(item)) for name, item in factors.items()}
    params = {
        name: array.astype(np.float64) if array.dtype.kind != "f" else array for name, array in params.items() if np.any(array != 1)
    }
    drive: Expr = _X
    for name in params:
        drive = drive * Var(name)
    params["decay"] = _array(torch.as_tensor(1 - module.time_step / rc))
    return params, (Assign("v", drive + Var("decay") * _V),)


def _not_finite(params: dict[str, Array]) -> list[str]:
    return [name for name, array in params.items() if not np.all(np.isfinite(array))]


def _program(
    module: Any,
    kind: _Kind,
    charge: tuple[Assign, ...],
    params: tuple[str, ...],
    reset: str,
    delayed: bool,
    compare: str,
    graded: bool,
    plain: bool,
) -> Program:
    """`plain`: a membrane above the threshold never survives a step, so that there is nothing left over to reset."""
    fires = call(compare, _V, _THETA)
    left_over, fire = Assign("r", fires), Assign("s", fires)
    if reset == "subtract" and type(module) is snntorch.Alpha:
        before = Assign("j", -_I)
        late_ones = (Assign("e", _E - _THETA * _R), Assign("i", call("select", _R, 0, _I)), Assign("v", _V - Var("j") * _R))
        body = [left_over, before, *charge, *late_ones, fire]
    elif reset == "subtract":
        body = [left_over, *charge, Assign("v", _V - _R * _THETA), fire]
        if not delayed:
            body.append(Assign("v", _V - (_S - _R) * _THETA))
    elif reset == "zero" and plain:
        body = [*charge, fire, Assign("v", call("select", _S, 0, _V))]
    elif reset == "zero":
        cleared = [Assign(name, call("select", _R, 0, Var(name))) for name in kind.cleared]
        body = [left_over, *cleared, *charge, fire] if kind.resets_first else [left_over, *charge, *cleared, fire]
        if not delayed:
            body.append(Assign("v", _V - (_S - _R) * _V))
    else:
        body = [*charge, fire]
    if graded:
        body.append(Assign("g", _S * Var("factor")))
    name = f"{type(module).__name__.lower()}_{reset}" + (
        "_delayed" if delayed and reset != "none" and hasattr(module, "reset_delay") else ""
    )
    name += "_general" if reset == "zero" and not delayed and not plain else ""
    name += ("_ge" if compare == ">=" else "") + ("_graded" if graded else "")
    emits = (Emit("g", "graded") if graded else Emit("s", "spike"), *(Emit(state, "value") for state in reversed(kind.states)))
    inputs = ("x", "back") if kind.recurrent else ("x",)
    return Program(name, inputs, params, tuple(State(state) for state in kind.states), tuple(body), emits)


def _array(tensor: Any) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def reset(module: Any) -> None:
    """Forget what a module has seen."""
    if isinstance(module, snntorch.DeltaLeaky):
        module.reset_mem()
    elif isinstance(module, snntorch.SpikingNeuron):
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
