"""Take out what cannot matter: neurons that never emit, neurons that nobody reads, and the synapses of both.

Two analyses over the elements of every wire. *Zero*: nothing but zero is ever emitted, found by assuming it of everything and
taking it back where something contradicts (sound by induction over the steps, for all state and all buffers begin at zero then).
*Used*: some output depends on the element. What is zero or unused goes, as far as the structure allows: single neurons of a
population with one axis, whole channels of one with several. Inputs keep their shape, because the user's data has it; a gather
picks what is left of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.ops import (
    Add,
    Concat,
    Constant,
    Conv,
    Dense,
    Gather,
    Input,
    Neuron,
    Node,
    Pool,
    Ref,
    Reshape,
    Scale,
    Sparse,
    spread,
)
from spikec.ir.rules import verify
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.rewrite import fresh_name
from spikec.passes.silence import never_emits, never_fires

Masks = dict[str, Array]


@dataclass(frozen=True)
class Shrink:
    """Remove dead neurons, channels and synapses. Float or fixed level, exact. Outputs and inputs keep their shapes."""

    name: ClassVar[str] = "shrink"
    levels: ClassVar[tuple[str, ...]] = ("float", "fixed")

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The same function of fewer neurons and synapses."""
        return shrink(graph, ledger)


def shrink(graph: Graph, ledger: Ledger, silent: Mapping[str, Array] | None = None) -> Graph:
    """`graph` without what is dead.

    silent: population -> (shape) truths: neurons to be taken as never emitting, whatever they compute. Those among them that the
    structure needs (an output, a sum with others that live, single neurons of a channel) stay, and emit as before.
    """
    smaller = _once(graph, ledger, {name: mask.copy() for name, mask in (silent or {}).items()})
    while smaller is not graph:  # fewer synapses may show that more of it is dead
        graph, smaller = smaller, _once(smaller, ledger, {})
    return smaller


def _once(graph: Graph, ledger: Ledger, forced: Masks) -> Graph:
    proven = never_fires(graph) if graph.level == "fixed" else {}
    while True:
        zero = _zero(graph, forced, proven)
        keep = _keep(graph, _used(graph, zero), zero)
        # One that has to stay also needs all of its inputs, or it would emit something else.
        stuck = [(table, name) for table in (forced, proven) for name, mask in table.items() if np.any(mask & keep[name])]
        if not stuck:
            break
        for table, name in stuck:
            table[name] &= ~keep[name]
    if all(mask.all() for mask in keep.values()):
        return graph
    result = _rebuild(graph, keep)
    for node in graph.nodes:
        gone = int(keep[node.name].size - np.count_nonzero(keep[node.name]))
        if gone and isinstance(node, (Neuron, Input)):
            what = "neurons" if isinstance(node, Neuron) else "inputs"
            why = "pruned, " if node.name in forced and forced[node.name].any() else ""
            ledger.record(node, "exact", f"removed {what}: {why}silent or read by nobody", changed=gone, total=keep[node.name].size)
    return verify(result)


# ----------------------------------------------------------------------------------------------------------- analyses


def _present(node: Dense | Sparse | Conv) -> Array:
    return np.asarray(node.weight != 0)


def _zero(graph: Graph, forced: Mapping[str, Array], proven: Mapping[str, Array]) -> Masks:
    """Elements that are zero at every step: the greatest set that nothing contradicts."""
    zero: Masks = {node.name: np.ones(graph.shape_of(node.name), bool) for node in graph.nodes}
    changed = True
    while changed:
        changed = False
        for node in graph.order:
            found = _zero_of(node, graph, zero) & zero[node.name]
            if node.name in forced:
                found = found | forced[node.name]
            if node.name in proven:
                found = found | proven[node.name]
            if not np.array_equal(found, zero[node.name]):
                zero[node.name] = found
                changed = True
    return zero


def _operand(ref: Ref, graph: Graph, zero: Masks) -> Array:
    """Which elements of what a reference reads are zero, those before step 0 included."""
    mask = zero[ref.node]
    return mask if ref.init is None else np.asarray(mask & ~np.any(ref.init != 0, axis=0))


