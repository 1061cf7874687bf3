"""Run the network on a Loihi 2 board, with Intel's extension lava-loihi. Not verified on silicon.

Written from public material: adapters on the embedded CPUs carry messages in and out, so that the first layer sees what the host
sends IO_LATENCY steps later. Until then every population is held silent, without bias and with states of zero; then the host
writes its bias and initial state. Numbers come back as 24 bits without a sign.
"""

import numpy as np
import parts
from lava.magma.compiler.compiler_graphs import find_processes
from lava.magma.core.run_conditions import RunSteps
from lava.proc.io.sink import RingBuffer as Sink

IO_LATENCY = 2
# What the membership of Intel's research community brings, and nothing else does.
EXTENSION = "lava.proc.embedded_io.spike"


class NotHere(Exception):
    """Why the network cannot run on a chip from here."""


class HostSource:
    """A source on the host and the adapter that carries what it sends onto the chip."""

    def __init__(self, source, adapters):
        low, high = int(source.data.init.min()), int(source.data.init.max())
        bits = 0 if low >= 0 and high <= 1 else 24
        self.source, self.data = source, source.data
        self.adapter = adapters.PyToNxAdapter(shape=source.s_out.shape, num_message_bits=bits)
        source.s_out.connect(self.adapter.inp)
        self.s_out = self.adapter.out


def run(build, inputs, wires, weights, max_lag):
    """One sample after the other; the results of run.py, less the states, which cannot be read at every step."""
    adapters = extension()
    results = []
    for sample in range(len(next(iter(inputs.values())))):
        results.append(run_one(build, {name: data[sample] for name, data in inputs.items()}, wires, weights, max_lag, adapters))
    return {name: np.stack([result[name] for result in results]) for name in results[0]}


def extension():
    """The adapters of lava-loihi, or NotHere."""
    try:
        from importlib import import_module

        return import_module(EXTENSION)
    except ImportError:
        raise NotHere(
            "--hw needs Intel's extension lava-loihi, which is not installed here: it comes with membership of the Intel "
            "Neuromorphic Research Community (INRC). Without --hw the network runs on the bit-accurate simulation."
        ) from None


def run_one(build, inputs, wires, weights, max_lag, adapters):
    """One sample: (steps, *shape) by input name."""
    length = len(next(iter(inputs.values())))
    steps = length + max_lag + IO_LATENCY
    padded = {}
    for name, data in inputs.items():
        flat = data.reshape(length, -1).astype(np.int32)
        padded[name] = np.pad(flat, ((0, steps - length), (0, 0)))[None]
    parts.through = lambda source: HostSource(source, adapters)
    try:
        network = build(weights, padded, steps, 1)
    finally:
        parts.through = None
    held = hold(network)
    outputs = {f"output.{name}": output for name, output in network.outputs.items()}
    outputs |= {f"record.{wire}": wire for wire in (network.populations if "all" in wires else wires)}
    needed = [part for item in outputs.values() for part in (item.wires if isinstance(item, parts.View) else [item])]
    sinks = {wire: listen(network, wire, steps, adapters) for wire in dict.fromkeys(needed) if wire not in network.sources}
    kept = {}
    reached = set()
    for item in network.populations.values():
        if item.process not in reached:  # Lava runs only what hangs together with the process that is told to run
            part = set(find_processes(item.process))
            reached |= part
            run_part(item.process, steps, [entry for entry in held if entry[1] in part])
            for wire, found in sinks.items():
                if found[0] in part:
                    kept[wire] = [signed(sink.data.get()).T for sink in found]
            item.process.stop()
    return {name: aligned(network, item, kept, inputs, length) for name, item in outputs.items()}


def run_part(main, steps, held):
    """All steps; when the input arrives the host writes what `held` says."""
    done = 0
    for stop in sorted({start for start, _, _ in held if 0 < start < steps} | {steps}):
        main.run(condition=RunSteps(num_steps=stop - done), run_cfg=configuration())
        done = stop
        for start, process, values in held:
            if start == stop < steps:
                for var, value in values.items():
                    target = getattr(process, var)
                    target.set(np.broadcast_to(value, target.shape))


def configuration():
    """What compiles for the board: neuro cores first, then embedded CPUs, then the host."""
    from lava.magma.core.run_configs import Loihi2HwCfg

    return Loihi2HwCfg(select_sub_proc_model=True)


def hold(network):
    """Silence every population until the input arrives: (step, process, what the host then writes)."""
    held = []
    for name, item in network.populations.items():
        process = item.process
        if not type(process).__module__.startswith("lava."):
            raise NotHere(f"{name} is a neuron of its own, which needs microcode on the chip: only the simulation has it")
        parameters = process.proc_params
        if "reset_interval" in parameters._parameters:
            interval = parameters["reset_interval"]
            if interval & (interval - 1):
                raise NotHere(f"{name} is reset every {interval} steps, and the chip takes powers of two")
            parameters.overwrite("reset_offset", (parameters["reset_offset"] + IO_LATENCY) % interval)
        values = dict(item.late)
        for var in () if item.start else ("bias_mant", *item.states):
            found = getattr(process, var, None)
            if found is not None and np.any(found.init):
                values[var] = found.init
                found.init = np.zeros_like(found.init) if isinstance(found.init, np.ndarray) else 0
        held.append((item.start + IO_LATENCY, process, values))
    return held


def listen(network, wire, steps, adapters):
    """Sinks on the host for what a wire carries; their sum is the wire."""
    if wire in network.populations:
        ports = [network.populations[wire].process.s_out]
    elif wire in network.values:
        ports = [parts.flat(synapse.a_out) for synapse in network.values[wire].synapses]
    else:
        raise NotHere(f"{wire} is a state, and only what populations send can be read from the chip at every step")
    sinks = []
    for port in ports:
        adapter = adapters.NxToPyAdapter(shape=port.shape, num_message_bits=24)
        sink = Sink(shape=port.shape, buffer=steps)
        port.connect(adapter.inp)
        adapter.out.connect(sink.a_in)
        sinks.append(sink)
    return sinks


def signed(data):
    """24 bits as they come back from the chip, with their sign."""
    return (np.asarray(data).astype(np.int32) << 8) >> 8


def aligned(network, wire, kept, inputs, length):
    """What a wire carried by the model's own steps, (length, *shape)."""
    if isinstance(wire, parts.View):
        data = np.concatenate([column(network, part, kept, inputs, wire.lag, length) for part in wire.wires], axis=1)
        data = data if wire.take is None else data[:, wire.take]
        return data.reshape(length, *wire.shape)
    item = {**network.sources, **network.populations, **network.values}[wire]
    return column(network, wire, kept, inputs, item.lag, length).reshape(length, *item.shape)


def column(network, wire, kept, inputs, lag, length):
    """The same of a single wire, flat."""
    if wire in network.sources:
        return inputs[wire].reshape(length, -1)
    return sum(kept[wire])[lag + IO_LATENCY : lag + IO_LATENCY + length]
