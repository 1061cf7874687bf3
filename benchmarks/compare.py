"""`make bench` and `make bench-all`: the emitted C against the other ways to run the same networks on this processor.

    python benchmarks/compare.py [--all] [--rounds N] [--only W1,spoken] [--tools A,B] [--resume] [--write]
    python benchmarks/compare.py --prepare          # the environments, data and trained networks, nothing else
    python benchmarks/compare.py --table [--write]  # what was measured before, once more

Every contender runs in a process of its own (benchmarks/contenders), on one core, at batch 1, with the same input and the same
numbers; its output counts are compared with a float simulation before anything is timed. Rounds are interleaved: each runs every
contender once, and medians are compared. On a busy machine the processor's time is taken instead of the wall's: a long inference
would be interrupted more often than a short one. A contender that has had its seconds on a network leaves after three rounds. Then
those that can take several samples at once do.

--all takes every contender and W4, and more rounds; without it only the quick ones run. After each network all that is known goes
into build/bench/all.json (without --all quick.json): --resume takes from there what a run before has measured, --only renews some
networks of it. --write puts the table into README.md and the plot into docs/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import spikec
from spikec.backends.c.backend import CBackend
from spikec.build import Build
from spikec.cache import cache_dir
from spikec.ir.graph import Graph
from spikec.ir.ops import Dense, Input, Neuron, Node, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program, write_graph
from spikec.ir.types import TensorType
from spikec.target import load_target

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "contenders"))

from network import Layer, Net

from benchmarks import environment, results, run, spoken, workloads
from benchmarks.results import OURS, Network, Row

BUILD = workloads.ROOT / "build" / "bench"
FSDD = workloads.ROOT.parent / "shared" / "data" / "data_fsdd" / "fsdd.npz"
PLOT = workloads.ROOT / "docs" / "speed.png"
#: Contender -> its tool in the environment, samples a round, and whether it is quick enough for `make bench`.
CONTENDERS: dict[str, tuple[str, int, bool]] = {
    "spikec_c": ("spikec", 16, True),
    "spikec_numpy": ("spikec", 8, True),
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
#: Samples at once, where a tool has batches.
BATCHES = (16, 64, 256)
#: Output spikes that a contender may differ by before it counts as wrong: float sums in another order may move a few.
WRONG = 0.02
#: Rounds that every contender runs; seconds that it may take in all on a network once it has; rounds in batches; seconds that one
#: batch may take; and seconds without an answer after which it is ended.
ROUNDS, SECONDS, BATCH_ROUNDS, BATCH_SECONDS, SILENT = 3, 5.0, 3, 6.0, 240.0
#: The processor's core that everything is timed on.
CORE = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


@dataclass
class Case:
    """A network for everybody: as a build, and as the contenders get it."""

    name: str
    what: str
    build: Build
    net: Net


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


def spoken_file() -> Path:
    """Where the trained network is kept, for every checkout with the same recipe."""
    recipe = hashlib.sha256(Path(spoken.__file__).read_bytes()).hexdigest()[:12]
    return cache_dir() / "perf" / f"spoken-{recipe}.npz"


def spoken_digits() -> Case:
    """The network of benchmarks/spoken.py on held-out recordings."""
    found = spoken.train(FSDD, spoken_file())
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

    def __init__(self, module: str, path: Path, core: int, clock: str) -> None:
        tool, samples, _ = CONTENDERS[module]
        worker = Path(__file__).with_name("contenders") / "worker.py"
        python = Path(sys.executable) if tool == "spikec" else environment.python(tool)
        self.log = BUILD / f"{module}.log"
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [str(python), str(worker), module, str(path), str(samples), str(core)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"SPIKEC_BENCH_CLOCK": clock},
            )
        self.first = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], SILENT)[0]:
            self.process.kill()
            return {"skip": f"no answer in {SILENT:.0f} seconds"}
        line = self.process.stdout.readline()
        if line:
            return dict(json.loads(line))
        told = self.log.read_text(encoding="utf-8").strip().splitlines()
        return {"skip": f"it failed: {told[-1][:200] if told else 'without a word'}"}

    def pin(self, core: int) -> None:
        """All its threads to one core."""
        if hasattr(os, "sched_setaffinity"):
            for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})

    def ask(self, line: str) -> dict[str, Any]:
        """One line there and one back."""
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended; its log says why
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        return self._read()

    def close(self) -> dict[str, Any]:
        """End it; the last it says is its peak memory."""
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended before
            self.process.stdin.close()
        last = self._read() if self.process.poll() is None else {}
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return last


def others() -> float:
    """The share of the core that other processes take, of half a second."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if before:
        os.sched_setaffinity(0, {CORE})
    wall, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < 0.5:
        pass
    wall, used = time.perf_counter() - wall, time.process_time() - used
    if before:
        os.sched_setaffinity(0, before)
    return max(0.0, 1 - used / wall)


