"""Bits of weights: what is asked for is read in every form, and what weights take is counted as they are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import dense, graph, spikes

from spikec.bits import CHIP_WIDTHS, bits_text, layer_bytes, read_bits, stored_bits, synapse_bits, widths_of
from spikec.diagnostics import CompileError, Loc
from spikec.target import load_target

LAYERS = ("fc1", "fc2", "out")
NET = graph(
    spikes((1,)),
    *(dense(n, "in", np.ones((1, 1)), loc=Loc("model.py", 3 + k, f"net.{n}")) for k, n in enumerate(LAYERS)),
)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, None), (8, 8), ("4", 4), (" mixed ", "mixed"), ("8,4", "8,4"), ([8, 4, 2], "8,4,2"), ((6,), 6), ("fc1=4, fc2 = 8", "fc1=4,fc2=8"),
        ({"fc1": 4, "net.out": 3}, "fc1=4,net.out=3"),
    ],
)  # fmt: skip
def test_forms(value: Any, found: Any) -> None:
    assert read_bits(value) == found
    assert read_bits(found) == found


@pytest.mark.parametrize(
    "value", [0, -1, True, 2.5, "", "eight", "8,", "8,,4", "fc1=0", "fc1=4,8", "fc1=x", [], {}, "0", "fc1=4,fc1=8", [8, 0]]
)
def test_what_is_no_width(value: Any) -> None:
    with pytest.raises(CompileError) as caught:
        read_bits(value)
    assert caught.value.diagnostics[0].code == "SPK001"


def test_layers() -> None:
    assert widths_of(None, NET, CHIP_WIDTHS, "x") == dict.fromkeys(LAYERS, 8)
    assert widths_of(3, NET, CHIP_WIDTHS, "x") == dict.fromkeys(LAYERS, 3)
    assert widths_of("8,4,2", NET, CHIP_WIDTHS, "x") == {"fc1": 8, "fc2": 4, "out": 2}
    assert widths_of("net.out=5", NET, CHIP_WIDTHS, "x") == {"fc1": 8, "fc2": 8, "out": 5}
    assert widths_of(bits_text({"fc1": 8, "fc2": 4, "out": 2}), NET, CHIP_WIDTHS, "x") == {"fc1": 8, "fc2": 4, "out": 2}


@pytest.mark.parametrize(
    ("bits", "code", "words"),
    [
        ("fc3=4", "SPK010", "no layer 'fc3'"),
        ("8,4", "SPK001", "2 number(s) for 3 layer(s)"),
        ("8,7,8", "SPK001", "7 bits: x has weights of 1, 2, 3, 4, 5, 6, 8 bits"),
    ],
)
def test_widths_that_do_not_fit(bits: str, code: str, words: str) -> None:
    with pytest.raises(CompileError) as caught:
        widths_of(bits, NET, CHIP_WIDTHS, "x")
    assert caught.value.diagnostics[0].code == code
    assert words in str(caught.value)


def test_bytes_of_a_layer() -> None:
    weight = np.zeros((8, 10))
    weight.ravel()[:7] = 1
    assert layer_bytes(dense("d", "in", weight), 8) == 7 * 3  # listed: 8 bits and an index of 16
    assert layer_bytes(dense("d", "in", np.ones((8, 10))), 4) == 40
    assert layer_bytes(dense("d", "in", np.ones((3, 3))), 3) == 4  # 27 bits
    assert layer_bytes(dense("d", "in", np.ones((8, 10))), 8, present=weight != 0) == 7 * 3


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=6), st.integers(0, 7))
def test_a_chip_keeps_the_fewest_bits_that_hold_the_weights(numbers: list[int], dropped: int) -> None:
    chip = load_target("loihi2")
    # The grid of the chip: even numbers, of which the low bits of fewer bits are zero.
    weight = np.clip((np.array(numbers) >> dropped << dropped) * 2, -256, 254).astype(np.int16)
    bits = stored_bits(chip, weight, exponents=False)
    assert stored_bits(chip, weight) <= bits  # moved up, and down again by an exponent
    assert bits in CHIP_WIDTHS
    kept = lambda width: (weight >> (8 - width + 1)) << (8 - width + 1)  # what Lava leaves of mixed signs (card 2.1)
    assert np.array_equal(kept(bits), weight)
    assert all(not np.array_equal(kept(fewer), weight) for fewer in CHIP_WIDTHS if fewer < bits)
    assert bits <= next(width for width in CHIP_WIDTHS if width >= 8 - dropped)


def test_a_processor_keeps_whole_bytes() -> None:
    host = load_target("host")
    assert synapse_bits(host, np.array([1, 2], np.int8)) == (8, 24)
    assert synapse_bits(host, np.array([1, 2], np.int16)) == (16, 32)
    chip, weight = load_target("loihi2"), np.array([32, -64], np.int16)
    assert synapse_bits(chip, weight, exponents=False) == (15 - 4, 27 - 4)
    assert synapse_bits(chip, weight) == (15 - 6, 27 - 6)  # 128 and -256, times 1/4
