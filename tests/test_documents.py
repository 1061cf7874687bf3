"""The code in README.md and CONTRIBUTING.md runs, and prints what stands there.

The ```python blocks of a page run one after the other, in one namespace; a ```text block is what the block before it prints.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import spikec
from spikec import cli
from spikec.target import parse_target

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "docs/optimizing.md")
GUIDES = ("docs/optimizing.md", "docs/loihi2.md", "docs/c.md", "docs/frontends.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    return [(m[1], m[2]) for m in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))]


def script(page: str) -> tuple[str, str]:
    """The page's Python as one program, and what it has to print."""
    code, expected = [], []
    for kind, text in blocks(page):
        if kind == "python":
            code.append(text)
        elif kind == "text":
            expected.append(text)
    return "\n".join(code), "".join(expected)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_prints_what_the_page_says(page: str, tmp_path: Path) -> None:
    code, expected = script(page)
    assert code and expected
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected


def test_the_target_of_the_page_is_valid() -> None:
    found = [parse_target(text, "page") for kind, text in blocks("CONTRIBUTING.md") if kind == "toml"]
    assert [target.integer("memory") for target in found] == [262144]


@pytest.mark.parametrize(
    "page", ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/diagnostics.md", "docs/support.md", *GUIDES)
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists(), link


def test_the_readme_names_every_folder_and_target() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for folder in ("compiler", "frontend", "passes", "backends", "runtime", "tests", "examples", "docs", "tools"):
        assert f"{folder}/" in text
    for target in spikec.target_names():
        assert f"`{target}`" in text


@pytest.mark.parametrize("page", ("README.md", *GUIDES))
def test_the_commands_of_the_pages_are_understood(page: str) -> None:
    """Every indented `spikec …` line parses, and every `make …` of the page is in a Makefile."""
    text = (ROOT / page).read_text(encoding="utf-8")
    commands = re.findall(r"^    spikec (.+)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        cli._parser().parse_args(shlex.split(command, comments=True))
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    for goal in re.findall(r"`make ([a-z-]+)`", text):
        assert f"\n{goal}:" in made or goal == "check", goal
