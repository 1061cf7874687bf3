"""Recovery: a short fine-tune of a quantized, pruned network with the target's own integer dynamics in the loop.

What is trained is the float network in front of the quantizer; what runs forward is the graph of integers, with the weights rounded
to the target's grid: the very numbers that the target computes. Gradients pass the rounding straight through and a spike by a
surrogate. Synapses that were pruned stay pruned. Optionally the network also learns from what the unpruned float network answers
(distillation, Hinton et al. 2015). The result is compiled from the trained weights at the same scales, so that what was trained is
what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from spikec.bits import bits_text
from spikec.build import Build, golden_inputs
from spikec.diagnostics import CompileError
from spikec.inputs import check_inputs, recode
from spikec.ir.graph import Graph
from spikec.ir.ops import Constant, Conv, Dense, Sparse
from spikec.ir.rules import verify
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.pipeline import Stage, make_pass, run_passes
from spikec.progress import Bar
from spikec.score import check_labels, classes, score

#: The passes that turn floats into integers.
QUANTIZERS: Final = ("quantize", "to-fixed")
WEIGHTED: Final = (Dense, Sparse, Conv)
#: With membranes as answers: their spread among the samples, in units of which the loss sees them.
_SPREAD: Final = 3.0


@dataclass(frozen=True)
class _Task:
    """Inputs by name, labels, and what the float network answers, as tensors over all samples."""

    inputs: Mapping[str, Any]
    labels: Any
    teacher: Any


@dataclass(frozen=True)
class _Settings:
    epochs: int
    batch_size: int
    learning_rate: float
    temperature: float
    soft: float
    drop: float


def recover(
    build: Build,
    data: Any,
    labels: Any,
    *,
    epochs: int = 10,
    rounds: int = 1,
    batch_size: int = 64,
    learning_rate: float = 0.02,
    distill: bool = True,
    temperature: float = 4.0,
    soft: float = 0.7,
    held_out: float = 0.1,
    drop: float = 0.1,
    seed: int = 0,
) -> Build:
    """Fine-tune a build's weights with its quantizer, its pruning and its integer dynamics in the loop; a new build.

    data: (samples, T, *shape), or a mapping by input name; labels: (samples,) classes, or (samples, T) where every step has one
    (below 0: not counted). The answer is the first output's largest sum over the steps. learning_rate: of Adam, in units of each
    layer's mean absolute weight, falling to zero as a cosine. distill: learn from the float network too, with `soft` of the loss
    at `temperature`, the rest from the labels. held_out: the share of the samples on which the epochs are compared; the best is
    kept, the state before training included. drop: the share of the input's spikes left out at random while training, against
    learning few samples by heart. rounds: prune gradually, to a growing share (1 - (1 - i/rounds)^3 of it, Zhu and Gupta
    2017) with `epochs` of training after each; for a build that was pruned. Needs PyTorch. Raises CompileError SPK404 where the
    build has no quantizer.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise CompileError("SPK009", "recovery needs PyTorch, which is not installed", fix="pip install 'spikec[torch]'") from error
    _check_options(epochs, rounds, batch_size, learning_rate, held_out, drop, soft, temperature)
    names = build.stage_names
    quantizer = next((name for name in names if name in QUANTIZERS), None)
    if quantizer is None or names.index(quantizer) == 0:
        raise CompileError(
            "SPK404", "the build has no quantizer to recover from", fix="compile for a target of integers, or with --bits"
        )
    stages = build.stages
    inputs = check_inputs(stages[0].graph, data)
    samples, steps = next(iter(inputs.values())).shape[:2]
    labels = check_labels(labels, samples, steps, classes(build.stages[0].graph))
    options = {**build.options, "target": build.target, "calibrate": {k: v[:256] for k, v in inputs.items()}}
    if (widths := _widths(build.ledger, quantizer)) is not None:  # those that were found are kept
        options = {key: value for key, value in options.items() if key != "max_bytes"} | {"bits": widths}
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(samples, generator=generator).numpy()
    kept = max(1, round(held_out * samples)) if held_out else 0
    train, check = order[kept:], order[:kept] if kept else order
    floats = {name: torch.from_numpy(value) for name, value in inputs.items()}
    teacher = _answers_of(torch, stages[0].graph, floats, batch_size) if distill else None
    settings = _Settings(epochs, batch_size, learning_rate, temperature, soft if distill else 0.0, drop)

    first = names.index("prune") if rounds > 1 and "prune" in names else names.index(quantizer)
    place = names.index(quantizer)
    ledger, now = build.ledger, stages
    history: list[float] = []
    trained = stages[0].graph
    with Bar("recovering") as bar:
        budgets = _budgets(stages, first, rounds) if first < place else [None]
        for number, budget in enumerate(budgets):
            if budget is not None:
                given = _with_budget(options, budget, number)
                ledger = Ledger()
                ledger.entries = [entry for entry in build.ledger if entry.pass_name not in names[first:]]
                start = trained if number else stages[first - 1].graph
                now = [*stages[:first], *run_passes(start, names[first : place + 1], given, ledger)[1:]]
            source, fixed = now[place - 1].graph, now[place].graph
            scales = _scales(ledger, quantizer, source)
            grids = make_pass(quantizer, options).weight_grids(source)  # type: ignore[attr-defined]  # both quantizers have it
            module = _module(torch, source, fixed, scales, grids)
            whole = {name: torch.from_numpy(value) for name, value in recode(stages[0].graph, fixed, inputs).items()}
            task = _Task(whole, torch.from_numpy(labels.astype(np.int64)), teacher)

            def progress(done: int, number: int = number) -> None:
                bar(number * 1000 + done, len(budgets) * 1000)

            history = _fit(torch, module, task, train, check, settings, generator, progress)
            trained = _with_weights(source, module, scales)

    told = Ledger()
    told.entries = [entry for entry in ledger if entry.pass_name not in names[place:]]
    told.pass_name = "recover"
    _record(told, source, trained, scales)
    figures = {"score before": history[0], "score after": max(history), "epochs": float(epochs), "rounds": float(len(budgets))}
    told.record("", "convention", f"recovery on {len(train)} samples, compared on {len(check)}", measured=figures)
    rest = run_passes(trained, names[place:], {**options, "scales": scales, "labels": labels[:256]}, told)
    found = [*now[:place], Stage("recover", trained, 0.0), *rest[1:]]
    return Build(found, told, build.target, build.target_text, golden_inputs(rest[-1].graph, inputs), build.options)


