"""Recordings of event cameras and other event sensors, in the formats in which they are published.

`read_events` reads any of them, `iter_events` the same in pieces, for a recording that is longer than memory:

    nmnist   .bin of N-MNIST and N-Caltech101: 5 bytes an event
    dat      Prophesee .dat, version 2: 8 bytes an event
    raw      Prophesee .raw: EVT 2.0 and EVT 3.0
    aedat4   AEDAT4 (needs the package aedat)
    hdf5     spikes/times in seconds and spikes/units, as SHD and SSC have them (needs h5py)
    stmnist  ST-MNIST's MATLAB file (needs scipy)
    npy      a structured array with the fields t, x, p and perhaps y, as tonic has them
    npz      `SpikeTrace.save`

A camera's events are (2, H, W): polarity off and on, row, column; audio's are (N,). Times are microseconds as the file has them,
unless `rebase` makes the first one 0. Most files do not say how large the sensor is; then `shape` has to, or shape="fit" takes the
largest address for it. A file that is damaged, cut short or something else raises TraceError and
`read_events` gives nothing of it.
"""

from __future__ import annotations

import importlib
import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .trace import SpikeTrace, TraceError
from .trial import hdf5_trial

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Shape = Sequence[int] | Literal["fit"] | None

FORMATS: Final = ("nmnist", "dat", "raw", "aedat4", "hdf5", "stmnist", "npy", "npz")
#: Words or events that `iter_events` decodes at a time.
CHUNK: Final = 1 << 20


class _Events(NamedTuple):
    """Decoded events; y and p are None for a row of units without polarity."""

    t: Ints
    x: Ints
    y: Ints | None
    p: Ints | None


class _Source(NamedTuple):
    """An opened file: the sensor's shape if the file says it, and what decodes it piece by piece."""

    shape: tuple[int, ...] | None
    chunks: Callable[[int], Iterator[_Events]]
    hint: str = ""


def read_events(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    shape: Shape = None,
    start: int = 0,
    stop: int | None = None,
    rebase: bool = False,
    outside: str = "error",
) -> SpikeTrace:
    """The events of a file as a trace in microseconds; of an HDF5 file all samples.

    format: one of FORMATS; by default what the file's first bytes say, or its name. shape: (2, H, W), (1, H, W) for both polarities
    merged, (N,), or "fit". start, stop: keep the times start to before stop; start becomes 0. rebase: the first event is at 0, and
    start and stop count from it (AEDAT4, whose times are dates, always). outside: "drop" leaves out events beyond the shape,
    which by default are an error. Only what is kept is held in memory.
    """
    path = Path(path)
    kind = format or _sniff(path)
    if outside not in ("error", "drop"):
        raise TraceError(f"outside is error or drop, not {outside!r}")
    if stop is not None and not 0 <= start <= stop:
        raise TraceError(f"times {start} to {stop} are no span")
    if kind == "npz":
        trace = SpikeTrace.load(path)
        if shape not in (None, "fit") and tuple(shape or ()) != trace.shape:
            raise TraceError(f"{path}: holds events of {trace.shape}, not {shape}")
        return trace if start == 0 and stop is None else trace.crop(start, stop)
    if kind == "hdf5":
        trace = read_hdf5(path, shape=shape, outside=outside)
        return trace if start == 0 and stop is None else trace.crop(start, stop)
    parts = []
    source = _open(path, kind)
    origin: int | None = None
    for events in source.chunks(CHUNK):
        t = events.t
        if len(t) and origin is None:
            origin = int(t.min()) if rebase or kind == "aedat4" else 0
        keep = t - (origin or 0) >= start
        if stop is not None:
            keep &= t - (origin or 0) < stop
        parts.append(_Events(*(None if field is None else field[keep] for field in events)))  # type: ignore[arg-type]  # its fields
    found = _joined(parts)
    shift = start + (origin or 0)
    duration = None if stop is None else stop - start
    return _trace(path, found._replace(t=found.t - shift), _extent(path, source, shape, found), duration, outside)


