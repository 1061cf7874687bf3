"""The way onto a board, with stand-ins for Intel's extension: adapters that take two steps in, and give back 24 bits without a sign."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import native

from spikec.backend import load_backend
from spikec.backends.lava.environment import LavaEnvironment
from spikec.ir.graph import Graph
from spikec.ir.interpret import interpret
from spikec.ir.ops import Conv, Dense, Input, Neuron, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType
from spikec.ledger import Ledger
from spikec.passes.retime import Retime
from spikec.target import load_target

TARGET = load_target("loihi2")

FAKE = """
import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class PyToNxAdapter(AbstractProcess):
    def __init__(self, shape, num_message_bits):
        super().__init__(wait=2)
        self.inp, self.out = InPort(shape=shape), OutPort(shape=shape)


class NxToPyAdapter(AbstractProcess):
    def __init__(self, shape, num_message_bits):
        super().__init__(wait=0)
        self.inp, self.out = InPort(shape=shape), OutPort(shape=shape)


class Model(PyLoihiProcessModel):
    inp = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    out = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.line = []

    def run_spk(self):
        self.line.append(self.inp.recv())
        wait = self.proc_params["wait"]
        if wait:
            late = self.line[-1 - wait] if len(self.line) > wait else 0 * self.line[0]
            self.out.send(late)
        else:
            self.out.send(self.line[-1] & 0xFFFFFF)


@implements(proc=PyToNxAdapter, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class In(Model):
    pass


@implements(proc=NxToPyAdapter, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class Out(Model):
    pass
"""
SITE = '''
import importlib.abc, importlib.util, sys


class Extension(importlib.abc.MetaPathFinder):
    """lava.proc.embedded_io.spike is fakechip; the board's configuration is the simulation's."""

    def find_spec(self, name, path=None, target=None):
        if name not in ("lava.proc.embedded_io", "lava.proc.embedded_io.spike"):
            return None
        return importlib.util.spec_from_loader(name, self, is_package=name.endswith("io"))

    def create_module(self, spec):
        import lava.magma.core.run_configs as configs

        simulation = configs.Loihi2SimCfg
        configs.Loihi2HwCfg = lambda select_sub_proc_model: simulation(select_tag="fixed_pt")
        if spec.name.endswith("spike"):
            import fakechip

            return fakechip
        return None

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Extension())
'''


def lif(name: str, ref: Ref, program: str = "LIF", **params: Any) -> Neuron:
    init = params.pop("init", {})
    given = {"du": 4095, "dv": 410, "vth": 40, "bias_mant": 0, "bias_exp": 0} | params
    arrays = {key: np.asarray(value, np.int32) for key, value in given.items()}
    return Neuron(name=name, inputs=(ref,), program=native(program), params=arrays, init=init)


def net() -> Graph:
    """Biases, a prologue, a reset, a convolution, an initial state and two kinds of input."""
    rng = np.random.default_rng(0)

    def even(*shape: int) -> Any:
        return (2 * rng.integers(-20, 30, shape)).astype(np.int16)

    nodes = (
        Input(name="in", type=TensorType("spike", (1, 4, 4), "i8")),
        Input(name="more", type=TensorType("graded", (3,), "i16"), bounds=(-40, 60)),
        Conv(name="c", inputs=(Ref("in"),), weight=even(2, 1, 3, 3)),
        lif("l1", Ref("c"), bias_mant=np.array([300, -20]), init={"v": np.full((2, 2, 2), 900, np.int32)}),
        Reshape(name="flat", inputs=(Ref("l1"),), shape=(8,)),
        Dense(name="fc", inputs=(Ref("flat"),), weight=even(3, 8)),
        lif("l2", Ref("fc"), bias_mant=[777, -33, 0], dv=777, init={"u": np.arange(3, dtype=np.int32) * 900}, du=500),
        Dense(name="fc2", inputs=(Ref("more"),), weight=even(3, 3)),
        lif("l3", Ref("fc2"), "LIFReset", vth=500, interval=8, offset=3, bias_mant=[100, -3, 55], dv=50),
    )
    outputs = (("l1", Ref("l1")), ("l2", Ref("l2")), ("l3", Ref("l3")), ("sum", Ref("fc")))
    return verify(Retime(TARGET).run(verify(Graph("net", "fixed", nodes, outputs)), Ledger()))


def emitted(folder: Path, graph: Graph) -> Path:
    folder.mkdir()
    load_backend("lava", TARGET).emit(graph, folder)
    return folder


def run(lava: LavaEnvironment, package: Path, inputs: dict[str, Any], fake: Path | None) -> subprocess.CompletedProcess[str]:
    np.savez(package.parent / "in.npz", **inputs)
    command = [str(lava.python), str(package / "run.py"), "--hw", "--input", "in.npz", "--output", "out.npz"]
    environment = {**os.environ, "PYTHONPATH": str(fake) if fake else ""}
    return subprocess.run(command, cwd=package.parent, env=environment, capture_output=True, text=True, timeout=180)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "fakechip.py").write_text(FAKE)
    (folder / "sitecustomize.py").write_text(SITE)
    return folder


def test_the_chip_program_gives_the_models_steps(tmp_path: Path, fake: Path, lava_env: LavaEnvironment) -> None:
    """Input two steps late, everything held until then, resets moved, outputs with a sign and in the model's own steps."""
    graph = net()
    rng = np.random.default_rng(1)
    inputs = {"in": rng.integers(0, 2, (2, 15, 1, 4, 4)), "more": rng.integers(-40, 61, (2, 15, 3))}
    done = run(lava_env, emitted(tmp_path / "net", graph), inputs, fake)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = interpret(graph, inputs).outputs
    with np.load(tmp_path / "out.npz") as found:
        assert set(found.files) == {f"output.{name}" for name in wanted}
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[f"output.{name}"], values, name)
            assert values.any()
    assert wanted["sum"].min() < 0 and wanted["l3"].sum() > 3


def test_without_the_extension_it_says_so(tmp_path: Path, lava_env: LavaEnvironment) -> None:
    inputs = {"in": np.zeros((1, 3, 1, 4, 4), int), "more": np.zeros((1, 3, 3), int)}
    done = run(lava_env, emitted(tmp_path / "net", net()), inputs, None)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: --hw needs Intel's extension lava-loihi, which is not installed here")
    assert "Traceback" not in done.stderr


def test_what_the_chip_has_not(tmp_path: Path, fake: Path, lava_env: LavaEnvironment) -> None:
    """A reset interval that is no power of two, and a neuron that exists in simulation only."""
    source = Input(name="in", type=TensorType("spike", (2,), "i8"))
    fc = Dense(name="fc", inputs=(Ref("in"),), weight=np.full((2, 2), 40, np.int16))
    odd = lif("l", Ref("fc"), "LIFReset", interval=6, offset=0)
    own = parse_program("neuron @own(a) state(v: i32 = 0) { v = clip(v + a, 20) s = v > 99 v = select(s, v - 99, v) emit s }")
    cases = {"powers of two": odd, "needs microcode": Neuron(name="l", inputs=(Ref("fc"),), program=own)}
    for message, neuron in cases.items():
        graph = verify(Retime(TARGET).run(verify(Graph("g", "fixed", (source, fc, neuron), (("l", Ref("l")),))), Ledger()))
        folder = tmp_path / message.replace(" ", "_")
        folder.mkdir()
        done = run(lava_env, emitted(folder / "net", graph), {"in": np.zeros((1, 3, 2), int)}, fake)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
