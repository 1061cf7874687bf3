"""The files of a Lava package: a plan as Python text, its arrays, golden vectors, and the templates beside it."""

from __future__ import annotations

import builtins
import io
import json
import textwrap
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spikec.backends.lava.plan import Plan, Population, Synapse, View, identifiers
from spikec.backends.lava.programs import MODULE, module_text
from spikec.ir.ops import Constant, Conv, Input, Node
from spikec.ir.types import Array
from spikec.mantissas import PLAIN

if TYPE_CHECKING:
    from spikec.backend import Golden

TEMPLATES = Path(__file__).with_name("templates")
COPIED = ("run.py", "parts.py", "chip.py", "host/__init__.py", "host/recorders.py")
WIDTH = 120
#: Functions of parts.py that network.py calls.
HELPERS = ("always_on", "conv", "dense", "flat", "grid", "messages", "resonator", "rf_zero", "sparse", "tile")
#: Names that network.py uses itself.
RESERVED = {"w", "data", "steps", "copies", "np", "build", "INPUTS", "MAX_LAG", "CONNECTIONS", "Network", "Population"}
RESERVED |= {"Source", "Value", "View", "always_on", "conv", "dense", "flat", "grid", "messages", "sparse", "tile"}
RESERVED |= {"LIMITS", "MOST_COPIES", *dir(builtins)}


def write_package(plan: Plan, folder: Path, golden: Golden | None) -> None:
    """All files of the package; the same plan gives the same bytes."""
    arrays: dict[str, Array] = {}
    network = _Network(plan, arrays).text()
    files = {"network.py": network, "README.md": _readme(plan, golden is not None)}
    classes = {item.process.program.name: item.process.program for item in plan.populations.values() if item.process.program}
    if classes:
        files["neurons/__init__.py"] = (
            '"""Neurons of this network. A folder of their own: Lava imports every module beside a process."""\n'
        )
        files["neurons/programs.py"] = module_text(classes.values())
    for name in COPIED:
        files[name] = (TEMPLATES / name).read_text(encoding="utf-8")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "weights.npz").write_bytes(npz(arrays))
    if golden is not None:
        (folder / "golden.npz").write_bytes(npz(_golden(plan, golden)))


