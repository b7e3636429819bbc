"""Restore a backup: load it beside the database, prove it, then let both change names.

Until the names change, the database is used as before; a restore that fails or is killed leaves it as it was.
What was there is kept under another name, unless it was empty.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg

from rag_factory.database.driver import MAINTENANCE_DATABASES, connect, connect_maintenance, translate
from rag_factory.errors import (
    ExtensionError,
    NotReadyError,
    ProblemsError,
    RagFactoryError,
    RefusedError,
    ServerError,
)
from rag_factory.migrate.backup.content import load
from rag_factory.migrate.backup.folder import reading
from rag_factory.migrate.backup.swap import swap
from rag_factory.migrate.creation import drop_database
from rag_factory.migrate.guard import SETTING, is_marked, mark
from rag_factory.migrate.lock import migrator_lock
from rag_factory.migrate.properties import create_empty, give_properties, read_properties
from rag_factory.migrate.scratch import scratch_name
from rag_factory.migrate.target import NAME_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from rag_factory.migrate.backup.manifest import Backup
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target

_RIGHTS = """
    SELECT rolsuper OR rolcreatedb,
           (SELECT rolsuper OR pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = %s),
           ARRAY(SELECT needed FROM unnest(%s::text[]) AS needed
                 WHERE needed NOT IN (SELECT name FROM pg_available_extensions) ORDER BY 1)
    FROM pg_roles WHERE rolname = current_user
"""
_MISSING_ROLES = """
    SELECT name FROM unnest(%s::text[]) AS name
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) ORDER BY 1
"""
_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
# Relations and functions that no extension brought.
_CONTENT = """
    SELECT count(*) FILTER (WHERE relation), count(*), pg_database_size(current_database())
    FROM (SELECT 'pg_class'::regclass AS catalog, oid, relnamespace AS namespace, true AS relation
          FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
          UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace, false FROM pg_proc) AS found
    JOIN pg_namespace AS n ON n.oid = found.namespace
    WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM pg_depend AS part WHERE part.classid = found.catalog
                      AND part.objid = found.oid AND part.deptype = 'e')
