"""Neuron modules of the table, and surrogate functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

from spikec.diagnostics import CompileError
from spikec.frontend.registry import Leaf, Names
from spikec.frontend.tracing.handling import execute, new_value
from spikec.frontend.tracing.values import Op, Operand, Value

if TYPE_CHECKING:
    from spikec.frontend.tracing.record import Recorder


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


class _Context:
    """What `forward` of an autograd function is given where nobody will go backward."""

    def __init__(self, count: int) -> None:
        self.needs_input_grad = (False,) * count

    def save_for_backward(self, *tensors: Any) -> None:
        pass

    mark_dirty = mark_non_differentiable = set_materialize_grads = save_for_forward = save_for_backward


def _looked_inside(rec: Recorder, function: Any, args: tuple[Any, ...]) -> Any:
    """The forward pass of an autograd function, recorded like any other code; None where that cannot be done."""
    here = rec.current
    own_setup = function.setup_context is not torch.autograd.Function.setup_context
    try:
        return function.forward(*args) if own_setup else function.forward(_Context(len(args)), *args)
    except CompileError as error:
        if error.diagnostics[0].code in ("SPK107", "SPK109"):
            raise
        rec.current = here
        return None


def call_surrogate(rec: Recorder, function: Any, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An autograd function on a value of the input: taken as a step if it is one, else its forward pass is looked into."""
    name = function.__name__
    at = [i for i, item in enumerate(args) if rec.dynamic(item)]
    kind = None
    if len(at) == 1:
        with rec.pause():
            kind = step_kind(lambda probe: inner(*args[: at[0]], probe, *args[at[0] + 1 :], **kwargs))
    if kind is None and (found := _looked_inside(rec, function, args)) is not None:
        return found
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
    """A neuron module of the table: one operation a step, from its inputs and states to all of its variables."""
    try:
        bound = inspect.signature(forward).bind(*args, **kwargs)
    except TypeError:
        return execute(forward, args, kwargs)  # the module's own message is the better one
    bound.apply_defaults()
    given = dict(_named(leaf.arguments, bound.args))
    sources = [synapse.source for synapse in leaf.synapses.values()]
    states = {name: given.get(name) for name in dict.fromkeys((*leaf.program.state_names, *sources))}
    for name, attribute in leaf.hidden.items():
        if states.get(name) is None:
            states[name] = getattr(module, attribute)
    inputs = {name: given.get(name) for name in leaf.program.inputs if name not in leaf.synapses}
    if not any(rec.dynamic(item) for item in (*inputs.values(), *states.values())):
        with rec.pause():
            result = forward(*args, **kwargs)
            rec.mark_static([result, [getattr(module, name) for name in (*leaf.hidden.values(), *leaf.history.values())]])
        return result
    call = _Call(rec, module, leaf)
    if leaf.time_axis is not None:
        return call.all_steps(lambda: forward(*args, **kwargs), inputs, states)
    return call.one_step(lambda: forward(*args, **kwargs), inputs, states)


def call_step(
    rec: Recorder,
    module: Any,
    leaf: Leaf,
    inputs: Mapping[str, Any],
    states: Mapping[str, Any],
    run: Callable[[], tuple[Any, Mapping[str, Any]]],
) -> Any:
    """One step of a neuron module whose `forward` is followed: see `Leaf.step`."""
    if rec.paused:
        return run()[0]
    rec.here()
    given = [inputs[name] for name in leaf.program.inputs] + [states[name] for name in leaf.program.state_names]
    operands = [rec.operand(item) for item in given] if any(rec.dynamic(item) for item in given) else None
    rec.here("leaf")
    with rec.pause():
        result, named = run()
    if operands is None:
        rec.mark_static(tuple(named.values()))
        return result
    call = _Call(rec, module, leaf)
    op = call.operation(operands, torch.broadcast_shapes(*(tensor.shape for tensor in named.values())))
    for name, tensor in named.items():
        rec.hang(tensor, call.value(op, name))
    return result


