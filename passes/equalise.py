"""Rows of weights that use the whole grid: every neuron in a unit of its own, so that its largest weight is the layer's largest.

Whether a neuron spikes does not depend on the unit of its membrane. Where its weights, its bias and its threshold grow by the same
factor, nothing changes in floats but rounding, and a neuron whose weights are small beside its neighbours' keeps as many levels as
they do when all of them share one grid: a scale for each neuron, or channel, at the price of a threshold for each. (Equalization as
in Nagel et al., ICCV 2019, where the next layer has to undo it; a spike carries no unit.) It pays where levels are few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.neuron import COMPARISONS, LOGIC, Assign, Call, Expr, Num, Program, Var
from spikec.ir.ops import Add, Conv, Dense, Neuron, Node, Ref, Sparse
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.groups import WEIGHTED
from spikec.passes.units import infer_units, is_truth

#: A neuron whose weights are smaller by more than this is left there: it hardly counts, and its sums need not be wide.
LARGEST: Final = 64.0
_LINEAR: Final = frozenset({"+", "-", "neg", "min", "max", "abs"})


@dataclass(frozen=True)
class Equalise:
    """Neurons in units of their own. Takes and gives the float level; exact but for the rounding of floats; always asked for.

    per_channel: whether it is asked for. Populations take part of which spikes alone are read, and whose synaptic sums come from
    layers that nobody else reads.
    """

    per_channel: bool = False
    name: ClassVar[str] = "equalise"
    levels: ClassVar[tuple[str, ...]] = ("float",)
    #: Options that ask for this pass.
    asked_by: ClassVar[tuple[str, ...]] = ("per_channel",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The same network with larger weights and thresholds where weights were small."""
        table: dict[str, Node] = {}
        for node in graph.neurons:
            layers = _layers(graph, node)
            scaled = layers and _amounts(node, graph)
            if not layers or not scaled:
                continue
            factor = _factors(graph, node, layers)
            if not np.any(factor > 1):
                continue
            table |= {layer.name: _grown(layer, factor) for layer in layers}
            program, names = scaled
            shape = graph.shape_of(node.name)
            params = {**{name: np.asarray(value, _dtype(layers)) for name, value in names.items()}, **node.params}
            params |= {name: _each(params[name], factor, shape) for name in names}
            table[node.name] = replace(node, program=program, params={name: params[name] for name in program.params})
            ledger.record(
                node,
                "approximation",
                "neurons in units of their own, in which all have weights as large: floats round once more",
                changed=int(np.count_nonzero(factor > 1)),
                total=int(factor.size),
                asked="--per-channel",
                measured={"largest factor": float(factor.max())},
            )
        return graph.with_nodes(table.get(node.name, node) for node in graph.nodes) if table else graph


def _layers(graph: Graph, node: Neuron) -> list[Dense | Sparse | Conv]:
    """The layers of weights in front of a population; none where something else is, or somebody else reads them."""
    found: dict[str, Dense | Sparse | Conv] = {}
    shape = graph.shape_of(node.name)
    stack: list[Ref] = list(node.inputs)
    while stack:
        ref = stack.pop()
        source = graph[ref.node]
        if len(graph.users[ref.node]) != 1 or any(shown.node == ref.node for _, shown in graph.outputs) or ref.init is not None:
            return []
        if isinstance(source, Add) and not ref.delay:
            stack += source.inputs
        elif isinstance(source, WEIGHTED) and graph.shape_of(source.name) == shape and source.name not in found:
            if source.weight.ndim < 2 or len(source.weight) != shape[0]:
                return []
            found[source.name] = source
        else:
            return []
    return list(found.values())


def _factors(graph: Graph, node: Neuron, layers: list[Dense | Sparse | Conv]) -> Array:
    """By how much the weights of each neuron, or channel, may grow: (neurons or channels,)."""
    largest = np.max(
        [np.abs(layer.weight.astype(np.float64)).reshape(len(layer.weight), -1).max(axis=1) for layer in layers], axis=0
    )
    return np.asarray(np.where(largest > 0, np.minimum(largest.max() / np.where(largest > 0, largest, 1), LARGEST), 1.0))


def _grown(layer: Dense | Sparse | Conv, factor: Array) -> Node:
    by_row = factor.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    weight = (layer.weight * by_row).astype(layer.weight.dtype)
    if layer.bias is None:
        return replace(layer, weight=weight)
    bias = layer.bias if layer.bias.ndim else np.broadcast_to(layer.bias, factor.shape)
    grown = bias * factor.reshape(-1, *(1,) * (bias.ndim - 1))
    return replace(layer, weight=weight, bias=grown.astype(layer.bias.dtype))


def _dtype(layers: list[Dense | Sparse | Conv]) -> np.dtype[np.generic]:
    return layers[0].weight.dtype


def _each(value: Array, factor: Array, shape: tuple[int, ...]) -> Array:
    """A parameter (a scalar, one a channel, or of the population's shape) times the factors of neurons or channels."""
    if value.size == 1:
        return np.asarray(value.reshape(()) * factor, value.dtype)
    if value.ndim == 1:
        return np.asarray(value * factor, value.dtype)
    return np.asarray(value * factor.reshape(-1, *(1,) * (len(shape) - 1)), value.dtype)