def iter_events(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    shape: Shape = None,
    chunk: int = CHUNK,
    outside: str = "error",
) -> Iterator[SpikeTrace]:
    """The events of a file in pieces of about `chunk` events, in the file's order and with its times.

    nmnist, dat and raw files are mapped and never held as a whole. Each piece lasts up to its own last event;
    shape="fit" is refused. A file that is cut short is refused at once; damage further on when it is reached.
    """
    path = Path(path)
    kind = format or _sniff(path)
    if shape == "fit":
        raise TraceError(f"{path}: pieces cannot be fitted, each would have its own shape: give the sensor's")
    if chunk < 1:
        raise TraceError(f"a chunk is at least 1 event, not {chunk}")
    if kind == "npz":
        whole = SpikeTrace.load(path)
        yield from whole
        return
    if kind == "hdf5":
        for index in range(len(read_labels(path))):
            yield read_hdf5(path, shape=shape, samples=[index], outside=outside)
        return
    source = _open(path, kind)
    for events in source.chunks(chunk):
        if len(events.t):
            yield _trace(path, events, _extent(path, source, shape, events), None, outside)


# --------------------------------------------------------------------------------------------------------- structured arrays


def from_structured(array: Any, *, shape: Shape = None, outside: str = "error") -> SpikeTrace:
    """A structured array with integer fields t (microseconds) and x, and perhaps y and p, as tonic's data sets give them.

    With y and p the shape is (2, H, W) or (1, H, W); without y it is (N,), and p is not looked at. tonic's sensor_size (W, H, 2)
    is shape=(2, H, W).
    """
    return _trace(
        "the array",
        _structured(array, "the array"),
        _extent("the array", None, shape, _structured(array, "the array")),
        None,
        outside,
    )


def to_structured(trace: SpikeTrace) -> Array:
    """The events of one sample as tonic has them: fields x, y, t, p for (C, H, W), and x, t, p = 1 for (N,)."""
    if trace.batch != 1:
        raise TraceError(f"a structured array holds one sample, not {trace.batch}: index the trace first")
    if len(trace.shape) not in (1, 3):
        raise TraceError(f"a structured array holds (N,) or (C, H, W), not {trace.shape}")
    where = trace.coordinates()
    names = ["x", "t", "p"] if len(where) == 1 else ["x", "y", "t", "p"]
    out = np.zeros(trace.count, np.dtype([(name, np.int64) for name in names]))
    out["t"], out["x"] = trace.times, where[-1]
    out["p"] = where[0] if len(where) == 3 else 1
    if len(where) == 3:
        out["y"] = where[1]
    return out


def _structured(array: Any, name: str) -> _Events:
    array = np.asarray(array)
    fields = array.dtype.names or ()
    if array.ndim != 1 or "t" not in fields or "x" not in fields:
        raise TraceError(f"{name}: events are a row of records with the fields t, x, y and p, not {array.dtype} {array.shape}")
    columns: dict[str, Ints] = {}
    for field in ("t", "x", "y", "p"):
        if field in fields:
            column = array[field]
            if column.dtype.kind == "f" and not np.array_equal(column, np.rint(column)):
                raise TraceError(f"{name}: the field {field} holds fractions: times are whole microseconds")
            if column.dtype.kind not in "biuf":
                raise TraceError(f"{name}: the field {field} holds {column.dtype}, not integers")
            columns[field] = column.astype(np.int64)
    polarity = columns.get("p")
    if polarity is not None and "y" in columns:
        polarity = np.where(polarity == -1, 0, polarity)
    return _Events(columns["t"], columns["x"], columns.get("y"), polarity if "y" in columns else None)


# ------------------------------------------------------------------------------------------------------------ several samples


