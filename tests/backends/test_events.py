"""The NumPy engine: every way in which it saves work gives what the interpreter gives."""

from __future__ import annotations

import numpy as np
import pytest
from many import all_wires, differences
from strategies import random_inputs

import spikec.backends.events as events
from spikec.backend import load_backend
from spikec.backends.events import NumpyBackend, run_events
from spikec.backends.reference import ReferenceBackend
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.neuron import Program
from spikec.ir.ops import Conv, Dense, Input, Neuron, Node, Ref, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_graph, parse_program
from spikec.ir.types import Array, TensorType

RNG = np.random.default_rng(1)
LIF: Program = parse_program(
    """neuron @lif(a) state(v: i64 = 0) {
      v = clip(rtz(v * 3900, 12) + a, 40)
      s = v > 100
      v = select(s, 0, v)
      emit s
    }"""
)


def neuron(source: str) -> Neuron:
    return Neuron(name="l", inputs=(Ref(source),), program=LIF)


def layer(kind: str, weight: Array, delay: Array | None) -> list[Node]:
    """A weighted layer on spikes, and neurons."""
    if kind == "conv":
        head: list[Node] = [
            Input(name="x", type=TensorType("spike", (2, 8, 8), "i8")),
            Conv(name="w", inputs=(Ref("x"),), weight=weight, delay=delay, padding=(1, 1), dtype="i64"),
        ]
    else:
        head = [Input(name="x", type=TensorType("spike", (24,), "i8"))]
        if kind == "dense":
            head.append(Dense(name="w", inputs=(Ref("x"),), weight=weight, delay=delay, dtype="i64"))
        else:
            indices = RNG.integers(0, 24, len(weight)).astype(np.int32)
            indptr = np.arange(0, len(weight) + 1, 4).astype(np.int32)
            head.append(
                Sparse(
                    name="w", inputs=(Ref("x"),), weight=weight, indices=indices, indptr=indptr, fan_in=24, delay=delay, dtype="i64"
                )
            )
    return [*head, neuron("w")]


SHAPES = {"dense": (6, 24), "sparse": (40,), "conv": (4, 2, 3, 3)}


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("size", [100, 1 << 22, 1 << 30, 1 << 56])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.6])
def test_sums_of_every_size_and_density(kind: str, size: int, density: float, delayed: bool) -> None:
    """int32, float32, float64 and int64 sums; few and many active inputs; one product, rows, or connections."""
    shape = SHAPES[kind]
    weight = RNG.integers(-size, size + 1, shape)
    delay = RNG.integers(0, 4, shape) if delayed else None
    graph = verify(Graph("g", "fixed", tuple(layer(kind, weight, delay)), (("l", Ref("l")),)))
    for batch in (1, 3):
        x = (RNG.random((batch, 9, *graph.inputs[0].type.shape)) < density).astype(np.int8)
        want = interpret(graph, {"x": x}, record=all_wires(graph))
        assert differences(want, run_events(graph, {"x": x}, record=all_wires(graph))) == []


def test_samples_in_chunks_and_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = verify(Graph("g", "fixed", tuple(layer("dense", RNG.integers(-50, 60, (6, 24)), None)), (("l", Ref("l")),)))
    x = {"x": (RNG.random((7, 11, 24)) < 0.3).astype(np.int8)}
    whole = run_events(graph, x, record=all_wires(graph))
    monkeypatch.setattr(events, "_CHUNK_BYTES", 1)
    seen: list[tuple[int, int]] = []
    parts = run_events(graph, x, record=all_wires(graph), progress=lambda done, total: seen.append((done, total)))
    assert differences(whole, parts) == []
    assert seen == [(n, 7) for n in range(1, 8)]
    assert differences(interpret(graph, x, record=all_wires(graph)), parts) == []


@pytest.mark.parametrize(("batch", "steps"), [(2, 0), (0, 5), (1, 1)])
def test_nothing_to_do(batch: int, steps: int) -> None:
    graph = verify(Graph("g", "fixed", tuple(layer("dense", RNG.integers(-50, 60, (6, 24)), None)), (("l", Ref("l")),)))
    x = {"x": np.zeros((batch, steps, 24), np.int8)}
    assert differences(interpret(graph, x), run_events(graph, x)) == []


def test_a_ring_keeps_only_what_is_read() -> None:
    """A long run of a recurrent network does not keep every step of wires that nobody asked for."""
    text = """sir 1
    neuron @lif(a, b) state(v: i32 = 0) {
      v = clip(v + a - b, 20)
      s = v > 3
      v = select(s, 0, v)
      emit s
    }
    graph @g level=fixed {
      %x = input : spike<4>
      %r = dense(%l[t-3]) weight=i8[[1, -1, 2, 0], [0, 1, 0, 1], [1, 1, 1, 1], [-2, 0, 0, 1]] : value<4>
      %l = neuron @lif(%x, %r) : spike<4>
      output %x
    }"""
    graph = verify(parse_graph(text))
    engine = events._Engine(graph, {("x", "")})
    assert engine.depth[("r", "")] == 0
    assert engine.depth[("l", "")] == 3
    inputs = random_inputs(graph, 2, 40, 3)
    traces, _ = engine.run(inputs, 2, 40)
    assert traces["l", ""].data.shape == (4, 2, 4)
    assert differences(interpret(graph, inputs, record=["l"]), run_events(graph, inputs, record=["l"])) == []
    assert differences(interpret(graph, inputs), run_events(graph, inputs)) == []


def test_programs_run_in_int32_where_that_is_proven() -> None:
    text = """sir 1
    neuron @narrow(a) state(v: i32 = 0) {
      v = clip((v >> 1) + a, 20)
      s = v > 3
      emit s
    }
    neuron @wide(a) state(v: i32 = 0) {
      v = clip(rtz(v * 4000, 12) + (a << 15), 24)
      s = v > 3
      emit s
    }
    graph @g level=fixed {
      %x = input : spike<4>
      %n = neuron @narrow(%x) : spike<4>
      %w = neuron @wide(%x) : spike<4>
      output %n
    }"""
    engine = events._Engine(verify(parse_graph(text)), set())
    assert engine.sources["n"].dtype == np.int32
    assert engine.sources["w"].dtype == np.int64


@pytest.mark.parametrize("cls", [NumpyBackend, ReferenceBackend])
def test_both_backends_behave_as_the_protocol_says(cls: type[NumpyBackend] | type[ReferenceBackend], tmp_path: object) -> None:
    backend = cls(None)
    graph = verify(Graph("g", "fixed", tuple(layer("dense", RNG.integers(-50, 60, (6, 24)), None)), (("l", Ref("l")),)))
    assert backend.available() is None
    assert list(backend.check(graph)) == []
    x = random_inputs(graph, 2, 5, 0)
    assert differences(interpret(graph, x, record=["w", "l"]), backend.run(graph, x, record=["w", "l"])) == []
    for arguments, code in (((x, ["nothing"]), "SPK010"), (({}, []), "SPK006")):
        with pytest.raises(CompileError) as caught:
            backend.run(graph, arguments[0], record=arguments[1])
        assert caught.value.code == code


def test_both_are_in_the_table() -> None:
    assert isinstance(load_backend("numpy", None), NumpyBackend)
    assert isinstance(load_backend("reference", None), ReferenceBackend)
