"""NIR's neuron models as programs, and the step from their equations to numbers and back.

| model | program, once a step |
|---|---|
| I, IF | v = v + gain x |
| LI, LIF | v = decay v + gain x + rest |
| CubaLI, CubaLIF | i = alpha i + w x; v = beta v + gain i + rest |
| Threshold | s = x > theta |

and for the spiking ones s = v > theta; v = select(s, reset, v). `fold` makes the numbers from tau, r and so on, in double
precision and rounded once to the file's own type; `unfold` finds tau, r and so on that fold to given numbers, exactly where there
are any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.neuron import Program
from spikec.ir.types import Array

Scheme = Literal["euler", "exponential", "exact"]
SCHEMES: Final = ("euler", "exponential", "exact")
NEURONS: Final = ("I", "IF", "LI", "LIF", "CubaLI", "CubaLIF", "Threshold")


@dataclass(frozen=True)
class Model:
    """A neuron but for its numbers. `rest`: v_leak is not zero everywhere; `nonzero`: v_reset is not.

    The scheme is in the program's name only: its numbers came from time constants in this way.
    """

    kind: str
    scheme: str = "euler"
    rest: bool = False
    compare: str = ">"
    reset: str = "v_reset"
    nonzero: bool = False
    current: str = "new"

    @property
    def spikes(self) -> bool:
        """Whether it emits spikes and not its membrane."""
        return self.kind in ("IF", "LIF", "CubaLIF", "Threshold")

    @property
    def synapse(self) -> bool:
        """Whether its input passes through a current with memory."""
        return self.kind.startswith("Cuba")


@cache
def program(model: Model) -> Program:
    """The program of a model, always the same under the same name."""
    from spikec.ir.text import parse_program

    op = model.compare
    name, params, states, body = f"nir_{model.kind.lower()}", [], [], []
    if model.kind == "Threshold":
        params, body = ["theta"], [f"s = x {op} theta"]
    else:
        leak = " + rest" if model.rest else ""
        if model.synapse:
            params, states = ["alpha", "w", "beta", "gain"], ["i = 0", "v = 0"]
            body = ["i = alpha * i + w * x", f"v = beta * v + gain * i{leak}"]
            if model.current == "old":
                body.reverse()
        elif model.kind in ("LI", "LIF"):
            params, states, body = ["decay", "gain"], ["v = 0"], [f"v = decay * v + gain * x{leak}"]
        else:
            params, states, body = ["gain"], ["v = 0"], ["v = v + gain * x"]
        if model.rest:
            params.append("rest")
        if model.spikes:
            params.append("theta")
            after = "reset" if model.nonzero else "0"
            if model.nonzero:
                params.append("reset")
            if model.reset == "subtract":
                after = "v - (theta - reset)" if model.nonzero else "v - theta"
            body += [f"s = v {op} theta", f"v = select(s, {after}, v)"]
    parts = [
        (model.scheme, model.scheme != "euler"),
        ("leak", model.rest),
        ("old_current", model.current == "old"),
        ("subtract", model.reset == "subtract"),
    ]
    parts += [("reset", model.nonzero), ("ge", op == ">=")]
    name = "_".join([name, *(part for part, there in parts if there)])
    head = f"neuron @{name}(x) params({', '.join(params)})" + (f" state({', '.join(states)})" if states else "")
    return parse_program("\n".join([head + " {", *body, f"emit {'s' if model.spikes else 'v'}", "}"]))


def model_of(found: Program) -> Model | None:
    """The model whose program this is, or None: its name says which one it would have to be."""
    head, _, rest = found.name.removeprefix("nir_").partition("_")
    kind = next((kind for kind in NEURONS if kind.lower() == head), None)
    if kind is None or not found.name.startswith("nir_"):
        return None
    scheme = next((scheme for scheme in SCHEMES[1:] if rest.startswith(scheme)), SCHEMES[0])
    flags = f"_{rest}_"
    model = Model(
        kind,
        scheme=scheme,
        rest="_leak_" in flags,
        compare=">=" if "_ge_" in flags else ">",
        reset="subtract" if "_subtract_" in flags else "v_reset",
        nonzero="_reset_" in flags,
        current="old" if "_old_current_" in flags else "new",
    )
    return model if program(model) == found else None


# ------------------------------------------------------------------------------------------------- numbers of one step


def factors(tau: Array, dt: float, scheme: str) -> tuple[Array, Array, Array]:
    """What remains of a state after a step, and by what the input and the resting value enter it."""
    ratio = dt / tau.astype(np.float64)
    if scheme == "euler":
        return 1.0 - ratio, ratio, ratio
    relaxed = -np.expm1(-ratio)
    return np.exp(-ratio), (relaxed if scheme == "exact" else ratio), relaxed


def fold(kind: str, values: dict[str, Array], dt: float | None, scheme: str, integrator: str) -> dict[str, Array]:
    """The program's numbers in float64 from the model's: `values` holds NIR's fields, broadcast to one shape."""
    wide = {key: value.astype(np.float64) for key, value in values.items()}
    if kind == "Threshold":
        return {"theta": wide["threshold"]}
    if kind in ("I", "IF"):
        result = {"gain": wide["r"] if integrator == "step" else wide["r"] * float(dt or 0)}
    elif kind in ("LI", "LIF"):
        decay, enter, relax = factors(wide["tau"], float(dt or 0), scheme)
        result = {"decay": decay, "gain": enter * wide["r"], "rest": relax * wide["v_leak"]}
    else:
        alpha, enter, _ = factors(wide["tau_syn"], float(dt or 0), scheme)
        result = {"alpha": alpha, "w": enter * wide["w_in"]}
        beta, enter, relax = factors(wide["tau_mem"], float(dt or 0), scheme)
        result |= {"beta": beta, "gain": enter * wide["r"], "rest": relax * wide["v_leak"]}
    if "v_threshold" in wide:
        result |= {"theta": wide["v_threshold"], "reset": wide["v_reset"]}
    return result


