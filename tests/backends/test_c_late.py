"""Layers with delays in C: rows of weights that arrive later give the same bits as the reference, and are taken where they are quick."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many import batch_program, require_compiler

from spikec.backends.c.forms import Choices
from spikec.backends.c.generate import generate
from spikec.backends.c.late import arrivals
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Ref, Reshape, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType

STRICT = ["-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
LIF = parse_program(
    "neuron @lif(a) params(th) state(v: i32 = 0) {\nv = clip(rtz(v * 3500, 12) + a, 20)\ns = v > th\nv = select(s, 0, v)\nemit s\n}"
)
FIRE = parse_program(
    "neuron @if(a) params(th) state(v: i16 = 0) {\nv = clip(v + a, 15)\ns = v >= th\nv = select(s, 0, v)\nemit s\n}"
)


def delays(kind: str, out: int, fan_in: int, most: int, seed: int = 1) -> Array:
    """(out, fan_in): each connection its own, each source its own, two a source, or all the same."""
    rng = np.random.default_rng(seed)
    axonal = rng.integers(0, most + 1, (1, fan_in))
    own = {
        "each": rng.integers(0, most + 1, (out, fan_in)),
        "axonal": np.broadcast_to(axonal, (out, fan_in)),
        "two": np.where(np.arange(out)[:, None] % 2 == 0, axonal, most - axonal),
        "same": np.full((out, fan_in), most),
        "none": np.zeros((out, fan_in)),
    }[kind]
    return own.astype(np.int32)


def dense(
    kind: str, out: int = 40, fan_in: int = 33, most: int = 5, source: Ref | str = "x", name: str = "fc", bias: bool = False
) -> Dense:
    rng = np.random.default_rng(out + fan_in)
    ref = source if isinstance(source, Ref) else Ref(source)
    more = {"bias": rng.integers(-90, 91, out).astype(np.int32)} if bias else {}
    weight = rng.integers(-40, 60, (out, fan_in)).astype(np.int16)
    return Dense(name=name, inputs=(ref,), weight=weight, delay=delays(kind, out, fan_in, most), **more)


def sparse(kind: str, density: float, out: int = 40, fan_in: int = 33, most: int = 5) -> Sparse:
    whole = dense(kind, out, fan_in, most)
    kept = np.random.default_rng(3).random(whole.weight.shape) < density
    rows, columns = np.nonzero(kept)
    assert whole.delay is not None
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    return Sparse(
        name="fc", inputs=whole.inputs, weight=whole.weight[rows, columns], indices=columns.astype(np.int32), indptr=indptr, fan_in=fan_in,
        delay=whole.delay[rows, columns],
    )  # fmt: skip


def neuron(source: str, name: str = "l", fire: bool = False, threshold: int = 90, **more: int) -> Neuron:
    program = FIRE if fire else LIF
    return Neuron(name=name, inputs=(Ref(source),), program=program, params={"th": np.array(threshold, np.int32)}, **more)


def net(*layers: Node, fan_in: int = 33) -> Graph:
    nodes: list[Node] = [Input(name="x", type=TensorType("spike", (fan_in,), "i8")), *layers]
    if not isinstance(layers[-1], Neuron):
        nodes.append(neuron(layers[-1].name))
    return verify(Graph("net", "fixed", tuple(nodes), ((nodes[-1].name, Ref(nodes[-1].name)),)))


def plain(out: int = 40, fan_in: int = 33, name: str = "more", source: Ref | str = "x") -> Dense:
    return replace(dense("none", out, fan_in, source=source, name=name), delay=None)


def graphs() -> list[Graph]:
    """Layers with delays alone, with biases, in a sum with others, in loops, in windows, behind a map and on steps before the first."""
    add = Add(name="sum", inputs=(Ref("more"), Ref("fc")))
    found = [net(dense(kind, most=most)) for kind in ("each", "axonal", "two", "same", "none") for most in (1, 6)]
    found += [net(dense(kind, bias=True), neuron("fc", fire=True)) for kind in ("each", "axonal")]
    found += [net(dense(kind, out=64), neuron("fc", fire=True)) for kind in ("each", "axonal")]
    found += [net(sparse(kind, density)) for kind in ("each", "axonal", "two") for density in (0.05, 0.5)]
    found += [net(dense(kind), plain(), add) for kind in ("each", "axonal")]
    found += [net(dense("each"), dense("axonal", most=3, name="more"), add)]
    found += [net(dense(kind), plain(), add, neuron("sum", start=3, stop=6)) for kind in ("each", "axonal")]
    loop = [dense(kind, 40, 40, source=Ref("l", delay=2), name="more") for kind in ("each", "axonal")]
    found += [net(plain(name="fc"), back, add, neuron("sum")) for back in loop]
    # Delays of an operand that is read late itself; the weights take more than a byte.
    found += [net(dense(kind, source=Ref("x", delay=1))) for kind in ("each", "axonal")]
    found += [net(replace(layer, weight=layer.weight * 77)) for layer in (dense("each"), dense("axonal"))]
    weight = np.random.default_rng(5).integers(-9, 30, (4, 3, 2)).astype(np.int16)
    map_ = (Conv(name="c", inputs=(Ref("y"),), weight=weight), neuron("c", "m", threshold=20))
    source = Input(name="y", type=TensorType("spike", (3, 9), "i8"))
    for layer in (sparse("axonal", 0.4, fan_in=32), sparse("each", 0.9, fan_in=32)):
        # From a map, whose order is another.
        nodes = (
            source,
            *map_,
            Reshape(name="r", inputs=(Ref("m"),), shape=(32,)),
            replace(layer, inputs=(Ref("r"),)),
            neuron("fc"),
        )
        found.append(verify(Graph("net", "fixed", nodes, (("l", Ref("l")),))))
    return found


@pytest.mark.parametrize(
    "flags", ["-O1 -march=native", "-O1 -mavx2 -mpopcnt -fsanitize=address,undefined", "-O2", "-O1 -DSPK_NO_SIMD"]
)
def test_every_instruction_set_gives_the_same_bits(flags: str, tmp_path: Path) -> None:
    require_compiler()
    made = graphs()
    program = batch_program(made, 2, 11, [Choices(vector=(64, 16, 32)[n % 3]) for n in range(len(made))])
    program.write(tmp_path)
    subprocess.run(["cc", *STRICT, *flags.split(), "-o", "driver", *program.compiled], cwd=tmp_path, check=True)
    printed = subprocess.run(["./driver"], cwd=tmp_path, check=True, capture_output=True).stdout
    assert program.differences(printed) == []
    assert all(want.any() for name, want in program.expected if name.endswith(": l"))


@given(
    st.sampled_from(["each", "axonal", "two", "same"]),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(0, 9),
    st.integers(0, 1 << 30),
)
@settings(max_examples=150, deadline=None)
def test_rows_hold_every_connection(kind: str, sources: int, targets: int, most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-20, 21, (targets * 16, sources)).astype(np.int16)
    delay = delays(kind, len(weight), sources, most, seed)
    order = rng.permutation(sources)
    part = Dense(name="fc", inputs=(Ref("x"),), weight=weight, delay=delay)
    found = arrivals(part, order, 64)
    if found is None:
        return
    have = np.zeros((most + 1, sources, len(weight)), np.int64)
    for row, values in enumerate(found.matrix):
        if found.whole:
            step, place = found.delay[row // sources], row % sources
        else:
            step, place = found.delay[row], np.searchsorted(found.start, row, side="right") - 1
        have[step, place] += values
    for step in range(most + 1):
        np.testing.assert_array_equal(have[step], (weight * (delay == step)).T[order])


@pytest.mark.parametrize(
    ("kind", "most", "vector", "taken"),
    [
        ("axonal", 7, 32, "noted"), ("axonal", 31, 32, "noted"), ("each", 7, 32, "whole"), ("each", 7, 16, "whole"),
        ("each", 31, 32, "one by one"), ("each", 7, 0, "one by one"), ("none", 0, 32, "one by one"),
    ],
)  # fmt: skip
def test_rows_are_taken_where_they_are_quick(kind: str, most: int, vector: int, taken: str) -> None:
    graph = net(dense(kind, 256, 256, most), fan_in=256)
    text = generate(graph, choices=Choices(vector=vector)).source
    assert ("#define SPK_WHOLE 1" in text) == (taken == "whole")
    assert ("#define SPK_WHOLE 0" in text) == (taken == "noted")
    assert ("#define SPK_DELAY uint8_t" in text) == (taken == "one by one" and most > 0)
    assert "spk_late.h" not in generate(graph, choices=Choices(vector=vector, small=True)).source
