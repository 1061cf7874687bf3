"""A layer's matrix gives what the layer gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spikec.ir.connections import connections
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Conv, Dense, Input, Ref, Sparse
from spikec.ir.rules import verify
from spikec.ir.types import TensorType

RNG = np.random.default_rng(3)


def some(*shape: int) -> Any:
    return RNG.integers(-2, 3, shape).astype(np.int16)


def waits(*shape: int) -> Any:
    return RNG.integers(0, 4, shape).astype(np.int32)


NODES = {
    "dense": ((5,), {"weight": some(3, 5), "delay": waits(3, 5)}, Dense),
    "dense over the last axis": ((2, 3, 5), {"weight": some(4, 5)}, Dense),
    "one axis": ((4, 9), {"weight": some(6, 2, 3), "groups": 2, "stride": (2,), "padding": (1,)}, Conv),
    "two axes": (
        (2, 6, 7),
        {"weight": some(4, 2, 3, 2), "delay": waits(4, 2, 3, 2), "stride": (1, 2), "padding": (2, 0), "dilation": (2, 3)},
        Conv,
    ),
    "depthwise": ((3, 5, 5), {"weight": some(6, 1, 2, 2), "groups": 3, "stride": (2, 2)}, Conv),
    "sparse": (
        (4,),
        {"weight": some(5), "indices": np.array([0, 3, 3, 1, 2]), "indptr": np.array([0, 3, 3, 5]), "fan_in": 4, "delay": waits(5)},
        Sparse,
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_the_matrix_gives_what_the_layer_gives(name: str) -> None:
    shape, arguments, kind = NODES[name]
    node = kind(name="y", inputs=(Ref("x"),), **arguments)
    source = Input(name="x", type=TensorType("graded", shape, "i32"), bounds=(-9, 9))
    graph = verify(Graph("g", "fixed", (source, node), (("y", Ref("y")),)))
    x = RNG.integers(-9, 10, (2, 8, *shape))
    wanted = interpret(graph, {"x": x}).outputs["y"].reshape(2, 8, -1)
    table = connections(node, shape)
    assert (table.weight != 0).all()
    flat = x.reshape(2, 8, -1)
    got = np.zeros_like(wanted)
    for row, column, weight, delay in zip(table.rows, table.columns, table.weight, table.delay, strict=True):
        got[:, delay:, row] += weight * flat[:, : 8 - delay, column]
    np.testing.assert_array_equal(got, wanted)
    assert wanted.any() and table.shape == (wanted.shape[2], flat.shape[2])
    weight, indices, indptr, delay = table.compressed()
    rows = np.repeat(np.arange(table.shape[0]), np.diff(indptr))
    entries = sorted(zip(rows.tolist(), indices.tolist(), weight.tolist(), delay.tolist(), strict=True))
    assert entries == sorted(
        zip(table.rows.tolist(), table.columns.tolist(), table.weight.tolist(), table.delay.tolist(), strict=True)
    )
