"""The C backend: the folder it writes, the library it loads, and what it refuses."""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from many import all_wires, batch_program, differences, drawn_graphs, require_compiler
from strategies import random_inputs

from spikec.backend import Golden, load_backend
from spikec.backends.c import library
from spikec.backends.c.backend import CBackend, folder_files, library_sources
from spikec.backends.c.generate import generate
from spikec.backends.c.parts import Network
from spikec.diagnostics import CompileError
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret
from spikec.ir.neuron import Program
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Pool, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_graph, parse_program
from spikec.ir.types import DTYPES, Array, TensorType

RNG = np.random.default_rng(0)
LIF: Program = parse_program(
    """neuron @lif(a) params(decay, threshold) state(v: i32 = 0) {
      v = clip(rtz(v * decay, 12) + (a << 6), 24)
      s = v > threshold
      v = select(s, 0, v)
      emit s
    }"""
)


@pytest.fixture(autouse=True)
def _compiler() -> None:
    require_compiler()


@pytest.fixture
def backend() -> CBackend:
    return CBackend(None)


def lif(name: str, source: str, **more: Any) -> Neuron:
    params = {"decay": np.array(3900, np.int32), "threshold": np.array(4000, np.int32)}
    return Neuron(name=name, inputs=(Ref(source),), program=LIF, params=params, **more)


def weights(*shape: int) -> Array:
    """Loihi's even 8-bit weights: one bit more than int8 until the common factor of 2 is taken out."""
    return (RNG.integers(-128, 128, shape) * 2).astype(np.int16)


def dense_net(hidden: int = 40) -> Graph:
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (30,), "i8")),
        Dense(name="fc1", inputs=(Ref("x"),), weight=weights(hidden, 30), bias=np.full(hidden, 6, np.int32)),
        Dense(name="rec", inputs=(Ref("l1", delay=1),), weight=weights(hidden, hidden)),
        Add(name="sum", inputs=(Ref("fc1"), Ref("rec"))),
        lif("l1", "sum"),
        Dense(name="fc2", inputs=(Ref("l1"),), weight=weights(10, hidden)),
        lif("l2", "fc2", lag=1),
    ]
    return verify(Graph("dense", "fixed", tuple(nodes), (("l2", Ref("l2")),), dt=1e-3))


def conv_net() -> Graph:
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (2, 12, 12), "i8")),
        Conv(name="c1", inputs=(Ref("x"),), weight=weights(8, 2, 3, 3), padding=(1, 1), stride=(2, 2)),
        lif("l1", "c1"),
        Conv(name="c2", inputs=(Ref("l1"),), weight=weights(8, 4, 3, 3), padding=(1, 1), groups=2),
        lif("l2", "c2"),
        Pool(name="p", inputs=(Ref("l2"),), mode="sum", kernel=(2, 2), stride=(1, 1)),
        Reshape(name="flat", inputs=(Ref("p"),), shape=(200,)),
        Dense(name="fc", inputs=(Ref("flat"),), weight=weights(10, 200)),
        lif("l3", "fc"),
    ]
    return verify(Graph("conv", "fixed", tuple(nodes), (("l3", Ref("l3")), ("l2", Ref("l2")))))


def late_net() -> Graph:
    """A convolution whose connections have delays."""
    nodes: tuple[Node, ...] = (
        Input(name="x", type=TensorType("spike", (2, 8, 8), "i8")),
        Conv(name="c", inputs=(Ref("x"),), weight=weights(6, 2, 3, 3), padding=(1, 1), delay=RNG.integers(0, 4, (6, 2, 3, 3))),
        lif("l1", "c"),
    )
    return verify(Graph("late", "fixed", nodes, (("l1", Ref("l1")),)))


