"""The list of codes: each is raised somewhere, tested somewhere, and on the page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import diagnostics_page
import pytest

from spikec.diagnostics import CODES

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("compiler", "frontend", "passes", "backends")


def mentioned(folders: tuple[str, ...], *leave_out: Path) -> set[str]:
    """Codes within string literals, docstrings and comments left out."""
    found: set[str] = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            if path in leave_out:
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                    found |= set(re.findall(r"\bSPK\d{3}\b", node.value))
    return found


def test_every_code_is_raised_and_none_is_unlisted() -> None:
    raised = mentioned(SOURCES, ROOT / "compiler" / "diagnostics.py")
    assert sorted(set(CODES) - raised) == []
    assert sorted(raised - set(CODES)) == []


def test_every_code_has_a_test() -> None:
    assert sorted(set(CODES) - mentioned(("tests",), Path(__file__))) == []


def test_the_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    assert diagnostics_page.main(["--check"]) == 0, "run: python tools/diagnostics_page.py"
    monkeypatch.setitem(CODES, "SPK599", "something new")
    assert diagnostics_page.main(["--check"]) == 1


def test_every_group_has_a_title() -> None:
    assert {code[3] for code in CODES} == set(diagnostics_page.GROUPS)
