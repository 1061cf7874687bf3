"""From a network of activations to one of spiking neurons, with what that costs.

An activation ReLU(a) becomes an integrate-and-fire neuron: v += a; where v reaches the threshold it fires and v loses it. After T
steps of the same input it has fired about T ReLU(a) / theta times, so that a spike stands for theta, which the weights behind it
take in. theta is a percentile of the layer's positive activations on calibration data: larger ones saturate, and too high a
threshold needs more steps (Diehl et al. 2015, Rueckauer et al. 2017). v begins at theta / 2, which centres the rounding error
(Bu et al. 2022). Layers without an activation stay what they are: linear, once a step.

A maximum pool of spikes counts them: the greatest count of a window is what the pool has let through, so that it adds no error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import Interpreter
from spikec.ir.neuron import Call, Expr, Num, Var, substitute
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Node, Pool, Ref, Reshape, Scale, Sparse, spread
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.passes.rewrite import fresh_name, redirect_outputs

#: Samples that run side by side.
CHUNK: Final = 32
#: Activations of at most so many samples set the thresholds.
MOST_BALANCED: Final = 1024
CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "fire": ("single", "multi"),
    "reset": ("subtract", "zero"),
    "readout": ("membrane", "count", "current"),
}
_FIRE: Final = {
    ("single", "subtract"): """neuron @integrate_fire(a) params(theta) state(v = 0) {
  v = v + a
  s = v >= theta
  v = select(s, v - theta, v)
  emit s
}""",
    ("single", "zero"): """neuron @integrate_fire_zero(a) params(theta) state(v = 0) {
  v = v + a
  s = v > theta
  v = select(s, 0, v)
  emit s
}""",
    ("multi", "subtract"): """neuron @integrate_fire_multi(a) params(theta) state(v = 0) {
  v = v + a
  n = max(floor(v / theta), 0)
  v = v - n * theta
  emit n: graded
}""",
}
_MEMBRANE: Final = """neuron @integrate(a) state(v = 0) {
  v = v + a
  emit v
}"""
_COUNT: Final = """neuron @count(a) state(c = 0) {
  c = c + a
  emit c
}"""
_RISE: Final = """neuron @rise(c) state(top = 0) {
  s = c > top
  top = max(top, c)
  emit s
}"""
_GROWTH: Final = """neuron @growth(c) state(top = 0) {
  d = max(c - top, 0)
  top = max(top, c)
  emit d: graded
}"""


@dataclass(frozen=True)
class Activation:
    """max(x, 0), cut off at `high` where that is not None."""

    high: float | None


@dataclass(frozen=True)
class AnnToSnn:
    """Every ReLU becomes a population of integrate-and-fire neurons. Float level; approximate, and measured layer by layer.

    calibrate: (samples, T, *shape) by input name; the activations are those of the mean over T. labels: (samples,), or
    (samples, T), of which the last counts.
    percentile: of the positive activations of a layer, its threshold. fire: "single" spike a step, or "multi"ple. reset: "subtract"
    the threshold or to "zero". initial: of the membrane, as a part of the threshold. readout of an output that is no activation:
    "membrane" sums it up over the steps, "count" gives it spikes, "current" leaves it as it is at every step. measured: how many
    samples are run to measure.
    """

    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    percentile: float = 99.9
    fire: str = "single"
    reset: str = "subtract"
    initial: float = 0.5
    readout: str = "membrane"
    measured: int = 32
    name: ClassVar[str] = "ann-to-snn"
    levels: ClassVar[tuple[str, ...]] = ("float",)

    def __post_init__(self) -> None:
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise CompileError("SPK001", f"{key} is {' or '.join(choices)}, not {getattr(self, key)!r}")
        if (self.fire, self.reset) not in _FIRE:
            raise CompileError("SPK001", "a neuron that fires several times a step resets by subtraction", fix="leave reset out")
        if not 0 < self.percentile <= 100:
            raise CompileError("SPK001", f"percentile is above 0 and at most 100, not {self.percentile}")
        if not 0 <= self.initial < 1:
            raise CompileError("SPK001", f"initial is a part of the threshold, at least 0 and below 1, not {self.initial}")
        if self.measured < 1:
            raise CompileError("SPK001", f"measured is at least 1, not {self.measured}")

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The spiking network. Raises CompileError SPK001 without calibration data, SPK220 with everything that is in the way."""
        if self.calibrate is None:
            raise CompileError(
                "SPK001",
                "making a network of activations spike needs calibration data: its thresholds are balanced on them",
                fix="give typical inputs: --calibrate frames.npz, calibrate=frames; or keep the activations: --no-spiking",
            )
        graph = _plain_activations(graph, ledger)
        if obstacles := list(_obstacles(graph)):
            raise CompileError.many(obstacles)
        graph = _activations_before_pools(graph, ledger)
        layers = {node.name: found for node in graph.neurons if (found := activation(node)) is not None}
        outputs = [(name, ref) for name, ref in graph.outputs if ref.node not in layers]
        frames = {name: _mean(data[:MOST_BALANCED]) for name, data in self.calibrate.items()}
        wires = [*((name, "") for name in layers), *dict.fromkeys((ref.node, ref.port) for _, ref in outputs)]
        seen = _activations(graph, frames, wires)
        thresholds = {wire[0]: self._threshold(seen[wire], layers.get(wire[0])) for wire in wires}
        build = _Build(graph, self, layers, thresholds)
        result = verify(build.graph())
        self._tell(result, build, ledger, len(next(iter(frames.values()))) if frames else 0)
        self._measure(result, build, seen, ledger)
        return result

    def _threshold(self, values: Array, layer: Activation | None) -> float:
        positive = values[values > 0]
        found = float(np.percentile(positive, self.percentile)) if positive.size else 1.0
        found = min(found, layer.high) if layer is not None and layer.high is not None else found
        return float(np.float32(found))  # as the neurons have it

    def _tell(self, graph: Graph, build: _Build, ledger: Ledger, samples: int) -> None:
        spikes = "a spike" if self.fire == "single" else "any number of spikes"
        reset = "by subtraction" if self.reset == "subtract" else "to zero"
        convention = (
            f"activations became integrate-and-fire neurons: {spikes} a step, reset {reset}, v begins at {self.initial:g} of the "
            f"threshold, which is the {self.percentile:g}th percentile of the positive activations of {samples} samples"
        )
        ledger.record("", "convention", convention)
        for name, _ in graph.outputs:
            ledger.record("", "convention", f"the output {name} {build.meaning[name]}")

    def _measure(self, graph: Graph, build: _Build, seen: Mapping[tuple[str, str], Array], ledger: Ledger) -> None:
        assert self.calibrate is not None
        count = min(self.measured, min((len(data) for data in self.calibrate.values()), default=0))
        data = {name: array[:count] for name, array in self.calibrate.items()}
        steps = min((array.shape[1] for array in data.values()), default=0)
        first = graph.outputs[0][0] if graph.outputs else ""
        marks = [mark for mark in sorted({1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, steps}) if mark <= steps]
        counts, curve = _run_spiking(graph, data, list(build.layers), first, marks)
        for name, layer in build.layers.items():
            wanted = seen[name, ""][:count]
            theta = build.thresholds[name]
            norm = float(np.linalg.norm(wanted))
            over = int((wanted > theta).sum())
            figures = {
                "relative error": float(np.linalg.norm(counts[name] * (theta / steps) - wanted)) / norm if norm else 0.0,
                "threshold": theta,
                "spikes a neuron and step": float(counts[name].mean()) / steps,
            }
            what = f"rates instead of activations, {steps} steps, {count} samples; saturated activations"
            if self.fire == "multi" and layer.high is None:
                what, over = what.replace("saturated activations", "no activation saturates"), 0
            if layer.high is not None:
                what += f" (the activation itself ends at {layer.high:g})"
            largest = float(max(wanted.max(initial=0.0) - theta, 0.0)) if over else 0.0
            ledger.record(
                graph[name],
                "approximation",
                what,
                changed=over,
                total=wanted.size,
                largest=largest,
                asked="spiking",
                measured=figures,
            )
        if not first:
            return
        output = next(ref for name, ref in build.before.outputs if name == first)
        wanted = seen[output.node, output.port][:count]
        if output.node not in build.layers:
            difference = curve[steps] * (build.worth[first] / steps) - wanted
            error = float(np.linalg.norm(difference)) / (float(np.linalg.norm(wanted)) or 1.0)
            what = f"the output {first} against that of the activations, {steps} steps, {count} samples"
            ledger.record("", "approximation", what, asked="spiking", measured={"relative error": error})
        if self.labels is None:
            return
        labels = np.asarray(self.labels)[:count]
        labels = labels[:, -1] if labels.ndim == 2 else labels
        exact = _accuracy(wanted, labels)
        scores = {f"after {mark} steps": _accuracy(curve[mark], labels) for mark in marks}
        what = f"accuracy of the output {first} on {count} samples"
        figures = {"with activations": exact, **scores}
        ledger.record("", "approximation", what, asked="spiking", measured=figures)


