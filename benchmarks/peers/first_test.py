"""A pytest plug-in that keeps one test of a suite, on a database where there is one, and notes its start."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep one test; the others have been collected all the same."""
    on_database = [item for item in items if "db_connection" in getattr(item, "fixturenames", ())]
    items[:] = (on_database or items)[:1]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Note the time at which the test itself starts, its fixtures done."""
    Path(os.environ["FIRST_TEST"]).write_text(repr(time.time()), encoding="utf-8")