def our_program(case: Case) -> tuple[Path, Path, float]:
    """The emitted C with the timing harness, its event file, and the seconds that `make` takes in the emitted folder."""
    folder = BUILD / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    CBackend(load_target("host")).emit(case.build.graph(), folder)
    built = run.build_seconds(folder)
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
    return run.compile_c(folder, sources, run.FLAGS["native"], f"{case.name}_ours"), events, built


def start(module: str, path: Path, sparse: bool, core: int, clock: str, same: int | None = None) -> tuple[Row, Process | None]:
    """A contender whose counts are right and which waits for its rounds; or why there is none.

    same: for an engine of spikec, how many spikes the emitted C has otherwise than the float simulation: as many as that.
    """
    row = Row(titles()[module])
    process = Process(module, path, core, clock)
    row.skip = str(process.first.get("skip", ""))
    if not row.skip:
        row.wrong, row.spikes = int(process.first["wrong"]), int(process.first["spikes"])
        # W4 is chaotic: a sum in another order moves every later spike, and only the totals can be compared.
        drift = abs(int(process.first["total"]) - row.spikes) if sparse else row.wrong
        if drift > WRONG * max(row.spikes, 1) if same is None else row.wrong != same:
            row.skip = f"{row.wrong} of {row.spikes} output spikes are wrong"
    if row.skip:
        process.close()
        return row, None
    process.pin(CORE)
    return row, process


def bench(case: Case, chosen: list[str], absent: dict[str, str], rounds: int) -> Network:
    """All contenders on one network."""
    path = BUILD / f"{case.name}.npz"
    case.net.save(path)
    taken = others()
    clock = "cpu" if taken > results.BUSY else "wall"
    write_graph(case.build.graph(), path.with_name(f"{case.name}-graph.sir"))  # its arrays go into an .npz beside it
    program, events, built = our_program(case)
    memory = case.build.memory()
    network = Network(case.what, {}, built, memory.constants, taken)
    print(f"\n{case.name}: {case.what}")
    print(
        f"  built in {built:.1f} s; {memory.total / 1e6:.2f} MB of states and buffers, {memory.constants / 1e6:.2f} MB of weights"
    )
    ours = network.rows[OURS] = Row(OURS)
    counts, wanted = run.run_ours(program, events)[1], case.net.counts
    other = np.abs(np.array(counts).reshape(wanted.shape) - wanted)  # weights of eight bits
    ours.wrong = int(other.sum())
    ours.spikes = int(wanted.sum())
    ours.megabytes = run.peak(program, events) / 1024
    if case.net.x is not None:
        checked = case.build.verify(case.net.x[:1].astype(np.int8), backends=["numpy", "c"])
        if not checked.ok:
            raise SystemExit(f"{case.name}: the engines differ\n{checked.text()}")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    running: dict[str, Process] = {}

    def same(module: str) -> int | None:
        tool, samples, _ = CONTENDERS[module]
        return int(other[:samples].sum()) if tool == "spikec" else None

    with ThreadPoolExecutor(len(cores)) as pool:  # what is prepared is not timed
        waiting = {
            module: pool.submit(start, module, path, case.net.sparse is not None, cores[k % len(cores)], clock, same(module))
            for k, module in enumerate(chosen)
            if CONTENDERS[module][0] not in absent
        }
        for module in chosen:
            title = titles()[module]
            if module in waiting:
                network.rows[title], process = waiting[module].result()
                if process is not None:
                    running[title] = process
            else:
                network.rows[title] = Row(title, skip=absent[CONTENDERS[module][0]])

    def answer(title: str, line: str) -> dict[str, Any]:
        """What a contender says, or nothing: then it is out."""
        found = running[title].ask(line)
        if "skip" in found:
            network.rows[title].skip = str(found["skip"])
            running.pop(title).close()
            return {}
        return found

    spent = dict.fromkeys(running, 0.0)
    for number in range(rounds):
        ours.times.append(run.run_ours(program, events, CORE, clock)[0])
        for title in list(running):
            if number >= ROUNDS and spent[title] > SECONDS:
                continue
            begin = time.perf_counter()
            if found := answer(title, "one"):
                network.rows[title].times.append(found["ms"])
            spent[title] += time.perf_counter() - begin
    if case.net.x is not None:
        batches(network, [title for title in running if title in batched()], answer)
    for title, process in running.items():
        network.rows[title].megabytes = float(process.close().get("megabytes", 0.0))
    for title, row in network.rows.items():
        if row.skip:
            print(f"  {title}: left out: {row.skip}")
    print(f"  {'':24} {'ms':>10} {'against C':>10} {'a second, at best':>18} {'MB':>7} {'wrong spikes':>14}")
    for title, row in network.rows.items():
        best = row.best()
        if row.times and best is not None:
            rate = f"{best[0]:,.0f} ({best[1]})"
            told = f"{row.ms:10.4f} {row.ms / ours.ms:10.1f} {rate:>18} {row.megabytes:7.1f} {row.wrong:6} of {row.spikes}"
            print(f"  {title:24} {told}", flush=True)
    return network


