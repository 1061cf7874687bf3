"""Write docs/support.md and the short table in README.md from the front ends' own lists, so that neither can be out of date.

python tools/support_page.py [--check]

A front end lists its rows as SUPPORT (`spikec.frontend.registry.Support`) and the version that it was tested with as VERSION.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Final

from spikec.frontend.registry import FRAMEWORKS, Support

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "support.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- support: made by tools/support_page.py -->\n", "<!-- /support -->\n"

#: Titles of the frameworks whose modules the tracer knows, in the order of the page.
TITLES: Final = {
    "spikec": "spikec.nn",
    "snntorch": "snnTorch",
    "spikingjelly": "SpikingJelly",
    "norse": "Norse",
    "sinabs": "sinabs",
}
#: What reads files, and PyTorch itself: title -> module.
READERS: Final = {
    "PyTorch functions": "spikec.frontend.tracing.operations",
    "NIR": "spikec.frontend.nir",
    "SLAYER (lava-dl)": "spikec.frontend.slayer",
    "ONNX": "spikec.frontend.onnx",
}
HEAD = """# What the front ends take

- **exact**: equal spikes wherever every number is exact (with dyadic weights and inputs the tests allow no difference); with
  trained weights, up to the order in which a sum is rounded.
- **approximate**: what differs is in the note, and in the ledger of every build.
- **refused**: an error that says where and what to do instead.

A module that is in no row is traced inside, like hand-written code. This page is made by `tools/support_page.py` from the lists in
the front ends themselves.
"""


def tables() -> dict[str, tuple[str, tuple[Support, ...]]]:
    """Title -> version and rows of every front end that has a list."""
    homes = {TITLES[package]: home.partition(":")[0] for package, home in sorted(FRAMEWORKS.items(), key=_place)}
    found = {}
    for title, home in {**homes, **READERS}.items():
        try:
            module = import_module(home)
        except ModuleNotFoundError as error:
            if error.name != home:
                raise
            continue
        rows = getattr(module, "SUPPORT", ())
        if rows:
            found[title] = (str(getattr(module, "VERSION", "")), tuple(rows))
    return found


def _place(item: tuple[str, str]) -> int:
    return list(TITLES).index(item[0])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page() -> str:
    """The text of docs/support.md."""
    parts = [HEAD]
    for title, (version, rows) in tables().items():
        lines = [f"## {title}", ""]
        if version:
            lines += [f"Tested with {version}.", ""]
        lines += ["| module | option | | note |", "|---|---|---|---|"]
        lines += [f"| {_cell(r.module)} | {_cell(r.option)} | {r.status} | {_cell(r.note)} |" for r in rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _names(rows: Iterable[Support]) -> str:
    names = dict.fromkeys(name.strip() for row in rows for name in row.module.split(","))
    return ", ".join(f"`{name}`" if name.isidentifier() or "." in name else name for name in names)


def short() -> str:
    """The table in README.md: which modules, without their options."""
    lines = ["| front end | tested with | taken exactly | refused |", "|---|---|---|---|"]
    for title, (version, rows) in tables().items():
        if title == "PyTorch functions":
            continue
        exact = [row for row in rows if row.status == "exact" and not (row.option and row.module.islower())]
        whole = {row.module for row in exact}
        refused = [row for row in rows if row.status == "refused" and row.module not in whole and not row.option]
        lines.append(f"| {title} | {version} | {_names(exact)} | {_names(refused)} |")
    return "\n".join(lines) + "\n"


def readme() -> str:
    """README.md with the table in its place."""
    text = README.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"{README.name} has no place for the table: {BEGIN.strip()} … {END.strip()}")
    return f"{before}{BEGIN}{short()}{END}{after}"


def main(arguments: list[str]) -> int:
    """Write both, or with --check only say whether they are current."""
    wanted = {PAGE: page(), README: readme()}
    if arguments == ["--check"]:
        stale = [path.name for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
        if stale:
            print(f"{' and '.join(stale)} not current: run python tools/support_page.py", file=sys.stderr)
        return 1 if stale else 0
    for path, text in wanted.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