def row_net() -> Graph:
    """Connections with delays: whole rows arrive."""
    nodes: tuple[Node, ...] = (
        Input(name="x", type=TensorType("spike", (40,), "i8")),
        Dense(name="fc", inputs=(Ref("x"),), weight=weights(64, 40), delay=RNG.integers(0, 4, (64, 40))),
        lif("l1", "fc"),
        Dense(name="out", inputs=(Ref("l1"),), weight=weights(30, 64), delay=np.resize([0, 3], (30, 64))),
        lif("l2", "out"),
    )
    return verify(Graph("rows", "fixed", nodes, (("l2", Ref("l2")),)))


def float_net() -> Graph:
    program = parse_program(
        """neuron @leaky(a) params(beta, theta) state(v = 0.0) {
          v = beta * v + a
          s = v > theta
          v = select(s, 0.0, v)
          emit s, v
        }"""
    )
    weight = (RNG.integers(-8, 9, (20, 30)) / 8).astype(np.float32)
    params = {"beta": np.full(20, 0.5, np.float32), "theta": np.array(np.inf, np.float32)}
    params["theta"] = np.where(np.arange(20) % 3 == 0, np.inf, 1.0).astype(np.float32)
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (30,), "f32")),
        Dense(name="fc", inputs=(Ref("x"),), weight=weight),
        Neuron(name="l1", inputs=(Ref("fc"),), program=program, params=params),
    ]
    return verify(Graph("leaky", "float", tuple(nodes), (("l1", Ref("l1")), ("v", Ref("l1", "v")))))


def golden(graph: Graph, batch: int = 3, steps: int = 12) -> Golden:
    inputs = random_inputs(graph, batch, steps, 1)
    return Golden(inputs, interpret(graph, inputs, record=default_record(graph)))


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False)


NETS = {"dense": dense_net, "conv": conv_net, "float": float_net}


# ----------------------------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize("net", NETS)
def test_the_folder_builds_checks_and_survives_the_sanitizers(net: str, backend: CBackend, tmp_path: Path) -> None:
    graph = NETS[net]()
    backend.emit(graph, tmp_path, golden(graph))
    for goal in ("all", "check", "lib", "sanitize"):
        done = make(tmp_path, goal)
        assert done.returncode == 0, done.stderr + done.stdout
    done = make(tmp_path, "check")
    compared = re.search(r"ok: 3 samples, (\d+) values compared, 0 differ", done.stdout)
    assert compared
    size = sum(port_size for port_size in (graph.types[n.name][0][1].size for n in graph.neurons))
    assert int(compared[1]) > 3 * 12 * size


@pytest.mark.parametrize("net", NETS)
def test_clang_builds_it_without_a_warning(net: str, backend: CBackend, tmp_path: Path, tools: Callable[..., None]) -> None:
    tools("clang")
    graph = NETS[net]()
    backend.emit(graph, tmp_path, golden(graph))
    done = make(tmp_path, "check", "CC=clang")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("net", NETS)
def test_other_optimisation_levels_give_the_same(net: str, backend: CBackend, tmp_path: Path) -> None:
    graph = NETS[net]()
    backend.emit(graph, tmp_path, golden(graph))
    for flags in ("-O0", "-O2 -march=native", "-Os -funsigned-char"):
        make(tmp_path, "clean")
        done = make(tmp_path, "check", f"CFLAGS={flags}")
        assert done.returncode == 0, f"{flags}: {done.stderr}{done.stdout}"


@pytest.mark.parametrize("net", NETS)
def test_the_same_graph_gives_the_same_bytes(net: str, backend: CBackend, tmp_path: Path) -> None:
    graph = NETS[net]()
    contents = []
    for number in range(2):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        backend.emit(graph, folder, golden(graph))
        contents.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
        # Another object, as another process would build it.
        from spikec.ir.text import print_graph

        graph = parse_graph(*print_graph(graph))
    assert contents[0] == contents[1]
    assert set(contents[0]) >= {"spk.h", "network.c", "network.h", "main.c", "host.c", "Makefile", "README.md", "golden.txt"}
    for name, data in contents[0].items():
        assert str(tmp_path).encode() not in data, name


