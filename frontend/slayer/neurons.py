"""The neurons of SLAYER's blocks: which program with which parameters, and what it sends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from spikec.frontend.slayer.file import Group
from spikec.frontend.slayer.network import Network, Wire
from spikec.frontend.slayer.programs import ALIF, DELTA, SIGMA, SIGMA_DELTA, lif, native, sigma_delta, with_states
from spikec.frontend.slayer.synapses import small
from spikec.ir.neuron import Program
from spikec.ir.ops import Add, Dense, Neuron, Ref
from spikec.ir.text import parse_program
from spikec.ir.types import Array

#: Whether an activation of sigma-delta neurons is a relu.
_ACTIVATIONS: Final = {"relu": True, "identity": False, "linear": False}
_RF: Final = {"RF": "RF_IZ", "RF_IZ": "RF_IZ", "RF_IZHIKEVICH": "RF_IZ", "RF_PHASE": "RF"}
_CUBA: Final = ("CUBA", "LOIHI")


@dataclass(frozen=True)
class _Block:
    """One block's neurons: their group in the file, what reaches them, and whether they encode the network's input."""

    net: Network
    name: str
    layer: Group
    neuron: Group
    kind: str
    shape: tuple[int, ...]
    wire: Wire
    encoder: bool

    def parameter(self, key: str, low: int, high: int) -> Array:
        """A member as one number, one per channel, or one per neuron."""
        value = self.net.fitting(self.neuron, key, self.shape)
        wrong = (value < low) | (value > high)
        if np.any(wrong):
            self.neuron.bad(key, f"holds {int(value[wrong][0])}, which is not in {low} to {high}")
        return value

    def bias(self) -> Array:
        """The bias of the block; that of an input block belongs to its data."""
        found = None if self.encoder else self.net.bias(self.layer, self.shape)
        return np.asarray(0) if found is None else found

    def note(self, text: str) -> None:
        """Record a convention of this population."""
        self.net.note(self.name, text)


@dataclass(frozen=True)
class _Made:
    program: Program
    params: Mapping[str, Any]
    init: Mapping[str, Any] = field(default_factory=dict)


def population(
    net: Network,
    name: str,
    layer: Group,
    wires: tuple[Wire, ...],
    *,
    states: bool,
    encoder: bool = False,
    recurrent: bool = False,
) -> Wire:
    """Add the neurons of a block behind its synapses (two if complex); the wire to the next block."""
    neuron = layer.child("neuron")
    kind = neuron.text("type")
    wire = wires[0]
    if len(wires) != 1 + (kind in _RF):
        wanted = "weight/real and weight/imag" if kind in _RF else "one real weight"
        layer.fail("SPK003", f"a block with neurons of type {kind} needs {wanted}", at="weight")
    if wire.volts and kind not in _CUBA:
        layer.fail("SPK101", f"neurons of type {kind} behind graded CUBA spikes are not supported: their scales differ")
    if net.options.reset_interval is not None and kind not in _CUBA:
        fix = "leave reset_interval out"
        neuron.fail("SPK101", f"a periodic reset of {kind} neurons is not defined", at="type", fix=fix)
    make = _sdnn if kind == "SDNN" else _alif if kind == "ALIF" else _rf if kind in _RF else _cuba
    made = make(_Block(net, name, layer, neuron, kind, wire.shape, wire, encoder))
    out = made.program.emits[0].kind
    inputs = [item.ref for item in wires]
    if recurrent:
        if kind in _RF or wire.volts or out != "spike":
            layer.fail("SPK101", "recurrence is supported for plain spikes only", at="weight_rec")
        inputs = [_recurrence(net, name, layer, wire)]
    net.add(
        Neuron(
            name=name,
            inputs=tuple(inputs),
            program=with_states(made.program) if states else made.program,
            params=arrays(made.params),
            init=arrays(made.init),
            loc=layer.loc,
        )
    )
    # SLAYER never shifts what a sigma-delta input block or a sigma output gives.
    shift = int(net.options.delay_shift and not (kind == "SDNN" and (encoder or out == "value")))
    delay = None if encoder else net.axonal(layer, wire.shape)
    return Wire(Ref(name, delay=shift), wire.shape, out, delay, wire.steps + shift, out == "graded" and kind != "SDNN")


def arrays(values: Mapping[str, Any]) -> dict[str, Array]:
    """Parameters as the IR holds them."""
    return {key: np.asarray(value, np.int32) for key, value in values.items()}


def _recurrence(net: Network, name: str, layer: Group, wire: Wire) -> Ref:
    """The block's own spikes of the step before, through weight_rec, joined to the sum of its inputs."""
    weight = layer.integers("weight_rec")
    out = wire.shape[0]
    if weight.size != out * out:
        layer.bad("weight_rec", f"has shape {weight.shape}, not ({out}, {out})", code="SPK309")
    if net.delays(layer) is not None:
        net.note(name, "the block's recurrent synapses have no delay beyond their one step")
    square = small(weight.reshape(out, out))
    back = net.add(Dense(name=f"{name}_rec", inputs=(Ref(name, delay=1),), weight=square, loc=layer.loc))
    return net.add(Add(name=f"{name}_both", inputs=(wire.ref, back), loc=layer.loc))


