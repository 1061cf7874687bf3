"""`make bench-passes`: what the optimizing passes cost in answers, and what they save.

    python benchmarks/passes.py [--tasks digits,mnist,...] [--rows 8bits,4bits,...] [--seeds N] [--jobs 2] [--write]
    python benchmarks/passes.py --validate [--tasks ...] [--rows ...]

For every task and seed a float network is trained (or the given one taken), compiled in several ways, and scored on the held-out
samples by the C engine. The loss is the float network's share of right answers less the compiled one's, on the same samples;
printed is the mean over all seeds, with a paired 95 % interval (bootstrap over seeds and samples). What passes look at and
recoveries learn from is training data alone. Times are processor seconds of the C engine on one core, both builds in turn, of each
the least of some rounds, making the network (spk_init) included. Bytes are the constants of the emitted C, against four bytes a
number of the float network; the footprint is constants, states and buffers together, against the 8-bit build's.

Finished rows are kept in build/bench-passes by data, network, settings and how they are measured: a command that was interrupted
goes on where it was. After a change of the compiler `--again` measures everything anew. `--kept` measures nothing: it prints what
was measured last, and tells which rows are missing. `--write` puts the table into docs/optimizing.md.

`--validate` never looks at the test samples: seed 10 + k learns from the training samples less their k-th fifth, and is tested on
that fifth. Settings are chosen with it.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import tasks

import spikec
from spikec.account import unaccounted
from spikec.backend import load_backend
from spikec.backends.c.backend import _compiled, checked_inputs
from spikec.cutoff import calibrate, calibrate_steps
from spikec.inputs import check_inputs, drawn
from spikec.ir.graph import Graph
from spikec.ir.ops import Conv, Dense, Sparse
from spikec.ir.types import Array
from spikec.score import scored_output

#: Samples that quantizers and budgets are calibrated on; where samples are long, fewer.
CALIBRATION, LONG = 512, 32
#: Rounds of a time measurement, and the samples of each at most.
ROUNDS, TIMED = 15, 1000
#: Share of the answers that an early answer, or fewer steps, or simpler neurons may cost on the calibration data; and what an early
#: answer of fewer neurons may cost, where half a point may go in all.
BUDGET, BOTH = 0.002, 0.003
#: Which share of the steps both may take instead where there are samples for it that nothing learns from: these are few, and tell
#: more of a share of the steps than of a share of the answers.
UNSEEN, UNSEEN_BOTH = 0.48, 0.55
PAGE: Final = tasks.ROOT / "docs" / "optimizing.md"
#: The first seed of those that settings are chosen with.
VALIDATION: Final = 10
BEGIN, END = "<!-- bench-passes -->", "<!-- /bench-passes -->"
HEAD: Final = "| task | what | score | loss in points | allowed | other figures (demanded) | met |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Found:
    """A seed's outcome: what was right before and after, sample by sample, and further figures. Or why there is none."""

    before: Array
    after: Array
    figures: dict[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass
class Row:
    """One line of the table: the outcomes of all seeds, the points that may be lost, and how large figures may be."""

    what: str
    limit: float | None
    most: dict[str, float] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)

    def loss(self) -> tuple[float, float, float]:
        """Mean loss in points and its paired 95 % interval."""
        each = [100 * (one.before.astype(float) - one.after.astype(float)) for one in self.found]
        rng = np.random.default_rng(0)
        means = []
        for _ in range(2000):
            chosen = [each[k] for k in rng.integers(0, len(each), len(each))]
            means.append(np.mean([seed[rng.integers(0, len(seed), len(seed))].mean() for seed in chosen]))
        low, high = np.quantile(means, [0.025, 0.975])
        return float(np.mean([seed.mean() for seed in each])), float(low), float(high)

    def figures(self) -> dict[str, float]:
        """Means over the seeds that have the figure."""
        names = dict.fromkeys(name for one in self.found for name in one.figures)
        return {name: float(np.mean([one.figures[name] for one in self.found if name in one.figures])) for name in names}

    def met(self) -> bool | None:
        """Whether loss and figures are within what was asked for; None where nothing was."""
        if self.limit is None and not self.most:
            return None
        loss_met = self.limit is None or self.loss()[0] <= self.limit + 1e-9
        figures = self.figures()
        return loss_met and all(figures[name] <= most + 1e-9 for name, most in self.most.items())

    def text(self, task: str) -> str:
        """A row of the Markdown table."""
        if reason := next((one.reason for one in self.found if one.reason), ""):
            return f"| {task} | {self.what} | | | | {reason} | |"
        mean, low, high = self.loss()
        score = 100 * float(np.mean([one.after.mean() for one in self.found]))
        told = []
        for name, value in self.figures().items():
            demanded = f" (≤ {self.most[name]:g})" if name in self.most else ""
            told.append(f"{name} {value:.3g}{demanded}")
        limit = "" if self.limit is None else f"{self.limit:g}"
        span = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
        verdict = {None: "", True: "yes", False: "**no**"}[self.met()]
        return f"| {task} | {self.what} | {score:.2f} % | {span} | {limit} | {', '.join(told)} | {verdict} |"