def test_a_damaged_golden_vector_is_found(backend: CBackend, tmp_path: Path) -> None:
    graph = dense_net()
    backend.emit(graph, tmp_path, golden(graph))
    path = tmp_path / "golden.txt"
    text = path.read_text()
    assert make(tmp_path, "check").returncode == 0
    cases = {
        "a missing spike": re.sub(r"(out l2(?: \d+)*) \d+\n", r"\1\n", text, count=1),
        "a changed state": re.sub(r"(state l1\.v) -?\d+ ", r"\1 77777 ", text, count=1),
        "a missing input event": re.sub(r"(in x(?: \d+)*) \d+\n", r"\1\n", text, count=1),
        "cut off before anything is compared": text[: text.index("port")].replace("out", "#"),
        "an unknown port": text.replace("port l1", "port l7", 1),
        "an element out of range": text.replace("in x", "in x 30", 1),
        "another format": text.replace("spk 1", "spk 2", 1),
    }
    for name, damaged in cases.items():
        assert damaged != text, name
        path.write_text(damaged)
        done = make(tmp_path, "check")
        assert done.returncode != 0, name
    path.write_text(cases["a missing spike"])
    assert re.search(r"golden\.txt:\d+: sample 0, step \d+, l2\[\d+\]: 1, expected 0", make(tmp_path, "check").stderr)


@pytest.mark.parametrize(
    ("net", "file", "before", "after"),
    [
        ("dense", "network.c", "_weight, event, count)", "_weight, event, count / 2)"),
        ("dense", "spk_input.h", "count += value[i] != 0;", "count += value[i] == 0;"),
        ("dense", "spk_simd.h", "(uint16_t)(128u * count)", "(uint16_t)(127u * count)"),
        ("dense", "spk_vector.h", "((x >> 31) & mask), n)", "((x >> 31) & mask), n - 1)"),
        ("dense", "spk_vector.h", "pair[k] = spk_pair32(m[2 * k], m[2 * k + 1])", "pair[k] = spk_pair32(m[2 * k], m[2 * k])"),
        ("rows", "spk_late.h", "from[i] + k * SPK_IN", "from[i]"),
        ("rows", "spk_late.h", "counts[step]++] = (SPK_INDEX)r", "counts[now]++] = (SPK_INDEX)r"),
        ("late", "spk_conv.h", "ty / SPK_SH >= SPK_HO", "ty / SPK_SH >= SPK_HO - 1"),
        ("conv", "spk_convgroup.h", "(j * SPK_TAPS + k) * SPK_RUN", "j * SPK_TAPS * SPK_RUN"),
        ("conv", "spk_pool.h", "iy < y0 + SPK_KH", "iy < y0 + 1"),
        ("conv", "spk_multiply.h", "half[2u * j] + half[2u * j + 1u]", "half[2u * j] + half[2u * j]"),
        ("conv", "spk_product.h", "n += four != 0", "n += four > 1"),
    ],
)
def test_a_damaged_kernel_is_found(net: str, file: str, before: str, after: str, backend: CBackend, tmp_path: Path) -> None:
    graph = {**NETS, "late": late_net, "rows": row_net}[net]()
    backend.emit(graph, tmp_path, golden(graph))
    path = tmp_path / file
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    done = make(tmp_path, "check", "WARN=")
    assert done.returncode != 0
    assert "FAILED" in done.stdout, done.stderr


def test_another_abi_is_refused_at_build_time(backend: CBackend, tmp_path: Path) -> None:
    backend.emit(dense_net(), tmp_path)
    header = tmp_path / "spk.h"
    header.write_text(header.read_text().replace("#define SPK_ABI 2", "#define SPK_ABI 3"))
    done = make(tmp_path)
    assert done.returncode != 0
    assert "check_abi" in done.stderr


