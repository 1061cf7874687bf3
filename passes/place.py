"""Neurons onto cores: shards packed onto as few cores as hold them, and cores laid out so that messages travel little.

First the messages between cores count: shards that talk to each other share a core where they fit. Then the way of each message:
the cores are laid onto the mesh in the order of data flow along a serpentine, and pairs are swapped by simulated annealing while
that shortens the sum of messages times hops. Messages are measured on the calibration data.
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
from spikec.passes.shards import Cutter, Limits, Shard, rates
from spikec.target import Target

#: Messages a source sends in a step where no data says it.
DEFAULT_RATE: Final = 0.05
#: Swaps tried, at most, and per core.
SWAPS, SWAPS_A_CORE = 60_000, 300
#: How often populations are cut anew for want of output axons.
ROUNDS: Final = 5
METHODS: Final = ("annealed", "sequential", "random")


@dataclass
class Core:
    """What lies on one core."""

    shards: list[Shard] = field(default_factory=list)
    neurons: int = 0
    words: int = 0
    sources: dict[str, Array] = field(default_factory=dict, repr=False)

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
class Place:
    """Choose a core for every neuron. Takes the fixed level, gives the placed level; exact.

    chips: how many there are (the target's board by default). cores: at most so many are taken, if said. place: "annealed";
    "sequential" fills cores in order and "random" scatters them, for comparison. calibrate: to measure messages on. seed: of
    the annealing.
    """

    target: Target
    chips: int | None = None
    cores: int | None = None
    place: str = "annealed"
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
        # How many cores read a neuron is known only when all are cut: where they need more output axons than a core has, fewer
        # neurons share it the next time.
        readers: dict[str, int] = {}
        for _ in range(ROUNDS):
            most = {name: max(1, limits.axons_out // max(count, 1)) for name, count in readers.items()}
            shards = [shard for node in graph.neurons for shard in cutter.cut(node, most.get(node.name, limits.neurons))]
            cores = _packed(shards, limits, rate, readers, share=self.place != "sequential")
            found = _readers(cores)
            if all(_slots(core, found) <= limits.axons_out for core in cores):
                break
            readers = {name: max(int(count.max(initial=0)), readers.get(name, 0)) for name, count in found.items()}
        problems = [*self._too_large(graph, shards, limits), *self._too_many(graph, shards, cores)]
        problems += self._axons_out(graph, cores, limits, found)
        traffic = _traffic(cores, rate)
        if problems:
            raise CompileError.many(problems)
        spots = self._spots(len(cores))
        layouts = {"sequential": np.arange(len(cores)), "random": np.random.default_rng(self.seed).permutation(len(cores))}
        hops = self._hops(spots)
        chosen = layouts[self.place] if self.place != "annealed" else anneal(traffic, hops, self.seed)
        where = spots[chosen]
        costs = {name: _cost(traffic, hops, order) for name, order in (*layouts.items(), ("chosen", chosen))}
        used = len({int(spot) // self.target.integer("chip_cores") for spot in where})
        figures = {
            "cores": float(len(cores)),
            "chips": float(used),
            "messages between cores a step": float(traffic.sum()),
            "hops a step": costs["chosen"],
            "hops in order": costs["sequential"],
            "hops at random": costs["random"],
        }
        ledger.record("", "exact", "every neuron has a core", measured=figures)
        table = {node.name: np.zeros(int(np.prod(graph.shape_of(node.name))), np.int32) for node in graph.neurons}
        for core, spot in zip(cores, where, strict=True):
            for shard in core.shards:
                table[shard.population][shard.members] = spot
        nodes = [
            replace(node, core=table[node.name].reshape(graph.shape_of(node.name))) if isinstance(node, Neuron) else node
            for node in graph.nodes
        ]
        return graph.with_nodes(nodes, level="placed")

    def _rates(self, graph: Graph) -> dict[str, Array]:
        if self.calibrate is None:
            return rates(graph, None, DEFAULT_RATE)
        return rates(graph, recode(graph, graph, self.calibrate), DEFAULT_RATE)

    # Limits ----------------------------------------------------------------------------------------------------------

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

    def _too_many(self, graph: Graph, shards: list[Shard], cores: list[Core]) -> list[Diagnostic]:
        chips = self.chips or self.target.integer("board_chips")
        offered = chips * self.target.integer("chip_cores_usable")
        allowed = offered if self.cores is None else min(offered, self.cores)
        if len(cores) <= allowed:
            return []
        count: dict[str, int] = {}
        for shard in shards:
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

    def _axons_out(self, graph: Graph, cores: list[Core], limits: Limits, readers: Mapping[str, Array]) -> list[Diagnostic]:
        """Cores whose neurons go to more cores than there are output axons: the worst of each population."""
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
        """Core numbers along a serpentine over the chips: chip * cores + router * cores of a router + place."""
        wide, per_router = self.target.integer("mesh_width"), self.target.integer("router_cores")
        high = self.target.integer("chip_cores") // (wide * per_router)
        usable = self.target.integer("chip_cores_usable")
        routers = [y * wide + (x if y % 2 == 0 else wide - 1 - x) for y in range(high) for x in range(wide)]
        chip = np.array([router * per_router + k for router in routers for k in range(per_router)])[:usable]
        chips = max(1, -(-count // usable))  # without a neuron nothing is placed
        return np.concatenate([number * self.target.integer("chip_cores") + chip for number in range(chips)])[:count]

    def _hops(self, spots: Array) -> Array:
        """Hops between all pairs of spots: XY routing, and what crossing to another chip counts for."""
        wide, per_router = self.target.integer("mesh_width"), self.target.integer("router_cores")
        chip, rest = np.divmod(spots, self.target.integer("chip_cores"))
        y, x = np.divmod(rest // per_router, wide)
        apart = np.abs(chip[:, None] - chip)
        inside = np.abs(x[:, None] - x) + np.abs(y[:, None] - y)
        return np.asarray(inside + apart * self.target.integer("chip_hops"))


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


def _cost(traffic: Array, hops: Array, order: Array) -> float:
    return float(np.sum(traffic * hops[np.ix_(order, order)]))


def anneal(traffic: Array, hops: Array, seed: int) -> Array:
    """Which spot each core gets: swaps of two, accepted by Metropolis' rule while the temperature falls."""
    count = len(traffic)
    order = np.arange(count)
    if count < 3 or not traffic.any():
        return order
    both = traffic + traffic.T
    rng = np.random.default_rng(seed)
    swaps = min(SWAPS, SWAPS_A_CORE * count)
    best, cost = order.copy(), _cost(traffic, hops, order)
    lowest = cost
    heat = cost / count * 0.5
    for number in range(swaps):
        a, b = rng.integers(0, count, 2)
        if a == b:
            continue
        here, there = hops[order[a]][order], hops[order[b]][order]
        change = float((both[a] - both[b]) @ (there - here)) + 2 * float(both[a, b] * hops[order[a], order[b]])
        now = heat * (1 - number / swaps) ** 2 + 1e-12
        if change < 0 or rng.random() < math.exp(-min(change / now, 700.0)):
            order[a], order[b] = order[b], order[a]
            cost += change
            if cost < lowest - 1e-9:
                lowest, best = cost, order.copy()
    return best
