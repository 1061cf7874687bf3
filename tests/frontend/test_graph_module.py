"""A graph as a torch module computes what the interpreter computes, and has gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import dense, graph, leaky, random_spikes, spikes
from strategies import graphs, random_inputs, widened

from spikec.backends.c.library import build_library
from spikec.frontend.nn.graph_module import GraphModule
from spikec.frontend.nn.native import Build
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Ref
from spikec.ir.ranges import graph_ranges
from spikec.ir.text import parse_graph


def same(g: Graph, seed: int, steps: int = 9) -> None:
    x = random_inputs(g, 2, steps, seed)
    names = tuple(node.name for node in g.neurons)
    wanted = interpret(g, x, steps=steps, record=names)
    if not x:
        return  # a graph without inputs has no batch to run
    with torch.no_grad():
        found = GraphModule(g)({name: torch.from_numpy(np.array(value)) for name, value in x.items()}, record=names)
    for name, value in wanted.outputs.items():
        np.testing.assert_array_equal(found[name].numpy(), value, err_msg=f"output {name}")
        assert g.level != "float" or found[name].numpy().dtype == value.dtype, name
    for name in names:
        np.testing.assert_array_equal(found[name].numpy(), wanted.records[name], err_msg=name)


@settings(max_examples=40, deadline=None)
@given(graphs("float"), st.integers(0, 99))
def test_float_graphs(g: Graph, seed: int) -> None:
    same(g, seed)


@settings(max_examples=40, deadline=None)
@given(graphs("float"), st.integers(0, 99))
def test_float_graphs_of_both_widths(g: Graph, seed: int) -> None:
    same(widened(g, seed), seed)


@settings(max_examples=40, deadline=None)
@given(graphs("fixed"), st.integers(0, 99))
def test_fixed_graphs(g: Graph, seed: int) -> None:
    """Where every intermediate value is below 2^53, as in any network for a target of this compiler."""
    ranges = graph_ranges(g)
    reach = [bound for found in ranges.neurons.values() for interval in found.values.values() for bound in interval]
    reach += [bound for interval in ranges.wires.values() for bound in interval]
    assume(max(map(abs, reach), default=0) < 1 << 53)
    same(g, seed)


def recurrent() -> Graph:
    rng = np.random.default_rng(0)
    w, r, o = (rng.normal(0, 0.6, shape).astype(np.float32) for shape in ((8, 5), (8, 8), (3, 8)))
    return graph(
        spikes((5,)), dense("fc", "in", w, np.zeros(8, np.float32)), dense("rec", Ref("l1", delay=1), r), Add(name="s", inputs=(Ref("fc"), Ref("rec"))),
        leaky("l1", "s", 0.75), dense("out", "l1", o), leaky("l2", "out", 0.75), out=["l2"],
    )  # fmt: skip


def test_gradients_reach_every_weight() -> None:
    module = GraphModule(recurrent())
    x = torch.from_numpy(random_spikes((4, 12, 5), 1))
    module(x)["l2"].sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


def test_the_surrogate_is_that_of_an_arctangent() -> None:
    """Of one neuron after one step: ds/dw = 1 / (1 + (pi (v - theta) / theta)^2) / theta."""
    g = graph(spikes((1,)), dense("fc", "in", np.array([[0.5]], np.float32)), leaky("l", "fc", 0.0, 2.0), out=["l"])
    module = GraphModule(g)
    module(torch.ones(1, 1, 1))["l"].sum().backward()
    (weight,) = module.parameters()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(1 / (1 + (np.pi * 0.75) ** 2) / 2)


@pytest.mark.parametrize(("far", "width", "widest"), [((1, 3), 2, 3), ((3, 5), 3, 3), ((3, 5), 4, 9), ((0, 1), 1, 3)])
@pytest.mark.parametrize("build", [None, build_library], ids=["torch", "compiled"])
def test_the_surrogate_is_as_wide_as_membranes_are_far(far: tuple[int, int], width: int, widest: int, build: Build | None) -> None:
    """Two neurons so many thresholds away from theirs: the mean is the width of both, from one threshold to `widest`, at first
    three; ds/dw = 1 / (1 + (pi d / width)^2) / width."""
    weight = np.array([[1.0 + distance] for distance in far], np.float32)
    g = graph(spikes((1,)), dense("fc", "in", weight), leaky("l", "fc", 0.0, 1.0), out=["l"])
    module = GraphModule(g, build=build)
    assert module.widest == 3
    module.widest = widest
    module(torch.ones(1, 1, 1))["l"].sum().backward()
    (parameter,) = module.parameters()
    assert parameter.grad is not None
    wanted = [1 / (1 + (np.pi * distance / width) ** 2) / width for distance in far]
    np.testing.assert_allclose(parameter.grad.numpy().ravel(), wanted, rtol=1e-5)


def test_it_learns() -> None:
    """A task that the random network does not know: which half of the inputs is busier."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 128)
    rates = np.where((np.arange(8) < 4) == (labels[:, None] == 0), 0.5, 0.1)
    x = torch.from_numpy((rng.random((128, 15, 8)) < rates[:, None, :]).astype(np.float32))
    w1, w2 = (rng.normal(0, 0.4, shape).astype(np.float32) for shape in ((12, 8), (2, 12)))
    module = GraphModule(
        graph(spikes((8,)), dense("a", "in", w1), leaky("l1", "a", 0.9), dense("b", "l1", w2), leaky("l2", "b", 0.9), out=["l2"])
    )
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    y = torch.from_numpy(labels)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(module(x)["l2"].sum(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert (module(x)["l2"].sum(1).argmax(1) == y).float().mean() > 0.9
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("largest", [180, 20_000])
def test_sums_of_integers_are_exact_where_single_precision_does_not_hold_them(largest: int) -> None:
    g = parse_graph(
        "sir 1\n\ngraph @net level=fixed {\n  %in = input : graded<3, i16>\n"
        "  %fc = dense(%in) weight=i16[[30001, 30001, 30001], [1, -30001, 7]] dtype=i64 : value<2, i64>\n  output %fc\n}\n"
    )
    x = np.random.default_rng(0).integers(-largest, largest + 1, (4, 50, 3)).astype(np.int16)
    found = GraphModule(g)({"in": torch.from_numpy(x)})["fc"]
    weight = np.array([[30001, 30001, 30001], [1, -30001, 7]])
    np.testing.assert_array_equal(found.detach().numpy(), x.astype(np.int64) @ weight.T)
