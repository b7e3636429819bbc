"""A pytest plug-in that notes when each worker's first test starts: its database is ready then."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Note the time at which this process's first test itself starts, its fixtures done."""
    note = Path(os.environ["READY_WORKERS"], str(os.getpid()))
    if not note.exists():
        note.write_text(repr(time.time()), encoding="utf-8")
