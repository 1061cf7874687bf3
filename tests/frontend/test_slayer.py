"""Small .net files against SLAYER's equations, written out again here in plain NumPy and torch, and files that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spikec.diagnostics import CompileError
from spikec.frontend.slayer import LAYERS, OPTIONS, read_net
from spikec.frontend.slayer.neurons import NEURONS
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Conv, Dense
from spikec.ir.text import parse_graph, print_graph
from spikec.ledger import Ledger

CUBA = {"type": "CUBA", "iDecay": 1024, "vDecay": 128, "vThMant": 40, "refDelay": 1, "gradedSpike": False}
SDNN = {"type": "SDNN", "activation": "relu", "vThMant": 3}
PASS = {**CUBA, "iDecay": 4096, "vDecay": 4096, "vThMant": 0}  # fires where its input is positive
Fields = Mapping[str, Any]


def write(path: Path, *layers: Fields, **others: Any) -> Path:
    """A file as SLAYER's exporter lays it out."""
    with h5py.File(path, "w") as file:
        for index, layer in enumerate(layers):
            put(file.create_group(f"layer/{index}"), layer)
        put(file, others)
    return path


def put(group: Any, values: Fields) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            put(group.create_group(key), value)
        elif key == "type" and "neuron" not in group.name:
            group.create_dataset(key, (1,), "S10", [str(value).encode()])
        else:
            group.create_dataset(key, data=value)


def dense(weight: Any, neuron: Fields | None = CUBA, **more: Any) -> dict[str, Any]:
    weight = np.asarray(weight, np.float32)
    out, fan_in = weight.shape
    fields = {"type": "dense", "shape": np.array([out]), "inFeatures": fan_in, "outFeatures": out, "weight": weight, **more}
    return fields if neuron is None else {**fields, "neuron": neuron}


def conv(weight: Any, shape: tuple[int, ...], neuron: Fields = PASS, **more: Any) -> dict[str, Any]:
    weight = np.asarray(weight, np.float32)
    fields = {"type": "conv", "shape": np.array(shape), "weight": weight, "neuron": neuron, "stride": [1, 1], "padding": [0, 0]}
    fields |= {"dilation": [1, 1], "groups": 1, "kernelSize": weight.shape[2:4], "outChannels": weight.shape[0], **more}
    return {**fields, "inChannels": weight.shape[1] * fields["groups"]}


def ask(graph: Graph, data: Any, *record: str) -> Any:
    """What the interpreter gives for one sample: the output, or the recorded wires."""
    done = interpret(graph, {"input": np.asarray(data)[None]}, record=record)
    return [done.records[name][0] for name in record] if record else next(iter(done.outputs.values()))[0]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


EYE = dense(np.eye(2))


# ------------------------------------------------------------------------------------------- the equations, once more


def rtz(x: Any, bits: int) -> Any:
    return np.sign(x) * (np.abs(x) >> bits)


class Lif:
    """The chip's neuron; arrays of parameters are per channel."""

    def __init__(self, neuron: Fields, bias: Any = 0) -> None:
        self.p, self.bias = neuron, bias
        self.u: Any = 0
        self.v: Any = 0

    def step(self, a: Any) -> Any:
        def along(x: Any) -> Any:
            x = np.asarray(x, np.int64)
            return x.reshape(-1, *(1,) * (np.ndim(a) - 1)) if x.ndim else x

        u = rtz(self.u * (4096 - along(self.p["iDecay"])), 12) + a * 64
        u = np.where(u > 1 << 23, u - (1 << 24), np.where(u <= -(1 << 23), u + (1 << 24), u))
        v = rtz(self.v * (4096 - along(self.p["vDecay"])), 12) + u + along(self.bias) * 64
        v = np.clip(v, -(2**23 - 1), 2**23 - 1)
        s = v > along(self.p["vThMant"]) * 64
        self.u, self.v = u, np.where(s, 0, v)
        return s.astype(np.int64)


class Slayer:
    """SLAYER's sigma-delta neuron, state by state: sum, activation, difference with residue, rounded message."""

    def __init__(self, threshold: int, bias: Any = 0, relu: bool = True, sigma: bool = True) -> None:
        self.th, self.bias, self.relu, self.accumulate = threshold << 12, np.asarray(bias) << 12, relu, sigma
        self.sum: Any = 0
        self.before: Any = 0
        self.residue: Any = 0

    def step(self, a: Any) -> Any:
        if self.accumulate:
            self.sum = self.sum + a
            x = self.sum + self.bias
            x = np.maximum(x, 0) if self.relu else x
        else:
            x = a << 12
        difference = x - self.before + self.residue
        sent = np.where(np.abs(difference) >= self.th, difference, 0)
        self.residue, self.before = difference - sent, x
        return sent >> 6


# -------------------------------------------------------------------------------------------------------------- dense


