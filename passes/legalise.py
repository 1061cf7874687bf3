"""Express a float graph in what the target has: its native neurons and its operations.

Exact rewrites only: programs are matched to native ones up to algebra, input gains are folded into weights, a dense layer over a
concatenation or a sum of spikes becomes a sum of dense layers, and a spike that enters a neuron without a synapse gets an
identity synapse. What remains is refused, all of it at once, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Node, Ref, Reshape, Scale, Sparse
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.fold_linear import scale_as_weights
from spikec.passes.neurons import Neurons, check_choice
from spikec.passes.readouts import cure, means_as_sums
from spikec.passes.rewrite import fresh_name, one_by_one, reachable, redirect, redirect_outputs
from spikec.target import Target

WEIGHTED = (Dense, Sparse, Conv)
#: What to do instead of an operation that the target lacks.
_CURES = {
    "pool": "put a spiking layer in front of the pool, use an average pool, or compile for host or reference",
    "scale": "put the factor into the weights in front of it, or compile for host or reference",
}


@dataclass(frozen=True)
class Legalise:
    """Match neurons to the target's native ones and bring the rest into its operations. Float level, exact up to rounding.

    custom_neurons: what becomes of a neuron that the target's library lacks. "allow": it runs as a program of its own, exactly in
    simulation, with microcode on silicon; "refuse": it is an error that names the alternatives, and what they change on the
    calibration data. calibrate: (samples, T, *shape) by input name.
    """

    target: Target
    custom_neurons: str = "allow"
    calibrate: Mapping[str, Array] | None = None
    name: ClassVar[str] = "legalise"
    levels: ClassVar[tuple[str, ...]] = ("float",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """A float graph of native patterns. Raises CompileError with every SPK201, SPK202 and SPK208 at once."""
        check_choice(self.custom_neurons)
        graph = means_as_sums(_messages(graph), ledger)
        matched = Neurons(self.target, graph, self.custom_neurons == "allow", self.calibrate, ledger)
        problems = matched.problems
        graph = matched.run()
        graph = _always_on(graph, ledger)
        graph = _settle(graph, lambda g: _fold_scales(g, ledger))
        graph = _scaled_messages(graph, ledger)
        graph = _settle(graph, lambda g: _split_operands(g, ledger))
        graph = _identity_synapses(graph, ledger)
        alive = reachable(graph)
        graph = graph.with_nodes(n for n in graph.nodes if n.name in alive or isinstance(n, Input))
        problems += self._operations(graph)
        if problems:
            raise CompileError.many(problems)
        return graph

    # Operations ------------------------------------------------------------------------------------------------------

    def _operations(self, graph: Graph) -> Iterator[Diagnostic]:
        for node in graph.nodes:
            if node.op not in self.target.operations:
                yield Diagnostic(
                    "SPK202",
                    f"%{node.name}: {self.target.name} has no operation '{node.op}'",
                    loc=node.loc,
                    fix=cure(graph, node, _CURES.get(node.op, "compile for host or reference")),
                )
            elif (
                isinstance(node, WEIGHTED)
                and graph.type_of(node.inputs[0]).kind == "value"
                and not isinstance(graph[node.inputs[0].node], Neuron)  # what neurons cannot send is reported above
            ):
                yield Diagnostic(
                    "SPK202",
                    f"%{node.name}: its operand %{node.inputs[0].node} is not spikes, and a synapse of "
                    f"{self.target.name} takes spikes",
                    loc=node.loc,
                    fix=cure(graph, node, "put a spiking layer in between, or merge the two linear layers into one"),
                )


def _scaled_messages(graph: Graph, ledger: Ledger) -> Graph:
    """A gain on what populations and inputs send is a synapse's weight."""
    taken = set(graph.by_name)
    nodes: list[Node] = []
    for node in graph.nodes:
        message = isinstance(node, Scale) and graph.type_of(node.inputs[0]).kind != "value"
        nodes += scale_as_weights(node, graph, taken, ledger) if isinstance(node, Scale) and message else [node]
    return graph.with_nodes(nodes)


def _settle(graph: Graph, step: Any) -> Graph:
    """Apply a rewrite until it finds nothing more."""
    while (after := step(graph)) is not None:
        graph = after
    return graph


def _messages(graph: Graph) -> Graph:
    """Real-valued inputs are messages with a payload."""
    nodes = [
        replace(node, type=replace(node.type, kind="graded")) if isinstance(node, Input) and node.type.kind == "value" else node
        for node in graph.nodes
    ]
    return graph.with_nodes(nodes)


