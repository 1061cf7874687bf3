"""The layout rules: which folder is which package, and who may import whom.

Each rule is a function from the root of a source tree to the list of its violations, `path:line: problem`, so
that tests/test_layout.py can show on a small wrong tree that the rule bites. Nothing is imported: the sources
are parsed.

    python tools/layout.py [ROOT]     # prints every violation; exit status 1 if there is one
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE_FOLDERS = ("compiler", "frontend", "passes", "backends", "runtime")
DATA_FOLDERS = {
    "templates",
    "__pycache__",
}  # Python files in `templates` are text for a backend to emit, not modules
DRIVER_MODULES = {
    "spikec",
    "spikec.account",
    "spikec.cli",
    "spikec.driver",
    "spikec.fit",
    "spikec.models",
    "spikec.neurons",
    "spikec.nn",
    "spikec.recovery",
    "spikec.teacher",
    "spikec.tuning",
}

MAY_IMPORT: dict[str, set[str]] = {
    "runtime": {"runtime"},
    "core": {"core", "runtime"},
    "frontend": {"frontend", "core", "runtime"},
    "passes": {"passes", "core", "runtime"},
    "backends": {"backends", "core", "runtime"},
    "driver": {"driver", "frontend", "passes", "backends", "core", "runtime"},
}

# What a start must not load: frameworks whatever the command is, and for `import spikec` also what is slow.
FRAMEWORKS = {"torch", "lava", "onnx", "nir", "snntorch", "h5py", "sklearn", "scipy"}
LAZY_AT_START: dict[str, set[str]] = {
    "spikec": FRAMEWORKS | {"networkx", "lark", "jinja2"},
    "spikec.cli": FRAMEWORKS,
}

RUNTIME_PYTHON = (3, 10)
STDLIB_AFTER_RUNTIME_PYTHON = {"tomllib", "annotationlib", "compression"}


@dataclass(frozen=True)
class Layout:
    """What pyproject.toml says: package name to folder, in the order of the package list."""

    packages: dict[str, str]


@dataclass(frozen=True)
class Module:
    """One source file under its dotted name."""

    name: str
    path: Path
    is_package: bool


@dataclass(frozen=True)
class Import:
    """One import statement's target: `base` imported, or `attribute` out of it (a submodule, perhaps)."""

    base: str
    attribute: str | None
    line: int
    relative: bool
    at_load: bool  # executed when the module is loaded: not inside a function, not under TYPE_CHECKING