def unfold(
    decay: Array, parts: dict[str, tuple[Array, bool]], given: dict[str, Array], dt: float, scheme: str
) -> tuple[Array, dict[str, Array], bool]:
    """tau, and for each part (number, whether it relaxes) the factor that folds to it; whether all of it is exact.

    All in the dtype of `decay`. Rounding leaves several taus to choose from, and not every number is a rounded multiple of dt/tau:
    the neighbours of the obvious tau are tried until every part has a factor. `given` holds factors that must be these.
    """
    dtype = decay.dtype
    with np.errstate(divide="ignore", invalid="ignore"):
        wide = decay.astype(np.float64)
        first = (dt / (1.0 - wide) if scheme == "euler" else -dt / np.log(wide)).astype(dtype)
    if not np.all(np.isfinite(first) & (first > 0)):
        raise CompileError("SPK201", f"a decay of {_worst(decay, scheme)} belongs to no time constant (scheme {scheme})")
    tau, done = first.copy(), np.zeros(decay.shape, bool)
    values: dict[str, Array] = {}
    for distance in _near():
        candidate = _shifted(first, distance)
        found_decay, enter, relax = factors(candidate, dt, scheme)
        good = (found_decay.astype(dtype) == decay) & (candidate > 0)
        found = {}
        for name, (number, relaxes) in parts.items():
            found[name], hit = _divided(number, relax if relaxes else enter, given.get(name))
            good &= hit
        take = (good & ~done) if values else np.ones(decay.shape, bool)
        tau = np.where(take, candidate, tau)
        values = {name: np.where(take, value, values.get(name, value)) for name, value in found.items()}
        done |= good
        if done.all():
            break
    return tau.astype(dtype), {name: value.astype(dtype) for name, value in values.items()}, bool(done.all())


def _divided(number: Array, factor: Array, given: Array | None) -> tuple[Array, Array]:
    """x with factor * x rounding to the number, and where there is one."""
    dtype = number.dtype
    if given is not None:
        return given, (factor * given.astype(np.float64)).astype(dtype) == number
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(number == 0, 0, number.astype(np.float64) / factor).astype(dtype)
    best, hit = first, (factor * first.astype(np.float64)).astype(dtype) == number
    for distance in (1, -1, 2, -2):
        if hit.all():
            break
        near = _shifted(first, distance)
        good = ((factor * near.astype(np.float64)).astype(dtype) == number) & ~hit
        best, hit = np.where(good, near, best), hit | good
    return best, hit


def _near() -> Iterator[int]:
    """0, 1, -1, ... and then in widening steps: those in equal steps can all miss in the same way."""
    yield 0
    distance = 1
    while distance < 1 << 24:
        yield from (distance, -distance)
        distance += 1 + distance // 8


def _shifted(array: Array, steps: int) -> Array:
    """The number so many representable ones further."""
    bits: Any = np.int32 if array.dtype == np.float32 else np.int64
    raw: Array = np.asarray(array).view(bits)
    moved: Array = np.where(raw >= 0, raw + bits(steps), raw - bits(steps)).astype(bits)
    return np.where(array == 0, array, moved.view(array.dtype))


def _worst(decay: Array, scheme: str) -> float:
    flat = decay.ravel()
    bad = ~((flat < 1) & ((flat > 0) | (scheme == "euler")))
    return float(flat[bad][0]) if bad.any() else float(flat[0])
