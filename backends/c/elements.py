"""Everything that is neither weights nor neurons: inputs, constants, sums and products element by element, copies, pools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spikec.backends.c.exprs import C_TYPES, Operand, fits32, literal
from spikec.backends.c.plan import arranged, place_of
from spikec.backends.c.writer import Writer
from spikec.ir.ops import Add, Concat, Constant, Gather, Input, Node, Pool, Reshape, Scale, spread
from spikec.ir.ranges import Interval, hull, input_range, of_array
from spikec.ir.types import Array, int_range, narrowest
from spikec.ir.windows import needed


class Elements(Writer):
    """Inputs, constants, elementwise operations, copies and pools."""

    def element(self, node: Node, inputs: Mapping[str, int]) -> None:
        """One of them. inputs: the number of every input, by name."""
        if isinstance(node, Input):
            self.input(node, inputs[node.name])
        elif isinstance(node, Constant):
            self.constant_node(node)
        elif isinstance(node, Add):
            self.add(node)
        elif isinstance(node, Scale):
            self.scale(node)
        elif isinstance(node, Pool):
            self.pool(node)
        else:
            assert isinstance(node, (Concat, Gather, Reshape))
            self.copy(node)

    def input(self, node: Input, number: int) -> None:
        """Check what arrives, and take it over."""
        stored = self.plan.stored[node.name, ""]
        name = self.name(f"{self.p}{node.name}_in")
        low, high = input_range(node) if self.integer else (0, 0)
        macros: dict[str, Any] = {
            "SPK_NAME": name,
            "SPK_API": C_TYPES[stored.api],
            "SPK_X": C_TYPES[stored.kind],
            "SPK_INDEX": stored.index,
            "SPK_SIZE": f"{stored.size}u",
            "SPK_BINARY": int(node.type.kind == "spike"),
            "SPK_LIST": int(stored.list_depth >= 0),
            "SPK_DENSE": int(stored.dense_depth >= 0),
            "SPK_FLAGS": int(node.type.kind == "spike" and stored.api == "i8" and stored.index == "uint16_t"),
        }
        if self.integer and node.type.kind != "spike" and (low, high) != int_range(stored.api):
            macros["SPK_LOW"], macros["SPK_HIGH"] = literal(low, "i64"), literal(high, "i64")
        self.kernel("spk_input.h", **macros)
        self.checks.append(f"  if ((status = {name}_check(in + {number})) != SPK_OK) {{ return status; }}")
        events, count = self.events(stored) if stored.list_depth >= 0 else ("NULL", "")
        array = self.array(stored) if stored.dense_depth >= 0 else "NULL"
        self.title(node)
        call = f"{name}_load(in + {number}, {array}, {events});"
        window = "" if stored.observed else self.within(needed(self.graph, node.name))
        if window:
            self.line(f"if ({window}) {{")
        self.line(f"{count} = {call}" if count else f"(void){call}")
        if window:
            self.line(f"}} else {{ {count} = 0; }}" if count else "}")

    def constant_node(self, node: Constant) -> None:
        """A constant, from the step on at which it starts."""
        stored = self.plan.stored[node.name, ""]
        data = self.constant(f"{node.name}_value", stored.kind, arranged(node.value.reshape(-1), stored.layout))
        self.title(node)
        if node.start:
            self.line(f"if (net->t < {node.start}) {{")
            self.line(f"  {self.cleared(stored)}")
            self.line("} else {")
        self.line(f"memcpy({self.array(stored)}, {data}, {stored.size}u * sizeof *net->{stored.member});")
        if node.start:
            self.line("}")
        self.listing(stored)

    def elementwise(self, node: Node, texts: Callable[[list[Operand]], str], tables: Sequence[tuple[Array, str]] = ()) -> None:
        """y[i] = text of the operands' elements."""
        stored = self.plan.stored[node.name, ""]
        self.title(node)
        self.line("{")
        operands = []
        for number, ref in enumerate(node.inputs):
            read = self.plan.read(ref)
            self.line(self.pointer(f"x{number}", read))
            operands.append(self.value(read.stored, f"x{number}", "i"))
        self.line(f"{C_TYPES[stored.kind]} *y = {self.array(stored)};")
        self.line(f"for (i = 0; i < {stored.size}u; i++) {{ y[i] = ({C_TYPES[stored.kind]})({texts(operands)}); }}")
        self.line("}")
        self.listing(stored)

    def add(self, node: Add) -> None:
        """y = sum of the operands."""
        stored = self.plan.stored[node.name, ""]
        kind = stored.kind
        if self.integer:
            prefix: Interval = (0, 0)
            whole = prefix
            for ref in node.inputs:
                one = self.plan.read(ref).stored.interval
                prefix = (prefix[0] + one[0], prefix[1] + one[1])
                whole = hull(hull(whole, prefix), one)
            kind = "i32" if fits32(whole) else "i64"
        self.elementwise(node, lambda xs: " + ".join(f"({C_TYPES[kind]})({x.text})" for x in xs))

    def scale(self, node: Scale) -> None:
        """y = factor * x + offset."""
        stored = self.plan.stored[node.name, ""]
        x = self.plan.read(node.inputs[0]).stored
        kind = stored.kind
        if self.integer:
            factor = of_array(node.factor)
            offset = of_array(node.offset) if node.offset is not None else (0, 0)
            corners = [a * b for a in hull(x.interval, (0, 0)) for b in factor]
            whole = hull(
                hull((min(corners) + min(offset[0], 0), max(corners) + max(offset[1], 0)), factor), hull(offset, x.interval)
            )
            kind = "i32" if fits32(whole) else "i64"

        def text(xs: list[Operand]) -> str:
            parts = [f"({C_TYPES[kind]})({xs[0].text}) * ({C_TYPES[kind]}){self.table(node, 'factor', node.factor, kind)}"]
            if node.offset is not None:
                parts.append(f"({C_TYPES[kind]}){self.table(node, 'offset', node.offset, kind)}")
            return " + ".join(parts)

        self.elementwise(node, text)

    def table(self, node: Node, name: str, array: Array, kind: str) -> str:
        """Element i of a scalar, a full array or one number per channel, as text."""
        shape = self.graph.shape_of(node.name)
        full = np.broadcast_to(spread(array, shape), shape).reshape(-1)
        if full.size and bool((full == full[0]).all()):
            number = np.float32(full[0]) if kind == "f32" else full[0]
            return literal(number, kind)
        stored = self.plan.stored[node.name, ""]
        own = (narrowest(*of_array(full)) or "i64") if self.integer else {4: "f32", 8: "f64"}[array.dtype.itemsize]
        return f"{self.constant(f'{node.name}_{name}', own, arranged(full, stored.layout))}[i]"

    def copy(self, node: Node) -> None:
        """Gather, concat, and a reshape of an earlier step."""
        stored = self.plan.stored[node.name, ""]
        c_type = C_TYPES[stored.kind]
        self.title(node)
        self.line("{")
        self.line(f"{c_type} *y = {self.array(stored)};")
        offset = 0
        for number, ref in enumerate(node.inputs):
            read = self.plan.read(ref)
            self.line(self.pointer(f"x{number}", read))
            if isinstance(node, Gather):
                place = place_of(read.stored.layout, read.stored.size)[node.indices.reshape(-1)]
                data, _ = self.indices(f"{node.name}_from", place, max(read.stored.size, 1))
                element = self.value(read.stored, "x0", f"{data}[i]")
                self.line(f"for (i = 0; i < {stored.size}u; i++) {{ y[i] = ({c_type})({element.text}); }}")
                continue
            if isinstance(node, Concat):
                shape = self.graph.type_of(ref).shape
                outer = int(np.prod(shape[: node.axis], dtype=np.int64))
                inner = int(np.prod(shape[node.axis :], dtype=np.int64))
                whole = stored.size // outer if outer else 0
            else:
                outer, inner, whole = 1, stored.size, stored.size
            if outer == 1:
                element = self.value(read.stored, f"x{number}", "i")
                self.line(f"for (i = 0; i < {inner}u; i++) {{ y[{offset}u + i] = ({c_type})({element.text}); }}")
            else:
                element = self.value(read.stored, f"x{number}", "i")
                place_text = f"i / {inner}u * {whole}u + {offset}u + i % {inner}u"
                self.line(f"for (i = 0; i < {outer * inner}u; i++) {{ y[{place_text}] = ({c_type})({element.text}); }}")
            offset += inner
        self.line("}")
        self.listing(stored)

    def pool(self, node: Pool) -> None:
        """A pool that is computed."""
        read = self.plan.read(node.inputs[0])
        x, stored = read.stored, self.plan.stored[node.name, ""]
        into, out = self.graph.type_of(node.inputs[0]).shape, self.graph.shape_of(node.name)
        space, out_space = ((1, *axis) if len(axis) == 1 else tuple(axis) for axis in (into[1:], out[1:]))
        kernel, stride = ((1, *axis) if len(axis) == 1 else tuple(axis) for axis in (node.kernel, node.stride))
        padding = (0, *node.padding) if len(node.padding) == 1 else node.padding
        name = self.name(f"{self.p}{node.name}_pool")
        macros: dict[str, Any] = {
            "SPK_NAME": name, "SPK_X": C_TYPES[x.kind], "SPK_Y": C_TYPES[stored.kind],
            "SPK_MAX": int(node.mode == "max"), "SPK_NAN": int(not self.integer and stored.kind != "u8"),
            "SPK_C": f"{into[0]}u", "SPK_HI": space[0], "SPK_WI": space[1], "SPK_HO": out_space[0], "SPK_WO": out_space[1],
            "SPK_KH": kernel[0], "SPK_KW": kernel[1], "SPK_SH": stride[0], "SPK_SW": stride[1],
            "SPK_PH": padding[0], "SPK_PW": padding[1],
            "SPK_IN_LAST": int(x.layout is not None), "SPK_OUT_LAST": int(stored.layout is not None),
        }  # fmt: skip
        if node.mode == "average":
            macros["SPK_SCALE"] = literal(float(np.prod(node.kernel)), stored.kind)
        self.kernel("spk_pool.h", **macros)
        self.title(node)
        self.line("{")
        self.line(self.pointer("x", read))
        self.line(f"{name}(x, {self.array(stored)});")
        self.line("}")
        self.listing(stored)
