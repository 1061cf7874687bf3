"""From a float graph to a NIR dictionary, or all the reasons why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.frontend.nir.file import Tree
from spikec.frontend.nir.graph import Ambiguous, Edge, recurrent_edges
from spikec.frontend.nir.neurons import Model, fold, model_of, program, unfold
from spikec.frontend.nir.read import PREFIX, check_choice, check_dt, ir_name
from spikec.ir.algebra import Match, match
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Concat, Conv, Dense, Gather, Input, Neuron, Node, Pool, Ref, Reshape, Scale, Sparse, spread
from spikec.ir.types import DTYPES, Array
from spikec.ledger import Ledger

#: A dense layer made of a sparse one has at most so many weights.
DENSEST: Final = 1 << 26
#: The models a foreign program is compared with, the plainest first, in their most general form.
_CANDIDATES: Final = ("Threshold", "I", "LI", "CubaLI", "IF", "LIF", "CubaLIF")


@dataclass(frozen=True)
class _Fitted:
    """A neuron as a model of NIR: the program's numbers, spread over the population, and its initial membrane."""

    model: Model
    numbers: dict[str, Array]
    initial: Array | None
    own: bool


def tree_of(graph: Graph, dt: float | None, scheme: str | None, ledger: Ledger | None) -> Tree:
    """The dictionary of a graph. Raises CompileError with everything that NIR cannot say."""
    check_choice("scheme", scheme)
    check_dt(dt)
    if graph.level != "float":
        raise CompileError(
            "SPK202", f"NIR holds real numbers; this graph is at the {graph.level} level", fix="write the graph before quantization"
        )
    if dt is not None and graph.dt is not None and dt != graph.dt:
        raise CompileError("SPK001", f"dt is {dt:g} s, but the graph's own is {graph.dt:g} s", fix="leave dt out")
    writer = _Writer(graph, graph.dt if dt is None else dt, scheme)
    writer.run()
    if writer.problems:
        raise CompileError.many(writer.problems)
    if ledger is not None:
        ledger.pass_name = "nir"
        for node, kind, what, more in writer.records:
            ledger.record(node, kind, what, **more)
    return writer.tree()


