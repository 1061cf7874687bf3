"""Other weights for a graph that was traced once: where its arrays come from, and putting new ones in their place.

Tracing notes which arrays of the graph are tensors of the model's state dict as they are, and which come from a batch norm. A
tensor that went into anything else (a decay, a product of two weights, a neuron's numbers) is `opaque`: as long as it stays the
same the graph is right, and where it changes a new trace is needed. So the result is exactly what a new trace would give, or an
error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikec.diagnostics import CompileError
from spikec.files import check_file, reading
from spikec.frontend.tracing.build import Built
from spikec.frontend.tracing.fold import Read
from spikec.frontend.tracing.layers import norm_numbers
from spikec.frontend.tracing.values import Const
from spikec.ir.graph import Graph
from spikec.ir.ops import Conv, Dense, Node, Scale, Sparse
from spikec.ir.types import Array

#: Plain data, which is kept in a build folder as weights.json. state: key -> dtype, shape and sha256 of what was traced;
#: arrays: node, field and key; norms: node and the keys of a batch norm; opaque: keys that need a new trace.
Origins = dict[str, Any]
_ALONE = "save the weights alone: torch.save(model.state_dict(), path)"


def read_state(path: str | Path) -> dict[str, Any]:
    """The state dict in a file that holds nothing but weights; in a checkpoint, what is under "state_dict" and the like.

    Raises CompileError SPK002 (it cannot be read) or SPK112 (it holds something else, or needs more than weights).
    """
    file = Path(path)
    check_file(file)
    with reading(file):
        file.open("rb").close()
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        first = " ".join(str(error).split())
        objects = "Weights" in first or "nsafe" in first
        why = "it holds Python objects, not only tensors" if objects else first[:120]
        notes = ["loading them could run any code, so that spikec never does"] if objects else []
        raise CompileError("SPK112", f"{path} cannot be loaded as weights: {why}", notes=notes, fix=_ALONE) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(item, torch.Tensor) for item in state.values()):
        raise CompileError("SPK112", f"{path} holds no state dict", fix=_ALONE)
    return dict(state)


def fitted(state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: str | Path) -> dict[str, Any]:
    """The tensors under the model's own keys; a common prefix, as of nn.DataParallel ("module."), is taken off.

    Raises CompileError SPK112 with everything that does not fit.
    """
    if shapes and state and not shapes.keys() & state.keys():
        for key in state:
            prefix = next((key[: -len(own)] for own in shapes if key.endswith(f".{own}")), "")
            if prefix and {f"{prefix}{own}" for own in shapes} == state.keys():
                state = {own: state[f"{prefix}{own}"] for own in shapes}
                break
    notes = [f"{key} is missing in the file" for key in shapes if key not in state]
    notes += [f"the model has no {key}" for key in state if key not in shapes]
    for key, shape in shapes.items():
        if key in state and tuple(state[key].shape) != shape:
            notes.append(f"{key} has shape {tuple(state[key].shape)} in the file and {shape} in the model")
    if notes:
        raise CompileError("SPK112", f"the weights in {path} do not fit the model", notes=notes)
    return {key: state[key] for key in shapes}


def load_weights(model: torch.nn.Module, path: str | Path) -> None:
    """Load a state dict into a model. Raises CompileError SPK002 and SPK112, see `read_state` and `fitted`."""
    state = read_state(path)
    model.load_state_dict(fitted(state, {key: tuple(item.shape) for key, item in model.state_dict().items()}, path))


# ------------------------------------------------------------------------------------------------------------- origins


def find_origins(built: Built) -> Origins | None:
    """Where the arrays of a traced graph come from; None where putting the very same weights in would change it."""
    record, graph = built.folded.record, built.graph
    opaque = set(record.touched)
    arrays: list[dict[str, str]] = []
    norms: list[dict[str, Any]] = []
    names = {cell: name for (name, port), (cell, number) in built.wires.items() if not port and not number}
    for cell in built.folded.cells:
        for item in cell.reads:
            found = item.init.values() if isinstance(item, Read) else [item]
            opaque.update(key for const in found if isinstance(const, Const) for key in const.keys)
        for item in cell.op.attrs.values():
            opaque.update(item.keys if isinstance(item, Const) else ())
        node = graph[names[cell]] if cell in names else None
        if cell.op.kind in ("linear", "conv"):
            for field in ("weight", "bias"):
                const = cell.op.attrs.get(field)
                if const is None or const.name not in record.state:
                    continue
                if isinstance(node, (Dense, Sparse, Conv)) and _same(getattr(node, field), record.state[const.name]):
                    arrays.append({"node": node.name, "field": field, "key": const.name})
                elif node is not None:
                    opaque.add(const.name)
        elif cell.op.kind == "affine":
            recipe = dict(cell.op.attrs["recipe"])
            channels = cell.op.attrs["factor"].array.shape
            if isinstance(node, Scale) and graph.shape_of(node.name)[:1] == channels and recipe:
                norms.append({"node": node.name, **recipe})
            elif node is not None:
                opaque.update(key for key in recipe.values() if isinstance(key, str))
    origins: Origins = {
        "state": {key: _described(tensor) for key, tensor in record.state.items()},
        "arrays": arrays,
        "norms": norms,
        "opaque": sorted(opaque & record.state.keys()),
    }
    return origins if _replaced(graph, origins, record.state) == graph else None


def _same(array: Array | None, tensor: Any) -> bool:
    own = tensor.detach().cpu().numpy()
    return array is not None and array.shape == own.shape and array.dtype == own.dtype and array.tobytes() == own.tobytes()


def _described(tensor: Any) -> dict[str, Any]:
    array = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
    }


def with_weights(graph: Graph, origins: Origins | None, path: str | Path) -> Graph:
    """The graph that a new trace of the model would give with the state dict in a file, without tracing.

    graph: as traced, before any pass. Raises CompileError SPK002 and SPK112: the file, what does not fit, and what would need a
    new trace.
    """
    if origins is None:
        raise CompileError(
            "SPK112",
            f"{path}: this graph does not say which of its arrays are which weights",
            fix="compile the torch model itself with these weights",
        )
    described = origins["state"]
    state = fitted(read_state(path), {key: tuple(item["shape"]) for key, item in described.items()}, path)
    state = {key: tensor.to(getattr(torch, described[key]["dtype"])) for key, tensor in state.items()}
    changed = [key for key in origins["opaque"] if _described(state[key])["sha256"] != described[key]["sha256"]]
    if changed:
        raise CompileError(
            "SPK112",
            f"the weights in {path} need a new trace",
            notes=[f"{key} has changed, and the graph holds something that was computed from it" for key in changed],
            fix="compile the torch model itself with these weights",
        )
    return _replaced(graph, origins, state)


def _replaced(graph: Graph, origins: Origins, state: Mapping[str, Any]) -> Graph:
    new: dict[str, Node] = dict(graph.by_name)
    for row in origins["arrays"]:
        array = state[row["key"]].detach().cpu().numpy()
        new[row["node"]] = replace(new[row["node"]], **{row["field"]: array})
    for row in origins["norms"]:
        tensors = {part: state[row[part]].detach() if row[part] else None for part in ("mean", "variance", "weight", "bias")}
        factor, offset = (one_or_all(item.cpu().numpy()) for item in norm_numbers(eps=row["eps"], **tensors))
        new[row["node"]] = replace(new[row["node"]], factor=factor, offset=offset)  # type: ignore[call-arg]  # it is a Scale
    return graph.with_nodes(new[node.name] for node in graph.nodes)


def one_or_all(array: Array) -> Array:
    """One number where all channels have the same, as tracing writes it."""
    return array.reshape(-1)[0].reshape(()) if array.size and bool(np.all(array == array.flat[0])) else array
