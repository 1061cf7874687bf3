"""What every test can ask for: the Lava environment and further compilers, and the rule that CI has to have them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator

import pytest

from spikec.backends.lava import environment
from support.tools import PACKAGES

#: Fixtures that skip where something optional is missing, and the marker of the tests that ask for them. CI must have it all.
OPTIONAL = {"lava_env": "lava", "tools": "tools"}


@pytest.fixture(scope="session")
def lava_env() -> environment.LavaEnvironment:
    """The installed Lava environment; the test skips where there is none, and fails under CI=true."""
    found = environment.locate()
    if found is None:
        pytest.skip(environment.NOT_INSTALLED)
    return found


@pytest.fixture(scope="session")
def tools() -> Callable[..., None]:
    """Called with names of tools: the test skips where one is missing, and fails under CI=true."""

    def need(*names: str) -> None:
        missing = [name for name in names if shutil.which(name) is None]
        if missing:
            packages = dict.fromkeys(package for name in missing for package in PACKAGES[name].split())
            pytest.skip(f"no {', '.join(missing)}: sudo apt-get install -y {' '.join(packages)}")

    return need


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, marker in OPTIONAL.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI=true such a test that skips is a failed one: nobody would notice that it was never run."""
    report = yield
    optional = [marker for marker in OPTIONAL.values() if item.get_closest_marker(marker) is not None]
    if os.environ.get("CI") == "true" and optional and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        name = "Lava" if optional == ["lava"] else f"'{optional[0]}'"
        report.longrepr = f"CI=true, so a {name} test must run: {reason.removeprefix('Skipped: ')}"
    return report
