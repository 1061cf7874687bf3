"""What every contender gets: one network as arrays, in a file. Imports nothing but NumPy: contenders run in an environment of their
own, without spikec.

Every neuron: i = alpha i + x (no such line where alpha is None), v = beta v + i + bias, it fires if v >= theta, and then v = 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class Skip(Exception):
    """A tool cannot run this network as it is; the message says why."""


@dataclass
class Layer:
    """Connections and a population. weight (out, in) or (out, in, kernel, kernel); pool: a sum over so large tiles comes first;
    recurrent (out, out): from the population's spikes of the step before."""

    weight: np.ndarray
    beta: float
    theta: np.ndarray
    alpha: float | None = None
    bias: np.ndarray | None = None
    recurrent: np.ndarray | None = None
    stride: int = 1
    padding: int = 0
    pool: int = 1

    @property
    def conv(self) -> bool:
        """Whether it is a convolution."""
        return self.weight.ndim == 4


@dataclass
class Net:
    """x (samples, T, *shape) of 0 and 1, None where nothing arrives; counts (samples, outputs): spikes that a float simulation
    gives. `sparse` is the network of random connections (W4): targets and weights (neurons, fan-out), bias, v0, beta, theta.
    `path`: the file that it was read from."""

    name: str
    steps: int
    counts: np.ndarray
    x: np.ndarray | None = None
    layers: list[Layer] = field(default_factory=list)
    sparse: dict[str, Any] | None = None
    path: Path | None = None

    def save(self, path: Path) -> None:
        """To an .npz."""
        arrays: dict[str, Any] = {"counts": self.counts}
        if self.x is not None:
            arrays["x"] = np.packbits(self.x.astype(np.uint8))
        told: dict[str, Any] = {
            "name": self.name,
            "steps": self.steps,
            "shape": None if self.x is None else self.x.shape,
            "layers": [],
        }
        for number, layer in enumerate(self.layers):
            row = {}
            for key, value in vars(layer).items():
                if isinstance(value, np.ndarray):
                    arrays[f"{number}.{key}"] = value
                else:
                    row[key] = value
            told["layers"].append(row)
        if self.sparse is not None:
            arrays |= {f"sparse.{key}": np.asarray(value) for key, value in self.sparse.items()}
        np.savez(path, told=json.dumps(told), **arrays)

    @classmethod
    def load(cls, path: Path) -> Net:
        """From an .npz."""
        data = dict(np.load(path))
        told = json.loads(str(data.pop("told")))
        x = None
        if told["shape"] is not None:
            x = np.unpackbits(data["x"], count=int(np.prod(told["shape"]))).reshape(told["shape"])
        layers = []
        for number, row in enumerate(told["layers"]):
            own = {key.split(".")[1]: value for key, value in data.items() if key.startswith(f"{number}.")}
            layers.append(Layer(**{**row, **own}))
        sparse = {key.split(".")[1]: value for key, value in data.items() if key.startswith("sparse.")} or None
        return cls(told["name"], told["steps"], data["counts"], x, layers, sparse, path)

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape in front of each layer (before its pool), then that of the last population."""
        assert self.x is not None
        shape: tuple[int, ...] = tuple(self.x.shape[2:])
        found = [shape]
        for layer in self.layers:
            if layer.pool > 1:
                shape = (shape[0], shape[1] // layer.pool, shape[2] // layer.pool)
            if layer.conv:
                out = [(n + 2 * layer.padding - layer.weight.shape[2]) // layer.stride + 1 for n in shape[1:]]
                shape = (layer.weight.shape[0], *out)
            else:
                shape = (layer.weight.shape[0],)
            found.append(shape)
        return found


def connections(layer: Layer, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pool and convolution as lists: input i feeds target[start[i]:start[i + 1]] with these weights."""
    channels, height, width = shape
    out, _, kernel, _ = layer.weight.shape
    rows = (height // layer.pool + 2 * layer.padding - kernel) // layer.stride + 1
    columns = (width // layer.pool + 2 * layer.padding - kernel) // layer.stride + 1
    targets, weights, start = [], [], [0]
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                count = 0
                for ky in range(kernel):
                    for kx in range(kernel):
                        ty, tx = y // layer.pool + layer.padding - ky, x // layer.pool + layer.padding - kx
                        if ty % layer.stride or tx % layer.stride:
                            continue
                        ty, tx = ty // layer.stride, tx // layer.stride
                        if 0 <= ty < rows and 0 <= tx < columns:
                            targets.append(np.arange(out) * rows * columns + ty * columns + tx)
                            weights.append(layer.weight[:, c, ky, kx])
                            count += out
                start.append(start[-1] + count)
    return np.concatenate(targets).astype(np.int32), np.concatenate(weights), np.array(start, np.int64)
