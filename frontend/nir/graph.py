"""A NIR graph without its nesting: primitives by path and the edges between them, checked; and where its cycles get their delay.

Edges have no order and no ports: several edges into a node are a sum, and the Input and Output of a nested graph stand for the
edges of the node that holds it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic, Loc
from spikec.frontend.nir.file import NIR_VERSION, Tree
from spikec.spelling import did_you_mean

Edge = tuple[str, str]

#: Primitive -> its fields; those in brackets may be left out.
PRIMITIVES: Final[dict[str, str]] = {
    "Input": "shape",
    "Output": "shape",
    "Affine": "weight bias",
    "Linear": "weight",
    "Scale": "scale",
    "Conv1d": "weight stride padding dilation groups [bias] [input_shape]",
    "Conv2d": "weight stride padding dilation groups [bias] [input_shape]",
    "SumPool2d": "kernel_size stride padding",
    "AvgPool2d": "kernel_size stride padding",
    "Flatten": "[start_dim] [end_dim] [input_type]",
    "I": "r",
    "IF": "r v_threshold [v_reset]",
    "LI": "tau r v_leak",
    "LIF": "tau r v_leak v_threshold [v_reset]",
    "CubaLI": "tau_syn tau_mem r v_leak [w_in]",
    "CubaLIF": "tau_syn tau_mem r v_leak v_threshold [v_reset] [w_in]",
    "Delay": "delay",
    "Threshold": "threshold",
    "NIRGraph": "nodes edges",
}
SPIKING: Final = frozenset({"IF", "LIF", "CubaLIF", "Threshold"})
STATEFUL: Final = frozenset({"I", "LI", "CubaLI"})


@dataclass(frozen=True)
class Primitive:
    """One node that is not a graph. `path` joins the names of the graphs around it with dots."""

    path: str
    kind: str
    fields: Mapping[str, Any]
    metadata: Mapping[str, Any]


@dataclass
class Network:
    """Primitives by path, in natural order; edges; what inner Inputs and Outputs say of the shapes of their sources."""

    file: str
    nodes: dict[str, Primitive] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    claims: list[tuple[str, Any, tuple[str, ...]]] = field(default_factory=list)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    #: Inputs and Outputs that the file does not have.
    added: list[str] = field(default_factory=list)

    def loc(self, path: str) -> Loc:
        """The place of a node, for diagnostics."""
        return Loc(self.file, path=path)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sorting key under which `2` comes before `10`."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if index % 2 else (1, 0, part) for index, part in enumerate(parts) if part]


def flatten(tree: Tree, file: str) -> Network:
    """The network of a graph's dictionary. Raises CompileError with everything that is wrong with its structure."""
    if _kind(tree) != "NIRGraph":
        kind = _kind(tree) or "nothing that has a type"
        raise CompileError(
            "SPK003", f"holds {kind}, not a NIRGraph", loc=Loc(file), fix="write it as a graph with Input and Output"
        )
    reader = _Flattener(file)
    reader.graph(tree, "")
    if reader.problems:
        raise CompileError.many(reader.problems)
    return reader.network()


