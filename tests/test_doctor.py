"""What `spikec doctor` finds, what it says about it, and that it tries tools instead of only looking for them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from spikec import doctor
from spikec.doctor import Check

NO_LAVA = Check("Lava", False, "not installed", "to run Loihi 2 builds on Intel's own simulator", "spikec setup lava", False)


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with nothing on PATH but this folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("SPIKEC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return folder


def find(name: str) -> Check:
    (found,) = [check for check in doctor.checks(NO_LAVA) if check.name == name]
    return found


# The working compiler of these fakes: it "compiles" to a script.
WORKS = """
case "$*" in --version) echo "{name} 1.2.3"; exit 0 ;; esac
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\\necho {says}\\n' > "$2"
/bin/chmod +x "$2"
"""


def test_this_machine_has_what_the_tests_need() -> None:
    found = doctor.checks(NO_LAVA)
    assert [check.name for check in found] == [
        "Python", "numpy", "networkx", "lark", "jinja2", "scipy", "cache folder", "torch", "snntorch", "norse", "spikingjelly",
        "sinabs", "h5py", "nir", "onnx", "onnxruntime", "optuna", "matplotlib", "scikit-learn", "C compiler", "make", "Lava", "cross compiler", "emulator",
    ]  # fmt: skip
    assert doctor.exit_status(found) == 0
    assert all("--no-deps" in check.remedy for check in found if check.name in ("norse", "spikingjelly", "sinabs"))
    assert [check.name for check in found if "--no-build-isolation" in check.remedy] == ["norse"]
    by_name = {check.name: check for check in found}
    for name in ("numpy", "networkx", "lark", "jinja2", "scipy"):
        assert by_name[name].ok and by_name[name].required
        assert by_name[name].found == metadata.version(name)
    assert by_name["C compiler"].ok, by_name["C compiler"].found


def test_nothing_on_path(bare: Path) -> None:
    found = {check.name: check for check in doctor.checks(NO_LAVA)}
    assert (found["C compiler"].ok, found["C compiler"].found) == (False, "none of cc, gcc, clang")
    assert (found["make"].ok, found["make"].found) == (False, "not on PATH")
    assert (found["cross compiler"].ok, found["cross compiler"].found) == (False, "no aarch64-linux-gnu-gcc")
    assert (found["emulator"].ok, found["emulator"].found) == (False, "no qemu-aarch64")
    assert found["cache folder"].ok
    assert doctor.exit_status(found.values()) == 0  # everything else works without them
    text = doctor.render(list(found.values()))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("install it with this system's package manager") == 4  # there is no package manager either
    assert text.endswith("spikec works; without C compiler, make, Lava, cross compiler and emulator some\nof it is not available.")


def test_the_table() -> None:
    found = [
        Check("Python", True, "3.11.7", "for everything", "", True),
        Check("lark", False, "not installed", "for everything", "pip install lark", True),
        Check("C compiler", True, "cc, gcc (gcc 12.2.0)", "for the C backend", "apt-get install gcc", False),
        Check("Lava", False, "/home/someone/.cache/spikec/lava-0.10.0-py3.10/bin/python does not run any more",
              "to run Loihi 2 builds on Intel's own simulator", "spikec setup lava", False),
    ]  # fmt: skip
    assert (
        doctor.render(found)
        == """\
ok        Python      3.11.7
MISSING   lark        not installed
    needed for everything
    $ pip install lark
ok        C compiler  cc, gcc (gcc 12.2.0)
missing   Lava        /home/someone/.cache/spikec/lava-0.10.0-py3.10/bin/python
                      does not run any more
    optional, needed to run Loihi 2 builds on Intel's own simulator
    $ spikec setup lava

