"""Try the pending revisions without keeping anything of them."""

from __future__ import annotations

import ast
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alembic.runtime.environment import EnvironmentContext
from sqlalchemy import Engine, event, text

from rag_factory.errors import DatabaseMissingError, RagFactoryError
from rag_factory.migrate.environment import explained, load_scripts, open_connection, require_target
from rag_factory.migrate.lock import migrator_lock
from rag_factory.migrate.runner import Runner
from rag_factory.migrate.scratch import new_scratch, schema_copy
from rag_factory.migrate.state import read_state
from rag_factory.migrate.steps import Applied, alembic_step, set_timeouts
from rag_factory.migrate.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from rag_factory.migrate.history import History, Revision
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target
    from rag_factory.migrate.watch import Blocker

# Statements that end a transaction or can't run in one; those in a function's body can't either.
_ENDING = re.compile(
    r"(?:^|;)\s*(COMMIT|END|ROLLBACK(?!\s+TO)|ABORT|BEGIN|START\s+TRANSACTION|PREPARE\s+TRANSACTION|VACUUM)\b"
    r"|\b(CONCURRENTLY)\b|\b(ALTER\s+SYSTEM)\b|\b((?:CREATE|DROP)\s+(?:DATABASE|TABLESPACE))\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"\$(\w*)\$.*?\$\1\$|'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)
# What no rollback takes back, such as a sequence's place, also in a function's body.
_LASTING = re.compile(r"\b(setval)\s*\(|\b(dblink\w*)\s*\(|\b(TO\s+PROGRAM)\b", re.IGNORECASE)
_COMMITTING_OPERATIONS = re.compile(r"autocommit_block|\w+_online|backfill|add_enum_value")
_FORBIDDEN = "forbidden within a Transaction"
_ENUM_VALUE_IS_TOO_NEW = "55P04"
_TRANSACTION = "SELECT pg_current_xact_id()"


class NeedsCommitError(Exception):
    """A revision would keep something: it can't be tried in a transaction that is rolled back."""


def dry_run(
    target: Target,
    project: Project,
    history: History,
    to: str | None,
    *,
    wait_seconds: float,
    on_applied: Callable[[Applied], None],
    on_wait: Callable[[str], None],
) -> bool:
    """Execute the revisions pending up to `to`, and keep nothing.

    In one transaction on the target, under the migrator lock and the timeouts, rolled back at the end. What
    it locks is locked until then. Where a revision commits by itself, on a scratch database instead, with the
    target's schema and without its rows; on_wait is told why. Returns whether it was on the target.
    Raises RagFactoryError: a revision failed. Nothing of the target was changed, but that sequences may have
    gone on, as with any transaction that is rolled back.
    """
    missing = _find_missing(target, project)
    if missing:
        on_wait(f"{missing} does not exist yet: trying on a new scratch database")
        with new_scratch(target, project) as scratch:
            _upgrade(scratch, project, history, to, on_applied)
        return False
    tried: list[Applied] = []
    try:
        _run_on_target(target, project, history, to, wait_seconds, tried.append, on_wait)
    except NeedsCommitError as reason:
        tried.clear()
        on_wait(f"{reason}: trying on a scratch database with the same schema, without rows")
        with schema_copy(target, project) as scratch:
            _upgrade(scratch, project, history, to, on_applied)
        return False
    finally:
        for applied in tried:
            on_applied(applied)
    return True


def _find_missing(target: Target, project: Project) -> str | None:
    """What `db.migrate` would create before it begins; None: it is all there."""
    try:
        state = read_state(target, project)
    except DatabaseMissingError:
        return f"the database {target.url.database}"
    return "the extension vector" if "vector" in project.extensions and not state.pgvector else None


def _upgrade(
    scratch: Target, project: Project, history: History, to: str | None, on_applied: Callable[[Applied], None]
) -> None:
    Runner(scratch, project, history, on_applied=on_applied, keep_ledger=False).upgrade(to)


def _run_on_target(
    target: Target,
    project: Project,
    history: History,
    to: str | None,
    wait_seconds: float,
    on_applied: Callable[[Applied], None],
    on_wait: Callable[[str], None],
) -> None:
    config = project.alembic_config(target.url)
    with (
        migrator_lock(target, project, wait_seconds=wait_seconds, on_wait=on_wait) as (session, keys),
        open_connection(target.url, target.config, work_key=keys.work) as connection,
    ):
        config.attributes["connection"] = connection
        state = read_state(target, project, session)
        state.check_history(history, target.place)
        pending = history.pending(state.revisions, to)
        scripts = load_scripts(config)
        for revision in pending:
            _check_text(revision)
        if not pending:
            return
        require_target(config, scripts, connection, target)
        doing = ["Trying"]
        blockers: list[Blocker] = []

        def steps(_: Any, context: Any) -> Iterator[Any]:
            if context.connection is not connection:
                raise NeedsCommitError("env.py takes a connection of its own, which would commit")
            for revision in pending:
                doing[0] = f"Trying {revision.id} ({revision.path.name})"
                _forbid_autocommit(context, revision)
                module = scripts.get_revision(revision.id).module
                watch.expect(set_timeouts(connection, module, target, revision))
                started = time.monotonic()
                yield alembic_step(scripts, revision, "up")
                # What is deferred to the commit is checked now, as if it came.
                connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
                connection.execute(text("SET CONSTRAINTS ALL DEFERRED"))
                on_applied(Applied(revision, "up", (time.monotonic() - started) * 1000))

        try:
            with (
                explained(lambda: doing[0], target.url, NeedsCommitError),
                Watch(session, keys.work, blockers.extend) as watch,
                _rolled_back(connection),
                EnvironmentContext(config, scripts, fn=steps, destination_rev=pending[-1].id),
            ):
                scripts.run_env()
        except RagFactoryError as problem:
            if getattr(getattr(problem.__cause__, "orig", None), "sqlstate", "") == _ENUM_VALUE_IS_TOO_NEW:
                raise NeedsCommitError("an enum value is used that a revision before it adds") from problem
            if _FORBIDDEN in problem.what:
                raise NeedsCommitError("a revision commits by the driver") from problem
            if blockers:
                problem.what = f"{problem.what} Held by: {blockers[-1]}."
            problem.what = f"{problem.what} All is rolled back: {target.place} is as it was."
            raise


@contextmanager
def _rolled_back(connection: Connection) -> Iterator[None]:
    """Run the body in one transaction that nothing can end before it is rolled back.

    Alembic leaves a transaction that it finds begun to whoever began it; the driver refuses to commit inside
    of a block of its own; and the server's number of the transaction proves it.
    """
    driver: Any = connection.connection.driver_connection
    with connection.begin(), driver.transaction(force_rollback=True), _nothing_is_kept():
        before = driver.execute(_TRANSACTION).fetchone()
        yield
        if driver.execute(_TRANSACTION).fetchone() != before:
            raise RagFactoryError(
                "A revision ended the transaction in a way that was not foreseen, and kept what it had done.",
                fix="Look at it: invoke db.status. Then tell us the statement that did it.",
            )


def _check_text(revision: Revision) -> None:
    """See in a revision's code that it commits; what isn't seen here is stopped when it runs."""
    for node in ast.walk(ast.parse(revision.path.read_bytes())):
        if isinstance(node, ast.Attribute) and _COMMITTING_OPERATIONS.fullmatch(node.attr):
            raise NeedsCommitError(f"{revision.id} commits by itself")


def _forbid_autocommit(context: Any, revision: Revision) -> None:
    def refuse() -> None:
        raise NeedsCommitError(f"{revision.id} commits by itself")

    context.autocommit_block = refuse


@contextmanager
def _nothing_is_kept() -> Iterator[None]:
    """Stop the body before a statement or a commit whose effect would outlast it, on any connection."""

    def before_statement(_: Any, __: Any, statement: str, *___: Any) -> None:
        found = _ENDING.search(_QUOTED.sub("''", statement)) or _LASTING.search(statement)
        if found:
            words = " ".join(found[found.lastindex or 0].split())
            raise NeedsCommitError(f"a revision runs {words}, which no rollback takes back")

    def on_commit(_: Any) -> None:
        raise NeedsCommitError("env.py or a revision commits")

    def on_connect(_: Any) -> None:
        raise NeedsCommitError("env.py or a revision takes a connection of its own, which would wait for us")

    listeners = (
        ("before_cursor_execute", before_statement),
        ("commit", on_commit),
        ("engine_connect", on_connect),
    )
    for name, listener in listeners:
        event.listen(Engine, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners:
            event.remove(Engine, name, listener)
