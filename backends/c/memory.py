"""Where the buffers of a step lie: those that are never live together share their place. And how much each layer takes.

A step runs through the layers in a fixed order; a buffer is live from the layer that writes it to the last one that reads it.
Placing such intervals in as little memory as possible is the problem of dynamic storage allocation; the largest first, each at
the lowest place that is free for its whole life, is its usual good answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Buffers begin at multiples of so many bytes: a cache line, and the widest vector.
ALIGN: Final = 64


@dataclass(frozen=True)
class Life:
    """A buffer of `size` units that is live from layer `first` to layer `last`, both included."""

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Life) -> bool:
        """Whether both are live at the same time."""
        return self.first <= other.last and other.first <= self.last


def place(lives: Sequence[Life], align: int = 1) -> tuple[dict[str, int], int]:
    """The offset of every buffer, a multiple of `align`, and the size of the whole."""
    placed: list[tuple[int, Life]] = []
    for life in sorted(lives, key=lambda item: (-item.size, item.first, item.name)):
        offset = 0
        for start, other in sorted((pair for pair in placed if pair[1].meets(life)), key=lambda pair: pair[0]):
            if offset + life.size <= start:
                break
            offset = max(offset, -(-(start + other.size) // align) * align)
        placed.append((offset, life))
    return {life.name: offset for offset, life in placed}, max((offset + life.size for offset, life in placed), default=0)


def most_live(lives: Sequence[Life]) -> int:
    """The largest sum of the sizes that are live together: no placing needs less."""
    return max((sum(other.size for other in lives if other.first <= life.first <= other.last) for life in lives), default=0)
