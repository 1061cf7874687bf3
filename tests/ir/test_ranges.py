"""Worst-case intervals: sound for every random graph, and tight where it matters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import dense, graph, native, spikes
from strategies import fixed_programs, graphs, random_inputs

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import Interpreter, evaluate, fixed_truth
from spikec.ir.neuron import STEP, Call, Expr, children
from spikec.ir.ops import Conv, Input, Neuron, Ref
from spikec.ir.ranges import graph_ranges, program_ranges
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType


def inside(values: np.ndarray, interval: tuple[int, int], what: object) -> None:
    if np.size(values):
        assert interval[0] <= int(np.min(values)) and int(np.max(values)) <= interval[1], (what, interval, values)


@settings(max_examples=120, deadline=None)
@given(graphs("fixed"), st.integers(0, 1000))
def test_every_value_met_lies_inside(g: Graph, seed: int) -> None:
    ranges = graph_ranges(g)
    x = random_inputs(g, 3, 12, seed)
    machine = Interpreter(g, 3)
    for t in range(14):
        frame = {n.name: x[n.name][:, t] if t < 12 else np.zeros((3, *n.type.shape), np.int64) for n in g.inputs}
        now = machine.step(frame)
        for wire, value in now.items():
            inside(value, ranges.wires[wire], wire)
        for node in g.neurons:
            for state, value in machine.states[node.name].items():
                inside(value, ranges.neurons[node.name].states[state], (node.name, state))


def taken(expr: Expr, values: dict, where: np.ndarray, index: int, intervals: dict) -> None:
    """Every expression's values where its branch is the one that is chosen."""
    if not where.any():
        return
    value = np.broadcast_to(fixed_truth(np.asarray(evaluate(expr, values, fixed_truth))), where.shape)
    inside(value[where], intervals[index, expr], expr)
    if isinstance(expr, Call) and expr.op == "select":
        condition = np.broadcast_to(np.asarray(evaluate(expr.args[0], values, fixed_truth)), where.shape)
        taken(expr.args[0], values, where, index, intervals)
        taken(expr.args[1], values, where & condition, index, intervals)
        taken(expr.args[2], values, where & ~condition, index, intervals)
        return
    for child in children(expr):
        taken(child, values, where, index, intervals)


@settings(max_examples=150, deadline=None)
@given(fixed_programs(inputs=(10,)), st.integers(0, 1 << 30))
def test_every_expression_lies_inside(made: object, seed: int) -> None:
    program, widths = made.program, made.params
    rng = np.random.default_rng(seed)
    params = {k: rng.integers(-(1 << b) + 1, 1 << b, 6) for k, b in widths.items()}
    bounds = {k: (int(v.min()), int(v.max())) for k, v in params.items()}
    init = {s.name: (int(s.init), int(s.init)) for s in program.states}
    result = program_ranges(program, [(-1023, 1023)], bounds, init)
    states = {s.name: np.full(6, s.init, np.int64) for s in program.states}
    for t in range(8):
        values = {program.inputs[0]: rng.integers(-1023, 1024, 6), **params, **states, STEP: t}
        for index, statement in enumerate(program.body):
            taken(statement.expr, values, np.ones(6, bool), index, result.values)
            value = evaluate(statement.expr, values, fixed_truth)
            values[statement.name] = np.broadcast_to(fixed_truth(np.asarray(value)), (6,)) if statement.name in states else value
        for name in states:
            states[name] = np.array(values[name])
            inside(states[name], result.states[name], name)