def read_hdf5(
    path: str | os.PathLike[str], *, shape: Shape = None, samples: Sequence[int] | slice | None = None, outside: str = "error"
) -> SpikeTrace:
    """Samples of an HDF5 file with spikes/times (seconds, one row a sample) and spikes/units, as SHD and SSC have them.

    Only the samples asked for are read. Times become the nearest microsecond. shape is (700,) for SHD and SSC.
    """
    path = Path(path)
    with _Hdf5(path) as file:
        times, units = file["spikes/times"], file["spikes/units"]
        if len(times) != len(units):
            raise TraceError(f"{path}: {len(times)} rows of times but {len(units)} of units")
        chosen = np.arange(len(times))[slice(None) if samples is None else samples]
        rows: list[tuple[Ints, Ints]] = []
        for index in np.atleast_1d(chosen):
            seconds, unit = np.asarray(times[index], np.float64), np.asarray(units[index])
            if seconds.shape != unit.shape or seconds.ndim != 1:
                raise TraceError(f"{path}: sample {index} has times {seconds.shape} but units {unit.shape}")
            if unit.dtype.kind not in "iu":
                raise TraceError(f"{path}: units are integers, not {unit.dtype}")
            if not np.isfinite(seconds).all() or (seconds < 0).any() or (seconds > 1e9).any():
                raise TraceError(f"{path}: sample {index} has a time that is negative or not a number of seconds")
            rows.append((np.floor(seconds * 1e6 + 0.5).astype(np.int64), unit.astype(np.int64)))
    empty = np.zeros(0, np.int64)
    found = _Events(
        np.concatenate([empty, *(row[0] for row in rows)]), np.concatenate([empty, *(row[1] for row in rows)]), None, None
    )
    offsets = np.cumsum([0] + [len(row[0]) for row in rows])
    extent = _extent(path, _Source(None, lambda _: iter(()), " ((700,) for SHD and SSC)"), shape, found)
    return _trace(path, found, extent, None, outside, offsets)


def read_labels(path: str | os.PathLike[str]) -> Ints:
    """The labels of such a file, one for each sample."""
    with _Hdf5(Path(path)) as file:
        return np.asarray(file["labels"][:], np.int64)


class _Hdf5:
    """The open file; whatever goes wrong in it becomes a TraceError with the file's name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        h5py = _optional("h5py", self.path)
        if broken := hdf5_trial(h5py, self.path, 1 << 16):
            raise TraceError(f"{self.path}: not a readable HDF5 file ({broken})")
        try:
            self.file = h5py.File(self.path, "r")
        except Exception as error:
            raise TraceError(f"{self.path}: not a readable HDF5 file ({error})") from None
        return self.file

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.file.close()
        if isinstance(error, TraceError) or not isinstance(error, Exception):
            return
        if isinstance(error, KeyError):
            raise TraceError(f"{self.path}: not laid out as SHD, with spikes/times, spikes/units and labels ({error})") from None
        raise TraceError(f"{self.path}: damaged, or laid out differently from SHD ({error})") from None


# -------------------------------------------------------------------------------------------------------------------- opening


def _optional(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise TraceError(f"{path}: reading it needs {module}: pip install 'spikec[events]'") from None


def _sniff(path: Path) -> str:
    """The format, by the file's first bytes; a .bin has none that tell it."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise TraceError(f"{path}: {'no such file' if isinstance(error, FileNotFoundError) else error.strerror}") from None
    if not head:
        raise TraceError(f"{path}: the file is empty")
    for magic, kind in (
        (b"#!AER-DAT4", "aedat4"),
        (b"\x89HDF\r\n\x1a\n", "hdf5"),
        (b"MATLAB 5.0", "stmnist"),
        (b"PK\x03\x04", "npz"),
        (b"\x93NUMPY", "npy"),
    ):
        if head.startswith(magic):
            return kind
    if head.startswith(b"#!AER-DAT"):
        raise TraceError(f"{path}: {head.split()[0].decode('ascii', 'replace')[2:]} is not read, only AEDAT4")
    if head.startswith(b"% "):
        header = head.decode("latin-1")
        return "raw" if re.search(r"^% (evt|format) ", header, re.MULTILINE) or path.suffix.lower() == ".raw" else "dat"
    if path.suffix.lower() == ".bin":
        return "nmnist"
    raise TraceError(f"{path}: not recognised as a file of events: give format= one of {', '.join(FORMATS)}")


def _open(path: Path, kind: str) -> _Source:
    openers = {
        "nmnist": _open_nmnist,
        "dat": _open_dat,
        "raw": _open_raw,
        "aedat4": _open_aedat4,
        "stmnist": _open_stmnist,
        "npy": _open_npy,
    }
    if kind not in openers:
        raise TraceError(f"there is no format '{kind}': choose one of {', '.join(FORMATS)}")
    return openers[kind](path)


def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except ValueError:
        raise TraceError(f"{path}: the file is empty") from None
    except OSError as error:
        raise TraceError(f"{path}: {'no such file' if isinstance(error, FileNotFoundError) else error.strerror}") from None


