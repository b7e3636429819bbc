"""How much of the truth an HNSW index finds: its ten nearest beside those of an exact scan."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from rag_factory.migrate.reembed import record
from rag_factory.migrate.reembed.table import column_type, extension_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.migrate.reembed.record import Reembedding
    from rag_factory.migrate.reembed.table import Table

NEAREST = 10
SAMPLE_ROWS = 50
# Exact scans read all vectors: of a table where they take longer, fewer rows are looked at, or none.
BUDGET_SECONDS = 60.0
_QUERY = """
    SELECT {key}, {column} OPERATOR({operator}) {vector}::{type} AS distance FROM {table}
    WHERE {condition} ORDER BY distance LIMIT {limit}
"""
_OPERATORS = {"cosine_ops": "<=>", "l2_ops": "<->", "ip_ops": "<#>", "l1_ops": "<+>"}


@dataclass(frozen=True)
class Recall:
    """What was measured on `rows` rows, each searched for by its own embedding, itself left out.

    new, old: the part of the ten truly nearest that the index finds, with the server's hnsw.ef_search; None:
    there is no such index, or nothing was measured. shared: the part of the ten truly nearest that both
    models have in common.
    """

    rows: int
    new: float | None
    old: float | None
    shared: float | None


def measure_recall(
    session: psycopg.Connection[Any],
    change: Reembedding,
    table: Table,
    *,
    sample_rows: int = SAMPLE_ROWS,
    budget_seconds: float = BUDGET_SECONDS,
) -> Recall:
    """Measure the recall@10 of the new column's first index and of the old one's, and put it on record.

    budget_seconds: when it is over, what was measured by then is the result.
    """
    deadline = time.monotonic() + budget_seconds
    columns = (change.new_column, change.old_column)
    searches = [_Search(session, change, table, column) for column in columns]
    measured: list[tuple[float, float, float]] = []
    for key, *vectors in _sample(session, change, table, sample_rows):
        if time.monotonic() >= deadline:
            break
        try:
            truths = [
                search.run(vector, key, deadline) for search, vector in zip(searches, vectors, strict=True)
            ]
        except psycopg.errors.QueryCanceled:
            break
        new, old = (
            _part_found(search.run(vector, key), truth)
            for search, vector, truth in zip(searches, vectors, truths, strict=True)
        )
        if truths[0]:
            both = {each for each, _ in truths[0]} & {each for each, _ in truths[1]}
            measured.append((new, old, len(both) / len(truths[0])))
    means = [sum(each) / len(measured) for each in zip(*measured, strict=True)] or [None] * 3
    result = Recall(len(measured), means[0], means[1] if change.indexes[0].replaces else None, means[2])
    record.set_recall(session, change, asdict(result))
    return result


class _Search:
    """The search for the nearest in one of the two columns, as the change's first index can answer it."""

    def __init__(
        self, session: psycopg.Connection[Any], change: Reembedding, table: Table, column: str
    ) -> None:
        self._session = session
        plan = change.indexes[0]
        operator = (sql.Identifier(extension_schema(session)), sql.SQL(_OPERATORS[plan.metric]))
        self._parts = {
            "key": _key(table),
            "column": sql.Identifier(column),
            "operator": sql.SQL(".").join(operator),
            "type": sql.SQL(column_type(session, change, column)),
            "table": change.table,
            "condition": _condition(change, column),
            "limit": sql.Literal(NEAREST + 1),
        }

    def run(self, vector: str, key: str, deadline: float | None = None) -> list[tuple[str, float]]:
        """The nearest without the row of this key: keys and distances.

        deadline: by an exact scan, which ends then with QueryCanceled; None: by the index.
        """
        settings = {"enable_seqscan": "off", "enable_bitmapscan": "off"}
        if deadline is not None:
            left = max(1, round((deadline - time.monotonic()) * 1000))
            settings = {"enable_indexscan": "off", "statement_timeout": f"{left}ms"}
        with self._session.transaction():
            for name, value in settings.items():
                self._session.execute("SELECT set_config(%s, %s, true)", (name, value))
            query = sql.SQL(_QUERY).format(**self._parts, vector=sql.Literal(vector))
            found = self._session.execute(query).fetchall()
        return [(each, distance) for each, distance in found if each != key][:NEAREST]


def _sample(
    session: psycopg.Connection[Any], change: Reembedding, table: Table, sample_rows: int
) -> list[tuple[str, str, str]]:
    """Rows that have both embeddings: the key as text, and the two vectors."""
    row = session.execute(
        "SELECT greatest(reltuples, 1) FROM pg_class WHERE oid = %s", (table.oid,)
    ).fetchone()
    # By pages, of which some may hold none. Inside, so that only the vectors that are taken become texts.
    percent = min(100.0, 100.0 * 20 * sample_rows / (row[0] if row else 1))
    query = sql.SQL(
        "SELECT {key}, {new}::text, {old}::text FROM ("
        "SELECT * FROM {table} TABLESAMPLE SYSTEM ({percent})"
        " WHERE {has_new} AND {has_old} ORDER BY random() LIMIT {limit}) AS sample"
    ).format(
        key=_key(table),
        new=sql.Identifier(change.new_column),
        old=sql.Identifier(change.old_column),
        table=change.table,
        percent=percent,
        has_new=_condition(change, change.new_column),
        has_old=_condition(change, change.old_column),
        limit=sample_rows,
    )
    return session.execute(query).fetchall()


def _condition(change: Reembedding, column: str) -> sql.Composed:
    condition = sql.SQL("{} IS NOT NULL").format(sql.Identifier(column))
    predicate = change.indexes[0].predicate
    return condition + sql.SQL(f" AND {predicate}") if predicate else condition


def _key(table: Table) -> sql.Composed:
    return sql.SQL("concat_ws('/', {})").format(
        sql.SQL(", ").join(sql.Identifier(name) for name, _ in table.key)
    )


def _part_found(found: Sequence[tuple[str, float]], truth: Sequence[tuple[str, float]]) -> float:
    """By distance: of rows that are equally far, any is as good."""
    return sum(distance <= truth[-1][1] for _, distance in found) / len(truth) if truth else 0.0
