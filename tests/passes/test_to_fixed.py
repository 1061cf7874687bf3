"""Pass to-fixed: programs of every shape in integers, close to the float network, exact where numbers are dyadic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spikec
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Node, Pool, Ref, Reshape, Scale
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.ledger import Ledger
from spikec.passes.to_fixed import ToFixed
from spikec.target import load_target

F32 = np.float32
PROGRAMS = {
    "zero": "v = beta * v + x\ns = v > theta\nv = select(s, 0, v)",
    "subtract_delayed": "r = v > theta\nv = beta * v + x - r * theta\ns = v > theta",
    "subtract": "v = beta * v + x\ns = v > theta\nv = v - s * theta",
    "greater_equal": "v = beta * v + x\ns = v >= theta\nv = select(s, 0, v)",
    "euler": "v = v + (x - v) * (1 - beta)\ns = v > theta\nv = select(s, 0, v)",
    "scaled_threshold": "v = beta * v + x\ns = v / theta > 1\nv = (1 - s) * v",
    "two_sided": "v = beta * v + x\ns = v > theta or v < -2 * theta\nv = select(s, 0, v)",
    "rectified": "v = max(beta * v + x, -theta)\ns = v > theta\nv = select(s, 0.0, v)",
}


def network(body: str, beta: object, theta: object, weight: np.ndarray, bias: np.ndarray | None = None) -> Graph:
    program = parse_program("neuron @n(x) params(beta, theta) state(v = 0) {\n" + body + "\nemit s, v\n}")
    return verify(
        Graph(
            "g",
            "float",
            (
                Input(name="in", type=TensorType("spike", (weight.shape[1],), "f32")),
                Dense(name="fc", inputs=(Ref("in"),), weight=weight, bias=bias),
                Neuron(name="l", inputs=(Ref("fc"),), program=program, params={"beta": F32(beta), "theta": F32(theta)}),
            ),
            (("l", Ref("l")),),
        )
    )


def spikes(rng: np.random.Generator, *shape: int, rate: float = 0.3) -> np.ndarray:
    return (rng.random(shape) < rate).astype(F32)


def convert(graph: Graph, **options: object) -> Graph:
    return verify(ToFixed(target=load_target("host"), **options).run(graph, Ledger()))


@pytest.mark.parametrize("name", PROGRAMS)
def test_dyadic_networks_are_exact(name: str) -> None:
    """Weights, decay and threshold that integers hold: no spike differs in the steps before fraction bits run out."""
    rng = np.random.default_rng(1)
    weight = rng.integers(-60, 61, (20, 30)).astype(F32) / 64
    graph = network(PROGRAMS[name], 0.5, 1.0, weight)
    data = {"in": spikes(rng, 40, 10, 30)}
    assert np.array_equal(interpret(graph, data).outputs["l"], interpret(convert(graph), data).outputs["l"])


@pytest.mark.parametrize("name", PROGRAMS)
def test_trained_numbers_stay_close(name: str) -> None:
    """Any float numbers: at eight bits fewer than one spike in ten moves, at sixteen fewer than one in a hundred."""
    rng = np.random.default_rng(2)
    weight = (rng.normal(size=(20, 30)) * 0.3 + 0.05).astype(F32)
    graph = network(PROGRAMS[name], 0.87, 0.93, weight, (rng.normal(size=20) * 0.05).astype(F32))
    data = {"in": spikes(rng, 60, 40, 30)}
    exact = interpret(graph, data).outputs["l"]
    assert exact.sum() > 300
    for bits, share in ((8, 0.1), (16, 0.01)):
        got = interpret(convert(graph, bits=bits, calibrate=data), data).outputs["l"]
        assert np.count_nonzero(got != exact) < share * exact.sum()


def test_adaptive_threshold_mixes_amounts_and_numbers() -> None:
    rng = np.random.default_rng(3)
    program = parse_program(
        """neuron @alif(x) params(alpha, rho) state(v = 0, b = 0, z = 0) {
          b = rho * b + (1 - rho) * z
          th = 0.1 + 1.8 * b
          v = alpha * v + (1 - alpha) * x - th * z
          s = v > th
          z = select(s, 1, 0)
          emit s
        }"""
    )
    weight = (rng.normal(size=(25, 40)) * 0.2 + 0.05).astype(F32)
    graph = verify(
        Graph(
            "g",
            "float",
            (
                Input(name="in", type=TensorType("spike", (40,), "f32")),
                Dense(name="fc", inputs=(Ref("in"),), weight=weight),
                Neuron(name="l", inputs=(Ref("fc"),), program=program, params={"alpha": F32(0.9), "rho": F32(0.97)}),
            ),
            (("l", Ref("l")),),
        )
    )
    data = {"in": spikes(rng, 40, 100, 40)}
    exact = interpret(graph, data).outputs["l"]
    got = interpret(convert(graph, bits=16), data).outputs["l"]
    assert exact.sum() > 500
    assert np.count_nonzero(got != exact) < 0.05 * exact.sum()


def test_average_pools_and_scales_go_into_weights() -> None:
    rng = np.random.default_rng(4)
    program = parse_program("neuron @if(x) params(theta) state(v = 0) {\nv = v + x\ns = v >= theta\nv = select(s, 0, v)\nemit s\n}")
    theta = {"theta": F32(1)}
    graph = verify(
        Graph(
            "g",
            "float",
            (
                Input(name="in", type=TensorType("spike", (2, 8, 8), "f32")),
                Conv(name="c1", inputs=(Ref("in"),), weight=rng.normal(size=(4, 2, 3, 3)).astype(F32), padding=(1, 1)),
                Pool(name="p0", inputs=(Ref("c1"),), mode="average", kernel=(2, 2)),
                Neuron(name="l1", inputs=(Ref("p0"),), program=program, params=theta),
                Pool(name="p1", inputs=(Ref("l1"),), mode="average", kernel=(2, 2)),
                Reshape(name="flat", inputs=(Ref("p1"),), shape=(16,)),
                Scale(name="k", inputs=(Ref("flat"),), factor=np.asarray(2.0, F32)),
                Dense(name="fc", inputs=(Ref("k"),), weight=rng.normal(size=(5, 16)).astype(F32)),
                Neuron(name="l2", inputs=(Ref("fc"),), program=program, params=theta),
            ),
            (("l2", Ref("l2")),),
        )
    )
    data = {"in": spikes(rng, 20, 20, 2, 8, 8)}
    fixed = convert(graph, bits=16, calibrate=data)
    assert not any(isinstance(node, Scale) or getattr(node, "mode", "") == "average" for node in fixed.nodes)
    exact, got = (interpret(g, data).outputs["l2"] for g in (graph, fixed))
    assert exact.sum() > 100
    assert np.count_nonzero(got != exact) < 0.03 * exact.sum()


def test_layers_that_follow_a_membrane() -> None:
    """A weight may read amounts that a neuron emits; its scale follows the neuron's."""
    rng = np.random.default_rng(5)
    graph = network(PROGRAMS["zero"], 0.9, 1.0, (rng.normal(size=(20, 30)) * 0.3).astype(F32))
    program = graph["l"].program
    more = (
        Dense(name="fc2", inputs=(Ref("l", "v"),), weight=(rng.normal(size=(6, 20)) * 0.4).astype(F32)),
        Neuron(name="l2", inputs=(Ref("fc2"),), program=program, params={"beta": F32(0.8), "theta": F32(0.5)}),
    )
    graph = verify(graph.with_nodes((*graph.nodes, *more), (("l2", Ref("l2")),)))
    data = {"in": spikes(rng, 30, 40, 30)}
    exact = interpret(graph, data).outputs["l2"]
    got = interpret(convert(graph, bits=16), data).outputs["l2"]
    assert exact.sum() > 300
    assert np.count_nonzero(got != exact) < 0.03 * exact.sum()


