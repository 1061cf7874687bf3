"""The layout rules of tools/layout.py hold here, and each of them fails on a tree that breaks it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import layout
import source_tree

ROOT = Path(__file__).resolve().parent.parent

PYPROJECT = """
[tool.setuptools]
packages = ["spikec", "spikec.ir", "spikec.frontend", "spikec.passes", "spikec.backends", "spikec.runtime"]
[tool.setuptools.package-dir]
"spikec" = "compiler"
"spikec.ir" = "compiler/ir"
"spikec.frontend" = "frontend"
"spikec.passes" = "passes"
"spikec.backends" = "backends"
"spikec.runtime" = "runtime"
"""

GOOD = {
    "compiler/__init__.py": "def __getattr__(name):\n    from spikec import driver\n    return getattr(driver, name)\n",
    "compiler/cli.py": "import argparse\ndef main():\n    from . import driver\n    return driver\n",
    "compiler/driver.py": "from spikec.passes.fold import Fold\nfrom .ir import graph\nimport spikec.backends\n",
    "compiler/ir/__init__.py": "",
    "compiler/ir/graph.py": "import numpy\nfrom spikec.runtime import trace\ndef f():\n    import networkx\n",
    "frontend/__init__.py": "import torch\nfrom spikec.ir.graph import Graph\n",
    "passes/__init__.py": "",
    "passes/fold.py": "from ..ir import graph\nfrom . import helpers\n",
    "passes/helpers.py": "",
    "backends/__init__.py": "from spikec.ir import graph\n",
    "backends/templates/run.py": "import lava\n",
    "runtime/__init__.py": "",
    "runtime/trace.py": "import json, numpy as np\nfrom . import encode\n",
    "runtime/encode.py": "",
}


def tree(root: Path, changes: dict[str, str], pyproject: str = PYPROJECT) -> Path:
    """A small correct source tree under `root`, then the changes."""
    for name, text in {"pyproject.toml": pyproject, **GOOD, **changes}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("check", layout.CHECKS, ids=lambda check: check.__name__)
def test_this_tree(check: Callable[[Path], list[str]]) -> None:
    assert check(ROOT) == []


@pytest.mark.parametrize("check", layout.CHECKS, ids=lambda check: check.__name__)
def test_a_small_correct_tree(check: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert check(tree(tmp_path, {})) == []


def test_this_tree_is_really_read() -> None:
    names = {module.name for module in layout.modules(ROOT)}
    assert {"spikec", "spikec.diagnostics", "spikec.ir", "spikec.frontend.nn", "spikec.runtime"} <= names


# --- the package list -----------------------------------------------------------------------------


def test_folder_missing_from_the_list(tmp_path: Path) -> None:
    root = tree(tmp_path, {"backends/fpga/__init__.py": ""})
    assert layout.check_package_list(root) == [
        "backends/fpga: package spikec.backends.fpga is missing from `packages` in pyproject.toml"
    ]


def test_folder_without_init(tmp_path: Path) -> None:
    root = tree(tmp_path, {})
    (root / "passes/__init__.py").unlink()
    assert layout.check_package_list(root) == ["passes: has no __init__.py"]


def test_listed_package_without_folder(tmp_path: Path) -> None:
    root = tree(tmp_path, {}, PYPROJECT.replace('"spikec.ir",', '"spikec.ir", "spikec.gone",'))
    assert layout.check_package_list(root) == ["pyproject.toml: package spikec.gone has no folder '?'"]


def test_package_mapped_to_the_wrong_folder(tmp_path: Path) -> None:
    root = tree(tmp_path, {}, PYPROJECT.replace('"spikec.passes" = "passes"', '"spikec.passes" = "frontend"'))
    assert layout.check_package_list(root) == [
        "passes: pyproject.toml maps spikec.passes to 'frontend' instead",
        "pyproject.toml: folder frontend is spikec.frontend, not spikec.passes",
    ]


# --- collisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("compiler/passes.py", "compiler/passes.py: module spikec.passes is also passes/__init__.py"),
        ("compiler/ir.py", "compiler/ir.py: module spikec.ir is also compiler/ir/__init__.py"),
        (
            "compiler/passes/fold.py",
            "compiler/passes/fold.py: module spikec.passes.fold is also passes/fold.py",
        ),
    ],
)
def test_collision(tmp_path: Path, file: str, problem: str) -> None:
    assert problem in layout.check_collisions(tree(tmp_path, {file: ""}))


# --- the import table -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("runtime/bad.py", "from ..ir import graph", "1: runtime may not import core (spikec.ir.graph)"),
        ("compiler/bad.py", "import spikec.passes.fold", "1: core may not import passes (spikec.passes.fold)"),
        ("compiler/bad.py", "from spikec import passes", "1: core may not import passes (spikec.passes)"),
        ("compiler/bad.py", "from . import driver", "1: core may not import driver (spikec.driver)"),
        ("compiler/bad.py", "from spikec import compile", "1: core may not import driver (spikec)"),
        ("compiler/ir/bad.py", "from ..cli import main", "1: core may not import driver (spikec.cli)"),
        ("frontend/bad.py", "from .. import backends", "1: frontend may not import backends (spikec.backends)"),
        ("passes/bad.py", "\ndef f():\n    import spikec.frontend", "3: passes may not import frontend (spikec.frontend)"),
        ("backends/bad.py", "if 1:\n  from ..passes.fold import Fold", "2: backends may not import passes (spikec.passes.fold)"),
        ("passes/bad.py", "from spikec.driver import x", "1: passes may not import driver (spikec.driver)"),
        (
            "compiler/bad.py",
            "import importlib\nf = importlib.import_module('spikec.passes.fold')",
            "2: core may not import passes (spikec.passes.fold)",
        ),
    ],
)  # fmt: skip
def test_import_against_the_table(tmp_path: Path, file: str, text: str, problem: str) -> None:
    assert layout.check_import_table(tree(tmp_path, {file: text})) == [f"{file}:{problem}"]


# --- what a start loads ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torch", "lava.magma", "onnx", "nir", "snntorch", "h5py", "sklearn.svm"])
def test_framework_at_the_top(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path, {"compiler/__init__.py": f"from .ir import graph\nclass A:\n    import {name}\n"})
    assert layout.check_light_start(root) == [f"compiler/__init__.py:3: {name} is imported at start: spikec"]


@pytest.mark.parametrize("name", ["networkx", "lark"])
def test_slow_library_behind_two_imports(tmp_path: Path, name: str) -> None:
    files = {"compiler/__init__.py": "from .ir import graph", "compiler/ir/graph.py": f"from {name} import x"}
    assert layout.check_light_start(tree(tmp_path, files)) == [
        f"compiler/ir/graph.py:1: {name} is imported at start: spikec → spikec.ir.graph"
    ]


def test_parent_packages_are_loaded_too(tmp_path: Path) -> None:
    files = {"compiler/__init__.py": "import spikec.ir.graph", "compiler/ir/__init__.py": "import lark"}
    assert layout.check_light_start(tree(tmp_path, files)) == [
        "compiler/ir/__init__.py:1: lark is imported at start: spikec → spikec.ir"
    ]


def test_framework_at_the_top_of_the_command_line(tmp_path: Path) -> None:
    files = {"compiler/cli.py": "from . import driver", "compiler/driver.py": "import spikec.frontend"}
    assert layout.check_light_start(tree(tmp_path, files)) == [
        "frontend/__init__.py:1: torch is imported at start: spikec.cli → spikec.driver → spikec.frontend"
    ]


def test_imports_for_types_or_in_functions_are_no_load(tmp_path: Path) -> None:
    text = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import lava\n"
        "class A:\n    def g(self):\n        return lambda: __import__('onnx')\n"
    )
    assert layout.check_light_start(tree(tmp_path, {"compiler/__init__.py": text})) == []
    text = text.replace("    import torch\n", "    pass\nelse:\n    import torch\n")
    assert layout.check_light_start(tree(tmp_path, {"compiler/__init__.py": text})) != []


def loaded(statement: str, names: set[str], path: Path | None = None) -> list[str]:
    """Which of `names` are loaded after `statement` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sorted({names!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=path, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_spikec_loads_nothing_heavy() -> None:
    assert loaded("import spikec", layout.LAZY_AT_START["spikec"]) == []


def test_a_heavy_import_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "spikec_heavy.py").write_text("import networkx\n")
    assert loaded("import spikec_heavy", {"networkx", "lark"}, tmp_path) == ["networkx"]


# --- the runtime ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import networkx", "1: runtime may import only NumPy and Python 3.10's library, not networkx"),
        ("def f():\n    import scipy.sparse", "2: runtime may import only NumPy and Python 3.10's library, not scipy.sparse"),
        ("import tomllib", "1: runtime may import only NumPy and Python 3.10's library, not tomllib"),
        ("import spikec.runtime.trace", "1: runtime is copied without spikec: import spikec.runtime.trace relatively"),
    ],
)  # fmt: skip
def test_runtime_imports(tmp_path: Path, text: str, problem: str) -> None:
    assert layout.check_runtime(tree(tmp_path, {"runtime/bad.py": text})) == [f"runtime/bad.py:{problem}"]


