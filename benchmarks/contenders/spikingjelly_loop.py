"""SpikingJelly: `LIFNode` and `IFNode` over all steps (step by step in a recurrent layer), hard reset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch_net
from network import Layer, Net
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

TITLE = "SpikingJelly"
BATCHES = True


def _make(layer: Layer) -> nn.Module:
    theta = torch_net.scalar(layer)
    if layer.beta == 1.0:
        node: nn.Module = neuron.IFNode(v_threshold=theta, v_reset=0.0)
    else:
        node = neuron.LIFNode(tau=1.0 / (1.0 - layer.beta), decay_input=False, v_threshold=theta, v_reset=0.0)
    return node.eval()


def _whole(node: Any, currents: Tensor) -> Tensor:
    node.step_mode = "m"
    return node(currents)


def prepare(net: Net) -> Callable[[Any], np.ndarray]:
    """A function from samples to output counts."""
    return torch_net.prepare(net, _make, functional.reset_net, _whole)
