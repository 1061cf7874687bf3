"""spikec: a hardware-first neuromorphic compiler.

    import spikec

    build = spikec.compile(model, example_input, target="loihi2", calibrate=x)
    result = build.run(x, backend="c", record="all")

Names are loaded when they are first used: `import spikec` itself loads nothing but this file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spikec.version import __version__

if TYPE_CHECKING:
    from spikec import nn as nn
    from spikec.backend import BACKENDS as BACKENDS
    from spikec.build import Build as Build
    from spikec.build import load as load
    from spikec.diagnostics import CODES as CODES
    from spikec.diagnostics import CompileError as CompileError
    from spikec.diagnostics import Diagnostic as Diagnostic
    from spikec.diagnostics import Loc as Loc
    from spikec.diagnostics import PassBug as PassBug
    from spikec.driver import compile as compile
    from spikec.driver import trace as trace
    from spikec.frontend.registry import register_neuron as register_neuron
    from spikec.ir.graph import Graph as Graph
    from spikec.ir.interpret import interpret as interpret
    from spikec.ir.text import parse_graph as parse_graph
    from spikec.ir.text import parse_program as parse_program
    from spikec.ir.text import read_graph as read_graph
    from spikec.ir.text import write_graph as write_graph
    from spikec.ledger import Ledger as Ledger
    from spikec.recovery import recover as recover
    from spikec.result import Result as Result
    from spikec.target import Target as Target
    from spikec.target import load_target as load_target
    from spikec.target import target_names as target_names
    from spikec.tuning import Tuning as Tuning
    from spikec.tuning import tune as tune
    from spikec.verification import Verification as Verification

#: Public name -> the module that defines it.
_HOME = {
    "BACKENDS": "spikec.backend",
    "Build": "spikec.build",
    "CODES": "spikec.diagnostics",
    "CompileError": "spikec.diagnostics",
    "Diagnostic": "spikec.diagnostics",
    "Graph": "spikec.ir.graph",
    "Ledger": "spikec.ledger",
    "Loc": "spikec.diagnostics",
    "PassBug": "spikec.diagnostics",
    "Result": "spikec.result",
    "Target": "spikec.target",
    "Tuning": "spikec.tuning",
    "Verification": "spikec.verification",
    "compile": "spikec.driver",
    "interpret": "spikec.ir.interpret",
    "load": "spikec.build",
    "load_target": "spikec.target",
    "parse_graph": "spikec.ir.text",
    "parse_program": "spikec.ir.text",
    "read_graph": "spikec.ir.text",
    "recover": "spikec.recovery",
    "register_neuron": "spikec.frontend.registry",
    "target_names": "spikec.target",
    "trace": "spikec.driver",
    "tune": "spikec.tuning",
    "write_graph": "spikec.ir.text",
}

__all__ = ["__version__", "nn", *_HOME]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name == "nn":
        return import_module("spikec.nn")
    if name not in _HOME:
        raise AttributeError(f"module 'spikec' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), "nn", *_HOME})
