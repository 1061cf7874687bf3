"""Norse, every module and option of its support table: bit for bit on dyadic numbers, within the rounding bound on any others."""

import norse.torch as norse
import numpy as np
import pytest
import torch
import torch.nn as nn
from bounds import count_flips, neuron_bound, sum_bound
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from norse.torch.functional.izhikevich import tonic_spiking

import spikec
from spikec.diagnostics import CompileError
from spikec.frontend.norse import SUPPORT, VERSION
from spikec.frontend.torch_trace import trace
from spikec.ir.interpret import float_truth, interpret, run_program

IN, HIDDEN, OUT = 5, 4, 3
DT = 2.0**-10


def dyadic(module, draw, low=-8, high=12):
    """All weights in eighths."""
    for parameter in module.parameters():
        if parameter.ndim:
            numbers = draw(st.lists(st.integers(low, high), min_size=parameter.numel(), max_size=parameter.numel()))
            parameter.data = torch.tensor(numbers, dtype=torch.float32).reshape(parameter.shape) / 8
    for inner in module.modules():
        if hasattr(inner, "g_coupling"):  # between membranes, which have many bits: sums of one term are exact
            inner.g_coupling.data = torch.diag(inner.g_coupling.data.diagonal())
    return module


def rate(draw):
    """An inverse time constant: times DT it is 1/8 to 1."""
    return draw(st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0])) / DT


def potentials(draw):
    return {"v_th": draw(st.integers(1, 12)) / 8, "v_leak": draw(st.sampled_from([0.0, 0.0, 0.25, -0.5])),
            "v_reset": draw(st.sampled_from([0.0, 0.0, 0.125, -0.25]))}  # fmt: skip


def tensors(values):
    return {key: torch.tensor(value) for key, value in values.items()}


def lif(draw, **more):
    """LIFParameters, dyadic."""
    return norse.LIFParameters(**tensors({"tau_mem_inv": rate(draw), "tau_syn_inv": rate(draw), **potentials(draw)}), **more)


class Cells(nn.Module):
    """A layer, a cell that is called step by step, and a layer behind it."""

    def __init__(self, cell, size=HIDDEN, begin=None, states=False):
        super().__init__()
        self.fc, self.cell, self.out = nn.Linear(IN, HIDDEN), cell, nn.Linear(size, OUT)
        self.begin, self.states = begin, states

    def forward(self, x):
        state = None if self.begin is None else self.begin(x.shape[1])
        spikes, after = [], []
        for xt in x:
            z, state = self.cell(self.fc(xt), state)
            spikes.append(z)
            after.append(state)
        z = torch.stack(spikes)
        if not self.states:
            return z, self.out(z)
        return z, *(torch.stack([getattr(s, name) for s in after]) for name in state._fields)


class Layers(nn.Module):
    """The same with a module that does all steps at once."""

    def __init__(self, layer, size=HIDDEN, begin=None, recorded=False):
        super().__init__()
        self.fc, self.layer, self.out = nn.Linear(IN, HIDDEN), layer, nn.Linear(size, OUT)
        self.begin, self.recorded = begin, recorded

    def forward(self, x):
        z, state = self.layer(self.fc(x), None if self.begin is None else self.begin(x.shape[1]))
        return (z, *state) if self.recorded else (z, self.out(z))


