"""Encoders: each against its equations, in plain Python where they are short; the generator against published numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spikec.runtime import encoders
from spikec.runtime.encoders import EncodingError, delta, latency, level_crossing, mix, phase, random_bits, rate, split

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
units = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4), elements=st.floats(0, 1))
signals = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.floats(-100, 100))


def plain_mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def plain_bits(seed: int, *counters: int) -> int:
    h = plain_mix(seed + GOLDEN & MASK)
    for counter in counters:
        h = plain_mix(h + (counter + 1) * GOLDEN & MASK)
    return h >> 32


# ----------------------------------------------------------------------------------------------------------------------- rate


def test_the_published_numbers_of_splitmix64() -> None:
    """The first five outputs for the seed 1234567, as published with the generator's many implementations."""
    states = np.array([(1234567 + k * GOLDEN) & MASK for k in range(1, 6)], np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert mix(states).tolist() == expected
    assert [plain_mix(int(state)) for state in states] == expected


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**63), st.integers(0, 2**32), st.integers(0, 2**40))
def test_random_bits_are_the_four_lines(seed: int, sample: int, step: int, element: int) -> None:
    counters = (np.array([[sample]], np.uint64), np.array([[step]], np.uint64), np.array([[element]], np.uint64))
    assert int(random_bits(seed, *counters).item()) == plain_bits(seed, sample, step, element)


@given(units, st.integers(1, 6), st.integers(0, 2**64 - 1))
def test_rate_is_its_equation(x: Any, steps: int, seed: int) -> None:
    out = rate(x, steps, seed=seed, samples=5)
    assert out.dtype == np.uint8 and out.shape == (len(x), steps, *x.shape[1:])
    for b, values in enumerate(x.reshape(len(x), -1)):
        for t in range(steps):
            for i, value in enumerate(values):
                expected = plain_bits(seed, 5 + b, t, i) < math.floor(float(value) * 2**32 + 0.5)
                assert out.reshape(len(x), steps, -1)[b, t, i] == expected


@given(hnp.arrays(np.float32, (5, 2, 3), elements=st.floats(0, 1, width=32)), st.permutations(range(5)), st.integers(1, 9))
def test_a_sample_is_encoded_alike_in_every_batch(x: Any, order: list[int], steps: int) -> None:
    whole = rate(x, steps, seed=3)
    assert np.array_equal(rate(x[order], steps, seed=3, samples=order), whole[order])
    assert np.array_equal(np.concatenate([rate(x[b : b + 1], steps, seed=3, samples=b) for b in range(5)]), whole)
    assert np.array_equal(rate(x, steps + 2, seed=3)[:, :steps], whole)


def test_rates_are_rates() -> None:
    x = np.array([[0.0, 0.1, 0.5, 0.9, 1.0]])
    out = rate(x, 40_000, seed=11)
    mean = out.mean(axis=1)
    assert mean[0, 0] == 0 and mean[0, 4] == 1
    assert np.abs(mean - x).max() < 5 * math.sqrt(0.25 / 40_000)
    assert abs(np.corrcoef(out[0, :-1, 2], out[0, 1:, 2])[0, 1]) < 0.025
    assert not np.array_equal(out, rate(x, 40_000, seed=12))
    other = rate(x, 40_000, seed=11, samples=1)
    assert abs(np.corrcoef(out[0, :, 2], other[0, :, 2])[0, 1]) < 0.025


# ------------------------------------------------------------------------------------------------------------- phase, latency


@given(units, st.integers(1, 12), st.integers(1, 3))
def test_phase_weighs_back_to_the_value(x: Any, period: int, times: int) -> None:
    out = phase(x, period * times, period=period)
    weights = 2.0 ** -(1 + np.arange(period * times) % period)
    back = np.tensordot(out, weights, axes=(1, 0)) / times
    assert np.array_equal(back, np.minimum(np.floor(x * 2**period), 2**period - 1) / 2**period)
    assert out.dtype == np.uint8 and set(np.unique(out)) <= {0, 1}