def _sends_membrane(block: _Block) -> bool:
    """Check the fields that no reader honours; returns whether spikes carry the membrane."""
    neuron, options = block.neuron, block.net.options
    refractory = neuron.integer("refDelay", 1)
    if refractory > 1:
        if options.ref_delay == "refuse":
            neuron.fail(
                "SPK101",
                f"a refractory delay of {refractory} steps is not supported: neither SLAYER nor Lava's reader simulates one over 1",
                at="refDelay",
                fix="ref_delay='ignore' reads the network as they do",
            )
        block.note(f"the refractory delay of {refractory} steps is ignored (ref_delay='ignore')")
    for key in ("wgtExp", "weight_exp"):
        if key in neuron and neuron.integers(key).any():
            neuron.fail("SPK101", f"'{key}' is not 0: a rescaled synaptic sum is not supported; Lava's reader ignores it", at=key)
    if "messageBits" in neuron:
        block.note(f"messages of {neuron.integer('messageBits')} bits: the width is not enforced, as in Lava's simulation")
    if not neuron.integer("gradedSpike", 0):
        return False
    choice = options.graded_spikes
    if choice == "refuse" or (choice == "voltage" and block.kind not in _CUBA):
        fix = "graded_spikes='unary'" + (" or graded_spikes='voltage'" if block.kind in _CUBA else "")
        what = "graded spikes are read in two ways: SLAYER sends the membrane, Lava's reader a plain spike"
        if choice == "voltage":
            what = f"graded spikes of {block.kind} neurons are not supported"
        neuron.fail("SPK101", what, at="gradedSpike", fix=fix)
    block.note(f"declares graded spikes: graded_spikes='{choice}'")
    return choice == "voltage"


def _cuba(block: _Block) -> _Made:
    net = block.net
    graded = _sends_membrane(block)
    params: dict[str, Any] = {
        "du": block.parameter("iDecay", 0, 4096) - 1,
        "dv": block.parameter("vDecay", 0, 4096),
        "vth": block.parameter("vThMant", 0, 1 << 24),
        "bias_mant": block.bias(),
        "bias_exp": 6,
    }
    net.note("", "u wraps and v saturates at 24 bits, as on Loihi; SLAYER itself has no limit")
    net.note("", "spikes are v > threshold, strictly")
    if params["bias_mant"].any():
        block.note("the bias joins the membrane at every step, shifted left by 6")
    interval = net.options.reset_interval
    if interval is not None:
        phase = (net.options.reset_offset + block.wire.steps) % interval
        params |= {"interval": interval, "offset": phase + 1}
        block.note(f"u and v are cleared before steps t with t mod {interval} = {phase}")
    return _Made(lif(reset=interval is not None, volts=block.wire.volts, graded=graded), params)


