"""Layers that train with surrogate gradients in PyTorch and compile exactly; public as `spikec.nn`.

    net = nn.Sequential(nn.Linear(64, 32), nn.CUBALIF(alpha=0.5, beta=0.9), nn.Linear(32, 10), nn.LIF(beta=0.9))

Neurons: `LIF`, `CUBALIF`, `ALIF`, `LI`. Connections: `Linear`, `Conv1d`, `Conv2d`, `SparseLinear`, `DelayLinear`, `AxonalDelay`.
`Grid` puts weights on a target's grid in training; `surrogate` has the gradients of a spike; `reset` forgets the past of a model's
layers. torch.nn's own layers stand beside these in one model.
"""

from spikec.frontend.nn import functional, surrogate
from spikec.frontend.nn.grid import Grid
from spikec.frontend.nn.neurons import ALIF, CUBALIF, LI, LIF, reset
from spikec.frontend.nn.synapses import AxonalDelay, Conv1d, Conv2d, DelayLinear, Linear, SparseLinear

__all__ = [
    "ALIF",
    "CUBALIF",
    "LI",
    "LIF",
    "AxonalDelay",
    "Conv1d",
    "Conv2d",
    "DelayLinear",
    "Grid",
    "Linear",
    "SparseLinear",
    "functional",
    "reset",
    "surrogate",
]
