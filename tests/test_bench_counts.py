"""Instructions an inference of the emitted C, within two per cent of the stored baseline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import counts, workloads

TOOLS = {"callgrind": "valgrind", "qemu": "qemu-aarch64"}


@pytest.mark.parametrize("machine", counts.MACHINES)
@pytest.mark.parametrize("name", ["W1", "W3"])
def test_instructions_are_as_counted_before(
    name: str, machine: str, tools: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer is a new baseline (`make bench-counts`, with --write), more a mistake."""
    if not workloads.SOURCE.is_dir():
        pytest.skip(f"{workloads.SOURCE} is not there")
    compiler, _, tool = counts.MACHINES[machine]
    tools(compiler, TOOLS[tool])
    stored = json.loads(counts.BASELINE.read_text(encoding="utf-8"))[machine]
    if counts.version(compiler) != stored["compiler"]:
        pytest.skip(f"the baseline is of {stored['compiler']}, this is {counts.version(compiler)}")
    monkeypatch.setattr(counts.run, "BUILD", tmp_path)
    workloads.ensure_data()
    found = counts.measure([name], [machine])[machine][name]
    assert found == pytest.approx(stored[name], rel=counts.TOLERANCE)
