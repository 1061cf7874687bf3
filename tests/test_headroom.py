"""Range analysis: sound against runs, exact for one layer, and every wrap or saturation with its neuron and its input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import LEAKY, dense, graph, native, sir, spikes

import spikec
from spikec import cli
from spikec.diagnostics import CompileError
from spikec.headroom import HeadRoom, Reach, head_room, sites
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.neuron import expr_text
from spikec.ir.ops import Add, Constant, Conv, Gather, Neuron, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ledger import Ledger
from spikec.passes.retime import Retime
from spikec.target import load_target

LOIHI = load_target("loihi2")
LIF = native("LIF")
SMALL = parse_program("""neuron @small(a) params(leak) state(u: i32 = 0, v: i32 = 0) {
  u = wrap(rtz(u * leak, 4) + a, 10)
  v = clip(rtz(v * 14, 4) + u, 12)
  s = v > 900
  v = select(s, 0, v)
  emit s, u, v
}""")


def lif(name: str, source: str, du: Any, dv: Any = 300, vth: int = 1000) -> Neuron:
    params = {"du": du, "dv": dv, "vth": vth, "bias_mant": 0, "bias_exp": 0}
    arrays = {k: np.asarray(v, np.int32) for k, v in params.items()}
    return Neuron(name=name, inputs=(Ref(source),), program=LIF, params=arrays)


def one_layer(weight: Any, du: Any = 4095, **more: Any) -> Graph:
    w = np.asarray(weight, np.int16)
    return verify(graph(spikes((w.shape[1],), dtype="i8"), dense("d", "in", w), lif("l", "d", du, **more), level="fixed"))


def row(found: HeadRoom, variable: str, population: str = "l") -> Reach:
    (mine,) = (item for item in found.rows if (item.population, item.variable) == (population, variable))
    return mine


def test_what_a_program_narrows() -> None:
    assert [(s.variable, expr_text(s.expr), s.legal, s.beyond) for s in sites(LIF)] == [
        ("u", "u", (-8388607, 8388608), "wraps"),
        ("v", "rtz(v * (4096 - dv), 12) + u + (bias_mant << bias_exp)", (-8388607, 8388607), "saturates"),
    ]
    assert [(s.variable, s.legal, s.beyond) for s in sites(SMALL)] == [
        ("u", (-512, 511), "wraps"),
        ("v", (-2047, 2047), "saturates"),
    ]
    # what is no wrap is not taken for one: another modulus, another variable, a comparison with a variable
    for line in ("select(v > 8, v - 16, select(v < -8, v + 15, v))", "select(v > 8, v - 16, a)", "select(v > a, v - 16, v)"):
        assert sites(parse_program(f"neuron @n(a) state(v: i32 = 0) {{\n v = {line}\n emit v\n}}")) == []


def test_a_leak_is_followed_to_its_limit_and_not_to_a_power_of_two() -> None:
    """20 weights of 100 with a leak of 4056 / 4096: the current tends to 20 * 100 * 64 * 4096 / 40, a little over 13 million."""
    for sources, wraps in ((12, False), (20, True)):
        g = one_layer(np.full((1, sources), 100), du=39)
        mine = row(head_room(g, LOIHI), "u")
        assert (mine.possible is not None) == wraps
        limit = sources * 100 * 64 * 4096 / 40
        if not wraps:  # the state within a step of its limit, and 2 % of slack
            assert limit * 0.99 < mine.worst[1] < limit * 1.02 + 64 * 100 * sources


def test_the_neuron_and_the_sources_are_named_and_they_do_it() -> None:
    rng = np.random.default_rng(5)
    weight = rng.integers(-100, 101, (6, 40)) * 2
    weight[3] = np.abs(weight[3]) + 50
    g = one_layer(weight, du=20)
    mine = row(head_room(g, LOIHI), "u")
    assert mine.possible is not None and mine.possible.neuron == (3,)
    assert mine.possible.sources == {"in": tuple(range(40))}
    assert "40 of the 40 elements of %in that reach it, those of positive weight in %d, send" in mine.possible.cause
    # every neuron that is named alone wraps when its sources send; the count is that of those which can
    wrapping = 0
    for neuron in range(6):
        alone = row(head_room(one_layer(weight[neuron : neuron + 1], du=20), LOIHI), "u")
        if alone.possible is None:
            continue
        wrapping += 1
        assert alone.possible.sources is not None
        x = np.zeros((1, 900, 40), np.int64)
        x[..., list(alone.possible.sources["in"])] = 1
        seen = row(head_room(g, LOIHI, {"in": x}), "u").happened
        assert seen is not None and seen.step is not None
    assert mine.possible.neurons == wrapping > 1


def test_negative_sums_sources_behind_joins_and_reshapes() -> None:
    w = np.array([[60, -200], [-200, -220]], np.int16)
    g = verify(
        graph(
            spikes((2,), "a", dtype="i8"),
            spikes((2,), "b", dtype="i8"),
            dense("da", "a", w),
            dense("db", "b", w),
            Add(name="sum", inputs=(Ref("da"), Ref("db"))),
            Gather(name="turn", inputs=(Ref("sum"),), indices=np.array([1, 0])),
            Reshape(name="r", inputs=(Ref("turn"),), shape=(1, 2)),
            lif("l", "r", 4),
            level="fixed",
        )
    )
    trouble = row(head_room(g, LOIHI), "u").possible
    assert trouble is not None and trouble.neuron == (0, 0) and trouble.sources == {"a": (0, 1), "b": (0, 1)}
    assert trouble.value < -8388607 and "of negative weight in %da" in trouble.cause and "(a sum of -840 at" in trouble.cause


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_nothing_that_happens_lies_outside(data: st.DataObject) -> None:
    """Random layers, wide and narrow: what a run does is within the worst case, and what wraps in a run was possible."""
    size, fan_in = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    reach = data.draw(st.sampled_from([5, 60, 300]))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    leak = np.asarray(rng.integers(0, 17, size), np.int32)
    g = verify(
        graph(
            spikes((fan_in,), dtype="i8"),
            dense("d", "in", rng.integers(-reach, reach + 1, (size, fan_in)).astype(np.int16)),
            Neuron(name="l", inputs=(Ref("d"),), program=SMALL, params={"leak": leak}),
            dense("e", "l", rng.integers(-reach, reach + 1, (2, size)).astype(np.int16)),
            Neuron(name="m", inputs=(Ref("e"),), program=SMALL, params={"leak": np.asarray(9, np.int32)}),
            out=["m"],
            level="fixed",
        )
    )
    x = (rng.random((3, 25, fan_in)) < data.draw(st.sampled_from([0.2, 0.9]))).astype(np.int64)
    later = verify(Retime(LOIHI).run(g, Ledger()))
    for built in (g, later):
        found = head_room(built, LOIHI, {"in": x})
        for item in found.rows:
            assert item.calibrated is not None
            assert item.worst[0] <= item.calibrated[0] and item.calibrated[1] <= item.worst[1]
            assert item.happened is None or item.possible is not None
            assert (item.possible is None) or not (item.legal[0] <= item.worst[0] and item.worst[1] <= item.legal[1])
    # the calibrated interval is that of a plain run, and the first place is where it is
    record = interpret(g, {"in": x}, record=["l.u", "d"])
    mine = row(found, "a")
    assert mine.calibrated == (int(record.records["d"].min()), int(record.records["d"].max()))
    u = record.records["l.u"]
    before = np.concatenate([np.zeros_like(u[:, :1]), u[:, :-1]], axis=1)
    raw = np.sign(before) * (np.abs(before * leak) >> 4) + record.records["d"]
    mine = row(found, "u")
    assert mine.calibrated == (int(raw.min()), int(raw.max()))
    assert (mine.happened is not None) == bool(np.any((raw < -512) | (raw > 511)))
    if mine.happened is not None:
        seen = mine.happened
        assert raw[seen.sample, seen.step, seen.neuron[0]] == seen.value


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_one_layer_without_memory_is_exact(seed: int) -> None:
    """Every neuron's worst case is reached by the sources that are named, and no other input reaches farther."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-90, 91, (4, 7)).astype(np.int16)
    g = verify(
        graph(
            spikes((7,), dtype="i8"),
            dense("d", "in", weight),
            Neuron(name="l", inputs=(Ref("d"),), program=SMALL, params={"leak": np.asarray(0, np.int32)}),
            level="fixed",
        )
    )
    low, high = np.minimum(weight, 0).sum(axis=1), np.maximum(weight, 0).sum(axis=1)
    mine = row(head_room(g), "u")
    assert mine.worst == (int(low.min()), int(high.max()))
    assert (
        mine.possible is None and mine.width == "10 bits, wraps" if mine.worst[1] < 512 and mine.worst[0] >= -512 else mine.possible
    )


