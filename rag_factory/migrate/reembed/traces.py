"""What a change of embedding model has in the schema until its end, which no revision makes or may drop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from rag_factory.database.driver import connect
from rag_factory.migrate.reembed.record import NEW, OLD, TRIGGER, read_all

if TYPE_CHECKING:
    from rag_factory.migrate.reembed.record import Reembedding
    from rag_factory.migrate.target import Target

# Kinds and names as `migrate.catalogs` has them.
_TRACES = """
    WITH columns AS (
        SELECT attnum, attname FROM pg_attribute
        WHERE attrelid = %(table)s::regclass AND attname = ANY(%(columns)s) AND NOT attisdropped
    ), known AS (
        SELECT c.oid, n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.oid = %(table)s::regclass
    )
    SELECT 'column', format('%%I.%%I.%%I', nspname, relname, attname) FROM known, columns
    UNION ALL
    SELECT 'trigger', format('%%I.%%I.%%I', nspname, relname, tgname)
    FROM known JOIN pg_trigger ON tgrelid = known.oid WHERE tgname = %(trigger)s
    UNION ALL
    SELECT 'index', format('%%I.%%I', nspname, x.relname)
    FROM known JOIN pg_index AS i ON i.indrelid = known.oid JOIN pg_class AS x ON x.oid = i.indexrelid
    WHERE x.relname = %(index)s OR EXISTS (
        SELECT FROM pg_depend JOIN columns ON refobjsubid = attnum
        WHERE classid = 'pg_class'::regclass AND objid = x.oid
          AND refclassid = 'pg_class'::regclass AND refobjid = known.oid)
"""


def find_changes(session: psycopg.Connection[Any]) -> list[Reembedding]:
    """The changes under way; none for a role that may not read the records, and goes on without them."""
    try:
        return read_all(session)
    except psycopg.errors.InsufficientPrivilege:
        return []


def find_traces(target: Target) -> tuple[tuple[str, ...], frozenset[tuple[str, str]]]:
    """Read which columns are being re-embedded, and the kinds and names of what that has made or changed."""
    labels: list[str] = []
    found: set[tuple[str, str]] = set()
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout, read_only=True) as session:
        for change in find_changes(session):
            name = change.column_name
            values: dict[str, Any] = {
                "table": change.table.as_string(session),
                # After the cut-over, the one with the name has another type.
                "columns": [name + NEW] if change.phase == "filling" else [name, name + OLD],
                "trigger": f"{TRIGGER}_{change.reembedding_id}",
                "index": change.waiting_index,
            }
            found.update(session.execute(_TRACES, values).fetchall())
            labels.append(change.label)
    return tuple(labels), frozenset(found)
