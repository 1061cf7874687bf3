"""Quantize: the rules of the hardware card 8.3, exact where numbers allow it, and a ledger whose counts are true."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import LEAKY, F, dense, graph, leaky, native, random_spikes, sir, spikes

import spikec
from spikec.diagnostics import CompileError, Loc
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Constant, Conv, Dense, Neuron, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.legalise import Legalise
from spikec.passes.quantize import Quantize
from spikec.passes.retime import Retime
from spikec.passes.rounding import moments
from spikec.target import load_target

LOIHI = load_target("loihi2")
CUBA = parse_program("""neuron @cuba(x) params(alpha, beta, theta) state(i = 0, v = 0) {
  i = alpha * i + x
  v = beta * v + i
  s = v > theta
  v = select(s, 0, v)
  emit s, i
}""")


def fixed(g: Graph, **options: Any) -> tuple[Graph, Ledger]:
    ledger = Ledger()
    plain = verify(Legalise(LOIHI).run(verify(g), Ledger()))
    return verify(Quantize(LOIHI, **options).run(plain, ledger)), ledger


def mismatches(g: Graph, after: Graph, seed: int = 1, steps: int = 12) -> tuple[int, int]:
    x = {node.name: random_spikes((5, steps, *node.type.shape), seed) for node in g.inputs}
    one, two = interpret(g, x, steps=steps), interpret(after, x, steps=steps)
    spiking = [name for name, ref in g.outputs if g.type_of(ref).kind == "spike"]
    wrong = sum(int(np.count_nonzero(one.outputs[n] != two.outputs[n])) for n in spiking)
    return wrong, sum(int(one.outputs[n].sum()) for n in spiking)


def cuba(name: str, source: str, alpha: Any = 0.5, beta: Any = 0.75, theta: Any = 1.0) -> Neuron:
    params = {"alpha": np.asarray(alpha, F), "beta": np.asarray(beta, F), "theta": np.asarray(theta, F)}
    return Neuron(name=name, inputs=(Ref(source),), program=CUBA, params=params)


def test_text_before_and_after() -> None:
    body = """
      %in = input : spike<2>
      %fc1 = dense(%in) weight=[[1.0, -0.5], [0.25, 0.75]] bias=[0.125, 0.0] : value<2>
      %l1 = neuron @leaky(%fc1) beta=0.5 theta=1.0 : spike<2>, v: value<2>
      output %l1
      output mem = %l1.v"""
    after, ledger = fixed(sir(body, LEAKY.text()))
    # 254 / 1.0 bounds the scale; 128 is the power of two below it, and it rounds nothing.
    assert (
        str(after).split("graph @g")[1]
        == """ level=fixed {
  %in = input : spike<2>
  %fc1 = dense(%in) weight=i16[[128, -64], [32, 96]] : value<2>
  %l1 = neuron @loihi_lif_v(%fc1) du=4095 dv=2048 vth=128 bias_mant=[1024, 0]
      bias_exp=0 : spike<2>, v: value<2>
  output %l1
  output mem = %l1.v
}
"""
    )
    assert [(e.node, e.kind, e.what) for e in ledger] == [
        ("fc1", "exact", "the bias moves into the neurons' bias register"),
        ("fc1", "exact", "weights are multiples of 0.015625"),
        ("l1", "convention", "what leaks is rounded toward zero at every step, to multiples of 0.00012207"),
        ("l1", "convention", "the output mem is in units of 0.00012207"),
    ]
    assert mismatches(sir(body, LEAKY.text()), after)[0] == 0
    ledger.strict()


@st.composite
def dyadic(draw: Any) -> Graph:
    """Networks whose numbers are multiples of 1/8 and whose decays are of 1/4: nothing needs rounding."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    eighths = lambda shape: (rng.integers(-7, 12, shape) / 8).astype(F)
    layers = draw(st.integers(1, 3))
    nodes: list[Any] = [spikes((4,))]
    last, size = "in", 4
    for k in range(layers):
        out = draw(st.integers(1, 5))
        bias = eighths(out) if draw(st.booleans()) else None
        nodes.append(dense(f"d{k}", last, eighths((out, size)), bias))
        source = f"d{k}"
        if draw(st.booleans()):
            nodes.append(dense(f"r{k}", Ref(f"l{k}", delay=1), eighths((out, out))))
            nodes.append(Add(name=f"s{k}", inputs=(Ref(f"d{k}"), Ref(f"r{k}"))))
            source = f"s{k}"
        per = () if draw(st.booleans()) else (out,)
        # beta 0 or 1: with other leaks the state soon needs more bits than either side has.
        beta = rng.choice([0.0, 1.0], per)
        nodes.append(leaky(f"l{k}", source, beta=beta, theta=rng.integers(1, 12, per) / 8))
        last, size = f"l{k}", out
    return graph(*nodes, out=[n.name for n in nodes if isinstance(n, Neuron)])


