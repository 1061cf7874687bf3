"""Compare a graph with the model, node by node and step by step, from the model's own values.

For every node the operands and states that the model itself computed are put in, and what comes out is compared with what the model
computed. Element-wise code must agree bit for bit; a sum may differ by the rounding that its order can cause. By induction
over nodes and steps the graph then computes what the model computes, up to those roundings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spikec.diagnostics import CompileError
from spikec.frontend.tracing.arrays import per_step, step_major
from spikec.frontend.tracing.build import Built
from spikec.frontend.tracing.fold import Cell, left_out
from spikec.frontend.tracing.programs import Port
from spikec.frontend.tracing.record import Files
from spikec.frontend.tracing.values import product
from spikec.ir.interpret import Interpreter, run_program
from spikec.ir.neuron import STEP
from spikec.ir.ops import Conv, Dense, Input, Neuron, Node, Pool, Ref, Scale, Sparse, spread
from spikec.ir.types import DTYPES, Array


def second_example(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    """Random data of the same shape, type and kind: as dense where the example holds spikes, as wide where it holds numbers."""
    generator = np.random.Generator(np.random.PCG64(seed))
    shape = tuple(tensor.shape)
    if tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all()):
        density = min(max(float(tensor.double().mean()) if tensor.numel() else 0.5, 0.2), 0.8)
        return torch.as_tensor(generator.random(shape) < density).to(tensor.dtype)
    data = tensor.double()
    if not tensor.is_floating_point():
        return torch.as_tensor(generator.integers(int(data.min()), int(data.max()) + 1, shape)).to(tensor.dtype)
    deviation = float(data.std()) if tensor.numel() > 1 else 1.0
    return torch.as_tensor(float(data.mean()) + (deviation or 1.0) * generator.standard_normal(shape)).to(tensor.dtype)


class _Replay(Interpreter):
    """Every step of every sample at once, each from the model's own values: (batch * T) independent steps."""

    def __init__(self, built: Built) -> None:
        self.built = built
        layout = built.folded.layout
        self.length = layout.steps
        self.samples = max(
            (a.size for v in built.folded.record.inputs for axis in layout.axes[v] for a in axis if a in layout.batch), default=1
        )
        super().__init__(built.graph, self.samples * self.length)
        self.values: dict[tuple[str, str], Array | None] = {}
        self.known: dict[tuple[str, str], bool | Array] = {}

    def flat(self, array: Array) -> Array:
        return array.reshape(self.samples * self.length, *array.shape[2:])

    def recorded(self, port: Port) -> tuple[Array, Array] | None:
        """What the model computed, (samples, T, *shape), and at which steps; None if it was not kept."""
        cell, number = port
        layout = self.built.folded.layout
        shape = layout.shape(cell.op.outputs[number], cell.op)
        dtype: Any = None
        known = np.zeros(self.length, bool)
        result: Array | None = None
        for step, op in cell.runs.items():
            value = op.outputs[number]
            if value.tensor is None or value.tensor._version != value.version:
                continue
            array = step_major(layout, value, value.tensor, op)
            dtype = array.dtype
            if result is None:
                result = np.zeros((self.samples, self.length, *shape), dtype)
            result = result.astype(np.result_type(result, dtype), copy=False)  # a state may begin in a narrower type
            if step < 0:
                result[:] = array if layout.timed(value) else array[:, None]
                known[:] = True
            else:
                result[:, step] = array
                known[step] = True
        if result is None:
            return None
        for (number_seen, step), constant in cell.observed.items():
            if number_seen == number:
                result[:, step] = per_step(layout, cell.op.outputs[number], cell.op, constant)
                known[step] = True
        source = cell.stand_ins.get(number)
        other = self.recorded((source.cell, source.port)) if source is not None else None
        if other is not None:
            result[:, 0] = other[0][:, 0]
            known[0] = True
        return result, known

    def read(self, ref: Ref, extra: int = 0) -> Array:
        """The operand at all steps, later ones read further back."""
        back = ref.delay + extra
        values = self.values[ref.node, ref.port]
        assert values is not None
        if not back:
            return self.flat(values)
        shifted = np.zeros_like(values)
        shifted[:, back:] = values[:, : self.length - back]
        if ref.init is not None:
            for step in range(min(ref.delay - extra, self.length, ref.delay)):
                shifted[:, step] = ref.init[step]
        return self.flat(shifted)

    def states_before(self, node: Neuron) -> dict[str, Array] | None:
        """The states that each step begins with."""
        if set(self.built.states.get(node.name, {})) != set(node.program.state_names):
            return None
        shape = self.graph.shape_of(node.name)
        result = {}
        for state in node.program.states:
            found = self.recorded(self.built.states[node.name][state.name])
            if found is None or not found[1][:-1].all():
                return None
            values = found[0].astype(self.states[node.name][state.name].dtype)
            begun = np.broadcast_to(
                spread(node.init[state.name], shape) if state.name in node.init else np.asarray(state.init), shape
            )
            result[state.name] = self.flat(
                np.concatenate([np.broadcast_to(begun, (self.samples, 1, *shape)).astype(values.dtype), values[:, :-1]], axis=1)
            )
        return result

    def neuron(self, node: Neuron) -> dict[str, Array]:
        """Outputs by port at all steps; a state that was not kept is followed from step to step."""
        ports = self.graph.types[node.name]
        shape = ports[0][1].shape
        before = self.states_before(node)
        inputs = {name: self.read(ref) for name, ref in zip(node.program.inputs, node.inputs, strict=True)}
        clock = np.tile(np.arange(self.length), self.samples).reshape(-1, *(1,) * len(shape)).astype(np.float32)
        if before is not None or not node.program.states:
            values: dict[str, Any] = inputs | self._params[node.name] | (before or {}) | {STEP: clock}
            values = run_program(node.program, values, self.truth)
            for state in before or {}:
                self.compare_state(node, state, values[state])
            found = {port: values[emit.name] for emit, (port, _) in zip(node.program.emits, ports, strict=True)}
            return {port: self._full(item, port, ports, shape) for port, item in found.items()}
        rows: dict[str, list[Array]] = {port: [] for port, _ in ports}
        split = {name: item.reshape(self.samples, self.length, *item.shape[1:]) for name, item in inputs.items()}
        states: dict[str, Any] = {name: array[: self.samples] for name, array in self._initial(node).items()}
        for step in range(self.length):
            values = {name: item[:, step] for name, item in split.items()} | self._params[node.name] | states | {STEP: step}
            values = run_program(node.program, values, self.truth)
            states = {name: np.broadcast_to(values[name], (self.samples, *shape)) for name in states}
            for emit, (port, _) in zip(node.program.emits, ports, strict=True):
                rows[port].append(np.broadcast_to(self.truth(values[emit.name]), (self.samples, *shape)))
        return {port: self._full(self.flat(np.stack(items, axis=1)), port, ports, shape) for port, items in rows.items()}

    def compare_state(self, node: Neuron, state: str, computed: Any) -> None:
        """What a step leaves for the next one is compared as well."""
        found = self.recorded(self.built.states[node.name][state])
        assert found is not None
        theirs, known = found
        mine = np.broadcast_to(self.truth(computed), self.flat(theirs).shape).astype(theirs.dtype)
        self.compare(node, state, mine.reshape(theirs.shape), theirs, known)

    def _full(self, item: Any, port: str, ports: Any, shape: tuple[int, ...]) -> Array:
        dtype = DTYPES[dict(ports)[port].dtype]
        return np.array(np.broadcast_to(self.truth(item), (self.samples * self.length, *shape)), dtype)

    def run(self, files: Files) -> None:
        """Compare every node; SPK108 at the first that differs."""
        kept = {wire: self.recorded(port) for wire, port in self.built.wires.items()}
        self.values = {wire: found[0].astype(DTYPES[self.graph.type_of(Ref(*wire)).dtype]) for wire, found in kept.items() if found}
        for node in self.graph.order:
            if isinstance(node, Input):
                computed = None
            elif isinstance(node, Neuron):
                computed = self.neuron(node)
            else:
                computed = {"": self._compute(node)}
            for port, type_ in self.graph.types[node.name]:
                wire = (node.name, port)
                found = kept.get(wire)
                mine = None if computed is None else computed[port].reshape(self.samples, self.length, *type_.shape)
                if found is None:
                    self.values[wire] = mine
                    continue
                theirs, known = found
                theirs = theirs.astype(DTYPES[type_.dtype])
                if mine is not None:
                    self.compare(node, port, mine, theirs, known)
                    theirs = np.where(known.reshape(1, -1, *(1,) * len(type_.shape)), theirs, mine)
                self.values[wire] = theirs

    def compare(self, node: Node, port: str, mine: Array, theirs: Array, known: Array) -> None:
        """Bit for bit, or within the bound of a sum."""
        same = (mine == theirs) | (np.isnan(mine) & np.isnan(theirs)) if mine.dtype.kind == "f" else mine == theirs
        wrong = ~same & known.reshape(1, -1, *(1,) * (mine.ndim - 2))
        if not wrong.any():
            return
        difference = np.abs(mine.astype(np.float64) - theirs.astype(np.float64))
        bound = self.bound(node)
        if bound is not None:
            wrong &= ~(difference <= bound.reshape(self.samples, self.length, *bound.shape[1:]))
            if not wrong.any():
                return
        sample, step, *place = (int(i) for i in np.argwhere(wrong)[0])
        missing = self.missing(node.name, port, step)
        if missing is not None:
            raise left_out(missing.op, step, self.built.folded.layout.steps - 2)
        where = f" at {place}" if place else ""
        raise CompileError(
            "SPK108",
            f"%{node.name}{'.' + port if port else ''} gives {mine[(sample, step, *place)]} at step {step}{where}, "
            f"the model gives {theirs[(sample, step, *place)]} ({int(wrong.sum())} of {wrong.size} values differ)",
            loc=node.loc,
            notes=["spikec reads this code differently from what it does; please report it, with the model"],
        )

    def missing(self, node: str, port: str, step: int) -> Cell | None:
        """What the model did not do at this step of all that the wire or state is made of."""
        found = self.built.wires.get((node, port)) or self.built.states.get(node, {}).get(port)
        stack, seen = [found[0]] if found else [], set()
        while stack:
            cell = stack.pop()
            if -1 not in cell.runs and step not in cell.runs:
                return cell
            inner = [read.cell for read in cell.cells if read.delay == 0 and cell.op.kind == "ew" and read.cell not in seen]
            seen.update(inner)
            stack += inner
        return None

    def bound(self, node: Node) -> Array | None:
        """How far two orders of the same sum can lie apart; None where there is no sum."""
        if not isinstance(node, (Dense, Sparse, Conv, Pool, Scale)):
            return self.accumulated(node)
        (ref,) = node.inputs
        x = self.read(ref)
        unit = float(np.finfo(DTYPES[self.graph.types[node.name][0][1].dtype]).eps)
        if isinstance(node, Scale):
            factor = np.abs(np.asarray(spread(node.factor, x.shape[1:]), np.float64))
            offset = 0.0 if node.offset is None else np.abs(np.asarray(spread(node.offset, x.shape[1:]), np.float64))
            return np.asarray(4 * unit * (np.abs(x.astype(np.float64)) * factor + offset))
        absolute = _absolute(node)
        kept = {key: value for key, value in self.values.items() if key == (ref.node, ref.port)}
        values = kept[ref.node, ref.port]
        assert values is not None
        self.values[ref.node, ref.port] = np.abs(values.astype(np.float64))
        try:
            total = self._compute(absolute)
        finally:
            self.values[ref.node, ref.port] = values
        if isinstance(node, Pool):
            terms = product(node.kernel)
        elif isinstance(node, Sparse):
            terms = int(np.diff(node.indptr).max(initial=0)) + 1
        else:
            terms = product(node.weight.shape[1:]) + 1
        return np.asarray(2 * terms * unit * total.astype(np.float64)) + float(np.finfo(np.float32).tiny)

    def accumulated(self, node: Node) -> Array | None:
        """A sum over time may be added up in another order."""
        if not isinstance(node, Neuron) or not node.program.name.startswith("running_"):
            return None
        x = np.abs(self.read(node.inputs[0]).astype(np.float64))
        total = x.reshape(self.samples, self.length, *x.shape[1:]).sum(axis=1, keepdims=True)
        unit = float(np.finfo(DTYPES[self.graph.types[node.name][0][1].dtype]).eps)
        return self.flat(np.broadcast_to(2 * self.length * unit * total, (self.samples, self.length, *x.shape[1:])))


def _absolute(node: Dense | Sparse | Conv | Pool) -> Node:
    from dataclasses import replace

    if isinstance(node, Pool):
        return node
    bias = None if node.bias is None else np.abs(node.bias.astype(np.float64))
    return replace(node, weight=np.abs(node.weight.astype(np.float64)), bias=bias)


def compare(built: Built, files: Files) -> None:
    """Raises CompileError SPK108 where a node of the graph does not compute what the model computed."""
    _Replay(built).run(files)
