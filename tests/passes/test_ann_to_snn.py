"""Networks of activations made to spike: what a rate is, exactly; what the layers cost; what has no spiking counterpart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import sir
from torch import nn

import spikec
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.text import print_graph
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.ann_to_snn import AnnToSnn, activation

RELU = "neuron @relu(x) { y = max(x, 0) emit y }"
TWO_LAYERS = """
  %x = input : value<2>
  %a = dense(%x) weight=[[1.0, 0.0], [0.5, 0.5]] bias=[0.0, 0.25] : value<2>
  %r = neuron @relu(%a) : value<2>
  %y = dense(%r) weight=[[1.0, -1.0]] : value<1>
  output %y
"""


def frames(values: Any, steps: int) -> Array:
    """(samples, steps, *shape), every step the same."""
    array = np.asarray(values, np.float32)
    return np.broadcast_to(array[:, None], (len(array), steps, *array.shape[1:]))


def convert(graph: Graph, values: Any, steps: int = 64, **options: Any) -> tuple[Graph, Ledger]:
    ledger = Ledger()
    ledger.pass_name = "ann-to-snn"
    (source,) = graph.inputs
    return AnnToSnn(calibrate={source.name: frames(values, steps)}, **options).run(graph, ledger), ledger


def test_before_and_after() -> None:
    after, ledger = convert(sir(TWO_LAYERS, RELU), [[1.0, 0.5], [0.5, 2.0]], steps=4, percentile=100.0)
    assert print_graph(after)[0] == (
        """sir 1

neuron @integrate_fire(a) params(theta) state(v = 0) {
  v = v + a
  s = v >= theta
  v = select(s, v - theta, v)
  emit s
}

neuron @integrate(a) state(v = 0) {
  v = v + a
  emit v
}

graph @g level=float {
  %x = input : value<2>
  %a = dense(%x) weight=[[1.0, 0.0], [0.5, 0.5]] bias=[0.0, 0.25] : value<2>
  %r = neuron @integrate_fire(%a) theta=1.5 init.v=0.75 : spike<2>
  %y = dense(%r) weight=[[1.5, -1.5]] : value<1>
  %y_membrane = neuron @integrate(%y) : value<1>
  output y = %y_membrane
}
"""
    )
    assert [entry.text() for entry in ledger] == [
        "ann-to-snn: convention: activations became integrate-and-fire neurons: a spike a step, reset by subtraction, v begins at 0.5 of the "
        "threshold, which is the 100th percentile of the positive activations of 2 samples",
        "ann-to-snn: convention: the output y is a membrane that sums up over the steps; divided by their number it is the network's output",
        "ann-to-snn: approximation: %r: rates instead of activations, 4 steps, 2 samples; saturated activations (0 of 4, at most 0); "
        "relative error 0.102062; threshold 1.5; spikes a neuron and step 0.6875",
        "ann-to-snn: approximation: the output y against that of the activations, 4 steps, 2 samples; relative error 0.125",
    ]


@given(
    st.lists(st.integers(0, 64), min_size=1, max_size=6),
    st.sampled_from([1.0, 2.0, 0.5]),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.25, 0.5]),
)
@settings(deadline=None, max_examples=60)
def test_the_count_is_the_rounded_sum(currents: list[int], theta: float, steps: int, initial: float) -> None:
    """A neuron that gets a at every step, 0 <= a <= theta, has fired floor(T a / theta + initial) times: in these numbers exactly."""
    size = len(currents)
    graph = sir(f"  %x = input : value<{size}>\n  %r = neuron @relu(%x) : value<{size}>\n  output %r", RELU)
    data = np.asarray([currents], np.float32) / 64 * theta
    calibrate = np.concatenate([data, np.full_like(data, theta)])
    after, _ = convert(graph, calibrate, steps, percentile=100.0, initial=initial)
    counts = interpret(after, {"x": frames(data, steps)}).outputs["r"].sum(axis=1)
    assert np.array_equal(counts, np.floor(steps * data / theta + initial))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["single", "multi"]))
@settings(deadline=None, max_examples=30)
def test_the_error_of_a_layer_stays_within_half_a_spike(seed: int, fire: str) -> None:
    """|rate - activation| <= theta / (2 T) + rounding, hence the output within the sum of the weights times that."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(3, 7)).astype(np.float32)
    bias = rng.normal(size=7).astype(np.float32)
    text = f"""
  %x = input : value<5>
  %a = dense(%x) weight={first.tolist()} bias={bias.tolist()} : value<7>
  %r = neuron @relu(%a) : value<7>
  %y = dense(%r) weight={second.tolist()} : value<3>
  output %y
"""
    graph, steps = sir(text, RELU), 50
    data = rng.normal(size=(6, 5)).astype(np.float32)
    after, _ledger = convert(graph, data, steps, percentile=100.0, fire=fire)
    theta = float(after["r"].params["theta"])
    wanted = interpret(graph, {"x": data[:, None]}).outputs["y"][:, 0]
    found = interpret(after, {"x": frames(data, steps)}).outputs["y"][:, -1] / steps
    bound = np.abs(second).sum(axis=1) * (theta / (2 * steps)) + 1e-3
    assert (np.abs(found - wanted) <= bound).all()
    assert found.any()


