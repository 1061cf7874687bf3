"""SpikingJelly's modules: every row of the support table against the framework itself, or its refusal."""

import os
from importlib.metadata import version

import numpy as np
import pytest
import torch
import torch.nn as nn
from bounds import neuron_bound, sum_bound
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from layers import dyadic_weights, eighths, equal, equal_everywhere, exact_in_float32, flips, spikes
from spikingjelly.activation_based import base, functional, layer, neuron, surrogate

from spikec.diagnostics import CompileError
from spikec.frontend.spikingjelly import SUPPORT, VERSION
from spikec.frontend.torch_trace import trace
from spikec.ir.interpret import interpret

IN, OUT = 5, 4


class Greater(nn.Module):
    """A surrogate of somebody else's."""

    def forward(self, x):
        return (x > 0).to(x)


class Layer(nn.Module):
    """Synapses and a neuron, step by step or all steps at once; gives spikes, and membranes where they are kept."""

    def __init__(self, module, mode, before=None, membranes=False):
        super().__init__()
        self.fc, self.neuron, self.membranes = before or layer.Linear(IN, OUT), module, membranes
        functional.set_step_mode(self, mode)
        self.mode = mode

    def forward(self, x):
        functional.reset_net(self)
        out = self.neuron(self.fc(x)) if self.mode == "m" else torch.stack([self.neuron(self.fc(xt)) for xt in x])
        return (out, self.neuron.v_seq) if self.membranes else out


THRESHOLDS = eighths(1, 12)
STEPS = [surrogate.Sigmoid(), surrogate.ATan(), surrogate.Erf(), surrogate.PiecewiseLeakyReLU(), surrogate.S2NN(), Greater()]
#: init_tau, for which the rate sigmoid(w) comes out as a power of two.
RATES = st.sampled_from([2.0])


def drawn(draw, module):
    options = {
        "v_threshold": draw(THRESHOLDS),
        "v_reset": draw(st.sampled_from([None, 0.0, -0.5])),
        "surrogate_function": draw(st.sampled_from(STEPS)),
        "detach_reset": draw(st.booleans()),
        "store_v_seq": draw(st.booleans()),
    }
    if module == "LIFNode":
        options["tau"] = draw(st.sampled_from([2.0, 4.0]))
    return options if module == "IFNode" else options | {"decay_input": draw(st.booleans())}


#: What an option of the table means: arguments that replace the drawn ones.
OPTIONS = {
    "": lambda draw: {},
    "v_reset=None": lambda draw: {"v_reset": None},
    "v_reset=0.0": lambda draw: {"v_reset": 0.0},
    "v_reset of any other value": lambda draw: {"v_reset": draw(eighths(-8, 8).filter(bool))},
    "v_threshold": lambda draw: {"v_threshold": draw(eighths(-8, 16))},
    "detach_reset=True": lambda draw: {"detach_reset": True},
    "store_v_seq=True": lambda draw: {"store_v_seq": True},
    "surrogate_function": lambda draw: {
        "surrogate_function": draw(
            st.sampled_from([surrogate.SoftSign(), surrogate.SuperSpike(), surrogate.PiecewiseExp(), surrogate.QPseudoSpike(), Greater()])
        )
    },
    "decay_input=True": lambda draw: {"decay_input": True},
    "decay_input=False": lambda draw: {"decay_input": False},
    "tau": lambda draw: {"tau": draw(st.sampled_from([1.25, 2.0, 4.0, 8.0]))},
    "init_tau, w": lambda draw: {"init_tau": draw(RATES)},
}  # fmt: skip
MODES = {"step_mode='s'": "s", "step_mode='m'": "m"}
NEURONS = ("IFNode", "LIFNode", "ParametricLIFNode")
EXAMPLES = 60 if os.environ.get("SPIKEC_LONG") else 4
ROWS = {status: [row for row in SUPPORT if row.status == status] for status in ("exact", "refused")}
NEURON_ROWS = [row for row in ROWS["exact"] if row.module in NEURONS]
GATED_ROWS = [row for row in SUPPORT if row.module == "GatedLIFNode"]
INSIDE_ROWS = [row for row in ROWS["exact"] if row.module.endswith("Node") and row.module not in (*NEURONS, "GatedLIFNode")]
REFUSED_ROWS = [row for row in ROWS["refused"] if row.module != "GatedLIFNode"]
LAYER_ROWS = [row for row in ROWS["exact"] if row.module.startswith("layer.")]
FUNCTION_ROWS = [row for row in ROWS["exact"] if row.module.startswith("functional.")]


