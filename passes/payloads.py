"""Real-valued inputs as whole numbers: messages that carry a payload instead of a spike.

Data x become q = round(x / unit), and the weights that read them are multiplied by the unit, so that w x is what it was. How many
levels q gets is a trade: the target's sums hold so many bits, and what the payload takes the weights have not. Where calibration
data lie on a grid themselves (pixels, counts) its unit is tried as well, and then nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.ops import Concat, Conv, Dense, Gather, Input, Node, Ref, Reshape, Sparse
from spikec.ir.types import Array, TensorType, narrowest
from spikec.ledger import Ledger
from spikec.passes.groups import WEIGHTED

#: Levels up to the largest magnitude that are tried.
LEVELS: Final = (255, 127, 63, 31, 15, 7, 3)
#: Grids that data may lie on: so many steps up to the largest magnitude.
GRIDS: Final = (*range(1, 33), 63, 64, 99, 100, 127, 128, 255, 256)


@dataclass(frozen=True)
class Payload:
    """What 1 stands for, and the range (inclusive) of the whole numbers."""

    unit: float
    low: int
    high: int

    def of(self, data: Array) -> Array:
        """Data as payloads, within the range."""
        return np.clip(np.rint(data.astype(np.float64) / self.unit), self.low, self.high)


def real_inputs(graph: Graph) -> list[Input]:
    """Inputs that hold other numbers than 0 and 1."""
    return [node for node in graph.inputs if node.type.kind != "spike"]


def payload(levels: int, low: float, high: float) -> Payload:
    """So many levels up to the larger of two magnitudes."""
    unit = max(-low, high) / levels
    return Payload(unit, round(low / unit), round(high / unit))


def candidates(data: Array) -> Iterator[Payload]:
    """Payloads for calibration data, the finest first; a grid that the data lie on before all others."""
    low, high = min(float(data.min(initial=0)), 0.0), max(float(data.max(initial=0)), 0.0)
    if low == high:
        yield Payload(1.0, -1, 1)
        return
    values = np.unique(data.astype(np.float64))
    exact = [n for n in GRIDS if np.all(np.abs((x := values * n / max(-low, high)) - np.rint(x)) < 1e-6 * n)]
    for levels in dict.fromkeys((*exact[:1], *LEVELS)):
        yield payload(levels, low, high)


def check_options(
    inputs: Sequence[Input], calibrate: Mapping[str, Array] | None, input_bits: int | None, input_max: float | None
) -> None:
    """Raises CompileError SPK208 where nothing tells how large the numbers get, SPK001 for options beyond their range."""
    if calibrate is None and input_max is None:
        raise CompileError.many(
            Diagnostic(
                "SPK208",
                f"%{node.name}: holds real numbers, and nothing says how large they get",
                loc=node.loc,
                fix="give calibration data, or input_max; or name an encoder that makes spikes of them (--encode rate)",
            )
            for node in inputs
        )
    if input_bits is not None and not 2 <= input_bits <= 16:
        raise CompileError("SPK001", f"input_bits is 2 to 16, not {input_bits}")
    if input_max is not None and not 0 < input_max < math.inf:
        raise CompileError("SPK001", f"input_max is a number above 0, not {input_max}")


def by_range(
    inputs: Sequence[Input], calibrate: Mapping[str, Array] | None, bits: int, input_max: float | None
) -> dict[str, Payload]:
    """Payloads of so many bits up to the largest magnitude; without a sign where the data have none."""
    levels = (1 << (bits - 1)) - 1
    chosen = {}
    for node in inputs:
        data = calibrate[node.name] if calibrate is not None else np.zeros(1)
        most = input_max or float(np.max(np.abs(data), initial=0)) or 1.0
        signed = calibrate is None or bool(np.any(data < 0))
        chosen[node.name] = payload(levels if signed else 2 * levels + 1, -most if signed else 0.0, most)
    return chosen


def on_grid(data: Array) -> Payload | None:
    """The payload that holds calibration data exactly, if they lie on a grid."""
    found = next(candidates(data))
    return found if np.all(np.abs(found.of(data) * found.unit - data.astype(np.float64)) < 1e-6 * found.unit) else None


def tell(
    ledger: Ledger, inputs: Sequence[Input], chosen: Mapping[str, Payload], calibrate: Mapping[str, Array] | None, asked: str
) -> None:
    """What rounding costs, measured on the calibration data."""
    for node in inputs:
        found = chosen[node.name]
        told = f"numbers from {found.low} to {found.high} in units of {found.unit:.6g}"
        if calibrate is None:
            ledger.record(node, "approximation", f"sent as whole {told}", asked=asked or "input_max")
            continue
        data = calibrate[node.name].astype(np.float64)
        error = np.abs(found.of(data) * found.unit - data)
        error[error < 1e-6 * found.unit] = 0  # on the grid, but for the rounding of floats
        if np.any(error):
            changed = int(np.count_nonzero(error))
            what = f"rounded to whole {told}"
            ledger.record(node, "approximation", what, changed=changed, total=error.size, largest=float(error.max()), asked=asked)
        else:
            ledger.record(node, "convention", f"sent as whole {told}, which hold the calibration data exactly")


def carrying(graph: Graph, payloads: Mapping[str, Payload]) -> Graph:
    """The graph whose inputs are payloads; weights that read them are multiplied by the unit."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node, Input) and node.name in payloads:
            nodes.append(replace(node, type=TensorType("graded", node.type.shape, node.type.dtype)))
        elif isinstance(node, WEIGHTED) and (factor := message_unit(graph, node, payloads)) != 1.0:
            nodes.append(replace(node, weight=node.weight.astype(np.float64) * factor))
        else:
            nodes.append(node)
    return graph.with_nodes(nodes)


