"""From trained floats to integers for a processor: any neuron program, narrow weights, wide states.

Every population and the layers that feed it share one real scale S: W = round(S w). States carry F further fraction bits, so that
decays and thresholds cost next to nothing: a state x is held as round(S 2^F x), saturating at 30 bits. A program is translated
expression by expression: its variables are either amounts (they scale with the input, like a membrane) or pure numbers (an
adaptation variable that counts spikes), which is inferred from the program; a factor becomes an integer and a shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import evaluate, float_truth, interpret
from spikec.ir.neuron import COMPARISONS, LOGIC, STEP, Assign, Call, Expr, Num, Program, State, Var, call, variables
from spikec.ir.ops import Add, Constant, Conv, Dense, Input, Neuron, Node, Pool, Ref, Scale, Sparse
from spikec.ir.ranges import graph_ranges
from spikec.ir.rules import verify
from spikec.ir.types import Array, TensorType, narrowest
from spikec.ledger import Ledger
from spikec.passes.groups import WEIGHTED, Group, groups_of, measure, silent_value
from spikec.passes.rewrite import redirect
from spikec.target import Target

#: States saturate here, so that state * factor >> shift can be done in 32 bits; and so that a state and a sum of a few
#: thousand weights can be added in 16.
STATE_BITS: Final = 30
NARROW_BITS: Final = 15
#: Fraction bits of a factor, at most; and of a pure number.
FACTOR_BITS: Final = 15
NUMBER_BITS: Final = 16
#: Fraction bits of an amount on top of the weights' scale, at most.
FRACTION_BITS: Final = 12
CANDIDATES: Final = (1.0, 0.98, 1.03, 0.95, 1.08, 0.9, 1.15, 1.3)
SEARCH_SAMPLES: Final = 64


@dataclass(frozen=True)
class ToFixed:
    """Floats to integers of `bits` bits a weight. Takes the float level, gives the fixed level; approximate.

    bits: 2 to 16. calibrate: (samples, T, *shape) by input name. labels: (samples,), to measure the accuracy.
    """

    target: Target
    bits: int = 8
    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    name: ClassVar[str] = "to-fixed"
    levels: ClassVar[tuple[str, ...]] = ("float",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """A graph of integers. Raises CompileError SPK202 with everything that has no integer form."""
        if not 2 <= self.bits <= 16:
            raise CompileError("SPK001", f"{self.bits} bits: a weight has 2 to 16 bits")
        graph = verify(_without_averages(graph, ledger))
        problems = [p for node in graph.nodes for p in self._refused(node, graph)]
        if problems:
            raise CompileError.many(problems)
        records = self._float_run(graph)
        scales: dict[tuple[str, str], float] = {}
        converted: dict[str, Node] = {}
        for node in graph.nodes:
            if isinstance(node, (Input, Constant)):
                converted[node.name] = self._source(node)
        members: dict[str, Group] = {}
        for group in groups_of(graph):
            for node in group.nodes:
                members[node.name] = group
        done: set[int] = set()
        waiting = list(graph.order)
        for node in waiting:
            found = members.get(node.name)
            if found is not None and id(found) not in done:
                done.add(id(found))
                self._group(found, graph, scales, converted, records, ledger)
        nodes = [converted.get(node.name, node) for node in graph.nodes]
        result = _wide_enough(graph.with_nodes(nodes, level="fixed"))
        try:
            verify(result)
        except CompileError as error:
            raise CompileError.many(
                Diagnostic("SPK203", d.message, loc=d.loc, notes=d.notes, fix=d.fix) for d in error.diagnostics
            ) from None
        for name, ref in graph.outputs:
            unit = scales.get((ref.node, ref.port), 1.0)
            if not isinstance(graph[ref.node], Neuron) and graph.type_of(ref).kind != "spike" and unit != 1.0:
                ledger.record("", "convention", f"the output {name} is in units of {1 / unit:.6g}")
        measure(graph, result, self.calibrate, self.labels, ledger)
        return result

    def _refused(self, node: Node, graph: Graph) -> list[Diagnostic]:
        def no(message: str, fix: str) -> Diagnostic:
            return Diagnostic("SPK202", f"%{node.name}: {message}", loc=node.loc, fix=fix)

        if isinstance(node, Input) and node.type.kind != "spike":
            whole = node.bounds is not None
            return [] if whole else [no("real-valued input has no integer form yet", "encode it as spikes, or leave out --bits")]
        if isinstance(node, Scale):
            return [no("a scale that feeds no weight has no integer form", "leave out --bits")]
        for ref in node.inputs:
            if ref.init is not None and ref.init.any() and graph.type_of(ref).kind == "value":
                return [no(f"initial values of {ref} have no integer form", "leave out --bits")]
        return []

    def _source(self, node: Input | Constant) -> Node:
        if isinstance(node, Constant):
            return replace(node, value=np.rint(node.value).astype(np.int32))
        if node.type.kind == "spike":
            return replace(node, type=TensorType("spike", node.type.shape, "i8"))
        return replace(node, type=TensorType(node.type.kind, node.type.shape, "i32"))

    # Scales ----------------------------------------------------------------------------------------------------------

    @property
    def _top(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def _group(
        self,
        group: Group,
        graph: Graph,
        scales: dict[tuple[str, str], float],
        converted: dict[str, Node],
        records: Mapping[str, Array] | None,
        ledger: Ledger,
    ) -> None:
        sources = {node.name: self._source_scale(node, graph, scales) for node in group.weighted}
        largest = min(
            (sources[n.name] * self._top / float(np.max(np.abs(n.weight))) for n in group.weighted if n.weight.any()),
            default=1.0,
        )
        scale = self._exact(group, sources, largest)
        if scale is None and records is not None and group.weighted and group.neurons:
            fewest = math.inf
            for factor in CANDIDATES:
                trial = self._convert(group, graph, largest * factor, sources, scales, records, Ledger())
                changed = self._changed(group, graph, trial, records)
                if changed < fewest:
                    scale, fewest = largest * factor, changed
        scale = largest if scale is None else scale
        for node in self._convert(group, graph, scale, sources, scales, records, ledger):
            converted[node.name] = node

    def _source_scale(self, node: Node, graph: Graph, scales: Mapping[tuple[str, str], float]) -> float:
        """What 1 is at the operand of a weight: 1 for spikes and counts of spikes."""
        (ref,) = node.inputs
        if graph.type_of(ref).kind != "value" or isinstance(graph[ref.node], Input):
            return 1.0
        wire = (ref.node, ref.port)
        if wire not in scales:
            node.fail("SPK202", f"reads {ref}, a value that depends on itself through weights", fix="leave out --bits")
        return scales[wire]

    def _exact(self, group: Group, sources: Mapping[str, float], largest: float) -> float | None:
        """The largest power of two at which every weight is whole."""
        for power in range(math.floor(math.log2(largest)), math.floor(math.log2(largest)) - 24, -1):
            scale = 2.0**power
            wanted = [node.weight.astype(np.float64) * (scale / sources[node.name]) for node in group.weighted]
            if wanted and all(np.all(array == np.rint(array)) for array in wanted):
                return scale
        return None

    def _float_run(self, graph: Graph) -> dict[str, Array] | None:
        if self.calibrate is None:
            return None
        data = {name: array[:SEARCH_SAMPLES] for name, array in self.calibrate.items()}
        wires = [f"{name}.{port}" if port else name for name, ports in graph.types.items() for port, _ in ports]
        return interpret(graph, data, record=wires).records

    def _changed(self, group: Group, graph: Graph, nodes: list[Node], records: Mapping[str, Array]) -> int:
        """Spikes of the group that change when everything around it is as in the float network; spiking sources only."""
        own = {node.name for node in group.nodes}
        inputs: dict[str, Input] = {}
        data: dict[str, Array] = {}
        result = []
        for node in nodes:
            refs = []
            for ref in node.inputs:
                if ref.node in own and graph.type_of(ref).kind == "value" and not isinstance(graph[ref.node], Neuron):
                    refs.append(ref)
                    continue
                type_ = graph.type_of(ref)
                if type_.kind == "value":
                    return 0
                name = f"from_{ref.node}_{ref.port}"
                inputs[name] = Input(
                    name=name,
                    type=TensorType(type_.kind, type_.shape, "i8" if type_.kind == "spike" else "i32"),
                    bounds=(0, 1 << 15),
                )
                data[name] = records[ref.node]
                refs.append(replace(ref, node=name, port=""))
            result.append(replace(node, inputs=tuple(refs)))
        spiking = [node for node in group.neurons if node.program.emits[0].kind == "spike"]
        outputs = tuple((node.name, Ref(node.name)) for node in spiking)
        got = interpret(Graph("search", "fixed", (*inputs.values(), *result), outputs), data).outputs
        return sum(int(np.count_nonzero(got[n.name] != records[n.name])) for n in spiking)

    # Conversion ------------------------------------------------------------------------------------------------------

    def _convert(
        self,
        group: Group,
        graph: Graph,
        scale: float,
        sources: Mapping[str, float],
        scales: dict[tuple[str, str], float],
        records: Mapping[str, Array] | None,
        ledger: Ledger,
    ) -> list[Node]:
        bias_moves = all(len(n.inputs) == 1 for n in group.neurons) and not any(
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
        result = []
        for node in group.nodes:
            if isinstance(node, WEIGHTED):
                result.append(self._weights(node, scale / sources[node.name], scale, bias_moves, ledger))
            elif isinstance(node, Neuron):
                result.append(self._neuron(node, graph, scale, scales, bias_moves, records, ledger))
            else:
                result.append(node)
            if not isinstance(node, Neuron):
                scales[node.name, ""] = scale
        return result

    def _weights(self, node: Dense | Sparse | Conv, factor: float, scale: float, bias_moves: bool, ledger: Ledger) -> Node:
        wanted = node.weight.astype(np.float64) * factor
        weight = np.clip(np.rint(wanted), -self._top, self._top)
        self._note(ledger, node, f"weights to multiples of {1 / factor:.6g}", np.abs(weight - wanted) / factor)
        bias = None
        if node.bias is not None and not bias_moves:
            exact = node.bias.astype(np.float64) * scale
            bias = np.rint(exact).astype(np.int32)
            self._note(ledger, node, f"bias to multiples of {1 / scale:.6g}", np.abs(bias - exact) / scale)
        return replace(node, weight=weight.astype(np.int8 if self.bits <= 8 else np.int16), bias=bias, dtype="")

    def _neuron(
        self,
        node: Neuron,
        graph: Graph,
        scale: float,
        scales: dict[tuple[str, str], float],
        bias_moves: bool,
        records: Mapping[str, Array] | None,
        ledger: Ledger,
    ) -> Node:
        units = infer_units(node, graph)
        operands = {}
        for name, ref in zip(node.program.inputs, node.inputs, strict=True):
            kind = graph.type_of(ref).kind
            inner = kind == "value" and not isinstance(graph[ref.node], (Neuron, Input))
            operands[name] = scale if inner else scales.get((ref.node, ref.port), 1.0)
        biases = {}
        if bias_moves:
            offset = silent_value(graph, node.inputs[0])
            if offset.any():
                biases[node.program.inputs[0]] = offset
        # Without factors, constants that are whole at the weights' scale need no fraction bits.
        largest = self._largest(node, records)
        narrow = 0 < largest * scale < 1 << (NARROW_BITS - 1)
        translator = _Translator(node, units, operands, biases, scale, 0, NARROW_BITS if narrow else STATE_BITS)
        translated = translator.node()
        if translator.shifted or any(np.any(error) for _, error in translator.errors):
            translator = _Translator(node, units, operands, biases, scale, self._fraction(largest, scale))
            translated = translator.node()
        for what, error in translator.errors:
            self._note(ledger, node, what, error)
        assert isinstance(translated, Neuron)
        if "clip" in translated.program.operations():
            limits = {name: ((1 << (translator.bits - 1)) - 1) / translator.scale_of(name) for name in node.program.state_names}
            told = ", ".join(f"{name} at +-{limit:.4g}" for name, limit in limits.items())
            ledger.record(node, "convention", f"states saturate: {told}")
        for emit, (port, _) in zip(node.program.emits, graph.types[node.name], strict=True):
            if emit.kind != "spike":
                scales[node.name, port] = translator.scale_of(emit.name)
                if any(r.node == node.name and r.port == port for _, r in graph.outputs):
                    ledger.record(
                        node, "convention", f"the output {emit.name} is in units of {1 / translator.scale_of(emit.name):.6g}"
                    )
        return translated

    def _largest(self, node: Neuron, records: Mapping[str, Array] | None) -> float:
        """An amount that states hardly exceed: eight times what calibration shows, else sixteen times the threshold."""
        seen = [f"{node.name}.{e.name}" if i else node.name for i, e in enumerate(node.program.emits) if e.kind != "spike"]
        if records is not None and seen:
            return max(8 * float(np.max(np.abs(records[name]), initial=0.0)) for name in seen)
        compared = [np.asarray(node.params[name]) for name in sorted(_compared(node.program))]
        return max((16 * float(np.max(np.abs(a[np.isfinite(a)]), initial=0.0)) for a in compared), default=0.0)

    def _fraction(self, largest: float, scale: float) -> int:
        """Fraction bits that leave the states head-room, four times the largest amount that is expected."""
        room = (1 << (STATE_BITS - 1)) / (4 * largest * scale or 1.0)
        return min(FRACTION_BITS, math.floor(math.log2(room)))

    def _note(self, ledger: Ledger, node: Node, what: str, error: Array) -> None:
        if not np.any(error):
            ledger.record(node, "exact", what)
            return
        ledger.record(
            node,
            "approximation",
            what,
            changed=int(np.count_nonzero(error)),
            total=int(np.size(error)),
            largest=float(np.max(error)),
            asked=f"--bits {self.bits}",
        )


def _wide_enough(graph: Graph) -> Graph:
    """64-bit sums where 32 bits do not hold the worst case, as behind a weight that reads amounts."""
    found = graph_ranges(graph).wires
    nodes: list[Node] = []
    for node in graph.nodes:
        low, high = found[node.name, ""]
        if isinstance(node, (*WEIGHTED, Add)) and narrowest(low, high) == "i64":
            node = replace(node, dtype="i64")
        nodes.append(node)
    return graph.with_nodes(nodes)


def _compared(program: Program) -> set[str]:
    """Parameters that occur in a comparison."""
    found: set[str] = set()

    def visit(expr: Expr, inside: bool) -> None:
        if isinstance(expr, Var) and inside:
            found.add(expr.name)
        if isinstance(expr, Call):
            for arg in expr.args:
                visit(arg, inside or expr.op in COMPARISONS)

    for statement in program.body:
        visit(statement.expr, False)
    return found & set(program.params)


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


# --------------------------------------------------------------------------------------------------------------- units


def infer_units(node: Neuron, graph: Graph) -> dict[str, int]:
    """1 for variables that are amounts (they scale with the synaptic sum), 0 for pure numbers.

    What an amount is added to, compared with or assigned from is an amount; a constant factor may turn a number into an amount
    (a threshold of 0.1 + 1.8 b), so nothing is concluded through it except from amounts. What is left is a number.
    """
    program = node.program
    constants = set(program.params)
    units: dict[str, int] = {STEP: 0}
    for name, ref in zip(program.inputs, node.inputs, strict=True):
        units[name] = 1 if graph.type_of(ref).kind == "value" else 0
    for statement in program.body:
        if _flag(statement.expr, program):
            units.setdefault(statement.name, 0)

    def amount(expr: Expr) -> bool:
        """Whether an amount is in it."""
        if isinstance(expr, Var):
            return units.get(expr.name) == 1
        if not isinstance(expr, Call) or _constant(expr, constants) or _truth(expr, program):
            return False
        operands = expr.args[1:] if expr.op == "select" else expr.args[:1] if expr.op in ("/", "rem") else expr.args
        return any(amount(arg) for arg in operands)

    def spread(expr: Expr) -> None:
        """What stands beside an amount, without a factor, is one too."""
        if isinstance(expr, Var):
            if not _truth(expr, program) and expr.name not in constants:
                units.setdefault(expr.name, 1)
        elif isinstance(expr, Call) and not _truth(expr, program):
            if expr.op in ("+", "-", "neg", "min", "max", "abs"):
                for arg in expr.args:
                    spread(arg)
            elif expr.op == "select":
                for arg in expr.args[1:]:
                    spread(arg)

    def comparisons(expr: Expr) -> None:
        if isinstance(expr, Call):
            if expr.op in COMPARISONS and any(amount(arg) for arg in expr.args):
                for arg in expr.args:
                    spread(arg)
            for arg in expr.args:
                comparisons(arg)

    before: dict[str, int] = {}
    while units != before:
        before = dict(units)
        for statement in program.body:
            comparisons(statement.expr)
            if amount(statement.expr):
                units.setdefault(statement.name, 1)
            if units.get(statement.name) == 1:
                spread(statement.expr)
    return {name: units.get(name, 0) for name in (STEP, *program.inputs, *program.state_names, *(s.name for s in program.body))}


def _flag(expr: Expr, program: Program) -> bool:
    """A truth value, or a choice between literals: it counts and does not scale."""
    if _truth(expr, program):
        return True
    return isinstance(expr, Call) and expr.op == "select" and all(isinstance(arg, Num) for arg in expr.args[1:])


def _constant(expr: Expr, constants: set[str]) -> bool:
    return all(name in constants for name in variables(expr))


def _truth(expr: Expr, program: Program) -> bool:
    if isinstance(expr, Var):
        return (
            expr.name not in (*program.inputs, *program.params, *program.state_names, STEP) and program.type_of(expr.name) == "bool"
        )
    if not isinstance(expr, Call):
        return False
    if expr.op == "select":
        return _truth(expr.args[1], program) and _truth(expr.args[2], program)
    return expr.op in COMPARISONS or expr.op in LOGIC


# --------------------------------------------------------------------------------------------------------- translation

Scaled = tuple[Expr, float]


@dataclass
class _Translator:
    """One population's program into integers. Scales are real numbers: an integer n at scale s means n / s."""

    source: Neuron
    units: Mapping[str, int]
    operands: Mapping[str, float]
    biases: Mapping[str, Array]
    scale: float
    fraction: int
    bits: int = STATE_BITS
    params: dict[str, Array] = field(default_factory=dict)
    errors: list[tuple[str, Array]] = field(default_factory=list)
    #: Whether some bits were shifted out.
    shifted: bool = False

    def node(self) -> Node:
        program = self.source.program
        body = []
        for statement in program.body:
            if _truth(statement.expr, program) and statement.name not in program.state_names:
                expr = self.condition(statement.expr)
            else:
                expr = self.at(self.amount(statement.expr), self.scale_of(statement.name))
                if statement.name in program.state_names and _grows(statement.expr):
                    expr = call("clip", expr, self.bits)
            body.append(Assign(statement.name, expr))
        states, init = [], {}
        for state in program.states:
            scale = self.scale_of(state.name)
            given = self.source.init.get(state.name)
            begin = np.rint((np.asarray(state.init) if given is None else given).astype(np.float64) * scale)
            narrow = self.bits <= 16 and _clipped(state.name, body) and np.all(np.abs(begin) < 1 << (NARROW_BITS - 1))
            states.append(State(state.name, int(begin) if given is None else 0, "i16" if narrow else "i32"))
            if given is not None:
                init[state.name] = begin.astype(np.int32)
        names = tuple(self.params)
        fixed = Program(f"{program.name}_{self.source.name}", program.inputs, names, tuple(states), tuple(body), program.emits)
        return replace(self.source, program=fixed, params=self.params, init=init, dtype="")

    def scale_of(self, name: str) -> float:
        """The scale at which a variable is held."""
        if name in self.operands:
            return self.operands[name]
        if name == STEP:
            return 1.0
        return self.scale * 2.0**self.fraction if self.units.get(name, 0) else 2.0**NUMBER_BITS

    def value(self, expr: Expr) -> Array:
        """A constant expression as numbers."""
        env = {k: (v.item() if v.size == 1 and v.ndim <= 1 else v.astype(np.float64)) for k, v in self.source.params.items()}
        return np.asarray(evaluate(expr, env, float_truth), np.float64)

    def is_constant(self, expr: Expr) -> bool:
        return _constant(expr, set(self.source.program.params))

    def is_amount(self, expr: Expr) -> bool:
        """Whether an expression is an amount, to be told from a pure number."""
        if isinstance(expr, Var):
            return bool(self.units.get(expr.name))
        if not isinstance(expr, Call) or _truth(expr, self.source.program):
            return False
        operands = expr.args[1:] if expr.op == "select" else expr.args[:1] if expr.op in ("/", "rem") else expr.args
        return any(self.is_amount(arg) for arg in operands)

    def literal(self, wanted: Array, what: str, scale: float) -> Expr:
        """Whole numbers as a literal or a parameter."""
        whole = np.rint(wanted)
        whole = np.clip(np.where(np.isfinite(wanted), whole, np.sign(wanted) * 2.0**40), -(2.0**40), 2.0**40)
        self.errors.append((what, np.where(np.isfinite(wanted), np.abs(whole - wanted), 0) / scale))
        return self.whole(whole)

    def whole(self, numbers: Array) -> Expr:
        if numbers.size == 1 and numbers.ndim <= 1:
            return Num(int(numbers.item()))
        wide = np.abs(numbers).max(initial=0) >= 1 << 31
        array = numbers.astype(np.int64 if wide else np.int32)
        for name, known in self.params.items():
            if np.array_equal(known, array):
                return Var(name)
        taken = {*self.source.program.inputs, *self.source.program.state_names, *(s.name for s in self.source.program.body)}
        number = len(self.params)
        while f"k{number}" in taken:
            number += 1
        self.params[f"k{number}"] = array
        return Var(f"k{number}")

    def at(self, scaled: Scaled, scale: float) -> Expr:
        """The same amount at another scale: a shift where the scales differ by a power of two, else a factor and a shift."""
        expr, own = scaled
        if isinstance(expr, Num):
            return self.literal(np.asarray(expr.value * (scale / own)), f"constants to multiples of {1 / scale:.6g}", scale)
        ratio = math.log2(scale / own)
        shift = round(ratio)
        if abs(ratio - shift) < 1e-12:
            self.shifted |= shift < 0
            return call("<<", expr, shift) if shift > 0 else call(">>", expr, -shift) if shift < 0 else expr
        self.shifted = True
        bits = max(0, FACTOR_BITS - max(0, math.ceil(ratio)))
        k = self.literal(np.asarray(scale / own * 2.0**bits), "factors between scales", 2.0**bits)
        product = Call("*", (expr, k))
        return call(">>", product, bits) if bits else product

    def refuse(self, why: str) -> CompileError:
        return CompileError(
            "SPK202",
            f"%{self.source.name}: @{self.source.program.name} {why}",
            loc=self.source.loc,
            fix="leave out --bits, or write the neuron without it",
        )

    def amount(self, expr: Expr) -> Scaled:
        """An expression of numbers, with its scale."""
        if self.is_constant(expr):
            scale = 2.0**NUMBER_BITS
            return self.literal(self.value(expr) * scale, "constants to 16 fraction bits", scale), scale
        if isinstance(expr, Var):
            if _truth(expr, self.source.program):
                return call("select", expr, 1, 0), 1.0
            if expr.name in self.biases:
                return self._biased(expr)
            return expr, self.scale_of(expr.name)
        assert isinstance(expr, Call)
        if _truth(expr, self.source.program):
            return call("select", self.condition(expr), 1, 0), 1.0
        rule: Callable[..., Scaled] | None = {
            "+": self._sum,
            "-": self._sum,
            "min": self._sum,
            "max": self._sum,
            "*": self._product,
            "/": self._quotient,
            "select": self._select,
            "neg": self._unary,
            "abs": self._unary,
            "floor": self._floor,
            "round": self._floor,
            "rem": self._sum,
        }.get(expr.op)
        if rule is None:
            raise self.refuse(f"uses '{expr.op}', which has no integer form")
        return rule(expr)

    def _biased(self, expr: Var) -> Scaled:
        """A synaptic sum and the bias of the layers behind it, at the state's resolution."""
        scale = self.operands[expr.name] * 2.0**self.fraction
        bias = self.literal(self.biases[expr.name] * scale, f"bias to multiples of {1 / scale:.6g}", scale)
        return Call("+", (self.at((expr, self.operands[expr.name]), scale), bias)), scale

    def _common(self, *exprs: Expr, what: str) -> tuple[list[Expr], float]:
        """Operands at one scale: the finest that an amount among them has, else a number; constants follow."""
        parts: list[Scaled | None] = [None if self.is_constant(e) else self.amount(e) for e in exprs]
        known = [part[1] for part in parts if part is not None]
        amounts = [scale for scale in known if math.log2(scale / self.scale) % 1 == 0]
        scale = max(amounts or known, default=2.0**NUMBER_BITS)
        result = []
        for expr, part in zip(exprs, parts, strict=True):
            if part is None:
                result.append(self.literal(self.value(expr) * scale, f"{what} to multiples of {1 / scale:.6g}", scale))
            else:
                result.append(self.at(part, scale))
        return result, scale

    def _sum(self, expr: Call) -> Scaled:
        (left, right), scale = self._common(*expr.args, what="constants")
        return Call(expr.op, (left, right)), scale

    def _unary(self, expr: Call) -> Scaled:
        inner, scale = self.amount(expr.args[0])
        return Call(expr.op, (inner,)), scale

    def _floor(self, expr: Call) -> Scaled:
        inner, scale = self.amount(expr.args[0])
        bits = math.log2(scale)
        if bits != round(bits) or bits < 0:
            raise self.refuse(f"uses '{expr.op}' of an amount, whose scale is not a power of two")
        if expr.op == "round" and bits >= 1:
            inner = Call("+", (inner, Num(1 << (round(bits) - 1))))
        return call(">>", inner, round(bits)) if bits else inner, 1.0

    def _select(self, expr: Call) -> Scaled:
        condition, yes, no = expr.args
        (a, b), scale = self._common(yes, no, what="constants")
        return Call("select", (self.condition(condition), a, b)), scale

    def _product(self, expr: Call) -> Scaled:
        left, right = expr.args
        for condition, other in ((left, right), (right, left)):
            if _truth(condition, self.source.program):
                if self.is_constant(other):
                    wanted = self._constant_scale(expr)
                    value = self.literal(self.value(other) * wanted, f"constants to multiples of {1 / wanted:.6g}", wanted)
                    return call("select", self.condition(condition), value, 0), wanted
                inner, scale = self.amount(other)
                return call("select", self.condition(condition), inner, 0), scale
        for factor, other in ((left, right), (right, left)):
            if self.is_constant(factor):
                return self._times(other, self.value(factor))
        if self.is_amount(right):
            left, right = right, left
        if self.is_amount(right):
            raise self.refuse("multiplies two amounts")
        (a, one), (b, two) = self.amount(left), self.amount(right)
        bits = math.log2(two)
        product = Call("*", (a, b))
        self.shifted |= bits > 0
        return (call(">>", product, round(bits)) if bits > 0 else product), one

    def _constant_scale(self, expr: Expr) -> float:
        """The scale for a constant that only a truth value multiplies: the amounts', unless all is pure numbers."""
        return self.scale * 2.0**self.fraction if any(self.units.values()) else 2.0**NUMBER_BITS

    def _quotient(self, expr: Call) -> Scaled:
        if not self.is_constant(expr.args[1]):
            raise self.refuse("divides by a variable")
        return self._times(expr.args[0], 1.0 / self.value(expr.args[1]))

    def _times(self, other: Expr, factor: Array) -> Scaled:
        """x * c as x * k >> n, with the fewest bits that are exact, else the most that stay in 32 bits."""
        inner, scale = self.amount(other)
        if np.all(factor == 1):
            return inner, scale
        if not np.all(np.isfinite(factor)):
            raise self.refuse("has a factor that is not finite")
        # A pure count (scale 1) has no fraction bits of its own to lose the product in.
        if scale == 1.0 and np.any(factor != np.rint(factor)):
            inner, scale = call("<<", inner, NUMBER_BITS), 2.0**NUMBER_BITS
        most = max(0, FACTOR_BITS - max(0, math.frexp(float(np.max(np.abs(factor))))[1] - 1))
        bits = next((n for n in range(most + 1) if np.all(factor * 2.0**n == np.rint(factor * 2.0**n))), most)
        k = self.literal(factor * 2.0**bits, f"factors to multiples of 1/{1 << bits}", 2.0**bits)
        product = Call("*", (inner, k))
        self.shifted |= bits > 0
        return (call(">>", product, bits) if bits else product), scale

    def condition(self, expr: Expr) -> Expr:
        """An expression of truth values. A constant on one side of a comparison is rounded so that nothing changes."""
        if isinstance(expr, Var):
            return expr
        assert isinstance(expr, Call)
        if expr.op in LOGIC:
            return Call(expr.op, tuple(self.condition(arg) for arg in expr.args))
        if expr.op == "select":
            return Call("select", tuple(self.condition(arg) for arg in expr.args))
        left, right = expr.args
        for variable, constant, op in ((left, right, expr.op), (right, left, _MIRRORED[expr.op])):
            if self.is_constant(constant) and not self.is_constant(variable):
                inner, scale = self.amount(variable)
                wanted = self.value(constant) * scale
                limit = 2.0**40
                wanted = np.clip(np.where(np.isnan(wanted), limit, wanted), -limit, limit)
                if op in (">", "<="):
                    return Call(op, (inner, self.whole(np.floor(wanted + 1e-9 * np.abs(wanted)))))
                if op in (">=", "<"):
                    return Call(op, (inner, self.whole(np.ceil(wanted - 1e-9 * np.abs(wanted)))))
                return Call(op, (inner, self.literal(wanted, "constants", scale)))
        (a, b), _ = self._common(left, right, what="constants")
        return Call(expr.op, (a, b))


def _clipped(state: str, body: list[Assign]) -> bool:
    """Whether nothing but a saturated value, a choice between such and zero, or a small literal is assigned to a state."""

    def small(expr: Expr) -> bool:
        if isinstance(expr, Num):
            return abs(expr.value) < 1 << (NARROW_BITS - 1)
        if isinstance(expr, Call) and expr.op == "select":
            return small(expr.args[1]) and small(expr.args[2])
        return expr == Var(state) or (isinstance(expr, Call) and expr.op == "clip")

    return all(small(statement.expr) for statement in body if statement.name == state)


_MIRRORED: Final[dict[str, str]] = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


def _grows(expr: Expr) -> bool:
    """Whether an assignment can leave the range of what it reads: it adds or multiplies."""
    if not isinstance(expr, Call):
        return False
    return expr.op in ("+", "-", "*", "/") or any(_grows(arg) for arg in expr.args)
