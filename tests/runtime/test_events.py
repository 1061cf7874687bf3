"""Readers of event files, against recordings and encoders of other people where there are any.

The EVT 2.0 and EVT 3.0 files were written by expelliarmus 1.1.12 from the events of `written`; the real recordings lie in
../shared/data/data_event_samples (see the README there).
"""

from __future__ import annotations

import base64
import importlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikec.runtime import events as events_module
from spikec.runtime.events import from_structured, iter_events, read_events, read_hdf5, read_labels, to_structured
from spikec.runtime.trace import SpikeTrace, TraceError

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "data_event_samples"
FIELDS = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", bool)])
EVT2 = """
eNrtzeFvEwUcxvG7Ht2uV+9u7S3tOtvuRJcMA9h2wNhiYJBFbDIIi4BDDeXE21pl3dF2YxNjWtp1netYOwhhEEiDmjQS0cWYVI1mMVEzeTM0xsaE4HzFooZJ
QsSo0Wfg/+Cb3yXffJ7LL5drVru0hK7629t8G/yBDYHNqq+tY7O/w9eqCs2qPpxQAxt9q7MvEhs4rsX00LAei0cGo6pvo+/BJRJN6P0xLTEYC0W1AV3dGxs0
wnpc11ePxtGh/kj0wSGsHQ39996vR1tDfSP3fxLXYxFcokMDL+ox1bf6tPra7l9G4wl9IBTsUgN+VWAYJklRFEVRFEVRFEVRFEVRFEVRFEVRFEVRFEVRFEVR
FEVRFEVRFEVRFEVRFEVRFEVR1P8ew0HPLVbiYcdiWpLhs5UxmwMmSrVOLyzmLE0t8KoxaVkPr/WK1lZ4q3O6Zhs0r7M5t8O1NsWxE27/g/F2wxeWTHwPHF3I
mPfDs3NZ6SD8YJb3PAcXU284xHDefQT78b2SoMNdWws1L8OX1BkuClN80nsMXlphbZ9UOUccuzo/xg7Bu+Vx+Ti0FyfEEfjE6KTzVditiY1pGAnK9RmY9du4
PHzTpcin4DybEk7DG8sn68/AxsVMw1nYVsk695V44Tz2sZwgX4CnjHzNZXilV7K/BXcftnh2h5GBRlAS5VABnUMlVEbvo4rFcw3fdKmnvd9CjU85bsDXV0z8
TXihmuGWYGW+xvwz/K7M190pCPXyaN77C97XaxIXDBaEX7H7/DPybZh2JZXfYIk1KXfgp8tc0134w3Wz5XforNSKf8JNpQn2b9iTm/SwLJOMGlNuE5zsnfaY
YbmzyFjgFy2KYIc/1bHCP/dOut3Y7qWMuwm2L2QbH4UH5nipGcZnBWsLLKTybAC+G5E8m+DXPXWuLbB2q93eAR9TGeZJuIM3WXbAQytpcSc8UTUrT8Nz8+MN
QfhheaLhm4LV2o19e0Rk9sGHtGl2XbDo2o/9lF9pOAiPuFjvIZhk0+xheHF5jRiGH1/PSoPw+49yLgPWlwR3DPpzeXsc7jEkdhi+0lvgT8Bc54zp7ZZk42vY
n9eZXGPw5r20fRz+9aNZci2My2ewt8xNiLPwmVmrzUhNKeexpyKy9yJ8p6douQK/alfM78E1KsvNwUd4zv0Z3LaSefhL+Hw1a/8Xc/8org==
"""
EVT3 = """
eNotzX1olWUYBvD7Jk1aZWjmSJLdz5uT535z8z3b2U4O8iMOLsGJS7Ew85z34znP+3XOmeeczZZlRiCWuNwfzeVShFZETlcsSbQkiqi0TArdVCQICaP1QTVM
Kqpp11/Xxe+Pq5bSdkVRYlHKqks01DU0kZVqaUq0WI1UVUuqq0KN9dZkzQWl/Ga7pDJdqlQOigWy6q0bEhQqSpfsSrGUKdh5RatLxQ5flZWaxI64UweFG+Db
ceb/rVUhmcioruj6TVmVgv+s0Jl3VImsyTRaqevSXa6ofGZFmpL3UxUAbIMs0FyoyT5ALdCafZIegSey78oKjGR/l71wNZvgw5C2C+IUKPuguAID9hUxFX+z
a00D/7QdcwlWOzVyA3rOBurGF5yXqQ+HnXM0gqedO/kMfu2s5tvhnLOLTZjrnhStcJ87zfCg3U0bz8JmF+V+2OEulsdhp7tFjkG/e5QmYNidoJl4wm0QC/Ej
t8gr8aw7xAHO8b7n7Si8+carqD3X+AA7PaJLuNd7XM6BQW+vTMGINyrXwhFvltgEo1676IGLXo84CDPUKW6D+WoB13E9L2SLE9zAjZzkJm7mFKchk/NMGwZy
Qm6F8dxGGoBruQE6ClV6jM7Co/ou/hXW64f5DszoF3kB2vpzsQKVvsXIYVEvN57Dbn2TPIDP66Xyfdyjn5YXcEgfo2o4oa9SEsZ0UrTDT3oTF2C6f5h3wmz/
B34DpC+Nj6HNV8a38JJv0D/Q52fkPfid/4pchH/75+U6rAlmizLWBWvEblwa7BaHsC/4gk/iYFBlToO3g1ZzHpwJptAyuBwso40wPdxKW2BGeFz2Qzr8Qx6B
lWETfwVtYUn8DNlwWNyGB8JxwTgYsrkch8Kc6eKX4b1yG/4SZmkf3hzto2PYGl2gUXwqquZZsD1aywnojXp5FfRHp0UE70S3GjvgfPSQ8RpciqbKD+Fy9KD8
Bjh+Rv4FS+L36G68Rs34etws1uCncZk78LP4Ld6Fo/GP/CaOx6bxCa7Pa2MKdOfnkYCevC0Xw0R+v3wMEoWL8l/lQg+T
"""


