"""`spikec doctor`: what is present, what is missing, and the one command that mends it.

Tools are tried, not only looked for: a C compiler counts once a program that it built has run. Python packages are read
from their metadata and never imported.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from spikec.cache import cache_dir

WIDTH = 80
#: What makes pip compile a package for the torch that is installed, and not for the newest one.
_BUILT_HERE = "--no-build-isolation --no-cache-dir "
_TOOL_SECONDS = 60

_PROGRAM = """
#include <stdint.h>
#include <stdio.h>
int main(void) {
    int32_t total = 0;
    for (int32_t i = 0; i < 9; ++i) { total += i; }
    printf("%d\\n", (int)total);
    return 0;
}
"""
_PROGRAM_SAYS = "36"

# The package that brings a tool, by package manager; the first manager that is here decides.
_MANAGERS: dict[str, tuple[str, ...]] = {
    "apt-get": ("apt-get", "install", "-y"),
    "dnf": ("dnf", "install", "-y"),
    "pacman": ("pacman", "-S", "--noconfirm"),
    "apk": ("apk", "add"),
    "brew": ("brew", "install"),
}
_CC = {"apt-get": "gcc libc6-dev", "dnf": "gcc", "pacman": "gcc", "apk": "gcc musl-dev", "brew": "gcc"}
_MAKE = {"apt-get": "make", "dnf": "make", "pacman": "make", "apk": "make", "brew": "make"}
_CROSS = {
    "apt-get": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "dnf": "gcc-aarch64-linux-gnu",
    "pacman": "aarch64-linux-gnu-gcc",
}
_QEMU = {"apt-get": "qemu-user", "dnf": "qemu-user", "pacman": "qemu-user", "apk": "qemu-aarch64"}


@dataclass(frozen=True)
class Check:
    """One thing spikec can use. `why_needed` reads on from "needed"; `remedy` is one command, "" if none is known."""

    name: str
    ok: bool
    found: str
    why_needed: str
    remedy: str
    required: bool


def checks(lava: Check) -> list[Check]:
    """Everything that spikec can use, tried here and now; takes about a second. `lava` comes from the Lava backend."""
    return [
        _python(),
        _package("numpy", "for everything", required=True),
        _package("networkx", "for everything", required=True),
        _package("lark", "for everything", required=True),
        _package("jinja2", "for everything", required=True),
        _package("scipy", "for delays longer than a chip's", required=True),
        _cache(),
        _package("torch", "to compile PyTorch models", extra="torch"),
        _package("snntorch", "to compile snnTorch models", extra="snntorch"),
        _package("norse", "to compile Norse models", bare=True, compiled=True),
        _package("spikingjelly", "to compile SpikingJelly models", bare=True),
        _package("sinabs", "to compile sinabs models", bare=True),
        _package("h5py", "to read .nir and .net files", extra="nir"),
        _package("nir", "to check .nir files with NIR's own reader", extra="nir"),
        _package("onnx", "to read and write .onnx files", extra="onnx"),
        _package("onnxruntime", "to check .onnx files that spikec writes", extra="dev"),
        _package("optuna", "for spikec tune", extra="tune"),
        _package("matplotlib", "for the plots of spikec tune", extra="tune"),
        _package("scikit-learn", "for the digits of the example", extra="examples"),
        _c_compiler(),
        _make(),
        lava,
        *_cross(),
    ]


def exit_status(found: Iterable[Check]) -> int:
    """0, or 1 where something required is missing."""
    return int(any(check.required and not check.ok for check in found))


def render(found: Sequence[Check]) -> str:
    """A table of at most 80 columns, a missing thing followed by why it is needed and what mends it.

    A command stays on one line, whatever its length, so that it can be copied.
    """
    width = max((len(check.name) for check in found), default=0)
    margin = " " * 4
    lines: list[str] = []
    for check in found:
        state = "ok" if check.ok else "MISSING" if check.required else "missing"
        head = f"{state:<8}  {check.name:<{width}}  "
        lines += textwrap.wrap(
            check.found, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
        ) or [head.rstrip()]
        if not check.ok:
            need = "needed" if check.required else "optional, needed"
            lines += textwrap.wrap(f"{need} {check.why_needed}", WIDTH, initial_indent=margin, subsequent_indent=margin)
            remedy = f"$ {check.remedy}" if check.remedy else "install it with this system's package manager"
            lines.append(f"{margin}{remedy}")
    required = [check.name for check in found if check.required and not check.ok]
    optional = [check.name for check in found if not check.required and not check.ok]
    if required:
        verdict = f"spikec cannot work without {_listed(required)}."
    elif optional:
        verdict = f"spikec works; without {_listed(optional)} some of it is not available."
    else:
        verdict = "spikec has everything that it can use."
    return "\n".join([*lines, "", *textwrap.wrap(verdict, WIDTH)])


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# Python and its packages


def _python() -> Check:
    version = platform.python_version()
    wanted = _declared_python()
    ok = _satisfies(version, wanted)
    return Check(
        name="Python",
        ok=ok,
        found=version if ok else f"{version}; spikec needs {wanted}",
        why_needed="for everything",
        remedy="" if ok else _install({"apt-get": "python3", "dnf": "python3", "brew": "python"}),
        required=True,
    )


def _package(
    name: str, why_needed: str, *, extra: str = "", required: bool = False, bare: bool = False, compiled: bool = False
) -> Check:
    """bare: the package's own requirements would bring another torch, so that it is installed without them. compiled: it builds a
    library for the torch that it finds, which has to be the one that runs."""
    wanted = _requirement(name, extra)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = ""
    ok = bool(version) and _satisfies(version, wanted)
    how = "--no-deps " * bare + _BUILT_HERE * compiled
    return Check(
        name=name,
        ok=ok,
        found=version if ok else f"{version}; spikec needs {wanted}" if version else "not installed",
        why_needed=why_needed,
        remedy=f"{_short(sys.executable)} -m pip install {how}{_constraints()}'{name}{wanted}'",
        required=required,
    )


def _constraints() -> str:
    """pip's option for the versions that a checkout of spikec pins: torch unpinned would bring gigabytes for GPUs."""
    pinned = Path(__file__).resolve().parent.parent / "constraints.txt"
    return f"-c {_short(str(pinned))} " if pinned.is_file() else ""


