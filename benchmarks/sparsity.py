"""`make bench-sparsity`: what pruning saves in the emitted C, pattern by pattern, against the same network unpruned.

    python benchmarks/sparsity.py [--rounds N] [--only small,large] [--machines native,avx2,sse2,aarch64,cortex-m] [--prices]

Two networks of random weights are pruned by the compiler as a user would (`--prune`, `--prune-pattern`), and thresholds are set so
that every layer fires at 5 % whatever was pruned: what differs is how long the same number of events takes. x86 is timed, in
rounds of all contenders, and the least time counts; Arm is counted in instructions by the emulator (Cortex-M as Thumb-2 code
without vectors). Every network's spikes are compared with those of the same weights kept as whole rows. `--prices` prints what
one row costs in each form, from which `backends/c/forms.py` has its numbers.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

import spikec
from spikec.backends.c.backend import folder_files
from spikec.backends.c.forms import Choices
from spikec.backends.c.generate import generate
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Dense, Input, Neuron, Node, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.target import load_target

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import counts, run, workloads

BUILD = workloads.ROOT / "build" / "sparsity"
NETS = {"small": (64, 128, 64, 10), "large": (784, 512, 512, 10)}
RATE, STEPS, SAMPLES, DECAY = 0.05, 100, 8, 0.875
#: Name, options of the compiler, and the share of weights that stays.
PATTERNS: dict[str, dict[str, object]] = {
    "unpruned": {},
    "90 %, single": {"prune": 0.9},
    "95 %, single": {"prune": 0.95},
    "90 %, block8": {"prune": 0.9, "prune_pattern": "block8"},
    "90 %, block16": {"prune": 0.9, "prune_pattern": "block16"},
    "90 %, block32": {"prune": 0.9, "prune_pattern": "block32"},
    "2:4": {"prune_pattern": "2:4"},
    "1:8": {"prune_pattern": "1:8"},
}
#: Compiler, flags, how it is measured, and the target whose numbers choose the forms.
MACHINES = {
    "native": ("gcc", run.FLAGS["native"], "time", "host"),
    "avx2": ("gcc", run.FLAGS["avx2"], "time", "host"),
    "sse2": ("gcc", run.FLAGS["sse2"], "time", "host"),
    "aarch64": ("aarch64-linux-gnu-gcc", ["-O3", "-march=armv8-a", "-fno-loop-unroll-and-jam", "-static"], "qemu-aarch64", "rpi4"),
    "aarch64-dot": (
        "aarch64-linux-gnu-gcc",
        ["-O3", "-march=armv8.2-a+dotprod", "-fno-loop-unroll-and-jam", "-static"],
        "qemu-aarch64",
        "rpi5",
    ),
    "cortex-m": (
        "arm-linux-gnueabihf-gcc",
        ["-O2", "-mthumb", "-march=armv7-a", "-mtune=cortex-m4", "-mfpu=vfpv3-d16", "-static"],
        "qemu-arm",
        "cortex-m4",
    ),
}  # fmt: skip


def spikes(rng: np.random.Generator, inputs: int) -> np.ndarray:
    """Random input (samples, T, inputs)."""
    return (rng.random((SAMPLES, STEPS, inputs)) < RATE).astype(np.float32)


def threshold(current: np.ndarray) -> tuple[float, np.ndarray]:
    """The threshold at which a leaky population fires at the rate wanted, and its spikes."""
    low, high = 0.0, float(np.abs(current).max()) * 8 + 1e-9
    fired = np.zeros_like(current)
    for _ in range(14):
        theta = (low + high) / 2
        v = np.zeros_like(current[:, 0])
        for t in range(current.shape[1]):
            v = DECAY * v + current[:, t]
            fired[:, t] = v >= theta
            v = np.where(fired[:, t] > 0, 0, v)
        low, high = (theta, high) if fired.mean() > RATE else (low, theta)
    return theta, fired


def network(sizes: tuple[int, ...], options: dict[str, object], x: np.ndarray) -> Graph:
    """The network in integers, pruned, every population at the rate wanted."""
    rng = np.random.default_rng(0)
    program = parse_program(workloads.LIF)
    nodes: list[Node] = [Input(name="in", type=TensorType("spike", (sizes[0],), "f32"))]
    for number, (fan_in, out) in enumerate(pairwise(sizes)):
        weight = rng.normal(0, 1, (out, fan_in)).astype(np.float32) / np.float32(np.sqrt(fan_in))
        nodes.append(Dense(name=f"fc{number}", inputs=(Ref(nodes[-1].name),), weight=weight))
        params = {"beta": np.float32(DECAY), "theta": np.float32(1)}
        nodes.append(Neuron(name=f"l{number}", inputs=(Ref(f"fc{number}"),), program=program, params=params))
    last = nodes[-1].name
    graph = verify(Graph("net", "float", tuple(nodes), ((last, Ref(last)),)))
    if options:
        keep = (f"fc{len(sizes) - 2}",)
        graph = spikec.compile(graph, target="host", prune_scope="layer", keep_layers=keep, **options).graph(after="prune")
    (source,) = graph.inputs
    for node in graph.neurons:
        current = node.inputs[0].node
        theta, _ = threshold(interpret(graph, {source.name: x}, record=[current]).records[current])
        graph = graph.with_nodes(
            replace(n, params={**n.params, "theta": np.float32(theta)}) if n.name == node.name else n for n in graph.nodes
        )
    return spikec.compile(graph, target="host", bits=8).graph()


def events(path: Path, x: np.ndarray) -> Path:
    """The harness's event file (benchmarks/c/harness.c)."""
    rows = [np.flatnonzero(step) for sample in x for step in sample]
    begins = np.cumsum([0, *map(len, rows)])
    head = np.array([x.shape[1], x.shape[0], x.shape[2], begins[-1]], np.int32)
    path.write_bytes(head.tobytes() + begins.astype(np.int32).tobytes() + np.concatenate(rows).astype(np.uint16).tobytes())
    return path


