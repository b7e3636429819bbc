"""Migrate a new database that nobody else knows: no lock, no ledger, nobody to wait for, and one session."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rag_factory.migrate.environment import explained, open_connection, target_environment
from rag_factory.migrate.state import read_revisions
from rag_factory.migrate.steps import VERBS, alembic_step
from rag_factory.migrate.work import require_moved

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import psycopg
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from rag_factory.migrate.history import Revision
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target


@contextmanager
def migrated_alone(
    target: Target, project: Project, scripts: ScriptDirectory, revisions: Sequence[Revision]
) -> Iterator[psycopg.Connection[Any]]:
    """Apply all revisions to an empty database. The body gets the session that did, in autocommit mode.

    Raises RagFactoryError: one failed; what is before it stays.
    """
    config = project.alembic_config(target.url)
    with open_connection(target.url, target.config) as connection:
        config.attributes["connection"] = connection
        rest = revisions
        while rest:
            rest = rest[_run(config, scripts, target, rest) :]
        connection.rollback()
        session: Any = connection.connection.driver_connection
        session.autocommit = True
        if revisions:
            require_moved(target, project, (), read_revisions(target, project, session))
        yield session


def _run(config: Config, scripts: ScriptDirectory, target: Target, revisions: Sequence[Revision]) -> int:
    """Run env.py for the first of these revisions, or for all when it commits each by itself. How many."""
    begun: list[Revision] = []

    def steps(_: Any, context: Any) -> Iterator[Any]:
        for revision in revisions:
            begun.append(revision)
            yield alembic_step(scripts, revision, "up")
            if not context.opts.get("transaction_per_migration"):
                return

    def doing() -> str:
        if not begun:
            return f"Running env.py for {revisions[0].id}"
        return f"{VERBS['up']} {begun[-1].id} ({begun[-1].path.name})"

    with (
        explained(doing, target.url),
        target_environment(config, scripts, target, fn=steps, destination_rev=revisions[-1].id),
    ):
        scripts.run_env()
    # An env.py that runs nothing is found out by the version table.
    return len(begun) or len(revisions)
