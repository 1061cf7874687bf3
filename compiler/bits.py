"""Bits of weights: what a user asks for, layer by layer, and what weights of so many bits take."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.ops import Conv, Dense, Sparse
from spikec.ir.types import Array
from spikec.mantissas import WIDTHS, stored
from spikec.spelling import did_you_mean
from spikec.target import Target

#: Asks for widths that a search finds.
MIXED: Final = "mixed"
#: Bits of an index where a layer keeps only the weights that are not zero.
INDEX_BITS: Final = 16
#: Where nothing is said.
DEFAULT: Final = 8
FLOAT_BITS: Final = 32
#: Widths that the memory of a chip with a grid of weights has (card 2.1), and a processor's.
CHIP_WIDTHS: Final = WIDTHS
CPU_WIDTHS: Final = tuple(range(2, 17))


def read_bits(value: Any) -> int | str | None:
    """What was asked for in one form: a number for all layers, "mixed", "8,4,6" in the order of the layers, or "fc1=4,fc2=8".

    Taken are also lists of numbers and mappings from layer to number. Raises CompileError SPK001.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    if isinstance(value, Mapping):
        value = ",".join(f"{name}={width}" for name, width in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = ",".join(map(str, value))
    if isinstance(value, str) and value.strip() == MIXED:
        return MIXED
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
    if len(parts) == 1 and parts[0].isdecimal() and int(parts[0]) >= 1:
        return int(parts[0])
    named = [part.rpartition("=") for part in parts]
    if (
        not named
        or any(not width.strip().isdecimal() or int(width) < 1 for _, _, width in named)
        or len({bool(name) for name, _, _ in named}) > 1
    ):
        raise CompileError(
            "SPK001",
            f"bits must be a whole number of at least 1, 'mixed', or one a layer, not {value!r}",
            fix="write --bits 4, --bits mixed, --bits 8,4,8 in the order of the layers, or --bits fc1=4,fc2=8",
        )
    if len({name.strip() for name, _, _ in named}) < len(named) and named[0][0]:
        raise CompileError("SPK001", f"bits: a layer is named twice in '{value}'")
    return ",".join(f"{name.strip()}={int(width)}" if name else f"{int(width)}" for name, _, width in named)


def widths_of(
    bits: int | str | None, graph: Graph, legal: Sequence[int], owner: str, besides: Collection[str] = ()
) -> dict[str, int]:
    """The bits of every layer's weights; the default where nothing is said. Raises CompileError SPK001, SPK010.

    A layer is named as in the graph, or by its module's path in the user's model where that is one layer's only. besides:
    layers that are not the user's, and get no width.
    """
    nodes = [node for node in graph.nodes if isinstance(node, (Dense, Sparse, Conv)) and node.name not in besides]
    layers = [node.name for node in nodes]
    if bits is None or isinstance(bits, int):
        widths = dict.fromkeys(layers, DEFAULT if bits is None else bits)
    elif "=" in bits:
        paths = [node.loc.path for node in nodes if node.loc is not None]
        known = {node.loc.path: node.name for node in nodes if node.loc is not None and paths.count(node.loc.path) == 1}
        known |= {name: name for name in layers}
        given: dict[str, int] = {}
        for name, _, width in (part.rpartition("=") for part in bits.split(",")):
            if name not in known:
                raise CompileError("SPK010", f"bits: there is no layer '{name}' with weights", fix=did_you_mean(name, layers))
            given[known[name]] = int(width)
        widths = {name: given.get(name, DEFAULT) for name in layers}
    else:
        numbers = [int(part) for part in bits.split(",")]
        if len(numbers) != len(layers):
            raise CompileError(
                "SPK001",
                f"bits: {len(numbers)} number(s) for {len(layers)} layer(s) with weights",
                fix=f"give one each for {', '.join(layers)}",
            )
        widths = dict(zip(layers, numbers, strict=True))
    if wrong := sorted({width for width in widths.values() if width not in legal}):
        raise CompileError("SPK001", f"{wrong[0]} bits: {owner} has weights of {', '.join(map(str, legal))} bits")
    return widths


def bits_text(widths: Mapping[str, int]) -> str:
    """Widths as `read_bits` reads them."""
    return ",".join(f"{name}={width}" for name, width in widths.items())


def layer_bytes(node: Dense | Sparse | Conv, bits: int, present: Array | None = None) -> int:
    """Bytes of a layer's weights, packed: all places, or an index with every weight that is not zero, whichever is less.

    present: truths in the weight's shape, of the weights that count as not zero. A convolution keeps its whole kernel.
    """
    count = int(np.count_nonzero(node.weight if present is None else present))
    listed = count * (bits + INDEX_BITS)
    whole = node.weight.size * bits
    total = whole if isinstance(node, Conv) else listed if isinstance(node, Sparse) else min(listed, whole)
    return -(-total // 8)


def stored_bits(target: Target, weight: Array, exponents: bool = True) -> int:
    """Bits in which a target keeps these integers: on a chip with a grid of weights the fewest legal ones that hold them, elsewhere
    those of their type. exponents: whether the target's exponents may be used."""
    if not target.has("weight_bits"):
        return 8 * weight.dtype.itemsize
    found = stored(weight, target, exponents=exponents)
    return target.integer("weight_bits") if found is None else found.bits


def synapse_bits(target: Target, weight: Array, exponents: bool = True) -> tuple[int, int]:
    """Bits that a synapse takes on a target in a full matrix, and where only those that are there are kept; weight in integers.

    The target's figures are for weights of 8 bits.
    """
    more = stored_bits(target, weight, exponents) - DEFAULT
    return target.integer("dense_synapse_bits") + more, target.integer("sparse_synapse_bits") + more