def test_main_prints_what_it_would_check(backend: CBackend, tmp_path: Path) -> None:
    graph = dense_net()
    expected = golden(graph)
    backend.emit(graph, tmp_path, expected)
    assert make(tmp_path).returncode == 0
    text = (tmp_path / "golden.txt").read_text()
    for arguments, data in ((["golden.txt"], None), ([], text)):
        done = subprocess.run(["./network", *arguments], cwd=tmp_path, input=data, capture_output=True, text=True, check=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("out l2")]
        fired = [np.flatnonzero(row) for sample in expected.expected.outputs["l2"] for row in sample]
        lag = 1  # raw steps: the first one of each sample comes before the model's step 0
        shown = [lines[s * (12 + lag) + lag + t] for s in range(3) for t in range(12)]
        assert shown == [" ".join(["out l2", *map(str, row)]).strip() if row.size else "out l2" for row in fired]


def test_nothing_is_needed_but_memcpy_and_memset(backend: CBackend, tmp_path: Path) -> None:
    for net in NETS.values():
        folder = tmp_path / net.__name__
        folder.mkdir()
        backend.emit(net(), folder)
        command = ["cc", "-std=c99", "-O2", "-fno-pie", "-c", "network.c", "-o", "network.o"]
        subprocess.run(command, cwd=folder, check=True)
        listed = subprocess.run(["nm", "-u", "network.o"], cwd=folder, capture_output=True, text=True, check=True).stdout
        needed = set(re.findall(r"U (\S+)", listed)) - {"_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
        assert needed <= {"memcpy", "memset"}
        # No writable data either: the network is reentrant.
        sections = subprocess.run(["nm", "network.o"], cwd=folder, capture_output=True, text=True, check=True).stdout
        assert not re.findall(r" [bBD] (\S+)", sections)


@pytest.mark.parametrize("embed", ["incbin", "array"])
def test_large_weights_are_a_binary_file(embed: str, backend: CBackend, tmp_path: Path) -> None:
    big = RNG.integers(-127, 128, (1000, 1500)).astype(np.int8)
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (1500,), "i8")),
        Dense(name="fc", inputs=(Ref("x"),), weight=big),
        lif("l1", "fc"),
    ]
    graph = verify(Graph("big", "fixed", tuple(nodes), (("l1", Ref("l1")),)))
    backend.emit(graph, tmp_path, golden(graph, 1, 4))
    rows = 1500 * 1008  # filled up to whole vectors of 16; behind the last row is room for one vector more
    assert rows <= (tmp_path / "weights.bin").stat().st_size <= rows + 64
    assert (tmp_path / "network.c").stat().st_size < 100_000
    done = make(tmp_path, "check", f"EMBED={embed}")
    assert done.returncode == 0, done.stderr
    if embed == "incbin":
        inputs = random_inputs(graph, 2, 5, 3)
        assert differences(interpret(graph, inputs), backend.run(graph, inputs)) == []


# ---------------------------------------------------------------------------------------------------------- the library


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("steps", [0, 1, 9])
def test_every_wire_and_state_equals_the_reference(net: str, steps: int, backend: CBackend) -> None:
    graph = NETS[net]()
    inputs = random_inputs(graph, 70, steps, 5)  # more than one chunk
    seen: list[tuple[int, int]] = []
    for record in ((), default_record(graph), all_wires(graph)):
        found = backend.run(graph, inputs, record=record, progress=lambda done, total: seen.append((done, total)))
        assert differences(interpret(graph, inputs, record=record), found) == []
    assert seen[-1] == (70, 70)


def test_accumulators_and_weights_are_as_narrow_as_proven() -> None:
    text = generate(dense_net()).source
    assert "#define spk_fc1_weight (spk_numbers_int8 + 0u)" in text
    assert "int16_t shared_int16" in text and "spk_at_x_sum" in text
    assert "x_fc1" not in text  # added up in the same accumulators
    assert "spk_mul_rtz32" in text
    assert "int64_t" not in text.split("struct spk_state")[1].split("spk_step")[0].replace("uint64_t count", "")