class _Refused(Exception):
    """Why a node cannot be written."""

    def __init__(self, code: str, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.code, self.fix = code, fix


class _Writer:
    def __init__(self, graph: Graph, dt: float | None, scheme: str | None) -> None:
        self.graph = graph
        self.dt = dt
        self.scheme = scheme
        self.nodes: dict[str, Tree] = {}
        self.edges: list[tuple[str, int, str]] = []
        #: A Delay that stands between a node and its operand.
        self.relays: dict[str, str] = {}
        self.final: list[Edge] = []
        self.records: list[tuple[Node, Any, str, dict[str, Any]]] = []
        self.problems: list[Diagnostic] = []
        self.metadata: Tree = {}
        self.names = self._names()

    def _names(self) -> dict[str, str]:
        """NIR names by node: the NIR name that the node was read under, else its own."""
        names: dict[str, str] = {}
        for node in self.graph.nodes:
            path = node.loc.path if node.loc else ""
            good = path and ir_name(path) == node.name and "/" not in path and path != "."
            names[node.name] = path if good and path not in names.values() else node.name
        return names

    def _fresh(self, base: str) -> str:
        name, number = base, 2
        while name in self.nodes or name in self.names.values():
            name, number = f"{base}_{number}", number + 1
        return name

    def run(self) -> None:
        """Write what the outputs and inputs need, from the outputs upstream."""
        wanted = [node.name for node in self.graph.inputs]
        for name, ref in self.graph.outputs:
            wanted += self._read([ref], self._output(name, ref))
        seen: set[str] = set()
        while wanted:
            name = wanted.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self.graph[name]
            try:
                made, operands = self._node(node)
            except _Refused as reason:
                self.problems.append(Diagnostic(reason.code, f"%{name}: {reason}", loc=node.loc, fix=reason.fix))
                continue
            self.nodes[self.names[name]] = made
            wanted += self._read(operands, self.relays.get(name, self.names[name]))
        if not self.problems:
            self._delays()

    def _output(self, name: str, ref: Ref) -> str:
        own = (
            name
            if name not in self.names.values() and name not in self.nodes and "/" not in name
            else self._fresh(f"{name}_output")
        )
        made: Tree = {"type": "Output", "shape": np.asarray(self.graph.type_of(ref).shape, np.int64)}
        if own != name:
            made["metadata"] = {f"{PREFIX}name": name}
        self.nodes[own] = made
        return own

    def _read(self, operands: list[Ref], sink: str) -> list[str]:
        """Edges into a node; sums become several of them. Returns the nodes that are read."""
        found = [leaf for ref in operands for leaf in self._sources(ref)]
        names = []
        for index, (name, delay) in enumerate(found):
            names.append(name)
            source = self.names[name]
            if any(name == other for other, _ in found[:index]):
                # NIR has one edge between two nodes at most.
                between = self._fresh(f"{source}_again")
                self.nodes[between] = {"type": "Scale", "scale": np.ones(self.graph.shape_of(name), np.float32)}
                self.edges.append((source, delay, between))
                self.edges.append((between, 0, sink))
            else:
                self.edges.append((source, delay, sink))
        return names

    def _sources(self, ref: Ref) -> list[tuple[str, int]]:
        node = self.graph[ref.node]
        if ref.init is not None or ref.port:
            what = f"is read at its port '{ref.port}'" if ref.port else "is read with values from before step 0"
            fix = "NIR's neurons have one output" if ref.port else None
            self.problems.append(Diagnostic("SPK202", f"%{node.name}: {what}, which NIR cannot say", loc=node.loc, fix=fix))
            return []
        if not isinstance(node, Add) or (node.dtype and node.dtype != self._plain_dtype(node)):
            return [(node.name, ref.delay)]
        return [leaf for inner in node.inputs for leaf in self._sources(replace(inner, delay=inner.delay + ref.delay))]

    def _delays(self) -> None:
        """A step of delay that the reader puts there by itself stays unsaid; every other one becomes a Delay."""
        kinds = {name: node["type"] for name, node in self.nodes.items()}
        plain = [(a, b) for a, d, b in self.edges if d <= 1]
        one = {(a, b) for a, d, b in self.edges if d == 1}
        late = [n for n, node in self.nodes.items() if node["type"] == "Delay" and np.min(node["delay"]) > 0]
        unsaid: set[Edge] = set()
        for rule in ("feedback", "spikes"):
            try:
                implied = recurrent_edges(kinds, plain, late, rule)
            except (Ambiguous, CompileError):
                continue
            if implied == one:
                unsaid = one
                if one:
                    self.metadata[f"{PREFIX}recurrent"] = rule
                break
        edges: list[Edge] = []
        for source, delay, sink in self.edges:
            if not delay or (source, sink) in unsaid:
                edges.append((source, sink))
                continue
            if self.dt is None:
                self.problems.append(
                    Diagnostic(
                        "SPK001", f"'{sink}' reads '{source}' {delay} step(s) late, and a Delay of NIR is in seconds", fix="give dt"
                    )
                )
                continue
            relay = self._fresh(f"{source}_delay{delay}")
            shape = next(self.graph.shape_of(n) for n, own in self.names.items() if own == source)
            self.nodes[relay] = {"type": "Delay", "delay": np.full(shape, delay * self.dt)}
            edges += [(source, relay), (relay, sink)]
        self.final = sorted(edges)

    def tree(self) -> Tree:
        """The whole graph."""
        if self.dt is not None:
            self.metadata["dt"] = float(self.dt)
        edges = np.empty((len(self.final), 2), dtype=object)
        for index, edge in enumerate(self.final):
            edges[index] = edge
        result: Tree = {"type": "NIRGraph", "nodes": dict(sorted(self.nodes.items())), "edges": edges}
        if self.metadata:
            result["metadata"] = self.metadata
        return result

    # Nodes -----------------------------------------------------------------------------------------------------------

    def _node(self, node: Node) -> tuple[Tree, list[Ref]]:
        """A node's dictionary and what it reads."""
        if node.lag or getattr(node, "start", 0):
            raise _Refused("SPK202", "starts late, which NIR cannot say", "write the graph before retiming")
        if isinstance(node, Neuron) and node.stop is not None:
            raise _Refused("SPK202", "stops early, which NIR cannot say", "compile without --windows-loss")
        declared = getattr(node, "dtype", "")
        if declared and declared != self._plain_dtype(node):
            raise _Refused("SPK202", f"computes in {declared}, which NIR cannot say")
        writers: dict[type[Node], Callable[[Any], tuple[Tree, list[Ref]]]] = {
            Input: self._input,
            Dense: self._dense,
            Sparse: self._sparse,
            Conv: self._conv,
            Pool: self._pool,
            Reshape: self._reshape,
            Gather: self._gather,
            Scale: self._scale,
            Neuron: self._neuron,
        }
        if type(node) not in writers:
            raise _Refused("SPK202", f"NIR has no operation '{node.op}'")
        return writers[type(node)](node)

    def _plain_dtype(self, node: Node) -> str:
        """The dtype that the node would have by promotion alone."""
        if not any(item.name == "dtype" for item in fields(node)):
            return ""
        plain: Any = replace(node, dtype="")  # type: ignore[call-arg]  # has one, as asked above
        ports = plain.infer([self.graph.type_of(ref) for ref in node.inputs], "float")
        return str(ports[0][1].dtype)

    def _input(self, node: Input) -> tuple[Tree, list[Ref]]:
        made: Tree = {"type": "Input", "shape": np.asarray(node.type.shape, np.int64)}
        extra: Tree = {} if node.type.kind == "spike" else {f"{PREFIX}input_kind": node.type.kind}
        if node.type.dtype != "f32":
            extra[f"{PREFIX}dtype"] = node.type.dtype
        if extra:
            made["metadata"] = extra
        return made, []

    def _dense(self, node: Dense) -> tuple[Tree, list[Ref]]:
        ref = node.inputs[0]
        if node.delay is not None and node.delay.any():
            if np.any(node.delay != node.delay[:1]):
                raise _Refused("SPK202", "has a delay per synapse; NIR has delays per source only")
            relay = self._fresh(f"{self.names[node.name]}_delay")
            seconds = self._seconds(np.broadcast_to(node.delay[0], self.graph.type_of(ref).shape))
            self.nodes[relay] = {"type": "Delay", "delay": seconds}
            self.edges.append((relay, 0, self.names[node.name]))
            self.relays[node.name] = relay
        made: Tree = {"type": "Linear", "weight": node.weight}
        if node.bias is not None:
            made = {"type": "Affine", "weight": node.weight, "bias": node.bias}
        return made, [ref]

    def _seconds(self, steps: Array) -> Array:
        if not np.any(steps):
            return np.zeros(steps.shape)
        if self.dt is None:
            raise _Refused("SPK001", "a Delay of NIR is in seconds, and the graph does not say how long a step is", "give dt")
        return steps * self.dt

    def _sparse(self, node: Sparse) -> tuple[Tree, list[Ref]]:
        if node.delay is not None and node.delay.any():
            raise _Refused("SPK202", "has a delay per synapse; NIR has delays per source only")
        size = (len(node.indptr) - 1) * node.fan_in
        if size > DENSEST:
            raise _Refused("SPK202", f"is sparse, which NIR is not, and would have {size} weights as a dense layer")
        weight = np.zeros((len(node.indptr) - 1, node.fan_in), node.weight.dtype)
        np.add.at(weight, (node.rows, node.indices), node.weight)
        self.records.append((node, "exact", "written as a dense layer", {}))
        made: Tree = {"type": "Linear", "weight": weight}
        if node.bias is not None:
            made = {"type": "Affine", "weight": weight, "bias": node.bias}
        return made, [node.inputs[0]]

    def _conv(self, node: Conv) -> tuple[Tree, list[Ref]]:
        if node.delay is not None and node.delay.any():
            raise _Refused("SPK202", "has a delay per synapse; NIR has delays per source only")
        space = self.graph.type_of(node.inputs[0]).shape[1:]
        bias = node.bias if node.bias is not None else np.zeros(node.weight.shape[0], node.weight.dtype)
        made: Tree = {"type": f"Conv{len(space)}d", "weight": node.weight, "bias": bias, "groups": node.groups}
        for key, value in {"input_shape": space, "stride": node.stride, "padding": node.padding, "dilation": node.dilation}.items():
            made[key] = int(value[0]) if len(space) == 1 else np.asarray(value, np.int64)
        return made, [node.inputs[0]]

    def _pool(self, node: Pool) -> tuple[Tree, list[Ref]]:
        kinds = {"sum": "SumPool2d", "average": "AvgPool2d"}
        if node.mode not in kinds or len(node.kernel) != 2:
            raise _Refused("SPK202", f"NIR has no {node.mode} pool over {len(node.kernel)} axis of space")
        made: Tree = {"type": kinds[node.mode]}
        for key, value in {"kernel_size": node.kernel, "stride": node.stride, "padding": node.padding}.items():
            made[key] = np.asarray(value, np.int64)
        return made, [node.inputs[0]]

    def _reshape(self, node: Reshape) -> tuple[Tree, list[Ref]]:
        (ref,) = node.inputs
        shape = self.graph.type_of(ref).shape
        if shape == node.shape and ref.delay:
            return {"type": "Delay", "delay": self._seconds(np.full(shape, ref.delay))}, [replace(ref, delay=0)]
        for start in range(len(shape)):
            for end in range(start, len(shape)):
                if node.shape == (*shape[:start], int(np.prod(shape[start : end + 1])), *shape[end + 1 :]):
                    whole = np.asarray(shape, np.int64)
                    return {"type": "Flatten", "start_dim": start, "end_dim": end, "input_type": whole}, [ref]
        raise _Refused("SPK202", f"NIR can merge axes, but not make {node.shape} of {shape}")

    def _gather(self, node: Gather) -> tuple[Tree, list[Ref]]:
        """Only what a Delay with several delays was read as: every element in its place, each late by its own number of steps."""
        refused = _Refused("SPK202", "NIR cannot select or permute elements")
        joined = self.graph[node.inputs[0].node]
        if not isinstance(joined, Concat) or node.inputs[0].delay or joined.axis:
            raise refused
        places, steps, sources = [], [], []
        for ref in joined.inputs:
            part = self.graph[ref.node]
            if not isinstance(part, Gather) or part.indices.ndim != 1 or part.inputs[0].init is not None:
                raise refused
            places.append(part.indices)
            steps.append(np.full(part.indices.shape, part.inputs[0].delay + ref.delay))
            sources.append(replace(part.inputs[0], delay=0))
        shape = self.graph.type_of(sources[0]).shape
        found = np.concatenate(places)[node.indices.ravel()]
        if any(source != sources[0] for source in sources) or node.indices.shape != shape:
            raise refused
        if not np.array_equal(found, np.arange(len(found))):
            raise refused
        return {"type": "Delay", "delay": self._seconds(np.concatenate(steps)[node.indices])}, [sources[0]]

    def _scale(self, node: Scale) -> tuple[Tree, list[Ref]]:
        if node.offset is not None and node.offset.any():
            raise _Refused("SPK202", "adds an offset, which NIR's Scale does not")
        shape = self.graph.shape_of(node.name)
        return {"type": "Scale", "scale": np.broadcast_to(spread(node.factor, shape), shape)}, [node.inputs[0]]

    # Neurons ---------------------------------------------------------------------------------------------------------

    def _neuron(self, node: Neuron) -> tuple[Tree, list[Ref]]:
        found = self._fit(node)
        model, numbers = found.model, found.numbers
        made: Tree = {"type": model.kind}
        extra: Tree = {}
        if found.initial is not None and not model.kind.endswith(("LI", "LIF")):
            raise _Refused("SPK201", f"its membrane does not begin at 0, which NIR's {model.kind} does")
        if model.kind == "Threshold":
            made["threshold"] = numbers["theta"]
        elif model.kind in ("I", "IF"):
            made["r"], extra[f"{PREFIX}integrator"] = numbers["gain"], "step"
        else:
            scheme = self.scheme or model.scheme
            times, exact = self._times(found, scheme)
            if not exact and numbers["gain"].dtype == np.float32:
                # There may be no float32 tau and r that give these float32 numbers; in float64 there are.
                numbers = {key: value.astype(np.float64) for key, value in numbers.items()}
                times, _ = self._times(replace(found, numbers=numbers), scheme)
                extra[f"{PREFIX}dtype"] = "f32"
            made |= times
            extra[f"{PREFIX}scheme"] = scheme
            if model.synapse:
                extra[f"{PREFIX}current"] = model.current
            if found.initial is not None:
                extra[f"{PREFIX}initial"] = "v_leak"
            elif model.rest:
                extra[f"{PREFIX}initial"] = "zero"
        if model.spikes:
            extra[f"{PREFIX}compare"] = model.compare
        if model.spikes and model.kind != "Threshold":
            made["v_threshold"] = numbers["theta"]
            made["v_reset"] = numbers.get("reset", np.zeros_like(numbers["theta"]))
            extra[f"{PREFIX}reset"] = model.reset
        made["metadata"] = extra
        self._record(node, found, made)
        return made, [node.inputs[0]]

    def _times(self, found: _Fitted, scheme: str) -> tuple[Tree, bool]:
        """Time constants, r, v_leak and w_in of a leaky neuron, and whether they give its numbers exactly."""
        if self.dt is None:
            raise _Refused("SPK001", "tau of NIR is in seconds, and the graph does not say how long a step is", "give dt")
        numbers = found.numbers
        rest = numbers.get("rest", np.zeros_like(numbers["gain"]))
        given = {} if found.initial is None else {"v_leak": found.initial.astype(rest.dtype)}
        parts = {"r": (numbers["gain"], False), "v_leak": (rest, True)}
        try:
            if not found.model.synapse:
                tau, made, exact = unfold(numbers["decay"], parts, given, self.dt, scheme)
                return {"tau": tau, **made}, exact
            tau, made, first = unfold(numbers["alpha"], {"w_in": (numbers["w"], False)}, {}, self.dt, scheme)
            again, more, exact = unfold(numbers["beta"], parts, given, self.dt, scheme)
            return {"tau_syn": tau, **made, "tau_mem": again, **more}, first and exact
        except CompileError as error:
            raise _Refused(error.code, error.diagnostics[0].message) from None

    def _record(self, node: Neuron, found: _Fitted, made: Tree) -> None:
        """What the ledger says: a neuron of other origin, and by how much its numbers moved."""
        kind = found.model.kind
        if not found.own:
            self.records.append((node, "exact", f"@{node.program.name} is NIR's {kind}", {}))
        values = {key: value for key, value in made.items() if isinstance(value, np.ndarray)}
        again = fold(kind, values, self.dt, self.scheme or found.model.scheme, "step")
        if found.initial is not None:
            off = np.abs(again["rest"] - found.numbers.get("rest", 0.0))
            if np.any(off > 1e-6 * np.abs(again["rest"])):
                raise _Refused("SPK201", "its membrane begins neither at 0 nor where it rests, which NIR cannot say")
        change, total, most = 0, 0, 0.0
        for key, number in found.numbers.items():
            moved = np.abs(np.nan_to_num(again[key].astype(number.dtype).astype(np.float64) - number))
            change, total, most = change + int(np.count_nonzero(moved)), total + moved.size, max(most, float(moved.max(initial=0)))
        if change:
            more = {"changed": change, "total": total, "largest": most}
            self.records.append((node, "approximation", "tau, r and v_leak rounded", more))

    def _fit(self, node: Neuron) -> _Fitted:
        shape = self.graph.shape_of(node.name)
        if len(node.inputs) != 1:
            raise _Refused("SPK201", f"has {len(node.inputs)} inputs; NIR's neurons have one, a sum")
        dtype = DTYPES[self.graph.types[node.name][0][1].dtype]
        params = {key: np.broadcast_to(spread(value, shape), shape) for key, value in node.params.items()}
        model = model_of(node.program)
        if model is not None:
            wanted = np.result_type(*params.values())
            numbers = {key: np.ascontiguousarray(value.astype(wanted)) for key, value in params.items()}
            return _Fitted(model, numbers, self._initial(node, "v" if model.kind != "Threshold" else None, shape, wanted), True)
        return self._matched(node, params, shape, dtype)

    def _initial(self, node: Neuron, membrane: str | None, shape: tuple[int, ...], dtype: Any) -> Array | None:
        """The membrane's initial value where it is not zero; a synaptic current must begin at zero."""
        for state in node.program.states:
            value = np.broadcast_to(spread(node.init.get(state.name, np.asarray(float(state.init))), shape), shape)
            if value.any():
                if state.name == membrane:
                    return np.ascontiguousarray(value.astype(dtype))
                raise _Refused("SPK201", f"its state {state.name} does not begin at 0, which NIR cannot say")
        return None

    def _matched(self, node: Neuron, params: dict[str, Array], shape: tuple[int, ...], dtype: Any) -> _Fitted:
        spiking = node.program.emits[0].kind == "spike"
        if node.program.emits[0].kind == "graded":
            raise _Refused("SPK201", f"@{node.program.name} emits graded spikes; NIR's neurons emit 0 and 1")
        reasons: dict[str, None] = {}
        for kind in _CANDIDATES:
            if Model(kind).spikes != spiking or (kind == "Threshold") != (not node.program.states):
                continue
            for model, pattern in _patterns(kind):
                found = match(node.program, params, pattern)
                if isinstance(found, str):
                    reasons[f"{kind}: {found}"] = None
                    continue
                numbers = {key: np.broadcast_to(np.asarray(value, np.float64), shape) for key, value in found.params.items()}
                if kind in ("LI", "LIF") and np.all(numbers["decay"] == 1) and not np.any(numbers["rest"]):
                    continue  # an integrator, with a reset that the pattern of I and IF tells as well
                return self._from_match(node, model, numbers, found, shape, dtype)
        told = "; ".join(reasons) or "none of them emits what it emits"
        raise _Refused("SPK201", f"NIR has no neuron that computes @{node.program.name} ({told})")

    def _from_match(
        self, node: Neuron, model: Model, numbers: dict[str, Array], found: Match, shape: tuple[int, ...], dtype: Any
    ) -> _Fitted:
        gain = np.broadcast_to(found.gains[0], shape)
        if model.kind == "Threshold":
            if np.any(gain != 1):
                raise _Refused(
                    "SPK201", "compares a multiple of its input; NIR's Threshold compares the input itself", "put a Scale in front"
                )
        else:
            numbers["w" if model.synapse else "gain"] = gain
            if model.synapse:
                numbers.setdefault("gain", np.ones(shape))
        rest = bool(np.any(numbers.get("rest", 0.0)))
        nonzero = bool(np.any(numbers.get("reset", 0.0)))
        model = replace(model, rest=rest, nonzero=nonzero)
        wanted = program(model).params
        exact = {key: np.ascontiguousarray(numbers[key].astype(dtype)) for key in wanted}
        membrane = found.states.get("v")
        return _Fitted(model, exact, self._initial(node, membrane, shape, dtype), False)


def _patterns(kind: str) -> list[tuple[Model, Any]]:
    """The model in its general forms, without a gain of its input, which `match` finds by itself."""
    from spikec.ir.text import parse_program

    leaky = kind not in ("I", "IF", "Threshold")
    found = []
    for compare in (">", ">=") if Model(kind).spikes else (">",):
        for reset in ("v_reset", "subtract") if kind in ("IF", "LIF", "CubaLIF") else ("v_reset",):
            for current in ("new", "old") if kind.startswith("Cuba") else ("new",):
                model = Model(
                    kind,
                    rest=leaky,
                    compare=compare,
                    reset=reset,
                    nonzero=reset == "v_reset" and kind in ("IF", "LIF", "CubaLIF"),
                    current=current,
                )
                own = program(model)
                gain = "w" if model.synapse else "gain"
                text = own.text().replace(f"{gain} * x", "x")
                params = ", ".join(name for name in own.params if name != gain)
                head = text.partition(" params(")[0]
                states = text.partition(" state(")[2]
                rest = " state(" + states if states else text[text.index(" {") :]
                found.append((model, parse_program(head + (f" params({params})" if params else "") + rest)))
    return found
