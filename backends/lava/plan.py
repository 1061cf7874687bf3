"""What of a graph becomes which Lava process: sources, synapses, populations, and what can be read.

Lava's processes are joined by plain wires, so reshaping, gathering, concatenating and adding between a population and its
synapses has to go into the synapses' matrices. Every wire is taken apart into pieces, each of which reads elements of one
origin (a source, a population, or a synapse) some steps ago; a synapse between two populations is then its matrix with rows
and columns moved. A plan says everything that is wrong, not only the first thing.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from spikec.backends.lava.programs import MODULE, Custom, class_name, custom
from spikec.counts import synapses
from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.connections import connections
from spikec.ir.graph import Graph
from spikec.ir.interpret import record_name
from spikec.ir.neuron import Call, Expr, Num, Program, Var
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Node, Ref, Reshape, Sparse, spread
from spikec.ir.ranges import Ranges, graph_ranges, input_range
from spikec.ir.types import Array
from spikec.mantissas import PLAIN, Stored, stored
from spikec.native import native_process
from spikec.target import NativeNeuron, Target

SOURCES = (Input, Constant)
SYNAPSES = (Dense, Sparse, Conv)
VIEWS = (Reshape, Gather, Concat, Add)

# What Lava's processes take (loihi2.md 1.1, 1.2): bias_mant is an int16 array, the others are what their equations allow.
ARGUMENT_RANGES = {
    "bias_mant": (-(1 << 15), (1 << 15) - 1),
    "bias_exp": (0, 7),
    "du": (-1, 4095),
    "dv": (0, 4096),
    "vth": (-(1 << 24), 1 << 24),
    "reset_interval": (1, (1 << 31) - 1),
    "reset_offset": (0, (1 << 31) - 1),
}
ONE_FOR_ALL = ("reset_interval", "reset_offset")
# Lava computes in int32 what the program computes in any width: far below, nothing can wrap (loihi2.md 1.1).
MOST_INPUT = 1 << 24
MOST_STATE = 1 << 30
#: Bits of a message between cores (loihi2.md 4.1), and what Lava's Conv keeps in 8 bits (2.7).
MOST_MESSAGE = 32
MOST_CONV = 127
#: Copies of a network side by side.
MOST_COPIES = 256


@dataclass(frozen=True)
class Piece:
    """Elements `into` of a wire read elements `taken` of `origin`, `delay` steps ago; no element of a piece twice."""

    origin: str
    into: Array
    taken: Array
    delay: int


@dataclass(frozen=True)
class Synapse:
    """One Lava process: weights (rows, columns), or in compressed rows with `indices` and `indptr`, or a convolution's kernels.

    delay: steps on top of the one that every synapse takes; one for all or one per weight. bits: of a message, 0 for spikes.
    stored: mantissas and exponent of the weights.
    grid: of a convolution, the shape (channels, height, width) that it reads.
    """

    name: str
    node: Dense | Sparse | Conv
    source: str
    rows: int
    columns: int
    weight: Array
    delay: int | Array = 0
    indices: Array | None = None
    indptr: Array | None = None
    bits: int = 0
    grid: tuple[int, ...] = ()
    stored: Stored = PLAIN

    @property
    def connections(self) -> int:
        """Connections whose weight is not zero."""
        if isinstance(self.node, Conv) and self.grid:
            return synapses(self.node, self.grid)
        return int(np.count_nonzero(self.weight))

    @property
    def groups(self) -> int:
        """Of a convolution that Lava does as one, its groups; 0 for any other."""
        return self.node.groups if isinstance(self.node, Conv) and self.grid else 0


@dataclass(frozen=True)
class Process:
    """The class of a population and its names for the program's inputs, emissions and states.

    program: the generated class where the neuron is none of Lava's own. begins: states that the process sets itself. builder: a
    function of parts.py that makes it, else its constructor does. divided: by what arguments are divided that Lava takes as
    fractions. named: whether it takes a name. exact: the program says itself where int32 wraps.
    """

    module: str
    name: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    states: Mapping[str, str]
    program: Custom | None = None
    begins: tuple[str, ...] = ()
    builder: str = ""
    divided: Mapping[str, int] = field(default_factory=dict)
    named: bool = True
    exact: bool = False


@dataclass(frozen=True)
class Population:
    """One neuron process: `arguments` and initial `states` by Lava's names; numbers, or arrays of one per neuron.

    inputs: the synapses of each input port. late: what the host writes at step `node.start`; it is left out of `arguments` and
    `states`.
    """

    node: Neuron
    process: Process
    shape: tuple[int, ...]
    inputs: Mapping[str, tuple[str, ...]]
    arguments: dict[str, int | Array]
    states: dict[str, int | Array]
    late: dict[str, int | Array] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of neurons."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def variables(self) -> tuple[str, ...]:
        """Lava's names of the states."""
        return tuple(self.process.states.values())

    @property
    def synapses(self) -> tuple[str, ...]:
        """All that reach it."""
        return tuple(name for names in self.inputs.values() for name in names)

    @property
    def start(self) -> int:
        """The step before which the host keeps it silent; a generated process does so by itself."""
        return 0 if self.process.program else self.node.start

    def wire(self, port: str) -> str | None:
        """The name under which the package records what a port emits; None if it cannot."""
        if port in self.process.outputs:
            return f"{self.node.name}.{self.process.outputs[port]}" if port != self.node.program.emits[0].name else self.node.name
        return f"{self.node.name}.{self.process.states[port]}" if port in self.process.states else None


