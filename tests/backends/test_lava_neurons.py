"""Every neuron of the loihi2 target against the running process of Lava's library, over its legal range of parameters.

One run a model: several populations of many neurons, each with parameters and initial states of its own, driven straight by random
numbers (no synapse in between) that reach the wraps and saturations, a thousand steps. Lava starts once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from spikec.backend import load_backend
from spikec.backends.lava.plan import make_plan
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.neuron import Emit, Program
from spikec.ir.ops import Input, Neuron, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType
from spikec.target import load_target

TARGET = load_target("loihi2")
NATIVE = {native.name: native for native in TARGET.neurons}
SIZE, STEPS, TRIALS = 60, 300, 4
MOST = (1 << 23) - 1


def spread(rng: np.random.Generator, low: int, high: int, shape: Any = SIZE) -> Array:
    """Numbers of a range: its ends often, and all magnitudes alike."""
    bits = rng.integers(0, max(abs(low), abs(high)).bit_length() + 1, shape)
    values = np.clip(rng.integers(-(1 << 40), 1 << 40, shape) >> (40 - bits), low, high)
    chosen = rng.integers(0, 12, shape)
    return np.asarray(np.where(chosen == 0, low, np.where(chosen == 1, high, np.where((values < low), low, values))), np.int64)


def lif(rng: np.random.Generator) -> dict[str, Array]:
    return {
        "du": np.where(rng.random(SIZE) < 0.2, -1, spread(rng, 0, 4095)),
        "dv": np.where(rng.random(SIZE) < 0.3, rng.integers(0, 400, SIZE), spread(rng, 0, 4096)),
        "bias_mant": spread(rng, -4096, 4095),
        "bias_exp": rng.integers(0, 8, SIZE),
    }


def one(rng: np.random.Generator, low: int, high: int) -> Array:
    return spread(rng, low, high, ())


@dataclass(frozen=True)
class Case:
    """params: of one population. most: the largest input. begin: the range of initial states that Lava takes."""

    params: Any
    most: int
    begin: dict[str, int] = field(default_factory=dict)


BOTH = {"u": MOST, "v": MOST}
CASES: dict[str, Case] = {
    "LIF": Case(lambda r: {**lif(r), "vth": spread(r, 0, 131071)}, 1 << 17, BOTH),
    "LIFReset": Case(
        lambda r: {**lif(r), "vth": spread(r, 0, 131071), "interval": one(r, 1, 40), "offset": one(r, 0, 50)}, 1 << 17, BOTH
    ),
    "TernaryLIF": Case(lambda r: {**lif(r), "vth_hi": one(r, 0, 131071), "vth_lo": one(r, -131071, 0)}, 1 << 17, BOTH),
    "ATRLIF": Case(
        lambda r: {
            "di": spread(r, -1, 4095),
            "dv": spread(r, 0, 4096),
            "dtheta": spread(r, 0, 4096),
            "dr": spread(r, 0, 4096),
            "theta_0": spread(r, 0, 131071),
            "theta_step": one(r, 0, 131071),
            "bias_mant": spread(r, -4096, 4095),
            "bias_exp": r.integers(0, 8, SIZE),
        },
        1 << 17,
        {"i": MOST, "v": MOST, "r": MOST},
    ),
    "RF": Case(lambda r: {"cosd": resonance(r)[0], "sind": resonance(r)[1], "vth": one(r, 0, 5000)}, 1 << 16),
    "RF_IZ": Case(lambda r: {"cosd": resonance(r)[0], "sind": resonance(r)[1], "vth": one(r, 0, 5000)}, 1 << 16),
    "RFZero": Case(lambda r: {"lct": spread(r, -32767, 32767), "lst": spread(r, -32767, 32767), "uth": one(r, 0, 9999)}, 1 << 12),
    "Sigma": Case(lambda r: {}, 1 << 22),
    "Delta": Case(lambda r: {"vth": one(r, 0, 1 << 16), **exponents(r)}, 1 << 20),
    "SigmaDelta": Case(
        lambda r: {"vth": one(r, 0, 1 << 16), "bias": spread(r, -4096, 4095), "relu": r.integers(0, 2), **exponents(r)}, 1 << 20
    ),
    "GradedVec": Case(lambda r: {"vth": one(r, 0, 1 << 20)}, 1 << 22),
    "GradedReluVec": Case(lambda r: {"vth": one(r, 0, 1 << 20)}, 1 << 22),
    "ProdNeuron": Case(lambda r: {"vth": one(r, 0, 1 << 20), "exp_": r.integers(0, 13)}, 1 << 20),
    "NormVecDelay": Case(lambda r: {"vth": one(r, 0, 1 << 20)}, 1 << 20),
}


def resonance(rng: np.random.Generator) -> tuple[Array, Array]:
    """Decays on and inside the unit circle, and the corners of their range."""
    angle, size = rng.uniform(0, 2 * np.pi, SIZE), 4096 * np.minimum(rng.uniform(0.7, 1.05, SIZE), 1)
    cosd, sind = np.rint(size * np.cos(angle)).astype(np.int64), np.rint(size * np.sin(angle)).astype(np.int64)
    return np.where(rng.random(SIZE) < 0.1, spread(rng, -4096, 4096), cosd), sind


def exponents(rng: np.random.Generator) -> dict[str, Any]:
    return {"cumulative": rng.integers(0, 2), "spike_exp": rng.integers(0, 8), "state_exp": rng.integers(0, 8)}


def probed(program: Program) -> Program:
    """Emits its states too, so that every step of them is compared."""
    shown = {emit.name for emit in program.emits}
    emits = (*program.emits, *(Emit(name, "value") for name in program.state_names if name not in shown))
    return Program(program.name, program.inputs, program.params, program.states, program.body, emits)


def test_there_is_a_case_for_every_neuron_of_the_target() -> None:
    assert set(CASES) == set(NATIVE)


@pytest.mark.usefixtures("lava_env")
@pytest.mark.parametrize("name", CASES)
def test_the_program_is_lavas_process_bit_for_bit(name: str) -> None:
    case, native = CASES[name], NATIVE[name]
    fixed = parse_program(native.fixed)
    rng = np.random.default_rng(len(name) + ord(name[0]))
    bounds = (-case.most, case.most)
    nodes: list[Any] = [Input(name=f"in_{port}", type=TensorType("value", (SIZE,), "i32"), bounds=bounds) for port in fixed.inputs]
    for trial in range(TRIALS):
        params = {key: np.asarray(value, np.int32) for key, value in case.params(rng).items()}
        init = {key: spread(rng, -most, most).astype(np.int32) for key, most in case.begin.items()} if trial % 2 else {}
        if "theta_0" in params:
            init["theta"] = params["theta_0"] << 6
        nodes.append(
            Neuron(
                name=f"n{trial}",
                inputs=tuple(Ref(f"in_{port}") for port in fixed.inputs),
                program=probed(fixed),
                params=params,
                init=init,
            )
        )
    ports = [(node.name, emit.name) for node in nodes if isinstance(node, Neuron) for emit in node.program.emits]
    first = fixed.emits[0].name
    record = [node if port == first else f"{node}.{port}" for node, port in ports]
    graph = verify(Graph("net", "fixed", tuple(nodes), tuple((n.name, Ref(n.name)) for n in nodes if isinstance(n, Neuron))))
    plan = make_plan(graph, TARGET)
    assert not plan.problems
    assert {item.process.name for item in plan.populations.values()} == {native.implementation["process"]}
    # Bursts of large numbers, long stretches of small ones, and silence.
    size = rng.integers(0, case.most.bit_length() + 1, (1, STEPS, 1)) * (rng.random((1, STEPS, 1)) < 0.8)
    x = {}
    for port in fixed.inputs:
        drawn = rng.integers(-(1 << 40), 1 << 40, (1, STEPS, SIZE)) >> (40 - size).astype(np.int64)
        x[f"in_{port}"] = np.clip(drawn, *bounds).astype(np.int32)
    expected = interpret(graph, x, record=record)
    found = load_backend("lava", TARGET).run(graph, x, record=record)
    emitted = 0
    for wire in record:
        np.testing.assert_array_equal(found.records[wire], expected.records[wire], wire)
        emitted += int(np.count_nonzero(expected.records[wire])) if "." not in wire else 0
    for node, states in expected.states.items():
        for state, value in states.items():
            np.testing.assert_array_equal(found.states[node][state], value, f"{node}.{state}")
    assert emitted > 0.005 * TRIALS * SIZE * STEPS, emitted
    assert emitted < 0.995 * TRIALS * SIZE * STEPS or name == "Sigma"  # which sends its sum at every step


# What Lava gave on the day the facts were gathered (loihi2.md), without Lava.


def run(name: str, params: dict[str, int], inputs: dict[str, list[int]], record: tuple[str, ...]) -> dict[str, list[int]]:
    fixed = probed(parse_program(NATIVE[name].fixed))
    nodes = [Input(name=f"in_{port}", type=TensorType("value", (1,), "i32"), bounds=(-(1 << 18), 1 << 18)) for port in inputs]
    arrays = {key: np.asarray(value, np.int32) for key, value in params.items()}
    neuron = Neuron(name="n", inputs=tuple(Ref(item.name) for item in nodes), program=fixed, params=arrays)
    graph = verify(Graph("g", "fixed", (*nodes, neuron), (("n", Ref("n")),)))
    data = {f"in_{port}": np.array(values).reshape(1, -1, 1) for port, values in inputs.items()}
    found = interpret(graph, data, record=record).records
    return {wire: [int(value) for value in found[wire].ravel()] for wire in record}


def test_golden_vector_of_the_lif() -> None:
    """1.1: du=1000, dv=77, vth=150, a bias of -9 >> 2."""
    a = [0, 300, -7, 5, 0, 0, -1000, 40000, 131072, 0, 0, 3]
    found = run("LIF", {"du": 1000, "dv": 77, "vth": 150, "bias_mant": -3, "bias_exp": 0}, {"a": a}, ("n", "n.u", "n.v"))
    assert found["n.u"] == [0, 19200, 14059, 10943, 8268, 6247, -59280, 2515208, -6488079, -4902491, -3704396, -2798906]
    assert found["n.v"] == [-3, 0, 0, 0, 8265, 0, -59283, 0, -6488082, -8388607, -8388607, -8388607]
    assert found["n"] == [0, 1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0]


def test_golden_facts_of_the_others() -> None:
    """1.7 to 1.9: the first message is the bias, 1 and -1 are dropped by a threshold of 1, the delay is one step, floors."""
    sdn = {"vth": 1, "bias": 5, "relu": 0, "cumulative": 0, "spike_exp": 0, "state_exp": 0}
    assert run("SigmaDelta", sdn, {"a": [0, 0, 3]}, ("n",))["n"] == [5, 0, 3]
    assert run("GradedVec", {"vth": 1}, {"a": [1, -1, 2, -2]}, ("n",))["n"] == [0, 0, 2, -2]
    assert run("GradedReluVec", {"vth": 1}, {"a": [1, -1, 2, -2]}, ("n",))["n"] == [0, 0, 2, 0]
    assert run("NormVecDelay", {"vth": 0}, {"a": [3, 4, 5], "b": [10, 10, 10]}, ("n",))["n"] == [0, 30, 40]
    assert run("ProdNeuron", {"vth": 0, "exp_": 1}, {"a": [-3, 3], "b": [1, 1]}, ("n",))["n"] == [-2, 1]
    # The drift: what six bits of a message held is lost, without bound.
    rng = np.random.default_rng(0)
    steps = rng.integers(-60, 61, 400)
    sent = run("SigmaDelta", {**sdn, "bias": 0, "vth": 0, "state_exp": 6}, {"a": [int(x) for x in steps]}, ("n",))["n"]
    assert abs((sum(sent) << 6) - int(steps.sum())) > 64 * 50
