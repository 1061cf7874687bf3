"""Small graphs and builds for the tests of the driver and the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import spikec
from spikec.build import Build
from spikec.ir.graph import Graph
from spikec.ir.types import Array
from spikec.target import FOLDER

TINY = """sir 1

neuron @lif(a) params(beta, theta) state(v = 0) {
  v = beta * v + a
  s = v > theta
  v = select(s, 0, v)
  emit s
}

graph @tiny level=float dt=1ms {
  %in = input : spike<3>
  %fc1 = dense(%in) weight=[[0.5, 0.25, 0.0], [1.0, -1.0, 0.5]] : value<2> loc("net.py":3 net.fc1)
  %lif1 = neuron @lif(%fc1) beta=0.5 theta=0.75 : spike<2> loc("net.py":4 net.lif1)
  %fc2 = dense(%lif1) weight=[[1.0, 0.5], [-0.5, 1.0]] : value<2> loc("net.py":5 net.fc2)
  %lif2 = neuron @lif(%fc2) beta=0.75 theta=0.5 : spike<2> loc("net.py":6 net.lif2)
  output out = %lif2
}
"""


def tiny() -> Graph:
    """Two layers of two neurons; weights and thresholds are dyadic, decays too."""
    return spikec.parse_graph(TINY)


def spikes(samples: int = 4, steps: int = 10, width: int = 3, seed: int = 0) -> Array:
    """Random spikes (samples, steps, width)."""
    return np.random.default_rng(seed).integers(0, 2, (samples, steps, width)).astype(np.int8)


def fixed_target(folder: Path) -> str:
    """Loihi 2's passes and numbers, run by the reference: a target file, so that no vendor tool is needed."""
    text = (FOLDER / "loihi2.toml").read_text(encoding="utf-8")
    text = text.replace('name = "loihi2"', 'name = "loihi2-reference"').replace('backend = "lava"', 'backend = "reference"')
    path = folder / "loihi2-reference.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def fixed_build(folder: Path) -> Build:
    """The tiny net in Loihi 2's integers."""
    return spikec.compile(tiny(), target=fixed_target(folder), calibrate=spikes(20))
