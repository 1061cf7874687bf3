"""Damage that takes the HDF5 library down ends in a message, not in a crash."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import numpy as np
import pytest

import spikec
from spikec.diagnostics import CompileError
from spikec.runtime.trace import TraceError
from spikec.runtime.trial import hdf5_trial, trial

h5py = pytest.importorskip("h5py")


def _crash() -> None:
    ctypes.string_at(0)


def test_what_ends_is_nothing_against_it() -> None:
    assert trial(lambda: None) is None
    assert trial(lambda: 1 / 0) is None


def test_a_crash_and_an_endless_reading_are_told() -> None:
    assert trial(_crash) == "damaged: the HDF5 library breaks down on it"
    begin = time.monotonic()
    assert trial(lambda: time.sleep(60), seconds=0.2) == "damaged: reading it does not end"
    assert time.monotonic() - begin < 30


def test_no_copy_and_no_pipe_stay_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        trial(lambda: None)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_whole_file_passes_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["a/b"], file["c"], file["one"] = np.arange(5), np.zeros((4, 4)), 3
    before = path.read_bytes()
    assert hdf5_trial(h5py, path) is None
    assert hdf5_trial(h5py, path, most=8) is None
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".nir", ".net"])
def test_a_file_that_breaks_the_library_is_refused(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"broken{suffix}"
    with h5py.File(path, "w") as file:
        file["node/a"], file["layer/0/type"] = 1, "input"
    own = os.getpid()

    def breaks(*args: object, **kwargs: object) -> None:
        assert os.getpid() != own, "the library was called in this process"
        _crash()

    monkeypatch.setattr(h5py, "File", breaks)
    with pytest.raises(CompileError, match=r"SPK003.*not a readable HDF5 file \(damaged: the HDF5 library breaks down on it\)"):
        spikec.compile(path, target="reference")


def test_events_that_break_the_library_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spikec.runtime.events import read_labels

    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["labels"] = np.arange(3)
    assert read_labels(path).tolist() == [0, 1, 2]
    monkeypatch.setattr(h5py, "File", lambda *args, **kwargs: _crash())
    with pytest.raises(TraceError, match="the HDF5 library breaks down on it"):
        read_labels(path)
