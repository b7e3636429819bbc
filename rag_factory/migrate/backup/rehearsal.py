"""Rehearse the pending revisions on a restored backup: up, down and up again; and see what differs."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from rag_factory.database.driver import connect_maintenance, translate
from rag_factory.migrate.backup.content import load
from rag_factory.migrate.backup.folder import reading
from rag_factory.migrate.backup.rows import compare_rows, count_rows, snapshot
from rag_factory.migrate.bookkeeping import OWN_SCHEMAS
from rag_factory.migrate.properties import create_empty
from rag_factory.migrate.runner import Runner
from rag_factory.migrate.schema import read_schema
from rag_factory.migrate.scratch import scratch_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rag_factory.migrate.backup.manifest import Backup
    from rag_factory.migrate.history import History, Revision
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.steps import Applied
    from rag_factory.migrate.target import Target


@dataclass(frozen=True)
class RevisionTimes:
    """A revision that was rehearsed, and what each way took, in milliseconds."""

    revision: Revision
    up: float
    down: float
    up_again: float


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal showed.

    rows: how many the restored database had. restore_seconds: what restoring took.
    differences: between the database as restored and as it was when all was taken back, and between it
    migrated once and again; empty when there are none.
    """

    backup: Backup
    restore_seconds: float
    times: tuple[RevisionTimes, ...]
    differences: tuple[str, ...]


@dataclass(frozen=True)
class _Picture:
    """Schema and rows at one moment."""

    schema: tuple[str, ...]
    rows: Mapping[str, int]

    def differences(self, other: _Picture, when: str) -> list[str]:
        """Say how another one differs: what it lost with a minus, what it has besides with a plus."""
        lines = difflib.unified_diff(self.schema, other.schema, lineterm="", n=0)
        schema = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
        return [f"{when}: {line}" for line in [*schema, *compare_rows(self.rows, other.rows)]]


def rehearse(
    backup: Backup,
    target: Target,
    project: Project,
    history: History,
    *,
    jobs: int,
    on_progress: Callable[[float], None] = lambda _: None,
    on_applied: Callable[[Applied], None] = lambda _: None,
) -> Rehearsal:
    """Restore a backup into a scratch database, apply what is pending there, take it back, apply it again.

    The target gives the server only, and is not touched. Owners and grants are left out: the scratch database
    may be on the embedded server. It is always dropped.
    Raises HistoryError: the backup is at a revision this checkout lacks. Raises RagFactoryError: the backup
    is damaged, or a revision failed.
    """
    history.check_known(backup.manifest.revisions, where=f"The backup {backup.name}")
    pending = history.pending(backup.manifest.revisions, history.head)
    passes: list[dict[str, float]] = [{}, {}, {}]
    with reading(backup), scratch_name(target, list(backup.manifest.extensions)) as scratch:
        clock = time.monotonic()
        backup.verify()
        timeout = scratch.config.db_connect_timeout_seconds
        with connect_maintenance(scratch.url, connect_timeout_seconds=timeout) as server:
            create_empty(server, scratch.url.database, None)
        load(backup, scratch, jobs=jobs, no_owner=True, on_progress=on_progress)
        restore_seconds = time.monotonic() - clock
        differences: list[str] = []
        if pending:

            def runner(times: dict[str, float]) -> Runner:
                def note(applied: Applied) -> None:
                    times[applied.revision.id] = applied.milliseconds
                    on_applied(applied)

                return Runner(scratch, project, history, on_applied=note, keep_ledger=False)

            restored = _look(scratch)
            runner(passes[0]).upgrade(history.head)
            migrated = _look(scratch)
            runner(passes[1]).downgrade(list(reversed(pending)))
            differences += restored.differences(_look(scratch), "after going down")
            runner(passes[2]).upgrade(history.head)
            differences += migrated.differences(_look(scratch), "after going up again")
    return Rehearsal(
        backup,
        restore_seconds,
        tuple(RevisionTimes(one, *(times[one.id] for times in passes)) for one in pending),
        tuple(differences),
    )


def _look(scratch: Target) -> _Picture:
    try:
        with snapshot(scratch) as session:
            rows = count_rows(session)
            own = tuple(f"{schema}." for schema in OWN_SCHEMAS)
            # What the engine notes for itself grows with each revision, whichever way it goes.
            kept = {table: count for table, count in rows.items() if not table.startswith(own)}
            return _Picture(read_schema(session), kept)
    except psycopg.Error as error:
        raise translate(error, scratch.url) from error