def _header(data: npt.NDArray[np.uint8], path: Path) -> tuple[dict[str, str], int]:
    """The `% keyword value` lines of a Prophesee file, and where the binary part begins."""
    fields: dict[str, str] = {}
    at = 0
    while bytes(data[at : at + 2]) == b"% ":
        line = bytes(data[at : at + 4096])
        end = line.find(b"\n")
        if end < 0:
            raise TraceError(f"{path}: the header is cut short")
        key, _, value = line[2:end].decode("latin-1").strip().partition(" ")
        fields[key.lower()] = value.strip()
        at += end + 1
        if key == "end":
            break
    return fields, at


def _sensor(path: Path, height: str | None, width: str | None) -> tuple[int, ...] | None:
    if height is None or width is None:
        return None
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise TraceError(f"{path}: the header says width {width!r} and height {height!r}")
    return 2, int(height), int(width)


# ------------------------------------------------------------------------------------------------------------------ formats


def _open_nmnist(path: Path) -> _Source:
    """Five bytes: x; y; polarity (1 bit) and time (23 bits), the high bits first. y = 240 adds 2^13 µs to all later times."""
    data = _mapped(path)
    if len(data) % 5:
        raise TraceError(f"{path}: {len(data)} bytes are no whole number of 5-byte events: the file is cut short or something else")
    rows = data.reshape(-1, 5)

    def chunks(size: int) -> Iterator[_Events]:
        overflow = 0
        for low in range(0, len(rows), size):
            block = rows[low : low + size].astype(np.int64)
            x, y, high, middle, small = block.T
            marks = np.cumsum(y == 240) + overflow
            overflow = int(marks[-1])
            keep = y != 240
            t = ((high & 127) << 16 | middle << 8 | small) + (marks << 13)
            yield _Events(t[keep], x[keep], y[keep], high[keep] >> 7)

    return _Source(None, chunks, " ((2, 34, 34) for N-MNIST, (2, 180, 240) for N-Caltech101)")


def _open_dat(path: Path) -> _Source:
    """A header, two bytes (type and size of an event), then 32 bits of time, 14 of x, 14 of y, 4 of polarity, low bits first."""
    data = _mapped(path)
    fields, at = _header(data, path)
    if at == 0:
        raise TraceError(f"{path}: a .dat file begins with a header of lines in %")
    if fields.get("version") != "2":
        raise TraceError(f"{path}: a .dat file of version {fields.get('version', '1 (none is stated)')}; only version 2 is read")
    if len(data) < at + 2:
        raise TraceError(f"{path}: the file ends after its header")
    kind, size = int(data[at]), int(data[at + 1])
    if kind not in (0, 12) or size != 8:
        raise TraceError(f"{path}: events of type {kind} and {size} bytes; only pixel events (types 0 and 12) of 8 bytes are read")
    body = data[at + 2 :]
    if len(body) % 8:
        raise TraceError(f"{path}: {len(body)} bytes of events are no whole number of 8-byte events: the file is cut short")
    words = body.view("<u4").reshape(-1, 2) if len(body) else np.zeros((0, 2), "<u4")

    def chunks(size: int) -> Iterator[_Events]:
        loops, before = 0, 0
        for low in range(0, len(words), size):
            t, address = words[low : low + size].astype(np.int64).T
            loop = loops + np.cumsum(np.diff(t, prepend=before) < -(1 << 31))  # the 32 bits wrap after 71 minutes
            loops, before = int(loop[-1]), int(t[-1])
            p = address >> 28
            if int(p.max()) > 1:
                raise TraceError(f"{path}: event {low + int(np.argmax(p > 1))} has polarity {int(p.max())}: the file is damaged")
            yield _Events(t + (loop << 32), address & 0x3FFF, address >> 14 & 0x3FFF, p)

    return _Source(_sensor(path, fields.get("height"), fields.get("width")), chunks, " ((2, 100, 120) for N-Cars)")


