"""Where the biases of layers go on a chip: into the neurons' bias register, or through a synapse from an always-on source."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Constant, Neuron, Node, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ledger import Ledger
from spikec.passes.chip_grid import ChipGrid
from spikec.passes.groups import always_on, groups_of, silent_value, spread_bias, with_bias, without
from spikec.passes.rewrite import fresh_name, one_by_one


def place_biases(grid: ChipGrid, graph: Graph, ledger: Ledger) -> Graph:
    """Biases of layers, and constants beside them, become the neurons' bias where that is exact, else a synapse from a source.

    The neuron adds its bias to the membrane and not to the synaptic current, so the current must be memoryless.
    """
    replaced: dict[str, list[Node]] = {}
    taken = set(graph.by_name)
    shown = {ref.node for _, ref in graph.outputs}
    gone: set[str] = set()
    for group in groups_of(graph):
        biased = [node for node in group.weighted if node.bias is not None]
        always = always_on(graph, group)
        if not biased and not always:
            continue
        delayed = any(ref.delay and graph.type_of(ref).kind == "value" for node in group.nodes for ref in node.inputs)
        own = [node for node in group.neurons if grid.native(node) is None]
        others = [node for node in group.neurons if grid.native(node) is not None]
        memory = any(np.any(alpha) for node in others for alpha in grid.by_rule(node, "decay_minus_one"))
        native = bool(group.neurons) and all("bias" in node.params for node in others)
        # Whoever reads the sum or the current itself must find the bias in it.
        read = any(node.name in shown for node in group.nodes if not isinstance(node, Neuron))
        read |= any(emit.name == "u" for node in others for emit in node.program.emits)
        if not delayed and not memory and not read and native:
            for neuron in own:
                replaced[neuron.name] = [with_bias(neuron, [silent_value(graph, ref, always) for ref in neuron.inputs])]
            for neuron in others:
                offset = silent_value(graph, neuron.inputs[0], always)
                total = np.asarray(neuron.params["bias"]) + offset
                replaced[neuron.name] = [replace(neuron, params={**neuron.params, "bias": total})]
            where = "the neurons' bias register" if others else "the neurons' program"
            for node in biased:
                replaced[node.name] = [replace(node, bias=None)]
                ledger.record(node, "exact", f"the bias moves into {where}")
            for name in always:
                ledger.record(graph[name], "exact", f"the constant moves into {where}")
            gone |= always.keys()
            continue
        for node in biased:
            assert node.bias is not None
            shape = graph.shape_of(node.name)
            bias = spread_bias(node, shape)
            source = Constant(name=fresh_name(taken, f"{node.name}_on"), value=np.ones(1, np.float32), kind="spike", loc=node.loc)
            synapse = one_by_one(fresh_name(taken, f"{node.name}_bias"), Ref(source.name), bias.reshape(-1), node.loc, single=True)
            parts: list[Node] = [source, synapse]
            ref = Ref(synapse.name)
            if len(shape) > 1:
                parts.append(Reshape(name=fresh_name(taken, f"{synapse.name}_shape"), inputs=(ref,), shape=shape, loc=node.loc))
                ref = Ref(parts[-1].name)
            plain = replace(node, name=fresh_name(taken, f"{node.name}_sum"), bias=None)
            both = Add(name=node.name, inputs=(Ref(plain.name), ref), loc=node.loc)
            replaced[node.name] = [*parts, plain, both]
            ledger.record(node, "exact", "the bias becomes a synapse from an always-on source")
    nodes = [new for node in graph.nodes for new in replaced.get(node.name, [node])]
    return verify(without(graph.with_nodes(nodes), gone))
