"""sinabs, every layer and option of its support table: bit for bit on dyadic numbers, within the rounding bound on any others."""

import copy
from importlib.metadata import version

import numpy as np
import pytest
import sinabs.activation as sa
import sinabs.layers as sl
import torch
import torch.nn as nn
from bounds import count_flips, neuron_bound, sum_bound
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sinabs.from_torch import from_model

import spikec
from spikec.diagnostics import CompileError
from spikec.frontend.sinabs import SUPPORT, VERSION
from spikec.frontend.torch_trace import trace
from spikec.ir.interpret import float_truth, interpret, run_program

IN, HIDDEN, OUT = 5, 4, 3


def dyadic(module, draw):
    """Weights of layers in eighths; recurrent ones small, so that several spikes a step do not run away. Time constants stay."""
    for inner in module.modules():
        if isinstance(inner, (nn.Linear, nn.Conv2d)):
            for parameter in inner.parameters():
                numbers = draw(st.lists(st.integers(-8, 12), min_size=parameter.numel(), max_size=parameter.numel()))
                parameter.data = torch.tensor(numbers, dtype=torch.float32).reshape(parameter.shape) / 8
        if hasattr(inner, "rec_connect"):
            inner.rec_connect.apply(lambda layer: [parameter.data.div_(32) for parameter in layer.parameters(recurse=False)])
    return module


def with_alphas(layer, draw, each=0):
    """Decays that are dyadic: sinabs computes them as exp(-1 / tau), which cannot be chosen; its trained form can be."""
    for name in ("alpha_mem", "alpha_syn", "alpha_adapt"):
        if getattr(layer, name, None) is not None:
            values = [draw(st.sampled_from([0.0, 0.5, 0.75, 1.0, 0.875])) for _ in range(each or 1)]
            getattr(layer, name).data = torch.tensor(values if each else values[0])
    return layer


def spiking(draw):
    return draw(st.sampled_from([sa.MultiSpike, sa.SingleSpike, sa.MaxSpike(2), sa.MaxSpike()]))


def resetting(draw):
    value = draw(st.sampled_from([0.0, 0.25, -0.5]))
    return draw(
        st.sampled_from([sa.MembraneSubtract(), sa.MembraneSubtract(value + 0.75), sa.MembraneReset(), sa.MembraneReset(value)])
    )


def threshold(draw):
    return torch.tensor(draw(st.integers(1, 12)) / 8)


def plain(draw):
    return {"spike_fn": spiking(draw), "reset_fn": resetting(draw), "spike_threshold": threshold(draw)}


def lif(draw, cls=sl.LIF, **more):
    current = {} if draw(st.booleans()) else {"tau_syn": 5.0}
    options = {"norm_input": draw(st.booleans()), **plain(draw), **current, **more}
    return with_alphas(cls(tau_mem=10.0, train_alphas=True, **options), draw)


def alif(draw, cls=sl.ALIF, **more):
    options = {
        "norm_input": draw(st.booleans()),
        "adapt_scale": draw(st.sampled_from([0.0, 0.5, 1.75])),
        "tau_syn": 5.0,
        **plain(draw),
    }
    return with_alphas(cls(tau_mem=10.0, tau_adapt=20.0, train_alphas=True, **{**options, **more}), draw)


class Net(nn.Module):
    """A layer, the neurons, a layer behind them; data is (batch, time, features)."""

    def __init__(self, layer, recorded=(), analog=False):
        super().__init__()
        self.fc, self.layer, self.out = nn.Linear(IN, HIDDEN), layer, nn.Linear(HIDDEN, OUT)
        self.recorded, self.analog = recorded, analog

    def forward(self, x):
        s = self.layer(self.fc(x))
        if self.analog:  # a membrane has more and more bits: no exact sums of them
            return s
        return s, self.out(s), *(self.layer.recordings[name] for name in self.recorded)


