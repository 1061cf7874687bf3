"""Element-wise functions: each number of the result depends on the numbers at the same place only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from spikec.frontend.tracing.handling import Handler, Run, alias, between, finish, save, truth_of, unsupported
from spikec.frontend.tracing.values import shape_of

if TYPE_CHECKING:
    from spikec.frontend.tracing.record import Recorder


def _binary(fn: str, swap: bool = False) -> Handler:
    def handler(rec: Recorder, run: Run, input: Any, other: Any, *, out: None = None) -> Any:
        if other is None:
            return run()
        a, b = rec.operand(input), rec.operand(other)
        return finish(rec, run, fn, *((b, a) if swap else (a, b)))

    return handler


def _add(rec: Recorder, run: Run, input: Any, other: Any, alpha: Any = 1, *, out: None = None) -> Any:
    a, b = rec.operand(input), rec.operand(other)
    return finish(rec, run, "+", a, b if alpha == 1 else between(rec, "*", b, alpha))


def _sub(rec: Recorder, run: Run, input: Any, other: Any, alpha: Any = 1, *, out: None = None) -> Any:
    a, b = rec.operand(input), rec.operand(other)
    return finish(rec, run, "-", a, b if alpha == 1 else between(rec, "*", b, alpha))


def _rsub(rec: Recorder, run: Run, input: Any, other: Any, alpha: Any = 1) -> Any:
    a, b = rec.operand(input), rec.operand(other)
    return finish(rec, run, "-", b, a if alpha == 1 else between(rec, "*", a, alpha))


def _div(rec: Recorder, run: Run, input: Any, other: Any, *, rounding_mode: str | None = None, out: None = None) -> Any:
    a, b = rec.operand(input), rec.operand(other)
    if rounding_mode is None:
        return finish(rec, run, "/", a, b)
    if rounding_mode == "floor":
        return finish(rec, run, "floor", between(rec, "/", a, b))
    return _truncated(rec, run, between(rec, "/", a, b))


def _truncated(rec: Recorder, run: Run, value: Any) -> Any:
    """Toward zero: the floor of the magnitude, with the sign put back."""
    below = between(rec, "neg", between(rec, "floor", between(rec, "neg", value)))
    return finish(rec, run, "select", between(rec, "<", value, 0, boolean=True), below, between(rec, "floor", value))


def _trunc(rec: Recorder, run: Run, input: Any) -> Any:
    return _truncated(rec, run, rec.operand(input))


def _unary(fn: str) -> Handler:
    def handler(rec: Recorder, run: Run, input: Any, *, out: None = None) -> Any:
        return finish(rec, run, fn, rec.operand(input))

    return handler


def _floor_divide(rec: Recorder, run: Run, input: Any, other: Any) -> Any:
    return finish(rec, run, "floor", between(rec, "/", rec.operand(input), rec.operand(other)))


def _round(rec: Recorder, run: Run, input: Any, *, decimals: int = 0) -> Any:
    if decimals:
        unsupported(rec, "round", "with decimals")
    return finish(rec, run, "round", rec.operand(input))


def _logical_not(rec: Recorder, run: Run, input: Any) -> Any:
    value = rec.operand(input)
    boolean = getattr(value, "boolean", False)
    return finish(rec, run, "not", value) if boolean else finish(rec, run, "==", value, 0)


def _logical(fn: str) -> Handler:
    def handler(rec: Recorder, run: Run, input: Any, other: Any) -> Any:
        return finish(rec, run, fn, truth_of(rec, input), truth_of(rec, other))

    return handler


def _where(rec: Recorder, run: Run, condition: Any, input: Any = None, other: Any = None, *, x: Any = None, y: Any = None) -> Any:
    a, b = input if x is None else x, other if y is None else y
    if a is None:
        rec.fail("SPK103", "where with one argument gives as many indices as the input happens to have")
    return finish(rec, run, "select", truth_of(rec, condition), rec.operand(a), rec.operand(b))


def _tensor_where(rec: Recorder, run: Run, input: Any, condition: Any, other: Any) -> Any:
    return _where(rec, run, condition, input, other)


def _masked_fill(rec: Recorder, run: Run, input: Any, mask: Any, value: Any) -> Any:
    return finish(rec, run, "select", truth_of(rec, mask), rec.operand(value), rec.operand(input))


def _clamp(rec: Recorder, run: Run, input: Any, min: Any = None, max: Any = None, *, out: None = None) -> Any:
    value = rec.operand(input)
    if min is not None and max is not None:
        return finish(rec, run, "min", between(rec, "max", value, rec.operand(min)), rec.operand(max))
    return finish(rec, run, "max", value, rec.operand(min)) if min is not None else finish(rec, run, "min", value, rec.operand(max))


def _clamp_min(rec: Recorder, run: Run, input: Any, min: Any) -> Any:
    return _clamp(rec, run, input, min)


def _clamp_max(rec: Recorder, run: Run, input: Any, max: Any) -> Any:
    return _clamp(rec, run, input, None, max)


def _hardtanh(rec: Recorder, run: Run, input: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Any:
    return _clamp(rec, run, input, min_val, max_val)


def _relu(rec: Recorder, run: Run, input: Any, inplace: bool = False) -> Any:
    value = rec.operand(input)
    if inplace:
        save(rec, input)
    return finish(rec, run, "max", value, 0)


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
    low = between(rec, "select", between(rec, "<", value, 0, boolean=True), -1, 0)
    return finish(rec, run, "select", between(rec, ">", value, 0, boolean=True), 1, low)


def _square(rec: Recorder, run: Run, input: Any) -> Any:
    value = rec.operand(input)
    return finish(rec, run, "*", value, value)


def _pow(rec: Recorder, run: Run, input: Any, exponent: Any) -> Any:
    if not isinstance(exponent, (int, float)) or exponent not in (1, 2, 3):
        unsupported(rec, "pow", "except with exponents 1, 2 and 3")
    value = rec.operand(input)
    if exponent == 1:
        return alias(rec, run, input)
    return finish(rec, run, "*", value if exponent == 2 else between(rec, "*", value, value), value)


def _reciprocal(rec: Recorder, run: Run, input: Any) -> Any:
    return finish(rec, run, "/", 1.0, rec.operand(input))


def _ceil(rec: Recorder, run: Run, input: Any, *, out: None = None) -> Any:
    return finish(rec, run, "neg", between(rec, "floor", between(rec, "neg", rec.operand(input))))


def _leaky_relu(rec: Recorder, run: Run, input: Any, negative_slope: Any = 0.01, inplace: bool = False) -> Any:
    value = rec.operand(input)
    if inplace:
        save(rec, input)
    return finish(rec, run, "select", between(rec, ">", value, 0, boolean=True), value, between(rec, "*", value, negative_slope))


def _copy(rec: Recorder, run: Run, input: Any, src: Any, non_blocking: bool = False) -> Any:
    value = rec.operand(src)
    result = run()
    if shape_of(value) != tuple(result.shape):
        rec.emit("expand", (value,), result.shape, tensor=result)
    elif rec.dynamic(src):
        rec.hang(result, value)  # type: ignore[arg-type]  # a tensor
    else:
        rec.mark_static(result)
    return result


def _int(rec: Recorder, run: Run, input: Any) -> Any:
    return alias(rec, run, input)


ELEMENTWISE: Final[dict[str, Handler]] = {
    "add": _add,
    "__add__": _add,
    "__radd__": _add,
    "sub": _sub,
    "subtract": _sub,
    "__sub__": _sub,
    "__rsub__": _rsub,
    "rsub": _rsub,
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), _binary("*")),
    **dict.fromkeys(("div", "divide", "true_divide", "__truediv__", "__div__"), _div),
    **dict.fromkeys(("__rdiv__", "__rtruediv__"), _binary("/", swap=True)),
    **dict.fromkeys(("floor_divide", "__floordiv__"), _floor_divide),
    **dict.fromkeys(("gt", "greater", "__gt__"), _binary(">")),
    **dict.fromkeys(("ge", "greater_equal", "__ge__"), _binary(">=")),
    **dict.fromkeys(("lt", "less", "__lt__"), _binary("<")),
    **dict.fromkeys(("le", "less_equal", "__le__"), _binary("<=")),
    **dict.fromkeys(("eq", "__eq__"), _binary("==")),
    **dict.fromkeys(("ne", "not_equal", "__ne__"), _binary("!=")),
    "maximum": _binary("max"),
    "minimum": _binary("min"),
    "fmax": _binary("max"),
    "fmin": _binary("min"),
    "remainder": _binary("rem"),
    "__mod__": _binary("rem"),
    "neg": _unary("neg"),
    "negative": _unary("neg"),
    "__neg__": _unary("neg"),
    "abs": _unary("abs"),
    "absolute": _unary("abs"),
    "floor": _unary("floor"),
    "round": _round,
    "trunc": _trunc,
    "fix": _trunc,
    "logical_not": _logical_not,
    "__invert__": _logical_not,
    "bitwise_not": _logical_not,
    **dict.fromkeys(("logical_and", "__and__", "__rand__", "bitwise_and"), _logical("and")),
    **dict.fromkeys(("logical_or", "__or__", "__ror__", "bitwise_or"), _logical("or")),
    **dict.fromkeys(("logical_xor", "__xor__", "bitwise_xor"), _logical("!=")),
    "where": _where,
    "masked_fill": _masked_fill,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "hardtanh": _hardtanh,
    "relu": _relu,
    "relu6": _relu6,
    "leaky_relu": _leaky_relu,
    "ceil": _ceil,
    "heaviside": _heaviside,
    "sign": _sign,
    "square": _square,
    "pow": _pow,
    "__pow__": _pow,
    "reciprocal": _reciprocal,
    "copy": _copy,
    "fill": _copy,
    **dict.fromkeys(("int", "long", "short", "byte", "bool", "char"), _int),
}