@settings(max_examples=40, deadline=None)
@given(dyadic(), st.integers(0, 99))
def test_dyadic_networks_are_exact(g: Graph, seed: int) -> None:
    after, ledger = fixed(g)
    assert mismatches(g, after, seed)[0] == 0
    assert not [e for e in ledger if e.kind == "approximation"], [e.text() for e in ledger]
    moved = verify(Retime(LOIHI).run(after, Ledger()))
    assert mismatches(g, moved, seed)[0] == 0


def trained(seed: int = 0, bias: bool = True) -> Graph:
    rng = np.random.default_rng(seed)
    return graph(
        spikes((20,)),
        dense("fc1", "in", rng.normal(0.05, 0.3, (15, 20)).astype(F), rng.normal(0, 0.1, 15).astype(F) if bias else None),
        leaky("l1", "fc1", beta=0.9),
        dense("fc2", "l1", rng.normal(0.05, 0.3, (6, 15)).astype(F), rng.normal(0, 0.1, 6).astype(F) if bias else None),
        leaky("l2", "fc2", beta=rng.uniform(0.7, 0.99, 6), theta=rng.uniform(0.5, 1.5, 6)),
        out=["l1", "l2"],
    )


def lost(error: Array, seen: Array) -> float:
    return float(np.einsum("ij,jk,ik->", error, seen, error))


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("bits", [None, 1, 2, 3, 4, 5, 6, 8])
def test_every_rule_and_every_width(bits: int | None, calibrated: bool) -> None:
    g = trained()
    x = random_spikes((8, 10, 20), 5)
    after, ledger = fixed(g, bits=bits, **({"calibrate": {"in": x}} if calibrated else {}))
    step = 2 << (8 - (bits or 8))
    sent = interpret(g, {"in": x}, record=["in", "l1"]).records
    for k in (1, 2):
        weight, neuron = after[f"fc{k}"].weight.astype(np.int64), after[f"l{k}"]
        real, theta = g[f"fc{k}"].weight.astype(np.float64), g[f"l{k}"].params["theta"].astype(np.float64)
        assert weight.min() >= -256 and weight.max() <= 254 - step + 2 and not np.any(weight % step)
        vth = neuron.params["vth"]
        assert vth.min() >= 0 and vth.max() <= 131071
        # One scale for weights, threshold and bias: recovered from the ledger's unit, it explains every number.
        unit = next(
            float(e.what.split("multiples of ")[1].split(",")[0]) for e in ledger if e.node == f"fc{k}" and "weights" in e.what
        )
        scale = step / unit
        assert np.abs(vth - theta * scale).max() <= 0.5 + 1e-3 * scale
        clipped = np.clip(step * np.rint(real * scale / step), -256, 254 - step + 2)
        if any("together" in e.what for e in ledger if e.node == f"fc{k}"):
            wanted = real * scale  # errors make good for one another: what is lost together is less than the nearest lose
            seen = moments(g, g[f"fc{k}"], sent)
            assert lost(weight - wanted, seen) < lost(clipped - wanted, seen)
            assert np.all(weight[real == 0] == 0)
        else:
            assert np.count_nonzero(weight != clipped) <= 1  # the printed unit has six digits
        bias = neuron.params["bias_mant"].astype(np.int64) << neuron.params["bias_exp"]
        wanted = 64 * scale * g[f"fc{k}"].bias.astype(np.float64)
        exponent = int(neuron.params["bias_exp"])
        assert np.abs(bias - wanted).max() <= (1 << exponent) / 2 + 1e-3 * np.abs(wanted).max()
        assert np.abs(neuron.params["bias_mant"]).max() <= 4095 and 0 <= exponent <= 7
        beta = g[f"l{k}"].params["beta"].astype(np.float64)
        np.testing.assert_array_equal(neuron.params["dv"], np.rint(4096 * (1 - beta)))
        assert neuron.params["du"] == 4095 and after[f"fc{k}"].bias is None
    if bits in (None, 8):
        wrong, total = mismatches(g, after)
        assert wrong < 0.15 * total
        if not calibrated:
            assert np.abs(after["fc1"].weight).max() in (254, 256)


