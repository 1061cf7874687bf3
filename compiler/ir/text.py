"""The text form of the IR (`.sir`): exact, readable in a diff, with large arrays in a `.npz` beside it.

`print_graph` and `parse_graph` are inverse to each other; `write_graph` and `read_graph` do the same with files.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from decimal import Decimal
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Loc
from spikec.files import reading
from spikec.ir.graph import Graph
from spikec.ir.neuron import Assign, Call, Emit, Expr, Num, Program, State, Var
from spikec.ir.ops import OPS, Input, Neuron, Node, Ref
from spikec.ir.types import DTYPES, KINDS, LEVELS, Array, Level, TensorType, default_dtype, freeze, is_float, short_dtype
from spikec.options import typed

if TYPE_CHECKING:
    from lark import Lark

VERSION: Final = 1
#: Arrays of at most so many elements are written into the text.
INLINE: Final = 8
WIDTH: Final = 80
_UNITS: Final = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_BASE_FIELDS: Final = {"name", "inputs", "loc", "program", "params", "init", "type"}


# ---------------------------------------------------------------------------------------------------------- printing


def array_hash(array: Array) -> str:
    """The first 16 hexadecimal digits of the sha256 over dtype, shape and bytes."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{short_dtype(array)} {array.shape} ".encode() + little.tobytes())
    return digest.hexdigest()[:16]


class _Printer:
    def __init__(self, graph: Graph, full: bool) -> None:
        self.graph = graph
        self.full = full
        self.arrays: dict[str, Array] = {}
        self.by_content: dict[tuple[str, str, tuple[int, ...]], str] = {}

    def array(self, name: str, array: Array) -> str:
        """Inline text for a small array, else a reference; arrays of equal content share one name."""
        if array.ndim == 0 or (array.ndim == 1 and array.shape[0] > 0) or array.size > 0:
            if self.full or array.size <= INLINE:
                return inline_array(array, self.graph.level)
        elif array.shape == (0,):
            return inline_array(array, self.graph.level)
        key = (array_hash(array), short_dtype(array), array.shape)
        if key not in self.by_content:
            self.by_content[key] = name
            self.arrays[name] = array
        return f"@{self.by_content[key]}"

    def ref(self, ref: Ref, name: str) -> str:
        if not ref.delay:
            return str(ref)
        init = f", init={self.array(name, ref.init)}" if ref.init is not None else ""
        port = f".{ref.port}" if ref.port else ""
        return f"%{ref.node}{port}[t-{ref.delay}{init}]"

    def node(self, node: Node) -> str:
        operands = ", ".join(self.ref(r, f"{node.name}.in{i}.init") for i, r in enumerate(node.inputs))
        program = f" @{node.program.name}" if isinstance(node, Neuron) else ""
        head = f"%{node.name} = {node.op}{program}"
        pieces = [f"{head}({operands})" if operands or not isinstance(node, Input) else head]
        pieces += self.attributes(node)
        ports = self.graph.types[node.name]
        types = [type_.text(self.graph.level) for _, type_ in ports]
        texts = [types[0], *(f"{port}: {text}" for (port, _), text in zip(ports[1:], types[1:], strict=True))]
        pieces.append(": " + ", ".join(texts))
        if node.loc:
            line = f":{node.loc.line}" if node.loc.line else ""
            path = f" {_path_text(node.loc.path)}" if node.loc.path else ""
            pieces.append(f"loc({json.dumps(node.loc.file)}{line}{path})")
        return _wrap(pieces)

    def attributes(self, node: Node) -> Iterator[str]:
        for item in fields(node):
            if item.name in _BASE_FIELDS:
                continue
            value = getattr(node, item.name)
            if item.name in ("stride", "padding", "dilation") and len(set(value)) == 1:
                trivial = {"stride": 1, "padding": 0, "dilation": 1}[item.name]
                if node.op == "conv" and value[0] == trivial:
                    continue
            if item.default is not MISSING and not isinstance(value, np.ndarray) and value == item.default:
                continue
            yield f"{item.name}={self.value(f'{node.name}.{item.name}', value)}"
        if isinstance(node, Neuron):
            for name in node.program.params:
                yield f"{name}={self.array(f'{node.name}.{name}', node.params[name])}"
            for name in node.program.state_names:
                if name in node.init:
                    yield f"init.{name}={self.array(f'{node.name}.init.{name}', node.init[name])}"

    def value(self, name: str, value: Any) -> str:
        if isinstance(value, np.ndarray):
            return self.array(name, value)
        if isinstance(value, tuple):
            return "(" + ", ".join(str(int(item)) for item in value) + ("," if len(value) == 1 else "") + ")"
        if isinstance(value, str) and not value.isidentifier():
            return json.dumps(value)
        return repr(value) if isinstance(value, float) else str(value)

    def text(self) -> str:
        graph = self.graph
        lines = [f"sir {VERSION}", ""]
        for program in programs_of(graph):
            lines += [program.text(), ""]
        body = [self.node(node) for node in graph.nodes]
        for name, ref in graph.outputs:
            label = "" if name == ref.node and not ref.port else f"{name} = "
            body.append(f"  output {label}{self.ref(ref, f'{name}.out.init')}")
        dt = "" if graph.dt is None else f" dt={duration_text(graph.dt)}"
        lines.append(f"graph @{graph.name} level={graph.level}{dt} {{")
        for name, array in self.arrays.items():
            shape = "x".join(map(str, array.shape))
            lines.append(f"  array @{name} : {shape} {short_dtype(array)} #{array_hash(array)}")
        return "\n".join([*lines, *body, "}"]) + "\n"


