"""What a chip's numbers allow a population and the layers that feed it: weights, decays, thresholds, and the largest scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeGuard

import numpy as np

from spikec.bits import DEFAULT
from spikec.diagnostics import Diagnostic
from spikec.ir.graph import Graph
from spikec.ir.ops import Conv, Dense, Neuron, Node, Sparse
from spikec.ir.text import parse_program
from spikec.ir.types import Array
from spikec.passes.groups import Group
from spikec.passes.payloads import Payload, worst_sum
from spikec.passes.translate import largest_amount
from spikec.target import NativeNeuron, Target

#: Rules of thresholds, and of what is added to one.
AMOUNTS: Final = ("threshold", "lower_threshold", "amount", "reached")


def one_each(node: Node) -> TypeGuard[Sparse]:
    """Whether a layer gives every neuron at most one connection: synapses back, spikes that are added to a current, biases."""
    return isinstance(node, Sparse) and node.delay is None and bool(np.all(np.diff(node.indptr) <= 1))


@dataclass(frozen=True)
class ChipGrid:
    """A target's grid of numbers. widths: bits of a weight, by layer. asked: the user's option that a rounding follows from."""

    target: Target
    widths: Mapping[str, int]
    asked: str = ""

    def native(self, node: Neuron) -> NativeNeuron | None:
        """The native neuron whose pattern a population is; None if it runs as a program of its own."""
        for native in self.target.neurons:
            if not native.pattern:
                continue
            pattern = parse_program(native.pattern)
            if (pattern.params, pattern.body) == (node.program.params, node.program.body):
                return native
        return None

    def bias_exponent(self, wanted: Array) -> int:
        """The exponent at which the largest of some biases just fits the mantissa."""
        largest = float(np.max(np.abs(wanted), initial=0))
        exponent = 0
        while np.rint(largest / (1 << exponent)) > self.target.integer("bias_mantissa_max"):
            exponent += 1
        return exponent

    def problems(self, node: Neuron) -> Iterable[Diagnostic]:
        """What of a native population is out of the target's range."""
        if self.native(node) is None:
            return
        for value in self.by_rule(node, "decay", "decay_minus_one"):
            if np.any(value < 0) or np.any(value > 1):
                worst = float(value.ravel()[np.argmax(np.abs(value - 0.5))])
                yield Diagnostic(
                    "SPK203",
                    f"%{node.name}: the decay {worst:.6g} is outside 0 to 1, the target's range",
                    loc=node.loc,
                    fix="clamp it in the model",
                )
        if "offset" in node.params:
            interval, offset = node.params["interval"], node.params["offset"]
            whole = np.all(interval == np.rint(interval)) and np.all(offset == np.rint(offset))
            if not whole or np.any(interval < 1) or np.any(offset < 0) or np.any(offset >= interval):
                yield Diagnostic(
                    "SPK203",
                    f"%{node.name}: the reset interval must be a whole number of steps, and its offset less than it",
                    loc=node.loc,
                )
        for theta in self.by_rule(node, "threshold", "reached"):
            if np.any(theta < 0):
                yield Diagnostic(
                    "SPK203",
                    f"%{node.name}: the threshold {float(theta.min()):.6g} is negative; the target's is 0 or more",
                    loc=node.loc,
                    fix="shift membrane and threshold by a bias",
                )

    def by_rule(self, node: Neuron, *rules: str) -> list[Array]:
        """The parameters of a native pattern from which some of the rules make the target's."""
        native = self.native(node)
        pairs = [text.split() for text in native.rules.values()] if native else []
        return [np.atleast_1d(node.params[param]) for rule, param in pairs if rule in rules]

    def width(self, name: str) -> int:
        """Bits of a layer's weights; of the parts that a layer was split into, those of the layer."""
        while name not in self.widths and "_" in name:
            name = name.rpartition("_")[0]
        return self.widths.get(name, DEFAULT)

    def weight_grid(self, name: str) -> tuple[int, int, int]:
        """Legal weights of a layer: the distance of two, the least and the largest."""
        step = self.step(name)
        return step, self.target.integer("weight_min"), self.target.integer("weight_max") - step + 2

    def layer_grid(self, node: Dense | Sparse | Conv, wanted: Array) -> tuple[int, int, int]:
        """The same for these weights at their scale: a finer grid where all are small, with an exponent below 0."""
        step, bottom, top = self.weight_grid(node.name)
        while step % 2 == 0 and not isinstance(node, Conv):
            finer = np.rint(wanted / (step // 2)) * (step // 2)
            if finer.min(initial=0) < bottom // 2 or finer.max(initial=0) > top // 2:
                break
            step, bottom, top = step // 2, bottom // 2, top // 2
        return step, bottom, top

    def step(self, name: str) -> int:
        """Distance of two legal weights: dropped bits, one more because signs are mixed."""
        return self.target.integer("weight_step") << (self.target.integer("weight_bits") - self.width(name))

    def weight_limit(self, group: Group) -> float:
        """The largest scale that clips no weight and keeps threshold and bias in range."""
        limits = [math.inf]
        for node in group.weighted:
            if one_each(node):
                largest = float(np.max(np.abs(node.weight), initial=0))
                most = self.target.integer("weight_max") << self.target.integer("weight_exponent_max") - 1
                limits += [most / largest] if largest else []
                continue
            _, bottom, top = self.weight_grid(node.name)
            high, low = float(node.weight.max(initial=0)), float(node.weight.min(initial=0))
            if high > 0 and top > 0:  # a single bit holds no positive weight
                limits.append(top / high)
            if low < 0:
                limits.append(bottom / low)
        found = min(*limits, self.other_limits(group))
        return found if math.isfinite(found) else 1.0

    def other_limits(self, group: Group) -> float:
        """The largest scale that keeps threshold, bias and amounts in range."""
        limits = [math.inf]
        shift = 1 << self.target.integer("membrane_shift")
        bias_top = self.target.integer("bias_mantissa_max") << self.target.integer("bias_exponent_max")
        for node in group.neurons:
            if self.native(node) is None:
                largest = largest_amount(node, None)
                if largest > 0:  # what `fraction_bits` would leave no bit for
                    limits.append((1 << (self.target.integer("membrane_bits") - 1)) / (4 * largest))
                continue
            amounts = self.by_rule(node, *AMOUNTS)
            largest = max((float(np.max(np.abs(a[np.isfinite(a)]), initial=0)) for a in amounts), default=0.0)
            if largest > 0:
                limits.append(self.target.integer("threshold_max") / largest)
            bias = max((float(np.max(np.abs(a))) for a in self.by_rule(node, "bias")), default=0.0)
            if bias > 0:
                limits.append(bias_top / (shift * bias))
        return min(limits)

    def kept_current(self, node: Neuron) -> str | None:
        """The state of a native neuron whose current has a memory and whose membrane has none: a membrane without a reset."""
        native = self.native(node)
        if native is None or not native.bias_synapse:
            return None
        memory = any(np.any(alpha) for alpha in self.by_rule(node, "decay_minus_one"))
        return str(native.bias_synapse["state"]) if memory and not any(np.any(b) for b in self.by_rule(node, "decay")) else None

    def reach_limit(self, group: Group, records: Mapping[str, Array] | None) -> float:
        """The scale at which currents that are membranes, which wrap, reach a quarter of their range on the calibration data.

        Without data they may get up to 32 times the threshold.
        """
        top = 1 << (self.target.integer("membrane_bits") - 1 - self.target.integer("membrane_shift"))
        limits = [math.inf]
        for node in group.neurons:
            state = self.kept_current(node)
            if state is None:
                continue
            seen = None if records is None else records.get(f"{node.name}.{state}")
            largest = 4 * float(np.max(np.abs(seen), initial=0)) if seen is not None else 2 * largest_amount(node, None)
            if largest:
                limits.append(top / largest)
        return min(limits)

    def sum_limit(
        self, group: Group, graph: Graph, payloads: Mapping[str, Payload], records: Mapping[str, Array] | None = None
    ) -> float:
        """The scale at which the worst sum of payloads just does not wrap, the memory of the current counted in."""
        if not any(graph.type_of(node.inputs[0]).kind != "spike" for node in group.weighted):
            return math.inf
        worst = sum(worst_sum(graph, node, payloads) for node in group.weighted)
        kept = [float(np.max(node.params["alpha"], initial=0)) for node in group.neurons if "alpha" in node.params]
        gain = 1 / max(1 - max(kept, default=0.0), 1 / (1 << self.target.integer("decay_bits")))
        if records is not None and math.isfinite(self.reach_limit(group, records)):
            gain = 1.0  # how far it gets is known
        most = (1 << (self.target.integer("membrane_bits") - 1 - self.target.integer("membrane_shift"))) - 1
        return most / (worst * gain) if worst else math.inf
