"""`make bench-lava`: networks on Lava's bit-accurate simulation of Loihi 2 against the reference and C, number for number.

    python benchmarks/lava.py [CASE ...] [--small]

Every population also gives its states, so that each step's spikes, currents and membranes are compared, and the final states on
top. Where others have published what a network computes, Lava's numbers are compared with theirs as well, by the README beside
the data. `package` runs an emitted folder, moved elsewhere, under a Python that has lava-nc and not spikec. The command fails when
anything differs or when Lava is not installed. --small: a few samples or steps of each.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F

import spikec
from spikec.backend import load_backend
from spikec.backends.lava import environment
from spikec.frontend.nir import read_nir
from spikec.frontend.slayer import read_net
from spikec.inputs import check_inputs
from spikec.ir.graph import Graph
from spikec.ir.interpret import Execution, default_record
from spikec.ir.neuron import Emit, Program
from spikec.ir.ops import Add, Dense, Input, Neuron, Ref
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.target import load_target

ROOT: Final = Path(__file__).resolve().parents[1]
DATA: Final = ROOT.parent / "shared" / "data"
TARGET: Final = load_target("loihi2")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """A network in Loihi 2's integers, what it is fed, and what others say it gives.

    truth: by record name, the published array (samples, T, *shape) and where it counts (None: everywhere). claims: what else has to
    hold of Lava's result, in words, and whether it does.
    """

    name: str
    graph: Graph
    inputs: dict[str, Array]
    truth: dict[str, tuple[Array, Array | None]] = field(default_factory=dict)
    claims: Callable[[Execution], tuple[tuple[str, bool], ...]] = lambda result: ()


@dataclass(frozen=True)
class Row:
    """A line of the table. published: values that others gave and how many of them differ. claims: see `Case`."""

    name: str
    samples: int
    steps: int
    compared: int
    mismatches: dict[str, int]
    published: tuple[int, int]
    seconds: float
    claims: tuple[tuple[str, bool], ...] = ()

    @property
    def met(self) -> bool:
        """Whether something was compared, nothing differs and every claim holds."""
        same = self.compared > 0 and not any(self.mismatches.values()) and not self.published[1]
        return same and all(holds for _, holds in self.claims)


@dataclass(frozen=True)
class Claims:
    """What holds, or does not, beside the table."""

    name: str
    claims: tuple[tuple[str, bool], ...]

    @property
    def met(self) -> bool:
        """Whether every claim holds."""
        return all(holds for _, holds in self.claims)


def probed(graph: Graph) -> Graph:
    """The same graph; every population also emits its states."""

    def changed(node: Any) -> Any:
        if not isinstance(node, Neuron):
            return node
        old = node.program
        there = {emit.name for emit in old.emits}
        extra = tuple(Emit(name, "value") for name in old.state_names if name not in there)
        name = f"{old.name}_probed" if extra else old.name
        return replace(node, program=Program(name, old.inputs, old.params, old.states, old.body, (*old.emits, *extra)))

    return graph.with_nodes(changed(node) for node in graph.nodes)


def measure(case: Case) -> Row:
    """Run a case on the reference, on C and on Lava, and count what differs."""
    graph = probed(case.graph)
    record = default_record(graph)
    runs, seconds = {}, 0.0
    for engine in ("reference", "c", "lava"):
        begin = time.perf_counter()
        runs[engine] = load_backend(engine, TARGET).run(graph, case.inputs, record=record)
        seconds = time.perf_counter() - begin
    wanted = runs["reference"]
    compared, mismatches = 0, {"c": 0, "lava": 0}
    tables = [(wanted.outputs, "outputs", ""), (wanted.records, "records", "")]
    tables += [(states, "states", node) for node, states in wanted.states.items()]
    for table, kind, node in tables:
        for name, values in table.items():
            compared += values.size
            for engine in mismatches:
                found = getattr(runs[engine], kind)
                mismatches[engine] += int(np.count_nonzero((found[node] if node else found)[name] != values))
    size = wrong = 0
    for name, (values, where) in case.truth.items():
        shown = np.ones(values.shape, bool) if where is None else where
        size += int(shown.sum())
        wrong += int(np.count_nonzero((runs["lava"].records[name] != values) & shown))
    samples, steps = next(iter(case.inputs.values())).shape[:2]
    return Row(case.name, samples, steps, compared, mismatches, (size, wrong), seconds, case.claims(runs["lava"]))


# ------------------------------------------------------------------------------------------------------- networks from PyTorch


def _leaky(beta: float = 0.9) -> Any:
    return snn.Leaky(beta=beta, reset_mechanism="zero", reset_delay=False)


class Convolutional(nn.Module):
    """Convolutions, average pools on either side of the neurons, depthwise and grouped kernels; a frame fed at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.l1 = nn.Conv2d(1, 6, 3, padding=1), _leaky()
        self.c2, self.l2 = nn.Conv2d(6, 12, 3, padding=1, groups=3), _leaky()
        self.c3, self.l3 = nn.Conv2d(12, 12, 2, stride=2, groups=12), _leaky()
        self.fc, self.l4 = nn.Linear(12 * 2 * 2, 10), _leaky()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m1, m2, m3, m4 = (layer.init_leaky() for layer in (self.l1, self.l2, self.l3, self.l4))
        spikes = []
        for t in range(x.shape[1]):
            s, m1 = self.l1(self.c1(x[:, t]), m1)
            s, m2 = self.l2(F.avg_pool2d(self.c2(s), 2), m2)
            s, m3 = self.l3(self.c3(s), m3)
            s, m4 = self.l4(self.fc(s.flatten(1)), m4)
            spikes.append(s)
        return torch.stack(spikes, 1)


