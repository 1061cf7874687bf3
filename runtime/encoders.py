"""From values and signals to spikes: pure functions, the same numbers on every machine and in every batch.

`rate`, `phase` and `latency` take values in [0, 1], (batch, *shape); `delta` and `level_crossing` take signals, (batch, T, *shape).
All give (batch, T, *shape).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1


class EncodingError(ValueError):
    """Values that an encoder does not take; the message says which and why."""


def mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function, on unsigned 64-bit integers that wrap:

    z = (z ^ (z >> 30)) · 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) · 0x94D049BB133111EB
    z =  z ^ (z >> 31)
    """
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def random_bits(seed: int, samples: Any, steps: Any, elements: Any) -> npt.NDArray[np.uint32]:
    """32 random bits for each (sample, step, element); the three broadcast. Nothing but these numbers enters:

        h = mix(seed + G)
        h = mix(h + (sample + 1) · G)
        h = mix(h + (step + 1) · G)
        h = mix(h + (element + 1) · G),        G = 0x9E3779B97F4A7C15, all modulo 2^64
        bits = h >> 32

    In C: `uint64_t`, the same four lines. `mix` is above.
    """
    hashed = mix(np.full(1, (seed + GOLDEN) & _MASK, np.uint64))
    for counter in (samples, steps, elements):
        hashed = mix(hashed + (np.asarray(counter).astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))
    return np.asarray(hashed >> np.uint64(32), np.uint32)


def rate(x: Any, steps: int, *, seed: int = 0, samples: int | Sequence[int] = 0) -> npt.NDArray[np.uint8]:
    """Bernoulli spikes: at every step the element fires with the probability x, independently.

        s[b, t, i] = 1  if  bits(seed, sample b, t, i) < floor(x[b, i] · 2^32 + 1/2),  else 0

    with `random_bits` above and i the flat index of the element. 0 never fires and 1 always does.
    samples: the number of the first sample, or of each: a sample gets the same spikes in whatever batch it stands.
    """
    x = _unit(x)
    steps = _steps(steps)
    if isinstance(samples, (int, np.integer)):
        numbers = np.arange(int(samples), int(samples) + len(x))
    else:
        numbers = np.asarray(samples)
    if numbers.shape != (len(x),) or numbers.dtype.kind not in "iu" or (len(numbers) and int(numbers.min()) < 0):
        raise EncodingError(f"samples are numbered from 0, one number for each of {len(x)}")
    flat = x.reshape(len(x), -1) if x.size else np.zeros((len(x), _size(x.shape[1:])))
    limit = np.floor(flat * 2.0**32 + 0.5).astype(np.uint64)
    out = np.empty((len(x), steps, flat.shape[1]), np.uint8)
    element, time = np.arange(flat.shape[1])[None], np.arange(steps)[:, None]
    for index, number in enumerate(numbers):
        out[index] = random_bits(seed, np.full((1, 1), number), time, element) < limit[index]
    return out.reshape(len(x), steps, *x.shape[1:])


def phase(x: Any, steps: int, *, period: int = 8) -> npt.NDArray[np.uint8]:
    """Binary digits of x, the highest first, over and over:

        q = min(floor(x · 2^K), 2^K − 1),   K = period
        s[t] = bit (K − 1 − t mod K) of q

    so that over each period Σ s[t] · 2^−(1 + t mod K) = q / 2^K, less than 2^−K below x (x = 1: 2^−K below).
    """
    x = _unit(x)
    if not 1 <= period <= 52:
        raise EncodingError(f"a period has 1 to 52 steps, not {period}")
    digits = np.minimum(np.floor(x * 2.0**period), 2.0**period - 1).astype(np.int64)
    place = period - 1 - np.arange(_steps(steps)) % period
    return np.asarray(digits[:, None] >> place.reshape(-1, *[1] * (x.ndim - 1)) & 1, np.uint8)


