"""Real-valued inputs as spikes, through an encoder that the user names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.ops import Input
from spikec.ir.types import Array, TensorType
from spikec.ledger import Ledger
from spikec.passes.groups import measure
from spikec.runtime.encoders import EncodingError, parse_encoder


@dataclass(frozen=True)
class EncodeInputs:
    """Inputs of numbers take spikes instead; runners encode the data. Float level, approximate, always asked for.

    encode: an encoder, such as `rate`, `latency` or `delta:threshold=0.1`; every input that is not spikes goes through it.
    """

    encode: str = ""
    calibrate: Mapping[str, Array] | None = None
    labels: Array | None = None
    name: ClassVar[str] = "encode-inputs"
    levels: ClassVar[tuple[str, ...]] = ("float",)
    #: Options that ask for this pass.
    asked_by: ClassVar[tuple[str, ...]] = ("encode",)

    def run(self, graph: Graph, ledger: Ledger) -> Graph:
        """The graph with spikes for inputs. Raises CompileError SPK001 for an encoder that does not exist or has nothing to do."""
        try:
            name, _ = parse_encoder(self.encode)
        except EncodingError as error:
            raise CompileError("SPK001", f"--encode {self.encode}: {error}") from None
        real = [node.name for node in graph.inputs if node.type.kind != "spike"]
        if not real:
            raise CompileError("SPK001", f"--encode {self.encode}: every input takes spikes already")
        signed = name in ("delta", "level_crossing")

        def encoded(node: Input) -> Input:
            type_ = TensorType("graded" if signed else "spike", node.type.shape, node.type.dtype)
            ledger.record(node, "approximation", f"the data go through the encoder {self.encode}", asked=f"--encode {self.encode}")
            return replace(node, type=type_, encode=self.encode, bounds=(-1, 1) if signed else None)

        after = graph.with_nodes(encoded(n) if isinstance(n, Input) and n.name in real else n for n in graph.nodes)
        measure(graph, after, self.calibrate, self.labels, ledger)
        return after
