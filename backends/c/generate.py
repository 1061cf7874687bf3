"""The network as C: data, one loop for each population, and the step function. Text only; nothing is written here.

Everything at file scope begins with the prefix ("spk_" in a folder of its own), so that several networks fit into one
translation unit. Names, order and numbers depend on the graph alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spikec.backends.c.absorb import absorbed
from spikec.backends.c.assembly import Assembly
from spikec.backends.c.elements import Elements
from spikec.backends.c.exprs import Unsupported
from spikec.backends.c.forms import Choices
from spikec.backends.c.parts import Network, Port, width_of
from spikec.diagnostics import Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import Wire, record_name
from spikec.ir.ops import Neuron, Node, Ref
from spikec.ir.types import is_float


def unsupported(graph: Graph) -> list[Diagnostic]:
    """What this backend cannot compile, all at once."""
    found = []
    generator: _Generator | None = None
    for node in graph.nodes:
        if graph.level == "float":
            for _, type_ in graph.types[node.name]:
                if not is_float(type_.dtype):
                    found.append(_refuse(node, f"an integer ({type_.dtype}) in a graph of floats"))
        if isinstance(node, Neuron) and graph.level == "float":
            try:
                generator = generator or _Generator(graph, "x_", set())
                generator.check_neuron(node)
            except Unsupported as error:
                found.append(_refuse(node, f"@{node.program.name}: {error}"))
    return found


def _refuse(node: Node, what: str) -> Diagnostic:
    return Diagnostic(
        "SPK502",
        f"%{node.name}: the C backend does not compile {what}",
        loc=node.loc,
        fix="run it on the reference or NumPy backend",
    )


def generate(
    graph: Graph, *, prefix: str = "spk_", observe: Sequence[str] = (), embed: bool = True, choices: Choices | None = None
) -> Network:
    """The C of a graph. Readable afterwards: outputs, every port of every population, and the wires in `observe`.

    `embed=False` writes every number as text, however many. choices: by what kernels and forms of weights are chosen.
    """
    wires: dict[str, Wire] = {}
    for node in graph.neurons:
        for port, _ in graph.types[node.name]:
            wires[record_name((node.name, port))] = (node.name, port)
    for name in observe:
        node_name, _, port = name.partition(".")
        wires[name] = (node_name, port)
    observed = {*wires.values(), *((ref.node, ref.port) for _, ref in graph.outputs)}
    return _Generator(absorbed(graph, observed, (choices or Choices()).absorbs), prefix, observed, choices).network(wires, embed)


class _Generator(Elements, Assembly):
    """The parts put together."""

    def network(self, probes: Mapping[str, Wire], embed: bool) -> Network:
        graph, p = self.graph, self.p
        self.storage()
        inputs = {node.name: number for number, node in enumerate(graph.inputs)}
        for node in graph.order:
            if node.name in self.plan.alias or node.name in self.plan.folded:
                continue
            if node.name in self.plan.sums:
                self.sum(self.plan.sums[node.name])
            elif isinstance(node, Neuron):
                self.neuron(node)
            else:
                self.element(node, inputs)
        self.share()
        ports = [self.port(name, (ref.node, ref.port)) for name, ref in graph.outputs]
        ports += [self.port(name, wire) for name, wire in probes.items()]
        states = []
        for row in self.states:
            node, state = row.node, row.state
            declared = next(s.dtype for s in node.program.states if s.name == state)
            api = declared if self.integer else row.kind
            states.append(
                Port(f"{node.name}.{state}", (node.name, state), self.plan.stored[node.name, ""].size, "value", api, node.lag)
            )
        in_ports = [
            Port(n.name, (n.name, ""), n.type.size, n.type.kind, self.plan.stored[n.name, ""].api, n.lag) for n in graph.inputs
        ]
        result = Network(p, "", "", None, None, in_ports, ports, len(graph.outputs), states, self.counters, self.bytes())
        self.join()
        result.constants = sum(array.size * width_of(c_type) for _, c_type, array in self.arrays)
        result.shared = sum(member.length * member.width for member in self.members if not member.owner)
        result.memory = self.memory()
        if unpacked := sum(row.unpacked for row in result.memory):
            result.notes.append(
                f"Pruned layers lie without their zeros among the constants. `spk_init` writes them out: {unpacked:,} of the "
                f"{result.bytes:,} bytes\nof a network's memory are their whole rows, which `spk_reset` leaves as they are."
            )
        data, result.binary, result.binary_source = self.data(embed)
        result.source = self.source(result, data)
        result.header = self.header(result)
        return result

    def port(self, name: str, wire: Wire) -> Port:
        stored = self.plan.read(Ref(*wire)).stored
        type_ = dict(self.graph.types[wire[0]])[wire[1]]
        return Port(name, wire, stored.size, type_.kind, stored.api, self.graph[wire[0]].lag)
