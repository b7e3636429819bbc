"""Count the rows of all tables, and hold one count against another."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg import IsolationLevel

from rag_factory.database.driver import connect
from rag_factory.migrate.backup.manifest import LARGE_OBJECTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import psycopg

    from rag_factory.migrate.target import Target

# Partitions are tables of their own here. What an extension owns is its own affair, also in a dump.
_TABLES = """
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname <> 'information_schema'
      AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM pg_depend AS part WHERE part.classid = 'pg_class'::regclass
                      AND part.objid = c.oid AND part.deptype = 'e')
    ORDER BY 1
"""
# A limit on time is set for an application's queries, not for reading a whole table.
_NO_LIMITS = """
    SELECT set_config(name, '0', false) FROM pg_settings
    WHERE name IN ('statement_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout',
                   'transaction_timeout')
"""


@contextmanager
def snapshot(target: Target) -> Iterator[psycopg.Connection[Any]]:
    """Open a session on the target that sees one moment, without limits of time, and changes nothing.

    Where policies would hide rows from it, reading them is an error instead.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout) as session:
        session.execute(_NO_LIMITS)
        session.execute("SET row_security = off")
        session.isolation_level = IsolationLevel.REPEATABLE_READ
        session.read_only = True
        with session.transaction():
            yield session


def count_rows(
    session: psycopg.Connection[Any], on_table: Callable[[str], None] = lambda _: None
) -> dict[str, int]:
    """Count the rows of each table, and the large objects. on_table: told each table before it is counted."""
    counts = {}
    for (table,) in session.execute(_TABLES).fetchall():
        on_table(table)
        # The server quoted the name.
        counts[table] = _number(session, f"SELECT count(*) FROM ONLY {table}")  # noqa: S608
    if large := _number(session, "SELECT count(*) FROM pg_largeobject_metadata"):
        counts[LARGE_OBJECTS] = large
    return counts


def compare_rows(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """Say where two counts differ, a table an item."""
    return [
        f"{table} has {found.get(table, 'no such table')} instead of {expected.get(table, 'no such table')}"
        for table in sorted({*expected, *found})
        if expected.get(table) != found.get(table)
    ]


def _number(session: psycopg.Connection[Any], query: str) -> int:
    row = session.execute(query.encode()).fetchone()
    assert row is not None  # noqa: S101 - count always gives a row
    return int(row[0])
