"""The runner: takes a database from one revision to another, one revision and one transaction at a time."""

from __future__ import annotations

import io
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from alembic import command
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationStep

from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import RagFactoryError, RefusedError
from rag_factory.migrate.environment import explained, load_scripts, open_connection, require_target
from rag_factory.migrate.lock import migrator_lock
from rag_factory.migrate.state import read_revisions, read_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import psycopg
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from rag_factory.migrate.history import History, Revision
    from rag_factory.migrate.progress import Progress
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
    """Migrates one target. on_applied is told each revision as it is done, on_wait what is waited for.

    on_progress: told how far long work is, by the online operations.
    """

    target: Target
    project: Project
    history: History
    on_applied: Callable[[Applied], None] = lambda _: None
    on_wait: Callable[[str], None] = lambda _: None
    on_progress: Callable[[Progress], None] | None = None
    wait_seconds: float = DEFAULT_WAIT_SECONDS

    def upgrade(self, to: str | None) -> tuple[str, ...]:
        """Apply all up to the revision `to`, an id. Returns the revisions the database is then at.

        Raises RagFactoryError: a revision failed; it is rolled back, those before it stay.
        Raises LockedError: another migrator, or a lock on a table, stood in the way.
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
        with self._locked() as (config, _):
            scripts = load_scripts(config)
            require_target(config, scripts, config.attributes["connection"], self.target)
            with explained(f"Stamping {self.target.place}", self.target.url):
                command.stamp(config, to or "base", purge=purge)
        return read_state(self.target, self.project).revisions

    def _run(
        self,
        direction: Direction,
        choose: Callable[[Sequence[str]], Sequence[Revision]],
    ) -> tuple[str, ...]:
        with self._locked() as (config, session):
            # Read under the lock: another migrator may have been at work until now.
            before = read_state(self.target, self.project, session)
            before.check(self.project, self.target.place)
            self.history.check_known(before.revisions, where=self.target.place)
            chosen = choose(before.revisions)
            if not chosen:
                return before.revisions
            scripts = load_scripts(config)
            require_target(config, scripts, config.attributes["connection"], self.target)
            rest = chosen
            while rest:
                rest = rest[self._step(config, scripts, rest, direction) :]
            after = read_revisions(self.target, self.project, session)
        if after == before.revisions:
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
        revisions: Sequence[Revision],
        direction: Direction,
    ) -> int:
        """Run env.py for the first of these revisions, or for all of them when it commits each by itself.

        Returns how many that were.
        """
        begun: list[Revision] = []
        started = time.perf_counter()

        def steps(_: Any, context: Any) -> Iterator[MigrationStep]:
            nonlocal started
            for revision in revisions:
                # Now env.py has imported the models and connected: neither is the revision's time.
                started = time.perf_counter()
                begun.append(revision)
                yield _alembic_step(scripts, revision, direction)
                if not context.opts.get("transaction_per_migration"):
                    return
                # Alembic asks for the next one when this one is committed.
                tell()

        def tell() -> None:
            milliseconds = (time.perf_counter() - started) * 1000
            self.on_applied(Applied(begun[-1], direction, milliseconds))
            told.append(begun[-1])

        def doing() -> str:
            revision = begun[-1] if begun else revisions[0]
            return f"{verb} {revision.id} ({revision.path.name})"

        told: list[Revision] = []
        verb = "Applying" if direction == "up" else "Taking back"
        try:
            with (
                explained(doing, self.target.url),
                EnvironmentContext(config, scripts, fn=steps, destination_rev=revisions[-1].id),
            ):
                scripts.run_env()
        except RagFactoryError as problem:
            problem.what = f"{problem.what} {self._where_now()}"
            raise
        if told != begun:
            tell()
        # An env.py that runs nothing is found out by the version table.
        return len(begun) or len(revisions)

    def _where_now(self) -> str:
        try:
            now = read_state(self.target, self.project).revisions
        except RagFactoryError:
            return "Where the database is now can't be read."
        return f"The database is at {', '.join(now) or 'base'}."

    @contextmanager
    def _locked(self) -> Iterator[tuple[Config, psycopg.Connection[Any]]]:
        """Hold the migrator lock, and a connection for Alembic besides the session that holds it."""
        config = self.project.alembic_config(self.target.url)
        with (
            migrator_lock(self.target, wait_seconds=self.wait_seconds, on_wait=self.on_wait) as session,
            open_connection(self.target.url, self.target.config) as connection,
        ):
            config.attributes["connection"] = connection
            config.attributes["on_notice"] = self.on_wait
            config.attributes["on_progress"] = self.on_progress
            yield config, session


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
        return [_alembic_step(scripts, revision, direction) for revision in revisions]

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


def _alembic_step(scripts: ScriptDirectory, revision: Revision, direction: Direction) -> MigrationStep:
    script = scripts.get_revision(revision.id)
    make = MigrationStep.upgrade_from_script if direction == "up" else MigrationStep.downgrade_from_script
    return make(scripts.revision_map, script)
