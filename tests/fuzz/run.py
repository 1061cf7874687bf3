"""`make fuzz`: coverage-guided fuzzing of the emitted C with libFuzzer under the address and undefined-behaviour sanitizers.

    python tests/fuzz/run.py [--seconds 600] [--replay] [--only api,stream,text]

Three targets: `api`, the interface of spk.h over several networks and their weights (api.c); `stream` and `text`, the readers of the
program around a network (reader.c). All run side by side for so many seconds each. What reaches new code is merged into
tests/corpus, which the test suite replays; an input that fails is left in build/fuzz, and the exit status is 1. --replay runs the
kept corpus only.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from spikec.backends.c.backend import CBackend, folder_files  # noqa: E402 - the path comes first
from spikec.backends.c.generate import generate  # noqa: E402 - the path comes first
from spikec.backends.c.parts import kernel_files  # noqa: E402 - the path comes first
from spikec.ir.graph import Graph  # noqa: E402 - the path comes first
from spikec.ir.ops import Add, Conv, Dense, Input, Neuron, Node, Pool, Ref, Reshape, Sparse  # noqa: E402 - the path comes first
from spikec.ir.rules import verify  # noqa: E402 - the path comes first
from spikec.ir.text import parse_program  # noqa: E402 - the path comes first
from spikec.ir.types import TensorType  # noqa: E402 - the path comes first
from spikec.target import load_target  # noqa: E402 - the path comes first

CORPUS = ROOT / "tests" / "corpus"
TARGETS = ("api", "stream", "text")
FLAGS = ["-std=gnu11", "-O1", "-g", "-ffp-contract=off", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
#: The longest input of each target, in bytes.
LENGTH = {"api": 2000, "stream": 600, "text": 3000}

LIF = parse_program(
    "neuron @lif(a) state(v: i32 = 0) {\nv = clip(rtz(v * 3900, 12) + a, 24)\ns = v > 90\nv = select(s, 0, v)\nemit s\n}"
)
PERIODIC = parse_program(
    "neuron @periodic(a) state(v: i16 = 3) {\nv = clip(select(rem(t, 7) == 0, 0, v) + a, 14)\ns = v > 40\nemit s, v\n}"
)
REAL = parse_program("neuron @real(a) state(v = 0) {\nv = 0.5 * v + a\ns = v > 1.0\nv = select(s, 0, v)\nemit s, v\n}")


def networks() -> list[Graph]:
    """Every kernel at least once: rows, channels, events of windows, lists of connections, delays, payloads, floats."""
    rng = np.random.default_rng(6)

    def small(*shape: int) -> np.ndarray:
        return rng.integers(-40, 60, shape).astype(np.int8)

    def spike(*shape: int) -> TensorType:
        return TensorType("spike", shape, "i8")

    def neuron(name: str, source: str, program: object = LIF) -> Neuron:
        return Neuron(name=name, inputs=(Ref(source),), program=program)

    recurrent: list[Node] = [
        Input(name="x", type=spike(33)),
        Dense(name="fc", inputs=(Ref("x"),), weight=small(48, 33)),
        Dense(name="rec", inputs=(Ref("l1", delay=2),), weight=small(48, 48)),
        Add(name="sum", inputs=(Ref("fc"), Ref("rec"))),
        neuron("l1", "sum"),
        Dense(name="out", inputs=(Ref("l1"),), weight=small(5, 48), delay=rng.integers(0, 4, (5, 48))),
        neuron("l2", "out", PERIODIC),
    ]
    pools: list[Node] = [
        Input(name="x", type=spike(2, 8, 8)),
        Conv(name="c1", inputs=(Ref("x"),), weight=small(4, 2, 3, 3), padding=(1, 1), stride=(2, 2)),
        neuron("l1", "c1"),
        Pool(name="p", inputs=(Ref("l1"),), mode="sum", kernel=(2, 2), stride=(2, 2)),
        Conv(name="c2", inputs=(Ref("p"),), weight=small(4, 2, 2, 2), groups=2, padding=(1, 1)),
        neuron("l2", "c2"),
        Pool(name="m", inputs=(Ref("l2"),), mode="max", kernel=(2, 2), stride=(1, 1)),
        Reshape(name="flat", inputs=(Ref("m"),), shape=(16,)),
        Dense(name="out", inputs=(Ref("flat"),), weight=small(3, 16)),
        neuron("l3", "out"),
    ]
    rows = np.sort(rng.integers(0, 20, 90))
    graded: list[Node] = [
        Input(name="x", type=TensorType("graded", (24,), "i16"), bounds=(-20, 100)),
        Input(name="y", type=TensorType("value", (24,), "i32"), bounds=(-1000, 1000)),
        Sparse(
            name="sp", inputs=(Ref("x"),), weight=small(90), indices=rng.integers(0, 24, 90).astype(np.int32),
            indptr=np.searchsorted(rows, np.arange(21)).astype(np.int32), fan_in=24,
        ),
        Dense(name="fc", inputs=(Ref("y"),), weight=small(20, 24)),
        Add(name="sum", inputs=(Ref("sp"), Ref("fc"))),
        neuron("l1", "sum"),
    ]  # fmt: skip
    real: list[Node] = [
        Input(name="x", type=TensorType("value", (6, 6), "f32")),
        Reshape(name="flat", inputs=(Ref("x"),), shape=(36,)),
        Dense(name="fc", inputs=(Ref("flat"),), weight=(small(9, 36) / 64).astype(np.float32)),
        neuron("l1", "fc", REAL),
    ]
    found = [("recurrent", recurrent, "l2"), ("pools", pools, "l3"), ("graded", graded, "l1")]
    fixed = [verify(Graph(name, "fixed", tuple(nodes), (("out", Ref(out)),))) for name, nodes, out in found]
    return [*fixed, verify(Graph("real", "float", tuple(real), (("out", Ref("l1")),))), large()]


def large() -> Graph:
    """Enough weights for a file of their own, with lists of connections among them: the dangerous ones."""
    rng = np.random.default_rng(7)
    rows = np.sort(rng.integers(0, 700, 3000))
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (600,), "i8")),
        Dense(name="fc", inputs=(Ref("x"),), weight=rng.integers(-40, 60, (700, 600)).astype(np.int8)),
        Sparse(
            name="rec", inputs=(Ref("l1", delay=1),), weight=rng.integers(-40, 60, 3000).astype(np.int8),
            indices=rng.integers(0, 700, 3000).astype(np.int32), indptr=np.searchsorted(rows, np.arange(701)).astype(np.int32),
            fan_in=700,
        ),
        Add(name="sum", inputs=(Ref("fc"), Ref("rec"))),
        Neuron(name="l1", inputs=(Ref("sum"),), program=LIF),
    ]  # fmt: skip
    return verify(Graph("large", "fixed", tuple(nodes), (("out", Ref("l1")),)))


def camera() -> Graph:
    """What the readers feed: 2 x 6 x 5 events, a step of 1 ms."""
    rng = np.random.default_rng(3)
    nodes: list[Node] = [
        Input(name="x", type=TensorType("graded", (2, 6, 5), "i16"), bounds=(0, 20)),
        Conv(name="c1", inputs=(Ref("x"),), weight=rng.integers(-40, 60, (3, 2, 3, 3)).astype(np.int8), padding=(1, 1)),
        Neuron(name="l1", inputs=(Ref("c1"),), program=PERIODIC),
    ]
    return verify(Graph("camera", "fixed", tuple(nodes), (("out", Ref("l1")), ("v", Ref("l1", "v"))), dt=1e-3))


def build_api(folder: Path) -> Path:
    """All networks in one program; the weights of the last one are an array that can be written to."""
    folder.mkdir(parents=True, exist_ok=True)
    sources: dict[str, str | bytes] = dict(kernel_files())
    sources["spk.h"] = (files("spikec.backends.c") / "folder" / "spk.h").read_text(encoding="utf-8")
    names = []
    made = [generate(graph, prefix=f"n{number}_") for number, graph in enumerate(networks())]
    for network in made:
        sources[f"{network.prefix}network.h"] = network.header
        sources[f"{network.prefix}network.c"] = network.source
        names.append(f"{network.prefix}network.c")
    binary, prefix = made[-1].binary, made[-1].prefix
    assert binary is not None and all(network.binary is None for network in made[:-1])
    rows = ",".join(map(str, binary))
    sources["table.c"] = (
        '#include <stddef.h>\n#include "spk.h"\n'
        + "".join(f"extern const spk_model {n.prefix}network;\n" for n in made)
        + f"const spk_model *const fuzz_models[] = {{{', '.join(f'&{n.prefix}network' for n in made)}}};\n"
        + f"const unsigned fuzz_models_count = {len(made)}, fuzz_weights_model = {len(made) - 1};\n"
        + f"const size_t fuzz_weights_size = {len(binary)};\n"
        + f"unsigned char {prefix}weights[{len(binary)}] __attribute__((aligned(64))) = {{{rows}}};\n"
        + f"unsigned char *const fuzz_weights = {prefix}weights;\n"
    )
    for name, content in sources.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    shutil.copy(Path(__file__).with_name("api.c"), folder)
    return _compile(folder, [*names, "table.c", "api.c"])


def build_reader(folder: Path, name: str) -> Path:
    """One of the two readers around a network."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = camera()
    for file, content in folder_files(graph, generate(graph)).items():
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    CBackend(load_target("host")).emit(graph, folder)
    shutil.copy(Path(__file__).with_name("reader.c"), folder)
    return _compile(folder, ["network.c", "reader.c"], *(["-DFUZZ_STREAM"] if name == "stream" else []))