class ByHand(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.fc, self.p = nn.Linear(IN, HIDDEN), p
        self.w_in, self.w_rec = nn.Parameter(torch.empty(3, HIDDEN)), nn.Parameter(torch.empty(3, 3))

    def forward(self, x):
        one = norse.LIFFeedForwardState(v=torch.zeros(x.shape[1], HIDDEN), i=torch.zeros(x.shape[1], HIDDEN))
        two = norse.LIFState(*(torch.zeros(x.shape[1], 3) for _ in range(3)))
        out = []
        for xt in x:
            z, one = norse.functional.lif_feed_forward_step(self.fc(xt), one, self.p, DT)
            z, two = norse.functional.lif_step(z, two, self.w_in, self.w_rec, self.p, DT)
            out.append(z)
        return torch.stack(out)


class Regularised(nn.Module):
    def __init__(self, p, returned=False):
        super().__init__()
        self.fc, self.lif, self.returned = nn.Linear(IN, HIDDEN), norse.LIFCell(p, dt=DT), returned
        self.term = norse.RegularizationCell()

    def forward(self, x):
        state, out = None, []
        for xt in x:
            z, state = self.lif(self.fc(xt), state)
            z, term = self.term(z, state)
            out.append(z)
        return (torch.stack(out), term) if self.returned else torch.stack(out)


def lif_state(batch):
    return norse.LIFFeedForwardState(v=torch.full((batch, HIDDEN), 0.25), i=torch.full((batch, HIDDEN), -0.5))


def per_neuron(draw, count, low=1):
    return torch.tensor(draw(st.lists(st.integers(low, 8), min_size=count, max_size=count))) / 8


def any_form(draw, values):
    """Numbers, tensors, or one per neuron."""
    made = {}
    for key, value in values.items():
        form = draw(st.sampled_from(["number", "tensor", "each"]))
        made[key] = value if form == "number" else torch.tensor(value)
        if form == "each" and key != "v_leak":  # Norse fills the first membrane with it
            made[key] = torch.tensor(value) * per_neuron(draw, HIDDEN)
    return made


def box(draw):
    return norse.LIFBoxParameters(**tensors({"tau_mem_inv": rate(draw), **potentials(draw)}))


def li(draw):
    return norse.LIParameters(
        **tensors({"tau_mem_inv": rate(draw), "tau_syn_inv": rate(draw), "v_leak": draw(st.sampled_from([0.0, 0.5]))})
    )


def lsnn(draw):
    return norse.LSNNParameters(**tensors({
        "tau_mem_inv": rate(draw), "tau_syn_inv": rate(draw), "tau_adapt_inv": rate(draw), "beta": 0.5, **potentials(draw)
    }))  # fmt: skip


def refrac(draw):
    return norse.module.lif_refrac.LIFRefracParameters(lif=lif(draw), rho_reset=torch.tensor(float(draw(st.integers(0, 3)))))


def weighted(draw):
    autapses = draw(st.booleans())
    weights = [torch.randint(-8, 12, shape) / 8 for shape in ((6, HIDDEN), (6, 6))]
    return norse.LIFRecurrentCell(
        HIDDEN, 6, lif(draw), input_weights=weights[0], recurrent_weights=weights[1], autapses=autapses, dt=DT
    )


def either(draw, cell, layer, size=HIDDEN):
    return Cells(cell, size) if draw(st.booleans()) else Layers(layer, size)


ANY_P = "p: numbers, tensors, one per neuron"
METHODS = ["super", "heaviside", "triangle", "tanh", "circ", "heavi_erfc"]
LIF_VALUES = ("tau_mem_inv", "tau_syn_inv")
#: Row of the support table -> a model of it.
EXACT = {
    ("LIFCell", ""): lambda draw: Cells(norse.LIFCell(lif(draw), dt=DT)),
    ("LIFCell", ANY_P): lambda draw: Cells(norse.LIFCell(
        norse.LIFParameters(**any_form(draw, {**{k: rate(draw) for k in LIF_VALUES}, **potentials(draw)})), dt=DT)),
    ("LIFCell", f"p.method: {', '.join(METHODS)}"): lambda draw: Cells(
        norse.LIFCell(lif(draw, method=draw(st.sampled_from(METHODS))), dt=DT)),
    ("LIFCell", "dt"): lambda draw: Cells(norse.LIFCell(lif(draw), dt=draw(st.sampled_from([DT, DT / 2, 0.001])))),
    ("LIFCell", "state: left out, given, carried, returned"): lambda draw: Cells(
        norse.LIFCell(lif(draw), dt=DT), begin=lif_state if draw(st.booleans()) else None, states=True),
    ("LIF", ""): lambda draw: Layers(norse.LIF(lif(draw), dt=DT)),
    ("LIF", "state given"): lambda draw: Layers(norse.LIF(lif(draw), dt=DT), begin=lif_state),
    ("LIF", "record_states"): lambda draw: Layers(norse.LIF(lif(draw), dt=DT, record_states=True), recorded=True),
    ("LIFRecurrentCell", ""): lambda draw: Cells(norse.LIFRecurrentCell(HIDDEN, 6, lif(draw), dt=DT), 6),
    ("LIFRecurrentCell", "input_weights, recurrent_weights, autapses"): lambda draw: Cells(weighted(draw), 6),
    ("LIFRecurrent", ""): lambda draw: Layers(norse.LIFRecurrent(HIDDEN, 6, lif(draw), dt=DT), 6),
    ("LIFRecurrent", "record_states"): lambda draw: Layers(
        norse.LIFRecurrent(HIDDEN, 6, lif(draw), dt=DT, record_states=True), 6, recorded=True),
    ("LIFBoxCell", ""): lambda draw: Cells(norse.LIFBoxCell(box(draw), dt=DT)),
    ("LIFBoxCell", ANY_P): lambda draw: Cells(norse.LIFBoxCell(
        norse.LIFBoxParameters(**any_form(draw, {"tau_mem_inv": rate(draw), **potentials(draw)})), dt=DT)),
    ("IAFCell", ""): lambda draw: Cells(norse.IAFCell(norse.IAFParameters(v_th=torch.tensor(draw(st.integers(1, 12)) / 8)))),
    ("LICell", ""): lambda draw: Cells(norse.LICell(li(draw), dt=DT), states=True),
    ("LI", ""): lambda draw: Layers(norse.LI(li(draw), dt=DT), recorded=True),
    ("LI", "record_states"): lambda draw: Layers(norse.LI(li(draw), dt=DT, record_states=True), recorded=True),
    ("LILinearCell", ""): lambda draw: Cells(norse.LILinearCell(HIDDEN, 6, li(draw), dt=DT), 6, states=True),
    ("LSNNCell, LSNN", ""): lambda draw: (lambda p: either(draw, norse.LSNNCell(p, dt=DT), norse.LSNN(p, dt=DT)))(lsnn(draw)),
    ("LSNNRecurrentCell, LSNNRecurrent", ""): lambda draw: (lambda p: either(
        draw, norse.LSNNRecurrentCell(HIDDEN, 6, p, dt=DT), norse.LSNNRecurrent(HIDDEN, 6, p, dt=DT), 6))(lsnn(draw)),
    ("LIFRefracCell", ""): lambda draw: Cells(norse.LIFRefracCell(refrac(draw), dt=DT)),
    ("LIFRefracRecurrentCell, LIFRefracRecurrent", ""): lambda draw: (lambda p: either(
        draw, norse.LIFRefracRecurrentCell(HIDDEN, 6, p, dt=DT), norse.LIFRefracRecurrent(HIDDEN, 6, p, dt=DT), 6))(refrac(draw)),
    ("LIFMCRecurrentCell, LIFMCRefracRecurrentCell", ""): lambda draw: Cells(
        norse.LIFMCRecurrentCell(HIDDEN, HIDDEN, p=lif(draw), dt=DT) if draw(st.booleans())
        else norse.LIFMCRefracRecurrentCell(HIDDEN, HIDDEN, p=refrac(draw), dt=DT)),
    ("IzhikevichCell, Izhikevich", ""): lambda draw: either(
        draw, norse.IzhikevichCell(tonic_spiking, dt=DT), norse.Izhikevich(tonic_spiking, dt=DT)),
    ("IzhikevichRecurrentCell, IzhikevichRecurrent", ""): lambda draw: either(
        draw, norse.IzhikevichRecurrentCell(HIDDEN, 6, tonic_spiking, dt=DT),
        norse.IzhikevichRecurrent(HIDDEN, 6, tonic_spiking, dt=DT), 6),
    ("SequentialState", ""): lambda draw: norse.SequentialState(
        nn.Linear(IN, HIDDEN), norse.LIF(lif(draw), dt=DT),
        norse.SequentialState(norse.LIFRecurrent(HIDDEN, 6, lif(draw), dt=DT), nn.Linear(6, OUT)), norse.LI(li(draw), dt=DT)),
    ("Lift", ""): lambda draw: nn.Sequential(norse.Lift(nn.Linear(IN, HIDDEN)), norse.LIF(lif(draw), dt=DT)),
    ("RegularizationCell", ""): lambda draw: Regularised(lif(draw)),
    ("functional.lif_feed_forward_step, lif_step", "called by hand"): lambda draw: ByHand(lif(draw)),
}  # fmt: skip
REFUSED = {
    ("LIFCell", "p.method: adjoint"): lambda: [Cells(norse.LIFCell(norse.LIFParameters(method="adjoint")))],
    ("LIFEx, LIFAdEx, LIFAdExRefrac", "all their cells and layers"): lambda: [
        Cells(norse.LIFExCell()), Layers(norse.LIFEx()), Cells(norse.LIFExRecurrentCell(HIDDEN, HIDDEN)),
        Layers(norse.LIFExRecurrent(HIDDEN, HIDDEN)), Cells(norse.LIFAdExCell()), Layers(norse.LIFAdEx()),
        Cells(norse.LIFAdExRecurrentCell(HIDDEN, HIDDEN)), Layers(norse.LIFAdExRecurrent(HIDDEN, HIDDEN)),
        Cells(norse.LIFAdExRefracCell()), Cells(norse.LIFAdExRefracRecurrentCell(HIDDEN, HIDDEN)),
        Layers(norse.LIFAdExRefracRecurrent(HIDDEN, HIDDEN))],
    ("CobaLIFCell", ""): lambda: [Cells(norse.CobaLIFCell(HIDDEN, HIDDEN))],
    ("LIFCorrelation", ""): lambda: [Cells(norse.LIFCorrelation(HIDDEN, HIDDEN))],
    ("PoissonEncoder, SignedPoissonEncoder", ""): lambda: [
        nn.Sequential(norse.PoissonEncoder(5), nn.Linear(IN, 2)), nn.Sequential(norse.SignedPoissonEncoder(5), nn.Linear(IN, 2))],
}  # fmt: skip
#: Modules with a program in the table. What is traced from the inside needs a few more steps: its first ones are special.
LEAVES = {
    row
    for row in EXACT
    if row[0] in ("LIFCell", "LIF", "LIFRecurrentCell", "LIFRecurrent", "LIFBoxCell", "IAFCell", "LICell", "LI")
}
#: Refused by the input and not by the module.
BY_INPUT = {("LIFCell", "a sparse input")}


def test_the_table_is_for_the_version_that_is_installed():
    from importlib.metadata import version

    assert version("norse") == VERSION


def test_every_row_has_a_case():
    rows = {(row.module, row.option): row.status for row in SUPPORT}
    assert len(rows) == len(SUPPORT)
    assert {row for row, status in rows.items() if status == "exact"} == set(EXACT)
    assert {row for row, status in rows.items() if status == "refused"} == set(REFUSED) | BY_INPUT
    assert "approximate" not in rows.values()


def leaves(item):
    """The tensors in what a model returns, in the order of the graph's outputs."""
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, (tuple, list)):
        for inner in item:
            yield from leaves(inner)


