"""What the contenders on PyTorch have in common: layers, a loop over steps, one core, no gradients. The neurons are the tool's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from network import Layer, Net, Skip
from torch import nn


class Block(nn.Module):
    """Pool, connections, synaptic current; then the tool's population."""

    def __init__(self, layer: Layer, neuron: nn.Module) -> None:
        super().__init__()
        out, inner = layer.weight.shape[:2]
        if layer.conv:
            kernel = layer.weight.shape[2]
            self.weigh: nn.Module = nn.Conv2d(inner, out, kernel, layer.stride, layer.padding, bias=layer.bias is not None)
        else:
            self.weigh = nn.Linear(inner, out, bias=layer.bias is not None)
        self.weigh.weight.data = torch.tensor(layer.weight)
        if layer.bias is not None:
            self.weigh.bias.data = torch.tensor(layer.bias)
        self.pool = nn.AvgPool2d(layer.pool, divisor_override=1) if layer.pool > 1 else None
        self.back = None
        if layer.recurrent is not None:
            self.back = nn.Linear(out, out, bias=False)
            self.back.weight.data = torch.tensor(layer.recurrent)
        self.flat, self.alpha = not layer.conv, layer.alpha
        self.neuron = neuron

    def products(self, x: torch.Tensor) -> torch.Tensor:
        """What arrives from the layer before."""
        if self.pool is not None:
            x = self.pool(x)
        if self.flat:
            x = x.flatten(1)
        found: torch.Tensor = self.weigh(x)
        return found

    def current(self, x: torch.Tensor, before: torch.Tensor | None, i: torch.Tensor | None) -> torch.Tensor:
        """The sum that the population gets, from what arrives."""
        if self.back is not None and before is not None:
            x = x + self.back(before)
        if self.alpha is not None and i is not None:
            x = self.alpha * i + x
        return x

    def steps(self, arrives: torch.Tensor, fire: Callable[[torch.Tensor], torch.Tensor] | None) -> torch.Tensor:
        """Step by step, arrives (T, batch, ...): spikes, or without `fire` the sums that the population would get."""
        before = None
        i = torch.zeros(()) if self.alpha is not None else None
        found = torch.empty_like(arrives)
        for t in range(len(arrives)):
            i = self.current(arrives[t], before, i)
            before = found[t] = i if fire is None else fire(i)
        return found


def prepare(
    net: Net,
    make: Callable[[Layer], nn.Module],
    reset: Callable[[nn.Module], None],
    whole: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None,
) -> Callable[[Any], np.ndarray]:
    """A function from samples to counts; `make` gives a module that maps a step's current to spikes and keeps its membrane.

    whole: what such a module does with the currents of all steps, (T, batch, ...), for tools that have it. Then the network runs
    layer by layer, else step by step.
    """
    if net.sparse is not None:
        raise Skip("a dense matrix of 50,000 x 50,000 does not fit; it has no sparse synapses")
    torch.set_num_threads(1)
    blocks = nn.ModuleList(Block(layer, make(layer)) for layer in net.layers)

    def layers(x: torch.Tensor) -> torch.Tensor:
        for block in blocks:
            steps, batch = x.shape[:2]
            arrives = block.products(x.reshape(steps * batch, *x.shape[2:]))
            arrives = arrives.reshape(steps, batch, *arrives.shape[1:])
            if block.back is not None:
                x = block.steps(arrives, block.neuron)
            else:
                assert whole is not None
                x = whole(block.neuron, arrives if block.alpha is None else block.steps(arrives, None))
        return x.sum(0).flatten(1)

    @torch.no_grad()
    def run(x: np.ndarray) -> np.ndarray:
        frames = torch.from_numpy(x).float()
        for block in blocks:
            reset(block.neuron)
        if whole is not None:
            return layers(frames.transpose(0, 1)).numpy().astype(np.int64)
        before: list[Any] = [None] * len(blocks)
        current: list[Any] = [None] * len(blocks)
        counts: Any = 0
        for t in range(frames.shape[1]):
            s = frames[:, t]
            for k, block in enumerate(blocks):
                if block.alpha is not None and current[k] is None:
                    current[k] = torch.zeros(())
                current[k] = block.current(block.products(s), before[k], current[k])
                s = before[k] = block.neuron(current[k])
            counts = counts + s.flatten(1)
        return counts.numpy().astype(np.int64)

    return run


def scalar(layer: Layer) -> float:
    """The one threshold of a layer."""
    return float(np.asarray(layer.theta).flat[0])
