"""Whole populations as one node of torch's record: the values and gradients of the same steps recorded one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nets import dense, graph, spikes

from spikec.backends.c.library import build_library
from spikec.frontend.nn import graph_module
from spikec.frontend.nn.graph_module import GraphModule
from spikec.frontend.nn.native import Build, Kernel
from spikec.frontend.nn.population import Steps
from spikec.ir.interpret import interpret
from spikec.ir.ops import Add, Neuron, Ref
from spikec.ir.text import parse_program

#: Programs of floats and of integers, with every operation that is known.
FLOAT = {
    "leaky": "neuron @n(x) params(beta, theta) state(v = 0) {\nv = beta * v + x\ns = v > theta\nv = select(s, 0, v)\nemit s\n}",
    "subtract": "neuron @n(x) params(beta, theta) state(v = 0.5) {\nv = beta * v + x\ns = v >= theta\nv = v - s * theta\nemit s\n}",
    "late": "neuron @n(x) params(beta, theta) state(v = 0) {\nr = v > theta\nv = (beta * v + x) - r * theta\ns = v > theta\nemit s\n}",
    "membrane": "neuron @n(x) params(beta, theta) state(v = 0) {\nv = beta * v + (1 - beta) * x / theta\nemit v\n}",
    "adaptive": "neuron @n(x) params(beta, theta) state(v = 0, b = 0, z = 0) {\nb = beta * b + (1 - beta) * z\nh = theta + 0.5 * b\n"
    "v = beta * v + x - h * z\ns = v > h\nz = s\nemit s, v\n}",
    "quiet": "neuron @n(x) params(beta, theta) state(v = 0, c = 0) {\nc = select(c > 0, c - 1, 0)\nv = beta * v + x\n"
    "s = v > theta and c == 0\ng = not s or 0.5 < v\nc = select(t == 3, 2, c)\nv = select(s, -v, v)\nemit s, g\n}",
    "alias": "neuron @n(x) params(beta, theta) state(v = 0, p = 0) {\nq = p * theta\nv = beta * v + x - q\ns = theta <= v\np = s\nemit p\n}",
    "stored": "neuron @n(x) params(beta, theta) state(v = 0, z = 0) {\nv = beta * v + x - theta * z\nz = v > theta\nemit z\n}",
    "compared": "neuron @n(x) params(beta, theta) state(v = 0) {\nv = beta * v + x * (theta < v)\ns = floor(v) + round(x) > theta\nemit s\n}",
}
FIXED = {
    "loihi": "neuron @n(x) params(beta, theta) state(u: i32 = 0, v: i32 = 0) {\nu = rtz(u * beta, 6) + (x << 6)\n"
    "u = wrap(u, 16)\nv = clip(rtz(v * 50, 6) + u, 12)\ns = v > theta << 3\nv = select(s, 0, v)\nemit s\n}",
    "floor": "neuron @n(x) params(beta, theta) state(v: i32 = 0) {\nv = clip((v * 45 >> 6) + (x << 4), 14)\ns = v > 300\n"
    "v = select(s, 0, v)\nemit s\n}",
}


STEPS = 9


def module(program: str, level: str, build: Build | None = None, learnt: bool = False) -> GraphModule:
    """Five inputs, seven neurons that start in step 2, with thresholds of their own; with `learnt`, all parameters are trained."""
    rng = np.random.default_rng(0)
    parsed = parse_program(program)
    if level == "float":
        weight = rng.normal(0, 0.9, (7, 5)).astype(np.float32)
        params: dict[str, Any] = {"beta": np.float32(0.8), "theta": np.linspace(0.5, 1.5, 7, dtype=np.float32)}
        start = spikes((5,))
    else:
        weight = rng.integers(-30, 60, (7, 5)).astype(np.int8)
        params = {"beta": np.array(40, np.int32), "theta": np.arange(20, 90, 10, dtype=np.int32)}
        start = spikes((5,), dtype="i8")
    used = {name: value for name, value in params.items() if name in parsed.params}
    neuron = Neuron(name="n", inputs=(Ref("fc"),), program=parsed, params=used, start=2)
    outputs = [(f"out{k}", Ref("n", "" if k == 0 else emit.name)) for k, emit in enumerate(parsed.emits)]
    forms = {"n": {name: "positive" if name == "theta" else "share" for name in used}} if learnt else None
    return GraphModule(graph(start, dense("fc", "in", weight), neuron, out=outputs, level=level), learnt=forms, build=build)


def outcome(net: GraphModule) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Outputs, and the gradient of a random sum of them for the weights."""
    x = torch.from_numpy(np.random.default_rng(1).random((4, STEPS, 5)) < 0.5).float()
    found = list(net(x).values())
    generator = torch.Generator().manual_seed(0)
    sum((value * torch.randn(value.shape, generator=generator)).sum() for value in found).backward()
    (weight,) = net.weights.values()
    assert weight.grad is not None
    return [value.detach() for value in found], weight.grad


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """The compiled functions that were called."""
    called: list[Kernel] = []
    run = Kernel.forward
    monkeypatch.setattr(Kernel, "forward", lambda self, *args: called.append(self) or run(self, *args))
    return called