# ------------------------------------------------------------------------------------------------------------ activations


def activation(node: Neuron) -> Activation | None:
    """What a population without state computes, if that is a ReLU of its one input; None for anything else."""
    found = _rectified(node)
    return found[1] if found is not None and found[0] == Var(node.program.inputs[0]) and len(node.program.inputs) == 1 else None


def _rectified(node: Neuron) -> tuple[Expr, Activation] | None:
    """The argument of the ReLU that a population without state computes."""
    program = node.program
    if program.states or not program.inputs or len(program.emits) != 1:
        return None
    known: dict[str, Expr] = {key: Num(array.item()) for key, array in node.params.items() if array.size == 1}
    for statement in program.body:
        known[statement.name] = substitute(statement.expr, known)
    return _relu(known.get(program.emits[0].name))


def _relu(expr: Expr | None) -> tuple[Expr, Activation] | None:
    if not isinstance(expr, Call):
        return None
    if expr.op == "select" and expr.args[2] == Num(0):
        kept = expr.args[1]
        positive = expr.args[0] in (Call(">", (kept, Num(0))), Call(">=", (kept, Num(0))))
        return (kept, Activation(None)) if positive else None
    numbers = [arg.value for arg in expr.args if isinstance(arg, Num)]
    others = [arg for arg in expr.args if not isinstance(arg, Num)]
    if len(numbers) != 1 or len(others) != 1 or expr.op not in ("min", "max"):
        return None
    (number,), (other,) = numbers, others
    if expr.op == "max" and number == 0:
        if not isinstance(other, Call) or other.op != "min" or (high := _number(other)) is None:
            return other, Activation(None)
        inside = next(arg for arg in other.args if not isinstance(arg, Num))
        return (inside, Activation(high)) if high > 0 else None
    if expr.op == "min" and number > 0 and (inner := _relu(other)) is not None:
        high = min(float(number), np.inf if inner[1].high is None else inner[1].high)
        return inner[0], Activation(high if np.isfinite(high) else None)
    return None


