"""What cannot be traced: the whole sentence, with the line of the user's code."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn as nn
import torch.nn.functional as F

from spikec.diagnostics import CompileError
from spikec.frontend.torch_trace import load_weights, trace

HERE = Path(__file__).name
X = (torch.arange(7 * 2 * 4).reshape(7, 2, 4) % 3 == 0).float()


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, x):
        mem, out = torch.zeros(x.shape[1], 4), []
        for t in range(x.shape[0]):
            cur, mem = self.step(self.fc(x[t]), mem, t)
            spk, mem = self.lif(cur, mem)
            out.append(spk)
        return torch.stack(out)

    def step(self, cur, mem, t):
        return cur, mem


class Branch(Base):
    def step(self, cur, mem, t):
        if cur.sum() > 0:  # HERE
            cur = cur * 2
        return cur, mem


class Item(Base):
    def step(self, cur, mem, t):
        return cur * cur.max().item(), mem  # HERE


class Numpy(Base):
    def step(self, cur, mem, t):
        return torch.from_numpy(np.tanh(cur.numpy())), mem  # HERE


class Foreign(Base):
    def step(self, cur, mem, t):
        return cur + torch.from_numpy(np.ones(4, np.float32)), mem  # HERE


class Noise(Base):
    def step(self, cur, mem, t):
        return cur + 0.1 * torch.randn_like(cur), mem  # HERE


class FunctionalDropout(Base):
    def step(self, cur, mem, t):
        return F.dropout(cur, 0.2), mem  # HERE


class Sigmoid(Base):
    def step(self, cur, mem, t):
        return torch.sigmoid(cur), mem  # HERE


class Softmax(Base):
    """Class probabilities out of the membranes."""

    def forward(self, x):
        mem, out = torch.zeros(x.shape[1], 4), []
        for t in range(x.shape[0]):
            _, mem = self.lif(self.fc(x[t]), mem)
            out.append(mem)
        return F.softmax(torch.stack(out), dim=-1)  # HERE


class Winner(Base):
    def forward(self, x):
        return super().forward(x).sum(0).argmax(dim=1)  # HERE


class WinnerByMax(Base):
    """The largest count is fine, where it stands is not."""

    def forward(self, x):
        counts = super().forward(x).sum(0)
        _, winner = counts.max(dim=1)  # HERE
        return winner


class IndicesUsed(Base):
    def step(self, cur, mem, t):
        _, where = cur.max(dim=1)  # HERE
        return cur + where[:, None], mem


class Lerp(Base):
    def step(self, cur, mem, t):
        return torch.lerp(cur, mem, 0.5), mem  # HERE


class Einsum(Base):
    def step(self, cur, mem, t):
        return torch.einsum("bi,oi->bo", cur, self.fc.weight), mem  # HERE


class NormPerStep(Base):
    """Batch norm through time."""

    def __init__(self):
        super().__init__()
        self.norm = nn.ModuleList([nn.BatchNorm1d(4) for _ in range(7)])

    def step(self, cur, mem, t):
        return self.norm[t](cur), mem  # HERE


class PythonState(Base):
    def forward(self, x):
        v, b, s, out = torch.zeros(x.shape[1], 4), 0.5, 0.0, []
        for xt in x:
            b = 0.5 * b + 0.5 * s
            theta = 0.5 + b
            v = 0.5 * v + self.fc(xt) - theta * s  # HERE
            s = (v > theta).float()
            out.append(s)
        return torch.stack(out)


class EndsEarly(Base):
    """The last step is without input current."""

    def step(self, cur, mem, t):
        return (self.fc(cur) if t < 6 else torch.zeros(2, 4)), mem  # HERE


class Norm(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def step(self, cur, mem, t):
        return self.norm(cur), mem  # HERE


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(2, 3, 2)

    def forward(self, x):
        return torch.stack([self.up(xt) for xt in x])  # HERE


class ThirdStep(Base):
    def step(self, cur, mem, t):
        if t == 3:
            cur = cur * 2  # HERE
        return cur, mem


class OtherNumber(Base):
    def step(self, cur, mem, t):
        return cur * (1.0 if t != 4 else 0.5), mem  # HERE


class LateStart(Base):
    def step(self, cur, mem, t):
        if t > 0:
            cur = cur + (mem + 1)  # HERE
        return cur, mem


class Backwards(Base):
    def forward(self, x):
        mem, out = torch.zeros(2, 4), []
        for t in reversed(range(x.shape[0])):
            spk, mem = self.lif(self.fc(x[t]), mem)  # HERE
            out.append(spk)
        return torch.stack(out)


class Future(Base):
    def forward(self, x):
        mem = torch.zeros(2, 4)
        for t in range(x.shape[0]):
            spk, mem = self.lif(self.fc(x[t]), mem)
        again, out = torch.zeros(2, 4), []
        for t in range(x.shape[0]):
            again = 0.5 * again + x[t] + spk  # HERE
            out.append(again)
        return torch.stack(out)


class BatchMean(Base):
    def step(self, cur, mem, t):
        return cur - cur.mean(0), mem  # HERE


class BatchPick(Base):
    def step(self, cur, mem, t):
        return cur + cur[0], mem  # HERE


class PerSample(Base):
    def step(self, cur, mem, t):
        return cur * torch.arange(len(cur))[:, None], mem  # HERE


class InPlaceView(Base):
    def step(self, cur, mem, t):
        part = cur[:, :2]
        cur.mul_(2.0)
        return cur + torch.cat([part, part], 1), mem  # HERE


class SoftSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.sigmoid(4 * x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class NotAStep(Base):
    def step(self, cur, mem, t):
        return SoftSpike.apply(cur), mem  # HERE


class NormPool(Base):
    def step(self, cur, mem, t):
        return nn.functional.lp_pool1d(cur, 2, 2), mem  # HERE


class TooMany(Base):
    def step(self, cur, mem, t):
        return self.lif(cur, mem, 1, 2, 3)  # HERE


class TooFew(Base):
    def step(self, cur, mem, t):
        return self.fc(), mem  # HERE


class WrongShape(Base):
    def step(self, cur, mem, t):
        return self.fc(torch.cat([cur, cur], 1)), mem  # HERE


class DividesAtTheEnd(Base):
    """By another number than the steps: nothing says what that is at another length."""

    def forward(self, x):
        return super().forward(x).sum(0) / (x.shape[0] + 1)


class DependsOnLength(Base):
    def forward(self, x):
        out, mem = [], torch.zeros(x.shape[1], 4)
        for t in range(x.shape[0]):
            spk, mem = self.lif(self.fc(x[t]) / x.shape[0], mem)
            out.append(spk)
        return torch.stack(out)


def here(cls):
    """The line marked HERE in a class."""
    lines, start = inspect.getsourcelines(cls)
    return start + next(i for i, line in enumerate(lines) if line.rstrip().endswith("# HERE"))


def message(model, example, **options):
    with pytest.raises(CompileError) as caught:
        trace(model, example, **options)
    return str(caught.value)


STEPS_NOTE = (
    "\n  note: a graph does the same in every step; only the initial values of the first may differ"
    "\n  fix: make every step do the same, or compute what differs outside the model"
)
ON_INPUT = " is not supported on values that depend on the input"
READOUT = (
    "\n  fix: at the end of the network: return what goes into {0}, and apply {0} to the result; inside, no neuron can compute it"
)
CASES = [
    (NormPool, "", "SPK102", "the operation lp_pool1d is not supported with norm_type=2; 1 is a sum"),
    (Branch, "", "SPK103", "a branch depends on input values\n  fix: keep it a tensor, as in torch.where(condition, a, b)"),
    (Item, "", "SPK103", "item() makes a Python number that depends on input values\n  fix: keep it a tensor, as in torch.where(condition, a, b)"),
    (Numpy, "", "SPK106", "a tensor that depends on the input leaves torch here, towards NumPy\n  fix: use torch's own operations"),
    (
        Foreign, "", "SPK106",
        "a tensor of shape (4,) comes from outside the traced operations, as from NumPy\n"
        "  fix: compute it with torch, or keep it in the model with register_buffer",
    ),
    (Noise, "", "SPK107", "randn_like draws random numbers, so that no two runs are alike\n  fix: compute it before the model is called"),
    (FunctionalDropout, "", "SPK107", "dropout drops at random, also in eval mode\n  fix: use nn.Dropout, or pass training=self.training"),
    (Sigmoid, "", "SPK102", "the operation sigmoid" + ON_INPUT + READOUT.format("sigmoid")),
    (Softmax, "", "SPK102", "the operation softmax" + ON_INPUT + READOUT.format("softmax")),
    (Winner, "", "SPK102", "the operation argmax" + ON_INPUT + READOUT.format("argmax")),
    (IndicesUsed, "", "SPK102", "max with its indices" + ON_INPUT + READOUT.format("argmax")),
    (Lerp, "", "SPK102", "the operation lerp" + ON_INPUT + "\n  fix: write it out with +, - and *"),
    (Einsum, "", "SPK102", "the operation einsum" + ON_INPUT + "\n  fix: write it with a weight matrix: x @ weight.T, or nn.Linear"),
    (
        NormPerStep, "norm.0", "SPK104",
        "norm.0 computes step 0 and norm.5 another: a module for every step is another network at every step\n"
        "  fix: use one module for all steps; batch norms that differ from step to step (BNTT) cannot be folded into one weight",
    ),
    (
        PythonState, "", "SPK104",
        "step 0 leaves out mul, which step 5 does here\n  note: a graph does the same in every step; only the initial values of the first "
        "may differ\n  fix: let states begin as tensors (torch.zeros, torch.full) and not as Python numbers, and do the same in every step",
    ),
    (EndsEarly, "fc", "SPK104", "step 6 leaves out linear, which step 5 does here" + STEPS_NOTE),
    (
        Norm, "norm", "SPK101",
        "LayerNorm is not supported\n  fix: use batch norm, whose statistics are constants after training",
    ),
    (
        Transposed, "up", "SPK101",
        "ConvTranspose1d is not supported\n"
        "  fix: repeat the entries (F.interpolate, mode nearest) and convolve: that is a gather and a convolution",
    ),
    (ThirdStep, "", "SPK104", "step 3 does mul here, which step 5 does not" + STEPS_NOTE),
    (OtherNumber, "", "SPK104", "step 4 uses another constant in mul than step 5" + STEPS_NOTE),
    (
        LateStart, "", "SPK104",
        "step 0 leaves out add, which step 5 does here\n  note: a graph does the same in every step; only the initial values of the first "
        "may differ\n  fix: let states begin as tensors (torch.zeros, torch.full) and not as Python numbers, and do the same in every step",
    ),
    (
        Backwards, "fc", "SPK104",
        "this reads a value of step 6 before any other: the steps do not follow one another\n"
        "  fix: walk through the time axis from its first entry to its last, and read nothing of a later step",
    ),
    (
        Future, "", "SPK104",
        "this reads a value of step 6 right after step 0: the steps do not follow one another\n"
        "  fix: walk through the time axis from its first entry to its last, and read nothing of a later step",
    ),
    (BatchMean, "", "SPK102", "mean mixes the samples of the batch (axis 1 of the example)"),
    (PerSample, "", "SPK102", "mul mixes the samples of the batch (axis 1 of the example)"),
    (
        InPlaceView, "", "SPK111",
        "this tensor was changed in place through another tensor that shares its memory\n"
        "  fix: write the change as a new tensor, as in mem = mem * keep",
    ),
    (
        NotAStep, "", "SPK110",
        "the forward pass of SoftSpike is not a Heaviside step of its input\n"
        "  note: it was tried on numbers from -1e6 to 1e6: the result must be 0 below zero and 1 above\n"
        "  fix: make forward return (x > 0).float(), and keep the gradient in backward",
    ),
    (
        TooMany, None, "SPK109",
        "the model fails on the example input: TypeError: Leaky.forward() takes from 2 to 3 positional arguments but 6 were given\n"
        "  fix: pass an example that the model itself accepts; `model(example)` must run",
    ),
    (
        TooFew, None, "SPK109",
        "the model fails on the example input: TypeError: Linear.forward() missing 1 required positional argument: 'input'\n"
        "  fix: pass an example that the model itself accepts; `model(example)` must run",
    ),
    (
        WrongShape, None, "SPK109",
        "the model fails on the example input: RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x8 and 4x4)\n"
        "  fix: pass an example that the model itself accepts; `model(example)` must run",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "path", "code", "text"), CASES, ids=[case[0].__name__ for case in CASES])
def test_message(cls, path, code, text):
    where = f"{HERE}:{here(cls)}" + (f" ({path})" if path else "")
    assert message(cls(), X, batch_axis=1) == f"{where}: error[{code}]: {text}"


def forward_line(cls):
    return inspect.getsourcelines(cls.forward)[1]


class OnlyNeuron(nn.Module):
    def __init__(self):
        super().__init__()
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, x):
        mem, out = None, []
        for xt in x:
            spk, mem = self.lif(xt, mem)
            out.append(spk)
        return torch.stack(out)


def test_a_batch_that_could_be_either_axis():
    place = f"{HERE}:{forward_line(OnlyNeuron)}"
    assert message(OnlyNeuron(), X) == (
        f"{place}: error[SPK105]: the example has shape (7, 2, 4), and the model treats the entries of axes 1 and 2 alike: which is the "
        "batch?\n  fix: pass batch_axis=1 or batch_axis=2, or batch_axis=None if there is no batch"
    )
    assert trace(OnlyNeuron(), X, batch_axis=1).inputs[0].type.shape == (4,)
    assert trace(OnlyNeuron(), X, batch_axis=2).inputs[0].type.shape == (2,)
    assert trace(OnlyNeuron(), X, batch_axis=None).inputs[0].type.shape == (2, 4)
    assert message(OnlyNeuron(), X[:, 0]) == (
        f"{place}: error[SPK105]: the example has shape (7, 4), and the model treats the entries of axis 1 alike: which is the "
        "batch?\n  fix: pass batch_axis=1, or batch_axis=None if there is no batch"
    )


def test_equal_sizes_are_no_ambiguity():
    """(10, 10, 64): which axis is walked through tells, not its size."""

    class Wide(Base):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 4)

    assert trace(Wide(), (torch.rand(10, 10, 64) < 0.5).float()).inputs[0].type.shape == (64,)


def test_a_batch_that_is_mixed_is_not_taken_for_features():
    assert message(BatchMean(), X) == (
        f"{HERE}:{here(BatchMean)}: error[SPK105]: mean treats the entries of axis 1 of the example differently or mixes them, so that "
        "no axis can be the batch\n  fix: pass batch_axis=None if there is no batch; else let no sample depend on another"
    )


def test_a_frame_that_could_be_a_sequence():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return torch.relu(self.fc(x))

    text = message(Layer(), X)
    assert text.endswith(
        "error[SPK105]: the example has shape (7, 2, 4), and the model treats the entries of axes 0 and 1 alike: which is the batch?\n"
        "  fix: pass batch_axis=0 or batch_axis=1, or batch_axis=None if there is no batch; if one axis is time, pass time_axis"
    )
    assert trace(Layer(), X, time_axis=0).inputs[0].type.shape == (4,)


def test_nothing_that_depends_on_the_input():
    class Nothing(nn.Module):
        def forward(self, x):
            return torch.zeros(3)

    line = forward_line(Nothing)
    assert message(Nothing(), X) == f"{HERE}:{line}: error[SPK102]: the model returns nothing that depends on its input"


def test_what_is_said_about_axes_must_fit():
    place = f"{HERE}:{forward_line(Base)}"
    assert message(Base(), X, time_axis=1) == (
        f"{place}: error[SPK105]: time_axis=1 was passed, but the model walks through axis 0 of shape (7, 2, 4)\n"
        "  fix: pass time_axis=0, or leave it out"
    )
    assert message(Base(), X, time_axis=None, steps=7) == (
        f"{place}: error[SPK105]: time_axis=None was passed, but the model walks through axis 0 of the example, shape (7, 2, 4)\n"
        "  fix: pass time_axis=0, or leave it out"
    )
    assert message(Base(), X, steps=9) == (
        f"{place}: error[SPK105]: the model does 7 steps on this example, but steps=9 was passed\n  fix: leave out steps"
    )
    assert message(Base(), X[:2]) == (
        f"{place}: error[SPK105]: the example has 2 step(s), too few to tell the first step from the others\n"
        "  fix: pass an example of at least 3 steps"
    )
    assert message(Base(), X, batch_axis=0) == (
        f"{place}: error[SPK105]: batch_axis=0 is the time axis\n  fix: pass the axis along which the samples lie"
    )
    assert message(Base(), X, time_axis="first") == "error[SPK001]: an axis is a number, None or 'auto', not 'first'"
    assert message(Base(), X, input_kind="event") == "error[SPK001]: input_kind is one of spike, graded, value, not 'event'"


class Nested(Base):
    def forward(self, x):
        out = []
        for t in range(x.shape[0]):
            row = [self.fc(x[t, b]) for b in range(x.shape[1])]
            out.append(torch.stack(row))
        return torch.stack(out)


def test_two_axes_walked_through():
    assert message(Nested(), X) == (
        f"{HERE}:{forward_line(Nested)}: error[SPK105]: the model walks through axes 0 and 1 of the example, shape (7, 2, 4)\n"
        "  fix: say which one is time: time_axis=0 or time_axis=1"
    )


class HandFrame(nn.Module):
    def forward(self, x):
        v, out = torch.zeros_like(x), []
        for _ in range(6):
            v = 0.5 * v + x
            out.append(v)
        return torch.stack(out)


def test_a_frame_needs_the_number_of_steps():
    frame = torch.ones(2, 4)
    place = f"{HERE}:{forward_line(HandFrame)}"
    assert message(HandFrame(), frame, batch_axis=0) == (
        f"{place}: error[SPK105]: no axis of the example is walked through, and the number of steps is not clear\n"
        "  fix: if the example is one frame that is fed at every step, pass steps=6 (or how many the loop does)"
    )
    assert message(HandFrame(), frame, batch_axis=0, steps=5) == (
        f"{place}: error[SPK105]: no operation is done 5 times on this example; most of those in a loop are done 6 times\n"
        "  fix: pass steps=6, if that is the number of time steps"
    )
    assert trace(HandFrame(), frame, batch_axis=0, steps=6).inputs[0].type.shape == (4,)


def test_picking_one_sample():
    assert message(BatchPick(), X, batch_axis=1).startswith(f"{HERE}:{here(BatchPick)}: error[SPK102]: ")


def test_a_computation_that_depends_on_the_length():
    text = message(DependsOnLength(), X)
    assert text.startswith(
        f"{HERE}:{forward_line(DependsOnLength)}: error[SPK108]: another input, of another length, gives another graph: "
        "the model's computation depends on its input\n  note: '"
    )


def test_a_number_that_comes_from_the_length():
    text = message(DividesAtTheEnd(), X)
    assert text.startswith(f"{HERE}:{forward_line(DividesAtTheEnd)}: error[SPK108]: another input, of another length")
    assert text.endswith("fix: where it divides by the number of steps, do that once, after the last step")


def test_the_winner_is_not_returned_silently():
    """max() gives the winner as well: a model that returns it is told so."""
    assert message(WinnerByMax(), X) == (
        f"{HERE}:{here(WinnerByMax)}: error[SPK102]: max with its indices" + ON_INPUT + READOUT.format("argmax")
    )


def test_examples_and_models_of_the_wrong_kind():
    assert message(Base(), "x") == "error[SPK007]: the example input must be a tensor or an array, not str"
    assert message(Base(), torch.full((7, 2, 4), float("nan"))) == "error[SPK007]: the example input holds NaN or infinity"
    assert message(Base(), X.half()) == "error[SPK007]: the example input has the type torch.float16\n  fix: use float32 or float64"
    assert message(lambda x: x, X) == "error[SPK003]: the model must be a torch.nn.Module, not function"


def test_a_wrong_graph_is_found(monkeypatch):
    """If the table said something wrong about a module, the comparison with the model would say so."""
    import spikec.frontend.snntorch as table

    monkeypatch.setattr(table, "_reset_of", lambda module: "none")
    line = forward_line(Base) + 4
    model = Base()
    model.fc.weight.data.fill_(1.0)
    text = message(model, torch.ones(9, 2, 4) * 8)
    assert text.startswith(f"{HERE}:{line} (lif): error[SPK108]: %lif.v gives ")
    assert text.endswith("note: spikec reads this code differently from what it does; please report it, with the model")


class TestWeights:
    def test_a_file_that_fits(self, tmp_path):
        torch.manual_seed(0)
        source, target = Base(), Base()
        torch.save(source.state_dict(), tmp_path / "w.pt")
        load_weights(target, tmp_path / "w.pt")
        assert torch.equal(source.fc.weight, target.fc.weight)

    def test_a_checkpoint_around_it(self, tmp_path):
        source, target = Base(), Base()
        torch.save({"epoch": 3, "state_dict": source.state_dict()}, tmp_path / "w.pt")
        load_weights(target, tmp_path / "w.pt")
        assert torch.equal(source.fc.weight, target.fc.weight)

    def refused(self, path, text, model=None):
        with pytest.raises(CompileError) as caught:
            load_weights(model or Base(), path)
        assert str(caught.value) == text

    def test_no_such_file(self):
        self.refused("nowhere.pt", "error[SPK002]: nowhere.pt: no such file")

    def test_another_model(self, tmp_path):
        path = tmp_path / "w.pt"
        torch.save({"fc.weight": torch.zeros(3, 4), "extra": torch.zeros(1), "fc.bias": torch.zeros(4)}, path)
        model = nn.ModuleDict({"fc": nn.Linear(4, 4)})
        self.refused(
            path,
            f"error[SPK112]: the weights in {path} do not fit the model\n  note: the model has no extra\n"
            "  note: fc.weight has shape (3, 4) in the file and (4, 4) in the model",
            model,
        )

    def test_a_pickle(self, tmp_path):
        path = tmp_path / "w.pt"
        torch.save(nn.Linear(4, 4), path)
        self.refused(
            path,
            f"error[SPK112]: {path} cannot be loaded as weights: it holds Python objects, not only tensors\n"
            "  note: loading them could run any code, so that spikec never does\n"
            "  fix: save the weights alone: torch.save(model.state_dict(), path)",
        )

    def test_something_else(self, tmp_path):
        path = tmp_path / "w.pt"
        torch.save([1, 2], path)
        self.refused(
            path, f"error[SPK112]: {path} holds no state dict\n  fix: save the weights alone: torch.save(model.state_dict(), path)"
        )

    def test_a_damaged_file(self, tmp_path):
        path = tmp_path / "w.pt"
        path.write_bytes(b"not a checkpoint")
        with pytest.raises(CompileError) as caught:
            load_weights(Base(), path)
        assert str(caught.value).startswith(f"error[SPK112]: {path} cannot be loaded as weights: ")