class Squeezed(nn.Module):
    """Batch and time in one axis, as convolutions want it; `forward` gets them apart and takes them apart."""

    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(IN, HIDDEN), *layers, nn.Linear(HIDDEN, OUT))

    def forward(self, x):
        return self.net(x)


class Doubled(torch.autograd.Function):
    """A spike function of one's own: a step at twice the threshold."""

    required_states = ("v_mem",)

    @staticmethod
    def forward(ctx, v_mem, spike_threshold, surrogate_grad_fn):
        return (v_mem >= 2 * spike_threshold).float()


def half(spikes, state, spike_threshold):
    state = state.copy()
    state["v_mem"] = torch.where(spikes > 0, state["v_mem"] / 2, state["v_mem"])
    return state


class Merged(nn.Module):
    def __init__(self, padded):
        super().__init__()
        self.a, self.b = nn.Linear(IN, HIDDEN), nn.Linear(IN, HIDDEN - padded)
        self.merge, self.iaf = sl.Merge(), sl.IAF()

    def forward(self, x):
        return self.iaf(self.merge(self.a(x), self.b(x)))


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.lif = sl.Repeat(nn.Linear(IN, HIDDEN)), sl.IAF()
        self.flat, self.b = sl.FlattenTime(), nn.Linear(HIDDEN, OUT)

    def forward(self, x):
        y = self.lif(self.a(x))
        return sl.UnflattenTime(x.shape[0])(self.b(self.flat(y)))


class Images(nn.Module):
    """What comes before is laid out as images of 2 x 4 x 4."""

    def __init__(self, *layers):
        super().__init__()
        self.fc, self.layers, self.iaf = nn.Linear(IN, 32), nn.Sequential(*layers), sl.IAF()

    def forward(self, x):
        images = self.fc(x).reshape(-1, 2, 4, 4)
        return self.iaf(self.layers(images).unflatten(0, x.shape[:2]))


def used(layer):
    """A layer that has seen something."""
    layer(torch.ones(3, 4, HIDDEN))
    return layer


def recurrent(draw):
    connect = draw(
        st.sampled_from([lambda: nn.Linear(HIDDEN, HIDDEN), lambda: nn.Sequential(nn.Flatten(), nn.Linear(HIDDEN, HIDDEN))])
    )()
    kind = draw(st.sampled_from(["iaf", "lif", "alif"]))
    high = {"spike_threshold": torch.tensor(draw(st.integers(8, 16)) / 8)}
    if kind == "iaf":
        return sl.IAFRecurrent(rec_connect=connect, **{**plain(draw), **high})
    make, cls = (lif, sl.LIFRecurrent) if kind == "lif" else (alif, sl.ALIFRecurrent)
    return make(draw, cls, rec_connect=connect, **high)


def squeezed(draw, **how):
    kind = draw(st.sampled_from(["iaf", "lif", "alif", "leak"]))
    if kind == "iaf":
        return sl.IAFSqueeze(**plain(draw), **how)
    if kind == "leak":
        from sinabs.layers.exp_leak import ExpLeakSqueeze

        leak = ExpLeakSqueeze(tau_mem=10.0, train_alphas=True, **how)
        leak.alpha_mem.data = torch.tensor(draw(st.sampled_from([0.0, 1.0])))  # its membrane goes through a layer: few bits
        return leak
    from sinabs.layers.alif import ALIFSqueeze

    return lif(draw, sl.LIFSqueeze, **how) if kind == "lif" else alif(draw, ALIFSqueeze, **how)


def taus(draw):
    """Any time constants: the decays are not dyadic, but the neuron's own operations are the same."""
    number = draw(st.sampled_from([2.0, 7.5, 20.0]))
    form = draw(st.sampled_from(["number", "tensor", "each"]))
    return number if form == "number" else torch.tensor(number) if form == "tensor" else number + torch.arange(HIDDEN) / 2