def rates(after: Graph, data: Array, steps: int, name: str) -> Array:
    return interpret(after, {"x": frames(data, steps)}, record=[name]).records[name].sum(axis=1)


@pytest.mark.parametrize("fire", ["single", "multi"])
def test_a_maximum_pool_adds_no_error(fire: str) -> None:
    text = """
  %x = input : value<2x4x6>
  %r = neuron @relu(%x) : value<2x4x6>
  %p = pool(%r) mode=max kernel=(2, 3) stride=(2, 2) padding=(1, 0) : value<2x3x2>
  output %p
"""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(5, 2, 4, 6)).astype(np.float32)
    graph = sir(text, RELU)
    for steps in (1, 7, 40):
        after, _ = convert(graph, data, steps, percentile=90.0, fire=fire)
        counts = rates(after, data, steps, "r")
        pooled = interpret(after, {"x": frames(data, steps)}).outputs["p"]
        wanted = interpret(graph, {"x": np.maximum(counts, 0)[:, None].astype(np.float32)}).outputs["p"][:, 0]
        if fire == "single":
            assert np.array_equal(pooled.sum(axis=1), wanted)
            assert set(np.unique(pooled)) <= {0, 1}
        else:  # the membrane of the output sums up what the spikes are worth
            assert np.allclose(pooled[:, -1], wanted * after["r"].params["theta"])


def close(graph: Graph, data: Array, tolerance: float = 0.02, **options: Any) -> tuple[Graph, Ledger]:
    """The converted network comes to what the activations say, for every output."""
    steps = 400
    after, ledger = convert(graph, data, steps, percentile=100.0, **options)
    (source,) = graph.inputs
    wanted = interpret(graph, {source.name: np.asarray(data, np.float32)[:, None]}).outputs
    found = interpret(after, {source.name: frames(data, steps)}).outputs
    for name, array in wanted.items():
        final = found[name][:, -1] / steps
        if after.type_of(after.output(name)).kind == "spike":
            final = found[name].sum(axis=1) * after["r"].params["theta"] / steps
        assert np.abs(final - array[:, 0]).max() <= tolerance * max(1.0, float(np.abs(array).max())), name
    return after, ledger


class Residual(nn.Module):
    """Skip connections, concatenation, both pools, a batch norm, and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.two = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.three = nn.Conv2d(8, 3, 1)
        self.out = nn.Linear(12, 3)
        with torch.no_grad():
            self.norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
            self.norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0, 0.1]))
            self.norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.3]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.norm(self.one(x)))
        b = torch.relu(self.two(a) + a)
        c = nn.functional.max_pool2d(torch.cat([a, b], 1), 2)
        d = nn.functional.relu6(nn.functional.max_pool2d(self.three(c), 2))
        return self.out(torch.flatten(d, 1))


def test_a_residual_network_from_torch() -> None:
    rng = np.random.default_rng(1)
    data = rng.random((6, 1, 8, 8)).astype(np.float32)
    net = Residual().eval()
    graph = spikec.trace(net, torch.tensor(data[:2]), time_axis=None, batch_axis=0)
    ledger = Ledger()
    folded = spikec.pipeline.load_pass("fold-scale")().run(graph, ledger)
    assert [entry.kind for entry in ledger] == ["exact"]
    assert not any(node.op == "scale" for node in folded.nodes)
    after, ledger = close(folded, data)
    assert [entry.node for entry in ledger if "became a sum" in entry.what] == ["function_2"]
    assert any("moved before the maximum pool" in entry.what for entry in ledger)
    assert {node.program.name for node in after.neurons} == {"integrate_fire", "count", "rise", "integrate"}
    with torch.no_grad():
        wanted = net(torch.tensor(data)).numpy()
    assert np.allclose(interpret(folded, {"x": data[:, None]}).outputs[graph.outputs[0][0]][:, 0], wanted, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "y = max(a + b, 0)",
        "m = 2 * a - b / 4 + 0.25 y = max(m, 0)",
        "y = min(max(-(a - p) * 0.5 + b * p, 0), 3)",
        "y = select(a * p > 0, a * p, 0)",
    ],
)
def test_a_relu_of_a_sum_is_taken_apart(body: str) -> None:
    inputs = "a, b" if "b" in body else "a"
    program = f"neuron @f({inputs}) params(p) {{ {body} emit y }}"
    operands = "%x, %c" if "b" in body else "%x"
    text = f"""
  %x = input : value<2x2>
  %c = scale(%x) factor=-3.0 : value<2x2>
  %r = neuron @f({operands}) p=[1.0, -2.0] : value<2x2>
  %y = reshape(%r) shape=(4,) : value<4>
  output %y
