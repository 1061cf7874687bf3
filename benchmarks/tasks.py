"""Classification tasks for `make bench-passes`: spikes in, labels out, and a float network for each seed.

Three networks are trained here, as graphs (`spikec.nn.GraphModule`): leaky neurons, reset to zero, cross-entropy on the spike
counts of the last layer, or, for spoken digits, on the sums of what arrives there; Adam; as many of the input's spikes left out at
random as in a recovery. Weights are kept in build/bench-passes, so that a second run does not train again. Two networks are given,
trained by others: the seeds then only tell recoveries apart.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
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
#: Into so many parts the training samples are cut when settings are chosen.
FOLDS: Final = 5
LIF: Final = parse_program(
    "neuron @lif(x) params(beta, theta) state(v = 0) {\nv = beta * v + x\ns = v > theta\nv = select(s, 0, v)\nemit s\n}"
)
CUBA: Final = parse_program(
    "neuron @cuba(x) params(alpha, beta, theta) state(u = 0, v = 0) {\nu = alpha * u + x\nv = beta * v + u\ns = v > theta\n"
    "v = select(s, 0, v)\nemit s\n}"
)


@dataclass(frozen=True)
class Split:
    """Spikes (samples, T, inputs) as uint8 and labels (samples,).

    turn: the how-manieth recording of its kind each is (samples,), where the test samples are the first ones.
    """

    x: Array
    y: Array
    turn: Array | None = None


@dataclass(frozen=True)
class Task:
    """A task: its data, the float network of a seed, and how a recovery is asked for.

    tuning: what a recovery learns from, where not all of `train`. steps: from which step on answers count, where every step has a
    label (samples, T). options: of every compilation. given: whether others trained the network. drop: the share of the input's
    spikes left out in training; early: the share of the loss that asks for the answer at every step past a fifth of the run; both
    of the float network, if it is trained here, as of a recovery. recovery: further options of it. whole: the share of the neurons
    that goes whole where 90 % of the synapses go; None: what `--prune` finds. fewer: the share of the neurons that goes
    where answers come early, too. unseen: samples that nothing learns from, on which early answers are calibrated; None: training
    samples.
    """

    name: str
    train: Split
    test: Split
    network: Callable[[int], Graph]
    epochs: int
    batch_size: int = 64
    drop: float = 0.1
    rate: float = 0.05
    tuning: Split | None = None
    steps: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    given: bool = False
    early: float = 0.0
    recovery: Mapping[str, Any] = field(default_factory=dict)
    whole: float | None = None
    fewer: float = 0.5
    unseen: Split | None = None

    @property
    def per_step(self) -> bool:
        """Whether there is an answer to be given in every step."""
        return self.test.y.ndim == 2


# --------------------------------------------------------------------------------------------------------------- data


def _digits() -> tuple[Split, Split]:
    sys.path.insert(0, str(ROOT / "examples" / "digits"))
    import data as digits

    train, held_out = digits.split()
    return tuple(Split(digits.spikes(part.images, 12), part.labels) for part in (train, held_out))


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
    x = _accumulated(images[order], 10, 1.5)
    y = labels[order]
    return Split(x[:8000], y[:8000]), Split(x[8000:], y[8000:])


def _cuba() -> tuple[Split, Split]:
    """The same pictures in the code of the tutorial: accumulators that start late and are set to zero."""
    images, labels = mnist_images()
    order = np.random.RandomState(2026).permutation(len(images))
    level, steps = images[order], 20
    v, x = np.zeros(level.shape), np.zeros((len(level), steps, 784), np.uint8)
    for t in range(1, steps):
        v += level
        x[:, t] = v > 1
        v[v > 1] = 0
    y = labels[order]
    return Split(x[:8000], y[:8000]), Split(x[8000:], y[8000:])


def _ecg() -> tuple[Split, Split]:
    """Level crossings of heartbeats (samples, 1301, 4), a label at every step."""
    from scipy.io import loadmat

    folder = DATA / "ecg_srnn"
    parts = []
    for name in ("train", "test"):
        found = loadmat(folder / f"QTDB_{name}.mat")
        parts.append(Split(found["x"].astype(np.float32), found["y"].argmax(axis=-1).astype(np.int64)))
    return parts[0], parts[1]


def _windows(whole: Split, steps: int, unseen: int) -> Split:
    """Sequences cut into windows; the first steps of each do not count, for there a state is missing."""
    count = whole.x.shape[1] // steps
    first = whole.x.shape[1] - count * steps
    x = whole.x[:, first:].reshape(-1, steps, *whole.x.shape[2:])
    y = whole.y[:, first:].reshape(-1, steps).copy()
    y[:, :unseen] = -1
    return Split(x, y)


def _mel(bands: int, size: int, rate: int) -> Array:
    """Triangular filters, evenly spaced in mel between 100 Hz and rate / 2: (bands, size / 2 + 1)."""
    mel = np.linspace(2595 * np.log10(1 + 100 / 700), 2595 * np.log10(1 + rate / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    f = np.fft.rfftfreq(size, 1 / rate)
    up = (f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - f) / (edges[2:] - edges[1:-1])[:, None]
    return np.clip(np.minimum(up, down), 0, None)


def spoken_digits(bands: int = 24, steps: int = 20) -> tuple[Array, Array, Array]:
    """Log-mel spectra (3000, steps, bands), each recording in `steps` frames; labels; the how-manieth of its kind each is.

    In tens of decibels above the mean of the frame, after a pre-emphasis of 0.95, on a floor 30 dB below the recording's loudest.
    """
    found = np.load(DATA / "data_fsdd" / "fsdd.npz", allow_pickle=False)
    audio, offsets = found["audio"].astype(np.float64), found["offsets"]
    filters, size = _mel(bands, 256, 8000), 256
    window = np.hanning(size)
    spectra = np.zeros((len(offsets) - 1, steps, bands))
    for k, (begin, end) in enumerate(pairwise(offsets)):
        sound = np.append(audio[begin], audio[begin + 1 : end] - 0.95 * audio[begin : end - 1])
        sound = np.pad(sound, (0, max(0, size + steps - len(sound))))
        starts = np.linspace(0, len(sound) - size, steps).astype(int)
        frames = np.stack([sound[start : start + size] for start in starts]) * window
        power = np.abs(np.fft.rfft(frames, axis=1)) ** 2 @ filters.T
        level = np.log10(power + 1e-3 * power.max() + 1e-9)
        spectra[k] = level - level.mean(axis=1, keepdims=True)
    return spectra, found["label"].astype(np.int64), found["index"]


@cache
def _fsdd_parts() -> tuple[Split, Split, Split]:
    """Samples to learn from, to calibrate early answers on, and to test on.

    The first five recordings of each speaker and digit are for testing, as the data set's authors have it. The next five are not
    learnt either: a network answers what it has learnt by heart after a third of the word, whatever was left out, and others not.
    """
    spectra, labels, turn = spoken_digits()
    levels = np.array([-0.1, 0.05, 0.25, 0.75])
    x = (spectra[..., None] > levels).reshape(*spectra.shape[:2], -1).astype(np.uint8)
    learnt, unseen, test = (Split(x[part], labels[part], turn[part]) for part in (turn >= 10, (turn >= 5) & (turn < 10), turn < 5))
    return learnt, unseen, test


def _fsdd() -> tuple[Split, Split]:
    learnt, _, test = _fsdd_parts()
    return learnt, test


# ----------------------------------------------------------------------------------------------------------- networks


def feedforward(sizes: list[int], seed: int, beta: float, readout: bool = False) -> Graph:
    """Layers of leaky neurons with random weights. readout: nothing fires behind the last weights, whose sums are the output."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [Input(name="in", type=TensorType("spike", (sizes[0],), "f32"))]
    before = "in"
    for k, (fan_in, fan_out) in enumerate(pairwise(sizes), 1):
        weight = rng.normal(0, 1.5 / np.sqrt(fan_in), (fan_out, fan_in)).astype(np.float32)
        if readout and k == len(sizes) - 1:
            before, weight = f"fc{k}", 0.1 * weight  # sums over the run are logits, which begin small
            nodes.append(Dense(name=before, inputs=(Ref(nodes[-1].name),), weight=weight))
            break
        nodes.append(Dense(name=f"fc{k}", inputs=(Ref(before),), weight=weight))
        params = {"beta": np.float32(beta), "theta": np.float32(1)}
        nodes.append(Neuron(name=f"lif{k}", inputs=(Ref(f"fc{k}"),), program=LIF, params=params))
        before = f"lif{k}"
    return verify(Graph("net", "float", tuple(nodes), ((before, Ref(before)),)))


