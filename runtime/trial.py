"""Reading damaged files: a trial in a copy of the process, for libraries that a damaged file takes down."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def trial(action: Callable[[], object], seconds: float = 60) -> str | None:
    """Why `action` would take this process down, or keep it for ever; None if it ends, whatever it raises.

    It runs in a forked copy of the process. Where there is no fork, nothing is tried.
    """
    if not hasattr(os, "fork"):
        return None
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads are not needed: the copy only reads
        copy = os.fork()
    if copy == 0:
        try:
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a library says as it breaks
            action()
        finally:
            os._exit(0)
    os.close(writes)  # the copy holds the only other end: it is closed when the copy ends
    with os.fdopen(reads, "rb"):
        ended = bool(select.select([reads], [], [], seconds)[0])
    if not ended:
        os.kill(copy, signal.SIGKILL)
    _, status = os.waitpid(copy, 0)
    if not ended:
        return "damaged: reading it does not end"
    return "damaged: the HDF5 library breaks down on it" if os.WIFSIGNALED(status) else None


def hdf5_trial(h5py: Any, path: str | os.PathLike[str], most: int = 1 << 26) -> str | None:
    """`trial` of reading an HDF5 file, of datasets with more than `most` bytes the ends only; h5py is the module."""

    def read(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        try:
            if item.nbytes <= most:
                item[()]
            elif len(item):
                item[0], item[-1]
        except Exception:
            pass  # told by the reader itself

    def walk() -> None:
        with h5py.File(Path(path), "r") as file:
            file.visititems(read)

    return trial(walk)
