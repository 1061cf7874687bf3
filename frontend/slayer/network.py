"""What a SLAYER network is read into: its options, the wire that the next block reads, and the graph so far."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final, Literal, get_args, get_type_hints

import numpy as np

from spikec.diagnostics import CompileError, Loc
from spikec.frontend.slayer.file import MAX_ELEMENTS, Group
from spikec.frontend.slayer.programs import RELAY
from spikec.ir.ops import Input, Neuron, Node, Ref, Reshape, Sparse
from spikec.ir.text import parse_program
from spikec.ir.types import Array, Kind, TensorType
from spikec.ledger import Ledger
from spikec.options import fits

#: A delay of more steps is a damaged file.
MAX_DELAY: Final = 1 << 16


@dataclass(frozen=True, kw_only=True)
class NetOptions:
    """What a `.net` file leaves open.

    input_shape: (channels, height, width), or the number of inputs, where the file has no input block.
    input_message_bits: 0 for spikes as input; otherwise signed integers of so many bits. For a file without input neurons.
    input_bounds: what an input block with neurons may be fed, inclusive.
    input_transform: an input block with neurons has a weight w and a bias b for raw data x. "caller": the graph's input is w*x + b
    already, as for Lava; "file": the graph computes it from whole numbers x.
    delay_shift: a block's output reaches the next one a step later, as SLAYER trains by default and as Loihi does it; a sigma-delta
    input block and a block without neurons are exempt. False: all blocks within one step. Outputs are always taken undelayed.
    delay: "axonal": a 1-d delay belongs to the block's own outputs (SLAYER); "synaptic": to its synapses, by output row or else
    by input column (Lava's reader). A 2-d delay is always synaptic.
    reset_interval, reset_offset: u and v of CUBA neurons are cleared before steps t with
    t mod interval = (offset + delay_shift steps before the block) mod interval. None: never.
    shape_order: "CHW" as SLAYER writes shapes, or "WHC" as the format's description has it.
    sigma_delta: "slayer": what the message's shift drops is lost, as in SLAYER and Lava 0.10; "corrected": it is sent later.
    graded_spikes: for neurons that declare gradedSpike. "refuse"; "unary": plain spikes, as Lava's reader; "voltage": the membrane,
    as SLAYER.
    ref_delay: "refuse" a refractory delay over 1, which neither SLAYER nor Lava's reader simulates, or "ignore" it as they do.
    no_neuron: a block without a neuron gives its "current", or with "integrate" the membrane of an integrator that never fires, as
    in Lava's reader.
    """

    input_shape: tuple[int, ...] | None = None
    input_message_bits: int = 0
    input_bounds: tuple[int, int] = (-131071, 131071)
    input_transform: Literal["caller", "file"] = "caller"
    delay_shift: bool = True
    delay: Literal["axonal", "synaptic"] = "axonal"
    reset_interval: int | None = None
    reset_offset: int = 0
    shape_order: Literal["CHW", "WHC"] = "CHW"
    sigma_delta: Literal["slayer", "corrected"] = "slayer"
    graded_spikes: Literal["refuse", "unary", "voltage"] = "refuse"
    ref_delay: Literal["refuse", "ignore"] = "refuse"
    no_neuron: Literal["current", "integrate"] = "current"

    def __post_init__(self) -> None:
        hints = get_type_hints(NetOptions)
        for item in fields(self):
            value, allowed = getattr(self, item.name), get_args(hints[item.name])
            if allowed and all(isinstance(word, str) for word in allowed):
                if value not in allowed:
                    raise CompileError("SPK001", f"{item.name} is one of {', '.join(allowed)}, not {value!r}")
            elif not fits(value, hints[item.name]):
                raise CompileError("SPK001", f"{item.name} is {_WANTED[item.name]}, not {value!r}")
        if self.reset_interval is not None and self.reset_interval < 1:
            raise CompileError("SPK001", f"reset_interval is at least 1, not {self.reset_interval}")
        if self.reset_offset < 0:
            raise CompileError("SPK001", f"reset_offset is at least 0, not {self.reset_offset}")
        if not 0 <= self.input_message_bits <= 32:
            raise CompileError("SPK001", f"input_message_bits is 0 to 32, not {self.input_message_bits}")
        if self.input_shape is not None and (not self.input_shape or min(self.input_shape) < 1):
            raise CompileError("SPK001", f"input_shape holds sizes of at least 1, not {self.input_shape}")


#: What the options that are not words are.
_WANTED: Final = {
    "input_shape": "sizes such as 2,34,34",
    "input_message_bits": "a whole number",
    "input_bounds": "two whole numbers such as -128,127",
    "delay_shift": "true or false",
    "reset_interval": "a whole number",
    "reset_offset": "a whole number",
}


@dataclass(frozen=True)
class Wire:
    """What the next block reads: where, its shape, a delay per element, and the steps of delay_shift so far.

    volts: messages are membranes, scaled by 2^12, and not spikes or plain integers.
    """

    ref: Ref
    shape: tuple[int, ...]
    kind: Kind
    delay: Array | None = None
    steps: int = 0
    volts: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return elements(self.shape)


def elements(shape: tuple[int, ...]) -> int:
    """Number of elements, without overflow."""
    count = 1
    for size in shape:
        count *= size
    return count


class Network:
    """The nodes so far, what every layer gives to its readers, and what the format leaves open."""

    def __init__(self, options: NetOptions, ledger: Ledger) -> None:
        self.options = options
        self.ledger = ledger
        self.nodes: list[Node] = []
        self.given: list[Wire] = []
        self.source: Wire | None = None

    def add(self, node: Node) -> Ref:
        """Append a node; a reference to its first output."""
        self.nodes.append(node)
        return Ref(node.name)

    def note(self, name: str, text: str) -> None:
        """Record a convention of a node, or of the network (""), once."""
        if not any(entry.node == name and entry.what == text for entry in self.ledger.entries):
            self.ledger.record(name, "convention", text)

    # --------------------------------------------------------------------------------------------------------- inputs

    def input(self, type_: TensorType, loc: Loc, bounds: tuple[int, int] | None = None) -> Ref:
        """The graph's one input."""
        return self.add(Input(name="input", type=type_, bounds=bounds, loc=loc))

    def plain_input(self, shape: tuple[int, ...], loc: Loc) -> Wire:
        """Data that goes straight into synapses: spikes, or integers of input_message_bits."""
        bits = self.options.input_message_bits
        if not bits:
            return Wire(self.input(TensorType("spike", shape, "i8"), loc), shape, "spike")
        bounds = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        self.note("input", f"takes signed integers of {bits} bits (input_message_bits={bits})")
        return Wire(self.input(TensorType("graded", shape, "i32"), loc, bounds), shape, "graded")

    def previous(self, layer: Group, shape: tuple[int, ...] | None = None) -> Wire:
        """What a layer reads; where the file has no input block, an input of the shape asked for, or else of `shape`."""
        if self.source is None:
            given = self.options.input_shape or shape
            if given is None:
                layer.fail("SPK309", "the file does not tell the input's shape", fix="give input_shape=(channels, height, width)")
            self.source = self.plain_input(given, layer.loc)
        return self.source

    # ------------------------------------------------------------------------------------------------ shapes, numbers

    def shape(self, layer: Group) -> tuple[int, ...]:
        """The shape that the file gives, as (channels, height, width) or shorter."""
        shape = tuple(int(n) for n in layer.integers("shape").reshape(-1))
        if not 1 <= len(shape) <= 3 or min(shape) < 1 or elements(shape) > MAX_ELEMENTS:
            layer.bad("shape", f"is {shape}, which is no shape of a layer", code="SPK309")
        return shape[::-1] if self.options.shape_order == "WHC" else shape

    def check_shape(self, layer: Group, computed: tuple[int, ...], *, flat: bool = False) -> None:
        """The shape in the file must be what the layer computes; flat: only the number of elements."""
        if min(computed) < 1 or elements(computed) > MAX_ELEMENTS:
            layer.fail("SPK309", f"the layer gives the shape {computed}")
        if "shape" not in layer:
            return
        written = self.shape(layer)
        if elements(written) != elements(computed) if flat else written != computed:
            fix = None
            if not flat and written[::-1] == computed:
                fix = f"shape_order='{'CHW' if self.options.shape_order == 'WHC' else 'WHC'}'"
            layer.bad("shape", f"is {written}, but the layer gives {computed}", code="SPK309", fix=fix)

    def fitting(self, group: Group, key: str, shape: tuple[int, ...]) -> Array:
        """A member as one number, one per channel, or one per neuron."""
        value = group.integers(key)
        if value.size == 1:
            return value.reshape(())
        for wanted in (shape, shape[:1]):
            if value.size == elements(wanted):
                return value.reshape(wanted)
        group.bad(key, f"holds {value.size} numbers for neurons of shape {shape}", code="SPK309")

    def bias(self, layer: Group, shape: tuple[int, ...]) -> Array | None:
        """The layer's bias in units of a weight."""
        return self.fitting(layer, "bias", shape) if "bias" in layer else None

    # --------------------------------------------------------------------------------------------------------- delays

    def delays(self, layer: Group) -> Array | None:
        """The layer's delays as they stand in the file; None if there are none but zeros."""
        if "delay" not in layer:
            return None
        value = layer.integers("delay")
        for wrong, what in ((value < 0, "which is negative"), (value > MAX_DELAY, "which is absurd")):
            if np.any(wrong):
                where = [int(i) for i in np.argwhere(wrong)[0]]
                layer.bad("delay", f"holds {int(value[wrong][0])} at {where}, {what}", code="SPK306")
        return value if value.any() else None

    def axonal(self, layer: Group, shape: tuple[int, ...]) -> Array | None:
        """Delays behind a block's neurons: one for all, one per channel or one per neuron in the file; (neurons,)."""
        value = self.delays(layer)
        if value is None or value.ndim == 2 or self.options.delay == "synaptic":
            return None
        flat, size = value.reshape(-1), elements(shape)
        if flat.size not in (1, shape[0], size):
            layer.bad("delay", f"holds {flat.size} delays for {size} neurons of shape {shape}", code="SPK309")
        self.note(layer.path.replace("/", ""), "delays are axonal: they follow the block's own neurons (delay='axonal')")
        return np.repeat(flat, size // flat.size)

    def synaptic(self, layer: Group, out: int, fan_in: int) -> Array | None:
        """Delays of a dense layer's connections, (out, fan_in)."""
        value = self.delays(layer)
        if value is None or (value.ndim != 2 and self.options.delay == "axonal"):
            return None
        fits = {(out, fan_in): value, (out,): value[..., None], (fan_in,): value}
        if value.size != 1 and value.shape not in fits:
            what = f"has shape {value.shape}, which fits neither ({out}, {fan_in}) nor one of its axes"
            layer.bad("delay", what, code="SPK309")
        self.note(layer.path.replace("/", ""), "delays are those of the block's own synapses (delay='synaptic', or 2-d)")
        found = value.reshape(()) if value.size == 1 else next(v for shape, v in fits.items() if shape == value.shape)
        return np.broadcast_to(found, (out, fan_in))

    def no_synaptic(self, layer: Group) -> None:
        """Refuse synaptic delays where no reader defines them."""
        value = self.delays(layer)
        if value is not None and (value.ndim == 2 or self.options.delay == "synaptic"):
            layer.fail("SPK101", "delays of the synapses of such a layer are not supported: no reader defines them", at="delay")

    def relayed(self, base: str, loc: Loc, wire: Wire) -> Wire:
        """The same signal with its delays per element carried out, by relay neurons behind one-to-one synapses."""
        if wire.delay is None:
            return wire
        flat = self.add(Reshape(name=f"{base}_flat", inputs=(replace(wire.ref, delay=0),), shape=(wire.size,), loc=loc))
        flat = self.add(
            Sparse(
                name=f"{base}_sum",
                inputs=(flat,),
                weight=np.ones(wire.size, np.int16),
                indices=np.arange(wire.size, dtype=np.int32),
                indptr=np.arange(wire.size + 1, dtype=np.int32),
                fan_in=wire.size,
                delay=wire.delay.astype(np.int32),
                loc=loc,
            )
        )
        flat = self.add(Neuron(name=f"{base}_relay", inputs=(flat,), program=parse_program(RELAY[wire.kind]), loc=loc))
        ref = self.add(Reshape(name=base, inputs=(flat,), shape=wire.shape, loc=loc))
        return replace(wire, ref=replace(ref, delay=wire.ref.delay), delay=None)
