"""Offline mode: whole samples at once give what one step at a time gives, on every instruction set."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from many import FLAGS, all_wires, drawn_graphs, require_compiler
from strategies import random_inputs

from spikec.backend import Golden
from spikec.backends.c.backend import CBackend, folder_files
from spikec.backends.c.generate import generate
from spikec.backends.c.library import Compiled, build_library, matrix_unit
from spikec.backends.c.offline import Offline, by_blocks, looped, loops, offline
from spikec.backends.c.parts import kernel_files
from spikec.backends.c.tiles import Tiles, tiles_of
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret, record_name
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Pool, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType

#: Leaky, with a parameter and an initial state for each neuron; integrate and fire; two ports and no reset; a shift that is a decay.
LIF = """neuron @lif(a) params(decay, threshold) state(v: i32 = 3) {
  v = clip(rtz(v * decay, 12) + (a << 6), 24)
  s = v > threshold
  v = select(s, 0, v)
  emit s
}"""
IF = """neuron @if(a) params(threshold) state(v: i16 = 0) {
  v = wrap(v + a, 16)
  s = v >= threshold
  v = select(s, 0, v)
  emit s
}"""
TWO = """neuron @two(a) params(threshold) state(v: i32 = 0, last: i8 = 1) {
  v = clip((v * 7 >> 3) + a, 20)
  s = v > threshold
  r = and(v < 0, last > 0)
  last = select(s, 0, 1)
  emit s, r
}"""
#: How the block code is compiled: the processor's own unit, and the same in plain C on other instruction sets.
PLAIN = {
    "plain-sse2": ("-DSPK_TILES_PLAIN",),
    "plain-avx2": ("-DSPK_TILES_PLAIN", "-mavx2", "-mbmi2", "-mpopcnt"),
    "plain-avx512": ("-DSPK_TILES_PLAIN", "-march=skylake-avx512"),
    "plain-vnni": ("-DSPK_TILES_PLAIN", "-march=icelake-server"),
    "none": ("-DSPK_NO_SIMD",),
    "sse2": (),
    "native": ("-march=native",),
}
NEEDS = {"plain-avx2": {"avx2"}, "plain-avx512": {"avx512bw"}, "plain-vnni": {"avx512_vnni", "avx512_vbmi2"}}


@pytest.fixture(autouse=True)
def _compiler() -> None:
    require_compiler()


def _flags_of_machine() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line.split() for line in lines if line.startswith("flags")), []))


def needed(kind: str) -> None:
    """Skip where this processor cannot run the code; fail on nothing that it can."""
    missing = NEEDS.get(kind, set()) - _flags_of_machine()
    if missing or (kind.startswith("plain") and "sse2" not in _flags_of_machine()):
        pytest.skip(f"this processor has no {', '.join(sorted(missing)) or 'SSE2'}")


def weights(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(-60, 61, shape).astype(np.int8)


def neuron(name: str, source: str, text: str, **params: object) -> Neuron:
    arrays = {key: np.asarray(value, np.int32) for key, value in params.items()}
    return Neuron(name=name, inputs=(Ref(source),), program=parse_program(text), params=arrays)


def dense_net() -> Graph:
    """Sizes that fill no panel, a bias, parameters and first states for each neuron, and a layer that nobody else reads."""
    rng = np.random.default_rng(3)
    first = neuron("l1", "fc1", LIF, decay=3900, threshold=rng.integers(900, 9000, 100))
    first = Neuron(
        name="l1",
        inputs=first.inputs,
        program=first.program,
        params=first.params,
        init={"v": rng.integers(-90, 90, 100).astype(np.int32)},
    )
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (70,), "i8")),
        Dense(name="fc1", inputs=(Ref("x"),), weight=weights(1, 100, 70), bias=np.arange(100, dtype=np.int32) - 50),
        first,
        Dense(name="fc2", inputs=(Ref("l1"),), weight=weights(2, 33, 100)),
        neuron("l2", "fc2", TWO, threshold=150),
        Dense(name="fc3", inputs=(Ref("l2"),), weight=weights(3, 10, 33)),
        neuron("l3", "fc3", IF, threshold=120),
    ]
    return verify(Graph("dense", "fixed", tuple(nodes), (("l3", Ref("l3")), ("r", Ref("l2", "r")))))


def pruned_net() -> Graph:
    """The same with a tenth of the weights, which lie packed."""
    graph = dense_net()
    rng = np.random.default_rng(5)
    nodes = [
        replace(node, weight=node.weight * (rng.random(node.weight.shape) < 0.15).astype(np.int8))
        if isinstance(node, Dense)
        else node
        for node in graph.nodes
    ]
    return replace(verify(graph.with_nodes(nodes)), name="pruned")


def conv_net(groups: int = 1) -> Graph:
    """Stride, padding, a pool that is folded into weights, channels that fill no panel."""
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (2, 13, 17), "i8")),
        Conv(name="c1", inputs=(Ref("x"),), weight=weights(4, 8, 2, 5, 5), padding=(1, 1), stride=(2, 2)),
        neuron("l1", "c1", IF, threshold=90),
        Conv(name="c2", inputs=(Ref("l1"),), weight=weights(5, 12, 8 // groups, 3, 3), padding=(2, 1), groups=groups),
        neuron("l2", "c2", LIF, decay=4000, threshold=9000),
        Pool(name="p", inputs=(Ref("l2"),), mode="sum", kernel=(2, 2)) if groups == 1 else neuron("p", "c2", IF, threshold=100),
    ]
    shape = verify(Graph("c", "fixed", tuple(nodes), (("p", Ref("p")),))).shape_of("p")
    nodes += [
        Conv(name="c3", inputs=(Ref("p"),), weight=weights(6, 5, shape[0], 2, 2), dilation=(1, 2)),
        neuron("l3", "c3", IF, threshold=70),
    ]
    out = verify(Graph("c", "fixed", tuple(nodes), (("l3", Ref("l3")),))).shape_of("l3")
    nodes += [
        Reshape(name="flat", inputs=(Ref("l3"),), shape=(int(np.prod(out)),)),
        Dense(name="fc", inputs=(Ref("flat"),), weight=weights(7, 20, int(np.prod(out)))),
        neuron("l4", "fc", LIF, decay=4096, threshold=5000),
    ]
    return verify(Graph("conv", "fixed", tuple(nodes), (("l4", Ref("l4")),)))


def camera_net(channels: int = 16) -> Graph:
    """Layers that are added event by event, one behind the other, and a pool before one that tiles are for."""
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (2, 24, 24), "i8")),
        Conv(name="c1", inputs=(Ref("x"),), weight=weights(4, channels, 2, 5, 5), padding=(2, 2), stride=(2, 2)),
        neuron("l1", "c1", IF, threshold=160),
        Conv(name="c2", inputs=(Ref("l1"),), weight=weights(5, 16, channels, 3, 3), padding=(1, 1)),
        neuron("l2", "c2", IF, threshold=300),
        Pool(name="p", inputs=(Ref("l2"),), mode="sum", kernel=(2, 2)),
        Conv(name="c3", inputs=(Ref("p"),), weight=weights(6, 8, 16, 3, 3), padding=(1, 1)),
        neuron("l3", "c3", IF, threshold=200),
        Reshape(name="flat", inputs=(Ref("l3"),), shape=(288,)),
        Dense(name="fc", inputs=(Ref("flat"),), weight=weights(7, 20, 288)),
        neuron("l4", "fc", LIF, decay=4096, threshold=5000),
    ]
    return verify(Graph("camera", "fixed", tuple(nodes), (("l4", Ref("l4")),)))


def line_net() -> Graph:
    """One axis of space."""
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (3, 40), "i8")),
        Conv(name="c1", inputs=(Ref("x"),), weight=weights(8, 16, 3, 5), padding=(2,), stride=(2,)),
        neuron("l1", "c1", IF, threshold=60),
        Conv(name="c2", inputs=(Ref("l1"),), weight=weights(9, 16, 16, 3), dilation=(2,)),
        neuron("l2", "c2", IF, threshold=200),
    ]
    return verify(Graph("line", "fixed", tuple(nodes), (("l2", Ref("l2")),)))


def recurrent_net() -> Graph:
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (30,), "i8")),
        Dense(name="fc", inputs=(Ref("x"),), weight=weights(1, 30, 30)),
        neuron("l1", "fc", IF, threshold=90),
        Dense(name="fc2", inputs=(Ref("l1", delay=2),), weight=weights(2, 9, 30)),
        neuron("l2", "fc2", IF, threshold=40),
    ]
    return verify(Graph("delayed", "fixed", tuple(nodes), (("l2", Ref("l2")),)))


def loop_net(seed: int = 0) -> Graph:
    """Layers before and behind a loop, each with a delay now and then; loops of one population and of two, whose sums meet in an
    `add` or in the population, with a delay for the whole wire, for each source or for each connection; a wire that is read both
    at once and late, and first values."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(20, 90, 6)
    nodes: list[Node] = [Input(name="x", type=TensorType("spike", (int(sizes[0]),), "i8"))]

    def population(name: str, *sources: str, threshold: int = 150) -> None:
        text = LIF if len(sources) == 1 else LIF.replace("@lif(a)", "@both(a, b)").replace("(a << 6)", "(a + b << 6)")
        size = {node.name: len(node.weight) for node in nodes if isinstance(node, Dense)}
        shape = size["in" if sources[0] == "meet" else sources[0]]
        params = {
            "decay": np.asarray(3800, np.int32),
            "threshold": rng.integers(threshold, threshold * 60, shape).astype(np.int32),
        }
        nodes.append(Neuron(name=name, inputs=tuple(map(Ref, sources)), program=parse_program(text), params=params))

    def layer(name: str, source: str, fan_in: int, out: int, delay: int = 0, each: bool = False) -> None:
        own = {"delay": rng.integers(0, 5, (out, fan_in)).astype(np.int16)} if each else {}
        first = {}
        if delay and rng.random() < 0.3:
            first = {"init": rng.integers(0, 2, (delay, fan_in)).astype(np.int8)}
        weight = rng.integers(-50, 61, (out, fan_in)).astype(np.int8)
        nodes.append(Dense(name=name, inputs=(Ref(source, delay=delay, **first),), weight=weight, **own))

    def late() -> int:
        return int(rng.choice([0, 0, 1, 3, 140]))

    before, first, second, behind, last = (int(n) for n in sizes[1:])
    layer("fc0", "x", int(sizes[0]), before, late())
    population("l0", "fc0")
    layer("in", "l0", before, first, 0 if rng.random() < 0.5 else late())
    layer("rec", "l1", first, first, int(rng.integers(1, 4)), each=bool(rng.random() < 0.3))
    two = bool(rng.random() < 0.5)
    if two:
        layer("back", "l2", second, first, int(rng.integers(1, 3)))
    if rng.random() < 0.3 and not two:
        population("l1", "in", "rec")
    else:
        nodes.append(Add(name="meet", inputs=tuple(Ref(n) for n in ("in", "rec", "back")[: 2 + two])))
        population("l1", "meet")
    layer("fc2", "l1", first, second, 0 if two else late(), each=bool(rng.random() < 0.3))
    population("l2", "fc2")
    layer("fc3", "l2", second, behind, late())
    population("l3", "fc3")
    layer("fc4", "l3", behind, last, late())
    population("l4", "fc4")
    layer("fc5", "l0", before, 7, late())  # a second reader of a wire
    population("l5", "fc5")
    outputs = (("l4", Ref("l4")), ("l5", Ref("l5")))
    return verify(Graph(f"loop{seed}", "fixed", tuple(nodes), outputs))


