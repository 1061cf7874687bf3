"""A spiking network for handwritten digits, as one writes it with snnTorch.

Three fully connected layers of leaky integrate-and-fire neurons, 64-96-64-10. Every neuron resets to zero in
the step in which it fires; the digit whose output neuron fires most often is the answer.
"""

from pathlib import Path

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("weights.pt")


class Net(nn.Module):
    """64 input spikes a step in, 10 output spikes a step out."""

    def __init__(self) -> None:
        super().__init__()
        grad = surrogate.fast_sigmoid(slope=4)
        self.fc1 = nn.Linear(64, 96)
        self.lif1 = snn.Leaky(beta=0.9, spike_grad=grad, reset_mechanism="zero", reset_delay=False)
        self.fc2 = nn.Linear(96, 64, bias=False)
        self.lif2 = snn.Leaky(beta=0.85, spike_grad=grad, reset_mechanism="zero", reset_delay=False)
        self.fc3 = nn.Linear(64, 10)
        self.lif3 = snn.Leaky(beta=0.95, spike_grad=grad, reset_mechanism="zero", reset_delay=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the network over spikes x (T, batch, 64), float 0 or 1, from rest.

        Returns the output layer's spikes and its membranes after the reset, (T, batch, 10) each.
        """
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        mem3 = self.lif3.init_leaky()
        spk_rec = []
        mem_rec = []
        for step in range(x.shape[0]):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk3, mem3 = self.lif3(self.fc3(spk2), mem3)
            spk_rec.append(spk3)
            mem_rec.append(mem3)
        return torch.stack(spk_rec), torch.stack(mem_rec)


def load() -> Net:
    """Return the trained network that is shipped with this example, in eval mode."""
    net = Net()
    net.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    net.eval()
    return net
