"""NOT NULL on a column of a large table, without a scan under its strongest lock."""

from __future__ import annotations

import hashlib

from alembic.operations import MigrateOperation, Operations

from rag_factory.migrate.operations.constraints import exists
from rag_factory.migrate.operations.steps import Steps, name_of, qualified
from rag_factory.migrate.session import quote

_LONGEST_NAME = 63
# From PostgreSQL 18 on, a column can be marked while nobody has looked at its old rows yet.
_IS_NOT_NULL = """
    (SELECT attnotnull AND NOT EXISTS (SELECT FROM pg_constraint
                                       WHERE conrelid = attrelid AND contype = 'n' AND conkey = ARRAY[attnum]
                                         AND NOT convalidated)
     FROM pg_attribute WHERE attrelid = {table}::regclass AND attname = {column})"""


@Operations.register_operation("set_not_null_online")
class SetNotNullOnlineOp(MigrateOperation):
    """NOT NULL, set while others write."""

    def __init__(self, table_name: str, column_name: str, schema: str | None) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.schema = schema

    @classmethod
    def set_not_null_online(
        cls, operations: Operations, table_name: str, column_name: str, *, schema: str | None = None
    ) -> None:
        """Set NOT NULL by way of a check, which is validated while others write, and dropped at the end.

        The server then knows that no row is NULL, and SET NOT NULL needs its lock for a moment only.
        Repeatable: it goes on where an interrupted run left it. Where rows are NULL, the check stays NOT
        VALID: new rows are held to it. Fill the others first, by `op.backfill`.
        The way back is `op.drop_not_null_online(table_name, column_name)`.
        """
        operations.invoke(cls(table_name, column_name, schema))


@Operations.register_operation("drop_not_null_online")
class DropNotNullOnlineOp(MigrateOperation):
    """NOT NULL, dropped with a short lock."""

    def __init__(self, table_name: str, column_name: str, schema: str | None) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.schema = schema

    @classmethod
    def drop_not_null_online(
        cls, operations: Operations, table_name: str, column_name: str, *, schema: str | None = None
    ) -> None:
        """Drop NOT NULL: a short lock, tried again. The way back is `op.set_not_null_online`."""
        operations.invoke(cls(table_name, column_name, schema))


@Operations.implementation_for(SetNotNullOnlineOp)
def _set_not_null(operations: Operations, operation: SetNotNullOnlineOp) -> None:
    table, column = qualified(operation.table_name, operation.schema), name_of(operation.column_name)
    check = _check_name(operation.table_name, operation.column_name)
    # Where there is no such column it is NULL: then the first step runs, and says so.
    todo = f"{_is_not_null(table, operation.column_name)} IS NOT TRUE"
    alter = f"ALTER TABLE {table}"
    steps = Steps(operations, f"Setting {operation.table_name}.{operation.column_name} NOT NULL", table)
    with steps.begun(f"Fill the NULLs: op.backfill in a revision before, where {column} IS NULL."):
        steps.change(
            f"{alter} ADD CONSTRAINT {name_of(check)} CHECK ({column} IS NOT NULL) NOT VALID",
            only_if=f"{todo} AND NOT {exists(table, check)}",
        )
        steps.change(
            f"{alter} VALIDATE CONSTRAINT {name_of(check)}",
            only_if=f"{todo} AND {exists(table, check, 'NOT convalidated')}",
        )
        steps.change(f"{alter} ALTER COLUMN {column} SET NOT NULL", only_if=todo)
        # A statement of its own: in one with the other, the server would drop it first, and scan.
        steps.change(f"{alter} DROP CONSTRAINT {name_of(check)}", only_if=exists(table, check))


@Operations.implementation_for(DropNotNullOnlineOp)
def _drop_not_null(operations: Operations, operation: DropNotNullOnlineOp) -> None:
    table, column = qualified(operation.table_name, operation.schema), name_of(operation.column_name)
    check = _check_name(operation.table_name, operation.column_name)
    steps = Steps(operations, f"Dropping NOT NULL of {operation.table_name}.{operation.column_name}", table)
    with steps.begun():
        steps.change(
            f"ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL",
            only_if=f"EXISTS (SELECT FROM pg_attribute WHERE attrelid = {quote(table)}::regclass "
            f"AND attname = {quote(operation.column_name)} AND attnotnull)",
        )
        steps.change(f"ALTER TABLE {table} DROP CONSTRAINT {name_of(check)}", only_if=exists(table, check))


def _is_not_null(table: str, column: str) -> str:
    return _IS_NOT_NULL.format(table=quote(table), column=quote(column)).strip()


def _check_name(table: str, column: str) -> str:
    """The name of the check on the way, cut as PostgreSQL would not do it: two columns keep two names."""
    name = f"{table}_{column}_not_null_online"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"not_null_online_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
