"""Fitting a network onto a number of cores: how little has to go?

Tried are bits of a weight, the share of neurons removed and the share of synapses pruned. For every width and share of neurons the
least pruning with which the network passes all design rules on so many cores is found, by compiling without data; what is nowhere
milder than another is left out. The mildest of the rest are compiled as they will be and compared on the calibration data, and the
one that loses the fewest answers counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from spikec.bits import INDEX_BITS
from spikec.build import Build
from spikec.diagnostics import CompileError
from spikec.inputs import check_inputs, frames
from spikec.ir.graph import Graph
from spikec.passes.costs import Judge
from spikec.pipeline import Stage
from spikec.progress import Bar
from spikec.target import Target

#: Bits of a weight and shares of the neurons of every hidden layer that are tried, the mildest first.
WIDTHS: Final = (8, 6, 5, 4, 3, 2)
STRUCTURED: Final = (0.0, 0.2, 0.4, 0.6, 0.8)
#: How finely and how far synapses are pruned, in shares of 1 / GRAINS.
GRAINS: Final = 50
MOST: Final = 49
#: So many of the mildest combinations are measured.
MEASURED: Final = 6
#: What a network that does not fit is refused with.
CORES: Final = ("SPK230", "SPK231", "SPK232")
_WANTED: Final = re.compile(r"(one|[1-9]\d*)-cores?")
Compile = Callable[..., Build]


@dataclass(frozen=True)
class Point:
    """A combination: bits of a weight, and the shares of neurons and of synapses that go."""

    bits: int
    structured: float
    pruned: float

    @property
    def harshness(self) -> float:
        """A rough order before anything is measured: bits that go, and twice over what of the synapses goes."""
        left = (1 - self.structured) ** 2 * (1 - self.pruned)
        return float((8 - self.bits) / 8 - np.log2(left))

    def options(self) -> dict[str, Any]:
        """What the compiler is asked for."""
        told: dict[str, Any] = {"bits": self.bits}
        if self.structured or self.pruned:  # 0 is none, and not as many as the pruning pass chooses
            told["prune_structured"] = self.structured
        if self.pruned:
            told["prune"] = self.pruned
        return told

    def text(self) -> str:
        """In words."""
        parts = [f"{self.bits} bits"]
        parts += [f"{100 * self.structured:g} % of the neurons removed"] if self.structured else []
        parts += [f"{100 * self.pruned:g} % of the synapses pruned"] if self.pruned else []
        return ", ".join(parts)


def cores_of(fit: str) -> int:
    """How many cores "one-core" or "4-cores" allows. Raises CompileError SPK001."""
    found = _WANTED.fullmatch(fit) if isinstance(fit, str) else None
    if found is None:
        raise CompileError("SPK001", f"'{fit}' is nothing to fit onto", fix="write --fit one-core or --fit 4-cores")
    return 1 if found[1] == "one" else int(found[1])


def fitted(compile_: Compile, target: Target, fit: str, arguments: Mapping[str, Any]) -> Build:
    """A build that passes all design rules on so many cores, with as little lost as was found.

    compile_: `spikec.compile`; arguments: its own. bits, prune and prune_structured among them are kept to as the least.
    Raises CompileError SPK001 for a target without cores or without calibration data, SPK219 where nothing that is tried fits.
    """
    cores = cores_of(fit)
    if not target.has("core_neurons"):
        raise CompileError("SPK001", f"--fit {fit} is for a target with cores; '{target.name}' has none")
    given = {**arguments, "cores": cores}
    stages: list[Stage] = []
    watch = arguments.get("on_stage")
    try:
        made = compile_(**{**given, "on_stage": stages.append})
    except CompileError as error:
        if not stages or not {d.code for d in error.diagnostics} <= set(CORES):
            raise
        too_large = error
    else:
        for stage in made.stages if watch is not None else ():
            watch(stage)  # type: ignore[misc]  # mypy forgets what the line above asked
        made.ledger.pass_name = "fit"
        made.ledger.record("", "convention", f"on {_cores(cores)} as it is: nothing had to go")
        return made
    if "ann-to-snn" in [stage.name for stage in stages]:
        raise CompileError(
            "SPK001", f"--fit {fit} takes networks that spike already", fix="convert it first (spikec compile --target reference)"
        )
    if arguments.get("calibrate") is None:
        raise CompileError(
            "SPK001",
            f"--fit {fit} needs calibration data to measure on what may go: {too_large.diagnostics[0].message}",
            fix="give calibrate (--calibrate)",
        )
    search = _Search(compile_, given, stages[0].graph, cores)
    points = search.points(too_large)
    with Bar("fitting") as bar:
        tried: list[tuple[float, Point, dict[str, float]]] = []
        for number, point in enumerate(points):
            bar(number, len(points))
            if (result := search.measured(point)) is not None:
                tried.append((result[1]["loss"], *result))
    if not tried:
        raise search.refusal(too_large)
    _, chosen, cost = min(tried, key=lambda item: (item[0], item[1].harshness))
    build = compile_(**{**given, **chosen.options(), "on_stage": watch})
    build.ledger.pass_name = "fit"
    for _, point, figures in tried:
        if point is not chosen:
            build.ledger.record("", "convention", f"would fit too, not taken: {point.text()}", measured=figures)
    figures = {**cost, "synapses before": float(search.synapses), "synapses after": float(build.summary()["synapses"])}
    build.ledger.record(
        "", "approximation", f"to fit onto {_cores(cores)}: {chosen.text()}", asked=f"--fit {fit}", measured=figures
    )
    return build


def _cores(count: int) -> str:
    return "one core" if count == 1 else f"{count} cores"


class _Search:
    """The combinations of one network, and what they need and cost."""

    def __init__(self, compile_: Compile, given: Mapping[str, Any], graph: Graph, cores: int) -> None:
        self.compile, self.given, self.graph, self.cores = compile_, dict(given), graph, cores
        plain = compile_(graph, target="reference")
        self.synapses = plain.summary()["synapses"]
        steps, data = given.get("steps"), given["calibrate"]
        data = frames(plain.stages[0].graph, data, steps) if steps else check_inputs(plain.stages[0].graph, data)
        self.judge = Judge(graph, data, given.get("labels"), "--fit")
        # Without data passes do not measure anything; the network is traced already.
        traced = ("model", "example_input", "weights", "time_axis", "batch_axis", "steps", "dt", "input_kind", "name")
        dropped = {*traced, "calibrate", "labels", "cutoff", "cutoff_steps", "on_stage", "dump_ir"}
        self.quick = {key: value for key, value in given.items() if key not in dropped}
        self.last: CompileError | None = None
        self.hardest: Point | None = None

    def fits(self, point: Point) -> bool:
        """Whether a combination passes the design rules, its pruning by magnitude."""
        try:
            self.compile(self.graph, **{**self.quick, **point.options()})
        except CompileError as error:
            if not {d.code for d in error.diagnostics} & set(CORES):
                return False
            self.last, self.hardest = error, point
            return False
        return True

    def points(self, too_large: CompileError) -> list[Point]:
        """The mildest combinations that fit, in the order of their harshness."""
        bits = self.given.get("bits")
        widths = [bits] if isinstance(bits, int) else list(WIDTHS)
        if bits is not None and not isinstance(bits, int):
            raise CompileError("SPK001", "--fit chooses the bits itself", fix="leave out --bits, or give one width for all layers")
        least_structured, least_pruned = self.given.get("prune_structured") or 0.0, self.given.get("prune") or 0.0
        shares = sorted({max(share, least_structured) for share in STRUCTURED})
        lowest = math.ceil(least_pruned * GRAINS - 1e-9)
        if not self.fits(Point(widths[-1], shares[-1], max(MOST, lowest) / GRAINS)):
            raise self.refusal(too_large)
        found: list[Point] = []
        with Bar("looking for what fits") as bar:
            total = len(widths) * len(shares)
            for number, (width, share) in enumerate((width, share) for share in shares for width in widths):
                bar(number, total)
                # One that is as mild everywhere else has to be beaten in what is pruned.
                milder = [round(p.pruned * GRAINS) for p in found if p.bits >= width and p.structured <= share]
                most = min(milder) - 1 if milder else max(MOST, lowest)
                if most < lowest:
                    continue
                guess = round(GRAINS * _guess(found[-1], width, share)) if found else lowest
                grains = _least(lambda n, w=width, s=share: self.fits(Point(w, s, n / GRAINS)), lowest, most, guess)  # type: ignore[misc]  # bound defaults
                if grains is not None:
                    found.append(Point(width, share, max(grains / GRAINS, least_pruned)))
        return sorted(found, key=lambda point: point.harshness)[:MEASURED]

    def measured(self, point: Point) -> tuple[Point, dict[str, float]] | None:
        """The combination as the calibration data prune it, a little more where that is needed, and what it costs."""
        while point.pruned <= MOST / GRAINS:
            try:
                build = self.compile(
                    **{**self.given, **point.options(), **dict.fromkeys(("on_stage", "cutoff", "cutoff_steps", "dump_ir"))}
                )
            except CompileError as error:
                if not {d.code for d in error.diagnostics} <= set(CORES):
                    return None
                point = Point(point.bits, point.structured, round(point.pruned + 1 / GRAINS, 4))
                continue
            return point, self.judge.figures(build.graph(after="quantize"))
        return None

    def refusal(self, error: CompileError) -> CompileError:
        """SPK219 with what even the harshest combination needs."""
        if self.last is None or self.hardest is None:
            return error
        first = self.last.diagnostics[0]
        what = f"nothing that was tried fits onto {_cores(self.cores)}: with {self.hardest.text()}, {first.message}"
        return CompileError("SPK219", what, loc=first.loc, fix="allow more cores (--fit 2-cores), or make the network smaller")


def _guess(known: Point, bits: int, structured: float) -> float:
    """The share of synapses to prune with which about as much memory is taken as at a known point."""
    each = (known.bits + INDEX_BITS) / (bits + INDEX_BITS)
    left = (1 - known.pruned) * each * (1 - known.structured) / (1 - structured)
    return 1 - left


def _least(fits: Callable[[int], bool], low: int, high: int, guess: int) -> int | None:
    """The least number from low to high that fits, where all above one that fits do too; a good guess asks seldom."""
    guess, reach = min(max(guess, low), high), 1
    if fits(guess):
        above = guess
        while above > low:
            probe = max(low, above - reach)
            if not fits(probe):
                low = probe + 1
                break
            above, reach = probe, 2 * reach
        else:
            return above
    else:
        below = guess
        while True:
            if below >= high:
                return None
            probe = min(high, below + reach)
            if fits(probe):
                above, low = probe, below + 1
                break
            below, reach = probe, 2 * reach
    while low < above:
        middle = (low + above) // 2
        low, above = (low, middle) if fits(middle) else (middle + 1, above)
    return above