def _open_raw(path: Path) -> _Source:
    """A header that names the encoding, then words of EVT 2.0 (32 bits) or EVT 3.0 (16 bits)."""
    data = _mapped(path)
    fields, at = _header(data, path)
    name, *options = (part.strip() for part in fields.get("format", "").split(";"))
    said = dict(option.lower().split("=", 1) for option in options if "=" in option)
    version = name.upper().removeprefix("EVT") or fields.get("evt", "")
    if not version:
        raise TraceError(f"{path}: the header of a .raw file names its encoding, as in '% evt 3.0'; this one does not")
    if version not in ("2", "2.0", "3", "3.0"):
        raise TraceError(f"{path}: the encoding EVT {version} is not read, only EVT 2.0 and EVT 3.0")
    geometry = re.fullmatch(r"(\d+)x(\d+)", fields.get("geometry", ""))
    width, height = geometry.groups() if geometry else (said.get("width"), said.get("height"))
    width_bytes = 4 if version[0] == "2" else 2
    order = ">" if "big" in (fields.get("endianness", ""), said.get("endianness")) else "<"
    body = data[at:]
    if len(body) % width_bytes:
        raise TraceError(f"{path}: {len(body)} bytes are no whole number of {width_bytes}-byte words: the file is cut short")
    words = np.frombuffer(body, f"{order}u{width_bytes}")

    def chunks(size: int) -> Iterator[_Events]:
        decoder: _Evt2 | _Evt3 = _Evt2() if width_bytes == 4 else _Evt3()
        for low in range(0, len(words), size):
            try:
                yield decoder.decode(words[low : low + size].astype(np.int64), low)
            except TraceError as error:
                raise TraceError(f"{path}: {error}") from None
        if len(words) and not decoder.clock.known:
            raise TraceError(f"{path}: no word gives the time: the file is damaged or something else")

    return _Source(_sensor(path, height, width), chunks)


def _held(values: Ints, where: npt.NDArray[np.bool_], initial: int) -> Ints:
    """At each word the latest value given by a word of `where`, `initial` before the first."""
    latest = np.maximum.accumulate(np.where(where, np.arange(len(values)), -1))
    return np.where(latest >= 0, values[latest], initial)