def _always_on(graph: Graph, ledger: Ledger) -> Graph:
    """A constant current becomes a synapse from a source that spikes at every step."""
    nodes: list[Node] = []
    taken = set(graph.by_name)
    for node in graph.nodes:
        if not isinstance(node, Constant) or node.kind != "value":
            nodes.append(node)
            continue
        flat = node.value.ndim == 1
        source = replace(node, name=fresh_name(taken, f"{node.name}_on"), value=np.ones(1, np.float32), kind="spike")
        name = node.name if flat else fresh_name(taken, f"{node.name}_flat")
        nodes += [source, one_by_one(name, Ref(source.name), node.value.reshape(-1), node.loc, single=True)]
        if not flat:
            nodes.append(Reshape(name=node.name, inputs=(Ref(name),), shape=node.value.shape, loc=node.loc))
        ledger.record(node, "exact", "the constant becomes a synapse from an always-on source")
    return graph.with_nodes(nodes)


def _fold_scales(graph: Graph, ledger: Ledger) -> Graph | None:
    """One scale into the weights that feed it; through sums, which distribute."""
    for node in graph.nodes:
        if not isinstance(node, Scale) or node.offset is not None or node.inputs[0].delay:
            continue
        source = graph[node.inputs[0].node]
        alone = len(graph.users[source.name]) == 1 and all(r.node != source.name for _, r in graph.outputs)
        if not alone:
            continue
        by_row = isinstance(source, Conv) or len(graph.shape_of(source.name)) == 1
        if isinstance(source, (Dense, Conv, Sparse)) and (node.factor.size == 1 or (node.factor.ndim == 1 and by_row)):
            merged = _scaled(source, node.factor)
            ledger.record(source, "exact", f"weights multiplied by the input gain of %{node.name}")
            return _replace(graph, {source.name: merged}, remove=node.name, by=Ref(source.name))
        if isinstance(source, Add):
            parts = [
                replace(node, name=graph.fresh_name(f"{node.name}_{index}"), inputs=(ref,))
                for index, ref in enumerate(source.inputs)
            ]
            summed = replace(source, inputs=tuple(Ref(part.name) for part in parts))
            nodes = []
            for item in graph.nodes:
                nodes += [*parts, summed] if item is source else [item]
            return _replace(graph.with_nodes(nodes), {}, remove=node.name, by=Ref(source.name))
    return None


def _scaled(node: Dense | Conv | Sparse, factor: Array) -> Node:
    per_row = np.asarray(factor.reshape(()) if factor.size == 1 else factor, node.weight.dtype)
    if isinstance(node, Sparse):
        along = per_row[node.rows] if per_row.ndim else per_row
    else:
        along = per_row.reshape(-1, *(1,) * (node.weight.ndim - 1)) if per_row.ndim else per_row
    bias = None if node.bias is None else node.bias * per_row
    return replace(node, weight=node.weight * along, bias=bias)


def _replace(graph: Graph, new: dict[str, Node], *, remove: str, by: Ref) -> Graph:
    nodes = [new.get(n.name, n) for n in graph.nodes if n.name != remove]
    targets = {(remove, ""): by}
    return graph.with_nodes(redirect(nodes, targets), redirect_outputs(graph.outputs, targets))


