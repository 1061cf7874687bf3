"""Populations that rest are not computed while nothing reaches them: the same bits, whatever comes in whenever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many import differences, require_compiler

from spikec.backends.c.backend import CBackend
from spikec.backends.c.generate import generate
from spikec.backends.c.quiet import LEAST
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType

HEAD = "neuron @n(a) params(th)"
PROGRAMS = {
    # Its state comes back to rest by itself.
    "leaky": f"{HEAD} state(v: i32 = 0) {{\nv = clip(rtz(v * 2000, 12) + (a << 3), 20)\ns = v > th\nv = select(s, 0, v)\nemit s\n}}",
    # Only firing brings it back.
    "integrates": f"{HEAD} state(v: i16 = 0) {{\nv = clip(v + a, 15)\ns = v >= th\nv = select(s, 0, v)\nemit s\n}}",
    # At rest elsewhere than at zero, and two states.
    "adapts": f"{HEAD} state(v: i32 = 5, w: i32 = 0) {{\nv = 5 + rtz((v - 5) * 3000, 12) + a\ns = v > th + w\nw = rtz(w * 3500, 12) + s * 40\n"
    "v = select(s, 5, v)\nemit s\n}",
    # Emits a number as well.
    "shows": f"{HEAD} state(v: i32 = 0) {{\nv = rtz(clip(v, 20) * 1500, 12) + a\ns = v > th\nv = select(s, 0, v)\nemit s, v\n}}",
}  # fmt: skip
RESTLESS = {
    "not at rest at first": f"{HEAD} state(v: i32 = 9) {{\nv = rtz(clip(v, 20) * 1500, 12) + a\ns = v > th\nv = select(s, 0, v)\nemit s\n}}",
    "looks at the time": f"{HEAD} state(v: i32 = 0) {{\nv = select(rem(t, 50) == 0, 0, clip(v + a, 20))\ns = v > th\nemit s\n}}",
    "drifts": f"{HEAD} state(v: i32 = 0) {{\nv = wrap(v + a + 1, 12)\ns = v > th\nemit s\n}}",
    "fires at rest": f"{HEAD} state(v: i32 = 0) {{\nv = rtz(clip(v, 20) * 1500, 12) + a\ns = v < th\nemit s\n}}",
}


def net(text: str, size: int = LEAST + 9, bias: int = 0, *, conv: bool = False, recurrent: bool = False) -> Graph:
    rng = np.random.default_rng(1)
    program, th = parse_program(text), {"th": np.array(60, np.int32)}
    extra = np.full(size, bias, np.int32) if bias else None
    nodes: list[Node] = [Input(name="x", type=TensorType("spike", (30,), "i8"))]
    last: Any = "x"
    if conv:
        nodes.append(Reshape(name="map", inputs=(Ref("x"),), shape=(1, 5, 6)))
        nodes.append(
            Conv(name="c", inputs=(Ref("map"),), weight=rng.integers(-40, 41, (16, 1, 3, 3)).astype(np.int16), padding=(1, 1))
        )
        nodes.append(Neuron(name="l0", inputs=(Ref("c"),), program=program, params=th))
        nodes.append(Reshape(name="flat", inputs=(Ref("l0"),), shape=(480,)))
        last = "flat"
    fan_in = 480 if conv else 30
    nodes.append(Dense(name="fc", inputs=(Ref(last),), weight=rng.integers(-30, 41, (size, fan_in)).astype(np.int16), bias=extra))
    if recurrent:
        nodes.append(Dense(name="rec", inputs=(Ref("l", delay=2),), weight=rng.integers(-9, 10, (size, size)).astype(np.int16)))
        nodes.append(Add(name="sum", inputs=(Ref("fc"), Ref("rec"))))
    nodes.append(Neuron(name="l", inputs=(Ref(nodes[-1].name),), program=program, params=th))
    nodes.append(Dense(name="out", inputs=(Ref("l"),), weight=rng.integers(-9, 10, (7, size)).astype(np.int16)))
    nodes.append(Neuron(name="end", inputs=(Ref("out"),), program=parse_program(PROGRAMS["leaky"]).renamed("leaky"), params=th))
    return verify(Graph("net", "fixed", tuple(nodes), (("end", Ref("end")), ("l", Ref("l")))))


def rests(graph: Graph) -> bool:
    return "net->q_l[0]" in generate(graph).source


def equal(graph: Graph, x: Array) -> None:
    require_compiler()
    record = default_record(graph)
    assert differences(interpret(graph, {"x": x}, record=record), CBackend(None).run(graph, {"x": x}, record=record)) == []


NETS: dict[str, Callable[[], Graph]] = {
    **{name: lambda text=text: net(text) for name, text in PROGRAMS.items()},
    "a convolution": lambda: net(PROGRAMS["leaky"], conv=True),
    "recurrent": lambda: net(PROGRAMS["leaky"], recurrent=True),
    "a bias that rtz swallows": lambda: net(PROGRAMS["leaky"].replace("a << 3", "a >> 4"), bias=3),
}


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=8, deadline=None)
@given(bursts=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 4), st.floats(0.02, 0.9)), max_size=4), seed=st.integers(0, 99))
def test_bursts_give_the_same_bits(name: str, bursts: list[tuple[int, int, float]], seed: int) -> None:
    graph = NETS[name]()
    assert rests(graph)
    x, rng = np.zeros((2, 120, 30), np.int64), np.random.default_rng(seed)
    for start, length, share in bursts:
        x[:, start : start + length] = rng.random((2, length, 30)) < share
    equal(graph, x)


@pytest.mark.parametrize("name", RESTLESS)
def test_what_does_not_rest_is_computed(name: str) -> None:
    graph = net(RESTLESS[name])
    assert not rests(graph)
    x = np.zeros((1, 60, 30), np.int64)
    x[:, 3] = 1
    equal(graph, x)


def test_small_populations_and_bias_are_computed() -> None:
    assert rests(net(PROGRAMS["leaky"]))
    assert not rests(net(PROGRAMS["leaky"], size=LEAST - 1))
    assert not rests(net(PROGRAMS["leaky"], bias=3))
