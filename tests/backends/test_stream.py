"""Step by step: what a stream gives at each step is what whole samples give, on every backend that streams."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from many import drawn_graphs, require_compiler
from strategies import random_inputs

import spikec
from spikec.backend import load_backend
from spikec.build import Build
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret
from spikec.ir.ops import Dense, Input, Neuron, Node, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.ledger import Ledger
from spikec.pipeline import Stage
from spikec.stream import Stream
from spikec.target import FOLDER, load_target
from support.builds import fixed_build, spikes, tiny

ENGINES = ("reference", "numpy", "c")


def stream(graph: Graph, backend: str) -> Stream:
    found: Any = load_backend(backend, load_target("host"))
    return Stream(graph, lambda: found.stream(graph))


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("level", ["fixed", "float"])
def test_random_networks_step_by_step(backend: str, level: str) -> None:
    same_as_whole(drawn_graphs(level, 25, 31), backend)


@pytest.mark.parametrize("level", ["fixed", "float"])
def test_compiled_networks_step_by_step(level: str) -> None:
    require_compiler()
    same_as_whole(drawn_graphs(level, 5, 32), "c")


def same_as_whole(graphs: list[Graph], backend: str) -> None:
    for graph in graphs:
        inputs = random_inputs(graph, 2, 7, 3)
        record = default_record(graph)
        want = interpret(graph, inputs, record=record)
        with stream(graph, backend) as net:
            for sample in range(2):
                for t in range(7 + graph.max_lag):
                    frame = {name: array[sample, t] for name, array in inputs.items() if t < 7}
                    found = net.step(frame)
                    assert net.t == t + 1
                    for name, array in found.items():
                        when = t - graph.output_lag(name)
                        if 0 <= when < 7:
                            assert np.array_equal(array, want.outputs[name][sample, when], equal_nan=level_is_float(graph)), (
                                name,
                                t,
                            )
                    for wire in record:
                        node = wire.split(".")[0]
                        if 0 <= t - graph[node].lag < 7:
                            assert np.array_equal(
                                net.spikes(wire), want.records[wire][sample, t - graph[node].lag], equal_nan=level_is_float(graph)
                            )
                    for node in graph.neurons:
                        if t - node.lag == 6:
                            for name in node.program.state_names:
                                assert np.array_equal(
                                    net.state(node.name, name),
                                    want.states[node.name][name][sample],
                                    equal_nan=level_is_float(graph),
                                )
                net.reset()
                assert net.t == 0


def level_is_float(graph: Graph) -> bool:
    return graph.level == "float"


def two() -> Build:
    """Two inputs, one of events and one of amounts."""
    program = parse_program("neuron @p(a, b) state(v: i32 = 0) {\nv = clip(v + a - b, 20)\ns = v > 5\nemit s, v\n}")
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (2, 3), "i8")),
        Input(name="y", type=TensorType("graded", (4,), "i16"), bounds=(-9, 9)),
        Dense(name="fc", inputs=(Ref("y"),), weight=np.arange(12, dtype=np.int8).reshape(3, 4) - 4),
        Dense(name="in", inputs=(Ref("x"),), weight=np.arange(9, dtype=np.int8).reshape(3, 3)),
        Neuron(name="l", inputs=(Ref("fc"), Ref("fc")), program=program),
        Neuron(name="k", inputs=(Ref("in"), Ref("in")), program=program),
    ]
    graph = verify(Graph("two", "fixed", tuple(nodes), (("out", Ref("l")), ("v", Ref("l", "v")), ("k", Ref("k")))))
    text = (FOLDER / "host.toml").read_text(encoding="utf-8")
    return Build([Stage("input", graph, 0.0)], Ledger(), load_target("host"), text, {})


@pytest.mark.parametrize("backend", ENGINES)
def test_values_events_and_silence(backend: str) -> None:
    require_compiler()
    build = two()
    x, y = np.array([[1, 0, 0], [0, 0, 1]]), np.array([3, 0, 0, -2])
    with build.stream(backend) as a, build.stream(backend) as b, build.stream(backend) as c:
        for _ in range(3):
            found = [
                a.step({"x": x, "y": y}),
                b.step(events={"x": [5, 0], "y": ([3, 0], [-2, 3])}),
                c.step({"x": x}, events={"y": (np.array([0, 3]), np.array([3, -2]))}),
            ]
            for other in found[1:]:
                assert all(np.array_equal(found[0][name], other[name]) for name in ("out", "v", "k"))
        assert np.array_equal(a.step()["v"], a.state("l", "v"))  # nothing arrives
    with pytest.raises(CompileError, match="SPK503"):
        a.step()


@pytest.mark.parametrize(
    ("x", "events", "code", "message"),
    [
        ({"x": np.zeros((3, 2))}, None, "SPK006", "a step of the input 'x' has the shape (2, 3), not (3, 2)"),
        ({"x": np.full((2, 3), 2)}, None, "SPK007", "takes spikes, 0 or 1"),
        ({"z": 1}, None, "SPK010", "there is no input 'z'"),
        (None, {"z": [1]}, "SPK010", "there is no input 'z'"),
        (None, [1], "SPK006", "the graph has 2 inputs"),
        (None, {"x": [6]}, "SPK007", "has the elements 0 to 5; an event is at 6"),
        (None, {"x": [-1]}, "SPK007", "an event is at -1"),
        (None, {"x": [1, 1]}, "SPK007", "an element of the input 'x' fires twice in one step"),
        (None, {"x": [0.5]}, "SPK007", "a list of element numbers, not 1-d float64"),
        (None, {"y": ([1, 2], [3])}, "SPK006", "got 2 events and 1 values"),
        (None, {"y": ([1], [3], [4])}, "SPK007", "numbers, or a pair (numbers, values)"),
        (None, {"y": ([1], [10])}, "SPK007", "'y'"),
        ({"x": np.zeros((2, 3))}, {"x": [1]}, "SPK006", "given twice"),
    ],
)
@pytest.mark.parametrize("backend", ENGINES)
def test_bad_steps_change_nothing(backend: str, x: Any, events: Any, code: str, message: str) -> None:
    require_compiler()
    with two().stream(backend) as net, two().stream(backend) as clean:
        for each in (net, clean):
            each.step(events={"x": [1], "y": ([0], [3])})
        with pytest.raises(CompileError) as caught:
            net.step(x, events=events)
        assert caught.value.code == code and message in str(caught.value), str(caught.value)
        assert net.t == 1
        left, right = net.step(events={"x": [2]}), clean.step(events={"x": [2]})
        assert all(np.array_equal(left[name], right[name]) for name in left)


def test_a_retimed_build_streams_its_lag_late(tmp_path: Path) -> None:
    require_compiler()
    build = fixed_build(tmp_path)
    x = spikes(1, 12)
    whole = build.run(x).outputs["out"][0]
    assert whole.any()
    for backend in ENGINES:
        with build.stream(backend) as net:
            assert net.lag == build.graph().max_lag > 0
            found = [net.step(x[0, t] if t < 12 else None)["out"] for t in range(12 + net.lag)]
        assert np.array_equal(np.array(found[net.lag :]), whole)
    with build.stream("reference", level="float") as net:
        assert net.lag == 0


def test_names_that_are_not_there() -> None:
    require_compiler()
    with two().stream() as net:
        for call, message in (
            (lambda: net.state("l", "w"), "has no state 'w'"),
            (lambda: net.state("fc", "v"), "has no state 'v'"),
            (lambda: net.spikes("fc"), "is no population and no output"),
            (lambda: net.spikes("nothing"), "there is no layer 'nothing'"),
        ):
            with pytest.raises(CompileError, match=r"SPK010") as caught:
                call()
            assert message in str(caught.value)


def test_a_backend_that_cannot_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    from spikec.backends.lava.backend import LavaBackend

    monkeypatch.setattr(LavaBackend, "available", lambda self: None)
    monkeypatch.setattr(LavaBackend, "check", lambda self, graph: iter(()))
    with pytest.raises(CompileError, match="the backend 'lava' runs whole samples only") as caught:
        spikec.compile(tiny(), target="host").stream("lava")
    assert caught.value.code == "SPK503"


# --------------------------------------------------------------------------------------------------------------- threads


def test_samples_run_side_by_side_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads are in the compiled network at the same time; the result and its order do not depend on how many."""
    require_compiler()
    from spikec.backends.c.library import Compiled

    build = spikec.compile(tiny(), target="host")
    x = spikes(203, 30)
    one = build.run(x, "c", "all", threads=1)
    meeting = threading.Barrier(3, timeout=60)
    inside = Compiled.run

    def together(self: Compiled, *arguments: Any) -> Any:
        meeting.wait()
        return inside(self, *arguments)

    monkeypatch.setattr(Compiled, "run", together)
    seen: list[tuple[int, int]] = []
    three = build.run(x[:150], "c", "all", threads=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(50, 150), (100, 150), (150, 150)]
    for name, array in three.outputs.items():
        assert np.array_equal(array, one.outputs[name][:150])
    for name, array in three.records.items():
        assert np.array_equal(array, one.records[name][:150])
    assert np.array_equal(three.state("lif1", "v"), one.state("lif1", "v")[:150])


@pytest.mark.parametrize(("backend", "threads", "message"), [("numpy", 2, "has no threads"), ("c", 0, "a number above 0, not 0")])
def test_bad_numbers_of_threads(backend: str, threads: int, message: str) -> None:
    build = spikec.compile(tiny(), target="host")
    with pytest.raises(CompileError, match=message):
        build.run(spikes(), backend, threads=threads)