def sample(name: str) -> Path:
    path = SAMPLES / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


def records(t: Any, x: Any, y: Any, p: Any) -> Any:
    out = np.zeros(len(t), FIELDS)
    out["t"], out["x"], out["y"], out["p"] = t, x, y, p
    return out


def written(slower: int = 8) -> Any:
    """120 events, among them a row of twelve neighbours at one time; in EVT 3.0 eight times as fast.

    (That encoder writes no further high time after the first 4,096 µs, which the vendor's decoders need.)
    """
    i = np.arange(120, dtype=np.int64)
    t, x, y, p = np.sort(i * i * 37 % 5000 + i * 211), i * 61 % 640, i * 29 % 480, i * 7 // 3 % 2
    x[40:52], y[40:52], t[40:52], p[40:52] = np.arange(300, 312), 77, t[40], 1
    return records(np.sort(t) * slower // 8, x, y, p)


def same(trace: SpikeTrace, expected: Any, shape: tuple[int, ...]) -> None:
    assert trace.tick == 1
    assert trace == from_structured(expected, shape=shape)


def raises(message: str, path: Path, **options: Any) -> None:
    """TraceError with the file's name, whether the file is read at once or in pieces."""
    with pytest.raises(TraceError, match=message) as found:
        read_events(path, **options)
    assert str(path) in str(found.value)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --------------------------------------------------------------------------------------------------------------------- N-MNIST


def five_bytes(events: Any) -> bytes:
    rows = [
        bytes([e["x"], e["y"], int(e["p"]) << 7 | int(e["t"]) >> 16, int(e["t"]) >> 8 & 255, int(e["t"]) & 255]) for e in events
    ]
    return b"".join(rows)


def test_nmnist_by_hand(tmp_path: Path) -> None:
    content = bytes.fromhex("0a0c8003f1 0000000400 21217fffff")
    expected = records([1009, 1024, 0x7FFFFF], [10, 0, 33], [12, 0, 33], [1, 0, 0])
    same(read_events(put(tmp_path / "00001.bin", content), shape=(2, 34, 34)), expected, (2, 34, 34))


def test_nmnist_overflow_adds_to_all_later_times(tmp_path: Path) -> None:
    content = bytes.fromhex("0101000001 00f0000000 0202800002 00f0000000 00f0000000 0303000003")
    path = put(tmp_path / "a.bin", content)
    expected = records([1, 8192 + 2, 3 * 8192 + 3], [1, 2, 3], [1, 2, 3], [0, 1, 0])
    same(read_events(path, shape=(2, 180, 240)), expected, (2, 180, 240))
    pieces = list(iter_events(path, shape=(2, 180, 240), chunk=1))
    assert [int(piece.times[0]) for piece in pieces] == [1, 8194, 24579]


def test_nmnist_bad_files(tmp_path: Path) -> None:
    raises("does not say how large the sensor is", put(tmp_path / "a.bin", bytes(10)))
    raises("12 bytes are no whole number of 5-byte events", put(tmp_path / "b.bin", bytes(12)), shape=(2, 34, 34))
    raises("the file is empty", put(tmp_path / "c.bin", b""), shape=(2, 34, 34))
    raises("no such file", tmp_path / "d.bin", shape=(2, 34, 34))
    far = put(tmp_path / "e.bin", bytes.fromhex("0101000001 2822000001"))
    raises(r"event 1 lies at x = 40, y = 34, outside of \(2, 34, 34\) \(1 such events\)", far, shape=(2, 34, 34))
    assert read_events(far, shape=(2, 34, 34), outside="drop").count == 1
    raises(r"have the shape \(2, H, W\), or \(1, H, W\) to merge polarities, not \(34, 34\)", far, shape=(34, 34))
    raises("not recognised as a file of events", put(tmp_path / "f.txt", b"hello"))
    assert read_events(put(tmp_path / "g.dump", bytes(5)), format="nmnist", shape=(1, 34, 34)).shape == (1, 34, 34)


# ------------------------------------------------------------------------------------------------------------------- Prophesee


def test_the_real_ncars_recording() -> None:
    """Figures from expelliarmus 1.1.12, an independent reader in C: 2,009 events, the first five and the last three."""
    path = sample("sample_ncars.dat")
    trace = read_events(path, shape=(2, 100, 120))
    out = to_structured(trace)
    assert trace.count == 2009 and trace.duration == 99953
    rows = [tuple(int(e[name]) for name in "txyp") for e in out]
    assert rows[:5] == [(0, 25, 8, 0), (35, 67, 35, 0), (152, 56, 27, 1), (202, 74, 39, 1), (244, 49, 28, 1)]
    assert rows[-3:] == [(99742, 68, 34, 0), (99851, 51, 4, 1), (99952, 75, 28, 1)]
    raises("does not say how large the sensor is", path)
    pieces = list(iter_events(path, shape=(2, 100, 120), chunk=100))
    assert len(pieces) == 21 and SpikeTrace.concatenate(pieces).count == 2009
    assert np.array_equal(np.concatenate([piece.times for piece in pieces]), trace.times)


def test_a_real_recording_in_steps(tmp_path: Path) -> None:
    trace = read_events(sample("sample_ncars.dat"), shape=(2, 100, 120))
    steps = trace.bin(1000)
    dense = steps.to_dense()
    assert dense.shape == (1, 100, 2, 100, 120) and steps.tick == 1000
    out = to_structured(trace)
    expected = np.zeros_like(dense)
    expected[0, out["t"] // 1000, out["p"], out["y"], out["x"]] = 1
    assert np.array_equal(dense, expected)
    assert SpikeTrace.load(trace.save(tmp_path / "t.npz")) == trace
    assert trace.ratio > 2.5


def dat(words: Any, header: str = "% Version 2\n% Height 480\n% Width 640\n", kind: bytes = b"\x0c\x08") -> bytes:
    return header.encode() + kind + np.asarray(words, "<u4").tobytes()


def test_dat_says_its_size_and_wraps(tmp_path: Path) -> None:
    words = [0xFFFFFFF0, 639 | 479 << 14 | 1 << 28, 5, 1]
    for chunk in (1, 2):
        pieces = list(iter_events(put(tmp_path / "a.dat", dat(words)), chunk=chunk))
        assert [int(t) for piece in pieces for t in piece.times] == [0xFFFFFFF0, 0x100000005]
    whole = read_events(tmp_path / "a.dat", rebase=True)
    assert whole.times.tolist() == [0, 21] and whole.shape == (2, 480, 640)
    assert [axis.tolist() for axis in whole.coordinates()] == [[1, 0], [479, 0], [639, 1]]


def test_dat_bad_files(tmp_path: Path) -> None:
    good = dat([1, 1 << 28])
    raises("7 bytes of events are no whole number of 8-byte events", put(tmp_path / "a.dat", good[:-1]))
    raises("the file ends after its header", put(tmp_path / "a.dat", good[:-9]))
    raises("events of type 14 and 8 bytes", put(tmp_path / "a.dat", dat([], kind=b"\x0e\x08")))
    raises(r"version 1 \(none is stated\)", put(tmp_path / "a.dat", dat([], "% Height 480\n")))
    raises("the header says width 'x'", put(tmp_path / "a.dat", dat([], "% Version 2\n% Height 480\n% Width x\n")))
    raises("the header is cut short", put(tmp_path / "a.dat", b"% Version 2"))
    raises("event 0 has polarity 3: the file is damaged", put(tmp_path / "a.dat", dat([1, 3 << 28])))
    raises("begins with a header", put(tmp_path / "a.dat", b"\0" * 64), format="dat")
    assert read_events(put(tmp_path / "b.dat", dat([]))).count == 0


@pytest.mark.parametrize(("encoded", "slower"), [(EVT2, 8), (EVT3, 1)], ids=["evt2", "evt3"])
def test_raw_files_of_another_encoder(tmp_path: Path, encoded: str, slower: int) -> None:
    path = put(tmp_path / "a.raw", zlib.decompress(base64.b64decode(encoded)))
    same(read_events(path, shape=(2, 480, 640)), written(slower), (2, 480, 640))
    for chunk in (1, 7, 64):
        pieces = SpikeTrace.concatenate(list(iter_events(path, shape=(2, 480, 640), chunk=chunk)))
        assert np.array_equal(np.sort(pieces.addresses), np.sort(read_events(path, shape=(2, 480, 640)).addresses))
    part = read_events(path, shape=(2, 480, 640), start=500, stop=900)
    assert part == read_events(path, shape=(2, 480, 640)).crop(500, 900)


def raw3(words: Any, header: str = "% evt 3.0\n% geometry 1280x720\n% end\n") -> bytes:
    return header.encode() + np.asarray(words, "<u2").tobytes()


def found(path: Path) -> list[tuple[int, ...]]:
    out = to_structured(read_events(path))
    return [tuple(int(e[name]) for name in "txyp") for e in out]


def test_evt3_by_hand(tmp_path: Path) -> None:
    """The published word types: base and vectors, single events, repeated and wrapping times."""
    words = [
        0x0007,
        0x2001,
        0x8001,
        0x6002,
        0x0064,
        0x3804,
        0x4801,
        0x5003,
        0x2A00,
        0x8001,
        0x200A,
        0x8FFF,
        0x2001,
        0x8000,
        0x6001,
        0x2002,
    ]
    path = put(tmp_path / "a.raw", raw3(words))
    expected = [
        (0x1002, 4, 100, 1),  # base 4, on: bits 0 and 11 of twelve
        (0x1002, 10, 100, 0),  # after a repeated high time
        (0x1002, 15, 100, 1),
        (0x1002, 16, 100, 1),  # then bits 0 and 1 of the eight that follow
        (0x1002, 17, 100, 1),
        (0x1002, 512, 100, 1),
        (0xFFF000, 1, 100, 0),  # a new high time: the low one is 0
        (0x1000001, 2, 100, 0),  # wrapped after 2^24 µs
    ]
    assert sorted(found(path)) == sorted(expected)
    for chunk in range(1, 17):
        pieces = [to_structured(piece) for piece in iter_events(path, chunk=chunk)]
        assert sorted(tuple(int(e[name]) for name in "txyp") for piece in pieces for e in piece) == sorted(expected)


def slow_evt3(words: list[int]) -> list[tuple[int, ...]]:
    """The published rules, word by word."""
    out: list[tuple[int, ...]] = []
    loops, high, low, y, base, sign = 0, -1, 0, 0, 0, 0
    for word in words:
        kind, payload = word >> 12, word & 0xFFF
        if kind == 8:
            if high >= 0 and high - payload >= 2048:
                loops += 1
            low = low if payload == high else 0
            high = payload
        elif high < 0:
            continue
        elif kind == 6:
            low = payload
        elif kind == 0:
            y = payload & 0x7FF
        elif kind == 3:
            base, sign = payload & 0x7FF, payload >> 11
        elif kind == 2:
            out.append(((loops << 24) + (high << 12) + low, payload & 0x7FF, y, payload >> 11))
        elif kind in (4, 5):
            length = 12 if kind == 4 else 8
            out.extend(((loops << 24) + (high << 12) + low, base + b, y, sign) for b in range(length) if payload >> b & 1)
            base += length
    return sorted(out)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 2, 3, 4, 5, 6, 7, 8, 0xA, 0xE, 0xF]), st.integers(0, 4095)), max_size=60),
    st.integers(1, 60),
)
def test_evt3_against_the_rules(tmp_path_factory: Any, pairs: list[tuple[int, int]], chunk: int) -> None:
    words = [kind << 12 | payload for kind, payload in [*pairs, (8, 4095)]]
    path = put(tmp_path_factory.mktemp("e") / "a.raw", raw3(words, "% evt 3.0\n% geometry 4096x2048\n% end\n"))
    pieces = [to_structured(piece) for piece in iter_events(path, chunk=chunk)]
    assert sorted(tuple(int(e[name]) for name in "txyp") for piece in pieces for e in piece) == slow_evt3(words)