# ------------------------------------------------------------------------------------------------------------- figures


def float_bytes(graph: Any) -> int:
    """Bytes of the float32 model's weights, biases and parameters of neurons."""
    layers = [node for node in graph.nodes if isinstance(node, (Dense, Sparse, Conv))]
    weights = sum(node.weight.size + (0 if node.bias is None else node.bias.size) for node in layers)
    return 4 * int(weights + sum(array.size for node in graph.neurons for array in node.params.values()))


def size_ratio(build: Any, graph: Any) -> float:
    """Constants of the emitted C over the bytes of the float32 model."""
    return float(build.memory().constants) / float_bytes(graph)


def footprint_ratio(build: Any, other: Any) -> float:
    """Constants and memory together where a build runs, over those of another."""
    one, two = build.memory(), other.memory()
    return float(one.total + one.constants) / float(two.total + two.constants)


def synapses(graph: Any) -> int:
    """Synapses whose weight is not zero."""
    return sum(int(np.count_nonzero(node.weight)) for node in graph.nodes if isinstance(node, (Dense, Sparse, Conv)))


def hidden(graph: Any) -> int:
    """Neurons that are no outputs."""
    shown = {ref.node for _, ref in graph.outputs}
    return sum(graph.types[node.name][0][1].size for node in graph.neurons if node.name not in shown)


def hidden_that_ran(build: Any, x: Array, engine: str) -> int:
    """Hidden neurons of which an engine returned spikes."""
    graph = build.graph()
    shown = {ref.node for _, ref in graph.outputs}
    records = build.run(x, engine, record="all").records
    return sum(int(np.prod(records[n.name].shape[2:])) for n in graph.neurons if n.name not in shown)


def time_ratio(build: Any, other: Any, x: Array) -> float:
    """What the compiled code of `build` takes, with its cutoff if it has one, over what the whole run of `other` takes."""

    def timed(one: Any, cutoff: Any) -> Callable[[], float]:
        graph = one.graph()
        engine: Any = load_backend("c", one.target)
        compiled = _compiled(graph, (), engine._choices(graph))
        given = checked_inputs(graph, compiled.network, check_inputs(graph, x[:TIMED]))  # merged where steps are
        name = scored_output(graph)
        port = compiled.network.output(name)
        margins = cutoff.margins(x.shape[1]) if cutoff else np.array([math.inf])

        def run() -> float:
            begin = time.thread_time()
            compiled.decide(given, graph.max_lag, port, margins)
            return time.thread_time() - begin

        return run

    pair = timed(build, build.cutoff), timed(other, None)
    rounds = [[run() for run in pair] for _ in range(ROUNDS)]
    return min(one for one, _ in rounds) / min(two for _, two in rounds)


# ---------------------------------------------------------------------------------------------------------------- rows


