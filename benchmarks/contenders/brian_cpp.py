"""Brian2, C++ standalone: the network and one sample become a program of their own; what it reports for its loop is the time."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brian2 as b2
import numpy as np
from network import Net, Skip

TITLE = "Brian2 C++"
BATCHES = False
_FOLDER: list[str] = []


def prepare_timed(net: Net, samples: int) -> Callable[[], tuple[float, np.ndarray]]:
    """A function that runs so many samples and gives the seconds of the loop and the counts (samples, outputs)."""
    if any(layer.conv or layer.pool > 1 for layer in net.layers):
        raise Skip("convolutions would be lists of connections written out")
    folder = tempfile.mkdtemp(prefix="brian2-")
    _FOLDER.append(folder)
    b2.set_device("cpp_standalone", directory=folder, build_on_run=False)
    b2.prefs.devices.cpp_standalone.openmp_threads = 0
    b2.prefs.codegen.cpp.extra_compile_args_gcc = [
        "-w",
        "-O3",
        "-ffast-math",
        "-fno-finite-math-only",
        "-march=native",
        "-std=c++11",
    ]
    b2.defaultclock.dt = 1 * b2.ms
    objects: list[Any] = []
    if net.sparse is not None:
        s = net.sparse
        group = b2.NeuronGroup(
            len(s["v0"]), "v : 1\nc : 1\nb : 1 (constant)", threshold=f"v >= {float(s['theta'])!r}", reset="v = 0", dtype=np.float32
        )
        group.v, group.b = s["v0"], s["bias"]
        group.run_regularly(f"v = {float(s['beta'])!r} * v + b + c\nc = 0", when="groups", order=1)
        synapses = b2.Synapses(group, group, "w : 1", on_pre="c_post += w", dtype=np.float32)
        fan = s["targets"].shape[1]
        synapses.connect(i=np.repeat(np.arange(len(s["v0"])), fan), j=s["targets"].ravel().astype(np.int64))
        synapses.w = s["weights"].ravel()
        objects += [group, synapses]
        last, steps, samples = group, net.steps, 1
    else:
        assert net.x is not None
        steps = net.steps * samples
        flat = net.x[:samples].reshape(steps, -1)
        t, i = np.nonzero(flat)
        last = b2.SpikeGeneratorGroup(flat.shape[1], i, t * b2.ms)
        objects.append(last)
        for k, layer in enumerate(net.layers):
            size = len(layer.weight)
            model = "v : 1\nu : 1\nc : 1\nb : 1 (constant)"
            group = b2.NeuronGroup(
                size, model, threshold=f"v >= {float(np.asarray(layer.theta).flat[0])!r}", reset="v = 0", dtype=np.float32
            )
            group.b = 0.0 if layer.bias is None else layer.bias
            # A layer's spikes reach the next one within the step: what layer k does comes at order 10 k and after.
            current = "c + b" if layer.alpha is None else "u"
            first = "" if layer.alpha is None else f"u = {layer.alpha!r} * u + c + b\n"
            group.run_regularly(f"{first}v = {layer.beta!r} * v + {current}\nc = 0", when="synapses", order=10 * k + 6)
            group.thresholder["spike"].when, group.thresholder["spike"].order = "synapses", 10 * k + 7
            group.resetter["spike"].when, group.resetter["spike"].order = "synapses", 10 * k + 8
            group.run_regularly("v = 0\nu = 0\nc = 0", dt=net.steps * b2.ms, when="start", order=k)
            synapses = b2.Synapses(last, group, "w : 1", on_pre="c_post += w", dtype=np.float32)
            synapses.connect()
            synapses.w = layer.weight.T.ravel()
            synapses.pre.order = 10 * k + 5
            objects += [group, synapses]
            if layer.recurrent is not None:
                back = b2.Synapses(group, group, "w : 1", on_pre="c_post += w", dtype=np.float32)
                back.connect()
                back.w = layer.recurrent.T.ravel()
                back.pre.order = 10 * k + 9
                objects.append(back)
            last = group
    monitor = b2.SpikeMonitor(last)
    monitor.when, monitor.order = "end", 1000
    network = b2.Network(*objects, monitor)
    network.run(steps * b2.ms)
    try:
        b2.device.build(directory=folder, compile=True, run=True, with_output=False)
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    size = len(last)

    def run() -> tuple[float, np.ndarray]:
        b2.device.run(directory=folder, with_output=False, run_args=[])
        when = np.asarray(monitor.t / b2.ms).round().astype(int)
        counts = np.zeros((samples, size), np.int64)
        np.add.at(counts, (when // net.steps if net.sparse is None else 0 * when, np.asarray(monitor.i)), 1)
        return float(b2.device._last_run_time), counts

    return run


def megabytes() -> float:
    """Peak memory of the program, asked every few milliseconds while it runs."""
    process = subprocess.Popen([f"{_FOLDER[-1]}/main", "results/"], cwd=_FOLDER[-1], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.002)
    process.wait()
    return peak / 1024
