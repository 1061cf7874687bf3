"""An ANN in ONNX made to spike: accuracy over the steps, early answers, and the C that comes out.

    python examples/ann/demo.py [FOLDER]

The ANN is an ordinary one of ReLUs, trained in PyTorch for seconds on two moons and written by torch.onnx.export; any .onnx file
of operator set 13 and newer goes the same way. Needs torch, onnx and gcc.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import spikec

STEPS = 100


def moons(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two half circles that interlock, with noise: (samples, 2) and which of them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, samples)
    angle = np.pi * rng.random(samples)
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x[y == 1] = (1.0, 0.5) - x[y == 1]
    return (x + rng.normal(0, 0.1, x.shape)).astype(np.float32), y


def write(path: Path) -> None:
    """Train the ANN and write it."""
    net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    x, y = (torch.from_numpy(each) for each in moons(1000, seed=1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(300):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.onnx.export(net, (x[:1],), str(path), dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}})


def main(place: str = "build/ann") -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small that more would only wait for each other
    path = Path(place).with_suffix(".onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    frames, labels = moons(300, seed=2)

    build = spikec.compile(str(path), target="host", calibrate=frames, labels=labels, steps=STEPS, cutoff=0.005)
    build.save(place)
    for entry in build.ledger:
        if "accuracy" in entry.what or entry.pass_name == "cutoff":
            print(entry.text())

    x = np.repeat(frames[:, None], STEPS, axis=1)  # the same frame at every step
    print(build.verify(x[:20], backends=["numpy", "c"]).text())
    right = build.run(x, "c").outputs["y"][:, -1].argmax(axis=1) == labels
    print(f"right after {STEPS} steps: {right.mean():.1%}")
    print(f"written to {place}")


if __name__ == "__main__":
    main(*sys.argv[1:])
