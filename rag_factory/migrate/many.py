"""Migrate many tenants, several at a time, in as many processes: Alembic has one context in each."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING, Any

from rag_factory.migrate.tenants import Outcome, Tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

WORKER = "rag_factory.migrate.tenant_worker"


def migrate_tenants(
    root: Path,
    tenants: Sequence[Tenant],
    goal: str | None,
    *,
    parallel: int,
    wait_seconds: float,
    on_outcome: Callable[[Outcome], None],
) -> None:
    """Take the tenants to the revision `goal`, an id; at most `parallel` at a time. Goes on past failures.

    on_outcome: told how each ended, one at a time. A KeyboardInterrupt ends it once those that are being
    migrated have ended, which they do at once where Ctrl-C reaches them as well.
    """
    todo: queue.SimpleQueue[Tenant] = queue.SimpleQueue()
    for tenant in tenants:
        todo.put(tenant)
    stop = threading.Event()
    outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()

    def work() -> None:
        worker = _Worker(root, wait_seconds)
        try:
            while not stop.is_set():
                outcomes.put(worker.migrate(todo.get_nowait(), goal))
        except queue.Empty:
            pass  # all are done, or being done
        finally:
            worker.close()
            outcomes.put(None)

    threads = [threading.Thread(target=work) for _ in range(min(parallel, len(tenants)))]
    for thread in threads:
        thread.start()
    running = len(threads)
    interrupted = False
    while running:
        try:
            outcome = outcomes.get()
        except KeyboardInterrupt:
            interrupted = True
            stop.set()
            continue
        if outcome is None:
            running -= 1
        else:
            on_outcome(outcome)
    for thread in threads:
        thread.join()
    if interrupted:
        raise KeyboardInterrupt


class _Worker:
    """A process that migrates one tenant after another. One that dies is replaced for the next tenant."""

    def __init__(self, root: Path, wait_seconds: float) -> None:
        self._command = [sys.executable, "-m", WORKER, str(root), str(wait_seconds)]
        self._root = root
        self._process: subprocess.Popen[str] | None = None

    def migrate(self, tenant: Tenant, goal: str | None) -> Outcome:
        if self._process is None:
            try:
                self._process = subprocess.Popen(
                    self._command, cwd=self._root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            except OSError as problem:
                return Outcome(tenant.name, error=f"No process for it: {problem.strerror}.", exit_code=1)
        order = {"name": tenant.name, "url": tenant.url.plain, "schema": tenant.schema, "goal": goal}
        # Through a pipe: a password on a command line, or in an environment, can be seen by others.
        answer = _exchange(self._process, json.dumps(order))
        if answer is None:
            code = self._close()
            error = f"Its process ended before it was done, with code {code}."
            return Outcome(tenant.name, error=error, exit_code=1)
        return Outcome(**answer)

    def close(self) -> None:
        if self._process is not None:
            self._close()

    def _close(self) -> int:
        """Let the process end, by the end of its input."""
        assert self._process is not None  # noqa: S101 - both callers looked
        process, self._process = self._process, None
        with process:
            _pipe(process.stdin).close()
            return process.wait()


def _exchange(process: subprocess.Popen[str], order: str) -> dict[str, Any] | None:
    """Give an order and read the answer; None when the process has gone."""
    try:
        _pipe(process.stdin).write(order + "\n")
        _pipe(process.stdin).flush()
        line = _pipe(process.stdout).readline()
    except BrokenPipeError:
        return None
    return dict(json.loads(line)) if line.endswith("\n") else None


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None  # noqa: S101 - opened as a pipe
    return stream