def _path_text(path: str) -> str:
    """A module path bare where the grammar can tell its end, else quoted."""
    return path if re.fullmatch(r"[A-Za-z0-9_][^\s)\"]*", path) else json.dumps(path)


def _wrap(pieces: Sequence[str]) -> str:
    lines, line = [], "  " + pieces[0]
    for piece in pieces[1:]:
        if len(line) + 1 + len(piece) > WIDTH:
            lines.append(line)
            line = "      " + piece
        else:
            line += " " + piece
    return "\n".join([*lines, line])


def duration_text(seconds: float) -> str:
    """A duration in the unit that makes it shortest, exact: `1ms`, `0.1ms`, `1.5us`."""
    best = ""
    for unit, power in _UNITS.items():
        number = Decimal(repr(float(seconds))).scaleb(power).normalize()
        text = f"{number:f}{unit}"
        if not best or len(text) < len(best):
            best = text
    return best


def parse_duration(text: str) -> float:
    """Seconds from `1ms` and the like. Raises CompileError SPK001."""
    digits = text.rstrip("munsμ")
    unit = text[len(digits) :] or "s"
    try:
        return float(Decimal(digits).scaleb(-_UNITS[unit]))
    except (KeyError, ArithmeticError):
        raise CompileError("SPK001", f"'{text}' is not a duration; write 1ms, 0.5us, 10s") from None


def programs_of(graph: Graph) -> tuple[Program, ...]:
    """The distinct programs of a graph in order of first use; SPK302 if two of them share a name."""
    found: dict[str, Program] = {}
    for node in graph.neurons:
        if found.setdefault(node.program.name, node.program) != node.program:
            node.fail("SPK302", f"two different programs are called @{node.program.name}")
    return tuple(found.values())


def inline_array(array: Array, level: Level) -> str:
    """`0.9`, `[1, 2]`, `f64[0.1]`: the dtype is written where it is not the level's default."""
    short = short_dtype(array)
    prefix = "" if short == default_dtype("value", level) else short
    if array.ndim == 0:
        text = _number(array[()])
        return f"{prefix}({text})" if prefix else text
    return prefix + _nested(array)


def _nested(array: Array) -> str:
    if array.ndim == 1:
        return "[" + ", ".join(_number(item) for item in array) + "]"
    return "[" + ", ".join(_nested(item) for item in array) + "]"


def _number(item: Any) -> str:
    if item.dtype.kind != "f":
        return str(int(item))
    number = float(item)
    if not math.isfinite(number):
        return repr(number)
    short = str(item)
    exact = item.dtype.type(float(short)) == item
    text = short if exact else repr(number)
    return text if "." in text or "e" in text else text + ".0"


