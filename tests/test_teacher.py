"""The float network beside a recovery: it sees what the other sees, and tells how active populations are to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nets import dense, graph, leaky, random_spikes, spikes

import spikec
from spikec import recovery
from spikec.frontend.nn.graph_module import GraphModule
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Dense
from spikec.ir.rules import verify
from spikec.teacher import Teacher, comparable


def net(seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    w1, w2 = rng.normal(0, 0.5, (10, 16)).astype(np.float32), rng.normal(0, 0.5, (4, 10)).astype(np.float32)
    layers = dense("fc1", "in", w1), leaky("l1", "fc1", 0.875), dense("fc2", "l1", w2), leaky("l2", "fc2", 0.875)
    return verify(graph(spikes((16,)), *layers, out=["l2"]))


def test_it_answers_as_the_network_does() -> None:
    g, x = net(), random_spikes((6, 12, 16), 1)
    teacher = Teacher(g, ("l1",))
    found, rates = teacher({"in": torch.from_numpy(x)})
    run = interpret(g, {"in": x}, record=["l1"])
    np.testing.assert_array_equal(found.numpy(), run.outputs["l2"])
    np.testing.assert_allclose(rates["l1"].numpy(), run.records["l1"].mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(teacher.answers({"in": torch.from_numpy(x)}, 4).numpy(), run.outputs["l2"])


def test_the_distance_is_a_share_of_what_rates_vary() -> None:
    g, x = net(), torch.from_numpy(random_spikes((6, 12, 16), 1))
    teacher = Teacher(g, ("l1", "l2"))
    _, rates = teacher({"in": x})
    same = GraphModule(g)({"in": x}, ("l1", "l2"))
    assert float(teacher.distance(rates, same).detach()) == 0
    constant = {name: sent.detach().mean((0, 1), keepdim=True).expand_as(sent) for name, sent in same.items()}
    assert float(teacher.distance(rates, constant)) == pytest.approx(1, rel=1e-4)  # every sample gets the mean: all of the variance


def test_populations_with_fewer_neurons_or_other_messages_are_not_compared() -> None:
    g = net()
    smaller = g.with_nodes(replace(n, weight=n.weight[:8]) if n.name == "fc1" else n for n in g.nodes)
    smaller = verify(smaller.with_nodes(replace(n, weight=n.weight[:, :8]) if n.name == "fc2" else n for n in smaller.nodes))
    assert comparable(g, g) == ("l1", "l2")
    assert comparable(g, smaller) == ("l2",)
    assert comparable(g, g.with_nodes(())) == ()


def test_the_same_spikes_are_left_out_for_both() -> None:
    x = torch.ones(20, 6, 8)
    generator = torch.Generator().manual_seed(0)
    chosen = np.array([3, 5, 7])
    batch, shown = recovery._thinned(torch, {"in": x}, {"in": x * 2}, chosen, 0.5, generator)
    assert 0.2 < float(batch["in"].mean()) < 0.8
    assert torch.equal(shown["in"], 2 * batch["in"])
    longer = torch.ones(20, 12, 8)
    batch, shown = recovery._thinned(torch, {"in": x}, {"in": longer}, chosen, 0.5, generator)
    assert float(shown["in"].min()) == 1 and float(batch["in"].min()) == 0


def seen_by_training(monkeypatch: pytest.MonkeyPatch, build: spikec.Build, x: Any, y: Any, **options: Any) -> dict[str, Any]:
    """What a recovery trains with: the arguments of its loop, by name."""
    seen: dict[str, Any] = {}
    fit = recovery._fit

    def watched(torch_: Any, module: Any, quick: Any, task: Any, *rest: Any) -> Any:
        seen.update(module=module, quick=quick, task=task)
        return fit(torch_, module, quick, task, *rest)

    monkeypatch.setattr(recovery, "_fit", watched)
    spikec.recover(build, x, y, epochs=1, **options)
    return seen


def test_in_fewer_steps_both_networks_train_in_these(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = random_spikes((40, 12, 16), 2), np.arange(40) % 4
    build = spikec.compile(net(), target="host", bits=8, calibrate=x, steps_to=6)
    task = seen_by_training(monkeypatch, build, x, y)["task"]
    assert task.given["in"].shape[1] == 12
    assert task.floats["in"].shape[1] == task.inputs["in"].shape[1] == 6
    assert task.teacher.populations == ()


def test_in_fewer_steps_early_answers_are_learnt_from_the_teacher_too() -> None:
    x, y = random_spikes((40, 12, 16), 2), np.arange(40) % 4
    build = spikec.compile(net(), target="host", bits=8, calibrate=x, steps_to=6)
    found = spikec.recover(build, x, y, epochs=1, early=1.0)
    assert found.stage_names.count("recover") == 1
    taught = torch.arange(10.0).reshape(1, 5, 2)
    assert recovery._in_steps(torch, taught, 3).tolist() == [[[2, 4], [10, 12], [8, 9]]]
    assert recovery._in_steps(torch, taught, 5) is taught


def test_no_gradient_reaches_what_was_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = random_spikes((40, 12, 16), 2), np.arange(40) % 4
    build = spikec.compile(net(), target="host", bits=8, prune=0.5)
    seen = seen_by_training(monkeypatch, build, x, y, gradual=False)
    for module, given in ((seen["module"], seen["task"].inputs), (seen["quick"], seen["task"].floats)):
        module.zero_grad()
        module({"in": given["in"]})["l2"].sum().backward()
        layers = [node for node in build.graph(after="prune").nodes if isinstance(node, Dense)]
        assert layers
        for node in layers:
            gradient = module.weights[module._keys[node.name]].grad.numpy()
            assert not gradient[node.weight == 0].any() and gradient[node.weight != 0].any(), node.name
