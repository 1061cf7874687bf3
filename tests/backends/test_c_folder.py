"""What the folder offers beside the network: a program for streams of events, builds for boards, deployment, an encoder, checks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from many import require_compiler
from strategies import random_inputs

from spikec.backend import Golden
from spikec.backends.c import assembly
from spikec.backends.c.backend import CBackend
from spikec.ir.graph import Graph
from spikec.ir.interpret import default_record, interpret
from spikec.ir.ops import Conv, Dense, Input, Neuron, Node, Ref, Reshape
from spikec.ir.rules import verify
from spikec.ir.text import parse_program
from spikec.ir.types import Array, TensorType
from spikec.runtime.encoders import rate
from spikec.target import load_target

LIF = parse_program(
    "neuron @p(a) state(v: i32 = 0) {\nv = clip(rtz(v * 3900, 12) + a, 24)\ns = v > 90\nv = select(s, 0, v)\nemit s\n}"
)
Tools = Callable[..., None]


@pytest.fixture(autouse=True)
def _compiler() -> None:
    require_compiler()


def camera(graded: bool = False, lag: int = 1) -> Graph:
    """2 x 6 x 5 events, a convolution, four outputs, a step of 1 ms."""
    rng = np.random.default_rng(3)
    given = TensorType("graded", (2, 6, 5), "i16") if graded else TensorType("spike", (2, 6, 5), "i8")
    nodes: list[Node] = [
        Input(name="x", type=given, bounds=(0, 50) if graded else None),
        Conv(name="c1", inputs=(Ref("x"),), weight=rng.integers(-40, 60, (3, 2, 3, 3)).astype(np.int8), padding=(1, 1)),
        Neuron(name="l1", inputs=(Ref("c1"),), program=LIF),
        Reshape(name="flat", inputs=(Ref("l1"),), shape=(90,)),
        Dense(name="fc", inputs=(Ref("flat", delay=lag),), weight=rng.integers(-40, 60, (4, 90)).astype(np.int8)),
        Neuron(name="l2", inputs=(Ref("fc"),), program=LIF, lag=lag, start=lag),
    ]
    return verify(Graph("camera", "fixed", tuple(nodes), (("out", Ref("l2")),), dt=1e-3))


def emitted(graph: Graph, folder: Path, target: str = "host", samples: int = 2) -> tuple[dict[str, Array], Golden]:
    inputs = random_inputs(graph, samples, 12, 1)
    golden = Golden(inputs, interpret(graph, inputs, record=default_record(graph)))
    CBackend(load_target(target)).emit(graph, folder, golden)
    return inputs, golden


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )


def network(folder: Path, *arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["./network", *arguments], cwd=folder, capture_output=True, input=data, timeout=60, check=False)


# --------------------------------------------------------------------------------------------------------------- streams


def events(x: Array, step_us: int = 1000) -> list[tuple[int, int, int, int]]:
    """The events of one sample (T, 2, H, W): rising times within their step, in no order of place, repeated as often as counted."""
    rng = np.random.default_rng(0)
    found = []
    for t, frame in enumerate(x):
        where = [tuple(int(i) for i in at) for at in np.argwhere(frame) for _ in range(int(frame[tuple(at)]))]
        rng.shuffle(where)
        times = np.sort(rng.integers(0, step_us, len(where))) + t * step_us
        found += [(int(when), xx, yy, p) for when, (p, yy, xx) in zip(times, where, strict=True)]
    return found


def shown(text: bytes, steps: int, size: int) -> Array:
    found = np.zeros((steps, size), np.int64)
    for line in text.decode().splitlines():
        step, name, *elements = line.split()
        assert name == "out"
        found[int(step), [int(e) for e in elements]] = 1
    return found


@pytest.mark.parametrize("graded", [False, True])
def test_a_stream_of_events_gives_the_steps_of_the_model(graded: bool, tmp_path: Path) -> None:
    graph = camera(graded)
    inputs, _ = emitted(graph, tmp_path)
    assert make(tmp_path, "check").returncode == 0
    x = inputs["x"][0]
    if graded:  # counts of events, three at most, so that the file stays short
        x = np.minimum(np.abs(x), 3)
    wanted = interpret(graph, {"x": x[None]}).outputs["out"][0]
    assert wanted.any()
    rows = events(x)
    steps = max(t for t, *_ in rows) // 1000 + 1
    texts = {
        "address": "".join(f"{t} {(p * 6 + y) * 5 + x}\n" for t, x, y, p in rows),
        "camera": "# a comment\n\n" + "".join(f"{t}, {x},{y}\t{p}\r\n" for t, x, y, p in rows)[:-2],
    }
    binary = {
        "address": b"".join(np.array([t, (p * 6 + y) * 5 + x], "<u4").tobytes() for t, x, y, p in rows),
        "camera": b"".join(np.array([t, x | (y | p << 15) << 16], "<u4").tobytes() for t, x, y, p in rows),
    }
    for form, options in (("address", []), ("camera", ["--shape", "2,6,5"])):
        (tmp_path / "events").write_text(texts[form])
        runs = [
            network(tmp_path, "--events", "--start", "0", *options, "events"),
            network(tmp_path, "--events", "--start", "0", *options, data=texts[form].encode()),
            network(tmp_path, "--events", "--start", "0", "--binary", *options, data=binary[form]),
            network(tmp_path, "--events", "--start", "0", "--steps", "12", "--step-us", "1000", *options, "events"),
        ]
        for done in runs:
            assert done.returncode == 0, done.stderr
            assert np.array_equal(shown(done.stdout, steps, 4), wanted[:steps])
    # Time begins with the first event, wherever the camera's clock stands.
    later = "".join(f"{t + 987_654_000 - rows[0][0]} {(p * 6 + y) * 5 + x}\n" for t, x, y, p in rows)
    early = "".join(f"{t - rows[0][0]} {(p * 6 + y) * 5 + x}\n" for t, x, y, p in rows)
    assert network(tmp_path, "--events", data=later.encode()).stdout == network(tmp_path, "--events", data=early.encode()).stdout
    assert network(tmp_path, "--events", data=b"").stdout == b""


@pytest.mark.parametrize(
    ("data", "options", "message", "status"),
    [
        (b"0 60\n", [], b"standard input:1: an address is out of range", 1),
        (b"0 4294967296\n", [], b"an address is out of range", 1),
        (b"0 99999999999999999999999\n", [], b"not an event", 1),
        (b"5 1\n4 1\n", [], b"standard input:2: the time falls", 1),
        (b"0 1 2\n", [], b"an event is t address", 1),
        (b"0 1 2 3 4 5\n", [], b"not an event", 1),
        (b"zero one\n", [], b"not an event", 1),
        (b"-1 1\n", [], b"not an event", 1),
        (b"0 5 0 0\n", ["--shape", "2,6,5"], b"outside of --shape", 1),
        (b"0 0 0 2\n", ["--shape", "2,6,5"], b"outside of --shape", 1),
        (b"\0\0\0\0\1\0\0", ["--binary"], b"ends within a record", 1),
        (b"\0\0\0\0\xff\0\0\0", ["--binary"], b"an address is out of range", 1),
        (b"1" * 70000, [], b"a line is too long", 1),
        (b"", ["--shape", "2,6,6"], b"the input has 60 elements, --shape 72", 2),
        (b"", ["--input", "y"], b"there is no input of that name", 2),
        (b"", ["--step-us", "0"], b"give --step-us", 2),
        (b"", ["--steps", "many"], b"--steps takes a whole number", 2),
        (b"", ["--speed"], b"unknown or incomplete option --speed", 2),
        (b"", ["nothing-here"], b"nothing-here: cannot be read", 1),
    ],
)
def test_bad_streams(data: bytes, options: list[str], message: bytes, status: int, camera_folder: Path) -> None:
    done = network(camera_folder, "--events", *options, data=data)
    assert done.returncode == status
    assert message in done.stderr


@pytest.fixture(scope="module")
def camera_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_compiler()
    folder = tmp_path_factory.mktemp("camera")
    emitted(camera(), folder)
    flags = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
    done = make(folder, f"CFLAGS={flags}")
    assert done.returncode == 0, done.stderr
    return folder


def test_pacing_keeps_to_the_clock_and_the_histogram_counts_every_step(camera_folder: Path) -> None:
    """50 steps of 4 ms take 200 ms; an event that the pipe delivers late still counts, and is told."""
    rows = "".join(f"{t} {t // 4000 % 60}\n" for t in range(0, 200_000, 2000))
    begin = time.monotonic()
    done = network(camera_folder, "--events", "--step-us", "4000", "--pace", "--latency", data=rows.encode())
    took = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert 0.199 <= took < 5
    said = done.stderr.decode()
    assert re.search(r"latency of 51 steps: half within [\d.]+ us, 99 % within [\d.]+ us", said), said  # 50, and one of lag
    assert sum(int(n) for n in re.findall(r"^ +[\d.]+ us +(\d+) ", said, re.MULTILINE)) == 51
    fast = network(camera_folder, "--events", "--step-us", "4000", data=rows.encode())
    assert fast.stdout == done.stdout != b""
    with subprocess.Popen(
        ["./network", "--events", "--pace", "--step-us", "20000"], cwd=camera_folder, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as live:  # fmt: skip
        assert live.stdin is not None and live.stdout is not None and live.stderr is not None
        live.stdin.write(b"0 1\n")
        live.stdin.flush()
        time.sleep(0.15)
        live.stdin.write(b"1 7\n")
        live.stdin.close()
        assert b"1 events came late" in live.stderr.read()
        assert live.wait() == 0


def test_the_latency_of_the_golden_run(camera_folder: Path) -> None:
    done = network(camera_folder, "--latency", "golden.txt")
    assert done.returncode == 0 and b"latency of 26 steps" in done.stderr
    assert network(camera_folder, "--nonsense").returncode == 2


# ------------------------------------------------------------------------------------------------------------- for boards

BOARDS = {"rpi5": "aarch64", "rpi4": "aarch64", "rpi3": "aarch64", "rpi": "aarch64", "rpi-armv7": "arm"}


@pytest.mark.parametrize("board", BOARDS)
def test_make_check_for_a_board_needs_no_options(board: str, tools: Tools, tmp_path: Path) -> None:
    """Away from the board the folder takes the cross compiler and the emulator that its target names."""
    target = load_target(board)
    tools(f"{target.compiler.prefix}gcc", target.compiler.emulator)
    emitted(camera(), tmp_path, board)
    done = make(tmp_path, "check")
    assert done.returncode == 0, done.stderr
    assert "ok: 2 samples" in done.stdout and target.compiler.flags in done.stdout
    assert f"{target.compiler.emulator} ./network" in done.stdout
    here = make(tmp_path, "clean", "check", "CC=cc")
    assert here.returncode == 0 and "ok: 2 samples" in here.stdout and target.compiler.flags not in here.stdout


def test_a_board_without_its_compiler_is_said(tmp_path: Path) -> None:
    emitted(camera(), tmp_path, "rpi5")
    (tmp_path / "target.mk").write_text((tmp_path / "target.mk").read_text().replace("aarch64-linux-gnu-", "no-such-"))
    done = make(tmp_path)
    assert done.returncode != 0
    assert "there is no no-such-gcc: install it, or give CC, or build on the board (make deploy)" in done.stderr


@pytest.mark.parametrize("processor", ["cortex-m4", "cortex-m7"])
def test_a_microcontroller_gets_a_library_and_its_size(processor: str, tools: Tools, tmp_path: Path) -> None:
    tools("arm-none-eabi-gcc")
    emitted(camera(), tmp_path, processor)
    done = make(tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ +\d+\s+0\s+0\s+\d+\s+[0-9a-f]+\s+\(TOTALS\)", done.stdout, re.MULTILINE), done.stdout
    assert not (tmp_path / "network").exists()
    checked = make(tmp_path, "check")
    assert checked.returncode == 0 and "ok: 2 samples" in checked.stdout
    assert "libnetwork.a" in (tmp_path / "README.md").read_text()


def test_deploying_copies_builds_and_checks_there(tmp_path: Path) -> None:
    """An ssh that runs the command in another folder instead of on another machine."""
    there, folder, tools = tmp_path / "there", tmp_path / "folder", tmp_path / "bin"
    for path in (there, folder, tools):
        path.mkdir()
    (tools / "ssh").write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/host\ncd {there} && shift && exec sh -c "$*"\n')
    (tools / "ssh").chmod(0o755)
    emitted(camera(), folder)
    path = f"{tools}:{os.environ['PATH']}"
    done = make(folder, "deploy", "HOST=pi@board", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "ok: 2 samples" in done.stdout and (tmp_path / "host").read_text() == "pi@board\n"
    assert (there / "spk-network" / "network").exists() and not (folder / "network").exists()
    golden = there / "spk-network" / "golden.txt"
    assert golden.read_bytes() == (folder / "golden.txt").read_bytes()
    (folder / "golden.txt").write_text((folder / "golden.txt").read_text().replace("out out", "out out 1 2 3 #", 1))
    assert make(folder, "deploy", "HOST=pi", PATH=path).returncode != 0  # a check that fails there fails here
    assert "make deploy HOST=" in make(folder, "deploy").stderr


@pytest.mark.parametrize("large", [False, True])
def test_cmake_builds_and_checks(large: bool, tools: Tools, tmp_path: Path) -> None:
    tools("cmake")
    graph = big() if large else camera()
    emitted(graph, tmp_path, samples=1)
    assert (tmp_path / "weights.bin").exists() == large
    for options in ([], ["-DSPK_EMBED_ARRAY=ON"])[: 1 + large]:
        for command in (["-B", "build", *options], ["--build", "build"]):
            subprocess.run(["cmake", *command], cwd=tmp_path, check=True, capture_output=True)
        done = subprocess.run(["ctest", "--test-dir", "build"], cwd=tmp_path, check=False, capture_output=True, text=True)
        assert done.returncode == 0 and "100% tests passed, 0 tests failed out of 2" in done.stdout, done.stdout


@pytest.mark.parametrize("board", ["rpi5", "cortex-m4"])
def test_cmake_for_a_board(board: str, tools: Tools, tmp_path: Path) -> None:
    target = load_target(board)
    tools("cmake", f"{target.compiler.prefix}gcc")
    emitted(camera(), tmp_path, board)
    for command in (["-B", "build", "-DCMAKE_TOOLCHAIN_FILE=toolchain.cmake"], ["--build", "build"]):
        subprocess.run(["cmake", *command], cwd=tmp_path, check=True, capture_output=True)
    made = subprocess.run(
        [f"{target.compiler.prefix}readelf", "-h", "build/libspk_network.a"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert ("AArch64" if board == "rpi5" else "ARM") in made.stdout
    if board == "rpi5":
        tools("qemu-aarch64")
        done = subprocess.run(["ctest", "--test-dir", "build"], cwd=tmp_path, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


# --------------------------------------------------------------------------------------------------------------- weights


def big() -> Graph:
    rng = np.random.default_rng(4)
    nodes: list[Node] = [
        Input(name="x", type=TensorType("spike", (900,), "i8")),
        Dense(name="fc", inputs=(Ref("x"),), weight=rng.integers(-127, 128, (800, 900)).astype(np.int8)),
        Neuron(name="l", inputs=(Ref("fc"),), program=LIF),
    ]
    return verify(Graph("big", "fixed", tuple(nodes), (("out", Ref("l")),)))


@pytest.mark.parametrize("compiler", ["cc", "clang"])
@pytest.mark.parametrize("embed", ["incbin", "array"])
def test_weights_that_are_not_the_networks_are_refused(compiler: str, embed: str, tools: Tools, tmp_path: Path) -> None:
    tools(*[compiler] * (compiler != "cc"))
    emitted(big(), tmp_path, samples=1)
    path = tmp_path / "weights.bin"
    good = path.read_bytes()

    def check() -> subprocess.CompletedProcess[str]:
        make(tmp_path, "clean")
        return make(tmp_path, "check", f"EMBED={embed}", f"CC={compiler}", "CFLAGS=-O1")

    assert check().returncode == 0
    for damaged in (good[:-64], good + bytes(64)):
        path.write_bytes(damaged)
        assert check().returncode != 0
        if compiler == "cc" or embed == "array" or len(damaged) > len(good):
            assert not (tmp_path / "network").exists(), "a file of the wrong size does not build"
    for place in (0, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        done = check()
        assert done.returncode != 0 and "the weights are not those of this network" in done.stderr
    path.write_bytes(good[64:128] + good[:64] + good[128:])
    assert "the weights are not those of this network" in check().stderr


# ---------------------------------------------------------------------------------------------------------- the encoder


def test_the_encoder_in_c_is_the_one_in_python(tmp_path: Path) -> None:
    emitted(camera(), tmp_path)
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.random(90), [0.0, 1.0, 0.5, 1e-12, 1 - 1e-12, 2.0**-32, 2.0**-33, np.nextafter(2.0**-33, 0)]])
    (tmp_path / "encode.c").write_text("""#include <stdio.h>
    #include "spk_encode.h"
    int main(void) {
      static double x[98];
      static uint64_t limit[98];
      static uint32_t event[98];
      uint32_t i, t, n;
      if (fread(x, sizeof *x, 98, stdin) != 98) { return 1; }
      for (i = 0; i < 98; i++) { limit[i] = spk_encode_limit(x[i]); }
      for (t = 0; t < 40; t++) {
        n = spk_encode_rate(limit, 98, 12345678901234567u, 3, t, event);
        for (i = 0; i < n; i++) { printf("%u %u\\n", (unsigned)t, (unsigned)event[i]); }
      }
      return spk_encode_limit(-1.0) != 0 || spk_encode_limit(7.0) != (uint64_t)1 << 32 || spk_encode_limit(0.0 / x[90]) != 0;
    }
    """)
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O2", "-o", "encode", "encode.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run(["./encode"], cwd=tmp_path, input=x.tobytes(), capture_output=True, check=True)
    found = np.zeros((40, 98), np.uint8)
    for line in done.stdout.splitlines():
        found[tuple(int(n) for n in line.split())] = 1
    assert np.array_equal(found, rate(x[None], 40, seed=12345678901234567, samples=3)[0])
    assert found.any()


def wide(size: int) -> tuple[Graph, dict[str, Array]]:
    """size x size random connections, an input for it."""
    rng = np.random.default_rng(5)
    nodes = (
        Input(name="x", type=TensorType("spike", (size,), "i8")),
        Dense(name="fc", inputs=(Ref("x"),), weight=rng.integers(-40, 60, (size, size)).astype(np.int8)),
        Neuron(name="l", inputs=(Ref("fc"),), program=LIF),
    )
    return verify(Graph("wide", "fixed", nodes, (("out", Ref("l")),))), {"x": (rng.random((1, 3, size)) < 0.1).astype(np.int8)}


WHERE = """
#include <stdio.h>
#include <string.h>
extern const unsigned char spk_weights[];
int main(void) {
  const unsigned long middle = (unsigned long)spk_weights + @bytes@ / 2u;
  FILE *const maps = fopen("/proc/self/maps", "r"), *const file = fopen("weights.bin", "rb");
  char line[512], name[256];
  unsigned long k, different = 0;
  for (k = 0; k < @bytes@; k++) { different += spk_weights[k] != (unsigned char)getc(file); }
  while (fgets(line, sizeof line, maps) != NULL) {
    unsigned long begin, end;
    char rights[8];
    name[0] = 0;
    sscanf(line, "%lx-%lx %7s %*s %*s %*s %255s", &begin, &end, rights, name);
    if (begin <= middle && middle < end) { printf("%lu %s %s\\n", different, rights, name[0] ? "file" : "memory"); }
  }
  return 0;
}
"""


def test_many_weights_go_onto_large_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep their addresses and their bytes, stay constant, and are memory instead of a file where the system can do that."""
    monkeypatch.setattr(assembly, "MANY_PAGES", 1 << 20)
    graph, x = wide(2200)
    emitted(graph, tmp_path, samples=1)
    size = (tmp_path / "weights.bin").stat().st_size
    constants, rows = CBackend(load_target("host")).memory(graph).constants, 2200 * 2208  # filled up to whole vectors
    assert rows <= constants < rows + 64 and 0 <= size - constants < 64
    (tmp_path / "where.c").write_text(WHERE.replace("@bytes@", f"{size}u"))
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    large = mode.exists() and "[never]" not in mode.read_text()
    for flags, place in (([], "memory" if large else "file"), (["-DSPK_SMALL_PAGES"], "file")):
        for compiler in ("gcc", "clang"):
            if shutil.which(compiler) is None:
                continue
            told = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror", "-O2", *flags]
            subprocess.run([compiler, *told, "-c", "weights.c"], cwd=tmp_path, check=True)
            subprocess.run([compiler, "-o", "where", "where.c", "weights.o"], cwd=tmp_path, check=True)
            done = subprocess.run(["./where"], cwd=tmp_path, check=True, capture_output=True, text=True)
            assert done.stdout == f"0 r--p {place}\n", (compiler, flags)
    subprocess.run(["make", "-s", "check"], cwd=tmp_path, check=True, capture_output=True)
    assert np.array_equal(CBackend(None).run(graph, x).outputs["out"], interpret(graph, x).outputs["out"])


def test_few_weights_stay_where_they_are(tmp_path: Path) -> None:
    emitted(wide(1500)[0], tmp_path, samples=1)
    assert (tmp_path / "weights.c").exists() and not (tmp_path / "pages.h").exists()
    assert "pages" not in (tmp_path / "weights.c").read_text()
