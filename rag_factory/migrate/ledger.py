"""The ledger: what was done to a database, when, by whom and by which version of a revision's file."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from rag_factory.errors import HistoryError
from rag_factory.migrate.bookkeeping import SCHEMA
from rag_factory.migrate.checksum import checksum, file_checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from rag_factory.migrate.history import History, Revision
    from rag_factory.migrate.project import Project

# up and down: a revision was run. stamp: it was only written into the version table. accept: its edited file
# was accepted as what is applied.
Direction = Literal["up", "down", "stamp", "accept"]
_VERBS = {"up": "applied", "down": "took back", "stamp": "stamped", "accept": "accepted"}
_OUTCOMES = {"done": "that was done all the same", "lost": "what it had not committed was rolled back"}
TABLE = f"{SCHEMA}.ledger"
# For a query that also serves a database without a ledger, and a role that may not read it.
READABLE = f"""
    EXISTS (SELECT FROM pg_class JOIN pg_namespace AS schema ON schema.oid = relnamespace
            WHERE nspname = '{SCHEMA}' AND relname = 'ledger' AND has_schema_privilege(schema.oid, 'USAGE')
              AND has_table_privilege(pg_class.oid, 'SELECT'))
"""
_CREATE = f"""
    CREATE SCHEMA IF NOT EXISTS {SCHEMA};
    CREATE TABLE IF NOT EXISTS {TABLE} (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        version_table text NOT NULL,
        revision text NOT NULL,
        direction text NOT NULL CHECK (direction IN ('up', 'down', 'stamp', 'accept')),
        checksum text,
        file_checksum text,
        started timestamptz NOT NULL DEFAULT clock_timestamp(),
        finished timestamptz,
        milliseconds double precision,
        outcome text CHECK (outcome IN ('done', 'failed', 'lost')),
        database_user text NOT NULL DEFAULT session_user,
        git_commit text
    )
"""
_VERSION_TABLE = "coalesce(%(schema)s, current_schema(), '') || '.' || %(table)s"
_BEGIN = f"""
    INSERT INTO {TABLE} (version_table, revision, direction, checksum, file_checksum, git_commit)
    VALUES ({_VERSION_TABLE}, %(revision)s, %(direction)s, %(checksum)s, %(file_checksum)s, %(git_commit)s)
    RETURNING id
"""
_COMPLETE = f"""
    UPDATE {TABLE} SET finished = clock_timestamp(), milliseconds = %(milliseconds)s, outcome = %(outcome)s
    WHERE id = %(id)s
"""
_RECOVER = f"""
    UPDATE {TABLE}
    SET finished = clock_timestamp(),
        outcome = CASE WHEN (direction = 'up') = (revision = ANY(%(applied)s)) THEN 'done' ELSE 'lost' END
    WHERE outcome IS NULL AND version_table = {_VERSION_TABLE}
    RETURNING revision, direction, started, database_user, outcome
"""
_MARKS = f"""
    SELECT DISTINCT ON (revision) revision, direction, checksum, file_checksum, started
    FROM {TABLE}
    WHERE version_table = {_VERSION_TABLE} AND outcome = 'done' AND direction <> 'stamp'
    ORDER BY revision, id DESC
"""
_ENTRIES = f"""
    SELECT id, revision, direction, started, finished, milliseconds, outcome, database_user, git_commit,
           checksum
    FROM {TABLE} WHERE version_table = {_VERSION_TABLE} ORDER BY id DESC