def with_delays(graph: Graph, layer: str, longest: int, seed: int) -> Graph:
    """The graph with a random delay of at most so many steps for every synapse of a layer."""
    rng = np.random.default_rng(seed)
    node = graph[layer]
    assert isinstance(node, Dense)
    delayed = replace(node, delay=rng.integers(0, longest + 1, node.weight.shape))
    return verify(graph.with_nodes(delayed if each is node else each for each in graph.nodes))


def with_weights(graph: Graph, weights: dict[str, Array]) -> Graph:
    """The graph with other weights."""
    return verify(graph.with_nodes(replace(n, weight=weights[n.name]) if isinstance(n, Dense) else n for n in graph.nodes))


def trained(
    name: str, start: Graph, train: Split, seed: int, epochs: int, rate: float, drop: float = 0.1, early: float = 0.0
) -> Graph:
    """The network after training, from the cache where it is there; drop and early as in Task."""
    names = [node.name for node in start.nodes if isinstance(node, Dense)]
    sizes = "-".join(str(node.weight.shape[0]) for node in start.nodes if isinstance(node, Dense))
    recipe = f"{sizes} {epochs} {rate} {drop} {seed} {start.fingerprint}" + (f" early {early}" if early else "")
    digest = hashlib.sha256(recipe.encode() + train.x.tobytes() + train.y.tobytes()).hexdigest()[:12]
    path = KEPT / f"{name}-{sizes}-{seed}-{digest}.npz"
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
                spikes = spikes * (torch.rand_like(spikes) > drop)  # else few samples are learned by heart
                counts = module(spikes)[output].cumsum(1)
                loss = torch.nn.functional.cross_entropy(counts[:, -1], y[chosen])
                if early:
                    each = counts[:, counts.shape[1] // 5 :]
                    wanted = y[chosen, None].expand(each.shape[:2])
                    loss = (1 - early) * loss + early * torch.nn.functional.cross_entropy(each.flatten(0, 1), wanted.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar(epoch * batches + k + 1, epochs * batches)
    weights = {key: module.weight_of(key).detach().numpy().copy() for key in names}
    KEPT.mkdir(parents=True, exist_ok=True)
    np.savez(path, **weights)
    return with_weights(start, weights)


def cuba_network() -> Graph:
    """The given network of Loihi's integers, as the floats that they stand for: no rounding of the decays."""
    from spikec.frontend.slayer import read_net

    found = read_net(DATA / "lavadl_mnist_cuba" / "trained_mnist_network.net", delay_shift=False)
    nodes: list[Node] = []
    for node in found.nodes:
        if isinstance(node, Input):
            node = replace(node, type=TensorType("spike", node.type.shape, "f32"))
        elif isinstance(node, Dense):
            node = replace(node, weight=node.weight.astype(np.float32) / 64, dtype=None)
        elif isinstance(node, Neuron):
            p = node.params
            assert not p["bias_mant"].any() and not np.ptp(p["vth"])
            params = {"alpha": 1 - (p["du"] + 1) / 4096, "beta": 1 - p["dv"] / 4096, "theta": p["vth"] / 64}
            node = replace(node, program=CUBA, params={key: value.astype(np.float32) for key, value in params.items()})
        nodes.append(node)
    return verify(replace(found, level="float", nodes=tuple(nodes)))


class Ecg(torch.nn.Module):
    """ecg_srnn by its README.

    Each hidden membrane is in units in which the largest weight of its row is 1 (4 from the input, whose weights are larger), so
    that all rows use the whole of a grid; the factor 1 - alpha of its currents stands in its threshold. The last membranes are
    compared with one another and have one unit.
    """

    def __init__(self, hidden: int = 36, outputs: int = 6) -> None:
        super().__init__()
        self.i2h, self.h2h = torch.nn.Linear(4, hidden), torch.nn.Linear(hidden, hidden)
        self.h2o = torch.nn.Linear(hidden, outputs)
        self.tau_m_h, self.tau_adp_h = (torch.nn.Parameter(torch.ones(hidden)) for _ in range(2))
        self.theta_h = torch.ones(hidden)
        self.tau_m_o, self.tau_adp_o = (torch.nn.Parameter(torch.ones(outputs)) for _ in range(2))

    def fold(self) -> None:
        """Put the factors into the weights, once they are loaded."""
        with torch.no_grad():
            largest = torch.cat([self.i2h.weight / 4, self.h2h.weight], dim=1).abs().amax(dim=1)
            for layer in (self.i2h, self.h2h):
                layer.weight /= largest[:, None]
                layer.bias /= largest
            self.theta_h = 0.1 / ((1 - torch.exp(-1 / self.tau_m_h)) * largest)
            factor = 1 - torch.exp(-1 / self.tau_m_o)
            self.h2o.weight *= factor[:, None]
            self.h2o.bias *= factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The membranes of the last layer (batch, T, classes) for x (batch, T, 4)."""
        alpha_h, alpha_o = torch.exp(-1 / self.tau_m_h), torch.exp(-1 / self.tau_m_o)
        theta_h = self.theta_h
        rho = torch.exp(-1 / self.tau_adp_o)
        mem_h = spk_h = torch.zeros(x.shape[0], len(alpha_h))
        mem_o = spk_o = b = torch.zeros(x.shape[0], len(alpha_o))
        membranes = []
        for t in range(x.shape[1]):
            mem_h = alpha_h * mem_h + self.i2h(x[:, t]) + self.h2h(spk_h) - theta_h * spk_h
            spk_h = (mem_h > theta_h).to(x.dtype)
            b = rho * b + (1 - rho) * spk_o
            threshold = 0.1 + 1.8 * b
            mem_o = alpha_o * mem_o + self.h2o(spk_h) - threshold * spk_o
            spk_o = (mem_o > threshold).to(x.dtype)
            membranes.append(mem_o)
        return torch.stack(membranes, dim=1)


def ecg_network() -> Graph:
    """The given recurrent network."""
    from realworld import state_dict

    import spikec

    model = Ecg()
    model.load_state_dict(state_dict(DATA / "ecg_srnn" / "model_0.8589_36.pth"))
    model.fold()
    x = torch.from_numpy(np.random.default_rng(0).integers(-1, 2, (2, 40, 4)).astype(np.float32))
    return spikec.trace(model, x, input_kind="graded")


def fold_of(train: Split, fold: int) -> tuple[Split, Split]:
    """The training samples less a fifth of them, and that fifth: what settings are chosen on.

    A fifth at random, but where recordings have turns, those that follow one another: voices and rooms change with time, and
    neighbours of what is learnt tell nothing of that.
    """
    held_out = np.zeros(len(train.y), bool)
    if train.turn is None:
        held_out[np.random.RandomState(2026).permutation(len(train.y))[fold % FOLDS :: FOLDS]] = True
    else:
        held_out[:] = np.isin(train.turn, np.array_split(np.unique(train.turn), FOLDS)[fold % FOLDS])
    return Split(train.x[~held_out], train.y[~held_out]), Split(train.x[held_out], train.y[held_out])


def _data(found: tuple[Split, Split], fold: int | None) -> tuple[Split, Split]:
    return found if fold is None else fold_of(found[0], fold)


def _trained_here(
    name: str,
    data: Callable[[], tuple[Split, Split]],
    fold: int | None,
    sizes: list[int],
    beta: float,
    epochs: int,
    rate: float,
    drop: float,
    recovery: tuple[int, int, float],
    early: float = 0.0,
    longest: int = 0,
    readout: bool = False,
) -> Task:
    train, test = _data(data(), fold)
    length, size, step = recovery

    def network(seed: int) -> Graph:
        start = feedforward(sizes, seed, beta, readout)
        start = with_delays(start, "fc1", longest, seed) if longest else start
        return trained(name, start, train, seed, epochs, rate, drop, early)

    return Task(name, train, test, network, length, size, drop, step, early=early)


def _moved(whole: Split, side: int) -> Split:
    """Pictures of side x side inputs, and the same moved by one place each way."""
    pictures = whole.x.reshape(*whole.x.shape[:2], side, side)
    found = [pictures]
    for axis in (2, 3):
        for way in (-1, 1):
            moved = np.roll(pictures, way, axis)
            np.moveaxis(moved, axis, 0)[0 if way > 0 else -1] = 0
            found.append(moved)
    return Split(np.concatenate(found).reshape(-1, *whole.x.shape[1:]), np.tile(whole.y, len(found)))


def _given_cuba(fold: int | None) -> Task:
    train, test = _data(_cuba(), fold)
    # Others trained it on six times as many: pictures that are moved too, small steps, and synapses that go gradually.
    # They learnt from other pictures than these.
    recovery = {"gradual": True, "held_out": 0.1}
    return Task(
        "mnist-cuba",
        train,
        test,
        lambda seed: cuba_network(),
        20,
        64,
        0.15,
        0.015,
        _moved(train, 28),
        given=True,
        recovery=recovery,
    )


def _given_ecg(fold: int | None) -> Task:
    train, test = _data(_ecg(), fold)
    tuning, recovery = (
        _windows(train, train.x.shape[1], 10),
        {
            "soft": 0.3,
            "temperature": 1.0,
            "hints": 0.0,
            "gradual": True,
            "held_out": 0.1,
        },
    )
    return Task(
        "ecg",
        train,
        test,
        lambda seed: ecg_network(),
        240,
        8,
        0.0,
        0.02,
        tuning,
        10,
        {"input_bits": 4},
        given=True,
        recovery=recovery,
        whole=0.5,
    )


TASKS: Final[dict[str, Callable[[int | None], Task]]] = {
    "digits": lambda fold: _trained_here("digits", _digits, fold, [64, 512, 256, 10], 0.9, 40, 2e-3, 0.2, (40, 64, 0.05)),
    "mnist": lambda fold: _trained_here("mnist", _mnist, fold, [784, 256, 10], 0.9, 12, 2e-3, 0.1, (24, 128, 0.05)),
    "spoken": lambda fold: replace(
        _trained_here("spoken", _fsdd, fold, [96, 512, 256, 10], 0.95, 60, 2e-3, 0.25, (40, 64, 0.05), 1.0, readout=True),
        recovery={"soft": 0.9},
        whole=0.25,
        unseen=_fsdd_parts()[1],
    ),
    "spoken-delays": lambda fold: _trained_here(
        "spoken-delays", _fsdd, fold, [96, 128, 10], 0.9, 24, 2e-3, 0.1, (30, 64, 0.05), longest=7
    ),
    "mnist-cuba": _given_cuba,
    "ecg": _given_ecg,
}


#: With how many seeds a task is measured, and with how many where nothing is recovered: more where the test samples are few.
#: Recordings of the ECG are few as well, but long.
SEEDS: Final = {"spoken": (6, 10)}
FEWEST: Final = (3, 3)


def load(name: str, fold: int | None = None) -> Task:
    """A task with its data; with `fold`, its training samples alone, of which that fifth is tested on."""
    return TASKS[name](fold)


def right(task: Task, output: Array) -> Array:
    """What of an output (samples, T, classes) is right: truths (samples,), or the share of each sample's steps."""
    from spikec.score import answers

    found = answers(output, per_step=task.per_step) == task.test.y
    return np.asarray(found[:, task.steps :].mean(axis=1) if task.per_step else found)


def score_of(build: Any, task: Task, engine: str = "c") -> Array:
    """Which answers to the test samples are right (samples,), or the share of each sample's steps."""
    from spikec.score import scored_output

    return right(task, build.run(task.test.x, engine).outputs[scored_output(build.graph())])