@given(units, st.integers(1, 20), st.floats(0, 1))
def test_linear_latency(x: Any, steps: int, threshold: float) -> None:
    out = latency(x, steps, threshold=threshold)
    assert out.dtype == np.uint8 and np.array_equal(out.sum(axis=1), x > threshold)
    when = np.argmax(out, axis=1)
    for value, time in zip(x.ravel(), when.ravel(), strict=True):
        if value > threshold:
            assert time == math.floor((1 - value) * (steps - 1) + 0.5)


@given(units, st.integers(1, 20), st.floats(0.01, 0.9), st.floats(0.1, 30))
def test_logarithmic_latency(x: Any, steps: int, threshold: float, tau: float) -> None:
    out = latency(x, steps, threshold=threshold, tau=tau)
    for value, train in zip(x.ravel(), np.moveaxis(out, 1, -1).reshape(-1, steps), strict=True):
        time = math.floor(tau * float(np.log(value / (value - threshold))) + 0.5) if value > threshold else steps
        assert train.tolist() == [int(t == time) for t in range(steps)]


# --------------------------------------------------------------------------------------------------------------- delta, levels


@given(signals, st.floats(0.01, 50), st.booleans())
def test_delta_is_its_equation(x: Any, threshold: float, off: bool) -> None:
    out = delta(x, threshold, off=off)
    assert out.dtype == np.int8 and out.shape == x.shape and not out[:, 0].any()
    for t in range(1, x.shape[1]):
        d = x[:, t] - x[:, t - 1]
        assert np.array_equal(out[:, t], np.where(d >= threshold, 1, np.where((d <= -threshold) & off, -1, 0)))


@given(signals, st.floats(2, 50))
def test_several_levels_follow_the_signal(x: Any, step: float) -> None:
    out = level_crossing(x, step, several=True)
    back = x[:, :1] + step * np.cumsum(out, axis=1)
    assert (np.abs(back - x) < step * (1 + 1e-9)).all()


@given(signals, st.floats(0.01, 50))
def test_single_levels(x: Any, step: float) -> None:
    out = level_crossing(x, step)
    assert set(np.unique(out)) <= {-1, 0, 1}
    for train, signal in zip(
        np.moveaxis(out, 1, -1).reshape(-1, x.shape[1]), np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]), strict=True
    ):
        level = 0
        for t, value in enumerate(signal):
            e = (value - signal[0]) / step
            expected = 1 if e >= level + 1 else -1 if e <= level - 1 else 0
            assert train[t] == expected
            level += expected


