"""A convolutional network of PyTorch and snnTorch, to a folder of C for a Raspberry Pi 4.

    python examples/camera/demo.py [FOLDER]

The task is made up so that nothing has to be downloaded: a camera of 8x8 pixels sees a bar that moves up, down, left or right, as
events of two polarities. The network is trained for some seconds, compiled to 8 bits, compared with the C that comes out, and
streamed event by event as on the board. Needs torch, snntorch and gcc.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import snntorch as snn
import torch
from torch import nn

import spikec

STEPS, SIDE, CLASSES = 8, 8, 4


class Net(nn.Module):
    """2x8x8 events, two convolutions, four directions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(2, 8, 3, stride=2, padding=1), snn.Leaky(beta=0.8, reset_mechanism="zero")
        self.conv2, self.lif2 = nn.Conv2d(8, 8, 3, stride=2, padding=1), snn.Leaky(beta=0.8, reset_mechanism="zero")
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, std=0.5)  # enough for spikes to come through before it is trained
        self.fc, self.lif3 = nn.Linear(8 * 2 * 2, CLASSES), snn.Leaky(beta=0.9, reset_mechanism="zero")

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, T, 2, 8, 8)
        m1, m2, m3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spikes = []
        for t in range(x.shape[1]):
            s1, m1 = self.lif1(self.conv1(x[:, t]), m1)
            s2, m2 = self.lif2(self.conv2(s1), m2)
            s3, m3 = self.lif3(self.fc(s2.flatten(1)), m3)
            spikes.append(s3)
        return torch.stack(spikes, dim=1)


def bars(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Events (samples, T, 2, 8, 8) of moving bars, with noise, and which way they went."""
    rng = np.random.default_rng(seed)
    ways = rng.integers(0, CLASSES, samples)
    x = np.zeros((samples, STEPS, 2, SIDE, SIDE), np.float32)
    for sample, way in enumerate(ways):
        start = rng.integers(0, SIDE)
        for t in range(STEPS):
            front = (start + (t if way % 2 else -t)) % SIDE
            frame = x[sample, t] if way < 2 else x[sample, t].transpose(0, 2, 1)
            frame[0, front], frame[1, (front - (1 if way % 2 else -1)) % SIDE] = 1, 1  # on at the front, off behind it
    return np.abs(x - (rng.random(x.shape) < 0.02)).astype(np.float32), ways


def train(net: Net, epochs: int = 5) -> None:
    x, y = (torch.from_numpy(each) for each in bars(384, seed=1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            loss = nn.functional.cross_entropy(net(x[batch]).sum(dim=1), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main(place: str = "build/camera") -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small that more would only wait for each other
    net = Net()
    train(net)
    x, y = bars(200, seed=2)
    with torch.no_grad():
        trained = (net(torch.from_numpy(x)).sum(dim=1).argmax(dim=1).numpy() == y).mean()

    build = spikec.compile(net, x[:2], target="rpi4", bits=8, calibrate=x[:64], name="camera", time_axis=1, batch_axis=0)
    build.save(place)
    result = build.run(x, "c")
    (name,) = result.outputs
    compiled = (result.outputs[name].sum(axis=1).argmax(axis=1) == y).mean()
    print(f"right answers: {trained:.1%} in float, {compiled:.1%} in 8 bits")
    print(build.verify(x[:20], backends=["numpy", "c"]).text())

    with build.stream("c") as stream:  # as on the board: what the camera saw in this step, and the answer so far
        votes = np.zeros(CLASSES)
        for frame in x[0]:
            votes += stream.step(frame)[name]
    print(f"streamed: {['up', 'down', 'left', 'right'][int(votes.argmax())]}")
    print(f"written to {place}: copy {Path(place) / 'c'} to the board and say `make check`, or here `make deploy HOST=pi`")


if __name__ == "__main__":
    main(*sys.argv[1:])
