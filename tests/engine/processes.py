"""The command line as a process of its own, that a test waits for, interrupts or kills."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tests.conftest import clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from tests.conftest import CommandLine


@contextlib.contextmanager
def started(
    cli: CommandLine, *arguments: str, module: str = "invoke", session: bool = False, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Start `invoke`, or another module of Python's, and kill it at the end if it still runs.

    session: in a process group of its own, as a terminal starts it.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cli.root,
        env=clean_environment(cli.environment | environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=session,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(query: Callable[..., list[tuple[Any, ...]]], condition: str) -> None:
    """Wait until a query answers true."""
    deadline = time.monotonic() + 30
    while query(condition) != [(True,)]:
        assert time.monotonic() < deadline, f"waited 30 s for: {condition}"
