"""`make bench` and `make bench-all`: the emitted C against the other ways to run the same networks on this processor.

    python benchmarks/compare.py [--all] [--rounds N] [--only W1,spoken] [--write]

Every contender runs in a process of its own (benchmarks/contenders), on one core, at batch 1, with the same input and the same
numbers; its output counts are compared with a float simulation before anything is timed. Rounds are interleaved: each runs every
contender once, so that a busy machine slows all of them, and medians are compared. --all takes every contender and W4, and more
rounds; without it only the quick ones run. --write puts the table into README.md and the plot into docs/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import spikec
from spikec.backends.c.backend import CBackend
from spikec.build import Build
from spikec.ir.graph import Graph
from spikec.ir.ops import Dense, Input, Neuron, Node, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.target import load_target

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "contenders"))

from network import Layer, Net

from benchmarks import environment, run, spoken, workloads

BUILD = workloads.ROOT / "build" / "bench"
FSDD = workloads.ROOT.parent / "shared" / "data" / "data_fsdd" / "fsdd.npz"
MARKS = ("<!-- bench -->", "<!-- /bench -->")
PLOT = workloads.ROOT / "docs" / "speed.png"
#: Contender -> its tool in the environment, samples a round, and whether it is quick enough for `make bench`.
CONTENDERS: dict[str, tuple[str, int, bool]] = {
    "numba_events": ("numba", 16, True),
    "jax_scan": ("jax", 16, True),
    "numpy_events": ("numpy", 8, True),
    "torchscript": ("torch", 4, False),
    "brian_cpp": ("brian2", 8, False),
    "sinabs_loop": ("sinabs", 2, False),
    "spikingjelly_loop": ("spikingjelly", 2, False),
    "norse_loop": ("norse", 2, False),
    "snntorch_loop": ("snntorch", 2, False),
}
OURS, ENGINE = "spikec, C", "spikec, NumPy"
#: Samples at once, where a tool has batches.
BATCH = 64
#: Output spikes that a contender may differ by before it counts as wrong: float sums in another order may move a few.
WRONG = 0.02


@dataclass
class Case:
    """A network for everybody: as a build, and as the contenders get it."""

    name: str
    what: str
    build: Build
    net: Net


@dataclass
class Row:
    """What one contender gave on one network."""

    title: str
    wrong: int = 0
    spikes: int = 0
    times: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    skip: str = ""


# -------------------------------------------------------------------------------------------------------------- networks


def _layers(name: str) -> tuple[list[Layer], dict[str, Any]]:
    data = workloads.load(name)
    theta = [(np.float32(t) - np.float32(workloads.BELOW)) * np.float32(workloads.UNIT) for t in data.get("th", ())]

    def layer(key: str, index: int, beta: float, **more: Any) -> Layer:
        return Layer(data[key].astype(np.float32) * np.float32(workloads.UNIT), beta, np.float32(theta[index]).reshape(1), **more)

    if name == "W1":
        return [layer(f"q{k + 1}", k, 0.875) for k in range(3)], data
    if name == "W2":
        return [
            layer("c1", 0, 1.0, stride=2, padding=1), layer("c2", 1, 1.0, padding=1), layer("c3", 2, 1.0, padding=1, pool=2),
            layer("f1", 3, 1.0, pool=2), layer("f2", 4, 1.0),
        ], data  # fmt: skip
    back = data["wr"].astype(np.float32) * np.float32(workloads.UNIT)
    return [layer("wi", 0, 0.875, alpha=0.75, recurrent=back), layer("wo", 1, 0.875, alpha=0.75)], data


def given(name: str) -> Case:
    """W1 to W4."""
    work = workloads.WORKLOADS[name]()
    what = (workloads.WORKLOADS[name].__doc__ or "").rstrip(".")
    build = spikec.compile(work.graph, target="host", bits=8)
    if name != "W4":
        layers, _ = _layers(name)
        return Case(name, what, build, Net(name, work.steps, work.counts, work.data, layers))
    data = workloads.load(name)
    unit = np.float32(workloads.UNIT)
    sparse = {
        "targets": np.load(workloads.DATA / "w4_tgt.npy"),
        "weights": np.load(workloads.DATA / "w4_w.npy").astype(np.float32) * unit,
        "bias": (data["bias"] / 16).astype(np.float32) * unit,
        "v0": data["v0"].astype(np.float32) * unit,
        "beta": np.float32(1 - 1 / 16),
        "theta": np.float32((4096 - workloads.BELOW) * workloads.UNIT),
    }
    return Case(name, what, build, Net(name, work.steps, work.counts, None, [], sparse))


def digits() -> Case:
    """The trained network of examples/digits on held-out digits."""
    sys.path.insert(0, str(workloads.ROOT / "examples" / "digits"))
    import data
    import model

    net = model.load()
    x = data.spikes(data.split()[1].images[:64])
    example = x[:2].swapaxes(0, 1).astype(np.float32)
    build = spikec.compile(net, example, time_axis=0, batch_axis=1, target="host", bits=8, name="digits")
    layers = []
    for fc, lif in ((net.fc1, net.lif1), (net.fc2, net.lif2), (net.fc3, net.lif3)):
        # It fires above its threshold, the contenders from theirs on: the next number up.
        theta = np.nextafter(np.float32(lif.threshold), np.float32(np.inf)).reshape(1)
        bias = None if fc.bias is None else fc.bias.detach().numpy()
        layers.append(Layer(fc.weight.detach().numpy(), float(lif.beta), theta, bias=bias))
    (counts,) = (array.sum(1).reshape(len(x), -1) for array in list(build.run(x, level="float").outputs.values())[:1])
    return Case("digits", "64-96-64-10, snnTorch, trained", build, Net("digits", x.shape[1], counts.astype(np.int64), x, layers))


def spoken_digits() -> Case:
    """The network of benchmarks/spoken.py on held-out recordings."""
    found = spoken.train(FSDD, BUILD / "fsdd.npz")
    program = parse_program(workloads.LIF)
    x = found["x"][:64]
    nodes: list[Node] = [Input(name="in", type=TensorType("spike", (x.shape[2],), "f32"))]
    layers = []
    for k in (1, 2, 3):
        nodes.append(Dense(name=f"fc{k}", inputs=(Ref(nodes[-1].name),), weight=found[f"w{k}"]))
        params = {"beta": np.float32(spoken.BETA), "theta": np.float32(1)}
        nodes.append(Neuron(name=f"l{k}", inputs=(Ref(f"fc{k}"),), program=program, params=params))
        layers.append(Layer(found[f"w{k}"], spoken.BETA, np.ones(1, np.float32)))
    graph = verify(Graph("spoken", "float", tuple(nodes), (("l3", Ref("l3")),)))
    build = spikec.compile(graph, target="host", bits=8)
    counts = build.run(x, level="float").outputs["l3"].sum(1).astype(np.int64)
    return Case("spoken", "128-128-96-10, trained on spoken digits", build, Net("spoken", x.shape[1], counts, x, layers))


# ------------------------------------------------------------------------------------------------------------ contenders


class Process:
    """A contender in its own process."""

    def __init__(self, module: str, path: Path, samples: int) -> None:
        worker = Path(__file__).with_name("contenders") / "worker.py"
        command = [str(environment.python(CONTENDERS[module][0])), str(worker), module, str(path), str(samples)]
        log = (BUILD / f"{module}.log").open("a")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self.first = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {"skip": "it failed; see the .log files in build/bench"}

    def ask(self, line: str) -> dict[str, Any]:
        """One line there and one back."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def our_program(case: Case) -> tuple[Path, Path, float]:
    """The emitted C with the timing harness, its event file, and the seconds that building took."""
    folder = BUILD / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    CBackend(load_target("host")).emit(case.build.graph(), folder)
    shutil.copy(Path(__file__).with_name("c") / "harness.c", folder)
    events = BUILD / f"{case.name}_ev.bin"
    x = case.net.x
    if x is None:
        rows, index = np.zeros(case.net.steps + 1, np.int32), np.zeros(0, np.uint16)
        head = [case.net.steps, 1, 0, 0]
    else:
        flat = x.reshape(len(x) * x.shape[1], -1)
        rows = np.concatenate([[0], np.cumsum(flat.sum(1))]).astype(np.int32)
        index = np.nonzero(flat)[1].astype(np.uint16)
        head = [x.shape[1], len(x), flat.shape[1], len(index)]
    events.write_bytes(np.array(head, np.int32).tobytes() + rows.tobytes() + index.tobytes())
    sources = [name for name in ("network.c", "weights.c", "harness.c") if (folder / name).exists()]
    begin = time.perf_counter()
    program = run.compile_c(folder, sources, run.FLAGS["native"], f"{case.name}_ours")
    return program, events, time.perf_counter() - begin


