"""Look at a table before its embeddings are changed: what it has, and what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from rag_factory.errors import NotReadyError, RefusedError, UsageError
from rag_factory.migrate.reembed.record import NAME_LIMIT_BYTES, NEW, OLD, IndexPlan, other_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.migrate.reembed.record import Reembedding

_TABLE = """
    SELECT c.oid, c.relkind, c.relispartition
           OR EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhrelid, inhparent)),
           row_security_active(c.oid), pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s
"""
_COLUMNS = """
    SELECT attname, attnum, t.typname, attnotnull
    FROM pg_attribute JOIN pg_type AS t ON t.oid = atttypid
    WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
"""
_KEY = """
    SELECT attname, format_type(atttypid, atttypmod)
    FROM pg_index, unnest(indkey) WITH ORDINALITY AS part (number, place)
    JOIN pg_attribute ON attnum = part.number
    WHERE indrelid = %(table)s AND attrelid = %(table)s AND indisprimary ORDER BY place
"""
# What PostgreSQL ties to the column's number follows the number when the names are swapped: it would go on
# with the old embeddings. A NOT NULL is dealt with, and so are indexes.
_DEPENDENTS = """
    SELECT DISTINCT coalesce(
        (SELECT pg_describe_object('pg_class'::regclass, ev_class, 0) FROM pg_rewrite
         WHERE classid = 'pg_rewrite'::regclass AND oid = objid),
        pg_describe_object(classid, objid, objsubid))
    FROM pg_depend
    WHERE refclassid = 'pg_class'::regclass AND refobjid = %s AND refobjsubid = %s
      AND NOT (classid = 'pg_class'::regclass AND objsubid = 0
               AND EXISTS (SELECT FROM pg_index WHERE indexrelid = objid))
      AND NOT (classid = 'pg_constraint'::regclass
               AND EXISTS (SELECT FROM pg_constraint WHERE oid = objid AND contype = 'n'))
    ORDER BY 1
"""
_INDEXES = """
    SELECT c.relname, a.amname, o.opcname, coalesce(c.reloptions, '{}'),
           pg_get_expr(i.indpred, i.indrelid), i.indnatts = 1 AND i.indkey[0] = %(number)s
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS a ON a.oid = c.relam
    JOIN pg_opclass AS o ON o.oid = i.indclass[0]
    WHERE i.indrelid = %(table)s AND i.indisvalid AND EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = i.indexrelid
          AND refclassid = 'pg_class'::regclass AND refobjid = %(table)s AND refobjsubid = %(number)s)
    ORDER BY c.relname
