"""JAX: one step as a function, `lax.scan` over time, compiled for the CPU; dense products over the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from network import Net

TITLE = "JAX scan+jit"
BATCHES = True


def prepare(net: Net) -> Callable[[Any], np.ndarray]:
    """A function from samples (batch, T, *shape) to output counts (batch, outputs)."""
    if net.sparse is not None:
        return _sparse(net)
    shapes = net.shapes()

    def step(carry: Any, frame: Any) -> Any:
        states, counts = carry
        x, after = frame.astype(jnp.float32), []
        for layer, (i, v, s), shape in zip(net.layers, states, shapes[1:], strict=True):
            if layer.pool > 1:
                tiles = (1, 1, layer.pool, layer.pool)
                x = lax.reduce_window(x, 0.0, lax.add, tiles, tiles, "VALID")
            if layer.conv:
                pad = [(layer.padding, layer.padding)] * 2
                current = lax.conv_general_dilated(x, jnp.asarray(layer.weight), (layer.stride, layer.stride), pad)
            else:
                current = x.reshape(len(x), -1) @ jnp.asarray(layer.weight.T)
            if layer.recurrent is not None:
                current = current + s @ jnp.asarray(layer.recurrent.T)
            if layer.bias is not None:
                current = current + jnp.asarray(layer.bias)
            if layer.alpha is not None:
                current = i = jnp.float32(layer.alpha) * i + current
            v = jnp.float32(layer.beta) * v + current
            theta = jnp.asarray(np.broadcast_to(layer.theta, shape))
            fired = v >= theta
            v = jnp.where(fired, 0.0, v)
            x = s = fired.astype(jnp.float32)
            after.append((i, v, s))
        return (after, counts + x.reshape(len(x), -1)), None

    def whole(x: Any) -> Any:
        batch = x.shape[0]
        states = [tuple(jnp.zeros((batch, *shape), jnp.float32) for _ in range(3)) for shape in shapes[1:]]
        counts = jnp.zeros((batch, int(np.prod(shapes[-1]))), jnp.float32)
        (_, counts), _ = lax.scan(step, (states, counts), jnp.moveaxis(x, 1, 0))
        return counts

    compiled = jax.jit(whole)
    return lambda x: np.asarray(compiled(x)).astype(np.int64)


def _sparse(net: Net) -> Callable[[Any], np.ndarray]:
    """All connections of a step are gathered by target and summed: a shape that never changes, as a compiler needs it."""
    s = net.sparse
    assert s is not None
    targets = s["targets"].astype(np.int64).ravel()
    order = np.argsort(targets, kind="stable")
    source = jnp.asarray((order // s["targets"].shape[1]).astype(np.int32))
    sorted_targets = jnp.asarray(targets[order].astype(np.int32))
    weights = jnp.asarray(s["weights"].ravel()[order])
    bias, beta, theta, n = jnp.asarray(s["bias"]), jnp.float32(s["beta"]), jnp.float32(s["theta"]), len(s["v0"])

    def step(carry: Any, _: Any) -> Any:
        v, fired, counts = carry
        current = jax.ops.segment_sum(weights * fired[source], sorted_targets, n, indices_are_sorted=True)
        v = beta * v + bias + current
        now = (v >= theta).astype(jnp.float32)
        return (jnp.where(now > 0, 0.0, v), now, counts + now), None

    @jax.jit
    def whole(v: Any) -> Any:
        zero = jnp.zeros_like(v)
        return lax.scan(step, (v, zero, zero), None, length=net.steps)[0][2]

    return lambda _: np.asarray(whole(jnp.asarray(s["v0"]))).astype(np.int64)
