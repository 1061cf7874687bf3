"""ONNX models by a few words, and what onnxruntime makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from spikec.ir.types import Array

onnxruntime.set_default_logger_severity(4)
FLOAT = onnx.TensorProto.FLOAT


def op(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """`op("Conv", "x w", "y", strides=[2])`; a missing operand is written `-`."""
    return helper.make_node(kind, [name.replace("-", "") for name in inputs.split()], outputs.split(), **attributes)


def model(
    nodes: Sequence[Any],
    shape: Sequence[Any],
    weights: Mapping[str, Any] | None = None,
    *,
    out: str = "y",
    opset: int = 20,
    element: int = FLOAT,
    out_shape: Sequence[Any] | None = None,
) -> Any:
    """A model with the input `x` of this shape, the batch included."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", element, list(shape))],
        [helper.make_tensor_value_info(name, element, out_shape) for name in out.split()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def run(made: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What onnxruntime computes, by output name."""
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([item.name for item in session.get_outputs()], session.run(None, dict(inputs)), strict=True))
