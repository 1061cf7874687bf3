"""What quantizing passes share: groups of nodes with one scale, biases, and measuring what a pass cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from spikec.inputs import recode
from spikec.ir.connections import connections
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.neuron import Assign, Expr, Program, Var, substitute
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Node, Ref, Reshape, Sparse
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.score import score, scored_output

WEIGHTED = (Dense, Sparse, Conv)


@dataclass(eq=False)
class Group:
    """Nodes that exchange values (not spikes) within a step and therefore share one scale."""

    nodes: list[Node] = field(default_factory=list)

    @property
    def neurons(self) -> list[Neuron]:
        """Its populations."""
        return [node for node in self.nodes if isinstance(node, Neuron)]

    @property
    def weighted(self) -> list[Dense | Sparse | Conv]:
        """Its layers of weights."""
        return [node for node in self.nodes if isinstance(node, WEIGHTED)]


def groups_of(graph: Graph, apart: Collection[str] = ()) -> list[Group]:
    """Connected components over wires of values, in node order; a weight or a neuron begins a new scale. Nodes in `apart` are in
    no group."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    members = []
    for node in graph.nodes:
        if node.name in apart:
            continue
        if isinstance(node, (*WEIGHTED, Neuron)) or graph.types[node.name][0][1].kind == "value":
            members.append(node)
            root(node.name)
            for ref in node.inputs if not isinstance(node, WEIGHTED) else ():
                if graph.type_of(ref).kind == "value" and not isinstance(graph[ref.node], Neuron) and ref.node not in apart:
                    parent[root(ref.node)] = root(node.name)
    table: dict[str, Group] = {}
    for node in members:
        table.setdefault(root(node.name), Group()).nodes.append(node)
    return list(table.values())


def spread_bias(node: Dense | Sparse | Conv, shape: tuple[int, ...]) -> Array:
    """A layer's bias in the shape of its output."""
    assert node.bias is not None
    bias = node.bias.reshape(-1, *(1,) * (len(shape) - 1)) if isinstance(node, Conv) else node.bias
    return np.ascontiguousarray(np.broadcast_to(bias, shape))


def silent_value(graph: Graph, ref: Ref, always: Mapping[str, Array] | None = None) -> Array:
    """What a value wire carries when no spike arrives: the sum of the biases behind it, constants and populations left out.

    always: by layer of weights, what it gives at every step because it reads an always-on source (see `always_on`).
    """
    node, shape = graph[ref.node], graph.shape_of(ref.node)
    if graph.type_of(ref).kind != "value" or isinstance(node, (Neuron, Input, Constant)):
        return np.zeros(shape)
    if always and node.name in always:
        return always[node.name]
    if isinstance(node, WEIGHTED):
        return spread_bias(node, shape).astype(np.float64) if node.bias is not None else np.zeros(shape)
    parts = [silent_value(graph, operand, always) for operand in node.inputs]
    if not any(part.any() for part in parts):
        return np.zeros(shape)
    rules: dict[type[Node], Callable[[], Array]] = {
        Add: lambda: np.asarray(sum(parts)),
        Reshape: lambda: parts[0].reshape(shape),
        Gather: lambda: parts[0].ravel()[node.indices] if isinstance(node, Gather) else parts[0],
        Concat: lambda: np.concatenate(parts, axis=node.axis if isinstance(node, Concat) else 0),
    }
    return rules[type(node)]()


