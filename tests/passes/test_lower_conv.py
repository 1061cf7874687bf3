"""Convolutions that Loihi's Conv does not have become matrices, with the same sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import native

from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Concat, Conv, Gather, Input, Neuron, Ref, Reshape, Sparse
from spikec.ir.rules import verify
from spikec.ir.types import Array, TensorType
from spikec.ledger import Ledger
from spikec.passes.lower_conv import LowerConv
from spikec.target import load_target

LOIHI = load_target("loihi2")
RNG = np.random.default_rng(2)


def even(*shape: int) -> Array:
    return (2 * RNG.integers(-20, 21, shape)).astype(np.int16)


def lif(name: str, ref: Ref) -> Neuron:
    params = {"du": 4095, "dv": 300, "vth": 30, "bias_mant": 0, "bias_exp": 0}
    arrays = {key: np.asarray(value, np.int32) for key, value in params.items()}
    return Neuron(name=name, inputs=(ref,), program=native("LIF"), params=arrays)


def conv(ref: Ref, *shape: int, **more: Any) -> Conv:
    return Conv(name="c", inputs=(ref,), weight=even(*shape), **more)


def run(*nodes: Any, kind: str = "spike", bounds: tuple[int, int] | None = None) -> tuple[Graph, Graph, Ledger]:
    source = Input(name="in", type=TensorType(kind, (2, 6, 6), "i8" if kind == "spike" else "i32"), bounds=bounds)
    before = verify(Graph("g", "fixed", (source, *nodes), ((nodes[-1].name, Ref(nodes[-1].name)),)))
    ledger = Ledger()
    after = verify(LowerConv(LOIHI).run(before, ledger))
    low, high = bounds or (0, 1)
    x = {"in": RNG.integers(low, high + 1, (3, 12, 2, 6, 6))}
    one, two = (interpret(g, x, record=["c"]) for g in (before, after))
    np.testing.assert_array_equal(one.records["c"], two.records["c"])
    for name, array in one.outputs.items():
        np.testing.assert_array_equal(array, two.outputs[name])
    assert one.records["c"].any()
    return before, after, ledger


def test_what_loihi_has_stays() -> None:
    kernels = conv(Ref("in", delay=1), 4, 1, 3, 3, groups=2, stride=(2, 1), padding=(1, 1), dilation=(1, 2))
    before, after, ledger = run(kernels, lif("l", Ref("c")))
    assert after == before and not len(ledger)


CASES = {
    "the target's has no delays": (conv(Ref("in", delay=1), 4, 2, 3, 3, delay=RNG.integers(0, 4, (4, 2, 3, 3)).astype(np.int32)),),
    "its sizes go up to 200": (conv(Ref("in", delay=1), 4, 2, 3, 3, padding=(200, 0)),),
}


@pytest.mark.parametrize("why", CASES)
def test_what_it_has_not(why: str) -> None:
    _, after, ledger = run(*CASES[why], lif("l", Ref("c")))
    assert any(isinstance(node, Sparse) for node in after.nodes) and not any(isinstance(node, Conv) for node in after.nodes)
    (entry,) = ledger
    assert entry.kind == "exact" and why in entry.what


def test_a_later_reading_a_selection_a_sum_and_a_result_taken_apart() -> None:
    _, after, _ = run(conv(Ref("in", delay=4), 3, 2, 2, 2), lif("l", Ref("c")))
    (sparse,) = (node for node in after.nodes if isinstance(node, Sparse))
    assert sparse.inputs[0].delay == 4
    gather = Gather(name="g", inputs=(Ref("in"),), indices=np.arange(72)[::-1].reshape(2, 6, 6).copy())
    _, _, ledger = run(gather, conv(Ref("g", delay=1), 3, 2, 2, 2), lif("l", Ref("c")))
    assert "%g" in ledger.entries[0].what
    both = Concat(name="both", inputs=(Ref("in"), Ref("in")))
    _, _, ledger = run(both, conv(Ref("both", delay=1), 3, 4, 2, 2), lif("l", Ref("c")))
    assert "%both" in ledger.entries[0].what
    half = Gather(name="half", inputs=(Ref("c"),), indices=np.arange(10))
    _, _, ledger = run(conv(Ref("in", delay=1), 3, 2, 2, 2), half, lif("l", Ref("half")))
    assert "taken apart" in ledger.entries[0].what
    flat = Reshape(name="flat", inputs=(Ref("c"),), shape=(75,))
    _, _, ledger = run(conv(Ref("in", delay=1), 3, 2, 2, 2), flat, lif("l", Ref("flat")))
    assert not len(ledger)


def test_sums_beyond_24_bits() -> None:
    _, _, ledger = run(conv(Ref("in", delay=1), 3, 2, 2, 2), kind="graded", bounds=(-(1 << 20), 1 << 20))
    assert "24 bits" in ledger.entries[0].what
