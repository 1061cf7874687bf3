"""What is written runs in onnxruntime with the same numbers as in the interpreter, and reads back as the graph it was."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from nets import LEAKY, sir
from strategies import graphs, random_inputs, widened

import spikec
from spikec.diagnostics import CompileError
from spikec.frontend.onnx import read_onnx, write_onnx
from spikec.frontend.onnx.write import model_of
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret, record_name
from spikec.ir.ops import Input, Neuron, Ref
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType
from spikec.ledger import Ledger
from support.onnx_models import run

LONG = os.environ.get("SPIKEC_LONG") == "1"


def wires(graph: Graph) -> tuple[str, ...]:
    return tuple(record_name((node.name, port)) for node in graph.nodes if node.op != "input" for port, _ in graph.types[node.name])


def differing(graph: Graph, inputs: dict[str, Array], record: tuple[str, ...] = ()) -> list[str]:
    """The outputs and wires that are not the same in onnxruntime, to the last bit and the type."""
    made = model_of(graph, record)
    onnx.checker.check_model(made, full_check=True)
    assert [node.op_type for node in made.graph.node].count("Scan") == 1
    with np.errstate(all="ignore"):
        wanted = interpret(graph, inputs, record=record)
    found = run(made, inputs)
    assert set(found) == {*wanted.outputs, *wanted.records}
    expected = {**wanted.records, **wanted.outputs}
    return [
        f"{k} {expected[k].dtype} {v.dtype}"
        for k, v in found.items()
        if expected[k].dtype != v.dtype or not np.array_equal(expected[k], v)
    ]


@pytest.mark.parametrize("shard", range(20 if LONG else 2))
def test_random_graphs_are_the_same_in_onnxruntime(tmp_path: Path, shard: int) -> None:
    failures: list[str] = []

    @seed(shard)
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(graphs("float"), st.integers(0, 1000))
    def draw(graph: Graph, data: int) -> None:
        for each in (graph, widened(graph, data)):
            inputs = random_inputs(graph, 2, 8, data)
            inputs = {
                node.name: inputs[node.name].astype(np.float64 if node.type.dtype == "f64" else np.float32) for node in each.inputs
            }
            found = differing(each, inputs, wires(each))
            failures.extend(f"{line}\n{each}" for line in found)
        write_onnx(graph, tmp_path / "g.onnx")
        assert read_onnx(tmp_path / "g.onnx") == graph

    draw()
    assert not failures, f"{len(failures)} differ\n" + "\n".join(failures[:3])


PROGRAMS = {
    "the clock": "neuron @p(a) state(v = 0) { k = rem(t, 3) v = v + a * (t + 1) / 2 s = v > 4.0 or k == 0 v = select(t == 4, 0, v) v = select(s, 0, v) emit s, v }",
    "the clock chooses": "neuron @p(a) { y = select(t > 2 and rem(t, 2) == 0, a, select(t == 1, 1.5, t)) emit y }",
    "truth values": "neuron @p(a) state(v = 0) { s = a > 0.5 and not (a > 2) q = select(s, a >= 1, a < -1) v = q b = s != q n = select(s, 1, 2) y = n * s + v emit b, y, v, q }",
    "remainders": "neuron @p(a) params(m) { y = rem(a, m) z = rem(-a, 2.5) w = rem(a, -1.5) u = rem(t - 5, 3) emit y, z, w, u }",
    "rounding": "neuron @p(a) { y = round(a / 2) z = floor(-a / 2) w = abs(min(a, -a)) x = max(a, t) emit y, z, w, x }",
    "parameters only": "neuron @p(a) params(m) { k = exp(-m) * 2 f = select(m > 1, k, 0.25) y = a * f z = k emit y, z }",
    "no input that counts": "neuron @p(a) state(c = 3) { c = c + 0.5 s = t > 1 y = 7 emit s, c, y }",
    "comparisons": "neuron @p(a) params(m) { s = a == m r = a != m y = (a <= m) + 2 * (a < m) + 4 * (a >= m) emit s, r, y }",
}  # fmt: skip


@pytest.mark.parametrize("wide", ["", "f64"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, wide: str) -> None:
    program = parse_program(PROGRAMS[name])
    values = {"m": np.asarray([1.0, 0.5, 2.0], np.float64 if wide else np.float32)} if program.params else {}
    source = Input(name="x", type=TensorType("value", (3,), "f32"))
    graph = verify(
        Graph("g", "float", (source, Neuron(name="p", inputs=(Ref("x"),), program=program, params=values)), (("p", Ref("p")),))
    )
    x = (np.random.default_rng(0).integers(-12, 13, (3, 7, 3)) / 4).astype(np.float32)
    assert differing(graph, {"x": x}, wires(graph)) == []


def test_a_graph_without_inputs_takes_the_number_of_steps() -> None:
    graph = sir("  %c = constant value=[1.0, 2.0] start=2 : value<2>\n  %r = scale(%c) factor=2.0 : value<2>\n  output %r")
    found = run(model_of(graph), {"steps": np.asarray(4)})["r"]
    assert np.array_equal(found, interpret(graph, {}, steps=4).outputs["r"])


def test_the_example_of_handwritten_digits() -> None:
    spec = importlib.util.spec_from_file_location(
        "digits_model", Path(__file__).resolve().parents[3] / "examples" / "digits" / "model.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    x = (torch.rand(30, 40, 64) < 0.3).float()  # steps first, as the example has it
    graph = spikec.trace(module.load(), x[:, :2], time_axis=0, batch_axis=1)
    (source,) = graph.inputs
    inputs, record = {source.name: x.numpy().swapaxes(0, 1).copy()}, [node.name for node in graph.neurons]
    wanted, found = interpret(graph, inputs, record=record).records, run(model_of(graph, record), inputs)
    assert [np.count_nonzero(found[name] != wanted[name]) for name in record] == [0, 0, 0]
    assert all(wanted[name].any() for name in record)


def test_any_batch_and_any_number_of_steps() -> None:
    graph = sir(
        "  %x = input : spike<2>\n  %d = dense(%x) weight=[[0.5, 1.0]] : value<1>\n  %l = neuron @leaky(%d) beta=0.5 theta=1.0 : spike<1>, v: value<1>\n  output %l",
        LEAKY.text(),
    )
    made = model_of(graph)
    for batch, steps in ((1, 1), (5, 3), (2, 50)):
        x = (np.random.default_rng(0).random((batch, steps, 2)) < 0.5).astype(np.float32)
        assert np.array_equal(run(made, {"x": x})["l"], interpret(graph, {"x": x}).outputs["l"])


def test_names_and_places_are_those_of_the_graph(tmp_path: Path) -> None:
    graph = sir(
        '  %x = input : spike<2>\n  %fc = dense(%x) weight=[[0.5, 1.0]] : value<1> loc("net.py":7 net.fc)\n  %lif = neuron @leaky(%fc) beta=0.5 theta=1.0 : spike<1>, v: value<1>\n  output %lif\n  output mem = %lif.v',
        LEAKY.text(),
    )
    write_onnx(graph, tmp_path / "net.onnx")
    made = onnx.load(tmp_path / "net.onnx")
    assert [item.name for item in made.graph.input] == ["x"]
    assert [item.name for item in made.graph.output] == ["lif", "mem"]
    scan = next(node for node in made.graph.node if node.op_type == "Scan")
    body = next(item.g for item in scan.attribute if item.name == "body")
    gemm = next(node for node in body.node if node.op_type == "Gemm")
    assert gemm.name.startswith("fc/")
    assert gemm.doc_string == "net.py:7 (net.fc)"
    assert "lif.v[t-1]" in [item.name for item in body.input]
    assert {node.domain for node in (*made.graph.node, *body.node)} == {""}


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = sir("  %x = input : value<2>\n  %y = scale(%x) factor=2.0 : value<2>\n  output %y")
    write_onnx(graph, tmp_path / "a.onnx")
    write_onnx(graph, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    graph = sir("  %x = input : spike<2>\n  output %x", level="fixed")
    with pytest.raises(CompileError, match=r"SPK502.*ONNX is written from the float level; g is at the level 'fixed'"):
        write_onnx(graph, tmp_path / "a.onnx")
    graph = sir("  %x = input : value<2>\n  %y = scale(%x) factor=2.0 : value<2>\n  output %y")
    with pytest.raises(CompileError, match=r"SPK010.*there is no wire 'z' to record"):
        write_onnx(graph, tmp_path / "a.onnx", record=["z"])
    with pytest.raises(CompileError, match=r"SPK008.*cannot be written"):
        write_onnx(graph, tmp_path / "nowhere" / "a.onnx")


def test_a_changed_file_is_not_taken_for_the_graph_in_it(tmp_path: Path) -> None:
    graph = sir("  %x = input : value<2>\n  %y = scale(%x) factor=2.0 : value<2>\n  output %y")
    write_onnx(graph, tmp_path / "a.onnx")
    made = onnx.load(tmp_path / "a.onnx")
    for item in made.graph.initializer:
        if item.name == "2.0":
            item.raw_data = np.float32(3.0).tobytes()
    onnx.save(made, tmp_path / "a.onnx")
    with pytest.raises(CompileError, match="spikec wrote this model, and it was changed since"):
        read_onnx(tmp_path / "a.onnx")
    with pytest.raises(CompileError, match="holds a graph of spikec, which states it"):
        write_onnx(graph, tmp_path / "a.onnx")
        read_onnx(tmp_path / "a.onnx", input_kind="spike")


def test_an_input_behind_an_encoder_takes_its_spikes_and_the_ledger_says_so(tmp_path: Path) -> None:
    source = Input(name="x", type=TensorType("spike", (2,), "f32"), encode="rate")
    graph = verify(
        Graph(
            "g",
            "float",
            (source, Neuron(name="p", inputs=(Ref("x"),), program=LEAKY, params={"beta": np.float32(0.5), "theta": np.float32(1)})),
            (("p", Ref("p")),),
        )
    )
    ledger = Ledger()
    write_onnx(graph, tmp_path / "a.onnx", ledger=ledger)
    assert [entry.what for entry in ledger] == ["takes what the encoder rate makes of the data, which ONNX does not hold"]
    assert read_onnx(tmp_path / "a.onnx") == graph
