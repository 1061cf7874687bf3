"""The digits data set, its fixed split, and the code that turns a picture into spikes.

The pictures are the 1,797 handwritten 8x8 digits that come with scikit-learn (nothing is downloaded); a pixel
is an integer 0..16. Everything here is deterministic, whatever the versions of scikit-learn and NumPy.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

SPLIT_SEED = 2026
STEPS = 20
"""Time steps for which a digit is shown."""
LEVELS = 16
"""The brightest pixel value."""


class Digits(NamedTuple):
    """Pictures (N, 64) uint8 with values 0..16, and their labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def split() -> tuple[Digits, Digits]:
    """Return (training two thirds, held-out third): 1,198 and 599 digits, both in the data set's own order.

    The rule: shuffle all indices with NumPy's legacy generator (its stream is frozen by NumPy's policy) and a
    fixed seed, sort them by label without disturbing that order, hold out every third. So a third of every
    class is held out, give or take one digit.
    """
    images, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[order[1::3]] = True
    everything = Digits(images.astype(np.uint8), labels.astype(np.int64))
    return (
        Digits(everything.images[~held_out], everything.labels[~held_out]),
        Digits(everything.images[held_out], everything.labels[held_out]),
    )


def code(steps: int = STEPS) -> NDArray[np.uint8]:
    """Return the spike train of every pixel value, (17, steps) uint8 of 0 and 1.

    A pixel of value k is an accumulator that starts half full (16 of 32), gains k in every step, and fires
    and loses 32 as soon as it holds 32: the brightest pixel fires in every other step, a black one never.
    """
    full = 2 * LEVELS
    level = np.arange(LEVELS + 1)[:, None]
    fired = (full // 2 + level * np.arange(steps + 1)) // full
    return np.diff(fired, axis=1).astype(np.uint8)


def spikes(images: NDArray[np.uint8], steps: int = STEPS) -> NDArray[np.uint8]:
    """Turn pictures (N, 64) or (N, 8, 8), integers 0..16, into spikes (N, steps, 64), uint8 of 0 and 1."""
    pixels = np.asarray(images).reshape(len(images), -1)
    return np.ascontiguousarray(code(steps)[pixels].transpose(0, 2, 1))


def answer(output: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the digit each sample's output spikes (N, T, 10) stand for, (N,) int64.

    It is the neuron that fired most often; of several, the one with the lowest number.
    """
    winner: NDArray[np.int64] = np.asarray(output).sum(axis=1).argmax(axis=1)
    return winner