def print_graph(graph: Graph, *, full: bool = False) -> tuple[str, dict[str, Array]]:
    """The text of a graph and the arrays that it only names. `full` writes every array into the text."""
    printer = _Printer(graph, full)
    return printer.text(), printer.arrays


# ----------------------------------------------------------------------------------------------------------- parsing


@cache
def _lark() -> Lark:
    from lark import Lark

    grammar = Path(__file__).with_name("sir.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", start=["file", "program"], maybe_placeholders=True, propagate_positions=True)


def _syntax_error(error: Any, text: str, file: str) -> CompileError:
    line, column = int(getattr(error, "line", -1)), int(getattr(error, "column", -1))
    if line < 1 or getattr(getattr(error, "token", None), "type", "") == "$END":
        rows = text.splitlines() or [""]
        line, column = len(rows), len(rows[-1]) + 1
    rows = text.splitlines() or [""]
    row = rows[min(line, len(rows)) - 1] if rows else ""
    token = getattr(error, "token", None)
    what = f"unexpected '{token}'" if token is not None and str(token) else "unexpected character"
    if token is not None and getattr(token, "type", "") == "$END":
        what = "the text ends too early"
    caret = row + "\n" + " " * max(column - 1, 0) + "^"
    indented = "\n".join(f"    {part}" for part in caret.splitlines())
    return CompileError("SPK301", f"{what} at line {line}, column {column}\n{indented}", loc=Loc(file, line))


def _parse(text: str, start: str, file: str) -> Any:
    from lark.exceptions import UnexpectedInput

    try:
        return _lark().parse(text, start=start)
    except UnexpectedInput as error:
        raise _syntax_error(error, text, file) from None


def _too_deep(file: str) -> CompileError:
    return CompileError("SPK301", "an expression or array is nested too deeply", loc=Loc(file))


@lru_cache(maxsize=256)
def parse_program(text: str) -> Program:
    """A neuron program from its text; SPK301 with line, column and caret, or SPK302."""
    try:
        return _program(_parse(text, "program", "neuron program"))
    except RecursionError:
        raise _too_deep("neuron program") from None


class _Wrapped(Expr):
    """A literal in parentheses, so that `-(2)` stays a negation."""

    __slots__ = ("inner",)

    def __init__(self, inner: Num) -> None:
        self.inner = inner


def _unwrap(expr: Expr) -> Expr:
    return expr.inner if isinstance(expr, _Wrapped) else expr


def _expr(tree: Any) -> Expr:
    kind, parts = tree.data, tree.children
    if kind in ("int", "float", "inf", "nan"):
        return Num(_plain_number(tree))
    if kind == "var":
        return Var(str(parts[0]))
    if kind == "paren":
        inner = _expr(parts[0])
        return _Wrapped(inner) if isinstance(inner, Num) else inner
    if kind == "neg":
        operand = _expr(parts[0])
        return Num(-operand.value) if isinstance(operand, Num) else Call("neg", (_unwrap(operand),))
    if kind == "function":
        return Call(str(parts[0]), tuple(_unwrap(_expr(part)) for part in parts[1:]))
    if kind == "infix":
        left, op, right = parts
        return Call(str(op), (_unwrap(_expr(left)), _unwrap(_expr(right))))
    names = {"or_": "or", "and_": "and", "not_": "not"}
    return Call(names[kind], tuple(_unwrap(_expr(part)) for part in parts))


def _plain_number(tree: Any) -> int | float:
    kind = tree.data
    if kind == "minus":
        return -_plain_number(tree.children[0])
    if kind == "int":
        return int(tree.children[0])
    return float(tree.children[0]) if kind == "float" else math.inf if kind == "inf" else math.nan


def _program(tree: Any) -> Program:
    name, inputs, params, states, *rest = tree.children
    body, emits = [], []
    bare: list[str] = []
    for item in rest:
        if item.data == "assign":
            body.append(Assign(str(item.children[0]), _unwrap(_expr(item.children[1]))))
        else:
            variable, kind = item.children
            if kind is not None and kind not in KINDS:
                raise CompileError("SPK302", f"neuron {name}: '{kind}' is not one of {', '.join(KINDS)}")
            if kind is None:
                bare.append(str(variable))
            emits.append(Emit(str(variable), "value" if kind is None else kind))
    declared = tuple(
        State(str(s.children[0]), _plain_number(s.children[2]), str(s.children[1] or ""))
        for s in (states.children if states else ())
    )
    program = Program(
        str(name)[1:],
        tuple(str(item) for item in inputs.children) if inputs else (),
        tuple(str(item) for item in params.children[0].children) if params else (),
        declared,
        tuple(body),
        tuple(emits),
    )
    if not bare:
        return program
    kinds = tuple(Emit(e.name, program.default_kind(e.name)) if e.name in bare else e for e in emits)
    return Program(program.name, program.inputs, program.params, program.states, program.body, kinds)


