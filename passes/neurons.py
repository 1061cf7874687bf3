"""Which neurons of a float graph are the target's own, up to algebra, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.algebra import Match, match, same_state
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.neuron import Assign, Emit, Num, Program, Var, call, variables
from spikec.ir.ops import Add, Constant, Neuron, Node, Ref, Scale, Sparse, spread
from spikec.ir.text import parse_program
from spikec.ir.types import Array, Kind
from spikec.ledger import Ledger
from spikec.passes.apart import apart, feedback, negated, read_apart
from spikec.passes.readouts import cure
from spikec.passes.rewrite import fresh_name
from spikec.passes.splits import Split, find_split
from spikec.target import NativeNeuron, Target

CHOICES: Final = ("allow", "refuse")
#: At most so many calibration samples are used to measure an alternative.
MEASURED_SAMPLES: Final = 96


def check_choice(custom_neurons: str) -> None:
    """Raise CompileError SPK001 if an option's value is none of the choices."""
    if custom_neurons not in CHOICES:
        raise CompileError("SPK001", f"custom_neurons is one of {', '.join(CHOICES)}, not {custom_neurons!r}")


class Neurons:
    """One walk over a graph's populations; `problems` holds what was refused.

    allow: whether a neuron that the target's library lacks may run as a program of its own.
    """

    def __init__(self, target: Target, graph: Graph, allow: bool, calibrate: Mapping[str, Array] | None, ledger: Ledger) -> None:
        self.target = target
        self.graph = graph
        self.allow = allow
        self.calibrate = calibrate
        self.ledger = ledger
        self.problems: list[Diagnostic] = []
        self._taken = set(graph.by_name)
        self._renamed: dict[tuple[str, str], str] = {}
        #: Populations in the place of one, and what a spike of each counts.
        self._parts: dict[str, list[tuple[str, int]]] = {}

    def run(self) -> Graph:
        """The graph with native patterns where they match; input gains become scales in front of them."""
        nodes = [new for node in self.graph.nodes for new in (self._neuron(node) if isinstance(node, Neuron) else [node])]
        nodes = read_apart(self.graph, nodes, self._parts, self._taken)
        renamed = self._renamed
        outputs = [(n, replace(r, port=renamed.get((r.node, r.port), r.port))) for n, r in self.graph.outputs]
        return self.graph.with_nodes(nodes, outputs)

    def _neuron(self, node: Neuron) -> list[Node]:
        found = self._match(node)
        first = found[0].emits[0].kind if isinstance(found, tuple) else node.program.emits[0].kind
        if self._sends(node, first):
            return [node]
        if isinstance(found, tuple):
            pattern, matched = found
            extra, hidden = self._probes(node, matched)
            if not hidden:
                return self._native(node, pattern, matched, extra)
            reasons = hidden
        else:
            reasons = found
        if (split := find_split(node.program, node.params, node.init)) and (nodes := self._split(node, split)):
            return nodes
        if not self.allow:
            self.problems.append(self._refusal(node, reasons))
        return [node]

    def _sends(self, node: Neuron, first: Kind) -> bool:
        """Whether a number that is no message is sent to another node; it can only be shown."""
        before = len(self.problems)
        for index, emit in enumerate(node.program.emits):
            port = emit.name if index else ""
            readers = [user for user, at in self.graph.users[node.name] if user.inputs[at].port == port]
            if readers and (index or first == "value"):
                message = f"%{node.name}: {self.target.name} cannot send {emit.name} to %{readers[0].name}, only spikes"
                fix = cure(self.graph, readers[0], "use its spikes, or the target host")
                self.problems.append(Diagnostic("SPK201", message, loc=node.loc, fix=fix))
        return len(self.problems) > before

    # Native ----------------------------------------------------------------------------------------------------------

    def _match(self, node: Neuron) -> tuple[Program, Match] | list[str]:
        """The pattern that a population is, or why it is none of them."""
        shape = self.graph.shape_of(node.name)
        reasons = []
        params = {name: spread(array, shape) for name, array in node.params.items()}
        for native in self.target.neurons:
            if not native.pattern:
                continue
            pattern = parse_program(native.pattern)
            found = match(node.program, params, pattern)
            if isinstance(found, Match) and (name := _never_below(native, found)):
                reasons.append(f"{native.name}: spikes at its threshold, and a {name} is not above 0")
                continue
            if isinstance(found, Match):
                solved = {name: _packed(array, shape) for name, array in found.params.items()}
                return pattern, replace(found, params=solved, gains=tuple(_packed(gain, shape) for gain in found.gains))
            reasons.append(f"{native.name}: {found}")
        return reasons

    def _probes(self, node: Neuron, matched: Match) -> tuple[dict[str, str], list[str]]:
        """Further ports: a native neuron shows its states after the step. Pattern state by port, and what it cannot show."""
        native = {own: name for name, own in matched.states.items()}
        extra: dict[str, str] = {}
        hidden = []
        for emit in node.program.emits[1:]:
            if any(ref.node == node.name and ref.port == emit.name for _, ref in self.graph.outputs):
                state = same_state(node.program, node.params, emit.name)
                if state is None:
                    hidden.append(f"the output {emit.name} is not a state at the end of the step")
                else:
                    extra[emit.name] = native[state]
        return extra, hidden

    def _native(self, node: Neuron, pattern: Program, matched: Match, extra: Mapping[str, str], told: bool = True) -> list[Node]:
        for port, state in extra.items():
            self._renamed[node.name, port] = state
        states = dict.fromkeys(extra.values())
        emits = (*pattern.emits[:1], *(Emit(state, "value") for state in states))
        suffix = "".join(f"_{state}" for state in states)
        program = Program(pattern.name + suffix, pattern.inputs, pattern.params, pattern.states, pattern.body, emits)
        inputs: list[Ref] = []
        nodes: list[Node] = []
        for index, (ref, gain) in enumerate(zip(node.inputs, matched.gains, strict=True)):
            if np.all(gain == 1):
                inputs.append(ref)
                continue
            scale = fresh_name(self._taken, f"{node.name}_gain{index or ''}")
            nodes.append(Scale(name=scale, inputs=(ref,), factor=_as(gain, np.float32), loc=node.loc))
            inputs.append(Ref(scale))
        params = {name: _as(value, np.float64) for name, value in matched.params.items()}
        nodes.append(replace(node, inputs=tuple(inputs), program=program, params=params, init=_initial(node, matched)))
        if not told:
            return nodes
        names = ", ".join(f"{own} is {native}" for native, own in matched.states.items() if own != native)
        self.ledger.record(
            node,
            "exact",
            f"@{node.program.name} is {self.target.name}'s @{pattern.name}" + (f" ({names})" if names else ""),
        )
        return nodes

    # Splits ----------------------------------------------------------------------------------------------------------

    def _split(self, node: Neuron, split: Split) -> list[Node] | None:
        """The population as neurons whose current is the membrane, with synapses back to all of them; None if that cannot be."""
        native = next(
            (n for n in self.target.neurons if n.bias_synapse and n.pattern and _reaches(n) == split.reached and not n.late), None
        )
        extra = [
            e.name for e in node.program.emits[1:] if any((r.node, r.port) == (node.name, e.name) for _, r in self.graph.outputs)
        ]
        several = len(split.comparators) > 1
        if native is None or node.inputs[0].init is not None or (several and (extra or not apart(self.graph, node.name))):
            return None
        states = {e: same_state(node.program, node.params, e) for e in extra}
        if any(state is None or state != split.state for state in states.values()):
            return None
        shape, loc = self.graph.shape_of(node.name), node.loc
        names = (
            [node.name] if not several else [fresh_name(self._taken, f"{node.name}_{k + 1}") for k in range(len(split.comparators))]
        )
        nodes: list[Node] = []
        totals: dict[int, Ref] = {}
        for sign in dict.fromkeys(item.sign for item in split.comparators):
            side = "" if sign > 0 else "_negative"
            ref = node.inputs[0]
            if sign < 0:
                copied = negated(self.graph, ref, self._taken)
                if copied is None:
                    return None
                ref, clones = copied
                nodes += clones
            if np.any(split.gain != 1):
                scale = fresh_name(self._taken, f"{node.name}_gain{side}")
                nodes.append(Scale(name=scale, inputs=(ref,), factor=_as(_packed(split.gain, shape), np.float32), loc=loc))
                ref = Ref(scale)
            operands = [ref]
            if np.any(split.bias):
                value = np.broadcast_to(spread(_packed(np.asarray(split.bias), shape), shape), shape) * sign
                constant = fresh_name(self._taken, f"{node.name}_bias{side}")
                nodes.append(Constant(name=constant, value=np.ascontiguousarray(value, np.float32), loc=loc))
                operands.append(Ref(constant))
            if np.any(split.drop):
                for name, item in zip(names, split.comparators, strict=True):
                    weight = -sign * item.emits * np.broadcast_to(spread(_packed(np.asarray(split.drop), shape), shape), shape)
                    back = feedback(name, fresh_name(self._taken, f"{name}_back{side}"), weight, self._taken, loc)
                    nodes += back
                    operands.append(Ref(back[-1].name))
            if len(operands) > 1:
                total = fresh_name(self._taken, f"{node.name}_input{side}")
                nodes.append(Add(name=total, inputs=tuple(operands), loc=loc))
                ref = Ref(total)
            totals[sign] = ref
        for name, item in zip(names, split.comparators, strict=True):
            params = {
                "alpha": split.beta,
                "beta": np.zeros(()),
                "theta": _packed(np.asarray(item.theta), shape),
                "bias": np.zeros(()),
            }
            matched = Match({key: np.asarray(value) for key, value in params.items()}, (np.ones(()),), {"u": split.own})
            init = node.init
            if item.sign < 0:
                begin = init.get(split.own, np.asarray(node.program.states[0].init))
                init = {split.own: -np.asarray(begin, np.float64)}
            one = replace(node, name=name, inputs=(totals[item.sign],), init=init)
            nodes += self._native(one, parse_program(native.pattern), matched, dict.fromkeys(extra, "u"), told=False)
        if several:
            self._parts[node.name] = [(name, item.emits) for name, item in zip(names, split.comparators, strict=True)]
        size = int(np.prod(shape, dtype=np.int64))
        added = size * (len(names) - 1)
        synapses = size * sum(isinstance(n, Sparse) for n in nodes)
        self.ledger.record(
            node,
            "exact",
            f"@{node.program.name} becomes {len(names)} of {self.target.name}'s @{parse_program(native.pattern).name} a neuron, "
            f"whose current is its membrane ({split.what}{', and synapses back' if synapses else ''})",
            measured={"neurons added": float(added), "synapses added": float(synapses)},
        )
        return nodes

    # Refusal ---------------------------------------------------------------------------------------------------------

    def _refusal(self, node: Neuron, reasons: list[str]) -> Diagnostic:
        name = self.target.name
        other = self._reset_to_zero(node)
        notes = [*reasons, "as a program of its own (custom_neurons=allow): changes no spike, needs microcode on silicon"]
        if other is not None:
            notes.append(f"reset to zero in the same step, {name}'s own neuron: {self._cost(node, other)}")
        return Diagnostic(
            "SPK201",
            f"%{node.name}: {name} has no neuron that computes @{node.program.name}",
            loc=node.loc,
            notes=tuple(notes),
            fix="use a neuron that resets to zero in the same step (snnTorch: reset_mechanism='zero', "
            "reset_delay=False), or custom_neurons=allow, or compile for host or reference",
        )

    def _reset_to_zero(self, node: Neuron) -> Neuron | None:
        """The same neuron with one of its states reset to zero where it spikes, if that is a native one.

        A delayed reset asks at the next step whether the state is still above threshold: it never is then.
        """
        program = node.program
        known = {*program.params, *program.state_names}
        never = call(">", 0, 0)
        spike = program.emits[0].name
        if program.type_of(spike) != "bool":
            return None
        for state in program.state_names:
            reset = Assign(state, call("select", Var(spike), Num(0), Var(state)))
            seen: set[str] = set()
            body = []
            for statement in program.body:
                old = program.type_of(statement.name) == "bool" and set(variables(statement.expr)) <= known - seen
                body.append(Assign(statement.name, never) if old else statement)
                seen.add(statement.name)
            body.append(reset)
            changed = Program(program.name, program.inputs, program.params, program.states, tuple(body), program.emits[:1])
            other = replace(node, program=changed)
            if isinstance(self._match(other), tuple):
                return other
        return None

    def _cost(self, node: Neuron, other: Neuron) -> str:
        """What a change of one population does to its spikes on the calibration data."""
        if self.calibrate is None:
            return "not measured, as there is no calibration data"
        data = {name: array[:MEASURED_SAMPLES] for name, array in self.calibrate.items()}
        graph = self.graph.with_nodes(
            replace(other, program=_emitting(other.program, node.program)) if n is node else n for n in self.graph.nodes
        )
        try:
            one, two = (interpret(g, data, record=(node.name,)).records[node.name] for g in (self.graph, graph))
        except CompileError as error:
            return f"not measured ({error.diagnostics[0].message})"
        return f"changes {int(np.count_nonzero(one != two))} of {int(np.count_nonzero(one))} spikes on the calibration data"


