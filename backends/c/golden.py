"""Golden vectors as the text that the emitted `main.c` reads: inputs, and what every port and state must be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from spikec.backends.c.parts import Network, Port
from spikec.ir.graph import Graph
from spikec.ir.types import Array, is_float

if TYPE_CHECKING:
    from spikec.backend import Golden
    from spikec.cutoff import Cutoff

#: Floating-point sums depend on their order: what a float network's values may differ by, relative to max(1, |value|).
TOLERANCE: Final = 1e-4


def _number(value: Any, api: str) -> str:
    return float(value).hex() if is_float(api) else str(int(value))


def _elements(values: Array, port: Port) -> str:
    flat = values.reshape(-1)
    where = np.flatnonzero(flat)
    if port.kind == "spike":
        return "".join(f" {i}" for i in where.tolist())
    return "".join(f" {i}:{_number(flat[i], port.api)}" for i in where.tolist())


def golden_text(graph: Graph, network: Network, golden: Golden, cutoff: Cutoff | None = None) -> str:
    """The whole file. Ports are compared from their own step 0 on, states after their own last step, answers after the last step of
    the output that gives them."""
    return "\n".join(_lines(graph, network, golden, cutoff)) + "\n"


def _lines(graph: Graph, network: Network, golden: Golden, cutoff: Cutoff | None) -> Iterator[str]:
    yield "spk 1"
    if graph.level == "float":
        yield f"tolerance {TOLERANCE}"
    expected = golden.expected
    batch, steps = next((a.shape[0], a.shape[1]) for a in (*golden.inputs.values(), *expected.outputs.values()))
    compared: list[tuple[str, Port, Array]] = []
    for number, port in enumerate(network.ports):
        table = expected.outputs if number < network.outputs else expected.records
        if port.name in table:
            compared.append(("out" if number < network.outputs else "port", port, table[port.name]))
    early = None
    if cutoff is not None and graph.level != "float" and steps:
        early = network.ports[network.output(cutoff.output)].lag + steps - 1, cutoff.decide(expected.outputs[cutoff.output])
    for sample in range(batch):
        yield "sample"
        for t in range(steps + graph.max_lag if steps else 0):
            yield "step"
            if t < steps:
                for port in network.inputs:
                    elements = _elements(golden.inputs[port.name][sample, t], port)
                    if elements:
                        yield f"in {port.name}{elements}"
            for keyword, port, values in compared:
                if 0 <= t - port.lag < steps:
                    yield f"{keyword} {port.name}{_elements(values[sample, t - port.lag], port)}"
            for port in network.states:
                node, state = port.wire
                if t == steps - 1 + port.lag and node in expected.states:
                    values = expected.states[node][state][sample].reshape(-1)
                    yield f"state {port.name} " + " ".join(_number(value, port.api) for value in values)
            if early is not None and t == early[0]:
                yield f"answer {early[1].answers[sample]} {early[1].steps[sample]}"
