"""Adopt a database made by hand or by another tool: find the revision that its schema is at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag_factory.database.driver import connect
from rag_factory.migrate.differences import compare
from rag_factory.migrate.drift import left_out, read_target
from rag_factory.migrate.foreign import find_foreign
from rag_factory.migrate.runner import Applied, Runner
from rag_factory.migrate.schema import read_items
from rag_factory.migrate.scratch import migrated_scratch

if TYPE_CHECKING:
    from rag_factory.migrate.differences import Difference
    from rag_factory.migrate.foreign import ForeignTable
    from rag_factory.migrate.history import History
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target


@dataclass(frozen=True)
class Detected:
    """Where a database's schema is. None stands for base, before the first revision.

    exact: the revisions that make this very schema, oldest first; several where the later ones change only
    data. nearest: the revision with the fewest differences, the newest of such; differences: those.
    foreign: tables of other migration tools.
    """

    exact: tuple[str | None, ...]
    nearest: str | None
    differences: tuple[Difference, ...]
    foreign: tuple[ForeignTable, ...]


def detect_revision(target: Target, project: Project, history: History) -> Detected:
    """Run the revisions one after the other in a scratch database, and hold each schema against the target's.

    The target is only read. Version tables don't count. Of side branches, only what stands on one revision is
    considered. Raises RagFactoryError: a revision fails.
    """
    items, _, _ = read_target(target, project, rights=False)
    distances: dict[str | None, list[Difference]] = {}
    applied: set[str] = set()
    timeout = target.config.db_connect_timeout_seconds
    with (
        migrated_scratch(target, project, history, None) as scratch,
        connect(scratch.url, connect_timeout_seconds=timeout, read_only=True) as session,
    ):

        def look(revision: str | None) -> None:
            made = read_items(session, rights=False)
            distances[revision] = compare(items, made, ignore=left_out((*items, *made), project))

        def on_applied(step: Applied) -> None:
            applied.add(step.revision.id)
            if history.lineage([step.revision.id]) == applied:
                look(step.revision.id)

        look(None)
        runner = Runner(scratch, project, history, on_applied=on_applied)
        for head in history.heads:
            runner.upgrade(head)
    nearest = min(reversed(distances), key=lambda revision: len(distances[revision]))
    return Detected(
        exact=tuple(revision for revision, found in distances.items() if not found),
        nearest=nearest,
        differences=tuple(distances[nearest]),
        foreign=tuple(find_foreign(items, project)),
    )
