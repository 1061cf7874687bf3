"""From torch's many functions to the tracer's few operations.

Each handler reads its operands, lets torch compute, and emits operations:

| kind | meaning |
|---|---|
| ew | element-wise `fn` of the neuron language on broadcast operands |
| linear, conv, pool, affine | x @ W.T + b; convolution; sum, average, max pool; factor * x + offset per channel |
| reshape, squeeze, unsqueeze, permute, expand | the same numbers in another layout |
| pick, gather | one index of an axis; several indices of an axis |
| stack, cat | several tensors side by side |
| reduce | sum, mean, max or min over axes |
| leaf | a neuron module of the table |
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from spikec.diagnostics import CompileError
from spikec.frontend.registry import Leaf

if TYPE_CHECKING:
    from spikec.frontend.tracing.record import Operand, Recorder, Value

Run = Callable[[], Any]
Handler = Callable[..., Any]

#: Calls that say nothing about values and happen all the time.
INVISIBLE: Final = frozenset(
    {
        "_set_grad_enabled", "size", "dim", "numel", "nelement", "is_contiguous", "stride", "__len__", "is_floating_point",
        "__get__:shape", "__get__:ndim", "__get__:device", "__get__:dtype", "__get__:grad_fn", "__get__:is_cuda",
        "__get__:requires_grad", "__get__:layout", "__get__:is_sparse", "__get__:is_leaf", "__get__:grad", "__get__:is_mps",
        "__get__:names", "__get__:is_quantized", "__get__:itemsize", "__get__:nbytes", "__set__:requires_grad",
        "__get__:_version", "__get__:_base", "is_complex", "is_same_size", "__hash__", "ndimension", "get_device",
        "element_size", "backward", "__repr__", "__str__", "register_hook", "data_ptr", "retain_grad", "is_tensor",
        "result_type", "__dir__", "__set__:grad", "storage_offset", "is_inference", "is_conj", "is_neg", "__get__:is_meta",
    }
)  # fmt: skip
#: The result holds the same numbers: another dtype of the same value, a copy, or the tensor itself.
ALIASES: Final = frozenset(
    {
        "detach", "clone", "contiguous", "float", "double", "to", "type", "cpu", "requires_grad", "type_as", "__get__:data",
        "alias", "positive", "__pos__", "dequantize", "cuda", "pin_memory", "__get__:real", "identity", "to_dense",
    }
)  # fmt: skip
#: The result takes only the shape of the operand.
SHAPE_ONLY: Final = frozenset(
    {
        "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor",
        "zero", "fill_constant",
    }
)  # fmt: skip
TO_PYTHON: Final = frozenset(
    {
        "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__complex__", "equal", "allclose", "__contains__",
        "is_nonzero", "__format__",
    }
)  # fmt: skip
TO_NUMPY: Final = frozenset({"numpy", "__array__", "__array_wrap__", "__dlpack__", "to_dlpack", "untyped_storage", "storage"})
RANDOM: Final = frozenset(
    {
        "rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "poisson", "normal", "rand_like", "randn_like",
        "randint_like", "normal_", "uniform_", "bernoulli_", "random_", "exponential_", "geometric_", "log_normal_", "cauchy_",
        "alpha_dropout", "feature_alpha_dropout", "feature_dropout", "gumbel_softmax", "rrelu", "dropout", "dropout1d",
        "dropout2d", "dropout3d", "dropout_", "native_dropout", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_",
    }
)  # fmt: skip
_DROPOUTS: Final = frozenset(name for name in RANDOM if "dropout" in name)


def name_of(func: Any) -> str:
    """The short name of a torch function: `add`, `__getitem__`, `__get__:T`."""
    name: str = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__", "__delete__"):
        return f"{name}:{getattr(getattr(func, '__self__', None), '__name__', '')}"
    return name


def check_random(rec: Recorder, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """A random number would make two runs differ."""
    if name not in RANDOM:
        return
    if name in _DROPOUTS:
        given = {**dict(zip(("input", "p", "training"), args, strict=False)), **kwargs}
        if not given.get("training", given.get("train", True)) or given.get("p", 0.5) == 0:
            return
        rec.fail(
            "SPK107",
            f"{name} drops at random, also in eval mode",
            fix="use nn.Dropout, or pass training=self.training",
        )
    rec.fail("SPK107", f"{name} draws random numbers, so that no two runs are alike", fix="compute it before the model is called")


def check_leak(rec: Recorder, name: str) -> None:
    """A value that depends on the input must stay a tensor."""
    if name in TO_PYTHON:
        what = "a branch depends" if name in ("__bool__", "is_nonzero", "__contains__", "equal", "allclose") else f"{name.strip('_')}() makes a Python number that depends"
        rec.fail("SPK103", f"{what} on input values", fix="keep it a tensor, as in torch.where(condition, a, b)")
    if name in TO_NUMPY:
        rec.fail("SPK106", "a tensor that depends on the input leaves torch here, towards NumPy", fix="use torch's own operations")


def call(rec: Recorder, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function on tensors that derive from the input, and record it."""
    in_place = name.endswith("_") and not name.endswith("__") or name in ("__setitem__", "__set__:data")
    base = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    if name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"):
        in_place, base = True, "__" + name[3:]

    def run() -> Any:
        if in_place:
            _save(rec, args[0])
        return func(*args, **kwargs)

    if base in _DROPOUTS:
        return _alias(rec, run, args[0] if args else kwargs["input"])
    if base in SHAPE_ONLY or (base == "fill" and not rec.dynamic(args[1])):
        result = run()
        rec.mark_static(result)
        return result
    if base in ALIASES:
        return _alias(rec, run, args[0])
    handler = HANDLERS.get(base)
    if handler is None:
        result = func(*args, **kwargs)
        if not any(True for _ in _tensor_items(result)):
            return result
        unsupported(rec, base)
    try:
        bound = inspect.signature(handler).bind(rec, run, *args, **kwargs)
    except TypeError:
        unsupported(rec, base, "with these arguments")
    return handler(*bound.args, **bound.kwargs)


