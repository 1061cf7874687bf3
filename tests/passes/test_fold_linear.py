"""Layers of weights that follow one another become one; checked by running both, in integers and in dyadic floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import dense, graph, leaky, sir, spikes

from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Constant, Conv, Dense, Input, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.rules import verify
from spikec.ir.types import Array, TensorType
from spikec.ledger import Ledger
from spikec.passes.fold_linear import FoldLinear
from spikec.target import load_target

LOIHI = load_target("loihi2")
F = np.float32


def fold(before: Graph) -> Graph:
    ledger = Ledger()
    after = verify(FoldLinear(LOIHI).run(verify(before), ledger))
    assert len(ledger) and {entry.kind for entry in ledger} == {"exact"}
    return after


def same(before: Graph, after: Graph, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    x = {node.name: rng.integers(0, 2, (3, 7, *node.type.shape)) for node in before.inputs}
    if before.level == "float":
        x = {name: array.astype(F) for name, array in x.items()}
    one, two = interpret(before, x), interpret(after, x)
    for name in one.outputs:
        np.testing.assert_array_equal(one.outputs[name], two.outputs[name])
        assert one.outputs[name].any()


def dyadic(*shape: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).integers(-8, 9, shape) / 8).astype(F)


SHARED = dyadic(3, 3, seed=3)


def test_text() -> None:
    before = sir(
        "%in = input : spike<1x4x4>\n"
        "%p = pool(%in) mode=average kernel=(2, 2) stride=(2, 2) padding=(0, 0) : graded<1x2x2>\n"
        "%c = conv(%p) weight=[[[[1.0, 2.0]]]] : value<1x2x1>\n"
        "output %c"
    )
    assert str(fold(before)) == str(
        sir(
            "%in = input : spike<1x4x4>\n"
            "%c = conv(%in) weight=[[[[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]]]] stride=(2, 2) : value<1x2x1>\n"
            "output %c"
        )
    )


def test_the_usual_convolutional_network_has_one_layer_of_synapses_between_populations() -> None:
    g = graph(
        spikes((2, 12, 12)),
        Conv(name="c1", inputs=(Ref("in"),), weight=dyadic(4, 2, 3, 3), bias=dyadic(4), padding=(1, 1)),
        Pool(name="p1", inputs=(Ref("c1"),), mode="average", kernel=(2, 2)),
        leaky("l1", "p1"),
        Pool(name="p2", inputs=(Ref("l1"),), mode="sum", kernel=(2, 2)),
        Conv(name="c2", inputs=(Ref("p2"),), weight=dyadic(3, 4, 2, 2), padding=(1, 1)),
        leaky("l2", "c2"),
        Pool(name="p3", inputs=(Ref("l2"),), mode="average", kernel=(2, 2)),
        Reshape(name="flat", inputs=(Ref("p3"),), shape=(12,)),
        Dense(name="fc", inputs=(Ref("flat"),), weight=dyadic(5, 12), bias=dyadic(5)),
        leaky("l3", "fc"),
        Pool(name="p4", inputs=(Ref("l1"),), mode="sum", kernel=(2, 2)),
        leaky("l4", "p4"),
        out=["l1", "l2", "l3", "l4", "fc"],
    )
    after = fold(g)
    assert {node.op for node in after.nodes} <= {"input", "conv", "dense", "neuron", "reshape", "add", "constant"}
    for node in after.nodes:
        if isinstance(node, (Conv, Dense, Sparse)):
            source = after[node.inputs[0].node]
            while isinstance(source, Reshape):
                source = after[source.inputs[0].node]
            assert source.op in ("input", "neuron")
    same(g, after)


@pytest.mark.parametrize("level", ["float", "fixed"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_two_layers(level: str, data: st.DataObject) -> None:
    """Strides, paddings, dilations, groups, delays, biases; as one convolution where that is right, else as a matrix."""

    def pick(*options: Any) -> Any:
        return data.draw(st.sampled_from(options))

    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))

    def weight(*shape: int) -> Array:
        return (rng.integers(-8, 9, shape) / 8).astype(F) if level == "float" else rng.integers(-9, 10, shape).astype(np.int16)

    def layer(name: str, ref: Ref, shape: tuple[int, ...]) -> Any:
        kind = pick("conv", "conv", "pool", "dense")
        if kind == "dense":
            biases = weight(3) if pick(True, False) else None
            return Dense(name=name, inputs=(ref,), weight=weight(3, shape[-1]), bias=biases)
        kernel, stride = (pick(1, 2, 3), pick(1, 2)), (pick(1, 2), pick(1, 2, 3))
        if kind == "pool":
            mode = pick("sum", "average") if level == "float" else "sum"
            if mode == "average":
                kernel = (pick(1, 2), pick(1, 2))  # powers of two are exact
            return Pool(name=name, inputs=(ref,), mode=mode, kernel=kernel, stride=stride, padding=(pick(0, 0, kernel[0] // 2), 0))
        groups = pick(*(n for n in (1, 2, shape[0]) if shape[0] % n == 0))
        return Conv(
            name=name,
            inputs=(ref,),
            weight=weight(2 * groups, shape[0] // groups, *kernel),
            stride=stride,
            padding=(pick(0, 0, 1, 2), pick(0, 1)),
            dilation=(pick(1, 2), 1),
            groups=groups,
            bias=weight(2 * groups) if pick(True, False) else None,
        )

    source = Input(name="in", type=TensorType("spike", (2, 8, 9), "f32" if level == "float" else "i8"))
    first = layer("a", Ref("in", delay=pick(0, 1)), (2, 8, 9))
    shape = Graph("g", level, (source, first), (("a", Ref("a")),)).shape_of("a")
    if min(shape[1:]) < 5:
        return
    nodes: list[Any] = [source, first]
    ref = Ref("a", delay=pick(0, 2))
    if pick(True, False, False):
        nodes.append(Add(name="sum", inputs=(Ref("a"), Ref("a", delay=1))))
        ref = Ref("sum")
    if pick(True, False, False):
        nodes.append(Reshape(name="r", inputs=(ref,), shape=(shape[0], shape[2], shape[1])))
        ref, shape = Ref("r"), (shape[0], shape[2], shape[1])
    nodes.append(layer("b", ref, shape))
    before = Graph("g", level, tuple(nodes), (("b", Ref("b")),))
    after = fold(before)
    for node in after.nodes:
        if isinstance(node, (Conv, Dense, Sparse)) and not isinstance(nodes[-1], Pool):
            assert after.type_of(node.inputs[0]).kind == "spike"
    rng = np.random.default_rng(1)
    x = {"in": rng.integers(0, 2, (2, 6, 2, 8, 9)).astype(F if level == "float" else np.int8)}
    np.testing.assert_array_equal(interpret(before, x).outputs["b"], interpret(after, x).outputs["b"])


def test_the_border_of_a_pool_that_does_not_cover_the_map() -> None:
    """Nine rows in pairs leave one over, which a single convolution would read as padding of the next layer."""
    g = graph(
        spikes((1, 9, 8)),
        Pool(name="p", inputs=(Ref("in"),), mode="sum", kernel=(2, 2)),
        Conv(name="c", inputs=(Ref("p"),), weight=dyadic(2, 1, 3, 3), padding=(1, 1)),
        leaky("l", "c"),
        out=["l"],
    )
    after = fold(g)
    assert not any(isinstance(node, Conv) for node in after.nodes)
    same(g, after)


def test_scales_are_weights() -> None:
    """Per channel, per element, a number for all; offsets as biases, the border of a padded map included; after delays too."""
    per_element = dyadic(2, 3, 3, seed=4)
    for factor, offset in (([0.5, -2.0], None), (0.25, 0.5), ([0.5, 2.0], [0.25, -1.0]), (per_element, per_element[::-1])):
        arrays = [None if array is None else np.asarray(array, F) for array in (factor, offset)]
        assert arrays[0] is not None
        before = graph(
            spikes((2, 3, 3)),
            Scale(name="s", inputs=(Ref("in", delay=1),), factor=arrays[0], offset=arrays[1]),
            Conv(name="c", inputs=(Ref("s", delay=2),), weight=dyadic(2, 2, 2, 2), padding=(1, 1)),
            Reshape(name="r", inputs=(Ref("s"),), shape=(18,)),
            Dense(name="d", inputs=(Ref("r"),), weight=dyadic(3, 18), bias=dyadic(3)),
            leaky("lc", "c"),
            leaky("ld", "d"),
            out=["lc", "ld"],
        )
        after = fold(before)
        assert "scale" not in {node.op for node in after.nodes}
        assert sum(isinstance(node, (Conv, Dense, Sparse)) for node in after.nodes) == 2
        # What waits, waits in a synapse.
        assert not [node for node in after.nodes if isinstance(node, Reshape) and node.inputs[0].delay]
        same(before, after)


def test_weights_over_constants_and_over_sums_of_sums() -> None:
    before = graph(
        spikes((2, 4, 4)),
        Scale(name="s", inputs=(Ref("in"),), factor=np.asarray(0.5, F)),
        Add(name="a", inputs=(Ref("s"), Ref("in", delay=1))),
        Add(name="b", inputs=(Ref("a"), Ref("in"))),
        Constant(name="k", value=dyadic(2, 4, 4, seed=9), start=1),
        Add(name="e", inputs=(Ref("b"), Ref("k"))),
        Reshape(name="r", inputs=(Ref("e", delay=1),), shape=(32,)),
        Dense(name="d", inputs=(Ref("r"),), weight=dyadic(3, 32), bias=dyadic(3)),
        leaky("l", "d", 0.5, 0.25),
        out=["l", "d"],
    )
    after = fold(before)
    linear = [node for node in after.nodes if isinstance(node, (Conv, Dense, Sparse))]
    assert {after.type_of(node.inputs[0]).kind for node in linear} == {"spike"}
    assert [node.start for node in after.nodes if isinstance(node, Constant)] == [2]
    same(before, after)


#: Where rewrites go wrong: (graph, layers of weights left).
TOPOLOGIES: dict[str, tuple[Graph, int]] = {
    "recurrent": (
        graph(
            spikes((4,)), dense("a", "in", dyadic(4, 4)), dense("r1", Ref("l", delay=1), dyadic(3, 4, seed=1), dyadic(3, seed=7)),
            dense("r2", "r1", dyadic(4, 3, seed=2)), Add(name="s", inputs=(Ref("a"), Ref("r2"))), leaky("l", "s", 0.5, 0.25), out=["l", "s"],
        ),
        2,
    ),
    "a loop with the delay inside": (
        graph(
            spikes((4,)), dense("a", "in", dyadic(4, 4)), dense("r1", "l", dyadic(3, 4, seed=1), dyadic(3, seed=7)),
            dense("r2", Ref("r1", delay=2), dyadic(4, 3, seed=2)), Add(name="s", inputs=(Ref("a"), Ref("r2"))), leaky("l", "s", 0.5, 0.25), out=["l", "s"],
        ),
        2,
    ),
    "fork before": (
        graph(
            spikes((4,)), dense("a", "in", dyadic(3, 4)), dense("b", "a", dyadic(2, 3, seed=1)), dense("c", Ref("in", delay=1), dyadic(2, 4, seed=2)),
            Add(name="s", inputs=(Ref("b"), Ref("c"))), leaky("l", "s", 0.5, 0.25), out=["l"],
        ),
        2,
    ),
    "fork after": (
        graph(
            spikes((4,)), dense("a", "in", dyadic(3, 4)), dense("b", "a", dyadic(2, 3, seed=1)), leaky("l", "b", 0.5, 0.25), leaky("m", Ref("b", delay=1), 0.75, 0.25),
            out=["l", "m", "b"],
        ),
        1,
    ),
    "first is an output": (graph(spikes((4,)), dense("a", "in", dyadic(3, 4)), dense("b", "a", dyadic(2, 3, seed=1)), out=["a", "b"]), 2),
    "shared weights": (
        graph(
            spikes((3,)), dense("a", "in", SHARED), dense("b", "a", SHARED), dense("c", Ref("b", delay=1), SHARED), leaky("l", "c", 0.5, 0.25), out=["l"]
        ),
        1,
    ),
    "before step 0 a wire carries numbers": (
        graph(spikes((4,)), dense("a", "in", dyadic(3, 4)), dense("b", Ref("a", delay=1, init=dyadic(1, 3, seed=5)), dyadic(2, 3, seed=1)), leaky("l", "b", 0.5, 0.25), out=["l", "b"]),
        2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOPOLOGIES)
def test_topologies(case: str) -> None:
    before, left = TOPOLOGIES[case]
    ledger = Ledger()
    after = verify(FoldLinear(LOIHI).run(verify(before), ledger))
    assert sum(isinstance(node, (Conv, Dense, Sparse)) for node in after.nodes) == left
    same(before, after)
    again = Ledger()
    assert FoldLinear(LOIHI).run(after, again).nodes == after.nodes and not len(again), "already folded"


def test_nothing_to_add_up() -> None:
    """Layers over no channels of input, and over none of the layer between."""
    for middle, width in ((0, 4), (3, 0)):
        before = graph(
            spikes((width,)), dense("a", "in", dyadic(middle, width)), dense("b", "a", dyadic(2, middle), dyadic(2)), leaky("l", "b", 0.5, -0.25), out=["l", "b"]
        )  # fmt: skip
        after = verify(FoldLinear(LOIHI).run(verify(before), Ledger()))
        same(before, after)


def test_a_layer_that_others_read_stays_for_them() -> None:
    g = graph(
        spikes((6,)),
        Dense(name="a", inputs=(Ref("in"),), weight=dyadic(4, 6)),
        Dense(name="b", inputs=(Ref("a"),), weight=dyadic(3, 4, seed=1)),
        leaky("la", "a"),
        leaky("lb", "b"),
        out=["la", "lb"],
    )
    after = fold(g)
    assert after["b"].inputs == (Ref("in"),) and "a" in after
    same(g, after)


def test_what_stays_as_it_is() -> None:
    """Delays per connection, maxima, and targets that have pools."""
    delay = np.ones((3, 4), np.int32)
    g = graph(
        spikes((4, 4)),
        Pool(name="m", inputs=(Ref("in"),), mode="max", kernel=(2,)),
        Reshape(name="r", inputs=(Ref("in"),), shape=(16,)),
        Dense(name="a", inputs=(Ref("r"),), weight=dyadic(4, 16)),
        Dense(name="b", inputs=(Ref("a"),), weight=dyadic(3, 4), delay=delay),
        leaky("l", "b"),
        leaky("lm", "m"),
        out=["l", "lm"],
    )
    assert FoldLinear(LOIHI).run(g, Ledger()).nodes == g.nodes
    host = load_target("host")
    assert "pool" not in host.operations  # host lists no operations: it has them all and does not run the pass
    assert "fold-linear" not in host.passes
