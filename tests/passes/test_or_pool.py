"""Or-pool: maximum pools over spikes as neurons, spike for spike, on Lava too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, random_spikes, spikes

import spikec
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Conv, Neuron, Pool, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ledger import Ledger
from spikec.passes.or_pool import OrPool
from spikec.target import load_target

LOIHI = load_target("loihi2")


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([((2,), (7,)), ((3,), (8,)), ((2, 2), (4, 6)), ((3, 2), (5, 5))]),
    st.integers(0, 3),
    st.integers(0, 1),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_windows_of_all_kinds(channels: int, sizes: tuple[tuple[int, ...], tuple[int, ...]], stride: int, pad: int, delay: int, seed: int) -> None:  # fmt: skip
    kernel, space = sizes
    pool = Pool(
        name="p",
        inputs=(Ref("in", delay=delay),),
        mode="max",
        kernel=kernel,
        stride=(stride,) * len(kernel) if stride else (),
        padding=(pad,) * len(kernel),
    )
    g = verify(graph(spikes((channels, *space)), pool, out=["p"]))
    ledger = Ledger()
    after = verify(OrPool(LOIHI).run(g, ledger))
    assert [type(node) for node in after.nodes[1:]] == [Conv, Neuron]
    assert [(e.node, e.kind) for e in ledger] == [("p", "exact")]
    x = {"in": random_spikes((3, 6, channels, *space), seed, 0.2)}
    np.testing.assert_array_equal(interpret(g, x).outputs["p"], interpret(after, x).outputs["p"])


def network() -> Graph:
    rng = np.random.default_rng(0)
    return graph(
        spikes((2, 6, 6)),
        Conv(name="c", inputs=(Ref("in"),), weight=rng.normal(0.1, 0.4, (4, 2, 3, 3)).astype(F), padding=(1, 1)),
        leaky("a", "c", beta=0.75),
        Pool(name="p", inputs=(Ref("a"),), mode="max", kernel=(2, 2)),
        Reshape(name="f", inputs=(Ref("p"),), shape=(36,)),
        dense("d", "f", rng.normal(0.1, 0.3, (5, 36)).astype(F)),
        leaky("b", "d", beta=0.875),
        out=["p", "b"],
    )


@pytest.mark.usefixtures("lava_env")
def test_a_network_with_a_maximum_pool_on_lava() -> None:
    x = random_spikes((3, 12, 2, 6, 6), 1, 0.2)
    build = spikec.compile(network(), target="loihi2", calibrate=x, custom_neurons="refuse")
    expected, found = build.run(x, record="all"), build.run(x, backend="lava", record="all")
    for name, value in expected.outputs.items():
        assert value.any()
        np.testing.assert_array_equal(found.outputs[name], value, name)
    a, p = expected.spikes("a"), expected.outputs["p"]
    np.testing.assert_array_equal(p, a.reshape(3, 12, 4, 3, 2, 3, 2).max(axis=(4, 6)))


def test_other_pools_stay() -> None:
    average = graph(spikes((2, 6)), Pool(name="p", inputs=(Ref("in"),), mode="average", kernel=(2,)), out=["p"])
    assert OrPool(LOIHI).run(average, Ledger()) == average
