"""Recovery: the score rises, what was trained is what runs, and what was pruned stays pruned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from nets import dense, graph, leaky, spikes

import spikec
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Dense, Ref, Sparse
from spikec.passes.prune import GONE, TRIED

CLASSES = 4


def task(samples: int, seed: int) -> tuple[Any, Any]:
    """Four noisy rate patterns on 16 inputs, 12 steps."""
    patterns = np.random.default_rng(0).random((CLASSES, 16)) < 0.5
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, samples)
    rates = np.where(patterns[labels], 0.45, 0.12)
    return (rng.random((samples, 12, 16)) < rates[:, None, :]).astype(np.float32), labels


def trained() -> Graph:
    """A network that knows the task: found by training it as a graph."""
    import torch

    from spikec.frontend.nn.graph_module import GraphModule

    rng = np.random.default_rng(1)
    w1, w2 = rng.normal(0, 0.4, (20, 16)).astype(np.float32), rng.normal(0, 0.4, (CLASSES, 20)).astype(np.float32)
    g = graph(
        spikes((16,)),
        dense("fc1", "in", w1),
        leaky("l1", "fc1", 0.875),
        dense("fc2", "l1", w2),
        leaky("l2", "fc2", 0.875),
        out=["l2"],
    )
    module = GraphModule(g)
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    x, y = (torch.from_numpy(part) for part in task(256, 1))
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(module(x)["l2"].sum(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = {name: module.weight_of(name).detach().numpy() for name in ("fc1", "fc2")}
    return graph(
        spikes((16,)), dense("fc1", "in", weights["fc1"]), leaky("l1", "fc1", 0.875), dense("fc2", "l1", weights["fc2"]), leaky("l2", "fc2", 0.875), out=["l2"]
    )  # fmt: skip


@pytest.fixture(scope="module")
def net() -> Graph:
    return trained()


def right(build: spikec.Build, seed: int = 5) -> float:
    from spikec.score import score

    x, y = task(400, seed)
    return score(build.run(x, "numpy").outputs["l2"], y)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("host", {"bits": 2, "prune": 0.85}),
        ("loihi2", {"bits": 2, "prune": 0.85}),
        ("host", {"bits": 8, "prune": 0.9}),
        ("loihi2", {"prune_structured": 0.6}),
    ],
)
def test_the_score_rises_and_what_was_trained_is_what_runs(net: Graph, target: str, options: dict[str, Any]) -> None:
    x, y = task(600, 2)
    build = spikec.compile(net, target=target, **options)  # with calibration data little would be left to recover
    better = spikec.recover(build, x, y, epochs=6, gradual=False)
    assert right(better) > right(build) + 0.02
    assert better.stage_names[better.stage_names.index("recover") + 1] in ("quantize", "to-fixed")
    entry = next(e for e in better.ledger if e.pass_name == "recover" and "score before" in e.measured)
    assert entry.measured["score after"] > entry.measured["score before"]
    engines = [better.run(x[:20], name, record="all") for name in ("reference", "numpy", "c")]
    for engine in engines[1:]:
        for name, value in engines[0].records.items():
            np.testing.assert_array_equal(engine.records[name], value)
    # The same grid, and not a weight off it; what was pruned stays.
    for node in better.graph(level="fixed").nodes:
        if isinstance(node, Dense) and node.name in build.graph(level="fixed"):
            before = build.graph(level="fixed")[node.name]
            assert not isinstance(before, Dense) or node.weight.shape == before.weight.shape
            if "prune" in options:
                pruned = build.graph(after="prune")[node.name].weight == 0
                assert not node.weight[pruned].any()
    # Compiling the trained floats again at the same scales rounds nothing: they lie on the grid.
    notes = [e for e in better.ledger if e.pass_name in ("quantize", "to-fixed") and "scale" in e.measured]
    assert notes
    assert all(e.largest < 1e-6 for e in notes)


def synapses(found: spikec.Build) -> int:
    nodes = [node for node in found.graph(level="fixed").nodes if isinstance(node, (Dense, Sparse))]
    return sum(int(np.count_nonzero(node.weight)) for node in nodes)


@pytest.mark.parametrize("target", ["host", "loihi2"])
def test_gradual_pruning_leaves_as_many_synapses_and_does_better(net: Graph, target: str) -> None:
    x, y = task(300, 2)
    build = spikec.compile(net, target=target, bits=8, calibrate=x[:64], prune=0.93, prune_structured=0.0)
    once, slowly = (spikec.recover(build, x, y, epochs=16, gradual=gradual) for gradual in (False, True))
    assert synapses(slowly) <= round(0.07 * (20 * 16 + CLASSES * 20)) + 1
    assert right(slowly) > right(once)
    assert slowly.stage_names.count("prune") == 1
    assert slowly.stage_names.index("prune") < slowly.stage_names.index("recover")
    engines = [slowly.run(x[:20], name, record="all") for name in ("reference", "numpy", "c")]
    for engine in engines[1:]:
        for name, value in engines[0].records.items():
            np.testing.assert_array_equal(engine.records[name], value)


def test_gradual_pruning_of_loops_takes_synapses_that_the_answer_does_not_feel(net: Graph) -> None:
    """Half of the neurons have the larger weights, and are next to unheard: theirs go, though they move membranes more."""
    fc1, fc2 = net["fc1"], net["fc2"]
    assert isinstance(fc1, Dense) and isinstance(fc2, Dense)
    loud, heard = np.where(np.arange(20) < 10, 3, 1).astype(np.float32), np.where(np.arange(20) < 10, 0.02, 1).astype(np.float32)
    back = replace(dense("back", "l1", -0.1 * np.eye(20, dtype=np.float32)), inputs=(Ref("l1", delay=1),))
    layers = dense("fc1", "in", fc1.weight * loud[:, None]), back, Add(name="sum", inputs=(Ref("fc1"), Ref("back")))
    rest = leaky("l1", "sum", 0.875), dense("fc2", "l1", fc2.weight * heard), leaky("l2", "fc2", 0.875)
    x, y = task(256, 2)
    options: dict[str, Any] = {"prune": 0.5, "keep_layers": ("fc2", "back"), "calibrate": x[:128], "labels": y[:128]}
    build = spikec.compile(graph(spikes((16,)), *layers, *rest, out=["l2"]), target="host", bits=8, **options)
    trained = spikec.recover(build, x, y, epochs=8, gradual=True, learning_rate=0.01)
    found = next(stage for stage in trained.stages if stage.name == "recover").graph
    fc1, fc2 = found["fc1"], found["fc2"]
    assert isinstance(fc1, Dense) and isinstance(fc2, Dense)
    left, unheard = np.count_nonzero(fc1.weight, axis=1), np.abs(fc2.weight).max(axis=0) < 0.1
    assert unheard.sum() > 5 and left[unheard].sum() < left[~unheard].sum()


def test_gradual_pruning_keeps_to_the_neurons_that_the_build_chose(net: Graph) -> None:
    x, y = task(300, 2)
    build = spikec.compile(net, target="host", bits=8, calibrate=x[:64], labels=y[:64], prune=0.8)
    share = next(entry.measured["share"] for entry in build.ledger if entry.what == TRIED)
    assert share > 0
    found = spikec.recover(build, x, y, epochs=8, gradual=True)
    assert found.graph().shape_of("l1")[0] <= round((1 - share) * 20)
    assert synapses(found) <= round(0.2 * (20 * 16 + CLASSES * 20)) + 1
    assert [entry.measured["share"] for entry in found.ledger if entry.what == TRIED] == [share]
    (gone,) = [entry for entry in found.ledger if entry.what == GONE]
    assert gone.asked == "--prune"  # nobody gave --prune-structured


def test_gradual_pruning_keeps_to_a_budget_where_weights_are_zero_already(net: Graph) -> None:
    x, y = task(300, 2)
    rng = np.random.default_rng(0)
    halves = {node.name: rng.random(node.weight.shape) < 0.5 for node in net.nodes if isinstance(node, Dense)}
    nodes = [replace(n, weight=np.where(halves[n.name], n.weight, np.float32(0))) if isinstance(n, Dense) else n for n in net.nodes]
    sparse = net.with_nodes(nodes)
    build = spikec.compile(sparse, target="host", bits=8, calibrate=x[:64], max_synapses=120, prune_structured=0.0)
    found = spikec.recover(build, x, y, epochs=4, gradual=True)
    assert synapses(found) <= 120


def test_the_score_before_is_the_builds_where_synapses_go_while_training(net: Graph) -> None:
    from spikec.score import score

    x, y = task(200, 2)
    build = spikec.compile(net, target="host", bits=8, prune=0.9)
    found = spikec.recover(build, x, y, epochs=2, gradual=True, held_out=0, drop=0)
    (entry,) = [e for e in found.ledger if "score before" in e.measured]
    assert entry.measured["score before"] == score(build.run(x, "numpy").outputs["l2"], y)


def test_blocks_stay_blocks_and_removed_neurons_removed(net: Graph) -> None:
    x, y = task(300, 2)
    build = spikec.compile(net, target="host", bits=8, calibrate=x[:64], prune=0.7, prune_pattern="block4", prune_structured=0.2)
    found = spikec.recover(build, x, y, epochs=4, gradual=True)
    weight = found.graph(after="prune")["fc1"].weight
    assert weight.shape == (16, 16)
    first = found.graph(level="fixed")["fc1"]
    assert isinstance(first, (Dense, Sparse))
    if isinstance(first, Dense):
        trained = np.asarray(first.weight)
    else:
        trained = np.zeros((len(first.indptr) - 1, first.fan_in))
        trained[first.rows, first.indices] = first.weight
    # Four neighbours read the same inputs, but where rounding took a weight or a dead neuron is gone; single synapses would differ.
    assert trained.shape[0] <= 16
    assert len({tuple(row != 0) for row in trained}) <= 0.7 * len(trained)
    assert synapses(found) <= round(0.3 * (16 * 16 + CLASSES * 16)) + 8


def test_a_second_recovery_keeps_what_the_first_pruned(net: Graph) -> None:
    x, y = task(200, 2)
    build = spikec.compile(net, target="host", bits=8, calibrate=x[:64], prune=0.8)
    once = spikec.recover(build, x, y, epochs=4)
    twice = spikec.recover(once, x, y, epochs=2)
    assert synapses(twice) <= synapses(once)


def test_a_network_that_is_as_good_as_before_stays(net: Graph) -> None:
    x, y = task(100, 2)
    build = spikec.compile(net, target="host", bits=8, calibrate=x)
    same = spikec.recover(build, x, y, epochs=0)
    np.testing.assert_array_equal(same.run(x, "numpy").outputs["l2"], build.run(x, "numpy").outputs["l2"])


def test_of_as_many_right_answers_the_surer_ones_are_kept(net: Graph) -> None:
    x, y = task(400, 2)
    build = spikec.compile(net, target="host", bits=8, calibrate=x)
    sure = build.run(x, "numpy").outputs["l2"].sum(axis=1).argmax(axis=1) == y
    found = spikec.recover(build, x[sure], y[sure], epochs=10, drop=0)
    (entry,) = [e for e in found.ledger if "score before" in e.measured]
    assert entry.measured["score before"] == entry.measured["score after"] == 1
    assert sum(e.changed or 0 for e in found.ledger if e.what == "weights trained again") > 0


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_epochs_are_compared_on_samples_with_less_input(drop: float) -> None:
    """A network that knows the samples whole, by one input, is behind one that knows them with inputs left out, where these are."""
    torch = pytest.importorskip("torch")
    from spikec.frontend.nn.graph_module import GraphModule
    from spikec.recovery import _scored, _Task

    def reached(used: int) -> Any:
        weight = np.zeros((2, 16), np.float32)
        weight[0, :used], weight[1, 8 : 8 + used] = 4 / used, 4 / used
        net = graph(spikes((16,)), dense("fc", "in", weight), leaky("l", "fc", 0.5), out=["l"])
        inputs = {"in": torch.from_numpy(x)}
        task = _Task(inputs, inputs, inputs, torch.from_numpy(y), None)
        return _scored(torch, GraphModule(net), task, np.arange(len(y)), drop)

    y = np.arange(40) % 2
    x = np.repeat((np.arange(16) // 8 == y[:, None])[:, None], 2, axis=1).astype(np.float32)
    one, all_of_them = reached(1), reached(8)
    assert (one[0] == all_of_them[0] == 1) if not drop else (one[0] < all_of_them[0])


@pytest.mark.parametrize("options", [{"prune_structured": 0.5}, {"prune": 0.7}])
def test_what_was_learnt_by_heart_does_not_keep_the_build(options: dict[str, Any]) -> None:
    """Labels without a reason can be known by heart only: the float network does, its build has lost some."""
    torch = pytest.importorskip("torch")
    from spikec.frontend.nn.graph_module import GraphModule

    def network(w1: Any, w2: Any) -> Graph:
        return graph(spikes((32,)), dense("fc1", "in", w1), leaky("l1", "fc1", 0.875), dense("fc2", "l1", w2), out=["fc2"])

    def score(build: spikec.Build) -> float:
        return float((build.run(x, "numpy").outputs["fc2"].sum(axis=1).argmax(axis=1) == y).mean())

    rng = np.random.default_rng(1)
    x, y = (rng.random((120, 6, 32)) < 0.3).astype(np.float32), rng.integers(0, 4, 120)
    module = GraphModule(network(rng.normal(0, 0.3, (40, 32)), rng.normal(0, 0.3, (4, 40))))
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(150):
        counts = module(torch.from_numpy(x))["fc2"].sum(1)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(counts, torch.from_numpy(y)).backward()
        optimizer.step()
    known = network(*(module.weight_of(name).detach().numpy().astype(np.float32) for name in ("fc1", "fc2")))
    build = spikec.compile(known, target="host", bits=8, calibrate=x, labels=y, **options)
    assert score(spikec.compile(known, target="host")) == 1
    assert score(spikec.recover(build, x, y)) > score(build) + 0.02
    # Of samples that are held out the build knows what no training without them can.
    assert score(spikec.recover(build, x, y, held_out=0.1)) == score(build)


def test_the_same_seed_gives_the_same_weights(net: Graph) -> None:
    x, y = task(100, 2)
    build = spikec.compile(net, target="host", bits=3, calibrate=x)
    one, two = (spikec.recover(build, x, y, epochs=2, seed=4).graph().fingerprint for _ in range(2))
    assert one == two


def test_labels_at_every_step_and_no_teacher(net: Graph) -> None:
    x, y = task(100, 2)
    build = spikec.compile(net, target="host", bits=2, calibrate=x)
    per_step = np.repeat(y[:, None], x.shape[1], axis=1)
    per_step[:, :4] = -1
    found = spikec.recover(build, x, per_step, epochs=3, distill=False)
    entry = next(e for e in found.ledger if "score before" in e.measured)
    assert entry.measured["score after"] >= entry.measured["score before"]


def test_a_loss_at_every_step_makes_early_sums_right() -> None:
    """The first three steps give a hint that is mostly right, the others tell for certain: with `early` more is made of the hint."""

    def hinted(samples: int, seed: int) -> tuple[Any, Any]:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, CLASSES, samples)
        hint = np.where(rng.random(samples) < 0.8, labels, rng.integers(0, CLASSES, samples))
        x = np.zeros((samples, 12, 16), np.float32)
        x[np.arange(samples)[:, None], np.arange(3), hint[:, None]] = 1
        x[:, 3:, 4:8] = rng.random((samples, 9, 4)) < 0.3
        x[np.arange(samples)[:, None], np.arange(3, 12), 8 + labels[:, None]] = 1
        x[:, :, 12:] = rng.random((samples, 12, 4)) < 0.5
        return x, labels

    rng = np.random.default_rng(1)
    w1, w2 = rng.normal(0, 0.4, (20, 16)).astype(np.float32), rng.normal(0, 0.4, (CLASSES, 20)).astype(np.float32)
    layers = dense("fc1", "in", w1), leaky("l1", "fc1", 0.5), dense("fc2", "l1", w2), leaky("l2", "fc2", 0.5)
    (x, y), (other, labels) = hinted(300, 2), hinted(400, 5)
    build = spikec.compile(graph(spikes((16,)), *layers, out=["l2"]), target="host", bits=8, calibrate=x[:64])
    scores = []
    for early in (0.0, 0.8):
        found = spikec.recover(build, x, y, epochs=12, early=early, distill=False)
        sums = found.run(other, "numpy").outputs["l2"][:, :4].sum(axis=1)
        scores.append(np.mean(sums.argmax(axis=1) == labels))
    assert scores[1] > scores[0] + 0.03


def test_gradients_that_outgrow_every_number_leave_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neurons that inhibit themselves and stay at their thresholds: in every step their gradient becomes five times as large, over
    900 steps it is not finite, and a norm to clip it to would make nan of the weights. Surrogates become wider until it is."""
    from spikec.frontend.nn.graph_module import GraphModule

    widths, forward = [], GraphModule.forward
    monkeypatch.setattr(GraphModule, "forward", lambda self, *args: widths.append(self.widest) or forward(self, *args))
    eye = np.eye(4, dtype=np.float32)
    back = replace(dense("back", "l", -5 * eye), inputs=(Ref("l", delay=1),))
    layers = dense("fc", "in", 6 * eye), back, Add(name="sum", inputs=(Ref("fc"), Ref("back"))), leaky("l", "sum", 0.05, 0.99)
    out = np.random.default_rng(0).normal(0, 0.5, (3, 4)).astype(np.float32)
    loop = graph(spikes((4,)), *layers, dense("out", "l", out, np.full(3, 0.01)), leaky("m", "out", 0.9), out=["m"])
    build = spikec.compile(loop, target="host", bits=8)
    x = np.ones((40, 900, 4), np.float32)
    found = spikec.recover(build, x, np.arange(40) % 3, epochs=2, batch_size=8, drop=0)
    stage = next(stage for stage in found.stages if stage.name == "recover")
    assert all(np.isfinite(node.weight).all() for node in stage.graph.nodes if isinstance(node, Dense))
    assert max(widths) > 3


