"""The synapses of SLAYER's blocks: each function adds the nodes of one synaptic sum and gives the wire to its neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NoReturn

import numpy as np

from spikec.frontend.slayer.file import MAX_ELEMENTS, Group
from spikec.frontend.slayer.network import Network, Wire, elements
from spikec.ir.ops import Conv, Dense, Reshape, Sparse
from spikec.ir.types import Array

Pair = tuple[int, int]


def small(array: Array) -> Array:
    """Weights in 16 bits where they fit."""
    fits = not array.size or (array.min() >= -(1 << 15) and array.max() < 1 << 15)
    return array.astype(np.int16 if fits else np.int32)


def _dtype(wire: Wire) -> str:
    """The accumulator: sums of numbers are wider than sums of spikes."""
    return "" if wire.kind == "spike" else "i64"


def dense(net: Network, layer: Group, name: str, key: str) -> Wire:
    """(out, in) over what comes in as one axis."""
    weight = layer.integers(key)
    out = layer.integer("outFeatures", -1)
    if out < 0:
        out = weight.shape[0] if weight.ndim >= 2 else elements(net.shape(layer))
    if out < 1 or not weight.size or weight.size % out:
        layer.bad(key, f"has shape {weight.shape}, which does not split into {out} rows", code="SPK309")
    weight = weight.reshape(out, -1)
    fan_in = layer.integer("inFeatures", weight.shape[1])
    if fan_in != weight.shape[1]:
        layer.bad(key, f"has {weight.shape[1]} columns, but inFeatures is {fan_in}", code="SPK309")
    wire = net.previous(layer, (fan_in,))
    if wire.size != fan_in:
        layer.bad(key, f"takes {fan_in} inputs, but the layer before gives {wire.size}, of shape {wire.shape}", code="SPK309")
    if len(wire.shape) > 1:
        if wire.size != wire.shape[0]:
            layer.fail("SPK309", f"a dense layer follows one of shape {wire.shape} without a flatten layer in between")
        ref = net.add(Reshape(name=f"{name}_flat", inputs=(wire.ref,), shape=(fan_in,), loc=layer.loc))
        wire = replace(wire, ref=ref, shape=(fan_in,))
    net.check_shape(layer, (out,), flat=True)
    delay = net.synaptic(layer, out, fan_in)
    if wire.delay is not None:
        delay = wire.delay[None, :] + (np.zeros((out, 1), np.int64) if delay is None else delay)
    ref = net.add(
        Dense(
            name=name,
            inputs=(wire.ref,),
            weight=small(weight),
            delay=None if delay is None else delay.astype(np.int32),
            dtype=_dtype(wire),
            loc=layer.loc,
        )
    )
    return Wire(ref, (out,), "value")


def conv(net: Network, layer: Group, name: str, key: str) -> Wire:
    """(out, in / groups, height, width) over (channels, height, width)."""
    weight = _kernel(layer, key, "outChannels")
    wire = _image(net, layer)
    stride, padding, dilation = _window_moves(layer)
    groups = layer.integer("groups", 1)
    if groups < 1 or weight.shape[1] * groups != wire.shape[0] or weight.shape[0] % groups:
        _no_fit(layer, key, weight, groups, wire)
    channels = layer.integer("inChannels", wire.shape[0])
    if channels != wire.shape[0]:
        layer.bad("inChannels", f"is {channels}, but the layer before has {wire.shape[0]}", code="SPK309")
    return _convolution(net, layer, name, weight, stride, padding, dilation, groups)


def conv_transpose(net: Network, layer: Group, name: str, key: str) -> Wire:
    """(in, out / groups, height, width): every input element adds its kernel to the output."""
    weight = _kernel(layer, key, "inChannels")
    wire = _image(net, layer)
    stride, padding, dilation = _window_moves(layer)
    groups = layer.integer("groups", 1)
    if groups < 1 or weight.shape[0] != wire.shape[0] or wire.shape[0] % groups:
        _no_fit(layer, key, weight, groups, wire)
    return _transposed(net, layer, name, weight, stride, padding, dilation, groups)


def pool(net: Network, layer: Group, name: str, key: str) -> Wire:
    """A weighted sum over windows of each channel, side by side."""
    weight = _one_window(net, layer, key, "pool")
    wire = net.previous(layer)
    channels, height, width = wire.shape
    kernel = (ky, kx) = (weight.shape[2], weight.shape[3])
    # SLAYER appends n mod k rows and columns of zeros.
    rows, columns = height + height % ky, width + width % kx
    if rows % ky:
        layer.fail("SPK101", f"a pool of {kernel} over {wire.shape[1:]} is not supported: SLAYER mixes channels there")
    if rows == height and columns == width:
        tiled = np.broadcast_to(weight, (channels, 1, ky, kx))
        return _convolution(net, layer, name, tiled, kernel, (0, 0), (1, 1), channels)
    shape = (channels, rows // ky, columns // kx)
    channel, y, x = np.indices(wire.shape).reshape(3, -1)
    inside = np.flatnonzero(x // kx < shape[2])
    channel, y, x = channel[inside], y[inside], x[inside]
    targets = (channel * shape[1] + y // ky) * shape[2] + x // kx
    return _listed(net, layer, name, shape, targets, inside, weight[0, 0, y % ky, x % kx])


def unpool(net: Network, layer: Group, name: str, key: str) -> Wire:
    """Every element becomes a window."""
    weight = _one_window(net, layer, key, "unpool")
    channels = net.previous(layer).shape[0]
    tiled = np.broadcast_to(weight, (channels, 1, *weight.shape[2:]))
    return _transposed(net, layer, name, tiled, (weight.shape[2], weight.shape[3]), (0, 0), (1, 1), channels)


SYNAPSES: Final[dict[str, Callable[[Network, Group, str, str], Wire]]] = {
    "dense": dense,
    "dense_rec": dense,
    "dense_comp": dense,
    "conv": conv,
    "convT": conv_transpose,
    "pool": pool,
    "unpool": unpool,
}

# -------------------------------------------------------------------------------------------------- reading the fields


def _kernel(layer: Group, key: str, first: str) -> Array:
    """A 4-d kernel; SLAYER's fifth axis, of time, has one entry. `first` is the field with the size of the first axis."""
    weight = layer.integers(key)
    if weight.ndim == 5 and weight.shape[-1] == 1:
        weight = weight[..., 0]
    if weight.ndim != 4 or not weight.size:
        layer.bad(key, f"has shape {weight.shape}; a kernel has 4 axes, or 5 with a last one of 1", code="SPK309")
    if "kernelSize" in layer and (size := _pair(layer, "kernelSize", 1)) != weight.shape[2:]:
        layer.bad(key, f"has shape {weight.shape}, but kernelSize is {size}", code="SPK309")
    if first and (channels := layer.integer(first, weight.shape[0])) != weight.shape[0]:
        layer.bad(key, f"has shape {weight.shape}, but {first} is {channels}", code="SPK309")
    return weight