"""
    data = np.random.default_rng(7).normal(size=(5, 2, 2)).astype(np.float32)
    close(sir(text, program), data)


def test_spikes_that_are_worth_different_things_meet() -> None:
    """Sums, joins and reshapes of two layers: their thresholds differ, and the weights behind take in what each is worth."""
    text = """
  %x = input : value<2x3>
  %a = scale(%x) factor=4.0 : value<2x3>
  %r = neuron @relu(%x) : value<2x3>
  %s = neuron @relu(%a) : value<2x3>
  %sum = add(%r, %s) : value<2x3>
  %twice = add(%r, %r) : value<2x3>
  %cat = concat(%r, %s) axis=0 : value<4x3>
  %flat = reshape(%cat) shape=(12,) : value<12>
  %back = gather(%cat) indices=i64[5, 0, 11] : value<3>
  %small = pool(%cat) mode=average kernel=(3,) stride=(3,) padding=(0,) : value<4x1>
  %mixed = reshape(%cat) shape=(3, 4) : value<3x4>
  %pooled = pool(%mixed) mode=sum kernel=(2,) stride=(2,) padding=(0,) : value<3x2>
  %tall = dense(%mixed) weight=[[1.0, 1.0, -1.0, 0.5]] : value<3x1>
  %one = dense(%flat) weight=[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -7.0, 8.0, 9.0, 1.0, 2.0, 3.0]] : value<1>
  %two = sparse(%flat) weight=[1.0, -1.0, 2.0] indices=i64[0, 7, 11] indptr=i64[0, 2, 3] fan_in=12 : value<2>
  %three = conv(%cat) weight=[[[1.0], [0.5]], [[2.0], [-1.0]]] groups=2 : value<2x3>
  output %sum
  output %twice
  output %back
  output %small
  output %pooled
  output %tall
  output %one
  output %two
  output %three