def ranges_of(text: str, inputs: list[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    program = parse_program(text)
    result = program_ranges(program, inputs, {}, {s.name: (int(s.init), int(s.init)) for s in program.states})
    return result.final | result.states


TIGHT = {
    "x = a + b": (-2, 27), "x = a * b": (-50, 170), "x = -a": (-17, 5), "x = abs(a)": (0, 17), "x = min(a, b)": (-5, 10), "x = max(a, b)": (3, 17),
    "x = a << 2": (-20, 68), "x = a >> 1": (-3, 8), "x = rtz(a, 1)": (-2, 8), "x = wrap(a, 8)": (-5, 17), "x = wrap(a, 4)": (-8, 7), "x = clip(a, 4)": (-5, 7),
    "x = rem(a, 4)": (0, 3), "x = rem(b, 20)": (3, 10), "x = rem(a, -4)": (-3, 0), "x = a > 20": (0, 0), "x = a >= -5": (1, 1), "x = b == 3": (0, 1),
    "x = select(a > 0, a, 0)": (0, 17), "x = select(a < b, a, b)": (-5, 10), "s = a > 4 x = select(s, a, 5)": (5, 17), "x = select(a > 30, 99, a)": (-5, 17),
    "x = select(not a > 3 and a > 1, a, 2)": (2, 3), "x = select(a > 3 or a < 2, 2, a)": (2, 3), "x = select(a == b, a, 4)": (3, 10),
    "s = a > 4 a2 = a + 100 x = select(s, a2, 0)": (0, 117), "x = (a > 0) * 7": (0, 7),
}  # fmt: skip


@pytest.mark.parametrize("body", TIGHT)
def test_tight(body: str) -> None:
    assert ranges_of(f"neuron @p(a, b) {{ {body} emit x: value }}", [(-5, 17), (3, 10)])["x"] == TIGHT[body]


def test_a_condition_is_forgotten_when_its_variable_changes() -> None:
    text = "neuron @p(a) state(v: i32 = 0) { v = a s = v > 4 v = v - 100 x = select(s, v, 0) emit x }"
    assert ranges_of(text, [(-5, 17)])["x"] == (-105, 0)


def test_states_of_the_native_neuron() -> None:
    params = {"du": (100, 100), "dv": (50, 50), "vth": (100, 100), "bias_mant": (-4095, 4095), "bias_exp": (0, 7)}
    result = program_ranges(native("LIF"), [(-262143, 262143)], params, {"u": (0, 0), "v": (0, 0)})
    assert result.states["v"][0] >= -(1 << 23) + 1 and result.states["v"][1] <= 100 << 6
    assert result.states["u"][0] > -(1 << 25) and result.states["u"][1] < 1 << 25
    # The reset keeps v at or below the threshold, which only a refined select can know.
    assert result.states["v"][1] == 6400


def source(low: int, high: int) -> Input:
    return Input(name="in", type=TensorType("value", (1,), "i64"), bounds=(low, high))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("v = v + a", "a state can reach"),
        ("v = v * 2 + 1", "a state can reach"),
        ("v = clip(a << 60, 20)", "an intermediate value can reach -11529215046068469760 to 11529215046068469760"),
        ("v = clip(1 << a, 20)", "a shift amount can reach -10 to 10"),
        ("v = clip(1 >> (a + 80), 20)", "a shift amount can reach 70 to 90"),
        ("v = rem(3, a)", "a divisor can reach -10 to 10"),
    ],
)
def test_refusals(body: str, message: str) -> None:
    program = parse_program(f"neuron @p(a) state(v: i64 = 0) {{ {body} emit v }}")
    g = graph(source(-10, 10), Neuron(name="n", inputs=(Ref("in"),), program=program), level="fixed")
    with pytest.raises(CompileError) as caught:
        graph_ranges(g)
    text = str(caught.value)
    if "state" in message:
        assert text.startswith("error[SPK308]: %n: @p: ") and "64-bit" in text
    else:
        assert text == (
            f"error[SPK308]: %n: @p: {message}, which no 64-bit integer holds\n  fix: narrow the state with wrap(x, bits) or clip(x, bits)"
        )


def test_a_value_that_grows_around_a_cycle_is_refused() -> None:
    from spikec.ir.ops import Add

    g = graph(source(0, 1), Add(name="s", inputs=(Ref("in"), Ref("s", delay=1))), level="fixed")
    with pytest.raises(CompileError, match=r"SPK308.*%s: its value can reach"):
        graph_ranges(g)


def test_weights_are_summed_by_target() -> None:
    w = np.array([[10, -3, 4], [-1, -1, -1]], np.int8)
    g = graph(spikes((3,), dtype="i8"), dense("d", "in", w, np.array([5, -7])), level="fixed")
    assert graph_ranges(g).wires["d", ""] == (-10, 19)
    conv = Conv(name="c", inputs=(Ref("in"),), weight=np.array([[[3, -2]], [[1, 1]]], np.int8), padding=(1,))
    g = graph(spikes((1, 3), dtype="i8"), conv, level="fixed")
    assert graph_ranges(g).wires["c", ""] == (-2, 3)
    empty = Conv(name="c", inputs=(Ref("in"),), weight=np.zeros((0, 1, 2), np.int8))
    assert graph_ranges(graph(spikes((1, 3), dtype="i8"), empty, level="fixed")).wires["c", ""] == (0, 0)
