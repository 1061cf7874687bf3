"""SLAYER / lava-dl networks (`.net`, HDF5) as graphs of integers.

The file lists blocks, each a synapse and a neuron; shapes are (channels, height, width). What it leaves open (`NetOptions`) is
an option with a default, and the ledger says what was used. Integer semantics are SLAYER's own, in Loihi's 24-bit states.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic, Loc
from spikec.frontend.registry import Support
from spikec.frontend.slayer.file import Group, open_file
from spikec.frontend.slayer.network import NetOptions, Network, Wire
from spikec.frontend.slayer.neurons import NEURON_FIELDS, NEURONS, arrays, population
from spikec.frontend.slayer.programs import lif, with_states
from spikec.frontend.slayer.synapses import SYNAPSES
from spikec.frontend.slayer.write import write_net as write_net
from spikec.ir.graph import Graph
from spikec.ir.ops import Concat, Conv, Dense, Input, Neuron, Ref, Reshape, Scale
from spikec.ir.rules import verify
from spikec.ir.types import Kind, TensorType
from spikec.ledger import Ledger
from spikec.spelling import did_you_mean

#: Options of `read_net` that a driver passes on.
OPTIONS: Final = tuple(item.name for item in fields(NetOptions))
#: Layer types, and the reason why some are not read.
LAYERS: Final[dict[str, str]] = {
    **dict.fromkeys(("input", "flatten", "concat", *SYNAPSES), ""),
    "average": "the mean of integers is not an integer, and SLAYER writes its time decimation under the same name",
}
VERSION: Final = "0.6.0"
SUPPORT: Final = (
    *(Support(f"layer {name}", "", "refused" if why else "exact", why) for name, why in LAYERS.items()),
    *(Support(f"neuron {name}", "", "refused" if why else "exact", why) for name, why in NEURONS.items()),
    Support("delays", "a synapse's, an axon's", "exact"),
    Support("neurons", "reset_interval, states", "exact"),
    Support("neurons", "gradedSpike", "refused", "graded_spikes=unary or voltage says how it is meant"),
    Support("neurons", "refDelay over 1", "refused", "ref_delay=ignore does as SLAYER and Lava do"),
    Support("layer concat", "with a loop", "refused", "no reader defines it"),
)
_FIELDS: Final = {
    *("type", "shape", "neuron", "weight", "weight_rec", "bias", "delay", "layers", "inFeatures", "outFeatures"),
    *("inChannels", "outChannels", "kernelSize", "stride", "padding", "dilation", "groups"),
}


def read_net(
    path: str | Path,
    *,
    name: str | None = None,
    dt: float | None = None,
    states: bool = False,
    ledger: Ledger | None = None,
    **options: Any,
) -> Graph:
    """The graph of integers of a `.net` file, verified.

    name: the graph's, by default the file's. dt: seconds per step; the file's own sampling time has no unit and is not used.
    states: populations also emit their states, as in `%layer1.v`. ledger: told every convention used. options: see `NetOptions`.

    Populations are called `layer0`, `layer1`, … after the file's numbers, their synaptic sums `layer1_sum`. Raises
    CompileError: SPK001 option, SPK002 or SPK003 file, SPK009 no h5py, SPK101 layer or neuron that is not supported, SPK306 delay,
    SPK309 shapes, and what the verifier finds.
    """
    for key in options:
        if key not in OPTIONS:
            raise CompileError("SPK001", f"unknown option '{key}' for a .net file", fix=did_you_mean(key, OPTIONS))
    chosen = NetOptions(**options)
    file = Path(path)
    told = ledger if ledger is not None else Ledger()
    before, told.pass_name = told.pass_name, "read-net"
    try:
        with open_file(file) as root:
            called = name if name is not None else re.sub(r"[^A-Za-z0-9_]", "_", file.stem) or "net"
            return verify(_Reader(Network(chosen, told), states).graph(root, called, dt))
    finally:
        told.pass_name = before


class _Reader:
    def __init__(self, net: Network, states: bool) -> None:
        self.net = net
        self.states = states

    def graph(self, root: Group, name: str, dt: float | None) -> Graph:
        """All layers in order."""
        net = self.net
        layers = _layers(root)
        _check_supported(layers)
        build: dict[str, Callable[[int, Group], Wire]] = {
            "input": self._input,
            "flatten": self._flatten,
            "concat": self._concat,
        }
        for index, layer in enumerate(layers):
            self._note_unread(index, layer)
            net.source = build.get(layer.text("type"), self._block)(index, layer)
            net.given.append(net.source)
        self._note_timing(root, dt)
        last = f"layer{len(layers) - 1}"
        wire = replace(net.given[-1], ref=replace(net.given[-1].ref, delay=0))
        if isinstance(net.nodes[-1], Input):
            root.fail("SPK003", "no layer computes anything", at="layer")
        wire = net.relayed(f"{last}_delayed", layers[-1].loc, wire)
        return Graph(name, "fixed", tuple(net.nodes), ((last, wire.ref),), dt)

    def _note_timing(self, root: Group, dt: float | None) -> None:
        net = self.net
        if net.options.delay_shift:
            net.note("", "a block's output reaches the next block a step later (delay_shift=True)")
        else:
            net.note("", "all blocks compute within one step (delay_shift=False)")
        if net.options.shape_order == "WHC":
            net.note("", "shapes in the file are (width, height, channels) (shape_order='WHC')")
        if dt is None and root.is_group("simulation") and "Ts" in root.child("simulation"):
            net.note("", "the sampling time Ts in the file has no unit: the length of a step is unknown unless dt is given")

    def _note_unread(self, index: int, layer: Group) -> None:
        unread = [key for key in layer.names() if key not in _FIELDS]
        if layer.is_group("neuron"):
            unread += [f"neuron/{key}" for key in layer.child("neuron").names() if key not in NEURON_FIELDS]
        if unread:
            self.net.note(f"layer{index}", f"fields that are not read: {', '.join(sorted(unread))}")

    def _input(self, index: int, layer: Group) -> Wire:
        net, options = self.net, self.net.options
        if index:
            layer.fail("SPK003", "an input layer can only be the first")
        shape = net.shape(layer)
        if options.input_shape is not None and options.input_shape != shape:
            layer.bad("shape", f"is {shape}, but input_shape is {options.input_shape}", code="SPK309")
        if not layer.is_group("neuron"):
            shift = int(options.delay_shift)
            wire = net.plain_input(shape, layer.loc)
            return replace(wire, ref=wire.ref.later(shift), steps=shift)
        ref = net.input(TensorType("value", shape, "i32"), layer.loc, options.input_bounds)
        weight = layer.integer("weight") if "weight" in layer else None
        bias = layer.integer("bias") if "bias" in layer else 0
        if options.input_transform == "file":
            factor = np.asarray(1 if weight is None else weight, np.int32)
            offset = np.asarray(bias, np.int32) if bias else None
            ref = net.add(Scale(name="layer0_sum", inputs=(ref,), factor=factor, offset=offset, dtype="i64", loc=layer.loc))
            net.note("layer0", f"is fed {int(factor)}*x + {bias} for the input x (input_transform='file')")
        else:
            default = "" if weight is not None else "; without a weight in the file, SLAYER's scale 64"
            transform = f"{64 if weight is None else weight}*x + {bias} for raw data x"
            net.note("layer0", f"the caller feeds {transform} (input_transform='caller'{default})")
        return population(net, "layer0", layer, (Wire(ref, shape, "value"),), states=self.states, encoder=True)

    def _flatten(self, index: int, layer: Group) -> Wire:
        net = self.net
        wire = net.previous(layer)
        net.check_shape(layer, (wire.size,), flat=True)
        net.note(f"layer{index}", "flattens in the order channel, row, column")
        now = replace(wire.ref, delay=0)
        ref = net.add(Reshape(name=f"layer{index}", inputs=(now,), shape=(wire.size,), loc=layer.loc))
        return replace(wire, ref=replace(ref, delay=wire.ref.delay), shape=(wire.size,))

    def _concat(self, index: int, layer: Group) -> Wire:
        """The previous layer and then the listed ones, along the channels."""
        net = self.net
        wires = [net.previous(layer)]
        for number in layer.integers("layers").reshape(-1):
            if not 0 <= number < index:
                what = f"layer {int(number)} is no earlier one; recurrence through a concat layer is not supported"
                layer.fail("SPK101", what, at="layers")
            wires.append(net.given[int(number)])
        if len({item.volts for item in wires}) > 1:
            layer.fail("SPK101", "membranes cannot be joined with messages of another scale", at="layers")
        if len({item.shape[1:] for item in wires}) > 1:
            layer.bad("layers", f"joins shapes that do not fit: {', '.join(str(item.shape) for item in wires)}", code="SPK309")
        shape = (sum(item.shape[0] for item in wires), *wires[0].shape[1:])
        net.check_shape(layer, shape)
        net.note(f"layer{index}", "joins the previous layer and then the listed ones along the channels")
        wires = [net.relayed(f"layer{index}_delayed{k}", layer.loc, item) for k, item in enumerate(wires)]
        late = min(item.ref.delay for item in wires)
        read = tuple(replace(item.ref, delay=item.ref.delay - late) for item in wires)
        ref = net.add(Concat(name=f"layer{index}", inputs=read, loc=layer.loc))
        kinds = {item.kind for item in wires}
        kind: Kind = "value" if "value" in kinds else "spike" if kinds == {"spike"} else "graded"
        return Wire(replace(ref, delay=late), shape, kind, None, max(item.steps for item in wires), wires[0].volts)

    def _block(self, index: int, layer: Group) -> Wire:
        """A synapse (two of them if complex) and a population."""
        net, name, kind = self.net, f"layer{index}", layer.text("type")
        if layer.is_group("weight"):
            wires = [SYNAPSES[kind](net, layer, f"{name}_{part}", f"weight/{part}") for part in ("real", "imag")]
        else:
            wires = [SYNAPSES[kind](net, layer, f"{name}_sum", "weight")]
        source = net.previous(layer)
        wires = [replace(wire, steps=source.steps, volts=source.volts) for wire in wires]
        recurrent = kind == "dense_rec"
        if layer.is_group("neuron"):
            return population(net, name, layer, tuple(wires), states=self.states, recurrent=recurrent)
        if len(wires) > 1 or recurrent:
            layer.bad("neuron", "is missing")
        return self._without_neuron(name, layer, wires[0])

    def _without_neuron(self, name: str, layer: Group, wire: Wire) -> Wire:
        net = self.net
        bias = net.bias(layer, wire.shape)
        delay = net.axonal(layer, wire.shape)
        if net.options.no_neuron == "integrate":
            net.note(name, "has no neuron: it gives the membrane of an integrator that never fires (no_neuron='integrate')")
            params = {"du": -1, "dv": 4096, "vth": 131072, "bias_mant": 0 if bias is None else bias, "bias_exp": 6}
            program = with_states(lif(reset=False, volts=wire.volts, graded=False))
            net.add(Neuron(name=name, inputs=(wire.ref,), program=program, params=arrays(params), loc=layer.loc))
            return replace(wire, ref=Ref(name, "v"), delay=delay, volts=False)
        net.note(name, "has no neuron: it gives its synaptic sum (no_neuron='current')")
        node = net.nodes.pop()
        if bias is not None and isinstance(node, (Dense, Conv)):
            each = np.broadcast_to(bias, wire.shape[:1]) if bias.ndim < 2 else None
            if each is None:
                layer.bad("bias", f"holds one number per neuron of {wire.shape}; a layer without neurons takes one per channel")
            node = replace(node, bias=each.astype(np.int32))
        elif bias is not None and bias.any():
            layer.fail("SPK101", "a bias of such a layer without neurons is not supported", at="bias")
        return replace(wire, ref=net.add(replace(node, name=name)), delay=delay)


def _layers(root: Group) -> list[Group]:
    if not root.is_group("layer"):
        root.fail("SPK003", "there is no group 'layer': this is not a SLAYER network", fix="write it with SLAYER's export_hdf5")
    group = root.child("layer")
    keys = group.names()
    wanted = [str(number) for number in range(len(keys))]
    if not keys or sorted(keys) != sorted(wanted):
        told = ", ".join(f"'{key}'" for key in sorted(keys)[:8]) or "none"
        group.fail("SPK003", f"layers are numbered 0, 1, 2, … without a gap; here they are {told}")
    return [group.child(key) for key in wanted]


def _check_supported(layers: list[Group]) -> None:
    """Everything that is not read, at once."""
    found = []
    for layer in layers:
        items = [("layer", layer.text("type"), LAYERS, layer.path)]
        if layer.is_group("neuron"):
            items.append(("neuron", layer.child("neuron").text("type"), NEURONS, f"{layer.path}/neuron"))
        for what, kind, table, path in items:
            if reason := table.get(kind, "SLAYER has no such type"):
                fix = None if kind in table else did_you_mean(kind, [key for key, why in table.items() if not why])
                message = f"the {what} type '{kind}' is not supported: {reason}"
                found.append(Diagnostic("SPK101", message, loc=Loc(layer.file, 0, path), fix=fix))
    if found:
        raise CompileError.many(found)
