"""Read what the server says at debug1 of its work on tables: the same words from PostgreSQL 15 to 18.

They are never translated, and come also where the table is empty: what will cost hours shows in an instant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag_factory.migrate.plan import statements
from rag_factory.migrate.plan.catalog import INDEX_QUERY, Describe, Relation, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_VERIFIED = re.compile(r'^verifying table "(.+)"$')
_REWRITTEN = re.compile(r'^rewriting table "(.+)"$')
_BUILT = re.compile(r'^building index "(.+)" on table "(.+)" (?:serially|with request for)')
_FOREIGN_KEY = re.compile(r'^validating foreign key constraint "(.+)"$')
# What makes a table's storage anew without saying so; after TRUNCATE it is empty.
_QUIET_REWRITES = frozenset({"VACUUM", "CLUSTER", "REFRESH", "ALTER", "REPACK"})


@dataclass(frozen=True)
class Build:
    """An index that was built. dimensions: of its first column if that is a vector, else -1."""

    table: int
    name: str
    method: str
    dimensions: int
    type: str = ""


@dataclass(frozen=True)
class Work:
    """What a statement reads or writes of whole tables, by their oids.

    checked: the two tables of a foreign key. truncated: tables that are empty after it.
    """

    verified: Sequence[int] = ()
    rewritten: Sequence[int] = ()
    rewritten_indexes: Sequence[str] = ()
    built: Sequence[Build] = ()
    checked: Sequence[tuple[int, int]] = ()
    truncated: Sequence[int] = ()


def read_messages(
    messages: Iterable[str],
    sql: str,
    before: Snapshot,
    after: Snapshot,
    locked: set[int],
    describe: Describe,
) -> Work:
    """Tell what a statement did from the server's words and from the storage that is new."""
    verified, said_rewritten, built, checked = [], [], [], []
    for message in messages:
        if found := _VERIFIED.match(message):
            verified += _tables(found[1], before, locked)
        elif found := _REWRITTEN.match(message):
            said_rewritten += _tables(found[1], before, locked)
        elif found := _BUILT.match(message):
            built += [(table, found[1]) for table in _tables(found[2], before, locked)]
        elif found := _FOREIGN_KEY.match(message):
            checked += [
                (table, other)
                for name, kind, table, other in after.constraints.values()
                if kind == "f" and name == found[1]
            ]
    renewed = _renewed(before, after)
    tables = [relation.oid for relation in renewed if not relation.is_index]
    heads = {statements.head(statement) for statement in statements.split(sql)}
    quiet = [] if heads & _QUIET_REWRITES else [oid for oid in tables if oid not in said_rewritten]
    if quiet:
        built = [(table, name) for table, name in built if table not in quiet]
    return Work(
        verified=tuple(dict.fromkeys(verified)),
        rewritten=tuple(oid for oid in tables if oid not in quiet),
        rewritten_indexes=tuple(
            sorted(relation.name for relation in renewed if relation.is_index and relation.table not in quiet)
        ),
        built=tuple(_describe(table, name, after, describe) for table, name in built),
        checked=tuple(dict.fromkeys(checked)),
        truncated=tuple(quiet),
    )


def _tables(name: str, before: Snapshot, locked: set[int]) -> list[int]:
    """The table of that name; of several, those that are locked."""
    found = [relation.oid for relation in before.named(name) if not relation.is_index]
    return [oid for oid in found if oid in locked] or found if len(found) > 1 else found


def _renewed(before: Snapshot, after: Snapshot) -> list[Relation]:
    """The relations that are still there, on storage of another number.

    By name as well: ALTER COLUMN TYPE and REINDEX CONCURRENTLY put a new index in the place of the old one.
    """
    by_name = {relation.name: relation for relation in after.relations.values()}
    storage = {relation.filenode for relation in after.relations.values()}
    return [
        old
        for oid, old in before.relations.items()
        if old.filenode and old.kind in {"r", "m", "i"}
        if (oid in after.relations or old.name in by_name) and old.filenode not in storage
    ]


def _describe(table: int, name: str, after: Snapshot, describe: Describe) -> Build:
    # REINDEX CONCURRENTLY builds under a name of its own.
    names = {name, re.sub(r"_ccnew\d*$", "", name)}
    for relation in after.relations.values():
        if relation.table == table and relation.bare_name in names:
            parts = describe(INDEX_QUERY.format(oid=relation.oid))
            return Build(table, relation.name, parts["method"], parts["dimensions"], parts["type"])
    return Build(table, name, "btree", -1)