def _reaches(native: NativeNeuron) -> bool:
    """Whether a native neuron spikes at its threshold, and not only above."""
    return any(rule.startswith("reached") for rule in native.rules.values())


def _never_below(native: NativeNeuron, found: Match) -> str:
    """A threshold at which a neuron would spike at rest."""
    names = [rule.split()[1] for rule in native.rules.values() if rule.startswith("reached")]
    return next((name for name in names if not np.all(found.params[name] > 0)), "")


def _emitting(program: Program, like: Program) -> Program:
    return Program(program.name, program.inputs, program.params, program.states, program.body, like.emits)


def _packed(array: Array, shape: tuple[int, ...]) -> Array:
    """A parameter as nodes hold it: one per channel is an array of one axis."""
    if array.ndim == len(shape) > 1 and array.shape == (shape[0], *(1,) * (len(shape) - 1)):
        return array.reshape(-1)
    return array


def _as(value: Any, dtype: Any) -> Array:
    array = np.asarray(value, dtype)
    return array.reshape(()) if array.size == 1 and array.ndim <= 1 else array


def _initial(node: Neuron, matched: Match) -> dict[str, Array]:
    """Initial states under the pattern's names; only those that are not zero, the patterns' own."""
    result = {}
    for native, own in matched.states.items():
        given = node.init.get(own)
        value = np.asarray(given if given is not None else next(s.init for s in node.program.states if s.name == own))
        if value.any():
            result[native] = value.astype(np.float64)
    return result
