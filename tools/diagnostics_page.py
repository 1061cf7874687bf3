"""Write docs/diagnostics.md from the list of codes, so that the page cannot be out of date.

python tools/diagnostics_page.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from spikec.diagnostics import CODES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "diagnostics.md"
GROUPS = {
    "0": "The command line, files and data",
    "1": "Tracing a model",
    "2": "What the target cannot do",
    "3": "The IR and its text form",
    "4": "Build folders",
    "5": "Backends and the tools they need",
}
HEAD = """# Diagnostics

Every message that spikec has for a user is one line of this form, then notes and what to do about it:

    model.py:31 (net.fc1): error[SPK305]: %fc1: weight holds nan at [0, 3] (1 of 456)

the place in the user's model if there is one, the code, what is wrong. A code never changes its meaning and is never used
again for something else. In Python the same is a `spikec.CompileError`, with all messages in `error.diagnostics`; on the
command line `--json` prints them as data. Exit status 1 means that the user can mend it; 70 is a bug in spikec.

This page is made by `tools/diagnostics_page.py` from `spikec.CODES`.
"""


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    for digit, title in GROUPS.items():
        rows = [f"| {code} | {text} |" for code, text in CODES.items() if code[3] == digit]
        parts.append("\n".join([f"## {title}", "", "| code | meaning |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Write the page, or with --check only say whether it is current."""
    if arguments == ["--check"]:
        return 0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page() else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
