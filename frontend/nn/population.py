"""A population's program over all steps as one node of torch's record, with a gradient of its own.

What torch would record operation by operation, step by step, runs here without a record, and what the gradient needs of a step is
kept by hand: several times quicker where populations are small, and much more so as C (`native`), where something to compile with
was given. Values and gradients are those of `graph_module`, which itself runs what is not known here (`Steps.known`): quotients of
what is trained, absolute values, extrema, remainders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from spikec.frontend.nn.native import REAL, WIDEST, Build, Kernel, Plan, kernel
from spikec.ir.neuron import COMPARISONS, LOGIC, STEP, Assign, Call, Expr, Program, Var

#: The value of an expression that no input reaches, from the values by name; last, whether it stands in a state's new value.
Evaluate = Callable[[Expr, Mapping[str, Any], bool], Any]
Gradients = tuple[torch.Tensor | None, ...]
#: Under this name the values of a step have the width of the widest surrogate gradient.
WIDTH: Final = "%widest"
_SHIFTS: Final = frozenset({"<<", ">>", "rtz"})
_ROUNDED: Final = frozenset({"floor", "round", "wrap"})
_KNOWN: Final = frozenset({"+", "-", "*", "/", "neg", "clip", "select", *LOGIC, *_SHIFTS, *_ROUNDED, *COMPARISONS})


def resets(statement: Assign, program: Program) -> bool:
    """Whether a truth in it acts on a state, which is not trained through; a state that is a truth itself keeps a spike."""
    truth = isinstance(statement.expr, Call) and statement.expr.op in (*COMPARISONS, *LOGIC)
    return statement.name in program.state_names and not truth


@dataclass(frozen=True)
class _Fixed:
    """A value that no input reaches, computed as an expression; `always`: from parameters alone, so once for all steps."""

    target: str
    expr: Expr
    resetting: bool
    always: bool


@dataclass(frozen=True)
class Operation:
    """One operation on values that the inputs reach. wanted: of each operand, whether a gradient flows to it."""

    target: str
    op: str
    operands: tuple[str, ...]
    wanted: tuple[bool, ...]


@dataclass(frozen=True)
class _Named:
    """From here on a name of the program that no input reaches has this value."""

    name: str
    value: str


@dataclass(frozen=True)
class Feedback:
    """A population's first emission, `delay` steps ago, reaches one of its inputs through weights (neurons, neurons)."""

    operand: int
    delay: int
    weight: torch.Tensor


