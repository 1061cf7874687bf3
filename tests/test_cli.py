"""The command line: every command, exit statuses, JSON, what is imported, how long a start takes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import spikec
from spikec import cli
from spikec.progress import Bar
from spikec.target import load_target
from support.builds import TINY, fixed_build, fixed_target, spikes

SPIKEC = [sys.executable, "-m", "spikec.cli"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a build, data and a .sir file."""
    monkeypatch.chdir(tmp_path)
    fixed_build(tmp_path).save("build")
    (tmp_path / "tiny.sir").write_text(TINY)
    np.savez(tmp_path / "x.npz", x=spikes(4, 10, seed=3), y=np.arange(4) % 2)
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    code = cli.main(words)
    captured = capsys.readouterr()
    assert code == status, captured.err
    assert (captured.err == "") == (status == 0), captured.err
    return captured.out if status == 0 else captured.err


def test_help_of_every_command_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli._parser()
    commands = next(a.choices for a in parser._actions if hasattr(a, "choices") and a.choices)
    assert list(commands) == ["compile", "tune", "run", "verify", "show", "report", "diff", "convert", "targets", "doctor", "setup"]
    for name, command in commands.items():
        with pytest.raises(SystemExit) as left:
            cli.main([name, "--help"])
        assert left.value.code == 0
        printed = capsys.readouterr().out
        for action in command._actions:
            assert action.help, f"{name} {action.dest} has no help"
            assert all(option in printed for option in action.option_strings)


def test_nothing_at_all_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "compile MODEL into the build folder BUILD" in ran(capsys)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"spikec {spikec.__version__}\n"


