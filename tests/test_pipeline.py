"""Running passes: verified in between, a broken rule is the pass's fault and named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from nets import F, dense, graph, leaky, random_spikes, spikes

from spikec import pipeline
from spikec.diagnostics import CompileError, PassBug
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Node, Ref
from spikec.ir.text import parse_graph, print_graph
from spikec.ledger import Ledger
from spikec.pipeline import PASSES, Stage, load_pass, make_pass, run_passes, with_optional
from spikec.target import load_target

LOIHI = load_target("loihi2")


@dataclass(frozen=True)
class Break:
    """Makes a graph that breaks a rule."""

    how: str = "negative"
    name: ClassVar[str] = "break"
    levels: ClassVar[tuple[str, ...]] = ("float", "fixed")

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        def broken(node: Node) -> Node:
            if self.how == "negative":
                return replace(node, lag=-1)
            return replace(node, inputs=tuple(Ref("nowhere") for _ in node.inputs))

        return graph.with_nodes(broken(node) for node in graph.nodes)


def net() -> Graph:
    return graph(
        spikes((4,)), dense("fc", "in", np.array([[0.3, 0.7, -0.2, 0.4]], F), [0.1]), leaky("l", "fc", beta=0.9), out=["l", ("mem", Ref("l", "v"))]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("negative", "pass 'break' broke a rule of the IR: error[SPK306]: %in: lag and start cannot be negative\n"),
        ("nowhere", "pass 'break' broke a rule of the IR: error[SPK302]: %fc: reads %nowhere, which does not exist\n"),
    ],
)
def test_a_pass_that_breaks_a_rule(how: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, "break", "tests:Break")
    monkeypatch.setattr(pipeline, "load_pass", lambda name: Break if name == "break" else load_pass(name))
    seen: list[Stage] = []
    with pytest.raises(PassBug) as caught:
        run_passes(net(), ["canonicalise", "break"], {"how": how}, Ledger(), seen.append)
    assert str(caught.value).startswith(message)
    assert [stage.name for stage in seen] == ["input", "canonicalise"]


def test_a_bad_input_graph_is_the_users_mistake() -> None:
    bad = graph(spikes((4,)), dense("fc", "in", np.full((1, 4), np.nan, F)))
    with pytest.raises(CompileError) as caught:
        run_passes(bad, ["canonicalise"], {}, Ledger())
    assert caught.value.code == "SPK305"


def test_an_unknown_pass() -> None:
    with pytest.raises(CompileError) as caught:
        run_passes(net(), ["canonicalize"], {}, Ledger())
    first, fix = str(caught.value).split("\n")
    assert first == "error[SPK005]: unknown pass 'canonicalize'"
    assert fix.startswith("  fix: ") and all(name in fix for name in PASSES)


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_can_be_loaded_under_its_name(name: str) -> None:
    assert load_pass(name).name == name


def test_options_go_to_the_passes_that_have_them() -> None:
    made = make_pass("quantize", {"target": LOIHI, "bits": 4, "hop": 3, "calibrate": None})
    assert (made.bits, made.calibrate) == (4, None)
    assert make_pass("canonicalise", {"target": LOIHI}) == make_pass("canonicalise", {})


def test_the_whole_way_and_every_stage_reads_back() -> None:
    ledger = Ledger()
    x = {"in": random_spikes((6, 15, 4))}
    stages = run_passes(net(), LOIHI.passes, {"target": LOIHI, "calibrate": x}, ledger)
    assert [stage.name for stage in stages] == ["input", *LOIHI.passes]
    assert {e.pass_name for e in ledger} <= set(LOIHI.passes)
    runs = []
    for stage in stages:
        text, arrays = print_graph(stage.graph)
        assert parse_graph(text, arrays) == stage.graph and stage.seconds >= 0
        runs.append(interpret(stage.graph, x, record=["l"]))
    assert runs[0].outputs["l"].any()
    integers = [stage.graph.level for stage in stages].index("fixed")
    for run in runs[1:integers]:
        np.testing.assert_array_equal(run.outputs["l"], runs[0].outputs["l"])
    for run in runs[integers + 1 :]:
        np.testing.assert_array_equal(run.outputs["l"], runs[integers].outputs["l"])
        np.testing.assert_array_equal(run.outputs["mem"], runs[integers].outputs["mem"])
    again = run_passes(net(), LOIHI.passes, {"target": LOIHI, "calibrate": x}, Ledger())
    assert [s.graph.fingerprint for s in again] == [s.graph.fingerprint for s in stages], "same in, same out"


def test_a_pass_that_does_not_take_the_level_is_left_out() -> None:
    """A graph of integers needs no quantizer: only what takes integers runs."""

    text = "sir 1\ngraph @g level=fixed {\n%in = input : spike<2>\n%fc = dense(%in) weight=i16[[2, 4]] : value<1>\noutput %fc\n}"
    target = load_target("loihi2")
    stages = run_passes(parse_graph(text), target.passes, {"target": target}, Ledger())
    wanted = [name for name in target.passes if "fixed" in load_pass(name).levels]
    assert [stage.name for stage in stages] == ["input", *wanted] and "quantize" not in wanted and "retime" in wanted


def test_an_option_of_zero_asks_for_its_pass() -> None:
    assert "windows" in with_optional(["canonicalise"], {"windows_loss": 0.0})
    assert "delays" in with_optional(["canonicalise"], {"max_delay": 0})
    assert with_optional(["canonicalise"], {"max_delay": None, "prune_pattern": "", "keep_layers": ()}) == ["canonicalise"]
