"""From trained floats to integers for a processor: any neuron program, narrow weights, wide states.

Every population and the layers that feed it share one real scale S: W = round(S w). States carry F further fraction bits, so that
decays and thresholds cost next to nothing: a state x is held as round(S 2^F x), saturating at 30 bits. A program is translated
expression by expression: its variables are either amounts (they scale with the input, like a membrane) or pure numbers (an
adaptation variable that counts spikes), which is inferred from the program; a factor becomes an integer and a shift.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Final

import numpy as np

from spikec.bits import CPU_WIDTHS, MIXED, bits_text, layer_bytes, widths_of
from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret, record_name
from spikec.ir.neuron import Call, Expr, Program, Var, children, variables
from spikec.ir.ops import Add, Constant, Conv, Dense, Input, Neuron, Node, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.ranges import graph_ranges
from spikec.ir.rules import verify
from spikec.ir.types import Array, TensorType, integers, narrowest
from spikec.ledger import Ledger
from spikec.passes.groups import WEIGHTED, Group, groups_of, measure, silent_value
from spikec.passes.mixed import choose_widths
from spikec.passes.payloads import as_integers, by_range, check_options, on_grid, real_inputs, tell
from spikec.passes.readouts import cure, means_as_sums, tell_units
from spikec.passes.rewrite import fresh_name, redirect, redirect_outputs
from spikec.passes.rounding import TOGETHER, moments, rounded
from spikec.passes.translate import NARROW_BITS, STATE_BITS, Widths, largest_amount, level_scale, levels, translate
from spikec.passes.units import infer_units, is_truth
from spikec.target import Target

CANDIDATES: Final = (1.0, 0.98, 1.03, 0.95, 1.08, 0.9, 1.15, 1.3)
SEARCH_SAMPLES: Final = 64
#: How far a spike that is added to sums may be from a whole number of their units, relatively.
IDENTITY_ERROR: Final = 1 / 128


@dataclass(frozen=True)
class _Grid:
    """The integers of a layer's weights: multiples of `step` up to `top` times it, so that layers of one population, of which the
    widest has `most` bits, share a scale."""

    bits: int
    most: int

    @property
    def step(self) -> int:
        return 1 << (self.most - self.bits)

    @property
    def top(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def largest(self) -> int:
        return self.step * self.top


@dataclass(frozen=True)
class ToFixed:
    """Floats to integers of `bits` bits a weight. Takes the float level, gives the fixed level; approximate.

    bits: 2 to 16; or one a layer, or "mixed" within max_bytes (`spikec.bits`). calibrate: (samples, T, *shape) by input name.
    labels: (samples,), to measure the accuracy. scales: by layer, a scale that is to be kept, the one for which the weights were
    trained. input_bits: of real-valued input (by default as many as a weight, at least 8, or what a grid takes that the data lie
    on); input_max: the largest magnitude of it, without calibration.
    """

    target: Target
    bits: int | str = 8
    max_bytes: int | None = None
    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    scales: Mapping[str, float] | None = None
    input_bits: int | None = None
    input_max: float | None = None
    name: ClassVar[str] = "to-fixed"
    levels: ClassVar[tuple[str, ...]] = ("float",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """A graph of integers. Raises CompileError SPK202 with everything that has no integer form."""
        if isinstance(self.bits, int) and not 2 <= self.bits <= 16:
            raise CompileError("SPK001", f"{self.bits} bits: a weight has 2 to 16 bits")
        grids = self._grids(graph, ledger)
        graph, factors = _without_last_scales(verify(_without_averages(graph, ledger)))
        problems = [p for node in graph.nodes for p in self._refused(node, graph)]
        if problems:
            raise CompileError.many(problems)
        graph = means_as_sums(_with_identities(graph), ledger)
        given, graph = graph, self._whole_inputs(graph, grids, ledger)
        records = self._float_run(given)
        scales: dict[tuple[str, str], float] = {}
        converted: dict[str, Node] = {}
        for node in graph.nodes:
            if isinstance(node, (Input, Constant)):
                converted[node.name] = self._source(node)
        handed = _handed_on(graph)
        groups = groups_of(graph, handed)
        grouped = {node.name for group in groups for node in group.nodes}
        rest = [Group([node]) for node in graph.order if node.name not in grouped and not isinstance(node, Constant)]
        waiting = [*rest, *groups]
        while waiting:
            # Where all wait for one another the first says so.
            found = next((group for group in waiting if not _missing(group, graph, scales)), waiting[0])
            waiting.remove(found)
            if found not in rest:
                self._group(found, graph, grids, scales, converted, records, ledger)
                continue
            (node,) = found.nodes
            unit = node.unit if isinstance(node, Input) else None
            scales[node.name, ""] = 1 / unit if unit is not None else self._joined(node, node.inputs, graph, scales)
        nodes = [converted.get(node.name, node) for node in graph.nodes]
        result = _wide_enough(graph.with_nodes(nodes, level="fixed"))
        try:
            verify(result)
        except CompileError as error:
            raise CompileError.many(
                Diagnostic("SPK203", d.message, loc=d.loc, notes=d.notes, fix=d.fix) for d in error.diagnostics
            ) from None
        tell_units(graph, ledger, {wire: 1 / scale for wire, scale in scales.items()}, factors)
        narrow = [node for node in result.nodes if isinstance(node, WEIGHTED) and grids[node.name].bits < 8]
        if narrow:
            packed = sum(layer_bytes(node, grids[node.name].bits) for node in narrow)
            figures = {"bytes packed": float(packed), "bytes in C": float(sum(node.weight.nbytes for node in narrow))}
            what = "weights of less than 8 bits take a byte each where they run; the files of the build pack them"
            ledger.record("", "convention", what, measured=figures)
        measure(given, result, self.calibrate, self.labels, ledger)
        return result

    def weight_grids(self, graph: Graph) -> dict[str, tuple[int, int, int]]:
        """Legal weights of every layer: the distance of two, the least and the largest."""
        return {
            name: (grid.step, -grid.step * grid.top, grid.step * grid.top) for name, grid in self._grids(graph, Ledger()).items()
        }

    def _grids(self, graph: Graph, ledger: Ledger) -> dict[str, _Grid]:
        if self.bits == MIXED:

            def trial(widths: Mapping[str, int], data: Mapping[str, Array], scales: Mapping[str, float]) -> tuple[Graph, Ledger]:
                told = Ledger()
                return replace(self, bits=bits_text(widths), calibrate=data, labels=None, scales=scales).run(graph, told), told

            widths = choose_widths(graph, ledger, trial, CPU_WIDTHS, self.calibrate, self.labels, self.max_bytes)
        else:
            widths = widths_of(self.bits, graph, CPU_WIDTHS, self.target.name)
        found: dict[str, _Grid] = {}
        plain = _without_averages(graph, Ledger())
        for group in groups_of(plain, _handed_on(plain)):
            most = max((widths[node.name] for node in group.weighted), default=0)
            found |= {node.name: _Grid(widths[node.name], most) for node in group.weighted}
        return found

    def _refused(self, node: Node, graph: Graph) -> list[Diagnostic]:
        def no(message: str, fix: str) -> Diagnostic:
            return Diagnostic("SPK202", f"%{node.name}: {message}", loc=node.loc, fix=cure(graph, node, fix))

        if isinstance(node, Scale):
            return [no("a scale that feeds no weight has no integer form", "leave out --bits")]
        for ref in node.inputs:
            if ref.init is not None and ref.init.any() and graph.type_of(ref).kind != "spike":
                return [no(f"initial values of {ref} have no integer form", "leave out --bits")]
        return []

    def _whole_inputs(self, graph: Graph, grids: Mapping[str, _Grid], ledger: Ledger) -> Graph:
        """Real-valued inputs with the unit and the bounds of the whole numbers that they become."""
        inputs = [node for node in real_inputs(graph) if node.bounds is None]
        if not inputs:
            return graph
        check_options(inputs, self.calibrate, self.input_bits, self.input_max)
        chosen = by_range(
            inputs, self.calibrate, self.input_bits or max([8, *(grid.bits for grid in grids.values())]), self.input_max
        )
        if self.calibrate is not None and self.input_bits is None:
            chosen |= {node.name: found for node in inputs if (found := on_grid(self.calibrate[node.name]))}
        tell(ledger, inputs, chosen, self.calibrate, "input_bits" if self.input_bits is not None else f"--bits {self.bits}")
        units = {node.name: replace(as_integers(node, chosen[node.name]), type=node.type) for node in inputs}
        return graph.with_nodes(units.get(node.name, node) for node in graph.nodes)

    def _source(self, node: Input | Constant) -> Node:
        if isinstance(node, Constant):
            return replace(node, value=integers(np.rint(node.value)))
        if node.type.kind == "spike":
            return replace(node, type=TensorType("spike", node.type.shape, "i8"))
        dtype = "i32" if node.unit is None or node.bounds is None else narrowest(*node.bounds) or "i32"
        return replace(node, type=TensorType(node.type.kind, node.type.shape, dtype))

    # Scales ----------------------------------------------------------------------------------------------------------

    def _group(
        self,
        group: Group,
        graph: Graph,
        grids: Mapping[str, _Grid],
        scales: dict[tuple[str, str], float],
        converted: dict[str, Node],
        records: Mapping[str, Array] | None,
        ledger: Ledger,
    ) -> None:
        sources = {node.name: _scale_of(node, node.inputs[0], graph, scales) for node in group.weighted}
        largest = min(
            (sources[n.name] * grids[n.name].largest / float(np.max(np.abs(n.weight))) for n in group.weighted if n.weight.any()),
            default=0.0,
        ) or self._without_weights(group, graph, scales)
        forced = [self.scales[n.name] * sources[n.name] for n in group.weighted if self.scales and n.name in self.scales]
        scale = forced[0] if forced else self._exact(group, grids, sources, largest)
        if scale is not None and not forced and _fitting(scale, group, graph, scales) != scale:
            scale = None
        if scale is None and records is not None and group.weighted and group.neurons:
            fewest = math.inf
            for factor in CANDIDATES:
                candidate = _fitting(largest * factor, group, graph, scales)
                trial = self._convert(group, graph, grids, candidate, sources, scales, records, Ledger())
                changed = self._changed(group, graph, trial, scales, records)
                if changed < fewest:
                    scale, fewest = candidate, changed
        scale = largest if scale is None else scale
        if not forced:
            scale = _fitting(scale, group, graph, scales)
        for layer in group.weighted:
            grid = grids[layer.name]
            most = float(np.max(np.abs(layer.weight), initial=0.0)) * scale / sources[layer.name] / grid.step
            if 0 < most < min(2, grid.top) / 2:
                others = ", ".join(f"%{n.name}" for n in group.weighted if n is not layer) or "it"
                layer.fail(
                    "SPK202",
                    f"of its weights nothing is left at {grid.bits} bits: it reads {layer.inputs[0]} in units of "
                    f"{1 / sources[layer.name]:.6g}, and the sum, for {others}, is in units of {1 / scale:.6g}",
                    fix="give it a population of its own, or more bits",
                )
        seen = {n.name: found for n in group.weighted if group.neurons and (found := moments(graph, n, records)) is not None}
        if seen and records is not None and _spiking(group):
            each = (self._convert(group, graph, grids, scale, sources, scales, records, Ledger(), part) for part in ({}, seen))
            nearest, together = (self._changed(group, graph, trial, scales, records) for trial in each)
            seen = seen if together < nearest else {}
        for node in self._convert(group, graph, grids, scale, sources, scales, records, ledger, seen):
            converted[node.name] = node

    def _without_weights(self, group: Group, graph: Graph, scales: Mapping[tuple[str, str], float]) -> float:
        """The scale of a group without weights: that of what enters it; of constants alone, one that holds them in 16 bits."""
        own = {node.name for node in group.nodes}
        entering = [
            _scale_of(node, ref, graph, scales)
            for node in group.nodes
            for ref in (node.inputs if not isinstance(node, WEIGHTED) else ())
            if ref.node not in own or isinstance(graph[ref.node], Neuron)
        ]
        if entering:
            return min(entering)
        largest = max((float(np.max(np.abs(n.value), initial=0.0)) for n in group.nodes if isinstance(n, Constant)), default=0.0)
        return 2.0 ** (14 - math.frexp(largest)[1]) if largest else 1.0

    def _joined(self, node: Node, refs: Iterable[Ref], graph: Graph, scales: Mapping[tuple[str, str], float]) -> float:
        """The one scale of what a node hands on. Raises CompileError SPK202 where operands differ."""
        found = {str(ref): _scale_of(node, ref, graph, scales) for ref in refs}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{ref} in units of {1 / scale:.6g}" for ref, scale in found.items())
            node.fail(
                "SPK202",
                f"joins wires of different scales: {told}",
                fix=cure(graph, node, "send each of them through weights of its own (an identity will do), or leave out --bits"),
            )
        return next(iter(found.values()), 1.0)

    def _exact(self, group: Group, grids: Mapping[str, _Grid], sources: Mapping[str, float], largest: float) -> float | None:
        """The largest power of two at which every weight is whole."""
        for power in range(math.floor(math.log2(largest)), math.floor(math.log2(largest)) - 24, -1):
            scale = 2.0**power
            wanted = [
                node.weight.astype(np.float64) * (scale / sources[node.name] / grids[node.name].step) for node in group.weighted
            ]
            if wanted and all(np.all(array == np.rint(array)) for array in wanted):
                return scale
        return None

    def _float_run(self, graph: Graph) -> dict[str, Array] | None:
        if self.calibrate is None:
            return None
        data = {name: array[:SEARCH_SAMPLES] for name, array in self.calibrate.items()}
        wires = [f"{name}.{port}" if port else name for name, ports in graph.types.items() for port, _ in ports]
        return interpret(graph, data, record=wires).records

    def _changed(
        self,
        group: Group,
        graph: Graph,
        nodes: list[Node],
        scales: Mapping[tuple[str, str], float],
        records: Mapping[str, Array],
    ) -> int:
        """Spikes of the group that change when everything around it is as in the float network; spiking sources only."""
        own = {node.name for node in nodes}
        inputs: dict[str, Input] = {}
        data: dict[str, Array] = {}
        result = []
        for node in nodes:
            refs = []
            for ref in node.inputs:
                inside = graph.type_of(ref).kind == "value" or isinstance(graph[ref.node], Scale)
                if ref.node in own and inside and not isinstance(graph[ref.node], Neuron):
                    refs.append(ref)
                    continue
                type_ = graph.type_of(ref)
                if type_.kind == "value" or scales.get((ref.node, ref.port), 1.0) != 1.0:
                    return 0
                name = f"from_{ref.node}_{ref.port}"
                inputs[name] = Input(
                    name=name,
                    type=TensorType(type_.kind, type_.shape, "i8" if type_.kind == "spike" else "i32"),
                    bounds=(0, 1 << 15),
                )
                data[name] = records[record_name((ref.node, ref.port))]
                refs.append(replace(ref, node=name, port=""))
            result.append(replace(node, inputs=tuple(refs)))
        spiking = _spiking(group)
        outputs = tuple((node.name, Ref(node.name)) for node in spiking)
        got = interpret(Graph("search", "fixed", (*inputs.values(), *result), outputs), data).outputs
        return sum(int(np.count_nonzero(got[n.name] != records[n.name])) for n in spiking)

    # Conversion ------------------------------------------------------------------------------------------------------

    def _convert(
        self,
        group: Group,
        graph: Graph,
        grids: Mapping[str, _Grid],
        scale: float,
        sources: Mapping[str, float],
        scales: dict[tuple[str, str], float],
        records: Mapping[str, Array] | None,
        ledger: Ledger,
        seen: Mapping[str, Array] = MappingProxyType({}),
    ) -> list[Node]:
        """The nodes of a group in integers. seen: by layer, what its rounding is to look at (see `spikec.passes.rounding`)."""
        bias_moves = not any(
            ref.delay and graph.type_of(ref).kind == "value" for n in group.nodes if not isinstance(n, WEIGHTED) for ref in n.inputs
        )
        bias_moves = (
            bias_moves
            and bool(group.neurons)
            and not any(
                ref.node in {n.name for n in group.nodes} and not isinstance(graph[ref.node], Neuron) for _, ref in graph.outputs
            )
        )
        # A maximum of sums is not the sum of maxima.
        bias_moves = bias_moves and not any(isinstance(n, Pool) for n in group.nodes)
        own = {node.name for node in group.nodes if not isinstance(node, Neuron)}
        result: list[Node] = []
        for node in group.nodes:
            if isinstance(node, WEIGHTED):
                factor, moment = scale / sources[node.name], seen.get(node.name)
                result.append(self._weights(node, grids[node.name], factor, scale, bias_moves, moment, ledger))
            elif isinstance(node, Neuron):
                result.append(self._neuron(node, graph, scale, scales, bias_moves, own, sources.values(), records, ledger))
            elif isinstance(node, Constant):
                result.append(self._constant(node, scale, ledger))
            else:
                known = {**scales, **{(name, ""): scale for name in own}}
                outside = []
                for ref in node.inputs:
                    identity = graph[ref.node]
                    if ref.node in own:
                        continue
                    if isinstance(identity, Scale):
                        result.append(self._identity(identity, scale / scales[ref.node, ""], ledger))
                        known[ref.node, ref.port] = scale
                    outside.append(ref)
                if outside and self._joined(node, node.inputs, graph, known) != scale:
                    node.fail(
                        "SPK202",
                        f"joins wires of different scales: {outside[0]} and the sums that it is joined with",
                        fix="send each of them through weights of its own (an identity will do), or leave out --bits",
                    )
                result.append(node)
            if not isinstance(node, Neuron):
                scales[node.name, ""] = scale
        return result

    def _identity(self, node: Scale, factor: float, ledger: Ledger) -> Node:
        whole = round(factor)
        error = abs(whole / factor - 1)
        if error > IDENTITY_ERROR:
            node.fail(
                "SPK202",
                f"{node.inputs[0]} is added to sums in whose units it is {factor:.4g}, which is no whole number",
                fix="send it through weights of its own, or leave out --bits",
            )
        if error > 1e-12:
            self._note(
                ledger, node, f"the 1 of {node.inputs[0]} to {whole} units of the sums that it is added to", np.array([error])
            )
        return replace(node, factor=np.asarray(whole, np.int32))

    def _constant(self, node: Constant, scale: float, ledger: Ledger) -> Constant:
        wanted = node.value.astype(np.float64) * scale
        whole = np.rint(wanted)
        self._note(ledger, node, f"constants to multiples of {1 / scale:.6g}", np.abs(whole - wanted) / scale)
        return replace(node, value=integers(whole))

    def _weights(
        self,
        node: Dense | Sparse | Conv,
        grid: _Grid,
        factor: float,
        scale: float,
        bias_moves: bool,
        moment: Array | None,
        ledger: Ledger,
    ) -> Node:
        wanted = node.weight.astype(np.float64) * factor
        weight = rounded(wanted, grid.step, -grid.largest, grid.largest, moment)
        what = f"weights to multiples of {grid.step / factor:.6g}" + (TOGETHER if moment is not None else "")
        self._note(ledger, node, what, np.abs(weight - wanted) / factor, measured={"scale": factor})
        bias = None
        if node.bias is not None and not bias_moves:
            exact = node.bias.astype(np.float64) * scale
            bias = integers(np.rint(exact))
            self._note(ledger, node, f"bias to multiples of {1 / scale:.6g}", np.abs(bias - exact) / scale)
        return replace(node, weight=weight.astype(np.int8 if grid.most <= 8 else np.int16), bias=bias, dtype="")

    def _neuron(
        self,
        node: Neuron,
        graph: Graph,
        scale: float,
        scales: dict[tuple[str, str], float],
        bias_moves: bool,
        own: Collection[str],
        reading: Iterable[float],
        records: Mapping[str, Array] | None,
        ledger: Ledger,
    ) -> Node:
        operands = {}
        for name, ref in zip(node.program.inputs, node.inputs, strict=True):
            operands[name] = scale if ref.node in own else _scale_of(node, ref, graph, scales)
        biases = {}
        if bias_moves:
            for name, ref in zip(node.program.inputs, node.inputs, strict=True):
                offset = silent_value(graph, ref)
                if offset.any():
                    biases[name] = offset
            for first, *others in added_together(node.program, biases):
                biases[first] = sum((biases.pop(name) for name in others), biases[first])
        amounts = {name for name, own in operands.items() if own != 1.0}
        largest = largest_amount(node, records)
        if not largest and any(own != 1.0 for own in (*operands.values(), *reading)):
            # Nothing tells how far states go, and what they sum up is of any size.
            largest = 4 * sum(_amplitude(graph, ref, records, frozenset()) for ref in node.inputs)
        narrow = 0 < largest * scale < 1 << (NARROW_BITS - 1)
        widths = Widths(STATE_BITS, NARROW_BITS if narrow else STATE_BITS)
        try:
            translated, translator = translate(node, infer_units(node, graph, amounts), operands, biases, scale, largest, widths)
        except CompileError as refused:
            raise CompileError.many(replace(item, fix=cure(graph, node, item.fix or "")) for item in refused.diagnostics) from None
        for what, error in translator.errors:
            self._note(ledger, node, what, error)
        if "clip" in translated.program.operations():
            limits = {name: ((1 << (translator.bits - 1)) - 1) / translator.scale_of(name) for name in node.program.state_names}
            told = ", ".join(f"{name} at +-{limit:.4g}" for name, limit in limits.items())
            ledger.record(node, "convention", f"states saturate: {told}")
        translator.tell_rounding(translated, ledger)
        for emit, (port, _) in zip(node.program.emits, graph.types[node.name], strict=True):
            if emit.kind != "spike":
                unit = 1.0 if is_truth(Var(emit.name), node.program) else translator.scale_of(emit.name)
                scales[node.name, port] = unit
        return translated

    def _note(self, ledger: Ledger, node: Node, what: str, error: Array, **more: Any) -> None:
        if not np.any(error):
            ledger.record(node, "exact", what, **more)
            return
        ledger.record(
            node,
            "approximation",
            what,
            changed=int(np.count_nonzero(error)),
            total=int(np.size(error)),
            largest=float(np.max(error)),
            asked=f"--bits {self.bits}",
            **more,
        )


def added_together(program: Program, names: Collection[str]) -> list[list[str]]:
    """Of some inputs, those that occur once, in one sum, as they are: one number can stand for what is added to all of them."""
    used = Counter(name for statement in program.body for name in variables(statement.expr))
    groups = []

    def terms(expr: Expr) -> list[Expr]:
        """What is added up to an expression; sums inside of it are looked at by themselves."""
        if isinstance(expr, Call) and expr.op == "+":
            return terms(expr.args[0]) + terms(expr.args[1])
        if isinstance(expr, Call) and expr.op == "-":
            visit(expr.args[1])
            return terms(expr.args[0])
        for inner in children(expr):
            visit(inner)
        return [expr]

    def visit(expr: Expr) -> None:
        found = [term.name for term in terms(expr) if isinstance(term, Var) and term.name in names and used[term.name] == 1]
        if len(found) > 1:
            groups.append(found)

    for statement in program.body:
        visit(statement.expr)
    return groups


def _spiking(group: Group) -> list[Neuron]:
    """Populations whose spikes, or counts of them, can be compared with the float network's."""
    return [node for node in group.neurons if node.program.emits[0].kind == "spike" or levels(node)]


