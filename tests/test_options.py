"""Values of another type, given to any public function, are told as the user's mistake; kinds of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spikec
from spikec import driver
from spikec.build import Build
from spikec.diagnostics import CompileError
from spikec.options import KINDS, typed
from support.builds import spikes, tiny

ODD: list[Any] = [
    5, -1, 0, 10**30, 2.5, float("nan"), "a", b"x", None, True, [1], {}, (), object(), np.array([1, 2]), Path("no"), lambda: 1,
]  # fmt: skip
X = spikes()


@pytest.fixture(scope="module")
def build() -> Build:
    return spikec.compile(tiny(), target="reference", calibrate=X, labels=np.zeros(4, int))


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def calls(build: Build, odd: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    """Every public function with `odd` for one of its parameters."""
    keys = [key for key in inspect.signature(driver.compile).parameters if key not in ("model", "options", "dump_ir")]
    if callable(odd):
        keys.remove("on_stage")
    given = {"target": "reference", "calibrate": X}
    found: dict[str, Callable[[], Any]] = {"compile(model)": lambda: spikec.compile(odd)}
    found |= {f"compile({key})": lambda key=key: spikec.compile(tiny(), **{**given, key: odd}) for key in keys}
    found |= {
        f"run({key})": lambda key=key: build.run(X, **{"backend": "numpy", key: odd})
        for key in ("backend", "record", "level", "carry_state", "timeout", "threads", *(() if callable(odd) else ("progress",)))
    }
    for key in ("backends", "timeout"):
        found[f"verify({key})"] = lambda key=key: build.verify(X, **{"backends": ["numpy"], key: odd})
        found[f"impulses({key})"] = lambda key=key: build.impulses(**{"backends": ["numpy"], key: odd})
    found |= {f"ir({key})": lambda key=key: build.ir(**{key: odd}) for key in ("after", "level", "full")}
    found["run(x)"], found["ranges"], found["verify(x)"] = (
        lambda: build.run(odd),
        lambda: build.ranges(odd),
        lambda: build.verify(odd),
    )
    found["graph"], found["stream"], found["decide"] = (
        lambda: build.graph(odd),
        lambda: build.stream(odd),
        lambda: build.decide(X, odd),
    )
    found["report(x)"] = lambda: build.report(folder / "report.html", odd)
    if not isinstance(odd, (str, Path)):
        found["save"], found["load"] = lambda: build.save(odd), lambda: spikec.load(odd)
        found["report(path)"] = lambda: build.report(odd)
        found["read_model"], found["convert"] = lambda: driver.read_model(odd), lambda: driver.convert("no.sir", odd)
    axes = {"time_axis": 1, "batch_axis": 0}
    for key in ("name", "dt", "time_axis", "batch_axis", "steps", "input_kind", "weights"):
        found[f"trace({key})"] = lambda key=key: driver.trace(Twice(), torch.ones(2, 5, 3), **{**axes, key: odd})
    found["trace(example)"] = lambda: driver.trace(Twice(), odd)
    found["parse_graph"], found["find_target"] = lambda: spikec.parse_graph(odd), lambda: driver.find_target(odd)
    found["register_neuron"] = lambda: spikec.register_neuron(odd, "neuron @n(x) { s = x > 0\n emit s }")
    found["register_neuron(program)"] = lambda: None if callable(odd) else spikec.register_neuron(Twice, odd)
    result = build.run(X, record="all")
    found["spikes"], found["state"] = lambda: result.spikes(odd), lambda: result.state("lif1", odd)
    return found


@pytest.mark.parametrize("number", range(len(ODD)))
def test_an_odd_value_is_taken_or_told(build: Build, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plain Python error anywhere: what a parameter does not take is a CompileError."""
    monkeypatch.chdir(tmp_path)
    told = 0
    for what, call in calls(build, ODD[number], tmp_path).items():
        try:
            call()
        except CompileError:
            told += 1
        except Exception as error:
            pytest.fail(f"{what} with {ODD[number]!r}: {type(error).__name__}: {error}")
    assert told > 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.run(X, record=5), "record is a string or a list of strings, not 5"),
        (lambda b: b.run(X, timeout="a"), "timeout is a number, not 'a'"),
        (lambda b: b.run(X, backend=["c"]), "backend is a string, not ['c']"),
        (lambda b: b.verify(X, "c"), "backends is a list of strings, not 'c'"),
        (lambda b: b.save(None), "folder is a path, not None"),
        (lambda b: spikec.compile(tiny(), cutoff=True), "cutoff is a number, not True"),
        (lambda b: spikec.compile(tiny(), strict=np.ones(2)), "strict is True or False, not array([1., 1.])"),
        (lambda b: spikec.load(3), "a build is a path, not 3"),
    ],
)
def test_messages(build: Build, call: Callable[[Build], Any], message: str) -> None:
    with pytest.raises(CompileError) as caught:
        call(build)
    assert str(caught.value).splitlines()[0] == f"error[SPK001]: {message}"


def test_kinds() -> None:
    @typed(a="number|none", b="whole")
    def function(a: Any = 1, b: Any = None) -> Any:
        """Its words."""
        return a, b

    assert function(np.float32(2), np.int64(3)) == (2, 3) and function(None) == (None, None) and function(b=None) == (1, None)
    assert function.__doc__ == "Its words." and list(inspect.signature(function).parameters) == ["a", "b"]
    for wrong in ((True,), ("1",), (1, 2.0), (1, True)):
        with pytest.raises(CompileError):
            function(*wrong)
    with pytest.raises(TypeError):
        function(1, 2, 3)
    takes = {kind: [odd for odd in ODD if test(odd)] for kind, (_, test) in KINDS.items()}
    assert takes["strings"] == [{}, ()] and takes["flag"] == [True] and takes["path"] == ["a", Path("no")]


def test_a_hop_that_is_no_number_of_steps() -> None:
    with pytest.raises(CompileError) as caught:
        spikec.compile(tiny(), hop=-1)
    assert str(caught.value) == "error[SPK001]: hop is the steps that a synapse takes, 0 to 64, not -1; loihi2's take 1"


def test_weights_far_too_small_for_their_threshold() -> None:
    text = """sir 1
neuron @soft(x) params(theta) state(v = 0) {
  r = v > theta
  v = 0.9 * v + x - r * theta
  s = v > theta
  emit s
}
graph @g level=float {
  %in = input : spike<2>
  %fc = dense(%in) weight=[[1e-30, 1e-30]] : value<1>
  %l = neuron @soft(%fc) theta=1.0 : spike<1>
  output %l
}
"""
    with pytest.raises(CompileError) as caught:
        spikec.compile(spikec.parse_graph(text), target="host", bits=8)
    (problem,) = caught.value.diagnostics
    assert problem.code == "SPK203" and "times finer than what it holds" in problem.message
    assert problem.fix is not None and "far too small for its threshold" in problem.fix
