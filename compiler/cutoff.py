"""An early answer: stop as soon as the best class leads the second best by enough.

After every step the output is added up, class by class. A sample is decided at the first step at which the largest sum leads the
next one by at least `margin`, or at the last. The margin is one number, or one for every step: late steps can change less, and need
less of a lead. The rule reads nothing but an output, which all engines compute alike, so that the answer and the step are the same
on every engine; the C engine also stops computing there. The margins are those of the fewest steps that keep the loss on
calibration data, and its standard error, within a budget, also with a tenth of the input left out (Wu et al. 2025 report 1.64 to
2.76 times fewer steps with such a rule); or those of the least loss that take no more than a share of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.types import Array
from spikec.score import answers

#: Where a line of margins ends, as a share of where it begins, and how many beginnings are tried; halvings of where it may begin.
_SHARES: Final = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0)
_MARGINS: Final = 64
_HALVINGS: Final = 40


@dataclass(frozen=True)
class Cutoff:
    """output: whose sums decide. margin: the lead that suffices, in units of the output: one number, or one for each step from the
    first on, of which the last holds for all that follow. budget: the loss that was allowed; steps: the share of the steps that
    was, in its stead.
    """

    output: str
    margin: float | tuple[float, ...]
    budget: float | None
    steps: float | None = None

    def margins(self, steps: int) -> Array:
        """The lead that suffices after each of so many steps (steps,)."""
        given = np.atleast_1d(np.asarray(self.margin, np.float64))
        return np.asarray(given[np.minimum(np.arange(steps), len(given) - 1)])

    def decide(self, output: Array) -> Decision:
        """Answers and steps for an output (samples, T, *classes)."""
        sums = np.cumsum(output.reshape(*output.shape[:2], -1), axis=1)
        steps = _steps(lead(sums), self.margins(output.shape[1]))
        found = np.take_along_axis(sums, steps[:, None, None], axis=1)[:, 0].argmax(axis=1)
        return Decision(found, steps + 1)

    def as_json(self) -> dict[str, Any]:
        """As plain data; a margin that nothing reaches is None."""
        told = [None if math.isinf(each) else each for each in np.atleast_1d(self.margin).tolist()]
        found = {"output": self.output, "margin": told if isinstance(self.margin, tuple) else told[0], "budget": self.budget}
        return {**found, "steps": self.steps} if self.steps is not None else found

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Cutoff:
        """The same back."""
        given, asked = found["margin"], (found["budget"], found.get("steps"))
        if isinstance(given, list):
            return cls(found["output"], tuple(math.inf if each is None else each for each in given), *asked)
        return cls(found["output"], math.inf if given is None else given, *asked)

    @property
    def asked(self) -> str:
        """The option that asked for it."""
        return f"--cutoff {self.budget:g}" if self.steps is None else f"--cutoff-steps {self.steps:g}"

    @property
    def early(self) -> bool:
        """Whether any lead suffices before the end."""
        return bool(np.isfinite(np.min(self.margin)))

    def text(self) -> str:
        """When answers are given, in words."""
        given = np.atleast_1d(self.margin)
        if not self.early:
            return "after the whole run"
        if given[-1] == 0 and np.all(np.isinf(given[:-1])):
            return f"after step {len(given)}, whatever leads"
        told = f"{given[0]:.6g}" if len(given) == 1 else f"{given[0]:.6g} at first and {given[-1]:.6g} in the end"
        return f"as soon as one class leads by {told}"


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


def _steps(leads: Array, margins: Array) -> Array:
    """The first step, from 0, at which each sample's lead suffices; leads (samples, T), margins (T,)."""
    enough = leads >= margins
    enough[:, -1] = True
    return np.asarray(enough.argmax(axis=1))


def calibrate(output: Array, labels: Array | None, name: str, budget: float, harder: Sequence[Array] = ()) -> Cutoff:
    """The margins of the fewest steps at which the loss on these samples, plus its standard error, is within the budget.

    output (samples, T, *classes) of the whole run; harder: those of the same samples with less input (`spikec.inputs.drawn`), on
    each of which the loss has to be within the budget: a network answers samples that it learnt from more surely than others. The
    loss is the share of the samples whose right answer is lost less that of wrong ones that become right, with labels (samples,);
    else the share whose answer changes. Margins fall with time along a straight line, from `a` to a share of `a` that is searched
    for as well; two numbers are too few to learn the samples by heart.
    Samples with a label below 0 are left out. Raises CompileError SPK001 for a budget out of range or an output of one value.
    """
    if not 0 <= budget < 1:
        raise CompileError("SPK001", f"cutoff is the share of answers that may be lost, from 0 up to but without 1, not {budget}")
    judged = _judged(output, labels, name, harder)
    steps = output.shape[1]
    leads = judged[0].leads
    known = np.unique(leads[leads > 0])
    if len(known) > _MARGINS:
        known = np.unique(np.quantile(known, np.linspace(0, 1, _MARGINS)))
    starts = np.unique(np.concatenate([known, 1.5 * known, 2 * known]))[::-1]

    whole = bool(np.all(output == np.rint(output)))
    best: tuple[float, float | tuple[float, ...]] = (math.inf, math.inf)
    for share in _SHARES:
        shape = np.linspace(1, share, steps)
        # The loss grows as margins fall, but not at every step: from the largest down, as long as the budget holds.
        for start in starts:
            margins = np.ceil(start * shape) if whole else start * shape
            if any(each.loss(_steps(each.leads, margins)) > budget for each in judged):
                break
            taken = _steps(leads, margins)
            if (mean := float(taken.mean())) < best[0]:
                best = (mean, _told(margins))
    return Cutoff(name, best[1], budget)


