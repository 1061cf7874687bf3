"""Convolutions in groups, depthwise ones, and ones with dilation: the tables of spk_convgroup.h, and which of its two ways to take.

By taps, the map lies channels last and every tap is one run over the outputs of a group. By planes, each output channel is a map
of its own and every row of the kernel is one run over neighbouring places. With one output channel a group, or few, planes take
fewer additions; what falls off an edge would then land in the next row, so that there are weights for every way to be cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from spikec.ir.ops import Conv
from spikec.ir.types import Array

#: Elements of the shortest vector.
_SHORT: Final = 4
#: Elements that the weights of planes may take: so many, or a multiple of the weights themselves.
_ROOM: Final = 1 << 14
_GROWTH: Final = 128


def two(axes: Sequence[int], least: int = 1) -> tuple[int, int]:
    """Height and width; of one axis of space the height is `least`."""
    return (least, axes[0]) if len(axes) == 1 else (axes[0], axes[1])


@dataclass(frozen=True)
class Axis:
    """What inputs reach along an axis. An input reaches at most `taps` outputs, `apart` from each other, the lowest at `first`.

    tap (inputs, taps): by which tap of the kernel, -1 where by none. inside: whether that output is there.
    """

    first: Array
    apart: int
    tap: Array
    inside: Array
    size: int

    @classmethod
    def of(cls, inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
        """Those of an axis of a convolution: input i reaches output (i + padding - k * dilation) / stride by tap k."""
        common = math.gcd(stride, dilation)
        step, apart = stride // common, dilation // common
        taps = -(-kernel // step)
        at = np.arange(inputs) + padding
        # The least tap, in whole kernels or not, that a place is reached by; a place between the outputs has none.
        meets = (np.arange(step) * dilation - at[:, None]) % stride == 0
        least = meets.argmax(axis=1)
        tap = least[:, None] + step * np.arange(taps)[::-1]
        first = (at - tap[:, 0] * dilation) // stride
        tap = np.where(meets.any(axis=1)[:, None] & (tap < kernel), tap, -1)
        place = first[:, None] + apart * np.arange(taps)
        return cls(first, apart, tap, (place >= 0) & (place < outputs) & (tap >= 0), outputs)

    @property
    def taps(self) -> int:
        """The most outputs that an input reaches."""
        return int(self.tap.shape[1])

    @property
    def margins(self) -> tuple[int, int]:
        """How far it reaches beyond the map, before and behind."""
        last = int(self.first.max()) + (self.taps - 1) * self.apart
        return max(-int(self.first.min()), 0), max(last - self.size + 1, 0)


@dataclass(frozen=True)
class Grouped:
    """A convolution over maps of these shapes: (channels, height, width). vector: bytes of a vector, 0 where there is none."""

    part: Conv
    into: tuple[int, ...]
    out: tuple[int, ...]
    vector: int

    @cached_property
    def axes(self) -> tuple[Axis, Axis]:
        """Height and width."""
        part = self.part
        sizes = (
            two(self.into[1:]),
            two(self.out[1:]),
            two(part.weight.shape[2:]),
            two(part.stride),
            two(part.padding, 0),
            two(part.dilation),
        )
        height, width = (Axis.of(*each) for each in zip(*sizes, strict=True))
        return height, width

    @property
    def outputs(self) -> int:
        """Output channels of a group."""
        return self.out[0] // self.part.groups

    def run(self, planes: bool) -> int:
        """Elements that are added at once: what there is, filled up to whole vectors."""
        length = (self.axes[1].taps - 1) * self.axes[1].apart + 1 if planes else self.outputs
        return -(-length // self.unit(length)) * self.unit(length)

    def unit(self, length: int) -> int:
        """Elements of the vectors that so many are added in."""
        lanes = self.vector // 2
        return 1 if length == 1 or lanes == 0 else max(min(lanes, 1 << (length - 1).bit_length()), _SHORT)

    def additions(self, planes: bool) -> int:
        """Vectors that an event adds."""
        height, width = self.axes
        run = self.run(planes)
        return height.taps * (self.outputs if planes else width.taps) * (run // self.unit(run))

    def variants(self, planes: bool) -> list[tuple[Array, Array]]:
        """For each axis the different sets of taps, and which of them each input has."""
        return [
            np.unique(np.where(axis.inside, axis.tap, -1) if planes else axis.tap, axis=0, return_inverse=True)
            for axis in self.axes
        ]

    def fits(self, planes: bool) -> bool:
        """Whether the numbers of the table do, and the weights do not grow without measure."""
        height, width = self.axes
        variants = math.prod(len(found) for found, _ in self.variants(planes))
        weights = variants * height.taps * (self.outputs if planes else width.taps) * self.run(planes) * self.into[0]
        small = weights <= max(_ROOM, _GROWTH * self.part.weight.size)
        return small and variants <= 256 and height.taps * width.taps <= 255

    @cached_property
    def planes(self) -> bool:
        """Whether it is quicker by planes than by taps. Neighbouring places overlap in part, and a processor has to wait for what
        was just stored in parts: only half as many vectors are less for sure (`make bench-kernels`)."""
        return self.fits(True) and 2 * self.additions(True) < self.additions(False)

    def room(self) -> tuple[int, int]:
        """Elements that planes need before the first and behind the last."""
        height, width = self.axes
        row = width.size
        before = -(int(height.first.min()) * row + int(width.first.min()))
        last = (int(height.first.max()) + (height.taps - 1) * height.apart) * row + int(width.first.max()) + self.run(planes=True)
        return max(before, 0), max(last - height.size * row, 0)

    def where(self, planes: bool, base: int, row: int) -> Array:
        """For every place of the input: outputs reached, which weights, and where the first of them lands (spk_convgroup.h).
        `row`: places from one row to the next."""
        height, width = self.axes
        (_, down), (kinds, across) = self.variants(planes)
        reach = height.inside.sum(axis=1)[:, None] * width.inside.sum(axis=1)
        lands = base + height.first[:, None] * row + width.first
        found: Array = lands << 16 | (down.reshape(-1)[:, None] * len(kinds) + across.reshape(-1)) << 8 | reach
        return found

    def weights(self, weight: Array, planes: bool) -> Array:
        """(variant, in, ...) runs in the order in which they are added: out, row and place by planes, else row, tap and out."""
        part, (height, width) = self.part, self.variants(planes)
        whole = weight.reshape(*weight.shape[:2], *two(weight.shape[2:]))
        taps = np.pad(whole, ((0, 0), (0, 0), (0, 1), (0, 1)))  # tap -1 is zero
        taps = taps[:, :, height[0]][..., width[0]]  # (out, in of group, variant, row, variant, tap)
        taps = taps.reshape(part.groups, self.outputs, *taps.shape[1:])
        if planes:
            apart = self.axes[1].apart
            spread = np.zeros((*taps.shape[:-1], self.run(planes=True)), taps.dtype)
            spread[..., : (taps.shape[-1] - 1) * apart + 1 : apart] = taps
            return spread.transpose(3, 5, 0, 2, 1, 4, 6)
        found = taps.transpose(3, 5, 0, 2, 4, 6, 1)
        return np.pad(found, (*((0, 0),) * 6, (0, self.run(planes=False) - self.outputs)))
