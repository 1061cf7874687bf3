"""snnTorch's Leaky, every option: bit for bit on dyadic numbers, within the rounding bound on any others."""

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn as nn
from bounds import Flips, count_flips, neuron_bound, sum_bound
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate

from spikec.diagnostics import CompileError
from spikec.frontend.torch_trace import trace
from spikec.ir.interpret import interpret

IN, OUT = 6, 5


class Layer(nn.Module):
    def __init__(self, lif, bias=True):
        super().__init__()
        self.fc = nn.Linear(IN, OUT, bias=bias)
        self.lif = lif

    def forward(self, x):
        mem = self.lif.init_leaky()
        spikes, membranes = [], []
        for t in range(x.shape[0]):
            spk, mem = self.lif(self.fc(x[t]), mem)
            spikes.append(spk)
            membranes.append(mem)
        return torch.stack(spikes), torch.stack(membranes)


class HiddenLayer(nn.Module):
    def __init__(self, lif):
        super().__init__()
        self.fc = nn.Linear(IN, OUT)
        self.lif = lif

    def forward(self, x):
        self.lif.reset_mem()
        return torch.stack([self.lif(self.fc(xt)) for xt in x])


def eighths(low, high):
    return st.integers(low, high).map(lambda n: n / 8)


@st.composite
def leakies(draw):
    """Arguments of snn.Leaky, all dyadic; the beta is outside [0, 1] at times, where it is clamped."""
    per_neuron = draw(st.booleans())
    beta = draw(st.sampled_from([0.0, 0.5, 0.75, 1.0, 1.5, -0.25]))
    theta = draw(eighths(1, 12) if draw(st.booleans()) else eighths(-4, 12))
    return {
        "beta": torch.tensor([draw(st.sampled_from([0.0, 0.5, 0.75, 1.0])) for _ in range(OUT)]) if per_neuron else beta,
        "threshold": torch.tensor([draw(eighths(1, 12)) for _ in range(OUT)]) if draw(st.booleans()) else theta,
        "learn_beta": draw(st.booleans()),
        "learn_threshold": draw(st.booleans()),
        "reset_mechanism": draw(st.sampled_from(["subtract", "zero", "none"])),
        "reset_delay": draw(st.booleans()),
        "spike_grad": draw(st.sampled_from([None, surrogate.fast_sigmoid(), surrogate.atan(), surrogate.straight_through_estimator(), surrogate.sigmoid()])),
        "surrogate_disable": draw(st.booleans()),
        "graded_spikes_factor": draw(st.sampled_from([1.0, 1.0, 0.5, 2.0])),
    }  # fmt: skip


def weights(layer, draw):
    for parameter in (layer.fc.weight, layer.fc.bias):
        numbers = draw(st.lists(st.integers(-8, 12), min_size=parameter.numel(), max_size=parameter.numel()))
        parameter.data = torch.tensor(numbers, dtype=torch.float32).reshape(parameter.shape) / 8


def equal(graph, model, x):
    with torch.no_grad():
        wanted = model(x)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    found = interpret(graph, {"x": x.numpy().swapaxes(0, 1)}).outputs
    for mine, theirs in zip(found.values(), wanted, strict=True):
        np.testing.assert_array_equal(mine.swapaxes(0, 1), theirs.numpy())


@settings(max_examples=150, deadline=None)
@given(st.data(), leakies(), st.integers(3, 14), st.booleans())
def test_every_option_is_exact_on_dyadic_numbers(data, options, steps, check):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    layer = Layer(snn.Leaky(**options))
    weights(layer, data.draw)
    x = torch.randint(0, 2, (steps, 2, IN)).float()
    equal(trace(layer, x, check=check), layer, torch.randint(0, 2, (steps + 3, 3, IN)).float())


@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_fifty_steps(beta, reset_mechanism, reset_delay):
    """With these decays nothing is ever rounded, however long it runs."""
    torch.manual_seed(3)
    layer = Layer(snn.Leaky(beta=beta, reset_mechanism=reset_mechanism, reset_delay=reset_delay))
    layer.fc.weight.data = torch.randint(-8, 12, (OUT, IN)) / 8
    layer.fc.bias.data = torch.randint(-8, 12, (OUT,)) / 8
    x = torch.randint(0, 2, (50, 4, IN)).float()
    equal(trace(layer, x[:10]), layer, x)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(["subtract", "zero", "none"]), st.booleans())
def test_hidden_states(data, reset_mechanism, reset_delay):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    layer = HiddenLayer(snn.Leaky(beta=0.5, init_hidden=True, reset_mechanism=reset_mechanism, reset_delay=reset_delay))
    weights(layer, data.draw)
    x = torch.randint(0, 2, (8, 2, IN)).float()
    equal(trace(layer, x), layer, x)


@pytest.mark.parametrize("initial", [0.5, 1.75])
@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
def test_membranes_that_do_not_begin_at_zero(reset_mechanism, reset_delay, initial):
    class Begun(Layer):
        def forward(self, x):
            mem = torch.full((x.shape[1], OUT), initial)
            mem[:, 1:3] = 0
            out = []
            for t in range(x.shape[0]):
                spk, mem = self.lif(self.fc(x[t]), mem)
                out.append(spk)
            return torch.stack(out)

    torch.manual_seed(0)
    model = Begun(snn.Leaky(beta=0.5, reset_mechanism=reset_mechanism, reset_delay=reset_delay))
    model.fc.weight.data = torch.randint(-8, 12, (OUT, IN)) / 8
    model.fc.bias.data = torch.randint(-8, 12, (OUT,)) / 8
    x = torch.randint(0, 2, (9, 2, IN)).float()
    equal(trace(model, x), model, x)


