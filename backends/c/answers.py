"""Early answers in C: the margins of a cutoff as the emitted `cutoff.h`, which `main.c --answers` goes by."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from spikec.backends.c.parts import Network
from spikec.cutoff import Cutoff
from spikec.ir.graph import Graph
from spikec.ir.types import Array
from spikec.score import scored_output

#: A lead that no output has.
_NEVER: Final = (1 << 63) - 1
_WIDTH: Final = 16


def whole_margins(margins: Array) -> list[int]:
    """Leads of whole numbers that suffice where these do."""
    return [_NEVER if margin > _NEVER else math.ceil(margin) for margin in margins]


def cutoff_header(graph: Graph, network: Network, cutoff: Cutoff | None) -> str:
    """cutoff.h: which output answers, and the lead that suffices after each step. Without a cutoff none does before the last."""
    name = cutoff.output if cutoff is not None else scored_output(graph) if graph.outputs else ""
    port = network.output(name) if name else 0
    table = [_NEVER] if cutoff is None else whole_margins(np.atleast_1d(np.asarray(cutoff.margin, np.float64)))
    told = [str(margin) if margin < _NEVER else "INT64_MAX" for margin in table]
    rows = [", ".join(told[k : k + _WIDTH]) for k in range(0, len(told), _WIDTH)]
    why = "there is no cutoff: answers come with the last step" if cutoff is None else f"from {cutoff.asked}"
    return (
        "/* cutoff.h - when an answer is clear: the lead of the largest sum over the next that suffices after each step, the last\n"
        f" * one for all that follow; see answer.h. Written by spikec; {why}. */\n"
        "#ifndef SPK_CUTOFF_H\n#define SPK_CUTOFF_H\n#include <stdint.h>\n\n"
        f"#define SPK_ANSWER_PORT {port}u\n#define SPK_MARGINS {len(table)}u\n"
        f"static const int64_t spk_margin[SPK_MARGINS] = {{\n  " + ",\n  ".join(rows) + "\n};\n#endif\n"
    )
