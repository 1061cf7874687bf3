"""Real-valued inputs: payloads with a calibrated unit, or spikes through a named encoder; the same on every backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import dense, graph, leaky, values

import spikec
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Concat, Conv, Gather, Input, Neuron, Node, Pool, Ref, Reshape, Scale
from spikec.ir.text import parse_graph, parse_program, print_graph
from spikec.ir.types import Array
from spikec.passes.payloads import candidates
from spikec.runtime import encoders
from support.builds import fixed_target

F = np.float32
RNG = np.random.default_rng(4)
W = RNG.normal(size=(6, 4)).astype(F) * 0.6
W2 = RNG.normal(size=(3, 6)).astype(F)


def frames(samples: int = 20, steps: int = 12, seed: int = 0) -> Array:
    """The same real numbers at every step."""
    frame = np.random.default_rng(seed).normal(size=(samples, 1, 4)).clip(-2, 2).astype(F)
    return np.repeat(frame, steps, axis=1)


BIAS = RNG.normal(size=6).astype(F) * 0.1


def net() -> Graph:
    return graph(
        values((4,)),
        dense("fc", "in", W, BIAS),
        leaky("l", "fc", 0.9),
        dense("fc2", "l", W2),
        leaky("out", "fc2", 0.8),
        out=["out"],
    )


def source(build: spikec.Build) -> Input:
    return build.graph().inputs[0]


@pytest.fixture
def target(tmp_path: Path) -> str:
    return fixed_target(tmp_path)


def test_a_frame_of_real_numbers_becomes_payloads(target: str) -> None:
    x = frames()
    build = spikec.compile(net(), target=target, calibrate=x)
    node = source(build)
    assert node.type.kind == "graded" and node.unit is not None and node.bounds is not None
    (told,) = (entry for entry in build.ledger if entry.node == "in" and entry.pass_name == "quantize")
    rounding = np.abs(np.rint(x.astype(np.float64) / node.unit) * node.unit - x)
    assert told.kind == "approximation" and told.total == x.size
    assert told.largest == pytest.approx(rounding.max()) and told.largest <= node.unit / 2 * (1 + 1e-9)
    float_spikes, fixed_spikes = (build.run(x, level=level, record="l").records["l"] for level in ("float", None))
    assert np.mean(float_spikes != fixed_spikes) < 0.02 and float_spikes.sum() > 100
    # What runs is the graph of integers on rounded data, whoever runs it.
    by_hand = interpret(build.graph(), {"in": np.rint(x / node.unit)}).outputs["out"]
    for backend in ("reference", "numpy", "c"):
        np.testing.assert_array_equal(build.run(x, backend).outputs["out"], by_hand)
    assert build.verify(x).ok and build.verify().ok


def test_saved_loaded_and_printed(target: str, tmp_path: Path) -> None:
    x = frames()
    build = spikec.compile(net(), target=target, calibrate=x)
    loaded = spikec.load(build.save(tmp_path / "build"))
    assert source(loaded).unit == source(build).unit
    np.testing.assert_array_equal(loaded.run(x).outputs["out"], build.run(x).outputs["out"])
    assert loaded.verify().ok
    text, arrays = print_graph(build.graph())
    assert "unit=" in text and parse_graph(text, arrays) == build.graph()
    coded = spikec.compile(net(), target=target, encode="delta:threshold=0.25", calibrate=x)
    text, arrays = print_graph(coded.graph())
    assert 'encode="delta:threshold=0.25"' in text and parse_graph(text, arrays) == coded.graph()


def test_data_on_a_grid_are_exact(target: str) -> None:
    """Pixels in sixteenths cost nothing: no approximation, and the weights have what the payload leaves."""
    x = np.repeat(np.random.default_rng(0).integers(0, 17, (20, 1, 4)) / 16, 8, axis=1).astype(F)
    weight = (2 * np.random.default_rng(1).integers(-60, 61, (6, 4)) / 64).astype(F)
    g = graph(values((4,)), dense("fc", "in", weight), leaky("l", "fc", 0.5), out=["l"])
    build = spikec.compile(g, target=target, calibrate=x)
    assert source(build).unit == 1 / 16 and source(build).bounds == (0, 16)
    assert not [entry for entry in build.ledger if entry.kind == "approximation"]
    np.testing.assert_array_equal(build.run(x).outputs["l"], build.run(x, level="float").outputs["l"])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 30), levels=st.sampled_from([1, 3, 10, 16, 32, 255]))
def test_the_first_candidate_is_a_grid_that_the_data_lie_on(seed: int, levels: int) -> None:
    whole = np.random.default_rng(seed).integers(-levels, levels + 1, 200)
    whole[0] = levels
    found = next(candidates((whole * 0.37 / levels).astype(F)))
    np.testing.assert_allclose(
        found.of((whole * 0.37 / levels).astype(F)) * found.unit, whole * 0.37 / levels, rtol=1e-5, atol=1e-7
    )


def test_sums_of_payloads_never_wrap(target: str) -> None:
    """Hundreds of inputs at their largest: the scale leaves room for all of them."""
    weight = np.abs(RNG.normal(size=(5, 700))).astype(F)
    g = graph(values((700,)), dense("fc", "in", weight), leaky("l", "fc", 0.9, 50.0), out=["l"])
    x = np.repeat(RNG.random((10, 1, 700)), 6, axis=1).astype(F)
    build = spikec.compile(g, target=target, calibrate=x)
    assert not any("wraps" in entry.what for entry in build.ledger)
    full = np.ones((1, 6, 700), F) * x.max()
    a = build.run(full, record=["fc"]).records["fc"]
    assert 0 < a.max() <= (1 << 17) - 1
    assert build.run(full).outputs["l"].all() and build.run(full, level="float").outputs["l"].all()


def test_convolutions_concatenations_and_numbers_straight_into_neurons(target: str) -> None:
    g = graph(
        values((2, 5, 5), "frame"),
        values((3,), "more"),
        Conv(name="c", inputs=(Ref("frame"),), weight=RNG.normal(size=(3, 2, 3, 3)).astype(F) * 0.4, bias=np.full(3, 0.1, F)),
        leaky("l1", "c", 0.9),
        Reshape(name="flat", inputs=(Ref("l1"),), shape=(27,)),
        Concat(name="both", inputs=(Ref("flat"), Ref("more"))),
        dense("fc", "both", RNG.normal(size=(3, 30)).astype(F) * 0.3),
        Add(name="sum", inputs=(Ref("fc"), Ref("more"))),
        leaky("l2", "sum", 0.8),
        out=["l1", "l2"],
    )
    x = {"frame": RNG.normal(size=(8, 10, 2, 5, 5)).astype(F), "more": RNG.random((8, 10, 3)).astype(F)}
    build = spikec.compile(g, target=target, calibrate=x)
    assert {node.name: node.type.kind for node in build.graph().inputs} == {"frame": "graded", "more": "graded"}
    float_run, fixed_run = build.run(x, level="float"), build.run(x)
    for name in ("l1", "l2"):
        assert np.mean(float_run.outputs[name] != fixed_run.outputs[name]) < 0.05 and float_run.outputs[name].any()
    assert build.verify(x).ok


def test_an_encoder_that_the_user_names(target: str) -> None:
    x = np.abs(frames()) / 2
    build = spikec.compile(net(), target=target, calibrate=x, encode="rate:seed=7")
    assert source(build).type.kind == "spike" and source(build).encode == "rate:seed=7"
    assert any(entry.asked == "--encode rate:seed=7" for entry in build.ledger)
    spikes = encoders.encode("rate:seed=7", x)
    expected = interpret(build.graph(), {"in": spikes}).outputs["out"]
    for backend in ("reference", "numpy", "c"):
        np.testing.assert_array_equal(build.run(x, backend).outputs["out"], expected)
    assert build.verify().ok
    on_host = spikec.compile(net(), target="reference", calibrate=x, encode="rate:seed=7")
    np.testing.assert_array_equal(on_host.run(x).outputs["out"], build.run(x, level="float").outputs["out"])
    signed = spikec.compile(net(), target=target, calibrate=x, encode="delta:threshold=0.1")
    assert source(signed).type.kind == "graded" and source(signed).bounds == (-1, 1)


def test_without_data_the_largest_number_has_to_be_told(target: str) -> None:
    with pytest.raises(CompileError) as caught:
        spikec.compile(net(), target=target)
    (problem,) = caught.value.diagnostics
    assert problem.code == "SPK208" and problem.message == "%in: holds real numbers, and nothing says how large they get"
    assert problem.fix is not None and "--encode" in problem.fix
    build = spikec.compile(net(), target=target, input_max=2.0)
    assert source(build).bounds == (-127, 127) and source(build).unit == pytest.approx(2 / 127)
    build = spikec.compile(net(), target=target, calibrate=frames(), input_bits=5)
    assert source(build).bounds == (-15, 15)


def test_mistakes(target: str) -> None:
    x = frames()
    build = spikec.compile(net(), target=target, calibrate=x)
    cases = [
        (lambda: build.run(x * 3), "SPK007", "beyond the range"),
        (lambda: spikec.compile(net(), target=target, calibrate=x, input_bits=1), "SPK001", "input_bits is 2 to 16"),
        (lambda: spikec.compile(net(), target=target, input_max=-1.0), "SPK001", "input_max is a number above 0"),
        (lambda: spikec.compile(net(), target=target, calibrate=x, encode="morse"), "SPK001", "there is no encoder 'morse'"),
        (lambda: spikec.compile(net(), target=target, calibrate=x, encode="rate"), "SPK007", "values lie in [0, 1]"),
    ]
    for run, code, message in cases:
        with pytest.raises(CompileError) as caught:
            run()
        assert caught.value.code == code and message in str(caught.value), str(caught.value)
    with pytest.raises(CompileError) as strict:
        spikec.compile(net(), target=target, calibrate=x, strict=True)
    assert any("%in: rounded to whole numbers" in str(item) for item in strict.value.diagnostics)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 30), bits=st.sampled_from([6, 8, 12, 16]), pooled=st.booleans(), signed=st.booleans())
def test_a_processor_takes_real_numbers_through_every_wire(seed: int, bits: int, pooled: bool, signed: bool) -> None:
    """Through weights, pools and straight into a population: integers and floats agree within rounding."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(3, 5, 2, 6, 6)) if signed else rng.random((3, 5, 2, 6, 6))).astype(F) * 3.7
    program = parse_program("neuron @sum(a, b) state(v = 0) {\nv = 0.5 * v + a - 0.25 * b\nemit v: graded\n}")
    weight = rng.normal(size=(2, 2, 1, 1)).astype(F)
    pool = Pool(name="p", inputs=(Ref("in"),), mode="average" if pooled else "max", kernel=(2, 2), stride=(1, 1))
    g = graph(
        values((2, 6, 6)),
        pool,
        Conv(name="c", inputs=(Ref("p"),), weight=weight, bias=rng.normal(size=2).astype(F)),
        Gather(name="cut", inputs=(Ref("in"),), indices=np.arange(72).reshape(2, 6, 6)[:, :5, :5]),
        Neuron(name="l", inputs=(Ref("c"), Ref("cut")), program=program),
        out=["l"],
    )
    build = spikec.compile(g, target="host", bits=bits, calibrate=x)
    (told,) = [entry.what for entry in build.ledger if "the output" in entry.what]
    exact = build.run(x, "reference", level="float").outputs["l"]
    got = build.run(x, "reference").outputs["l"]
    unit = float(told.rsplit(" ", 1)[1])
    assert np.abs(got * unit - exact).max() <= (8 * 2.0 ** (1 - bits) + 0.002) * np.abs(exact).max()
    np.testing.assert_array_equal(build.run(x, "numpy").outputs["l"], got)


