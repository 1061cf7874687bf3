"""A neuron program in integers as a Lava process of its own: a class and its model, as Python text.

Lava's library has a few neurons; Loihi 2 itself runs any program. The generated model computes what the interpreter computes,
number for number, in Lava's simulation; on silicon the neuron needs microcode that nobody outside Intel can make.
"""

from __future__ import annotations

import keyword
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from spikec.ir.neuron import COMPARISONS, INFIX, LOGIC, STEP, Call, Expr, Num, Program, Var

MODULE: Final = "neurons.programs"
#: Names that Lava's processes and models, or the generated text, use themselves.
_TAKEN: Final = frozenset(
    (
        *("name", "id", "shape", "start", "stop", "model"),
        *("runtime", "vars", "in_ports", "out_ports", "ref_ports", "var_ports", "procs"),
        *("proc_params", "run", "stop", "pause", "wait", "save", "load", "create_runtime", "compile", "is_compiled", "get", "set"),
        *("is_sub_proc_of", "register_sub_procs", "validate_var_aliases", "log", "log_config", "time_step", "self", "np", "join"),
        *("implements_process", "implements_protocol", "required_resources", "tags", "run_spk", "run_post_mgmt", "run_lrn"),
        *("run_pre_mgmt", "pre_guard", "lrn_guard", "post_guard", "add_ports_for_polling", "py_ports", "on_var_update"),
        *("service_to_process", "process_to_service", "rtz", "wrap", "clip", "number"),
    )
)
_HELPERS: Final = {
    "rtz": '''
def rtz(x, bits):
    """Shift toward zero."""
    return (x >> bits) + number((x < 0) & ((x & ((1 << bits) - 1)) != 0))
''',
    "wrap": '''
def wrap(x, bits):
    """Two's complement of so many bits."""
    half = 1 << (bits - 1)
    return ((x + half) & ((1 << bits) - 1)) - half
''',
    "clip": '''
def clip(x, bits):
    """Saturate at +-(2^(bits-1) - 1)."""
    limit = (1 << (bits - 1)) - 1
    return np.minimum(np.maximum(x, -limit), limit)
''',
    "number": '''
def number(truth):
    """Truth values as 0 and 1."""
    return np.asarray(truth).astype(np.int64)
''',
}
_HEAD: Final = '''"""Neurons that Lava's library lacks, written by spikec: their programs, step by step, in integers.

The comment in each class is the neuron's program as the compiler states it. Exact in simulation; on silicon a neuron of this
kind needs microcode. All arithmetic is in 64 bits, which the compiler has proved to suffice; states fit 32.
"""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

'''


@dataclass(frozen=True)
class Custom:
    """The names under which a generated class has a program's inputs, emissions, parameters and states."""

    name: str
    program: Program
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The class and its model."""
        return _class_text(self)


def custom(name: str, program: Program) -> Custom:
    """The class for a program. The first emission's port is `s_out`, the only input's `a_in`, as in Lava's library."""
    used = set(_TAKEN)

    def fresh(wanted: str) -> str:
        if wanted.startswith("_"):  # a process has private names of its own
            wanted = f"n{wanted}"
        while wanted in used or keyword.iskeyword(wanted):
            wanted += "_"
        used.add(wanted)
        return wanted

    inputs = {item: fresh("a_in" if len(program.inputs) == 1 else f"{item}_in") for item in program.inputs}
    outputs = {emit.name: fresh(f"{emit.name}_out" if index else "s_out") for index, emit in enumerate(program.emits)}
    params = {item: fresh(item) for item in program.params}
    return Custom(name, program, inputs, outputs, params, {item: fresh(item) for item in program.state_names})


def module_text(classes: Iterable[Custom]) -> str:
    """The module of all classes."""
    texts = [item.text() for item in classes]
    body = "\n\n\n".join(texts)
    used = [name for name in ("rtz", "wrap", "clip") if f"{name}(" in body]
    if "number(" in body or "rtz" in used:
        used.insert(0, "number")
    return "\n".join([_HEAD.rstrip("\n"), "", *(_HELPERS[name] for name in used), "", body, ""])


def class_name(program: str, taken: Iterable[str]) -> str:
    """`leaky_l1` as `LeakyL1`, not one of the names that are taken."""
    name = "".join(part[:1].upper() + part[1:] for part in program.replace(".", "_").split("_")) or "Neuron"
    if not name[0].isalpha():
        name = f"N{name}"
    names, number, chosen = set(taken), 1, name
    while chosen in names:
        number += 1
        chosen = f"{name}{number}"
    return chosen