def test_weights_are_rounded_to_the_nearest_even_and_not_down() -> None:
    w = np.array([[254, 5.2, -3.2, 1.1, 0.9, -0.9]], F)
    after, _ = fixed(graph(spikes((6,)), dense("d", "in", w), leaky("l", "d", theta=3.3), out=["l"]))
    assert after["d"].weight.tolist() == [[254, 6, -4, 2, 0, 0]]
    assert after["l"].params["vth"] == 3


@pytest.mark.parametrize("bits", [None, 3])
def test_ledger_counts_are_true(bits: int | None) -> None:
    g = trained(3)
    after, ledger = fixed(g, bits=bits)
    step = 2 << (8 - (bits or 8))
    top = 254 - step + 2
    seen = []
    for k in (1, 2):
        layer, neuron = g[f"fc{k}"], g[f"l{k}"]
        real = layer.weight.astype(np.float64)
        theta, beta = (np.float64(neuron.params[n]) for n in ("theta", "beta"))
        scale = min(top / real.max(), -256 / real.min())
        params = after[f"l{k}"].params
        bias = params["bias_mant"].astype(np.int64) << params["bias_exp"]
        expected = {
            "weights": np.abs(after[f"fc{k}"].weight - real * scale) / scale,
            "decay": np.abs(params["dv"] / 4096 - (1 - beta)),
            "threshold": np.abs(params["vth"] / scale - theta),
            "bias": np.abs(bias - layer.bias.astype(np.float64) * scale * 64) / scale / 64,
        }
        entries = {e.what.split()[0]: e for e in ledger if e.node in (f"fc{k}", f"l{k}") and e.kind == "approximation"}
        for what, error in expected.items():
            entry = entries.pop(what)
            seen.append(what)
            # A sum that rounds once more than the pass's may tell an error of 1e-16 from none.
            assert entry.total == error.size and entry.changed == np.count_nonzero(error > 1e-12), what
            assert entry.largest == pytest.approx(error.max()) and entry.asked == ("" if bits is None else "--bits 3")
        assert not entries
    if bits is None:
        with pytest.raises(CompileError) as caught:
            ledger.strict()
        assert len(caught.value.diagnostics) == len(seen) and caught.value.code == "SPK207"
    else:
        ledger.strict()


def test_clipped_weights_are_counted() -> None:
    x = random_spikes((30, 12, 20), 5)
    for seed in range(12):
        g = trained(seed)
        after, ledger = fixed(g, bits=4, calibrate={"in": x})
        for k in (1, 2):
            (entry,) = [e for e in ledger if e.node == f"fc{k}" and "weights" in e.what]
            own = after[f"fc{k}"].weight.astype(np.int64)
            scale = 32 / float(entry.what.split("multiples of ")[1].split(",")[0])
            beyond = np.rint(g[f"fc{k}"].weight.astype(np.float64) * scale / 32) * 32
            clipped = np.count_nonzero((beyond > 224) | (beyond < -256))
            assert f"{clipped} of them clipped" in entry.what or (clipped == 0 and "clipped" not in entry.what)
            assert own.max() <= 224 and own.min() >= -256


