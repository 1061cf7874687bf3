"""Generated Lava processes: any program in integers computes on Lava what the interpreter computes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from nets import F, dense, graph, random_spikes, spikes
from snntorch import Leaky
from strategies import MadeProgram, fixed_programs

import spikec
from spikec.backend import load_backend
from spikec.backends.lava.plan import make_plan
from spikec.backends.lava.programs import class_name, custom, module_text
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret
from spikec.ir.neuron import Program
from spikec.ir.ops import Dense, Input, Neuron, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import DTYPES, TensorType, int_range
from spikec.target import load_target

TARGET = load_target("loihi2")
SIZE, FAN_IN = 7, 5
#: Programs in one network.
COUNT = 60 if os.environ.get("SPIKEC_LONG") == "1" else 24


def populations(programs: list[MadeProgram], start: int) -> Graph:
    """Every program as a population that reads the input through weights of its own, per input."""
    rng = np.random.default_rng(start)
    nodes: list[Any] = [Input(name="in", type=TensorType("spike", (FAN_IN,), "i8"))]
    for index, made in enumerate(programs):
        reads = []
        for port in made.program.inputs:
            weight = 2 * rng.integers(-128, 128, (SIZE, FAN_IN))
            nodes.append(Dense(name=f"w{index}_{port}", inputs=(Ref("in", delay=1),), weight=weight.astype(np.int16)))
            reads.append(Ref(nodes[-1].name))
        params = {}
        for number, (name, bits) in enumerate(made.params.items()):
            shape = () if number % 2 else (SIZE,)
            params[name] = rng.integers(-(1 << bits) + 1, 1 << bits, shape).astype(np.int32)
        init = {}
        for state in made.program.states[: index % 2]:
            top = min((1 << (made.states[state.name] - 1)) - 1, int_range(state.dtype)[1])
            init[state.name] = rng.integers(-top, top + 1, SIZE).astype(DTYPES[state.dtype])
        late = start if index % 3 == 0 else 0
        nodes.append(
            Neuron(
                name=f"n{index}",
                inputs=tuple(reads),
                program=made.program.renamed(f"p{index}"),
                params=params,
                init=init,
                start=late,
                stop=late + 4 if index % 4 == 1 else None,
            )
        )
    return Graph("net", "fixed", tuple(nodes), tuple((n.name, Ref(n.name)) for n in nodes if isinstance(n, Neuron)))


@pytest.mark.usefixtures("lava_env")
@pytest.mark.parametrize("number", range(3))
def test_random_programs_are_the_interpreters_bit_for_bit(number: int) -> None:
    """Many programs in one network, with one to three inputs, several emissions, states of all widths, late starts."""
    drawn: list[MadeProgram] = []
    widths = ((12,), (12, 12), (12, 12, 12))[number]

    @seed(number)
    @settings(max_examples=COUNT, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(fixed_programs(inputs=widths))
    def draw(made: MadeProgram) -> None:
        drawn.append(made)

    draw()
    network = populations(drawn, start=3)
    problems = {d.message.split(":")[0].lstrip("%") for d in make_plan(network, TARGET).problems}
    # Lava's ports and states are 32 bits; what can need more is refused, and left out here.
    kept = [made for index, made in enumerate(drawn) if f"n{index}" not in problems]
    assert len(kept) > COUNT // 2
    network = verify(populations(kept, start=3))
    x = {"in": random_spikes((2, 9, FAN_IN), number).astype(np.int8)}
    record = default_record(network)
    expected = interpret(network, x, record=record)
    found = load_backend("lava", TARGET).run(network, x, record=record)
    assert sum(int(np.count_nonzero(array)) for array in expected.records.values()) > 400
    for name in record:
        np.testing.assert_array_equal(found.records[name], expected.records[name], name)
    for node, states in expected.states.items():
        for state, value in states.items():
            np.testing.assert_array_equal(found.states[node][state], value, f"{node}.{state}")


PROGRAM = parse_program("""
neuron @two.way(a, lambda_) params(np, k) state(v: i32 = 0, name: i16 = 3) {
  r = v > np
  v = clip(rtz(v * k, 12) + (a << 6) - lambda_ * r, 24)
  name = wrap(name + 1, 12)
  s = v > np or not (r and name == 5)
  emit s, name
}""")


def test_the_generated_text() -> None:
    text = module_text([custom(class_name(PROGRAM.name, ()), PROGRAM)])
    compile(text, "programs.py", "exec")
    assert "class TwoWay(AbstractProcess):" in text
    assert "    # neuron @two.way(a, lambda_) params(np, k) state(v: i32 = 0, name: i16 = 3) {" in text
    body = text[text.index("    def run_spk") :]
    assert (
        body
        == '''    def run_spk(self):
        """One step of the program."""
        a_ = self.a_in.recv().astype(np.int64)
        lambda__ = self.lambda__in.recv().astype(np.int64)
        if not self.proc_params["start"] < self.time_step <= self.proc_params["stop"]:
            self.s_out.send(np.zeros(self.s_out.shape, np.int32))
            self.name_out.send(np.zeros(self.name_out.shape, np.int32))
            return
        np_ = self.np_
        k_ = self.k
        v_ = self.v.astype(np.int64)
        name_ = self.name_.astype(np.int64)
        r_ = v_ > np_
        v_ = clip((rtz(v_ * k_, 12) + (a_ << 6)) - (lambda__ * number(r_)), 24)
        name_ = wrap(name_ + 1, 12)
        s_ = np.logical_or(v_ > np_, np.logical_not(np.logical_and(r_, name_ == 5)))
        self.v[:] = v_
        self.name_[:] = name_
        self.s_out.send(np.broadcast_to(s_, self.s_out.shape).astype(np.int32))
        self.name_out.send(np.broadcast_to(name_, self.name_out.shape).astype(np.int32))
'''
    )


def test_class_names() -> None:
    assert class_name("leaky_l1", ()) == "LeakyL1"
    assert class_name("lif", {"Lif"}) == "Lif2"
    assert class_name("2nd.x", ()) == "N2ndX"


def test_equal_programs_share_a_class_and_lavas_own_keep_theirs() -> None:
    lif = parse_program(TARGET.neurons[0].fixed)
    other = parse_program("neuron @LIF(a) state(v: i32 = 0) { v = clip(v + a, 20) s = v > 9 emit s }")

    def neuron(name: str, program: Program) -> Neuron:
        params = {key: np.asarray(1, np.int32) for key in program.params}
        return Neuron(name=name, inputs=(Ref("d"),), program=program, params=params)

    weight = np.full((3, 2), 2, np.int16)
    nodes = (
        Input(name="in", type=TensorType("spike", (2,), "i8")),
        Dense(name="d", inputs=(Ref("in", delay=1),), weight=weight),
        neuron("a", other),
        neuron("b", other.renamed("again")),
        neuron("c", lif),
    )
    plan = make_plan(Graph("g", "fixed", nodes, (("a", Ref("a")),)), TARGET)
    assert not plan.problems
    names = {name: item.process.name for name, item in plan.populations.items()}
    assert names == {"a": "LIF2", "b": "LIF2", "c": "LIF"}


def test_a_state_beyond_32_bits_is_refused() -> None:
    wide = parse_program("neuron @wide(a) state(v: i64 = 0) { v = clip(v + a, 40) s = v > 9 emit s }")
    nodes = (
        Input(name="in", type=TensorType("spike", (2,), "i8")),
        Dense(name="d", inputs=(Ref("in", delay=1),), weight=np.full((3, 2), 2, np.int16)),
        Neuron(name="l", inputs=(Ref("d"),), program=wide),
    )
    plan = make_plan(Graph("g", "fixed", nodes, (("l", Ref("l")),)), TARGET)
    (problem,) = plan.problems
    assert problem.code == "SPK502" and "its state v can reach" in problem.message


# ------------------------------------------------------------------------------------------------------- from user's models


class Net(torch.nn.Module):
    """snnTorch's Leaky with its defaults: subtract, delayed by a step."""

    def __init__(self, **leaky: Any) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(20, 30)
        self.l1 = Leaky(beta=0.9, **leaky)
        self.fc2 = torch.nn.Linear(30, 5)
        self.l2 = Leaky(beta=0.8, threshold=0.7, **leaky)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = self.l1.init_leaky(), self.l2.init_leaky()
        spikes_, membranes = [], []
        for t in range(x.shape[0]):
            spike, first = self.l1(self.fc1(x[t]), first)
            spike, second = self.l2(self.fc2(spike), second)
            spikes_.append(spike)
            membranes.append(second)
        return torch.stack(spikes_), torch.stack(membranes)


