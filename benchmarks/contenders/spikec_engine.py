"""What `spikec_c` and `spikec_numpy` share: the build that the benchmark compiled, run from Python as a user runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from network import Net

from spikec.build import Build
from spikec.ir.text import read_graph
from spikec.ledger import Ledger
from spikec.pipeline import Stage
from spikec.target import load_target


def prepare(net: Net, backend: str, **options: Any) -> Callable[[Any], np.ndarray]:
    """A function from samples (batch, T, *shape) to output counts (batch, outputs)."""
    assert net.path is not None
    graph = read_graph(net.path.with_name(f"{net.path.stem}-graph.sir"))
    build = Build([Stage("network", graph, 0.0)], Ledger(), load_target("host"), "", {})

    def run(x: Any) -> np.ndarray:
        result = build.run(x, backend, **options) if x is not None else build.run(steps=net.steps, backend=backend, **options)
        spikes = next(iter(result.outputs.values()))  # the digits network shows its membranes as well
        return np.asarray(spikes.sum(1)).reshape(len(spikes), -1)

    return run
