"""Build the indexes that a change needs, without holding anybody up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

from rag_factory.migrate.reembed.table import extension_schema, waiting_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from rag_factory.migrate.reembed.record import IndexPlan, Reembedding
    from rag_factory.migrate.reembed.table import Table

_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"


def build_waiting_index(session: psycopg.Connection[Any], change: Reembedding, table: Table) -> None:
    """Index the rows that wait for the new model, so that to find them is never to read all rows."""
    definition = sql.SQL("({}) WHERE {}").format(
        sql.SQL(", ").join(sql.Identifier(name) for name, _ in table.key), waiting_rows(change)
    )
    _build(session, change, change.waiting_index, definition)


def build_indexes(
    session: psycopg.Connection[Any],
    change: Reembedding,
    *,
    memory: str | None = None,
    on_build: Callable[[str], None] = lambda _: None,
) -> int:
    """Build the new column's vector indexes that aren't there yet. Returns how many that were.

    memory: maintenance_work_mem for it, such as `4GB`; None: the server's. on_build: told each one's name.
    """
    missing = missing_indexes(session, change)
    if memory is not None:
        session.execute("SELECT set_config('maintenance_work_mem', %s, false)", (memory,))
    for plan in missing:
        on_build(change.index_name(plan))
        _build(session, change, change.index_name(plan), _define(session, change, plan))
    if missing:
        column = sql.Identifier(change.new_column)
        session.execute(sql.SQL("ANALYZE {} ({})").format(change.table, column))
    return len(missing)


def missing_indexes(session: psycopg.Connection[Any], change: Reembedding) -> list[IndexPlan]:
    """The new column's vector indexes that aren't there, or INVALID."""
    return [plan for plan in change.indexes if not _is_valid(session, change, change.index_name(plan))]


def _build(
    session: psycopg.Connection[Any], change: Reembedding, name: str, definition: sql.Composed
) -> None:
    """Create an index CONCURRENTLY, in place of what a build that failed has left."""
    if _is_valid(session, change, name):
        return
    # Both wait for older transactions, which holds up nobody, so without a lock timeout.
    session.execute("SET lock_timeout = 0")
    index = sql.Identifier(change.table_schema, name)
    session.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(index))
    session.execute(
        sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} {}").format(
            sql.Identifier(name), change.table, definition
        )
    )


def _is_valid(session: psycopg.Connection[Any], change: Reembedding, name: str) -> bool:
    row = session.execute(_VALID, (sql.Identifier(change.table_schema, name).as_string(session),)).fetchone()
    return bool(row and row[0])


def _define(session: psycopg.Connection[Any], change: Reembedding, plan: IndexPlan) -> sql.Composed:
    """What follows the table's name in CREATE INDEX."""
    column = sql.Identifier(change.new_column)
    parts = [
        sql.SQL("USING hnsw ({} {})").format(
            column, sql.Identifier(extension_schema(session), f"{change.type}_{plan.metric}")
        )
    ]
    if plan.options:
        options = [option.partition("=")[::2] for option in plan.options]
        settings = [
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in options
        ]
        parts.append(sql.SQL("WITH ({})").format(sql.SQL(", ").join(settings)))
    if plan.filled_only:
        parts.append(sql.SQL("WHERE {} IS NOT NULL").format(column))
    elif plan.predicate:
        parts.append(sql.SQL("WHERE ") + sql.SQL(plan.predicate))
    return sql.SQL(" ").join(parts)
