"""The emitted folder as a shared library: compiled once, kept by content, called through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from spikec.backends.c.answers import whole_margins
from spikec.backends.c.parts import Network
from spikec.cutoff import Decision
from spikec.diagnostics import CompileError
from spikec.ir.types import DTYPES, Array

#: As in the emitted Makefile, without the warnings.
FLAGS: Final = ("-std=c99", "-ffp-contract=off", "-O3", "-fPIC", "-shared")
_TRY: Final = ("-fno-loop-unroll-and-jam", "-march=native")
_FIX: Final = "install a C compiler (Debian, Ubuntu: apt-get install gcc; macOS: xcode-select --install), or name one in CC"
#: Compilers that were found, by what was looked for: CC and PATH.
_FOUND: Final[dict[tuple[str, ...], str]] = {}
_STATUS: Final = {
    3: "an event is out of range",
    4: "a value is outside the range that the input declares",
    5: "the step counter is exhausted",
}


def find_compiler() -> list[str] | None:
    """The command in CC, else cc, gcc or clang; None if there is none."""
    given = os.environ.get("CC", "").split()
    key = (*given, os.environ.get("PATH", ""))
    if os.access(_FOUND.get(key, ""), os.X_OK):  # every run asks, and looking along PATH takes longer than a small network
        return [_FOUND[key], *given[1:]]
    for command in [given] if given else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(command[0])
        if path:
            _FOUND[key] = path
            return [path, *command[1:]]
    return None


@lru_cache(maxsize=1)
def matrix_unit() -> bool:
    """Whether this machine has one that offline mode uses (Intel AMX, products of eight bits)."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            flags = next((line.split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return False
    return {"amx_tile", "amx_int8", "avx512bw", "avx512vl", "avx512_vnni"} <= set(flags)


def missing_compiler() -> str:
    """Why there is none, and what to do."""
    given = os.environ.get("CC", "")
    return f"the C compiler '{given}' named in CC is not there; {_FIX}" if given else f"no C compiler was found; {_FIX}"


def cache_folder() -> Path:
    """SPIKEC_CACHE_DIR, else the user's cache folder."""
    given = os.environ.get("SPIKEC_CACHE_DIR")
    if given:
        return Path(given) / "c"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "spikec" / "c"