def _handed_on(graph: Graph) -> set[str]:
    """Inputs, and nodes that hand on what inputs and populations give without adding a sum to it: their scale is given."""
    found: set[str] = set()
    for node in graph.order:
        moved = node.inputs and not isinstance(node, (*WEIGHTED, Neuron))
        if isinstance(node, Input) or (
            moved and all(ref.node in found or isinstance(graph[ref.node], Neuron) for ref in node.inputs)
        ):
            found.add(node.name)
    return found


def _missing(group: Group, graph: Graph, scales: Mapping[tuple[str, str], float]) -> bool:
    """Whether a scale that a group reads is not known yet."""
    own = {node.name for node in group.nodes if not isinstance(node, Neuron)}
    return any(
        graph.type_of(ref).kind != "spike"
        and (ref.node, ref.port) not in scales
        and (ref.node not in own or isinstance(node, WEIGHTED))
        for node in group.nodes
        for ref in node.inputs
    )


def _with_identities(graph: Graph) -> Graph:
    """The graph with a factor of 1 wherever spikes are added to sums of weights; conversion makes it so many units of theirs."""
    taken, handed = set(graph.by_name), _handed_on(graph)
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node, Add) and graph.types[node.name][0][1].kind == "value" and node.name not in handed:
            inputs = []
            for ref in node.inputs:
                if graph.type_of(ref).kind != "value" and ref.init is None:
                    name = fresh_name(taken, f"{node.name}_{ref.node}")
                    nodes.append(Scale(name=name, inputs=(Ref(ref.node, ref.port),), factor=np.ones((), np.float32), loc=node.loc))
                    ref = Ref(name, delay=ref.delay)
                inputs.append(ref)
            node = replace(node, inputs=tuple(inputs))
        nodes.append(node)
    return verify(graph.with_nodes(nodes))


