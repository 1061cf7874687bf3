"""Networks of integers to be mapped onto cores."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from nets import dense, graph, native, spikes

from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Conv, Input, Neuron, Ref, Reshape, Sparse
from spikec.ir.rules import verify


def lif(name: str, source: str) -> Neuron:
    params = {"du": 4095, "dv": 400, "vth": 60, "bias_mant": 0, "bias_exp": 0}
    return Neuron(name=name, inputs=(Ref(source),), program=native("LIF"), params={k: np.int32(v) for k, v in params.items()})


def layers(*sizes: int, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    nodes: list[Any] = [spikes((sizes[0],), dtype="i8")]
    before = "in"
    for k, (a, b) in enumerate(pairwise(sizes)):
        w = (2 * rng.integers(-127, 128, (b, a))).astype(np.int16)
        nodes += [dense(f"fc{k}", before, w), lif(f"l{k}", f"fc{k}")]
        before = f"l{k}"
    return verify(graph(*nodes, out=[before], level="fixed"))


def conv_net(side: int, channels: int) -> Graph:
    rng = np.random.default_rng(0)
    w1 = (2 * rng.integers(-9, 10, (channels, 2, 3, 3))).astype(np.int16)
    w2 = (2 * rng.integers(-9, 10, (channels, channels, 3, 3))).astype(np.int16)
    w3 = (2 * rng.integers(-9, 10, (10, channels * side * side))).astype(np.int16)
    size = channels * side * side
    tail: list[Any] = (
        [Reshape(name="f", inputs=(Ref("l2"),), shape=(size,)), dense("fc", "f", w3), lif("l3", "fc")] if size < 8_000 else []
    )
    return verify(
        graph(
            Input(name="in", type=spikes((2, side, side), dtype="i8").type),
            Conv(name="c1", inputs=(Ref("in"),), weight=w1, padding=(1, 1)), lif("l1", "c1"),
            Conv(name="c2", inputs=(Ref("l1"),), weight=w2, padding=(1, 1)), lif("l2", "c2"), *tail,
            out=["l3" if tail else "l2"], level="fixed",
        )
    )  # fmt: skip


def local(size: int, seed: int) -> Graph:
    """A shuffled ring, each neuron with a few synapses from its neighbours."""
    rng = np.random.default_rng(seed)
    number = rng.permutation(size)
    w = np.zeros((size, size), np.int16)
    for k in range(size):
        for d in (-2, -1, 1, 2):
            w[number[k], number[(k + d) % size]] = 40
    indices = np.concatenate([np.flatnonzero(row) for row in w])
    rows = np.concatenate([[0], np.cumsum((w != 0).sum(axis=1))])
    near = Sparse(name="near", inputs=(Ref("l", delay=1),), weight=w[w != 0], indices=indices, indptr=rows, fan_in=size)
    one = np.arange(size)
    wide = Sparse(
        name="wide", inputs=(Ref("in"),), weight=np.full(size, 90, np.int16), indices=one, indptr=np.arange(size + 1), fan_in=size
    )
    add = Add(name="sum", inputs=(Ref("near"), Ref("wide")))
    return verify(graph(spikes((size,), dtype="i8"), near, wide, add, lif("l", "sum"), out=["l"], level="fixed"))