def test_measured_changes_are_true() -> None:
    g, x = trained(3), {"in": random_spikes((8, 10, 20), 5)}
    after, ledger = fixed(g, calibrate=x)
    for name in ("l1", "l2"):
        (entry,) = [e for e in ledger if e.node == name and e.what == "measured on the calibration data"]
        one, two = (interpret(item, x, record=[name]).records[name] for item in (g, after))
        assert dict(entry.measured) == {
            "spikes before": one.sum(),
            "spikes after": two.sum(),
            "spikes changed": np.count_nonzero(one != two),
        }


def test_accuracy_is_measured_where_there_are_labels() -> None:
    x = random_spikes((8, 10, 20), 5)
    labels = np.arange(8) % 6
    _, ledger = fixed(trained(), calibrate={"in": x}, labels=labels)
    (entry,) = [e for e in ledger if "accuracy" in e.what]
    assert entry.node == "l1" and set(entry.measured) == {"accuracy before", "accuracy after"}
    g = graph(spikes((20,)), dense("d", "in", np.ones((2, 20), F)), leaky("l", "d"), out=[("v", Ref("l", "v"))])
    _, ledger = fixed(g, calibrate={"in": x}, labels=labels)
    assert [e.node for e in ledger if "accuracy" in e.what] == ["l"], "membranes answer by their largest mean"


def test_calibration_does_not_do_worse() -> None:
    x = random_spikes((40, 12, 20), 5)
    for seed in range(3):
        g = trained(seed)
        plain, searched = fixed(g)[0], fixed(g, calibrate={"in": x})[0]
        count = [
            sum(np.count_nonzero(interpret(g, {"in": x}).outputs[k] != interpret(a, {"in": x}).outputs[k]) for k in ("l1",))
            for a in (plain, searched)
        ]
        assert count[1] <= count[0]


# -------------------------------------------------------------------------------------------------------------- biases


def test_a_bias_enters_the_register_only_where_the_current_forgets() -> None:
    g = graph(spikes((2,)), dense("d", "in", np.array([[1.0, 0.5]], F), [0.25]), cuba("l", "d", alpha=0.5), out=["l"])
    after, ledger = fixed(g)
    assert [node.name for node in after.nodes] == ["in", "d_on", "d_bias", "d_sum", "d", "l"]
    assert after["d_bias"].weight.tolist() == [32] and after["l"].params["bias_mant"] == 0
    assert ("d", "the bias becomes a synapse from an always-on source") in [(e.node, e.what) for e in ledger]
    assert mismatches(g, after)[0] == 0
    g = graph(spikes((2,)), dense("d", "in", np.array([[1.0, 0.5]], F), [0.25]), cuba("l", "d", alpha=0.0), out=["l"])
    after, _ = fixed(g)
    assert [node.name for node in after.nodes] == ["in", "d", "l"]
    assert mismatches(g, after)[0] == 0
    # One neuron with memory is enough.
    g = graph(
        spikes((2,)),
        dense("d", "in", np.array([[1.0, 0.5], [0.5, 1.0]], F), [0.25, 0.5]),
        cuba("l", "d", alpha=[0.0, 0.5]),
        out=["l"],
    )
    assert "d_on" in fixed(g)[0]


def test_a_current_that_is_shown_includes_the_bias() -> None:
    g = graph(
        spikes((2,)),
        dense("d", "in", np.array([[1.0, 0.5]], F), [0.25]),
        cuba("l", "d", alpha=0.0),
        out=["l", ("i", Ref("l", "i"))],
    )
    after, _ = fixed(g)
    x = {"in": random_spikes((3, 6, 2))}
    np.testing.assert_array_equal(interpret(g, x).outputs["i"] * 128 * 64, interpret(after, x).outputs["i"])


def test_a_sum_that_is_an_output_keeps_its_bias() -> None:
    w = np.array([[1.0, 0.5]], F)
    g = graph(spikes((2,)), dense("d", "in", w, [0.25]), out=["d"])
    after, ledger = fixed(g)
    x = {"in": random_spikes((3, 6, 2))}
    np.testing.assert_array_equal(interpret(g, x).outputs["d"] * 128, interpret(after, x).outputs["d"])
    assert ("convention", "the output d is in units of 0.0078125") in [(e.kind, e.what) for e in ledger]
    # Also where a neuron reads the same sum.
    g = graph(spikes((2,)), dense("d", "in", w, [0.25]), leaky("l", "d"), out=["l", "d"])
    after, _ = fixed(g)
    np.testing.assert_array_equal(interpret(g, x).outputs["d"] * 128, interpret(after, x).outputs["d"])
    assert mismatches(g, after)[0] == 0