class _Reader:
    def __init__(self, file: str, arrays: Mapping[str, Array]) -> None:
        self.file = file
        self.given = arrays
        self.arrays: dict[str, Array] = {}
        self.level: Level = "float"

    def fail(self, code: str, message: str, tree: Any = None) -> CompileError:
        meta = getattr(tree, "meta", None)
        line = getattr(meta, "line", 0) or getattr(tree, "line", 0) or 0
        return CompileError(code, message, loc=Loc(self.file, line))

    def graph(self, tree: Any) -> Graph:
        *programs, graph = tree.children[1:]
        table: dict[str, Program] = {}
        for item in programs:
            program = self.placed(item, partial(_program, item))
            if program.name in table:
                raise self.fail("SPK302", f"the program @{program.name} is defined twice", item)
            table[program.name] = program
        name, *rest = graph.children
        dt: float | None = None
        for item in rest:
            if item.data == "attribute":
                key, value = str(item.children[0]), item.children[1]
                if key == "level" and value.data == "word" and value.children[0] in LEVELS:
                    self.level = str(value.children[0])  # type: ignore[assignment]  # one of LEVELS
                elif key == "dt" and value.data == "duration":
                    dt = parse_duration(str(value.children[0]))
                else:
                    raise self.fail("SPK301", f"bad graph attribute '{key}'", item)
            elif item.data == "array":
                self.declare(item)
        nodes = [self.node(item, table) for item in rest if item.data == "node"]
        outputs = [self.output(item) for item in rest if item.data == "output"]
        result = Graph(str(name)[1:], self.level, tuple(nodes), tuple(outputs), dt)
        self.infer(result, [item for item in rest if item.data == "node"], graph)
        for item in rest:
            if item.data == "node":
                self.check_types(result, item)
        return result

    def infer(self, graph: Graph, trees: Sequence[Any], whole: Any) -> None:
        """Derive the types; an error without a place of its own gets the line of the node that it names."""
        try:
            graph.types  # noqa: B018  # raises where they cannot be derived
        except CompileError as error:
            if error.diagnostics[0].loc:
                raise
            message = error.diagnostics[0].message
            named = (tree for tree in trees if message.startswith(f"{tree.children[0]}:"))
            raise self.fail(error.code, message, next(named, whole)) from None

    def declare(self, tree: Any) -> None:
        name, shape, dtype, digest = (str(part) for part in tree.children)
        name = name[1:]
        if name not in self.given:
            raise self.fail("SPK304", f"the array @{name} is missing; its .npz file belongs beside the text", tree)
        array = freeze(self.given[name])
        wanted = _shape(shape)
        if array.dtype not in DTYPES.values() or array.shape != wanted or short_dtype(array) != dtype:
            raise self.fail("SPK304", f"the array @{name} is {array.dtype} {array.shape}, not {dtype} {wanted}", tree)
        if array_hash(array) != digest[1:]:
            raise self.fail("SPK304", f"the array @{name} is damaged: its contents do not match {digest}", tree)
        self.arrays[name] = array

    def array(self, tree: Any) -> Array:
        kind, parts = tree.data, tree.children
        if kind == "reference":
            name = str(parts[0])[1:]
            if name not in self.arrays:
                raise self.fail("SPK304", f"the array @{name} is not declared", tree)
            return self.arrays[name]
        named = kind in ("typed_scalar", "typed_list")
        short = str(parts[0]) if named else default_dtype("value", self.level)
        if short not in DTYPES:
            raise self.fail("SPK301", f"'{short}' is not a type of number", tree)
        numbers = self.numbers(parts[-1])
        if not is_float(short) and any(isinstance(item, float) for item in _flat(numbers)):
            raise self.fail("SPK301", f"the array does not fit {short}: it holds numbers that are not whole", tree)
        try:
            return freeze(np.array(numbers, dtype=DTYPES[short]))
        except (ValueError, OverflowError) as error:
            raise self.fail("SPK301", f"the array does not fit {short}: {error}", tree) from None

    def numbers(self, tree: Any) -> Any:
        if tree is None:
            return []
        if tree.data == "list":
            return [self.numbers(item) for item in tree.children if item is not None]
        return _plain_number(tree)

    def ref(self, tree: Any) -> Ref:
        name, port, delay, init = tree.children
        values = self.array(init) if init is not None else None
        return Ref(str(name)[1:], str(port)[1:] if port else "", int(delay or 0), values)

    def output(self, tree: Any) -> tuple[str, Ref]:
        name, ref = tree.children
        read = self.ref(ref)
        return (str(name) if name else read.node, read)

    def node(self, tree: Any, programs: Mapping[str, Program]) -> Node:
        name, op, operands, *rest = tree.children
        cls = OPS.get(str(op))
        if cls is None:
            raise self.fail("SPK302", f"unknown operation '{op}'", tree)
        values: dict[str, Any] = {"name": str(name)[1:]}
        loc = rest[-1]
        if loc is not None:
            file, line, path = loc.children
            where = str(path or "")
            values["loc"] = Loc(json.loads(str(file)), int(line or 0), json.loads(where) if where[:1] == '"' else where)
        program_name, *refs = operands.children if operands else (None,)
        values["inputs"] = tuple(self.ref(item) for item in refs if item is not None)
        known = {item.name: item for item in fields(cls)}
        if issubclass(cls, Neuron):
            if program_name is None or str(program_name)[1:] not in programs:
                raise self.fail("SPK302", f"there is no program {program_name or 'named'}", tree)
            values["program"] = programs[str(program_name)[1:]]
            values["params"], values["init"] = {}, {}
        elif program_name is not None:
            raise self.fail("SPK302", f"'{op}' has no program", tree)
        if issubclass(cls, Input):
            values["type"] = self.type(rest[-2].children[0])
        seen: set[str] = set()
        for item in rest[:-2]:
            key, value = str(item.children[0]), item.children[1]
            if key in seen:
                raise self.fail("SPK302", f"the attribute '{key}' is given twice", item)
            seen.add(key)
            if issubclass(cls, Neuron) and key in values["program"].params:
                values["params"][key] = self.array(value)
            elif issubclass(cls, Neuron) and key.startswith("init."):
                values["init"][key.removeprefix("init.")] = self.array(value)
            elif key not in known or key in _BASE_FIELDS:
                raise self.fail("SPK302", f"'{op}' has no attribute '{key}'", item)
            else:
                values[key] = self.attribute(str(known[key].type), value, item)
        missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in values]
        if missing:
            raise self.fail("SPK302", f"'{op}' needs the attribute '{missing[0]}'", tree)
        node: Node = self.placed(tree, lambda: cls(**values))
        return node

    def placed(self, tree: Any, build: Callable[[], Any]) -> Any:
        """What `build` returns; an error without a place of its own gets the place in the text."""
        try:
            return build()
        except CompileError as error:
            if error.diagnostics[0].loc:
                raise
            raise self.fail(error.code, error.diagnostics[0].message, tree) from None

    def attribute(self, annotation: str, tree: Any, where: Any) -> Any:
        """A field's value; what it must be is read from the field's annotation."""
        if tree.data == "tuple" and annotation.startswith("tuple"):
            return tuple(self.integer(item, where) for item in tree.children if item is not None)
        if tree.data == "word" and (annotation == "str" or annotation.startswith(("Literal", "Kind"))):
            return str(tree.children[0])
        if tree.data == "string" and annotation == "str":
            return str(json.loads(str(tree.children[0])))
        if tree.data == "scalar" and annotation.startswith("float"):
            return float(_plain_number(tree.children[0]))
        if annotation.startswith("Array"):
            return self.array(tree)
        if annotation in ("int", "int | None") and tree.data == "scalar":
            return self.integer(tree.children[0], where)
        raise self.fail("SPK301", f"the value of '{where.children[0]}' has the wrong form", where)

    def integer(self, tree: Any, where: Any) -> int:
        number = _plain_number(tree)
        if not isinstance(number, int):
            raise self.fail("SPK301", "a whole number is needed", where)
        return number

    def type(self, tree: Any) -> TensorType:
        kind, shape, dtype = tree.children
        if kind not in KINDS:
            raise self.fail("SPK301", f"'{kind}' is not one of {', '.join(KINDS)}", tree)
        short = str(dtype) if dtype else default_dtype(str(kind), self.level)  # type: ignore[arg-type]  # one of KINDS
        if short not in DTYPES:
            raise self.fail("SPK301", f"'{short}' is not a type of number", tree)
        return TensorType(str(kind), _shape(str(shape)), short)  # type: ignore[arg-type]  # one of KINDS

    def check_types(self, graph: Graph, tree: Any) -> None:
        """The types in the text must be those that the operations give."""
        name = str(tree.children[0])[1:]
        parts = tree.children[-2].children
        written = [("", self.type(parts[0]))]
        written += [(str(parts[i]), self.type(parts[i + 1])) for i in range(1, len(parts), 2)]
        actual = graph.types[name]
        if tuple(written) != actual:
            wanted = ", ".join(type_.text(graph.level) for _, type_ in actual)
            raise self.fail("SPK309", f"%{name} has the type {wanted}, not what is written here", tree)


