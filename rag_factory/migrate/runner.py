"""The runner: takes a database from one revision to another, one revision and one transaction at a time."""

from __future__ import annotations

import io
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.runtime.environment import EnvironmentContext

from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import LockedError, NotReadyError, RagFactoryError, RefusedError, StoppedError
from rag_factory.migrate.environment import explained, load_scripts, open_connection, require_target
from rag_factory.migrate.ledger import Ledger
from rag_factory.migrate.lock import migrator_lock
from rag_factory.migrate.preflight import check_left_overs, find_warnings
from rag_factory.migrate.retry import pause_seconds
from rag_factory.migrate.state import read_revisions, read_state
from rag_factory.migrate.steps import Applied, Direction, Steps, alembic_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import psycopg
    from alembic.config import Config
    from alembic.runtime.migration import MigrationStep
    from alembic.script import ScriptDirectory

    from rag_factory.migrate.history import History, Revision
    from rag_factory.migrate.lock import LockKeys
    from rag_factory.migrate.progress import Progress
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target
    from rag_factory.migrate.watch import Blocker

__all__ = ["DEFAULT_WAIT_SECONDS", "Applied", "Direction", "Runner", "migration_sql"]

# How long a migrator waits for another one, unless it is told otherwise.
DEFAULT_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class _Work:
    """What a migrator has while it holds the lock: its session, and Alembic's connection in the config."""

    config: Config
    session: psycopg.Connection[Any]
    keys: LockKeys
    ledger: Ledger | None


