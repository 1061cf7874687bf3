"""Populations as other populations and synapses: the same outputs in floats, and on Lava's neurons without microcode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, random_spikes, spikes

import spikec
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Conv, Neuron, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ledger import Ledger
from spikec.passes.legalise import Legalise
from spikec.passes.splits import find_split
from spikec.target import load_target

LOIHI = load_target("loihi2")

#: Bodies of neurons (state v, input x), with what becomes of them: neurons for one, and whether synapses go back.
NEURONS: dict[str, tuple[str, int, bool]] = {
    "subtract, delayed": ("r = v > theta v = beta * v + x v = v - r * theta s = v > theta emit s", 1, True),
    "subtract": ("v = beta * v + x s = v > theta v = v - s * theta emit s", 1, True),
    "subtract, reached": ("v = beta * v + x s = v >= theta v = v - theta * s emit s", 1, True),
    "subtract, delayed, reached": ("r = v >= theta v = beta * v + x - select(r, theta, 0) s = v >= theta emit s", 1, True),
    "subtract another amount": ("m = beta * v + 2 * x s = m > theta v = m - 0.75 * s emit s", 1, True),
    "with a bias": ("v = beta * v + x + 0.25 s = v > theta v = v - s * theta emit s", 1, True),
    "no reset": ("v = beta * v + x s = v > theta emit s", 1, False),
    "no reset, reached": ("v = beta * v + x s = theta <= v emit s", 1, False),
    "decayed input": ("v = v + (x - v) / 2 s = v >= theta v = select(s, v - theta, v) emit s", 1, True),
    "up to three spikes": ("u = beta * v + x n = min(max(floor(u / theta), 0), 3) v = u - n * theta emit n: graded", 3, True),
    "three levels": ("v = beta * v + x y = (v > 0.5) + (v > theta) + 2 * (v > 2) emit y: graded", 3, False),
    "ternary": ("m = beta * v + x y = select(m > theta, 1, select(-m > theta, -1, 0)) v = m - y * theta emit y: graded", 2, True),
    "ternary, reached": ("m = beta * v + x y = (m >= theta) - (m <= -theta) v = m - theta * y emit y: graded", 2, True),
    "ternary, no reset": ("v = beta * v + x y = (v > theta) - (v < -theta) emit y: graded", 2, False),
}


def program(name: str, called: str = "one") -> Any:
    return parse_program(f"neuron @{called}(x) params(beta, theta) state(v = 0) {{ {NEURONS[name][0]} }}")


def network(
    rng: np.random.Generator, name: str, shape: tuple[int, ...] = (5,), beta: float = 0.5, recurrent: bool = False
) -> Graph:
    """Dyadic numbers: every sum is exact."""

    def weights(*size: int) -> Any:
        return (rng.integers(-8, 13, size) / 8).astype(F)

    params = {"beta": F(beta), "theta": (rng.integers(6, 13, shape) / 8).astype(F)}
    if "floor" in NEURONS[name][0]:
        params["theta"] = (2.0 ** rng.integers(-1, 2, shape)).astype(F)  # a quotient is exact for powers of two
    nodes: list[Any] = [spikes((4,)) if len(shape) == 1 else spikes((2, shape[1] + 2))]
    if len(shape) == 1:
        nodes.append(dense("fc", "in", weights(*shape, 4), weights(*shape)))
    else:
        nodes.append(Conv(name="fc", inputs=(Ref("in"),), weight=weights(shape[0], 2, 3), bias=weights(shape[0])))
    nodes.append(Neuron(name="n", inputs=(Ref("fc"),), program=program(name), params=params))
    nodes.append(Reshape(name="flat", inputs=(Ref("n"),), shape=(int(np.prod(shape)),)))
    nodes.append(dense("out", "flat", weights(3, int(np.prod(shape))), weights(3)))
    nodes.append(
        Neuron(name="last", inputs=(Ref("out"),), program=program("no reset", "two"), params={"beta": F(0.5), "theta": F(1)})
    )
    return verify(graph(*nodes, out=["last", "out"]))


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 0.25, 0.75]))
@pytest.mark.parametrize("name", NEURONS)
def test_the_same_in_floats(name: str, seed: int, beta: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (5,) if rng.random() < 0.6 else (2, 3)
    before = network(rng, name, shape, beta)
    ledger = Ledger()
    after = verify(Legalise(LOIHI, custom_neurons="refuse").run(before, ledger))
    assert {node.program.name for node in after.neurons} <= {"lif", "lif_reached"}
    count, back = NEURONS[name][1:]
    parts = [node for node in after.neurons if node.name != "last"]
    assert len(parts) == count
    (told,) = [entry for entry in ledger if entry.node == "n" and "becomes" in entry.what]
    assert told.kind == "exact" and told.measured["neurons added"] == np.prod(shape) * (count - 1)
    assert bool(told.measured["synapses added"]) == back
    x = {"in": random_spikes((3, 12, *before.inputs[0].type.shape), seed % 1000)}
    one, two = interpret(before, x), interpret(after, x)
    for output in one.outputs:
        np.testing.assert_array_equal(one.outputs[output], two.outputs[output])


def test_what_is_shown_stays_what_it_is() -> None:
    """A membrane that the split neuron holds is an output; one that it does not hold keeps the neuron's own program."""
    delayed = "neuron @one(x) state(v = 0) { r = v > 1 v = 0.5 * v + x - r s = v > 1 emit s, v }"
    at_once = "neuron @one(x) state(v = 0) { v = 0.5 * v + x s = v > 1 v = v - s emit s, v }"
    rng = np.random.default_rng(0)
    for text, native in ((delayed, True), (at_once, False)):
        node = Neuron(name="n", inputs=(Ref("fc"),), program=parse_program(text))
        weight = (rng.integers(-8, 13, (5, 4)) / 8).astype(F)
        before = verify(graph(spikes((4,)), dense("fc", "in", weight), node, out=["n", ("v", Ref("n", "v"))]))
        after = verify(Legalise(LOIHI).run(before, Ledger()))
        assert (after.neurons[0].program.name == "lif_u") == native
        x = {"in": random_spikes((3, 12, 4), 1)}
        one, two = interpret(before, x), interpret(after, x)
        for output in one.outputs:
            np.testing.assert_array_equal(one.outputs[output], two.outputs[output])


