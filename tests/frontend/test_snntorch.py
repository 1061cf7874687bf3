"""snnTorch's neuron modules: every row of the support table against the framework itself, or its refusal."""

import os

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn as nn
from bounds import gamma, neuron_bound, sum_bound
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from layers import dyadic_weights, eighths, equal, equal_everywhere, exact_in_float32, flips, spikes
from snntorch import surrogate, utils

from spikec.diagnostics import CompileError
from spikec.frontend.snntorch import SUPPORT, VERSION
from spikec.frontend.torch_trace import trace
from spikec.ir.interpret import interpret

IN, OUT = 5, 4
EXAMPLES = 60 if os.environ.get("SPIKEC_LONG") else 4
RECURRENT = ("RLeaky", "RSynaptic")
TWO_DECAYS = ("Synaptic", "RSynaptic", "Alpha")


class GreaterOrEqual(torch.autograd.Function):
    """A surrogate of somebody else's."""

    @staticmethod
    def forward(ctx, x):
        return (x >= 0).to(x)


class Layer(nn.Module):
    """A linear layer or convolution and a neuron; states are passed, or hidden in the neuron."""

    def __init__(self, neuron, before=None):
        super().__init__()
        self.fc, self.neuron = before or nn.Linear(IN, OUT), neuron

    def forward(self, x):
        hidden = self.neuron.init_hidden
        self.neuron.reset_mem()
        state = ()
        rows = []
        for xt in x:
            result = self.neuron(self.fc(xt), *(() if hidden else state))
            result = result if isinstance(result, tuple) else (result,)
            state = result if isinstance(self.neuron, (snn.RLeaky, snn.RSynaptic)) else result[1:]
            rows.append(result)
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def many(draw, values):
    return torch.tensor([draw(values) for _ in range(OUT)])


DECAYS = st.sampled_from([0.0, 0.5, 1.0])
THRESHOLDS = eighths(1, 12)
#: R and C of Lapicque for which 1 - 1 / (R C) is 0, 1/2 or -1.
RESISTANCES = st.sampled_from([(1, 1), (1.0, 2.0), (2, 0.5), (0.25, 2.0), (4.0, 0.5)])
#: Decays of Alpha for which its factor is a power of two.
PAIRS = st.sampled_from([(0.5, 0.25), (1.0, 0.5), (0.5, 0.0), (1.0, 0.25)])


def drawn(draw, module):
    """Arguments of a module: dyadic numbers, and anything for the rest."""
    options = {
        "threshold": draw(THRESHOLDS) if draw(st.booleans()) else draw(eighths(-4, 12)),
        "reset_mechanism": draw(st.sampled_from(["subtract", "zero", "none"])),
        "init_hidden": draw(st.booleans()),
        "learn_threshold": draw(st.booleans()),
        "spike_grad": draw(st.sampled_from([None, surrogate.fast_sigmoid(), surrogate.atan(), GreaterOrEqual.apply])),
    }
    if module == "Lapicque":
        return options | dict(zip("RC", draw(RESISTANCES), strict=True))
    options["beta"] = draw(DECAYS) if draw(st.booleans()) else draw(st.sampled_from([1.5, -0.25]))
    if module == "Alpha":
        options["alpha"], options["beta"] = draw(PAIRS)
        return options
    if module in TWO_DECAYS:
        options["alpha"] = draw(st.sampled_from([0.0, 0.5, 1.0, 1.5]))
    if module in RECURRENT:
        options |= {"linear_features": OUT} if draw(st.booleans()) else {"all_to_all": False, "V": draw(eighths(-8, 8))}
    if module != "RSynaptic":
        options["reset_delay"] = draw(st.booleans())
    return options


def per_neuron(draw, module):
    found = {"threshold": many(draw, THRESHOLDS)}
    if module == "Alpha":
        pairs = [draw(PAIRS) for _ in range(OUT)]
        return found | {"alpha": torch.tensor([a for a, _ in pairs]), "beta": torch.tensor([b for _, b in pairs])}
    return found if module == "Lapicque" else found | {"beta": many(draw, DECAYS)}