def converted(draw):
    ann = nn.Sequential(nn.Linear(IN, 8), nn.ReLU(), nn.Linear(8, HIDDEN), sl.NeuromorphicReLU(), nn.Linear(HIDDEN, OUT))
    return from_model(
        ann, input_shape=(IN,), num_timesteps=6, add_spiking_output=draw(st.booleans()), synops=False, min_v_mem=-1.0,
        spike_threshold=threshold(draw), spike_fn=spiking(draw), reset_fn=resetting(draw), bias_rescaling=2.0,
    )  # fmt: skip


SQUEEZE = "IAFSqueeze, LIFSqueeze, ALIFSqueeze, ExpLeakSqueeze"
SURROGATES = [sa.Heaviside(), sa.Gaussian(), sa.MultiGaussian(), sa.SingleExponential(), sa.PeriodicExponential()]
#: Row of the support table -> a model of it. The squeezed ones take 2 samples of 6 steps.
EXACT = {
    ("IAF", ""): lambda draw: Net(sl.IAF(**plain(draw), min_v_mem=draw(st.sampled_from([None, -1.0])), tau_syn=draw(st.sampled_from([None, 5.0])))),
    ("LIF", ""): lambda draw: Net(lif(draw)),
    ("LIF", "tau_mem, tau_syn: numbers, tensors, one per neuron"): lambda draw: Net(
        sl.LIF(tau_mem=taus(draw), tau_syn=taus(draw) if draw(st.booleans()) else None, **plain(draw))),
    ("LIF", "train_alphas"): lambda draw: Net(with_alphas(sl.LIF(10.0, 5.0, train_alphas=True, **plain(draw)), draw, HIDDEN)),
    ("LIF", "norm_input"): lambda draw: Net(lif(draw, norm_input=draw(st.booleans()))),
    ("LIF", "min_v_mem"): lambda draw: Net(lif(draw, min_v_mem=draw(st.sampled_from([-0.25, 0.0, 0.125])))),
    ("LIF", "spike_threshold: one per neuron"): lambda draw: Net(
        lif(draw, spike_threshold=torch.tensor([draw(st.integers(1, 8)) / 8 for _ in range(HIDDEN)]))),
    ("LIF", "spike_fn: MultiSpike, SingleSpike, MaxSpike"): lambda draw: Net(lif(draw, spike_fn=spiking(draw))),
    ("LIF", "spike_fn, reset_fn: your own"): lambda draw: Net(
        lif(draw, spike_fn=Doubled) if draw(st.booleans()) else lif(draw, reset_fn=half)),
    ("LIF", "reset_fn: MembraneSubtract, MembraneReset"): lambda draw: Net(lif(draw, reset_fn=resetting(draw))),
    ("LIF", "surrogate_grad_fn"): lambda draw: Net(lif(draw, surrogate_grad_fn=draw(st.sampled_from(SURROGATES)))),
    ("LIF", "shape"): lambda draw: Net(lif(draw, shape=(2, HIDDEN))),
    ("LIF", "record_states, returned"): lambda draw: Net(lif(draw, record_states=True, tau_syn=5.0), ("v_mem", "i_syn")),
    ("LIF", "states left over from an earlier call"): lambda draw: Net(used(lif(draw, record_states=True))),
    ("ALIF", ""): lambda draw: Net(alif(draw)),
    ("ALIF", "tau_syn, train_alphas, norm_input, adapt_scale, min_v_mem"): lambda draw: Net(
        alif(draw, min_v_mem=-0.25, record_states=True) if draw(st.booleans())
        else sl.ALIF(7.5, 20.0, norm_input=draw(st.booleans()), **plain(draw))),
    ("ExpLeak", ""): lambda draw: Net(with_alphas(sl.ExpLeak(
        10.0, train_alphas=True, norm_input=draw(st.booleans()), min_v_mem=draw(st.sampled_from([None, -0.5]))), draw), analog=True),
    ("IAFRecurrent, LIFRecurrent, ALIFRecurrent", ""): lambda draw: Net(recurrent(draw)),
    (SQUEEZE, "num_timesteps"): lambda draw: Squeezed(
        squeezed(draw, num_timesteps=6), nn.Linear(HIDDEN, HIDDEN), squeezed(draw, num_timesteps=6)),
    (SQUEEZE, "batch_size"): lambda draw: Squeezed(squeezed(draw, batch_size=2), nn.Identity(), squeezed(draw, batch_size=2, num_timesteps=6)),
    ("SumPool2d", ""): lambda draw: Images(sl.SumPool2d(2), nn.Flatten()) if draw(st.booleans()) else Images(sl.SumPool2d(2, stride=1)),
    ("Merge", ""): lambda draw: Merged(draw(st.integers(0, 2))),
    ("Repeat, FlattenTime, UnflattenTime", ""): lambda draw: Repeated(),
    ("QuantizeLayer, NeuromorphicReLU", ""): lambda draw: Net(nn.Sequential(
        sl.QuantizeLayer(draw(st.booleans())), sl.NeuromorphicReLU(draw(st.booleans()), stochastic_rounding=draw(st.booleans())), sl.IAF())).eval(),
    ("Cropping2dLayer, ChannelShift", ""): lambda draw: Images(
        sl.Cropping2dLayer(((0, 1), (1, 0))), sl.channel_shift.ChannelShift(channel_shift=1)),
    ("from_torch.from_model", ""): converted,
}  # fmt: skip
REFUSED = {
    ("LIF", "spike_threshold at or below 0"): (lambda: [
        Net(sl.LIF(10.0, spike_threshold=torch.tensor(0.0))), Net(sl.IAF(spike_threshold=torch.tensor(-1.0), spike_fn=sa.MaxSpike(3))),
        Net(sl.ALIF(10.0, 20.0, spike_threshold=torch.tensor(-1.0), spike_fn=sa.MultiSpike)),
        Net(sl.ALIF(10.0, 20.0, adapt_scale=-1.0, spike_fn=sa.MultiSpike))], "SPK101"),
    ("ALIF", "record_states, returned"): (lambda: [Net(sl.ALIF(10.0, 20.0, record_states=True), ("v_mem",))], "SPK101.*recordings"),
    ("IAFRecurrent, LIFRecurrent", "record_states, returned"): (
        lambda: [Net(sl.LIFRecurrent(10.0, nn.Linear(HIDDEN, HIDDEN), record_states=True), ("v_mem",))], "SPK101.*recordings"),
    ("LIF", "float64"): (lambda: [Net(sl.LIF(10.0)).double(), Net(sl.ALIF(10.0, 20.0)).double()], "SPK101.*float64"),
    ("SpikingMaxPooling2dLayer", ""): (lambda: [Images(sl.SpikingMaxPooling2dLayer((2, 2)))], "SPK10[12]"),
    ("Img2SpikeLayer, Sig2SpikeLayer", ""): (
        lambda: [nn.Sequential(sl.Img2SpikeLayer((6, IN), tw=5), nn.Linear(IN, 2)), sl.Sig2SpikeLayer(2)], "SPK107"),
}  # fmt: skip


