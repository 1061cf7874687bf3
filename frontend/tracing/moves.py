"""Functions that only move numbers: views, indexing, stacking, and writing into a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import torch

from spikec.frontend.tracing.handling import Handler, Run, new_value, truth_of, unsupported
from spikec.frontend.tracing.values import Filling, Value, shape_of

if TYPE_CHECKING:
    from spikec.frontend.tracing.record import Recorder


def _reshape(rec: Recorder, run: Run, input: Any, *shape: Any, **more: Any) -> Any:
    x = rec.operand(input)
    if shape and isinstance(shape[0], torch.dtype):
        unsupported(rec, "view", "as another dtype")
    result = run()
    rec.emit("reshape", (x,), result.shape, tensor=result)
    return result


def _squeeze(rec: Recorder, run: Run, input: Any, dim: Any = None) -> Any:
    x = rec.operand(input)
    result = run()
    dims = range(input.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = tuple(sorted({d % input.ndim for d in dims if input.shape[d] == 1}))
    rec.emit("squeeze", (x,), result.shape, tensor=result, axes=axes)
    return result


def _unsqueeze(rec: Recorder, run: Run, input: Any, dim: int) -> Any:
    x = rec.operand(input)
    result = run()
    rec.emit("unsqueeze", (x,), result.shape, tensor=result, axis=dim % result.ndim)
    return result


def _permuted(rec: Recorder, run: Run, input: Any, dims: Sequence[int]) -> Any:
    x = rec.operand(input)
    result = run()
    rec.emit("permute", (x,), result.shape, tensor=result, dims=tuple(d % input.ndim for d in dims))
    return result


def _permute(rec: Recorder, run: Run, input: Any, *dims: Any) -> Any:
    return _permuted(rec, run, input, dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)


def _transpose(rec: Recorder, run: Run, input: Any, dim0: int, dim1: int) -> Any:
    dims = list(range(input.ndim))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return _permuted(rec, run, input, dims)


def _reverse_axes(rec: Recorder, run: Run, input: Any) -> Any:
    return _permuted(rec, run, input, range(input.ndim)[::-1])


def _matrix_transpose(rec: Recorder, run: Run, input: Any) -> Any:
    return _transpose(rec, run, input, -1, -2)


def _movedim(rec: Recorder, run: Run, input: Any, source: Any, destination: Any) -> Any:
    with rec.pause():
        where = torch.arange(input.ndim)
        order = torch.movedim(torch.empty([n + 1 for n in where.tolist()]), source, destination)
    return _permuted(rec, run, input, [n - 1 for n in order.shape])


def _expand(rec: Recorder, run: Run, input: Any, *sizes: Any) -> Any:
    x = rec.operand(input)
    result = run()
    rec.emit("expand", (x,), result.shape, tensor=result)
    return result


def _pick(rec: Recorder, x: Value, axis: int, index: int, tensor: Any = None) -> Value:
    if x.filling is not None and axis == x.filling.axis:
        entry = x.filling.entries.get(index)
        if entry is not None:
            if tensor is not None:
                rec.hang(tensor, entry)
            return entry
    if x.filling is not None:
        _unwritten(rec)
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    return rec.emit("pick", (x,), shape, tensor=tensor, axis=axis, index=index)


def _gather(rec: Recorder, x: Value, axis: int, indices: Any, tensor: Any = None) -> Value:
    if len(indices) == 1:
        entry = _pick(rec, x, axis, int(indices[0]))
        shape = (*entry.shape[:axis], 1, *entry.shape[axis:])
        return rec.emit("unsqueeze", (entry,), shape, tensor=tensor, axis=axis)
    if x.filling is not None:
        _unwritten(rec)
    shape = (*x.shape[:axis], len(indices), *x.shape[axis + 1 :])
    return rec.emit("gather", (x,), shape, tensor=tensor, axis=axis, indices=np.asarray(indices, np.int64))


def _index_parts(rec: Recorder, ndim: int, index: Any) -> list[Any]:
    """The index with one entry per axis (and None for a new axis)."""
    parts = list(index) if isinstance(index, tuple) else [index]
    used = sum(1 for item in parts if item is not None and item is not Ellipsis)
    if not any(item is Ellipsis for item in parts):
        parts.append(Ellipsis)
    at = next(i for i, item in enumerate(parts) if item is Ellipsis)
    return [*parts[:at], *[slice(None)] * (ndim - used), *parts[at + 1 :]]


def _int_index(item: Any) -> int | None:
    if isinstance(item, (bool, np.bool_)):
        return None
    if isinstance(item, (int, np.integer)):
        return int(item)
    if isinstance(item, torch.Tensor) and item.ndim == 0 and not item.is_floating_point() and item.dtype != torch.bool:
        return int(item.item())
    return None


def _getitem(rec: Recorder, run: Run, input: Any, index: Any) -> Any:
    if any(rec.dynamic(item) for item in (index if isinstance(index, tuple) else (index,))):
        rec.fail("SPK103", "an index depends on input values", fix="use torch.where or a product with a mask")
    if not rec.dynamic(input):
        return run()
    x = rec.value_of(input)
    result = run()
    assert x is not None
    with rec.pause():
        parts = _index_parts(rec, input.ndim, index)
        if x.filling is not None:
            written = _written_part(rec, x, parts)
            if written is None:
                rec.mark_static(result)
                return result
            x = written
        axis = 0
        lists = 0
        for part in parts:
            number = _int_index(part)
            if part is None:
                x = rec.emit("unsqueeze", (x,), (*x.shape[:axis], 1, *x.shape[axis:]), axis=axis)
                axis += 1
            elif number is not None:
                x = _pick(rec, x, axis, number % x.shape[axis])
            elif isinstance(part, slice):
                chosen = range(*part.indices(x.shape[axis]))
                if chosen != range(x.shape[axis]):
                    x = _gather(rec, x, axis, list(chosen))
                axis += 1
            else:
                lists += 1
                chosen_array = np.asarray(part.cpu() if isinstance(part, torch.Tensor) else part)
                if chosen_array.dtype == np.bool_:
                    chosen_array = np.flatnonzero(chosen_array) if chosen_array.ndim == 1 else chosen_array
                if chosen_array.ndim != 1 or lists > 1 or chosen_array.dtype.kind not in "iu":
                    unsupported(rec, "indexing", "with several or with many-dimensional index arrays")
                x = _gather(rec, x, axis, chosen_array % x.shape[axis])
                axis += 1
    if result is not input:
        _land(rec, x, result)
    return result


def _written_part(rec: Recorder, x: Value, parts: list[Any]) -> Value | None:
    """What an index reads of a tensor that is still being filled; None for an entry that nobody has written."""
    filling = x.filling
    assert filling is not None
    part = parts[filling.axis] if None not in parts else None
    number = _int_index(part)
    if number is not None:
        return x if number % x.shape[filling.axis] in filling.entries else None
    rows = list(range(*part.indices(x.shape[filling.axis]))) if isinstance(part, slice) else []
    if not rows or any(row not in filling.entries for row in rows):
        _unwritten(rec)
    parts[filling.axis] = slice(None)
    shape = (*x.shape[: filling.axis], len(rows), *x.shape[filling.axis + 1 :])
    return rec.emit("stack", [filling.entries[row] for row in rows], shape, axis=filling.axis, label="stack")


def _unwritten(rec: Recorder) -> NoReturn:
    rec.fail("SPK111", "a tensor is read before all of its entries are written")


def _land(rec: Recorder, value: Value, tensor: Any) -> None:
    """Hang a value on the tensor that a call returned; the last step's own value is then captured."""
    if value.shape != tuple(tensor.shape):
        unsupported(rec, "indexing", "in this form")
    rec.hang(tensor, value)


