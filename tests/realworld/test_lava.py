"""`make bench-lava` at its small sizes: Lava gives what the reference, C and the publishers give, number for number."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from spikec.backends.lava.environment import LavaEnvironment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lava_cases", ROOT / "benchmarks" / "lava.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


#: Numbers compared with the reference, and published numbers compared, at the small sizes.
SIZES = {
    "digits": (109_400, 0),
    "convolutional": (72_636, 0),
    "residual": (122_754, 0),
    "recurrent": (18_680, 0),
    "tinynet": (78_936, 25_020),
    "pilotnet": (2_000_000, 1_000_000),
    "mnist_cuba": (127_240, 0),
    "ndns": (27_162, 7_686),
}


@pytest.mark.parametrize("name", SIZES)
def test_nothing_differs(bench: ModuleType, name: str, lava_env: LavaEnvironment) -> None:
    assert lava_env.python.exists()
    folder, make = bench.CASES[name]
    if folder and not (bench.DATA / folder).is_dir():
        pytest.skip(f"{bench.DATA / folder} is not there")
    row = bench.measure(make(True))
    assert row.mismatches == {"c": 0, "lava": 0}
    assert row.published[1] == 0
    least, published = SIZES[name]
    assert row.compared >= least and row.published[0] >= published
    assert row.met


def test_the_command_says_what_differs(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = bench.Row("net", 1, 2, 30, {"c": 0, "lava": 0}, (0, 0), 1.0)
    for changed, status in ((row, 0), (bench.replace(row, mismatches={"c": 0, "lava": 3}), 1), (bench.replace(row, compared=0), 1)):
        monkeypatch.setattr(bench, "rows", lambda names, small, changed=changed: [changed])
        monkeypatch.setattr(bench.load_backend("lava", bench.TARGET).__class__, "available", lambda self: None)
        assert bench.main([]) == status
    assert "NOT equal" in capsys.readouterr().out
