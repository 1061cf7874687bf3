"""Train the network of model.py and write weights.pt.

    python train.py               # train on the training two thirds, then score the held-out third, once
    python train.py --validate    # four-fold cross-validation inside the training two thirds; writes nothing

Every number in the block of settings was chosen with --validate; the held-out third had no part in it.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import LEVELS, Digits, answer, code, spikes, split
from model import WEIGHTS, Net
from torch import Tensor, nn

SEED = 0
EPOCHS = 120
BATCH = 64
RATE = 8e-3  # peak of the one-cycle schedule
WEIGHT_DECAY = 0.02
CLIP = 1.0  # no weight exceeds the threshold in magnitude: both fit one 8-bit grid without a tail to cut off
SHARPNESS = 0.5  # factor from spike counts to the logits of the cross-entropy
SILENCE = 0.5  # price of the mean firing rate of the two hidden layers
TURN, ZOOM, SHIFT = 0.08, 0.04, 0.32  # largest distortion of a training picture: radians, share, pixels
FOLDS = 4


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, zoom and shift pictures (N, 64) a little, each in its own way; pixels stay integers 0..16."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit

    angle, zoom = uniform(TURN), 1 + uniform(ZOOM)
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    half_width = 4  # affine_grid measures the picture from -1 to 1
    across, down = uniform(SHIFT / half_width), uniform(SHIFT / half_width)
    matrix = torch.stack([cos, -sin, across, sin, cos, down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, [len(images), 1, 8, 8], align_corners=False)
    moved = F.grid_sample(images.float().view(-1, 1, 8, 8), grid, align_corners=False)
    return moved.round().long().clamp(0, LEVELS).view(-1, 64)


def count_spikes(net: Net) -> dict[str, list[Tensor]]:
    """Make the two hidden layers leave the spikes of every step in the returned lists."""
    record: dict[str, list[Tensor]] = {"lif1": [], "lif2": []}

    def watch(name: str) -> None:
        def hook(_module: nn.Module, _args: object, result: tuple[Tensor, Tensor]) -> None:
            record[name].append(result[0])

        net.get_submodule(name).register_forward_hook(hook)

    for name in record:
        watch(name)
    return record


def train(digits: Digits, seed: int) -> Net:
    """Return a network trained on the digits; the same seed gives the same network on the same machine."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.from_numpy(digits.images).long(), torch.from_numpy(digits.labels)
    trains = torch.from_numpy(code()).float()
    net = Net()
    hidden = count_spikes(net)
    batches = -(-len(labels) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * batches)
    start = time.perf_counter()
    for epoch in range(1, EPOCHS + 1):
        right, total_loss = 0, 0.0
        for chosen in torch.randperm(len(labels), generator=generator).split(BATCH):
            x = trains[distort(images[chosen], generator)].permute(2, 0, 1)
            for spk in hidden.values():
                spk.clear()
            counts = net(x)[0].sum(dim=0)
            loss = F.cross_entropy(SHARPNESS * counts, labels[chosen])
            loss = loss + SILENCE * sum(torch.stack(spk).mean() for spk in hidden.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for layer in (net.fc1, net.fc2, net.fc3):
                    layer.weight.clamp_(-CLIP, CLIP)
            right += int((counts.argmax(dim=1) == labels[chosen]).sum())
            total_loss += float(loss.detach()) * len(chosen)
        if epoch % 10 == 0:
            score, seconds = 100 * right / len(labels), time.perf_counter() - start
            print(
                f"epoch {epoch:3d}/{EPOCHS}  loss {total_loss / len(labels):.3f}  "
                f"distorted training digits {score:.1f} %  {seconds:.0f} s",
                flush=True,
            )
    trained = Net()
    trained.load_state_dict(net.state_dict())
    trained.eval()
    return trained


def accuracy(net: Net, digits: Digits) -> float:
    """Return the share of the digits, 0 to 1, that the network gets right."""
    x = torch.from_numpy(spikes(digits.images)).float().transpose(0, 1)
    with torch.no_grad():
        output = net(x)[0]
    return float(np.mean(answer(output.transpose(0, 1).numpy()) == digits.labels))


def activity(net: Net, digits: Digits) -> str:
    """Return a table of the mean activity of every layer: spikes, and the synaptic operations they cause.

    A synaptic operation is one spike arriving at one neuron of the next layer, whatever the weight.
    """
    hidden = count_spikes(net)
    x = torch.from_numpy(spikes(digits.images)).float().transpose(0, 1)
    with torch.no_grad():
        output = net(x)[0]
    layers = {"input": x, **{name: torch.stack(spk) for name, spk in hidden.items()}, "lif3": output}
    fan_out = {"input": net.fc1.out_features, "lif1": net.fc2.out_features, "lif2": net.fc3.out_features}
    lines = ["layer   neurons  spikes/neuron/step  spikes/digit  synaptic operations/digit"]
    total = 0.0
    for name, spk in layers.items():
        per_digit = float(spk.sum()) / spk.shape[1]
        operations = per_digit * fan_out.get(name, 0)
        total += operations
        rate = float(spk.mean())
        lines.append(f"{name:<6}{spk.shape[2]:>9}{rate:>20.3f}{per_digit:>14.1f}{operations:>27,.0f}")
    lines.append(f"{'total':<6}{total:>70,.0f}")
    return "\n".join(lines)


def validate(digits: Digits) -> None:
    """Print the accuracy on each quarter of the digits of a network trained on the other three quarters."""
    fold_of = np.random.RandomState(SEED).permutation(len(digits.labels)) % FOLDS
    scores = []
    for fold in range(FOLDS):
        held = fold_of == fold
        net = train(Digits(digits.images[~held], digits.labels[~held]), seed=SEED + fold)
        scores.append(accuracy(net, Digits(digits.images[held], digits.labels[held])))
        print(f"fold {fold + 1}/{FOLDS}: {100 * scores[-1]:.2f} %", flush=True)
    print(f"mean of {FOLDS} folds: {100 * float(np.mean(scores)):.2f} %")


def main() -> None:
    """Train, or cross-validate, as the command line says."""
    parser = argparse.ArgumentParser(description="Train the digits network.")
    parser.add_argument("--validate", action="store_true", help="cross-validate in the training two thirds")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file to write (default: weights.pt)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the layers are small: more threads only wait for each other
    training, held_out = split()
    if options.validate:
        validate(training)
        return
    net = train(training, SEED)
    torch.save(net.state_dict(), options.out)
    print(f"wrote {options.out.name}, {options.out.stat().st_size / 1000:.0f} kB")
    print(f"training digits: {100 * accuracy(net, training):.2f} % of {len(training.labels)}")
    print(f"held-out digits: {100 * accuracy(net, held_out):.2f} % of {len(held_out.labels)}")
    print(activity(net, held_out))


if __name__ == "__main__":
    main()
