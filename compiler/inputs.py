"""What may be fed to a graph: shapes, types and values of input data are checked once, at the door."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import extent
from spikec.ir.ops import Input
from spikec.ir.types import DTYPES, Array, int_range, is_float
from spikec.runtime.encoders import EncodingError, encode

#: Numbers that are looked at together: what is stored for them stays in the caches.
_NEAR = 1 << 16
#: Share of the input that `thinned` leaves out, and how often `drawn` does.
LEFT_OUT, DRAWS = 0.1, 4


def as_array(name: str, data: Any) -> Array:
    """Data as a NumPy array of numbers: arrays, tensors, nested lists, a `SpikeTrace`. Raises CompileError SPK006 or SPK007."""
    if hasattr(data, "detach"):  # a torch tensor, which refuses to become an array while it wants gradients
        data = data.detach().cpu()
    if hasattr(data, "to_dense") and hasattr(data, "tick"):  # a SpikeTrace, which says itself what keeps it from being steps
        try:
            data = data.to_dense()
        except ValueError as error:
            raise CompileError("SPK007", f"the input '{name}': {error}") from None
    try:
        array = np.asarray(data)
    except ValueError:
        raise CompileError("SPK006", f"the input '{name}' is not an array: its rows differ in length") from None
    except TypeError as error:  # a tensor of a kind that NumPy does not have
        raise CompileError("SPK007", f"the input '{name}' does not become an array: {error}", fix="make it float32 first") from None
    if array.dtype.kind not in "biuf":
        raise CompileError("SPK007", f"the input '{name}' holds {array.dtype}, not numbers")
    return array


def by_name(graph: Graph, data: Any) -> dict[str, Any]:
    """Data by input name: from a mapping, from a list in the order of the inputs, or from the one array of the one input.

    Raises CompileError SPK010 for a name that the graph does not have, SPK006 for a missing or surplus input.
    """
    names = [node.name for node in graph.inputs]
    if isinstance(data, Mapping):
        for name in data:
            if name not in names:
                raise CompileError("SPK010", f"there is no input '{name}'", fix=f"the inputs are {', '.join(names) or 'none'}")
        for name in names:
            if name not in data:
                raise CompileError("SPK006", f"the input '{name}' is missing")
        return {name: data[name] for name in names}
    if len(names) == 1:
        return {names[0]: data}
    if isinstance(data, (list, tuple)) and len(data) == len(names):
        return dict(zip(names, data, strict=True))
    raise CompileError("SPK006", f"the graph has {len(names)} inputs", fix=f"give a mapping with the keys {', '.join(names)}")


def check_inputs(graph: Graph, data: Any) -> dict[str, Array]:
    """Data as the graph takes it: by input name, (batch, T, *shape), in the input's declared element type.

    Everything else is refused: SPK006 for a wrong shape, SPK007 for a wrong type or value, with the first offending
    index.
    """
    arrays: dict[str, Array] = {}
    for node in graph.inputs:
        arrays[node.name] = _check(node, as_array(node.name, by_name(graph, data)[node.name]))
    sizes = {name: array.shape[:2] for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        raise CompileError("SPK006", f"the inputs differ in samples or steps: {told}")
    return arrays


def check_steps(graph: Graph, data: Any, steps: int | None) -> tuple[dict[str, Array], int | None]:
    """As `check_inputs`, and the steps of a graph that has no inputs. Raises CompileError SPK001 and SPK006 as well."""
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1):
        raise CompileError("SPK001", f"steps is a whole number of at least 1, not {steps!r}")
    if graph.inputs:
        if data is None:
            names = ", ".join(f"'{node.name}'" for node in graph.inputs)
            raise CompileError("SPK006", f"the graph has inputs and none is given: {names}")
        if steps is None:
            return check_inputs(graph, data), None
        return {name: np.ascontiguousarray(array) for name, array in frames(graph, data, steps).items()}, None
    if data is not None and not (isinstance(data, Mapping) and not data):
        raise CompileError("SPK006", "the graph has no inputs, and one is given", fix="run(steps=100), --steps 100")
    if steps is None:
        extent({}, None)  # says so
    return {}, None if steps is None else int(steps)


def frames(graph: Graph, data: Any, steps: int, *, own: bool = False) -> dict[str, Array]:
    """As `check_inputs`, but an input may be frames (samples, *shape): each is fed at every one of the steps, without copies.

    own: an input may have steps of its own. Raises CompileError SPK006 where it has others and may not.
    """
    given = {name: as_array(name, array) for name, array in by_name(graph, data).items()}
    for node in graph.inputs:
        array, shape = given[node.name], node.type.shape
        if array.ndim == len(shape) + 1 and array.shape[1:] == shape:
            array = array[:, None]
            given[node.name] = np.broadcast_to(array, (len(array), steps, *shape)) if node.encode else array
    several = len({array.shape[1] for array in given.values() if array.ndim > 1}) > 1
    if several:  # frames beside inputs that change: all of them as long as the others
        given = {n: np.broadcast_to(a, (len(a), steps, *a.shape[2:])) if a.shape[1] == 1 else a for n, a in given.items()}
    checked = check_inputs(graph, given)
    for name, array in checked.items():
        if array.shape[1] not in (1, steps) and not own:
            what = f"the input '{name}' has {array.shape[1]} steps, and {steps} are asked for"
            raise CompileError("SPK006", what, fix="leave out steps (--steps), or give frames")
    return {n: np.broadcast_to(a, (len(a), steps, *a.shape[2:])) if a.shape[1] == 1 else a for n, a in checked.items()}


def recode(before: Graph, after: Graph, data: Mapping[str, Array]) -> dict[str, Array]:
    """Data that `before` takes as `after` takes them: inputs that got a unit or an encoder in between are turned into theirs."""
    old = {node.name: node for node in before.inputs}
    result = dict(data)
    for node in after.inputs:
        own = old[node.name]
        if node.name in data and (node.unit, node.encode) != (own.unit, own.encode):
            result[node.name] = _check(node, data[node.name])
    return result


def thinned(inputs: Mapping[str, Array], draw: int = 0) -> dict[str, Array]:
    """The same inputs with a share of them left out at random: samples that the network has not learnt by heart. draw: the seed."""
    rng = np.random.default_rng(draw)
    return {name: (array * (rng.random(array.shape, np.float32) >= LEFT_OUT)).astype(array.dtype) for name, array in inputs.items()}


def drawn(inputs: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """The same inputs thinned in several draws, one after the other: what one draw allows, another may not."""
    return (thinned(inputs, draw) for draw in range(DRAWS))


def shape_text(shape: tuple[int, ...]) -> str:
    """`(batch, T, 64)`: how data for such an input is laid out."""
    return "(" + ", ".join(["batch", "T", *map(str, shape)]) + ")"


def _spikes(array: Array) -> Array | None:
    """Where real numbers are 1, if they are 0 elsewhere; None if any is something else. A few samples at a time, so that what has
    to be stored to look stays near."""
    found = np.empty(array.shape, np.bool_)
    few = max(1, _NEAR // max(array[0].size, 1))
    for begin in range(0, len(array), few):
        part, ones = array[begin : begin + few], found[begin : begin + few]
        np.equal(part, 1, out=ones)
        if np.count_nonzero(part != 0) != np.count_nonzero(ones):
            return None
    return found


def _check(node: Input, array: Array) -> Array:
    shape = node.type.shape
    wanted = shape_text(shape)
    if array.ndim != len(shape) + 2 or array.shape[2:] != shape:
        fix = None
        if array.ndim == len(shape) + 1 and array.shape[1:] == shape:
            fix = (
                "one sample also needs its batch axis, x[None]; "
                "frames shown at every step need to know for how many, steps=T (--steps T)"
            )
        raise CompileError("SPK006", f"the input '{node.name}' has shape {array.shape}, not {wanted}", loc=node.loc, fix=fix)
    if 0 in array.shape[:2]:
        raise CompileError("SPK006", f"the input '{node.name}' of shape {array.shape} holds no samples or no steps")

    def refuse(bad: Array, what: str) -> None:
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            count = f" ({int(bad.sum())} of {array.size})"
            message = f"the input '{node.name}' holds {array[index]} at {list(index)}, {what}{count}"
            raise CompileError("SPK007", message, loc=node.loc)

    dtype = DTYPES[node.type.dtype]
    if array.dtype.kind == "f" and node.type.kind == "spike" and not node.encode and node.unit is None and node.bounds is None:
        spikes = _spikes(array)
        if spikes is not None:
            return np.ascontiguousarray(array if array.dtype == dtype else spikes.view(np.int8), dtype=dtype)
    if array.dtype.kind == "f":
        refuse(~np.isfinite(array), "which is not a finite number")
    if node.encode:
        try:
            array = encode(node.encode, array)
        except EncodingError as error:
            name = node.encode.partition(":")[0]
            raise CompileError(
                "SPK007", f"the input '{node.name}' goes through the encoder {name}: {error}", loc=node.loc
            ) from None
    elif node.unit is not None:
        whole = np.rint(array.astype(np.float64) / node.unit)
        low, high = node.bounds or int_range(node.type.dtype)
        outside = (whole < low) | (whole > high)
        if outside.any():
            index = tuple(int(i) for i in np.argwhere(outside)[0])
            span = f"{low * node.unit:.6g} to {high * node.unit:.6g}"
            raise CompileError(
                "SPK007",
                f"the input '{node.name}' holds {array[index]:.6g} at {list(index)}, beyond the range {span} that it was "
                f"calibrated for ({int(outside.sum())} of {array.size})",
                loc=node.loc,
                fix="calibrate with data that reach so far, or clip the data",
            )
        array = whole
    if node.type.kind == "spike" and node.bounds is None and array.dtype.kind in "biu" and array.min() >= 0 and array.max() <= 1:
        return np.ascontiguousarray(array, dtype=dtype)  # nothing had to be stored to look: a long recording is checked quickly
    if node.type.kind == "spike":
        refuse((array != 0) & (array != 1), "but takes spikes, 0 or 1")
    if not is_float(node.type.dtype):
        if array.dtype.kind == "f":
            refuse(array != np.rint(array), "but takes whole numbers")
        low, high = (0, 1) if dtype == np.bool_ else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        refuse((array < low) | (array > high), f"which {node.type.dtype} does not hold")
    if node.bounds is not None:
        low, high = node.bounds
        refuse((array < low) | (array > high), f"beyond its bounds {low} to {high}")
    return np.ascontiguousarray(array, dtype=dtype)