def test_a_product_of_two_amounts_stays_near_the_float_network() -> None:
    rng = np.random.default_rng(3)
    weight = rng.normal(0.1, 0.4, (12, 16)).astype(F32)
    graph = network("v = beta * v + 0.25 * v * v + x\ns = v > theta\nv = select(s, 0, v)", 0.75, 1.5, weight)
    x = spikes(rng, 6, 20, 16)
    exact, got = interpret(graph, {"in": x}).outputs["l"], interpret(convert(graph), {"in": x.astype(bool)}).outputs["l"]
    assert exact.sum() > 100
    assert np.count_nonzero(got != exact) <= 0.02 * exact.sum()


def test_what_has_no_integer_form_is_refused_with_its_place() -> None:
    rng = np.random.default_rng(6)
    weight = rng.normal(size=(3, 4)).astype(F32)
    divided = network("v = beta * v + x / (v + 2)\ns = v > theta", 0.5, 1.0, weight)
    with pytest.raises(CompileError, match=r"error\[SPK202\]: %l: @n divides by a variable"):
        convert(divided)
    with pytest.raises(CompileError, match=r"error\[SPK001\]: 17 bits: a weight has 2 to 16 bits"):
        convert(network(PROGRAMS["zero"], 0.5, 1.0, weight), bits=17)