def test_unsigned_parameters_lie_among_signed_ones(backend: CBackend) -> None:
    """Both take two bytes, and one array's room behind its last vector is the other."""
    text = (
        "neuron @p(a) params(k, m) state(v: i32 = 0) {\nv = wrap(v + a * k + m, 30)\ns = v > 90000\nv = select(s, 0, v)\nemit s\n}"
    )
    rng = np.random.default_rng(0)
    params = {"k": rng.integers(0, 65536, 37).astype(np.int32), "m": rng.integers(-32768, 32768, 37).astype(np.int32)}
    nodes = (
        Input(name="x", type=TensorType("graded", (37,), "i8")),
        Neuron(name="n", inputs=(Ref("x"),), program=parse_program(text), params=params),
    )
    graph = verify(Graph("two", "fixed", nodes, (("n", Ref("n")),)))
    source = generate(graph).source
    assert source.count("((const uint16_t *)(spk_numbers_int16 + ") == 1
    inputs = random_inputs(graph, 5, 40, 3)
    expected = interpret(graph, inputs)
    assert expected.outputs["n"].any()
    assert differences(expected, backend.run(graph, inputs)) == []


def test_a_comparison_of_equal_products_is_no_warning(backend: CBackend, tmp_path: Path) -> None:
    program = parse_program("neuron @p(a) state(v: i64 = 3) {\ns = a * v == v * a\nv = wrap(v + a, 40)\nemit s\n}")
    nodes = (
        Input(name="x", type=TensorType("graded", (3,), "i16")),
        Neuron(name="n", inputs=(Ref("x"),), program=program),
    )
    graph = verify(Graph("equal", "fixed", nodes, (("n", Ref("n")),)))
    backend.emit(graph, tmp_path, golden(graph))
    done = make(tmp_path, "check")
    assert "0 differ" in done.stdout, done.stderr


def test_feature_maps_lie_channels_last() -> None:
    text = generate(conv_net()).source
    assert text.count("#define SPK_OUT_LAST 1") == 1
    assert text.count("#define SPK_UNIT 8u") == 1  # the second convolution has groups: its map has the same order
    assert text.count("#define SPK_IN_LAST 1") == 2  # the second convolution and the pool


