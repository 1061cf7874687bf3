"""Build folders: the same bytes every time, whole or not at all, and damage is found and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import spikec
from spikec import folder as build_folder
from spikec.diagnostics import CompileError
from spikec.folder import json_text, sha256
from spikec.target import load_target
from support.builds import fixed_build, fixed_target, spikes, tiny


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fails(code: str, action, *words: str) -> CompileError:
    with pytest.raises(CompileError) as caught:
        action()
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)
    return caught.value


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return fixed_build(tmp_path).save(tmp_path / "build")


def test_holds_every_stage_ledger_target_and_golden(saved: Path) -> None:
    names = set(contents(saved))
    stages = ["input", *load_target("loihi2").passes]
    assert {f"ir/{i:02d}-{name}.sir" for i, name in enumerate(stages)} <= names
    assert {"manifest.json", "ledger.json", "target.toml", "golden.npz"} <= names
    manifest = json.loads((saved / "manifest.json").read_text())
    assert [item["pass"] for item in manifest["stages"]] == stages
    assert [item["level"] for item in manifest["stages"]] == [
        "placed" if stage == "place" else "fixed" if number >= stages.index("quantize") else "float"
        for number, stage in enumerate(stages)
    ]
    assert manifest["lag"] == 2 and manifest["dt"] == 0.001
    assert manifest["inputs"]["in"] == {"kind": "spike", "shape": [3], "dtype": "i8", "bounds": None}
    assert set(manifest["files"]) == names - {"manifest.json"}


def test_loaded_build_is_the_same_build(saved: Path, tmp_path: Path) -> None:
    made, loaded = fixed_build(tmp_path), spikec.load(saved)
    assert loaded.stage_names == made.stage_names
    assert [s.graph for s in loaded.stages] == [s.graph for s in made.stages]
    assert loaded.ledger.as_json() == made.ledger.as_json()
    assert loaded.target == made.target
    x = spikes(seed=5)
    for name, array in made.run(x, record="all").records.items():
        assert np.array_equal(array, loaded.run(x, record="all").records[name])


def test_saving_a_loaded_build_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    again = spikec.load(saved).save(tmp_path / "again")
    assert contents(again) == contents(saved)


COMPILE = """
import sys, spikec
from support.builds import fixed_target, spikes, tiny
from pathlib import Path
spikec.compile(tiny(), target=fixed_target(Path(sys.argv[1])), calibrate=spikes(20), bits=8).save(Path(sys.argv[1]) / "out")
"""


def test_same_in_same_out(tmp_path: Path) -> None:
    """Two processes with other hash seeds, in other folders, at other times."""
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / f"place-{seed}"
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)}
        subprocess.run([sys.executable, "-c", COMPILE, str(folder)], check=True, env=environment, cwd=folder)
        found.append(contents(folder / "out"))
    assert found[0] == found[1]
    assert str(tmp_path).encode() not in b"".join(found[0].values())


def test_overwrites_its_own_kind_in_one_step(saved: Path, tmp_path: Path) -> None:
    before = saved.stat().st_ino
    other = spikec.compile(tiny(), target="reference")
    other.save(saved)
    assert spikec.load(saved).target.name == "reference"
    assert saved.stat().st_ino != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["build", "loihi2-reference.toml"]


def test_replaces_without_the_kernel_s_exchange(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoExchange:
        def __init__(self, *arguments: object, **more: object) -> None: ...

    monkeypatch.setattr(build_folder.ctypes, "CDLL", NoExchange)
    spikec.compile(tiny(), target="reference").save(saved)
    assert spikec.load(saved).target.name == "reference"
    assert not list(saved.parent.glob(".build*"))


def test_leaves_a_foreign_folder_alone(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "thesis.tex").write_text("years of work")
    fails("SPK008", lambda: spikec.compile(tiny(), target="reference").save(place), "not a spikec build")
    assert contents(place) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_no_place_for_a_folder(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    place = file if kind == "file" else file / "build"
    fails("SPK008", lambda: spikec.compile(tiny(), target="reference").save(place), "not a folder")
    assert file.read_text() == "x"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    spikec.compile(tiny(), target="reference").save(place)
    assert build_folder.is_build(place)


def test_nothing_is_left_of_a_save_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = spikec.compile(tiny(), target="reference")

    def broken(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spikec.build.seal", broken)
    fails("SPK008", lambda: build.save(tmp_path / "deep" / "er" / "build"), "No space left")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_old_build(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(saved)
    monkeypatch.setattr("spikec.build.seal", lambda *a: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError):
        spikec.load(saved).save(saved)
    assert contents(saved) == before
    assert not list(saved.parent.glob(".build*"))


def test_permissions_are_those_of_any_folder(saved: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert saved.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("name", ["ir/00-input.sir", "ledger.json", "target.toml", "golden.npz"])
@pytest.mark.parametrize("damage", ["a bit", "cut", "gone"])
def test_a_damaged_file_is_named(saved: Path, name: str, damage: str) -> None:
    path = saved / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    fails("SPK402", lambda: spikec.load(saved), str(path), "missing" if damage == "gone" else "damaged")


def test_a_damaged_manifest(saved: Path) -> None:
    path = saved / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"lag": 2', '"lag": 1'))
    fails("SPK402", lambda: spikec.load(saved), "manifest.json")
    path.write_text(text[:100])
    fails("SPK402", lambda: spikec.load(saved), "manifest.json")


def test_folders_that_are_no_builds(tmp_path: Path, saved: Path) -> None:
    fails("SPK002", lambda: spikec.load(tmp_path / "nowhere"), "no such build folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    fails("SPK401", lambda: spikec.load(empty), "manifest.json")
    (empty / "manifest.json").write_text('{"name": "a web page"}')
    fails("SPK401", lambda: spikec.load(empty), "belongs to something else")


def test_a_newer_format_is_refused_by_name(saved: Path) -> None:
    path = saved / "manifest.json"
    data = json.loads(path.read_text())
    data |= {"version": 7, "spikec": "9.1.0"}
    data.pop("sha256")
    data["sha256"] = sha256(json_text(data).encode())
    path.write_text(json_text(data))
    fails("SPK403", lambda: spikec.load(saved), "spikec 9.1.0", "format 7")


def test_files_that_somebody_adds_do_no_harm(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    assert spikec.load(saved).target.name == "loihi2-reference"


LEAN = """
import sys, numpy as np, spikec
build = spikec.load(sys.argv[1])
result = build.run(np.ones((1, 4, 3)), record="all")
assert result.outputs["out"].shape == (1, 4, 2)
print(sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "snntorch", "lava") or name.startswith("spikec.frontend")))
"""


def test_running_needs_neither_torch_nor_the_frontend(saved: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEAN, str(saved)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_golden_samples_come_from_the_calibration_data(tmp_path: Path) -> None:
    x = spikes(20, seed=9)
    build = spikec.compile(tiny(), target=fixed_target(tmp_path), calibrate=x)
    assert np.array_equal(build.golden["in"], x[:3])
    without = spikec.compile(tiny(), target="reference")
    assert np.array_equal(without.golden["in"], spikec.compile(tiny(), target="reference").golden["in"])


@pytest.mark.parametrize("bits", [None, 8])
def test_a_build_for_c_holds_its_sources_and_is_run_from_them(tmp_path: Path, bits: int | None) -> None:
    x = spikes(20)
    made = [spikec.compile(tiny(), target="host", bits=bits, calibrate=x).save(tmp_path / name) for name in ("a", "b")]
    assert contents(made[0]) == contents(made[1])
    assert {"c/Makefile", "c/network.c"} <= set(contents(made[0]))
    loaded = spikec.load(made[0])
    assert loaded.graph().level == ("fixed" if bits else "float")
    assert loaded.verify(x, ["numpy", "c"]).ok
    assert not list(made[0].glob("c/*.o"))  # nothing is built inside the artefact


def test_options_that_are_lists_are_kept(tmp_path: Path) -> None:
    """Layers that stay whole also do when a build is compiled again, from memory and from its folder."""
    x = spikes(8, 10)
    made = spikec.compile(tiny(), target="host", bits=8, calibrate=x, prune=0.5, prune_scope="layer", keep_layers=("fc1",))
    whole = np.count_nonzero(spikec.compile(tiny(), target="host", bits=8, calibrate=x).graph()["fc1"].weight)
    assert np.count_nonzero(made.graph()["fc1"].weight) == whole
    loaded = spikec.load(made.save(tmp_path / "build"))
    for build in (made, loaded):
        assert build.options["keep_layers"] == ("fc1",)
        assert spikec.compile(build, calibrate=x).ir() == made.ir()
    assert contents(loaded.save(tmp_path / "again")) == contents(tmp_path / "build")
