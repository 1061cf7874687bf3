"""Reductions over time: programs whose value after the last step is the answer.

The tracer writes a model's `mean` over its steps as one, and passes know them again.
"""

from __future__ import annotations

from typing import Final

from spikec.ir.neuron import STEP, Assign, Emit, Program, State, Var, call

_X, _V, _T = Var("x"), Var("v"), Var(STEP)
#: By name in torch: sum, mean, max, min.
REDUCTIONS: Final[dict[str, Program]] = {
    "sum": Program("running_sum", ("x",), (), (State("v"),), (Assign("v", _V + _X),), (Emit("v", "value"),)),
    "mean": Program(
        "running_mean",
        ("x",),
        (),
        (State("v"),),
        (Assign("v", _V + _X), Assign("m", _V / (_T + 1))),
        (Emit("m", "value"),),
    ),
    "max": Program(
        "running_max",
        ("x",),
        (),
        (State("v"),),
        (Assign("v", call("select", call("==", _T, 0), _X, call("max", _V, _X))),),
        (Emit("v", "value"),),
    ),
    "min": Program(
        "running_min",
        ("x",),
        (),
        (State("v"),),
        (Assign("v", call("select", call("==", _T, 0), _X, call("min", _V, _X))),),
        (Emit("v", "value"),),
    ),
}
