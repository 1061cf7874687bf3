"""Sum pools that tile a map of spikes become a renumbering of events in C: same values, and no buffer for the sums."""

from __future__ import annotations

import numpy as np
import pytest

from spikec.backends.c.backend import CBackend
from spikec.backends.c.generate import generate
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret
from spikec.ir.ops import Conv, Dense, Input, Neuron, Node, Pool, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.target import load_target

IF = "neuron @if(x) params(theta) state(v: i32 = 0) {\nv = clip(v + x, 20)\ns = v >= theta\nv = select(s, 0, v)\nemit s\n}"


def network(
    kernel: tuple[int, int], stride: tuple[int, int], *, flat: bool, delay: int, shown: bool, first: bool, shared: bool = False
) -> Graph:
    """Input, convolution (or not), pool, weights, neurons; and the pool read by a second layer if `shared`."""
    rng = np.random.default_rng(kernel[0] + 10 * stride[1] + delay)
    program = parse_program(IF)
    nodes: list[Node] = [Input(name="in", type=TensorType("spike", (3, 12, 12), "i8"))]
    source = "in"
    if not first:
        nodes.append(Conv(name="c1", inputs=(Ref("in"),), weight=rng.integers(-9, 20, (3, 3, 3, 3)), padding=(1, 1)))
        nodes.append(Neuron(name="l1", inputs=(Ref("c1"),), program=program, params={"theta": np.int32(25)}))
        source = "l1"
    nodes.append(Pool(name="pool", inputs=(Ref(source, delay=delay),), mode="sum", kernel=kernel, stride=stride))
    channels, height, width = Graph("g", "fixed", tuple(nodes), ()).shape_of("pool")
    if flat:
        size = channels * height * width
        nodes.append(Reshape(name="flat", inputs=(Ref("pool"),), shape=(size,)))
        nodes.append(Dense(name="w", inputs=(Ref("flat"),), weight=rng.integers(-20, 30, (7, size)).astype(np.int8)))
    else:
        nodes.append(Conv(name="w", inputs=(Ref("pool", delay=1),), weight=rng.integers(-9, 20, (5, 3, 2, 2)).astype(np.int8)))
    nodes.append(Neuron(name="l2", inputs=(Ref("w"),), program=program, params={"theta": np.int32(30)}))
    outputs = [("l2", Ref("l2"))]
    if shared:
        nodes.append(Conv(name="w2", inputs=(Ref("pool"),), weight=rng.integers(-9, 20, (2, 3, 1, 1)).astype(np.int8)))
        nodes.append(Neuron(name="l3", inputs=(Ref("w2"),), program=program, params={"theta": np.int32(11)}))
        outputs.append(("l3", Ref("l3")))
    if shown:
        outputs.append(("pool", Ref("pool")))
    return verify(Graph("g", "fixed", tuple(nodes), tuple(outputs)))


@pytest.mark.parametrize(
    ("options", "folded"),
    [
        ({"kernel": (2, 2), "stride": (2, 2), "flat": False, "delay": 0, "shown": False, "first": False}, True),
        ({"kernel": (3, 4), "stride": (3, 4), "flat": True, "delay": 0, "shown": False, "first": False}, True),
        ({"kernel": (2, 3), "stride": (2, 3), "flat": True, "delay": 2, "shown": False, "first": True}, True),
        ({"kernel": (2, 2), "stride": (2, 2), "flat": False, "delay": 1, "shown": False, "first": False, "shared": True}, True),
        ({"kernel": (2, 2), "stride": (2, 2), "flat": False, "delay": 0, "shown": True, "first": False}, False),
        ({"kernel": (3, 3), "stride": (2, 2), "flat": False, "delay": 0, "shown": False, "first": False}, False),
        ({"kernel": (5, 5), "stride": (5, 5), "flat": True, "delay": 0, "shown": False, "first": False}, False),
    ],
)
def test_pools_of_spikes(options: dict[str, object], folded: bool) -> None:
    graph = network(**options)
    source = generate(graph).source
    assert ("spk_pool.h" not in source) == folded
    assert ("_window" in source) == (folded and (options["flat"] is True))
    data = {"in": (np.random.default_rng(1).random((6, 15, 3, 12, 12)) < 0.2).astype(np.int8)}
    record = default_record(graph)
    wanted = interpret(graph, data, record=record)
    got = CBackend(load_target("host")).run(graph, data, record=record)
    assert wanted.records["l2"].any()
    for name in wanted.outputs:
        assert np.array_equal(got.outputs[name], wanted.outputs[name]), name
    for name in record:
        assert np.array_equal(got.records[name], wanted.records[name]), name
    for node, states in wanted.states.items():
        for state, value in states.items():
            assert np.array_equal(got.states[node][state], value), (node, state)
