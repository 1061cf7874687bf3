"""The report of a build: one HTML page without anything outside it, the same bytes for the same build.

`page` gathers what stands in it as plain data, `draw` makes the picture of the graph, `report.html` beside this file is the layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import networkx as nx
import numpy as np

from spikec.bits import synapse_bits
from spikec.counts import SYNAPTIC, synapses
from spikec.diagnostics import CompileError
from spikec.estimate import Estimate
from spikec.ir.graph import Graph
from spikec.ir.ops import Conv, Dense, Input, Neuron, Node, Sparse
from spikec.ledger import Entry
from spikec.mantissas import stored
from spikec.result import Result
from spikec.shards import Limits, core_use
from spikec.target import Target
from spikec.version import __version__

if TYPE_CHECKING:
    from spikec.build import Build

TEMPLATE: Final = Path(__file__).with_name("report.html")
#: Boxes and gaps of the picture, in its own units.
_BOX: Final = (150, 58)
_GAP: Final = (116, 30)
_CUT: Final = 20
#: Cores of the table, the fullest.
CORES: Final = 24


def render(build: Build, result: Result | None) -> str:
    """The page for a build. result: a run of its last graph with every layer recorded, for rates and estimates."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(page(build, result))


def page(build: Build, result: Result | None) -> dict[str, Any]:
    """Everything that the page says."""
    graph, target = build.graph(), build.target
    summary = build.summary()
    owners = {node.name: _owner(graph, node) for node in graph.nodes if isinstance(node, SYNAPTIC)}
    memory = _memory(build)
    layers = [_layer(graph, node, owners, target, memory, result) for node in graph.nodes if isinstance(node, (Input, Neuron))]
    stages = [
        {
            "name": stage.name,
            "level": stage.graph.level,
            "nodes": len(stage.graph.nodes),
            "neurons": sum(_size(stage.graph, node) for node in stage.graph.neurons),
            "synapses": sum(_synapses(stage.graph, node) for node in stage.graph.nodes),
            "lag": stage.graph.max_lag,
        }
        for stage in build.stages
    ]
    rates = {} if result is None else result.spike_rate
    found: Estimate | None = None if result is None else result.estimate
    return {
        "version": __version__,
        "summary": summary,
        "description": target.description,
        "dt": graph.dt,
        "layers": layers,
        "memory": memory,
        "has_bytes": any(layer["bytes"] is not None for layer in layers),
        "has_cores": any(layer["cores"] is not None for layer in layers),
        "samples": None if result is None else (result.samples, result.steps),
        "entries": {
            kind: [_entry(entry) for entry in build.ledger if entry.kind == kind]
            for kind in ("approximation", "convention", "exact")
        },
        "estimate": found,
        "limits": list(limits(graph, target, memory)),
        "cores": _cores(graph, target),
        "picture": draw(graph, rates),
        "stages": stages,
        "options": {key: value for key, value in build.options.items() if value not in (None, False)},
    }