"""


@dataclass(frozen=True)
class Mark:
    """The last thing that was done with a revision, and by which version of its file."""

    direction: Direction
    checksum: str | None
    file_checksum: str | None
    started: datetime


@dataclass(frozen=True)
class Entry:
    """One row. outcome: done, failed, lost (its migrator was killed), or None while it is at work."""

    id: int
    revision: str
    direction: Direction
    started: datetime
    finished: datetime | None
    milliseconds: float | None
    outcome: str | None
    database_user: str
    git_commit: str | None
    checksum: str | None

    @property
    def data(self) -> dict[str, Any]:
        """For a machine; times as ISO 8601."""
        finished = self.finished.isoformat() if self.finished else None
        return asdict(self) | {"started": self.started.isoformat(), "finished": finished}


@dataclass(frozen=True)
class Ledger:
    """Writes the ledger, on the session that holds the migrator lock."""

    session: psycopg.Connection[Any]
    project: Project
    git_commit: str | None

    @classmethod
    def open(
        cls, session: psycopg.Connection[Any], project: Project, warn: Callable[[str], None]
    ) -> Ledger | None:
        """Create it where it is missing. None, and a warning, where this role may not: all else goes on."""
        try:
            if session.execute(f"SELECT {READABLE}".encode()).fetchone() != (True,):
                _create(session)
            session.execute(f"SELECT FROM {TABLE} WHERE false FOR UPDATE".encode())
        except psycopg.errors.InsufficientPrivilege as error:
            row = session.execute("SELECT quote_ident(current_user), current_database()").fetchone()
            role, database = row or ("this role", "the database")
            warn(
                f"no ledger is kept: {error.diag.message_primary}. To have one: "
                f'GRANT CREATE ON DATABASE "{database}" TO {role}; if it is another role\'s, also '
                f"GRANT USAGE ON SCHEMA {SCHEMA} TO {role}; GRANT SELECT, INSERT, UPDATE ON {TABLE} TO {role}"
            )
            return None
        # The revision's own commit makes the row before it durable; the one after it is found out anyway.
        session.execute("SET synchronous_commit = off")
        return cls(session, project, _read_git_commit(project.root))

    def begin(self, revision_id: str, path: Path | None, direction: Direction) -> int:
        """Write that a revision is begun. Returns the row's id."""
        values = {
            "revision": revision_id,
            "direction": direction,
            "checksum": checksum(path) if path else None,
            "file_checksum": file_checksum(path) if path else None,
            "git_commit": self.git_commit,
        }
        row = self.session.execute(_BEGIN.encode(), values | _named(self.project)).fetchone()
        assert row is not None  # noqa: S101 - INSERT … RETURNING of one row
        return int(row[0])

    def complete(self, id_: int, milliseconds: float, *, done: bool = True) -> None:
        """Write that it is done, or has failed and is rolled back."""
        outcome = "done" if done else "failed"
        self.session.execute(
            _COMPLETE.encode(), {"id": id_, "milliseconds": milliseconds, "outcome": outcome}
        )

    def record(self, revision_id: str, path: Path | None, direction: Direction) -> None:
        """Write something that takes no time."""
        self.complete(self.begin(revision_id, path, direction), 0)

    def recover(self, applied: set[str]) -> list[str]:
        """Close the rows of migrators that were killed. Returns what to tell of each."""
        rows = self.session.execute(
            _RECOVER.encode(), {"applied": sorted(applied)} | _named(self.project)
        ).fetchall()
        return [
            f"an earlier run was killed while it {_VERBS[direction]} {revision} "
            f"({user}, {started:%Y-%m-%d %H:%M:%S %Z}): {_OUTCOMES[outcome]}"
            for revision, direction, started, user, outcome in rows
        ]


def read_marks(session: psycopg.Connection[Any], project: Project) -> dict[str, Mark]:
    """The last thing that was done with each revision. The ledger must be there (READABLE)."""
    return {id_: Mark(*rest) for id_, *rest in session.execute(_MARKS.encode(), _named(project))}


def read_entries(session: psycopg.Connection[Any], project: Project) -> list[Entry]:
    """All rows, newest first; none when there is no ledger."""
    if session.execute(f"SELECT {READABLE}".encode()).fetchone() != (True,):
        return []
    return [Entry(*row) for row in session.execute(_ENTRIES.encode(), _named(project))]


def find_edited(history: History, current: Sequence[str], marks: Mapping[str, Mark]) -> list[Revision]:
    """The applied revisions whose files do something else than when they were applied."""
    applied = history.lineage(current)
    edited = []
    for id_, mark in marks.items():
        if id_ not in applied or mark.direction == "down" or mark.checksum is None:
            continue
        path = history.revisions[id_].path
        # The syntax tree is only looked at when the file is not the very same.
        if file_checksum(path) != mark.file_checksum and checksum(path) != mark.checksum:
            edited.append(history.revisions[id_])
    return edited


def check_unedited(history: History, current: Sequence[str], marks: Mapping[str, Mark], place: str) -> None:
    """Refuse to work with a history that is not the one the database went through.

    Raises HistoryError: an applied revision was edited since; names each.
    """
    edited = find_edited(history, current, marks)
    if edited:
        named = ", ".join(
            f"{revision.path.name} ({revision.id}, applied {marks[revision.id].started:%Y-%m-%d %H:%M %Z})"
            for revision in edited
        )
        raise HistoryError(
            f"Edited since it was applied to {place}: {named}.",
            fix="Restore the file, and put the change in a new revision. If the schema is as the file says "
            f"now: invoke db.accept {edited[0].id}",
        )


def _create(session: psycopg.Connection[Any]) -> None:
    # Another application's migrator, with a lock of its own, may do the same just now.
    for last in (False, True):
        try:
            with session.transaction():
                session.execute(_CREATE.encode())
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateObject):
            if last:
                raise
        else:
            return


def _named(project: Project) -> dict[str, str | None]:
    *schema, table = project.version_table
    return {"schema": schema[0] if schema else None, "table": table}


def _read_git_commit(root: Path) -> str | None:
    """The commit that is checked out; None where there is no git, as in an image."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None