@dataclass(frozen=True)
class Value:
    """A wire of numbers that is the sum of whole synapses."""

    synapses: tuple[str, ...]
    shape: tuple[int, ...]
    lag: int


@dataclass(frozen=True)
class View:
    """Elements `take` of the wires one after the other (None: all), as `shape`."""

    wires: tuple[str, ...]
    shape: tuple[int, ...]
    lag: int
    take: Array | None


@dataclass
class Plan:
    """Everything that is emitted, in the order of the graph. `problems` is empty where it can be."""

    graph: Graph
    problems: list[Diagnostic] = field(default_factory=list)
    sources: dict[str, Input | Constant] = field(default_factory=dict)
    synapses: dict[str, Synapse] = field(default_factory=dict)
    populations: dict[str, Population] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, str | View] = field(default_factory=dict)

    @property
    def connections(self) -> int:
        """Of all synapses."""
        return sum(item.connections for item in self.synapses.values())

    @property
    def most_copies(self) -> int:
        """How often the network can stand beside itself: a convolution's groups multiply, and Lava counts them in 8 bits."""
        groups = max((item.groups for item in self.synapses.values()), default=0)
        return MOST_CONV // groups if groups else MOST_COPIES

    @property
    def limits(self) -> dict[str, tuple[int, int]]:
        """What every input takes, inclusive."""
        return {name: input_range(node) for name, node in self.sources.items() if isinstance(node, Input)}

    @property
    def neurons(self) -> int:
        """Of all populations."""
        return sum(item.size for item in self.populations.values())

    def wire(self, name: str) -> str | None:
        """The name under which the package records a wire of the graph; None if it cannot."""
        node, _, port = name.partition(".")
        if node in self.populations and port:
            return self.populations[node].wire(port)
        return name if name in {**self.sources, **self.populations, **self.values} else None


def make_plan(graph: Graph, target: Target) -> Plan:
    """The plan of a graph; look at its `problems` before anything else."""
    planner = _Planner(graph, target)
    planner.make()
    return planner.plan


