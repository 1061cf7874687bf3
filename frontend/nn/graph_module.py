"""A graph as a torch module: it computes what the interpreter does, and can be trained.

Populations that feed no loop are run layer by layer, all steps of a layer at once, and so is one that dense layers lead back to;
others on a loop step by step. A comparison is a Heaviside step forward and a surrogate gradient backward: an arctangent's, of the
distance to the threshold in units of the threshold, or of the population's mean distance in that step where that is more. What a
comparison resets gets no gradient from it. Rounding operations pass gradients through. Integer graphs are computed in float64,
which holds every integer below 2^53.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import networkx
import numpy as np
import torch
from torch import nn

from spikec.frontend.nn.native import WIDEST, Build
from spikec.frontend.nn.population import WIDTH, Feedback, Steps, resets, scale_of, surrogate
from spikec.ir.graph import Graph
from spikec.ir.neuron import COMPARISONS, LOGIC, STEP, Call, Expr, Num, Program, Var
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Node, Pool, Ref, Reshape, Scale, Sparse, spread
from spikec.ir.types import DTYPES, Array

WEIGHTED: Final = (Dense, Sparse, Conv)
Wire = tuple[str, str]
#: A node's weight as it is used in the forward pass, from the trained one.
Quantizer = Callable[[torch.Tensor], torch.Tensor]
#: How a population's parameter is trained, by what it is: what is trained from the value, and the value from that.
FORMS: Final[dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]]] = {
    "any": (lambda value: value, lambda raw: raw),
    "positive": (torch.log, torch.exp),
    "share": (torch.logit, torch.sigmoid),
}


class _Step(torch.autograd.Function):
    """(distance >= 0 or > 0) forward; backward the derivative of arctan(pi x) / pi, of the distance in units of `scale`."""

    @staticmethod
    def forward(ctx: Any, distance: torch.Tensor, scale: torch.Tensor, strict: bool) -> torch.Tensor:
        ctx.save_for_backward(distance, scale)
        return (distance > 0 if strict else distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        distance, scale = ctx.saved_tensors
        return surrogate(gradient, distance, scale), None, None


class _Through(torch.autograd.Function):
    """Any value forward; backward as if it were the argument, times `gain`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor, gain: float) -> torch.Tensor:
        ctx.gain = gain
        return value

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient * ctx.gain, None, None


