"""The fuzzers over the kept corpus, and a little further; `make fuzz` runs them for as long as one likes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_run", ROOT / "tests" / "fuzz" / "run.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["fuzz_run"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz = _load()


@pytest.fixture
def fuzzer(tools: Callable[..., None], tmp_path: Path) -> Path:
    """A folder to build in; skips where clang or its runtime is missing."""
    tools("clang")
    (tmp_path / "probe.c").write_text("int LLVMFuzzerTestOneInput(const char *d, long n) { return !d && n; }\n")
    command = ["clang", "-fsanitize=fuzzer,address,undefined", "-o", "probe", "probe.c"]
    if subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0:
        pytest.skip("clang without its runtime: sudo apt-get install -y libclang-rt-dev")
    return tmp_path


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_the_kept_corpus_and_a_little_further(name: str, fuzzer: Path) -> None:
    program = fuzz.build(name, fuzzer)
    kept = fuzz.unpack(name, fuzzer / "kept")
    count = len(list(kept.iterdir()))
    assert count > 50
    # Else libFuzzer looks every second for what others have put into the folder, and counts what it finds of its own.
    options = (f"-runs={count + 5000}", "-seed=1", "-reload=0")
    done = subprocess.run(fuzz.arguments(name, program, *options, str(kept)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {count + 5000} runs" in done.stderr


@pytest.mark.parametrize(
    ("name", "file", "before", "after"),
    [
        (
            "api",
            "spk_input.h",
            "!spk_rising(index, in->count) || (in->count > 0 && index[in->count - 1u] >= SPK_SIZE)",
            "!spk_rising(index, in->count)",
        ),
        ("text", "main.c", "index < 0 || index >= (int64_t)p->size ||", ""),
    ],
)
def test_a_missing_check_is_found(
    name: str, file: str, before: str, after: str, fuzzer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus reaches every check: without one, it fails."""
    compile_ = fuzz._compile

    def damaged(folder: Path, *arguments: object) -> Path:
        text = (folder / file).read_text()
        assert before in text
        (folder / file).write_text(text.replace(before, after))
        return Path(compile_(folder, *arguments))

    monkeypatch.setattr(fuzz, "_compile", damaged)
    program = fuzz.build(name, fuzzer)
    kept = fuzz.unpack(name, fuzzer / "kept")
    done = subprocess.run(fuzz.arguments(name, program, "-runs=0", str(kept)), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer" in done.stderr or "deadly signal" in done.stderr or "runtime error" in done.stderr