class Bench:
    """One task and seed: the float network, the plain 8-bit build, and what several rows share."""

    def __init__(self, task: tasks.Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.graph = task.network(seed)
        count = LONG if task.per_step else CALIBRATION
        order = np.random.default_rng(seed).permutation(len(task.train.y))[:count]
        self.calibration = {"calibrate": task.train.x[order], "labels": task.train.y[order]}

    @cached_property
    def right(self) -> Array:
        """Which test samples the float network gets right."""
        return tasks.score_of(spikec.compile(self.graph, target="host"), self.task)

    @cached_property
    def plain(self) -> Any:
        """8 bits, calibrated."""
        return self.compile(bits=8)

    @cached_property
    def pruned(self) -> Any:
        """A tenth of the synapses."""
        whole = self.task.whole
        asked = {"prune": 0.9} if whole is None else {"prune_structured": whole, "max_synapses": synapses(self.graph) // 10}
        return self.recover(self.compile(bits=8, **asked))

    @cached_property
    def blocks(self) -> Any:
        """The same in blocks of 16 targets."""
        return self.recover(self.compile(bits=8, prune=0.9, prune_pattern="block16"))

    @cached_property
    def halved(self) -> Any:
        """Half of the hidden neurons."""
        return self.recover(self.compile(bits=8, prune_structured=0.5))

    @cached_property
    def fewer(self) -> Any:
        """As many of the hidden neurons as the task has where answers come early, too."""
        share = self.task.fewer
        return self.halved if share == 0.5 else self.recover(self.compile(bits=8, prune_structured=share))

    def compile(self, target: str = "host", **options: Any) -> Any:
        """A build of the float network, calibrated on some of the training samples."""
        return spikec.compile(self.graph, target=target, **self.calibration, **self.task.options, **options)

    def recover(self, build: Any) -> Any:
        """The build after a fine-tune on the training samples, with the usual options."""
        data, task = self.task.tuning or self.task.train, self.task
        return spikec.recover(
            build,
            data.x,
            data.y,
            epochs=task.epochs,
            batch_size=task.batch_size,
            learning_rate=task.rate,
            drop=task.drop,
            early=task.early,
            seed=self.seed,
            **task.recovery,
        )

    def after(self, build: Any, **figures: float) -> Found:
        """What a build gets right against the float network."""
        return Found(self.right, tasks.score_of(build, self.task), figures)

    def early(self, build: Any, budget: float, share: float) -> tuple[Array, float]:
        """Which answers are right when they come early, and the share of the steps that they take; the build has its cutoff now."""
        name = scored_output(build.graph())
        given = self.task.unseen or self.task.train
        seen = check_inputs(build.graph(), given.x)
        output, *harder = (build.run(each, "c").outputs[name] for each in chain([seen], drawn(seen)))
        if self.task.unseen:
            build.cutoff = calibrate_steps(output, given.y, name, share, harder)
        else:
            build.cutoff = calibrate(output, given.y, name, budget, harder)
        decision = build.decide(self.task.test.x, "c")
        return decision.answers == self.task.test.y, decision.mean_steps / self.task.test.x.shape[1]

    def none(self, reason: str) -> Found:
        """A row that does not apply."""
        return Found(self.right, self.right, reason=reason)


NO_EARLY: Final = "does not apply: an answer is due at every step"


def eight_bits(bench: Bench) -> Found:
    """Calibration alone."""
    return bench.after(bench.plain, bytes=size_ratio(bench.plain, bench.graph))


def eight_bits_loihi(bench: Bench) -> Found:
    """The same for the chip's grid."""
    return bench.after(bench.compile("loihi2"))


def four_bits(bench: Bench) -> Found:
    """Four bits, fine-tuned."""
    return bench.after(bench.recover(bench.compile(bits=4)))


def pruned(bench: Bench) -> Found:
    """90 % of the synapses."""
    return _pruned(bench, bench.pruned)


def pruned_blocks(bench: Bench) -> Found:
    """The same in blocks."""
    return _pruned(bench, bench.blocks)


def _pruned(bench: Bench, build: Any) -> Found:
    left = synapses(build.graph()) / synapses(bench.graph)
    x = bench.task.test.x
    figures = {"bytes": size_ratio(build, bench.graph), "time": time_ratio(build, bench.plain, x)}
    return bench.after(build, synapses=left, **figures, footprint=footprint_ratio(build, bench.plain))


def halved(bench: Bench) -> Found:
    """Half of the neurons of every hidden layer, counted where they run."""
    build, whole = bench.halved, hidden(bench.graph)
    x = bench.task.test.x
    figures = {name: hidden_that_ran(build, x[:2, :20], name) / whole for name in ("reference", "numpy", "c")}
    if bench.seed == 0 and load_backend("lava", "loihi2").available() is None and not bench.task.per_step:
        figures["lava"] = hidden_that_ran(bench.compile("loihi2", prune_structured=0.5), x[:1, :6], "lava") / whole
    figures |= {"bytes": size_ratio(build, bench.graph), "time": time_ratio(build, bench.plain, x)}
    return bench.after(build, **figures)


def early(bench: Bench) -> Found:
    """Answers as soon as they are clear."""
    if bench.task.per_step:
        return bench.none(NO_EARLY)
    build = bench.compile(bits=8)
    right, steps = bench.early(build, BUDGET, UNSEEN)
    return Found(tasks.score_of(bench.plain, bench.task), right, {"steps": steps})


def both(bench: Bench) -> Found:
    """Space and time together: fewer neurons, and the early answer."""
    if bench.task.per_step:
        return bench.none(NO_EARLY)
    build = bench.fewer
    right, steps = bench.early(build, BOTH, UNSEEN_BOTH)
    left = hidden(build.graph()) / hidden(bench.graph)
    time = time_ratio(build, bench.plain, bench.task.test.x)
    return Found(bench.right, right, {"time": time, "steps": steps, "neurons": left})


def shorter(bench: Bench) -> Found:
    """Half of the steps, fine-tuned in them."""
    if bench.task.per_step:
        return bench.none(NO_EARLY)
    x = bench.task.test.x
    build = bench.recover(bench.compile(bits=8, steps_to=x.shape[1] // 2))
    steps = next(iter(check_inputs(build.graph(), x[:1]).values())).shape[1]
    return bench.after(build, steps=steps / x.shape[1], time=time_ratio(build, bench.plain, x))


def windows(bench: Bench) -> Found:
    """Layers in the steps that decide only, as far as the calibration data allow."""
    if bench.task.per_step:
        return bench.none(NO_EARLY)
    build = bench.compile(bits=8, windows_loss=BUDGET)
    (told,) = [entry.measured for entry in build.ledger if "loss with less input" in entry.measured] or [{}]
    share = told["operations"] / told["of operations"] if told else 1.0
    found = tasks.score_of(build, bench.task)
    before = tasks.score_of(bench.plain, bench.task)
    return Found(before, found, {"operations": share, "time": time_ratio(build, bench.plain, bench.task.test.x)})


def delays_rounded(bench: Bench) -> Found:
    """Delays in multiples of two steps."""
    return _delays(bench, delay_step=2)


def delays_shared(bench: Bench) -> Found:
    """Three different delays a layer."""
    return _delays(bench, share_delays=3)


def delays_short(bench: Bench) -> Found:
    """Delays of half the length."""
    return _delays(bench, max_delay=delay_values(bench.graph)[-1] // 2)


def delays_axonal(bench: Bench) -> Found:
    """One delay for each source."""
    return _delays(bench, share_delays="axonal")


def _delays(bench: Bench, **options: Any) -> Found:
    build = bench.compile(bits=8, **options)
    calibrated = float(np.mean(tasks.score_of(build, bench.task)))
    build = bench.recover(build)
    found = bench.after(build, delays=len(delay_values(build.graph())), longest=delay_values(build.graph())[-1])
    ring, whole = (item.memory().total for item in (build, bench.plain))
    lost = 100 * (float(np.mean(bench.right)) - calibrated)
    found.figures.update({"memory": ring / whole, "points before recovery": lost})
    return found


def delay_values(graph: Graph) -> list[int]:
    """The different delays of synapses with weights, rising."""
    layers = [node for node in graph.nodes if isinstance(node, (Dense, Sparse, Conv)) and node.delay is not None]
    return sorted({int(value) for node in layers for value in np.unique(node.delay[node.weight != 0])})


def simpler(bench: Bench) -> Found:
    """Cheaper neurons, as far as the calibration data allow."""
    build = bench.compile(bits=8, simplify=BUDGET)
    done = [entry for entry in build.ledger if entry.pass_name == "simplify" and entry.kind == "approximation"]
    return bench.after(build, replacements=float(len(done)))


def unasked(bench: Bench) -> Found:
    """With no optimization asked for: what the ledger does not list, for both kinds of integers."""
    builds = {"host": bench.plain, "loihi2": bench.compile("loihi2")}
    return Found(bench.right, bench.right, {name: float(len(unaccounted(build))) for name, build in builds.items()})


#: name -> (what, points that may be lost, how large figures may be, how it is measured).
ROWS: Final[dict[str, tuple[str, float | None, dict[str, float], Callable[[Bench], Found]]]] = {
    "8bits": ("8 bits, calibrated", 0.2, {"bytes": 0.3}, eight_bits),
    "loihi": ("8 bits for Loihi 2, calibrated", 0.2, {}, eight_bits_loihi),
    "4bits": ("4 bits, recovered", 0.5, {}, four_bits),
    "pruned": ("90 % of the synapses pruned, recovered", 0.5, {"bytes": 0.15, "time": 1.0}, pruned),
    "blocks": ("90 % pruned in blocks of 16, recovered", 0.5, {"bytes": 0.15, "time": 1.0}, pruned_blocks),
    "halved": ("50 % of the neurons removed, recovered", 1.0, {"reference": 0.5, "numpy": 0.5, "c": 0.5, "lava": 0.5}, halved),
    "early": ("early answer, against the whole run", 0.2, {"steps": 0.5}, early),
    "both": ("fewer neurons and early answer", 0.5, {"time": 0.4}, both),
    "shorter": ("half of the steps, recovered", 0.5, {"steps": 0.5}, shorter),
    "windows": ("steps without a decision left out, layer by layer", 0.2, {"operations": 0.7}, windows),
    "delay-step": ("delays in multiples of two, recovered", 0.5, {"delays": 4}, delays_rounded),
    "delay-share": ("three different delays, recovered", 0.5, {"delays": 3}, delays_shared),
    "delay-short": ("delays of half the length, recovered", 0.5, {"delays": 4, "memory": 0.75}, delays_short),
    "delay-axonal": ("one delay for each source, recovered", 0.5, {}, delays_axonal),
    "simpler": ("simpler neurons", None, {}, simpler),
    "unasked": ("nothing asked for: changes not in the ledger", None, {"host": 0, "loihi2": 0}, unasked),
}


#: Rows in which nothing is recovered, which takes seconds.
QUICK: Final = ("8bits", "loihi", "early", "windows", "simpler", "unasked")
#: Rows of tasks whose networks have delays, which show these and their plain build alone.
DELAYS: Final = ("delay-step", "delay-share", "delay-short", "delay-axonal")


def rows_of(name: str, keys: Iterable[str]) -> list[str]:
    """Those of the rows that a task has."""
    return [key for key in keys if key == "8bits" or (key in DELAYS) == name.endswith("-delays")]


# ------------------------------------------------------------------------------------------------------------- running


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:24]


def row_path(bench: Bench, key: str) -> Path:
    """Where a finished row lies: named by what decides it."""
    task, (_, _, _, measure) = bench.task, ROWS[key]
    parts = [part for part in (task.train, task.test, task.tuning, task.unseen) if part is not None]
    data = [np.ascontiguousarray(array).tobytes() for part in parts for array in (part.x, part.y)]
    settings = f"{key} {bench.seed} {task.epochs} {task.batch_size} {task.drop} {task.rate}" + (
        f" {task.early}" if task.early else ""
    )
    settings += "".join(f" {name} {value}" for name, value in task.recovery.items())
    settings += "" if task.whole is None else f" whole {task.whole}"
    settings += f" fewer {task.fewer}" if key == "both" else ""
    settings += f" unseen {UNSEEN} {UNSEEN_BOTH}" if task.unseen and key in ("early", "both") else ""
    told = (*data, bench.graph.fingerprint.encode(), settings.encode(), inspect.getsource(measure).encode())
    return tasks.KEPT / "rows" / f"{task.name}-{bench.seed}-{key}-{_digest(*told)}.npz"


def stored(path: Path) -> Found:
    """A finished row."""
    with np.load(path, allow_pickle=False) as kept:
        told = json.loads(str(kept["told"]))
        return Found(kept["before"], kept["after"], told["figures"], told["reason"])


def units_of(names: Iterable[str], keys: list[str], seeds: int | None, first: int) -> list[tuple[str, int, list[str]]]:
    """Tasks and seeds with their rows, a seed of all tasks after the other; seeds: how many, if not those of `tasks.SEEDS`."""
    found = []
    for name in names:
        count, quick = (seeds, seeds) if seeds else tasks.SEEDS.get(name, tasks.FEWEST)
        for k in range(max(count, quick)):
            found.append((name, first + k, keys if k < count else [key for key in keys if key in QUICK]))
    return sorted(found, key=lambda unit: unit[1])


def latest(units: Iterable[tuple[str, int, list[str]]]) -> dict[tuple[str, int], tuple[Array, dict[str, Found]]]:
    """What was measured last of every row, whatever has changed since; of seeds whose plain build was measured."""
    outcomes = {}
    for name, seed, keys in units:
        rows = {}
        for key in dict.fromkeys(["8bits", *rows_of(name, keys)]):
            paths = (tasks.KEPT / "rows").glob(f"{name}-{seed}-{key}-*.npz")
            if path := max(paths, key=lambda path: path.stat().st_mtime, default=None):
                rows[key] = stored(path)
            else:
                print(f"{name}, seed {seed}: {key} is not measured yet", file=sys.stderr)
        if "8bits" in rows:
            outcomes[name, seed] = (rows["8bits"].before, rows)
    return outcomes


def measured(bench: Bench, key: str, again: bool = False) -> Found:
    """A row's outcome, from the folder where it is there; with `again` measured in any case."""
    path = row_path(bench, key)
    if path.exists() and not again:
        return stored(path)
    found = ROWS[key][3](bench)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = json.dumps({"figures": {name: float(value) for name, value in found.figures.items()}, "reason": found.reason})
    np.savez(path, before=found.before, after=found.after, told=np.array(told))
    return found


def unit(name: str, seed: int, rows: list[str], again: bool) -> tuple[Array, dict[str, Found]]:
    """All rows of a task and a seed, and which answers of the float network are right; runs in a process of its own."""
    torch.set_num_threads(1)
    bench = Bench(tasks.load(name, seed - VALIDATION if seed >= VALIDATION else None), seed)
    outcome = {}
    for key in rows_of(name, rows):
        begin = time.perf_counter()
        outcome[key] = measured(bench, key, again)
        loss = 100 * float(np.mean(bench_loss(outcome[key])))
        print(f"{name}, seed {seed}: {key} {loss:+.2f} ({time.perf_counter() - begin:.0f} s)", file=sys.stderr, flush=True)
    return bench.right, outcome


def bench_loss(found: Found) -> Array:
    """Loss sample by sample."""
    return np.asarray(found.before.astype(float) - found.after.astype(float))


def table(
    names: Iterable[str], keys: list[str], outcomes: dict[tuple[str, int], tuple[Array, dict[str, Found]]]
) -> tuple[str, int, int]:
    """The table, how many rows demand something, and how many of those are not met."""
    lines, demanded, missed = [HEAD], 0, 0
    for name in names:
        seeds = sorted(seed for task, seed in outcomes if task == name)
        if not seeds:
            continue
        score = 100 * float(np.mean([outcomes[name, seed][0].mean() for seed in seeds]))
        lines.append(f"| {name} | float, {len(seeds)} seeds | {score:.2f} % | | | | |")
        for key in keys:
            what, limit, most, _ = ROWS[key]
            count = sum(key in outcomes[name, seed][1] for seed in seeds)
            what += f" ({count} of {len(seeds)} seeds)" if count < len(seeds) else ""
            found = [outcomes[name, seed][1][key] for seed in seeds if key in outcomes[name, seed][1]]
            if not found:
                continue
            known = {figure for one in found for figure in one.figures}
            row = Row(what, limit, {figure: value for figure, value in most.items() if figure in known}, found)
            lines.append(row.text(name))
            if not found[0].reason and row.met() is not None:
                demanded += 1
                missed += not row.met()
    return "\n".join(lines), demanded, missed


def write(text: str) -> None:
    """Put the table between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Print the table; 1 if a figure is not met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default=",".join(tasks.TASKS))
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", type=int, help="how many; 3 unless told, of spoken digits 6, and 10 where nothing is recovered")
    parser.add_argument("--jobs", type=int, default=2, help="tasks and seeds that are measured at once")
    parser.add_argument("--write", action="store_true", help="put the table into docs/optimizing.md")
    parser.add_argument("--again", action="store_true", help="measure what is kept, too")
    parser.add_argument("--kept", action="store_true", help="measure nothing: the table of what is kept")
    parser.add_argument("--validate", action="store_true", help="test on fifths of the training samples")
    options = parser.parse_args(arguments)
    first = VALIDATION if options.validate else 0
    names, keys = options.tasks.split(","), options.rows.split(",")
    units = units_of(names, keys, options.seeds, first)
    outcomes: dict[tuple[str, int], tuple[Array, dict[str, Found]]] = {}
    if options.kept:
        outcomes = latest(units)
    elif options.jobs > 1:
        with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
            waiting = {pool.submit(unit, name, seed, rows, options.again): (name, seed) for name, seed, rows in units}
            for done in as_completed(waiting):
                outcomes[waiting[done]] = done.result()
    else:
        for name, seed, rows in units:
            outcomes[name, seed] = unit(name, seed, rows, options.again)
    text, demanded, missed = table(names, keys, outcomes)
    print(text)
    print(f"\n{demanded - missed} of {demanded} rows met")
    if options.write and not options.validate:
        write(text)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