def test_the_unit_of_an_output_without_neurons_is_told() -> None:
    weight = np.array([[0.5, -0.25], [0.015625, 1.0]], F32)
    nodes = (
        Input(name="in", type=TensorType("spike", (2,), "f32")),
        Dense(name="fc", inputs=(Ref("in"),), weight=weight),
        Reshape(name="flat", inputs=(Ref("fc"),), shape=(2, 1)),
    )
    graph, ledger = verify(Graph("g", "float", nodes, (("fc", Ref("fc")), ("flat", Ref("flat"))))), Ledger()
    fixed = verify(ToFixed(target=load_target("host"), bits=8).run(graph, ledger))
    told = [entry.what for entry in ledger if entry.kind == "convention"]
    assert told == ["the output fc is in units of 0.015625", "the output flat is in units of 0.015625"]
    x = {"in": np.eye(2, dtype=F32)[None]}
    float_out, fixed_out = interpret(graph, x).outputs, interpret(fixed, {"in": x["in"].astype(bool)}).outputs
    for name in ("fc", "flat"):
        assert np.array_equal(fixed_out[name] * 0.015625, float_out[name])


GRADED = """neuron @g(x) params(beta, theta) state(v = 0) {
  v = beta * v + x
  s = v > theta
  m = select(s, v, 0)
  c = select(s, 1, 0)
  emit m: graded, v: value, s: graded, c: graded
}"""
READER = "neuron @r(x) params(beta) state(v = 0) {\nv = beta * v + x\nemit v: graded\n}"


def through(kind: str, port: str, rng: np.random.Generator) -> tuple[object, ...]:
    """How the last population reads a port of %l of shape (4, 4, 4)."""
    source = Ref("l", port)

    def w(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 0.4).astype(F32)

    flat = Reshape(name="flat", inputs=(source,), shape=(64,))
    routes: dict[str, tuple[object, ...]] = {
        "dense": (flat, Dense(name="sum", inputs=(Ref("flat"),), weight=w(5, 64))),
        "delayed": (flat, Dense(name="sum", inputs=(Ref("flat", delay=2),), weight=w(5, 64))),
        "conv": (Conv(name="sum", inputs=(source,), weight=w(3, 4, 2, 2)),),
        "summed": (
            Pool(name="p", inputs=(source,), mode="sum", kernel=(2, 2)),
            Conv(name="sum", inputs=(Ref("p"),), weight=w(3, 4, 2, 2)),
        ),
        "average": (
            Pool(name="p", inputs=(source,), mode="average", kernel=(2, 2)),
            Conv(name="sum", inputs=(Ref("p"),), weight=w(3, 4, 2, 2)),
        ),
        "largest": (
            Pool(name="p", inputs=(source,), mode="max", kernel=(2, 2)),
            Conv(name="sum", inputs=(Ref("p"),), weight=w(3, 4, 2, 2)),
        ),
        "added": (flat, Add(name="a", inputs=(Ref("flat"), Ref("flat"))), Dense(name="sum", inputs=(Ref("a"),), weight=w(5, 64))),
        "joined": (
            flat,
            Concat(name="a", inputs=(Ref("flat"), Ref("flat"))),
            Dense(name="sum", inputs=(Ref("a"),), weight=w(5, 128)),
        ),
        "picked": (
            Gather(name="a", inputs=(source,), indices=np.arange(0, 64, 3)),
            Dense(name="sum", inputs=(Ref("a"),), weight=w(5, 22)),
        ),
        "itself": (Reshape(name="sum", inputs=(source,), shape=(64,)),),
    }
    return routes[kind]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1 << 30),
    port=st.sampled_from(["", "v", "s", "c"]),
    route=st.sampled_from(["dense", "delayed", "conv", "summed", "average", "largest", "added", "joined", "picked", "itself"]),
    bits=st.sampled_from([6, 8, 12, 16]),
    calibrated=st.booleans(),
)
def test_numbers_that_populations_emit_keep_their_scale(seed: int, port: str, route: str, bits: int, calibrated: bool) -> None:
    """Membranes, truths and counts emitted as graded or value, read in every way: float and integers agree within rounding."""
    rng = np.random.default_rng(seed)
    data = {"in": spikes(rng, 4, 8, 2, 5, 5)}
    nodes = (
        Input(name="in", type=TensorType("spike", (2, 5, 5), "f32")),
        # Weights that are whole at every width: what is left is the rounding of the second layer.
        Conv(name="c", inputs=(Ref("in"),), weight=(rng.integers(-15, 16, (4, 2, 2, 2)) / 16).astype(F32)),
        Neuron(name="l", inputs=(Ref("c"),), program=parse_program(GRADED), params={"beta": F32(0.5), "theta": F32(0.301)}),
        *through(route, port, rng),
        Neuron(name="r", inputs=(Ref("sum"),), program=parse_program(READER), params={"beta": F32(0.5)}),
    )
    graph = verify(Graph("g", "float", nodes, (("r", Ref("r")),)))
    ledger = Ledger()
    fixed = verify(ToFixed(target=load_target("host"), bits=bits, calibrate=data if calibrated else None).run(graph, ledger))
    told = [entry.what for entry in ledger if "the output" in entry.what]
    unit = float(told[0].rsplit(" ", 1)[1]) if told else 1.0
    exact, got = interpret(graph, data).outputs["r"], interpret(fixed, data).outputs["r"] * unit
    size = np.abs(exact).max()
    assert np.abs(got - exact).max() <= (2.0 ** (1 - bits) * 16 + 0.02) * size + 0.02