@st.composite
def lif_nets(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any], int]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    seed = rng(draw(st.integers(0, 2**32 - 1)))
    layers = []
    for fan_in, out in pairwise(sizes):
        reach = int(seed.choice([4, 254, 100_000]))
        neuron = {**CUBA, "type": str(seed.choice(["CUBA", "LOIHI"])), "vThMant": int(seed.integers(0, 300))}
        for key in ("iDecay", "vDecay"):
            neuron[key] = seed.integers(0, 4097, out) if seed.random() < 0.5 else int(seed.integers(0, 4097))
        neuron["iDecay"] = np.maximum(neuron["iDecay"], 200)  # else u could leave 24 bits by more than one turn
        more = {"bias": seed.integers(-300, 300, out).astype(np.float32)} if seed.random() < 0.5 else {}
        layers.append(dense(seed.integers(-reach, reach, (out, fan_in)), neuron, **more))
    options: dict[str, Any] = {"delay_shift": draw(st.booleans())}
    if draw(st.booleans()):
        options |= {"reset_interval": draw(st.integers(1, 5)), "reset_offset": draw(st.integers(0, 7))}
    return layers, options, draw(st.integers(0, 2**32 - 1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lif_nets())
def test_dense_lif_networks_step_by_step(tmp_path: Path, case: tuple[list[dict[str, Any]], dict[str, Any], int]) -> None:
    layers, options, seed = case
    data = rng(seed).integers(0, 2, (12, layers[0]["inFeatures"]))
    graph = read_net(write(tmp_path / "x.net", *layers), **options)
    assert graph.level == "fixed"
    assert parse_graph(*print_graph(graph)) == graph
    got = ask(graph, data, *(f"layer{n}" for n in range(len(layers))))
    populations = [Lif(layer["neuron"], layer.get("bias", 0)) for layer in layers]
    weights = [layer["weight"].astype(np.int64) for layer in layers]
    before: list[Any] = [np.zeros(len(w), np.int64) for w in weights]
    for t, x in enumerate(data):
        now = []
        for k, population in enumerate(populations):
            phase = options.get("reset_offset", 0) + k * options["delay_shift"]
            interval = options.get("reset_interval")
            if interval and t % interval == phase % interval:
                population.u, population.v = 0, 0
            source = x if k == 0 else before[k - 1] if options["delay_shift"] else now[k - 1]
            now.append(population.step(weights[k] @ source))
            assert (got[k][t] == now[k]).all()
        before = now


def test_a_flat_weight_of_one_row_and_a_five_axis_one_are_read(tmp_path: Path) -> None:
    """As in PilotNet's last layer, and as torch holds a dense weight."""
    row = {**dense([[2, 4, 6]]), "weight": np.array([2.0, 4.0, 6.0]), "shape": np.array([1, 1, 1])}
    wide = {**dense([[2, 4, 6]]), "weight": np.array([2.0, 4.0, 6.0]).reshape(1, 3, 1, 1, 1)}
    for layer in (row, wide):
        node = read_net(write(tmp_path / "x.net", layer))["layer0_sum"]
        assert isinstance(node, Dense) and node.weight.tolist() == [[2, 4, 6]] and node.weight.dtype == np.int16


def test_recurrent_synapses_bring_the_spikes_of_the_step_before(tmp_path: Path) -> None:
    weight, back = rng(0).integers(-60, 90, (5, 4)), rng(1).integers(-60, 60, (5, 5))
    layer = {**dense(weight), "type": "dense_rec", "weight_rec": back.astype(np.float32)}
    data = rng(2).integers(0, 2, (30, 4))
    got = ask(read_net(write(tmp_path / "x.net", layer)), data)
    population, before = Lif(CUBA), np.zeros(5, np.int64)
    for t, x in enumerate(data):
        before = population.step(weight @ x + back @ before)
        assert (got[t] == before).all()
    assert got.any() and not got.all()


# ------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("axes", [4, 5])
@pytest.mark.parametrize(
    ("groups", "stride", "padding", "dilation"),
    [(1, (1, 1), (0, 0), (1, 1)), (2, (2, 1), (1, 0), (1, 1)), (1, (1, 2), (2, 1), (2, 1)), (4, (1, 1), (1, 1), (1, 2))],
)
def test_conv_equals_torch(tmp_path: Path, axes: int, groups: int, stride: Any, padding: Any, dilation: Any) -> None:
    """Rectangular images and kernels, so that no pair of (y, x) numbers can be swapped unseen."""
    import torch

    weight = rng(groups).integers(-100, 100, (4, 4 // groups, 3, 2))
    data = rng(5).integers(0, 2, (3, 4, 7, 9))
    wanted = torch.nn.functional.conv2d(
        torch.tensor(data, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64), None, stride, padding, dilation, groups
    ).numpy()
    bias = np.array([3, -5, 0, 9])
    kernel = weight if axes == 4 else weight[..., None]
    more = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
    layer = {**conv(kernel, wanted.shape[1:], CUBA, **more), "kernelSize": [3, 2]}
    start = {"type": "input", "shape": [4, 7, 9]}
    graph = read_net(write(tmp_path / "x.net", start, layer), delay_shift=False)
    sums, spikes = ask(graph, data, "layer1_sum", "layer1")
    assert (sums == wanted).all()
    population = Lif(CUBA, bias)
    assert all((spikes[t] == population.step(wanted[t].astype(np.int64))).all() for t in range(3))


def test_one_number_for_both_axes_and_a_third_for_time(tmp_path: Path) -> None:
    start = {"type": "input", "shape": [1, 5, 5]}
    layer = {**conv(np.ones((1, 1, 3, 3)), (1, 3, 3)), "stride": 2, "padding": [1, 1, 0], "dilation": [1, 1, 1], "kernelSize": 3}
    node = read_net(write(tmp_path / "x.net", start, layer))["layer1_sum"]
    assert isinstance(node, Conv)
    assert (node.stride, node.padding, node.dilation) == ((2, 2), (1, 1), (1, 1))


def slayer_pool(data: Any, weight: Any) -> Any:
    """What SLAYER does: zeros appended, channels and rows merged into one axis, a convolution over it."""
    import torch

    x = torch.tensor(data, dtype=torch.float64)
    x = torch.nn.functional.pad(x, (0, x.shape[3] % weight.shape[3], 0, x.shape[2] % weight.shape[2]))
    merged = x.reshape(x.shape[0], 1, -1, x.shape[3])
    out = torch.nn.functional.conv2d(merged, torch.tensor(weight, dtype=torch.float64), stride=weight.shape[2:])
    return out.reshape(x.shape[0], x.shape[1], -1, out.shape[3]).numpy()


@pytest.mark.parametrize(
    ("kernel", "size"), [((2, 2), (6, 4)), ((2, 2), (7, 5)), ((2, 3), (6, 9)), ((3, 2), (6, 5)), ((2, 3), (4, 8))]
)
def test_pool_equals_slayer(tmp_path: Path, kernel: tuple[int, int], size: tuple[int, int]) -> None:
    weight = rng(1).integers(1, 50, (1, 1, *kernel))
    data = rng(2).integers(0, 2, (4, 3, *size))
    wanted = slayer_pool(data, weight)
    layer = {"type": "pool", "shape": wanted.shape[1:], "weight": weight[..., None].astype(np.float32), "neuron": CUBA}
    layer |= {"kernelSize": kernel, "stride": kernel, "padding": [0, 0], "dilation": [1, 1]}
    graph = read_net(write(tmp_path / "x.net", {"type": "input", "shape": [3, *size]}, layer), delay_shift=False)
    assert (ask(graph, data, "layer1_sum")[0] == wanted).all()


@pytest.mark.parametrize(
    ("groups", "stride", "padding", "dilation"),
    [(1, (1, 1), (0, 0), (1, 1)), (2, (2, 3), (1, 0), (1, 1)), (1, (3, 1), (0, 1), (1, 2))],
)
def test_transposed_conv_equals_torch(tmp_path: Path, groups: int, stride: Any, padding: Any, dilation: Any) -> None:
    import torch

    weight = rng(3).integers(-9, 9, (4, 3, 3, 2))
    data = rng(4).integers(0, 2, (3, 4, 5, 6))
    wanted = torch.nn.functional.conv_transpose2d(
        torch.tensor(data, dtype=torch.float64),
        torch.tensor(weight, dtype=torch.float64),
        None,
        stride,
        padding,
        0,
        groups,
        dilation,
    ).numpy()
    layer = {**conv(weight, wanted.shape[1:], stride=stride, padding=padding, dilation=dilation), "type": "convT"}
    layer |= {"groups": groups, "inChannels": 4, "outChannels": 3 * groups}
    graph = read_net(write(tmp_path / "x.net", {"type": "input", "shape": [4, 5, 6]}, layer), delay_shift=False)
    assert (ask(graph, data, "layer1_sum")[0] == wanted).all()


def test_unpool_repeats_every_element(tmp_path: Path) -> None:
    weight = np.array([[[[1, 2, 3], [4, 5, 6]]]])
    layer = {"type": "unpool", "shape": [2, 6, 12], "weight": weight, "neuron": PASS, "kernelSize": [2, 3]}
    layer |= {"stride": [2, 3], "padding": [0, 0], "dilation": [1, 1]}
    data = rng(6).integers(0, 2, (3, 2, 3, 4))
    graph = read_net(write(tmp_path / "x.net", {"type": "input", "shape": [2, 3, 4]}, layer), delay_shift=False)
    assert (ask(graph, data, "layer1_sum")[0] == np.kron(data, weight)).all()


def test_flatten_is_in_the_order_channel_row_column(tmp_path: Path) -> None:
    flat = {"type": "flatten", "shape": [24, 1, 1]}
    eye = dense(np.eye(24), PASS)
    graph = read_net(write(tmp_path / "x.net", {"type": "input", "shape": [2, 3, 4]}, flat, eye), delay_shift=False)
    data = rng(7).integers(0, 2, (3, 2, 3, 4))
    assert (ask(graph, data) == data.reshape(3, 24)).all()


def test_shapes_may_be_declared_in_the_other_order(tmp_path: Path) -> None:
    weight = rng(8).integers(-5, 9, (3, 2, 2, 2))
    file = write(tmp_path / "x.net", {"type": "input", "shape": [6, 5, 2]}, conv(weight, (5, 4, 3)))
    graph = read_net(file, shape_order="WHC")
    assert graph.shape_of("input") == (2, 5, 6)
    assert graph.shape_of("layer1") == (3, 4, 5)
    with pytest.raises(CompileError) as caught:
        read_net(write(tmp_path / "y.net", {"type": "input", "shape": [2, 5, 6]}, conv(weight, (5, 4, 3))))
    assert str(caught.value) == (
        "y.net (layer/1/shape): error[SPK309]: 'shape' is (5, 4, 3), but the layer gives (3, 4, 5)\n  fix: shape_order='WHC'"
    )


def test_concat_joins_the_previous_layer_and_the_listed_ones(tmp_path: Path) -> None:
    """A skip connection: what the last layer reads was delayed by two blocks on one way and by three on the other."""
    layers = [dense(np.eye(3) * 2, PASS) for _ in range(3)]
    joined = {"type": "concat", "shape": [6], "layers": [0]}
    graph = read_net(write(tmp_path / "x.net", *layers, joined, dense(np.eye(6), PASS)))
    data = rng(9).integers(0, 2, (9, 3))
    got = ask(graph, data)
    assert (got[3:, :3] == data[:-3]).all()
    assert (got[1:, 3:] == data[:-1]).all()
    ended = read_net(write(tmp_path / "y.net", *layers, joined))
    assert (ask(ended, data)[2:] == np.concatenate([data[:-2], data[2:]], axis=1)).all()


# ------------------------------------------------------------------------------------------------------------- delays


def late(data: Any, delays: Any, extra: int = 0) -> Any:
    """Every element after its own delay."""
    flat = np.asarray(data).reshape(len(data), -1)
    out = np.zeros_like(flat)
    for k, d in enumerate(np.broadcast_to(delays, flat.shape[1:]) + extra):
        out[d:, k] = flat[: len(flat) - d, k]
    return out.reshape(np.shape(data))


def test_axonal_delays_follow_the_blocks_own_neurons(tmp_path: Path) -> None:
    delays = np.array([0, 3, 1], np.float32)
    file = write(tmp_path / "x.net", dense(np.eye(3) * 2, PASS, delay=delays), dense(np.eye(3) * 2, PASS, delay=delays))
    data = rng(10).integers(0, 2, (20, 3))
    graph = read_net(file)
    assert (ask(graph, data) == late(data, 2 * delays.astype(int), 1)).all()
    assert [node.name for node in graph.neurons] == ["layer0", "layer1", "layer1_delayed_relay"]


@pytest.mark.parametrize("how", ["channel", "neuron"])
def test_axonal_delays_before_a_conv(tmp_path: Path, how: str) -> None:
    """One delay a channel becomes the kernel's; one a neuron needs relays."""
    delays = np.array([2, 0]) if how == "channel" else rng(11).integers(0, 4, 2 * 3 * 4)
    first = conv(np.eye(2).reshape(2, 2, 1, 1) * 2, (2, 3, 4), delay=delays.astype(np.float32))
    weight = rng(12).integers(-9, 9, (3, 2, 2, 2))
    graph = read_net(
        write(tmp_path / "x.net", {"type": "input", "shape": [2, 3, 4]}, first, conv(weight, (3, 2, 3))), delay_shift=False
    )
    data = rng(13).integers(0, 2, (9, 2, 3, 4))
    node = graph["layer2_sum"]
    assert isinstance(node, Conv) and (node.delay is not None) == (how == "channel")
    assert ("layer2_sum_delayed" in graph) == (how == "neuron")
    every = np.repeat(delays, 12) if how == "channel" else delays
    moved = late(data, every)
    wanted = sum(np.einsum("oi,tihw->tohw", weight[:, :, y, x], moved[:, :, y : y + 2, x : x + 3]) for y in (0, 1) for x in (0, 1))
    assert (ask(graph, data, "layer2_sum")[0] == wanted).all()


def test_axonal_delays_before_a_pool_of_odd_size_and_through_flatten(tmp_path: Path) -> None:
    first = conv([[[[2]]]], (1, 3, 2), delay=np.arange(6, dtype=np.float32))
    pool = {"type": "pool", "shape": [1, 2, 1], "weight": np.ones((1, 1, 2, 2)), "neuron": PASS, "kernelSize": [2, 2]}
    start = {"type": "input", "shape": [1, 3, 2]}
    data = rng(14).integers(0, 2, (12, 1, 3, 2))
    moved = late(data, np.arange(6))
    graph = read_net(write(tmp_path / "x.net", start, first, pool), delay_shift=False)
    sums = ask(graph, data, "layer2_sum")[0]
    assert (sums[:, 0, :, 0] == np.stack([moved[:, 0, :2].sum((1, 2)), moved[:, 0, 2].sum(1)], 1)).all()
    flat = {"type": "flatten", "shape": [6, 1, 1]}
    graph = read_net(write(tmp_path / "y.net", start, first, flat, dense(np.eye(6), PASS)), delay_shift=False)
    assert (ask(graph, data) == moved.reshape(12, 6)).all()


@pytest.mark.parametrize(
    ("delay", "wanted"),
    [
        ([1, 0], [[1, 1, 1], [0, 0, 0]]),
        ([2, 0, 1], [[2, 0, 1]] * 2),
        (3, [[3] * 3] * 2),
        ([[0, 1, 2], [3, 4, 5]], [[0, 1, 2], [3, 4, 5]]),
    ],
)
def test_synaptic_delays_by_row_by_column_and_by_connection(tmp_path: Path, delay: Any, wanted: Any) -> None:
    graph = read_net(write(tmp_path / "x.net", dense(np.ones((2, 3)), PASS, delay=np.array(delay, np.float32))), delay="synaptic")
    node = graph["layer0_sum"]
    assert isinstance(node, Dense) and node.delay is not None and node.delay.tolist() == wanted


# ---------------------------------------------------------------------------------------------------- other neurons


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), relu=st.booleans(), shift=st.booleans())
def test_sigma_delta_network_equals_slayers_states(tmp_path: Path, seed: int, relu: bool, shift: bool) -> None:
    """Encoder, two layers of which one has a bias, sigma output; differences equal to the threshold are sent."""
    random = rng(seed)
    weights = [random.integers(-40, 60, shape) for shape in ((4, 3), (4, 4), (2, 4))]
    bias = random.integers(-30, 60, 4)
    neuron = {**SDNN, "activation": "relu" if relu else "identity"}
    layers = [
        {"type": "input", "shape": [3], "neuron": {**SDNN, "messageBits": 16}},
        dense(weights[0], neuron, bias=bias.astype(np.float32)),
        dense(weights[1], neuron),
        dense(weights[2], {**SDNN, "sigma_output": True}),
    ]
    data = np.cumsum(random.integers(-4, 5, (25, 3)), axis=0)
    graph = read_net(write(tmp_path / "x.net", *layers), delay_shift=shift)
    got = ask(graph, data, "layer0", "layer1", "layer2", "layer3")
    units = [Slayer(3, sigma=False), Slayer(3, bias, relu), Slayer(3, 0, relu)]
    before, total = [np.zeros(4, np.int64)] * 2, np.zeros(2, np.int64)
    for t, x in enumerate(data):
        encoded = units[0].step(x)
        first = units[1].step(weights[0] @ encoded)
        second = units[2].step(weights[1] @ (before[0] if shift else first))
        total = total + weights[2] @ (before[1] if shift else second)
        for k, wanted in enumerate((encoded, first, second, total)):
            assert (got[k][t] == wanted).all()
        before = [first, second]


def test_corrected_sigma_delta_never_drifts(tmp_path: Path) -> None:
    """The receiver's sum stays within a threshold and a message's last bit of what the sender has; SLAYER's wanders off."""
    data = np.cumsum(rng(15).integers(-9, 10, (400, 1)), axis=0)
    layers = [
        {"type": "input", "shape": [1], "neuron": SDNN},
        dense([[37]], SDNN),
        dense([[41]], SDNN),
        dense([[64]], {**SDNN, "sigma_output": True}),
    ]
    file = write(tmp_path / "x.net", *layers)
    worst = {}
    for form in ("corrected", "slayer"):
        graph = read_net(file, sigma_delta=form, delay_shift=False, states=True)
        sent, sigma = ask(graph, data, "layer3", "layer2.sigma")
        worst[form] = int(np.abs(sent - np.maximum(sigma, 0)).max())
    assert worst["corrected"] < (3 << 12) + 64 <= worst["slayer"]


@pytest.mark.parametrize("kind", ["RF_PHASE", "RF_IZHIKEVICH", "RF_IZ", "RF"])
def test_resonate_and_fire(tmp_path: Path, kind: str) -> None:
    real, imag = rng(16).integers(-60, 60, (6, 4)), rng(17).integers(-60, 60, (6, 4))
    sin = rng(18).integers(500, 2500, 6)
    neuron = {"type": kind, "sinDecay": sin, "cosDecay": 2980, "vThMant": 50, "gradedSpike": False}
    layer = {
        **dense(real, neuron),
        "type": "dense_comp",
        "weight": {"real": real.astype(np.float32), "imag": imag.astype(np.float32)},
    }
    data = rng(19).integers(0, 2, (60, 4))
    got = ask(read_net(write(tmp_path / "x.net", layer)), data)
    re, im = np.zeros(6, np.int64), np.zeros(6, np.int64)
    for t, x in enumerate(data):
        new_re = rtz(2980 * re, 12) - rtz(sin * im, 12) + (real @ x) * 64
        new_im = rtz(sin * re, 12) + rtz(2980 * im, 12) + (imag @ x) * 64
        if kind == "RF_PHASE":
            s = (new_re >= 3200) & (new_im >= 0) & (im < 0)
            re, im = new_re, new_im
        else:
            s = new_im >= 3200
            re, im = np.where(s, 0, new_re), np.where(s, 3199, new_im)
        assert (got[t] == s).all()
    assert got.any()


def test_adaptive_lif(tmp_path: Path) -> None:
    weight, bias = rng(20).integers(-20, 60, (5, 4)), np.array([0, 3, -4, 10, 1])
    neuron = {**CUBA, "type": "ALIF", "thDecay": 200, "refDecay": 900, "vThStep": 7}
    data = rng(21).integers(0, 2, (80, 4))
    got = ask(read_net(write(tmp_path / "x.net", dense(weight, neuron, bias=bias.astype(np.float32)))), data)
    u, v, r, theta = np.zeros(5, np.int64), np.zeros(5, np.int64), np.zeros(5, np.int64), np.full(5, 40 << 6)
    for t, x in enumerate(data):
        u = rtz(u * (4096 - 1024), 12) + (weight @ x + bias) * 64
        v = rtz(v * (4096 - 128), 12) + u
        theta, r = rtz((theta - (40 << 6)) * (4096 - 200), 12) + (40 << 6), rtz(r * (4096 - 900), 12)
        s = v >= theta + r
        r, theta = r + 2 * theta * s, theta + (7 << 6) * s
        assert (got[t] == s).all()
    assert got.any() and theta.max() > 40 << 6


def test_graded_spikes_send_the_membrane(tmp_path: Path) -> None:
    """As SLAYER's floats do: messages are v / 4096, weights w / 64, and the sum is cut to the state's grid toward zero."""
    weights = [rng(22).integers(-40, 90, (4, 3)), rng(23).integers(-40, 90, (2, 4))]
    graded = {**CUBA, "gradedSpike": True}
    file = write(tmp_path / "x.net", dense(weights[0], graded), dense(weights[1]))
    data = rng(24).integers(0, 2, (60, 3))
    got = ask(read_net(file, graded_spikes="voltage", delay_shift=False), data, "layer0", "layer1")
    u, v = [np.zeros(4, np.int64), np.zeros(2, np.int64)], [np.zeros(4, np.int64), np.zeros(2, np.int64)]
    message: Any = np.zeros(4)
    for t, x in enumerate(data):
        for k, source in ((0, x), (1, None)):
            z = weights[k] / 64 @ (source if k == 0 else message)
            u[k] = rtz(u[k] * 3072, 12) + np.trunc(4096 * z).astype(np.int64)
            v[k] = rtz(v[k] * 3968, 12) + u[k]
            s = v[k] > 40 * 64
            wanted = np.where(s, v[k], 0) if k == 0 else s
            assert (got[k][t] == wanted).all()
            message, v[k] = wanted / 4096, np.where(s, 0, v[k])
    assert got[0].max() > 1 and got[1].any()
    plain = {**CUBA}
    assert read_net(file, graded_spikes="unary", name="n") == read_net(
        write(tmp_path / "x.net", dense(weights[0], plain), dense(weights[1])), name="n"
    )


# ---------------------------------------------------------------------------------------------------------- the input


def test_input_neurons_take_the_transformed_data_or_transform_it(tmp_path: Path) -> None:
    start = {"type": "input", "shape": [2], "weight": [36.0], "bias": [34.0], "neuron": CUBA}
    file = write(tmp_path / "x.net", start)
    data = rng(25).integers(-1, 3, (20, 2))
    population = Lif(CUBA)
    wanted = np.stack([population.step(36 * x + 34) for x in data])
    assert (ask(read_net(file), 36 * data + 34) == wanted).all()
    assert (ask(read_net(file, input_transform="file"), data) == wanted).all()
    assert wanted.any()


def test_an_input_block_without_neurons_hands_on_its_data_a_step_later(tmp_path: Path) -> None:
    file = write(tmp_path / "x.net", {"type": "input", "shape": [3]}, dense(np.eye(3), PASS))
    data = rng(26).integers(0, 2, (6, 3))
    assert (ask(read_net(file), data)[1:] == data[:-1]).all()
    assert (ask(read_net(file, delay_shift=False), data) == data).all()


def test_graded_input_has_the_width_asked_for(tmp_path: Path) -> None:
    graph = read_net(write(tmp_path / "x.net", dense([[1, -1]])), input_message_bits=8)
    assert graph.inputs[0].type.kind == "graded"
    assert graph.inputs[0].bounds == (-128, 127)


def test_a_conv_without_an_input_block_needs_the_shape(tmp_path: Path) -> None:
    file = write(tmp_path / "x.net", conv(np.ones((2, 1, 2, 2)), (2, 3, 3)))
    assert read_net(file, input_shape=(1, 4, 4)).shape_of("input") == (1, 4, 4)
    with pytest.raises(CompileError) as caught:
        read_net(file)
    assert str(caught.value) == (
        "x.net (layer/0): error[SPK309]: the file does not tell the input's shape\n  fix: give input_shape=(channels, height, width)"
    )


def test_a_layer_without_neurons_gives_its_sum_or_an_integral_of_it(tmp_path: Path) -> None:
    weight, bias = rng(27).integers(-9, 9, (3, 4)), np.array([1, 0, -2])
    file = write(tmp_path / "x.net", dense(weight, None, bias=bias))
    data = rng(28).integers(0, 2, (10, 4))
    sums = data @ weight.T
    assert (ask(read_net(file), data) == sums + bias).all()
    assert (ask(read_net(file, no_neuron="integrate"), data) == np.cumsum(sums, axis=0) * 64 + bias * 64).all()


# -------------------------------------------------------------------------------------------------------- conventions


def test_every_convention_is_in_the_ledger(tmp_path: Path) -> None:
    start = {"type": "input", "shape": [3], "neuron": {**CUBA, "messageBits": 0}}
    first = dense(np.eye(3), {**CUBA, "refDelay": 3, "newField": 1}, bias=np.array([1, 2, 3]), delay=np.array([1, 0, 0]), extra=1)
    ledger = Ledger()
    ledger.pass_name = "mine"
    options = {"reset_interval": 8, "reset_offset": 15, "ref_delay": "ignore"}
    read_net(write(tmp_path / "x.net", start, first, simulation={"Ts": 1, "tSample": 8}), ledger=ledger, **options)
    assert [entry.text() for entry in ledger] == [
        "read-net: convention: %layer0: the caller feeds 64*x + 0 for raw data x"
        " (input_transform='caller'; without a weight in the file, SLAYER's scale 64)",
        "read-net: convention: %layer0: messages of 0 bits: the width is not enforced, as in Lava's simulation",
        "read-net: convention: u wraps and v saturates at 24 bits, as on Loihi; SLAYER itself has no limit",
        "read-net: convention: spikes are v > threshold, strictly",
        "read-net: convention: %layer0: u and v are cleared before steps t with t mod 8 = 7",
        "read-net: convention: %layer1: fields that are not read: extra, neuron/newField",
        "read-net: convention: %layer1: the refractory delay of 3 steps is ignored (ref_delay='ignore')",
        "read-net: convention: %layer1: the bias joins the membrane at every step, shifted left by 6",
        "read-net: convention: %layer1: u and v are cleared before steps t with t mod 8 = 0",
        "read-net: convention: %layer1: delays are axonal: they follow the block's own neurons (delay='axonal')",
        "read-net: convention: a block's output reaches the next block a step later (delay_shift=True)",
        "read-net: convention: the sampling time Ts in the file has no unit: the length of a step is unknown unless dt is given",
    ]
    assert ledger.pass_name == "mine"


def test_name_dt_and_places(tmp_path: Path) -> None:
    file = write(tmp_path / "my net-1.net", dense(np.eye(2)))
    graph = read_net(file, dt=1e-3)
    assert (graph.name, graph.dt) == ("my_net_1", 1e-3)
    assert str(graph["layer0"].loc) == "my net-1.net (layer/0)"
    assert read_net(str(file), name="other").name == "other"
    assert graph.outputs[0][0] == "layer0"


def test_tables_name_what_is_read() -> None:
    assert [name for name, why in LAYERS.items() if why] == ["average"]
    assert [name for name, why in NEURONS.items() if why] == ["ADRF", "ADRF_IZ"]
    assert "delay_shift" in OPTIONS


def every_neuron() -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """A small network of every program."""
    weight, back = rng(30).integers(-60, 90, (5, 4)), rng(31).integers(-60, 90, (3, 5))
    rf = {"sinDecay": 900, "cosDecay": 2980, "vThMant": 50}
    parts = {"real": weight, "imag": weight[::-1]}
    graded = {**CUBA, "gradedSpike": True}
    alif = {**CUBA, "type": "ALIF", "thDecay": 200, "refDecay": 900, "vThStep": 7}
    image = {"type": "input", "shape": [1, 3, 3], "neuron": CUBA, "weight": 30, "bias": 5}
    up = {**conv(np.ones((1, 2, 2, 2)) * 30, (2, 6, 6), CUBA, stride=[2, 2]), "type": "convT", "inChannels": 1, "outChannels": 2}
    cases: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "lif": ([dense(weight), dense(back)], {"reset_interval": 5}),
        "recurrent": ([{**dense(weight), "type": "dense_rec", "weight_rec": np.eye(5) * 40}], {}),
        "graded": ([dense(weight, graded), dense(back, graded, bias=[3, 4, 5])], {"graded_spikes": "voltage", "reset_interval": 7}),
        "alif": ([dense(weight, alif), dense(back, alif)], {"delay_shift": False}),
        "rf": ([{**dense(weight, {**rf, "type": kind}), "weight": parts} for kind in ("RF_PHASE",)], {}),
        "rf_iz": ([{**dense(weight, {**rf, "type": "RF_IZ"}), "weight": parts}, dense(back)], {}),
        "image": ([image, up, {"type": "flatten", "shape": [72]}, dense(np.ones((3, 72)))], {"input_transform": "file"}),
        "delays": ([dense(weight, delay=[0, 1, 2, 3, 4]), dense(back, delay=[3, 0, 1])], {}),
    }
    sd = [{"type": "input", "shape": [4], "neuron": SDNN}, dense(weight, SDNN), dense(back, {**SDNN, "sigma_output": True})]
    return cases | {form: (sd, {"sigma_delta": form}) for form in ("slayer", "corrected")}


