"""The short steps: begin, swap the names, end. Each is one transaction under one short lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

from rag_factory.errors import BehindError, RefusedError, UsageError
from rag_factory.migrate.reembed import record
from rag_factory.migrate.reembed.record import NEW, OLD, TRIGGER, Reembedding, other_name
from rag_factory.migrate.reembed.table import (
    Table,
    extension_schema,
    read_table,
    refuse_dependents,
    waiting_rows,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from rag_factory.database.embedding import Embedder
    from rag_factory.migrate.reembed.record import Phase
    from rag_factory.migrate.reembed.short_lock import ShortLock

# What an HNSW index takes.
MOST_DIMENSIONS = {"vector": 2000, "halfvec": 4000}
# It fires only where the text changes. A vector that comes with the new text is kept.
_FUNCTION = """
    CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF NEW.{column}::text IS NOT DISTINCT FROM OLD.{column}::text THEN
            NEW.{column} := NULL;
        END IF;
        RETURN NEW;
    END
    $$
"""
# ALWAYS: also for rows of logical replication. COLLATE: to some collations, other texts are the same.
_TRIGGER = """
    CREATE TRIGGER {trigger} BEFORE UPDATE ON {table} FOR EACH ROW
    WHEN ((OLD.{text})::text COLLATE "C" IS DISTINCT FROM (NEW.{text})::text COLLATE "C")
    EXECUTE FUNCTION {function}();
    ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}
"""
_GRANTS = """
    SELECT privilege_type, CASE grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(grantee) END, is_grantable
    FROM pg_attribute, aclexplode(attacl) WHERE attrelid = %s AND attnum = %s AND grantee <> 0
    UNION ALL
    SELECT privilege_type, NULL, false
    FROM pg_attribute, aclexplode(attacl) WHERE attrelid = %s AND attnum = %s AND grantee = 0
