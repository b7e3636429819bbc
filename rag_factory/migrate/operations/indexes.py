"""Indexes built and dropped while others read and write: op.create_index_online, op.drop_index_online."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import CreateIndexOp
from sqlalchemy import text
from sqlalchemy.schema import CreateIndex

from rag_factory.errors import LockedError
from rag_factory.migrate.operations.steps import (
    DIALECT,
    PROBE,
    REFUSAL,
    Steps,
    qualified,
    refuse_parameters,
    unquoted,
)
from rag_factory.migrate.operations.watch import index_progress
from rag_factory.migrate.session import DATABASE_ERRORS, quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alembic.runtime.migration import MigrationContext
    from sqlalchemy.sql.elements import ColumnElement, TextClause

DUPLICATES = "Find the duplicates and resolve them, then run the task again."
_POLL_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 3600.0
_FIND = """
    SELECT c.oid, c.relkind, i.indisvalid AS sound, i.indrelid, c.oid::regclass::text AS name,
           CASE WHEN i.indisunique THEN 'UNIQUE' ELSE '' END
           || substring(pg_get_indexdef(i.indexrelid) FROM ' USING .*') AS definition
    FROM pg_class AS c LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
    WHERE c.relname = {name} AND c.relnamespace = (
        SELECT relnamespace FROM pg_class WHERE oid = {table}::regclass)"""
_CHECK = """
DECLARE
    present record;
    wanted text;
BEGIN
    SELECT * INTO present FROM ({find}) AS index;
    IF present.sound IS NOT TRUE AND 'p' = (SELECT relkind FROM pg_class WHERE oid = {table}::regclass) THEN
        RAISE EXCEPTION USING ERRCODE = '{refusal}', MESSAGE =
            format('%s is partitioned, and PostgreSQL builds no index on it CONCURRENTLY.', {table}),
            HINT = 'Do the same on each partition; then op.create_index (for a constraint, '
                || 'op.create_unique_constraint) on the table itself takes those over in a moment.';
    ELSIF present.oid IS NULL THEN
        RETURN;
    ELSIF present.relkind NOT IN ('i', 'I') OR present.indrelid <> {table}::regclass THEN
        RAISE EXCEPTION USING ERRCODE = '{refusal}', HINT = 'Choose another name.', MESSAGE =
            format('The name %s of the index on %s is taken by something else.', {name}, {table});
    ELSIF EXISTS (SELECT FROM pg_stat_progress_create_index WHERE index_relid = present.oid) THEN
        RAISE EXCEPTION USING ERRCODE = '{refusal}', HINT = 'Wait for it, then run this again.', MESSAGE =
            format('The index %s is just being built by another session.', present.name);
    ELSIF NOT present.sound THEN
        -- Renaming holds up nobody; dropping it CONCURRENTLY has to be a statement of its own.
        EXECUTE format('ALTER INDEX %s RENAME TO {leftover}', present.name);
        RETURN;
    END IF;
    BEGIN
        CREATE TEMPORARY TABLE {probe} (LIKE {table_sql});
        {probe_index};
        SELECT CASE WHEN indisunique THEN 'UNIQUE' ELSE '' END
               || substring(pg_get_indexdef(indexrelid) FROM ' USING .*')
        INTO wanted FROM pg_index WHERE indrelid = 'pg_temp.{probe}'::regclass;
        RAISE EXCEPTION USING ERRCODE = 'RF000';
    EXCEPTION WHEN SQLSTATE 'RF000' THEN
        NULL; -- The probe is undone.
    END;
    IF present.definition <> wanted THEN
        RAISE EXCEPTION USING ERRCODE = '{refusal}', HINT = 'Choose another name, or drop that one first.',
            MESSAGE = format('The index %s is there with another definition: %s, and not %s.',
                             present.name, ltrim(present.definition), ltrim(wanted));
    END IF;
END
"""

_REFUSE_PARTITIONED = """
BEGIN
    IF 'I' = (SELECT relkind FROM pg_class WHERE oid = to_regclass({index})) THEN
        RAISE EXCEPTION USING ERRCODE = '{refusal}', HINT = 'Drop it by op.drop_index: a lock for a moment.',
            MESSAGE = format('PostgreSQL drops no index of a partitioned table CONCURRENTLY: %s.', {index});
    END IF;