@pytest.mark.parametrize("case", every_neuron())
def test_the_c_engine_computes_the_same(tmp_path: Path, case: str) -> None:
    from spikec.backends.c.backend import CBackend
    from spikec.backends.c.library import find_compiler
    from spikec.target import load_target

    if find_compiler() is None:
        pytest.skip("there is no C compiler")
    layers, options = every_neuron()[case]
    graph = read_net(write(tmp_path / "x.net", *layers), **options)
    low = 0 if graph.inputs[0].type.kind == "spike" else -9
    inputs = {"input": rng(32).integers(low, 2 if low == 0 else 10, (3, 40, *graph.shape_of("input")))}
    wanted, got = interpret(graph, inputs), CBackend(load_target("host")).run(graph, inputs)
    for name, array in wanted.outputs.items():
        assert array.any()
        assert (got.outputs[name] == array).all()


def test_the_driver_takes_a_file_and_its_options(tmp_path: Path) -> None:
    import spikec

    file = write(tmp_path / "x.net", {"type": "input", "shape": [2]}, EYE)
    build = spikec.compile(str(file), target="reference", delay_shift=False, dt=1e-3, name="mine")
    assert (build.graph().name, build.graph().dt) == ("mine", 1e-3)
    assert any(entry.what == "all blocks compute within one step (delay_shift=False)" for entry in build.ledger)
    with pytest.raises(CompileError) as caught:
        spikec.compile(file, target="reference", steps=3)
    assert str(caught.value) == f"error[SPK001]: steps belongs to a torch model; {file} is a graph already"