def test_a_traced_convolutional_network_on_host_with_a_constant_frame() -> None:
    torch.manual_seed(0)
    lif = {"beta": 0.9, "threshold": 0.1, "init_hidden": True}
    net_ = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        snn.Leaky(**lif),
        torch.nn.AvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(36, 5),
        snn.Leaky(**lif),
    )
    frame = torch.rand(24, 1, 8, 8) * 4 - 1
    x = frame[:, None].repeat(1, 15, 1, 1, 1).numpy()
    build = spikec.compile(net_, frame[:2], target="host", bits=8, calibrate=x, time_axis=None, steps=15)
    node = build.graph().inputs[0]
    assert node.unit == pytest.approx(3 / 127, rel=0.02) and node.bounds is not None
    (told,) = [entry for entry in build.ledger if entry.node == node.name and entry.pass_name == "to-fixed"]
    rounding = np.abs(np.rint(x.astype(np.float64) / node.unit) * node.unit - x)
    assert told.kind == "approximation" and told.total == x.size and told.largest == pytest.approx(rounding.max())
    spikes = {name: next(iter(build.run(x, name).outputs.values())) for name in ("reference", "numpy", "c")}
    np.testing.assert_array_equal(spikes["numpy"], spikes["reference"])
    np.testing.assert_array_equal(spikes["c"], spikes["reference"])
    exact = next(iter(build.run(x, "reference", level="float").outputs.values()))
    assert exact.sum() > 150 and abs(spikes["c"].sum() - exact.sum()) < 0.05 * exact.sum()
    assert build.verify(x).ok
    (first, *_) = (item.name for item in build.graph().neurons)
    hidden = [build.run(x, "numpy", level=level, record=first).records[first] for level in ("float", None)]
    assert np.mean(hidden[0] != hidden[1]) < 0.015
    # What is left is rounding: with sixteen bits it goes.
    fine = spikec.compile(net_, frame[:2], target="host", bits=16, calibrate=x, time_axis=None, steps=15)
    got = next(iter(fine.run(x, "c").outputs.values()))
    assert np.count_nonzero(got != exact) < 0.02 * exact.sum()