def _number(expr: Call) -> float | None:
    """The one number among the operands."""
    numbers = [float(arg.value) for arg in expr.args if isinstance(arg, Num)]
    return numbers[0] if len(numbers) == 1 else None


Linear = dict[str, Array]


def _linear(expr: Expr, values: Mapping[str, Array | None]) -> Linear | None:
    """An expression as a sum of inputs times numbers, and under "" a number; None if it is none. `values` has None for inputs."""
    if isinstance(expr, Num):
        return {"": np.asarray(float(expr.value))}
    if isinstance(expr, Var):
        if expr.name not in values:
            return None
        known = values[expr.name]
        return {expr.name: np.ones(())} if known is None else {"": known}
    assert isinstance(expr, Call)
    parts = [_linear(arg, values) for arg in expr.args]
    if any(part is None for part in parts) or expr.op not in ("+", "-", "*", "/", "neg"):
        return None
    first, *rest = [part for part in parts if part is not None]
    if expr.op == "neg":
        return {name: -factor for name, factor in first.items()}
    (second,) = rest
    if expr.op in ("+", "-"):
        sign = 1 if expr.op == "+" else -1
        return {name: first.get(name, np.zeros(())) + sign * second.get(name, np.zeros(())) for name in {**first, **second}}
    if set(second) != {""}:
        first, second = (second, first) if expr.op == "*" else (first, second)
    if set(second) != {""}:
        return None
    with np.errstate(all="ignore"):
        return {name: factor * second[""] if expr.op == "*" else factor / second[""] for name, factor in first.items()}


