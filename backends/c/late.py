"""Layers of spikes whose connections have delays: a row of weights for every source and delay, added when the spike arrives.

Without this a layer adds each connection to the accumulators of the step in which it arrives, one after the other. A row has all
connections of a source with one delay; it is added as any row of weights is. Which rows arrive at a step follows from the events of
the last steps where there is a row for every source and delay (`whole`), and is noted when a source sends where there are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from spikec.backends.c.forms import LARGE, connection, forms
from spikec.ir.ops import Conv, Dense, Sparse
from spikec.ir.types import Array

#: Rows of a layer at most: their numbers have sixteen bits. Places of all rows at most: of a cache of its own, a megabyte or two.
_ROWS: Final = 1 << 16
_PLACES: Final = 1 << 20
#: What rows may cost of what the connections cost one by one.
_LESS: Final = 0.75


@dataclass(frozen=True)
class Late:
    """Rows (rows, targets): those of a delay after those of the one before if `whole`, else those of a source together.

    delay: if `whole` the delays that occur, rising, else that of each row. start: where the rows of a source begin.
    """

    matrix: Array
    delay: Array
    start: Array
    whole: bool

    @property
    def longest(self) -> int:
        """In steps."""
        return int(self.delay.max())

    def quicker(self, vector: int, connections: float) -> bool:
        """Whether rows take less time than so many connections of a source, of which one is reckoned as in a list."""
        rows, targets = self.matrix.shape
        if rows * targets > _PLACES:
            return False
        each = rows / (len(self.start) - 1) if len(self.start) else len(self.delay)
        quickest = min(form.cycles for form in forms(self.matrix != 0, targets, vector))
        return each * quickest <= _LESS * connections * connection(vector)


def arrivals(part: Dense | Sparse | Conv, order: Array, vector: int) -> Late | None:
    """The rows of a layer with delays, its sources in this order; None where connections one by one take less time. `vector`: bytes
    of a vector that weights are added in, 0 for none."""
    if part.delay is None or isinstance(part, Conv) or not part.weight.size:
        return None
    if isinstance(part, Dense):
        targets, sources = part.weight.shape
        target, source = (axis.ravel() for axis in np.indices(part.weight.shape))
    else:
        targets, sources = len(part.indptr) - 1, part.fan_in
        target, source = part.rows, part.indices
    place = np.empty(sources, np.int64)
    place[order] = np.arange(sources)
    delays, number = np.unique(part.delay.ravel(), return_inverse=True)
    number, source = number.reshape(-1), place[source]
    if len(delays) * sources > _ROWS or len(delays) * sources * targets > LARGE:
        return None
    rows = np.zeros((len(delays), sources, targets), np.int64)
    np.add.at(rows, (number, source, target), part.weight.ravel())
    present = np.zeros((len(delays), sources), bool)
    present[number, source] = True
    sender, which = np.nonzero(present.T)
    if len(which) > min(2 * sources, len(delays) * sources // 2):
        found = Late(rows.reshape(-1, targets), delays, np.zeros(0, np.int64), True)
    else:
        found = Late(rows[which, sender], delays[which], np.concatenate([[0], np.cumsum(present.sum(axis=0))]), False)
    return found if found.quicker(vector, part.weight.size / sources) else None
