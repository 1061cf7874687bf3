"""Reading and writing NIR, the Neuromorphic Intermediate Representation (release 1.0.8, every primitive).

NIR states equations in continuous time; a graph runs in steps. What lies between the two is an option here, and the choice is told:

| option | default | else |
|---|---|---|
| dt | from the file's metadata; needed where something is in seconds | seconds of one step |
| scheme | "euler": a state keeps 1 - dt/tau, input enters with dt/tau | "exponential": keeps exp(-dt/tau), input with dt/tau |
| | | "exact": keeps exp(-dt/tau), input enters with 1 - exp(-dt/tau) |
| compare | ">": a neuron spikes above its threshold | ">=" |
| reset | "v_reset": v becomes v_reset in the step of the spike | "zero"; "subtract": v loses v_threshold - v_reset |
| current | "new": v of a Cuba neuron sees the current of the same step | "old": of the step before |
| integrator | "step": I and IF add r x every step | "seconds": dt r x |
| initial | "zero": v begins at 0 | "v_leak" |
| recurrent | "feedback": one edge of a loop is read a step later | "spikes": every edge from a spiking neuron within a cycle is |
| input_kind | "spike": 0 or 1 | "graded", "value" |

"exponential" with reset="subtract" is what sinabs and Rockpool compute. Under every scheme v comes to rest at v_leak. Several edges
into a node are a sum, in natural order of their names. A parameter that all neurons share becomes a scalar, which does not widen
the arithmetic (a float64 threshold leaves float32 weights their float32 sums). A zero bias of a convolution is left out.

"feedback" is defined by dominance: an edge leads back if every way from the inputs passes its target first. The delay goes
upstream from there, to the edge that leaves the neuron, so that a bias of the recurrent weights counts from step 0 on. A cycle
with a Delay of a step or more gets no further delay; one that can be entered at two places is refused.

`write_nir` leaves these choices in the metadata of what it writes (`spikec_scheme` and so on), and `read_nir` follows them, so that
reading back gives the same graph.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final, Literal

from spikec.diagnostics import CompileError
from spikec.frontend.nir.neurons import Scheme
from spikec.frontend.nir.read import Reading, load, read
from spikec.frontend.registry import Support
from spikec.ir.graph import Graph
from spikec.ledger import Ledger

VERSION: Final = "1.0.8"
SUPPORT: Final = (
    *(Support(name, "", "exact") for name in ("Input, Output", "NIRGraph", "Affine, Linear", "Scale", "Flatten")),
    Support("Conv1d, Conv2d", "stride, padding, dilation, groups", "exact"),
    Support("Conv1d, Conv2d", "padding=same with a stride", "refused", "NIR does not define it: write numbers"),
    Support("SumPool2d, AvgPool2d", "", "exact"),
    *(Support(name, "scheme, compare, reset, initial", "exact", "to the chosen scheme") for name in ("LIF", "CubaLIF")),
    Support("LI, CubaLI", "scheme, initial", "exact", "to the chosen scheme"),
    Support("CubaLI, CubaLIF", "current", "exact"),
    Support("I, IF", "integrator", "exact"),
    Support("Threshold", "compare", "exact"),
    Support("Delay", "whole steps", "exact"),
    Support("Delay", "other delays", "refused", "round_delays=true rounds them"),
    Support("Delay", "round_delays", "approximate", "rounded to whole steps"),
    Support("edges", "cycles, several into a node, in any order", "exact", "recurrent= says where a loop is read a step later"),
    Support("edges", "a loop that can be entered at two places", "refused", "put a Delay into it"),
)
#: Options of `read_nir` that the driver passes on, beside name, dt and ledger.
OPTIONS = ("scheme", "compare", "reset", "current", "integrator", "initial", "recurrent", "input_kind", "round_delays")


def read_nir(
    source: str | os.PathLike[str] | Any,
    *,
    dt: float | None = None,
    scheme: Scheme | None = None,
    compare: Literal[">", ">="] | None = None,
    reset: Literal["v_reset", "zero", "subtract"] | None = None,
    current: Literal["new", "old"] | None = None,
    integrator: Literal["step", "seconds"] | None = None,
    initial: Literal["zero", "v_leak"] | None = None,
    recurrent: Literal["feedback", "spikes"] | None = None,
    input_kind: Literal["spike", "graded", "value"] | None = None,
    round_delays: bool = False,
    name: str | None = None,
    ledger: Ledger | None = None,
) -> tuple[Graph, list[str]]:
    """A verified float graph from a `.nir` file or a nir.NIRGraph, and the conventions used, as sentences.

    An option that is None follows the file's own metadata, else the default in this module's table. round_delays: a Delay that is
    no whole number of steps is rounded, an approximation, instead of refused. name: of the graph (default: the file's). ledger:
    the conventions and approximations are recorded in it.

    Raises CompileError: SPK001 a missing dt or a bad option, SPK002 no file, SPK003 a damaged or malformed file (all problems of
    its structure at once), SPK101 and SPK102 what is not in NIR or has no meaning here, SPK305 not finite, SPK306 delays,
    SPK307 cycles, SPK309 shapes.
    """
    if not isinstance(round_delays, bool):
        raise CompileError("SPK001", f"round_delays is true or false, not {round_delays!r}")
    tree, file = load(source)
    conventions = {
        "scheme": scheme,
        "compare": compare,
        "reset": reset,
        "current": current,
        "integrator": integrator,
        "initial": initial,
        "recurrent": recurrent,
        "input_kind": input_kind,
    }
    stem = re.sub(r"[^A-Za-z0-9_.]+", "_", Path(file).stem).lstrip(".")
    return read(tree, file, Reading(dt, conventions, round_delays), name or stem or "nir", ledger)


def load_nir(path: Path, *, name: str | None, dt: float | None, ledger: Ledger, **options: Any) -> Graph:
    """`read_nir` as the driver calls it: the graph alone; the conventions go into the ledger."""
    return read_nir(path, name=name, dt=dt, ledger=ledger, **options)[0]


def write_nir(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    dt: float | None = None,
    scheme: Scheme | None = None,
    ledger: Ledger | None = None,
) -> None:
    """Write a float graph as a `.nir` file.

    dt: seconds of one step where the graph does not say. scheme: under which tau, r and v_leak are computed from the graph's
    decays; None is the one under which a neuron was read, "euler" for neurons of other origin. Those are matched to NIR's models
    up to algebra. How far rounding moves a number, which it does not under the scheme of reading, is recorded in the ledger.

    Raises CompileError with everything that NIR cannot say: SPK201 neurons, SPK202 operations, SPK001 a missing dt; SPK008, SPK009.
    """
    from spikec.frontend.nir.file import write_tree
    from spikec.frontend.nir.write import tree_of

    write_tree(tree_of(graph, dt, scheme, ledger), Path(path))
