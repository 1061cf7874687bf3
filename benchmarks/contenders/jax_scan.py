"""JAX: a layer's products for all steps at once, its neurons in a `lax.scan` over time, all of it compiled for the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from network import Layer, Net

TITLE = "JAX scan+jit"
BATCHES = True


def prepare(net: Net) -> Callable[[Any], np.ndarray]:
    """A function from samples (batch, T, *shape) to output counts (batch, outputs)."""
    if net.sparse is not None:
        return _sparse(net)
    shapes = net.shapes()

    def currents(layer: Layer, x: Any) -> Any:
        """What arrives at a layer (T * batch, ...) at all steps at once: no step waits for the one before."""
        if layer.pool > 1:
            tiles = (1, 1, layer.pool, layer.pool)
            x = lax.reduce_window(x, 0.0, lax.add, tiles, tiles, "VALID")
        if layer.conv:
            pad = [(layer.padding, layer.padding)] * 2
            found = lax.conv_general_dilated(x, jnp.asarray(layer.weight), (layer.stride, layer.stride), pad)
        else:
            found = x.reshape(len(x), -1) @ jnp.asarray(layer.weight.T)
        return found if layer.bias is None else found + jnp.asarray(layer.bias)

    def fires(layer: Layer, shape: tuple[int, ...], current: Any) -> Any:
        """Spikes (T, batch, ...): neurons, and their connections among themselves, step by step."""
        theta = jnp.asarray(np.broadcast_to(layer.theta, shape))

        def step(carry: Any, c: Any) -> Any:
            i, v, s = carry
            if layer.recurrent is not None:
                c = c + s @ jnp.asarray(layer.recurrent.T)
            if layer.alpha is not None:
                c = i = jnp.float32(layer.alpha) * i + c
            v = jnp.float32(layer.beta) * v + c
            fired = v >= theta
            s = fired.astype(jnp.float32)
            return (i, jnp.where(fired, 0.0, v), s), s

        zero = jnp.zeros_like(current[0])
        return lax.scan(step, (zero, zero, zero), current)[1]

    def whole(x: Any) -> Any:
        spikes = jnp.moveaxis(x, 1, 0).astype(jnp.float32)
        for layer, shape in zip(net.layers, shapes[1:], strict=True):
            steps, batch = spikes.shape[:2]
            current = currents(layer, spikes.reshape(steps * batch, *spikes.shape[2:]))
            spikes = fires(layer, shape, current.reshape(steps, batch, *shape))
        return spikes.sum(0).reshape(x.shape[0], -1)

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

    @jax.jit
    def whole(v: Any, weights: Any, source: Any, sorted_targets: Any) -> Any:  # constants would be folded, for minutes
        def step(carry: Any, _: Any) -> Any:
            v, fired, counts = carry
            current = jax.ops.segment_sum(weights * fired[source], sorted_targets, n, indices_are_sorted=True)
            v = beta * v + bias + current
            now = (v >= theta).astype(jnp.float32)
            return (jnp.where(now > 0, 0.0, v), now, counts + now), None

        zero = jnp.zeros_like(v)
        return lax.scan(step, (v, zero, zero), None, length=net.steps)[0][2]

    return lambda _: np.asarray(whole(jnp.asarray(s["v0"]), weights, source, sorted_targets)).astype(np.int64)