@dataclass(frozen=True)
class Runner:
    """Migrates one target.

    on_applied is told each revision as it is done, on_wait what is waited for, or wrong but no error.
    on_running is told, from another thread, a revision that takes long and its seconds so far.
    before_first is called with the revisions to run: under the lock, before anything is changed.
    on_progress: told how far long work is, by the online operations.
    keep_ledger: False for a database of nobody's, made to be dropped.
    """

    target: Target
    project: Project
    history: History
    on_applied: Callable[[Applied], None] = lambda _: None
    on_wait: Callable[[str], None] = lambda _: None
    on_running: Callable[[Revision, Direction, float], None] = lambda *_: None
    before_first: Callable[[Sequence[Revision]], None] = lambda _: None
    on_progress: Callable[[Progress], None] | None = None
    wait_seconds: float = DEFAULT_WAIT_SECONDS
    keep_ledger: bool = True

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
        with self._locked() as work:
            scripts = load_scripts(work.config)
            require_target(work.config, scripts, work.config.attributes["connection"], self.target)
            with explained(f"Stamping {self.target.place}", self.target.url):
                command.stamp(work.config, to or "base", purge=purge)
            if work.ledger is not None:
                work.ledger.record(to or "base", self.history.revisions[to].path if to else None, "stamp")
        return read_state(self.target, self.project).revisions

    def accept(self, revision: Revision) -> None:
        """Write into the ledger that an applied revision's file is right as it is now.

        Raises NotReadyError: no ledger can be kept here.
        """
        with self._locked() as work:
            if work.ledger is None:
                raise NotReadyError(f"{self.target.place} keeps no ledger that this role may write.")
            work.ledger.record(revision.id, revision.path, "accept")

    def _run(
        self, direction: Direction, choose: Callable[[Sequence[str]], Sequence[Revision]]
    ) -> tuple[str, ...]:
        done: list[Revision] = []
        try:
            with self._locked() as work:
                return self._migrate(work, direction, choose, done)
        except KeyboardInterrupt as stop:
            if not self.keep_ledger:
                raise
            what = "applied" if direction == "up" else "taken back"
            names = ", ".join(revision.id for revision in done) or "nothing"
            raise StoppedError(
                f"Stopped. In this run, {what}: {names}; the transaction under way is rolled back. "
                f"{self._where_now()}",
                fix="To go on, run the task again.",
            ) from stop

    def _migrate(
        self,
        work: _Work,
        direction: Direction,
        choose: Callable[[Sequence[str]], Sequence[Revision]],
        done: list[Revision],
    ) -> tuple[str, ...]:
        # Read under the lock: another migrator may have been at work until now.
        before = read_state(self.target, self.project, work.session)
        before.check(self.project, self.target.place)
        before.check_history(self.history, self.target.place)
        chosen = choose(before.revisions)
        self._warn_first(work, before.revisions, chosen, direction)
        if not chosen:
            return before.revisions
        scripts = load_scripts(work.config)
        require_target(work.config, scripts, work.config.attributes["connection"], self.target)
        self.before_first(chosen)
        self._work_through(chosen, self._steps(work, scripts, direction), done)
        if direction == "up":
            check_left_overs(work.session, done)
        after = read_revisions(self.target, self.project, work.session)
        if after == before.revisions:
            raise RagFactoryError(
                f"Alembic ran {len(chosen)} revisions, but "
                f"{'.'.join(self.project.version_table)} in {self.target.place} did not change.",
                fix="Does env.py name another version table, or another database? Set version_table in "
                "[tool.rag_factory] of pyproject.toml, and let env.py take sqlalchemy.url.",
            )
        return after

    def _warn_first(
        self, work: _Work, now: Sequence[str], chosen: Sequence[Revision], direction: Direction
    ) -> None:
        """Tell what an earlier run left, and what may hold this one up."""
        told = work.ledger.recover(self.history.lineage(now)) if work.ledger else []
        if chosen and self.keep_ledger:
            told += find_warnings(work.session, direction)
        for text in told:
            self.on_wait(text)

    def _steps(self, work: _Work, scripts: ScriptDirectory, direction: Direction) -> Steps:
        def tell_blocked(revision: Revision, blockers: Sequence[Blocker]) -> None:
            self.on_wait(f"{revision.id} waits for {'; '.join(map(str, blockers))}")

        return Steps(
            target=self.target,
            config=work.config,
            scripts=scripts,
            session=work.session,
            work_key=work.keys.work,
            ledger=work.ledger,
            direction=direction,
            on_applied=self.on_applied,
            on_blocked=tell_blocked,
            on_running=self.on_running,
        )

    def _work_through(self, chosen: Sequence[Revision], steps: Steps, done: list[Revision]) -> None:
        """Run the revisions, each again for as long as only a lock stands in its way."""
        rest, tries = chosen, 0
        while rest:
            try:
                rest = rest[steps.run(rest) :]
            except LockedError as problem:
                rest = rest[len(steps.done) :]
                tries = 0 if steps.done else tries
                self._check_retry(problem, steps, tries)
                pause = pause_seconds(tries)
                tries += 1
                self.on_wait(
                    f"{rest[0].id} did not get its lock and is rolled back; trying again in {pause:.1f} s "
                    f"({tries} of {self.target.config.db_lock_retries}); held by: {_names(steps.blockers)}"
                )
                time.sleep(pause)
            except RagFactoryError as problem:
                problem.what = f"{problem.what} {self._where_now()}"
                raise
            else:
                tries = 0
            finally:
                done += steps.done
                steps.config.attributes["connection"].rollback()

    def _check_retry(self, problem: LockedError, steps: Steps, tries: int) -> None:
        """Raise the problem where another try is not safe, or there were enough."""
        if steps.repeatable and tries < self.target.config.db_lock_retries:
            return
        told = [problem.what]
        if not steps.repeatable:
            told.append(
                "A part of the revision was committed, so it is not tried again by itself: if each of its "
                "steps can be repeated, say so in it by the line `repeatable = True`."
            )
        elif tries:
            told.append(f"Tried {tries + 1} times.")
        told.append(f"Held by: {_names(steps.blockers)}. {self._where_now()}")
        problem.what = " ".join(told)
        end = "see pg_stat_activity and pg_prepared_xacts"
        if steps.blockers and steps.blockers[0].pid:
            end = f"SELECT pg_terminate_backend({steps.blockers[0].pid})"
        problem.fix = f"Wait until that transaction is over, or end it ({end}), then run the task again."
        raise problem

    def _where_now(self) -> str:
        try:
            now = read_state(self.target, self.project).revisions
        except RagFactoryError:
            return "Where the database is now can't be read."
        return f"The database is at {', '.join(now) or 'base'}."

    @contextmanager
    def _locked(self) -> Iterator[_Work]:
        """Hold the migrator lock, and a connection for Alembic besides the session that holds it."""
        config = self.project.alembic_config(self.target.url)
        target, project = self.target, self.project
        with (
            migrator_lock(target, project, wait_seconds=self.wait_seconds, on_wait=self.on_wait) as (
                session,
                keys,
            ),
            open_connection(target.url, target.config, work_key=keys.work) as connection,
        ):
            config.attributes["connection"] = connection
            config.attributes["on_notice"] = self.on_wait
            config.attributes["on_progress"] = self.on_progress
            ledger = Ledger.open(session, project, self.on_wait) if self.keep_ledger else None
            yield _Work(config, session, keys, ledger)


def _names(blockers: Sequence[Blocker]) -> str:
    return "; ".join(map(str, blockers)) or "unknown, gone when we looked"


def migration_sql(
    project: Project, current: Sequence[str], revisions: Sequence[Revision], direction: Direction
) -> str:
    """The SQL that takes a database at `current` through these revisions. Needs no database."""
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
