"""Bad input: one clear line with a code and the place, exit status 1, no traceback, and no half-written output folder.

Each case is a command line in a folder that holds the files below, and the whole of what it prints.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from spikec import cli
from spikec.folder import json_text, sha256
from spikec.pipeline import PASSES
from spikec.target import load_target
from support.builds import TINY, fixed_build, spikes

#: What a build for Loihi 2 holds, in order: the levels change at the quantizer.
STAGES = ("input", *load_target("loihi2").passes)
HELD = [f"{name} ({'fixed' if number >= STAGES.index('quantize') else 'float'})" for number, name in enumerate(STAGES)]
LAST = f"{len(STAGES) - 1:02d}-{STAGES[-1]}.sir"

MODELS = {
    "good.py": """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self, width=3):
                super().__init__()
                self.fc = nn.Linear(width, 2)
            def forward(self, x):
                return self.fc(x)

        class Wide(nn.Module):
            def __init__(self, width):
                super().__init__()

        net = Net()
        number = 5
        def make(): return net
        def make_wide(width): return Net(width)
        def wrong(): return "net"
        def fails(): return [][0]
    """,
    "nets.py": """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.fc = nn.Linear(3, 3)
                self.gru = nn.GRUCell(3, 3)

            def forward(self, x):
                out = []
                for t in range(x.shape[1]):
                    out.append(self.gru(self.fc(x[:, t])))
                return torch.stack(out, 1)

        class Bad(nn.Module):
            def forward(self, x):
                out = []
                for t in range(x.shape[1]):
                    if x[:, t].sum() > 1:
                        out.append(x[:, t])
                    else:
                        out.append(0 * x[:, t])
                return torch.stack(out, 1)

        class Nan(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(3, 2, bias=False)
                self.fc.weight.data[:] = 0.5
                self.fc.weight.data[1, 2] = float("nan")

            def forward(self, x):
                v, out = torch.zeros(x.shape[0], 2), []
                for t in range(x.shape[1]):
                    v = 0.5 * v + self.fc(x[:, t])
                    out.append((v > 1).float())
                return torch.stack(out, 1)

        class Two(nn.Module):
            def forward(self, left, right):
                return left + right
    """,
    "syntax.py": "import torch\n\ndef f(:\n    pass\n",
    "imports.py": "import torch\n\nimport no_such_module_anywhere\n",
    "exits.py": "import sys\nsys.exit(3)\n",
}


def lines(text: str) -> str:
    cut = len(text) - len(text.lstrip("\n"))
    body = text[cut:].rstrip().splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in body if line.strip()), default=0)
    return "\n".join(line[indent:] for line in body) + "\n"


def tiny(old: str, new: str) -> str:
    assert old in TINY
    return TINY.replace(old, new)


SIR = {
    "good.sir": TINY,
    "nan.sir": tiny("[[0.5, 0.25, 0.0]", "[[0.5, nan, 0.0]"),
    "inf.sir": tiny("[[1.0, 0.5], [-0.5, 1.0]]", "[[1.0, 0.5], [-inf, 1.0]]"),
    "delay.sir": tiny(
        "dense(%lif1) weight=[[1.0, 0.5], [-0.5, 1.0]]", "dense(%lif1) weight=[[1.0, 0.5], [-0.5, 1.0]] delay=i32[[0, 1], [-2, 0]]"
    ),
    "cycle.sir": tiny("dense(%in)", "dense(%lif1)").replace("[[0.5, 0.25, 0.0], [1.0, -1.0, 0.5]]", "[[0.5, 0.25], [1.0, -1.0]]"),
    "shape.sir": tiny("spike<3>", "spike<4>"),
    "op.sir": tiny("dense(%in)", "dnese(%in)"),
    "cut.sir": TINY[: TINY.index("  %fc2")],
    "newer.sir": tiny("sir 1", "sir 2"),
    "text.sir": "Dear diary,\n",
    "array.sir": tiny("[[0.5, 0.25, 0.0], [1.0, -1.0, 0.5]]", "@fc1.weight").replace(
        "%in =", "array @fc1.weight : 2x3 f32 #0123456789abcdef\n  %in ="
    ),
    "wide.sir": "sir 1\ngraph @g level=fixed {\n  %x = input : graded<4, i8>\n  %fc = dense(%x) weight=i8[[100, 100, 100, 100]] dtype=i16 : value<1, i16>\n  output %fc\n}\n",
    "huge.sir": tiny("level=float", "level=huge"),
}

# (command line, what it prints)
CASES: list[tuple[str, str]] = [
    # files and options
    ("compile nowhere.sir -o out", "error[SPK002]: nowhere.sir: no such file"),
    ("compile nowhere.py:Net -o out", "error[SPK002]: nowhere.py: no such file"),
    ("run build --input nowhere.npz", "error[SPK002]: nowhere.npz: no such file"),
    ("show nowhere", "error[SPK002]: nowhere: no such file or build folder"),
    ("run nowhere --input x.npz", "error[SPK002]: nowhere: no such build folder"),
    ("compile good.sir -o out --targte host", "error[SPK001]: unknown option '--targte'\n  fix: did you mean '--target'?"),
    ("compile good.sir", "error[SPK001]: the following arguments are required: -o/--output\n  fix: spikec compile --help"),
    (
        "compile good.sir -o out --bits eight",
        "error[SPK001]: bits must be a whole number of at least 1, 'mixed', or one a layer, not 'eight'\n"
        "  fix: write --bits 4, --bits mixed, --bits 8,4,8 in the order of the layers, or --bits fc1=4,fc2=8",
    ),
    ("compile good.sir -o out --dt fast", "error[SPK001]: 'fast' is not a duration; write 1ms, 0.5us, 10s"),
    ("compile good.sir -o out --time-axis first", "error[SPK001]: --time-axis is a number or none, not 'first'"),
    ("compile good.sir -o out --input-shape 1,-2", "error[SPK001]: --input-shape is a list such as 1,20,64, not '1,-2'"),
    ("compile good.sir -o out --steps 5", "error[SPK001]: steps belongs to a torch model; good.sir is a graph already"),
    (
        "compile good.sir -o out --target host --option colour=red",
        "error[SPK001]: unknown option 'colour' for the target 'host'\n  fix: choose one of delay_step, encode, keep_layers, max_bytes, max_delay, max_synapses, per_channel, prune, prune_pattern, prune_scope, prune_structured, share_delays, simplify, steps_loss, steps_to, windows_loss",
    ),
    ("compile good.sir -o out --target host --prune 1.5", "error[SPK001]: prune is a share from 0 up to but without 1, not 1.5"),
    (
        "compile good.sir -o out --target host --option prune=0.5",
        "error[SPK001]: --option prune=0.5: prune is no option of a pass or a reader\n  fix: write --prune 0.5",
    ),
    (
        "frobnicate",
        "error[SPK001]: unknown command 'frobnicate'\n  fix: choose one of compile, tune, run, verify, show, report, diff, convert, targets, doctor, setup",
    ),
    (
        "compile good.sir -o out --target host --option bits=4",
        "error[SPK001]: --option bits=4: bits is no option of a pass or a reader\n  fix: write --bits 4",
    ),
    (
        "compile good.sir -o out --option on_stage=4",
        "error[SPK001]: --option on_stage=4: on_stage is no option of a pass or a reader",
    ),
    (
        "compile good.sir -o out --option hop=far",
        "error[SPK001]: the option 'hop' of the pass 'retime' takes int | none, not 'far'",
    ),
    (
        "compile model.nir -o out --target host --option skeme=exact",
        "error[SPK001]: unknown option 'skeme' for '.nir' and the target 'host'\n  fix: did you mean 'scheme'?",
    ),
    ("compile model.nir -o out --option round_delays=maybe", "error[SPK001]: round_delays is true or false, not 'maybe'"),
    ("compile model.net -o out --option delay_shift=maybe", "error[SPK001]: delay_shift is true or false, not 'maybe'"),
    ("compile model.net -o out --option input_shape=2,x", "error[SPK001]: input_shape is sizes such as 2,34,34, not (2, 'x')"),
    ("run build --input x.npz --timeout -1", "error[SPK001]: timeout is a number of seconds above 0, not -1"),
    ("verify build --timeout nan", "error[SPK001]: timeout is a number of seconds above 0, not nan"),
    ("--colour", "error[SPK001]: unknown option '--colour'\n  fix: choose one of --help, --version"),
    ("setup matlab", "error[SPK001]: unknown tool 'matlab'\n  fix: spikec setup lava"),
    ("setup lava --force --if-missing", "error[SPK001]: --force and --if-missing exclude each other"),
    ("show good.sir --after quantize", "error[SPK001]: good.sir is one graph: --after and --level need a build folder"),
    # targets, passes, backends
    (
        "compile good.sir -o out --target loihi3",
        "error[SPK004]: unknown target 'loihi3'\n  fix: choose one of cortex-m4, cortex-m7, host, loihi2, reference, rpi, rpi-armv7, rpi3, rpi4, rpi5, or a .toml file",
    ),
    (
        "targets loihi3",
        "error[SPK004]: unknown target 'loihi3'\n  fix: choose one of cortex-m4, cortex-m7, host, loihi2, reference, rpi, rpi-armv7, rpi3, rpi4, rpi5, or a .toml file",
    ),
    ("compile good.sir -o out --target bad.toml", "error[SPK012]: bad.toml: unknown key 'colour' in the target"),
    (
        "compile good.sir -o out --target host --print-after retime",
        "error[SPK005]: the target 'host' does not run the pass 'retime'",
    ),
    (
        "compile good.sir -o out --print-after inline",
        f"error[SPK005]: unknown pass 'inline'\n  fix: choose among {', '.join(PASSES)}",
    ),
    (
        "run build --input x.npz --backend gpu",
        "error[SPK011]: unknown backend 'gpu'\n  fix: choose one of reference, numpy, c, lava",
    ),
    # models
    (
        "compile good.py -o out",
        "error[SPK003]: good.py: which model? A file is given with a name in it\n  fix: give good.py:name, with one of Net, Wide, net",
    ),
    ("compile good.py:net2 -o out", "error[SPK003]: good.py: there is no 'net2' in it\n  fix: did you mean 'net'?"),
    ("compile good.py:number -o out", "error[SPK003]: good.py: 'number' gives int, not a torch module"),
    ("compile good.py:wrong -o out", "error[SPK003]: good.py: 'wrong' gives str, not a torch module"),
    (
        "compile good.py:make_wide -o out",
        "good.py:18: error[SPK003]: make_wide() needs arguments: missing a required argument: 'width'\n  fix: write a function without arguments that returns the model, and name that",
    ),
    ("compile good.py:fails -o out", "good.py:20: error[SPK003]: fails() failed: IndexError: list index out of range"),
    ("compile syntax.py:net -o out", "syntax.py:3: error[SPK003]: importing the file failed: invalid syntax"),
    (
        "compile imports.py:net -o out",
        "imports.py:3: error[SPK003]: importing the file failed: ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ),
    ("compile exits.py:net -o out", "exits.py:2: error[SPK003]: importing the file failed: SystemExit: 3"),
    (
        "compile model.nir -o out",
        "error[SPK003]: model.nir: not a readable HDF5 file (file signature not found)",
    ),
    (
        "compile model.onnx -o out",
        "model.onnx: error[SPK003]: not a readable ONNX file: it is damaged, cut off, or something else",
    ),
    (
        "compile model.net -o out",
        "error[SPK003]: model.net: not a readable HDF5 file (file signature not found)\n  fix: export the network again; a file that was cut off in a download or a copy cannot be repaired",
    ),
    (
        "compile model.txt -o out",
        "error[SPK003]: 'model.txt' is not a model\n  fix: give file.py:name, or a .nir, .net, .onnx or .sir file",
    ),
    ("compile nets.py:Net -o out --input-shape 1,6,3", "nets.py:14 (gru): error[SPK101]: GRUCell is not supported"),
    (
        "compile nets.py:Bad -o out --input-shape 1,6,3",
        "nets.py:21: error[SPK103]: a branch depends on input values\n  fix: keep it a tensor, as in torch.where(condition, a, b)",
    ),
    ("compile nets.py:Nan -o out --input-shape 1,6,3", "nets.py:37 (fc): error[SPK305]: %fc: weight holds nan at [1, 2] (1 of 6)"),
    (
        "compile nets.py:Nan -o out --input-shape 1,6,4",
        "nets.py:37: error[SPK109]: the model fails on the example input: RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)\n  fix: pass an example that the model itself accepts; `model(example)` must run",
    ),
    (
        "compile good.py:net -o out",
        "error[SPK001]: an example input is needed to trace the model\n  fix: give example_input, as the model takes it, or define example_input in the model's file (command line: --example or --input-shape)",
    ),
    (
        "compile nets.py:Two -o out --input-shape 1,6,3",
        "nets.py:42: error[SPK109]: the model fails on the example input: TypeError: Two.forward() missing 1 required positional argument: 'right'\n  fix: pass an example that the model itself accepts; `model(example)` must run",
    ),
    ("compile nets.py:Nan -o out --example none.npz", "error[SPK006]: the example input of shape (0, 6, 3) is empty"),
    # data
    ("run build --input folder.npz", "error[SPK002]: folder.npz: a folder, not a file"),
    ("compile folder.sir -o out", "error[SPK002]: folder.sir: cannot be read (is a directory)"),
    ("compile folder.nir -o out", "error[SPK002]: folder.nir: a folder, not a file"),
    ("compile folder.net -o out", "error[SPK002]: folder.net: a folder, not a file"),
    ("verify build --backends ,", "error[SPK001]: --backends names none\n  fix: --backends reference,numpy,c"),
    (
        "verify build --bisect --impulse",
        "error[SPK001]: --bisect and --impulse are two different questions\n  fix: leave one of them out",
    ),
    ("run build --input short.npz", "error[SPK006]: the input 'in' has shape (4, 10, 2), not (batch, T, 3)"),
    (
        "run build --input sample.npz",
        "error[SPK006]: the input 'in' has shape (10, 3), not (batch, T, 3)\n  fix: one sample also needs its batch axis, x[None]; frames shown at every step need to know for how many, steps=T (--steps T)",
    ),
    ("run build --input text.npz", "error[SPK007]: the input 'in' holds <U3, not numbers"),
    ("run build --input twos.npz", "error[SPK007]: the input 'in' holds 2 at [1, 2, 0], but takes spikes, 0 or 1 (1 of 120)"),
    ("run build --input nans.npz", "error[SPK007]: the input 'in' holds nan at [0, 0, 0], which is not a finite number (1 of 120)"),
    ("run build --input garbage.npz", "error[SPK007]: garbage.npz: not a readable .npz file of numbers"),
    (
        "compile good.sir -o out --target reference --calibrate short.npz",
        "error[SPK006]: the input 'in' has shape (4, 10, 2), not (batch, T, 3)",
    ),
    ("run build --input x.npz --record lif9", "error[SPK010]: there is no layer 'lif9'\n  fix: did you mean 'lif2'?"),
    # places
    (
        "compile good.sir -o foreign --target reference",
        "error[SPK008]: foreign: exists and is not a spikec build, so it is not overwritten\n  fix: choose another folder, or remove it yourself",
    ),
    ("compile good.sir -o x.npz --target reference", "error[SPK008]: x.npz: exists and is not a folder"),
    ("compile good.sir -o x.npz/out --target reference", "error[SPK008]: x.npz/out: x.npz is not a folder"),
    (
        "run build --input x.npz --output no/such/folder/y.npz",
        "error[SPK008]: no/such/folder/y.npz: cannot be written: not a file in an existing folder",
    ),
    # graphs
    ("compile nan.sir -o out --target reference", "net.py:3 (net.fc1): error[SPK305]: %fc1: weight holds nan at [0, 1] (1 of 6)"),
    ("compile inf.sir -o out --target reference", "net.py:5 (net.fc2): error[SPK305]: %fc2: weight holds -inf at [1, 0] (1 of 4)"),
    (
        "compile delay.sir -o out --target reference",
        "net.py:5 (net.fc2): error[SPK306]: %fc2: delays must be integers and not negative",
    ),
    (
        "compile cycle.sir -o out --target reference",
        "net.py:4 (net.lif1): error[SPK307]: %lif1: a cycle within one step: %fc1 -> %lif1 -> %fc1\n  fix: read one of them a step later, as in %fc1[t-1]",
    ),
    ("show shape.sir", "net.py:3 (net.fc1): error[SPK309]: %fc1: the weight takes 3 inputs but %in has shape (4,)"),
    ("show op.sir", "op.sir:12: error[SPK302]: unknown operation 'dnese'"),
    (
        "show cut.sir",
        'cut.sir:13: error[SPK301]: the text ends too early at line 13, column 84\n      %lif1 = neuron @lif(%fc1) beta=0.5 theta=0.75 : spike<2> loc("net.py":4 net.lif1)\n'
        + " " * 87
        + "^",
    ),
    (
        "show newer.sir",
        "newer.sir:1: error[SPK303]: the text is of version sir 2; this spikec reads up to sir 1\n  fix: use the spikec that wrote it, or a newer one",
    ),
    ("show text.sir", "text.sir:1: error[SPK301]: this is not IR text: it must begin with 'sir' and a version"),
    ("show array.sir", "array.sir:11: error[SPK304]: the array @fc1.weight is missing; its .npz file belongs beside the text"),
    ("show huge.sir", "huge.sir:10: error[SPK301]: bad graph attribute 'level'"),
    (
        "show wide.sir",
        "error[SPK308]: %fc: can reach -51200 to 50800, which i16 does not hold\n  fix: declare a wider type, smaller weights, or narrower input bounds",
    ),
    # build folders
    ("show foreign", "error[SPK401]: foreign: not a build folder: it has no manifest.json\n  fix: make one with spikec compile"),
    (
        "run damaged --input x.npz",
        f"error[SPK402]: damaged/ir/{LAST}: damaged: its sha256 is not the one recorded\n  fix: compile again",
    ),
    ("verify incomplete", "error[SPK402]: incomplete/golden.npz: missing\n  fix: compile again"),
    (
        "show newer",
        "error[SPK403]: newer: made by spikec 9.0 in build format 2; this spikec reads format 1\n  fix: use the spikec that made it, or compile again",
    ),
    (
        "show build --after inline",
        f"error[SPK404]: the build has no stage 'inline'\n  fix: choose one of {', '.join(STAGES)}",
    ),
    (
        "show build --level digital",
        "error[SPK404]: there is no level 'digital'\n  fix: choose one of float, fixed, placed",
    ),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    for name, text in MODELS.items():
        (folder / name).write_text(lines(text))
    for name, text in SIR.items():
        (folder / name).write_text(text)
    for name in ("model.nir", "model.onnx", "model.net", "model.txt"):
        (folder / name).write_text("something")
    (folder / "bad.toml").write_text(
        'name = "bad"\ndescription = "?"\nbackend = "reference"\nlevel = "float"\npasses = []\ncolour = "red"\n'
    )
    x = spikes()
    twos = x.copy()
    twos[1, 2, 0] = 2
    nans = x.astype(np.float32)
    nans[0, 0, 0] = np.nan
    none = np.zeros((0, 6, 3), np.float32)
    for name in ("folder.npz", "folder.sir", "folder.nir", "folder.net"):
        (folder / name).mkdir()
    for name, array in {"x": x, "short": x[:, :, :2], "sample": x[0], "twos": twos, "nans": nans, "none": none}.items():
        np.savez(folder / f"{name}.npz", x=array)
    np.savez(folder / "text.npz", x=np.full((1, 2, 3), "abc"))
    (folder / "garbage.npz").write_bytes(b"\x00\x01 not a zip")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.tex").write_text("years of work")
    build = fixed_build(folder)
    for name in ("build", "damaged", "incomplete", "newer"):
        build.save(folder / name)
    path = folder / "damaged" / "ir" / LAST
    path.write_text(path.read_text().replace("vth=96", "vth=97"))
    (folder / "incomplete" / "golden.npz").unlink()
    path = folder / "newer" / "manifest.json"
    data = json.loads(path.read_text()) | {"version": 2, "spikec": "9.0"}
    del data["sha256"]
    data["sha256"] = sha256(json_text(data).encode())
    path.write_text(json_text(data))
    return folder


@pytest.mark.parametrize(("command", "expected"), CASES, ids=[command for command, _ in CASES])
def test_bad_input(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, expected: str
) -> None:
    monkeypatch.chdir(made)
    before = sorted(path.relative_to(made) for path in made.rglob("*") if "__pycache__" not in path.parts)
    status = cli.main(command.split())
    captured = capsys.readouterr()
    assert captured.err == expected + "\n"
    assert status == 1
    assert captured.out == ""
    assert sorted(path.relative_to(made) for path in made.rglob("*") if "__pycache__" not in path.parts) == before


LONG = "n" * 300
#: (command line, the code, the file) for a name that the operating system refuses even to look up.
REFUSED = [
    (f"compile {LONG}.sir -o out", "SPK002", f"{LONG}.sir"),
    (f"compile {LONG}.nir -o out", "SPK002", f"{LONG}.nir"),
    (f"compile {LONG}.net -o out", "SPK002", f"{LONG}.net"),
    (f"compile {LONG}.py:Net -o out", "SPK002", f"{LONG}.py"),
    (f"compile good.sir -o out --target {LONG}.toml", "SPK002", f"{LONG}.toml"),
    (f"compile good.sir -o {LONG} --target host", "SPK008", LONG),
    (f"run build --input {LONG}.npz", "SPK002", f"{LONG}.npz"),
    (f"run {LONG} --input x.npz", "SPK002", LONG),
    (f"show {LONG}", "SPK002", LONG),
]


@pytest.mark.parametrize(("command", "code", "file"), REFUSED, ids=[command.replace(LONG, "LONG") for command, _, _ in REFUSED])
def test_what_the_operating_system_refuses(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, code: str, file: str
) -> None:
    monkeypatch.chdir(made)
    assert cli.main(command.split()) == 1
    said = "cannot be read (file name too long)" if code == "SPK002" else "cannot be written (File name too long)"
    assert capsys.readouterr().err == f"error[{code}]: {file}: {said}\n"


def test_a_file_of_a_build_that_may_not_be_read(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == "golden.npz":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert cli.main(["show", "build"]) == 1
    assert capsys.readouterr().err == "error[SPK002]: build/golden.npz: cannot be read (permission denied)\n"


def test_a_device_is_not_replaced_by_results(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(made)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert cli.main(["run", "build", "--input", "x.npz", "--output", str(pipe)]) == 1
    assert capsys.readouterr().err == f"error[SPK008]: {pipe}: cannot be written: not a file in an existing folder\n"
    assert pipe.is_fifo()
