"""What every test can ask for: the Lava environment, and the rule that CI has to have one."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from spikec.backends.lava import environment


@pytest.fixture(scope="session")
def lava_env() -> environment.LavaEnvironment:
    """The installed Lava environment; the test skips where there is none, and fails under CI=true."""
    found = environment.locate()
    if found is None:
        pytest.skip(environment.NOT_INSTALLED)
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "lava_env" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.lava)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI=true a skipped Lava test is a failed one: nobody would notice that Lava was never run."""
    report = yield
    is_lava = item.get_closest_marker("lava") is not None
    if os.environ.get("CI") == "true" and is_lava and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"CI=true, so a Lava test must run: {reason.removeprefix('Skipped: ')}"
    return report