@pytest.mark.parametrize("port", ["s", "v"])
def test_what_a_loss_at_every_step_sees(port: str) -> None:
    """Counts of spikes, or means of membranes up to each step in units of their spread; from the third of ten steps on."""
    import torch

    from spikec.recovery import _SPREAD, _so_far

    w = np.ones((3, 2), np.float32)
    g = graph(spikes((2,)), dense("a", "in", w), leaky("l", "a", 0.5), out=["l"] if port == "s" else [("v", Ref("l", "v"))])
    output = np.random.default_rng(0).integers(-3, 4, (5, 10, 3)).astype(np.float32)
    found = _so_far(torch, g, torch.from_numpy(output)).numpy()
    wanted = np.stack([output[:, : t + 1].sum(axis=1) / (1 if port == "s" else t + 1) for t in range(2, 10)], axis=1)
    np.testing.assert_allclose(found, wanted if port == "s" else wanted * (_SPREAD / wanted.std(ddof=1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"epochs": -1}, "SPK001", "epochs must be 0 or more, not -1"),
        ({"learning_rate": 0.0}, "SPK001", "learning_rate must be above 0, not 0.0"),
        ({"early": 1.5}, "SPK001", "early is a share from 0 to 1, not 1.5"),
        (
            {"labels": [[1] * 12] * 8, "early": 0.5},
            "SPK001",
            "early asks for one answer a sample, and these labels have one a step",
        ),
        ({"held_out": 1.0}, "SPK001", "held_out is a share from 0 up to but without 1"),
        ({"labels": [1, 2]}, "SPK006", "the labels have shape (2,), not (8,), one a sample, or (8, 12), one a step"),
        ({"labels": [0.5] * 8}, "SPK007", "the labels are float64, not whole numbers"),
        ({"data": np.zeros((8, 12, 3))}, "SPK006", "(batch, T, 16)"),
        ({"build": "float"}, "SPK404", "the build has no quantizer to recover from"),
    ],
)
def test_bad_input(net: Graph, options: dict[str, Any], code: str, text: str) -> None:
    x, y = task(8, 2)
    given = {"build": "fixed", "data": x, "labels": y} | options
    build = spikec.compile(net, target="host", **({"bits": 8} if given.pop("build") == "fixed" else {}))
    with pytest.raises(CompileError) as caught:
        spikec.recover(build, **given)
    assert caught.value.diagnostics[0].code == code
    assert text in caught.value.diagnostics[0].message


@pytest.mark.parametrize("drop", [0.1, 0.25, 0.9])
def test_the_share_that_is_dropped_is_the_one_asked_for(drop: float) -> None:
    import torch

    from spikec.recovery import _kept

    generator = torch.Generator().manual_seed(0)
    kept = _kept(torch, torch.ones(101, 333, 3), drop, generator)
    assert kept.shape == (101, 333, 3)
    assert kept.float().mean().item() == pytest.approx(1 - drop, abs=0.006)  # four standard deviations
    again = _kept(torch, torch.ones(101, 333, 3), drop, generator)
    assert not torch.equal(kept, again)
