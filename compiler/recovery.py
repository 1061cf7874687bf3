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
from spikec.inputs import DRAWS, check_inputs, recode
from spikec.ir.graph import Graph
from spikec.ir.ops import Constant, Conv, Dense, Sparse
from spikec.ir.rules import verify
from spikec.ir.types import Array
from spikec.ledger import Ledger
from spikec.neurons import biased, forms_of, record, with_trained
from spikec.passes.compensate import MADE_GOOD
from spikec.passes.prune import TRIED, Prune
from spikec.passes.shrink import shrink
from spikec.pipeline import QUANTIZERS, Stage, make_pass, run_passes
from spikec.progress import Bar
from spikec.score import check_labels, classes, score
from spikec.teacher import Teacher, comparable

WEIGHTED: Final = (Dense, Sparse, Conv)
#: Options of the pruning pass that take synapses.
_OF_SYNAPSES: Final = ("prune", "max_synapses", "max_bytes", "prune_pattern")
#: The part of the training in which synapses go, and how often they are chosen anew in it.
_PRUNING, _UPDATES = 0.3, 60
#: The part that runs on the float neurons, with rounded weights: they are quicker; the integers have the rest, but where neurons
#: are trained too and the integers answer as well, within this share of the answers.
_EARLY: Final = 0.6
_AS_WELL: Final = 0.005
#: Steps of what neurons have of their own, relative to the learning rate: of biases in units of their layer's mean weight, and of
#: the logarithms of thresholds and of decays' odds.
_BIASES, _CONSTANTS = 0.2, 0.3
#: The largest norm of a gradient where populations feed back to themselves, unless another is asked for.
_CLIP: Final = 1.0
#: Epochs are compared on at most so many of the samples that are trained on; and fewer than `_FEW` also count with less input, for
#: those tell too little: more tell enough, and take long.
_MOST: Final = 4000
_FEW: Final = 1000
#: What the surrogate gradient's greatest width is multiplied with whenever a gradient is not finite.
_WIDER: Final = 1.5
#: With membranes as answers: their spread among the samples, in units of which the loss sees them.
_SPREAD: Final = 3.0


@dataclass(frozen=True)
class _Task:
    """Tensors over all samples: inputs by name, as the integers take them, as their float neurons do and as the model does; labels.

    teacher: who else answers, if anybody. unit: what 1 of the integers' answers is in the float network. sharp: what membranes at
    every step are multiplied with to be the logits of a loss; 0: by their spread.
    """

    inputs: Mapping[str, Any]
    floats: Mapping[str, Any]
    given: Mapping[str, Any]
    labels: Any
    teacher: Teacher | None
    unit: float = 1.0
    sharp: float = 0.0


@dataclass(frozen=True)
class _Settings:
    epochs: int
    batch_size: int
    learning_rate: float
    temperature: float
    soft: float
    drop: float
    early: float
    hints: float
    clip: float
    distill: bool