def test_evt2_by_hand(tmp_path: Path) -> None:
    words = [
        0x10000001,
        0x80000010,
        0x1 << 28 | 63 << 22 | 639 << 11 | 479,
        0x8FFFFFFF,
        0x00000801,
        0x80000000,
        0xA0000000,
        0x00000002,
    ]
    content = b"% format EVT2;height=480;width=640\n% end\n" + np.asarray(words, "<u4").tobytes()
    top = 0xFFFFFFF << 6
    assert found(put(tmp_path / "a.raw", content)) == [(0x10 << 6 | 63, 639, 479, 1), (top, 1, 1, 0), (1 << 34, 0, 2, 0)]


def test_raw_bad_files(tmp_path: Path) -> None:
    raises("7 bytes are no whole number of 2-byte words", put(tmp_path / "a.raw", raw3([0x8000] * 4)[:-1]))
    raises("word 1 is of the reserved type 1", put(tmp_path / "a.raw", raw3([0x8000, 0x1000])))
    raises("no word gives the time", put(tmp_path / "a.raw", raw3([0x2001])))
    raises("EVT 2.1 is not read", put(tmp_path / "a.raw", raw3([], "% evt 2.1\n% end\n")))
    raises("names its encoding", put(tmp_path / "a.raw", raw3([], "% date today\n% end\n")))
    raises("lies at x = 2047, y = 0, outside", put(tmp_path / "a.raw", raw3([0x8000, 0x27FF])))


