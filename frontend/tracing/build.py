"""From cells to the nodes of a float graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from spikec.diagnostics import CompileError, Loc
from spikec.frontend.tracing.arrays import compact, per_step
from spikec.frontend.tracing.fold import Cell, Folded, Read, Source
from spikec.frontend.tracing.programs import Port, write_region
from spikec.frontend.tracing.regions import clean_leaf, find_regions
from spikec.frontend.tracing.values import Const, Number, Value, product
from spikec.ir.graph import Graph
from spikec.ir.neuron import Emit, Program
from spikec.ir.ops import Add, Concat, Constant, Conv, Dense, Gather, Input, Neuron, Node, Pool, Ref, Reshape, Scale, Sparse
from spikec.ir.reductions import REDUCTIONS
from spikec.ir.types import Array, Kind, TensorType


@dataclass
class Built:
    """A graph, and which cell output every wire and state of it is (for the comparison with the model)."""

    graph: Graph
    folded: Folded
    wires: dict[tuple[str, str], Port]
    states: dict[str, dict[str, Port]]
    outputs: dict[str, tuple[tuple[str | int, ...], Source]]


_POOLS: dict[str, Literal["sum", "average", "max"]] = {"sum": "sum", "mean": "average", "max": "max"}

#: Layers whose node has the name of the module.
_PLAIN = (
    "Linear", "SparseLinear", "DelayLinear", "Conv", "AvgPool", "MaxPool", "BatchNorm", "Adaptive", "LazyLinear", "Identity",
)  # fmt: skip


def snake(name: str) -> str:
    """CamelCase -> camel_case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@dataclass
