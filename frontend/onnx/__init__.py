"""Reading a trained network of activations out of ONNX (operator set 13 and newer), and writing any float graph as ONNX.

What is read computes what the file computes, for one frame, at every step; batch norms and the like are products and sums. The
driver then makes it spike (`spikec.passes.ann_to_snn`). Axis 0 is the batch everywhere, and the only one that may be left open.

What is written is one `Scan` over time made of standard operators; the graph itself is in the file's metadata, so that a file
that spikec wrote, and nobody changed, reads back as the graph it was.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final, Literal

from spikec.frontend.registry import Support
from spikec.ir.graph import Graph
from spikec.ledger import Ledger

#: Options of `read_onnx` that the driver passes on, beside name, dt and ledger.
OPTIONS: Final = ("input_kind",)
#: The release of the onnx package that the tests run with.
VERSION: Final = "1.23.2"
_SPIKING = "the pass ann-to-snn makes it spike; the ledger has the error of every layer"

SUPPORT: Final = (
    Support("Gemm", "transA=0", "exact"),
    Support("Gemm", "transA=1, or a weight that depends on the input", "refused", "a layer has constant weights"),
    Support("MatMul", "constant weight (inputs, outputs)", "exact"),
    Support("Conv", "1-d, 2-d; strides, pads, dilations, group, auto_pad; uneven pads", "exact"),
    Support("Conv", "3-d", "refused", "a graph has 1 or 2 axes of space"),
    Support("BatchNormalization", "inference", "exact", "up to rounding; folded into the weights when the network is made spiking"),
    Support("BatchNormalization", "training_mode=1", "refused", "export after model.eval()"),
    Support("Relu", "", "approximate", _SPIKING),
    Support("Clip", "from 0 to a number", "approximate", _SPIKING),
    Support("Clip", "other limits", "refused", "is read; rates of spikes are at least 0, so that it cannot be made spiking"),
    Support("MaxPool", "behind or before a Relu", "exact", "as it is in the numbers of spikes; no dilations, pads even"),
    Support("GlobalMaxPool", "behind or before a Relu", "exact", "as MaxPool"),
    Support("AveragePool", "count_include_pad both ways, pads even, ceil_mode where it changes nothing", "exact"),
    Support("GlobalAveragePool", "", "exact"),
    Support("ReduceMean", "over all axes of space", "exact"),
    Support("Add", "of two values of equal shape, or with a constant", "exact"),
    Support("Sub", "of two values of equal shape, or with a constant", "exact"),
    Support("Mul", "with a constant", "exact"),
    Support("Mul", "of two values", "refused", "no counterpart in a spiking network"),
    Support("Div", "by a constant", "exact", "up to the rounding of the reciprocal"),
    Support("Sum", "of values of equal shape", "exact"),
    Support("Concat", "axes but the batch", "exact"),
    *(
        Support(name, "where the batch axis stays", "exact")
        for name in ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather")
    ),
    Support("Shape", "", "exact", "and arithmetic on shapes"),
    Support("Constant", "", "exact"),
    Support("Identity", "", "exact"),
    Support("Dropout", "inference", "exact"),
    Support("Cast", "to the same type", "exact"),
    Support("Softmax", "last, before an output", "exact", "left out: the order of the classes is the same"),
    Support("LogSoftmax", "last, before an output", "exact", "left out: the order of the classes is the same"),
    Support("Sigmoid, Tanh, LeakyRelu, Gelu …", "", "refused", "not proportional to a rate of spikes; train with ReLU"),
    Support("If, Loop, Scan", "", "refused", "except the Scan that spikec wrote itself, which reads back as its graph"),
    Support("QLinearConv, QuantizeLinear …", "", "refused", "give the float model; spikec quantises for the target"),
    Support("Scan over time, written by spikec", "any float graph", "exact", "same spikes in onnxruntime"),
)


def read_onnx(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    dt: float | None = None,
    input_kind: Literal["spike", "graded", "value"] | None = None,
    ledger: Ledger | None = None,
) -> Graph:
    """The verified float graph of an `.onnx` file.

    name: of the graph (default: the model's, else the file's). dt: seconds per step. input_kind: what is fed, "value" by default: a
    frame of real numbers at every step; "spike" where an encoder makes spikes of it. ledger: told what is left out.

    Raises CompileError: SPK002 no file, SPK003 a damaged file, SPK009 no onnx, SPK102 every operator that is not supported, SPK304
    damaged or missing weights, SPK309 shapes and types.
    """
    from spikec.diagnostics import CompileError
    from spikec.frontend.onnx.file import read_model
    from spikec.frontend.onnx.read import Reader, _word
    from spikec.frontend.onnx.write import graph_inside
    from spikec.ir.types import KINDS

    if input_kind is not None and input_kind not in KINDS:
        raise CompileError("SPK001", f"'{input_kind}' is no kind of input", fix=f"choose one of {', '.join(KINDS)}")
    path = Path(path)
    model = read_model(path)
    graph = graph_inside(model, path)
    if graph is None:
        graph = Reader(model, path, input_kind or "value", ledger).graph(_word(path.stem, "."))
    elif input_kind is not None:
        raise CompileError("SPK001", f"input_kind: {path} holds a graph of spikec, which states it")
    return Graph(name or graph.name, graph.level, graph.nodes, graph.outputs, dt if dt is not None else graph.dt)


def write_onnx(graph: Graph, path: str | os.PathLike[str], *, record: Collection[str] = (), ledger: Ledger | None = None) -> None:
    """Write a float graph as an ONNX model: inputs and outputs are (batch, T, *shape), the steps one `Scan`.

    record: further wires, as `spikec.ir.interpret.interpret` names them, that become outputs. ledger: told where an input takes
    encoded data. Needs ONNX operator set 18.

    Raises CompileError: SPK502 a graph of integers, SPK010 an unknown wire, SPK008 and SPK009.
    """
    from spikec.diagnostics import CompileError
    from spikec.frontend.onnx.write import model_of

    data = model_of(graph, record).SerializeToString(deterministic=True)
    for node in graph.inputs:
        if ledger is not None and node.encode:
            ledger.record(node, "convention", f"takes what the encoder {node.encode} makes of the data, which ONNX does not hold")
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise CompileError("SPK008", f"{path}: cannot be written ({error.strerror})") from None