ALL_TO_ALL = {"all_to_all": True, "V": 1.0}
#: What an option of the table means: arguments that replace the drawn ones.
OPTIONS = {
    "": lambda draw, module: {},
    "reset_mechanism='subtract'": lambda draw, module: {"reset_mechanism": "subtract"},
    "reset_mechanism='zero'": lambda draw, module: {"reset_mechanism": "zero"},
    "reset_mechanism='none'": lambda draw, module: {"reset_mechanism": "none"},
    "reset_delay=False": lambda draw, module: {"reset_delay": False},
    "learn_beta, learn_threshold": lambda draw, module: {"learn_beta": module != "Lapicque", "learn_threshold": True},
    "beta, threshold per neuron": per_neuron,
    "learn_alpha, alpha per neuron": lambda draw, module: (
        per_neuron(draw, module) if module == "Alpha" else {"alpha": many(draw, DECAYS), "learn_alpha": draw(st.booleans())}
    ),
    "init_hidden=True": lambda draw, module: {"init_hidden": True},
    "output=True": lambda draw, module: {"init_hidden": True, "output": True},
    "graded_spikes_factor": lambda draw, module: {"graded_spikes_factor": draw(st.sampled_from([0.5, 2.0, -1.0]))},
    "spike_grad, surrogate_disable": lambda draw, module: {
        "spike_grad": draw(
            st.sampled_from(
                [surrogate.sigmoid(), surrogate.triangular(), surrogate.straight_through_estimator(), surrogate.spike_rate_escape()]
            )
        ),
        "surrogate_disable": draw(st.booleans()),
    },
    "all_to_all=True, linear_features": lambda draw, module: {**ALL_TO_ALL, "linear_features": OUT},
    "all_to_all=True, conv2d_channels": lambda draw, module: {
        **ALL_TO_ALL, "linear_features": None, "conv2d_channels": 2, "kernel_size": draw(st.sampled_from([3, (3, 1)])),
    },
    "all_to_all=False, V": lambda draw, module: {
        "all_to_all": False, "linear_features": None, "V": draw(eighths(-8, 8)) if draw(st.booleans()) else many(draw, eighths(-8, 8)),
    },
    "R, C": lambda draw, module: dict(zip("RC", draw(RESISTANCES), strict=True)),
    "time_step": lambda draw, module: {"time_step": draw(st.sampled_from([0.5, 2])), "R": 2, "C": 0.5},
}  # fmt: skip
#: Decays whose logarithm is no dyadic number: tested with the neuron alone, where nothing depends on the order of a sum.
BY_BETA = ("beta, R", "beta, C")


def make(module, options):
    """A neuron; a factor of the spikes is set afterwards where the constructor does not take one."""
    options = dict(options)
    factor = options.pop("graded_spikes_factor", None) if module != "Leaky" else None
    made = getattr(snn, module)(**options)
    if factor is not None:
        made.graded_spikes_factor = torch.tensor(factor)
    return made


EXACT = [row for row in SUPPORT if row.status == "exact" and row.option not in BY_BETA and row.module != "DeltaLeaky"]
REFUSED = [row for row in SUPPORT if row.status == "refused"]


def test_the_table_is_of_the_version_that_is_installed():
    assert snn.__version__ == VERSION
    assert {row.status for row in SUPPORT} == {"exact", "refused"}
    assert len({(row.module, row.option) for row in SUPPORT}) == len(SUPPORT)


