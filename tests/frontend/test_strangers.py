"""Models as different people write them: each is traced, and its graph gives exactly what the model gives.

Weights, decays, thresholds and inputs are dyadic numbers with few bits, so that every sum is exact and no difference is allowed.
"""

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn as nn
import torch.nn.functional as F
from snntorch import surrogate, utils

import spikec
from spikec.frontend.onnx.write import model_of
from spikec.frontend.torch_trace import trace
from spikec.ir.interpret import interpret
from spikec.ir.text import parse_graph, print_graph
from support.onnx_models import run

T, B = 9, 3


class TutorialLoop(nn.Module):
    """snnTorch's tutorial 5."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(12, 8)
        self.lif1 = snn.Leaky(beta=0.75, reset_mechanism="zero", reset_delay=False)
        self.fc2 = nn.Linear(8, 4)
        self.lif2 = snn.Leaky(beta=0.5)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for step in range(x.size(0)):
            cur1 = self.fc1(x[step])
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class BatchFirstWhile(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(12, 6, bias=False)
        self.neuron = snn.Leaky(beta=torch.tensor([0.5, 0.25, 0.75, 0.5, 0.125, 0.5]), threshold=0.5)

    def forward(self, data):
        t, mem, out = 0, torch.zeros(data.shape[0], 6), []
        while t < data.shape[1]:
            spk, mem = self.neuron(self.inp(data[:, t, :]), mem)
            out.append(spk)
            t += 1
        return torch.stack(out, 1)


class Unbind(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 7), nn.Linear(7, 5)])
        self.neurons = nn.ModuleList([snn.Leaky(beta=0.5), snn.Leaky(beta=0.75, reset_delay=False)])

    def forward(self, x):
        mems = [n.reset_mem() for n in self.neurons]
        outs = []
        for xt in x.unbind(0):
            for i, (fc, lif) in enumerate(zip(self.layers, self.neurons, strict=True)):
                xt, mems[i] = lif(fc(xt), mems[i])
            outs.append(xt)
        return torch.stack(outs)


class IterateDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(12, 6)
        self.b = nn.Linear(6, 6)
        self.lif_a = snn.Leaky(beta=0.5)
        self.lif_b = snn.Leaky(beta=0.5, reset_mechanism="none")

    def forward(self, x):
        state = {"a": None, "b": None}
        rec = {"spikes": [], "skip": []}
        for frame in x:
            sa, state["a"] = self.lif_a(self.a(frame), state["a"])
            sb, state["b"] = self.lif_b(self.b(sa) + sa, state["b"])
            rec["spikes"].append(sb)
            rec["skip"].append(sa + sb)
        return {key: torch.stack(value) for key, value in rec.items()}


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(12, 8),
            snn.Leaky(beta=0.5, init_hidden=True),
            nn.Dropout(0.5),
            nn.Linear(8, 4),
            snn.Leaky(beta=0.75, init_hidden=True, output=True),
        )

    def forward(self, x):
        utils.reset(self.net)
        spk_rec, mem_rec = [], []
        for step in range(x.shape[0]):
            spk, mem = self.net(x[step])
            spk_rec.append(spk)
            mem_rec.append(mem)
        return torch.stack(spk_rec), torch.stack(mem_rec)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 6)
        self.rec = nn.Linear(6, 6)
        self.lif = snn.Leaky(beta=0.5, reset_mechanism="zero")
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        spk = torch.zeros(x.size(1), 6)
        mem = torch.zeros(x.size(1), 6)
        logits = []
        for t in range(x.size(0)):
            cur = self.rec(spk) + self.fc(x[t])
            spk, mem = self.lif(cur, mem)
            logits.append(self.out(spk))
        return torch.stack(logits)


class RecurrentAfter(Recurrent):
    """The same with the fed-back current computed at the end of the round, and zeros to begin with."""

    def forward(self, x):
        feedback = torch.zeros(x.size(1), 6)
        mem = self.lif.init_leaky()
        out = []
        for xt in x:
            spk, mem = self.lif(self.fc(xt) + feedback, mem)
            feedback = self.rec(spk)
            out.append(spk)
        return torch.stack(out)


class Hoisted(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(12, 6)
        self.lif1 = snn.Leaky(beta=0.5)
        self.fc2 = nn.Linear(6, 4)
        self.lif2 = snn.Leaky(beta=0.75)

    def run(self, lif, cur):
        mem, out = lif.init_leaky(), []
        for t in range(cur.shape[0]):
            spk, mem = lif(cur[t], mem)
            out.append(spk)
        return torch.stack(out)

    def forward(self, x):
        s = self.run(self.lif1, self.fc1(x))
        return self.run(self.lif2, self.fc2(s))


class HoistedFlat(Hoisted):
    def forward(self, x):
        steps, batch, _ = x.shape
        cur = self.fc1(x.reshape(steps * batch, -1)).view(steps, batch, -1)
        s = self.run(self.lif1, cur)
        return self.run(self.lif2, self.fc2(s.flatten(0, 1)).unflatten(0, (steps, batch)))


class HoistedBatchFirst(Hoisted):
    def forward(self, x):
        cur = self.fc1(x).permute(1, 0, 2)
        s = self.run(self.lif1, cur).transpose(0, 1)
        return self.run(self.lif2, self.fc2(s).transpose(0, 1))


class HandWritten(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(12, 6))
        self.w2 = nn.Parameter(torch.randn(6, 4))
        self.spike = surrogate.fast_sigmoid(slope=25)

    def forward(self, x):
        mem1 = torch.zeros(x.shape[1], 6)
        mem2 = torch.zeros(x.shape[1], 4)
        out, volts = [], []
        for t in range(x.shape[0]):
            mem1 = 0.75 * mem1 + x[t] @ self.w1
            spk1 = self.spike(mem1 - 1.0)
            mem1 = mem1 * (1 - spk1)
            mem2 = 0.5 * mem2 + spk1 @ self.w2
            spk2 = (mem2 > 0.5).float()
            mem2 = mem2 - spk2 * 0.5
            out.append(spk2)
            volts.append(mem2)
        return torch.stack(out), torch.stack(volts)


class Cuba(nn.Module):
    """Two states, numbers as first states, the reset read from the spike of the step before."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 5)
        self.alpha = nn.Parameter(torch.tensor([0.5, 0.25, 0.5, 0.75, 0.5]))

    def forward(self, x):
        syn = mem = spk = 0
        out = []
        for xt in x:
            syn = self.alpha * syn + self.fc(xt)
            mem = 0.5 * mem + syn - spk * 1.5
            spk = (mem >= 1.5).float()
            out.append(spk)
        return torch.stack(out)


