"""The digits on every engine: the demo runs, finds no difference, and prints what the README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spikec
from spikec.backends.lava import environment
from spikec.target import load_target

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "examples" / "digits" / "demo.py"
HELD_OUT = 599


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(DEMO), *options], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("digits")
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return folder, done.stdout


def row(text: str, engine: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{engine} "))
    return line.replace(" %", "").split()


def without_seconds(line: str) -> str:
    """A line of the table without its last column, the only one that differs from run to run."""
    return re.sub(r" +\d+\.\d\d$", "", line)


def test_nothing_differs(demo: tuple[Path, str]) -> None:
    _, text = demo
    for engine in ("reference", "numpy", "c"):
        _, digits, score, spikes, states, _ = row(text, engine)
        assert (int(digits), int(spikes), int(states)) == (HELD_OUT, 0, 0)
        assert float(score) >= 97
    (flips,) = re.findall(r"step by step: (\d+) of", text)
    assert int(flips) == 0
    (before, after, loss) = map(float, re.findall(r"float ([\d.]+) %, .* bits ([\d.]+) %: a loss of (-?[\d.]+)", text)[0])
    assert before >= 97 and before - after == pytest.approx(loss, abs=0.011) and loss <= 0.5


def test_the_readme_shows_what_it_prints(demo: tuple[Path, str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```console\n\$ make demo\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    printed = demo[1].splitlines()
    if environment.locate() is None:
        printed = [line for line in printed if not line.startswith("lava")]
        shown = "\n".join(line for line in shown.splitlines() if not line.startswith("lava"))
    assert [without_seconds(line) for line in shown.splitlines()] == [without_seconds(line) for line in printed]


def test_the_build_stands_alone(demo: tuple[Path, str]) -> None:
    build = spikec.load(demo[0] / "build" / "digits")
    passes = [*load_target("loihi2").passes]
    passes.insert(passes.index("quantize"), "match-rates")  # there are calibration data
    assert build.stage_names == ["input", *passes]
    assert build.verify(backends=["numpy", "c"]).ok


def test_lava_agrees(demo: tuple[Path, str], lava_env: object, tmp_path: Path) -> None:
    """At least 100 digits; all of them with SPIKEC_LAVA_ALL=1 (`make test-lava-all`)."""
    text, wanted = demo[1], 100
    if os.environ.get("SPIKEC_LAVA_ALL"):
        done = run(tmp_path, "--lava", str(HELD_OUT))
        assert done.returncode == 0, done.stdout + done.stderr
        text, wanted = done.stdout, HELD_OUT
    _, digits, _, spikes, states, _ = row(text, "lava")
    assert (int(digits), int(spikes), int(states)) == (wanted, 0, 0)


def test_without_lava_the_rest_runs(tmp_path: Path) -> None:
    """An empty cache folder is a machine without Lava."""
    variables = {**os.environ, "SPIKEC_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, str(DEMO)], cwd=tmp_path, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lava: not installed (spikec setup lava)\n" in done.stdout


def test_a_difference_is_an_exit_status_of_1(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(DEMO.parent)!r})
import demo
from spikec.backends.events import NumpyBackend
right = NumpyBackend.run
def wrong(self, *arguments, **options):
    found = right(self, *arguments, **options)
    found.outputs["lif3"] = found.outputs["lif3"].copy()
    found.outputs["lif3"][7, 3, 2] ^= 1
    return found
NumpyBackend.run = wrong
sys.exit(demo.main(["--lava", "1"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert row(done.stdout, "numpy")[3:5] == ["1", "0"]