class Residual(nn.Module):
    """Two blocks with a connection past them, in spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.l1 = nn.Conv2d(2, 8, 3, padding=1), _leaky()
        self.c2, self.l2 = nn.Conv2d(8, 8, 3, padding=1), _leaky(0.8)
        self.c3, self.l3 = nn.Conv2d(8, 8, 3, padding=1), _leaky(0.7)
        self.fc, self.l4 = nn.Linear(8 * 6 * 6, 5), _leaky()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m1, m2, m3, m4 = (layer.init_leaky() for layer in (self.l1, self.l2, self.l3, self.l4))
        spikes = []
        for t in range(x.shape[1]):
            a, m1 = self.l1(self.c1(x[:, t]), m1)
            b, m2 = self.l2(self.c2(a), m2)
            c, m3 = self.l3(self.c3(a + b), m3)
            s, m4 = self.l4(self.fc((a + c).flatten(1)), m4)
            spikes.append(s)
        return torch.stack(spikes, 1)


def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images / 16).astype(np.float32), found.target


def convolutional(small: bool) -> Case:
    """The digits as frames of real numbers, fed as a current."""
    images, labels = _digits()
    torch.manual_seed(0)
    net = Convolutional()
    with torch.no_grad():
        for layer in (net.c1, net.c2, net.c3, net.fc):
            layer.weight *= 3
    frames = np.repeat(images[:, None, None], 12, axis=1)
    calibrate, count = frames[:48], 3 if small else 20
    build = spikec.compile(net, torch.from_numpy(frames[:2]), calibrate=calibrate, labels=labels[:48])
    return Case("convolutional", build.graph(), spikec.inputs.check_inputs(build.graph(), frames[100 : 100 + count]))


def residual(small: bool) -> Case:
    """Random spikes through two blocks."""
    torch.manual_seed(1)
    net = Residual()
    with torch.no_grad():
        for layer in (net.c1, net.c2, net.c3, net.fc):
            layer.weight *= 3
    rng = np.random.default_rng(0)
    x = (rng.random((40, 15, 2, 6, 6)) < 0.3).astype(np.float32)
    build = spikec.compile(net, torch.from_numpy(x[:2]), calibrate=x[:24])
    return Case("residual", build.graph(), spikec.inputs.check_inputs(build.graph(), x[24 : 27 if small else 40]))


def recurrent(small: bool) -> Case:
    """Recurrent connections of 1 to 40 steps, each with a delay of its own, beside delayed ones forwards."""
    rng = np.random.default_rng(5)
    native = next(item for item in TARGET.neurons if item.name == "LIF")
    program = parse_program(native.fixed)

    def population(name: str, ref: Ref) -> Neuron:
        params = {"du": 3000, "dv": 300, "vth": 120, "bias_mant": 0, "bias_exp": 0}
        return Neuron(name=name, inputs=(ref,), program=program, params={k: np.asarray(v, np.int32) for k, v in params.items()})

    def dense(name: str, ref: Ref, out: int, fan_in: int, delays: int) -> Dense:
        weight = (2 * rng.integers(-20, 26, (out, fan_in))).astype(np.int16)
        return Dense(name=name, inputs=(ref,), weight=weight, delay=rng.integers(0, delays, (out, fan_in)).astype(np.int32))

    nodes = (
        Input(name="in", type=TensorType("spike", (30,), "i8")),
        dense("fc1", Ref("in"), 50, 30, 20),
        dense("rec", Ref("l1", delay=1), 50, 50, 40),
        Add(name="sum", inputs=(Ref("fc1"), Ref("rec"))),
        population("l1", Ref("sum")),
        dense("fc2", Ref("l1"), 20, 50, 60),
        population("l2", Ref("fc2")),
    )
    build = spikec.compile(Graph("recurrent", "fixed", nodes, (("l2", Ref("l2")),)))
    x = (rng.random((2 if small else 8, 40 if small else 120, 30)) < 0.1).astype(np.int8)
    return Case("recurrent, delays", build.graph(), {"in": x})


def digits(small: bool) -> Case:
    """The example's trained network on held-out digits."""
    folder = ROOT / "examples" / "digits"
    sys.path.insert(0, str(folder))
    try:
        data, model = (_module(folder / f"{name}.py") for name in ("data", "model"))
    finally:
        sys.path.remove(str(folder))
    train, held_out = data.split()
    calibrate = data.spikes(train.images)
    example = torch.from_numpy(calibrate[:4].swapaxes(0, 1).astype(np.float32))
    build = spikec.compile(model.load(), example, time_axis=0, batch_axis=1, calibrate=calibrate, labels=train.labels)
    chosen = data.spikes(held_out.images[: 10 if small else 100])
    return Case("digits", build.graph(), check_inputs(build.graph(), chosen))


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