class LIFCell(nn.Module):
    def __init__(self, beta):
        super().__init__()
        self.register_buffer("beta", torch.tensor(beta))
        self.mem = None

    def reset(self):
        self.mem = None

    def forward(self, current):
        if self.mem is None:
            self.mem = torch.zeros_like(current)
        self.mem = self.beta * self.mem + current
        fired = self.mem > 1
        self.mem = torch.where(fired, torch.zeros_like(self.mem), self.mem)
        return fired.to(current.dtype)


class OwnCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(12, 8), LIFCell(0.5), nn.Linear(8, 8), LIFCell(0.75))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for module in self.modules():
            if isinstance(module, LIFCell):
                module.reset()
        total = 0
        for t in range(x.shape[0]):
            total = total + self.head(self.features(x[t]))
        return total


class ConstantFrame(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(12, 6)
        self.lif1 = snn.Leaky(beta=0.75)
        self.fc2 = nn.Linear(6, 3)
        self.lif2 = snn.Leaky(beta=0.5)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(T):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)


class ConstantFrameHoisted(ConstantFrame):
    def forward(self, x):
        cur = self.fc1(x)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(T):
            spk1, mem1 = self.lif1(cur, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec).sum(0)


class ConstantFrameByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 6)
        self.rec = nn.Linear(6, 6, bias=False)

    def forward(self, x):
        cur = self.fc(x)
        mem, spk, rec = torch.zeros(len(x), 6), torch.zeros(len(x), 6), []
        for _ in range(T):
            mem = 0.5 * mem + cur + self.rec(spk)
            spk = (mem > 1).float()
            mem = mem - spk
            rec.append(spk)
        return torch.stack(rec)


class RepeatedFrame(ConstantFrame):
    def forward(self, x):
        x = x.unsqueeze(0).expand(T, -1, -1)
        mem1, rec = self.lif1.init_leaky(), []
        for t in range(T):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            rec.append(spk1)
        return torch.stack(rec)


