"""The examples that need no data: they run, every engine agrees, and the networks answer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(("example", "least"), [("camera", 80), ("ann", 95)])
def test_the_example_runs(example: str, least: float, tmp_path: Path) -> None:
    place = tmp_path / "build"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example / "demo.py"), str(place)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "20 samples of" in done.stdout and ": equal everywhere" in done.stdout
    rates = [
        float(number) for line in done.stdout.splitlines() if line.startswith("right") for number in re.findall(r"([0-9.]+)%", line)
    ]
    assert rates and min(rates) >= least
    assert (place / "c" / "Makefile").is_file()
