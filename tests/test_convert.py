"""`spikec convert`, and showing and compiling every format that holds a graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import LEAKY, native

import spikec
from spikec import cli
from spikec.driver import convert, read_model
from spikec.frontend.onnx import write_onnx
from spikec.ir.interpret import interpret
from spikec.ir.text import read_graph, write_graph
from spikec.ledger import Ledger
from support.onnx_models import model, op

FLOAT = f"""sir 1
{LEAKY.text().replace("emit s, v", "emit s")}
graph @tiny level=float dt=1ms {{
  %in = input : spike<3>
  %fc = dense(%in) weight=[[0.5, 1.0, -0.25], [0.75, 0.5, 0.125]] : value<2>
  %lif = neuron @leaky(%fc) beta=0.5 theta=1.0 : spike<2>
  output %lif
}}
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.sir").write_text(FLOAT)
    weights = {"w": np.ones((3, 2), np.float32)}
    onnx.save(model([op("MatMul", "x w", "g"), op("Relu", "g", "y")], ("n", 3), weights), tmp_path / "ann.onnx")
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = cli.main(list(words))
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_through_every_float_format_and_back(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = ran(capsys, "convert", "tiny.sir", "tiny.onnx")
    assert (status, told) == (0, "tiny (float, 3 nodes) written to tiny.onnx\n")
    assert ran(capsys, "convert", "tiny.onnx", "again.sir")[0] == 0
    assert (work / "again.sir").read_text() == str(read_graph(work / "tiny.sir"))
    assert ran(capsys, "convert", "tiny.onnx", "tiny.nir", "--name", "renamed")[0] == 0
    status, told = ran(capsys, "convert", "tiny.nir", "last.onnx", "--option", "reset=v_reset")
    assert status == 0
    assert "convention" in told
    x = (np.random.default_rng(0).random((4, 20, 3)) < 0.5).astype(np.float32)
    first, last = read_graph(work / "tiny.sir"), read_model(work / "last.onnx")
    (before,), (after,) = interpret(first, {"in": x}).outputs.values(), interpret(last, {last.inputs[0].name: x}).outputs.values()
    assert np.array_equal(before, after)
    assert before.any()


def test_show_and_compile_take_onnx(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = ran(capsys, "show", "ann.onnx")
    assert status == 0
    assert told == str(read_model("ann.onnx"))
    np.savez("x.npz", x=np.eye(3, dtype=np.float32), y=np.asarray([0, 1, 0]))
    words = (
        "compile",
        "ann.onnx",
        "-o",
        "out",
        "--target",
        "host",
        "--calibrate",
        "x.npz",
        "--steps",
        "20",
        "--option",
        "percentile=100",
    )
    status, told = ran(capsys, *words)
    assert status == 0
    assert "input -> fold-scale -> ann-to-snn -> canonicalise" in told
    assert "accuracy of the output y on 3 samples" in told
    status, told = ran(capsys, "compile", "ann.onnx", "-o", "kept", "--target", "host", "--no-spiking")
    assert status == 0
    assert spikec.load("kept").stage_names == ["input", "canonicalise"]
    # A Scan that spikec wrote is a spiking network already.
    write_onnx(read_graph(work / "tiny.sir"), "snn.onnx")
    assert ran(capsys, "compile", "snn.onnx", "-o", "snn", "--target", "host")[0] == 0
    assert spikec.load("snn").graph("input") == read_graph(work / "tiny.sir")
    status, told = ran(capsys, "compile", "snn.onnx", "-o", "snn", "--target", "host", "--spiking", "--calibrate", "x.npz")
    assert status == 1
    assert "the network spikes already" in told


def test_json(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = ran(capsys, "convert", "tiny.sir", "b.nir", "--json")
    found = json.loads(told)
    assert (status, found["output"], found["name"], found["level"]) == (0, "b.nir", "tiny", "float")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tiny.sir b.txt", "error[SPK001]: 'b.txt' is no format to write\n  fix: end the name in .net, .nir, .onnx or .sir"),
        ("a.txt b.sir", "error[SPK003]: 'a.txt' is not a graph\n  fix: give a .net, .nir, .onnx or .sir file"),
        ("none.sir b.onnx", "error[SPK002]: none.sir: no such file"),
        ("tiny.sir no/b.onnx", "error[SPK008]: no/b.onnx: cannot be written (No such file or directory)"),
        ("tiny.sir no/b.sir", "error[SPK008]: no/b.sir: cannot be written (No such file or directory)"),
        ("tiny.sir folder.sir", "error[SPK008]: folder.sir: cannot be written (it is a folder)"),
        ("tiny.sir b.net", "error[SPK202]: a .net file holds integers; tiny is at the level 'float'"),
        ("tiny.sir b.onnx --dt 2ms", "error[SPK001]: dt belongs to a torch model; tiny.sir is a graph already"),
        ("ann.onnx b.sir --option steps=3", "error[SPK001]: unknown option 'steps' for '.onnx'"),
        ("ann.onnx b.sir --option steps", "error[SPK001]: --option steps: write KEY=VALUE"),
        ("ann.onnx b.sir --option dt=3", "error[SPK001]: --option dt: write --dt"),
        ("ann.onnx b.nir", "ann.onnx (y): error[SPK201]: %y: NIR has no neuron that computes @relu"),
    ],
)
def test_bad_commands(work: Path, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    (work / "folder.sir").mkdir()
    status, told = ran(capsys, "convert", *words.split())
    assert status == 1
    assert told.startswith(message)


# ------------------------------------------------------------------------------------------------------------- SLAYER


def chain(shift: int, reset: bool = False, recurrent: bool = False) -> str:
    """A network of integers in the form of SLAYER's blocks: a convolution, and a dense block with delays or recurrence."""
    program = native("LIFReset" if reset else "LIF")
    read = f"[t-{shift}]" if shift else ""

    def lif(name: str, source: str, shape: str, block: int, bias: str) -> str:
        periodic = f" interval=8 offset={(3 + block * shift) % 8 + 1}" if reset else ""
        given = f"du=1023 dv=128 vth=[40, 30, 20] bias_mant={bias} bias_exp=6{periodic}"
        return f"  %{name} = neuron @{program.name}(%{source}) {given} : spike<{shape}>\n"

    rng = np.random.default_rng(3)
    kernel, rows, delays = (
        rng.integers(-9, 20, (3, 2, 2, 2)).tolist(),
        rng.integers(-9, 12, (3, 12)).tolist(),
        rng.integers(0, 3, (3, 12)).tolist(),
    )
    text = f"sir 1\n{program.text()}\ngraph @net level=fixed {{\n  %x = input : spike<2x3x3>\n"
    text += f"  %c = conv(%x{read}) weight=i16{kernel} : value<3x2x2>\n{lif('l1', 'c', '3x2x2', 1, '[0, 3, -2]')}"
    text += f"  %flat = reshape(%l1) shape=(12,) : spike<12>\n  %d = dense(%flat{read}) weight=i16{rows}"
    text += " : value<3>\n" if recurrent else f" delay=i32{delays} : value<3>\n"
    if recurrent:
        text += "  %back = dense(%l2[t-1]) weight=i16[[2, -4, 6], [8, 0, 2], [4, 4, -6]] : value<3>\n  %both = add(%d, %back) : value<3>\n"
    return text + lif("l2", "both" if recurrent else "d", "3", 2, "0") + "  output %l2\n}\n"


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_network_in_slayers_form_goes_into_a_net_file_and_back(work: Path, shift: int, reset: bool, recurrent: bool) -> None:
    graph = spikec.parse_graph(chain(shift, reset, recurrent))
    write_graph(graph, work / "a.sir")
    ledger = Ledger()
    convert("a.sir", "a.net", ledger=ledger)
    told = " ".join(entry.what for entry in ledger)
    assert f"delay_shift={'true' if shift else 'false'}" in told
    options = {"reset_interval": 8, "reset_offset": 3} if reset else {}
    assert not reset or "reset_interval=8, reset_offset=3" in told
    again = read_model("a.net", delay_shift=bool(shift), **options)
    x = (np.random.default_rng(0).random((3, 40, 2, 3, 3)) < 0.4).astype(np.int8)
    (before,), (after,) = interpret(graph, {"x": x}).outputs.values(), interpret(again, {"input": x}).outputs.values()
    assert np.array_equal(before, after)
    assert 0 < before.mean() < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("%d = dense(%flat[t-1])", "%d = dense(%flat[t-2])"), "spikes reach the next block after 1 or 2 steps: SLAYER has one for all"),
        (("spike<12>", "spike<12> lag=2"), "does its steps late: the graph was retimed"),
        (("bias_mant=[0, 3, -2] bias_exp=6", "bias_mant=3 bias_exp=2"), "its bias is finer than a unit of the weights"),
        (("  output %l2", "  output %l1"), "%l2: is the last block, but not the graph's output"),
        (("  output %l2", "  %late = reshape(%l2) shape=(3,) : spike<3>\n  %cat = concat(%late, %l2) axis=0 : spike<6>\n  output %cat"), "%l2: is read by %late and %cat; in a chain only one does"),
        (("  output %l2", "  %p = neuron @own(%l2) : spike<3>\n  output %p"), "%p: SLAYER's blocks begin with a dense or a convolutional sum, not with neuron"),
    ],
)  # fmt: skip
def test_other_networks_are_no_net_files(work: Path, change: tuple[str, str], message: str) -> None:
    text = chain(1)
    assert change[0] in text
    text = text.replace(*change, 1).replace(
        "graph @net", "neuron @own(a) { s = a > 0 emit s }\ngraph @net" if "@own" in change[1] else "graph @net"
    )
    if "lag" in change[1]:
        text = text.replace("shape=(12,) : spike<12> lag=2", "shape=(12,) lag=2 : spike<12>")
    (work / "a.sir").write_text(text)
    with pytest.raises(spikec.CompileError) as caught:
        convert("a.sir", "a.net")
    assert message in str(caught.value)
    assert not (work / "a.net").exists()


