"""The Python interface: compile, run, results, counts, carried state, verification."""

from __future__ import annotations

import sys
from pathlib import Path

import nets
import numpy as np
import pytest

import spikec
from spikec.build import Build
from spikec.counts import fan_out, synapses
from spikec.diagnostics import CompileError
from spikec.inputs import check_inputs
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, interpret
from spikec.ir.ops import Add, Concat, Conv, Dense, Input, Neuron, Ref, Reshape, Sparse
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.target import load_target
from spikec.verification import Run, compare, locate
from support.builds import TINY, fixed_build, fixed_target, spikes, tiny


def fails(code: str, action, *words: str) -> None:
    with pytest.raises(CompileError) as caught:
        action()
    assert caught.value.code == code, str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.fixture
def build() -> Build:
    return spikec.compile(tiny(), target="reference")


# ---------------------------------------------------------------------------------------------------------- the package


def test_version_is_the_one_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert spikec.__version__ == project["version"]


def test_every_public_name_is_there() -> None:
    for name in spikec.__all__:
        assert getattr(spikec, name) is not None
    assert set(spikec.__all__) <= set(dir(spikec))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = spikec.nonsense


# -------------------------------------------------------------------------------------------------------------- compile


def test_compile_takes_a_graph_and_a_file(tmp_path: Path, build: Build) -> None:
    path = tmp_path / "tiny.sir"
    path.write_text(TINY)
    assert spikec.compile(path, target="reference").graph() == build.graph()
    assert spikec.compile(str(path), target="reference", name="other").graph().name == "other"
    assert build.stage_names == ["input", "canonicalise"]


def test_stages_and_levels(tmp_path: Path) -> None:
    build = fixed_build(tmp_path)
    assert build.graph(after="legalise").level == "float"
    assert build.graph(level="float") == build.graph(after="legalise")
    assert build.graph(level="fixed") == build.graph(after="retime") == build.graph(after="choose-formats")
    assert build.graph(level="placed") == build.graph()
    assert build.ir(after="input") == str(tiny())
    assert "weight=i16[" in build.ir(after="quantize")
    fails("SPK404", lambda: build.graph(after="quantise"), "did you mean 'quantize'?")
    fails("SPK404", lambda: spikec.compile(tiny(), target="host", bits=8).graph(level="placed"), "to-fixed (fixed)")
    fails("SPK404", lambda: build.graph(level="digital"), "float, fixed, placed")
    fails("SPK404", lambda: build.graph(after="input", level="fixed"))


def test_options_of_passes_are_checked(tmp_path: Path) -> None:
    fails("SPK001", lambda: spikec.compile(tiny(), target="reference", pruned=0.5), "unknown option 'pruned'")
    fails("SPK001", lambda: spikec.compile(tiny(), target="reference", bits=0))
    fixed = spikec.compile(tiny(), target="host", bits=8).graph()
    fails("SPK001", lambda: spikec.compile(fixed, target="host", bits=8))
    fails("SPK001", lambda: spikec.compile(tiny(), target="reference", steps=5), "steps belongs to a torch model")
    fails("SPK001", lambda: spikec.compile(tiny(), target="reference", time_axis=None), "time_axis belongs")
    fails("SPK001", lambda: spikec.compile(tiny(), target="reference", name="a b"))
    fails("SPK001", lambda: spikec.compile(tiny(), target=fixed_target(tmp_path), bits=7), "7 bits")
    fails("SPK004", lambda: spikec.compile(tiny(), target="loihi3"), "unknown target 'loihi3'")


def test_calibration_and_labels_are_checked() -> None:
    def compiled(**options):
        return lambda: spikec.compile(tiny(), target="reference", **options)

    fails("SPK006", compiled(calibrate=np.zeros((4, 10, 2))), "(batch, T, 3)")
    fails("SPK010", compiled(calibrate={"input": spikes()}), "the inputs are in")
    fails("SPK001", compiled(labels=[1, 2]))
    fails("SPK006", compiled(calibrate=spikes(), labels=[1, 2]), "not (4,)")
    fails("SPK007", compiled(calibrate=spikes(), labels=[0.5] * 4))
    assert compiled(calibrate=spikes(), labels=[0, 1, 0, 1])().graph().name == "tiny"


