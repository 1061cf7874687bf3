"""What a refusal says of a node that only outputs depend on, and of one that neurons hear of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import F, dense, graph, leaky, random_spikes, spikes

import spikec
from spikec.diagnostics import CompileError
from spikec.ir.interpret import interpret
from spikec.ir.ops import Neuron, Node, Pool, Ref
from spikec.ir.reductions import REDUCTIONS
from spikec.ir.text import parse_program
from spikec.passes.readouts import is_readout

RNG = np.random.default_rng(0)
BEFORE: tuple[Node, ...] = (spikes((4,)), dense("d", "in", RNG.normal(0.3, 0.5, (6, 4)).astype(F)), leaky("l", "d"))
MAXIMUM = parse_program("neuron @maximum(x) state(m = 0) { m = max(m, x) emit m }")
FORGETFUL = parse_program("neuron @forgetful(x) state(m = 0) { m = (m + x) / (t + 2) emit m }")


def refusal(*nodes: Node, **options: Any) -> CompileError:
    with pytest.raises(CompileError) as caught:
        spikec.compile(graph(*BEFORE, *nodes), calibrate=random_spikes((2, 8, 4), 0), **options)
    return caught.value


def test_a_readout_goes_out_of_the_model() -> None:
    highest = Neuron(name="m", inputs=(Ref("l", "v"),), program=MAXIMUM)
    (found,) = refusal(highest, target="loihi2").diagnostics
    assert found.code == "SPK201"
    assert found.fix == (
        "only outputs depend on it: let the model return %l.v and compute %m from the result; or use its spikes, or the target host"
    )
    mean = Neuron(name="m", inputs=(Ref("l"),), program=FORGETFUL)
    (found,) = refusal(mean, target="host", bits=8).diagnostics
    assert (found.code, found.message) == ("SPK202", "%m: @forgetful divides by a variable")
    assert found.fix is not None and found.fix.startswith("only outputs depend on it: let the model return %l and compute %m")
    whole = graph(*BEFORE, highest)
    assert [is_readout(whole, node) for node in whole.nodes] == [False, False, False, True]


def test_what_neurons_hear_of_stays() -> None:
    highest = Neuron(name="m", inputs=(Ref("l", "v"),), program=MAXIMUM)
    behind = (dense("e", "m", RNG.normal(size=(3, 6)).astype(F)), leaky("k", "e"))
    found = refusal(highest, *behind, target="loihi2").diagnostics[0]
    assert (found.code, found.fix) == ("SPK201", "use its spikes, or the target host")


def test_operations_that_the_chip_lacks() -> None:
    pool = Pool(name="p", inputs=(Ref("d"),), mode="max", kernel=(2,))
    shaped = (spikes((1, 4)), dense("d", "in", RNG.normal(size=(4, 4)).astype(F)), pool)
    with pytest.raises(CompileError) as caught:
        spikec.compile(graph(*shaped), target="loihi2", calibrate=random_spikes((2, 8, 1, 4), 0))
    assert "only outputs depend on it: let the model return %d and compute %p from the result" in str(caught.value)


@pytest.mark.parametrize(("target", "options"), [("host", {"bits": 8}), ("loihi2", {})])
def test_a_mean_that_only_outputs_see_is_a_sum(target: str, options: dict[str, Any]) -> None:
    head = dense("fc", "l", RNG.normal(0.2, 0.5, (3, 6)).astype(F), RNG.normal(size=3).astype(F))
    rate = Neuron(name="rate", inputs=(Ref("l"),), program=REDUCTIONS["mean"])
    mean = Neuron(name="mean", inputs=(Ref("fc"),), program=REDUCTIONS["mean"])
    whole = graph(*BEFORE, head, rate, mean, out=["l", "rate", "mean"])
    x = random_spikes((4, 10, 4), 3)
    build = spikec.compile(whole, target=target, calibrate=x, **options)
    told = [entry.node for entry in build.ledger if "divide it by their number" in entry.what]
    assert told == ["rate", "mean"]
    found = build.run(x).outputs
    np.testing.assert_array_equal(np.rint(found["rate"] * build.units["rate"]), found["l"].astype(int).cumsum(axis=1))
    floats = interpret(whole, {"in": x}).outputs
    steps = np.arange(1, 11)[:, None]
    if np.array_equal(floats["l"], found["l"]):  # eight bits changed no spike: what is left is the rounding of weights
        np.testing.assert_allclose(found["mean"] * build.units["mean"] / steps, floats["mean"], atol=0.02)
    assert np.mean(floats["l"] != found["l"]) < 0.02
    assert build.verify(x, backends=("numpy", "c")).ok


def test_a_mean_that_neurons_hear_of_stays() -> None:
    mean = Neuron(name="m", inputs=(Ref("l"),), program=REDUCTIONS["mean"])
    behind = (dense("e", "m", RNG.normal(size=(3, 6)).astype(F)), leaky("k", "e"))
    assert "divides by a variable" in str(refusal(mean, *behind, target="host", bits=8))
