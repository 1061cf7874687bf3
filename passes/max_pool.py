"""Maximum pools over sums of weights become part of the neurons that read them.

`lif(max_pool2d(conv(x)))` takes the largest of a window's currents before the neuron. Between two populations a target like Loihi
has nothing but synapses; so every place of the window becomes a convolution of its own, with the pool's stride, and the neuron's
program takes one current from each and goes on with the largest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.neuron import Assign, Expr, Program, Var, call
from spikec.ir.ops import Conv, Gather, Neuron, Node, Pool, Ref
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.rewrite import fresh_name
from spikec.target import Target


@dataclass(frozen=True)
class MaxPool:
    """No maximum pool over values in front of a population, for targets without the operation `pool`. Float level, exact."""

    target: Target
    name: ClassVar[str] = "max-pool"
    levels: ClassVar[tuple[str, ...]] = ("float",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """A graph in which populations read sums instead of their maxima. Pools that other nodes read as well stay."""
        if "pool" in self.target.operations:
            return graph
        for pool in graph.nodes:
            if isinstance(pool, Pool) and pool.mode == "max" and self._fits(pool, graph):
                graph = _into_neurons(pool, graph, ledger)
        return graph

    def _fits(self, pool: Pool, graph: Graph) -> bool:
        (ref,) = pool.inputs
        read = [user for user, _ in graph.users[pool.name]]
        inits = [item.init is not None for user in read for item in user.inputs if item.node == pool.name]
        kept = any(output.node == pool.name for _, output in graph.outputs)
        plain = not any(pool.padding) and ref.init is None and not any(inits) and graph.type_of(ref).kind == "value"
        return plain and not kept and bool(read) and all(isinstance(user, Neuron) for user in read)


def _into_neurons(pool: Pool, graph: Graph, ledger: Ledger) -> Graph:
    """The graph with the window's places as inputs of every population that read the pool."""
    taken = set(graph.by_name)
    (ref,) = pool.inputs
    source = graph[ref.node]
    alone = len(graph.users[source.name]) == 1 and all(output.node != source.name for _, output in graph.outputs)
    parts: list[Node]
    if isinstance(source, Conv) and source.delay is None and alone and not ref.delay:
        parts = _convolutions(source, pool, taken)
        gone = {pool.name, source.name}
    else:
        parts = _places(pool, graph.type_of(ref).shape, graph.shape_of(pool.name), taken)
        gone = {pool.name}
    wires = [Ref(part.name) for part in parts]
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name == pool.name:
            nodes += parts
        elif isinstance(node, Neuron) and any(item.node == pool.name for item in node.inputs):
            nodes.append(_widened(node, pool, wires))
            ledger.record(node, "exact", f"takes the largest of {len(wires)} currents itself, in place of the pool %{pool.name}")
        elif node.name not in gone:
            nodes.append(node)
    return graph.with_nodes(nodes)


def _convolutions(source: Conv, pool: Pool, taken: set[str]) -> list[Node]:
    """One convolution for each place of the window: the kernel stands at that place among zeros, and the strides multiply."""
    span = [d * (k - 1) + 1 for d, k in zip(source.dilation, source.weight.shape[2:], strict=True)]
    size = [s + (k - 1) * step for s, k, step in zip(span, pool.kernel, source.stride, strict=True)]
    parts: list[Node] = []
    for place in product(*map(range, pool.kernel)):
        weight = np.zeros((*source.weight.shape[:2], *size), source.weight.dtype)
        first = [at * step for at, step in zip(place, source.stride, strict=True)]
        taps = tuple(slice(f, f + s, d) for f, s, d in zip(first, span, source.dilation, strict=True))
        weight[(slice(None), slice(None), *taps)] = source.weight
        parts.append(
            replace(
                source,
                name=fresh_name(taken, "_".join([source.name, *map(str, place)])),
                weight=weight,
                stride=tuple(a * b for a, b in zip(source.stride, pool.stride, strict=True)),
                dilation=(1,) * len(size),
            )
        )
    return parts


def _places(pool: Pool, shape: tuple[int, ...], result: tuple[int, ...], taken: set[str]) -> list[Node]:
    """One gather for each place of the window."""
    index: Array = np.arange(int(np.prod(shape))).reshape(shape)
    parts: list[Node] = []
    for place in product(*map(range, pool.kernel)):
        cut = tuple(slice(at, at + (n - 1) * step + 1, step) for at, n, step in zip(place, result[1:], pool.stride, strict=True))
        name = fresh_name(taken, "_".join([pool.name, *map(str, place)]))
        parts.append(Gather(name=name, inputs=pool.inputs, indices=np.ascontiguousarray(index[(slice(None), *cut)]), loc=pool.loc))
    return parts


def _widened(node: Neuron, pool: Pool, wires: list[Ref]) -> Neuron:
    """The population with all the wires in place of the pool, and their maximum as its program's first step."""
    program = node.program
    taken = {*program.inputs, *program.params, *program.state_names, *(assign.name for assign in program.body)}
    names: list[str] = []
    inputs: list[Ref] = []
    largest: list[Assign] = []
    for name, ref in zip(program.inputs, node.inputs, strict=True):
        if ref.node == pool.name:
            own = [fresh_name(taken, f"{name}{number}") for number in range(len(wires))]
            names += own
            inputs += [wire.later(ref.delay) for wire in wires]
            first, *others = own
            maximum: Expr = Var(first)
            for other in others:
                maximum = call("max", maximum, Var(other))
            largest.append(Assign(name, maximum))
        else:
            names.append(name)
            inputs.append(ref)
    body = (*largest, *program.body)
    made = Program(f"{program.name}_max", tuple(names), program.params, program.states, body, program.emits)
    return replace(node, program=made, inputs=tuple(inputs))