def test_wires_of_different_scales_are_not_added() -> None:
    rng = np.random.default_rng(5)
    graph = network(PROGRAMS["zero"], 0.9, 1.0, (rng.normal(size=(20, 30)) * 0.3).astype(F32))
    program = graph["l"].program
    params = {"beta": F32(0.8), "theta": F32(0.5)}
    mixed = (
        Add(name="mixed", inputs=(Ref("fc"), Ref("l", "v"))),
        Neuron(name="l2", inputs=(Ref("mixed"),), program=program, params=params),
    )
    with pytest.raises(CompileError, match=r"error\[SPK202\]: %mixed: joins wires of different scales") as caught:
        convert(graph.with_nodes((*graph.nodes, *mixed), (("l2", Ref("l2")),)))
    assert "weights of" in caught.value.diagnostics[0].fix
    looped = (
        Dense(name="back", inputs=(Ref("l", "v", 1),), weight=np.eye(20, dtype=F32)),
        Add(name="both", inputs=(Ref("fc"), Ref("back"))),
        replace(graph["l"], inputs=(Ref("both"),)),
    )
    with pytest.raises(CompileError, match=r"error\[SPK202\]: %back: reads %l.v\[t-1\], whose scale depends on"):
        convert(graph.with_nodes((*graph.nodes[:-1], *looped)))


def test_a_population_that_reads_a_membrane_itself() -> None:
    rng = np.random.default_rng(7)
    graph = network(PROGRAMS["zero"], 0.9, 1.0, (rng.normal(size=(20, 30)) * 0.3).astype(F32), np.full(20, 0.05, F32))
    program = graph["l"].program
    direct = Neuron(name="l2", inputs=(Ref("l", "v"),), program=program, params={"beta": F32(0.8), "theta": F32(0.5)})
    graph = graph.with_nodes((*graph.nodes, direct), (("l2", Ref("l2")),))
    data = {"in": spikes(rng, 30, 40, 30)}
    exact, got = interpret(graph, data).outputs["l2"], interpret(convert(graph, bits=16, calibrate=data), data).outputs["l2"]
    assert exact.sum() > 300
    assert np.count_nonzero(got != exact) < 0.03 * exact.sum()