def test_delayed_currents_keep_their_bias_in_the_sum() -> None:
    g = graph(
        spikes((2,)), dense("d", "in", np.array([[1.0, 0.5]], F), [0.75]), dense("e", "in", np.array([[0.5, 0.5]], F)),
        Add(name="s", inputs=(Ref("d", delay=2), Ref("e"))), leaky("l", "s"), out=["l"],
    )  # fmt: skip
    after, _ = fixed(g)
    assert "d_on" in after
    assert mismatches(g, after)[0] == 0


def test_a_layer_that_feeds_two_populations_has_one_scale() -> None:
    g = graph(
        spikes((2,)), dense("d", "in", np.array([[1.0, 0.5]], F), [0.25]), leaky("a", "d", theta=1.0), leaky("b", "d", beta=0.0, theta=0.75), out=["a", "b"]
    )  # fmt: skip
    after, _ = fixed(g)
    assert (int(after["a"].params["vth"]), int(after["b"].params["vth"])) == (128, 96)
    assert mismatches(g, after)[0] == 0
    # A memory in one of them keeps the bias out of both registers.
    g = graph(spikes((2,)), dense("d", "in", np.array([[1.0, 0.5]], F), [0.25]), leaky("a", "d"), cuba("b", "d"), out=["a", "b"])
    assert "d_on" in fixed(g)[0]
    assert mismatches(g, fixed(g)[0])[0] == 0


def test_names_that_exist_already() -> None:
    g = graph(
        spikes((2,)), dense("d", "in", np.array([[1.0, 0.5]], F), [0.25]), cuba("d_on", "d"), dense("d_bias", "d_on", np.ones((1, 1), F)), leaky("d_sum", "d_bias"), out=["d_sum"]
    )  # fmt: skip
    after, _ = fixed(g)
    assert {"d_on_2", "d_bias_2", "d_sum_2"} <= set(after.by_name)
    assert mismatches(g, after)[0] == 0


# -------------------------------------------------------------------------------------------------------------- limits


def test_all_limits_are_named_at_once() -> None:
    g = graph(
        spikes((2,)),
        dense("d", "in", np.ones((2, 2), F)),
        leaky("a", "d", beta=1.5, theta=-1.0, loc=Loc("m.py", 3, "net.a")),
        dense("e", "a", np.ones((2, 2), F)),
        leaky("b", "e", beta=[-0.25, 0.5]),
        out=["b"],
    )
    with pytest.raises(CompileError) as caught:
        fixed(g)
    assert str(caught.value) == (
        "m.py:3 (net.a): error[SPK203]: %a: the decay 1.5 is outside 0 to 1, the target's range\n  fix: clamp it in the model\n"
        "m.py:3 (net.a): error[SPK203]: %a: the threshold -1 is negative; the target's is 0 or more\n  fix: shift membrane and threshold by a bias\n"
        "error[SPK203]: %b: the decay -0.25 is outside 0 to 1, the target's range\n  fix: clamp it in the model"
    )


def test_sums_beyond_the_accumulator_are_refused() -> None:
    w = np.full((1, 2000), 1.01, F)  # 254 each: 508000, where powers of two would fit
    g = graph(
        spikes((2000,)),
        dense("d", "in", w),
        leaky("a", "d", theta=5.0),
        dense("e", "in", w),
        leaky("b", "e", theta=5.0),
        out=["a", "b"],
    )
    with pytest.raises(CompileError) as caught:
        fixed(g)
    assert [d.message for d in caught.value.diagnostics] == [
        f"%{name}: its inputs can sum to 508000; loihi2 holds sums up to 262143" for name in "ab"
    ]