"""
_VECTOR_TYPES = ("vector", "halfvec")
_METRICS = ("cosine_ops", "l2_ops", "ip_ops", "l1_ops")


@dataclass(frozen=True)
class Table:
    """A table whose embeddings can be changed. key: the primary key's columns and their types.

    indexes: what the new column gets. left: indexes that have no counterpart and stay with the old column.
    """

    oid: int
    key: tuple[tuple[str, str], ...]
    number: int
    not_null: bool
    indexes: tuple[IndexPlan, ...]
    left: tuple[str, ...]


def split_name(session: psycopg.Connection[Any], text: str) -> tuple[str, str, str]:
    """Read `table.column` or `schema.table.column` as PostgreSQL reads names: schema, table, column.

    Raises UsageError: it isn't that, or there is no such table.
    """
    try:
        row = session.execute("SELECT parse_ident(%s)", (text,)).fetchone()
        parts: list[str] = row[0] if row else []
    except psycopg.errors.InvalidParameterValue:
        parts = []
    if len(parts) not in {2, 3}:
        raise UsageError(f"--column is {text}, and must be a table and its column: chunks.embedding")
    *table, column = parts
    found = session.execute(
        "SELECT nspname, relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace"
        " WHERE c.oid = to_regclass(%s)",
        (sql.Identifier(*table).as_string(session),),
    ).fetchone()
    if found is None:
        raise UsageError(f"There is no table {'.'.join(table)}.", fix="Correct --column.")
    return found[0], found[1], column


def read_table(
    session: psycopg.Connection[Any], name: Sequence[str], text_column: str, *, begun: bool = False
) -> Table:
    """Look at a table. name: schema, table, column. begun: it has its second column already.

    Raises UsageError: a column isn't there or can't be one of embeddings. Raises RefusedError: something of
    the table stands in the way. Raises NotReadyError: the role sees or may do too little.
    """
    schema, table, column = name
    row = session.execute(_TABLE, (schema, table)).fetchone()
    if row is None:
        raise UsageError(f"There is no table {schema}.{table}.", fix="Correct --column.")
    oid, kind, inherits, confined, owns, owner = row
    if kind != "r" or inherits:
        raise RefusedError(
            f"{table} is no plain table: it has partitions, parents or children, or is a view. "
            "Nothing was changed.",
            fix="Re-embed such a table by a revision of its own.",
        )
    if not owns:
        raise NotReadyError(
            f"The table {table} belongs to {owner}, and only its owner can give it a column.",
            fix=f"Let DATABASE_URL name {owner}, or a role that is a member of it.",
        )
    if confined:
        raise NotReadyError(
            f"Row security hides rows of {table} from this role: they would be left without an embedding.",
            fix="Use a role with BYPASSRLS, or the owner without FORCE ROW LEVEL SECURITY.",
        )
    columns = {each[0]: each[1:] for each in session.execute(_COLUMNS, (oid,))}
    _check_columns(columns, table, column, text_column, begun=begun)
    key = tuple((each[0], each[1]) for each in session.execute(_KEY, {"table": oid}))
    if not key:
        raise RefusedError(
            f"{table} has no primary key, so there is no way to name its rows and go on after a stop. "
            "Nothing was changed.",
            fix=f"Give it one: ALTER TABLE {table} ADD PRIMARY KEY (…)",
        )
    number, _, not_null = columns[column]
    refuse_dependents(session, oid, number, f"{table}.{column}")
    indexes, left = _read_indexes(session, oid, number, table, column)
    return Table(oid, key, number, not_null, indexes, left)


def refuse_dependents(session: psycopg.Connection[Any], oid: int, number: int, label: str) -> None:
    """Raise RefusedError when something would follow the column under its other name."""
    dependents = [each for (each,) in session.execute(_DEPENDENTS, (oid, number))]
    if dependents:
        raise RefusedError(
            f"{', '.join(dependents)} would keep to the old embeddings when {label} changes. "
            "Nothing was changed.",
            fix="Drop it by a revision, and make it again after --drop-old.",
        )


def waiting_rows(change: Reembedding, *, for_old: bool = False) -> sql.Composed:
    """The condition for a row that has the other model's embedding and lacks this one's."""
    lacking, other = change.new_column, change.old_column
    if for_old:
        lacking, other = other, lacking
    return sql.SQL("{} IS NULL AND {} IS NOT NULL AND {} IS NOT NULL").format(
        sql.Identifier(lacking), sql.Identifier(other), sql.Identifier(change.text_column)
    )


def column_type(session: psycopg.Connection[Any], change: Reembedding, column: str) -> str:
    """The type of one of the two columns, as SQL."""
    row = session.execute(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attname = %s",
        (change.table.as_string(session), column),
    ).fetchone()
    assert row is not None  # noqa: S101 - the record and the columns change together
    return str(row[0])


def extension_schema(session: psycopg.Connection[Any]) -> str:
    """The schema that pgvector is installed in."""
    row = session.execute(
        "SELECT nspname FROM pg_extension JOIN pg_namespace AS n ON n.oid = extnamespace"
        " WHERE extname = 'vector'"
    ).fetchone()
    assert row is not None  # noqa: S101 - the table has a column of its type
    return str(row[0])


def _check_columns(
    columns: dict[str, Any], table: str, column: str, text_column: str, *, begun: bool
) -> None:
    for each in (column, text_column):
        if each not in columns:
            raise UsageError(
                f"{table} has no column {each}.", fix=f"It has: {', '.join(columns)}. Name the one you mean."
            )
    if columns[column][1] not in _VECTOR_TYPES:
        raise UsageError(f"{table}.{column} is of type {columns[column][1]}, not vector or halfvec.")
    if len(column.encode()) + len(NEW) > NAME_LIMIT_BYTES:
        raise UsageError(f"The name {column} is too long for {column}{NEW} beside it.")
    for ending in (NEW, OLD):
        if column + ending in columns and not begun:
            raise UsageError(
                f"{table} has a column {column}{ending} already, which is what this would make.",
                fix="Rename that one.",
            )


def _read_indexes(
    session: psycopg.Connection[Any], oid: int, number: int, table: str, column: str
) -> tuple[tuple[IndexPlan, ...], tuple[str, ...]]:
    """What indexes the new column gets, and which of the old one's are not like any of them."""
    plans: list[IndexPlan] = []
    left: list[str] = []
    quoted = sql.Identifier(column).as_string(session)
    for name, method, opclass, options, predicate, plain in session.execute(
        _INDEXES, {"table": oid, "number": number}
    ):
        metric = opclass.partition("_")[2]
        itself = predicate in {f"({form} IS NOT NULL)" for form in (column, quoted)}
        # An HNSW index holds no NULL anyway; but a condition of another kind can't be read from its text.
        if not plain or metric not in _METRICS or (predicate and column in predicate and not itself):
            left.append(name)
            continue
        kept = tuple(options) if method == "hnsw" else ()
        plans.append(IndexPlan(name, metric, kept, None if itself else predicate, itself))
    if not plans:
        plans.append(IndexPlan(other_name(f"idx_{table}_{column}", "_hnsw"), _METRICS[0], replaces=False))
    return tuple(plans), tuple(left)