def test_the_table_is_for_the_version_that_is_installed():
    assert version("sinabs") == VERSION


def test_every_row_has_a_case():
    rows = {(row.module, row.option): row.status for row in SUPPORT}
    assert len(rows) == len(SUPPORT)
    assert {row for row, status in rows.items() if status == "exact"} == set(EXACT)
    assert {row for row, status in rows.items() if status == "refused"} == set(REFUSED)
    assert "approximate" not in rows.values()


def run_fresh(model, x):
    """What the model returns, as a tuple, from states at zero."""
    for layer in model.modules():
        if isinstance(layer, sl.StatefulLayer):
            layer.reset_states()
    with torch.no_grad():
        found = model(x)
    return found if isinstance(found, tuple) else (found,)


def equal(graph, model, x, batch=None):
    """No number may differ. batch: how many samples lie in the first axis, if time is in it too."""
    wanted = run_fresh(model, x)
    data = x if batch is None else x.unflatten(0, (batch, -1))
    found = list(interpret(graph, {graph.inputs[0].name: data.numpy()}).outputs.values())
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine.reshape(theirs.shape), theirs.numpy())
    return wanted


@pytest.mark.parametrize("row", EXACT, ids=" ".join)
def test_exact_rows_on_dyadic_numbers(row):
    active = []
    flat = row[0] == SQUEEZE or row[0].startswith("from_torch")

    @settings(max_examples=8, deadline=None, phases=[Phase.generate])
    @given(st.data(), st.integers(3, 9), st.booleans())
    def run(data, steps, check):
        torch.manual_seed(data.draw(st.integers(0, 1000)))
        model = dyadic(EXACT[row](data.draw), data.draw)
        shape, longer = ((12, IN), (12, IN)) if flat else ((2, steps, IN), (2 if row[1] == "shape" else 3, steps + 3, IN))
        most = 2 if flat else 3
        graph = trace(model, torch.randint(0, most, shape).float(), check=check)
        found = equal(graph, model, torch.randint(0, most, longer).float(), 2 if flat else None)
        active.append(any(item.any() for item in found))

    run()
    assert any(active)