# ------------------------------------------------------------------------------------------------------------- errors

BAD: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    (
        "no layers",
        [],
        {},
        "x.net: error[SPK003]: there is no group 'layer': this is not a SLAYER network\n  fix: write it with SLAYER's export_hdf5",
    ),
    ("no type", [{"shape": [2]}], {}, "x.net (layer/0/type): error[SPK003]: 'type' is missing"),
    (
        "number as type",
        [{**EYE, "neuron": {**CUBA, "type": 3}}],
        {},
        "x.net (layer/0/neuron/type): error[SPK003]: 'type' is an array of int64 of shape (), not a text",
    ),
    (
        "unknown layer",
        [{**EYE, "type": "dens"}],
        {},
        "x.net (layer/0): error[SPK101]: the layer type 'dens' is not supported: SLAYER has no such type\n  fix: did you mean 'dense'?",
    ),
    (
        "all that is unsupported at once",
        [{**EYE, "neuron": {**CUBA, "type": "ADRF"}}, {"type": "average", "shape": [2]}],
        {},
        "x.net (layer/0/neuron): error[SPK101]: the neuron type 'ADRF' is not supported: no integer form of its adaptive threshold is published\n"
        "x.net (layer/1): error[SPK101]: the layer type 'average' is not supported: the mean of integers is not an integer, and SLAYER writes its time decimation under the same name",
    ),
    (
        "unknown neuron",
        [{**EYE, "neuron": {**CUBA, "type": "Hodgkin"}}],
        {},
        "x.net (layer/0/neuron): error[SPK101]: the neuron type 'Hodgkin' is not supported: SLAYER has no such type\n  fix: choose one of CUBA, LOIHI, SDNN, RF, RF_IZ, RF_IZHIKEVICH, RF_PHASE, ALIF",
    ),
    (
        "fraction",
        [dense([[1, 0.5]])],
        {},
        "x.net (layer/0/weight): error[SPK003]: 'weight' holds 0.5 at [0, 1], which is not a whole number (1 of 2)\n  fix: export the quantised network: the file holds integers, in units of 1/64 of a weight",
    ),
    (
        "not finite",
        [dense([[1, np.inf], [np.nan, 1]])],
        {},
        "x.net (layer/0/weight): error[SPK003]: 'weight' holds inf at [0, 1], which is not a finite number (2 of 4)",
    ),
    (
        "too large",
        [dense([[1e12]])],
        {},
        "x.net (layer/0/weight): error[SPK003]: 'weight' holds 999999995904.0 at [0, 0], which is beyond 32 bits (1 of 1)",
    ),
    (
        "text for weights",
        [{**EYE, "weight": np.array([b"abc"])}],
        {},
        "x.net (layer/0/weight): error[SPK003]: 'weight' holds |S3, not numbers",
    ),
    (
        "complex type",
        [{**EYE, "weight": np.array([1 + 2j])}],
        {},
        "x.net (layer/0/weight): error[SPK003]: 'weight' holds complex128, not numbers",
    ),
    (
        "no weight",
        [{k: v for k, v in EYE.items() if k != "weight"}],
        {},
        "x.net (layer/0/weight): error[SPK003]: 'weight' is missing",
    ),
    (
        "no decay",
        [dense(np.eye(2), {k: v for k, v in CUBA.items() if k != "iDecay"})],
        {},
        "x.net (layer/0/neuron/iDecay): error[SPK003]: 'iDecay' is missing",
    ),
    (
        "decay out of range",
        [dense(np.eye(2), {**CUBA, "vDecay": [1, 4097]})],
        {},
        "x.net (layer/0/neuron/vDecay): error[SPK003]: 'vDecay' holds 4097, which is not in 0 to 4096",
    ),
    (
        "parameters of another size",
        [dense(np.eye(2), {**CUBA, "vDecay": [1, 2, 3]})],
        {},
        "x.net (layer/0/neuron/vDecay): error[SPK309]: 'vDecay' holds 3 numbers for neurons of shape (2,)",
    ),
    (
        "bias of another size",
        [dense(np.eye(2), bias=np.ones(3))],
        {},
        "x.net (layer/0/bias): error[SPK309]: 'bias' holds 3 numbers for neurons of shape (2,)",
    ),
    (
        "absurd shape",
        [{"type": "input", "shape": [1 << 20, 1 << 20]}],
        {},
        "x.net (layer/0/shape): error[SPK309]: 'shape' is (1048576, 1048576), which is no shape of a layer",
    ),
    (
        "empty shape",
        [{"type": "input", "shape": [0, 3]}],
        {},
        "x.net (layer/0/shape): error[SPK309]: 'shape' is (0, 3), which is no shape of a layer",
    ),
    (
        "rows",
        [{**EYE, "outFeatures": 3}],
        {},
        "x.net (layer/0/weight): error[SPK309]: 'weight' has shape (2, 2), which does not split into 3 rows",
    ),
    (
        "columns",
        [{**EYE, "inFeatures": 5}],
        {},
        "x.net (layer/0/weight): error[SPK309]: 'weight' has 2 columns, but inFeatures is 5",
    ),
    (
        "declared shape",
        [{**EYE, "shape": [7]}],
        {},
        "x.net (layer/0/shape): error[SPK309]: 'shape' is (7,), but the layer gives (2,)",
    ),
    (
        "layers that do not fit",
        [EYE, dense(np.ones((2, 3)))],
        {},
        "x.net (layer/1/weight): error[SPK309]: 'weight' takes 3 inputs, but the layer before gives 2, of shape (2,)",
    ),
    (
        "no flatten",
        [{"type": "input", "shape": [2, 1, 2]}, dense(np.ones((2, 4)))],
        {},
        "x.net (layer/1): error[SPK309]: a dense layer follows one of shape (2, 1, 2) without a flatten layer in between",
    ),
    (
        "conv of a vector",
        [EYE, conv(np.ones((1, 2, 1, 1)), (1, 1, 1))],
        {},
        "x.net (layer/1): error[SPK309]: the layer takes (channels, height, width), but the one before gives (2,)",
    ),
    (
        "channels",
        [{"type": "input", "shape": [3, 4, 4]}, conv(np.ones((2, 2, 2, 2)), (2, 3, 3))],
        {},
        "x.net (layer/1/weight): error[SPK309]: 'weight' has shape (2, 2, 2, 2) in 1 group(s), which does not fit 3 channels",
    ),
    (
        "kernel",
        [{"type": "input", "shape": [1, 4, 4]}, conv(np.ones((1, 1, 5, 5)), (1, 1, 1))],
        {},
        "x.net (layer/1): error[SPK309]: the layer gives the shape (1, 0, 0)",
    ),
    (
        "stride",
        [{"type": "input", "shape": [1, 4, 4]}, conv(np.ones((1, 1, 2, 2)), (1, 1, 1), stride=[0, 1])],
        {},
        "x.net (layer/1): error[SPK309]: stride (0, 1) and dilation (1, 1) must be at least 1 and padding (0, 0) at least 0",
    ),
    (
        "kernel axes",
        [{"type": "input", "shape": [1, 4, 4]}, {**conv(np.ones((1, 1, 2, 2)), (1, 1, 1)), "weight": np.ones((1, 1, 2))}],
        {},
        "x.net (layer/1/weight): error[SPK309]: 'weight' has shape (1, 1, 2); a kernel has 4 axes, or 5 with a last one of 1",
    ),
    (
        "pool with overlap",
        [
            {"type": "input", "shape": [1, 4, 4]},
            {"type": "pool", "weight": np.ones((1, 1, 2, 2)), "stride": [1, 1], "neuron": CUBA},
        ],
        {},
        "x.net (layer/1): error[SPK101]: pool with a window of (2, 2), stride (1, 1), padding (0, 0) and dilation (1, 1) is not supported: SLAYER mixes channels there",
    ),
    (
        "pool of a size that SLAYER mixes",
        [{"type": "input", "shape": [2, 7, 6]}, {"type": "pool", "weight": np.ones((1, 1, 3, 3)), "neuron": CUBA}],
        {},
        "x.net (layer/1): error[SPK101]: a pool of (3, 3) over (7, 6) is not supported: SLAYER mixes channels there",
    ),
    (
        "negative delay",
        [dense(np.eye(2), delay=np.array([0, -3]))],
        {},
        "x.net (layer/0/delay): error[SPK306]: 'delay' holds -3 at [1], which is negative",
    ),
    (
        "half a delay",
        [dense(np.eye(2), delay=np.array([0, 2.5]))],
        {},
        "x.net (layer/0/delay): error[SPK003]: 'delay' holds 2.5 at [1], which is not a whole number (1 of 2)\n  fix: export the quantised network: the file holds integers, in units of 1/64 of a weight",
    ),
    (
        "absurd delay",
        [dense(np.eye(2), delay=np.array([0, 100_000]))],
        {},
        "x.net (layer/0/delay): error[SPK306]: 'delay' holds 100000 at [1], which is absurd",
    ),
    (
        "delays of another size",
        [dense(np.eye(2), delay=np.ones(3))],
        {},
        "x.net (layer/0/delay): error[SPK309]: 'delay' holds 3 delays for 2 neurons of shape (2,)",
    ),
    (
        "synaptic delays of another size",
        [dense(np.eye(2), delay=np.ones(3))],
        {"delay": "synaptic"},
        "x.net (layer/0/delay): error[SPK309]: 'delay' has shape (3,), which fits neither (2, 2) nor one of its axes",
    ),
    (
        "synaptic delays of a kernel",
        [{"type": "input", "shape": [1, 4, 4]}, conv(np.ones((1, 1, 1, 1)), (1, 4, 4), delay=np.array([1]))],
        {"delay": "synaptic"},
        "x.net (layer/1/delay): error[SPK101]: delays of the synapses of such a layer are not supported: no reader defines them",
    ),
    (
        "refractory",
        [dense(np.eye(2), {**CUBA, "refDelay": 4})],
        {},
        "x.net (layer/0/neuron/refDelay): error[SPK101]: a refractory delay of 4 steps is not supported: neither SLAYER nor Lava's reader simulates one over 1\n  fix: ref_delay='ignore' reads the network as they do",
    ),
    (
        "graded spikes",
        [dense(np.eye(2), {**CUBA, "gradedSpike": True})],
        {},
        "x.net (layer/0/neuron/gradedSpike): error[SPK101]: graded spikes are read in two ways: SLAYER sends the membrane, Lava's reader a plain spike\n  fix: graded_spikes='unary' or graded_spikes='voltage'",
    ),
    (
        "rescaled sums",
        [dense(np.eye(2), {**CUBA, "weight_exp": 2.0})],
        {},
        "x.net (layer/0/neuron/weight_exp): error[SPK101]: 'weight_exp' is not 0: a rescaled synaptic sum is not supported; Lava's reader ignores it",
    ),
    (
        "activation",
        [dense(np.eye(2), {**SDNN, "activation": "sigmoid"})],
        {"input_message_bits": 8},
        "x.net (layer/0/neuron/activation): error[SPK101]: the activation 'sigmoid' is not supported: its integer form is not published\n  fix: one of relu, identity, linear",
    ),
    (
        "reset of sigma-delta",
        [dense(np.eye(2), SDNN)],
        {"reset_interval": 4},
        "x.net (layer/0/neuron/type): error[SPK101]: a periodic reset of SDNN neurons is not defined\n  fix: leave reset_interval out",
    ),
    (
        "messages without bits",
        [dense(np.eye(2), {**SDNN, "messageBits": 0})],
        {},
        "x.net (layer/0/neuron/messageBits): error[SPK003]: 'messageBits' is 0, but sigma-delta neurons send numbers",
    ),
    (
        "biased sigma output",
        [dense(np.eye(2), {**SDNN, "sigma_output": True}, bias=np.ones(2))],
        {},
        "x.net (layer/0/bias): error[SPK101]: a bias of a sigma output is not supported: SLAYER writes none",
    ),
    (
        "complex neurons, real weights",
        [dense(np.eye(2), {"type": "RF_PHASE", "sinDecay": 1, "cosDecay": 1, "vThMant": 1})],
        {},
        "x.net (layer/0/weight): error[SPK003]: a block with neurons of type RF_PHASE needs weight/real and weight/imag",
    ),
    (
        "real neurons, complex weights",
        [{**EYE, "weight": {"real": np.eye(2), "imag": np.eye(2)}}],
        {},
        "x.net (layer/0/weight): error[SPK003]: a block with neurons of type CUBA needs one real weight",
    ),
    (
        "no imaginary part",
        [{**EYE, "weight": {"real": np.eye(2)}}],
        {},
        "x.net (layer/0/weight/imag): error[SPK003]: 'weight/imag' is missing",
    ),
    (
        "recurrent weights",
        [{**EYE, "type": "dense_rec", "weight_rec": np.ones((2, 3))}],
        {},
        "x.net (layer/0/weight_rec): error[SPK309]: 'weight_rec' has shape (2, 3), not (2, 2)",
    ),
    (
        "recurrence without weights",
        [{**EYE, "type": "dense_rec"}],
        {},
        "x.net (layer/0/weight_rec): error[SPK003]: 'weight_rec' is missing",
    ),
    (
        "concat ahead",
        [EYE, {"type": "concat", "shape": [4], "layers": [2]}, EYE],
        {},
        "x.net (layer/1/layers): error[SPK101]: layer 2 is no earlier one; recurrence through a concat layer is not supported",
    ),
    (
        "concat of shapes",
        [{"type": "input", "shape": [2, 2, 2]}, {"type": "flatten", "shape": [8]}, {"type": "concat", "shape": [4], "layers": [0]}],
        {},
        "x.net (layer/2/layers): error[SPK309]: 'layers' joins shapes that do not fit: (8,), (2, 2, 2)",
    ),
    (
        "second input",
        [EYE, {"type": "input", "shape": [2]}],
        {},
        "x.net (layer/1): error[SPK003]: an input layer can only be the first",
    ),
    ("nothing but an input", [{"type": "input", "shape": [2]}], {}, "x.net (layer): error[SPK003]: no layer computes anything"),
    (
        "another input shape",
        [{"type": "input", "shape": [2]}],
        {"input_shape": (3,)},
        "x.net (layer/0/shape): error[SPK309]: 'shape' is (2,), but input_shape is (3,)",
    ),
    (
        "option",
        [EYE],
        {"delay_shft": True},
        "error[SPK001]: unknown option 'delay_shft' for a .net file\n  fix: did you mean 'delay_shift'?",
    ),
    ("choice", [EYE], {"delay": "dendritic"}, "error[SPK001]: delay is one of axonal, synaptic, not 'dendritic'"),
    ("interval", [EYE], {"reset_interval": 0}, "error[SPK001]: reset_interval is at least 1, not 0"),
    ("offset", [EYE], {"reset_interval": 2, "reset_offset": -1}, "error[SPK001]: reset_offset is at least 0, not -1"),
    ("bits", [EYE], {"input_message_bits": 40}, "error[SPK001]: input_message_bits is 0 to 32, not 40"),
    ("no truth value", [EYE], {"delay_shift": "maybe"}, "error[SPK001]: delay_shift is true or false, not 'maybe'"),
    ("no whole number", [EYE], {"reset_interval": 2.5}, "error[SPK001]: reset_interval is a whole number, not 2.5"),
    ("true is no number", [EYE], {"reset_interval": True}, "error[SPK001]: reset_interval is a whole number, not True"),
    ("one bound", [EYE], {"input_bounds": (1,)}, "error[SPK001]: input_bounds is two whole numbers such as -128,127, not (1,)"),
    ("input shape", [EYE], {"input_shape": (0,)}, "error[SPK001]: input_shape holds sizes of at least 1, not (0,)"),
]