END
"""


@Operations.register_operation("create_index_online")
class CreateIndexOnlineOp(MigrateOperation):
    """An index that is built while others write."""

    def __init__(self, index: CreateIndexOp) -> None:
        self.index = index

    @classmethod
    def create_index_online(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        columns: Sequence[str | TextClause | ColumnElement[Any]],
        *,
        schema: str | None = None,
        unique: bool = False,
        **kw: Any,
    ) -> None:
        """Build an index CONCURRENTLY, then ANALYZE the table. Arguments as for `op.create_index`.

        Repeatable: what an interrupted build left is dropped first; an index of this name and definition is
        kept; one of another definition is an error. PostgreSQL can't on a partitioned table: there, do it on
        each partition, then `op.create_index` on the table takes those over.
        The way back is `op.drop_index_online(index_name, table_name)`.
        """
        operations.invoke(
            cls(CreateIndexOp(index_name, table_name, columns, schema=schema, unique=unique, **kw))
        )


@Operations.register_operation("drop_index_online")
class DropIndexOnlineOp(MigrateOperation):
    """An index that is dropped while others read and write."""

    def __init__(self, index_name: str, table_name: str, schema: str | None) -> None:
        self.index_name = index_name
        self.table_name = table_name
        self.schema = schema

    @classmethod
    def drop_index_online(
        cls, operations: Operations, index_name: str, table_name: str, *, schema: str | None = None
    ) -> None:
        """Drop an index CONCURRENTLY, if it is there.

        The way back is `op.create_index_online`.
        """
        operations.invoke(cls(index_name, table_name, schema))


@Operations.implementation_for(CreateIndexOnlineOp)
def _create_index(operations: Operations, operation: CreateIndexOnlineOp) -> None:
    build_index(operations, operation.index)


@Operations.implementation_for(DropIndexOnlineOp)
def _drop_index(operations: Operations, operation: DropIndexOnlineOp) -> None:
    table = qualified(operation.table_name, operation.schema)
    steps = Steps(operations, f"Dropping the index {operation.index_name}", table)
    index = quote(qualified(operation.index_name, operation.schema))
    with steps.begun():
        steps.check(_REFUSE_PARTITIONED.format(index=index, refusal=REFUSAL))
        steps.concurrently(_drop(operation.index_name, operation.schema))


def build_index(
    operations: Operations, index: CreateIndexOp, settings: Mapping[str, str] | None = None
) -> None:
    """Build an index as `op.create_index_online` does. settings: of the session, for the build."""
    name, build = index_sql(index, operations.migration_context)
    table = qualified(index.table_name, index.schema)
    steps = Steps(operations, f"Building the index {name}", table)
    with steps.begun(DUPLICATES):
        _build(steps, index, name, build, settings or {})


def _build(steps: Steps, index: CreateIndexOp, name: str, build: str, settings: Mapping[str, str]) -> None:
    table = steps.tables[0]
    leftover = f"rag_factory_leftover_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    find = _FIND.format(name=quote(name), table=quote(table))
    if not steps.offline:
        _wait_for_builder(steps, find, name)
    _drop_leftover(steps, leftover, index.schema, table)
    probe = _probe_sql(index, steps.context)
    steps.check(
        _CHECK.format(
            find=find,
            name=quote(name),
            table=quote(table),
            table_sql=table,
            leftover=leftover,
            refusal=REFUSAL,
            probe=PROBE,
            probe_index=probe,
        )
    )
    _drop_leftover(steps, leftover, index.schema, table)
    if not steps.offline and steps.session.execute(find):
        steps.notice(f"kept the index {name}: it is there already, with this definition")
    else:
        with index_progress(steps, name):
            _build_or_clean(steps, build, name, index.schema, settings)
    steps.change(f"ANALYZE {table}")


def _build_or_clean(
    steps: Steps, build: str, name: str, schema: str | None, settings: Mapping[str, str]
) -> None:
    """Build it; a build that fails by itself leaves no INVALID index, which would slow down every write."""
    try:
        steps.concurrently(build, settings)
    except DATABASE_ERRORS:
        if not steps.offline:
            _take_away(steps, name, schema)
        raise


def _take_away(steps: Steps, name: str, schema: str | None) -> None:
    try:
        steps.session.execute(_drop(name, schema))
    except DATABASE_ERRORS:
        steps.notice(f"an INVALID index {name} is left; the next try drops it")


def _drop(name: str, schema: str | None) -> str:
    return f"DROP INDEX CONCURRENTLY IF EXISTS {qualified(name, schema)}"


def _drop_leftover(steps: Steps, leftover: str, schema: str | None, table: str) -> None:
    if steps.offline or steps.session.execute(_FIND.format(name=quote(leftover), table=quote(table))):
        steps.concurrently(_drop(leftover, schema))


def _wait_for_builder(steps: Steps, find: str, name: str) -> None:
    """Wait for a session that builds this very index: of a killed run, it may not know that yet."""
    query = f"SELECT pid FROM pg_stat_progress_create_index JOIN ({find}) AS found ON found.oid = index_relid"
    told = False
    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    # Single statements: a transaction of ours that went on would itself be waited for by the build.
    while pid := steps.session.one(query):
        if not told:
            steps.notice(f"waiting for pid {pid}, which builds the index {name}")
            told = True
        if time.monotonic() > deadline:
            raise LockedError(
                f"The index {name} has been in the making by pid {pid} for an hour.",
                fix=f"Look what it waits for; to end it: SELECT pg_terminate_backend({pid})",
            )
        time.sleep(_POLL_SECONDS)


def index_sql(index: CreateIndexOp, context: MigrationContext) -> tuple[str, str]:
    """The name that the index really gets, and the statement that builds it."""
    index.kw["postgresql_concurrently"] = True
    made = index.to_index(context)
    name = str(DIALECT.identifier_preparer.format_index(made))
    parts = [*made.expressions, made.dialect_options["postgresql"]["where"]]
    written = (text(part) if isinstance(part, str) else part for part in parts if part is not None)
    refuse_parameters(f"The index {name}", *written)
    return unquoted(name), _compile(CreateIndex(made, if_not_exists=True))


def _probe_sql(index: CreateIndexOp, context: MigrationContext) -> str:
    """The statement that builds the same index on an empty table."""
    options = {key: value for key, value in index.kw.items() if key != "postgresql_concurrently"}
    probe = CreateIndexOp(
        f"{PROBE}_index", PROBE, index.columns, schema="pg_temp", unique=index.unique, **options
    )
    return _compile(CreateIndex(probe.to_index(context)))


def _compile(element: CreateIndex) -> str:
    return str(element.compile(dialect=DIALECT)).strip()