class _Planner:
    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph = graph
        self.target = target
        self.plan = Plan(graph)
        self._made: dict[tuple[object, ...], str] = {}
        self._names: set[str] = set()
        self._ranges: Ranges | None = None
        self._reported: set[tuple[str, str]] = set()
        self._classes: dict[str, Custom] = {}

    @property
    def ranges(self) -> Ranges:
        """What every wire and state can reach."""
        if self._ranges is None:
            self._ranges = graph_ranges(self.graph)
        return self._ranges

    def problem(self, node: Node | None, message: str, fix: str | None = None) -> None:
        name = node.name if node else ""
        if (name, message) not in self._reported:
            self._reported.add((name, message))
            text = f"%{name}: {message}" if node else message
            self.plan.problems.append(Diagnostic("SPK502", text, loc=node.loc if node else None, fix=fix))

    def make(self) -> None:
        graph, plan = self.graph, self.plan
        if graph.level == "float":
            message = "Lava runs graphs of integers, and this one holds floats"
            self.problem(None, message, f"compile it for {self.target.name}")
            return
        for node in graph.nodes:
            for _, type_ in graph.types[node.name]:
                if type_.size == 0:
                    self.problem(node, "is empty, and a Lava process has at least one element")
            if not isinstance(node, (*SOURCES, *SYNAPSES, *VIEWS, Neuron)):
                self.problem(node, f"there is no Lava process for the operation '{node.op}'", "compile for host")
            for ref in node.inputs:
                if ref.init is not None and ref.init.any():
                    self.problem(node, f"{ref} has initial values, and Lava's delay lines begin empty")
        if plan.problems:
            return
        for node in graph.nodes:
            if isinstance(node, (Input, Constant)):
                self._source(node)
        for node in graph.neurons:
            self._population(node)
        for name, ref in graph.outputs:
            self._output(name, ref)
        for node in graph.nodes:
            if graph.types[node.name][0][1].kind == "value" and not isinstance(node, Neuron):
                self._value(Ref(node.name), make=False)
        self._widths()
        self._starts()

    # Pieces ----------------------------------------------------------------------------------------------------------

    def pieces(self, ref: Ref) -> Iterator[Piece]:
        """The wire behind a reference, taken apart."""
        node = self.graph[ref.node]
        if not isinstance(node, VIEWS):
            every = np.arange(self.graph.type_of(ref).size)
            yield Piece(record_name((ref.node, ref.port)), every, every, ref.delay)
            return
        for operand, places in zip(node.inputs, self._places(node), strict=True):
            for piece in self.pieces(operand):
                delay = piece.delay + ref.delay
                if isinstance(node, Gather):
                    found = np.full(self.graph.type_of(operand).size, -1)
                    found[piece.into] = piece.taken
                    taken = found[places]
                    into = np.nonzero(taken >= 0)[0]
                    yield Piece(piece.origin, into, taken[into], delay)
                else:
                    yield Piece(piece.origin, places[piece.into], piece.taken, delay)

    def _places(self, node: Node) -> list[Array]:
        """For every operand, where its elements stand in the result; of a gather, which element stands where."""
        if isinstance(node, Gather):
            return [node.indices.ravel()]
        if isinstance(node, Concat):
            shape = self.graph.shape_of(node.name)
            ends = np.cumsum([self.graph.type_of(ref).shape[node.axis] for ref in node.inputs])
            every = np.arange(int(np.prod(shape))).reshape(shape)
            return [part.ravel() for part in np.split(every, ends[:-1], axis=node.axis)]
        return [np.arange(self.graph.type_of(ref).size) for ref in node.inputs]

    # Nodes -----------------------------------------------------------------------------------------------------------

    def _source(self, node: Input | Constant) -> None:
        low, high = self.ranges.wires[node.name, ""]
        if isinstance(node, Constant) and node.kind == "value" and not self._direct(node):
            self.problem(node, "sends currents, and a synapse on Lava takes messages", "legalise the graph")
        elif max(-low, high) > MOST_STATE:
            self.problem(
                node, f"sends numbers from {low} to {high}, more than Lava's messages hold", "narrower bounds of the input"
            )
        self.plan.sources[node.name] = node

    def _direct(self, node: Node) -> bool:
        """Whether only populations read a node: what it sends goes straight into them."""
        return all(isinstance(user, Neuron) for user, _ in self.graph.users[node.name])

    def _population(self, node: Neuron) -> None:
        shape = self.graph.shape_of(node.name)
        found = native_process(self.target, node, shape)
        native = found if isinstance(found, NativeNeuron) else None
        process = _native_process(node, native) if native is not None else self._custom(node.program)
        if native is not None:
            table = native.implementation["arguments"]
            arguments = {argument: self._argument(node, argument, node.params[name], shape) for argument, name in table.items()}
        else:
            assert process.program is not None
            names = process.program.params
            arguments = {names[name]: _short(_per_neuron(value, shape)) for name, value in node.params.items()}
        states = {
            process.states[state.name]: _short(_per_neuron(node.init.get(state.name, np.asarray(state.init)), shape))
            for state in node.program.states
            if state.name in process.states and state.name not in process.begins
        }
        late: dict[str, int | Array] = {}
        if node.start and process.program:
            arguments["start"] = node.start
        if node.stop is not None:
            arguments["stop"] = node.stop
        elif node.start and native is not None:
            if np.any(np.asarray(arguments.get("vth", 0)) < 0):
                self.problem(node, "starts late, and its negative threshold would let it fire before")
            bias = native.bias_synapse.get("mantissa")
            late = {argument: arguments[argument] for argument, name in native.implementation["arguments"].items() if name == bias}
            late |= states
            arguments = {name: 0 if name in late else value for name, value in arguments.items()}
            late = {name: value for name, value in late.items() if np.any(value)}
            states = dict.fromkeys(states, 0)
        inputs = {
            process.inputs[name]: tuple(self._synapses(ref, node))
            for name, ref in zip(node.program.inputs, node.inputs, strict=True)
        }
        self.plan.populations[node.name] = Population(node, process, shape, inputs, arguments, states, late)

    def _custom(self, program: Program) -> Process:
        """The generated class of a program; equal programs share one."""
        key = program.renamed("_").text()
        if key not in self._classes:
            taken = {item.name for item in self._classes.values()} | {
                native.implementation["process"] for native in self.target.neurons if native.implementation
            }
            self._classes[key] = custom(class_name(program.name, taken), program)
        made = self._classes[key]
        return Process(MODULE, made.name, made.inputs, made.outputs, made.states, made)

    def _argument(self, node: Neuron, argument: str, value: Array, shape: tuple[int, ...]) -> int | Array:
        full = _per_neuron(value, shape)
        low, high = ARGUMENT_RANGES.get(argument, (-(1 << 31), (1 << 31) - 1))
        outside = (full < low) | (full > high)
        if outside.any():
            message = f"{argument} is {full[outside].flat[0]} ({int(outside.sum())} of {full.size})"
            self.problem(node, f"{message}, and Lava takes {low} to {high}")
        short = _short(full)
        if argument in ONE_FOR_ALL and not isinstance(short, int):
            self.problem(node, f"has several values of {argument}, and Lava takes one per population", "split the layer")
        return short

    def _output(self, name: str, ref: Ref) -> None:
        node, type_ = self.graph[ref.node], self.graph.type_of(ref)
        if isinstance(node, (*SOURCES, Neuron)):
            wire = self.plan.wire(record_name((ref.node, ref.port)))
            if wire is not None:
                self.plan.outputs[name] = wire
            return
        pieces = list(self.pieces(ref))
        origins = {piece.origin for piece in pieces}
        if any(isinstance(self.graph[origin.partition(".")[0]], SYNAPSES) for origin in origins):
            self._value(ref, make=True)
            self.plan.outputs[name] = ref.node
        elif sum(len(piece.into) for piece in pieces) != type_.size or any(piece.delay for piece in pieces):
            message = f"the output {name} adds or delays spikes, which has no process on Lava"
            self.problem(node, message, "read the populations instead")
        else:
            wires = list(dict.fromkeys(piece.origin for piece in pieces))
            begins = dict(zip(wires, np.cumsum([0, *(self._size(wire) for wire in wires)]), strict=False))
            take = np.zeros(type_.size, np.int64)
            for piece in pieces:
                take[piece.into] = begins[piece.origin] + piece.taken
            total = sum(map(self._size, wires))
            whole = total == type_.size and np.array_equal(take, np.arange(total))
            named = tuple(self.plan.wire(wire) or wire for wire in wires)
            self.plan.outputs[name] = View(named, type_.shape, node.lag, None if whole else take)

    def _size(self, wire: str) -> int:
        name, _, port = wire.partition(".")
        return self.graph.type_of(Ref(name, port)).size

    def _value(self, ref: Ref, make: bool) -> None:
        """Enter a sum of synapses among what can be recorded: those that are there anyway, or all if `make`."""
        names = self._synapses(ref, self.graph[ref.node], make=make)
        low, high = self.ranges.wires[ref.node, ref.port]
        fits = max(-low - 1, high) < 1 << 31  # Lava's sums have 32 bits
        if make and not fits:
            self.problem(self.graph[ref.node], f"can reach {low} to {high}, which Lava's sums do not hold", "smaller weights")
        if names and fits:
            self.plan.values[ref.node] = Value(tuple(names), self.graph.type_of(ref).shape, self.graph[ref.node].lag)

    # Synapses --------------------------------------------------------------------------------------------------------

    def _synapses(self, ref: Ref, reader: Node, make: bool = True) -> list[str]:
        """The synapses whose sum is the wire behind `ref`; without `make` only if all of them exist already."""
        names: list[str] = []
        size = self.graph.type_of(ref).size
        for piece in self.pieces(ref):
            origin = self.graph[piece.origin.partition(".")[0]]
            if isinstance(reader, Neuron) and self._fed(origin, piece, size):
                names.append(origin.name)
                continue
            if not isinstance(origin, SYNAPSES):
                if make:
                    self.problem(reader, f"%{piece.origin} enters without a synapse", "put a synapse of weight 1 between")
                return []
            if make and not self._sound(origin):
                continue
            for operand in self.pieces(origin.inputs[0]):
                if not self._messages(origin, operand.origin, make):
                    continue
                key: tuple[object, ...] = (origin.name, size, operand.origin, piece.delay + operand.delay)
                key += tuple(a.tobytes() for a in (piece.into, piece.taken, operand.into, operand.taken))
                number = 0
                while (*key, number) in self._made:
                    names.append(self._made[*key, number])
                    number += 1
                if number:
                    continue
                if not make:
                    return []
                for number, made in enumerate(self._compose(origin, piece, operand, size)):
                    self.plan.synapses[made.name] = made
                    self._made[*key, number] = made.name
                    names.append(made.name)
        return names

    def _fed(self, origin: Node, piece: Piece, size: int) -> bool:
        """Whether numbers from outside go straight into neurons, all in order: a wire, which takes no step."""
        whole = len(piece.into) == size and _every(piece.into, piece.taken) and not piece.delay
        return whole and isinstance(origin, Input) and origin.type.kind != "spike" and origin.type.size == size

    def _sound(self, node: Dense | Sparse | Conv) -> bool:
        """Whether a synapse has no numbers that none of Lava's holds."""
        before = len(self.plan.problems)
        if isinstance(node, Conv):  # which becomes one of Lava's, without exponents
            low, high = self.target.integer("weight_min"), self.target.integer("weight_max")
            step = self.target.integer("weight_step")
            outside = (node.weight < low) | (node.weight > high)
            if outside.any():
                message = f"{int(outside.sum())} of {node.weight.size} weights lie outside {low} to {high}"
                self.problem(node, message, "quantize the weights to 8 bits")
            off = node.weight % step != 0
            if off.any():
                message = f"{int(off.sum())} of {node.weight.size} weights are no multiples of {step}, and Lava would round them"
                self.problem(node, message, "quantize the weights to 8 bits")
        elif isinstance(node, Dense):  # of a sparse one, what meets twice between two neurons is a synapse of its own
            self._stored(node, node.weight)
        if node.bias is not None and node.bias.any():
            self.problem(node, "has a bias, which a synapse on Lava has not", "move the bias into the neurons")
        return len(self.plan.problems) == before

    def _stored(self, node: Node, weight: Array) -> Stored:
        """Mantissas and exponent; what the weights of a synapse sum up to has 32 bits before it is shifted."""
        low, high = self.ranges.wires[node.name, ""]
        found = stored(weight, self.target, max(-low, high))
        if found is None:
            message = f"weights from {weight.min()} to {weight.max()} that are no 8-bit mantissas times a power of two"
            self.problem(node, message, "quantize the weights to 8 bits")
        return found or PLAIN

    def _messages(self, node: Node, wire: str, make: bool) -> bool:
        """Whether a synapse's operand is something that sends messages: spikes, or whole numbers."""
        name, _, port = wire.partition(".")
        origin = self.graph[name]
        if isinstance(origin, (*SOURCES, Neuron)) and not port and self.graph.type_of(Ref(name)).kind != "value":
            return True
        if make:
            self.problem(node, f"%{wire} is not spikes, and a synapse on Lava takes spikes", "use its spikes")
        return False

    def _bits(self, node: Node, wire: str) -> int:
        """Bits of a message, its sign included; 0 for spikes, which Lava then takes as such."""
        if self.graph.type_of(Ref(wire)).kind == "spike":
            return 0
        low, high = self.ranges.wires[wire, ""]
        bits = max(high, -low - 1, 1).bit_length() + 1
        if bits > MOST_MESSAGE:
            self.problem(node, f"takes messages of {bits} bits ({low} to {high}); Lava's have at most {MOST_MESSAGE}", "fewer bits")
        return bits

    def _compose(self, node: Dense | Sparse | Conv, piece: Piece, operand: Piece, size: int) -> list[Synapse]:
        """A synapse's matrix from the elements of its source to those of its reader."""
        columns = self._size(operand.origin)
        wait = piece.delay + operand.delay - 1
        own = node.delay[node.weight != 0] if node.delay is not None else np.zeros(0, np.int64)
        least, most = (wait + int(own.min()), wait + int(own.max())) if own.size else (wait, wait)
        limit = self.target.integer("max_delay")
        if least < 0:
            self.problem(node, "reads a spike of the same step, and a synapse on Lava takes a step", "retime the graph")
            return []
        if most > limit:
            self.problem(node, f"waits {most} steps; Lava's synapses have at most {limit}", "shorten the delay")
            return []
        bits = self._bits(node, operand.origin)
        if isinstance(node, Conv):
            return self._convolution(node, piece, operand, size, wait, bits)
        plain = isinstance(node, Dense) and len(self.graph.type_of(node.inputs[0]).shape) == 1
        once = len(np.unique(operand.taken)) == len(operand.taken)
        if plain and once and 2 * len(piece.into) * len(operand.into) >= size * columns:
            weight = _moved(node.weight, piece, operand, size, columns)
            delay: int | Array = wait
            if own.size:
                waits = _moved(np.asarray(node.delay), piece, operand, size, columns) + wait
                delay = _short(np.where(weight != 0, waits, 0 if np.any(waits < 0) else waits))
            name, kept = self._name(node, operand.origin), self._stored(node, weight)
            return [Synapse(name, node, operand.origin, size, columns, weight, delay, bits=bits, stored=kept)]
        return list(self._sparse(node, piece, operand, size, columns, wait, bits))

    def _convolution(self, node: Conv, piece: Piece, operand: Piece, size: int, wait: int, bits: int) -> list[Synapse]:
        """Lava's Conv: two axes of space, no delay, whole wires on either side, 8-bit numbers, sums of 24 bits (loihi2.md 2.7)."""
        shape = self.graph.type_of(node.inputs[0]).shape
        columns = self._size(operand.origin)
        grid = shape
        flat = node
        if node.weight.ndim == 3:  # one axis of space is a map one high
            stride, padding, dilation = (1, *node.stride), (0, *node.padding), (1, *node.dilation)
            flat = replace(node, weight=node.weight[:, :, None], delay=None, stride=stride, padding=padding, dilation=dilation)
            grid = (shape[0], 1, shape[1])
        low, high = self.ranges.wires[node.name, ""]
        whole = len(piece.into) == size and len(operand.taken) == columns == int(np.prod(shape))
        whole &= _every(piece.into, piece.taken) and _every(operand.into, operand.taken)
        small = max(*node.weight.shape[2:], *node.stride, *node.padding, *node.dilation, node.groups) <= MOST_CONV
        if wait or node.delay is not None or not whole or not small or max(high, -low - 1) >= 1 << 23:
            message = "is a convolution that Lava's Conv does not compute (a delay, a selection, or a sum beyond 24 bits)"
            self.problem(node, message, "run the pass lower-conv after retime")
            return []
        name = self._name(node, operand.origin)
        return [Synapse(name, flat, operand.origin, size, columns, flat.weight, bits=bits, grid=grid)]

    def _sparse(
        self, node: Dense | Sparse, piece: Piece, operand: Piece, size: int, columns: int, wait: int, bits: int
    ) -> Iterator[Synapse]:
        """In compressed rows; what meets twice between the same two neurons becomes a synapse of its own."""
        entries = connections(node, self.graph.type_of(node.inputs[0]).shape)
        rows, inner, weight, delay = entries.rows, entries.columns, entries.weight, entries.delay
        order = np.argsort(operand.into, kind="stable")
        low = np.searchsorted(operand.into[order], inner)
        there = low < len(order)
        there[there] = operand.into[order][low[there]] == inner[there]
        rows, weight, delay, low = rows[there], weight[there], delay[there], low[there]
        column = operand.taken[order][low]
        # A row may stand in several places of the reader, where a gather repeats it.
        order = np.argsort(piece.taken, kind="stable")
        begin = np.searchsorted(piece.taken[order], rows, side="left")
        count = np.searchsorted(piece.taken[order], rows, side="right") - begin
        entry = np.repeat(np.arange(len(rows)), count)
        within = np.arange(len(entry)) - np.repeat(np.cumsum(count) - count, count)
        row = piece.into[order][begin[entry] + within]
        column, weight, delay = column[entry], weight[entry], delay[entry]
        order = np.lexsort((column, row))
        row, column, weight, delay = row[order], column[order], weight[order], delay[order]
        place = row.astype(np.int64) * columns + column
        fresh = np.ones(len(place), bool)
        fresh[1:] = place[1:] != place[:-1]
        first = np.nonzero(fresh)[0]
        turn = np.arange(len(place)) - np.repeat(first, np.diff([*first, len(place)]))
        for number in range(int(turn.max(initial=0)) + 1):
            chosen = turn == number
            waits = delay[chosen] + wait
            yield Synapse(
                self._name(node, operand.origin),
                node,
                operand.origin,
                size,
                columns,
                weight[chosen],
                _short(waits) if len(waits) else 0,
                column[chosen].astype(np.int32),
                np.searchsorted(row[chosen], np.arange(size + 1)).astype(np.int32),
                bits=bits,
                stored=self._stored(node, weight[chosen]),
            )

    def _name(self, node: Node, source: str) -> str:
        """The node's own name; where one node becomes several synapses, with the source's or a number."""
        name, number = node.name, 1
        while name in self._names or (name in self.graph and name != node.name):
            name = f"{node.name}_from_{source}" + (f"_{number}" if number > 1 else "")
            number += 1
        self._names.add(name)
        return name

    # Checks of the whole ---------------------------------------------------------------------------------------------

    def _widths(self) -> None:
        """Lava's int32 must hold what the program's unbounded integers hold; a generated process computes in 64 bits itself."""
        if self.plan.problems:
            return
        found = self.ranges

        def small(node: Neuron, what: str, interval: tuple[int, int], limit: int) -> None:
            low, high = interval
            if max(-low - 1, high) >= limit:
                message = f"{what} can reach {low} to {high}, which Lava's arithmetic does not hold"
                self.problem(node, message, "smaller weights or fewer connections")

        for node in self.graph.neurons:
            process = self.plan.populations[node.name].process
            made = bool(process.program or process.exact)
            for ref, name in zip(node.inputs, node.program.inputs, strict=True):
                if not (made and _modular(node.program, name)):
                    small(node, "its input", found.wires[ref.node, ref.port], MOST_STATE if made else MOST_INPUT)
            for state, (low, high) in found.neurons[node.name].states.items():
                small(node, f"its state {state}", (low + made, high), 1 << 31 if made else MOST_STATE)
            for index, emit in enumerate(node.program.emits):
                if process.program:
                    low, high = found.wires[node.name, emit.name if index else ""]
                    small(node, emit.name, (low + 1, high), 1 << 31)

    def _starts(self) -> None:
        """A population that starts late must get nothing before: only then is it silent without its bias."""
        for node in self.graph.neurons:
            if node.name not in self.plan.populations or not self.plan.populations[node.name].start:
                continue
            for name in self.plan.populations[node.name].synapses:
                synapse = self.plan.synapses.get(name)
                if synapse is None:
                    self.problem(node, f"starts at step {node.start}, and the input %{name} is there before")
                    continue
                if not synapse.connections:
                    continue
                source = self.graph[synapse.source]
                sends = max(getattr(source, "start", 0), source.lag)
                waits = synapse.delay if isinstance(synapse.delay, int) else synapse.delay[synapse.weight != 0]
                if sends + 1 + int(np.min(waits)) < node.start:
                    self.problem(node, f"starts at step {node.start}, and spikes of %{source.name} arrive before")