def identity(row):
    return f"{row.module}, {row.option}".strip(" ,")


def test_the_table_is_of_the_version_that_is_installed_and_every_row_has_a_test():
    assert version("spikingjelly") == VERSION
    assert len(SUPPORT) == len({(row.module, row.option) for row in SUPPORT})
    tested = [*NEURON_ROWS, *INSIDE_ROWS, *LAYER_ROWS, *FUNCTION_ROWS, *GATED_ROWS, *REFUSED_ROWS]
    assert {id(row) for row in SUPPORT} == {id(row) for row in tested}


@pytest.mark.parametrize("row", NEURON_ROWS, ids=identity)
def test_a_neuron(row):
    seen = []

    @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
    @given(st.data())
    def run(data):
        draw = data.draw
        mode = MODES.get(row.option) or draw(st.sampled_from("sm"))
        options = drawn(draw, row.module) | ({} if row.option in MODES else OPTIONS[row.option](draw))
        model = Layer(getattr(neuron, row.module)(**options), mode, membranes=options["store_v_seq"])
        dyadic_weights(model, draw)
        steps = draw(st.integers(3, 6))
        graph = trace(model, spikes(draw, steps, 2, IN), check=draw(st.booleans()))
        x = spikes(draw, steps + 2, 3, IN)
        if options.get("tau", 2.0) == 2.0:  # a division by others is rounded, in the same way by both; the sums are exact
            assume(exact_in_float32(model, x))
        seen.append(equal(graph, model, x))

    run()
    assert any(seen), "no neuron did anything"


def inside(name):
    """The other neurons, with thresholds that are reached."""
    special = {
        "LIAFNode": lambda: neuron.LIAFNode(torch.relu, threshold_related=True),
        "KLIFNode": lambda: neuron.KLIFNode(scale_reset=True, v_threshold=0.25),
        "QIFNode": lambda: neuron.QIFNode(v_threshold=0.25, v_reset=-0.125),
        "ActivationAwareIFNode": lambda: neuron.ActivationAwareIFNode(v_threshold=torch.tensor([0.5, 1.0, 0.25, 0.75])),
        "HalfThresholdIFNode": lambda: neuron.HalfThresholdIFNode(),
        "SimpleIFNode": lambda: neuron.SimpleIFNode(),
        "SimpleLIFNode": lambda: neuron.SimpleLIFNode(2.0, False, v_threshold=0.5),
    }
    return special[name]() if name in special else getattr(neuron, name)(v_threshold=0.25)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("row", INSIDE_ROWS, ids=identity)
def test_a_neuron_that_is_traced_inside(row, mode):
    """Real numbers and no sum before the neuron: bit for bit."""
    torch.manual_seed(4)
    model = Layer(inside(row.module), mode, before=nn.Identity())
    x = torch.randn(40, 3, OUT)
    graph = trace(model, x[:8], batch_axis=1)
    assert len(graph.neurons) >= 1
    assert equal(graph, model, x)


@pytest.mark.parametrize("row", GATED_ROWS, ids=identity)
def test_gated_neurons(row):
    torch.manual_seed(4)
    model = Layer(neuron.GatedLIFNode(T=8, inplane=3), "m", before=nn.Identity())
    if row.status == "refused":
        model.neuron.conduct.data[5] += 0.5
        with pytest.raises(CompileError, match=r"error\[SPK104\]: step \d uses another constant"):
            trace(model, torch.randn(8, 2, 3, 2, 4), batch_axis=1)
        return
    x = torch.randn(8, 2, 3, 2, 4)
    assert equal(trace(model, x, batch_axis=1), model, x)


