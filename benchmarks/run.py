"""`make bench`: the emitted C against hand-written C and the other engines, as ratios within one run.

    python benchmarks/run.py [--rounds N] [--only W1,W2] [--flags native,avx2,sse2] [--phases]

--phases prints instead what each layer takes in offline mode, and how much of it is the matrix unit's: see `phases`.

W1 to W4 come through the compiler as any network does (float graph, eight bits, target host) and run one step at a time at
batch 1 on one core. Each round runs every contender once, so that a busy machine slows all of them; the medians are what is
compared. Output counts are checked before anything is timed. W1 to W4 and the hand-written C need ../shared/perf; without it
only the digits are run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import spikec
from spikec.backends.c.backend import CBackend
from spikec.target import load_target

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import workloads

BUILD = workloads.ROOT / "build" / "bench"
FLAGS = {
    "native": ["-O3", "-march=native", "-fno-loop-unroll-and-jam"],
    "avx2": ["-O3", "-mavx2", "-mfma", "-mbmi2", "-mpopcnt", "-fno-loop-unroll-and-jam"],
    "sse2": ["-O2"],
}
#: Which of the processor's rates bounds each workload.
BOUND = {"W1": "rows", "W2": "runs", "W3": "rows", "W4": "scatter"}
#: What a workload's folder may take to build, and its process beside the weights.
MOST_SECONDS, MOST_MEGABYTES = 10.0, 4.0
#: Inferences a second of the best batched tool on one core (../shared/perf).
BATCHED = {"W1": 950, "W2": 58}
#: The hand-written program of each workload, and what its README compiles it with.
BY_HAND = {"W1": ["w1v.c", "-DV32", "-DF=12"], "W2": ["w2.c"], "W3": ["w3.c"], "W4": ["w4.c"]}


def emit(work: workloads.Workload) -> tuple[Path, float, int]:
    """Compile a workload and write its C folder; also the seconds that took, and the bytes of its weights."""
    begin = time.perf_counter()
    build = spikec.compile(work.graph, target="host", bits=8)
    folder = BUILD / work.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    backend = CBackend(load_target("host"))
    backend.emit(build.graph(), folder)
    seconds = time.perf_counter() - begin
    shutil.copy(Path(__file__).with_name("c") / "harness.c", folder)
    return folder, seconds, backend.memory(build.graph()).constants


def events(work: workloads.Workload) -> Path:
    """The harness's event file; a workload without input gets empty steps."""
    if work.data is not None:
        return workloads.DATA / f"{work.name.lower()}_ev.bin"
    path = BUILD / f"{work.name}_ev.bin"
    head = np.array([work.steps, 1, 0, 0], np.int32)
    path.write_bytes(head.tobytes() + np.zeros(work.steps + 1, np.int32).tobytes())
    return path


def compile_c(folder: Path, sources: list[str], flags: list[str], name: str) -> Path:
    """An executable, optimised as asked."""
    target = BUILD / name
    subprocess.run(["gcc", "-std=gnu11", *flags, "-o", str(target), *sources, "-lm"], check=True, cwd=folder)
    return target


def build_seconds(folder: Path) -> float:
    """Seconds that `make` takes in an emitted folder, for the program."""
    begin = time.perf_counter()
    subprocess.run(["make", "-s"], check=True, cwd=folder, capture_output=True, env=os.environ | {"MAKEFLAGS": ""})
    return time.perf_counter() - begin


def run_ours(program: Path, data: Path, core: int | None = None, clock: str = "wall") -> tuple[float, list[int], float]:
    """One round, on one core if that is said: milliseconds, all output counts, and synaptic operations of an inference."""
    samples = int(np.fromfile(data, np.int32, 2)[1])
    before = os.sched_getaffinity(0) if core is not None and hasattr(os, "sched_getaffinity") else set()
    if before:
        os.sched_setaffinity(0, {core or 0})  # a process inherits it
    try:
        lines = subprocess.run(
            [str(program), str(data), "1", str(samples), clock], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    finally:
        if before:
            os.sched_setaffinity(0, before)
    return float(lines[0].split()[1]), [int(n) for n in lines[1].split()[1:]], float(lines[3].split()[1])


def peak(program: Path, data: Path) -> int:
    """Peak memory in KB of a process that runs one sample."""
    lines = subprocess.run([str(program), str(data), "1", "1"], check=True, capture_output=True, text=True).stdout.splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("peak")))


def rates(kind: str) -> dict[str, float]:
    """What the processor does at most, in 10^9 synaptic operations a second: see c/bound.c."""
    program = compile_c(Path(__file__).with_name("c"), ["bound.c"], FLAGS[kind], f"bound_{kind}")
    lines = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: float(rate) for name, rate in (line.split() for line in lines)}


