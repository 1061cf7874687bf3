"""The graph: an immutable tuple of nodes, named outputs, a level, and what can be derived from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.ops import Dense, Input, Neuron, Node, Ports, Ref
from spikec.ir.types import Array, Level, TensorType


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in any order; same-step references form a DAG, a cycle needs at least one delayed reference.

    outputs: (name, reference) pairs, read in the same step. dt: seconds per step, None where unknown. Build graphs
    freely, then call `spikec.ir.rules.verify`; types and order are derived when first asked for and raise CompileError
    where they cannot be.
    Two graphs are equal when their text and the bytes of their arrays are.
    """

    name: str
    level: Level
    nodes: tuple[Node, ...]
    outputs: tuple[tuple[str, Ref], ...]
    dt: float | None = None

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Nodes by name."""
        table: dict[str, Node] = {}
        for node in self.nodes:
            if node.name in table:
                node.fail("SPK302", "two nodes have this name")
            table[node.name] = node
        return table

    def __getitem__(self, name: str) -> Node:
        return self.by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    @cached_property
    def order(self) -> tuple[Node, ...]:
        """The nodes so that same-step operands come first; ties as in `nodes`. SPK307 names a cycle without delay."""
        position = {node.name: index for index, node in enumerate(self.nodes)}
        done: set[str] = set()
        open_: list[str] = []
        result: list[Node] = []

        def operands(node: Node) -> Iterator[str]:
            for ref in node.inputs:
                if ref.node not in position:
                    node.fail("SPK302", f"reads %{ref.node}, which does not exist")
                if ref.delay == 0:
                    yield ref.node

        for root in self.nodes:
            if root.name in done:
                continue
            stack = [(root, operands(root))]
            open_.append(root.name)
            while stack:
                node, rest = stack[-1]
                for name in rest:
                    if name in open_:
                        cycle = [*open_[open_.index(name) :], name]
                        node.fail(
                            "SPK307",
                            "a cycle within one step: " + " -> ".join(f"%{item}" for item in cycle),
                            fix="read one of them a step later, as in %" + name + "[t-1]",
                        )
                    if name not in done:
                        child = self.by_name[name]
                        stack.append((child, operands(child)))
                        open_.append(name)
                        break
                else:
                    stack.pop()
                    open_.pop()
                    done.add(node.name)
                    result.append(node)
        return tuple(result)

    @cached_property
    def types(self) -> dict[str, Ports]:
        """Output ports and their types, of every node.

        On a cycle types are found by repeated inference: an operation that can do without an unknown operand does. Where none
        can (`dense(concat(x, h[t-1]))`), a dense operation is taken to have one axis, which then either fits or is an error.
        """
        types: dict[str, Ports] = {}
        self._infer(types)
        for node in self.order:
            if node.name not in types and isinstance(node, Dense):
                types[node.name] = node.row(self.level)
                self._infer(types)
        for node in self.nodes:
            if node.name not in types:
                node.fail("SPK309", "its type cannot be inferred; a cycle has no member of known shape")
        return types

    def _infer(self, types: dict[str, Ports]) -> None:
        for _ in range(len(self.nodes) + 2):
            before = dict(types)
            for node in self.order:
                operands = [self._lookup(node, ref, types) for ref in node.inputs]
                ports = node.infer(operands, self.level)
                if ports is not None:
                    types[node.name] = ports
            if types == before:
                break

    def _lookup(self, node: Node, ref: Ref, types: dict[str, Ports]) -> TensorType | None:
        if ref.node not in types:
            return None
        for port, type_ in types[ref.node]:
            if port == ref.port:
                return type_
        node.fail("SPK302", f"reads %{ref.node}.{ref.port}, which %{ref.node} does not emit")

    def type_of(self, ref: Ref) -> TensorType:
        """The type of what a reference reads."""
        if ref.node not in self.by_name:
            raise CompileError("SPK302", f"there is no node %{ref.node}")
        for port, type_ in self.types[ref.node]:
            if port == ref.port:
                return type_
        raise CompileError("SPK302", f"%{ref.node} has no output '{ref.port}'")

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of a node's first output."""
        return self.types[name][0][1].shape

    @cached_property
    def users(self) -> dict[str, list[tuple[Node, int]]]:
        """Who reads a node: (reader, operand number) in node order. Outputs are not in it."""
        table: dict[str, list[tuple[Node, int]]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for index, ref in enumerate(node.inputs):
                table.setdefault(ref.node, []).append((node, index))
        return table

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Input nodes in order."""
        return tuple(node for node in self.nodes if isinstance(node, Input))

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """Populations in order."""
        return tuple(node for node in self.nodes if isinstance(node, Neuron))

    def output(self, name: str) -> Ref:
        """The reference behind an output name."""
        for key, ref in self.outputs:
            if key == name:
                return ref
        raise CompileError("SPK010", f"there is no output '{name}'")

    @property
    def max_lag(self) -> int:
        """How many steps later than the model the last node does its first step."""
        return max((node.lag for node in self.nodes), default=0)

    def output_lag(self, name: str) -> int:
        """How many steps after the model an output appears: the lag of its node."""
        return self.by_name[self.output(name).node].lag

    def with_nodes(
        self,
        nodes: Iterable[Node],
        outputs: Iterable[tuple[str, Ref]] | None = None,
        level: Level | None = None,
    ) -> Graph:
        """A new graph with other nodes, and outputs and level if given."""
        kept = self.outputs if outputs is None else tuple(outputs)
        return Graph(self.name, level or self.level, tuple(nodes), kept, self.dt)

    def fresh_name(self, base: str) -> str:
        """A node name that is not taken yet."""
        if base not in self.by_name:
            return base
        number = 2
        while f"{base}_{number}" in self.by_name:
            number += 1
        return f"{base}_{number}"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of text and array bytes: equal graphs have equal fingerprints."""
        from spikec.ir.text import print_graph

        text, arrays = print_graph(self)
        digest = hashlib.sha256(text.encode())
        for name, array in sorted(arrays.items()):
            digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __str__(self) -> str:
        from spikec.ir.text import print_graph

        return print_graph(self)[0]


def arrays_of(node: Node) -> Iterator[tuple[str, Array]]:
    """Every array of a node with its name in text: fields, parameters, initial states, initial values of references."""
    for item in fields(node):
        value: Any = getattr(node, item.name)
        if isinstance(value, np.ndarray):
            yield item.name, value
    if isinstance(node, Neuron):
        yield from node.params.items()
        for state, array in node.init.items():
            yield f"init.{state}", array
    for index, ref in enumerate(node.inputs):
        if ref.init is not None:
            yield f"in{index}.init", ref.init
