"""Run revisions through a project's env.py, each with its timeouts, in the ledger, and watched."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from alembic.runtime.migration import MigrationStep

from rag_factory.errors import UsageError
from rag_factory.migrate.commits import watching_commits
from rag_factory.migrate.environment import explained, target_environment
from rag_factory.migrate.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from rag_factory.migrate.history import Revision
    from rag_factory.migrate.ledger import Ledger
    from rag_factory.migrate.target import Target
    from rag_factory.migrate.watch import Blocker

Direction = Literal["up", "down"]
VERBS = {"up": "Applying", "down": "Taking back"}
_TIMEOUTS = ("lock_timeout", "statement_timeout")
_UNITS = {"us": 1e-6, "ms": 1e-3, "": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Applied:
    """A revision that was just applied or taken back, and the time it took."""

    revision: Revision
    direction: Direction
    milliseconds: float


@dataclass
class Steps:
    """Runs revisions in one direction.

    on_applied: told each one that is done. on_blocked: told a revision and who holds it up, once for each set
    of them. on_running: told a revision and its seconds so far, while it runs. Both from another thread.
    """

    target: Target
    config: Config
    scripts: ScriptDirectory
    session: psycopg.Connection[Any]
    work_key: int
    ledger: Ledger | None
    direction: Direction
    on_applied: Callable[[Applied], None]
    on_blocked: Callable[[Revision, Sequence[Blocker]], None]
    on_running: Callable[[Revision, Direction, float], None]

    done: list[Revision] = field(default_factory=list)
    blockers: Sequence[Blocker] = ()
    repeatable: bool = False

    def run(self, revisions: Sequence[Revision]) -> int:
        """Run env.py for the first of these revisions, or for all of them when it commits each by itself.

        Returns how many that were; `done` has them. Raises RagFactoryError: one failed and is rolled back.
        """
        self.done = []
        self._current: Revision | None = None
        self._told: set[int] = set()
        self._row: int | None = None
        self._started = time.monotonic()
        try:
            with (
                explained(lambda: self._doing(revisions[0]), self.target.url),
                watching_commits() as self._commits,
                Watch(self.session, self.work_key, self._look) as self._watch,
                target_environment(
                    self.config,
                    self.scripts,
                    self.target,
                    fn=self._generator(revisions),
                    destination_rev=revisions[-1].id,
                ),
            ):
                self.scripts.run_env()
        except BaseException:
            self._fail()
            raise
        if self._current is not None:
            self._finish()
        # An env.py that runs nothing is found out by the version table.
        return len(self.done) or len(revisions)

    def _generator(self, revisions: Sequence[Revision]) -> Callable[..., Iterator[MigrationStep]]:
        def steps(_: Any, context: Any) -> Iterator[MigrationStep]:
            for revision in revisions:
                self._begin(revision, context)
                yield alembic_step(self.scripts, revision, self.direction)
                if not context.opts.get("transaction_per_migration"):
                    return
                # Alembic asks for the next one when this one is committed.
                self._finish()

        return steps

    def _begin(self, revision: Revision, context: Any) -> None:
        """Begin a revision. By now env.py has imported the models and connected: neither is its time."""
        # The lock's session must still be there, with the ledger or without.
        if self.ledger is None:
            self.session.execute("SELECT 1")
        else:
            self._row = self.ledger.begin(revision.id, revision.path, self.direction)
        self._told, self.blockers = set(), ()
        module = self.scripts.get_revision(revision.id).module
        self._watch.expect(set_timeouts(context.connection, module, self.target, revision))
        self._commits.begin(repeatable=getattr(module, "repeatable", False) is True)
        self._started, self._current = time.monotonic(), revision

    def _finish(self) -> None:
        assert self._current is not None  # noqa: S101 - what was begun is finished
        revision, self._current = self._current, None
        milliseconds = (time.monotonic() - self._started) * 1000
        self.done.append(revision)
        self.on_applied(Applied(revision, self.direction, milliseconds))
        if self.ledger is not None and self._row is not None:
            row, self._row = self._row, None
            self.ledger.complete(row, milliseconds)

    def _fail(self) -> None:
        # Before the first statement of a revision there is nothing to be left half-done.
        self.repeatable = self._current is None or self._commits.repeatable
        if self.ledger is not None and self._row is not None:
            # When its session is lost, the next run closes the row.
            with suppress(psycopg.Error):
                milliseconds = (time.monotonic() - self._started) * 1000
                self.ledger.complete(self._row, milliseconds, done=False)

    def _doing(self, first: Revision) -> str:
        if self._current is None and not self.done:
            return f"Running env.py for {first.id}"
        revision = self._current or self.done[-1]
        return f"{VERBS[self.direction]} {revision.id} ({revision.path.name})"

    def _look(self, found: Sequence[Blocker]) -> None:
        """Take in what the watch sees, in its thread."""
        revision = self._current
        if revision is None:
            return
        self.blockers = found or self.blockers
        new = {blocker.pid for blocker in found} - self._told
        if new:
            self._told |= new
            self.on_blocked(revision, found)
        else:
            self.on_running(revision, self.direction, time.monotonic() - self._started)


def alembic_step(scripts: ScriptDirectory, revision: Revision, direction: Direction) -> MigrationStep:
    """The revision as Alembic runs it."""
    script = scripts.get_revision(revision.id)
    make = MigrationStep.upgrade_from_script if direction == "up" else MigrationStep.downgrade_from_script
    return make(scripts.revision_map, script)


def set_timeouts(connection: Any, module: Any, target: Target, revision: Revision) -> float:
    """Set the timeouts for one revision: its own lines, else the settings'. Returns the lock's, in seconds.

    They are set anew for each, whatever the one before has left.
    """
    defaults = (target.config.db_lock_timeout_seconds, target.config.db_statement_timeout_seconds)
    values = {name: f"{round(value * 1000)}ms" for name, value in zip(_TIMEOUTS, defaults, strict=True)}
    for name in _TIMEOUTS:
        own = getattr(module, name, None)
        if own is not None:
            values[name] = _checked(own, name, revision)
    calls = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in values.items())
    cursor = connection.connection.cursor()
    cursor.execute(f"SELECT {calls}")
    cursor.close()
    return _seconds(values["lock_timeout"])


def _checked(value: Any, name: str, revision: Revision) -> str:
    if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.\d+)?\s*(us|ms|s|min|h|d)\s*", value):
        return value
    raise UsageError(
        f"{revision.path.name} sets {name} to {value!r}, which is no time.",
        fix=f'Write it with its unit, as {name} = "3s"; units are ms, s, min and h.',
    )


def _seconds(text: str) -> float:
    number, unit = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", text).groups()  # type: ignore[union-attr] # _checked
    return float(number) * _UNITS[unit]
