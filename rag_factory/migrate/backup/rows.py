"""Count the rows of all tables, and hold one count against another."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg import IsolationLevel, sql

from rag_factory.database.driver import connect
from rag_factory.errors import NotReadyError
from rag_factory.migrate.backup.manifest import LARGE_OBJECTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import psycopg

    from rag_factory.migrate.target import Target

# Partitions are tables of their own here. What an extension owns is its own affair, also in a dump.
_TABLES = """
    SELECT n.nspname, c.relname, format('%I.%I', n.nspname, c.relname), row_security_active(c.oid)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname <> 'information_schema'
      AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM pg_depend AS part WHERE part.classid = 'pg_class'::regclass
                      AND part.objid = c.oid AND part.deptype = 'e')
    ORDER BY 3
"""
# A limit on time is set for an application's queries, not for reading a whole table.
_NO_LIMITS = """
    SELECT set_config(name, '0', false) FROM pg_settings
    WHERE name IN ('statement_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout',
                   'transaction_timeout')
"""


@contextmanager
def snapshot(target: Target, *, wait_seconds: float = 0) -> Iterator[psycopg.Connection[Any]]:
    """Open a session on the target that sees one moment of all tables, and changes nothing.

    It has no limits of time but one: wait_seconds, for tables that are locked; 0: none. Where policies would
    hide rows from it, reading them is an error instead.
    Raises NotReadyError: they would. Raises psycopg.Error: the server doesn't let it.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout) as session:
        session.execute(_NO_LIMITS)
        session.execute("SET row_security = off")
        session.execute("SELECT set_config('lock_timeout', %s, false)", (f"{round(wait_seconds * 1000)}ms",))
        tables = session.execute(_TABLES).fetchall()
        if hidden := [table for _, _, table, active in tables if active]:
            raise NotReadyError(
                f"Policies hide rows of {', '.join(hidden)} from {target.url.user or 'this role'}.",
                fix="Use a role in DATABASE_URL that sees all rows: a superuser, or ALTER ROLE … BYPASSRLS",
            )
        session.isolation_level = IsolationLevel.REPEATABLE_READ
        session.read_only = True
        with session.transaction():
            # Before the first look, and as long as it lasts: a table that another session rewrites or
            # truncates in between is empty to a snapshot that is older than that.
            if tables:
                each = (sql.SQL("ONLY {}").format(sql.Identifier(*table[:2])) for table in tables)
                names = sql.SQL(", ").join(each)
                session.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
            yield session


def count_rows(session: psycopg.Connection[Any]) -> dict[str, int]:
    """Count the rows of each table, and the large objects."""
    counts = {
        quoted: _number(
            session, sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(schema, table))
        )
        for schema, table, quoted, _ in session.execute(_TABLES).fetchall()
    }
    if large := _number(session, sql.SQL("SELECT count(*) FROM pg_largeobject_metadata")):
        counts[LARGE_OBJECTS] = large
    return counts


def compare_rows(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """Say where two counts differ, a table an item."""
    return [
        f"{table} has {found.get(table, 'no such table')} instead of {expected.get(table, 'no such table')}"
        for table in sorted({*expected, *found})
        if expected.get(table) != found.get(table)
    ]


def _number(session: psycopg.Connection[Any], query: sql.SQL | sql.Composed) -> int:
    row = session.execute(query).fetchone()
    assert row is not None  # noqa: S101 - count always gives a row
    return int(row[0])