class _Flattener:
    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Diagnostic] = []
        self.nodes: dict[str, Primitive] = {}
        self.edges: list[Edge] = []
        self.through: dict[str, Any] = {}
        self.added: list[str] = []
        self.metadata: Mapping[str, Any] = {}

    def bad(self, code: str, path: str, message: str, fix: str | None = None) -> None:
        self.problems.append(Diagnostic(code, message, loc=Loc(self.file, path=path), fix=fix))

    def graph(self, tree: Tree, path: str) -> tuple[str, str]:
        """Add a graph's content. Returns the paths of its Input and Output, which a nested graph has one each of."""
        nodes, inner = tree.get("nodes"), f"{path}." if path else ""
        if not isinstance(nodes, dict) or not nodes:
            self.bad("SPK003", path, "the graph has no nodes")
            return ("", "")
        if not path:
            self.metadata = _mapping(tree.get("metadata"))
        self.fields(path, "NIRGraph", tree)
        found: dict[str, list[str]] = {"Input": [], "Output": []}
        ends: dict[str, tuple[str, str]] = {}
        for name in sorted(nodes, key=natural):
            node, own = nodes[name], f"{inner}{name}"
            while own in self.nodes or own in self.through:
                own += "_"
            kind = _kind(node)
            if not kind:
                self.bad("SPK003", own, "the node has no type")
                ends[name] = (own, own)
                continue
            if kind not in PRIMITIVES:
                self.bad(
                    "SPK101",
                    own,
                    f"the primitive '{kind}' is not one of NIR {NIR_VERSION}",
                    did_you_mean(kind, PRIMITIVES, "NIR has"),
                )
                ends[name] = (own, own)
                continue
            if kind == "NIRGraph":
                ends[name] = self.graph(node, own)
                continue
            self.fields(own, kind, node)
            ends[name] = (own, own)
            if kind in found:
                found[kind].append(own)
            if path and kind in found:
                self.through[own] = node.get("shape")
            else:
                fields = {key: value for key, value in node.items() if key not in ("type", "metadata")}
                self.nodes[own] = Primitive(own, kind, fields, _mapping(node.get("metadata")))
        edges = self.read_edges(tree.get("edges"), ends, path)
        self.open_ends(nodes, edges, ends, path, found)
        for source, sink in edges:
            if _kind(nodes[sink]) == "Input":
                self.bad("SPK003", ends[sink][0], f"an edge from '{source}' enters an Input")
            elif _kind(nodes[source]) == "Output":
                self.bad("SPK003", ends[source][0], f"an edge to '{sink}' leaves an Output")
            else:
                self.edges.append((ends[source][1], ends[sink][0]))
        if not path:
            return ("", "")
        for kind, ports in found.items():
            if len(ports) != 1 and not self.problems:
                names = ", ".join(repr(port.removeprefix(inner)) for port in ports) or "none"
                self.bad(
                    "SPK102",
                    path,
                    f"the nested graph needs one {kind}, not {len(ports)} ({names}): an edge to or from it does not say which",
                    "move its nodes into the outer graph",
                )
        return tuple((found[kind] or [""])[0] for kind in ("Input", "Output"))  # type: ignore[return-value]  # a pair

    def fields(self, path: str, kind: str, node: Tree) -> None:
        spec = PRIMITIVES[kind].split()
        for key in spec:
            if not key.startswith("[") and node.get(key) is None:
                self.bad("SPK003", path, f"the {kind} lacks '{key}'")
        known = {key.strip("[]") for key in spec} | {"type", "metadata"}
        for key in sorted(set(node) - known):
            self.bad(
                "SPK101",
                path,
                f"the {kind} has a field '{key}', which NIR {NIR_VERSION} does not define",
                did_you_mean(key, sorted(known - {"type"})),
            )

    def read_edges(self, given: Any, ends: Mapping[str, Any], path: str) -> list[Edge]:
        """Edges by the graph's own names; those that lead nowhere are told and left out."""
        rows: list[Any] = []
        try:
            table = np.asarray([] if given is None else given, dtype=object)
            if table.size:
                rows = [tuple(_text(item) for item in row) for row in table.reshape(-1, 2)] if table.ndim == 2 else [None]
        except (ValueError, TypeError, UnicodeDecodeError):
            rows = [None]
        if any(row is None for row in rows):
            self.bad("SPK003", path, "the edges are not pairs of names")
            return []
        edges: list[Edge] = []
        for source, sink in rows:
            missing = [name for name in (source, sink) if name not in ends]
            for name in missing:
                text = f"the edge '{source}' -> '{sink}' names a node '{name}' that does not exist"
                self.bad("SPK003", path, text, did_you_mean(name, sorted(ends, key=natural), "the nodes are"))
            if (source, sink) in edges:
                self.bad(
                    "SPK003",
                    path,
                    f"the edge '{source}' -> '{sink}' is listed twice; whether it counts once or twice is not defined",
                    "list it once",
                )
            elif not missing:
                edges.append((source, sink))
        return edges

    def open_ends(
        self, nodes: Tree, edges: list[Edge], ends: Mapping[str, tuple[str, str]], path: str, found: dict[str, list[str]]
    ) -> None:
        """A node that no edge enters gets an Input, one that no edge leaves an Output, as the nir package does."""
        if self.problems:
            return
        sources, sinks = {a for a, _ in edges}, {b for _, b in edges}
        for name in sorted(nodes, key=natural):
            for kind, seen, other in (("Input", sinks, "Output"), ("Output", sources, "Input")):
                if name in seen or _kind(nodes[name]) == kind:
                    continue
                if _kind(nodes[name]) == other:
                    if kind == "Input":
                        self.bad("SPK003", ends[name][0], "no edge enters this Output")
                    continue
                own = f"{path}." if path else ""
                own += f"{kind.lower()}_{name}"
                while own in self.nodes or own in self.through:
                    own += "_"
                found[kind].append(own)
                if path:
                    self.through[own] = None
                else:
                    self.nodes[own] = Primitive(own, kind, {"shape": None}, {})
                self.added.append(own)
                self.edges.append((own, ends[name][0]) if kind == "Input" else (ends[name][1], own))

    def network(self) -> Network:
        """Without the inner Inputs and Outputs: every edge runs between primitives."""
        entering: dict[str, list[str]] = {}
        for source, sink in self.edges:
            entering.setdefault(sink, []).append(source)

        def expand(path: str, open_: tuple[str, ...] = ()) -> list[str]:
            if path not in self.through:
                return [path]
            if path in open_:
                raise CompileError("SPK307", "a cycle of nested graphs that holds no node", loc=Loc(self.file, path=path))
            return [real for source in entering.get(path, []) for real in expand(source, (*open_, path))]

        claims = [(path, shape, tuple(expand(path))) for path, shape in self.through.items() if shape is not None]
        edges = [(real, b) for a, b in self.edges if b not in self.through for real in expand(a)]
        for path in self.nodes:
            if self.nodes[path].kind != "Input" and not any(b == path for _, b in edges):
                raise CompileError("SPK003", "nothing reaches this node through the nested graphs", loc=Loc(self.file, path=path))
        nodes = {path: self.nodes[path] for path in sorted(self.nodes, key=natural)}
        edges.sort(key=lambda edge: (natural(edge[1]), natural(edge[0])))
        return Network(self.file, nodes, edges, claims, self.metadata, self.added)


