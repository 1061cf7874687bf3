"""One contender on one network, in a process of its own: counts first, then a round for every line on standard input.

    python worker.py MODULE NET.npz SAMPLES

A line "one" runs the samples one after the other at batch 1 and prints milliseconds an inference; "batch N" runs N samples at once
(or one after the other, where the tool has no batches) and prints inferences a second. Everything on one core.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
sys.path.insert(0, str(Path(__file__).resolve().parent))

import network  # noqa: E402 - the environment comes first
import numpy as np  # noqa: E402 - the path comes first


def main() -> None:
    """Load, compare counts, then answer."""
    say = sys.stdout
    sys.stdout = sys.stderr  # tools talk
    tool, path, samples = importlib.import_module(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

    def tell(**what: object) -> None:
        print(json.dumps(what), file=say, flush=True)

    try:
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
    for line in sys.stdin:
        words = line.split()
        if words[0] == "one":
            if timed:
                tell(ms=timed()[0] * 1e3 / len(data))
                continue
            begin = time.perf_counter()
            for x in data:
                run(x)
            tell(ms=(time.perf_counter() - begin) * 1e3 / len(data))
        elif words[0] == "batch":
            count = int(words[1])
            if timed:
                tell(rate=len(data) / timed()[0])
                continue
            assert net.x is not None
            x = np.ascontiguousarray(np.concatenate([net.x] * -(-count // len(net.x)))[:count])
            parts = [x] if tool.BATCHES else [x[k : k + 1] for k in range(count)]
            for part in parts[:1]:
                run(part)  # compiled for this shape
            begin = time.perf_counter()
            for part in parts:
                run(part)
            tell(rate=count / (time.perf_counter() - begin))
        else:
            break
    tell(megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