def test_real_numbers_on_host_need_a_range() -> None:
    with pytest.raises(CompileError) as caught:
        spikec.compile(net(), target="host", bits=8)
    assert caught.value.code == "SPK208" and "input_max" in str(caught.value) and "--encode" in str(caught.value)
    build = spikec.compile(net(), target="host", bits=8, input_max=2.0)
    assert source(build).bounds == (-127, 127) and source(build).unit == pytest.approx(2 / 127)
    pixels = np.repeat(RNG.integers(0, 17, (20, 1, 4)) / 16, 8, axis=1).astype(F)
    assert source(spikec.compile(net(), target="host", bits=8, calibrate=pixels)).unit == 1 / 16
    with pytest.raises(CompileError, match="beyond the range"):
        build.run(frames() * 9)


# ------------------------------------------------------------- between a real-valued input and the first layer, on Loihi 2


def chain(rng: np.random.Generator) -> Graph:
    """Scales, pools and convolutions in any order between a frame and a population; every number is dyadic and small."""
    nodes: list[Node] = [values((2, 6, 6))]
    shape, wire = (2, 6, 6), "in"
    for number in range(int(rng.integers(1, 4))):
        name, kind = f"n{number}", rng.choice(["channel", "scalar", "element", "average", "sum", "conv", "twice"])
        ref = Ref(wire, delay=int(rng.random() < 0.2))
        if kind in ("channel", "scalar", "element"):
            size = {"channel": shape[:1], "scalar": (), "element": shape}[str(kind)]
            offset = rng.choice([-0.5, 0.25, 0.5], size).astype(F) if rng.random() < 0.5 else None
            nodes.append(Scale(name=name, inputs=(ref,), factor=rng.choice([-1, 0.5, 1, 2], size).astype(F), offset=offset))
        elif kind == "twice":
            nodes.append(Scale(name=f"{name}s", inputs=(ref,), factor=np.asarray(0.5, F)))
            nodes.append(Add(name=name, inputs=(Ref(f"{name}s"), Ref(wire))))
        elif kind == "conv":
            padding = int(rng.integers(0, 2)) if min(shape[1:]) > 1 else 1
            weight = rng.choice([-0.5, 0, 0.5, 1], (2, shape[0], 2, 2)).astype(F)
            weight[:, 0, 0, 0] = 0.5  # no channel without a weight
            nodes.append(Conv(name=name, inputs=(ref,), weight=weight, padding=(padding, padding)))
            shape = (2, *(n + 2 * padding - 1 for n in shape[1:]))
        elif min(shape[1:]) >= 2:
            nodes.append(Pool(name=name, inputs=(ref,), mode=str(kind), kernel=(2, 2), stride=(2, 2)))
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
        else:
            continue
        wire = name
    if rng.random() < 0.5:
        size = int(np.prod(shape))
        nodes.append(Reshape(name="row", inputs=(Ref(wire),), shape=(size,)))
        nodes.append(dense("fc", "row", rng.choice([-0.5, 0.25, 0.5], (4, size)).astype(F), rng.choice([0, 0.5], 4).astype(F)))
        wire = "fc"
    nodes.append(leaky("l", wire, 0.5, float(rng.choice([0.5, 1.0, 2.0]))))
    return graph(*nodes, out=["l"])