def _plain_activations(graph: Graph, ledger: Ledger) -> Graph:
    """A ReLU of a sum, as a tracer makes one of `relu(a + b)`, becomes a sum and a ReLU."""
    nodes: list[Node] = []
    taken = set(graph.by_name)
    for node in graph.nodes:
        found = _rectified(node) if isinstance(node, Neuron) and activation(node) is None else None
        if found is None or not isinstance(node, Neuron) or any(ref.delay for ref in node.inputs):
            nodes.append(node)
            continue
        shape = graph.shape_of(node.name)
        values: dict[str, Array | None] = {key: spread(array, shape) for key, array in node.params.items()}
        linear = _linear(found[0], {**values, **dict.fromkeys(node.program.inputs)})
        if linear is None:
            nodes.append(node)
            continue
        refs = []
        for name, ref in zip(node.program.inputs, node.inputs, strict=True):
            factor = linear.pop(name, np.zeros(()))
            if np.any(factor != 1):
                made = fresh_name(taken, f"{node.name}_{name}")
                nodes.append(Scale(name=made, inputs=(ref,), factor=_parameter(factor, shape), loc=node.loc))
                ref = Ref(made)
            refs.append(ref)
        if len(refs) > 1:
            made = fresh_name(taken, f"{node.name}_sum")
            nodes.append(Add(name=made, inputs=tuple(refs), loc=node.loc))
            refs = [Ref(made)]
        if "" in linear:
            made = fresh_name(taken, f"{node.name}_shift")
            nodes.append(
                Scale(
                    name=made,
                    inputs=tuple(refs),
                    factor=np.ones((), np.float32),
                    offset=_parameter(linear[""], shape),
                    loc=node.loc,
                )
            )
            refs = [Ref(made)]
        high = found[1].high
        text = "y = max(x, 0)" if high is None else f"y = min(max(x, 0), {high!r})"
        program = parse_program(f"neuron @{'relu' if high is None else 'clipped_relu'}(x) {{ {text} emit y }}")
        nodes.append(Neuron(name=node.name, inputs=tuple(refs), program=program, loc=node.loc))
        ledger.record(node, "exact", "a ReLU of a sum became a sum and a ReLU")
    return graph.with_nodes(nodes)


def _parameter(array: Array, shape: tuple[int, ...]) -> Array:
    """One number, or one for each element."""
    return np.asarray(array if array.size == 1 else np.broadcast_to(array, shape), np.float32).reshape(
        () if array.size == 1 else shape
    )


def is_ann(graph: Graph) -> bool:
    """Whether a float graph has activations and nothing that keeps a state."""
    stateful = any(node.program.states for node in graph.neurons)
    return graph.level == "float" and bool(graph.neurons) and not stateful


def _obstacles(graph: Graph) -> Iterator[Diagnostic]:
    """Everything that has no spiking counterpart."""
    for node in graph.nodes:
        if any(ref.delay for ref in node.inputs) or getattr(node, "delay", None) is not None:
            yield Diagnostic(
                "SPK220", f"%{node.name}: reads an earlier step; only feed-forward networks are converted", loc=node.loc
            )
        elif isinstance(node, Neuron) and node.program.states:
            yield Diagnostic("SPK220", f"%{node.name}: @{node.program.name} has a state: the network spikes already", loc=node.loc)
        elif isinstance(node, Neuron) and activation(node) is None:
            yield Diagnostic(
                "SPK220",
                f"%{node.name}: the activation @{node.program.name} is not ReLU; rates are at least 0 and rise in proportion",
                loc=node.loc,
                fix="train with ReLU (or clip at 0 and a number above it), or keep the activations: --no-spiking",
            )
        elif isinstance(node, Pool) and node.mode == "max" and not _nonnegative(graph, node.inputs[0]):
            readers = [user for user, _ in graph.users[node.name]]
            if not (len(readers) == 1 and isinstance(readers[0], Neuron) and activation(readers[0]) is not None):
                yield Diagnostic(
                    "SPK220",
                    f"%{node.name}: the maximum of numbers that may be negative and change from step to step",
                    loc=node.loc,
                    fix="put the pool behind a ReLU, or use an average pool",
                )


def _nonnegative(graph: Graph, ref: Ref) -> bool:
    """Whether a wire carries activations, or the input itself, as a maximum pool needs it."""
    node = graph[ref.node]
    if isinstance(node, (Input, Constant, Neuron)):
        return True
    if isinstance(node, (Pool, Reshape, Gather, Concat)):
        return all(_nonnegative(graph, operand) for operand in node.inputs)
    return False