def _fitting(scale: float, group: Group, graph: Graph, scales: Mapping[tuple[str, str], float]) -> float:
    """The nearest smaller scale at which spikes that are added to a group's sums are a whole number of their units, or at which the
    levels that its neurons count (`floor(v / threshold)`) lie a power of two apart."""
    if counted := [distance for node in group.neurons for distance in levels(node)]:
        return level_scale(scale, counted[0])
    sums = [node for node in group.nodes if isinstance(node, Add)]
    added = [graph[ref.node] for node in sums for ref in node.inputs if isinstance(graph[ref.node], Scale)]
    units = [_scale_of(node, node.inputs[0], graph, scales) for node in added]
    return max(units) * max(1, math.floor(scale / max(units))) if units else scale


def _without_last_scales(graph: Graph) -> tuple[Graph, dict[str, float]]:
    """The graph without factors that only outputs see, and by output what its numbers are then to be multiplied with."""
    factors: dict[str, float] = {}
    while True:
        found = next(
            ((n, names) for n in graph.nodes if isinstance(n, Scale) and (names := _last_scale(n, graph)) is not None), None
        )
        if found is None:
            return graph, factors
        scale, names = found
        factors |= {name: factors.get(name, 1.0) * float(scale.factor.item()) for name in names}
        moved = {(scale.name, ""): scale.inputs[0]}
        nodes = redirect([node for node in graph.nodes if node is not scale], moved)
        graph = verify(graph.with_nodes(nodes, redirect_outputs(graph.outputs, moved)))


