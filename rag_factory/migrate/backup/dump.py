"""Back a database up: pg_dump of one moment, with a manifest of what is in it.

Left out are publications and subscriptions: a copy that is restored would take part in a replication that
it isn't meant for, and a subscription holds another server's password. So are tablespaces: they name folders
of this server's disks; a table that is restored lies where its database does. Roles belong to the server, not
to the database: the manifest names those that are needed.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg

from rag_factory.database.driver import translate
from rag_factory.errors import BackupError, RagFactoryError
from rag_factory.migrate.backup import child
from rag_factory.migrate.backup.checkout import read_commit
from rag_factory.migrate.backup.folder import backup_name, publish, unfinished_folder
from rag_factory.migrate.backup.manifest import DUMP, Backup, FileSum, Manifest, sum_file
from rag_factory.migrate.backup.rows import count_rows, snapshot
from rag_factory.migrate.state import read_revisions, read_state
from rag_factory.migrate.target import anchored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rag_factory.migrate.project import Project
    from rag_factory.migrate.state import DatabaseState
    from rag_factory.migrate.target import Target

# How long a backup waits for a table that is locked, unless it is told otherwise.
LOCK_WAIT_SECONDS = 60.0
_LONGEST_SECONDS = 2_147_483
NOT_DUMPED = ("--no-publications", "--no-subscriptions", "--no-tablespaces")
_ORIGIN = """
    SELECT (SELECT system_identifier::text FROM pg_control_system()), pg_export_snapshot(), ARRAY(
        SELECT unnest(setconfig) FROM pg_db_role_setting
        WHERE setrole = 0 AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
        ORDER BY 1)
"""
_EXTENSIONS = "SELECT extname, extversion FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1"
# What the first superuser owns is in no list of dependencies: it is always there, but under any name.
_ROLES = """
    SELECT pg_get_userbyid(refobjid) FROM pg_shdepend
    WHERE refclassid = 'pg_authid'::regclass
      AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    UNION
    SELECT pg_get_userbyid(10) WHERE EXISTS (SELECT FROM pg_class WHERE relowner = 10 AND oid >= 16384)
    ORDER BY 1
"""
_PROGRESS = """
    SELECT format('%%I.%%I', n.nspname, c.relname), tuples_processed
    FROM pg_stat_progress_copy JOIN pg_stat_activity USING (pid)
    JOIN pg_class AS c ON c.oid = relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE application_name = %s
"""


def back_up(
    target: Target,
    project: Project,
    *,
    jobs: int = 1,
    wait_seconds: float = LOCK_WAIT_SECONDS,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Backup:
    """Write a backup of the target into BACKUP_FOLDER; nothing is left of one that fails.

    jobs: how many tables pg_dump reads at a time; more than one writes its directory format, else a file in
    its custom format. wait_seconds: for tables that are locked. on_progress: told the part that is done, 0 to
    1. Others may write meanwhile: rows are counted and dumped as they were at one moment. They can't change
    the schema until it is done.
    Raises NotReadyError: the database can't be reached. Raises BackupError: anything else.
    """
    state = read_state(target, project)
    folder = anchored(target.config, target.config.backup_folder)
    try:
        # To the server, 0 is for ever, and the longest time is what its milliseconds can hold.
        wait = min(max(wait_seconds, 0.001), _LONGEST_SECONDS)
        return _write(folder, target, project, state, jobs, wait, on_progress)
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror or error}."
        raise _failed(target, what, "Mend that, or set BACKUP_FOLDER to another folder.") from error
    except psycopg.Error as error:
        problem = translate(error, target.url)
        raise _failed(target, problem.what, problem.fix) from error
    except RagFactoryError as problem:
        raise _failed(target, problem.what, problem.fix) from problem


def _write(
    folder: Path,
    target: Target,
    project: Project,
    state: DatabaseState,
    jobs: int,
    wait_seconds: float,
    on_progress: Callable[[float], None],
) -> Backup:
    started, clock = datetime.now(UTC), time.monotonic()
    pg_dump_version = child.version("pg_dump", target, at_least=state.server_major)
    with snapshot(target, wait_seconds=wait_seconds) as session:
        revisions = read_revisions(target, project, session)
        name = backup_name(target.url.database, started, revisions)
        with unfinished_folder(folder, name) as (path, lock):
            rows = count_rows(session)
            system, token, settings = _one(session, _ORIGIN)
            progress = _Progress(session, f"rag-factory backup {path.name[-8:]}", rows, on_progress)
            child.run(
                "pg_dump",
                target,
                [
                    *(("--format=directory", f"--jobs={jobs}") if jobs > 1 else ("--format=custom",)),
                    f"--file={path / DUMP}",
                    f"--snapshot={token}",
                    f"--lock-wait-timeout={round(wait_seconds * 1000)}",
                    *NOT_DUMPED,
                ],
                at_least=state.server_major,
                application_name=progress.application_name,
                on_tick=progress.tell,
                hold=(lock,),
            )
            commit, dirty = read_commit(project.root)
            manifest = Manifest(
                database=target.url.database,
                system=system,
                revisions=revisions,
                git_commit=commit,
                git_dirty=dirty,
                server_version=state.server_version,
                extensions=dict(session.execute(_EXTENSIONS).fetchall()),
                pg_dump_version=pg_dump_version,
                rows=rows,
                roles=tuple(role for (role,) in session.execute(_ROLES)),
                settings=tuple(settings),
                files=_sum_files(path),
                started=started.isoformat(timespec="seconds"),
                seconds=round(time.monotonic() - clock, 3),
            )
            manifest.write(path)
            return Backup(publish(path, name), manifest)


class _Progress:
    """How many of the rows pg_dump has read; the server tells it of each table being copied."""

    def __init__(
        self,
        session: psycopg.Connection[Any],
        application_name: str,
        rows: Mapping[str, int],
        told: Callable[[float], None],
    ) -> None:
        self.session, self.application_name, self.rows, self.told = session, application_name, rows, told
        self.seen: dict[str, int] = {}

    def tell(self) -> None:
        # A transaction sees the activity of others as it was when it looked first.
        self.session.execute("SELECT pg_stat_clear_snapshot()")
        now = dict(self.session.execute(_PROGRESS, (self.application_name,)).fetchall())
        # A table that was being copied and no longer is, is done.
        self.seen = {table: self.rows.get(table, 0) for table in self.seen} | now
        self.told(min(1.0, sum(self.seen.values()) / max(1, sum(self.rows.values()))))


def _sum_files(path: Path) -> dict[str, FileSum]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): sum_file(file) for file in files}


def _one(session: psycopg.Connection[tuple[Any, ...]], query: str) -> tuple[Any, ...]:
    row = session.execute(query.encode()).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM always gives a row
    return row


def _failed(target: Target, what: str, fix: str | None) -> BackupError:
    return BackupError(f"The backup of {target.place} failed, and nothing is left of it: {what}", fix=fix)
