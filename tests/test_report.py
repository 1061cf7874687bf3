"""The report: one page that needs nothing else, says what the build says, and is the same for the same build."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from nets import dense, graph, leaky, sir
from nets import spikes as spike_input

import spikec
from spikec import cli
from spikec.build import Build
from spikec.counts import SYNAPTIC, synapses
from spikec.diagnostics import CompileError, Loc
from spikec.ir.ops import Add, Ref
from spikec.report import draw, edges, limits, page
from spikec.target import load_target
from support.builds import fixed_build, fixed_target, spikes, tiny

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Text of a page; complains where tags do not close in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.parts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.parts.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.parts).split())


@pytest.fixture
def build(tmp_path: Path) -> Build:
    made = fixed_build(tmp_path)
    made.save(tmp_path / "build")
    return made


def test_it_says_what_the_build_says(build: Build) -> None:
    text = build.report().read_text(encoding="utf-8")
    words = Page(text).words
    assert "tiny for loihi2-reference" in words and "4 neurons in 2 layers" in words and "9 synapses" in words
    result = build.run(build.golden, record="all")
    for name in ("lif1", "lif2"):
        assert f"{100 * result.spike_rate[name]:.3g} %" in words
    for entry in build.ledger:
        assert entry.what in words
    for name, value in result.estimate.rows():
        assert f"{name} {value}" in words
    for source in result.estimate.sources:
        assert source in words
    for stage in build.stage_names:
        assert stage in words
    assert "net.py:4 (net.lif1)" in words and "largest weight" in words and "254" in words


def test_it_needs_nothing_from_elsewhere(build: Build) -> None:
    text = build.report().read_text(encoding="utf-8")
    assert Page(text).links == [] and "url(http" not in text and "@import" not in text and "<script" not in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_the_same_build_gives_the_same_bytes(build: Build, tmp_path: Path) -> None:
    first = build.report().read_bytes()
    again = spikec.load(tmp_path / "build")
    again.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "report.html").read_bytes() == first
    assert spikec.load(tmp_path / "build").report(tmp_path / "new.html").read_bytes() == first


def test_names_are_text_and_not_html(tmp_path: Path) -> None:
    wild = "<b>&\"'.py"
    net = tiny()
    placed = [replace(node, loc=Loc(wild, 3)) for node in net.nodes]
    made = spikec.compile(net.with_nodes(placed), target=fixed_target(tmp_path), calibrate=spikes())
    made.ledger.record("lif1", "approximation", "<script>alert(1)</script>")
    text = made.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<b>&" not in text and "<script" not in text
    assert f"{wild}:3" in Page(text).words and "<script>alert(1)</script>" in Page(text).words


def test_other_data_gives_other_rates(build: Build, tmp_path: Path) -> None:
    quiet = np.zeros((2, 5, 3), np.int8)
    words = Page(build.report(tmp_path / "quiet.html", quiet).read_text(encoding="utf-8")).words
    assert "over 2 samples of 5 steps" in words and "An inference of 5 steps, mean of 2 samples" in words
    layers = page(build, build.run(quiet, record="all"))["layers"]
    assert [(row["name"], row["rate"], row["dormant"]) for row in layers] == [("in", 0, None), ("lif1", 0, 2), ("lif2", 0, 2)]


def test_a_target_without_costs_says_so(tmp_path: Path) -> None:
    made = spikec.compile(tiny(), target="host", bits=8, calibrate=spikes())
    words = Page(made.report(tmp_path / "r.html").read_text(encoding="utf-8")).words
    assert "the target 'host' states no energy per operation" in words and "Loihi" not in words
    memory = made.memory()
    assert f"{memory.total + memory.constants:,} bytes, {memory.constants:,} of them constants" in words


def test_sums_over_layers_are_those_of_the_build(build: Build) -> None:
    found = page(build, build.run(spikes(), record="all"))
    last = build.graph()
    whole = sum(synapses(n, last.type_of(n.inputs[0]).shape) for n in last.nodes if isinstance(n, SYNAPTIC))
    assert sum(layer["synapses"] for layer in found["layers"]) == whole == build.summary()["synapses"]
    assert found["stages"][-1]["synapses"] == whole and found["stages"][0]["name"] == "input"
    # Full matrices, 15 bits a synapse by the target where the weight has 8: 6 with weights of 4 bits and 4 with 3, rounded to bytes.
    assert [layer["bytes"] for layer in found["layers"]] == [None, 8, 5]


def test_limits_are_read_off_the_graph() -> None:
    target = load_target("loihi2")
    made = spikec.compile(tiny(), target="loihi2", calibrate=spikes())
    found = {row.what: row for row in limits(made.graph(), target, None)}
    weights = [node.weight for node in made.graph().nodes if isinstance(node, SYNAPTIC)]
    assert found["least weight"].used == min(w.min() for w in weights) and found["least weight"].available == -256
    assert found["largest weight"].used == max(w.max() for w in weights) and found["largest weight"].available == 254
    thresholds = [int(node.params["vth"].max()) for node in made.graph().neurons]
    assert found["largest threshold"].used == max(thresholds) and found["largest threshold"].available == 131071
    assert found["longest delay of a synapse"].used == 0 and found["longest delay of a synapse"].available == 62
    assert list(limits(tiny(), target, None)) == []


def loops() -> spikec.Graph:
    """A skip over a layer, a loop over one layer and another over two."""
    return graph(
        spike_input((4,)),
        dense("f1", "in", np.ones((3, 4), np.float32)),
        dense("r1", Ref("l1", delay=2), np.ones((3, 3), np.float32)),
        dense("r2", Ref("l2", delay=1), np.ones((3, 2), np.float32)),
        Add(name="a1", inputs=(Ref("f1"), Ref("r1"), Ref("r2"))),
        leaky("l1", "a1"),
        dense("f2", "l1", np.ones((2, 3), np.float32)),
        dense("skip", "in", np.ones((2, 4), np.float32)),
        Add(name="a2", inputs=(Ref("f2"), Ref("skip"))),
        leaky("l2", "a2"),
        out=["l2"],
    )


def test_edges_of_the_picture() -> None:
    found = {(edge.source, edge.target): (edge.steps, edge.synapses, edge.delay) for edge in edges(loops())}
    assert found == {
        ("in", "l1"): (["dense"], 12, 0),
        ("in", "l2"): (["dense"], 8, 0),
        ("l1", "l1"): (["dense"], 9, 2),
        ("l1", "l2"): (["dense"], 6, 0),
        ("l2", "l1"): (["dense"], 6, 1),
        ("l2", "→l2"): ([], 0, 0),
    }


def test_the_picture_is_svg_with_layers_from_left_to_right() -> None:
    text = draw(loops(), {"l1": 0.25})
    root = ElementTree.fromstring(text)
    boxes = [(g.find("text").text, float(g.find("rect").get("x"))) for g in root.iter("g")]
    assert [name for name, _ in boxes] == ["in", "l1", "l2", "l2"]  # the last is the output of this name
    assert [x for _, x in boxes] == sorted({x for _, x in boxes})
    assert [p.get("class") for p in root.iter("path")].count("back") == 2 and "25 %" in text
    width, height = (float(v) for v in root.get("viewBox", "").split()[2:])
    for found in re.findall(
        r"[MC ]([0-9.-]+) ([0-9.-]+)", " ".join(p.get("d", "") for p in root.iter("path") if p.get("class") != "tip")
    ):
        assert 0 <= float(found[0]) <= width and 0 <= float(found[1]) <= height


def test_many_paths_between_two_layers_do_not_multiply() -> None:
    lines = ["%x = input : spike<2>", "%a0 = add(%x, %x) : graded<2>"]
    lines += [f"%a{k} = add(%a{k - 1}, %a{k - 1}) : graded<2>" for k in range(1, 60)]
    (edge,) = edges(sir("\n".join([*lines, "output %a59"])))
    assert (edge.source, edge.target) == ("x", "→a59")


def test_the_command(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", x=spikes(2, 6))
    assert cli.main(["report", "build"]) == 0 and capsys.readouterr().out == "build/report.html\n"
    assert cli.main(["report", "build", "--input", "x.npz", "-o", "new.html", "--json"]) == 0
    assert capsys.readouterr().out == '{\n  "report": "new.html"\n}\n'
    assert "over 2 samples of 6 steps" in Page(Path("new.html").read_text(encoding="utf-8")).words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "build", "--input", "x.npz"], "error[SPK001]: a report on other data needs a place"),
        (["report", "build", "-o", "nowhere/x.html"], "error[SPK008]: nowhere/x.html: cannot be written"),
        (["report", "nowhere"], "error[SPK002]: nowhere: no such build folder"),
        (["report", "build", "--input", "nowhere.npz", "-o", "x.html"], "error[SPK002]"),
    ],
)
def test_mistakes(
    build: Build,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", x=spikes(2, 6))
    assert cli.main(words) == 1
    assert message in capsys.readouterr().err


def test_a_build_that_is_not_saved_has_no_place(tmp_path: Path) -> None:
    made = fixed_build(tmp_path)
    for call, code in ((lambda: made.report(), "SPK404"), (lambda: made.report(x=spikes()), "SPK001")):
        with pytest.raises(CompileError) as caught:
            call()
        assert caught.value.code == code
    with pytest.raises(CompileError) as caught:
        made.report(tmp_path / "no" / "r.html")
    assert caught.value.code == "SPK008"
