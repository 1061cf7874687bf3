"""spikec.nn: layers that train in torch and compile to what they compute, spike for spike."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spikec
from spikec import nn
from spikec.diagnostics import CompileError
from spikec.ir.interpret import interpret
from spikec.ir.ops import Dense, Sparse

STEPS, BATCH = 7, 2


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def eighths(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=generator) / 8


def run(model: torch.nn.Module, x: torch.Tensor, axis: int | None) -> Any:
    """A model of layers on (batch, T, ...): by hand step by step, or all at once along an axis."""
    if axis is None:
        nn.reset(model)
        return torch.stack([model(x[:, t]) for t in range(x.shape[1])], dim=1)
    return model(x.movedim(1, axis)).movedim(axis, 1)


class Steps(torch.nn.Module):
    """A loop over time around layers that do one step a call."""

    def __init__(self, layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nn.reset(self)
        return torch.stack([self.layers(x[:, t]) for t in range(x.shape[1])], dim=1)


@st.composite
def neurons(draw: st.DrawFn, axis: int | None, size: int) -> torch.nn.Module:
    """Any neuron with numbers of few bits, each one for all or one a neuron."""

    def number(low: int, high: int) -> Any:
        values = draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
        return torch.tensor(values) / 4 if draw(st.booleans()) else values[0] / 4

    more: dict[str, Any] = {"time_axis": axis}
    kind = draw(st.sampled_from([nn.LIF, nn.CUBALIF, nn.ALIF, nn.LI]))
    if kind is nn.LI:
        return nn.LI(number(0, 4), **more)
    more["reset_by"] = draw(st.sampled_from(["zero", "subtract"]))
    more["surrogate"] = draw(st.sampled_from([nn.surrogate.arctan(), nn.surrogate.triangle(), None]))
    if kind is nn.LIF:
        return nn.LIF(number(0, 4), number(1, 6), **more)
    if kind is nn.CUBALIF:
        return nn.CUBALIF(number(0, 4), number(0, 4), number(1, 6), bias=number(-2, 2), **more)
    return nn.ALIF(number(0, 4), number(0, 4), number(1, 6), number(0, 3), **more)


@st.composite
def networks(draw: st.DrawFn) -> tuple[torch.nn.Module, int | None]:
    """Connections of any kind between neurons of any kind; weights of few bits."""
    axis = draw(st.sampled_from([None, 1]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    grid = nn.Grid(5, 1 / 8) if draw(st.booleans()) else None
    layers: list[torch.nn.Module] = []
    fan_in = 4
    for _ in range(draw(st.integers(1, 2))):
        size = draw(st.integers(1, 4))
        bias = draw(st.booleans())
        kind = draw(st.sampled_from(["linear", "sparse", "delay", "axons", "axon"]))
        if kind in ("linear", "axons", "axon"):
            if kind == "axons":
                layers.append(nn.AxonalDelay(torch.randint(0, 4, (fan_in,), generator=generator), time_axis=axis))
            elif kind == "axon":
                layers.append(nn.AxonalDelay(draw(st.integers(0, 3)), time_axis=axis))
            layers.append(nn.Linear(fan_in, size, bias, grid=grid))
        elif kind == "sparse":
            layers.append(nn.SparseLinear(fan_in, size, bias, density=0.5, seed=draw(st.integers(0, 9)), grid=grid))
        else:
            layers.append(nn.DelayLinear(fan_in, size, bias, max_delay=draw(st.integers(0, 4)), grid=grid, time_axis=axis))
        layer = layers[-1]
        layer.weight.data = eighths(-8, 12, tuple(layer.weight.shape), generator)
        if bias:
            layer.bias.data = eighths(-2, 4, tuple(layer.bias.shape), generator)
        layers.append(draw(neurons(axis, size)))
        fan_in = size
    return torch.nn.Sequential(*layers).eval(), axis


@settings(max_examples=40, deadline=None)
@given(networks(), st.integers(0, 99))
def test_a_graph_computes_what_the_layers_compute(drawn: tuple[torch.nn.Module, int | None], seed: int) -> None:
    """Dyadic numbers: no difference is allowed, in any value of any step."""
    layers, axis = drawn
    model = layers if axis is not None else Steps(layers)
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(BATCH, STEPS, 4, generator=generator) < 0.5).float()
    graph = spikec.trace(model, x)
    y = (torch.rand(BATCH, STEPS, 4, generator=generator) < 0.6).float()
    with torch.no_grad():
        wanted = model(y).numpy()
    (found,) = interpret(graph, {graph.inputs[0].name: y.numpy()}).outputs.values()
    assert found.shape == wanted.shape
    assert np.count_nonzero(found != wanted) == 0


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_step_by_step_and_all_at_once_are_the_same(data: st.DataObject) -> None:
    (layers, _), seed = data.draw(networks()), data.draw(st.integers(0, 99))
    x = (torch.rand(BATCH, STEPS, 4, generator=torch.Generator().manual_seed(seed)) < 0.5).float()
    results = []
    for axis in (None, 0, 1):
        again = copy.deepcopy(layers)
        for module in again.modules():
            if hasattr(module, "time_axis"):
                module.time_axis = axis
        with torch.no_grad():
            results.append(run(again, x, axis))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def net() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, grid=nn.Grid(6, 1 / 16)),
        nn.CUBALIF(0.25, 0.5, torch.tensor([0.5, 0.75, 1.0, 0.25]).view(4, 1, 1)),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        nn.Linear(16, 6, grid=nn.Grid(6, 1 / 16)),
        nn.ALIF(0.5, 0.75, 0.5, 0.25, reset_by="subtract"),
        nn.DelayLinear(6, 3, max_delay=5, grid=nn.Grid(6, 1 / 16)),
        nn.LI(0.75),
    ).eval()


@pytest.mark.parametrize("engine", ["reference", "numpy", "c"])
def test_engines_run_a_network_of_all_layers(engine: str) -> None:
    model = Steps(net())
    x = (torch.rand(3, 12, 2, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    build = spikec.compile(model, x, target="host")
    with torch.no_grad():
        wanted = model(x).numpy()
    result = build.run(x.numpy(), backend=engine, record="all")
    (found,) = result.outputs.values()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    with torch.no_grad():
        spikes = Steps(model.layers[:6])(x).numpy()
    assert np.count_nonzero(result.spikes("layers.5") != spikes) == 0
    assert spikes.any() and not spikes.all()


def test_delays_and_connections_are_in_the_graph() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        nn.DelayLinear(3, 2, max_delay=9, delay=torch.tensor([[0.0, 8.6, 3.4], [2.5, 12.0, -1.0]]), bias=False),
        nn.LIF(0.5),
        nn.SparseLinear(2, 4, mask=torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])),
        nn.LIF(0.5),
    )
    graph = spikec.trace(Steps(layers), torch.ones(1, 12, 3))
    (delayed,) = (node for node in graph.nodes if isinstance(node, Dense))
    assert delayed.delay is not None and delayed.delay.tolist() == [[0, 9, 3], [2, 9, 0]]
    (sparse,) = (node for node in graph.nodes if isinstance(node, Sparse))
    assert sparse.indices.tolist() == [0, 1, 0, 1] and sparse.indptr.tolist() == [0, 1, 2, 4, 4]


def test_the_quantizer_finds_the_integers_of_the_grid() -> None:
    """Weights, thresholds and decays go to Loihi 2 without any approximation."""
    torch.manual_seed(1)
    layers = torch.nn.Sequential(
        nn.Linear(8, 6, bias=False, grid=nn.Grid()), nn.CUBALIF(0.3, 0.77), nn.Linear(6, 3, grid=nn.Grid()), nn.LIF(0.9)
    )
    x = (torch.rand(4, 30, 8) < 0.5).float()
    build = spikec.compile(Steps(layers), x, target="loihi2", calibrate=x.numpy())
    assert [entry.text() for entry in build.ledger if entry.kind == "approximation"] == []
    first = build.graph().neurons[0]
    assert 4095 - int(first.params["du"]) == round(0.3 * 4096)
    assert 4096 - int(first.params["dv"]) == round(0.77 * 4096)
    weights = [node for node in build.graph().nodes if isinstance(node, Dense) and node.weight.shape == (6, 8)]
    (synapses,) = weights
    on_grid = layers[0].grid(layers[0].weight).detach().numpy()
    scale = float(synapses.weight.max() / on_grid.max())
    assert scale >= 128 and np.log2(scale) % 1 == 0
    assert np.array_equal(synapses.weight, scale * on_grid)
    assert build.verify(x.numpy(), backends=["numpy", "c"]).ok


# ---------------------------------------------------------------------------------------------------------------- training


def slope_of(name: str, x: torch.Tensor) -> torch.Tensor:
    """The derivative of the function that each surrogate names, by central differences in 64 bits."""
    functions = {
        "fast_sigmoid": lambda x: x / (1 + 10 * x.abs()),
        "arctan": lambda x: torch.arctan(np.pi * 2.0 * x / 2) / np.pi,
        "sigmoid": lambda x: torch.sigmoid(4 * x),
        "triangle": lambda x: torch.where(x.abs() < 1, x - x * x.abs() / 2, torch.sign(x) / 2),
        "gaussian": lambda x: 0.5 * (1 + torch.erf(x / 0.5 / np.sqrt(2))),
        "rectangle": lambda x: torch.clamp(x, -0.5, 0.5),
    }
    h = 1e-6
    return (functions[name](x + h) - functions[name](x - h)) / (2 * h)


@pytest.mark.parametrize("name", ["fast_sigmoid", "arctan", "sigmoid", "triangle", "gaussian", "rectangle"])
def test_surrogates_are_steps_with_the_slope_of_their_name(name: str) -> None:
    x = torch.tensor([-2.0, -0.7, -0.3, -1e-4, 1e-4, 0.2, 0.6, 3.0], dtype=torch.float64, requires_grad=True)
    spikes = getattr(nn.surrogate, name)()(x)
    assert spikes.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and spikes.dtype == torch.float64
    spikes.sum().backward()
    torch.testing.assert_close(x.grad, slope_of(name, x.detach()), rtol=1e-4, atol=1e-6)
    assert getattr(nn.surrogate, name)()(torch.zeros(1)).item() == 0


def test_rounding_is_passed_straight_through() -> None:
    layer = nn.Linear(4, 1, grid=nn.Grid(bits=3, unit=0.25))
    layer.weight.data = torch.tensor([[0.3, -0.9, 5.0, -7.0]])
    layer.bias.data = torch.tensor([0.3])
    out = layer(torch.eye(4)) - 0.25
    assert out.flatten().tolist() == [0.25, -1.0, 0.75, -1.0]
    out.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.tolist() == [[1, 1, 0, 0]]  # clipped weights have no gradient
    neuron = nn.LI(0.7, learn=("beta",))
    assert neuron.number("beta").item() == round(0.7 * 4096) / 4096
    neuron.number("beta").backward()
    assert neuron.beta.grad == 1


def test_every_number_that_is_learnt_gets_a_gradient() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        nn.Linear(4, 8),
        nn.CUBALIF(0.5, 0.7, 0.5, bias=0.1, learn=("alpha", "beta", "threshold", "bias"), time_axis=1),
        nn.SparseLinear(8, 8, density=0.5),
        nn.ALIF(0.7, 0.8, 0.3, 0.1, learn=("beta", "rho", "threshold", "rise"), time_axis=1),
        nn.DelayLinear(8, 8, max_delay=4, time_axis=1),
        nn.LIF(0.7, 0.3, learn=("beta", "threshold"), reset_by="subtract", time_axis=1),
        nn.Linear(8, 2),
        nn.LI(0.9, learn=("beta",), time_axis=1),
    )
    x = (torch.rand(4, 20, 4) < 0.5).float()
    layers(x).square().mean().backward()
    for name, parameter in layers.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name


def test_a_delay_is_learnt() -> None:
    """The target is the input three steps ago: the delay moves there from one, and the weight to one."""
    torch.manual_seed(0)
    layer = nn.DelayLinear(1, 1, bias=False, max_delay=6, delay=1.0, time_axis=1)
    x = torch.randn(8, 40, 1)
    x = (x + x.roll(1, 1) + x.roll(-1, 1)) / 3  # smooth, so that a step nearer is better
    wanted = torch.cat([torch.zeros(8, 3, 1), x[:, :-3]], dim=1)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(120):
        optimizer.zero_grad()
        (layer(x) - wanted).square().mean().backward()
        optimizer.step()
    assert abs(layer.delay.item() - 3) < 0.1 and abs(layer.weight.item() - 1) < 0.1
    layer.round_delays()
    assert layer.delay.item() == 3
    graph = spikec.trace(layer, x[:1])
    (dense,) = (node for node in graph.nodes if isinstance(node, Dense))
    assert dense.delay is not None and dense.delay.tolist() == [[3]]


def test_digits_from_training_to_loihi2() -> None:
    """A network on a weight grid learns handwritten digits in seconds, and loses nothing in eight bits."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    t = np.arange(12)[:, None]
    x = torch.tensor(np.floor(pixels[:, None] * (t + 1) / 16) - np.floor(pixels[:, None] * t / 16)).float()
    y = torch.tensor(digits)
    layers = torch.nn.Sequential(
        nn.Linear(64, 48, grid=nn.Grid()),
        nn.CUBALIF(0.25, 0.75, learn=("alpha", "beta"), time_axis=1),
        nn.Linear(48, 10, grid=nn.Grid()),
        nn.LIF(0.9, time_axis=1),
    )
    optimizer = torch.optim.Adam(layers.parameters(), 8e-3)
    for _ in range(6):
        for chosen in torch.randperm(1300).split(65):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layers(x[chosen]).sum(1), y[chosen]).backward()
            optimizer.step()
    held_out = slice(1300, None)
    with torch.no_grad():
        score = float((layers(x[held_out]).sum(1).argmax(1) == y[held_out]).float().mean())
    assert score > 0.88
    build = spikec.compile(layers, x[:2], target="loihi2", calibrate=x[held_out].numpy())
    assert not [entry for entry in build.ledger if entry.kind == "approximation"]
    (counts,) = (array.sum(axis=1) for array in build.run(x[held_out].numpy(), backend="c").outputs.values())
    assert abs(float((counts.argmax(1) == y[held_out].numpy()).mean()) - score) < 0.01