class SharedTwice(nn.Module):
    """One linear layer used twice in a step, and one neuron module with two states."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 6)
        self.shared = nn.Linear(6, 6)
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, x):
        m0 = m1 = m2 = torch.zeros(x.shape[1], 6)
        out = []
        for t in range(x.shape[0]):
            s, m0 = self.lif(self.first(x[t]), m0)
            s, m1 = self.lif(self.shared(s), m1)
            s, m2 = self.lif(self.shared(s), m2)
            out.append(s)
        return torch.stack(out)


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(5, 4), nn.Linear(7, 4)
        self.lif1, self.lif2 = snn.Leaky(beta=0.5), snn.Leaky(beta=0.75)
        self.lif3 = snn.Leaky(beta=0.5)

    def forward(self, x):
        ml = mr = mo = None
        out = torch.zeros(x.shape[0], x.shape[1], 8)
        for t in range(x.shape[0]):
            a, ml = self.lif1(self.left(x[t, :, :5]), ml)
            b, mr = self.lif2(self.right(x[t][:, 5:]), mr)
            c, mo = self.lif3(torch.cat([a, b], dim=-1), mo)
            out[t] = c
        return out


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.lif1 = snn.Leaky(beta=0.5, threshold=0.5)
        self.conv2 = nn.Conv2d(4, 3, 3, stride=2)
        self.lif2 = snn.Leaky(beta=0.75, threshold=0.25)
        self.fc = nn.Linear(3, 5)
        self.lif3 = snn.Leaky(beta=0.5)
        self.bn.running_var.fill_(1 - 1e-5)

    def forward(self, x):
        m1, m2, m3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        rec = []
        for t in range(x.size(0)):
            s1, m1 = self.lif1(F.avg_pool2d(self.conv1(x[t]), 2), m1)
            s2, m2 = self.lif2(self.conv2(s1), m2)
            s3, m3 = self.lif3(self.fc(s2.view(x.size(1), -1)), m3)
            rec.append(s3)
        return torch.stack(rec), s3


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 6), nn.Linear(3, 6)
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, events, context):
        mem, out = None, []
        for t in range(events.shape[1]):
            spk, mem = self.lif(self.a(events[:, t]) + self.b(context[:, t]), mem)
            out.append(spk)
        return torch.stack(out, dim=1), mem


class Adaptive(nn.Module):
    """A threshold that rises with every spike."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 6)

    def forward(self, x):
        v = torch.zeros(x.shape[1], 6)
        a = torch.zeros(x.shape[1], 6)
        out = []
        for xt in x:
            v = v * 0.5 + self.fc(xt)
            z = torch.heaviside(v - (0.5 + a), torch.tensor(0.0))
            v = v.masked_fill(z.bool(), 0.0)
            a = 0.75 * a + 0.25 * z
            out.append(z)
        return torch.stack(out)


class Synaptic(nn.Module):
    """A snnTorch neuron that is in no table: its inside is traced."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 6)
        self.lif = snn.Synaptic(alpha=0.5, beta=0.75)

    def forward(self, x):
        syn, mem = self.lif.init_synaptic()
        out = []
        for t in range(x.shape[0]):
            spk, syn, mem = self.lif(self.fc(x[t]), syn, mem)
            out.append(spk)
        return torch.stack(out)


class EditedState(nn.Module):
    """The membrane of a Leaky is damped by hand between its calls."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 6)
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, x):
        mem, out = torch.zeros(x.shape[1], 6), []
        for t in range(x.shape[0]):
            spk, mem = self.lif(self.fc(x[t]), mem)
            mem = mem.clamp(min=-0.5)
            out.append(spk)
        return torch.stack(out)


class Readouts(nn.Module):
    """Spike count, mean membrane, last spike, largest membrane."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 4)
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, x):
        mem = self.lif.init_leaky()
        spikes, mems = [], []
        for t in range(x.shape[0]):
            spk, mem = self.lif(self.fc(x[t]), mem)
            spikes.append(spk)
            mems.append(mem)
        return torch.stack(spikes).sum(0), spk, torch.stack(mems).max(0)[0]


class DelayLine(nn.Module):
    """Reads spikes of three steps ago from a queue."""

    def __init__(self):
        super().__init__()
        self.fc, self.late = nn.Linear(12, 6), nn.Linear(6, 6, bias=False)
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, x):
        queue = [torch.zeros(x.shape[1], 6) for _ in range(3)]
        mem, out = None, []
        for t in range(x.shape[0]):
            spk, mem = self.lif(self.fc(x[t]) + self.late(queue.pop(0)), mem)
            queue.append(spk)
            out.append(spk)
        return out


class OneStep(nn.Module):
    """One step a call; the caller loops over time."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(12, 6), snn.Leaky(beta=0.5, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(6, 4), snn.Leaky(beta=0.75, init_hidden=True, output=True)

    def forward(self, x):
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


