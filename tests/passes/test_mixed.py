"""Mixed precision: the cheapest widths within the budget, measured; what was chosen is what runs, and the files shrink."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, spikes

import spikec
from spikec.bits import layer_bytes
from spikec.cli import main
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.ops import Dense, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import write_graph
from spikec.passes.mixed import knapsack

LAYERS = ("a", "b", "c")


def net() -> Graph:
    """Three layers, of which two bits hold the first exactly."""
    rng = np.random.default_rng(0)
    w1 = rng.integers(-1, 2, (24, 16)).astype(F)
    w2, w3 = rng.normal(0, 0.4, (20, 24)).astype(F), rng.normal(0, 0.5, (4, 20)).astype(F)
    return verify(
        graph(
            spikes((16,)), dense("a", "in", w1), leaky("l1", "a", 0.9), dense("b", "l1", w2), leaky("l2", "b", 0.9),
            dense("c", "l2", w3), leaky("l3", "c", 0.9), out=["l3"],
        )
    )  # fmt: skip


def data(samples: int = 40) -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, samples)
    rates = np.where(np.repeat(np.eye(4), 4, axis=1)[y] > 0, 0.5, 0.1)
    return {"in": (rng.random((samples, 20, 16)) < rates[:, None]).astype(F)}, y


def built(**options: Any) -> Any:
    x, y = data()
    return spikec.compile(net(), calibrate=x, labels=y, **options)


def chosen(build: Any) -> dict[str, int]:
    return {e.node: int(e.measured["bits"]) for e in build.ledger if "bits" in e.measured}


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(1, 30),
)
def test_the_integer_program_is_exact(table: Any, budget: int) -> None:
    costs = {f"l{k}": {bits: cost / 7 for bits, (cost, _) in enumerate(each, 2)} for k, each in enumerate(table)}
    sizes = {f"l{k}": {bits: size for bits, (_, size) in enumerate(each, 2)} for k, each in enumerate(table)}
    found = knapsack(costs, sizes, budget)
    fitting = [
        sum(costs[name][bits] for name, bits in zip(costs, pick, strict=True))
        for pick in itertools.product(*(each for each in costs.values()))
        if sum(sizes[name][bits] for name, bits in zip(costs, pick, strict=True)) <= budget
    ]
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert sum(sizes[name][bits] for name, bits in found.items()) <= budget
    assert sum(costs[name][bits] for name, bits in found.items()) == pytest.approx(min(fitting), abs=1e-6)


def test_a_width_that_cannot_be_compiled_is_never_taken() -> None:
    assert knapsack({"a": {8: 0.0, 2: np.inf}}, {"a": {8: 10, 2: 1}}, 20) == {"a": 8}
    assert knapsack({"a": {8: 0.0, 2: np.inf}}, {"a": {8: 10, 2: 1}}, 5) is None


@pytest.mark.parametrize("target", ["host", "loihi2"])
@pytest.mark.parametrize("budget", [944, 620, 420])
def test_within_the_budget(target: str, budget: int) -> None:
    g, build = net(), built(target=target, bits="mixed", max_bytes=budget)
    bits = chosen(build)
    assert list(bits) == list(LAYERS)
    assert sum(layer_bytes(g[name], bits[name]) for name in LAYERS) <= budget
    told = next(e for e in build.ledger if e.what == "mixed precision: the weights, packed")
    assert told.measured["bytes"] == sum(layer_bytes(g[name], bits[name]) for name in LAYERS)
    assert told.measured["bytes at 8 bits"] == 944
    assert {"loss", "spikes changed", "accuracy before", "accuracy after"} <= told.measured.keys()
    if budget == 944:
        assert bits == dict.fromkeys(LAYERS, 8)
        assert told.measured["bytes"] == 944
    elif budget == 620:  # what costs nothing goes first
        assert (
            bits["a"] < 8 and next(e for e in build.ledger if e.node == "a" and "bits" in e.measured).measured["cost alone"] < 0.01
        )
    for name in LAYERS:
        weight = build.graph()[name].weight.astype(np.int64)
        assert weight.any()
        step = 2 << (8 - bits[name]) if target == "loihi2" else 1
        assert not np.any(weight % step)
        if target == "host":
            assert np.abs(weight).max() < 1 << (bits[name] - 1)
    x, _ = data(4)
    assert build.verify(x["in"], backends=["numpy", "c"]).ok


def test_the_sensitive_layer_keeps_its_bits() -> None:
    """Two bits hold the first layer, and the budget is just enough for that and eight bits everywhere else."""
    bits = chosen(built(target="loihi2", bits="mixed", max_bytes=96 + 480 + 80))
    assert bits["a"] < 6
    assert bits["b"] >= 6 and bits["c"] >= 6


@pytest.mark.parametrize("target", ["host", "loihi2"])
@pytest.mark.parametrize("spec", ["a=2,c=4", [2, 8, 4], {"a": 2, "c": 4}, "2,8,4"])
def test_bits_by_layer(target: str, spec: Any) -> None:
    build = built(target=target, bits=spec)
    tops = {"a": 1, "b": 127, "c": 7}
    steps = {"a": 128, "b": 2, "c": 32}
    for name in LAYERS:
        weight = build.graph()[name].weight.astype(np.int64)
        assert np.abs(weight).max() <= tops[name] if target == "host" else not np.any(weight % steps[name])
    again = spikec.compile(build, calibrate=data()[0], labels=data()[1])
    assert again.ir() == build.ir()


def test_layers_of_one_population_share_a_scale() -> None:
    """A recurrent layer of fewer bits than the feedforward one: multiples of a larger step, in the same unit."""
    from spikec.ir.ops import Add, Ref

    rng = np.random.default_rng(2)
    g = verify(
        graph(
            spikes((6,)), dense("f", "in", rng.normal(0, 0.5, (5, 6)).astype(F)), dense("r", Ref("l", delay=1), rng.normal(0, 0.5, (5, 5)).astype(F)),
            Add(name="s", inputs=(Ref("f"), Ref("r"))), leaky("l", "s"), out=["l"],
        )
    )  # fmt: skip
    build = spikec.compile(g, target="host", bits="r=4")
    f, r = (build.graph()[name].weight.astype(int) for name in ("f", "r"))
    assert not np.any(r % 16) and np.abs(r).max() <= 7 * 16 and np.any(f % 16)
    scale = {e.node: e.measured["scale"] for e in build.ledger if "scale" in e.measured}
    assert scale["f"] == scale["r"]
    assert np.abs(r - g["r"].weight * scale["r"]).max() <= 8 + 1e-3


def test_fewer_bits_are_smaller_files(tmp_path: Path) -> None:
    """What a build's files take of a layer's weights is no more than they take packed."""
    size = {}
    for bits in (8, 4, 2):
        built(target="host", bits=bits).save(tmp_path / str(bits))
        (found,) = tmp_path.joinpath(str(bits)).rglob("*to-fixed*.npz")
        with zipfile.ZipFile(found) as archive:
            size[bits] = next(item.compress_size for item in archive.infolist() if item.filename.startswith("b."))
        assert size[bits] <= 24 * 20 * bits / 8 * 1.05 + 128  # the header of an array
    assert size[2] < size[4] < size[8]


def test_c_says_what_it_keeps() -> None:
    told = next(e for e in built(target="host", bits="c=4").ledger if "bytes in C" in e.measured)
    assert told.measured == {"bytes packed": 40, "bytes in C": 80}
    assert not [e for e in built(target="host", bits=8).ledger if "bytes in C" in e.measured]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"bits": "mixed"}, "SPK001", "mixed bits need a budget"),
        ({"bits": "mixed", "max_bytes": 600, "calibrate": None, "labels": None}, "SPK001", "mixed bits needs calibration data"),
        ({"bits": "mixed", "max_bytes": 100}, "SPK219", "no widths reach 100 bytes: the weights take 236 at 2 bits each"),
        ({"bits": "d=4"}, "SPK010", "there is no layer 'd'"),
        ({"bits": "8,4"}, "SPK001", "2 number(s) for 3 layer(s)"),
        ({"bits": "a=17"}, "SPK001", "17 bits"),
    ],
)
def test_refused(options: Any, code: str, words: str) -> None:
    x, y = data()
    with pytest.raises(CompileError) as caught:
        spikec.compile(net(), target="host", **{"calibrate": x, "labels": y, **options})
    assert caught.value.diagnostics[0].code == code
    assert words in str(caught.value)


def test_pruning_and_bits_share_a_budget() -> None:
    """Pruned by a share first, mixed bits then keep to the bytes; by number, pruning alone does, at the bits asked for."""
    build = built(target="host", bits="mixed", prune=0.6, max_bytes=420)
    assert "prune" in build.stage_names
    bits = chosen(build)
    before = build.graph(after="prune")
    assert sum(layer_bytes(before[name], bits[name]) for name in LAYERS) <= 420
    assert "prune" not in built(target="host", bits="mixed", max_bytes=620).stage_names
    left = {}
    for width in (8, 4):
        found = built(target="host", bits=width, max_bytes=420).graph(after="prune")
        layers = [node for node in found.nodes if isinstance(node, (Dense, Sparse))]
        assert sum(layer_bytes(node, width) for node in layers) <= 420
        left[width] = sum(int(np.count_nonzero(node.weight)) for node in layers)
    assert left[4] > left[8]
    floats = spikec.compile(net(), target="host", max_bytes=1600, calibrate=data()[0]).graph()
    assert sum(layer_bytes(node, 32) for node in floats.nodes if isinstance(node, (Dense, Sparse))) <= 1600
    both = built(target="host", bits=4, max_bytes=420, max_synapses=150).graph()
    assert sum(int(np.count_nonzero(n.weight)) for n in both.nodes if isinstance(n, (Dense, Sparse))) <= 150


def test_recovery_keeps_the_widths() -> None:
    x, y = data()
    build = built(target="host", bits="mixed", max_bytes=420)
    bits = chosen(build)
    after = spikec.recover(build, x["in"], y, epochs=1)
    for name in LAYERS:
        assert np.abs(after.graph()[name].weight.astype(int)).max() < 1 << (bits[name] - 1)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = data()
    np.savez(tmp_path / "d.npz", x=x["in"], y=y)
    write_graph(net(), tmp_path / "n.sir")
    command = [
        "compile",
        str(tmp_path / "n.sir"),
        "-o",
        str(tmp_path / "b"),
        "--target",
        "host",
        "--calibrate",
        str(tmp_path / "d.npz"),
    ]
    assert main([*command, "--bits", "mixed", "--max-bytes", "500"]) == 0
    assert "mixed precision: the weights, packed; bytes" in capsys.readouterr().out
    assert main([*command, "--bits", "four"]) == 1
    assert "SPK001" in capsys.readouterr().err
