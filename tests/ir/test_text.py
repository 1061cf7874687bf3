"""The text form: exact round trip, and every error with its place."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, sir, spikes, values
from strategies import graphs

from spikec.diagnostics import CompileError, Loc
from spikec.ir.graph import Graph, arrays_of
from spikec.ir.interpret import interpret
from spikec.ir.neuron import Call, Num, Program, Var, expr_text
from spikec.ir.ops import Constant, Conv, Dense, Input, Neuron, Pool, Ref, Reshape, Scale
from spikec.ir.rules import verify
from spikec.ir.text import (
    duration_text,
    npz_bytes,
    parse_duration,
    parse_graph,
    parse_program,
    print_graph,
    read_graph,
    side_file,
    write_graph,
)
from spikec.ir.types import DTYPES, TensorType


def same(a: Graph, b: Graph) -> None:
    """Equal in every field, dtype and byte: more than equality of text."""
    assert (a.name, a.level, a.dt, [n for n, _ in a.outputs]) == (b.name, b.level, b.dt, [n for n, _ in b.outputs])
    assert [r for _, r in a.outputs] == [r for _, r in b.outputs]
    for one, two in zip(a.nodes, b.nodes, strict=True):
        assert type(one) is type(two)
        for key, value in vars(one).items():
            if not isinstance(value, np.ndarray) and key not in ("params", "init", "_types"):
                assert getattr(two, key) == value, key
        first, second = dict(arrays_of(one)), dict(arrays_of(two))
        assert first.keys() == second.keys()
        for key, array in first.items():
            assert array.dtype == second[key].dtype and array.shape == second[key].shape, key
            assert array.tobytes() == second[key].tobytes(), key
    assert a.types == b.types and a == b


def round_trip(g: Graph, full: bool = False) -> str:
    text, arrays = print_graph(verify(g), full=full)
    if full:
        assert all(array.size == 0 for array in arrays.values())
    back = parse_graph(text, arrays)
    same(g, verify(back))
    assert print_graph(back, full=full)[0] == text
    return text


@settings(max_examples=60, deadline=None)
@given(graphs("float"))
def test_round_trip_of_random_float_graphs(g: Graph) -> None:
    round_trip(g)
    round_trip(g, full=True)


@settings(max_examples=60, deadline=None)
@given(graphs("fixed"))
def test_round_trip_of_random_fixed_graphs(g: Graph) -> None:
    round_trip(g)
    round_trip(g, full=True)


def test_text_of_a_small_graph() -> None:
    g = Graph(
        "net",
        "float",
        (
            spikes((2,)),
            dense("fc1", "in", np.array([[1.0, -0.5], [0.1, 2.0]], F), np.zeros(2, F), loc=Loc("model.py", 31, "net.fc1")),
            leaky("l1", "fc1", beta=[0.9, 0.8]),
        ),
        (("l1", Ref("l1")), ("mem", Ref("l1", "v"))),
        1e-3,
    )
    assert round_trip(g) == (
        """sir 1

neuron @leaky(x) params(beta, theta) state(v = 0) {
  v = beta * v + x
  s = v > theta
  v = select(s, 0, v)
  emit s, v
}

