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
| delay | the operand some steps ago, one number of steps or one for each entry |
| leaf | a neuron module of the table |
| carry | the first operand, which the step before left, at the step of the second |
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from spikec.frontend.registry import Support
from spikec.frontend.tracing.elementwise import ELEMENTWISE
from spikec.frontend.tracing.handling import REFUSED, Handler, alias, execute, fix_for, save, tensor_items, unsupported
from spikec.frontend.tracing.layers import LAYERS, SYNAPSES
from spikec.frontend.tracing.moves import MOVES

if TYPE_CHECKING:
    from spikec.frontend.tracing.record import Recorder

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


#: Layers whose weights are in the graph as they are.
WEIGHTED: Final = frozenset({"linear", "conv1d", "conv2d", "batch_norm"})
HANDLERS: Final[dict[str, Handler]] = {**ELEMENTWISE, **LAYERS, **SYNAPSES, **MOVES}


def name_of(func: Any) -> str:
    """The short name of a torch function: `add`, `__getitem__`, `__get__:T`."""
    name: str = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__", "__delete__"):
        return f"{name}:{getattr(getattr(func, '__self__', None), '__name__', '')}"
    return name


def plain(name: str) -> bool:
    """Whether a function computes element by element, or is a layer that reads its operands in order."""
    base = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    base = "__" + name[3:] if name.startswith("__i") and name not in ("__invert__", "__index__", "__int__") else base
    return base in ELEMENTWISE or base == "linear"


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
        what = (
            "a branch depends"
            if name in ("__bool__", "is_nonzero", "__contains__", "equal", "allclose")
            else f"{name.strip('_')}() makes a Python number that depends"
        )
        rec.fail("SPK103", f"{what} on input values", fix="keep it a tensor, as in torch.where(condition, a, b)")
    if name in TO_NUMPY:
        rec.fail("SPK106", "a tensor that depends on the input leaves torch here, towards NumPy", fix="use torch's own operations")


def call(rec: Recorder, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function on tensors that derive from the input, and record it."""
    in_place = (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__set__:data")
    base = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    if name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"):
        in_place, base = True, "__" + name[3:]

    def run() -> Any:
        if in_place:
            save(rec, args[0])
        return execute(func, args, kwargs)

    if base in _DROPOUTS:
        return alias(rec, run, args[0] if args else kwargs["input"])
    if base in SHAPE_ONLY or (base == "fill" and not rec.dynamic(args[1])):
        result = run()
        rec.mark_static(result)
        return result
    if base in ALIASES:
        return alias(rec, run, args[0])
    handler = HANDLERS.get(base)
    if handler is None:
        result = execute(func, args, kwargs)
        if not any(True for _ in tensor_items(result)):
            return result
        unsupported(rec, base)
    try:
        bound = inspect.signature(handler).bind(rec, run, *args, **kwargs)
    except TypeError:
        unsupported(rec, base, "with these arguments")
    return handler(*bound.args, **bound.kwargs)


def _named(table: Mapping[str, Handler]) -> str:
    return ", ".join(sorted({name for name in table if not name.startswith("_")}))


SUPPORT: Final = (
    Support("element by element", _named(ELEMENTWISE), "exact"),
    Support("layers and reductions", _named(LAYERS), "exact", "a weight is a constant, batch norm is in eval mode"),
    Support("views and indexing", _named(MOVES), "exact"),
    Support("shape only", ", ".join(sorted(SHAPE_ONLY)), "exact"),
    Support("autograd functions", "a Heaviside step forwards", "exact"),
    Support("autograd functions", "anything else", "refused", "make forward return (x > 0).float()"),
    Support(
        "random numbers", ", ".join(sorted(n for n in RANDOM - _DROPOUTS if not n.endswith("_"))), "refused", "draw them first"
    ),
    *(Support("functions", ", ".join(names), "refused", instead) for instead, names in REFUSED.items()),
)

__all__ = ["HANDLERS", "INVISIBLE", "SUPPORT", "call", "check_leak", "check_random", "fix_for", "name_of", "plain"]