"""


@dataclass(frozen=True)
class Content:
    """What is in a database. relations: tables, views and sequences. empty: not even a function is in it."""

    relations: int
    empty: bool
    size_bytes: int


@dataclass(frozen=True)
class Restored:
    """A restore that is done. kept_as: the name that the former database now has; None: there was none.

    refused: the database's own settings that could not be given to it, and why.
    """

    backup: Backup
    kept_as: str | None
    refused: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Restoration:
    """A restore that was prepared: nothing is changed yet.

    content: of the database that is there now; None when there is none. sessions: of others on it.
    """

    backup: Backup
    target: Target
    project: Project
    no_owner: bool
    content: Content | None
    sessions: int

    @property
    def needs_confirmation(self) -> bool:
        """Whether something is replaced, or somebody is sent away."""
        return self.content is not None and (not self.content.empty or self.sessions > 0)

    def run(
        self,
        *,
        jobs: int,
        wait_seconds: float,
        on_wait: Callable[[str], None] = lambda _: None,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Restored:
        """Check the backup's sums and restore it. jobs: how many tables and indexes are made at a time.

        Raises RagFactoryError: the backup is damaged or can't be loaded. Raises LockedError: a migrator is at
        work. Raises NotReadyError: a right is missing, or somebody stays on the database. The target is as it
        was then, and no other database is left.
        """
        clock = time.monotonic()
        target = self.target
        with reading(self.backup):
            self.backup.verify()
            try:
                with scratch_name(target) as scratch:
                    # Nobody migrates meanwhile what is about to be replaced.
                    locked = (
                        migrator_lock(target, self.project, wait_seconds=wait_seconds, on_wait=on_wait)
                        if self.content is not None
                        else nullcontext()
                    )
                    with locked:
                        refused = self._build(scratch, jobs, on_progress)
                    kept_as = None if self.content is None else self._name_to_keep()
                    swap(target, scratch.url.database, kept_as)
            except psycopg.Error as error:
                raise translate(error, target.url) from error
        if kept_as is not None:
            former = replace(target, url=target.url.with_database(kept_as))
            # Looked at again: somebody may have begun to fill it.
            if read_content(former).empty:
                drop_database(former)
                kept_as = None
        return Restored(self.backup, kept_as, tuple(refused), time.monotonic() - clock)

    def _name_to_keep(self) -> str:
        """The server is asked, as another restore may have taken it within this second."""
        timeout = self.target.config.db_connect_timeout_seconds
        with connect_maintenance(self.target.url, connect_timeout_seconds=timeout) as server:
            taken = {name for (name,) in server.execute("SELECT datname FROM pg_database")}
        return name_to_keep(self.target.url.database, datetime.now(UTC), taken)

    def _build(self, scratch: Target, jobs: int, on_progress: Callable[[float], None]) -> list[str]:
        """Make the new database under its scratch name, complete. Returns the settings it could not get."""
        timeout = scratch.config.db_connect_timeout_seconds
        with connect_maintenance(scratch.url, connect_timeout_seconds=timeout) as server:
            server.execute("SET idle_session_timeout = 0")
            like = read_properties(server, self.target.url.database)
            create_empty(server, scratch.url.database, like)
            load(self.backup, scratch, jobs=jobs, no_owner=self.no_owner, on_progress=on_progress)
            # Last: a setting could stand in the way of loading.
            refused = give_properties(server, scratch.url.database, like, self.backup.manifest.settings)
        # A superuser's mark is a setting that this role may not give.
        if self.content is not None and is_marked(self.target) and not is_marked(scratch):
            mark(scratch, protected=True)
            refused = [each for each in refused if not each.startswith(SETTING)]
        return refused


def prepare(backup: Backup, target: Target, project: Project, *, no_owner: bool) -> Restoration:
    """Look whether a backup can be restored into the target, and at what is there now. Changes nothing.

    Raises RagFactoryError: a file of the backup is missing or cut off. Raises RefusedError: the target is a
    database that the server itself needs. Raises NotReadyError: server, rights or roles don't allow it.
    """
    name = target.url.database
    if name in MAINTENANCE_DATABASES:
        raise RefusedError(f"{name} is a database that the server itself needs: it is not replaced.")
    backup.check_files()
    timeout = target.config.db_connect_timeout_seconds
    with connect_maintenance(target.url, connect_timeout_seconds=timeout) as server:
        try:
            there = _check(server, backup, target, no_owner)
            sessions = _row(server, _SESSIONS, name)[0]
        except psycopg.Error as error:
            raise translate(error, target.url) from error
    return Restoration(backup, target, project, no_owner, read_content(target) if there else None, sessions)


def read_content(target: Target) -> Content:
    """See what is in a database."""
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout, read_only=True) as session:
        try:
            relations, objects, size_bytes = _row(session, _CONTENT)
        except psycopg.Error as error:
            raise translate(error, target.url) from error
    return Content(relations, objects == 0, size_bytes)


def _check(server: psycopg.Connection[Any], backup: Backup, target: Target, no_owner: bool) -> bool:
    """Check server, rights and roles, and tell all that is wrong. Returns whether the target is there."""
    manifest, place, who = backup.manifest, target.url.server, target.url.user or "this role"
    problems: list[RagFactoryError] = []
    if int(manifest.server_version.split(".")[0]) > server.info.server_version // 10000:
        problems.append(
            ServerError(
                f"The backup {backup.name} is of PostgreSQL {manifest.server_version}, newer than the server "
                f"{place}, {server.info.parameter_status('server_version')}.",
                fix="Restore it on a server that is at least as new.",
            )
        )
    may_create, may_rename, unavailable = _row(server, _RIGHTS, target.url.database, [*manifest.extensions])
    if unavailable:
        problems.append(
            ExtensionError(
                f"The backup {backup.name} needs extensions that {place} lacks: {', '.join(unavailable)}.",
                fix="Install their packages there.",
            )
        )
    if not may_create:
        problems.append(
            NotReadyError(
                f"{who} may not create databases on {place}: a backup is restored into a new one.",
                fix=f"ALTER ROLE {who} CREATEDB, or another role in DATABASE_URL.",
            )
        )
    if may_rename is False:
        problems.append(
            NotReadyError(
                f"{who} does not own {target.place}, so it can't rename it.",
                fix="Use its owner in DATABASE_URL, or restore beside it: --into NAME",
            )
        )
    missing = [] if no_owner else [role for (role,) in server.execute(_MISSING_ROLES, ([*manifest.roles],))]
    if missing:
        problems.append(
            NotReadyError(
                f"The backup {backup.name} needs roles that {place} lacks: {', '.join(missing)}.",
                fix="Create them, or leave owners and grants out: --no-owner",
            )
        )
    if len(problems) > 1:
        raise ProblemsError(problems)
    if problems:
        raise problems[0]
    return may_rename is not None


def name_to_keep(database: str, now: datetime, taken: Collection[str]) -> str:
    """A name for the database that is replaced: none of those taken, and no longer than PostgreSQL takes."""
    stamp = f"_before_restore_{now:%Y%m%dT%H%M%SZ}"
    suffixes = (stamp, *(f"{stamp}_{number}" for number in range(2, len(taken) + 2)))
    rooms = ((suffix, NAME_LIMIT_BYTES - len(suffix)) for suffix in suffixes)
    names = (database.encode()[:room].decode(errors="ignore") + suffix for suffix, room in rooms)
    return next(name for name in names if name not in taken)


def _row(
    session: psycopg.Connection[tuple[Any, ...]], query: str, *values: str | list[str]
) -> tuple[Any, ...]:
    row = session.execute(query.encode(), values or None).fetchone()
    assert row is not None  # noqa: S101 - each query here gives one row
    return row