def _last_scale(node: Scale, graph: Graph) -> list[str] | None:
    """The outputs that are one positive factor times what a scale reads; None where something else hears of it."""
    if node.offset is not None or node.factor.size != 1 or node.lag or node.inputs[0].delay:
        return None
    return _shown(node, graph) if node.factor.item() > 0 else None


def _shown(node: Node, graph: Graph) -> list[str] | None:
    """The outputs that a node is, itself or reshaped; None where anything else reads it."""
    names = [name for name, ref in graph.outputs if ref.node == node.name]
    for user, operand in graph.users[node.name]:
        behind = _shown(user, graph) if isinstance(user, Reshape) and not user.inputs[operand].delay else None
        if behind is None:
            return None
        names += behind
    return names


def _scale_of(node: Node, ref: Ref, graph: Graph, scales: Mapping[tuple[str, str], float]) -> float:
    """What 1 is on the wire that a node reads. Raises CompileError SPK202 where that depends on the node itself."""
    if graph.type_of(ref).kind == "spike":
        return 1.0
    if (ref.node, ref.port) not in scales:
        node.fail(
            "SPK202", f"reads {ref}, whose scale depends on that of %{node.name} itself", fix=cure(graph, node, "leave out --bits")
        )
    return scales[ref.node, ref.port]


