"""Compute the embeddings that are missing, batch by batch, each committed."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from psycopg import sql

from rag_factory.errors import LockedError, RagFactoryError, UsageError
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
# the next pass, so that neither waits for the other, and both for ever least of all.
_WRITE = """
    WITH given AS (SELECT * FROM unnest({arrays}) AS given ({names})),
    free AS (
        SELECT given.* FROM {table} AS own JOIN given ON {same_row}
        WHERE {row_waits} FOR NO KEY UPDATE OF own SKIP LOCKED
    )
    UPDATE {table} AS own SET {column} = given."given vector"::{type} FROM free AS given
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
        if not self._type.endswith(f"({self._dimensions})"):
            raise UsageError(
                f"The embedder {embedder.name} has {self._dimensions} dimensions, and "
                f"{change.table_name}.{self._column} is {self._type}.",
                fix="Name the embedder of that column: --embedder",
            )
        self._write = self._compose_write()

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
            found, written = self._pass(lambda done, before=total: on_written(before + done))  # type: ignore[misc]
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
            vectors = self._compute(keys, texts)
            columns = [list(column) for column in zip(*keys, strict=True)]
            with self._session.transaction():
                # The shipped triggers on updated_at look at it: no row has changed for its readers.
                self._session.execute("SELECT set_config('rag_factory.backfill', 'on', true)")
                written += self._session.execute(self._write, [*columns, texts, vectors]).rowcount
            found += len(rows)
            last = keys[-1]
            on_written(written)
        return found, written

    def _read(self, last: Sequence[str] | None) -> list[tuple[str, ...]]:
        """The next rows: their keys' texts, and the text to embed."""
        own = [sql.Identifier(name) for name, _ in self._key]
        after: sql.Composable = sql.SQL("")
        if last is not None:
            values = [
                sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(type_name))
                for value, (_, type_name) in zip(last, self._key, strict=True)
            ]
            after = sql.SQL(" AND ({}) > ({})").format(sql.SQL(", ").join(own), sql.SQL(", ").join(values))
        query = sql.SQL("SELECT {}, {}::text FROM {} WHERE {}{} ORDER BY {} LIMIT {}").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in own),
            sql.Identifier(self._change.text_column),
            self._change.table,
            self._waits,
            after,
            sql.SQL(", ").join(own),
            sql.Literal(self._batch_rows),
        )
        return self._session.execute(query).fetchall()

    def _compute(self, keys: Sequence[Sequence[str]], texts: list[str]) -> list[str]:
        """The vectors of these texts, as pgvector reads them."""
        name = self._embedder.name
        where = f"rows {'/'.join(keys[0])} to {'/'.join(keys[-1])} of {self._change.table_name}"
        stays = "What is filled stays; go on when it is mended: invoke db.reembed"
        try:
            vectors = [[float(value) for value in row] for row in self._embedder.embed(texts)]
        except Exception as error:  # whatever somebody else's code raises, such as for want of a network
            what = f"{type(error).__name__}: {error}"
            raise RagFactoryError(f"The embedder {name} failed on {where}: {what}.", fix=stays) from error
        if len(vectors) != len(texts):
            what = f"{len(vectors)} embeddings for {len(texts)} texts"
            raise RagFactoryError(f"The embedder {name} gave {what}, {where}.", fix=stays)
        for key, vector in zip(keys, vectors, strict=True):
            if len(vector) != self._dimensions or not all(map(math.isfinite, vector)):
                what = "NaN or infinity"
                if len(vector) != self._dimensions:
                    what = f"{len(vector)} dimensions instead of {self._dimensions}"
                row = f"row {'/'.join(key)} of {self._change.table_name}"
                raise RagFactoryError(f"The embedder {name} gave {what} for {row}.", fix=stays)
        # Nine digits tell all float32s apart.
        return [f"[{','.join(format(value, '.9g') for value in vector)}]" for vector in vectors]

    def _compose_write(self) -> sql.Composed:
        # With names that no column of the table has.
        names = [sql.Identifier(f"given key {place}") for place in range(len(self._key))]
        same_row = [
            sql.SQL("own.{} = given.{}::{}").format(sql.Identifier(column), name, sql.SQL(type_name))
            for name, (column, type_name) in zip(names, self._key, strict=True)
        ]
        row_waits = sql.SQL('{} AND (own.{})::text COLLATE "C" = given."given text"').format(
            self._waits, sql.Identifier(self._change.text_column)
        )
        return sql.SQL(_WRITE).format(
            arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * (len(names) + 2)),
            names=sql.SQL(", ").join([*names, *map(sql.Identifier, ("given text", "given vector"))]),
            table=self._change.table,
            same_row=sql.SQL(" AND ").join(same_row),
            row_waits=row_waits,
            column=sql.Identifier(self._column),
            type=sql.SQL(self._type),
        )