# ------------------------------------------------------------------------------------------------------------ AEDAT4, ST-MNIST


def test_the_real_aedat4_recording() -> None:
    """111,954 events of a 320 × 240 sensor; the first ones as the package aedat prints them."""
    trace = read_events(sample("sample.aedat4"))
    assert (trace.shape, trace.count, trace.tick) == ((2, 240, 320), 111954, 1)
    rows = [tuple(int(e[name]) for name in "txyp") for e in to_structured(trace)[:4]]
    assert rows == [(0, 154, 204, 0), (3, 149, 206, 0), (4, 148, 199, 1), (9, 139, 30, 0)]
    assert read_events(sample("sample.aedat4"), start=1000, stop=2000) == trace.crop(1000, 2000)


def test_aedat4_cut_short(tmp_path: Path) -> None:
    content = sample("sample.aedat4").read_bytes()
    raises("not a readable AEDAT4 file", put(tmp_path / "a.aedat4", content[:200]))
    raises("damaged", put(tmp_path / "a.aedat4", content[:500_000]))
    raises("AER-DAT2.0 is not read, only AEDAT4", put(tmp_path / "b.aedat", b"#!AER-DAT2.0\r\n"))


def test_the_real_stmnist_recording() -> None:
    """Against the numbers in the file: 2,346 events, each in the column of its time (to 10 ns, cut to microseconds)."""
    from scipy.io import loadmat

    train = loadmat(sample("sample_stmnist.mat"))["spiketrain"]
    trace = read_events(sample("sample_stmnist.mat"))
    assert (trace.shape, trace.count) == ((2, 10, 10), 2346)
    assert trace.times[:6].tolist() == [196626, 196626, 199902, 199902, 199902, 203178]
    p, y, x = trace.coordinates()
    assert (int((p == 1).sum()), int((p == 0).sum())) == (1601, 745)
    assert sorted((y * 10 + x).tolist()) == sorted(int(row) for row in np.nonzero(train[:100].T)[1])


