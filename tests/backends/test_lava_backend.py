"""Lava = the interpreter, number for number; and what is emitted, refused, and said when Lava fails."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spikec.backend import Golden, load_backend
from spikec.backends.lava import backend as lava_backend
from spikec.backends.lava.environment import LavaEnvironment
from spikec.backends.lava.plan import make_plan
from spikec.diagnostics import CompileError, Loc
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, default_record, interpret
from spikec.ir.neuron import Emit, Program
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Pool, Ref, Reshape, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType
from spikec.ledger import Ledger
from spikec.mantissas import WIDTHS, stored
from spikec.passes.retime import Retime
from spikec.target import load_target

TARGET = load_target("loihi2")
LIF = parse_program(TARGET.neurons[0].fixed)
RESET = parse_program(TARGET.neurons[1].fixed)
RNG = np.random.default_rng(7)


def backend() -> Any:
    return load_backend("lava", TARGET)


def source(size: int | tuple[int, ...], name: str = "in") -> Input:
    return Input(name=name, type=TensorType("spike", size if isinstance(size, tuple) else (size,), "i8"))


def even(shape: Any, most: int = 60) -> Array:
    return (2 * RNG.integers(-most // 2, most // 2 + 1, shape)).astype(np.int16)


def dense(name: str, weight: Array, ref: Ref, **more: Any) -> Dense:
    return Dense(name=name, inputs=(ref,), weight=weight, loc=Loc("net.py", 7, f"net.{name}"), **more)


def lif(name: str, ref: Ref, program: Program = LIF, **params: Any) -> Neuron:
    more = {key: params.pop(key) for key in ("init", "start", "lag") if key in params}
    given_ = {"du": 4095, "dv": 410, "vth": 40, "bias_mant": 0, "bias_exp": 0} | params
    arrays = {key: np.asarray(value, np.int32) for key, value in given_.items()}
    return Neuron(name=name, inputs=(ref,), program=program, params=arrays, loc=Loc("net.py", 9, f"net.{name}"), **more)


def probed(program: Program, *states: str) -> Program:
    emits = (*program.emits, *(Emit(state, "value") for state in states))
    name = "_".join((program.name, *states))
    return Program(name, program.inputs, program.params, program.states, program.body, emits)


def fixed(*nodes: Any, outputs: dict[str, Ref]) -> Graph:
    return Graph("net", "fixed", nodes, tuple(outputs.items()))


def retimed(*nodes: Any, outputs: dict[str, Ref]) -> Graph:
    return verify(Retime(TARGET).run(verify(fixed(*nodes, outputs=outputs)), Ledger()))


def spikes(*shape: int, rate: float = 0.3) -> Array:
    return (RNG.random(shape) < rate).astype(np.int8)


def assert_equal(graph: Graph, inputs: dict[str, Array], record: tuple[str, ...] | None = None, **more: Any) -> Execution:
    """Lava gives what the interpreter gives: outputs, all populations, final states."""
    record = default_record(graph) if record is None else record
    expected = interpret(graph, inputs, record=record)
    found: Execution = backend().run(graph, inputs, record=record, **more)
    for name in expected.outputs:
        np.testing.assert_array_equal(found.outputs[name], expected.outputs[name], f"output {name}")
    assert set(found.records) == set(expected.records)
    for name in expected.records:
        np.testing.assert_array_equal(found.records[name], expected.records[name], f"record {name}")
    for node, states in expected.states.items():
        for state in states:
            np.testing.assert_array_equal(found.states[node][state], states[state], f"state {node}.{state}")
    assert all(array.dtype == np.int64 for array in (*found.outputs.values(), *found.records.values()))
    return found


def feed_forward() -> Graph:
    return retimed(
        source(12),
        dense("fc1", even((20, 12)), Ref("in")),
        lif("l1", Ref("fc1"), bias_mant=RNG.integers(-300, 300, 20), du=3000),
        dense("fc2", even((7, 20)), Ref("l1")),
        lif("l2", Ref("fc2"), program=probed(LIF, "v")),
        outputs={"spk": Ref("l2"), "mem": Ref("l2", "v")},
    )


# ------------------------------------------------------------------------------------------------ the neurons themselves


def _extremes(rng: np.random.Generator, low: int, high: int, size: int, middle: tuple[int, int] | None = None) -> Array:
    """Numbers of a range, its ends often."""
    inner = rng.integers(*(middle or (low, high)), size, endpoint=True)
    choice = rng.integers(0, 8, size)
    return np.where(choice == 0, low, np.where(choice == 1, high, inner)).astype(np.int64)


@pytest.mark.usefixtures("lava_env")
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 30), interval=st.sampled_from([1, 2, 5, 16]), offset=st.integers(0, 20))
def test_lif_and_lif_reset_are_lavas_bit_for_bit(seed: int, interval: int, offset: int) -> None:
    """Thousands of neurons with parameters of their own, driven beyond the wrap of u and the saturation of v."""
    rng = np.random.default_rng(seed)
    size, fan_in, steps = 1500, 800, 12
    scale = rng.integers(0, 128, (size, 1))
    weight = (2 * np.clip(rng.integers(-1, 2, (size, fan_in)) * scale + rng.integers(-3, 4, (size, 1)), -128, 127)).astype(np.int16)
    weight[:50], weight[50:100] = 254, -256

    def population(name: str, program: Program, **more: int) -> Neuron:
        params = {
            "du": _extremes(rng, 0, 4095, size),
            "dv": _extremes(rng, 0, 4096, size, (0, 300)),
            "vth": _extremes(rng, 0, 131071, size, (1, 3000)),
            "bias_mant": _extremes(rng, -4096, 4095, size, (-50, 50)),
            "bias_exp": rng.integers(0, 8, size),
        }
        largest = (1 << 23) - 1
        init = {name: _extremes(rng, -largest, largest, size, (-9999, 9999)).astype(np.int32) for name in ("u", "v")}
        return lif(name, Ref("fc"), program=probed(program, "u", "v"), init=init, **params, **more)

    graph = fixed(
        source(fan_in),
        dense("fc", weight, Ref("in", delay=1)),
        population("a", LIF),
        population("b", RESET, interval=interval, offset=offset),
        outputs={"a": Ref("a"), "b": Ref("b")},
    )
    verify(graph)
    rate = rng.random((1, steps, 1)) ** 2
    x = (rng.random((1, steps, fan_in)) < rate).astype(np.int8)
    x[:, 3:5] = 1
    result = assert_equal(graph, {"in": x})
    v, u = result.records["a.v"], result.records["a.u"]
    assert np.any(np.abs(v) == (1 << 23) - 1), "v never saturated"
    assert np.any(np.diff(np.sign(u), axis=1) < -1) and np.abs(u).max() > 1 << 22, "u never came near its wrap"


# --------------------------------------------------------------------------------------------------------------- networks


@pytest.mark.usefixtures("lava_env")
def test_feed_forward_with_a_probed_membrane() -> None:
    assert_equal(feed_forward(), {"in": spikes(5, 15, 12)})


@pytest.mark.usefixtures("lava_env")
def test_one_sample_alone_uses_the_processes_of_the_chip() -> None:
    assert_equal(feed_forward(), {"in": spikes(1, 9, 12)})


@pytest.mark.usefixtures("lava_env")
def test_recurrence_and_skip_connections_with_delays() -> None:
    delay = RNG.integers(0, 9, (20, 20)).astype(np.int32)
    csr = RNG.random((9, 20)) < 0.3
    graph = retimed(
        source(12),
        dense("fc1", even((20, 12)), Ref("in")),
        dense("rec", even((20, 20), 30), Ref("l1", delay=1), delay=delay),
        Add(name="sum", inputs=(Ref("fc1"), Ref("rec"))),
        lif("l1", Ref("sum"), du=3500),
        Sparse(
            name="fc2",
            inputs=(Ref("l1"),),
            weight=even(int(csr.sum()), 120),
            indices=np.nonzero(csr)[1].astype(np.int32),
            indptr=np.concatenate([[0], csr.sum(axis=1).cumsum()]).astype(np.int32),
            fan_in=20,
            delay=RNG.integers(0, 60, int(csr.sum())).astype(np.int32),
        ),
        dense("skip", even((9, 12)), Ref("in", delay=3)),
        Add(name="sum2", inputs=(Ref("fc2"), Ref("skip"))),
        lif("l2", Ref("sum2")),
        outputs={"spk": Ref("l2")},
    )
    for batch in (1, 4):
        assert_equal(graph, {"in": spikes(batch, 70, 12)}, (*default_record(graph), "sum2", "in", "fc1"))


@pytest.mark.usefixtures("lava_env")
def test_delays_beyond_the_maximum_go_through_relays() -> None:
    """Two stages of relays behind the input, one behind a layer, which a loop and a readout share."""
    delay = RNG.integers(0, 130, (20, 12)).astype(np.int32)
    late = RNG.integers(0, 100, (20, 20)).astype(np.int32)
    graph = retimed(
        source(12),
        dense("fc1", even((20, 12)), Ref("in"), delay=delay),
        dense("rec", even((20, 20), 30), Ref("l1", delay=1), delay=late),
        Add(name="sum", inputs=(Ref("fc1"), Ref("rec"))),
        lif("l1", Ref("sum"), du=3500),
        dense("fc2", even((9, 20)), Ref("l1", delay=80)),
        lif("l2", Ref("fc2")),
        outputs={"spk": Ref("l2")},
    )
    stages = {node.name for node in graph.neurons if "_relay" in node.name}
    assert stages == {"in_relay1", "in_relay2", "l1_relay1"}
    assert_equal(graph, {"in": spikes(2, 260, 12)}, (*default_record(graph), "sum", "in"))


@pytest.mark.usefixtures("lava_env")
def test_the_ways_of_starting_late() -> None:
    """A preimage as initial state, a bias from an always-on source, and a prologue: the host writes bias and state."""
    bias = np.full(10, 37)
    graph = retimed(
        source(6),
        dense("fc1", even((10, 6)), Ref("in")),
        lif("memory", Ref("fc1"), bias_mant=bias, dv=0, vth=20),
        dense("fc2", even((10, 10)), Ref("memory")),
        lif("constant", Ref("fc2"), bias_mant=bias * 0 + 64 * 30, dv=4096, vth=29),
        dense("fc3", even((5, 10)), Ref("constant")),
        lif("prologue", Ref("fc3"), bias_mant=[7, 2000, -33, 1, 0], dv=777, init={"u": np.arange(5, dtype=np.int32) * 900}),
        dense("fc4", even((4, 5)), Ref("prologue")),
        lif("reset", Ref("fc4"), program=RESET, interval=4, offset=3, bias_mant=[100, -3, 55, 0], dv=50),
        outputs={"spk": Ref("reset")},
    )
    starts = {node.name: node.start for node in graph.neurons}
    assert starts["prologue"] == 3 and "constant_on" in graph and graph["memory"].init, graph
    for batch, steps in ((1, 1), (3, 11)):
        assert_equal(graph, {"in": spikes(batch, steps, 6)})


@pytest.mark.usefixtures("lava_env")
def test_a_constant_source() -> None:
    graph = fixed(
        source(3),
        Constant(name="on", value=np.array([1, 0, 1], np.int32), kind="spike", start=2),
        dense("fc", even((4, 3)), Ref("in", delay=1)),
        dense("push", even((4, 3)), Ref("on", delay=1)),
        Add(name="sum", inputs=(Ref("fc"), Ref("push"))),
        lif("l", Ref("sum")),
        outputs={"spk": Ref("l")},
    )
    assert_equal(graph, {"in": spikes(3, 9, 3)}, ("l", "on", "sum"))


@pytest.mark.usefixtures("lava_env")
def test_reshape_gather_concat_and_add_go_into_the_matrices() -> None:
    """On either side of a synapse: spikes gathered twice, a layer over the last axis, values permuted and put together."""
    graph = fixed(
        source((2, 3)),
        Gather(name="twice", inputs=(Ref("in"),), indices=np.array([[0, 5, 0], [4, 1, 1]])),
        dense("last", even((4, 3)), Ref("twice", delay=1)),  # (2, 4)
        Reshape(name="flat", inputs=(Ref("last"),), shape=(8,)),
        Reshape(name="in_flat", inputs=(Ref("in"),), shape=(6,)),
        lif("l0", Ref("flat"), bias_mant=20),
        Concat(name="both", inputs=(Ref("in_flat", delay=1), Ref("l0"))),
        dense("fc", even((5, 14)), Ref("both", delay=1), delay=RNG.integers(0, 3, (5, 14)).astype(np.int32)),
        dense("fd", even((3, 8)), Ref("l0", delay=2)),
        Concat(name="values", inputs=(Ref("fd"), Ref("fc"))),
        Gather(name="mixed", inputs=(Ref("values"),), indices=np.array([[7, 6], [0, 0], [3, 1]])),
        Reshape(name="in_small", inputs=(Ref("fd"),), shape=(3, 1)),
        Concat(name="pair", inputs=(Ref("in_small"), Ref("in_small")), axis=1),
        Add(name="sum", inputs=(Ref("mixed"), Ref("pair"))),
        lif("l1", Ref("sum"), vth=np.array([10, 20, 30])),
        Concat(name="out", inputs=(Ref("l0"), Ref("in_flat"))),
        Gather(name="picked", inputs=(Ref("out"),), indices=np.array([[9, 0], [3, 13]])),
        outputs={"l1": Ref("l1"), "picked": Ref("picked"), "sum": Ref("sum"), "out": Ref("out"), "in": Ref("in")},
    )
    verify(graph)
    for batch in (1, 3):
        assert_equal(graph, {"in": spikes(batch, 12, 2, 3, rate=0.5)})


@pytest.mark.usefixtures("lava_env")
def test_parts_without_a_connection_and_python_words_as_names() -> None:
    graph = fixed(
        source(3, "in"),
        source(2, "lambda"),
        source(2, "unused"),
        dense("class", even((4, 3)), Ref("in", delay=1)),
        lif("2nd", Ref("class"), bias_mant=9),
        dense("w", even((4, 2)), Ref("lambda", delay=1)),
        lif("LIF", Ref("w"), bias_mant=9),
        dense("np", np.zeros((2, 4), np.int16), Ref("LIF", delay=63)),
        Sparse(
            name="empty",
            inputs=(Ref("LIF", delay=1),),
            weight=np.zeros(0, np.int16),
            indices=np.zeros(0, np.int32),
            indptr=np.zeros(3, np.int32),
            fan_in=4,
        ),
        Add(name="data", inputs=(Ref("np"), Ref("empty"))),
        lif("copies", Ref("data"), bias_mant=99, dv=0),
        outputs={"a": Ref("2nd"), "b": Ref("copies"), "unused": Ref("unused")},
    )
    verify(graph)
    assert_equal(graph, {"in": spikes(2, 8, 3), "lambda": spikes(2, 8, 2), "unused": spikes(2, 8, 2)})


def random_network(rng: np.random.Generator) -> Graph:
    """Layers that read earlier ones, themselves and the input through dense and sparse synapses with delays; retimed."""
    nodes: list[Any] = [source(int(rng.integers(1, 9)))]
    sizes = {"in": nodes[0].type.size}
    for index in range(int(rng.integers(1, 5))):
        layer, size = f"l{index}", int(rng.integers(1, 12))
        reads = [(str(name), int(rng.integers(0, 4))) for name in rng.choice(list(sizes), rng.integers(1, 4))]
        if rng.random() < 0.5:
            reads.append((layer, int(rng.integers(1, 5))))
            sizes[layer] = size
        sizes[layer] = size
        parts = []
        for number, (name, delay) in enumerate(reads):
            shape = (size, sizes[name])
            weight = (2 * rng.integers(-40, 60, shape)).astype(np.int16)
            own = rng.integers(0, 5, shape).astype(np.int32) if rng.random() < 0.4 else None
            parts.append(f"{layer}_{number}")
            if rng.random() < 0.6:
                nodes.append(dense(parts[-1], weight, Ref(name, delay=delay), delay=own))
                continue
            there = rng.random(shape) < 0.5
            nodes.append(
                Sparse(
                    name=parts[-1],
                    inputs=(Ref(name, delay=delay),),
                    weight=weight[there],
                    indices=np.nonzero(there)[1].astype(np.int32),
                    indptr=np.concatenate([[0], there.sum(axis=1).cumsum()]).astype(np.int32),
                    fan_in=sizes[name],
                    delay=None if own is None else own[there],
                )
            )
        nodes.append(Add(name=f"{layer}_sum", inputs=tuple(Ref(part) for part in parts)))
        per_neuron = size if rng.random() < 0.5 else None
        params: dict[str, Any] = {
            "du": rng.integers(500, 4096, per_neuron),
            "dv": rng.integers(0, 4097, per_neuron),
            "vth": rng.integers(1, 200, per_neuron),
            "bias_mant": rng.integers(-400, 600, size) * rng.integers(0, 2),
            "bias_exp": rng.integers(0, 4),
        }
        if rng.random() < 0.3:
            params |= {"program": RESET, "interval": rng.integers(1, 9), "offset": rng.integers(0, 9)}
        if rng.random() < 0.3:
            params["init"] = {"v": rng.integers(-5000, 5000, size).astype(np.int32)}
        nodes.append(lif(layer, Ref(f"{layer}_sum"), **params))
    return retimed(*nodes, outputs={layer: Ref(layer) for layer in sizes})


@pytest.mark.usefixtures("lava_env")
@settings(
    max_examples=60 if os.environ.get("SPIKEC_LONG") else 8,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 1 << 30))
def test_random_networks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_network(rng)
    x = (rng.random((int(rng.integers(1, 4)), 20, *graph.inputs[0].type.shape)) < 0.4).astype(np.int8)
    assert_equal(graph, {"in": x})


def test_convolutions_are_lavas(lava_env: LavaEnvironment) -> None:
    """Rectangular kernels, strides, padding, dilation, groups; one axis of space; whole numbers as messages; all layouts."""
    assert lava_env.python.exists()
    graph = retimed(
        Input(name="in", type=TensorType("graded", (2, 7, 9), "i16"), bounds=(-300, 300)),
        Conv(name="c1", inputs=(Ref("in"),), weight=even((6, 1, 3, 2)), stride=(2, 1), padding=(1, 2), dilation=(1, 3), groups=2),
        lif("l1", Ref("c1"), vth=2000, bias_mant=np.arange(6) * 40),
        Conv(name="c2", inputs=(Ref("l1"),), weight=even((4, 6, 2, 3)), stride=(1, 3)),
        lif("l2", Ref("c2"), program=probed(LIF, "v")),
        Reshape(name="row", inputs=(Ref("l2"),), shape=(4, 9)),
        Conv(name="c3", inputs=(Ref("row"),), weight=even((4, 2, 2)), groups=2, padding=(1,)),
        lif("l3", Ref("c3")),
        outputs={"l3": Ref("l3"), "sum": Ref("c3")},
    )
    rng = np.random.default_rng(5)
    for batch in (1, 5):
        assert_equal(graph, {"in": rng.integers(-300, 301, (batch, 9, 2, 7, 9))}, (*default_record(graph), "c1", "c2"))


@pytest.mark.usefixtures("lava_env")
@pytest.mark.usefixtures("lava_env")
@pytest.mark.parametrize("samples", [1, 2])  # one alone has full matrices, several stand in sparse ones
def test_weights_with_exponents(samples: int) -> None:
    """Every exponent and width, in all four synapse processes, on spikes and on payloads of either sign, by the sum itself."""
    rng = np.random.default_rng(8)
    nodes: list[Any] = [source(9), Input(name="real", type=TensorType("graded", (9,), "i32"), bounds=(-50, 50))]
    seen = set()
    for number in range(30):
        exponent = number % 15 - 7
        bits = min((8, 8, 6, 5, 4, 3, 2, 1)[number % 8], 9 + exponent)
        whole = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (7, 9))
        whole[0, :2] = -(1 << (bits - 1)), -1
        weight = (whole << 9 - bits + exponent).astype(np.int32)
        kept = stored(weight, TARGET)
        assert kept is not None and kept.bits <= max(bits, 8 if bits == 7 else 0)
        seen.add((kept.exponent, kept.bits))
        ref = Ref(("in", "real")[number % 2], delay=1)
        waits = rng.integers(0, 4, weight.shape).astype(np.int32) if number % 4 >= 2 else None
        name = f"w{number}"
        nodes.append(dense(name, weight, ref, delay=waits))
    assert {exponent for exponent, _ in seen} == set(range(-7, 8)) and {bits for _, bits in seen} == set(WIDTHS)
    nodes = [replace(n, lag=1) if not isinstance(n, Input) else n for n in nodes]
    graph = verify(fixed(*nodes, outputs={f"w{k}": Ref(f"w{k}") for k in range(30)}))
    data = {"in": spikes(samples, 12, 9), "real": rng.integers(-50, 51, (samples, 12, 9)).astype(np.int32)}
    assert_equal(graph, data)


def test_numbers_enter_neurons_straight_and_messages_through_synapses() -> None:
    csr = RNG.random((5, 4)) < 0.5
    graph = retimed(
        Input(name="in", type=TensorType("graded", (4,), "i16"), bounds=(-20, 300)),
        lif("encoder", Ref("in")),
        dense("fc", even((5, 4)), Ref("in"), delay=RNG.integers(0, 3, (5, 4)).astype(np.int32)),
        dense("from_encoder", even((5, 4)), Ref("encoder")),
        Sparse(
            name="more",
            inputs=(Ref("in", delay=2),),
            weight=even(int(csr.sum())),
            indices=np.nonzero(csr)[1].astype(np.int32),
            indptr=np.concatenate([[0], csr.sum(axis=1).cumsum()]).astype(np.int32),
            fan_in=4,
        ),
        Add(name="sum", inputs=(Ref("fc"), Ref("from_encoder"), Ref("more"))),
        lif("l", Ref("sum"), vth=900),
        outputs={"l": Ref("l")},
    )
    rng = np.random.default_rng(6)
    for batch in (1, 3):
        assert_equal(graph, {"in": rng.integers(-20, 301, (batch, 20, 4))})


@pytest.mark.usefixtures("lava_env")
def test_many_samples_in_several_parts_report_progress() -> None:
    graph = feed_forward()
    told: list[tuple[int, int]] = []
    assert_equal(graph, {"in": spikes(520, 6, 12)}, progress=lambda done, total: told.append((done, total)))
    steps = 3 * (6 + graph.max_lag)  # in three runs
    assert told[0] == (0, steps) and told[-1] == (steps, steps) and len(told) >= 3
    assert [done for done, _ in told] == sorted(done for done, _ in told) and {total for _, total in told} == {steps}


@pytest.mark.usefixtures("lava_env")
def test_one_long_run_reports_its_steps() -> None:
    """In the middle as well; and what is computed is the same."""
    graph = feed_forward()
    told: list[tuple[int, int]] = []
    assert_equal(graph, {"in": spikes(1, 2000, 12)}, progress=lambda done, total: told.append((done, total)))
    total = 2000 + graph.max_lag
    assert told[0] == (0, total) and told[-1] == (total, total)
    assert len({done for done, _ in told if 0 < done < total}) >= 3


@pytest.mark.usefixtures("lava_env")
def test_an_interrupt_ends_the_run_and_does_not_wait_for_it() -> None:
    """What is left of the run after an interrupt in its midst: no process, and by far not all of its steps."""
    reached: list[int] = []
    begun: list[float] = []

    def progress(done: int, total: int) -> None:
        if done > 200:
            reached.append(done)
            begun.append(time.monotonic())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend().run(feed_forward(), {"in": spikes(1, 200_000, 12)}, progress=progress)
    assert time.monotonic() - begun[0] < 30  # all steps take minutes
    assert reached[0] < 100_000
    assert not [pid for pid in children_of(os.getpid()) if b"run.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.usefixtures("lava_env")
@pytest.mark.parametrize("how", ["killed", "suspended"])
def test_a_part_that_dies_or_stops_in_the_middle_is_an_error_that_names_it(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of one population gets a signal once the run is well under way."""
    monkeypatch.setattr(lava_backend, "_START_SECONDS", 2.0)
    monkeypatch.setattr(lava_backend, "_STEP_SECONDS", 0.001)
    monkeypatch.setattr(lava_backend, "_busy", lambda: 1.0)
    graph = feed_forward()
    sent: list[int] = []

    def progress(done: int, total: int) -> None:
        if done > 200 and not sent:
            own = {pid for pid in children_of(os.getpid()) if b"run.py" in Path(f"/proc/{pid}/cmdline").read_bytes()}
            (leader,) = own
            sent.append(sorted(children_of(leader))[2])
            os.kill(sent[0], signal.SIGKILL if how == "killed" else signal.SIGSTOP)

    begin = time.monotonic()
    with pytest.raises(CompileError) as caught:
        backend().run(graph, {"in": spikes(1, 100_000, 12)}, progress=progress)
    (problem,) = caught.value.diagnostics
    assert sent and problem.code == "SPK513" and time.monotonic() - begin < 60
    (note,) = problem.notes
    if how == "killed":
        assert re.search(r"Lava stopped: \w+ '.*' was ended by signal SIGKILL \(the system does that when memory", note), note
    else:
        wanted = rf"no step has ended for \d+ s, after step \d+ of 100002; \w+ '.*' \(process {sent[0]}\) is suspended"
        assert re.search(wanted, note), note
    assert sent[0] not in [pid for pid, _, state in processes() if state != "Z"]


