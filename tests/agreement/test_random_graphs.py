"""Random graphs: text and back; reference = NumPy = C, every wire and every final state."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from many import all_wires, compile_many, differences, require_compiler
from strategies import graphs, random_inputs, widened

from spikec.backends.c.backend import collect
from spikec.backends.c.generate import unsupported
from spikec.backends.events import run_events
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret
from spikec.ir.rules import verify
from spikec.ir.text import parse_graph, print_graph

LONG = os.environ.get("SPIKEC_LONG") == "1"
#: Examples in one translation unit; there is one shard for each of these.
EXAMPLES = 60
SHARDS = [("fixed", number) for number in range(50 if LONG else 6)] + [("float", number) for number in range(20 if LONG else 2)]
SHARDS += [("wide", number) for number in range(20 if LONG else 1)]  # floats of both widths
BATCH, STEPS = 2, 8


@pytest.mark.parametrize(("level", "shard"), SHARDS)
def test_reference_numpy_and_c_agree(level: str, shard: int) -> None:
    drawn: list[tuple[Graph, int]] = []

    # A failure here shrinks: everything but C is checked as the graphs are drawn.
    @seed(shard)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(graphs("float" if level == "wide" else level), st.integers(0, 1000))
    def draw(graph: Graph, data: int) -> None:
        graph = widened(graph, data) if level == "wide" else verify(graph)
        text, arrays = print_graph(graph)
        again = parse_graph(text, arrays)
        assert again == graph
        assert print_graph(again)[0] == text
        full, rest = print_graph(graph, full=True)
        assert not rest
        assert parse_graph(full) == graph
        inputs = random_inputs(graph, BATCH, STEPS, data)
        wires = all_wires(graph)
        assert differences(interpret(graph, inputs, record=wires), run_events(graph, inputs, record=wires)) == []
        drawn.append((graph, data))

    draw()
    assert len(drawn) >= EXAMPLES
    require_compiler()
    for graph, _ in drawn:
        assert list(unsupported(graph)) == []
    # Every other network is compiled with all wires readable, the rest with accumulators shared where they can be.
    observe = [all_wires(graph) if index % 2 else () for index, (graph, _) in enumerate(drawn)]
    failures = []
    for compiled, names, (graph, data) in zip(compile_many([g for g, _ in drawn], observe), observe, drawn, strict=True):
        record = names or default_record(graph)
        inputs = random_inputs(graph, BATCH, STEPS, data)
        found = differences(interpret(graph, inputs, record=record), collect(graph, compiled, inputs, record))
        if found:
            failures.append(f"{graph}\nseed {data}, {compiled.network.prefix}: " + "\n".join(found[:5]))
    assert not failures, f"{len(failures)} of {len(drawn)} differ\n" + "\n\n".join(failures[:3])


def test_the_generator_reaches_every_operation() -> None:
    """Otherwise the agreement above says less than it seems to."""
    seen: set[str] = set()
    marks: set[str] = set()

    @seed(0)
    @settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(graphs("fixed"))
    def draw(graph: Graph) -> None:
        for node in graph.nodes:
            seen.add(node.op)
            if getattr(node, "delay", None) is not None:
                marks.add(f"{node.op} delay")
            if getattr(node, "start", 0):
                marks.add(f"{node.op} start")
            if getattr(node, "stop", None) is not None:
                marks.add(f"{node.op} stop")
            if node.lag:
                marks.add("lag")
            if any(ref.init is not None for ref in node.inputs):
                marks.add("init")
            if any(ref.node == "loop" for ref in node.inputs):
                marks.add("cycle")
        for node in graph.neurons:
            seen.update(node.program.operations())
            marks.add(f"{len(node.program.emits)} emits")
            marks.add(f"{min(len(node.inputs), 2)} inputs")

    draw()
    operations = {"input", "constant", "dense", "sparse", "conv", "pool", "add", "concat", "reshape", "gather", "scale", "neuron"}
    arithmetic = {
        "+",
        "-",
        "*",
        "neg",
        "<",
        "<=",
        ">",
        ">=",
        "==",
        "!=",
        "<<",
        ">>",
        "and",
        "or",
        "not",
        "select",
        "abs",
        "min",
        "max",
    }
    assert seen >= operations | arithmetic | {"rem", "wrap", "clip", "rtz"}
    wanted = {"dense delay", "sparse delay", "conv delay", "neuron start", "neuron stop", "constant start", "lag", "init", "cycle"}
    assert marks >= wanted | {"1 emits", "2 emits", "0 inputs", "1 inputs", "2 inputs"}