class Steps:
    """A program in single operations, to be run forward and backward.

    trained: parameters that get gradients. build: what compiles C; without it steps run one after the other here.
    """

    def __init__(self, program: Program, trained: Sequence[str] = (), build: Build | None = None) -> None:
        self.program = program
        self.widest: float = WIDEST
        self.trained = tuple(trained)
        self.build = build
        self.known = True
        self.code: list[_Fixed | Operation | _Named] = []
        #: Name in the program -> name of its latest value in a step.
        self.now: dict[str, str] = {}
        self._truths: set[str] = set()
        self._reached = {*program.inputs, *trained}
        size = -1
        while len(self._reached) > size:
            size = len(self._reached)
            self._reached |= {statement.name for statement in program.body if self._reaches(statement.expr)}
        for statement in program.body:
            resetting = resets(statement, program)
            value, _ = self._lower(statement.expr, resetting)
            self.now[statement.name] = value
            if statement.name not in self._reached:
                self.code.append(_Named(statement.name, value))

    def _reaches(self, expr: Expr) -> bool:
        if isinstance(expr, Var):
            return expr.name in self._reached
        return isinstance(expr, Call) and any(self._reaches(arg) for arg in expr.args)

    def _always(self, expr: Expr) -> bool:
        if isinstance(expr, Var):
            return expr.name in self.program.params and not any(s.name == expr.name for s in self.program.body)
        return not isinstance(expr, Call) or all(self._always(arg) for arg in expr.args)

    def _lower(self, expr: Expr, resetting: bool) -> tuple[str, bool]:
        """The name of an expression's value, and whether a gradient may flow to it."""
        target = f"%{len(self.code)}"
        if not self._reaches(expr):
            self.code.append(_Fixed(target, expr, resetting, self._always(expr)))
            return target, False
        if isinstance(expr, Var):
            return self.now.get(expr.name, expr.name), True
        assert isinstance(expr, Call)
        op = expr.op
        pairs = [self._lower(arg, resetting) for arg in expr.args]
        wanted = [flows for _, flows in pairs]
        if op == "select":
            wanted[0] = False
        elif op not in COMPARISONS and resetting:  # a reset is not trained through
            wanted = [flows and name not in self._truths for name, flows in pairs]
        self.known &= op in _KNOWN and not (op in (*_SHIFTS, "wrap", "clip", "/") and self._reaches(expr.args[1]))
        target = f"%{len(self.code)}"
        flows = op not in ("==", "!=")
        if op in COMPARISONS and flows:
            self._truths.add(target)
            flows = not resetting
        if not flows:
            wanted = [False] * len(wanted)
        self.code.append(Operation(target, op, tuple(name for name, _ in pairs), tuple(wanted)))
        return target, flows

    def run(
        self,
        inputs: Sequence[torch.Tensor],
        params: Mapping[str, Any],
        states: Mapping[str, torch.Tensor],
        window: tuple[int, int | None],
        evaluate: Evaluate,
        back: Sequence[Feedback] = (),
    ) -> list[torch.Tensor]:
        """What is emitted (batch, T, *shape), of inputs of that shape.

        states: before the first step, (batch, *shape). window: steps before its first number, or from its second on, emit zeros and
        change nothing. back: what its own first emission adds to its inputs.
        """
        ways = tuple((way.operand, way.delay) for way in back)
        weights, trained = [way.weight for way in back], [params[name] for name in self.trained]
        if (compiled := self._kernel(inputs[0], ways)) is not None:
            start, stop = window
            steps = inputs[0].shape[1]
            within = (start, steps if stop is None else min(stop, steps))
            fixed = self._still(compiled.plan, inputs[0], params, evaluate)
            given = (*weights, *inputs, *(_spread(value, inputs[0][0, 0]) for value in trained))
            first = [states[name] for name in compiled.plan.states]
            return list(_Compiled.apply(compiled, fixed, first, within, self.widest, *given))
        return list(_Run.apply(self, params, states, window, evaluate, ways, *weights, *inputs, *trained))

    def _kernel(self, like: torch.Tensor, ways: tuple[tuple[int, int], ...]) -> Kernel | None:
        """The compiled form for inputs like this one; None without a compiler, and for what follows no input from step to step."""
        size = like[0, 0].numel() if like.numel() else 0
        if self.build is None or not size or like.dtype not in REAL:
            return None
        program = self.program
        if any(isinstance(line, _Named) or (isinstance(line, _Fixed) and not line.always) for line in self.code):
            return None
        params = (*self.trained, *(line.target for line in self.code if isinstance(line, _Fixed)))
        operations = tuple(line for line in self.code if isinstance(line, Operation))
        emits, states = tuple(emit.name for emit in program.emits), tuple(program.state_names)
        known = {*program.inputs, *params, *states, *(line.target for line in operations)}
        if not {self.now.get(name, name) for name in (*emits, *states)} <= known:
            return None
        now = tuple(self.now.items())
        plan = Plan(operations, tuple(program.inputs), params, self.trained, states, emits, now, ways, size, like.dtype)
        return kernel(plan, self.build)

    def _still(self, plan: Plan, like: torch.Tensor, params: Mapping[str, Any], evaluate: Evaluate) -> list[torch.Tensor]:
        """Values that stand still over the steps and are not trained, by neuron; bits as the factors that they stand for."""
        bits = {line.operands[1]: line.op for line in plan.operations if line.op in (*_SHIFTS, "wrap", "clip")}
        found = []
        for line in self.code:
            if isinstance(line, _Fixed):
                value = _number(evaluate(line.expr, params, line.resetting)).double()
                if line.target in bits:
                    value = _FACTORS[bits[line.target]](value)
                found.append(_spread(value.to(like.dtype), like[0, 0]).reshape(-1).contiguous())
        return found


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        steps: Steps,
        params: Mapping[str, Any],
        states: Mapping[str, torch.Tensor],
        window: tuple[int, int | None],
        evaluate: Evaluate,
        back: Sequence[tuple[int, int]],
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        program = steps.program
        count = len(program.inputs)
        weights, inputs = tensors[: len(back)], tensors[len(back) : len(back) + count]
        ctx.steps, ctx.saved, ctx.back = steps, [], back
        ctx.shapes = {name: tensor.shape for name, tensor in zip(steps.trained, tensors[len(back) + count :], strict=True)}
        ctx.set_materialize_grads(False)
        keep = any(ctx.needs_input_grad)
        emitted = [torch.zeros_like(inputs[0]) for _ in program.emits]
        ctx.total = inputs[0].shape[1]
        start, stop = window
        ctx.runs = range(start, ctx.total if stop is None else min(stop, ctx.total))
        once: dict[str, Any] = {WIDTH: steps.widest}
        given = [x.unbind(1) for x in inputs]
        held: dict[str, Any] = dict(states)
        for t in ctx.runs:
            read = [x[t] for x in given]
            for (operand, delay), weight in zip(back, weights, strict=True):
                if t >= delay:
                    read[operand] = read[operand] + emitted[0][:, t - delay] @ weight.T
            values: dict[str, Any] = {**params, **held, **dict(zip(program.inputs, read, strict=True)), STEP: t}
            saved: list[Any] = []
            for line in steps.code:
                if isinstance(line, Operation):
                    values[line.target], kept = _FORWARD[line.op](line, [values[name] for name in line.operands], once)
                    if keep:
                        saved.append(kept)
                elif isinstance(line, _Named):
                    values[line.name] = values[line.value]
                elif not line.always:
                    values[line.target] = evaluate(line.expr, values, line.resetting)
                else:
                    if line.target not in once:
                        once[line.target] = evaluate(line.expr, values, line.resetting)
                    values[line.target] = once[line.target]
            for name, state in held.items():
                found = values[steps.now.get(name, name)]
                held[name] = found if isinstance(found, torch.Tensor) and found.shape == state.shape else _spread(found, state)
            for emit, rows in zip(program.emits, emitted, strict=True):
                rows[:, t] = values[steps.now.get(emit.name, emit.name)]
            ctx.saved.append(saved)
        if back:
            ctx.save_for_backward(*weights, emitted[0])
        return tuple(emitted)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        steps: Steps = ctx.steps
        program = steps.program
        operations = [line for line in steps.code if isinstance(line, Operation)]
        rows: dict[str, list[torch.Tensor | None]] = {name: [None] * ctx.total for name in program.inputs}
        later: dict[str, torch.Tensor] = {}
        kept_tensors: tuple[Any, ...] = ctx.saved_tensors or (None,)
        weights, sent = kept_tensors[:-1], kept_tensors[-1]
        returned: dict[int, torch.Tensor] = {}  # by step, the gradient that reaches its emission on the way back
        learnt: dict[str, torch.Tensor] = {}
        for t in reversed(ctx.runs):
            found: dict[str, torch.Tensor] = {}

            def add(name: str, gradient: torch.Tensor, found: dict[str, torch.Tensor] = found) -> None:
                found[name] = found[name] + gradient if name in found else gradient

            for name, gradient in later.items():
                add(steps.now.get(name, name), gradient)
            for emit, whole in zip(program.emits, gradients, strict=True):
                if whole is not None:
                    add(steps.now.get(emit.name, emit.name), whole[:, t])
            if t in returned:
                add(steps.now.get(program.emits[0].name, program.emits[0].name), returned.pop(t))
            for line, kept in zip(reversed(operations), reversed(ctx.saved[t - ctx.runs.start]), strict=True):
                gradient = found.get(line.target)
                if gradient is not None and any(line.wanted):
                    for name, wanted, part in zip(line.operands, line.wanted, _BACKWARD[line.op](gradient, kept), strict=False):
                        if wanted and part is not None:
                            add(name, part)
            later = {name: found[name] for name in program.state_names if name in found}
            for name in program.inputs:
                rows[name][t] = found.get(name)
            for name in ctx.shapes.keys() & found.keys():
                part = found[name].sum_to_size(ctx.shapes[name])
                learnt[name] = learnt[name] + part if name in learnt else part
            for (operand, delay), weight in zip(ctx.back, weights, strict=True):
                gradient = found.get(program.inputs[operand])
                if gradient is not None and t >= delay:
                    part = gradient @ weight
                    returned[t - delay] = returned[t - delay] + part if t - delay in returned else part
        ctx.saved = []
        parts = []
        for name in program.inputs:
            some = next((row for row in rows[name] if row is not None), None)
            none = None if some is None else torch.zeros_like(some)
            parts.append(None if none is None else torch.stack([none if row is None else row for row in rows[name]], dim=1))
        slopes = []
        for (operand, delay), weight in zip(ctx.back, weights, strict=True):
            whole = parts[operand]
            late = min(delay, ctx.total)
            slopes.append(
                torch.zeros_like(weight)
                if whole is None
                else whole[:, late:].flatten(0, 1).T @ sent[:, : ctx.total - late].flatten(0, 1)
            )
        return (None, None, None, None, None, None, *slopes, *parts, *(learnt.get(name) for name in steps.trained))