class SlicesOfOne(nn.Module):
    """Keeps the time axis at length one and concatenates along it."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(12, 6), snn.Leaky(beta=0.5)

    def forward(self, x):
        mem, out = None, []
        for part in x.split(1, dim=0):
            spk, mem = self.lif(self.fc(part), mem)
            out.append(spk)
        return torch.cat(out, dim=0)


class ListsBetweenLoops(SlicesOfOne):
    """Layer by layer, with a plain list of tensors between two loops."""

    def forward(self, x):
        mem, spikes = None, []
        for xt in x:
            spk, mem = self.lif(self.fc(xt), mem)
            spikes.append(spk)
        v, out = torch.zeros_like(spikes[0]), []
        for spk in spikes:
            v = 0.5 * v + spk
            out.append((v > 0.75).float())
        return torch.stack(out)


class Preallocated(SlicesOfOne):
    """All states in tensors with a row for every step, and one for the beginning."""

    def forward(self, x):
        mem = torch.zeros(len(x) + 1, x.shape[1], 6)
        spk = torch.zeros(len(x) + 1, x.shape[1], 6)
        for t in range(len(x)):
            mem[t + 1] = 0.5 * mem[t] + self.fc(x[t]) - spk[t]
            spk[t + 1] = mem[t + 1] > 1
        return spk[1:]


class InPlace(SlicesOfOne):
    def forward(self, x):
        mem, out = torch.zeros(x.shape[1], 6), torch.empty(*x.shape[:2], 6)
        for t in range(len(x)):
            mem *= 0.5
            mem += self.fc(x[t])
            fired = mem > 1
            mem[fired] = 0
            out[t] = fired.float()
        return out


class SharedThreshold(SlicesOfOne):
    """One threshold for the whole layer, which follows how many neurons fire."""

    def forward(self, x):
        mem, theta, out = torch.zeros(x.shape[1], 6), torch.ones(x.shape[1], 1), []
        for xt in x:
            mem = 0.5 * mem + self.fc(xt)
            spk = (mem > theta).float()
            mem = mem - spk * theta
            theta = 0.5 * theta + 0.25 * spk.sum(dim=-1, keepdim=True)
            out.append(spk)
        return torch.stack(out)


class FirstStepByItself(SlicesOfOne):
    """No state before the first step: it is what the first input gives."""

    def forward(self, x):
        v, out = None, []
        for xt in x:
            current = self.fc(xt)
            v = current if v is None else 0.5 * v + current
            s = (v > 1).float()
            v = v * (1 - s)
            out.append(s)
        return torch.stack(out)


class LateralInhibition(SlicesOfOne):
    """A layer's spikes change its membranes within the step, through weights: two programs around a dense layer."""

    def __init__(self):
        super().__init__()
        self.lateral = nn.Linear(6, 6)

    def forward(self, x):
        v, out = torch.zeros(x.shape[1], 6), []
        for xt in x:
            v = 0.5 * v + self.fc(xt)
            s = (v > 1).float()
            v = v - s
            v = v - self.lateral(s)
            out.append(s)
        return torch.stack(out)


class RecurrentLeaky(nn.Module):
    """snnTorch's own recurrent neuron, traced inside."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(12, 6), snn.RLeaky(beta=0.5, linear_features=6)

    def forward(self, x):
        spk, mem = self.lif.init_rleaky()
        out = []
        for t in range(x.shape[0]):
            spk, mem = self.lif(self.fc(x[t]), spk, mem)
            out.append(spk)
        return torch.stack(out)


class HeadAfterTheLoop(SlicesOfOne):
    """Only the last membrane is read out, and the spike count by another layer."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        mem, count = None, 0
        for xt in x:
            spk, mem = self.lif(self.fc(xt), mem)
            count = count + spk
        return self.head(mem), self.head(count)


class PooledMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lif = nn.Conv2d(2, 3, 3), snn.Leaky(beta=0.5)

    def forward(self, x):
        steps, batch = x.shape[:2]
        current = F.max_pool2d(self.conv(x.flatten(0, 1)), 2).unflatten(0, (steps, batch))
        mem, out = None, []
        for t in range(steps):
            spk, mem = self.lif(current[t], mem)
            out.append(spk.mean(dim=(2, 3)))
        return torch.stack(out)