@pytest.mark.parametrize("row", REFUSED, ids=" ".join)
def test_refused_rows(row):
    models, code = REFUSED[row]
    for model in models():
        x = torch.ones(2, 6) if isinstance(model, sl.Sig2SpikeLayer) else torch.ones(2, 6, IN)
        with pytest.raises(CompileError, match=code):
            trace(model, x.double() if row[1] == "float64" else x)


def test_messages():
    with pytest.raises(CompileError) as caught:
        trace(Net(sl.LIF(10.0, spike_threshold=torch.tensor(0.0))), torch.ones(2, 6, IN))
    assert str(caught.value) == (
        "test_sinabs.py (layer): error[SPK101]: LIF with a spike_threshold that is not above 0 is not supported: several spikes a "
        "step are a quotient by it\n  fix: use spike_fn=SingleSpike, or a threshold above 0"
    )


def test_single_spikes_take_any_threshold():
    torch.manual_seed(0)
    model = Net(sl.LIF(10.0, spike_fn=sa.SingleSpike, spike_threshold=torch.tensor([-0.5, 0.0, 0.25, 1.0])))
    x = torch.randint(0, 3, (2, 9, IN)).float()
    model.fc.weight.data = torch.randint(-8, 12, (HIDDEN, IN)) / 8
    model.fc.bias.data = torch.zeros(HIDDEN)
    model.out.weight.data = torch.randint(-8, 12, (OUT, HIDDEN)) / 8
    model.out.bias.data = torch.zeros(OUT)
    equal(trace(model, x), model, x)


def test_what_sinabs_forgets_when_it_copies_is_kept():
    """sinabs' own deep copy of an ALIF has norm_input=True again."""
    model = Net(sl.ALIF(10.0, 20.0, norm_input=False))
    assert copy.deepcopy(model).layer.norm_input
    graph = trace(model, torch.ones(2, 5, IN))
    assert "gain" not in graph["layer"].params
    assert sl.StatefulLayer.__deepcopy__  # put back