def test_a_current_that_could_wrap_is_told() -> None:
    weight = np.ones((2, 60), F)
    weight[0, ::2] = -0.5
    g = graph(spikes((60,)), dense("d", "in", weight), cuba("l", "d", alpha=0.99), out=["l"])
    _, ledger = fixed(g)
    entry = next(e for e in ledger if "wraps" in e.what)
    # 60 weights of 128 (the decay is not dyadic, the weights are), shifted by 6, times the leak's gain 4096 / 41.
    reach = f"{60 * 128 * 64 * 4096 / 41:.4g}"
    worst = f"in the worst case the current of neuron 1 reaches {reach} and wraps at 8388608 (2 of 2 neurons)"
    assert (entry.kind, entry.what) == ("approximation", worst)
    _, ledger = fixed(graph(spikes((6,)), dense("d", "in", np.ones((1, 6), F)), cuba("l", "d", alpha=0.5), out=["l"]))
    assert not [e for e in ledger if "wraps" in e.what]


def test_calibration_data_clear_a_current_or_show_where_it_wraps() -> None:
    """--strict refuses what wraps on the data, or what there are no data for; else the worst case is a note with the margin."""
    g = graph(spikes((60,)), dense("d", "in", np.ones((2, 60), F)), cuba("l", "d", alpha=0.99, theta=2.0**10), out=["l"])
    x = (np.random.default_rng(1).random((4, 50, 60)) < 0.02).astype(F)
    made, ledger = fixed(g, calibrate={"in": x})
    (entry,) = [e for e in ledger if "wraps" in e.what]
    assert entry.kind == "convention" and "on the calibration data it reaches" in entry.what
    told = int(re.search(r"it reaches (\d+),", entry.what).group(1))
    u = 0
    largest = 0
    shown = made["l"].params
    for t in range(50):  # the largest current on the data, by hand
        total = x[:, t].astype(np.int64) @ made["d"].weight.astype(np.int64).T << 6
        u = np.sign(u) * (np.abs(u * (4095 - int(shown["du"]))) >> 12) + total
        largest = max(largest, int(np.abs(u).max()))
    assert told == largest
    x[2, 5:, :] = 1
    _, ledger = fixed(g, calibrate={"in": x})
    (entry,) = [e for e in ledger if "wraps" in e.what]
    assert entry.kind == "approximation" and re.search(
        r"neuron [01] reaches \d+ in sample 2 at step \d+ and wraps at 8388608", entry.what
    )


def test_a_decay_that_rounds_to_none_is_told() -> None:
    _, ledger = fixed(graph(spikes((2,)), dense("d", "in", np.ones((2, 2), F)), leaky("l", "d", beta=[0.99995, 0.5]), out=["l"]))
    assert [e.what for e in ledger if e.what.startswith("decay")] == ["decay to multiples of 1/4096, 1 of them to no decay at all"]


@pytest.mark.parametrize("bits", [0, 7, 9])
def test_widths_that_the_target_lacks(bits: int) -> None:
    with pytest.raises(CompileError) as caught:
        fixed(trained(), bits=bits)
    assert str(caught.value) == f"error[SPK001]: {bits} bits: loihi2 has weights of 1, 2, 3, 4, 5, 6, 8 bits"


def test_large_thresholds_and_biases_bound_the_scale() -> None:
    g = graph(spikes((1,)), dense("d", "in", np.array([[1e-3]], F)), leaky("l", "d", theta=1000.0), out=["l"])
    after, _ = fixed(g)
    assert after["l"].params["vth"] <= 131071
    g = graph(spikes((1,)), dense("d", "in", np.array([[1e-3]], F), [300.3]), leaky("l", "d", theta=1.0), out=["l"])
    after, _ = fixed(g)
    assert after["l"].params["bias_mant"] <= 4095 and after["l"].params["bias_exp"] <= 7


def test_a_population_that_never_fires() -> None:
    g = graph(
        spikes((2,)),
        dense("d", "in", np.array([[1.0, 0.5]], F)),
        leaky("l", "d", beta=0.5, theta=np.inf),
        out=["l", ("v", Ref("l", "v"))],
    )
    after, ledger = fixed(g)
    assert after["l"].params["vth"] == 131071 and after["d"].weight.tolist() == [[128, 64]]
    assert "an infinite threshold becomes the largest" in [e.what for e in ledger]


