"""Every rule of a well-formed graph, with its whole message and place; all violations at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import LEAKY, F, dense, graph, leaky, spikes

from spikec.diagnostics import CompileError, Loc
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_graph, parse_program
from spikec.ir.types import TensorType

AT = Loc("model.py", 31, "net.x")
PLACE = "model.py:31 (net.x): "


def one(cls: Any, level: str = "float", shape: tuple[int, ...] = (3,), **more: Any) -> Graph:
    dtype = "f32" if level == "float" else "i8"
    more.setdefault("inputs", (Ref("in"),))
    return graph(spikes(shape, dtype=dtype), cls(name="x", loc=AT, **more), level=level)


def program(text: str, level: str = "float", **more: Any) -> Graph:
    return one(Neuron, level, program=parse_program(text), **more)


CASES: dict[str, tuple[Any, str]] = {
    # names
    "name": (lambda: graph(spikes((1,), "a b"), out=[("o", Ref("a b"))]), "error[SPK302]: %a b: a name consists of letters, digits and underscores"),
    "graph name": (lambda: Graph("my net", "float", (spikes((1,)),), (("in", Ref("in")),)), "error[SPK302]: the graph 'my net': a name consists of letters, digits, underscores and dots"),
    "output name": (lambda: graph(spikes((1,)), out=[("a b", Ref("in"))]), "error[SPK302]: the output 'a b': a name consists of letters, digits, underscores and dots"),
    "level": (lambda: graph(spikes((1,)), level="high"), "error[SPK302]: 'high' is not a level"),
    "dt": (lambda: graph(spikes((1,)), dt=-1.0), "error[SPK302]: dt must be a positive number of seconds, not -1.0"),
    "name twice": (lambda: graph(spikes((1,)), spikes((2,))), "error[SPK302]: %in: two nodes have this name"),
    "output twice": (lambda: graph(spikes((1,)), out=["in", "in"]), "error[SPK302]: two outputs are called 'in'"),
    "output delayed": (lambda: graph(spikes((1,)), out=[("o", Ref("in", delay=1))]), "error[SPK302]: the output 'o' reads an earlier step; give it a node of its own"),
    "output of nothing": (lambda: graph(spikes((1,)), out=[("o", Ref("no"))]), "error[SPK302]: the output 'o' reads %no, which does not exist"),
    "output of no port": (lambda: graph(spikes((1,)), out=[("o", Ref("in", "v"))]), "error[SPK302]: output 'o': %in has no output 'v'"),
    "reads nothing": (lambda: one(Add, inputs=(Ref("no"),)), PLACE + "error[SPK302]: %x: reads %no, which does not exist"),
    "reads no port": (lambda: one(Add, inputs=(Ref("in", "v"),)), PLACE + "error[SPK302]: %x: reads %in.v, which %in does not emit"),
    # delays
    "future": (lambda: one(Add, inputs=(Ref("in", delay=-2),)), PLACE + "error[SPK306]: %x: reads %in 2 step(s) in the future"),
    "init length": (lambda: one(Add, inputs=(Ref("in", delay=2, init=np.ones((1, 3))),)), PLACE + "error[SPK302]: %x: the initial values of %in[t-2] need one entry per step of delay"),
    "init shape": (lambda: one(Add, inputs=(Ref("in", delay=1, init=np.ones((1, 2))),)), PLACE + "error[SPK309]: %x: the initial values of %in[t-1] have the wrong shape (1, 2)"),
    "init spikes": (lambda: one(Add, inputs=(Ref("in", delay=1, init=np.full((1, 3), 2.0)),)), PLACE + "error[SPK302]: %x: the initial values of %in[t-1] are spikes, which are 0 or 1\n  fix: give 0 or 1, or let the wire carry numbers: a population that emits them as graded"),
    "lag": (lambda: one(Add, lag=-1), PLACE + "error[SPK306]: %x: lag and start cannot be negative"),
    "start": (lambda: one(Neuron, program=LEAKY, params={"beta": F(1), "theta": F(1)}, start=-1), PLACE + "error[SPK306]: %x: lag and start cannot be negative"),
    "cycle": (
        lambda: graph(spikes((1,)), Add(name="a", inputs=(Ref("in"), Ref("b"))), Add(name="b", inputs=(Ref("a"),), loc=AT)),
        PLACE + "error[SPK307]: %b: a cycle within one step: %a -> %b -> %a\n  fix: read one of them a step later, as in %a[t-1]",
    ),
    "cycle of nothing": (lambda: graph(spikes((1,)), Add(name="x", inputs=(Ref("x", delay=1),), loc=AT)), PLACE + "error[SPK309]: %x: its type cannot be inferred; a cycle has no member of known shape"),
    # arrays
    "weight": (lambda: one(Dense, weight=np.array([[1, np.nan, np.inf]], F)), PLACE + "error[SPK305]: %x: weight holds nan at [0, 1] (2 of 3)"),
    "parameter": (lambda: one(Neuron, program=LEAKY, params={"beta": F(np.nan), "theta": F(np.inf)}), PLACE + "error[SPK305]: %x: beta holds nan (1 of 1)"),
    "initial state": (lambda: one(Neuron, program=LEAKY, params={"beta": F(1), "theta": F(1)}, init={"v": F(np.inf)}), PLACE + "error[SPK305]: %x: init.v holds inf (1 of 1)"),
    "scale": (lambda: one(Scale, factor=F(np.inf)), PLACE + "error[SPK305]: %x: factor holds inf (1 of 1)"),
    "float weight": (lambda: one(Dense, "fixed", weight=np.ones((1, 3), F)), PLACE + "error[SPK302]: %x: weight is float32 in a graph of integers"),
    "spike constant": (lambda: one(Constant, inputs=(), kind="spike", value=np.array([2], F)), PLACE + "error[SPK302]: %x: spikes are 0 or 1"),
    # programs
    "fixed in float": (lambda: program("neuron @p(a) { x = wrap(a, 8) + (a << 2) emit x }"), "error[SPK302]: neuron @p: '<<' exists at integer levels only\nerror[SPK302]: neuron @p: 'wrap' exists at integer levels only"),
    "float in fixed": (lambda: program("neuron @p(a) { x = a / 2 emit x }", "fixed"), "error[SPK302]: neuron @p: '/' exists at the float level only"),
    "literal": (lambda: program("neuron @p(a) { x = a + 2.0 emit x }", "fixed"), "error[SPK302]: neuron @p: the literal 2.0 is not an integer"),
    "state width": (lambda: program("neuron @p(a) state(v = 0) { v = a emit v }", "fixed"), "error[SPK302]: neuron @p: state v declares no integer width"),
    "state start": (lambda: program("neuron @p(a) state(v: i8 = 0.5) { v = a emit v }", "fixed"), "error[SPK302]: neuron @p: state v must begin as an integer"),
    "two programs": (
        lambda: graph(spikes((1,)), *(Neuron(name=f"n{k}", inputs=(Ref("in"),), loc=AT, program=parse_program(f"neuron @p(a) {{ x = a + {k} emit x }}")) for k in range(2))),
        PLACE + "error[SPK302]: %n1: two different programs are called @p",
    ),
    # types
    "unknown dtype": (lambda: one(Dense, weight=np.ones((1, 3), F), dtype="f16"), PLACE + "error[SPK309]: %x: 'f16' is not a type of number"),
    "negative shape": (lambda: graph(Input(name="x", type=TensorType("spike", (-1,), "f32"), loc=AT)), PLACE + "error[SPK309]: %x: the shape (-1,) has a negative size"),
    "float wire": (lambda: graph(Input(name="x", type=TensorType("value", (1,), "f32"), loc=AT), level="fixed"), PLACE + "error[SPK309]: %x: is f32 in a graph of integers"),
    "bounds": (lambda: graph(Input(name="x", type=TensorType("value", (1,), "i8"), bounds=(3, 2), loc=AT), level="fixed"), PLACE + "error[SPK309]: %x: its bounds (3, 2) are empty"),
    "dense axes": (lambda: one(Dense, weight=np.ones(3, F)), PLACE + "error[SPK309]: %x: a dense weight has 2 axes (out, in), not shape (3,)"),
    "dense fan-in": (lambda: one(Dense, weight=np.ones((1, 2), F)), PLACE + "error[SPK309]: %x: the weight takes 2 inputs but %in has shape (3,)"),
    "bias": (lambda: one(Dense, weight=np.ones((1, 3), F), bias=np.ones(3, F)), PLACE + "error[SPK309]: %x: the bias has shape (3,), not (1,)"),
    "delay shape": (lambda: one(Dense, weight=np.ones((1, 3), F), delay=np.ones(3, np.int8)), PLACE + "error[SPK309]: %x: the delays have shape (3,), not (1, 3)"),
    "delay negative": (lambda: one(Dense, weight=np.ones((1, 3), F), delay=np.array([[0, -1, 0]])), PLACE + "error[SPK306]: %x: delays must be integers and not negative"),
    "delay float": (lambda: one(Dense, weight=np.ones((1, 3), F), delay=np.ones((1, 3), F)), PLACE + "error[SPK306]: %x: delays must be integers and not negative"),
    "sparse": (lambda: one(Sparse, weight=np.ones(1, F), indices=np.array([0, 1]), indptr=np.array([0, 1]), fan_in=3), PLACE + "error[SPK309]: %x: a sparse weight needs one-dimensional weight, indices and indptr that fit"),
    "sparse pointers": (lambda: one(Sparse, weight=np.ones(2, F), indices=np.array([0, 1]), indptr=np.array([0, 3, 2]), fan_in=3), PLACE + "error[SPK309]: %x: indptr must rise from 0 to the number of connections"),
    "sparse indices": (lambda: one(Sparse, weight=np.ones(2, F), indices=np.array([0, 3]), indptr=np.array([0, 2]), fan_in=3), PLACE + "error[SPK309]: %x: indices must lie in 0 to 2"),
    "sparse floats": (lambda: one(Sparse, weight=np.ones(2, F), indices=np.array([0.0, 1]), indptr=np.array([0, 2]), fan_in=3), PLACE + "error[SPK309]: %x: indices and indptr must be integers"),
    "sparse fan-in": (lambda: one(Sparse, weight=np.ones(2, F), indices=np.array([0, 1]), indptr=np.array([0, 2]), fan_in=2), PLACE + "error[SPK309]: %x: fan_in is 2 but %in has shape (3,)"),
    "conv axes": (lambda: one(Conv, weight=np.ones((1, 3), F)), PLACE + "error[SPK309]: %x: a convolution has 1 or 2 axes of space, not weight shape (1, 3)"),
    "conv shape": (lambda: one(Conv, weight=np.ones((1, 2, 3), F)), PLACE + "error[SPK309]: %x: the kernel takes shape (2, length) but %in has shape (3,)"),
    "conv stride": (lambda: one(Conv, shape=(2, 4), weight=np.ones((1, 2, 3), F), stride=(0,)), PLACE + "error[SPK309]: %x: stride, dilation and groups must be at least 1 and padding at least 0"),
    "conv numbers": (lambda: one(Conv, shape=(2, 4), weight=np.ones((1, 2, 3), F), stride=(1, 1)), PLACE + "error[SPK309]: %x: stride, padding and dilation need 1 numbers each"),
    "conv groups": (lambda: one(Conv, shape=(2, 4), weight=np.ones((3, 1, 3), F), groups=2), PLACE + "error[SPK309]: %x: 3 output channels do not split into 2 groups"),
    "conv window": (lambda: one(Conv, shape=(2, 2), weight=np.ones((1, 2, 3), F)), PLACE + "error[SPK309]: %x: the window (3,) is larger than the input (2,)"),
    "pool mode": (lambda: one(Pool, shape=(2, 4), mode="min", kernel=(2,)), PLACE + "error[SPK302]: %x: unknown pool mode 'min'"),
    "pool average": (lambda: one(Pool, "fixed", shape=(2, 4), mode="average", kernel=(2,)), PLACE + "error[SPK302]: %x: an average pool exists at the float level only"),
    "pool axes": (lambda: one(Pool, mode="max", kernel=(2,)), PLACE + "error[SPK309]: %x: the window has 1 axes but the operand has shape (3,)"),
    "pool padding": (lambda: one(Pool, shape=(2, 4), mode="max", kernel=(2,), padding=(2,)), PLACE + "error[SPK309]: %x: padding (2,) is more than half of the window (2,)"),
    "pool numbers": (lambda: one(Pool, shape=(2, 4), mode="sum", kernel=(0,), stride=(1,)), PLACE + "error[SPK309]: %x: kernel and stride must be at least 1 and padding at least 0"),
    "add shapes": (lambda: graph(spikes((1,)), spikes((2,), "two"), Add(name="x", inputs=(Ref("in"), Ref("two")), loc=AT)), PLACE + "error[SPK309]: %x: the operands of add differ in shape: %in (1,), %two (2,)"),
    "add nothing": (lambda: one(Add, inputs=()), PLACE + "error[SPK302]: %x: add needs at least one operand"),
    "concat axis": (lambda: one(Concat, axis=1), PLACE + "error[SPK309]: %x: axis 1 does not exist in shape (3,)"),
    "concat shapes": (lambda: graph(spikes((1, 2)), spikes((2, 3), "two"), Concat(name="x", inputs=(Ref("in"), Ref("two")), loc=AT)), PLACE + "error[SPK309]: %x: the operands of concat do not fit: [(1, 2), (2, 3)]"),
    "reshape": (lambda: graph(spikes((3,)), Reshape(name="x", inputs=(Ref("in"),), shape=(2, 2), loc=AT)), PLACE + "error[SPK309]: %x: shape (3,) cannot become (2, 2)"),
    "gather": (lambda: one(Gather, indices=np.array([3])), PLACE + "error[SPK309]: %x: indices must be integers in 0 to 2"),
    "factor": (lambda: one(Scale, factor=np.ones(2, F)), PLACE + "error[SPK309]: %x: factor of shape (2,) does not fit shape (3,)"),
    "parameter shape": (lambda: one(Neuron, program=LEAKY, params={"beta": np.ones(2, F), "theta": F(1)}), PLACE + "error[SPK309]: %x: beta has shape (2,), which does not fit the population (3,)"),
    "no inputs": (lambda: one(Neuron, inputs=(), program=parse_program("neuron @p() { s = t > 1 emit s }")), PLACE + "error[SPK309]: %x: a population without inputs needs parameters that tell its shape"),
    "parameter missing": (lambda: one(Neuron, program=LEAKY, params={"beta": F(1)}), PLACE + "error[SPK302]: %x: @leaky: parameter theta is missing"),
    "parameter unknown": (lambda: one(Neuron, program=LEAKY, params={"beta": F(1), "theta": F(1), "gamma": F(1)}), PLACE + "error[SPK302]: %x: @leaky: there is no parameter gamma"),
    "state unknown": (lambda: one(Neuron, program=LEAKY, params={"beta": F(1), "theta": F(1)}, init={"u": F(1)}), PLACE + "error[SPK302]: %x: @leaky has no state u"),
    "too many inputs": (lambda: one(Neuron, inputs=(Ref("in"), Ref("in")), program=LEAKY, params={"beta": F(1), "theta": F(1)}), PLACE + "error[SPK302]: %x: @leaky takes 1 inputs, not 2"),
    "strange array": (lambda: one(Dense, weight=np.ones((1, 3), complex)), PLACE + "error[SPK309]: %x: arrays of type complex128 are not supported"),
    # widths
    "wire": (
        lambda: one(Dense, "fixed", weight=np.full((1, 3), 100), dtype="i8"),
        PLACE + "error[SPK308]: %x: can reach 0 to 300, which i8 does not hold\n  fix: declare a wider type, smaller weights, or narrower input bounds",
    ),
    "state": (
        lambda: program("neuron @p(a) state(v: i8 = 0) { v = clip(v + a, 9) emit v }", "fixed"),
        PLACE + "error[SPK308]: %x: state v can reach 0 to 255, which i8 does not hold\n  fix: narrow it with clip or wrap, or declare a wider type",
    ),
    "growth": (
        lambda: program("neuron @p(a) state(v: i64 = 0) { v = v * 3 + a emit v }", "fixed"),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rule(case: str) -> None:
    build, message = CASES[case]
    with pytest.raises(CompileError) as caught:
        verify(build())
    if message is None:
        assert str(caught.value).startswith(PLACE + "error[SPK308]: %x: @p: ")
    else:
        assert str(caught.value) == message


def test_all_violations_are_reported_together() -> None:
    g = graph(
        spikes((2,), "in"),
        dense("d", "in", np.array([[np.nan, 1]], F), loc=AT),
        leaky("l", "d", beta=np.nan),
        Neuron(name="n", inputs=(Ref("d"),), program=parse_program("neuron @p(a) { x = clip(a, 8) emit x }")),
        out=["l", "n"],
    )
    with pytest.raises(CompileError) as caught:
        verify(g)
    assert [d.code for d in caught.value.diagnostics] == ["SPK305", "SPK305", "SPK302"]
    g = graph(spikes((1,), "a b"), spikes((1,), "c d"), out=[("o", Ref("no"))])
    with pytest.raises(CompileError) as caught:
        verify(g)
    assert len(caught.value.diagnostics) == 3


def test_a_good_graph_is_returned_itself() -> None:
    g = graph(spikes((2,)), dense("d", "in", np.ones((1, 2), F)), leaky("l", "d"))
    assert verify(g) is g


def test_a_dense_of_a_concat_on_a_cycle_has_one_axis() -> None:
    weight = np.ones((2, 5), np.float32)
    joined = Concat(name="both", inputs=(Ref("in"), Ref("fc", delay=1)), axis=0)
    made = verify(
        Graph("g", "float", (spikes((3,)), joined, Dense(name="fc", inputs=(Ref("both"),), weight=weight)), (("fc", Ref("fc")),))
    )
    assert (made.shape_of("both"), made.shape_of("fc")) == ((5,), (2,))


def test_an_input_of_a_float_graph_holds_floats() -> None:
    """Integers would be multiplied with weights cut to integers."""
    text = "sir 1\ngraph @g level=float {\n%in = input : graded<2, i16>\noutput %in\n}"
    with pytest.raises(CompileError) as error:
        verify(parse_graph(text))
    assert str(error.value) == "error[SPK309]: %in: is i16 in a graph of floats"