"""
    data = np.random.default_rng(5).normal(size=(4, 2, 3)).astype(np.float32)
    close(sir(text, RELU), data, tolerance=0.03)


def test_readouts() -> None:
    graph, data = sir(TWO_LAYERS, RELU), [[1.0, 0.5], [0.5, 2.0], [4.0, 0.0]]
    wanted = interpret(graph, {"x": np.asarray(data, np.float32)[:, None]}).outputs["y"][:, 0]
    after, ledger = convert(graph, data, 100, readout="current", percentile=100.0)
    assert np.abs(interpret(after, {"x": frames(data, 100)}).outputs["y"].mean(axis=1) - wanted).max() < 0.06
    after, ledger = convert(graph, data, 100, readout="count", percentile=100.0)
    assert "is spikes, each worth" in "".join(entry.what for entry in ledger)
    spikes = interpret(after, {"x": frames(data, 100)}).outputs["y"]
    assert set(np.unique(spikes)) == {0, 1}
    theta = float(wanted.max())
    assert np.abs(spikes.sum(axis=1) * theta / 100 - np.maximum(wanted, 0)).max() < 0.1
    after, _ = convert(graph, data, 100, reset="zero")
    assert "integrate_fire_zero" in str(after)


def test_an_activation_with_an_end_saturates_there() -> None:
    graph = sir(
        "  %x = input : value<3>\n  %r = neuron @clip(%x) : value<3>\n  output %r",
        "neuron @clip(x) { y = min(max(x, 0), 6) emit y }",
    )
    data = [[3.0, 6.0, 60.0]]
    for fire in ("single", "multi"):
        after, _ledger = convert(graph, data, 10, percentile=100.0, fire=fire)
        assert interpret(after, {"x": frames(data, 10)}).outputs["r"].sum(axis=1).tolist() == [[5, 10, 10]]


@pytest.mark.parametrize(
    ("program", "high"),
    [
        ("y = max(x, 0)", "none"), ("y = max(0, x)", "none"), ("y = max(x, 0.0)", "none"), ("y = select(x > 0, x, 0)", "none"),
        ("m = max(x, 0) y = min(m, 6)", 6.0), ("y = max(min(x, 2), 0)", 2.0), ("y = min(6, max(0, x))", 6.0), ("y = min(min(max(x, 0), 6), 4)", 4.0),
        ("y = max(x, 1)", None), ("y = min(max(x, -1), 6)", None), ("y = max(x, 0.1 * x)", None), ("y = abs(x)", None),
        ("y = x * max(x, 0)", None), ("y = select(x > 1, x, 0)", None), ("y = max(min(x, -2), 0)", None), ("y = min(max(x, 0), -1)", None),
        ("y = max(x, t)", None), ("y = select(x > 0, 0, x)", None),
    ],
)  # fmt: skip
def test_what_counts_as_relu(program: str, high: Any) -> None:
    graph = sir("  %x = input : value<1>\n  %r = neuron @p(%x) : value<1>\n  output %r", f"neuron @p(x) {{ {program} emit y }}")
    found = activation(graph.neurons[0])
    assert (found and (found.high or "none")) == high


def test_labels_give_accuracies_over_the_steps() -> None:
    graph = sir(TWO_LAYERS.replace("[[1.0, -1.0]]", "[[1.0, -1.0], [-1.0, 1.0]]").replace(": value<1>", ": value<2>"), RELU)
    data = np.asarray([[1.0, 0.0], [0.0, 4.0], [2.0, 0.5]], np.float32)
    _, ledger = convert(graph, data, 20, percentile=100.0, labels=np.asarray([0, 1, 1]))
    (entry,) = [entry for entry in ledger if "accuracy" in entry.what]
    assert entry.measured["with activations"] == pytest.approx(2 / 3)
    assert entry.measured["after 20 steps"] == pytest.approx(2 / 3)
    assert list(entry.measured) == ["with activations", *(f"after {n} steps" for n in (1, 2, 5, 10, 20))]


def test_what_is_not_constant_counts_by_its_mean() -> None:
    """Spikes of an encoder: the activations are those of the mean frame, the measurement runs what was given."""
    graph = sir(TWO_LAYERS.replace("value<2>\n  %a", "spike<2>\n  %a"), RELU)
    spikes = (np.random.default_rng(0).random((4, 200, 2)) < [0.25, 0.75]).astype(np.float32)
    ledger = Ledger()
    AnnToSnn(calibrate={"x": spikes}).run(graph, ledger)
    (error,) = [entry.measured["relative error"] for entry in ledger if entry.node == "r"]
    assert 0 < error < 0.05


def refused(graph: Graph, **options: Any) -> str:
    with pytest.raises(CompileError) as caught:
        convert(graph, np.ones((1, *graph.inputs[0].type.shape)), **options)
    return str(caught.value)


def test_what_stands_against_it_is_told_at_once() -> None:
    text = """
  %x = input : value<2>
  %a = dense(%x[t-1]) weight=[[1.0, 0.0], [0.5, 0.5]] : value<2>
  %r = neuron @tent(%a) : value<2>
  %v = neuron @leak(%r) : value<2>
  output %v
