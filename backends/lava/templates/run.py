"""Run the network on Lava's bit-accurate simulation of Loihi 2.

    python run.py --input in.npz --output out.npz [--record all] [--copies N]
    python run.py --check            # against golden.npz, what the compiler's reference computed
    python run.py --input in.npz --output out.npz --hw       # on a board, with Intel's extension; see chip.py

in.npz holds spikes, or what LIMITS in network.py says, (samples, steps, *shape), under the name of every input. Every sample
begins afresh. out.npz holds `output.NAME` and `record.LAYER` (samples, steps, *shape), and `state.LAYER.VAR` after the last step
(samples, *shape); layers lag behind the input on the chip, and that is taken out here. A long run shows how far it is when a
person watches; one that stops moving is ended with the likely cause (--patience).
Needs Python 3.10 with lava-nc 0.10.0 and NumPy.
"""

# ruff: noqa: E402  # the switch stands before the imports that it is for

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

sys.dont_write_bytecode = True  # this folder stays as it was written

import chip
import numpy as np
from host.recorders import REPORTING, Recorder, StateRecorder
from lava.magma.compiler.compiler_graphs import find_processes
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from network import CONNECTIONS, INPUTS, LIMITS, MAX_LAG, MOST_COPIES, build
from parts import View, flat

HERE = Path(__file__).resolve().parent
# Samples run side by side while their matrices together stay below so many connections.
CONNECTIONS_AT_ONCE = 2_000_000
# Messages that a channel holds; they lie in shared memory, and no part of a network runs further ahead.
CHANNEL_SIZE = 8
# Seconds without a step after which the network is taken to hang.
PATIENCE = 300.0


class Mistake(Exception):
    """Something that the person at the keyboard can mend, or a result that is not as it should be."""


class Steps:
    """How many steps are done, of how many: a network that runs writes it into a file, which may be read at any time."""

    def __init__(self, path, patience):
        self.path, self.patience = path, patience
        np.array([0, 1], np.int64).tofile(path)
        self.counter = np.memmap(path, np.int64, "r+", shape=(2,))

    @property
    def done(self):
        """The steps that are done."""
        return int(self.counter[0])

    @property
    def total(self):
        """All steps that there will be."""
        return int(self.counter[1])

    @total.setter
    def total(self, number):
        self.counter[1] = number