def run_by_hand(program: Path, samples: int) -> float:
    """One round of the hand-written program: its own median, in milliseconds."""
    arguments = [] if samples == 1 else ["1", str(samples)]  # the network without samples takes no arguments
    out = subprocess.run([str(program), *arguments], check=True, capture_output=True, text=True, cwd=workloads.DATA.parent)
    found = re.search(r"(?:med|W4) ([0-9.]+) ms", out.stdout)
    if not found:
        raise SystemExit(f"{program.name} printed no median: {out.stdout[:200]}")
    return float(found[1])


def bench_workload(name: str, kinds: list[str], rounds: int) -> tuple[list[str], str]:
    """Rows of the table for one workload, and one about its folder."""
    work = workloads.WORKLOADS[name]()
    folder, seconds, weights = emit(work)
    data = events(work)
    built = build_seconds(folder)
    sources = [p.name for p in sorted(folder.glob("*.c")) if p.name in ("network.c", "weights.c", "harness.c")]
    hand, *options = BY_HAND[name]
    shutil.copytree(workloads.SOURCE / "c", BUILD / "hand", dirs_exist_ok=True)
    rows = []
    megabytes = 0.0
    for kind in kinds:
        ours = compile_c(folder, sources, FLAGS[kind], f"{name}_{kind}")
        theirs = compile_c(BUILD / "hand", [hand], [*FLAGS[kind], *options], f"{name}_{kind}_hand")
        _, counts, operations = run_ours(ours, data)
        wrong = int(np.abs(np.array(counts) - work.counts.ravel()).sum())
        times: list[list[float]] = [[], []]
        for _ in range(rounds):
            times[0].append(run_ours(ours, data)[0])
            times[1].append(run_by_hand(theirs, len(work.counts)))
        mine, by_hand = (statistics.median(part) for part in times)
        bound = operations / rates(kind)[BOUND[name]] * 1e-6
        megabytes = max(megabytes, peak(ours, data) * 1024e-6)
        rows.append(
            f"{name:4} {kind:7} {mine:9.4f} {by_hand:9.4f} {mine / by_hand:6.2f} {100 * bound / mine:6.0f} % "
            f"{wrong:6} of {int(work.counts.sum())}"
        )
    beside = megabytes - weights * 1e-6
    held = "yes" if built <= MOST_SECONDS and beside <= MOST_MEGABYTES else "NO"
    return rows, f"{name:4} {seconds:9.1f} {built:7.1f} {megabytes:9.2f} {weights * 1e-6:9.2f} {beside:9.2f} {held:>5}"


def bench_offline(name: str, kinds: list[str]) -> list[str]:
    """Rows for whole samples at once (c/offline.c); the network is the one that `bench_workload` wrote."""
    folder = BUILD / name
    shutil.copy(Path(__file__).with_name("c") / "offline.c", folder / "bench_offline.c")
    wanted = ("network.c", "weights.c", "offline.c", "offline_weights.c", "bench_offline.c")
    sources = [name for name in wanted if (folder / name).exists()]
    rows = []
    for kind in kinds:
        program = compile_c(folder, [*sources, "-pthread"], FLAGS[kind], f"{name}_{kind}_offline")
        data = str(workloads.DATA / f"{name.lower()}_ev.bin")
        words = subprocess.run([str(program), data, "30"], check=True, capture_output=True, text=True).stdout.split()
        whole, steps, two = (float(word) for word in words[:3])
        rows.append(
            f"{name:4} {kind:7} {1e6 / whole:9.0f} {1e6 / two:11.0f} {1e6 / steps:9.0f} {steps / whole:6.2f} "
            f"{1e6 / whole / BATCHED[name]:12.1f} {'yes' if words[4] == '1' else 'no':>11} {'yes' if words[6] == '1' else 'NO':>5}"
        )
    return rows