def latency(x: Any, steps: int, *, threshold: float = 0.0, tau: float | None = None) -> npt.NDArray[np.uint8]:
    """One spike an element, the earlier the larger the value; x ≤ threshold does not fire.

        linear (tau is None):   t = floor((1 − x) · (steps − 1) + 1/2)
        logarithmic:            t = floor(tau · ln(x / (x − threshold)) + 1/2),   no spike where t ≥ steps

    The logarithmic one is when a leaky membrane of time constant tau, driven by x, reaches the threshold.
    """
    x = _unit(x)
    steps = _steps(steps)
    fires = x > threshold
    if tau is None:
        when = np.floor((1.0 - x) * (steps - 1) + 0.5)
    elif tau > 0 and threshold > 0:
        when = np.full(x.shape, np.inf)
        when[fires] = np.floor(tau * np.log(x[fires] / (x[fires] - threshold)) + 0.5)
    else:
        raise EncodingError(f"the logarithmic latency takes tau and threshold above 0, not {tau} and {threshold}")
    fires = fires & (when < steps)
    time = np.arange(steps, dtype=np.float64).reshape(-1, *[1] * (x.ndim - 1))
    return np.asarray((when[:, None] == time) & fires[:, None], np.uint8)


def delta(signal: Any, threshold: float, *, off: bool = True) -> npt.NDArray[np.int8]:
    """A spike where the signal changes by the threshold or more from one step to the next:

    s[t] = +1 if d ≥ threshold,  −1 if d ≤ −threshold (with `off`),  else 0;   d = x[t] − x[t − 1],  s[0] = 0
    """
    x = _signal(signal)
    _positive(threshold)
    change = np.diff(x, axis=1, prepend=x[:, :1])
    out = (change >= threshold).astype(np.int8)
    return out - (change <= -threshold).astype(np.int8) if off else out


def level_crossing(signal: Any, step: float, *, several: bool = False) -> npt.NDArray[np.int8]:
    """Send on delta: a spike whenever the signal has moved a whole level of height `step` away from where it was last sent.

        e = (x[t] − x[0]) / step,   k[−1] = 0
        n = floor(e) − k[t − 1]  if e ≥ k[t − 1] + 1;    ceil(e) − k[t − 1]  if e ≤ k[t − 1] − 1;    else 0
        s[t] = n with `several`, else the sign of n;     k[t] = k[t − 1] + s[t]

    With `several`, |x[0] + step · Σ s − x[t]| < step at every t, up to rounding. More than 127 levels in a step are an error.
    """
    x = _signal(signal)
    _positive(step)
    out = np.zeros(x.shape, np.int8)
    level = np.zeros((x.shape[0], *x.shape[2:]))
    for t in range(x.shape[1]):
        e = (x[:, t] - x[:, 0]) / step
        n = np.where(e >= level + 1, np.floor(e) - level, np.where(e <= level - 1, np.ceil(e) - level, 0.0))
        if not several:
            n = np.sign(n)
        elif n.size and np.abs(n).max() > 127:
            raise EncodingError(f"the signal moves {int(np.abs(n).max())} levels in step {t}: take a step larger than {step}")
        level += n
        out[:, t] = n.astype(np.int8)
    return out


