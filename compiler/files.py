"""Files that a user names: what is against reading one is told in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spikec.diagnostics import CompileError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever the operating system has against reading `path` is a CompileError SPK002 with its reason."""
    try:
        yield
    except FileNotFoundError:
        raise CompileError("SPK002", f"{path}: no such file") from None
    except OSError as error:
        raise CompileError("SPK002", f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None


def check_file(path: Path) -> None:
    """Raise CompileError SPK002 if `path` is no file, or lies where nobody may look."""
    with reading(path):
        if not path.is_file():
            raise CompileError("SPK002", f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")


def check_path(what: str, value: Any) -> None:
    """Raises CompileError SPK001 for what is no path; None is fine."""
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise CompileError("SPK001", f"{what} is a path, not {value!r}", fix="give a string or a pathlib.Path")
