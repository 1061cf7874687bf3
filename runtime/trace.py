"""`SpikeTrace`: a recording of events, sparse in memory and in its file.

The file is an ordinary `.npz` of plain arrays (nothing is ever pickled): `header` is JSON in UTF-8, `counts` the number of events
of each sample, and the events follow in blocks of at most `BLOCK`, so that a part can be read without the rest. Every event has a
key, (sample · (duration − first) + time − first) · size + address, and keys never fall. Block k is `e{k}`, in the
smaller of two codings:

    delta   the differences of successive keys, from the block's first key on, as base-128 numbers: seven bits a byte,
            the lowest first, the top bit set on all but the last byte of a number
    bits    one bit for each key from the block's first to its last, the highest bit of a byte first; only where no key occurs twice

Where keys would not fit in 63 bits the coding is `plain`: rows of sample, time and address. Payloads, if any, are `p{k}`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

VERSION: Final = 1
#: The most events in one block of a file.
BLOCK: Final = 1 << 17
#: `to_dense` makes no array of more elements than this.
LARGEST_DENSE: Final = 1 << 34
_KEYS: Final = 1 << 63


class TraceError(ValueError):
    """A trace, or a file of events, is not what it should be; the message says which and why."""


def _whole(name: str, values: Any) -> Array:
    array = np.asarray(values)
    if array.size == 0 and array.dtype.kind == "f":  # np.asarray([])
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TraceError(f"{name} are a list of integers, not {array.ndim}-dimensional {array.dtype}")
    if array.dtype == np.uint64 and array.size and int(array.max()) >= _KEYS:
        raise TraceError(f"{name} reach {int(array.max())}, beyond 63 bits")
    return array


def _size(shape: Sequence[int]) -> int:
    size = 1
    for extent in shape:
        size *= int(extent)
    return size


class SpikeTrace:
    """Events of a batch of samples: who fired when.

    times: integers from 0 to duration − 1, rising within a sample; steps, or multiples of `tick` microseconds where that is given.
    addresses: the flat index of each event within `shape`, which is (N,), or (C, H, W) with C the polarities: 0 off, 1 on.
    payload: an integer an event (a graded spike, a count) of at most 63 bits; without it each counts 1.
    offsets: events of sample i are offsets[i] to offsets[i + 1]; by default there is one sample.
    duration: how many units of time each sample lasts; by default up to the last event.
    Events of one sample are kept in the order of time, those of one time in the order of address: two traces with the same
    events are equal. Nothing changes a trace after it was made; every method gives a new one.
    """

    def __init__(
        self,
        times: Any,
        addresses: Any,
        shape: Sequence[int],
        *,
        payload: Any = None,
        offsets: Any = None,
        duration: int | None = None,
        tick: int | None = None,
    ) -> None:
        t = _whole("times", times).astype(np.int64)
        a = _whole("addresses", addresses).astype(np.int64)
        p = None if payload is None else _whole("payloads", payload).copy()
        limits = np.array([0, len(t)], np.int64) if offsets is None else _whole("offsets", offsets).astype(np.int64)
        last = int(t.max()) + 1 if len(t) else 0
        self._describe(shape, last if duration is None else duration, tick)
        if len(a) != len(t) or (p is not None and len(p) != len(t)):
            sizes = f"{len(t)} times, {len(a)} addresses" + ("" if p is None else f", {len(p)} payloads")
            raise TraceError(f"events differ in number: {sizes}")
        if len(limits) < 1 or limits[0] != 0 or limits[-1] != len(t) or (np.diff(limits) < 0).any():
            raise TraceError(f"offsets rise from 0 to the number of events, {len(t)}")
        if len(t) and (int(t.min()) < 0 or last > self.duration):
            bad = int(np.flatnonzero((t < 0) | (t >= self.duration))[0])
            raise TraceError(f"event {bad} has time {int(t[bad])}, not 0 to {self.duration - 1}")
        if len(a) and (int(a.min()) < 0 or int(a.max()) >= self.size):
            bad = int(np.flatnonzero((a < 0) | (a >= self.size))[0])
            raise TraceError(f"event {bad} has address {int(a[bad])}, not 0 to {self.size - 1} as the shape {self.shape} has")
        sample = np.repeat(np.arange(len(limits) - 1), np.diff(limits))
        same = np.diff(sample) == 0
        falls = (np.diff(t) < 0) | ((np.diff(t) == 0) & (np.diff(a) < 0))
        if (falls & same).any():
            order = _order(sample, t, a, self.size)
            t, a = t[order], a[order]
            p = None if p is None else p[order]
        self._offsets = limits
        self._events: tuple[Ints, Ints, Array | None] | None = (t, a, p)
        self._payload_type = None if p is None else p.dtype
        self._file: _File | None = None
        self._freeze()

    def _describe(self, shape: Sequence[int], duration: int, tick: int | None) -> None:
        self.shape: tuple[int, ...] = tuple(int(extent) for extent in shape)
        if not self.shape or min(self.shape) < 1 or self.size >= _KEYS:
            raise TraceError(f"a shape has extents of at least 1, not {self.shape}")
        self.duration = int(duration)
        if not 0 <= self.duration < _KEYS:
            raise TraceError(f"a duration is 0 or more, not {duration}")
        self.tick = None if tick is None else int(tick)
        if tick is not None and (self.tick != tick or tick < 1):
            raise TraceError(f"a tick is a whole number of microseconds, not {tick}")

    def _freeze(self) -> None:
        for array in (self._offsets, *(self._events or ())):
            if array is not None:
                array.flags.writeable = False

    @classmethod
    def _lazy(cls, file: _File, offsets: Ints) -> SpikeTrace:
        trace = cls.__new__(cls)
        trace._describe(file.shape, file.duration, file.tick)
        trace._offsets, trace._events, trace._file, trace._payload_type = offsets, None, file, file.payload
        trace._freeze()
        return trace

    # ----------------------------------------------------------------------------------------------------- what is in it

    @property
    def size(self) -> int:
        """The number of addresses."""
        return _size(self.shape)

    @property
    def batch(self) -> int:
        """The number of samples."""
        return len(self._offsets) - 1

    @property
    def offsets(self) -> Ints:
        """Where the events of each sample begin, and the number of all at the end."""
        return self._offsets

    @property
    def counts(self) -> Ints:
        """The number of events of each sample."""
        return np.diff(self._offsets)

    @property
    def count(self) -> int:
        """The number of events."""
        return int(self._offsets[-1])

    @property
    def loaded(self) -> bool:
        """Whether the events are in memory: those of a file are read when first asked for."""
        return self._events is not None

    def _load(self) -> tuple[Ints, Ints, Array | None]:
        if self._events is None:
            assert self._file is not None
            self._events = self._file.events(0, self.count)
            self._freeze()
        return self._events

    @property
    def times(self) -> Ints:
        """The time of each event."""
        return self._load()[0]

    @property
    def addresses(self) -> Ints:
        """The flat address of each event."""
        return self._load()[1]

    @property
    def payload(self) -> Array | None:
        """The payload of each event, None where all are 1."""
        return self._load()[2]

    @property
    def samples(self) -> Ints:
        """The sample of each event."""
        return np.repeat(np.arange(self.batch, dtype=np.int64), self.counts)

    def coordinates(self) -> tuple[Ints, ...]:
        """The address of each event along each axis of the shape."""
        return tuple(np.asarray(axis, np.int64) for axis in np.unravel_index(self.addresses, self.shape))

    def __len__(self) -> int:
        return self.batch

    def __iter__(self) -> Iterator[SpikeTrace]:
        return (self[index] for index in range(self.batch))

    def __repr__(self) -> str:
        unit = "steps" if self.tick is None else f"× {self.tick} µs"
        return f"<SpikeTrace: {self.batch} × {self.duration} {unit} of {self.shape}, {self.count} events>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SpikeTrace):
            return NotImplemented
        mine = (self.shape, self.duration, self.tick, self._payload_type, self.batch)
        if mine != (other.shape, other.duration, other.tick, other._payload_type, other.batch):
            return False
        pairs = [(self.offsets, other.offsets), (self.times, other.times), (self.addresses, other.addresses)]
        if self.payload is not None and other.payload is not None:
            pairs.append((self.payload, other.payload))
        return all(np.array_equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]  # mutable arrays inside: not hashable

    def _with(self, keep: Array, addresses: Array, shape: Sequence[int], shift: int = 0, duration: int | None = None) -> SpikeTrace:
        """The events of a mask, at other addresses (one for each event kept)."""
        return SpikeTrace(
            self.times[keep] - shift,
            addresses,
            shape,
            payload=None if self.payload is None else self.payload[keep],
            offsets=np.concatenate(([0], np.cumsum(keep)))[self.offsets],
            duration=self.duration if duration is None else duration,
            tick=self.tick,
        )

    # ---------------------------------------------------------------------------------------------------- dense and back

    @classmethod
    def from_dense(cls, array: Any, *, tick: int | None = None) -> SpikeTrace:
        """The events of (batch, T, *shape): every element that is not 0; a payload is kept where one is not 1."""
        dense = np.asarray(array)
        if dense.dtype.kind == "f" and np.array_equal(dense, np.rint(dense)) and (np.abs(dense) < 2.0**53).all():
            dense = dense.astype(np.int64)
        if dense.dtype.kind not in "biu":
            raise TraceError(f"spikes are whole numbers, not {dense.dtype}")
        if dense.ndim < 3:
            raise TraceError(f"spikes are laid out (batch, T, *shape), not as {dense.shape}")
        batch, steps, *shape = dense.shape
        size = _size(shape)
        flat = dense.reshape(batch, steps, size) if dense.size else np.zeros((batch, steps, size), dense.dtype)
        sample, time, address = np.nonzero(flat)
        values = flat[sample, time, address]
        graded = dense.dtype.kind != "b" and bool((values != 1).any())
        offsets = np.searchsorted(sample, np.arange(batch + 1))
        return cls(time, address, shape, payload=values if graded else None, offsets=offsets, duration=steps, tick=tick)

    def to_dense(self, steps: int | None = None, dtype: npt.DTypeLike | None = None) -> Array:
        """(batch, steps, *shape): the payloads, added up where events coincide. `steps` beyond the duration are empty.

        dtype: uint8 where there are no payloads, else the payloads' own. Raises TraceError for a sum that it does not hold, an
        event that lies beyond `steps` (crop first) and an array beyond LARGEST_DENSE elements (bin first).
        """
        steps = self.duration if steps is None else int(steps)
        wanted = np.dtype(dtype if dtype is not None else self._payload_type or np.uint8)
        total = self.batch * steps * self.size
        if total > LARGEST_DENSE:
            raise TraceError(f"{self!r} has {total} elements when dense: bin it into longer steps or crop it first")
        if self.count and (late := int(self.times.max())) >= steps:
            raise TraceError(f"an event at {late} lies beyond {steps} steps: crop first")
        index = (self.samples * steps + self.times) * self.size + self.addresses
        if self.payload is None and wanted.kind in "bf" and (wanted.kind == "b" or not _repeats(index)):
            dense = np.zeros(total, wanted)
            dense[index] = 1
            return dense.reshape(self.batch, steps, *self.shape)
        first, values = _added(index, self.payload)
        dense = np.zeros(total, wanted)
        dense[index[first]] = _narrow(values, wanted, "events that coincide add up to")
        return dense.reshape(self.batch, steps, *self.shape)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a trace is sparse: its dense form is always a copy")
        return self.to_dense(dtype=dtype)

    # ------------------------------------------------------------------------------------------------------- time, space

    def bin(self, step: int, mode: str = "any") -> SpikeTrace:
        """Steps of `step` units of time, the last one perhaps cut short.

        mode "any": one event where there was one or more. "count": the sum of their payloads, an int32.
        """
        if step < 1 or step != int(step):
            raise TraceError(f"a step is a whole number of units of time, not {step}")
        step = int(step)
        tick = None if self.tick is None else self.tick * step
        return self._merged(self.times // step, self.addresses, self.shape, mode, "count", -(-self.duration // step), tick)

    def downsample(self, factor: int | Sequence[int], mode: str = "any") -> SpikeTrace:
        """Neighbourhoods of `factor` addresses become one, along the last two axes of (C, H, W) or the one of (N,).

        Neighbourhoods at the edge may be smaller. mode, for events that then coincide: "any" keeps one, "sum" adds them up (int32).
        """
        axes = len(self.shape) if len(self.shape) < 3 else len(self.shape) - 1
        factors = [int(factor)] * axes if isinstance(factor, (int, np.integer)) else [int(each) for each in factor]
        if len(factors) != axes or min(factors) < 1:
            raise TraceError(f"down-sampling {self.shape} takes {axes} factors of at least 1, not {factor}")
        every = [1] * (len(self.shape) - axes) + factors
        shape = [-(-extent // by) for extent, by in zip(self.shape, every)]  # noqa: B905  lengths are equal above
        where = tuple(axis // by for axis, by in zip(self.coordinates(), every))  # noqa: B905  # equal lengths by construction
        return self._merged(self.times, _ravel(where, shape), shape, mode, "sum", self.duration, self.tick)

    def _merged(
        self, times: Ints, addresses: Ints, shape: Sequence[int], mode: str, sums: str, duration: int, tick: int | None
    ) -> SpikeTrace:
        if mode not in ("any", sums):
            raise TraceError(f"there is no mode '{mode}': choose any or {sums}")
        samples = self.samples
        order = _order(samples, times, addresses, _size(shape))
        samples, times, addresses = samples[order], times[order], addresses[order]
        new = np.ones(len(order), bool)
        new[1:] = (np.diff(samples) != 0) | (np.diff(times) != 0) | (np.diff(addresses) != 0)
        start = np.flatnonzero(new)
        payload = None
        if mode == sums:
            values = np.ones(len(order), np.int64) if self.payload is None else self.payload[order].astype(np.int64)
            payload = _narrow(_sums(values, start), np.dtype(np.int32), "events add up to")
        offsets = np.searchsorted(samples[start], np.arange(self.batch + 1))
        return SpikeTrace(times[start], addresses[start], shape, payload=payload, offsets=offsets, duration=duration, tick=tick)

    def crop(self, start: int = 0, stop: int | None = None, space: Sequence[tuple[int, int]] | None = None) -> SpikeTrace:
        """Times `start` to before `stop`, `start` becoming 0; along each axis of the shape the addresses low to before high.

        Of one recording in a file only the blocks that hold these times are read.
        """
        stop = self.duration if stop is None else int(stop)
        start = int(start)
        if not 0 <= start <= stop <= self.duration:
            raise TraceError(f"times {start} to {stop} do not lie within 0 to {self.duration}")
        source = self
        if self._events is None and self._file is not None and self.batch == 1:
            low, high = self._file.between(start, stop)
            times, addresses, payload = self._file.events(low, high)
            source = SpikeTrace(times, addresses, self.shape, payload=payload, duration=self.duration, tick=self.tick)
        keep = (source.times >= start) & (source.times < stop)
        if space is None:
            return source._with(keep, source.addresses[keep], self.shape, start, stop - start)
        if len(space) != len(self.shape):
            raise TraceError(f"a crop of {self.shape} takes {len(self.shape)} ranges, not {len(space)}")
        where = source.coordinates()
        for axis, extent, (low, high) in zip(where, self.shape, space):  # noqa: B905  # equal lengths by construction
            if not 0 <= low < high <= extent:
                raise TraceError(f"addresses {low} to {high} do not lie within 0 to {extent}")
            keep = keep & (axis >= low) & (axis < high)
        shape = [high - low for low, high in space]
        moved = _ravel(tuple(axis[keep] - low for axis, (low, _) in zip(where, space)), shape)  # noqa: B905  # equal lengths by construction
        return source._with(keep, moved, shape, start, stop - start)

    def windows(self, length: int) -> SpikeTrace:
        """A recording cut into samples of `length` units of time; a last one that is not full is left out."""
        if length < 1 or length > max(self.duration, 0):
            raise TraceError(f"windows last 1 to {self.duration} units of time, not {length}")
        number = self.duration // length
        keep = self.times < number * length
        sample = self.samples[keep] * number + self.times[keep] // length
        offsets = np.searchsorted(sample, np.arange(self.batch * number + 1))
        payload = None if self.payload is None else self.payload[keep]
        return SpikeTrace(
            self.times[keep] % length,
            self.addresses[keep],
            self.shape,
            payload=payload,
            offsets=offsets,
            duration=length,
            tick=self.tick,
        )

    def polarity(self, mode: str) -> SpikeTrace:
        """Of (2, H, W): "both" channels as they are; "merge" into one channel; the "on" or the "off" channel alone.

        One channel is (1, H, W). Events merged at the same time and place stay two events: bin afterwards.
        """
        if mode not in ("both", "merge", "on", "off"):
            raise TraceError(f"there is no polarity '{mode}': choose both, merge, on or off")
        if len(self.shape) < 2 or self.shape[0] != 2:
            raise TraceError(f"a polarity is the first of several axes, of extent 2: {self.shape} has none")
        if mode == "both":
            return self
        half = self.size // 2
        channel = self.addresses // half
        keep = np.ones(self.count, bool) if mode == "merge" else channel == (mode == "on")
        return self._with(keep, self.addresses[keep] % half, (1, *self.shape[1:]))

    # ----------------------------------------------------------------------------------------------------------- samples

    def __getitem__(self, index: Any) -> SpikeTrace:
        """Samples: an integer, a slice, a list of integers or a mask; always a trace, of one sample for an integer."""
        chosen = np.arange(self.batch)[index]
        which = np.atleast_1d(chosen)
        low, high = self.offsets[which], self.offsets[which + 1]
        if self._events is None and self._file is not None and (np.diff(which) == 1).all():
            times, addresses, payload = self._file.events(int(low[0]), int(high[-1])) if len(which) else self._file.events(0, 0)
        else:
            spans = [np.arange(a, b) for a, b in zip(low, high)]  # noqa: B905  # equal lengths by construction
            events = np.concatenate(spans) if spans else np.zeros(0, np.int64)
            times, addresses = self.times[events], self.addresses[events]
            payload = None if self.payload is None else self.payload[events]
        offsets = np.concatenate(([0], np.cumsum(high - low)))
        return SpikeTrace(times, addresses, self.shape, payload=payload, offsets=offsets, duration=self.duration, tick=self.tick)

    @classmethod
    def concatenate(cls, traces: Sequence[SpikeTrace]) -> SpikeTrace:
        """The samples of several traces of one shape and tick; the duration is the longest."""
        if not traces:
            raise TraceError("there are no traces to concatenate")
        first = traces[0]
        for trace in traces:
            if (trace.shape, trace.tick) != (first.shape, first.tick):
                raise TraceError(f"traces differ: {trace!r} and {first!r}")
        payload = None
        if any(trace.payload is not None for trace in traces):
            payload = np.concatenate([np.ones(t.count, np.int8) if t.payload is None else t.payload for t in traces])
            if payload.dtype.kind == "f":  # int64 with uint64
                raise TraceError("payloads of int64 and uint64 have no common type")
        return cls(
            np.concatenate([trace.times for trace in traces]),
            np.concatenate([trace.addresses for trace in traces]),
            first.shape,
            payload=payload,
            offsets=np.concatenate(([0], np.cumsum(np.concatenate([trace.counts for trace in traces])))),
            duration=max(trace.duration for trace in traces),
            tick=first.tick,
        )

    # -------------------------------------------------------------------------------------------------------------- file

    @property
    def coded_bytes(self) -> int:
        """The bytes of the events as the file stores them: blocks, payloads and counts, without the container around them."""
        if self._file is not None:
            return self._file.coded_bytes
        header, _ = _encode(self)
        return int(header["bytes"])

    @property
    def ratio(self) -> float:
        """How many times smaller the stored form is than the smaller of the two plain ones.

        Those are the dense array of one byte (or one payload) an element, and the list of events at 8 bytes a time, 4 (beyond
        2^32 addresses 8) an address, and the payload.
        """
        item = 0 if self._payload_type is None else self._payload_type.itemsize
        dense = self.batch * self.duration * self.size * max(item, 1)
        listed = self.count * (8 + (4 if self.size <= 1 << 32 else 8) + item)
        return min(dense, listed) / max(self.coded_bytes, 1)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the `.npz`, in one step: an older file stays until the new one is complete. The same trace gives the same bytes."""
        path = Path(path)
        header, arrays = _encode(self)
        text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
        handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, header=text, **arrays)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SpikeTrace:
        """The trace of a file; its events are read and checked when they are first asked for.

        Raises TraceError, with the file's name, here or then, for a file that is damaged or something else.
        """
        path = Path(path)
        file, counts = _open(path)
        return cls._lazy(file, np.concatenate((np.zeros(1, np.int64), np.cumsum(counts))))


