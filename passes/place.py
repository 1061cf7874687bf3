"""Neurons onto cores: as few messages between cores as the limits allow, and cores laid out so that messages travel little.

It starts from cores filled in order, and packed with what exchanges messages. From there, and from nothing, the multilevel
partitioner (`partition`) looks for fewer messages on the network's hypergraph (`hypergraph`). What is best by messages is kept if
it takes no more hops than filling in order; so the result is never worse than that. Messages are measured on the calibration data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.inputs import recode
from spikec.ir.graph import Graph
from spikec.ir.ops import Neuron
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.hypergraph import Atoms, atoms, hypergraph
from spikec.passes.layout import cost, laid
from spikec.passes.partition import multilevel, structured
from spikec.shards import Cutter, Limits, Shard, mesh_hops, rates
from spikec.target import Target

#: Messages a source sends in a step where no data says it.
DEFAULT_RATE: Final = 0.05
#: How often populations are cut anew for want of output axons.
ROUNDS: Final = 5
#: Cores that fewer messages may take, for every one that filling in order takes; never another chip.
SPARE: Final = 1.1
METHODS: Final = ("multilevel", "greedy", "sequential", "random")


@dataclass
class Core:
    """What lies on one core."""

    shards: list[Shard] = field(default_factory=list)
    neurons: int = 0
    words: int = 0
    sources: dict[str, Array] = field(default_factory=dict, repr=False)

    @property
    def populations(self) -> set[str]:
        """Populations with neurons on it: the target's neuron groups."""
        return {shard.population for shard in self.shards}

    def holds(self, limits: Limits) -> bool:
        """Whether it is within the limits, output axons left out."""
        axons = sum(int(np.count_nonzero(mask)) for mask in self.sources.values())
        return limits.holds(self.neurons, self.words, axons) and len(self.populations) <= limits.groups

    def union(self, shard: Shard) -> dict[str, Array]:
        """The sources with a further shard."""
        joined = dict(self.sources)
        for name, mask in shard.sources.items():
            joined[name] = joined[name] | mask if name in joined else mask
        return joined

    def add(self, shard: Shard) -> None:
        """Put a shard on it."""
        self.sources = self.union(shard)
        self.shards.append(shard)
        self.neurons += len(shard.members)
        self.words += shard.words


@dataclass(frozen=True)
class Mapped:
    """Cores and the spot of each; messages a step between cores and from inputs to cores, and hops a step."""

    cores: list[Core]
    spots: Array
    traffic: Array
    order: Array
    from_inputs: float
    hops: float

    @property
    def messages(self) -> float:
        """Messages a step to cores."""
        return float(self.traffic.sum()) + self.from_inputs