def _modular(program: Program, name: str) -> bool:
    """Whether an input matters only modulo 2^32, where the sums of Lava wrap: it enters `wrap` by sums alone."""

    def outside(expr: Expr) -> bool:
        """Whether the input stands anywhere else."""
        if isinstance(expr, Call) and expr.op == "wrap" and isinstance(expr.args[1], Num) and expr.args[1].value <= 32:
            return not summed(expr.args[0])
        return any(map(outside, expr.args)) if isinstance(expr, Call) else expr == Var(name)

    def summed(expr: Expr) -> bool:
        if isinstance(expr, Call) and expr.op in ("+", "-", "neg"):
            return all(map(summed, expr.args))
        return not outside(expr) or expr == Var(name)

    return not any(outside(statement.expr) for statement in program.body)


def _native_process(node: Neuron, native: NativeNeuron) -> Process:
    """One of Lava's own."""
    implementation = native.implementation
    return Process(
        implementation["module"],
        implementation["process"],
        implementation.get("inputs", dict.fromkeys(node.program.inputs, "a_in")),
        {node.program.emits[0].name: "s_out", **implementation.get("outputs", {})},
        implementation["states"],
        begins=tuple(implementation.get("begins", ())),
        builder=implementation.get("builder", ""),
        divided=implementation.get("divided", {}),
        named=not implementation.get("unnamed", False),
        exact="wrap" in node.program.operations(),
    )


