"""The interpreter: against torch, against big integers, and the golden vector of the hardware card."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, native, spikes, values
from strategies import graphs, random_inputs, widened

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import Interpreter, default_record, interpret
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import DTYPES, TensorType

nn = torch.nn.functional


def run(node: Any, x: np.ndarray, level: str = "float") -> np.ndarray:
    """One node on x (batch, T, *shape)."""
    dtype = {"f": "f32", "i": "i64"}[x.dtype.kind]
    source = Input(
        name="in", type=TensorType("value", x.shape[2:], dtype), bounds=(-(1 << 20), 1 << 20) if level != "float" else None
    )
    g = verify(graph(source, node, level=level))
    return interpret(g, {"in": x}).outputs[node.name]


def torched(function: Any, x: np.ndarray, *arrays: Any, **more: Any) -> np.ndarray:
    flat = torch.from_numpy(x.reshape(-1, *x.shape[2:]))
    result = function(flat, *(None if a is None else torch.from_numpy(np.asarray(a)) for a in arrays), **more).numpy()
    return result.reshape(*x.shape[:2], *result.shape[1:])


@pytest.mark.parametrize("level", ["float", "fixed"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("space", [1, 2])
def test_conv_against_torch(space: int, seed: int, level: str) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 2, 4]))
    kernel = tuple(int(k) for k in rng.integers(1, 4, space))
    stride, padding, dilation = (tuple(int(k) for k in rng.integers(lo, lo + 3, space)) for lo in (1, 0, 1))
    shape = (2, 3, 4, *rng.integers(7, 11, space))
    # Small integers: every sum is exact in any order.
    x = rng.integers(-8, 8, shape).astype(np.int64 if level == "fixed" else F)
    w = rng.integers(-8, 8, (groups * 2, 4 // groups, *kernel)).astype(np.int16 if level == "fixed" else F)
    b = rng.integers(-8, 8, groups * 2).astype(np.int32 if level == "fixed" else F) if seed % 2 else None
    node = Conv(name="c", inputs=(Ref("in"),), weight=w, bias=b, stride=stride, padding=padding, dilation=dilation, groups=groups)
    conv = nn.conv1d if space == 1 else nn.conv2d
    wanted = torched(
        conv,
        x.astype(F),
        w.astype(F),
        None if b is None else b.astype(F),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    np.testing.assert_array_equal(run(node, x, level), wanted)


@pytest.mark.parametrize("mode", ["sum", "average", "max"])
@pytest.mark.parametrize("space", [1, 2])
def test_pool_against_torch(space: int, mode: Any) -> None:
    rng = np.random.default_rng(3)
    for kernel, stride, padding in ((2, 2, 0), (3, 1, 1), (3, 2, 1), (2, 3, 1), (4, 1, 2)):
        x = rng.integers(-8, 8, (2, 3, 4, *(9, 7)[:space])).astype(F)
        node = Pool(
            name="p", inputs=(Ref("in"),), mode=mode, kernel=(kernel,) * space, stride=(stride,) * space, padding=(padding,) * space
        )
        if mode == "max":
            wanted = torched(nn.max_pool1d if space == 1 else nn.max_pool2d, x, kernel_size=kernel, stride=stride, padding=padding)
        else:
            wanted = torched(nn.avg_pool1d if space == 1 else nn.avg_pool2d, x, kernel_size=kernel, stride=stride, padding=padding)
            wanted = np.rint(wanted * kernel**space) if mode == "sum" else wanted
        np.testing.assert_allclose(run(node, x), wanted, rtol=1e-6)
        if mode != "average":
            np.testing.assert_array_equal(run(node, x.astype(np.int64), "fixed"), wanted)


@pytest.mark.parametrize("level", ["float", "fixed"])
def test_dense_and_sparse_against_torch(level: str) -> None:
    rng = np.random.default_rng(0)
    kind: Any = np.int64 if level == "fixed" else F
    x = rng.integers(-8, 8, (2, 3, 5, 7)).astype(kind)
    w, b = rng.integers(-8, 8, (4, 7)).astype(kind), rng.integers(-8, 8, 4).astype(kind)
    wanted = torched(nn.linear, x.astype(F), w.astype(F), b.astype(F))
    np.testing.assert_array_equal(run(dense("d", "in", w, b), x, level), wanted)
    mask = rng.random(w.shape) < 0.5
    indptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    sparse = Sparse(name="s", inputs=(Ref("in"),), weight=w[mask], indices=np.nonzero(mask)[1], indptr=indptr, fan_in=7, bias=b)
    flat = x[:, :, 0]
    np.testing.assert_array_equal(run(sparse, flat, level), torched(nn.linear, flat.astype(F), (w * mask).astype(F), b.astype(F)))


def test_large_integers_do_not_pass_through_floats() -> None:
    w = np.array([[(1 << 40) + 1, -(1 << 40)]])
    x = np.array([[[(1 << 18) + 1, 1 << 18]]])
    expected = ((1 << 40) + 1) * ((1 << 18) + 1) - (1 << 58)
    node = dense("d", "in", w, dtype="i64")
    assert run(node, x, "fixed").item() == expected
    conv = Conv(name="d", inputs=(Ref("in"),), weight=w.reshape(1, 1, 2), dtype="i64")
    assert run(conv, x.reshape(1, 1, 1, 2), "fixed").item() == expected


def test_small_operations() -> None:
    x = np.arange(24, dtype=F).reshape(1, 2, 3, 4)
    assert run(Reshape(name="r", inputs=(Ref("in"),), shape=(2, 6)), x)[0, 1].tolist() == x[0, 1].reshape(2, 6).tolist()
    assert run(Gather(name="r", inputs=(Ref("in"),), indices=np.array([[11, 0], [5, 5]])), x)[0, 0].tolist() == [[11, 0], [5, 5]]
    np.testing.assert_array_equal(run(Add(name="r", inputs=(Ref("in"), Ref("in"))), x), 2 * x)
    np.testing.assert_array_equal(run(Concat(name="r", inputs=(Ref("in"), Ref("in")), axis=1), x), np.concatenate([x, x], axis=3))
    channel = np.array([1, 2, 4], F)
    scale = Scale(name="r", inputs=(Ref("in"),), factor=channel, offset=F(0.5))
    np.testing.assert_array_equal(run(scale, x), x * channel[:, None] + 0.5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_delays_against_a_sum_written_out(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    steps, ref_delay = 9, data.draw(st.integers(0, 3))
    w, d = rng.integers(-9, 9, (2, 3)), rng.integers(0, 4, (2, 3))
    x = rng.integers(0, 2, (2, steps, 3))
    init = rng.integers(0, 2, (ref_delay, 3)) if ref_delay and data.draw(st.booleans()) else None
    node = Dense(name="d", inputs=(Ref("in", delay=ref_delay, init=init),), weight=w, delay=d)
    got = interpret(verify(graph(spikes((3,), dtype="i8"), node, level="fixed")), {"in": x}).outputs["d"]

    def wire(b: int, t: int, i: int) -> int:
        """x[t - ref_delay], as the reference alone reads it at step t."""
        if t < 0:
            return 0
        if t < ref_delay:
            return 0 if init is None else int(init[t, i])
        return int(x[b, t - ref_delay, i])

    for b in range(2):
        for t in range(steps):
            assert got[b, t].tolist() == [sum(int(w[o, i]) * wire(b, t - d[o, i], i) for i in range(3)) for o in range(2)]


def test_conv_delays() -> None:
    rng = np.random.default_rng(0)
    w, d = rng.integers(-9, 9, (2, 2, 3)), rng.integers(0, 3, (2, 2, 3))
    x = rng.integers(0, 2, (1, 6, 2, 8))
    node = Conv(name="c", inputs=(Ref("in"),), weight=w, delay=d, padding=(1,))
    got = run(node, x, "fixed")
    total = np.zeros_like(got)
    for delay in range(3):
        later = np.zeros_like(x)
        later[:, delay:] = x[:, : 6 - delay]
        total += torched(nn.conv1d, later.astype(F), np.where(d == delay, w, 0).astype(F), None, padding=1).astype(np.int64)
    np.testing.assert_array_equal(got, total)


def test_start_lag_and_the_step_counter() -> None:
    clock = parse_program("neuron @clock(a) state(n: i32 = 5) { n = n + a s = rem(t, 3) == 1 emit s, n }")
    node = Neuron(name="n", inputs=(Ref("in"),), program=clock, start=2)
    ones = np.ones((1, 7, 1), np.int64)
    g = graph(spikes((1,), dtype="i8"), node, out=["n", ("k", Ref("n", "n"))], level="fixed")
    got = interpret(g, {"in": ones})
    assert got.outputs["n"].ravel().tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert got.outputs["k"].ravel().tolist() == [0, 0, 6, 7, 8, 9, 10] and got.states["n"]["n"].item() == 10
    late = Neuron(name="n", inputs=(Ref("in", delay=2),), program=clock, lag=2)
    g = graph(spikes((1,), dtype="i8"), late, out=["n", ("k", Ref("n", "n"))], level="fixed")
    got = interpret(g, {"in": ones}, record=["n", "n.n"])
    # Step k of the result is hardware step k + 2.
    assert got.outputs["n"].ravel().tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert got.outputs["k"].ravel().tolist() == [6, 7, 8, 9, 10, 11, 12] == got.records["n.n"].ravel().tolist()
    assert got.states["n"]["n"].item() == 12
    assert default_record(g) == ("n", "n.n")
    on = graph(spikes((1,)), Constant(name="c", value=np.array([2], F), start=3), out=["c"])
    assert interpret(on, {"in": ones.astype(F)}).outputs["c"].ravel().tolist() == [0, 0, 0, 2, 2, 2, 2]


def test_no_steps_and_no_samples() -> None:
    g = graph(
        spikes((2,)), dense("d", "in", np.ones((3, 2), F)), leaky("l", "d", init={"v": F(0.5)}), out=["l", ("v", Ref("l", "v"))]
    )
    for shape in ((2, 0, 2), (0, 4, 2), (0, 0, 2)):
        got = interpret(g, {"in": np.zeros(shape, F)}, record=["l"])
        assert got.outputs["l"].shape == (*shape[:2], 3) and got.records["l"].dtype == F
        assert got.states["l"]["v"].shape == (shape[0], 3) and np.all(got.states["l"]["v"] == 0.5)
    with pytest.raises(CompileError, match="SPK006"):
        interpret(graph(Constant(name="c", value=np.ones(1, F))), {})
    assert interpret(graph(Constant(name="c", value=np.ones(1, F))), {}, steps=3).outputs["c"].shape == (1, 3, 1)
    with pytest.raises(CompileError, match="SPK010"):
        interpret(g, {"in": np.zeros((1, 1, 2), F)}, record=["x"])


def test_delays_of_a_layer_without_connections() -> None:
    node = Dense(name="d", inputs=(Ref("in"),), weight=np.zeros((3, 0), F), delay=np.zeros((3, 0), np.int32), bias=np.ones(3, F))
    assert interpret(graph(spikes((0,)), node), {"in": np.zeros((2, 4, 0), F)}).outputs["d"].tolist() == np.ones((2, 4, 3)).tolist()


# --------------------------------------------------------------------------------------------------------- precision


def test_literals_and_scalar_parameters_are_weak_as_in_torch() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 20, 4)).astype(F)
    beta = F(0.9)
    program = parse_program("neuron @p(x) params(beta) state(v = 0) { v = beta * v + x * 0.1 emit v }")
    node = Neuron(name="n", inputs=(Ref("in"),), program=program, params={"beta": beta})
    got = interpret(graph(values((4,)), node), {"in": x}).outputs["n"]
    v, wanted = torch.zeros(3, 4), []
    for t in range(20):
        v = float(beta) * v + torch.from_numpy(x[:, t]) * 0.1
        wanted.append(v.numpy())
    assert got.dtype == F
    np.testing.assert_array_equal(got, np.stack(wanted, axis=1))


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_reset_by_the_clock_does_not_change_the_precision(where: str) -> None:
    reset = "v = select(rem(t, 3) == 2, 0, v)"
    leak = "v = 0.9 * v + a"
    first, second = (reset, leak) if where == "first" else (leak, reset)
    program = parse_program(f"neuron @p(a) state(v = 0) {{ {first} {second} emit v }}")
    x = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(F)
    got = interpret(graph(values((3,)), Neuron(name="n", inputs=(Ref("in"),), program=program)), {"in": x})
    v = torch.zeros(2, 3)
    for t in range(12):
        due = t % 3 == 2
        v = torch.zeros(2, 3) if due and where == "first" else v
        v = 0.9 * v + torch.from_numpy(x[:, t])
        v = torch.zeros(2, 3) if due and where == "last" else v
        np.testing.assert_array_equal(got.outputs["n"][:, t], v.numpy())
    assert got.states["n"]["v"].dtype == F


def test_double_precision_stays() -> None:
    program = parse_program("neuron @p(a) state(v = 0) { v = 0.9 * v + a emit v }")
    x = np.random.default_rng(0).normal(size=(1, 9, 2))
    got = interpret(graph(values((2,), dtype="f64"), Neuron(name="n", inputs=(Ref("in"),), program=program)), {"in": x}).outputs[
        "n"
    ]
    v = np.zeros(2)
    for t in range(9):
        v = 0.9 * v + x[0, t]
    assert got.dtype == np.float64 and got[0, -1].tolist() == v.tolist()


def test_dividing_by_a_scalar_zero_is_infinite_as_elsewhere() -> None:
    program = parse_program("neuron @p(a) params(z) { x = a + 1 / z emit x }")
    with np.errstate(divide="ignore"):
        got = interpret(
            graph(values((1,)), Neuron(name="n", inputs=(Ref("in"),), program=program, params={"z": F(0)})),
            {"in": np.ones((1, 1, 1), F)},
        )
    assert np.isinf(got.outputs["n"]).all()


# ---------------------------------------------------------------------------------------------------------- integers

I64 = st.one_of(st.integers(-300, 300), st.integers(-(1 << 63), (1 << 63) - 1), st.sampled_from([-(1 << 63), (1 << 63) - 1, 0, -1]))


def big(op: str, x: int, bits: int) -> int:
    """The definitions in Python's unbounded integers."""
    if op == "rtz":
        return (1 if x > 0 else -1) * (abs(x) >> bits)
    if op == "wrap":
        return (x + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
    return max(-(1 << (bits - 1)) + 1, min((1 << (bits - 1)) - 1, x))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["rtz", "wrap", "clip"]), st.lists(I64, min_size=1, max_size=8), st.integers(0, 63))