class _Clock:
    """The high bits of the time: a fall by half their range or more is a wrap."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.known = False
        self.loops = 0
        self.high = 0

    def follow(self, values: Ints, where: npt.NDArray[np.bool_]) -> Ints:
        """At each word the high bits, wraps included; 0 before the first is known."""
        if not where.any():
            return np.full(len(values), (self.loops << self.bits) + self.high)
        given = values[where]
        fall = np.diff(given, prepend=self.high if self.known else given[0])
        loops = self.loops + np.cumsum(fall <= -(1 << (self.bits - 1)))
        before = (self.loops << self.bits) + self.high
        spread = np.zeros(len(values), np.int64)
        spread[where] = (loops << self.bits) + given
        self.known, self.loops, self.high = True, int(loops[-1]), int(given[-1])
        return _held(spread, where, before)


class _Evt2:
    """EVT 2.0: pixel events with six bits of time, and words with the 28 bits above. What comes before the first is skipped."""

    def __init__(self) -> None:
        self.clock = _Clock(28)

    def decode(self, words: Ints, first: int) -> _Events:
        kind = words >> 28
        _reserved(kind, (0x0, 0x1, 0x8, 0xA, 0xE, 0xF), first)
        had = self.clock.known
        time = kind == 0x8
        high = self.clock.follow(words & 0xFFFFFFF, time)
        pixel = (kind <= 0x1) & (had | np.logical_or.accumulate(time))
        word = words[pixel]
        return _Events(high[pixel] << 6 | word >> 22 & 0x3F, word >> 11 & 0x7FF, word & 0x7FF, kind[pixel])


class _Evt3:
    """EVT 3.0: words that set time, row and base column, and words that make events with what was set last.

    ADDR_X makes one event; VECT_12 and VECT_8 make one for each bit set, from the base column on, which they then move by 12 or 8.
    A new high time sets the low time to 0, a repeated one leaves it. What comes before the first high time is skipped; the
    row is 0 until one is given.
    """

    def __init__(self) -> None:
        self.clock = _Clock(12)
        self.low = 0
        self.row = 0
        self.base = 0
        self.polarity = 0

    def decode(self, words: Ints, first: int) -> _Events:
        kind, payload = words >> 12, words & 0xFFF
        _reserved(kind, (0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0xA, 0xE, 0xF), first)
        if not self.clock.known:
            begin = int(np.argmax(kind == 0x8)) if (kind == 0x8).any() else len(kind)
            kind, payload = kind[begin:], payload[begin:]
        if not len(kind):
            empty = np.zeros(0, np.int64)
            return _Events(empty, empty, empty, empty)
        fresh = not self.clock.known
        before = (self.clock.loops << 12) + self.clock.high
        high = self.clock.follow(payload, kind == 0x8)
        changed = np.diff(high, prepend=high[0] - 1 if fresh else before) != 0
        low = _held(np.where(kind == 0x6, payload, 0), (kind == 0x6) | changed, self.low)
        row = _held(payload & 0x7FF, kind == 0x0, self.row)
        sets = kind == 0x3
        advance = np.where(kind == 0x4, 12, np.where(kind == 0x5, 8, 0))
        moved = np.cumsum(advance) - advance
        base = _held((payload & 0x7FF) - moved, sets, self.base) + moved
        polarity = _held(payload >> 11, sets, self.polarity)
        time = high << 12 | low
        self.low, self.row, self.polarity = int(low[-1]), int(row[-1]), int(polarity[-1])
        self.base = int(base[-1] + advance[-1])
        single = np.flatnonzero(kind == 0x2)
        index, column, sign = [single], [payload[single] & 0x7FF], [payload[single] >> 11]
        for code, length in ((0x4, 12), (0x5, 8)):
            vectors = np.flatnonzero(kind == code)
            for bit in range(length):
                on = vectors[payload[vectors] >> bit & 1 == 1]
                index.append(on)
                column.append(base[on] + bit)
                sign.append(polarity[on])
        where = np.concatenate(index)
        order = np.argsort(where, kind="stable")
        where = where[order]
        return _Events(time[where], np.concatenate(column)[order], row[where], np.concatenate(sign)[order])


def _reserved(kind: Ints, known: tuple[int, ...], first: int) -> None:
    bad = ~np.isin(kind, known)
    if bad.any():
        at = int(np.argmax(bad))
        raise TraceError(f"word {first + at} is of the reserved type {int(kind[at])}: the file is damaged or something else")


def _open_aedat4(path: Path) -> _Source:
    """The first stream of events, decoded by the package aedat."""
    aedat = _optional("aedat", path)
    try:
        streams = aedat.Decoder(str(path)).id_to_stream()
        found = sorted(number for number, stream in streams.items() if stream["type"] == "events")
    except Exception as error:
        raise TraceError(f"{path}: not a readable AEDAT4 file ({error})") from None
    if not found:
        kinds = ", ".join(str(stream["type"]) for stream in streams.values()) or "nothing"
        raise TraceError(f"{path}: holds no stream of events, only {kinds}")
    stream = streams[found[0]]

    def chunks(size: int) -> Iterator[_Events]:
        try:
            packets = aedat.Decoder(str(path))
            for packet in packets:
                if packet["stream_id"] == found[0] and "events" in packet:
                    events = packet["events"]
                    columns = [events[field].astype(np.int64) for field in ("t", "x", "y", "on")]
                    for low in range(0, len(events), size):
                        yield _Events(*(column[low : low + size] for column in columns))
        except Exception as error:
            raise TraceError(f"{path}: damaged ({error})") from None

    return _Source((2, int(stream["height"]), int(stream["width"])), chunks)


def _open_stmnist(path: Path) -> _Source:
    """`spiketrain`: a column an event, −1 or 1 in the row of its taxel (x = row mod 10, y = row div 10), the time in seconds below.

    Times, given to 10 ns, are cut to whole microseconds.
    """
    scipy_io = _optional("scipy.io", path)
    try:
        data = scipy_io.loadmat(str(path))
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except Exception as error:
        raise TraceError(f"{path}: not a readable MATLAB 5 file ({error})") from None
    train = data.get("spiketrain")
    if not isinstance(train, np.ndarray) or train.ndim != 2 or train.shape[0] != 101 or train.dtype.kind not in "iuf":
        held = ", ".join(sorted(name for name in data if not name.startswith("__"))) or "nothing"
        raise TraceError(f"{path}: not laid out as ST-MNIST: no 'spiketrain' of 101 rows, but {held}")
    taxels, seconds = train[:100], train[100].astype(np.float64)
    if not np.isin(taxels, (-1, 0, 1)).all() or not np.isfinite(seconds).all() or (seconds < 0).any():
        raise TraceError(f"{path}: spikes are −1, 0 and 1, and times positive")
    column, taxel = np.nonzero(taxels.T)
    t = np.rint(seconds * 1e8).astype(np.int64)[column] // 100
    events = _Events(t, taxel % 10, taxel // 10, (taxels[taxel, column] > 0).astype(np.int64))
    return _Source((2, 10, 10), lambda size: _pieces(events, size))


def _open_npy(path: Path) -> _Source:
    """A structured array, mapped."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise TraceError(f"{path}: not a readable .npy file ({error})") from None
    size_of = len(array) if array.ndim else 0
    _structured(array[:0] if array.ndim else array, str(path))

    def chunks(size: int) -> Iterator[_Events]:
        for low in range(0, size_of, size):
            yield _structured(array[low : low + size], str(path))

    return _Source(None, chunks, " (tonic's sensor_size (W, H, 2) is (2, H, W))")


