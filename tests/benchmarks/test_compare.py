"""The benchmark's own parts: what contenders get is what spikec runs, wrong counts are refused, and the table says what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
for _path in (ROOT, ROOT / "benchmarks" / "contenders"):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))

import numpy_events  # noqa: E402 - the path comes first
import torch_net  # noqa: E402 - the path comes first
import torchscript  # noqa: E402 - the path comes first
from network import Layer, Net, Skip, connections  # noqa: E402 - the path comes first

from benchmarks import compare  # noqa: E402 - the path comes first
from spikec.ir.graph import Graph  # noqa: E402 - the path comes first
from spikec.ir.interpret import interpret  # noqa: E402 - the path comes first
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Pool, Ref, Reshape  # noqa: E402 - the path comes first
from spikec.ir.rules import verify  # noqa: E402 - the path comes first
from spikec.ir.text import parse_program  # noqa: E402 - the path comes first
from spikec.ir.types import TensorType  # noqa: E402 - the path comes first

LIF = parse_program(
    "neuron @n(x) params(alpha, beta, theta) state(i = 0, v = 0) {\ni = alpha * i + x\nv = beta * v + i\ns = v >= theta\n"
    "v = select(s, 0, v)\nemit s\n}"
)


def both() -> tuple[Net, Graph]:
    """Convolutions with stride and pools, a recurrent layer with a current, a bias; weights and decays are dyadic."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (rng.integers(-20, 30, shape) / 32).astype(np.float32)

    w1, w2, f, back, o = weight(3, 2, 3, 3), weight(4, 3, 3, 3), weight(9, 16), weight(9, 9), weight(5, 9)
    bias = (rng.integers(-3, 4, 5) / 8).astype(np.float32)
    theta = np.ones(1, np.float32)
    layers = [
        Layer(w1, 0.5, theta, stride=2, padding=1), Layer(w2, 1.0, theta, padding=1, pool=2), Layer(f, 0.75, theta, 0.5, recurrent=back),
        Layer(o, 0.875, theta, bias=bias),
    ]  # fmt: skip
    layers[2].pool = 1

    def fires(name: str, source: str, alpha: float, beta: float) -> Neuron:
        params = {"alpha": np.float32(alpha), "beta": np.float32(beta), "theta": np.float32(1)}
        return Neuron(name=name, inputs=(Ref(source),), program=LIF, params=params)

    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (2, 8, 8), "f32")),
        Conv(name="c1", inputs=(Ref("x"),), weight=w1, stride=(2, 2), padding=(1, 1)),
        fires("l1", "c1", 0, 0.5),
        Pool(name="p", inputs=(Ref("l1"),), mode="sum", kernel=(2, 2)),
        Conv(name="c2", inputs=(Ref("p"),), weight=w2, padding=(1, 1)),
        fires("l2", "c2", 0, 1.0),
        Reshape(name="flat", inputs=(Ref("l2"),), shape=(16,)),
        Dense(name="f", inputs=(Ref("flat"),), weight=f),
        Dense(name="back", inputs=(Ref("l3", delay=1),), weight=back),
        Add(name="sum", inputs=(Ref("f"), Ref("back"))),
        fires("l3", "sum", 0.5, 0.75),
        Dense(name="o", inputs=(Ref("l3"),), weight=o, bias=bias),
        fires("l4", "o", 0, 0.875),
    ]
    graph = verify(Graph("both", "float", tuple(nodes), (("out", Ref("l4")),)))
    x = (rng.random((4, 30, 2, 8, 8)) < 0.2).astype(np.uint8)
    counts = interpret(graph, {"x": x.astype(np.float32)}).outputs["out"].sum(1).astype(np.int64)
    assert counts.any() and (counts < 30).any()
    return Net("both", 30, counts, x, layers), graph


def test_contenders_get_the_network_that_spikec_runs(tmp_path: Path) -> None:
    net, _ = both()
    net.save(tmp_path / "net.npz")
    again = Net.load(tmp_path / "net.npz")
    assert again.x is not None and net.x is not None and np.array_equal(again.x, net.x)
    run = numpy_events.prepare(again)
    assert np.array_equal([run(again.x[k : k + 1]) for k in range(4)], net.counts)
    assert np.array_equal(torchscript.prepare(again)(again.x), net.counts)
    again.layers[3].theta = again.layers[3].theta * 2
    assert not np.array_equal(numpy_events.prepare(again)(again.x[:1]), net.counts[0])


def test_lists_of_connections_are_the_convolution() -> None:
    net, _ = both()
    layer, shape = net.layers[1], (3, 4, 4)
    target, weight, start = connections(layer, shape)
    matrix = np.zeros((48, 4 * 2 * 2))
    for i in range(48):
        matrix[i, target[start[i] : start[i + 1]]] = weight[start[i] : start[i + 1]]
    x = np.random.default_rng(1).random((1, 1, *shape))
    graph = verify(Graph("g", "float", (
        Input(name="x", type=TensorType("value", shape, "f64")), Pool(name="p", inputs=(Ref("x"),), mode="sum", kernel=(2, 2)),
        Conv(name="c", inputs=(Ref("p"),), weight=layer.weight.astype(np.float64), padding=(1, 1)),
    ), (("c", Ref("c")),)))  # fmt: skip
    assert np.allclose(x.reshape(-1) @ matrix, interpret(graph, {"x": x}).outputs["c"].reshape(-1))


def test_a_tool_without_sparse_synapses_says_so() -> None:
    net = Net("W4", 3, np.zeros((1, 2), np.int64), sparse={"v0": np.zeros(2)})
    with pytest.raises(Skip, match="no sparse synapses"):
        torch_net.prepare(net, lambda layer: None, lambda neuron: None)


def test_the_table_and_where_it_goes(tmp_path: Path) -> None:
    ours, other = compare.Row(compare.OURS, times=[2.0, 1.0, 9.0], rates=[500.0]), compare.Row("numba", times=[30.0, 10.0, 5.0])
    left_out = compare.Row("JAX", skip="no")
    other.rates = [100.0]
    text = compare.table({"W1": {compare.OURS: ours, "numba": other, "JAX": left_out}}, {"W1": "a net"})
    assert "| spikec, C | 2 |\n| numba | 10 (5.0×) |\n| JAX | – |" in text
    assert "| spikec's C from Python; the best of the others | 500; 100 (numba) |" in text and "W1: a net." in text
    page = tmp_path / "README.md"
    page.write_text(f"before\n{compare.MARKS[0]}\nold\n{compare.MARKS[1]}\nafter\n")
    compare.write_readme(text, page)
    assert page.read_text() == f"before\n{compare.MARKS[0]}\n{text}\n{compare.MARKS[1]}\nafter\n"
    compare.plot({"W1": {compare.OURS: ours, "numba": other}}, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert all((ROOT / "README.md").read_text(encoding="utf-8").count(mark) == 1 for mark in compare.MARKS)
    assert len(compare.titles()) == len(compare.CONTENDERS) == len(set(compare.titles().values()))
