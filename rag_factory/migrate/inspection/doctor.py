"""The doctor: finds what is wrong with a database, and mends what can be mended while it is in use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from rag_factory.database.driver import connect, translate
from rag_factory.migrate.inspection import activity, objects, vectors
from rag_factory.migrate.inspection.finding import Check, Finding, Limits
from rag_factory.migrate.inspection.statements import without_passwords
from rag_factory.migrate.lock import migrator_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rag_factory.errors import RagFactoryError
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target

CHECKS = (*objects.CHECKS, *vectors.CHECKS, *activity.CHECKS)
# The catalog answers in milliseconds, or somebody holds a lock on it.
_LOOK_LOCK_SECONDS = 2
_LOOK_SECONDS = 60


@dataclass(frozen=True)
class Examination:
    """What was found, worst first. unseen: the checks that could not be made, each with the reason."""

    findings: tuple[Finding, ...]
    unseen: tuple[tuple[str, str], ...] = ()

    @property
    def left_overs(self) -> tuple[Finding, ...]:
        """What an earlier run left half-made."""
        return tuple(finding for finding in self.findings if finding.severity == "left-over")


def examine(target: Target, limits: Limits, checks: Sequence[Check] = CHECKS) -> Examination:
    """Make the checks, in a read-only session. One that fails is told among `unseen`, and the others go on.

    Raises NotReadyError: the database can't be reached.
    """
    findings: list[Finding] = []
    unseen = []
    with _session(target, _LOOK_LOCK_SECONDS, _LOOK_SECONDS, read_only=True) as connection:
        for check in checks:
            try:
                findings += _find(connection, check, limits)
            except psycopg.Error as error:
                if connection.closed:
                    raise translate(error, target.url) from error
                unseen.append((check.name, translate(error, target.url).what))
    order = ("left-over", "warning", "note")
    findings.sort(key=lambda finding: order.index(finding.severity))
    return Examination(tuple(findings), tuple(unseen))


def mend(
    target: Target,
    project: Project,
    findings: Sequence[Finding],
    *,
    wait_seconds: float,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[Finding, RagFactoryError]:
    """Run the fixes that are safe on a table in use, each with the settings' timeouts; go on past failures.

    The migrator lock is held meanwhile: a migration mends its own left-overs. tell: what was done, a line
    each, and what is waited for. Returns what failed, and why.
    Raises LockedError: another migrator is at work.
    """
    failed: dict[Finding, RagFactoryError] = {}
    config = target.config
    timeouts = (config.db_lock_timeout_seconds, config.db_statement_timeout_seconds)
    with (
        migrator_lock(target, project, wait_seconds=wait_seconds, on_wait=tell),
        _session(target, *timeouts) as connection,
    ):
        for finding in findings:
            if finding.safe:
                try:
                    connection.execute(finding.fix.encode())
                    tell(f"done: {finding.fix}")
                except psycopg.Error as error:
                    failed[finding] = translate(error, target.url)
                    tell(f"failed: {finding.fix}: {failed[finding].what}")
        if failed and not connection.closed:
            _clear_up(connection, known={finding.where for finding in findings})
    return failed


def _clear_up(connection: psycopg.Connection[Any], *, known: set[str]) -> None:
    """Drop what a REINDEX CONCURRENTLY that failed just now has left: an INVALID index beside the old one."""
    for finding in _find(connection, objects.INVALID_INDEXES, Limits()):
        if finding.where not in known and finding.fix.startswith("DROP"):
            connection.execute(finding.fix.encode())


def _find(connection: psycopg.Connection[Any], check: Check, limits: Limits) -> list[Finding]:
    rows = connection.execute(check.query.encode(), asdict(limits))
    return [
        Finding(check.severity, check.name, where, without_passwords(value), check.why, fix, safe)
        for where, value, fix, safe in rows
    ]


def _session(
    target: Target, lock_seconds: float, statement_seconds: float, *, read_only: bool = False
) -> psycopg.Connection[tuple[Any, ...]]:
    """Open a session with these timeouts; 0: none."""
    connection = connect(target.url, connect_timeout_seconds=target.config.db_connect_timeout_seconds)
    # The driver's own way has no effect in autocommit mode.
    connection.execute(f"SET default_transaction_read_only = {read_only}".encode())
    for name, seconds in (("lock_timeout", lock_seconds), ("statement_timeout", statement_seconds)):
        value = sql.Literal(f"{round(seconds * 1000)}ms")
        connection.execute(sql.SQL("SET {} = {}").format(sql.Identifier(name), value))
    return connection
