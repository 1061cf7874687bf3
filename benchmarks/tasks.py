"""Classification tasks for `make bench-passes`: spikes in, labels out, and a float network trained for each seed.

Networks are trained as graphs (`spikec.nn.GraphModule`): leaky neurons, reset to zero, cross-entropy on the spike counts of the
last layer, Adam. Weights are kept in build/bench-passes, so that a second run does not train again.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from spikec.frontend.nn.graph_module import GraphModule
from spikec.ir.graph import Graph
from spikec.ir.ops import Dense, Input, Neuron, Node, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType
from spikec.progress import Bar

ROOT: Final = Path(__file__).resolve().parent.parent
DATA: Final = ROOT.parent / "shared" / "data"
KEPT: Final = ROOT / "build" / "bench-passes"
LIF: Final = parse_program(
    "neuron @lif(x) params(beta, theta) state(v = 0) {\nv = beta * v + x\ns = v > theta\nv = select(s, 0, v)\nemit s\n}"
)


@dataclass(frozen=True)
class Split:
    """Spikes (samples, T, inputs) as uint8 and labels (samples,)."""

    x: Array
    y: Array


@dataclass(frozen=True)
class Task:
    """A task: its data, and the float network of a seed."""

    name: str
    train: Split
    test: Split
    network: Callable[[int], Graph]


# --------------------------------------------------------------------------------------------------------------- data


def _digits() -> tuple[Split, Split]:
    sys.path.insert(0, str(ROOT / "examples" / "digits"))
    import data as digits

    train, held_out = digits.split()
    return Split(digits.spikes(train.images), train.labels), Split(digits.spikes(held_out.images), held_out.labels)


def _accumulated(level: Array, steps: int, full: float) -> Array:
    """Spikes (samples, steps, n) of accumulators that gain `level` (samples, n) in every step and fire at `full`."""
    fired = np.floor(0.5 + level[:, None, :] * np.arange(steps + 1)[None, :, None] / full)
    return np.diff(fired, axis=1).astype(np.uint8)


def mnist_images() -> tuple[Array, Array]:
    """The 10,000 pictures (10000, 784) from 0 to 1, and their labels."""
    folder = DATA / "data_mnist_t10k"
    images = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return images.reshape(-1, 784) / 255.0, labels.astype(np.int64)


def _mnist() -> tuple[Split, Split]:
    images, labels = mnist_images()
    order = np.random.RandomState(2026).permutation(len(images))
    x = _accumulated(images[order], 16, 2.0)
    y = labels[order]
    return Split(x[:8000], y[:8000]), Split(x[8000:], y[8000:])


def _mel(bands: int, size: int, rate: int) -> Array:
    """Triangular filters, evenly spaced in mel between 100 Hz and rate / 2: (bands, size / 2 + 1)."""
    mel = np.linspace(2595 * np.log10(1 + 100 / 700), 2595 * np.log10(1 + rate / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    f = np.fft.rfftfreq(size, 1 / rate)
    up = (f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - f) / (edges[2:] - edges[1:-1])[:, None]
    return np.clip(np.minimum(up, down), 0, None)


def spoken_digits(bands: int = 24, steps: int = 32) -> tuple[Array, Array, Array]:
    """Log-mel spectra (3000, steps, bands) from 0 (quiet) to 1, each recording in `steps` frames; labels; for testing or not."""
    found = np.load(DATA / "data_fsdd" / "fsdd.npz", allow_pickle=False)
    audio, offsets = found["audio"].astype(np.float64), found["offsets"]
    filters, size = _mel(bands, 256, 8000), 256
    window = np.hanning(size)
    spectra = np.zeros((len(offsets) - 1, steps, bands))
    for k, (begin, end) in enumerate(pairwise(offsets)):
        sound = np.pad(audio[begin:end], (0, max(0, size + steps - (end - begin))))
        starts = np.linspace(0, len(sound) - size, steps).astype(int)
        frames = np.stack([sound[start : start + size] for start in starts]) * window
        power = np.abs(np.fft.rfft(frames, axis=1)) ** 2 @ filters.T
        level = np.log10(power + 1e-3 * power.max() + 1e-9)
        spectra[k] = (level - level.min()) / max(float(np.ptp(level)), 1e-9)
    return spectra, found["label"].astype(np.int64), found["index"] < 5


def _fsdd() -> tuple[Split, Split]:
    spectra, labels, test = spoken_digits()
    levels = np.array([0.25, 0.45, 0.65, 0.85])
    x = (spectra[..., None] > levels).reshape(*spectra.shape[:2], -1).astype(np.uint8)
    return Split(x[~test], labels[~test]), Split(x[test], labels[test])


# ----------------------------------------------------------------------------------------------------------- networks


def feedforward(sizes: list[int], seed: int, beta: float) -> Graph:
    """Layers of leaky neurons with random weights."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [Input(name="in", type=TensorType("spike", (sizes[0],), "f32"))]
    before = "in"
    for k, (fan_in, fan_out) in enumerate(pairwise(sizes), 1):
        weight = rng.normal(0, 1.5 / np.sqrt(fan_in), (fan_out, fan_in)).astype(np.float32)
        nodes.append(Dense(name=f"fc{k}", inputs=(Ref(before),), weight=weight))
        params = {"beta": np.float32(beta), "theta": np.float32(1)}
        nodes.append(Neuron(name=f"lif{k}", inputs=(Ref(f"fc{k}"),), program=LIF, params=params))
        before = f"lif{k}"
    return verify(Graph("net", "float", tuple(nodes), ((before, Ref(before)),)))