def read_layout(root: Path) -> Layout:
    """The package list of `root`/pyproject.toml, each package with its folder."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders: dict[str, str] = settings.get("package-dir", {})
    return Layout({name: folders.get(name, "?") for name in settings["packages"]})


def expected_package(folder: Path) -> str:
    """The package that a source folder, relative to the root, has to be: `compiler` is `spikec` itself."""
    parts = folder.parts[1:] if folder.parts[0] == "compiler" else folder.parts
    return ".".join(("spikec", *parts))


def source_folders(root: Path) -> Iterator[Path]:
    """Every folder of the source layers that holds Python files, relative to `root`; no data folders."""
    for top in SOURCE_FOLDERS:
        found = {path.parent.relative_to(root) for path in (root / top).rglob("*.py")}
        yield from sorted(folder for folder in found if not DATA_FOLDERS.intersection(folder.parts))


def modules(root: Path) -> list[Module]:
    """Every source file as the module it has to be, listed in pyproject.toml or not."""
    found = []
    for folder in source_folders(root):
        package = expected_package(folder)
        for path in sorted((root / folder).glob("*.py")):
            is_package = path.stem == "__init__"
            name = package if is_package else f"{package}.{path.stem}"
            found.append(Module(name, path.relative_to(root), is_package))
    return found


def layer(module: str) -> str:
    """The layer of a dotted module name."""
    if module in DRIVER_MODULES:
        return "driver"
    part = module.split(".")[1]
    return part if part in {"runtime", "frontend", "passes", "backends"} else "core"


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports(root: Path, module: Module) -> list[Import]:
    """Every import of a module, those inside functions and `import_module("literal")` included."""
    found: list[Import] = []
    package = module.name if module.is_package else module.name.rpartition(".")[0]

    def visit(node: ast.AST, at_load: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, node.lineno, False, at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                above = ".".join(parents[: len(parents) - node.level + 1])
                base = f"{above}.{base}" if base else above
            for alias in node.names:
                found.append(Import(base, alias.name, node.lineno, bool(node.level), at_load))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            value = node.args[0].value
            if called in {"import_module", "__import__"} and isinstance(value, str) and value[:1] != ".":
                found.append(Import(value, None, node.lineno, False, at_load))
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            for statement in node.body:
                visit(statement, False)
            for statement in node.orelse:
                visit(statement, at_load)
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            # Decorators, defaults and annotations run at load; only the body waits for a call.
            body: list[ast.AST] = [*node.body] if isinstance(node.body, list) else [node.body]
            for child in ast.iter_child_nodes(node):
                visit(child, at_load and child not in body)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, at_load)

    visit(ast.parse((root / module.path).read_text(encoding="utf-8"), str(module.path)), True)
    return found


def resolve(imported: Import, known: set[str]) -> str:
    """The module an import reaches: `from a import b` is `a.b` where that is a module, else `a`."""
    submodule = f"{imported.base}.{imported.attribute}"
    return submodule if submodule in known else imported.base


def _is_spikec(name: str) -> bool:
    return name == "spikec" or name.startswith("spikec.")


def check_package_list(root: Path) -> list[str]:
    """Folders with Python files are listed packages under the right name; listed packages exist."""
    problems = []
    listed = read_layout(root).packages
    for folder in source_folders(root):
        package = expected_package(folder)
        if package not in listed:
            problems.append(f"{folder}: package {package} is missing from `packages` in pyproject.toml")
        elif listed[package] != folder.as_posix():
            problems.append(f"{folder}: pyproject.toml maps {package} to {listed[package]!r} instead")
        if not (root / folder / "__init__.py").is_file():
            problems.append(f"{folder}: has no __init__.py")
    for package, folder_name in listed.items():
        if not (root / folder_name).is_dir():
            problems.append(f"pyproject.toml: package {package} has no folder {folder_name!r}")
        elif expected_package(Path(folder_name)) != package:
            right = expected_package(Path(folder_name))
            problems.append(f"pyproject.toml: folder {folder_name} is {right}, not {package}")
    return problems


def check_collisions(root: Path) -> list[str]:
    """No two files are the same module, as compiler/passes.py and passes/__init__.py would be."""
    homes: dict[str, list[Path]] = {}
    for module in modules(root):
        homes.setdefault(module.name, []).append(module.path)
    for folder in source_folders(root):  # a package collides even before it has an __init__.py
        init = folder / "__init__.py"
        paths = homes.setdefault(expected_package(folder), [])
        if init not in paths:
            paths.append(init)
    return [
        f"{paths[0]}: module {name} is also {', '.join(map(str, paths[1:]))}" for name, paths in homes.items() if len(paths) > 1
    ]


def check_import_table(root: Path) -> list[str]:
    """Every import of spikec from spikec stays within the table MAY_IMPORT, wherever in a file it stands."""
    problems = []
    everything = modules(root)
    known = {module.name for module in everything}
    for module in everything:
        here = layer(module.name)
        for imported in imports(root, module):
            target = resolve(imported, known)
            if _is_spikec(target) and layer(target) not in MAY_IMPORT[here]:
                problems.append(f"{module.path}:{imported.line}: {here} may not import {layer(target)} ({target})")
    return problems


def check_light_start(root: Path) -> list[str]:
    """Nothing that a start loads imports a framework at its top; the message gives the chain of imports."""
    by_name = {module.name: module for module in modules(root)}
    known = set(by_name)
    problems = []
    for start, unwanted in LAZY_AT_START.items():
        chains: dict[str, list[str]] = {}
        queue = [(start, [start])]
        while queue:
            name, chain = queue.pop(0)
            if name in chains or name not in known:
                continue
            chains[name] = chain
            for imported in imports(root, by_name[name]):
                if not imported.at_load:
                    continue
                target = resolve(imported, known)
                if target.split(".")[0] in unwanted:
                    where = f"{by_name[name].path}:{imported.line}"
                    problems.append(f"{where}: {target} is imported at start: {' → '.join(chain)}")
                elif _is_spikec(target):
                    parts = target.split(".")
                    parents = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
                    queue.extend((parent, [*chain, parent]) for parent in parents)
    return sorted(set(problems))


def check_runtime(root: Path) -> list[str]:
    """runtime/ can be copied to a machine with NumPy and Python 3.10 alone: imports and syntax allow it."""
    problems = []
    allowed = (set(sys.stdlib_module_names) | {"numpy"}) - STDLIB_AFTER_RUNTIME_PYTHON
    version = ".".join(map(str, RUNTIME_PYTHON))
    for module in modules(root):
        if layer(module.name) != "runtime":
            continue
        try:
            source = (root / module.path).read_text(encoding="utf-8")
            ast.parse(source, str(module.path), feature_version=RUNTIME_PYTHON)
        except SyntaxError as error:
            problems.append(f"{module.path}:{error.lineno}: not Python {version}: {error.msg}")
            continue
        for imported in imports(root, module):
            where = f"{module.path}:{imported.line}"
            if imported.relative:
                continue  # within spikec, so the import table's business
            if _is_spikec(imported.base):
                problems.append(f"{where}: runtime is copied without spikec: import {imported.base} relatively")
            elif imported.base.split(".")[0] not in allowed:
                only = f"NumPy and Python {version}'s library"
                problems.append(f"{where}: runtime may import only {only}, not {imported.base}")
    return problems


CHECKS: tuple[Callable[[Path], list[str]], ...] = (
    check_package_list,
    check_collisions,
    check_import_table,
    check_light_start,
    check_runtime,
)


def main(arguments: list[str]) -> int:
    """Run every check on the tree given, or on the one this file is in."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    problems = [problem for check in CHECKS for problem in check(root)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        packages = read_layout(root).packages
        print(f"layout: {len(modules(root))} modules in {len(packages)} packages, no violation")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
