"""Dense or sparse: the cheaper, with the same sums."""

from __future__ import annotations

import numpy as np
import pytest

from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Dense, Input, Ref, Sparse
from spikec.ir.rules import verify
from spikec.ir.types import TensorType
from spikec.ledger import Ledger
from spikec.passes.choose_formats import ChooseFormats
from spikec.target import load_target

LOIHI = load_target("loihi2")


@pytest.mark.parametrize(("share", "kept"), [(0.9, Dense), (0.6, Dense), (0.5, Sparse), (0.02, Sparse)])
@pytest.mark.parametrize("delayed", [False, True])
def test_the_cheaper_format_is_chosen(share: float, kept: type, delayed: bool) -> None:
    """15 bits a place against 27 a weight: sparse where fewer than 5 of 9 weights are there."""
    rng = np.random.default_rng(0)
    there = rng.permutation(1000).reshape(20, 50) < 1000 * share
    weight = np.where(there, 2 * rng.integers(1, 50, there.shape), 0).astype(np.int16)
    delay = rng.integers(0, 5, there.shape).astype(np.int32)
    source = Input(name="in", type=TensorType("spike", (50,), "i8"))
    dense = Dense(name="y", inputs=(Ref("in"),), weight=weight, delay=delay if delayed else None)
    sparse = Sparse(
        name="y",
        inputs=(Ref("in"),),
        weight=weight[there],
        indices=np.nonzero(there)[1].astype(np.int32),
        indptr=np.concatenate([[0], there.sum(axis=1).cumsum()]).astype(np.int32),
        fan_in=50,
        delay=delay[there] if delayed else None,
    )
    x = {"in": rng.integers(0, 2, (2, 9, 50))}
    for node in (dense, sparse):
        before = verify(Graph("g", "fixed", (source, node), (("y", Ref("y")),)))
        ledger = Ledger()
        after = verify(ChooseFormats(LOIHI).run(before, ledger))
        assert type(after["y"]) is kept and len(ledger) == (not isinstance(node, kept))
        np.testing.assert_array_equal(interpret(before, x).outputs["y"], interpret(after, x).outputs["y"])


def test_two_connections_between_the_same_neurons_stay_sparse() -> None:
    source = Input(name="in", type=TensorType("spike", (1,), "i8"))
    twice = Sparse(
        name="y",
        inputs=(Ref("in"),),
        weight=np.array([2, 4], np.int16),
        indices=np.zeros(2, np.int32),
        indptr=np.array([0, 2], np.int32),
        fan_in=1,
        delay=np.array([0, 3], np.int32),
    )
    before = verify(Graph("g", "fixed", (source, twice), (("y", Ref("y")),)))
    assert ChooseFormats(LOIHI).run(before, Ledger()).nodes == before.nodes