def straight_through(x: torch.Tensor, value: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """`value` forward, the gradient of `gain * x` backward."""
    found: torch.Tensor = _Through.apply(x, value, gain)
    return found


class GraphModule(nn.Module):
    """A graph of any level as a trainable torch module.

    graph: what to compute. weights: initial weights by node name where they differ from the graph's own, say the float weights of
    an integer graph. quantizers: by node name, how a trained weight becomes the one that is used. Parameters are the weights and
    biases of all dense, sparse and convolution nodes but those behind constants, and parameters of neurons that are named. learnt:
    by population, those of a float graph, each with its form (FORMS). build: compiles C, for speed (`native`).
    forward(x): x (batch, T, *shape), or a mapping by input name; gives outputs (batch, T, *shape) by name, without their lag.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Array] | None = None,
        quantizers: Mapping[str, Quantizer] | None = None,
        *,
        learnt: Mapping[str, Mapping[str, str]] | None = None,
        build: Build | None = None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.build = build
        #: How many thresholds wide a surrogate gradient is at most: the wider, the less gradients grow from step to step.
        self.widest: float = WIDEST
        self.integer = graph.level != "float"
        self.quantizers = dict(quantizers or {})
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        self._keys = {node.name: f"n{number}" for number, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            if isinstance(node, WEIGHTED):
                start = (weights or {}).get(node.name, node.weight)
                trained = not isinstance(graph[node.inputs[0].node], Constant)
                self.weights[self._keys[node.name]] = nn.Parameter(self._tensor(start), requires_grad=trained)
                if node.bias is not None:
                    self.biases[self._keys[node.name]] = nn.Parameter(
                        self._tensor(node.bias), requires_grad=trained and not self.integer
                    )
        self.learnt = {name: dict(forms) for name, forms in (learnt or {}).items()}
        self.params = nn.ParameterDict()
        for name, forms in self.learnt.items():
            for param, form in forms.items():
                start = self._tensor(graph[name].params[param])  # type: ignore[attr-defined]  # a population
                self.params[f"{self._keys[name]}_{param}"] = nn.Parameter(FORMS[form][0](start))
        self._arrays: dict[tuple[str, str], torch.Tensor] = {}
        self._steps: dict[str, Steps] = {}
        self._parts = list(_parts(graph))
        #: Of every input, whether dense layers alone read it: they take spikes in any type.
        shown = {ref.node for _, ref in graph.outputs}
        self.into_dense = {
            given.name: given.name not in shown
            and all(isinstance(node, Dense) for node in graph.nodes if any(ref.node == given.name for ref in node.inputs))
            for given in graph.inputs
        }

    def _tensor(self, array: Array) -> torch.Tensor:
        whole = array.dtype.kind in "iub"
        return torch.from_numpy(np.array(array, np.float64 if self.integer or whole else array.dtype))

    def _array(self, node: Node, name: str, array: Array, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        key = (node.name, name)
        if key not in self._arrays:
            scalar = shape is not None and array.size == 1 and array.ndim <= 1  # promotes nothing, as in the interpreter
            spread_out = array.reshape(()) if scalar else spread(array, shape) if shape is not None else array
            self._arrays[key] = self._tensor(spread_out)
        return self._arrays[key]

    def steps_of(self, node: Neuron) -> Steps:
        """A population's program in single operations."""
        if node.name not in self._steps:
            self._steps[node.name] = Steps(node.program, list(self.learnt.get(node.name, ())), self.build)
        return self._steps[node.name]

    def param_of(self, name: str, param: str) -> torch.Tensor:
        """A population's parameter that is trained, as it is used."""
        raw = self.params[f"{self._keys[name]}_{param}"]
        return FORMS[self.learnt[name][param]][1](raw)

    def weight_of(self, name: str) -> torch.Tensor:
        """A node's weight as it is used: quantized where it has a quantizer."""
        weight: torch.Tensor = self.weights[self._keys[name]]
        return self.quantizers[name](weight) if name in self.quantizers else weight

    def forward(self, x: torch.Tensor | Mapping[str, torch.Tensor], record: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        """Outputs by name; with `record`, the first emission of those populations as well, under their names."""
        (first, *_) = self.graph.inputs
        given = x if isinstance(x, Mapping) else {first.name: x}
        values: dict[Wire, torch.Tensor] = {}
        batch, steps = next(iter(given.values())).shape[:2]
        # The last node runs max_lag steps late: the inputs go on with zeros for as long.
        late = self.graph.max_lag
        if late:
            given = {name: torch.cat([value, value.new_zeros((batch, late, *value.shape[2:]))], 1) for name, value in given.items()}
        used = {node.name: self.weight_of(node.name) for node in self.graph.nodes if isinstance(node, WEIGHTED)}
        run = _Run(self, given, values, used, batch, steps + late)
        for part, loops in self._parts:
            if loops:
                run.step_by_step(part)
            else:
                run.whole(part[0])

        def aligned(wire: Wire) -> torch.Tensor:
            lag = self.graph[wire[0]].lag
            return values[wire][:, lag : lag + steps]

        found = {name: aligned((ref.node, ref.port)) for name, ref in self.graph.outputs}
        return found | {name: aligned((name, "")) for name in record}


def _parts(graph: Graph) -> Iterator[tuple[list[Node], bool]]:
    """Strongly connected parts in the order of data flow; whether each is a loop. The nodes of a part keep the graph's order."""
    flow = networkx.DiGraph()
    flow.add_nodes_from(node.name for node in graph.order)
    flow.add_edges_from((ref.node, node.name) for node in graph.nodes for ref in node.inputs)
    position = {node.name: number for number, node in enumerate(graph.order)}
    condensed = networkx.condensation(flow)
    key = {number: min(position[name] for name in condensed.nodes[number]["members"]) for number in condensed}
    for number in networkx.lexicographical_topological_sort(condensed, key=key.__getitem__):
        names = sorted(condensed.nodes[number]["members"], key=position.__getitem__)
        yield [graph[name] for name in names], len(names) > 1 or flow.has_edge(names[0], names[0])


class _Run:
    """One forward pass."""

    def __init__(
        self,
        module: GraphModule,
        given: Mapping[str, torch.Tensor],
        values: dict[Wire, torch.Tensor],
        used: Mapping[str, torch.Tensor],
        batch: int,
        steps: int,
    ) -> None:
        self.module, self.graph = module, module.graph
        self.given, self.values, self.used = given, values, used
        self.batch, self.steps = batch, steps
        #: Of a loop that is being run: wire -> values of the steps so far.
        self.past: dict[Wire, list[torch.Tensor]] = {}

    def dtype(self, node: Node, port: str) -> torch.dtype:
        if self.module.integer:
            return torch.float64
        type_ = next(t for p, t in self.graph.types[node.name] if p == port)
        found: torch.dtype = torch.from_numpy(np.zeros(0, DTYPES[type_.dtype])).dtype
        return found

    # Reading ---------------------------------------------------------------------------------------------------------

    def _early(self, ref: Ref, steps: int) -> torch.Tensor:
        """What a delayed reference reads in its first `steps` steps: (batch, steps, *shape)."""
        shape = self.graph.type_of(ref).shape
        dtype = self.dtype(self.graph[ref.node], ref.port)
        if ref.init is None:
            return torch.zeros((self.batch, steps, *shape), dtype=dtype)
        start = torch.from_numpy(np.array(ref.init[:steps])).to(dtype)
        return start.expand(self.batch, *start.shape)

    def all_of(self, ref: Ref, extra: int = 0) -> torch.Tensor:
        """(batch, T, *shape) of what a reference reads, `extra` steps further back."""
        value = self.values[ref.node, ref.port]
        if ref.delay:
            early = min(ref.delay, self.steps)
            value = torch.cat([self._early(ref, early), value[:, : self.steps - early]], dim=1)
        if extra:
            late = min(extra, self.steps)
            value = torch.cat([torch.zeros_like(value[:, :late]), value[:, : self.steps - late]], dim=1)
        return value

    def now(self, ref: Ref, t: int, extra: int = 0) -> torch.Tensor:
        """(batch, *shape) of what a reference reads at step t."""
        wire = (ref.node, ref.port)
        when = t - extra
        if when >= ref.delay:
            return self.past[wire][when - ref.delay] if wire in self.past else self.values[wire][:, when - ref.delay]
        shape = self.graph.type_of(ref).shape
        if when < 0:
            return torch.zeros((self.batch, *shape), dtype=self.dtype(self.graph[ref.node], ref.port))
        return self._early(ref, when + 1)[:, when]

    # Running ---------------------------------------------------------------------------------------------------------

    def whole(self, node: Node) -> None:
        """All steps of a node that is on no loop."""
        if isinstance(node, Input):
            value = torch.as_tensor(self.given[node.name])
            narrow = self.module.integer and node.type.kind == "spike" and self.module.into_dense[node.name]
            self.values[node.name, ""] = value.to(torch.float32 if narrow else self.dtype(node, ""))
        elif isinstance(node, Constant):
            value = self.module._array(node, "value", node.value).expand(self.batch, self.steps, *node.value.shape).clone()
            value[:, : node.start] = 0
            self.values[node.name, ""] = value
        elif isinstance(node, Neuron):
            self._population(node, [self.all_of(ref) for ref in node.inputs])
        else:

            def read(ref: Ref, extra: int = 0) -> torch.Tensor:
                value = self.all_of(ref, extra)
                return value.reshape(-1, *value.shape[2:])

            value = self._compute(node, read)
            self.values[node.name, ""] = value.reshape(self.batch, self.steps, *value.shape[1:])

    def step_by_step(self, part: list[Node]) -> None:
        """The nodes of a loop, one step after the other."""
        if self._recurrent(part):
            return
        self.past = {(node.name, port): [] for node in part for port, _ in self.graph.types[node.name]}
        machines = {node.name: self._machine(node) for node in part if isinstance(node, Neuron)}
        for t in range(self.steps):
            for node in part:
                if isinstance(node, Neuron):
                    for port, value in machines[node.name]([self.now(ref, t) for ref in node.inputs], t).items():
                        self.past[node.name, port].append(value)
                else:
                    value = self._compute(node, lambda ref, extra=0, t=t: self.now(ref, t, extra))
                    self.past[node.name, ""].append(value)
        for wire, values in self.past.items():
            self.values[wire] = torch.stack(values, dim=1)
        self.past = {}

    def _recurrent(self, part: list[Node]) -> bool:
        """All steps of a loop that is one population and dense layers back to it; False where it is anything else."""
        neurons = [node for node in part if isinstance(node, Neuron)]
        own = {node.name for node in part}
        others = [node for node in part if not isinstance(node, Neuron)]
        seen = {ref.node for _, ref in self.graph.outputs}
        seen |= {ref.node for node in self.graph.nodes if node.name not in own for ref in node.inputs}
        plain = all(isinstance(node, (Dense, Add)) and node.name not in seen for node in others)
        if len(neurons) != 1 or not plain or len(self.graph.shape_of(neurons[0].name)) != 1:
            return False
        (node,) = neurons
        back: list[Feedback] = []
        inputs = [self._from_outside(ref, index, node, own, back) for index, ref in enumerate(node.inputs)]
        given = [value for value in inputs if value is not None]
        return len(given) == len(inputs) and self._at_once(node, given, back)

    def _from_outside(self, ref: Ref, index: int, node: Neuron, own: set[str], back: list[Feedback]) -> torch.Tensor | None:
        """What reaches an input of a population from outside its loop; `back` gets what it sends itself. None: not that simple."""
        if ref.node not in own:
            return self.all_of(ref)
        inner = self.graph[ref.node]
        if ref.delay or ref.init is not None:
            return None
        if isinstance(inner, Add):
            parts = [self._from_outside(operand, index, node, own, back) for operand in inner.inputs]
            found = [part for part in parts if part is not None]
            return None if len(found) < len(parts) else functools.reduce(operator.add, found)
        if not isinstance(inner, Dense) or inner.delay is not None:
            return None
        (source,) = inner.inputs
        if source.node != node.name or source.port or source.init is not None:
            return None
        back.append(Feedback(index, source.delay, self.used[inner.name].to(self._state_dtype(node))))
        none = torch.zeros((self.batch, self.steps, *self.graph.shape_of(inner.name)), dtype=self.dtype(inner, ""))
        return none if inner.bias is None else none + self.module.biases[self.module._keys[inner.name]]

    def _at_once(self, node: Neuron, inputs: list[torch.Tensor], back: Sequence[Feedback] = ()) -> bool:
        """All steps of a population as one node of torch's record; False where its program is not known there."""
        ports = [port for port, _ in self.graph.types[node.name]]
        shape, dtype = self.graph.shape_of(node.name), self._state_dtype(node)
        steps = self.module.steps_of(node)
        steps.widest = self.module.widest
        params = self._params(node)
        one_type = all(value.dtype == dtype for value in (*inputs, *(p for p in params.values() if p.ndim)))
        one_type &= all(self.dtype(node, port) == dtype for port in ports)
        if not (inputs and steps.known and one_type and all(value.shape[2:] == shape for value in inputs)):
            return False
        rows = steps.run(inputs, params, self._states(node), (node.start, node.stop), _eval, back)
        self.values |= {(node.name, port): value for port, value in zip(ports, rows, strict=True)}
        return True

    def _population(self, node: Neuron, inputs: list[torch.Tensor]) -> None:
        """All steps of a population, of inputs (batch, T, *shape)."""
        if self._at_once(node, inputs):
            return
        ports = [port for port, _ in self.graph.types[node.name]]
        machine = self._machine(node)
        reads = [value.unbind(1) for value in inputs]  # the gradient of an index in every step would be as large as all steps
        found: dict[str, list[torch.Tensor]] = {port: [] for port in ports}
        for t in range(self.steps):
            for port, value in machine([read[t] for read in reads], t).items():
                found[port].append(value)
        for port, values in found.items():
            self.values[node.name, port] = torch.stack(values, dim=1)

    def _params(self, node: Neuron) -> dict[str, torch.Tensor]:
        shape, module = self.graph.shape_of(node.name), self.module
        found = {name: module._array(node, name, array, shape) for name, array in node.params.items()}
        for name in module.learnt.get(node.name, ()):
            value = module.param_of(node.name, name)
            found[name] = value.reshape(*value.shape, *(1,) * (len(shape) - value.ndim)).expand(shape)
        return found

    def _states(self, node: Neuron) -> dict[str, torch.Tensor]:
        """Before the first step, (batch, *shape)."""
        shape, dtype = self.graph.shape_of(node.name), self._state_dtype(node)
        states = {}
        for state in node.program.states:
            start = spread(node.init[state.name], shape) if state.name in node.init else np.asarray(state.init, np.float64)
            states[state.name] = torch.from_numpy(np.array(start)).to(dtype).expand(self.batch, *shape)
        return states

    def _machine(self, node: Neuron) -> Callable[[list[torch.Tensor], int], dict[str, torch.Tensor]]:
        shape = self.graph.shape_of(node.name)
        program, ports = node.program, [port for port, _ in self.graph.types[node.name]]
        params, states, dtype = self._params(node), self._states(node), self._state_dtype(node)

        def step(inputs: list[torch.Tensor], t: int) -> dict[str, torch.Tensor]:
            if not node.runs(t):
                return {port: torch.zeros((self.batch, *shape), dtype=self.dtype(node, port)) for port in ports}
            values: dict[str, Any] = dict(zip(program.inputs, inputs, strict=True))
            values |= params | states | {STEP: t, WIDTH: self.module.widest}
            _execute(program, values)
            for name in states:
                states[name] = _number(values[name]).to(dtype).expand(self.batch, *shape)
            emitted = {}
            for emit, port in zip(program.emits, ports, strict=True):
                emitted[port] = _number(values[emit.name]).to(self.dtype(node, port)).expand(self.batch, *shape)
            return emitted

        return step

    def _state_dtype(self, node: Neuron) -> torch.dtype:
        if self.module.integer:
            return torch.float64
        types = [self.graph.type_of(ref).dtype for ref in node.inputs]
        floats = [DTYPES[name] for name in types if DTYPES[name].kind == "f"]
        floats += [array.dtype for array in (*node.params.values(), *node.init.values()) if array.ndim]
        found: torch.dtype = torch.from_numpy(np.zeros(0, np.result_type(*floats) if floats else np.float32)).dtype
        return found

    def _compute(self, node: Node, read: Callable[..., torch.Tensor]) -> torch.Tensor:
        if isinstance(node, WEIGHTED):
            return self._weighted(node, read)
        operands = [read(ref) for ref in node.inputs]
        if isinstance(node, Add):
            total = operands[0]
            for operand in operands[1:]:
                total = total + operand
            return total
        if isinstance(node, Concat):
            return torch.cat(operands, dim=node.axis + 1)
        (x,) = operands
        if isinstance(node, Reshape):
            return x.reshape(len(x), *node.shape)
        if isinstance(node, Gather):
            return x.reshape(len(x), -1)[:, torch.from_numpy(np.array(node.indices, np.int64))]
        if isinstance(node, Pool):
            return self._pool(node, x)
        assert isinstance(node, Scale)
        shape = tuple(x.shape[1:])
        result = x * self.module._array(node, "factor", node.factor, shape)
        return result if node.offset is None else result + self.module._array(node, "offset", node.offset, shape)

    def _pool(self, node: Pool, x: torch.Tensor) -> torch.Tensor:
        one = len(node.kernel) == 1
        f = nn.functional
        if node.mode == "max":
            return (f.max_pool1d if one else f.max_pool2d)(x, node.kernel, node.stride, node.padding)
        average = (f.avg_pool1d if one else f.avg_pool2d)(x, node.kernel, node.stride, node.padding)
        if node.mode == "average":
            return average
        total: torch.Tensor = average * float(np.prod(node.kernel))
        return straight_through(total, total.round()) if self.module.integer else total

    def _weighted(self, node: Dense | Sparse | Conv, read: Callable[..., torch.Tensor]) -> torch.Tensor:
        weight = self.used[node.name]
        (ref,) = node.inputs
        if node.delay is None:
            total = self._product(node, read(ref), weight)
        else:
            total = torch.zeros(())
            for delay in np.unique(node.delay) if node.delay.size else [0]:
                mask = torch.from_numpy(np.array(node.delay == delay))
                total = total + self._product(node, read(ref, int(delay)), weight * mask)
        if node.bias is None:
            return total
        bias = self.module.biases[self.module._keys[node.name]]
        return total + (bias.reshape(-1, *(1,) * (total.ndim - 2)) if isinstance(node, Conv) else bias)

    def _product(self, node: Dense | Sparse | Conv, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        f = nn.functional
        wide = weight.dtype if self.module.integer else torch.promote_types(x.dtype, weight.dtype)
        if self.module.integer and isinstance(node, Dense):
            (ref,) = node.inputs
            largest = 1.0 if self.graph.type_of(ref).kind == "spike" else float(x.detach().abs().max()) if x.numel() else 0.0
            if _fits_float32(largest, weight):
                return f.linear(x.to(torch.float32), weight.to(torch.float32)).to(wide)
        x, weight = x.to(wide), weight.to(wide)
        if isinstance(node, Dense):
            return f.linear(x, weight)
        if isinstance(node, Sparse):
            full = weight.new_zeros((len(node.indptr) - 1, node.fan_in))
            index = (torch.from_numpy(node.rows), torch.from_numpy(np.array(node.indices, np.int64)))
            return f.linear(x, full.index_put(index, weight, accumulate=True))
        conv = f.conv1d if weight.ndim == 3 else f.conv2d
        return conv(x, weight, None, node.stride, node.padding, node.dilation, node.groups)


def _fits_float32(largest: float, weight: torch.Tensor) -> bool:
    """Whether every partial sum of whole numbers stays below 2^24: then 32-bit floats are exact in any order, and quicker.

    largest: magnitude of what the weights are multiplied with.
    """
    return not weight.numel() or largest * float(weight.detach().abs().sum(dim=-1).max()) < 2**24


# ----------------------------------------------------------------------------------------------------------- programs


def _execute(program: Program, values: dict[str, Any]) -> None:
    for statement in program.body:
        values[statement.name] = _eval(statement.expr, values, resets(statement, program))


def _number(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(float(value), dtype=torch.float64)


def _eval(expr: Expr, values: Mapping[str, Any], resetting: bool) -> Any:
    """`resetting`: within a state's new value, truths get no gradient: a reset is not trained through."""
    if isinstance(expr, Num):
        return expr.value
    if isinstance(expr, Var):
        return values[expr.name]
    assert isinstance(expr, Call)
    op, args = expr.op, [_eval(arg, values, resetting) for arg in expr.args]
    if op in COMPARISONS:
        return _truth(_compare(op, args[0], args[1], values.get(WIDTH, WIDEST)), resetting)
    if op in LOGIC:
        a, b = (_truth(arg, resetting) for arg in (args[0], args[-1]))
        return 1 - a if op == "not" else a * b if op == "and" else a + b - a * b
    if op == "select":
        condition = _number(args[0])
        return torch.where(condition.detach() != 0, _number(args[1]), _number(args[2]))
    args = [_truth(arg, resetting) for arg in args]
    return _ARITHMETIC[op](*args)


def _truth(value: Any, resetting: bool) -> Any:
    """A value; a truth (the only tensors that carry the mark) without its gradient where a state is set from it."""
    return value.detach() if resetting and getattr(value, "is_truth", False) else value


def _compare(op: str, a: Any, b: Any, widest: float) -> Any:
    if not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
        return float({"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "==": a == b, "!=": a != b}[op])
    a, b = _number(a), _number(b)
    if op in ("==", "!="):
        return ((a == b) if op == "==" else (a != b)).to(torch.result_type(a, b))
    if op in ("<", "<="):
        a, b = b, a
    distance = a - b
    found: torch.Tensor = _Step.apply(distance, scale_of(distance, b, widest), op in (">", "<"))
    found.is_truth = True
    return found


def _rounded(x: Any, value: Any, gain: float = 1.0) -> Any:
    return straight_through(x, value, gain) if isinstance(x, torch.Tensor) else value


def _toward_zero(x: Any, bits: Any) -> Any:
    scaled = _number(x) * 2.0 ** -int(bits)
    return _rounded(scaled, torch.trunc(scaled))


def _right(x: Any, bits: Any) -> Any:
    scaled = _number(x) * 2.0 ** -_number(bits)
    return _rounded(scaled, torch.floor(scaled))


def _wrap(x: Any, bits: Any) -> Any:
    half = 2.0 ** (int(bits) - 1)
    x = _number(x)
    return _rounded(x, torch.remainder(x + half, 2 * half) - half)


def _clip(x: Any, bits: Any) -> Any:
    limit = 2.0 ** (int(bits) - 1) - 1
    return _number(x).clamp(-limit, limit)


_ARITHMETIC: Final[dict[str, Callable[..., Any]]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "neg": lambda a: -a,
    "<<": lambda a, b: _number(a) * 2.0 ** _number(b),
    ">>": _right,
    "abs": lambda a: _number(a).abs(),
    "min": lambda a, b: torch.minimum(*torch.broadcast_tensors(_number(a), _number(b))),
    "max": lambda a, b: torch.maximum(*torch.broadcast_tensors(_number(a), _number(b))),
    "floor": lambda a: _rounded(_number(a), _number(a).floor()),
    "round": lambda a: _rounded(_number(a), _number(a).round()),
    "rem": lambda a, b: torch.remainder(_number(a), _number(b)),
    "exp": lambda a: _number(a).exp(),
    "rtz": _toward_zero,
    "wrap": _wrap,
    "clip": _clip,
}
