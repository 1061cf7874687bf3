"""NumPy, event-driven, by hand: rows of the firing inputs are added up, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from network import Net, connections

TITLE = "NumPy event-driven"
BATCHES = False


def prepare(net: Net) -> Callable[[Any], np.ndarray]:
    """A function from one sample (1, T, *shape) to output counts."""
    if net.sparse is not None:
        return lambda _: _sparse(net)
    shapes = net.shapes()
    rows = []
    for layer, shape in zip(net.layers, shapes, strict=False):
        if layer.conv:
            target, weight, start = connections(layer, shape)
            rows.append((target, weight, start))
        else:
            full = layer.weight.T
            if layer.pool > 1:  # one row for every spike in a tile
                inside = np.arange(int(np.prod(shape))).reshape(shape)
                _, y, x = np.unravel_index(inside.ravel(), shape)
                c = inside.ravel() // (shape[1] * shape[2])
                tile = (c * (shape[1] // layer.pool) + y // layer.pool) * (shape[2] // layer.pool) + x // layer.pool
                full = full[tile]
            rows.append((np.ascontiguousarray(full), None, None))
    recurrent = [None if layer.recurrent is None else np.ascontiguousarray(layer.recurrent.T) for layer in net.layers]
    sizes = [int(np.prod(shape)) for shape in shapes[1:]]

    def run(x: np.ndarray) -> np.ndarray:
        flat = x.reshape(x.shape[1], -1)
        v = [np.zeros(size, np.float32) for size in sizes]
        i = [np.zeros(size, np.float32) for size in sizes]
        before = [np.zeros(0, np.int64) for _ in sizes]
        counts = np.zeros(sizes[-1], np.int64)
        for t in range(len(flat)):
            fired = np.flatnonzero(flat[t])
            for k, layer in enumerate(net.layers):
                weight, value, start = rows[k]
                if value is None:
                    current = weight[fired].sum(0)
                else:
                    first, length = start[fired], start[fired + 1] - start[fired]
                    ends = np.cumsum(length)
                    where = np.arange(length.sum()) + np.repeat(first - (ends - length), length)
                    current = np.bincount(weight[where], value[where], sizes[k]).astype(np.float32)
                if recurrent[k] is not None:
                    current = current + recurrent[k][before[k]].sum(0)
                if layer.bias is not None:
                    current = current + layer.bias
                if layer.alpha is not None:
                    i[k] *= np.float32(layer.alpha)
                    i[k] += current
                    current = i[k]
                v[k] *= np.float32(layer.beta)
                v[k] += current
                fired = np.flatnonzero(v[k] >= layer.theta)
                v[k][fired] = 0
                before[k] = fired
            counts[fired] += 1
        return counts

    return run


def _sparse(net: Net) -> np.ndarray:
    s = net.sparse
    assert s is not None
    v, bias = s["v0"].copy(), s["bias"]
    targets, weights = s["targets"], s["weights"]
    current = np.zeros_like(v)
    counts = np.zeros(len(v), np.int64)
    for _ in range(net.steps):
        v = v * np.float32(s["beta"]) + bias + current
        fired = np.flatnonzero(v >= s["theta"])
        v[fired] = 0
        counts[fired] += 1
        current = np.bincount(targets[fired].ravel(), weights[fired].ravel(), len(v)).astype(np.float32)
    return counts
