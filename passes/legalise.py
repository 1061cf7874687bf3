"""Express a float graph in what the target has: its native neurons and its operations.

Exact rewrites only: programs are matched to native ones up to algebra, input gains are folded into weights, a dense layer over a
concatenation or a sum of spikes becomes a sum of dense layers, and a spike that enters a neuron without a synapse gets an
identity synapse. What remains is refused, all of it at once, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.algebra import Match, match, same_state
from spikec.ir.graph import Graph
from spikec.ir.neuron import Emit, Program
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Node, Ref, Reshape, Scale, Sparse, spread
from spikec.ir.text import parse_program
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.rewrite import fresh_name, reachable, redirect, redirect_outputs
from spikec.target import Target

WEIGHTED = (Dense, Sparse, Conv)


@dataclass(frozen=True)
class Legalise:
    """Match neurons to the target's native ones and bring the rest into its operations. Float level, exact up to rounding."""

    target: Target
    name: ClassVar[str] = "legalise"
    levels: ClassVar[tuple[str, ...]] = ("float",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """A float graph of native patterns. Raises CompileError with every SPK201, SPK202 and SPK208 at once."""
        problems: list[Diagnostic] = []
        graph = self._neurons(graph, ledger, problems)
        graph = _always_on(graph, ledger)
        graph = _settle(graph, lambda g: _fold_scales(g, ledger))
        graph = _settle(graph, lambda g: _split_operands(g, ledger))
        graph = _identity_synapses(graph, ledger)
        alive = reachable(graph)
        graph = graph.with_nodes(n for n in graph.nodes if n.name in alive or isinstance(n, Input))
        problems += self._operations(graph)
        if problems:
            raise CompileError.many(problems)
        return graph

    # Neurons ---------------------------------------------------------------------------------------------------------

    def _neurons(self, graph: Graph, ledger: Ledger, problems: list[Diagnostic]) -> Graph:
        nodes: list[Node] = []
        taken = set(graph.by_name)
        renamed: dict[tuple[str, str], str] = {}
        for node in graph.nodes:
            if not isinstance(node, Neuron):
                nodes.append(node)
                continue
            found = self._match(node, graph.shape_of(node.name))
            if isinstance(found, Diagnostic):
                problems.append(found)
                nodes.append(node)
                continue
            pattern, matched = found
            extra, bad = self._probes(graph, node, matched)
            if bad:
                problems += bad
                nodes.append(node)
                continue
            for port, state in extra.items():
                renamed[node.name, port] = state
            states = dict.fromkeys(extra.values())
            emits = (*pattern.emits[:1], *(Emit(state, "value") for state in states))
            suffix = "".join(f"_{state}" for state in states)
            program = Program(pattern.name + suffix, pattern.inputs, pattern.params, pattern.states, pattern.body, emits)
            inputs = []
            for index, (ref, gain) in enumerate(zip(node.inputs, matched.gains, strict=True)):
                if np.all(gain == 1):
                    inputs.append(ref)
                    continue
                scale = fresh_name(taken, f"{node.name}_gain{index or ''}")
                nodes.append(Scale(name=scale, inputs=(ref,), factor=_as(gain, np.float32), loc=node.loc))
                inputs.append(Ref(scale))
            nodes.append(
                replace(
                    node,
                    inputs=tuple(inputs),
                    program=program,
                    params={name: _as(value, np.float64) for name, value in matched.params.items()},
                    init=_initial(node, matched),
                )
            )
            names = ", ".join(f"{own} is {native}" for native, own in matched.states.items() if own != native)
            ledger.record(
                node,
                "exact",
                f"@{node.program.name} is {self.target.name}'s @{pattern.name}" + (f" ({names})" if names else ""),
            )
        return _rename_ports(graph.with_nodes(nodes), renamed)

    def _match(self, node: Neuron, shape: tuple[int, ...]) -> tuple[Program, Match] | Diagnostic:
        reasons = []
        params = {name: spread(array, shape) for name, array in node.params.items()}
        for native in self.target.neurons:
            pattern = parse_program(native.pattern)
            found = match(node.program, params, pattern)
            if isinstance(found, Match):
                solved = {name: _packed(array, shape) for name, array in found.params.items()}
                return pattern, replace(found, params=solved, gains=tuple(_packed(gain, shape) for gain in found.gains))
            reasons.append(f"{native.name}: {found}")
        return Diagnostic(
            "SPK201",
            f"%{node.name}: {self.target.name} has no neuron that computes @{node.program.name}",
            loc=node.loc,
            notes=tuple(reasons),
            fix="use a neuron that resets to zero in the same step (snnTorch: reset_mechanism='zero', "
            "reset_delay=False), or compile for host or reference",
        )

    def _probes(self, graph: Graph, node: Neuron, matched: Match) -> tuple[dict[str, str], list[Diagnostic]]:
        """Further ports: a state's value after the step can be read out, but not sent to another node."""
        native = {own: name for name, own in matched.states.items()}
        extra: dict[str, str] = {}
        problems = []
        for emit in node.program.emits[1:]:
            readers = [user for user, index in graph.users[node.name] if user.inputs[index].port == emit.name]
            read = any(ref.node == node.name and ref.port == emit.name for _, ref in graph.outputs)
            state = same_state(node.program, node.params, emit.name)
            if readers:
                message = f"%{node.name}: {self.target.name} cannot send {emit.name} to %{readers[0].name}, only spikes"
            elif read and state is None:
                message = f"%{node.name}: the output {emit.name} is not a state at the end of the step"
            else:
                if read and state is not None:
                    extra[emit.name] = native[state]
                continue
            problems.append(Diagnostic("SPK201", message, loc=node.loc, fix="use its spikes, or the target host"))
        return extra, problems

    # Operations ------------------------------------------------------------------------------------------------------

    def _operations(self, graph: Graph) -> Iterator[Diagnostic]:
        for node in graph.nodes:
            if isinstance(node, Input) and node.type.kind != "spike":
                yield Diagnostic(
                    "SPK208",
                    f"%{node.name}: {self.target.name} takes spikes, and this input holds other numbers",
                    loc=node.loc,
                    fix="encode the data as spikes (0 and 1) before the network, or use the target host",
                )
            elif node.op not in self.target.operations:
                yield Diagnostic(
                    "SPK202",
                    f"%{node.name}: {self.target.name} has no operation '{node.op}'",
                    loc=node.loc,
                    fix="compile for host or reference",
                )
            elif (
                isinstance(node, WEIGHTED)
                and graph.type_of(node.inputs[0]).kind != "spike"
                and not isinstance(graph[node.inputs[0].node], Neuron)  # what neurons cannot send is reported above
            ):
                yield Diagnostic(
                    "SPK202",
                    f"%{node.name}: its operand %{node.inputs[0].node} is not spikes, and a synapse of "
                    f"{self.target.name} takes spikes",
                    loc=node.loc,
                    fix="put a spiking layer in between, or merge the two linear layers into one",
                )


def _packed(array: Array, shape: tuple[int, ...]) -> Array:
    """A parameter as nodes hold it: one per channel is an array of one axis."""
    if array.ndim == len(shape) > 1 and array.shape == (shape[0], *(1,) * (len(shape) - 1)):
        return array.reshape(-1)
    return array


def _as(value: Any, dtype: Any) -> Array:
    array = np.asarray(value, dtype)
    return array.reshape(()) if array.size == 1 and array.ndim <= 1 else array


def _initial(node: Neuron, matched: Match) -> dict[str, Array]:
    """Initial states under the pattern's names; only those that are not zero, the patterns' own."""
    result = {}
    for native, own in matched.states.items():
        given = node.init.get(own)
        value = np.asarray(given if given is not None else next(s.init for s in node.program.states if s.name == own))
        if value.any():
            result[native] = value.astype(np.float64)
    return result


def _rename_ports(graph: Graph, renamed: dict[tuple[str, str], str]) -> Graph:
    outputs = [(n, replace(r, port=renamed.get((r.node, r.port), r.port))) for n, r in graph.outputs]
    return graph.with_nodes(graph.nodes, outputs)


def _settle(graph: Graph, step: Any) -> Graph:
    """Apply a rewrite until it finds nothing more."""
    while (after := step(graph)) is not None:
        graph = after
    return graph


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
        nodes += [source, Dense(name=name, inputs=(Ref(source.name),), weight=node.value.reshape(-1, 1), loc=node.loc)]
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
    """Dense over a concatenation, a sum or a gather of spikes: one dense per operand, added up."""
    for node in graph.nodes:
        if not isinstance(node, Dense) or graph.type_of(node.inputs[0]).kind == "value":
            continue
        (ref,) = node.inputs
        if ref.init is not None:
            continue
        source = graph[ref.node]
        if isinstance(source, (Concat, Add)) and len(graph.shape_of(source.name)) == 1:
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
                        weight=node.weight[:, columns],
                        delay=None if node.delay is None else node.delay[:, columns],
                        bias=node.bias if index == 0 else None,
                    )
                )
            total = Add(name=node.name, inputs=tuple(Ref(p.name) for p in parts), loc=node.loc, dtype=node.dtype)
            ledger.record(node, "exact", f"split over the {len(parts)} operands of %{source.name}")
            nodes = []
            for item in graph.nodes:
                nodes += [*parts, total] if item is node else [item]
            return graph.with_nodes(nodes)
        if isinstance(source, Gather) and len(source.indices.shape) == 1:
            before = graph.type_of(source.inputs[0])
            if len(before.shape) == 1 and node.delay is None:
                weight = np.zeros((node.weight.shape[0], before.size), node.weight.dtype)
                np.add.at(weight.T, source.indices, node.weight.T)
                ledger.record(node, "exact", f"took over the selection of %{source.name}")
                merged = replace(node, weight=weight, inputs=(source.inputs[0].later(ref.delay),))
                return graph.with_nodes(merged if n is node else n for n in graph.nodes)
    return None


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
                flat = Reshape(name=fresh_name(taken, f"{name}_flat"), inputs=(ref,), shape=(size,), loc=node.loc)
                nodes.append(flat)
                operand = Ref(flat.name)
            count = np.arange(size + 1)
            nodes.append(
                Sparse(
                    name=name,
                    inputs=(operand,),
                    weight=np.ones(size, np.float32),
                    indices=count[:-1],
                    indptr=count,
                    fan_in=size,
                    loc=node.loc,
                )
            )
            if len(type_.shape) != 1:
                back = fresh_name(taken, f"{name}_back")
                nodes.append(Reshape(name=back, inputs=(Ref(name),), shape=type_.shape, loc=node.loc))
                name = back
            ledger.record(node, "exact", f"spikes of %{ref.node} enter through an identity synapse")
            inputs.append(Ref(name))
        nodes.append(replace(node, inputs=tuple(inputs)))
    return graph.with_nodes(nodes)
