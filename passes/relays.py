"""Delays that the target's synapses do not hold: relay neurons, and lags that need as few of them as possible.

A relay fires one step after a spike reaches it and forgets it, so a chain of relays is a longer delay line; every reader of a wire
takes its spikes from the same chain, each where its own delay begins, and only the elements that somebody reads so late are in it.
Lags and chains are one integer program: an element's chain is as long as its latest reader asks, and how late that is depends on
the lags. Of all solutions with the fewest neurons the one with the smallest lags is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from spikec.ir.connections import connections
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Conv, Dense, Gather, Neuron, Node, Ref, Reshape, Sparse
from spikec.ir.text import parse_program
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.rewrite import fresh_name
from spikec.target import NativeNeuron, Target

if TYPE_CHECKING:
    import networkx as nx

SYNAPSES = (Dense, Sparse, Conv)
#: Seconds that each of the two searches may take.
SECONDS: Final = 20.0
Wire = tuple[str, str]


def relay_of(target: Target) -> NativeNeuron | None:
    """The native neuron that can pass spikes on; None if the target has none."""
    return next((item for item in target.neurons if item.relay), None)


@dataclass(frozen=True)
class _Line:
    """Elements of a wire that the same readers read equally late: `size` of them, each reader with its synapses' own delay."""

    wire: Wire
    size: int
    readers: tuple[tuple[str, int], ...]


def even(node: Dense | Sparse | Conv) -> bool:
    """Whether no synapse of a layer has a delay of its own; those of weight 0 do not count."""
    return node.delay is None or not np.any(node.delay[node.weight != 0])


def own_delays(graph: Graph, node: Dense | Sparse | Conv) -> Array:
    """For every element of the operand, the largest delay of a synapse that reads it; -1 if none does. Flat."""
    size = graph.type_of(node.inputs[0]).size
    if even(node):
        return np.zeros(size, np.int64)
    found = connections(node, graph.type_of(node.inputs[0]).shape)
    longest = np.full(size, -1, np.int64)
    np.maximum.at(longest, found.columns, found.delay)
    return longest


def longest_wait(graph: Graph, node: Dense | Sparse | Conv) -> int:
    """How many steps back a layer of weights reads at most."""
    return int(own_delays(graph, node).max(initial=0)) + node.inputs[0].delay


def _lines(graph: Graph) -> list[_Line]:
    table: dict[Wire, list[tuple[str, Array]]] = {}
    for node in graph.nodes:
        if isinstance(node, SYNAPSES):
            ref = node.inputs[0]
            delays = own_delays(graph, node)
            table.setdefault((ref.node, ref.port), []).append((node.name, np.where(delays < 0, -1, delays + ref.delay)))
    lines = []
    for wire, readers in table.items():
        kinds, count = np.unique(np.stack([delays for _, delays in readers]), axis=1, return_counts=True)
        for kind, size in zip(kinds.T, count, strict=True):
            own = tuple((name, int(delay)) for (name, _), delay in zip(readers, kind, strict=True) if delay >= 0)
            if own:
                lines.append(_Line(wire, int(size), own))
    return lines


def _relayed(graph: Graph, wire: Wire, relays: bool) -> bool:
    """Whether relays can carry a wire."""
    return relays and graph.type_of(Ref(*wire)).kind == "spike"


