"""Lists of connections whose targets do not fit the first cache: rows are added side by side."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from many import differences, require_compiler

from spikec.backend import Golden
from spikec.backends.c.backend import CBackend
from spikec.backends.c.forms import Choices
from spikec.backends.c.generate import generate
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret
from spikec.ir.ops import Input, Neuron, Ref, Sparse
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import TensorType

LIF = "neuron @n(a) state(v: i32 = 0) {\nv = clip(v + a, 20)\ns = v > 90\nv = select(s, 0, v)\nemit s\n}"
#: Connections of the first sources; the others have 100.
LENGTHS = (0, 1, 31, 32, 33, 63, 64, 65, 500, 1, 0, 200, 32, 96)


def net(targets: int, graded: bool, sources: int = 60) -> Graph:
    rng = np.random.default_rng(targets)
    dense = np.zeros((targets, sources), np.int16)
    for source in range(sources):
        length = LENGTHS[source] if source < len(LENGTHS) else 100
        dense[rng.choice(targets, length, replace=False), source] = rng.integers(1, 100, length) * rng.choice([-1, 1], length)
    present = dense != 0
    target, source = np.nonzero(present)
    indptr = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int64)
    nodes = (
        Input(name="x", type=TensorType("graded", (sources,), "i8") if graded else TensorType("spike", (sources,), "i8")),
        Sparse(name="w", inputs=(Ref("x"),), indptr=indptr, indices=source, weight=dense[target, source], fan_in=sources),
        Neuron(name="n", inputs=(Ref("w"),), program=parse_program(LIF)),
    )
    return verify(Graph("far", "fixed", nodes, (("n", Ref("n")),)))


@pytest.mark.parametrize("graded", [False, True])
def test_rows_side_by_side(graded: bool, tmp_path: Path) -> None:
    """Any number of events, rows of any length; the state holds every sum."""
    require_compiler()
    graph = net(20_000, graded)
    text = generate(graph).source
    assert "#define SPK_ROWS 16u" in text
    rng = np.random.default_rng(3)
    counts = [0, 1, 2, 15, 16, 17, 31, 33, 60]
    x = np.zeros((1, len(counts), 60), np.int8)
    for step, count in enumerate(counts):
        x[0, step, rng.choice(60, count, replace=False)] = rng.integers(-3, 4, count) if graded else 1
    wanted = interpret(graph, {"x": x}, record=default_record(graph))
    assert wanted.outputs["n"].any()
    backend = CBackend(None)
    assert differences(wanted, backend.run(graph, {"x": x}, record=default_record(graph))) == []
    backend.emit(graph, tmp_path, Golden({"x": x}, wanted))
    for flags in ("-O2 -fsanitize=address,undefined -fno-sanitize-recover=all", "-O3 -DSPK_NO_SIMD"):
        subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
        done = subprocess.run(["make", "check", f"CFLAGS={flags}"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{flags}: {done.stderr}{done.stdout}"


def test_rows_are_added_one_after_the_other_where_accumulators_fit_the_first_cache() -> None:
    for choices in (Choices(form="list"), Choices(vector=0, form="list")):
        targets = 20_000 if choices.vector == 0 else 4_000
        text = generate(net(targets, False), choices=choices).source
        assert "spk_sparse.h" in text and "SPK_ROWS" not in text
