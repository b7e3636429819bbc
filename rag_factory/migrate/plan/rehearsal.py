"""Run the pending revisions on the copy, up and down again, one at a time."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationStep

from rag_factory.database.driver import connect
from rag_factory.errors import RagFactoryError
from rag_factory.migrate.environment import explained, load_scripts, open_connection, require_target
from rag_factory.migrate.plan.catalog import QUERY, Snapshot
from rag_factory.migrate.plan.observer import Observed, Observer
from rag_factory.migrate.schema import read_schema
from rag_factory.migrate.state import read_revisions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import psycopg
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from rag_factory.migrate.history import Revision
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target


class _StoppedError(Exception):
    """A revision failed, and has been told of."""


@dataclass
class Rehearsed:
    """A revision that was run on the copy. Only the last one may have an error; it is rolled back.

    reversible: None when the downgrade was not tried. irreversible_because: what is wrong with the downgrade.
    way_back: what the downgrade did.
    """

    revision: Revision
    milliseconds: float = 0.0
    statements: Sequence[Observed] = ()
    way_back: Sequence[Observed] = ()
    error: str | None = None
    reversible: bool | None = None
    irreversible_because: str | None = None
    schema_before: frozenset[str] = field(default_factory=frozenset, repr=False)


def rehearse(
    scratch: Target, project: Project, revisions: Sequence[Revision]
) -> tuple[Snapshot, list[Rehearsed]]:
    """Run the revisions on the scratch database up to the first that fails, then take them back.

    Returns the catalog as it was before, and what was seen.
    """
    config = project.alembic_config(scratch.url)
    scripts = load_scripts(config)
    with connect(scratch.url) as session:
        row = session.execute(QUERY.encode()).fetchone()
        first = Snapshot.parse(row[0] if row else "{}")
        observer = Observer(scratch.url, first)
        with observer.listening(), open_connection(scratch.url, scratch.config) as connection:
            config.attributes["connection"] = connection
            require_target(config, scripts, connection, scratch)
            rehearsal = _Rehearsal(scratch, project, config, scripts, observer, session)
            done = rehearsal.go_up(revisions)
            rehearsal.go_down([each for each in done if each.error is None])
    return first, done


@dataclass(frozen=True)
class _Rehearsal:
    scratch: Target
    project: Project
    config: Config
    scripts: ScriptDirectory
    observer: Observer
    session: psycopg.Connection[Any]

    def go_up(self, revisions: Sequence[Revision]) -> list[Rehearsed]:
        done: list[Rehearsed] = []
        schema = self._schema()
        began = time.perf_counter()

        def finish(revision: Revision, error: str | None = None) -> None:
            nonlocal schema, began
            milliseconds = (time.perf_counter() - began) * 1000
            seen = tuple(self.observer.observed)
            done.append(Rehearsed(revision, milliseconds, seen, error=error, schema_before=schema))
            if error is None:
                schema = self._schema()
            began = time.perf_counter()

        with contextlib.suppress(_StoppedError):
            self._run(revisions, "up", finish)
        return done

    def go_down(self, done: Sequence[Rehearsed]) -> None:
        left_over: frozenset[str] = frozenset()
        by_id = {each.revision.id: each for each in done}

        def finish(revision: Revision, error: str | None = None) -> None:
            nonlocal left_over
            each = by_id[revision.id]
            each.way_back = tuple(self.observer.observed)
            if error is not None:
                each.reversible, each.irreversible_because = False, error
                return
            now = self._schema()
            # What a later revision's downgrade left behind is not this one's fault.
            different = (now ^ each.schema_before) - left_over
            each.reversible = not different
            if different:
                told = _difference(different, now)
                each.irreversible_because = f"the schema is another one afterwards: {told}"
            left_over |= different

        with contextlib.suppress(_StoppedError):
            self._run([each.revision for each in reversed(done)], "down", finish)

    def _run(
        self,
        revisions: Sequence[Revision],
        direction: Literal["up", "down"],
        finish: Callable[[Revision, str | None], None],
    ) -> None:
        """Run revisions, each committed by itself; `finish` is told of each, with the error that ends it."""
        rest = list(revisions)
        while rest:
            begun: list[Revision] = []
            finished: list[Revision] = []

            def tell(begun: list[Revision] = begun, finished: list[Revision] = finished) -> None:
                finish(begun[-1], None)
                finished.append(begun[-1])

            self.observer.observed = []
            try:
                self._run_environment(rest, direction, begun, tell)
            except RagFactoryError as problem:
                finish(begun[-1] if begun else rest[0], str(problem))
                raise _StoppedError from problem
            if begun and finished != begun:
                self._check_moved(begun[-1], direction)
                tell()
            if not begun:
                finish(rest[0], "env.py ran nothing. Does it call context.run_migrations()?")
                raise _StoppedError
            rest = rest[len(finished) :]

    def _run_environment(
        self,
        revisions: Sequence[Revision],
        direction: Literal["up", "down"],
        begun: list[Revision],
        tell: Callable[[], None],
    ) -> None:
        """Run env.py for the first revision, or for all of them where it commits each by itself."""
        make = MigrationStep.upgrade_from_script if direction == "up" else MigrationStep.downgrade_from_script

        def steps(_: Any, context: Any) -> Iterator[MigrationStep]:
            for revision in revisions:
                begun.append(revision)
                step = make(self.scripts.revision_map, self.scripts.get_revision(revision.id))
                step.migration_fn = self.observer.body(step.migration_fn)
                yield step
                if not context.opts.get("transaction_per_migration"):
                    return
                # Alembic asks for the next one when this one is committed.
                tell()

        def doing() -> str:
            revision = begun[-1] if begun else revisions[0]
            verb = "Applying" if direction == "up" else "Taking back"
            return f"{verb} {revision.id} ({revision.path.name})"

        with (
            explained(doing, self.scratch.url),
            EnvironmentContext(self.config, self.scripts, fn=steps, destination_rev=revisions[-1].id),
        ):
            self.scripts.run_env()

    def _check_moved(self, revision: Revision, direction: Literal["up", "down"]) -> None:
        applied = revision.id in read_revisions(self.scratch, self.project, self.session)
        if applied is (direction == "down"):
            raise RagFactoryError(
                f"env.py ran {revision.id}, but the version table of the scratch database did not change.",
                fix="Does it name another version table? Set version_table in [tool.rag_factory].",
            )

    def _schema(self) -> frozenset[str]:
        return frozenset(read_schema(self.session))


def _difference(lines: frozenset[str], now: frozenset[str], most: int = 3) -> str:
    told = [
        f"{'left behind' if line in now else 'missing'}: {line.splitlines()[0][:120]}"
        for line in sorted(lines)
    ]
    more = f" and {len(told) - most} more" if len(told) > most else ""
    return "; ".join(told[:most]) + more
