"""The rest of the tracer's interface: own neuron modules, names and places, kinds of input, what tracing must not touch."""

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn as nn

from spikec.diagnostics import CompileError
from spikec.frontend import registry
from spikec.frontend.registry import Leaf
from spikec.frontend.torch_trace import register_neuron, trace
from spikec.ir.interpret import interpret
from spikec.ir.text import parse_program

X = (torch.arange(8 * 2 * 4).reshape(8, 2, 4) % 3 == 0).float()


class Perfect(nn.Module):
    """Integrates without a leak; its state is handed back and forth."""

    def __init__(self, theta):
        super().__init__()
        self.theta = theta

    def forward(self, x, v=None):
        v = x + (torch.zeros_like(x) if v is None else v)
        s = torch.ge(v, self.theta).to(x.dtype)
        return s, v - s * self.theta


class Keeps(nn.Module):
    """Keeps its state itself, in an attribute of the state's name."""

    def __init__(self):
        super().__init__()
        self.v, self.beta = None, 0.5

    def forward(self, x):
        self.v = x if self.v is None else self.beta * self.v + x
        s = (self.v > 1).float()
        self.v = self.v * (1 - s)
        return s


class Net(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.block = nn.ModuleDict({"fc": nn.Linear(4, 3), "neuron": neuron})
        self.block["fc"].weight.data = torch.tensor([[8, 4, -2, 3], [6, -1, 8, 0], [2, 2, 2, 2]]) / 8
        self.block["fc"].bias.data = torch.zeros(3)

    def forward(self, x):
        state, out = None, []
        for t in range(x.shape[0]):
            current = self.block["fc"](x[t])
            if isinstance(self.block["neuron"], Keeps):
                spikes = self.block["neuron"](current)
            else:
                spikes, state = self.block["neuron"](current, state)
            out.append(spikes)
        return torch.stack(out)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


PERFECT = """neuron @perfect(x) params(theta) state(v = 0) {
  v = v + x
  s = v >= theta
  v = v - s * theta
  emit s
}"""
KEEPS = """neuron @keeps(x) params(beta) state(v = 0) {
  v = beta * v + x
  s = v > 1
  v = select(s, 0, v)
  emit s
}"""


def same(graph, model):
    found = interpret(graph, {"x": X.numpy().swapaxes(0, 1)}).outputs
    with torch.no_grad():
        np.testing.assert_array_equal(next(iter(found.values())).swapaxes(0, 1), model(X).numpy())


@pytest.mark.parametrize("form", ["text", "program", "function", "leaf"])
def test_an_own_neuron_runs_the_program_it_was_registered_with(form):
    program = parse_program(PERFECT)
    leaf = lambda module: Leaf(program, {"theta": np.asarray(module.theta)}, ("x", "v"), ("s", "v"))
    register_neuron(Perfect, {"text": PERFECT, "program": program, "function": lambda module: program, "leaf": leaf}[form])
    model = Net(Perfect(1.5))
    graph = trace(model, X)
    assert graph["block_neuron"].program.name == "perfect"
    assert graph["block_neuron"].params["theta"] == 1.5
    same(graph, model)


def test_a_neuron_that_keeps_its_state():
    register_neuron(Keeps, KEEPS)
    graph = trace(Net(Keeps()), X)
    assert graph["block_neuron"].program.name == "keeps"
    same(graph, Net(Keeps()))


def test_the_same_neurons_unregistered_are_traced_inside():
    for neuron in (Perfect(1.5), Keeps()):
        graph = trace(Net(neuron), X)
        assert [node.op for node in graph.nodes] == ["input", "dense", "neuron"]
        same(graph, Net(type(neuron)(1.5) if isinstance(neuron, Perfect) else Keeps()))


def test_a_program_that_does_not_do_what_the_module_does():
    register_neuron(Perfect, PERFECT.replace(">=", ">"))
    model = Net(Perfect(1.0))
    with pytest.raises(CompileError) as caught:
        trace(model, torch.ones(6, 1, 4))
    assert caught.value.code == "SPK108"


def test_bad_programs_are_refused_at_once():
    with pytest.raises(CompileError) as caught:
        register_neuron(Perfect, "neuron @x(a) { emit b }")
    assert caught.value.code == "SPK302"
    register_neuron(Perfect, PERFECT.replace("theta", "threshold"))
    with pytest.raises(CompileError) as caught:
        trace(Net(Perfect(1.0)), X)
    assert str(caught.value) == ("test_register.py (block.neuron): error[SPK302]: @perfect: Perfect has no attribute 'threshold'")


def test_every_node_knows_its_place():
    graph = trace(Net(snn.Leaky(beta=0.5)), X, source_file="models/net.py", name="shown", dt=0.001)
    assert graph.name == "shown"
    assert graph.dt == 0.001
    assert [(node.name, str(node.loc)) for node in graph.nodes[1:]] == [
        ("block_fc", "models/net.py:56 (block.fc)"),
        ("block_neuron", "models/net.py:60 (block.neuron)"),
    ]


def test_input_kinds():
    model = Net(snn.Leaky(beta=0.5))
    assert trace(model, X).inputs[0].type.text("float") == "spike<4>"
    assert trace(model, X * 0.5).inputs[0].type.text("float") == "value<4>"
    assert trace(model, X * 0.5, input_kind="graded").inputs[0].type.text("float") == "graded<4>"


def test_same_in_same_out_whatever_the_batch():
    model = Net(snn.Leaky(beta=0.5))
    graph = trace(model, X)
    assert trace(model, X).fingerprint == graph.fingerprint
    assert trace(model, X[:, :1]).fingerprint == graph.fingerprint
    assert trace(model, torch.cat([X, X, X], dim=1)[:5]).fingerprint == graph.fingerprint
    assert trace(model, X.numpy()).fingerprint == graph.fingerprint
    assert trace(model, {"x": X}).fingerprint == graph.fingerprint
    assert trace(model.train(), X, check=False).fingerprint == graph.fingerprint


def test_a_model_fresh_from_training_is_copied_and_left_alone():
    """Hidden states hang on a graph of gradients then, which deepcopy refuses."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.lif = snn.Leaky(beta=0.5, init_hidden=True)

        def forward(self, x):
            return torch.stack([self.lif(self.fc(x[t])) for t in range(x.shape[0])])

    model = Hidden()
    model(X).sum().backward()
    before = model.lif.mem
    assert before.grad_fn is not None
    count = len(snn.SpikingNeuron.instances)
    trace(model, X)
    assert model.lif.mem is before
    assert model.training
    assert len(snn.SpikingNeuron.instances) == count
    assert torch.autograd.Function.__dict__["apply"].__func__.__module__ == "torch.autograd.function"


def test_unbatched_input():
    class Unbatched(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(beta=0.5)

        def forward(self, x):
            mem, out = None, []
            for xt in x:
                spk, mem = self.lif(self.fc(xt), mem)
                out.append(spk)
            return torch.stack(out)

    assert trace(Unbatched(), X[:, 0]).inputs[0].type.shape == (4,)


def test_the_digits_example():
    import importlib.util
    from pathlib import Path

    path = Path(__file__).resolve().parents[2] / "examples" / "digits" / "model.py"
    spec = importlib.util.spec_from_file_location("digits_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generator = torch.Generator().manual_seed(0)
    model = module.load()
    graph = trace(model, (torch.rand(20, 4, 64, generator=generator) < 0.3).float())
    assert [node.name for node in graph.nodes] == ["x", "fc1", "lif1", "fc2", "lif2", "fc3", "lif3"]
    assert [name for name, _ in graph.outputs] == ["lif3", "lif3_mem"]
    assert {node.program.name for node in graph.neurons} == {"leaky_zero", "leaky_zero_v"}
    x = (torch.rand(20, 16, 64, generator=generator) < 0.3).float()
    with torch.no_grad():
        wanted = model(x)[0].numpy()
    np.testing.assert_array_equal(interpret(graph, {"x": x.numpy().swapaxes(0, 1)}).outputs["lif3"].swapaxes(0, 1), wanted)
