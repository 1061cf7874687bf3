"""What only the model's outputs depend on: means, maxima and heads behind the last spikes, which need no neurons to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from spikec.ir.graph import Graph
from spikec.ir.ops import Neuron, Node
from spikec.ir.reductions import REDUCTIONS
from spikec.ledger import Ledger


def is_readout(graph: Graph, node: Node) -> bool:
    """Whether no population that spikes ever hears of a node."""
    seen: set[str] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if item.name in seen:
            continue
        seen.add(item.name)
        if isinstance(item, Neuron) and item.program.emits[0].kind != "value":
            return False
        stack += [user for user, _ in graph.users[item.name]]
    return True


def cure(graph: Graph, node: Node, otherwise: str) -> str:
    """What to do about a node that a target cannot run: out of the model with a readout, else what the caller knows."""
    if not is_readout(graph, node):
        return otherwise
    read = ", ".join(dict.fromkeys(f"%{ref.node}{f'.{ref.port}' if ref.port else ''}" for ref in node.inputs))
    return f"only outputs depend on it: let the model return {read} and compute %{node.name} from the result; or {otherwise}"


def means_as_sums(graph: Graph, ledger: Ledger) -> Graph:
    """Means over the steps become sums where only outputs see them: dividing by the number of steps so far is no neuron's work."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node, Neuron) and node.program == REDUCTIONS["mean"] and is_readout(graph, node):
            node = replace(node, program=REDUCTIONS["sum"])
            ledger.record(node, "convention", "the mean over the steps becomes their sum: divide it by their number")
        nodes.append(node)
    return graph.with_nodes(nodes)


def tell_units(graph: Graph, ledger: Ledger, units: Mapping[tuple[str, str], float], factors: Mapping[str, float]) -> None:
    """The ledger says of every output in integers what 1 is in the model. units: by node and port; factors: by output, on top."""
    for name, ref in graph.outputs:
        spikes = graph.type_of(ref).kind == "spike"
        unit = factors.get(name, 1.0) * (1.0 if spikes else units.get((ref.node, ref.port), 1.0))
        if unit != 1.0:
            what = f"the output {name} is in units of {unit:.6g}"
            ledger.record(graph[ref.node], "convention", what, measured={"unit": unit})