def _text(item: Any) -> str:
    if isinstance(item, bytes):
        return item.decode("utf-8")
    if isinstance(item, str):
        return str(item)
    raise TypeError("not a name")


def _kind(node: Any) -> str:
    """A node's type; nothing where it has none that is text."""
    kind = node.get("type") if isinstance(node, dict) else None
    return kind if isinstance(kind, str) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


# -------------------------------------------------------------------------------------------------------------- cycles


class Ambiguous(Exception):
    """A cycle whose delay could go to several edges; `cycle` is its nodes."""

    def __init__(self, cycle: list[str]) -> None:
        super().__init__(" -> ".join([*cycle, cycle[0]]))
        self.cycle = cycle


def recurrent_edges(kinds: Mapping[str, str], edges: Iterable[Edge], late: Collection[str], rule: str) -> set[Edge]:
    """The edges that are read one step later, so that no cycle remains within a step.

    kinds: primitive by node; late: nodes that read their operand a step or more later anyhow (Delay); rule: see
    `spikec.frontend.nir`. Raises CompileError SPK307 for a cycle that no neuron is part of, Ambiguous under the rule "feedback".
    """
    import networkx as nx

    every = list(dict.fromkeys(edges))
    whole = nx.DiGraph()
    whole.add_nodes_from(kinds)
    whole.add_edges_from(every)
    graph = nx.DiGraph(whole)
    graph.remove_edges_from([edge for edge in every if edge[1] in late])
    plain = graph.subgraph(n for n in kinds if kinds[n] not in SPIKING | STATEFUL)
    for component in _cyclic(nx, plain):
        cycle = _one_cycle(nx, plain, component)
        raise CompileError("SPK307", f"a cycle without a neuron or a delay: {' -> '.join([*cycle, cycle[0]])}")
    if rule == "spikes":
        chosen: set[Edge] = set()
        for sources in (SPIKING, STATEFUL):
            left = nx.DiGraph(graph)
            left.remove_edges_from(chosen)
            for component in _cyclic(nx, left):
                inside = left.subgraph(component).edges
                chosen |= {(a, b) for a, b in inside if kinds[a] in sources}
        return chosen
    return _feedback(nx, whole, graph, kinds)


def _feedback(nx: Any, whole: Any, graph: Any, kinds: Mapping[str, str]) -> set[Edge]:
    """Natural loops: an edge back to a node that every path from the inputs passes first, moved upstream to its neuron.

    `whole` is the network, `graph` the same without the edges that enter a Delay: only what is a cycle there needs a delay.
    """
    neurons = SPIKING | STATEFUL
    root = object()
    rooted = nx.DiGraph(whole)
    rooted.add_edges_from((root, n) for n in kinds if not whole.in_degree(n))
    unreached = set(kinds) - nx.descendants(rooted, root) if root in rooted else set(kinds)
    condensed = nx.condensation(whole.subgraph(unreached))
    for part in condensed:
        if not condensed.in_degree(part):
            rooted.add_edges_from((root, n) for n in condensed.nodes[part]["members"] if kinds[n] in neurons)
    parents = nx.immediate_dominators(rooted, root) if root in rooted else {}
    forward = nx.DiGraph(graph)
    back = []
    for component in _cyclic(nx, graph):
        for source, sink in graph.subgraph(component).edges:
            above = source
            while above is not None and above is not root and above != sink:
                above = parents.get(above)
            if above == sink:
                back.append((source, sink))
    forward.remove_edges_from(back)
    for component in _cyclic(nx, forward):
        raise Ambiguous(_one_cycle(nx, forward, component))
    chosen: set[Edge] = set()
    while back:
        source, sink = back.pop()
        if kinds[source] in neurons or whole.out_degree(source) > 1 or not graph.in_degree(source):
            chosen.add((source, sink))
        else:
            back += [(before, source) for before in graph.predecessors(source)]
    return chosen


def _cyclic(nx: Any, graph: Any) -> list[set[str]]:
    parts = [set(part) for part in nx.strongly_connected_components(graph)]
    found = [part for part in parts if len(part) > 1 or any(graph.has_edge(n, n) for n in part)]
    return sorted(found, key=lambda part: natural(min(part, key=natural)))


def _one_cycle(nx: Any, graph: Any, component: set[str]) -> list[str]:
    first = min(component, key=natural)
    nodes = [a for a, *_ in nx.find_cycle(graph.subgraph(component), first)]
    at = nodes.index(min(nodes, key=natural))
    return nodes[at:] + nodes[:at]
