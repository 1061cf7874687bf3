"""numba, event-driven: the same in compiled loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from network import Net, connections

TITLE = "numba event-driven"
BATCHES = False


@numba.njit(fastmath=False, cache=False)
def _dense(weight, events, count, current):
    for e in range(count):
        row = weight[events[e]]
        for o in range(current.size):
            current[o] += row[o]


@numba.njit(fastmath=False, cache=False)
def _lists(target, weight, start, events, count, current):
    for e in range(count):
        for k in range(start[events[e]], start[events[e] + 1]):
            current[target[k]] += weight[k]


@numba.njit(fastmath=False, cache=False)
def _fire(current, i, v, alpha, has_alpha, beta, theta, events):
    count = 0
    for o in range(v.size):
        c = current[o]
        if has_alpha:
            c = alpha * i[o] + c
            i[o] = c
        value = beta * v[o] + c
        if value >= theta[o]:
            v[o] = np.float32(0)
            events[count] = o
            count += 1
        else:
            v[o] = value
    return count


@numba.njit(fastmath=False, cache=False)
def _whole_w4(v, bias, beta, theta, targets, weights, steps, counts):
    n = v.size
    current = np.zeros(n, np.float32)
    events = np.empty(n, np.int64)
    for _ in range(steps):
        count = 0
        for o in range(n):
            value = beta * v[o] + bias[o] + current[o]
            current[o] = np.float32(0)
            if value >= theta:
                v[o] = np.float32(0)
                events[count] = o
                count += 1
            else:
                v[o] = value
        for e in range(count):
            s = events[e]
            counts[s] += 1
            for k in range(targets.shape[1]):
                current[targets[s, k]] += weights[s, k]


@numba.njit(cache=False)
def _list(frame, events):
    count = 0
    for k in range(frame.size):
        if frame[k]:
            events[count] = k
            count += 1
    return count


def prepare(net: Net) -> Callable[[Any], np.ndarray]:
    """A function from one sample to output counts; the loop over steps and layers is compiled too."""
    if net.sparse is not None:
        s = net.sparse

        def run_w4(_: Any) -> np.ndarray:
            counts = np.zeros(len(s["v0"]), np.int64)
            beta, theta = np.float32(s["beta"]), np.float32(s["theta"])
            _whole_w4(s["v0"].copy(), s["bias"], beta, theta, s["targets"], s["weights"], net.steps, counts)
            return counts

        return run_w4
    shapes = net.shapes()
    sizes = [int(np.prod(shape)) for shape in shapes]
    source = ["def whole(flat, counts, W, T, S, R, theta, bias):"]
    for k in range(len(net.layers)):
        n = sizes[k + 1]
        source += [f"  c{k} = np.zeros({n}, np.float32); i{k} = np.zeros({n}, np.float32); v{k} = np.zeros({n}, np.float32)"]
        source += [f"  e{k + 1} = np.empty({n}, np.int64); n{k + 1} = 0"]
    source += [f"  e0 = np.empty({sizes[0]}, np.int64)", "  for t in range(flat.shape[0]):", "    n0 = _list(flat[t], e0)"]
    for k, layer in enumerate(net.layers):
        source += [f"    c{k}[:] = bias[{k}]"]
        if layer.recurrent is not None:
            source += [f"    _dense(R[{k}], e{k + 1}, n{k + 1}, c{k})"]
        if layer.conv or layer.pool > 1:
            source += [f"    _lists(T[{k}], W[{k}].ravel(), S[{k}], e{k}, n{k}, c{k})"]
        else:
            source += [f"    _dense(W[{k}], e{k}, n{k}, c{k})"]
        alpha = f"np.float32({layer.alpha or 0.0}), {layer.alpha is not None}"
        source += [f"    n{k + 1} = _fire(c{k}, i{k}, v{k}, {alpha}, np.float32({layer.beta}), theta[{k}], e{k + 1})"]
    last = len(net.layers)
    source += [f"    for e in range(n{last}):", f"      counts[e{last}[e]] += 1"]
    names: dict[str, Any] = {"np": np, "_list": _list, "_dense": _dense, "_lists": _lists, "_fire": _fire}
    exec("\n".join(source), names)  # our own text
    whole = numba.njit(fastmath=False)(names["whole"])
    W, T, S, R, theta, bias = [], [], [], [], [], []
    for layer, shape in zip(net.layers, shapes, strict=False):
        if layer.conv:
            target, weight, start = connections(layer, shape)
        elif layer.pool > 1:
            inside = np.arange(int(np.prod(shape)))
            c, y, x = np.unravel_index(inside, shape)
            tile = (c * (shape[1] // layer.pool) + y // layer.pool) * (shape[2] // layer.pool) + x // layer.pool
            weight = layer.weight.T[tile].ravel()
            target = np.tile(np.arange(len(layer.weight)), len(inside)).astype(np.int32)
            start = np.arange(len(inside) + 1, dtype=np.int64) * len(layer.weight)
        else:
            weight, target, start = np.ascontiguousarray(layer.weight.T), np.zeros(1, np.int32), np.zeros(1, np.int64)
        W.append(np.atleast_2d(weight) if weight.ndim == 1 else weight)
        T.append(target)
        S.append(start)
        R.append(np.zeros((1, 1), np.float32) if layer.recurrent is None else np.ascontiguousarray(layer.recurrent.T))
    for layer, size in zip(net.layers, sizes[1:], strict=True):
        theta.append(np.broadcast_to(layer.theta, size).astype(np.float32).copy())
        bias.append(np.zeros(size, np.float32) if layer.bias is None else layer.bias.astype(np.float32))
    lists = [tuple(np.ascontiguousarray(a) for a in part) for part in (W, T, S, R, theta, bias)]

    def run(x: np.ndarray) -> np.ndarray:
        counts = np.zeros(sizes[-1], np.int64)
        whole(np.ascontiguousarray(x.reshape(x.shape[1], -1)), counts, *lists)
        return counts

    return run