def equal(graph, model, x):
    """No number may differ; an output without a time axis is that of the last step."""
    with torch.no_grad():
        wanted = list(leaves(model(x)))
    found = list(interpret(graph, {graph.inputs[0].name: x.numpy().swapaxes(0, 1)}).outputs.values())
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        theirs = theirs.numpy()
        last = theirs.ndim == mine.ndim - 1
        np.testing.assert_array_equal(mine[:, -1] if last else mine.swapaxes(0, 1), theirs)
    return wanted


@pytest.mark.parametrize("row", EXACT, ids=" ".join)
def test_exact_rows_on_dyadic_numbers(row):
    active = []

    @settings(max_examples=8, deadline=None, phases=[Phase.generate])
    @given(st.data(), st.integers(3 if row in LEAVES else 6, 9), st.booleans())
    def run(data, steps, check):
        torch.manual_seed(data.draw(st.integers(0, 1000)))
        model = dyadic(EXACT[row](data.draw), data.draw)
        x = torch.randint(0, 3, (steps, 2, IN)).float()
        active.append(
            any(item.any() for item in equal(trace(model, x, check=check), model, torch.randint(0, 3, (steps + 3, 3, IN)).float()))
        )

    run()
    assert any(active)


@pytest.mark.parametrize("row", REFUSED, ids=" ".join)
def test_refused_rows(row):
    for model in REFUSED[row]():
        with pytest.raises(CompileError) as caught:
            trace(model, torch.ones(6, 2, IN))
        error = caught.value.diagnostics[0]
        assert error.code == "SPK101" and error.fix, str(caught.value)