def recover(
    build: Build,
    data: Any,
    labels: Any,
    *,
    epochs: int = 20,
    gradual: bool | None = None,
    batch_size: int = 64,
    learning_rate: float = 0.05,
    distill: bool = True,
    temperature: float = 4.0,
    soft: float = 0.7,
    hints: float = 10.0,
    held_out: float = 0.0,
    drop: float = 0.1,
    early: float = 0.0,
    neurons: bool = True,
    clip: float | None = None,
    seed: int = 0,
) -> Build:
    """Fine-tune a build's weights with its quantizer, its pruning and its integer dynamics in the loop; a new build.

    data: (samples, T, *shape), or a mapping by input name; labels: (samples,) classes, or (samples, T) where every step has one
    (below 0: not counted). The answer is the first output's largest sum over the steps. learning_rate: of Adam, in units of each
    layer's mean absolute weight, falling to zero as a cosine. distill: learn from the float network too, with `soft` of the loss
    at `temperature`, the rest from the labels; it sees each batch as the network in training does. hints: the weight of a second
    loss with distill, of populations that have all of their neurons: how far their rates are from the float network's,
    squared, as a share of what these vary among the samples. The best epoch is kept, the state before training included: of as many
    as 4,000 samples. held_out: a share of them that is not trained on, but compared on; where the float network has learnt them
    already, the state before knows what training without them cannot, and would be kept. drop: the share of the input's spikes left
    out at random while training, against learning few samples by heart; where epochs are compared on fewer than 1,000, as much is
    left out there, too.
    early: the share of the loss that looks at every step past a fifth of the run, at what the sums say by then, and not at the end
    alone (Deng et al. 2022); for answers that come early, `decide`. gradual: of a build with pruned synapses, prune again while
    training, to a growing share (Zhu and Gupta 2017: 1 - (1 - p)^3 of it) of the weights as they are by then, in networks with
    loops those that the loss feels least; the number that stays is the build's. By default where what went was not made good for on
    calibration data (`spikec.passes.compensate`); those weights are where the training begins, else. neurons: train biases, too,
    and thresholds and decays that populations have neuron by neuron. clip: the largest norm of a gradient, 0 for any; by default 1
    where populations feed back to themselves. Needs PyTorch. Raises CompileError SPK404 where the build has no quantizer.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise CompileError("SPK009", "recovery needs PyTorch, which is not installed", fix="pip install 'spikec[torch]'") from error
    from spikec.frontend.nn.graph_module import GraphModule

    settings = _Settings(epochs, batch_size, learning_rate, temperature, soft, drop, early, hints, clip or 0.0, distill)
    _check_options(settings, held_out)
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
    if early and labels.ndim == 2:
        raise CompileError("SPK001", "early asks for one answer a sample, and these labels have one a step", fix="early=0")
    options = {**build.options, "target": build.target, "calibrate": {k: v[:256] for k, v in inputs.items()}}
    if (widths := _widths(build.ledger, quantizer)) is not None:  # those that were found are kept
        options = {key: value for key, value in options.items() if key != "max_bytes"} | {"bits": widths}
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(samples, generator=generator).numpy()
    kept = max(1, round(held_out * samples)) if held_out else 0
    train, check = order[kept:], order[: kept or _MOST]
    if gradual is None:
        gradual = not any(entry.what == MADE_GOOD for entry in build.ledger)
    around = _Around.of(build, quantizer, options, gradual and epochs > 0)
    source, fixed, pruner = around.source, around.fixed, around.pruner
    scales = _scales(around.ledger, quantizer, source)
    grids = make_pass(quantizer, options).weight_grids(source)  # type: ignore[attr-defined]  # both quantizers have it
    neurons = neurons and bool(biased(source) or forms_of(source))
    module, quick, masks, integers = _modules(torch, source, fixed, scales, grids, neurons)
    learnt = {name: quick.weights[quick._keys[name]] for name in masks}  # which the module shares
    loops = any(loop for _, loop in quick._parts)
    settings = replace(settings, clip=(_CLIP if loops else 0.0) if clip is None else clip)
    task = _task(torch, stages[0].graph, source, fixed, inputs, labels, around.ledger, settings)

    def prune(share: float, state: Mapping[Any, Mapping[str, Any]]) -> None:
        """Of the synapses, this share of what is to go goes. state: Adam's, of the gradients so far."""
        if pruner is not None:
            felt = {name: state[w]["exp_avg_sq"].numpy() for name, w in learnt.items() if w in state} if loops else {}
            for name, keep in pruner.masks(_with_weights(source, module, scales, rounded=False), share, felt).items():
                if name in masks:
                    masks[name][...] = torch.from_numpy(keep)

    def settle() -> Any:
        """The integers with what neurons have of their own as it is by now."""
        now_trained = with_trained(_with_weights(source, module, scales), source, quick)
        if now_trained is None or not neurons:
            return module
        stage = run_passes(now_trained, [quantizer], {**options, "scales": scales, "labels": None}, Ledger())[-1]
        return integers(stage.graph)

    hooks = prune if pruner else None, settle if neurons else None
    with Bar("recovering") as bar:
        built, best, module = _fit(torch, module, quick, task, train, check, settings, generator, bar, *hooks)
    # Of as many right answers, those are kept that are given more surely: few samples tell no more than this.
    if pruner is None and (not epochs or best <= built):
        trained, best, own = _as_built(source, fixed, scales), built, None
    else:
        trained, own = _with_weights(source, module, scales), quick if neurons else None
    before = built[0]
    if pruner is not None:  # its training began with all synapses
        before = _scored(torch, GraphModule(stages[around.place].graph, build=_compiler()), task, check, drop)[0]
    told = Ledger()
    told.pass_name = "recover"
    compared, draws = f"compared on {len(check)}", len(_shares(drop, check)) - 1
    compared += f", whole and, in {draws} draws, with {drop:.3g} of the input left out" if draws else ""
    figures = {"score before": before, "score after": best[0], "epochs": float(epochs)}
    told.record("", "convention", f"recovery on {len(train)} samples, {compared}", measured=figures)
    found, ledger = around.compiled(trained, own, scales, told, labels)
    return Build(found, ledger, build.target, build.target_text, golden_inputs(found[-1].graph, inputs), build.options)


