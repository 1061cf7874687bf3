"""sinabs: `LIF` and `IAF` over all steps (one at a time in a recurrent layer), reset to zero, one spike a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import sinabs
import sinabs.layers as sl
import torch_net
from network import Layer, Net
from torch import Tensor, nn

TITLE = "sinabs"
BATCHES = True


class _Population(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        common = {
            "spike_threshold": torch_net.scalar(layer), "spike_fn": sinabs.activation.SingleSpike,
            "reset_fn": sinabs.activation.MembraneReset(), "min_v_mem": None,
        }  # fmt: skip
        if layer.beta == 1.0:
            self.layer: nn.Module = sl.IAF(**common)
        else:
            self.layer = sl.LIF(tau_mem=-1.0 / math.log(layer.beta), norm_input=False, **common)

    def forward(self, current: Tensor) -> Tensor:
        """One step."""
        return self.layer(current.unsqueeze(1)).squeeze(1)


def _whole(population: Any, currents: Tensor) -> Tensor:
    return population.layer(currents.transpose(0, 1).contiguous()).transpose(0, 1)


def prepare(net: Net) -> Callable[[Any], np.ndarray]:
    """A function from samples to output counts."""
    return torch_net.prepare(net, _Population, lambda population: population.layer.reset_states(), _whole)