def _synapses(graph: Graph) -> int:
    return sum(int(np.count_nonzero(node.weight)) for node in graph.nodes if isinstance(node, WEIGHTED))


def _budgets(stages: list[Stage], first: int, rounds: int) -> list[int | None]:
    """Synapses that stay after every round, from all to those that the build has left."""
    whole, left = _synapses(stages[first - 1].graph), _synapses(stages[first].graph)
    return [round(left + (whole - left) * (1 - (number + 1) / rounds) ** 3) for number in range(rounds)]


def _with_budget(options: Mapping[str, Any], budget: int, number: int) -> dict[str, Any]:
    """The build's options with a budget of synapses in place of its share; neurons are pruned in the first round only."""
    given = {key: value for key, value in options.items() if key not in ("prune", "max_bytes")}
    if number:
        given.pop("prune_structured", None)
    return {**given, "max_synapses": budget}


def _record(ledger: Ledger, source: Graph, trained: Graph, scales: Mapping[str, float]) -> None:
    for node in trained.nodes:
        if node.name in scales:
            before = source[node.name].weight  # type: ignore[attr-defined]  # a layer of weights
            change = np.abs(node.weight - before)  # type: ignore[attr-defined]  # a layer of weights
            ledger.record(
                node,
                "approximation",
                "weights trained again",
                changed=int(np.count_nonzero(change)),
                total=int(change.size),
                largest=float(change.max(initial=0)),
                asked="recover",
            )