def test_traces_and_how_much_smaller_they_are(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file for each layer of spikes (fc1 holds sums): what it holds is what ran, and the ratio is that of the bytes in it."""
    from spikec.runtime.trace import SpikeTrace

    np.savez("long.npz", x=spikes(40, 50, seed=3))
    words = ("run", "build", "--input", "long.npz", "--record", "fc1,lif1,lif2", "--traces", "logs")
    told = ran(capsys, *words)
    told_json = json.loads(ran(capsys, *words, "--json"))["traces"]
    result = spikec.load("build").run(spikes(40, 50, seed=3), record=["fc1", "lif1", "lif2"])
    assert sorted(path.name for path in Path("logs").iterdir()) == ["lif1.npz", "lif2.npz", "out.npz"]
    assert "traces written to logs" in told
    for name, array in (("out", result.outputs["out"]), ("lif1", result.records["lif1"])):
        trace = SpikeTrace.load(f"logs/{name}.npz")
        assert np.array_equal(trace.to_dense(), array)
        with np.load(f"logs/{name}.npz") as file:
            coded = sum(file[key].nbytes for key in file.files if key != "header")
        events = int(np.count_nonzero(array))
        ratio = min(array.size, 12 * events) / coded
        assert ratio > 1 and events > 0
        found = json.loads(ran(capsys, "show", f"logs/{name}.npz", "--json"))
        assert found == told_json[name] == {
            "samples": 40, "duration": array.shape[1], "tick": None, "shape": [2], "events": events, "bytes": coded, "ratio": ratio,
        }  # fmt: skip
        assert any(line.split() == [name, str(events), str(coded), f"{ratio:.3g}"] for line in told.splitlines())
        text = ran(capsys, "show", f"logs/{name}.npz")
        assert f"40 samples of {array.shape[1]} steps, shape 2, {events} events\n" in text
        assert f"stored in {coded} bytes, {ratio:.3g} times smaller" in text
    assert "SPK007" in ran(capsys, "show", "x.npz", status=1)
    assert "SPK001" in ran(capsys, "show", "logs/out.npz", "--full", status=1)
    assert "SPK008" in ran(capsys, "run", "build", "--input", "x.npz", "--traces", "x.npz", status=1)


def test_compile_run_verify_show(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = fixed_target(work)
    out = ran(capsys, "compile", "tiny.sir", "-o", "new", "--target", target, "--calibrate", "x.npz", "--bits", "8", "--strict")
    assert f"tiny for loihi2-reference (placed): {' -> '.join(['input', *load_target('loihi2').passes])}" in out
    assert "4 neurons, 9 synapses, lag 2 steps" in out and "no approximations" in out and "written to new" in out
    out = ran(capsys, "run", "new", "--input", "x.npz", "--record", "all", "--output", "y.npz")
    assert "reference: 4 samples of 10 steps" in out and "synaptic operations" in out
    result = spikec.load("new").run(spikes(4, 10, seed=3), record="all")
    with np.load("y.npz") as y:
        assert sorted(y.files) == ["out", "spikes.lif1", "spikes.lif2", *(f"state.lif{n}.{v}" for n in "12" for v in "uv")]
        assert np.array_equal(y["out"], result.outputs["out"])
        assert np.array_equal(y["state.lif1.v"], result.state("lif1", "v"))
    out = ran(capsys, "verify", "new", "--input", "x.npz", "--backends", "reference,numpy")
    assert "4 samples of 10 steps: equal everywhere" in out
    assert ran(capsys, "show", "new") == spikec.load("new").ir()
    assert ran(capsys, "show", "new", "--after", "input", "--full") == spikec.load("new").ir("input", full=True)
    assert ran(capsys, "show", "tiny.sir") == str(spikec.parse_graph(TINY))


def test_a_network_without_inputs(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "neuron @n() params(rate) state(v = 0) {\nv = v + rate\ns = v >= 1.0\nv = select(s, 0, v)\nemit s\n}\n"
    Path("free.sir").write_text(
        f"sir 1\n{text}graph @free level=float {{\n%l = neuron @n() rate=[0.25, 0.5] : spike<2>\noutput %l\n}}\n"
    )
    ran(capsys, "compile", "free.sir", "-o", "free", "--target", "host", "--bits", "8")
    for engine in ("reference", "numpy", "c"):
        assert f"{engine}: 1 samples of 40 steps" in (out := ran(capsys, "run", "free", "--steps", "40", "--backend", engine))
        assert "l                    2        30        30   30" in out
    assert "1 samples of 50 steps: equal everywhere" in ran(capsys, "verify", "free", "--steps", "50")
    assert cli.main(["run", "free"]) == 1
    assert "needs the number of steps\n  fix: run(steps=100), --steps 100" in capsys.readouterr().err
    assert cli.main(["run", "build"]) == 1
    assert "none is given: 'in'" in capsys.readouterr().err


def test_what_is_shown_fits_in_80_columns(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for after in ("input", "quantize", "retime"):
        text = ran(capsys, "show", "build", "--after", after)
        assert max(map(len, text.splitlines())) <= 80


def test_json_everywhere(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def got(*words: str) -> object:
        return json.loads(ran(capsys, *words, "--json"))

    made = got("compile", "tiny.sir", "-o", "new", "--target", "reference")
    assert made["neurons"] == 4 and made["output"] == "new"
    made = got("compile", "tiny.sir", "-o", "new", "--target", "reference", "--print-after", "input")
    assert list(made["printed"]) == ["input"]
    found = got("run", "build", "--input", "x.npz", "--record", "all")
    assert found["counts"]["lif1"]["updates"] == 80
    assert got("verify", "build", "--backends", "numpy")["ok"] is True
    assert got("show", "build")["ir"] == spikec.load("build").ir()
    assert {"loihi2", "host", "reference"} <= {row["name"] for row in got("targets")}
    assert got("targets", "loihi2")["numbers"]["max_delay"]["value"] == 62


def test_errors_as_json_go_to_both(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "build", "--input", "nowhere.npz", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error[SPK002]: nowhere.npz: no such file\n"
    assert json.loads(captured.out)["errors"][0]["code"] == "SPK002"


def test_verify_exits_with_1_where_something_differs(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from spikec.backends.events import NumpyBackend

    right = NumpyBackend.run

    def wrong(self, graph, inputs, **more):
        found = right(self, graph, inputs, **more)
        for array in found.records.values():
            array[-1, -1] = 1 - array[-1, -1]
        return found

    monkeypatch.setattr(NumpyBackend, "run", wrong)
    assert cli.main(["verify", "build", "--input", "x.npz", "--backends", "numpy"]) == 1
    out = capsys.readouterr().out
    assert "NOT equal" in out and "first divergence at %lif1" in out


def test_print_after_and_dump(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("compile", "tiny.sir", "-o", "new", "--target", "reference")
    out = ran(capsys, *words, "--print-after", "canonicalise", "--dump-ir", "dump")
    assert "graph @tiny level=float" in out
    assert sorted(p.name for p in Path("dump").iterdir()) == ["00-input.sir", "01-canonicalise.sir", "passes.txt"]


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert "rpi-armv7" in ran(capsys, "targets")
    out = ran(capsys, "targets", "loihi2")
    assert "max_delay" in out and "published" in out and "neuron LIF, in integers" in out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert "numpy" in ran(capsys, "doctor")


def test_setup_lava_if_missing_is_silent_where_it_is(capsys: pytest.CaptureFixture[str], lava_env: object) -> None:
    assert ran(capsys, "setup", "lava", "--if-missing") == ""


def test_setup_passes_its_options_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from spikec.backends.lava import environment

    seen = {}

    def setup(*, report, force=False):
        seen["force"] = force
        report("lava: working")
        return "an environment"

    monkeypatch.setattr(environment, "setup", setup)
    monkeypatch.setattr(environment, "locate", lambda: None)
    assert cli.main(["setup", "lava", "--force"]) == 0 and seen == {"force": True}
    assert capsys.readouterr().err == "lava: working\n"
    assert cli.main(["setup", "lava", "--if-missing"]) == 0 and seen == {"force": False}


# ------------------------------------------------------------------------------------------------------- data arguments


def test_data_is_found_by_key(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = spikes(2, 5)
    np.savez("named.npz", **{"in": x, "other": x})
    np.savez("many.npz", a=x, b=x)
    np.save("x.npy", x)
    for data in ("named.npz", "many.npz:b", "x.npy"):
        assert "2 samples of 5 steps" in ran(capsys, "run", "build", "--input", data)
    assert "write many.npz:KEY" in ran(capsys, "run", "build", "--input", "many.npz", status=1)
    assert "there is no array 'c'" in ran(capsys, "run", "build", "--input", "many.npz:c", status=1)


# --------------------------------------------------------------------------------------------------- crashes and signals


def test_our_own_bug_leaves_a_reproducer(work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **more: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("spikec.build.golden_inputs", broken)
    monkeypatch.setattr("spikec.driver.golden_inputs", broken)
    monkeypatch.setenv("TMPDIR", str(work))
    monkeypatch.setattr(cli.tempfile, "tempdir", None)
    assert cli.main(["compile", "tiny.sir", "-o", "new", "--target", "reference"]) == 70
    err = capsys.readouterr().err
    assert "this is a bug in spikec (ZeroDivisionError: division by zero)" in err and "Traceback" not in err
    folder = Path(err.strip().rpartition(" ")[2])
    assert "in broken" in (folder / "traceback.txt").read_text()
    assert json.loads((folder / "command.json").read_text())["arguments"][1] == "tiny.sir"
    assert spikec.read_graph(folder / "after-canonicalise.sir") == spikec.parse_graph(TINY)
    assert not Path("new").exists()


def test_no_memory_is_no_bug(work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 5.82 TiB")

    monkeypatch.setattr("spikec.driver.compile", greedy)
    told = ran(capsys, "compile", "tiny.sir", "-o", "out", status=1)
    assert told == (
        "error[SPK001]: more memory is needed than there is (Unable to allocate 5.82 TiB)\n  fix: give fewer samples or steps\n"
    )


def test_an_output_is_listed_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ran(capsys, "run", "build", "--input", "x.npz", "--record", "all").partition("\n\n")[0].splitlines()[2:]
    names = [row.split()[0] for row in rows]
    assert len(names) == len(set(names)) > 1


def test_interrupt(work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spikec.build.Build.run", interrupted)
    assert cli.main(["run", "build", "--input", "x.npz"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_goes_away_is_no_error(work: Path) -> None:
    with subprocess.Popen([*SPIKEC, "show", "build", "--full"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        errors = process.stderr.read()
        process.wait()
    assert errors == b""
    assert process.returncode in (0, 141)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_for_people_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    quiet, terminal = io.StringIO(), Terminal()
    with Bar("running", quiet) as silent, Bar("running", terminal) as bar:
        for step in range(1, 5):
            now[0] += 0.6
            silent(step, 4)
            bar(step, 4)
            now[0] += 0.01
            bar(step, 4)  # too soon after the last
    assert quiet.getvalue() == ""
    drawn = [part for part in terminal.getvalue().split("\r") if part.strip()]
    assert len(drawn) == 3 and "50%" in drawn[0] and "100%" in drawn[-1]
    assert terminal.getvalue().endswith("\r")
    with Bar("running", terminal, unit="steps") as bar:
        now[0] += 2
        bar(1260, 3000)
        assert terminal.getvalue().endswith("]  42% (1,260 of 3,000 steps) 2 s")


# ----------------------------------------------------------------------------------------------------------------- start


#: What takes long to import, of ours and of others'; `make bench` measures the seconds.
HEAVY = ("networkx", "lark", "torch", "snntorch", "scipy", "onnx", "nir", "h5py", "matplotlib", "jinja2", "lava")


@pytest.mark.parametrize(
    ("words", "heavy"), [(("-c", "import spikec"), ("numpy", *HEAVY)), (("-m", "spikec.cli", "--help"), HEAVY)]
)
def test_start_is_quick(words: tuple[str, ...], heavy: tuple[str, ...]) -> None:
    """A start imports little; its time on a busy machine says nothing."""
    done = subprocess.run([sys.executable, "-X", "importtime", *words], check=True, capture_output=True, text=True)
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in loaded or "spikec" in loaded
    assert sorted(loaded & set(heavy)) == []


LOADED = """
import sys
from spikec.cli import main
status = main(sys.argv[1:])
heavy = {"torch", "snntorch", "lava", "onnx", "nir", "sklearn"} & {name.split(".")[0] for name in sys.modules}
print(sorted(heavy), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize("words", [["show", "build"], ["run", "build", "--input", "x.npz"], ["targets"], ["verify", "build"]])
def test_no_framework_is_imported(work: Path, words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == "[]", done.stderr


def test_import_loads_nothing_heavy() -> None:
    code = "import spikec, sys; print([m for m in ('numpy', 'networkx', 'lark', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_ctrl_c_in_a_real_process(work: Path) -> None:
    # A shell starts what it puts into the background with this signal ignored.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    code += "import spikec.build, time, sys; spikec.build.load = lambda f: print('on', flush=True) or time.sleep(30);"
    code += "from spikec.cli import main; sys.exit(main(['run', 'build', '--input', 'x.npz']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"on\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.stderr.read() == b"interrupted\n"
        assert process.wait() == 130


def test_an_output_that_is_full_is_the_users_to_mend(work: Path) -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("no /dev/full here")
    with full.open("w") as stream:
        done = subprocess.run([*SPIKEC, "show", "build"], stdout=stream, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error[SPK008]: the standard output cannot be written (No space left on device)\n")


def test_a_closed_output_is_no_bug(work: Path) -> None:
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *SPIKEC, "show", "build"], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
