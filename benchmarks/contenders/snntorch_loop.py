"""snnTorch: `Leaky` with a reset to zero in the same step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import snntorch
import torch_net
from network import Layer, Net
from torch import Tensor, nn

TITLE = "snnTorch"
BATCHES = True


class _Population(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.leaky = snntorch.Leaky(beta=layer.beta, threshold=torch_net.scalar(layer), reset_mechanism="zero", reset_delay=False)
        self.membrane: Any = None

    def forward(self, current: Tensor) -> Tensor:
        """One step."""
        if self.membrane is None:
            self.membrane = self.leaky.init_leaky()
        spikes, self.membrane = self.leaky(current, self.membrane)
        return spikes


def _reset(population: Any) -> None:
    population.membrane = None


def prepare(net: Net) -> Callable[[Any], np.ndarray]:
    """A function from samples to output counts."""
    return torch_net.prepare(net, _Population, _reset)
