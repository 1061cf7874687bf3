"""Recorders: host processes that keep what passes by and write it to a file at their last step.

Lava's own way, a RingBuffer sink that is read with `Var.get()`, moves one number at a time, 15 microseconds each; a
recorder's file takes milliseconds. Recorders only listen: the network computes the same without them.
"""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort, PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort, RefPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.conv.models import PyConvModelFixed
from lava.proc.conv.process import Conv
from lava.proc.dense.models import PyDelayDenseModelBitAcc, PyDenseModelBitAcc
from lava.proc.dense.process import DelayDense, Dense
from lava.proc.sparse.models import PyDelaySparseModelBitAcc, PySparseModelBitAcc
from lava.proc.sparse.process import DelaySparse, Sparse


class _Counts:
    """Writes how many steps are done into the file `counter`, which others may read at any time; one recorder is told to.

    Two 64-bit integers: the steps done, those of the runs `before` included, and how many there are.
    """

    def __init__(self, proc_params):
        super().__init__(proc_params)
        path = proc_params.get("counter")
        self.counter = np.memmap(path, np.int64, "r+", shape=(2,)) if path else None
        self.before = proc_params["before"] if path else 0

    def count(self):
        """At the end of a step."""
        if self.counter is not None:
            self.counter[0] = self.before + self.time_step


class Recorder(AbstractProcess):
    """Keeps what arrives at `a_in` in steps 1 to `steps`: an array (steps, size) of int32 in the file `path`.

    `link_in` and `link_out` tie parts of a network together that have no connection: Lava runs only what is connected.
    """

    def __init__(self, size, steps, path):
        super().__init__(size=size, steps=steps, path=path)
        self.a_in = InPort(shape=(size,))
        self.link_in = InPort(shape=(1,))
        self.link_out = OutPort(shape=(1,))


@implements(proc=Recorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class RecorderModel(_Counts, PyLoihiProcessModel):
    """Runs on the host's CPU."""

    a_in = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    link_in = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    link_out = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.kept = np.zeros((proc_params["steps"], proc_params["size"]), np.int32)

    def run_spk(self):
        """Keep this step; after the last one write the file."""
        self.kept[self.time_step - 1] = self.a_in.recv()
        self.link_out.send(np.zeros(1, np.int32))
        self.link_in.recv()
        self.count()
        if self.time_step == len(self.kept):
            np.save(self.proc_params["path"], self.kept)


class StateRecorder(AbstractProcess):
    """Keeps a Var as it stands after steps `first` to `last` (counted from 1): an array (last - first + 1, size)."""

    def __init__(self, var, first, last, path):
        super().__init__(first=first, last=last, path=path)
        self.state = RefPort(shape=var.shape)
        self.state.connect_var(var)
        self.link_in = InPort(shape=(1,))
        self.link_out = OutPort(shape=(1,))


@implements(proc=StateRecorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class StateRecorderModel(_Counts, PyLoihiProcessModel):
    """Runs on the host's CPU; reads in the management phase, when the step's spikes have been sent."""

    state = LavaPyType(PyRefPort.VEC_DENSE, np.int32)
    link_in = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    link_out = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.kept = []

    def run_spk(self):
        """Nothing but the links."""
        self.link_out.send(np.zeros(1, np.int32))
        self.link_in.recv()
        self.count()

    def post_guard(self):
        """Whether this step has a management phase."""
        return self.proc_params["first"] <= self.time_step <= self.proc_params["last"]

    def run_post_mgmt(self):
        """Keep the Var; after the last step write the file."""
        self.kept.append(np.array(self.state.read(), np.int32))
        if self.time_step == self.proc_params["last"]:
            np.save(self.proc_params["path"], np.array(self.kept))


# The simulator's synapses, which also write the weights that they really use into a file, so that run.py can compare them
# with what was meant. Lava prepares weights (clips, truncates) at the first step, in the process that runs the model.


class _Reports:
    def run_spk(self):
        """Lava's own step, then the report after the first one."""
        super().run_spk()
        path = self.proc_params.get("report")
        if self.time_step == 1 and path:
            arrays = {}
            for name in ("weights", "weight", "delays"):
                matrix = getattr(self, name, None)
                if matrix is None:
                    continue
                if isinstance(matrix, np.ndarray):
                    arrays[name] = matrix
                else:
                    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
                    arrays[name] = np.stack([rows, matrix.indices, matrix.data])
            np.savez(path, **arrays)


@implements(proc=Dense, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class ReportingDense(_Reports, PyDenseModelBitAcc):
    """Lava's bit-accurate Dense."""


@implements(proc=DelayDense, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class ReportingDelayDense(_Reports, PyDelayDenseModelBitAcc):
    """Lava's bit-accurate DelayDense."""


@implements(proc=Sparse, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class ReportingSparse(_Reports, PySparseModelBitAcc):
    """Lava's bit-accurate Sparse."""


@implements(proc=DelaySparse, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class ReportingDelaySparse(_Reports, PyDelaySparseModelBitAcc):
    """Lava's bit-accurate DelaySparse."""


@implements(proc=Conv, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class ReportingConv(_Reports, PyConvModelFixed):
    """Lava's fixed-point Conv."""


#: For `exception_proc_model_map` of Loihi2SimCfg.
REPORTING = {
    Conv: ReportingConv,
    Dense: ReportingDense,
    DelayDense: ReportingDelayDense,
    Sparse: ReportingSparse,
    DelaySparse: ReportingDelaySparse,
}