def _zero_of(node: Node, graph: Graph, zero: Masks) -> Array:
    shape = graph.shape_of(node.name)
    if isinstance(node, Input):
        return np.zeros(shape, bool)
    if isinstance(node, Constant):
        return np.asarray(node.value == 0)
    masks = [_operand(ref, graph, zero) for ref in node.inputs]
    if isinstance(node, Neuron):
        # All ports share one mask. What a population emits first does not matter where any emission lives.
        return never_emits(graph, node, masks)
    if isinstance(node, Add):
        return np.asarray(np.logical_and.reduce(masks))
    if isinstance(node, Concat):
        return np.concatenate(masks, axis=node.axis)
    (x,) = masks
    if isinstance(node, Reshape):
        return np.asarray(x.reshape(shape))
    if isinstance(node, Gather):
        return np.asarray(x.ravel()[node.indices])
    if isinstance(node, Scale):
        dead: Array = x | np.broadcast_to(spread(np.asarray(node.factor == 0), shape), shape)
        if node.offset is not None:
            dead = dead & np.broadcast_to(spread(np.asarray(node.offset == 0), shape), shape)
        return dead
    if isinstance(node, Pool):
        return _by_channel(~_channels(~x), shape)
    assert isinstance(node, (Dense, Sparse, Conv))
    if isinstance(node, Dense):
        silent = np.asarray((~x).astype(np.float32) @ _present(node).T.astype(np.float32) == 0)
        return np.asarray(silent if node.bias is None else silent & (node.bias == 0))
    if isinstance(node, Sparse):
        alive = np.bincount(node.rows, weights=_present(node) & ~x[node.indices], minlength=len(node.indptr) - 1)
        return np.asarray(alive == 0) if node.bias is None else np.asarray((alive == 0) & (node.bias == 0))
    channels = _channels(~x)
    taps = np.asarray(_present(node).reshape(*node.weight.shape[:2], -1).any(axis=2))
    silent = np.array([not np.any(taps[o] & channels[_group(node, o)]) for o in range(len(taps))], bool)
    if node.bias is not None:
        silent &= node.bias == 0
    return _by_channel(silent, shape)


def _group(node: Conv, channel: int) -> slice:
    """The input channels that an output channel reads."""
    width = node.weight.shape[1]
    first = channel // (node.weight.shape[0] // node.groups) * width
    return slice(first, first + width)


def _channels(mask: Array) -> Array:
    """Which channels (axis 0) have an element in the mask."""
    return np.asarray(mask.reshape(mask.shape[0], -1).any(axis=1))