@dataclass(frozen=True)
class _Around:
    """The stages of a build around what is trained, the graph in front of the quantizer.

    names: of the build's stages; place: the quantizer's among them. stages: up to it at least, and ledger: what led to them.
    pruner: what chooses synapses anew while training, if anything does; those stages have all synapses then.
    """

    names: list[str]
    place: int
    options: Mapping[str, Any]
    stages: list[Stage]
    ledger: Ledger
    pruner: _Pruner | None = None

    @classmethod
    def of(cls, build: Build, quantizer: str, options: Mapping[str, Any], gradual: bool) -> _Around:
        """Of a build as it is; with `gradual`, where synapses can go while training, compiled again with all of them."""
        names, stages = build.stage_names, build.stages
        place = names.index(quantizer)
        asked = [key for key in _OF_SYNAPSES if options.get(key)]
        if not (gradual and asked and "prune" in names[:place] and "recover" not in names):
            return cls(names, place, options, stages, build.ledger)
        first = names.index("prune")
        ledger = Ledger()
        ledger.entries = [entry for entry in build.ledger if entry.pass_name not in names[first:] or entry.what == TRIED]
        # Biases are not matched to weights that are yet to change: those that are trained with stay.
        neurons_only = {"scales": {}} | {key: value for key, value in options.items() if key not in _OF_SYNAPSES}
        if spared := next((e.measured["share"] for e in build.ledger if e.what == TRIED), 0.0):
            neurons_only["prune_structured"] = spared
        now = [*stages[:first], *run_passes(stages[first - 1].graph, names[first : place + 1], neurons_only, ledger)[1:]]
        if spared:  # nobody asked for these neurons
            option, chosen = f"--{asked[0].replace('_', '-')}", f"--prune-structured {spared}"
            ledger.entries = [replace(entry, asked=option if entry.asked == chosen else entry.asked) for entry in ledger]
        left = now[place - 1].graph
        pruner = _Pruner.of(stages[first - 1].graph if spared else left, left, stages[first].graph, options)
        return cls(names, place, options, now, ledger, pruner)

    @property
    def source(self) -> Graph:
        """What is trained."""
        return self.stages[self.place - 1].graph

    @property
    def fixed(self) -> Graph:
        """The integers that the quantizer makes of it."""
        return self.stages[self.place].graph

    def compiled(
        self, trained: Graph, own: Any, scales: Mapping[str, float], told: Ledger, labels: Array
    ) -> tuple[list[Stage], Ledger]:
        """All stages, with a trained graph among them, and their ledger. own: the float module whose neurons were trained, too;
        None where none were. told: what there is to say of the training."""
        after, names = self.place, self.names
        if own:
            trained = with_trained(trained, self.source, own) or trained
        # What was pruned while training goes out of the graph where the pruning pass stands, if those behind it left the weights.
        if self.pruner is not None and (moved := _moved_back(self.stages[names.index("prune")].graph, self.source, trained)):
            moved = with_trained(moved, self.source, own) if own else moved
            trained, after = (trained, after) if moved is None else (moved, names.index("prune") + 1)
        ledger = Ledger()
        ledger.entries = [entry for entry in self.ledger if entry.pass_name not in names[after:]]
        ledger.pass_name = "recover"
        _record(ledger, self.source, trained, scales)
        record(ledger, self.source, trained)
        if self.pruner is not None:
            trained = shrink(trained, ledger)
        ledger.entries += told.entries
        scales = {name: scale for name, scale in scales.items() if name in trained}
        rest = run_passes(trained, names[after:], {**self.options, "scales": scales, "labels": labels[:256]}, ledger)
        return [*self.stages[:after], Stage("recover", trained, 0.0), *rest[1:]], ledger