#: A parameter for every step is not compiled, nor what counts steps.
NOT_COMPILED = ("quiet",)


@pytest.mark.parametrize(("name", "level"), [*((n, "float") for n in FLOAT), *((n, "fixed") for n in FIXED)])
def test_what_is_compiled_gives_the_same_values_and_gradients(name: str, level: str, kernels: list[Kernel]) -> None:
    program = (FLOAT if level == "float" else FIXED)[name]
    wanted, slope = outcome(module(program, level))
    assert not kernels
    values, gradient = outcome(module(program, level, build_library))
    assert len(kernels) == (name not in NOT_COMPILED)
    for one, two in zip(values, wanted, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    assert slope.abs().max() > 0
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [*range(1, 34), 1 << 16])
def test_any_width_is_compiled(width: int, kernels: list[Kernel]) -> None:
    """Twelve floats on the stack were a crash (GCC PR 109780), and so were millions."""
    found = []
    for build in (None, build_library):
        params: dict[str, Any] = {"beta": np.float32(0.8), "theta": np.float32(1)}
        neuron = Neuron(name="n", inputs=(Ref("in"),), program=parse_program(FLOAT["leaky"]), params=params)
        net = GraphModule(graph(spikes((width,), dtype="f32"), neuron, out=["n"]), build=build)
        x = torch.rand((2, 5, width), generator=torch.Generator().manual_seed(0)).requires_grad_()
        net(x)["n"].sum().backward()
        found.append((net(x)["n"].detach(), x.grad))
    assert len(kernels) == 2
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FLOAT)
def test_parameters_of_neurons_have_gradients(name: str, kernels: list[Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of torch's own record, for single operations as for what is compiled; and what a form makes of them is what is used."""
    slopes = []
    for way in ("torch", "steps", "compiled"):
        net = module(FLOAT[name], "float", build_library if way == "compiled" else None, learnt=True)
        if way == "torch":
            monkeypatch.setattr(net.steps_of(net.graph["n"]), "known", False)
        outcome(net)
        slopes.append({key: value.grad for key, value in net.params.items()})
        node = net.graph["n"]
        assert isinstance(node, Neuron)
        for param, value in node.params.items():
            np.testing.assert_allclose(net.param_of("n", param).detach().numpy(), value, rtol=1e-6)
        known = net.steps_of(node).known
    assert len(kernels) == (known and name not in NOT_COMPILED)
    assert any(slope is not None and slope.abs().max() > 0 for slope in slopes[0].values())
    for found in slopes[1:]:
        for key, want in slopes[0].items():
            got = found[key]
            assert want is not None and got is not None
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "level"), [*((n, "float") for n in FLOAT), *((n, "fixed") for n in FIXED)])
def test_values_and_gradients_are_those_of_single_operations(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (FLOAT if level == "float" else FIXED)[name]
    assert Steps(parse_program(program)).known
    values, gradient = outcome(module(program, level))
    recorded = module(program, level)
    monkeypatch.setattr(recorded.steps_of(recorded.graph["n"]), "known", False)
    wanted, slope = outcome(recorded)
    assert slope.abs().max() > 0
    assert any(len(value.unique()) > 1 for value in wanted)
    for one, two in zip(values, wanted, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", ["v = abs(v) + x", "v = x / (1 + v)", "v = max(v, x)", "v = rem(v + x, 2)"])
def test_what_is_not_known_is_left_to_torch(body: str) -> None:
    program = "neuron @n(x) params(theta) state(v = 0) {\n" + body + "\ns = v > theta\nemit s\n}"
    assert not Steps(parse_program(program)).known
    _, slope = outcome(module(program, "float"))
    assert slope.abs().max() > 0


def recurrent(name: str, level: str, joined: bool, delay: int, build: Build | None = None) -> GraphModule:
    """A population whose spikes come back to it through weights and a bias, added to its sum or as an input of their own."""
    rng = np.random.default_rng(0)
    text = (FLOAT if level == "float" else FIXED)[name]
    text = (
        text
        if joined
        else text.replace("(x)", "(x, y)").replace("\n", "\nw = x + y\n", 1).replace("+ x", "+ w").replace("(x <<", "(w <<")
    )
    parsed = parse_program(text)
    if level == "float":
        weight, back = (rng.normal(0, 0.9, (7, n)).astype(np.float32) for n in (5, 7))
        bias = rng.normal(0, 0.1, 7).astype(np.float32)
        params: dict[str, Any] = {"beta": np.float32(0.8), "theta": np.linspace(0.5, 1.5, 7, dtype=np.float32)}
    else:
        weight, back = (rng.integers(-30, 60, (7, n)).astype(np.int8) for n in (5, 7))
        bias = rng.integers(-9, 9, 7).astype(np.int32)
        params = {"beta": np.array(40, np.int32), "theta": np.arange(20, 90, 10, dtype=np.int32)}
    used = {key: value for key, value in params.items() if key in parsed.params}
    layers = [
        spikes((5,), dtype="f32" if level == "float" else "i8"),
        dense("fc", "in", weight, bias),
        dense("back", "n", back, bias),
    ]
    layers[-1] = replace(layers[-1], inputs=(Ref("n", delay=delay),))
    inputs = (Ref("sum"),) if joined else (Ref("fc"), Ref("back"))
    layers += [Add(name="sum", inputs=(Ref("fc"), Ref("back")))] if joined else []
    neuron = Neuron(name="n", inputs=inputs, program=parsed, params=used, start=2)
    return GraphModule(graph(*layers, neuron, out=["n"], level=level), build=build)


@pytest.mark.parametrize("delay", [1, 3])
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("build", [None, build_library], ids=["steps", "compiled"])
@pytest.mark.parametrize(("name", "level"), [("leaky", "float"), ("subtract", "float"), ("loihi", "fixed"), ("floor", "fixed")])
def test_a_loop_of_one_population_is_one_node(
    name: str, level: str, build: Build | None, joined: bool, delay: int, kernels: list[Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.from_numpy(np.random.default_rng(1).random((4, 2 * STEPS, 5)) < 0.5).float()
    results, called, run = [], [], Steps.run
    monkeypatch.setattr(Steps, "run", lambda *args: called.append(bool(args[-1])) or run(*args))
    for at_once in (True, False):
        net = recurrent(name, level, joined, delay, build if at_once else None)
        if not at_once:
            monkeypatch.setattr(graph_module._Run, "_recurrent", lambda self, part: False)
        value = net(x)["n"]
        assert called == [True], "only at once"
        (value * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
        results.append((value.detach(), [p.grad for p in (*net.weights.values(), *net.biases.values())]))
    assert len(kernels) == (build is not None)
    (one, slopes), (two, wanted) = results
    assert torch.equal(one, two) and len(one.unique()) > 1
    assert wanted[0] is not None and wanted[0].abs().max() > 0 and wanted[1] is not None and wanted[1].abs().max() > 0
    for slope, want in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(slope, want, rtol=1e-4, atol=1e-5)


def test_a_loop_of_two_populations_goes_step_by_step() -> None:
    text = FLOAT["leaky"]
    params = {"beta": np.float32(0.8), "theta": np.float32(0.7)}
    weights = [np.random.default_rng(k).normal(0.3, 0.9, (4, 4)).astype(np.float32) for k in range(3)]
    nodes = [spikes((4,)), dense("a", "in", weights[0]), replace(dense("c", "in", weights[2]), inputs=(Ref("m", delay=1),))]
    nodes += [Add(name="s", inputs=(Ref("a"), Ref("c")))]
    nodes += [Neuron(name="n", inputs=(Ref("s"),), program=parse_program(text), params=params), dense("b", "n", weights[1])]
    nodes += [Neuron(name="m", inputs=(Ref("b"),), program=parse_program(text), params=params)]
    whole = graph(*nodes, out=["m"])
    x = np.random.default_rng(1).integers(0, 2, (3, 9, 4)).astype(np.float32)
    found = GraphModule(whole)(torch.from_numpy(x))["m"].detach().numpy()
    assert np.array_equal(found, interpret(whole, {"in": x}).outputs["m"]) and found.any()