"""


def begin(
    session: psycopg.Connection[Any],
    name: Sequence[str],
    text_column: str,
    embedder: Embedder,
    lock: ShortLock,
    *,
    embedder_as_given: str,
    type_name: str | None = None,
) -> tuple[Reembedding, Table]:
    """Add the second column and its trigger, and put the change on record; once begun, give what is there.

    name: schema, table, column. type_name: vector or halfvec; None: vector where an index takes it.
    Raises UsageError: it was begun otherwise, or there can be no such column. Raises RefusedError: as
    `read_table`. Raises LockedError: the table was in use.
    """
    dimensions = embedder.dimensions
    type_name = _choose_type(type_name, dimensions)
    wanted = {
        "text_column": text_column,
        "type": type_name,
        "dimensions": dimensions,
        "embedder_name": embedder.name,
    }
    schema, table_name, column = name
    for found in record.read_all(session):
        if (found.table_schema, found.table_name, found.column_name) == (schema, table_name, column):
            _refuse_other(found, wanted)
            return found, read_table(session, name, text_column, begun=True)
    made: list[Reembedding] = []
    table = read_table(session, name, text_column)

    def work() -> None:
        record.create_record(session)
        change = record.insert(
            session,
            table_schema=schema,
            table_name=table_name,
            column_name=column,
            embedder=embedder_as_given,
            indexes=table.indexes,
            was_not_null=table.not_null,
            **wanted,
        )
        _add_column(session, change, table)
        made[:] = [change]

    lock.run(session, sql.Identifier(schema, table_name), work)
    return made[0], table


def cut_over(session: psycopg.Connection[Any], change: Reembedding, lock: ShortLock) -> Reembedding:
    """Give the new column the name, and the old one the name with `_old`; their indexes likewise.

    Raises RefusedError: something has come to depend on one of them. Raises LockedError.
    """
    return _swap(session, change, lock, "cut over")


def go_back(session: psycopg.Connection[Any], change: Reembedding, lock: ShortLock) -> Reembedding:
    """Give the old column its name again, and the new one the name with `_new`. Raises as `cut_over`."""
    return _swap(session, change, lock, "filling")


def drop_old(session: psycopg.Connection[Any], change: Reembedding, lock: ShortLock) -> None:
    """Drop the old column, its indexes and the trigger: the change is done.

    Raises RefusedError: it isn't cut over. Raises BehindError: rows have only their old embedding.
    """
    require_phase(change, "cut over")

    def work() -> None:
        waiting = session.execute(
            sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})").format(change.table, waiting_rows(change))
        ).fetchone()
        if waiting and waiting[0]:
            raise BehindError(
                f"Rows of {change.label} have only their old embedding. Nothing was changed.",
                fix="Compute the new ones first: invoke db.reembed",
            )
        _end(session, change, change.old_column)

    lock.run(session, change.table, work)


def give_up(session: psycopg.Connection[Any], change: Reembedding, lock: ShortLock) -> None:
    """Drop the new column, its indexes and the trigger: all is as before.

    Raises RefusedError: it is cut over.
    """
    require_phase(change, "filling")
    lock.run(session, change.table, lambda: _end(session, change, change.new_column))


def require_phase(change: Reembedding, phase: Phase) -> None:
    """Raise RefusedError when the column to drop is the one in use."""
    if change.phase == phase:
        return
    if phase == "cut over":
        raise RefusedError(
            f"{change.label} is not cut over: its old embeddings are in use. Nothing was changed.",
            fix="First: invoke db.reembed --cut-over. To give the change up: invoke db.reembed --give-up",
        )
    raise RefusedError(
        f"{change.label} is cut over: its new embeddings are in use. Nothing was changed.",
        fix="First: invoke db.reembed --back",
    )


def _choose_type(given: str | None, dimensions: int) -> str:
    chosen = given or ("vector" if dimensions <= MOST_DIMENSIONS["vector"] else "halfvec")
    if chosen not in MOST_DIMENSIONS:
        raise UsageError(f"--type is {chosen}, and must be vector or halfvec.")
    if not 1 <= dimensions <= MOST_DIMENSIONS[chosen]:
        raise UsageError(
            f"The embedder has {dimensions} dimensions; an HNSW index of {chosen} takes 1 to "
            f"{MOST_DIMENSIONS[chosen]}.",
            fix="Have the model give fewer, as many can, or choose another --type.",
        )
    return chosen


def _refuse_other(found: Reembedding, wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if getattr(found, name) != value:
            what = name.replace("_", " ")
            raise UsageError(
                f"The change of {found.label} was begun with the {what} {getattr(found, name)}, not {value}.",
                fix="Go on with that: invoke db.reembed. Or give it up: invoke db.reembed --give-up",
            )


def _add_column(session: psycopg.Connection[Any], change: Reembedding, table: Table) -> None:
    session.execute(
        sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(
            change.table,
            sql.Identifier(change.new_column),
            sql.SQL("{}.{}({})").format(
                sql.Identifier(extension_schema(session)),
                sql.Identifier(change.type),
                sql.Literal(change.dimensions),
            ),
        )
    )
    place = (table.oid, table.number)
    for privilege, grantee, grantable in session.execute(_GRANTS, place * 2).fetchall():
        session.execute(
            sql.SQL("GRANT {} ({}) ON {} TO {}{}").format(
                sql.SQL(privilege),
                sql.Identifier(change.new_column),
                change.table,
                sql.Identifier(grantee) if grantee else sql.SQL("PUBLIC"),
                sql.SQL(" WITH GRANT OPTION" if grantable else ""),
            )
        )
    for ending in (NEW, OLD):
        session.execute(
            sql.SQL(_FUNCTION).format(
                function=change.function(ending), column=sql.Identifier(change.column_name + ending)
            )
        )
    _set_trigger(session, change, NEW)


def _set_trigger(session: psycopg.Connection[Any], change: Reembedding, ending: str) -> None:
    """Have the column with this ending, which nobody writes to, emptied where a text changes."""
    _drop_trigger(session, change)
    for statement in _TRIGGER.split(";"):
        session.execute(
            sql.SQL(statement).format(
                trigger=_trigger(change),
                table=change.table,
                text=sql.Identifier(change.text_column),
                function=change.function(ending),
            )
        )


def _drop_trigger(session: psycopg.Connection[Any], change: Reembedding) -> None:
    session.execute(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(_trigger(change), change.table))


def _trigger(change: Reembedding) -> sql.Identifier:
    return sql.Identifier(f"{TRIGGER}_{change.reembedding_id}")


def _swap(
    session: psycopg.Connection[Any], change: Reembedding, lock: ShortLock, phase: Phase
) -> Reembedding:
    leaving, coming = (OLD, NEW) if phase == "cut over" else (NEW, OLD)
    column = change.column_name

    def work() -> None:
        numbers = session.execute(
            "SELECT attrelid, attnum, attname FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attname = ANY(%s)",
            (change.table.as_string(session), [column, column + coming]),
        ).fetchall()
        for oid, number, name in numbers:
            refuse_dependents(session, oid, number, f"{change.table_name}.{name}")
        _drop_trigger(session, change)
        for before, after in ((column, column + leaving), (column + coming, column)):
            session.execute(
                sql.SQL("ALTER TABLE {} RENAME COLUMN {} TO {}").format(
                    change.table, sql.Identifier(before), sql.Identifier(after)
                )
            )
        for plan in change.indexes:
            for before, after in (
                (plan.name, other_name(plan.name, leaving)),
                (other_name(plan.name, coming), plan.name),
            ):
                # Where the old column had no index, there is one of only two names.
                session.execute(
                    sql.SQL("ALTER INDEX IF EXISTS {} RENAME TO {}").format(
                        sql.Identifier(change.table_schema, before), sql.Identifier(after)
                    )
                )
        # Nobody writes to the one that leaves: a row that comes now has none there.
        session.execute(
            sql.SQL("ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL").format(
                change.table, sql.Identifier(column + leaving)
            )
        )
        _set_trigger(session, change, leaving)
        record.set_phase(session, change, phase)

    lock.run(session, change.table, work)
    return record.read_one(session, (change.table_schema, change.table_name, column))


def _end(session: psycopg.Connection[Any], change: Reembedding, column: str) -> None:
    """Drop one of the two columns, and what the change has made besides them."""
    _drop_trigger(session, change)
    session.execute(
        sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(change.table_schema, change.waiting_index))
    )
    session.execute(
        sql.SQL("ALTER TABLE {} DROP COLUMN IF EXISTS {}").format(change.table, sql.Identifier(column))
    )
    for ending in (NEW, OLD):
        session.execute(sql.SQL("DROP FUNCTION IF EXISTS {}()").format(change.function(ending)))
    record.delete(session, change)