NETS: Mapping[str, Callable[[], Graph]] = {
    "dense": dense_net,
    "pruned": pruned_net,
    "conv": conv_net,
    "groups": lambda: conv_net(2),
    "line": line_net,
    "camera": camera_net,
    "recurrent": recurrent_net,
    "loop": loop_net,
}


def compile_offline(
    graphs: Sequence[Graph], flags: Sequence[str], force: bool = True, every: int = 1 << 30
) -> tuple[list[Compiled], list[Offline]]:
    """One library for all graphs, offline mode beside each; of one in `every` all wires are readable."""
    sources: dict[str, str | bytes] = dict(kernel_files())
    sources["spk.h"] = (files("spikec.backends.c") / "folder" / "spk.h").read_text(encoding="utf-8")
    sources["host.c"] = (files("spikec.backends.c") / "folder" / "host.c").read_text(encoding="utf-8")
    networks, wholes, text = [], [], ""
    for number, graph in enumerate(graphs):
        network = generate(
            graph, prefix=f"n{number}_", observe=all_wires(graph) if number % every == every - 1 else (), embed=False
        )
        whole = offline(graph, network, force=force, embed=False)
        sources |= {
            f"n{number}_network.h": network.header,
            f"n{number}_network.c": network.source,
            f"n{number}_offline.c": whole.source,
        }
        text += f'#include "n{number}_network.c"\n#include "n{number}_offline.c"\n'
        networks.append(network)
        wholes.append(whole)
    sources["all.c"] = text
    path = build_library(sources, ["all.c", "host.c"], flags=(*FLAGS, *flags))
    return [Compiled(path, network, True) for network in networks], wholes


