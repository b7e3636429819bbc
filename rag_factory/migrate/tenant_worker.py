"""A process that migrates tenants: an order a line on its stdin, how it ended a line on its stdout."""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.driver import connect
from rag_factory.database.url import DatabaseUrl, scrub
from rag_factory.errors import DatabaseMissingError, NotReadyError, RagFactoryError
from rag_factory.migrate.creation import create_database
from rag_factory.migrate.history import History
from rag_factory.migrate.project import Project
from rag_factory.migrate.runner import Runner
from rag_factory.migrate.state import DatabaseState, read_state
from rag_factory.migrate.target import Target
from rag_factory.migrate.tenants import Outcome


def main() -> None:
    """Carry out the orders until there are no more."""
    root, wait_seconds = Path(sys.argv[1]), float(sys.argv[2])
    answers, sys.stdout = sys.stdout, sys.stderr  # what an env.py prints is no answer
    warnings.simplefilter("ignore", FutureWarning)  # shown by the task that started this
    try:
        for line in sys.stdin:
            outcome = _carry_out(root, wait_seconds, **json.loads(line))
            print(json.dumps(asdict(outcome)), file=answers, flush=True)
    except KeyboardInterrupt:
        sys.exit(130)  # the transaction is rolled back; the task says that it was interrupted


def _carry_out(
    root: Path, wait_seconds: float, *, name: str, url: str, schema: str | None, goal: str | None
) -> Outcome:
    before = after = None
    started = time.perf_counter()

    def ended(error: str | None = None, exit_code: int = 0) -> Outcome:
        milliseconds = round((time.perf_counter() - started) * 1000, 1)
        return Outcome(name, before, after, milliseconds, error, exit_code)

    try:
        history = _history(root)
        target = Target(DatabaseUrl.parse(url), _settings(root))
        project = Project(root, version_schema=schema)
        state = _prepare(target, project)
        before = after = state.revisions
        state.check_history(history, name)
        if history.pending(before, goal):
            after = Runner(target, project, history, wait_seconds=wait_seconds).upgrade(goal)
    except DatabaseMissingError as problem:
        return ended(f"{problem.what} Create it, or take it off the list.", problem.exit_code)
    except RagFactoryError as problem:
        after = _revisions_now(target, project) if before is not None else None
        return ended(str(problem), problem.exit_code)
    except Exception as error:  # noqa: BLE001 - one tenant's trouble must not stop the others
        return ended(scrub(f"This should not happen: {type(error).__name__}: {error}"), 1)
    return ended()


@cache
def _settings(root: Path) -> DatabaseConfig:
    return DatabaseConfig.load(root)


@cache
def _history(root: Path) -> History:
    return History.read(Project(root))


def _prepare(target: Target, project: Project) -> DatabaseState:
    """Read the state of a database that must be there; create the extensions that it lacks.

    Not for a schema: they would be made in that one, and the others would not see them.
    """
    if project.version_schema is not None:
        _check_schema(target, project.version_schema)
    state = read_state(target, project)
    if "vector" in project.extensions and state.pgvector is None and project.version_schema is None:
        create_database(target, project)
        state = read_state(target, project)
    state.check(project, target.place)
    return state


def _check_schema(target: Target, name: str) -> None:
    """A search path may name a schema that isn't there: the tables would be made in the next one."""
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout, read_only=True) as session:
        found = session.execute("SELECT FROM pg_namespace WHERE nspname = %s", (name,)).fetchone()
        if found is None:
            raise NotReadyError(
                f"There is no schema {name} in {target.place}.", fix="Create it, or take it off the list."
            )


def _revisions_now(target: Target, project: Project) -> Any:
    """Where a failed migration has left it; None where that can't be read."""
    try:
        return read_state(target, project).revisions
    except RagFactoryError:
        return None


if __name__ == "__main__":
    main()