spikec cannot work without lark."""
    )
    assert doctor.exit_status(found) == 1
    assert doctor.exit_status(found[:1] + found[2:]) == 0
    assert doctor.render(found[:1]).endswith("\n\nspikec has everything that it can use.")
    assert doctor.render([found[0], found[3]]).endswith("\n\nspikec works; without Lava some of it is not available.")


def test_a_required_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "lark":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.sys, "executable", "/usr/bin/python3")
    found = doctor.checks(NO_LAVA)
    lark = next(check for check in found if check.name == "lark")
    assert (lark.ok, lark.found, lark.required) == (False, "not installed", True)
    assert lark.remedy.startswith("/usr/bin/python3 -m pip install ") and lark.remedy.endswith("'lark>=1.1.8'")
    assert doctor.exit_status(found) == 1
    assert doctor.render(found).endswith("spikec cannot work without lark.")


def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.1.7" if name == "lark" else "99.0")
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["numpy>=1.26", 'torch>=2.1; extra == "torch"', "lark >=1.1.8"])
    lark = find("lark")
    assert (lark.ok, lark.found) == (False, "1.1.7; spikec needs >=1.1.8")
    assert find("torch").ok


def test_the_range_of_an_extra_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ['Scikit_Learn>=1.3; extra == "examples"', 'scikit-learn>=1.7; extra == "dev"', "numpy"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: declared)
    assert doctor._requirement("scikit-learn", "examples") == ">=1.3"
    assert doctor._requirement("scikit-learn", "dev") == ">=1.7"
    assert doctor._requirement("numpy", "") == ""
    assert doctor._requirement("lark", "") == ""


def test_an_unknown_spikec_declares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", unknown)
    monkeypatch.setattr(doctor.metadata, "metadata", unknown)
    assert doctor._requirement("numpy", "") == ""
    assert find("Python").ok and find("numpy").ok


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.4")
    found = find("Python")
    assert (found.ok, found.found, found.required) == (False, "3.10.4; spikec needs >=3.11", True)


@pytest.mark.parametrize(
    ("version", "wanted", "ok"),
    [
        ("2.4.6", ">=1.26", True),
        ("1.9", ">=1.26", False),
        ("1.26", ">=1.26.0", True),
        ("3.0", ">=1.1,<3", False),
        ("2.13.0+cpu", ">=2.1,<3", True),
        ("3.12.0rc1", ">3.11", True),
        ("1.4", "!=1.4", False),
        ("1.4.2", "!=1.4.*", False),
        ("1.4.2", "==1.4.*", True),
        ("1.4.2", "==1.4", False),
        ("1.4.2", "~=1.4.1", True),
        ("1.5.0", "~=1.4.1", False),
        ("1.5.0", "<=1.5", True),
        ("1.5.0", "", True),
    ],
)
def test_version_ranges(version: str, wanted: str, ok: bool) -> None:
    assert doctor._satisfies(version, wanted) is ok


def test_a_compiler_has_to_build_a_program_that_runs(bare: Path) -> None:
    script(bare / "cc", "exit 1\n")
    assert find("C compiler").found == "cc cannot build and run a program"
    script(bare / "gcc", "exit 0\n")  # says yes and makes nothing
    assert not find("C compiler").ok
    script(bare / "gcc", WORKS.format(name="gcc", says=35))  # its program computes something else
    assert find("C compiler").found == "cc, gcc cannot build and run a program"
    script(bare / "clang", WORKS.format(name="clang", says=36))
    found = find("C compiler")
    assert (found.ok, found.found) == (True, "clang (clang 1.2.3); cc, gcc cannot build and run a program")


def test_cc_in_the_environment_is_tried_first(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "tinycc -O2")
    script(bare / "tinycc", WORKS.format(name="tinycc", says=36))
    script(bare / "gcc", WORKS.format(name="gcc", says=36))
    assert find("C compiler").found == "tinycc, gcc (tinycc 1.2.3)"


def test_a_real_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._builds("cc")
    assert not doctor._builds("cc", "-no-such-option")
    monkeypatch.setattr(doctor, "_PROGRAM", doctor._PROGRAM.replace("< 9", "< 8"))
    assert not doctor._builds("cc")


def test_a_make_that_does_not_run(bare: Path) -> None:
    script(bare / "make", "exit 1\n")
    assert (find("make").ok, find("make").found) == (False, "does not run")
    script(bare / "make", "echo GNU Make 4.3\necho more\n")
    assert (find("make").ok, find("make").found) == (True, "GNU Make 4.3")


def test_cross_compiler_and_emulator_are_tried_together(bare: Path) -> None:
    script(bare / "aarch64-linux-gnu-gcc", WORKS.format(name="cross", says=36))
    assert (find("cross compiler").ok, find("cross compiler").found) == (True, "cross 1.2.3")
    assert not find("emulator").ok
    runs = 'case "$*" in --version) echo "qemu-aarch64 version 7.2" ;; *) exec "$@" ;; esac\n'
    script(bare / "qemu-aarch64-static", runs)
    assert (find("emulator").ok, find("emulator").found) == (True, "qemu-aarch64 version 7.2")
    script(bare / "aarch64-linux-gnu-gcc", WORKS.format(name="cross", says=35))
    assert (find("emulator").ok, find("emulator").found) == (False, "qemu-aarch64-static cannot run a program")
    script(bare / "aarch64-linux-gnu-gcc", "exit 1\n")
    assert find("cross compiler").found == "aarch64-linux-gnu-gcc cannot build a program"
    assert find("emulator").ok  # without a compiler it counts when it answers


@pytest.mark.parametrize(
    ("manager", "root", "command"),
    [
        ("apt-get", True, "apt-get install -y gcc libc6-dev"),
        ("apt-get", False, "sudo apt-get install -y gcc libc6-dev"),
        ("dnf", False, "sudo dnf install -y gcc"),
        ("brew", False, "brew install gcc"),
        ("none", False, ""),
    ],
)
def test_the_remedy_fits_the_machine(bare: Path, monkeypatch: pytest.MonkeyPatch, manager: str, root: bool, command: str) -> None:
    script(bare / manager, "exit 0\n")
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 0 if root else 1000)
    assert find("C compiler").remedy == command


def test_a_cache_folder_that_cannot_be_written(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPIKEC_CACHE_DIR", str(tmp_path / "file"))
    found = find("cache folder")
    assert not found.ok and found.found == f"{tmp_path}/file is not writable: File exists"
    assert found.remedy == "export SPIKEC_CACHE_DIR=/a/folder/you/can/write/to"


def test_paths_are_shown_as_a_person_writes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert doctor._short(str(tmp_path / ".venv" / "bin" / "python")) == ".venv/bin/python"
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    assert doctor._short(str(tmp_path / ".cache" / "spikec")) == "~/.cache/spikec"
    assert doctor._short("/usr/bin/python3") == "/usr/bin/python3"


def test_no_framework_is_imported() -> None:
    code = (
        "import sys\n"
        "from spikec import doctor\n"
        "doctor.render(doctor.checks(doctor.Check('Lava', True, '', '', '', False)))\n"
        "print([m for m in ('torch', 'snntorch', 'numpy', 'networkx', 'lark', 'sklearn') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout == "[]\n"
