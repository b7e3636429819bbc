"""Run the pending revisions on the copy, up and down again, one at a time."""

from __future__ import annotations

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
    from collections.abc import Sequence

    import psycopg
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from rag_factory.migrate.history import Revision
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target


@dataclass
class Rehearsed:
    """A revision that was run on the copy. Only the last one may have an error; it is rolled back.

    reversible: None when the downgrade was not tried. irreversible_because: what is wrong with the downgrade.
    drops, loses: "table x" and "column x.y" that the upgrade drops, and that the downgrade drops.
    """

    revision: Revision
    milliseconds: float = 0.0
    statements: Sequence[Observed] = ()
    error: str | None = None
    reversible: bool | None = None
    irreversible_because: str | None = None
    drops: Sequence[str] = ()
    loses: Sequence[str] = ()
    schema_before: frozenset[str] = field(default_factory=frozenset, repr=False)
    schema_after: frozenset[str] = field(default_factory=frozenset, repr=False)


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
        done = []
        schema = self._schema()
        for revision in revisions:
            each = Rehearsed(revision, schema_before=schema)
            done.append(each)
            began = time.perf_counter()
            try:
                self._run(revision, "up")
            except RagFactoryError as problem:
                each.error = str(problem)
            each.milliseconds = (time.perf_counter() - began) * 1000
            each.statements = tuple(self.observer.observed)
            if each.error is not None:
                break
            schema = each.schema_after = self._schema()
            each.drops = _dropped(each.schema_before, schema)
        return done

    def go_down(self, done: Sequence[Rehearsed]) -> None:
        left_over: frozenset[str] = frozenset()
        for each in reversed(done):
            try:
                self._run(each.revision, "down")
            except RagFactoryError as problem:
                each.reversible, each.irreversible_because = False, problem.what
                break
            now = self._schema()
            each.loses = _dropped(each.schema_after, now)
            # What a later revision's downgrade left behind is not this one's fault.
            different = (now ^ each.schema_before) - left_over
            each.reversible = not different
            if different:
                each.irreversible_because = "the schema is another one afterwards: " + _difference(
                    different, now
                )
            left_over |= different

    def _run(self, revision: Revision, direction: Literal["up", "down"]) -> None:
        """Run env.py for one revision, which commits it."""
        ran: list[MigrationStep] = []

        def steps(_: Any, __: Any) -> list[MigrationStep]:
            script = self.scripts.get_revision(revision.id)
            make = (
                MigrationStep.upgrade_from_script
                if direction == "up"
                else MigrationStep.downgrade_from_script
            )
            step = make(self.scripts.revision_map, script)
            step.migration_fn = self.observer.body(step.migration_fn)
            ran.append(step)
            return ran

        verb = "Applying" if direction == "up" else "Taking back"
        self.observer.observed = []
        with (
            explained(f"{verb} {revision.id} ({revision.path.name})", self.scratch.url),
            EnvironmentContext(self.config, self.scripts, fn=steps, destination_rev=revision.id),
        ):
            self.scripts.run_env()
        applied = revision.id in read_revisions(self.scratch, self.project, self.session)
        if applied is (direction == "down"):
            raise RagFactoryError(
                f"env.py ran {revision.id}, but the version table of the scratch database did not change.",
                fix="Does it name another version table? Set version_table in [tool.rag_factory].",
            )

    def _schema(self) -> frozenset[str]:
        return frozenset(read_schema(self.session))


def _dropped(before: frozenset[str], after: frozenset[str]) -> tuple[str, ...]:
    """The tables that are gone, and the columns gone from tables that are not."""
    tables = _names(before, "table", "partitioned table") - _names(after, "table", "partitioned table")
    columns = {
        name
        for name in _names(before, "column") - _names(after, "column")
        if not any(name.startswith(f"{table}.") for table in tables)
    }
    return (*(f"table {name}" for name in sorted(tables)), *(f"column {name}" for name in sorted(columns)))


def _names(schema: frozenset[str], *kinds: str) -> set[str]:
    return {
        line.removeprefix(f"{kind} ").split(" ", 1)[0]
        for line in schema
        for kind in kinds
        if line.startswith(f"{kind} ")
    }


def _difference(lines: frozenset[str], now: frozenset[str], most: int = 3) -> str:
    told = [
        f"{'left behind' if line in now else 'missing'}: {line.splitlines()[0][:120]}"
        for line in sorted(lines)
    ]
    more = f" and {len(told) - most} more" if len(told) > most else ""
    return "; ".join(told[:most]) + more
