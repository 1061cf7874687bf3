"""Norse's neuron modules as programs. Tested with Norse 1.0.0.

Derived from `norse.torch.functional` and compared with it bit for bit; every constant product (a_mem = dt · tau_mem_inv, a_syn =
dt · tau_syn_inv) is made by torch, as Norse makes it. z is a spike, x the input, r the recurrent current of the same step; "z and
reset" is z = v > v_th; v = select(z, v_reset, v):

| function of one step | modules | program |
|---|---|---|
| lif_feed_forward_step | LIFCell, LIF | v = v + a_mem ((v_leak - v) + i); z and reset; i = (i - a_syn i) + x |
| lif_step | LIFRecurrentCell, LIFRecurrent | i = (i + x) + r; v = v + a_mem ((v_leak - v) + i); i = i - a_syn i; z and reset |
| lif_box_feed_forward_step | LIFBoxCell | v = v + a_mem ((x + v_leak) - v); z and reset |
| iaf_feed_forward_step | IAFCell | v = v + x; z and reset |
| li_feed_forward_step | LICell, LI | i = i + x; v = v + a_mem ((v_leak - v) + i); i = i - a_syn i; the output is v |

A feed-forward LIF's input reaches the membrane a step later, a recurrent one's in the same step. These modules keep one step in the
attribute `activation`, which the modules of several steps call in a loop; the loop, the states and `SequentialState` are followed
like any other code. So is the inside of every other module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import numpy as np
import torch
from norse.torch import functional, module
from norse.torch.functional.iaf import iaf_feed_forward_step
from norse.torch.functional.threshold import threshold

from spikec.diagnostics import CompileError
from spikec.frontend.registry import Leaf, StepCall, Support
from spikec.frontend.tracing.neurons import step_kind
from spikec.ir.neuron import Assign, Emit, Program, State, Var, call
from spikec.ir.types import Array

VERSION = "1.0.0"

_NEEDED: Final = "traced from the inside"
SUPPORT: Final = (
    Support("LIFCell", "", "exact", "an input reaches the membrane a step later"),
    Support("LIFCell", "p: numbers, tensors, one per neuron", "exact"),
    Support("LIFCell", "p.method: super, heaviside, triangle, tanh, circ, heavi_erfc", "exact"),
    Support("LIFCell", "p.method: adjoint", "refused", "Norse itself fails when it runs it; take method='super'"),
    Support("LIFCell", "dt", "exact"),
    Support("LIFCell", "state: left out, given, carried, returned", "exact"),
    Support("LIFCell", "a sparse input", "refused", "pass a dense tensor"),
    Support("LIF", "", "exact"),
    Support("LIF", "state given", "exact"),
    Support("LIF", "record_states", "exact"),
    Support("LIFRecurrentCell", "", "exact", "an input reaches the membrane in the same step, a spike a step later"),
    Support("LIFRecurrentCell", "input_weights, recurrent_weights, autapses", "exact"),
    Support("LIFRecurrent", "", "exact"),
    Support("LIFRecurrent", "record_states", "exact"),
    Support("LIFBoxCell", "", "exact"),
    Support("LIFBoxCell", "p: numbers, tensors, one per neuron", "exact"),
    Support("IAFCell", "", "exact"),
    Support("LICell", "", "exact"),
    Support("LI", "", "exact"),
    Support("LI", "record_states", "exact"),
    Support("LILinearCell", "", "exact", _NEEDED),
    Support("LSNNCell, LSNN", "", "exact", _NEEDED),
    Support("LSNNRecurrentCell, LSNNRecurrent", "", "exact", _NEEDED),
    Support("LIFRefracCell", "", "exact", _NEEDED),
    Support("LIFRefracRecurrentCell, LIFRefracRecurrent", "", "exact", _NEEDED),
    Support("LIFMCRecurrentCell, LIFMCRefracRecurrentCell", "", "exact", _NEEDED),
    Support("IzhikevichCell, Izhikevich", "", "exact", _NEEDED),
    Support("IzhikevichRecurrentCell, IzhikevichRecurrent", "", "exact", _NEEDED),
    Support("LIFEx, LIFAdEx, LIFAdExRefrac", "all their cells and layers", "refused", "programs have no exponential of a state"),
    Support("CobaLIFCell", "", "refused", "its output does not depend on its input: the input's conductance is overwritten"),
    Support("LIFCorrelation", "", "refused", "it keeps a state for each connection"),
    Support("PoissonEncoder, SignedPoissonEncoder", "", "refused", "they draw random numbers: encode before the model"),
    Support("SequentialState", "", "exact", "nested, with states given and returned"),
    Support("Lift", "", "exact"),
    Support("RegularizationCell", "", "exact", "the term over the batch is refused where the model returns it"),
    Support("functional.lif_feed_forward_step, lif_step", "called by hand", "exact", _NEEDED),
)

_V, _I, _X, _R, _Z = (Var(name) for name in ("v", "i", "x", "r", "z"))
_A_MEM, _A_SYN, _V_LEAK = (Var(name) for name in ("a_mem", "a_syn", "v_leak"))
_FIRE: Final = (Assign("z", call(">", _V, Var("v_th"))), Assign("v", call("select", _Z, Var("v_reset"), _V)))
_CHARGE: Final = Assign("v", _V + _A_MEM * ((_V_LEAK - _V) + _I))
_DECAY: Final = Assign("i", _I - _A_SYN * _I)
_LIF: Final = ("a_mem", "a_syn", "v_leak", "v_th", "v_reset")
_STATES: Final = (State("v"), State("i"))
_SPIKE: Final = (Emit("z", "spike"),)


def _program(name: str, inputs: tuple[str, ...], params: tuple[str, ...], states: tuple[State, ...], *body: Assign) -> Program:
    spikes = any(statement.name == "z" for statement in body)
    return Program(f"norse_{name}", inputs, params, states, body, _SPIKE if spikes else (Emit("v", "value"),))


#: Function of one step -> its program, and whether it has weights of its own.
_STEPS: Final[dict[Callable[..., Any], tuple[Program, bool]]] = {
    functional.lif_feed_forward_step: (
        _program("lif", ("x",), _LIF, _STATES, _CHARGE, *_FIRE, Assign("i", (_I - _A_SYN * _I) + _X)),
        False,
    ),
    functional.lif_step: (
        _program("lif_recurrent", ("x", "r"), _LIF, _STATES, Assign("i", _I + _X + _R), _CHARGE, _DECAY, *_FIRE),
        True,
    ),
    functional.lif_box_feed_forward_step: (
        _program(
            "lif_box",
            ("x",),
            ("a_mem", "v_leak", "v_th", "v_reset"),
            (State("v"),),
            Assign("v", _V + _A_MEM * ((_X + _V_LEAK) - _V)),
            *_FIRE,
        ),
        False,
    ),
    iaf_feed_forward_step: (_program("iaf", ("x",), ("v_th", "v_reset"), (State("v"),), Assign("v", _V + _X), *_FIRE), False),
    functional.li_feed_forward_step: (
        _program("li", ("x",), ("a_mem", "a_syn", "v_leak"), _STATES, Assign("i", _I + _X), _CHARGE, _DECAY),
        False,
    ),
}


def leaf_of(item: Any) -> Leaf | None:
    """The program of a Norse module; None for those whose inside is traced. SPK101 for a module or option that cannot be had."""
    _refuse(item)
    step = getattr(item, "activation", None)
    if not isinstance(item, _BASES) or step not in _STEPS:
        return None
    program, recurrent = _STEPS[step]
    p, dt = item.p, item.dt
    made = {"a_mem": lambda: dt * p.tau_mem_inv, "a_syn": lambda: dt * p.tau_syn_inv}
    with torch.no_grad():
        params = {name: _array(made[name]() if name in made else getattr(p, name)) for name in program.params}
    names = tuple(dict.fromkeys(("z", *program.state_names))) if program.emits[0].name == "z" else program.state_names
    return Leaf(program, params, returns=names, step=_recurrent if recurrent else _feed_forward)


_BASES: Final = (module.snn.SNNCell, module.snn.SNN, module.snn.SNNRecurrentCell, module.snn.SNNRecurrent)


def _refuse(item: Any) -> None:
    """SPK101 and SPK110 for what no graph can compute."""
    name = type(item).__name__
    reason = _REFUSED.get(name)
    if reason is not None and type(item).__module__.startswith("norse."):
        raise CompileError("SPK101", f"Norse's {name} is not supported: {reason[0]}", fix=reason[1])
    p: Any = getattr(item, "p", None)
    if not isinstance(item, _BASES) or not hasattr(p, "method"):
        return
    if p.method == "adjoint":
        raise CompileError(
            "SPK101",
            f"{name} with method='adjoint' is not supported: Norse {VERSION} fails when it runs it",
            fix="use p._replace(method='super'): the forward pass is meant to be the same",
        )
    if step_kind(lambda x: threshold(x, p.method, p.alpha)) != ">":
        raise CompileError(
            "SPK110",
            f"the threshold function '{p.method}' is not a Heaviside step of its input in the forward pass",
            fix="use method='super', 'heaviside', 'triangle', 'tanh', 'circ' or 'heavi_erfc'",
        )


_EXP: Final = ("it takes the exponential of its membrane, which programs cannot", "use LIF or LSNN neurons")
_NOISE: Final = ("it draws random numbers", "encode the data before the model: spikec.encode, or Norse's encoder")
_REFUSED: Final[dict[str, tuple[str, str]]] = {
    **dict.fromkeys(("LIFEx", "LIFExCell", "LIFExRecurrent", "LIFExRecurrentCell"), _EXP),
    **dict.fromkeys(("LIFAdEx", "LIFAdExCell", "LIFAdExRecurrent", "LIFAdExRecurrentCell"), _EXP),
    **dict.fromkeys(("LIFAdExRefracCell", "LIFAdExRefracRecurrentCell", "LIFAdExRefracRecurrent"), _EXP),
    **dict.fromkeys(("PoissonEncoder", "SignedPoissonEncoder"), _NOISE),
    "CobaLIFCell": (f"in Norse {VERSION} its output does not depend on its input", "use LIF or LSNN neurons"),
    "LIFCorrelation": ("it keeps a state for each connection", "use LIF or LSNN neurons"),
}


def _array(item: Any) -> Array:
    array: Array = item.detach().cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
    return array


def _around(item: Any, stand_in: Callable[..., Any]) -> AbstractContextManager[None]:
    """A context in which the module's function of one step is another."""

    @contextmanager
    def replaced() -> Iterator[None]:
        before = item.activation
        item.activation = stand_in
        try:
            yield
        finally:
            item.activation = before

    return replaced()


def _feed_forward(item: Any, call_step: StepCall) -> AbstractContextManager[None]:
    activation = item.activation

    def one_step(x: Any, state: Any, p: Any, dt: float) -> Any:
        def run() -> tuple[Any, dict[str, Any]]:
            out, new = activation(x, state, p, dt)
            named = new._asdict()
            return (out, new), named if out is named["v"] else {"z": out, **named}

        return call_step({"x": x}, state._asdict(), run)

    return _around(item, one_step)


def _recurrent(item: Any, call_step: StepCall) -> AbstractContextManager[None]:
    activation = item.activation

    def one_step(x: Any, state: Any, input_weights: Any, recurrent_weights: Any, p: Any, dt: float) -> Any:
        def run() -> tuple[Any, dict[str, Any]]:
            _, new = activation(x, state, input_weights, recurrent_weights, p, dt)
            return (new.z, new), new._asdict()

        inputs = {
            "x": torch.nn.functional.linear(x, input_weights),
            "r": torch.nn.functional.linear(state.z, recurrent_weights),
        }
        return call_step(inputs, state._asdict(), run)

    return _around(item, one_step)
