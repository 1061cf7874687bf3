"""Programs up to algebra: equivalent spellings match, others do not, and what matches computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikec.ir.algebra import Match, match, same_state
from spikec.ir.interpret import float_truth, run_program
from spikec.ir.neuron import STEP, Assign, Call, Expr, Num, Program, Var
from spikec.ir.text import parse_program
from spikec.target import load_target

PATTERN, PERIODIC = (parse_program(item.pattern) for item in load_target("loihi2").neurons[:2])


def lif(body: str, params: str = "beta, theta", state: str = "v = 0", emit: str = "s") -> Program:
    return parse_program(f"neuron @user(x) params({params}) state({state}) {{ {body} emit {emit} }}")


VALUES = {
    "beta": np.float64(0.5),
    "theta": np.float64(1.25),
    "tau": np.float64(2.0),
    "g": np.float64(0.5),
    "alpha": np.float64(0.25),
}


def found(program: Program, pattern: Program = PATTERN, **values: Any) -> Match | str:
    table = VALUES | values
    return match(program, {name: table[name] for name in program.params}, pattern)


SAME = {
    "v = beta * v + x s = v > theta v = select(s, 0, v)": (0, 0.5, 1.25, 0, 1),
    "v = x + v * beta s = theta < v v = v * (1 - s)": (0, 0.5, 1.25, 0, 1),
    "v = v - (1 - beta) * v + x s = not v <= theta v = v - s * v": (0, 0.5, 1.25, 0, 1),
    "m = beta * v + x s = m > theta v = select(not s, m, 0)": (0, 0.5, 1.25, 0, 1),
    "v = beta * v + x s = 2 * v > 2 * theta v = select(s, 0, v)": (0, 0.5, 1.25, 0, 1),
    "v = beta * v + x s = v > theta v = select(s, 0, 1) * v": (0, 0.5, 1.25, 0, 1),
    "v = beta * v + (1 - beta) * x s = v > theta v = select(s, 0, v)": (0, 0.5, 1.25, 0, 0.5),
    "v = beta * v + x + 0.75 s = v > theta v = select(s, 0, v)": (0, 0.5, 1.25, 0.75, 1),
    "v = v + (x - v) / 2 s = v >= theta r = not theta >= v v = select(r, 0, v) s = r": (0, 0.5, 1.25, 0, 0.5),
    "v = exp(-1 / 2) * v + x s = v > theta v = select(s, 0, v)": (0, float(np.exp(-0.5)), 1.25, 0, 1),
    "v = x s = v > theta v = select(s, 0, v)": (0, 0, 1.25, 0, 1),
    "v = max(v, v) * beta + x s = v > theta v = select(s, 0, v)": (0, 0.5, 1.25, 0, 1),
    "v = beta * v + x s = v > theta and v > theta v = select(s, 0, v)": (0, 0.5, 1.25, 0, 1),
    "a = beta * v b = a + x v = b s = b > theta v = select(s, v - b, b)": (0, 0.5, 1.25, 0, 1),
}


@pytest.mark.parametrize("body", SAME)
def test_equivalent_spellings_match(body: str) -> None:
    result = found(lif(body))
    assert isinstance(result, Match), result
    alpha, beta, theta, bias, gain = SAME[body]
    got = [float(result.params[name]) for name in ("alpha", "beta", "theta", "bias")]
    np.testing.assert_allclose(got, [alpha, beta, theta, bias], rtol=1e-15, atol=1e-15)
    assert result.gains[0] == gain and result.states == {"v": "v"}


def test_two_states_in_any_order() -> None:
    text = "i = alpha * i + x m = beta * m + i s = m > theta m = select(s, 0, m)"
    for state in ("i = 0, m = 0", "m = 0, i = 0"):
        result = found(lif(text, "alpha, beta, theta", state))
        assert isinstance(result, Match) and result.states == {"u": "i", "v": "m"}
        assert [float(result.params[k]) for k in ("alpha", "beta", "theta", "bias")] == [0.25, 0.5, 1.25, 0]


DIFFERENT = {
    "r = v > theta v = beta * v + x - r * theta s = v > theta": "has a term in v that the native neuron lacks",
    "v = beta * v + x s = v >= theta v = select(s, 0, v)": "compares with the opposite sign",
    "v = beta * v + x s = v > theta v = v - s * theta": "",
    "v = beta * v + x s = v < theta v = select(s, 0, v)": "compares with the opposite sign",
    "v = beta * v - x s = v > theta v = select(s, 0, v)": None,
    "v = beta * v + x s = -v > theta v = select(s, 0, v)": "compares with the opposite sign",
    "s = v > theta v = select(s, 0, beta * v + x)": "",
    "v = beta * v + x s = v > theta v = select(s, 0.5, v)": "a constant",
    "v = beta * v * v + x s = v > theta v = select(s, 0, v)": "",
    "v = beta * v + x * x s = v > theta v = select(s, 0, v)": "",
    "v = beta * v + x s = v > theta": "depends on other conditions",
    "v = max(beta * v + x, 0) s = v > theta v = select(s, 0, v)": "depends on other conditions",
    "v = beta * v + x s = v > theta * (1 + t) v = select(s, 0, v)": "",
    "v = beta * v + x + rem(t, 3) s = v > theta v = select(s, 0, v)": "",
    "v = beta * v + x s = 1.5 * v > theta + v * v v = select(s, 0, v)": "",
    "v = beta * v + x s = 0.25 * x + v > theta v = select(s, 0, v)": "factor",
    "v = beta * v + 0 * x s = v > theta v = select(s, 0, v)": "",
}


@pytest.mark.parametrize("body", DIFFERENT)
def test_others_do_not_match(body: str) -> None:
    result = found(lif(body))
    if DIFFERENT[body] is None:  # a negative gain is a gain: the weights change their sign
        assert isinstance(result, Match) and result.gains[0] == -1
        return
    assert isinstance(result, str), result
    assert DIFFERENT[body] in result


def test_other_numbers_of_inputs_and_states() -> None:
    two = parse_program("neuron @two(a, b) state(v = 0) { v = v + a + b s = v > 1 v = select(s, 0, v) emit s }")
    assert match(two, {}, PATTERN) == "it has 2 inputs; the native neuron has 1"
    three = parse_program("neuron @three(a) state(u = 0, v = 0, w = 0) { u = a v = u w = v s = w > 1 emit s }")
    assert match(three, {}, PATTERN) == "it has 3 states; the native neuron has 2"


def test_an_infinite_threshold_matches() -> None:
    result = found(lif("v = beta * v + x s = v > theta v = select(s, 0, v)"), theta=np.inf)
    assert isinstance(result, Match) and result.params["theta"] == np.inf and result.params["bias"] == 0


def test_parameters_per_neuron() -> None:
    beta, theta, g = np.array([0.5, 0.0, 1.0]), np.array([1.0, 0.5, 2.0]), np.array([1.0, 2.0, 0.5])
    program = lif("v = beta * v + g * x s = v > theta v = select(s, 0, v)", "beta, theta, g")
    result = found(program, beta=beta, theta=theta, g=g)
    assert isinstance(result, Match)
    assert result.params["beta"].tolist() == beta.tolist() and result.params["theta"].tolist() == theta.tolist()
    assert result.gains[0].tolist() == g.tolist()
    dead = found(program, beta=beta, theta=theta, g=np.array([1.0, 0.0, 1.0]))
    assert dead == "an input has no effect on some of the neurons"


def test_a_periodic_reset() -> None:
    body = "r = {} v = select(r, 0, v) v = beta * v + x s = v > theta v = select(s, 0, v)"
    result = found(lif(body.format("rem(t, 4) == 1")), PERIODIC)
    assert isinstance(result, Match), result
    assert (float(result.params["interval"]), float(result.params["offset"])) == (4, 1)
    result = found(lif(body.replace("select(r, 0, v)", "select(r, v, 0)", 1).format("rem(t, 8) != 0")), PERIODIC)
    assert isinstance(result, Match) and float(result.params["interval"]) == 8
    for condition in ("rem(t + 1, 4) == 1", "rem(t, 4) == rem(t, 3)", "floor(t / 4) == 1", "t == 4", "rem(x, 4) == 1"):
        assert isinstance(found(lif(body.format(condition)), PERIODIC), str), condition
    assert isinstance(found(lif(body.format("rem(t, 4) == 1"))), str)
    assert isinstance(found(lif("v = beta * v + x s = v > theta v = select(s, 0, v)"), PERIODIC), str)


def test_states_after_the_step() -> None:
    program = lif("m = beta * v + x s = m > theta v = select(s, 0, m) w = m - s * m k = v * 2", emit="s, m, w, v, k")
    values = {k: VALUES[k] for k in program.params}
    assert [same_state(program, values, name) for name in ("m", "w", "v", "k")] == [None, "v", "v", None]


# ---------------------------------------------------------------------------------------------------- random rewrites


def rewrites(draw: Any, expr: Expr) -> Expr:
    """An expression of equal value, with exact arithmetic on dyadic numbers."""
    if isinstance(expr, Call):
        expr = Call(expr.op, tuple(rewrites(draw, arg) for arg in expr.args))
    choice = draw(st.integers(0, 11))
    if isinstance(expr, Call):
        op, args = expr.op, expr.args
        if op in ("+", "*") and choice < 3:
            expr = Call(op, args[::-1])
        elif op == ">" and choice < 3:
            expr = Call("<", args[::-1])
        elif op == ">" and choice < 6:
            expr = Call("not", (Call("<=", args),))
        elif op == ">" and choice < 8:
            expr = Call(">", (Call("-", args), Num(0)))
        elif op == ">" and choice == 8:
            expr = Call(">", (Call("*", (Num(4), args[0])), Call("*", (args[1], Num(4)))))
        elif op == "*" and choice == 3 and isinstance(args[1], Call) and args[1].op == "+":
            expr = Call("+", tuple(Call("*", (args[0], a)) for a in args[1].args))
        elif op == "select" and choice < 3:
            expr = Call("select", (Call("not", (args[0],)), args[2], args[1]))
        elif op == "select" and choice < 6:
            expr = Call("+", (Call("*", (args[0], args[1])), Call("*", (Call("-", (Num(1), args[0])), args[2]))))
        elif op in ("+", "-", "*") and choice == 9:
            expr = Call("neg", (Call("neg", (expr,)),))
        elif op in ("+", "-", "*") and choice == 10:
            expr = Call("/", (Call("*", (expr, Num(2))), Num(2)))
        elif op in ("+", "-", "*") and choice == 11:
            expr = Call("-", (Call("+", (expr, Num(3))), Num(3)))
    return expr


@st.composite
def spellings(draw: Any) -> Program:
    text = draw(st.sampled_from([
        "v = beta * v + x s = v > theta v = select(s, 0, v)",
        "v = beta * (v + x) s = v > theta v = select(s, 0, v)",
        "i = alpha * i + x v = beta * v + i s = v > theta v = select(s, 0, v)",
        "i = alpha * i + x v = beta * v + i + g s = v > theta v = select(s, 0, v)",
    ]))  # fmt: skip
    two = "i =" in text
    base = lif(text, "alpha, beta, theta, g", "i = 0, v = 0" if two else "v = 0")
    body: list[Assign] = []
    for index, statement in enumerate(base.body):
        expr = rewrites(draw, statement.expr)
        if draw(st.booleans()):
            body.append(Assign(f"tmp{index}", expr))
            expr = Var(f"tmp{index}")
        body.append(Assign(statement.name, expr))
    return Program("user", base.inputs, base.params, base.states, tuple(body), base.emits)


@settings(max_examples=200, deadline=None)
@given(spellings(), st.integers(0, 1 << 30))
def test_random_spellings_match_and_simulate_identically(program: Program, seed: int) -> None:
    rng = np.random.default_rng(seed)
    eighths = lambda lo, hi: rng.integers(lo, hi, 5) / 8
    params = {
        "alpha": rng.choice([0.5, 0.25, 1.0], 5),
        "beta": rng.choice([0.5, 0.25, 1.0], 5),
        "theta": eighths(1, 20),
        "g": eighths(-4, 5),
    }
    result = match(program, params, PATTERN)
    assert isinstance(result, Match), (result, program.text())
    own = {s.name: np.zeros(5) for s in program.states}
    other = {s.name: np.zeros(5) for s in PATTERN.states}
    for t in range(7):
        x = eighths(-4, 12)
        a = run_program(program, {"x": x, STEP: t, **params, **own}, float_truth)
        b = run_program(PATTERN, {"a": x * result.gains[0], STEP: t, **result.params, **other}, float_truth)
        np.testing.assert_array_equal(a["s"], b["s"])
        own, other = {k: a[k] for k in own}, {k: b[k] for k in other}
        for state, name in result.states.items():
            np.testing.assert_array_equal(own[name], other[state])


def test_a_parameter_that_another_one_multiplies_is_found_through_it() -> None:
    """theta_0 (1 - rho) stands for theta_0 once rho is known; where rho is 1 nothing determines it."""
    (pattern,) = (parse_program(n.pattern) for n in load_target("loihi2").neurons if n.name == "ATRLIF")
    text = """neuron @adapt(x) params(k) state(v = 0, th = 0.75, r = 0) {
      v = 0.5 * v + x
      th = k * th + 0.1875
      r = 0.5 * r
      s = v - r >= th
      r = select(s, r + 2 * th, r)
      th = select(s, th + 0.25, th)
      emit s
    }"""
    found = match(parse_program(text), {"k": np.float64(0.75)}, pattern)
    assert isinstance(found, Match)
    numbers = {name: float(value) for name, value in found.params.items()}
    assert (numbers["rho"], numbers["theta_0"], numbers["gamma"], numbers["step"]) == (0.75, 0.75, 0.5, 0.25)
    lost = match(parse_program(text.replace("+ 0.1875", "+ 0")), {"k": np.float64(1.0)}, pattern)
    assert isinstance(lost, str)