def _amplitude(graph: Graph, ref: Ref, records: Mapping[str, Array] | None, seen: frozenset[str]) -> float:
    """What the numbers on a wire hardly exceed; a wire that feeds itself counts once."""
    node = graph[ref.node]
    if records is not None:
        return float(np.max(np.abs(records[record_name((ref.node, ref.port))]), initial=0.0))
    if graph.type_of(ref).kind == "spike" or isinstance(node, Input):
        return 1.0
    if isinstance(node, Constant):
        return float(np.max(np.abs(node.value), initial=0.0))
    if node.name in seen:
        return 0.0
    if isinstance(node, Neuron) and (largest := largest_amount(node, None)):
        return largest
    inside = [_amplitude(graph, operand, records, seen | {node.name}) for operand in node.inputs]
    if isinstance(node, Sparse):
        return inside[0] * float(np.max(np.bincount(node.rows, np.abs(node.weight)), initial=0.0))
    if isinstance(node, WEIGHTED):
        rows = np.abs(node.weight.astype(np.float64)).reshape(len(node.weight), -1).sum(axis=1)
        return inside[0] * float(np.max(rows, initial=0.0))
    if isinstance(node, Pool) and node.mode == "sum":
        return inside[0] * math.prod(node.kernel)
    return sum(inside) if isinstance(node, (Add, Neuron)) else max(inside, default=0.0)


