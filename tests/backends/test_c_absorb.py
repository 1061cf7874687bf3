"""Weights read past a choice of spikes: the same sums, and no copy."""

from __future__ import annotations

import numpy as np
import pytest
from many import differences, require_compiler

from spikec.backends.c.absorb import absorbed
from spikec.backends.c.backend import CBackend
from spikec.backends.c.generate import generate
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Dense, Gather, Input, Neuron, Node, Ref, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType

IF = parse_program("neuron @if(a) params(th) state(v: i16 = 0) {\nv = clip(v + a, 15)\ns = v >= th\nv = select(s, 0, v)\nemit s\n}")


def net(chosen: list[int], kind: str, *, late: int = 0, graded: bool = False) -> Graph:
    rng = np.random.default_rng(2)
    weight = rng.integers(-20, 40, (12, len(chosen))).astype(np.int16)
    rows, columns = np.nonzero(weight > 0)
    indptr = np.concatenate([[0], np.cumsum((weight > 0).sum(axis=1))]).astype(np.int32)
    ref = Ref("some", delay=late)
    layer: Node = Dense(name="fc", inputs=(ref,), weight=weight)
    if kind == "sparse":
        layer = Sparse(
            name="fc",
            inputs=(ref,),
            weight=weight[rows, columns],
            indices=columns.astype(np.int32),
            indptr=indptr,
            fan_in=len(chosen),
        )
    nodes = (
        Input(name="x", type=TensorType("graded" if graded else "spike", (10,), "i8")),
        Gather(name="some", inputs=(Ref("x", delay=late),), indices=np.array(chosen, np.int32)),
        layer,
        Neuron(name="l", inputs=(Ref("fc"),), program=IF, params={"th": np.array(60, np.int32)}),
    )
    return verify(Graph("net", "fixed", nodes, (("l", Ref("l")),)))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("late", [0, 2])
def test_the_choice_is_gone_and_the_sums_are_the_same(kind: str, late: int) -> None:
    graph = net([0, 2, 3, 5, 6, 9], kind, late=late)
    verify(absorbed(graph, ()))
    assert "some" not in [node.name for node in absorbed(graph, ()).nodes]
    assert "%some" not in generate(graph).source
    require_compiler()
    x = {"x": (np.random.default_rng(3).random((3, 20, 10)) < 0.3).astype(np.int64)}
    for record in ((), ("some", "fc")):
        want = interpret(graph, x, record=record)
        assert differences(want, CBackend(None).run(graph, x, record=record)) == []


@pytest.mark.parametrize("chosen", [[3, 1, 2, 5, 6, 9], [0, 0, 1, 2, 3, 4], [1, 2]])
def test_other_choices_stay(chosen: list[int]) -> None:
    graph = net(chosen, "dense")
    assert absorbed(graph, ()) is graph


def test_values_and_floats_stay() -> None:
    graph = net([0, 1, 2, 3, 5], "dense", graded=True)
    assert absorbed(graph, ()) is graph
    assert "some" in [node.name for node in absorbed(net([0, 1, 2, 3, 5], "dense"), {("some", "")}).nodes]