# --------------------------------------------------------------------------------------------------------- state and manners


def test_a_state_lasts_until_it_is_reset() -> None:
    for layer in (nn.LIF(1.0, 10.0), nn.LI(1.0), nn.CUBALIF(0.0, 1.0, 10.0), nn.ALIF(1.0, 0.5, 10.0)):
        for _ in range(3):
            layer(torch.ones(2, 3))
        assert layer.v is not None and bool((layer.v == 3).all())
        layer(torch.ones(5, 3))  # another batch
        assert bool((layer.v == 1).all())
        nn.reset(layer)
        assert layer.v is None


def test_a_model_in_training_can_be_compiled_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = Steps(torch.nn.Sequential(nn.DelayLinear(3, 3, max_delay=2), nn.LIF(0.5), nn.Linear(3, 2), nn.LI(0.5)))
    x = (torch.rand(2, 6, 3) < 0.5).float()
    model(x).sum().backward()
    before = model.layers[1].v
    graph = spikec.trace(model, x)
    assert model.layers[1].v is before and model.training
    model.eval()
    with torch.no_grad():
        wanted = model(x).numpy()
    (found,) = interpret(graph, {"x": x.numpy()}).outputs.values()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_state_dict_holds_everything() -> None:
    torch.manual_seed(0)
    source, target = net(), net()
    for parameter in source.parameters():
        parameter.data += 0.5
    source[1].alpha += 0.25
    target.load_state_dict(source.state_dict())
    x = (torch.rand(1, 5, 2, 4, 4) < 0.5).float()
    with torch.no_grad():
        assert torch.equal(run(source, x, None), run(target, x, None))