def unsupported(rec: Recorder, name: str, how: str = "") -> Any:
    """SPK101 inside a library's module, else SPK102."""
    module = rec.module
    if module is not None and type(module).__module__.startswith("torch.nn"):
        rec.fail("SPK101", f"{type(module).__name__} is not supported" + (f" {how}" if how else ""))
    rec.fail("SPK102", f"the operation {name.strip('_')} is not supported" + (f" {how}" if how else " on values that depend on the input"))


def _tensor_items(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, (tuple, list)):
        for inner in item:
            yield from _tensor_items(inner)


def _save(rec: Recorder, tensor: Any) -> None:
    """Before a change in place: keep what was captured, and poison what shares the memory unseen."""
    value = rec.value_of(tensor)
    if value is not None and value.tensor is tensor:
        with rec.pause():
            value.tensor = tensor.clone()
            value.version = value.tensor._version
    base = tensor._base
    if base is not None and rec.value_of(base) is None:
        poison = _new_value(())
        rec.hang(base, poison)
        tag = base.__dict__["_spikec_tag"]
        tag.version = -1


def _new_value(shape: Sequence[int]) -> Value:
    from spikec.frontend.tracing.record import Value as Class

    return Class(tuple(shape))


def _alias(rec: Recorder, run: Run, source: Any) -> Any:
    value = rec.value_of(source)
    result = run()
    if not isinstance(result, torch.Tensor) or value is None:
        return result
    if result.dtype in (torch.float16, torch.bfloat16) or result.is_complex():
        rec.fail("SPK102", f"numbers of type {result.dtype} are not supported", fix="use float32 or float64")
    if result.dtype == torch.bool and not value.boolean:
        rec.emit("ew", (value, 0), result.shape, tensor=result, boolean=True, fn="!=")
    elif not result.is_floating_point() and result.dtype != torch.bool and source.is_floating_point() and not value.boolean:
        rec.fail("SPK102", f"a conversion to {result.dtype} cuts off fractions and is not supported", fix="use torch.floor")
    elif result is not source:
        rec.hang(result, value)
    return result


