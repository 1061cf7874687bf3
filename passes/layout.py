"""Cores onto the spots of a mesh, so that messages travel little: a spectral start, swaps that shorten most, then annealing.

A spot is a place for a core; there may be more of them than cores. All functions take traffic (K, K), messages a step from core to
core, and hops (S, S) between spots, and give or take order (K,), the spot of every core.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import Final

import numpy as np

from spikec.ir.types import Array

#: Swaps of the annealing, at most and for every core.
SWAPS, SWAPS_A_CORE = 60_000, 400
#: Up to this many orders all of them are tried: swaps that each shorten or cool may miss the best of a few.
ORDERS: Final = 5_040
#: How often few cores are annealed.
TURNS: Final = 3
#: Multiplications that a descent may take; spots beyond which cores stay in order.
WORK: Final = 20_000_000_000
SPOTS: Final = 4_500


def cost(traffic: Array, hops: Array, order: Array) -> float:
    """Hops a step."""
    return float(np.sum(traffic * hops[np.ix_(order, order)]))


def laid(traffic: Array, hops: Array, seed: int) -> Array:
    """A good order: never worse than the first spots in turn."""
    count = len(traffic)
    order = np.arange(count)
    if count < 2 or len(hops) > SPOTS or not traffic.any():
        return order
    tries = [descend(traffic, hops, start) for start in (order, _by_rank(_spectral(traffic + traffic.T)))]
    for turn in range(TURNS if count <= 200 else 1):  # each from the best so far
        best = min(tries, key=lambda item: cost(traffic, hops, item))
        tries.append(descend(traffic, hops, anneal(traffic, hops, seed + turn, best)))
    return min(tries, key=lambda item: cost(traffic, hops, item))


def _by_rank(values: Array) -> Array:
    order = np.empty(len(values), np.int64)
    order[np.argsort(values, kind="stable")] = np.arange(len(values))
    return order


def _spectral(both: Array) -> Array:
    """The Fiedler vector: cores with much traffic have near values."""
    scale = 1 / np.sqrt(both.sum(axis=1) + 1e-12 * both.sum() + 1e-300)
    weights = scale[:, None] * both * scale
    vectors = np.linalg.eigh(weights)[1] if len(both) <= 1500 else np.zeros((len(both), 2))
    vector = vectors[:, -2] * scale
    return np.asarray(np.round(vector / (np.abs(vector).max() + 1e-300), 9) * (1 if vector[0] <= 0 else -1))


def descend(traffic: Array, hops: Array, order: Array) -> Array:
    """Swap cores, or move them to empty spots, while that shortens the way: the best exchanges of all pairs first."""
    spots, count = len(hops), len(traffic)
    both = np.zeros((spots, spots))
    both[:count, :count] = traffic + traffic.T
    order = np.concatenate([order, np.setdiff1d(np.arange(spots), order)])  # empty spots hold cores without traffic
    hops = hops.astype(np.float64)
    for _ in range(WORK // (spots**2 * count)):
        near = hops[np.ix_(order, order)]
        table = both @ near  # of a core at the spot of another
        here = np.diag(table)
        change = table[:count] + table.T[:count] - here[:count, None] - here + 2 * (both * near)[:count]
        other = np.argmin(change, axis=1)
        gain = change[np.arange(count), other]
        if gain.min() >= -1e-9 * (here.sum() + 1e-300):
            break
        touched = np.zeros(spots, bool)
        first = True
        for a in np.argsort(gain, kind="stable").tolist():
            b = int(other[a])
            if gain[a] >= -1e-9 * here.sum() or touched[a] or touched[b]:
                continue
            if first or _swap_change(both, hops, order, a, b) < 0:
                order[a], order[b] = order[b], order[a]
                touched[[a, b]] = True
                first = False
    return order[:count]


def _swap_change(both: Array, hops: Array, order: Array, a: int, b: int) -> float:
    here, there = hops[order[a]][order], hops[order[b]][order]
    return float((both[a] - both[b]) @ (there - here)) + 2 * float(both[a, b] * hops[order[a], order[b]])


def _best_of_all(traffic: Array, hops: Array, start: Array) -> Array:
    """The cheapest of all orders, `start` where none is cheaper."""
    orders = np.array(list(permutations(range(len(hops)), len(traffic))))
    costs = np.einsum("ab,oab->o", traffic, hops[orders[:, :, None], orders[:, None, :]], optimize=True)
    least = int(np.argmin(costs))
    return orders[least] if costs[least] < cost(traffic, hops, start) * (1 - 1e-9) else start


def anneal(traffic: Array, hops: Array, seed: int, start: Array | None = None) -> Array:
    """Swaps of two, or with an empty spot, accepted by Metropolis' rule while the temperature falls; of few orders the best."""
    count, spots = len(traffic), len(hops)
    order = np.arange(count) if start is None else start
    if count < 2 or spots < 3 or not traffic.any():
        return order
    if math.perm(spots, count) <= ORDERS:
        return _best_of_all(traffic, hops, order)
    both = np.zeros((spots, spots))
    both[:count, :count] = traffic + traffic.T
    order = np.concatenate([order, np.setdiff1d(np.arange(spots), order)])
    rng = np.random.default_rng(seed)
    swaps = min(SWAPS, 4000 + SWAPS_A_CORE * count)
    reach = min(spots, 2 * count)  # empty spots far beyond are no use
    best = order.copy()
    now = lowest = cost(traffic, hops, order[:count])
    heat = now / count * 0.5
    for number in range(swaps):
        a, b = int(rng.integers(0, count)), int(rng.integers(0, reach))
        if a == b:
            continue
        change = _swap_change(both, hops, order, a, b)
        if change < 0 or rng.random() < math.exp(-min(change / (heat * (1 - number / swaps) ** 2 + 1e-12), 700.0)):
            order[a], order[b] = order[b], order[a]
            now += change
            if now < lowest - 1e-9 * lowest:
                lowest, best = now, order.copy()
    return best[:count]