def test_scales_and_pools_over_real_numbers_are_exact_on_loihi2() -> None:
    """No unit and no factor is lost: where all numbers lie on the grid, the integers give the float graph's spikes."""
    exact = spikes = 0
    kinds: set[str] = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        g = chain(rng)
        x = rng.integers(-3, 4, (6, 6, 2, 6, 6)).astype(F) / 4
        x[0, 0, 0, 0, 0] = 0.75
        build = spikec.compile(g, calibrate=x)
        wanted = build.run(x, level="float").outputs["l"]
        found = build.run(x, "numpy").outputs["l"]
        rounded = [entry for entry in build.ledger if entry.kind == "approximation"]
        if not rounded:
            np.testing.assert_array_equal(found, wanted, f"seed {seed}")
            exact += 1
            spikes += int(wanted.sum())
            kinds |= {f"{n.op} {getattr(n, 'mode', '')}" for n in g.nodes}
        else:
            assert np.mean(found != wanted) < 0.15, f"seed {seed}: {[entry.text() for entry in rounded]}"
    assert exact >= 45 and spikes > 4000
    assert kinds >= {"scale ", "pool average", "pool sum", "conv ", "dense ", "add "}, kinds


@pytest.mark.usefixtures("lava_env")
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_scales_and_pools_over_real_numbers_on_lava(seed: int) -> None:
    """Trained-like numbers: the float graph within rounding, and Lava = the reference."""
    rng = np.random.default_rng(seed)
    mode = ("average", "sum", "max", "max")[seed]
    first = Scale(name="norm", inputs=(Ref("in"),), factor=np.array([0.7, -1.9], F), offset=np.array([0.3, -0.1], F))
    window = {"kernel": (2, 2), "stride": (2, 2)}
    if mode == "max":  # a maximum can only stand before a population
        middle: list[Node] = [first, Pool(name="p", inputs=(Ref("norm"),), mode=mode, **window), leaky("l", "p", 0.9, 0.8)]
    else:
        weight = rng.normal(size=(3, 2, 3, 3)).astype(F) * (0.5 if mode == "average" else 0.15)
        bias = rng.normal(size=3).astype(F) * 0.1
        middle = [
            first,
            Pool(name="p", inputs=(Ref("norm"),), mode=mode, **window),
            Conv(name="c", inputs=(Ref("p"),), weight=weight, bias=bias, padding=(1, 1)),
            leaky("l", "c", 0.9, 0.8),
        ]
    g = graph(values((2, 6, 6)), *middle, out=["l"])
    x = np.repeat(rng.normal(size=(12, 1, 2, 6, 6)), 10, axis=1).astype(F)
    build = spikec.compile(g, calibrate=x)
    wanted, found = build.run(x, level="float").outputs["l"], build.run(x).outputs["l"]
    assert 0.05 < wanted.mean() < 0.95 and np.mean(wanted != found) < 0.03
    assert build.verify(x[:3], ["numpy", "c", "lava"]).ok


