"""The interpreter that runs Lava: found or made under the user's cache folder, proved, and run under a time limit.

lava-nc 0.10.0 declares Python 3.10 only and is archived upstream, so it lives in a virtual environment of its own.
`setup` makes that with a Python 3.10 that really runs, or else with 3.11 or 3.12, where one dataclass of Lava has to
be made hashable first. The environment counts only once its marker file stands in it: the marker is written last, after a
small network has run there and gave the recorded spikes, so a half-made environment is never used.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from spikec.cache import cache_dir
from spikec.diagnostics import CompileError
from spikec.doctor import Check

LAVA_VERSION = "0.10.0"
# What Lava's declared ranges allow and what it was tried with. scikit-learn is declared by Lava but not imported by it.
PINS = {
    "numpy": "1.26.4",
    "scipy": "1.15.3",
    "networkx": "2.8.7",
    "asteval": "0.9.33",
    "scikit-learn": "1.7.2",
}
NATIVE_PYTHON = (3, 10)
MENDED_PYTHONS = ((3, 11), (3, 12))  # later ones have no build of the NumPy that Lava needs
NOT_INSTALLED = "lava: not installed (spikec setup lava)"

_MARKER = "spikec-lava.json"
_MARKER_FORMAT = 1
_NEEDED_BYTES = 600_000_000  # the finished environment takes 340 MB; the rest is pip's scratch space
_PROBE_SECONDS = 20
_VENV_SECONDS = 300
_PIP_SECONDS = 1800
_PROOF_SECONDS = 120  # takes half a second; the rest is for slow discs and busy machines
_LOCK_SECONDS = 1800
_GRACE_SECONDS = 3.0  # between a traceback on standard error, or a request to stop, and the end

_CONDA_FOLDERS = ("miniconda3", "miniforge3", "mambaforge", "anaconda3")  # in the home folder

_SELFCHECK = Path(__file__).with_name("selfcheck.py")

_PROBE = """
import json, platform, sys
found = {"version": list(sys.version_info[:3]), "implementation": platform.python_implementation(),
         "bits": 64 if sys.maxsize > 2**32 else 32}
try:
    import venv
    found["venv"] = True
except ImportError:
    found["venv"] = False
try:
    import ensurepip
    found["ensurepip"] = bool(ensurepip.version())
except Exception:
    found["ensurepip"] = False
try:
    import pip
    found["pip"] = True
except ImportError:
    found["pip"] = False
print(json.dumps(found))
"""

_BYTE_ENCODER = "@dataclass\nclass ByteEncoder:\n"
_BYTE_ENCODER_MENDED = (
    "@dataclass(unsafe_hash=True)  # by spikec: Python 3.11 refuses an unhashable dataclass as a default\nclass ByteEncoder:\n"
)


@dataclass(frozen=True)
class Interpreter:
    """A Python that was run and answered. `where` says how it was found; without `ensurepip` pip comes from outside."""

    path: Path
    version: tuple[int, int, int]
    where: str
    ensurepip: bool

    @property
    def minor(self) -> tuple[int, int]:
        """Major and minor version, which decide the environment's folder."""
        return self.version[:2]

    def __str__(self) -> str:
        return f"Python {'.'.join(map(str, self.version))} at {self.path} ({self.where})"


