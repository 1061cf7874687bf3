"""Prove a Lava installation: two LIF populations against a golden vector, inside the interpreter that will run Lava.

A program, run as `PYTHON selfcheck.py` by `spikec setup lava` and by nothing else; it needs lava-nc and NumPy and
never imports spikec. It prints one JSON object, `{"lava": version, "measured": {...}, "wrong": [names]}`, and exits
with status 0 when all is as recorded, 3 when something differs.

The input goes straight into the first population, whose u, v and spikes are compared step by step. A synapse carries
its spikes to a second, memoryless one that repeats them, one step later, as every synapse adds one step on Loihi.
Source of the vector: measured on lava-nc 0.10.0, model `fixed_pt` (Loihi 2 / Lava facts card, section 1.1).
"""

from __future__ import annotations

import json
import sys

STIMULUS = [0, 300, -7, 5, 0, 0, -1000, 40000, 131072, 0, 0, 3]
GOLDEN: dict[str, list[int]] = {
    "u": [0, 19200, 14059, 10943, 8268, 6247, -59280, 2515208, -6488079, -4902491, -3704396, -2798906],
    "v": [-3, 0, 0, 0, 8265, 0, -59283, 0, -6488082, -8388607, -8388607, -8388607],
    "spikes": [0, 1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0],
    "next_spikes": [0, 0, 1, 1, 1, 0, 1, 0, 1, 0, 0, 0],
}


def measure() -> dict[str, list[int]]:
    """Run the network, one step at a time; the same keys as `GOLDEN`, one integer a step."""
    import numpy as np
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.dense.process import Dense
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.lif.process import LIF

    steps = len(STIMULUS)
    source = Source(data=np.array([STIMULUS]))
    first = LIF(shape=(1,), du=1000, dv=77, vth=150, bias_mant=-9, bias_exp=-2)
    synapse = Dense(weights=np.array([[254]]))
    second = LIF(shape=(1,), du=4095, dv=4096, vth=1)
    sinks = {"spikes": Sink(shape=(1,), buffer=steps), "next_spikes": Sink(shape=(1,), buffer=steps)}
    source.s_out.connect(first.a_in)
    first.s_out.connect(synapse.s_in)
    synapse.a_out.connect(second.a_in)
    first.s_out.connect(sinks["spikes"].a_in)
    second.s_out.connect(sinks["next_spikes"].a_in)

    measured: dict[str, list[int]] = {"u": [], "v": []}
    try:
        for _ in range(steps):
            # Without the tag Lava would silently run the floating-point model.
            second.run(condition=RunSteps(num_steps=1), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
            measured["u"].append(int(first.u.get()[0]))
            measured["v"].append(int(first.v.get()[0]))
        for name, sink in sinks.items():
            measured[name] = [int(value) for value in sink.data.get()[0]]
    finally:
        second.stop()
    return measured


def main() -> int:
    """Print the report; the exit status as described above."""
    from importlib.metadata import version

    measured = measure()
    wrong = [name for name, values in GOLDEN.items() if measured[name] != values]
    print(json.dumps({"lava": version("lava-nc"), "measured": measured, "wrong": wrong}))
    return 3 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
