"""Constants and recorded values, from torch's axes to those of one step of one sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from spikec.diagnostics import CompileError
from spikec.frontend.tracing.axes import Layout
from spikec.frontend.tracing.values import Const, Number, Op, Value, product
from spikec.ir.types import Array


def per_step(layout: Layout, value: Value, op: Op, constant: Const | Number) -> Array:
    """A constant that is laid over a value (last axes aligned), without the time and batch axes.

    Its shape has one axis for each feature axis of the value, of length 1 where it is the same along it. SPK102 if it differs from
    sample to sample, SPK104 if it differs from step to step.
    """
    array = np.asarray(constant.array if isinstance(constant, Const) else constant)
    if array.dtype.kind == "u":
        array = array.astype(np.int64)
    ndim = len(value.shape)
    array = array.reshape((1,) * (ndim - array.ndim) + array.shape)
    kept = layout.feature_axes(value, op)
    for position, axis in enumerate(layout.axes[value]):
        if position in kept or array.shape[position] == 1:
            continue
        first = np.take(array, [0], axis=position)
        if not np.array_equal(np.broadcast_to(first, array.shape), array, equal_nan=array.dtype.kind == "f"):
            timed = any(atom in layout.time for atom in axis)
            what = "from step to step" if timed else "from sample to sample of the batch"
            raise CompileError("SPK104" if timed else "SPK102", f"{op.label} uses a constant that differs {what}", loc=op.loc)
        array = first
    return array.reshape(tuple(array.shape[position] for position in kept))


def compact(array: Array, shape: tuple[int, ...]) -> Array:
    """A parameter as the IR takes it: a scalar, one number per channel (axis 0), or the full shape."""
    if array.dtype == np.bool_:
        array = array.astype(np.float32)
    if array.size == 1:
        return array.reshape(())
    if len(shape) > 1 and array.ndim == len(shape) and product(array.shape[1:]) == 1:
        return array.reshape(array.shape[0])
    return np.array(np.broadcast_to(array, shape))


def step_major(layout: Layout, value: Value, tensor: Any, op: Op) -> Array:
    """A recorded tensor as (batch, T, *shape), or (batch, *shape) if it has no time axis; batch 1 where it has none."""
    array = np.asarray(tensor.detach().cpu().numpy())
    atoms: list[tuple[str, int]] = []
    for axis in layout.axes[value]:
        outer = layout.outer(axis)
        if outer:
            for atom in axis:
                atoms.append(("time" if atom in layout.time else "batch" if atom in layout.batch else "one", atom.size))
        else:
            atoms.append(("feature", product([atom.size for atom in axis])))
    array = array.reshape([size for _, size in atoms])
    order = [i for wanted in ("batch", "time", "one", "feature") for i, (kind, _) in enumerate(atoms) if kind == wanted]
    array = array.transpose(order)
    count = {kind: sum(1 for k, _ in atoms if k == kind) for kind in ("batch", "time")}
    batch = array.shape[0] if count["batch"] else 1
    time = array.shape[count["batch"]] if count["time"] else None
    shape = layout.shape(value, op)
    return array.reshape((batch, *shape) if time is None else (batch, time, *shape))
