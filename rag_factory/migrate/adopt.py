"""Adopt a database made by hand or by another tool: find the revision that its schema is at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag_factory.database.driver import connect
from rag_factory.migrate.differences import compare, ignoring
from rag_factory.migrate.drift import left_out, read_target, without_respelled
from rag_factory.migrate.foreign import find_foreign, version_tables
from rag_factory.migrate.reembed.traces import find_traces
from rag_factory.migrate.runner import Runner
from rag_factory.migrate.schema import read_items
from rag_factory.migrate.scratch import migrated_scratch

if TYPE_CHECKING:
    from rag_factory.migrate.differences import Difference
    from rag_factory.migrate.foreign import ForeignTable
    from rag_factory.migrate.history import History
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.schema import SchemaItem
    from rag_factory.migrate.steps import Applied
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

    The target is only read. Version tables, and what a change of embedding model under way has made, don't
    count. Of side branches, only what stands on one revision is
    considered. Raises RagFactoryError: a revision fails.
    """
    items, _, _ = read_target(target, project, rights=False)
    _, traces = find_traces(target)
    made = _run_revisions(target, project, history)
    distances = {}
    for revision, schema in made.items():
        found = compare(items, schema, ignore=left_out((*items, *schema), project))
        distances[revision] = [each for each in found if (each.kind, each.name) not in traces]
    nearest = min(reversed(distances), key=lambda revision: len(distances[revision]))
    differences = distances[nearest]
    if differences:
        with migrated_scratch(target, project, history, nearest) as scratch:
            differences = without_respelled(differences, scratch, project)
    same = [revision for revision, schema in made.items() if not compare(schema, made[nearest])]
    return Detected(
        exact=() if differences else tuple(same),
        nearest=nearest,
        differences=tuple(differences),
        foreign=tuple(find_foreign(items, project)),
    )


def _run_revisions(
    target: Target, project: Project, history: History
) -> dict[str | None, tuple[SchemaItem, ...]]:
    """The schema at each revision, in order, each in turn in one scratch database."""
    made: dict[str | None, tuple[SchemaItem, ...]] = {}
    applied: set[str] = set()
    timeout = target.config.db_connect_timeout_seconds
    with (
        migrated_scratch(target, project, history, None) as scratch,
        connect(scratch.url, connect_timeout_seconds=timeout, read_only=True) as session,
    ):

        def on_applied(step: Applied) -> None:
            applied.add(step.revision.id)
            if history.lineage([step.revision.id]) == applied:
                made[step.revision.id] = read_items(session, rights=False)

        made[None] = read_items(session, rights=False)
        runner = Runner(scratch, project, history, on_applied=on_applied, keep_ledger=False)
        for head in history.heads:
            runner.upgrade(head)
    # All but the first has the version table, which says nothing.
    ignore = ignoring(
        made[None], (), {name for schema in made.values() for name in version_tables(schema, project)}
    )
    return {revision: tuple(item for item in schema if not ignore(item)) for revision, schema in made.items()}