def trained(**leaky: Any) -> Net:
    torch.manual_seed(0)
    net = Net(**leaky)
    net.fc1.weight.data *= 3
    net.fc2.weight.data *= 2
    return net


@pytest.mark.usefixtures("lava_env")
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_snntorchs_leaky_with_its_late_reset_runs_on_every_engine(tmp_path: Path, reset: str) -> None:
    """By subtraction, which is the default, as Lava's own neurons and synapses; to zero as programs of their own."""
    x = torch.from_numpy(random_spikes((25, 8, 20), 3, 0.3))
    data = x.permute(1, 0, 2).numpy()
    options: dict[str, Any] = {"target": "loihi2", "time_axis": 0, "batch_axis": 1, "calibrate": data}
    build = spikec.compile(trained(reset_mechanism=reset), x, bits=8, **options)
    told = {e.node: e.what for e in build.ledger if "microcode" in e.what}
    assert set(told) == (set() if reset == "subtract" else {"l1", "l2"})
    reference = build.run(data, backend="reference", record="all")
    assert reference.outputs["l2"].sum() > 100
    for backend in ("numpy", "c", "lava"):
        found = build.run(data, backend=backend, record="all")
        for name, value in reference.outputs.items():
            np.testing.assert_array_equal(found.outputs[name], value, f"{backend} {name}")
        np.testing.assert_array_equal(found.spikes("l1"), reference.spikes("l1"))
        for layer in ("l1", "l2"):
            np.testing.assert_array_equal(found.state(layer, "v"), reference.state(layer, "v"), f"{backend} {layer}")
    build.save(tmp_path / "net")
    assert bool(list((tmp_path / "net").rglob("neurons/programs.py"))) == (reset == "zero")
    if reset == "subtract":
        spikec.compile(trained(), x, custom_neurons="refuse", **options)
        return
    assert told["l1"].startswith("@leaky_zero_delayed_biased_l1 runs as a program of its own, exact in simulation;")
    with pytest.raises(CompileError) as caught:
        spikec.compile(trained(reset_mechanism=reset), x, custom_neurons="refuse", **options)
    (first, second) = caught.value.diagnostics
    assert (first.code, second.code) == ("SPK201", "SPK201")
    assert "spikes on the calibration data" in first.notes[-1]


