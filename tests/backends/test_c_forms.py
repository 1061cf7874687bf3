"""How the C keeps the weights of pruned layers: every form gives the same bits, and the one that is chosen is the best."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many import batch_program, require_compiler

import spikec
from spikec.backends.c.backend import CBackend
from spikec.backends.c.forms import BLOCKS, FORMS, Choices, Form, blocks_of, choose, forms, steps
from spikec.backends.c.generate import generate
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Dense, Input, Neuron, Node, Ref, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType
from spikec.target import Target, load_target

STRICT = ["-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]


LIF = parse_program(
    "neuron @lif(a) params(th) state(v: i32 = 0) {\nv = clip(rtz(v * 3500, 12) + a, 20)\ns = v > th\nv = select(s, 0, v)\nemit s\n}"
)
FIRE = parse_program(
    "neuron @if(a) params(th) state(v: i16 = 0) {\nv = clip(v + a, 15)\ns = v >= th\nv = select(s, 0, v)\nemit s\n}"
)


def pruned_net(weight: Array, *, sparse: bool = False, fire: bool = False, twice: bool = False, late: bool = False) -> Graph:
    """Input, one layer, a population `l`. fire: integrate and fire, whose weights go into the membrane; twice: two layers in one sum;
    late: sums of the last three steps are kept, side by side."""
    fan_in = weight.shape[1]
    rows, columns = np.nonzero(weight)
    layer: Node = Dense(name="fc", inputs=(Ref("x"),), weight=weight.astype(np.int16))
    if sparse:
        indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(weight, axis=1))]).astype(np.int32)
        values = weight[rows, columns].astype(np.int16)
        layer = Sparse(name="fc", inputs=(Ref("x"),), weight=values, indices=columns.astype(np.int32), indptr=indptr, fan_in=fan_in)
    nodes: list[Node] = [Input(name="x", type=TensorType("spike", (fan_in,), "i8")), layer]
    if twice:
        nodes.append(Dense(name="more", inputs=(Ref("x", delay=1),), weight=np.roll(weight, 1, axis=1).astype(np.int16)))
        nodes.append(Add(name="sum", inputs=(Ref("more"), Ref("fc"))))
    params = {"th": np.array(50, np.int32)}
    total = nodes[-1].name
    nodes.append(Neuron(name="l", inputs=(Ref(total),), program=FIRE if fire else LIF, params=params))
    if late:
        nodes.append(Neuron(name="later", inputs=(Ref(total, delay=2),), program=LIF, params=params))
    return verify(Graph("net", "fixed", tuple(nodes), (("l", Ref("l")),)))


@given(st.integers(1, 12), st.integers(1, 700), st.floats(0, 1), st.integers(0, 1 << 30))
@settings(max_examples=150, deadline=None)
def test_steps_hold_the_matrix(sources: int, targets: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-128, 128, (sources, targets)) * (rng.random((sources, targets)) < share)
    pairs, start = steps(matrix)
    found = np.zeros_like(matrix)
    assert not (np.diff(start) % 2).any() and start[-1] == len(pairs)
    for source in range(sources):
        place = 0
        for pair in pairs[start[source] : start[source + 1]].astype(int):
            place += pair & 255
            found[source, place] += pair >> 8
    np.testing.assert_array_equal(found, matrix)


@given(st.integers(1, 5), st.integers(1, 90), st.sampled_from(BLOCKS), st.floats(0, 1), st.integers(0, 1 << 30))
@settings(max_examples=100, deadline=None)
def test_blocks_hold_all_and_none_is_too_many(sources: int, targets: int, width: int, share: float, seed: int) -> None:
    present = np.random.default_rng(seed).random((sources, targets)) < share
    begins = blocks_of(present, width)
    for row, starts in zip(present, begins, strict=True):
        held = np.zeros(targets, bool)
        last = -width
        for start in np.flatnonzero(starts):
            assert start >= last + width and row[start]  # what it begins with no other block could hold as well
            held[start : start + width] = True
            last = start
        assert not (row & ~held).any()


def test_neurons_that_go_do_not_spoil_blocks() -> None:
    rng = np.random.default_rng(8)
    present = np.repeat(rng.random((200, 32)) < 0.1, 16, axis=1)
    fewer = np.delete(present, [3, 100, 101, 350], axis=1)
    assert blocks_of(fewer, 16).sum() <= blocks_of(present, 16).sum()


def patterns(rng: np.random.Generator, out: int, fan_in: int) -> dict[str, Array]:
    """Which places are kept: none, few, blocks, two of four."""
    block = np.repeat(rng.random((-(-out // 16), fan_in)) < 0.2, 16, axis=0)[:out]
    return {
        "nothing": np.zeros((out, fan_in), bool),
        "few": rng.random((out, fan_in)) < 0.03,
        "single": rng.random((out, fan_in)) < 0.3,
        "blocks": block,
        "half": np.resize([True, False, False, True], (fan_in, out)).T.copy(),
    }


def programs() -> tuple[list[Graph], list[Choices]]:
    """Each form with matrices of several sizes, patterns and widths of weights, as dense and sparse layers, alone and in a sum."""
    rng = np.random.default_rng(3)
    graphs, chosen, number = [], [], 0
    for form in FORMS:
        for (fan_in, out), most in (
            ((9, 7), 127),
            ((33, 40), 50),
            ((70, 150), 30),
            ((20, 530), 127),
            ((40, 64), 3000),
            ((400, 40), 127),
        ):
            for _ in range(2):
                there = list(patterns(rng, out, fan_in).values())[number % 5]
                weight = rng.integers(-most, most + 1, (out, fan_in)) * there
                graphs.append(
                    pruned_net(weight, sparse=number % 2 == 1, fire=number % 3 == 1, twice=number % 3 == 2, late=number % 4 == 3)
                )
                chosen.append(Choices(form=form))
                number += 1
            number += 1
    return graphs, chosen


@pytest.mark.parametrize(
    "flags", ["-O1 -march=native", "-O1 -mavx2 -mpopcnt -fsanitize=address,undefined", "-O2", "-O1 -DSPK_NO_SIMD"]
)
def test_every_form_gives_the_same_bits(flags: str, tmp_path: Path) -> None:
    require_compiler()
    graphs, chosen = programs()
    program = batch_program(graphs, 2, 7, chosen)
    program.write(tmp_path)
    subprocess.run(["cc", *STRICT, *flags.split(), "-o", "driver", *program.compiled], cwd=tmp_path, check=True)
    printed = subprocess.run(["./driver"], cwd=tmp_path, check=True, capture_output=True).stdout
    assert program.differences(printed) == []


@pytest.mark.parametrize("form", FORMS)
def test_the_form_asked_for_is_taken(form: str) -> None:
    rng = np.random.default_rng(4)
    text = generate(pruned_net(rng.integers(1, 9, (64, 30)) * (rng.random((64, 30)) < 0.2)), choices=Choices(form=form)).source
    header = {"rows": "spk_dense.h", "packed": "spk_packed.h", "steps": "spk_steps.h", "list": "spk_sparse.h"}.get(
        form, "spk_block.h"
    )
    assert f'#include "{header}"' in text
    if form.startswith("block"):
        assert re.search(rf"#define SPK_B {form[5:]}u", text)


def kept(pattern: str, share: float) -> Array:
    rng = np.random.default_rng(5)
    width = int(pattern[5:] or 1) if pattern.startswith("block") else 1
    return np.repeat(rng.random((300, 512 // width)) < share, width, axis=1)


@pytest.mark.parametrize(
    ("vector", "pattern", "share", "best"),
    [
        (32, "block16", 0.1, "block16"), (32, "block32", 0.1, "block32"), (16, "block32", 0.1, "block32"),
        (32, "single", 0.1, "packed"), (16, "single", 0.1, "packed"), (64, "single", 0.5, "packed"), (32, "single", 0.02, "steps"),
        (32, "single", 1.0, "rows"), (0, "single", 0.1, "steps"), (0, "single", 1.0, "rows"), (32, "block16", 0.9, "rows"),
    ],
)  # fmt: skip
def test_what_is_chosen_for_time(vector: int, pattern: str, share: float, best: str) -> None:
    assert choose(forms(kept(pattern, share), 512, vector), small=False).name == best


@pytest.mark.parametrize(
    ("pattern", "share", "best"), [("single", 0.1, "steps"), ("block16", 0.2, "block16"), ("single", 0.9, "rows")]
)
def test_what_is_chosen_for_bytes(pattern: str, share: float, best: str) -> None:
    found = forms(kept(pattern, share), 512, 32)
    chosen = choose(found, small=True)
    assert chosen.name == best
    assert chosen.bytes <= 1.1 * min(form.bytes for form in found)


@given(st.integers(0, 100), st.sampled_from([0, 16, 32, 64]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_form_is_better_than_the_one_chosen(percent: int, vector: int, small: bool) -> None:
    found = forms(kept("single", percent / 100), 512, vector)
    assert {form.name for form in found} | {"packed"} == set(FORMS) and {form.width for form in found} == {0, *BLOCKS}
    chosen = choose(found, small=small)

    def taken(form: Form) -> int:
        return form.bytes + form.memory if small else form.bytes

    assert not any(form.cycles < chosen.cycles / 1.1 and taken(form) <= taken(chosen) for form in found)
    assert not any(taken(form) < taken(chosen) / 1.1 and form.cycles <= chosen.cycles for form in found)


def test_bytes_are_those_of_the_arrays() -> None:
    rng = np.random.default_rng(6)
    weight = rng.integers(1, 9, (512, 300)) * (rng.random((512, 300)) < 0.1)
    graph = pruned_net(weight)
    sizes = {form.name: form.bytes for form in forms((weight != 0).T, 512, 32)}
    base = generate(graph, choices=Choices(form="rows")).constants - sizes["rows"]
    for form in FORMS:
        assert generate(graph, choices=Choices(form=form)).constants == base + sizes[form], form


def test_a_limit_that_only_small_forms_keep_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    graph = pruned_net(rng.integers(1, 9, (512, 300)) * (rng.random((512, 300)) < 0.1))
    host = load_target("host")
    quick = CBackend(host)
    small = CBackend(host.limited({"ram": 100_000}, "set by the test"))
    found, fewest = quick.memory(graph), small.memory(graph)
    assert found.total + found.constants > 150_000 > 50_000 > fewest.total + fewest.constants
    assert not list(small.check(graph))
    (found,) = CBackend(host.limited({"ram": 20_000}, "set by the test")).check(graph)
    assert found.code == "SPK209"
    x = {"x": (rng.random((2, 9, 300)) < 0.2).astype(np.int64)}
    np.testing.assert_array_equal(quick.run(graph, x).outputs["l"], small.run(graph, x).outputs["l"])


def test_packed_weights_are_told_and_written_out_once(tmp_path: Path) -> None:
    """A tenth of the bytes in the program, whole rows in the memory of each instance; a reset leaves them as they are."""
    require_compiler()
    rng = np.random.default_rng(11)
    graph = pruned_net(rng.integers(1, 9, (500, 300)) * (rng.random((500, 300)) < 0.1))
    backend = CBackend(load_target("host"))
    found = backend.memory(graph)
    (layer,) = (row for row in found.layers if row.layer == "fc")
    assert layer.unpacked == 512 * 300 <= layer.kept and 300 * 500 * 0.2 < found.constants < 300 * 500 * 0.24
    assert f"{layer.unpacked:,} bytes of the memory" in found.text()
    backend.emit(graph, tmp_path)
    assert f"{layer.unpacked:,} of the {found.total:,} bytes" in (tmp_path / "README.md").read_text()
    source = (tmp_path / "network.c").read_text()
    begin, end = source.index("void spk_reset("), source.index("spk_status spk_init(")
    assert "spk_unpack" not in source[begin : source.index("}", begin)] and "spk_unpack" in source[end:]
    x = {"x": (rng.random((70, 9, 300)) < 0.2).astype(np.int64)}  # samples of two calls, each with several resets
    np.testing.assert_array_equal(backend.run(graph, x, threads=1).outputs["l"], interpret(graph, x).outputs["l"])
    first, second = backend.stream(graph), backend.stream(graph)
    for step in range(9):
        for one, stream in ((0, first), (1, second)):
            stream.step({"x": x["x"][one, step]})
    wanted = interpret(graph, {"x": x["x"][:2]}).outputs["l"][:, -1]
    np.testing.assert_array_equal([first.read("l"), second.read("l")], wanted)


def test_nothing_is_packed_where_memory_is_short_or_little_is_saved() -> None:
    rng = np.random.default_rng(12)
    sparse = pruned_net(rng.integers(1, 9, (128, 200)) * (rng.random((128, 200)) < 0.1))
    full = pruned_net(rng.integers(1, 9, (128, 200)) * (rng.random((128, 200)) < 0.9))
    host = load_target("host")

    def unpacked(target: Target, graph: Graph = sparse) -> int:
        return sum(row.unpacked for row in CBackend(target).memory(graph).layers)

    assert unpacked(host) == 128 * 200 and unpacked(load_target("rpi4")) == 128 * 200
    assert unpacked(host, full) == 0
    assert unpacked(host.limited({"small": 1}, "set by the test")) == 0
    assert unpacked(host.limited({"ram": 28_000}, "set by the test")) == 0
    assert unpacked(host.limited({"flash": 20_000}, "set by the test")) == 0
    assert unpacked(load_target("cortex-m4")) == unpacked(load_target("cortex-m7")) == 0


def test_small_is_asked_for_and_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    weight = (rng.normal(0, 1, (128, 200)) * (rng.random((128, 200)) < 0.1)).astype(np.float32)
    program = parse_program("neuron @if(x) params(th) state(v = 0) {\nv = v + x\ns = v >= th\nv = select(s, 0, v)\nemit s\n}")
    nodes = (
        Input(name="x", type=TensorType("spike", (200,), "f32")),
        Dense(name="fc", inputs=(Ref("x"),), weight=weight),
        Neuron(name="l", inputs=(Ref("fc"),), program=program, params={"th": np.float32(1.5)}),
    )
    graph = verify(Graph("net", "float", nodes, (("l", Ref("l")),)))
    quick, small = (spikec.compile(graph, target="host", bits=8, small=asked) for asked in (False, True))
    assert 2 * (small.memory().total + small.memory().constants) < quick.memory().total + quick.memory().constants
    assert spikec.load(small.save(tmp_path / "b")).memory().constants == small.memory().constants
    budget = spikec.compile(graph, target="host", bits=8, prune=0.0, max_bytes=6000)
    assert budget.memory().constants < 2 * 6000
    with pytest.raises(CompileError, match="small is for targets that C is emitted for"):
        spikec.compile(graph, target="loihi2", small=True)
