"""The float network beside one that is being trained to do the same: what it answers, and how active its populations are.

It sees every batch as the other does, with the same spikes left out: a teacher that always answers as for the whole input would
ask for what cannot be seen any more (Beyer et al., CVPR 2022). Hidden populations are compared by their rates, sample by sample
(hints, Romero et al., ICLR 2015): they tell a layer what it is to do where labels and answers leave it open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spikec.ir.graph import Graph

#: The least spread of rates, squared: of a population that hardly fires.
_LEAST = 1e-6


class Teacher:
    """A float graph that answers for batches.

    populations: those whose rates are told; see `comparable`. build: compiles C, for speed (`spikec.frontend.nn.native`).
    """

    def __init__(self, graph: Graph, populations: tuple[str, ...], build: Any = None) -> None:
        from spikec.frontend.nn.graph_module import GraphModule

        self.graph, self.populations = graph, populations
        self._module = GraphModule(graph, build=build)

    def __call__(self, batch: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The first output (batch, T, classes) for inputs (batch, T, *shape) by name, and rates (batch, neurons) by population."""
        import torch

        with torch.no_grad():
            found = self._module(batch, self.populations)
        return found[self.graph.outputs[0][0]].flatten(2), {name: _rates(found[name]) for name in self.populations}

    def answers(self, inputs: Mapping[str, Any], size: int) -> Any:
        """The first output (samples, T, classes) for any number of samples, so many at a time."""
        import torch

        count = len(next(iter(inputs.values())))
        starts = range(0, count, size)
        return torch.cat([self({name: value[k : k + size] for name, value in inputs.items()})[0] for k in starts])

    def distance(self, rates: Mapping[str, Any], found: Mapping[str, Any]) -> Any:
        """How far the populations of the other network are from the rates told, as a share of what these vary among the samples.

        found: what they sent, (batch, T, *shape) by name. The mean of all populations, of the squared difference.
        """
        parts = []
        for name in self.populations:
            wanted = rates[name]
            spread = wanted.var(0, unbiased=False).mean().clamp_min(_LEAST)
            parts.append((_rates(found[name]) - wanted).square().mean() / spread)
        return sum(parts) / len(parts)


def _rates(sent: Any) -> Any:
    return sent.flatten(2).mean(1)


def comparable(whole: Graph, *others: Graph) -> tuple[str, ...]:
    """Populations that send spikes and have the same neurons in all graphs."""

    def alike(name: str, graph: Graph) -> bool:
        if name not in graph or graph[name].op != "neuron":
            return False
        type_ = graph.types[name][0][1]
        return type_.kind == "spike" and type_.shape == whole.shape_of(name)

    return tuple(node.name for node in whole.neurons if all(alike(node.name, graph) for graph in (whole, *others)))