graph @net level=float dt=1ms {
  %in = input : spike<2>
  %fc1 = dense(%in) weight=[[1.0, -0.5], [0.1, 2.0]] bias=[0.0, 0.0] : value<2>
      loc("model.py":31 net.fc1)
  %l1 = neuron @leaky(%fc1) beta=[0.9, 0.8] theta=1.0 : spike<2>, v: value<2>
  output l1 = %l1
  output mem = %l1.v
}
""".replace("output l1 = %l1", "output %l1")
    )


SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, 3.4028235e38, 0.1, 1 / 3, 16777216.0, 1e-8, 123456.79]


@pytest.mark.parametrize(("dtype", "level"), [(d, "float") for d in DTYPES] + [(d, "fixed") for d in DTYPES if d[0] != "f"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2), (0,), (0, 3), (40,)])
def test_arrays_of_every_dtype(dtype: str, level: str, shape: tuple[int, ...]) -> None:
    kind = DTYPES[dtype]
    rng = np.random.default_rng(1)
    array = (rng.normal(size=shape) * 50).astype(kind)
    node = Constant(name="c", value=array)
    g = graph(node, Reshape(name="flat", inputs=(Ref("c"),), shape=(array.size,)), level=level)
    if level == "float" and kind.kind != "f":
        # a wire of a float graph may be declared in integers
        assert g.types["c"][0][1].dtype == dtype
    round_trip(g)
    round_trip(g, full=True)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_special_numbers_are_exact(dtype: str) -> None:
    array = np.array([*SPECIAL, np.finfo(DTYPES[dtype]).max, np.finfo(DTYPES[dtype]).smallest_subnormal], DTYPES[dtype])
    round_trip(graph(Constant(name="c", value=array)), full=True)
    node = leaky("n", "in", theta=[np.inf, 1, 2])
    round_trip(graph(values((3,)), node, out=["n"]))
    assert "theta=[inf, 1.0, 2.0]" in print_graph(graph(values((3,)), node, out=["n"]))[0]
    negative = Neuron(name="n", inputs=(Ref("in"),), program=node.program, params={"beta": F(1), "theta": F(-np.inf)})
    assert "theta=-inf" in round_trip(graph(values((3,)), negative, out=["n"]))


@settings(max_examples=300, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_digits_are_the_shortest(x: float) -> None:
    text = round_trip(graph(Constant(name="c", value=F(x))))
    digits = text.split("value=")[1].split()[0]
    assert float(digits) == float(str(F(x))) and len(digits) <= len(str(F(x))) + 2


def test_infinity_and_nan_are_read_before_they_are_judged() -> None:
    body = "%c = constant() value=[nan, inf, -inf] : value<3>\noutput %c"
    g = sir(body)
    assert np.isnan(g["c"].value[0]) and list(g["c"].value[1:]) == [np.inf, -np.inf]
    with pytest.raises(CompileError) as caught:
        verify(g)
    assert str(caught.value) == "error[SPK305]: %c: value holds nan at [0] (3 of 3)"


def test_dtype_prefixes() -> None:
    g = graph(spikes((2,)), dense("d", "in", np.array([[1, 2]], np.float64), np.array([0.5], F)))
    assert "weight=f64[[1.0, 2.0]] bias=[0.5] : value<1, f64>" in round_trip(g)
    g = graph(spikes((2,), dtype="i8"), dense("d", "in", np.array([[1, 2]], np.int8), np.array([5], np.int32)), level="fixed")
    assert "weight=i8[[1, 2]] bias=[5] : value<1>" in round_trip(g)
    g = graph(values((2,)), Scale(name="s", inputs=(Ref("in"),), factor=np.float64(2)))
    assert "factor=f64(2.0)" in round_trip(g)


def test_scalar_shape_is_not_the_shape_of_one() -> None:
    g = graph(spikes(()), Reshape(name="r", inputs=(Ref("in"),), shape=(1,)), Reshape(name="q", inputs=(Ref("r"),), shape=()))
    text = round_trip(g)
    assert "%in = input : spike<()>" in text and "%r = reshape(%in) shape=(1,) : spike<1>" in text


def test_equal_arrays_are_stored_once() -> None:
    w = np.arange(20, dtype=F).reshape(4, 5)
    g = graph(
        spikes((5,)), dense("a", "in", w), dense("b", "in", w.copy()), dense("c", "in", w.astype(np.float64)), out=["a", "b", "c"]
    )
    text, arrays = print_graph(g)
    assert sorted(arrays) == ["a.weight", "c.weight"]
    assert text.count("weight=@a.weight") == 2
    round_trip(g)


@pytest.mark.parametrize(
    "loc",
    [
        Loc("model.py"),
        Loc("a b.py", 3),
        Loc('quo"te\\\n\t.py', 1, "net.0.fc"),
        Loc("é/ø.py", 2, "net['fc 1'] (x)"),
        Loc("x.py", 2, "<lambda>"),
        Loc("http://x//y.py", 7, "a//b"),
        Loc("", 0, "only.path"),
        Loc("x.py", 1, 'with "quotes" and ) brackets'),
    ],
)
def test_places_with_odd_characters(loc: Loc) -> None:
    round_trip(graph(Input(name="in", type=TensorType("spike", (1,), "f32"), loc=loc)))


def test_names_that_begin_with_digits_and_outputs_of_other_names() -> None:
    g = graph(spikes((1,), "0"), leaky("1", "0"), out=[("1", Ref("0")), ("net.2", Ref("1", "v")), ("3", Ref("1"))])
    text = round_trip(g)
    assert "output 1 = %0\n  output net.2 = %1.v\n  output 3 = %1\n" in text


def test_every_attribute_survives() -> None:
    init = np.array([[1.0, 0.0], [0.0, 1.0]], F)
    conv = Conv(
        name="conv", inputs=(Ref("in"),), weight=np.ones((4, 1, 3), F), stride=(2,), padding=(1,), dilation=(2,), groups=2, lag=3
    )
    pool = Pool(name="pool", inputs=(Ref("conv"),), mode="max", kernel=(2,), stride=(1,), padding=(1,))
    g = graph(
        spikes((2, 9)),
        conv,
        pool,
        spikes((2,), "two"),
        Input(name="b", type=TensorType("graded", (2,), "f64"), bounds=(-3, 9)),
        Dense(name="d", inputs=(Ref("two", delay=2, init=init),), weight=np.ones((1, 2), F), delay=np.array([[0, 3]])),
        Constant(name="on", value=np.ones(1, F), kind="spike", start=4),
        leaky("l", "d", start=2, init={"v": F(0.5)}, dtype="f64"),
        out=["pool", "l", "b", "on"],
    )
    text = round_trip(g)
    assert "%d = dense(%two[t-2, init=[[1.0, 0.0], [0.0, 1.0]]]) weight=[[1.0, 1.0]]" in text
    assert "bounds=(-3, 9)" in text and "kind=spike start=4" in text and "init.v=0.5" in text


def test_comments_and_layout_do_not_matter() -> None:
    a = sir("%in = input : spike<1>\noutput %in")
    b = parse_graph("// first\n\n sir 1 // version\r\ngraph @g level=float { // begins\n%in=input:spike<1> output%in}// end")
    same(a, b)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1e-3, "1ms"), (1e-4, "0.1ms"), (1.5e-6, "1.5us"), (10, "10s"), (3e-9, "3ns"), (1 / 3, "0.3333333333333333s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
    assert parse_duration(text) == seconds
    assert duration_text(np.float64(seconds)) == text


@given(st.floats(min_value=1e-12, max_value=1e6))
def test_durations_are_exact(seconds: float) -> None:
    assert parse_duration(duration_text(seconds)) == seconds


# ----------------------------------------------------------------------------------------------------------- programs

NAMES = st.sampled_from(["a", "b", "c"])


def _expressions() -> st.SearchStrategy:
    numbers = st.one_of(st.integers(-5, 5), st.floats(allow_nan=False), st.just(-0.0))
    leaves = st.one_of(numbers.map(Num), NAMES.map(Var))
    infix = st.sampled_from(["+", "-", "*", "/", "<<", ">>", "min"])

    def grow(inner: st.SearchStrategy) -> st.SearchStrategy:
        compare = st.builds(lambda op, a, b: Call(op, (a, b)), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), inner, inner)
        logic = st.one_of(
            compare,
            st.builds(lambda a: Call("not", (a,)), compare),
            st.builds(lambda op, a, b: Call(op, (a, b)), st.sampled_from(["and", "or"]), compare, compare),
        )
        return st.one_of(
            st.builds(lambda op, a, b: Call(op, (a, b)), infix, inner, inner),
            st.builds(lambda a: Call("neg", (a,)), inner),
            logic,
            st.builds(lambda c, a, b: Call("select", (c, a, b)), logic, inner, inner),
            st.builds(lambda a: Call("clip", (a, Num(8))), inner),
        )

    return st.recursive(leaves, grow, max_leaves=12)


@settings(max_examples=200, deadline=None)
@given(_expressions())
def test_expressions_keep_their_shape(expr: object) -> None:
    text = f"neuron @p(a, b, c) {{\n  x = {expr_text(expr)}\n  emit a\n}}"
    program = parse_program(text)
    assert repr(program.body[0].expr) == repr(expr)
    # Long lines are broken, which means nothing to the parser.
    assert program.text().split() == text.split()
    assert repr(parse_program(program.text())) == repr(program)


def test_the_sign_of_a_literal() -> None:
    body = parse_program("neuron @p(a) { x = -2 y = -(2) z = --a w = a - -2 emit x }").body
    assert [s.expr for s in body] == [
        Num(-2),
        Call("neg", (Num(2),)),
        Call("neg", (Call("neg", (Var("a"),)),)),
        Call("-", (Var("a"), Num(-2))),
    ]


# ------------------------------------------------------------------------------------------------------------- errors

HEAD = "sir 1\n"
ERRORS = {
    "syntax": (
        HEAD + "graph @g level=float {\n  %in = input :: spike<1>\n  output %in\n}",
        "net.sir:3: error[SPK301]: unexpected ':' at line 3, column 16\n      %in = input :: spike<1>\n                   ^",
    ),
    "character": (
        HEAD + "graph @g level=float {\n  %in = input ? spike<1>\n}",
        "net.sir:3: error[SPK301]: unexpected character at line 3, column 15\n      %in = input ? spike<1>\n                  ^",
    ),
    "end": (HEAD + "graph @g level=float {", "net.sir:2: error[SPK301]: the text ends too early at line 2, column 23\n    graph @g level=float {\n                          ^"),
    "not ours": ("hello", "net.sir:1: error[SPK301]: this is not IR text: it must begin with 'sir' and a version"),
    "empty": ("", "net.sir:1: error[SPK301]: this is not IR text: it must begin with 'sir' and a version"),
    "newer": (
        "// made later\nsir 2\nwhatever",
        "net.sir:1: error[SPK303]: the text is of version sir 2; this spikec reads up to sir 1\n  fix: use the spikec that wrote it, or a newer one",
    ),
    "level": (HEAD + "graph @g\n  level=high { output %x }", "net.sir:3: error[SPK301]: bad graph attribute 'level'"),
    "unknown op": (HEAD + "graph @g level=float {\n %x = blur() : spike<1>\n output %x }", "net.sir:3: error[SPK302]: unknown operation 'blur'"),
    "unknown attribute": (HEAD + "graph @g level=float {\n %x = input color=3 : spike<1>\n output %x }", "net.sir:3: error[SPK302]: 'input' has no attribute 'color'"),
    "attribute twice": (
        HEAD + "graph @g level=float {\n %x = constant() value=1.0\n  value=2.0 : value<()>\n output %x }",
        "net.sir:4: error[SPK302]: the attribute 'value' is given twice",
    ),
    "attribute missing": (HEAD + "graph @g level=float {\n %x = constant() : value<1>\n output %x }", "net.sir:3: error[SPK302]: 'constant' needs the attribute 'value'"),
    "wrong form": (HEAD + "graph @g level=float {\n %x = input lag=2.5 : spike<1>\n output %x }", "net.sir:3: error[SPK301]: a whole number is needed"),
    "wrong form 2": (HEAD + "graph @g level=float {\n %x = input bounds=@b : spike<1>\n output %x }", "net.sir:3: error[SPK301]: the value of 'bounds' has the wrong form"),
    "array undeclared": (HEAD + "graph @g level=float {\n %x = constant() value=@w : value<1>\n output %x }", "net.sir:3: error[SPK304]: the array @w is not declared"),
    "array missing": (
        HEAD + "graph @g level=float {\n array @w : 2 f32 #00\n %x = constant() value=@w : value<2>\n output %x }",
        "net.sir:3: error[SPK304]: the array @w is missing; its .npz file belongs beside the text",
    ),
    "array dtype": (
        HEAD + "graph @g level=float {\n array @there : 3 f64 #00\n %x = constant() value=@there : value<2>\n output %x }",
        "net.sir:3: error[SPK304]: the array @there is float32 (2,), not f64 (3,)",
    ),
    "array damaged": (
        HEAD + "graph @g level=float {\n array @there : 2 f32 #0123456789abcdef\n %x = constant() value=@there : value<2>\n output %x }",
        "net.sir:3: error[SPK304]: the array @there is damaged: its contents do not match #0123456789abcdef",
    ),
    "number too large": (
        HEAD + "graph @g level=fixed {\n %x = constant() value=i8[300] : value<1>\n output %x }",
        "net.sir:3: error[SPK301]: the array does not fit i8: Python integer 300 out of bounds for int8",
    ),
    "number not whole": (
        HEAD + "graph @g level=fixed {\n %x = constant() value=[1, 2.5] : value<2>\n output %x }",
        "net.sir:3: error[SPK301]: the array does not fit i32: it holds numbers that are not whole",
    ),
    "dtype": (HEAD + "graph @g level=fixed {\n %x = constant() value=q7[1] : value<1>\n output %x }", "net.sir:3: error[SPK301]: 'q7' is not a type of number"),
    "type dtype": (HEAD + "graph @g level=fixed {\n %x = input : spike<1, q7>\n output %x }", "net.sir:3: error[SPK301]: 'q7' is not a type of number"),
    "kind": (HEAD + "graph @g level=fixed {\n %x = input : wave<1>\n output %x }", "net.sir:3: error[SPK301]: 'wave' is not one of spike, graded, value"),
    "type": (
        HEAD + "graph @g level=float {\n %x = constant() value=[1.0] : value<2>\n output %x }",
        "net.sir:3: error[SPK309]: %x has the type value<1>, not what is written here",
    ),
    "shape": (
        HEAD + "graph @g level=float {\n %in = input : spike<3>\n %d = dense(%in) weight=[[1.0]] : value<1>\n output %d }",
        "net.sir:4: error[SPK309]: %d: the weight takes 1 inputs but %in has shape (3,)",
    ),
    "operands": (HEAD + "graph @g level=float {\n %x = input : spike<1>\n %d = reshape(%x, %x) shape=(1,) : spike<1>\n output %d }", "net.sir:4: error[SPK302]: %d: reshape takes 1 operand(s), not 2"),
    "place of its own": (
        HEAD + 'graph @g level=float {\n %x = input : spike<1>\n %d = reshape(%x, %x) shape=(1,) : spike<1> loc("m.py":7)\n output %d }',
        "m.py:7: error[SPK302]: %d: reshape takes 1 operand(s), not 2",
    ),
    "reads nothing": (HEAD + "graph @g level=float {\n %d = reshape(%x) shape=(1,) : spike<1>\n output %d }", "net.sir:3: error[SPK302]: %d: reads %x, which does not exist"),
    "no program": (HEAD + "graph @g level=float {\n %x = input : spike<1>\n %d = neuron @lif(%x) : spike<1>\n output %d }", "net.sir:4: error[SPK302]: there is no program @lif"),
    "program on an op": (HEAD + "graph @g level=float {\n %x = input : spike<1>\n %d = reshape @lif(%x) shape=(1,) : spike<1>\n output %d }", "net.sir:4: error[SPK302]: 'reshape' has no program"),
    "program twice": (HEAD + "neuron @p(a) { emit a }\nneuron @p(a) { emit a }\ngraph @g level=float { output %d }", "net.sir:3: error[SPK302]: the program @p is defined twice"),
    "program wrong": (HEAD + "\nneuron @p(a) {\n x = y\n emit x }\ngraph @g level=float { output %d }", "net.sir:3: error[SPK302]: neuron @p: 'y' is read before it is set"),
    "emit kind": (HEAD + "neuron @p(a) { emit a: wave }\ngraph @g level=float { output %d }", "net.sir:2: error[SPK302]: neuron @p: 'wave' is not one of spike, graded, value"),
    "parameter missing": (
        HEAD + "neuron @p(a) params(b) { emit a }\ngraph @g level=float {\n %x = input : spike<1>\n %d = neuron @p(%x) : value<1>\n output %d }",
        "net.sir:5: error[SPK302]: %d: @p: parameter b is missing",
    ),
    "nested": (HEAD + "neuron @p(a) { x = " + "(" * 4000 + "a" + ")" * 4000 + " emit x }\ngraph @g level=float { output %d }", "net.sir: error[SPK301]: an expression or array is nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_every_error_says_what_and_where(case: str) -> None:
    text, message = ERRORS[case]
    with pytest.raises(CompileError) as caught:
        parse_graph(text, {"there": np.zeros(2, F)}, file="net.sir")
    assert str(caught.value) == message


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_text_is_an_error_and_not_a_traceback(data: st.DataObject) -> None:
    text = print_graph(
        graph(spikes((3,)), dense("d", "in", np.ones((2, 3), F)), leaky("l", Ref("d", delay=1)), out=[("o", Ref("l"))])
    )[0]
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 6))
    new = data.draw(st.text('()[]{}%@=:,.#"x1-+ nif\n', max_size=4))
    try:
        parse_graph(text[:at] + new + text[at + cut :])
    except CompileError as error:
        assert error.diagnostics[0].code.startswith("SPK3")


# -------------------------------------------------------------------------------------------------------------- files


def big() -> Graph:
    return graph(spikes((5,)), dense("d", "in", np.arange(50, dtype=F).reshape(10, 5)), leaky("l", "d"), out=["l"])


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "net.sir"
    write_graph(big(), path)
    assert side_file(path).exists()
    same(read_graph(path), big())
    full = tmp_path / "full.sir"
    write_graph(big(), full, full=True)
    assert not side_file(full).exists()
    same(read_graph(full), big())


def test_npz_bytes_depend_on_the_arrays_only() -> None:
    a, b = np.arange(6).reshape(2, 3), np.zeros((), F)
    one = npz_bytes({"x": a, "y": b})
    assert one == npz_bytes({"y": b.copy(), "x": np.asfortranarray(a)})
    with np.load(io.BytesIO(one)) as data:
        assert data["x"].tolist() == a.tolist() and data["y"].shape == ()


@pytest.mark.parametrize("what", ["cut", "garbage", "npy", "empty", "bits", "text", "missing", "folder"])
def test_damaged_files_are_errors(tmp_path: Path, what: str) -> None:
    path = tmp_path / "net.sir"
    write_graph(big(), path)
    beside = side_file(path)
    data = bytearray(beside.read_bytes())
    if what == "cut":
        beside.write_bytes(data[: len(data) // 2])
    elif what == "garbage":
        beside.write_bytes(b"\x93garbage" * 20)
    elif what == "npy":
        np.save(beside.with_suffix(".npy"), np.zeros(3))
        beside.with_suffix(".npy").rename(beside)
    elif what == "empty":
        beside.write_bytes(b"")
    elif what == "text":
        path.write_bytes(b"\xff\xfe\x00")
    elif what == "missing":
        path.unlink()
    elif what == "folder":
        path.unlink()
        path.mkdir()
    if what != "bits":
        with pytest.raises(CompileError):
            read_graph(path)
        return
    refused = 0
    for at in range(0, len(data), 7):
        broken = bytearray(data)
        broken[at] ^= 0x55
        beside.write_bytes(broken)
        try:
            same(read_graph(path), big())
        except CompileError as error:
            refused += error.code == "SPK304"
    assert refused > len(data) / 14


def test_a_printed_graph_runs_the_same() -> None:
    x = {"in": np.ones((2, 6, 5), F)}
    text, arrays = print_graph(big())
    a, b = interpret(big(), x), interpret(parse_graph(text, arrays), x)
    assert np.array_equal(a.outputs["l"], b.outputs["l"]) and a.outputs["l"].any()


def test_a_program_cannot_take_the_name_of_an_attribute() -> None:
    for name in ("lag", "start", "init", "dtype"):
        with pytest.raises(CompileError, match=f"'{name}' cannot be used as a name"):
            parse_program(f"neuron @p(a) params({name}) {{ emit a }}")
    with pytest.raises(CompileError) as caught:
        Program("my neuron", ("a",), (), (), (), ())
    assert (
        str(caught.value) == "error[SPK302]: neuron @my neuron: a program's name consists of letters, digits, underscores and dots"
    )
