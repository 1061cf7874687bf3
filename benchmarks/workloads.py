"""The four fixed workloads W1 to W4 as float graphs, their input, and the spike counts of a float simulation.

`gen.py` of the shared performance folder makes the data (fixed seeds); weights are whole multiples of 2^-6 there, so eight
bits hold them exactly and what comes out can be compared count by count.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from spikec.cache import cache_dir
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Pool, Ref, Reshape, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT.parent / "shared" / "perf"
#: In the user's cache: what the generator writes is the same for every checkout.
DATA = cache_dir() / "perf" / "data"
UNIT = 2.0**-6
#: The generator compares with a threshold 0.3 below a whole number of units.
BELOW = 0.3

LIF = "neuron @lif(x) params(beta, theta) state(v = 0) {\nv = beta * v + x\ns = v >= theta\nv = select(s, 0, v)\nemit s\n}"
IF = "neuron @if(x) params(theta) state(v = 0) {\nv = v + x\ns = v >= theta\nv = select(s, 0, v)\nemit s\n}"
CUBA = (
    "neuron @cuba(x) params(alpha, beta, theta) state(i = 0, v = 0) {\ni = alpha * i + x\nv = beta * v + i\n"
    "s = v >= theta\nv = select(s, 0, v)\nemit s\n}"
)
BIASED = (
    "neuron @biased(x) params(beta, theta, bias) state(v = 0) {\nv = beta * v + bias + x\ns = v >= theta\n"
    "v = select(s, 0, v)\nemit s\n}"
)


@dataclass(frozen=True)
class Workload:
    """A float graph; input (samples, T, *shape) of 0 and 1 or None; expected spike counts of the output (samples, neurons)."""

    name: str
    graph: Graph
    data: np.ndarray | None
    counts: np.ndarray
    steps: int


def ensure_data() -> Path:
    """Make the data if it is not there yet (under a minute). FileNotFoundError without the shared folder."""
    if not DATA.exists():
        DATA.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=DATA.parent) as made:
            place = Path(made) / "data"
            place.mkdir()
            for script in ("gen.py", "export.py"):
                subprocess.run(
                    [sys.executable, str(SOURCE / script)],
                    check=True,
                    cwd=SOURCE,
                    env={"BENCH_DATA": f"{place}/", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
                    stdout=subprocess.DEVNULL,
                )
            with suppress(OSError):  # another process was quicker
                place.rename(DATA)
    return DATA


def load(name: str) -> dict[str, Any]:
    """The generator's arrays of a workload."""
    data = dict(np.load(ensure_data() / f"{name.lower()}.npz"))
    if name != "W4":
        data["x"] = np.unpackbits(data["x"], axis=-1, count={"W1": 784, "W2": 2312, "W3": 700}[name])
    return data


def _theta(data: dict[str, Any], index: int) -> np.ndarray:
    return np.asarray((float(data["th"][index]) - BELOW) * UNIT, np.float32)


def _weights(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) * np.float32(UNIT)


def w1() -> Workload:
    """784-512-512-10, dense, LIF with hard reset, T = 100."""
    data = load("W1")
    program = parse_program(LIF)
    nodes: list[Node] = [Input(name="in", type=TensorType("spike", (784,), "f32"))]
    before = "in"
    for index in range(3):
        nodes.append(Dense(name=f"fc{index + 1}", inputs=(Ref(before),), weight=_weights(data[f"q{index + 1}"])))
        params = {"beta": np.float32(0.875), "theta": _theta(data, index)}
        nodes.append(Neuron(name=f"l{index + 1}", inputs=(Ref(nodes[-1].name),), program=program, params=params))
        before = f"l{index + 1}"
    graph = verify(Graph("W1", "float", tuple(nodes), (("l3", Ref("l3")),)))
    return Workload("W1", graph, data["x"].transpose(1, 0, 2), data["counts"], 100)