def _per_neuron(value: Array, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(spread(value, shape), shape).reshape(-1)


def _moved(array: Array, piece: Piece, operand: Piece, size: int, columns: int) -> Array:
    """A matrix with its rows and columns in their places; the same array where all of them are there already."""
    same = [
        len(a) == n and np.array_equal(a, np.arange(n))
        for a, n in ((piece.into, size), (piece.taken, size), (operand.taken, columns), (operand.into, columns))
    ]
    if all(same) and array.shape == (size, columns):
        return array
    result = np.zeros((size, columns), array.dtype)
    result[np.ix_(piece.into, operand.taken)] = array[np.ix_(piece.taken, operand.into)]
    return result


def _every(*arrays: Array) -> bool:
    """Whether each array counts from 0 without a gap."""
    return all(np.array_equal(array, np.arange(len(array))) for array in arrays)


def _short(array: Array) -> int | Array:
    """One number where all are equal, else the array."""
    first = int(array.flat[0])
    return first if np.all(array == first) else np.ascontiguousarray(array, np.int64)


def identifiers(names: list[str], reserved: set[str]) -> dict[str, str]:
    """A Python variable for every name; names are words, but `in` and `2nd` are not variables."""
    table: dict[str, str] = {}
    for name in names:
        variable = name if name.isidentifier() else f"n{name}"
        while keyword.iskeyword(variable) or variable in reserved or variable in table.values():
            variable += "_"
        table[name] = variable
    return table


def require_plan(graph: Graph, target: Target) -> Plan:
    """The plan, or CompileError with everything that is wrong."""
    plan = make_plan(graph, target)
    if plan.problems:
        raise CompileError.many(plan.problems)
    return plan