@pytest.mark.parametrize("row", EXACT, ids=lambda row: f"{row.module}, {row.option}".strip(" ,"))
def test_a_row_that_says_exact(row):
    seen = []

    @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
    @given(st.data())
    def run(data):
        draw = data.draw
        neuron = make(row.module, drawn(draw, row.module) | OPTIONS[row.option](draw, row.module))
        conv = "conv2d" in row.option
        layer = Layer(neuron, nn.Conv2d(1, 2, 2) if conv else None)
        dyadic_weights(layer, draw)
        shape = (1, 4, 5) if conv else (IN,)
        steps = draw(st.integers(3, 7))
        graph = trace(layer, spikes(draw, steps, 2, *shape), check=draw(st.booleans()))
        x = spikes(draw, steps + 2, 3, *shape)
        assume(exact_in_float32(layer, x))
        seen.append(equal(graph, layer, x))

    run()
    assert any(seen), "no neuron did anything"


@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("option", BY_BETA)
def test_lapicque_from_its_beta(option, reset_mechanism):
    assert any((row.module, row.option) == ("Lapicque", option) for row in SUPPORT)
    torch.manual_seed(2)
    given_ = {"beta, R": {"R": 3.0}, "beta, C": {"C": 0.7}}[option]
    model = Layer(snn.Lapicque(beta=0.83, reset_mechanism=reset_mechanism, **given_), nn.Identity())
    x = torch.randn(60, 4, 7)
    assert equal(trace(model, x[:9], batch_axis=1), model, x)


def test_delta_leaky_is_traced_inside():
    class Delta(nn.Module):
        def __init__(self, hidden):
            super().__init__()
            self.hidden, self.fc = hidden, nn.Linear(IN, OUT)
            self.neuron = snn.DeltaLeaky(delta_threshold=0.5, beta=0.5, init_hidden=hidden)

        def forward(self, x):
            state = self.neuron.reset_mem()
            out = []
            for xt in x:
                spk, state = self.neuron(self.fc(xt)) if self.hidden else self.neuron(self.fc(xt), state)
                out.append(spk)
            return torch.stack(out)

    torch.manual_seed(0)
    for hidden in (True, False):
        model = Delta(hidden)
        model.fc.weight.data = torch.randint(-8, 12, (OUT, IN)) / 8
        model.fc.bias.data = torch.zeros(OUT)
        x = torch.randint(0, 2, (9, 3, IN)).float()
        model(x)  # leaves a state behind
        assert equal(trace(model, x), model, x)


@pytest.mark.parametrize("module", ["Leaky", "RLeaky", "Synaptic"])
def test_a_membrane_of_zero_that_fires(module):
    """With >= and a threshold of 0 a membrane that was reset to zero is above the threshold again: it is left over."""
    torch.manual_seed(0)
    options = {"beta": 1.0, "threshold": 0.0, "reset_mechanism": "zero", "reset_delay": False, "spike_grad": GreaterOrEqual.apply}
    options |= {"alpha": 0.5} if module == "Synaptic" else {}
    options |= {"all_to_all": False, "V": -0.5} if module == "RLeaky" else {}
    layer = Layer(make(module, options))
    for parameter in layer.fc.parameters():
        parameter.data = torch.randint(-8, 8, parameter.shape) / 8
    x = torch.randint(0, 2, (8, 3, IN)).float()
    assert equal(trace(layer, x), layer, x)


# ------------------------------------------------------------------------------------------------------- real numbers


@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("module", ["Leaky", "RLeaky", "Synaptic", "RSynaptic", "Alpha", "Lapicque"])
def test_the_neuron_alone_agrees_to_the_last_bit(module, reset_mechanism):
    """Random float32 numbers, 200 steps, no sum but the neuron's own: the same operations in the same order."""
    torch.manual_seed(3)
    options = {"reset_mechanism": reset_mechanism, "threshold": torch.rand(7) + 0.3}
    if module == "Lapicque":
        options |= {"R": 1.7, "C": 2.3, "time_step": 0.9}
    elif module == "Alpha":
        options |= {"beta": torch.rand(7) / 2, "alpha": torch.rand(7) / 2 + 0.5}
    else:
        options["beta"] = torch.rand(7)
        options |= {"alpha": torch.rand(7)} if module in TWO_DECAYS else {}
        options |= {"all_to_all": False, "V": torch.randn(7)} if module in RECURRENT else {}
    for delay in (True, False) if module in ("Leaky", "RLeaky", "Synaptic") else (None,):
        model = Layer(make(module, options if delay is None else options | {"reset_delay": delay}), nn.Identity())
        x = torch.randn(200, 5, 7)
        assert equal(trace(model, x[:12], batch_axis=1), model, x)


