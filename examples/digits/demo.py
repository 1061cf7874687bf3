"""A trained snnTorch network on four engines: compile it for Loihi 2, run the held-out digits, count what differs.

    python examples/digits/demo.py [--lava 100] [--output build/digits]

Exit status 1 if a spike or a final state differs between two engines, if the float graph does not spike as snnTorch does, or if eight
bits cost more than half a point of accuracy.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import data
import model
import numpy as np
import torch
from numpy.typing import NDArray

import spikec
from spikec.backends.lava import environment
from spikec.ir.interpret import Interpreter
from spikec.progress import Bar

Array = NDArray[Any]
ENGINES = ("reference", "numpy", "c", "lava")
ALLOWED_LOSS = 0.5
"""Points of accuracy that eight bits may cost."""


def accuracy(spikes: Array, labels: Array) -> float:
    """Per cent of digits whose class fired most often; spikes (N, T, 10). The first of several equals counts."""
    return 100 * float(np.mean(spikes.sum(axis=1).argmax(axis=1) == labels))


def same_samples(result: spikec.Result, count: int) -> tuple[dict[str, Array], dict[tuple[str, str], Array]]:
    """Outputs and recorded spikes, and final states, of the first samples of a run."""
    spikes = {**result.records, **{f"output {name}": array for name, array in result.outputs.items()}}
    states = {(node, name): array for node, found in result.states.items() for name, array in found.items()}
    return {k: v[:count] for k, v in spikes.items()}, {k: v[:count] for k, v in states.items()}


def mismatches(result: spikec.Result, reference: spikec.Result) -> tuple[int, int]:
    """How many spikes (of all layers) and final states differ from the reference's."""
    count = next(iter(result.outputs.values())).shape[0]
    (spikes, states), (wanted_spikes, wanted_states) = same_samples(result, count), same_samples(reference, count)
    assert spikes.keys() == wanted_spikes.keys() and states.keys() == wanted_states.keys()
    return (
        sum(int(np.count_nonzero(spikes[k] != wanted_spikes[k])) for k in spikes),
        sum(int(np.count_nonzero(states[k] != wanted_states[k])) for k in states),
    )


def main(arguments: list[str]) -> int:
    """Print the table; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lava", type=int, default=100, metavar="N", help="digits to run on Lava; default 100")
    parser.add_argument("--output", type=Path, default=Path("build/digits"), help="the build folder")
    options = parser.parse_args(arguments)
    raise NotImplementedError
