"""An early answer: stop as soon as the best class leads the second best by enough.

After every step the output is added up, class by class. A sample is decided at the first step at which the largest sum leads the
next one by at least `margin`, or at the last. The rule reads nothing but an output, which all engines compute alike, so that the
answer and the step are the same on every engine; the C engine also stops computing there. The margin is the smallest that keeps
the loss on calibration data within a budget (Wu et al. 2025 report 1.64 to 2.76 times fewer steps with such a rule).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.types import Array
from spikec.score import answers


@dataclass(frozen=True)
class Cutoff:
    """output: whose sums decide. margin: the lead that suffices, in units of the output. budget: the loss that was allowed."""

    output: str
    margin: float
    budget: float

    def decide(self, output: Array) -> Decision:
        """Answers and steps for an output (samples, T, *classes)."""
        sums = np.cumsum(output.reshape(*output.shape[:2], -1), axis=1)
        enough = lead(sums) >= self.margin
        enough[:, -1] = True
        steps = enough.argmax(axis=1)
        found = np.take_along_axis(sums, steps[:, None, None], axis=1)[:, 0].argmax(axis=1)
        return Decision(found, steps + 1)


@dataclass(frozen=True, eq=False)
class Decision:
    """answers: the class of every sample (samples,); steps: after how many steps it was given (samples,)."""

    answers: Array
    steps: Array

    @property
    def mean_steps(self) -> float:
        """Steps a sample took on average."""
        return float(self.steps.mean())


def lead(sums: Array) -> Array:
    """How far the largest of the last axis is ahead of the next; of a single class, how far it is from 0."""
    if sums.shape[-1] == 1:
        return np.abs(sums[..., 0])
    best = np.partition(sums, -2, axis=-1)
    return np.asarray(best[..., -1] - best[..., -2])


def calibrate(output: Array, labels: Array | None, name: str, budget: float) -> Cutoff:
    """The smallest margin at which the loss on these samples is within the budget.

    output (samples, T, *classes) of the whole run. The loss is the share of the samples whose right answer is lost, with labels
    (samples,), else the share whose answer changes. Raises CompileError SPK001 for a budget out of range.
    """
    if not 0 <= budget < 1:
        raise CompileError("SPK001", f"cutoff is the share of answers that may be lost, from 0 up to but without 1, not {budget}")
    final = answers(output)
    sums = np.cumsum(output.reshape(*output.shape[:2], -1), axis=1)
    margins = np.unique(lead(sums))
    margins = margins[margins > 0]

    def loss(margin: float) -> float:
        found = Cutoff(name, margin, budget).decide(output).answers
        if labels is None:
            return float(np.mean(found != final))
        return float(np.mean(final == labels) - np.mean(found == labels))

    # The loss falls with the margin, but not at every step: from the largest down, as long as the budget holds.
    best = math.inf
    for margin in margins[::-1] if len(margins) <= 256 else np.quantile(margins, np.linspace(1, 0, 256)):
        if loss(float(margin)) > budget:
            break
        best = float(margin)
    return Cutoff(name, best, budget)
