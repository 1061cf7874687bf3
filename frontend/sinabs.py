"""sinabs' layers as programs. Tested with sinabs 3.1.3.

Derived from `sinabs.layers.functional` and compared with it bit for bit (x: input, u: membrane before the reset, s: spikes):

| part | option | program |
|---|---|---|
| current | tau_syn | i = alpha_syn (i + x), else i = x |
| | norm_input | c = (1 - alpha_mem) i, else c = i; ALIF scales the state i itself |
| membrane | LIF, ALIF, ExpLeak | u = alpha_mem v + c |
| | IAF | u = v + c |
| threshold | ALIF | theta = b0 + adapt_scale b; after the spikes b = alpha_adapt b + (1 - alpha_adapt) s |
| spikes | SingleSpike | s = u >= theta |
| | MultiSpike, MaxSpike | s = max(floor(u / theta), 0), at most max_num_spikes_per_bin |
| | ExpLeak | the output is u |
| reset | MembraneSubtract | v = u - s theta, or u - s subtract_value |
| | MembraneReset | v = select(s == 0, u, 0) + reset_value: sinabs adds reset_value at every step, also without a spike |
| floor | min_v_mem | v = max(v - min_v_mem, 0) + min_v_mem |

A layer's `forward` walks over time and calls its function of one step; both, and `rec_connect`, are followed like any other code.
Copies are made without sinabs' own `__deepcopy__`, which forgets options (ALIF's norm_input).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any, Final

import numpy as np
import sinabs.activation as activation
import torch
from sinabs.layers import ALIF, IAF, LIF, IAFRecurrent, LIFRecurrent, StatefulLayer
from sinabs.layers.functional import alif as alif_steps
from sinabs.layers.functional import lif as lif_steps

from spikec.diagnostics import CompileError
from spikec.frontend.registry import Leaf, StepCall, Support
from spikec.ir.neuron import Assign, Emit, Expr, Program, State, Var, call
from spikec.ir.types import Array

VERSION = "3.1.3"

_INSIDE: Final = "traced from the inside"
SUPPORT: Final = (
    Support("IAF", "", "exact"),
    Support("LIF", "", "exact"),
    Support("LIF", "tau_mem, tau_syn: numbers, tensors, one per neuron", "exact"),
    Support("LIF", "train_alphas", "exact"),
    Support("LIF", "norm_input", "exact"),
    Support("LIF", "min_v_mem", "exact"),
    Support("LIF", "spike_threshold: one per neuron", "exact"),
    Support("LIF", "spike_threshold at or below 0", "refused", "with MultiSpike and MaxSpike, which divide by it"),
    Support("LIF", "spike_fn: MultiSpike, SingleSpike, MaxSpike", "exact", "several spikes a step are graded spikes"),
    Support("LIF", "spike_fn, reset_fn: your own", "exact", f"{_INSIDE}; its output is a value, not a graded spike"),
    Support("LIF", "reset_fn: MembraneSubtract, MembraneReset", "exact", "sinabs adds reset_value at every step, spike or not"),
    Support("LIF", "surrogate_grad_fn", "exact", "any: it is not part of the forward pass"),
    Support("LIF", "shape", "exact"),
    Support("LIF", "record_states, returned", "exact"),
    Support("LIF", "states left over from an earlier call", "exact", "every sample begins at zero"),
    Support("LIF", "float64", "refused", "sinabs computes spikes in float32 then as well; all layers: pass a float32 example"),
    Support("ALIF", "", "exact"),
    Support("ALIF", "tau_syn, train_alphas, norm_input, adapt_scale, min_v_mem", "exact"),
    Support("ALIF", "record_states, returned", "refused", "sinabs changes the states after it has recorded them"),
    Support("ExpLeak", "", "exact", "the output is the membrane before min_v_mem"),
    Support("IAFRecurrent, LIFRecurrent, ALIFRecurrent", "", "exact", "rec_connect may be any module that can be traced"),
    Support(
        "IAFRecurrent, LIFRecurrent", "record_states, returned", "refused", "sinabs changes the states after it has recorded them"
    ),
    Support("IAFSqueeze, LIFSqueeze, ALIFSqueeze, ExpLeakSqueeze", "num_timesteps", "exact"),
    Support("IAFSqueeze, LIFSqueeze, ALIFSqueeze, ExpLeakSqueeze", "batch_size", "exact"),
    Support(
        "SumPool2d", "", "exact", "sinabs multiplies a mean, which for windows of 11, 13, 14 and more may be one bit off the sum"
    ),
    Support("Merge", "", "exact", "of equal sizes, or padded at the end"),
    Support("Repeat, FlattenTime, UnflattenTime", "", "exact"),
    Support("QuantizeLayer, NeuromorphicReLU", "", "exact"),
    Support("Cropping2dLayer, ChannelShift", "", "exact"),
    Support("SpikingMaxPooling2dLayer", "", "refused", "it counts the spikes of the past"),
    Support("Img2SpikeLayer, Sig2SpikeLayer", "", "refused", "they draw random numbers: encode before the model"),
    Support("from_torch.from_model", "", "exact"),
)

_V, _I, _X, _U, _S, _B = (Var(name) for name in ("v", "i", "x", "u", "s", "b"))
_THETA: Final = Var("theta")


def leaf_of(item: Any) -> Leaf | None:
    """The program of a sinabs layer; None for those whose inside is traced. SPK101 for an option that cannot be had."""
    if not isinstance(item, (LIF, ALIF)):
        return None
    spike = (
        "none" if item.spike_fn is None else _SPIKES.get(item.spike_fn if isinstance(item.spike_fn, type) else type(item.spike_fn))
    )
    reset = "none" if item.spike_fn is None else _RESETS.get(type(item.reset_fn))
    if spike is None or reset is None:
        return None
    adaptive = isinstance(item, ALIF)
    with torch.no_grad():
        made = _Writer(item, spike, reset, adaptive)
    returns = ("s", "u", "v", *(("i",) if made.has_current else ()), *(("b", "theta", "theta_next") if adaptive else ()))
    return Leaf(made.program, made.params, returns=returns, step=_step_of(made.has_current, adaptive))


_SPIKES: Final[dict[Any, str]] = {activation.MultiSpike: "multi", activation.SingleSpike: "single", activation.MaxSpike: "max"}
_RESETS: Final[dict[Any, str]] = {activation.MembraneSubtract: "subtract", activation.MembraneReset: "reset"}


class _Writer:
    """The program and parameters of one layer."""

    def __init__(self, item: Any, spike: str, reset: str, adaptive: bool) -> None:
        self.item, self.params = item, dict[str, Array]()
        self.body: list[Assign] = []
        self.has_current = item.alpha_syn_calculated is not None
        self.name = "sinabs_" + ("alif" if adaptive else "iaf" if isinstance(item, (IAF, IAFRecurrent)) else "lif")
        self.charge(adaptive)
        if adaptive:
            self.param("b0", item.b0)
            self.param("adapt_scale", item.adapt_scale)
            self.body.append(Assign("theta", Var("b0") + Var("adapt_scale") * _B))
        elif spike != "none":
            self.param("theta", item.spike_threshold)
        self.fire(spike, adaptive)
        self.reset(reset)
        if adaptive:
            alpha = self.item.alpha_adapt_calculated
            self.param("alpha_adapt", alpha)
            self.param("gain_adapt", 1 - alpha)
            self.body.append(Assign("b", Var("alpha_adapt") * _B + Var("gain_adapt") * _S))
            self.body.append(Assign("theta_next", Var("b0") + Var("adapt_scale") * _B))
        if item.min_v_mem is not None:
            low = self.param("v_min", item.min_v_mem)
            self.body.append(Assign("v", call("max", _V - low, 0) + low))
        kind = {"single": "spike", "none": "value"}.get(spike, "graded")
        states = (State("v"), *((State("i"),) if self.has_current else ()), *((State("b"),) if adaptive else ()))
        name = f"{self.name}_leak" if spike == "none" else f"{self.name}_{spike}_{reset}"
        self.program = Program(name, ("x",), tuple(self.params), states, tuple(self.body), (Emit("s", kind),))  # type: ignore[arg-type]  # a Kind

    def param(self, name: str, value: Any) -> Var:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        self.params[name] = array
        return Var(name)

    def charge(self, adaptive: bool) -> None:
        item = self.item
        alpha = item.alpha_mem_calculated
        current: Expr = _X
        if self.has_current:
            self.body.append(Assign("i", self.param("alpha_syn", item.alpha_syn_calculated) * (_I + _X)))
            current = _I
        if item.norm_input:
            current = self.param("gain", 1 - alpha) * current
            if adaptive and self.has_current:
                self.body.append(Assign("i", current))
                current = _I
        carry: Expr = _V
        if not isinstance(item, (IAF, IAFRecurrent)):
            carry = self.param("alpha_mem", alpha) * _V
        self.body.append(Assign("u", carry + current))

    def fire(self, spike: str, adaptive: bool) -> None:
        if spike == "none":
            self.body.append(Assign("s", _U))
            return
        if spike == "single":
            self.body.append(Assign("s", call(">=", _U, _THETA)))
            return
        positive = np.all(self.params["b0"] > 0) and np.all(self.params["adapt_scale"] >= 0) if adaptive else True
        if not positive or (not adaptive and not np.all(self.params["theta"] > 0)):
            kind = type(self.item).__name__
            raise CompileError(
                "SPK101",
                f"{kind} with a spike_threshold that is not above 0 is not supported: several spikes a step are a quotient by it",
                fix="use spike_fn=SingleSpike, or a threshold above 0",
            )
        count: Expr = call("max", call("floor", _U / _THETA), 0)
        most = getattr(self.item.spike_fn, "max_num_spikes_per_bin", None)
        if most is not None:
            count = call("min", count, self.param("most", most))
        self.body.append(Assign("s", count))

    def reset(self, reset: str) -> None:
        fn = self.item.reset_fn
        if reset == "none":
            self.body.append(Assign("v", _U))
        elif reset == "subtract":
            step = _THETA if fn.subtract_value is None else self.param("subtract_value", fn.subtract_value)
            self.body.append(Assign("v", _U - _S * step))
        else:
            kept = call("select", call("==", _S, 0), _U, 0)
            rest = np.any(np.asarray(fn.reset_value) != 0)
            self.body.append(Assign("v", kept + self.param("reset_value", fn.reset_value) if rest else kept))


def _step_of(current: bool, adaptive: bool) -> Callable[[Any, StepCall], AbstractContextManager[None]]:
    """The context in which sinabs' function of one step is recorded as one operation."""
    place: ModuleType = alif_steps if adaptive else lif_steps
    name = "alif_forward_single" if adaptive else "lif_forward_single"
    original = getattr(place, name)

    @contextmanager
    def replaced(item: Any, call_step: StepCall) -> Iterator[None]:
        def one_step(**given: Any) -> Any:
            if given["input_data"].dtype == torch.float64:
                raise CompileError(
                    "SPK101",
                    f"{type(item).__name__} on float64 numbers is not supported: sinabs computes its spikes in float32 even then",
                    fix="pass a float32 example, and model.float()",
                )
            state = given["state"]  # changed by the call, and then copied: both are read afterwards
            before = {"v": state["v_mem"], "i": state.get("i_syn"), "b": state.get("b")}

            def run() -> tuple[Any, dict[str, Any]]:
                spikes, new = original(**given)
                named = {"s": spikes, "u": state["v_mem"], "v": new["v_mem"]}
                if current:
                    named["i"] = state["i_syn"]
                if adaptive:
                    named |= {"b": new["b"], "theta": state["spike_threshold"], "theta_next": new["spike_threshold"]}
                return (spikes, new), named

            return call_step({"x": given["input_data"]}, before, run)

        earlier, recorded = getattr(place, name), item.record_states
        spoilt = recorded and isinstance(item, (LIFRecurrent, ALIF))
        setattr(place, name, one_step)
        item.record_states = recorded and not spoilt
        try:
            yield
        finally:
            setattr(place, name, earlier)
            item.record_states = recorded
            if spoilt:
                item.recordings = _Spoilt(type(item).__name__)

    return replaced


class _Spoilt(Mapping[str, Any]):
    """The recordings of a layer that keeps one dictionary of states and changes it after having recorded it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __getitem__(self, name: str) -> Any:
        raise CompileError(
            "SPK101",
            f"the recordings of {self.kind} cannot be had: sinabs {VERSION} changes the states after it has recorded them",
            fix="leave them out: `build.run(x, record='all')` records the states of every layer",
        )

    def __iter__(self) -> Iterator[str]:
        return iter(("v_mem",))

    def __len__(self) -> int:
        return 1


def reset(item: Any) -> None:
    """Forget what a layer has seen."""
    if isinstance(item, StatefulLayer):
        for name, buffer in item._buffers.items():
            if buffer is not None:
                item._buffers[name] = torch.zeros(0)


@contextmanager
def copying() -> Iterator[None]:
    """Copies hold everything: sinabs' own `__deepcopy__` builds a new layer from a list of options that is not complete."""
    own = StatefulLayer.__deepcopy__
    del StatefulLayer.__deepcopy__
    try:
        yield
    finally:
        StatefulLayer.__deepcopy__ = own
