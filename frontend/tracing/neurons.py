"""Neuron modules of the table, and surrogate functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch

from spikec.frontend.registry import Leaf
from spikec.frontend.tracing.handling import execute, new_value

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
        return execute(forward, args, kwargs)  # the module's own message is the better one
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
    population = tuple(getattr(inputs[0], "shape", ()))
    for name, item in states.items():
        fits = item is not None and (not isinstance(item, torch.Tensor) or tuple(item.shape) == population)
        operands.append(rec.operand(item) if fits or (item is not None and not leaf.mismatch_resets) else _initial(leaf, name))
    with rec.pause():
        result = forward(*args, **kwargs)
    results = (result,) if len(leaf.returns) == 1 else tuple(result)
    if len(results) != len(leaf.returns) or not all(isinstance(item, torch.Tensor) for item in results):
        rec.fail("SPK101", f"{type(module).__name__} did not return {', '.join(leaf.returns)}, as its table entry says")
    variables = tuple(dict.fromkeys((*leaf.returns, *leaf.program.state_names)))
    op = rec.add("leaf", operands, {"leaf": leaf, "variables": variables}, "neuron")
    shape = results[0].shape
    for port, name in enumerate(variables):
        op.outputs.append(new_value(shape))
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
