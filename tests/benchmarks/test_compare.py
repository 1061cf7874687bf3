"""The benchmark's own parts: what contenders get is what spikec runs, wrong counts are refused, and the table says what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
for _path in (ROOT, ROOT / "benchmarks" / "contenders"):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))

import numpy_events  # noqa: E402 - the path comes first
import sinabs_loop  # noqa: E402 - the path comes first
import snntorch_loop  # noqa: E402 - the path comes first
import spikingjelly_loop  # noqa: E402 - the path comes first
import torch_net  # noqa: E402 - the path comes first
import torchscript  # noqa: E402 - the path comes first
from network import Layer, Net, Skip, connections  # noqa: E402 - the path comes first

from benchmarks import compare, results  # noqa: E402 - the path comes first
from benchmarks.results import OURS  # noqa: E402 - the path comes first
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


def test_layer_by_layer_is_the_same_network() -> None:
    net, _ = both()
    assert net.x is not None
    for tool in (sinabs_loop, spikingjelly_loop, snntorch_loop):
        run = tool.prepare(net)
        assert np.array_equal(run(net.x), net.counts) and np.array_equal(run(net.x[1:3]), net.counts[1:3]), tool.TITLE


def networks() -> dict[str, results.Network]:
    """What a run might have found."""
    ours = results.Row(OURS, times=[2.0, 1.0, 9.0], rates={16: [700.0]}, megabytes=2.0)
    other = results.Row("numba", times=[30.0, 10.0, 5.0], rates={16: [50.0, 150.0, 100.0], 64: [90.0]}, megabytes=190.0)
    rows = {OURS: ours, "numba": other, "JAX": results.Row("JAX", skip="no")}
    free = {OURS: results.Row(OURS, times=[250.0], megabytes=78.0), "numba": results.Row("numba", times=[500.0], megabytes=300.0)}
    return {"W1": results.Network("a net", rows, 1.5, 668), "W4": results.Network("no input", free, 8.25, 75_000_000)}


def test_the_table_and_where_it_goes(tmp_path: Path) -> None:
    text = results.table(networks())
    assert (
        "| milliseconds an inference | W1 | W4 | MB, W1 | MB, W4 |\n|---|---|---|---|---|\n"
        "| spikec, C | 2 | 250 | 2 | 78 |\n| numba | 10 (5×) | 500 (2×) | 190 | 300 |\n\n"
    ) in text
    assert "| inferences a second | W1 |\n|---|---|\n| spikec, C | 700 (16) |\n| numba | 100 (16) |\n" in text
    assert "JAX" not in text and "W1: a net; W4: no input." in text and "at most 8.2 s" in text and "busy" not in text
    busy = networks()
    busy["W4"].taken = 0.75
    assert "busy machine (others took up to 75 % of the core)" in results.table(busy)
    page = tmp_path / "README.md"
    page.write_text(f"before\n{results.MARKS[0]}\nold\n{results.MARKS[1]}\nafter\n")
    results.write_readme(text, page)
    assert page.read_text() == f"before\n{results.MARKS[0]}\n{text}\n{results.MARKS[1]}\nafter\n"
    results.plot(networks(), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert all((ROOT / "README.md").read_text(encoding="utf-8").count(mark) == 1 for mark in results.MARKS)


def test_an_interrupted_run_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "all.json"
    assert results.load(file) == {}
    results.save(networks(), file)
    assert results.load(file) == networks()
    assert [path.name for path in tmp_path.iterdir()] == ["all.json"]
    monkeypatch.setattr(results, "machine", lambda: "another one")
    assert results.load(file) == {}


def test_only_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []

    def bench(case: Any, tools: list[str], absent: dict[str, str], rounds: int) -> results.Network:
        ran.append(case)
        if case == "stop":
            raise KeyboardInterrupt
        return networks()["W1"]

    def run(*arguments: str) -> list[str]:
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
        try:
            assert compare.main() == 0
        except KeyboardInterrupt:
            ran.append("cut off")
        return list(ran)

    monkeypatch.setattr(compare, "BUILD", tmp_path)
    monkeypatch.setattr(compare, "bench", bench)
    monkeypatch.setattr(compare.environment, "ensure", dict)
    monkeypatch.setattr(compare.workloads, "SOURCE", tmp_path)
    monkeypatch.setattr(compare.workloads, "ensure_data", lambda: tmp_path)
    monkeypatch.setattr(compare, "given", lambda name: name)
    monkeypatch.setattr(compare, "digits", lambda: "stop")
    monkeypatch.setattr(compare, "FSDD", tmp_path / "absent")
    assert run("--all") == ["W1", "W2", "W3", "W4", "stop", "cut off"]
    monkeypatch.setattr(compare, "digits", lambda: "digits")
    assert run("--all", "--resume") == ["digits"]
    assert run("--all", "--only", "W2") == ["W2"]
    assert list(results.load(tmp_path / "all.json")) == ["W1", "W2", "W3", "W4", "digits"]
    assert run("--table") == []
    assert "| milliseconds an inference | W1 | W2 | W3 | W4 | digits | MB, W1 | MB, W4 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("--only", "W5")
    assert "no network is called W5" in capsys.readouterr().err


def test_every_contender_has_a_title() -> None:
    assert len(compare.titles()) == len(compare.CONTENDERS) == len(set(compare.titles().values()))
    assert {"JAX scan+jit", "snnTorch", "spikec, NumPy"} <= compare.batched() and "numba event-driven" not in compare.batched()


WORKER = """
from network import Skip

