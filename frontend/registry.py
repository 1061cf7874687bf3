"""Neuron modules that the tracer takes as a whole: the table of frameworks, and the user's own.

A `Leaf` says which program a module runs and how its `forward` is called. Frameworks are named by string and imported
only when one of their modules is met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, Literal, Protocol

from spikec.diagnostics import CompileError
from spikec.ir.neuron import Program
from spikec.ir.types import Array
from spikec.options import typed

#: A variable of the program, or several that travel together, as in a state tuple.
Names = str | tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Synapse:
    """A connection inside a neuron module, from a variable of the step before to one of the program's inputs.

    source: the variable; zero before the first step, unless the call or a hidden attribute gives it.
    through: what it goes through on the way; it is called on the variable's tensor, and recorded.
    """

    source: str
    through: Callable[[Any], Any]


class StepCall(Protocol):
    """What a framework's function of one step is replaced by."""

    def __call__(
        self, inputs: Mapping[str, Any], states: Mapping[str, Any], run: Callable[[], tuple[Any, Mapping[str, Any]]]
    ) -> Any:
        """Record one step of the leaf's program, tensors by the program's names.

        run: does the framework's own step, and gives its result and the tensors in it (or in the states) by the variable.
        """


@dataclass(frozen=True, eq=False)
class Leaf:
    """How one neuron module computes.

    program: what it does each step; its emissions may be any of its variables, the tracer keeps those that are used.
    params: arrays that broadcast against one step of the module's input as in torch (trailing axes aligned).
    arguments: the program's input and state names in the order of `forward`'s arguments; states may be left out in the call.
    returns: the variables that `forward` returns; one alone is a tensor and not a tuple. A tuple of names, here and in
    arguments, is a tuple of tensors.
    hidden: state name -> the module's attribute that holds it between calls.
    general: the program to use instead where a state does not begin at zero.
    synapses: program input -> the connection inside the module that feeds it; it is no argument of `forward`.
    time_axis: `forward` itself does all steps, along this axis of its inputs and of what it returns; a tuple of names in
    returns is then the state after the last step. None: one step a call.
    history: variable -> the module's attribute that collects it, all steps along axis 0 (of every call, where a call is a step).
    step: for a module whose `forward` is followed like any code, but for the framework's function of one step in it: `forward`
    runs in the context `step(module, call)`, in which that function goes through `call`, which may give any variable of `returns`.
    """

    program: Program
    params: Mapping[str, Array]
    arguments: tuple[Names, ...] = ()
    returns: tuple[Names, ...] = ()
    hidden: Mapping[str, str] = field(default_factory=dict)
    general: Program | None = None
    #: A state of another shape than the input begins anew, as in snnTorch.
    mismatch_resets: bool = False
    synapses: Mapping[str, Synapse] = field(default_factory=dict)
    time_axis: int | None = None
    history: Mapping[str, str] = field(default_factory=dict)
    step: Callable[[Any, StepCall], AbstractContextManager[None]] | None = None


@dataclass(frozen=True)
class Support:
    """One row of the support table (docs/support.md): what becomes of a module, or of one option of it.

    module: its name in the framework. option: the option and its values, or "" for the module as such.
    status: "exact" (equal spikes where every number is exact), "approximate" (`note` and the ledger say what differs) or "refused"
    (`note` says why and what to do). A framework's module lists its rows as SUPPORT and the version it was tested with as VERSION.
    """

    module: str
    option: str
    status: Literal["exact", "approximate", "refused"]
    note: str = ""


#: Python package of a framework -> "module:function" that gives the Leaf of a module, or None where it has none. The module may
#: also have `reset(module)`, which forgets the states of the copy that is traced, `isolated(model)`, a context for the run,
#: `copying()`, one for the copy, and `inside(operator)`: a function that does in torch's own operations what an operator does that
#: the framework registers with torch.
FRAMEWORKS: Final[dict[str, str]] = {
    "snntorch": "spikec.frontend.snntorch:leaf_of",
    "norse": "spikec.frontend.norse:leaf_of",
    "spikingjelly": "spikec.frontend.spikingjelly:leaf_of",
    "sinabs": "spikec.frontend.sinabs:leaf_of",
    "spikec": "spikec.frontend.nn.table:leaf_of",
}

LeafMaker = Callable[[Any], Leaf]
_registered: dict[type, LeafMaker] = {}


@typed(module_class="class")
def register_neuron(module_class: type, program: Program | str | Callable[[Any], Leaf | Program]) -> None:
    """Trace every module of this class as one neuron that runs `program`.

    program: a `Program`, its `.sir` text, or a function from the module to a Program or a Leaf (for parameters that need
    computing). Unless a Leaf says otherwise, `forward` takes the program's inputs and then, if given, its states; it returns the
    first emission, or a tuple of all emissions and then of the states that are not among them. Parameters, and states that
    the module keeps itself, are the module's attributes of the same names. Raises CompileError SPK301 or SPK302 for a bad program.
    """
    if isinstance(program, str):
        from spikec.ir.text import parse_program

        program = parse_program(program)
    if not isinstance(program, Program) and not callable(program):
        raise CompileError("SPK001", f"program is a Program, its text or a function that gives one, not {program!r}")
    fixed = program

    def make(module: Any) -> Leaf:
        made = fixed(module) if callable(fixed) else fixed
        return made if isinstance(made, Leaf) else _leaf_from_attributes(module, made)

    _registered[module_class] = make


def _leaf_from_attributes(module: Any, program: Program) -> Leaf:
    import torch

    params = {}
    for name in program.params:
        if not hasattr(module, name):
            raise CompileError("SPK302", f"@{program.name}: {type(module).__name__} has no attribute '{name}'")
        params[name] = torch.as_tensor(getattr(module, name)).detach().cpu().numpy()
    emitted = [emit.name for emit in program.emits]
    hidden = {name: name for name in program.state_names if hasattr(module, name)}
    rest = [name for name in program.state_names if name not in emitted and name not in hidden]
    return Leaf(
        program=program,
        params=params,
        arguments=(*program.inputs, *(name for name in program.state_names if name not in hidden)),
        returns=(*emitted, *rest),
        hidden=hidden,
    )


def leaf_of(module: Any) -> Leaf | None:
    """The leaf of a module, or None: then its inside is traced."""
    for cls in type(module).__mro__:
        if cls in _registered:
            return _registered[cls](module)
    package = type(module).__module__.partition(".")[0]
    if package in FRAMEWORKS:
        name, _, function = FRAMEWORKS[package].partition(":")
        made: Leaf | None = getattr(import_module(name), function)(module)
        return made
    return None
