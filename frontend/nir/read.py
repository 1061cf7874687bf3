"""From a NIR network to a float graph."""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Loc
from spikec.frontend.nir.file import Tree, read_tree
from spikec.frontend.nir.graph import SPIKING, Ambiguous, Edge, Network, Primitive, flatten, natural, recurrent_edges
from spikec.frontend.nir.neurons import NEURONS, SCHEMES, Model, fold, program
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Concat, Conv, Dense, Gather, Input, Neuron, Node, Pool, Ref, Reshape, Scale
from spikec.ir.rules import verify
from spikec.ir.text import duration_text
from spikec.ir.types import DTYPES, Array, TensorType
from spikec.ledger import Ledger

#: Convention -> what it may be; the first is the default.
CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "scheme": SCHEMES,
    "compare": (">", ">="),
    "reset": ("v_reset", "zero", "subtract"),
    "current": ("new", "old"),
    "integrator": ("step", "seconds"),
    "initial": ("zero", "v_leak"),
    "recurrent": ("feedback", "spikes"),
    "input_kind": ("spike", "graded", "value"),
}
#: In front of the metadata by which a written file says its own conventions.
PREFIX: Final = "spikec_"
#: A delay may miss a whole number of steps by so much of a step.
ROUNDING: Final = 1e-6
_MEANING: Final[dict[tuple[str, str], str]] = {
    ("scheme", "euler"): "forward Euler: a state keeps 1 - dt/tau, its input enters with dt/tau",
    ("scheme", "exponential"): "a state keeps exp(-dt/tau), its input enters with dt/tau, as in sinabs and Rockpool",
    ("scheme", "exact"): "a state keeps exp(-dt/tau), its input enters with 1 - exp(-dt/tau)",
    ("compare", ">"): "a neuron spikes above its threshold",
    ("compare", ">="): "a neuron spikes at its threshold or above",
    ("reset", "v_reset"): "a spike sets v to v_reset in the same step",
    ("reset", "zero"): "a spike sets v to 0 in the same step, whatever v_reset is",
    ("reset", "subtract"): "a spike takes v_threshold - v_reset off v in the same step",
    ("current", "new"): "v sees the synaptic current of the same step",
    ("current", "old"): "v sees the synaptic current of the step before",
    ("integrator", "step"): "I and IF add r * x every step, whatever dt is",
    ("integrator", "seconds"): "I and IF add dt * r * x every step",
    ("initial", "zero"): "v begins at 0 although v_leak is not 0",
    ("initial", "v_leak"): "v begins at v_leak",
    ("input_kind", "spike"): "inputs are spikes, 0 or 1",
    ("input_kind", "graded"): "inputs are graded: mostly 0, else any number",
    ("input_kind", "value"): "inputs are values, dense in time",
}


@dataclass(frozen=True)
class Reading:
    """What was asked for: the options of `read_nir`; None leaves it to the file's own metadata and then to the default."""

    dt: float | None
    conventions: Mapping[str, str | None]
    round_delays: bool


def load(source: Any) -> tuple[Tree, str]:
    """The dictionary of a file or of a nir.NIRGraph, and the file's name or the graph's."""
    if hasattr(source, "to_dict"):
        return source.to_dict(), "nir.NIRGraph"
    path = Path(source)
    return read_tree(path), path.name


def read(tree: Tree, file: str, reading: Reading, name: str, ledger: Ledger | None) -> tuple[Graph, list[str]]:
    """A verified graph and the conventions used."""
    for key, value in reading.conventions.items():
        check_choice(key, value)
    check_dt(reading.dt)
    network = flatten(tree, file)
    graph, notes, approximations = _Builder(network, reading).build(name)
    if ledger is not None:
        ledger.pass_name = "nir"
        for node, what, change in approximations:
            ledger.record(node, "approximation", what, changed=1, total=1, largest=change, asked="round_delays")
        for text in notes:
            ledger.record("", "convention", text)
    return verify(graph), notes + [f"%{node.name}: {what}" for node, what, _ in approximations]