def calibrate_steps(output: Array, labels: Array | None, name: str, share: float, harder: Sequence[Array] = ()) -> Cutoff:
    """The margins of the least loss with which these samples take at most a share of the steps on average; else as `calibrate`.

    The loss is that on the samples and on all of `harder` together. Of lines of margins that lose as little the one that takes the
    most steps is chosen: what is left of the share is for the samples that are not here. Where answers all given after the last
    step allowed lose less, or leads are too small for margins, that is the rule. Raises CompileError SPK001 for a share of less
    than one step, or more than all.
    """
    steps = output.shape[1]
    last = int(share * steps + 1e-9) if math.isfinite(share) else 0
    if last < 1 or share > 1:
        what = f"cutoff_steps is the share of the steps that answers take on average, at most 1 and at least 1/{steps}, not {share}"
        raise CompileError("SPK001", f"{what}: there are {steps}")
    judged = _judged(output, labels, name, harder)
    if last == steps:
        return Cutoff(name, math.inf, None, share)
    leads = judged[0].leads
    whole = bool(np.all(output == np.rint(output)))

    def lost(margins: Array) -> int:
        return sum(each.lost(_steps(each.leads, margins)) for each in judged)

    best: tuple[float, float, float | tuple[float, ...]] = (math.inf, 0.0, 0.0)
    for end in _SHARES:
        shape = np.linspace(1, end, steps)
        low, high = 0.0, 2.0 * steps * float(leads.max(initial=1.0))  # answers at once, and in the end
        for _ in range(_HALVINGS):
            start = (low + high) / 2
            margins = np.ceil(start * shape) if whole else start * shape
            low, high = (start, high) if _steps(leads, margins).mean() + 1 <= share * steps else (low, start)
        margins = np.ceil(low * shape) if whole else low * shape
        if margins[0] > 0:
            best = min(best, (lost(margins), -float(_steps(leads, margins).mean()), _told(margins)), key=lambda each: each[:2])
    fixed = np.repeat([math.inf, 0.0], [last - 1, 1])
    return Cutoff(name, _told(fixed) if lost(fixed[np.minimum(np.arange(steps), last - 1)]) < best[0] else best[2], None, share)


def _told(margins: Array) -> float | tuple[float, ...]:
    """Margins (T,) as they are kept: one number where they are equal."""
    return float(margins[0]) if np.all(margins == margins[0]) else tuple(margins.tolist())


def _judged(output: Array, labels: Array | None, name: str, harder: Sequence[Array]) -> list[_Judged]:
    """Samples with a label, as they are and with less input. Raises CompileError SPK001 for an output of one value."""
    if labels is not None:
        harder = [each[labels >= 0] for each in harder]
        output, labels = output[labels >= 0], labels[labels >= 0]
    if math.prod(output.shape[2:]) < 2:
        raise CompileError(
            "SPK001",
            f"cutoff answers with the class that leads, and the output {name} has one value: nothing to choose from",
            fix="leave cutoff out; it is for classifiers with an output for each class",
        )
    return [_Judged.of(each, labels) for each in (output, *harder)]


@dataclass(frozen=True, eq=False)
class _Judged:
    """Samples: their leads and answers after every step (samples, T), in the end, and what is right (samples,)."""

    leads: Array
    found: Array
    final: Array
    right: Array

    @classmethod
    def of(cls, output: Array, labels: Array | None) -> _Judged:
        sums = np.cumsum(output.reshape(*output.shape[:2], -1), axis=1)
        final = answers(output)
        return cls(lead(sums), sums.argmax(axis=2), final, final if labels is None else labels)

    def loss(self, taken: Array) -> float:
        """The share of the answers lost by giving them at these steps (samples,), and its standard error."""
        lost, gained = self._changed(taken)
        return float(lost - gained + math.sqrt(lost + gained)) / len(taken)

    def lost(self, taken: Array) -> int:
        """How many answers more are lost than gained by giving them at these steps (samples,)."""
        lost, gained = self._changed(taken)
        return lost - gained

    def _changed(self, taken: Array) -> tuple[int, int]:
        early = self.found[np.arange(len(taken)), taken]
        lost = int(np.sum((self.final == self.right) & (early != self.right)))
        return lost, int(np.sum((self.final != self.right) & (early == self.right)))