def test_many_different_neurons_are_bounded_too() -> None:
    """More kinds than are looked at one by one: none that wraps is missed."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-60, 61, (300, 30)).astype(np.int16)
    g = verify(
        graph(
            spikes((30,), dtype="i8"),
            dense("d", "in", weight),
            Neuron(name="l", inputs=(Ref("d"),), program=SMALL, params={"leak": np.asarray(0, np.int32)}),
            level="fixed",
        )
    )
    mine = row(head_room(g), "u")
    low, high = np.minimum(weight, 0).sum(axis=1), np.maximum(weight, 0).sum(axis=1)
    can = (low < -512) | (high > 511)
    assert mine.worst == (int(low.min()), int(high.max()))
    assert mine.possible is not None and mine.possible.neurons >= int(can.sum()) > 100
    assert can[mine.possible.neuron[0]] and mine.possible.value in (int(low.min()), int(high.max()))


def test_sums_that_a_native_neuron_does_not_hold() -> None:
    g = one_layer(np.full((2, 2000), 200))
    mine = row(head_room(g, LOIHI), "a")
    assert mine.beyond == "leaves its range" and mine.possible is not None and mine.possible.value == 400000
    assert mine.possible.neurons == 2 and "sum of 400,000" in mine.possible.cause


def test_convolutions_constants_and_clipped_branches() -> None:
    program = parse_program("""neuron @branch(a) state(v: i32 = 0) {
      r = a > 0
      v = select(r, wrap(a, 8), select(a < -40, clip(v + a, 6), v))
      s = v > 3
      emit s
    }""")
    g = verify(
        graph(
            spikes((1, 6), dtype="i8"),
            Constant(name="on", value=np.ones((2, 6), np.int32), kind="spike"),
            Conv(name="c", inputs=(Ref("in"),), weight=np.full((2, 1, 3), 40, np.int16), padding=(1,)),
            Conv(name="k", inputs=(Ref("on"),), weight=np.full((2, 2, 1), -30, np.int16)),
            Add(name="sum", inputs=(Ref("c"), Ref("k"))),
            Neuron(name="l", inputs=(Ref("sum"),), program=program),
            level="fixed",
        )
    )
    wrap, clip = (item for item in head_room(g, data={"in": np.ones((1, 2, 1, 6), np.int64)}).rows if item.variable == "v")
    # 3 taps of 40 and two of -30: 60 at most, 20 at the border; v goes to -31 less 60, in a branch that no data take
    assert wrap.possible is None and wrap.calibrated == (20, 60) and wrap.legal == (-128, 127)
    assert clip.possible is not None and clip.calibrated == (0, 0), "the branch is not taken on the data"
    assert clip.possible.value <= -91


@pytest.fixture
def build(tmp_path: Path) -> spikec.Build:
    """Two neurons of weights 1 and 0.5 for 60 inputs, with a slow current."""
    program = """neuron @cuba(x) params(alpha, beta, theta) state(i = 0, v = 0) {
      i = alpha * i + x
      v = beta * v + i
      s = v > theta
      v = select(s, 0, v)
      emit s
    }"""
    body = f"""
      %in = input : spike<60>
      %d = dense(%in) weight=[[{", ".join(["1.0"] * 60)}], [{", ".join(["0.5"] * 60)}]] : value<2> loc("net.py":7 net.d)
      %l = neuron @cuba(%d) alpha=0.99 beta=0.5 theta=1000.0 : spike<2> loc("net.py":8 net.l)
      output out = %l"""
    return spikec.compile(sir(body, program), target="loihi2")


def test_build_and_command_line(build: spikec.Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = build.save(tmp_path / "b")
    x = np.zeros((2, 30, 60), np.int8)
    x[1, 4:] = 1
    np.savez(tmp_path / "x.npz", x=x)
    told = build.ranges(x)
    u = row(told, "u")
    assert u.possible is not None and u.happened is not None and u.happened.sample == 1 and u.happened.neuron == (0,)
    assert cli.main(["show", str(place), "--ranges", "--input", str(tmp_path / "x.npz")]) == 0
    out = capsys.readouterr().out
    assert out == told.text() and "net.py:8 (net.l): warning[SPK218]: %l: neuron 0 (and 1 more): u can reach" in out
    assert "60 of the 60 elements of %in that reach it" in out and "in sample 1 at step" in out
    assert cli.main(["show", str(place), "--ranges", "--json"]) == 0
    assert '"beyond": "wraps"' in capsys.readouterr().out
    assert cli.main(["show", str(place), "--input", "x.npz"]) == 1


def test_prove_ranges(build: spikec.Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    g = build.stages[0].graph
    with pytest.raises(CompileError) as caught:
        spikec.compile(g, target="loihi2", prove_ranges=True)
    found = caught.value.diagnostics
    assert {d.code for d in found} == {"SPK218"} and len(found) == 2  # u wraps, v saturates
    assert str(found[0].loc) == "net.py:8 (net.l)" and "the worst case: 60 of the 60" in found[0].notes[0]
    with pytest.raises(CompileError) as caught:
        spikec.compile(g, target="loihi2", prove_ranges=True, calibrate=np.zeros((1, 5, 60), np.int8))
    assert caught.value.diagnostics[0].notes[1].startswith("on the data it stays within 0 to 0")
    (tmp_path / "n.sir").write_text(str(spikec.parse_graph(TAME)))
    for target in ("loihi2", "host"):
        bits = [] if target == "loihi2" else ["--bits", "8"]
        words = ["compile", str(tmp_path / "n.sir"), "-o", str(tmp_path / target), "--target", target, "--prove-ranges", *bits]
        assert cli.main(words) == 0, capsys.readouterr().err
    with pytest.raises(CompileError, match="prove_ranges is for integers"):
        spikec.compile(spikec.parse_graph(TAME), target="host", prove_ranges=True)
    with pytest.raises(CompileError) as caught:
        spikec.compile(spikec.parse_graph(TAME), target="host").ranges()
    assert caught.value.code == "SPK404"


TAME = f"""sir 1
{LEAKY.text()}
graph @g level=float {{
  %in = input : spike<3>
  %d = dense(%in) weight=[[1.0, -0.5, 0.25], [0.5, 0.5, -1.0]] : value<2>
  %l = neuron @leaky(%d) beta=0.5 theta=1.0 : spike<2>, v: value<2>
  output out = %l
}}
"""
