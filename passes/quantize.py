"""From trained floats to the target's integers: weights, thresholds, decays and biases (loihi2.md 8.3).

All weights that reach a population, its threshold and its bias share one scale S, because the target shifts both the synaptic
sum and the threshold by the same number of bits: W = step * round(S w / step), vth = round(S theta), bias = round(2^shift S b).
S is a power of two where that makes everything exact; otherwise it is searched for on the calibration data, by the spikes that
change, a little beyond the scale at which the largest weight is clipped; without data it is the largest that clips nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.headroom import head_room
from spikec.inputs import recode
from spikec.ir.bounds import bounds_of
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret, record_name
from spikec.ir.neuron import Emit, Program
from spikec.ir.ops import Add, Constant, Conv, Dense, Input, Neuron, Node, Ref, Reshape, Sparse, spread
from spikec.ir.ranges import graph_ranges
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType
from spikec.ledger import Ledger
from spikec.native import begun
from spikec.passes.groups import WEIGHTED, Group, groups_of, measure, silent_value, spread_bias, with_bias
from spikec.passes.payloads import Payload, as_integers, by_range, carrying, check_options, choose, real_inputs, tell, worst_sum
from spikec.passes.rewrite import fresh_name
from spikec.passes.translate import Widths, largest_amount, translate
from spikec.passes.units import infer_units
from spikec.target import NativeNeuron, Target

#: Candidate scales, as multiples of the largest that clips no weight.
CANDIDATES = (1.0, 0.98, 1.02, 0.95, 1.05, 0.92, 1.1, 0.88, 1.16, 0.84, 1.25, 0.8, 1.4, 1.6)
LEGAL_BITS = (1, 2, 3, 4, 5, 6, 8)
#: At most so many calibration samples are used for the search.
SEARCH_SAMPLES = 96
#: For each payload that is tried, fewer.
TRIAL_SAMPLES = 24


@dataclass(frozen=True)
class Quantize:
    """Float patterns to fixed native programs. Takes the float level (legalised), gives the fixed level; approximate.

    bits: width of a weight, 8 by default and out of the target's legal set. calibrate: (samples, T, *shape) by input name.
    labels: (samples,), to measure the accuracy by spike count of the first output. scales: by layer, a scale that is to be kept,
    the one for which the weights were trained. input_bits: of a payload, where inputs hold real numbers (by default as many as
    change the fewest spikes); input_max: the largest magnitude of such inputs, where there are no calibration data to tell it.
    """

    target: Target
    bits: int | None = None
    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    scales: Mapping[str, float] | None = None
    input_bits: int | None = None
    input_max: float | None = None
    name: ClassVar[str] = "quantize"
    levels: ClassVar[tuple[str, ...]] = ("float",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """A graph of integers. Raises CompileError SPK203 with everything that exceeds the target's range."""
        if self.bits is not None and self.bits not in LEGAL_BITS:
            raise CompileError(
                "SPK001", f"{self.bits} bits: {self.target.name} has weights of {', '.join(map(str, LEGAL_BITS))} bits"
            )
        given, calibrate = graph, self.calibrate
        payloads = self._payloads(graph, ledger)
        if payloads:
            graph = carrying(graph, payloads)
            calibrate = self._carried(payloads)
        graph = self._biases(graph, ledger)
        problems = [problem for node in graph.neurons for problem in self._legal(node)]
        if problems:
            raise CompileError.many(problems)
        records = _float_run(graph, calibrate)
        converted: dict[str, Node] = {}
        for group in groups_of(graph):
            scale = self._scale(group, graph, records, payloads)
            for node in self._convert(group.nodes, graph, scale, records, ledger):
                converted[node.name] = node
            sums = {node.name for node in group.nodes if not isinstance(node, Neuron)}
            for output in (name for name, ref in graph.outputs if ref.node in sums):
                ledger.record("", "convention", f"the output {output} is in units of {1 / scale:.6g}")
        nodes = [converted.get(node.name) or _other(node, payloads) for node in graph.nodes]
        result = graph.with_nodes(nodes, level="fixed")
        try:
            verify(result)
        except CompileError as error:
            raise CompileError.many(
                Diagnostic("SPK203", d.message, loc=d.loc, notes=d.notes, fix=d.fix) for d in error.diagnostics
            ) from None
        self._head_room(given, result, ledger)
        measure(given, result, self.calibrate, self.labels, ledger)
        return result

    # Payloads --------------------------------------------------------------------------------------------------------

    def _payloads(self, graph: Graph, ledger: Ledger) -> dict[str, Payload]:
        """How every real-valued input is sent."""
        inputs = real_inputs(graph)
        if not inputs:
            return {}
        check_options(inputs, self.calibrate, self.input_bits, self.input_max)
        asked = "input_bits" if self.input_bits is not None else ""
        if self.input_bits is not None or self.calibrate is None:
            chosen = by_range(inputs, self.calibrate, self.input_bits or 8, self.input_max)
        else:
            chosen = choose(graph, self.calibrate, lambda found: self._lost(graph, found))
        tell(ledger, inputs, chosen, self.calibrate, asked)
        return chosen

    def _carried(self, payloads: Mapping[str, Payload]) -> dict[str, Array] | None:
        if self.calibrate is None:
            return None
        return {name: payloads[name].of(data) if name in payloads else data for name, data in self.calibrate.items()}

    def _lost(self, graph: Graph, payloads: Mapping[str, Payload]) -> float:
        """Spikes that change in the populations that real-valued inputs reach, at the largest scale, on a few samples."""
        assert self.calibrate is not None
        few = {name: array[:TRIAL_SAMPLES] for name, array in self.calibrate.items()}
        trial = self._biases(carrying(graph, payloads), Ledger())
        wanted = _float_run(graph, few)
        carried = {name: payloads[name].of(data) if name in payloads else data for name, data in few.items()}
        sent = {**(wanted or {}), **carried}
        samples, steps = next(iter(few.values())).shape[:2]
        sent |= {node.name: np.ones((samples, steps, *node.value.shape)) for node in trial.nodes if isinstance(node, Constant)}
        total = 0
        for group in groups_of(trial):
            if group.neurons and any(trial.type_of(node.inputs[0]).kind != "spike" for node in group.weighted):
                scale = min(self._limits(group), self._sum_limit(group, trial, payloads))
                total += self._changed(group, trial, sent, scale)
        return total

    def _sum_limit(self, group: Group, graph: Graph, payloads: Mapping[str, Payload]) -> float:
        """The scale at which the worst sum of payloads just does not wrap, the memory of the current counted in."""
        if not any(graph.type_of(node.inputs[0]).kind != "spike" for node in group.weighted):
            return math.inf
        worst = sum(worst_sum(graph, node, payloads) for node in group.weighted)
        kept = [float(np.max(node.params["alpha"], initial=0)) for node in group.neurons if "alpha" in node.params]
        gain = 1 / max(1 - max(kept, default=0.0), 1 / (1 << self.target.integer("decay_bits")))
        most = (1 << (self.target.integer("membrane_bits") - 1 - self.target.integer("membrane_shift"))) - 1
        return most / (worst * gain) if worst else math.inf

    # Biases ----------------------------------------------------------------------------------------------------------

    def _biases(self, graph: Graph, ledger: Ledger) -> Graph:
        """Biases of layers become the neurons' bias where that is exact, else a synapse from an always-on source.

        The neuron adds its bias to the membrane and not to the synaptic current, so the current must be memoryless.
        """
        replaced: dict[str, list[Node]] = {}
        taken = set(graph.by_name)
        shown = {ref.node for _, ref in graph.outputs}
        for group in groups_of(graph):
            biased = [node for node in group.weighted if node.bias is not None]
            if not biased:
                continue
            delayed = any(ref.delay and graph.type_of(ref).kind == "value" for node in group.nodes for ref in node.inputs)
            own = [node for node in group.neurons if self._native(node) is None]
            others = [node for node in group.neurons if self._native(node) is not None]
            memory = any(np.any(alpha) for node in others for alpha in self._by_rule(node, "decay_minus_one"))
            native = bool(group.neurons) and all("bias" in node.params for node in others)
            # Whoever reads the sum or the current itself must find the bias in it.
            read = any(node.name in shown for node in group.nodes if not isinstance(node, Neuron))
            read |= any(emit.name == "u" for node in others for emit in node.program.emits)
            if not delayed and not memory and not read and native:
                for neuron in own:
                    replaced[neuron.name] = [with_bias(neuron, [silent_value(graph, ref) for ref in neuron.inputs])]
                for neuron in others:
                    offset = silent_value(graph, neuron.inputs[0])
                    total = np.asarray(neuron.params["bias"]) + offset
                    replaced[neuron.name] = [replace(neuron, params={**neuron.params, "bias": total})]
                for node in biased:
                    replaced[node.name] = [replace(node, bias=None)]
                    where = "the neurons' bias register" if others else "the neurons' program"
                    ledger.record(node, "exact", f"the bias moves into {where}")
                continue
            for node in biased:
                assert node.bias is not None
                shape = graph.shape_of(node.name)
                bias = spread_bias(node, shape)
                source = Constant(
                    name=fresh_name(taken, f"{node.name}_on"), value=np.ones(1, np.float32), kind="spike", loc=node.loc
                )
                synapse = Dense(
                    name=fresh_name(taken, f"{node.name}_bias"),
                    inputs=(Ref(source.name),),
                    weight=bias.reshape(-1, 1),
                    loc=node.loc,
                )
                parts: list[Node] = [source, synapse]
                ref = Ref(synapse.name)
                if len(shape) > 1:
                    parts.append(Reshape(name=fresh_name(taken, f"{synapse.name}_shape"), inputs=(ref,), shape=shape, loc=node.loc))
                    ref = Ref(parts[-1].name)
                plain = replace(node, name=fresh_name(taken, f"{node.name}_sum"), bias=None)
                both = Add(name=node.name, inputs=(Ref(plain.name), ref), loc=node.loc)
                replaced[node.name] = [*parts, plain, both]
                ledger.record(node, "exact", "the bias becomes a synapse from an always-on source")
        nodes = [new for node in graph.nodes for new in replaced.get(node.name, [node])]
        return verify(graph.with_nodes(nodes))

    # Limits ----------------------------------------------------------------------------------------------------------

    def _legal(self, node: Neuron) -> Iterable[Diagnostic]:
        if self._native(node) is None:
            return
        for value in self._by_rule(node, "decay", "decay_minus_one"):
            if np.any(value < 0) or np.any(value > 1):
                worst = float(value.ravel()[np.argmax(np.abs(value - 0.5))])
                yield Diagnostic(
                    "SPK203",
                    f"%{node.name}: the decay {worst:.6g} is outside 0 to 1, the target's range",
                    loc=node.loc,
                    fix="clamp it in the model",
                )
        if "offset" in node.params:
            interval, offset = node.params["interval"], node.params["offset"]
            whole = np.all(interval == np.rint(interval)) and np.all(offset == np.rint(offset))
            if not whole or np.any(interval < 1) or np.any(offset < 0) or np.any(offset >= interval):
                yield Diagnostic(
                    "SPK203",
                    f"%{node.name}: the reset interval must be a whole number of steps, and its offset less than it",
                    loc=node.loc,
                )
        for theta in self._by_rule(node, "threshold"):
            if np.any(theta < 0):
                yield Diagnostic(
                    "SPK203",
                    f"%{node.name}: the threshold {float(theta.min()):.6g} is negative; the target's is 0 or more",
                    loc=node.loc,
                    fix="shift membrane and threshold by a bias",
                )

    def _by_rule(self, node: Neuron, *rules: str) -> list[Array]:
        """The parameters of a native pattern from which some of the rules make the target's."""
        native = self._native(node)
        pairs = [text.split() for text in native.rules.values()] if native else []
        return [np.atleast_1d(node.params[param]) for rule, param in pairs if rule in rules]

    @property
    def weight_grid(self) -> tuple[int, int, int]:
        """Legal weights: the distance of two, the least and the largest."""
        return self._step, self.target.integer("weight_min"), self.target.integer("weight_max") - self._step + 2

    @property
    def _step(self) -> int:
        """Distance of two legal weights: dropped bits, one more because signs are mixed."""
        return self.target.integer("weight_step") << (self.target.integer("weight_bits") - (self.bits or 8))

    def _limits(self, group: Group) -> float:
        """The largest scale that clips no weight and keeps threshold and bias in range."""
        top, bottom = self.target.integer("weight_max") - self._step + 2, self.target.integer("weight_min")
        limits = [math.inf]
        for node in group.weighted:
            high, low = float(node.weight.max(initial=0)), float(node.weight.min(initial=0))
            if high > 0 and top > 0:  # a single bit holds no positive weight
                limits.append(top / high)
            if low < 0:
                limits.append(bottom / low)
        found = min(*limits, self._other_limits(group))
        return found if math.isfinite(found) else 1.0

    def _other_limits(self, group: Group) -> float:
        limits = [math.inf]
        shift = 1 << self.target.integer("membrane_shift")
        bias_top = self.target.integer("bias_mantissa_max") << self.target.integer("bias_exponent_max")
        for node in group.neurons:
            if self._native(node) is None:
                largest = largest_amount(node, None)
                if largest > 0:  # what `fraction_bits` would leave no bit for
                    limits.append((1 << (self.target.integer("membrane_bits") - 1)) / (4 * largest))
                continue
            amounts = self._by_rule(node, "threshold", "lower_threshold", "amount")
            largest = max((float(np.max(np.abs(a[np.isfinite(a)]), initial=0)) for a in amounts), default=0.0)
            if largest > 0:
                limits.append(self.target.integer("threshold_max") / largest)
            bias = max((float(np.max(np.abs(a))) for a in self._by_rule(node, "bias")), default=0.0)
            if bias > 0:
                limits.append(bias_top / (shift * bias))
        return min(limits)

    # Scale -----------------------------------------------------------------------------------------------------------

    def _scale(self, group: Group, graph: Graph, records: Mapping[str, Array] | None, payloads: Mapping[str, Payload]) -> float:
        for node in group.weighted:
            if node.name in (self.scales or {}):
                return (self.scales or {})[node.name]
        most = self._sum_limit(group, graph, payloads)
        largest = min(self._limits(group), most)
        exact = self._exact_scale(group, largest)
        if exact is not None:
            return exact
        if records is None or not _spiking(group) or not group.weighted:
            return largest
        best, fewest = largest, math.inf
        for factor in CANDIDATES:
            scale = min(largest * factor, self._other_limits(group), most)
            changed = self._changed(group, graph, records, scale)
            if changed < fewest:
                best, fewest = scale, changed
        return best

    def _exact_scale(self, group: Group, largest: float) -> float | None:
        """The largest power of two that represents weights, thresholds and biases without rounding."""
        shift = 1 << self.target.integer("membrane_shift")
        for power in range(math.floor(math.log2(largest)), math.floor(math.log2(largest)) - 24, -1):
            scale = 2.0**power
            multiples = [(node.weight, self._step) for node in group.weighted]
            for node in group.neurons:
                if self._native(node) is None:
                    continue
                amounts = self._by_rule(node, "threshold", "lower_threshold", "amount")
                multiples += [(amount[np.isfinite(amount)], 1) for amount in amounts]
                for bias in self._by_rule(node, "bias"):
                    multiples.append((bias * shift, 1 << self._bias_exponent(bias * shift * scale)))
            if all(_whole(array.astype(np.float64) * scale / unit) for array, unit in multiples):
                return scale
        return None

    def _changed(self, group: Group, graph: Graph, records: Mapping[str, Array], scale: float) -> int:
        """Spikes of the group's populations that change at a scale, when they get the float network's spikes."""
        own = {node.name for node in group.nodes}
        inputs: dict[str, Input] = {}
        data: dict[str, Array] = {}
        nodes = []
        for node in self._convert(group.nodes, graph, scale, records, Ledger()):
            refs = []
            for ref in node.inputs:
                if ref.node in own and graph.type_of(ref).kind == "value":
                    refs.append(ref)
                    continue
                name = f"from {ref.node} {ref.port}"  # a name that no node has
                kind, sent = graph.type_of(ref).kind, records[ref.node]
                spiking = kind == "spike"
                bounds = None if spiking else (min(int(sent.min(initial=0)), 0), max(int(sent.max(initial=0)), 1))
                type_ = TensorType("spike" if spiking else "graded", graph.type_of(ref).shape, "i8" if spiking else "i32")
                inputs[name] = Input(name=name, type=type_, bounds=bounds)
                data[name] = sent
                refs.append(replace(ref, node=name, port=""))
            nodes.append(replace(node, inputs=tuple(refs)))
        outputs = tuple((node.name, Ref(node.name)) for node in _spiking(group))
        alone = Graph("search", "fixed", (*inputs.values(), *nodes), outputs)
        result = interpret(alone, data)
        return sum(int(np.count_nonzero(result.outputs[n.name] != records[n.name])) for n in _spiking(group))

    def _head_room(self, given: Graph, graph: Graph, ledger: Ledger) -> None:
        """Sums that the target cannot hold are refused; a current that could wrap, in the worst case, is told."""
        found = graph_ranges(graph)
        wires = found.wires
        limit = self.target.integer("sum_max")
        shift = self.target.integer("membrane_shift")
        one = 1 << self.target.integer("decay_bits")
        top = (1 << (self.target.integer("membrane_bits") - 1)) - 1
        problems = []
        wrapping: list[tuple[Neuron, Array]] = []
        for node in graph.neurons:
            native = self.target.native(node.program)
            most = limit if native is not None else top
            low, high = np.min([wires[r.node, r.port] for r in node.inputs]), np.max([wires[r.node, r.port] for r in node.inputs])
            largest = max(abs(int(low)), abs(int(high)))
            if largest > most:
                problems.append(
                    Diagnostic(
                        "SPK203",
                        f"%{node.name}: its inputs can sum to {largest}; {self.target.name} holds sums up to {most}",
                        loc=node.loc,
                        fix="let fewer inputs reach a neuron, or spread them over several",
                    )
                )
            if native is None:
                continue
            decay = next((name for name, rule in native.rules.items() if rule.startswith("decay_minus_one")), None)
            if decay is None:
                continue
            # The gain of the leak is the sum of its geometric series.
            shape = graph.shape_of(node.name)
            sums = np.zeros(shape, np.int64)
            for ref in node.inputs:
                sums = np.maximum(sums, np.max(np.abs(np.stack(bounds_of(graph, ref, found))), axis=0))
            kept = np.broadcast_to(spread(node.params[decay], shape), shape).astype(np.float64) + 1
            with np.errstate(divide="ignore", invalid="ignore"):
                reach = np.where(sums == 0, 0.0, sums * float(1 << shift) * one / kept)
            if np.max(reach, initial=0) > top:
                wrapping.append((node, reach))
        if problems:
            raise CompileError.many(problems)
        if wrapping:
            data = None if self.calibrate is None else recode(given, graph, self.calibrate)
            self._wrapping(graph, wrapping, data, top, ledger)

    def _wrapping(
        self, graph: Graph, found: list[tuple[Neuron, Array]], data: Mapping[str, Array] | None, top: int, ledger: Ledger
    ) -> None:
        """Currents that wrap in the worst case. Without data that is an approximation; with data only what wraps on them is."""
        rows = head_room(graph, self.target, data).rows if data is not None else ()
        for node, reach in found:
            worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(reach)), reach.shape))
            who = ", ".join(map(str, worst))
            what = f"in the worst case the current of neuron {who} reaches {float(reach.max()):.4g} and wraps at {top + 1}"
            count = int(np.count_nonzero(reach > top))
            what += f" ({count} of {reach.size} neurons)" if count > 1 else ""
            own = [row for row in rows if row.population == node.name and row.beyond == "wraps"]
            if data is None:
                ledger.record(node, "approximation", what, asked=self._asked)
                continue
            happened = next((row.happened for row in own if row.happened is not None), None)
            if happened is not None:
                place = ", ".join(map(str, happened.neuron))
                what = f"the current of neuron {place} reaches {happened.value} {happened.cause} and wraps at {top + 1}"
                ledger.record(node, "approximation", what, asked=self._asked)
                continue
            largest = max((max(-row.calibrated[0], row.calibrated[1]) for row in own if row.calibrated), default=0)
            what += f"; on the calibration data it reaches {largest}, {100 * largest / (top + 1):.3g} % of that"
            ledger.record(node, "convention", what)

    # Conversion ------------------------------------------------------------------------------------------------------

    def _convert(
        self, nodes: Iterable[Node], graph: Graph, scale: float, records: Mapping[str, Array] | None, ledger: Ledger
    ) -> list[Node]:
        return [
            self._custom(node, graph, scale, records, ledger)
            if isinstance(node, Neuron) and self._native(node) is None
            else self._neuron(node, scale, ledger)
            if isinstance(node, Neuron)
            else self._weights(node, scale, ledger)
            if isinstance(node, WEIGHTED)
            else replace(node, dtype="")  # type: ignore[call-arg]  # only some operations have a dtype
            if hasattr(node, "dtype")
            else node
            for node in nodes
        ]

    def _weights(self, node: Dense | Sparse | Conv, scale: float, ledger: Ledger) -> Node:
        step = self._step
        top, bottom = self.target.integer("weight_max") - step + 2, self.target.integer("weight_min")
        wanted = node.weight.astype(np.float64) * scale
        rounded = step * np.rint(wanted / step)
        weight = np.clip(rounded, bottom, top)
        clipped = int(np.count_nonzero(weight != rounded))
        error = np.abs(weight - wanted) / scale
        if np.any(error):
            what = f"weights to multiples of {step / scale:.6g}" + (f", {clipped} of them clipped" if clipped else "")
            self._approximate(ledger, node, what, error, measured={"scale": scale})
        else:
            ledger.record(node, "exact", f"weights are multiples of {step / scale:.6g}", measured={"scale": scale})
        return replace(node, weight=weight.astype(np.int16), dtype="")

    def _custom(self, node: Neuron, graph: Graph, scale: float, records: Mapping[str, Array] | None, ledger: Ledger) -> Node:
        """A program that the target lacks, in the target's widths."""
        operands = {
            name: scale if graph.type_of(ref).kind == "value" else 1.0
            for name, ref in zip(node.program.inputs, node.inputs, strict=True)
        }
        bits, decay = self.target.integer("membrane_bits"), self.target.integer("decay_bits")
        widths = Widths(bits, bits, decay, decay)
        made, translator = translate(node, infer_units(node, graph), operands, {}, scale, largest_amount(node, records), widths)
        for what, error in translator.errors:
            if np.any(error):
                self._approximate(ledger, node, what, error)
        if "clip" in made.program.operations():
            limits = (f"{n} at +-{((1 << (bits - 1)) - 1) / translator.scale_of(n):.4g}" for n in node.program.state_names)
            ledger.record(node, "convention", f"states saturate: {', '.join(limits)}")
        for index, emit in enumerate(node.program.emits):
            port = emit.name if index else ""
            if emit.kind != "spike" and any((r.node, r.port) == (node.name, port) for _, r in graph.outputs):
                ledger.record(node, "convention", f"the output {emit.name} is in units of {1 / translator.scale_of(emit.name):.6g}")
        return made

    def _neuron(self, node: Neuron, scale: float, ledger: Ledger) -> Node:
        native = self._native(node)
        assert native is not None
        fixed = parse_program(native.fixed)
        extra = node.program.emits[1:]
        suffix = node.program.name.removeprefix(parse_program(native.pattern).name)
        program = Program(
            fixed.name + suffix,
            fixed.inputs,
            fixed.params,
            fixed.states,
            fixed.body,
            (*fixed.emits, *(Emit(e.name, "value") for e in extra)),
        )
        params: dict[str, Array] = {}
        for name in fixed.params:
            rule, source = native.rules[name].split()
            value = np.asarray(node.params[source], np.float64)
            params[name] = self._rule(rule, value, scale, node, ledger)
        membrane = scale * (1 << self.target.integer("membrane_shift"))
        init = {k: self._initial(k, v.astype(np.float64), membrane, node, ledger) for k, v in node.init.items()}
        result = replace(node, program=program, params=params, init=init, dtype="")
        result = replace(result, init={**init, **begun(native, result, init)})
        for emit in extra:
            ledger.record(node, "convention", f"the output {emit.name} is in units of {1 / membrane:.6g}")
        return result

    def _initial(self, state: str, value: Array, membrane: float, node: Neuron, ledger: Ledger) -> Array:
        whole = np.rint(value * membrane)
        top = (1 << (self.target.integer("membrane_bits") - 1)) - 1
        if np.any(np.abs(whole) > top):
            node.fail("SPK203", f"the initial {state} {float(np.abs(value).max()):.6g} exceeds the target's {top / membrane:.6g}")
        error = np.abs(whole / membrane - value)
        if np.any(error):
            self._approximate(ledger, node, f"initial {state} to multiples of {1 / membrane:.6g}", error)
        return whole.astype(np.int32)

    def _native(self, node: Neuron) -> NativeNeuron | None:
        """The native neuron whose pattern a population is; None if it runs as a program of its own."""
        for native in self.target.neurons:
            if not native.pattern:
                continue
            pattern = parse_program(native.pattern)
            if (pattern.params, pattern.body) == (node.program.params, node.program.body):
                return native
        return None

    def _rule(self, rule: str, value: Array, scale: float, node: Neuron, ledger: Ledger) -> Array:
        one = 1 << self.target.integer("decay_bits")
        shift = 1 << self.target.integer("membrane_shift")
        if rule in ("decay", "decay_minus_one"):
            whole = np.rint((1.0 - value) * one)
            error = np.abs(whole / one - (1.0 - value))
            if np.any(error):
                lost = int(np.count_nonzero((whole == 0) & (value < 1)))
                what = f"decay to multiples of 1/{one}" + (f", {lost} of them to no decay at all" if lost else "")
                self._approximate(ledger, node, what, error)
            return (whole - (rule == "decay_minus_one")).astype(np.int32)
        if rule in ("threshold", "lower_threshold", "amount"):
            limit = self.target.integer("threshold_max")
            whole = np.where(np.isfinite(value), np.rint(np.where(np.isfinite(value), value, 0) * scale), np.sign(value) * limit)
            error = np.where(np.isfinite(value), np.abs(whole / scale - np.where(np.isfinite(value), value, 0)), 0)
            if not np.all(np.isfinite(value)):
                ledger.record(node, "approximation", "an infinite threshold becomes the largest", asked=self._asked)
            if np.any(error):
                what = "amount" if rule == "amount" else "threshold"
                self._approximate(ledger, node, f"{what} to multiples of {1 / scale:.6g}", error)
            return whole.astype(np.int32)
        if rule in ("bias", "bias_exponent"):
            wanted = value * scale * shift
            exponent = self._bias_exponent(wanted)
            mantissa = np.rint(wanted / (1 << exponent))
            if rule == "bias_exponent":
                return np.asarray(exponent, np.int32)
            error = np.abs(mantissa * (1 << exponent) - wanted) / (scale * shift)
            if np.any(error):
                self._approximate(ledger, node, f"bias to multiples of {(1 << exponent) / (scale * shift):.6g}", error)
            return mantissa.astype(np.int32)
        whole = np.rint(value)
        # The target counts its steps from 1.
        return (whole + (rule == "next_step")).astype(np.int32)

    def _bias_exponent(self, wanted: Array) -> int:
        largest = float(np.max(np.abs(wanted), initial=0))
        exponent = 0
        while np.rint(largest / (1 << exponent)) > self.target.integer("bias_mantissa_max"):
            exponent += 1
        return exponent

    # Ledger ----------------------------------------------------------------------------------------------------------

    @property
    def _asked(self) -> str:
        return "" if self.bits is None else f"--bits {self.bits}"

    def _approximate(self, ledger: Ledger, node: Node, what: str, error: Array, **more: Any) -> None:
        ledger.record(
            node,
            "approximation",
            what,
            changed=int(np.count_nonzero(error)),
            total=int(np.size(error)),
            largest=float(np.max(error)),
            asked=self._asked,
            **more,
        )


