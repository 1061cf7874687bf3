"""Functions that only move numbers: views, indexing, stacking, and writing into a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import torch

from spikec.frontend.tracing.handling import Handler, Run, new_value, truth_of, unsupported
from spikec.frontend.tracing.values import Const, Filling, Operand, Value, shape_of

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


#: Delay lines are kept as their entries up to this length.
ROWS: Final = 256


def _const_rows(rec: Recorder, tensor: Any, axis: int) -> list[Operand]:
    """The entries of a constant tensor along an axis."""
    if tensor.shape[axis] > ROWS:
        return []
    with rec.pause():
        entries = [entry.clone() for entry in tensor.unbind(axis)]
        rec.mark_static(entries)
    return [rec.constant(entry) for entry in entries]


def _rows_of(rec: Recorder, tensor: Any, axis: int) -> list[Operand]:
    """What stands at each index of an axis, if that is known; else nothing."""
    value = rec.value_of(tensor)
    if value is None:
        return _const_rows(rec, tensor, axis)
    if value.filling is not None and value.filling.axis == axis:
        base, entries = value.filling.base, value.filling.entries
        if not isinstance(base, Const) or base.array.shape[axis] > ROWS:
            return []
        return [entries[k] if k in entries else Const(np.take(base.array, k, axis=axis)) for k in range(tensor.shape[axis])]
    if value.rows is not None and value.rows[0] == axis:
        return list(value.rows[1])
    if value.op is not None and value.op.kind == "unsqueeze" and value.op.attrs["axis"] == axis:
        return [value.op.operands[0]]
    return []


def _put_together(rec: Recorder, rows: Sequence[Operand], axis: int, tensor: Any) -> Value:
    """A tensor of known entries."""
    stacked = rec.emit("stack", rows, tensor.shape, tensor=tensor, axis=axis, label="stack")
    stacked.rows = (axis, tuple(rows))
    return stacked


def _roll(rec: Recorder, run: Run, input: Any, shifts: Any, dims: Any = None) -> Any:
    amounts, axes = ([item] if isinstance(item, int) else list(item or ()) for item in (shifts, dims))
    if len(axes) != len(amounts):
        unsupported(rec, "roll", "without dims")
    rows = _rows_of(rec, input, axes[0] % input.ndim) if len(axes) == 1 else []
    x = rec.value_of(input)
    assert x is not None
    result = run()
    if rows:
        shift = amounts[0] % len(rows)
        _put_together(rec, rows[-shift:] + rows[:-shift] if shift else rows, axes[0] % input.ndim, result)
        return result
    if x.filling is not None:
        _unwritten(rec)
    for shift, axis in zip(amounts, axes, strict=True):
        size = input.shape[axis]
        x = _gather(rec, x, axis % input.ndim, [(k - shift) % size for k in range(size)])
    rec.hang(result, x)
    return result


def _repeat(rec: Recorder, run: Run, input: Any, *sizes: Any) -> Any:
    x = rec.value_of(input)
    assert x is not None
    counts = list(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else list(sizes)
    result = run()
    for _ in range(len(counts) - len(x.shape)):
        x = rec.emit("unsqueeze", (x,), (1, *x.shape), axis=0)
    counts = [1] * (len(x.shape) - len(counts)) + counts
    for axis, count in enumerate(counts):
        if count != 1 and x.shape[axis] != 1:
            x = _gather(rec, x, axis, list(range(x.shape[axis])) * count)
    rec.emit("expand", (x,), result.shape, tensor=result) if x.shape != tuple(result.shape) else rec.hang(result, x)
    return result


def _repeat_interleave(rec: Recorder, run: Run, input: Any, repeats: Any, dim: int | None = None) -> Any:
    if not isinstance(repeats, int) or dim is None:
        unsupported(rec, "repeat_interleave", "except a whole number of times along one dim")
    x = rec.value_of(input)
    assert x is not None
    result = run()
    axis = dim % input.ndim
    rec.hang(result, _gather(rec, x, axis, [k for k in range(input.shape[axis]) for _ in range(repeats)]))
    return result


def _interpolate(
    rec: Recorder, run: Run, input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: Any = None, recompute_scale_factor: Any = None, antialias: bool = False,
) -> Any:  # fmt: skip
    x = rec.value_of(input)
    assert x is not None
    with rec.pause():
        result = run()
    if mode != "nearest" or any(n % m for n, m in zip(result.shape[2:], input.shape[2:], strict=True)):
        unsupported(rec, "interpolate", "except in mode='nearest' by whole factors")
    for axis in range(2, input.ndim):
        factor = result.shape[axis] // input.shape[axis]
        if factor > 1:
            x = _gather(rec, x, axis, [k for k in range(input.shape[axis]) for _ in range(factor)])
    rec.hang(result, x)
    return result


def _pad(rec: Recorder, run: Run, input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    if mode != "constant" or any(n < 0 for n in pad):
        unsupported(rec, "pad", "except with a constant")
    x: Any = rec.operand(input)
    with rec.pause():
        result = run()
    for number in range(len(pad) // 2):
        axis = input.ndim - 1 - number
        parts: list[Any] = [x]
        for place, width in ((0, pad[2 * number]), (2, pad[2 * number + 1])):
            if width:
                with rec.pause():
                    border = torch.full((*x.shape[:axis], width, *x.shape[axis + 1 :]), float(value or 0), dtype=result.dtype)
                    rec.mark_static(border)
                parts.insert(place, rec.constant(border))
        if len(parts) > 1:
            shape = (*x.shape[:axis], sum(shape_of(part)[axis] for part in parts), *x.shape[axis + 1 :])
            x = rec.emit("cat", parts, shape, axis=axis, label="pad")
    rec.hang(result, x)
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
    taken = rec.emit("gather", (x,), shape, tensor=tensor, axis=axis, indices=np.asarray(indices, np.int64))
    if x.rows is not None and x.rows[0] == axis:
        taken.rows = (axis, tuple(x.rows[1][int(k)] for k in indices))
    return taken


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
        known = _known_entry(rec, x, parts)
        if known is not None:
            if not isinstance(known[0], Value):
                rec.mark_static(result)
                return result
            x, parts = known
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


def _known_entry(rec: Recorder, x: Value, parts: list[Any]) -> tuple[Any, list[Any]] | None:
    """The entry that an index picks of a tensor put together from known ones, and the rest of the index."""
    if x.rows is None or None in parts:
        return None
    axis, rows = x.rows
    number = _int_index(parts[axis])
    return None if number is None else (rows[number % len(rows)], parts[:axis] + parts[axis + 1 :])


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
        rows = _rows_of(rec, input, axis)
        if not rows and input.shape[axis] <= ROWS:
            rows = [_pick(rec, x, axis, k) for k in range(input.shape[axis])]
        if not rows:
            unsupported(rec, "an assignment", "to a part of a tensor that holds results already")
        run()
        shape = tuple(n for i, n in enumerate(input.shape) if i != axis)
        rows[number % len(rows)] = given if shape_of(given) == shape else rec.emit("expand", (given,), shape)
        _put_together(rec, rows, axis, input)
        return None
    filling = x.filling if x is not None and x.filling is not None else Filling(axis, rec.operand(input), {})
    if filling.axis != axis:
        unsupported(rec, "an assignment", "along two different axes of one tensor")
    shape = tuple(n for i, n in enumerate(input.shape) if i != axis)
    run()
    entry = given if isinstance(value, torch.Tensor) and shape_of(given) == shape else rec.emit("expand", (given,), shape)
    if not hasattr(entry, "op"):
        entry = rec.emit("expand", (entry,), shape)
    filling.entries[number % input.shape[axis]] = entry  # type: ignore[assignment]  # filled in place
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
    rows = x.rows[1] if x.rows is not None and x.rows[0] == dim % input.ndim else ()
    for index, tensor in enumerate(result):
        row = rows[index] if rows else None
        if isinstance(row, Value):
            rec.hang(tensor, row)
        elif row is not None:
            rec.mark_static(tensor)
        else:
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
        if kind == "stack":
            _put_together(rec, operands, where, result)
            return result
        parts = [_rows_of(rec, item, where) for item in tensors] if result.shape[where] <= ROWS else [[]]
        if all(parts):  # a delay line: every entry is read from where it came, not through a chain of concatenations
            _put_together(rec, [row for part in parts for row in part], where, result)
            return result
        rec.emit(kind, operands, result.shape, tensor=result, axis=where, label="concat")
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
    "roll": _roll,
    "repeat": _repeat,
    "tile": _repeat,
    "repeat_interleave": _repeat_interleave,
    "interpolate": _interpolate,
    "pad": _pad,
    "stack": _joined("stack"),
    "cat": _joined("cat"),
    "concat": _joined("cat"),
    "concatenate": _joined("cat"),
    "hstack": _hstack,
}