# --------------------------------------------------------------------------------------------------------------- layers


def flat(*layers):
    return nn.Sequential(*layers, layer.Flatten())


def at_least_one(module):
    return nn.Sequential(module, neuron.IFNode(v_threshold=0.5, v_reset=None))


#: A layer, and the shape of its input.
MADE = {
    "Linear": (lambda: layer.Linear(6, OUT), (6,)),
    "Conv1d": (lambda: layer.Conv1d(2, 3, 2), (2, 6)),
    "Conv2d": (lambda: layer.Conv2d(2, 3, 2, stride=2, padding=1), (2, 4, 5)),
    "BatchNorm1d": (lambda: nn.Sequential(layer.Linear(6, OUT), layer.BatchNorm1d(OUT)), (6,)),
    "BatchNorm2d": (lambda: nn.Sequential(layer.Conv2d(2, 3, 2), layer.BatchNorm2d(3)), (2, 4, 4)),
    "AvgPool1d": (lambda: layer.AvgPool1d(2), (2, 6)),
    "AvgPool2d": (lambda: layer.AvgPool2d(2), (2, 4, 6)),
    "MaxPool1d": (lambda: layer.MaxPool1d(2), (2, 6)),
    "MaxPool2d": (lambda: layer.MaxPool2d(2), (2, 4, 6)),
    "AdaptiveAvgPool1d": (lambda: layer.AdaptiveAvgPool1d(2), (2, 8)),
    "AdaptiveAvgPool2d": (lambda: layer.AdaptiveAvgPool2d(2), (2, 4, 8)),
    "Flatten": (lambda: flat(layer.Conv2d(1, 2, 2)), (1, 4, 4)),
    "Dropout": (lambda: nn.Sequential(layer.Dropout(0.5), layer.Linear(6, OUT)), (6,)),
    "Dropout2d": (lambda: nn.Sequential(layer.Conv2d(2, 3, 2), layer.Dropout2d(0.5)), (2, 4, 4)),
    "SynapseFilter": (lambda: nn.Sequential(layer.Linear(6, OUT), layer.SynapseFilter(tau=2.0)), (6,)),
    "VotingLayer": (lambda: nn.Sequential(layer.Linear(6, 8), layer.VotingLayer(2)), (6,)),
    "LinearRecurrentContainer": (lambda: layer.LinearRecurrentContainer(neuron.IFNode(v_reset=None), 6, 6), (6,)),
    "ElementWiseRecurrentContainer": (lambda: layer.ElementWiseRecurrentContainer(neuron.IFNode(v_reset=None), torch.add), (6,)),
    "StepModeContainer": (lambda: layer.StepModeContainer(False, "s", nn.Linear(6, OUT), nn.Linear(OUT, 3)), (6,)),
    "SeqToANNContainer": (lambda: layer.SeqToANNContainer(nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 6)), (2, 5, 5)),
    "MultiStepContainer": (
        lambda: layer.MultiStepContainer(nn.Linear(6, OUT), neuron.IFNode(v_reset=None), nn.Linear(OUT, OUT)), (6,),
    ),
}  # fmt: skip