def _wide_enough(graph: Graph) -> Graph:
    """64-bit sums where 32 bits do not hold the worst case, as behind a weight that reads amounts."""
    found = graph_ranges(graph).wires
    nodes: list[Node] = []
    for node in graph.nodes:
        low, high = found[node.name, ""]
        if isinstance(node, (*WEIGHTED, Add, Pool)) and narrowest(low, high) == "i64":
            node = replace(node, dtype="i64")
        nodes.append(node)
    return graph.with_nodes(nodes)


def _without_averages(graph: Graph, ledger: Ledger) -> Graph:
    """Average pools become sums, and scales go, their factor in the weights before or after them."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node, Pool) and node.mode == "average":
            summed = replace(node, mode="sum", name=f"{node.name}_sum")
            share = np.float32(1.0 / float(np.prod(node.kernel)))
            nodes += [summed, Scale(name=node.name, inputs=(Ref(summed.name),), factor=np.asarray(share), loc=node.loc)]
            ledger.record(node, "exact", "the average becomes a sum and a factor in the weights")
        else:
            nodes.append(node)
    graph = graph.with_nodes(nodes)
    while (after := _fold_one(graph)) is not None:
        graph = after
    return graph


def _fold_one(graph: Graph) -> Graph | None:
    """Fold one scale with a single factor into all layers of weights that read it, or that feed it."""
    for node in graph.nodes:
        if not isinstance(node, Scale) or node.offset is not None or node.factor.size != 1 or node.inputs[0].init is not None:
            continue
        factor = node.factor.reshape(())
        readers = [reader for reader, _ in graph.users[node.name]]
        if any(ref.node == node.name for _, ref in graph.outputs):
            continue
        (ref,) = node.inputs
        if readers and all(isinstance(reader, WEIGHTED) for reader in readers):
            table: dict[str, Node] = {}
            for reader in readers:
                assert isinstance(reader, WEIGHTED)
                (old,) = reader.inputs
                table[reader.name] = replace(reader, weight=reader.weight * factor, inputs=(ref.later(old.delay),))
            return graph.with_nodes(table.get(n.name, n) for n in graph.nodes if n.name != node.name)
        source = graph[ref.node]
        moving = isinstance(source, Pool) or type(source).__name__ in ("Reshape", "Gather")
        if moving and len(graph.users[source.name]) == 1 and not ref.delay:
            inner = replace(node, inputs=source.inputs, name=f"{node.name}_")
            outer = replace(source, inputs=(Ref(inner.name),))
            if graph.type_of(source.inputs[0]).kind == "value" and (factor > 0 or not isinstance(source, Pool)):
                swapped = [x for n in graph.nodes if n.name != node.name for x in ([inner, outer] if n is source else [n])]
                return graph.with_nodes(_reading(swapped, node.name, Ref(source.name)))
        if isinstance(source, WEIGHTED) and len(graph.users[source.name]) == 1 and not ref.delay:
            bias = None if source.bias is None else source.bias * factor
            merged = replace(source, weight=source.weight * factor, bias=bias)
            kept = [merged if n is source else n for n in graph.nodes if n.name != node.name]
            return graph.with_nodes(_reading(kept, node.name, Ref(source.name)))
        users = [reader for reader in readers if type(reader).__name__ in ("Reshape", "Gather")]
        if readers and len(users) == len(readers) == 1:
            (user,) = users
            (old,) = user.inputs
            moved = replace(user, inputs=(ref.later(old.delay),), name=f"{user.name}_")
            after = replace(node, inputs=(Ref(moved.name),), name=user.name)
            kept = [x for n in graph.nodes if n.name != node.name for x in ([moved, after] if n is user else [n])]
            return graph.with_nodes(kept)
    return None


def _reading(nodes: list[Node], old: str, new: Ref) -> list[Node]:
    return redirect(nodes, {(old, ""): new})
