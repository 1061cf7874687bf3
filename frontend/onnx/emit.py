"""Collecting ONNX nodes, and neuron programs in them.

ONNX promotes nothing: every operand gets the element type that the interpreter's arithmetic would give it. Which one that is, the
interpreter itself says, asked with one number of each operand (`Symbol.sample`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np

from spikec.frontend.onnx.file import onnx
from spikec.ir.interpret import evaluate, float_truth
from spikec.ir.neuron import COMPARISONS, Call, Expr, Num, Var
from spikec.ir.types import Array

_PLAIN: Final = {
    "+": "Add", "-": "Sub", "*": "Mul", "/": "Div", "neg": "Neg", "abs": "Abs", "min": "Min", "max": "Max", "floor": "Floor",
    "round": "Round", "exp": "Exp", "<": "Less", "<=": "LessOrEqual", ">": "Greater", ">=": "GreaterOrEqual", "==": "Equal",
    "and": "And", "or": "Or", "not": "Not",
}  # fmt: skip


@dataclass(frozen=True)
class Symbol:
    """A number of a program, or one for every neuron.

    name: of the ONNX value; None where it is known now, and `sample` is it. sample: a Python number where the interpreter would
    have one, else an array of the type that it would have. full: whether it has the shape (batch, *shape) already.
    """

    name: str | None
    sample: Any
    full: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """As ONNX holds it."""
        if isinstance(self.sample, np.ndarray):
            return np.dtype(self.sample.dtype)
        return np.dtype(np.bool_ if isinstance(self.sample, bool) else np.int64 if isinstance(self.sample, int) else np.float64)


def of_wire(name: str, dtype: np.dtype[Any]) -> Symbol:
    """A value of shape (batch, *shape)."""
    return Symbol(name, np.ones(1, dtype), True)


class Emitter:
    """The nodes of one ONNX graph, within it of the scan's body; constants lie outside, where both see them."""

    def __init__(self, initializers: dict[str, Array], nodes: list[Any] | None = None) -> None:
        self.package: ModuleType = onnx()
        self.initializers = initializers
        self.nodes: list[Any] = [] if nodes is None else nodes
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {
            (array.dtype.str, array.shape, array.tobytes()): name for name, array in initializers.items()
        }
        self.used: set[str] = set(initializers)
        #: Where the nodes come from: the node of the graph, which gives them their names.
        self.prefix = ""
        self.comment = ""

    def fresh(self, name: str) -> str:
        """A value name that is not taken yet."""
        found, number = name, 2
        while found in self.used:
            found, number = f"{name}#{number}", number + 1
        self.used.add(found)
        return found

    def constant(self, value: Any, dtype: Any = None, name: str = "") -> str:
        """An initializer that holds these numbers."""
        array = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            label = str(array.item()) if array.size == 1 and array.ndim == 0 else name or f"{self.prefix}/constant"
            self._known[key] = self.fresh(label)
            self.initializers[self._known[key]] = array
        return self._known[key]

    def op(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """One node; the name of its output."""
        result = self.fresh(output or f"{self.prefix}/{kind}")
        label = f"{self.prefix}/{kind}#{len(self.nodes)}" if self.prefix else f"{kind}#{len(self.nodes)}"
        node = self.package.helper.make_node(kind, list(inputs), [result], name=label, doc_string=self.comment, **attributes)
        self.nodes.append(node)
        return result

    def code(self, dtype: np.dtype[Any]) -> int:
        """ONNX's number for an element type."""
        return int(self.package.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def cast(self, name: str, before: np.dtype[Any], after: Any) -> str:
        """The same numbers in another element type."""
        return name if before == np.dtype(after) else self.op("Cast", [name], to=self.code(np.dtype(after)))

    def tensor(self, symbol: Symbol, dtype: Any) -> str:
        """A symbol as an ONNX value of an element type."""
        if symbol.name is None:
            return self.constant(np.asarray(symbol.sample, dtype))
        return self.cast(symbol.name, symbol.dtype, dtype)

    # -------------------------------------------------------------------------------------------------------- programs

    def express(self, expr: Expr, values: Mapping[str, Symbol]) -> Symbol:
        """An expression; what is known now is computed now, by the interpreter."""
        if isinstance(expr, Num):
            return Symbol(None, expr.value)
        if isinstance(expr, Var):
            return values[expr.name]
        assert isinstance(expr, Call)
        return self.apply(expr.op, [self.express(arg, values) for arg in expr.args])

    def apply(self, op: str, args: Sequence[Symbol]) -> Symbol:
        """One operation of the neuron language."""
        if op == "select" and isinstance(args[0].sample, bool):
            return self._choose(args)
        call = Call(op, tuple(Var(f"a{i}") for i in range(len(args))))
        with np.errstate(all="ignore"):
            found = evaluate(call, {f"a{i}": arg.sample for i, arg in enumerate(args)}, float_truth)
        if all(arg.name is None for arg in args):
            return Symbol(None, found)
        sample = found.ravel()[:1] if isinstance(found, np.ndarray) else found
        result = Symbol("?", sample, any(arg.full for arg in args))
        return Symbol(self._node(op, args, result.dtype), sample, result.full)

    def _choose(self, args: Sequence[Symbol]) -> Symbol:
        """A condition that is one truth value, from the step counter, for all neurons."""
        condition, a, b = args
        if condition.name is None:
            return a if condition.sample else b
        samples = [a.sample, b.sample]
        if any(isinstance(sample, np.ndarray) for sample in samples):
            sample: Any = np.where(np.ones(1, np.bool_), *(float_truth(s) if a.dtype != b.dtype else s for s in samples)).ravel()[
                :1
            ]
        else:
            sample = samples[0] if all(isinstance(s, bool) for s in samples) else sum(samples)
        kept = Symbol("?", sample)
        if a.name is None and b.name is None and not isinstance(sample, np.ndarray) and a.sample == b.sample:
            return Symbol(None, sample if isinstance(sample, bool) else a.sample)
        return Symbol(self._where(condition, a, b, kept.dtype), sample, a.full and b.full)

    def _where(self, condition: Symbol, a: Symbol, b: Symbol, dtype: np.dtype[Any]) -> str:
        chosen = self.tensor(condition, np.bool_)
        first, second = self.tensor(a, dtype), self.tensor(b, dtype)
        if dtype != np.bool_:
            return self.op("Where", [chosen, first, second])
        other = self.op("And", [self.op("Not", [chosen]), second])
        return self.op("Or", [self.op("And", [chosen, first]), other])

    def _node(self, op: str, args: Sequence[Symbol], dtype: np.dtype[Any]) -> str:
        if op == "select":
            return self._where(args[0], args[1], args[2], dtype)
        if op in COMPARISONS:
            with np.errstate(all="ignore"):
                meeting = np.asarray(float_truth(args[0].sample) + float_truth(args[1].sample)).dtype
            operands = [self.tensor(arg, meeting) for arg in args]
            if op == "!=":
                return self.op("Not", [self.op("Equal", operands)])
            return self.op(_PLAIN[op], operands)
        operands = [self.tensor(arg, dtype) for arg in args]
        if op == "rem":
            return self._remainder(operands[0], operands[1], dtype)
        if op in ("floor", "round") and dtype.kind in "iu":
            return self.op("Identity", operands)
        return self.op(_PLAIN[op], operands)

    def _remainder(self, a: str, b: str, dtype: np.dtype[Any]) -> str:
        """Of the divisor's sign: for integers that is ONNX's own; of floats it has only C's fmod."""
        if dtype.kind != "f":
            return self.op("Mod", [a, b])
        rest = self.op("Mod", [a, b], fmod=1)
        zero = self.constant(0, dtype)
        apart = self.op("Xor", [self.op("Less", [rest, zero]), self.op("Less", [b, zero])])
        wrong = self.op("And", [apart, self.op("Not", [self.op("Equal", [rest, zero])])])
        return self.op("Where", [wrong, self.op("Add", [rest, b]), rest])
