"""Populations at rest: when nothing arrives, and the state is one that silence does not change, a step need not be computed.

Proven by running the program once: from its initial state, on what its sums give without events, every state must stay and nothing
may be emitted; and the program must not look at the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from spikec.backends.c.plan import Plan, Read
from spikec.ir.graph import Graph
from spikec.ir.interpret import Interpreter
from spikec.ir.neuron import STEP, variables
from spikec.ir.ops import Conv, Input, Neuron, Ref, spread
from spikec.ir.types import TensorType

#: Smaller populations take hardly longer than the question whether they rest.
LEAST: Final = 256


def resting(plan: Plan, node: Neuron, sources: Callable[[Read], str]) -> tuple[list[str], dict[str, int]] | None:
    """The numbers of the events that reach a population in a step, and the value of each state at rest; None where a population
    has none that silence keeps, or where something other than events reaches it. `sources`: the number of events of an operand."""
    graph, program = plan.graph, node.program
    shape = graph.shape_of(node.name)
    if not plan.integer or plan.stored[node.name, ""].size < LEAST:
        return None
    if any(STEP in variables(statement.expr) for statement in program.body):
        return None
    begin = {
        state.name: np.broadcast_to(spread(np.asarray(node.init.get(state.name, state.init)), shape), shape)
        for state in program.states
    }
    if any((value != value.flat[0]).any() for value in begin.values()):
        return None
    counts, silent = [], []
    for ref in node.inputs:
        read = plan.read(ref)
        total = plan.sums.get(read.stored.wire[0])
        if total is None or read.delay or read.init is not None or total.rest:
            return None
        given = np.zeros(shape, np.int64)
        for part in total.parts:
            source, _ = plan.weighted_read(part.inputs[0])
            if part.delay is not None or source.init is not None or plan.multiplied(total, part):
                return None
            counts.append(sources(source))
            if part.bias is not None:
                like = graph.shape_of(part.name)
                bias = part.bias.astype(np.int64)
                given = given + np.broadcast_to(
                    bias.reshape(-1, *(1,) * (len(like) - 1)) if isinstance(part, Conv) else bias, like
                ).reshape(shape)
        silent.append(given)
    inputs = [Input(name=f"in{number}", type=TensorType("value", shape, "i32")) for number in range(len(silent))]
    alone = replace(node, inputs=tuple(Ref(item.name) for item in inputs), lag=0, start=0, stop=None)
    machine = Interpreter(Graph("rest", "fixed", (*inputs, alone), ((node.name, Ref(node.name)),)), 1)
    now = machine.step({item.name: value[None] for item, value in zip(inputs, silent, strict=True)})
    stays = all((machine.states[node.name][name][0] == value).all() for name, value in begin.items())
    if not stays or any(now[node.name, port].any() for port, _ in graph.types[node.name]):
        return None
    return counts, {name: int(value.flat[0]) for name, value in begin.items()}
