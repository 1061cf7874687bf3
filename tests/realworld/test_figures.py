"""The figures of `make bench-real` that no other test has: networks written in PyTorch by their READMEs' equations."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("realworld_figures", ROOT / "benchmarks" / "realworld.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("case", "figures"), [("ecg_srnn", 9), ("neurobench_snn", 10), ("shd_nets", 8)])
def test_figures(bench: ModuleType, case: str, figures: int) -> None:
    if not (bench.DATA / case).is_dir():
        pytest.skip(f"{bench.DATA / case} is not there")
    rows = list(bench.CASES[case]())
    assert [row for row in rows if not row.met] == []
    assert len(rows) == figures


def test_the_command_measures_a_case_and_tells_what_is_not_met(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "DATA", ROOT)
    rows = iter([bench.differing("this", 0, 5), bench.differing("that", 1, 5), bench.differing("nothing", 0, 0)])
    monkeypatch.setattr(bench, "CASES", {"tests": lambda: rows})
    assert bench.main(["tests"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in lines[1:4]] == [
        ["this", "0", "0", "of", "5"],
        ["that", "0", "1", "of", "5", "NOT", "MET"],
        ["nothing", "0", "0", "of", "0", "NOT", "MET"],
    ]
    monkeypatch.setattr(bench, "CASES", {"nowhere": lambda: rows})
    assert bench.main([]) == 1
    assert "is not there" in capsys.readouterr().out