class _Builder:
    folded: Folded
    kinds: Sequence[Kind]
    dtype: str
    nodes: list[Node] = field(default_factory=list)
    refs: dict[Port, Ref] = field(default_factory=dict)
    #: Names for nodes that are referred to before they are built.
    stand_ins: dict[str, Port] = field(default_factory=dict)
    output_refs: list[Ref] = field(default_factory=list)
    used: dict[Port, list[tuple[Cell | None, int]]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    wires: dict[tuple[str, str], Port] = field(default_factory=dict)
    states: dict[str, dict[str, Port]] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------------------- helpers

    def shape(self, cell: Cell, port: int = 0) -> tuple[int, ...]:
        return self.folded.layout.shape(cell.op.outputs[port], cell.op)

    def constant(self, cell: Cell, item: Const | Number) -> Array:
        """A constant operand of a cell, compact."""
        value = cell.op.outputs[0]
        array = per_step(self.folded.layout, value, cell.op, item)
        if not (isinstance(item, Const) and item.name) and array.size and np.all(array == array.flat[0]):
            array = array.reshape(-1)[0]
        return compact(np.asarray(array), self.shape(cell))

    def name(self, wanted: str) -> str:
        base = re.sub(r"[^A-Za-z0-9_]", "_", wanted) or "node"
        base = base if not base[0].isdigit() else f"n{base}"
        number, chosen = 1, base
        while chosen in self.names:
            number += 1
            chosen = f"{base}_{number}"
        self.names.add(chosen)
        return chosen

    def cell_name(self, cell: Cell, label: str) -> str:
        """From the module path; the operation's own label for what no layer module does."""
        path = cell.op.path.replace(".", "_")
        layer = cell.op.kind in ("linear", "conv", "pool", "affine", "leaf")
        own = self.folded.record.module_types.get(cell.op.path, "")
        plain = layer and cell.op.path and (cell.op.kind == "leaf" or own.startswith(_PLAIN))
        if plain:
            return self.name(path)
        return self.name(f"{path}_{label}" if path else label)

    def ref(self, read: Read) -> Ref:
        """The reference of an operand; one that is read in a later step may not be built yet and gets a stand-in."""
        port = (read.cell, read.port)
        base = self.refs.get(port)
        if base is None:
            base = Ref(f"?{len(self.stand_ins)}")
            self.stand_ins[base.node] = port
        return replace(base, delay=read.delay, init=self.initial(read))

    def initial(self, read: Read) -> Array | None:
        """What stood there before step 0, as (delay, *shape); None for zeros."""
        if not read.delay or not any(np.any(np.asarray(c.array if isinstance(c, Const) else c)) for c in read.init.values()):
            return None
        shape = self.shape(read.cell, read.port)
        value = read.cell.op.outputs[read.port]
        rows = []
        for step in range(read.delay):
            row = per_step(self.folded.layout, value, read.cell.op, read.init.get(step, 0))
            rows.append(np.broadcast_to(row, shape).astype(np.float64 if self.dtype == "f64" else np.float32))
        return np.stack(rows)

    def add(self, node: Node, cell: Cell | None, port: int = 0) -> Ref:
        self.nodes.append(node)
        ref = Ref(node.name)
        if cell is not None:
            self.refs[cell, port] = ref
            self.wires[node.name, ""] = (cell, port)
        return ref

    def fail(self, cell: Cell, message: str, fix: str | None = None) -> None:
        raise CompileError("SPK102", message, loc=cell.op.loc, fix=fix)

    def program(self, program: Program) -> Program:
        """The same program under a name that no other one has."""
        number, chosen = 1, program
        while self.programs.setdefault(chosen.name, chosen) != chosen:
            number += 1
            chosen = program.renamed(f"{program.name}_{number}")
        return chosen

    # ----------------------------------------------------------------------------------------------------------- run

    def run(self, name: str, dt: float | None) -> Built:
        cells = self.folded.cells
        needed = self.needed()
        cells = [cell for cell in cells if cell in needed]
        regions = find_regions(cells, {source.cell for _, source in self.folded.returned}, self.shape)
        member = {cell: i for i, group in enumerate(regions) for cell in group}
        self.used = self.uses(cells)
        # Names and ports first: a reference on a cycle points to a node that comes later.
        for cell, kind in zip(self.folded.inputs, self.kinds, strict=True):
            index = cell.op.attrs["index"]
            node = Input(name=self.name(self.folded.record.input_names[index]), type=TensorType(kind, self.shape(cell), self.dtype))
            self.add(node, cell)
        units: list[Cell | list[Cell]] = []
        for cell in cells:
            if cell not in member:
                units.append(cell)
            elif cell is regions[member[cell]][-1]:
                units.append(regions[member[cell]])
        todo = units
        while todo:
            ready = [unit for unit in todo if self.ready(unit if isinstance(unit, list) else [unit])]
            if not ready:
                raise AssertionError("the regions are not convex")
            self.unit(ready[0])
            todo = [unit for unit in todo if unit is not ready[0]]
        outputs, kept = self.outputs()
        self.resolve()
        graph = Graph(name, "float", tuple(self.prune(self.nodes, kept)), tuple(outputs), dt)
        found = {key: port for key, port in self.wires.items() if key[0] in graph}
        return Built(graph, self.folded, found, self.states, kept)

    def needed(self) -> set[Cell]:
        """Cells that an output depends on."""
        stack = [source.cell for _, source in self.folded.returned]
        found: set[Cell] = set()
        while stack:
            cell = stack.pop()
            if cell not in found:
                found.add(cell)
                stack += [read.cell for read in cell.cells]
        return found

    def uses(self, cells: list[Cell]) -> dict[Port, list[tuple[Cell | None, int]]]:
        """Readers of every output with their delays; None is an output of the graph."""
        used: dict[Port, list[tuple[Cell | None, int]]] = {}
        for cell in cells:
            for read in cell.cells:
                used.setdefault((read.cell, read.port), []).append((cell, read.delay))
        for _, source in self.folded.returned:
            used.setdefault((source.cell, source.port), []).append((None, source.back))
        return used

    def ready(self, group: list[Cell]) -> bool:
        """Whether everything that a unit reads in the same step is built."""
        return all(read.delay or read.cell in group or (read.cell, read.port) in self.refs for cell in group for read in cell.cells)

    def resolve(self) -> None:
        """Put the real nodes in the place of the stand-ins."""

        def mend(ref: Ref) -> Ref:
            if ref.node not in self.stand_ins:
                return ref
            return replace(self.refs[self.stand_ins[ref.node]], delay=ref.delay, init=ref.init)

        self.nodes = [replace(node, inputs=tuple(mend(ref) for ref in node.inputs)) for node in self.nodes]

    def prune(self, nodes: list[Node], kept: dict[str, Any]) -> list[Node]:
        """Leave out nodes that no output needs; keep all inputs."""
        by_name = {node.name: node for node in nodes}
        stack = [ref.node for ref in self.output_refs]
        needed: set[str] = set()
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                stack += [ref.node for ref in by_name[name].inputs]
        return [node for node in nodes if node.name in needed or isinstance(node, Input)]

    # --------------------------------------------------------------------------------------------------------- units

    def unit(self, unit: Cell | list[Cell]) -> None:
        if isinstance(unit, list):
            self.region(unit)
            return
        getattr(self, f"_{unit.op.kind}")(unit)

    def region(self, cells: list[Cell]) -> None:
        inside = set(cells)
        outside: list[Port] = []
        for cell in cells:
            for index in range(len(cell.op.outputs)):
                readers = self.used.get((cell, index), [])
                if any(reader is None or reader not in inside or delay > 1 for reader, delay in readers):
                    outside.append((cell, index))
        last = cells[-1]
        main = next((cell for cell in cells if cell.op.outputs[0].boolean and (cell, 0) in outside), last)
        path = main.op.path
        kind = self.folded.record.module_types.get(path, "") if path else ""
        label = "neuron" if any(r.cell in inside and r.delay for c in cells for r in c.cells) else "function"
        shape = self.shape(last)
        written = write_region(
            cells, outside, snake(kind) if kind else label, self.constant, np.float64 if self.dtype == "f64" else np.float32
        )
        node_name = self.name(path.replace(".", "_") if path else label)
        inputs = tuple(self.matched(self.ref(read), read, shape, main) for read in written.inputs)
        program = self.program(self.same(written.program))
        node = Neuron(name=node_name, inputs=inputs, program=program, params=written.params, init=written.init, loc=main.op.loc)
        self.nodes.append(node)
        ports = [emit.name for emit in written.program.emits]
        for number, port in enumerate(written.ports):
            key = "" if number == 0 else ports[number]
            self.refs[port] = Ref(node_name, key)
            self.wires[node_name, key] = port
        for port, twin in written.twins.items():
            self.refs[port] = self.refs[twin]
        self.states[node_name] = dict(written.states)

    def same(self, program: Program) -> Program:
        """A program that was met before under another name, if the text is the same."""
        for known in self.programs.values():
            if known.renamed(program.name) == program:
                return known
        return program

    def matched(self, ref: Ref, read: Read, shape: tuple[int, ...], cell: Cell) -> Ref:
        """An operand in the shape of the result: numbers are repeated where torch broadcasts."""
        own = self.shape(read.cell, read.port)
        if own == shape:
            return ref
        layout = self.folded.layout
        source, target = read.cell.op.outputs[read.port], cell.op.outputs[0]
        kept = layout.feature_axes(target, cell.op)
        back = {len(source.shape) - p: i for i, p in enumerate(layout.feature_axes(source, read.cell.op))}
        sizes = tuple(own[back[len(target.shape) - p]] if len(target.shape) - p in back else 1 for p in kept)
        indices = np.broadcast_to(np.arange(product(own)).reshape(sizes), shape)
        node = Gather(
            name=self.name("spread" if ref.node in self.stand_ins else f"{ref.node}_spread"),
            inputs=(ref,),
            indices=np.array(indices, np.int64),
            loc=cell.op.loc,
        )
        return self.add(node, None)

    def operands(self, cell: Cell) -> list[Ref]:
        return [self.matched(self.ref(read), read, self.shape(cell), cell) for read in cell.cells]

    # ----------------------------------------------------------------------------------------------------- operations

    def _ew(self, cell: Cell) -> None:
        """Add and Scale: everything else is in a region."""
        fn, reads = cell.op.attrs["fn"], cell.reads
        name, loc = self.cell_name(cell, cell.op.label), cell.op.loc
        refs = self.operands(cell)
        one = np.asarray(1.0, np.float32)
        if len(refs) == 2:
            if fn == "-":
                minus = Scale(name=self.name(f"{name}_negative"), inputs=(refs[1],), factor=-one, loc=loc)
                refs[1] = self.add(minus, None)
            self.add(Add(name=name, inputs=tuple(refs), loc=loc), cell)
            return
        if fn == "neg":
            self.add(Scale(name=name, inputs=tuple(refs), factor=-one, loc=loc), cell)
            return
        first = isinstance(reads[0], Read)
        other = reads[1] if first else reads[0]
        assert not isinstance(other, Read)
        array = self.constant(cell, other)
        if array.dtype.kind != "f" or not array.ndim:
            array = array.astype(np.float64 if self.dtype == "f64" else np.float32)
        if fn == "*" and np.all(array == 1) and not refs[0].delay:
            self.refs[cell, 0] = refs[0]
            self.names.discard(name)
            return
        if fn == "*":
            node = Scale(name=name, inputs=tuple(refs), factor=array, loc=loc)
        elif fn == "+":
            node = Scale(name=name, inputs=tuple(refs), factor=one, offset=array, loc=loc)
        elif first:
            node = Scale(name=name, inputs=tuple(refs), factor=one, offset=-array, loc=loc)
        else:
            node = Scale(name=name, inputs=tuple(refs), factor=-one, offset=array, loc=loc)
        self.add(node, cell)

    def _features(self, cell: Cell, value: Value, count: int, what: str) -> None:
        """The last `count` axes must be features."""
        kept = self.folded.layout.feature_axes(value, cell.op)
        if any(position not in kept for position in range(len(value.shape) - count, len(value.shape))):
            layout = self.folded.layout
            timed = any(a in layout.time for axis in layout.axes[value][-count:] for a in axis)
            self.fail(cell, f"{what} works along the {'time' if timed else 'batch'} axis here")

    def _operand_value(self, cell: Cell) -> Value:
        return next(cell.op.values)

    def _linear(self, cell: Cell) -> None:
        (read,) = cell.cells
        self._features(cell, self._operand_value(cell), 1, "a linear layer")
        attrs = cell.op.attrs
        bias = attrs["bias"].array if attrs["bias"] is not None else None
        name, weight, loc = self.cell_name(cell, "linear"), attrs["weight"].array, cell.op.loc
        if "indptr" in attrs:
            own, rows = self.shape(read.cell, read.port), (attrs["indices"].array, attrs["indptr"].array)
            if len(own) != 1:
                self.fail(cell, f"a sparse layer takes one axis of features, not {len(own)}", "flatten its input")
            self.add(
                Sparse(
                    name=name,
                    inputs=(self.ref(read),),
                    weight=weight,
                    indices=rows[0],
                    indptr=rows[1],
                    fan_in=own[0],
                    bias=bias,
                    loc=loc,
                ),
                cell,
            )
            return
        delay = None
        if "delay" in attrs:
            self._along_time(cell)
            delay = np.rint(attrs["delay"].array).astype(np.int64)
        self.add(Dense(name=name, inputs=(self.ref(read),), weight=weight, bias=bias, delay=delay, loc=loc), cell)

    def _along_time(self, cell: Cell) -> None:
        """The axis along which a layer delays must be time."""
        layout, value, axis = self.folded.layout, self._operand_value(cell), cell.op.attrs["time_axis"]
        if axis is None and layout.timed(value):
            self.fail(cell, "a layer with delays gets all steps at once, and does one step a call", "make it with time_axis")
        if axis is not None and not any(atom in layout.time for atom in layout.axes[value][axis]):
            self.fail(cell, f"a layer with delays has time_axis={axis}, which is not the time axis here")

    def _delay(self, cell: Cell) -> None:
        """One delay is a reference further back; many are connections of weight 1, each with its own."""
        (read,) = cell.cells
        self._along_time(cell)
        delays, shape, loc = cell.op.attrs["delay"].array, self.shape(cell), cell.op.loc
        name = self.name(cell.op.path.replace(".", "_") or "delay")
        if not delays.ndim:
            self.add(Reshape(name=name, inputs=(self.ref(read).later(int(delays)),), shape=shape, loc=loc), cell)
            return
        size = product(shape)
        ref = self.reshaped(self.ref(read), (size,), shape, f"{name}_in", loc)
        axons = Sparse(
            name=name if len(shape) == 1 else self.name(f"{name}_axons"),
            inputs=(ref,),
            weight=np.ones(size, np.float64 if self.dtype == "f64" else np.float32),
            indices=np.arange(size),
            indptr=np.arange(size + 1),
            fan_in=size,
            delay=np.array(np.broadcast_to(delays, shape)).reshape(-1),
            loc=loc,
        )
        if len(shape) == 1:
            self.add(axons, cell)
        else:
            self.add(Reshape(name=name, inputs=(self.add(axons, None),), shape=shape, loc=loc), cell)

    def reshaped(self, ref: Ref, shape: tuple[int, ...], own: tuple[int, ...], name: str, loc: Loc | None) -> Ref:
        if shape == own:
            return ref
        return self.add(Reshape(name=self.name(name), inputs=(ref,), shape=shape, loc=loc), None)

    def _conv(self, cell: Cell) -> None:
        (read,) = cell.cells
        attrs, value = cell.op.attrs, self._operand_value(cell)
        self._features(cell, value, attrs["space"] + 1, "a convolution")
        own = self.shape(read.cell, read.port)
        lead = own[: -(attrs["space"] + 1)]
        if product(lead) != 1:
            self.fail(
                cell,
                f"the convolution takes the {product(lead)} entries of an axis that is not the batch as a batch",
                "pass batch_axis, or loop over that axis",
            )
        name, loc = self.cell_name(cell, "conv"), cell.op.loc
        ref = self.reshaped(self.ref(read), own[len(lead) :], own, f"{name}_in", loc)
        bias = attrs["bias"].array if attrs["bias"] is not None else None
        settings = {key: attrs[key] for key in ("stride", "padding", "dilation", "groups")}
        if not lead:
            self.add(Conv(name=name, inputs=(ref,), weight=attrs["weight"].array, bias=bias, loc=loc, **settings), cell)
            return
        inner = self.add(
            Conv(name=self.name(f"{name}_conv"), inputs=(ref,), weight=attrs["weight"].array, bias=bias, loc=loc, **settings), None
        )
        self.add(Reshape(name=name, inputs=(inner,), shape=self.shape(cell), loc=loc), cell)

    def _pool(self, cell: Cell) -> None:
        (read,) = cell.cells
        attrs = cell.op.attrs
        space = attrs["space"]
        self._features(cell, self._operand_value(cell), space, "a pool")
        own, shape = self.shape(read.cell, read.port), self.shape(cell)
        name, loc = self.cell_name(cell, "pool"), cell.op.loc
        inner = (product(own[:-space]), *own[-space:])
        ref = self.reshaped(self.ref(read), inner, own, f"{name}_in", loc)
        plain = len(own) == space + 1
        node = Pool(
            name=name if plain else self.name(f"{name}_pool"),
            inputs=(ref,),
            mode=attrs["mode"],
            kernel=attrs["kernel"],
            stride=attrs["stride"],
            padding=attrs["padding"],
            loc=loc,
        )
        if plain:
            self.add(node, cell)
        else:
            self.add(Reshape(name=name, inputs=(self.add(node, None),), shape=shape, loc=loc), cell)

    def _affine(self, cell: Cell) -> None:
        (read,) = cell.cells
        value = self._operand_value(cell)
        axis = 1 if len(value.shape) > 1 else 0
        arrays = []
        for key in ("factor", "offset"):
            array = cell.op.attrs[key].array.reshape((-1, *(1,) * (len(value.shape) - axis - 1)))
            arrays.append(self.constant(cell, Const(array)))
        self.add(
            Scale(name=self.cell_name(cell, "norm"), inputs=(self.ref(read),), factor=arrays[0], offset=arrays[1], loc=cell.op.loc),
            cell,
        )

    def _reshape(self, cell: Cell) -> None:
        (read,) = cell.cells
        own, shape = self.shape(read.cell, read.port), self.shape(cell)
        ref = self.ref(read)
        before = next((node for node in self.nodes if node.name == ref.node), None)
        if isinstance(before, Reshape) and not ref.delay and not before.inputs[0].delay:
            inner = before.inputs[0]
            source = self.wires.get((inner.node, inner.port))
            if source is not None and self.shape(*source) == shape:
                self.refs[cell, 0] = inner
                return
        if own == shape and not ref.delay:
            self.refs[cell, 0] = ref
            return
        if product(own) != product(shape):
            self.fail(cell, f"{cell.op.label} from {own} to {shape} is not supported")
        self.add(
            Reshape(
                name=self.cell_name(cell, "flatten" if len(shape) == 1 else "reshape"), inputs=(ref,), shape=shape, loc=cell.op.loc
            ),
            cell,
        )

    _squeeze = _unsqueeze = _reshape

    def gathered(self, cell: Cell, indices: Array) -> None:
        (read,) = cell.cells
        self.add(
            Gather(
                name=self.cell_name(cell, cell.op.label),
                inputs=(self.ref(read),),
                indices=np.array(indices, np.int64),
                loc=cell.op.loc,
            ),
            cell,
        )

    def _expand(self, cell: Cell) -> None:
        reads = list(cell.cells)
        if not reads:
            (item,) = cell.reads
            assert not isinstance(item, Read)
            array = np.array(
                np.broadcast_to(self.constant(cell, item), self.shape(cell)), np.float64 if self.dtype == "f64" else np.float32
            )
            self.add(Constant(name=self.name("constant"), value=array, loc=cell.op.loc), cell)
            return
        self.refs[cell, 0] = self.matched(self.ref(reads[0]), reads[0], self.shape(cell), cell)

    def positions(self, cell: Cell) -> tuple[Array, list[int]]:
        """Flat indices of the operand in its feature shape, and which axes of the tensor those are."""
        (read,) = cell.cells
        value = self._operand_value(cell)
        shape = self.shape(read.cell, read.port)
        return np.arange(product(shape)).reshape(shape), self.folded.layout.feature_axes(value, cell.op)

    def _permute(self, cell: Cell) -> None:
        grid, kept = self.positions(cell)
        order = [kept.index(dim) for dim in cell.op.attrs["dims"] if dim in kept]
        self.gathered(cell, grid.transpose(order))

    def _pick(self, cell: Cell) -> None:
        grid, kept = self.positions(cell)
        axis = cell.op.attrs["axis"]
        if axis not in kept:
            self.fail(cell, "one entry of the batch is picked", "results must not depend on the batch")
        if grid.shape[kept.index(axis)] == 1:
            self._reshape(cell)
            return
        self.gathered(cell, np.take(grid, cell.op.attrs["index"], axis=kept.index(axis)))

    def _gather(self, cell: Cell) -> None:
        grid, kept = self.positions(cell)
        axis = cell.op.attrs["axis"]
        if axis not in kept:
            value = self._operand_value(cell)
            timed = any(atom in self.folded.layout.time for atom in self.folded.layout.axes[value][axis])
            what = "some of the time steps are" if timed else "some entries of the batch are"
            self.fail(
                cell,
                f"{what} selected or reordered",
                "do that outside the model" if timed else "results must not depend on the batch",
            )
        self.gathered(cell, np.take(grid, cell.op.attrs["indices"], axis=kept.index(axis)))

    def _cat(self, cell: Cell) -> None:
        one = len(cell.reads) == 1 and isinstance(cell.reads[0], Read)
        if one or len(cell.reads) != len(cell.op.operands):  # a single part, or the joined steps of one value
            self._reshape(cell)
            return
        layout, output = self.folded.layout, cell.op.outputs[0]
        kept = layout.feature_axes(output, cell.op)
        axis = cell.op.attrs["axis"]
        name = self.cell_name(cell, "concat")
        if axis not in kept:
            self.fail(cell, "a concatenation along the time or batch axis is not supported")
        where = kept.index(axis)
        full = self.shape(cell)
        refs = []
        for read in cell.reads:
            if isinstance(read, Read):
                ref, own = self.ref(read), self.shape(read.cell, read.port)
                shape = own if cell.op.kind == "cat" else (*own[:where], 1, *own[where:])
                refs.append(self.reshaped(ref, shape, own, f"{name}_part", cell.op.loc))
            else:
                array = np.asarray(read.array if isinstance(read, Const) else read)
                if cell.op.kind == "stack":
                    array = np.expand_dims(array, axis)
                size = array.shape[axis] if array.ndim else 1
                piece = per_step(layout, output, cell.op, Const(array))
                value = np.broadcast_to(piece, (*full[:where], size, *full[where + 1 :]))
                value = np.array(value, np.float64 if self.dtype == "f64" else np.float32)
                refs.append(self.add(Constant(name=self.name(f"{name}_constant"), value=value, loc=cell.op.loc), None))
        self.add(Concat(name=name, inputs=tuple(refs), axis=where, loc=cell.op.loc), cell)

    _stack = _cat

    def _reduce(self, cell: Cell) -> None:
        (read,) = cell.cells
        layout, value = self.folded.layout, self._operand_value(cell)
        axes, fn = cell.op.attrs["axes"], cell.op.attrs["fn"]
        kept = layout.feature_axes(value, cell.op)
        inner = [kept.index(a) for a in axes if a in kept]
        outer = [a for a in axes if a not in kept]
        own, shape = self.shape(read.cell, read.port), self.shape(cell)
        loc = cell.op.loc
        if any(atom in layout.batch for a in outer for atom in layout.axes[value][a]):
            self.fail(cell, f"{fn} over the batch mixes its samples", "results must not depend on the batch")
        ref = self.ref(read)
        if outer:
            if inner and product([own[i] for i in inner]) > 1:
                self.fail(
                    cell, f"{fn} over time and other axes at once is not supported", f"write it as two: x.{fn}(time).{fn}(rest)"
                )
            base = self.refs[read.cell, read.port]
            label = f"{base.node}_{base.port}_{fn}" if base.port else f"{base.node}_{fn}"
            node = Neuron(name=self.name(label), inputs=(ref,), program=self.program(REDUCTIONS[fn]), loc=loc)
            if shape != own:
                self.add(Reshape(name=self.name(f"{label}_shape"), inputs=(self.add(node, None),), shape=shape, loc=loc), cell)
                return
            self.add(node, cell)
            self.states[node.name] = {}
            return
        name = self.cell_name(cell, fn)
        if fn == "min":
            self.fail(cell, "min over features is not supported", "write it as the maximum of the negative")
        rest = [axis for axis in range(len(own)) if axis not in inner]
        if inner != list(range(len(rest), len(own))):
            indices = np.arange(product(own)).reshape(own).transpose(*rest, *inner)
            ref = self.add(
                Gather(name=self.name(f"{name}_order"), inputs=(ref,), indices=np.array(indices, np.int64), loc=loc), None
            )
            own = tuple(own[axis] for axis in (*rest, *inner))
            inner = list(range(len(rest), len(own)))
        count = len(inner)
        window = tuple(own[-count:])
        channels = product(own[:-count])
        if count > 2:
            window = (product(window),)
        if fn == "sum" and count == 1 and len(own) == 1:
            weight = np.ones((1, window[0]), np.float64 if self.dtype == "f64" else np.float32)
            inner_ref = self.add(Dense(name=self.name(f"{name}_dense"), inputs=(ref,), weight=weight, loc=loc), None)
        else:
            mode = _POOLS[fn]
            ready = self.reshaped(ref, (channels, *window), own, f"{name}_in", loc)
            inner_ref = self.add(Pool(name=self.name(f"{name}_pool"), inputs=(ready,), mode=mode, kernel=window, loc=loc), None)
        self.add(Reshape(name=name, inputs=(inner_ref,), shape=shape, loc=loc), cell)

    def _leaf(self, cell: Cell) -> None:
        assert clean_leaf(cell)
        leaf, names = cell.op.attrs["leaf"], cell.op.attrs["variables"]
        count = len(leaf.program.inputs)
        shape = self.shape(cell)
        init: dict[str, Array] = {}
        for name, read in zip(leaf.program.state_names, cell.reads[count:], strict=True):
            assert isinstance(read, Read)
            begin = self.constant(cell, read.init.get(0, 0))
            declared = next(state.init for state in leaf.program.states if state.name == name)
            if np.any(begin != declared):
                init[name] = begin
        program: Program = leaf.general if init and leaf.general is not None else leaf.program
        wanted = [
            names[port]
            for port in range(len(names))
            if (cell, port) in self.used and any(r is not cell or d > 1 for r, d in self.used[cell, port])
        ]
        main = program.emits[0]
        extra = [emit for emit in program.emits[1:] if emit.name in wanted]
        extra += [Emit(n, program.default_kind(n)) for n in wanted if n not in {e.name for e in program.emits}]
        label = "_".join((program.name, *(emit.name for emit in extra)))
        program = Program(label, program.inputs, program.params, program.states, program.body, (main, *extra))
        params = {key: self.constant(cell, Const(np.asarray(array))) for key, array in leaf.params.items() if key in program.params}
        inputs = []
        for read in cell.reads[:count]:
            if isinstance(read, Read):
                inputs.append(self.matched(self.ref(read), read, shape, cell))
            else:
                array = np.broadcast_to(self.constant(cell, read), shape)
                inputs.append(self.add(Constant(name=self.name("constant"), value=np.array(array), loc=cell.op.loc), None))
        name = self.cell_name(cell, "neuron")
        self.nodes.append(
            Neuron(name=name, inputs=tuple(inputs), program=self.program(program), params=params, init=init, loc=cell.op.loc)
        )
        for emit in (main, *extra):
            key = "" if emit is main else emit.name
            port = (cell, names.index(emit.name))
            self.refs[port] = Ref(name, key)
            self.wires[name, key] = port
        self.states[name] = {state: (cell, names.index(state)) for state in program.state_names}

    # -------------------------------------------------------------------------------------------------------- outputs

    def outputs(self) -> tuple[list[tuple[str, Ref]], dict[str, tuple[tuple[str | int, ...], Source]]]:
        """Named by the returned dictionary's keys, else after the node: `lif2`, `lif2_mem`."""
        if not self.folded.returned:
            raise CompileError("SPK102", "the model returns nothing that depends on its input")
        outputs: list[tuple[str, Ref]] = []
        kept: dict[str, tuple[tuple[str | int, ...], Source]] = {}
        taken: set[str] = set()
        for path, source in self.folded.returned:
            base = self.refs[source.cell, source.port]
            keys = [str(part) for part in path if isinstance(part, str)]
            if keys:
                wanted = "_".join(re.sub(r"\W", "_", key) for key in keys)
            else:
                wanted = f"{base.node}_{'mem' if base.port == 'v' else base.port}" if base.port else base.node
            name, number = wanted, 1
            while name in taken:
                number += 1
                name = f"{wanted}_{number}"
            taken.add(name)
            ref = base
            if source.back:
                shape = self.shape(source.cell, source.port)
                read = Read(source.cell, source.port, source.back, dict(enumerate(source.init)))
                delayed = Reshape(name=self.name(f"{base.node}_delayed"), inputs=(self.ref(read),), shape=shape)
                ref = self.add(delayed, None)
            outputs.append((name, ref))
            self.output_refs.append(ref)
            kept[name] = (path, source)
        return outputs, kept


def build(folded: Folded, name: str, kinds: Sequence[Kind], dtype: str, dt: float | None) -> Built:
    """The float graph of a folded run."""
    return _Builder(folded, kinds, dtype).run(name, dt)