def phases(name: str, rounds: int) -> list[str]:
    """Microseconds of a sample in offline mode, layer by layer: as built, with the neurons behind tiles left out (what is left are
    products, loads and stores), and the products alone, by what one takes in the same run: four for 64 inputs and 32 steps."""
    work = workloads.WORKLOADS[name]()
    folder, _, _ = emit(work)
    here = Path(__file__).with_name("c")
    shutil.copy(here / "offline.c", folder / "bench_offline.c")
    shutil.copy(here / "phases.h", folder)
    text = (folder / "offline.c").read_text()
    # Every state is as it was, and no neuron fires: the next layer's products do not depend on that.
    bare = re.sub(
        r"(_row\(struct \w+ \*net, size_t i, const int32_t \*SPK_RESTRICT sums, [^)]*\) \{\n)", r"\1  if (net) { return; }\n", text
    )
    (folder / "bare.c").write_text(bare)
    found: list[dict[str, float]] = []
    for source in ("offline.c", "bare.c"):
        wanted = ["network.c", "weights.c", source, "offline_weights.c"]
        for file in (file for file in wanted if (folder / file).exists()):
            always = ["-DSPK_TILE_BUSY(enough)=1"] if source == "bare.c" else []  # without spikes no layer would seem busy
            flags = [*FLAGS["native"], *always, "-w", "-include", "phases.h", "-c", file, "-o", f"{file}.o"]
            subprocess.run(["gcc", "-std=gnu11", *flags], check=True, cwd=folder)
        objects = [f"{file}.o" for file in wanted if (folder / f"{file}.o").exists()]
        program = compile_c(
            folder, ["bench_offline.c", *objects, "-DPHASES", "-pthread"], FLAGS["native"], f"{name}_{source}_phases"
        )
        lines = subprocess.run(
            [str(program), str(events(work)), str(rounds)], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        found.append({word: float(number) for word, number in map(str.split, lines)})
    sizes = dict(re.findall(r"uint32_t \w*?offline_(\w+)_run\[(\d+)\]", text))
    each = product_seconds()
    rows = []
    for layer, spent in found[0].items():
        runs = int(sizes.get(layer, 0))
        least = runs * 4 / 32 * work.steps * each * 1e6
        rows.append(f"{name:4} {layer:10} {spent:8.1f}" + (f" {found[1][layer]:12.1f} {least:12.1f}" if runs else ""))
    return rows


def product_seconds() -> float:
    """Seconds of a product of the matrix unit, measured now (c/unit.c); 0 where there is none."""
    program = compile_c(Path(__file__).with_name("c"), ["unit.c"], FLAGS["native"], "unit")
    return float(subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout) * 1e-9


def bench_digits(rounds: int) -> None:
    """The digits example on the engines that Python reaches: milliseconds a digit, whole held-out third at once."""
    sys.path.insert(0, str(workloads.ROOT / "examples" / "digits"))
    import data

    build = spikec.load(workloads.ROOT / "build" / "digits")
    x = data.spikes(data.split()[1].images)
    engines = ("reference", "numpy", "c")
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(rounds + 1):
        for engine in engines:
            begin = time.perf_counter()
            build.run(x, engine)
            times[engine].append((time.perf_counter() - begin) / len(x) * 1e3)
    medians = {engine: statistics.median(part[1:]) for engine, part in times.items()}
    print("\ndigits, from Python, all at once\nengine     ms/digit   against c")
    for engine, value in medians.items():
        print(f"{engine:10} {value:8.4f} {value / medians['c']:11.1f}")


def bench_start() -> None:
    """Seconds that a start takes, best of five; tests count what is imported instead."""
    for words, promised in ((("-c", "import spikec"), 0.3), (("-m", "spikec.cli", "--help"), 0.5)):
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            times.append(time.perf_counter() - begin)
        print(f"python {' '.join(words)}: {min(times):.2f} s (at most {promised} s on an idle machine)")


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="the emitted C against hand-written C, as ratios within one run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="W1,W2,W3,W4")
    parser.add_argument("--flags", default="native,avx2,sse2")
    parser.add_argument("--phases", action="store_true", help="what each layer takes in offline mode")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    if options.phases:
        print("offline mode, microseconds of a sample: as built; without the neurons of layers on the unit; their products alone")
        for name in options.only.split(","):
            for row in phases(name, 60) if workloads.WORKLOADS[name]().data is not None else []:
                print(row, flush=True)
        return 0
    if workloads.SOURCE.is_dir():
        workloads.ensure_data()
        bench_start()
        print("milliseconds an inference, batch 1, one core, medians; count differences are against a float simulation")
        print("of the bound: of what the processor's additions would take, measured in the same run (c/bound.c)")
        print("net  flags        ours   by hand  ratio of bound count differences")
        folders = []
        for name in options.only.split(","):
            rows, folder = bench_workload(name, options.flags.split(","), options.rounds)
            print("\n".join(rows), flush=True)
            folders.append(folder)
        print(f"\nthe emitted folders: `make` in at most {MOST_SECONDS:.0f} s; peak memory of a process that runs one sample,")
        print(f"at most {MOST_MEGABYTES:.0f} MB beside the weights")
        print("net    compile    make   peak MB   weights    beside  held")
        print("\n".join(folders))
        print("\nwhole samples at once (spk_offline), inferences a second, least times of 30 rounds")
        print("net  flags    one core two threads   by step  ratio against tool matrix unit  same")
        for name in options.only.split(","):
            for row in bench_offline(name, options.flags.split(",")) if name in BATCHED else []:
                print(row, flush=True)
    else:
        print(f"W1 to W4 left out: {workloads.SOURCE} is not there")
    if (workloads.ROOT / "build" / "digits" / "manifest.json").exists():
        bench_digits(options.rounds)
    else:
        print("digits left out: `make demo` makes build/digits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
