"""Writing a graph of integers as a SLAYER `.net` file, where it is a chain of blocks as SLAYER has them.

A block is a dense or convolutional sum (or a dense one with recurrence) and Loihi's LIF. All blocks must hand on their spikes in
the same step, or all a step later. What the format does not say goes into the ledger: with which options the file reads back.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from spikec.diagnostics import CompileError, Diagnostic
from spikec.frontend.slayer.programs import lif
from spikec.ir.graph import Graph
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Ref, Reshape
from spikec.ir.types import Array
from spikec.ledger import Ledger

_BIAS_SHIFT: Final = 6


def write_net(graph: Graph, path: str | Path, *, ledger: Ledger | None = None) -> None:
    """Write a fixed graph as a `.net` file.

    ledger: told the options with which the file reads back as this network. Raises CompileError: SPK201 neurons and SPK202 layers
    that SLAYER does not have, all at once; SPK008, SPK009.
    """
    try:
        h5py = import_module("h5py")
    except ModuleNotFoundError:
        raise CompileError(
            "SPK009", "SLAYER files (.net) need h5py, which is not installed", fix="pip install 'spikec[slayer]'"
        ) from None
    layers = _Chain(graph, ledger if ledger is not None else Ledger()).layers()
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for number, layer in enumerate(layers):
            _put(file.create_group(f"layer/{number}"), layer)
    try:
        Path(path).write_bytes(buffer.getvalue())
    except OSError as error:
        raise CompileError("SPK008", f"{path}: cannot be written ({error.strerror})") from None


def _put(group: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _put(group.create_group(key), value)
        elif isinstance(value, str):
            group.create_dataset(key, (1,), "S10", [value.encode()])
        else:
            group.create_dataset(key, data=value)


class _Chain:
    def __init__(self, graph: Graph, ledger: Ledger) -> None:
        self.graph, self.ledger = graph, ledger
        self.problems: list[Diagnostic] = []
        #: Steps between a block and the next, as found so far; and the phases of periodic resets.
        self.shifts: set[int] = set()
        self.resets: set[tuple[int, int]] = set()
        self.plain = lif(reset=False, volts=False, graded=False)
        self.reset = lif(reset=True, volts=False, graded=False)

    def layers(self) -> list[dict[str, Any]]:
        """The layers of the file. Raises CompileError with everything that is in the way."""
        graph = self.graph
        if graph.level == "float":
            raise CompileError(
                "SPK202",
                f"a .net file holds integers; {graph.name} is at the level 'float'",
                fix="compile it first, and convert the .sir of the pass that made it integers",
            )
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise CompileError(
                "SPK202", f"a .net file has one input and one output, not {len(graph.inputs)} and {len(graph.outputs)}"
            )
        (source,) = graph.inputs
        if source.type.kind != "spike":
            self._bad(source, "takes numbers; a file without input neurons is fed spikes")
        layers: list[dict[str, Any]] = [{"type": "input", "shape": _shape(source.type.shape)}]
        done: set[str] = {source.name}
        end: Node = source
        steps = 0
        for block in self._blocks(source, done):
            steps += block.pop("steps", 0)
            population = block.pop("population", None)
            if population is not None:
                block["neuron"] = self._neuron(population, block, steps)
                end = population
            layers.append(block)
        for node in graph.nodes:
            if node.name not in done and not self.problems:
                self._bad(node, f"this {node.op} is no part of a chain of SLAYER's blocks")
            if node.lag:
                self._bad(node, "does its steps late: the graph was retimed", "take the graph before the pass 'retime'")
        if not self.problems and graph.outputs[0][1] != Ref(end.name):
            self._bad(end, "is the last block, but not the graph's output")
        if len(self.shifts) > 1:
            self._bad(
                source,
                f"spikes reach the next block after {' or '.join(map(str, sorted(self.shifts)))} steps: SLAYER has one for all",
            )
        elif self.shifts - {0, 1}:
            self._bad(source, f"spikes reach the next block after {max(self.shifts)} steps; SLAYER has 0 or 1")
        if len(self.resets) > 1:
            self._bad(source, "the periodic resets of the blocks do not follow from one interval and one offset")
        if self.problems:
            raise CompileError.many(self.problems)
        self.ledger.record("", "convention", f"reads back with delay_shift={'true' if self.shifts == {1} else 'false'}")
        for interval, offset in self.resets:
            self.ledger.record("", "convention", f"reads back with reset_interval={interval}, reset_offset={offset}")
        return layers

    def _bad(self, node: Node, message: str, fix: str | None = None) -> None:
        code = "SPK201" if isinstance(node, Neuron) else "SPK202"
        self.problems.append(Diagnostic(code, f"%{node.name}: {message}", loc=node.loc, fix=fix))

    def _next(self, node: Node, done: set[str]) -> tuple[Node, Ref] | None:
        """The one reader of a node that is not part of the chain yet."""
        readers = [(user, user.inputs[index]) for user, index in self.graph.users[node.name] if user.name not in done]
        if len(readers) > 1:
            self._bad(node, f"is read by {' and '.join('%' + user.name for user, _ in readers)}; in a chain only one does")
        return readers[0] if readers else None

    def _blocks(self, source: Input, done: set[str]) -> Iterator[dict[str, Any]]:
        """Layers from front to back; `population` is a block's neuron, `steps` what its input waited."""
        here: Node = source
        waited = 0
        while not self.problems and (found := self._next(here, done)) is not None:
            node, ref = found
            waited += ref.delay
            done.add(node.name)
            if ref.init is not None or ref.port:
                self._bad(node, f"reads {ref} with initial values or from a further port")
                return
            if isinstance(node, Reshape):
                if len(node.shape) != 1:
                    self._bad(node, f"a reshape to {node.shape}; SLAYER flattens only")
                    return
                if len(self.graph.shape_of(here.name)) > 1:
                    yield {"type": "flatten", "shape": _shape(node.shape)}
                here = node
                continue
            if not isinstance(node, (Dense, Conv)):
                self._bad(node, f"SLAYER's blocks begin with a dense or a convolutional sum, not with {node.op}")
                return
            layer = self._sum(node)
            after = self._next(node, done)
            if after is not None and isinstance(total := after[0], Add):
                done.add(total.name)
                own = self._next(total, done)
                back = self._recurrence(node, total, own[0] if own else None)
                if back is None:
                    self._bad(total, "this sum is no recurrence of a dense block on itself")
                    return
                done.add(back.name)
                layer |= {"type": "dense_rec", "weight_rec": back.weight.astype(np.float32)}
                after = own
            if after is None or not isinstance(after[0], Neuron) or after[1].delay:
                self._bad(node, "no neurons follow in the same step")
                return
            population = after[0]
            done.add(population.name)
            self.shifts.add(waited)
            yield {**layer, "population": population, "steps": waited}
            here, waited = population, 0

    def _recurrence(self, node: Node, total: Add, population: Node | None) -> Dense | None:
        """The dense layer from the population's last step into the same sum."""
        others = [ref for ref in total.inputs if ref.node != node.name]
        if len(total.inputs) != 2 or len(others) != 1 or any(ref.delay for ref in total.inputs) or not isinstance(node, Dense):
            return None
        back = self.graph[others[0].node]
        if not isinstance(back, Dense) or back.bias is not None or back.delay is not None or population is None:
            return None
        return back if back.inputs == (Ref(population.name, delay=1),) and back.inputs[0].init is None else None

    def _sum(self, node: Dense | Conv) -> dict[str, Any]:
        shape = self.graph.shape_of(node.name)
        if node.bias is not None:
            self._bad(
                node, "has a bias; SLAYER's is part of the neuron", "compile it for loihi2 up to 'quantize', which moves it there"
            )
        weight = node.weight.astype(np.float32)
        if isinstance(node, Dense):
            if len(shape) != 1:
                self._bad(node, f"a dense sum over the last axis of {shape}")
            layer = {"type": "dense", "shape": _shape(shape), "inFeatures": weight.shape[1], "outFeatures": weight.shape[0]}
            if node.delay is not None:
                layer["delay"] = node.delay.astype(np.int32)
            return {**layer, "weight": weight}
        if weight.ndim != 4 or node.delay is not None:
            self._bad(node, "a convolution with delays, or of one axis")
        return {
            "type": "conv",
            "shape": _shape(shape),
            "weight": weight,
            "kernelSize": np.asarray(weight.shape[2:]),
            "inChannels": weight.shape[1] * node.groups,
            "outChannels": weight.shape[0],
            "stride": np.asarray(node.stride),
            "padding": np.asarray(node.padding),
            "dilation": np.asarray(node.dilation),
            "groups": node.groups,
        }

    def _neuron(self, node: Neuron, layer: dict[str, Any], steps: int) -> dict[str, Any]:
        periodic = node.program == self.reset
        if not periodic and node.program != self.plain:
            self._bad(
                node, f"@{node.program.name} is none of SLAYER's neurons", "SLAYER has Loihi's LIF, as the target loihi2 makes it"
            )
            return {}
        if node.init or node.start or node.stop is not None:
            self._bad(node, "starts late, stops early, or begins with a state of its own")
        given = {key: value.astype(np.int64) for key, value in node.params.items()}
        shift = given["bias_exp"] - _BIAS_SHIFT
        bias = np.where(shift >= 0, given["bias_mant"] << np.maximum(shift, 0), given["bias_mant"] >> np.maximum(-shift, 0))
        if (bias << _BIAS_SHIFT != given["bias_mant"] << given["bias_exp"]).any():
            self._bad(node, "its bias is finer than a unit of the weights, which is all that SLAYER holds")
        if bias.any():
            layer["bias"] = _plain(bias)
        if periodic:
            interval, offset = given["interval"], given["offset"]
            if interval.size != 1 or offset.size != 1:
                self._bad(node, "its neurons are reset at different times")
            else:
                every = int(interval.item())
                self.resets.add((every, (int(offset.item()) - 1 - steps) % every))
        return {
            "type": "CUBA",
            "iDecay": _plain(given["du"] + 1),
            "vDecay": _plain(given["dv"]),
            "vThMant": _plain(given["vth"]),
            "refDelay": 1,
            "gradedSpike": False,
        }


def _shape(shape: tuple[int, ...]) -> Array:
    return np.asarray(shape, np.int64)


def _plain(array: Array) -> Any:
    return int(array.item()) if array.size == 1 else array