def test_initial_states() -> None:
    g = graph(spikes((2,)), dense("d", "in", np.array([[1.0, 0.5]], F)), leaky("l", "d", beta=1.0, init={"v": F(0.1)}), out=["l"])
    after, ledger = fixed(g)
    assert after["l"].init["v"] == round(0.1 * 128 * 64)
    assert [e.what for e in ledger if e.kind == "approximation"] == ["initial v to multiples of 0.00012207"]
    with pytest.raises(CompileError) as caught:
        fixed(graph(spikes((2,)), dense("d", "in", np.array([[1.0, 0.5]], F)), leaky("l", "d", init={"v": F(5000)}), out=["l"]))
    assert str(caught.value) == "error[SPK203]: %l: the initial v 5000 exceeds the target's 1024"


def test_double_precision_and_other_topologies() -> None:
    w = np.array([[1.0, 0.5], [0.5, -0.25]])
    cases = [
        graph(
            spikes((2,), dtype="f64"),
            dense("d", "in", w, np.array([0.5, 0.25]), dtype="f64"),
            leaky("l", "d", dtype="f64"),
            out=["l"],
        ),
        graph(spikes((2,)), out=["in"]),
        graph(spikes((2,)), spikes((3,), "unread"), dense("d", "in", w.astype(F)), leaky("l", "d"), out=["l", "in"]),
        graph(spikes((0,)), dense("d", "in", np.zeros((2, 0), F), [0.5, 1.5]), leaky("l", "d"), out=["l"]),
        graph(spikes((2,)), dense("d", "in", np.zeros((0, 2), F)), leaky("l", "d"), out=["l"]),
        graph(spikes((2,)), dense("d", "in", np.zeros((2, 2), F)), leaky("l", "d"), out=["l"]),
        graph(spikes((3, 2)), dense("d", "in", w.astype(F), [0.5, 0.25]), leaky("l", "d", beta=0.5), out=["l"]),
    ]
    for g in cases:
        after, _ = fixed(g, calibrate={n.name: random_spikes((4, 5, *n.type.shape)) for n in g.inputs})
        assert mismatches(g, after, steps=5)[0] == 0
        assert mismatches(g, after, steps=0) == (0, 0)


def test_a_native_reset_goes_all_the_way() -> None:
    program = parse_program("""neuron @periodic(x) params(theta) state(v = 0) {
      r = rem(t, 4) == 1
      v = select(r, 0, v)
      v = v + x
      s = v > theta
      v = select(s, 0, v)
      emit s
    }""")
    g = graph(
        spikes((3,)),
        dense("d", "in", np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], F)),
        Neuron(name="l", inputs=(Ref("d"),), program=program, params={"theta": F(1)}),
        out=["l"],
    )
    after, _ = fixed(g)
    assert after["l"].program.body == native("LIFReset").body
    assert (int(after["l"].params["interval"]), int(after["l"].params["offset"])) == (4, 2)
    wrong, total = mismatches(g, after, steps=20)
    assert wrong == 0 and total > 0
    never = parse_program(program.text().replace("== 1", "== 4"))
    with pytest.raises(CompileError) as caught:
        fixed(
            graph(
                spikes((3,)),
                dense("d", "in", np.ones((1, 3), F)),
                Neuron(name="l", inputs=(Ref("d"),), program=never, params={"theta": F(1)}),
                out=["l"],
            )
        )
    assert str(caught.value) == "error[SPK203]: %l: the reset interval must be a whole number of steps, and its offset less than it"


def test_a_population_without_inputs() -> None:
    clock = parse_program("neuron @clock() params(theta) state(v = 0) {\nv = v + 1\ns = v > theta\nv = select(s, 0, v)\nemit s\n}")
    c = Neuron(name="c", inputs=(), program=clock, params={"theta": np.array([3, 5], F)})
    g = graph(
        spikes((3,)), c, dense("d", "in", np.ones((1, 3), F)), leaky("l", "d"), out=["l", "c"]
    )  # fmt: skip
    after, _ = fixed(g)
    assert mismatches(g, after)[0] == 0


