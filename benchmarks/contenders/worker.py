"""One contender on one network, in a process of its own: counts first, then a round for every line on standard input.

    python worker.py MODULE NET.npz SAMPLES CORE

A line "one" runs the samples one after the other at batch 1 and prints the median milliseconds of an inference; "batch N" runs N
samples at once and prints inferences a second, the first time how many output spikes are wrong as well. At the end of its input it
prints its peak memory. Everything on one core. SPIKEC_BENCH_CLOCK=cpu counts the processor's time instead of the wall's.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"
if hasattr(os, "sched_setaffinity"):  # before any tool counts processors
    os.sched_setaffinity(0, {int(sys.argv[4])})
sys.path.insert(0, str(Path(__file__).resolve().parent))

CLOCK = time.process_time if os.environ.get("SPIKEC_BENCH_CLOCK") == "cpu" else time.perf_counter

import network  # noqa: E402 - the environment comes first
import numpy as np  # noqa: E402 - the path comes first


def peak() -> float:
    """Peak memory of this process in megabytes. Not from getrusage: that counts the process it was started from."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def main() -> None:
    """Load, compare counts, then answer."""
    say = sys.stdout
    sys.stdout = sys.stderr  # tools talk

    def tell(**what: object) -> None:
        print(json.dumps(what), file=say, flush=True)

    try:
        tool, path, samples = importlib.import_module(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
        net = network.Net.load(path)
        begin = time.perf_counter()
        timed = tool.prepare_timed(net, samples) if hasattr(tool, "prepare_timed") else None
        run = None if timed else tool.prepare(net)
        data = [None] if net.x is None else [np.ascontiguousarray(net.x[k : k + 1]) for k in range(min(samples, len(net.x)))]
        if timed:
            counts = timed()[1]
        else:
            counts = np.concatenate([np.asarray(run(x)).reshape(1, -1) for x in data])
        took = time.perf_counter() - begin
    except network.Skip as reason:
        tell(skip=str(reason))
        return
    except ImportError as error:
        tell(skip=f"cannot be imported: {error}")
        return
    wanted = net.counts[: len(data)]
    tell(wrong=int(np.abs(counts - wanted).sum()), spikes=int(wanted.sum()), total=int(counts.sum()), prepared=took)
    compiled: set[int] = set()
    alone = 0.0
    for line in sys.stdin:
        words = line.split()
        if words[0] == "one":
            if timed:
                tell(ms=timed()[0] * 1e3 / len(data))
            else:
                took_each = []
                for x in data:
                    begin = CLOCK()
                    run(x)
                    took_each.append(CLOCK() - begin)
                tell(ms=statistics.median(took_each) * 1e3)
            alone = alone or (tool.megabytes() if hasattr(tool, "megabytes") else peak())
        elif words[0] == "batch":
            count = int(words[1])
            assert net.x is not None and run is not None
            order = np.arange(count) % len(net.x)
            x = np.ascontiguousarray(net.x[order])
            wrong = {}
            if count not in compiled:  # for this shape
                compiled.add(count)
                wrong = {"wrong": int(np.abs(np.asarray(run(x)).reshape(count, -1) - net.counts[order]).sum())}
                wrong["spikes"] = int(net.counts[order].sum())
            begin = CLOCK()
            run(x)
            tell(rate=count / (CLOCK() - begin), **wrong)
    tell(megabytes=alone or peak())


if __name__ == "__main__":
    main()
