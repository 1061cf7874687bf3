"""What a layer of weights connects, one by one: the matrix behind a dense, sparse or convolutional node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spikec.ir.ops import Conv, Dense, Sparse, window_shape
from spikec.ir.types import Array


@dataclass(frozen=True)
class Connections:
    """Entry k leads from element `columns[k]` of the operand to element `rows[k]` of the result (both flat), with `weight[k]`,
    `delay[k]` steps after the operand's own. Weights of zero are left out; two entries may share a place."""

    rows: Array
    columns: Array
    weight: Array
    delay: Array
    shape: tuple[int, int]

    def compressed(self) -> tuple[Array, Array, Array, Array]:
        """The entries as compressed rows, in row and then column order: weight, indices, indptr, delay. Equal places stay apart."""
        order = np.lexsort((self.columns, self.rows))
        indptr = np.searchsorted(self.rows[order], np.arange(self.shape[0] + 1)).astype(np.int32)
        return self.weight[order], self.columns[order].astype(np.int32), indptr, self.delay[order]


def connections(node: Dense | Sparse | Conv, shape: tuple[int, ...]) -> Connections:
    """All connections of a node whose operand has this shape."""
    if isinstance(node, Sparse):
        delay = node.delay if node.delay is not None else np.zeros(len(node.weight), np.int64)
        return _kept(node.rows, node.indices, node.weight, delay, (len(node.indptr) - 1, node.fan_in))
    if isinstance(node, Dense):
        outer, inner = np.nonzero(node.weight)
        weight = node.weight[outer, inner]
        delay = node.delay[outer, inner] if node.delay is not None else np.zeros(len(weight), np.int64)
        out, width = node.weight.shape
        repeat = int(np.prod(shape[:-1], dtype=np.int64))  # a dense layer acts on the last axis, alike for all the others
        block = np.arange(repeat)[:, None]
        rows, columns = (block * out + outer).ravel(), (block * width + inner).ravel()
        return Connections(rows, columns, np.tile(weight, repeat), np.tile(delay, repeat), (repeat * out, repeat * width))
    return _windows(node, shape)


def _windows(node: Conv, shape: tuple[int, ...]) -> Connections:
    """Every tap of every kernel, wherever it falls on the operand and not on its padding."""
    weight = node.weight
    delays = node.delay if node.delay is not None else np.zeros(weight.shape, np.int8)
    space, kernel = shape[1:], weight.shape[2:]
    size = window_shape(node, space, kernel, node.dilation)
    # Per axis: for every tap, the result's places that it reaches and the operand's places that it reads there.
    axes = []
    for n, m, k, s, p, d in zip(space, size, kernel, node.stride, node.padding, node.dilation, strict=True):
        place = np.arange(m)
        read = place * s - p + np.arange(k)[:, None] * d
        axes.append([(place[ok], row[ok]) for row in read for ok in [(row >= 0) & (row < n)]])
    out, per_group = weight.shape[:2]
    first = np.arange(out) // (out // node.groups) * per_group  # the first input channel of every output channel
    parts = []
    for tap in np.ndindex(*kernel):
        chosen = (slice(None), slice(None), *tap)
        o, i = np.nonzero(weight[chosen])
        value, wait = weight[chosen][o, i], delays[chosen][o, i]
        place, read = np.zeros(1, np.int64), np.zeros(1, np.int64)
        for axis, k in enumerate(tap):
            mine, theirs = axes[axis][k]
            place = (place[:, None] * size[axis] + mine).ravel()
            read = (read[:, None] * space[axis] + theirs).ravel()
        area, field = int(np.prod(size)), int(np.prod(space))
        rows = (o[:, None] * area + place).ravel()
        columns = ((first[o] + i)[:, None] * field + read).ravel()
        parts.append((rows, columns, np.repeat(value, len(place)), np.repeat(wait, len(place))))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    total = (out * int(np.prod(size)), shape[0] * int(np.prod(space)))
    return Connections(joined[0], joined[1], joined[2], joined[3].astype(np.int64), total)


def _kept(rows: Array, columns: Array, weight: Array, delay: Array, shape: tuple[int, int]) -> Connections:
    kept = weight != 0
    return Connections(rows[kept], columns[kept], weight[kept], delay[kept], shape)
