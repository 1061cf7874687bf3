"""Maximum pools over currents as part of the neurons behind them: the same numbers, from snnTorch to the running chip model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, random_spikes, spikes

import spikec
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Conv, Gather, Neuron, Node, Pool, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ledger import Ledger
from spikec.passes.max_pool import MaxPool
from spikec.target import load_target

LOIHI = load_target("loihi2")


def eighths(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers that sum exactly in any order."""
    return (rng.integers(-12, 17, shape) / 8).astype(F)


def pooled(nodes: list[Node], **pool: object) -> Graph:
    """Nodes, the last of them pooled, and neurons behind."""
    window = Pool(name="p", inputs=(Ref(nodes[-1].name),), mode="max", **pool)
    return verify(graph(*nodes, window, leaky("n", "p", beta=0.75, theta=0.5), out=["n", ("v", Ref("n", "v"))]))


def same(before: Graph, after: Graph, x: np.ndarray) -> None:
    wanted, found = interpret(before, {"in": x}), interpret(after, {"in": x})
    for name, value in wanted.outputs.items():
        np.testing.assert_array_equal(found.outputs[name], value, name)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_windows_over_convolutions(data: st.DataObject) -> None:
    draw = data.draw
    axes, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    layer = Conv(
        name="c",
        inputs=(Ref("in", delay=draw(st.integers(0, 2))),),
        weight=eighths(rng, 2 * groups, draw(st.integers(1, 2)), *each(1, 3)),
        bias=eighths(rng, 2 * groups),
        stride=each(1, 2),
        padding=each(0, 2),
        dilation=each(1, 2),
        groups=groups,
    )
    source = spikes((layer.weight.shape[1] * groups, *each(10, 13)))
    before = pooled([source, layer], kernel=each(1, 3), stride=each(1, 3))
    ledger = Ledger()
    after = verify(MaxPool(LOIHI).run(before, ledger))
    window = int(np.prod(before["p"].kernel))
    assert [node.op for node in after.nodes] == ["input", *["conv"] * window, "neuron"]
    assert [(e.node, e.kind) for e in ledger] == [("n", "exact")]
    same(before, after, random_spikes((3, 5, *source.type.shape), 1, 0.4))


def test_a_window_over_anything_else_reads_its_places() -> None:
    rng = np.random.default_rng(0)
    first, second = dense("a", "in", eighths(rng, 12, 6)), dense("b", Ref("in", delay=1), eighths(rng, 12, 6))
    both = Add(name="s", inputs=(Ref("a"), Ref("b")))
    before = pooled([spikes((6,)), first, second, both, Reshape(name="r", inputs=(Ref("s"),), shape=(2, 6))], kernel=(3,))
    after = verify(MaxPool(LOIHI).run(before, Ledger()))
    assert sum(isinstance(node, Gather) for node in after.nodes) == 3 and "p" not in after
    x = random_spikes((3, 5, 6), 1, 0.4)
    same(before, after, x)
    assert interpret(before, {"in": x}).outputs["v"].any()


def test_two_populations_and_a_program_of_two_inputs() -> None:
    rng = np.random.default_rng(1)
    before = pooled([spikes((1, 6)), Conv(name="c", inputs=(Ref("in"),), weight=eighths(rng, 2, 1, 3))], kernel=(2,))
    twice = before.with_nodes([*before.nodes, leaky("m", Ref("p", delay=1), beta=0.5)])
    after = verify(MaxPool(LOIHI).run(twice, Ledger()))
    assert [len(node.inputs) for node in after.nodes if isinstance(node, Neuron)] == [2, 2]
    x = random_spikes((3, 6, 1, 6), 2, 0.4)
    wanted, found = (interpret(g, {"in": x}, record=["m"]).records["m"] for g in (twice, after))
    np.testing.assert_array_equal(found, wanted)


def test_what_stays() -> None:
    rng = np.random.default_rng(1)
    nodes = [spikes((1, 6)), Conv(name="c", inputs=(Ref("in"),), weight=eighths(rng, 2, 1, 3))]
    padded = pooled(nodes, kernel=(2,), padding=(1,))
    assert MaxPool(LOIHI).run(padded, Ledger()) == padded
    plain = pooled(nodes, kernel=(2,))
    with_pools = replace(LOIHI, operations=(*LOIHI.operations, "pool"))
    assert MaxPool(with_pools).run(plain, Ledger()) == plain
    shown = Graph("g", "float", plain.nodes, (*plain.outputs, ("p", Ref("p"))))
    assert MaxPool(LOIHI).run(shown, Ledger()) == shown


class Tutorial(torch.nn.Module):
    """The convolutional network of snnTorch's tutorials: convolution, batch norm, maximum pool, neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.lif1 = torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), snn.Leaky(beta=0.75)
        self.conv2, self.bn2, self.lif2 = torch.nn.Conv2d(4, 6, 3), torch.nn.BatchNorm2d(6), snn.Leaky(beta=0.75)
        self.fc, self.lif3 = torch.nn.Linear(6, 3), snn.Leaky(beta=0.75)
        self.pool = torch.nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        out = []
        for frame in x:
            spk1, mem1 = self.lif1(self.pool(self.bn1(self.conv1(frame))), mem1)
            spk2, mem2 = self.lif2(self.bn2(self.pool(self.conv2(spk1))), mem2)
            spk3, mem3 = self.lif3(self.fc(spk2.flatten(1)), mem3)
            out.append(spk3)
        return torch.stack(out)


@pytest.mark.usefixtures("lava_env")
def test_a_tutorial_network_on_lava() -> None:
    torch.manual_seed(0)
    net = Tutorial().eval()
    for norm in (net.bn1, net.bn2):
        norm.weight.data.uniform_(0.5, 2.0)
        norm.bias.data.uniform_(-0.2, 0.4)
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.05, 0.2)
    net.fc.weight.data.uniform_(-0.5, 1.0)
    x = random_spikes((3, 12, 2, 10, 10), 1, 0.3)
    build = spikec.compile(net, torch.from_numpy(x.astype(F)).swapaxes(0, 1), target="loihi2", calibrate=x)
    assert {"fold-scale", "max-pool"} <= set(build.stage_names)
    expected = build.run(x, record="all")
    for layer in ("lif1", "lif2", "lif3"):
        assert expected.spikes(layer).any(), layer
    for backend in ("numpy", "c", "lava"):
        found = build.run(x, backend=backend, record="all")
        for name in ("lif1", "lif2", "lif3"):
            np.testing.assert_array_equal(found.spikes(name), expected.spikes(name), f"{name} on {backend}")
    # Eight bits change few spikes of the first layer: none of the passes before quantization changed any.
    floats = interpret(build.graph(level="float"), {"x": x.astype(F)}, record=["lif1"]).records["lif1"] != 0
    assert np.mean(floats != (expected.spikes("lif1") != 0)) < 0.02