def w2() -> Workload:
    """2x34x34, three convolutions, two sum pools, 256, 10; integrate and fire, T = 300."""
    data = load("W2")
    program = parse_program(IF)

    def fires(name: str, source: str, index: int) -> Neuron:
        return Neuron(name=name, inputs=(Ref(source),), program=program, params={"theta": _theta(data, index)})

    nodes: tuple[Node, ...] = (
        Input(name="in", type=TensorType("spike", (2, 34, 34), "f32")),
        Conv(name="c1", inputs=(Ref("in"),), weight=_weights(data["c1"]), stride=(2, 2), padding=(1, 1)),
        fires("l1", "c1", 0),
        Conv(name="c2", inputs=(Ref("l1"),), weight=_weights(data["c2"]), padding=(1, 1)),
        fires("l2", "c2", 1),
        Pool(name="p2", inputs=(Ref("l2"),), mode="sum", kernel=(2, 2)),
        Conv(name="c3", inputs=(Ref("p2"),), weight=_weights(data["c3"]), padding=(1, 1)),
        fires("l3", "c3", 2),
        Pool(name="p3", inputs=(Ref("l3"),), mode="sum", kernel=(2, 2)),
        Reshape(name="flat", inputs=(Ref("p3"),), shape=(128,)),
        Dense(name="f1", inputs=(Ref("flat"),), weight=_weights(data["f1"])),
        fires("l4", "f1", 3),
        Dense(name="f2", inputs=(Ref("l4"),), weight=_weights(data["f2"])),
        fires("l5", "f2", 4),
    )
    graph = verify(Graph("W2", "float", nodes, (("l5", Ref("l5")),)))
    samples = data["x"].transpose(1, 0, 2)
    return Workload("W2", graph, samples.reshape(*samples.shape[:2], 2, 34, 34), data["counts"], 300)


def w3() -> Workload:
    """700-256 (recurrent)-20, synaptic current and membrane, T = 250."""
    data = load("W3")
    program = parse_program(CUBA)

    def fires(name: str, source: str, index: int) -> Neuron:
        params = {"alpha": np.float32(0.75), "beta": np.float32(0.875), "theta": _theta(data, index)}
        return Neuron(name=name, inputs=(Ref(source),), program=program, params=params)

    nodes: tuple[Node, ...] = (
        Input(name="in", type=TensorType("spike", (700,), "f32")),
        Dense(name="fc1", inputs=(Ref("in"),), weight=_weights(data["wi"])),
        Dense(name="rec", inputs=(Ref("l1", delay=1),), weight=_weights(data["wr"])),
        Add(name="sum", inputs=(Ref("fc1"), Ref("rec"))),
        fires("l1", "sum", 0),
        Dense(name="fc2", inputs=(Ref("l1"),), weight=_weights(data["wo"])),
        fires("l2", "fc2", 1),
    )
    graph = verify(Graph("W3", "float", nodes, (("l2", Ref("l2")),)))
    return Workload("W3", graph, data["x"].transpose(1, 0, 2), data["counts"], 250)


def w4() -> Workload:
    """50,000 neurons with 500 random targets each, bias, T = 1000, no input."""
    data = load("W4")
    targets, weight = np.load(DATA / "w4_tgt.npy"), np.load(DATA / "w4_w.npy")
    neurons, fan_out = targets.shape
    order = np.argsort(targets.ravel(), kind="stable")
    sources = np.repeat(np.arange(neurons, dtype=np.int32), fan_out)[order]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(targets.ravel(), minlength=neurons))])
    nodes: tuple[Node, ...] = (
        Sparse(
            name="rec",
            inputs=(Ref("l", delay=1),),
            weight=_weights(weight.ravel()[order]),
            indices=sources,
            indptr=indptr,
            fan_in=neurons,
        ),
        Neuron(
            name="l",
            inputs=(Ref("rec"),),
            program=parse_program(BIASED),
            params={
                "beta": np.float32(1 - 1 / 16),
                "theta": np.float32((4096 - BELOW) * UNIT),
                "bias": (data["bias"] / 16).astype(np.float32) * np.float32(UNIT),
            },
            init={"v": data["v0"].astype(np.float32) * np.float32(UNIT)},
        ),
    )
    graph = verify(Graph("W4", "float", nodes, (("l", Ref("l")),)))
    return Workload("W4", graph, None, data["counts"][None], 1000)


WORKLOADS: dict[str, Callable[[], Workload]] = {"W1": w1, "W2": w2, "W3": w3, "W4": w4}
