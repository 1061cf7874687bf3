"""What changed between two graphs: the lines, and of arrays how many numbers and how far."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import dense, graph, leaky, spikes

from spikec import cli
from spikec.diff import diff
from support.builds import TINY, fixed_build, tiny


def net(weight: np.ndarray):
    return graph(spikes((4,)), dense("fc", "in", weight), leaky("lif", "fc"))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 9)), max_size=6))
def test_counts_and_largest_change_are_those_made(edits: list[tuple[int, int, int]]) -> None:
    old = np.arange(12, dtype=np.float32).reshape(3, 4)
    new = old.copy()
    made: dict[tuple[int, int], int] = {}
    for row, column, step in edits:
        made[row, column] = step
        new[row, column] = old[row, column] - step
    found = diff(net(old), net(new))
    if not made:
        assert found.equal and found.text() == ""
        return
    (change,) = found.arrays
    assert (change.name, change.changed, change.total, change.largest) == ("fc.weight", len(made), 12, max(made.values()))
    assert not found.equal and "-  array @fc.weight" in found.lines and "+  array @fc.weight" in found.lines


def test_types_and_shapes() -> None:
    a = net(np.ones((3, 4), np.float32))
    (change,) = diff(a, net(np.ones((2, 4), np.float32))).arrays
    assert change.text() == "fc.weight: 3x4 f32 became 2x4 f32"
    (change,) = diff(a, net(np.ones((3, 4), np.float64))).arrays
    assert change.text() == "fc.weight: 3x4 f32 became 3x4 f64, the same numbers"


def test_parameters_and_lines_without_arrays() -> None:
    a = tiny()
    lif = a["lif1"]
    b = a.with_nodes([replace(n, params={**lif.params, "theta": np.float32(1.0)}) if n is lif else n for n in a.nodes])
    found = diff(a, b, ("old", "new"))
    assert found.lines.startswith("--- old\n+++ new\n")
    assert [c.text() for c in found.arrays] == ["lif1.theta: scalar f32, 1 of 1 changed, by at most 0.25"]
    c = replace(a, dt=0.002)
    found = diff(a, c)
    assert found.arrays == () and "dt=2ms" in found.text() and not found.equal


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    fixed_build(tmp_path).save("build")
    Path("a.sir").write_text(TINY)
    Path("b.sir").write_text(TINY.replace("beta=0.75", "beta=0.5"))
    assert cli.main(["diff", "a.sir", "a.sir"]) == 0 and capsys.readouterr().out == ""
    assert cli.main(["diff", "a.sir", "b.sir"]) == 1
    out = capsys.readouterr().out
    assert "--- a.sir\n+++ b.sir\n" in out and "  lif2.beta: scalar f32, 1 of 1 changed, by at most 0.25\n" in out
    assert cli.main(["diff", "build", "--passes", "canonicalise", "quantize"]) == 1
    out = capsys.readouterr().out
    assert "-graph @tiny level=float" in out and "+graph @tiny level=fixed" in out and "fc1.weight: 2x3 f32 became 2x3 i16" in out
    assert cli.main(["diff", "build", "build", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"equal": True, "diff": "", "arrays": []}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["diff", "a.sir"], "error[SPK001]: diff takes two graphs"),
        (["diff", "a.sir", "a.sir", "--passes", "input", "retime"], "error[SPK001]: diff takes two graphs"),
        (["diff", "a.sir", "nowhere.sir"], "error[SPK002]: nowhere.sir: no such file or build folder"),
        (["diff", "build", "--passes", "input", "quantise"], "error[SPK404]: the build has no stage 'quantise'"),
        (["diff", "a.sir", "--passes", "input", "retime"], "error[SPK401]"),
    ],
)
def test_mistakes(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fixed_build(tmp_path).save("build")
    Path("a.sir").write_text(TINY)
    assert cli.main(words) == 1
    assert message in capsys.readouterr().err
