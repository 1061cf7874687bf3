"""A trained ANN of somebody else made to spike, and spiking networks of others in onnxruntime (see the READMEs beside the data)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from many import require_compiler

import ann_to_snn
import spikec
from spikec.driver import read_model
from spikec.frontend.onnx import read_onnx
from spikec.frontend.onnx.write import model_of
from spikec.ir.interpret import interpret
from support.onnx_models import run

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

SAMPLES, STEPS = 100, 100


def folder(name: str) -> Path:
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    return path


def test_sinabs_cnn_loses_less_than_a_point(tmp_path: Path) -> None:
    """100 digits here, spread over the test set; `make bench-ann` runs all 10,000 of them."""
    folder("sinabs_cnn"), folder("data_mnist_t10k")
    require_compiler()
    net = ann_to_snn.network(DATA)
    x, labels = ann_to_snn.digits(DATA)
    with torch.no_grad():
        scores = np.concatenate([net(torch.tensor(x[i : i + 1000])).numpy() for i in range(0, 10000, 1000)])
    assert (scores.argmax(axis=1) == labels).mean() == pytest.approx(0.9788, abs=0.0001)
    path = ann_to_snn.exported(net, x[:1], tmp_path / "mnist.onnx")
    graph = read_onnx(path)
    assert np.abs(interpret(graph, {"x": x[:64, None]}).outputs["y"][:, 0] - scores[:64]).max() < 1e-6
    build = spikec.compile(path, target="host", calibrate=x[:32], labels=labels[:32], steps=STEPS, measured=4)
    errors = {entry.node: entry.measured["relative error"] for entry in build.ledger if "relative error" in entry.measured}
    assert len(errors) == 5  # four layers and the output
    assert max(errors.values()) < 0.05
    chosen = np.arange(SAMPLES) * (10000 // SAMPLES)
    found = ann_to_snn.over_the_steps(build, x[chosen], STEPS)
    assert np.linalg.norm(found[:, -1] / STEPS - scores[chosen]) < 0.05 * np.linalg.norm(scores[chosen])
    ann = (scores[chosen].argmax(axis=1) == labels[chosen]).mean()
    right = (found.argmax(axis=2) == labels[chosen, None]).mean(axis=0)
    assert right[-1] >= ann - 0.01
    assert right[0] < 0.5 < right[9]
    # Straight from torch it is the same network.
    traced = spikec.compile(net, x[:2], target="host", spiking=True, calibrate=x[:32], steps=STEPS, measured=1)
    again = ann_to_snn.over_the_steps(traced, x[chosen[:20]], STEPS)
    assert np.abs(again - found[:20]).max() < 1e-3 * np.abs(found).max()


@pytest.mark.parametrize(
    "name",
    [
        "nir_braille_zero/braille_noDelay_bias_zero.nir", "nir_lif/lif_norse.nir", "nir_scnn_nmnist/cnn_sinabs.nir",
        "nir_wild/lif_rockpool.nir", "nir_wild/two_lif_neurons.nir",
    ],
)  # fmt: skip
def test_networks_of_others_spike_alike_in_onnxruntime(name: str) -> None:
    folder(name.partition("/")[0])
    graph = read_model(DATA / name, dt=1e-3 if "two_lif" in name else 1e-4)
    rng = np.random.default_rng(0)
    inputs = {
        node.name: (rng.random((2, 40, *node.type.shape)) < 0.25).astype(node.type.dtype.replace("f", "float"))
        for node in graph.inputs
    }
    record = [node.name for node in graph.neurons]
    wanted, found = interpret(graph, inputs, record=record), run(model_of(graph, record), inputs)
    for layer in record:
        assert np.array_equal(found[layer], wanted.records[layer])
    assert any(array.any() for array in wanted.records.values())