def _cores(graph: Graph, target: Target) -> dict[str, Any] | None:
    """The fullest cores of a placed graph, each with what it takes of every limit."""
    if graph.level != "placed" or not target.has("core_words"):
        return None
    limits, per_chip = Limits.of(target), target.integer("chip_cores")
    every = core_use(graph, target)
    fullest = sorted(every, key=lambda use: (-max(use.shares(limits)), use.core))[:CORES]
    names = ("neurons", "words of synapses", "axons in", "axons out")
    return {
        "count": len(every),
        "chips": len({use.core // per_chip for use in every}),
        "columns": list(zip(names, (limits.neurons, limits.words, limits.axons_in, limits.axons_out), strict=True)),
        "rows": [
            {
                "name": f"{use.core // per_chip} / {use.core % per_chip}",
                "populations": ", ".join(use.populations),
                "uses": list(zip((use.neurons, use.words, use.axons_in, use.axons_out), use.shares(limits), strict=True)),
            }
            for use in sorted(fullest, key=lambda use: use.core)
        ],
        "mean": [float(np.mean(column)) for column in zip(*(use.shares(limits) for use in every), strict=True)],
    }


def _size(graph: Graph, node: Node) -> int:
    return graph.types[node.name][0][1].size


def _synapses(graph: Graph, node: Node) -> int:
    return synapses(node, graph.type_of(node.inputs[0]).shape) if isinstance(node, SYNAPTIC) else 0


def _owner(graph: Graph, node: Node) -> str:
    """The first population behind a synaptic node, "" where an output alone reads it."""
    queue, seen = [node], set[str]()
    while queue:
        for user, _ in graph.users[queue.pop(0).name]:
            if isinstance(user, Neuron):
                return user.name
            if user.name not in seen and not isinstance(user, SYNAPTIC):
                seen.add(user.name)
                queue.append(user)
    return ""


def _memory(build: Build) -> dict[str, Any] | None:
    """Bytes by node where the target is C."""
    if build.target.backend != "c":
        return None
    try:
        found = build.memory()
    except CompileError:
        return None
    rows = {row.layer: row.kept + row.shared + row.constants for row in found.layers}
    return {"total": found.total, "constants": found.constants, "rows": rows}


def _bytes(node: Node, target: Target) -> float:
    """What a synaptic node's connections take by the target's figures for a synapse."""
    if not isinstance(node, (Dense, Sparse, Conv)):
        return 0.0
    dense, sparse = synapse_bits(target, node.weight, not isinstance(node, Conv))
    return node.weight.size * (sparse if isinstance(node, Sparse) else dense) / 8


def _layer(
    graph: Graph, node: Node, owners: Mapping[str, str], target: Target, memory: Mapping[str, Any] | None, result: Result | None
) -> dict[str, Any]:
    own = [graph[name] for name, owner in owners.items() if owner == node.name]
    size: float | None = None
    if memory is not None:
        size = sum(memory["rows"].get(item.name, 0) for item in (node, *own))
    elif own and target.has("dense_synapse_bits") and target.has("sparse_synapse_bits"):
        size = sum(_bytes(item, target) for item in own)
    core = getattr(node, "core", None)
    counts = None if result is None else result.counts.get(node.name)
    dormant = None if result is None or node.name not in result.dormant else len(result.dormant[node.name])
    return {
        "name": node.name,
        "place": str(node.loc) if node.loc else "",
        "kind": f"@{node.program.name}" if isinstance(node, Neuron) else node.op,
        "shape": " × ".join(map(str, graph.shape_of(node.name))) or "1",
        "neurons": _size(graph, node),
        "synapses": sum(_synapses(graph, item) for item in own),
        "bytes": None if size is None else round(size),
        "cores": None if core is None else len(np.unique(core)),
        "rate": None if result is None else result.spike_rate.get(node.name),
        "dormant": dormant,
        "operations": None if counts is None or result is None else counts.synaptic_operations / max(result.samples, 1),
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "pass": entry.pass_name,
        "node": entry.node,
        "place": str(entry.loc) if entry.loc else "",
        "what": entry.what,
        "share": f"{entry.changed:,} of {entry.total:,}" if entry.total else "",
        "largest": f"{entry.largest:.4g}" if entry.total else "",
        "asked": entry.asked,
        "measured": [(name, f"{value:.6g}") for name, value in entry.measured.items() if name != "unit"],
    }


# ---------------------------------------------------------------------------------------------------------------- limits


@dataclass(frozen=True)
class Limit:
    """What the network uses of a limit, and what there is."""

    what: str
    used: float
    available: float
    unit: str
    status: str
    source: str

    @property
    def share(self) -> float:
        """Used of available."""
        return abs(self.used / self.available) if self.available else 0.0


#: Limits of native neurons: what a parameter is made of (`rules` in the target's file), and the limit's name.
_PARAMETERS: Final = {
    "threshold": "threshold_max",
    "lower_threshold": "threshold_max",
    "bias": "bias_mantissa_max",
    "bias_exponent": "bias_exponent_max",
}


def limits(graph: Graph, target: Target, memory: Mapping[str, Any] | None) -> Iterator[Limit]:
    """The target's limits that can be read off the graph, each with what is used."""

    def row(what: str, used: float, name: str, unit: str = "") -> Iterator[Limit]:
        if target.has(name):
            number = target.numbers[name]
            yield Limit(what, used, number.value, unit or number.unit, number.status, number.source)

    if memory is not None:
        yield from row(
            "memory for states and buffers", memory["total"] + (0 if target.has("flash") else memory["constants"]), "ram"
        )
        yield from row("flash for constants", memory["constants"], "flash")
    if graph.level == "float":
        return
    nodes = [node for node in graph.nodes if isinstance(node, SYNAPTIC) and node.weight.size]
    if nodes:
        if target.has("weight_exponent_max"):
            kept = {node.name: stored(node.weight, target) for node in nodes if not isinstance(node, Conv)}
            found = [item.mantissas(node.weight) if (item := kept.get(node.name)) else node.weight for node in nodes]
            exponents = [item.exponent for item in kept.values() if item]
            if any(exponents):
                yield from row("least exponent of weights", min(exponents), "weight_exponent_min")
                yield from row("largest exponent of weights", max(exponents), "weight_exponent_max")
        else:
            found = [node.weight for node in nodes]
        yield from row("least weight", min(int(array.min()) for array in found), "weight_min")
        yield from row("largest weight", max(int(array.max()) for array in found), "weight_max")
        hop = target.integer("synapse_hop") if target.has("synapse_hop") else 0
        own = [getattr(node, "delay", None) for node in nodes]
        delays = [node.inputs[0].delay - hop + (0 if d is None else int(d.max())) for node, d in zip(nodes, own, strict=True)]
        yield from row("longest delay of a synapse", max(0, *delays), "max_delay")
    used: dict[str, int] = {}
    for node in graph.neurons:
        if (native := target.native(node.program)) is None:
            continue
        for parameter, rule in native.rules.items():
            name = _PARAMETERS.get(rule.split()[0])
            if name and node.params[parameter].size:
                used[name] = max(used.get(name, 0), int(np.abs(node.params[parameter]).max()))
    for name, value in used.items():
        yield from row(f"largest {name.removesuffix('_max').replace('_', ' ')}", value, name)
    cores = [np.ravel(core) for node in graph.neurons if (core := getattr(node, "core", None)) is not None]
    if cores:
        filled = np.bincount(np.concatenate(cores))
        yield from row("neurons on the fullest core", int(filled.max()), "core_neurons")
        if target.has("chip_cores") and target.has("chip_cores_usable"):
            chips = np.arange(len(filled)) // target.integer("chip_cores")
            fullest = int(np.bincount(chips, weights=filled > 0).max())
            yield from row("cores of the fullest chip", fullest, "chip_cores_usable")


# ---------------------------------------------------------------------------------------------------------------- picture


@dataclass
class _Edge:
    source: str
    target: str
    steps: list[str] = field(default_factory=list)
    synapses: int = 0
    delay: int = 0


def edges(graph: Graph) -> list[_Edge]:
    """What leads from inputs and populations to populations and outputs, with the operations between."""
    ends: dict[str, list[str]] = {}
    for name, ref in graph.outputs:
        ends.setdefault(ref.node, []).append(f"→{name}")
    found: list[_Edge] = []
    for start in graph.nodes:
        if not isinstance(start, (Input, Neuron)):
            continue
        late = {start.name: 0}  # what lies between, with the delay on the way to it
        into: dict[str, list[tuple[str, int]]] = {}
        stack: list[Node] = [start]
        while stack:
            node = stack.pop()
            for end in ends.get(node.name, ()):
                into.setdefault(end, []).append((node.name, late[node.name]))
            for user, index in graph.users[node.name]:
                extra = getattr(user, "delay", None)
                within = int(extra.max()) if isinstance(extra, np.ndarray) and extra.size else 0
                wait = late[node.name] + user.inputs[index].delay + node.lag - user.lag + within
                if isinstance(user, Neuron):
                    into.setdefault(user.name, []).append((node.name, wait))
                elif user.name not in late:
                    late[user.name] = wait
                    stack.append(user)
        for end, last in into.items():
            between, queue = set[str](), [name for name, _ in last]
            while queue:
                name = queue.pop()
                if name in late and name not in between and name != start.name:
                    between.add(name)
                    queue += [ref.node for ref in graph[name].inputs]
            edge = _Edge(start.name, end, delay=max(wait for _, wait in last))
            for node in graph.order:
                if node.name in between:
                    edge.synapses += _synapses(graph, node)
                    if (label := _label(node)) and label not in edge.steps:
                        edge.steps.append(label)
            found.append(edge)
    return found


def _label(node: Node) -> str:
    if isinstance(node, Conv):
        return f"conv {'×'.join(map(str, node.weight.shape[2:]))}"
    return node.op if isinstance(node, (Dense, Sparse)) or node.op in ("pool", "concat") else ""


def draw(graph: Graph, rates: Mapping[str, float]) -> str:
    """The populations as SVG: layers from left to right, what leads back as arcs below."""
    links = edges(graph)
    names = [node.name for node in graph.order if isinstance(node, (Input, Neuron))]
    names += [f"→{name}" for name, _ in graph.outputs]
    if not names:
        return ""
    position = {name: number for number, name in enumerate(names)}
    links = [link for link in links if link.source in position and link.target in position]
    net = nx.DiGraph()
    net.add_nodes_from(names)
    net.add_edges_from((link.source, link.target) for link in links)
    part = {name: number for number, group in enumerate(nx.strongly_connected_components(net)) for name in group}

    def back(link: _Edge) -> bool:
        return part[link.source] == part[link.target] and position[link.source] >= position[link.target]

    ahead = nx.DiGraph()
    ahead.add_nodes_from(names)
    ahead.add_edges_from((link.source, link.target) for link in links if not back(link))
    rank = dict.fromkeys(names, 0)
    for name in nx.lexicographical_topological_sort(ahead, key=lambda item: position[item]):
        for after in ahead.successors(name):
            rank[after] = max(rank[after], rank[name] + 1)
    columns: list[list[str]] = [[] for _ in range(max(rank.values()) + 1)]
    for name in names:
        columns[rank[name]].append(name)
    rows = max(map(len, columns))
    height = rows * (_BOX[1] + _GAP[1])
    over = 34 * max((rank[k.target] - rank[k.source] > 1 for k in links if not back(k)), default=0)
    under = 56 if any(map(back, links)) else 0
    corner: dict[str, tuple[float, float]] = {}
    for number, column in enumerate(columns):
        top = (height - len(column) * (_BOX[1] + _GAP[1])) / 2 + _GAP[1] / 2 + over
        for row, name in enumerate(column):
            corner[name] = (10 + number * (_BOX[0] + _GAP[0]), top + row * (_BOX[1] + _GAP[1]))
    width = 20 + len(columns) * _BOX[0] + (len(columns) - 1) * _GAP[0]
    parts = [
        f'<svg viewBox="0 0 {width:g} {height + over + under:g}" width="{width:g}" style="min-width:{0.6 * width:g}px" role="img" '
        'aria-label="the network">'
    ]
    parts.append(
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" class="tip"/></marker></defs>'
    )
    lines = [_link(link, corner, rank, back(link), height + over) for link in links]
    parts += [line for pair in zip(*lines, strict=True) for line in pair]
    parts += [_box(graph, name, corner[name], rates) for name in names]
    return "\n".join([*parts, "</svg>"])


def _link(
    link: _Edge, corner: Mapping[str, tuple[float, float]], rank: Mapping[str, int], back: bool, floor: float
) -> tuple[str, str]:
    (x0, y0), (x1, y1) = corner[link.source], corner[link.target]
    middle = _BOX[1] / 2
    if back:
        a, b, low = x0 + _BOX[0] * 0.65, x1 + _BOX[0] * 0.35, max(y0, y1) + _BOX[1]
        deep = min(low + 34 + 6 * abs(rank[link.source] - rank[link.target]), floor + 50)
        path = f"M{a:g} {y0 + _BOX[1]:g}C{a:g} {deep:g} {b:g} {deep:g} {b:g} {y1 + _BOX[1] + 2:g}"
        at = ((a + b) / 2, (low + 3 * deep) / 4 + 13)
    elif rank[link.target] - rank[link.source] > 1:
        a, b, high = x0 + _BOX[0] * 0.6, x1 + _BOX[0] * 0.4, min(y0, y1) - 40
        path = f"M{a:g} {y0:g}C{a + 60:g} {high:g} {b - 60:g} {high:g} {b:g} {y1 - 2:g}"
        at = ((a + b) / 2, (min(y0, y1) + 3 * high) / 4 - 5)
    else:
        a, b = x0 + _BOX[0], x1 - 2
        path = f"M{a:g} {y0 + middle:g}C{a + 50:g} {y0 + middle:g} {b - 50:g} {y1 + middle:g} {b:g} {y1 + middle:g}"
        at = ((a + b) / 2, (y0 + y1) / 2 + middle - 7)
    first = " ".join(link.steps)
    second = f"{link.synapses:,}" if link.synapses else ""
    if link.delay:
        second = f"{second} · " * bool(second) + f"{link.delay} late"
    if not first or len(first) + len(second) <= 12:
        texts = [" ".join(filter(None, (first, second)))]
    else:
        texts = [_cut(first), second]
    below = [0.0, 20.0] if not back else [0.0, 12.0]
    label = "".join(
        f'<text x="{at[0]:g}" y="{at[1] + down:g}" class="edge">{escape(text)}</text>'
        for text, down in zip(texts, below, strict=False)
        if text
    )
    return f'<path d="{path}" class="{"back" if back else "link"}" marker-end="url(#tip)"/>', label


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else text[: _CUT - 1] + "…"


def _box(graph: Graph, name: str, place: tuple[float, float], rates: Mapping[str, float]) -> str:
    x, y = place
    width, height = _BOX
    if name.startswith("→"):
        lines, kind = [name[1:], "output"], "output"
    else:
        node = graph[name]
        shape = "×".join(map(str, graph.shape_of(name))) or "1"
        rate = f" · {100 * rates[name]:.3g} %" if name in rates else ""
        kind = "neuron" if isinstance(node, Neuron) else "input"
        lines = [name, f"{shape}{rate}", f"@{node.program.name}" if isinstance(node, Neuron) else "input"]
    text = [
        f'<text x="{x + width / 2:g}" y="{y + height / 2 + 4 + 16 * (number - (len(lines) - 1) / 2):g}" '
        f'class="{"name" if number == 0 else "more"}">{escape(_cut(line))}</text>'
        for number, line in enumerate(lines)
    ]
    title = f"<title>{escape(' '.join(lines))}</title>"
    return f'<g class="{kind}">{title}<rect x="{x:g}" y="{y:g}" width="{width}" height="{height}" rx="7"/>{"".join(text)}</g>'
