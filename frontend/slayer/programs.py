"""The neurons of SLAYER as integer programs.

Scales: weights, biases and thresholds of a file are integers in units of 1/64; states carry six bits more (sigma-delta: twelve).
The LIF and resonator programs are those that the target `loihi2` has in its library, so that a network read from a file is native
there.
"""

from __future__ import annotations

from typing import Final

from spikec.ir.neuron import Emit, Program
from spikec.ir.text import parse_program
from spikec.target import load_target

_WRAP: Final = "u = select(u > 8388608, u - 16777216, select(u <= -8388608, u + 16777216, u))"

#: The sigma-delta input encoder: send the change since the last message once it reaches the threshold.
DELTA: Final = """
neuron @slayer_delta(a) params(vth) state(ref: i32 = 0) {
  x = wrap(a << 12, 32)
  d = wrap(x - ref, 32)
  send = abs(d) >= vth << 12
  ref = select(send, x, ref)
  y = select(send, d >> 6, 0)
  emit y: graded
}"""

SIGMA: Final = """
neuron @slayer_sigma(a) state(sigma: i32 = 0) {
  sigma = wrap(sigma + a, 32)
  emit sigma
}"""

SIGMA_DELTA: Final = """
neuron @slayer_sigma_delta(a) params(vth, bias) state(sigma: i32 = 0, ref: i32 = 0) {
  sigma = wrap(sigma + a, 32)
  x = wrap(sigma + (bias << 12), 32)
  d = wrap(x - ref, 32)
  send = abs(d) >= vth << 12
  ref = select(send, x, ref)
  y = select(send, d >> 6, 0)
  emit y: graded
}"""

ALIF: Final = f"""
neuron @slayer_alif(a) params(idecay, vdecay, thdecay, refdecay, theta0, step, bias)
    state(u: i32 = 0, v: i32 = 0, theta: i32 = 0, r: i32 = 0) {{
  u = rtz(u * (4096 - idecay), 12) + (a + bias << 6)
  {_WRAP}
  v = clip(rtz(v * (4096 - vdecay), 12) + u, 24)
  theta = rtz((theta - theta0) * (4096 - thdecay), 12) + theta0
  r = rtz(r * (4096 - refdecay), 12)
  s = v - r >= theta
  r = wrap(select(s, r + 2 * theta, r), 32)
  theta = wrap(select(s, theta + step, theta), 32)
  emit s
}}"""

#: Hands on what arrives: a place for a delay per neuron where the reader has none.
RELAY: Final = {
    "spike": "neuron @relay_spike(a) { s = a > 0 emit s }",
    "graded": "neuron @relay_graded(a) { y = a emit y: graded }",
    "value": "neuron @relay_value(a) { y = a emit y }",
}


def native(name: str) -> Program:
    """A program that the target `loihi2` has in its library."""
    found = next(item for item in load_target("loihi2").neurons if item.name == name)
    return parse_program(found.fixed)


def lif(*, reset: bool, volts: bool, graded: bool) -> Program:
    """CUBA and LOIHI: Loihi's own step.

    reset: cleared periodically. graded: sends the membrane with the spike. volts: takes such messages, scaled by 2^12, and not
    spikes.
    """
    if not volts and not graded:
        return native("LIFReset" if reset else "LIF")
    name = "slayer_lif" + "_reset" * reset + "_volts" * volts + "_graded" * graded
    lines = [f"neuron @{name}(a) params(du, dv, vth, bias_mant, bias_exp{', interval, offset' if reset else ''})"]
    lines.append("state(u: i32 = 0, v: i32 = 0) {")
    if reset:
        lines += ["r = rem(t + 1, interval) == rem(offset, interval)", "u = select(r, 0, u)", "v = select(r, 0, v)"]
    lines.append(
        "u = wrap(rtz(u * (4095 - du), 12) + rtz(a, 6), 24)" if volts else f"u = rtz(u * (4095 - du), 12) + (a << 6) {_WRAP}"
    )
    lines += ["v = clip(rtz(v * (4096 - dv), 12) + u + (bias_mant << bias_exp), 24)", "s = v > vth << 6"]
    lines += ["y = select(s, v, 0)"] * graded
    lines += ["v = select(s, 0, v)", "emit y: graded" if graded else "emit s", "}"]
    return parse_program("\n".join(lines))


def sigma_delta(text: str, *, relu: bool, corrected: bool) -> Program:
    """DELTA or SIGMA_DELTA with its activation.

    As SLAYER computes it, what the message's shift drops is lost; corrected, it stays in the difference, so that the receiver's
    sum never drifts.
    """
    program = parse_program(text)
    name, lines = program.name, program.text()
    if relu:
        name, lines = (
            f"{name}_relu",
            lines.replace("x = wrap(sigma + (bias << 12), 32)", "x = max(wrap(sigma + (bias << 12), 32), 0)"),
        )
    if corrected:
        name = f"{name}_corrected"
        lines = lines.replace("  ref = select(send, x, ref)\n", "")
        lines = lines.replace("y = select(send, d >> 6, 0)\n", "y = select(send, d >> 6, 0)\n  ref = wrap(ref + (y << 6), 32)\n")
    return parse_program(lines).renamed(name)


def with_states(program: Program) -> Program:
    """The same neuron that also emits its states, each as a port of its name."""
    emitted = {emit.name for emit in program.emits}
    more = tuple(Emit(name, "value") for name in program.state_names if name not in emitted)
    return Program(program.name, program.inputs, program.params, program.states, program.body, (*program.emits, *more))