def _class_text(item: Custom) -> str:
    program = item.program
    arguments = "".join(f", {name}" for name in item.params.values())
    arguments += "".join(f", {name}=0" for name in item.states.values())
    lines = [
        f"class {item.name}(AbstractProcess):",
        f'    """@{program.name}. Silent, its states as they are, in the first `start` steps and after `stop` of them."""',
        "",
        *(f"    # {line}".rstrip() for line in program.text().splitlines()),
        "",
        *textwrap.wrap(
            f"def __init__(self, shape{arguments}, start=0, stop=float('inf'), name=None):",
            116,
            initial_indent="    ",
            subsequent_indent=" " * 8,
        ),
        "        super().__init__(shape=shape, start=start, stop=stop, name=name)",
        *(f"        self.{port} = InPort(shape=shape)" for port in item.inputs.values()),
        *(f"        self.{port} = OutPort(shape=shape)" for port in item.outputs.values()),
        *(f"        self.{name} = Var(shape=np.shape({name}) or (1,), init={name})" for name in item.params.values()),
        *(f"        self.{name} = Var(shape=shape, init={name})" for name in item.states.values()),
        "",
        "",
        f"@implements(proc={item.name}, protocol=LoihiProtocol)",
        "@requires(CPU)",
        '@tag("fixed_pt")',
        f"class {item.name}Model(PyLoihiProcessModel):",
        '    """Runs on the host\'s CPU."""',
        "",
        *(f"    {port} = LavaPyType(PyInPort.VEC_DENSE, np.int32)" for port in item.inputs.values()),
        *(f"    {port} = LavaPyType(PyOutPort.VEC_DENSE, np.int32)" for port in item.outputs.values()),
        *(f"    {name}: np.ndarray = LavaPyType(np.ndarray, np.int64)" for name in item.params.values()),
        *(f"    {name}: np.ndarray = LavaPyType(np.ndarray, np.int32)" for name in item.states.values()),
        "",
        *(f"    {line}".rstrip() for line in _run_text(item)),
    ]
    return "\n".join(lines)


def _run_text(item: Custom) -> list[str]:
    """The step. Locals carry a trailing underscore, so that they are no names of Python, of NumPy or of this text."""
    program = item.program
    body = [f"{_local(name)} = self.{port}.recv().astype(np.int64)" for name, port in item.inputs.items()]
    zeros = [f"self.{port}.send(np.zeros(self.{port}.shape, np.int32))" for port in item.outputs.values()]
    body.append('if not self.proc_params["start"] < self.time_step <= self.proc_params["stop"]:')
    body += [*(f"    {line}" for line in zeros), "    return"]
    body += [f"{_local(name)} = self.{var}" for name, var in item.params.items()]
    body += [f"{_local(name)} = self.{var}.astype(np.int64)" for name, var in item.states.items()]
    if any(STEP in _reads(statement.expr) for statement in program.body):
        body.append(f"{_local(STEP)} = self.time_step - 1")
    truths: set[str] = set()
    for statement in program.body:
        text = _text(statement.expr, truths)
        text = _bare(statement.expr, text)
        truth = _is_truth(statement.expr, truths)
        if statement.name in program.state_names:
            text, truth = (f"number({text})" if truth else text), False
        (truths.add if truth else truths.discard)(statement.name)
        body.append(f"{_local(statement.name)} = {text}")
    body += [f"self.{var}[:] = {_local(name)}" for name, var in item.states.items()]
    for name, port in item.outputs.items():
        body.append(f"self.{port}.send(np.broadcast_to({_local(name)}, self.{port}.shape).astype(np.int32))")
    return ["def run_spk(self):", '    """One step of the program."""', *(f"    {line}" for line in body)]


def _local(name: str) -> str:
    return f"{name}_"


def _reads(expr: Expr) -> set[str]:
    if isinstance(expr, Var):
        return {expr.name}
    return set().union(*map(_reads, expr.args)) if isinstance(expr, Call) else set()


def _is_truth(expr: Expr, truths: set[str]) -> bool:
    if isinstance(expr, Var):
        return expr.name in truths
    if not isinstance(expr, Call):
        return False
    if expr.op == "select":
        return all(_is_truth(arg, truths) for arg in expr.args[1:])
    return expr.op in COMPARISONS or expr.op in LOGIC


def _bare(expr: Expr, text: str) -> str:
    """Without the parentheses around the whole."""
    return text[1:-1] if isinstance(expr, Call) and text.startswith("(") else text


def _text(expr: Expr, truths: set[str]) -> str:
    """An expression in NumPy. Everything is in parentheses where Python could group otherwise."""
    if isinstance(expr, Num):
        return str(int(expr.value))
    if isinstance(expr, Var):
        return _local(expr.name)
    assert isinstance(expr, Call)
    op = expr.op
    truth = _is_truth(expr, truths)
    as_is = op in LOGIC or (op == "select" and truth)
    args = []
    for index, arg in enumerate(expr.args):
        text = _text(arg, truths)
        if op not in INFIX and op != "neg":
            text = _bare(arg, text)
        plain = as_is or (op == "select" and index == 0)
        args.append(f"number({_bare(arg, text)})" if not plain and _is_truth(arg, truths) else text)
    if op in ("and", "or", "not"):
        return f"np.logical_{op}({', '.join(_bare(arg, text) for arg, text in zip(expr.args, args, strict=True))})"
    if op in INFIX:
        return f"({args[0]} {op} {args[1]})"
    if op == "neg":
        return f"(-{args[0]})"
    functions = {"select": "np.where", "min": "np.minimum", "max": "np.maximum", "abs": "np.abs", "rem": "np.remainder"}
    return f"{functions.get(op, op)}({', '.join(args)})"