@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
def test_the_neuron_alone_agrees_to_the_last_bit(reset_mechanism, reset_delay):
    """Random float32 numbers, 200 steps, no sum before the neuron: the same operations in the same order."""

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = snn.Leaky(
                beta=torch.rand(7), threshold=torch.rand(7) + 0.3, reset_mechanism=reset_mechanism, reset_delay=reset_delay
            )

        def forward(self, x):
            mem, spikes, membranes = None, [], []
            for t in range(x.shape[0]):
                spk, mem = self.lif(x[t], mem)
                spikes.append(spk)
                membranes.append(mem)
            return torch.stack(spikes), torch.stack(membranes)

    torch.manual_seed(1)
    model = Alone()
    x = torch.randn(200, 5, 7)
    equal(trace(model, x[:20], batch_axis=1), model, x)


@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
def test_random_numbers_stay_within_the_rounding_bound(reset_mechanism, reset_delay):
    """Each step from snnTorch's own membrane; a spike may differ only where the sum before it was rounded differently."""
    torch.manual_seed(5)
    layer = Layer(snn.Leaky(beta=0.87, threshold=0.61, reset_mechanism=reset_mechanism, reset_delay=reset_delay))
    x = torch.randn(200, 8, IN)
    graph = trace(layer, x[:20])
    with torch.no_grad():
        spikes, membranes = (item.numpy() for item in layer(x))
        current = layer.fc(x).numpy()
    before = np.concatenate([np.zeros_like(membranes[:1]), membranes[:-1]])
    weight, bias = layer.fc.weight.detach().numpy(), layer.fc.bias.detach().numpy()
    bound = sum_bound(weight, bias, x.numpy()) + neuron_bound(before, current, 0.61)

    found = interpret(graph, {"x": x.numpy().swapaxes(0, 1)}, record=["fc"])
    assert np.all(np.abs(found.records["fc"].swapaxes(0, 1).astype(np.float64) - current) <= bound)
    ours = found.outputs["lif"].swapaxes(0, 1)
    # The membrane at the comparison, before a reset in the same step takes it away.
    left_over = (before > np.float32(0.61)) & (reset_mechanism != "none")
    decayed = np.float32(0.87) * (before * ~left_over if reset_mechanism == "zero" else before)
    at_comparison = decayed + current - (left_over * np.float32(0.61) if reset_mechanism == "subtract" else 0)
    agreeing = np.cumsum((ours != spikes).any(axis=2), axis=0) <= 1  # up to and with a sample's first difference
    flips = count_flips(ours[agreeing], spikes[agreeing], at_comparison[agreeing], 0.61, bound[agreeing])
    assert flips.outside == 0, str(flips)
    assert flips.count <= 2, str(flips)


def test_the_bound_finds_a_wrong_spike():
    v = np.array([0.5, 1.0 + 1e-9])
    flips = count_flips(np.array([1.0, 1.0]), np.array([0.0, 0.0]), v, 1.0, np.array([1e-6, 1e-6]))
    assert flips == Flips(count=2, outside=1, total=2)
    assert str(flips) == "2 of 2 spikes differ, 1 of them outside the rounding bound"


def test_a_convolutional_population_with_a_beta_per_channel_and_per_column():
    class Conv(nn.Module):
        def __init__(self, beta):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 2)
            self.lif = snn.Leaky(beta=beta)
            self.conv.weight.data = torch.randint(-8, 12, (3, 1, 2, 2)) / 8
            self.conv.bias.data = torch.randint(0, 12, (3,)) / 8

        def forward(self, x):
            mem, out = None, []
            for xt in x:
                spk, mem = self.lif(self.conv(xt), mem)
                out.append(spk)
            return torch.stack(out)

    torch.manual_seed(0)
    for beta, shape in ((torch.tensor([0.5, 0.25, 1.0]).reshape(3, 1, 1), (3,)), (torch.tensor([0.5, 0.25, 1.0, 0.75]), (3, 4, 4))):
        model = Conv(beta)
        x = torch.randint(0, 2, (8, 2, 1, 5, 5)).float()
        graph = trace(model, x)
        assert graph["lif"].params["beta"].shape == shape
        equal(graph, model, x)


def refused(lif):
    with pytest.raises(CompileError) as caught:
        trace(Layer(lif), torch.zeros(5, 2, IN))
    return str(caught.value)


def test_what_cannot_be_had_is_refused():
    with pytest.warns(UserWarning):
        lif = snn.Leaky(beta=0.5, inhibition=True)
    assert refused(lif) == (
        "test_leaky.py (lif): error[SPK101]: Leaky with inhibition is not supported: it lets only one neuron of the layer spike, "
        "which is not a neuron's own business"
    )
    assert refused(snn.Leaky(beta=0.5, state_quant=lambda x: x)) == (
        "test_leaky.py (lif): error[SPK101]: Leaky with state_quant is not supported: it rounds the membrane by rules of its own; "
        "spikec quantizes after training"
    )
    assert refused(snn.Leaky(beta=0.5, spike_grad=torch.sigmoid)) == (
        "test_leaky.py (lif): error[SPK110]: spike_grad is not a Heaviside step of its input in the forward pass\n"
        "  fix: use a function of snntorch.surrogate, or None"
    )
    changed = snn.Leaky(beta=0.5, reset_delay=False)
    changed.reset_mechanism = "zero"
    assert refused(changed) == (
        "test_leaky.py (lif): error[SPK101]: Leaky was built with reset_mechanism 'subtract' and later set to 'zero': snnTorch then "
        "mixes the two\n  fix: build it with reset_mechanism='zero'"
    )
    assert refused(snn.Leaky(beta=0.5, graded_spikes_factor=0.0)) == (
        "test_leaky.py (lif): error[SPK101]: Leaky with a graded_spikes_factor of 0 is not supported: its reset divides by it"
    )
