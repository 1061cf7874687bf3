"""MODEL as file.py:name: the user's own code is run by path, and nothing of it stays behind."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import spikec
from spikec import models
from spikec.diagnostics import CompileError
from spikec.models import user_code

NET = """
import dataclasses
import torch
from helper import WIDTH

@dataclasses.dataclass
class Options:
    width: "int" = WIDTH

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(Options().width, 2)

    def forward(self, x):
        from late import scale
        return self.fc(x) * scale

net = Net()

def make():
    return Net()

def example_input():
    return torch.ones(1, 5, WIDTH)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, width in (("a", 3), ("b", 4)):
        place = tmp_path / name
        place.mkdir()
        (place / "net.py").write_text(NET)
        (place / "helper.py").write_text(f"WIDTH = {width}\n")
        (place / "late.py").write_text(f"scale = {width}\n")
    return tmp_path


@pytest.mark.parametrize("name", ["net", "Net", "make"])
def test_instance_class_and_function(folder: Path, name: str) -> None:
    with user_code(f"{folder}/a/net.py:{name}") as found:
        assert type(found.model).__name__ == "Net" and found.file == "net.py"
        assert found.example_input.shape == (1, 5, 3)
        assert found.model(found.example_input).shape == (1, 5, 2)  # imports a neighbour only now


def test_nothing_stays_behind(folder: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    for name, width in (("a", 3), ("b", 4), ("a", 3)):
        with user_code(f"{folder}/{name}/net.py:Net") as found:
            assert found.model.fc.weight.shape == (2, width)  # not the other folder's helper
            found.model(found.example_input)
            assert "helper" in sys.modules and sys.path[0] == str(folder / name)
        assert sys.path == path
        assert not {"net", "helper", "late"} & set(sys.modules)
    assert all("spikec_model" not in name for name in set(sys.modules) - modules)


def test_a_module_of_the_same_name_comes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = type(sys)("helper")
    mine.WIDTH = 7
    monkeypatch.setitem(sys.modules, "net", mine)
    (folder / "a" / "helper.py").write_text("import sys\nsys.modules['net']\nWIDTH = 3\n")
    with user_code(f"{folder}/a/net.py:Net"):
        pass
    assert sys.modules["net"] is mine


def test_tidy_after_an_error(folder: Path) -> None:
    path = list(sys.path)
    (folder / "a" / "late.py").write_text("raise RuntimeError('late')")
    (folder / "a" / "bad.py").write_text("import helper\nimport late\n")
    with pytest.raises(CompileError, match=r"bad\.py:2: error\[SPK003\]: importing the file failed: RuntimeError: late"):
        with user_code(f"{folder}/a/bad.py:net"):
            pass
    assert sys.path == path and not {"bad", "helper", "late"} & set(sys.modules)


def test_a_file_named_like_a_library_does_not_replace_it(folder: Path) -> None:
    import random

    (folder / "a" / "random.py").write_text(NET)
    with user_code(f"{folder}/a/random.py:Net") as found:
        assert type(found.model).__module__ == "spikec_model_random"
    assert sys.modules["random"] is random


def test_a_model_needs_an_example(folder: Path) -> None:
    path = folder / "a" / "net.py"
    path.write_text(path.read_text().replace("def example_input", "def other"))
    with pytest.raises(CompileError, match=r"SPK001.*an example input is needed") as caught:
        spikec.compile(f"{path}:net", target="reference")
    assert "define example_input in the model's file" in str(caught.value)
    with pytest.raises(CompileError, match=r"SPK001.*an example input is needed"):
        spikec.compile(torch.nn.Linear(2, 2), target="reference")


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(CompileError, match=r"SPK003.*not dict"):
        spikec.compile({}, np.zeros((1, 2, 3)), target="reference")
    with pytest.raises(CompileError, match=r"SPK003.*not type") as caught:
        spikec.compile(torch.nn.Linear, np.zeros((1, 2, 3)), target="reference")
    assert "instantiate it" in str(caught.value)


def test_without_torch_the_remedy_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return importlib.import_module(name)

    monkeypatch.setattr(models, "import_module", absent)
    with pytest.raises(CompileError) as caught:
        spikec.compile(f"{folder}/a/net.py:Net", target="reference")
    assert str(caught.value) == (
        "error[SPK009]: a torch model needs PyTorch, which is not installed\n  fix: pip install 'spikec[torch]'"
    )


STRANGE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3, bias=False)
        self.attention = nn.MultiheadAttention(3, 1)

    def forward(self, x):
        v, out = torch.zeros(x.shape[0], 3), []
        for t in range(x.shape[1]):
            v = 0.5 * v + self.fc(x[:, t])
            s = (v > 0.5).float()
            v = v * (1 - s)
            out.append(s)
        return torch.stack(out, 1)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(STRANGE)
    return tmp_path / "own.py"


def test_compile_from_a_file_equals_the_module(own: Path) -> None:
    torch.manual_seed(1)
    with user_code(f"{own}:Net") as found:
        net = found.model
        x = (torch.rand(3, 12, 3) < 0.5).float()
        build = spikec.compile(net, x.numpy().astype(np.int8), target="host", name="mine")
        result = build.run(x, record="all")
        (output,) = result.outputs.values()
        assert np.array_equal(output, net(x).numpy())
        assert build.graph().name == "mine"
        assert spikec.trace(net, x, name="mine") == build.graph("input")
        assert spikec.trace(net, x, input_kind="value").inputs[0].type.kind == "value"
    (population,) = build.graph().neurons
    assert population.loc is not None and population.loc.file == "own.py"


def test_weights_are_loaded_into_a_copy(own: Path, tmp_path: Path) -> None:
    with user_code(f"{own}:Net") as found:
        net, other = found.model, type(found.model)()
        torch.save(other.state_dict(), tmp_path / "w.pt")
        before = net.fc.weight.clone()
        x = torch.ones(1, 5, 3)
        build = spikec.compile(net, x, target="reference", weights=tmp_path / "w.pt")
        assert build.graph("input") == spikec.compile(other, x, target="reference").graph("input")
        assert torch.equal(net.fc.weight, before)
    with pytest.raises(CompileError, match="SPK002"):
        spikec.compile(f"{own}:Net", x, target="reference", weights="nowhere.pt")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(CompileError, match="SPK112"):
        spikec.compile(f"{own}:Net", x, target="reference", weights=tmp_path / "w.pt")


def test_the_command_line_compiles_a_file(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from spikec import cli

    np.savez(tmp_path / "e.npz", x=np.ones((1, 6, 3)))
    words = ["compile", f"{own}:Net", "-o", str(tmp_path / "out"), "--target", "reference", "--dt", "2ms"]
    for example in (["--example", str(tmp_path / "e.npz")], ["--input-shape", "1,6,3"], ["--input-shape", "1x6x3"]):
        assert cli.main([*words, *example]) == 0, capsys.readouterr().err
    assert spikec.load(tmp_path / "out").graph().dt == 0.002
    assert cli.main([*words, "--input-shape", "1,6,3", "--input-kind", "value"]) == 0
    assert spikec.load(tmp_path / "out").graph().inputs[0].type.kind == "value"
    assert cli.main([*words, "--input-shape", "1,6,3", "--input-kind", "sound"]) == 1
    assert cli.main([*words, "--input-shape", "1,6,3", "--time-axis", "1", "--batch-axis", "0"]) == 0
