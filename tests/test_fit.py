"""`--fit`: what is found passes all design rules on so many cores, nothing milder that was looked at does, and the cost is told."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import F, dense, graph, leaky, spikes

import spikec
from spikec import fit
from spikec.cli import main
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.rules import verify
from spikec.ir.text import write_graph
from spikec.target import Target, load_target

CLASSES = 4


def net(*sizes: int, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    nodes: list[Any] = [spikes((sizes[0],))]
    before = "in"
    for k, (a, b) in enumerate(pairwise(sizes), 1):
        weight = np.kron(np.eye(CLASSES), np.ones((b // CLASSES, a // CLASSES))) * 4 / a + rng.normal(0, 0.3 / np.sqrt(a), (b, a))
        nodes += [dense(f"fc{k}", before, weight.astype(F)), leaky(f"l{k}", f"fc{k}", 0.9)]
        before = f"l{k}"
    return verify(graph(*nodes, out=[before]))


def data(width: int, samples: int = 24) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    y = np.arange(samples) % CLASSES
    rates = np.where(np.repeat(np.eye(CLASSES), width // CLASSES, axis=1)[y] > 0, 0.4, 0.1)
    return (rng.random((samples, 12, width)) < rates[:, None]).astype(F), y


def small(words: int) -> Target:
    """Loihi 2 with less memory for synapses, so that small networks are too large for a core."""
    chip = load_target("loihi2")
    from dataclasses import replace

    return replace(chip, numbers={**chip.numbers, "core_words": replace(chip.numbers["core_words"], value=words)})


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `target="loihi2"` a chip with so many words a core."""
    from spikec import driver

    def set_words(words: int) -> None:
        real = driver.find_target

        def found(name: str) -> tuple[Target, str]:
            target, text = real(name)
            return (small(words), text) if target.name == "loihi2" else (target, text)

        monkeypatch.setattr(driver, "find_target", found)

    return set_words


def cores(build: Any) -> float:
    return next(e.measured["cores"] for e in build.ledger if e.what == "every neuron has a core")


@pytest.mark.parametrize(("what", "count"), [("one-core", 1), ("1-core", 1), ("4-cores", 4), ("12-core", 12)])
def test_wishes(what: str, count: int) -> None:
    assert fit.cores_of(what) == count


@pytest.mark.parametrize("what", ["", "core", "0-cores", "one core", "two-cores", "x"])
def test_what_is_no_wish(what: str) -> None:
    with pytest.raises(CompileError) as caught:
        fit.cores_of(what)
    assert caught.value.diagnostics[0].code == "SPK001"


@given(st.integers(0, 40), st.integers(-5, 50), st.integers(0, 45))
def test_the_least_that_fits(high: int, guess: int, needed: int) -> None:
    asked: list[int] = []

    def fits(number: int) -> bool:
        asked.append(number)
        return number >= needed

    assert fit._least(fits, 0, high, guess) == (needed if needed <= high else None)
    assert all(0 <= number <= high for number in asked)
    if guess == needed <= high:
        assert len(asked) <= 2


def test_nothing_has_to_go() -> None:
    g = net(16, 20, 4)
    x, y = data(16)
    build = spikec.compile(g, target="loihi2", calibrate=x, labels=y, fit="one-core")
    assert cores(build) == 1
    plain = spikec.compile(g, target="loihi2", calibrate=x, labels=y)
    assert build.summary()["synapses"] == plain.summary()["synapses"]
    assert [e.what for e in build.ledger if e.pass_name == "fit"] == ["on one core as it is: nothing had to go"]


