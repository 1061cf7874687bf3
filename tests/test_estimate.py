"""Estimates: operations as counted by hand, energy and time between published bounds, and nothing where nothing is published."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapped import layers
from nets import dense, graph, leaky, random_spikes, spikes

import spikec
from spikec import cli
from spikec.counts import Counts
from spikec.diagnostics import CompileError
from spikec.estimate import Setting, estimate, multiply_adds, quantity
from spikec.ir.interpret import interpret
from spikec.ir.ops import Conv, Ref, Sparse
from spikec.ledger import Ledger
from spikec.passes.place import Place
from spikec.target import Number, load_target, parse_target
from support.builds import fixed_build, tiny
from support.builds import spikes as data

LOIHI = load_target("loihi2")


def of(counts: dict[str, Counts], samples: int = 1, steps: int = 10, target=LOIHI, hops: float | None = None, net=None):
    net = tiny() if net is None else net
    return estimate(net, counts, samples, steps, Setting(target, lambda: net, hops))


def test_energy_of_loihi_1_by_hand() -> None:
    found = of({"lif1": Counts(spikes=30, synaptic_operations=400, updates=200, messages=60)}, samples=2)
    assert (found.spikes, found.synaptic_operations, found.updates, found.messages) == (15, 200, 100, 30)
    assert found.energy is not None and found.energy_label == "Loihi-1-equivalent"
    # Davies et al. 2018: 23.6 pJ, 81 pJ, 1.7 pJ; the least by Davies, all neurons inactive; the most by Boyle et al. + 11.7 %.
    assert found.energy.value == pytest.approx(1e-12 * (200 * 23.6 + 100 * 81 + 30 * 1.7))
    assert found.energy.low == pytest.approx(1e-12 * (200 * 23.6 + 100 * 52 + 30 * 1.7))
    assert found.energy.high == pytest.approx(1.117e-12 * (200 * 35.5 + 100 * 72.8 + 15 * 69.3 + 30 * 111))
    assert found.ops_per_joule is not None and found.ops_per_joule.value == pytest.approx(200 / found.energy.value)
    assert found.power is not None and found.power.value == pytest.approx(found.energy.value / 0.01)  # ten steps of 1 ms
    assert any("Davies" in line for line in found.sources) and any("11.7 %" in line for line in found.sources)


def test_no_joule_without_its_label() -> None:
    for line in of({"lif1": Counts(3, 40, 20, 6)}).text().splitlines():
        if line.startswith("  energy") or line.startswith("  power") or "joule" in line:
            assert "Loihi-1-equivalent" in line or "processor in 45 nm" in line, line
        if line.startswith("  time"):
            assert "estimated for Loihi 2" in line


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 1000))
def test_bounds_enclose(spikes: int, operations: int, updates: int, messages: int, hops: int) -> None:
    found = of({"lif1": Counts(spikes, operations, updates, messages)}, hops=float(hops))
    assert found.energy is not None and found.energy.value is not None
    assert found.energy.low <= found.energy.value <= found.energy.high
    assert found.hops == 10 * hops
    more = of({"lif1": Counts(spikes + 1, operations + 1, updates + 1, messages + 1)}, hops=float(hops))
    assert more.energy is not None and more.energy.low > found.energy.low


def test_hops_cost_and_their_absence_is_said() -> None:
    counts = {"lif1": Counts(3, 40, 20, 6)}
    without, with_hops = of(counts), of(counts, hops=2.0)
    assert without.hops is None and any("no cores" in note for note in without.notes)
    assert with_hops.hops == 20 and not any("no cores" in note for note in with_hops.notes)
    assert any("that placement found" in note for note in with_hops.notes)
    assert with_hops.energy.value - without.energy.value == pytest.approx(20 * 3.5e-12)


def test_hops_are_those_of_the_run() -> None:
    """Two silent layers or busy ones: the run's own spikes on the placed cores, not what calibration saw."""
    target = replace(LOIHI, numbers={**LOIHI.numbers, "core_neurons": replace(LOIHI.numbers["core_neurons"], value=7)})
    x = random_spikes((3, 11, 12), 4, 0.4).astype(np.int8)
    ledger = Ledger()
    net = Place(target, calibrate={"in": x[:1]}).run(layers(12, 20, 16, 5), ledger)
    seen = interpret(net, {"in": x}, record=[node.name for node in net.neurons])
    between = hops = 0
    cores = {node.name: np.ravel(node.core) for node in net.neurons}
    for before, after in pairwise(("l0", "l1", "l2")):  # dense layers: every spike goes to every core of the next layer
        heard = np.flatnonzero(np.count_nonzero(net[f"fc{after[1]}"].weight, axis=0))
        for k in heard.tolist():
            fired = int((seen.records[before][..., k] != 0).sum())
            weight = net[f"fc{after[1]}"].weight[:, k] != 0
            for core in {*cores[after][weight].tolist()} - {int(cores[before][k])}:
                a, b = core // 4, int(cores[before][k]) // 4
                between += fired
                hops += fired * (abs(a // 8 - b // 8) + abs(a % 8 - b % 8))
    assert between and hops
    sent = {name: (array != 0).sum(axis=(0, 1)).ravel() for name, array in seen.records.items()}
    found = estimate(net, {}, 3, 11, Setting(target, lambda: net, 99.0), sent)
    assert found.between == pytest.approx(between / 3) and found.hops == pytest.approx(hops / 3)
    assert any("this run's messages" in note for note in found.notes)
    silent = estimate(net, {}, 3, 11, Setting(target, lambda: net, 99.0), {name: 0 * array for name, array in sent.items()})
    assert (silent.between, silent.hops) == (0, 0)
    assert estimate(net, {}, 3, 11, Setting(target, lambda: net, 99.0)).hops == 99 * 11


def test_a_target_without_costs_has_none_and_says_so() -> None:
    found = of({"lif1": Counts(3, 40, 20, 6)}, target=load_target("host"))
    assert (found.energy, found.time, found.power, found.ops_per_joule, found.baseline) == (None,) * 5
    assert found.synaptic_operations == 40
    assert "note: the target 'host' states no energy per operation, so energy is not estimated" in found.text()


def test_time_is_bounded_by_the_most_loaded_core() -> None:
    counts = {"lif1": Counts(0, 4000, 2000, 0), "lif2": Counts(0, 0, 1000, 0)}
    target = replace(LOIHI, numbers={**LOIHI.numbers, "chip_cores_usable": Number(120, "cores", "published", "x")})
    found = of(counts, target=target).time
    assert found is not None and found.value is None
    assert found.low == pytest.approx(10e-9 * max(300 / 120 * 2.7, 400 / 120 * 0.7))
    assert found.high == pytest.approx(10e-9 * (300 * 4.2 + 400 * 0.7 + 200))


def test_time_with_cores_is_the_bound_of_the_worst() -> None:
    net = tiny()
    for name, core in (("lif1", [0, 5]), ("lif2", [5, 5])):
        object.__setattr__(net[name], "core", np.array(core))  # as a placed graph has them
    counts = {"lif1": Counts(0, 40000, 2000, 0), "lif2": Counts(0, 6000, 1000, 0)}
    found = of(counts, net=net).time
    assert found is not None and found.value == pytest.approx(10e-9 * max(200 * 4.2, 2600 * 0.7, 200))
    assert found.low == pytest.approx(10e-9 * 2600 * 0.7)
    assert found.high == pytest.approx(10e-9 * (200 * 4.2 + 2600 * 0.7 + 200))
    idle = of({}, net=net).time
    assert idle is not None and (idle.value, idle.low) == (pytest.approx(2e-6), 0)  # ten barriers of 200 ns


def test_dense_passes_are_counted_with_their_zeros() -> None:
    net = graph(
        spikes((2, 6, 6), "im"),
        Conv(name="c", inputs=(Ref("im"),), weight=np.ones((4, 1, 3, 3), np.float32), groups=2, padding=(1, 1), stride=(2, 2)),
        leaky("l", "c"),
        spikes((5,), "x"),
        dense("d", "x", np.zeros((3, 5), np.float32)),
        Sparse(
            name="s", inputs=(Ref("x"),), weight=np.ones(1, np.float32), indices=np.array([2]), indptr=np.array([0, 1, 1]), fan_in=5
        ),
        out=["l", "d", "s"],
    )
    assert multiply_adds(net) == 4 * 3 * 3 * 9 + 15 + 10
    found = of({}, net=net, steps=7).baseline
    assert found is not None and (found.passes, found.multiply_adds) == (1, multiply_adds(net))
    # Horowitz 2014: 3.7 + 0.9 pJ; a weight from a register, from 8 kB of cache (half of 64 bits), from DRAM.
    assert found.energy.low == pytest.approx(4.6e-12 * found.multiply_adds)
    assert found.energy.value == pytest.approx(9.6e-12 * found.multiply_adds)
    assert found.energy.high == pytest.approx(654.6e-12 * found.multiply_adds)
    loop = graph(spikes((3,)), dense("d", Ref("l", delay=1), np.ones((3, 3), np.float32)), leaky("l", "d"))
    again = of({}, net=loop, steps=7).baseline
    assert again is not None and (again.passes, again.multiply_adds) == (7, 63)


def test_a_run_has_it_all(tmp_path: Path) -> None:
    build = fixed_build(tmp_path)
    x = data(5, 12, seed=7)
    result = build.run(x, record="all")
    assert result.energy is not None and result.energy == result.estimate.energy and result.power == result.estimate.power
    assert result.ops_per_joule == result.estimate.ops_per_joule
    assert (result.estimate.samples, result.estimate.steps) == (5, 12)
    for name in ("lif1", "lif2"):
        fired = result.spikes(name)
        assert result.spike_rate[name] == pytest.approx(fired.mean())
        assert result.dormant[name].tolist() == [k for k in range(2) if not fired[..., k].any()]
    assert result.spike_rate["in"] == pytest.approx(x.mean())
    silent = build.run(np.zeros_like(x), record="all")
    assert silent.spike_rate == {"in": 0, "lif1": 0, "lif2": 0} and silent.dormant["lif1"].tolist() == [0, 1]
    assert silent.energy is not None and silent.energy.low > 0  # every neuron is updated at every step all the same
    with pytest.raises(CompileError, match="was not recorded"):
        _ = build.run(x).energy


def test_a_continued_run_leaves_the_past_out(tmp_path: Path) -> None:
    build = fixed_build(tmp_path)
    x = np.concatenate([np.ones((2, 8, 3), np.int8), np.zeros((2, 20, 3), np.int8)], axis=1)
    whole = build.run(x, record="all")
    build.run(x[:, :20], record="all")
    rest = build.run(x[:, 20:], record="all", carry_state=True)
    assert rest.estimate.steps == 8 and rest.spike_rate["in"] == 0
    assert rest.dormant["lif1"].tolist() == [k for k in range(2) if not whole.spikes("lif1")[:, 20:, k].any()]


def test_the_command_prints_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    fixed_build(tmp_path).save("build")
    np.savez("x.npz", x=data(4, 10))
    assert cli.main(["run", "build", "--input", "x.npz", "--record", "all"]) == 0
    out = capsys.readouterr().out
    assert "an inference of 10 steps, mean of 4 samples:" in out and "Loihi-1-equivalent" in out and "dormant" in out
    assert cli.main(["run", "build", "--input", "x.npz", "--record", "all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimate"]["energy"]["unit"] == "J" and found["dormant"].keys() == {"lif1", "lif2"}
    assert cli.main(["targets", "loihi2"]) == 0
    assert "costs, Loihi-1-equivalent (published): Davies" in capsys.readouterr().out


def test_quantities() -> None:
    assert [quantity(v, "J") for v in (0.0, 1.5e-12, 2e-6, 3.0, 1e-15)] == ["0 pJ", "1.5 pJ", "2 µJ", "3 J", "0.001 pJ"]
    assert quantity(12345678.0, "/J") == "1.23e+07 /J"


HEAD = 'name = "t"\ndescription = ""\nbackend = "c"\npasses = []\nlevel = "float"\n'
GOOD = 'label = "L"\nstatus = "published"\nsource = "S"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("costs = 3", "costs must be a list of tables"),
        ("baseline = 3", "baseline must be a table"),
        ("[[costs]]\n" + GOOD + "joules = 3", "unknown key 'joules' in costs[0]"),
        ('[[costs]]\nstatus = "published"\nsource = "S"', "costs[0] needs a label, a source and a status"),
        ("[[costs]]\n" + GOOD.replace("published", "guessed"), "costs[0] needs a label, a source and a status"),
        ("[baseline]\n" + GOOD + "error = 1.5", "baseline: error is a share of 1"),
        ("[[costs]]\n" + GOOD + "energy = 3", "costs[0].energy must be a table"),
        ("[[costs]]\n" + GOOD + "energy = { spikes = 3 }", "unknown key 'spikes' in costs[0].energy"),
        ("[[costs]]\n" + GOOD + "energy = { spike = [3, 2, 4] }", "costs[0].energy.spike is a number, or [low, likely, high]"),
        ("[[costs]]\n" + GOOD + "time = { step = -1 }", "costs[0].time.step is a number, or [low, likely, high]"),
        ("[[costs]]\n" + GOOD + 'time = { step = "1" }', "costs[0].time.step is a number, or [low, likely, high]"),
    ],
)
def test_wrong_costs(text: str, message: str) -> None:
    top = text if text.startswith(("costs", "baseline")) else ""
    with pytest.raises(CompileError) as caught:
        parse_target(HEAD + (top or "\n" + text), "t.toml")
    assert caught.value.code == "SPK012" and message in str(caught.value)


def test_every_target_is_read_and_only_the_chip_has_costs() -> None:
    assert [name for name in spikec.target_names() if load_target(name).costs] == ["loihi2"]
