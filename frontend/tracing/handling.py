"""What the handlers of torch functions share: refusing, following in-place changes, emitting element-wise operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import torch

from spikec.frontend.tracing.values import Operand, Value, shape_of

if TYPE_CHECKING:
    from spikec.frontend.tracing.record import Recorder

#: Lets torch compute the call that is being recorded.
Run = Callable[[], Any]
#: Takes the recorder, `run`, and the call's own arguments; returns what the call returns.
Handler = Callable[..., Any]
LABELS: Final = {"+": "add", "-": "sub", "*": "mul", "/": "div"}


def execute(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Let torch compute; mark what it raises as the model's failure and not ours."""
    try:
        return func(*args, **kwargs)
    except Exception as error:
        error.__dict__["raised_by_torch"] = True
        raise


def unsupported(rec: Recorder, name: str, how: str = "") -> NoReturn:
    """SPK101 inside a library's module, else SPK102."""
    module, plain = rec.module, name.strip("_").removeprefix("get__:")
    if module is not None and type(module).__module__.startswith("torch.nn"):
        kind = type(module).__name__
        rec.fail("SPK101", f"{kind} is not supported" + (f" {how}" if how else ""), fix=fix_for(plain) if not how else None)
    rec.fail(
        "SPK102",
        f"the operation {plain} is not supported" + (f" {how}" if how else " on values that depend on the input"),
        fix=fix_for(plain) if not how else None,
    )


_READOUT: Final = (
    "at the end of the network: return what goes into {0}, and apply {0} to the result; inside, no neuron can compute it"
)
_FIXES: Final = {
    **dict.fromkeys(
        (
            "softmax",
            "log_softmax",
            "softmin",
            "sigmoid",
            "logsigmoid",
            "tanh",
            "exp",
            "log",
            "sqrt",
            "softplus",
            "gelu",
            "silu",
            "elu",
            "erf",
        ),
        _READOUT,
    ),
    **dict.fromkeys(("argmax", "argmin", "topk", "sort", "argsort", "max with its indices", "min with its indices"), _READOUT),
    **dict.fromkeys(("var", "std", "norm", "logsumexp", "cross_entropy", "nll_loss", "mse_loss", "normalize"), _READOUT),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        "repeat the entries (F.interpolate, mode nearest) and convolve: that is a gather and a convolution",
    ),
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm"), "use batch norm, whose statistics are constants after training"),
    **dict.fromkeys(("einsum", "bmm", "tensordot", "baddbmm"), "write it with a weight matrix: x @ weight.T, or nn.Linear"),
    **dict.fromkeys(("addcmul", "addcdiv", "lerp", "addmv"), "write it out with +, - and *"),
    **dict.fromkeys(("conv3d", "max_pool3d", "avg_pool3d"), "step through the third axis: it is usually time"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention"), "only spiking layers can be compiled"),
}


#: What to do instead of functions that cannot be had -> which those are, for the support table.
REFUSED: Final = {text.format("it"): [name for name in _FIXES if _FIXES[name] == text] for text in dict.fromkeys(_FIXES.values())}


def fix_for(name: str) -> str | None:
    """What to do instead of an operation that cannot be had."""
    text = _FIXES.get(name)
    word = f"arg{name.partition(' ')[0]}" if name.endswith("indices") else name
    return text.format(word) if text else None


def tensor_items(item: Any) -> Iterator[Any]:
    """The tensors in a result."""
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, (tuple, list)):
        for inner in item:
            yield from tensor_items(inner)


def save(rec: Recorder, tensor: Any) -> None:
    """Before a change in place: keep what was captured, and poison what shares the memory unseen."""
    value = rec.value_of(tensor)
    if value is not None and value.tensor is tensor:
        with rec.pause():
            value.tensor = tensor.clone()
            value.version = value.tensor._version
    base = tensor._base
    if base is not None and rec.value_of(base) is None:
        poison = new_value(())
        rec.hang(base, poison)
        tag = base.__dict__["_spikec_tag"]
        tag.version = -1


def new_value(shape: Sequence[int]) -> Value:
    """A value that no operation has made yet."""
    return Value(tuple(shape))


def alias(rec: Recorder, run: Run, source: Any) -> Any:
    """A result that holds the same numbers as its source."""
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


def between(rec: Recorder, fn: str, *operands: Operand, boolean: bool = False) -> Value:
    """An element-wise step in between, which no tensor holds."""
    shape = torch.broadcast_shapes(*(shape_of(item) for item in operands))
    return rec.emit("ew", operands, shape, boolean=boolean, label=fn, fn=fn)


def finish(rec: Recorder, run: Run, fn: str, *operands: Operand) -> Any:
    """The last element-wise step, which the result of the call holds."""
    result = run()
    boolean = result.dtype == torch.bool
    if boolean:
        fn = {"*": "and", "+": "or", "max": "or", "min": "and"}.get(fn, fn)
    rec.emit("ew", operands, result.shape, tensor=result, boolean=boolean, fn=fn, label=LABELS.get(fn, fn))
    return result


def truth_of(rec: Recorder, item: Any) -> Operand:
    """An operand as truth values: numbers are compared with 0."""
    value = rec.operand(item)
    array = getattr(value, "array", None)
    if getattr(value, "boolean", False) or (array is not None and array.dtype == np.bool_):
        return value
    return between(rec, "!=", value, 0, boolean=True)