def _task(
    torch: Any,
    model: Graph,
    source: Graph,
    fixed: Graph,
    inputs: Mapping[str, Array],
    labels: Array,
    ledger: Ledger,
    settings: _Settings,
) -> _Task:
    """What is to be learnt, as the model's graph takes it, the floats that are trained, and their integers."""
    given, floats, whole = (
        {name: torch.from_numpy(value) for name, value in recode(model, graph, inputs).items()} for graph in (model, source, fixed)
    )
    alike = all(given[name].shape == each[name].shape for name in given for each in (floats, whole))
    teacher = Teacher(model, comparable(model, source, fixed) if settings.hints and alike else (), _compiler())
    told_units = {e.what.split(" is in units of ")[0]: e.measured["unit"] for e in ledger if "unit" in e.measured}
    unit = told_units.get(f"the output {fixed.outputs[0][0]}", 1.0)
    wanted = torch.from_numpy(labels.astype(np.int64))
    per_step = labels.ndim == 2 and model.type_of(model.outputs[0][1]).kind != "spike"
    sharp = _sharpness(torch, teacher.answers(given, settings.batch_size), wanted) if per_step else 0.0
    return _Task(whole, floats, given, wanted, teacher if settings.distill else None, unit, sharp)


@dataclass(frozen=True)
class _Pruner:
    """Chooses which synapses stay: as the pruning pass would, of weights that change.

    share: of the synapses that goes in the end. activity: what their sources send, see the pass.
    """

    rule: Prune
    share: float
    activity: Mapping[str, Array]

    @classmethod
    def of(cls, before: Graph, whole: Graph, pruned: Graph, options: Mapping[str, Any]) -> _Pruner:
        """For a graph of which the build kept what `pruned` has. before: the one that a share of synapses was asked of."""
        kept = {key: value for key, value in options.items() if key not in (*Prune.asked_by, "target")}
        budgets = options.get("max_synapses") or options.get("max_bytes")
        pattern = options.get("prune_pattern", "")
        rule = make_pass("prune", {**kept, "keep_layers": [n for n in kept.get("keep_layers", ()) if n in whole]})
        assert isinstance(rule, Prune)
        left = sum(int(np.count_nonzero(n.weight)) for n in pruned.nodes if isinstance(n, WEIGHTED) and rule.takes(n, pruned))
        if options.get("prune") and not budgets:
            left = (1 - options["prune"]) * rule.places(before)
        share = max(0.0, 1 - left / max(1, rule.places(whole)))
        return cls(replace(rule, prune_pattern=pattern), float(share), rule.activity(whole))

    def masks(self, graph: Graph, progress: float, felt: Mapping[str, Array]) -> dict[str, Array]:
        """Which synapses stay, by layer, when `progress` of the way is done: a share of 1 - (1 - progress)^3.

        felt: the mean squares of the weights' gradients, of networks with loops. There a synapse counts for what the loss changes
        without it, its weight times its gradient, squared (Molchanov et al., CVPR 2019): what its source sends does not tell what
        comes of it around the loop. Elsewhere, and where no gradient came, it counts as the pruning pass has it.
        """
        rule = replace(self.rule, prune=self.share * (1 - (1 - progress) ** 3))
        layers = [node for node in graph.nodes if isinstance(node, WEIGHTED) and np.any(felt.get(node.name, 0))]
        matters = {node.name: np.square(node.weight.astype(np.float64)) * felt[node.name] for node in layers}
        return rule.masks(graph, self.activity, matters)


