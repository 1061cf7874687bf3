"""Every operator against onnxruntime, models out of torch's exporter, and files that are refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import external_data_helper, helper, numpy_helper
from torch import nn

import spikec
from spikec.diagnostics import CompileError
from spikec.driver import read_model
from spikec.frontend.onnx import SUPPORT, read_onnx
from spikec.frontend.onnx.read import HANDLERS
from spikec.ir.interpret import interpret
from spikec.ir.types import Array
from spikec.ledger import Ledger
from support.onnx_models import FLOAT, model, op, run

RNG = np.random.default_rng(0)
F = np.float32


def ints(*shape: int) -> Array:
    """Small whole numbers: every sum of products of them is exact."""
    return RNG.integers(-3, 4, shape).astype(F)


W23, B2, C4 = ints(2, 3), ints(2), ints(4, 2, 3, 3)
I64 = np.int64
# Name: nodes, the input's shape, weights, whether the numbers are exact.
CASES: dict[str, tuple[list[Any], tuple[int, ...], dict[str, Any]]] = {
    "Gemm": ([op("Gemm", "x w b", "y", transB=1)], (3,), {"w": W23, "b": B2}),
    "Gemm alpha beta": ([op("Gemm", "x w b", "y", alpha=0.5, beta=2.0)], (3,), {"w": W23.T.copy(), "b": ints(1, 2)}),
    "Gemm scalar bias": ([op("Gemm", "x w b", "y", transB=1)], (3,), {"w": W23, "b": ints(1)}),
    "Gemm no bias": ([op("Gemm", "x w", "y", transB=1)], (3,), {"w": W23}),
    "MatMul": ([op("MatMul", "x w", "y")], (3,), {"w": ints(3, 5)}),
    "MatMul rows": ([op("MatMul", "x w", "m"), op("Add", "m b", "y")], (4, 3), {"w": ints(3, 5), "b": ints(5)}),
    "Conv": ([op("Conv", "x w b", "y", strides=[2, 1], pads=[1, 2, 1, 2])], (2, 6, 5), {"w": C4, "b": ints(4)}),
    "Conv groups dilation": ([op("Conv", "x w", "y", group=2, dilations=[2, 1], kernel_shape=[3, 3])], (4, 7, 6), {"w": C4}),
    "Conv 1-d": ([op("Conv", "x w", "y", strides=[2])], (2, 9), {"w": ints(3, 2, 4)}),
    "Conv uneven": ([op("Conv", "x w", "y", pads=[0, 1, 2, 0], strides=[2, 2])], (2, 6, 5), {"w": C4}),
    "Conv uneven dilation": ([op("Conv", "x w", "y", pads=[0, 4, 2, 0], dilations=[2, 2])], (2, 8, 7), {"w": C4}),
    "Conv SAME_UPPER": ([op("Conv", "x w", "y", auto_pad="SAME_UPPER", strides=[2, 2])], (2, 6, 5), {"w": C4}),
    "Conv SAME_LOWER": ([op("Conv", "x w", "y", auto_pad="SAME_LOWER", strides=[2, 3])], (2, 6, 7), {"w": C4}),
    "Conv VALID": ([op("Conv", "x w", "y", auto_pad="VALID")], (2, 6, 5), {"w": C4}),
    "BatchNormalization": ([op("BatchNormalization", "x s b m v", "y", epsilon=0.0)], (2, 3, 3), {"s": ints(2), "b": ints(2), "m": ints(2), "v": np.asarray([4.0, 0.25], F)}),
    "BatchNormalization features": ([op("BatchNormalization", "x s b m v", "y", epsilon=0.0)], (2,), {"s": ints(2), "b": ints(2), "m": ints(2), "v": np.asarray([4.0, 0.25], F)}),
    "Relu": ([op("Relu", "x", "y")], (3,), {}),
    "Clip": ([op("Clip", "x lo hi", "y")], (3,), {"lo": F(0), "hi": F(2)}),
    "Clip low": ([op("Clip", "x lo", "y")], (3,), {"lo": F(-1)}),
    "Clip high": ([op("Clip", "x - hi", "y")], (3,), {"hi": F(1)}),
    "MaxPool": ([op("MaxPool", "x", "y", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 0])], (2, 6, 5), {}),
    "MaxPool 1-d": ([op("MaxPool", "x", "y", kernel_shape=[2])], (2, 6), {}),
    "MaxPool ceil": ([op("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], (2, 6, 4), {}),
    "AveragePool": ([op("AveragePool", "x", "y", kernel_shape=[2, 2], strides=[2, 2])], (2, 6, 4), {}),
    "AveragePool counted": ([op("AveragePool", "x", "y", kernel_shape=[4, 2], pads=[1, 1, 1, 1], count_include_pad=1)], (2, 6, 4), {}),
    "GlobalAveragePool": ([op("GlobalAveragePool", "x", "y")], (2, 4, 4), {}),
    "GlobalMaxPool": ([op("GlobalMaxPool", "x", "y")], (2, 4, 4), {}),
    "ReduceMean": ([op("ReduceMean", "x a", "y", keepdims=0)], (2, 4, 4), {"a": np.asarray([2, 3])}),
    "ReduceMean kept": ([op("ReduceMean", "x a", "y", keepdims=1)], (2, 4), {"a": np.asarray([-1])}),
    "Flatten": ([op("Flatten", "x", "y")], (2, 4, 4), {}),
    "Flatten negative": ([op("Flatten", "x", "y", axis=-1)], (4,), {}),
    "Reshape": ([op("Reshape", "x s", "y")], (2, 6), {"s": np.asarray([0, 3, -1])}),
    "Reshape -1": ([op("Reshape", "x s", "y")], (2, 6), {"s": np.asarray([-1, 12])}),
    "Reshape fixed batch": ([op("Reshape", "x s", "y")], (2, 6), {"s": np.asarray([2, 12])}),
    "Add channels": ([op("Add", "x b", "y")], (2, 3, 3), {"b": ints(2, 1, 1)}),
    "Add columns": ([op("Add", "b x", "y")], (2, 3), {"b": ints(1, 1, 3)}),
    "Add number": ([op("Add", "x b", "y")], (2, 3), {"b": ints()}),
    "Add wires": ([op("Relu", "x", "r"), op("Add", "x r", "y")], (3,), {}),
    "Sub": ([op("Sub", "x b", "y")], (3,), {"b": ints(3)}),
    "Sub from": ([op("Sub", "b x", "y")], (3,), {"b": ints(3)}),
    "Sub wires": ([op("Relu", "x", "r"), op("Sub", "r x", "y")], (3,), {}),
    "Mul": ([op("Mul", "x b", "y")], (2, 3), {"b": ints(2, 3)}),
    "Div": ([op("Div", "x b", "y")], (3,), {"b": np.asarray([2.0, -0.5, 8.0], F)}),
    "Sum": ([op("Sum", "x x x", "y")], (3,), {}),
    "Concat": ([op("Relu", "x", "r"), op("Concat", "x r", "y", axis=1)], (2, 3), {}),
    "Concat last": ([op("Relu", "x", "r"), op("Concat", "x r", "y", axis=-1)], (2, 3), {}),
    "Transpose": ([op("Transpose", "x", "y", perm=[0, 3, 1, 2])], (2, 3, 4), {}),
    "Squeeze": ([op("Squeeze", "x a", "y")], (2, 1, 4), {"a": np.asarray([2])}),
    "Squeeze all": ([op("Squeeze", "x", "y")], (1, 1, 4), {}),
    "Unsqueeze": ([op("Unsqueeze", "x a", "y")], (2, 3), {"a": np.asarray([1, -1])}),
    "Slice": ([op("Slice", "x b e a s", "y")], (4, 5), {"b": np.asarray([1, 4]), "e": np.asarray([3, -100]), "a": np.asarray([1, -1]), "s": np.asarray([1, -2])}),
    "Gather": ([op("Gather", "x i", "y", axis=1)], (4, 2), {"i": np.asarray([2, 0, -1])}),
    "Gather one": ([op("Gather", "x i", "y", axis=2)], (4, 2), {"i": np.asarray(1)}),
    "Identity Dropout Cast": ([op("Identity", "x", "a"), op("Dropout", "a", "b"), op("Cast", "b", "y", to=FLOAT)], (3,), {}),
    "Constant": ([op("Constant", "", "c", value=numpy_helper.from_array(ints(3))), op("Mul", "x c", "y")], (3,), {}),
    "Constant floats": ([op("Constant", "", "c", value_floats=[1.0, 2.0, 4.0]), op("Mul", "x c", "y")], (3,), {}),
    "shape arithmetic": (
        [
            op("Shape", "x", "s"), op("Gather", "s zero", "n", axis=0), op("Unsqueeze", "n zeros", "n1"), op("Constant", "", "m", value_ints=[-1]),
            op("Concat", "n1 m", "t", axis=0), op("Reshape", "x t", "y"),
        ],
        (2, 6), {"zero": np.asarray(0), "zeros": np.asarray([0])},
    ),
    "shape slices": ([op("Shape", "x", "s", start=1), op("Slice", "s zeros one", "h"), op("Concat", "z h m", "t", axis=0), op("Reshape", "x t", "y")], (2, 6), {"zeros": np.asarray([0]), "one": np.asarray([1]), "z": np.asarray([0]), "m": np.asarray([-1])}),
}  # fmt: skip


def compared(path: Path, made: Any, shape: tuple[int, ...], exact: bool = True) -> None:
    onnx.save(made, path)
    graph = read_onnx(path)
    x = RNG.integers(-5, 6, (2, *shape)).astype(F)
    wanted = run(made, {"x": x})["y"]
    found = interpret(graph, {"x": x[:, None]}).outputs["y"][:, 0]
    assert found.shape == wanted.shape
    assert np.array_equal(found, wanted) if exact else np.allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_operator_equals_onnxruntime(tmp_path: Path, name: str) -> None:
    nodes, shape, weights = CASES[name]
    batch = 2 if "fixed" in name else "n"
    compared(tmp_path / "m.onnx", model(nodes, (batch, *shape), weights), shape)


@pytest.mark.parametrize("kernel", [[3, 3], [2, 4]])
def test_an_average_that_leaves_the_padding_out(tmp_path: Path, kernel: list[int]) -> None:
    node = op("AveragePool", "x", "y", kernel_shape=kernel, pads=[1, 1, 1, 1], strides=[2, 1])
    compared(tmp_path / "m.onnx", model([node], ("n", 2, 6, 5)), (2, 6, 5), exact=False)


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 21, 23])
def test_operator_sets(tmp_path: Path, opset: int) -> None:
    mean = [op("ReduceMean", "x", "m", axes=[2, 3], keepdims=0)] if opset < 18 else [op("ReduceMean", "x a", "m", keepdims=0)]
    nodes = [*mean, op("BatchNormalization", "m s s s s", "n"), op("Relu", "n", "y")]
    weights = {"s": np.ones(2, F), **({} if opset < 18 else {"a": np.asarray([2, 3])})}
    compared(tmp_path / "m.onnx", model(nodes, ("n", 2, 4, 4), weights, opset=opset), (2, 4, 4), exact=False)


def test_double_precision(tmp_path: Path) -> None:
    made = model(
        [op("Gemm", "x w", "g", transB=1), op("Relu", "g", "y")],
        ("n", 3),
        {"w": W23.astype(np.float64)},
        element=onnx.TensorProto.DOUBLE,
    )
    onnx.save(made, tmp_path / "m.onnx")
    graph = read_onnx(tmp_path / "m.onnx")
    x = RNG.normal(size=(4, 3))
    assert np.allclose(interpret(graph, {"x": x[:, None]}).outputs["y"][:, 0], run(made, {"x": x})["y"], rtol=1e-14)
    assert graph.type_of(graph.output("y")).dtype == "f64"


def test_a_softmax_at_the_end_is_left_out_and_told(tmp_path: Path) -> None:
    onnx.save(model([op("Gemm", "x w", "g", transB=1), op("Softmax", "g", "y", axis=1)], ("n", 3), {"w": W23}), tmp_path / "m.onnx")
    ledger = Ledger()
    graph = read_onnx(tmp_path / "m.onnx", ledger=ledger)
    assert [entry.what for entry in ledger] == ["the output 'y' is what enters the Softmax: the order of the classes is the same"]
    assert [node.op for node in graph.nodes] == ["input", "dense"]


class Branches(nn.Module):
    """Two ways that meet again, with what exporters make of flatten, view and adaptive pools."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2))
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.out = nn.Sequential(nn.Dropout(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        return self.out(self.pool(x).view(x.size(0), -1))


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_model_out_of_torch(tmp_path: Path, dynamic: bool) -> None:
    net, x = Branches().eval(), torch.rand(3, 3, 8, 8)
    axes = {"x": {0: "batch"}, "y": {0: "batch"}} if dynamic else None
    torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes)
    graph = read_onnx(tmp_path / "net.onnx")
    with torch.no_grad():
        wanted = net(x).numpy()
    assert np.allclose(interpret(graph, {"x": x.numpy()[:, None]}).outputs["y"][:, 0], wanted, atol=1e-6)
    build = spikec.compile(tmp_path / "net.onnx", target="host", calibrate=x.numpy(), steps=300, percentile=100.0, dt=1e-3)
    assert build.stage_names == ["input", "fold-scale", "ann-to-snn", "canonicalise"]
    assert build.graph().dt == 1e-3
    spiking = build.run(np.repeat(x.numpy()[:, None], 300, axis=1)).outputs["y"][:, -1] / 300
    assert np.abs(spiking - wanted).max() < 0.05
    kept = spikec.compile(tmp_path / "net.onnx", target="reference", spiking=False)
    assert kept.stage_names == ["input", "canonicalise"]
    with pytest.raises(CompileError, match="needs calibration data: its thresholds are balanced"):
        spikec.compile(tmp_path / "net.onnx", target="host")


def test_spikes_of_an_encoder_as_input(tmp_path: Path) -> None:
    onnx.save(model([op("Gemm", "x w", "g", transB=1), op("Relu", "g", "y")], ("n", 3), {"w": np.abs(W23)}), tmp_path / "m.onnx")
    spikes = (RNG.random((4, 50, 3)) < 0.5).astype(F)
    build = spikec.compile(tmp_path / "m.onnx", target="host", calibrate=spikes, input_kind="spike")
    assert build.graph("input").inputs[0].type.kind == "spike"
    assert build.verify(spikes, backends=["numpy"]).ok


# ------------------------------------------------------------------------------------------------------------- support


def test_the_support_table_has_a_row_for_every_operator() -> None:
    listed = {row.module for row in SUPPORT if row.status != "refused"}
    assert set(HANDLERS) <= listed
    tested = {node.op_type for nodes, _, _ in CASES.values() for node in nodes} | {"Softmax", "LogSoftmax"}
    assert set(HANDLERS) <= tested


# ------------------------------------------------------------------------------------------------------------ bad files


def message(path: Path, made: Any = None, **options: Any) -> str:
    if made is not None:
        path.write_bytes(made.SerializeToString())
    with pytest.raises(CompileError) as caught:
        read_model(path, **options)
    return str(caught.value)


RELU = [op("Relu", "x", "y")]
BAD: dict[str, tuple[Any, str]] = {
    "unknown operators, all at once": (
        model([op("Sigmoid", "x", "a"), op("Gelu", "a", "y")], ("n", 3)),
        "m.onnx (node 0): error[SPK102]: the operator Sigmoid ('a') is not supported\n  fix: supported are Add, AveragePool,",
    ),
    "the second of them": (model([op("Sigmoid", "x", "a"), op("Gelu", "a", "y", name="last")], ("n", 3)), "m.onnx (last): error[SPK102]: the operator Gelu ('last')"),
    "another domain": (model([op("Relu", "x", "y", domain="com.microsoft")], ("n", 3)), "the operator com.microsoft::Relu ('y') is not supported"),
    "control flow": (model([op("If", "x", "y")], ("n", 3)), "note: a network that runs in steps by itself, or takes branches"),
    "quantised": (model([op("DequantizeLinear", "x s", "y")], ("n", 3), {"s": F(1)}), "fix: give the model as it was before quantisation, in float32"),
    "old operators": (model(RELU, ("n", 3), opset=11), "operator set 11; spikec reads 13 to"),
    "new operators": (model(RELU, ("n", 3), opset=999), "operator set 999; the installed onnx package knows 13 to"),
    "int8 input": (model(RELU, ("n", 3), element=onnx.TensorProto.INT8), "m.onnx (x): error[SPK309]: the input 'x' holds INT8; spikec reads FLOAT and DOUBLE"),
    "float16": (model(RELU, ("n", 3), element=onnx.TensorProto.FLOAT16), "the input 'x' holds FLOAT16"),
    "mixed": (model([op("Gemm", "x w", "y", transB=1)], ("n", 3), {"w": W23.astype(np.float64)}), "Gemm 'y': operand 2 holds float64 where the input holds float32"),
    "open size": (model(RELU, ("n", 3, "height")), "the input 'x': the size of axis 2 (height) is left open"),
    "no batch": (model(RELU, ()), "the input 'x' has no batch axis"),
    "no shape": (model(RELU, (2, 2), out="nothing"), "the output 'nothing' is computed by no operator"),
    "unknown name": (model([op("Relu", "z", "y")], ("n", 3)), "Relu 'y': reads 'z', which nothing before it computes"),
    "constant output": (model([op("Identity", "w", "y")], ("n", 3), {"w": W23}), "the output 'y' does not depend on the input"),
    "missing attribute": (model([op("Concat", "x x", "y")], ("n", 3)), "Concat 'y': is malformed (KeyError: 'axis')"),
    "missing weight": (model([op("Gemm", "x", "y")], ("n", 3)), "Gemm 'y': operand 2 is missing"),
    "wrong weight": (model([op("Gemm", "x w", "y", transB=1)], ("n", 4), {"w": W23}), "%y: the weight takes 3 inputs but %x has shape (4,)"),
    "3-d convolution": (model([op("Conv", "x w", "y")], ("n", 2, 5, 5, 5), {"w": ints(2, 2, 3, 3, 3)}), "a window of 3 axes over 3; 1 and 2 axes of space are supported"),
    "computed weight": (model([op("MatMul", "x x", "y")], ("n", 3)), "MatMul 'y': operand 2 depends on the input; only constants are supported there"),
    "product": (model([op("Mul", "x x", "y")], ("n", 3)), "the product or quotient of two values that depend on the input"),
    "broadcast": (model([op("Relu", "x", "r"), op("Flatten", "x", "f"), op("Add", "r f", "y")], ("n", 2, 3)), "the operands have shapes (2, 3) and (6,)"),
    "constant too large": (model([op("Add", "x b", "y")], ("n", 3), {"b": ints(2, 3)}), "a constant of shape (2, 3) and values of shape (batch, 3)"),
    "training batch norm": (model([op("BatchNormalization", "x s s s s", "y", training_mode=1)], ("n", 2), {"s": B2}), "is in training mode"),
    "training dropout": (model([op("Dropout", "x r t", "y")], ("n", 2), {"r": F(0.5), "t": np.asarray(True)}), "drops at random"),
    "ceil": (model([op("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], ("n", 1, 5, 5)), "ceil_mode makes windows that reach beyond the input"),
    "pool dilation": (model([op("MaxPool", "x", "y", kernel_shape=[2, 2], dilations=[2, 2])], ("n", 1, 5, 5)), "a pool with dilation"),
    "uneven pool": (model([op("MaxPool", "x", "y", kernel_shape=[2, 2], pads=[0, 0, 1, 1])], ("n", 1, 5, 5)), "uneven padding (0, 0) and (1, 1)"),
    "indices of a pool": (model([op("MaxPool", "x", "p y", kernel_shape=[2, 2])], ("n", 1, 4, 4)), "its output 'y' is used; only the first is supported"),
    "batch transposed": (model([op("Transpose", "x", "y")], ("n", 3)), "Transpose 'y': moves the batch axis"),
    "batch joined": (model([op("Concat", "x x", "y", axis=0)], ("n", 3)), "joins the batch"),
    "batch flattened": (model([op("Flatten", "x", "y", axis=2)], ("n", 3, 4)), "axis 2 mixes the batch with other axes"),
    "batch lost": (model([op("Reshape", "x s", "y")], ("n", 3, 4), {"s": np.asarray([-1, 3])}), "does not keep the batch axis"),
    "softmax inside": (model([op("Softmax", "x", "s"), op("Relu", "s", "y")], ("n", 3)), "is supported as the last operator before an output only"),
    "cast": (model([op("Cast", "x", "y", to=onnx.TensorProto.INT32)], ("n", 3)), "from float32 to INT32"),
    "mean over features": (model([op("ReduceMean", "x a", "y")], ("n", 3), {"a": np.asarray([1])}), "over all axes of space is supported"),
    "not finite": (model([op("Gemm", "x w", "y", transB=1)], ("n", 3), {"w": W23 + np.nan}), "error[SPK305]: %y: weight holds nan"),
    "shape of what depends": (model([op("ConstantOfShape", "x", "y")], ("n", 3)), "is supported on shapes only"),
    "huge": (model(RELU, ("n", 1 << 20, 1 << 20)), "numbers a frame"),
    "no opset": (helper.make_model(helper.make_graph([], "g", [], [helper.make_tensor_value_info("y", FLOAT, [1])]), opset_imports=[]), "the model names no operator set"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_and_why(tmp_path: Path, name: str) -> None:
    made, wanted = BAD[name]
    assert wanted in message(tmp_path / "m.onnx", made)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert f"error[SPK002]: {path}: no such file" in message(path)
    path.write_bytes(b"")
    assert message(path) == "m.onnx: error[SPK003]: not an ONNX model: there is no graph in it"
    path.write_bytes(b"not a model at all")
    assert "m.onnx: error[SPK003]: not a readable ONNX file: it is damaged" in message(path)
    path.write_bytes(model(RELU, ("n", 3)).SerializeToString())
    assert "unknown option 'input_kin' for '.onnx'\n  fix: did you mean 'input_kind'" in message(path, input_kin="spike")
    assert "'pulse' is no kind of input" in message(path, input_kind="pulse")


def test_a_file_of_more_than_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(2**31)  # a hole: it takes no room
    assert "2147483648 bytes; an ONNX file has at most 2 GB" in message(tmp_path / "m.onnx")


def test_without_onnx_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "m.onnx").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert (
        message(tmp_path / "m.onnx")
        == "error[SPK009]: ONNX files need onnx, which is not installed\n  fix: pip install 'spikec[onnx]'"
    )


def external(folder: Path, location: str) -> Any:
    made = model([op("Gemm", "x w", "g", transB=1), op("Relu", "g", "y")], ("n", 3), {"w": W23})
    (folder / "w.bin").write_bytes(b"....." + W23.tobytes())
    external_data_helper.set_external_data(made.graph.initializer[0], location, offset=5, length=W23.nbytes)
    made.graph.initializer[0].ClearField("raw_data")
    return made


def test_weights_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(external(tmp_path, "w.bin").SerializeToString())
    graph = read_onnx(tmp_path / "m.onnx")
    assert np.array_equal(next(node.weight for node in graph.nodes if node.op == "dense"), W23)


@pytest.mark.parametrize("where", ["../w.bin", "{outside}/w.bin", "link/w.bin", "", "a/../../w.bin"])
def test_weights_elsewhere_are_not_read(tmp_path: Path, where: str) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir(), outside.mkdir()
    (folder / "link").symlink_to(outside)
    external(outside, "w.bin")
    made = external(folder, where.format(outside=outside))
    assert "spikec reads data beside the model only from its own folder" in message(folder / "m.onnx", made)


def test_weights_beside_the_model_that_do_not_fit(tmp_path: Path) -> None:
    made = external(tmp_path, "w.bin")
    (tmp_path / "w.bin").write_bytes(b"short")
    assert "the tensor 'w' needs 24 bytes at 5 of 'w.bin' (5 bytes)" in message(tmp_path / "m.onnx", made)
    (tmp_path / "w.bin").unlink()
    assert "error[SPK002]" in message(tmp_path / "m.onnx", made)
    made.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]
    assert "the tensor 'w' is damaged" in message(tmp_path / "m.onnx", made)


def test_damaged_files_are_errors_and_never_tracebacks(tmp_path: Path) -> None:
    """Cut off, and with bytes and whole ranges changed: refused with a CompileError, or read as some other well-formed graph."""
    torch.onnx.export(
        Branches().eval(),
        (torch.rand(1, 3, 8, 8),),
        tmp_path / "net.onnx",
        dynamo=False,
        dynamic_axes={"input": [0]},
        input_names=["input"],
    )
    small = model(
        *[[op("Gemm", "x w b", "g", transB=1), op("Clip", "g lo hi", "c"), op("Reshape", "c s", "y")], ("n", 3)],
        {"w": W23, "b": B2, "lo": F(0), "hi": F(6), "s": np.asarray([0, 2, 1])},
    )
    rng = random.Random(0)
    refused = 0
    path = tmp_path / "m.onnx"
    for whole, count in ((small.SerializeToString(), 300), ((tmp_path / "net.onnx").read_bytes(), 120)):
        for number in range(count):
            data = bytearray(whole)
            for _ in range(rng.choice([1, 1, 2, 5])):
                where = rng.randrange(len(data))
                data[where : where + rng.choice([1, 1, 4])] = bytes(
                    rng.choice([0, 255, rng.randrange(256)]) for _ in range(rng.choice([1, 1, 3]))
                )
            if number % 4 == 0:
                data = data[: rng.randrange(len(data))]
            path.write_bytes(bytes(data))
            try:
                read_onnx(path)
            except CompileError as error:
                refused += 1
                assert str(error)
    assert refused > 150