def batches(network: Network, titles_: list[str], answer: Any) -> None:
    """Each batch once, which also compares its counts; then rounds with each contender's best."""
    best: dict[str, int] = {}
    own = {titles()[module] for module, (tool, _, _) in CONTENDERS.items() if tool == "spikec"}
    for title in titles_:
        rate = 1e3 / network.rows[title].ms
        for size in BATCHES:
            if size / rate > BATCH_SECONDS:
                break
            found = answer(title, f"batch {size}")
            if not found:
                break
            row = network.rows[title]
            if found["wrong"] > WRONG * max(found["spikes"], 1) and title not in own:
                print(f"  {title}: {found['wrong']} of {found['spikes']} output spikes are wrong with {size} at once")
                continue
            row.rates[size] = [found["rate"]]
            best[title] = max(row.rates, key=lambda key: row.rates[key][0])
            rate = found["rate"]
    for _ in range(BATCH_ROUNDS - 1):
        for title, size in best.items():
            if not network.rows[title].skip and (found := answer(title, f"batch {size}")):
                network.rows[title].rates[size].append(found["rate"])


def _text(module: str) -> str:
    return (Path(__file__).with_name("contenders") / f"{module}.py").read_text(encoding="utf-8")


def titles() -> dict[str, str]:
    """How each contender is called; read without importing it."""
    return {module: _text(module).split('TITLE = "')[1].split('"')[0] for module in CONTENDERS}


def batched() -> set[str]:
    """Those that take several samples at once."""
    return {title for module, title in titles().items() if "BATCHES = True" in _text(module)}


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="the emitted C against other tools, as ratios within one run")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--only", default="", help="networks, separated by commas; the others' results are kept")
    parser.add_argument("--tools", default="", help="contenders by file name, separated by commas")
    parser.add_argument("--resume", action="store_true", help="only what build/bench/all.json does not have yet")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    cases = {"W1": lambda: given("W1"), "W2": lambda: given("W2"), "W3": lambda: given("W3")}
    cases |= {"W4": lambda: given("W4")} if options.all or options.table or "W4" in options.only else {}
    if not workloads.SOURCE.is_dir():
        print(f"W1 to W4 left out: {workloads.SOURCE} is not there")
        cases = {}
    elif not options.table:
        workloads.ensure_data()
    cases |= {"digits": digits} | ({"spoken": spoken_digits} if FSDD.exists() else {})
    only = [name for name in options.only.split(",") if name]
    if unknown := [name for name in only if name not in cases]:
        parser.error(f"no network is called {', '.join(unknown)}: choose of {', '.join(cases)}")
    tools = [name for name, row in CONTENDERS.items() if options.all or row[2]]
    tools = [name for name in options.tools.split(",") if name] or tools
    if unknown := [name for name in tools if name not in CONTENDERS]:
        parser.error(f"no contender is called {', '.join(unknown)}: choose of {', '.join(CONTENDERS)}")
    absent = {} if options.table else environment.ensure()
    if options.prepare:
        if FSDD.exists():
            spoken.train(FSDD, spoken_file())
        print("\n".join(f"{tool} is missing: {why}" for tool, why in absent.items()) or "everything is there")
        return 0
    file = BUILD / ("all.json" if options.all or options.table else "quick.json")
    kept = results.load(file) if only or options.resume or options.table else {}
    for name in [] if options.table else only or list(cases):
        if options.resume and name in kept and not only:
            continue
        kept[name] = bench(cases[name](), tools, absent, options.rounds or (5 if options.all else ROUNDS))
        kept = {name: kept[name] for name in [*cases, *kept] if name in kept}
        results.save(kept, file)
    if not kept:
        print("nothing was measured")
        return 1
    text = results.table(kept)
    print("\n" + text)
    results.plot(kept, BUILD / "speed.png")
    if options.write:
        shutil.copy(BUILD / "speed.png", PLOT)
        picture = f"![time of one inference, as a multiple of spikec's C](docs/{PLOT.name})"
        results.write_readme(f"{text}\n\n{picture}", workloads.ROOT / "README.md")
    return 0


if __name__ == "__main__":
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        # One core for everybody, the NumPy engine in this process too: a library's threads would wait for each other on it.
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **one})
    sys.exit(main())
