"""Bisect: it names the pass after which the score fell, and the layer that did it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import F, dense, graph, leaky, spikes

import spikec
from spikec.bisect import bisect
from spikec.cli import main
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph


def net(width: int = 16) -> Graph:
    """Every class has its own inputs; a layer passes them on, the next counts them."""
    w2 = np.kron(np.eye(4, dtype=F), np.full((1, width // 4), 0.5, F))
    return graph(
        spikes((width,)), dense("fc1", "in", np.eye(width, dtype=F) * 2 + np.linspace(0, 0.01, width, dtype=F)), leaky("l1", "fc1", 0.5),
        dense("fc2", "l1", w2), leaky("l2", "fc2", 0.9), out=["l2"],
    )  # fmt: skip


def data(samples: int = 80, width: int = 16) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, samples)
    rate = np.where(np.arange(width) // (width // 4) == y[:, None], 0.5, 0.1)
    return (rng.random((samples, 15, width)) < rate[:, None, :]).astype(F), y


def test_the_pass_and_the_layer() -> None:
    """Pruning that spares every layer but one."""
    x, y = data()
    build = spikec.compile(net(), target="host", bits=8, calibrate=x, prune=0.9, prune_scope="layer", keep_layers=("fc1",))
    found = bisect(build, x, y)
    assert [stage for stage, _ in found.scores] == build.stage_names
    assert found.scores[0][1] > 0.95
    assert found.worst == "prune"
    told = {layer.name: layer.loss for layer in found.layers}
    lost = found.scores[1][1] - found.scores[2][1]
    assert lost > 0.1
    # Neurons that nobody reads any more are gone: what they sent cannot be fed to those that stayed.
    assert told == {"l1": None, "l2": pytest.approx(lost)}
    assert found.layer == "l2"
    assert "the score fell most in the pass prune, at %l1 or %l2\n" in found.text()
    assert "%l1: cannot be told apart, its loss is in that of %l2\n" in found.text()


def test_a_score_that_never_falls() -> None:
    x, y = data()
    found = bisect(spikec.compile(net(), target="host", bits=8, calibrate=x), x, y)
    assert (found.worst, found.layers, found.layer) == ("", (), "")
    assert found.text().endswith("80 samples: the score never fell")


def test_two_bits_are_blamed_on_the_quantizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    w1, w2 = (rng.normal(0, 1, shape).astype(F) for shape in ((24, 16), (4, 24)))
    g = graph(
        spikes((16,)), dense("fc1", "in", w1), leaky("l1", "fc1", 0.9), dense("fc2", "l1", w2), leaky("l2", "fc2", 0.9), out=["l2"]
    )
    x = (rng.random((200, 15, 16)) < 0.3).astype(F)
    y = spikec.compile(g, target="reference").run(x).outputs["l2"].sum(1).argmax(1)  # by definition all right before
    build = spikec.compile(g, target="loihi2", bits=1, calibrate=x[:32])
    build.save(tmp_path / "b")
    np.savez(tmp_path / "d.npz", x=x, y=y)
    assert main(["verify", str(tmp_path / "b"), "--bisect", "--input", str(tmp_path / "d.npz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["worst"] == "quantize"
    assert found["scores"]["input"] == 1
    assert found["layer"] in ("l1", "l2")
    told = {layer["name"]: layer["loss"] for layer in found["layers"]}
    assert sum(told.values()) == pytest.approx(1 - found["scores"]["quantize"], abs=1e-9)
    assert main(["verify", str(tmp_path / "b"), "--bisect", "--input", str(tmp_path / "d.npz")]) == 0
    assert "fell most in the pass quantize, at %" in capsys.readouterr().out
    np.savez(tmp_path / "e.npz", x=x)
    assert main(["verify", str(tmp_path / "b"), "--bisect", "--input", str(tmp_path / "e.npz")]) == 1
    assert "has no labels" in capsys.readouterr().err
    np.savez(tmp_path / "l.npz", x=x, labels=y)
    for command in (
        ["verify", str(tmp_path / "b"), "--bisect", "--input"],
        ["compile", str(tmp_path / "b"), "-o", "c", "--calibrate"],
    ):
        assert main([*command, str(tmp_path / "l.npz")]) == 1
        assert "l.npz: labels go under the key y, not 'labels'" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "b"), "--bisect"]) == 1
    assert "--bisect needs labelled data" in capsys.readouterr().err


def test_labels_beyond_the_classes() -> None:
    x, y = data(8)
    build = spikec.compile(net(), target="host", bits=8, calibrate=x, labels=np.where(y > 1, -1, y))
    with pytest.raises(CompileError, match="the labels reach 4, but the output tells 4 classes apart, 0 to 3"):
        bisect(build, x, y * 0 + 4)
    with pytest.raises(CompileError, match="the labels reach 9"):
        spikec.compile(net(), target="host", bits=8, calibrate=x, labels=y * 0 + 9)


def test_bad_labels() -> None:
    x, y = data(8)
    build = spikec.compile(net(), target="host", bits=8)
    with pytest.raises(CompileError, match="the labels have shape"):
        bisect(build, x, y[:3])