def wrong(graph: Graph, compiled: Compiled, batch: int, steps: int, seed: int, density: float | None = None) -> list[str]:
    """What offline mode gives that one step at a time, or the interpreter, does not."""
    inputs = random_inputs(graph, batch, steps, seed)
    if density is not None:
        rng = np.random.default_rng(seed)
        inputs = {name: (rng.random(x.shape) < density).astype(x.dtype) for name, x in inputs.items()}
    ports = list(range(len(compiled.network.ports)))
    records, states, counters = compiled.run_whole(inputs, batch, steps, ports)
    want, finals, counted = compiled.run(inputs, batch, steps, graph.max_lag, ports)
    found = [
        compiled.network.ports[k].name
        for k in ports
        if not np.array_equal(records[k], want[k], equal_nan=records[k].dtype.kind == "f")
    ]
    found += [p.name for p, a, b in zip(compiled.network.states, states, finals, strict=True) if not np.array_equal(a, b)]
    found += [name for name, value in counters.items() if value != counted[name]]
    if graph.level != "float":
        names = [record_name(port.wire) for port in compiled.network.ports]
        meant = interpret(graph, inputs, record=names)
        found += [
            f"reference {n}"
            for k, n in enumerate(names)
            if not np.array_equal(meant.records[n].reshape(records[k].shape), records[k])
        ]
        for k, port in enumerate(compiled.network.states):
            if not np.array_equal(meant.states[port.wire[0]][port.wire[1]].reshape(states[k].shape), states[k]):
                found.append(f"reference {port.name}")
    return found