# ---------------------------------------------------------------------------------------------------------------- arithmetic


def _ravel(where: tuple[Array, ...], shape: Sequence[int]) -> Ints:
    return np.asarray(np.ravel_multi_index(where, tuple(shape)), np.int64)


def _order(samples: Ints, times: Ints, addresses: Ints, size: int) -> Ints:
    """The stable order by sample, time, address."""
    if not len(times):
        return np.zeros(0, np.int64)
    first = int(times.min())
    span = int(times.max()) - first + 1
    if (int(samples.max()) + 1) * span * size >= _KEYS:
        return np.lexsort((addresses, times, samples))
    return np.argsort((samples * span + (times - first)) * size + addresses, kind="stable")


def _repeats(index: Ints) -> bool:
    return bool((np.diff(index) == 0).any())  # traces are sorted


def _added(index: Ints, payload: Array | None) -> tuple[Ints, Array]:
    """Where each run of equal indices begins, and the sum of its payloads."""
    start = np.flatnonzero(np.concatenate((np.ones(min(len(index), 1), bool), np.diff(index) != 0)))
    if payload is not None and len(start) == len(index):
        return start, payload
    return start, _sums(np.ones(len(index), np.int64) if payload is None else payload.astype(np.int64), start)


def _sums(values: Ints, start: Ints) -> Ints:
    if not len(start):
        return values[:0]
    if float(np.abs(values.astype(np.float64)).sum()) >= _KEYS:
        raise TraceError("payloads add up beyond 63 bits")
    return np.asarray(np.add.reduceat(values, start), np.int64)