def _named(names: tuple[Names, ...], items: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Pairs of names and tensors, tuples taken apart; a tuple that is left out (None) has no pairs."""
    for name, item in zip(names, items, strict=False):
        if isinstance(name, str):
            yield name, item
        elif item is not None:
            yield from zip(name, item, strict=True)


class _Call:
    """One call of a neuron module of the table."""

    def __init__(self, rec: Recorder, module: Any, leaf: Leaf) -> None:
        self.rec, self.module, self.leaf = rec, module, leaf
        returned = [name for names in leaf.returns for name in ((names,) if isinstance(names, str) else names)]
        self.variables = tuple(dict.fromkeys((*returned, *leaf.program.state_names, *leaf.hidden, *leaf.history)))

    def one_step(self, run: Callable[[], Any], inputs: dict[str, Any], states: dict[str, Any]) -> Any:
        rec, leaf = self.rec, self.leaf
        operands = self.operands(inputs, states)
        with rec.pause():
            result = run()
        found = self.returned(result)
        op = self.operation(operands, next(iter(found.values())).shape)
        for name, tensor in found.items():
            rec.hang(tensor, self.value(op, name))
        self.keep(op)
        for name, attribute in leaf.history.items():
            self.lengthen(op, name, attribute)
        return result

    def all_steps(self, run: Callable[[], Any], inputs: dict[str, Any], states: dict[str, Any]) -> Any:
        """The steps of a module that does them all, as if it had been called for each of them."""
        rec, leaf, axis = self.rec, self.leaf, self.leaf.time_axis
        assert axis is not None
        length = next(iter(inputs.values())).shape[axis]
        with rec.pause():
            result = run()
        self.returned(result)
        results = (result,) if len(leaf.returns) == 1 else tuple(result)
        sequences = {name: item for name, item in zip(leaf.returns, results, strict=True) if isinstance(name, str)}
        kept = {name: getattr(self.module, attribute) for name, attribute in leaf.history.items()}
        steps: dict[str, list[Any]] = {name: [] for name in (*sequences, *kept)}
        for step in range(length):
            picked = {name: item.select(axis, step) for name, item in inputs.items()}
            operands = self.operands(picked, states)
            rec.here("leaf")
            op = self.operation(operands, next(iter(picked.values())).shape)
            states = {name: self.value(op, name) for name in states}
            for name, tensors in steps.items():
                with rec.pause():
                    entry = sequences[name].select(axis, step) if name in sequences else kept[name][step]
                rec.hang(entry, self.value(op, name))
                tensors.append(entry)
                if name in states:
                    states[name] = entry
        self.keep(op)
        for name, attribute in leaf.history.items():
            setattr(self.module, attribute, torch.stack(steps[name]))
        for names, item in zip(leaf.returns, results, strict=True):
            for name, tensor in zip(names, item, strict=True) if isinstance(names, tuple) else ():
                rec.hang(tensor, self.value(op, name))
        whole = tuple(
            torch.stack(steps[names], dim=axis) if isinstance(names, str) else item
            for names, item in zip(leaf.returns, results, strict=True)
        )
        return whole[0] if len(whole) == 1 else whole

    def operands(self, inputs: dict[str, Any], states: dict[str, Any]) -> list[Operand]:
        """Inputs and states of a step as the program takes them."""
        rec, leaf = self.rec, self.leaf
        first = next(iter(inputs.values()))
        population = tuple(getattr(first, "shape", ()))

        def fits(item: Any) -> bool:
            if item is None:
                return False
            return not leaf.mismatch_resets or not hasattr(item, "shape") or tuple(item.shape) == population

        operands = []
        for name in leaf.program.inputs:
            item = inputs.get(name)
            if name in leaf.synapses:
                synapse = leaf.synapses[name]
                source = states[synapse.source]
                item = synapse.through(self.carried(source if fits(source) else torch.zeros_like(first), first))
            operands.append(rec.operand(item))
        for name in leaf.program.state_names:
            item = states[name]
            operands.append(item if isinstance(item, Value) else rec.operand(item) if fits(item) else _initial(leaf, name))
        if leaf.synapses:
            rec.here("leaf")
        return operands

    def carried(self, source: Any, first: Any) -> Any:
        """What a synapse reads of the step before, at the step of the input: also where it is a constant, before the first."""
        rec = self.rec
        if not rec.dynamic(first):
            return source
        left = rec.operand(source)
        with rec.pause():
            source = source.clone()
        rec.emit("carry", (left, rec.operand(first)), source.shape, tensor=source)
        return source

    def operation(self, operands: list[Operand], shape: Any) -> Op:
        op = self.rec.add("leaf", operands, {"leaf": self.leaf, "variables": self.variables}, "neuron")
        for port, name in enumerate(self.variables):
            op.outputs.append(new_value(shape))
            op.outputs[-1].op, op.outputs[-1].port = op, port
            if self.leaf.program.type_of(name) == "bool":
                op.outputs[-1].boolean = True
        return op

    def value(self, op: Op, name: str) -> Value:
        return op.outputs[self.variables.index(name)]

    def returned(self, result: Any) -> dict[str, Any]:
        """The returned tensors by name; SPK101 where they are not what the table says."""
        leaf = self.leaf
        results = (result,) if len(leaf.returns) == 1 else tuple(result)
        found = dict(_named(leaf.returns, results))
        wanted = [name for names in leaf.returns for name in ((names,) if isinstance(names, str) else names)]
        if len(results) != len(leaf.returns) or not all(isinstance(found.get(name), torch.Tensor) for name in wanted):
            self.rec.fail("SPK101", f"{type(self.module).__name__} did not return {', '.join(wanted)}, as its table entry says")
        return found

    def keep(self, op: Op) -> None:
        """What the module holds until the next call."""
        for name, attribute in self.leaf.hidden.items():
            self.rec.hang(getattr(self.module, attribute), self.value(op, name))

    def lengthen(self, op: Op, name: str, attribute: str) -> None:
        """A sequence that every call makes one entry longer, or begins anew."""
        rec = self.rec
        with rec.pause():
            sequence = getattr(self.module, attribute)
            entry = sequence[-1]
        rec.hang(entry, self.value(op, name))
        past = rec.histories.get((self.module, attribute), [])
        count = sequence.shape[0] - 1
        if count > len(past):
            return  # it began before this run
        entries = [*past[len(past) - count :], entry]
        rec.histories[self.module, attribute] = entries
        setattr(self.module, attribute, torch.stack(entries))


def _initial(leaf: Leaf, name: str) -> int | float:
    return next(state.init for state in leaf.program.states if state.name == name)