def _compile(folder: Path, sources: list[str], *more: str) -> Path:
    subprocess.run(["clang", *FLAGS, *more, "-I.", "-o", "fuzz", *sources], cwd=folder, check=True)
    return folder / "fuzz"


def unpack(name: str, folder: Path) -> Path:
    """The kept inputs of a target, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = CORPUS / f"{name}.zip"
    if path.exists():
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    return folder


def pack(name: str, folder: Path) -> int:
    """Keep a folder of inputs, named by their content; how many there are."""
    CORPUS.mkdir(exist_ok=True)
    found = {hashlib.sha256(path.read_bytes()).hexdigest()[:16]: path.read_bytes() for path in folder.iterdir()}
    with zipfile.ZipFile(CORPUS / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for key, content in sorted(found.items()):
            archive.writestr(zipfile.ZipInfo(key), content, zipfile.ZIP_DEFLATED)
    return len(found)


def build(name: str, folder: Path) -> Path:
    """The fuzzer of a target."""
    return build_api(folder / name) if name == "api" else build_reader(folder / name, name)


def arguments(name: str, program: Path, *more: str) -> list[str]:
    """A call of a fuzzer."""
    dictionary = [] if name == "api" else [f"-dict={Path(__file__).with_name('words.dict')}"]
    return [str(program), f"-max_len={LENGTH[name]}", f"-artifact_prefix={program.parent}/", "-timeout=10", *dictionary, *more]


def main() -> int:
    """Fuzz, or replay the corpus."""
    parser = argparse.ArgumentParser(description="fuzz the emitted C")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--only", default=",".join(TARGETS))
    options = parser.parse_args()
    names = options.only.split(",")
    place = ROOT / "build" / "fuzz"
    programs = {name: build(name, place) for name in names}
    running = {}
    for name, program in programs.items():
        kept, new = unpack(name, place / name / "kept"), place / name / "corpus"
        new.mkdir(exist_ok=True)
        limit = (
            ["-runs=0", str(kept)] if options.replay else [f"-max_total_time={options.seconds}", "-reload=0", str(new), str(kept)]
        )
        with (place / name / "log").open("w") as log:
            running[name] = subprocess.Popen(arguments(name, program, *limit), stderr=log, stdout=log)
    failed = []
    for name, process in running.items():
        status = process.wait()
        lines = (place / name / "log").read_text(errors="replace").splitlines()
        told = [line for line in lines if "cov:" in line][-1:] + [
            line for line in lines if "ERROR" in line or line.startswith("Done")
        ]
        print(f"{name}: {'failed' if status else 'ok'}: {'; '.join(told)}")
        if status:
            failed.append(name)
            print(f"  see {place / name / 'log'}; the input is beside it")
        elif not options.replay:
            merged = place / name / "merged"
            shutil.rmtree(merged, ignore_errors=True)
            merged.mkdir()
            folders = [str(place / name / part) for part in ("merged", "kept", "corpus")]
            subprocess.run(arguments(name, programs[name], "-merge=1", *folders), check=True, capture_output=True)
            print(f"  {pack(name, merged)} inputs in tests/corpus/{name}.zip")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