@dataclass(frozen=True)
class LavaEnvironment:
    """A complete environment. `version` is Lava's, `patched` whether Lava's source was mended for a newer Python."""

    folder: Path
    python: Path
    version: str
    python_version: str
    patched: bool

    def __str__(self) -> str:
        mended = ", ByteEncoder mended" if self.patched else ""
        return f"lava-nc {self.version} on Python {self.python_version}{mended}"

    def run(
        self,
        arguments: Sequence[str | Path],
        *,
        timeout: float,
        told: float | None = None,
        cwd: Path | None = None,
        stop: threading.Event | None = None,
    ) -> str:
        """Run this interpreter with `arguments` and return its standard output.

        `timeout` is in seconds; `told` is what messages say in its place, where several runs share a time. `stop` ends the run as
        soon as another thread sets it. Raises CompileError
        SPK512 when it is exceeded and SPK513 when the program fails; a traceback on standard error counts as failed although the
        program may go on, because Lava often hangs after one. Nothing of the run, child processes and shared memory included,
        survives this call.
        """
        command = [str(self.python), *map(str, arguments)]
        outcome = _run_limited(command, timeout=timeout, cwd=cwd, stop=stop)
        what = Path(arguments[0]).name if arguments else "python"
        if outcome.timed_out:
            raise out_of_time(what, timeout if told is None else told, _tail(outcome.stderr))
        if outcome.status != 0:
            raise CompileError(
                "SPK513",
                f"the Lava run of {what} failed with {_status_name(outcome.status)}",
                notes=_tail(outcome.stderr) or _tail(outcome.stdout),
            )
        return outcome.stdout


def out_of_time(what: str, seconds: float, notes: Sequence[str] = ()) -> CompileError:
    """SPK512, for a program that did not end within so many seconds."""
    return CompileError(
        "SPK512",
        f"the Lava run of {what} did not end within {seconds:{'.3g' if seconds < 10 else '.0f'}} s",
        notes=notes,
        fix="Give it more time, or fewer samples; Lava also hangs, without a word, on a network it cannot run.",
    )


@dataclass(frozen=True)
class Status:
    """What there is: the environment, or None and the reason in `detail`."""

    environment: LavaEnvironment | None
    detail: str


def environment_dir(minor: tuple[int, int] = NATIVE_PYTHON) -> Path:
    """The folder of the environment for Python `minor`; it need not exist."""
    return cache_dir() / f"lava-{LAVA_VERSION}-py{minor[0]}.{minor[1]}"


def status() -> Status:
    """What is installed, by reading the marker files only: no subprocess, under a millisecond."""
    detail = "not installed"
    for minor in (NATIVE_PYTHON, *MENDED_PYTHONS):
        found = _examine(environment_dir(minor))
        if found.environment is not None:
            return found
        if detail == "not installed":
            detail = found.detail
    return Status(None, detail)


def locate() -> LavaEnvironment | None:
    """The installed environment, or None where there is no complete one. Reads the marker only."""
    return status().environment


def require() -> LavaEnvironment:
    """The installed environment; CompileError SPK511 where there is none."""
    found = status()
    if found.environment is None:
        raise CompileError(
            "SPK511",
            "Lava is not installed",
            notes=() if found.detail == "not installed" else (found.detail,),
            fix="spikec setup lava",
        )
    return found.environment


def check() -> Check:
    """The line that `spikec doctor` prints about Lava."""
    found = status()
    return Check(
        name="Lava",
        ok=found.environment is not None,
        found=str(found.environment) if found.environment else found.detail,
        why_needed="to run Loihi 2 builds on Intel's own simulator",
        remedy="spikec setup lava",
        required=False,
    )


def find_python() -> Interpreter:
    """A Python that can host Lava, tried by running it: 3.10 wherever one is found, else 3.11, else 3.12.

    `SPIKEC_LAVA_PYTHON` decides alone where it is set. Raises CompileError SPK510, which lists what was tried and why
    it would not do.
    """
    chosen = os.environ.get("SPIKEC_LAVA_PYTHON")
    if chosen:
        path = Path(shutil.which(chosen) or chosen).expanduser()
        answer = _probe(path, "SPIKEC_LAVA_PYTHON", (NATIVE_PYTHON, *MENDED_PYTHONS))
        if isinstance(answer, Interpreter):
            return answer
        raise CompileError(
            "SPK510",
            f"the Python named by SPIKEC_LAVA_PYTHON cannot host Lava: {path} {answer}",
            fix="Set SPIKEC_LAVA_PYTHON to a CPython 3.10 with the venv module, or unset it.",
        )
    rejected: list[str] = []
    for minor in (NATIVE_PYTHON, *MENDED_PYTHONS):
        for path, where in _candidates(minor):
            answer = _probe(path, where, (minor,))
            if isinstance(answer, Interpreter):
                return answer
            rejected.append(f"{path} ({where}) {answer}.")
    raise CompileError(
        "SPK510",
        "no Python for Lava: it needs Python 3.10, or 3.11 or 3.12 with one class of Lava mended",
        notes=rejected or ("No python3.10, python3.11 or python3.12 was found on PATH or in the usual version folders.",),
        fix="Install Python 3.10, or set SPIKEC_LAVA_PYTHON=/path/to/python3.10.",
    )


