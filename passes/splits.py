"""Neurons that keep what a spike leaves over, as neurons of a target whose spikes erase the membrane: exact rewrites with synapses.

The target's neuron has two states: a current with a decay of its own, which a spike leaves alone, and a membrane, which a spike
erases. Where the membrane forgets at once (beta = 0) it is the current, and the current is a membrane that nothing resets. What a
spike takes off it at the next step is a synapse from the neuron to itself: v = b v + x, s = v > theta, v = v - s d is

    u[t] = b u[t-1] + x[t] - b d s[t-1],   s[t] = u[t] > theta

and a synapse takes a step anyway. Several thresholds are several such neurons with the same input and the same feedback, whose
spikes add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np

from spikec.ir.algebra import Match, match
from spikec.ir.neuron import Program
from spikec.ir.text import parse_program
from spikec.ir.types import Array

#: Neurons that one neuron with several thresholds may become.
MOST: Final = 8


@dataclass(frozen=True)
class Comparator:
    """Spikes where sign * membrane passes theta (`reached`: or reaches it); its spikes count `emits` times."""

    theta: Array
    sign: int = 1
    emits: int = 1


@dataclass(frozen=True)
class Split:
    """A population as comparators of one membrane that decays by beta.

    drop: what each message, times its value, takes off the membrane a step later. bias: added at every step. gain: of the input.
    state: the program's name for the membrane where that is what the program holds after a step, else "".
    """

    what: str
    beta: Array
    drop: Array
    bias: Array
    gain: Array
    comparators: tuple[Comparator, ...]
    reached: bool
    own: str
    state: str


def _single(op: str, reset: str) -> Program:
    body = {
        "same": f"v = beta * v + a + bias s = v {op} theta v = v - s * drop",
        "delayed": f"r = v {op} theta v = beta * v + a + bias - r * drop s = v {op} theta",
        "none": f"v = beta * v + a + bias s = v {op} theta",
    }[reset]
    params = "beta, theta, bias" + (", drop" if reset != "none" else "")
    return parse_program(f"neuron @single(a) params({params}) state(v = 0) {{ {body} emit s }}")


def _counting(most: int) -> Program:
    body = f"v = beta * v + a + bias n = min(max(floor(v * per), 0), {most}) v = v - n * drop"
    return parse_program(f"neuron @counting(a) params(beta, per, bias, drop) state(v = 0) {{ {body} emit n: graded }}")


def _stepped(count: int, op: str) -> Program:
    """A sum of truths over one membrane, which they do not change."""
    parts = " + ".join(f"e{k} * (v {op} theta{k})" for k in range(count))
    names = ", ".join(f"e{k}, theta{k}" for k in range(count))
    return parse_program(
        f"neuron @stepped(a) params(beta, bias, {names}) state(v = 0) {{ v = beta * v + a + bias y = {parts} emit y: graded }}"
    )


def _ternary(op: str, reset: bool, nested: bool) -> Program:
    sides = f"select(v {op} hi, 1, select(-v {op} low, -1, 0))" if nested else f"(v {op} hi) - (-v {op} low)"
    body = f"v = beta * v + a + bias y = {sides}" + (" v = v - y * drop" if reset else "")
    params = "beta, hi, low, bias" + (", drop" if reset else "")
    return parse_program(f"neuron @ternary(a) params({params}) state(v = 0) {{ {body} emit y: graded }}")


def find_split(program: Program, params: Mapping[str, Array], init: Mapping[str, Array]) -> Split | None:
    """How a population of one input and one state is comparators of a membrane; None where it is none."""
    if len(program.inputs) != 1 or len(program.states) != 1:
        return None
    return next((found for found in _splits(program, params, init)), None)


def _splits(program: Program, params: Mapping[str, Array], init: Mapping[str, Array]) -> Iterator[Split]:
    own = program.state_names[0]
    begin = np.asarray(init.get(own, program.states[0].init), np.float64)

    def made(found: Match, what: str, comparators: tuple[Comparator, ...], reached: bool, reset: str) -> Split:
        solved = found.params
        drop = solved.get("drop", np.zeros(()))
        # What a spike takes off at once has decayed by the next step.
        drop = drop * solved["beta"] if reset == "same" else drop
        state = own if reset != "same" else ""
        return Split(what, solved["beta"], drop, solved["bias"], found.gains[0], comparators, reached, own, state)

    for op in (">", ">="):
        for reset in ("same", "delayed", "none"):
            found = match(program, params, _single(op, reset))
            if not isinstance(found, Match) or np.any(found.params["theta"] < (0 if op == ">" else np.finfo(float).tiny)):
                continue
            theta = found.params["theta"]
            # A delayed reset asks for the state before the first step too, when no neuron has sent anything.
            if reset == "delayed" and np.any(begin > theta if op == ">" else begin >= theta):
                continue
            yield made(found, "one threshold", (Comparator(theta),), op == ">=", reset)
        for reset, nested in product(("same", "none"), (False, True)):
            found = match(program, params, _ternary(op, reset == "same", nested))
            if isinstance(found, Match):
                both = (Comparator(found.params["hi"]), Comparator(found.params["low"], -1, -1))
                if all(np.all(item.theta > 0) for item in both):
                    yield made(found, "a threshold on either side", both, op == ">=", reset)
        for count in (2, 3, 4):
            found = match(program, params, _stepped(count, op))
            if not isinstance(found, Match):
                continue
            thetas = [found.params[f"theta{k}"] for k in range(count)]
            weights = [found.params[f"e{k}"] for k in range(count)]
            plain = all(e.size == 1 and float(e) == round(float(e)) and 0 < abs(float(e)) <= MOST for e in weights)
            if plain and all(np.all(theta > 0) for theta in thetas):
                parts = tuple(Comparator(theta, 1, round(float(e))) for theta, e in zip(thetas, weights, strict=True))
                yield made(found, f"{count} thresholds", parts, op == ">=", "none")
    for most in range(1, MOST + 1):
        found = match(program, params, _counting(most))
        if isinstance(found, Match) and np.all(found.params["per"] > 0):
            parts = tuple(Comparator(k / found.params["per"]) for k in range(1, most + 1))
            yield made(found, f"{most} thresholds", parts, True, "same")


def as_numbers(value: Any) -> Array:
    """A solved number as nodes hold it: 64-bit floats, without an axis where it is one for all."""
    array = np.asarray(value, np.float64)
    return array.reshape(()) if array.size == 1 and array.ndim <= 1 else array