class BeginsHigh(SlicesOfOne):
    """In the first step nothing but constants are in the adaptation, which begins at a half."""

    def forward(self, x):
        v, b, s = torch.zeros(x.shape[1], 6), torch.full((x.shape[1], 6), 0.5), torch.zeros(x.shape[1], 6)
        rho, out = torch.tensor(0.5), []
        for xt in x:
            b = rho * b + (1 - rho) * s
            theta = 0.5 + b
            v = 0.5 * v + self.fc(xt) - theta * s
            s = (v > theta).float()
            out.append(s)
        return torch.stack(out)


class BeginsAsNumbers(SlicesOfOne):
    """States that are Python numbers until the first spike is added to them."""

    def forward(self, x):
        v, b, s, out = 0.0, 0.5, 0.0, []
        for xt in x:
            b = 0.5 * b + 0.5 * s
            v = 0.5 * v + self.fc(xt) - b * s
            s = (v > b).float()
            out.append(s)
        return torch.stack(out)


class BeginsHighInPlace(SlicesOfOne):
    """The same by in-place operations, with the state of two steps ago in it."""

    def forward(self, x):
        v, b, older, s = torch.zeros(x.shape[1], 6), torch.full((6,), 0.5), torch.ones(6), torch.zeros(x.shape[1], 6)
        out = []
        for xt in x:
            b, older = b * torch.tensor(0.5) + older * torch.tensor(0.25) + s, b
            v = 0.5 * v + self.fc(xt)
            s = (v > b).float()
            v -= s * b
            out.append(s)
        return torch.stack(out)


class SpikeCount(TutorialLoop):
    """snnTorch's tutorial 3: the same flattened frame at every step, spikes counted."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec = []
        for _ in range(T):
            spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
        return torch.stack(spk2_rec, dim=0).sum(0)


class RateReadout(TutorialLoop):
    def forward(self, x):
        spikes, mems = super().forward(x)
        return {"rate": spikes.mean(0), "last": mems[-1], "peak": mems.max(dim=0).values}


class DividedByLength(TutorialLoop):
    """A rate by way of the shape: t + 1 steps have been done after the last."""

    def forward(self, x):
        spikes, mems = super().forward(x)
        return spikes.sum(0) / x.shape[0], mems.sum(0) * (1 / x.size(0))


class Tutorial7(nn.Module):
    """snnTorch's tutorial 6 and 7: a Sequential with hidden states, reset in the forward pass."""

    def __init__(self):
        super().__init__()
        grad = surrogate.atan()
        self.net = nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.MaxPool2d(2),
            snn.Leaky(beta=0.5, spike_grad=grad, init_hidden=True),
            nn.Flatten(),
            nn.Linear(16, 5),
            snn.Leaky(beta=0.5, spike_grad=grad, init_hidden=True, output=True),
        )

    def forward(self, data):
        spk_rec = []
        utils.reset(self.net)
        for step in range(data.size(0)):
            spk_out, _ = self.net(data[step])
            spk_rec.append(spk_out)
        return torch.stack(spk_rec)


class SpikeElementWise(nn.Module):
    """A residual block whose spikes are added (SEW), and one in which they are combined."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(3)])
        self.lif = nn.ModuleList([snn.Leaky(beta=0.5, init_hidden=True) for _ in range(3)])
        self.fc, self.out = nn.Linear(36, 5), snn.Leaky(beta=0.5, init_hidden=True)
        for norm in self.norm:
            norm.running_var.fill_(1 - 1e-5)

    def forward(self, x):
        utils.reset(self)
        out = []
        for frame in x:
            a = self.lif[0](self.norm[0](self.conv1(frame)))
            b = self.lif[1](self.norm[1](self.conv2(a))) + a
            c = self.lif[2](self.norm[2](self.conv3(b)))
            b = b * (1 - c)
            out.append(self.out(self.fc(torch.flatten(F.max_pool2d(b, 2), 1))))
        return torch.stack(out)


class RolledBuffer(DelayLine):
    """The last three spikes in a tensor that is rolled on."""

    def forward(self, x):
        buffer, mem, out = torch.zeros(3, x.shape[1], 6), None, []
        for t in range(x.shape[0]):
            spk, mem = self.lif(self.fc(x[t]) + self.late(buffer[-1]), mem)
            buffer = torch.roll(buffer, 1, dims=0)
            buffer[0] = spk
            out.append(spk)
        return torch.stack(out)


class ConcatenatedBuffer(DelayLine):
    """The same by concatenation, and all of it is read as well."""

    def forward(self, x):
        buffer, mem, out = torch.ones(3, x.shape[1], 6), None, []
        for t in range(x.shape[0]):
            spk, mem = self.lif(self.fc(x[t]) + self.late(buffer[0]), mem)
            buffer = torch.cat([buffer[1:], spk.unsqueeze(0)], dim=0)
            out.append(spk + 0.5 * buffer.sum(0))
        return torch.stack(out)


class PopulationCode(nn.Module):
    """Groups of neurons vote for a class; the groups lie along either axis."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(12, 8), snn.Leaky(beta=0.5)

    def forward(self, x):
        mem, near, far = None, [], []
        for xt in x:
            spk, mem = self.lif(self.fc(xt), mem)
            near.append(spk.view(-1, 4, 2).sum(-1))
            far.append(spk.view(-1, 4, 2).mean(1))
        return torch.stack(near), torch.stack(far)