def check_choice(key: str, value: str | None) -> None:
    """Raise CompileError SPK001 for an option's value that there is not."""
    if value is not None and value not in CHOICES[key]:
        raise CompileError("SPK001", f"{key} is '{value}'", fix=f"choose one of {', '.join(CHOICES[key])}")


def check_dt(dt: float | None) -> None:
    """Raise CompileError SPK001 for a dt that is no length of time."""
    if dt is not None and not (np.isfinite(dt) and dt > 0):
        raise CompileError("SPK001", f"dt must be a positive number of seconds, not {dt}")


def ir_name(path: str) -> str:
    """A node's name from a NIR name: letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", path) or "_"


class _Builder:
    def __init__(self, network: Network, reading: Reading) -> None:
        self.net = network
        self.reading = reading
        self.nodes: list[Node] = []
        self.taken: set[str] = set()
        self.names: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.outputs: list[tuple[str, Ref]] = []
        #: convention -> value -> paths that used it.
        self.used: dict[str, dict[str, list[str]]] = {}
        self.remarks: list[str] = []
        self.approximations: list[tuple[Node, str, float]] = []
        self.late: set[Edge] = set()
        self.dt, self.dt_source = self._find_dt()

    # Conventions -----------------------------------------------------------------------------------------------------

    def _find_dt(self) -> tuple[float | None, str]:
        if self.reading.dt is not None:
            return self.reading.dt, "as asked"
        found: dict[float, str] = {}
        every = [("", self.net.metadata), *((p.path, p.metadata) for p in self.net.nodes.values())]
        for path, metadata in every:
            if "dt" in metadata:
                value = np.asarray(metadata["dt"])
                if value.size != 1 or value.dtype.kind not in "iuf" or not np.isfinite(value) or value <= 0:
                    raise CompileError("SPK003", "the metadata's dt is not a positive number of seconds", loc=self.net.loc(path))
                found.setdefault(float(value.reshape(())), f"from the metadata of {repr(path) if path else 'the graph'}")
        if len(found) > 1:
            told = ", ".join(f"{duration_text(dt)} {where}" for dt, where in found.items())
            raise CompileError("SPK003", f"the metadata gives several dt: {told}", loc=Loc(self.net.file), fix="give dt")
        return next(iter(found.items()), (None, ""))

    def convention(self, key: str, prim: Primitive | None) -> str:
        """The value for a node: what was asked for, else what the file says, else the default. Remembered for the ledger."""
        asked = self.reading.conventions[key]
        metadata = prim.metadata if prim and PREFIX + key in prim.metadata else self.net.metadata
        written = str(metadata[PREFIX + key]) if PREFIX + key in metadata else None
        path = prim.path if prim else ""
        if written is not None and written not in CHOICES[key]:
            raise CompileError("SPK003", f"the metadata's {PREFIX}{key} is '{written}'", loc=self.net.loc(path))
        if asked and written and asked != written:
            raise CompileError(
                "SPK001",
                f"{key} is '{asked}', but the file says of itself that it was written with '{written}'",
                loc=self.net.loc(path),
                fix=f"leave {key} out",
            )
        value = asked or written or CHOICES[key][0]
        self.used.setdefault(key, {}).setdefault(value, []).append(path)
        return str(value)

    def notes(self) -> list[str]:
        """The conventions used, as sentences."""
        texts = []
        if self.dt is not None:
            texts.append(f"dt = {duration_text(self.dt)}, {self.dt_source}")
        for key in CHOICES:
            for value, paths in self.used.get(key, {}).items():
                if (key, value) not in _MEANING:
                    continue
                where = f" ({', '.join(paths[:4])}{', ...' if len(paths) > 4 else ''})" if len(self.used[key]) > 1 else ""
                texts.append(f"{key}={value}: {_MEANING[key, value]}{where}")
        return texts + self.remarks

    # Structure -------------------------------------------------------------------------------------------------------

    def build(self, name: str) -> tuple[Graph, list[str], list[tuple[Node, str, float]]]:
        """The graph, before verification."""
        self._need_dt()
        for path in self.net.nodes:
            if self.net.nodes[path].kind != "Output":
                self.names[path] = self._fresh(ir_name(path))
        self._cycles()
        for path in self._order():
            prim = self.net.nodes[path]
            self._primitive(prim)
        for path, claimed, sources in self.net.claims:
            shape = self._ints(path, "shape", claimed)
            for source in sources:
                self._same(self.shapes[source], shape, path, f"'{source}' gives")
        if self.net.added:
            self.remarks.append(
                f"ends of the graph without Input or Output got one, as in the nir package: {', '.join(self.net.added)}"
            )
        return Graph(name, "float", tuple(self.nodes), tuple(self.outputs), self.dt), self.notes(), self.approximations

    def _fresh(self, base: str) -> str:
        name, number = base, 2
        while name in self.taken:
            name, number = f"{base}_{number}", number + 1
        self.taken.add(name)
        return name

    def _need_dt(self) -> None:
        if self.dt is not None:
            return
        seconds = self.reading.conventions["integrator"] == "seconds"
        needing = [
            p
            for p in self.net.nodes.values()
            if p.kind in ("LI", "LIF", "CubaLI", "CubaLIF")
            or (p.kind == "Delay" and np.any(self._numbers(p, "delay")))
            or (p.kind in ("I", "IF") and seconds)
        ]
        if needing:
            more = f" and {len(needing) - 1} more are" if len(needing) > 1 else " is"
            raise CompileError(
                "SPK001",
                f"'{needing[0].path}' ({needing[0].kind}){more} in seconds, and the file does not say how long a step is",
                loc=self.net.loc(needing[0].path),
                fix="give dt, the seconds of one step, as the network was trained (command line: --dt 1ms)",
            )

    def _cycles(self) -> None:
        rule = self.reading.conventions["recurrent"] or str(self.net.metadata.get(PREFIX + "recurrent", "feedback"))
        kinds = {p.path: p.kind for p in self.net.nodes.values()}
        waiting = [p.path for p in self.net.nodes.values() if p.kind == "Delay" and self._steps(p).min(initial=1) > 0]
        try:
            self.late = recurrent_edges(kinds, self.net.edges, waiting, rule)
        except Ambiguous as error:
            raise CompileError(
                "SPK307",
                f"the cycle {error} can be entered at several places, so that NIR leaves open which edge is a step late",
                loc=self.net.loc(error.cycle[0]),
                fix="put a Delay into the file, or choose recurrent='spikes': every edge from a spiking neuron within a cycle",
            ) from None
        except CompileError as error:
            raise CompileError(error.code, error.diagnostics[0].message, loc=Loc(self.net.file)) from None
        if self.late:
            self.convention("recurrent", None)
            edges = ", ".join(f"{a} -> {b}" for a, b in sorted(self.late, key=lambda e: (natural(e[0]), natural(e[1]))))
            self.remarks.append(f"recurrent={rule}: read one step later: {edges}")

    def _order(self) -> list[str]:
        """Operands of the same step first, then Inputs, then natural order."""

        def key(path: str) -> Any:
            return (self.net.nodes[path].kind != "Input", natural(path), path)

        waiting = dict.fromkeys(self.net.nodes, 0)
        readers: dict[str, list[str]] = {}
        for edge in self.net.edges:
            if edge not in self.late and not self._waits(edge[1]):
                waiting[edge[1]] += 1
                readers.setdefault(edge[0], []).append(edge[1])
        ready = [key(path) for path, count in waiting.items() if not count]
        heapq.heapify(ready)
        order = []
        while ready:
            *_, path = heapq.heappop(ready)
            order.append(path)
            for reader in readers.get(path, []):
                waiting[reader] -= 1
                if not waiting[reader]:
                    heapq.heappush(ready, key(reader))
        assert len(order) == len(waiting), "recurrent_edges leaves no cycle within a step"
        return order

    def _waits(self, path: str) -> bool:
        prim = self.net.nodes[path]
        return prim.kind == "Delay" and bool(self._steps(prim).min(initial=1) > 0)

    def _operand(self, prim: Primitive) -> tuple[Ref, tuple[int, ...]]:
        """What enters a node, several edges added up, and its shape."""
        sources = [a for a, b in self.net.edges if b == prim.path]
        known = [source for source in sources if source in self.shapes]
        shape = self.shapes[known[0]] if known else self._declared(prim)
        for source in known:
            if self.shapes[source] != shape:
                self._same(self.shapes[source], shape, prim.path, f"'{source}' gives", exact=True)
        refs = tuple(Ref(self.names[a], delay=int((a, prim.path) in self.late)) for a in sources)
        if len(refs) == 1:
            return refs[0], shape
        own = ir_name(prim.path) if prim.kind == "Output" else self.names[prim.path]
        node = Add(name=self._fresh(f"{own}_sum"), inputs=refs, loc=self._loc(prim.path))
        self.nodes.append(node)
        return Ref(node.name), shape

    def _declared(self, prim: Primitive) -> tuple[int, ...]:
        """The shape of a node's input as the node itself tells it: for an added Input, or where all operands are late."""
        fields, path = prim.fields, prim.path
        if prim.kind in ("Affine", "Linear") and self._numbers(prim, "weight").ndim:
            return (int(self._numbers(prim, "weight").shape[-1]),)
        if prim.kind in ("Conv1d", "Conv2d") and fields.get("input_shape") is not None and self._numbers(prim, "weight").ndim > 1:
            (groups,) = self._ints(path, "groups", fields["groups"], 1)
            return (int(self._numbers(prim, "weight").shape[1]) * groups, *self._ints(path, "input_shape", fields["input_shape"]))
        if prim.kind == "Flatten" and fields.get("input_type") is not None:
            return self._ints(path, "input_type", fields["input_type"])
        key = {"Scale": "scale", "Delay": "delay", "Threshold": "threshold"}.get(prim.kind, "r" if prim.kind in NEURONS else "")
        if key and np.asarray(fields[key]).size > 1:
            return tuple(np.asarray(fields[key]).shape)
        if key and np.asarray(fields[key]).shape == (1,):
            return (1,)
        raise CompileError(
            "SPK309",
            f"the shape of what enters this {prim.kind} cannot be told",
            loc=self.net.loc(path),
            fix="give the graph an Input",
        )

    def _primitive(self, prim: Primitive) -> None:
        if prim.kind == "Input":
            self._input(prim)
        elif prim.kind == "Output":
            self._output(prim)
        else:
            ref, shape = self._operand(prim)
            if prim.kind in NEURONS:
                made: Node = self._neuron(prim, ref, shape)
            else:
                made = getattr(self, f"_{prim.kind.lower().removesuffix('1d').removesuffix('2d')}")(prim, ref, shape)
            self.nodes.append(made)
            ports = made.infer([TensorType("value", shape, "f32")], "float")
            assert ports is not None
            self.shapes[prim.path] = ports[0][1].shape

    def _loc(self, path: str) -> Loc:
        readable = re.fullmatch(r'[A-Za-z0-9_][^\s)"]*', path)
        return Loc(self.net.file, path=path if readable else ir_name(path))

    def _refuse(self, path: str, code: str, message: str, fix: str | None = None) -> CompileError:
        return CompileError(code, message, loc=self.net.loc(path), fix=fix)

    def _same(self, found: tuple[int, ...], told: tuple[int, ...], path: str, what: str, exact: bool = False) -> None:
        """Shapes that differ in axes of size 1 only are taken for the same, and that is said."""
        if found == told:
            return
        if exact or [n for n in found if n != 1] != [n for n in told if n != 1]:
            raise self._refuse(path, "SPK309", f"{what} shape {found}, but {told} is declared here")
        self.remarks.append(f"'{path}' declares the shape {told}; read as {found}, which differs in axes of size 1 only")

    # Fields ----------------------------------------------------------------------------------------------------------

    def _numbers(self, prim: Primitive, key: str) -> Array:
        """A field as float32 or float64: as stored, whole numbers in the narrowest that holds them."""
        array = np.asarray(prim.fields[key])
        if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
            raise self._refuse(prim.path, "SPK003", f"{key} holds {array.dtype}, not numbers")
        if array.dtype.kind == "f":
            wanted: Any = np.float64 if array.dtype.itemsize == 8 else np.float32
        else:
            wanted = np.float32 if np.all(array.astype(np.float32).astype(np.float64) == array) else np.float64
        result = array.astype(wanted)
        bad = np.isnan(result) if key in ("v_threshold", "threshold") else ~np.isfinite(result)
        if bad.any():
            raise self._refuse(prim.path, "SPK305", f"{key} holds {result[bad].ravel()[0]} ({int(bad.sum())} of {bad.size})")
        return result

    def _ints(self, path: str, key: str, value: Any, count: int | None = None) -> tuple[int, ...]:
        """Whole numbers; one number stands for all axes."""
        array = np.asarray(value)
        whole = array.dtype.kind in "iu" or (array.dtype.kind == "f" and np.all(array == np.rint(array)))
        if not whole or array.ndim > 1:
            raise self._refuse(path, "SPK003", f"{key} is not a list of whole numbers")
        numbers = [int(n) for n in array.reshape(-1)]
        if count is not None and len(numbers) == 1:
            numbers *= count
        if count is not None and len(numbers) != count:
            raise self._refuse(path, "SPK309", f"{key} has {len(numbers)} numbers, not {count}")
        return tuple(numbers)

    def _fitted(self, prim: Primitive, key: str, shape: tuple[int, ...]) -> Array:
        """A parameter spread over the population: of its shape, one number, with axes of size 1, or one per channel."""
        array = self._numbers(prim, key)
        while array.ndim > len(shape) and array.shape[0] == 1:
            array = array[0]
        if array.size == 1:
            return np.broadcast_to(array.reshape(()), shape)
        if array.ndim == len(shape) and all(a in (1, n) for a, n in zip(array.shape, shape, strict=True)):
            return np.broadcast_to(array, shape)
        if array.ndim == 1 and len(shape) > 1 and array.shape[0] == shape[0]:
            if shape[0] == shape[-1]:
                raise self._refuse(
                    prim.path,
                    "SPK309",
                    f"{key} of shape {array.shape} could run along the first or the last axis of {shape}",
                    f"write it with shape {(shape[0], *(1,) * (len(shape) - 1))}",
                )
            return np.broadcast_to(array.reshape(-1, *(1,) * (len(shape) - 1)), shape)
        raise self._refuse(prim.path, "SPK309", f"{key} has shape {array.shape}, which does not fit what enters, {shape}")

    # Primitives ------------------------------------------------------------------------------------------------------

    def _input(self, prim: Primitive) -> None:
        if prim.fields["shape"] is None:
            (sink,) = (b for a, b in self.net.edges if a == prim.path)
            shape = self._declared(self.net.nodes[sink])
        else:
            shape = self._ints(prim.path, "shape", prim.fields["shape"]) or (1,)
        if min(shape) < 1:
            raise self._refuse(prim.path, "SPK309", f"the shape {shape} holds nothing")
        kind: Any = self.convention("input_kind", prim)
        dtype = "f64" if str(prim.metadata.get(f"{PREFIX}dtype")) == "f64" else "f32"
        self.nodes.append(Input(name=self.names[prim.path], type=TensorType(kind, shape, dtype), loc=self._loc(prim.path)))
        self.shapes[prim.path] = shape

    def _output(self, prim: Primitive) -> None:
        ref, shape = self._operand(prim)
        if prim.fields["shape"] is not None:
            self._same(shape, self._ints(prim.path, "shape", prim.fields["shape"]) or (1,), prim.path, "what enters has")
        if ref.delay:
            relay = Reshape(name=self._fresh(f"{ir_name(prim.path)}_late"), inputs=(ref,), shape=shape, loc=self._loc(prim.path))
            self.nodes.append(relay)
            ref = Ref(relay.name)
        name = str(prim.metadata.get(f"{PREFIX}name", prim.path))
        name = re.sub(r"[^A-Za-z0-9_.]+", "_", name).lstrip(".") or "output"
        while name in dict(self.outputs):
            name += "_"
        self.outputs.append((name, ref))

    def _affine(self, prim: Primitive, ref: Ref, shape: tuple[int, ...]) -> Node:
        weight = self._numbers(prim, "weight")
        if weight.ndim != 2:
            raise self._refuse(prim.path, "SPK309", f"weight has shape {weight.shape}, not two axes (out, in)")
        if shape[-1] != weight.shape[1]:
            hint = "put a Flatten in front of it" if int(np.prod(shape)) == weight.shape[1] else None
            raise self._refuse(prim.path, "SPK309", f"weight takes {weight.shape[1]} numbers, but shape {shape} enters", hint)
        bias = self._bias(prim, weight.shape[0]) if prim.kind == "Affine" else None
        return Dense(name=self.names[prim.path], inputs=(ref,), weight=weight, bias=bias, loc=self._loc(prim.path))

    _linear = _affine

    def _bias(self, prim: Primitive, size: int) -> Array:
        bias = self._numbers(prim, "bias")
        if bias.size not in (1, size):
            raise self._refuse(prim.path, "SPK309", f"bias has shape {bias.shape}, not ({size},)")
        return np.broadcast_to(bias.reshape(-1), (size,))

    def _scale(self, prim: Primitive, ref: Ref, shape: tuple[int, ...]) -> Node:
        factor = _compressed(self._fitted(prim, "scale", shape))
        return Scale(name=self.names[prim.path], inputs=(ref,), factor=factor, loc=self._loc(prim.path))

    def _conv(self, prim: Primitive, ref: Ref, shape: tuple[int, ...]) -> Node:
        space, path, fields = int(prim.kind[4]), prim.path, prim.fields
        weight = self._numbers(prim, "weight")
        if weight.ndim != space + 2:
            raise self._refuse(
                path, "SPK309", f"weight has shape {weight.shape}, not {space + 2} axes (out, in, {'y, x' if space == 2 else 'x'})"
            )
        if len(shape) != space + 1:
            raise self._refuse(path, "SPK309", f"shape {shape} enters, not a channel and {space} axes of space")
        (groups,) = self._ints(path, "groups", fields["groups"], 1)
        stride, dilation = (self._ints(path, key, fields[key], space) for key in ("stride", "dilation"))
        if fields.get("input_shape") is not None:
            told = self._ints(path, "input_shape", fields["input_shape"], space)
            if told != shape[1:]:
                raise self._refuse(path, "SPK309", f"input_shape is {told}, but {shape[1:]} enters")
        padding = fields["padding"]
        if isinstance(padding, np.ndarray) and padding.dtype.kind in "OSU":
            padding = padding.reshape(-1)[0]
        if isinstance(padding, bytes):
            padding = padding.decode("utf-8", "replace")
        if not isinstance(padding, str):
            sizes = self._ints(path, "padding", padding, space)
        elif padding == "valid":
            sizes = (0,) * space
        elif padding == "same":
            weight, sizes = self._same_padding(prim, weight, stride, dilation)
        else:
            raise self._refuse(path, "SPK003", f"padding is '{padding}'", "write numbers, 'same' or 'valid'")
        bias = None
        if fields.get("bias") is not None:
            bias = self._bias(prim, weight.shape[0])
        return Conv(
            name=self.names[path],
            inputs=(ref,),
            weight=weight,
            bias=bias if bias is not None and bias.any() else None,
            stride=stride,
            padding=sizes,
            dilation=dilation,
            groups=groups,
            loc=self._loc(path),
        )

    def _same_padding(
        self, prim: Primitive, weight: Array, stride: tuple[int, ...], dilation: tuple[int, ...]
    ) -> tuple[Array, tuple[int, ...]]:
        """As torch: of an odd number of zeros the right side gets one more, which a kernel with a zero in front does as well."""
        if any(s != 1 for s in stride):
            raise self._refuse(prim.path, "SPK102", f"padding 'same' with a stride of {stride} is not defined", "write numbers")
        sizes = []
        for axis, (kernel, step) in enumerate(zip(weight.shape[2:], dilation, strict=True), start=2):
            total = step * (kernel - 1)
            if total % 2 and step > 1:
                raise self._refuse(
                    prim.path,
                    "SPK102",
                    f"padding 'same' of a kernel of {kernel} with dilation {step} differs between the sides",
                    "write numbers",
                )
            if total % 2:
                weight = np.pad(weight, [(1, 0) if a == axis else (0, 0) for a in range(weight.ndim)])
            sizes.append((total + 1) // 2)
        return weight, tuple(sizes)

    def _sumpool(self, prim: Primitive, ref: Ref, shape: tuple[int, ...]) -> Node:
        if len(shape) != 3:
            raise self._refuse(prim.path, "SPK309", f"shape {shape} enters, not (channels, y, x)")
        kernel, stride, padding = (self._ints(prim.path, key, prim.fields[key], 2) for key in ("kernel_size", "stride", "padding"))
        if min(kernel) < 1 or min(stride) < 1 or min(padding) < 0:
            raise self._refuse(prim.path, "SPK309", "kernel_size and stride must be at least 1 and padding at least 0")
        mode: Any = "sum" if prim.kind == "SumPool2d" else "average"
        if mode == "average" and any(padding):
            self.remarks.append(f"'{prim.path}' counts its padding in the average")
        return Pool(
            name=self.names[prim.path],
            inputs=(ref,),
            mode=mode,
            kernel=kernel,
            stride=stride,
            padding=padding,
            loc=self._loc(prim.path),
        )

    _avgpool = _sumpool

    def _flatten(self, prim: Primitive, ref: Ref, shape: tuple[int, ...]) -> Node:
        if prim.fields.get("input_type") is not None:
            told = self._ints(prim.path, "input_type", prim.fields["input_type"])
            if told != shape:
                raise self._refuse(prim.path, "SPK309", f"input_type is {told}, but {shape} enters")
        ends = []
        for key, default in (("start_dim", 1), ("end_dim", -1)):
            given = prim.fields.get(key)
            (axis,) = self._ints(prim.path, key, default if given is None else given, 1)
            if not -len(shape) <= axis < len(shape):
                raise self._refuse(prim.path, "SPK309", f"{key} is {axis}, but shape {shape} enters (batch is not counted)")
            ends.append(axis % len(shape))
        start, end = ends
        if start > end:
            raise self._refuse(prim.path, "SPK309", f"start_dim {start} comes after end_dim {end}")
        flat = (*shape[:start], int(np.prod(shape[start : end + 1])), *shape[end + 1 :])
        return Reshape(name=self.names[prim.path], inputs=(ref,), shape=flat, loc=self._loc(prim.path))

    def _steps(self, prim: Primitive) -> Array:
        """A Delay's seconds as whole steps."""
        seconds = self._numbers(prim, "delay").astype(np.float64)
        if np.any(seconds < 0):
            raise self._refuse(prim.path, "SPK306", f"the delay {seconds.min()} s is negative")
        if self.dt is None:
            return np.zeros(seconds.shape, np.int64)
        steps = seconds / self.dt
        whole = np.rint(steps)
        far = np.abs(steps - whole)
        if not self.reading.round_delays and np.any(far > ROUNDING * np.maximum(1.0, whole)):
            worst = float(seconds.ravel()[int(np.argmax(far))])
            raise self._refuse(
                prim.path,
                "SPK306",
                f"the delay {worst:g} s is not a whole number of steps of {duration_text(self.dt)}",
                "choose a dt that divides it, or round_delays=True",
            )
        return whole.astype(np.int64)

    def _delay(self, prim: Primitive, ref: Ref, shape: tuple[int, ...]) -> Node:
        self._steps(prim)
        seconds = self._fitted(prim, "delay", shape)
        steps = self._steps(Primitive(prim.path, "Delay", {"delay": seconds}, {}))
        error = np.abs(steps - seconds / self.dt) if self.dt else np.zeros(shape)
        name, loc = self.names[prim.path], self._loc(prim.path)
        if steps.size == 0 or steps.min() == steps.max():
            made: Node = Reshape(name=name, inputs=(ref.later(int(steps.flat[0])),), shape=shape, loc=loc)
        else:
            parts, order = [], []
            for count in np.unique(steps):
                chosen = np.flatnonzero(steps == count)
                part = Gather(name=self._fresh(f"{name}_by_{count}"), inputs=(ref.later(int(count)),), indices=chosen, loc=loc)
                parts.append(part)
                order.append(chosen)
            joined = Concat(name=self._fresh(f"{name}_all"), inputs=tuple(Ref(part.name) for part in parts), loc=loc)
            self.nodes += [*parts, joined]
            back = np.argsort(np.concatenate(order), kind="stable").reshape(shape)
            made = Gather(name=name, inputs=(Ref(joined.name),), indices=back, loc=loc)
        if error.size and error.max() > ROUNDING * max(1, int(steps.max())):
            self.approximations.append((made, "delay rounded to whole steps", float(error.max())))
        return made

    def _neuron(self, prim: Primitive, ref: Ref, shape: tuple[int, ...]) -> Node:
        path, kind = prim.path, prim.kind
        fields = dict(prim.fields)
        if kind in ("IF", "LIF", "CubaLIF") and fields.get("v_reset") is None:
            fields["v_reset"] = np.zeros(1, np.asarray(fields["v_threshold"]).dtype)
        if kind.startswith("Cuba") and fields.get("w_in") is None:
            fields["w_in"] = np.ones(1, np.asarray(fields["r"]).dtype)
        whole = Primitive(path, kind, fields, prim.metadata)
        values = {key: self._fitted(whole, key, shape) for key in fields}
        written = str(prim.metadata.get(f"{PREFIX}dtype"))
        dtype = DTYPES[written] if written in ("f32", "f64") else np.result_type(*values.values())
        for key in ("tau", "tau_syn", "tau_mem"):
            if key in values and np.any(values[key] <= 0):
                raise self._refuse(path, "SPK003", f"{key} is {float(values[key].min()):g} s; a time constant is greater than 0")
        spiking, leaky = kind in SPIKING, "v_leak" in values
        scheme = self.convention("scheme", prim) if leaky else ""
        compare = self.convention("compare", prim) if spiking else ">"
        reset = self.convention("reset", prim) if "v_reset" in values else "v_reset"
        current = self.convention("current", prim) if kind.startswith("Cuba") else "new"
        integrator = self.convention("integrator", prim) if kind in ("I", "IF") else ""
        numbers = fold(kind, values, self.dt, scheme, integrator)
        for key in ("decay", "alpha", "beta"):
            if key in numbers and np.any(numbers[key] < 0):
                self.remarks.append(
                    f"'{path}' is stepped with dt > tau: {key} is {float(numbers[key].min()):g}, so its state swings"
                )
        rest = leaky and bool(np.any(values["v_leak"]))
        if reset == "zero":
            numbers["reset"] = np.zeros(shape)
        nonzero = bool("reset" in numbers and np.any(numbers["reset"]))
        model = Model(
            kind,
            scheme=scheme or "euler",
            rest=rest,
            compare=compare,
            reset="subtract" if reset == "subtract" else "v_reset",
            nonzero=nonzero,
            current=current,
        )
        made = program(model)
        params = {key: _compressed(numbers[key].astype(dtype)) for key in made.params}
        init = {}
        if rest and self.convention("initial", prim) == "v_leak":
            init["v"] = _compressed(values["v_leak"].astype(dtype))
        return Neuron(name=self.names[path], inputs=(ref,), program=made, params=params, init=init, loc=self._loc(path))


def _compressed(array: Array) -> Array:
    """One number where all are the same, one per channel where channels are constant."""
    if array.size and np.all(array == array.flat[0]):
        return np.asarray(array.flat[0])
    if array.ndim > 1:
        rows = array.reshape(array.shape[0], -1)
        if np.all(rows == rows[:, :1]):
            return rows[:, 0].copy()
    return np.array(array)