@pytest.mark.parametrize("kind", PLAIN)
def test_whole_samples_are_the_steps(kind: str) -> None:
    """Batches and steps that fill no group of rows, none at all, one step, and inputs from silent to always."""
    needed(kind)
    graphs = [net() for net in NETS.values()]
    compiled, wholes = compile_offline(graphs, PLAIN[kind])
    layers = {graph.name: whole.layers for graph, whole in zip(graphs, wholes, strict=True)}
    assert layers["dense"] == ("l1", "l2", "l3")
    assert "spk_unpack(" in generate(graphs[1]).source and wholes[1].layers
    assert {"l1", "l2", "l3", "l4"} <= set(wholes[2].layers)
    assert layers["delayed"] == ("l1", "l2")
    for graph, network in zip(graphs, compiled, strict=True):
        for batch, steps, density in (
            (1, 1, 0.3),
            (3, 50, 0.1),
            (5, 7, 0.5),
            (2, 130, 0.05),
            (4, 33, 0.0),
            (2, 20, 1.0),
            (0, 5, 0.1),
            (3, 0, 0.1),
        ):
            assert wrong(graph, network, batch, steps, batch + steps, density) == [], f"{graph.name} {batch} {steps} {density}"


@pytest.mark.parametrize("kind", ["plain-sse2", "plain-vnni", "native", "none"])
@pytest.mark.parametrize("level", ["fixed", "float"])
def test_random_graphs(kind: str, level: str) -> None:
    """Networks that read earlier steps, or whose layers are no tiles, are among them."""
    needed(kind)
    drawn = drawn_graphs(level, 25, 77)
    compiled, wholes = compile_offline(drawn, PLAIN[kind], every=3)
    for number, (graph, network) in enumerate(zip(drawn, compiled, strict=True)):
        assert wrong(graph, network, 3, 9, number) == [], str(graph)
    assert any(by_blocks(graph) for graph in drawn) == (level == "fixed") == any(whole.layers for whole in wholes)


@pytest.mark.parametrize(("kind", "force"), [("plain-sse2", True), ("plain-vnni", False), ("native", True)])
def test_loops_and_delays_among_layers(kind: str, force: bool) -> None:
    """What stands before and behind a loop runs in blocks, on tiles; loops run row by row, and delays read earlier rows, of the
    block before too. More steps than a block has rows, samples that begin within one, all wires or few readable."""
    needed(kind)
    graphs = [loop_net(seed) for seed in (3, 6, 8, 11, 12, 20)]
    compiled, wholes = compile_offline(graphs, ("-O1", *PLAIN[kind]), force=force, every=2)
    for graph, whole in zip(graphs, wholes, strict=True):
        reads = {"l0": "fc0", "in": "in", "l3": "fc3", "l4": "fc4", "l5": "fc5"}
        plain = {name for name, weights in reads.items() if graph[weights].inputs[0].init is None}
        if force:  # first values are read row by row; sums that can be looked at are kept for themselves
            assert all(name in whole.layers or reads[name] in whole.layers for name in plain), whole.layers
        assert not {"l1", "meet", "rec", "back"} & set(whole.layers)
    assert any("net->pos_" in whole.source for whole in wholes)  # connections one by one, or rows that wait
    assert any("row = (uint32_t)net->t" in whole.source for whole in wholes)  # rows out of the lists of earlier steps
    silent = 0
    for number, (graph, network) in enumerate(zip(graphs, compiled, strict=True)):
        assert wrong(graph, network, 3, 90, number, 0.3) == [], str(graph)
        assert wrong(graph, network, 1, 150, number, 0.05) == [], str(graph)
        silent += not interpret(graph, random_inputs(graph, 1, 150, number), record=["l1"]).records["l1"].any()
    assert silent <= 1


def test_the_order_of_a_block() -> None:
    """Strongly connected parts, each behind what it reads, a delayed edge included; within one the order of a step."""
    graph = loop_net(3)
    parts = loops(graph)
    assert sorted(name for part in parts for name in part) == sorted(node.name for node in graph.nodes)
    place = {name: k for k, part in enumerate(parts) for name in part}
    order = [node.name for node in graph.order]
    for node in graph.nodes:
        assert all(place[ref.node] <= place[node.name] for ref in node.inputs)
    for part in parts:
        assert part == sorted(part, key=order.index)
        assert len(part) == 1 or {"l1", "rec"} <= set(part)
    assert looped(graph) == {name for part in parts if len(part) > 1 for name in part}
    assert looped(conv_net()) == set()


