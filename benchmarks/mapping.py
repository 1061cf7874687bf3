"""`make bench-mapping`: networks onto the cores of Loihi 2, against filling cores in order, scattering them, and greedy packing.

    python benchmarks/mapping.py [--only NAME]

Messages are measured on random input, or taken as 5 % of the sources a step where running the network would take long. Ratios are
of our mapping to others of the same network: messages to cores (from cores and inputs) and hops a step, against filling cores in
order, those cores scattered, and the greedy packing. Seconds are of the processor. What is refused prints why.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Ref, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.ledger import Ledger
from spikec.passes.place import Place
from spikec.target import load_target

TARGET: Final = load_target("loihi2")
LIF: Final = parse_program(next(item.fixed for item in TARGET.neurons if item.name == "LIF"))


def _lif(name: str, source: str) -> Neuron:
    params = {"du": 4095, "dv": 400, "vth": 200, "bias_mant": 0, "bias_exp": 0}
    return Neuron(name=name, inputs=(Ref(source),), program=LIF, params={key: np.int32(value) for key, value in params.items()})


def _input(*shape: int) -> Input:
    return Input(name="in", type=TensorType("spike", shape, "i8"))


def _weights(rng: np.random.Generator, *shape: int) -> Any:
    return (2 * rng.integers(-100, 101, shape)).astype(np.int16)


def dense(*sizes: int, density: float = 1.0) -> Graph:
    """Fully connected layers; below density 1 as sparse matrices."""
    rng = np.random.default_rng(0)
    nodes: list[Node] = [_input(sizes[0])]
    before = "in"
    for k, (fan_in, fan_out) in enumerate(pairwise(sizes), 1):
        if density == 1:
            nodes.append(Dense(name=f"fc{k}", inputs=(Ref(before),), weight=_weights(rng, fan_out, fan_in)))
        else:
            count = max(1, round(density * fan_in))
            indices = np.concatenate([np.sort(rng.choice(fan_in, count, replace=False)) for _ in range(fan_out)]).astype(np.int32)
            indptr = np.arange(fan_out + 1, dtype=np.int32) * count
            weight = _weights(rng, len(indices))
            weight[weight == 0] = 2
            nodes.append(Sparse(name=f"fc{k}", inputs=(Ref(before),), weight=weight, indices=indices, indptr=indptr, fan_in=fan_in))
        nodes.append(_lif(f"lif{k}", f"fc{k}"))
        before = f"lif{k}"
    return verify(Graph("dense", "fixed", tuple(nodes), ((before, Ref(before)),)))


def convolutional(side: int, channels: tuple[int, ...]) -> Graph:
    """3 x 3 convolutions on a square map."""
    rng = np.random.default_rng(0)
    nodes: list[Node] = [_input(2, side, side)]
    before, width = "in", 2
    for k, count in enumerate(channels, 1):
        nodes.append(Conv(name=f"conv{k}", inputs=(Ref(before),), weight=_weights(rng, count, width, 3, 3), padding=(1, 1)))
        nodes.append(_lif(f"lif{k}", f"conv{k}"))
        before, width = f"lif{k}", count
    return verify(Graph("conv", "fixed", tuple(nodes), ((before, Ref(before)),)))


def sheet(side: int, reach: float, count: int) -> Graph:
    """Neurons on a square sheet, each with `count` synapses from its surroundings (a normal distribution), numbered at random."""
    rng = np.random.default_rng(0)
    size = side * side
    number = rng.permutation(size)
    where = np.empty((size, 2), np.int64)
    where[number] = np.stack(np.divmod(np.arange(size), side), axis=1)
    at = np.round(where[:, None] + rng.normal(0, reach, (size, count, 2))).astype(np.int64) % side
    rows = [np.unique(number[row[:, 0] * side + row[:, 1]]) for row in at]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    indices = np.concatenate(rows).astype(np.int32)
    weight = _weights(rng, len(indices)) | 2
    outer = Sparse(
        name="wide", inputs=(Ref("in"),), weight=np.full(size, 120, np.int16), indices=np.arange(size, dtype=np.int32),
        indptr=np.arange(size + 1, dtype=np.int32), fan_in=size,
    )  # fmt: skip
    inner = Sparse(name="near", inputs=(Ref("lif", delay=1),), weight=weight, indices=indices, indptr=indptr, fan_in=size)
    nodes = (_input(size), outer, inner, Add(name="sum", inputs=(Ref("wide"), Ref("near"))), _lif("lif", "sum"))
    return verify(Graph("sheet", "fixed", nodes, (("lif", Ref("lif")),)))


NETWORKS: Final = {
    "784-512-256-10": lambda: (dense(784, 512, 256, 10), True, None),
    "784-2048-2048-10, 10 % of the synapses": lambda: (dense(784, 2048, 2048, 10, density=0.1), True, None),
    "784-8192-8192-10": lambda: (dense(784, 8192, 8192, 10), False, None),
    "784-8192-8192-10, 32 chips": lambda: (dense(784, 8192, 8192, 10), False, 32),
    "conv 32 x 32 x (16, 32, 32)": lambda: (convolutional(32, (16, 32, 32)), True, None),
    "conv 64 x 64 x (16, 17, 16), 200,704 neurons": lambda: (convolutional(64, (16, 17, 16)), False, None),
    "recurrent sheet 80 x 80, 60 synapses, shuffled": lambda: (sheet(80, 3.0, 60), True, None),
}


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="")
    options = parser.parse_args(arguments)
    print("| | | | messages | | hops to | | | |")
    print("| network | neurons | cores (in order) | in order | greedy | in order | at random | greedy | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, make in NETWORKS.items():
        if options.only not in name:
            continue
        graph, measured, chips = make()
        shape = graph.inputs[0].type.shape
        data = {"in": (np.random.default_rng(1).random((2, 20, *shape)) < 0.1).astype(np.int8)} if measured else None
        neurons = sum(graph.types[node.name][0][1].size for node in graph.neurons)
        begin = time.process_time()
        try:
            ours = figures(graph, data, chips, "multilevel")
        except CompileError as error:
            seconds = time.process_time() - begin
            print(f"| {name} | {neurons} | refused | | | | | | {seconds:.1f} |\n\n{error}\n", flush=True)
            continue
        seconds = time.process_time() - begin
        greedy = figures(graph, data, chips, "greedy")
        ratios = [
            messages(ours) / max(ours["messages in order"], 1e-9),
            messages(ours) / max(messages(greedy), 1e-9),
            *(
                ours["hops a step"] / max(other, 1e-9)
                for other in (ours["hops in order"], ours["hops at random"], greedy["hops a step"])
            ),
        ]
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {name} | {neurons} | {ours['cores']:.0f} ({ours['cores in order']:.0f}) | {cells} | {seconds:.1f} |", flush=True)
    return 0


def messages(found: Mapping[str, float]) -> float:
    """Messages a step to cores."""
    return found["messages between cores a step"] + found["messages from inputs a step"]


def figures(graph: Graph, data: Mapping[str, Any] | None, chips: int | None, method: str) -> Mapping[str, float]:
    """What the ledger says of a mapping."""
    ledger = Ledger()
    Place(TARGET, chips=chips, calibrate=data, place=method).run(graph, ledger)
    return next(entry.measured for entry in ledger if entry.measured)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