def _moved_back(pruned: Graph, source: Graph, trained: Graph) -> Graph | None:
    """An earlier graph with the trained weights; None where its layers are not those that were trained."""
    layers = [node for node in source.nodes if isinstance(node, WEIGHTED)]
    earlier = {node.name: node for node in pruned.nodes if isinstance(node, WEIGHTED)}
    if {node.name for node in layers} != set(earlier):
        return None
    if not all(np.array_equal(node.weight, earlier[node.name].weight) for node in layers):
        return None
    nodes = [replace(n, weight=trained[n.name].weight) if isinstance(n, WEIGHTED) else n for n in pruned.nodes]  # type: ignore[attr-defined]  # a layer of weights
    return verify(pruned.with_nodes(nodes))


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


def _check_options(settings: _Settings, held_out: float) -> None:
    epochs, batch_size, rate, temperature = settings.epochs, settings.batch_size, settings.learning_rate, settings.temperature
    drop, soft, early, hints, clip = settings.drop, settings.soft, settings.early, settings.hints, settings.clip
    wrong = [
        (epochs < 0, f"epochs must be 0 or more, not {epochs}"),
        (batch_size < 1, f"batch_size must be at least 1, not {batch_size}"),
        (rate <= 0, f"learning_rate must be above 0, not {rate}"),
        (not 0 <= held_out < 1, f"held_out is a share from 0 up to but without 1, not {held_out}"),
        (not 0 <= drop < 1, f"drop is a share from 0 up to but without 1, not {drop}"),
        (not 0 <= soft <= 1, f"soft is a share from 0 to 1, not {soft}"),
        (not 0 <= early <= 1, f"early is a share from 0 to 1, not {early}"),
        (temperature <= 0, f"temperature must be above 0, not {temperature}"),
        (not hints >= 0, f"hints must be 0 or more, not {hints}"),
        (clip < 0, f"clip must be 0 or more, not {clip}"),
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


def _modules(
    torch: Any, source: Graph, fixed: Graph, scales: Mapping[str, float], grids: Mapping[str, tuple[int, int, int]], neurons: bool
) -> tuple[Any, Any, dict[str, Any], Callable[[Graph], Any]]:
    """The graph of integers, and the float graph before it, as modules with the same weights, rounded to the grid on their way.

    Also, by layer, which synapses there are, to be changed in place. No gradient reaches those that are masked: Adam, which makes
    all steps equally long, would move them as far as those that matter, until they came back and drove these out. And what makes
    such a module of another graph of the same integers. neurons: the float one's biases and constants are trained.
    """
    from spikec.frontend.nn.graph_module import GraphModule, straight_through

    weights: dict[str, Array] = {}
    masks: dict[str, Any] = {}
    quantizers: dict[str, Callable[[Any], Any]] = {}
    floats: dict[str, Callable[[Any], Any]] = {}
    targets: dict[str, str] = {}
    for name, scale in scales.items():
        node = source[name]
        target = next(n for n in (f"{name}_sum", name) if n in fixed and isinstance(fixed[n], WEIGHTED))
        weight = node.weight.astype(np.float64)  # type: ignore[attr-defined]  # a layer of weights
        mask = masks[name] = torch.from_numpy(weight != 0).double()
        dtype = torch.from_numpy(np.zeros(0, node.weight.dtype)).dtype  # type: ignore[attr-defined]  # a layer of weights

        def quantized(w: Any, scale: float = scale, mask: Any = mask, grid: tuple[int, int, int] = grids[name]) -> Any:
            step, bottom, top = grid
            whole = (torch.round(w * (scale / step)) * step).clamp(bottom, top)
            return straight_through(w * mask, whole * mask, scale)

        def real(
            w: Any, scale: float = scale, mask: Any = mask, dtype: Any = dtype, grid: tuple[int, int, int] = grids[name]
        ) -> Any:
            step, bottom, top = grid
            whole = (torch.round(w.detach() * (scale / step)) * step).clamp(bottom, top)
            return straight_through((w * mask).to(dtype), (whole * mask / scale).to(dtype))

        weights[target], quantizers[target], floats[name], targets[name] = weight, quantized, real, target
    build = _compiler()

    def integers(graph: Graph) -> Any:
        found = GraphModule(graph, weights, quantizers, build=build)
        for name, key in found._keys.items():
            if key in found.weights and name not in quantizers:
                found.weights[key].requires_grad_(False)
        for target in targets.values() if graph is not fixed else ():
            found.weights[found._keys[target]] = module.weights[module._keys[target]]
        return found

    module = integers(fixed)
    quick = GraphModule(source, None, floats, learnt=forms_of(source) if neurons else None, build=build)
    quick.requires_grad_(False)
    if neurons:
        quick.params.requires_grad_(True)
        for name in biased(source):
            quick.biases[quick._keys[name]].requires_grad_(True)
    for name, target in targets.items():
        quick.weights[quick._keys[name]] = module.weights[module._keys[target]]
    return module, quick, masks, integers


def _compiler() -> Any:
    """What compiles C for modules; None where there is no compiler."""
    from spikec.backends.c.library import build_library, find_compiler

    return build_library if find_compiler() else None


def _first_output(graph: Graph, found: Mapping[str, Any]) -> Any:
    return found[graph.outputs[0][0]].flatten(2)


def _sharpness(torch: Any, answers: Any, labels: Any) -> float:
    """The factor with which membranes are the best logits (temperature scaling, Guo et al. 2017); 0 where labels tell none."""
    wanted = labels.flatten()
    told = answers.flatten(0, 1)[wanted >= 0][:: max(1, len(wanted) // 100_000)]
    wanted = wanted[wanted >= 0][:: max(1, len(labels.flatten()) // 100_000)]
    spread = float(told.std()) if len(told) > 1 else 0.0
    if not spread:
        return 0.0
    factors = [_SPREAD / spread * 2 ** (k / 4) for k in range(-8, 9)]  # labels that are the answers themselves know no end
    return min(factors, key=lambda factor: float(torch.nn.functional.cross_entropy(told * factor, wanted)))


def _logits(graph: Graph, output: Any, per_step: bool, sharp: float = 0.0) -> Any:
    """What the loss sees: counts of spikes, or means of membranes in units of their spread; (batch, [T,] classes). sharp: what the
    membranes of every step are multiplied with."""
    if sharp:
        return output * sharp
    spikes = graph.type_of(graph.outputs[0][1]).kind == "spike"
    if per_step:
        summed = output
    else:
        summed = output.sum(dim=1) if spikes else output.mean(dim=1)
    if spikes and not per_step:
        return summed
    return summed * (_SPREAD / summed.detach().std().clamp_min(1e-9))


def _so_far(torch: Any, graph: Graph, output: Any) -> Any:
    """What the loss of early answers sees: counts or means up to each step past a fifth of the run; (batch, steps, classes)."""
    steps = output.shape[1]
    sums = output.cumsum(dim=1)[:, steps // 5 :]
    if graph.type_of(graph.outputs[0][1]).kind == "spike":
        return sums
    means = sums / torch.arange(steps // 5 + 1, steps + 1, dtype=sums.dtype)[:, None]
    return means * (_SPREAD / means.detach().std().clamp_min(1e-9))


def _shares(drop: float, check: Array) -> list[float]:
    """The shares of the input that are left out, in turn, where epochs are compared on these samples."""
    return [0.0] + [drop] * (DRAWS if drop and len(check) < _FEW else 0)


def _scored(torch: Any, module: Any, task: _Task, check: Array, drop: float) -> tuple[float, float]:
    """The score on some samples, and the loss with its sign turned: of equal scores the smaller loss is better.

    The network that was compiled has mostly learnt them, and its build knows nearly all: what it has not seen is the same with as
    much left out as in training. So few samples count whole and in several draws, always the same.
    """
    given, unit = (task.inputs, task.unit) if module.integer else (task.floats, 1.0)
    graph, per_step = module.graph, task.labels.ndim == 2
    found = []
    with torch.no_grad():
        for draw, share in enumerate(_shares(drop, check)):
            generator = torch.Generator().manual_seed(draw)
            for i in range(0, len(check), 256):
                part, _ = _thinned(torch, given, task.given, check[i : i + 256], share, generator)
                found.append(unit * _first_output(graph, module(part)))
        output = torch.cat(found)
        labels = task.labels[torch.from_numpy(np.tile(check, len(output) // len(check)))]
        loss = float(_loss(torch, _logits(graph, output, per_step, task.sharp), labels, 1.0))
    return score(output.numpy(), labels.numpy()), -loss


def _fit(
    torch: Any,
    module: Any,
    quick: Any,
    task: _Task,
    train: Array,
    check: Array,
    settings: _Settings,
    generator: Any,
    progress: Callable[[int, int], None],
    prune: Callable[[float, Mapping[Any, Mapping[str, Any]]], None] | None,
    settle: Callable[[], Any] | None,
) -> tuple[tuple[float, float], tuple[float, float], Any]:
    """Train, `quick` first, which shares the module's weights; the module ends with the weights of its best epoch. What `_scored`
    says of it before and after, and the module.

    prune: called with how far the pruning is, from 0 to 1, and the optimizer's state, during the first part of the training.
    settle: gives the module with what neurons have of their own as it is by then, where that is trained.
    """
    graph = module.graph
    per_step = task.labels.ndim == 2
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p], "lr": settings.learning_rate * _size(p)} for p in parameters]
    for key, bias in quick.biases.items():
        groups.append({"params": [bias], "lr": settings.learning_rate * _BIASES * _size(quick.weights[key])})
    groups += [{"params": [p], "lr": settings.learning_rate * _CONSTANTS} for p in quick.params.values()]
    groups = [group for group in groups if group["params"][0].requires_grad]
    epochs, size, teacher = settings.epochs, settings.batch_size, task.teacher
    batches = -(-len(train) // size)
    total = epochs * batches
    best, highest, last, widest = None, (-1.0, 0.0), module, module.widest
    built = _scored(torch, module, task, check, settings.drop)
    if prune is None and settle is None:
        best, highest = _copy(module), built
    if not groups or not epochs:
        return built, built, module
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    early = int(_EARLY * total)
    pruned = int(_PRUNING * total) if prune else 0
    every = max(1, pruned // _UPDATES)
    for number in range(total):
        if number % batches == 0:
            shuffled = train[torch.randperm(len(train), generator=generator).numpy()]
        if prune and (number == pruned or (number < pruned and number % every == 0)):
            prune(min(1.0, (number + every) / max(1, pruned)), optimizer.state)
        chosen = shuffled[number % batches * size : (number % batches + 1) * size]
        if number == early and settle is not None:
            module = settle()
            slow, fast = (_scored(torch, each, task, check, settings.drop)[0] for each in (module, quick))
            last = quick if abs(slow - fast) <= _AS_WELL else last
        if number == early and last is not quick:
            last = module
        now = quick if number < early else last
        given = task.inputs if now is module else task.floats
        batch, shown = _thinned(torch, given, task.given, chosen, settings.drop, generator)
        taught, rates = teacher(shown) if teacher else (None, {})
        now.widest = widest
        found = now(batch, tuple(rates))
        output = _first_output(graph, found) * (1.0 if now is quick else task.unit)
        if taught is not None:
            taught = _in_steps(torch, taught, output.shape[1])
        wanted = task.labels[torch.from_numpy(chosen)]
        loss = _cost(torch, settings, lambda given: _logits(graph, given, per_step, task.sharp), output, taught, wanted)
        if teacher and rates:
            loss = loss + settings.hints * teacher.distance(rates, found)
        if settings.early:
            each = _cost(torch, settings, lambda given: _so_far(torch, graph, given), output, taught, wanted[:, None])
            loss = (1 - settings.early) * loss + settings.early * each
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], settings.clip or torch.inf)
        if torch.isfinite(norm):
            optimizer.step()
            schedule.step()
        else:  # through loops of many steps gradients outgrow every number; nothing can be learnt of such
            widest *= _WIDER
        progress(number + 1, total)
        if (number + 1) % batches == 0 and number >= max(pruned, early):
            reached = _scored(torch, last, task, check, settings.drop)
            if reached > highest:
                best, highest = _copy(last), reached
    last.load_state_dict(best)
    if last is quick and settle is not None:
        module = settle()
        highest = _scored(torch, module, task, check, settings.drop)
    return built, highest, module


def _in_steps(torch: Any, output: Any, steps: int) -> Any:
    """An output (batch, T, classes) in so many steps: as many neighbours as it takes, together."""
    factor = -(-output.shape[1] // steps)
    if factor == 1:
        return output
    padded = torch.nn.functional.pad(output, (0, 0, 0, steps * factor - output.shape[1]))
    return padded.unflatten(1, (steps, factor)).sum(dim=2)


def _thinned(
    torch: Any, given: Mapping[str, Any], model: Mapping[str, Any], chosen: Array, drop: float, generator: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Some samples with a share of the input left out at random, and the same as the model takes them, with the same left out where
    steps are the same, and whole where they are not."""
    batch, shown = ({name: value[chosen] for name, value in values.items()} for values in (given, model))
    for name in batch if drop else ():
        kept = _kept(torch, batch[name], drop, generator)
        if shown[name].shape == kept.shape:
            shown[name] = shown[name] * kept
        batch[name] = batch[name] * kept
    return batch, shown


def _kept(torch: Any, value: Any, drop: float, generator: Any) -> Any:
    """Truths in the shape of a tensor, of which a share of `drop` is false; four from each random number, for speed."""
    count = value.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator).view(torch.int16)
    return (drawn[:count] >= round(drop * 2**16) - 2**15).view(value.shape)


def _copy(module: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _size(weight: Any) -> float:
    """The mean magnitude of the weights that there are."""
    there = weight.detach()[weight.detach() != 0]
    return float(there.abs().mean()) if there.numel() else 1.0


def _cost(torch: Any, settings: _Settings, seen: Callable[[Any], Any], output: Any, taught: Any, labels: Any) -> Any:
    """The loss of an output as `seen` shows it, by the labels and, where there is a teacher's output, by what that one shows."""
    logits = seen(output)
    labels = labels.expand(logits.shape[:-1])
    if taught is None:
        return _loss(torch, logits, labels, 1.0)
    distance = _distance(torch, logits, seen(taught), settings.temperature)
    return _loss(torch, logits, labels, 1.0 - settings.soft) + settings.soft * distance


def _loss(torch: Any, logits: Any, labels: Any, share: float) -> Any:
    return share * torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-1)


def _distance(torch: Any, logits: Any, taught: Any, temperature: float) -> Any:
    f = torch.nn.functional
    wanted = f.softmax(taught.double() / temperature, dim=-1).flatten(0, -2)
    found = f.log_softmax(logits / temperature, dim=-1).flatten(0, -2)
    return f.kl_div(found, wanted.to(found.dtype), reduction="batchmean") * temperature**2


def _as_built(source: Graph, fixed: Graph, scales: Mapping[str, float]) -> Graph:
    """The float graph with the weights that the build has."""
    return _replaced(source, fixed, scales, lambda name, target: fixed[target].weight / scales[name])  # type: ignore[attr-defined]  # a layer of weights


def _with_weights(source: Graph, module: Any, scales: Mapping[str, float], rounded: bool = True) -> Graph:
    """The float graph with the weights that were trained, as the grid has them; or not rounded, and those that are masked too."""

    def trained(name: str, target: str) -> Array:
        if rounded:
            return np.asarray(module.weight_of(target).detach().numpy() / scales[name])
        return np.asarray(module.weights[module._keys[target]].detach().numpy())

    return _replaced(source, module.graph, scales, trained)


def _replaced(source: Graph, fixed: Graph, scales: Mapping[str, float], weight_of: Callable[[str, str], Array]) -> Graph:
    """The float graph with other weights: `weight_of` a layer's name, and that of the layer of integers that was made of it."""
    nodes = []
    for node in source.nodes:
        if node.name in scales and not isinstance(source[node.inputs[0].node], Constant):
            target = next(n for n in (f"{node.name}_sum", node.name) if n in fixed and isinstance(fixed[n], WEIGHTED))
            weight = weight_of(node.name, target).astype(node.weight.dtype)  # type: ignore[attr-defined]  # a layer of weights
            node = replace(node, weight=weight)  # type: ignore[call-arg]  # a layer of weights
        nodes.append(node)
    return verify(source.with_nodes(nodes))