def test_constants_beside_a_layer_move_into_the_bias_register() -> None:
    """One number a neuron, exactly; where the current remembers, or nothing else feeds the sum, the synapse stays."""
    value = np.array([[0.25, -0.5, 3.0], [0.125, 0.0, 0.5]], F)
    weight = np.array([[[[0.5]]], [[[1.0]]]], F)

    def net(program: Any, *params: Any) -> Graph:
        return graph(
            spikes((1, 1, 3)),
            Conv(name="c", inputs=(Ref("in"),), weight=weight),
            Reshape(name="r", inputs=(Ref("c"),), shape=(2, 3)),
            Constant(name="k", value=value),
            Add(name="sum", inputs=(Ref("r"), Ref("k"))),
            program("l", "sum", *params),
            out=["l"],
        )

    after, ledger = fixed(net(leaky, 0.5, 1.0))
    assert not [node for node in after.nodes if isinstance(node, (Constant, Add, Dense))]
    assert any(entry.what == "the constant moves into the neurons' bias register" for entry in ledger)
    scale = 2**7  # the largest power of two at which the weight 1 is not clipped; a bias is in 64ths of it
    (neuron,) = after.neurons
    bias = neuron.params["bias_mant"].astype(np.int64) << neuron.params["bias_exp"]
    np.testing.assert_array_equal(bias, (64 * scale * value).astype(np.int64))
    wrong, fired = mismatches(net(leaky, 0.5, 1.0), after)
    assert wrong == 0 and fired > 50
    kept, _ = fixed(net(cuba, 0.5, 0.5, 1.0))
    assert [node.name for node in kept.nodes if isinstance(node, Constant)]
    alone = graph(
        spikes((2, 3)), Constant(name="k", value=value), Add(name="sum", inputs=(Ref("k"), Ref("k"))), leaky("l", "sum"), out=["l"]
    )
    kept, _ = fixed(alone)
    assert [node.name for node in kept.nodes if isinstance(node, Constant)] and mismatches(alone, kept)[0] == 0


MULTI = "neuron @multi(x) params(theta) state(v = 0) { u = v + x s = max(floor(u / theta), 0) v = u - s * theta emit s: graded }"


@pytest.mark.usefixtures("lava_env")
def test_counts_of_spikes_are_messages() -> None:
    rng = np.random.default_rng(2)
    nodes = [spikes((5,))]
    for name, source, shape in (("a", "in", (8, 5)), ("b", "a", (4, 8))):
        nodes.append(dense(f"{name}_fc", source, (rng.integers(-6, 12, shape) / 16).astype(F)))
        neurons = Neuron(name=name, inputs=(Ref(f"{name}_fc"),), program=parse_program(MULTI), params={"theta": np.ones((), F)})
        nodes.append(neurons)
    whole = graph(*nodes, out=["a", "b"])
    x = random_spikes((3, 20, 5), 0)
    build = spikec.compile(whole, target="loihi2", calibrate=x)
    wanted = interpret(whole, {"in": x}).outputs
    for backend in ("reference", "numpy", "c", "lava"):
        found = build.run(x, backend=backend).outputs
        for name in ("a", "b"):
            assert wanted[name].max() > 1
            np.testing.assert_array_equal(found[name], wanted[name], f"{name} on {backend}")


def test_a_message_that_is_no_whole_number_is_refused() -> None:
    """A membrane that is sent when it crosses the threshold: its integers are in units of their own, and weights take whole numbers."""
    sends = "neuron @sends(x) params(theta) state(v = 0) { u = v + x s = u > theta m = select(s, u, 0) v = select(s, 0, u) emit m: graded }"
    first = Neuron(name="a", inputs=(Ref("fc"),), program=parse_program(sends), params={"theta": np.ones((), F)})
    weight = np.random.default_rng(0).normal(0.3, 0.4, (6, 5)).astype(F)
    behind = (dense("d", "a", weight[:, :3].T.copy()), leaky("l", "d"))
    whole = graph(spikes((5,)), dense("fc", "in", weight), first, *behind)
    with pytest.raises(CompileError, match="SPK202") as caught:
        spikec.compile(whole, target="loihi2", calibrate=random_spikes((3, 20, 5), 0))
    assert "sends m, which is no whole number, to %d" in str(caught.value)