# --------------------------------------------------------------------------------------------------------- element-wise


def shape_of(operand: Operand) -> tuple[int, ...]:
    """Shape of a value or constant; () for a number."""
    array = getattr(operand, "array", operand)
    return tuple(getattr(array, "shape", ()))


def _ew(rec: Recorder, fn: str, *operands: Operand, boolean: bool = False) -> Value:
    """An element-wise step in between, which no tensor holds."""
    shape = torch.broadcast_shapes(*(shape_of(item) for item in operands))
    return rec.emit("ew", operands, shape, boolean=boolean, label=fn, fn=fn)


def _finish(rec: Recorder, run: Run, fn: str, *operands: Operand) -> Any:
    """The last element-wise step, which the result of the call holds."""
    result = run()
    boolean = result.dtype == torch.bool
    if boolean:
        fn = {"*": "and", "+": "or", "max": "or", "min": "and"}.get(fn, fn)
    rec.emit("ew", operands, result.shape, tensor=result, boolean=boolean, fn=fn, label=_LABELS.get(fn, fn))
    return result


_LABELS: Final = {"+": "add", "-": "sub", "*": "mul", "/": "div"}


def _binary(fn: str, swap: bool = False) -> Handler:
    def handler(rec: Recorder, run: Run, input: Any, other: Any, *, out: None = None) -> Any:
        if other is None:
            return run()
        a, b = rec.operand(input), rec.operand(other)
        return _finish(rec, run, fn, *((b, a) if swap else (a, b)))

    return handler


def _add(rec: Recorder, run: Run, input: Any, other: Any, alpha: Any = 1, *, out: None = None) -> Any:
    a, b = rec.operand(input), rec.operand(other)
    return _finish(rec, run, "+", a, b if alpha == 1 else _ew(rec, "*", b, alpha))


def _sub(rec: Recorder, run: Run, input: Any, other: Any, alpha: Any = 1, *, out: None = None) -> Any:
    a, b = rec.operand(input), rec.operand(other)
    return _finish(rec, run, "-", a, b if alpha == 1 else _ew(rec, "*", b, alpha))


def _rsub(rec: Recorder, run: Run, input: Any, other: Any, alpha: Any = 1) -> Any:
    a, b = rec.operand(input), rec.operand(other)
    return _finish(rec, run, "-", b, a if alpha == 1 else _ew(rec, "*", a, alpha))


def _div(rec: Recorder, run: Run, input: Any, other: Any, *, rounding_mode: str | None = None, out: None = None) -> Any:
    a, b = rec.operand(input), rec.operand(other)
    if rounding_mode is None:
        return _finish(rec, run, "/", a, b)
    if rounding_mode == "floor":
        return _finish(rec, run, "floor", _ew(rec, "/", a, b))
    unsupported(rec, "div", "with rounding_mode='trunc'")


def _unary(fn: str) -> Handler:
    def handler(rec: Recorder, run: Run, input: Any, *, out: None = None) -> Any:
        return _finish(rec, run, fn, rec.operand(input))

    return handler


def _floor_divide(rec: Recorder, run: Run, input: Any, other: Any) -> Any:
    return _finish(rec, run, "floor", _ew(rec, "/", rec.operand(input), rec.operand(other)))


def _round(rec: Recorder, run: Run, input: Any, *, decimals: int = 0) -> Any:
    if decimals:
        unsupported(rec, "round", "with decimals")
    return _finish(rec, run, "round", rec.operand(input))


def _logical_not(rec: Recorder, run: Run, input: Any) -> Any:
    value = rec.operand(input)
    boolean = getattr(value, "boolean", False)
    return _finish(rec, run, "not", value) if boolean else _finish(rec, run, "==", value, 0)


def _logical(fn: str) -> Handler:
    def handler(rec: Recorder, run: Run, input: Any, other: Any) -> Any:
        return _finish(rec, run, fn, _truth(rec, input), _truth(rec, other))

    return handler


