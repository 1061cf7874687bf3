"""`make bench-passes`: what the optimizing passes cost in answers, and what they save.

    python benchmarks/passes.py [--tasks digits,mnist,spoken] [--seeds 3] [--rows 8bits,4bits,...]

For every task and seed a float network is trained, compiled in several ways and scored on the held-out samples by the C engine. The
loss is the float network's share of right answers less the compiled one's, on the same samples; printed is the mean over all seeds,
with a paired 95 % interval (bootstrap over samples and seeds). Times are of the C engine, one core, both builds in turn in the same
run, the median of the ratios. Bytes are what the emitted C keeps as constants, against four bytes a weight.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import tasks

import spikec
from spikec.ir.ops import Conv, Dense, Sparse
from spikec.ir.types import Array

#: Samples that quantizers and budgets are calibrated on.
CALIBRATION: Final = 512
#: Samples and rounds of a time measurement.
TIMED, ROUNDS = 100, 7


@dataclass
class Row:
    """One line: which answers were right before and after, seed by seed, and further figures to average."""

    what: str
    limit: float | None
    before: list[Array] = field(default_factory=list)
    after: list[Array] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, before: Array, after: Array, **figures: float) -> None:
        """A seed's outcome."""
        self.before.append(before)
        self.after.append(after)
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def loss(self) -> tuple[float, float, float]:
        """Mean loss in points and its paired 95 % interval."""
        each = [100 * (b.astype(float) - a.astype(float)) for b, a in zip(self.before, self.after, strict=True)]
        rng = np.random.default_rng(0)
        means = []
        for _ in range(2000):
            chosen = [each[k] for k in rng.integers(0, len(each), len(each))]
            means.append(np.mean([seed[rng.integers(0, len(seed), len(seed))].mean() for seed in chosen]))
        return float(np.mean([seed.mean() for seed in each])), *(float(q) for q in np.quantile(means, [0.025, 0.975]))

    def met(self) -> bool:
        """Whether the mean loss is within what was asked for."""
        return self.limit is None or self.loss()[0] <= self.limit + 1e-9

    def text(self, task: str) -> str:
        """A row of the Markdown table."""
        mean, low, high = self.loss()
        score = 100 * float(np.mean([a.mean() for a in self.after]))
        told = ", ".join(f"{name} {np.mean(values):.3g}" for name, values in self.figures.items())
        limit = "" if self.limit is None else f"{self.limit:g}"
        verdict = "" if self.limit is None else "yes" if self.met() else "**no**"
        return f"| {task} | {self.what} | {score:.2f} % | {mean:+.2f} ({low:+.2f} to {high:+.2f}) | {limit} | {verdict} | {told} |"


def float_bytes(graph: Any) -> int:
    """Bytes of the float32 model's weights and biases."""
    layers = [node for node in graph.nodes if isinstance(node, (Dense, Sparse, Conv))]
    return sum(4 * (node.weight.size + (0 if node.bias is None else node.bias.size)) for node in layers)


def seconds(build: Any, x: Array) -> float:
    """Time of the C engine for some samples."""
    begin = time.perf_counter()
    build.run(x, "c")
    return time.perf_counter() - begin


def time_ratio(build: Any, other: Any, x: Array) -> float:
    """The median over rounds of what `build` takes, over what `other` takes, in turn."""
    for one in (build, other):
        one.run(x, "c")
    return float(np.median([seconds(build, x) / seconds(other, x) for _ in range(ROUNDS)]))


def size_ratio(build: Any, graph: Any) -> float:
    """Constants of the emitted C over the bytes of the float32 model."""
    return float(build.memory().constants) / float_bytes(graph)


def neurons(graph: Any) -> int:
    """Neurons in all populations."""
    return sum(graph.types[node.name][0][1].size for node in graph.neurons)


