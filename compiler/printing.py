"""What commands print and save: tables, JSON, arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikec.diagnostics import CompileError

if TYPE_CHECKING:
    from spikec.ir.types import Array
    from spikec.result import Result
    from spikec.target import Target


def print_json(data: Any) -> None:
    """As text for other programs."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Columns aligned; numbers to the right."""
    text = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in text) for i in range(len(text[0]))]
    right = [all(isinstance(row[i], (int, float)) or _number(str(row[i])) for row in rows[1:]) for i in range(len(widths))]
    for row in text:
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(cells).rstrip())


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def target_json(target: Target) -> dict[str, Any]:
    """A target's data."""
    from dataclasses import asdict

    data = asdict(target)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}


def print_target(target: Target) -> None:
    """A target's data as text."""
    print(f"{target.name}: {target.description}")
    print(f"backend {target.backend}, level {target.level}, passes {' -> '.join(target.passes)}")
    if target.operations:
        print(f"operations: {', '.join(target.operations)}")
    if target.compiler.prefix:
        tools = target.compiler
        print(f"built with {tools.prefix}gcc {tools.flags}; {'no operating system' if tools.system == 'none' else tools.system}")
    if target.numbers:
        print()
        print_table(
            [["number", "value", "unit", "status", "source"]]
            + [[key, item.value, item.unit, item.status, item.source] for key, item in target.numbers.items()]
        )
    for model in (*target.costs, *([target.baseline] if target.baseline else [])):
        print(f"\ncosts, {model.label} ({model.status}): {model.source}")
        found = [("pJ", model.energy), ("ns", model.time)]
        rows = [[name, *map("{:g}".format, cost), unit] for unit, costs in found for name, cost in costs.items()]
        print_table([["operation", "low", "likely", "high", "unit"], *rows])
    for neuron in target.neurons:
        print(f"\nneuron {neuron.name}, in integers as the target computes it:\n{neuron.fixed.strip()}")


def result_arrays(result: Result) -> dict[str, Array]:
    """Outputs under their names, recorded layers as spikes.LAYER, final states as state.LAYER.NAME."""
    arrays = dict(result.outputs)
    arrays |= {f"spikes.{name}": array for name, array in result.records.items()}
    arrays |= {f"state.{node}.{name}": a for node, states in result.states.items() for name, a in states.items()}
    return arrays


def result_json(result: Result) -> dict[str, Any]:
    """What a run gave: sums, counts, estimate."""
    from dataclasses import asdict

    from spikec.ir.interpret import default_record

    data: dict[str, Any] = {
        "backend": result.backend,
        "seconds": result.seconds,
        "outputs": {
            name: {"shape": list(array.shape), "nonzero": int((array != 0).sum()), "sum": float(array.sum())}
            for name, array in (*result.outputs.items(), *result.records.items())
        },
    }
    if all(name in result.records for name in default_record(result.graph)):
        data["counts"] = {name: asdict(item) for name, item in result.counts.items()}
        data["spike_rate"] = result.spike_rate
        data["dormant"] = {name: found.tolist() for name, found in result.dormant.items()}
        data["estimate"] = result.estimate.as_json()
    return data


def may_be_written(path: Path) -> bool:
    """Whether a path is a file, or nothing yet, in a folder. A device is neither: the new file would take its place."""
    try:
        return path.absolute().parent.is_dir() and (path.is_file() or not path.exists())
    except OSError:
        return False


def save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """A .npz that is there wholly or not at all."""
    from spikec.ir.text import npz_bytes

    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(npz_bytes(arrays))
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CompileError("SPK008", f"{path}: cannot be written ({error.strerror})") from None