def merge(spikes: Any, every: float) -> npt.NDArray[np.uint8]:
    """One step for `every` steps: (batch, T, *shape) to (batch, ceil(T / every), *shape), 1 where any of them is not 0."""
    array = np.asarray(spikes)
    count = int(every)
    if count != every or count < 1:
        raise EncodingError(f"every is a whole number of at least 1, not {every:g}")
    if array.ndim < 2:
        raise EncodingError("the data are (batch, T, *shape)")
    steps = -(-array.shape[1] // count)
    padded = np.zeros((array.shape[0], steps * count, *array.shape[2:]), bool)
    padded[:, : array.shape[1]] = array != 0
    joined: npt.NDArray[np.uint8] = np.any(padded.reshape(array.shape[0], steps, count, *array.shape[2:]), axis=2).astype(np.uint8)
    return joined


def split(spikes: Any) -> npt.NDArray[np.uint8]:
    """Signed spikes as two channels: (batch, T, *shape) to (batch, T, 2, *shape), off (the negative ones) and on, as magnitudes."""
    signed = np.asarray(spikes).astype(np.int64)
    return np.stack((np.maximum(-signed, 0), np.maximum(signed, 0)), axis=2).astype(np.uint8)


#: Encoders by name: their parameters, with defaults.
ENCODERS: Final[dict[str, dict[str, float | None]]] = {
    "rate": {"seed": 0},
    "phase": {"period": 8},
    "latency": {"threshold": 0.0, "tau": None},
    "delta": {"threshold": None},
    "level_crossing": {"step": None},
    "merge": {"every": None},
}


def parse_encoder(text: str) -> tuple[str, dict[str, float]]:
    """`rate`, `rate:seed=3`, `latency:threshold=0.1,tau=5`: the name and the parameters. Raises EncodingError."""
    name, _, rest = text.partition(":")
    if name not in ENCODERS:
        raise EncodingError(f"there is no encoder '{name}': choose one of {', '.join(ENCODERS)}")
    given: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key not in ENCODERS[name] or not equals:
            raise EncodingError(f"'{part}': the encoder {name} takes {', '.join(f'{each}=…' for each in ENCODERS[name])}")
        try:
            given[key] = float(value)
        except ValueError:
            raise EncodingError(f"'{part}': {key} is a number") from None
    for key, default in ENCODERS[name].items():
        if default is None and key not in given and (name, key) != ("latency", "tau"):
            raise EncodingError(f"the encoder {name} needs a {key}: write {name}:{key}=…")
    return name, given


def encode(text: str, x: Any) -> Array:
    """Data (batch, T, *shape) through the encoder that `text` names (see `parse_encoder`), step for step: (batch, T, *shape).

    `rate` takes the value of each step as its probability; `phase` and `latency` take one that stays the same at all steps. Samples
    are numbered in the order of the batch. Signed spikes of `delta` and `level_crossing` are +1 and -1.
    `merge` makes one step of several, the only one that changes T.
    """
    name, given = parse_encoder(text)
    if name == "merge":
        return merge(x, given["every"])
    array = _signal(x)
    if name == "delta":
        return delta(array, given["threshold"])
    if name == "level_crossing":
        return level_crossing(array, given["step"])
    if name == "rate":
        values = _unit(array).reshape(*array.shape[:2], -1)
        out = np.empty(values.shape, np.uint8)
        seed, (samples, steps, size) = int(given.get("seed", 0)), values.shape
        for sample in range(samples):
            bits = random_bits(seed, np.full((1, 1), sample), np.arange(steps)[:, None], np.arange(size)[None])
            out[sample] = bits < np.floor(values[sample] * 2.0**32 + 0.5).astype(np.uint64)
        return out.reshape(array.shape)
    if array.shape[1] and np.any(array != array[:, :1]):
        raise EncodingError(f"{name} takes a value that stays the same at all steps")
    steps = array.shape[1]
    if name == "phase":
        return phase(array[:, 0], steps, period=int(given.get("period", 8)))
    return latency(array[:, 0], steps, threshold=given.get("threshold", 0.0), tau=given.get("tau"))


# ------------------------------------------------------------------------------------------------------------------- checks


def _size(shape: Sequence[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _finite(values: Any, axes: int, layout: str) -> npt.NDArray[np.float64]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise EncodingError(f"an encoder takes numbers, not {array.dtype}")
    if array.ndim < axes:
        raise EncodingError(f"an encoder takes {layout}, not the shape {array.shape}")
    array = array.astype(np.float64)
    bad = ~np.isfinite(array)
    if bad.any():
        index = [int(i) for i in np.argwhere(bad)[0]]
        raise EncodingError(f"the value at {index} is {array[tuple(index)]}")
    return array


def _unit(values: Any) -> npt.NDArray[np.float64]:
    array = _finite(values, 1, "(batch, *shape)")
    bad = (array < 0) | (array > 1)
    if bad.any():
        index = [int(i) for i in np.argwhere(bad)[0]]
        raise EncodingError(f"the value at {index} is {array[tuple(index)]}: values lie in [0, 1] ({int(bad.sum())} do not)")
    return array


def _signal(values: Any) -> npt.NDArray[np.float64]:
    return _finite(values, 2, "(batch, T, *shape)")


def _steps(steps: int) -> int:
    if steps < 1 or steps != int(steps):
        raise EncodingError(f"there are 1 or more steps, not {steps}")
    return int(steps)


def _positive(threshold: float) -> None:
    if not 0 < threshold < np.inf:
        raise EncodingError(f"a threshold lies above 0, not at {threshold}")
