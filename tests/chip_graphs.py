"""Random networks of integers that Loihi 2 can run, as they leave quantization: layers of all neuron kinds, not yet retimed.

Numbers are drawn from one NumPy generator, so that a seed names a network; programs that Lava's library lacks come from the
hypothesis strategy. A new kind of synapse or neuron is a method of `_Builder`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from nets import native
from strategies import MadeProgram, fixed_programs

from spikec.ir.graph import Graph
from spikec.ir.neuron import Emit, Program
from spikec.ir.ops import Add, Concat, Conv, Dense, Gather, Input, Neuron, Node, Pool, Ref, Reshape, Sparse
from spikec.ir.types import DTYPES, Array, TensorType, int_range

#: Neurons of Lava's library that send messages, and how often each is drawn.
KINDS = ("LIF", "LIF", "LIF", "LIFReset", "TernaryLIF", "ATRLIF", "RF", "RF_IZ", "GradedVec", "program", "program", "program")


def drawn_programs(number: int, count: int = 40) -> list[MadeProgram]:
    """Random programs of one or two inputs, always the same for a number."""
    found: list[MadeProgram] = []
    for inputs in ((12,), (12, 12)):

        @seed(number)
        @settings(
            max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
        )
        @given(fixed_programs(inputs=inputs, spikes_only=True))
        def draw(made: MadeProgram) -> None:
            # States beyond 31 bits are refused on Lava.
            if all(bits <= 31 for bits in made.states.values()):
                found.append(made)

        draw()
    return found


class _Builder:
    def __init__(self, number: int, programs: list[MadeProgram]) -> None:
        self.rng = np.random.default_rng(number)
        self.first = KINDS[number % len(KINDS)]
        self.programs = programs
        self.nodes: list[Node] = []
        self.sizes: dict[str, int] = {}
        self.graded: set[str] = set()

    def graph(self, name: str) -> Graph:
        """One or two inputs and up to four layers; every layer is an output."""
        rng = self.rng
        for index in range(int(rng.integers(1, 3))):
            self.source(f"in{index}")
        for index in range(int(rng.integers(1, 5))):
            self.layer(f"l{index}")
        outputs = tuple((node.name, Ref(node.name)) for node in self.nodes if isinstance(node, Neuron))
        return Graph(name, "fixed", tuple(self.nodes), outputs)

    def source(self, name: str) -> None:
        size = int(self.rng.integers(1, 9))
        self.sizes[name] = size
        if self.nodes and self.rng.random() < 0.5:  # whole numbers as messages
            self.nodes.append(Input(name=name, type=TensorType("graded", (size,), "i16"), bounds=(-20, 90)))
            self.graded.add(name)
            return
        self.nodes.append(Input(name=name, type=TensorType("spike", (size,), "i8")))

    def layer(self, name: str) -> None:
        rng = self.rng
        size = int(rng.integers(1, 12))
        kind = self.first if name == "l0" else str(rng.choice(KINDS))  # consecutive numbers take turns
        made = self.programs[int(rng.integers(len(self.programs)))] if kind == "program" else None
        program = made.program if made else native(kind)
        loops = rng.random() < 0.4 and kind != "GradedVec"  # what sends its own sum to itself grows without bound
        reads = list(self.sizes)
        if loops:
            self.sizes[name] = size
        inputs = [Ref(self.current(f"{name}_{port}", name if loops else "", size, reads, kind)) for port in program.inputs]
        params, init = self.of_program(made, size) if made else getattr(self, f"of_{kind.lower()}")(size)
        if rng.random() < 0.4:
            shown = {emit.name for emit in program.emits}
            more = tuple(Emit(state, "value") for state in program.state_names if state not in shown)
            program = Program(program.name, program.inputs, program.params, program.states, program.body, (*program.emits, *more))
        self.nodes.append(
            Neuron(
                name=name,
                inputs=tuple(inputs),
                program=program.renamed(f"{program.name}_{name}"),
                params={key: np.asarray(value, np.int32) for key, value in params.items()},
                init=init,
            )
        )
        self.sizes[name] = size
        if program.emits[0].kind == "graded":
            self.graded.add(name)

    # Synapses

    def current(self, name: str, own: str, size: int, reads: list[str], kind: str) -> str:
        """The sum of some synapses from earlier layers and, a step later at least, from the layer itself."""
        rng = self.rng
        # Large messages stay out of what sends its sum on as a message.
        allowed = [n for n in reads if kind != "GradedVec" or n not in self.graded]
        chosen = [(str(n), int(rng.integers(0, 4))) for n in rng.choice(allowed, rng.integers(1, 4))]
        if own:
            chosen.append((own, int(rng.integers(1, 5))))
        parts = []
        for index, (source, delay) in enumerate(chosen):
            parts.append(f"{name}_{index}")
            rng.choice(np.array([self.dense, self.dense, self.sparse, self.picked, self.conv, self.conv, self.pooled]))(
                parts[-1], source, delay, size
            )
        if len(parts) == 1:
            return parts[0]
        self.nodes.append(Add(name=f"{name}_sum", inputs=tuple(map(Ref, parts))))
        return f"{name}_sum"

    def weight(self, shape: Any) -> Array:
        top = int(self.rng.choice([4, 30, 127]))
        return (2 * self.rng.integers(-top, top + 1, shape)).astype(np.int16)

    def delays(self, shape: Any) -> Array | None:
        rng = self.rng
        return rng.integers(0, int(rng.choice([3, 40])), shape).astype(np.int32) if rng.random() < 0.35 else None

    def dense(self, name: str, source: str, delay: int, size: int) -> None:
        shape = (size, self.sizes[source])
        weight, own = self.weight(shape), self.delays(shape)
        self.nodes.append(Dense(name=name, inputs=(Ref(source, delay=delay),), weight=weight, delay=own))

    def sparse(self, name: str, source: str, delay: int, size: int) -> None:
        there = self.rng.random((size, self.sizes[source])) < 0.5
        count = int(there.sum())
        self.nodes.append(
            Sparse(
                name=name,
                inputs=(Ref(source, delay=delay),),
                weight=self.weight(count),
                indices=np.nonzero(there)[1].astype(np.int32),
                indptr=np.concatenate([[0], there.sum(axis=1).cumsum()]).astype(np.int32),
                fan_in=self.sizes[source],
                delay=self.delays(count),
            )
        )

    def picked(self, name: str, source: str, delay: int, size: int) -> None:
        """Dense over some of the source's neurons, one of them twice."""
        indices = self.rng.integers(0, self.sizes[source], int(self.rng.integers(1, 5)))
        indices = np.append(indices, indices[0])
        self.nodes.append(Gather(name=f"{name}_from", inputs=(Ref(source, delay=delay),), indices=indices))
        both = Concat(name=f"{name}_both", inputs=(Ref(f"{name}_from"), Ref(f"{name}_from")))
        self.nodes.append(both)
        self.nodes.append(Dense(name=name, inputs=(Ref(both.name),), weight=self.weight((size, 2 * len(indices)))))

    def maps(self, name: str, source: str, delay: int) -> tuple[Ref, tuple[int, ...]]:
        """A source's neurons as maps of one or two axes, some of several channels."""
        size = self.sizes[source]
        rows = int(self.rng.choice([n for n in range(1, size + 1) if size % n == 0]))
        shapes = [(rows, size // rows), (1, rows, size // rows), (rows, 1, size // rows)]
        shape = shapes[int(self.rng.integers(len(shapes)))]
        self.nodes.append(Reshape(name=f"{name}_maps", inputs=(Ref(source, delay=delay),), shape=shape))
        return Ref(f"{name}_maps"), shape

    def conv(self, name: str, source: str, delay: int, size: int) -> None:
        """A kernel over the whole map, or a small one of whose results some are taken: Lava has the first as it is."""
        rng = self.rng
        ref, shape = self.maps(name, source, delay)
        space = len(shape) - 1
        whole = rng.random() < 0.6
        kernel = shape[1:] if whole else tuple(int(rng.integers(1, n + 1)) for n in shape[1:])
        groups = int(rng.choice([n for n in range(1, shape[0] + 1) if shape[0] % n == size % n == 0])) if whole else 1
        out = size if whole else int(rng.integers(1, 4))
        weight = self.weight((out, shape[0] // groups, *kernel))
        extra: dict[str, Any] = {}
        if not whole:
            extra = {"stride": tuple(rng.integers(1, 3, space).tolist()), "padding": tuple(rng.integers(0, 2, space).tolist())}
        made = Conv(name=f"{name}_conv", inputs=(ref,), weight=weight, groups=groups, delay=self.delays(weight.shape), **extra)
        self.nodes.append(made)
        if whole:
            self.nodes.append(Reshape(name=name, inputs=(Ref(made.name),), shape=(size,)))
            return
        area = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape[1:], kernel, made.stride, made.padding, strict=True)]
        indices = rng.integers(0, out * int(np.prod(area)), size)
        self.nodes.append(Gather(name=name, inputs=(Ref(made.name),), indices=indices))

    def pooled(self, name: str, source: str, delay: int, size: int) -> None:
        """A sum pool and dense weights behind it."""
        ref, shape = self.maps(name, source, delay)
        kernel = tuple(int(self.rng.integers(1, n + 1)) for n in shape[1:])
        self.nodes.append(Pool(name=f"{name}_pool", inputs=(ref,), mode="sum", kernel=kernel))
        width = shape[0] * int(np.prod([n // k for n, k in zip(shape[1:], kernel, strict=True)]))
        self.nodes.append(Reshape(name=f"{name}_row", inputs=(Ref(f"{name}_pool"),), shape=(width,)))
        self.nodes.append(Dense(name=name, inputs=(Ref(f"{name}_row"),), weight=self.weight((size, width))))

    # Neurons: parameters and initial states

    def per(self, size: int) -> int | None:
        return size if self.rng.random() < 0.5 else None

    def states(self, size: int, *names: str) -> dict[str, Array]:
        if self.rng.random() < 0.6:
            return {}
        return {name: self.rng.integers(-9000, 9000, size).astype(np.int32) for name in names}

    def of_lif(self, size: int) -> tuple[dict[str, Any], dict[str, Array]]:
        rng = self.rng
        bias = rng.integers(-400, 600, size) * rng.integers(0, 2)
        if rng.random() < 0.2:
            bias = 64 * rng.integers(-20, 60, size)  # one that a synapse can bring
        params = {
            "du": rng.choice([4095, int(rng.integers(500, 4096))], self.per(size)),
            "dv": rng.integers(0, 4097, self.per(size)),
            "vth": rng.integers(1, 200, self.per(size)),
            "bias_mant": bias,
            "bias_exp": rng.integers(0, 4),
        }
        return params, self.states(size, "u", "v")

    def of_lifreset(self, size: int) -> tuple[dict[str, Any], dict[str, Array]]:
        params, init = self.of_lif(size)
        return {**params, "interval": self.rng.integers(1, 9), "offset": self.rng.integers(0, 9)}, init

    def of_ternarylif(self, size: int) -> tuple[dict[str, Any], dict[str, Array]]:
        params, init = self.of_lif(size)
        del params["vth"]
        return {**params, "vth_hi": self.rng.integers(1, 200), "vth_lo": -self.rng.integers(1, 200)}, init

    def of_atrlif(self, size: int) -> tuple[dict[str, Any], dict[str, Array]]:
        rng = self.rng
        base, _ = self.of_lif(size)
        params = {
            "di": rng.integers(500, 4096, self.per(size)),
            **{key: rng.integers(0, 4097, self.per(size)) for key in ("dv", "dtheta", "dr")},
            "theta_0": rng.integers(1, 200, self.per(size)),
            "theta_step": rng.integers(0, 50),
            **{key: base[key] for key in ("bias_mant", "bias_exp")},
        }
        theta = np.broadcast_to(np.asarray(params["theta_0"]) << 6, (size,)).astype(np.int32)
        return params, {"theta": theta, **self.states(size, "i", "v", "r")}

    def of_rf(self, size: int) -> tuple[dict[str, Any], dict[str, Array]]:
        rng = self.rng
        angle, length = rng.uniform(0, 2 * np.pi, size), rng.uniform(3000, 4090, size)
        cosd, sind = np.rint(length * np.cos(angle)), np.rint(length * np.sin(angle))
        return {"cosd": cosd, "sind": sind, "vth": rng.integers(0, 200)}, self.states(size, "re", "im")

    of_rf_iz = of_rf

    def of_gradedvec(self, size: int) -> tuple[dict[str, Any], dict[str, Array]]:
        return {"vth": self.rng.integers(0, 90)}, {}

    def of_program(self, made: MadeProgram, size: int) -> tuple[dict[str, Any], dict[str, Array]]:
        rng = self.rng
        params = {n: rng.integers(-(1 << bits) + 1, 1 << bits, self.per(size)) for n, bits in made.params.items()}
        init = {}
        for state in made.program.states:
            top = min((1 << (made.states[state.name] - 1)) - 1, int_range(state.dtype)[1])
            if rng.random() < 0.3:
                init[state.name] = rng.integers(-top, top + 1, size).astype(DTYPES[state.dtype])
        return params, init


def chip_graph(number: int, programs: list[MadeProgram]) -> Graph:
    """The network of a number, not yet retimed."""
    return _Builder(number, programs).graph(f"chip{number}")


def union(graphs: list[Graph], change: Callable[[Graph], Graph]) -> Graph:
    """Networks side by side in one, each changed first, names with a prefix: a simulator that starts slowly starts once.

    Placed networks may share cores: the simulator does not know of them.
    """
    nodes: list[Node] = []
    outputs = []
    changed = [change(graph) for graph in graphs]
    for index, graph in enumerate(changed):

        def moved(ref: Ref, index: int = index) -> Ref:
            return Ref(f"g{index}_{ref.node}", ref.port, ref.delay, ref.init)

        for node in graph.nodes:
            fields: dict[str, Any] = {"name": f"g{index}_{node.name}"}
            if node.inputs:
                fields["inputs"] = tuple(moved(ref) for ref in node.inputs)
            if isinstance(node, Neuron):
                fields["program"] = node.program.renamed(f"g{index}_{node.program.name}")
            nodes.append(replace(node, **fields))
        outputs += [(f"g{index}_{name}", moved(ref)) for name, ref in graph.outputs]
    return Graph("union", changed[0].level, tuple(nodes), tuple(outputs))
