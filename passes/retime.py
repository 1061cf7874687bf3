"""Move a graph to the target's timing: every synapse takes a step, and nothing else changes (design §4).

Leiserson and Saxe: an integer lag r per node such that d + r(v) - r(u) is at least the hardware's minimum on every edge; the
smallest lags come from Bellman-Ford. Node v then does its own step h - r(v) at hardware step h, so every spike is the same, r steps
later. A population that starts late must be silent before and enter its step 0 in its initial state; four ways are tried in order,
each by running the program itself. Where a delay exceeds the target's, relay neurons hold the spikes (`spikec.passes.relays`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.interpret import Interpreter
from spikec.ir.neuron import STEP, Assign, Call, Num, Program, Var, substitute, variables
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Node, Ref, Reshape, Sparse, spread
from spikec.ir.ranges import graph_ranges
from spikec.ir.types import DTYPES, Array, TensorType, int_range
from spikec.ledger import Ledger
from spikec.passes.relays import fewest, insert, longest_wait, relay_of
from spikec.passes.rewrite import fresh_name, redirect, redirect_outputs
from spikec.target import NativeNeuron, Target

if TYPE_CHECKING:
    import networkx as nx

SYNAPSES = (Dense, Sparse, Conv)
_ROOT = ""
#: Longer than any synapse takes; a number beyond is a slip.
MOST_HOP: Final = 64


@dataclass(frozen=True)
class Retime:
    """Give every synapse the target's latency. Fixed level, exact; outputs appear `lag` steps later, which runners remove.

    hop: steps a synapse takes (the target's, if not given). rigid: wires without a synapse take no time and cannot be
    delayed, as on Loihi; otherwise they may get delays.
    """

    target: Target
    hop: int | None = None
    rigid: bool = True
    name: ClassVar[str] = "retime"
    levels: ClassVar[tuple[str, ...]] = ("fixed",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The retimed graph. Raises CompileError SPK204 (with the cycle), SPK205, SPK206."""
        own = self.target.integer("synapse_hop")
        hop = own if self.hop is None else self.hop
        if not 0 <= hop <= MOST_HOP:
            raise CompileError(
                "SPK001", f"hop is the steps that a synapse takes, 0 to {MOST_HOP}, not {hop}; {self.target.name}'s take {own}"
            )
        lags = self._solve(graph, hop, ledger)
        moved = graph.with_nodes(self._moved(node, lags) for node in graph.nodes)
        early = self._early_values(graph, lags)
        taken = set(graph.by_name)
        if self.target.has("max_delay") and hop <= self.target.integer("max_delay") + 1:
            moved, lags = insert(moved, lags, self.target, hop, self.target.integer("max_delay"), taken, ledger)
        problems = [*self._delays(moved, hop), *early]
        if problems:
            raise CompileError.many(problems)
        silent = _silent_inputs(moved, lags)
        nodes: list[Node] = []
        for node in moved.nodes:
            own = lags[node.name]
            if isinstance(node, Neuron) and node.stop is not None:
                node = replace(node, stop=node.stop + own)
            if not isinstance(node, Neuron) or not own:
                nodes.append(node)
            elif node.start:
                # It starts by a prologue already, which gets longer.
                nodes.append(replace(self._shift_clock(node, own, ledger), start=node.start + own))
            else:
                nodes += self._late(node, own, silent[node.name], moved, hop, taken, ledger)
        result = moved.with_nodes(nodes)
        if result.max_lag:
            for name, _ in result.outputs:
                ledger.record("", "exact", f"output {name} appears {result.output_lag(name)} step(s) later")
        return result

    # Lags ------------------------------------------------------------------------------------------------------------

    def _solve(self, graph: Graph, hop: int, ledger: Ledger) -> dict[str, int]:
        """The smallest lags: longest paths, found as shortest paths with the signs turned. Where a delay then exceeds what a
        synapse holds, the lags that need the fewest relay neurons."""
        import networkx as nx

        constraints = nx.DiGraph()

        def at_least(v: str, u: str, steps: int) -> None:
            """r(v) >= r(u) + steps."""
            if not constraints.has_edge(u, v) or constraints[u][v]["weight"] > -steps:
                constraints.add_edge(u, v, weight=-steps)

        for node in graph.nodes:
            at_least(node.name, _ROOT, 0)
            if isinstance(node, Input):
                at_least(_ROOT, node.name, 0)
            for ref in node.inputs:
                at_least(node.name, ref.node, (hop if isinstance(node, SYNAPSES) else 0) - ref.delay)
                if self.rigid and not isinstance(node, SYNAPSES):
                    at_least(ref.node, node.name, ref.delay)
        try:
            found = nx.single_source_bellman_ford_path_length(constraints, _ROOT)
        except nx.NetworkXUnbounded:
            cycle = [name for name in _negative_cycle(constraints) if name != _ROOT]
            steps = " -> ".join(f"%{name}" for name in cycle)
            readers = {(ref.node, node.name) for node in graph.nodes for ref in node.inputs}
            ring = list(zip(cycle, cycle[1:] + cycle[:1], strict=True))
            against = [reader for reader, source in ring if (reader, source) not in readers and (source, reader) in readers]
            if against and self.rigid:
                # Not a loop of the model: ways of different length meet, or a delay lies, where nothing can wait.
                joint = graph[against[0]]
                raise CompileError(
                    "SPK204",
                    f"%{joint.name}: what it reads arrives in different steps on {self.target.name}, and has to wait there",
                    loc=joint.loc,
                    notes=(f"every synapse takes {hop} step(s), and a wire without a synapse cannot wait",),
                    fix="let each of them go through weights of its own, or be an output of its own",
                ) from None
            raise CompileError(
                "SPK204",
                f"the timing of {self.target.name} cannot be met: {steps}",
                loc=graph[cycle[0]].loc,
                notes=(f"every synapse takes {hop} step(s)" + (", and wires without a synapse take none" if self.rigid else ""),),
                fix="let the recurrent connection read an earlier step, or put a synapse into it",
            ) from None
        lags = {node.name: -int(found[node.name]) for node in graph.nodes}
        limit = self.target.integer("max_delay") if self.target.has("max_delay") else None
        if limit is None or hop > limit + 1:
            return lags
        lags, proven = fewest(graph, constraints, _ROOT, lags, hop, limit, relay_of(self.target) is not None)
        if not proven:
            ledger.record("", "convention", "the search for the fewest relay neurons was cut short; there may be a way with fewer")
        return lags

    def _moved(self, node: Node, lags: Mapping[str, int]) -> Node:
        own = lags[node.name]
        inputs = []
        for ref in node.inputs:
            delay = ref.delay + own - lags[ref.node]
            init = None
            if ref.init is not None and ref.init.any():
                late = lags[ref.node]
                if late and ref.init[ref.delay - min(late, ref.delay) :].any():
                    node.fail("SPK206", f"the initial values of {ref} would have to be sent before %{ref.node} starts")
                if self.rigid:
                    node.fail("SPK206", f"{ref} has initial values, and the target's delay lines begin empty")
                kept = ref.init[: max(ref.delay - late, 0)]
                init = np.concatenate([np.zeros((own, *ref.init.shape[1:]), ref.init.dtype), kept])
            inputs.append(Ref(ref.node, ref.port, delay, init))
        changed = replace(node, inputs=tuple(inputs), lag=node.lag + own)
        return replace(changed, start=changed.start + own) if isinstance(changed, Constant) else changed

    def _delays(self, graph: Graph, hop: int) -> list[Diagnostic]:
        if not self.target.has("max_delay"):
            return []
        limit = self.target.integer("max_delay")
        problems = []
        for node in graph.nodes:
            if isinstance(node, SYNAPSES):
                needed = longest_wait(graph, node) - hop
                if needed > limit:
                    graded = graph.type_of(node.inputs[0]).kind != "spike"
                    why = ", and relay neurons pass on spikes but no numbers" if graded else ", and it has no relay neuron"
                    problems.append(
                        Diagnostic(
                            "SPK205",
                            f"%{node.name}: needs a synaptic delay of {needed} steps; {self.target.name} has {limit}{why}",
                            loc=node.loc,
                            fix="shorten the delay in the model" + (", or send spikes" if graded else ""),
                        )
                    )
        return problems

    def _early_values(self, graph: Graph, lags: Mapping[str, int]) -> list[Diagnostic]:
        """A delayed read of a wire that is not silent before its node's step 0 would see what the model never had."""
        silence = _silence(graph)
        problems = []
        for node in graph.nodes:
            for ref in node.inputs:
                extra = getattr(node, "delay", None)
                reach = ref.delay + (int(extra.max(initial=0)) if extra is not None else 0)
                if reach and lags[ref.node] and silence[ref.node, ref.port].any():
                    problems.append(
                        Diagnostic(
                            "SPK206",
                            f"%{node.name}: reads {ref}, whose bias would be there before its first step",
                            loc=node.loc,
                            fix="move the bias into the neuron",
                        )
                    )
        return problems

    # Starting late ---------------------------------------------------------------------------------------------------

    def _late(
        self, node: Neuron, own: int, silent: list[list[Array]], graph: Graph, hop: int, taken: set[str], ledger: Ledger
    ) -> list[Node]:
        """The population, changed so that it is silent for `own` steps and then in its initial state."""
        node = self._shift_clock(node, own, ledger)
        shape = graph.shape_of(node.name)
        begin = _initial(node, shape)
        # Spikes count in any case; what else it emits has to be silent where a node reads it, not where it is only shown.
        heard = frozenset({"", *(user.inputs[index].port for user, index in graph.users[node.name])})
        done = _prelude(node, shape, silent, begin, begin, heard)
        if done.all():
            ledger.record(node, "exact", f"starts {own} step(s) late: its initial state is silent and stays")
            return [node]
        before, solved = self._preimage(node, shape, silent, begin, done, heard)
        if solved.all():
            ledger.record(node, "exact", f"starts {own} step(s) late from an earlier state that leads to its own")
            return [replace(node, init=_packed(node, before))]
        synapse = self._bias_synapse(node, own, shape, silent, begin, before, solved, hop, graph, taken, heard)
        if synapse is not None:
            ledger.record(node, "exact", f"starts {own} step(s) late: its bias comes from an always-on source")
            return synapse
        if self.target.native(node.program) is None:
            how = "a counter of its own keeps it as it is until then"
        else:
            how = "by a prologue, the host writes bias and state after them"
        ledger.record(node, "exact", f"starts {own} step(s) late: {how}")
        return [replace(node, start=own)]

    def _shift_clock(self, node: Neuron, own: int, ledger: Ledger) -> Neuron:
        """The node's own step counter begins at its step 0."""
        if not any(STEP in variables(statement.expr) for statement in node.program.body):
            return node
        native = self.target.native(node.program)
        if native is not None and native.late:
            params: dict[str, Array] = dict(node.params)
            for phase, period in native.late.items():
                params[phase] = (params[phase] + own) % params[period]
            ledger.record(node, "exact", f"the phase of its periodic reset moves by {own}")
            return replace(node, params=params)
        clock = Call("-", (Var(STEP), Num(own)))
        body = tuple(Assign(s.name, substitute(s.expr, {STEP: clock})) for s in node.program.body)
        old = node.program
        name = f"{old.name}_late{own}"
        return replace(node, program=Program(name, old.inputs, old.params, old.states, body, old.emits))

    def _preimage(
        self,
        node: Neuron,
        shape: tuple[int, ...],
        silent: list[list[Array]],
        begin: dict[str, Array],
        done: Array,
        heard: frozenset[str],
    ) -> tuple[dict[str, Array], Array]:
        """Per neuron, an earlier value of one state that leads silently to the initial one.

        The step is taken to be monotone in the state, which holds for a leak with saturation; whatever bisection finds is
        checked by running it, so a state for which it does not hold is merely not found.
        """
        best, solved = {name: value.copy() for name, value in begin.items()}, done.copy()
        for state in node.program.states:
            low_limit, high_limit = int_range(state.dtype)
            if self.target.has("membrane_bits"):
                bound = (1 << (self.target.integer("membrane_bits") - 1)) - 1
                low_limit, high_limit = max(low_limit, -bound), min(high_limit, bound)
            low = np.full(shape, max(low_limit, -(1 << 31)), np.int64)
            high = np.full(shape, min(high_limit, (1 << 31) - 1), np.int64)
            while np.any(low < high):
                middle = (low + high) >> 1
                after, quiet = _run(node, shape, silent, {**begin, state.name: middle}, heard)
                reached = (after[state.name] >= begin[state.name]) | ~quiet
                high = np.where(reached, middle, high)
                low = np.where(reached, low, middle + 1)
            found = _prelude(node, shape, silent, {**begin, state.name: low}, begin, heard) & ~solved
            best[state.name] = np.where(found, low, best[state.name])
            solved |= found
        return best, solved

    def _bias_synapse(
        self,
        node: Neuron,
        own: int,
        shape: tuple[int, ...],
        silent: list[list[Array]],
        begin: dict[str, Array],
        before: dict[str, Array],
        solved: Array,
        hop: int,
        graph: Graph,
        taken: set[str],
        heard: frozenset[str],
    ) -> list[Node] | None:
        """For the neurons without an earlier state, the bias as a synapse that first arrives at step `lag`."""
        native: NativeNeuron | None = self.target.native(node.program)
        if native is None or not native.bias_synapse or hop < 1 or own < hop or len(node.inputs) != 1:
            return None
        names = native.bias_synapse
        if any(emit.name == names["state"] for emit in node.program.emits):
            return None  # the current would show the bias
        mantissa, exponent = (np.broadcast_to(node.params[names[k]], shape) for k in ("mantissa", "exponent"))
        bias = mantissa.astype(np.int64) << exponent
        shift = self.target.integer("membrane_shift")
        step = self.target.integer("weight_step")
        weight = np.where(solved, 0, bias >> shift)
        fits = (bias == (bias >> shift) << shift) & (weight % step == 0)
        fits &= (weight >= self.target.integer("weight_min")) & (weight <= self.target.integer("weight_max"))
        fits &= np.broadcast_to(node.params[names["memory"]] == names["memoryless"], shape)
        if not np.all(fits | solved):
            return None
        low, high = graph_ranges(graph).wires[node.inputs[0].node, node.inputs[0].port]
        reach = max(abs(low), abs(high)) + int(np.abs(weight).max(initial=0))
        if reach << shift >= 1 << (self.target.integer("membrane_bits") - 1):
            return None  # the current could wrap where the membrane would not
        params: dict[str, Array] = dict(node.params)
        params[names["mantissa"]] = np.where(solved, mantissa, 0).astype(np.int32)
        quiet = replace(node, params=params)
        start = {name: np.where(solved, before[name], begin[name]) for name in begin}
        if not _prelude(quiet, shape, silent, start, begin, heard).all():
            return None
        source = Constant(
            name=fresh_name(taken, f"{node.name}_on"),
            value=np.ones(1, np.int32),
            kind="spike",
            start=own - hop,
            lag=node.lag - hop,
            loc=node.loc,
        )
        synapse = Dense(
            name=fresh_name(taken, f"{node.name}_bias"),
            inputs=(Ref(source.name, delay=hop),),
            weight=weight.reshape(-1, 1).astype(np.int16),
            lag=node.lag,
            loc=node.loc,
        )
        parts: list[Node] = [source, synapse]
        if len(shape) != 1:
            shaped = Reshape(
                name=fresh_name(taken, f"{synapse.name}_shape"),
                inputs=(Ref(synapse.name),),
                shape=shape,
                lag=node.lag,
                loc=node.loc,
            )
            parts.append(shaped)
        total = Add(
            name=fresh_name(taken, f"{node.name}_input"),
            inputs=(node.inputs[0], Ref(parts[-1].name)),
            lag=node.lag,
            loc=node.loc,
        )
        return [*parts, total, replace(quiet, inputs=(Ref(total.name),), init=_packed(quiet, start))]


def _negative_cycle(constraints: nx.DiGraph) -> list[str]:
    """A cycle of negative weight, in the direction of its edges, its first node once more at the end.

    Bellman and Ford's, found by following predecessors; networkx's own search gives up on some.
    """
    distance, before = dict.fromkeys(constraints, 0), dict.fromkeys(constraints, "")
    last = ""
    for _ in range(len(distance) + 1):
        last = ""
        for u, v, weight in constraints.edges(data="weight"):
            if distance[u] + weight < distance[v]:
                distance[v], before[v], last = distance[u] + weight, u, v
    for _ in distance:  # from what still changes after so many rounds the way back ends in the cycle
        last = before[last]
    cycle, name = [last], before[last]
    while name != last:
        cycle.append(name)
        name = before[name]
    return [last, *cycle[:0:-1], last]


def _initial(node: Neuron, shape: tuple[int, ...]) -> dict[str, Array]:
    """Initial states, one number per neuron."""
    result = {}
    for state in node.program.states:
        value = spread(node.init[state.name], shape) if state.name in node.init else np.asarray(int(state.init))
        result[state.name] = np.array(np.broadcast_to(value, shape), np.int64)
    return result


def _packed(node: Neuron, states: Mapping[str, Array]) -> dict[str, Array]:
    """Initial states as a node holds them: only those that differ from the program's."""
    declared = {state.name: state.init for state in node.program.states}
    dtypes = {state.name: DTYPES[state.dtype] for state in node.program.states}
    return {n: v.astype(dtypes[n]) for n, v in states.items() if np.any(v != declared[n])}


def _run(
    node: Neuron, shape: tuple[int, ...], silent: list[list[Array]], begin: Mapping[str, Array], heard: frozenset[str]
) -> tuple[dict[str, Array], Array]:
    """Run the program on its silent input; final states, and which neurons emitted nothing."""
    inputs = [Input(name=f"in{i}", type=TensorType("value", shape, "i32")) for i in range(len(node.inputs))]
    alone = replace(
        node,
        inputs=tuple(Ref(item.name) for item in inputs),
        init={name: np.asarray(value) for name, value in begin.items()},
        lag=0,
    )
    graph = Graph("prelude", "fixed", (*inputs, alone), ((node.name, Ref(node.name)),))
    machine = Interpreter(graph, 1)
    quiet = np.ones(shape, bool)
    for step in silent:
        now = machine.step({item.name: value[None] for item, value in zip(inputs, step, strict=True)})
        for port in heard:
            quiet &= now[node.name, port][0] == 0
    return {name: value[0] for name, value in machine.states[node.name].items()}, quiet


def _prelude(
    node: Neuron,
    shape: tuple[int, ...],
    silent: list[list[Array]],
    begin: Mapping[str, Array],
    goal: Mapping[str, Array],
    heard: frozenset[str],
) -> Array:
    """Which neurons are silent from `begin` and end in `goal`."""
    after, quiet = _run(node, shape, silent, begin, heard)
    for name, value in after.items():
        quiet &= value == goal[name]
    return quiet


def _muted(graph: Graph) -> tuple[Graph, dict[str, Any]]:
    """The graph with every population and source replaced by an input of zeros."""
    nodes: list[Node] = []
    targets: dict[tuple[str, str], Ref] = {}
    for node in graph.nodes:
        if not isinstance(node, (Neuron, Constant, Input)):
            nodes.append(node)
            continue
        for port, type_ in graph.types[node.name]:
            name = f"{node.name} {port}"  # a name that no node has
            nodes.append(Input(name=name, type=type_))
            targets[node.name, port] = Ref(name)
    outputs = redirect_outputs(graph.outputs, targets)
    silent = {ref.node for ref in targets.values()}
    quick: list[Node] = []
    for node in redirect(nodes, targets):
        hears = any(ref.node not in silent or ref.init is not None for ref in node.inputs)
        if isinstance(node, SYNAPSES) and not hears:
            node = replace(node, delay=None)  # when zeros were sent does not matter, and there may be many delays
        elif isinstance(node, (Reshape, Gather, Concat)) and not hears:
            silent.add(node.name)
        quick.append(node)
    muted = graph.with_nodes(quick, outputs)
    return muted, {item.name: np.zeros((1, *item.type.shape), np.int64) for item in muted.inputs}


def _silence(graph: Graph) -> dict[tuple[str, str], Array]:
    """What every wire carries when no population and no source sends anything."""
    muted, zeros = _muted(graph)
    now = Interpreter(muted, 1).step(zeros)
    table = {}
    for node in graph.nodes:
        for port, type_ in graph.types[node.name]:
            wire = (node.name, port) if (node.name, port) in now else (f"{node.name} {port}", "")
            table[node.name, port] = now[wire][0] if wire in now else np.zeros(type_.shape, np.int64)
    return table


def _silent_inputs(graph: Graph, lags: Mapping[str, int]) -> dict[str, list[list[Array]]]:
    """For every late population: its operands in the steps before it starts, when nothing has been sent yet."""
    muted, zeros = _muted(graph)
    machine = Interpreter(muted, 1)
    table: dict[str, list[list[Array]]] = {node.name: [] for node in graph.neurons}
    history: list[dict[tuple[str, str], Array]] = []
    for step in range(max(lags.values(), default=0)):
        history.append(machine.step(zeros))
        for node in graph.neurons:
            if step < lags[node.name]:
                operands = []
                for ref in node.inputs:
                    shape = graph.type_of(ref).shape
                    when = step - ref.delay
                    wire = (ref.node, ref.port) if ref.node in muted else (f"{ref.node} {ref.port}", "")
                    if when >= 0:
                        operands.append(history[when][wire][0])
                    elif ref.init is not None:
                        operands.append(np.asarray(ref.init[step], np.int64))
                    else:
                        operands.append(np.zeros(shape, np.int64))
                table[node.name].append(operands)
    return table