# ----------------------------------------------------------------------------------------------------------------- assembling


def _pieces(events: _Events, size: int) -> Iterator[_Events]:
    for low in range(0, len(events.t), size):
        yield _Events(*(None if field is None else field[low : low + size] for field in events))  # type: ignore[arg-type]  # its fields


def _joined(parts: list[_Events]) -> _Events:
    if not parts:
        empty = np.zeros(0, np.int64)
        return _Events(empty, empty, empty, empty)
    t, x = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    if parts[0].y is None or parts[0].p is None:
        y = None if parts[0].y is None else np.concatenate([part.y for part in parts])
        return _Events(t, x, y, None)
    y, p = (np.concatenate([part[k] for part in parts]) for k in (2, 3))
    return _Events(t, x, y, p)


def _extent(path: Any, source: _Source | None, shape: Shape, events: _Events) -> tuple[int, ...]:
    """The shape that was asked for, or the file's, or the one that fits."""
    stated = source.shape if source else None
    if shape is None:
        if stated is None:
            hint = source.hint if source else ""
            raise TraceError(f'{path}: does not say how large the sensor is: give shape={hint}, or shape="fit"')
        return stated
    if shape != "fit":
        wanted = tuple(int(extent) for extent in shape)
        if len(wanted) != (1 if events.y is None else 3) or min(wanted) < 1 or (len(wanted) == 3 and wanted[0] > 2):
            right = "(N,)" if events.y is None else "(2, H, W), or (1, H, W) to merge polarities"
            raise TraceError(f"{path}: its events have the shape {right}, not {wanted}")
        return wanted
    if stated is not None:
        return stated
    if not len(events.t):
        raise TraceError(f"{path}: holds no events to fit a shape to")
    if events.y is None:
        return (int(events.x.max()) + 1,)
    return 2, int(events.y.max()) + 1, int(events.x.max()) + 1


def _trace(
    path: Any, events: _Events, shape: tuple[int, ...], duration: int | None, outside: str, offsets: Ints | None = None
) -> SpikeTrace:
    t, x, y, p = events
    bad = (x < 0) | (x >= shape[-1])
    if y is not None:
        bad |= (y < 0) | (y >= shape[1])
        p = np.ones(len(t), np.int64) if p is None else p
        if ((p < 0) | (p > 1)).any():
            raise TraceError(f"{path}: polarities are 0 and 1 (or −1 and 1), not {int(p[(p < 0) | (p > 1)][0])}")
    if len(t) and int(t.min()) < 0:
        raise TraceError(f"{path}: event {int(np.argmax(t < 0))} has the time {int(t.min())}")
    if bad.any():
        if outside == "error":
            at = int(np.argmax(bad))
            place = f"x = {int(x[at])}" + ("" if y is None else f", y = {int(y[at])}")
            raise TraceError(f"{path}: event {at} lies at {place}, outside of {shape} ({int(bad.sum())} such events)")
        keep = ~bad
        t, x = t[keep], x[keep]
        y, p = (None if y is None else y[keep]), (None if p is None else p[keep])
        if offsets is not None:
            offsets = np.concatenate(([0], np.cumsum(keep)))[offsets]
    if y is None or p is None:
        address = x
    else:
        channel = p if shape[0] == 2 else np.zeros_like(p)
        address = (channel * shape[1] + y) * shape[2] + x
    return SpikeTrace(t, address, shape, offsets=offsets, duration=duration, tick=1)