class Bench:
    """One task and seed: the float network, the plain 8-bit build, and what the rows compare with."""

    def __init__(self, task: tasks.Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.graph = task.network(seed)
        self.floats = spikec.compile(self.graph, target="host")
        self.right = tasks.score_of(self.floats, task.test)
        self.plain = self.compile(bits=8)

    def compile(self, target: str = "host", **options: Any) -> Any:
        """A build of the float network, calibrated on some of the training samples."""
        chosen = {"calibrate": self.task.train.x[:CALIBRATION], "labels": self.task.train.y[:CALIBRATION]}
        return spikec.compile(self.graph, target=target, **chosen, **options)

    def recover(self, build: Any, **options: Any) -> Any:
        """The build after a fine-tune on the training samples."""
        return spikec.recover(build, self.task.train.x, self.task.train.y, seed=self.seed, **options)

    def right_of(self, build: Any) -> Array:
        """Which test samples a build gets right."""
        return tasks.score_of(build, self.task.test)


def eight_bits(bench: Bench, row: Row) -> None:
    """Calibration alone."""
    row.add(bench.right, bench.right_of(bench.plain), bytes=size_ratio(bench.plain, bench.graph))


def eight_bits_loihi(bench: Bench, row: Row) -> None:
    """The same for the chip's grid."""
    build = bench.compile("loihi2")
    row.add(bench.right, bench.right_of(build))


def four_bits(bench: Bench, row: Row) -> None:
    """Four bits, fine-tuned."""
    row.add(bench.right, bench.right_of(bench.recover(bench.compile(bits=4), epochs=6)))


def pruned(bench: Bench, row: Row) -> None:
    """90 % of the synapses, in rounds."""
    build = bench.recover(bench.compile(bits=8, prune=0.9), epochs=6, rounds=6)
    left = sum(int(np.count_nonzero(n.weight)) for n in build.graph().nodes if isinstance(n, (Dense, Sparse)))
    whole = sum(n.weight.size for n in bench.graph.nodes if isinstance(n, Dense))
    timed = bench.task.test.x[:TIMED]
    row.add(
        bench.right,
        bench.right_of(build),
        synapses=left / whole,
        bytes=size_ratio(build, bench.graph),
        time=time_ratio(build, bench.plain, timed),
    )


def halved(bench: Bench, row: Row) -> None:
    """Half of the neurons of every hidden layer."""
    build = bench.recover(bench.compile(bits=8, prune_structured=0.5), epochs=10)
    outputs = bench.graph.shape_of(bench.graph.outputs[0][1].node)[0]
    share = (neurons(build.graph()) - outputs) / (neurons(bench.graph) - outputs)
    row.add(
        bench.right,
        bench.right_of(build),
        hidden_neurons=share,
        bytes=size_ratio(build, bench.graph),
        time=time_ratio(build, bench.plain, bench.task.test.x[:TIMED]),
    )


def early(bench: Bench, row: Row) -> None:
    """Answers as soon as they are clear."""
    build = _with_cutoff(bench.plain, bench, 0.002)
    decision = build.decide(bench.task.test.x, "c")
    whole = bench.right_of(bench.plain)
    row.add(whole, decision.answers == bench.task.test.y, steps=decision.mean_steps / bench.task.test.x.shape[1])


def both(bench: Bench, row: Row) -> None:
    """Space and time together: half of the neurons, 80 % of the rest's synapses, and the early answer."""
    build = bench.recover(bench.compile(bits=8, prune_structured=0.5), epochs=10)
    build = _with_cutoff(build, bench, 0.002)
    x = bench.task.test.x[:TIMED]

    def decide() -> float:
        begin = time.perf_counter()
        build.decide(x, "c")
        return time.perf_counter() - begin

    decide()
    ratio = float(np.median([decide() / seconds(bench.plain, x) for _ in range(ROUNDS)]))
    decision = build.decide(bench.task.test.x, "c")
    row.add(bench.right, decision.answers == bench.task.test.y, time=ratio, steps=decision.mean_steps / x.shape[1])


def _with_cutoff(build: Any, bench: Bench, budget: float) -> Any:
    from spikec.cutoff import calibrate

    name = build.graph().outputs[0][0]
    output = build.run(bench.task.train.x[: 4 * CALIBRATION], "c").outputs[name]
    build.cutoff = calibrate(output, bench.task.train.y[: 4 * CALIBRATION], name, budget)
    return build


#: name -> (what, points that may be lost, how it is measured).
ROWS: Final[dict[str, tuple[str, float | None, Callable[[Bench, Row], None]]]] = {
    "8bits": ("8 bits, calibrated", 0.2, eight_bits),
    "loihi": ("8 bits for Loihi 2, calibrated", 0.2, eight_bits_loihi),
    "4bits": ("4 bits, recovered", 0.5, four_bits),
    "pruned": ("90 % of the synapses pruned, recovered", 0.5, pruned),
    "halved": ("50 % of the neurons removed, recovered", 1.0, halved),
    "early": ("early answer, against the whole run", 0.2, early),
    "both": ("half of the neurons and early answer", 0.5, both),
}


def main(arguments: list[str]) -> int:
    """Print the table; 1 if a figure is not met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default=",".join(tasks.TASKS))
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| task | what | score | loss in points | allowed | met | ratios |\n|---|---|---|---|---|---|---|")
    missed = 0
    for name in options.tasks.split(","):
        task = tasks.load(name)
        benches = [Bench(task, seed) for seed in range(options.seeds)]
        score = 100 * float(np.mean([bench.right.mean() for bench in benches]))
        print(f"| {name} | float, {options.seeds} seeds | {score:.2f} % | | | | |", flush=True)
        for key in options.rows.split(","):
            what, limit, measure = ROWS[key]
            row = Row(what, limit)
            for bench in benches:
                measure(bench, row)
            print(row.text(name), flush=True)
            missed += not row.met()
    print(f"\n{missed} figures not met" if missed else "\nall met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