def test_stmnist_bad_files(tmp_path: Path) -> None:
    from scipy import io as scipy_io

    scipy_io.savemat(tmp_path / "a.mat", {"other": np.ones((3, 4))})
    raises("no 'spiketrain' of 101 rows, but other", tmp_path / "a.mat")
    scipy_io.savemat(tmp_path / "a.mat", {"spiketrain": np.full((101, 4), 2.0)})
    raises("spikes are −1, 0 and 1", tmp_path / "a.mat")
    raises("not a readable MATLAB 5 file", put(tmp_path / "b.mat", (tmp_path / "a.mat").read_bytes()[:200]))


@pytest.mark.parametrize(
    ("module", "head"), [("aedat", b"#!AER-DAT4.0\r\n"), ("h5py", b"\x89HDF\r\n\x1a\n"), ("scipy.io", b"MATLAB 5.0")]
)
def test_an_absent_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, head: bytes) -> None:
    real: Callable[..., Any] = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name == module:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(events_module.importlib, "import_module", absent)
    raises(rf"reading it needs {module}: pip install 'spikec\[events\]'", put(tmp_path / "a", head), shape=(1,))


# ------------------------------------------------------------------------------------------------------------------------ HDF5


def shd(path: Path, times: list[Any], units: list[Any], labels: Any = (3, 1)) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        for name, rows, kind in (("times", times, np.float32), ("units", units, np.uint16)):
            data = file.create_dataset(f"spikes/{name}", (len(rows),), dtype=h5py.vlen_dtype(kind))
            for index, row in enumerate(rows):
                data[index] = np.asarray(row, kind)
        file["labels"] = np.asarray(labels, np.uint16)
    return path


