"""The command line. Everything it can do, Python can: each command is a few lines over the Python interface.

Exit status: 0 done, 1 the user's mistake or a difference found, 70 a bug of spikec, 130 interrupted. Nothing that takes long to
import is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import json
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from spikec.arguments import axis, byte_count, calibration, data_for, duration, example, names_of, option, scalar
from spikec.diagnostics import CompileError
from spikec.files import check_file, reading
from spikec.printing import (
    may_be_written,
    print_json,
    print_table,
    print_target,
    result_arrays,
    result_json,
    save_arrays,
    target_json,
)
from spikec.spelling import did_you_mean
from spikec.version import __version__

if TYPE_CHECKING:
    from spikec.build import Build
    from spikec.ir.graph import Graph
    from spikec.pipeline import Stage
    from spikec.result import Result
    from spikec.runtime.trace import SpikeTrace

#: Where our own bugs are reported from: what was being compiled when it happened.
_last_stage: list[Stage] = []
BUG: Final = 70
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are CompileErrors like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting with status 2."""
        fix = f"{self.prog} --help"
        options = [option for action in self._actions for option in action.option_strings]
        if message.startswith("argument COMMAND: invalid choice: "):
            word = message.split("'")[1]
            choices = next(a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction))
            raise CompileError("SPK001", f"unknown command '{word}'", fix=did_you_mean(word, choices))
        # A mistyped option is the reason why the one that was meant is missing.
        strange = [word.split("=")[0] for word in _words if word.startswith("--") and word.split("=")[0] not in options]
        if strange and "required" in message:
            message = f"unknown option '{strange[0]}'"
            fix = did_you_mean(strange[0], [option for option in options if option.startswith("--")])
        raise CompileError("SPK001", message, fix=fix)


#: The command line that is being parsed.
_words: list[str] = []


