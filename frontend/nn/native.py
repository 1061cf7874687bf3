"""A population's program over all steps as C, forward and backward: what `population` runs step by step, many times quicker.

One sample after the other, so that its states stay near the processor; a population's neurons are what is vectorised. Backward,
a step's values are computed again from the states before it, which alone are kept. No array lies on the stack: gcc 12 takes one
in a function that calls none to be aligned where it is not (GCC PR 109780), and a wide population's would not fit. Values and
gradients are those of `population` but for the order of sums. Compiled is with what the caller gives, for a C compiler is not of
this layer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from spikec.ir.neuron import COMPARISONS

if TYPE_CHECKING:
    from spikec.frontend.nn.population import Operation

#: Compiles sources by name into a shared library: (sources, those that are to be compiled) -> its path.
Build = Callable[[Mapping[str, str], Sequence[str]], Path]

REAL: Final = {torch.float32: ("float", "f"), torch.float64: ("double", "")}
_INFIX: Final = {"+": "+", "-": "-", "*": "*", "/": "/", ">": ">", ">=": ">=", "<": "<", "<=": "<=", "==": "==", "!=": "!="}
_SHIFTED: Final = {"<<": "{}", ">>": "FLOOR({})", "rtz": "TRUNC({})"}

#: The widest surrogate gradient, in thresholds, unless a module has another. Wider ones give all neurons much the same gradient,
#: and training from scratch learns less.
WIDEST: Final = 3
_HEAD: Final = """\
#include <math.h>
#include <stdint.h>
#include <string.h>
typedef {real} real;
#define N {size}
#define FLOOR floor{suffix}
#define TRUNC trunc{suffix}
#define ROUND rint{suffix}
#define FABS fabs{suffix}
#define WRAP(x, half) (((x) + (half)) - FLOOR(((x) + (half)) / (2 * (half))) * (2 * (half)) - (half))
#define CLIP(x, most) ((x) > (most) ? (most) : (x) < -(most) ? -(most) : (x))
/* The width of the surrogate gradient: the threshold's magnitude, or the mean distance from it in this step, if that is more. */
static inline real width(real threshold, real far, real widest)
{{
    real size = FABS(threshold);
    size = size > 0 && size < (real)INFINITY ? size : (real)1;
    return far > size ? (far < widest * size ? far : widest * size) : size;
}}
static inline real surrogate(real gradient, real distance, real scale)
{{
    real slope = distance * ((real)3.14159265358979323846 / scale);
    return gradient / ((slope * slope + 1) * scale);
}}
"""


@dataclass(frozen=True)
class Plan:
    """What is generated for: the operations of a step, and by what names it reads and leaves things.

    inputs, params, states, emits: names of values; params are those that stand still over the steps, of which `trained` get
    gradients. now: what a name is at the end of a step. back: (operand, delay) of what the first emission adds to an input.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    params: tuple[str, ...]
    trained: tuple[str, ...]
    states: tuple[str, ...]
    emits: tuple[str, ...]
    now: tuple[tuple[str, str], ...]
    back: tuple[tuple[int, int], ...]
    size: int
    dtype: torch.dtype

    def compared(self) -> list[int]:
        """Operations that have a surrogate gradient."""
        return [
            k
            for k, line in enumerate(self.operations)
            if line.op in COMPARISONS and any(line.wanted) and line.op not in ("==", "!=")
        ]


