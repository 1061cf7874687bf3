"""spikec's NumPy engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import spikec_engine
from network import Net

TITLE = "spikec, NumPy"
BATCHES = True


def prepare(net: Net) -> Callable[[Any], np.ndarray]:
    """A function from samples to output counts."""
    return spikec_engine.prepare(net, "numpy")