def test_narrowing_against_big_integers(op: str, numbers: list[int], bits: int) -> None:
    bits = bits if op == "rtz" else max(bits, 2)
    program = parse_program(f"neuron @p(a) {{ x = {op}(a, {bits}) y = {op}({numbers[0]}, {bits}) emit x, y }}")
    node = Neuron(name="n", inputs=(Ref("in"),), program=program, dtype="i64")
    source = Input(name="in", type=TensorType("value", (len(numbers),), "i64"))
    g = graph(source, node, level="fixed")
    now = Interpreter(verify(g), 1).step({"in": np.array([numbers], np.int64)})
    assert now["n", ""][0].tolist() == [big(op, x, bits) for x in numbers]
    assert now["n", "y"][0, 0] == big(op, numbers[0], bits)


OPERATIONS = {
    "a + b": lambda a, b: a + b, "a - b": lambda a, b: a - b, "a * b": lambda a, b: a * b, "-a": lambda a, b: -a, "abs(a)": lambda a, b: abs(a),
    "min(a, b)": lambda a, b: min(a, b), "max(a, b)": lambda a, b: max(a, b), "a << 3": lambda a, b: a << 3, "a >> 3": lambda a, b: a >> 3,
    "rem(a, 7)": lambda a, b: a % 7, "rem(a, -7)": lambda a, b: a % -7, "(a > b) + (a <= b) * 2": lambda a, b: (a > b) + 2 * (a <= b),
    "select(a == b or not a < 3, a, b)": lambda a, b: a if a == b or not a < 3 else b, "select(a != b and a >= 0, a > 1, b > 1) + rem(t, 9)": lambda a, b: int(a > 1 if a != b and a >= 0 else b > 1) + 2,
}  # fmt: skip