def _flat(numbers: Any) -> Iterator[Any]:
    if isinstance(numbers, list):
        for item in numbers:
            yield from _flat(item)
    else:
        yield numbers


def _shape(text: str) -> tuple[int, ...]:
    return () if text == "()" else tuple(int(part) for part in text.split("x"))


@typed(text="string", file="string")
def parse_graph(text: str, arrays: Mapping[str, Array] | None = None, *, file: str = "<text>") -> Graph:
    """A graph from its text and the arrays that the text names.

    Raises CompileError: SPK301 syntax (line, column, caret), SPK302 bad graph, SPK303 a newer version, SPK304 arrays,
    SPK309 types.
    """
    stripped = (line.split("//")[0].strip() for line in text.splitlines())
    first = next((line for line in stripped if line), "").split()
    if first[:1] != ["sir"]:
        raise CompileError("SPK301", "this is not IR text: it must begin with 'sir' and a version", loc=Loc(file, 1))
    if len(first) > 1 and first[1].isdigit() and int(first[1]) > VERSION:
        raise CompileError(
            "SPK303",
            f"the text is of version sir {first[1]}; this spikec reads up to sir {VERSION}",
            loc=Loc(file, 1),
            fix="use the spikec that wrote it, or a newer one",
        )
    try:
        return _Reader(file, arrays or {}).graph(_parse(text, "file", file))
    except RecursionError:
        raise _too_deep(file) from None