def _call(command: Sequence[str], folder: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise CompileError("SPK501", f"the C compiler cannot be started: {error}", fix=_FIX) from None


@lru_cache(maxsize=8)
def _identity(command: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """What tells this compiler and machine from others, and the optional flags it takes."""
    version = _call([*command, "--version"]).stdout
    taken = tuple(flag for flag in _TRY if _call([*command, "-Werror", flag, "-E", "-x", "c", os.devnull]).returncode == 0)
    # -march=native is only as portable as the machine: its features are part of the key.
    machine = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            machine = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        taken = tuple(flag for flag in taken if flag != "-march=native")
    return f"{' '.join(command)}\n{version}\n{machine}", taken


def build_library(sources: Mapping[str, str | bytes], compile_: Sequence[str], *, flags: Sequence[str] = FLAGS) -> Path:
    """Compile `compile_` (names in `sources`) into a shared library; the path of the kept one if it was compiled before.

    Raises CompileError SPK501.
    """
    command = find_compiler()
    if command is None:
        raise CompileError("SPK501", missing_compiler().split("; ")[0], fix=_FIX)
    identity, extra = _identity(tuple(command))
    arguments = [*flags, *extra]
    digest = hashlib.sha256(f"{identity}\n{' '.join(arguments)}\n{' '.join(compile_)}\n".encode())
    for name in sorted(sources):
        content = sources[name]
        data = content.encode() if isinstance(content, str) else content
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    folder = cache_folder()
    path = folder / f"{digest.hexdigest()[:40]}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
            for name, content in sources.items():
                data = content.encode() if isinstance(content, str) else content
                (Path(scratch) / name).write_bytes(data)
            done = _call([*command, *arguments, "-o", "library.so", *compile_], scratch)
            if done.returncode != 0:
                text = "\n".join((done.stderr or done.stdout).strip().splitlines()[:12])
                raise CompileError(
                    "SPK501", f"the C compiler failed:\n{text}", fix=f"check that {command[0]} works, or name another in CC"
                )
            os.replace(Path(scratch) / "library.so", path)
    except OSError as error:
        raise CompileError(
            "SPK501", f"the compiled network cannot be kept in {folder}: {error}", fix="name a folder in SPIKEC_CACHE_DIR"
        ) from None
    return path


@lru_cache(maxsize=64)
def _open(path: str) -> ctypes.CDLL:
    return ctypes.CDLL(path)


def refused(status: int) -> None:
    """Raise CompileError SPK007 for what the data did wrong, RuntimeError for anything else but success."""
    if status in _STATUS:
        raise CompileError("SPK007", _STATUS[status])
    if status != 0:
        raise RuntimeError(f"the compiled network returned status {status}")


class _Whole(ctypes.Structure):
    """spk_whole of spk.h."""

    _fields_ = (
        ("records", ctypes.c_uint32),
        ("port", ctypes.c_void_p),
        ("record", ctypes.c_void_p),
        ("state", ctypes.c_void_p),
        ("counter", ctypes.c_void_p),
    )


#: spk_in of spk.h.
_IN: Final = np.dtype([("index", np.uintp), ("value", np.uintp), ("count", np.uint32)], align=True)


class Compiled:
    """A network in a loaded library. `run` takes and gives arrays in the types of the interface."""

    def __init__(self, path: Path, network: Network, whole: bool = False) -> None:
        self.network = network
        self.library = _open(str(path))
        #: Whether offline mode is there, and uses a matrix unit.
        self.tiles = whole and bool(self.library[f"{network.prefix}offline_tiles"]())
        self.model = ctypes.c_char.in_dll(self.library, f"{network.prefix}network")
        self.entry = self.library.spk_host_run
        self.entry.restype = ctypes.c_int

    def run(
        self, inputs: Mapping[str, Array], batch: int, steps: int, padding: int, ports: Sequence[int]
    ) -> tuple[list[Array], list[Array], dict[str, int]]:
        """(batch, steps, size) for each port, (batch, size) for each state, and the counters."""
        network = self.network
        given = [np.ascontiguousarray(inputs[p.name], DTYPES[p.api]) for p in network.inputs]
        records = [np.zeros((batch, steps, network.ports[k].size), DTYPES[network.ports[k].api]) for k in ports]
        states = [np.zeros((batch, p.size), DTYPES[p.api]) for p in network.states]
        counters = np.zeros(max(len(network.counters), 1), np.uint64)
        memory = np.zeros(network.bytes, np.uint8)
        room = np.zeros(max(len(given), 1) * 3, np.uint64)

        def pointers(arrays: Sequence[Array]) -> Any:
            return (ctypes.c_void_p * max(len(arrays), 1))(*(array.ctypes.data for array in arrays))

        chosen = (ctypes.c_uint32 * max(len(ports), 1))(*ports)
        status = self.entry(
            ctypes.byref(self.model),
            ctypes.c_void_p(memory.ctypes.data),
            ctypes.c_size_t(memory.nbytes),
            ctypes.c_void_p(room.ctypes.data),
            ctypes.c_uint32(batch),
            ctypes.c_uint32(steps),
            ctypes.c_uint32(padding),
            pointers(given),
            ctypes.c_uint32(len(ports)),
            chosen,
            pointers(records),
            pointers(states),
            ctypes.c_void_p(counters.ctypes.data),
        )
        refused(status)
        return records, states, {name: int(counters[k]) for k, name in enumerate(network.counters)}

    def run_whole(
        self, inputs: Mapping[str, Array], batch: int, steps: int, ports: Sequence[int]
    ) -> tuple[list[Array], list[Array], dict[str, int]]:
        """As `run`, in offline mode (spk_offline)."""
        network = self.network
        given = [np.ascontiguousarray(inputs[p.name], DTYPES[p.api]) for p in network.inputs]
        rows = np.zeros((batch * steps, len(given)), _IN)
        for k, array in enumerate(given):
            width = network.inputs[k].size * array.itemsize
            rows["value"][:, k] = array.ctypes.data + np.arange(batch * steps, dtype=np.uint64) * np.uint64(width)
        records = [np.zeros((batch, steps, network.ports[k].size), DTYPES[network.ports[k].api]) for k in ports]
        states = [np.zeros((batch, p.size), DTYPES[p.api]) for p in network.states]
        counters = np.zeros(max(len(network.counters), 1), np.uint64)
        entry, size = self.library[f"{network.prefix}offline"], self.library[f"{network.prefix}offline_size"]
        size.restype = ctypes.c_size_t
        memory = np.empty(size(), np.uint8)

        def pointers(arrays: Sequence[Array]) -> Any:
            return (ctypes.c_void_p * max(len(arrays), 1))(*(array.ctypes.data for array in arrays))

        chosen, recorded, final = (ctypes.c_uint32 * max(len(ports), 1))(*ports), pointers(records), pointers(states)
        whole = _Whole(
            len(ports),
            ctypes.cast(chosen, ctypes.c_void_p),
            ctypes.cast(recorded, ctypes.c_void_p),
            ctypes.cast(final, ctypes.c_void_p),
            ctypes.c_void_p(counters.ctypes.data),
        )
        status = entry(
            ctypes.c_void_p(memory.ctypes.data),
            ctypes.c_size_t(memory.nbytes),
            ctypes.c_uint32(batch),
            ctypes.c_uint32(steps),
            ctypes.c_void_p(rows.ctypes.data),
            ctypes.byref(whole),
        )
        refused(status)
        return records, states, {name: int(counters[k]) for k, name in enumerate(network.counters)}

    def decide(self, inputs: Mapping[str, Array], padding: int, port: int, margins: Array) -> Decision:
        """Answers (batch,) and the steps that they took, by the rule of `spikec.cutoff`; margins (steps,)."""
        network = self.network
        given = [np.ascontiguousarray(inputs[p.name], DTYPES[p.api]) for p in network.inputs]
        batch, steps = given[0].shape[:2]
        size = network.ports[port].size
        row, sums = np.zeros(size, DTYPES[network.ports[port].api]), np.zeros(size, np.int64)
        answers, used = np.zeros(batch, np.uint32), np.zeros(batch, np.uint32)
        memory, room = np.zeros(network.bytes, np.uint8), np.zeros(max(len(given), 1) * 3, np.uint64)
        entry = self.library.spk_host_decide
        entry.restype = ctypes.c_int
        status = entry(
            ctypes.byref(self.model),
            ctypes.c_void_p(memory.ctypes.data),
            ctypes.c_size_t(memory.nbytes),
            ctypes.c_void_p(room.ctypes.data),
            ctypes.c_uint32(batch),
            ctypes.c_uint32(steps),
            ctypes.c_uint32(padding),
            (ctypes.c_void_p * len(given))(*(array.ctypes.data for array in given)),
            ctypes.c_uint32(port),
            ctypes.c_void_p(row.ctypes.data),
            ctypes.c_void_p(sums.ctypes.data),
            (ctypes.c_int64 * len(margins))(*whole_margins(margins)),
            ctypes.c_uint32(len(margins)),
            ctypes.c_void_p(answers.ctypes.data),
            ctypes.c_void_p(used.ctypes.data),
        )
        if status in _STATUS:
            raise CompileError("SPK007", _STATUS[status])
        if status != 0:
            raise RuntimeError(f"the compiled network returned status {status}")
        return Decision(answers.astype(np.int64), used.astype(np.int64))
