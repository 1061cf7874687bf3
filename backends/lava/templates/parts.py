"""What network.py is built from: synapses with every option spelled out, sources, and the description of a network.

Several samples run side by side as `copies` of the network in one: populations are that many times as large, and
weight matrices repeat along the diagonal. Sample b of a population of n neurons has the neurons b * n to b * n + n - 1.
With one copy the processes are exactly those that go onto a chip.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lava.proc.conv.process import Conv
from lava.proc.dense.process import DelayDense, Dense
from lava.proc.io.source import RingBuffer
from lava.proc.sparse.process import DelaySparse, Sparse
from lava.utils.weightutils import SignMode
from scipy.sparse import csr_matrix

# Left to itself Lava chooses the sign mode from the values: a single negative weight would change every odd one.
SIGNS = {"sign_mode": SignMode.MIXED}

# On hardware: what a source's messages go through on their way to the chip (see chip.py).
through = None


@dataclass
class Population:
    """Neurons of one kind. `shape` is one sample's; `lag`: its step t is the network's step t + lag.

    `ports`: what it sends besides `s_out`. Before step `start` the population is silent; then the host writes the Vars in
    `late`: its bias and initial state.
    """

    process: Any
    shape: tuple
    lag: int
    states: tuple = ("u", "v")
    ports: tuple = ()
    start: int = 0
    late: dict = field(default_factory=dict)


@dataclass
class Source:
    """What comes from outside: data given at every step."""

    process: Any
    shape: tuple
    lag: int = 0


@dataclass
class Value:
    """A sum of synapses that can be recorded."""

    synapses: list
    shape: tuple
    lag: int


@dataclass
class View:
    """Spikes or values of `wires` one after the other, in this order, or those that `take` names, as `shape`."""

    wires: list
    shape: tuple
    lag: int
    take: Any = None


@dataclass
class Network:
    """The network as it stands. `outputs` names a wire, or a View of several."""

    copies: int
    sources: dict
    synapses: dict
    populations: dict
    values: dict
    outputs: dict


def messages(data):
    """A source that plays `data`, (copies, steps, neurons)."""
    copies, steps, size = data.shape
    source = RingBuffer(data=np.ascontiguousarray(data.transpose(0, 2, 1)).reshape(copies * size, steps))
    return through(source) if through else source


def always_on(value, start, steps, copies):
    """A source that sends `value`, (neurons,), at every step from `start`."""
    data = np.zeros((copies, steps, len(value)), np.int32)
    data[:, start:] = value
    return messages(data)


def resonator(process, shape, cosd, sind, vth, name):
    """RF or RF_IZ with these decays in units of 1/4096, which its constructor takes as a period and a damping and truncates."""
    along, across = _truncated(cosd, 12), _truncated(sind, 12)
    period, alpha = 2 * np.pi / np.arctan2(across, along), 1 - np.hypot(along, across)
    made = process(shape=shape, period=period, alpha=alpha, vth=vth, state_exp=6, decay_bits=12, name=name)
    return _exactly(made, cos_decay=cosd, sin_decay=sind)


def rf_zero(process, shape, lct, lst, uth):
    """RFZero with these decays in units of 1/32768, which its constructor takes as a frequency and a time constant."""
    along, across = _truncated(np.broadcast_to(lct, shape), 15), _truncated(np.broadcast_to(lst, shape), 15)
    frequency = np.arctan2(across, along) / (2 * np.pi)
    tau = -1 / np.log(np.hypot(along, across))
    return _exactly(process(shape=shape, freqs=frequency, decay_tau=tau, dt=1.0, uth=uth), lct=lct, lst=lst)


def _truncated(whole, bits):
    """A fraction that gives `whole` again when multiplied and cut off, with room for rounding."""
    return (np.asarray(whole) + np.where(np.asarray(whole) < 0, -0.5, 0.5)) / (1 << bits)


def _exactly(process, **wanted):
    """The process, if its constructor came to these numbers."""
    for name, value in wanted.items():
        if np.any(np.asarray(getattr(process, name).init) != value):
            raise ValueError(f"{type(process).__name__}: {name} is not what it should be")
    return process


def tile(array, copies):
    """One number per neuron, for every copy."""
    return np.tile(array, copies)


def dense(weights, copies, name, delays=0, bits=0, exponent=0, width=8):
    """All-to-all synapses, weights (out, in); a message of step t arrives at t + 1 + delays (a number or one each).

    bits: of a message, its sign included; 0 for spikes. exponent: a weight w counts for w * 2 ** exponent. width: bits of a weight;
    the lowest of the 8 are then zeros.
    """
    if copies > 1:
        rows, columns = np.nonzero(weights)
        waits = np.broadcast_to(delays, weights.shape)[rows, columns]
        return _sparse(rows, columns, weights[rows, columns], waits, weights.shape, copies, name, bits, exponent, width)
    more = {"name": name, "num_message_bits": bits, "weight_exp": exponent, "num_weight_bits": width, **SIGNS}
    if np.any(delays):
        delays = delays if isinstance(delays, int) else delays.astype(int)
        return DelayDense(weights=weights.astype(np.int32), delays=delays, **more)
    return Dense(weights=weights.astype(np.int32), **more)


def sparse(w, key, shape, copies, name, delays=0, bits=0, exponent=0, width=8):
    """Synapses of a matrix in compressed rows: `key`.weight, .indices and .indptr in weights.npz; the rest as for `dense`."""
    rows = np.repeat(np.arange(shape[0]), np.diff(w[key + ".indptr"]))
    weights = w[key + ".weight"]
    waits = np.broadcast_to(delays, weights.shape)
    return _sparse(rows, w[key + ".indices"], weights, waits, shape, copies, name, bits, exponent, width)


def _sparse(rows, columns, weights, delays, shape, copies, name, bits, exponent, width):
    """The matrix `copies` times along the diagonal."""
    copy = np.arange(copies)[:, None]
    place = ((copy * shape[0] + rows).ravel(), (copy * shape[1] + columns).ravel())
    large = (shape[0] * copies, shape[1] * copies)
    matrix = csr_matrix((np.tile(weights.astype(np.int32), copies), place), shape=large)
    more = {"name": name, "num_message_bits": bits, "weight_exp": exponent, "num_weight_bits": width, **SIGNS}
    if not np.any(delays):
        return Sparse(weights=matrix, **more)
    waits = csr_matrix((np.tile(delays.astype(int), copies), place), shape=large)
    return DelaySparse(weights=matrix, delays=waits, **more)


def conv(weights, shape, copies, name, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, bits=0):
    """A convolution over maps of shape (channels, height, width), as PyTorch means it: weights (out, in / groups, height, width).

    Lava's maps are (width, height, channels), its pairs (x, y), and it flips the kernel. Copies are further groups.
    """
    channels, height, width = shape
    kernels = np.tile(weights[:, :, ::-1, ::-1].transpose(0, 3, 2, 1), (copies, 1, 1, 1)).astype(np.int32)
    return Conv(
        weight=kernels,
        input_shape=(width, height, channels * copies),
        stride=stride[::-1],
        padding=padding[::-1],
        dilation=dilation[::-1],
        groups=groups * copies,
        num_message_bits=bits,
        name=name,
    )


def grid(port, shape, copies):
    """Neurons in a row as the maps (width, height, channels) that a Conv reads; shape is (channels, height, width)."""
    return port.reshape((shape[0] * copies, *shape[1:])).transpose([2, 1, 0])


def flat(port):
    """What a Conv sends as neurons in a row: channels, rows, columns. Any other port is one already."""
    return port.transpose([2, 1, 0]).flatten() if len(port.shape) == 3 else port
