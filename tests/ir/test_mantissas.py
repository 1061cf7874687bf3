"""Weights as mantissas and an exponent, by what Lava does with them (loihi2.md 2.1 and 2.2)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spikec.bits import synapse_bits
from spikec.mantissas import PLAIN, WIDTHS, Stored, stored
from spikec.target import load_target

LOIHI = load_target("loihi2")


def lavas(weight: np.ndarray, kept: Stored, spikes: np.ndarray) -> np.ndarray:
    """Lava's sum: mantissas clipped and truncated in mixed-sign mode, the sum shifted by the exponent."""
    dropped = 8 - kept.bits + 1
    prepared = (np.clip(kept.mantissas(weight), -256, 255) >> dropped) << dropped
    total = prepared @ spikes
    return total << kept.exponent if kept.exponent >= 0 else total >> -kept.exponent


def possible(weight: np.ndarray) -> list[Stored]:
    """Every way of storing them that is exact, by trying all."""
    ways = [Stored(exponent, bits) for exponent in range(-7, 8) for bits in WIDTHS]
    one = np.eye(weight.shape[1], dtype=np.int64)
    found = []
    for way in ways:
        whole = (weight.astype(np.int64) << -way.exponent) >> max(way.exponent, 0) if way.exponent < 0 else weight >> way.exponent
        back = whole << way.exponent if way.exponent >= 0 else whole >> -way.exponent
        if np.array_equal(back, weight) and np.array_equal(lavas(weight, way, one), weight):
            found.append(way)
    return found


@given(st.integers(0, 2**32 - 1), st.integers(0, 15), st.integers(0, 9))
def test_the_narrowest_that_is_exact(seed: int, size: int, shift: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.integers(-(1 << size), (1 << size) + 1, (3, 4)) << shift).astype(np.int64)
    if rng.random() < 0.3:
        weight = -np.abs(weight)
    kept, ways = stored(weight, LOIHI), possible(weight)
    if kept is None:
        assert not ways
        return
    assert kept in ways
    assert kept.bits == min(way.bits for way in ways)
    assert abs(kept.exponent) == min(abs(way.exponent) for way in ways if way.bits == kept.bits)
    # Payloads of any sign: nothing but zeros is shifted out of the sum.
    payload = rng.integers(-99, 100, 4)
    assert np.array_equal(lavas(weight, kept, payload), weight @ payload)


def test_some_weights() -> None:
    assert stored(np.array([[254, -256]]), LOIHI) == PLAIN
    assert stored(np.array([[127, -3]]), LOIHI) == Stored(-1, 8)
    assert stored(np.array([[255, -3]]), LOIHI) is None
    assert stored(np.array([[10, -20]]), LOIHI) == Stored(-3, 5)  # as lava-dl's netx does (6.2)
    assert stored(np.array([[-2, -2]]), LOIHI) == Stored(-7, 1)
    assert stored(np.array([[32 * 254, 0]]), LOIHI) == Stored(5, 8)
    assert stored(np.array([[0, 0]]), LOIHI) == Stored(0, 1)
    assert stored(np.zeros((0, 2), np.int64), LOIHI) == Stored(0, 1)
    assert stored(np.array([[1, -1]]), LOIHI, reach=1 << 30) is None
    assert stored(np.array([[2, -2]]), LOIHI, reach=1 << 30) == PLAIN


def test_memory() -> None:
    """Bits of a synapse in a full matrix, and in one with an index."""
    assert synapse_bits(LOIHI, np.array([[254, -256]])) == (15, 27)
    assert synapse_bits(LOIHI, np.array([[10, -20]])) == (12, 24)
    assert synapse_bits(LOIHI, np.array([[10, -20]]), exponents=False) == (15, 27)
    assert synapse_bits(load_target("rpi5"), np.array([[10, -20]], np.int8))[0] == 8