"""
    programs = "neuron @tent(x) { y = abs(x) emit y }\nneuron @leak(x) state(v = 0) { v = v + x emit v }"
    assert refused(sir(text, programs)).splitlines() == [
        "error[SPK220]: %a: reads an earlier step; only feed-forward networks are converted",
        "error[SPK220]: %r: the activation @tent is not ReLU; rates are at least 0 and rise in proportion",
        "  fix: train with ReLU (or clip at 0 and a number above it), or keep the activations: --no-spiking",
        "error[SPK220]: %v: @leak has a state: the network spikes already",
    ]
    pool = """
  %x = input : value<1x4>
  %a = conv(%x) weight=[[[1.0]]] : value<1x4>
  %p = pool(%a) mode=max kernel=(2,) : value<1x2>
  %b = scale(%p) factor=2.0 : value<1x2>
  output %b
"""
    assert "the maximum of numbers that may be negative" in refused(sir(pool))


def test_options_are_checked() -> None:
    graph = sir(TWO_LAYERS, RELU)
    for options, message in (
        ({"fire": "twice"}, "fire is single or multi, not 'twice'"),
        ({"reset": "none"}, "reset is subtract or zero"),
        ({"readout": "rate"}, "readout is membrane or count or current"),
        ({"fire": "multi", "reset": "zero"}, "a neuron that fires several times a step resets by subtraction"),
        ({"percentile": 0.0}, "percentile is above 0 and at most 100, not 0.0"),
        ({"initial": 1.0}, "initial is a part of the threshold, at least 0 and below 1, not 1.0"),
        ({"measured": 0}, "measured is at least 1"),
    ):
        assert message in refused(graph, **options)
    with pytest.raises(CompileError, match="needs calibration data") as caught:
        AnnToSnn().run(graph, Ledger())
    assert caught.value.code == "SPK001"


def test_the_driver_converts_where_it_is_asked_to() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    data = np.random.default_rng(2).random((20, 6)).astype(np.float32)
    labels = np.arange(20) % 3
    build = spikec.compile(net, data[:2], target="host", spiking=True, calibrate=data, labels=labels, steps=40)
    assert build.stage_names == ["input", "fold-scale", "ann-to-snn", "canonicalise"]
    other = spikec.compile(build, target="rpi4", calibrate=data, steps=40)  # for another target it still spikes
    assert other.stage_names == build.stage_names
    assert build.verify(frames(data[:3], 40), backends=["numpy"]).ok
    with torch.no_grad():
        wanted = net(torch.tensor(data)).numpy()
    found = build.run(frames(data, 40)).outputs
    assert np.abs(next(iter(found.values()))[:, -1] / 40 - wanted).max() < 0.1
    # An option of the conversion asks for it; data with a time axis of its own is taken as it is; strict does not mind.
    assert (
        "ann-to-snn"
        in spikec.compile(net, data[:2], target="host", readout="count", calibrate=frames(data, 3), strict=True).stage_names
    )
    assert spikec.compile(net, data[:2], target="host", time_axis=None).stage_names == ["input", "canonicalise"]
    for options, message in (
        ({"spiking": True}, "needs calibration data"),
        ({"spiking": True, "calibrate": data, "steps": 0}, "steps is a whole number of at least 1"),
        ({"spiking": False, "percentile": 99.0, "time_axis": None}, "unknown option 'percentile'"),
        ({"spiking": True, "calibrate": data[:, :5]}, "has shape"),
    ):
        with pytest.raises(CompileError, match=message):
            spikec.compile(net, data[:2], target="host", **options)


@pytest.mark.parametrize("options", [{}, {"readout": "count"}, {"readout": "current", "encode": "rate"}])
def test_a_converted_network_reaches_loihi2_in_integers(options: dict[str, Any]) -> None:
    """The class is that of the activations, for all but a few of the random frames; engines agree to the last bit."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    data = np.random.default_rng(2).random((40, 6)).astype(np.float32)
    build = spikec.compile(net, data[:2], target="loihi2", spiking=True, calibrate=data, steps=100, measured=4, **options)
    assert build.graph().level == "placed"
    x = frames(data, 100)
    assert build.verify(x[:4], backends=["numpy"]).ok
    with torch.no_grad():
        wanted = net(torch.tensor(data)).numpy()
    clear = np.diff(np.sort(wanted, axis=1)[:, -2:]).ravel() > (0.1 if "encode" in options else 0.03)
    (found,) = build.run(x).outputs.values()
    total = found[:, -1] if not options else found.sum(axis=1)
    if options.get("readout") == "count":
        clear &= wanted.max(axis=1) > 0.05
    assert clear.sum() >= 10
    assert (total.argmax(axis=1) == wanted.argmax(axis=1))[clear].mean() >= 0.95
