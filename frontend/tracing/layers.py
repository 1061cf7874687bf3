"""Functions with weights or windows, and reductions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from spikec.frontend.tracing.handling import Handler, Run, finish, unsupported
from spikec.frontend.tracing.values import Const, Op, Value, shape_of

if TYPE_CHECKING:
    from spikec.frontend.tracing.record import Recorder


def weight_of(rec: Recorder, item: Any, what: str) -> Any:
    """A constant operand, None for none."""
    if item is None:
        return None
    value = rec.operand(item)
    if not hasattr(value, "array"):
        rec.fail("SPK102", f"{what} that depends on the input is not supported", fix="weights must be constants")
    return value


def _linear(rec: Recorder, run: Run, input: Any, weight: Any, bias: Any = None) -> Any:
    weight, bias = weight_of(rec, weight, "a weight"), weight_of(rec, bias, "a bias")
    x = rec.operand(input)
    result = run()
    rec.emit("linear", (x,), result.shape, tensor=result, weight=weight, bias=bias, label="linear")
    return result


def _sparse_linear(rec: Recorder, run: Run, input: Any, weight: Any, indices: Any, indptr: Any, bias: Any = None) -> Any:
    weight, bias = weight_of(rec, weight, "a weight"), weight_of(rec, bias, "a bias")
    x = rec.operand(input)
    result = run()
    rows = {"indices": rec.constant(indices), "indptr": rec.constant(indptr)}
    attrs: dict[str, Any] = {"weight": weight, "bias": bias, **rows}
    rec.emit("linear", (x,), result.shape, tensor=result, label="linear", **attrs)
    return result


def _delay_linear(
    rec: Recorder, run: Run, input: Any, weight: Any, delay: Any, bias: Any = None, *,
    longest: int, time_axis: int | None = None, history: Any = None,
) -> Any:  # fmt: skip
    weight, bias, delays = weight_of(rec, weight, "a weight"), weight_of(rec, bias, "a bias"), weight_of(rec, delay, "a delay")
    x = rec.operand(input)
    result = run()
    attrs: dict[str, Any] = {"weight": weight, "bias": bias, "delay": delays, "time_axis": time_axis}
    rec.emit("linear", (x,), result.shape, tensor=result, label="linear", **attrs)
    return result


def _delay_axons(
    rec: Recorder, run: Run, input: Any, delay: Any, *, longest: int, time_axis: int | None = None, history: Any = None
) -> Any:
    x, delays = rec.operand(input), weight_of(rec, delay, "a delay")
    result = run()
    rec.emit("delay", (x,), result.shape, tensor=result, label="delay", delay=delays, time_axis=time_axis)
    return result


def _matmul(rec: Recorder, run: Run, input: Any, other: Any, *, bias: Any = None, out: None = None) -> Any:
    if rec.dynamic(input) and rec.dynamic(other):
        unsupported(rec, "matmul", "between two values that depend on the input")
    left = rec.dynamic(input)
    x = rec.operand(input if left else other)
    matrix = weight_of(rec, other if left else input, "a weight")
    rec.touch(other if left else input)
    if matrix.array.ndim != 2 or (not left and len(shape_of(x)) != 1):
        unsupported(rec, "matmul", f"of shapes {tuple(input.shape)} and {tuple(other.shape)}")
    weight = Const(np.ascontiguousarray(matrix.array.T) if left else matrix.array, matrix.name)
    result = run()
    rec.emit("linear", (x,), result.shape, tensor=result, weight=weight, bias=bias, label="linear")
    return result


def _mv(rec: Recorder, run: Run, input: Any, vec: Any) -> Any:
    return _matmul(rec, run, input, vec)


def _addmm(rec: Recorder, run: Run, input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    if beta != 1 or alpha != 1 or input.ndim != 1:
        unsupported(rec, "addmm", "except for a bias and a weight")
    return _matmul(rec, run, mat1, mat2, bias=weight_of(rec, input, "a bias"))


def _tuple(item: Any, count: int) -> tuple[int, ...]:
    return (int(item),) * count if isinstance(item, int) else tuple(int(n) for n in item) * (count if len(item) == 1 < count else 1)


def _conv(space: int) -> Handler:
    def handler(
        rec: Recorder, run: Run, input: Any, weight: Any, bias: Any = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Any:  # fmt: skip
        weight, bias = weight_of(rec, weight, "a weight"), weight_of(rec, bias, "a bias")
        x = rec.operand(input)
        dilation = _tuple(dilation, space)
        if padding == "valid":
            padding = 0
        elif padding == "same":
            reach = [d * (k - 1) for d, k in zip(dilation, weight.array.shape[2:], strict=True)]
            if any(n % 2 for n in reach):
                unsupported(rec, f"conv{space}d", "with padding='same' and an even kernel")
            padding = [n // 2 for n in reach]
        result = run()
        attrs = {"stride": _tuple(stride, space), "padding": _tuple(padding, space), "dilation": dilation, "groups": int(groups)}
        rec.emit("conv", (x,), result.shape, tensor=result, weight=weight, bias=bias, label="conv", space=space, **attrs)
        return result

    return handler


def _emit_pool(
    rec: Recorder, run: Run, x: Any, mode: str, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> Any:
    result = run()
    space = shape_of(x)[-len(kernel) :]
    floor = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(space, padding, kernel, stride, strict=True))
    if tuple(result.shape[-len(kernel) :]) != floor:
        unsupported(rec, "pool", "with ceil_mode=True and windows that reach over the edge")
    rec.emit(
        "pool",
        (x,),
        result.shape,
        tensor=result,
        label="pool",
        mode=mode,
        kernel=kernel,
        stride=stride,
        padding=padding,
        space=len(kernel),
    )
    return result


def _avg_pool(space: int) -> Handler:
    def handler(
        rec: Recorder, run: Run, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
        ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
    ) -> Any:  # fmt: skip
        kernel = _tuple(kernel_size, space)
        pad = _tuple(padding, space)
        if divisor_override is not None or (any(pad) and not count_include_pad):
            unsupported(rec, f"avg_pool{space}d", "with divisor_override or count_include_pad=False")
        return _emit_pool(rec, run, rec.operand(input), "average", kernel, _tuple(stride, space) if stride else kernel, pad)

    return handler


def _lp_pool(space: int) -> Handler:
    def handler(
        rec: Recorder, run: Run, input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
    ) -> Any:
        if norm_type != 1:
            unsupported(rec, f"lp_pool{space}d", f"with norm_type={norm_type}; 1 is a sum")
        kernel = _tuple(kernel_size, space)
        return _emit_pool(rec, run, rec.operand(input), "sum", kernel, _tuple(stride, space) if stride else kernel, (0,) * space)

    return handler


def _max_pool(space: int) -> Handler:
    def handler(
        rec: Recorder, run: Run, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        if return_indices or set(_tuple(dilation, space)) != {1}:
            unsupported(rec, f"max_pool{space}d", "with dilation or return_indices")
        kernel = _tuple(kernel_size, space)
        return _emit_pool(
            rec, run, rec.operand(input), "max", kernel, _tuple(stride, space) if stride else kernel, _tuple(padding, space)
        )

    return handler


def _adaptive(space: int, mode: str) -> Handler:
    def handler(rec: Recorder, run: Run, input: Any, output_size: Any, return_indices: bool = False) -> Any:
        x = rec.operand(input)
        sizes = shape_of(x)[-space:]
        wanted = [
            n if m is None else m
            for n, m in zip(sizes, [output_size] * space if isinstance(output_size, int) else output_size, strict=True)
        ]
        if any(n % m for n, m in zip(sizes, wanted, strict=True)):
            unsupported(rec, f"adaptive_{mode}_pool", f"from {sizes} to {tuple(wanted)}: the windows differ in size")
        kernel = tuple(n // m for n, m in zip(sizes, wanted, strict=True))
        return _emit_pool(rec, run, x, "average" if mode == "avg" else "max", kernel, kernel, (0,) * space)

    return handler


def norm_numbers(*, mean: Any, variance: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any]:
    """Factor and offset of a batch norm in eval mode, per channel, in torch's own arithmetic."""
    factor = 1 / torch.sqrt(variance + eps)
    factor = factor if weight is None else factor * weight
    return factor, (0 if bias is None else bias) - mean * factor