def _truth(rec: Recorder, item: Any) -> Operand:
    value = rec.operand(item)
    array = getattr(value, "array", None)
    if getattr(value, "boolean", False) or (array is not None and array.dtype == np.bool_):
        return value
    return _ew(rec, "!=", value, 0, boolean=True)


def _where(rec: Recorder, run: Run, condition: Any, input: Any = None, other: Any = None, *, x: Any = None, y: Any = None) -> Any:
    a, b = input if x is None else x, other if y is None else y
    if a is None:
        rec.fail("SPK103", "where with one argument gives as many indices as the input happens to have")
    return _finish(rec, run, "select", _truth(rec, condition), rec.operand(a), rec.operand(b))


def _tensor_where(rec: Recorder, run: Run, input: Any, condition: Any, other: Any) -> Any:
    return _where(rec, run, condition, input, other)


def _masked_fill(rec: Recorder, run: Run, input: Any, mask: Any, value: Any) -> Any:
    return _finish(rec, run, "select", _truth(rec, mask), rec.operand(value), rec.operand(input))


def _clamp(rec: Recorder, run: Run, input: Any, min: Any = None, max: Any = None, *, out: None = None) -> Any:
    value = rec.operand(input)
    if min is not None and max is not None:
        return _finish(rec, run, "min", _ew(rec, "max", value, rec.operand(min)), rec.operand(max))
    return _finish(rec, run, "max", value, rec.operand(min)) if min is not None else _finish(rec, run, "min", value, rec.operand(max))


def _clamp_min(rec: Recorder, run: Run, input: Any, min: Any) -> Any:
    return _clamp(rec, run, input, min)


def _clamp_max(rec: Recorder, run: Run, input: Any, max: Any) -> Any:
    return _clamp(rec, run, input, None, max)