def _activations_before_pools(graph: Graph, ledger: Ledger) -> Graph:
    """ReLU of a maximum is the maximum of ReLUs: neurons come first, so that the pool sees spikes."""
    for neuron in graph.neurons:
        pool = graph[neuron.inputs[0].node]
        if not isinstance(pool, Pool) or pool.mode != "max" or _nonnegative(graph, pool.inputs[0]):
            continue
        ledger.record(neuron, "exact", f"moved before the maximum pool %{pool.name}")
        first = replace(neuron, inputs=pool.inputs)
        second = replace(pool, inputs=(Ref(neuron.name),))
        moved = {(neuron.name, ""): Ref(pool.name)}
        nodes: list[Node] = []
        for node in graph.nodes:
            if node is pool:
                nodes += [first, second]
            elif node is not neuron:
                inputs = tuple(Ref(pool.name) if ref.node == neuron.name else ref for ref in node.inputs)
                nodes.append(node if inputs == node.inputs else replace(node, inputs=inputs))
        graph = graph.with_nodes(nodes, redirect_outputs(graph.outputs, moved))
    return graph


# ---------------------------------------------------------------------------------------------------------- the rewriting


class _Build:
    """Walks the graph in order. `factor` is what a number on a wire stands for, and is waiting to be taken in by weights."""

    def __init__(self, graph: Graph, options: AnnToSnn, layers: Mapping[str, Activation], thresholds: Mapping[str, float]) -> None:
        self.before, self.options, self.layers, self.thresholds = graph, options, layers, thresholds
        self.nodes: list[Node] = []
        self.taken = set(graph.by_name)
        self.factor: dict[str, Array] = {}
        self.spiking: set[str] = set()
        #: Wires that are the same at every step of a constant frame.
        self.constant: set[str] = set()
        self.meaning: dict[str, str] = {}
        #: By output, what its sum over the steps is to be multiplied with.
        self.worth: dict[str, float] = {}

    def graph(self) -> Graph:
        for node in self.before.order:
            self._convert(node)
        outputs = [(name, self._output(name, ref)) for name, ref in self.before.outputs]
        return self.before.with_nodes(self.nodes, outputs)

    def _add(self, node: Node, factor: Any = 1.0, spiking: bool = False) -> None:
        self.nodes.append(node)
        self.factor[node.name] = np.asarray(factor, np.float64)
        if spiking:
            self.spiking.add(node.name)

    def _fire(self, name: str, ref: Ref, theta: float, like: Node, layer: Activation | None) -> Neuron:
        options = self.options
        # An activation with an end is one that a single spike a step cannot exceed.
        fire = "single" if layer is not None and layer.high is not None else options.fire
        program = parse_program(_FIRE[fire, options.reset])
        params = {"theta": np.asarray(theta, np.float32)}
        init = {"v": np.asarray(theta * options.initial, np.float32)} if options.initial else {}
        return Neuron(name=name, inputs=(ref,), program=program, params=params, init=init, loc=like.loc)

    def _convert(self, node: Node) -> None:
        if isinstance(node, Neuron):
            (ref,) = self._whole(node)
            spike = self._fire(node.name, ref, self.thresholds[node.name], node, self.layers[node.name])
            self._add(spike, self.thresholds[node.name], spiking="spike" in {emit.kind for emit in spike.program.emits})
            return
        if all(ref.node in self.constant for ref in node.inputs):
            self.constant.add(node.name)
            self._add(node)
            return
        if isinstance(node, (Dense, Sparse, Conv)):
            self._weighted(node)
        elif isinstance(node, Pool) and node.mode == "max":
            self._max_pool(node)
        elif isinstance(node, (Pool, Reshape, Gather, Concat)):
            self._layout(node)
        elif isinstance(node, Add):
            factors = [self.factor[ref.node] for ref in node.inputs]
            if all(np.array_equal(factor, factors[0]) for factor in factors):
                self._add(node, factors[0])
            else:
                self._add(replace(node, inputs=self._whole(node)))
        else:
            self._add(replace(node, inputs=self._whole(node)))

    def _whole(self, node: Node) -> tuple[Ref, ...]:
        """The operands with their factors applied."""
        return tuple(self._scaled(ref, node) for ref in node.inputs)

    def _scaled(self, ref: Ref, like: Node) -> Ref:
        factor = self.factor[ref.node]
        if np.all(factor == 1):
            return ref
        name = fresh_name(self.taken, f"{ref.node}_scaled")
        array = factor if factor.ndim else factor.reshape(())
        self._add(Scale(name=name, inputs=(ref,), factor=array.astype(np.float32), loc=like.loc))
        return Ref(name)

    def _weighted(self, node: Dense | Sparse | Conv) -> None:
        (ref,) = node.inputs
        factor = self.factor[ref.node]
        taken = _into_weights(node, factor)
        if taken is None:
            self._add(replace(node, inputs=self._whole(node)))
        else:
            self._add(replace(node, weight=taken))

    def _layout(self, node: Node) -> None:
        """Nodes that move numbers about: the factors move along; an average or a sum needs one factor a channel."""
        factors = [self.factor[ref.node] for ref in node.inputs]
        spiking = not isinstance(node, Pool) and all(ref.node in self.spiking for ref in node.inputs)
        if all(factor.ndim == 0 and factor == factors[0] for factor in factors):
            self._add(node, factors[0], spiking)
            return
        spread_out = [np.broadcast_to(f, self.before.shape_of(r.node)) for f, r in zip(factors, node.inputs, strict=True)]
        moved: Array | None
        if isinstance(node, Concat):
            moved = np.concatenate(spread_out, axis=node.axis)
        elif isinstance(node, Reshape):
            moved = spread_out[0].reshape(node.shape)
        elif isinstance(node, Gather):
            moved = spread_out[0].ravel()[node.indices]
        else:
            moved = self._per_channel(spread_out[0], node)
        if moved is None:
            self._add(replace(node, inputs=self._whole(node)))
        else:
            self._add(node, moved, spiking)

    def _per_channel(self, factor: Array, node: Node) -> Array | None:
        """The factors behind a pool, or None where they differ within a channel."""
        flat = factor.reshape(len(factor), -1)
        if not (flat == flat[:, :1]).all():
            return None
        shape = self.before.shape_of(node.name)
        return np.broadcast_to(flat[:, 0].reshape(-1, *(1,) * (len(shape) - 1)), shape)

    def _max_pool(self, node: Pool) -> None:
        (ref,) = node.inputs
        factor = self.factor[ref.node]
        if factor.ndim:
            behind = self._per_channel(factor, node)
            (ref,), factor = (node.inputs, behind) if behind is not None else (self._whole(node), np.ones(()))
        counts = Neuron(
            name=fresh_name(self.taken, f"{node.name}_counts"), inputs=(ref,), program=parse_program(_COUNT), loc=node.loc
        )
        largest = replace(node, name=fresh_name(self.taken, f"{node.name}_largest"), inputs=(Ref(counts.name),))
        spiking = ref.node in self.spiking
        program = parse_program(_RISE if spiking else _GROWTH)
        self._add(counts)
        self._add(largest)
        self._add(Neuron(name=node.name, inputs=(Ref(largest.name),), program=program, loc=node.loc), factor, spiking)

    def _output(self, name: str, ref: Ref) -> Ref:
        node = self.before[ref.node]
        factor = self.factor[ref.node]
        self.worth[name] = 1.0
        if ref.node in self.layers or (ref.node in self.spiking and factor.ndim == 0):
            self.meaning[name] = (
                f"is spikes, each worth {float(factor):.6g}: their number times that, over the steps, is the activation"
            )
            self.worth[name] = float(factor)
            return ref
        ref = self._scaled(ref, node)
        if self.options.readout == "current":
            self.meaning[name] = "is what arrives at every step; its mean over the steps is the network's output"
            return ref
        if self.options.readout == "count":
            theta = self.thresholds[node.name]
            self.meaning[name] = f"is spikes, each worth {theta:.6g}; what is negative is silent"
            self.worth[name] = theta
            made: Node = self._fire(fresh_name(self.taken, f"{name.replace('.', '_')}_spikes"), ref, theta, node, None)
        else:
            self.meaning[name] = "is a membrane that sums up over the steps; divided by their number it is the network's output"
            label = fresh_name(self.taken, f"{name.replace('.', '_')}_membrane")
            made = Neuron(name=label, inputs=(ref,), program=parse_program(_MEMBRANE), loc=node.loc)
        self._add(made)
        return Ref(made.name)