def test_a_quantised_build_becomes_a_net_file(work: Path) -> None:
    build = spikec.compile(
        work / "tiny.sir", target="loihi2", calibrate=(np.random.default_rng(0).random((8, 30, 3)) < 0.4).astype(np.float32)
    )
    build.save(work / "build")
    place = next((work / "build" / "ir").glob("*quantize.sir"))
    convert(place, "q.net")
    graph = build.graph(after="quantize")
    again = read_model("q.net", delay_shift=False)
    x = (np.random.default_rng(1).random((3, 40, 3)) < 0.4).astype(np.int8)
    (before,), (after,) = interpret(graph, {"in": x}).outputs.values(), interpret(again, {"input": x}).outputs.values()
    assert np.array_equal(before, after)


def test_a_graph_without_a_step_gets_one(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "plain.sir").write_text(FLOAT.replace(" dt=1ms", ""))
    status, told = ran(capsys, "convert", "plain.sir", "plain.nir")
    assert status == 1
    assert "fix: give dt" in told
    assert ran(capsys, "convert", "plain.sir", "plain.nir", "--dt", "1ms")[0] == 0
    assert read_model(work / "plain.nir").dt == 1e-3
    assert ran(capsys, "convert", "tiny.sir", "tiny.nir", "--dt", "2ms")[0] == 1  # it has one


def test_a_build_folder_is_a_source(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(capsys, "compile", "tiny.sir", "-o", "build", "--target", "loihi2")[0] == 0
    assert ran(capsys, "convert", "build", "float.nir", "--level", "float")[0] == 0
    assert ran(capsys, "convert", "build", "first.sir", "--after", "input")[0] == 0
    assert read_graph(work / "first.sir") == read_graph(work / "tiny.sir")
    assert ran(capsys, "convert", "build", "last.sir")[0] == 0
    assert read_graph(work / "last.sir") == spikec.load("build").graph()
    for words, message in (
        ("build b.sir --after no", "the build has no stage 'no'"),
        ("tiny.sir b.sir --level fixed", "tiny.sir is one graph: after and level need a build folder"),
        ("build b.sir --option steps=3", "steps belongs to a torch model; build is a graph already"),
    ):
        status, told = ran(capsys, "convert", *words.split())
        assert status == 1 and message in told, told
