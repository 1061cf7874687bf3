"""The build folder: `manifest.json` and the files it names, each with its sha256 (design §7).

Nothing in it depends on the time, on a path or on hash order: compiling twice gives the same bytes. A folder is written beside its
place and then moved there as a whole, so that there is never half of one.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from spikec.diagnostics import CompileError
from spikec.files import reading

FORMAT: Final = "spikec-build"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE: Final = -100  # AT_FDCWD


def sha256(data: bytes) -> str:
    """The hexadecimal sha256."""
    return hashlib.sha256(data).hexdigest()


def json_text(data: Any) -> str:
    """JSON as every file of a build is written: indented, in the order given, a final newline."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def seal(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a folder: what is given, every file with its hash, and the manifest's own hash."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    body = {
        "format": FORMAT,
        "version": VERSION,
        **manifest,
        "files": {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in files},
    }
    body["sha256"] = sha256(json_text(body).encode())
    (folder / MANIFEST).write_text(json_text(body), encoding="utf-8")


def is_build(folder: Path) -> bool:
    """Whether a folder is one of ours, damaged or not."""
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, after checking it and every file that it names.

    Raises CompileError: SPK002 no such folder, SPK401 not a build, SPK403 of a newer spikec, SPK402 a damaged file, named.
    """
    path = folder / MANIFEST
    with reading(folder):
        if not folder.exists():
            raise CompileError("SPK002", f"{folder}: no such build folder")
        whole = path.is_file()
    if not whole:
        raise CompileError("SPK401", f"{folder}: not a build folder: it has no {MANIFEST}", fix="make one with spikec compile")
    try:
        with reading(path):
            data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CompileError("SPK402", f"{path}: damaged ({error})", fix="compile again") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CompileError("SPK401", f"{folder}: not a build folder: its {MANIFEST} belongs to something else")
    version = data.get("version")
    if version != VERSION:
        made = data.get("spikec", "another version")
        raise CompileError(
            "SPK403",
            f"{folder}: made by spikec {made} in build format {version}; this spikec reads format {VERSION}",
            fix="use the spikec that made it, or compile again",
        )
    stated = data.pop("sha256", None)
    if stated != sha256(json_text(data).encode()):
        raise CompileError("SPK402", f"{path}: damaged: its contents do not match its sha256", fix="compile again")
    for name, digest in data["files"].items():
        file = folder / name
        if not file.is_file():
            raise CompileError("SPK402", f"{file}: missing", fix="compile again")
        with reading(file):
            found = sha256(file.read_bytes())
        if found != digest:
            raise CompileError("SPK402", f"{file}: damaged: its sha256 is not the one recorded", fix="compile again")
    return data


def check_place(folder: Path) -> None:
    """Raise CompileError SPK008 if a build cannot go here: something else is in the way."""
    try:
        _check_place(folder)
    except OSError as error:
        raise CompileError("SPK008", f"{folder}: cannot be written ({error.strerror or error})") from None


def _check_place(folder: Path) -> None:
    if folder.is_dir():
        if any(folder.iterdir()) and not is_build(folder):
            raise CompileError(
                "SPK008",
                f"{folder}: exists and is not a spikec build, so it is not overwritten",
                fix="choose another folder, or remove it yourself",
            )
    elif folder.exists():
        raise CompileError("SPK008", f"{folder}: exists and is not a folder")
    for parent in folder.parents:
        if parent.exists():
            if not parent.is_dir():
                raise CompileError("SPK008", f"{folder}: {parent} is not a folder")
            if not os.access(parent, os.W_OK):
                raise CompileError("SPK008", f"{folder}: {parent} is not writable")
            return


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` what `fill` writes into the empty folder that it is given: wholly, or not at all.

    An earlier build is replaced in one step. Raises CompileError SPK008 if this is no place for a build.
    """
    folder = Path(os.path.abspath(folder.resolve() if folder.is_symlink() else folder))
    check_place(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    beside: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o777 & ~umask)
        fill(beside)
        _swap(beside, folder)
    except BaseException as error:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError):
            raise CompileError("SPK008", f"{folder}: cannot be written ({error.strerror or error})") from None
        raise
    shutil.rmtree(beside, ignore_errors=True)


def _swap(new: Path, place: Path) -> None:
    """Put `new` at `place`; what was there is then at `new`."""
    if not place.exists() or not any(place.iterdir()):
        new.rename(place)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    exchange = getattr(libc, "renameat2", None)
    if exchange and exchange(_HERE, os.fsencode(new), _HERE, os.fsencode(place), _EXCHANGE) == 0:
        return
    # A file system that cannot exchange two folders: the old one steps aside for the moment between two renames.
    aside = new.with_name(new.name + ".old")
    place.rename(aside)
    try:
        new.rename(place)
    except OSError:
        aside.rename(place)
        raise
    aside.rename(new)