def _into_weights(node: Dense | Sparse | Conv, factor: Array) -> Array | None:
    """The weights times what their inputs stand for, or None where that differs within a channel."""
    weight = node.weight.astype(np.float64)
    dtype = node.weight.dtype if node.weight.dtype.kind == "f" else np.dtype(np.float32)
    if factor.ndim == 0:
        return np.asarray(weight * factor).astype(dtype) if factor != 1 else node.weight
    if isinstance(node, Conv):
        flat = factor.reshape(len(factor), -1)
        if not (flat == flat[:, :1]).all():
            return None
        per_group = weight.shape[1]
        group = np.arange(weight.shape[0]) // (weight.shape[0] // node.groups)
        channel = flat[:, 0][group[:, None] * per_group + np.arange(per_group)]
        return np.asarray(weight * channel.reshape(*channel.shape, *(1,) * (weight.ndim - 2))).astype(dtype)
    if factor.ndim > 1 and not (factor.reshape(-1, factor.shape[-1]) == factor.reshape(-1, factor.shape[-1])[:1]).all():
        return None
    last = factor.reshape(-1, factor.shape[-1])[0]
    return np.asarray(weight * (last[node.indices] if isinstance(node, Sparse) else last)).astype(dtype)


# --------------------------------------------------------------------------------------------------------------- running