def _narrow(values: Array, dtype: np.dtype[Any], what: str) -> Array:
    if dtype.kind == "f":
        narrowed = values.astype(dtype)
        wrong = narrowed.astype(np.float64) != values
    elif dtype.kind == "b":
        return np.asarray(values != 0)
    elif dtype.kind in "iu":
        info = np.iinfo(dtype)
        wrong = (
            np.array([not info.min <= v <= info.max for v in (values.min(), values.max())]) if len(values) else np.zeros(0, bool)
        )
        wrong = (values < info.min) | (values > info.max) if wrong.any() else wrong[:0]
        narrowed = values.astype(dtype)
    else:
        raise TraceError(f"spikes are numbers, not {dtype}")
    if wrong.any():
        raise TraceError(f"{what} {int(values[int(np.flatnonzero(wrong)[0])])}, which {dtype} does not hold")
    return narrowed


# -------------------------------------------------------------------------------------------------------------------- codings


def _varint(values: Ints) -> npt.NDArray[np.uint8]:
    """Base-128 numbers, the lowest seven bits first, the top bit set on all but the last byte of a number."""
    rest = values.astype(np.uint64)
    length = np.ones(len(rest), np.int64)
    for power in range(7, 64, 7):
        length += rest >> np.uint64(power) != 0
    start = np.cumsum(length) - length
    out = np.zeros(int(length.sum()), np.uint8)
    for position in range(int(length.max()) if len(length) else 0):
        has = length > position
        byte = (rest[has] >> np.uint64(7 * position)) & np.uint64(0x7F)
        byte |= np.where(length[has] > position + 1, np.uint64(0x80), np.uint64(0))
        out[start[has] + position] = byte.astype(np.uint8)
    return out