def test_as_little_goes_as_fits(chip: Any) -> None:
    chip(260)  # 64 sources for 40 neurons need 600 words at 15 bits, and 40 for 4 of them 40
    g = net(64, 40, 4)
    x, y = data(64)
    with pytest.raises(CompileError):
        spikec.compile(g, target="loihi2", calibrate=x, labels=y, cores=1)
    build = spikec.compile(g, target="loihi2", calibrate=x, labels=y, fit="one-core")
    assert cores(build) == 1
    told = [e for e in build.ledger if e.pass_name == "fit"]
    assert told[-1].kind == "approximation" and told[-1].asked == "--fit one-core"
    others = [e.measured["loss"] for e in told[:-1]]
    assert others and told[-1].measured["loss"] <= min(others)
    assert (
        told[-1].measured["synapses after"] == build.summary()["synapses"] < told[-1].measured["synapses before"] == 64 * 40 + 160
    )
    assert build.verify(x[:3], ["numpy", "c"]).ok
    # A step back in any one direction does not fit.
    options = build.options
    bits, structured, pruned = options["bits"], options.get("prune_structured", 0.0), options.get("prune", 0.0)
    if pruned:
        with pytest.raises(CompileError):
            spikec.compile(
                g, target="loihi2", bits=bits, prune_structured=structured or None, prune=round(pruned - 0.04, 4), cores=1
            )


def test_bits_alone_may_be_enough(chip: Any) -> None:
    """At two bits fewer a synapse takes 13 bits: words enough for the network as it is."""
    chip(620)  # 64 times 10 and 40 at 15 bits a synapse, 64 times 9 and 40 at 13
    g = net(64, 40, 4)
    x, y = data(64)
    build = spikec.compile(g, target="loihi2", calibrate=x, labels=y, fit="one-core", bits=6)
    assert cores(build) == 1
    assert "prune" not in build.stage_names
    assert build.options["bits"] == 6 and "prune" not in build.options


def test_more_cores_need_less(chip: Any) -> None:
    chip(260)
    g = net(64, 40, 4)
    x, y = data(64)
    three = spikec.compile(g, target="loihi2", calibrate=x, labels=y, fit="4-cores")
    assert 1 < cores(three) <= 4
    assert [e.what for e in three.ledger if e.pass_name == "fit"] == ["on 4 cores as it is: nothing had to go"]


def test_what_the_user_asked_for_is_the_least(chip: Any) -> None:
    chip(260)
    g = net(64, 40, 4)
    x, y = data(64)
    build = spikec.compile(g, target="loihi2", calibrate=x, labels=y, fit="one-core", prune_structured=0.25, bits=4)
    assert cores(build) == 1
    assert build.options["prune_structured"] >= 0.25 and build.options["bits"] == 4


@pytest.mark.parametrize(
    ("words", "options", "code", "words_in_it"),
    [
        (1, {}, "SPK219", "nothing that was tried fits onto one core"),
        (260, {"calibrate": None, "labels": None}, "SPK001", "needs calibration data"),
        (260, {"target": "host"}, "SPK001", "'host' has none"),
        (260, {"bits": "fc1=4"}, "SPK001", "chooses the bits itself"),
        (260, {"fit": "two"}, "SPK001", "nothing to fit onto"),
    ],
)
def test_refused(chip: Any, words: int, options: Any, code: str, words_in_it: str) -> None:
    chip(words)
    x, y = data(64)
    with pytest.raises(CompileError) as caught:
        spikec.compile(net(64, 40, 4), **{"target": "loihi2", "calibrate": x, "labels": y, "fit": "one-core", **options})
    assert caught.value.diagnostics[0].code == code
    assert words_in_it in str(caught.value)


def test_other_errors_are_told_as_they_are() -> None:
    g = net(16, 20, 4)
    with pytest.raises(CompileError) as caught:
        spikec.compile(g, target="loihi2", calibrate=np.zeros((2, 5, 9), F), fit="one-core")
    assert caught.value.diagnostics[0].code == "SPK006"


def test_from_the_command_line(tmp_path: Path, chip: Any, capsys: pytest.CaptureFixture[str]) -> None:
    chip(400)
    x, y = data(64)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    write_graph(net(64, 40, 4), tmp_path / "n.sir")
    given = [str(tmp_path / "n.sir"), "-o", str(tmp_path / "b"), "--target", "loihi2", "--calibrate", str(tmp_path / "d.npz")]
    assert main(["compile", *given, "--fit", "one-core"]) == 0
    assert "fit: approximation: to fit onto one core: " in capsys.readouterr().out
