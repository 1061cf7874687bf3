"""Traces: exact round trips, every operation against its dense counterpart, damaged files."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spikec.runtime import trace as trace_module
from spikec.runtime.trace import SpikeTrace, TraceError

Array = Any


@st.composite
def denses(draw: Any, dtype: Any = None, dims: int | None = None) -> Array:
    axes = dims or draw(st.sampled_from([1, 3]))
    shape = tuple(draw(st.integers(0 if axis < 2 else 1, 5)) for axis in range(2 + axes))
    kind = np.dtype(dtype or draw(st.sampled_from(["bool", "uint8", "int8", "int32", "int64", "uint64"])))
    if kind.kind == "b":
        values = st.booleans()
    else:
        info = np.iinfo(kind)
        values = st.one_of(st.sampled_from([0, 0, 0, 1]), st.integers(int(info.min), min(int(info.max), 2**63 - 1)))
    return draw(hnp.arrays(kind, shape, elements=values, fill=st.just(kind.type(0))))


@st.composite
def traces(draw: Any, shape: tuple[int, ...] | None = None) -> SpikeTrace:
    """Any trace, coinciding events included."""
    shape = shape or draw(st.sampled_from([(1,), (7,), (2, 3, 5), (1, 4, 1), (2, 300, 400)]))
    duration = draw(st.sampled_from([1, 2, 50, 10**6, 10**15]))
    counts = draw(st.lists(st.integers(0, 12), max_size=5))
    n = sum(counts)
    late = draw(st.booleans())
    low = duration - 1 - min(duration - 1, 40) if late else 0
    times = draw(st.lists(st.integers(low, duration - 1), min_size=n, max_size=n))
    addresses = draw(st.lists(st.integers(0, int(np.prod(shape)) - 1), min_size=n, max_size=n))
    payload = draw(st.none() | st.lists(st.integers(-300, 300), min_size=n, max_size=n))
    return SpikeTrace(
        times,
        addresses,
        shape,
        payload=None if payload is None else np.array(payload, np.int16),
        offsets=np.cumsum([0, *counts]),
        duration=duration,
        tick=draw(st.none() | st.integers(1, 1000)),
    )


def events(trace: SpikeTrace) -> list[tuple[int, ...]]:
    payload = np.ones(trace.count, int) if trace.payload is None else trace.payload
    return sorted(zip(*(map(int, each) for each in (trace.samples, trace.times, trace.addresses, payload)), strict=True))


# --------------------------------------------------------------------------------------------------------------------- dense


@given(denses())
def test_dense_round_trip_is_exact(dense: Array) -> None:
    trace = SpikeTrace.from_dense(dense)
    back = trace.to_dense(dtype=dense.dtype)
    assert back.dtype == dense.dtype and np.array_equal(back, dense)
    assert trace.count == np.count_nonzero(dense)
    assert (trace.batch, trace.duration, trace.shape) == (dense.shape[0], dense.shape[1], dense.shape[2:])
    assert SpikeTrace.from_dense(back) == trace


@given(denses(dtype="uint8"))
def test_whole_reals_are_taken(dense: Array) -> None:
    assert np.array_equal(SpikeTrace.from_dense(dense.astype(np.float32)).to_dense(), dense)
    assert np.array_equal(np.asarray(SpikeTrace.from_dense(dense)), dense)


@given(traces((2, 3, 5)))
def test_coinciding_events_add_up(trace: SpikeTrace) -> None:
    trace = trace if trace.duration <= 50 else trace.bin(-(-trace.duration // 50), "count")
    dense = np.zeros((trace.batch, 60, 30), np.int64)
    for sample, time, address, value in events(trace):
        dense[sample, time, address] += value
    assert np.array_equal(trace.to_dense(steps=60, dtype=np.int64).reshape(dense.shape), dense)
    assert np.array_equal(trace.to_dense(steps=60, dtype=np.float64).reshape(dense.shape), dense)


def test_what_does_not_fit_is_refused() -> None:
    twice = SpikeTrace([0] * 300, [1] * 300, (3,))
    assert twice.to_dense(dtype=bool).tolist() == [[[False, True, False]]]
    with pytest.raises(TraceError, match="add up to 300, which uint8 does not hold"):
        twice.to_dense()
    with pytest.raises(TraceError, match="an event at 9 lies beyond 5 steps: crop first"):
        SpikeTrace([9], [0], (1,)).to_dense(steps=5)
    with pytest.raises(TraceError, match="bin it into longer steps"):
        SpikeTrace([10**9], [0], (2, 480, 640), tick=1).to_dense()
    with pytest.raises(TraceError, match=r"whole numbers, not float64"):
        SpikeTrace.from_dense(np.full((1, 1, 1), 0.5))
    with pytest.raises(TraceError, match=r"\(batch, T, \*shape\), not as \(3, 4\)"):
        SpikeTrace.from_dense(np.ones((3, 4)))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([3], [0], (2,)), {"duration": 3}, "event 0 has time 3, not 0 to 2"),
        (([-1], [0], (2,)), {}, "event 0 has time -1"),
        (([0, 0], [0, 2], (2,)), {}, r"event 1 has address 2, not 0 to 1 as the shape \(2,\) has"),
        (([0], [0, 1], (2,)), {}, "events differ in number: 1 times, 2 addresses"),
        (([0.5], [0], (2,)), {}, "times are a list of integers, not 1-dimensional float64"),
        (([0], [0], ()), {}, "extents of at least 1"),
        (([0], [0], (2,)), {"offsets": [0, 2]}, "offsets rise from 0 to the number of events, 1"),
        (([0], [0], (2,)), {"tick": 0}, "a tick is a whole number of microseconds, not 0"),
    ],
)
def test_what_is_no_trace(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        SpikeTrace(*arguments, **options)


# ---------------------------------------------------------------------------------------------------------------- operations


@given(traces(), st.integers(1, 60), st.sampled_from(["any", "count"]))
def test_bin(trace: SpikeTrace, step: int, mode: str) -> None:
    binned = trace.bin(step, mode)
    sums: dict[tuple[int, int, int], int] = {}
    for sample, time, address, value in events(trace):
        key = (sample, time // step, address)
        sums[key] = sums.get(key, 0) + value
    expected = sorted((*key, value if mode == "count" else 1) for key, value in sums.items())
    assert events(binned) == expected
    assert binned.duration == -(-trace.duration // step)
    assert binned.tick == (None if trace.tick is None else trace.tick * step)


@given(denses(dtype="uint8", dims=3), st.data())
def test_crop_is_slicing(dense: Array, data: Any) -> None:
    trace = SpikeTrace.from_dense(dense)
    start = data.draw(st.integers(0, dense.shape[1]))
    stop = data.draw(st.integers(start, dense.shape[1]))
    space = []
    for extent in dense.shape[2:]:
        low = data.draw(st.integers(0, extent - 1))
        space.append((low, data.draw(st.integers(low + 1, extent))))
    cut = dense[:, start:stop, space[0][0] : space[0][1], space[1][0] : space[1][1], space[2][0] : space[2][1]]
    assert np.array_equal(trace.crop(start, stop, space).to_dense(), cut)
    assert np.array_equal(trace.crop(start, stop).to_dense(), dense[:, start:stop])


@given(denses(dtype="uint8", dims=3), st.integers(1, 4), st.integers(1, 4))
def test_downsample(dense: Array, high: int, wide: int) -> None:
    batch, steps, channels, height, width = dense.shape
    rows, columns = -(-height // high), -(-width // wide)
    padded = np.zeros((batch, steps, channels, rows * high, columns * wide), np.int64)
    padded[..., :height, :width] = dense
    sums = padded.reshape(batch, steps, channels, rows, high, columns, wide).sum(axis=(4, 6))
    trace = SpikeTrace.from_dense(dense)
    assert np.array_equal(trace.downsample((high, wide), "sum").to_dense(), sums)
    assert np.array_equal(trace.downsample((high, wide)).to_dense(), sums > 0)
    if high == wide:
        assert trace.downsample(high) == trace.downsample((high, high))


@given(hnp.arrays(np.uint8, (2, 4, 2, 3, 2), elements=st.integers(0, 1)))
def test_polarity(dense: Array) -> None:
    trace = SpikeTrace.from_dense(dense)
    assert np.array_equal(trace.polarity("on").to_dense(), dense[:, :, 1:])
    assert np.array_equal(trace.polarity("off").to_dense(), dense[:, :, :1])
    assert trace.polarity("both") == trace
    assert np.array_equal(trace.polarity("merge").to_dense(), dense.sum(axis=2, keepdims=True))
    assert np.array_equal(trace.polarity("merge").bin(1).to_dense(), dense.max(axis=2, keepdims=True))


@given(denses(), st.data())
def test_samples(dense: Array, data: Any) -> None:
    trace = SpikeTrace.from_dense(dense)
    parts = [SpikeTrace.from_dense(dense[i : i + 1]) for i in range(len(dense))]
    for one, part in zip(trace, parts, strict=True):
        assert np.array_equal(one.to_dense(dtype=dense.dtype), part.to_dense(dtype=dense.dtype))
    which = data.draw(st.lists(st.integers(0, len(dense) - 1), max_size=4)) if len(dense) else []
    index: Any = np.array(which, np.int64)
    assert np.array_equal(trace[index].to_dense(dtype=dense.dtype), dense[index])
    assert np.array_equal(trace[::-1].to_dense(dtype=dense.dtype), dense[::-1])
    if len(dense) and dense.dtype != np.uint64:
        assert np.array_equal(SpikeTrace.concatenate(list(trace)).to_dense(dtype=dense.dtype), dense)


@given(hnp.arrays(np.int8, (2, 7, 3)), st.integers(1, 7))
def test_windows(dense: Array, length: int) -> None:
    number = 7 // length
    expected = dense[:, : number * length].reshape(2 * number, length, 3)
    assert np.array_equal(SpikeTrace.from_dense(dense).windows(length).to_dense(dtype=np.int8), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t: t.bin(0), "a step is a whole number"),
        (lambda t: t.bin(2, "sum"), "there is no mode 'sum': choose any or count"),
        (lambda t: t.downsample(0), "factors of at least 1"),
        (lambda t: t.crop(3, 2), "times 3 to 2 do not lie within 0 to 10"),
        (lambda t: t.crop(0, 1, [(0, 9)]), "addresses 0 to 9 do not lie within 0 to 4"),
        (lambda t: t.polarity("on"), r"of extent 2: \(4,\) has none"),
        (lambda t: t.windows(11), "windows last 1 to 10"),
        (lambda t: SpikeTrace.concatenate([t, t.bin(2), SpikeTrace([], [], (3,))]), "traces differ"),
    ],
)
def test_wrong_operations(wrong: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        wrong(SpikeTrace([1, 9], [0, 3], (4,)))


# ---------------------------------------------------------------------------------------------------------------------- file


@settings(deadline=None)
@given(traces(), st.sampled_from([1, 3, 1 << 17]))
def test_file_round_trip_is_exact(tmp_path_factory: Any, trace: SpikeTrace, block: int) -> None:
    path = tmp_path_factory.mktemp("t") / "t.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_module, "BLOCK", block)
        trace.save(path)
    first = path.read_bytes()
    loaded = SpikeTrace.load(path)
    assert not loaded.loaded and repr(loaded) == repr(trace)
    for index in range(trace.batch):
        assert loaded[index] == trace[index]
    assert loaded[1:] == trace[1:]
    assert not loaded.loaded
    assert loaded == trace and loaded.loaded
    if block != 1:
        assert SpikeTrace.load(path).coded_bytes == SpikeTrace.load(path).ratio ** 0 * loaded.coded_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_module, "BLOCK", block)
        loaded.save(path)
    assert path.read_bytes() == first


@settings(deadline=None)
@given(denses())
def test_dense_through_a_file(tmp_path_factory: Any, dense: Array) -> None:
    path = SpikeTrace.from_dense(dense).save(tmp_path_factory.mktemp("t") / "t.npz")
    assert np.array_equal(SpikeTrace.load(path).to_dense(dtype=dense.dtype), dense)


@pytest.mark.parametrize(("rate", "coding"), [(0.5, "bits"), (0.3, "bits"), (0.02, "delta"), (0.001, "delta")])
def test_the_smaller_coding_is_taken(tmp_path: Path, rate: float, coding: str) -> None:
    dense = np.random.default_rng(1).random((4, 100, 500)) < rate
    trace = SpikeTrace.from_dense(dense)
    path = trace.save(tmp_path / "t.npz")
    with np.load(path) as data:
        header = json.loads(bytes(data["header"]))
        stored = sum(data[name].nbytes for name in data.files if name != "header")
    assert {block[3] for block in header["blocks"]} == {coding}
    assert trace.coded_bytes == stored == SpikeTrace.load(path).coded_bytes
    assert trace.ratio == min(dense.size, trace.count * 12) / stored
    assert trace.ratio > 6


def test_a_crop_reads_only_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "BLOCK", 100)
    rng = np.random.default_rng(0)
    trace = SpikeTrace(rng.integers(0, 10**6, 5000), rng.integers(0, 2000, 5000), (2, 20, 50), tick=1, duration=10**6)
    path = trace.save(tmp_path / "t.npz")
    read: list[int] = []
    real = trace_module._File._block

    def watched(self: Any, data: Any, number: int, *rest: Any) -> Any:
        read.append(number)
        return real(self, data, number, *rest)

    monkeypatch.setattr(trace_module._File, "_block", watched)
    loaded = SpikeTrace.load(path)
    for start, stop in ((400_000, 450_000), (0, 1), (999_000, 10**6), (5, 5), (0, 10**6)):
        read.clear()
        assert loaded.crop(start, stop) == trace.crop(start, stop)
        assert len(read) <= 2 + (stop - start) / 10**6 * 52
    assert not loaded.loaded


@settings(deadline=None, max_examples=200)
@given(traces(), st.data())
def test_a_damaged_file_is_refused_or_still_right(tmp_path_factory: Any, trace: SpikeTrace, data: Any) -> None:
    """Flip a byte or cut the file anywhere: TraceError with its name, or (where the byte is not looked at) the same events."""
    path = trace.save(tmp_path_factory.mktemp("t") / "t.npz")
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        loaded = SpikeTrace.load(path)
        events(loaded)
    except TraceError as error:
        assert str(path) in str(error)
        return
    assert loaded == trace


def rewritten(path: Path, **changes: Any) -> Path:
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    header = json.loads(bytes(arrays["header"]))
    for name, value in changes.items():
        if name in header:
            header[name] = value
        else:
            arrays[name] = value
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spiketrace": 2}, "a trace of version 2; this reads version 1"),
        ({"events": 5}, "do not add up to 5 events"),
        ({"shape": [0]}, "a shape has extents of at least 1"),
        ({"shape": "x"}, "its header does not fit"),
        ({"payload": "float32"}, "payloads are integers, not float32"),
        ({"blocks": [[3, 0, 0, "zip"]]}, "block 0 is missing or not described"),
        ({"e0": np.array([1], np.uint8)}, "a block holds 1 numbers instead of 2"),
        ({"e0": np.array([0x80, 0x80], np.uint8)}, "a block holds 0 numbers instead of 2"),
        ({"e0": np.array([1, 100], np.uint8)}, "holds events of other samples"),
        ({"e0": np.array([1.0, 2.0])}, "block 0 is not a row of bytes"),
        ({"e0": np.array([{}], object)}, "Object arrays cannot be loaded"),
        ({"counts": np.array([4, -1])}, "`counts` is not a list of numbers of events"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    path = SpikeTrace([0, 3, 9], [0, 1, 1], (2,), duration=10).save(tmp_path / "t.npz")
    rewritten(path, **changes)
    with pytest.raises(TraceError, match=message) as found:
        events(SpikeTrace.load(path))
    assert str(path) in str(found.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.npz: no such file"):
        SpikeTrace.load(tmp_path / "none.npz")
    np.savez(tmp_path / "x.npz", x=np.ones(3))
    with pytest.raises(TraceError, match=r"x\.npz: no spike trace: it holds x"):
        SpikeTrace.load(tmp_path / "x.npz")
    np.save(tmp_path / "y.npy", np.ones(3))
    with pytest.raises(TraceError, match=r"y\.npy: not a readable trace"):
        SpikeTrace.load(tmp_path / "y.npy")
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("header.npy", b"no array")
        archive.writestr("counts.npy", b"no array")
    with pytest.raises(TraceError, match=r"z\.npz: "):
        SpikeTrace.load(tmp_path / "z.npz")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = SpikeTrace([1], [0], (1,)).save(tmp_path / "t.npz")
    before = path.read_bytes()

    def broken(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(OSError, match="no space"):
        SpikeTrace([2], [0], (1,)).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_nothing_changes_a_trace() -> None:
    times = np.array([1, 2])
    trace = SpikeTrace(times, [0, 0], (1,))
    times[0] = 0
    assert trace.times.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        trace.times[0] = 5
