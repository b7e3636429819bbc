"""A migrator at work: it holds the lock and knows that there is something to do. Only it needs Alembic."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from alembic import command

from rag_factory.errors import LockedError, RagFactoryError
from rag_factory.migrate.environment import explained, load_scripts, open_connection, require_target
from rag_factory.migrate.preflight import check_left_overs, find_warnings
from rag_factory.migrate.retry import Patience
from rag_factory.migrate.state import read_revisions
from rag_factory.migrate.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import psycopg
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from rag_factory.migrate.history import Revision
    from rag_factory.migrate.ledger import Ledger
    from rag_factory.migrate.lock import LockKeys
    from rag_factory.migrate.runner import Runner
    from rag_factory.migrate.steps import Direction
    from rag_factory.migrate.watch import Blocker


@dataclass(frozen=True)
class Work:
    """What a migrator has besides the lock's session: Alembic's connection, in the config, and the ledger."""

    runner: Runner
    session: psycopg.Connection[Any]
    keys: LockKeys
    config: Config
    ledger: Ledger | None

    @classmethod
    @contextmanager
    def begun(
        cls, runner: Runner, session: psycopg.Connection[Any], keys: LockKeys, ledger: Ledger | None
    ) -> Iterator[Self]:
        """Connect for the body."""
        target = runner.target
        config = runner.project.alembic_config(target.url)
        with open_connection(target.url, target.config, work_key=keys.work) as connection:
            config.attributes["connection"] = connection
            config.attributes["on_notice"] = runner.on_wait
            config.attributes["on_progress"] = runner.on_progress
            yield cls(runner, session, keys, config, ledger)

    def stamp(self, to: str | None, *, purge: bool) -> None:
        """Write the revision `to` into the version table; None: base."""
        runner, target = self.runner, self.runner.target
        self._require_target(load_scripts(self.config))
        with explained(f"Stamping {target.place}", target.url):
            command.stamp(self.config, to or "base", purge=purge)
        if self.ledger is not None:
            self.ledger.record(to or "base", runner.history.revisions[to].path if to else None, "stamp")

    def migrate(
        self, current: Sequence[str], chosen: Sequence[Revision], direction: Direction, done: list[Revision]
    ) -> tuple[str, ...]:
        """Run the chosen revisions, and put each into `done`. Returns those the database is then at."""
        runner = self.runner
        scripts = runner.scripts or load_scripts(self.config)
        if runner.keep_ledger:
            for text in find_warnings(self.session, direction):
                runner.on_wait(text)
            # Each run looks for itself; here it is before a backup, and before anything is told.
            self._require_target(scripts)
        runner.before_first(chosen)
        self._work_through(chosen, self._steps(scripts, direction), done)
        if direction == "up":
            check_left_overs(self.session, done)
        after = read_revisions(runner.target, runner.project, self.session)
        if after == tuple(current):
            raise RagFactoryError(
                f"Alembic ran {len(chosen)} revisions, but "
                f"{'.'.join(runner.project.version_table)} in {runner.target.place} did not change.",
                fix="Does env.py name another version table, or another database? Set version_table in "
                "[tool.rag_factory] of pyproject.toml, and let env.py take sqlalchemy.url.",
            )
        return after

    def _require_target(self, scripts: ScriptDirectory) -> None:
        require_target(self.config, scripts, self.config.attributes["connection"], self.runner.target)

    def _steps(self, scripts: ScriptDirectory, direction: Direction) -> Steps:
        runner = self.runner

        def tell_blocked(revision: Revision, blockers: Sequence[Blocker]) -> None:
            runner.on_wait(f"{revision.id} waits for {'; '.join(map(str, blockers))}")

        return Steps(
            target=runner.target,
            config=self.config,
            scripts=scripts,
            session=self.session,
            work_key=self.keys.work,
            ledger=self.ledger,
            direction=direction,
            on_applied=runner.on_applied,
            on_blocked=tell_blocked,
            on_running=runner.on_running,
        )

    def _work_through(self, chosen: Sequence[Revision], steps: Steps, done: list[Revision]) -> None:
        """Run the revisions, each again for as long as only a lock stands in its way."""
        rest, patience = chosen, self._patience()
        while rest:
            try:
                rest = rest[steps.run(rest) :]
            except LockedError as problem:
                rest = rest[len(steps.done) :]
                if steps.done:
                    patience = self._patience()
                if patience.is_over() or not steps.repeatable:
                    raise self._explain(problem, steps, patience.failed) from problem.__cause__
                patience.rest(partial(self._tell_retry, rest[0], steps.blockers))
            except RagFactoryError as problem:
                problem.what = f"{problem.what} {self.runner.where_now()}"
                raise
            else:
                patience = self._patience()
            finally:
                done += steps.done
                self.config.attributes["connection"].rollback()

    def _patience(self) -> Patience:
        return Patience(tries=self.runner.target.config.db_lock_retries + 1)

    def _tell_retry(self, revision: Revision, blockers: Sequence[Blocker], when: str) -> None:
        self.runner.on_wait(
            f"{revision.id} did not get its lock and is rolled back; {when}; held by: {_names(blockers)}"
        )

    def _explain(self, problem: LockedError, steps: Steps, tries: int) -> LockedError:
        """Say why it isn't tried once more, and who is in the way."""
        told = [problem.what]
        if not steps.repeatable:
            told.append(
                "A part of the revision was committed, so it is not tried again by itself: if each of its "
                "steps can be repeated, say so in it by the line `repeatable = True`."
            )
        elif tries > 1:
            told.append(f"Tried {tries} times.")
        told.append(f"Held by: {_names(steps.blockers)}. {self.runner.where_now()}")
        problem.what = " ".join(told)
        end = "see pg_stat_activity and pg_prepared_xacts"
        if steps.blockers and steps.blockers[0].pid:
            end = f"SELECT pg_terminate_backend({steps.blockers[0].pid})"
        problem.fix = f"Wait until that transaction is over, or end it ({end}), then run the task again."
        return problem


def _names(blockers: Sequence[Blocker]) -> str:
    return "; ".join(map(str, blockers)) or "unknown, gone when we looked"