def test_messages():
    with pytest.raises(CompileError) as caught:
        trace(Cells(norse.LIFExCell()), torch.ones(6, 2, IN))
    assert str(caught.value) == (
        "test_norse.py (cell): error[SPK101]: Norse's LIFExCell is not supported: it takes the exponential of its membrane, which "
        "programs cannot\n  fix: use LIF or LSNN neurons"
    )
    with pytest.raises(CompileError) as caught:
        trace(Layers(norse.LIF(norse.LIFParameters(method="adjoint"))), torch.ones(6, 2, IN))
    assert str(caught.value) == (
        "test_norse.py (layer): error[SPK101]: LIF with method='adjoint' is not supported: Norse 1.0.0 fails when it runs it\n"
        "  fix: use p._replace(method='super'): the forward pass is meant to be the same"
    )
    with pytest.raises(CompileError, match="SPK110"):
        trace(Cells(norse.LIFCell(norse.LIFParameters(method="logistic"))), torch.ones(6, 2, IN))


def test_a_sparse_input_is_refused():
    with pytest.raises(CompileError, match=r"SPK007.*sparse"):
        trace(Layers(norse.LIF()), torch.ones(6, 2, IN).to_sparse())


def test_a_regularisation_term_over_the_batch_is_refused():
    with pytest.raises(CompileError, match=r"SPK10[25]"):
        trace(Regularised(norse.LIFParameters(), returned=True), torch.ones(6, 2, IN))