FLOATS = {
    "soft reset": "v = b * v + x\ns = v > 1\nv = v - s * 1",
    "adaptive": "v = b * v + x\nw = 0.5 * w + 0\ns = v > 1 + w\nv = select(s, 0, v)\nw = w + s * 0.25",
    "refractory": "v = select(w > 0, 0, b * v + x)\nw = max(w - 1, 0)\ns = v > 1\nv = select(s, 0, v)\nw = select(s, 3, w)",
    "quadratic": "v = v + 0.25 * v * v - 0.25 * v + x\ns = v > 1.5\nv = select(s, 0, v)",
    "ternary": "v = b * v + x\ns = v > 1 or v < -1\nv = select(s, 0, v)",
    "floor": "v = max(b * v + x, -0.5)\ns = v >= 1\nv = select(s, 0.125, v)",
}


@pytest.mark.usefixtures("lava_env")
def test_any_float_neuron_compiles_for_loihi2() -> None:
    """All of them in one network: quantized spikes near the float network's, and the same on Lava as on the reference."""
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(0.1, 0.4, (12, 16)).astype(F), rng.normal(0, 0.05, 12).astype(F)
    nodes: list[Any] = [spikes((16,))]
    for index, body in enumerate(FLOATS.values()):
        states = "state(v = 0, w = 0)" if "w =" in body else "state(v = 0)"
        program = parse_program(f"neuron @n{index}(x) params(b) {states} {{\n{body}\nemit s, v\n}}")
        nodes.append(dense(f"d{index}", "in", weight, bias))
        nodes.append(Neuron(name=f"l{index}", inputs=(Ref(f"d{index}"),), program=program, params={"b": F(0.875)}))
    net = graph(*nodes, out=[pair for n in nodes if isinstance(n, Neuron) for pair in (n.name, (f"{n.name}_v", Ref(n.name, "v")))])
    x = random_spikes((6, 20, 16), 2, 0.3)
    build = spikec.compile(net, target="loihi2", calibrate=x)
    real, found = build.run(x, level="float"), build.run(x, backend="lava", record="all")
    fixed = build.run(x, backend="reference", record="all")
    for name, value in fixed.outputs.items():
        np.testing.assert_array_equal(found.outputs[name], value, name)
    for index, kind in enumerate(FLOATS):
        one, two = real.outputs[f"l{index}"], fixed.outputs[f"l{index}"]
        assert one.sum() > 50, kind
        changed = int(np.count_nonzero(one != two))
        assert changed <= 0.12 * one.sum(), f"{kind}: {changed} of {one.sum()}"