def always_on(graph: Graph, group: Group) -> dict[str, Array]:
    """Layers of a group that give the same numbers at every step and are only added to others: weights of an always-on source."""
    found: dict[str, Array] = {}
    shown = {ref.node for _, ref in graph.outputs}

    def added(name: str) -> bool:
        """Whether a wire is read, now, by sums of several only."""
        readers = graph.users[name]
        now = name not in shown and not any(user.inputs[index].delay for user, index in readers)
        return (
            now
            and bool(readers)
            and all(
                (isinstance(user, Add) and len({ref.node for ref in user.inputs}) > 1)
                or (isinstance(user, Reshape) and added(user.name))
                for user, _ in readers
            )
        )

    for node in group.weighted:
        (ref,) = node.inputs
        source = graph[ref.node]
        plain = (
            isinstance(node, (Dense, Sparse)) and node.bias is None and node.delay is None and not ref.delay and ref.init is None
        )
        if plain and isinstance(source, Constant) and source.kind == "spike" and not source.start and added(node.name):
            table = connections(node, source.value.shape)
            given = table.weight.astype(np.float64) * source.value.ravel()[table.columns]
            found[node.name] = np.bincount(table.rows, given, table.shape[0]).reshape(graph.shape_of(node.name))
    behind = {name: {name} for name in found}  # by wire, the layers that are all it shows
    for item in graph.nodes:
        if isinstance(item, (Add, Reshape)) and item.inputs and all(ref.node in behind for ref in item.inputs):
            behind[item.name] = set().union(*(behind[ref.node] for ref in item.inputs))
            if isinstance(item, Add):  # something has to stay
                found = {name: value for name, value in found.items() if name not in behind[item.name]}
    return found


def without(graph: Graph, names: Collection[str]) -> Graph:
    """The graph whose sums leave out some layers, with what only they needed."""
    gone = set(names)
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name in gone or (isinstance(node, Reshape) and node.inputs[0].node in gone):
            gone.add(node.name)
            continue
        kept = tuple(ref for ref in node.inputs if ref.node not in gone)
        if isinstance(node, Add) and len(kept) < len(node.inputs):
            shape = graph.shape_of(node.name)
            node = replace(node, inputs=kept) if len(kept) > 1 else Reshape(name=node.name, inputs=kept, shape=shape, loc=node.loc)
        nodes.append(node)
    read = {ref.node for node in nodes for ref in node.inputs} | {ref.node for _, ref in graph.outputs}
    return graph.with_nodes(node for node in nodes if not isinstance(node, Constant) or node.name in read)


def with_bias(node: Neuron, offsets: list[Array]) -> Neuron:
    """The population with something added to each of its inputs, by its program."""
    program, params = node.program, dict(node.params)
    taken = {*program.inputs, *program.params, *program.state_names, *(s.name for s in program.body)}
    swap: dict[str, Expr] = {}
    for name, offset in zip(program.inputs, offsets, strict=True):
        if offset.any():
            param = f"{name}_bias"
            while param in taken:
                param += "_"
            taken.add(param)
            swap[name] = Var(name) + Var(param)
            params[param] = offset
    body = tuple(Assign(s.name, substitute(s.expr, swap)) for s in program.body)
    names = tuple(params)
    changed = Program(
        f"{program.name}_biased" if swap else program.name, program.inputs, names, program.states, body, program.emits
    )
    return replace(node, program=changed, params=params)


def measure(before: Graph, after: Graph, calibrate: Mapping[str, Array] | None, labels: Array | None, ledger: Ledger) -> None:
    """What the calibration data says: spikes that changed, layer by layer, and the accuracy."""
    if calibrate is None:
        return
    spiking = (node for node in before.neurons if node.program.emits[0].kind == "spike")
    layers = [node.name for node in spiking if node.name in after]
    one = interpret(before, calibrate, record=layers)
    two = interpret(after, recode(before, after, calibrate), record=layers)
    for name in layers:
        a, b = one.records[name] != 0, two.records[name] != 0
        figures = {"spikes before": float(a.sum()), "spikes after": float(b.sum())}
        if a.shape == b.shape:  # a population that lost neurons cannot be compared neuron by neuron
            figures["spikes changed"] = float(np.count_nonzero(a != b))
        ledger.record(after[name], "convention", "measured on the calibration data", measured=figures)
    if labels is not None:
        if not before.outputs:
            return
        output = scored_output(before)
        scores = [score(run.outputs[output], labels) for run in (one, two)]
        figures = {"accuracy before": scores[0], "accuracy after": scores[1]}
        ledger.record(after[after.output(output).node], "convention", "accuracy on the calibration data", measured=figures)