def test_shd(tmp_path: Path) -> None:
    path = shd(tmp_path / "a.h5", [[0.001, 0.25], [], [0.0000014]], [[3, 699], [], [0]], (3, 1, 0))
    trace = read_events(path, shape=(700,))
    assert (trace.batch, trace.shape, trace.tick) == (3, (700,), 1)
    assert trace.counts.tolist() == [2, 0, 1]
    assert trace.times.tolist() == [1000, 250000, 1] and trace.addresses.tolist() == [3, 699, 0]
    assert read_labels(path).tolist() == [3, 1, 0]
    assert read_hdf5(path, shape=(700,), samples=[2]).times.tolist() == [1]
    assert read_hdf5(path, shape=(700,), samples=slice(1, 3)).counts.tolist() == [0, 1]
    assert [piece.count for piece in iter_events(path, shape=(700,))] == [2, 0, 1]
    assert read_events(path, shape="fit").shape == (700,)


def test_shd_bad_files(tmp_path: Path) -> None:
    good = shd(tmp_path / "a.h5", [[0.1], [0.2]], [[1], [2]])
    raises(r"does not say how large the sensor is: give shape= \(\(700,\) for SHD and SSC\)", good)
    raises(r"event 1 lies at x = 2, outside of \(2,\)", good, shape=(2,))
    for cut in (100, 1000, len(good.read_bytes()) - 10):
        raises("not a readable HDF5 file|damaged|not laid out", put(tmp_path / "b.h5", good.read_bytes()[:cut]), shape=(700,))
    raises(r"sample 0 has times \(2,\) but units \(1,\)", shd(tmp_path / "c.h5", [[0.1, 0.2]], [[1]]), shape=(700,))
    raises("sample 0 has a time that is negative", shd(tmp_path / "d.h5", [[-0.1]], [[1]]), shape=(700,))
    h5py = importlib.import_module("h5py")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["x"] = 1
    raises("not laid out as SHD, with spikes/times", tmp_path / "e.h5", shape=(700,))


