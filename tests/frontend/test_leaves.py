"""What a table entry of the tracer can say: connections inside a module, a loop over time inside it, what it collects."""

import numpy as np
import pytest
import torch
import torch.nn as nn

from spikec.diagnostics import CompileError
from spikec.frontend import registry
from spikec.frontend.registry import Leaf, Synapse
from spikec.frontend.torch_trace import register_neuron, trace
from spikec.ir.interpret import interpret
from spikec.ir.text import parse_program

N = 3
PROGRAM = parse_program("""neuron @recurrent(x, back) params(beta) state(v = 0) {
  v = beta * v + x + back
  s = v > 1
  v = select(s, 0, v)
  emit s
}""")

CHARGE = parse_program("neuron @charge(x) state(v = 0) { v = v + x emit v }")


class Recurrent(nn.Module):
    """A layer whose spikes come back a step later; one step a call, or all along an axis."""

    def __init__(self, axis=None):
        super().__init__()
        self.axis, self.beta = axis, torch.tensor(0.5)
        self.back = nn.Linear(N, N)
        self.back.weight.data = torch.tensor([[0, 4, -2], [6, 0, 1], [-3, 8, 0]]) / 8
        self.back.bias.data = torch.tensor([1, 0, -2]) / 8

    def step(self, x, s, v):
        v = self.beta * v + x + self.back(s)
        s = (v > 1).float()
        return s, torch.where(s > 0, 0.0, v)

    def forward(self, x, state=None):
        if self.axis is None:
            state = (torch.zeros_like(x), torch.zeros_like(x)) if state is None else state
            state = self.step(x, *state)
            return state[0], state
        spikes, self.collected = [], []
        state = (torch.zeros_like(x.select(self.axis, 0)),) * 2 if state is None else state
        for step in range(x.shape[self.axis]):
            state = self.step(x.select(self.axis, step), *state)
            spikes.append(state[0])
            self.collected.append(state[1])
        self.collected = torch.stack(self.collected)
        return torch.stack(spikes, dim=self.axis), state


class Net(nn.Module):
    def __init__(self, axis, what="spikes", begin=None):
        super().__init__()
        self.fc, self.rec = nn.Linear(2, N), Recurrent(axis)
        self.fc.weight.data = torch.tensor([[8, 4], [6, -1], [2, 12]]) / 8
        self.fc.bias.data = torch.tensor([0, 1, 2]) / 8
        self.axis, self.what, self.begin = axis, what, begin

    def forward(self, x):
        state = None if self.begin is None else tuple(torch.full((x.shape[1 - (self.axis or 0)], N), value) for value in self.begin)
        if self.axis is None:
            out, states = [], []
            for xt in x:
                s, state = self.rec(self.fc(xt), state)
                out.append(s)
                states.append(state[1])
            return torch.stack(out) if self.what == "spikes" else torch.stack(states)
        s, (_, v) = self.rec(self.fc(x), state)
        return {"spikes": s, "last": v, "collected": self.rec.collected}[self.what]


def leaf(module):
    return Leaf(
        program=PROGRAM,
        params={"beta": np.asarray(0.5, np.float32)},
        arguments=("x", ("s", "v")),
        returns=("s", ("s", "v")),
        synapses={"back": Synapse("s", module.back)},
        time_axis=module.axis,
        history={} if module.axis is None else {"v": "collected"},
    )


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    register_neuron(Recurrent, leaf)


def data(axis, steps, batch):
    x = (torch.arange(steps * batch * 2).reshape(steps, batch, 2) * 7 % 5 < 2).float()
    return x.swapaxes(0, 1) if axis == 1 else x


@pytest.mark.parametrize("begin", [None, (1.0, 0.0), (0.0, 0.75)])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_connection_inside_a_module_becomes_a_node(axis, begin):
    model = Net(axis, begin=begin)
    graph = trace(model, data(axis, 6, 2))
    assert sorted(node.name for node in graph.nodes) == ["fc", "rec", "rec_back", "x"]
    assert graph["rec"].program.name == "recurrent"
    x = data(axis, 11, 3)
    found = interpret(graph, {"x": (x if axis == 1 else x.swapaxes(0, 1)).numpy()}).outputs["rec"]
    with torch.no_grad():
        wanted = model(x)
    assert wanted.any()
    np.testing.assert_array_equal(found, (wanted if axis == 1 else wanted.swapaxes(0, 1)).numpy())


@pytest.mark.parametrize(("axis", "what"), [(None, "membranes"), (0, "last"), (0, "collected"), (1, "collected")])
def test_states_and_what_a_module_collects(axis, what):
    model = Net(axis, what)
    graph = trace(model, data(axis, 6, 2))
    x = data(axis, 9, 3)
    (found,) = interpret(graph, {"x": (x if axis == 1 else x.swapaxes(0, 1)).numpy()}).outputs.values()
    with torch.no_grad():
        wanted = model(x).numpy()
    np.testing.assert_array_equal(found[:, -1] if what == "last" else found.swapaxes(0, 1), wanted)


def test_a_table_entry_that_is_wrong_about_what_is_returned():
    register_neuron(Recurrent, lambda module: Leaf(CHARGE, {}, ("x", ("s", "v")), ("v",)))
    with pytest.raises(CompileError, match=r"SPK101.*Recurrent did not return v, as its table entry says"):
        trace(Net(None), data(None, 6, 2))
