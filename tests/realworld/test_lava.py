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
    "braille": (36_000, 0),
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
    assert row.met and all(holds for _, holds in row.claims)
    assert bool(row.claims) == (name == "braille")


def test_the_package_runs_without_spikec(bench: ModuleType, lava_env: LavaEnvironment) -> None:
    assert lava_env.python.exists()
    found = bench.package(True)
    if not lava_env.patched:  # a newer Python in Lava's place is told, and not met
        assert found.met, found
    assert found.claims[0][0].endswith("says 'all equal'") and found.claims[0][1]
    assert found.claims[2] == ("spikec is not importable there", True)


def test_the_command_says_what_differs(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = bench.Row("net", 1, 2, 30, {"c": 0, "lava": 0}, (0, 0), 1.0)
    wrong = [{"mismatches": {"c": 0, "lava": 3}}, {"compared": 0}, {"claims": (("the class is right", False),)}]
    said = (bench.Claims("package", (("it runs", True),)), 0), (bench.Claims("package", (("it runs", False),)), 1)
    for changed, status in ((row, 0), *((bench.replace(row, **each), 1) for each in wrong), *said):
        monkeypatch.setattr(bench, "rows", lambda names, small, changed=changed: [changed])
        monkeypatch.setattr(bench.load_backend("lava", bench.TARGET).__class__, "available", lambda self: None)
        assert bench.main([]) == status
    told = capsys.readouterr().out
    assert "NOT equal" in told and "NOT MET: the class is right" in told and "NOT MET: it runs" in told
    assert "make test-lava-graphs" in told and "make bench-mapping" in told