def _check_options(
    epochs: int, rounds: int, batch_size: int, learning_rate: float, held_out: float, drop: float, soft: float, temperature: float
) -> None:
    wrong = [
        (epochs < 0, f"epochs must be 0 or more, not {epochs}"),
        (rounds < 1, f"rounds must be at least 1, not {rounds}"),
        (batch_size < 1, f"batch_size must be at least 1, not {batch_size}"),
        (learning_rate <= 0, f"learning_rate must be above 0, not {learning_rate}"),
        (not 0 <= held_out < 1, f"held_out is a share from 0 up to but without 1, not {held_out}"),
        (not 0 <= drop < 1, f"drop is a share from 0 up to but without 1, not {drop}"),
        (not 0 <= soft <= 1, f"soft is a share from 0 to 1, not {soft}"),
        (temperature <= 0, f"temperature must be above 0, not {temperature}"),
    ]
    for bad, message in wrong:
        if bad:
            raise CompileError("SPK001", message)


def _widths(ledger: Ledger, quantizer: str) -> str | None:
    """The widths that a search for mixed bits found, as an option; None if there was none."""
    found = {e.node: round(e.measured["bits"]) for e in ledger if e.pass_name == quantizer and "bits" in e.measured}
    return bits_text(found) if found else None


def _scales(ledger: Ledger, quantizer: str, source: Graph) -> dict[str, float]:
    """What 1 of a trained weight is on the grid, by layer, as the quantizer wrote it down."""
    found = {}
    for entry in ledger:
        if entry.pass_name == quantizer and "scale" in entry.measured:
            name = entry.node if entry.node in source else entry.node.removesuffix("_sum")
            if name in source and isinstance(source[name], WEIGHTED):
                found[name] = entry.measured["scale"]
    return found


def _module(torch: Any, source: Graph, fixed: Graph, scales: Mapping[str, float], grids: Mapping[str, tuple[int, int, int]]) -> Any:
    """The graph of integers as a module whose weights are the float ones, rounded to the grid on their way."""
    from spikec.frontend.nn.graph_module import GraphModule, straight_through

    weights: dict[str, Array] = {}
    quantizers: dict[str, Callable[[Any], Any]] = {}
    for name, scale in scales.items():
        node = source[name]
        target = next(n for n in (f"{name}_sum", name) if n in fixed and isinstance(fixed[n], WEIGHTED))
        weight = node.weight.astype(np.float64)  # type: ignore[attr-defined]  # a layer of weights
        mask = torch.from_numpy(weight != 0).double()

        def quantized(w: Any, scale: float = scale, mask: Any = mask, grid: tuple[int, int, int] = grids[name]) -> Any:
            step, bottom, top = grid
            whole = (torch.round(w * (scale / step)) * step).clamp(bottom, top)
            return straight_through(w, whole, scale) * mask

        weights[target], quantizers[target] = weight, quantized
    module = GraphModule(fixed, weights, quantizers)
    for name, key in module._keys.items():
        if key in module.weights and name not in quantizers:
            module.weights[key].requires_grad_(False)
    return module


def _first_output(graph: Graph, found: Mapping[str, Any]) -> Any:
    return found[graph.outputs[0][0]].flatten(2)


def _logits(graph: Graph, output: Any, per_step: bool) -> Any:
    """What the loss sees: counts of spikes, or means of membranes in units of their spread; (batch, [T,] classes)."""
    spikes = graph.type_of(graph.outputs[0][1]).kind == "spike"
    if per_step:
        summed = output
    else:
        summed = output.sum(dim=1) if spikes else output.mean(dim=1)
    if spikes and not per_step:
        return summed
    return summed * (_SPREAD / summed.detach().std().clamp_min(1e-9))