def program(graph: Graph, machine: str, name: str, choices: Choices | None = None) -> tuple[Path, int]:
    """An executable of the harness around a network, and the bytes of its constants."""
    compiler, flags, _, target = MACHINES[machine]
    made = generate(graph, choices=choices or Choices.of(load_target(target)))
    folder = BUILD / f"{name}_{machine}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, content in folder_files(graph, made).items():
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    shutil.copy(Path(__file__).with_name("c") / "harness.c", folder)
    sources = [p.name for p in sorted(folder.glob("*.c")) if p.name in ("network.c", "weights.c", "harness.c")]
    subprocess.run([compiler, "-std=gnu11", *flags, "-o", "net", *sources, "-lm"], check=True, cwd=folder)
    return folder / "net", made.constants


def measured(tool: str, executable: Path, data: Path) -> tuple[float, str]:
    """Milliseconds, or instructions, an inference; and the spikes that came out, as text."""
    if tool == "time":
        out = subprocess.run([str(executable), str(data), "9"], check=True, capture_output=True, text=True).stdout.splitlines()
        return min(float(line.split()[1]) for line in out if line.startswith("round")), out[9]
    found = []
    for rounds in ("1", "2"):
        command = [tool, "-plugin", str(counts.plugin()), "-d", "plugin", str(executable), str(data), rounds, "2"]
        found.append(subprocess.run(command, check=True, capture_output=True, text=True))
    once, twice = (int(done.stderr.split()[-1]) for done in found)
    return (twice - once) / 2, found[0].stdout.splitlines()[1]