def processes() -> list[tuple[int, int, str]]:
    """Number, parent and state of every process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            found.append((int(stat.parent.name), int(parent), state))
    return found


def children_of(pid: int) -> list[int]:
    return [number for number, parent, _ in processes() if parent == pid]


def test_a_time_that_is_up_before_a_run_begins_is_told_as_it_was_given(lava_env: LavaEnvironment) -> None:
    assert lava_env.python.exists()
    with pytest.raises(CompileError, match=r"did not end within 0\.05 s"):
        backend().run(feed_forward(), {"in": spikes(1040, 6, 12)}, timeout=0.05)


def test_a_person_who_watches_the_package_sees_the_steps(tmp_path: Path, lava_env: LavaEnvironment) -> None:
    """On a terminal a line of progress, taken away at the end; into a file nothing."""
    package = emitted(tmp_path / "net")

    def command(steps: int) -> list[str]:
        np.savez(tmp_path / "in.npz", **{"in": spikes(1, steps, 12)})
        run = [str(lava_env.python), str(package / "run.py")]
        return [*run, "--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz")]

    mine, other = os.openpty()
    try:
        watched = subprocess.Popen(command(3000), stderr=other)
        os.close(other)
        said = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(mine, 4096):
                said += piece
        assert watched.wait(60) == 0
    finally:
        os.close(mine)
    shown = [int(step) for step in re.findall(rb"\rstep (\d+) of 3002, \d+ s ", said)]
    assert shown == sorted(shown) and any(0 < step < 3002 for step in shown), said
    assert said.endswith(b" \r")
    words = [*command(20), "--steps", str(tmp_path / "steps")]
    assert subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stderr == ""
    assert np.fromfile(tmp_path / "steps", np.int64).tolist() == [22, 22]


@pytest.mark.usefixtures("lava_env")
def test_every_sample_begins_afresh() -> None:
    graph = feed_forward()
    x = spikes(1, 10, 12)
    both = backend().run(graph, {"in": np.concatenate([np.ones_like(x), x])}, record=("l1",))
    alone = backend().run(graph, {"in": x}, record=("l1",))
    np.testing.assert_array_equal(both.records["l1"][1:], alone.records["l1"])


# ------------------------------------------------------------------------------------------------------------ the package


def emitted(folder: Path, graph: Graph | None = None, golden: bool = True) -> Path:
    graph = graph or feed_forward()
    folder.mkdir()
    rng = np.random.default_rng(3)
    x = (rng.random((2, 8, *graph.inputs[0].type.shape)) < 0.3).astype(np.int8)
    expected = interpret(graph, {"in": x}, record=default_record(graph))
    backend().emit(graph, folder, Golden({"in": x}, expected) if golden else None)
    return folder


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = feed_forward()
    one, two = emitted(tmp_path / "one", graph), emitted(tmp_path / "two", graph)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert [str(name) for name in files] == [
        "README.md",
        "chip.py",
        "golden.npz",
        "host/__init__.py",
        "host/recorders.py",
        "network.py",
        "parts.py",
        "run.py",
        "weights.npz",
    ]
    for name in files:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_network_py_reads_like_the_model(tmp_path: Path) -> None:
    text = (emitted(tmp_path / "net") / "network.py").read_text()
    for line in (
        "from lava.proc.lif.process import LIF",
        "# l1: 20 LIF neurons, 1 step(s) after the model",
        "# from net.py:9 (net.l1)",
        'fc1 = dense(w["fc1.weight"], copies, "fc1", exponent=-2, width=6)',
        "in_.s_out.connect(fc1.s_in)",
        "fc1.a_out.connect(l1.a_in)",
        'l2 = LIF(shape=(7 * copies,), du=4095, dv=410, vth=40, bias_mant=0, bias_exp=0, name="l2")',
        'outputs={"spk": "l2", "mem": "l2.v"},',
    ):
        assert line in text, line
    assert all(len(line) <= 120 for line in text.splitlines())
    for path in (tmp_path / "net").rglob("*.py"):
        assert "spikec" not in path.read_text().replace("written by spikec", ""), path
        compile(path.read_text(), str(path), "exec")


def test_the_package_checks_itself_from_another_folder(tmp_path: Path, lava_env: LavaEnvironment) -> None:
    package = emitted(tmp_path / "net")
    before = sorted(tmp_path.rglob("*"))
    command = [str(lava_env.python), str(package / "run.py"), "--check"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" equal\n") == 2 * 9 + 1 and done.stdout.endswith("all equal\n")
    assert sorted(tmp_path.rglob("*")) == before, "the run left something in the package"
    missing = subprocess.run([command[0], "-c", "import spikec"], cwd="/", capture_output=True, text=True, timeout=60)
    assert "ModuleNotFoundError" in missing.stderr


def test_the_check_finds_a_wrong_number_and_a_changed_weight(tmp_path: Path, lava_env: LavaEnvironment) -> None:
    package = emitted(tmp_path / "net")

    def change(file: str, name: str, value: int) -> str:
        path = package / file
        kept = path.read_bytes()
        with np.load(path) as stored:
            arrays = {key: stored[key] for key in stored.files}
        arrays[name].flat[0] = value
        np.savez(path, **arrays)
        command = [str(lava_env.python), str(package / "run.py"), "--check"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        path.write_bytes(kept)
        assert done.returncode == 1
        return done.stdout + done.stderr

    assert "state.l2.v                       1 of 7 differ" in change("golden.npz", "state.l2.v", 12345)
    assert "error: Lava changed the weights of fc2" in change("weights.npz", "fc2.weight", 3)


@pytest.mark.usefixtures("lava_env")
def test_an_artefact_is_what_is_run(tmp_path: Path) -> None:
    graph = feed_forward()
    package = emitted(tmp_path / "net", graph)
    assert_equal(graph, {"in": spikes(2, 8, 12)}, artefact=package)
    (package / "weights.npz").unlink()
    with pytest.raises(CompileError, match=r"weights\.npz is missing") as caught:
        backend().run(graph, {"in": spikes(1, 4, 12)}, artefact=package)
    assert caught.value.code == "SPK402"


@pytest.mark.usefixtures("lava_env")
def test_a_hang_is_ended_and_explained(tmp_path: Path) -> None:
    package = emitted(tmp_path / "net")
    text = (package / "run.py").read_text()
    (package / "run.py").write_text(
        text.replace("    main.stop()\n", "    threading.Event().wait()\n").replace("over.set()", "pass")
    )
    assert "threading.Event().wait()" in (package / "run.py").read_text()
    begin = time.monotonic()
    with pytest.raises(CompileError) as caught:
        backend().run(feed_forward(), {"in": spikes(1, 4, 12)}, artefact=package, timeout=4)
    (problem,) = caught.value.diagnostics
    assert problem.code == "SPK512" and time.monotonic() - begin < 20
    assert "waits for ever" in problem.notes[0]


@pytest.mark.usefixtures("lava_env")
def test_a_failure_inside_lava_is_told_in_a_line(tmp_path: Path) -> None:
    """A float decay kills the process of the population; Lava alone would hang (loihi2.md, traps)."""
    package = emitted(tmp_path / "net")
    text = (package / "network.py").read_text()
    (package / "network.py").write_text(text.replace("du=4095", "du=0.5"))
    with pytest.raises(CompileError) as caught:
        backend().run(feed_forward(), {"in": spikes(1, 4, 12)}, artefact=package, timeout=60)
    (problem,) = caught.value.diagnostics
    assert problem.code == "SPK513"
    assert any("TypeError" in note for note in problem.notes), problem.notes
    assert not any(word in note for note in problem.notes for word in ("Traceback", 'File "'))


def test_lava_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEC_CACHE_DIR", str(tmp_path))
    assert backend().available() == "not installed (spikec setup lava)"
    with pytest.raises(CompileError) as caught:
        backend().run(feed_forward(), {"in": spikes(1, 4, 12)})
    assert caught.value.code == "SPK511" and caught.value.diagnostics[0].fix == "spikec setup lava"


# ---------------------------------------------------------------------------------------------------------------- refusals


def refusals(*nodes: Any, outputs: dict[str, Ref]) -> list[str]:
    return [str(item).splitlines()[0] for item in backend().check(fixed(*nodes, outputs=outputs))]


def test_everything_that_cannot_be_emitted_is_said_at_once() -> None:
    odd = even((4, 3))
    odd[0, :3] = (3, 300, -60)
    found = refusals(
        source(3),
        Input(name="real", type=TensorType("value", (3,), "i8")),
        dense("odd", odd, Ref("in", delay=1), bias=np.ones(4, np.int32)),
        lif("l", Ref("odd"), program=RESET, interval=[1, 2, 3, 4], offset=0, bias_mant=40000),
        dense("same", even((4, 4)), Ref("l")),
        dense("slow", even((4, 4)), Ref("l", delay=64)),
        Add(name="sum", inputs=(Ref("same"), Ref("slow"))),
        lif("m", Ref("sum")),
        lif("bare", Ref("in")),
        dense("numbers", even((4, 3)), Ref("real", delay=1)),
        lif("early", Ref("numbers"), start=9),
        dense("late", even((4, 4)), Ref("l", delay=1)),
        lif("before", Ref("late"), start=9),
        outputs={"l": Ref("l")},
    )
    assert found == [
        "net.py:9 (net.l): error[SPK502]: %l: bias_mant is 40000 (4 of 4), and Lava takes -32768 to 32767",
        "net.py:9 (net.l): error[SPK502]: %l: has several values of reset_interval, and Lava takes one per population",
        "net.py:7 (net.odd): error[SPK502]: %odd: weights from -60 to 300 that are no 8-bit mantissas times a power of two",
        "net.py:7 (net.odd): error[SPK502]: %odd: has a bias, which a synapse on Lava has not",
        "net.py:7 (net.same): error[SPK502]: %same: reads a spike of the same step, and a synapse on Lava takes a step",
        "net.py:7 (net.slow): error[SPK502]: %slow: waits 63 steps; Lava's synapses have at most 62",
        "net.py:9 (net.bare): error[SPK502]: %bare: %in enters without a synapse",
        "net.py:7 (net.numbers): error[SPK502]: %numbers: %real is not spikes, and a synapse on Lava takes spikes",
        "net.py:9 (net.before): error[SPK502]: %before: starts at step 9, and spikes of %l arrive before",
    ]


def test_what_carries_nothing_does_not_arrive_early() -> None:
    """A synapse without connections, and the place of a weight that is zero, have no delay that counts."""
    weight, delay = even((4, 3)), np.full((4, 3), 8, np.int32)
    weight[0], weight[1:], delay[0] = 0, 2, 0
    nothing = {"weight": np.zeros(0, np.int16), "indices": np.zeros(0, np.int32), "indptr": np.zeros(5, np.int32)}
    nodes = (
        source(3),
        dense("late", weight, Ref("in", delay=1), delay=delay),
        Sparse(name="empty", inputs=(Ref("in", delay=1),), fan_in=3, **nothing),
        Add(name="sum", inputs=(Ref("late"), Ref("empty"))),
        lif("l", Ref("sum"), start=9, bias_mant=5),
    )
    assert refusals(*nodes, outputs={"l": Ref("l")}) == []
    weight[0] = 2
    assert "spikes of %in arrive before" in refusals(*nodes[:1], dense("late", weight, Ref("in", delay=1), delay=delay), *nodes[2:], outputs={"l": Ref("l")})[0]  # fmt: skip


def test_operations_without_a_process() -> None:
    pool = Pool(name="pool", inputs=(Ref("in", delay=1),), mode="sum", kernel=(2,), loc=Loc("net.py", 3))
    nodes = (source((1, 6)), pool, lif("l", Ref("pool")))
    assert refusals(*nodes, outputs={"l": Ref("l")}) == [
        "net.py:3: error[SPK502]: %pool: there is no Lava process for the operation 'pool'"
    ]
    late = Conv(name="conv", inputs=(Ref("in", delay=2),), weight=even((2, 1, 3)), loc=Loc("net.py", 3))
    (found,) = refusals(source((1, 6)), late, lif("l", Ref("conv")), outputs={"l": Ref("l")})
    assert "is a convolution that Lava's Conv does not compute" in found
    with pytest.raises(CompileError) as caught:
        backend().emit(fixed(*nodes, outputs={"l": Ref("l")}), Path("nowhere"))
    assert caught.value.code == "SPK502"
    floating = Graph("net", "float", (source(3),), (("in", Ref("in")),))
    assert [item.code for item in backend().check(floating)] == ["SPK502"]


def test_what_cannot_be_recorded_is_named(lava_env: LavaEnvironment) -> None:
    assert lava_env.python.exists()
    for name, message in (("nothing", "there is no such wire"), ("l2.w", "there is no such wire")):
        with pytest.raises(CompileError, match=message) as caught:
            backend().run(feed_forward(), {"in": spikes(1, 4, 12)}, record=(name,))
        assert caught.value.code == "SPK010"


def test_a_good_graph_is_not_refused() -> None:
    plan = make_plan(feed_forward(), TARGET)
    assert not plan.problems
    assert list(plan.synapses) == ["fc1", "fc2"] and list(plan.populations) == ["l1", "l2"]
    assert plan.populations["l2"].inputs == {"a_in": ("fc2",)}


def test_sums_beyond_32_bits_only_where_the_neuron_wraps_them(lava_env: LavaEnvironment) -> None:
    """Sigma neurons add modulo 2^32, as Lava's sums do; any other use of such a sum is refused."""
    assert lava_env.python.exists()
    text = "neuron @{name}(a) state(v: i32 = 0) {{ v = wrap({expr}, 32) y = v >> 3 emit y: graded }}"

    def net(name: str, expr: str) -> Graph:
        wide = (1 << 30) - 1
        return retimed(
            Input(name="in", type=TensorType("graded", (3,), "i32"), bounds=(-wide, wide)),
            dense("fc", np.full((2, 3), 254, np.int16) - 2 * np.arange(6, dtype=np.int16).reshape(2, 3), Ref("in"), dtype="i64"),
            Neuron(name="n", inputs=(Ref("fc"),), program=parse_program(text.format(name=name, expr=expr))),
            outputs={"n": Ref("n")},
        )

    x = np.random.default_rng(0).integers(-(1 << 30) + 1, 1 << 30, (2, 12, 3))
    assert_equal(net("sigma", "v + a - 5"), {"in": x}, ("n",))
    for name, expr in (("half", "v + (a >> 1)"), ("largest", "max(a, 0)"), ("twice", "v + a * 3")):
        assert any("its input can reach" in str(item) for item in backend().check(net(name, expr))), expr


def test_a_busy_machine_gets_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from spikec.backends.lava import backend as module

    plan = make_plan(feed_forward(), TARGET)
    limits = []
    for load in (0.0, 1.0, 3.0, 1000.0):
        monkeypatch.setattr(module.os, "getloadavg", lambda load=load: (load * (os.cpu_count() or 1), 0.0, 0.0))
        limits.append(module._limits(plan, 10, 1))
    for whole in zip(*limits, strict=True):
        assert whole[0] == whole[1] >= 50 and whole[2] == pytest.approx(3 * whole[0]) and whole[3] == pytest.approx(8 * whole[0])
    assert all(patience < whole for whole, patience in limits), "a hang is told by the package, with its cause"
