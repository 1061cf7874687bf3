"""Finding a layer by the name that a user knows it under."""

from __future__ import annotations

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import record_name
from spikec.ir.ops import Neuron
from spikec.spelling import did_you_mean


def find_wire(graph: Graph, name: str) -> str:
    """The record name (`node` or `node.port`) of a layer.

    Tried in this order: the node's name, the module path in the user's model (where several nodes come from one module, its
    population), an output's name. Raises CompileError SPK010 if nothing or more than one thing fits.
    """
    wires = [record_name((node.name, port)) for node in graph.nodes for port, _ in graph.types[node.name]]
    if name in wires:
        return name
    found = [node for node in graph.nodes if node.loc is not None and node.loc.path == name]
    populations = [node for node in found if isinstance(node, Neuron)]
    chosen = populations or found
    if len(chosen) == 1:
        return chosen[0].name
    if len(chosen) > 1:
        names = ", ".join(node.name for node in chosen)
        raise CompileError("SPK010", f"the module '{name}' became several nodes", fix=f"choose one of {names}")
    for output, ref in graph.outputs:
        if output == name:
            return record_name((ref.node, ref.port))
    paths = {node.loc.path for node in graph.nodes if node.loc is not None and node.loc.path}
    known = dict.fromkeys([*(node.name for node in graph.neurons), *sorted(paths), *wires])
    raise CompileError("SPK010", f"there is no layer '{name}'", fix=did_you_mean(name, known))