def test_strict_refuses_what_was_not_asked_for(tmp_path: Path) -> None:
    odd = spikec.parse_graph(TINY.replace("0.25, 0.0", "0.3, 0.1").replace("beta=0.5 theta=0.75", "beta=0.9 theta=0.7"))
    target = fixed_target(tmp_path)
    assert spikec.compile(odd, target=target).summary()["approximations"]
    fails("SPK207", lambda: spikec.compile(odd, target=target, strict=True), "error[SPK207]")
    assert spikec.compile(tiny(), target=target, strict=True).summary()["approximations"] == []


def test_dump_survives_a_later_error(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    bad = spikec.parse_graph(TINY.replace("s = v > theta", "s = v > theta\n  v = v / (v + 2)").replace("@lif", "@ratio"))
    fails("SPK202", lambda: spikec.compile(bad, target=fixed_target(tmp_path), dump_ir=dump))
    assert spikec.read_graph(dump / "00-input.sir") == bad
    assert "legalise" in (dump / "passes.txt").read_text()
    fails("SPK008", lambda: spikec.compile(tiny(), target="reference", dump_ir=dump / "passes.txt"))


def test_summary(tmp_path: Path) -> None:
    found = fixed_build(tmp_path).summary()
    assert (found["neurons"], found["synapses"], found["lag"], found["level"]) == (4, 9, 2, "placed")
    assert found["passes"] == list(load_target("loihi2").passes)


# ------------------------------------------------------------------------------------------------------------------ run


def test_run_equals_the_interpreter(build: Build) -> None:
    x = spikes()
    found = build.run(x, record="all")
    wanted = interpret(tiny(), {"in": x.astype(np.float32)}, record=["lif1", "lif2"])
    assert np.array_equal(found.outputs["out"], wanted.outputs["out"])
    assert np.array_equal(found.spikes("lif1"), wanted.records["lif1"])
    assert np.array_equal(found.state("lif1", "v"), wanted.states["lif1"]["v"])
    assert found.backend == "reference" and found.steps == 10 and found.seconds > 0


def test_layers_answer_to_their_names_in_the_model(build: Build) -> None:
    found = build.run(spikes(), record=["net.lif1"])
    assert np.array_equal(found.spikes("net.lif1"), found.spikes("lif1"))
    assert np.array_equal(found.spikes("out"), found.outputs["out"])
    assert np.array_equal(found.spikes("net.lif2"), found.outputs["out"])  # recorded as the output
    assert build.run(spikes(), record="net.fc1").spikes("fc1").shape == (4, 10, 2)
    assert np.array_equal(found.state("net.lif2", "v"), found.state("lif2", "v"))
    fails("SPK010", lambda: found.spikes("fc1"), "was not recorded")
    fails("SPK010", lambda: found.spikes("lif3"), "did you mean")
    fails("SPK010", lambda: found.state("lif1", "u"), "no state 'u'")
    fails("SPK010", lambda: found.state("fc1", "v"), "has no states")
    fails("SPK010", lambda: build.run(spikes(), record=["nothing like it"]))
    fails("SPK010", lambda: found.counts, "record='all'")


def test_a_module_used_twice_is_ambiguous() -> None:
    text = TINY.replace("net.lif2", "net.lif1")
    build = spikec.compile(spikec.parse_graph(text), target="reference")
    fails("SPK010", lambda: build.run(spikes(), record="net.lif1"), "choose one of lif1, lif2")


def test_level_float_is_the_network_as_trained(tmp_path: Path, build: Build) -> None:
    fixed = fixed_build(tmp_path)
    x = spikes()
    assert np.array_equal(fixed.run(x, level="float").outputs["out"], build.run(x).outputs["out"])
    assert fixed.run(x).state("lif1", "v").dtype == np.int64
    assert fixed.run(x, level="float").state("lif1", "v").dtype == np.float32


def test_input_may_be_a_mapping_a_list_or_a_tensor(build: Build) -> None:
    x = spikes()
    wanted = build.run(x).outputs["out"]
    assert np.array_equal(build.run({"in": x}).outputs["out"], wanted)
    assert np.array_equal(build.run(x.tolist()).outputs["out"], wanted)
    import torch

    assert np.array_equal(build.run(torch.tensor(x, dtype=torch.float32, requires_grad=True)).outputs["out"], wanted)


@pytest.mark.parametrize("kind", ["float", "fixed"])
def test_carried_state_goes_on_exactly(tmp_path: Path, build: Build, kind: str) -> None:
    build = build if kind == "float" else fixed_build(tmp_path)
    x = spikes(steps=12)
    whole = build.run(x, record="all")
    build.run(x[:, :5])
    middle = build.run(x[:, 5:6], carry_state=True)
    last = build.run(x[:, 6:], record="all", carry_state=True)
    assert middle.steps == 1 and np.array_equal(middle.outputs["out"], whole.outputs["out"][:, 5:6])
    assert np.array_equal(last.spikes("lif1"), whole.spikes("lif1")[:, 6:])
    assert np.array_equal(last.state("lif2", "v"), whole.state("lif2", "v"))
    tail = np.count_nonzero(whole.spikes("lif1")[:, 6:])
    assert last.counts["lif1"].spikes == tail and last.counts["lif1"].updates == 4 * 6 * 2
    assert np.array_equal(build.run(x).outputs["out"], whole.outputs["out"])  # afresh again
    fails("SPK006", lambda: build.run(x[:2], carry_state=True), "4 samples")


FREE = """sir 1
neuron @lif(x) params(beta, theta, bias) state(v = 0) {
v = beta * v + bias + x
s = v >= theta
v = select(s, 0, v)
emit s
}
graph @free level=float {
  %back = dense(%l[t-1]) weight=[[0.0, 0.25, -0.5], [0.5, 0.0, 0.0], [0.0, 0.75, 0.0]] : value<3>
  %l = neuron @lif(%back) beta=0.875 theta=1.0 bias=[0.25, 0.125, 0.5] : spike<3>
  output %l
}
"""


@pytest.mark.parametrize("target", ["host", "loihi2"])
def test_a_network_without_inputs_runs_for_so_many_steps(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = spikec.compile(spikec.parse_graph(FREE), target=target, **({"bits": 8} if target == "host" else {}))
    whole = build.run(steps=40, record="all")
    assert whole.samples == 1 and whole.steps == 40 and 0 < whole.outputs["l"].sum() < 100
    assert whole.counts["l"].updates == 120
    for engine in ("numpy", "c"):
        found = build.run(None, engine, "all", steps=40)
        assert np.array_equal(found.spikes("l"), whole.spikes("l")) and np.array_equal(found.state("l", "v"), whole.state("l", "v"))
        build.run(backend=engine, steps=15)
        assert np.array_equal(build.run({}, engine, steps=25, carry_state=True).outputs["l"], whole.outputs["l"][:, 15:])
    assert build.verify(backends=["numpy", "c"], steps=40).steps == 40
    assert build.verify(backends=["numpy", "c"]).ok  # a default number of steps
    fails("SPK006", lambda: build.run(), "needs the number of steps", "--steps 100")
    fails("SPK006", lambda: build.run(spikes(), steps=4), "has no inputs, and one is given")
    for wrong in (0, -1, 2.0, True):
        fails("SPK001", lambda wrong=wrong: build.run(steps=wrong), "a whole number of at least 1")
    other = spikec.compile(
        spikec.parse_graph(FREE.replace("-0.5", "0.5")), target=target, **({"bits": 8} if target == "host" else {})
    )

    def wrong(graph: Graph, inputs: object, *, steps: int, record: list[str], progress: object) -> Execution:
        return interpret(other.graph(), {}, record=record, steps=steps)

    monkeypatch.setattr("spikec.backends.events.run_events", wrong)
    (first,) = build.verify(backends=["numpy"], steps=40).divergences
    states = [[each.run(steps=t).state("l", "v").tolist() for each in (build, other)] for t in range(1, 41)]
    assert first.layer == "l" and first.step == next(t for t, (a, b) in enumerate(states) if a != b) > 0


@pytest.mark.lava
def test_a_network_without_inputs_runs_on_lava(lava_env: object) -> None:
    build = spikec.compile(spikec.parse_graph(FREE), target="loihi2")
    assert build.verify(backends=["lava"], steps=30).ok


def test_steps_are_those_of_the_input(build: Build) -> None:
    own = spikes().shape[1]
    fails("SPK006", lambda: build.run(spikes(), steps=own + 1), f"has {own} steps, and {own + 1} are asked for", "leave out steps")
    np.testing.assert_array_equal(build.run(spikes(), steps=own).outputs["out"], build.run(spikes()).outputs["out"])
    fails("SPK006", lambda: build.run(steps=10), "none is given: 'in'")
    fails("SPK006", lambda: build.verify(steps=10))


def test_carried_state_without_a_past_begins_afresh(build: Build) -> None:
    x = spikes()
    assert np.array_equal(build.run(x, carry_state=True).outputs["out"], build.run(x).outputs["out"])


def test_backends_are_known_by_name(build: Build) -> None:
    fails("SPK011", lambda: build.run(spikes(), "gpu"), "reference, numpy, c, lava")


# ---------------------------------------------------------------------------------------------------------------- input


def graph_with(kind: str, dtype: str, level: str = "float", bounds: tuple[int, int] | None = None) -> Graph:
    node = Input(name="in", type=TensorType(kind, (2,), dtype), bounds=bounds)
    return Graph("g", level, (node,), (("out", Ref("in")),))


BAD_INPUTS = [
    ("spike", "f32", np.zeros((3, 2)), "SPK006", "has shape (3, 2), not (batch, T, 2)"),
    ("spike", "f32", np.zeros((1, 3, 4)), "SPK006", "has shape (1, 3, 4), not (batch, T, 2)"),
    ("spike", "f32", np.zeros((1, 0, 2)), "SPK006", "no samples or no steps"),
    ("spike", "f32", [[[1, 0], [1]]], "SPK006", "its rows differ in length"),
    ("spike", "f32", np.array([[["a", "b"]]]), "SPK007", "holds <U1, not numbers"),
    ("spike", "f32", np.array([[[0, 2]]]), "SPK007", "holds 2 at [0, 0, 1], but takes spikes, 0 or 1 (1 of 2)"),
    ("spike", "f32", np.array([[[0, np.nan]]]), "SPK007", "holds nan at [0, 0, 1], which is not a finite number"),
    ("value", "f32", np.array([[[np.inf, 0]]]), "SPK007", "holds inf at [0, 0, 0]"),
    ("graded", "i8", np.array([[[0.5, 0]]]), "SPK007", "holds 0.5 at [0, 0, 0], but takes whole numbers"),
    ("graded", "i8", np.array([[[128, 0]]]), "SPK007", "holds 128 at [0, 0, 0], which i8 does not hold"),
]


@pytest.mark.parametrize(("kind", "dtype", "data", "code", "message"), BAD_INPUTS)
def test_bad_input(kind: str, dtype: str, data: object, code: str, message: str) -> None:
    level = "fixed" if dtype.startswith("i") else "float"
    fails(code, lambda: check_inputs(graph_with(kind, dtype, level), data), message)


@pytest.mark.parametrize("value", [1.0, -0.0, 0.5, -1.0, 2.0, 257.0, np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["i8", "f32"])
def test_spikes_given_as_real_numbers(value: float, dtype: str) -> None:
    """Any number but 0 and 1 is found wherever it stands, in an array of any order; what is right arrives as it was."""
    rng = np.random.default_rng(3)
    x = (rng.random((700, 300, 2)) < 0.3).astype(np.float32)
    graph = graph_with("spike", dtype, "fixed" if dtype == "i8" else "float")
    for place in ((0, 0, 0), (350, 7, 1), (699, 299, 1)):
        for given in (x.copy(), np.asfortranarray(x), x.astype(np.float64)):
            given[place] = value
            if value in (0.0, 1.0):
                found = check_inputs(graph, given)["in"]
                assert found.dtype == (np.int8 if dtype == "i8" else np.float32)
                assert found.flags.c_contiguous
                assert np.array_equal(found, given)
            else:
                fails("SPK007", lambda: check_inputs(graph, given), f"holds {given[place]} at {list(place)}")  # noqa: B023  # called at once


def test_bounds_are_inclusive() -> None:
    graph = graph_with("graded", "i8", "fixed", (-3, 4))
    assert check_inputs(graph, np.array([[[-3.0, 4.0]]]))["in"].dtype == np.int8
    fails("SPK007", lambda: check_inputs(graph, [[[-4, 0]]]), "beyond its bounds -3 to 4")


def test_several_inputs() -> None:
    nodes = tuple(Input(name=n, type=TensorType("spike", (2,), "f32")) for n in ("a", "b"))
    graph = Graph("g", "float", nodes, (("out", Ref("a")),))
    x = spikes(width=2)
    assert list(check_inputs(graph, [x, x])) == ["a", "b"]
    fails("SPK006", lambda: check_inputs(graph, {"a": x}), "the input 'b' is missing")
    fails("SPK006", lambda: check_inputs(graph, x), "2 inputs")
    fails("SPK006", lambda: check_inputs(graph, [x, x[:, :3]]), "differ in samples or steps")


# --------------------------------------------------------------------------------------------------------------- counts


def reached(node: Conv | Dense | Sparse, shape: tuple[int, ...]) -> np.ndarray:
    """The same by brute force: a spike at each place, and how many outputs with non-negative weights it changes."""
    graph = Graph("g", "fixed", (Input(name="x", type=TensorType("spike", shape, "i8")), node), (("y", Ref("n")),))
    size = int(np.prod(shape))
    each = np.eye(size, dtype=np.int8).reshape(size, 1, *shape)
    out = interpret(graph, {"x": each}).outputs["y"]
    return out.reshape(size, -1).sum(axis=1).reshape(shape)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_fan_out_of_a_convolution_knows_its_padding(stride: int, padding: int, groups: int, dilation: int) -> None:
    rng = np.random.default_rng(7)
    weight = rng.integers(0, 2, (4, 4 // groups, 3, 2)).astype(np.int8)  # ones and zeros: what arrives is what is counted
    node = Conv(
        name="n", inputs=(Ref("x"),), weight=weight, stride=(stride, 1), padding=(padding, 1), dilation=(dilation, 1), groups=groups
    )
    assert np.array_equal(fan_out(node, (4, 7, 5)), reached(node, (4, 7, 5)))


def test_fan_out_of_dense_and_sparse() -> None:
    rng = np.random.default_rng(3)
    weight = rng.integers(0, 2, (5, 3)).astype(np.int8)
    dense = Dense(name="n", inputs=(Ref("x"),), weight=weight)
    assert np.array_equal(fan_out(dense, (3,)), reached(dense, (3,)))
    assert fan_out(dense, (4, 3)).shape == (4, 3) and synapses(dense, (4, 3)) == 4 * int(weight.sum())
    one = Conv(name="n", inputs=(Ref("x"),), weight=rng.integers(0, 2, (3, 2, 3)).astype(np.int8), padding=(1,))
    assert np.array_equal(fan_out(one, (2, 9)), reached(one, (2, 9)))
    sparse = Sparse(
        name="n",
        inputs=(Ref("x"),),
        weight=np.array([1, 1, 0], np.int8),
        indices=np.array([0, 2, 1]),
        indptr=np.array([0, 2, 3]),
        fan_in=3,
    )
    assert np.array_equal(fan_out(sparse, (3,)), reached(sparse, (3,)))


def test_counts_of_the_tiny_net(build: Build) -> None:
    x = spikes()
    found = build.run(x, record="all")
    counts = found.counts
    first = [int(n) for n in np.count_nonzero(x, axis=(0, 1))]
    assert counts["in"].spikes == sum(first) == counts["in"].messages
    assert counts["lif1"].synaptic_operations == first[0] * 2 + first[1] * 2 + first[2]  # one weight is zero
    inner = int(np.count_nonzero(found.spikes("lif1")))
    assert counts["lif1"].spikes == inner == counts["lif1"].messages
    assert counts["lif2"].synaptic_operations == inner * 2
    assert counts["lif2"].messages == 0 and counts["lif2"].updates == 4 * 10 * 2


def test_a_membrane_that_is_an_output_is_not_spikes() -> None:
    text = TINY.replace("emit s", "emit s, v").replace(": spike<2> loc", ": spike<2>, v: value<2> loc")
    graph = spikec.parse_graph(text.replace("output out = %lif2", "output out = %lif2\n  output mem = %lif2.v"))
    found = spikec.compile(graph, target="reference").run(spikes(), record="all")
    assert found.outputs["mem"].any()
    assert found.counts["lif2"].spikes == np.count_nonzero(found.outputs["out"])


def test_counts_go_through_nodes_without_a_state_of_their_own() -> None:
    program = parse_program("neuron @relay(a) { s = a > 0.0 emit s }")
    graph = Graph(
        "g",
        "float",
        (
            Input(name="x", type=TensorType("spike", (2, 2), "f32")),
            Neuron(name="n", inputs=(Ref("x"),), program=program),
            Reshape(name="flat", inputs=(Ref("n"),), shape=(4,)),
            Concat(name="both", inputs=(Ref("flat"), Ref("flat", "", 1))),
            Dense(name="fc", inputs=(Ref("both"),), weight=np.ones((3, 8), np.float32)),
        ),
        (("out", Ref("fc")),),
    )
    build = spikec.compile(graph, target="reference")
    x = spikes(2, 6, 4).reshape(2, 6, 2, 2)
    counts = build.run(x, record="all").counts
    sent, again = int(x.sum()), int(x[:, :-1].sum())
    assert counts["n"].spikes == sent and counts["n"].messages == sent
    assert counts["fc"].synaptic_operations == 3 * (sent + again)


# --------------------------------------------------------------------------------------------------------------- verify


def mutated(graph: Graph, wrong: Graph) -> Run:
    return lambda cut, steps: interpret(wrong, cut, record=["lif1", "lif2"])


MUTATIONS = [
    ("vth=96", "vth=128", "lif1", "v", "one fires and the other does not"),
    ("s = v > vth << 6", "s = v >= vth << 6", "lif2", "v", "(> or >=)"),
    ("rtz(v * (4096 - dv), 12)", "(v * (4096 - dv) >> 12)", "lif1", "v", "off by one"),
    ("[64, 32, 0]", "[64, 34, 0]", "lif1", "u", "very first step"),
]


@pytest.mark.parametrize(("right", "wrong", "layer", "variable", "cause"), MUTATIONS)
def test_the_first_divergence_is_found(tmp_path: Path, right: str, wrong: str, layer: str, variable: str, cause: str) -> None:
    """Break one thing in the fixed graph: the first layer, step and variable that are wrong are told, by looking at the states."""
    text = fixed_build(tmp_path).ir().replace("dv=2048", "dv=1365")
    graph, other = spikec.parse_graph(text), spikec.parse_graph(text.replace(right, wrong))
    assert graph != other
    inputs = {"in": spikes(16, 30, seed=2)}
    record = ["lif1", "lif2"]
    expected, got = interpret(graph, inputs, record=record), interpret(other, inputs, record=record)
    rows = compare(graph, "broken", expected, got)
    assert sum(row.spikes + row.states for row in rows) > 0
    found = locate(graph, "broken", inputs, expected, got, mutated(graph, graph), mutated(graph, other))
    assert found is not None and found.layer == layer
    cut = {"in": inputs["in"][found.sample : found.sample + 1, : found.step + 1]}
    before = {"in": cut["in"][:, :-1]}
    for data, same in ((cut, False), (before, True)):
        if data["in"].shape[1] == 0:
            continue
        a, b = interpret(graph, data, record=record), interpret(other, data, record=record)
        assert same == all(np.array_equal(a.states[n][s], b.states[n][s]) for n in a.states for s in a.states[n])
    assert found.variable == variable and cause in found.cause
    assert f"%{layer}[" in found.text() and "likely cause: " in found.text()


def test_a_late_layer_is_called_late(tmp_path: Path) -> None:
    graph = fixed_build(tmp_path).graph()
    inputs = {"in": spikes(3, 20)}
    expected = interpret(graph, inputs, record=["lif1", "lif2"])
    late = {name: np.roll(a, 1, axis=1) for name, a in expected.records.items()}
    for array in late.values():
        array[:, 0] = 0
    outputs = {"out": late["lif2"]}
    broken = Execution(outputs, late, expected.states)

    def suspect(cut, steps):
        n = cut["in"].shape[1]
        states = interpret(graph, cut).states
        return Execution({"out": outputs["out"][:1, :n]}, {k: v[:1, :n] for k, v in late.items()}, states)

    def reference(cut, steps):
        return interpret(graph, cut, record=["lif1", "lif2"])

    found = locate(graph, "late", inputs, expected, broken, reference, suspect)
    assert found is not None and "1 step(s) late" in found.cause


def test_verify_reports_equality(build: Build) -> None:
    found = build.verify(spikes(), ["reference", "numpy"])
    assert found.ok and found.samples == 4 and found.steps == 10
    assert [row.layer for row in found.rows] == ["lif1", "lif2"]
    assert "equal everywhere" in found.text()
    assert build.verify(backends=["numpy"]).ok  # its own golden samples
    assert not build.verify(backends=["reference"]).ok  # nothing was compared
    assert "nothing was compared" in build.verify(backends=["reference"]).text()


def test_verify_counts_and_names_what_differs(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = spikec.parse_graph(TINY.replace("theta=0.5", "theta=0.625"))

    class Wrong:
        def __init__(self, target) -> None: ...
        def available(self):
            return None

        def check(self, graph):
            return iter(())

        def run(self, graph, inputs, *, record=(), artefact=None, progress=None, timeout=None):
            return interpret(wrong, inputs, record=record)

    monkeypatch.setitem(spikec.BACKENDS, "numpy", f"{__name__}:Wrong")
    monkeypatch.setitem(sys.modules, __name__, type(sys)(__name__))
    sys.modules[__name__].Wrong = Wrong
    x = spikes(8, 20)
    found = build.verify(x, ["numpy"])
    a, b = interpret(tiny(), {"in": x}, record=["lif2"]), interpret(wrong, {"in": x}, record=["lif2"])
    assert not found.ok
    assert {row.layer: row.spikes for row in found.rows} == {"lif1": 0, "lif2": int((a.records["lif2"] != b.records["lif2"]).sum())}
    assert found.divergences[0].layer == "lif2"
    assert found.as_json()["ok"] is False and "NOT equal" in found.text()


class Absent:
    """A backend that lacks its tool."""

    def __init__(self, target: object) -> None: ...

    def available(self) -> str | None:
        return "there is no C compiler; apt-get install gcc"


@pytest.mark.parametrize(("name", "code"), [("c", "SPK501"), ("lava", "SPK511"), ("numpy", "SPK502")])
def test_a_backend_that_is_not_there_says_so(build: Build, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    import spikec.backends.reference

    monkeypatch.setattr(spikec.backends.reference, "Absent", Absent, raising=False)
    monkeypatch.setitem(spikec.BACKENDS, name, "spikec.backends.reference:Absent")
    fails(code, lambda: build.run(spikes(), name), f"backend '{name}': there is no C compiler")
    fails(code, lambda: build.verify(spikes(), [name]))
    if name == "numpy":
        monkeypatch.setitem(spikec.BACKENDS, "c", "spikec.backends.reference:Absent")
        found = build.verify(spikes())
        assert set(found.skipped) == {"numpy", "c"} and not found.ok


def test_a_trace_of_events_is_input() -> None:
    """In steps it runs as its dense form; in microseconds it says what to do."""
    from spikec.runtime.trace import SpikeTrace

    build = spikec.compile(tiny(), target="reference")
    shape = build.graph().inputs[0].type.shape
    dense = (np.random.default_rng(0).random((3, 8, *shape)) < 0.4).astype(np.uint8)
    trace = SpikeTrace.from_dense(dense)
    for name, wanted in build.run(dense).outputs.items():
        assert np.array_equal(build.run(trace).outputs[name], wanted)
    timed = SpikeTrace(np.array([10, 2_000_000_000_000]), np.array([0, 1]), shape, tick=1)
    with pytest.raises(CompileError) as error:
        build.run(timed)
    assert error.value.code == "SPK007" and "bin" in str(error.value)


def test_a_dt_or_a_name_of_another_type() -> None:
    with pytest.raises(CompileError) as caught:
        spikec.compile(tiny(), target="reference", dt="1ms")
    assert str(caught.value) == "error[SPK001]: dt is a number of seconds, not '1ms'"
    with pytest.raises(CompileError) as caught:
        spikec.compile(tiny(), target="reference", name=5)
    assert str(caught.value) == "error[SPK001]: a graph's name consists of letters, digits, _ and ., not '5'"


def test_a_tensor_that_numpy_does_not_have_is_refused() -> None:
    import torch

    build = spikec.compile(tiny(), target="reference")
    shape = build.graph().inputs[0].type.shape
    with pytest.raises(
        CompileError, match=r"error\[SPK007\]: the input '\w+' does not become an array: Got unsupported ScalarType BFloat16"
    ):
        build.run(torch.zeros(1, 4, *shape, dtype=torch.bfloat16))


def test_what_is_no_path_or_name() -> None:
    fails("SPK001", lambda: spikec.compile(tiny(), target=5), "target is a name, not 5")
    fails("SPK001", lambda: spikec.compile(tiny(), weights=5), "weights is a path, not 5")
    fails("SPK001", lambda: spikec.compile(tiny(), dump_ir=5), "dump_ir is a path, not 5")
    fails("SPK001", lambda: spikec.load(5), "a build is a path, not 5")


def test_calibration_of_a_model_that_is_shown_frames() -> None:
    import torch

    class Shown(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = torch.nn.Linear(6, 4)
            self.lif = spikec.nn.LIF(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.lif.reset()
            return torch.stack([self.lif(self.fc(x)) for _ in range(9)])

    frames = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    options = {"target": "loihi2", "steps": 9}
    one = spikec.compile(Shown(), torch.from_numpy(frames), calibrate=frames, **options)
    two = spikec.compile(Shown(), torch.from_numpy(frames), calibrate=np.repeat(frames[:, None], 9, axis=1), **options)
    assert one.ir(full=True) == two.ir(full=True)
    fails(
        "SPK006",
        lambda: spikec.compile(Shown(), torch.from_numpy(frames), calibrate=frames[:, :5], **options),
        "has shape (5, 5)",
    )


@pytest.mark.parametrize("encode", [None, "rate:seed=3"])
def test_frames_are_shown_for_as_many_steps_as_said(tmp_path: Path, encode: str | None) -> None:
    weight = np.random.default_rng(0).normal(0.3, 0.5, (5, 4)).astype(np.float32)
    graph = nets.graph(nets.values((4,)), nets.dense("d", "in", weight), nets.leaky("l", "d"))
    frames = np.random.default_rng(1).random((3, 4)).astype(np.float32)
    options = {"encode": encode} if encode else {}
    build = spikec.compile(graph, target="loihi2", calibrate=frames, steps=11, **options)
    shown = np.repeat(frames[:, None], 11, axis=1)
    assert build.ir() == spikec.compile(graph, target="loihi2", calibrate=shown, **options).ir()
    wanted = build.run(shown).outputs["l"]
    assert wanted.any()
    for backend in ("reference", "numpy", "c"):
        np.testing.assert_array_equal(build.run(frames, backend=backend, steps=11).outputs["l"], wanted)
    assert build.verify(frames, backends=("numpy",), steps=11).ok
    fails("SPK006", lambda: build.run(frames), "has shape (3, 4), not (batch, T, 4)", "steps=T (--steps T)")
    fails("SPK006", lambda: build.run(frames[:, :3], steps=11), "has shape (3, 3), not (batch, T, 4)")
    fails("SPK001", lambda: spikec.compile(graph, target="loihi2", steps=11), "steps belongs to a torch model")


def test_frames_beside_an_input_that_changes() -> None:
    weight = np.random.default_rng(0).normal(0.3, 0.5, (5, 4)).astype(np.float32)
    both = (nets.dense("d", "in", weight), nets.dense("e", "more", weight), Add(name="s", inputs=(Ref("d"), Ref("e"))))
    graph = nets.graph(nets.spikes((4,)), nets.values((4,), "more"), *both, nets.leaky("l", "s"))
    build = spikec.compile(graph, target="reference")
    x, frame = nets.random_spikes((3, 11, 4), 0), np.random.default_rng(1).random((3, 4)).astype(np.float32)
    wanted = build.run([x, np.repeat(frame[:, None], 11, axis=1)]).outputs["l"]
    np.testing.assert_array_equal(build.run([x, frame], steps=11).outputs["l"], wanted)