def _answers_of(torch: Any, graph: Graph, tensors: Mapping[str, Any], batch: int) -> Any:
    """The float network's first output (samples, T, classes)."""
    from spikec.frontend.nn.graph_module import GraphModule

    module = GraphModule(graph)
    samples = len(next(iter(tensors.values())))
    parts = []
    with torch.no_grad():
        for start in range(0, samples, 4 * batch):
            part = {name: value[start : start + 4 * batch] for name, value in tensors.items()}
            parts.append(_first_output(graph, module(part)))
    return torch.cat(parts)


def _fit(
    torch: Any,
    module: Any,
    task: _Task,
    train: Array,
    check: Array,
    settings: _Settings,
    generator: Any,
    progress: Callable[[int], None],
) -> list[float]:
    """Train; the module ends with the weights of its best epoch. The score before training and after every epoch."""
    graph = module.graph
    per_step = task.labels.ndim == 2
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [{"params": [p], "lr": settings.learning_rate * float(p.detach().abs().mean().clamp_min(1e-9))} for p in parameters]
    if not groups:
        return [0.0]
    optimizer = torch.optim.Adam(groups)
    epochs, size, soft = settings.epochs, settings.batch_size, settings.soft
    batches = -(-len(train) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * batches))

    def scored() -> tuple[float, float]:
        """The score, and of equal scores the smaller loss."""
        index = torch.from_numpy(check)
        with torch.no_grad():
            output = torch.cat([_first_output(graph, module(_batch(task, check[i : i + 256]))) for i in range(0, len(check), 256)])
            loss = float(_loss(torch, _logits(graph, output, per_step), task.labels[index], 1.0))
        return score(output.numpy(), task.labels[index].numpy()), -loss

    def copy() -> dict[str, Any]:
        return {name: value.detach().clone() for name, value in module.state_dict().items()}

    best, history = copy(), [scored()]
    for epoch in range(epochs):
        shuffled = train[torch.randperm(len(train), generator=generator).numpy()]
        for number in range(batches):
            chosen = shuffled[number * size : (number + 1) * size]
            index = torch.from_numpy(chosen)
            batch = _batch(task, chosen)
            if settings.drop:
                batch = {n: v * (torch.rand(v.shape, generator=generator) >= settings.drop).to(v.dtype) for n, v in batch.items()}
            logits = _logits(graph, _first_output(graph, module(batch)), per_step)
            loss = _loss(torch, logits, task.labels[index], 1.0 - soft)
            if soft:
                taught = _logits(graph, task.teacher[index], per_step)
                loss = loss + soft * _distance(torch, logits, taught, settings.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress(1000 * (epoch * batches + number + 1) // (epochs * batches))
        history.append(scored())
        if history[-1] > max(history[:-1]):
            best = copy()
    module.load_state_dict(best)
    return [one for one, _ in history]


def _batch(task: _Task, chosen: Array) -> dict[str, Any]:
    return {name: value[chosen] for name, value in task.inputs.items()}


def _loss(torch: Any, logits: Any, labels: Any, share: float) -> Any:
    return share * torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-1)


def _distance(torch: Any, logits: Any, taught: Any, temperature: float) -> Any:
    f = torch.nn.functional
    wanted = f.softmax(taught.double() / temperature, dim=-1).flatten(0, -2)
    found = f.log_softmax(logits / temperature, dim=-1).flatten(0, -2)
    return f.kl_div(found, wanted.to(found.dtype), reduction="batchmean") * temperature**2


def _with_weights(source: Graph, module: Any, scales: Mapping[str, float]) -> Graph:
    """The float graph with the weights that were trained, as the grid has them."""
    nodes = []
    for node in source.nodes:
        if node.name in scales and not isinstance(source[node.inputs[0].node], Constant):
            target = next(n for n in (f"{node.name}_sum", node.name) if n in module.graph and isinstance(module.graph[n], WEIGHTED))
            whole = module.weight_of(target).detach().numpy()
            weight = (whole / scales[node.name]).astype(node.weight.dtype)  # type: ignore[attr-defined]  # a layer of weights
            node = replace(node, weight=weight)  # type: ignore[call-arg]  # a layer of weights
        nodes.append(node)
    return verify(source.with_nodes(nodes))