def _parser() -> _Parser:
    parser = _Parser(
        prog="spikec",
        description="Compile a trained spiking network to neuromorphic or edge hardware, and prove that it still computes "
        "the same spikes.",
        epilog="MODEL is file.py:name (a torch module, a class, or a function returning one) or a .nir, .net, .onnx or .sir "
        "file. DATA is a .npz or .npy file, with :key where a .npz holds several arrays; its axes are (batch, T, ...).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"spikec {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print JSON on standard output, errors included")
        return made

    add = command("compile", _compile, "compile MODEL into the build folder BUILD").add_argument
    add("model", metavar="MODEL", help="file.py:name, a .nir, .net, .onnx or .sir file, or a build folder")
    add("-o", "--output", metavar="BUILD", required=True, help="the build folder; an earlier build there is replaced")
    add("--target", help="a target's name (see spikec targets) or a .toml file; default loihi2, or the build's own")
    add("--calibrate", metavar="DATA", help="inputs that quantization is calibrated on; labels in key y are used too")
    add(
        "--bits",
        metavar="N",
        help="bits of a weight, which also asks for integers; 8,4,8 or fc1=4 by layer; mixed: see --max-bytes",
    )
    add("--max-ram", metavar="SIZE", help="refuse a network that needs more memory: bytes, or with K, M or G (of 1024)")
    add("--max-flash", metavar="SIZE", help="the same for constants and code; on boards without flash they count as memory")
    add("--small", action="store_true", help="C: pruned layers in the fewest bytes of program and memory, not in the least time")
    add("--encode", metavar="ENCODER", help="turn real-valued inputs into spikes: rate, latency, phase, delta:threshold=X, ...")
    add(
        "--prune",
        type=float,
        metavar="SHARE",
        help="remove this share of the synapses, those of least effect, some with their neuron (0.9)",
    )
    add(
        "--prune-structured",
        type=float,
        metavar="SHARE",
        help="remove this share of every hidden layer's neurons or channels; 0: none for --prune",
    )
    add("--prune-pattern", metavar="P", help="block16: whole blocks of neighbouring targets; 2:4: two of every four stay")
    add("--max-synapses", type=int, metavar="N", help="prune until no more than so many synapses are left")
    add("--max-bytes", type=int, metavar="N", help="prune, or with --bits mixed choose widths, until the weights take so few bytes")
    add("--fit", metavar="WHAT", help="one-core, 4-cores: as few bits, neurons and synapses less as fit there (needs --calibrate)")
    add("--cutoff", type=float, metavar="SHARE", help="answer early where at most this share of the answers is lost by it (0.002)")
    add("--cutoff-steps", type=float, metavar="SHARE", help="answer early after at most this share of the steps on average (0.5)")
    add("--steps-to", type=int, metavar="N", help="at most so many steps: several become one, decays adjusted (needs --calibrate)")
    add("--steps-loss", type=float, metavar="SHARE", help="the fewest steps that lose at most this share of the answers")
    add("--windows-loss", type=float, metavar="SHARE", help="per layer the steps without which at most this share is lost (0.002)")
    add("--per-channel", action="store_true", default=None, help="with few bits: weights on a grid for each neuron, or channel")
    add("--simplify", type=float, metavar="SHARE", help="cheaper neurons where at most this share of the answers is lost (0.005)")
    add("--max-delay", type=int, metavar="N", help="shorten synaptic delays to at most so many steps")
    add("--delay-step", type=int, metavar="N", help="round synaptic delays to multiples of so many steps")
    add("--share-delays", metavar="N", help="at most so many different delays a layer; axonal: one for each source")
    add("--chips", type=int, metavar="N", help="how many chips there are; default: those of the target's board")
    add("--strict", action="store_true", help="refuse every approximation that was not asked for")
    add("--prove-ranges", action="store_true", help="refuse a network in which an integer can wrap or saturate")
    add("--weights", metavar="FILE", help="load this state dict (.pt) into the model first")
    add("--example", metavar="DATA", help="an input as the model itself takes it, to trace the model with")
    add("--input-shape", metavar="N,N,...", help="trace with random spikes of this shape instead of --example")
    add("--time-axis", metavar="AXIS", help="which axis of the example is time: a number, or none (with --steps)")
    add("--batch-axis", metavar="AXIS", help="which axis of the example is the batch: a number, or none")
    add("--steps", type=int, metavar="T", help="steps to run a model that gets the same frame at every step")
    add("--input-kind", metavar="KIND", help="spike, graded or value; default: spike if the example holds only 0 and 1")
    add("--spiking", action=argparse.BooleanOptionalAction, help="make a network of ReLUs spike; default: if it is an .onnx")
    add("--dt", metavar="TIME", help="what a step lasts: 1ms, 100us; where the model means real time")
    add("--name", help="the name of the graph; default: from the model")
    add(
        "--option",
        action="append",
        metavar="KEY=VALUE",
        help="an option of one of the target's passes or of the reader; repeatable",
    )
    add("--dump-ir", metavar="DIR", help="write the graph after every pass, even if a later one fails")
    add("--print-after", action="append", metavar="PASS", help="print the graph after this pass; repeatable")

    add = command("tune", _tune, "search for the smallest builds of MODEL that keep a score; leave a Pareto front").add_argument
    add("model", metavar="MODEL", help="file.py:name, a .nir, .net, .onnx or .sir file, or a build folder")
    add("-o", "--output", metavar="DIR", required=True, help="the folder of the search; one that is there already is resumed")
    add("--calibrate", metavar="DATA", required=True, help="inputs, and labels in key y; a part is held out for scoring")
    add("--target", help="a target's name (see spikec targets) or a .toml file; default loihi2, or the build's own")
    add("--budget", action="append", metavar="KEY=N", help="at most so many bytes, synapses, operations or steps; repeatable")
    add("--min-score", type=float, metavar="SHARE", help="the least share of right answers (0.95)")
    add("--trials", type=int, default=50, metavar="N", help="how many points to try in all; default 50")
    add("--jobs", type=int, default=1, metavar="N", help="processes; with 1, the same seed gives the same trials")
    add("--seed", type=int, default=0, metavar="N", help="of the split, the search and the recovery; default 0")
    add(
        "--held-out",
        type=float,
        default=0.3,
        metavar="SHARE",
        help="the share of the samples that builds are scored on; default 0.3",
    )
    add("--bits", metavar="N,N", help="widths of a weight to try; default: those of the target from 8 down to 3")
    add("--recover", type=int, metavar="EPOCHS", help="also try a recovery of so many epochs after compiling")
    add("--weights", metavar="FILE", help="load this state dict (.pt) into the model first")
    add("--example", metavar="DATA", help="an input as the model itself takes it, to trace the model with")
    add("--input-shape", metavar="N,N,...", help="trace with random spikes of this shape instead of --example")
    add("--option", action="append", metavar="KEY=VALUE", help="an option of compile or of one of the target's passes; repeatable")

    add = command("run", _run, "run BUILD on input data").add_argument
    add("build", metavar="BUILD", help="a build folder")
    add("--input", metavar="DATA", help="the data; key x, the input's name, or the only array")
    add("--steps", type=int, metavar="T", help="steps to show frames for, or to run a network without inputs")
    add("--backend", help="reference (the default), numpy, c or lava")
    add("--threads", type=int, metavar="N", help="samples that c runs at once; default: one a processor")
    add("--record", metavar="LAYERS", help="layers to keep, separated by commas, or all")
    add("--level", help="float runs the network as trained instead of the last stage")
    add("--output", metavar="FILE", help="write outputs, recorded layers and final states to this .npz")
    add("--traces", metavar="FOLDER", help="write the spikes of outputs and recorded layers there, sparsely, one .npz each")
    add("--timeout", type=float, metavar="S", help="seconds that a backend's process may take")

    add = command("verify", _verify, "compare engines, spike for spike, with the reference; exit 1 if any differs").add_argument
    add("build", metavar="BUILD", help="a build folder")
    add("--input", metavar="DATA", help="the data; default: the golden samples in the build")
    add("--steps", type=int, metavar="T", help="steps to show frames for, or to run a network without inputs (16)")
    add("--backends", metavar="NAMES", help="separated by commas; default: all that are there")
    add(
        "--impulse",
        action="store_true",
        help="instead, measure how long an impulse takes to every layer",
    )
    add("--bisect", action="store_true", help="instead, score the labelled data (key y) after every pass: where did it fall?")
    add("--timeout", type=float, metavar="S", help="seconds that a backend's process may take")

    add = command("show", _show, "print the IR of a build or a graph's file; say what a spike trace holds").add_argument
    add("build", metavar="BUILD|FILE", help="a build folder, a file that holds a graph, or a spike trace (.npz)")
    add("--after", metavar="PASS", help="the graph after this pass; default: the last")
    add("--level", help="the last graph of this level: float, fixed, placed")
    add("--full", action="store_true", help="write every array out")
    add("--memory", action="store_true", help="instead, what each layer takes in the emitted C, in bytes")
    add("--ranges", action="store_true", help="instead, how far sums and states reach, and where one can wrap or saturate")
    add("--input", metavar="DATA", help="with --ranges: how far they reach on these data as well")

    add = command("report", _page, "say where the HTML report of BUILD is, or write one on other data").add_argument
    add("build", metavar="BUILD", help="a build folder")
    add("--input", metavar="DATA", help="data for rates and estimates; default: the golden samples in the build")
    add("-o", "--output", metavar="FILE", help="write the report here instead")

    add = command("diff", _diff, "compare two graphs: lines, and numbers of arrays; exit 1 if they differ").add_argument
    add("a", metavar="A", help="a .sir, .nir, .onnx or .net file, or a build folder: its last graph")
    add("b", metavar="B", nargs="?", help="the same; left out with --passes")
    add("--passes", nargs=2, metavar=("P", "Q"), help="compare the graphs after these two passes of the build folder A")

    add = command("convert", _convert, "write the graph in file A as file B: .sir, .nir, .onnx, .net").add_argument
    add("source", metavar="A", help="a .sir, .nir, .onnx or .net file, or a build folder: its last graph")
    add("place", metavar="B", help="the file to write; its suffix says the format")
    add("--dt", metavar="TIME", help="what a step lasts: 1ms, 100us; where A means real time and does not say")
    add("--name", help="the name of the graph; default: from the file")
    add("--after", metavar="PASS", help="of a build folder, the graph after this pass (input: as it was read)")
    add("--level", help="of a build folder, the last graph of this level: float, fixed, placed")
    add("--option", action="append", metavar="KEY=VALUE", help="an option of A's reader; repeatable")

    add = command("targets", _targets, "list the targets, or every number of one").add_argument
    add("name", metavar="NAME", nargs="?", help="a target, for all it states")

    command("doctor", _doctor, "say what is present, what is missing, and the command that mends it")

    setup = command("setup", _setup, "install an optional tool in an environment of its own")
    setup.add_argument("tool", metavar="TOOL", help="lava")
    setup.add_argument("--if-missing", action="store_true", help="say nothing and do nothing if it is there")
    setup.add_argument("--force", action="store_true", help="make it anew even if it is there")
    return parser


# ------------------------------------------------------------------------------------------------------------ commands


#: Options of passes that have a flag of their own.
_FLAGS = (
    "encode",
    "prune",
    "prune_structured",
    "prune_pattern",
    "max_synapses",
    "max_bytes",
    "chips",
    "steps_to",
    "steps_loss",
    "windows_loss",
    "simplify",
    "per_channel",
    "max_delay",
    "delay_step",
    "share_delays",
)


def _compile(options: argparse.Namespace) -> int:
    from spikec import driver
    from spikec.folder import check_place
    from spikec.pipeline import OPTIONAL, load_pass
    from spikec.progress import Bar

    target = driver.target_of(options.model, options.target)
    for name in options.print_after or ():
        if name != "input":
            load_pass(name)
        if name not in ("input", "match-rates", "to-fixed", *OPTIONAL, *target.passes):
            raise CompileError("SPK005", f"the target '{target.name}' does not run the pass '{name}'")
    place = Path(options.output)
    check_place(place)
    calibrate, labels = calibration(options.calibrate) if options.calibrate else (None, None)
    more: dict[str, Any] = {}
    for key in ("time_axis", "batch_axis"):
        if getattr(options, key) is not None:
            more[key] = axis(key, getattr(options, key))
    for key in _FLAGS:
        if getattr(options, key) is not None:
            more[key] = getattr(options, key)
    if "share_delays" in more:
        more["share_delays"] = scalar(more["share_delays"])
    for pair in options.option or ():
        key, value = option(pair)
        if key in inspect.signature(driver.compile).parameters or key in _FLAGS:
            flag = f"write --{key.replace('_', '-')} {pair.partition('=')[2]}" if key in vars(options) and key != "model" else None
            raise CompileError("SPK001", f"--option {pair}: {key} is no option of a pass or a reader", fix=flag)
        more[key] = value

    done = 0
    printed: dict[str, str] = {}

    def seen(stage: Stage) -> None:
        from spikec.ir.text import print_graph

        nonlocal done
        done += 1
        bar(done, len(target.passes) + 1)
        _last_stage[:] = [stage]
        if stage.name in (options.print_after or ()):
            printed[stage.name] = print_graph(stage.graph)[0]
            if not options.json:
                print(printed[stage.name])

    with Bar("compiling") as bar:
        build = driver.compile(
            options.model,
            example(options),
            target=options.target,
            calibrate=calibrate,
            labels=labels,
            bits=options.bits,
            strict=options.strict,
            prove_ranges=options.prove_ranges,
            cutoff=options.cutoff,
            cutoff_steps=options.cutoff_steps,
            max_ram=byte_count("--max-ram", options.max_ram),
            max_flash=byte_count("--max-flash", options.max_flash),
            small=options.small,
            fit=options.fit,
            name=options.name,
            steps=options.steps,
            dt=duration(options.dt),
            input_kind=options.input_kind,
            weights=options.weights,
            spiking=options.spiking,
            dump_ir=options.dump_ir,
            on_stage=seen,
            **more,
        )
        build.save(place)
    summary = build.summary()
    if options.json:
        print_json({**summary, "output": str(place), **({"printed": printed} if printed else {})})
        return 0
    print(f"{summary['name']} for {summary['target']} ({summary['level']}): {' -> '.join(['input', *summary['passes']])}")
    print_table(
        [["layer", "neurons", "neuron"]] + [[row["name"], row["neurons"], f"@{row['program']}"] for row in summary["populations"]]
    )
    print(f"{summary['neurons']} neurons, {summary['synapses']} synapses, lag {summary['lag']} steps")
    for title in ("approximations", "conventions"):
        if summary[title]:
            print(f"{title}:")
            for line in summary[title]:
                print(f"  {line}")
    if not summary["approximations"]:
        print("no approximations: every spike is that of the model")
    if build.target.backend == "c":
        memory = build.memory()
        print(f"{memory.total:,} bytes of states and buffers, {memory.constants:,} bytes of constants (spikec show --memory)")
    print(f"written to {place}")
    return 0


def _tune(options: argparse.Namespace) -> int:
    from spikec.tuning import tune

    data, labels = calibration(options.calibrate)
    budget: dict[str, float] = {}
    for pair in options.budget or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise CompileError("SPK001", f"--budget {pair}: write KEY=N, such as bytes=64K")
        number = scalar(value)
        budget[key] = number if isinstance(number, (int, float)) else float(byte_count(f"--budget {key}", value) or 0)
    bits = None
    if options.bits is not None:
        try:
            bits = [int(part) for part in options.bits.split(",")]
        except ValueError:
            raise CompileError("SPK001", f"--bits is a list such as 8,4, not '{options.bits}'") from None
    try:
        found = tune(
            options.model,
            example(options),
            data=data,
            labels=labels,
            output=options.output,
            target=options.target,
            budget=budget,
            min_score=options.min_score,
            trials=options.trials,
            jobs=options.jobs,
            seed=options.seed,
            held_out=options.held_out,
            bits=bits,
            epochs=(0, options.recover) if options.recover else (0,),
            weights=options.weights,
            **dict(option(pair) for pair in options.option or ()),
        )
    except KeyboardInterrupt:
        print(f"the finished trials are in {options.output}: the same command goes on from there", file=sys.stderr)
        raise
    if options.json:
        print_json(found.as_json())
    else:
        print(found.text())
        print(f"written to {options.output}: front.txt, front.json, front.png, front.svg and builds/")
    return 0


def _run(options: argparse.Namespace) -> int:
    from spikec.build import load
    from spikec.progress import Bar

    build = load(options.build)
    graph = build.graph(level=options.level)
    x = data_for(options.input, graph) if options.input else None
    output = Path(options.output) if options.output else None
    if output is not None and not may_be_written(output):
        raise CompileError("SPK008", f"{output}: cannot be written: not a file in an existing folder")
    traces = Path(options.traces) if options.traces else None
    if traces is not None and not (traces.is_dir() or (not traces.exists() and traces.parent.is_dir())):
        raise CompileError("SPK008", f"{traces}: cannot be written: not a folder, nor a new one in an existing folder")
    record: str | list[str] | None = options.record if options.record in (None, "all") else names_of(options.record)
    # Lava steps one large network; the others finish some samples after the others.
    with Bar("running", unit="steps" if options.backend == "lava" else "samples") as bar:
        result = build.run(
            x,
            options.backend,
            record,
            level=options.level,
            timeout=options.timeout,
            progress=bar,
            threads=options.threads,
            steps=options.steps,
        )
    if output is not None:
        save_arrays(output, result_arrays(result))
    stored = _save_traces(traces, result) if traces is not None else {}
    if options.json:
        print_json(result_json(result) | ({"traces": stored} if stored else {}))
        return 0
    batch = next(iter(result.outputs.values())).shape[0]
    print(f"{result.backend}: {batch} samples of {result.steps} steps in {result.seconds:.3g} s")
    rows: list[list[Any]] = [["output or layer", "shape", "non-zero", "a sample", "sum"]]
    recorded = [(name, array) for name, array in result.records.items() if name not in result.outputs]
    for name, array in (*result.outputs.items(), *recorded):
        shape = "x".join(map(str, array.shape[2:])) or "1"
        count = int((array != 0).sum())
        rows.append([name, shape, count, f"{count / batch:.4g}", f"{array.sum():.6g}"])
    print_table(rows)
    if record == "all":
        print()
        print_table(
            [["layer", "spikes", "synaptic operations", "updates", "messages"]]
            + [[n, c.spikes, c.synaptic_operations, c.updates, c.messages] for n, c in result.counts.items()]
        )
        print()
        print_table(
            [["layer", "spikes a neuron and step", "dormant neurons"]]
            + [[n, f"{rate:.4g}", len(result.dormant[n]) if n in result.dormant else ""] for n, rate in result.spike_rate.items()]
        )
        print(f"\n{result.estimate.text()}")
    if traces is not None:
        print()
        rows = [[name, each["events"], each["bytes"], f"{each['ratio']:.3g}"] for name, each in stored.items()]
        print_table([["trace", "events", "bytes", "times smaller"], *rows])
        print(f"traces written to {traces}")
    if output is not None:
        print(f"written to {output}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from spikec.build import load
    from spikec.progress import Bar

    build = load(options.build)
    if options.bisect and options.impulse:
        raise CompileError("SPK001", "--bisect and --impulse are two different questions", fix="leave one of them out")
    if options.bisect:
        return _bisect(build, options)
    backends = None if options.backends is None else names_of(options.backends)
    if backends == []:
        raise CompileError("SPK001", "--backends names none", fix="--backends reference,numpy,c")
    if options.impulse:
        if options.input:
            raise CompileError("SPK001", "--impulse sends impulses of its own: leave out --input")
        latencies = build.impulses(backends, timeout=options.timeout)
        if options.json:
            print_json(latencies.as_json())
        else:
            print(latencies.text())
        return 0 if latencies.ok else 1
    x = data_for(options.input, build.graph()) if options.input else None
    with Bar("verifying") as bar:
        found = build.verify(x, backends, timeout=options.timeout, progress=bar, steps=options.steps)
    if options.json:
        print_json(found.as_json())
    else:
        print(found.text())
    return 0 if found.ok else 1


def _bisect(build: Build, options: argparse.Namespace) -> int:
    from spikec.bisect import bisect

    if not options.input:
        raise CompileError("SPK001", "--bisect needs labelled data: --input x.npz with the labels in the key y")
    data, labels = calibration(options.input)
    if labels is None:
        raise CompileError("SPK001", f"{options.input} has no labels", fix="put them into the file under the key y")
    found = bisect(build, data, labels)
    if options.json:
        print_json(found.as_json())
    else:
        print(found.text())
    return 0


def _show(options: argparse.Namespace) -> int:
    path = Path(options.build)
    with reading(path):
        folder = path.is_dir()
    if options.input and not options.ranges:
        raise CompileError("SPK001", "--input goes with --ranges")
    if options.ranges:
        from spikec.build import load

        build = load(path)
        reach = build.ranges(data_for(options.input, build.graph()) if options.input else None)
        if options.json:
            print_json(reach.as_json())
        else:
            print(reach.text(), end="")
        return 0
    if options.memory:
        from dataclasses import asdict

        from spikec.build import load

        memory = load(path).memory()
        if options.json:
            print_json(asdict(memory))
        else:
            print(memory.text(), end="")
        return 0
    if path.suffix == ".npz" and not folder:
        if options.after or options.level or options.full:
            raise CompileError("SPK001", f"{path} is a spike trace: --after, --level and --full are for graphs")
        return _show_trace(path, options.json)
    if folder:
        from spikec.build import load

        text = load(path).ir(options.after, options.level, options.full)
    else:
        from spikec.driver import read_model
        from spikec.ir.text import print_graph

        with reading(path):
            if not path.exists():
                raise CompileError("SPK002", f"{path}: no such file or build folder")
        if options.after or options.level:
            raise CompileError("SPK001", f"{path} is one graph: --after and --level need a build folder")
        text = print_graph(read_model(path), full=options.full)[0]
    if options.json:
        print_json({"ir": text})
    else:
        print(text, end="")
    return 0


def _show_trace(path: Path, as_json: bool) -> int:
    """What a file of spikes holds, and how much smaller it is than the spikes themselves; the events are not read."""
    from spikec.runtime.trace import SpikeTrace, TraceError

    check_file(path)
    try:
        trace = SpikeTrace.load(path)
    except TraceError as error:
        raise CompileError("SPK007", str(error)) from None
    found = _trace_json(trace)
    if as_json:
        print_json(found)
        return 0
    unit = "steps" if trace.tick is None else f"times of {trace.tick} µs"
    shape = "x".join(map(str, trace.shape))
    print(f"{path}: {trace.batch} samples of {trace.duration} {unit}, shape {shape}, {trace.count} events")
    print(f"stored in {found['bytes']} bytes, {found['ratio']:.3g} times smaller than the array or the list of events")
    return 0


def _trace_json(trace: SpikeTrace) -> dict[str, Any]:
    return {
        "samples": trace.batch,
        "duration": trace.duration,
        "tick": trace.tick,
        "shape": list(trace.shape),
        "events": trace.count,
        "bytes": trace.coded_bytes,
        "ratio": trace.ratio,
    }


def _save_traces(folder: Path, result: Result) -> dict[str, dict[str, Any]]:
    """A trace for every output and recorded layer that holds spikes; what each holds and takes, by name."""
    from spikec.ir.ops import Ref
    from spikec.runtime.trace import SpikeTrace

    graph = result.graph
    wires = {name: (graph.output(name), array) for name, array in result.outputs.items()}
    for name, array in result.records.items():
        node, _, port = name.partition(".")
        wires.setdefault(name, (Ref(node, port), array))
    found: dict[str, dict[str, Any]] = {}
    for name, (ref, array) in wires.items():
        if graph.type_of(ref).kind != "spike":
            continue
        trace = SpikeTrace.from_dense(array if array.ndim > 2 else array[..., None])
        try:
            folder.mkdir(exist_ok=True)
            trace.save(folder / f"{name}.npz")
        except OSError as error:
            raise CompileError("SPK008", f"{folder}: cannot be written ({error.strerror})") from None
        found[name] = _trace_json(trace)
    return found


def _page(options: argparse.Namespace) -> int:
    from spikec.build import load

    build = load(options.build)
    x = data_for(options.input, build.graph()) if options.input else None
    if options.input and not options.output:
        raise CompileError("SPK001", "a report on other data needs a place", fix="-o FILE")
    if options.output and not may_be_written(Path(options.output)):
        raise CompileError("SPK008", f"{options.output}: cannot be written: not a file in an existing folder")
    place = build.report(options.output, x)
    if options.json:
        print_json({"report": str(place)})
    else:
        print(place)
    return 0


def _diff(options: argparse.Namespace) -> int:
    from spikec.build import load
    from spikec.diff import diff
    from spikec.driver import read_model

    if (options.b is None) != (options.passes is not None):
        raise CompileError("SPK001", "diff takes two graphs, A and B, or one build folder and --passes P Q")

    def graph(text: str) -> Graph:
        path = Path(text)
        with reading(path):
            if not path.exists():
                raise CompileError("SPK002", f"{path}: no such file or build folder")
            folder = path.is_dir()
        return load(path).graph() if folder else read_model(path)

    if options.passes:
        build = load(options.a)
        before, after = options.passes
        found = diff(build.graph(before), build.graph(after), (before, after))
    else:
        found = diff(graph(options.a), graph(options.b), (options.a, options.b))
    if options.json:
        print_json(found.as_json())
    else:
        print(found.text(), end="")
    return 0 if found.equal else 1


def _convert(options: argparse.Namespace) -> int:
    from spikec import driver
    from spikec.ledger import Ledger

    ledger = Ledger()
    more = dict(option(pair) for pair in options.option or ())
    if wrong := [key for key in more if key in ("name", "dt", "after", "level", "ledger")]:
        raise CompileError("SPK001", f"--option {wrong[0]}: write --{wrong[0]}")
    graph = driver.convert(
        options.source,
        options.place,
        name=options.name,
        dt=duration(options.dt),
        after=options.after,
        level=options.level,
        ledger=ledger,
        **more,
    )
    if options.json:
        print_json({"output": options.place, "name": graph.name, "level": graph.level, "ledger": ledger.as_json()})
        return 0
    for entry in ledger:
        print(entry.text())
    print(f"{graph.name} ({graph.level}, {len(graph.nodes)} nodes) written to {options.place}")
    return 0


def _targets(options: argparse.Namespace) -> int:
    from spikec.target import load_target, target_names

    if options.name:
        target = load_target(options.name)
        if options.json:
            print_json(target_json(target))
        else:
            print_target(target)
        return 0
    found = [load_target(name) for name in target_names()]
    if options.json:
        print_json([{"name": t.name, "backend": t.backend, "description": t.description} for t in found])
        return 0
    print_table([["target", "backend", "numbers", "description"]] + [[t.name, t.backend, t.level, t.description] for t in found])
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from spikec.backends.lava import environment
    from spikec.doctor import checks, exit_status, render

    found = checks(environment.check())
    if options.json:
        print_json([asdict(check) for check in found])
    else:
        print(render(found))
    return exit_status(found)


def _setup(options: argparse.Namespace) -> int:
    if options.tool != "lava":
        raise CompileError("SPK001", f"unknown tool '{options.tool}'", fix="spikec setup lava")
    if options.force and options.if_missing:
        raise CompileError("SPK001", "--force and --if-missing exclude each other")
    from spikec.backends.lava import environment

    if options.if_missing and environment.locate() is not None:
        return 0
    made = environment.setup(report=lambda line: print(line, file=sys.stderr, flush=True), force=options.force)
    if options.json:
        print_json({"lava": str(made)})
    return 0


# ------------------------------------------------------------------------------------------------------------------ main


def _reproducer(arguments: Sequence[str], error: BaseException) -> Path:
    """A folder with what is needed to look into a crash: traceback, command, versions, and the last graph that was right."""
    folder = Path(tempfile.mkdtemp(prefix="spikec-bug-"))
    text = "".join(traceback.format_exception(error))
    (folder / "traceback.txt").write_text(text, encoding="utf-8")
    facts = {"arguments": list(arguments), "spikec": __version__, "python": sys.version, "platform": platform.platform()}
    (folder / "command.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if _last_stage:
        from spikec.ir.text import write_graph

        write_graph(_last_stage[0].graph, folder / f"after-{_last_stage[0].name}.sir")
    return folder


def _drop_output() -> None:
    """What is left in the buffer of the standard output must not raise again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: CompileError, as_json: bool) -> None:
    print(error, file=sys.stderr)
    if as_json:
        print_json({"errors": [item.as_json() for item in error.diagnostics]})


def _dispatch(arguments: Sequence[str]) -> int:
    _words[:] = arguments
    parser = _parser()
    options, surplus = parser.parse_known_args(arguments)
    if surplus:
        word = surplus[0].split("=")[0]
        if not word.startswith("-"):
            raise CompileError("SPK001", f"unexpected argument '{word}'", fix=f"spikec {options.command or ''} --help")
        own = [f"--{key.replace('_', '-')}" for key in vars(options) if key not in ("command", "run")]
        raise CompileError("SPK001", f"unknown option '{word}'", fix=did_you_mean(word, own or ["--help", "--version"]))
    if options.command is None:
        parser.print_help()
        return 0
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def main(argv: Iterable[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _last_stage.clear()
    try:
        status = _dispatch(arguments)
        if sys.stdout is not None:  # it is None where the caller closed it
            sys.stdout.flush()
        return status
    except CompileError as error:
        _report(error, "--json" in arguments)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # the reader has gone
        return BROKEN_PIPE
    except MemoryError as error:
        what = f"more memory is needed than there is ({str(error).splitlines()[0]})" if str(error) else "there is no more memory"
        _report(CompileError("SPK001", what, fix="give fewer samples or steps"), "--json" in arguments)
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            _drop_output()
            _report(CompileError("SPK008", f"the standard output cannot be written ({error.strerror})"), False)
            return 1
        summary = (str(error).splitlines() or [""])[0]
        print(f"spikec: this is a bug in spikec ({type(error).__name__}: {summary})", file=sys.stderr)
        print(f"  what is needed to look into it is in {_reproducer(arguments, error)}", file=sys.stderr)
        return BUG


if __name__ == "__main__":
    sys.exit(main())
