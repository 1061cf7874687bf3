"""Other weights without a new trace: the very graph that a new trace gives, or a refusal."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

import spikec
from spikec.diagnostics import CompileError
from spikec.frontend.torch_trace import trace, trace_model
from spikec.frontend.weights import load_weights, with_weights


def _strangers() -> Any:
    """The models of test_strangers.py."""
    spec = importlib.util.spec_from_file_location("strangers", Path(__file__).with_name("test_strangers.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


strangers = _strangers()


def changed(model: nn.Module, seed: int, only: tuple[type, ...] | None = None) -> nn.Module:
    """A copy with other numbers in every tensor of the state, or in those of some layers only."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for path, module in other.named_modules():
        if only is not None and not isinstance(module, only):
            continue
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_floating_point():
                value = torch.randint(1, 9, tensor.shape, generator=generator).to(tensor.dtype) / 8
                tensor.data.copy_(value if "var" in name else value - 0.5 if tensor.ndim else value)
        assert path is not None
    return other


#: Styles whose layers can all be given other weights; in the others a weight also becomes something else.
PLAIN = {
    *(
        "TutorialLoop",
        "BatchFirstWhile",
        "Unbind",
        "IterateDict",
        "Hidden",
        "Recurrent",
        "RecurrentAfter",
        "Hoisted",
        "HoistedFlat",
    ),
    *(
        "HoistedBatchFirst",
        "Cuba",
        "OwnCell",
        "ConstantFrame",
        "ConstantFrameHoisted",
        "ConstantFrameByHand",
        "SharedTwice",
        "Concat",
    ),
    *(
        "ConvNet",
        "TwoInputs",
        "Adaptive",
        "Readouts",
        "DelayLine",
        "OneStep",
        "Preallocated",
        "LateralInhibition",
        "HeadAfterTheLoop",
    ),
    *("SpikeElementWise", "Tutorial7", "UpAndDown", "RolledBuffer", "DividedByLength", "PooledMean"),
}


@pytest.mark.parametrize(("cls", "shape", "options"), strangers.CASES, ids=[case[0].__name__ for case in strangers.CASES])
def test_the_graph_of_a_new_trace(cls: Any, shape: Any, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = strangers.dyadic(cls().eval())
    dtype = torch.float64 if cls is strangers.Double else torch.float32
    many = isinstance(shape[0], tuple)
    examples = tuple(strangers.example_for(s, dtype=dtype) for s in (shape if many else (shape,)))
    example = examples if many else examples[0]
    graph, origins = trace_model(model, example, **options)
    file = tmp_path / "w.pt"
    torch.save(model.state_dict(), file)
    assert with_weights(graph, origins, file) == graph
    layers = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)
    for seed, only in ((1, layers), (2, None)):
        other = changed(model, seed, only)
        torch.save(other.state_dict(), file)
        try:
            found = with_weights(graph, origins, file)
        except CompileError as error:
            assert error.code == "SPK112" and "need a new trace" in str(error)
            assert only is None or cls.__name__ not in PLAIN, str(error)
            continue
        fresh = trace(other, example, **options)
        assert found == fresh and found.fingerprint == fresh.fingerprint


