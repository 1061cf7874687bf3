"""`make bench-real`: every real case of ../shared/data, what it should give and what it gives.

    python benchmarks/realworld.py [CASE ...]

Each figure is measured here and now, by the semantics that the README beside the data states; `tests/realworld` holds the same
figures and looks closer. The command fails when a figure is not met.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

import ann_to_snn
import spikec
from spikec.backend import load_backend
from spikec.frontend.nir import read_nir
from spikec.frontend.onnx.write import model_of
from spikec.frontend.slayer import read_net
from spikec.ir.graph import Graph
from spikec.ir.interpret import Interpreter, interpret
from spikec.target import load_target

DATA: Final = Path(__file__).resolve().parents[2] / "shared" / "data"
ENGINES: Final = ("reference", "numpy", "c")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    figure: str
    wanted: str
    measured: str
    met: bool


def run(engine: str, graph: Graph, inputs: dict[str, Any], record: tuple[str, ...] = ()) -> Any:
    """Outputs and records of a graph on one engine."""
    return load_backend(engine, load_target("host")).run(graph, inputs, record=record)


def differing(what: str, count: int, of: int) -> Row:
    """A row of mismatches, of which there may be none."""
    return Row(what, "0", f"{count} of {of}", count == 0 and of > 0)


# ------------------------------------------------------------------------------------------------- networks without a file format


class Ecg(nn.Module):
    """ecg_srnn by its README: recurrent LIF neurons, then adaptive ones whose membrane is read."""

    def __init__(self, hidden: int = 36, outputs: int = 6) -> None:
        super().__init__()
        self.i2h, self.h2h, self.h2o = nn.Linear(4, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)
        self.tau_m_h, self.tau_adp_h = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.ones(hidden))
        self.tau_m_o, self.tau_adp_o = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.ones(outputs))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha_h, alpha_o = torch.exp(-1 / self.tau_m_h), torch.exp(-1 / self.tau_m_o)
        rho = torch.exp(-1 / self.tau_adp_o)
        mem_h = spk_h = torch.zeros(x.shape[0], len(alpha_h), dtype=x.dtype)
        mem_o = spk_o = b = torch.zeros(x.shape[0], len(alpha_o), dtype=x.dtype)
        membranes, spikes = [], []
        for t in range(x.shape[1]):
            mem_h = alpha_h * mem_h + (1 - alpha_h) * (self.i2h(x[:, t]) + self.h2h(spk_h)) - 0.1 * spk_h
            spk_h = (mem_h > 0.1).to(x.dtype)
            b = rho * b + (1 - rho) * spk_o
            threshold = 0.1 + 1.8 * b
            mem_o = alpha_o * mem_o + (1 - alpha_o) * self.h2o(spk_h) - threshold * spk_o
            spk_o = (mem_o > threshold).to(x.dtype)
            membranes.append(mem_o)
            spikes.append(spk_h)
        return torch.stack(membranes, dim=1), torch.stack(spikes, dim=1)


class Alif(nn.Module):
    """A recurrent adaptive layer of byin-cwi's networks; baseline 0.01 as its SHD script has it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.tau_m, self.tau_adp = nn.Parameter(torch.ones(size)), nn.Parameter(torch.ones(size))

    def forward(
        self, current: torch.Tensor, mem: torch.Tensor, spk: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        alpha, rho = torch.exp(-1 / self.tau_m), torch.exp(-1 / self.tau_adp)
        b = rho * b + (1 - rho) * spk
        threshold = 0.01 + 1.8 * b
        mem = alpha * mem + (1 - alpha) * current - threshold * spk
        return mem, (mem > threshold).to(mem.dtype), b


class ShdAlif(nn.Module):
    """shd_nets, byin: 700 > 128 recurrent > 128 recurrent > 20 leaky integrators."""

    def __init__(self) -> None:
        super().__init__()
        self.i_2_h1, self.h1_2_h1 = nn.Linear(700, 128), nn.Linear(128, 128)
        self.h1_2_h2, self.h2_2_h2 = nn.Linear(128, 128), nn.Linear(128, 128)
        self.h2o = nn.Linear(128, 20)
        self.first, self.second = Alif(128), Alif(128)
        self.tau_m_o = nn.Parameter(torch.ones(20))

    def load(self) -> ShdAlif:
        """The published numbers."""
        with np.load(DATA / "shd_nets" / "byin_shd_alif_90.7.npz", allow_pickle=False) as file:
            state = {key: torch.from_numpy(file[key]) for key in file.files}
        del state["tau_adp_o"]  # its script trains it and does not use it
        for number, layer in ((1, "first"), (2, "second")):
            for key in ("tau_m", "tau_adp"):
                state[f"{layer}.{key}"] = state.pop(f"{key}_h{number}")
        self.load_state_dict(state)
        return self

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        zero = torch.zeros(x.shape[0], 128, dtype=x.dtype)
        mem1 = mem2 = spk1 = spk2 = zero
        b1 = b2 = zero + 0.01
        alpha = torch.exp(-1 / self.tau_m_o)
        out = torch.zeros(x.shape[0], 20, dtype=x.dtype)
        rows: tuple[list[torch.Tensor], ...] = ([], [], [])
        for t in range(x.shape[1]):
            mem1, spk1, b1 = self.first(self.i_2_h1(x[:, t]) + self.h1_2_h1(spk1), mem1, spk1, b1)
            mem2, spk2, b2 = self.second(self.h1_2_h2(spk1) + self.h2_2_h2(spk2), mem2, spk2, b2)
            out = alpha * out + (1 - alpha) * self.h2o(spk2)
            for row, item in zip(rows, (spk1, spk2, out), strict=True):
                row.append(item)
        return torch.stack(rows[0], 1), torch.stack(rows[1], 1), torch.stack(rows[2], 1)


class ShdGenn(nn.Module):
    """shd_nets, ml_genn: 700 > 256 recurrent > 20, by mlGeNN's equations.

    Synapses are exponential currents (tau 5 steps), membranes decay with tau 20 steps, spike at 1 and are set to 0; the outputs
    integrate and do not spike. Weights are (source, target), row by row.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("Input_Hidden", (700, 256)), ("Hidden_Hidden", (256, 256)), ("Hidden_Output", (256, 20))):
            array = np.load(DATA / "shd_nets" / f"ml_genn_shd256_{name}.npy", allow_pickle=False).reshape(shape)
            self.register_buffer(name.lower(), torch.from_numpy(array))
        self.syn, self.mem = float(np.exp(-1 / 5)), float(np.exp(-1 / 20))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        i1 = v1 = spk = torch.zeros(x.shape[0], 256, dtype=x.dtype)
        i2 = v2 = torch.zeros(x.shape[0], 20, dtype=x.dtype)
        spikes, outs = [], []
        for t in range(x.shape[1]):
            i1 = self.syn * i1 + (x[:, t] @ self.input_hidden + spk @ self.hidden_hidden)
            v1 = self.mem * v1 + i1
            spk = (v1 >= 1).to(x.dtype)
            v1 = v1 * (1 - spk)
            i2 = self.syn * i2 + spk @ self.hidden_output
            v2 = self.mem * v2 + i2
            spikes.append(spk)
            outs.append(v2)
        return torch.stack(spikes, 1), torch.stack(outs, 1)


def keywords() -> nn.Module:
    """neurobench_snn, Google speech commands."""
    import snntorch as snn

    def leaky(**more: Any) -> nn.Module:
        return snn.Leaky(beta=0.9, threshold=1.0, init_hidden=True, **more)

    layers = [nn.Flatten(), nn.Linear(20, 256), leaky(), nn.Linear(256, 256), leaky(), nn.Linear(256, 256), leaky()]
    return nn.Sequential(*layers, nn.Linear(256, 35), leaky(output=True))


class Gestures(nn.Module):
    """neurobench_snn, DVS128 gestures; decays and thresholds come with the state dict."""

    def __init__(self) -> None:
        import snntorch as snn

        super().__init__()
        self.conv1 = nn.Conv2d(2, 16, 5, padding="same")
        self.conv2 = nn.Conv2d(16, 32, 5, padding="same")
        self.conv3 = nn.Conv2d(32, 64, 5, padding="same")
        self.pool, self.dropout, self.linear1 = nn.MaxPool2d(2), nn.Dropout(0.5), nn.Linear(1024, 11)
        self.lif1, self.lif2, self.lif3 = (snn.Leaky(beta=0.9, init_hidden=True) for _ in range(3))
        self.lif4 = snn.Leaky(beta=0.9, init_hidden=True, output=True)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.lif1(self.pool(self.conv1(x)))
        x = self.lif2(self.pool(self.conv2(x)))
        x = self.lif3(self.pool(self.conv3(x)))
        return self.lif4(self.dropout(self.linear1(x.flatten(1))))


def state_dict(path: Path) -> Any:
    """Tensors out of a file that may hold nothing else."""
    return torch.load(path, map_location="cpu", weights_only=True)


# ------------------------------------------------------------------------------------------------------------------------- cases


def ecg_srnn() -> Iterator[Row]:
    """Accuracy a step from step 10 on, over all 141 test sequences."""
    from scipy.io import loadmat

    model = Ecg()
    model.load_state_dict(state_dict(DATA / "ecg_srnn" / "model_0.8589_36.pth"))
    test = loadmat(DATA / "ecg_srnn" / "QTDB_test.mat")
    x = test["x"].astype(np.float32)
    labels = test["y"].argmax(axis=-1)
    graph = spikec.trace(model, torch.from_numpy(x[:2, :60]), input_kind="graded")
    for engine in ENGINES:
        membrane, hidden = run(engine, graph, {"x": x}).outputs.values()
        score = float((membrane.argmax(axis=-1) == labels)[:, 10:].mean())
        yield Row(f"accuracy a step, {engine}", ".858", f"{score:.4f}", score >= 0.858)
        yield Row(f"hidden rate, {engine}", ".344", f"{hidden.mean():.4f}", f"{hidden.mean():.3f}" == "0.344")
    # In 64 bits, where the order of a sum tips no membrane over its threshold; a recurrent network never forgets a tipped one.
    wide = torch.from_numpy(x[:20]).double()
    graph = spikec.trace(model.double(), wide[:2, :60], input_kind="graded")
    with torch.no_grad():
        _, spikes = model(wide)
    for engine in ENGINES:
        _, hidden = run(engine, graph, {"x": wide.numpy()}).outputs.values()
        yield differing(f"hidden spikes against torch, {engine}", int((hidden != spikes.numpy()).sum()), hidden.size)


@dataclass
class Watched:
    """What snnTorch computed at every step: by layer the input of its sum, its spikes, and its membrane."""

    inputs: list[list[torch.Tensor]]
    spikes: list[list[torch.Tensor]]
    membranes: list[list[torch.Tensor]]


def watch(model: nn.Module, x: torch.Tensor) -> Watched:
    """Run a model with hidden states step by step over x (batch, T, ...)."""
    import snntorch as snn
    from snntorch import utils

    layers = [module for module in model.modules() if isinstance(module, snn.Leaky)]
    sums = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    seen = Watched(*([[] for _ in layers] for _ in range(3)))
    for kept, module in zip(seen.inputs, sums, strict=True):
        module.register_forward_hook(lambda _, args, __, kept=kept: kept.append(args[0]))
    for spikes, membranes, layer in zip(seen.spikes, seen.membranes, layers, strict=True):
        layer.register_forward_hook(lambda _, __, out, kept=spikes: kept.append(out[0] if isinstance(out, tuple) else out))
        layer.register_forward_hook(lambda layer, _, __, kept=membranes: kept.append(layer.mem))
    utils.reset(model)
    with torch.no_grad():
        for t in range(x.shape[1]):
            model(x[:, t])
    return seen


def stepwise(graph: Graph, model: nn.Module, x: torch.Tensor, seen: Watched) -> tuple[int, int]:
    """Spikes that differ when every step begins with snnTorch's own membranes, and those that no order of the sum explains.

    A sum of n products may differ by 2 gamma(n) times the sum of their magnitudes, and the neuron rounds a few times more.
    """
    machine = Interpreter(graph, x.shape[0])
    nodes = [node.name for node in graph.neurons]
    sums = [copy.deepcopy(module) for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    thresholds = [float(node.params["theta"]) for node in graph.neurons]
    unit = float(np.finfo(np.float32).eps) / 2
    count = outside = 0
    for module in sums:
        for parameter in module.double().parameters():
            parameter.data = parameter.data.abs()
    for t in range(x.shape[1]):
        if t:
            for node, membranes in zip(nodes, seen.membranes, strict=True):
                machine.states[node]["v"] = membranes[t - 1].numpy()
        now = machine.step({graph.inputs[0].name: x[:, t].numpy()})
        for k, node in enumerate(nodes):
            differ = now[node, ""] != seen.spikes[k][t].numpy()
            if not differ.any():
                continue
            terms = sums[k].weight[0].numel() + 1
            with torch.no_grad():
                total = sums[k](seen.inputs[k][t].double().abs())
                total = nn.functional.max_pool2d(total, 2) if total.ndim == 4 else total
                v, before = seen.membranes[k][t].double(), seen.membranes[k][t - 1].double().abs() if t else 0.0
                bound = 2 * terms * unit / (1 - terms * unit) * total + 4 * unit * (before + total + 2 * thresholds[k])
            count += int(differ.sum())
            outside += int((differ & ((v - thresholds[k]).abs() > bound).numpy()).sum())
    return count, outside


def neurobench_snn() -> Iterator[Row]:
    """Every spike of every layer over 200 steps of random input, against snnTorch in its own 32-bit floats."""
    generator = torch.Generator().manual_seed(0)
    cases = {
        "s2s_gsc_snntorch": (keywords(), torch.randn(4, 200, 20, generator=generator)),
        "dvs_gesture_snn": (Gestures(), torch.poisson(torch.rand(1, 200, 2, 32, 32, generator=generator) * 3, generator)),
    }
    for name, (model, x) in cases.items():
        model.load_state_dict(state_dict(DATA / "neurobench_snn" / name))
        model.eval()
        graph = spikec.trace(model, x[:, 0], batch_axis=0, steps=5)
        seen = watch(model, x)
        theirs = [torch.stack(kept, dim=1).numpy() for kept in seen.spikes]
        total = sum(s.size for s in theirs)
        yield Row(f"{name}: spikes a layer", "> 0", " ".join(str(int(s.sum())) for s in theirs), all(s.any() for s in theirs))
        flips, outside = stepwise(graph, model, x, seen)
        yield Row(f"{name}: flips, step by step", "0", f"{flips} of {total}", flips <= 2)
        yield differing(f"{name}: of them beyond the rounding of a sum", outside, total)
        record = tuple(node.name for node in graph.neurons)
        for engine in ("numpy", "c"):
            found = run(engine, graph, {graph.inputs[0].name: x.numpy()}, record).records
            wrong = sum(int((found[wire] != wanted).sum()) for wire, wanted in zip(record, theirs, strict=True))
            yield Row(f"{name}: flips, running freely, {engine}", "0", f"{wrong} of {total}", wrong <= 2e-5 * total)


def shd_nets() -> Iterator[Row]:
    """Every spike over 200 steps of random input, against the equations in 64 bits."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(4, 200, 700, generator=generator) < 0.02).double()
    for name, model in (("byin", ShdAlif().load()), ("ml_genn", ShdGenn())):
        model = model.double().eval()
        graph = spikec.trace(model, x[:2, :20])
        with torch.no_grad():
            wanted = [item.numpy() for item in model(x)]
        for engine in ENGINES:
            found = list(run(engine, graph, {"x": x.numpy()}).outputs.values())
            spiking = range(len(wanted) - 1)
            yield differing(
                f"{name}: spikes against its equations, {engine}",
                sum(int((found[k] != wanted[k]).sum()) for k in spiking),
                sum(wanted[k].size for k in spiking),
            )
        largest = float(np.abs(found[-1] - wanted[-1]).max() / np.abs(wanted[-1]).max())
        yield Row(f"{name}: readout, largest relative difference", "< 1e-12", f"{largest:.2g}", largest < 1e-12)


def nir_lif() -> Iterator[Row]:
    """Spike times of the platforms that ran the same neuron."""
    folder = DATA / "nir_lif"
    names = ("norse", "lava_cpu_float", "sinabs", "rockpool")
    table = {name: np.loadtxt(folder / f"lif_{name}.csv", delimiter=",") for name in names}
    x = table["norse"][:, 0].reshape(1, -1, 1)
    for name, late, options in (
        ("norse", 0, {}),
        ("lava_cpu_float", 1, {}),
        ("sinabs", 0, {"scheme": "exponential", "reset": "subtract"}),
        ("rockpool", 0, {"scheme": "exponential", "reset": "subtract"}),
    ):
        graph, _ = read_nir(folder / "lif_norse.nir", dt=1e-4, **options)
        (found,) = interpret(graph, {"input": x}).outputs.values()
        wanted = table[name][late:, 2] != 0
        yield differing(f"spikes against {name}", int((found.ravel()[: len(wanted)] != wanted).sum()), wanted.size)


def nir_braille_zero() -> Iterator[Row]:
    """Layer 1 against the published activity of snnTorch, and the class."""
    folder = DATA / "nir_braille_zero"
    graph, _ = read_nir(folder / "braille_noDelay_bias_zero.nir", dt=1e-4)
    with np.load(folder / "sample0.npz") as sample:
        x = next(sample[key] for key in sample.files if sample[key].shape == (256, 12))[None].astype(np.float32)
    published = np.load(folder / "snntorch_activity_noDelay_bias_zero.npy").reshape(256, 38)
    for engine in ENGINES:
        result = run(engine, graph, {"input": x}, ("lif1_lif",))
        yield differing(
            f"layer 1 against snnTorch, {engine}", int((result.records["lif1_lif"][0] != published).sum()), published.size
        )
        winner = int(result.outputs["output"][0].sum(axis=0).argmax())
        yield Row(f"class, {engine}", "1", str(winner), winner == 1)


def sensor_events(steps: int = 300) -> Any:
    """A recording of a real sensor (N-Cars) in frames of 34x34x2, 0 or 1."""
    raw = (DATA / "data_event_samples" / "sample_ncars.dat").read_bytes()
    at = 0
    while raw[at : at + 1] == b"%":
        at = raw.index(b"\n", at) + 1
    words = np.frombuffer(raw[at + 2 :], "<u4").reshape(-1, 2)
    t, x, y, p = words[:, 0], words[:, 1] & 0x3FFF, (words[:, 1] >> 14) & 0x3FFF, (words[:, 1] >> 28) & 1
    step = ((t - t.min()) * steps // (int(np.ptp(t)) + 1)).astype(int)
    frames = np.zeros((1, steps, 2, 34, 34), np.float32)
    frames[0, step, p, y * 34 // (int(y.max()) + 1), x * 34 // (int(x.max()) + 1)] = 1
    return frames


def nir_scnn_nmnist() -> Iterator[Row]:
    """300 steps of real events: the same spikes on every engine."""
    graph, _ = read_nir(DATA / "nir_scnn_nmnist" / "cnn_sinabs.nir")
    layers = ("1", "3", "6", "10", "12")
    x = sensor_events()
    wanted = interpret(graph, {"input": x}, record=layers).records
    for engine in ("numpy", "c"):
        found = run(engine, graph, {"input": x}, layers).records
        wrong = sum(int((found[layer] != wanted[layer]).sum()) for layer in layers)
        yield differing(f"spikes against the reference, {engine}", wrong, sum(wanted[layer].size for layer in layers))


def lavadl_pilotnet_lif() -> Iterator[Row]:
    """u, v and spikes of conv-0 to conv-4 and fc-0 to fc-2 at every step, states cleared every 17 steps."""
    folder = DATA / "lavadl_pilotnet_lif"
    graph = read_net(folder / "network.net", reset_interval=17, states=True)
    layers = {**{f"conv-{n}": n + 1 for n in range(5)}, **{f"fc-{n}": n + 7 for n in range(3)}}
    with np.load(folder / "ground_truth.npz") as truth:
        image = truth["image"].transpose(2, 1, 0)
        frames = np.broadcast_to(image, (1, truth["input"].shape[-1], *image.shape))
        record = [f"layer{n}{port}" for n in layers.values() for port in ("", ".u", ".v")]
        found = interpret(graph, {"input": frames}, record=record).records
        wrong = total = 0
        for name, number in layers.items():
            spikes = np.moveaxis(truth[name], -1, 0)
            for port, shown in (("", True), (".u", True), (".v", spikes == 0)):  # v is a refractory code where there is a spike
                wanted = np.moveaxis(truth[name + port.replace(".", "-")], -1, 0)
                mine = found[f"layer{number}{port}"][0]
                mine = mine.transpose(0, 3, 2, 1) if mine.ndim == 4 else mine
                wrong += int(((mine != wanted) & shown).sum())
                total += wanted.size
    yield differing("u, v and s against SLAYER", wrong, total)


def lavadl_tinynet() -> Iterator[Row]:
    """Spikes of both layers and the current between them; the recording is one step late as a whole."""
    folder = DATA / "lavadl_tinynet"
    graph = read_net(folder / "tiny.net", delay_shift=False)
    with np.load(folder / "ground_truth.npz") as truth:
        frame = np.rint(truth["input_bias"]).astype(np.int64).transpose(2, 1, 0)
        steps = truth["input"].shape[-1] - 1
        names = {"input": "layer0", "current": "layer1_sum", "layer1": "layer1", "output": "layer2"}
        record = list(names.values())
        found = interpret(graph, {"input": np.broadcast_to(frame, (1, steps, *frame.shape))}, record=record).records
        wrong = sum(int((found[node][0] != np.moveaxis(truth[name][0], -1, 0)[1:]).sum()) for name, node in names.items())
        yield differing("all layers against SLAYER", wrong, sum(found[node].size for node in record))


def mnist() -> tuple[Any, Any]:
    """The 10,000 test digits as (n, 784) bytes, and their labels."""
    folder = DATA / "data_mnist_t10k"
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 784), np.frombuffer(labels, np.uint8, offset=8)


def lavadl_mnist_cuba() -> Iterator[Row]:
    """All digits through the C engine, rate-coded as the tutorial does it."""
    graph = read_net(DATA / "lavadl_mnist_cuba" / "trained_mnist_network.net", delay_shift=False)
    images, labels = mnist()
    right = np.zeros(len(images), bool)
    for start in range(0, len(images), 1000):
        part = slice(start, start + 1000)
        v, spikes = np.zeros((1000, 784)), np.zeros((1000, 20, 784), np.int8)
        for t in range(1, 20):
            v += images[part] / 255
            spikes[:, t] = v > 1
            v[v > 1] = 0
        right[part] = run("c", graph, {"input": spikes}).outputs["layer2"].sum(axis=1).argmax(axis=1) == labels[part]
    yield Row("score of 10,000 digits in 20 steps, c", ".9532", f"{right.mean():.4f}", int(right.sum()) == 9532)
    yield Row("right of the first 25", "25", str(int(right[:25].sum())), bool(right[:25].all()))


def ndns_sdnn_nodelay() -> Iterator[Row]:
    """Every block of the denoiser on real speech."""
    folder = DATA / "ndns_sdnn_nodelay"
    graph = read_net(folder / "network.net")
    with np.load(folder / "slayer_reference.npz") as truth:
        levels = np.rint((truth["stft_mag"].astype(np.float64) - 0.2) * 64).astype(np.int64)
        found = interpret(graph, {"input": levels.T[None]}, record=[f"layer{n}" for n in range(4)]).records
        # SLAYER's blocks 1 and 2 hand on what they computed a step ago, and it holds 32-bit floats.
        for number, (late, scale) in enumerate([(0, 1 << 12), (1, 1 << 12), (1, 1 << 12), (0, 1 << 18)]):
            own = (found[f"layer{number}"][0].T / scale).astype(np.float32).astype(np.float64)
            largest = float(np.abs(own[:, : own.shape[1] - late] - truth[f"block{number}"][:, late:]).max())
            yield Row(f"block {number}: largest difference", "0", f"{largest:g}", largest == 0)


def sinabs_cnn() -> Iterator[Row]:
    """All digits through the C engine as a spiking network, against the network of activations; `make bench-ann` has the curve."""
    net = ann_to_snn.network(DATA)
    x, labels = ann_to_snn.digits(DATA)
    with torch.no_grad():
        ann = np.concatenate([net(torch.tensor(x[i : i + 1000])).argmax(dim=1).numpy() for i in range(0, len(x), 1000)]) == labels
    with tempfile.TemporaryDirectory() as folder:
        path = ann_to_snn.exported(net, x[:1], Path(folder) / "mnist.onnx")
        build = spikec.compile(path, target="host", calibrate=x[: ann_to_snn.BALANCED], steps=100, measured=4)
    right = (ann_to_snn.over_the_steps(build, x, 100).argmax(axis=2) == labels[:, None]).mean(axis=0)
    yield Row("accuracy of the ANN, 10,000 digits", "97.88 %", f"{ann.mean():.2%}", abs(ann.mean() - 0.9788) < 1e-9)
    curve = ", ".join(f"{right[t - 1]:.2%} at {t}" for t in (5, 10, 20, 50))
    yield Row("points lost in 100 steps", "<= 1", f"{100 * (ann.mean() - right[-1]):.2f} ({curve})", ann.mean() - right[-1] <= 0.01)


def onnx_scan() -> Iterator[Row]:
    """The networks of others, written as ONNX and run by onnxruntime, against the interpreter."""
    import onnxruntime

    for name in ("nir_braille_zero/braille_noDelay_bias_zero.nir", "nir_scnn_nmnist/cnn_sinabs.nir", "nir_wild/lif_rockpool.nir"):
        graph = read_nir(DATA / name, dt=1e-4)[0]
        rng = np.random.default_rng(0)
        inputs = {node.name: (rng.random((2, 100, *node.type.shape)) < 0.25).astype(np.float32) for node in graph.inputs}
        record = tuple(node.name for node in graph.neurons)
        wanted = interpret(graph, inputs, record=record)
        session = onnxruntime.InferenceSession(model_of(graph, record).SerializeToString(), providers=["CPUExecutionProvider"])
        found = dict(zip([item.name for item in session.get_outputs()], session.run(None, inputs), strict=True))
        wrong = sum(int((found[layer] != wanted.records[layer]).sum()) for layer in record)
        yield differing(
            f"spikes of {name.rpartition('/')[2]} in onnxruntime", wrong, sum(array.size for array in wanted.records.values())
        )


CASES: Final[dict[str, Callable[[], Iterator[Row]]]] = {
    "nir_lif": nir_lif,
    "nir_braille_zero": nir_braille_zero,
    "nir_scnn_nmnist": nir_scnn_nmnist,
    "lavadl_pilotnet_lif": lavadl_pilotnet_lif,
    "lavadl_tinynet": lavadl_tinynet,
    "lavadl_mnist_cuba": lavadl_mnist_cuba,
    "ndns_sdnn_nodelay": ndns_sdnn_nodelay,
    "ecg_srnn": ecg_srnn,
    "neurobench_snn": neurobench_snn,
    "shd_nets": shd_nets,
    "sinabs_cnn": sinabs_cnn,
    "nir_wild": onnx_scan,
}


def main(arguments: list[str]) -> int:
    """Print the table; 1 if a figure is not met or a case is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", choices=[[], *CASES], help="cases to measure; default: all")
    chosen = parser.parse_args(arguments).case or list(CASES)
    failed = 0
    torch.set_num_threads(1)
    print(f"{'case':20} {'figure':55} {'wanted':>8}  measured")
    for name in chosen:
        if not (DATA / name).is_dir():
            print(f"{name:20} {DATA / name} is not there")
            failed += 1
            continue
        begin = time.perf_counter()
        for row in CASES[name]():
            print(f"{name:20} {row.figure:55} {row.wanted:>8}  {row.measured}{'' if row.met else '  NOT MET'}", flush=True)
            failed += not row.met
        print(f"{name:20} {time.perf_counter() - begin:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
