"""Compute the embeddings that are missing, batch by batch, each committed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from psycopg import sql

from rag_factory.errors import LockedError, UsageError
from rag_factory.migrate.reembed.compute import LARGEST, compute
from rag_factory.migrate.reembed.table import column_type, waiting_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg

    from rag_factory.database.embedding import Embedder
    from rag_factory.migrate.reembed.record import Reembedding
    from rag_factory.migrate.reembed.table import Table

BATCH_ROWS = 128
PAUSE_SECONDS = 0.2
# How long rows that others keep locked, or keep changing, are tried again.
PATIENCE_SECONDS = 60.0
# Written only where the row still has the text that was embedded. A row that somebody has locked is left for
# the next pass, so that neither waits for the other. Whatever the planner makes of it, it reads no more rows
# than lie between the first and the last key.
_WRITE = """
    WITH given AS (SELECT * FROM unnest({arrays}) AS given ({names})),
    free AS (
        SELECT given.* FROM {table} AS own JOIN given ON {same_row}
        WHERE {between} AND {row_waits} FOR NO KEY UPDATE OF own SKIP LOCKED
    )
    UPDATE {table} AS own SET {column} = given."rag_factory vector"::{type} FROM free AS given
    WHERE {same_row} AND {row_waits}
"""


class Filler:
    """Fills one of the two columns of a change.

    for_old: the old model's column, before going back; else the new one's.
    Raises UsageError: the embedder's vectors have another length than the column's.
    """

    def __init__(
        self,
        session: psycopg.Connection[Any],
        change: Reembedding,
        table: Table,
        embedder: Embedder,
        *,
        batch_rows: int = BATCH_ROWS,
        for_old: bool = False,
    ) -> None:
        self._session = session
        self._change = change
        self._key = table.key
        self._embedder = embedder
        self._batch_rows = batch_rows
        self._waits = waiting_rows(change, for_old=for_old)
        self._column = change.old_column if for_old else change.new_column
        self._dimensions = embedder.dimensions
        self._type = column_type(session, change, self._column)
        self._largest = LARGEST["halfvec" if "halfvec" in self._type else "vector"]
        if "(" in self._type and not self._type.endswith(f"({self._dimensions})"):
            raise UsageError(
                f"The embedder {embedder.name} has {self._dimensions} dimensions, and "
                f"{change.table_name}.{self._column} is {self._type}.",
                fix="Name the embedder of that column: --embedder",
            )

    def count(self) -> int:
        """How many rows wait."""
        query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(self._change.table, self._waits)
        row = self._session.execute(query).fetchone()
        return int(row[0]) if row else 0

    def run(self, on_written: Callable[[int], None] = lambda _: None) -> int:
        """Fill until none is left but what came meanwhile. Returns how many rows were written.

        on_written: told after each batch how many are written by now.
        Raises RagFactoryError: the embedder failed, or gave what can't be stored; what is written stays.
        Raises LockedError: others keep the rest locked.
        """
        total = 0
        patience = time.monotonic() + PATIENCE_SECONDS
        while True:
            found, written = self._pass(lambda done, before=total: on_written(before + done))  # type: ignore[misc] # mypy infers no default
            total += written
            if found == written and found < self._batch_rows:
                return total
            if written:
                patience = time.monotonic() + PATIENCE_SECONDS
            elif time.monotonic() >= patience:
                raise LockedError(
                    f"{found} rows of {self._change.label} are locked or changed by others all the time.",
                    fix="See who holds them in pg_stat_activity, then go on: invoke db.reembed",
                )
            if written < found:
                time.sleep(PAUSE_SECONDS)

    def _pass(self, on_written: Callable[[int], None]) -> tuple[int, int]:
        """Go through the waiting rows once, by key. Returns how many there were, how many were written."""
        found = written = 0
        last: Sequence[str] | None = None
        while rows := self._read(last):
            keys, texts = [row[:-1] for row in rows], [row[-1] for row in rows]
            names = ["/".join(key) for key in keys]
            vectors = compute(self._embedder, names, texts, f"of {self._change.table_name}", self._largest)
            write = self._compose_write(keys, texts, vectors)
            with self._session.transaction():
                # The shipped triggers on updated_at look at it: no row has changed for its readers.
                self._session.execute("SELECT set_config('rag_factory.backfill', 'on', true)")
                written += self._session.execute(write).rowcount
            found += len(rows)
            last = keys[-1]
            on_written(written)
            if len(rows) < self._batch_rows:
                break  # or somebody who writes all the time would never let it end
        return found, written

    def _read(self, last: Sequence[str] | None) -> list[tuple[str, ...]]:
        """The next rows: their keys' texts, and the text to embed."""
        # With the table's name: without, ORDER BY would take the text of the key, which is called the same.
        own = [sql.Identifier("own", name) for name, _ in self._key]
        after = sql.SQL("") if last is None else sql.SQL(" AND {} > {}").format(_row(own), self._values(last))
        query = sql.SQL("SELECT {}, {}::text FROM {} AS own WHERE {}{} ORDER BY {} LIMIT {}").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in own),
            sql.Identifier(self._change.text_column),
            self._change.table,
            self._waits,
            after,
            sql.SQL(", ").join(own),
            sql.Literal(self._batch_rows),
        )
        return self._session.execute(query).fetchall()

    def _compose_write(
        self, keys: Sequence[Sequence[str]], texts: list[str], vectors: list[str]
    ) -> sql.Composed:
        # As literals: a placeholder can't stand beside a name with a percent sign in it.
        arrays = [*map(list, zip(*keys, strict=True)), texts, vectors]
        # Names that no column of the table has.
        names = [sql.Identifier(f"rag_factory key {place}") for place in range(len(self._key))]
        same_row = [
            sql.SQL("own.{} = given.{}::{}").format(sql.Identifier(column), name, sql.SQL(type_name))
            for name, (column, type_name) in zip(names, self._key, strict=True)
        ]
        row_waits = sql.SQL('{} AND (own.{})::text COLLATE "C" = given."rag_factory text"').format(
            self._waits, sql.Identifier(self._change.text_column)
        )
        between = sql.SQL("{} BETWEEN {} AND {}").format(
            _row([sql.Identifier("own", name) for name, _ in self._key]),
            self._values(keys[0]),
            self._values(keys[-1]),
        )
        return sql.SQL(_WRITE).format(
            arrays=sql.SQL(", ").join(sql.SQL("{}::text[]").format(sql.Literal(each)) for each in arrays),
            names=sql.SQL(", ").join(
                [*names, *map(sql.Identifier, ("rag_factory text", "rag_factory vector"))]
            ),
            table=self._change.table,
            same_row=sql.SQL(" AND ").join(same_row),
            row_waits=row_waits,
            between=between,
            column=sql.Identifier(self._column),
            type=sql.SQL(self._type),
        )

    def _values(self, key: Sequence[str]) -> sql.Composed:
        """A key, to be compared with a row's."""
        return _row(
            [
                sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(type_name))
                for value, (_, type_name) in zip(key, self._key, strict=True)
            ]
        )


def _row(parts: Sequence[sql.Composable]) -> sql.Composed:
    return sql.SQL("({})").format(sql.SQL(", ").join(parts))