TERNARY = "v = b * v + x\ns = select(v > 1, 1, select(v < -0.75, -1, 0))\nv = select(s != 0, 0, v)"
ADAPTIVE = """v = b * v + x
th = 0.9 * (th - 0.7) + 0.7
r = 0.5 * r
s = v - r >= th
r = select(s, r + 2 * th, r)
th = select(s, th + 0.3, th)"""


@pytest.mark.usefixtures("lava_env")
def test_ternary_and_adaptive_neurons_are_lavas_own() -> None:
    ternary = parse_program(f"neuron @ternary(x) params(b) state(v = 0) {{\n{TERNARY}\nemit s: graded\n}}")
    adaptive = parse_program(f"neuron @adaptive(x) params(b) state(v = 0, th = 0.7, r = 0) {{\n{ADAPTIVE}\nemit s\n}}")
    rng = np.random.default_rng(0)
    net = graph(
        spikes((20,)),
        dense("d", "in", rng.normal(0.05, 0.3, (30, 20)).astype(F)),
        Neuron(name="l", inputs=(Ref("d"),), program=ternary, params={"b": F(0.9)}),
        dense("e", "l", rng.normal(0.1, 0.4, (10, 30)).astype(F)),
        Neuron(name="m", inputs=(Ref("e"),), program=adaptive, params={"b": F(0.8)}),
        out=["l", "m"],
    )
    x = random_spikes((6, 30, 20), 1, 0.3)
    build = spikec.compile(net, target="loihi2", calibrate=x, custom_neurons="refuse")
    names = {node.name: node.program.name for node in build.graph().neurons}
    assert names == {"l": "loihi_ternary_lif", "m": "loihi_atrlif"}
    real, fixed = build.run(x, level="float"), build.run(x, record="all")
    assert set(np.unique(fixed.outputs["l"])) == {-1, 0, 1} and fixed.outputs["m"].sum() > 300
    assert np.count_nonzero(real.outputs["l"] != fixed.outputs["l"]) < 0.1 * np.count_nonzero(real.outputs["l"])
    for backend in ("numpy", "c", "lava"):
        found = build.run(x, backend=backend, record="all")
        for name in fixed.outputs:
            np.testing.assert_array_equal(found.outputs[name], fixed.outputs[name], f"{backend} {name}")
