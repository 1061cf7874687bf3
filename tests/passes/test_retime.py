"""Retiming: the same spikes and final states, `lag` steps later."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from nets import dense, graph, native, sir, spikes

from spikec.backend import load_backend
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret
from spikec.ir.neuron import Program
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Input, Neuron, Node, Ref, Reshape, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_graph, parse_program
from spikec.ir.types import TensorType
from spikec.ledger import Ledger
from spikec.passes.retime import SYNAPSES, Retime
from spikec.target import Number, Target, load_target

LOIHI = load_target("loihi2")
LIF, RESET = native("LIF"), native("LIFReset")

CLOCKED = parse_program("""neuron @clocked(a) params(period, bias) state(v: i32 = 0) {
  v = select(rem(t, period) == 2, 0, v)
  v = clip(rtz(v * 7, 3) + a + bias, 20)
  s = v > 40
  v = select(s, 0, v)
  emit s
}""")
COUNTING = parse_program("""neuron @counting(a) state(n: i32 = 3) {
  n = rem(n + 1, 5)
  s = a + n > 2 and t > 1
  emit s
}""")


def retime(g: Graph, hop: int = 1, rigid: bool = True) -> tuple[Graph, Ledger]:
    ledger = Ledger()
    return verify(Retime(LOIHI, hop=hop, rigid=rigid).run(verify(g), ledger)), ledger


def agree(before: Graph, after: Graph, seed: int = 0, steps: int = 17, states: bool = True) -> int:
    """Asserts 0 mismatches of spikes, outputs and final states; returns how many spikes there were."""
    rng = np.random.default_rng(seed)
    x = {node.name: (rng.random((3, steps, *node.type.shape)) < 0.4).astype(np.int64) for node in before.inputs}
    record = default_record(before)
    one = interpret(before, x, record=record, steps=steps)
    two = interpret(after, x, record=record, steps=steps)
    for name in one.outputs:
        np.testing.assert_array_equal(one.outputs[name], two.outputs[name], err_msg=name)
    for name in record:
        np.testing.assert_array_equal(one.records[name], two.records[name], err_msg=name)
    for name, table in one.states.items():
        for state, value in table.items():
            # A bias that arrives as a synaptic sum is in the current, where the register adds it to the membrane.
            if state != "u" or f"{name}_bias" not in after:
                np.testing.assert_array_equal(value, two.states[name][state], err_msg=f"{name}.{state}")
    return sum(int(r.sum()) for r in one.records.values())


def lif(
    name: str, source: Any, bias: Any = 0, exponent: int = 0, du: int = 4095, dv: int = 300, vth: int = 10, **more: Any
) -> Neuron:
    params = {"du": du, "dv": dv, "vth": vth, "bias_mant": bias, "bias_exp": exponent}
    program = more.pop("program", LIF)
    if "interval" in program.params:
        params |= {"interval": more.pop("interval"), "offset": more.pop("offset")}
    ref = Ref(source) if isinstance(source, str) else source
    return Neuron(name=name, inputs=(ref,), program=program, params={k: np.asarray(v, np.int32) for k, v in params.items()}, **more)


def w(out: int, fan_in: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).integers(-10, 30, (out, fan_in)) * 2).astype(np.int16)


def test_text_before_and_after() -> None:
    programs = LIF.text()
    body = """
      %in = input : spike<2>
      %fc1 = dense(%in) weight=i16[[20, -4], [6, 8]] : value<2>
      %l1 = neuron @loihi_lif(%fc1) du=4095 dv=300 vth=10 bias_mant=0 bias_exp=0 : spike<2>
      %fc2 = dense(%l1) weight=i16[[20, -4]] : value<1>
      %skip = dense(%in) weight=i16[[2, 2]] : value<1>
      %rec = dense(%l2[t-1]) weight=i16[[6]] : value<1>
      %sum = add(%fc2, %skip, %rec) : value<1>
      %l2 = neuron @loihi_lif(%sum) du=4095 dv=300 vth=10 bias_mant=0 bias_exp=0 : spike<1>
      output %l2"""
    before = sir(body, programs, "fixed")
    after, ledger = retime(before)
    assert str(after) == (
        "sir 1\n\n"
        + programs
        + """

