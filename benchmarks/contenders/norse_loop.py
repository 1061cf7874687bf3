"""Norse: `LIFBoxCell`, whose input is scaled by dt / tau; the weights make up for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch_net
from network import Layer, Net, Skip
from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters, lif_box_feed_forward_step
from torch import Tensor, nn

TITLE = "Norse"
BATCHES = True


class _Population(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.leak = 1.0 - layer.beta
        self.parameters_ = LIFBoxParameters(
            tau_mem_inv=torch.tensor(self.leak / 1e-3), v_th=torch.tensor(torch_net.scalar(layer)), v_reset=torch.tensor(0.0)
        )
        self.state: Any = None

    def forward(self, current: Tensor) -> Tensor:
        """One step."""
        if self.state is None:
            self.state = LIFBoxFeedForwardState(v=torch.zeros_like(current))
        spikes, self.state = lif_box_feed_forward_step(current / self.leak, self.state, self.parameters_, dt=1e-3)
        return spikes


def _reset(population: Any) -> None:
    population.state = None


def prepare(net: Net) -> Callable[[Any], np.ndarray]:
    """A function from samples to output counts."""
    if any(layer.beta == 1.0 for layer in net.layers):
        raise Skip("its box neuron without leak takes no input")
    return torch_net.prepare(net, _Population, _reset)