def test_constants_are_held_at_the_scale_of_their_sum() -> None:
    rng = np.random.default_rng(8)
    graph = network(PROGRAMS["zero"], 0.9, 1.0, (rng.normal(size=(20, 30)) * 0.3).astype(F32))
    more = (
        Constant(name="k", value=(rng.random(20) * 0.3).astype(F32), start=3),
        Add(name="sum", inputs=(Ref("fc"), Ref("k"))),
        replace(graph["l"], inputs=(Ref("sum"),)),
    )
    graph = verify(graph.with_nodes((*graph.nodes[:-1], *more)))
    data = {"in": spikes(rng, 30, 40, 30)}
    exact, got = interpret(graph, data).outputs["l"], interpret(convert(graph, bits=16), data).outputs["l"]
    assert np.count_nonzero(got != exact) < 0.02 * exact.sum()


def early_and_late(bottom: str) -> Graph:
    """A population that sums up what %skip and %late send, of which the first reads `bottom`."""
    rng = np.random.default_rng(9)
    graph = network(PROGRAMS["zero"], 0.9, 1.0, (rng.normal(size=(20, 30)) * 0.3).astype(F32))
    name, _, port = bottom.partition(".")
    skip = Dense(
        name="skip", inputs=(Ref(name, port),), weight=(rng.normal(size=(6, 30 if name == "in" else 20)) * 0.3).astype(F32)
    )
    more = (
        Dense(name="fc0", inputs=(Ref("in"),), weight=(rng.normal(size=(20, 30)) * 0.3).astype(F32)),
        replace(graph["l"], name="l0", inputs=(Ref("fc0"),)),
        skip,
        *graph.nodes[1:],
        Dense(name="late", inputs=(Ref("l", "v"),), weight=(rng.normal(size=(6, 20)) * 0.3).astype(F32)),
        Add(name="both", inputs=(Ref("skip"), Ref("late"))),
        replace(graph["l"], name="l2", inputs=(Ref("both"),)),
    )
    return verify(graph.with_nodes((graph.nodes[0], *more), (("l2", Ref("l2")),)))


def test_a_sum_of_what_comes_early_and_late() -> None:
    """Groups take their turn when the scales that they read are known, not in the order of their first nodes."""
    graph = early_and_late("l0.v")
    data = {"in": spikes(np.random.default_rng(1), 30, 40, 30)}
    exact, got = interpret(graph, data).outputs["l2"], interpret(convert(graph, bits=16), data).outputs["l2"]
    assert exact.sum() > 300
    assert np.count_nonzero(got != exact) < 0.03 * exact.sum()


def test_weights_that_would_vanish_beside_others_are_refused() -> None:
    """Spikes and fine numbers in one sum: at the scale that the former need nothing is left of the latter's weights."""
    with pytest.raises(CompileError, match=r"error\[SPK202\]: %late: of its weights nothing is left at 8 bits") as caught:
        convert(early_and_late("in"))
    assert "%skip" in str(caught.value)


