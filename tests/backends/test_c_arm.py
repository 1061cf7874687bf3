"""The emitted C on other processors: built for Arm and run in an emulator, and on this one with every set of instructions.

All of it has to give what the reference gives, to the last bit. The tests skip where the cross compilers or the emulator are
missing, with the command that installs them; under CI=true a skip is a failure (see conftest.py).
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from many import BatchProgram, batch_program, drawn_graphs, require_compiler
from strategies import random_inputs

import spikec
from spikec.backend import Golden
from spikec.backends.c.backend import CBackend
from spikec.backends.c.forms import Choices
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret
from spikec.ir.neuron import Program
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Pool, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType
from spikec.target import load_target
from support.tools import PACKAGES

ROOT = Path(__file__).resolve().parent.parent.parent
Tools = Callable[..., None]


class Machine(NamedTuple):
    """A processor that this computer is not: how to build for it and how to run what was built."""

    compiler: str
    flags: str
    emulator: str
    widening: str
    """The instruction that adds the high bytes of pairs of weights to sixteen-bit accumulators."""
    adding: str
    """The one that adds eight sixteen-bit numbers."""


MACHINES = {
    "aarch64": Machine("aarch64-linux-gnu-gcc", "-march=armv8-a", "qemu-aarch64", r"\bssra\s+v\d+\.8h", r"\badd\s+v\d+\.8h"),
    "armhf": Machine(
        "arm-linux-gnueabihf-gcc", "-march=armv7-a+neon -mfpu=neon", "qemu-arm", r"\bv(sra|shr)\.s16\s+q", r"\bvadd\.i16\s+q"
    ),
}
STRICT = ["-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
LIF: Program = parse_program(
    """neuron @lif(a) params(decay, threshold) state(v: i32 = 0) {
      v = clip(rtz(v * decay, 12) + (a << 6), 24)
      s = v > threshold
      v = select(s, 0, v)
      emit s
    }"""
)


# Every operation that loops over populations have in vectors, in lanes of 16 and of 32 bits.
IF: Program = parse_program(
    """neuron @if(a) params(threshold) state(v: i16 = 0) {
      v = clip(v + a, 15)
      s = v >= threshold
      v = select(s, 0, v)
      emit s
    }"""
)
NARROW: Program = parse_program(
    """neuron @narrow(a) params(p, q) state(v: i16 = 3, w: i16 = -2) {
      x = clip(a, 7)
      y = abs(x) - rtz(w, 2) + min(x, p) * 3
      z = wrap(v + y - max(-x, q), 9)
      fast = z > p and not (x != q) or w <= -7
      slow = z < q or y == 4 and z >= 9
      v = select(fast, x, z)
      w = clip((w >> 1) + (x << 1) + fast, 8)
      emit fast, slow
    }"""
)
WIDE: Program = parse_program(
    """neuron @wide(a) params(p, q) state(u: i32 = 5, v: i32 = 0, c: i32 = -9, r: i8 = 0) {
      u = clip(rtz(u * p, 12) + (a << 9), 24)
      c = clip((c * 7 >> 3) + (a << 20), 30)
      v = wrap((v * q >> 12) + rtz(u, 3) - abs(a) + (c >> 18), 23)
      quiet = r > 0
      s = not quiet and v > p * 50
      v = select(s, v - q * 20, v)
      r = select(s, 3, max(r - 1, 0))
      emit s
    }"""
)


def run(command: Iterable[str], folder: Path) -> bytes:
    """What a command prints; it must succeed."""
    words = list(command)
    done = subprocess.run(words, cwd=folder, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{(done.stderr + done.stdout).decode(errors='replace')[:4000]}"
    return done.stdout


# ------------------------------------------------------------------------------------------------------------- networks


class Nets:
    """Small networks that reach each hand-written kernel, with weights that are always the same."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)

    def weights(self, *shape: int, most: int = 127) -> Array:
        return self.rng.integers(-most, most + 1, shape).astype(np.int16)

    @staticmethod
    def lif(name: str, source: str, threshold: int = 9000, **more: Any) -> Neuron:
        params = {"decay": np.array(3900, np.int32), "threshold": np.array(threshold, np.int32)}
        return Neuron(name=name, inputs=(Ref(source),), program=LIF, params=params, **more)

    def dense(self, inputs: int, hidden: int, kind: str = "spike", threshold: int = 9000) -> Graph:
        """Rows of eight-bit weights into sixteen-bit accumulators, recurrent if not large; `graded` has values in its events."""
        given = TensorType("graded", (inputs,), "i16") if kind == "graded" else TensorType("spike", (inputs,), "i8")
        few = max(1, min(127, 30000 // (inputs + hidden)))
        recurrent = hidden < 200
        nodes: list[Node] = [
            Input(name="x", type=given, bounds=(-20, 100) if kind == "graded" else None),
            Dense(name="fc1", inputs=(Ref("x"),), weight=self.weights(hidden, inputs, most=few)),
            *([Dense(name="rec", inputs=(Ref("l1", delay=1),), weight=self.weights(hidden, hidden, most=few))] * recurrent),
            *([Add(name="sum", inputs=(Ref("fc1"), Ref("rec")))] * recurrent),
            self.lif("l1", "sum" if recurrent else "fc1", threshold),
            Dense(name="fc2", inputs=(Ref("l1"),), weight=self.weights(10, hidden, most=few), bias=np.full(10, 6, np.int32)),
            self.lif("l2", "fc2", lag=1),
            # A sum that is kept for three steps and read after one and after three.
            Dense(name="fc3", inputs=(Ref("l1"),), weight=self.weights(9, hidden, most=few)),
            Add(name="late", inputs=(Ref("fc3", delay=3), Ref("fc3", delay=1))),
            self.lif("l3", "late", 1000),
        ]
        return verify(Graph(f"dense{hidden}", "fixed", tuple(nodes), (("l2", Ref("l2")), ("l3", Ref("l3")))))

    def bytes(self, inputs: int, out: int) -> Graph:
        """Values of eight bits with and without a sign into sums of thirty-two, and a layer pruned in each of the patterns."""
        nodes: list[Node] = [
            Input(name="x", type=TensorType("graded", (inputs,), "i16"), bounds=(-128, 127)),
            Input(name="y", type=TensorType("graded", (inputs,), "i16"), bounds=(0, 255)),
            Input(name="z", type=TensorType("graded", (inputs,), "i16"), bounds=(0, 127)),
            *(Dense(name=f"f{x}", inputs=(Ref(x),), weight=self.weights(out, inputs)) for x in "xyz"),
            Add(name="sum", inputs=tuple(Ref(f"f{x}") for x in "xyz")),
            self.lif("l1", "sum", 90000),
        ]
        for width in (1, 8, 16, 32):
            kept = np.repeat(self.rng.random((-(-96 // width), out)) < 0.1, width, axis=0)[:96]
            name = f"pruned{width}"
            nodes += [
                Dense(name=name, inputs=(Ref("l1"),), weight=self.weights(96, out, most=99) * kept.astype(np.int16)),
                self.lif(f"l{name}", name, 900),
            ]
        return verify(Graph("bytes", "fixed", tuple(nodes), tuple((n.name, Ref(n.name)) for n in nodes if isinstance(n, Neuron))))

    def conv(self, channels: int, out: int, kernel: int, stride: int, padding: int, one: bool = False) -> Graph:
        """Channels last, a second convolution on top, and pooling; `one` axis of space instead of two."""
        axes = 1 if one else 2
        size = (9, 10)[:axes]
        nodes: list[Node] = [
            Input(name="x", type=TensorType("spike", (channels, *size), "i8")),
            Conv(
                name="c1",
                inputs=(Ref("x"),),
                weight=self.weights(out, channels, *(kernel,) * axes),
                padding=(padding,) * axes,
                stride=(stride,) * axes,
            ),
            self.lif("l1", "c1"),
            Conv(name="c2", inputs=(Ref("l1"),), weight=self.weights(24, out, *(3,) * axes, most=20), padding=(1,) * axes),
            self.lif("l2", "c2"),
        ]
        where = tuple((n + 2 * padding - kernel) // stride + 1 for n in size)
        if not one:
            nodes.append(Pool(name="p", inputs=(Ref("l2"),), mode="sum", kernel=(2, 2), stride=(1, 1)))
            where = tuple(n - 1 for n in where)
        flat = 24 * int(np.prod(where))
        nodes += [
            Reshape(name="flat", inputs=(Ref(nodes[-1].name),), shape=(flat,)),
            Dense(name="fc", inputs=(Ref("flat"),), weight=self.weights(10, flat, most=9)),
            self.lif("l3", "fc"),
        ]
        return verify(Graph("conv", "fixed", tuple(nodes), (("l3", Ref("l3")), ("l2", Ref("l2")))))

    def programs(self, hidden: int) -> Graph:
        """Populations of several times 64 neurons and a rest."""
        few = np.broadcast_to

        def params(p: int, q: int) -> dict[str, Array]:
            return {"p": self.rng.integers(0, p, hidden).astype(np.int32), "q": few(np.array(q, np.int32), ()).copy()}

        nodes: list[Node] = [
            Input(name="x", type=TensorType("spike", (40,), "i8")),
            Dense(name="fc1", inputs=(Ref("x"),), weight=self.weights(hidden, 40, most=60)),
            Neuron(name="if", inputs=(Ref("fc1"),), program=IF, params={"threshold": np.array(90, np.int32)}),
            Dense(name="fc2", inputs=(Ref("if"),), weight=self.weights(hidden, hidden, most=12)),
            Neuron(name="narrow", inputs=(Ref("fc2"),), program=NARROW, params=params(9, 2)),
            Dense(name="fc3", inputs=(Ref("narrow", "slow"),), weight=self.weights(hidden, hidden, most=25)),
            Neuron(name="wide", inputs=(Ref("fc3"),), program=WIDE, params=params(4096, 3000)),
        ]
        return verify(Graph("programs", "fixed", tuple(nodes), (("wide", Ref("wide")), ("narrow", Ref("narrow")))))

    def integrate_and_fire(self, channels: int, out: int, kernel: int, stride: int, padding: int) -> Graph:
        """Convolutions that scatter into membranes and into maps with room around, a pool between them, and two on one map."""
        nodes: list[Node] = [
            Input(name="x", type=TensorType("spike", (channels, 13, 12), "i8")),
            Conv(
                name="c1",
                inputs=(Ref("x"),),
                weight=self.weights(out, channels, kernel, kernel, most=60),
                padding=(padding, padding),
                stride=(stride, stride),
            ),
            Neuron(name="l1", inputs=(Ref("c1"),), program=IF, params={"threshold": np.array(70, np.int32)}),
        ]
        _, height, width = Graph("size", "fixed", tuple(nodes), ()).shape_of("c1")
        nodes += [
            Conv(name="c2", inputs=(Ref("l1"),), weight=self.weights(8, out, 3, 3, most=30), padding=(1, 1)),
            Conv(name="skip", inputs=(Ref("l1", delay=1),), weight=self.weights(8, out, 1, 1, most=30)),
            Add(name="both", inputs=(Ref("c2"), Ref("skip"))),
            self.lif("l2", "both", 4000),
        ]
        last = "l2"
        if height % 2 == 0 and width % 2 == 0:
            nodes.append(Pool(name="p", inputs=(Ref("l2"),), mode="sum", kernel=(2, 2)))
            last = "p"
        nodes += [
            Conv(name="c3", inputs=(Ref(last),), weight=self.weights(16, 8, 2, 3, most=9), padding=(0, 1)),
            Neuron(name="l3", inputs=(Ref("c3"),), program=IF, params={"threshold": np.array(20, np.int32)}),
        ]
        return verify(Graph("if", "fixed", tuple(nodes), (("l3", Ref("l3")),)))


def kernel_nets() -> list[Graph]:
    """Rows shorter than a vector, of every number of vectors that has code of its own, and of whole blocks with a rest."""
    nets = Nets()
    sizes = (1, 10, 16, 24, 40, 64, 100, 150, 272, 530)
    graphs = [nets.dense(inputs, hidden) for inputs, hidden in zip((7, 33, 64, 65, 40, 8, 130, 30, 20, 72), sizes, strict=True)]
    graphs += [nets.dense(21, 40, "graded"), nets.dense(70, 16, "graded")]
    graphs += [nets.dense(20, 150, threshold=-(1 << 23))]  # all fire, always
    graphs += [nets.conv(2, 8, 3, 2, 1), nets.conv(1, 16, 5, 1, 2), nets.conv(3, 20, 3, 1, 0), nets.conv(4, 32, 4, 3, 1)]
    graphs += [nets.conv(2, 8, 3, 2, 1, one=True), nets.conv(32, 34, 5, 2, 2)]
    graphs += [nets.programs(64), nets.programs(200)]
    graphs += [nets.dense(inputs, 70, "graded") for inputs in (1, 34)] + [nets.bytes(45, 70), nets.bytes(8, 16)]
    graphs += [nets.integrate_and_fire(*sizes) for sizes in ((2, 16, 5, 2, 1), (1, 8, 3, 1, 1), (3, 4, 4, 2, 2), (2, 5, 3, 1, 0))]
    return graphs


@pytest.fixture(scope="module")
def kernels() -> BatchProgram:
    return batch_program(kernel_nets(), 2, 9)


@pytest.fixture(scope="module")
def random_fixed() -> BatchProgram:
    return batch_program(drawn_graphs("fixed", 60, 7), 2, 6)


@pytest.fixture(scope="module")
def random_float() -> BatchProgram:
    return batch_program(drawn_graphs("float", 20, 8), 2, 6)


@pytest.fixture(scope="module")
def digits() -> tuple[Graph, Golden]:
    """The trained network of examples/digits as Loihi 2 gets it, and what the reference makes of some held-out digits."""
    import importlib.util
    import sys

    modules = {}
    for name in ("data", "model"):
        spec = importlib.util.spec_from_file_location(f"digits_{name}", ROOT / "examples" / "digits" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        modules[name] = sys.modules[f"digits_{name}"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    data = modules["data"]
    train, held_out = data.split()
    calibration = data.spikes(train.images[:200])
    example = calibration[:4].swapaxes(0, 1).astype(np.float32)
    build = spikec.compile(
        modules["model"].load(), example, time_axis=0, batch_axis=1, target="loihi2", calibrate=calibration, name="digits"
    )
    graph = build.graph()
    (source,) = graph.inputs
    inputs = {source.name: data.spikes(held_out.images[:40])}
    expected = interpret(graph, inputs, record=default_record(graph))
    assert graph.level == "placed" and all(values.any() for values in expected.outputs.values())
    return graph, Golden(inputs, expected)


# ------------------------------------------------------------------------------------------------------------------ Arm


def static(folder: Path, program: BatchProgram, compiler: str, flags: str, emulator: tuple[str, ...] = ()) -> None:
    """Build the program of many networks, run it, and compare all that it gives."""
    program.write(folder)
    run([*compiler.split(), *STRICT, *flags.split(), "-o", "driver", *program.compiled], folder)
    found = program.differences(run([*emulator, "./driver"], folder))
    assert found == [], f"{compiler} {flags}"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("nets", ["kernels", "random_fixed", "random_float"])
def test_arm_gives_the_same_bits(machine: str, nets: str, tools: Tools, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    compiler, flags, emulator, *_ = MACHINES[machine]
    tools(compiler, emulator)
    optimise = "-O3" if nets == "kernels" else "-O1"
    static(tmp_path, request.getfixturevalue(nets), compiler, f"{flags} {optimise} -static", (emulator,))


def test_the_dot_product_gives_the_same_bits(tools: Tools, tmp_path: Path) -> None:
    """Arm's instruction for four products of bytes, which a Raspberry Pi 5 has and a Pi 4 has not."""
    compiler, _, emulator, *_ = MACHINES["aarch64"]
    tools(compiler, emulator)
    nets = Nets()
    graphs = [nets.bytes(45, 70), nets.bytes(8, 16), nets.bytes(33, 130), nets.dense(34, 70, "graded")]
    program = batch_program(graphs, 2, 9, [Choices.of(load_target("rpi5"))] * len(graphs))
    static(tmp_path, program, compiler, "-march=armv8.2-a+dotprod -O2 -static", (emulator, "-cpu", "max"))
    listed = run(["aarch64-linux-gnu-objdump", "-d", "driver"], tmp_path).decode()
    assert re.search(r"\bsdot\s+v\d+\.4s", listed)


def test_values_of_seven_bits_take_the_dot_product_too(tools: Tools, tmp_path: Path) -> None:
    """They are bytes with a sign as well as without one."""
    compiler, _, emulator, *_ = MACHINES["aarch64"]
    tools(compiler, emulator)
    rng = np.random.default_rng(0)
    nodes = (
        Input(name="x", type=TensorType("graded", (45,), "i16"), bounds=(0, 127)),
        Dense(name="fc", inputs=(Ref("x"),), weight=rng.integers(-127, 128, (70, 45)).astype(np.int16)),
        Nets().lif("l", "fc", 9000),
    )
    graph = verify(Graph("seven", "fixed", nodes, (("l", Ref("l")),)))
    program = batch_program([graph], 2, 9, [Choices.of(load_target("rpi5"))])
    static(tmp_path, program, compiler, "-march=armv8.2-a+dotprod -O2 -static", (emulator, "-cpu", "max"))
    assert re.search(r"\bsdot\s+v\d+\.4s", run(["aarch64-linux-gnu-objdump", "-d", "driver"], tmp_path).decode())


@pytest.mark.parametrize("machine", MACHINES)
def test_clang_for_arm_gives_the_same_bits(machine: str, tools: Tools, tmp_path: Path, kernels: BatchProgram) -> None:
    compiler, flags, emulator, *_ = MACHINES[machine]
    tools("clang", compiler, emulator)  # clang links with what gcc brings
    own = flags.replace("+neon", "")
    static(tmp_path, kernels, f"clang --target={compiler.removesuffix('-gcc')}", f"{own} -O2 -static", (emulator,))


BOARDS = {
    "any 64-bit Arm": ("aarch64", "-march=armv8-a"),
    "Pi 5": ("aarch64", "-mcpu=cortex-a76"),
    "Pi 4": ("aarch64", "-mcpu=cortex-a72"),
    "Pi 3, Zero 2": ("aarch64", "-mcpu=cortex-a53"),
    "any 32-bit Arm with NEON": ("armhf", "-march=armv7-a+neon -mfpu=neon"),
    "Pi 3, Zero 2, 32 bits": ("armhf", "-mcpu=cortex-a53 -mfpu=neon-fp-armv8"),
}


@pytest.mark.parametrize("board", BOARDS)
def test_the_digits_run_on_arm(board: str, tools: Tools, tmp_path: Path, digits: tuple[Graph, Golden]) -> None:
    """The folder as it is emitted, cross-compiled with one command, passes its own check."""
    machine, flags = BOARDS[board]
    compiler, _, emulator, *_ = MACHINES[machine]
    tools(compiler, emulator)
    graph, golden = digits
    CBackend(None).emit(graph, tmp_path, golden)
    said = run(["make", "check", f"CC={compiler}", f"ARCH={flags}", "LDFLAGS=-static", f"RUN={emulator}"], tmp_path).decode()
    compared = re.search(r"ok: 40 samples, (\d+) values compared, 0 differ", said)
    # Spikes of three layers and the output in each step, and at the end the states: one number at least for each neuron.
    assert compared and int(compared[1]) >= 40 * (20 * (96 + 64 + 10 + 10) + 96 + 64 + 10), said


@pytest.mark.parametrize("machine", MACHINES)
def test_weights_in_a_file_of_their_own(machine: str, tools: Tools, tmp_path: Path) -> None:
    compiler, flags, emulator, *_ = MACHINES[machine]
    tools(compiler, emulator)
    nets = Nets()
    nodes = (
        Input(name="x", type=TensorType("spike", (1500,), "i8")),
        Dense(name="fc", inputs=(Ref("x"),), weight=nets.weights(1000, 1500)),
        nets.lif("l1", "fc"),
    )
    graph = verify(Graph("big", "fixed", nodes, (("l1", Ref("l1")),)))
    inputs = random_inputs(graph, 1, 4, 1)
    golden = Golden(inputs, interpret(graph, inputs, record=default_record(graph)))
    CBackend(None).emit(graph, tmp_path, golden)
    assert (tmp_path / "weights.bin").exists()
    command = ["make", "check", f"CC={compiler}", f"ARCH={flags}", "LDFLAGS=-static", f"RUN={emulator}"]
    assert b"ok: 1 samples" in run(command, tmp_path)


def assembly(folder: Path, graph: Graph, command: Iterable[str]) -> str:
    CBackend(None).emit(graph, folder)
    run([*command, *STRICT, "-fno-asynchronous-unwind-tables", "-S", "-o", "network.s", "network.c"], folder)
    return (folder / "network.s").read_text()


@pytest.mark.parametrize("machine", MACHINES)
def test_neon_is_used(machine: str, tools: Tools, tmp_path: Path) -> None:
    compiler, flags, _, widening, adding = MACHINES[machine]
    tools(compiler)
    nets = Nets()
    dense, conv = nets.dense(33, 150), nets.conv(2, 16, 3, 1, 1)
    command = [compiler, *flags.split()]
    # Without the compiler's own vectorising, what is left is the kernel's.
    written = [*command, "-O2", "-fno-tree-vectorize"]
    assert len(re.findall(widening, assembly(tmp_path, dense, written))) >= 8
    assert not re.search(widening, assembly(tmp_path, dense, [*written, "-DSPK_NO_SIMD"]))
    # Convolutions and neurons are left to the compiler, which has to find the vectors at the level that the Makefile asks for.
    if machine == "aarch64":  # and spikes are listed from the bits of sixty-four neurons
        assert "addp" in assembly(tmp_path, dense, written)
    text = assembly(tmp_path, conv, [*command, "-O3"])
    assert re.search(adding, text)
    assert re.search(r"\b(cmgt|cmge|cmhi|vcgt\.s|vcge\.s|vclt\.s|vcle\.s)", text), "the neurons' loops are not vectorised"


# ------------------------------------------------------------------------------------------------------- microcontrollers

CORTEX_M = {
    "cortex-m4": "-mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16",
    "cortex-m7": "-mcpu=cortex-m7 -mthumb -mfloat-abi=hard -mfpu=fpv5-d16",
}


@pytest.mark.parametrize("processor", CORTEX_M)
def test_the_core_is_a_library_for_a_microcontroller(
    processor: str, tools: Tools, tmp_path: Path, digits: tuple[Graph, Golden]
) -> None:
    """No operating system, no libc but memcpy and memset; and the very code built for it passes the check, under qemu's Cortex-A."""
    tools("arm-none-eabi-gcc", "arm-linux-gnueabihf-gcc", "qemu-arm")
    graph, golden = digits
    CBackend(None).emit(graph, tmp_path, golden)
    assert not (tmp_path / "weights.c").exists()
    flags = [*CORTEX_M[processor].split(), *STRICT, "-O2", "-ffreestanding", "-fno-short-enums"]
    run(["arm-none-eabi-gcc", *flags, "-c", "network.c"], tmp_path)
    run(["arm-none-eabi-ar", "rcs", "libnetwork.a", "network.o"], tmp_path)
    size = run(["arm-none-eabi-size", "-t", "libnetwork.a"], tmp_path).decode()
    text, data, bss = map(int, size.splitlines()[-1].split()[:3])
    assert data == bss == 0, f"the network is not reentrant:\n{size}"
    weights = sum(array.weight.size for array in graph.nodes if isinstance(array, Dense))
    assert text < weights + 16 * 1024, f"{processor}: {text} bytes for {weights} weights:\n{size}"
    needed = set(re.findall(r" U (\S+)", run(["arm-none-eabi-nm", "-u", "libnetwork.a"], tmp_path).decode()))
    # __aeabi_ is the compiler's own library (libgcc): arithmetic that the processor has no instruction for.
    assert {name for name in needed if not name.startswith("__aeabi_")} <= {"memcpy", "memset"}, f"{needed}\n{size}"
    firmware = """#include "network.h"
    void *memcpy(void *to, const void *from, size_t n) { char *t = to; const char *f = from; while (n--) { *t++ = *f++; } return to; }
    void *memset(void *to, int c, size_t n) { char *t = to; while (n--) { *t++ = (char)c; } return to; }
    static unsigned char memory[SPK_BYTES];
    void _start(void) {
      spk_net *net;
      uint32_t events[64], count;
      spk_in in[SPK_INPUTS] = {{0, 0, 0}};
      if (spk_init(memory, sizeof memory, &net) == SPK_OK) {
        for (;;) { (void)spk_step(net, in); (void)spk_read_events(net, 0, events, &count); }
      }
      for (;;) { }
    }
    """
    (tmp_path / "firmware.c").write_text(firmware)
    command = ["arm-none-eabi-gcc", *CORTEX_M[processor].split(), "-std=c99", "-O2", "-ffreestanding", "-fno-short-enums"]
    command += ["-fno-tree-loop-distribute-patterns", "-nostdlib", "-Wl,--fatal-warnings", "-o", "firmware.elf"]
    run([*command, "firmware.c", "-L.", "-lnetwork", "-lgcc"], tmp_path)
    # qemu's user mode has no Cortex-M, but Cortex-A runs its instructions: the linker only has to be kept from asking.
    run(["arm-none-eabi-objcopy", "--remove-section", ".ARM.attributes", "network.o", "m.o"], tmp_path)
    run(
        ["arm-linux-gnueabihf-gcc", "-std=c99", "-O1", "-static", "-Wl,-z,noexecstack", "-o", "m", "main.c", "stream.c", "m.o"],
        tmp_path,
    )
    said = run(["qemu-arm", "./m", "--check", "golden.txt"], tmp_path).decode()
    assert re.search(r"ok: 40 samples, \d+ values compared, 0 differ", said), f"{processor}\n{said}{size}"


# --------------------------------------------------------------------------------------------------------- this computer

X86 = {"SSE2": "-O2 -msse2", "AVX2": "-O3 -mavx2", "AVX-512": "-O3 -mavx512f -mavx512bw -mavx512vl"}


def here(flags: str) -> bool:
    """Whether this processor has the instructions that the flags ask for."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    have = set(re.findall(r"\w+", text))
    return all(flag[2:] in have for flag in flags.split() if flag.startswith("-m"))


SETS = {"native": "-O3 -march=native", "portable": "-O3 -DSPK_NO_SIMD", "portable-native": "-O3 -march=native -DSPK_NO_SIMD"}
if platform.machine() in ("x86_64", "AMD64"):
    SETS |= {name: flags for name, flags in X86.items() if here(flags)}


@pytest.mark.parametrize("instructions", SETS)
def test_every_set_of_instructions_gives_the_same_bits(instructions: str, kernels: BatchProgram, tmp_path: Path) -> None:
    require_compiler()
    static(tmp_path, kernels, "cc", SETS[instructions])


@pytest.mark.parametrize("instructions", SETS)
def test_clang_gives_the_same_bits(instructions: str, kernels: BatchProgram, tools: Tools, tmp_path: Path) -> None:
    tools("clang")
    static(tmp_path, kernels, "clang", SETS[instructions])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 only")
def test_any_extension_builds(tmp_path: Path) -> None:
    """Whatever this processor has: the code asks for each set of instructions that it uses."""
    require_compiler()
    CBackend(None).emit(Nets().dense(33, 150), tmp_path)
    for flags in ("-msse4.2", "-mpopcnt", "-mavx", "-mavx2 -mno-popcnt", "-mavx512f", "-mavx512bw", "-mavx512vbmi2 -mavx512bw"):
        run(["cc", *STRICT, "-O2", *flags.split(), "-c", "network.c"], tmp_path)


# ----------------------------------------------------------------------------------------------------------------- setup


def test_ci_installs_every_tool() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    table = text.split("TOOLS'\n")[1].split("\nTOOLS\n")[0].splitlines()
    packages = {word for line in table for word in line.split()[1:]}
    assert {word for names in PACKAGES.values() for word in names.split()} <= packages


def test_the_readme_says_how_to_cross_compile(tmp_path: Path) -> None:
    graph = Nets().dense(7, 3)
    CBackend(None).emit(graph, tmp_path)
    text = (tmp_path / "README.md").read_text()
    for _, flags, emulator, *_ in MACHINES.values():
        assert flags in text and f"RUN={emulator}" in text
