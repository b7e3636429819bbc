"""The runner: takes a database from one revision to another, one migrator at a time.

A migrator that only waits for another one, and then finds nothing to do, never imports Alembic: of twenty
that start at once, nineteen would keep the cores from the one that works.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rag_factory.errors import NotReadyError, RagFactoryError, RefusedError, StoppedError
from rag_factory.migrate.ledger import Ledger
from rag_factory.migrate.lock import migrator_lock
from rag_factory.migrate.state import read_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    import psycopg
    from alembic.runtime.migration import MigrationStep
    from alembic.script import ScriptDirectory

    from rag_factory.migrate.history import History, Revision
    from rag_factory.migrate.lock import LockKeys
    from rag_factory.migrate.progress import Progress
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.steps import Applied, Direction
    from rag_factory.migrate.target import Target

# How long a migrator waits for another one, unless it is told otherwise.
DEFAULT_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Runner:
    """Migrates one target.

    on_applied is told each revision as it is done, on_wait what is waited for, or wrong but no error.
    on_running is told, from another thread, a revision that takes long and its seconds so far.
    before_first is called with the revisions to run: under the lock, before anything is changed.
    on_nothing is called when, under the lock, there is none to run.
    at_end is called with the session that holds the lock, when all is done.
    on_progress: told how far long work is, by the online operations.
    keep_ledger: False for a database of nobody's, made to be dropped.
    scripts: the project's revisions, where they are loaded already.
    """

    target: Target
    project: Project
    history: History
    on_applied: Callable[[Applied], None] = lambda _: None
    on_wait: Callable[[str], None] = lambda _: None
    on_running: Callable[[Revision, Direction, float], None] = lambda *_: None
    before_first: Callable[[Sequence[Revision]], None] = lambda _: None
    on_nothing: Callable[[], None] = lambda: None
    at_end: Callable[[psycopg.Connection[Any]], None] = lambda _: None
    on_progress: Callable[[Progress], None] | None = None
    wait_seconds: float = DEFAULT_WAIT_SECONDS
    keep_ledger: bool = True
    scripts: ScriptDirectory | None = None

    def upgrade(self, to: str | None) -> tuple[str, ...]:
        """Apply all up to the revision `to`, an id. Returns the revisions the database is then at.

        Raises RagFactoryError: a revision failed; it is rolled back, those before it stay.
        Raises LockedError: another migrator, or a lock on a table, stood in the way.
        Raises StoppedError: Ctrl-C; the running revision is rolled back.
        """
        return self._run("up", lambda current: self.history.pending(current, to))

    def downgrade(self, revisions: Sequence[Revision]) -> tuple[str, ...]:
        """Take these revisions back, newest first. Raises as `upgrade`.

        Raises RefusedError: they are not what is on top any more, since another migrator was here.
        """

        def choose(current: Sequence[str]) -> Sequence[Revision]:
            applied = self.history.lineage(current)
            below = applied - {revision.id for revision in revisions}
            if len(applied) - len(below) < len(revisions) or self.history.lineage(below) != below:
                raise RefusedError(
                    f"{self.target.place} has changed meanwhile: it is at {', '.join(current) or 'base'}. "
                    "Nothing was taken back.",
                    fix="Look, then decide anew: invoke db.status",
                )
            return revisions

        return self._run("down", choose)

    def stamp(self, to: str | None, *, purge: bool = False) -> tuple[str, ...]:
        """Write the revision `to` into the version table without running anything; None: base.

        purge: empty the version table first, also of revisions this checkout lacks.
        """
        from rag_factory.migrate.work import Work

        with (
            self._locked() as (session, keys),
            Work.begun(self, session, keys, self.open_ledger(session)) as work,
        ):
            work.stamp(to, purge=purge)
        return read_state(self.target, self.project).revisions

    def accept(self, revision: Revision) -> None:
        """Write into the ledger that an applied revision's file is right as it is now.

        Raises NotReadyError: no ledger can be kept here.
        """
        with self._locked() as (session, _):
            ledger = self.open_ledger(session)
            if ledger is None:
                raise NotReadyError(
                    f"{self.target.place} keeps no ledger that this role may write.",
                    fix="Grant what the warning names, or run the task as the role that migrates.",
                )
            ledger.record(revision.id, revision.path, "accept")

    def open_ledger(self, session: psycopg.Connection[Any]) -> Ledger | None:
        """The ledger, where one is kept and this role may write it."""
        return Ledger.open(session, self.project, self.on_wait) if self.keep_ledger else None

    def where_now(self) -> str:
        """Where the database is, as a sentence."""
        try:
            now = read_state(self.target, self.project).revisions
        except RagFactoryError:
            return "Where the database is now can't be read."
        return f"The database is at {', '.join(now) or 'base'}."

    def _run(
        self, direction: Direction, choose: Callable[[Sequence[str]], Sequence[Revision]]
    ) -> tuple[str, ...]:
        done: list[Revision] = []
        try:
            with self._locked() as (session, keys):
                revisions = self._migrate(session, keys, direction, choose, done)
                self.at_end(session)
                return revisions
        except KeyboardInterrupt as stop:
            if not self.keep_ledger:
                raise
            what = "applied" if direction == "up" else "taken back"
            names = ", ".join(revision.id for revision in done) or "nothing"
            raise StoppedError(
                f"Stopped. In this run, {what}: {names}; the transaction under way is rolled back. "
                f"{self.where_now()}",
                fix="To go on, run the task again.",
            ) from stop

    def _migrate(
        self,
        session: psycopg.Connection[Any],
        keys: LockKeys,
        direction: Direction,
        choose: Callable[[Sequence[str]], Sequence[Revision]],
        done: list[Revision],
    ) -> tuple[str, ...]:
        # Read under the lock: another migrator may have been at work until now.
        before = read_state(self.target, self.project, session)
        before.check(self.project, self.target.place)
        before.check_history(self.history, self.target.place)
        chosen = choose(before.revisions)
        ledger = self.open_ledger(session)
        for text in ledger.recover(self.history.lineage(before.revisions)) if ledger else ():
            self.on_wait(text)
        if not chosen:
            self.on_nothing()
            return before.revisions
        from rag_factory.migrate.work import Work

        with Work.begun(self, session, keys, ledger) as work:
            return work.migrate(before.revisions, chosen, direction, done)

    def _locked(self) -> AbstractContextManager[tuple[psycopg.Connection[Any], LockKeys]]:
        return migrator_lock(self.target, self.project, wait_seconds=self.wait_seconds, on_wait=self.on_wait)


def migration_sql(
    project: Project, current: Sequence[str], revisions: Sequence[Revision], direction: Direction
) -> str:
    """The SQL that takes a database at `current` through these revisions. Needs no database."""
    from alembic.runtime.environment import EnvironmentContext

    from rag_factory.database.url import DatabaseUrl
    from rag_factory.migrate.environment import explained, load_scripts
    from rag_factory.migrate.steps import alembic_step

    # An env.py that asks for a URL uses it here for its dialect only.
    nominal = DatabaseUrl(host="localhost", database="offline")
    config = project.alembic_config(nominal)
    config.output_buffer = io.StringIO()
    scripts = load_scripts(config)

    def steps(_: Any, __: Any) -> list[MigrationStep]:
        return [alembic_step(scripts, revision, direction) for revision in revisions]

    start: Any = list(current) or "base"
    with (
        explained("Writing the SQL", nominal),
        EnvironmentContext(config, scripts, fn=steps, as_sql=True, starting_rev=start),
    ):
        scripts.run_env()
    create_table = f"CREATE TABLE {'.'.join(project.version_table)} ("
    # A database taken back to base keeps its empty version table.
    if_missing = create_table.replace("TABLE", "TABLE IF NOT EXISTS", 1)
    return config.output_buffer.getvalue().replace(create_table, if_missing, 1)