@dataclass(frozen=True)
class Place:
    """Choose a core for every neuron. Takes the fixed level, gives the placed level; exact.

    chips: how many there are (the target's board by default). cores: at most so many are taken, if said. place: "multilevel"; for
    comparison "greedy" packs what exchanges messages together, "sequential" fills cores in order, and "random" scatters those.
    calibrate: to measure messages on. seed: of the annealing.
    """

    target: Target
    chips: int | None = None
    cores: int | None = None
    place: str = "multilevel"
    seed: int = 0
    calibrate: Mapping[str, Array] | None = None
    name: ClassVar[str] = "place"
    levels: ClassVar[tuple[str, ...]] = ("fixed",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The graph with a core for every neuron. Raises CompileError SPK230 to SPK232, all violations at once."""
        if self.place not in METHODS:
            raise CompileError("SPK001", f"place is {' or '.join(METHODS)}, not '{self.place}'")
        if self.chips is not None and self.chips < 1:
            raise CompileError("SPK001", f"chips must be at least 1, not {self.chips}")
        if self.cores is not None and self.cores < 1:
            raise CompileError("SPK001", f"cores must be at least 1, not {self.cores}")
        limits = Limits.of(self.target)
        rate, cutter = self._rates(graph), Cutter(graph, limits)
        ordered = self._filled(graph, cutter, rate, share=False)
        packed = ordered if self.place in ("sequential", "random") else self._filled(graph, cutter, rate, share=True)
        problems = [self._problems(graph, cores, limits) for cores in (ordered, packed)]
        if all(problems):
            raise CompileError.many(problems[0])
        starts = [cores for cores, found in zip((ordered, packed), problems, strict=True) if not found]
        first = self._mapped(starts[0], rate, "sequential")
        chosen = first
        if self.place == "random":
            chosen = self._mapped(ordered, rate, "random")
        elif self.place != "sequential":
            candidates = starts[-1:]
            if self.place == "multilevel":
                candidates = [*starts, *self._multilevel(graph, cutter, rate, starts)]
            chosen = self._best(candidates, rate, first)
        scattered = chosen if self.place == "random" else self._mapped(starts[0], rate, "random")
        ledger.record("", "exact", "every neuron has a core", measured=self._figures(chosen, first, scattered))
        where = chosen.spots[chosen.order]
        table = {node.name: np.zeros(int(np.prod(graph.shape_of(node.name))), np.int32) for node in graph.neurons}
        for core, spot in zip(chosen.cores, where, strict=True):
            for shard in core.shards:
                table[shard.population][shard.members] = spot
        nodes = [
            replace(node, core=table[node.name].reshape(graph.shape_of(node.name))) if isinstance(node, Neuron) else node
            for node in graph.nodes
        ]
        return graph.with_nodes(nodes, level="placed")

    def _figures(self, chosen: Mapped, first: Mapped, scattered: Mapped) -> dict[str, float]:
        """For the ledger; `first` is what filling in order gives."""
        used = len({int(spot) // self.target.integer("chip_cores") for spot in chosen.spots[chosen.order]})
        return {
            "cores": float(len(chosen.cores)),
            "chips": float(used),
            "messages between cores a step": float(chosen.traffic.sum()),
            "messages from inputs a step": chosen.from_inputs,
            "hops a step": chosen.hops,
            "cores in order": float(len(first.cores)),
            "messages in order": first.messages,
            "hops in order": first.hops,
            "hops at random": scattered.hops,
        }

    # Candidates ------------------------------------------------------------------------------------------------------

    def _filled(self, graph: Graph, cutter: Cutter, rate: Mapping[str, Array], share: bool) -> list[Core]:
        """Cores filled in order, or (share) with what exchanges messages."""
        limits = cutter.limits
        # How many cores read a neuron is known only when all are cut: where they need more output axons than a core has, fewer
        # neurons share it the next time.
        readers: dict[str, int] = {}
        for _ in range(ROUNDS):
            most = {name: max(1, limits.axons_out // max(count, 1)) for name, count in readers.items()}
            shards = [shard for node in graph.neurons for shard in cutter.cut(node, most.get(node.name, limits.neurons))]
            cores = _packed(shards, limits, rate, readers, share)
            found = _readers(cores)
            if all(_slots(core, found) <= limits.axons_out for core in cores):
                break
            readers = {name: max(int(count.max(initial=0)), readers.get(name, 0)) for name, count in found.items()}
        return cores

    def _multilevel(self, graph: Graph, cutter: Cutter, rate: Mapping[str, Array], starts: list[list[Core]]) -> list[list[Core]]:
        """What the partitioner finds, from nothing and from the starts; only what keeps all limits, added up anew."""
        least = min(map(len, starts))
        if least < 2:
            return []
        per_chip = self.target.integer("chip_cores_usable")
        offered = min((self.chips or self.target.integer("board_chips")) * per_chip, -(-least // per_chip) * per_chip)
        most = max(least, min(int(SPARE * least) + 1, offered, self.cores or offered))
        limits = cutter.limits
        found = []
        fine = atoms(graph, limits)
        whole = hypergraph(graph, limits, fine, rate)
        if not structured(whole, limits):
            return []
        part = multilevel(whole, limits, most)
        if part is not None:
            found.append(_cores(graph, cutter, {name: part[own] for name, own in fine.of.items()}))
        for start in starts[-1:] if len(starts[0]) == len(starts[-1]) else starts:
            split, part = _split(graph, fine, start)
            moved = multilevel(hypergraph(graph, limits, split, rate), limits, max(most, len(start)), part)
            assert moved is not None  # a start is always kept
            found.append(_cores(graph, cutter, {name: moved[own] for name, own in split.of.items()}))
        return [cores for cores in found if not self._problems(graph, cores, limits)]

    def _best(self, candidates: list[list[Core]], rate: Mapping[str, Array], first: Mapped) -> Mapped:
        """The fewest messages, then the fewest hops, of those that are nowhere worse than filling in order."""
        by_messages: list[tuple[float, int]] = []
        for number, cores in enumerate(candidates):
            between = _traffic(cores, rate)
            by_messages.append((round(float(between.sum()) + _from_inputs(cores, rate), 6), number))
        for messages, number in sorted(by_messages):
            found = self._mapped(candidates[number], rate, "laid")
            if found.hops <= first.hops * (1 + 1e-9) and messages <= first.messages * (1 + 1e-9):
                return found
        return first

    def _mapped(self, cores: list[Core], rate: Mapping[str, Array], layout: str) -> Mapped:
        traffic = _traffic(cores, rate)
        spots = self._spots(len(cores))
        hops = mesh_hops(self.target, spots)
        order = np.arange(len(cores))
        if layout == "random":
            order = np.random.default_rng(self.seed).permutation(len(cores))
        elif layout == "laid":
            order = laid(traffic, hops, self.seed)
        return Mapped(cores, spots, traffic, order, _from_inputs(cores, rate), cost(traffic, hops, order))

    def _rates(self, graph: Graph) -> dict[str, Array]:
        if self.calibrate is None:
            return rates(graph, None, DEFAULT_RATE)
        return rates(graph, recode(graph, graph, self.calibrate), DEFAULT_RATE)

    # Limits ----------------------------------------------------------------------------------------------------------

    def _problems(self, graph: Graph, cores: list[Core], limits: Limits) -> list[Diagnostic]:
        """All limits that are broken."""
        problems = [*self._too_large(graph, [shard for core in cores for shard in core.shards], limits)]
        problems += [*self._too_many(graph, cores), *self._axons_out(graph, cores, limits)]
        if not problems and not all(core.holds(limits) for core in cores):
            problems.append(Diagnostic("SPK231", "a core is over its limits"))
        return problems

    def _too_large(self, graph: Graph, shards: list[Shard], limits: Limits) -> list[Diagnostic]:
        """Single neurons that no core holds, by population."""
        worst: dict[str, Shard] = {}
        for shard in shards:
            if not limits.holds(len(shard.members), shard.words, shard.axons):
                known = worst.get(shard.population)
                if known is None or shard.words + shard.axons > known.words + known.axons:
                    worst[shard.population] = shard
        found = []
        chip = self.target.name
        for name, shard in worst.items():
            node = graph[name]
            if shard.words > limits.words:
                share = limits.words / shard.words
                found.append(
                    Diagnostic(
                        "SPK231",
                        f"%{name}: the synapses of one neuron take {shard.words} words; a core of {chip} has {limits.words}",
                        loc=node.loc,
                        fix=f"keep {100 * share:.0f} % of its synapses (--prune {1 - share:.2f}), or let fewer inputs reach it",
                    )
                )
            if shard.axons > limits.axons_in:
                found.append(
                    Diagnostic(
                        "SPK232",
                        f"%{name}: one neuron is reached by {shard.axons} axons; a core of {chip} takes {limits.axons_in}",
                        loc=node.loc,
                        fix="let fewer inputs reach a neuron, or spread them over several",
                    )
                )
        return found

    def _too_many(self, graph: Graph, cores: list[Core]) -> list[Diagnostic]:
        chips = self.chips or self.target.integer("board_chips")
        offered = chips * self.target.integer("chip_cores_usable")
        allowed = offered if self.cores is None else min(offered, self.cores)
        if len(cores) <= allowed:
            return []
        count: dict[str, int] = {}
        for shard in (shard for core in cores for shard in core.shards):
            count[shard.population] = count.get(shard.population, 0) + 1
        largest = sorted(count, key=lambda name: -count[name])[:4]
        told = ", ".join(f"%{name} {count[name]}" for name in largest)
        needed = -(-len(cores) // self.target.integer("chip_cores_usable"))
        node = graph[largest[0]]
        share = allowed / len(cores)
        if allowed < offered:
            return [
                Diagnostic(
                    "SPK230",
                    f"the network needs {len(cores)} cores ({told}); {allowed} are allowed",
                    loc=node.loc,
                    fix=f"allow {len(cores)} cores, or let spikec choose what goes (--fit {allowed}-cores)",
                )
            ]
        return [
            Diagnostic(
                "SPK230",
                f"the network needs {len(cores)} cores ({told}); {chips} chip(s) of {self.target.name} have {offered}",
                loc=node.loc,
                fix=f"use {needed} chips (--chips {needed}), or keep {100 * math.sqrt(share):.0f} % of the neurons "
                f"(--prune-structured {1 - math.sqrt(share):.2f})",
            )
        ]

    def _axons_out(self, graph: Graph, cores: list[Core], limits: Limits) -> list[Diagnostic]:
        """Cores whose neurons go to more cores than there are output axons: the worst of each population."""
        readers = _readers(cores)
        worst: dict[str, int] = {}
        for core in cores:
            slots = _slots(core, readers)
            if slots > limits.axons_out:
                name = max(core.shards, key=lambda s: int(readers[s.population][s.members].sum())).population
                worst[name] = max(worst.get(name, 0), slots)
        return [
            Diagnostic(
                "SPK232",
                f"%{name}: a core's neurons go to {slots} axons; {self.target.name} has {limits.axons_out} a core",
                loc=graph[name].loc,
                fix="prune the layer behind them, so that fewer cores read each neuron (--prune)",
            )
            for name, slots in worst.items()
        ]

    # Layout ----------------------------------------------------------------------------------------------------------

    def _spots(self, count: int) -> Array:
        """Core numbers along a serpentine over as many chips as are needed: chip * cores + router * cores of a router + place."""
        wide, per_router = self.target.integer("mesh_width"), self.target.integer("router_cores")
        high = self.target.integer("chip_cores") // (wide * per_router)
        usable = self.target.integer("chip_cores_usable")
        routers = [y * wide + (x if y % 2 == 0 else wide - 1 - x) for y in range(high) for x in range(wide)]
        chip = np.array([router * per_router + k for router in routers for k in range(per_router)])[:usable]
        chips = max(1, -(-count // usable))  # without a neuron nothing is placed
        return np.concatenate([number * self.target.integer("chip_cores") + chip for number in range(chips)])


def _readers(cores: list[Core]) -> dict[str, Array]:
    """By population, how many cores read each neuron."""
    size: dict[str, int] = {}
    for core in cores:
        for shard in core.shards:
            size[shard.population] = size.get(shard.population, 0) + len(shard.members)
    found = {name: np.zeros(count, np.int64) for name, count in size.items()}
    for core in cores:
        for name, mask in core.sources.items():
            if name in found:
                found[name] += mask
    return found


def _slots(core: Core, readers: Mapping[str, Array]) -> int:
    """Output axons that a core's neurons need."""
    return sum(int(readers[shard.population][shard.members].sum()) for shard in core.shards)


def _packed(shards: list[Shard], limits: Limits, rate: Mapping[str, Array], readers: Mapping[str, int], share: bool) -> list[Core]:
    """Shards onto cores. share: a shard joins the core that it exchanges most messages with; else it fills the last one.

    readers: at most so many cores read a neuron of each population, as far as is known.
    """
    cores: list[Core] = []
    slots: dict[int, int] = {}
    for shard in shards:
        best, most = None, -1.0
        own = len(shard.members) * readers.get(shard.population, 0)
        for core in cores[-64:] if share else cores[-1:]:
            if core.neurons + len(shard.members) > limits.neurons or core.words + shard.words > limits.words:
                continue
            if len({*core.populations, shard.population}) > limits.groups:
                continue
            joined = core.union(shard)
            if sum(int(np.count_nonzero(mask)) for mask in joined.values()) > limits.axons_in:
                continue
            if slots[id(core)] + own > limits.axons_out:
                continue
            saved = _exchange(core, shard, rate) if share else 0.0
            if saved > most:
                best, most = core, saved
        if best is None:
            best = Core()
            cores.append(best)
            slots[id(best)] = 0
        best.add(shard)
        slots[id(best)] += own
    return cores


def _exchange(core: Core, shard: Shard, rate: Mapping[str, Array]) -> float:
    """Messages a step that stay on the core if the shard joins it: to and from its shards, and common sources."""
    saved = 0.0
    for other in core.shards:
        if (mask := shard.sources.get(other.population)) is not None:
            saved += float(rate[other.population][other.members][mask[other.members]].sum())
        if (mask := other.sources.get(shard.population)) is not None:
            saved += float(rate[shard.population][shard.members][mask[shard.members]].sum())
    for name, mask in shard.sources.items():
        if name in core.sources:
            saved += float(rate[name][mask & core.sources[name]].sum())
    return saved


def _traffic(cores: list[Core], rate: Mapping[str, Array]) -> Array:
    """Messages a step from each core (row) to each other one that reads any of its neurons. Input comes from outside the mesh."""
    home = {s.population: np.zeros(rate[s.population].size, np.int64) for core in cores for s in core.shards}
    for number, core in enumerate(cores):
        for shard in core.shards:
            home[shard.population][shard.members] = number
    table = np.zeros((len(cores), len(cores)))
    for number, core in enumerate(cores):
        for name, mask in core.sources.items():
            if name in home:
                table[:, number] += np.bincount(home[name][mask], weights=rate[name][mask], minlength=len(cores))
    np.fill_diagonal(table, 0)
    return table


def _from_inputs(cores: list[Core], rate: Mapping[str, Array]) -> float:
    """Messages a step from inputs (and what is always on) to cores."""
    placed = {shard.population for core in cores for shard in core.shards}
    return sum(float(rate[name][mask].sum()) for core in cores for name, mask in core.sources.items() if name not in placed)


def _cores(graph: Graph, cutter: Cutter, part: Mapping[str, Array]) -> list[Core]:
    """The cores that a choice for every neuron (flat, by population) makes, in the order of their first neurons; none is empty."""
    cores: dict[int, Core] = {}
    for node in graph.neurons:
        own = part[node.name]
        order = np.argsort(own, kind="stable")
        cuts = np.flatnonzero(np.diff(own[order])) + 1
        runs = [run for run in np.split(order, cuts) if len(run)]
        for run in sorted(runs, key=lambda members: int(members[0])):
            cores.setdefault(int(own[run[0]]), Core()).add(cutter.shard(node, run))
    return list(cores.values())


def _split(graph: Graph, fine: Atoms, cores: list[Core]) -> tuple[Atoms, Array]:
    """Vertices none of which lies on two cores, and the core of each."""
    at = {node.name: np.zeros(int(np.prod(graph.shape_of(node.name))), np.int64) for node in graph.neurons}
    for number, core in enumerate(cores):
        for shard in core.shards:
            at[shard.population][shard.members] = number
    of: dict[str, Array] = {}
    part: list[Array] = [np.zeros(0, np.int64)]
    offset = 0
    for name, own in fine.of.items():
        pairs, vertex = np.unique(np.stack([own, at[name]]), axis=1, return_inverse=True)
        of[name] = vertex.ravel() + offset
        part.append(pairs[1])
        offset += pairs.shape[1]
    return Atoms(of, offset), np.concatenate(part)