def setup(*, report: Callable[[str], None], force: bool = False) -> LavaEnvironment:
    """Make the environment where it is missing, and prove it by running a network in it.

    `report` receives one line of progress at a time. An environment that is complete is kept, unless `force`; a
    half-made one is made again. Two setups at once wait for each other. Takes half a minute and downloads about
    80 MB. Raises CompileError SPK510, leaving nothing half-made behind.
    """
    if not force and not os.environ.get("SPIKEC_LAVA_PYTHON"):
        present = locate()
        if present is not None:
            report(f"lava: {present}: already in {present.folder}")
            return present
    interpreter = find_python()
    folder = environment_dir(interpreter.minor)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(folder.name + ".lock"), report):
            present = _examine(folder).environment
            if present is not None and not force:
                report(f"lava: {present}: already in {folder}")
                return present
            return _make(interpreter, folder, report)
    except OSError as error:
        raise CompileError(
            "SPK510",
            f"the Lava environment cannot be written to {folder}: {error.strerror or error}",
            fix="Set SPIKEC_CACHE_DIR to a folder that you can write to.",
        ) from error


def mend_byte_encoder(var_model: Path) -> bool:
    """Make Lava's dataclass `ByteEncoder` hashable, so that Python 3.11 and newer take it as a default; True if changed.

    `var_model` is lava/magma/compiler/var_model.py. Changes one decorator; does nothing where that is done already,
    and raises CompileError SPK510, the file untouched, where the text is not the expected one.
    """
    try:
        text = var_model.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CompileError("SPK510", f"Lava's {var_model.name} cannot be read: {error}") from error
    plain, mended = text.count(_BYTE_ENCODER), text.count(_BYTE_ENCODER_MENDED)
    if (plain, mended) == (0, 1):
        return False
    if (plain, mended) != (1, 0):
        raise CompileError(
            "SPK510",
            f"{var_model} is not the file of lava-nc {LAVA_VERSION}: it does not define ByteEncoder once as expected",
            notes=("It was left as it is.",),
            fix="Use Python 3.10 (SPIKEC_LAVA_PYTHON), where Lava runs unchanged.",
        )
    _write_whole(var_model, text.replace(_BYTE_ENCODER, _BYTE_ENCODER_MENDED))
    return True


# Finding Python


def _candidates(minor: tuple[int, int]) -> Iterator[tuple[Path, str]]:
    """Paths that could be Python `minor`, best first, each once, with where they come from; only existing ones."""
    seen: set[Path] = set()
    for path, where in _places(minor):
        path = Path(os.path.abspath(path))
        if path not in seen and path.is_file() and os.access(path, os.X_OK):
            seen.add(path)
            yield path, where


def _places(minor: tuple[int, int]) -> Iterator[tuple[Path, str]]:
    dotted = f"{minor[0]}.{minor[1]}"
    name = f"python{dotted}"
    if sys.version_info[:2] == minor and sys.executable:
        yield Path(sys.executable), "the running Python"
    for folder in os.get_exec_path():
        if folder:
            yield Path(folder) / name, "on PATH"  # every one: the first may be a shim that does not work
    for root, pattern, where in _version_folders(minor):
        with contextlib.suppress(OSError):
            for path in sorted(root.glob(f"{pattern}/{name}"), key=_numbers, reverse=True):  # the newest first
                yield path, where
    yield from _ask_uv(dotted)