class ChannelsLast(nn.Module):
    """Frames with the channels at the end, padded and flattened in the order of another framework."""

    def __init__(self):
        super().__init__()
        self.pad, self.conv, self.fc = nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(2, 3, 3, stride=2), nn.Linear(36, 5)
        self.lif1, self.lif2 = snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)

    def forward(self, x):
        m1 = m2 = None
        out = []
        for t in range(x.shape[0]):
            frame = x[t].permute(0, 2, 3, 1)
            s1, m1 = self.lif1(self.conv(self.pad(frame.permute(0, 3, 1, 2))), m1)
            s2, m2 = self.lif2(self.fc(s1.permute(0, 2, 3, 1).reshape(s1.shape[0], -1)), m2)
            out.append(s2)
        return torch.stack(out)


class UpAndDown(nn.Module):
    """An autoencoder's upsampling: entries repeated, then a convolution."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 3, 2, stride=2), nn.Upsample(scale_factor=2, mode="nearest")
        self.conv, self.lif1, self.lif2 = nn.Conv2d(3, 2, 3, padding=1), snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)

    def forward(self, x):
        m1 = m2 = None
        out = []
        for xt in x:
            s1, m1 = self.lif1(self.down(xt), m1)
            s2, m2 = self.lif2(self.conv(self.up(s1)), m2)
            out.append(s2)
        return torch.stack(out)


class RepeatedByHand(ConstantFrame):
    """SpikingJelly's habit: the frame is copied along a new first axis."""

    def forward(self, x):
        sequence = x.unsqueeze(0).repeat(T, 1, 1)
        mem, rec = None, []
        for t in range(T):
            spk, mem = self.lif1(self.fc1(sequence[t]), mem)
            rec.append(spk)
        return torch.stack(rec).mean(0)


class StackedByGroups(PopulationCode):
    """Half of the neurons inhibits, and the sums of both are stacked; rounding and a leak for negative currents."""

    def forward(self, x):
        mem, out = None, []
        for xt in x:
            spk, mem = self.lif(torch.ceil(F.leaky_relu(self.fc(xt), 0.25) * 4) / 4, mem)
            out.append(torch.stack([spk[:, :4].sum(-1), -spk[:, 4:].sum(-1)], dim=1))
        return torch.stack(out)


class Double(BatchFirstWhile):
    """Weights in float64; snnTorch's spikes stay float32."""

    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, data):
        mem, out = torch.zeros(data.shape[0], 6, dtype=torch.float64), []
        for t in range(data.shape[1]):
            _, mem = self.neuron(self.inp(data[:, t, :]), mem)
            out.append(mem)
        return torch.stack(out, 1)


SEQUENCE, FIRST, FRAME = (T, B, 12), (B, T, 12), (B, 12)


@torch.jit.script
def _scripted_step(x: torch.Tensor, state: list[torch.Tensor], beta: float = 0.5):
    v = beta * state[0] + x
    s = torch.gt(v, 1.0).to(v.dtype)
    return s, [v - s]


class Scripted(nn.Module):
    """One step as a torch.jit.script function, a rate that is only looked at, and a sum of windows as a norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 3, 3), nn.LPPool2d(1, 2)

    def forward(self, x):
        state, out = [torch.zeros(x.shape[1], 3, 4, 4)], []
        for xt in x:
            s, state = _scripted_step(self.conv(xt), state)
            out.append(self.pool(s))
        self.rate = torch.stack(out).mean()
        return torch.stack(out)


class Floor(torch.autograd.Function):
    """Whole numbers, straight through."""

    @staticmethod
    def forward(x, scale):
        return torch.floor(x * scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Quantized(nn.Module):
    """Forward passes that are no steps: they are looked into."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 6)

    def forward(self, x):
        v, out = torch.zeros(x.shape[1], 6), []
        for xt in x:
            v = 0.5 * v + Floor.apply(self.fc(xt), 2.0)
            whole = torch.div(v, 0.75, rounding_mode="trunc")
            v = v - whole * 0.75
            out.append(whole + torch.trunc(2 * v))
        return torch.stack(out)