graph @g level=fixed {
  %in = input : spike<2>
  %fc1 = dense(%in[t-1]) lag=1 weight=i16[[20, -4], [6, 8]] : value<2>
  %l1 = neuron @loihi_lif(%fc1) lag=1 du=4095 dv=300 vth=10 bias_mant=0
      bias_exp=0 : spike<2>
  %fc2 = dense(%l1[t-1]) lag=2 weight=i16[[20, -4]] : value<1>
  %skip = dense(%in[t-2]) lag=2 weight=i16[[2, 2]] : value<1>
  %rec = dense(%l2[t-1]) lag=2 weight=i16[[6]] : value<1>
  %sum = add(%fc2, %skip, %rec) lag=2 : value<1>
  %l2 = neuron @loihi_lif(%sum) lag=2 du=4095 dv=300 vth=10 bias_mant=0
      bias_exp=0 : spike<1>
  output %l2
}
"""
    )
    assert agree(before, after) > 0
    assert [e.what for e in ledger] == [
        "starts 1 step(s) late: its initial state is silent and stays",
        "starts 2 step(s) late: its initial state is silent and stays",
        "output l2 appears 2 step(s) later",
    ]


def test_already_retimed_stays_as_it_is() -> None:
    g = graph(
        spikes((3,), dtype="i8"),
        dense("d", "in", w(4, 3)),
        lif("a", "d", bias=[9, 0, -3, 70]),
        dense("e", "a", w(2, 4)),
        lif("b", "e", bias=5),
        level="fixed",
    )
    once, _ = retime(g)
    twice, _ = retime(once)
    assert once == twice
    agree(g, twice)


def test_a_longer_hop_on_top_of_a_retimed_graph() -> None:
    g = graph(
        spikes((3,), dtype="i8"),
        dense("d", "in", w(4, 3)),
        lif("a", "d", bias=[9, 0, -3, 700]),
        dense("e", "a", w(2, 4)),
        lif("b", "e", bias=5),
        level="fixed",
    )
    once, _ = retime(g)
    more, _ = retime(once, hop=3)
    assert more.max_lag == 6
    agree(g, more)


# ------------------------------------------------------------------------------------------------- starting late

WAYS = {
    "initial": "its initial state is silent and stays",
    "preimage": "from an earlier state that leads to its own",
    "synapse": "its bias comes from an always-on source",
    "prologue": "by a prologue",
}


def way(ledger: Ledger, node: str) -> list[str]:
    return [key for key, text in WAYS.items() for e in ledger if e.node == node and text in e.what]


def late(neuron: Neuron) -> tuple[Graph, Graph, list[str], Ledger]:
    before = graph(spikes((3,), dtype="i8"), dense("d", "in", w(2, 3)), neuron, level="fixed")
    after, ledger = retime(before)
    agree(before, after)
    return before, after, way(ledger, neuron.name), ledger


def test_each_way_of_starting_late() -> None:
    assert late(lif("n", "d"))[2] == ["initial"]
    _, after, found, _ = late(lif("n", "d", bias=100))
    assert found == ["preimage"] and after["n"].init["v"].item(0) != 0
    # dv = 4096 forgets everything: no earlier state leads to v = 0 under a bias.
    _, after, found, _ = late(lif("n", "d", bias=256, dv=4096))
    assert found == ["synapse"]
    assert (after["n_on"].lag, after["n_on"].start) == (0, 0)
    assert after["n_bias"].weight.tolist() == [[4], [4]] and not after["n"].params["bias_mant"].any()
    # 100 is no multiple of 2 * 64: not on the grid of weights.
    _, after, found, _ = late(lif("n", "d", bias=100, dv=4096))
    assert found == ["prologue"] and after["n"].start == 1
    # A current with memory cannot take the bias as a sum.
    assert late(lif("n", "d", bias=256, dv=4096, du=4000))[2] == ["prologue"]


def test_the_bias_of_some_neurons_only_becomes_a_synapse() -> None:
    _, after, found, _ = late(lif("n", "d", bias=[100, 256], dv=[300, 4096]))
    assert found == ["synapse"]
    assert after["n_bias"].weight.tolist() == [[0], [4]]
    assert after["n"].params["bias_mant"].tolist() == [100, 0]


def test_names_that_exist_already_are_not_taken() -> None:
    before = graph(
        spikes((3,), dtype="i8"),
        dense("d", "in", w(2, 3)),
        lif("n", "d", bias=256, dv=4096),
        dense("n_bias", "n", w(2, 2)),
        lif("n_on", "n_bias"),
        out=["n_on"],
        level="fixed",
    )
    after, _ = retime(before)
    assert {"n_on_2", "n_bias_2", "n_input"} <= set(after.by_name)
    agree(before, after)


def test_a_current_that_is_shown_keeps_the_bias_out() -> None:
    shown = Program(
        "lif_u", LIF.inputs, LIF.params, LIF.states, LIF.body, (*LIF.emits, parse_program("neuron @p(u) { emit u }").emits[0])
    )
    assert late(lif("n", "d", bias=256, dv=4096, program=shown))[2] == ["prologue"]


def test_a_membrane_that_is_only_shown_does_not_force_a_prologue() -> None:
    shown = Program(
        "lif_v", LIF.inputs, LIF.params, LIF.states, LIF.body, (*LIF.emits, parse_program("neuron @p(v) { emit v }").emits[0])
    )
    before = graph(
        spikes((3,), dtype="i8"),
        dense("d", "in", w(2, 3)),
        lif("n", "d", bias=100, program=shown),
        out=["n", ("mem", Ref("n", "v"))],
        level="fixed",
    )
    after, ledger = retime(before)
    agree(before, after)
    assert way(ledger, "n") == ["preimage"]


def test_a_bias_synapse_must_not_make_the_current_wrap() -> None:
    # 600 inputs of weight 240 reach 144000 > 2^17: the current wraps sooner with the bias in it.
    heavy = np.full((1, 600), 240, np.int16)
    before = graph(spikes((600,), dtype="i8"), dense("d", "in", heavy), lif("n", "d", bias=256, dv=4096), level="fixed")
    after, ledger = retime(before)
    assert way(ledger, "n") == ["prologue"]
    agree(before, after)


@pytest.mark.parametrize("interval", [1, 2, 4, 8])
def test_the_phase_of_a_periodic_reset_moves(interval: int) -> None:
    for offset in range(interval):
        before = graph(
            spikes((3,), dtype="i8"),
            dense("d", "in", w(4, 3)),
            lif("a", "d", bias=6, program=RESET, interval=interval, offset=offset, vth=60),
            dense("e", "a", w(2, 4)),
            lif("b", "e", program=RESET, interval=8, offset=1, bias=3),
            out=["b"],
            level="fixed",
        )
        after, _ = retime(before)
        assert after["a"].params["offset"] == (offset + 1) % interval
        assert after["b"].params["offset"] == 3
        agree(before, after)


def test_shared_programs_with_a_clock_at_different_lags() -> None:
    def clocked(name: str, source: str) -> Neuron:
        return Neuron(name=name, inputs=(Ref(source),), program=CLOCKED, params={"period": np.asarray(4), "bias": np.asarray(2)})

    before = graph(
        spikes((3,), dtype="i8"),
        dense("d", "in", w(4, 3)),
        clocked("a", "d"),
        dense("e", "a", w(4, 4)),
        clocked("b", "e"),
        out=["b"],
        level="fixed",
    )
    after, _ = retime(before)
    assert [n.program.name for n in after.neurons] == ["clocked_late1", "clocked_late2"]
    assert agree(before, after) > 0


# --------------------------------------------------------------------------------------------------------- topologies


def chain(*names: str, **more: Any) -> list[Node]:
    nodes: list[Node] = [spikes((3,), dtype="i8")]
    last = "in"
    for name in names:
        fan_in = 3 if last == "in" else 4
        nodes += [dense(f"{name}_w", last, w(4, fan_in, len(nodes))), lif(name, f"{name}_w", **more)]
        last = name
    return nodes


TOPOLOGIES: dict[str, list[Node]] = {
    "fork before": [*chain("a"), dense("x", "a", w(4, 4)), lif("b", "x", bias=3), dense("y", "a", w(4, 4)), dense("z", "b", w(4, 4)), Add(name="s", inputs=(Ref("y"), Ref("z"))), lif("c", "s", bias=7)],
    "fork after": [*chain("a", "b"), dense("x", "in", w(4, 3)), dense("y", "a", w(4, 4)), dense("z", "b", w(4, 4)), Add(name="s", inputs=(Ref("x"), Ref("y"), Ref("z"))), lif("c", "s")],
    "recurrent": [*chain("a"), dense("x", "a", w(4, 4)), dense("r", Ref("b", delay=1), w(4, 4, 5)), Add(name="s", inputs=(Ref("x"), Ref("r"))), lif("b", "s", bias=12)],
    "recurrent over two": [spikes((3,), dtype="i8"), dense("x", "in", w(4, 3)), dense("r", Ref("b", delay=2), w(4, 4, 5)), Add(name="s", inputs=(Ref("x"), Ref("r"))), lif("a", "s"), dense("y", "a", w(4, 4)), lif("b", "y", bias=-5)],
    "synaptic delays": [*chain("a"), dense("x", Ref("a", delay=3), w(4, 4), delay=np.arange(16).reshape(4, 4) % 5), lif("b", "x", bias=2)],
    "output is an input": [spikes((3,), dtype="i8")],
    "nobody reads": [*chain("a", "b"), dense("lost", "in", w(2, 3)), spikes((2,), "unread", dtype="i8"), lif("a2", "a_w")],
    "shared synapse": [*chain("a"), dense("x", "a", w(4, 4)), lif("b", "x", bias=40), lif("c", "x", vth=100, bias=2)],
    "zero size": [spikes((0,), dtype="i8"), dense("x", "in", np.zeros((0, 0), np.int16)), lif("a", "x", bias=3), dense("y", "a", np.zeros((2, 0), np.int16)), lif("b", "y", bias=64)],
    "layer bias": [*chain("a"), dense("x", "a", w(4, 4), np.array([100, -3, 0, 7])), lif("b", "x", bias=3), dense("y", "b", w(4, 4), np.full(4, 50)), lif("c", "y", dv=4096)],
    "always on": [*chain("a"), Constant(name="on", value=np.ones(1, np.int32), kind="spike", start=2), dense("x", "a", w(4, 4)), dense("o", "on", w(4, 1)), Add(name="s", inputs=(Ref("x"), Ref("o"))), lif("b", "s")],
    "concat": [*chain("a", "b"), Concat(name="cat", inputs=(Ref("b"), Ref("b"))), dense("x", "cat", w(4, 8)), lif("c", "x")],
}  # fmt: skip


@pytest.mark.parametrize("case", TOPOLOGIES)
@pytest.mark.parametrize("hop", [0, 1])
def test_topologies(case: str, hop: int) -> None:
    nodes = TOPOLOGIES[case]
    before = graph(*nodes, out=[n.name for n in nodes if isinstance(n, (Neuron, Input))], level="fixed")
    for steps in (0, 1, 2, 23):
        agree(before, retime(before, hop=hop)[0], steps=steps)


def test_delayed_values_are_absorbed_by_lags() -> None:
    before = graph(
        spikes((3,), dtype="i8"),
        dense("x", "in", w(4, 3)),
        dense("y", "in", w(4, 3, 1)),
        Add(name="s", inputs=(Ref("x", delay=2), Ref("y"))),
        lif("a", "s"),
        level="fixed",
    )
    after, _ = retime(before)
    assert [ref.delay for ref in after["s"].inputs] == [0, 0] and (after["x"].lag, after["s"].lag) == (3, 1)
    agree(before, after)


def test_initial_values_of_delay_lines() -> None:
    init = np.array([[1, 0, 1, 1], [0, 1, 0, 0]], np.int8)
    before = graph(*chain("a"), dense("x", Ref("a", delay=2, init=init), w(4, 4)), lif("b", "x"), out=["b"], level="fixed")
    with pytest.raises(CompileError) as caught:
        retime(before)
    assert str(caught.value) == "error[SPK206]: %x: the initial values of %a[t-2] would have to be sent before %a starts"
    loose = graph(spikes((4,), dtype="i8"), dense("x", Ref("in", delay=2, init=init), w(4, 4)), lif("b", "x"), level="fixed")
    after, _ = retime(loose, rigid=False)
    agree(loose, after)
    with pytest.raises(CompileError) as caught:
        retime(loose)
    assert str(caught.value) == "error[SPK206]: %x: %in[t-2] has initial values, and the target's delay lines begin empty"


# ------------------------------------------------------------------------------------------------------------ refusals


def test_an_infeasible_cycle_is_printed() -> None:
    before = sir(
        """%in = input : spike<1>
      %x = dense(%in) weight=i16[[4]] : value<1>
      %r = dense(%b[t-1]) weight=i16[[4]] : value<1>
      %s = add(%x, %r) : value<1>
      %a = neuron @loihi_lif(%s) du=4095 dv=300 vth=10 bias_mant=0 bias_exp=0 : spike<1>
      %y = dense(%a) weight=i16[[4]] : value<1>
      %b = neuron @loihi_lif(%y) du=4095 dv=300 vth=10 bias_mant=0 bias_exp=0 : spike<1>
      output %b""",
        LIF.text(),
        "fixed",
    )
    with pytest.raises(CompileError) as caught:
        retime(before)
    first, *rest = str(caught.value).split("\n")
    assert rest == [
        "  note: every synapse takes 1 step(s), and wires without a synapse take none",
        "  fix: let the recurrent connection read an earlier step, or put a synapse into it",
    ]
    head, cycle = first.split(": %", 1)
    assert head == "error[SPK204]: the timing of loihi2 cannot be met"
    found = ("%" + cycle).split(" -> ")
    assert found[0] == found[-1] and set(found) == {"%r", "%s", "%a", "%y", "%b"}
    order = ["%r", "%s", "%a", "%y", "%b"]
    steps = [order.index(name) for name in found]
    assert all((b - a) % 5 == 1 for a, b in itertools.pairwise(steps)), "along the wires, in their direction"


def test_a_neuron_that_reads_itself_without_a_synapse() -> None:
    two = parse_program("neuron @two(a, b) { s = a + b > 3 emit s }")
    before = graph(
        spikes((1,), dtype="i8"),
        dense("x", "in", w(1, 1)),
        Neuron(name="n", inputs=(Ref("x"), Ref("n", delay=1)), program=two),
        level="fixed",
    )
    with pytest.raises(CompileError, match="%n -> %n"):
        retime(before)
    agree(before, retime(before, rigid=False)[0])


def relays(g: Graph) -> int:
    """Relay neurons of a retimed graph."""
    return sum(g.types[n.name][0][1].size for n in g.neurons if "_relay" in n.name)


def short(limit: int) -> Target:
    """Loihi 2 with shorter delay lines, so that small numbers are long delays."""
    number = Number(limit, "steps", "chosen", "a test")
    return replace(LOIHI, numbers={**LOIHI.numbers, "max_delay": number})


def held(g: Graph, limit: int, hop: int = 1) -> Graph:
    """Retimed for such a target; no synapse waits longer than it can."""
    after = verify(Retime(short(limit), hop=hop).run(verify(g), Ledger()))
    for node in after.nodes:
        if isinstance(node, SYNAPSES):
            own = int(node.delay[node.weight != 0].max(initial=0)) if node.delay is not None else 0
            assert hop <= node.inputs[0].delay and node.inputs[0].delay + own - hop <= limit, node.name
    return after


def test_delays_beyond_the_maximum_go_through_relays() -> None:
    def make(delay: int) -> Graph:
        return graph(
            spikes((2,), dtype="i8"),
            dense("x", Ref("in", delay=delay), w(2, 2)),
            lif("a", "x"),
            dense("y", Ref("a", delay=1), w(1, 2), delay=np.array([[0, delay - 1]])),
            lif("b", "y"),
            level="fixed",
        )

    for delay, count in ((63, 0), (64, 3), (127, 6), (200, 9)):
        after, ledger = retime(make(delay))
        assert relays(after) == count, "two elements of the input and one of a, a stage every 63 steps"
        assert agree(make(delay), after, steps=2 * delay + 20) > 0
        told = [e for e in ledger if "relay neuron(s)" in e.what]
        assert sum(int(e.measured["neurons"]) for e in told) == count and all(e.kind == "exact" for e in told)


def test_readers_share_a_chain_and_only_what_is_read_late_is_in_it() -> None:
    delay = np.zeros((3, 4), np.int32)
    delay[1, 2], delay[2, 2], delay[0, 3] = 5, 9, 3
    weight = w(3, 4)
    weight[2, 1], delay[2, 1] = 0, 50  # a synapse of weight 0 asks for nothing
    g = graph(
        spikes((4,), dtype="i8"),
        dense("p", Ref("in", delay=1), weight, delay=delay),
        lif("a", "p"),
        dense("q", Ref("in", delay=7), w(2, 4, 1)),
        lif("b", "q"),
        out=["a", "b"],
        level="fixed",
    )
    after = held(g, 2)  # a stage holds 3 steps: q asks for 2 stages of all four, p for 1 of element 3 and 3 of element 2
    assert relays(after) == 4 + 4 + 1
    assert agree(g, after, steps=60) > 0


def test_lags_are_moved_to_where_relays_are_fewer() -> None:
    """The long delay of a wide layer is waited for in front of it, where one neuron does."""
    g = graph(
        spikes((1,), dtype="i8"),
        dense("p", Ref("in", delay=1), w(20, 1)),
        lif("a", "p"),
        dense("q", Ref("a", delay=10), w(2, 20)),
        lif("b", "q"),
        level="fixed",
    )
    after = held(g, 4)
    assert relays(after) == 1 * 1, "p reads 6 steps back in place of 1, and q 5 in place of 10"
    assert (after["a"].lag, after["b"].lag) == (5, 0)
    agree(g, after, steps=60)


def test_numbers_cannot_be_relayed_but_lags_may_help() -> None:
    values = Input(name="in", type=TensorType("graded", (3,), "i8"), bounds=(-3, 3))

    def make(first: int, second: int) -> Graph:
        parts = (dense("p", Ref("in", delay=first), w(2, 3)), lif("a", "p"), dense("q", Ref("a", delay=second), w(2, 2)))
        return graph(values, *parts, lif("b", "q"), level="fixed")

    with pytest.raises(CompileError) as caught:
        retime(make(64, 1))
    assert str(caught.value) == (
        "error[SPK205]: %p: needs a synaptic delay of 63 steps; loihi2 has 62, and relay neurons pass on spikes but no numbers\n"
        "  fix: shorten the delay in the model, or send spikes"
    )
    after, _ = retime(make(1, 70))
    assert relays(after) == 0 and after["a"].lag == 7, "the first layer waits where the second could not"


@pytest.mark.parametrize("seed", range(10))
def test_layers_of_every_kind_with_long_delays(seed: int) -> None:
    """Dense, sparse and convolutional layers, biases, images, loops, several readers: the same spikes on three engines."""
    rng = np.random.default_rng(seed)
    limit = int(rng.integers(1, 5))

    def waits(shape: tuple[int, ...]) -> Any:
        return rng.integers(0, 12, shape).astype(np.int32) if rng.random() < 0.7 else None

    image = spikes((2, 5), dtype="i8")
    kernel = (rng.integers(-5, 12, (3, 2, 3)) * 2).astype(np.int16)
    rows = rng.random((4, 9)) < 0.5
    nodes: list[Node] = [
        image,
        Conv(
            name="c",
            inputs=(Ref("in", delay=int(rng.integers(0, 10))),),
            weight=kernel,
            delay=waits(kernel.shape),
            bias=np.array([2, 0, 4], np.int16) if seed % 2 else None,
        ),
        lif("a", "c", vth=8),
        Reshape(name="flat", inputs=(Ref("a"),), shape=(9,)),
        Sparse(
            name="s",
            inputs=(Ref("flat", delay=int(rng.integers(0, 8))),),
            weight=(rng.integers(-5, 12, int(rows.sum())) * 2).astype(np.int16),
            indices=np.nonzero(rows)[1].astype(np.int32),
            indptr=np.concatenate([[0], rows.sum(axis=1).cumsum()]).astype(np.int32),
            fan_in=9,
            delay=waits((int(rows.sum()),)),
        ),
        Dense(name="r", inputs=(Ref("b", delay=int(rng.integers(1, 15))),), weight=w(4, 4, seed), delay=waits((4, 4))),
        Add(name="sum", inputs=(Ref("s"), Ref("r"))),
        lif("b", "sum", vth=20),
        Dense(name="d", inputs=(Ref("a", delay=int(rng.integers(0, 9))),), weight=w(2, 3, seed)[:, :3].copy()[:, [0, 1, 2]]),
        lif("e", "d"),
    ]
    if seed % 3:  # a dense layer over the last axis of an image
        nodes[-2] = Dense(name="d", inputs=(Ref("a", delay=int(rng.integers(0, 9))),), weight=w(2, 3, seed), delay=waits((2, 3)))
    g = verify(graph(*nodes, out=["b", "e"], level="fixed"))
    after = held(g, limit)
    assert relays(after) > 0
    assert agree(g, after, seed, steps=50) > 0
    x = {"in": (np.random.default_rng(seed).random((2, 40, 2, 5)) < 0.4).astype(np.int64)}
    expected = interpret(after, x, record=default_record(after))
    for name in ("numpy", "c"):
        got = load_backend(name, LOIHI).run(after, x, record=default_record(after))
        for key, value in expected.records.items():
            np.testing.assert_array_equal(got.records[key], value, err_msg=f"{name} {key}")


@pytest.mark.parametrize("seed", range(25))
def test_relays_are_fewest_by_brute_force(seed: int) -> None:
    """Every assignment of lags within reach is tried on small graphs; none needs fewer relay neurons."""
    rng = np.random.default_rng(seed)
    limit = int(rng.integers(1, 4))
    nodes: list[Node] = [spikes((int(rng.integers(1, 4)),), dtype="i8")]
    sizes = {"in": nodes[0].type.shape[0]}
    for layer in range(3):
        sizes[f"n{layer}"] = size = int(rng.integers(1, 5))
        sources = [*rng.choice(list(sizes)[:-1], min(len(sizes) - 1, int(rng.integers(1, 3))), replace=False)]
        if rng.random() < 0.4:
            sources.append(f"n{layer}")
        operands = []
        for number, source in enumerate(sources):
            name, loop = f"w{layer}{number}", source == f"n{layer}"
            shape = (size, sizes[source])
            own = rng.integers(0, 6, shape).astype(np.int32) if rng.random() < 0.4 else None
            ref = Ref(str(source), delay=int(rng.integers(1 if loop else 0, 8)))
            nodes.append(Dense(name=name, inputs=(ref,), weight=(rng.integers(0, 3, shape) * 2).astype(np.int16), delay=own))
            operands.append(Ref(name))
        nodes.append(Add(name=f"s{layer}", inputs=tuple(operands)))
        nodes.append(lif(f"n{layer}", f"s{layer}"))
    g = verify(graph(*nodes, out=["n2"], level="fixed"))

    def needed(lag: dict[str, int]) -> int | None:
        """Relay neurons with these lags of the populations, element by element; None if a synapse would get too little time."""
        stages = {name: [0] * size for name, size in sizes.items()}
        for node in g.nodes:
            if isinstance(node, Dense):
                ref = node.inputs[0]
                even = node.delay is None or not node.delay[node.weight != 0].any()
                wait = ref.delay + lag[f"n{node.name[1]}"] - lag[ref.node]
                if wait < 1:
                    return None
                for (row, column), weight in np.ndenumerate(node.weight):
                    total = wait + (0 if even else int(node.delay[row, column]))
                    if (weight or even) and total > limit + 1:
                        steps = -(-total // (limit + 1)) - 1
                        stages[ref.node][column] = max(stages[ref.node][column], steps)
        return sum(sum(column) for column in stages.values())

    counts = []
    for values in itertools.product(range(13), repeat=3):
        count = needed({"in": 0, **{f"n{i}": value for i, value in enumerate(values)}})
        if count is not None:
            counts.append(count)
    after = held(g, limit)
    assert relays(after) == min(counts)
    agree(g, after, seed, steps=60)


@pytest.mark.parametrize("hop", [2, 3])
def test_relays_where_a_synapse_takes_several_steps(hop: int) -> None:
    g = graph(
        spikes((3,), dtype="i8"),
        dense("x", Ref("in", delay=11), w(2, 3), delay=np.array([[0, 1, 2], [9, 5, 3]])),
        lif("a", "x"),
        level="fixed",
    )
    assert agree(g, held(g, 3, hop), steps=50) > 0


def test_a_synapse_that_takes_longer_than_a_delay_line_holds_is_not_relayed() -> None:
    g = graph(spikes((2,), dtype="i8"), dense("x", Ref("in", delay=40), w(2, 2)), lif("a", "x"), level="fixed")
    with pytest.raises(CompileError) as caught:
        held(g, 1, hop=3)
    assert caught.value.code == "SPK205"


def test_a_biased_sum_that_is_read_later() -> None:
    before = graph(
        spikes((2,), dtype="i8"),
        dense("x", "in", w(2, 2), np.array([3, 5])),
        Add(name="s", inputs=(Ref("x", delay=1), Ref("x"))),
        lif("a", "s"),
        level="fixed",
    )
    with pytest.raises(CompileError) as caught:
        retime(before, rigid=False)
    assert str(caught.value) == (
        "error[SPK206]: %s: reads %x[t-1], whose bias would be there before its first step\n  fix: move the bias into the neuron"
    )


# -------------------------------------------------------------------------------------------------------------- sweep


def random_graph(rng: np.random.Generator) -> Graph:
    """Layers of populations with skips, delays, recurrences, biases, resets and clocks."""
    nodes: list[Node] = [spikes((3,), dtype="i8")]
    sizes = {"in": 3}
    layers = int(rng.integers(1, 5))
    for layer in range(layers):
        name, size = f"n{layer}", int(rng.integers(1, 5))
        sources = [(s, int(rng.choice([0, 0, 0, 1, 2, 5]))) for s in sizes if s == list(sizes)[-1] or rng.random() < 0.3]
        sources += [(f"n{back}", layer - back + 1 + int(rng.integers(0, 3))) for back in range(layer) if rng.random() < 0.1]
        if rng.random() < 0.4:
            sources.append((name, 1 + int(rng.integers(0, 3))))
        sizes[name] = size
        refs = []
        for index, (source, delay) in enumerate(sources):
            weight = (rng.integers(-20, 40, (size, sizes[source])) * 2).astype(np.int16)
            lines = rng.integers(0, 4, weight.shape) if rng.random() < 0.2 else None
            nodes.append(Dense(name=f"{name}_w{index}", inputs=(Ref(source, delay=delay),), weight=weight, delay=lines))
            refs.append(Ref(nodes[-1].name))
        if len(refs) > 1:
            nodes.append(Add(name=f"{name}_sum", inputs=tuple(refs)))
            refs = [Ref(nodes[-1].name)]
        per = () if rng.random() < 0.5 else (size,)
        kind = rng.integers(0, 8)
        if kind == 0:
            nodes.append(
                Neuron(
                    name=name,
                    inputs=(refs[0],),
                    program=CLOCKED,
                    params={"period": np.asarray(rng.integers(3, 6)), "bias": rng.integers(-9, 9, per)},
                )
            )
        elif kind == 1:
            nodes.append(Neuron(name=name, inputs=(refs[0],), program=COUNTING))
        else:
            bias = rng.choice([0, 128, 256, 1280, int(rng.integers(-300, 900))], per)
            dv = rng.choice([0, 4096, 4096, int(rng.integers(0, 4097))], per)
            du = rng.choice([4095, 4095, 4095, int(rng.integers(-1, 4096))])
            init = {"v": rng.integers(-500, 500, (size,)).astype(np.int32)} if rng.random() < 0.2 else {}
            program = RESET if kind == 2 else LIF
            more = {"interval": int(rng.choice([2, 4, 8])), "offset": int(rng.integers(0, 9))} if kind == 2 else {}
            nodes.append(
                lif(
                    name,
                    refs[0],
                    bias,
                    int(rng.choice([0, 0, 1])),
                    du,
                    dv,
                    int(rng.integers(1, 60)),
                    program=program,
                    init=init,
                    **more,
                )
            )
    return graph(*nodes, out=[n.name for n in nodes if isinstance(n, Neuron)], level="fixed")


def test_random_graphs_and_every_way_of_starting_late() -> None:
    ways: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    spikes_seen = 0
    for seed in range(160):
        rng = np.random.default_rng(seed)
        before = random_graph(rng)
        hop, rigid = 1 + seed % 3, seed % 2 == 0
        try:
            after, ledger = retime(before, hop, rigid)
        except CompileError as error:
            outcomes[error.code] += 1
            assert error.code == "SPK204", error
            assert infeasible(before, hop, rigid)
            continue
        outcomes["done"] += 1
        ways.update(key for key, text in WAYS.items() for e in ledger if text in e.what)
        spikes_seen += agree(before, after, seed)
        for node in after.nodes:
            if isinstance(node, SYNAPSES):
                assert node.inputs[0].delay >= hop
            elif rigid:
                assert all(ref.delay == 0 for ref in node.inputs)
    assert outcomes["done"] >= 60 and outcomes["SPK204"] >= 5, outcomes
    assert all(ways[key] >= 3 for key in WAYS), ways
    assert spikes_seen > 5000


def infeasible(g: Graph, hop: int, rigid: bool) -> bool:
    """Whether longest paths keep growing: Bellman-Ford by hand."""
    return longest(g, hop, rigid) is None


def longest(g: Graph, hop: int, rigid: bool) -> dict[str, int] | None:
    lag = {node.name: 0 for node in g.nodes}
    for _ in range(2 * len(lag) + 2):
        before = dict(lag)
        for node in g.nodes:
            for ref in node.inputs:
                synapse = isinstance(node, SYNAPSES)
                lag[node.name] = max(lag[node.name], lag[ref.node] + (hop if synapse else 0) - ref.delay)
                if rigid and not synapse:
                    lag[ref.node] = max(lag[ref.node], lag[node.name] + ref.delay)
        if any(lag[node.name] for node in g.inputs):
            return None
        if lag == before:
            return lag
    return None


@pytest.mark.parametrize("seed", range(12))
def test_lags_are_minimal_by_brute_force(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    nodes: list[Node] = [spikes((2,), dtype="i8")]
    names = ["in"]
    for layer in range(2):
        source = names[int(rng.integers(0, len(names)))]
        nodes.append(Dense(name=f"w{layer}", inputs=(Ref(source, delay=int(rng.integers(0, 2))),), weight=w(2, 2)))
        operands = [Ref(f"w{layer}")]
        if rng.random() < 0.5:
            nodes.append(Dense(name=f"r{layer}", inputs=(Ref(f"n{layer}", delay=int(rng.integers(1, 3))),), weight=w(2, 2)))
            operands.append(Ref(f"r{layer}"))
            nodes.append(Add(name=f"s{layer}", inputs=tuple(operands)))
            operands = [Ref(f"s{layer}")]
        nodes.append(lif(f"n{layer}", operands[0]))
        names.append(f"n{layer}")
    g = graph(*nodes, level="fixed")
    hop, rigid = 1 + seed % 2, seed % 3 > 0
    free = [n.name for n in g.nodes if not isinstance(n, Input)]

    def legal(lag: dict[str, int]) -> bool:
        for node in g.nodes:
            for ref in node.inputs:
                delay = ref.delay + lag[node.name] - lag[ref.node]
                if isinstance(node, SYNAPSES):
                    if delay < hop:
                        return False
                elif delay < 0 or (rigid and delay):
                    return False
        return True

    found = [
        lag
        for values in itertools.product(range(2 * hop + 1), repeat=len(free))
        if legal(lag := {"in": 0, **dict(zip(free, values, strict=True))})
    ]
    if not found:
        assert infeasible(g, hop, rigid)
        return
    least = {name: min(lag[name] for lag in found) for name in found[0]}
    after, _ = retime(g, hop, rigid)
    assert {n.name: n.lag for n in after.nodes} == least


def test_inputs_stay_at_step_zero_even_if_only_later_values_are_wanted() -> None:
    type_ = TensorType("spike", (1,), "i8")
    g = graph(
        Input(name="in", type=type_),
        Concat(name="c", inputs=(Ref("in", delay=2),)),
        dense("d", "c", w(1, 1)),
        lif("a", "d"),
        level="fixed",
    )
    with pytest.raises(CompileError, match="%c: what it reads arrives in different steps on loihi2, and has to wait there"):
        retime(g)
    agree(g, retime(g, rigid=False)[0])


def test_wires_of_different_depth_cannot_be_joined() -> None:
    """An output made of two layers: no loop of the model, so nothing is said of recurrent connections."""
    text = """sir 1
neuron @n(x) params(k) state(v: i32 = 0) {
  v = clip(v + x, 20)
  s = v > k
  v = select(s, 0, v)
  emit s
}
graph @g level=fixed {
  %in = input : spike<2>
  %fc1 = dense(%in) weight=i16[[2, 4], [6, 8]] : value<2>
  %l1 = neuron @n(%fc1) k=3 : spike<2>
  %fc2 = dense(%l1) weight=i16[[2, 4], [6, 8]] : value<2>
  %l2 = neuron @n(%fc2) k=3 : spike<2>
  %both = concat(%l1, %l2) : spike<4>
  output %both
}"""
    with pytest.raises(CompileError) as error:
        Retime(target=load_target("loihi2")).run(parse_graph(text), Ledger())
    assert str(error.value) == (
        "error[SPK204]: %both: what it reads arrives in different steps on loihi2, and has to wait there\n"
        "  note: every synapse takes 1 step(s), and a wire without a synapse cannot wait\n"
        "  fix: let each of them go through weights of its own, or be an output of its own"
    )
