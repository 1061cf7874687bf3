"""TorchScript: layer by layer, a product for all steps and then a loop over hand-written neurons, compiled."""

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
    lines = ["def whole(x: Tensor, w: List[Tensor]) -> Tensor:", "    a = x.transpose(0, 1)", "    steps = a.size(0)"]
    lines += ["    batch = a.size(1)"]
    weights: list[torch.Tensor] = []

    def given(array: np.ndarray) -> str:
        weights.append(torch.tensor(array))
        return f"w[{len(weights) - 1}]"

    for layer, shape, inside in zip(net.layers, shapes[1:], shapes, strict=False):
        lines.append(f"    a = a.reshape([steps * batch, {', '.join(map(str, inside))}])")
        bias = "None" if layer.bias is None else given(layer.bias)
        if layer.pool > 1:
            lines.append(f"    a = F.avg_pool2d(a, {layer.pool}, divisor_override=1)")
        if layer.conv:
            lines.append(f"    a = F.conv2d(a, {given(layer.weight)}, {bias}, stride={layer.stride}, padding={layer.padding})")
        else:
            lines.append(f"    a = F.linear(a.flatten(1), {given(layer.weight)}, {bias})")
        lines += [
            f"    a = a.reshape([steps, batch, {', '.join(map(str, shape))}])",
            "    v = torch.zeros_like(a[0])",
            "    i = torch.zeros_like(v)",
            "    s = torch.zeros_like(v)",
            "    r = torch.empty_like(a)",
            "    for t in range(steps):",
            "        c = a[t]",
        ]
        if layer.recurrent is not None:
            lines.append(f"        c = torch.addmm(c, s, {given(np.ascontiguousarray(layer.recurrent.T))})")
        if layer.alpha is not None:
            lines += [f"        i = {layer.alpha} * i + c", "        c = i"]
        lines += [
            f"        v = {layer.beta} * v + c",
            f"        m = v >= {given(np.asarray(layer.theta, np.float32).reshape(-1)[:1])}",
            "        v = v.masked_fill(m, 0.0)",
            "        s = m.float()",
            "        r[t] = s",
            "    a = r",
        ]
    lines += ["    return a.sum(0).flatten(1)"]
    text = "\n".join([*lines, ""]).replace("F.linear", "torch.nn.functional.linear").replace("F.conv2d", "torch.conv2d")
    unit = torch.jit.CompilationUnit(text.replace("F.avg_pool2d", "torch.nn.functional.avg_pool2d"))

    @torch.no_grad()
    def run(x: np.ndarray) -> np.ndarray:
        return unit.whole(torch.from_numpy(x).float(), weights).numpy().astype(np.int64)

    return run