def bench(case: Case, chosen: list[str], absent: dict[str, str], rounds: int) -> dict[str, Row]:
    """All contenders on one network."""
    path = BUILD / f"{case.name}.npz"
    case.net.save(path)
    result: dict[str, Row] = {OURS: Row(OURS), ENGINE: Row(ENGINE)}
    program, events, built = our_program(case)
    _, counts = run.run_ours(program, events)
    wanted = case.net.counts
    result[OURS].wrong = int(np.abs(np.array(counts).reshape(wanted.shape) - wanted).sum())
    result[OURS].spikes = int(wanted.sum())
    graph = case.build.graph()
    memory = case.build.memory()
    print(f"\n{case.name}: {case.what}")
    print(
        f"  built in {built:.1f} s; {memory.total / 1e6:.2f} MB of states and buffers, {memory.constants / 1e6:.2f} MB of weights"
    )
    one = None if case.net.x is None else [case.net.x[k : k + 1].astype(np.int8) for k in range(8)]
    if one is None:
        result[ENGINE].skip = "the engine takes its number of steps from an input"
    else:
        checked = case.build.verify(one[0], backends=["numpy", "c"])
        if not checked.ok:
            raise SystemExit(f"{case.name}: the engines differ\n{checked.text()}")
        result[ENGINE].spikes = int(wanted[:8].sum())
        parts = [next(iter(case.build.run(x, "numpy").outputs.values())).sum(1).reshape(-1) for x in one]
        result[ENGINE].wrong = int(np.abs(np.array(parts) - wanted[:8]).sum())
    running: dict[str, Process] = {}
    for module in chosen:
        tool, samples, _ = CONTENDERS[module]
        title = titles()[module]
        result[title] = row = Row(title)
        if tool in absent:
            row.skip = absent[tool]
        else:
            process = Process(module, path, samples)
            row.skip = str(process.first.get("skip", ""))
            if not row.skip:
                row.wrong, row.spikes = int(process.first["wrong"]), int(process.first["spikes"])
                drift = abs(int(process.first["total"]) - row.spikes) if case.net.sparse is not None else row.wrong  # W4 is chaotic
                if drift > WRONG * max(row.spikes, 1):
                    row.skip = f"{row.wrong} of {row.spikes} output spikes are wrong"
            if row.skip:
                process.close()
            else:
                running[title] = process
        if row.skip:
            print(f"  {title}: left out: {row.skip}")
    core = {max(os.sched_getaffinity(0))}
    everything = os.sched_getaffinity(0)
    for _ in range(rounds):
        os.sched_setaffinity(0, core)
        result[OURS].times.append(run.run_ours(program, events)[0])
        if one is not None:
            begin = time.perf_counter()
            for x in one:
                case.build.run(x, "numpy")
            result[ENGINE].times.append((time.perf_counter() - begin) * 1e3 / len(one))
        for title, process in running.items():
            result[title].times.append(process.ask("one")["ms"])
        os.sched_setaffinity(0, everything)
    if case.net.x is not None:
        x = np.concatenate([case.net.x] * -(-BATCH * 4 // len(case.net.x)))[: BATCH * 4].astype(np.int8)
        case.build.run(x, "c", threads=1)
        for _ in range(min(rounds, 3)):
            os.sched_setaffinity(0, core)
            begin = time.perf_counter()
            case.build.run(x, "c", threads=1)
            result[OURS].rates.append(len(x) / (time.perf_counter() - begin))
            for title, process in running.items():
                result[title].rates.append(process.ask(f"batch {BATCH}")["rate"])
            os.sched_setaffinity(0, everything)
    for process in running.values():
        process.close()
    fastest = statistics.median(result[OURS].times)
    print(f"  {'':22} {'ms':>10} {'against C':>10} {'a second, in batches':>22} {'wrong spikes':>14}")
    for title, row in result.items():
        if row.times:
            ms = statistics.median(row.times)
            rate = f"{statistics.median(row.rates):,.0f}" if row.rates else ""
            print(f"  {title:22} {ms:10.4f} {ms / fastest:10.1f} {rate:>22} {row.wrong:6} of {row.spikes}")
    assert graph.level == "fixed"
    return result


def titles() -> dict[str, str]:
    """How each contender is called; read without importing it."""
    found = {}
    for module in CONTENDERS:
        text = (Path(__file__).with_name("contenders") / f"{module}.py").read_text(encoding="utf-8")
        found[module] = text.split('TITLE = "')[1].split('"')[0]
    return found


# --------------------------------------------------------------------------------------------------------------- results


def table(results: dict[str, dict[str, Row]], what: dict[str, str]) -> str:
    """Markdown: milliseconds an inference and, in brackets, times the emitted C; then throughput in batches."""
    order = [OURS, *[title for title in dict.fromkeys(t for rows in results.values() for t in rows) if title != OURS]]
    lines = ["| milliseconds an inference | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for title in order:
        cells = []
        for rows in results.values():
            row = rows.get(title)
            if row is None or not row.times:
                cells.append("–")
                continue
            ms, fastest = statistics.median(row.times), statistics.median(rows[OURS].times)
            cells.append(f"{ms:.3g}" + ("" if title == OURS else f" ({ms / fastest:,.1f}×)"))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    best = []
    for rows in results.values():
        rates = {t: statistics.median(row.rates) for t, row in rows.items() if row.rates}
        others = {t: rate for t, rate in rates.items() if t != OURS}
        if not rates or not others:
            best.append("–")
            continue
        top = max(others, key=lambda t: others[t])
        best.append(f"{rates[OURS]:,.0f}; {others[top]:,.0f} ({top})")
    lines += [
        "",
        "| inferences a second on one core, whole batches | " + " | ".join(results) + " |",
        "|---" * (len(results) + 1) + "|",
    ]
    lines.append("| spikec's C from Python; the best of the others | " + " | ".join(best) + " |")
    told = "; ".join(f"{name}: {text}" for name, text in what.items())
    return "\n".join([*lines, "", f"{told}. {machine()}."])


def machine() -> str:
    """The processor, for the line under the table."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"Measured on one core of {name}, batch 1, medians of interleaved rounds"


def plot(results: dict[str, dict[str, Row]], path: Path) -> None:
    """Bars: how many times as long as the emitted C, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ratios = {
        name: {
            t: statistics.median(r.times) / statistics.median(rows[OURS].times) for t, r in rows.items() if r.times and t != OURS
        }
        for name, rows in results.items()
    }
    order = list(dict.fromkeys(t for rows in ratios.values() for t in rows))
    figure, axes = plt.subplots(figsize=(8, 0.34 * len(order) * max(1, len(ratios)) ** 0.5 + 1.2))
    height = 0.8 / len(ratios)
    for k, (name, rows) in enumerate(ratios.items()):
        places = [n + k * height for n, t in enumerate(order) if t in rows]
        axes.barh(places, [rows[t] for t in order if t in rows], height, label=name)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks([n + 0.4 - height / 2 for n in range(len(order))], order)
    axes.invert_yaxis()
    axes.set_xlabel("time of one inference, as a multiple of spikec's C")
    axes.legend(fontsize="small")
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def write_readme(text: str, path: Path) -> None:
    """Put the table between the marks."""
    page = path.read_text(encoding="utf-8")
    head, rest = page.split(MARKS[0])
    path.write_text(head + MARKS[0] + "\n" + text + "\n" + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="the emitted C against other tools, as ratios within one run")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--tools", default="", help="contenders by file name, separated by commas")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    cases = {"W1": lambda: given("W1"), "W2": lambda: given("W2"), "W3": lambda: given("W3"), "digits": digits}
    cases |= {"spoken": spoken_digits} if FSDD.exists() else {}
    cases |= {"W4": lambda: given("W4")} if options.all or "W4" in options.only else {}
    if not workloads.SOURCE.is_dir():
        print(f"W1 to W4 left out: {workloads.SOURCE} is not there")
        cases = {"digits": digits} | ({"spoken": spoken_digits} if FSDD.exists() else {})
    else:
        workloads.ensure_data()
    chosen = [name for name in options.only.split(",") if name] or list(cases)
    tools = [name for name, row in CONTENDERS.items() if options.all or row[2]]
    tools = [name for name in options.tools.split(",") if name] or tools
    absent = environment.ensure()
    results, what = {}, {}
    for name in chosen:
        case = cases[name]()
        results[name] = bench(case, tools, absent, options.rounds or (7 if options.all else 3))
        what[name] = case.what
    text = table(results, what)
    print("\n" + text)
    (BUILD / "table.md").write_text(text + "\n", encoding="utf-8")
    plot(results, BUILD / "speed.png")
    if options.write:
        shutil.copy(BUILD / "speed.png", PLOT)
        picture = f"![time of one inference, as a multiple of spikec's C](docs/{PLOT.name})"
        write_readme(f"{text}\n\n{picture}", workloads.ROOT / "README.md")
    return 0


if __name__ == "__main__":
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        # One core for everybody, the NumPy engine in this process too: a library's threads would wait for each other on it.
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **one})
    sys.exit(main())
