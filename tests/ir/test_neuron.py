"""Programs: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import pytest

from spikec.diagnostics import CompileError
from spikec.ir.neuron import Assign, Call, Emit, Num, Program, State, Var, call, substitute, variables
from spikec.ir.text import parse_program

ERRORS = {
    "x = y emit x": "'y' is read before it is set",
    "a = 1 emit a": "'a' is an input or a parameter and cannot be assigned",
    "p = 1 emit p": "'p' is an input or a parameter and cannot be assigned",
    "t = 1 emit t": "'t' is an input or a parameter and cannot be assigned",
    "clip = 1 emit a": "'clip' cannot be used as a name",
    "x = blur(a) emit x": "unknown operation 'blur'",
    "x = min(a) emit x": "'min' takes 2 operands, not 1",
    "x = a and p > 1 emit x": "'and' needs truth values, not numbers",
    "x = not a emit x": "'not' needs truth values, not numbers",
    "x = select(a, 1, 2) emit x": "the first operand of 'select' must be a truth value",
    "x = clip(a, p) emit x": "the second operand of 'clip' must be a literal number of bits, 2 to 63",
    "x = clip(a, 1) emit x": "the second operand of 'clip' must be a literal number of bits, 2 to 63",
    "x = wrap(a, 64) emit x": "the second operand of 'wrap' must be a literal number of bits, 2 to 63",
    "x = rtz(a, -1) emit x": "the second operand of 'rtz' must be a literal number of bits, 0 to 63",
    "x = wrap(a, 8.0) emit x": "the second operand of 'wrap' must be a literal number of bits, 2 to 63",
    "emit y": "emits 'y', which is not set",
    "emit t": "emits 't', which is not set",
    "x = a > 1 x = a emit x: spike": "emits 'x' as a spike, but it is a number, not a truth value",
    "v = a > 1 emit v: spike": "emits 'v' as a spike, but it is a number, not a truth value",
    "emit a, a": "emits a variable twice",
}


@pytest.mark.parametrize("body", ERRORS)
def test_refused(body: str) -> None:
    with pytest.raises(CompileError) as caught:
        parse_program(f"neuron @n(a) params(p) state(v = 0) {{ {body} }}")
    assert str(caught.value) == f"error[SPK302]: neuron @n: {ERRORS[body]}"


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("(a) params(a)", "'a' is declared twice"),
        ("(a) state(a = 0)", "'a' is declared twice"),
        ("(t)", "'t' cannot be used as a name"),
        ("(lambda)", "'lambda' cannot be used as a name"),
        ("(a) state(v: i7 = 0)", "state 'v' has the unknown type 'i7'"),
    ],
)
def test_refused_heads(head: str, message: str) -> None:
    with pytest.raises(CompileError) as caught:
        parse_program(f"neuron @n{head} {{ emit a }}")
    assert str(caught.value) == f"error[SPK302]: neuron @n: {message}"


def test_nothing_emitted() -> None:
    with pytest.raises(CompileError, match="neuron @n: nothing is emitted"):
        Program("n", ("a",), (), (), (), ())


def test_types_and_kinds() -> None:
    p = parse_program(
        "neuron @n(a) state(v: i16 = -3) { s = a > 1 v = s x = select(s, s, a > 2) y = s + 1 emit s, v, x: graded, y }"
    )
    assert p.states == (State("v", -3, "i16"),)
    assert [p.type_of(n) for n in "asvxy"] == ["number", "bool", "number", "bool", "number"]
    assert p.emits == (Emit("s", "spike"), Emit("v", "value"), Emit("x", "graded"), Emit("y", "value"))
    assert p.operations() == {">", "select", "+"}
    assert p.renamed("m").body == p.body and p.state_names == ("v",)
    assert parse_program(p.text()) == p


def test_operators_build_the_same_program_as_text() -> None:
    v, a, b = Var("v"), Var("a"), Var("b")
    built = Program(
        "n",
        ("a", "b"),
        (),
        (State("v"),),
        (
            Assign("v", 2 * v - a / 3 + (1 - b) + (4 + -v)),
            Assign("s", ((v > 1) | ~(v <= a)) & (v >= b) | (v < 2)),
            Assign("w", call("select", Var("s"), (a << 2) >> 1, 1 / b)),
        ),
        (Emit("s", "spike"),),
    )
    text = """neuron @n(a, b) state(v = 0) {
  v = 2 * v - a / 3 + (1 - b) + (4 + -v)
  s = (v > 1 or not v <= a) and v >= b or v < 2
  w = select(s, a << 2 >> 1, 1 / b)
  emit s
}"""
    assert built.text() == text and parse_program(text) == built


def test_variables_and_substitution() -> None:
    expr = parse_program("neuron @n(a, b) { x = select(a > b, a, t) emit x }").body[0].expr
    assert list(variables(expr)) == ["a", "b", "a", "t"]
    swapped = substitute(expr, {"a": Var("b"), "b": Num(2)})
    assert swapped == call("select", Call(">", (Var("b"), Num(2))), Var("b"), Var("t"))