# ------------------------------------------------------------------------------------------------------------ programs


class _Mixed(Exception):
    """A program in which something cannot be told to be an amount or a number."""


def _amounts(node: Neuron, graph: Graph) -> tuple[Program, dict[str, float | Array]] | None:
    """The program with parameters in place of literal amounts, and the parameters that are amounts, with their values.

    None for a program that gives another answer in another unit, or of which that cannot be told.
    """
    program = node.program
    units = infer_units(node, graph)
    read = {user.inputs[index].port for user, index in graph.users[node.name]}
    read |= {ref.port for _, ref in graph.outputs if ref.node == node.name}
    sent = zip(graph.types[node.name], program.emits, strict=True)
    if any(emit.kind != "spike" and port in read for (port, _), emit in sent) or node.init:
        return None
    if any(units.get(state.name) == 1 and state.init != 0 for state in program.states):
        return None
    if any(units.get(name) != 1 for name in program.inputs):
        return None
    walk = _Walk(node, units)
    try:
        body = tuple(Assign(item.name, walk.typed(item.expr, _unit(units, item.name))) for item in program.body)
    except _Mixed:
        return None
    if walk.amounts & walk.numbers:
        return None
    values: dict[str, float | Array] = {name: node.params[name] for name in program.params if name in walk.amounts}
    names = (*program.params, *walk.literals)
    made = Program(program.name, program.inputs, names, program.states, body, program.emits) if walk.literals else program
    return made, values | walk.literals


def _unit(units: Mapping[str, int], name: str) -> int:
    return units.get(name, 0)


class _Walk:
    """Goes through expressions with the unit that each must have: 1 for amounts, 0 for numbers and truths."""

    def __init__(self, node: Neuron, units: Mapping[str, int]) -> None:
        self.program, self.units = node.program, units
        self.amounts: set[str] = set()
        self.numbers: set[str] = set()
        self.literals: dict[str, float | Array] = {}

    def known(self, expr: Expr) -> int | None:
        """The unit that an expression has by itself; None where it takes any (literals and parameters alone)."""
        if isinstance(expr, Num):
            return None
        if isinstance(expr, Var):
            return None if expr.name in self.program.params else _unit(self.units, expr.name)
        assert isinstance(expr, Call)
        if is_truth(expr, self.program):
            return 0
        if expr.op == "*":
            both = [self.known(arg) for arg in expr.args]
            if both.count(1) > 1:
                raise _Mixed
            return 1 if 1 in both else None  # a number times a parameter may be an amount
        if expr.op == "/":
            over, under = (self.known(arg) for arg in expr.args)
            if under == 1:
                raise _Mixed
            return over
        if expr.op in (*_LINEAR, "select"):
            found = {self.known(arg) for arg in (expr.args[1:] if expr.op == "select" else expr.args)} - {None}
            return max((unit for unit in found if unit is not None), default=None)
        if any(self.known(arg) == 1 for arg in expr.args):
            raise _Mixed
        return 0

    def typed(self, expr: Expr, unit: int) -> Expr:
        """The expression, which has this unit. Raises _Mixed where it has not."""
        if isinstance(expr, Num):
            return self._literal(expr) if unit and expr.value != 0 else expr
        if isinstance(expr, Var):
            if expr.name in self.program.params:
                (self.amounts if unit else self.numbers).add(expr.name)
            elif _unit(self.units, expr.name) != unit:
                raise _Mixed
            return expr
        assert isinstance(expr, Call)
        if expr.op in COMPARISONS:
            found = {self.known(arg) for arg in expr.args}
            return self._call(expr, [1 if 1 in found else 0] * len(expr.args), unit, 0)
        if expr.op in LOGIC:
            return self._call(expr, [0] * len(expr.args), unit, 0)
        if expr.op == "select":
            return self._call(expr, [0, unit, unit], unit, unit)
        if expr.op in _LINEAR:
            return self._call(expr, [unit] * len(expr.args), unit, unit)
        if expr.op == "*":
            return self._call(expr, self._factors(expr) if unit else [0, 0], unit, unit)
        if expr.op == "/":
            return self._call(expr, [unit, 0], unit, unit)
        return self._call(expr, [0] * len(expr.args), unit, 0)

    def _factors(self, expr: Call) -> list[int]:
        """Which factor of an amount is the amount: the one that is known to be, else the one that may be."""
        known = [self.known(arg) for arg in expr.args]
        if 1 in known:
            return [1 if unit == 1 else 0 for unit in known]
        if known.count(None) != 1:
            raise _Mixed
        return [1 if unit is None else 0 for unit in known]

    def _call(self, expr: Call, units: list[int], unit: int, own: int) -> Expr:
        if unit != own:
            raise _Mixed
        return Call(expr.op, tuple(self.typed(arg, each) for arg, each in zip(expr.args, units, strict=True)))

    def _literal(self, expr: Num) -> Expr:
        taken = {*self.program.params, *self.program.inputs, *self.program.state_names, *(item.name for item in self.program.body)}
        number = next(k for k in range(len(taken) + len(self.literals) + 1) if f"amount{k}" not in taken | set(self.literals))
        name = f"amount{number}"
        self.literals[name] = float(expr.value)
        return Var(name)