@pytest.mark.parametrize(
    "layer",
    [
        sl.IAF(spike_threshold=torch.tensor(0.73)),
        sl.LIF(7.3, 3.1, spike_threshold=torch.tensor(0.37), min_v_mem=-0.77),
        sl.LIF(torch.rand(7) * 20, spike_fn=sa.SingleSpike, reset_fn=sa.MembraneReset(-0.1), spike_threshold=torch.tensor(0.1)),
        sl.LIF(7.3, spike_fn=sa.MaxSpike(3), norm_input=False, reset_fn=sa.MembraneSubtract(0.9)),
        sl.ALIF(7.3, 20.1, 4.2, spike_threshold=torch.tensor(0.11)),
        sl.ALIF(7.3, 20.1, adapt_scale=0.3, norm_input=False, spike_fn=sa.MultiSpike, min_v_mem=-0.3),
        sl.ExpLeak(7.3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_neurons_alone_agree_to_the_last_bit(layer):
    """Random numbers, 200 steps, no sum before the neuron: the same operations in the same order."""
    torch.manual_seed(1)
    x = torch.randn(5, 200, 7) * 2 + 0.5
    model = nn.Sequential(layer)
    (wanted,) = equal(trace(model, x[:, :20], batch_axis=0), model, x)
    assert wanted.any()


def test_random_numbers_stay_within_the_rounding_bound():
    """Each step from sinabs' own state; a spike may differ only where the sum before it was rounded differently."""
    torch.manual_seed(5)
    theta = 0.61
    model = nn.Sequential(
        nn.Linear(IN, 40),
        sl.LIF(8.0, spike_fn=sa.SingleSpike, spike_threshold=torch.tensor(theta), norm_input=False, record_states=True),
    )
    x = torch.randn(8, 200, IN)
    graph = trace(model, x[:, :20])
    (spikes,) = run_fresh(model, x)
    v = model[1].recordings["v_mem"].numpy()
    before = np.concatenate([np.zeros_like(v[:, :1]), v[:, :-1]], axis=1)
    (node,) = graph.neurons
    weight, bias = (parameter.detach().numpy() for parameter in model[0].parameters())
    current = x.numpy() @ weight.T + bias
    params = {name: array.item() for name, array in node.params.items()}
    found = run_program(node.program, {"x": current, "v": before, **params}, float_truth)
    at_comparison = params["alpha_mem"] * before.astype(np.float64) + current
    bound = sum_bound(weight, bias, x.numpy()) + neuron_bound(before, current, theta)
    flips = count_flips(found["s"].astype(np.float32), spikes.numpy(), at_comparison, theta, bound)
    assert flips.outside == 0 and flips.count <= 2, str(flips)
    assert spikes.any()


def scnn():
    """A convolutional network converted from an ANN; batch and time in the first axis."""
    ann = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.ReLU(), sl.SumPool2d(2), nn.Conv2d(3, 2, 2), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(2, 4), nn.ReLU(),
    )  # fmt: skip
    return from_model(ann, input_shape=(1, 6, 6), num_timesteps=12)


class BatchFirst(nn.Module):
    """(batch, time, features), recurrent, with a reading of the membrane at the end."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            sl.Repeat(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())), sl.LIF(4.0, spike_fn=sa.SingleSpike, norm_input=False),
            nn.Linear(32, 5), sl.LIFRecurrent(4.0, nn.Linear(5, 5), norm_input=False), nn.Linear(5, 4), sl.ExpLeak(3.0),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)


NETS = {"squeezed": (scnn, (36, 1, 6, 6)), "batch-first": (BatchFirst, (3, 12, 1, 6, 6)),
        "one sample": (scnn, (12, 1, 6, 6))}  # fmt: skip


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("target", "engines"), [("reference", ["reference"]), ("host", ["reference", "numpy", "c"])])
def test_networks_compiled(net, target, engines):
    torch.manual_seed(3)
    make, shape = NETS[net]
    model = make().eval()
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.weight.data = torch.randint(-8, 12, layer.weight.shape) / 8
            if layer.bias is not None:
                layer.bias.data = torch.randint(-4, 8, layer.bias.shape) / 8
    x = (torch.rand(shape) < 0.4).float()
    (wanted,) = run_fresh(model, x)
    assert wanted.any()
    build = spikec.compile(model, x, target=target)
    for engine in engines:
        (found,) = build.run(x.reshape(-1, 12, 1, 6, 6).numpy(), backend=engine).outputs.values()
        if net == "batch-first":  # a reading of the membrane: its sums may be added up in another order
            np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-4)
        else:
            np.testing.assert_array_equal(found.reshape(wanted.shape), wanted.numpy())
