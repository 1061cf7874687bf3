"""Vertices of a hypergraph onto cores: multilevel, with moves whose gain in messages and whose use of every limit is incremental.

Vertices that share hyperedges are clustered, level by level; the clusters are grown into cores; then every level's vertices are
moved between cores, one at a time, while that saves messages, from the coarsest to the finest (Fiduccia and Mattheyses 1982, in
the multilevel form of Karypis and Kumar 1999 and Schlag et al. 2023). Nothing depends on the clock: work is bounded by counting.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy import sparse

from spikec.ir.types import Array
from spikec.passes.hypergraph import Level
from spikec.shards import Limits

#: A gain, in messages a step, that counts as one.
LEAST: Final = 1e-9
#: Clusters that coarsening stops at, for every core, and the part of a core that one may take.
CLUSTERS, PART = 8, 0.25
#: Vertices that growing begins with.
STARTS: Final = 4
#: Entries of the matrix of pairs that share nets, at most; larger nets than fit are left out of the rating.
PAIRS: Final = 2_000_000
#: Moves without a new best after which a round of moves ends; rounds a level; neighbours that are looked at after a move.
PATIENCE, ROUNDS, NEIGHBOURS = 40, 8, 16
#: Vertices that a round begins with, at most, those of the largest gains; elements of a table of gains.
QUEUE, CHUNK = 4_000, 4_000_000
#: Elements of tables that the moves of one partition may touch.
BUDGET: Final = 600_000_000


@dataclass
class Work:
    """What may still be spent."""

    left: int = BUDGET


@dataclass(frozen=True)
class Look:
    """What a vertex that is on no core would add to each (K,): messages a step, words, axons in; absent (its nets, K)."""

    vertex: int
    messages: Array
    words: Array
    axons: Array
    absent: Array


@dataclass(frozen=True)
class _Own:
    """Of a vertex: its nets; the nets that it feeds, with messages a step and sources; rows of memory with synapses."""

    nets: Array
    fed: Array
    rate: Array
    count: Array
    #: Where a net that it feeds is among its own, -1 if it is not.
    loops: Array
    rows: Array
    synapses: Array


class Partition:
    """Vertices on cores, with all that the limits ask for; part (V,) is the core of each, -1 for none.

    Tables are (rows, K): on[net, core] pins there, rate and count of the net's sources there. A net costs its rate for every core
    that it is on, but for messages from that core itself. Of a core: words, axons, out (axons), neurons, kinds (populations).
    """

    def __init__(self, level: Level, part: Array, cores: int, limits: Limits, work: Work | None = None) -> None:
        self.level, self.limits, self.cores = level, limits, cores
        self.work = work or Work()
        self.part = part.astype(np.int64)
        placed = np.flatnonzero(part >= 0)
        spread = sparse.csr_array((np.ones(len(placed)), (placed, part[placed])), shape=(level.size, cores))

        def table(matrix: Any) -> Array:
            return np.asarray((matrix @ spread).todense())

        self.on, self.rate, self.count, self.rows = (table(m) for m in (level.pins, level.rate, level.count, level.rows))
        self.dense = np.asarray(level.dense @ spread).reshape(len(level.dense_bits), cores)
        self.net_columns = np.asarray(level.columns.todense())
        self.columns = self.net_columns.T @ (self.on > 0)
        self.kinds = np.asarray(level.kinds.T.astype(np.float64) @ spread)
        self.whole = level.outside + np.asarray(level.rate.sum(axis=1)).ravel()
        self.reach = np.count_nonzero(self.on, axis=1)
        self.neurons = np.bincount(part[placed], weights=level.neurons[placed], minlength=cores)
        self.axons = level.width @ (self.on > 0)
        self.out = self.reach @ self.count
        self.words = level.words @ (self.on > 0) + level.row_count @ self._rounded(self.rows, level.row_bits)
        self.words += np.sum(self.columns * self._rounded(self.dense, level.dense_bits), axis=0)
        self.most = limits.words - level.slack
        self._pins, self._counts, self._own = (m.tocsc() for m in (level.pins, level.count, level.rows))
        self._rates = level.rate.tocsc()
        self._known: dict[int, _Own] = {}

    def _rounded(self, count: Array, bits: Array) -> Array:
        return np.asarray(np.ceil(count * bits[:, None] / self.limits.word_bits))

    def messages(self) -> float:
        """Messages a step to cores, from other cores and from inputs."""
        return float(self.whole @ self.reach - np.sum(self.rate * (self.on > 0)))

    def holds(self) -> bool:
        """Whether no core is over a limit."""
        groups = np.count_nonzero(self.kinds, axis=0)
        return bool(
            np.all(self.neurons <= self.limits.neurons)
            and np.all(self.words <= self.most + 1e-6)
            and np.all(self.axons <= self.limits.axons_in)
            and np.all(self.out <= self.limits.axons_out)
            and np.all(groups <= self.limits.groups)
        )

    def own(self, vertex: int) -> _Own:
        """The nets of a vertex."""
        if (known := self._known.get(vertex)) is not None:
            return known

        def column(matrix: Any) -> tuple[Array, Array]:
            a, b = matrix.indptr[vertex : vertex + 2]
            return matrix.indices[a:b], matrix.data[a:b]

        (nets, _), (fed, count), (rows, synapses) = column(self._pins), column(self._counts), column(self._own)
        sending, rates = column(self._rates)
        order = np.argsort(fed)
        fed, count = fed[order], count[order]
        rate = np.zeros(len(fed))
        rate[np.searchsorted(fed, sending)] = rates  # what never sends may be missing among the rates
        loops = np.minimum(np.searchsorted(nets, fed), len(nets) - 1)
        loops = np.where(nets[loops] == fed, loops, -1) if len(nets) else np.full(len(fed), -1)
        found = self._known[vertex] = _Own(nets, fed, rate, count, loops, rows, synapses)
        return found

    def lift(self, vertex: int) -> Look:
        """Take a vertex off its core."""
        core, own = int(self.part[vertex]), self.own(vertex)
        self.count[own.fed, core] -= own.count
        self.rate[own.fed, core] -= own.rate
        self.out[core] -= own.count @ self.reach[own.fed]
        self.on[own.nets, core] -= 1
        left = own.nets[self.on[own.nets, core] == 0]
        self.reach[left] -= 1
        self.out -= self.count[left].sum(axis=0)
        self.neurons[core] -= self.level.neurons[vertex]
        self.kinds[:, core] -= self.level.kinds[vertex]
        self.rows[own.rows, core] -= own.synapses
        self.dense[:, core] -= self.level.dense[:, vertex]
        self.columns[:, core] -= self.net_columns[left].sum(axis=0)
        self.part[vertex] = -1
        look = self.look(vertex)
        self.words[core] -= look.words[core]
        self.axons[core] -= look.axons[core]
        return look

    def look(self, vertex: int) -> Look:
        """What a vertex that is on no core would add to each."""
        own, level = self.own(vertex), self.level
        absent = self.on[own.nets] == 0
        self.work.left -= 6 * absent.size + 4 * len(own.rows) * self.cores
        messages = np.einsum("nk,nk->k", absent, self.whole[own.nets, None] - self.rate[own.nets])
        messages -= own.rate @ ((self.on[own.fed] > 0) | (own.loops >= 0)[:, None])
        words = level.words[own.nets] @ absent
        if len(own.rows):
            bits, count = level.row_bits[own.rows], self.rows[own.rows]
            words += level.row_count[own.rows] @ (self._rounded(count + own.synapses[:, None], bits) - self._rounded(count, bits))
        if len(self.dense):
            grown = self.columns + self.net_columns[own.nets].T @ absent
            after = grown * self._rounded(self.dense + level.dense[:, [vertex]], level.dense_bits)
            words += np.sum(after - self.columns * self._rounded(self.dense, level.dense_bits), axis=0)
        return Look(vertex, messages, words, level.width[own.nets] @ absent, absent)

    def room(self, look: Look) -> Array:
        """(K,) truths: the cores that hold it, output axons not yet looked at."""
        mine = self.level.kinds[look.vertex]
        groups = ((self.kinds > 0) | mine[:, None]).sum(axis=0)
        return np.asarray(
            (self.neurons + self.level.neurons[look.vertex] <= self.limits.neurons)
            & (self.words + look.words <= self.most + 1e-6)
            & (self.axons + look.axons <= self.limits.axons_in)
            & (groups <= self.limits.groups)
        )

    def fits(self, look: Look, core: int) -> bool:
        """Whether no core runs out of output axons if the vertex is put there."""
        own = self.own(look.vertex)
        new = own.nets[look.absent[:, core]]
        more = self.count[new].sum(axis=0)
        again = (own.loops >= 0) & look.absent[own.loops, core] if len(own.nets) else own.loops >= 0
        more[core] += own.count @ (self.reach[own.fed] + again)
        return not np.any((more > 0) & (self.out + more > self.limits.axons_out))

    def put(self, look: Look, core: int) -> None:
        """Put a vertex onto a core; nothing may have been moved since the look."""
        vertex, own = look.vertex, self.own(look.vertex)
        new = own.nets[look.absent[:, core]]
        self.on[own.nets, core] += 1
        self.reach[new] += 1
        self.out += self.count[new].sum(axis=0)
        self.count[own.fed, core] += own.count
        self.rate[own.fed, core] += own.rate
        self.out[core] += own.count @ self.reach[own.fed]
        self.neurons[core] += self.level.neurons[vertex]
        self.kinds[:, core] += self.level.kinds[vertex]
        self.rows[own.rows, core] += own.synapses
        self.dense[:, core] += self.level.dense[:, vertex]
        self.columns[:, core] += self.net_columns[new].sum(axis=0)
        self.words[core] += look.words[core]
        self.axons[core] += look.axons[core]
        self.part[vertex] = core

    def gains(self, vertices: Array) -> Array:
        """(vertices,): what moving each of them alone would save at most, whatever the limits say."""
        found = np.empty(len(vertices))
        step = max(1, CHUNK // (self.cores * 8))
        for begin in range(0, len(vertices), step):
            chosen = vertices[begin : begin + step]
            home = self.part[chosen]
            at, nets, _ = _columns(self._pins, chosen)
            sender, fed, rates = _columns(self._rates, chosen)
            known, place = np.unique(np.concatenate([nets, fed]), return_inverse=True)
            own, sent = place[: len(nets)], place[len(nets) :]
            on, rate, whole = self.on[known], self.rate[known], self.whole[known]
            shape = (len(chosen), len(known))
            pins = sparse.csr_array((np.ones(len(own)), (at, own)), shape=shape)
            sends = sparse.csr_array((rates, (sender, sent)), shape=shape)
            both = (pins * sends).tocoo()  # of nets that a vertex feeds and is a pin of
            self.work.left -= 4 * on.size + (len(nets) + len(fed)) * self.cores
            table = pins @ ((on == 0) * (whole[:, None] - rate)) - sends @ (on > 0) - both @ (on == 0)
            here = (on[own, home[at]] == 1) * (whole[own] - rate[own, home[at]])  # it is the net's only pin there
            cost = np.zeros(len(chosen))  # bincount of nothing gives integers
            cost += np.bincount(at, weights=here, minlength=len(chosen))
            cost -= np.bincount(sender, weights=rates * (on[sent, home[sender]] > 0), minlength=len(chosen))
            cost += np.bincount(both.row, weights=both.data * (on[both.col, home[both.row]] == 1), minlength=len(chosen))
            table[np.arange(len(chosen)), home] = np.inf
            found[begin : begin + step] = cost - table.min(axis=1)
        return found

    def clear(self) -> None:
        """Take all vertices off."""
        for table in (self.on, self.rate, self.count, self.rows, self.dense, self.columns, self.kinds):
            table[:] = 0
        for row in (self.reach, self.neurons, self.axons, self.out, self.words):
            row[:] = 0
        self.part[:] = -1

    def best(self, look: Look, home: int) -> tuple[float, int]:
        """What the best other core that holds it saves against `home`, and that core; -inf where there is none."""
        cost = np.where(self.room(look), look.messages, np.inf)
        cost[home] = np.inf
        for core in np.argsort(cost, kind="stable")[:4].tolist():
            if np.isfinite(cost[core]) and self.fits(look, core):
                return float(look.messages[home] - cost[core]), core
        return -np.inf, home


def _columns(matrix: Any, columns: Array) -> tuple[Array, Array, Array]:
    """Entries of some columns of a CSC matrix: which of the columns, row, value."""
    lengths = matrix.indptr[columns + 1] - matrix.indptr[columns]
    at = np.repeat(matrix.indptr[columns] - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
    return np.repeat(np.arange(len(columns)), lengths), matrix.indices[at], matrix.data[at]


# Moves ---------------------------------------------------------------------------------------------------------------


def refine(state: Partition) -> None:
    """Move vertices while that saves messages, through moves that cost some; the best state that was met stays."""
    for _ in range(ROUNDS):
        before = state.messages()
        if state.work.left <= 0 or state.cores < 2 or _round(state) <= 1e-3 * before + LEAST:
            return


def _round(state: Partition) -> float:
    """Vertices to where they are best, or exchanged for one that wants the place; then `_climb`. Returns what it saves."""
    every = np.arange(state.level.size)
    gains = state.gains(every)
    wish: dict[tuple[int, int], list[int]] = {}
    saved = 0.0
    order = np.argsort(-gains, kind="stable")[:QUEUE]
    for vertex in order[gains[order] > LEAST].tolist():
        if state.work.left <= 0:
            break
        home = int(state.part[vertex])
        look = state.lift(vertex)
        gain, core = state.best(look, home)
        if gain > LEAST:
            state.put(look, core)
            saved += gain
            continue
        target = int(np.argmin(look.messages))
        wanted = look.messages[home] - look.messages[target] > LEAST
        state.put(look, home)
        if wanted:
            saved += _exchange(state, vertex, target, wish)
    gains = state.gains(every)
    order = np.argsort(-gains, kind="stable")[:QUEUE]
    queue = list(zip((-gains[order]).tolist(), order.tolist(), strict=True))
    return saved + _climb(state, queue)


def _exchange(state: Partition, vertex: int, core: int, wish: dict[tuple[int, int], list[int]]) -> float:
    """Swap a vertex that finds no room on a core with one there that found none on the way back; returns what it saves."""
    home = int(state.part[vertex])
    waiting = wish.get((core, home), [])
    for other in waiting[:4]:
        if state.part[other] != core:
            continue
        first = state.lift(vertex)
        second = state.lift(other)
        if state.room(second)[home] and state.fits(second, home):
            state.put(second, home)
            third = state.look(vertex)
            gain = float(first.messages[home] + second.messages[core] - second.messages[home] - third.messages[core])
            if gain > LEAST and state.room(third)[core] and state.fits(third, core):
                state.put(third, core)
                waiting.remove(other)
                return gain
            second = state.lift(other)
        state.put(second, core)
        state.put(state.look(vertex), home)
    wish.setdefault((home, core), []).append(vertex)
    return 0.0


def _climb(state: Partition, queue: list[tuple[float, int]]) -> float:
    """Moves in the order of their gain, also such as cost; undone back to the best state. Returns what it saves."""
    moved: list[tuple[int, int]] = []
    done: set[int] = set()
    total = best = 0.0
    kept = 0
    while queue and len(moved) - kept < PATIENCE and state.work.left > 0:
        key, vertex = heapq.heappop(queue)
        if vertex in done:
            continue
        home = int(state.part[vertex])
        look = state.lift(vertex)
        gain, core = state.best(look, home)
        if not np.isfinite(gain) or (queue and -gain > queue[0][0] and -gain > key + LEAST):
            state.put(look, home)
            if np.isfinite(gain):
                heapq.heappush(queue, (-gain, vertex))
            continue
        state.put(look, core)
        done.add(vertex)
        moved.append((vertex, home))
        total += gain
        if total > best + LEAST:
            best, kept = total, len(moved)
        near = np.array([other for other in _near(state, vertex, home, core) if other not in done], np.int64)
        for other, gain in zip(near.tolist(), state.gains(near).tolist(), strict=True):
            heapq.heappush(queue, (-gain, other))
    for vertex, home in reversed(moved[kept:]):
        state.put(state.lift(vertex), home)
    return best


def _near(state: Partition, vertex: int, home: int, core: int) -> list[int]:
    """Vertices whose gain a move has changed most: pins of small nets that it brought to a core or took away."""
    nets = state.own(vertex).nets
    turned = nets[(state.on[nets, core] <= 1) | (state.on[nets, home] <= 1)]
    pins = state.level.pins
    found: dict[int, None] = {}
    for net in turned.tolist():
        a, b = pins.indptr[net : net + 2]
        if b - a <= NEIGHBOURS:
            found.update(dict.fromkeys(pins.indices[a:b].tolist()))
        if len(found) > NEIGHBOURS:
            break
    found.pop(vertex, None)
    return list(found)[:NEIGHBOURS]


# Levels --------------------------------------------------------------------------------------------------------------


def matched(level: Level, limits: Limits, part: Array | None = None) -> Array:
    """Clusters of two vertices that share much traffic, (V,); of those on one core where `part` says which."""
    size = level.size
    edges = ((level.pins + level.count) > 0).astype(np.float64).tocsr()
    width = np.diff(edges.indptr)
    order = np.argsort(width, kind="stable")
    order = order[(width[order] > 1) & (level.width[order] > 0)]
    order = order[: int(np.searchsorted(np.cumsum(width[order].astype(np.float64) ** 2), PAIRS))]
    cluster = np.arange(size)
    if not len(order):
        return cluster
    whole = level.outside + np.asarray(level.rate.sum(axis=1)).ravel()
    chosen = edges[np.sort(order)]
    weight = (whole + 1e-6)[np.sort(order)] / (width[np.sort(order)] - 1)
    rating = (chosen.T @ (sparse.diags_array(weight) @ chosen)).tocoo()
    u, v, score = rating.row.astype(np.int64), rating.col.astype(np.int64), rating.data
    share = level.needs(limits) / np.array([[limits.words], [limits.axons_in], [limits.neurons]])
    kept = (u != v) & np.all(share[:, u] + share[:, v] <= PART, axis=0)
    if part is not None:
        kept &= part[u] == part[v]
    u, v, score = u[kept], v[kept], score[kept]
    load = share.max(axis=0) + 1e-9
    score = score / np.sqrt(load[u] * load[v])
    # Ties are broken alike from both ends, or few pairs would find each other.
    low, high = np.minimum(u, v).astype(np.uint64), np.maximum(u, v).astype(np.uint64)
    mixed = (low * np.uint64(2654435761) + high * np.uint64(40503)) * np.uint64(0x9E3779B97F4A7C15)
    noise = (mixed >> np.uint64(40)).astype(np.float64)
    score = score * (1 + 1e-3 * noise / 2**24)
    order = np.argsort(u, kind="stable")
    u, v, score = u[order], v[order], score[order]
    free = np.ones(size, bool)
    for _ in range(6):
        open_ = free[u] & free[v]
        u, v, score = u[open_], v[open_], score[open_]
        if not len(u):
            break
        starts = np.flatnonzero(np.concatenate([[True], u[1:] != u[:-1]]))
        top = np.repeat(np.maximum.reduceat(score, starts), np.diff([*starts.tolist(), len(u)]))
        best = np.full(size, -1)
        hit = np.flatnonzero(score >= top)[::-1]
        best[u[hit]] = v[hit]
        mutual = np.flatnonzero((best >= 0) & (best[best] == np.arange(size)))
        mutual = mutual[mutual < best[mutual]]
        cluster[best[mutual]] = mutual
        free[mutual] = free[best[mutual]] = False
    return np.unique(cluster, return_inverse=True)[1].ravel()


def grown(level: Level, limits: Limits, cores: int, work: Work, first: int = 0) -> Array | None:
    """Cores filled one after the other, each with what shares most with it, from a first vertex on; None where so many cores do
    not do."""
    part = np.full(level.size, -1)
    base = np.asarray((level.outside + np.asarray(level.rate.sum(axis=1)).ravel()) @ level.pins) + 1e-6
    pins, rates = level.pins, level.rate
    whole = level.outside + np.asarray(rates.sum(axis=1)).ravel()
    settled = np.zeros(level.size)  # share of traffic with vertices that have a core
    state = Partition(level, part, 1, limits, work)
    for core in range(cores):
        if not np.any(part < 0):
            return part
        state.clear()
        pull, tried = np.zeros(level.size), part >= 0
        seed = int(np.argmax(np.where(tried, -np.inf, settled / base))) if core else first
        misses = 0
        while misses < 24 and not tried.all():
            vertex = seed if seed >= 0 else int(np.argmax(np.where(tried, -np.inf, pull / base)))
            seed = -1
            tried[vertex] = True
            look = state.look(vertex)
            if not state.room(look)[0]:
                misses += 1
                continue
            own = state.own(vertex)
            new = own.nets[look.absent[:, 0]]
            known = state.rate[new, 0]
            silent = own.fed[state.on[own.fed, 0] == 0]
            state.put(look, 0)
            part[vertex] = core
            _spread(pull, pins, new, whole[new] - known)
            _spread(pull, rates, new, np.ones(len(new)), scaled=True)
            still = state.on[silent, 0] == 0
            _spread(pull, pins, silent[still], own.rate[np.searchsorted(own.fed, silent[still])])
        settled += pull
    return part if not np.any(part < 0) else None


def _spread(total: Array, matrix: Any, rows: Array, weight: Array, scaled: bool = False) -> None:
    """Add weight[k] to the entries of row rows[k], times their values where scaled."""
    lengths = matrix.indptr[rows + 1] - matrix.indptr[rows]
    at = np.repeat(matrix.indptr[rows] - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
    values = np.repeat(weight, lengths) * (matrix.data[at] if scaled else 1.0)
    np.add.at(total, matrix.indices[at], values)


def structured(level: Level, limits: Limits) -> bool:
    """Whether there are vertices that share nets other than such as reach nearly all of them: else no choice matters much."""
    return int(matched(level, limits).max(initial=-1)) + 1 < level.size


def _begun(level: Level, limits: Limits, cores: int) -> Array | None:
    """The best of some grown partitions, each refined."""
    best, fewest = None, np.inf
    for first in range(0, level.size, max(1, -(-level.size // STARTS))):
        part = grown(level, limits, cores, Work(), first)
        if part is None:
            continue
        state = Partition(level, part, cores, limits)
        refine(state)
        if (messages := state.messages()) < fewest - LEAST:
            best, fewest = state.part, messages
    return best


def multilevel(level: Level, limits: Limits, cores: int, start: Array | None = None) -> Array | None:
    """A core for every vertex, (V,), with few messages between them; from a given start, which it is never worse than.

    None where no start is given and growing needs more than `cores` cores.
    """
    work = Work()
    levels, maps = [level], []
    part = start
    while levels[-1].size > CLUSTERS * cores:
        cluster = matched(levels[-1], limits, part)
        if cluster.max(initial=-1) + 1 > 0.85 * levels[-1].size:
            break
        maps.append(cluster)
        levels.append(levels[-1].coarser(cluster))
        if part is not None:
            coarse = np.empty(levels[-1].size, np.int64)
            coarse[cluster] = part
            part = coarse
    if part is None:
        part = _begun(levels[-1], limits, cores)
        if part is None:
            return None
    for depth in range(len(levels) - 1, -1, -1):
        state = Partition(levels[depth], part, cores, limits, work)
        refine(state)
        part = state.part
        if depth:
            part = part[maps[depth - 1]]
    return part