def _setitem(rec: Recorder, run: Run, input: Any, index: Any, value: Any) -> Any:
    items = index if isinstance(index, tuple) else (index,)
    given = rec.operand(value)
    if len(items) == 1 and isinstance(index, torch.Tensor) and index.dtype == torch.bool:
        base = rec.operand(input)
        mask = truth_of(rec, index)
        if len(shape_of(given)) and shape_of(given) != shape_of(base):
            unsupported(rec, "an assignment", "of several numbers under a mask")
        run()
        rec.emit("ew", (mask, given, base), input.shape, tensor=input, fn="select", label="select")
        return None
    if any(rec.dynamic(item) for item in items):
        rec.fail("SPK103", "an index depends on input values", fix="use torch.where or a product with a mask")
    parts = _index_parts(rec, input.ndim, index)
    full = [isinstance(part, slice) and part == slice(None) for part in parts]
    if all(full):
        run()
        rec.emit("expand", (given,), input.shape, tensor=input)
        return None
    rest = [i for i, whole in enumerate(full) if not whole]
    number = _int_index(parts[rest[0]]) if len(rest) == 1 else None
    if number is None or None in parts:
        unsupported(rec, "an assignment", "to a part of a tensor")
    axis = rest[0]
    x = rec.value_of(input)
    if x is not None and x.filling is None:
        unsupported(rec, "an assignment", "to a part of a tensor that holds results already")
    filling = x.filling if x is not None and x.filling is not None else Filling(axis, rec.operand(input), {})
    if filling.axis != axis:
        unsupported(rec, "an assignment", "along two different axes of one tensor")
    shape = tuple(n for i, n in enumerate(input.shape) if i != axis)
    run()
    entry = given if isinstance(value, torch.Tensor) and shape_of(given) == shape else rec.emit("expand", (given,), shape)
    if not hasattr(entry, "op"):
        entry = rec.emit("expand", (entry,), shape)
    filling.entries[number % input.shape[axis]] = entry  # type: ignore[assignment]
    new = new_value(input.shape)
    new.filling = filling
    rec.hang(input, new)
    new.tensor = None
    return None


