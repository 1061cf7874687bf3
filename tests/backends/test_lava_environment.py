"""Finding a Python for Lava, making its environment, mending it, and running programs in it under a time limit."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spikec.backends.lava import environment, selfcheck
from spikec.diagnostics import CompileError

TESTS = Path(__file__).resolve().parent.parent
GOOD = {"version": [3, 10, 4], "implementation": "CPython", "bits": 64, "venv": True, "ensurepip": True, "pip": False}
SHIM = 'echo "pyenv: python3.10: command not found" >&2\nexit 127\n'

VAR_MODEL = '''from dataclasses import dataclass


@dataclass
class ByteEncoder:
    """Encodes ptr, len, base"""
    base: int = 0


@dataclass
class CoreEncoder:
    x: ByteEncoder = ByteEncoder()
'''


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}")
    path.chmod(0o755)
    return path


def answering(path: Path, **changes: object) -> Path:
    """A fake Python that answers the probe as 3.10.4 would, but for the changes."""
    return script(path, f"echo {shlex.quote(json.dumps(GOOD | changes))}\n")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with an empty home folder, an empty PATH folder (returned), no version folders, and no Python 3.11."""
    for name in ("SPIKEC_LAVA_PYTHON", "XDG_CACHE_HOME", "XDG_DATA_HOME", "PYENV_ROOT", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("SPIKEC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "_version_folders", lambda minor: iter(()))
    monkeypatch.setattr(environment, "MENDED_PYTHONS", ())
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


# Finding a Python


def test_a_shim_that_fails_is_passed_over(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script(bare / "python3.10", SHIM)
    good = answering(tmp_path / "later" / "python3.10")
    monkeypatch.setenv("PATH", f"{bare}:{tmp_path / 'later'}")
    found = environment.find_python()
    assert (found.path, found.version, found.where) == (good, (3, 10, 4), "on PATH")
    assert str(found) == f"Python 3.10.4 at {good} (on PATH)"


def test_the_newest_of_the_version_folders_is_taken(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    home = bare.parent / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(bare))
    for name in ("SPIKEC_LAVA_PYTHON", "PYENV_ROOT", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    script(bare / "python3.10", SHIM)
    for version in ("3.10.9", "3.10.13", "3.9.18"):
        answering(home / ".pyenv" / "versions" / version / "bin" / "python3.10")
    found = environment.find_python()
    assert found.path == home / ".pyenv" / "versions" / "3.10.13" / "bin" / "python3.10"
    assert found.where == "pyenv"


@pytest.mark.parametrize(
    ("variable", "folder", "where"),
    [
        (None, "home/.local/share/uv/python/cpython-3.10.4-linux-x86_64-gnu/bin", "uv"),
        ("UV_PYTHON_INSTALL_DIR", "special/cpython-3.10.4-linux/bin", "uv"),
        (None, "home/.local/share/mise/installs/python/3.10.4/bin", "mise"),
        (None, "home/.asdf/installs/python/3.10.4/bin", "asdf"),
        (None, "home/miniconda3/envs/lava/bin", "conda"),
        ("CONDA_PREFIX", "special/bin", "conda"),
        ("PYENV_ROOT", "special/versions/3.10.4/bin", "pyenv"),
    ],
)
def test_other_version_folders(bare: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, folder: str, where: str) -> None:
    root = bare.parent
    monkeypatch.undo()
    for name in ("SPIKEC_LAVA_PYTHON", "PYENV_ROOT", "XDG_DATA_HOME", "CONDA_PREFIX", "UV_PYTHON_INSTALL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(root / "home"))
    monkeypatch.setenv("PATH", str(bare))
    if variable:
        monkeypatch.setenv(variable, str(root / "special"))
    path = answering(root / folder / "python3.10")
    assert (path, where) in list(environment._candidates((3, 10)))


def test_uv_is_asked(bare: Path, tmp_path: Path) -> None:
    path = answering(tmp_path / "somewhere" / "python3.10")
    script(bare / "uv", f'[ "$*" = "python find 3.10" ] && echo {path}\n')
    found = environment.find_python()
    assert (found.path, found.where) == (path, "uv")


def test_a_uv_that_finds_nothing(bare: Path) -> None:
    script(bare / "uv", 'echo "error: no interpreter found" >&2\nexit 2\n')
    with pytest.raises(CompileError, match="no Python for Lava"):
        environment.find_python()


def test_newer_pythons_come_after_every_3_10(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MENDED_PYTHONS", ((3, 11), (3, 12)))
    monkeypatch.setattr(environment.sys, "version_info", (3, 13, 1))
    script(bare / "python3.10", SHIM)
    newest = answering(bare / "python3.12", version=[3, 12, 3])
    assert environment.find_python().path == newest
    newer = answering(bare / "python3.11", version=[3, 11, 2])
    assert environment.find_python().path == newer
    older = answering(bare / "python3.10")
    assert environment.find_python().path == older


def test_the_running_python_serves_as_3_11(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = answering(bare.parent / "venv" / "python", version=[3, 11, 7])
    monkeypatch.setattr(environment, "MENDED_PYTHONS", ((3, 11), (3, 12)))
    monkeypatch.setattr(environment.sys, "version_info", (3, 11, 7))
    monkeypatch.setattr(environment.sys, "executable", str(running))
    found = environment.find_python()
    assert (found.path, found.where) == (running, "the running Python")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (SHIM, "does not run: pyenv: python3.10: command not found."),
        ("exit 3\n", "does not run: exit status 3."),
        ("echo hello\n", "is not a Python."),
        ("echo '[1, 2]'\n", "is not a Python."),
        ("sleep 20\n", "gave no answer within 0.3 s."),
        (f"echo '{json.dumps(GOOD | {'version': [3, 9, 18]})}'\n", "is Python 3.9.18."),
        (
            f"echo '{json.dumps(GOOD | {'implementation': 'PyPy'})}'\n",
            "is 64-bit PyPy; Lava's packages are built for 64-bit CPython.",
        ),
        (
            f"echo '{json.dumps(GOOD | {'bits': 32})}'\n",
            "is 32-bit CPython; Lava's packages are built for 64-bit CPython.",
        ),
        (f"echo '{json.dumps(GOOD | {'venv': False})}'\n", "has no venv module."),
    ],
)
def test_what_will_not_do_is_named_with_its_reason(bare: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str) -> None:
    monkeypatch.setattr(environment, "_PROBE_SECONDS", 0.3 if "sleep" in body else 20)
    if "sleep" in body:
        monkeypatch.setenv("PATH", f"{bare}:/usr/bin:/bin")
        body = "exec " + body
    path = script(bare / "python3.10", body)
    with pytest.raises(CompileError) as raised:
        environment.find_python()
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.code == "SPK510"
    assert diagnostic.message == "no Python for Lava: it needs Python 3.10, or 3.11 or 3.12 with one class of Lava mended"
    assert diagnostic.notes[0] == f"{path} (on PATH) {reason}"
    assert diagnostic.fix == "Install Python 3.10, or set SPIKEC_LAVA_PYTHON=/path/to/python3.10."


def test_a_file_that_cannot_be_executed(bare: Path) -> None:
    path = bare / "python3.10"
    path.write_bytes(b"\x7fELF but not really")
    path.chmod(0o755)
    with pytest.raises(CompileError) as raised:
        environment.find_python()
    assert f"{path} (on PATH) does not run: Exec format error." in str(raised.value)


def test_without_ensurepip_a_pip_from_outside_will_do(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = answering(bare / "python3.10", ensurepip=False)
    monkeypatch.setattr(environment, "_has_pip", lambda python: True)
    assert environment.find_python().ensurepip is False
    monkeypatch.setattr(environment, "_has_pip", lambda python: False)
    with pytest.raises(CompileError) as raised:
        environment.find_python()
    assert f"{path} (on PATH) has neither ensurepip nor pip." in str(raised.value)


def test_nothing_at_all(bare: Path) -> None:
    with pytest.raises(CompileError) as raised:
        environment.find_python()
    assert "note: No python3.10, python3.11 or python3.12 was found on PATH or in the usual version folders." in str(raised.value)


def test_the_variable_decides_alone(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answering(bare / "python3.10")
    chosen = answering(tmp_path / "mine" / "python", version=[3, 10, 1])
    monkeypatch.setenv("SPIKEC_LAVA_PYTHON", str(chosen))
    assert environment.find_python().path == chosen
    answering(chosen, version=[3, 12, 1])
    with pytest.raises(CompileError) as raised:
        environment.find_python()
    assert str(raised.value).splitlines() == [
        f"error[SPK510]: the Python named by SPIKEC_LAVA_PYTHON cannot host Lava: {chosen} is Python 3.12.1",
        "  fix: Set SPIKEC_LAVA_PYTHON to a CPython 3.10 with the venv module, or unset it.",
    ]


def test_the_variable_may_be_a_name_on_path(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = answering(bare / "python3.10")
    monkeypatch.setenv("SPIKEC_LAVA_PYTHON", "python3.10")
    assert environment.find_python().path == path
    monkeypatch.setenv("SPIKEC_LAVA_PYTHON", "no-such-python")
    with pytest.raises(CompileError, match=r"no-such-python does not run: No such file or directory"):
        environment.find_python()


# Making the environment

FAKE_VENV_PYTHON = """
echo "$*" >> {log}
case "$*" in
  *"-m pip install"*) {pip} ;;
  *selfcheck.py*) {selfcheck} ;;
  *) exit 99 ;;
esac
"""


class Machine:
    """A fake Python 3.10 whose `-m venv` makes a fake environment; `log` holds what that was asked to do."""

    def __init__(self, bare: Path) -> None:
        self.path = bare / "python3.10"
        self.log = bare.parent / "asked.log"
        self.lines: list[str] = []
        self.answer: dict[str, object] = {"lava": "0.10.0", "measured": selfcheck.GOLDEN, "wrong": []}
        self.make()

    def make(
        self,
        *,
        pip: str = "exit 0",
        selfcheck: str = "",
        venv: str = "",
        version: tuple[int, int, int] = (3, 10, 4),
        ensurepip: bool = True,
    ) -> None:
        dotted = f"{version[0]}.{version[1]}"
        python = FAKE_VENV_PYTHON.format(
            log=self.log, pip=pip, selfcheck=selfcheck or f"echo {shlex.quote(json.dumps(self.answer))}"
        )
        lava = f'"$folder"/lib/python{dotted}/site-packages/lava/magma/compiler'
        probe = json.dumps(GOOD | {"version": list(version), "ensurepip": ensurepip})
        script(
            self.path,
            f"""
echo "$*" >> {self.log}
for folder; do :; done
case "$*" in
  "-I -c "*) echo {shlex.quote(probe)} ;;
  *"-m venv"*) {venv}
    /bin/mkdir -p "$folder"/bin {lava}
    echo {shlex.quote(VAR_MODEL)} > {lava}/var_model.py
    printf '#!/bin/sh\\n%s' {shlex.quote(python)} > "$folder"/bin/python
    /bin/chmod +x "$folder"/bin/python ;;
  *) exit 99 ;;
esac
""",
        )

    def setup(self, *, force: bool = False) -> environment.LavaEnvironment:
        self.lines = []
        return environment.setup(report=self.lines.append, force=force)

    def asked(self) -> list[str]:
        """What the Pythons were asked since the last call, less the probes."""
        text = self.log.read_text() if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return [line for line in text.splitlines() if line.startswith("-I -m") or "selfcheck.py" in line]


@pytest.fixture
def machine(bare: Path) -> Machine:
    return Machine(bare)


def test_setup_then_locate(machine: Machine, tmp_path: Path) -> None:
    assert environment.locate() is None
    assert environment.status().detail == "not installed"
    made = machine.setup()
    folder = tmp_path / "cache" / "lava-0.10.0-py3.10"
    assert made == environment.LavaEnvironment(folder, folder / "bin" / "python", "0.10.0", "3.10.4", False)
    assert environment.locate() == made == environment.require()
    assert environment.check().ok and environment.check().found == "lava-nc 0.10.0 on Python 3.10.4"
    asked = machine.asked()
    assert asked[0] == f"-I -m venv {folder}"
    for pin in ("numpy==1.26.4", "scipy==1.15.3", "networkx==2.8.7", "asteval==0.9.33", "scikit-learn==1.7.2"):
        assert pin in asked[1].split()
    assert asked[2].endswith("--no-deps --ignore-requires-python lava-nc==0.10.0")
    assert asked[3].endswith("selfcheck.py")
    assert machine.lines[0] == f"lava: using Python 3.10.4 at {machine.path} (on PATH)"
    assert machine.lines[-1].startswith(f"lava: lava-nc 0.10.0 on Python 3.10.4: ready in {folder} (")


def test_a_second_setup_keeps_the_first_unless_forced(machine: Machine) -> None:
    made = machine.setup()
    machine.asked()
    assert machine.setup() == made
    assert machine.asked() == []
    assert machine.lines == [f"lava: lava-nc 0.10.0 on Python 3.10.4: already in {made.folder}"]
    (made.folder / "stale").touch()
    assert machine.setup(force=True) == made
    assert len(machine.asked()) == 4
    assert not (made.folder / "stale").exists()


def test_a_half_made_environment_is_never_used_and_made_again(machine: Machine) -> None:
    folder = environment.environment_dir()
    script(folder / "bin" / "python", "exit 0\n")
    (folder / "stale").touch()
    assert environment.locate() is None
    assert environment.status().detail == f"{folder} is half-made"
    assert machine.setup().folder == folder
    assert machine.lines[0] == f"lava: removing the old environment in {folder}"
    assert not (folder / "stale").exists()


def test_require_says_what_is_wrong_and_what_to_do(machine: Machine) -> None:
    with pytest.raises(CompileError) as raised:
        environment.require()
    assert str(raised.value) == "error[SPK511]: Lava is not installed\n  fix: spikec setup lava"
    environment.environment_dir().mkdir(parents=True)
    with pytest.raises(CompileError, match="is half-made"):
        environment.require()
    check = environment.check()
    assert (check.ok, check.required, check.remedy) == (False, False, "spikec setup lava")
    assert check.found == f"{environment.environment_dir()} is half-made"


@pytest.mark.parametrize(
    ("spoil", "detail"),
    [
        (lambda f: (f / "bin" / "python").unlink(), "{folder}/bin/python does not run any more"),
        (lambda f: (f / "bin" / "python").chmod(0o644), "{folder}/bin/python does not run any more"),
        (
            lambda f: ((f / "bin" / "python").unlink(), (f / "bin" / "python").symlink_to("/no/such/python")),
            "{folder}/bin/python does not run any more",
        ),
        (lambda f: (f / "spikec-lava.json").write_text("{"), "{folder}/spikec-lava.json is damaged"),
        (lambda f: (f / "spikec-lava.json").write_text("[]"), "{folder}/spikec-lava.json is damaged"),
        (lambda f: (f / "spikec-lava.json").write_bytes(b"\xff\xfe"), "{folder}/spikec-lava.json is damaged"),
        (lambda f: (f / "spikec-lava.json").unlink(), "{folder} is half-made"),
        (
            lambda f: (f / "spikec-lava.json").write_text((f / "spikec-lava.json").read_text().replace("1.26.4", "1.26.3")),
            "{folder} was made by another version of spikec",
        ),
    ],
)
def test_a_spoiled_environment_is_seen_and_made_again(machine: Machine, spoil: Callable[[Path], object], detail: str) -> None:
    made = machine.setup()
    spoil(made.folder)
    assert environment.locate() is None
    assert environment.status().detail == detail.format(folder=made.folder)
    assert machine.setup() == made
    assert environment.locate() == made


def test_a_failing_pip_leaves_nothing(machine: Machine) -> None:
    machine.make(pip='echo "ERROR: No matching distribution found for numpy==1.26.4"; exit 1')
    with pytest.raises(CompileError) as raised:
        machine.setup()
    log = environment.environment_dir().with_name("lava-0.10.0-py3.10.log")
    assert str(raised.value).splitlines() == [
        "error[SPK510]: pip could not install the packages that Lava needs",
        "  note: ERROR: No matching distribution found for numpy==1.26.4",
        f"  note: The whole output is in {log}.",
        "  fix: Check the network connection and pip's settings, then run: spikec setup lava",
    ]
    assert not environment.environment_dir().exists()


def test_a_failing_venv_leaves_nothing(machine: Machine) -> None:
    machine.make(venv='echo "Error: no room" >&2; exit 1;')
    with pytest.raises(CompileError) as raised:
        machine.setup()
    assert f"{machine.path} cannot make a virtual environment" in str(raised.value)
    assert "Error: no room" in str(raised.value)
    assert not environment.environment_dir().exists()


def test_an_interrupt_leaves_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "_pip", interrupt)
    with pytest.raises(KeyboardInterrupt):
        machine.setup()
    assert not environment.environment_dir().exists()


@pytest.mark.parametrize(
    ("selfcheck_says", "note"),
    [
        ('echo \'{"lava": "0.10.0", "measured": {}, "wrong": ["u", "spikes"]}\'; exit 3',
         "These differ from the values recorded on lava-nc 0.10.0: u, spikes."),
        ('echo "ModuleNotFoundError: No module named lava" >&2; exit 1', "ModuleNotFoundError: No module named lava"),
        ("exit 0", "It ended with exit status 0."),
        ('echo \'{"lava": "0.9.0", "measured": {}, "wrong": []}\'', '{"lava": "0.9.0", "measured": {}, "wrong": []}'),
        ("exec /bin/sleep 20", "It did not end within 0.3 s."),
    ],
)  # fmt: skip
def test_an_environment_that_fails_its_proof_is_removed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, selfcheck_says: str, note: str
) -> None:
    if "sleep" in selfcheck_says:
        monkeypatch.setattr(environment, "_PROOF_SECONDS", 0.3)
    machine.make(selfcheck=selfcheck_says)
    with pytest.raises(CompileError) as raised:
        machine.setup()
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.message == "Lava was installed, but the network that proves it did not give the recorded spikes"
    assert diagnostic.notes == (note,)
    assert not environment.environment_dir().exists()


def test_python_3_11_is_mended_and_said_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MENDED_PYTHONS", ((3, 11), (3, 12)))
    monkeypatch.setenv("SPIKEC_LAVA_PYTHON", str(machine.path))
    machine.make(version=(3, 11, 7))
    made = machine.setup()
    assert made.folder == environment.environment_dir((3, 11))
    assert made.patched and str(made) == "lava-nc 0.10.0 on Python 3.11.7, ByteEncoder mended"
    assert environment.locate() == made
    assert any("made its dataclass ByteEncoder hashable for a newer one" in line for line in machine.lines)
    text = (made.folder / "lib/python3.11/site-packages/lava/magma/compiler/var_model.py").read_text()
    assert "@dataclass(unsafe_hash=True)" in text


def test_without_ensurepip_pip_comes_from_outside(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outside = script(tmp_path / "outside", f'echo "outside $*" >> {machine.log}\n')
    monkeypatch.setattr(environment.sys, "executable", str(outside))
    monkeypatch.setattr(environment, "_has_pip", lambda python: str(python) == str(outside))
    machine.make(ensurepip=False)
    made = machine.setup()
    text = machine.log.read_text().splitlines()
    assert f"-I -m venv --without-pip {made.folder}" in text
    assert f"outside -I -m pip --python {made.python} install --no-input pip" in text


def test_a_cache_folder_that_cannot_be_made(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CompileError) as raised:
        machine.setup()
    assert str(raised.value).splitlines() == [
        f"error[SPK510]: the Lava environment cannot be written to {tmp_path}/cache/lava-0.10.0-py3.10: File exists",
        "  fix: Set SPIKEC_CACHE_DIR to a folder that you can write to.",
    ]


def test_too_little_space(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = environment.shutil.disk_usage(tmp_path)._replace(free=12_000_000)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CompileError, match=r"needs 600 MB; .* has 12 MB free"):
        machine.setup()


def test_two_setups_wait_for_each_other(machine: Machine) -> None:
    results: list[environment.LavaEnvironment] = []
    lines: list[str] = []
    folder = environment.environment_dir()
    folder.parent.mkdir(parents=True)
    lock = folder.with_name(folder.name + ".lock")
    with environment._locked(lock, lines.append):
        thread = threading.Thread(target=lambda: results.append(environment.setup(report=lines.append)))
        thread.start()
        deadline = time.monotonic() + 10
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lines == ["lava: another setup is at work; waiting for it"]
        assert not folder.exists()
    thread.join(20)
    assert results == [environment.locate()] != [None]


def test_a_setup_does_not_wait_for_ever(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_LOCK_SECONDS", 0)
    folder = environment.environment_dir()
    folder.parent.mkdir(parents=True)
    with (
        environment._locked(folder.with_name(folder.name + ".lock"), lambda line: None),
        pytest.raises(CompileError, match="another setup has held"),
    ):
        machine.setup()


def test_the_folder_follows_the_cache_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("SPIKEC_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert environment.environment_dir() == Path("/home/someone/.cache/spikec/lava-0.10.0-py3.10")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert environment.environment_dir().parent == Path("/home/someone/.cache/spikec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment.environment_dir((3, 11)) == tmp_path / "spikec" / "lava-0.10.0-py3.11"
    monkeypatch.setenv("SPIKEC_CACHE_DIR", "~/mine")
    assert environment.environment_dir() == Path("/home/someone/mine/lava-0.10.0-py3.10")


# Mending Lava for Python 3.11


def test_the_mended_class_is_hashable_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "var_model.py"
    path.write_text(VAR_MODEL)
    with pytest.raises(ValueError, match="mutable default"):
        exec(compile(VAR_MODEL, "var_model.py", "exec"), {"__name__": "builtins"})
    assert environment.mend_byte_encoder(path) is True
    mended = path.read_text()
    assert [a for a, b in zip(mended.splitlines(), VAR_MODEL.splitlines(), strict=True) if a != b] == [
        "@dataclass(unsafe_hash=True)  # by spikec: Python 3.11 refuses an unhashable dataclass as a default"
    ]
    exec(compile(mended, "var_model.py", "exec"), {"__name__": "builtins"})
    assert environment.mend_byte_encoder(path) is False
    assert path.read_text() == mended
    assert [entry.name for entry in tmp_path.iterdir()] == ["var_model.py"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        VAR_MODEL.replace("@dataclass\nclass ByteEncoder", "@dataclass(frozen=True)\nclass ByteEncoder"),
        VAR_MODEL + VAR_MODEL,
        VAR_MODEL.replace("ByteEncoder", "BytesEncoder"),
    ],
)
def test_an_unexpected_file_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "var_model.py"
    path.write_text(text)
    with pytest.raises(CompileError, match="does not define ByteEncoder once as expected") as raised:
        environment.mend_byte_encoder(path)
    assert raised.value.code == "SPK510"
    assert path.read_text() == text


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"var_model\.py cannot be read"):
        environment.mend_byte_encoder(tmp_path / "var_model.py")


# Running programs


def this_python() -> environment.LavaEnvironment:
    """The running Python in Lava's place: what is tested here is how programs are run."""
    return environment.LavaEnvironment(Path(sys.prefix), Path(sys.executable), "0.10.0", "3.11", False)


def program(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "program.py"
    path.write_text(text)
    return path


def test_output_folder_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PIP_CONSTRAINT", "constraints.txt")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.setenv("USER", "someone")
    path = program(
        tmp_path,
        "import os, sys\n"
        "print(os.getcwd(), sys.argv[1:])\n"
        "print([os.environ.get(n) for n in ('PYTHONPATH', 'PIP_CONSTRAINT', 'PIP_FIND_LINKS', 'USER')])\n",
    )
    said = this_python().run([path, "--steps", "3"], timeout=30, cwd=tmp_path)
    assert said.splitlines() == [f"{tmp_path} ['--steps', '3']", "[None, None, '/wheels', 'someone']"]


def test_a_failing_program(tmp_path: Path) -> None:
    path = program(tmp_path, "import sys\nprint('no such layer', file=sys.stderr)\nsys.exit(4)\n")
    with pytest.raises(CompileError) as raised:
        this_python().run([path], timeout=30)
    assert str(raised.value).splitlines() == [
        "error[SPK513]: the Lava run of program.py failed with exit status 4",
        "  note: no such layer",
    ]


def test_a_killed_program(tmp_path: Path) -> None:
    path = program(tmp_path, "import os\nos.kill(os.getpid(), 9)\n")
    with pytest.raises(CompileError, match="failed with signal SIGKILL"):
        this_python().run([path], timeout=30)


def test_a_hanging_program_ends_with_its_children(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "print('waiting for step 3', file=sys.stderr, flush=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(1000)\n",
    )
    started = time.monotonic()
    with pytest.raises(CompileError) as raised:
        this_python().run([path], timeout=1)
    assert time.monotonic() - started < 10
    text = str(raised.value).splitlines()
    assert text[0] == "error[SPK512]: the Lava run of program.py did not end within 1 s"
    assert text[1] == "  note: waiting for step 3"
    assert not alive(int((tmp_path / "pid").read_text()))


def test_children_left_behind_by_a_program_that_ends_are_ended(tmp_path: Path) -> None:
    path = program(tmp_path, "import subprocess\nprint(subprocess.Popen(['sleep', '1000']).pid)\n")
    assert not alive(int(this_python().run([path], timeout=30)))


def test_a_program_that_ignores_the_request_to_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_GRACE_SECONDS", 0.3)
    path = program(
        tmp_path,
        f"import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)\n",
    )
    with pytest.raises(CompileError, match="SPK512"):
        this_python().run([path], timeout=1)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_traceback_ends_a_hanging_program_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_GRACE_SECONDS", 0.3)
    path = program(
        tmp_path,
        "import time, traceback\n"
        "try:\n    raise TypeError('left_shift of a float')\nexcept TypeError:\n    traceback.print_exc()\n"
        "time.sleep(1000)\n",
    )
    started = time.monotonic()
    with pytest.raises(CompileError) as raised:
        this_python().run([path], timeout=100)
    assert time.monotonic() - started < 10
    assert raised.value.code == "SPK513"
    assert "note: TypeError: left_shift of a float" in str(raised.value)


def test_an_interpreter_that_is_gone(tmp_path: Path) -> None:
    gone = environment.LavaEnvironment(tmp_path, tmp_path / "python", "0.10.0", "3.10.4", False)
    with pytest.raises(CompileError, match=r"does not start: No such file or directory\n  fix: spikec setup lava"):
        gone.run(["-V"], timeout=10)


def alive(pid: int) -> bool:
    """Whether a process still runs; a zombie that nobody collects does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# With Lava itself


def shared_memory() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir()}


def test_lava_gives_the_recorded_values(lava_env: environment.LavaEnvironment) -> None:
    answer = json.loads(lava_env.run(["-I", Path(selfcheck.__file__)], timeout=120))
    assert answer == {"lava": "0.10.0", "measured": selfcheck.GOLDEN, "wrong": []}


def test_the_self_check_can_fail(lava_env: environment.LavaEnvironment, tmp_path: Path) -> None:
    text = Path(selfcheck.__file__).read_text()
    path = program(tmp_path, text.replace("vth=150", "vth=400"))
    assert path.read_text() != text
    with pytest.raises(CompileError, match="exit status 3"):
        lava_env.run(["-I", path], timeout=120)


def test_a_lava_network_that_hangs_is_ended_whole(lava_env: environment.LavaEnvironment, tmp_path: Path) -> None:
    """A float threshold kills Lava's child process, and its parent would wait for ever."""
    text = Path(selfcheck.__file__).read_text()
    path = program(tmp_path, text.replace("vth=1)", "vth=1.5)"))
    assert path.read_text() != text
    before = shared_memory()
    with pytest.raises(CompileError) as raised:
        lava_env.run(["-I", path], timeout=3)
    assert raised.value.code in ("SPK512", "SPK513")
    left, until = shared_memory() - before, time.monotonic() + 60
    while left & shared_memory() and time.monotonic() < until:  # what other tests hold at this moment goes when they end
        time.sleep(0.5)
    assert not left & shared_memory()
    running = [
        entry for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and str(path).encode() in read_or_empty(entry / "cmdline")
    ]  # fmt: skip
    assert running == []


def read_or_empty(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# The rule of tests/conftest.py


@pytest.mark.parametrize(("ci", "status", "line"), [("true", 1, "1 error"), ("", 0, "1 skipped")])
def test_a_skipped_lava_test_fails_under_ci(tmp_path: Path, ci: str, status: int, line: str) -> None:
    (tmp_path / "support").mkdir()
    for name in ("conftest.py", "support/tools.py"):
        (tmp_path / name).write_text((TESTS / name).read_text())
    (tmp_path / "test_it.py").write_text("def test_it(lava_env):\n    pass\ndef test_other():\n    pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path), "-rs", str(tmp_path)],
        env=os.environ | {"CI": ci, "PYTHONPATH": str(tmp_path), "SPIKEC_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout
    assert line in done.stdout.splitlines()[-1] and "1 passed" in done.stdout.splitlines()[-1]
    assert "lava: not installed (spikec setup lava)" in done.stdout
