"""What only the model's outputs depend on: means, maxima and heads behind the last spikes, which need no neurons to compute."""

from __future__ import annotations

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