CASES = [
    (TutorialLoop, SEQUENCE, {}),
    (BatchFirstWhile, FIRST, {}),
    (Unbind, SEQUENCE, {}),
    (IterateDict, SEQUENCE, {}),
    (Hidden, SEQUENCE, {}),
    (Recurrent, SEQUENCE, {}),
    (RecurrentAfter, SEQUENCE, {}),
    (Hoisted, SEQUENCE, {}),
    (HoistedFlat, SEQUENCE, {}),
    (HoistedBatchFirst, FIRST, {}),
    (HandWritten, SEQUENCE, {}),
    (Cuba, SEQUENCE, {}),
    (OwnCell, SEQUENCE, {}),
    (ConstantFrame, FRAME, {"time_axis": None, "steps": T}),
    (ConstantFrameHoisted, FRAME, {"time_axis": None, "steps": T}),
    (ConstantFrameByHand, FRAME, {"time_axis": None, "steps": T}),
    (RepeatedFrame, FRAME, {}),
    (SharedTwice, SEQUENCE, {}),
    (Concat, SEQUENCE, {}),
    (ConvNet, (T, B, 2, 6, 6), {}),
    (TwoInputs, ((B, T, 12), (B, T, 3)), {}),
    (Adaptive, SEQUENCE, {}),
    (Synaptic, SEQUENCE, {}),
    (EditedState, SEQUENCE, {}),
    (Readouts, SEQUENCE, {}),
    (DelayLine, SEQUENCE, {}),
    (OneStep, FRAME, {"steps": 6}),
    (Double, FIRST, {}),
    (SlicesOfOne, SEQUENCE, {}),
    (ListsBetweenLoops, SEQUENCE, {}),
    (Preallocated, SEQUENCE, {}),
    (InPlace, SEQUENCE, {}),
    (SharedThreshold, SEQUENCE, {}),
    (FirstStepByItself, SEQUENCE, {}),
    (LateralInhibition, SEQUENCE, {}),
    (RecurrentLeaky, SEQUENCE, {}),
    (HeadAfterTheLoop, SEQUENCE, {}),
    (PooledMean, (T, B, 2, 6, 6), {}),
    (SpikeCount, FRAME, {"time_axis": None, "steps": T}),
    (RateReadout, SEQUENCE, {}),
    (DividedByLength, SEQUENCE, {}),
    (Tutorial7, (T, B, 2, 6, 6), {}),
    (SpikeElementWise, (T, B, 2, 6, 6), {}),
    (RolledBuffer, SEQUENCE, {}),
    (ConcatenatedBuffer, SEQUENCE, {}),
    (PopulationCode, SEQUENCE, {}),
    (ChannelsLast, (T, B, 2, 6, 6), {}),
    (UpAndDown, (T, B, 2, 6, 6), {}),
    (RepeatedByHand, FRAME, {}),
    (StackedByGroups, SEQUENCE, {}),
    (BeginsHigh, SEQUENCE, {}),
    (BeginsAsNumbers, SEQUENCE, {}),
    (BeginsHighInPlace, SEQUENCE, {}),
    (Scripted, (T, B, 2, 6, 6), {}),
    (Quantized, SEQUENCE, {}),
]