def scaled_norms(model):
    """Norms whose factor and offset are dyadic."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean[:] = torch.arange(module.num_features) / 4
            module.running_var[:] = 4 - module.eps
            module.weight.data[:] = torch.tensor([0.5, 1.0, -1.0, 2.0])[: module.num_features]
            module.bias.data[:] = 0.25


@pytest.mark.parametrize("row", [row for row in LAYER_ROWS if "TLast" not in row.module], ids=identity)
def test_a_layer(row):
    torch.manual_seed(7)
    make, shape = MADE[row.module.removeprefix("layer.")]
    mode = MODES.get(row.option, "m")
    inner = make()
    model = Layer(neuron.LIFNode(v_reset=None, v_threshold=0.25), mode, before=inner)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            for parameter in module.parameters():
                parameter.data = torch.randint(-4, 9, parameter.shape) / 8
    scaled_norms(model)
    graph = trace(model, torch.randint(0, 2, (4, 2, *shape)).float(), batch_axis=1)
    x = torch.randint(0, 2, (8, 3, *shape)).float()
    assert equal(graph, model, x)


def test_a_container_with_time_last():
    (row,) = (row for row in LAYER_ROWS if "TLastMulti" in row.module)
    assert row.status == "exact"

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layer.TLastMultiStepContainer(nn.Linear(6, OUT), neuron.IFNode(v_reset=None))

        def forward(self, x):
            functional.reset_net(self)
            return self.inner(x)

    torch.manual_seed(0)
    model = Model()
    model.inner[0].weight.data = torch.randint(-4, 9, (OUT, 6)) / 8
    model.inner[0].bias.data = torch.zeros(OUT)
    x = torch.randint(0, 2, (3, 6, 8)).float()
    graph = trace(model, x)
    found = interpret(graph, {"x": x.permute(0, 2, 1).numpy()}).outputs["inner_1"]
    with torch.no_grad():
        wanted = model(x).permute(0, 2, 1).numpy()
    assert wanted.any()
    np.testing.assert_array_equal(found, wanted)


# ------------------------------------------------------------------------------------------------------- whole networks


class ConvNet(nn.Sequential):
    """As in SpikingJelly's own examples."""

    def __init__(self):
        super().__init__(
            layer.Conv2d(2, 3, 3, padding=1, bias=False), layer.BatchNorm2d(3), neuron.IFNode(surrogate_function=surrogate.ATan()),
            layer.MaxPool2d(2), layer.Conv2d(3, 4, 3, padding=1, bias=False), neuron.LIFNode(v_reset=None, v_threshold=0.5),
            layer.AvgPool2d(2), layer.Flatten(), layer.Dropout(0.5), layer.Linear(16, 6),
            neuron.LIFNode(decay_input=False, v_threshold=0.75), layer.Linear(6, 4), neuron.ParametricLIFNode(v_reset=-0.25),
        )  # fmt: skip


class Run(nn.Module):
    """A network in either step mode, time or the batch first; `at_once`: with set_step_mode and reset_net inside the model."""

    def __init__(self, net, mode, time_axis=0):
        super().__init__()
        self.net, self.mode, self.time_axis = net, mode, time_axis
        functional.set_step_mode(net, mode)

    def forward(self, x):
        functional.reset_net(self.net)
        x = x.transpose(0, 1) if self.time_axis else x
        out = self.net(x) if self.mode == "m" else torch.stack([self.net(xt) for xt in x])
        return out.transpose(0, 1) if self.time_axis else out


def conv_net():
    torch.manual_seed(11)
    net = ConvNet()
    for module in net:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            for parameter in module.parameters():
                parameter.data = torch.randint(-4, 12, parameter.shape) / 8
    scaled_norms(net)
    return net


@pytest.mark.parametrize("time_axis", [0, 1])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_conv_net_on_every_backend(mode, time_axis):
    model = Run(conv_net(), mode, time_axis)
    x = torch.randint(0, 2, (6, 3, 2, 8, 8)).float()
    x = x.transpose(0, 1).contiguous() if time_axis else x
    build = equal_everywhere(model, x, time_axis=time_axis)
    assert [node.op for node in build.graph().nodes].count("neuron") == 4


def test_both_step_modes_give_the_same_graph():
    x = torch.randint(0, 2, (6, 2, 2, 8, 8)).float()
    one, other = (trace(Run(conv_net(), mode), x) for mode in "sm")
    assert [(n.op, n.name) for n in one.neurons] == [(n.op, n.name) for n in other.neurons]
    assert [n.program for n in one.neurons] == [n.program for n in other.neurons]