# ----------------------------------------------------------------------------------------------------------- published networks


def tinynet(small: bool) -> Case:
    """SLAYER's own recording, which is one step late as a whole."""
    truth = np.load(DATA / "lavadl_tinynet" / "ground_truth.npz")
    build = spikec.compile(read_net(DATA / "lavadl_tinynet" / "tiny.net", delay_shift=False))
    frame = np.rint(truth["input_bias"]).astype(np.int64).transpose(2, 1, 0)
    steps = truth["input"].shape[-1] - 1
    names = {"input": "layer0", "layer1": "layer1", "output": "layer2"}
    published = {node: (np.moveaxis(truth[name][0], -1, 0)[None, 1:], None) for name, node in names.items()}
    return Case("lavadl_tinynet", build.graph(), {"input": np.broadcast_to(frame, (1, steps, *frame.shape))}, published)


def pilotnet(small: bool) -> Case:
    """What Loihi's own states were, all 24 steps; in the step of a spike the recording shows a refractory code for v."""
    truth = np.load(DATA / "lavadl_pilotnet_lif" / "ground_truth.npz")
    build = spikec.compile(read_net(DATA / "lavadl_pilotnet_lif" / "network.net", reset_interval=17))
    steps = 4 if small else truth["input"].shape[-1]
    image = truth["image"].transpose(2, 1, 0)
    layers = {"conv-0": 1, "conv-1": 2, "conv-2": 3, "conv-3": 4, "conv-4": 5, "fc-0": 7, "fc-1": 8, "fc-2": 9}

    def as_graph(name: str) -> Array:
        array = truth[name]
        return (array.transpose(3, 2, 1, 0) if array.ndim == 4 else array.T)[None, :steps]

    published: dict[str, tuple[Array, Array | None]] = {"layer0": (as_graph("input"), None)}
    for name, number in layers.items():
        spikes = as_graph(name)
        published[f"layer{number}"] = (spikes, None)
        published[f"layer{number}.u"] = (as_graph(f"{name}-u"), None)
        published[f"layer{number}.v"] = (as_graph(f"{name}-v"), ~spikes.astype(bool))
    return Case("lavadl_pilotnet_lif", build.graph(), {"input": np.broadcast_to(image, (1, steps, *image.shape))}, published)