def npz(arrays: Mapping[str, Array]) -> bytes:
    """An .npz file whose bytes depend on the arrays alone, not on the clock."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            file.writestr(entry, part.getvalue())
    return buffer.getvalue()


def _golden(plan: Plan, golden: Golden) -> dict[str, Array]:
    found = {f"input.{name}": array.astype(np.int32) for name, array in golden.inputs.items()}
    found |= {f"output.{name}": array.astype(np.int32) for name, array in golden.expected.outputs.items()}
    for name, array in golden.expected.records.items():
        wire = plan.wire(name)
        if wire is not None:
            found[f"record.{wire}"] = array.astype(np.int32)
    for name, states in golden.expected.states.items():
        variables = plan.populations[name].process.states
        for state, array in states.items():
            if state in variables:
                found[f"state.{name}.{variables[state]}"] = array.astype(np.int32)
    return found


class _Network:
    """The text of network.py; arrays that it needs are put into `arrays`, equal ones once."""

    def __init__(self, plan: Plan, arrays: dict[str, Array]) -> None:
        self.plan = plan
        self.arrays = arrays
        self._stored: dict[tuple[Any, ...], str] = {}
        classes = {item.process.name for item in plan.populations.values()}
        names = [*plan.sources, *plan.populations, *plan.synapses]
        self.variable = identifiers(names, RESERVED | classes)

    def text(self) -> str:
        plan = self.plan
        body = [*self._sources(), *self._populations(), *self._synapses(), *self._result()]
        imports: dict[str, set[str]] = {}
        for item in plan.populations.values():
            imports.setdefault(item.process.module, set()).add(item.process.name)
        lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())]
        joined = "\n".join(body)
        helpers = [name for name in HELPERS if f"{name}(" in joined]
        classes = ["Network"] + [name for name in ("Population", "Source", "Value", "View") if f"{name}(" in joined]
        lines.append(f"from parts import {', '.join([*classes, *helpers])}")
        inputs = {name: node.type.shape for name, node in plan.sources.items() if isinstance(node, Input)}
        doc = (
            f"The network '{plan.graph.name}' for Loihi 2, written by spikec: {plan.neurons:,} neurons in "
            f"{len(plan.populations)} populations, {plan.connections:,} connections in {len(plan.synapses)} synapses."
        )
        more = (
            "On Loihi every synapse takes a step, so a layer may run some steps after the model's own: its `lag`. Spikes "
            "are the model's, lag steps later; run.py takes the lags out again. w holds the arrays of weights.npz."
        )
        return "\n".join(
            [
                *textwrap.wrap(f'"""{doc}', WIDTH),
                "",
                *textwrap.wrap(more, WIDTH),
                '"""',
                "",
                *lines,
                "",
                f"INPUTS = {{{', '.join(f'{_quoted(k)}: {v}' for k, v in inputs.items())}}}  # one step of one sample",
                f"MAX_LAG = {plan.graph.max_lag}",
                *self._limits(),
                f"CONNECTIONS = {plan.connections}",
                f"MOST_COPIES = {plan.most_copies}  # of the network side by side",
                "",
                "",
                "def build(w, data, steps, copies=1):",
                *_indent(
                    [
                        '"""The network for `copies` samples side by side.',
                        "",
                        "data: what is sent, by input name, (copies, steps, neurons); steps: how many will be run.",
                        '"""',
                        *body,
                    ]
                ),
                "",
            ]
        )

    def _limits(self) -> Iterable[str]:
        """What inputs take that are not spikes."""
        limits = {name: bounds for name, bounds in self.plan.limits.items() if bounds != (0, 1)}
        if limits:
            told = ", ".join(f"{_quoted(name)}: {bounds}" for name, bounds in limits.items())
            yield f"LIMITS = {{{told}}}  # of whole numbers; other inputs take 0 and 1"
        else:
            yield "LIMITS = {}  # inputs take 0 and 1"

    # Parts -----------------------------------------------------------------------------------------------------------

    def _sources(self) -> Iterable[str]:
        if self.plan.sources:
            yield "# What comes from outside"
        for name, node in self.plan.sources.items():
            yield from _comment(node)
            if isinstance(node, Constant):
                value = self._array(f"{name}.value", node.value.reshape(-1).astype(np.int32))
                yield f"{self.variable[name]} = always_on({value}, {node.start}, steps, copies)"
            else:
                yield f"{self.variable[name]} = messages(data[{_quoted(name)}])"
        yield ""

    def _populations(self) -> Iterable[str]:
        for name, item in self.plan.populations.items():
            process = item.process.name
            shape = f" {_times(item.shape)}" if len(item.shape) > 1 else ""
            yield f"# {name}: {item.size}{shape} {process} neurons{_lag(item.node)}"
            yield from _comment(item.node)
            if item.process.program:
                yield f"# Not in Lava's library: {MODULE} has its program, and silicon needs microcode for it."
            if item.late:
                yield f"# Silent, without its bias, until step {item.node.start}: then the host writes what `late` says below."
            arguments = {argument: self._number(name, argument, v) for argument, v in item.arguments.items()}
            arguments |= {argument: f"{arguments[argument]} / {by}" for argument, by in item.process.divided.items()}
            arguments |= {state: self._number(name, state, v) for state, v in item.states.items() if np.any(v)}
            size = f"({item.size} * copies,)"
            if item.process.named:
                arguments["name"] = _quoted(name)
            head = [process] if item.process.builder else []
            made = item.process.builder or process
            yield from _call(f"{self.variable[name]} = {made}", {"shape": size, **arguments}, head)
            yield ""

    def _number(self, name: str, what: str, value: int | Array) -> str:
        if isinstance(value, int):
            return str(value)
        return f"tile({self._array(f'{name}.{what}', value.astype(np.int32))}, copies)"

    def _synapses(self) -> Iterable[str]:
        readers: dict[str, list[tuple[str, str]]] = {}
        for name, item in self.plan.populations.items():
            for port, synapses in item.inputs.items():
                for synapse in synapses:
                    readers.setdefault(synapse, []).append((name, port))
        for name in self.plan.sources:
            for target, port in readers.get(name, []):
                yield f"# {name} -> {target}: numbers that go straight into the neurons"
                yield f"{self.variable[name]}.s_out.connect({self.variable[target]}.{port})"
                yield ""
        for name, made in self.plan.synapses.items():
            targets = readers.get(name, [])
            yield f"# {name}: {made.source} -> {', '.join(dict.fromkeys(target for target, _ in targets)) or 'recorded only'}"
            yield from _comment(made.node)
            variable = self.variable[name]
            yield from self._synapse(name, made)
            sends, arrives = f"{self.variable[made.source]}.s_out", f"{variable}.a_out"
            if made.grid:
                sends, arrives = f"grid({sends}, {made.grid}, copies)", f"flat({arrives})"
            yield f"{sends}.connect({variable}.s_in)"
            for target, port in targets:
                yield f"{arrives}.connect({self.variable[target]}.{port})"
            yield ""

    def _synapse(self, name: str, made: Synapse) -> Iterable[str]:
        if made.grid and isinstance(made.node, Conv):
            node = made.node
            arguments = {"stride": node.stride, "padding": node.padding, "dilation": node.dilation, "groups": node.groups}
            trivial = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
            weights = self._array(f"{name}.weight", made.weight.astype(np.int16))
            head = [weights, str(made.grid), "copies", _quoted(name)]
            more = {key: str(value) for key, value in arguments.items() if value != trivial[key]}
            yield from _call(f"{self.variable[name]} = conv", {**more, **({"bits": str(made.bits)} if made.bits else {})}, head)
            return
        delay = ""
        if not isinstance(made.delay, int):
            delay = f", delays={self._array(f'{name}.delay', made.delay.astype(np.int8))}"
        elif made.delay:
            delay = f", delays={made.delay}"
        if made.bits:
            delay += f", bits={made.bits}"
        if made.stored.exponent:
            delay += f", exponent={made.stored.exponent}"
        if made.stored.bits != PLAIN.bits:
            delay += f", width={made.stored.bits}"
        weight = made.stored.mantissas(made.weight).astype(np.int16)
        if made.indptr is None or made.indices is None:
            yield f"{self.variable[name]} = dense({self._array(f'{name}.weight', weight)}, copies, {_quoted(name)}{delay})"
            return
        for what, array in (("weight", weight), ("indices", made.indices), ("indptr", made.indptr)):
            self.arrays[f"{name}.{what}"] = array
        yield f"{self.variable[name]} = sparse(w, {_quoted(name)}, ({made.rows}, {made.columns}), copies, {_quoted(name)}{delay})"

    def _result(self) -> Iterable[str]:
        plan, variable = self.plan, self.variable
        yield "return Network("
        yield "    copies=copies,"
        yield from self._table(
            "sources",
            {n: f"Source({variable[n]}, {self.plan.graph.shape_of(n)}, lag={node.lag})" for n, node in plan.sources.items()},
        )
        yield from self._table("synapses", {name: variable[name] for name in plan.synapses})
        yield from self._table("populations", {n: self._population(n, item) for n, item in plan.populations.items()})
        values = {}
        for name, item in plan.values.items():
            synapses = ", ".join(variable[synapse] for synapse in item.synapses)
            values[name] = f"Value([{synapses}], {item.shape}, lag={item.lag})"
        yield from self._table("values", values)
        outputs = {}
        for name, found in plan.outputs.items():
            if isinstance(found, View):
                take = f", take={self._array(f'{name}.take', found.take)}" if found.take is not None else ""
                outputs[name] = f"View([{', '.join(map(_quoted, found.wires))}], {found.shape}, lag={found.lag}{take})"
            else:
                outputs[name] = _quoted(found)
        yield from self._table("outputs", outputs)
        yield ")"

    def _population(self, name: str, item: Population) -> str:
        more = f", states={item.variables!r}" if item.variables != ("u", "v") else ""
        if ports := tuple(port for port in item.process.outputs.values() if port != "s_out"):
            more += f", ports={ports!r}"
        if item.start:
            late = ", ".join(f"{_quoted(k)}: {self._number(name, k, v)}" for k, v in item.late.items())
            more += f", start={item.start}, late={{{late}}}"
        return f"Population({self.variable[name]}, {item.shape}, lag={item.node.lag}{more})"

    def _table(self, name: str, entries: dict[str, str]) -> Iterable[str]:
        line = f"    {name}={{{', '.join(f'{_quoted(k)}: {v}' for k, v in entries.items())}}},"
        if len(line) + 4 <= WIDTH:
            yield line
            return
        yield f"    {name}={{"
        for key, value in entries.items():
            yield f"        {_quoted(key)}: {value},"
        yield "    },"

    def _array(self, name: str, array: Array) -> str:
        """`w[...]` for an array, which is stored under the first name that it was asked for."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._stored:
            self._stored[key] = name
            self.arrays[name] = array
        return f"w[{_quoted(self._stored[key])}]"


def _quoted(text: str) -> str:
    return json.dumps(text)


def _comment(node: Node) -> list[str]:
    return [f"# from {node.loc}"] if node.loc else []


def _lag(node: Node) -> str:
    return f", {node.lag} step(s) after the model" if node.lag else ""


def _times(shape: tuple[int, ...]) -> str:
    return f"({' x '.join(map(str, shape))})"


def _call(head: str, arguments: Mapping[str, str], first: Iterable[str] = ()) -> list[str]:
    """A call in one line if it fits, else an argument a line. first: arguments without a name."""
    parts = [*first, *(f"{name}={value}" for name, value in arguments.items())]
    line = f"{head}({', '.join(parts)})"
    if len(line) + 4 <= WIDTH:
        return [line]
    return [f"{head}(", *(f"    {part}," for part in parts), ")"]


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"    {line}".rstrip() for line in lines]


def _readme(plan: Plan, golden: bool) -> str:
    inputs = [(name, node) for name, node in plan.sources.items() if isinstance(node, Input)]
    rows = [
        f"| {name} | {item.size} | {item.process.name} | {item.node.lag} | {item.node.start or ''} |"
        for name, item in plan.populations.items()
    ]
    late = any(item.start for item in plan.populations.values())
    check = "    python run.py --check                                            # golden.npz: the compiler's own results\n"
    lines = [
        f"# {plan.graph.name}: a spiking network for Intel Loihi 2, on Lava",
        "",
        "Written by spikec. Needs Python 3.10 with lava-nc 0.10.0 and NumPy, nothing else; runs from any folder.",
        "",
        "    python run.py --input in.npz --output out.npz [--record all]     # on the CPU, bit-accurate simulation",
        *([check.rstrip()] if golden else []),
        "",
        "in.npz: "
        + (", ".join(f"`{n}` (samples, steps, {_plain(node.type.shape)})" for n, node in inputs) or "nothing")
        + f", {_takes(plan)}. out.npz: `output.NAME` for "
        + (", ".join(plan.outputs) or "no output")
        + "; `record.LAYER` for what --record names; `state.LAYER.VAR` after the last step.",
        "",
        "| layer | neurons | process | lag | starts at step |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "On Loihi every synapse takes a step, which a trained network does not know. A layer's lag is how many steps later it",
        "does what the model does; run.py shifts results back, so that out.npz is in the model's own steps.",
        "",
        "- `network.py` builds the processes. Weights are 8 bits with mixed signs: even, -256 to 254; where `exponent` is given,",
        "  times a power of two, and `width` says how many bits are used. Sign mode and widths are always given, because Lava",
        "  would choose by the values and round without a word.",
        "- `weights.npz` holds the numbers; run.py reads every weight and delay back from the running processes and compares.",
        "- `run.py` runs samples side by side, as copies of the network in one; every sample begins afresh.",
        "- `chip.py` runs the network on a board: `python run.py --hw ...`, with Intel's lava-loihi. Written from public material,",
        "  not verified on silicon.",
        "- `parts.py`, `host/`: helpers of the others.",
    ]
    if any(item.process.program for item in plan.populations.values()):
        lines += [
            "",
            "`neurons/programs.py` holds neurons that Lava's library lacks, as processes generated from their programs. They are",
            "exact in simulation; on silicon each needs microcode, which lava-nc does not bring.",
        ]
    if late:
        lines += [
            "",
            "A layer with a start step is kept silent until then (no bias, states 0); then the host writes its bias and initial",
            "state between two runs. Exact in Lava's simulation; not verified on silicon.",
        ]
    lines += ["", "The integers are Lava's `fixed_pt` models'. Nobody outside Intel can check them against silicon.", ""]
    return "\n".join(lines)


def _takes(plan: Plan) -> str:
    limits = {name: bounds for name, bounds in plan.limits.items() if bounds != (0, 1)}
    if not limits:
        return "zeros and ones"
    told = [f"`{name}` takes whole numbers from {low} to {high}" for name, (low, high) in limits.items()]
    return "; ".join([*told, "other inputs zeros and ones"] if len(limits) < len(plan.limits) else told)


def _plain(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