@pytest.mark.parametrize("row", FUNCTION_ROWS, ids=identity)
def test_functions_before_and_inside_the_model(row):
    """Step modes may be set within `forward`; a network that is reset before or after every call is traced from its reset state."""

    class Within(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(layer.Linear(IN, OUT), neuron.LIFNode(v_reset=None, v_threshold=0.5))

        def forward(self, x):
            if row.module == "functional.set_step_mode":
                functional.set_step_mode(self.net, "m")
                out = self.net(x)
            else:
                out = torch.stack([self.net(xt) for xt in x])
            functional.reset_net(self.net)
            return out

    torch.manual_seed(0)
    model = Within()
    functional.set_step_mode(model.net, "m" if row.module == "functional.set_step_mode" else "s")
    for parameter in model.net[0].parameters():
        parameter.data = torch.randint(-4, 12, parameter.shape) / 8
    x = torch.randint(0, 2, (8, 3, IN)).float()
    assert equal(trace(model, x), model, x)


def test_states_that_are_left_from_earlier_calls():
    """Of another batch, and on a training graph; tracing leaves them as they were, and begins from reset states."""
    net = nn.Sequential(layer.Linear(IN, OUT), neuron.IFNode(v_reset=None), layer.Linear(OUT, OUT), neuron.LIFNode(v_reset=-0.5))
    torch.manual_seed(0)
    for module in (net[0], net[2]):
        for parameter in module.parameters():
            parameter.data = torch.randint(-4, 12, parameter.shape) / 8

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return torch.stack([self.net(xt) for xt in x])

    model = Plain()
    model(torch.randint(0, 2, (4, 2, IN)).float())
    left = [net[1].v.clone(), net[3].v.clone()]
    assert left[0].grad_fn is not None
    x = torch.randint(0, 2, (8, 3, IN)).float()
    graph = trace(model, x)
    assert all(torch.equal(a, b) for a, b in zip(left, (net[1].v, net[3].v), strict=True))
    functional.reset_net(net)
    assert equal(graph, model, x)


def test_a_model_of_a_single_step():
    torch.manual_seed(0)
    model = nn.Sequential(layer.Linear(IN, OUT), neuron.LIFNode(v_threshold=0.5))
    for parameter in model[0].parameters():
        parameter.data = torch.randint(-4, 12, parameter.shape) / 8
    graph = trace(model, torch.randint(0, 2, (3, IN)).float(), batch_axis=0)
    x = torch.randint(0, 2, (8, 3, IN)).float()
    with torch.no_grad():
        wanted = torch.stack([model(xt) for xt in x]).numpy()
    assert wanted.any()
    (found,) = interpret(graph, {graph.inputs[0].name: x.numpy().swapaxes(0, 1)}).outputs.values()
    np.testing.assert_array_equal(found.swapaxes(0, 1), wanted)


def test_one_neuron_used_twice_is_two_uses_of_one_state():
    """SpikingJelly's neuron keeps one membrane, which both uses change: a graph says so, or refuses."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.neuron = nn.Linear(IN, OUT), neuron.IFNode(v_reset=None)

        def forward(self, x):
            functional.reset_net(self)
            return torch.stack([self.neuron(self.neuron(self.fc(xt))) for xt in x])

    torch.manual_seed(0)
    model = Twice()
    for parameter in model.fc.parameters():
        parameter.data = torch.randint(-4, 12, parameter.shape) / 8
    x = torch.randint(0, 2, (8, 3, IN)).float()
    assert equal(trace(model, x), model, x)


# -------------------------------------------------------------------------------------------------------- real numbers


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.3])
@pytest.mark.parametrize(
    "make",
    [
        lambda **o: neuron.IFNode(**o),
        lambda **o: neuron.LIFNode(tau=2.7, **o),
        lambda **o: neuron.LIFNode(tau=1.3, decay_input=False, **o),
        lambda **o: neuron.ParametricLIFNode(init_tau=3.3, **o),
        lambda **o: neuron.ParametricLIFNode(init_tau=1.7, decay_input=False, **o),
    ],
    ids=["if", "lif", "lif-not-decayed", "plif", "plif-not-decayed"],
)
def test_the_neuron_alone_agrees_to_the_last_bit(make, v_reset, mode):
    """Random float32 numbers, 150 steps, no sum before the neuron: the same operations in the same order."""
    torch.manual_seed(3)
    model = Layer(make(v_reset=v_reset, v_threshold=0.61, store_v_seq=True), mode, before=nn.Identity(), membranes=True)
    x = torch.randn(150, 5, 7)
    assert equal(trace(model, x[:9], batch_axis=1), model, x)


@pytest.mark.parametrize("name", ["IFNode", "LIFNode", "ParametricLIFNode"])
@pytest.mark.parametrize("v_reset", [None, -0.3])
def test_random_numbers_stay_within_the_rounding_bound(name, v_reset):
    """Each step from SpikingJelly's own membrane; a spike may differ only where the sum before it was rounded differently."""
    torch.manual_seed(5)
    model = Layer(getattr(neuron, name)(v_reset=v_reset, v_threshold=0.37, store_v_seq=True), "m", membranes=True)
    x = torch.randn(200, 8, IN)
    graph = trace(model, x[:15])
    with torch.no_grad():
        spiked, membranes = (item.numpy() for item in model(x))
        current = model.fc(x).numpy()
    before = np.concatenate([np.full_like(membranes[:1], v_reset or 0), membranes[:-1]])
    weight, bias = (parameter.detach().numpy() for parameter in model.fc.parameters())
    mine = interpret(graph, {"x": x.numpy().swapaxes(0, 1)}, record=["fc"]).records["fc"].swapaxes(0, 1)
    bound = sum_bound(weight, bias, x.numpy())
    assert np.all(np.abs(mine.astype(np.float64) - current) <= bound)
    bound = bound + neuron_bound(before, current, 0.37)
    found = flips(graph["neuron"], {"x": mine}, {"x": current}, {"v": before}, spiked, bound)
    assert spiked.any()
    assert found.outside == 0, str(found)
    assert found.count <= 2, str(found)


# ------------------------------------------------------------------------------------------------------------ refusals


class Never(nn.Module):
    """The module is refused before it is called."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        raise AssertionError


def bare(cls):
    """An instance that was never built: only its type matters."""
    made = cls.__new__(cls)
    (base.MemoryModule if issubclass(cls, base.MemoryModule) else nn.Module).__init__(made)
    made.__dict__["activation"] = None  # DropConnectLinear resets it
    return made


def refused_module(row):
    if row.module.startswith("layer."):
        return bare(getattr(layer, row.module.removeprefix("layer.")))
    cls = getattr(neuron, row.module)
    if not row.option:
        return bare(cls)
    if "surrogate" in row.option:
        return cls(surrogate_function=surrogate.Sigmoid(spiking=False))
    made = cls()
    made._neuron_precision = ("fp8", "fp32", "fp32")  # what spikingjelly.precision sets
    return made


@pytest.mark.parametrize("row", REFUSED_ROWS, ids=identity)
def test_a_row_that_says_refused(row):
    with pytest.raises(CompileError) as caught:
        trace(Never(refused_module(row)), torch.zeros(5, 2, IN))
    (found,) = caught.value.diagnostics
    assert found.code == ("SPK110" if "surrogate" in row.option else "SPK101")
    assert found.loc is not None and found.loc.path == "inner"
    if found.code == "SPK101":
        assert found.message.startswith(row.module.removeprefix("layer."))


def test_an_operator_that_does_not_do_what_its_definition_says(monkeypatch):
    from spikingjelly._ops.qif import reference

    right = reference._forward_impl
    monkeypatch.setattr(reference, "_forward_impl", lambda x, *rest: right(x + 1, *rest))
    model = Layer(neuron.QIFNode(), "m")
    with pytest.raises(CompileError, match=r"SPK102.*sj_qif::forward does not do what its own definition in torch says"):
        trace(model, torch.rand(5, 2, IN))