def _version_folders(minor: tuple[int, int]) -> Iterator[tuple[Path, str, str]]:
    """Where tools keep several Pythons: root, pattern of the `bin` folders below it, and the tool's name."""
    dotted = f"{minor[0]}.{minor[1]}"
    environ, home = os.environ, Path.home()
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    yield Path(environ.get("PYENV_ROOT") or home / ".pyenv"), f"versions/{dotted}*/bin", "pyenv"
    yield home / ".pyenv", f"versions/{dotted}*/bin", "pyenv"
    yield Path(environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python"), f"*-{dotted}*/bin", "uv"
    yield Path(environ.get("MISE_DATA_DIR") or data / "mise"), f"installs/python/{dotted}*/bin", "mise"
    yield Path(environ.get("ASDF_DATA_DIR") or home / ".asdf"), f"installs/python/{dotted}*/bin", "asdf"
    yield home / ".rye", f"py/*@{dotted}*/bin", "rye"
    for prefix in (environ.get("CONDA_PREFIX"), "/opt/conda", *_CONDA_FOLDERS):
        if prefix:
            yield home / prefix, "bin", "conda"
            yield home / prefix, "envs/*/bin", "conda"
    yield Path("/opt"), "python*/bin", "/opt"
    yield Path("/opt/python"), f"*{dotted}*/bin", "/opt"
    yield Path("/opt/python"), f"cp{minor[0]}{minor[1]}-*/bin", "/opt"
    yield Path("/opt/hostedtoolcache/Python"), f"{dotted}*/*/bin", "/opt"
    yield Path("/usr/local"), "bin", "/usr/local"
    yield Path("/usr"), "bin", "the system"
    yield home / ".local", "bin", "~/.local"
    yield Path("/opt/homebrew/opt"), f"python@{dotted}/bin", "Homebrew"
    yield Path("/usr/local/opt"), f"python@{dotted}/bin", "Homebrew"
    yield Path("/Library/Frameworks/Python.framework/Versions"), f"{dotted}/bin", "python.org"


def _numbers(path: Path) -> tuple[tuple[int, ...], str]:
    digits = "".join(c if c.isdigit() else " " for c in str(path))
    return tuple(map(int, digits.split())), str(path)


def _ask_uv(dotted: str) -> Iterator[tuple[Path, str]]:
    uv = shutil.which("uv")
    if uv is None:
        return
    try:
        answer = subprocess.run([uv, "python", "find", dotted], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    if answer.returncode == 0 and answer.stdout.strip():
        yield Path(answer.stdout.strip().splitlines()[-1]), "uv"


def _probe(path: Path, where: str, wanted: Sequence[tuple[int, int]]) -> Interpreter | str:
    """Run `path` and look at its answer: the interpreter, or what is wrong with it, as a sentence's end."""
    try:
        answer = subprocess.run(
            [str(path), "-I", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            env=_clean_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"gave no answer within {_PROBE_SECONDS} s"
    except OSError as error:
        return f"does not run: {error.strerror or error}"
    if answer.returncode != 0:
        first = next(iter(answer.stderr.strip().splitlines()), _status_name(answer.returncode))
        return f"does not run: {first.rstrip('.')}"
    try:
        found = json.loads(answer.stdout)
        version = (int(found["version"][0]), int(found["version"][1]), int(found["version"][2]))
        implementation, bits = str(found["implementation"]), int(found["bits"])
        has_venv, has_ensurepip, has_pip = bool(found["venv"]), bool(found["ensurepip"]), bool(found["pip"])
    except (ValueError, KeyError, TypeError, IndexError):
        return "is not a Python"
    if version[:2] not in wanted:
        return f"is Python {version[0]}.{version[1]}.{version[2]}"
    if implementation != "CPython" or bits != 64:
        return f"is {bits}-bit {implementation}; Lava's packages are built for 64-bit CPython"
    if not has_venv:
        return "has no venv module"
    if not (has_ensurepip or has_pip or _has_pip(sys.executable)):
        return "has neither ensurepip nor pip"
    return Interpreter(path, version, where, has_ensurepip)


def _has_pip(python: str | Path) -> bool:
    return _run([python, "-I", "-c", "import pip"], _PROBE_SECONDS, None) == 0


# Making the environment


def _make(interpreter: Interpreter, folder: Path, report: Callable[[str], None]) -> LavaEnvironment:
    """Build in place, as a virtual environment knows its own path, and write the marker last."""
    free = shutil.disk_usage(folder.parent).free
    if free < _NEEDED_BYTES:
        raise CompileError(
            "SPK510",
            f"the Lava environment needs {_NEEDED_BYTES // 10**6} MB; {folder.parent} has {free // 10**6} MB free",
            fix="Free some space, or set SPIKEC_CACHE_DIR to a folder on another disc.",
        )
    if folder.exists():
        (folder / _MARKER).unlink(missing_ok=True)
        report(f"lava: removing the old environment in {folder}")
        shutil.rmtree(folder)
    started = time.monotonic()
    log = folder.with_name(folder.name + ".log")
    report(f"lava: using {interpreter}")
    try:
        with log.open("wb") as sink:
            _make_venv(interpreter, folder, sink, log)
            python = folder / "bin" / "python"
            report(f"lava: installing lava-nc {LAVA_VERSION} into {folder}")
            pins = [f"{name}=={version}" for name, version in PINS.items()]
            _pip(python, [*pins], sink, log)
            # A newer Python is outside the range that Lava declares, and the pins are all that it depends on.
            _pip(python, ["--no-deps", "--ignore-requires-python", f"lava-nc=={LAVA_VERSION}"], sink, log)
            patched = interpreter.minor != NATIVE_PYTHON
            if patched:
                var_model = _site_packages(folder) / "lava" / "magma" / "compiler" / "var_model.py"
                mend_byte_encoder(var_model)
                report(
                    "lava: Lava was written for Python 3.10: made its dataclass ByteEncoder hashable for a newer one "
                    f"({var_model.name}, in this environment only)"
                )
        report("lava: running a network of two LIF populations against recorded values")
        version = _prove(python, patched=patched)
        environment = LavaEnvironment(folder, python, version, ".".join(map(str, interpreter.version)), patched)
        _write_whole(folder / _MARKER, json.dumps(_marker(environment), indent=2) + "\n")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    seconds = time.monotonic() - started
    report(f"lava: {environment}: ready in {folder} ({_size(folder) // 10**6} MB, {seconds:.0f} s)")
    return environment


def _make_venv(interpreter: Interpreter, folder: Path, sink: IO[bytes], log: Path) -> None:
    """A virtual environment with pip; where ensurepip is missing (Debian splits it off) pip comes from outside."""
    if interpreter.ensurepip:
        if _run([interpreter.path, "-I", "-m", "venv", folder], _VENV_SECONDS, sink) == 0:
            return
        shutil.rmtree(folder, ignore_errors=True)
    if _run([interpreter.path, "-I", "-m", "venv", "--without-pip", folder], _VENV_SECONDS, sink) == 0:
        python = folder / "bin" / "python"
        for outside in (interpreter.path, sys.executable):
            install = [outside, "-I", "-m", "pip", "--python", python, "install", "--no-input", "pip"]
            if _has_pip(outside) and _run(install, _PIP_SECONDS, sink) == 0:
                return
    raise CompileError(
        "SPK510",
        f"{interpreter.path} cannot make a virtual environment",
        notes=(*_tail(log.read_text(errors="replace")), f"The whole output is in {log}."),
        fix="Install its venv package (Debian: apt-get install python3-venv), or set SPIKEC_LAVA_PYTHON.",
    )


def _pip(python: Path, arguments: list[str], sink: IO[bytes], log: Path) -> None:
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--only-binary", ":all:"]
    if _run([python, "-I", "-m", "pip", "install", *options, *arguments], _PIP_SECONDS, sink) == 0:
        return
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR")]
    raise CompileError(
        "SPK510",
        f"pip could not install {arguments[-1] if len(arguments) > 1 else arguments[0]} for Lava"
        if arguments[-1].startswith("lava-nc")
        else "pip could not install the packages that Lava needs",
        notes=(*errors[:3], f"The whole output is in {log}."),
        fix="Check the network connection and pip's settings, then run: spikec setup lava",
    )


def _prove(python: Path, *, patched: bool) -> str:
    """Run the self-check; Lava's version, or CompileError SPK510 where the answer is not the recorded one."""
    outcome = _run_limited([str(python), "-I", str(_SELFCHECK)], timeout=_PROOF_SECONDS, cwd=None)
    notes: tuple[str, ...]
    try:
        answer: dict[str, Any] = json.loads(outcome.stdout)
        version, wrong = str(answer["lava"]), [str(name) for name in answer["wrong"]]
    except (ValueError, KeyError, TypeError):
        version, wrong = "", []
    if outcome.timed_out:
        notes = (f"It did not end within {_PROOF_SECONDS} s.", *_tail(outcome.stderr))
    elif wrong:
        notes = (f"These differ from the values recorded on lava-nc {LAVA_VERSION}: {', '.join(wrong)}.",)
    elif outcome.status != 0 or version != LAVA_VERSION:
        notes = _tail(outcome.stderr) or _tail(outcome.stdout) or (f"It ended with {_status_name(outcome.status)}.",)
    else:
        return version
    raise CompileError(
        "SPK510",
        "Lava was installed, but the network that proves it did not give the recorded spikes",
        notes=notes,
        fix="Set SPIKEC_LAVA_PYTHON to a Python 3.10, then run: spikec setup lava" if patched else None,
    )


def _marker(environment: LavaEnvironment) -> dict[str, object]:
    return {
        "format": _MARKER_FORMAT,
        "lava": environment.version,
        "python": environment.python_version,
        "patched": environment.patched,
        "pins": PINS,
    }


def _examine(folder: Path) -> Status:
    """The environment in `folder`, if it is complete and of this version."""
    marker = folder / _MARKER
    if not folder.is_dir():
        return Status(None, "not installed")
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
        expected = {"format": _MARKER_FORMAT, "lava": LAVA_VERSION, "pins": PINS}
        if {key: found[key] for key in expected} != expected:
            return Status(None, f"{folder} was made by another version of spikec")
        environment = LavaEnvironment(
            folder, folder / "bin" / "python", str(found["lava"]), str(found["python"]), bool(found["patched"])
        )
    except FileNotFoundError:
        return Status(None, f"{folder} is half-made")
    except (OSError, ValueError, KeyError, TypeError):
        return Status(None, f"{marker} is damaged")
    if not os.access(environment.python, os.X_OK):  # follows the link: false also when the base Python is gone
        return Status(None, f"{environment.python} does not run any more")
    return Status(environment, str(environment))


@contextlib.contextmanager
def _locked(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file; the system frees it when a process dies, so it is never stale."""
    import fcntl  # absent on Windows, where Lava's environment is not supported

    with path.open("a") as handle:
        deadline = time.monotonic() + _LOCK_SECONDS
        waiting = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    report("lava: another setup is at work; waiting for it")
                    waiting = True
                if time.monotonic() > deadline:
                    raise CompileError(
                        "SPK510",
                        f"another setup has held {path} for {_LOCK_SECONDS // 60} minutes",
                        fix="Wait for it or end it, then run: spikec setup lava",
                    ) from None
                time.sleep(0.2)
        yield


def _site_packages(folder: Path) -> Path:
    found = sorted((folder / "lib").glob("python3.*/site-packages"))
    if len(found) != 1:
        raise CompileError("SPK510", f"{folder} has no site-packages folder")
    return found[0]


def _size(folder: Path) -> int:
    """Bytes of the files under `folder`."""
    return sum(os.lstat(os.path.join(path, name)).st_size for path, _, names in os.walk(folder) for name in names)


def _write_whole(path: Path, text: str) -> None:
    """Write `path` so that it never stands there in part."""
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


# Running


@dataclass(frozen=True)
class _Outcome:
    """How a program ended; `status` is as in subprocess: negative for a signal."""

    status: int
    stdout: str
    stderr: str
    timed_out: bool


def _clean_environment() -> dict[str, str]:
    """The environment without what would lead another Python, or pip, astray."""
    astray = {"CONSTRAINT", "REQUIREMENT", "TARGET", "PREFIX", "ROOT", "USER", "PYTHON", "NO_DEPS", "NO_BINARY"}
    astray |= {"ONLY_BINARY", "REQUIRE_VIRTUALENV", "REPORT", "DRY_RUN", "QUIET", "LOG", "BUILD_CONSTRAINT"}
    astray = {f"PIP_{name}" for name in astray} | {"VIRTUAL_ENV"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k not in astray}
    # Lava forks one process for every part of a network: threads of a linear algebra library would only get in the way.
    return kept | {"PYTHONNOUSERSITE": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _run(command: Sequence[str | Path], timeout: float, sink: IO[bytes] | None) -> int:
    """Run `command` with its output into `sink`, or nowhere; its exit status, -1 where it does not start or end."""
    output = subprocess.DEVNULL if sink is None else sink
    try:
        return subprocess.run(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=timeout,
            env=_clean_environment(),
            check=False,
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return -1


def _run_limited(command: list[str], *, timeout: float, cwd: Path | None, stop: threading.Event | None = None) -> _Outcome:
    """Run a Lava program in a process group of its own, and end the whole group with it.

    Output goes through files: Lava's children would hold a pipe open after their parent's end. The group is asked to
    stop before it is killed, so that Python's resource tracker can free the shared memory.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=_clean_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise CompileError(
                "SPK513",
                f"the Lava interpreter {command[0]} does not start: {error.strerror or error}",
                fix="spikec setup lava",
            ) from error
        timed_out = failed = False
        try:
            deadline = time.monotonic() + timeout
            seen_traceback: float | None = None
            while process.poll() is None:
                now = time.monotonic()
                if seen_traceback is None and _holds(err, b"Traceback (most recent call last)"):
                    seen_traceback = now
                failed = seen_traceback is not None and now > seen_traceback + _GRACE_SECONDS
                timed_out = now > deadline
                if failed or timed_out or (stop is not None and stop.is_set()):
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        finally:
            _end_group(process)
        code = process.returncode
        if failed:
            timed_out = False
            code = code or 1
        return _Outcome(code, _contents(out), _contents(err), timed_out)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process group that `process` leads; returns when its leader is gone and every member was killed."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while process.poll() is None or _is_alive(process.pid):
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
    process.wait()


def _is_alive(group: int) -> bool:
    """Whether a process group has a member that still runs: not one that only waits to be collected by init."""
    os.killpg(group, 0)  # raises ProcessLookupError where there is none at all
    states = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, member_of = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(member_of) == group:
                states.append(state)
    return not states or any(state not in "ZX" for state in states)  # no /proc: believe killpg


def _holds(file: IO[bytes], text: bytes) -> bool:
    return text in os.pread(file.fileno(), 1 << 20, 0)


def _contents(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", errors="replace")


def _tail(text: str, lines: int = 6) -> tuple[str, ...]:
    """The last lines of a program's output, for the notes of an error."""
    kept = [line.rstrip() for line in text.splitlines() if line.strip() and "resource_tracker" not in line]
    return tuple(kept[-lines:])


def _status_name(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"
