"""An ANN made to spike: its accuracy over the steps, on all of the MNIST test set.

    python benchmarks/ann_to_snn.py [--data DIR] [--digits N] [--steps T] [--option KEY=VALUE ...]

The network is sinabs' convolutional ANN (sinabs_cnn/mnist_params.pt), exported by torch to ONNX and compiled for `host`; every
digit is fed as it is at every step, and runs in C. The thresholds are balanced on the first digits, without their labels, so that
the accuracy on the others is printed as well. The data folder is ../shared/data beside the checkout, or SPIKEC_DATA.
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import spikec
from spikec.ir.types import Array

DATA = Path(os.environ.get("SPIKEC_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MARKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)
BALANCED = 500
CHUNK = 250


def network(folder: Path) -> nn.Sequential:
    """The ANN as sinabs_cnn/README.md describes it: no biases, average pools."""
    layers: list[nn.Module] = []
    for fan_in, out, kernel in ((1, 20, 5), (20, 32, 5), (32, 128, 3)):
        layers += [nn.Conv2d(fan_in, out, kernel, bias=False), nn.ReLU(), nn.AvgPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 500, bias=False), nn.ReLU(), nn.Linear(500, 10, bias=False))
    net.load_state_dict(torch.load(folder / "sinabs_cnn" / "mnist_params.pt", weights_only=True, map_location="cpu"))
    return net.eval()


def digits(folder: Path) -> tuple[Array, Array]:
    """The 10,000 test digits as (10000, 1, 28, 28) between 0 and 1, and their labels."""
    with gzip.open(folder / "data_mnist_t10k" / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 1, 28, 28)
    with gzip.open(folder / "data_mnist_t10k" / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read()[8:], np.uint8)
    return (images / np.float32(255)).astype(np.float32), labels.astype(np.int64)


def exported(net: nn.Module, example: Array, path: Path) -> Path:
    """The network as torch's own exporter writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.tensor(example),),
            path,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}},
        )
    return path


def over_the_steps(build: spikec.Build, x: Array, steps: int) -> Array:
    """The output at every step, (samples, steps, classes), run in C."""
    parts = []
    for begin in range(0, len(x), CHUNK):
        frames = np.repeat(x[begin : begin + CHUNK, None], steps, axis=1)
        parts.append(next(iter(build.run(frames, backend="c").outputs.values())))
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--digits", type=int, default=10000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="percentile=, fire=, initial=, readout=current"
    )
    options = parser.parse_args()
    more: dict[str, Any] = {}
    for pair in options.option:
        key, _, value = pair.partition("=")
        more[key] = float(value) if value.replace(".", "").isdigit() else value

    net = network(options.data)
    x, labels = digits(options.data)
    x, labels = x[: options.digits], labels[: options.digits]
    with torch.no_grad():
        scores = np.concatenate([net(torch.tensor(x[i : i + 1000])).numpy() for i in range(0, len(x), 1000)])
    ann = (scores.argmax(axis=1) == labels).mean()
    with tempfile.TemporaryDirectory() as folder:
        path = exported(net, x[:1], Path(folder) / "mnist.onnx")
        build = spikec.compile(path, target="host", calibrate=x[:BALANCED], labels=labels[:BALANCED], steps=options.steps, **more)
    for entry in build.ledger:
        print(entry.text())
    begin = time.perf_counter()
    found = over_the_steps(build, x, options.steps)
    seconds = time.perf_counter() - begin
    if more.get("readout") in ("current", "count"):
        found = found.cumsum(axis=1)
    right = found.argmax(axis=2) == labels[:, None]
    print(f"\n{len(x)} digits, {options.steps} steps, {seconds:.0f} s in C; the ANN itself {ann:.2%}\n")
    print("steps  accuracy  points lost  without the digits that set the thresholds")
    for mark in [mark for mark in MARKS if mark <= options.steps]:
        share = right[:, mark - 1].mean()
        rest = f"{right[BALANCED:, mark - 1].mean():.2%}" if len(x) > BALANCED else "-"
        print(f"{mark:5}  {share:8.2%}  {100 * (ann - share):11.2f}  {rest:>10}")


if __name__ == "__main__":
    main()
