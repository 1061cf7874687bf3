"""What the words of a command line mean: numbers, names, sizes, and the arrays of data files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spikec.diagnostics import CompileError
from spikec.files import check_file, reading
from spikec.spelling import did_you_mean

if TYPE_CHECKING:
    from spikec.ir.graph import Graph
    from spikec.ir.types import Array


def names_of(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def axis(key: str, text: str) -> int | None:
    """An axis, or none."""
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        option = "--" + key.replace("_", "-")
        raise CompileError("SPK001", f"{option} is a number or none, not '{text}'") from None


def scalar(text: str) -> bool | int | float | str | tuple[Any, ...]:
    """A value of an option as Python would write it; several with commas between them."""
    if text in ("true", "false"):
        return text == "true"
    if "," in text:
        return tuple(scalar(part.strip()) for part in text.split(","))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def byte_count(option: str, text: str | None) -> int | None:
    """65536, 64K or 2M."""
    if text is None:
        return None
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in ("K", "M", "G") else (text, "")
    if not digits.isascii() or not digits.isdigit():
        raise CompileError("SPK001", f"{option} is a number of bytes such as 65536, 64K or 2M, not '{text}'")
    return int(digits) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def option(pair: str) -> tuple[str, Any]:
    """KEY=VALUE."""
    key, equals, value = pair.partition("=")
    if not equals:
        raise CompileError("SPK001", f"--option {pair}: write KEY=VALUE")
    return key.replace("-", "_"), scalar(value)


def duration(text: str | None) -> float | None:
    """Seconds, of 1ms and the like."""
    if text is None:
        return None
    from spikec.ir.text import parse_duration

    return parse_duration(text)


def arrays_in(text: str) -> tuple[Path, dict[str, Array]]:
    """The arrays of a DATA argument; with :key only that one, and a .npy is an array called x."""
    import numpy as np

    path, key = Path(text), ""
    with reading(path):
        if not path.exists() and ":" in text:
            head, _, key = text.rpartition(":")
            path = Path(head)
    check_file(path)
    with reading(path):
        path.open("rb").close()
    if path.suffix == ".npy":
        try:
            found = {"x": np.load(path, allow_pickle=False)}
        except (OSError, ValueError, EOFError):
            raise CompileError("SPK007", f"{path}: not a readable .npy file of numbers") from None
    else:
        from spikec.ir.text import read_npz

        try:
            found = read_npz(path)
        except CompileError:
            raise CompileError("SPK007", f"{path}: not a readable .npz file of numbers") from None
    if key:
        if key not in found:
            raise CompileError("SPK007", f"{path}: there is no array '{key}' in it", fix=did_you_mean(key, found))
        return path, {key: found[key]}
    return path, found


def choose(path: Path, found: dict[str, Array], names: Sequence[str]) -> Any:
    """What a DATA argument gives to a graph with inputs of these names."""
    arrays = {key: array for key, array in found.items() if key != "y" or "y" in names} or found
    if names and all(name in arrays for name in names):
        return {name: arrays[name] for name in names}
    if len(names) == 1:
        if "x" in arrays:
            return arrays["x"]
        if len(arrays) == 1:
            return next(iter(arrays.values()))
    held = ", ".join(arrays) or "nothing"
    wanted = " and ".join(f"'{name}'" for name in names)
    raise CompileError("SPK007", f"{path} holds {held}; the graph takes {wanted}", fix=f"write {path}:KEY or rename the array")


def data_for(text: str, graph: Graph) -> Any:
    """What a DATA argument gives to a graph."""
    path, found = arrays_in(text)
    return choose(path, found, [node.name for node in graph.inputs])


#: What labels are called in files of other programs.
_LABELS: Final = ("label", "labels", "target", "targets", "classes", "y_train", "y_test")


def calibration(text: str) -> tuple[Any, Any]:
    """Calibration data and, under y, labels. The graph is not there yet: several inputs go by name.

    Labels under another name would be ignored beside x: SPK001.
    """
    _, found = arrays_in(text)
    labels = found.pop("y", None) if len(found) > 1 else None
    if "x" in found:
        if labels is None and (other := next((name for name in found if name.lower() in _LABELS), None)):
            raise CompileError("SPK001", f"{text}: labels go under the key y, not '{other}'", fix=f"np.savez(..., x=x, y={other})")
        return found["x"], labels
    return (next(iter(found.values())) if len(found) == 1 else found), labels


def example(options: argparse.Namespace) -> Any:
    """The example input that --example or --input-shape ask for."""
    import numpy as np

    if options.example and options.input_shape:
        raise CompileError("SPK001", "--example and --input-shape exclude each other")
    if options.example:
        path, found = arrays_in(options.example)
        return choose(path, found, ["x"])
    if options.input_shape:
        try:
            shape = tuple(int(part) for part in options.input_shape.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise CompileError("SPK001", f"--input-shape is a list such as 1,20,64, not '{options.input_shape}'")
        return np.random.Generator(np.random.PCG64(0)).integers(0, 2, shape).astype(np.float32)
    return None