def _hardtanh(rec: Recorder, run: Run, input: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Any:
    return _clamp(rec, run, input, min_val, max_val)


def _relu(rec: Recorder, run: Run, input: Any, inplace: bool = False) -> Any:
    value = rec.operand(input)
    if inplace:
        _save(rec, input)
    return _finish(rec, run, "max", value, 0)


def _relu6(rec: Recorder, run: Run, input: Any, inplace: bool = False) -> Any:
    return _clamp(rec, run, input, 0.0, 6.0)


def _heaviside(rec: Recorder, run: Run, input: Any, values: Any) -> Any:
    x, at_zero = rec.operand(input), rec.operand(values)
    if isinstance(at_zero, (int, float)) or not hasattr(at_zero, "array") or not np.all(at_zero.array == at_zero.array.flat[0]):
        unsupported(rec, "heaviside", "with several values at 0")
    first = float(at_zero.array.flat[0])
    if first not in (0.0, 1.0):
        unsupported(rec, "heaviside", f"with {first} at 0")
    result = run()
    rec.emit("ew", (x, 0), result.shape, tensor=result, boolean=True, fn=">=" if first else ">")
    return result


def _sign(rec: Recorder, run: Run, input: Any) -> Any:
    value = rec.operand(input)
    low = _ew(rec, "select", _ew(rec, "<", value, 0, boolean=True), -1, 0)
    return _finish(rec, run, "select", _ew(rec, ">", value, 0, boolean=True), 1, low)


def _square(rec: Recorder, run: Run, input: Any) -> Any:
    value = rec.operand(input)
    return _finish(rec, run, "*", value, value)


def _pow(rec: Recorder, run: Run, input: Any, exponent: Any) -> Any:
    if not isinstance(exponent, (int, float)) or exponent not in (1, 2, 3):
        unsupported(rec, "pow", "except with exponents 1, 2 and 3")
    value = rec.operand(input)
    if exponent == 1:
        return _alias(rec, run, input)
    return _finish(rec, run, "*", value if exponent == 2 else _ew(rec, "*", value, value), value)


def _reciprocal(rec: Recorder, run: Run, input: Any) -> Any:
    return _finish(rec, run, "/", 1.0, rec.operand(input))


def _copy(rec: Recorder, run: Run, input: Any, src: Any, non_blocking: bool = False) -> Any:
    value = rec.operand(src)
    result = run()
    if shape_of(value) != tuple(result.shape):
        rec.emit("expand", (value,), result.shape, tensor=result)
    elif rec.dynamic(src):
        rec.hang(result, value)  # type: ignore[arg-type]
    else:
        rec.mark_static(result)
    return result


def _int(rec: Recorder, run: Run, input: Any) -> Any:
    return _alias(rec, run, input)


# ----------------------------------------------------------------------------------------------------------- layers


def _const(rec: Recorder, item: Any, what: str) -> Any:
    if item is None:
        return None
    value = rec.operand(item)
    if not hasattr(value, "array"):
        rec.fail("SPK102", f"{what} that depends on the input is not supported", fix="weights must be constants")
    return value


def _linear(rec: Recorder, run: Run, input: Any, weight: Any, bias: Any = None) -> Any:
    weight, bias = _const(rec, weight, "a weight"), _const(rec, bias, "a bias")
    x = rec.operand(input)
    result = run()
    rec.emit("linear", (x,), result.shape, tensor=result, weight=weight, bias=bias, label="linear")
    return result


def _matmul(rec: Recorder, run: Run, input: Any, other: Any, *, bias: Any = None, out: None = None) -> Any:
    from spikec.frontend.tracing.record import Const

    if rec.dynamic(input) and rec.dynamic(other):
        unsupported(rec, "matmul", "between two values that depend on the input")
    left = rec.dynamic(input)
    x = rec.operand(input if left else other)
    matrix = _const(rec, other if left else input, "a weight")
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
    return _matmul(rec, run, mat1, mat2, bias=_const(rec, input, "a bias"))


def _tuple(item: Any, count: int) -> tuple[int, ...]:
    return (int(item),) * count if isinstance(item, int) else tuple(int(n) for n in item) * (count if len(item) == 1 < count else 1)


def _conv(space: int) -> Handler:
    def handler(
        rec: Recorder, run: Run, input: Any, weight: Any, bias: Any = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Any:  # fmt: skip
        weight, bias = _const(rec, weight, "a weight"), _const(rec, bias, "a bias")
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


def _emit_pool(rec: Recorder, run: Run, x: Any, mode: str, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> Any:
    result = run()
    space = shape_of(x)[-len(kernel) :]
    floor = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(space, padding, kernel, stride, strict=True))
    if tuple(result.shape[-len(kernel) :]) != floor:
        unsupported(rec, "pool", "with ceil_mode=True and windows that reach over the edge")
    rec.emit("pool", (x,), result.shape, tensor=result, label="pool", mode=mode, kernel=kernel, stride=stride, padding=padding, space=len(kernel))
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


def _max_pool(space: int) -> Handler:
    def handler(
        rec: Recorder, run: Run, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        if return_indices or set(_tuple(dilation, space)) != {1}:
            unsupported(rec, f"max_pool{space}d", "with dilation or return_indices")
        kernel = _tuple(kernel_size, space)
        return _emit_pool(rec, run, rec.operand(input), "max", kernel, _tuple(stride, space) if stride else kernel, _tuple(padding, space))

    return handler


def _adaptive(space: int, mode: str) -> Handler:
    def handler(rec: Recorder, run: Run, input: Any, output_size: Any, return_indices: bool = False) -> Any:
        x = rec.operand(input)
        sizes = shape_of(x)[-space:]
        wanted = [n if m is None else m for n, m in zip(sizes, [output_size] * space if isinstance(output_size, int) else output_size, strict=True)]
        if any(n % m for n, m in zip(sizes, wanted, strict=True)):
            unsupported(rec, f"adaptive_{mode}_pool", f"from {sizes} to {tuple(wanted)}: the windows differ in size")
        kernel = tuple(n // m for n, m in zip(sizes, wanted, strict=True))
        return _emit_pool(rec, run, x, "average" if mode == "avg" else "max", kernel, kernel, (0,) * space)

    return handler


def _batch_norm(
    rec: Recorder, run: Run, input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: Any = 0.1, eps: float = 1e-5, *more: Any,
) -> Any:  # fmt: skip
    if training or running_mean is None:
        rec.fail("SPK102", "batch norm with the statistics of the batch mixes its entries", fix="use running statistics and eval mode")
    with rec.pause():
        factor = 1 / torch.sqrt(running_var + eps)
        factor = factor if weight is None else factor * weight
        offset = (0 if bias is None else bias) - running_mean * factor
        rec.mark_static([factor, offset])
    x = rec.operand(input)
    attrs = {"factor": rec.constant(factor), "offset": rec.constant(offset)}
    result = run()
    rec.emit("affine", (x,), result.shape, tensor=result, label="norm", **attrs)
    return result


# ----------------------------------------------------------------------------------------------------------- layout


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
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    return rec.emit("pick", (x,), shape, tensor=tensor, axis=axis, index=index)


def _gather(rec: Recorder, x: Value, axis: int, indices: Any, tensor: Any = None) -> Value:
    if len(indices) == 1:
        entry = _pick(rec, x, axis, int(indices[0]))
        shape = (*entry.shape[:axis], 1, *entry.shape[axis:])
        return rec.emit("unsqueeze", (entry,), shape, tensor=tensor, axis=axis)
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


def _land(rec: Recorder, value: Value, tensor: Any) -> None:
    """Hang a value on the tensor that a call returned; the last step's own value is then captured."""
    if value.shape != tuple(tensor.shape):
        unsupported(rec, "indexing", "in this form")
    rec.hang(tensor, value)


def _setitem(rec: Recorder, run: Run, input: Any, index: Any, value: Any) -> Any:
    from spikec.frontend.tracing.record import Filling

    items = index if isinstance(index, tuple) else (index,)
    given = rec.operand(value)
    if len(items) == 1 and isinstance(index, torch.Tensor) and index.dtype == torch.bool:
        base = rec.operand(input)
        mask = _truth(rec, index)
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
    new = _new_value(input.shape)
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


def _reduce(fn: str) -> Handler:
    def handler(rec: Recorder, run: Run, input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, dtype: Any = None, out: None = None) -> Any:
        dim = axis if dim is None else dim
        if isinstance(dim, torch.Tensor):
            return _binary(fn)(rec, run, input, dim)
        x = rec.operand(input)
        result = run()
        dims = range(input.ndim) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
        tensor = result if isinstance(result, torch.Tensor) else result[0]
        axes = tuple(sorted(d % input.ndim for d in dims)) if input.ndim else ()
        rec.emit("reduce", (x,), tensor.shape, tensor=tensor, label=fn, fn=fn, axes=axes, keepdim=bool(keepdim))
        return result

    return handler


HANDLERS: Final[dict[str, Handler]] = {
    "add": _add, "__add__": _add, "__radd__": _add, "sub": _sub, "subtract": _sub, "__sub__": _sub, "__rsub__": _rsub, "rsub": _rsub,
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), _binary("*")),
    **dict.fromkeys(("div", "divide", "true_divide", "__truediv__", "__div__"), _div),
    **dict.fromkeys(("__rdiv__", "__rtruediv__"), _binary("/", swap=True)),
    **dict.fromkeys(("floor_divide", "__floordiv__"), _floor_divide),
    **dict.fromkeys(("gt", "greater", "__gt__"), _binary(">")), **dict.fromkeys(("ge", "greater_equal", "__ge__"), _binary(">=")),
    **dict.fromkeys(("lt", "less", "__lt__"), _binary("<")), **dict.fromkeys(("le", "less_equal", "__le__"), _binary("<=")),
    **dict.fromkeys(("eq", "__eq__"), _binary("==")), **dict.fromkeys(("ne", "not_equal", "__ne__"), _binary("!=")),
    "maximum": _binary("max"), "minimum": _binary("min"), "fmax": _binary("max"), "fmin": _binary("min"),
    "remainder": _binary("rem"), "__mod__": _binary("rem"),
    "neg": _unary("neg"), "negative": _unary("neg"), "__neg__": _unary("neg"), "abs": _unary("abs"), "absolute": _unary("abs"),
    "floor": _unary("floor"), "round": _round, "logical_not": _logical_not, "__invert__": _logical_not, "bitwise_not": _logical_not,
    **dict.fromkeys(("logical_and", "__and__", "__rand__", "bitwise_and"), _logical("and")),
    **dict.fromkeys(("logical_or", "__or__", "__ror__", "bitwise_or"), _logical("or")),
    **dict.fromkeys(("logical_xor", "__xor__", "bitwise_xor"), _logical("!=")),
    "where": _where, "masked_fill": _masked_fill, "clamp": _clamp, "clip": _clamp, "clamp_min": _clamp_min, "clamp_max": _clamp_max,
    "hardtanh": _hardtanh, "relu": _relu, "relu6": _relu6, "heaviside": _heaviside, "sign": _sign, "square": _square,
    "pow": _pow, "__pow__": _pow, "reciprocal": _reciprocal, "copy": _copy, "fill": _copy,
    **dict.fromkeys(("int", "long", "short", "byte", "bool", "char"), _int),
    "linear": _linear, "matmul": _matmul, "__matmul__": _matmul, "__rmatmul__": _matmul, "mm": _matmul, "mv": _mv, "addmm": _addmm,
    "conv1d": _conv(1), "conv2d": _conv(2), "avg_pool1d": _avg_pool(1), "avg_pool2d": _avg_pool(2),
    "max_pool1d": _max_pool(1), "max_pool2d": _max_pool(2), "adaptive_avg_pool1d": _adaptive(1, "avg"),
    "adaptive_avg_pool2d": _adaptive(2, "avg"), "adaptive_max_pool1d": _adaptive(1, "max"), "adaptive_max_pool2d": _adaptive(2, "max"),
    "batch_norm": _batch_norm,
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "view_as", "reshape_as", "ravel"), _reshape),
    "squeeze": _squeeze, "unsqueeze": _unsqueeze, "permute": _permute, "transpose": _transpose, "swapaxes": _transpose,
    "swapdims": _transpose, "t": _reverse_axes, "__get__:T": _reverse_axes, "__get__:mT": _matrix_transpose,
    "movedim": _movedim, "moveaxis": _movedim, "expand": _expand, "expand_as": _expand, "broadcast_to": _expand,
    "__getitem__": _getitem, "__setitem__": _setitem, "unbind": _unbind, "split": _split, "chunk": _split, "select": _select,
    "narrow": _narrow, "index_select": _index_select, "flip": _flip,
    "stack": _joined("stack"), "cat": _joined("cat"), "concat": _joined("cat"), "concatenate": _joined("cat"), "hstack": _hstack,
    "sum": _reduce("sum"), "mean": _reduce("mean"), "max": _reduce("max"), "amax": _reduce("max"), "min": _reduce("min"),
    "amin": _reduce("min"),
}  # fmt: skip