@pytest.mark.parametrize("module", ["RLeaky", "Synaptic", "RSynaptic", "Alpha", "Lapicque"])
def test_random_numbers_stay_within_the_rounding_bound(module):
    """Each step from snnTorch's own states; a spike may differ only where the sums before it were rounded differently."""
    torch.manual_seed(5)
    options = {"threshold": 0.37, "reset_mechanism": "subtract"}
    options |= {"R": 1.3, "C": 2.1} if module == "Lapicque" else {"beta": 0.61}
    options |= {"alpha": 0.83} if module in TWO_DECAYS else {}
    options |= {"linear_features": OUT} if module in RECURRENT else {}
    layer = Layer(make(module, options))
    x = torch.randn(200, 8, IN)
    graph = trace(layer, x[:15])
    with torch.no_grad():
        results = [item.numpy() for item in layer(x)]
        current = layer.fc(x).numpy()
    node = graph["neuron"]
    names = node.program.state_names
    before = {name: np.concatenate([np.zeros_like(r[:1]), r[:-1]]) for name, r in zip(names, results[-len(names) :], strict=True)}
    fc = (layer.fc.weight.detach().numpy(), layer.fc.bias.detach().numpy())
    ours, theirs = {"x": (x.numpy() @ fc[0].T + fc[1]).astype(np.float32)}, {"x": current}
    bound = sum_bound(*fc, x.numpy())
    record = interpret(graph, {"x": x.numpy().swapaxes(0, 1)}, record=["fc"]).records["fc"].swapaxes(0, 1)
    assert np.all(np.abs(record.astype(np.float64) - current) <= bound)
    if module in RECURRENT:
        spiked = np.concatenate([np.zeros_like(results[0][:1]), results[0][:-1]])
        back = (layer.neuron.recurrent.weight.detach().numpy(), layer.neuron.recurrent.bias.detach().numpy())
        ours["back"] = (spiked @ back[0].T + back[1]).astype(np.float32)
        with torch.no_grad():
            theirs["back"] = layer.neuron.recurrent(torch.as_tensor(spiked)).numpy()
        bound = bound + sum_bound(*back, spiked)
    bound = bound + neuron_bound(before["v"], sum(np.abs(item) for item in ours.values()), 0.37)
    if "i" in before:
        bound = bound + gamma(4, 2.0**-24) * (np.abs(before["i"]) + np.abs(current))
    if module == "Alpha":
        gain = abs(float(node.params["gain"]))
        inner = sum(np.abs(before[name]) for name in ("e", "i")) + 2 * np.abs(current)
        bound = max(2 * gain, 1) * bound + gamma(6, 2.0**-24) * gain * inner
    found = flips(node, ours, theirs, before, results[0], bound)
    assert results[0].any()
    assert found.outside == 0, str(found)
    assert found.count <= 2, str(found)


# ------------------------------------------------------------------------------------------------------- the state API


def begun(module, value):
    class Begun(Layer):
        def forward(self, x):
            state = [torch.full((x.shape[1], OUT), value) for _ in self.neuron.reset_mem()]
            if module in RECURRENT:
                state[0] = torch.tensor([1.0, 0.0, 1.0, 0.0]).expand(x.shape[1], OUT)  # spikes of the step before
            out = []
            for xt in x:
                result = self.neuron(self.fc(xt), *state)
                state = result if module in RECURRENT else result[1:]
                out.append(result[0])
            return torch.stack(out)

    return Begun


