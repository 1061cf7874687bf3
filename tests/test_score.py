"""Labels as users give them: each mistake names its cure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spikec.diagnostics import CompileError
from spikec.score import check_labels

Y = np.arange(12) % 4


@pytest.mark.parametrize(
    ("labels", "code", "what", "cure"),
    [
        (Y[:-1], "SPK006", "the labels have shape (11,)", "give a label for each of the 12 samples, in their order"),
        (np.eye(4, dtype=int)[Y], "SPK006", "(12, 4)", "these are one-hot: give y.argmax(axis=1)"),
        (np.eye(4)[Y], "SPK006", "(12, 4)", "these are one-hot: give y.argmax(axis=1)"),
        (Y[:, None], "SPK006", "(12, 1)", "give y[:, 0]"),
        (3, "SPK006", "()", "give a label for each of the 12 samples"),
        (Y.astype(float), "SPK007", "the labels are float64, not whole numbers", "give y.astype(int)"),
        (
            Y + 0.5,
            "SPK007",
            "the labels are float64",
            "labels are classes, counted from 0; a network that gives quantities has none",
        ),
        (Y.astype(str), "SPK007", "not whole numbers", "number the classes from 0, in the order of the outputs"),
        (Y + 1, "SPK007", "the labels reach 4, but the output tells 4 classes apart, 0 to 3", "these count from 1: give y - 1"),
        (Y * 2, "SPK007", "the labels reach 6", "count classes from 0; a label below 0 is left out of the score"),
        (Y * 0 - 1, "SPK007", "every label is below 0: none counts", "count classes from 0"),
    ],
)
def test_each_mistake_names_its_cure(labels: Any, code: str, what: str, cure: str) -> None:
    with pytest.raises(CompileError) as caught:
        check_labels(labels, 12, 5, 4)
    (found,) = caught.value.diagnostics
    assert found.code == code
    assert what in found.message
    assert cure in (found.fix or "")


def test_what_is_right_passes() -> None:
    for labels in (Y, Y.astype(np.uint8), np.where(Y == 3, -1, Y), np.repeat(Y[:, None], 5, axis=1)):
        np.testing.assert_array_equal(check_labels(labels, 12, 5, 4), labels)
    assert check_labels(np.zeros(0, int), 0, 5, 4).shape == (0,)