def test_a_ramp_by_hand() -> None:
    ramp = np.array([[0.0, 0.4, 1.0, 3.5, 2.6, 2.5, 0.0]])
    assert level_crossing(ramp, 1.0, several=True).tolist() == [[0, 0, 1, 2, 0, 0, -3]]
    assert level_crossing(ramp, 1.0).tolist() == [[0, 0, 1, 1, 0, 0, -1]]
    assert delta(ramp, 0.5).tolist() == [[0, 0, 1, 1, -1, 0, -1]]
    assert split(delta(ramp, 0.5)).tolist() == [[[0, 0], [0, 0], [0, 1], [0, 1], [1, 0], [0, 0], [1, 0]]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: rate([[1.5]], 3), r"the value at \[0, 0\] is 1.5: values lie in \[0, 1\] \(1 do not\)"),
        (lambda: rate([[math.nan]], 3), r"the value at \[0, 0\] is nan"),
        (lambda: rate([["a"]], 3), "takes numbers"),
        (lambda: rate([[1.0]], 0), "there are 1 or more steps, not 0"),
        (lambda: rate([[1.0]], 3, samples=[1, 2]), "one number for each of 1"),
        (lambda: phase([[1.0]], 3, period=60), "a period has 1 to 52 steps"),
        (lambda: latency([[1.0]], 3, tau=1.0), "tau and threshold above 0"),
        (lambda: delta([[1.0]], 0.0), "a threshold lies above 0, not at 0.0"),
        (lambda: delta([1.0], 1.0), r"takes \(batch, T, \*shape\), not the shape \(1,\)"),
        (lambda: level_crossing([[0.0, 200.0]], 1.0, several=True), "200 levels in step 1: take a step larger than 1.0"),
    ],
)
def test_wrong_values(wrong: Any, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        wrong()


def test_every_encoder_takes_no_samples() -> None:
    empty = np.zeros((0, 3))
    assert rate(empty, 4).shape == phase(empty, 4).shape == latency(empty, 4).shape == (0, 4, 3)
    assert delta(np.zeros((0, 4, 3)), 1.0).shape == level_crossing(np.zeros((0, 4, 3)), 1.0).shape == (0, 4, 3)
    assert encoders.EncodingError.__mro__[1] is ValueError


# --------------------------------------------------------------------------------------------------------------- by name


def test_encoders_by_name_are_the_functions() -> None:
    frame = np.random.default_rng(0).random((3, 4))
    x = np.repeat(frame[:, None], 9, axis=1)
    np.testing.assert_array_equal(encoders.encode("rate:seed=5", x), encoders.rate(frame, 9, seed=5))
    np.testing.assert_array_equal(encoders.encode("phase:period=3", x), encoders.phase(frame, 9, period=3))
    np.testing.assert_array_equal(encoders.encode("latency", x), encoders.latency(frame, 9))
    text = "latency:threshold=0.2,tau=3"
    np.testing.assert_array_equal(encoders.encode(text, x), encoders.latency(frame, 9, threshold=0.2, tau=3))
    signal = np.random.default_rng(1).normal(size=(2, 30, 3)).cumsum(axis=1)
    np.testing.assert_array_equal(encoders.encode("delta:threshold=0.5", signal), encoders.delta(signal, 0.5))
    np.testing.assert_array_equal(encoders.encode("level_crossing:step=0.5", signal), encoders.level_crossing(signal, 0.5))


def test_a_rate_may_change_from_step_to_step() -> None:
    x = np.zeros((1, 400, 2))
    x[:, 200:, 0], x[:, :, 1] = 1, 0.5
    spikes = encoders.encode("rate", x)
    assert not spikes[:, :200, 0].any() and spikes[:, 200:, 0].all() and 150 < spikes[..., 1].sum() < 250


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("morse", "there is no encoder 'morse': choose one of rate, phase, latency, delta, level_crossing, merge"),
        ("rate:speed=3", "'speed=3': the encoder rate takes seed=…"),
        ("rate:seed", "'seed': the encoder rate takes seed=…"),
        ("rate:seed=x", "'seed=x': seed is a number"),
        ("delta", "the encoder delta needs a threshold: write delta:threshold=…"),
    ],
)
def test_a_bad_name_says_what_there_is(text: str, message: str) -> None:
    with pytest.raises(encoders.EncodingError) as caught:
        encoders.encode(text, np.zeros((1, 2, 3)))
    assert str(caught.value) == message


def test_a_frame_for_latency_stays_the_same() -> None:
    with pytest.raises(encoders.EncodingError, match="stays the same at all steps"):
        encoders.encode("latency", np.arange(6).reshape(1, 2, 3) / 6)


def test_merge_is_the_disjunction_of_steps() -> None:
    x = np.zeros((1, 5, 2), np.float32)
    x[0, 1, 0] = x[0, 2, 0] = x[0, 4, 1] = 1
    assert encoders.encode("merge:every=2", x)[0].tolist() == [[1, 0], [1, 0], [0, 1]]
    np.testing.assert_array_equal(encoders.merge(x, 1), x)
    for every in (0, 1.5):
        with pytest.raises(EncodingError, match="whole number of at least 1"):
            encoders.merge(x, every)
    with pytest.raises(EncodingError, match="batch"):
        encoders.merge([1, 0], 2)
