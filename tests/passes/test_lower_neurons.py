"""Lower-neurons: which populations are Lava's own, and what is said of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import native

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.neuron import Emit, Program
from spikec.ir.ops import Input, Neuron, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.ledger import Ledger
from spikec.passes.lower_neurons import LowerNeurons
from spikec.target import load_target

LOIHI = load_target("loihi2")


def network(program: Program, params: dict[str, Any], **more: Any) -> Graph:
    inputs = [Input(name=f"i{n}", type=TensorType("value", (3,), "i32"), bounds=(-99, 99)) for n in range(len(program.inputs))]
    arrays = {key: np.asarray(value, np.int32) for key, value in params.items()}
    init = {key: np.asarray(value, np.int32) for key, value in more.pop("init", {}).items()}
    node = Neuron(name="l", inputs=tuple(Ref(i.name) for i in inputs), program=program, params=arrays, init=init, **more)
    return verify(Graph("g", "fixed", (*inputs, node), (("l", Ref("l")),)))


def reason(graph: Graph) -> str | None:
    ledger = Ledger()
    assert LowerNeurons(LOIHI).run(graph, ledger) == graph
    found = [e.what for e in ledger]
    if not found:
        assert LowerNeurons(LOIHI, "refuse").run(graph, Ledger()) == graph
        return None
    (what,) = found
    assert what.startswith(f"@{graph.neurons[0].program.name} runs as a program of its own, exact in simulation; silicon needs")
    with pytest.raises(CompileError) as caught:
        LowerNeurons(LOIHI, "refuse").run(graph, Ledger())
    (problem,) = caught.value.diagnostics
    why = what.split("(", 1)[1].rstrip(")")
    assert (problem.code, problem.message) == ("SPK201", f"%l: {why}")
    return why


LIF = {"du": 4095, "dv": 10, "vth": 9, "bias_mant": 0, "bias_exp": 0}
TERNARY = {"du": 4095, "dv": 10, "vth_hi": 9, "vth_lo": -9, "bias_mant": 0, "bias_exp": 0}
ATRLIF = {"di": 9, "dv": 9, "dtheta": 9, "dr": 9, "theta_0": 5, "theta_step": 1, "bias_mant": 0, "bias_exp": 0}
RF = {"cosd": [4000, 3000, -7], "sind": 100, "vth": 9}


def test_lavas_own() -> None:
    assert reason(network(native("LIF"), LIF, init={"v": [1, 2, 3]}, start=3)) is None
    assert reason(network(native("TernaryLIF"), TERNARY, init={"v": [1, 2, 3]})) is None
    assert reason(network(native("ATRLIF"), ATRLIF, init={"theta": 5 << 6, "v": 3})) is None
    assert reason(network(native("RF"), RF)) is None


def test_what_lavas_own_cannot_do() -> None:
    other = parse_program("neuron @other(a) state(v: i32 = 0) { v = clip(v + a, 20) s = v > 9 emit s }")
    assert reason(network(other, {})) == "loihi2 has no process for @other"
    assert reason(network(native("TernaryLIF"), {**TERNARY, "vth_hi": [1, 2, 3]})) == "TernaryLIF takes one vth_hi for all"
    assert (
        reason(network(native("TernaryLIF"), {**TERNARY, "vth_hi": -1, "vth_lo": -9}, start=2))
        == "TernaryLIF would fire before it starts"
    )
    assert reason(network(native("ATRLIF"), ATRLIF)) == "ATRLIF does not begin with this theta"
    assert reason(network(native("RF"), RF, init={"re": 4})) == "RF does not begin with this re"
    assert reason(network(native("RF"), RF, start=4)) == "RF cannot start late with a bias or an initial state"
    prod = native("ProdNeuron")
    shown = Program(prod.name, prod.inputs, prod.params, prod.states, prod.body, (*prod.emits, Emit("x", "value")))
    assert reason(network(shown, {"vth": 1, "exp_": 2})) == "x cannot be read from ProdNeuron"
    with pytest.raises(CompileError, match="custom_neurons is one of allow, refuse"):
        LowerNeurons(LOIHI, "perhaps").run(network(other, {}), Ledger())