def finished(rec: Recorder, value: Value) -> Value:
    """A tensor that was filled entry by entry, once it is full, is the stack of its entries."""
    filling = value.filling
    if filling is None or len(filling.entries) < value.shape[filling.axis]:
        return value
    count = value.shape[filling.axis]
    stacked = rec.emit("stack", [filling.entries[k] for k in range(count)], value.shape, axis=filling.axis, label="stack")
    value.filling = None
    value.op, value.port = stacked.op, 0
    assert stacked.op is not None
    stacked.op.outputs[0] = value
    return value


def _unbind(rec: Recorder, run: Run, input: Any, dim: int = 0) -> Any:
    x = rec.value_of(input)
    assert x is not None
    result = run()
    for index, tensor in enumerate(result):
        _pick(rec, x, dim % input.ndim, index, tensor)
    return result


def _split(rec: Recorder, run: Run, tensor: Any, *args: Any, dim: int = 0, **more: Any) -> Any:
    axis = args[1] if len(args) > 1 else dim
    x = rec.value_of(tensor)
    assert x is not None
    result = run()
    start = 0
    for part in result:
        count = part.shape[axis]
        _gather(rec, x, axis % tensor.ndim, range(start, start + count), part)
        start += count
    return result


def _select(rec: Recorder, run: Run, input: Any, dim: int, index: Any) -> Any:
    return _getitem(rec, run, input, (*[slice(None)] * (dim % input.ndim), index))


def _narrow(rec: Recorder, run: Run, input: Any, dim: int, start: int, length: int) -> Any:
    return _getitem(rec, run, input, (*[slice(None)] * (dim % input.ndim), slice(start, start + length)))


def _index_select(rec: Recorder, run: Run, input: Any, dim: int, index: Any) -> Any:
    return _getitem(rec, run, input, (*[slice(None)] * (dim % input.ndim), index))


def _flip(rec: Recorder, run: Run, input: Any, dims: Any, *more: int) -> Any:
    x = rec.value_of(input)
    assert x is not None
    result = run()
    for dim in ([dims] if isinstance(dims, int) else list(dims)) + list(more):
        x = _gather(rec, x, dim % input.ndim, range(input.shape[dim])[::-1])
    rec.hang(result, x)
    return result


def _joined(kind: str, default: int = 0) -> Handler:
    def handler(rec: Recorder, run: Run, tensors: Any, dim: int = default, *, axis: int | None = None, out: None = None) -> Any:
        operands = [rec.operand(item) for item in tensors]
        result = run()
        where = (dim if axis is None else axis) % result.ndim
        rec.emit(kind, operands, result.shape, tensor=result, axis=where, label="stack" if kind == "stack" else "concat")
        return result

    return handler


def _hstack(rec: Recorder, run: Run, tensors: Any) -> Any:
    return _joined("cat", 0 if tensors[0].ndim == 1 else 1)(rec, run, tensors)


MOVES: Final[dict[str, Handler]] = {
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "view_as", "reshape_as", "ravel"), _reshape),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "swapdims": _transpose,
    "t": _reverse_axes,
    "__get__:T": _reverse_axes,
    "__get__:mT": _matrix_transpose,
    "movedim": _movedim,
    "moveaxis": _movedim,
    "expand": _expand,
    "expand_as": _expand,
    "broadcast_to": _expand,
    "__getitem__": _getitem,
    "__setitem__": _setitem,
    "unbind": _unbind,
    "split": _split,
    "chunk": _split,
    "select": _select,
    "narrow": _narrow,
    "index_select": _index_select,
    "flip": _flip,
    "stack": _joined("stack"),
    "cat": _joined("cat"),
    "concat": _joined("cat"),
    "concatenate": _joined("cat"),
    "hstack": _hstack,
}
