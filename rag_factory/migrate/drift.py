"""Drift: what a database has, held against what its applied revisions make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from rag_factory.database.driver import connect, translate
from rag_factory.migrate.differences import compare, ignoring
from rag_factory.migrate.foreign import find_foreign, version_tables
from rag_factory.migrate.position import find_begun
from rag_factory.migrate.reembed.traces import find_traces
from rag_factory.migrate.runner import Runner
from rag_factory.migrate.schema import read_items
from rag_factory.migrate.scratch import dump_schema, loaded_scratch, migrated_scratch
from rag_factory.migrate.state import read_revisions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rag_factory.migrate.differences import Difference
    from rag_factory.migrate.history import History
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.schema import SchemaItem
    from rag_factory.migrate.target import Target


@dataclass(frozen=True)
class Drift:
    """revisions: where the database is. versions: the PostgreSQL of the database and of the comparison.

    reembedded: columns whose embedding model is being changed; what that has made is no difference.
    backfills: those that were left half-way, in words; what their revision has made is a difference.
    """

    revisions: tuple[str, ...]
    differences: tuple[Difference, ...]
    versions: tuple[int, int]
    reembedded: tuple[str, ...] = ()
    backfills: tuple[str, ...] = ()


def find_drift(target: Target, project: Project, history: History, *, grants: bool = False) -> Drift:
    """Compare the target's schema with its applied revisions, run in a scratch database.

    The target is only read. grants: compare who may do what, too.
    Raises HistoryError: it is at a revision that the history lacks. Raises RagFactoryError: a revision fails.
    """
    items, revisions, major = read_target(target, project, rights=grants)
    history.check_known(revisions, where=target.place)
    reembedded, traces = find_traces(target)
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout, read_only=True) as session:
        backfills = tuple(words for words, _ in find_begun(session))
    first, *others = revisions or (None,)
    with migrated_scratch(target, project, history, first) as scratch:
        for revision in others:
            Runner(scratch, project, history, keep_ledger=False).upgrade(revision)
        wanted, _, scratch_major = read_target(scratch, project, rights=grants)
        differences = compare(
            items,
            wanted,
            ignore=left_out((*items, *wanted), project),
            grants=grants,
            # Another server has other ones to offer.
            versions=scratch.url.server == target.url.server,
        )
        differences = without_respelled(differences, scratch, project)
    differences = [each for each in differences if (each.kind, each.name) not in traces]
    return Drift(revisions, tuple(differences), (major, scratch_major), reembedded, backfills)


def without_respelled(differences: list[Difference], wanted: Target, project: Project) -> list[Difference]:
    """Leave out what only a dump and its restoring made of a view or a condition.

    The server keeps an expression as it was parsed: `x NOT BETWEEN 0 AND 3` is written out as two comparisons
    in parentheses, and these, parsed again, as others. So a database that was ever restored differs by this.
    wanted: a scratch database with the schema that should be.
    """
    if not any(each.change == "changed" for each in differences):
        return differences
    _, _, major = read_target(wanted, project, rights=False)
    with loaded_scratch(wanted, project, dump_schema(wanted, major)) as restored:
        items, _, _ = read_target(restored, project, rights=False)
    respelled = {(item.kind, item.name): item.definition for item in items}
    return [
        each
        for each in differences
        if each.change != "changed" or each.found != respelled.get((each.kind, each.name))
    ]


def read_target(
    target: Target, project: Project, *, rights: bool
) -> tuple[tuple[SchemaItem, ...], tuple[str, ...], int]:
    """Read a database: its schema, its revisions, its major version of PostgreSQL. Changes nothing."""
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout, read_only=True) as session:
        try:
            items = read_items(session, rights=rights)
        except psycopg.Error as error:
            raise translate(error, target.url) from error
        return items, read_revisions(target, project, session), session.info.server_version // 10000


def left_out(items: Iterable[SchemaItem], project: Project) -> Callable[[SchemaItem], bool]:
    """The test for what a comparison leaves out: version tables, and what the project's settings name."""
    items = list(items)
    foreign = {table.name for table in find_foreign(items, project)}
    tables = foreign | version_tables(items, project)
    schemas = {name.rpartition(".")[0] for name in foreign}
    # A schema that a tool made for its table alone.
    alone = {
        schema
        for schema in schemas
        if not any(
            item.kind == "table" and item.name.startswith(f"{schema}.")
            for item in items
            if item.name not in tables
        )
    }
    ignore = ignoring(items, project.drift_ignore, tables)

    def is_left_out(item: SchemaItem) -> bool:
        return ignore(item) or (item.kind == "schema" and item.name in alone and item.name != "public")

    return is_left_out