def dyadic(model, seed=0):
    """Round the weights to multiples of 1/8 between -1 and 1; leave single numbers alone."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1 or parameter.shape[0] != 5:
            parameter.data = torch.randint(-6, 9, parameter.shape, generator=generator).to(parameter.dtype) / 8
    return model


def example_for(shape, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < 0.5).to(dtype)


def batch_time(array, time_first):
    return np.moveaxis(array, 0, 1) if time_first else array


def flatten(item):
    if isinstance(item, torch.Tensor):
        return [item.numpy()]
    if isinstance(item, dict):
        return [array for inner in item.values() for array in flatten(inner)]
    if isinstance(item, list) and len(item) > 3:
        return [torch.stack(item).numpy()]
    return [array for inner in item for array in flatten(inner)]


@pytest.mark.parametrize(("cls", "shape", "options"), CASES, ids=[case[0].__name__ for case in CASES])
def test_graph_computes_what_the_model_computes(cls, shape, options):
    torch.manual_seed(0)
    model = dyadic(cls().eval())
    dtype = torch.float64 if cls is Double else torch.float32
    many = isinstance(shape[0], tuple)
    examples = tuple(example_for(s, dtype=dtype) for s in (shape if many else (shape,)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = trace(model, examples if many else examples[0], **options)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), f"tracing changed {key}"

    data = tuple(example_for(s, seed=2, dtype=dtype) for s in (shape if many else (shape,)))
    frame = shape is FRAME
    if cls is OneStep:
        frames = example_for((T, *shape), seed=3)
        utils.reset(model)
        with torch.no_grad():
            results = [model(item) for item in frames]
        wanted = [torch.stack([r[i] for r in results]).numpy() for i in range(2)]
        inputs = {"x": batch_time(frames.numpy(), True)}
    else:
        with torch.no_grad():
            wanted = flatten(model(*data))
        inputs = {}
        for node, item in zip(graph.inputs, data, strict=True):
            array = item.numpy()
            inputs[node.name] = (
                np.repeat(array[:, None], T, axis=1) if frame else batch_time(array, many is False and shape is not FIRST)
            )
    found = interpret(graph, inputs).outputs
    assert len(found) == len(wanted)
    fired = 0
    for (name, array), expected in zip(found.items(), wanted, strict=True):
        if expected.ndim < array.ndim:
            array = array[:, -1]
        elif not (many or cls in (BatchFirstWhile, Double)):
            expected = np.moveaxis(expected, 0, 1)
        np.testing.assert_array_equal(array, expected, err_msg=name)
        assert array.dtype == expected.dtype
        fired += np.count_nonzero(array)
    assert fired, "a silent network shows nothing"
    text, arrays = print_graph(graph)
    assert parse_graph(text, arrays) == graph
    exported = run(model_of(graph), inputs)
    assert exported.keys() == interpret(graph, inputs).outputs.keys()
    for name, array in interpret(graph, inputs).outputs.items():
        np.testing.assert_array_equal(exported[name], array, err_msg=f"{name} in onnxruntime")


def test_readouts_are_named_after_their_nodes():
    torch.manual_seed(0)
    assert [name for name, _ in trace(TutorialLoop(), example_for(SEQUENCE)).outputs] == ["lif2", "lif2_mem"]
    assert [name for name, _ in trace(IterateDict(), example_for(SEQUENCE)).outputs] == ["spikes", "skip"]
    assert [name for name, _ in trace(Readouts(), example_for(SEQUENCE)).outputs] == ["lif_sum", "lif", "lif_v_max"]


#: Styles that have no integers: a membrane that is a threshold or another population's input, means that
#: neurons divide, factors between the two.
NOT_IN_INTEGERS = {
    "SharedThreshold", "LateralInhibition", "DividedByLength", "ConcatenatedBuffer", "StackedByGroups",
    "BeginsHighInPlace",
}  # fmt: skip


@pytest.mark.parametrize(("cls", "shape", "options"), CASES, ids=[case[0].__name__ for case in CASES])
def test_sixteen_bits_give_what_the_model_gives(cls, shape, options):
    torch.manual_seed(0)
    many = isinstance(shape[0], tuple)
    examples = tuple(example_for(s, dtype=torch.float64 if cls is Double else torch.float32) for s in (shape if many else (shape,)))
    graph = trace(dyadic(cls().eval()), examples if many else examples[0], **options)
    rng = np.random.default_rng(0)
    data = {node.name: (rng.random((3, T, *node.type.shape)) < 0.5).astype(np.float32) for node in graph.inputs}
    if cls.__name__ in NOT_IN_INTEGERS:
        with pytest.raises(spikec.CompileError, match="SPK202"):
            spikec.compile(graph, target="host", bits=16, calibrate=data)
        return
    build = spikec.compile(graph, target="host", bits=16, calibrate=data)
    wanted, found = interpret(graph, data).outputs, build.run(data, backend="numpy").outputs
    sums = {entry.node for entry in build.ledger if "divide it by their number" in entry.what}
    for name, ref in build.graph().outputs:
        steps = np.arange(1, T + 1).reshape(-1, *[1] * (wanted[name].ndim - 2)) if ref.node in sums else 1
        error = np.abs(found[name] * build.units[name] / steps - wanted[name])
        assert np.mean(error > 0.02 * max(1, np.abs(wanted[name]).max())) < 0.03, name
