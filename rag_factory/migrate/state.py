"""The state of a database: server, extension, revision; read in one round trip."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from rag_factory.database.driver import connect, translate
from rag_factory.errors import ExtensionError, ServerError
from rag_factory.migrate.ledger import READABLE, Mark, check_unedited, read_marks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rag_factory.migrate.history import History
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target

OLDEST_POSTGRESQL = 15
_STATE = f"""
    SELECT current_setting('server_version_num')::int,
           current_setting('server_version'),
           pg_database_size(current_database()),
           (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
           (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'),
           pg_is_in_recovery(),
           {READABLE}
"""


@dataclass(frozen=True)
class DatabaseState:
    """What a database says of itself. size_bytes: the database's size on the server's disk.

    pgvector: the version installed in this database; None when it isn't. pgvector_available: the one that
    the server would install. revisions: what Alembic's version table holds; empty when there is none.
    marks: what the ledger says was last done with each revision; empty when there is none.
    """

    server_version: str
    server_major: int
    size_bytes: int
    pgvector: str | None
    pgvector_available: str | None
    revisions: tuple[str, ...]
    read_only: bool
    marks: Mapping[str, Mark] = field(default_factory=dict)

    def check_history(self, history: History, place: str) -> None:
        """Hold the revisions of the database against the files.

        Raises HistoryError: it is at one that this checkout lacks, or an applied one was edited since.
        """
        history.check_known(self.revisions, where=place)
        check_unedited(history, self.revisions, self.marks, place)

    def check(self, project: Project, place: str) -> None:
        """Hold the server and its extension against what is supported.

        Raises ServerError: PostgreSQL is too old. Raises ExtensionError: pgvector is missing or too old.
        """
        if self.server_major < OLDEST_POSTGRESQL:
            raise ServerError(
                f"PostgreSQL {self.server_version} of {place} is older than {OLDEST_POSTGRESQL}.",
                fix="Upgrade the server.",
            )
        if "vector" in project.extensions:
            check_pgvector(self.pgvector, self.pgvector_available, project.minimum_pgvector, place)


def read_state(
    target: Target, project: Project, session: psycopg.Connection[Any] | None = None
) -> DatabaseState:
    """Read the state of the target's database, in a session on it or one of its own.

    Raises NotReadyError: it can't be reached.
    """
    if session is None:
        timeout = target.config.db_connect_timeout_seconds
        with connect(target.url, connect_timeout_seconds=timeout) as own_session:
            return read_state(target, project, own_session)
    try:
        row = session.execute(_STATE.encode()).fetchone()
        number, version, size_bytes, installed, available, read_only, has_ledger = _known(row)
        marks = read_marks(session, project) if has_ledger else {}
    except psycopg.Error as error:
        raise translate(error, target.url) from error
    return DatabaseState(
        server_version=version.split()[0],
        server_major=number // 10000,
        size_bytes=size_bytes,
        pgvector=installed,
        pgvector_available=available,
        revisions=read_revisions(target, project, session),
        read_only=read_only,
        marks=marks,
    )


def read_revisions(target: Target, project: Project, session: psycopg.Connection[Any]) -> tuple[str, ...]:
    """Read what the version table holds, in a session on the target; nothing when there is none."""
    table = sql.Identifier(*project.version_table)
    try:
        there = session.execute("SELECT to_regclass(%s) IS NOT NULL", (table.as_string(session),)).fetchone()
        if not _known(there)[0]:
            return ()
        found = session.execute(sql.SQL("SELECT version_num FROM {}").format(table)).fetchall()
    except psycopg.Error as error:
        raise translate(error, target.url) from error
    return tuple(sorted(id_ for (id_,) in found))


def check_pgvector(installed: str | None, available: str | None, minimum: str, place: str) -> None:
    """Check that pgvector is there and new enough; when it isn't installed yet, that it could be.

    Raises ExtensionError: it is missing or too old; says how to get it.
    """
    if installed is None and available is None:
        raise ExtensionError(
            f"pgvector is missing on the server of {place}.",
            fix="Install its package there (postgresql-NN-pgvector on Debian), or use a server that has it.",
        )
    found = installed or available or ""
    if _numbers(found) >= _numbers(minimum):
        return
    if available and _numbers(available) >= _numbers(minimum):
        raise ExtensionError(
            f"pgvector is {found} in {place}, older than {minimum}; the server has {available}.",
            fix="Update it in the database: ALTER EXTENSION vector UPDATE",
        )
    raise ExtensionError(
        f"pgvector is {found} on the server of {place}, older than {minimum}.",
        fix="Upgrade it on the server. To accept the older one with its known faults: minimum_pgvector in "
        "[tool.rag_factory] of pyproject.toml.",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _known(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    assert row is not None  # noqa: S101 - a SELECT without FROM always gives a row
    return row
