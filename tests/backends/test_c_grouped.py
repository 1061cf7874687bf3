"""Convolutions in groups, depthwise ones and ones with dilation in C: the tables, the same bits everywhere, and what is taken."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many import batch_program, require_compiler

from spikec.backends.c.forms import Choices
from spikec.backends.c.generate import generate
from spikec.backends.c.grouped import Axis, Grouped
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Conv, Input, Neuron, Node, Pool, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType

STRICT = ["-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
LIF = parse_program(
    "neuron @lif(a) params(th) state(v: i32 = 0) {\nv = clip(rtz(v * 3500, 12) + a, 22)\ns = v > th\nv = select(s, 0, v)\nemit s\n}"
)
FIRE = parse_program(
    "neuron @if(a) params(th) state(v: i16 = 0) {\nv = clip(v + a, 15)\ns = v >= th\nv = select(s, 0, v)\nemit s\n}"
)


@given(
    st.integers(1, 9), st.integers(1, 6), st.integers(1, 5), st.integers(0, 5), st.integers(1, 4)
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_an_axis_is_what_the_convolution_reaches(inputs: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    outputs = (inputs + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if outputs < 1:
        return
    axis = Axis.of(inputs, outputs, kernel, stride, padding, dilation)
    before, behind = axis.margins
    for i in range(inputs):
        want = {(o, k) for o in range(outputs) for k in range(kernel) if o * stride + k * dilation - padding == i}
        places = axis.first[i] + axis.apart * np.arange(axis.taps)
        have = {(int(o), int(k)) for o, k, there in zip(places, axis.tap[i], axis.inside[i], strict=True) if there}
        assert have == want
        assert -before <= places.min() and places.max() < outputs + behind
        # What is not inside, yet has a tap, lies beyond the map.
        assert not any(
            0 <= o < outputs for o, k, there in zip(places, axis.tap[i], axis.inside[i], strict=True) if k >= 0 and not there
        )


def conv(
    name: str, source: str, into: int, out: int, kernel: tuple[int, ...], most: int = 60, bias: bool = False, **options: object
) -> Conv:
    rng = np.random.default_rng(len(name) + into * 7 + out)
    groups = int(str(options.get("groups", 1)))
    weight = rng.integers(-most, most + 1, (out, into // groups, *kernel)).astype(np.int32)
    more = {"bias": rng.integers(-90, 91, out).astype(np.int32)} if bias else {}
    return Conv(name=name, inputs=(Ref(source),), weight=weight, **more, **options)


def net(shape: tuple[int, ...], *layers: Node, fire: bool = False, graded: bool = False, threshold: int = 50) -> Graph:
    """An input, the layers, and a population of each that is not one already and not a pool."""
    kind = TensorType("graded", shape, "i8") if graded else TensorType("spike", shape, "i8")
    nodes: list[Node] = [Input(name="x", type=kind), *layers]
    last = layers[-1].name
    if not isinstance(layers[-1], Neuron):
        nodes.append(neuron("l", last, fire, threshold))
        last = "l"
    return verify(Graph("net", "fixed", tuple(nodes), ((last, Ref(last)),)))


def neuron(name: str, source: str, fire: bool = False, threshold: int = 50) -> Neuron:
    return Neuron(name=name, inputs=(Ref(source),), program=FIRE if fire else LIF, params={"th": np.array(threshold, np.int32)})


def depthwise(
    channels: int, kernel: tuple[int, ...], times: int = 1, name: str = "c", source: str = "x", **options: object
) -> Conv:
    return conv(name, source, channels, channels * times, kernel, groups=channels, **options)


def graphs() -> list[Graph]:
    """One and two axes of space, groups of one and more, stride, padding, dilation; biases, graded events, wide weights, two
    convolutions in one sum, and maps between other layers."""
    found = [
        net((6, 9, 7), depthwise(6, (3, 3), padding=(1, 1))),
        net((6, 9, 7), depthwise(6, (3, 3), padding=(1, 1)), fire=True),
        net((6, 9, 7), depthwise(6, (3, 3), padding=(1, 1), bias=True)),
        net((5, 12, 12), depthwise(5, (5, 5), padding=(2, 2)), fire=True),
        net((5, 12, 12), depthwise(5, (5, 3), stride=(2, 1), padding=(0, 2))),
        net((4, 11, 11), depthwise(4, (3, 3), 2, stride=(2, 2), padding=(1, 1))),
        net((4, 11, 10), depthwise(4, (3, 3), 3, padding=(2, 2), dilation=(2, 3))),
        net((8, 6, 6), conv("c", "x", 8, 32, (3, 3), groups=4, padding=(1, 1))),
        net((8, 6, 6), conv("c", "x", 8, 24, (3, 3), groups=2, padding=(1, 1), bias=True), fire=True),
        net((9, 6, 6), conv("c", "x", 9, 15, (2, 3), groups=3, stride=(1, 2))),
        net((4, 8, 8), conv("c", "x", 4, 16, (3, 3), padding=(2, 2), dilation=(2, 2))),
        net((4, 8, 8), conv("c", "x", 4, 16, (3, 3), stride=(2, 3), padding=(2, 1), dilation=(3, 2))),
        net((3, 8, 8), conv("c", "x", 3, 8, (3, 3), stride=(4, 4), dilation=(2, 2))),
        net((6, 40), depthwise(6, (9,), padding=(4,))),
        net((6, 40), depthwise(6, (9,), stride=(3,), padding=(4,)), fire=True),
        net((8, 33), conv("c", "x", 8, 16, (5,), groups=2, padding=(2,))),
        net((6, 33), conv("c", "x", 6, 12, (4,), groups=6, padding=(6,), dilation=(2,))),
        net((6, 9, 7), depthwise(6, (3, 3), padding=(1, 1)), graded=True),
        net((8, 6, 6), conv("c", "x", 8, 32, (3, 3), groups=4, padding=(1, 1)), graded=True),
        net((6, 9, 7), depthwise(6, (3, 3), padding=(1, 1), most=30000), threshold=9000),
        net((8, 6, 6), conv("c", "x", 8, 32, (3, 3), groups=4, padding=(1, 1), most=30000), threshold=9000),
        net((70, 6, 6), depthwise(70, (3, 3), padding=(1, 1))),  # too few bits for the place of an event, in one byte
        # A pointwise convolution first, whose maps lie channels last; then the windows of a pool, and a pool that stays.
        net((5, 8, 8), conv("p", "x", 5, 12, (1, 1)), neuron("a", "p"), depthwise(12, (3, 3), source="a", padding=(1, 1))),
        net((6, 8, 8), depthwise(6, (3, 3), padding=(1, 1)), neuron("a", "c"), Pool(name="q", inputs=(Ref("a"),), mode="sum", kernel=(2, 2)),
            depthwise(6, (3, 3), name="d", source="q", padding=(1, 1))),
        net((6, 8, 8), depthwise(6, (3, 3), padding=(1, 1)), neuron("a", "c"), Pool(name="q", inputs=(Ref("a"),), mode="max", kernel=(2, 2)),
            depthwise(6, (3, 3), name="d", source="q", padding=(1, 1))),
        # Onto single places: the runs of neighbouring outputs overlap.
        net((3, 16, 16), conv("p", "x", 3, 24, (5, 5), stride=(2, 2)), neuron("a", "p"), conv("c", "a", 24, 36, (5, 5), stride=(2, 2))),
        net((6, 8, 8), depthwise(6, (3, 3), padding=(1, 1)), conv("o", "x", 6, 6, (3, 3), padding=(1, 1)), Add(name="s", inputs=(Ref("c"), Ref("o")))),
        net((6, 8, 8), depthwise(6, (3, 3), padding=(1, 1)), depthwise(6, (5, 5), name="dd", padding=(2, 2)), Add(name="s", inputs=(Ref("c"), Ref("dd")))),
        # Two populations that read one sum.
        net((6, 8, 8), depthwise(6, (3, 3), padding=(1, 1)), neuron("a", "c"), neuron("b", "c", threshold=80), Add(name="s", inputs=(Ref("a"), Ref("b"))), threshold=0),
    ]  # fmt: skip
    return found


@pytest.mark.parametrize(
    "flags",
    ["-O1 -march=native", "-O3 -march=native", "-O1 -mavx2 -mpopcnt -fsanitize=address,undefined", "-O2", "-O1 -DSPK_NO_SIMD"],
)
def test_every_instruction_set_gives_the_same_bits(flags: str, tmp_path: Path) -> None:
    require_compiler()
    # Every other network shows all its sums, so that what follows a small one keeps its own to itself.
    made = [graph for each in graphs() for graph in (each, net((1, 1, 1), depthwise(1, (1, 1))))]
    vectors = [(32, 64, 0, 16, 32)[n // 2 % 5] for n in range(len(made))]
    program = batch_program(made, 2, 6, [Choices(vector=size) for size in vectors])
    program.write(tmp_path)
    subprocess.run(["cc", *STRICT, *flags.split(), "-o", "driver", *program.compiled], cwd=tmp_path, check=True)
    printed = subprocess.run(["./driver"], cwd=tmp_path, check=True, capture_output=True).stdout
    assert program.differences(printed) == []
    silent = [name for name, want in program.expected if re.fullmatch(r"\d*[02468]: (l|s)", name) and not want.any()]
    assert not silent


def test_the_way_with_fewer_vectors_is_taken() -> None:
    def runs(graph: Graph, vector: int = 32) -> tuple[int, ...]:
        text = generate(graph, choices=Choices(vector=vector)).source
        return tuple(int(re.findall(rf"#define SPK_{name} (\d+)u", text)[0]) for name in ("ROWS", "TAPS", "RUN"))

    one = net((32, 9, 9), depthwise(32, (3, 3), padding=(1, 1)))
    assert runs(one) == (1, 3, 4)  # by planes: a row of the kernel, filled up
    assert runs(one, vector=0) == (3, 3, 1)
    assert runs(net((32, 9, 9), depthwise(32, (5, 5), padding=(2, 2)))) == (1, 5, 8)
    assert runs(net((32, 9, 9), conv("c", "x", 32, 64, (3, 3), groups=4))) == (3, 3, 16)  # by taps
    assert runs(net((32, 9, 9), conv("c", "x", 32, 32, (3, 3), dilation=(2, 2)))) == (3, 3, 32)
    text = generate(net((32, 9, 9), conv("c", "x", 32, 32, (3, 3)))).source
    assert "spk_convhalo.h" in text and "spk_convgroup.h" not in text


def test_weights_by_planes_do_not_grow_without_measure() -> None:
    part = depthwise(512, (15, 15), padding=(7, 7))
    found = Grouped(part, (512, 40, 40), (512, 40, 40), 32)
    assert not found.fits(planes=True) and not found.planes