def hops_needed(wait: int, hop: int, limit: int) -> int:
    """Relays in front of a reader that reads so many steps back."""
    return max(0, -(-(wait - hop - limit) // (limit + 1)))


def neurons_needed(graph: Graph, lags: Mapping[str, int], hop: int, limit: int) -> int:
    """How many relay neurons a graph needs with these lags."""
    return sum(
        line.size * max(hops_needed(delay + lags[name] - lags[line.wire[0]], hop, limit) for name, delay in line.readers)
        for line in _lines(graph)
    )


def fewest(
    graph: Graph, constraints: nx.DiGraph, root: str, lags: dict[str, int], hop: int, limit: int, relays: bool
) -> tuple[dict[str, int], bool]:
    """Lags that need the fewest relay neurons, and whether that is proven. The given ones, the smallest, if they need none.

    constraints: an edge (u, v) of weight -w says that v's lag is at least u's and w. Wires that relays cannot carry have to do
    without; where they cannot, the lags are those given.
    """
    lines = _lines(graph)
    needed = [max(d + lags[name] - lags[line.wire[0]] for name, d in line.readers) - hop - limit for line in lines]
    if max(needed, default=0) <= 0:
        return lags, True
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    names = list(lags)
    place = {name: index for index, name in enumerate(names)}
    width = len(names) + len(lines)
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    least: list[float] = []

    def at_least(bound: int, *terms: tuple[int, int]) -> None:
        for column, value in terms:
            rows.append(len(least))
            columns.append(column)
            values.append(value)
        least.append(bound)

    for u, v, weight in constraints.edges(data="weight"):
        if u != root and v != root and u != v:
            at_least(-weight, (place[v], 1), (place[u], -1))
    for number, line in enumerate(lines):
        for name, delay in line.readers:
            chain = (len(names) + number, limit + 1)
            if name == line.wire[0]:
                at_least(delay - hop - limit, chain)
            else:
                at_least(delay - hop - limit, chain, (place[line.wire[0]], 1), (place[name], -1))
    matrix = csr_array((values, (rows, columns)), shape=(len(least), width))
    top = float(sum(abs(w) for _, _, w in constraints.edges(data="weight")) + max(needed) + hop + limit)
    upper = np.full(width, top)
    for name in names:  # inputs stay at 0
        if constraints.has_edge(name, root):
            upper[place[name]] = -constraints[name][root]["weight"]
    for number, line in enumerate(lines):
        if not _relayed(graph, line.wire, relays):
            upper[len(names) + number] = 0
    cost = np.array([0.0] * len(names) + [float(line.size) for line in lines])
    first = milp(
        cost,
        integrality=np.ones(width),
        bounds=Bounds(0, upper),
        constraints=LinearConstraint(matrix, np.array(least, float), np.inf),
        options={"time_limit": SECONDS},
    )
    if first.x is None:
        return lags, first.status == 2
    best = round(float(cost @ np.rint(first.x)))
    second = milp(
        np.array([1.0] * len(names) + [0.0] * len(lines)),
        integrality=np.ones(width),
        bounds=Bounds(0, upper),
        constraints=[
            LinearConstraint(matrix, np.array(least, float), np.inf),
            LinearConstraint(cost[None], -np.inf, best),
        ],
        options={"time_limit": SECONDS},
    )
    chosen = np.rint((second if second.x is not None else first).x).astype(np.int64)
    return {name: int(chosen[index]) for index, name in enumerate(names)}, first.status == 0


@dataclass
class _Chain:
    """Relays of a wire: for each stage the elements in it (flat, sorted) and its population."""

    elements: list[Array]
    names: list[str]


def insert(
    graph: Graph, lags: dict[str, int], target: Target, hop: int, limit: int, taken: set[str], ledger: Ledger
) -> tuple[Graph, dict[str, int]]:
    """The moved graph with relays wherever a synapse reads farther back than `limit`; and the lags of the new nodes as well.

    Wires that relays cannot carry are left as they are.
    """
    native = relay_of(target)
    far = [
        node
        for node in graph.nodes
        if isinstance(node, SYNAPSES)
        and longest_wait(graph, node) > hop + limit
        and _relayed(graph, (node.inputs[0].node, node.inputs[0].port), native is not None)
    ]
    if not far or native is None:
        return graph, lags
    lags = dict(lags)
    late: dict[Wire, Array] = {}
    for layer in far:
        ref = layer.inputs[0]
        delays = own_delays(graph, layer)
        stages = np.array([hops_needed(int(d) + ref.delay, hop, limit) if d >= 0 else 0 for d in delays])
        old = late.get((ref.node, ref.port))
        late[ref.node, ref.port] = stages if old is None else np.maximum(old, stages)
    extra: list[Node] = []
    chains: dict[Wire, _Chain] = {}
    for wire, stages in late.items():
        chains[wire] = _chain(graph, wire, stages, native, hop, limit, taken, lags, extra)
        count = sum(len(elements) for elements in chains[wire].elements)
        what = f"{count} relay neuron(s) in {len(chains[wire].names)} stage(s) hold spikes for delays beyond {limit} steps"
        ledger.record(graph[wire[0]], "exact", what, measured={"neurons": count})
    nodes: list[Node] = []
    names = {node.name for node in far}
    for node in graph.nodes:
        if node.name in names:
            assert isinstance(node, SYNAPSES)
            ref = node.inputs[0]
            nodes += _tapped(graph, node, chains[ref.node, ref.port], hop, limit, taken, lags)
        else:
            nodes.append(node)
    return graph.with_nodes([*nodes, *extra]), lags


def _chain(
    graph: Graph,
    wire: Wire,
    stages: Array,
    native: NativeNeuron,
    hop: int,
    limit: int,
    taken: set[str],
    lags: dict[str, int],
    extra: list[Node],
) -> _Chain:
    """The relays of a wire whose elements need so many stages each."""
    source = graph[wire[0]]
    program = parse_program(native.fixed)
    params = {name: np.asarray(native.relay[name], np.int32) for name in program.params}
    stem = f"{source.name}_{wire[1]}" if wire[1] else source.name
    chain = _Chain([], [])
    before, held = Ref(*wire), np.arange(len(stages))
    own, lag = lags[source.name], source.lag
    for stage in range(1, int(stages.max()) + 1):
        elements = np.flatnonzero(stages >= stage)
        picked = np.searchsorted(held, elements)
        if len(elements) < len(held) or len(graph.type_of(before).shape if stage == 1 else (0,)) != 1:
            gather = Gather(
                name=fresh_name(taken, f"{stem}_kept{stage}"), inputs=(before,), indices=picked, lag=lag, loc=source.loc
            )
            lags[gather.name] = own
            extra.append(gather)
            before = Ref(gather.name)
        own, lag = own + limit + 1, lag + limit + 1
        count = len(elements)
        synapse = Sparse(
            name=fresh_name(taken, f"{stem}_hold{stage}"),
            inputs=(replace(before, delay=limit + 1),),
            weight=np.full(count, native.relay["weight"], np.int16),
            indices=np.arange(count, dtype=np.int32),
            indptr=np.arange(count + 1, dtype=np.int32),
            fan_in=count,
            lag=lag,
            loc=source.loc,
        )
        relay = Neuron(
            name=fresh_name(taken, f"{stem}_relay{stage}"),
            inputs=(Ref(synapse.name),),
            program=program,
            params=params,
            lag=lag,
            loc=source.loc,
        )
        extra += [synapse, relay]
        lags[synapse.name] = lags[relay.name] = own
        chain.elements.append(elements)
        chain.names.append(relay.name)
        before, held = Ref(relay.name), elements
    return chain


def _tapped(
    graph: Graph, node: Dense | Sparse | Conv, chain: _Chain, hop: int, limit: int, taken: set[str], lags: dict[str, int]
) -> list[Node]:
    """A layer of weights that reads what it can straight from its source, and the rest from where the chain holds it."""
    (ref,) = node.inputs
    shape = graph.shape_of(node.name)
    operand = graph.type_of(ref).shape
    if even(node):
        node = replace(node, delay=None)
        # One delay for all: the whole layer reads from one stage, which then holds every element.
        stage = hops_needed(ref.delay, hop, limit)
        source = Ref(chain.names[stage - 1], delay=ref.delay - stage * (limit + 1))
        if len(operand) == 1:
            return [replace(node, inputs=(source,))]
        lag = node.lag - lags[node.name] + lags[source.node]
        held = fresh_name(taken, f"{node.name}_held")
        shaped = Reshape(name=held, inputs=(Ref(source.node),), shape=operand, lag=lag, loc=node.loc)
        lags[held] = lags[source.node]
        return [shaped, replace(node, inputs=(replace(source, node=held),))]
    found = connections(node, operand)
    stages = np.array([hops_needed(int(d) + ref.delay, hop, limit) for d in found.delay], np.int64)
    parts: list[Node] = []
    own = lags[node.name]
    for stage in np.unique(stages):
        mine = stages == stage
        columns, fan_in, wire = found.columns[mine], found.shape[1], Ref(ref.node, ref.port)
        wait = ref.delay - int(stage) * (limit + 1)
        least = int(found.delay[mine].min()) + wait
        if stage:
            elements = chain.elements[stage - 1]
            columns, fan_in, wire = np.searchsorted(elements, columns), len(elements), Ref(chain.names[stage - 1])
        elif len(operand) != 1:
            flat = Reshape(
                name=fresh_name(taken, f"{node.name}_flat"), inputs=(wire,), shape=(fan_in,), lag=graph[ref.node].lag, loc=node.loc
            )
            lags[flat.name] = lags[ref.node]
            parts.append(flat)
            wire = Ref(flat.name)
        rows = found.rows[mine]
        order = np.lexsort((columns, rows))
        indptr = np.searchsorted(rows[order], np.arange(found.shape[0] + 1)).astype(np.int32)
        # Every synapse takes its hop in the reference; what is left are synaptic delays.
        base = min(least, max(wait, hop))
        delay = (found.delay[mine] + wait - base)[order].astype(np.int32)
        part = Sparse(
            name=fresh_name(taken, f"{node.name}_by{stage}"),
            inputs=(replace(wire, delay=base),),
            weight=found.weight[mine][order],
            indices=columns[order].astype(np.int32),
            indptr=indptr,
            fan_in=fan_in,
            delay=delay if delay.any() else None,
            lag=node.lag,
            loc=node.loc,
        )
        lags[part.name] = own
        parts.append(part)
    sums = [part for part in parts if isinstance(part, Sparse)]
    if node.bias is not None:
        per = int(np.prod(shape, dtype=np.int64)) // len(node.bias)
        bias = np.repeat(node.bias, per) if isinstance(node, Conv) else np.tile(node.bias, per)
        changed = replace(sums[0], bias=bias)
        parts[parts.index(sums[0])] = sums[0] = changed
    whole: Node = sums[0]
    if len(sums) > 1:
        whole = Add(name=fresh_name(taken, f"{node.name}_sum"), inputs=tuple(Ref(s.name) for s in sums), lag=node.lag, loc=node.loc)
        lags[whole.name] = own
        parts.append(whole)
    if len(shape) != 1:
        whole = Reshape(name=node.name, inputs=(Ref(whole.name),), shape=shape, lag=node.lag, loc=node.loc)
        lags[whole.name] = own
        return [*parts, whole]
    # The last node of all takes the layer's own name.
    return [replace(item, name=node.name) if item is whole else item for item in parts]