def test_a_subclass_with_its_own_step_is_traced_inside() -> None:
    class Halved(nn.LIF):
        def step(self, x: torch.Tensor) -> torch.Tensor:
            return super().step(0.5 * x)

    model = Steps(torch.nn.Sequential(torch.nn.Linear(3, 3), Halved(0.5)))
    x = torch.ones(2, 8, 3)
    with torch.no_grad():
        wanted = model(x).numpy()
    graph = spikec.trace(model, x)
    (found,) = interpret(graph, {"x": x.numpy()}).outputs.values()
    assert np.array_equal(found, wanted)


def test_mistakes_are_told() -> None:
    for make, text in (
        (lambda: nn.LIF(1.5), "beta is a decay, from 0"),
        (lambda: nn.LIF(0.5, learn=("alpha",)), "LIF has no alpha to learn; it has beta, threshold"),
        (lambda: nn.LIF(0.5, reset_by="soft"), 'reset_by is "zero" or "subtract"'),
        (lambda: nn.LIF(0.5, time_axis="t"), "time_axis is a number or None"),
        (lambda: nn.Grid(8, 0.3), "a power of two as its unit"),
        (lambda: nn.SparseLinear(4, 4, density=0), "density is above 0"),
        (lambda: nn.SparseLinear(4, 4, mask=torch.ones(2, 2)), "the mask has shape"),
        (lambda: nn.DelayLinear(4, 4, max_delay=-1), "max_delay is a whole number"),
        (lambda: nn.DelayLinear(4, 4, max_delay=1, time_axis=2), "time_axis is 0, 1 or None"),
        (lambda: nn.AxonalDelay(-1), "delays are whole numbers"),
        (lambda: nn.AxonalDelay(1, time_axis=2), "time_axis is 0, 1 or None"),
    ):
        with pytest.raises(ValueError, match=text):
            make()
    model = Steps(torch.nn.Sequential(torch.nn.Linear(3, 3), nn.LIF(0.5, surrogate=torch.sigmoid)))
    with pytest.raises(CompileError, match=r"\(layers\.1\): error\[SPK110\]: the surrogate of LIF is not a Heaviside step"):
        spikec.trace(model, torch.ones(1, 5, 3))
    delays = torch.nn.Sequential(nn.DelayLinear(3, 3, max_delay=2, time_axis=0), nn.LIF(0.5, time_axis=1))
    with pytest.raises(CompileError, match=r"SPK105.*the model walks through axes 0 and 1"):
        spikec.trace(delays, torch.ones(4, 5, 3))
    hoisted = torch.nn.Sequential(nn.LIF(0.5, time_axis=0), torch.nn.Flatten(0, 1), nn.DelayLinear(3, 3, max_delay=2))
    with pytest.raises(CompileError, match=r"SPK102.*gets all steps at once"):
        spikec.trace(hoisted, torch.ones(4, 5, 3))
    model = Steps(torch.nn.Sequential(nn.SparseLinear(3, 3), nn.LIF(0.5)))
    with pytest.raises(CompileError, match=r"SPK102.*a sparse layer takes one axis of features, not 2"):
        spikec.trace(model, torch.ones(1, 5, 2, 3), batch_axis=0)


def test_layers_print_their_numbers() -> None:
    assert repr(nn.LIF(0.9, time_axis=1)) == 'LIF(beta=0.899902, threshold=1, reset_by="zero", time_axis=1)'
    assert repr(nn.CUBALIF(torch.tensor([0.5, 0.25]))) == 'CUBALIF(alpha=(2), beta=0.899902, threshold=1, bias=0, reset_by="zero")'
    assert repr(nn.SparseLinear(4, 2, density=0.5)) == "SparseLinear(4, 2, connections=4, bias=True)"
    assert repr(nn.DelayLinear(4, 2, max_delay=3)) == "DelayLinear(4, 2, max_delay=3, bias=True)"


def test_import_spikec_does_not_import_torch() -> None:
    code = "import sys, spikec; assert 'nn' in dir(spikec) and 'torch' not in sys.modules; spikec.nn.LIF; from spikec.nn import LI"
    subprocess.run([sys.executable, "-c", code], check=True)