def _declared_python() -> str:
    try:
        return metadata.metadata("spikec")["Requires-Python"] or ""
    except (metadata.PackageNotFoundError, KeyError):
        return ""


def _requirement(name: str, extra: str) -> str:
    """The version range that spikec's own metadata declares for a package, such as ">=1.26"; "" where it says none."""
    try:
        declared = metadata.requires("spikec") or []
    except metadata.PackageNotFoundError:
        return ""
    for line in declared:
        requirement, _, condition = line.partition(";")
        match = re.fullmatch(r"\s*([A-Za-z0-9._-]+)\s*\(?([^)]*)\)?\s*", requirement)
        named = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", condition)
        if match and _canonical(match[1]) == _canonical(name) and (named[1] if named else "") == extra:
            return match[2].replace(" ", "")
    return ""


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _satisfies(version: str, wanted: str) -> bool:
    """Whether a release number lies in a range of comparisons joined by commas; suffixes such as `rc1` are ignored."""
    have = _release(version)
    for clause in filter(None, wanted.split(",")):
        match = re.fullmatch(r"\s*(>=|<=|==|!=|~=|>|<)\s*([0-9.]+)(\.\*)?\s*", clause)
        if match is None:
            continue  # a form that spikec's own metadata does not use
        limit = _release(match[2])
        size = max(len(have), len(limit))
        a, b = (part + (0,) * (size - len(part)) for part in (have, limit))
        prefix = have[: len(limit)] == limit
        holds = {
            ">=": a >= b,
            "<=": a <= b,
            ">": a > b,
            "<": a < b,
            "==": prefix if match[3] else a == b,
            "!=": not prefix if match[3] else a != b,
            "~=": a >= b and have[: len(limit) - 1] == limit[:-1],
        }
        if not holds[match[1]]:
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


# The machine