@pytest.mark.parametrize("reshaped", [False, True])
def test_a_factor_that_only_outputs_see_is_their_unit(reshaped: bool) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(1, 6, 4)) * 0.7).astype(F32)
    program = parse_program(
        "neuron @n(x) params(beta, theta) state(v = 0) { v = beta * v + x s = v > theta v = select(s, 0, v) emit s }"
    )
    nodes = [
        Input(name="in", type=TensorType("spike", (4,), "f32")),
        Dense(name="fc", inputs=(Ref("in"),), weight=weight[0]),
        Neuron(name="l", inputs=(Ref("fc"),), program=program, params={"beta": np.float32(0.5), "theta": np.float32(1)}),
        Reshape(name="flat", inputs=(Ref("l"),), shape=(1, 6)),
        Pool(name="votes", inputs=(Ref("flat"),), mode="sum", kernel=(3,)),
        Scale(name="half", inputs=(Ref("votes"),), factor=np.float32(0.5)),
        Scale(name="mean", inputs=(Ref("half"),), factor=np.float32(0.25)),
    ]
    last = "mean"
    if reshaped:
        nodes.append(Reshape(name="out", inputs=(Ref("mean"),), shape=(2,)))
        last = "out"
    graph, ledger = verify(Graph("g", "float", tuple(nodes), ((last, Ref(last)), ("votes", Ref("votes"))))), Ledger()
    x = {"in": (rng.random((3, 10, 4)) < 0.5).astype(F32)}
    fixed = verify(ToFixed(target=load_target("host"), bits=16, calibrate=x).run(graph, ledger))
    told = [entry.what for entry in ledger if entry.kind == "convention" and "in units of" in entry.what]
    assert told == [f"the output {last} is in units of 0.125"]
    wanted, found = interpret(graph, x).outputs, interpret(fixed, {"in": x["in"].astype(bool)}).outputs
    assert wanted[last].any()
    assert np.array_equal(found[last] * 0.125, wanted[last])
    assert np.array_equal(found["votes"], wanted["votes"])


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("bits", [4, 8])
def test_spikes_that_are_added_to_sums_are_whole_units_of_theirs(bits: int, delay: int) -> None:
    rng = np.random.default_rng(3)
    first = np.ones((6, 4), F32) * (rng.random((6, 4)) < 0.5)
    program = parse_program(
        "neuron @n(x) params(beta, theta) state(v = 0) { v = beta * v + x s = v > theta v = select(s, 0, v) emit s }"
    )
    params = {"beta": np.float32(0.5), "theta": np.float32(1)}
    nodes = [
        Input(name="in", type=TensorType("spike", (4,), "f32")),
        Dense(name="a", inputs=(Ref("in"),), weight=first),
        Neuron(name="l", inputs=(Ref("a"),), program=program, params=params),
        Dense(name="b", inputs=(Ref("l"),), weight=(rng.normal(size=(6, 6)) * 0.4).astype(F32)),
        Add(name="sum", inputs=(Ref("b"), Ref("l", delay=delay))),
        Neuron(name="k", inputs=(Ref("sum"),), program=program, params=params),
    ]
    graph, ledger = verify(Graph("g", "float", tuple(nodes), (("l", Ref("l")), ("k", Ref("k")), ("sum", Ref("sum"))))), Ledger()
    x = {"in": (rng.random((6, 20, 4)) < 0.5).astype(F32)}
    fixed = verify(ToFixed(target=load_target("host"), bits=bits, calibrate=x).run(graph, ledger))
    (unit,) = {float(e.what.split()[-1]) for e in ledger if "the output sum is in units of" in e.what}
    (identity,) = [node for node in fixed.nodes if isinstance(node, Scale)]
    assert abs(identity.factor.item() * unit - 1) < 1e-5  # what was 1 is exactly that many units, up to the figure's digits
    assert not [e for e in ledger if e.kind == "approximation" and e.node == identity.name]
    shown = {"in": x["in"].astype(bool)}
    wanted, found = interpret(graph, x).outputs, interpret(fixed, shown).outputs
    assert np.array_equal(wanted["l"], found["l"])
    if bits == 8:
        assert np.mean(wanted["k"] != found["k"]) < 0.02
    build = spikec.compile(graph, target="host", bits=bits, calibrate=x["in"])
    assert build.graph() == fixed
    assert build.verify(x["in"], backends=("numpy", "c")).ok


@pytest.mark.parametrize(
    ("sum_", "numbers"),
    [
        ("beta * v + x + y", 1),
        ("(x - theta) + (beta * v + y)", 1),
        ("beta * v + x - y", 2),
        ("beta * v - (x + y)", 1),
        ("beta * v + x + y + 0.5 * x", 2),
    ],
)
def test_biases_of_one_sum_are_one_number(sum_: str, numbers: int) -> None:
    """Dyadic numbers: no spike differs, however many numbers a neuron has."""
    rng = np.random.default_rng(1)
    program = parse_program(
        "neuron @n(x, y) params(beta, theta) state(v = 0) {\nv = " + sum_ + "\ns = v > theta\nv = select(s, 0, v)\nemit s\n}"
    )
    nodes: list[Node] = [Input(name="in", type=TensorType("spike", (30,), "f32"))]
    for name in ("fc", "back"):
        weight, bias = (rng.integers(-60, 61, shape).astype(F32) / 64 for shape in ((20, 30), 20))
        nodes.append(Dense(name=name, inputs=(Ref("in"),), weight=weight, bias=bias))
    params = {"beta": F32(0.5), "theta": F32(1)}
    nodes.append(Neuron(name="l", inputs=(Ref("fc"), Ref("back")), program=program, params=params))
    graph = verify(Graph("g", "float", tuple(nodes), (("l", Ref("l")),)))
    data, fixed = {"in": spikes(rng, 40, 10, 30)}, convert(graph)
    assert interpret(graph, data).outputs["l"].any()
    assert np.array_equal(interpret(graph, data).outputs["l"], interpret(fixed, data).outputs["l"])
    neuron = fixed["l"]
    assert isinstance(neuron, Neuron)
    assert sum(np.size(value) > 1 for value in neuron.params.values()) == numbers