class Tricky(nn.Module):
    """Weights that are more than a layer's weights, each in a way of its own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.fc, self.rec = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("order", torch.tensor([0, 1, 2, 3]))
        self.view = self.rec.weight.data[0] if way == "view" else None
        if way == "tied":
            self.rec.weight = self.fc.weight
        if way == "symmetric":
            self.fc.weight.data = torch.eye(4)
        if way == "equal":
            self.fc.bias.data.zero_()
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        way, spk, out = self.way, torch.zeros(x.shape[0], 4), []
        mem = self.rec(spk) if way == "initial" else spk
        gain = self.fc.weight.max().item() if way == "number" else 1.0
        if way == "branch" and self.fc.weight[0, 0] > 0:
            gain = 2.0
        for t in range(x.shape[1]):
            cur = x[:, t] @ self.fc.weight.T if way in ("matmul", "symmetric") else self.fc(x[:, t]) * gain
            if way == "product":
                cur = F.linear(x[:, t], self.fc.weight * 1.0, self.fc.bias)
            if way == "equal":
                cur = F.linear(x[:, t], self.rec.weight, torch.zeros(4)) + self.fc(x[:, t])
            if way == "order":
                cur = cur[:, self.order]
            if way == "view":
                cur = cur * self.view
            spk, mem = self.lif(cur + self.rec(spk), mem)
            out.append(spk)
        return torch.stack(out, 1)


WAYS = {
    "plain": "",
    "tied": "",
    "equal": "",
    "initial": "rec.",
    "number": "fc.weight",
    "branch": "fc.weight",
    "matmul": "fc.weight",
    "symmetric": "fc.weight",
    "product": "fc.",
    "view": "rec.weight",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_that_is_also_something_else_needs_a_new_trace(way: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = (torch.rand(2, 6, 4) < 0.5).float()
    model = Tricky(way).eval()
    graph, origins = trace_model(model, x)
    other = changed(model, 3, (nn.Linear,))
    torch.save(other.state_dict(), tmp_path / "w.pt")
    if WAYS[way]:
        with pytest.raises(CompileError) as caught:
            with_weights(graph, origins, tmp_path / "w.pt")
        text = str(caught.value)
        assert f"note: {WAYS[way]}" in text and "has changed, and the graph holds something that was computed from it" in text
        assert text.endswith("fix: compile the torch model itself with these weights")
    else:
        assert with_weights(graph, origins, tmp_path / "w.pt") == trace(other, x)


def test_an_index_that_is_part_of_the_state(tmp_path: Path) -> None:
    model = Tricky("order").eval()
    x = (torch.rand(2, 6, 4) < 0.5).float()
    graph, origins = trace_model(model, x)
    state = model.state_dict()
    torch.save({**state, "order": torch.tensor([3, 2, 1, 0])}, tmp_path / "w.pt")
    with pytest.raises(CompileError, match="order has changed"):
        with_weights(graph, origins, tmp_path / "w.pt")


def test_batch_norms_that_were_fresh(tmp_path: Path) -> None:
    """All channels have the same numbers at first, and their own after training."""
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3, bias=False), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3, affine=False)
    )
    example = torch.rand(2, 2, 6)
    options: dict[str, Any] = {"batch_axis": 0, "steps": 4}
    graph, origins = trace_model(model.eval(), example, **options)
    assert origins is not None and len(origins["norms"]) == 2
    other = changed(model, 5)
    torch.save({f"module.{key}": item for key, item in other.state_dict().items()}, tmp_path / "w.pt")
    assert with_weights(graph, origins, tmp_path / "w.pt") == trace(other, example, **options)


# -------------------------------------------------------------------------------------------------------------- interface


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(beta=0.5, learn_beta=True, reset_mechanism="zero", reset_delay=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mem, out = self.lif.init_leaky(), []
        for t in range(x.shape[1]):
            spk, mem = self.lif(self.fc(x[:, t]), mem)
            out.append(spk)
        return torch.stack(out, 1)


def test_a_build_is_compiled_again_with_other_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = (torch.rand(4, 12, 4) < 0.5).float()
    model = Net()
    build = spikec.compile(model, x, target="host", bits=6, calibrate=x.numpy())
    build.save(tmp_path / "first")
    other = changed(model, 1, (nn.Linear,))
    torch.save(other.state_dict(), tmp_path / "w.pt")
    wanted = spikec.compile(other, x, target="host", bits=6, calibrate=x.numpy())
    for source in (build, spikec.load(tmp_path / "first"), tmp_path / "first", str(tmp_path / "first")):
        again = spikec.compile(source, weights=tmp_path / "w.pt", calibrate=x.numpy())
        assert again.target.name == "host" and again.options == {"bits": 6}
        assert again.graph("input") == wanted.graph("input")
        assert again.graph() == wanted.graph()
    assert (
        spikec.compile(build, target="loihi2", calibrate=x.numpy()).graph() == spikec.compile(model, x, calibrate=x.numpy()).graph()
    )
    other.lif.beta.data.fill_(0.75)
    torch.save(other.state_dict(), tmp_path / "w.pt")
    with pytest.raises(CompileError, match=r"SPK112.*need a new trace\n  note: lif\.beta has changed"):
        spikec.compile(build, weights=tmp_path / "w.pt")
    with pytest.raises(CompileError, match=r"SPK001.*steps belongs to a torch model; a build is a graph already"):
        spikec.compile(build, steps=3)


def test_a_build_of_a_file_has_no_weights_to_change(tmp_path: Path) -> None:
    graph = trace(Net(), torch.ones(1, 5, 4))
    build = spikec.compile(graph, target="reference")
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    with pytest.raises(CompileError, match=r"SPK112.*does not say which of its arrays are which weights"):
        spikec.compile(build, weights=tmp_path / "w.pt")


def test_the_command_line_compiles_a_build_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from spikec import cli

    torch.manual_seed(0)
    model = Net()
    spikec.compile(model, torch.ones(1, 5, 4), target="reference").save(tmp_path / "first")
    other = changed(model, 1, (nn.Linear,))
    torch.save({"epoch": 3, "state_dict": other.state_dict()}, tmp_path / "w.pt")
    assert cli.main(["compile", str(tmp_path / "first"), "-o", str(tmp_path / "second"), "--weights", str(tmp_path / "w.pt")]) == 0
    assert "for reference" in capsys.readouterr().out
    assert spikec.load(tmp_path / "second").graph("input") == trace(other, torch.ones(1, 5, 4))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, text in ((tmp_path / "nowhere.pt", "no such file"), (tmp_path, "a folder, not a file")):
        with pytest.raises(CompileError) as caught:
            load_weights(Net(), path)
        assert str(caught.value) == f"error[SPK002]: {path}: {text}"


def test_checkpoints_that_need_more_than_weights(tmp_path: Path) -> None:
    """Whatever is pickled beside the tensors is never run; the message says what to do."""
    ran = tmp_path / "ran"

    class Run:
        def __reduce__(self) -> Any:
            return (open, (str(ran), "w"))

    for item in (Run(), nn.Linear(2, 2), {1, 2}):
        torch.save({"state_dict": Net().state_dict(), "more": item}, tmp_path / "w.pt")
        if isinstance(item, set):
            load_weights(Net(), tmp_path / "w.pt")
            continue
        with pytest.raises(CompileError) as caught:
            load_weights(Net(), tmp_path / "w.pt")
        assert str(caught.value) == (
            f"error[SPK112]: {tmp_path / 'w.pt'} cannot be loaded as weights: it holds Python objects, not only tensors\n"
            "  note: loading them could run any code, so that spikec never does\n"
            "  fix: save the weights alone: torch.save(model.state_dict(), path)"
        )
    assert not ran.exists()