def _cache() -> Check:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        problem = ""
    except OSError as error:
        problem = f" is not writable: {error.strerror or error}"
    return Check(
        name="cache folder",
        ok=not problem,
        found=f"{_short(str(folder))}{problem}",
        why_needed="for what spikec makes once and keeps: the Lava environment",
        remedy="export SPIKEC_CACHE_DIR=/a/folder/you/can/write/to",
        required=False,
    )


def _c_compiler() -> Check:
    named = os.environ.get("CC", "").split()
    candidates = list(dict.fromkeys([*named[:1], "cc", "gcc", "clang"]))
    working: list[str] = []
    broken: list[str] = []
    for name in candidates:
        if shutil.which(name) is None:
            continue
        (working if _builds(name) else broken).append(name)
    version = _first_line([working[0], "--version"]) if working else ""
    found = f"{', '.join(working)} ({version})" if working else ""
    if broken:
        found = f"{found}; " * bool(found) + f"{', '.join(broken)} cannot build and run a program"
    return Check(
        name="C compiler",
        ok=bool(working),
        found=found or "none of cc, gcc, clang",
        why_needed="for the C backend and for building what it emits",
        remedy=_install(_CC),
        required=False,
    )


def _make() -> Check:
    path = shutil.which("make")
    version = _first_line(["make", "--version"]) if path else ""
    return Check(
        name="make",
        ok=bool(version),
        found=version or ("does not run" if path else "not on PATH"),
        why_needed="to build the folders that the C backend emits",
        remedy=_install(_MAKE),
        required=False,
    )


def _cross() -> list[Check]:
    """The cross compiler and the emulator for the Raspberry Pi, tried together where both are here."""
    compiler = "aarch64-linux-gnu-gcc"
    emulator = next((name for name in ("qemu-aarch64", "qemu-aarch64-static") if shutil.which(name)), None)
    has_compiler = shutil.which(compiler) is not None
    builds = has_compiler and _builds(compiler, "-static", run=False)
    runs = bool(emulator) and bool(_first_line([emulator or "", "--version"]))
    if builds and emulator:
        runs = _builds(compiler, "-static", runner=emulator)
    return [
        Check(
            name="cross compiler",
            ok=builds,
            found=(_first_line([compiler, "--version"]) if builds else f"{compiler} cannot build a program")
            if has_compiler
            else f"no {compiler}",
            why_needed="to build for a Raspberry Pi on this machine",
            remedy=_install(_CROSS),
            required=False,
        ),
        Check(
            name="emulator",
            ok=runs,
            found=(_first_line([emulator, "--version"]) if runs else f"{emulator} cannot run a program")
            if emulator
            else "no qemu-aarch64",
            why_needed="to check a Raspberry Pi build on this machine",
            remedy=_install(_QEMU),
            required=False,
        ),
    ]


def _builds(compiler: str, *options: str, run: bool = True, runner: str | None = None) -> bool:
    """Whether `compiler` builds a small C99 program and, with `run`, that program gives what it should."""
    with tempfile.TemporaryDirectory(prefix="spikec-doctor-") as folder:
        source, program = Path(folder, "program.c"), Path(folder, "program")
        source.write_text(_PROGRAM, encoding="ascii")
        command = [compiler, "-std=c99", *options, "-o", str(program), str(source)]
        if _output(command) is None or not program.exists():
            return False
        if not run:
            return True
        said = _output([runner, str(program)] if runner else [str(program)])
        return said is not None and said.strip() == _PROGRAM_SAYS


def _output(command: list[str]) -> str | None:
    """A tool's standard output; None where it does not start, fails or does not end."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _first_line(command: list[str]) -> str:
    """The first line that a tool prints, "" where it does not run."""
    return next(iter((_output(command) or "").strip().splitlines()), "")


def _install(packages: Mapping[str, str]) -> str:
    """The command that installs a tool here; "" where no package manager that we know has it."""
    for manager, command in _MANAGERS.items():
        if manager in packages and shutil.which(manager):
            sudo = [] if manager == "brew" or os.geteuid() == 0 else ["sudo"]
            return " ".join([*sudo, *command, packages[manager]])
    return ""


def _short(path: str) -> str:
    """A path as a person would write it: below the current folder or with `~` for the home folder."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if Path(path).is_relative_to(base) and Path(path) != base:
            return prefix + str(Path(path).relative_to(base))
    return path