class _Writer:
    """The text of the two functions."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.names: dict[str, str] = {}
        for kind, names in (("x", plan.inputs), ("p", plan.params), ("s", plan.states)):
            self.names |= {name: f"{kind}{k}" for k, name in enumerate(names)}
        self.names |= {line.target: f"r{k}" for k, line in enumerate(plan.operations)}
        self.now = dict(plan.now)
        self.compared = {k: number for number, k in enumerate(plan.compared())}

    def of(self, name: str) -> str:
        return self.names[name]

    def at_end(self, name: str) -> str:
        return self.names[self.now.get(name, name)]

    def _value(self, line: Operation) -> str:
        a = [self.of(name) for name in line.operands]
        if line.op in COMPARISONS:
            return f"(real)({a[0]} {line.op} {a[1]})"
        if line.op in _INFIX:
            return f"{a[0]} {line.op} {a[1]}"
        if line.op in _SHIFTED:
            return _SHIFTED[line.op].format(f"({a[0]} * {a[1]})")
        forms = {
            "neg": "-{0}",
            "floor": "FLOOR({0})",
            "round": "ROUND({0})",
            "wrap": "WRAP({0}, {1})",
            "clip": "CLIP({0}, {1})",
            "select": "({0} != 0 ? {1} : {2})",
            "not": "1 - {0}",
            "and": "{0} * {1}",
            "or": "{0} + {1} - {0} * {1}",
        }
        return forms[line.op].format(*a)

    def _distance(self, line: Operation) -> tuple[str, str]:
        """(distance, threshold) of a comparison."""
        a, b = (self.of(name) for name in line.operands)
        return (f"({b} - {a})", a) if line.op in ("<", "<=") else (f"({a} - {b})", b)

    def _slopes(self, k: int, line: Operation) -> list[str]:
        """What reaches each operand of the gradient `g{target}`."""
        g, a = f"g{self.of(line.target)}", [self.of(name) for name in line.operands]
        if k in self.compared:
            distance, threshold = self._distance(line)
            found = f"surrogate({g}, {distance}, width({threshold}, far[{self.compared[k]} * T + t], widest))"
            return [f"-{found}", found] if line.op in ("<", "<=") else [found, f"-{found}"]
        if line.op == "*":
            return [f"{g} * {a[1]}", f"{g} * {a[0]}"]
        if line.op in _SHIFTED:
            return [f"{g} * {a[1]}"]
        if line.op == "clip":
            return [f"({self.of(line.target)} == {a[0]} ? {g} : 0)"]
        if line.op == "select":
            return ["", f"({a[0]} != 0 ? {g} : 0)", f"({a[0]} != 0 ? 0 : {g})"]
        fixed = {
            "+": ["{g}", "{g}"],
            "-": ["{g}", "-{g}"],
            "/": ["{g} / {b}"],
            "neg": ["-{g}"],
            "floor": ["{g}"],
            "round": ["{g}"],
            "wrap": ["{g}"],
            "not": ["-{g}"],
            "and": ["{g} * {b}", "{g} * {a}"],
            "or": ["{g} * (1 - {b})", "{g} * (1 - {a})"],
        }
        return [text.format(g=g, a=a[0], b=a[-1]) for text in fixed.get(line.op, [])]

    def _read(self) -> list[str]:
        plan = self.plan
        rows = [f"const real x{k} = row_x{k}[n];" for k in range(len(plan.inputs))]
        rows += [f"const real p{k} = par_{k}[n];" for k in range(len(plan.params))]
        return rows

    def _computed(self) -> list[str]:
        return [f"const real {self.of(line.target)} = {self._value(line)};" for line in self.plan.operations]

    def _rows(self, source: Iterable[str]) -> list[str]:
        fed = {operand for operand, _ in self.plan.back}
        return [
            f"const real *restrict row_x{k} = {'sum' if k in fed else 'in'}[{k}] + at;" for k in range(len(self.plan.inputs))
        ] + list(source)

    def _params(self) -> list[str]:
        return [f"const real *restrict par_{k} = par[{k}];" for k in range(len(self.plan.params))]

    def forward(self) -> str:
        plan = self.plan
        text = [
            "void forward(int64_t B, int64_t T, int64_t start, int64_t stop, const real *const *in, const real *const *par,",
            "    const real *const *init, const real *const *back, real *const *sum, real *const *state, real *const *out,",
            "    real *away, real *mine)",
            "{",
            *self._params(),
            *(f"real *restrict now_{k} = mine + {k} * N;" for k in range(len(plan.states))),
            f"real *restrict got = mine + {len(plan.states)} * N; (void)got;",
            "for (int64_t b = 0; b < B; b++) {",
            *(f"memcpy(now_{k}, init[{k}], N * sizeof(real));" for k in range(len(plan.states))),
            "for (int64_t t = start; t < stop; t++) {",
            "const int64_t at = (b * T + t) * N;",
        ]
        for operand in sorted({operand for operand, _ in plan.back}):
            text += [f"memcpy(sum[{operand}] + at, in[{operand}] + at, N * sizeof(real));"]
        for way, (operand, delay) in enumerate(plan.back):
            text += [
                f"if (t >= {delay}) {{",
                f"const real *restrict sent = out[0] + (b * T + t - {delay}) * N; memset(got, 0, N * sizeof(real));",
                "for (int j = 0; j < N; j++) if (sent[j] != 0) {",
                f"const real *restrict w = back[{way}] + j * N; const real s = sent[j];",
                "for (int n = 0; n < N; n++) got[n] += s * w[n]; }",
                f"real *restrict into = sum[{operand}] + at; for (int n = 0; n < N; n++) into[n] += got[n]; }}",
            ]
        rows = [f"real *restrict kept_{k} = state[{k}] + at;" for k in range(len(plan.states))]
        rows += [f"real *restrict out_{k} = out[{k}] + at;" for k in range(len(plan.emits))]
        rows += [f"real *restrict away_{c} = away + ({c} * T + t) * N;" for c in self.compared.values()]
        text += [*self._rows(rows), "for (int n = 0; n < N; n++) {", *self._read()]
        text += [f"const real s{k} = now_{k}[n]; kept_{k}[n] = s{k};" for k in range(len(plan.states))]
        text += self._computed()
        text += [f"now_{k}[n] = {self.at_end(name)};" for k, name in enumerate(plan.states)]
        text += [f"out_{k}[n] = {self.at_end(name)};" for k, name in enumerate(plan.emits)]
        text += [f"away_{c}[n] += FABS({self._distance(plan.operations[k])[0]});" for k, c in self.compared.items()]
        return "\n".join([*text, "}", "}", "}", "}"])

    def backward(self) -> str:
        plan = self.plan
        text = [
            "void backward(int64_t B, int64_t T, int64_t start, int64_t stop, const real *const *in, const real *const *par,",
            "    const real *const *back, const real *const *sum, const real *const *state, const real *const *slope,",
            "    const real *far, real *const *gin, real *const *gpar, real *restrict sent,",
            "    real *mine, double limit)",
            "{",
            "const real widest = (real)limit; (void)widest;",
            *self._params(),
            *(f"real *restrict later_{k} = mine + {k} * N;" for k in range(len(plan.states))),
            *(f"real *restrict gpar_{k} = gpar[{k}];" for k in range(len(plan.trained))),
            "for (int64_t b = 0; b < B; b++) {",
            "memset(sent, 0, T * N * sizeof(real));",
            *(f"memset(later_{k}, 0, N * sizeof(real));" for k in range(len(plan.states))),
            "for (int64_t t = stop - 1; t >= start; t--) {",
            "const int64_t at = (b * T + t) * N;",
        ]
        rows = [f"const real *restrict kept_{k} = state[{k}] + at;" for k in range(len(plan.states))]
        rows += [f"const real *restrict slope_{k} = slope[{k}] + at;" for k in range(len(plan.emits))]
        rows += [f"real *restrict gin_{k} = gin[{k}] + at;" for k in range(len(plan.inputs))]
        rows += ["const real *restrict sent_t = sent + t * N;"] if plan.back else []
        text += [*self._rows(rows), "for (int n = 0; n < N; n++) {", *self._read()]
        text += [f"const real s{k} = kept_{k}[n];" for k in range(len(plan.states))]
        text += self._computed()
        named = {*self.names.values()} - {self.of(name) for name in plan.params if name not in plan.trained}
        text += [f"real g{name} = 0;" for name in sorted(named)]
        text += [f"g{self.at_end(name)} += later_{k}[n];" for k, name in enumerate(plan.states)]
        text += [f"g{self.at_end(name)} += slope_{k}[n];" for k, name in enumerate(plan.emits)]
        text += [f"g{self.at_end(plan.emits[0])} += sent_t[n];"] if plan.back else []
        for k, line in reversed(list(enumerate(plan.operations))):
            for name, wanted, part in zip(line.operands, line.wanted, self._slopes(k, line), strict=False):
                if wanted and part and self.of(name) in named:
                    text.append(f"g{self.of(name)} += {part};")
        text += [f"later_{k}[n] = gs{k};" for k in range(len(plan.states))]
        text += [f"gin_{k}[n] = gx{k};" for k in range(len(plan.inputs))]
        text += [f"gpar_{k}[n] += g{self.of(name)};" for k, name in enumerate(plan.trained)]
        text += ["}"]
        for way, (operand, delay) in enumerate(plan.back):
            text += [
                f"if (t >= {delay}) {{",
                f"real *restrict into = sent + (t - {delay}) * N; const real *restrict from = gin[{operand}] + at;",
                f"for (int i = 0; i < N; i++) {{ const real g = from[i]; const real *restrict w = back[{way}] + i * N;",
                "for (int n = 0; n < N; n++) into[n] += g * w[n]; } }",
            ]
        return "\n".join([*text, "}", "}", "}"])

    def text(self) -> str:
        real, suffix = REAL[self.plan.dtype]
        head = _HEAD.format(real=real, suffix=suffix, size=self.plan.size)
        return "\n".join([head, self.forward(), self.backward(), ""])


class Kernel:
    """The compiled functions of a plan."""

    def __init__(self, plan: Plan, path: Path) -> None:
        self.plan = plan
        library = ctypes.CDLL(str(path))
        self._forward, self._backward = library.forward, library.backward
        self._forward.restype = self._backward.restype = None

    def forward(
        self,
        inputs: Sequence[torch.Tensor],
        params: Sequence[torch.Tensor],
        init: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
        window: tuple[int, int],
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Emissions, sums of inputs with what came back, states before each step, and mean distances (comparisons, steps).

        inputs (batch, T, *shape), contiguous; params and init (neurons,); weights (neurons, neurons).
        """
        plan = self.plan
        shape, (batch, steps) = inputs[0].shape, inputs[0].shape[:2]
        fed = {operand for operand, _ in plan.back}
        sums = [torch.empty_like(x) if k in fed else x for k, x in enumerate(inputs)]
        states = [inputs[0].new_empty(shape) for _ in plan.states]
        out = [inputs[0].new_zeros(shape) for _ in plan.emits]
        away = inputs[0].new_zeros((max(1, len(plan.compared())), steps, plan.size))
        mine = inputs[0].new_empty((len(plan.states) + 1, plan.size))
        turned = [weight.T.contiguous() for weight in weights]
        self._forward(
            *map(ctypes.c_int64, (batch, steps, *window)),
            *map(_pointers, (inputs, params, init, turned, sums, states, out)),
            ctypes.c_void_p(away.data_ptr()),
            ctypes.c_void_p(mine.data_ptr()),
        )
        return out, sums, states, away.sum(dim=2) / max(1, batch * plan.size)

    def backward(
        self,
        inputs: Sequence[torch.Tensor],
        params: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
        sums: Sequence[torch.Tensor],
        states: Sequence[torch.Tensor],
        far: torch.Tensor,
        slopes: Sequence[torch.Tensor],
        window: tuple[int, int],
        widest: float = WIDEST,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Gradients of the inputs and of the trained parameters (neurons,), of the emissions' gradients; widest: of surrogates."""
        plan = self.plan
        batch, steps = inputs[0].shape[:2]
        found = [torch.zeros_like(x) for x in inputs]
        trained = [inputs[0].new_zeros(plan.size) for _ in plan.trained]
        sent, mine = inputs[0].new_empty((steps, plan.size)), inputs[0].new_empty((max(1, len(plan.states)), plan.size))
        self._backward(
            *map(ctypes.c_int64, (batch, steps, *window)),
            *map(_pointers, (inputs, params, weights, sums, states, slopes)),
            ctypes.c_void_p(far.contiguous().data_ptr()),
            _pointers(found),
            _pointers(trained),
            ctypes.c_void_p(sent.data_ptr()),
            ctypes.c_void_p(mine.data_ptr()),
            ctypes.c_double(widest),
        )
        return found, trained


def _pointers(tensors: Sequence[torch.Tensor]) -> Any:
    return (ctypes.c_void_p * max(1, len(tensors)))(*(tensor.data_ptr() for tensor in tensors))


@lru_cache(maxsize=64)
def _compiled(text: str, build: Build) -> Path:
    return build({"population.c": text}, ["population.c"])


def kernel(plan: Plan, build: Build) -> Kernel:
    """The functions of a plan, compiled now or found."""
    return Kernel(plan, _compiled(_Writer(plan).text(), build))