def _unvarint(data: npt.NDArray[np.uint8], count: int) -> Ints:
    last = np.flatnonzero(data < 0x80)
    if len(last) != count or (len(data) and data[-1] >= 0x80):
        raise TraceError(f"a block holds {len(last)} numbers instead of {count}")
    start = np.concatenate((np.zeros(min(count, 1), np.int64), last[:-1] + 1))
    length = last - start + 1
    if count and int(length.max()) > 9:
        raise TraceError("a number in a block is longer than 63 bits")
    out = np.zeros(count, np.int64)
    for position in range(int(length.max()) if count else 0):
        has = length > position
        out[has] |= (data[start[has] + position].astype(np.int64) & 0x7F) << (7 * position)
    return out


def _smallest(values: Array) -> Array:
    """The same integers in the smallest type that holds them."""
    if not len(values):
        return values.astype(np.int8)
    low, high = int(values.min()), int(values.max())
    for kind in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64):
        info = np.iinfo(kind)
        if info.min <= low and high <= info.max:
            return values.astype(kind)
    return values


def _encode(trace: SpikeTrace) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header and the arrays of the file."""
    first = int(trace.times.min()) if trace.count else 0
    span = trace.duration - first
    fits = trace.batch * span * trace.size < _KEYS
    samples = trace.samples
    keys = (samples * span + (trace.times - first)) * trace.size + trace.addresses if fits else samples
    arrays: dict[str, Array] = {"counts": _smallest(trace.counts)}
    blocks = []
    for number, low in enumerate(range(0, trace.count, BLOCK)):
        part = slice(low, min(low + BLOCK, trace.count))
        here = keys[part]
        key = int(here[0])
        if fits:
            steps = np.diff(here)
            data, coding = _varint(steps), "delta"
            reach = int(here[-1]) - key + 1
            if -(-reach // 8) < len(data) and (len(steps) == 0 or int(steps.min()) > 0):
                bits = np.zeros(reach, np.uint8)
                bits[here - key] = 1
                data, coding = np.packbits(bits), "bits"
            arrays[f"e{number}"] = data
        else:
            coding = "plain"
            arrays[f"e{number}"] = np.stack((samples[part], trace.times[part], trace.addresses[part]))
        if trace.payload is not None:
            arrays[f"p{number}"] = _smallest(trace.payload[part])
        blocks.append([len(here), key, int(trace.times[low]), coding])
    header = {
        "spiketrace": VERSION,
        "shape": list(trace.shape),
        "duration": trace.duration,
        "tick": trace.tick,
        "first": first,
        "events": trace.count,
        "payload": None if trace._payload_type is None else trace._payload_type.name,
        "blocks": blocks,
        "bytes": sum(array.nbytes for array in arrays.values()),
    }
    return header, arrays


# ----------------------------------------------------------------------------------------------------------------------- file


@dataclass
class _File:
    """An opened file: its header, checked; the events are still in it. blocks: events, first key, first time, coding."""

    path: Path
    shape: tuple[int, ...]
    duration: int
    tick: int | None
    first: int
    payload: np.dtype[Any] | None
    blocks: list[tuple[int, int, int, str]]
    counts: Ints
    coded_bytes: int

    def between(self, start: int, stop: int) -> tuple[int, int]:
        """Events, by number, among which all of times start to stop lie: whole blocks of a file of one sample."""
        ends = np.cumsum([0] + [block[0] for block in self.blocks])
        begins = [block[2] for block in self.blocks]
        low = max(int(np.searchsorted(begins, start, side="left")) - 1, 0)
        high = int(np.searchsorted(begins, stop, side="left"))
        return int(ends[low]), int(ends[max(low, high)])

    def events(self, low: int, high: int) -> tuple[Ints, Ints, Array | None]:
        """Times, addresses and payloads of the events low to high."""
        parts = []
        begin = 0
        wanted: list[tuple[int, int, int]] = []
        for number, (count, *_) in enumerate(self.blocks):
            if begin < high and begin + count > low:
                wanted.append((number, max(low - begin, 0), min(high - begin, count)))
            begin += count
        starts = np.cumsum([0] + [block[0] for block in self.blocks])
        limits = np.concatenate(([0], np.cumsum(self.counts)))
        try:
            with np.load(self.path, allow_pickle=False) as data:
                for number, a, b in wanted:
                    decoded = self._block(data, number, limits, int(starts[number]))
                    parts.append(tuple(None if each is None else each[a:b] for each in decoded))
        except TraceError as error:
            raise TraceError(f"{self.path}: damaged: {error}") from None
        except Exception as error:  # a damaged archive raises whatever zip, zlib and NumPy stumble over
            raise TraceError(f"{self.path}: damaged, or no longer there: {error}") from None
        empty = np.zeros(0, np.int64)
        times = np.concatenate([empty, *(part[0] for part in parts)])
        addresses = np.concatenate([empty, *(part[1] for part in parts)])
        if self.payload is None:
            return times, addresses, None
        payload = np.concatenate([np.zeros(0, self.payload), *(part[2] for part in parts)])
        return times, addresses, payload

    def _block(self, data: Any, number: int, limits: Ints, start: int) -> tuple[Ints, Ints, Array | None]:
        count, key, _, coding = self.blocks[number]
        size, span = _size(self.shape), self.duration - self.first
        raw = data[f"e{number}"]
        if coding == "plain":
            if raw.shape != (3, count) or raw.dtype != np.int64:
                raise TraceError(f"block {number} is not three rows of {count} integers")
            samples, times, addresses = raw
        else:
            if raw.ndim != 1 or raw.dtype != np.uint8:
                raise TraceError(f"block {number} is not a row of bytes")
            if coding == "delta":
                steps = _unvarint(raw, count - 1)
                if float(key) + float(steps.sum(dtype=np.float64)) >= _KEYS:
                    raise TraceError(f"block {number} leads beyond the last event")
                keys = key + np.concatenate(([0], np.cumsum(steps)))
            else:
                keys = key + np.flatnonzero(np.unpackbits(raw))
                if len(keys) != count:
                    raise TraceError(f"block {number} holds {len(keys)} events instead of {count}")
            addresses = keys % size
            samples, times = np.divmod(keys // size, max(span, 1))
            times = times + self.first
        own = np.searchsorted(limits, np.arange(start, start + count), side="right") - 1
        if not np.array_equal(samples, own):
            raise TraceError(f"block {number} holds events of other samples than `counts` says")
        bad = (times < 0) | (times >= self.duration) | (addresses < 0) | (addresses >= size)
        if bad.any():
            raise TraceError(f"block {number} holds an event out of range")
        if self.payload is None:
            return times, addresses, None
        values = data[f"p{number}"]
        if values.shape != (count,) or values.dtype.kind not in "iu":
            raise TraceError(f"the payloads of block {number} are not {count} integers")
        return times, addresses, _narrow(values, self.payload, "a payload is")


def _open(path: Path) -> tuple[_File, Ints]:
    try:
        with np.load(path, allow_pickle=False) as data:
            if "header" not in data.files or "counts" not in data.files:
                raise TraceError(f"{path}: no spike trace: it holds {', '.join(data.files) or 'nothing'}")
            header = json.loads(bytes(data["header"]).decode())
            counts = data["counts"]
            names = set(data.files)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except TraceError:
        raise
    except Exception as error:  # a damaged archive raises whatever zip, zlib and NumPy stumble over
        raise TraceError(f"{path}: not a readable trace: {error}") from None
    try:
        return _checked(path, header, counts, names)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise TraceError(f"{path}: damaged: its header does not fit ({type(error).__name__}: {error})") from None


def _checked(path: Path, header: dict[str, Any], counts: Array, names: set[str]) -> tuple[_File, Ints]:
    if header["spiketrace"] != VERSION:
        raise TraceError(f"a trace of version {header['spiketrace']}; this reads version {VERSION}")
    payload = None if header["payload"] is None else np.dtype(header["payload"])
    blocks = [(int(count), int(key), int(time), str(coding)) for count, key, time, coding in header["blocks"]]
    if payload is not None and payload.kind not in "iu":
        raise TraceError(f"damaged: payloads are integers, not {payload}")
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise TraceError("damaged: `counts` is not a list of numbers of events")
    total = int(header["events"])
    if sum(block[0] for block in blocks) != total or int(counts.sum(dtype=np.float64)) != total:
        raise TraceError(f"damaged: blocks and samples do not add up to {total} events")
    for number, (count, key, time, coding) in enumerate(blocks):
        needed = {f"e{number}"} | ({f"p{number}"} if payload is not None else set())
        if coding not in ("delta", "bits", "plain") or count < 1 or not 0 <= key < _KEYS or time < 0 or not needed <= names:
            raise TraceError(f"damaged: block {number} is missing or not described")
    shape = tuple(int(extent) for extent in header["shape"])
    counts = counts.astype(np.int64)
    file = _File(
        path, shape, int(header["duration"]), header["tick"], int(header["first"]), payload, blocks, counts, int(header["bytes"])
    )
    if not 0 <= file.first <= file.duration:
        raise TraceError("damaged: it begins after its end")
    if not shape or min(shape) < 1:
        raise TraceError(f"damaged: a shape has extents of at least 1, not {shape}")
    return file, counts