# ----------------------------------------------------------------------------------------------------------- structured arrays


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 33), st.integers(0, 20), st.booleans()), max_size=30))
def test_structured_arrays_go_and_come(rows: list[tuple[int, int, int, bool]]) -> None:
    array = records(*(list(column) for column in zip(*rows, strict=True))) if rows else records([], [], [], [])
    trace = from_structured(array, shape=(2, 21, 34))
    back = to_structured(trace)
    assert sorted(tuple(map(int, e)) for e in back) == sorted(tuple(map(int, e)) for e in array)
    assert from_structured(back, shape=(2, 21, 34)) == trace
    merged = from_structured(array, shape=(1, 21, 34))
    assert merged == trace.polarity("merge")


def test_audio_and_odd_structured_arrays(tmp_path: Path) -> None:
    audio = np.zeros(2, [("t", int), ("x", int), ("p", int)])
    audio["t"], audio["x"], audio["p"] = [5, 2], [7, 1], 1
    trace = from_structured(audio, shape=(700,))
    assert trace.times.tolist() == [2, 5] and trace.addresses.tolist() == [1, 7]
    assert to_structured(trace)["x"].tolist() == [1, 7]
    np.save(tmp_path / "a.npy", audio)
    assert read_events(tmp_path / "a.npy", shape="fit").shape == (8,)
    signed = np.zeros(2, [("t", int), ("x", int), ("y", int), ("p", int)])
    signed["p"] = [-1, 1]
    assert from_structured(signed, shape="fit").coordinates()[0].tolist() == [0, 1]
    signed["p"] = 2
    with pytest.raises(TraceError, match="polarities are 0 and 1"):
        from_structured(signed, shape=(2, 1, 1))
    with pytest.raises(TraceError, match="records with the fields t, x, y and p"):
        from_structured(np.ones(3), shape=(1,))
    with pytest.raises(TraceError, match="holds fractions"):
        from_structured(np.array([(0.5, 1)], [("t", float), ("x", int)]), shape=(3,))
    np.save(tmp_path / "b.npy", np.array([{}], object), allow_pickle=True)
    raises("not a readable", tmp_path / "b.npy", shape=(1,))
    raises("records with the fields", put(tmp_path / "c.npy", npy(np.ones(3))), shape=(1,))


def npy(array: Any) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_a_saved_trace_is_read_as_well(tmp_path: Path) -> None:
    trace = from_structured(written(), shape=(2, 480, 640))
    path = trace.save(tmp_path / "t.npz")
    assert read_events(path) == trace and read_events(path, start=100, stop=5000) == trace.crop(100, 5000)
    raises("holds events of", path, shape=(2, 1, 1))
