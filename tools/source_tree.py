"""Lay the sources out as the package `spikec`, for tools that cannot read the folder mapping.

`compiler/x.py` is `spikec.x` and `passes/y.py` is `spikec.passes.y` (package-dir in pyproject.toml). mypy
finds modules by folder, so this makes `build/tree/spikec/…` out of symbolic links to the sources, and with
`--mypy` checks the package there and prints the paths of the real files.

    python tools/source_tree.py [--mypy [options for mypy]]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from layout import RUNTIME_PYTHON, Layout, read_layout

ROOT = Path(__file__).resolve().parent.parent
TREE = Path("build/tree")


def build_tree(root: Path, layout: Layout) -> Path:
    """Make or refresh the tree of links under `root` and return its path; links to lost sources go."""
    tree = root / TREE
    wanted: dict[Path, Path] = {}
    for package, folder in layout.packages.items():
        for source in (root / folder).iterdir():
            if source.suffix in {".py", ".pyi"} or source.name == "py.typed":
                wanted[tree.joinpath(*package.split("."), source.name)] = source
    for link in list(tree.rglob("*")):
        if link.is_symlink() and link not in wanted:
            link.unlink()
    for link, source in wanted.items():
        target = os.path.relpath(source, link.parent)
        if link.is_symlink() and os.readlink(link) == target:
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return tree


def real_paths(text: str, layout: Layout) -> str:
    """`text` with each path inside the tree replaced by the path of the source it links to."""

    def real(match: re.Match[str]) -> str:
        *parts, file = match.group(1).split("/")
        folder = layout.packages.get(".".join(parts))
        return match.group(0) if folder is None else f"{folder}/{file}"

    return re.sub(rf"(?:[^\s:\"']*/)?{re.escape(str(TREE))}/(spikec/[\w./]+\.pyi?)", real, text)


def run_mypy(root: Path, options: list[str]) -> int:
    """Check the package with the settings in pyproject.toml, then runtime/ alone for its oldest Python.

    Returns 0, or mypy's exit status where it found something.
    """
    layout = read_layout(root)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", *options]
    environment = {**os.environ, "MYPYPATH": str(build_tree(root, layout))}
    oldest = ".".join(map(str, RUNTIME_PYTHON))
    status = 0
    for what in (["-p", "spikec"], ["--python-version", oldest, "-p", "runtime"]):
        done = subprocess.run([*command, *what], cwd=root, env=environment, capture_output=True, text=True)
        sys.stdout.write(real_paths(done.stdout, layout))
        sys.stderr.write(real_paths(done.stderr, layout))
        status = status or done.returncode
    return status


def main(arguments: list[str]) -> int:
    """Make the tree; with `--mypy`, also run mypy over it."""
    if arguments[:1] == ["--mypy"]:
        return run_mypy(ROOT, arguments[1:])
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    print(build_tree(ROOT, read_layout(ROOT)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