@pytest.mark.parametrize(("layers", "options", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_cannot_be_read_says_why_and_where(tmp_path: Path, layers: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError) as caught:
        read_net(write(tmp_path / "x.net", *layers), **options)
    assert str(caught.value) == message


def test_files_that_are_no_network(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(CompileError) as caught:
            read_net(path)
        return str(caught.value)

    assert message(tmp_path / "none.net") == f"error[SPK002]: {tmp_path}/none.net: no such file"
    assert message(tmp_path) == f"error[SPK002]: {tmp_path}: a folder, not a file"
    (tmp_path / "text.net").write_text("weights: 1 2 3")
    fix = "  fix: export the network again; a file that was cut off in a download or a copy cannot be repaired"
    assert (
        message(tmp_path / "text.net")
        == f"error[SPK003]: {tmp_path}/text.net: not a readable HDF5 file (file signature not found)\n{fix}"
    )
    with h5py.File(tmp_path / "gap.net", "w") as file:
        for number in (0, 2):
            put(file.create_group(f"layer/{number}"), EYE)
    assert (
        message(tmp_path / "gap.net")
        == "gap.net (layer): error[SPK003]: layers are numbered 0, 1, 2, … without a gap; here they are '0', '2'"
    )
    with h5py.File(tmp_path / "array.net", "w") as file:
        file["layer/0"] = 3
    assert message(tmp_path / "array.net") == "array.net (layer/0): error[SPK003]: '0' is an array, not a group"


def test_nothing_outside_the_file_is_read(tmp_path: Path) -> None:
    write(tmp_path / "other.net", EYE)
    write(tmp_path / "x.net", {k: v for k, v in EYE.items() if k != "weight"})
    with h5py.File(tmp_path / "x.net", "a") as file:
        file["layer/0/weight"] = h5py.ExternalLink("other.net", "/layer/0/weight")
    with pytest.raises(CompileError, match="'weight' is a link into another file, which is not followed"):
        read_net(tmp_path / "x.net")
    (tmp_path / "raw").write_bytes(bytes(32))
    write(tmp_path / "y.net", {k: v for k, v in EYE.items() if k != "weight"})
    with h5py.File(tmp_path / "y.net", "a") as file:
        file["layer/0"].create_dataset("weight", (2, 2), "f8", external=[(str(tmp_path / "raw"), 0, 32)])
    with pytest.raises(CompileError, match="'weight' is stored in another file, which is not followed"):
        read_net(tmp_path / "y.net")


def test_a_huge_array_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write(tmp_path / "x.net", {k: v for k, v in EYE.items() if k != "weight"})
    with h5py.File(tmp_path / "x.net", "a") as file:
        file["layer/0"].create_dataset("weight", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))
    with pytest.raises(CompileError) as caught:
        read_net(tmp_path / "x.net")
    assert str(caught.value) == (
        "x.net (layer/0/weight): error[SPK003]: 'weight' has the absurd shape (1048576, 1048576): 1099511627776 elements"
    )


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.net", {"type": "input", "shape": [2]}, EYE, simulation={"Ts": 1}).read_bytes()
    cut = tmp_path / "cut.net"
    for length in [*range(0, len(whole) - 1, 97), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(CompileError) as caught:
            read_net(cut)
        assert caught.value.code == "SPK003"


def test_without_h5py_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(CompileError) as caught:
        read_net(tmp_path / "x.net")
    assert str(caught.value) == (
        "error[SPK009]: reading SLAYER files (.net) needs h5py, which is not installed\n  fix: pip install 'spikec[slayer]'"
    )