VECTORISED = {
    "fixed": ("spk_l1_update", r"\bpsrad\b", r"\bpcmpgtd\b", r"\bpackssdw\b", r"\bpmovmskb\b"),
    "float": ("spk_l1_update", r"\bmulps\b", r"\baddps\b", r"\bcmp(n?l[te]|gt|ge)?ps\b"),
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads the assembly of x86-64; test_c_arm.py reads Arm's")
@pytest.mark.parametrize(("compiler", "level"), [("gcc", "fixed"), ("clang", "fixed"), ("gcc", "float")])
def test_neuron_loops_are_vectorised(
    compiler: str, level: str, tools: Callable[..., None], backend: CBackend, tmp_path: Path
) -> None:
    """Of the population's function nothing is left that works on one neuron at a time: arithmetic, comparison, and list."""
    tools(compiler)
    backend.emit(dense_net(128) if level == "fixed" else float_net(), tmp_path)
    function, *wanted = VECTORISED[level]
    command = [compiler, "-std=c99", "-O3", "-fno-inline-functions-called-once", "-S", "network.c", "-o", "-"]
    text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    for instruction in wanted:
        assert re.search(instruction, text), f"{function}: no {instruction}"
    if level == "fixed":  # the compiler alone would keep a list one event at a time
        plain = subprocess.run([*command, "-DSPK_NO_SIMD"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert not re.search(wanted[-1], plain)


def test_the_library_is_kept_by_content(backend: CBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEC_CACHE_DIR", str(tmp_path))
    graph = dense_net(11)
    inputs = random_inputs(graph, 1, 3, 0)
    sources, names = library_sources(folder_files(graph, generate(graph)))
    first = library.build_library(sources, names)
    stamp = first.stat().st_mtime_ns
    assert library.build_library(sources, names) == first
    assert first.stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "c").iterdir()] == [first.name]
    other = library.build_library({**sources, "network.c": str(sources["network.c"]) + "\n"}, names)
    assert other != first
    assert backend.run(graph, inputs).outputs["l2"].shape == (1, 3, 10)


def test_no_compiler_is_said_with_the_remedy(backend: CBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEC_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install gcc" in str(backend.available())
    graph = dense_net(9)
    with pytest.raises(CompileError, match="no C compiler was found") as caught:
        backend.run(graph, random_inputs(graph, 1, 2, 0))
    assert caught.value.code == "SPK501"
    assert "apt-get install gcc" in str(caught.value.diagnostics[0].fix)
    backend.emit(graph, tmp_path)  # writing the folder needs none
    assert (tmp_path / "Makefile").exists()


def test_a_compiler_that_fails(backend: CBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'this compiler is broken' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("SPIKEC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(broken))
    graph = dense_net(8)
    with pytest.raises(CompileError, match="this compiler is broken") as caught:
        backend.run(graph, random_inputs(graph, 1, 2, 0))
    assert caught.value.code == "SPK501"
    assert list((tmp_path / "cache" / "c").iterdir()) == []
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler" in str(backend.available())


def test_a_cache_that_cannot_be_written(backend: CBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPIKEC_CACHE_DIR", str(tmp_path / "file"))
    graph = dense_net(7)
    with pytest.raises(CompileError, match="SPIKEC_CACHE_DIR") as caught:
        backend.run(graph, random_inputs(graph, 1, 2, 0))
    assert caught.value.code == "SPK501"


def test_bad_input_data(backend: CBackend) -> None:
    graph = dense_net()
    good = random_inputs(graph, 1, 3, 0)["x"].astype(np.int64)
    assert good.any()
    for bad, code in ((good * 2, "SPK007"), (good * 0.5, "SPK007"), (good * 1000, "SPK007"), (good[..., :5], "SPK006")):
        with pytest.raises(CompileError) as caught:
            backend.run(graph, {"x": bad})
        assert caught.value.code == code
    with pytest.raises(CompileError) as caught:
        backend.run(graph, {"x": good}, record=["nothing"])
    assert caught.value.code == "SPK010"


def test_the_backend_is_in_the_table() -> None:
    assert isinstance(load_backend("c", None), CBackend)


# -------------------------------------------------------------------------------------------------------- the interface


class _In(ctypes.Structure):
    _fields_ = [("index", ctypes.c_void_p), ("value", ctypes.c_void_p), ("count", ctypes.c_uint32)]


class Net:
    """The interface of spk.h, called from outside as any program would."""

    def __init__(self, graph: Graph, observe: tuple[str, ...] = ()) -> None:
        self.network: Network = generate(graph, observe=observe)
        sources, names = library_sources(folder_files(graph, self.network))
        self.lib = ctypes.CDLL(str(library.build_library(sources, names)))
        self.lib.spk_size.restype = ctypes.c_size_t
        self.memory = ctypes.create_string_buffer(self.lib.spk_size() + 7)
        self.net = ctypes.c_void_p()
        where = ctypes.addressof(self.memory) + 5  # of no alignment
        assert self.lib.spk_init(ctypes.c_void_p(where), ctypes.c_size_t(self.lib.spk_size()), ctypes.byref(self.net)) == 0

    def step(self, index: list[int] | None = None, value: Array | None = None, count: int | None = None) -> int:
        events = None if index is None else np.array(index, np.uint32)
        given = _In(
            None if events is None else events.ctypes.data,
            None if value is None else value.ctypes.data,
            (len(index) if index is not None else 0) if count is None else count,
        )
        return int(self.lib.spk_step(self.net, ctypes.byref(given)))

    def events(self, port: int) -> list[int]:
        found = np.zeros(self.network.ports[port].size, np.uint32)
        count = ctypes.c_uint32()
        assert self.lib.spk_read_events(self.net, port, ctypes.c_void_p(found.ctypes.data), ctypes.byref(count)) == 0
        return [int(n) for n in found[: count.value]]

    def state(self, number: int) -> Array:
        port = self.network.states[number]
        found = np.zeros(port.size, DTYPES[port.api])
        assert self.lib.spk_read_state(self.net, number, ctypes.c_void_p(found.ctypes.data)) == 0
        return found

    def counters(self) -> dict[str, int]:
        result = {}
        for number, name in enumerate(self.network.counters):
            value = ctypes.c_uint64()
            assert self.lib.spk_read_counter(self.net, number, ctypes.byref(value)) == 0
            result[name] = value.value
        return result


def test_events_arrays_and_nothing_say_the_same() -> None:
    graph = conv_net()
    inputs = random_inputs(graph, 1, 10, 2)
    want = interpret(graph, inputs, record=default_record(graph))
    by_events, by_array = Net(graph), Net(graph)
    flat = inputs["x"].reshape(10, -1)
    for t in range(10):
        index = [int(i) for i in np.flatnonzero(flat[t])]
        assert by_events.step(index) == 0
        assert by_array.step(value=np.ascontiguousarray(flat[t], np.int8)) == 0
        for net in (by_events, by_array):
            for number, name in ((0, "l3"), (1, "l2")):
                assert net.events(number) == list(np.flatnonzero(want.outputs[name][0, t]))
    counted = by_events.counters()
    assert counted == by_array.counters()
    assert counted["l2 spikes"] == want.outputs["l2"].sum()
    assert counted["c1 events"] == flat.sum()
    assert counted["fc operations"] == 10 * counted["fc events"]
    assert (by_events.state(0) == want.states["l1"]["v"].ravel()).all()
    assert by_events.step() == 0  # silence
    by_events.lib.spk_reset(by_events.net)
    assert set(by_events.counters().values()) == {0}
    assert not by_events.state(0).any()


def test_bad_events_are_refused_and_change_nothing() -> None:
    net = Net(dense_net())
    assert net.step([1, 4, 29]) == 0
    before = bytes(net.memory)
    assert net.step([30]) == 3
    assert net.step([5, 5]) == 3
    assert net.step([5, 4]) == 3
    assert net.step(list(range(30)), count=31) == 3
    assert net.step([1], np.array([2], np.int8)) == 4
    assert net.step(value=np.full(30, -1, np.int8)) == 4
    assert bytes(net.memory) == before
    assert net.lib.spk_read(net.net, 99, None) == 2
    assert net.lib.spk_read_state(net.net, 99, None) == 2
    assert net.lib.spk_read_counter(net.net, 99, None) == 2
    small = ctypes.c_void_p()
    assert net.lib.spk_init(ctypes.c_void_p(ctypes.addressof(net.memory)), ctypes.c_size_t(8), ctypes.byref(small)) == 1
    assert net.lib.spk_init(None, ctypes.c_size_t(1 << 20), ctypes.byref(small)) == 1
    assert net.step([1, 4, 29]) == 0  # and it goes on


def test_bounds_of_graded_events_are_checked() -> None:
    nodes: list[Node] = [
        Input(name="x", type=TensorType("graded", (4,), "i16"), bounds=(0, 50)),
        Dense(name="fc", inputs=(Ref("x"),), weight=weights(3, 4)),
        lif("l1", "fc"),
    ]
    net = Net(verify(Graph("g", "fixed", tuple(nodes), (("l1", Ref("l1")),))))
    assert net.step([0, 2], np.array([50, 0], np.int16)) == 0
    assert net.counters()["fc events"] == 4  # values are multiplied in groups of four
    assert net.step([1], np.array([0], np.int16)) == 0
    assert net.counters()["fc events"] == 4  # and a group of zeros is none
    assert net.step([0], np.array([51], np.int16)) == 4
    assert net.step([0], np.array([-1], np.int16)) == 4
    assert net.step([0, 1, 2, 3]) == 0


def test_instances_do_not_share_anything() -> None:
    graph = dense_net()
    left, right = Net(graph), Net(graph)
    inputs = random_inputs(graph, 2, 8, 4)
    want = interpret(graph, inputs)
    for t in range(9):
        for sample, net in enumerate((left, right)):
            assert net.step(None if t == 8 else [int(i) for i in np.flatnonzero(inputs["x"][sample, t])]) == 0
            if t >= 1:
                assert net.events(0) == list(np.flatnonzero(want.outputs["l2"][sample, t - 1]))


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            """sir 1
            neuron @p(a) { s = exp(a) > 1.0
              emit s }
            graph @g level=float { %x = input : value<3>
              %n = neuron @p(%x) : spike<3>
              output %n }""",
            "%n: the C backend does not compile @p: exp of anything but parameters",
        ),
        (
            """sir 1
            graph @g level=float { %x = input : value<3, i32>
              %n = dense(%x) weight=[[1.0, 2.0, 0.5]] : value<1, f64>
              output %n }""",
            "%x: the C backend does not compile an integer (i32) in a graph of floats",
        ),
    ],
)
def test_what_is_refused_is_named(text: str, message: str, backend: CBackend, tmp_path: Path) -> None:
    graph = parse_graph(text)
    found = list(backend.check(graph))
    assert [d.code for d in found] == ["SPK502"] * len(found)
    assert message in [d.message for d in found]
    with pytest.raises(CompileError, match="SPK502"):
        backend.emit(graph, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------- random networks, sanitized


@pytest.mark.parametrize("level", ["fixed", "float"])
def test_random_networks_under_the_sanitizers(level: str, tmp_path: Path) -> None:
    program = batch_program(drawn_graphs(level, 40, 99), 2, 6)
    program.write(tmp_path)
    command = ["cc", "-std=c99", "-O1", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([*command, "-o", "driver", *program.compiled], cwd=tmp_path, check=True)
    done = subprocess.run(["./driver"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[:4000]
    assert program.differences(done.stdout) == []


def test_the_makefile_and_the_library_agree_on_flags() -> None:
    text = (files("spikec.backends.c") / "folder" / "Makefile").read_text(encoding="utf-8")
    for flag in ("-std=c99", "-ffp-contract=off", "-O3"):
        assert flag in text
        assert flag in library.FLAGS


def test_a_late_population_of_four_builds_without_warnings(backend: CBackend, tmp_path: Path) -> None:
    """Its buffer has as many elements as the clearing has bytes, which gcc takes for a slip."""
    program = parse_program("neuron @late(x) params(k) state(v = 0) {\nv = v + x\ns = v > k\nv = select(s, 0, v)\nemit s, v\n}")
    population = Neuron(name="l", inputs=(Ref("x"),), program=program, params={"k": np.float32(1)}, start=2)
    nodes = (Input(name="x", type=TensorType("value", (4,), "f32")), population)
    graph = verify(Graph("late", "float", nodes, (("s", Ref("l")), ("v", Ref("l", "v")))))
    backend.emit(graph, tmp_path)
    done = make(tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [4, 16, 24])
def test_sums_of_earlier_steps_are_not_overwritten(size: int, backend: CBackend) -> None:
    """A kernel that writes whole vectors of accumulators must leave the step before alone, which lies behind them in the ring."""
    rng = np.random.default_rng(1)
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (30,), "i8")),
        Dense(name="fc", inputs=(Ref("x"),), weight=rng.integers(-9, 10, (size, 30)).astype(np.int8)),
        Neuron(
            name="l", inputs=(Ref("fc", delay=1),),
            program=parse_program("neuron @n(a) state(v: i32 = 0) {\nv = a\ns = a < 0\nemit s\n}"),
        ),
        Neuron(name="m", inputs=(Ref("fc", delay=2),), program=parse_program("neuron @late(a) {\ns = a > 3\nemit s\n}")),
    ]  # fmt: skip
    graph = verify(Graph("ring", "fixed", tuple(nodes), (("l", Ref("l")), ("m", Ref("m")))))
    x = {"x": (rng.random((2, 20, 30)) < 0.3).astype(np.int8)}
    assert interpret(graph, x).outputs["l"].any() and interpret(graph, x).outputs["m"].any()
    assert differences(interpret(graph, x), backend.run(graph, x)) == []
