"""Passes by name, and running them one after the other with the verifier in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, ClassVar, Final, Protocol

from spikec.bits import MIXED
from spikec.diagnostics import CompileError, PassBug
from spikec.inputs import recode
from spikec.ir.graph import Graph
from spikec.ir.rules import verify
from spikec.ledger import Ledger

#: Pass name -> "module:Class". Explicit: a pass that cannot be imported is an error and not a gap.
PASSES: Final[dict[str, str]] = {
    "ann-to-snn": "spikec.passes.ann_to_snn:AnnToSnn",
    "canonicalise": "spikec.passes.canonicalise:Canonicalise",
    "place": "spikec.passes.place:Place",
    "shrink": "spikec.passes.shrink:Shrink",
    "prune": "spikec.passes.prune:Prune",
    "delays": "spikec.passes.delays:Delays",
    "windows": "spikec.passes.windows:Windows",
    "shorten": "spikec.passes.shorten:Shorten",
    "simplify": "spikec.passes.simplify:Simplify",
    "encode-inputs": "spikec.passes.encode_inputs:EncodeInputs",
    "fold-scale": "spikec.passes.fold_scale:FoldScale",
    "or-pool": "spikec.passes.or_pool:OrPool",
    "max-pool": "spikec.passes.max_pool:MaxPool",
    "fold-linear": "spikec.passes.fold_linear:FoldLinear",
    "legalise": "spikec.passes.legalise:Legalise",
    "equalise": "spikec.passes.equalise:Equalise",
    "match-rates": "spikec.passes.match_rates:MatchRates",
    "quantize": "spikec.passes.quantize:Quantize",
    "to-fixed": "spikec.passes.to_fixed:ToFixed",
    "retime": "spikec.passes.retime:Retime",
    "lower-neurons": "spikec.passes.lower_neurons:LowerNeurons",
    "lower-conv": "spikec.passes.lower_conv:LowerConv",
    "choose-formats": "spikec.passes.choose_formats:ChooseFormats",
}

#: Passes that no target lists: they run after `canonicalise`, in this order, when an option in their `asked_by` is given; the last
#: right before a quantizer, which it needs.
OPTIONAL: Final = ("prune", "encode-inputs", "shorten", "simplify", "delays", "windows", "equalise")
#: The passes that turn floats into integers.
QUANTIZERS: Final = ("quantize", "to-fixed")
#: The pass that suits biases to what those make of the weights: its floats are no longer the network as trained.
MATCHED: Final = "match-rates"
#: The pass that gives every neuron a unit of its own.
EQUALISE: Final = "equalise"


class Pass(Protocol):
    """A frozen dataclass whose fields are its options; it returns a new graph and records what it did."""

    name: ClassVar[str]
    #: The levels that it takes; at others there is nothing for it to do, as for a quantizer in a graph of integers.
    levels: ClassVar[tuple[str, ...]]

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The graph after the pass."""
        ...


@dataclass(frozen=True)
class Stage:
    """The graph after a pass, and the seconds it took. The first stage is the frontend's graph."""

    name: str
    graph: Graph
    seconds: float


def load_pass(name: str) -> type[Pass]:
    """The class of a pass. Raises CompileError SPK005."""
    if name not in PASSES:
        raise CompileError("SPK005", f"unknown pass '{name}'", fix=f"choose among {', '.join(PASSES)}")
    module, _, cls = PASSES[name].partition(":")
    loaded: type[Pass] = getattr(import_module(module), cls)
    return loaded


def with_optional(names: Iterable[str], options: Mapping[str, Any]) -> list[str]:
    """A pipeline with the optional passes that the options ask for. SPK001 for an option that does nothing by itself."""
    chosen = [*names]
    place = chosen.index("canonicalise") + 1 if "canonicalise" in chosen else 0
    given = {key for key, value in options.items() if value is not None and value is not False and value != "" and value != ()}
    used = {item.name for name in chosen for item in fields(load_pass(name))}  # type: ignore[arg-type]  # passes are dataclasses
    for name in OPTIONAL:
        cls = load_pass(name)
        asked_by: tuple[str, ...] = cls.asked_by  # type: ignore[attr-defined]  # what every optional pass has
        if options.get("bits") == MIXED:
            asked_by = tuple(key for key in asked_by if key != "max_bytes")  # a budget of bits, then
        own = {item.name for item in fields(cls)}  # type: ignore[arg-type]  # passes are dataclasses
        if given & set(asked_by):
            chosen.insert(_before_integers(chosen) if name == EQUALISE else place, name)
            place += 1
        elif lone := sorted((given & own) - used):
            raise CompileError("SPK001", f"the option '{lone[0]}' does nothing without one of {', '.join(asked_by)}")
    return chosen


def _before_integers(names: list[str]) -> int:
    """Where neurons get units of their own. SPK001 where nothing follows that can make use of it."""
    if "to-fixed" not in names:
        chip = "quantize" in names
        raise CompileError(
            "SPK001",
            "per_channel gives every neuron a threshold of its own, and "
            + ("this target has one for all neurons of a population" if chip else "without bits nothing is rounded"),
            fix="leave per_channel out" if chip else "give bits (--bits 4)",
        )
    return names.index("to-fixed")


def with_matching(names: Iterable[str], graph: Graph) -> list[str]:
    """A pipeline for a build with calibration data: biases, where a network has any, are matched before it becomes integers."""
    chosen = [*names]
    place = next((index for index, name in enumerate(chosen) if name in QUANTIZERS), None)
    if place is not None and any(getattr(node, "bias", None) is not None for node in graph.nodes):
        chosen.insert(place, MATCHED)
    return chosen


def make_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """The pass with those of the options that it has."""
    cls = load_pass(name)
    own = {item.name for item in fields(cls)}  # type: ignore[arg-type]  # passes are dataclasses
    return cls(**{key: value for key, value in options.items() if key in own and value is not None})


def run_passes(
    graph: Graph,
    names: Iterable[str],
    options: Mapping[str, Any],
    ledger: Ledger,
    on_stage: Callable[[Stage], None] | None = None,
) -> list[Stage]:
    """Run passes in order; every result is verified, and one that breaks a rule is a PassBug naming its pass. Those that do not
    take the graph's level are left out.

    options: what the passes' fields are filled from (target, calibrate, bits, ...). `on_stage` sees every stage as soon as it is
    there, so that dumps survive a later error.
    """
    stages: list[Stage] = []

    def add(stage: Stage) -> None:
        stages.append(stage)
        if on_stage:
            on_stage(stage)

    add(Stage("input", verify(graph), 0.0))
    for name in names:
        if stages[-1].graph.level not in load_pass(name).levels:
            continue
        begin = time.perf_counter()
        ledger.pass_name = name
        own = options
        if options.get("calibrate") is not None:  # as the graph takes it by now
            own = {**options, "calibrate": recode(stages[0].graph, stages[-1].graph, options["calibrate"])}
        result = make_pass(name, own).run(stages[-1].graph, ledger)
        try:
            verify(result)
        except CompileError as error:
            raise PassBug(f"pass '{name}' broke a rule of the IR: {error}") from error
        add(Stage(name, result, time.perf_counter() - begin))
    return stages