class Alone(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        state, out = None, []
        for xt in x:
            z, state = self.layer(xt, state)
            out.append(z)
        return torch.stack(out), state.lif.v if hasattr(state, "lif") else state.v


@pytest.mark.parametrize(
    "cell",
    [
        norse.LIFCell(norse.LIFParameters(v_leak=torch.tensor(0.1), v_reset=torch.tensor(-0.3), v_th=torch.tensor(0.37))),
        norse.LIFCell(
            norse.LIFParameters(tau_mem_inv=torch.rand(7) * 500, tau_syn_inv=torch.rand(7) * 300, v_th=torch.tensor(0.2))
        ),
        norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=333.3, v_leak=0.1, v_th=0.37)),
        norse.IAFCell(norse.IAFParameters(v_th=torch.tensor(0.9))),
        norse.LICell(norse.LIParameters(v_leak=torch.tensor(0.7))),
        norse.LSNNCell(),
        norse.LIFRefracCell(),
        norse.IzhikevichCell(tonic_spiking),
    ],
    ids=lambda cell: type(cell).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neurons_alone_agree_to_the_last_bit(cell, dtype):
    """Random numbers, 200 steps, no sum before the neuron: the same operations in the same order."""
    torch.manual_seed(1)
    x = torch.randn(200, 5, 7, dtype=dtype) * 4 + 2
    model = Alone(cell)
    wanted = equal(trace(model, x[:20], batch_axis=1), model, x)
    assert wanted[0].any()


