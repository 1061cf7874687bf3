"""What the tracer takes the layers of `spikec.nn` for: the same equations as neuron programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError
from spikec.frontend.nn.neurons import ALIF, CUBALIF, LI, LIF, Neuron, Spiking, Stateful
from spikec.frontend.registry import Leaf, Support
from spikec.frontend.tracing.neurons import step_kind
from spikec.ir.neuron import Assign, Emit, Expr, Program, State, Var, call

_THETA, _A, _S, _U, _V, _X = (Var(name) for name in ("threshold", "a", "s", "u", "v", "x"))


def _fires(module: Spiking, theta: Expr) -> list[Assign]:
    """The spike and the reset."""
    compare = step_kind(module.surrogate)
    if compare is None:
        raise CompileError(
            "SPK110",
            f"the surrogate of {type(module).__name__} is not a Heaviside step of its input in the forward pass",
            fix="use a function of spikec.nn.surrogate, or surrogate.step(slope) with a slope of your own",
        )
    left = call("select", _S, 0, _V) if module.reset_by == "zero" else _V - _S * theta
    return [Assign("s", call(compare, _V, theta)), Assign("v", left)]


def _lif(module: LIF) -> tuple[Assign, ...]:
    return (Assign("v", Var("beta") * _V + _X), *_fires(module, _THETA))


def _cuba(module: CUBALIF) -> tuple[Assign, ...]:
    carry = Var("beta") * _V + _U
    body = [Assign("u", Var("alpha") * _U + _X), Assign("v", carry + Var("bias") if _numbers(module)["bias"].any() else carry)]
    return (*body, *_fires(module, _THETA))


def _alif(module: ALIF) -> tuple[Assign, ...]:
    body = [Assign("v", Var("beta") * _V + _X), Assign("theta", _THETA + _A), *_fires(module, Var("theta"))]
    return (*body, Assign("a", Var("rho") * _A + Var("rise") * _S))


def _li(module: LI) -> tuple[Assign, ...]:
    return (Assign("v", Var("beta") * _V + _X),)


#: Layer -> its statements. A subclass is no entry: it may compute something else, and is traced inside.
_BODIES: Final[dict[type, Callable[[Any], tuple[Assign, ...]]]] = {LIF: _lif, CUBALIF: _cuba, ALIF: _alif, LI: _li}


def _numbers(module: Neuron) -> dict[str, Any]:
    return {name: module.number(name).detach().cpu().numpy() for name in module.numbers}


def leaf_of(module: Any) -> Leaf | None:
    """The program of a layer; None for what is traced inside. SPK110 for a surrogate that is no step."""
    if type(module) not in _BODIES:
        return None
    body = _BODIES[type(module)](module)
    emitted = "s" if isinstance(module, Spiking) else "v"
    numbers = _numbers(module)
    used = [name for name in module.numbers if name != "bias" or np.any(numbers["bias"])]
    kind = type(module).__name__.lower() + ("_subtract" if getattr(module, "reset_by", "") == "subtract" else "")
    compares = [statement.expr for statement in body if statement.name == "s"]
    kind += "_ge" if any(getattr(expr, "op", "") == ">=" for expr in compares) else ""
    kind += "_bias" if "bias" in used else ""
    program = Program(
        kind,
        ("x",),
        tuple(used),
        tuple(State(name) for name in module.states),
        body,
        (Emit(emitted, "spike" if emitted == "s" else "value"),),
    )
    return Leaf(
        program=program,
        params={name: numbers[name] for name in used},
        arguments=("x",),
        returns=(emitted,),
        hidden={} if module.time_axis is not None else {name: name for name in module.states},
        mismatch_resets=True,
        time_axis=module.time_axis,
    )


def reset(module: Any) -> None:
    """Forget what a module has seen."""
    if isinstance(module, Stateful):
        module.reset()


@contextmanager
def isolated(model: Any) -> Iterator[None]:
    """Nothing is shared between models."""
    yield


VERSION: Final = "this release"
SUPPORT: Final = (
    Support("LIF", "reset_by=zero, subtract", "exact"),
    Support("CUBALIF", "reset_by=zero, subtract; bias", "exact"),
    Support("ALIF", "reset_by=zero, subtract", "exact"),
    Support("LI", "", "exact"),
    Support("LIF, CUBALIF, ALIF, LI", "time_axis; numbers per neuron; learnt numbers", "exact"),
    Support("LIF, CUBALIF, ALIF", "a surrogate whose forward pass is no step", "refused", "use spikec.nn.surrogate"),
    Support("Linear, Conv1d, Conv2d", "grid", "exact", "the quantizer finds the same integers again"),
    Support("SparseLinear", "grid", "exact", "only the connections that there are"),
    Support("DelayLinear", "grid, time_axis", "exact", "delays are whole numbers in eval mode; one call a step"),
    Support("AxonalDelay", "one delay, or one a neuron", "exact", "one call a step"),
)
