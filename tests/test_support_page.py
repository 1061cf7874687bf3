"""The support table says what the front ends say."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import support_page

from spikec.frontend.registry import FRAMEWORKS, Support


def test_the_pages_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert support_page.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(support_page.README.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(support_page, "README", readme)
    monkeypatch.setattr(support_page, "PAGE", tmp_path / "docs" / "support.md")
    assert support_page.main(["--check"]) == 1
    assert capsys.readouterr().err == "support.md not current: run python tools/support_page.py\n"
    assert support_page.main([]) == 0 and support_page.main(["--check"]) == 0
    readme.write_text(readme.read_text(encoding="utf-8").replace("`CUBALIF`", "`CUBA`"), encoding="utf-8")
    assert support_page.main(["--check"]) == 1
    readme.write_text("no place", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"README\.md has no place"):
        support_page.main([])


def test_every_row_is_in_the_page() -> None:
    text = support_page.page()
    tables = support_page.tables()
    assert {"spikec.nn", "Norse", "PyTorch functions", "NIR", "SLAYER (lava-dl)"} <= set(tables)
    for _, rows in tables.values():
        for row in rows:
            assert f"| {row.module} | {row.option} | {row.status} | {row.note} |".replace("||", "\\|\\|") in text
            assert row.status == "exact" or row.note, f"{row.module}: a row that is not exact says why"


@pytest.mark.parametrize("package", FRAMEWORKS)
def test_every_framework_has_a_title(package: str) -> None:
    assert package in support_page.TITLES
    module = import_module(FRAMEWORKS[package].partition(":")[0])
    assert module.VERSION
    assert all(isinstance(row, Support) for row in getattr(module, "SUPPORT", ()))


def test_classes_of_spikec_nn_are_all_in_the_table() -> None:
    from spikec import nn

    _, rows = support_page.tables()["spikec.nn"]
    listed = {name.strip() for row in rows for name in row.module.split(",")}
    assert listed == {name for name in nn.__all__ if isinstance(getattr(nn, name), type)} - {"Grid"}