def _by_channel(mask: Array, shape: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(np.broadcast_to(mask.reshape(-1, *(1,) * (len(shape) - 1)), shape))


def _used(graph: Graph, zero: Masks) -> Masks:
    """Elements on which some output depends: the smallest set that holds the outputs."""
    used: Masks = {node.name: np.zeros(graph.shape_of(node.name), bool) for node in graph.nodes}
    for _, ref in graph.outputs:
        used[ref.node][...] = True
    changed = True
    while changed:
        changed = False
        for node in reversed(graph.order):
            for ref, need in zip(node.inputs, _needs(node, graph, used[node.name], zero), strict=True):
                more = need & ~used[ref.node]
                if more.any():
                    used[ref.node] |= more
                    changed = True
    return used


def _needs(node: Node, graph: Graph, used: Array, zero: Masks) -> list[Array]:
    """For every operand, the elements that the used elements of a node read."""
    shapes = [graph.type_of(ref).shape for ref in node.inputs]
    if isinstance(node, Neuron):
        return [used & ~zero[node.name] for _ in node.inputs]
    if isinstance(node, Add):
        return [used for _ in node.inputs]
    if isinstance(node, Concat):
        ends = np.cumsum([shape[node.axis] for shape in shapes])[:-1]
        return list(np.split(used, ends, axis=node.axis))
    if not node.inputs:
        return []
    (shape,) = shapes
    if isinstance(node, Reshape):
        return [used.reshape(shape)]
    if isinstance(node, Scale):
        return [used & np.broadcast_to(spread(np.asarray(node.factor != 0), shape), shape)]
    flat = np.zeros(int(np.prod(shape, dtype=np.int64)), bool)
    if isinstance(node, Gather):
        flat[node.indices[used]] = True
        return [flat.reshape(shape)]
    if isinstance(node, Pool):
        return [_by_channel(_channels(used), shape)]
    live = used & ~zero[node.name]
    if isinstance(node, Dense):
        return [np.asarray(live.astype(np.float32) @ _present(node).astype(np.float32) > 0)]
    if isinstance(node, Sparse):
        flat[node.indices[_present(node) & live[node.rows]]] = True
        return [flat]
    assert isinstance(node, Conv)
    channels = np.zeros(shape[0], bool)
    taps = np.asarray(_present(node).reshape(*node.weight.shape[:2], -1).any(axis=2))
    for o in np.flatnonzero(_channels(live)):
        channels[_group(node, int(o))] |= taps[o]
    return [_by_channel(channels, shape)]


# ----------------------------------------------------------------------------------------------------------- structure


def _keep(graph: Graph, used: Masks, zero: Masks) -> Masks:
    """The elements to keep: those that matter, and those without which the shapes would not fit. Grows until it fits."""
    keep = {name: used[name] & ~zero[name] for name in used}
    for _, ref in graph.outputs:
        keep[ref.node][...] = True
    for node in graph.nodes:
        for ref in node.inputs:
            if ref.init is not None:  # what a wire carries before step 0 counts whatever comes later
                keep[ref.node] |= used[ref.node] & np.any(ref.init != 0, axis=0)
    for mask in keep.values():
        if mask.size and not mask.any():
            mask.flat[0] = True
    while True:
        before = {name: int(np.count_nonzero(mask)) for name, mask in keep.items()}
        for node in graph.nodes:
            _fit(node, graph, keep)
        for mask in keep.values():
            if mask.ndim > 1:
                mask |= _by_channel(_channels(mask), mask.shape)
        if all(before[name] == np.count_nonzero(mask) for name, mask in keep.items()):
            break
    for node in graph.inputs:
        if all(isinstance(user, Gather) for user, _ in graph.users[node.name]):
            keep[node.name][...] = True  # picked from already
    return keep


def _same(a: Array, b: Array) -> None:
    """Both masks become their union."""
    a |= b
    b |= a


def _fit(node: Node, graph: Graph, keep: Masks) -> None:
    own = keep[node.name]
    masks = [keep[ref.node] for ref in node.inputs]
    if isinstance(node, (Neuron, Add, Scale)):
        for mask in masks:
            _same(own, mask)
    elif isinstance(node, Reshape):
        union = own.ravel() | masks[0].ravel()
        own |= union.reshape(own.shape)
        masks[0] |= union.reshape(masks[0].shape)
    elif isinstance(node, Gather):
        masks[0].reshape(-1)[node.indices[own]] = True
    elif isinstance(node, Concat):
        start = 0
        for mask in masks:
            window = (slice(None),) * node.axis + (slice(start, start + mask.shape[node.axis]),)
            union = own[window] | mask
            own[window] |= union
            mask |= union
            start += mask.shape[node.axis]
    elif isinstance(node, Pool):
        union = _channels(own) | _channels(masks[0])
        own |= _by_channel(union, own.shape)
        masks[0] |= _by_channel(union, masks[0].shape)
    elif isinstance(node, Dense) and own.ndim > 1:
        own[...] = True
        masks[0][...] = True
    elif isinstance(node, Conv) and node.groups > 1:
        # Groups go as a whole.
        outs = own.reshape(node.groups, -1).any(axis=1)
        ins = masks[0].reshape(node.groups, -1).any(axis=1)
        own.reshape(node.groups, -1)[outs | ins] = True
        masks[0].reshape(node.groups, -1)[outs | ins] = True


def _index(mask: Array) -> Array:
    """Positions on axis 0 that are kept."""
    return np.flatnonzero(mask if mask.ndim == 1 else _channels(mask))


def _picked(array: Array, mask: Array) -> Array:
    """A parameter of a population (a scalar, of its shape, or one per channel) for the neurons that are kept."""
    return array if array.shape in ((), (1,)) else np.asarray(array[_index(mask)])


def _rebuild(graph: Graph, keep: Masks) -> Graph:
    taken = set(graph.by_name)
    moved: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        mask = keep[node.name]
        if isinstance(node, Input) and not mask.all():
            moved[node.name] = fresh_name(taken, f"{node.name}_kept")
            numbers = np.arange(mask.size, dtype=np.int32).reshape(mask.shape)[_index(mask)]
            gather = Gather(name=moved[node.name], inputs=(Ref(node.name),), indices=numbers, loc=node.loc, lag=node.lag)
            nodes += [node, gather]
            continue
        nodes.append(_smaller(node, graph, keep) if not mask.all() or _reads_less(node, keep) else node)
    return graph.with_nodes(_relinked(nodes, keep, moved))


def _reads_less(node: Node, keep: Masks) -> bool:
    return any(not keep[ref.node].all() for ref in node.inputs)


def _relinked(nodes: Iterable[Node], keep: Masks, moved: Mapping[str, str]) -> Iterable[Node]:
    """References to nodes that became smaller: their initial values shrink too, and inputs are read through their gathers."""
    for node in nodes:
        if isinstance(node, Gather) and node.name in moved.values():
            yield node
            continue
        inputs = tuple(
            replace(ref, node=moved.get(ref.node, ref.node), init=None if ref.init is None else ref.init[:, _index(keep[ref.node])])
            for ref in node.inputs
        )
        yield replace(node, inputs=inputs)


def _smaller(node: Node, graph: Graph, keep: Masks) -> Node:
    mask = keep[node.name]
    out = _index(mask)
    if isinstance(node, Constant):
        return replace(node, value=node.value[out])
    if isinstance(node, Neuron):
        params = {name: _picked(array, mask) for name, array in node.params.items()}
        return replace(node, params=params, init={name: _picked(array, mask) for name, array in node.init.items()})
    if isinstance(node, Scale):
        return replace(node, factor=_picked(node.factor, mask), offset=None if node.offset is None else _picked(node.offset, mask))
    if isinstance(node, Reshape):
        return replace(node, shape=(len(out), *node.shape[1:]))
    if isinstance(node, Gather):
        before = keep[node.inputs[0].node].ravel()
        return replace(node, indices=(np.cumsum(before) - 1)[node.indices[out]].astype(node.indices.dtype))
    if isinstance(node, (Add, Concat, Pool)):
        return node
    assert isinstance(node, (Dense, Sparse, Conv))
    bias = None if node.bias is None else node.bias[out]
    ins = _index(keep[node.inputs[0].node])
    if isinstance(node, Dense):
        if mask.ndim > 1:
            return node
        chosen = np.ix_(out, ins)
        return replace(node, weight=node.weight[chosen], bias=bias, delay=None if node.delay is None else node.delay[chosen])
    if isinstance(node, Sparse):
        columns = np.cumsum(keep[node.inputs[0].node]) - 1
        kept = mask[node.rows] & keep[node.inputs[0].node][node.indices]
        rows = (np.cumsum(mask) - 1)[node.rows[kept]]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(out)))])
        return replace(
            node,
            weight=node.weight[kept],
            indices=columns[node.indices[kept]].astype(node.indices.dtype),
            indptr=indptr.astype(node.indptr.dtype),
            fan_in=len(ins),
            bias=bias,
            delay=None if node.delay is None else node.delay[kept],
        )
    if node.groups == 1:
        chosen = np.ix_(out, ins)
        return replace(node, weight=node.weight[chosen], bias=bias, delay=None if node.delay is None else node.delay[chosen])
    groups = int(mask.reshape(node.groups, -1).any(axis=1).sum())
    return replace(node, weight=node.weight[out], bias=bias, groups=groups, delay=None if node.delay is None else node.delay[out])
