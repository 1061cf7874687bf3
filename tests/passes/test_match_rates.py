"""Biases that bring the integers' activity back to the floats': on data that the pass has not seen, and told by the ledger."""

from __future__ import annotations

import numpy as np
import pytest

import spikec
from spikec.account import unaccounted
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Dense, Input, Neuron, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType
from spikec.ledger import Ledger
from spikec.passes.match_rates import MatchRates
from spikec.target import load_target

LIF = parse_program(
    "neuron @lif(x) params(beta, theta) state(v = 0) {\nv = beta * v + x\ns = v > theta\nv = select(s, 0, v)\nemit s\n}"
)
LI = parse_program("neuron @li(x) params(beta) state(v = 0) {\nv = beta * v + x\nemit v : value\n}")
#: Weights of so few bits that rates change visibly.
BITS = 3


def network(biased: bool = True, readout: bool = True) -> Graph:
    """A recurrent population and membranes that are answers."""
    rng = np.random.default_rng(0)

    def layer(name: str, source: Ref, out: int, width: int, bias: bool) -> Dense:
        weight = rng.normal(0, 1.2 / np.sqrt(width), (out, width)).astype(np.float32)
        return Dense(
            name=name, inputs=(source,), weight=weight, bias=rng.normal(0.05, 0.05, out).astype(np.float32) if bias else None
        )

    lif = {"beta": np.float32(0.9), "theta": np.float32(1)}
    nodes = [
        Input(name="in", type=TensorType("spike", (12,), "f32")),
        layer("fc", Ref("in"), 24, 12, biased),
        layer("back", Ref("l1", delay=1), 24, 24, False),
        Add(name="sum", inputs=(Ref("fc"), Ref("back"))),
        Neuron(name="l1", inputs=(Ref("sum"),), program=LIF, params=lif),
        layer("out", Ref("l1"), 4, 24, biased),
    ]
    if readout:
        nodes.append(Neuron(name="l2", inputs=(Ref("out"),), program=LI, params={"beta": np.float32(0.8)}))
    else:
        nodes.append(Neuron(name="l2", inputs=(Ref("out"),), program=LIF, params=lif))
    return verify(Graph("net", "float", tuple(nodes), (("l2", Ref("l2")),)))


def spikes(seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.random((40, 60, 12)) < rng.random((40, 1, 12))).astype(np.float64)


@pytest.mark.parametrize("target", ["host", "loihi2"])
def test_activity_comes_back_on_other_data_too(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, fresh = network(readout=target == "host"), spikes(2)
    options = {"bits": BITS, "calibrate": spikes(1), "target": target}
    build = spikec.compile(graph, **options)
    assert unaccounted(build) == []
    monkeypatch.setattr(MatchRates, "run", lambda self, graph, ledger: graph)
    plain = spikec.compile(graph, **options)
    quantizer = "to-fixed" if target == "host" else "quantize"
    wanted = interpret(graph, {"in": fresh}, record=["l1", "l2"]).records
    off = []
    for one in (build, plain):
        found = interpret(one.graph(after=quantizer), {"in": fresh}, record=["l1", "l2"]).records
        unit = one.units["l2"] if target == "host" else 1.0
        each = (np.mean(wanted["l1"] - found["l1"], (0, 1)), np.mean(wanted["l2"] - found["l2"] * unit, (0, 1)))
        off.append([float(np.square(part).sum()) for part in each])
    assert sum(off[0]) < 0.7 * sum(off[1]), off
    entries = [entry for entry in build.ledger if entry.pass_name == "match-rates"]
    assert {entry.node for entry in entries} == {"fc", "out"}
    for entry in entries:
        moved = np.abs(build.graph(after="match-rates")[entry.node].bias - graph[entry.node].bias)
        assert entry.kind == "approximation" and entry.asked == "--calibrate"
        assert (entry.changed, entry.total) == (np.count_nonzero(moved), moved.size)
        assert entry.largest == pytest.approx(moved.max())
        assert entry.measured["difference after"] < entry.measured["difference before"]
    assert build.verify(fresh[:5], backends=["numpy", "c"]).ok


def test_weights_and_what_has_no_bias_stay() -> None:
    graph, x = network(), {"in": spikes(1)}
    found = MatchRates(load_target("host"), BITS, x).run(graph, Ledger())
    for node in graph.nodes:
        if isinstance(node, Dense) and node.bias is not None:
            other = found[node.name]
            assert isinstance(other, Dense) and other.bias is not None
            assert np.any(other.bias != node.bias) and other.bias.dtype == node.bias.dtype
            assert np.array_equal(other.weight, node.weight)
        else:
            assert found[node.name] is node


@pytest.mark.parametrize(
    ("options", "biased"), [({}, True), ({"scales": {}}, True), ({"bits": "mixed"}, True), ({"bits": BITS}, False)]
)
def test_nothing_happens_without_data_or_biases(options: dict[str, object], biased: bool) -> None:
    graph, ledger = network(biased), Ledger()
    data = {} if not options else {"calibrate": {"in": spikes(1)}}
    assert MatchRates(**{"target": load_target("host"), "bits": BITS, **data, **options}).run(graph, ledger) is graph
    assert not list(ledger)


def test_the_pass_is_there_where_it_can_do_something() -> None:
    x = spikes(1)
    names = [
        spikec.compile(network(biased), target="host", bits=8, **more).stage_names
        for biased, more in (
            (True, {"calibrate": x}),
            (False, {"calibrate": x}),
            (True, {}),
        )
    ]
    assert ["match-rates" in each for each in names] == [True, False, False]
    assert names[0].index("match-rates") + 1 == names[0].index("to-fixed")
    assert "match-rates" not in spikec.compile(network(), target="host", calibrate=x).stage_names