@pytest.mark.parametrize("value", [0.5, 1.75])
@pytest.mark.parametrize("module", ["RLeaky", "Synaptic", "RSynaptic", "Alpha"])
@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
def test_states_that_do_not_begin_at_zero(module, reset_mechanism, value):
    torch.manual_seed(0)
    options = {"beta": 0.5, "reset_mechanism": reset_mechanism}
    options |= {"alpha": 1.0} if module in TWO_DECAYS else {}
    options |= {"linear_features": OUT} if module in RECURRENT else {}
    model = begun(module, value)(make(module, options))
    for parameter in (p for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()):
        parameter.data = torch.randint(-8, 12, parameter.shape) / 8
    x = torch.randint(0, 2, (8, 2, IN)).float()
    assert equal(trace(model, x), model, x)


class Mixed(nn.Module):
    """Every module with hidden states, one of them twice, and one more instance that the model does not use."""

    def __init__(self):
        super().__init__()
        lif = snn.Leaky(beta=0.5, init_hidden=True)
        self.stack = nn.Sequential(
            nn.Linear(IN, OUT), lif, nn.Linear(OUT, OUT),
            snn.RLeaky(beta=0.5, linear_features=OUT, init_hidden=True), nn.Linear(OUT, OUT),
            snn.RSynaptic(alpha=0.5, beta=0.5, V=0.5, all_to_all=False, init_hidden=True), nn.Linear(OUT, OUT),
            snn.Synaptic(alpha=0.5, beta=1.0, init_hidden=True), nn.Linear(OUT, OUT),
            snn.Alpha(alpha=0.5, beta=0.25, init_hidden=True), nn.Linear(OUT, OUT),
            snn.Lapicque(R=1.0, C=2.0, init_hidden=True, output=True),
        )  # fmt: skip
        self.unused = snn.Synaptic(alpha=0.5, beta=0.5, init_hidden=True)

    def forward(self, x):
        utils.reset(self.stack)
        spikes_, membranes = zip(*(self.stack(xt) for xt in x), strict=True)
        return torch.stack(spikes_), torch.stack(membranes)


def mixed():
    torch.manual_seed(1)
    model = Mixed()
    for parameter in (p for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()):
        parameter.data = torch.randint(0, 9, parameter.shape) / 8
    return model


def test_every_module_at_once_on_every_backend():
    x = torch.randint(0, 2, (7, 3, IN)).float()
    build = equal_everywhere(mixed(), x, time_axis=0, batch_axis=1)
    assert sum(node.op == "neuron" for node in build.graph().nodes) == 6


def test_hidden_states_that_are_left_from_earlier_calls():
    """Also states of another batch, and ones that hang on a training graph; tracing leaves all of them as they were."""
    model = mixed()
    x = torch.randint(0, 2, (7, 3, IN)).float()
    model(torch.randint(0, 2, (4, 2, IN)).float())
    neurons = [module for module in model.stack if isinstance(module, snn.SpikingNeuron)]
    before = [neuron.mem.clone() for neuron in neurons]
    assert model.stack[3].spk.grad_fn is not None
    graph = trace(model, x)
    assert all(torch.equal(neuron.mem, mem) for neuron, mem in zip(neurons, before, strict=True))
    assert equal(graph, model, x)


def test_a_single_step_model_with_hidden_states():
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.neuron = nn.Linear(IN, OUT), snn.RSynaptic(alpha=0.5, beta=0.5, linear_features=OUT, init_hidden=True)

        def forward(self, x):
            return self.neuron(self.fc(x))

    torch.manual_seed(0)
    model = Step()
    for layer in (model.fc, model.neuron.recurrent):
        for parameter in layer.parameters():
            parameter.data = torch.randint(-4, 9, parameter.shape) / 8
    graph = trace(model, torch.randint(0, 2, (3, IN)).float(), batch_axis=0)
    x = torch.randint(0, 2, (8, 3, IN)).float()
    with torch.no_grad():
        model.neuron.reset_mem()
        wanted = torch.stack([model(xt) for xt in x]).numpy()
    assert wanted.any()
    np.testing.assert_array_equal(interpret(graph, {"x": x.numpy().swapaxes(0, 1)}).outputs["neuron"].swapaxes(0, 1), wanted)