@pytest.mark.parametrize(
    "body",
    [
        "r = v > 1 v = select(r, 0, 0.5 * v + x) s = v > 1 emit s",  # the step after a spike hears nothing
        "v = 0.5 * v + x s = v > 1 v = select(s, 0.25, v) emit s",
        "v = max(0.5 * v + x, -1) s = v > 1 v = v - s emit s",  # a floor
        "v = 0.5 * v + x s = v > -1 v = v - s emit s",  # spikes at rest
        "r = v > 1 v = 0.5 * v + x - r s = v > 1 v = v - (s - r) emit s",  # what a spike takes depends on the step before
        "v = 0.5 * v + x s = v > 1 v = v - s * v * 0.5 emit s",
        "v = 0.5 * v + x n = max(floor(v), 0) v = v - n emit n: graded",  # any number of spikes
    ],
)
def test_what_has_no_exact_split(body: str) -> None:
    assert find_split(parse_program(f"neuron @one(x) state(v = 0) {{ {body} }}"), {}, {}) is None


def test_a_state_above_the_threshold_before_the_first_step() -> None:
    text = "neuron @one(x) state(v = 0) { r = v > 1 v = 0.5 * v + x - r s = v > 1 emit s }"
    assert find_split(parse_program(text), {}, {"v": np.array([0.5, 1.0])}) is not None
    assert find_split(parse_program(text), {}, {"v": np.array([0.5, 1.5])}) is None


def compiled(name: str, seed: int, **options: Any) -> tuple[Any, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    before = network(rng, name, (6,) if seed % 2 else (2, 3))
    before = before.with_nodes(before.nodes, [("last", Ref("last"))])
    x = {"in": random_spikes((4, 15, *before.inputs[0].type.shape), seed)}
    return spikec.compile(before, target="loihi2", calibrate=x, **options), x


@pytest.mark.usefixtures("lava_env")
def test_on_lava() -> None:
    """Each of them compiled, on four engines; at exact numbers the integers spike as the floats do, equality with a threshold included."""
    for seed, name in enumerate(NEURONS):
        build, x = compiled(name, seed)
        assert not any("microcode" in entry.what for entry in build.ledger), name
        wanted = interpret(build.stages[0].graph, x).outputs["last"]
        names = ("reference", "c", "lava") if seed % 3 == 0 else ("reference", "numpy")
        for engine in names:
            np.testing.assert_array_equal(build.run(x, engine).outputs["last"], wanted, f"{name} on {engine}")
        assert wanted.any(), name