def _pair(layer: Group, key: str, default: int) -> Pair:
    """(height, width); one number stands for both, and a third, of SLAYER's time axis, is left out."""
    if key not in layer:
        return (default, default)
    value = layer.integers(key).reshape(-1)
    if value.size not in (1, 2, 3):
        layer.bad(key, f"holds {value.size} numbers, not 2", code="SPK309")
    return (int(value[0]), int(value[0 if value.size == 1 else 1]))


def _window_moves(layer: Group) -> tuple[Pair, Pair, Pair]:
    stride, padding, dilation = _pair(layer, "stride", 1), _pair(layer, "padding", 0), _pair(layer, "dilation", 1)
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        layer.fail("SPK309", f"stride {stride} and dilation {dilation} must be at least 1 and padding {padding} at least 0")
    return stride, padding, dilation


def _image(net: Network, layer: Group) -> Wire:
    wire = net.previous(layer)
    if len(wire.shape) != 3:
        layer.fail("SPK309", f"the layer takes (channels, height, width), but the one before gives {wire.shape}")
    net.no_synaptic(layer)
    return wire


def _no_fit(layer: Group, key: str, weight: Array, groups: int, wire: Wire) -> NoReturn:
    what = f"has shape {weight.shape} in {groups} group(s), which does not fit {wire.shape[0]} channels"
    layer.bad(key, what, code="SPK309")