def run(inputs, wires, copies=0, patience=PATIENCE, counter=None, length=0):
    """Results by name, as in out.npz. `wires` are recorded besides the outputs; copies: samples side by side, 0: many; length: the
    steps of a network that has no inputs.

    counter: a file that holds, as two 64-bit integers, the steps done and those that there are.
    """
    weights = load(HERE / "weights.npz")
    samples, length = extent(inputs, length)
    copies = copies or max(1, min(MOST_COPIES, CONNECTIONS_AT_ONCE // max(CONNECTIONS, 1)))
    begins = range(0, samples, copies)
    with tempfile.TemporaryDirectory(prefix="lava-steps-") as folder:
        steps = Steps(counter or Path(folder, "steps"), patience)
        steps.total = len(begins) * (length + MAX_LAG)
        parts = [run_together(inputs, slice(i, i + copies), wires, weights, steps, length) for i in begins]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def extent(inputs, length):
    """Samples and steps: one sample of `length` where there are no inputs."""
    for data in inputs.values():
        return data.shape[:2]
    return 1, length


def run_together(inputs, which, wires, weights, told, length):
    """The samples `which`, side by side."""
    copies = extent({name: data[which] for name, data in inputs.items()}, length)[0]
    steps = length + MAX_LAG
    network = build(weights, pad(inputs, which), steps, copies)
    with tempfile.TemporaryDirectory(prefix="lava-run-") as folder:
        tape = Tape(network, length, steps, Path(folder), wires)
        simulate(network, steps, tape.recorders, told)
        check_weights(network, Path(folder))
        result = {f"output.{name}": tape.aligned(output) for name, output in network.outputs.items()}
        result |= {f"record.{wire}": tape.aligned(wire) for wire in tape.wires}
        for name, item in network.populations.items():
            for state in item.states:
                result[f"state.{name}.{state}"] = tape.final(name, state)
    return result


class Tape:
    """The recorders of a network, and what they kept. `wires` is what is recorded besides the outputs."""

    def __init__(self, network, length, steps, folder, wires):
        self.network, self.length, self.steps, self.folder = network, length, steps, folder
        self.recorders = []
        states = [(name, state) for name, item in network.populations.items() for state in item.states]
        probes = [f"{name}.{state}" for name, state in states]
        ports = {f"{name}.{port}": getattr(item.process, port) for name, item in network.populations.items() for port in item.ports}
        self.wires = [*network.populations, *ports, *probes] if "all" in wires else wires
        known = [*network.sources, *network.populations, *ports, *probes, *network.values]
        for wire in self.wires:
            if wire not in known:
                raise Mistake(f"nothing called '{wire}' can be recorded; there are {', '.join(known)}")
        needed = dict.fromkeys(self.wires)
        for output in network.outputs.values():
            needed.update(dict.fromkeys(output.wires if isinstance(output, View) else [output]))
        for wire in needed:
            if wire in network.populations:
                self.listen(wire, [network.populations[wire].process.s_out])
            elif wire in ports:
                self.listen(wire, [ports[wire]])
            elif wire in network.values:
                self.listen(wire, [flat(synapse.a_out) for synapse in network.values[wire].synapses])
        for wire, (name, state) in zip(probes, states, strict=True):
            item = network.populations[name]
            last = item.lag + length
            first, last = (1, steps) if wire in needed else (last, last)
            self.recorders.append(StateRecorder(getattr(item.process, state), first, last, self.path(wire)))
        for name, synapse in network.synapses.items():
            synapse.proc_params["report"] = str(folder / f"{name}.report.npz")
        self.tie()

    def path(self, wire):
        """The file of a wire."""
        return str(self.folder / f"{wire}.npy")

    def listen(self, wire, ports):
        """A recorder for the sum of some ports."""
        recorder = Recorder(ports[0].shape[0], self.steps, self.path(wire))
        for port in ports:
            port.connect(recorder.a_in)
        self.recorders.append(recorder)

    def tie(self):
        """Connect what is not connected: Lava runs only what hangs together with the process that is told to run."""
        reached, before = set(), None
        for recorder in self.recorders:
            if recorder not in reached:
                reached |= set(find_processes(recorder))
                if before is not None:
                    before.link_out.connect(recorder.link_in)
                before = recorder

    def kept(self, wire):
        """What a wire carried, (copies, steps, size)."""
        network = self.network
        if wire in network.sources:
            data = network.sources[wire].process.data.init
            return data.reshape(network.copies, -1, self.steps).transpose(0, 2, 1)
        data = np.load(self.path(wire))
        return data.reshape(len(data), network.copies, -1).transpose(1, 0, 2)

    def aligned(self, wire):
        """The same by the model's own steps, (copies, length, *shape); of a wire or of a View of several."""
        network = self.network
        if isinstance(wire, View):
            item, data = wire, np.concatenate([self.kept(part) for part in wire.wires], axis=2)
            if wire.take is not None:
                data = data[:, :, wire.take]
        else:
            item = {**network.sources, **network.populations, **network.values}[wire.partition(".")[0]]
            data = self.kept(wire)
        return data[:, item.lag : item.lag + self.length].reshape(len(data), self.length, *item.shape)

    def final(self, name, state):
        """A state after the last step, (copies, *shape)."""
        item = self.network.populations[name]
        last = item.lag + self.length
        kept = np.load(self.path(f"{name}.{state}"))
        value = kept[last - 1] if len(kept) > 1 else kept[0]
        if last <= item.start:  # it never began
            value = np.broadcast_to(item.late.get(state, 0), value.shape)
        return value.reshape(self.network.copies, *item.shape)


def simulate(network, steps, recorders, told):
    """Run all steps; populations that begin late get their bias and state from the host when their time comes."""
    if not recorders:
        return
    sys.setrecursionlimit(100_000)  # Lava searches the network recursively
    warnings.filterwarnings("ignore", message="Cannot import module")
    main, populations = recorders[0], network.populations.values()
    main.proc_params["counter"], main.proc_params["before"] = str(told.path), told.done
    config = Loihi2SimCfg(select_tag="fixed_pt", exception_proc_model_map=REPORTING)
    options = {"pypy_channel_size": CHANNEL_SIZE}
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(main, over, told), daemon=True)
    watcher.start()
    done = 0
    try:
        for stop in sorted({item.start for item in populations if 0 < item.start < steps} | {steps}):
            main.run(condition=RunSteps(num_steps=stop - done), run_cfg=config, compile_config=options)
            done = stop
            for item in populations:
                if item.start == stop < steps:
                    for var, value in item.late.items():
                        target = getattr(item.process, var)
                        target.set(np.broadcast_to(value, target.shape))
        over.set()
        watcher.join()
        main.stop()
    except RuntimeError as error:
        over.set()
        watcher.join()
        raise Mistake(f"Lava stopped: {failure(main) or error}") from None


def watch(process, over, told):
    """Show how far the run is; end the program when a part of the network fails or nothing moves: Lava would wait for ever."""
    begin = moved = time.monotonic()
    seen, shown = told.done, False
    while not over.wait(0.5):
        now, done = time.monotonic(), told.done
        if done != seen:
            seen, moved = done, now
        if sys.stderr.isatty() and now > begin + 1:
            print(f"\rstep {done} of {told.total}, {now - begin:.0f} s ", end="", file=sys.stderr, flush=True)
            shown = True
        reason = failure(process)
        if not reason and now > moved + told.patience:
            reason = f"no step has ended for {told.patience:g} s, after step {done} of {told.total}; {standstill(process, done)}"
        if reason and not over.wait(2):  # Lava did not notice by itself
            print(f"{chr(10) * shown}error: Lava stopped: {reason}", file=sys.stderr, flush=True)
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(1)
    if shown:
        print(f"\r{' ' * 60}\r", end="", file=sys.stderr, flush=True)


def parts_of(process):
    """The programs that Lava has started, with what each of them is: [(actor, name), ...]."""
    runtime = getattr(process, "runtime", None)
    actors = list(getattr(getattr(runtime, "_messaging_infrastructure", None), "actors", ()))
    built = list(getattr(getattr(runtime, "_executable", None), "proc_builders", None) or ())
    names = [f"{type(each).__name__} '{each.name}'" for each in built] + ["Lava's own runtime service"] * len(actors)
    return list(zip(actors, names, strict=False))


def failure(process):
    """What a part that failed has raised or what ended it, in a line, or nothing."""
    ended = ""
    for actor, name in parts_of(process):
        try:
            found, code = actor.exception, actor.exitcode
        except (OSError, EOFError, ValueError):  # its pipe, or the part itself, has been closed
            continue
        if found:
            error = found[0]
            return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        if code and not ended:
            why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            more = " (the system does that when memory runs out)" if code == -signal.SIGKILL else ""
            ended = f"{name} was ended by {why}{more}"
    return ended


def standstill(process, done):
    """Why nothing moves, as far as it can be told."""
    if not parts_of(process):
        return "Lava is still compiling the network, or hangs at it"
    for actor, name in parts_of(process):
        try:
            state = Path(f"/proc/{actor.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except (OSError, ValueError, IndexError):
            continue
        if state in "Tt":
            return f"{name} (process {actor.pid}) is suspended: kill -CONT {actor.pid} lets it go on"
    loop = "" if done else ", as in a loop without a synapse,"
    return f"a part waits for a message that no other sends{loop} or a step takes longer than that (--patience)"


def check_weights(network, folder):
    """What the synapses really used, read back, against what was meant. Lava clips and truncates without a word."""
    for name, synapse in network.synapses.items():
        used = load(folder / f"{name}.report.npz")
        for what in used:
            meant = getattr(synapse, what).init
            if isinstance(meant, (int, np.ndarray)):
                same = np.array_equal(used[what], np.broadcast_to(meant, used[what].shape))
            else:
                rows, columns, values = used[what]
                found = type(meant)((values, (rows, columns)), shape=meant.shape)
                same = (found != meant).nnz == 0
            if not same:
                raise Mistake(f"Lava changed the {what} of {name}")


def pad(inputs, which):
    """The inputs of some samples, flattened, with silent steps at the end: (copies, steps, size)."""
    padded = {}
    for name, data in inputs.items():
        flat = data[which].reshape(*data[which].shape[:2], -1).astype(np.int32)
        padded[name] = np.pad(flat, ((0, 0), (0, MAX_LAG), (0, 0)))
    return padded


def load(path):
    """All arrays of an .npz file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def read_inputs(path):
    """The inputs in a file, checked."""
    try:
        inputs = load(path)
    except (OSError, ValueError) as error:
        raise Mistake(f"{path}: {error}") from None
    for name, shape in INPUTS.items():
        if name not in inputs:
            raise Mistake(f"{path} lacks the input '{name}'")
        data = inputs[name]
        if data.ndim != len(shape) + 2 or data.shape[2:] != shape or 0 in data.shape:
            raise Mistake(f"the input '{name}' has shape {data.shape}, not (samples, steps, {', '.join(map(str, shape))})")
        low, high = LIMITS.get(name, (0, 1))
        if np.any((data < low) | (data > high) | (data != np.rint(data))):
            taken = f"whole numbers from {low} to {high}" if name in LIMITS else "0 and 1"
            raise Mistake(f"the input '{name}' holds other numbers than {taken}")
    if len({inputs[name].shape[:2] for name in INPUTS}) > 1:
        raise Mistake("the inputs differ in samples or steps")
    return {name: inputs[name] for name in INPUTS}


def check():
    """Compare with golden.npz: the first sample alone, then all of them side by side."""
    golden = load(HERE / "golden.npz")
    inputs = {name[6:]: data for name, data in golden.items() if name.startswith("input.")}
    expected = {name: data for name, data in golden.items() if not name.startswith("input.")}
    wires = [name[7:] for name in expected if name.startswith("record.")]
    samples = len(next(iter(inputs.values())))
    wrong = 0
    for count, copies in ((1, 1), (samples, samples)):
        found = run({name: data[:count] for name, data in inputs.items()}, wires, copies)
        print(f"{count} sample(s), {copies} side by side:")
        for name, data in expected.items():
            differ = int(np.count_nonzero(found[name] != data[:count]))
            wrong += differ
            print(f"  {name:32} {'equal' if not differ else f'{differ} of {data[:count].size} differ'}")
    print("all equal" if not wrong else f"{wrong} numbers differ")
    return int(wrong > 0)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="Run the network on Lava's bit-accurate simulation of Loihi 2.")
    parser.add_argument("--input", type=Path, help="spikes (samples, steps, *shape) by input name (.npz)")
    parser.add_argument("--output", type=Path, help="where the results go (.npz)")
    parser.add_argument("--record", nargs="+", default=[], metavar="LAYER", help="layers to record besides the outputs, or all")
    parser.add_argument("--length", type=int, default=0, metavar="T", help="steps to run a network that has no inputs")
    parser.add_argument("--copies", type=int, default=0, metavar="N", help="samples side by side (default: as fits)")
    parser.add_argument("--patience", type=float, default=PATIENCE, metavar="S", help=f"seconds a step may take ({PATIENCE:g})")
    parser.add_argument("--steps", type=Path, metavar="FILE", help="keep the steps done, and all, here: two 64-bit integers")
    parser.add_argument("--hw", action="store_true", help="on a Loihi 2 board; needs Intel's lava-loihi; not verified on silicon")
    parser.add_argument("--check", action="store_true", help="compare with golden.npz")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    try:
        if options.check:
            return check()
        if not options.output or not (options.input if INPUTS else options.length > 0):
            parser.error(f"{'--input' if INPUTS else '--length'} and --output are needed, or --check")
        inputs = read_inputs(options.input) if INPUTS else {}
        if options.hw and not inputs:
            raise Mistake("on hardware only networks with inputs run: the host counts the steps by what it sends")
        if options.hw:
            found = chip.run(build, inputs, options.record, load(HERE / "weights.npz"), MAX_LAG)
        else:
            found = run(inputs, options.record, options.copies, options.patience, options.steps, options.length)
        np.savez(options.output, **found)
        return 0
    except (Mistake, chip.NotHere) as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 1


if __name__ == "__main__":  # Lava's search for process models imports this file
    sys.exit(main())