def _split_operands(graph: Graph, ledger: Ledger) -> Graph | None:
    """Weights over a concatenation, a sum or a gather of messages: one layer of weights per operand, added up."""
    for node in graph.nodes:
        if not isinstance(node, WEIGHTED) or graph.type_of(node.inputs[0]).kind == "value":
            continue
        (ref,) = node.inputs
        if ref.init is not None:
            continue
        source = graph[ref.node]
        if isinstance(source, Reshape) and (inside := _inside_out(graph, source)):
            return inside
        flat = isinstance(node, Dense) and len(graph.shape_of(source.name)) == 1
        maps = isinstance(node, Conv) and node.groups == 1 and isinstance(source, Concat) and source.axis == 0
        if isinstance(source, Add) or (isinstance(source, Concat) and (flat or maps)):
            parts: list[Node] = []
            begin = 0
            for index, operand in enumerate(source.inputs):
                size = graph.type_of(operand).shape[0]
                columns = slice(begin, begin + size) if isinstance(source, Concat) else slice(None)
                begin += size
                parts.append(
                    replace(
                        node,
                        name=graph.fresh_name(f"{node.name}_{index}"),
                        inputs=(operand.later(ref.delay),),
                        weight=node.weight if isinstance(source, Add) else node.weight[:, columns],
                        delay=node.delay if node.delay is None or isinstance(source, Add) else node.delay[:, columns],
                        bias=node.bias if index == 0 else None,
                    )
                )
            total = Add(name=node.name, inputs=tuple(Ref(p.name) for p in parts), loc=node.loc, dtype=node.dtype)
            ledger.record(node, "exact", f"split over the {len(parts)} operands of %{source.name}")
            nodes = []
            for item in graph.nodes:
                nodes += [*parts, total] if item is node else [item]
            return graph.with_nodes(nodes)
        if isinstance(node, Dense) and isinstance(source, Gather) and len(source.indices.shape) == 1:
            before = graph.type_of(source.inputs[0])
            if len(before.shape) == 1 and node.delay is None:
                weight = np.zeros((node.weight.shape[0], before.size), node.weight.dtype)
                np.add.at(weight.T, source.indices, node.weight.T)
                ledger.record(node, "exact", f"took over the selection of %{source.name}")
                merged = replace(node, weight=weight, inputs=(source.inputs[0].later(ref.delay),))
                return graph.with_nodes(merged if n is node else n for n in graph.nodes)
    return None


def _inside_out(graph: Graph, node: Reshape) -> Graph | None:
    """A reshaped sum as the sum of what is reshaped; a flattened row of channels as a row of what is flattened."""
    (ref,) = node.inputs
    source = graph[ref.node]
    row = isinstance(source, Concat) and source.axis == 0 and len(node.shape) == 1
    if ref.init is not None or not (isinstance(source, Add) or row):
        return None
    taken = set(graph.by_name)
    parts = []
    for number, operand in enumerate(source.inputs):
        shape = node.shape if isinstance(source, Add) else (graph.type_of(operand).size,)
        name = fresh_name(taken, f"{node.name}_{number}")
        parts.append(Reshape(name=name, inputs=(operand.later(ref.delay),), shape=shape, loc=node.loc))
    swapped = replace(source, name=node.name, inputs=tuple(Ref(part.name) for part in parts))
    nodes: list[Node] = []
    for item in graph.nodes:
        nodes += [*parts, swapped] if item is node else [item]
    return graph.with_nodes(nodes)


def _identity_synapses(graph: Graph, ledger: Ledger) -> Graph:
    """A spike that is added to a current, or enters a neuron, passes through a synapse of weight 1."""
    nodes: list[Node] = []
    taken = set(graph.by_name)
    # A sum of spikes that only neurons and sums read is a sum of currents.
    currents = {
        node.name
        for node in graph.nodes
        if isinstance(node, Add)
        and (
            graph.types[node.name][0][1].kind == "value"
            or (graph.users[node.name] and all(isinstance(user, (Add, Neuron)) for user, _ in graph.users[node.name]))
        )
    }
    for node in graph.nodes:
        if not isinstance(node, Neuron) and node.name not in currents:
            nodes.append(node)
            continue
        inputs = []
        for ref in node.inputs:
            type_ = graph.type_of(ref)
            if type_.kind == "value" or ref.node in currents:
                inputs.append(ref)
                continue
            name = fresh_name(taken, f"{node.name}_from_{ref.node}")
            size = type_.size
            operand = ref
            if len(type_.shape) != 1:
                now = Ref(ref.node, ref.port)  # the synapse can wait, a wire without one cannot
                flat = Reshape(name=fresh_name(taken, f"{name}_flat"), inputs=(now,), shape=(size,), loc=node.loc)
                nodes.append(flat)
                operand = Ref(flat.name, "", ref.delay, None if ref.init is None else ref.init.reshape(ref.delay, -1))
            nodes.append(one_by_one(name, operand, np.ones(size, np.float32), node.loc))
            if len(type_.shape) != 1:
                back = fresh_name(taken, f"{name}_back")
                nodes.append(Reshape(name=back, inputs=(Ref(name),), shape=type_.shape, loc=node.loc))
                name = back
            ledger.record(node, "exact", f"spikes of %{ref.node} enter through an identity synapse")
            inputs.append(Ref(name))
        nodes.append(replace(node, inputs=tuple(inputs)))
    return graph.with_nodes(nodes)