@pytest.mark.parametrize("text", OPERATIONS)
def test_integer_operations_against_python(text: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-20, 20, (2, 50))
    program = parse_program(f"neuron @p(a, b) {{ x = {text} emit x: value }}")
    node = Neuron(name="n", inputs=(Ref("a"), Ref("b")), program=program)
    sources = [Input(name=n, type=TensorType("value", (50,), "i32"), bounds=(-20, 20)) for n in "ab"]
    x = {"a": np.tile(a, (1, 3, 1)), "b": np.tile(b, (1, 3, 1))}
    got = interpret(verify(graph(*sources, node, level="fixed")), x).outputs["n"]
    assert got[0, 2].tolist() == [OPERATIONS[text](int(p), int(q)) for p, q in zip(a, b, strict=True)]


def test_the_golden_vector_of_the_hardware_card() -> None:
    """loihi2.md 1.1: du=1000, dv=77, vth=150, bias_mant=-9, bias_exp=-2, input straight into a_in."""
    a = [0, 300, -7, 5, 0, 0, -1000, 40000, 131072, 0, 0, 3]
    u = [0, 19200, 14059, 10943, 8268, 6247, -59280, 2515208, -6488079, -4902491, -3704396, -2798906]
    v = [-3, 0, 0, 0, 8265, 0, -59283, 0, -6488082, -8388607, -8388607, -8388607]
    s = [0, 1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0]
    # The target's programs shift a bias to the left only: -9 >> 2 is -3.
    params = {"du": 1000, "dv": 77, "vth": 150, "bias_mant": -9 >> 2, "bias_exp": 0}
    source = Input(name="in", type=TensorType("value", (1,), "i32"), bounds=(-(1 << 18), 1 << 18))
    for name in ("LIF", "LIFReset"):
        program = native(name)
        more = {} if name == "LIF" else {"interval": 1 << 20, "offset": 0}
        node = Neuron(name="n", inputs=(Ref("in"),), program=program, params={k: np.asarray(x) for k, x in (params | more).items()})
        machine = Interpreter(verify(graph(source, node, level="fixed")), 1)
        got = []
        for value in a:
            now = machine.step({"in": np.array([[value]])})
            states = machine.states["n"]
            got.append((int(states["u"].item()), int(states["v"].item()), int(now["n", ""].item())))
        assert got == list(zip(u, v, s, strict=True))


