"""What is being re-embedded, as the database has it on record."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from psycopg import sql

from rag_factory.errors import UsageError
from rag_factory.migrate.bookkeeping import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

Phase = Literal["filling", "cut over"]
NEW, OLD = "_new", "_old"
NAME_LIMIT_BYTES = 63
TRIGGER = "zz_rag_factory_reembed"  # the last one to fire: it must see what the others make of the text
_TABLE = sql.Identifier(SCHEMA, "reembeddings")
_CREATE = """
    CREATE TABLE IF NOT EXISTS {} (
        reembedding_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        table_schema text NOT NULL, table_name text NOT NULL, column_name text NOT NULL,
        text_column text NOT NULL, type text NOT NULL, dimensions int NOT NULL,
        embedder text NOT NULL, embedder_name text NOT NULL,
        indexes jsonb NOT NULL, was_not_null boolean NOT NULL,
        phase text NOT NULL DEFAULT 'filling', recall jsonb,
        begun_at timestamptz NOT NULL DEFAULT now(), cut_over_at timestamptz,
        UNIQUE (table_schema, table_name, column_name)
    )
"""


@dataclass(frozen=True)
class IndexPlan:
    """A vector index that the new column gets. metric: the end of an operator class, such as `cosine_ops`.

    predicate: of a partial index. filled_only: it is one, of the rows where the column itself is not NULL.
    replaces: whether the old column has an index of this name.
    """

    name: str
    metric: str
    options: tuple[str, ...] = ()
    predicate: str | None = None
    filled_only: bool = False
    replaces: bool = True


@dataclass(frozen=True)
class Reembedding:
    """A change of embedding model that was begun and is not ended.

    column_name: what the application calls the column, whichever of the two has that name now.
    type: `vector` or `halfvec`. embedder: as given, `package.module:attribute`.
    """

    reembedding_id: int
    table_schema: str
    table_name: str
    column_name: str
    text_column: str
    type: str
    dimensions: int
    embedder: str
    embedder_name: str
    indexes: tuple[IndexPlan, ...]
    was_not_null: bool
    phase: Phase
    recall: dict[str, Any] | None

    @property
    def label(self) -> str:
        """The column for a message."""
        table = self.table_name if self.table_schema == "public" else f"{self.table_schema}.{self.table_name}"
        return f"{table}.{self.column_name}"

    @property
    def table(self) -> sql.Identifier:
        """The table, to be put into SQL."""
        return sql.Identifier(self.table_schema, self.table_name)

    @property
    def new_column(self) -> str:
        """The column of the new model as it is called now."""
        return self.column_name + (NEW if self.phase == "filling" else "")

    @property
    def old_column(self) -> str:
        """The column of the old model as it is called now."""
        return self.column_name + ("" if self.phase == "filling" else OLD)

    @property
    def waiting_index(self) -> str:
        """The name of the index on the rows that wait for the new model."""
        return f"rag_factory_reembedding_{self.reembedding_id}"

    def index_name(self, plan: IndexPlan) -> str:
        """What the new column's index is called now."""
        return other_name(plan.name, NEW) if self.phase == "filling" else plan.name

    def function(self, ending: str) -> sql.Identifier:
        """The trigger function that empties the column with this ending."""
        return sql.Identifier(SCHEMA, f"reembedding_{self.reembedding_id}{ending}")


def other_name(name: str, ending: str) -> str:
    """An index's name with an ending, no longer than PostgreSQL keeps it."""
    kept = name.encode()[: NAME_LIMIT_BYTES - len(ending)]
    return kept.decode(errors="ignore") + ending


def create_record(session: psycopg.Connection[Any]) -> None:
    """Make the table that holds the records, if it isn't there."""
    there = session.execute("SELECT to_regnamespace(%s) IS NOT NULL", (SCHEMA,)).fetchone()
    if not (there and there[0]):  # IF NOT EXISTS wants the right to create one even where there is one
        session.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(SCHEMA)))
    session.execute(sql.SQL(_CREATE).format(_TABLE))


def read_all(session: psycopg.Connection[Any]) -> list[Reembedding]:
    """Read what is being re-embedded, the oldest first."""
    there = session.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{SCHEMA}.reembeddings",)).fetchone()
    if not (there and there[0]):
        return []
    names = [field.name for field in fields(Reembedding)]
    query = sql.SQL("SELECT {} FROM {} ORDER BY reembedding_id").format(
        sql.SQL(", ").join(map(sql.Identifier, names)), _TABLE
    )
    found = []
    for row in session.execute(query):
        values = dict(zip(names, row, strict=True))
        plans = (IndexPlan(**{**plan, "options": tuple(plan["options"])}) for plan in values["indexes"])
        found.append(Reembedding(**{**values, "indexes": tuple(plans)}))
    return found


def read_one(session: psycopg.Connection[Any], column: Sequence[str] | None = None) -> Reembedding:
    """Read the one that is meant. column: schema, table and column; None where there is only one.

    Raises UsageError: there is none, or several to choose from.
    """
    everything = read_all(session)
    found = [
        each
        for each in everything
        if column is None or (each.table_schema, each.table_name, each.column_name) == tuple(column)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        labels = ", ".join(each.label for each in found)
        raise UsageError(f"Several columns are being re-embedded: {labels}.", fix="Choose one: --column")
    of = f" of {'.'.join(column)}" if column else ""
    raise UsageError(
        f"No change of embedding model{of} is under way.",
        fix="Begin one: invoke db.reembed --begin --column chunks.embedding --text-column text "
        "--embedder app.embedding:NewModel",
    )


def insert(session: psycopg.Connection[Any], **values: Any) -> Reembedding:
    """Put a change on record, and give it back with its number."""
    names = list(values)
    values["indexes"] = json.dumps([vars(plan) for plan in values["indexes"]])
    session.execute(
        sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            _TABLE,
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(", ").join(map(sql.Placeholder, names)),
        ),
        values,
    )
    return read_one(session, (values["table_schema"], values["table_name"], values["column_name"]))


def set_phase(session: psycopg.Connection[Any], change: Reembedding, phase: Phase) -> None:
    """Record which column has the name."""
    query = sql.SQL(
        "UPDATE {} SET phase = %s, cut_over_at = CASE WHEN %s THEN now() END WHERE reembedding_id = %s"
    )
    session.execute(query.format(_TABLE), (phase, phase == "cut over", change.reembedding_id))


def set_recall(session: psycopg.Connection[Any], change: Reembedding, recall: dict[str, Any]) -> None:
    """Record what was measured."""
    query = sql.SQL("UPDATE {} SET recall = %s WHERE reembedding_id = %s").format(_TABLE)
    session.execute(query, (json.dumps(recall), change.reembedding_id))


def delete(session: psycopg.Connection[Any], change: Reembedding) -> None:
    """Take a change that is ended off the record."""
    query = sql.SQL("DELETE FROM {} WHERE reembedding_id = %s").format(_TABLE)
    session.execute(query, (change.reembedding_id,))
