"""Small graphs for tests: programs, nodes and a few shapes of network."""

from __future__ import annotations

from typing import Any

import numpy as np

from spikec.ir.graph import Graph
from spikec.ir.neuron import Program
from spikec.ir.ops import Dense, Input, Neuron, Node, Ref
from spikec.ir.text import parse_graph, parse_program
from spikec.ir.types import Array, TensorType
from spikec.target import load_target

F = np.float32

LEAKY = parse_program("""neuron @leaky(x) params(beta, theta) state(v = 0) {
  v = beta * v + x
  s = v > theta
  v = select(s, 0, v)
  emit s, v
}""")


def native(name: str) -> Program:
    """A native program of the loihi2 target in integers, by its name."""
    found = next(item for item in load_target("loihi2").neurons if item.name == name)
    return parse_program(found.fixed)


def sir(body: str, programs: str = "", level: str = "float") -> Graph:
    """A graph from the lines between the braces."""
    return parse_graph(f"sir 1\n{programs}\ngraph @g level={level} {{\n{body}\n}}\n")


def graph(*nodes: Node, out: Any = None, level: str = "float", dt: float | None = None) -> Graph:
    """A graph whose outputs are pairs, names of nodes, or the last node."""
    chosen = [nodes[-1].name] if out is None else out
    pairs = tuple((item, Ref(item)) if isinstance(item, str) else item for item in chosen)
    return Graph("g", level, nodes, pairs, dt)


def spikes(shape: tuple[int, ...], name: str = "in", dtype: str = "f32") -> Input:
    return Input(name=name, type=TensorType("spike", shape, dtype))


def values(shape: tuple[int, ...], name: str = "in", dtype: str = "f32") -> Input:
    return Input(name=name, type=TensorType("value", shape, dtype))


def dense(name: str, source: Ref | str, weight: Any, bias: Any = None, **more: Any) -> Dense:
    ref = Ref(source) if isinstance(source, str) else source
    return Dense(name=name, inputs=(ref,), weight=np.asarray(weight), bias=None if bias is None else np.asarray(bias), **more)


def leaky(name: str, source: Ref | str, beta: Any = 0.5, theta: Any = 1.0, **more: Any) -> Neuron:
    ref = Ref(source) if isinstance(source, str) else source
    return Neuron(
        name=name, inputs=(ref,), program=LEAKY, params={"beta": np.asarray(beta, F), "theta": np.asarray(theta, F)}, **more
    )


def random_spikes(shape: tuple[int, ...], seed: int = 0, density: float = 0.4) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.random(shape) < density).astype(F)