class _Compiled(torch.autograd.Function):
    """The same by compiled functions. Tensors: weights of the ways back, inputs, trained parameters in the shape of a neuron."""

    @staticmethod
    def forward(
        ctx: Any,
        compiled: Kernel,
        fixed: Sequence[torch.Tensor],
        states: Sequence[torch.Tensor],
        window: tuple[int, int],
        widest: float,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        plan = compiled.plan
        ways, count = len(plan.back), len(plan.inputs)
        weights, inputs = list(tensors[:ways]), [x.contiguous() for x in tensors[ways : ways + count]]
        trained = tensors[ways + count :]
        ctx.set_materialize_grads(False)
        ctx.compiled, ctx.window, ctx.widest = compiled, window, widest
        ctx.shapes = [value.shape for value in trained]
        params = [*(value.reshape(-1).contiguous() for value in trained), *fixed]
        init = [state[0].reshape(-1).contiguous() for state in states]
        out, sums, before, far = compiled.forward(inputs, params, init, weights, window)
        ctx.params, ctx.counts = len(params), (ways, count, len(before))
        ctx.save_for_backward(*weights, *inputs, *sums, *before, *params, far, *([out[0]] if ways else []))
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        ways, count, kept = ctx.counts
        plan = ctx.compiled.plan
        saved = list(ctx.saved_tensors)
        weights, saved = [weight.contiguous() for weight in saved[:ways]], saved[ways:]
        inputs, sums, saved = saved[:count], saved[count : 2 * count], saved[2 * count :]
        states, params, rest = saved[:kept], saved[kept : kept + ctx.params], saved[kept + ctx.params :]
        given = [torch.zeros_like(inputs[0]) if each is None else each.contiguous() for each in gradients]
        parts, learnt = ctx.compiled.backward(inputs, params, weights, sums, states, rest[0], given, ctx.window, ctx.widest)
        total, slopes = inputs[0].shape[1], []
        for (operand, delay), _ in zip(plan.back, weights, strict=True):
            late = min(delay, total)
            whole, sent = parts[operand].flatten(2), rest[1].flatten(2)
            slopes.append(whole[:, late:].flatten(0, 1).T @ sent[:, : total - late].flatten(0, 1))
        shaped = (part.reshape(shape) for part, shape in zip(learnt, ctx.shapes, strict=True))
        return (None, None, None, None, None, *slopes, *parts, *shaped)


def _spread(value: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value, dtype=like.dtype).expand(like.shape)


# ---------------------------------------------------------------------------------------------------------- operations

Forward = Callable[[Operation, list[Any], dict[str, Any]], tuple[torch.Tensor, Any]]


def _number(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(float(value), dtype=torch.float64)


def _product(line: Operation, args: list[Any], once: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    a, b = args
    return a * b, (b if line.wanted[0] else None, a if line.wanted[1] else None)


def _quotient(line: Operation, args: list[Any], once: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    return args[0] / args[1], args[1]


def _shift(line: Operation, args: list[Any], once: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    x, bits = args
    if isinstance(bits, torch.Tensor):
        factor: Any = 2.0 ** (bits if line.op == "<<" else -bits)
    else:
        factor = 2.0 ** (int(bits) if line.op == "<<" else -int(bits))
    scaled = x * factor
    return (scaled if line.op == "<<" else scaled.floor_() if line.op == ">>" else scaled.trunc_()), factor


def _wrapped(line: Operation, args: list[Any], once: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    half = 2.0 ** (int(args[1]) - 1)
    return torch.remainder(args[0] + half, 2 * half) - half, None


def _clipped(line: Operation, args: list[Any], once: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    limit = 2.0 ** (int(args[1]) - 1) - 1
    found = args[0].clamp(-limit, limit)
    return found, (found, args[0])


def _selected(line: Operation, args: list[Any], once: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    chosen = _number(args[0]) != 0
    return torch.where(chosen, _number(args[1]), _number(args[2])), chosen


def _negated(line: Operation, args: list[Any], once: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    return 1 - args[0], None


def _both(line: Operation, args: list[Any], once: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    return args[0] * args[1], (args[1], args[0])


def _either(line: Operation, args: list[Any], once: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    return args[0] + args[1] - args[0] * args[1], (1 - args[1], 1 - args[0])


def _equal(line: Operation, args: list[Any], once: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    a, b = _number(args[0]), _number(args[1])
    return ((a == b) if line.op == "==" else (a != b)).to(torch.result_type(a, b)), None


def _compared(line: Operation, args: list[Any], once: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    a, b = _number(args[0]), _number(args[1])
    turned = line.op in ("<", "<=")
    if turned:
        a, b = b, a
    distance = a - b
    truth = (distance > 0 if line.op in (">", "<") else distance >= 0).to(distance.dtype)
    if not any(line.wanted):
        return truth, None
    return truth, (distance, scale_of(distance, b, once[WIDTH]), turned)


def scale_of(distance: torch.Tensor, threshold: torch.Tensor, widest: float) -> torch.Tensor:
    """The width of the surrogate gradient: the threshold's magnitude (1 for 0), or the mean distance from it, if that is more, up
    to so many thresholds.

    Where a step moves membranes by many thresholds, hardly a value lies within one of it, and next to nothing would be learnt.
    """
    size, far = threshold.detach().abs(), distance.detach().abs().mean()
    size = torch.where((size > 0) & torch.isfinite(size), size, 1)
    return torch.minimum(torch.fmax(far, size), widest * size).to(distance.dtype)


def surrogate(gradient: torch.Tensor, distance: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The derivative of arctan(pi x) / pi, of the distance in units of `scale`, times the gradient."""
    slope = distance * (torch.pi / scale)
    return gradient / slope.mul_(slope).add_(1).mul_(scale)


def _surrogate(gradient: torch.Tensor, kept: Any) -> Gradients:
    distance, scale, turned = kept
    found = surrogate(gradient, distance, scale)
    return (-found, found) if turned else (found, -found)


#: What an operand that is a number of bits stands for.
_FACTORS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "<<": lambda bits: 2.0**bits,
    ">>": lambda bits: 2.0**-bits,
    "rtz": lambda bits: 2.0**-bits,
    "wrap": lambda bits: 2.0 ** (bits - 1),
    "clip": lambda bits: 2.0 ** (bits - 1) - 1,
}
_FORWARD: Final[dict[str, Forward]] = {
    "+": lambda line, args, once: (args[0] + args[1], None),
    "-": lambda line, args, once: (args[0] - args[1], None),
    "*": _product,
    "/": _quotient,
    "neg": lambda line, args, once: (-args[0], None),
    **dict.fromkeys(_SHIFTS, _shift),
    "floor": lambda line, args, once: (args[0].floor(), None),
    "round": lambda line, args, once: (args[0].round(), None),
    "wrap": _wrapped,
    "clip": _clipped,
    "select": _selected,
    "not": _negated,
    "and": _both,
    "or": _either,
    **dict.fromkeys(COMPARISONS, _compared),
    "==": _equal,
    "!=": _equal,
}
_BACKWARD: Final[dict[str, Callable[[torch.Tensor, Any], Gradients]]] = {
    "+": lambda g, kept: (g, g),
    "-": lambda g, kept: (g, -g),
    "*": lambda g, kept: (None if kept[0] is None else g * kept[0], None if kept[1] is None else g * kept[1]),
    "/": lambda g, kept: (g / kept,),
    "neg": lambda g, kept: (-g,),
    **dict.fromkeys(_SHIFTS, lambda g, kept: (g * kept,)),
    **dict.fromkeys(_ROUNDED, lambda g, kept: (g,)),
    "clip": lambda g, kept: (g * (kept[0] == kept[1]),),
    "select": lambda g, kept: (None, torch.where(kept, g, 0), torch.where(kept, 0, g)),
    "not": lambda g, kept: (-g,),
    "and": lambda g, kept: (g * kept[0], g * kept[1]),
    "or": lambda g, kept: (g * kept[0], g * kept[1]),
    **dict.fromkeys(COMPARISONS, _surrogate),
}
