"""Shorten: the decays to the power, the cost as measured, and the data merged alike by every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, spikes

import spikec
from spikec.cli import main
from spikec.diagnostics import CompileError
from spikec.inputs import recode
from spikec.ir.interpret import interpret
from spikec.ir.ops import Dense, Neuron, Ref
from spikec.ir.text import parse_program, write_graph
from spikec.ledger import Ledger
from spikec.passes.shorten import Shorten, in_longer_steps
from spikec.score import answers

CLASSES = 4


def net(beta: float = 0.9) -> Any:
    rng = np.random.default_rng(0)
    w1 = np.kron(np.eye(CLASSES), np.ones((3, 4))) * 0.25 + rng.normal(0, 0.02, (12, 16))
    w2 = np.kron(np.eye(CLASSES), np.ones((1, 3))) * 0.3
    return graph(
        spikes((16,)), dense("a", "in", w1.astype(F)), leaky("l1", "a", beta), dense("b", "l1", w2.astype(F)), leaky("l2", "b", beta), out=["l2"]
    )  # fmt: skip


def data(samples: int = 48, steps: int = 40) -> Any:
    rng = np.random.default_rng(3)
    labels = np.arange(samples) % CLASSES
    rates = np.where(np.repeat(np.eye(CLASSES), 4, axis=1)[labels] > 0, 0.2, 0.04)
    return {"in": (rng.random((samples, steps, 16)) < rates[:, None]).astype(F)}, labels


@settings(deadline=None, max_examples=40)
@given(st.floats(0.1, 1.0), st.integers(1, 6), st.integers(0, 2**31))
def test_a_membrane_below_threshold(beta: float, factor: int, seed: int) -> None:
    """With one spike every `factor` steps, a constant stream: the membrane comes to the same value as in short steps, on average."""
    g = graph(spikes((1,)), dense("a", "in", [[0.01]]), leaky("n", "a", beta, theta=1e9), out=[("v", Ref("n", "v"))])
    longer = in_longer_steps(g, factor)
    found = longer["n"]
    assert isinstance(found, Neuron)
    assert float(found.params["beta"]) == pytest.approx(float(F(beta)) ** factor, rel=1e-5)
    # Sent at each place within the window in turn, the averages agree.
    wanted = np.mean([
        interpret(g, {"in": np.eye(factor, dtype=F)[place][None, :, None]}).outputs["v"][0, -1, 0] for place in range(factor)
    ])  # fmt: skip
    got = interpret(longer, {"in": np.ones((1, 1, 1), F)}).outputs["v"][0, -1, 0]
    assert got == pytest.approx(wanted, rel=1e-4)


def test_the_cost_is_in_the_ledger_and_true() -> None:
    x, y = data()
    ledger = Ledger()
    ledger.pass_name = "shorten"
    g = net()
    after = Shorten(steps_to=10, calibrate=x, labels=y).run(g, ledger)
    (entry,) = [e for e in ledger if e.kind == "approximation"]
    assert entry.asked == "--steps-to 10" and (entry.measured["steps"], entry.measured["of steps"]) == (10, 40)
    merged = recode(g, after, x)
    assert merged["in"].shape == (48, 10, 16)
    np.testing.assert_array_equal(merged["in"], x["in"].reshape(48, 10, 4, 16).max(axis=2))
    found = answers(interpret(after, merged).outputs["l2"])
    assert entry.measured["accuracy after"] == np.mean(found == y)
    before = answers(interpret(g, x).outputs["l2"])
    assert entry.measured["answers changed"] == np.mean(found != before)
    # No adjustment loses more than none at all.
    assert np.mean(found == y) >= np.mean(answers(interpret(g, merged).outputs["l2"]) == y) > 0.9
    assert entry.what.startswith("4 steps become one, decays ")
    (curve,) = [e for e in ledger if e.kind == "convention"]
    assert curve.measured["after 40"] == 0 and 1 <= curve.measured["steps without loss"] <= 40
    cut = answers(interpret(g, {"in": x["in"][:, :20]}).outputs["l2"])
    assert curve.measured["after 20"] == pytest.approx(np.mean(before == y) - np.mean(cut == y))


def test_the_fewest_steps_within_a_budget() -> None:
    x, y = data()
    ledger = Ledger()
    Shorten(steps_loss=0.05, calibrate=x, labels=y).run(net(), ledger)
    (entry,) = [e for e in ledger if e.kind == "approximation"]
    assert entry.measured["loss"] <= 0.05 and entry.measured["steps"] < 40
    assert Shorten(steps_to=40, calibrate=x).run(net(), Ledger()) == net()


def test_engines_agree_on_the_shortened_network() -> None:
    x, y = data()
    build = spikec.compile(net(), target="host", bits=8, calibrate=x, labels=y, steps_to=10)
    wanted = build.run(x).outputs["l2"]
    assert wanted.shape == (48, 10, 4)
    np.testing.assert_array_equal(build.run(x, "numpy").outputs["l2"], wanted)
    np.testing.assert_array_equal(build.run(x, "c").outputs["l2"], wanted)


def test_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = data()
    np.savez(tmp_path / "d.npz", x=x["in"], y=y)
    write_graph(net(), tmp_path / "net.sir")
    line = [
        "compile",
        str(tmp_path / "net.sir"),
        "-o",
        str(tmp_path / "b"),
        "--target",
        "host",
        "--calibrate",
        str(tmp_path / "d.npz"),
    ]
    assert main([*line, "--steps-to", "20", "--simplify", "0.02", "--max-delay", "4", "--delay-step", "2"]) == 0
    assert "input -> canonicalise -> shorten -> simplify -> delays" in capsys.readouterr().out
    assert main([*line, "--steps-loss", "2"]) == 1
    assert "steps_loss is a share" in capsys.readouterr().err


def test_biases_and_delays() -> None:
    g = graph(
        spikes((2,)), dense("a", "in", np.ones((2, 2), F), np.ones(2, F), delay=np.array([[0, 4], [7, 1]])), leaky("n", "a", 1.0)
    )
    found = in_longer_steps(g, 4)["a"]
    assert isinstance(found, Dense) and found.bias is not None and found.delay is not None
    np.testing.assert_allclose(found.weight, 1.0)  # an integrator takes in all that comes
    np.testing.assert_allclose(found.bias, 4.0)
    assert found.delay.tolist() == [[0, 1], [2, 0]]


COUNTS = parse_program("neuron @c(x) params(beta) state(v = 0) { v = beta * v + x * beta s = v > 1 emit s }")
TICKS = parse_program("neuron @t(x) state(v = 0) { v = v + x + t s = v > 1 emit s }")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([Neuron(name="n", inputs=(Ref("a"),), program=COUNTS, params={"beta": np.asarray(0.5, F)})], "beta is more than a decay"),
        ([Neuron(name="n", inputs=(Ref("a"),), program=TICKS)], "its neurons count steps"),
        ([leaky("n", "a"), leaky("m", "a")], "something else than layers of weights"),
    ],
)
def test_what_has_no_longer_steps(nodes: Any, message: str) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        in_longer_steps(graph(spikes((2,)), dense("a", "in", np.eye(2, dtype=F)), *nodes), 2)
    assert caught.value.diagnostics[0].code == "SPK220"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_to": 0}, "steps_to must be at least 1"),
        ({"steps_loss": 1.0}, "steps_loss is a share"),
        ({"steps_to": 4, "steps_loss": 0.1}, "not both"),
        ({"steps_to": 4, "calibrate": None}, "--steps-to needs calibration data"),
    ],
)
def test_options(options: Any, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        Shorten(**{"calibrate": data()[0], **options}).run(net(), Ledger())