def test_runtime_syntax(tmp_path: Path) -> None:
    root = tree(tmp_path, {"runtime/bad.py": "try:\n    pass\nexcept* ValueError:\n    pass\n"})
    (problem,) = layout.check_runtime(root)
    assert problem.startswith("runtime/bad.py:") and "not Python 3.10" in problem


# --- the command and the tree for mypy ------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert layout.main([str(tree(tmp_path, {}))]) == 0
    assert capsys.readouterr().out == "layout: 13 modules in 6 packages, no violation\n"
    assert layout.main([str(tree(tmp_path, {"compiler/passes.py": ""}))]) == 1
    assert "spikec.passes is also" in capsys.readouterr().err


def test_source_tree(tmp_path: Path) -> None:
    root = tree(tmp_path, {})
    small = layout.read_layout(root)
    made = source_tree.build_tree(root, small)
    assert (made / "spikec/passes/fold.py").read_text() == GOOD["passes/fold.py"]
    (root / "passes/fold.py").unlink()
    source_tree.build_tree(root, small)
    assert not (made / "spikec/passes/fold.py").is_symlink()
    message = "build/tree/spikec/ir/graph.py:3: error: no\n/a/b/build/tree/spikec/cli.py:1: note: spikec/x.py"
    assert source_tree.real_paths(message, small) == ("compiler/ir/graph.py:3: error: no\ncompiler/cli.py:1: note: spikec/x.py")


def test_no_public_function_has_the_name_of_a_module() -> None:
    """Importing `spikec.x` sets the attribute x of the package, whatever stood there before."""
    from importlib.util import find_spec

    import spikec

    modules = [name for name in spikec.__all__ if not name.startswith("_") and name != "nn" and find_spec(f"spikec.{name}")]
    assert not modules