# ------------------------------------------------------------------------------------------------------------- files


def side_file(path: Path) -> Path:
    """Where the arrays of a `.sir` file live."""
    return path.with_suffix(".npz")


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """A `.npz` whose bytes depend on the arrays only: NumPy's own writer stamps the time into the archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]).reshape(arrays[name].shape), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of a `.npz`, never unpickling. Raises CompileError SPK002 or SPK304 with the file's name."""
    with reading(path):
        path.open("rb").close()
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except Exception as error:  # a damaged archive raises whatever zip, zlib and NumPy stumble over
        raise CompileError("SPK304", f"{path}: not a readable .npz file ({error})") from None


def write_graph(graph: Graph, path: Path, *, full: bool = False) -> None:
    """Write `path` and, if the text names arrays, the `.npz` beside it."""
    text, arrays = print_graph(graph, full=full)
    if arrays:
        side_file(path).write_bytes(npz_bytes(arrays))
    path.write_text(text, encoding="utf-8")


def read_graph(path: Path) -> Graph:
    """Read a `.sir` file and its arrays. Raises CompileError as `parse_graph` does, SPK002 if it is not there."""
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CompileError("SPK301", f"{path}: not a readable text file ({error})") from None
    beside = side_file(path)
    arrays = read_npz(beside) if beside.exists() else {}
    return parse_graph(text, arrays, file=path.name)
