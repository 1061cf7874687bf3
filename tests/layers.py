"""What the tests of the framework tables share: dyadic numbers, equality with a framework, and the rounding bound step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from bounds import Flips, count_flips
from hypothesis import strategies as st

import spikec
from spikec.ir.graph import Graph
from spikec.ir.interpret import evaluate, float_truth, interpret
from spikec.ir.ops import Neuron


def eighths(low: int, high: int) -> st.SearchStrategy[float]:
    """Multiples of 1/8 from low/8 to high/8."""
    return st.integers(low, high).map(lambda n: n / 8)


def dyadic_weights(model: torch.nn.Module, draw: Any) -> None:
    """Fill every linear layer and convolution with multiples of 1/8."""
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)):
            for parameter in module.parameters(recurse=False):
                numbers = draw(st.lists(st.integers(-8, 12), min_size=parameter.numel(), max_size=parameter.numel()))
                parameter.data = torch.tensor(numbers, dtype=torch.float32).reshape(parameter.shape) / 8


def spikes(draw: Any, *shape: int) -> torch.Tensor:
    """Zeros and ones."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    return (torch.rand(shape, generator=generator) < draw(st.sampled_from([0.3, 0.6]))).float()


def outputs_of(model: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the model itself gives, as a tuple."""
    with torch.no_grad():
        result = model.eval()(x)
    return result if isinstance(result, tuple) else (result,)


def equal(graph: Graph, model: torch.nn.Module, x: torch.Tensor, time_axis: int = 0) -> int:
    """Every output of the graph is the model's, bit for bit; x is (T, batch, ...), or (batch, T, ...) for time_axis=1.

    Returns how many spikes or numbers differ from zero, so that a test can see that something happened at all.
    """
    wanted = outputs_of(model, x)
    found = interpret(graph, {graph.inputs[0].name: x.numpy().swapaxes(0, time_axis ^ 1)}).outputs
    assert len(found) == len(wanted)
    count = 0
    for mine, theirs in zip(found.values(), wanted, strict=True):
        np.testing.assert_array_equal(mine.swapaxes(0, time_axis ^ 1), theirs.numpy())
        count += int(np.count_nonzero(mine))
    return count


def equal_everywhere(model: torch.nn.Module, x: torch.Tensor, time_axis: int = 0, **options: Any) -> spikec.Build:
    """Compiled for the host, reference, NumPy and C give what the model gives."""
    build = spikec.compile(model, x, target="host", **options)
    wanted = outputs_of(model, x)
    assert all(item.any() for item in wanted), "nothing happens on this input"
    data = x.numpy().swapaxes(0, time_axis ^ 1)
    for backend in ("reference", "numpy", "c"):
        found = build.run(data, backend=backend).outputs
        for name, theirs in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(found[name].swapaxes(0, time_axis ^ 1), theirs.numpy(), err_msg=f"{backend}: {name}")
    return build


def exact_in_float32(model: torch.nn.Module, x: torch.Tensor) -> bool:
    """Whether float64 gives the same: then nothing was rounded, and the order of sums does not matter."""
    single = outputs_of(model, x)
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d))]
    # Some frameworks make their spikes float32, whatever the model is.
    hooks = [layer.register_forward_pre_hook(lambda _, given: (given[0].double(),)) for layer in layers]
    double = outputs_of(model.double(), x.double())
    for hook in hooks:
        hook.remove()
    model.float()
    return all(torch.equal(a.double(), b) for a, b in zip(single, double, strict=True))


def one_step(node: Neuron, inputs: dict[str, Any], states: dict[str, Any]) -> tuple[Any, Any]:
    """The membrane where it is compared with the threshold, and the spikes, of one step of a program."""
    params = {name: array.item() if array.size == 1 else array for name, array in node.params.items()}
    values = inputs | params | states
    for statement in node.program.body:
        values[statement.name] = evaluate(statement.expr, values, float_truth)
        if statement.name == "s":
            return values["v"], np.asarray(float_truth(values["s"]))
    raise AssertionError(f"@{node.program.name} never sets s")


def flips(node: Neuron, ours: dict[str, Any], theirs: dict[str, Any], states: dict[str, Any], spiked: Any, bound: Any) -> Flips:
    """Every step from the framework's own states: spikes from our sums against the framework's own.

    ours, theirs: the program's inputs by either. The program on the framework's own sums must give its spikes to the last bit.
    """
    _, mine = one_step(node, ours, dict(states))
    v, same = one_step(node, theirs, dict(states))
    np.testing.assert_array_equal(same, spiked)
    return count_flips(mine, spiked, v, node.params["theta"], bound)