def mnist_cuba(small: bool) -> Case:
    """The first 100 digits, 20 steps, by the tutorial's encoder."""
    pixels = gzip.decompress((DATA / "data_mnist_t10k" / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 784)[: 10 if small else 100]
    graph = read_net(DATA / "lavadl_mnist_cuba" / "trained_mnist_network.net", delay_shift=False)
    v, spikes = np.zeros(images.shape), np.zeros((len(images), 20, 784), np.int8)
    for t in range(1, 20):
        v += images / 255
        spikes[:, t] = v > 1
        v[v > 1] = 0
    return Case("lavadl_mnist_cuba", spikec.compile(graph).graph(), {"input": spikes})


def ndns(small: bool) -> Case:
    """Sigma-delta neurons on frames of speech, against SLAYER's blocks in units of 2^-12; blocks 1 and 2 are a step late there."""
    folder = DATA / "ndns_sdnn_nodelay"
    truth = np.load(folder / "slayer_reference.npz")
    build = spikec.compile(read_net(folder / "network.net"))
    levels = np.rint((truth["stft_mag"].astype(np.float64) - 0.2) * 64).astype(np.int64).T[None]
    steps = 6 if small else 60
    published: dict[str, tuple[Array, Array | None]] = {}
    for number, late in enumerate((0, 1, 1)):
        wanted = np.rint(truth[f"block{number}"].astype(np.float64) * (1 << 12)).astype(np.int64).T[None]
        published[f"layer{number}"] = (wanted[:, late : late + steps], None)
    return Case("ndns_sdnn_nodelay", build.graph(), {"input": levels[:, :steps]}, published)


def braille(small: bool) -> Case:
    """The recurrent network for Braille letters in 8 bits, without calibration: its class, and layer 1 against the float network's.

    The published result of Lava is farther from it: 158 of 9,728 (README beside the data).
    """
    folder = DATA / "nir_braille_zero"
    with np.load(folder / "sample0.npz") as sample:
        x = next(sample[key] for key in sample.files if sample[key].shape == (256, 12))[None].astype(np.int8)
        label = int(sample["label"])
    trained = np.load(folder / "snntorch_activity_noDelay_bias_zero.npy").reshape(256, 38)
    bound = int(np.count_nonzero(trained != np.load(folder / "lava_activity_noDelay_bias_zero.npy").T))
    graph, _ = read_nir(folder / "braille_noDelay_bias_zero.nir", dt=1e-4)
    build = spikec.compile(graph, bits=8)

    def claims(result: Execution) -> tuple[tuple[str, bool], ...]:
        differ = int(np.count_nonzero(result.records["lif1_lif"][0] != trained))
        counts = [int(n) for n in result.outputs["output"][0].sum(axis=0)]
        winner = int(np.argmax(counts))
        return (
            (
                f"layer 1 against the float network: {differ} of {trained.size:,} differ (published Lava: {bound})",
                differ < bound == 158 and trained.size == 9728,
            ),
            (f"lif2 counts {counts}: class {winner}, label {label}", winner == label and counts.count(max(counts)) == 1),
        )

    return Case("nir_braille_zero", build.graph(), {"input": x}, claims=claims)


# ------------------------------------------------------------------------------------------------------------- the package

#: What is installed that neither is Lava nor declared by what Lava declares, less what makes up a virtual environment.
_LOOK: Final = """
import importlib.metadata, importlib.util, json, re, sys
plain = lambda name: re.sub("[-_.]+", "-", name).lower()
installed = {plain(item.metadata["Name"]): item for item in importlib.metadata.distributions()}
declared, new = {"pip", "setuptools", "wheel"}, {"lava-nc"}
while new:
    name = new.pop()
    declared.add(name)
    lines = (installed[name].requires or []) if name in installed else []
    new |= {plain(re.match("[A-Za-z0-9._-]+", line)[0]) for line in lines if "extra ==" not in line} - declared
spikec = importlib.util.find_spec("spikec") is not None
print(json.dumps([list(sys.version_info[:2]), spikec, sorted(installed.keys() - declared)]))
"""


def package(small: bool) -> Claims:
    """The digits example's folder `lava`, alone in another place, checks itself where Python 3.10 has lava-nc and no spikec."""
    case = digits(True)
    python = str(environment.require().python)
    with tempfile.TemporaryDirectory(prefix="spikec-bench-") as made, tempfile.TemporaryDirectory(prefix="elsewhere-") as other:
        spikec.compile(case.graph, calibrate=case.inputs).save(Path(made) / "build")
        shutil.move(Path(made) / "build" / "lava", Path(other) / "network")
        clean = {"HOME": other, "PATH": os.defpath, "PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([python, *words], cwd=other, env=clean, capture_output=True, text=True, timeout=300, check=False)

        looked = run("-c", _LOOK)
        done = run("network/run.py", "--check")
    if looked.returncode:
        return Claims("emitted package", ((looked.stderr.strip(), False),))
    version, importable, more = json.loads(looked.stdout)
    (last,) = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["nothing"]
    equal = done.stdout.count(" equal\n") - done.stdout.count("all equal\n")
    said = f"from another folder, run.py --check compares {equal} arrays and says '{last}'"
    where = f"under Python {'.'.join(map(str, version))}, beside lava-nc and what it needs: {', '.join(more) or 'nothing'}"
    return Claims(
        "emitted package",
        (
            (said, done.returncode == 0 and equal > 0 and last == "all equal"),
            (where, version == [3, 10] and not more),
            (f"spikec is {'importable' if importable else 'not importable'} there", not importable),
        ),
    )


CASES: Final[dict[str, tuple[str, Callable[[bool], Case | Claims]]]] = {
    "digits": ("", digits),
    "convolutional": ("", convolutional),
    "residual": ("", residual),
    "recurrent": ("", recurrent),
    "tinynet": ("lavadl_tinynet", tinynet),
    "pilotnet": ("lavadl_pilotnet_lif", pilotnet),
    "mnist_cuba": ("lavadl_mnist_cuba", mnist_cuba),
    "ndns": ("ndns_sdnn_nodelay", ndns),
    "braille": ("nir_braille_zero", braille),
    "package": ("", package),
}
#: What is measured by other commands, and why.
ELSEWHERE: Final = (
    "200 random networks, all engines, spikes and states: make test-lava-graphs (20 in make test)",
    "networks too large for a chip, mapped onto several or refused with all rules at once: make bench-mapping",
)


def rows(names: list[str], small: bool) -> Iterator[Row | Claims | str]:
    """A row a case, or why there is none."""
    for name in names:
        folder, make = CASES[name]
        if folder and not (DATA / folder).is_dir():
            yield f"{name}: {DATA / folder} is not there"
            continue
        found = make(small)
        yield measure(found) if isinstance(found, Case) else found


def main(words: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Networks on Lava against the reference and C, number for number.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--small", action="store_true", help="a few samples or steps of each")
    options = parser.parse_args(words)
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"there is no case '{unknown[0]}': choose among {', '.join(CASES)}")
    if why := load_backend("lava", TARGET).available():
        print(f"lava: {why}", file=sys.stderr)
        return 1
    head = f"{'network':22} {'samples':>7} {'steps':>6} {'compared':>12} {'C differs':>10} {'Lava differs':>13}"
    print(f"{head} {'published':>12} {'Lava differs':>13} {'Lava s':>7}")
    good = True
    for row in rows(options.cases or [*CASES], options.small):
        if isinstance(row, str):
            print(row)
            good = False
            continue
        if isinstance(row, Row):
            size, wrong = (f"{row.published[0]:,}", str(row.published[1])) if row.published[0] else ("-", "-")
            line = f"{row.name:22} {row.samples:7} {row.steps:6} {row.compared:12,} {row.mismatches['c']:10}"
            print(f"{line} {row.mismatches['lava']:13} {size:>12} {wrong:>13} {row.seconds:7.1f}", flush=True)
        for what, holds in row.claims:
            print(f"{row.name:22} {'' if holds else 'NOT MET: '}{what}", flush=True)
        good &= row.met
    for line in ELSEWHERE:
        print(line)
    print("equal everywhere" if good else "NOT equal everywhere, or not everything was there")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