def _alif(block: _Block) -> _Made:
    _sends_membrane(block)
    threshold = block.parameter("vThMant", 0, 1 << 24) << 6
    params = {
        "idecay": block.parameter("iDecay", 0, 4096),
        "vdecay": block.parameter("vDecay", 0, 4096),
        "thdecay": block.parameter("thDecay", 0, 4096),
        "refdecay": block.parameter("refDecay", 0, 4096),
        "theta0": threshold,
        "step": block.parameter("vThStep", -(1 << 24), 1 << 24) << 6,
        "bias": block.bias(),
    }
    block.note("spikes are v - r >= theta; a bias joins the synaptic sum, as in SLAYER")
    return _Made(parse_program(ALIF), params, {"theta": threshold})


def _rf(block: _Block) -> _Made:
    _sends_membrane(block)
    if block.bias().any():
        block.layer.fail("SPK101", "a bias of complex neurons is not supported: SLAYER writes none", at="bias")
    params = {
        "cosd": block.parameter("cosDecay", -4096, 4096),
        "sind": block.parameter("sinDecay", -4096, 4096),
        "vth": block.parameter("vThMant", 0, 1 << 24),
    }
    block.note("both parts saturate at 24 bits, as on Loihi; spikes are >= threshold")
    if block.kind == "RF":
        block.note("RF is read as the Izhikevich form, as Lava's reader does")
    return _Made(native(_RF[block.kind]), params)


def _sdnn(block: _Block) -> _Made:
    neuron, net = block.neuron, block.net
    if neuron.integer("messageBits", 16) < 1:
        neuron.bad("messageBits", "is 0, but sigma-delta neurons send numbers")
    _sends_membrane(block)
    bias = block.bias()
    if not block.encoder and neuron.integer("sigma_output", 0):
        if bias.any():
            block.layer.fail("SPK101", "a bias of a sigma output is not supported: SLAYER writes none", at="bias")
        return _Made(parse_program(SIGMA), {})
    corrected = net.options.sigma_delta == "corrected"
    fate = "is sent later" if corrected else "is lost"
    net.note("", f"sigma-delta: what the six dropped bits of a message held {fate} (sigma_delta='{net.options.sigma_delta}')")
    params: dict[str, Any] = {"vth": block.parameter("vThMant", 0, 1 << 18)}
    if block.encoder:
        return _Made(sigma_delta(DELTA, relu=False, corrected=corrected), params)
    activation = neuron.text("activation") if "activation" in neuron else ""
    if not activation:
        block.note("names no activation: relu, as Lava's sigma-delta neuron")
    elif activation not in _ACTIVATIONS:
        what = f"the activation '{activation}' is not supported: its integer form is not published"
        neuron.fail("SPK101", what, at="activation", fix=f"one of {', '.join(_ACTIVATIONS)}")
    params["bias"] = bias
    return _Made(sigma_delta(SIGMA_DELTA, relu=_ACTIVATIONS.get(activation, True), corrected=corrected), params)


#: Neuron types, and the reason why some are not read.
NEURONS: Final[dict[str, str]] = {
    **dict.fromkeys((*_CUBA, "SDNN", *_RF, "ALIF"), ""),
    "ADRF": "no integer form of its adaptive threshold is published",
    "ADRF_IZ": "no integer form of its adaptive threshold is published",
}
#: Fields that are read or concern training only.
NEURON_FIELDS: Final = frozenset(
    (
        *("type", "iDecay", "vDecay", "vThMant", "refDelay", "gradedSpike", "wgtExp", "weight_exp", "messageBits", "sigma_output"),
        *("activation", "sinDecay", "cosDecay", "thDecay", "refDecay", "vThStep", "theta", "tauRho", "scaleRho"),
    )
)