def test_the_crossover_takes_either_way() -> None:
    """Not forced: a quiet block is added event by event, a busy one by tiles; both count the same."""
    needed("plain-sse2")
    compiled, wholes = compile_offline([dense_net()], PLAIN["plain-sse2"], force=False)
    assert wholes[0].layers == ("l1", "l2")  # the last is too small to be worth it
    assert "events * 256u >= (uint64_t)rows" in wholes[0].source
    for density in (0.0, 0.01, 0.9):
        assert wrong(dense_net(), compiled[0], 4, 64, 5, density) == []


@pytest.mark.parametrize(("force", "channels"), [(False, 16), (False, 8), (True, 16)])
def test_rows_that_are_moved_as_they_come(force: bool, channels: int) -> None:
    """A population before a pool keeps one row, if nobody records it, and all rows where tiles are not used: blocks that are
    quiet and busy in turn go from one to the other."""
    needed("plain-sse2")
    graph = camera_net(channels)
    (compiled,), (whole,) = compile_offline([graph], PLAIN["plain-sse2"], force=force)
    assert "l3" in whole.layers
    assert ("early_x_l2" in whole.source) is not force  # forced, the layer before has tiles as well
    assert ("spk_convpair.h" in whole.source) is not force
    rng = np.random.default_rng(8)
    busy = np.repeat(np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], bool)[..., None, None, None], 128, axis=1)
    x = {"x": ((rng.random((3, 384, 2, 24, 24)) < 0.15) & busy).astype(np.int8)}
    ports = list(range(len(compiled.network.ports)))
    want, finals, counted = compiled.run(x, 3, 384, 0, ports)
    for chosen in ([0], ports):
        records, states, counters = compiled.run_whole(x, 3, 384, chosen)
        assert all(np.array_equal(records[k], want[port]) for k, port in enumerate(chosen))
        assert all(np.array_equal(a, b) for a, b in zip(states, finals, strict=True))
        assert counters == counted
    assert want[0].any()