TITLE = "stand-in"
BATCHES = True


def prepare(net):
    if net.name == "skip":
        raise Skip("not this one")
    if net.name == "import":
        import no_such_module
    if net.name == "fail":
        raise ValueError("what went wrong")
    return lambda x: net.counts[:1].repeat(len(x), 0) + (net.name == "wrong")
"""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("right", ""),
        ("skip", "not this one"),
        ("import", "cannot be imported"),
        ("fail", "what went wrong"),
        ("wrong", "are wrong"),
    ],
)
def test_a_contender_that_cannot_or_is_wrong_is_left_out(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "contenders"
    place.mkdir()
    for file in ("worker.py", "network.py"):
        (place / file).write_text((ROOT / "benchmarks" / "contenders" / file).read_text(encoding="utf-8"))
    (place / "stand_in.py").write_text(WORKER)
    monkeypatch.setattr(compare, "__file__", str(tmp_path / "compare.py"))
    monkeypatch.setattr(compare, "BUILD", tmp_path)
    monkeypatch.setattr(compare, "CONTENDERS", {"stand_in": ("spikec", 2, True)})
    net, _ = both()
    Net(name, 30, np.repeat(net.counts[:1], 4, 0), net.x, net.layers).save(tmp_path / "net.npz")
    row, process = compare.start("stand_in", tmp_path / "net.npz", False, compare.CORE, "cpu")
    assert row.title == "stand-in" and (reason in row.skip if reason else not row.skip)
    assert (process is None) == bool(reason)
    if process is not None:
        assert process.ask("one")["ms"] >= 0
        first, second = process.ask("batch 6"), process.ask("batch 6")
        assert first["wrong"] == 0 and first["spikes"] == 6 * int(net.counts[0].sum()) and "wrong" not in second
        process.process.kill()
        process.process.wait()
        assert "skip" in process.ask("one")
        process.close()


def test_an_engine_of_ours_differs_from_floats_as_the_emitted_c_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stand:
        def __init__(self, *told: object) -> None:
            self.first = {"wrong": 20, "spikes": 100, "total": 110, "prepared": 0.0}

        def pin(self, core: int) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(compare, "Process", Stand)
    for same, reason in ((None, "20 of 100 output spikes are wrong"), (20, ""), (0, "20 of 100 output spikes are wrong")):
        assert compare.start("spikec_c", tmp_path, False, 0, "wall", same)[0].skip == reason