def test_random_numbers_stay_within_the_rounding_bound():
    """Each step from Norse's own state; a spike may differ only where the two sums before it were rounded differently."""
    torch.manual_seed(5)
    model = norse.LIFRecurrent(
        IN, 40, norse.LIFParameters(v_th=torch.tensor(0.37), tau_mem_inv=torch.tensor(313.0)), record_states=True
    )
    x = torch.randn(200, 8, IN)
    graph = trace(model, x[:20])
    with torch.no_grad():
        spikes, states = model(x)
    z, v, i = (state.numpy() for state in states)
    before = [np.concatenate([np.zeros_like(item[:1]), item[:-1]]) for item in (z, v, i)]
    (node,) = graph.neurons
    current, back = x.numpy() @ model.input_weights.detach().numpy().T, before[0] @ model.recurrent_weights.detach().numpy().T
    values = {"x": current, "r": back, "v": before[1], "i": before[2], **{k: a.item() for k, a in node.params.items()}}
    found = run_program(node.program, dict(values), float_truth)
    bound = sum_bound(model.input_weights.detach().numpy(), None, x.numpy())
    bound = bound + sum_bound(model.recurrent_weights.detach().numpy(), None, before[0])
    jump = before[2].astype(np.float64) + current + back
    at_comparison = before[1] + values["a_mem"] * ((values["v_leak"] - before[1]) + jump)
    bound = values["a_mem"] * bound + neuron_bound(before[1], jump, 0.37)
    flips = count_flips(found["z"].astype(np.float32), spikes.numpy(), at_comparison, 0.37, bound)
    assert flips.outside == 0 and flips.count <= 2, str(flips)
    assert spikes.any()


def scnn():
    """Time first, convolutions lifted over time."""
    p = norse.LIFParameters(tau_mem_inv=torch.tensor(0.5 / DT), tau_syn_inv=torch.tensor(0.5 / DT), v_th=torch.tensor(0.5))
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(1, 3, 3, padding=1)), norse.LIF(p, dt=DT), norse.Lift(nn.MaxPool2d(2)), nn.Flatten(2),
        nn.Linear(27, 6), norse.LIFRecurrent(6, 5, p, dt=DT), nn.Linear(5, 4), norse.LIF(p, dt=DT),
    )  # fmt: skip


class BatchFirst(nn.Module):
    """One call of a SequentialState of cells a step, over a batch-first tensor."""

    def __init__(self):
        super().__init__()
        p = norse.LIFParameters(tau_mem_inv=torch.tensor(0.5 / DT), tau_syn_inv=torch.tensor(0.25 / DT), v_th=torch.tensor(0.25))
        self.net = norse.SequentialState(
            nn.Conv2d(1, 3, 3), norse.LIFCell(p, dt=DT), nn.AvgPool2d(2), nn.Flatten(), nn.Sequential(nn.Linear(12, 6), nn.Identity()),
            norse.LIFRecurrentCell(6, 5, p, dt=DT), nn.Linear(5, 4), norse.LIFBoxCell(norse.LIFBoxParameters(v_th=torch.tensor(0.125)), dt=2 * DT),
        )  # fmt: skip

    def forward(self, x):
        state, out = None, []
        for t in range(x.shape[1]):
            z, state = self.net(x[:, t], state)
            out.append(z)
        return torch.stack(out, dim=1)


class Single(nn.Module):
    """One neuron, as in the NIR project's comparison of simulators."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = (
            nn.Linear(1, 1, bias=False),
            norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(400.0)), dt=1e-4),
        )
        self.fc.weight.data[:] = 1.5

    def forward(self, x):
        state, out = None, []
        for xt in x:
            z, state = self.lif(self.fc(xt), state)
            out.append(z)
        return torch.stack(out)


NETS = {
    "time-first": (scnn, (12, 3, 1, 6, 6), 0),
    "batch-first": (BatchFirst, (3, 12, 1, 6, 6), 1),
    "single": (Single, (100, 2, 1), 0),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("target", "engines"), [("reference", ["reference"]), ("host", ["reference", "numpy", "c"])])
def test_networks_compiled(net, target, engines):
    torch.manual_seed(3)
    make, shape, time_axis = NETS[net]
    model = make()
    for parameter in model.parameters():
        if net != "single":
            parameter.data = torch.randint(-8, 12, parameter.shape) / 8
    x = (torch.rand(shape) < (0.9 if net == "single" else 0.4)).float()
    with torch.no_grad():
        wanted = next(leaves(model(x)))
    assert 0 < wanted.mean() < 1
    build = spikec.compile(model, x, target=target, batch_axis=1 - time_axis)
    data = x.numpy() if time_axis else x.numpy().swapaxes(0, 1)
    for engine in engines:
        found = next(iter(build.run(data, backend=engine).outputs.values()))
        np.testing.assert_array_equal(found if time_axis else found.swapaxes(0, 1), wanted.numpy())
