"""`make bench-kernels`: what one connection costs in the emitted C, layer by layer: convolutions of every kind, and delays.

    python benchmarks/kernels.py [--rounds N] [--only conv,delay,activity,offline] [--machines native,avx2,sse2,aarch64,cortex-m]

Each network is one layer of integers and a population that never fires. The time of a run with 5 % active inputs, less that of a
run with one event a step, is what the events took; divided by the connections that they used it is the price of one. x86 is
timed, in rounds of all layers, and the least time counts; Arm is counted in instructions by the emulator.

`activity` compares two ways to compute a dense layer of spikes, event by event and as a product of bytes over all inputs, as
layers of values are, at shares of active inputs from 5 % to all: where is the crossover?

`offline` runs networks with a loop or with delays between large dense layers, 8 % active, as whole samples at once against one step
after the other (x86, one core): what stands before and behind the loop goes through a block of steps layer by layer. "no unit" is
the same with the matrix unit left unused: blocks, but event by event.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from spikec.backends.c.backend import CBackend
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.target import load_target

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import run, sparsity

LIF = parse_program(
    "neuron @lif(a) params(theta) state(v: i32 = 0) {\nv = rtz(v * 3500, 12) + a\ns = v > theta\nv = select(s, 0, v)\nemit s\n}"
)


def layer(shape: tuple[int, ...], node: Node) -> Graph:
    """The layer `fc` of an input of this shape, and a population."""
    source = Input(name="in", type=TensorType("spike", shape, "i8"))
    neuron = Neuron(name="l", inputs=(Ref("fc"),), program=LIF, params={"theta": np.array(1 << 20, np.int32)})
    return verify(Graph("one", "fixed", (source, node, neuron), (("l", Ref("l")),)))


def convolution(shape: tuple[int, ...], out: int, kernel: int, **options: object) -> Graph:
    """A convolution with random weights of eight bits."""
    groups = int(str(options.get("groups", 1)))
    axes = len(shape) - 1
    weight = np.random.default_rng(3).integers(-20, 21, (out, shape[0] // groups, *(kernel,) * axes)).astype(np.int16)
    for name in ("stride", "padding", "dilation"):
        if name in options:
            options[name] = (int(str(options[name])),) * axes
    return layer(shape, Conv(name="fc", inputs=(Ref("in"),), weight=weight, **options))


def dense(most: int, axonal: bool) -> Graph:
    """A layer 256-256 with delays of 0 to `most` steps, each connection its own, or each input."""
    rng = np.random.default_rng(4)
    weight = rng.integers(-20, 21, (256, 256)).astype(np.int16)
    delay = np.broadcast_to(rng.integers(0, most + 1, (1 if axonal else 256, 256)), (256, 256)).astype(np.int32) if most else None
    return layer((256,), Dense(name="fc", inputs=(Ref("in"),), weight=weight, delay=delay))


CONVOLUTIONS: dict[str, Callable[[], Graph]] = {
    "32-32 3x3 padded": lambda: convolution((32, 16, 16), 32, 3, padding=1),
    "32-32 3x3 dilation 2": lambda: convolution((32, 16, 16), 32, 3, padding=2, dilation=2),
    "32-32 3x3 groups of 8": lambda: convolution((32, 16, 16), 32, 3, padding=1, groups=4),
    "32-32 3x3 groups of 4": lambda: convolution((32, 16, 16), 32, 3, padding=1, groups=8),
    "32 depthwise 3x3": lambda: convolution((32, 16, 16), 32, 3, padding=1, groups=32),
    "32 depthwise 3x3 stride 2": lambda: convolution((32, 16, 16), 32, 3, padding=1, stride=2, groups=32),
    "32 depthwise 5x5": lambda: convolution((32, 16, 16), 32, 5, padding=2, groups=32),
    "32-64 depthwise 3x3": lambda: convolution((32, 16, 16), 64, 3, padding=1, groups=32),
    "3 depthwise 3x3": lambda: convolution((3, 32, 32), 3, 3, padding=1, groups=3),
    "64-64 9 taps, one axis": lambda: convolution((64, 128), 64, 9, padding=4),
    "64 depthwise 9 taps, one axis": lambda: convolution((64, 128), 64, 9, padding=4, groups=64),
    "64-64 3x3 groups of 2": lambda: convolution((64, 16, 16), 64, 3, padding=1, groups=32),
    "32-96 depthwise 3x3": lambda: convolution((32, 16, 16), 96, 3, padding=1, groups=32),
    "64-64 9 taps, groups of 4": lambda: convolution((64, 128), 64, 9, padding=4, groups=16),
    "64-64 9 taps, groups of 8": lambda: convolution((64, 128), 64, 9, padding=4, groups=8),
}
DELAYS: dict[str, Callable[[], Graph]] = {
    "256-256": lambda: dense(0, False),
    "256-256 delays 0 to 7": lambda: dense(7, False),
    "256-256 delays 0 to 31": lambda: dense(31, False),
    "256-256 axonal delays 0 to 7": lambda: dense(7, True),
    "256-256 axonal delays 0 to 31": lambda: dense(31, True),
}


#: Sizes, and shares of active inputs, of the question whether a layer is better computed event by event or as a product.
SIZES, ACTIVITIES = ((256, 128), (784, 512), (1024, 256), (2048, 1024)), (0.05, 0.1, 0.3, 0.5, 0.75, 1.0)


def product(fan_in: int, out: int, whole: bool) -> Graph:
    """A dense layer of spikes; whole: of an input that may hold 2 as well, and so is multiplied in all steps."""
    weight = np.random.default_rng(6).integers(-127, 128, (out, fan_in)).astype(np.int16)
    graph = layer((fan_in,), Dense(name="fc", inputs=(Ref("in"),), weight=weight))
    values = Input(name="in", type=TensorType("graded", (fan_in,), "i8"), bounds=(0, 2))
    return verify(graph.with_nodes(values if whole and isinstance(node, Input) else node for node in graph.nodes))


def crossover(machines: list[str], rounds: int) -> None:
    """Time, or instructions, of the product over those of the events, by the share of active inputs."""
    print("\nactivity: a product of bytes over event by event; above 1 events are quicker")
    print(f"{'':24}" + "".join(f"{share:>8.0%}" for share in ACTIVITIES))
    for fan_in, out in SIZES:
        for machine in machines:
            tool = sparsity.MACHINES[machine][2]
            made = [
                sparsity.program(product(fan_in, out, whole), machine, f"activity_{fan_in}_{whole}")[0] for whole in (False, True)
            ]
            cells = []
            for share in ACTIVITIES:
                x = (np.random.default_rng(7).random((2, 20, fan_in)) < share).astype(np.float32)
                data = sparsity.events(sparsity.BUILD / f"activity_{fan_in}.bin", x)
                found = [[sparsity.measured(tool, one, data) for one in made] for _ in range(rounds if tool == "time" else 1)]
                if len({spikes for one in found for _, spikes in one}) != 1:
                    raise SystemExit(f"{fan_in}-{out}, {machine}: other spikes as a product")
                events, whole = (min(one[way][0] for one in found) for way in (0, 1))
                cells.append(f"{whole / events:8.2f}")
            print(f"{f'{fan_in}-{out} {machine}':24}" + "".join(cells), flush=True)


#: Networks of the question what blocks of steps save, and the share of active inputs.
LOOPS: dict[str, dict[str, Any]] = {
    "784-1024-1024-10": {"sizes": (784, 1024, 1024, 10)},
    "784-1024-256-1024-10, loop of 256": {"sizes": (784, 1024, 256, 1024, 10), "loop": 2},
    "784-1024-1024-10, loop of 1024": {"sizes": (784, 1024, 1024, 10), "loop": 2},
    "784-1024-1024-10, delays of 3": {"sizes": (784, 1024, 1024, 10), "delay": 3},
}
SHARE, STEPS, SAMPLES = 0.08, 100, 8


def stack(sizes: tuple[int, ...], loop: int = 0, delay: int = 0) -> Graph:
    """Dense layers with leaky neurons, about 8 % active; the population of number `loop` reads itself, a step later."""
    rng = np.random.default_rng(9)
    nodes: list[Node] = [Input(name="in", type=TensorType("spike", sizes[:1], "i8"))]
    for number, (fan_in, out) in enumerate(pairwise(sizes), start=1):
        source = Ref("in") if number == 1 else Ref(f"l{number - 1}", delay=delay)
        nodes.append(Dense(name=f"fc{number}", inputs=(source,), weight=rng.integers(-20, 21, (out, fan_in)).astype(np.int16)))
        inputs, reads = f"fc{number}", fan_in
        if number == loop:
            nodes.append(
                Dense(name="rec", inputs=(Ref(f"l{number}", delay=1),), weight=rng.integers(-20, 21, (out, out)).astype(np.int16))
            )
            nodes.append(Add(name="sum", inputs=(Ref(inputs), Ref("rec"))))
            inputs, reads = "sum", fan_in + out
        # 0.8 standard deviations of a membrane of such weights
        theta = np.array(0.8 * 1.92 * 11.8 * np.sqrt(SHARE * reads), np.int32)
        nodes.append(Neuron(name=f"l{number}", inputs=(Ref(inputs),), program=LIF, params={"theta": theta}))
    return verify(Graph("stack", "fixed", tuple(nodes), (("out", Ref(nodes[-1].name)),)))


def offline(machines: list[str], rounds: int) -> None:
    """Inferences a second of whole samples at once, and how many times those of one step after the other."""
    kinds = [(machine, way) for machine in machines if machine in run.FLAGS for way in ("as built", "no unit")]
    print("\noffline: whole samples at once, inferences a second, and times those step by step; the matrix unit is used: *")
    print(f"{'':36}" + "".join(f"{f'{machine}, {way}':>22}" for machine, way in kinds))
    for number, (name, options) in enumerate(LOOPS.items()):
        graph, folder = stack(**options), sparsity.BUILD / f"offline_{number}"
        folder.mkdir(parents=True, exist_ok=True)
        CBackend(load_target("host")).emit(graph, folder)
        shutil.copy(Path(run.__file__).with_name("c") / "offline.c", folder / "bench_offline.c")
        x = (np.random.default_rng(7).random((SAMPLES, STEPS, options["sizes"][0])) < SHARE).astype(np.float32)
        data = sparsity.events(sparsity.BUILD / "offline.bin", x)
        wanted = ("network.c", "weights.c", "offline.c", "offline_weights.c", "bench_offline.c")
        sources = [file for file in wanted if (folder / file).exists()]
        cells = []
        for machine, way in kinds:
            flags = [*run.FLAGS[machine], *(["-DSPK_TILES_PLAIN", "-DSPK_TILES_NEVER"] if way == "no unit" else [])]
            program = run.compile_c(folder, [*sources, "-pthread"], flags, f"offline_{number}_{machine}_{len(flags)}")
            words = subprocess.run(
                [str(program), str(data), str(rounds)], check=True, capture_output=True, text=True
            ).stdout.split()
            if words[6] != "1":
                raise SystemExit(f"{name}, {machine}, {way}: other spikes offline")
            unit = "*" if words[4] == "1" and way == "as built" else " "
            cells.append(f"{1e6 / float(words[0]):14.0f} {float(words[1]) / float(words[0]):6.2f}{unit}")
        print(f"{name:36}" + "".join(cells), flush=True)


def operations(executable: Path, data: Path) -> float:
    """Connections that a sample used."""
    out = subprocess.run([str(executable), str(data), "1"], check=True, capture_output=True, text=True).stdout
    return float(out.split("operations")[1].split()[0])


def table(title: str, graphs: dict[str, Graph], machines: list[str], rounds: int) -> None:
    """The price of a connection and of an event, for every layer and machine."""
    print(f"\n{title}: a connection, and an event; ns, or instructions")
    print(f"{'':32}" + "".join(f"{machine:>18}" for machine in machines))
    rows: dict[str, list[str]] = {name: [] for name in graphs}
    for machine in machines:
        tool = sparsity.MACHINES[machine][2]
        made, files, used, best = {}, {}, {}, {}
        for number, (name, graph) in enumerate(graphs.items()):
            size = graph.type_of(Ref(graph.inputs[0].name)).size
            busy = sparsity.spikes(np.random.default_rng(5), size)
            idle = np.zeros_like(busy)
            idle[:, :, 0] = 1  # a population that nothing reaches would not be computed
            made[name] = sparsity.program(graph, machine, f"kernel_{title}_{number}")[0]
            files[name] = [
                sparsity.events(sparsity.BUILD / f"{title}_{number}_{kind}.bin", x) for kind, x in (("busy", busy), ("idle", idle))
            ]
            connections = [operations(made[name], file) if tool == "time" else 0.0 for file in files[name]]
            used[name] = (connections[0] - connections[1], (busy.sum() - idle.sum()) / len(busy))
            best[name] = [float("inf")] * 2
        for _ in range(rounds if tool == "time" else 1):
            for name in graphs:
                best[name] = [
                    min(old, sparsity.measured(tool, made[name], file)[0])
                    for old, file in zip(best[name], files[name], strict=True)
                ]
        for name in graphs:
            spent = (best[name][0] - best[name][1]) * (1e6 if tool == "time" else 1)
            connections, events = used[name]
            rows[name].append(
                f"{spent / connections:9.3f} {spent / events:8.1f}" if connections else f"{'':9} {spent / events:8.0f}"
            )
    for name, row in rows.items():
        print(f"{name:32}" + "".join(row), flush=True)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="what one connection costs in the emitted C, layer by layer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="conv,delay,activity,offline")
    parser.add_argument("--machines", default="native,avx2,sse2")
    options = parser.parse_args()
    sparsity.BUILD.mkdir(parents=True, exist_ok=True)
    run.BUILD.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(","):
        if name == "activity":
            crossover(options.machines.split(","), options.rounds)
            continue
        if name == "offline":
            offline(options.machines.split(","), options.rounds)
            continue
        made = {"conv": CONVOLUTIONS, "delay": DELAYS}[name]
        table(name, {label: graph() for label, graph in made.items()}, options.machines.split(","), options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
