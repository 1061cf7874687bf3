"""Networks that lava-dl's own SLAYER trained, against the spikes, states and scores that were published with them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spikec.frontend.slayer import read_net
from spikec.ir.interpret import interpret

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
Array = NDArray[np.generic]


def data(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


# ---------------------------------------------------------------------------------------------------------- PilotNet


def test_pilotnet_lif_equals_the_published_states_at_every_step() -> None:
    """A frame through 5 conv and 3 dense layers and the encoder, cleared every 17 steps: u, v and spikes, 0 mismatches."""
    folder = data("lavadl_pilotnet_lif")
    truth = np.load(folder / "ground_truth.npz")
    graph = read_net(folder / "network.net", reset_interval=17, states=True)
    steps = truth["input"].shape[-1]
    image = truth["image"].transpose(2, 1, 0)  # (x, y, channel) as (channel, row, column)
    frames = np.broadcast_to(image, (1, steps, *image.shape))
    layers = {"conv-0": 1, "conv-1": 2, "conv-2": 3, "conv-3": 4, "conv-4": 5, "fc-0": 7, "fc-1": 8, "fc-2": 9}
    record = ["layer0", *(f"layer{n}{port}" for n in layers.values() for port in ("", ".u", ".v"))]
    got = interpret(graph, {"input": frames}, record=record).records

    def as_graph(name: str) -> Array:
        array = truth[name]
        return array.transpose(3, 2, 1, 0) if array.ndim == 4 else array.T

    mismatches = {"input": int(np.sum(got["layer0"][0] != as_graph("input")))}
    compared = 0
    for name, number in layers.items():
        spikes = as_graph(name)
        mismatches[name] = int(np.sum(got[f"layer{number}"][0] != spikes))
        mismatches[f"{name}-u"] = int(np.sum(got[f"layer{number}.u"][0] != as_graph(f"{name}-u")))
        # In the step of a spike the chip shows its refractory code instead of v.
        shown = ~spikes.astype(bool)
        mismatches[f"{name}-v"] = int(np.sum((got[f"layer{number}.v"][0] != as_graph(f"{name}-v")) & shown))
        compared += 3 * spikes.size
    assert mismatches == dict.fromkeys(mismatches, 0)
    assert compared == 8_561_376
    assert sum(int(as_graph(name).sum()) for name in layers) > 10_000


# ----------------------------------------------------------------------------------------------------------- tinynet


def test_tinynet_equals_slayer() -> None:
    """The recording is one step late as a whole and its blocks compute within one step."""
    folder = data("lavadl_tinynet")
    truth = np.load(folder / "ground_truth.npz")
    graph = read_net(folder / "tiny.net", delay_shift=False)
    bias = np.rint(truth["input_bias"]).astype(np.int64)
    frame = bias.transpose(2, 1, 0)  # (x, y, channel)
    steps = truth["input"].shape[-1] - 1
    data_in = np.broadcast_to(frame, (1, steps, *frame.shape))
    got = interpret(graph, {"input": data_in}, record=["layer0", "layer1_sum", "layer1", "layer2"]).records
    names = {"input": "layer0", "current": "layer1_sum", "layer1": "layer1", "output": "layer2"}
    mismatches = {}
    for name, node in names.items():
        wanted = np.moveaxis(truth[name][0], -1, 0)
        assert not wanted[0].any()
        mismatches[name] = int(np.sum(got[node][0] != wanted[1:]))
    assert mismatches == dict.fromkeys(names, 0)
    assert truth["output"].sum() > 0


# ------------------------------------------------------------------------------------------------------------- MNIST


def mnist() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    folder = data("data_mnist_t10k")
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 784), np.frombuffer(labels, np.uint8, offset=8)


def rate_code(images: NDArray[np.uint8], steps: int) -> NDArray[np.int8]:
    """The tutorial's encoder: from the second step on v += pixel / 255; a spike where v > 1, which clears v."""
    v = np.zeros(images.shape)
    spikes = np.zeros((images.shape[0], steps, images.shape[1]), np.int8)
    for t in range(1, steps):
        v += images / 255
        spikes[:, t] = v > 1
        v[v > 1] = 0
    return spikes


def test_mnist_cuba_reads_the_first_digits_as_the_chip_did() -> None:
    """25 of the first 25 right at 20 and at 32 steps, and the exact number of the first 1,000 at 20."""
    graph = read_net(data("lavadl_mnist_cuba") / "trained_mnist_network.net", delay_shift=False)
    images, labels = mnist()
    for steps, count in ((32, 25), (20, 1000)):
        out = interpret(graph, {"input": rate_code(images[:count], steps)}).outputs["layer2"]
        right = out.sum(axis=1).argmax(axis=1) == labels[:count]
        assert right[:25].all()
        if count == 1000:
            assert right.sum() == 947


@pytest.mark.long
@pytest.mark.parametrize(("steps", "score"), [(20, 0.9532), (32, 0.9524)])
def test_mnist_cuba_score_on_all_digits_through_c(steps: int, score: float) -> None:
    """Published: .9532 at 20 steps and .9524 at 32."""
    from spikec.backends.c.backend import CBackend
    from spikec.backends.c.library import find_compiler
    from spikec.target import load_target

    if find_compiler() is None:
        pytest.skip("there is no C compiler")
    graph = read_net(data("lavadl_mnist_cuba") / "trained_mnist_network.net", delay_shift=False)
    images, labels = mnist()
    backend = CBackend(load_target("host"))
    right = 0
    for start in range(0, len(images), 1000):
        chosen = slice(start, start + 1000)
        out = backend.run(graph, {"input": rate_code(images[chosen], steps)}).outputs["layer2"]
        right += int(np.sum(out.sum(axis=1).argmax(axis=1) == labels[chosen]))
    assert right == round(score * 10_000)


# -------------------------------------------------------------------------------------------------------------- NDNS


def test_ndns_sigma_delta_equals_every_block_of_slayer() -> None:
    """A denoiser on 201 frames of speech: largest difference 0 in every block."""
    folder = data("ndns_sdnn_nodelay")
    truth = np.load(folder / "slayer_reference.npz")
    graph = read_net(folder / "network.net")
    levels = np.rint((truth["stft_mag"].astype(np.float64) - 0.2) * 64).astype(np.int64)
    got = interpret(graph, {"input": levels.T[None]}, record=["layer0", "layer1", "layer2", "layer3"]).records
    largest = {}
    # SLAYER's blocks 1 and 2 hand on what they computed a step ago.
    for number, (late, scale) in enumerate([(0, 1 << 12), (1, 1 << 12), (1, 1 << 12), (0, 1 << 18)]):
        own = got[f"layer{number}"][0].T / scale
        wanted = truth[f"block{number}"].astype(np.float64)
        assert np.ptp(wanted) > 1
        assert not wanted[:, :late].any()
        # SLAYER holds 32-bit floats: block 3 has more digits than they keep.
        same = own.astype(np.float32).astype(np.float64)[:, : own.shape[1] - late]
        largest[number] = float(np.abs(same - wanted[:, late:]).max())
    assert largest == dict.fromkeys(range(4), 0.0)
    mask = np.maximum(got["layer3"][0].T / (1 << 18) + 1, 0)
    assert np.allclose(truth["stft_mag"] * mask, truth["denoised_mag"], rtol=0, atol=1e-5)