def test_the_periodic_reset_of_the_hardware_card() -> None:
    """loihi2.md 1.2: steps count from 1; the step's own input still counts."""
    params = {"du": 4095, "dv": 0, "vth": 1000, "bias_mant": 0, "bias_exp": 0, "interval": 4, "offset": 6}
    node = Neuron(name="n", inputs=(Ref("in"),), program=native("LIFReset"), params={k: np.asarray(x) for k, x in params.items()})
    machine = Interpreter(verify(graph(spikes((1,), dtype="i8"), node, level="fixed")), 1)
    seen = []
    for _ in range(9):
        machine.step({"in": np.array([[1]])})
        seen.append(int(machine.states["n"]["v"].item()) // 64)
    assert seen == [1, 1, 2, 3, 4, 1, 2, 3, 4]


def test_a_choice_between_two_literals_does_not_widen_what_follows() -> None:
    """As torch.where(s, 1.0, 0.0): the default type, not NumPy's double."""
    from spikec.ir.interpret import evaluate, fixed_truth, float_truth
    from spikec.ir.neuron import Var, call

    flags = {"s": np.array([True, False]), "x": np.ones(2, np.float32)}
    chosen = evaluate(call("select", Var("s"), 0.1, 0.3) * Var("x"), flags, float_truth)
    assert chosen.dtype == np.float32
    assert evaluate(call("select", Var("s"), 1, 0), flags, fixed_truth).dtype == np.int64


def test_a_population_that_only_feeds_itself() -> None:
    """Driven by its bias, as a random balanced network is: the connections tell its size."""
    from spikec.ir.ops import Sparse

    program = parse_program("neuron @n(x) params(bias) state(v = 0) {\nv = v + x + bias\ns = v > 1\nv = select(s, 0, v)\nemit s\n}")
    nodes = (
        Sparse(
            name="rec",
            inputs=(Ref("l", delay=1),),
            weight=np.array([0.5, -0.25], np.float32),
            indices=np.array([1, 0]),
            indptr=np.array([0, 1, 2]),
            fan_in=2,
        ),
        Neuron(name="l", inputs=(Ref("rec"),), program=program, params={"bias": np.float32(0.75)}),
    )
    g = verify(Graph("g", "float", nodes, (("l", Ref("l")),)))
    assert interpret(g, {}, steps=4).outputs["l"][0].tolist() == [[0, 0], [1, 1], [1, 0], [0, 0]]


@settings(max_examples=150, deadline=None)
@given(graphs("float"), st.integers(0, 1000), st.booleans())
def test_what_is_computed_has_the_declared_type(g: Graph, seed: int, wide: bool) -> None:
    """At every step, so that a delayed read is of one type from its first step on."""
    g = widened(g, seed) if wide else verify(g)
    inputs = random_inputs(g, 2, 5, seed)
    machine = Interpreter(g, 2)
    declared = {(node, port): DTYPES[type_.dtype] for node, ports in g.types.items() for port, type_ in ports}
    for t in range(5):
        now = machine.step({name: data[:, t] for name, data in inputs.items()})
        assert {wire: value.dtype for wire, value in now.items()} == declared


@pytest.mark.parametrize("bias", [np.float32, np.float64, np.int8, np.int32])
def test_a_bias_and_an_offset_promote(bias: Any) -> None:
    layers = [
        dense("d", "in", np.eye(3, dtype=F), np.ones(3, bias)),
        Scale(name="d", inputs=(Ref("in"),), factor=np.ones(3, F), offset=np.ones(3, bias)),
        Scale(name="d", inputs=(Ref("in"),), factor=np.ones(1, np.float64), offset=np.ones((), np.float64)),
    ]
    for layer in layers:
        g = verify(graph(values((3,)), layer))
        got = interpret(g, {"in": np.ones((1, 2, 3), F)}).outputs["d"]
        assert got.dtype == DTYPES[g.type_of(Ref("d")).dtype]