def table(name: str, machines: list[str], rounds: int) -> None:
    """Time, or instructions, and bytes of every pattern over those of the unpruned network."""
    sizes = NETS[name]
    x = spikes(np.random.default_rng(1), sizes[0])
    data = events(BUILD / f"{name}.bin", x)
    graphs = {pattern: network(sizes, options, x) for pattern, options in PATTERNS.items()}
    print(f"\n{'-'.join(map(str, sizes))}, every population at {RATE:.0%}; time or instructions, then bytes, over unpruned")
    print(f"{'':16}" + "".join(f"{machine:>16}" for machine in machines))
    cells: dict[str, list[str]] = {pattern: [] for pattern in PATTERNS}
    for machine in machines:
        tool = MACHINES[machine][2]
        made = {p: program(g, machine, f"{name}_{n}") for n, (p, g) in enumerate(graphs.items())}
        whole = {p: program(g, machine, f"{name}_{n}_rows", Choices(form="rows")) for n, (p, g) in enumerate(graphs.items())}
        best = dict.fromkeys(PATTERNS, float("inf"))
        for _ in range(rounds if tool == "time" else 1):
            for pattern in PATTERNS:
                value, given = measured(tool, made[pattern][0], data)
                best[pattern] = min(best[pattern], value)
                if given != measured(tool, whole[pattern][0], data)[1]:
                    raise SystemExit(f"{name}, {pattern}, {machine}: other spikes than with whole rows")
        for pattern in PATTERNS:
            time_, size = best[pattern] / best["unpruned"], made[pattern][1] / made["unpruned"][1]
            cells[pattern].append(f"{time_:9.2f} {size:6.2f}")
    for pattern, row in cells.items():
        print(f"{pattern:16}" + "".join(row), flush=True)


def prices(machines: list[str]) -> None:
    """What an event costs in each form: nanoseconds, or instructions; the share that stays is 10 %, of 512 targets."""
    rng = np.random.default_rng(2)
    program_ = parse_program(
        "neuron @lif(a) params(theta) state(v: i32 = 0) {\nv = rtz(v * 3500, 12) + a\ns = v > theta\nv = select(s, 0, v)\nemit s\n}"
    )
    busy, idle = spikes(rng, 784), np.zeros((SAMPLES, STEPS, 784))
    idle[0, 0, 0] = 1
    files = [events(BUILD / "busy.bin", busy), events(BUILD / "idle.bin", idle)]
    print("\none event, 512 targets, a tenth of the weights: ns, or instructions; the same for a block, or a connection")
    for machine in machines:
        tool = MACHINES[machine][2]
        for form, width in (("rows", 1), ("block8", 8), ("block16", 16), ("block32", 32), ("list", 1), ("steps", 1)):
            kept = np.repeat(rng.random((512 // width, 784)) < 0.1, width, axis=0)
            weight = (rng.integers(1, 20, kept.shape) * rng.choice([-1, 1], kept.shape) * kept).astype(np.int16)
            nodes = (
                Input(name="in", type=TensorType("spike", (784,), "i8")),
                Dense(name="fc", inputs=(Ref("in"),), weight=weight),
                Neuron(name="l", inputs=(Ref("fc"),), program=program_, params={"theta": np.array(1 << 20, np.int32)}),
            )
            made, _ = program(
                verify(Graph("one", "fixed", nodes, (("l", Ref("l")),))), machine, f"price_{form}", Choices(form=form)
            )
            values = [min(measured(tool, made, file)[0] for _ in range(5 if tool == "time" else 1)) for file in files]
            one = (values[0] - values[1]) * (1e6 if tool == "time" else 1) / (busy.sum() / SAMPLES)
            parts = kept.sum() / width / 784
            print(f"{machine:9} {form:8} {one:8.1f} {one / parts:8.2f}", flush=True)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="what pruning saves in the emitted C, pattern by pattern")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(NETS))
    parser.add_argument("--machines", default=",".join(MACHINES))
    parser.add_argument("--prices", action="store_true")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    run.BUILD.mkdir(parents=True, exist_ok=True)
    machines = options.machines.split(",")
    if options.prices:
        prices(machines)
        return 0
    for name in options.only.split(","):
        table(name, machines, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
