"""TorchScript: the loop over steps with hand-written neurons, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from network import Net, Skip

TITLE = "TorchScript"
BATCHES = True


def prepare(net: Net) -> Callable[[Any], np.ndarray]:
    """A function from samples to output counts."""
    if net.sparse is not None:
        raise Skip("a dense matrix of 50,000 x 50,000 does not fit")
    torch.set_num_threads(1)
    shapes = net.shapes()
    lines = ["def whole(x: Tensor, w: List[Tensor]) -> Tensor:"]
    for k, shape in enumerate(shapes[1:]):
        size = ", ".join(["x.size(0)", *map(str, shape)])
        lines += [f"    v{k} = torch.zeros([{size}])", f"    i{k} = torch.zeros([{size}])", f"    s{k} = torch.zeros([{size}])"]
    outputs = int(np.prod(shapes[-1]))
    lines += [f"    counts = torch.zeros([x.size(0), {outputs}])", "    for t in range(x.size(1)):", "        s = x[:, t]"]
    weights: list[torch.Tensor] = []

    def given(array: np.ndarray) -> str:
        weights.append(torch.tensor(array))
        return f"w[{len(weights) - 1}]"

    for k, layer in enumerate(net.layers):
        if layer.pool > 1:
            lines.append(f"        s = F.avg_pool2d(s, {layer.pool}, divisor_override=1)")
        if layer.conv:
            lines.append(f"        c = F.conv2d(s, {given(layer.weight)}, stride={layer.stride}, padding={layer.padding})")
        else:
            lines.append(f"        c = F.linear(s.flatten(1), {given(layer.weight)})")
        if layer.recurrent is not None:
            lines.append(f"        c = c + F.linear(s{k}, {given(layer.recurrent)})")
        if layer.bias is not None:
            lines.append(f"        c = c + {given(layer.bias)}")
        if layer.alpha is not None:
            lines += [f"        i{k} = {layer.alpha} * i{k} + c", f"        c = i{k}"]
        lines += [
            f"        v{k} = {layer.beta} * v{k} + c",
            f"        m = v{k} >= {given(np.asarray(layer.theta, np.float32).reshape(-1)[:1])}",
            f"        s{k} = m.float()",
            f"        v{k} = v{k}.masked_fill(m, 0.0)",
            f"        s = s{k}",
        ]
    lines += ["        counts = counts + s.flatten(1)", "    return counts"]
    text = "\n".join([*lines, ""]).replace("F.linear", "torch.nn.functional.linear").replace("F.conv2d", "torch.conv2d")
    unit = torch.jit.CompilationUnit(text.replace("F.avg_pool2d", "torch.nn.functional.avg_pool2d"))

    @torch.no_grad()
    def run(x: np.ndarray) -> np.ndarray:
        return unit.whole(torch.from_numpy(x).float(), weights).numpy().astype(np.int64)

    return run