# --------------------------------------------------------------------------------------------------- neurons, surrogates


_PROBES: Final = (-1e6, -50.0, -1.0, -0.5, -1e-3, -1e-30, -0.0, 0.0, 1e-30, 1e-3, 0.25, 0.5, 1.0, 3.0, 50.0, 1e6)


def step_kind(function: Callable[[Any], Any]) -> str | None:
    """`>` or `>=` if the function is a Heaviside step of 0 on a row of probes, else None."""
    probe = torch.tensor([_PROBES, _PROBES[::-1]], dtype=torch.float32)
    try:
        with torch.no_grad():
            result = function(probe.clone())
    except Exception:
        return None
    if not isinstance(result, torch.Tensor) or result.shape != probe.shape:
        return None
    if torch.equal(result.to(torch.float32), (probe > 0).float()):
        return ">"
    return ">=" if torch.equal(result.to(torch.float32), (probe >= 0).float()) else None


def call_surrogate(rec: Recorder, name: str, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An autograd function on a value of the input: taken as a step if it is one."""
    at = [i for i, item in enumerate(args) if rec.dynamic(item)]
    kind = None
    if len(at) == 1:
        with rec.pause():
            kind = step_kind(lambda probe: inner(*args[: at[0]], probe, *args[at[0] + 1 :], **kwargs))
    if kind is None:
        rec.fail(
            "SPK110",
            f"the forward pass of {name} is not a Heaviside step of its input",
            notes=["it was tried on numbers from -1e6 to 1e6: the result must be 0 below zero and 1 above"],
            fix="make forward return (x > 0).float(), and keep the gradient in backward",
        )
    x = rec.operand(args[at[0]])
    with rec.pause():
        result = inner(*args, **kwargs)
    rec.emit("ew", (x, 0), result.shape, tensor=result, boolean=True, fn=kind)
    return result


def call_leaf(
    rec: Recorder, module: Any, leaf: Leaf, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A neuron module of the table: one operation from its inputs and states to all of its variables."""
    try:
        bound = inspect.signature(forward).bind(*args, **kwargs)
    except TypeError:
        return forward(*args, **kwargs)  # the module's own message is the better one
    bound.apply_defaults()
    given = dict(zip(leaf.arguments, bound.arguments.values(), strict=False))
    states = {name: given.get(name) for name in leaf.program.state_names}
    for name, attribute in leaf.hidden.items():
        if states.get(name) is None:
            states[name] = getattr(module, attribute)
    inputs = [given.get(name) for name in leaf.program.inputs]
    if not any(rec.dynamic(item) for item in (*inputs, *states.values())):
        with rec.pause():
            result = forward(*args, **kwargs)
            rec.mark_static([result, [getattr(module, attribute) for attribute in leaf.hidden.values()]])
        return result
    operands = [rec.operand(item) for item in inputs]
    for name, item in states.items():
        fits = item is not None and (not isinstance(item, torch.Tensor) or tuple(item.shape) == tuple(inputs[0].shape))
        operands.append(rec.operand(item) if fits or (item is not None and not leaf.mismatch_resets) else _initial(leaf, name))
    with rec.pause():
        for item in (*inputs, *states.values()):
            if isinstance(item, torch.Tensor):
                _save(rec, item) if item._version and rec.dynamic(item) and rec.capture else None
        result = forward(*args, **kwargs)
    results = (result,) if len(leaf.returns) == 1 else tuple(result)
    if len(results) != len(leaf.returns) or not all(isinstance(item, torch.Tensor) for item in results):
        rec.fail("SPK101", f"{type(module).__name__} did not return {', '.join(leaf.returns)}, as its table entry says")
    variables = tuple(dict.fromkeys((*leaf.returns, *leaf.program.state_names)))
    op = rec.add("leaf", operands, {"leaf": leaf, "variables": variables}, "neuron")
    shape = results[0].shape
    for port, name in enumerate(variables):
        op.outputs.append(_new_value(shape))
        op.outputs[-1].op, op.outputs[-1].port = op, port
        if leaf.program.type_of(name) == "bool":
            op.outputs[-1].boolean = True
    for name, tensor in zip(leaf.returns, results, strict=True):
        rec.hang(tensor, op.outputs[variables.index(name)])
    for name, attribute in leaf.hidden.items():
        rec.hang(getattr(module, attribute), op.outputs[variables.index(name)])
    return result


def _initial(leaf: Leaf, name: str) -> int | float:
    return next(state.init for state in leaf.program.states if state.name == name)


def product(sizes: Sequence[int]) -> int:
    """Product of integers; 1 if there are none."""
    return reduce(operator.mul, sizes, 1)


__all__ = ["ALIASES", "HANDLERS", "INVISIBLE", "CompileError", "call", "call_leaf", "call_surrogate", "finished", "name_of", "shape_of"]