def as_integers(node: Input, payload: Payload) -> Input:
    """The input of the graph of integers, which tells runners what to do with the user's data."""
    dtype = narrowest(payload.low, payload.high) or "i32"
    bounds = (payload.low, payload.high)
    return replace(node, type=TensorType("graded", node.type.shape, dtype), bounds=bounds, unit=payload.unit)


def choose(graph: Graph, data: Mapping[str, Array], score: Callable[[dict[str, Payload]], float]) -> dict[str, Payload]:
    """The payload of every real-valued input of `graph` for which `score` (what changes) is least, one input after the other."""
    names = [node.name for node in real_inputs(graph)]
    chosen = {name: next(candidates(data[name])) for name in names}
    for name in names:
        best: tuple[float, Payload] | None = None
        for found in candidates(data[name]):
            changed = score({**chosen, name: found})
            if best is None or changed < best[0]:
                best = (changed, found)
        assert best is not None
        chosen[name] = best[1]
    return chosen


def worst_sum(graph: Graph, node: Dense | Sparse | Conv, payloads: Mapping[str, Payload]) -> float:
    """The largest magnitude that a layer's sum can have, per unit of scale; payloads at their largest."""
    names = set(_sources(graph, node.inputs[0])) & set(payloads)
    low, high = (0, 1)
    for name in names:
        low, high = min(low, payloads[name].low), max(high, payloads[name].high)
    weight = node.weight.astype(np.float64)
    up, down = (
        np.maximum(weight, 0) * high + np.minimum(weight, 0) * low,
        np.maximum(weight, 0) * low + np.minimum(weight, 0) * high,
    )
    if isinstance(node, Sparse):
        totals = [np.bincount(node.rows, weights=part, minlength=1) for part in (up, -down)]
    else:
        totals = [part.reshape(len(part), -1).sum(axis=1) for part in (up, -down)]
    return max((float(total.max(initial=0)) for total in totals), default=0.0)


def _sources(graph: Graph, ref: Ref) -> Iterator[str]:
    """The nodes that a wire shows elements of."""
    node = graph[ref.node]
    if isinstance(node, (Reshape, Gather, Concat)):
        for operand in node.inputs:
            yield from _sources(graph, operand)
    else:
        yield node.name


def message_unit(graph: Graph, node: Node, payloads: Mapping[str, Payload]) -> float:
    """What 1 stands for at a layer's operand."""
    units = {payloads[name].unit if name in payloads else 1.0 for name in _sources(graph, node.inputs[0])}
    if len(units) > 1:
        raise CompileError(
            "SPK202",
            f"%{node.name}: reads real-valued inputs and other wires at once, and each has a scale of its own",
            loc=node.loc,
            fix="give each of them weights of its own, and add the sums",
        )
    return units.pop() if units else 1.0
