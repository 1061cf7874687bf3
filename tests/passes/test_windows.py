"""Windows: what a population does outside of its own, exact late starts, the cost as measured, and what the C code really skips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from many import differences, require_compiler
from nets import F, dense, graph, leaky, random_spikes, spikes

import spikec
from spikec.account import unaccounted
from spikec.backends.c.backend import _compiled, collect
from spikec.backends.c.forms import Choices
from spikec.backends.events import run_events
from spikec.cli import main
from spikec.counts import count
from spikec.diagnostics import CompileError
from spikec.frontend.nir import write_nir
from spikec.frontend.slayer.write import write_net
from spikec.ir.interpret import default_record, interpret
from spikec.ir.ops import Add, Neuron, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_graph, parse_program, print_graph, write_graph
from spikec.ledger import Ledger
from spikec.passes.windows import Windows, late_starts, with_windows
from spikec.score import answers

CLASSES = 4


def net(**more: Any) -> Any:
    rng = np.random.default_rng(0)
    w1 = np.kron(np.eye(CLASSES), np.ones((3, 4))) * 0.4 + rng.normal(0, 0.02, (12, 16))
    w2 = np.kron(np.eye(CLASSES), np.ones((1, 3))) * 0.4
    return graph(
        spikes((16,)), dense("a", "in", w1.astype(F)), leaky("l1", "a", 0.9), dense("b", "l1", w2.astype(F)), leaky("l2", "b", 0.9, **more),
        out=["l2"],
    )  # fmt: skip


def data(samples: int = 48, steps: int = 24, tail: float = 0.02) -> Any:
    """Classes that show in the first half of a sample; the second is alike for all."""
    rng = np.random.default_rng(3)
    labels = np.arange(samples) % CLASSES
    rates = np.where(np.repeat(np.eye(CLASSES), 4, axis=1)[labels] > 0, 0.4, 0.05)
    x = rng.random((samples, steps, 16))
    return {"in": np.concatenate([x[:, : steps // 2] < rates[:, None], x[:, steps // 2 :] < tail], axis=1).astype(F)}, labels


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 6), st.integers(0, 8), st.integers(0, 1000))
def test_a_window_is_a_run_of_its_own_steps(start: int, length: int, seed: int) -> None:
    x = random_spikes((3, 10, 5), seed)
    whole = graph(spikes((5,)), leaky("n", "in", 0.8, start=start, stop=start + length), out=["n", ("v", Ref("n", "v"))])
    alone = graph(spikes((5,)), leaky("n", "in", 0.8), out=["n", ("v", Ref("n", "v"))])
    got, want = interpret(whole, {"in": x}), interpret(alone, {"in": x[:, start : start + length]})
    for name in ("n", "v"):
        np.testing.assert_array_equal(got.outputs[name][:, start : start + length], want.outputs[name])
        assert not got.outputs[name][:, :start].any() and not got.outputs[name][:, start + length :].any()
    np.testing.assert_array_equal(got.states["n"]["v"], want.states["n"]["v"])
    text, arrays = print_graph(whole)
    assert parse_graph(text, arrays) == whole and f"stop={start + length}" in text


def test_a_window_ends_after_it_begins() -> None:
    with pytest.raises(CompileError, match="stops at step 2, before it starts at step 3"):
        verify(graph(spikes((5,)), leaky("n", "in", start=3, stop=2)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.booleans())
def test_late_starts_change_nothing(seed: int, biased: bool) -> None:
    rng = np.random.default_rng(seed)

    def delays(shape: tuple[int, int]) -> Any:
        return rng.integers(rng.integers(0, 4), 6, shape)

    def weights(shape: tuple[int, int]) -> Any:
        return (rng.integers(-2, 6, shape) / 8 * (rng.random(shape) < 0.7)).astype(F)

    bias = (rng.integers(-3, 4, 6) / 8).astype(F) if biased else None
    g = graph(
        spikes((4,)),
        dense("a", Ref("in", delay=int(rng.integers(0, 3))), weights((6, 4)), delay=delays((6, 4))),
        leaky("l1", "a", 0.75),
        dense("b", "l1", weights((6, 6)), bias, delay=delays((6, 6))),
        dense("r", Ref("l2", delay=1), weights((6, 6))),
        Add(name="s", inputs=(Ref("b"), Ref("r"))),
        leaky("l2", "s", 0.75),
        out=["l2"],
    )
    steps = 12
    found = late_starts(g, steps)
    changed = with_windows(g, {name: (first, steps) for name, first in found.items()}, steps)
    x = {"in": random_spikes((4, steps, 4), seed)}
    record = default_record(g)
    assert differences(interpret(g, x, record=record), interpret(changed, x, record=record)) == []
    assert biased or found["l2"] >= found["l1"]


def test_how_late_a_layer_starts() -> None:
    g = graph(
        spikes((2,)), dense("a", "in", np.ones((2, 2), F), delay=np.array([[5, 3], [4, 9]])), leaky("l1", "a"), dense("b", Ref("l1", delay=2), np.eye(2, dtype=F)),
        leaky("l2", "b"), dense("c", "l1", np.eye(2, dtype=F), np.ones(2, F)), leaky("l3", "c"), out=["l2", "l3"],
    )  # fmt: skip
    assert late_starts(g, 20) == {"l1": 3, "l2": 5, "l3": 0}
    assert late_starts(g, 4) == {"l1": 3, "l2": 4, "l3": 0}


def test_the_windows_and_their_cost_are_in_the_ledger_and_true() -> None:
    x, y = data()
    ledger, g = Ledger(), net()
    ledger.pass_name = "windows"
    after = Windows(windows_loss=0.0, calibrate=x, labels=y).run(g, ledger)
    before, now = interpret(g, x, record=default_record(g)), interpret(after, x, record=default_record(after))
    assert np.mean(answers(now.outputs["l2"]) == y) >= np.mean(answers(before.outputs["l2"]) == y) > 0.9
    one, two = count(g, x, before.records), count(after, x, now.records)
    table = {entry.node: entry for entry in ledger if entry.kind == "approximation"}
    for name, entry in table.items():
        node = after[name]
        assert isinstance(node, Neuron) and entry.asked == "--windows-loss 0"
        assert (entry.measured["first step"], entry.measured["stops at"]) == (node.start, node.stop)
        assert entry.measured["operations"] == two[name].synaptic_operations + two[name].updates
        assert entry.measured["of operations"] == one[name].synaptic_operations + one[name].updates
        assert two[name].updates == 48 * (node.stop - node.start) * before.records[name][0, 0].size
    # Nothing is told apart in the second half: no layer computes there.
    assert {name: after[name].stop <= 12 for name in ("l1", "l2")} == {"l1": True, "l2": True}
    (whole,) = [entry for entry in ledger if entry.what.startswith("cost of the windows")]
    assert whole.measured["loss"] <= 0 and whole.measured["operations"] < 0.5 * whole.measured["of operations"]
    told = [entry.measured for entry in ledger if entry.what.startswith("spikes a neuron and step")]
    assert len(told) == 2 and told[0]["steps 0 to 2"] == pytest.approx(before.records["l1"][:, :3].mean())


def test_a_budget_bounds_the_loss_and_no_budget_gives_nothing_away() -> None:
    x, y = data(tail=0.4)
    x = {"in": x["in"][:, ::-1]}  # what matters comes last
    ledger = Ledger()
    after = Windows(windows_loss=0.05, calibrate=x, labels=y).run(net(), ledger)
    (whole,) = [entry for entry in ledger if entry.what.startswith("cost of the windows")]
    found = answers(interpret(after, x).outputs["l2"])
    assert whole.measured["accuracy after"] == np.mean(found == y)
    assert whole.measured["loss"] <= 0.05 + 1e-12
    node = after["l2"]
    assert isinstance(node, Neuron) and node.start >= 4  # it waits for the half that matters
    random = {"in": random_spikes((200, 4, 16), 5, 0.2)}
    same = Ledger()
    kept = Windows(windows_loss=0.0, calibrate=random).run(net(), same)
    changed = [entry for entry in same if "cost of the windows" in entry.what]
    assert (kept == net()) == (not changed)
    assert not changed or changed[0].measured["answers changed"] == 0


@pytest.mark.parametrize("size", [12, 300])  # the larger one is not computed while it rests
@pytest.mark.parametrize("program", ["leaky", "integrates"])  # the second adds its events to its state
def test_the_c_code_skips_what_lies_outside(size: int, program: str) -> None:
    require_compiler()
    rng = np.random.default_rng(1)
    code = {
        "leaky": "v = clip(rtz(v * 3000, 12) + a, 20)",
        "integrates": "v = clip(v + a, 15)",
    }[program]
    kind = {"leaky": "i32", "integrates": "i16"}[program]
    made = parse_program(f"neuron @n(a) state(v: {kind} = 0) {{\n{code}\ns = v > 60\nv = select(s, 0, v)\nemit s\n}}")

    def weights(shape: tuple[int, int]) -> Any:
        found = rng.integers(-20, 40, shape)
        return np.where(found == 0, 1, found).astype(np.int16)  # the C code adds zeros too

    def population(name: str, source: str, **more: Any) -> Neuron:
        return Neuron(name=name, inputs=(Ref(source),), program=made, **more)

    g = verify(
        graph(
            spikes((20,), dtype="i8"), dense("a", "in", weights((size, 20))), population("l1", "a", start=2, stop=7),
            dense("b", "l1", weights((6, size))), population("l2", "b", start=4), out=["l2"], level="fixed",
        )
    )  # fmt: skip
    x = {"in": (rng.random((3, 10, 20)) < 0.3).astype(np.int8)}
    want = interpret(g, x, record=default_record(g))
    assert want.outputs["l2"].any()
    assert differences(want, run_events(g, x, record=default_record(g))) == []
    compiled = _compiled(g, (), Choices())
    assert differences(want, collect(g, compiled, x, default_record(g))) == []
    _, _, counters = compiled.run({"in": x["in"]}, 3, 10, 0, [])
    told = count(g, x, want.records)
    assert compiled.network.source.count("if (net->t >= 2 && net->t < 7) {") == 3  # the input, its sum and the population
    assert counters["a events"] == x["in"][:, 2:7].sum() < x["in"].sum()
    assert counters["a operations"] == told["l1"].synaptic_operations == size * counters["a events"]
    assert counters["b events"] == want.records["l1"][:, 4:].sum() < want.records["l1"].sum()
    assert told["l1"].updates == 3 * 5 * size and told["l2"].updates == 3 * 6 * 6


def test_a_delayed_sum_keeps_what_is_under_way() -> None:
    require_compiler()
    rng = np.random.default_rng(2)
    code = "neuron @n(a) state(v: i32 = 0) {\nv = clip(rtz(v * 3000, 12) + a, 20)\ns = v > 30\nv = select(s, 0, v)\nemit s\n}"
    weight = rng.integers(-20, 40, (5, 8)).astype(np.int16)
    g = verify(
        graph(
            spikes((8,), dtype="i8"), dense("a", "in", weight, delay=rng.integers(0, 4, (5, 8))), dense("b", "in", weight),
            Add(name="s", inputs=(Ref("a"), Ref("b"))), Neuron(name="n", inputs=(Ref("s"),), program=parse_program(code), start=3, stop=8),
            level="fixed",
        )
    )  # fmt: skip
    x = {"in": (rng.random((3, 12, 8)) < 0.3).astype(np.int8)}
    want = interpret(g, x, record=default_record(g))
    compiled = _compiled(g, (), Choices())
    assert differences(want, collect(g, compiled, x, default_record(g))) == []
    _, _, counters = compiled.run({"in": x["in"]}, 3, 12, 0, [])
    assert counters["b events"] == x["in"][:, 3:8].sum()
    assert counters["a events"] == x["in"].sum()
    told = count(g, x, want.records)["n"]
    assert told.synaptic_operations == np.count_nonzero(weight, axis=0) @ (x["in"].sum((0, 1)) + x["in"][:, 3:8].sum((0, 1)))


@pytest.mark.parametrize("target", ["host", "loihi2"])
def test_engines_agree_on_windows(target: str) -> None:
    require_compiler()
    x, y = data()
    bits = {"bits": 8} if target == "host" else {}
    build = spikec.compile(net(), target=target, calibrate=x, labels=y, windows_loss=0.0, **bits)
    assert all(node.stop is not None for node in build.graph().neurons)
    wanted = build.run(x, record="all")
    for engine in ("numpy", "c"):
        assert differences(wanted, build.run(x, engine, record="all")) == []
    assert unaccounted(build) == []


@pytest.mark.usefixtures("lava_env")
def test_lava_keeps_the_windows() -> None:
    x, y = data()
    build = spikec.compile(net(), target="loihi2", calibrate=x, labels=y, windows_loss=0.0)
    few = {"in": x["in"][:2]}
    wanted = build.run(few, record="all")
    assert wanted.outputs["l2"].any()
    assert differences(wanted, build.run(few, "lava", record="all")) == []


def test_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert main([*line, "--windows-loss", "0.02"]) == 0
    assert "input -> canonicalise -> windows" in capsys.readouterr().out
    assert main([*line, "--windows-loss", "2"]) == 1
    assert "windows_loss is a share" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows_loss": -0.1}, "windows_loss is a share"),
        ({"calibrate": None}, "--windows-loss needs calibration data"),
        ({"labels": np.zeros((48, 24), int)}, "needs one label a sample"),
    ],
)
def test_options(options: Any, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        Windows(**{"windows_loss": 0.1, "calibrate": data()[0], **options}).run(net(), Ledger())


def test_formats_without_windows_say_so(tmp_path: Path) -> None:
    stopped = graph(spikes((5,)), dense("a", "in", np.ones((3, 5), F)), leaky("n", "a", 0.8, stop=4), out=["n"])
    with pytest.raises(CompileError, match="stops early, which NIR cannot say"):
        write_nir(stopped, tmp_path / "g.nir")
    build = spikec.compile(net(), target="loihi2", calibrate=data()[0])
    fixed = next(stage.graph for stage in build.stages if stage.name == "quantize")
    write_net(fixed, tmp_path / "g.net")
    with pytest.raises(CompileError, match="stops early"):
        write_net(with_windows(fixed, {"l1": (0, 5), "l2": (0, 24)}, 24), tmp_path / "h.net")
