"""A trained snnTorch network on four engines: compile it for Loihi 2, run the held-out digits, count what differs.

    python examples/digits/demo.py [--lava 100] [--output build/digits]

Exit status 1 if a spike or a final state differs between two engines, if the float graph does not spike as snnTorch does, or if
eight bits cost more than half a point of accuracy.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import data
import model
import numpy as np
import torch
from numpy.typing import NDArray
from snntorch import Leaky
from torch import nn

import spikec
from spikec.backends.lava import environment
from spikec.ir.interpret import Interpreter
from spikec.progress import Bar

Array = NDArray[Any]
ENGINES = ("reference", "numpy", "c", "lava")
ALLOWED_LOSS = 0.5
"""Points of accuracy that eight bits may cost."""


class Trace(NamedTuple):
    """What snnTorch computed: output spikes (N, T, 10), and every Leaky's spikes and membranes, (N, T, size) by module path."""

    output: Array
    layers: dict[str, tuple[Array, Array]]


def time_first(x: Array) -> torch.Tensor:
    """Spikes (N, T, 64) as the network takes them: (T, N, 64) floats."""
    return torch.from_numpy(x.swapaxes(0, 1).astype(np.float32))


def snntorch_trace(net: nn.Module, x: Array) -> Trace:
    """Run the network itself and listen to its neurons."""
    heard: dict[str, list[tuple[Array, Array]]] = {}

    def listen(path: str) -> Any:
        def hook(module: nn.Module, arguments: Any, result: Any) -> None:
            spikes, membrane = result
            heard.setdefault(path, []).append((spikes.numpy(), membrane.numpy()))

        return hook

    hooks = [m.register_forward_hook(listen(path)) for path, m in net.named_modules() if isinstance(m, Leaky)]
    with torch.no_grad():
        spikes, _ = net(time_first(x))
    for hook in hooks:
        hook.remove()
    layers = {path: tuple(np.stack(part, axis=1) for part in zip(*steps, strict=True)) for path, steps in heard.items()}
    return Trace(spikes.numpy().swapaxes(0, 1), layers)


def float_flips(build: spikec.Build, x: Array, trace: Trace) -> tuple[int, int]:
    """Compare the float graph with snnTorch step by step, each step from snnTorch's own states: (spikes that differ, compared).

    Sums of floats depend on their order, so a membrane may differ in its last bits; a spike then flips only at the threshold.
    """
    graph = build.graph(after="input")
    (source,) = graph.inputs
    places = {node.loc.path: node for node in graph.neurons if node.loc}
    machine = Interpreter(graph, len(x))
    flips = compared = 0
    for t in range(x.shape[1]):
        now = machine.step({source.name: x[:, t]})
        for path, (spikes, membranes) in trace.layers.items():
            node = places[path]
            flips += int(np.count_nonzero(now[node.name, ""] != spikes[:, t]))
            compared += spikes[:, t].size
            (state,) = node.program.state_names
            machine.states[node.name][state] = membranes[:, t]
    return flips, compared


def accuracy(spikes: Array, labels: Array) -> float:
    """Per cent of digits whose class fired most often; spikes (N, T, 10)."""
    return 100 * float(np.mean(data.answer(spikes) == labels))


def mismatches(result: spikec.Result, reference: spikec.Result) -> tuple[int, int]:
    """How many spikes of all layers and outputs, and how many final states, differ from the reference's for the same digits."""
    assert result.records.keys() == reference.records.keys() and result.states.keys() == reference.states.keys()
    spikes = states = 0
    for mine, wanted in ((result.records, reference.records), (result.outputs, reference.outputs)):
        for name, array in mine.items():
            spikes += int(np.count_nonzero(array != wanted[name][: len(array)]))
    for node, values in result.states.items():
        for name, array in values.items():
            states += int(np.count_nonzero(array != reference.states[node][name][: len(array)]))
    return spikes, states


def main(arguments: list[str]) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lava", type=int, default=100, metavar="N", help="held-out digits to run on Lava; default 100")
    parser.add_argument("--output", type=Path, default=Path("build/digits"), help="the build folder")
    options = parser.parse_args(arguments)

    train, held_out = data.split()
    net = model.load()
    calibration = data.spikes(train.images)
    build = spikec.compile(
        net,
        time_first(calibration[:4]),
        time_axis=0,
        batch_axis=1,
        target="loihi2",
        calibrate=calibration,
        labels=train.labels,
        name="digits",
    )
    build = spikec.load(build.save(options.output))  # from here on neither torch nor the frontend has a part in it
    summary = build.summary()
    x, labels = data.spikes(held_out.images), held_out.labels

    trace = snntorch_trace(net, x)
    flips, compared = float_flips(build, x, trace)
    before = accuracy(trace.output, labels)
    print(
        f"{summary['neurons']} neurons and {summary['synapses']} synapses, {x.shape[1]} steps a digit, lag {summary['lag']} steps"
    )
    print(f"float graph against snnTorch, step by step: {flips} of {compared} spikes differ\n")

    print(f"{'engine':10} {'digits':>6} {'accuracy':>9} {'mismatching spikes':>19} {'final states':>13} {'seconds':>8}")
    wrong = flips
    reference: spikec.Result | None = None
    after = 0.0
    for engine in ENGINES:
        if engine == "lava" and environment.locate() is None:
            print(environment.NOT_INSTALLED)
            continue
        count = min(options.lava, len(x)) if engine == "lava" else len(x)
        with Bar(engine) as bar:
            begin = time.perf_counter()
            result = build.run(x[:count], engine, record="all", progress=bar)
            seconds = time.perf_counter() - begin
        if reference is None:
            reference = result
            after = accuracy(result.outputs["lif3"], labels)
        spikes, states = mismatches(result, reference)
        wrong += spikes + states
        score = accuracy(result.outputs["lif3"], labels[:count])
        print(f"{engine:10} {count:6} {score:7.2f} % {spikes:19} {states:13} {seconds:8.2f}")

    loss = before - after
    print(f"\nsnnTorch in float {before:.2f} %, Loihi 2 in 8 bits {after:.2f} %: a loss of {loss:.2f} points")
    print(f"the build is in {options.output}: try `spikec show {options.output} --after quantize`")
    return 1 if wrong or loss > ALLOWED_LOSS else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except spikec.CompileError as error:
        sys.exit(str(error))
