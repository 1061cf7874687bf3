"""The contenders' environment, in the user's cache folder: made on first use, each tool for itself; what cannot be had is left out
with its reason. `python benchmarks/environment.py` makes it ahead of time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from spikec.cache import cache_dir

ROOT = Path(__file__).resolve().parent.parent
PLACE = cache_dir() / "bench-env-{}.{}".format(*sys.version_info)
#: Tool -> what pip installs, and with which options. PyTorch first and by itself, as in the Makefile. Norse, sinabs and
#: SpikingJelly ask for packages that the benchmark does not need and that bring another PyTorch.
PACKAGES: dict[str, list[str]] = {
    "numpy": ["numpy", "-c", "constraints.txt"],
    "torch": ["torch==2.13.0", "-c", "constraints.txt"],
    "numba": ["numba"],
    "jax": ["jax"],
    "snntorch": ["snntorch", "loguru", "matplotlib", "nirtorch", "pbr", "requests", "tqdm", "h5py", "nir"],
    "norse": ["--no-deps", "norse"],
    "spikingjelly": ["--no-deps", "spikingjelly"],
    "sinabs": ["--no-deps", "sinabs"],
}
#: Brian2 needs a NumPy that the others have left behind: an environment of its own.
APART: dict[str, list[str]] = {"brian2": ["brian2", "numpy<2.4", "setuptools"]}


def python(tool: str = "") -> Path:
    """The interpreter that a tool runs in."""
    place = PLACE.with_name(f"{PLACE.name}-{tool}") if tool in APART else PLACE
    return place / "bin" / "python"


def _make(interpreter: Path) -> None:
    place = interpreter.parent.parent
    if interpreter.exists():
        return
    print(f"making {place} (some minutes, once)", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(place)], capture_output=True, text=True, check=False)
    if made.returncode != 0:  # Debian splits ensurepip from python3
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(place)], check=True, capture_output=True)
        subprocess.run([sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "pip"], check=True)


def ensure() -> dict[str, str]:
    """Make what is not there; tools that could not be installed, with the reason."""
    absent = {}
    for tool, arguments in {**PACKAGES, **APART}.items():
        done = python(tool).parent.parent / f".{tool}"
        if done.exists():
            continue
        _make(python(tool))
        command = [str(python(tool)), "-m", "pip", "install", "--quiet", "--no-input", *arguments]
        found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if found.returncode == 0:
            done.touch()
        else:
            lines = [line for line in found.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            absent[tool] = lines[-1].removeprefix("ERROR: ")
    return absent


if __name__ == "__main__":
    missing = ensure()
    print(f"{PLACE}: " + (", ".join(f"{tool} is missing ({reason})" for tool, reason in missing.items()) or "every tool is there"))