def test_a_maximum_of_real_numbers_before_weights_is_refused_with_a_cure() -> None:
    g = graph(
        values((2, 6, 6)),
        Pool(name="p", inputs=(Ref("in"),), mode="max", kernel=(2, 2), stride=(2, 2)),
        Conv(name="c", inputs=(Ref("p"),), weight=np.ones((2, 2, 2, 2), F)),
        leaky("l", "c"),
        out=["l"],
    )
    with pytest.raises(CompileError) as caught:
        spikec.compile(g, input_max=1.0)
    assert [(d.code, d.message) for d in caught.value.diagnostics] == [("SPK202", "%p: loihi2 has no operation 'pool'")]
    assert "use an average pool" in str(caught.value.diagnostics[0].fix)


def test_a_gain_of_a_population_on_a_real_valued_input_is_a_weight() -> None:
    program = parse_program(
        "neuron @gained(x) params(g) state(v = 0) { v = 0.5 * v + g * x\n s = v > 1\n v = select(s, 0, v)\n emit s }"
    )
    gain = np.array([0.5, 2.0, -1.0, 4.0], F)
    g = graph(values((4,)), Neuron(name="l", inputs=(Ref("in"),), program=program, params={"g": gain}), out=["l"])
    x = np.random.default_rng(0).integers(-8, 9, (10, 8, 4)).astype(F) / 4
    build = spikec.compile(g, calibrate=x)
    wanted = build.run(x, level="float").outputs["l"]
    assert wanted.sum() > 60
    np.testing.assert_array_equal(build.run(x).outputs["l"], wanted)