def _one_window(net: Network, layer: Group, key: str, what: str) -> Array:
    """The one kernel of pool and unpool, which SLAYER moves over channels and rows merged into one axis."""
    weight = _kernel(layer, key, "")
    _image(net, layer)
    if weight.shape[:2] != (1, 1):
        layer.bad(key, f"has shape {weight.shape}; the window of {what} has shape (1, 1, height, width)", code="SPK309")
    size = (weight.shape[2], weight.shape[3])
    stride, padding, dilation = _window_moves(layer)
    if "stride" not in layer:
        stride = size
    if stride != size or any(padding) or dilation != (1, 1):
        window = f"a window of {size}, stride {stride}, padding {padding} and dilation {dilation}"
        layer.fail("SPK101", f"{what} with {window} is not supported: SLAYER mixes channels there")
    return weight


# ---------------------------------------------------------------------------------------------------- adding the nodes


def _convolution(
    net: Network, layer: Group, name: str, weight: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Wire:
    wire = net.previous(layer)
    space = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(wire.shape[1:], padding, dilation, weight.shape[2:], stride, strict=True)
    ]
    shape = (weight.shape[0], *space)
    net.check_shape(layer, shape)
    delay = None
    if wire.delay is not None:
        by_channel = wire.delay.reshape(wire.shape[0], -1)
        if np.all(by_channel == by_channel[:, :1]):
            group = np.arange(weight.shape[0]) // (weight.shape[0] // groups)
            channel = group[:, None] * weight.shape[1] + np.arange(weight.shape[1])[None, :]
            delay = np.broadcast_to(by_channel[:, 0][channel][:, :, None, None], weight.shape).astype(np.int32)
        else:
            wire = net.relayed(f"{name}_delayed", layer.loc, wire)
    ref = net.add(
        Conv(
            name=name,
            inputs=(wire.ref,),
            weight=small(weight),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            delay=delay,
            dtype=_dtype(wire),
            loc=layer.loc,
        )
    )
    return Wire(ref, shape, "value")


def _transposed(
    net: Network, layer: Group, name: str, weight: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Wire:
    """y[o, p*stride + k*dilation - padding] += weight[i, o, k] * x[i, p]."""
    wire = net.previous(layer)
    per_group = weight.shape[1]
    space = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1
        for n, p, d, k, s in zip(wire.shape[1:], padding, dilation, weight.shape[2:], stride, strict=True)
    ]
    shape = (per_group * groups, *space)
    net.check_shape(layer, shape)
    if weight.size * wire.shape[1] * wire.shape[2] > MAX_ELEMENTS:
        layer.fail("SPK309", f"the layer has more than {MAX_ELEMENTS} connections, which are listed one by one")
    channel, out, ky, kx, y, x = np.indices((*weight.shape, *wire.shape[1:])).reshape(6, -1)
    row, column = y * stride[0] + ky * dilation[0] - padding[0], x * stride[1] + kx * dilation[1] - padding[1]
    target = channel // (wire.shape[0] // groups) * per_group + out
    rows = (target * space[0] + row) * space[1] + column
    columns = (channel * wire.shape[1] + y) * wire.shape[2] + x
    inside = (row >= 0) & (row < space[0]) & (column >= 0) & (column < space[1])
    return _listed(net, layer, name, shape, rows[inside], columns[inside], weight[channel, out, ky, kx][inside])


def _listed(net: Network, layer: Group, name: str, shape: tuple[int, ...], rows: Array, columns: Array, weight: Array) -> Wire:
    """Connections one by one, for windows that a convolution does not express."""
    wire = net.previous(layer)
    net.check_shape(layer, shape)
    kept = np.flatnonzero(weight)
    kept = kept[np.argsort(rows[kept], kind="stable")]
    rows, columns, weight = rows[kept], columns[kept], weight[kept]
    counts = np.bincount(rows, minlength=int(np.prod(shape)))
    flat = net.add(Reshape(name=f"{name}_flat", inputs=(wire.ref,), shape=(wire.size,), loc=layer.loc))
    flat = net.add(
        Sparse(
            name=f"{name}_list",
            inputs=(flat,),
            weight=small(weight),
            indices=columns.astype(np.int32),
            indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            fan_in=wire.size,
            delay=None if wire.delay is None else wire.delay[columns].astype(np.int32),
            dtype=_dtype(wire),
            loc=layer.loc,
        )
    )
    return Wire(net.add(Reshape(name=name, inputs=(flat,), shape=shape, loc=layer.loc)), shape, "value")