def _batch_norm(
    rec: Recorder, run: Run, input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: Any = 0.1, eps: float = 1e-5, *more: Any,
) -> Any:  # fmt: skip
    if training or running_mean is None:
        rec.fail(
            "SPK102", "batch norm with the statistics of the batch mixes its entries", fix="use running statistics and eval mode"
        )
    parts = {"mean": running_mean, "variance": running_var, "weight": weight, "bias": bias}
    recipe = tuple((part, None if item is None else rec.keys.get(id(item), "")) for part, item in parts.items())
    if any(key == "" for _, key in recipe):
        rec.touch(list(parts.values()), derived=True)
        recipe = ()
    with rec.pause():
        factor, offset = norm_numbers(eps=eps, **parts)
        rec.mark_static([factor, offset])
    x = rec.operand(input)
    constants = rec.constant(factor), rec.constant(offset)
    result = run()
    attrs: dict[str, Any] = {"recipe": (*recipe, ("eps", eps)) if recipe else ()}
    rec.emit("affine", (x,), result.shape, tensor=result, label="norm", factor=constants[0], offset=constants[1], **attrs)
    return result


def _reduce(fn: str) -> Handler:
    def handler(
        rec: Recorder,
        run: Run,
        input: Any,
        dim: Any = None,
        keepdim: bool = False,
        *,
        axis: Any = None,
        dtype: Any = None,
        out: None = None,
    ) -> Any:
        dim = axis if dim is None else dim
        if isinstance(dim, torch.Tensor):
            a, b = rec.operand(input), rec.operand(dim)
            return finish(rec, run, fn, a, b)
        x = rec.operand(input)
        result = run()
        dims = range(input.ndim) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
        tensor = result if isinstance(result, torch.Tensor) else result[0]
        if tensor is not result:
            loc, site, event = rec.current
            nothing = Op("indices", (), {}, [], loc, "", site, event)
            rec.hang(result[1], Value(tuple(result[1].shape), nothing, refused=f"{fn} with its indices"))
        axes = tuple(sorted(d % input.ndim for d in dims)) if input.ndim else ()
        rec.emit("reduce", (x,), tensor.shape, tensor=tensor, label=fn, fn=fn, axes=axes, keepdim=bool(keepdim))
        return result

    return handler


#: The functions of spikec.nn.
SYNAPSES: Final[dict[str, Handler]] = {"sparse_linear": _sparse_linear, "delay_linear": _delay_linear, "delay_axons": _delay_axons}
LAYERS: Final[dict[str, Handler]] = {
    "linear": _linear,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "__rmatmul__": _matmul,
    "mm": _matmul,
    "mv": _mv,
    "addmm": _addmm,
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "avg_pool1d": _avg_pool(1),
    "avg_pool2d": _avg_pool(2),
    "lp_pool1d": _lp_pool(1),
    "lp_pool2d": _lp_pool(2),
    "max_pool1d": _max_pool(1),
    "max_pool2d": _max_pool(2),
    "adaptive_avg_pool1d": _adaptive(1, "avg"),
    "adaptive_avg_pool2d": _adaptive(2, "avg"),
    "adaptive_max_pool1d": _adaptive(1, "max"),
    "adaptive_max_pool2d": _adaptive(2, "max"),
    "batch_norm": _batch_norm,
    "sum": _reduce("sum"),
    "mean": _reduce("mean"),
    "max": _reduce("max"),
    "amax": _reduce("max"),
    "min": _reduce("min"),
    "amin": _reduce("min"),
}