def _mean(data: Array) -> Array:
    """(samples, *shape): the frame that is fed at every step, or the mean over time of what is not constant."""
    first = data[:, 0]
    if data.shape[1] == 1 or data.strides[1] == 0 or (data == data[:, :1]).all():
        return first
    return np.asarray(data.mean(axis=1, dtype=np.float64).astype(data.dtype))


def _activations(graph: Graph, frames: Mapping[str, Array], wires: list[tuple[str, str]]) -> dict[tuple[str, str], Array]:
    """What the network computes on frames (samples, *shape), by wire."""
    samples = min((len(frame) for frame in frames.values()), default=1)
    parts: dict[tuple[str, str], list[Array]] = {wire: [] for wire in wires}
    for begin in range(0, samples, CHUNK):
        part = {name: frame[begin : begin + CHUNK] for name, frame in frames.items()}
        now = Interpreter(graph, min(CHUNK, samples - begin)).step(part)
        for wire in wires:
            parts[wire].append(now[wire])
    return {wire: np.concatenate(part) for wire, part in parts.items()}


def _run_spiking(
    graph: Graph, data: Mapping[str, Array], layers: list[str], output: str, marks: list[int]
) -> tuple[dict[str, Array], dict[int, Array]]:
    """How often every neuron fired, and the output after so many steps: the sum of spikes or currents, or the membrane."""
    samples = min((len(array) for array in data.values()), default=0)
    steps = marks[-1] if marks else 0
    parts: dict[str, list[Array]] = {name: [] for name in layers}
    curve: dict[int, list[Array]] = {mark: [] for mark in marks}
    wire = graph.output(output) if output else None
    level = wire is not None and isinstance(node := graph[wire.node], Neuron) and node.program.name == parse_program(_MEMBRANE).name
    for begin in range(0, samples, CHUNK):
        machine = Interpreter(graph, min(CHUNK, samples - begin))
        counts: dict[str, Any] = dict.fromkeys(layers, 0)
        total: Any = 0
        for t in range(steps):
            now = machine.step({name: array[begin : begin + CHUNK, t] for name, array in data.items()})
            for name in layers:
                counts[name] = counts[name] + now[name, ""]
            if wire is not None:
                total = now[wire.node, wire.port] if level else total + now[wire.node, wire.port]
            if t + 1 in curve:
                curve[t + 1].append(np.asarray(total))
        for name in layers:
            parts[name].append(np.asarray(counts[name]))
    empty = {name: np.zeros((0, *graph.shape_of(name))) for name in layers}
    return (
        {name: np.concatenate(part) if part else empty[name] for name, part in parts.items()},
        {mark: np.concatenate(part) for mark, part in curve.items() if part},
    )


def _accuracy(scores: Array, labels: Array) -> float:
    """Share of samples whose greatest score is that of the label; labels below 0 do not count."""
    right, counted = scores.reshape(len(scores), -1).argmax(axis=1) == labels, labels >= 0
    return float(right[counted].mean()) if counted.any() else 0.0