def _spiking(group: Group) -> list[Neuron]:
    return [node for node in group.neurons if node.program.emits[0].kind != "value"]


def _whole(array: Array) -> bool:
    return bool(np.all(np.isfinite(array)) and np.all(array == np.rint(array)))


def _float_run(graph: Graph, calibrate: Mapping[str, Array] | None) -> dict[str, Array] | None:
    """What every wire of spikes or payloads carries, and what populations give, on a few samples."""
    if calibrate is None:
        return None
    data = {name: array[:SEARCH_SAMPLES] for name, array in calibrate.items()}
    kept = {node.name for node in graph.nodes if graph.types[node.name][0][1].kind != "value"} | {n.name for n in graph.neurons}
    wires = [record_name((name, port)) for name, ports in graph.types.items() if name in kept for port, _ in ports]
    return interpret(graph, data, record=wires).records


def _other(node: Node, payloads: Mapping[str, Payload]) -> Node:
    """Nodes outside all groups carry spikes and payloads only."""
    if isinstance(node, Input) and node.name in payloads:
        return as_integers(node, payloads[node.name])
    if isinstance(node, Input):
        return replace(node, type=TensorType("spike", node.type.shape, "i8"))
    if isinstance(node, Constant):
        return replace(node, value=node.value.astype(np.int32))
    return node