# ------------------------------------------------------------------------------------------------------------ refusals


def refused_module(row):
    recurrent = {"linear_features": OUT} if row.module in RECURRENT else {}
    decays = {"alpha": 0.9} if row.module in TWO_DECAYS else {}
    options = {
        "inhibition=True": {"inhibition": True},
        "state_quant": {"state_quant": torch.round},
        "spike_grad that is no step": {"spike_grad": torch.sigmoid},
        "reset_delay=False": {"reset_delay": False},
    }[row.option]
    return getattr(snn, row.module)(
        **({"R": 1.0, "C": 2.0} if row.module == "Lapicque" else {"beta": 0.5}), **decays, **recurrent, **options
    )


OTHERS = {
    "LeakyParallel": lambda: snn.LeakyParallel(OUT, OUT),
    "StateLeaky": lambda: snn.StateLeaky(beta=0.5, channels=OUT),
    "LinearLeaky": lambda: snn.LinearLeaky(beta=0.5, in_features=OUT, out_features=OUT),
    "AssociativeLeaky": lambda: snn.AssociativeLeaky(OUT, 2, 2, 4),
    "SLSTM": lambda: snn.SLSTM(OUT, OUT),
    "SConv2dLSTM": lambda: snn.SConv2dLSTM(2, 2, 3),
}


class Never(nn.Module):
    """The module is refused before it is called."""

    def __init__(self, neuron):
        super().__init__()
        self.neuron = neuron

    def forward(self, x):
        raise AssertionError


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
@pytest.mark.parametrize("row", REFUSED, ids=lambda row: f"{row.module}, {row.option}".strip(" ,"))
def test_a_row_that_says_refused(row):
    neuron = refused_module(row) if row.option else OTHERS[row.module]()
    with pytest.raises(CompileError) as caught:
        trace(Never(neuron), torch.zeros(5, 2, IN))
    (found,) = caught.value.diagnostics
    assert found.code == ("SPK110" if "no step" in row.option else "SPK101")
    assert found.loc is not None and found.loc.path == "neuron"
    if found.code == "SPK101":
        assert found.message.startswith(row.module)


def test_rsynaptic_without_a_delay_is_broken_in_snntorch():
    """Why the table refuses it: it fails with hidden states, and resets a step late where they are passed."""
    x = torch.ones(2, OUT)
    options = {"alpha": 0.5, "beta": 0.5, "linear_features": OUT}
    with pytest.raises(TypeError, match="unsupported operand"):
        snn.RSynaptic(**options, reset_delay=False, init_hidden=True)(x)
    with pytest.raises(TypeError, match="unsupported operand"):
        snn.RSynaptic(**options, reset_delay=False)(x)
    torch.manual_seed(0)
    late, broken = snn.RSynaptic(**options), snn.RSynaptic(**options, reset_delay=False)
    broken.load_state_dict(late.state_dict())
    states = [(torch.zeros(2, OUT),) * 3] * 2
    for _ in range(10):
        states = [neuron(x, *state) for neuron, state in zip((late, broken), states, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_parameters_that_are_not_finite():
    neuron = snn.Alpha(alpha=0.75, beta=0.5)
    neuron.beta = torch.tensor(0.75)
    with pytest.raises(CompileError, match=r"SPK101.*Alpha has parameters that are not finite: gain"):
        trace(Never(neuron), torch.zeros(5, 2, IN))


def test_a_mechanism_that_was_changed_after_building():
    neuron = snn.RLeaky(beta=0.5, linear_features=OUT, reset_delay=False)
    neuron.reset_mechanism = "zero"
    with pytest.raises(CompileError, match=r"SPK101.*RLeaky was built with reset_mechanism 'subtract' and later set to 'zero'"):
        trace(Never(neuron), torch.zeros(5, 2, IN))