def sums_of(found: Tiles, x: Array, outputs: int) -> Array:
    """What tiles give for a row of bytes that lies in as many copies, each moved, as they want; the places around hold anything."""
    shifts = found.shifts or (0,)
    pitch = -(-(len(x) + max(shifts)) // 64) * 64
    row = np.random.default_rng(4).integers(0, 127, pitch * len(shifts) + 64)
    for copy, shift in enumerate(shifts):
        row[copy * pitch + shift : copy * pitch + shift + len(x)] = x
    sums = np.zeros(-(-outputs // 32) * 32, np.int64)
    for pair in range(len(sums) // 32):
        for k in range(found.start[pair], found.start[pair + 1]):
            tile = np.frombuffer(found.packed[found.tile[k]], np.int8).reshape(2, 16, 16, 4).transpose(1, 3, 0, 2).reshape(64, 32)
            copy, place = found.run[k]
            begin = copy * pitch + shifts[copy] + place
            assert begin >= 0
            assert not found.shifts or begin % 64 == 0
            sums[pair * 32 : pair * 32 + 32] += row[begin : begin + 64] @ tile.astype(np.int64)
    return sums[:outputs]


@pytest.mark.parametrize(("channels", "shifts"), [((16, 16), (16, 48)), ((16, 8), (16,)), ((12, 16), None), ((3, 5), None)])
def test_tiles_are_shared_along_a_map(channels: tuple[int, int], shifts: tuple[int, ...] | None) -> None:
    """A convolution keeps a tile for the inner places of its map once; together the tiles are the matrix, and where it is worth
    copies of the map, every run is a whole cache line of one."""
    inputs, outputs = channels
    conv = Conv(name="c", inputs=(Ref("x"),), weight=weights(1, outputs, inputs, 3, 3), padding=(1, 1))
    found = tiles_of(conv, conv.weight, (inputs, 16, 16), (outputs, 16, 16), (inputs, 256), (outputs, 256))
    assert found is not None
    if inputs == 16:
        assert len(found.packed) < 20 < len(found.run)
        assert found.shifts == shifts
    assert sorted(found.order) == list(range(found.panels))
    x = np.random.default_rng(2).integers(0, 2, (inputs, 16, 16)).astype(np.int64)
    sums = sums_of(found, x.reshape(inputs, 256).T.ravel(), outputs * 256)
    want = np.zeros((outputs, 16, 16), np.int64)
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    for ky in range(3):
        for kx in range(3):
            want += np.einsum("oi,iyx->oyx", conv.weight[:, :, ky, kx].astype(np.int64), wide[:, ky : ky + 16, kx : kx + 16])
    assert np.array_equal(sums, want.reshape(outputs, 256).T.ravel())


def test_weights_of_zero_do_not_move_the_runs_of_a_dense_layer() -> None:
    """Inputs that no neuron reads are left out, and what is read still begins a cache line."""
    weight = weights(1, 40, 300)
    weight[:32, :5] = 0
    weight[:, 130:200] = 0
    found = tiles_of(Dense(name="d", inputs=(Ref("x"),), weight=weight), weight, (300,), (40,), None, None)
    assert found is not None
    x = np.random.default_rng(2).integers(0, 2, 300)
    assert np.array_equal(sums_of(found, x, 40), weight.astype(np.int64) @ x)


# -------------------------------------------------------------------------------------------------------- the interface

_DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "network.h"
#include "offline.h"
#include "spk.h"
static unsigned char memory[SPK_OFFLINE_BYTES + 7], room[SPK_BYTES];
static unsigned long long seed = 88172645463325252u;
static unsigned draw(unsigned n) {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return (unsigned)(seed % n);
}
static unsigned width(unsigned type) { return type == SPK_I8 ? 1u : type == SPK_I16 ? 2u : type == SPK_I32 ? 4u : 8u; }
enum { SAMPLES = 3, STEPS = 41 };
int main(void) {
  const unsigned size = spk_network.input[0].size;
  unsigned *index = malloc(sizeof *index * SAMPLES * STEPS * size);
  signed char *value = malloc((size_t)SAMPLES * STEPS * size);
  spk_in *in = calloc(SAMPLES * STEPS, sizeof *in);
  uint64_t counter[64] = {0}, want;
  void *record[64], *state[64];
  uint32_t port[64], k, t, s, i;
  unsigned char row[65536];
  spk_whole out;
  spk_net *net = NULL;
  for (t = 0; t < SAMPLES * STEPS; t++) { /* lists, lists with values, arrays, nothing */
    unsigned *list = index + (size_t)t * size, kind = draw(4);
    signed char *values = value + (size_t)t * size;
    if (kind == 3) { continue; }
    for (i = 0; i < size; i++) {
      const int one = draw(10) < 2;
      if (kind == 2) { values[i] = (signed char)one; }
      if (kind < 2 && one) {
        values[in[t].count] = (signed char)draw(2);
        list[in[t].count++] = i;
      }
    }
    if (kind < 2) { in[t].index = list; }
    if (kind > 0) { in[t].value = values; }
  }
  for (k = 0; k < spk_network.ports; k++) {
    port[k] = k;
    record[k] = malloc((size_t)SAMPLES * STEPS * spk_network.port[k].size * width(spk_network.port[k].type));
  }
  for (k = 0; k < spk_network.states; k++) {
    state[k] = malloc((size_t)SAMPLES * spk_network.state[k].size * width(spk_network.state[k].type));
  }
  out.records = spk_network.ports;
  out.port = port;
  out.record = record;
  out.state = state;
  out.counter = counter;
  if (spk_offline(memory + 3, spk_offline_size() - 1u, SAMPLES, STEPS, in, &out) != SPK_E_MEMORY) { return 10; }
  if (spk_offline(NULL, 1u << 30, SAMPLES, STEPS, in, &out) != SPK_E_MEMORY) { return 11; }
  if (spk_offline(memory + 3, SPK_OFFLINE_BYTES, SAMPLES, STEPS, in, &out) != SPK_OK) { return 12; }
  if (spk_init(room, sizeof room, &net) != SPK_OK) { return 13; }
  for (s = 0; s < SAMPLES; s++) {
    spk_reset(net);
    for (t = 0; t < STEPS; t++) {
      if (spk_step(net, in + s * STEPS + t) != SPK_OK) { return 14; }
      for (k = 0; k < spk_network.ports; k++) {
        const size_t bytes = (size_t)spk_network.port[k].size * width(spk_network.port[k].type);
        if (spk_read(net, k, row) != SPK_OK || memcmp(row, (char *)record[k] + (s * STEPS + t) * bytes, bytes) != 0) { return 20; }
      }
    }
    for (k = 0; k < spk_network.states; k++) {
      const size_t bytes = (size_t)spk_network.state[k].size * width(spk_network.state[k].type);
      if (spk_read_state(net, k, row) != SPK_OK || memcmp(row, (char *)state[k] + s * bytes, bytes) != 0) { return 21; }
    }
    for (k = 0; k < spk_network.counters; k++) {
      if (spk_read_counter(net, k, &want) != SPK_OK) { return 22; }
      counter[k] -= want;
    }
  }
  for (k = 0; k < spk_network.counters; k++) {
    if (counter[k] != 0) { return 23; }
  }
  out.state = NULL; /* nothing but the run itself */
  out.counter = NULL;
  out.records = 0;
  if (spk_offline(memory, SPK_OFFLINE_BYTES, SAMPLES, STEPS, in, &out) != SPK_OK) { return 30; }
  { /* what spk_step refuses is refused in any block, and nothing is written elsewhere */
    static const unsigned beyond[] = {1000000}, twice[] = {4, 4}, falling[] = {5, 4};
    static const signed char two[] = {2, 2, 2, 2};
    const spk_in bad[] = {{beyond, NULL, 1}, {twice, NULL, 2}, {falling, NULL, 2}, {beyond, NULL, 1000001}, {falling + 1, two, 1}};
    static const spk_status status[] = {SPK_E_EVENT, SPK_E_EVENT, SPK_E_EVENT, SPK_E_EVENT, SPK_E_VALUE};
    for (k = 0; k < 5; k++) {
      const unsigned at = draw(SAMPLES * STEPS);
      const spk_in kept = in[at];
      in[at] = bad[k];
      if (spk_offline(memory, SPK_OFFLINE_BYTES, SAMPLES, STEPS, in, &out) != status[k]) { return 31 + (int)k; }
      in[at] = kept;
    }
    port[0] = spk_network.ports;
    out.records = 1;
    if (spk_offline(memory, SPK_OFFLINE_BYTES, SAMPLES, STEPS, in, &out) != SPK_E_PORT) { return 40; }
  }
  for (k = 0; k < spk_network.ports; k++) { free(record[k]); }
  for (k = 0; k < spk_network.states; k++) { free(state[k]); }
  free(index);
  free(value);
  free(in);
  printf("ok %d\n", spk_offline_tiles());
  return 0;
}
"""


def write_folder(graph: Graph, folder: Path, *, force: bool = True) -> None:
    network = generate(graph)
    contents = folder_files(graph, network, None, offline(graph, network, force=force))
    for name, content in {**contents, "driver.c": _DRIVER}.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize("net", ["dense", "conv", "camera", "recurrent", "loop"])
@pytest.mark.parametrize(
    ("compiler", "flags"),
    [
        ("gcc", ("-O2",)),
        ("gcc", ("-O1", "-DSPK_TILES_PLAIN", "-march=x86-64-v3", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")),
        ("clang", ("-O1", "-DSPK_TILES_PLAIN", "-march=x86-64-v3", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")),
        ("gcc", ("-O3", "-march=native")),
        ("clang", ("-O3", "-march=native")),
        ("aarch64-linux-gnu-gcc", ("-O2", "-static")),
        ("arm-linux-gnueabihf-gcc", ("-O2", "-static", "-mfpu=neon")),
    ],
)
def test_the_interface(net: str, compiler: str, flags: tuple[str, ...], tools: Callable[..., None], tmp_path: Path) -> None:
    """Events, values and arrays, alignment, statuses and memory, with every warning an error, sanitizers, and on Arm."""
    if "-march=native" in flags and matrix_unit():
        flags = (*flags, "-mamx-tile", "-mamx-int8")  # an older clang does not know this processor by name
    run = {"aarch64-linux-gnu-gcc": ["qemu-aarch64"], "arm-linux-gnueabihf-gcc": ["qemu-arm"]}.get(compiler, [])
    tools(compiler, *run)
    write_folder(NETS[net](), tmp_path, force=net != "camera")
    strict = ("-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")
    for name in ("network.c", "offline.c"):
        done = subprocess.run([compiler, *strict, *flags, "-c", name], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    command = [compiler, "-std=c99", *flags, "driver.c", "network.o", "offline.o", "-o", "driver"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([*run, "./driver"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    tiled = "-DSPK_TILES_PLAIN" in flags or ("-march=native" in flags and matrix_unit())
    assert done.stdout == f"ok {int(tiled)}\n"


def large_net() -> Graph:
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (300,), "i8")),
        Dense(name="fc1", inputs=(Ref("x"),), weight=weights(1, 256, 300)),
        neuron("l1", "fc1", LIF, decay=3900, threshold=12000),
        Dense(name="fc2", inputs=(Ref("l1"),), weight=weights(2, 10, 256)),
        neuron("l2", "fc2", LIF, decay=3900, threshold=9000),
    ]
    return verify(Graph("large", "fixed", tuple(nodes), (("l2", Ref("l2")),)))


def test_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` takes offline mode where there is a matrix unit, in as many threads, with the same result; bad values are refused."""
    graph = large_net()
    backend = CBackend(None)
    inputs = random_inputs(graph, 70, 30, 4)
    calls = []
    real = Compiled.run_whole

    def counted(self: Compiled, *arguments: object) -> object:
        calls.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(Compiled, "run_whole", counted)
    meant = interpret(graph, inputs, record=["l1", "fc1"])
    for threads in (1, 3):
        found = backend.run(graph, inputs, record=["l1", "fc1"], threads=threads)
        assert np.array_equal(found.outputs["l2"], meant.outputs["l2"])
        assert all(np.array_equal(found.records[name], meant.records[name]) for name in ("l1", "fc1"))
        assert all(np.array_equal(found.states[n]["v"], meant.states[n]["v"]) for n in ("l1", "l2"))
    assert meant.outputs["l2"].any()
    found = backend.run(graph, inputs)
    assert np.array_equal(found.outputs["l2"], meant.outputs["l2"])
    assert bool(calls) == matrix_unit()
    assert backend.run(graph, {"x": inputs["x"][:, :0]}).outputs["l2"].shape == (70, 0, 10)
    with pytest.raises(CompileError) as caught:
        backend.run(graph, {"x": inputs["x"] * 2})
    assert caught.value.code == "SPK007"


@pytest.mark.parametrize("net", ["dense", "camera", "recurrent"])
@pytest.mark.parametrize("arch", ["", "-DSPK_TILES_PLAIN", "-march=native"])
def test_golden_vectors_are_checked_offline(net: str, arch: str, tools: Callable[..., None], tmp_path: Path) -> None:
    """`make check` compares what spk_offline gives for all golden samples at once, the way the flags allow, and fails where that is
    something else, though the network itself is right."""
    tools("gcc", "make")
    graph = NETS[net]()
    rng = np.random.default_rng(6)
    inputs = {node.name: (rng.random((3, 40, *node.type.shape)) < 0.4).astype(np.int8) for node in graph.inputs}
    golden = Golden(inputs, interpret(graph, inputs, record=default_record(graph)))
    CBackend(None).emit(graph, tmp_path, golden)

    def check() -> subprocess.CompletedProcess[str]:
        command = ["make", "-s", "check", f"ARCH={arch}", "CFLAGS=-O1"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)

    blocks = net != "recurrent" and (arch == "-DSPK_TILES_PLAIN" or (arch == "-march=native" and matrix_unit()))
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line[: line.index(":")] for line in done.stdout.splitlines()] == [
        "ok",
        "offline, by blocks of steps" if blocks else "offline, step by step",
    ]
    counts = re.findall(r"ok: 3 samples, (\d+) values compared, 0 differ", done.stdout)
    assert len(counts) == 2 and counts[0] == counts[1] != "0"
    if blocks:
        path = tmp_path / "offline.c"
        right = path.read_text()
        found = re.search(r"_packed\[\d+\][^{]*\{\n(?:[^}]*?)(-?\d+), (-?\d+), (-?\d+),", right)
        assert found is not None
        text = right[: found.start(1)] + "100, -100, 100," + right[found.end() :]
    else:
        path = tmp_path / "spk_offline.h"
        right = path.read_text()
        text = right.replace("if (b > first) { model->reset(net); }", "")  # a sample then begins with the end of the one before
    assert text != right
    path.write_text(text)
    done = check()
    assert done.returncode != 0 and "offline, " in done.stdout, done.stdout + done.stderr
    assert re.match(r"ok: 3 samples, .*\noffline, [a-z ]+: FAILED: 3 samples, ", done.stdout)
    assert re.search(r"golden\.txt:\d+: sample [012], step \d+, \S+: -?\d+, expected -?\d+", done.stderr)


def test_a_golden_file_that_offline_mode_cannot_check(tools: Callable[..., None], tmp_path: Path) -> None:
    """A state in the middle of a sample is told, samples of several lengths are run one length after the other."""
    tools("gcc", "make")
    graph = recurrent_net()
    inputs = random_inputs(graph, 2, 6, 3)
    CBackend(None).emit(graph, tmp_path, Golden(inputs, interpret(graph, inputs, record=default_record(graph))))
    text = (tmp_path / "golden.txt").read_text()
    states = [line for line in text.splitlines() if line.startswith("state l1.v")]

    def check(changed: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "golden.txt").write_text(changed)
        command = ["make", "-s", "network-offline", "CFLAGS=-O1"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        command = ["./network-offline", "--check", "golden.txt"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    head, first, second = text.split("sample\n")
    steps = first.split("step\n")
    done = check(f"{head}sample\n{first}sample\nstep\nsample\n{second}sample\nstep\n{steps[1]}")
    assert done.returncode == 0 and "ok: 4 samples" in done.stdout, done.stdout + done.stderr
    done = check(text.replace(steps[1], f"{steps[1]}{states[0]}\n", 1))
    assert done.returncode == 1 and "states as the last step leaves them only: l1.v" in done.stderr


def test_large_weights_are_linked(tools: Callable[..., None], tmp_path: Path) -> None:
    """Tiles of a large network stand in a file of their own, which `make lib` links either way."""
    tools("gcc")
    rows = weights(1, 1100, 900)
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (900,), "i8")),
        Dense(name="fc1", inputs=(Ref("x"),), weight=rows),
        neuron("l1", "fc1", LIF, decay=3900, threshold=12000),
    ]
    graph = verify(Graph("big", "fixed", tuple(nodes), (("l1", Ref("l1")),)))
    CBackend(None).emit(graph, tmp_path)
    assert (tmp_path / "offline_weights.bin").stat().st_size > 900 * 1100
    for arguments in (["lib"], ["lib", "EMBED=array"]):
        (tmp_path / "libnetwork.so").unlink(missing_ok=True)
        done = subprocess.run(["make", *arguments], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, check=False)
        assert done.returncode == 0, done.stderr
