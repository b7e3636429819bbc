"""The runner: takes a database from one revision to another, one revision and one transaction at a time."""

from __future__ import annotations

import io
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from alembic import command
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from rag_factory.database.connection import translate
from rag_factory.errors import HistoryError, RagFactoryError
from rag_factory.migrate.environment import open_connection
from rag_factory.migrate.lock import migrator_lock
from rag_factory.migrate.state import read_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from alembic.config import Config

    from rag_factory.migrate.history import History, Revision
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target

Direction = Literal["up", "down"]
# How long a migrator waits for another one, unless it is told otherwise.
DEFAULT_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Applied:
    """A revision that was just applied or taken back, and the time it took."""

    revision: Revision
    direction: Direction
    milliseconds: float


@dataclass(frozen=True)
class Runner:
    """Migrates one target. on_applied is told each revision as it is done, on_wait what is waited for."""

    target: Target
    project: Project
    history: History
    on_applied: Callable[[Applied], None] = lambda _: None
    on_wait: Callable[[str], None] = lambda _: None
    wait_seconds: float = DEFAULT_WAIT_SECONDS

    def upgrade(self, to: str | None) -> tuple[str, ...]:
        """Apply all up to the revision `to`, an id. Returns the revisions the database is then at.

        Raises RagFactoryError: a revision failed; it is rolled back, those before it stay.
        Raises LockedError: another migrator, or a lock on a table, stood in the way.
        """
        return self._run("up", lambda current: self.history.pending(current, to))

    def downgrade(self, to: str | None) -> tuple[str, ...]:
        """Take back all after the revision `to`, an id; None: all. Raises as `upgrade`."""
        return self._run("down", lambda current: self.history.undone(current, to), to)

    def stamp(self, to: str | None, *, purge: bool = False) -> tuple[str, ...]:
        """Write the revision `to` into the version table without running anything; None: base.

        purge: empty the version table first, also of revisions this checkout lacks.
        """
        with self._locked() as config:
            try:
                command.stamp(config, to or "base", purge=purge)
            except CommandError as error:
                raise HistoryError(f"Stamping {self.target.place} failed: {error}.") from error
        return read_state(self.target, self.project).revisions

    def _run(
        self,
        direction: Direction,
        choose: Callable[[Sequence[str]], list[Revision]],
        to: str | None = None,
    ) -> tuple[str, ...]:
        with self._locked() as config:
            # Read under the lock: another migrator may have been at work until now.
            before = read_state(self.target, self.project)
            before.check(self.project, self.target.place)
            self.history.check_known(before.revisions, where=self.target.place)
            chosen = choose(before.revisions)
            scripts = ScriptDirectory.from_config(config)
            forked = any(len(revision.parents) > 1 for revision in chosen) or len(before.revisions) > 1
            if direction == "down" and forked and chosen:
                # Which of several ways down is meant only Alembic's own walk can tell.
                self._step(config, scripts, chosen[-1], direction, to)
            else:
                for revision in chosen:
                    parent = revision.parents[0] if revision.parents else None
                    self._step(config, scripts, revision, direction, parent)
        after = read_state(self.target, self.project).revisions
        if chosen and after == before.revisions:
            raise RagFactoryError(
                f"Alembic ran {len(chosen)} revisions, but "
                f"{'.'.join(self.project.version_table)} in {self.target.place} did not change.",
                fix="Does env.py name another version table, or another database? Set version_table in "
                "[tool.rag_factory] of pyproject.toml, and let env.py take sqlalchemy.url.",
            )
        return after

    def _step(
        self,
        config: Config,
        scripts: ScriptDirectory,
        revision: Revision,
        direction: Direction,
        down_to: str | None,
    ) -> None:
        """Run env.py for one revision."""
        started = time.perf_counter()

        # What alembic.command does too, without reading all revisions again for each.
        def steps(current: Any, _: Any) -> Any:
            nonlocal started
            # Called when env.py has imported the models and connected: neither is the revision's time.
            started = time.perf_counter()
            if direction == "up":
                return scripts._upgrade_revs(revision.id, current)
            return scripts._downgrade_revs(down_to or "base", current)

        try:
            with EnvironmentContext(config, scripts, fn=steps, destination_rev=revision.id):
                scripts.run_env()
        except Exception as error:
            # A revision is anybody's code: whatever it raises is a failed revision.
            raise self._failed(error, revision, direction) from error
        self.on_applied(Applied(revision, direction, (time.perf_counter() - started) * 1000))

    def _failed(self, error: Exception, revision: Revision, direction: Direction) -> RagFactoryError:
        """Say which revision failed, why, and where the database is now."""
        if isinstance(error, DBAPIError):
            problem = translate(error.orig or error, self.target.url)
        elif isinstance(error, RagFactoryError):
            problem = error
        else:
            problem = RagFactoryError(f"{type(error).__name__}: {error}.")
        verb = "Applying" if direction == "up" else "Taking back"
        try:
            now = ", ".join(read_state(self.target, self.project).revisions) or "base"
            where = f"The database is at {now}."
        except RagFactoryError:
            where = "Where the database is now can't be read."
        what = f"{verb} {revision.id} ({revision.path.name}) failed: {problem.what} {where}"
        return type(problem)(what, fix=problem.fix)

    @contextmanager
    def _locked(self) -> Iterator[Config]:
        """Hold the migrator lock and a connection for Alembic."""
        config = self.project.alembic_config(self.target.url)
        with (
            migrator_lock(self.target, wait_seconds=self.wait_seconds, on_wait=self.on_wait),
            open_connection(self.target.url, self.target.config) as connection,
        ):
            config.attributes["connection"] = connection
            yield config


def upgrade_sql(project: Project, current: str | None, to: str) -> str:
    """The SQL that an upgrade would run, without a database."""
    return _sql(project, command.upgrade, f"{current or 'base'}:{to}")


def downgrade_sql(project: Project, current: str, to: str | None) -> str:
    """The SQL that a downgrade would run, without a database."""
    return _sql(project, command.downgrade, f"{current}:{to or 'base'}")


def _sql(project: Project, run: Callable[..., None], revisions: str) -> str:
    config = project.alembic_config(None)
    config.output_buffer = io.StringIO()
    try:
        run(config, revisions, sql=True)
    except CommandError as error:
        raise HistoryError(f"No SQL for {revisions}: {error}.") from error
    return config.output_buffer.getvalue()