def with_weights(graph: Graph, weights: dict[str, Array]) -> Graph:
    """The graph with other weights."""
    return verify(graph.with_nodes(replace(n, weight=weights[n.name]) if isinstance(n, Dense) else n for n in graph.nodes))


def trained(name: str, start: Graph, train: Split, seed: int, epochs: int, rate: float) -> Graph:
    """The network after training, from the cache where it is there."""
    names = [node.name for node in start.nodes if isinstance(node, Dense)]
    sizes = "-".join(str(node.weight.shape[0]) for node in start.nodes if isinstance(node, Dense))
    path = KEPT / f"{name}-{sizes}-{epochs}-{seed}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as found:
            return with_weights(start, {key: found[key] for key in names})
    torch.manual_seed(seed)
    module = GraphModule(start)
    optimizer = torch.optim.Adam(module.parameters(), rate, weight_decay=1e-5)
    batches = -(-len(train.y) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    x, y = torch.from_numpy(train.x), torch.from_numpy(train.y)
    output = start.outputs[0][0]
    with Bar(f"training {name}, seed {seed}") as bar:
        for epoch in range(epochs):
            order = torch.randperm(len(y))
            for k in range(batches):
                chosen = order[64 * k : 64 * (k + 1)]
                spikes = x[chosen].float()
                spikes = spikes * (torch.rand_like(spikes) > 0.1)  # dropped input spikes: few samples are learned by heart
                loss = torch.nn.functional.cross_entropy(module(spikes)[output].sum(1), y[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar(epoch * batches + k + 1, epochs * batches)
    weights = {key: module.weight_of(key).detach().numpy().copy() for key in names}
    KEPT.mkdir(parents=True, exist_ok=True)
    np.savez(path, **weights)
    return with_weights(start, weights)


#: name -> (data, layer sizes, beta, epochs, learning rate).
TASKS: Final[dict[str, tuple[Callable[[], tuple[Split, Split]], list[int], float, int, float]]] = {
    "digits": (_digits, [64, 96, 64, 10], 0.9, 60, 3e-3),
    "mnist": (_mnist, [784, 256, 128, 10], 0.9, 10, 2e-3),
    "spoken": (_fsdd, [96, 192, 96, 10], 0.95, 24, 2e-3),
}


def load(name: str) -> Task:
    """A task with its data."""
    data, sizes, beta, epochs, rate = TASKS[name]
    train, test = data()

    def network(seed: int) -> Graph:
        return trained(name, feedforward(sizes, seed, beta), train, seed, epochs, rate)

    return Task(name, train, test, network)


def score_of(build: Any, split: Split) -> Array:
    """Which answers are right (samples,), by the C engine."""
    from spikec.score import answers, scored_output

    output = build.run(split.x, "c").outputs[scored_output(build.graph())]
    return np.asarray(answers(output) == split.y)