def test_a_bias_behind_a_membrane_may_need_64_bits() -> None:
    rng = np.random.default_rng(5)
    program = parse_program(
        "neuron @n(x) params(beta, theta) state(v = 0) { v = beta * v + x s = v > theta v = select(s, 0, v) emit s, v }"
    )
    params = {"beta": np.float32(0.5), "theta": np.float32(1)}
    nodes = [
        Input(name="in", type=TensorType("spike", (4,), "f32")),
        Dense(name="a", inputs=(Ref("in"),), weight=(rng.integers(-8, 9, (6, 4)) / 8).astype(F32)),
        Neuron(name="l", inputs=(Ref("a"),), program=program, params=params),
        Dense(
            name="head",
            inputs=(Ref("l", "v"),),
            weight=(rng.integers(-8, 9, (3, 6)) / 8).astype(F32),
            bias=np.array([0.625, -0.5, 7], F32),
        ),
    ]
    graph, ledger = verify(Graph("g", "float", tuple(nodes), (("head", Ref("head")),))), Ledger()
    x = {"in": (rng.random((4, 12, 4)) < 0.5).astype(F32)}
    fixed = verify(ToFixed(target=load_target("host"), bits=16, calibrate=x).run(graph, ledger))
    head = fixed["head"]
    assert isinstance(head, Dense) and head.bias is not None and head.bias.dtype == np.int64
    (unit,) = {float(e.what.split()[-1]) for e in ledger if "the output head is in units of" in e.what}
    found = interpret(fixed, {"in": x["in"].astype(bool)}).outputs["head"]
    np.testing.assert_allclose(found * unit, interpret(graph, x).outputs["head"], rtol=1e-5)  # the unit's six digits
    build = spikec.compile(graph, target="host", bits=16, calibrate=x["in"])
    assert build.verify(x["in"], backends=("numpy", "c")).ok


MULTI = "neuron @multi(x) params(theta) state(v = 0) { u = v + x s = max(floor(u / theta), 0) v = u - s * theta emit s: graded }"


@pytest.mark.parametrize(("theta", "exact"), [(1.0, True), (0.25, True), (0.7, False)])
def test_neurons_that_spike_several_times_a_step_count_levels_a_power_of_two_apart(theta: float, exact: bool) -> None:
    rng = np.random.default_rng(2)
    layers: list[object] = [Input(name="in", type=TensorType("spike", (5,), "f32"))]
    last = "in"
    for name, shape in (("a", (8, 5)), ("b", (4, 8))):
        weight = (rng.integers(-6, 12, shape) / 16).astype(F32)
        layers += [
            Dense(name=f"{name}_fc", inputs=(Ref(last),), weight=weight),
            Neuron(name=name, inputs=(Ref(f"{name}_fc"),), program=parse_program(MULTI), params={"theta": np.float32(theta)}),
        ]
        last = name
    graph, ledger = verify(Graph("g", "float", tuple(layers), (("a", Ref("a")), ("b", Ref("b"))))), Ledger()
    x = {"in": (rng.random((6, 30, 5)) < 0.5).astype(F32)}
    fixed = verify(ToFixed(target=load_target("host"), bits=12, calibrate=x).run(graph, ledger))
    assert {e.node for e in ledger if e.kind == "approximation"} == (set() if exact else {"a_fc", "b_fc"})
    wanted, found = interpret(graph, x).outputs, interpret(fixed, {"in": x["in"].astype(bool)}).outputs
    for name in ("a", "b"):
        assert wanted[name].max() > 1
        wrong = np.count_nonzero(wanted[name] != found[name])
        assert wrong <= (0 if exact else 0.02 * wanted[name].size)
    build = spikec.compile(graph, target="host", bits=12, calibrate=x["in"])
    assert build.verify(x["in"], backends=("numpy", "c")).ok
