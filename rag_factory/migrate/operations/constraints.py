"""Constraints added in two steps: for new rows at once, then the old ones read while others go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import (
    CreateCheckConstraintOp,
    CreateForeignKeyOp,
)
from sqlalchemy.schema import AddConstraint
from sqlalchemy.sql.elements import conv

from rag_factory.migrate.operations.steps import (
    DIALECT,
    PROBE,
    REFUSAL,
    Steps,
    name_of,
    qualified,
    refuse_parameters,
    unquoted,
)
from rag_factory.migrate.session import quote

if TYPE_CHECKING:
    from sqlalchemy import CheckConstraint, Constraint, ForeignKeyConstraint, Table
    from sqlalchemy.sql.elements import ColumnElement, TextClause

_EXISTS = "EXISTS (SELECT FROM pg_constraint WHERE conrelid = {table}::regclass AND conname = {name}{more})"
# What a constraint of this name is held against. A check is known by what the server makes of its text, so
# the same one is made on an empty copy of the table.
_REFUSE_OTHER = """
DECLARE
    present text;
    wanted text;
BEGIN
    SELECT replace(pg_get_constraintdef(oid), ' NOT VALID', '') INTO present FROM pg_constraint
    WHERE conrelid = {table}::regclass AND conname = {name};
    IF NOT FOUND THEN
        RETURN;
    END IF;
{look}
    IF present IS DISTINCT FROM wanted THEN
        RAISE EXCEPTION USING ERRCODE = '{refusal}', HINT = 'Choose another name, or drop that one first.',
            MESSAGE = format('The constraint %s on %s is there with another definition: %s.',
                             {name}, {table}, present);
    END IF;
END
"""
_LOOK_AT_CHECK = """
    BEGIN
        CREATE TEMPORARY TABLE {probe} (LIKE {table_sql});
        {add};
        SELECT replace(pg_get_constraintdef(oid), ' NOT VALID', '') INTO wanted FROM pg_constraint
        WHERE conrelid = 'pg_temp.{probe}'::regclass AND conname = {name};
        RAISE EXCEPTION USING ERRCODE = 'RF000';
    EXCEPTION WHEN SQLSTATE 'RF000' THEN
        NULL; -- The probe is undone.
    END;
"""
_LOOK_AT_FOREIGN_KEY = """
    SELECT present INTO wanted FROM pg_constraint AS k
    WHERE conrelid = {table}::regclass AND conname = {name} AND contype = 'f'
      AND confrelid = {referent}::regclass AND confdeltype = '{ondelete}' AND confupdtype = '{onupdate}'
      AND condeferrable = {deferrable} AND condeferred = {deferred}
      AND ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS part (num, place)
                JOIN pg_attribute ON attrelid = conrelid AND attnum = num ORDER BY place) = ARRAY[{local}]
      AND ARRAY(SELECT attname::text FROM unnest(confkey) WITH ORDINALITY AS part (num, place)
                JOIN pg_attribute ON attrelid = confrelid AND attnum = num ORDER BY place) = ARRAY[{remote}];
"""
_ACTIONS = {"NO ACTION": "a", "RESTRICT": "r", "CASCADE": "c", "SET NULL": "n", "SET DEFAULT": "d"}


@Operations.register_operation("add_check_online")
class AddCheckOnlineOp(MigrateOperation):
    """A check that is added while others write."""

    def __init__(self, constraint: CreateCheckConstraintOp) -> None:
        self.constraint = constraint

    @classmethod
    def add_check_online(
        cls,
        operations: Operations,
        constraint_name: str,
        table_name: str,
        condition: str | TextClause | ColumnElement[bool],
        *,
        schema: str | None = None,
    ) -> None:
        """Add a check NOT VALID, then VALIDATE it. Arguments as for `op.create_check_constraint`.

        Repeatable: a constraint that is there is only validated; one of another definition is an error. Where
        rows are against it, it stays NOT VALID: it holds for new rows, and the next run goes on from there.
        The way back is `op.drop_constraint_online(constraint_name, table_name, "check")`.
        """
        operations.invoke(
            cls(
                CreateCheckConstraintOp(
                    constraint_name, table_name, condition, schema=schema, postgresql_not_valid=True
                )
            )
        )


@Operations.register_operation("add_foreign_key_online")
class AddForeignKeyOnlineOp(MigrateOperation):
    """A foreign key that is added while others write."""

    def __init__(self, constraint: CreateForeignKeyOp) -> None:
        self.constraint = constraint

    @classmethod
    def add_foreign_key_online(
        cls,
        operations: Operations,
        constraint_name: str,
        source_table: str,
        referent_table: str,
        local_cols: list[str],
        remote_cols: list[str],
        *,
        onupdate: str | None = None,
        ondelete: str | None = None,
        deferrable: bool | None = None,
        initially: str | None = None,
        source_schema: str | None = None,
        referent_schema: str | None = None,
    ) -> None:
        """Add a foreign key NOT VALID, then VALIDATE it. Arguments as for `op.create_foreign_key`.

        Repeatable as `op.add_check_online`. It makes no index on local_cols, which a DELETE of a referenced
        row reads: build that first, by `op.create_index_online`.
        The way back is `op.drop_constraint_online(constraint_name, source_table, "foreignkey")`.
        """
        operations.invoke(
            cls(
                CreateForeignKeyOp(
                    constraint_name,
                    source_table,
                    referent_table,
                    local_cols,
                    remote_cols,
                    onupdate=onupdate,
                    ondelete=ondelete,
                    deferrable=deferrable,
                    initially=initially,
                    source_schema=source_schema,
                    referent_schema=referent_schema,
                    postgresql_not_valid=True,
                )
            )
        )


@Operations.register_operation("drop_constraint_online")
class DropConstraintOnlineOp(MigrateOperation):
    """A constraint that is dropped with a short lock."""

    def __init__(self, constraint_name: str, table_name: str, type_: str | None, schema: str | None) -> None:
        self.constraint_name = constraint_name
        self.table_name = table_name
        self.type_ = type_
        self.schema = schema

    @classmethod
    def drop_constraint_online(
        cls,
        operations: Operations,
        constraint_name: str,
        table_name: str,
        type_: str | None = None,
        *,
        schema: str | None = None,
    ) -> None:
        """Drop a constraint, if it is there: a short lock, tried again.

        Arguments as for `op.drop_constraint`. The way back is the operation that added it.
        """
        operations.invoke(cls(constraint_name, table_name, type_, schema))


@Operations.implementation_for(AddCheckOnlineOp)
def _add_check(operations: Operations, operation: AddCheckOnlineOp) -> None:
    constraint: CheckConstraint = operation.constraint.to_constraint(operations.migration_context)
    name, table = constraint_name(constraint), _table(constraint)
    refuse_parameters(f"The condition of the check {name}", constraint.sqltext)
    probe = CreateCheckConstraintOp(conv(name), PROBE, operation.constraint.condition, schema="pg_temp")
    look = _LOOK_AT_CHECK.format(
        probe=PROBE,
        table_sql=table,
        name=quote(name),
        add=_compile(probe.to_constraint(operations.migration_context)),
    )
    steps = Steps(operations, f"Adding the check {name}", table)
    with steps.begun("Mend those rows, then run the task again. For new rows it holds already."):
        _add(steps, constraint, name, look)


@Operations.implementation_for(AddForeignKeyOnlineOp)
def _add_foreign_key(operations: Operations, operation: AddForeignKeyOnlineOp) -> None:
    constraint: ForeignKeyConstraint = operation.constraint.to_constraint(operations.migration_context)
    name, table = constraint_name(constraint), _table(constraint)
    given = operation.constraint
    referent = qualified(given.referent_table, given.kw["referent_schema"])
    look = _LOOK_AT_FOREIGN_KEY.format(
        table=quote(table),
        name=quote(name),
        referent=quote(referent),
        ondelete=_action(given.kw["ondelete"]),
        onupdate=_action(given.kw["onupdate"]),
        deferrable=bool(given.kw["deferrable"]),
        deferred=(given.kw["initially"] or "").upper() == "DEFERRED",
        local=", ".join(map(quote, given.local_cols)),
        remote=", ".join(map(quote, given.remote_cols)),
    )
    steps = Steps(operations, f"Adding the foreign key {name}", table, referent)
    with steps.begun("Mend those rows, then run the task again. For new rows it holds already."):
        _add(steps, constraint, name, look)


@Operations.implementation_for(DropConstraintOnlineOp)
def _drop_constraint(operations: Operations, operation: DropConstraintOnlineOp) -> None:
    made = operations.schema_obj.generic_constraint(
        operation.constraint_name, operation.table_name, operation.type_, schema=operation.schema
    )
    name, table = constraint_name(made), qualified(operation.table_name, operation.schema)
    steps = Steps(operations, f"Dropping the constraint {name}", table)
    with steps.begun():
        steps.change(
            f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name_of(name)}", only_if=exists(table, name)
        )


def exists(table: str, name: str, more: str = "") -> str:
    """A condition: the table, named as in SQL, has the constraint. more: what else is asked of it."""
    return _EXISTS.format(table=quote(table), name=quote(name), more=f" AND {more}" if more else "")


def constraint_name(constraint: Constraint) -> str:
    """The name that the constraint gets, with the project's naming convention."""
    return unquoted(str(DIALECT.identifier_preparer.format_constraint(constraint)))


def _add(steps: Steps, constraint: Constraint, name: str, look: str) -> None:
    table = steps.tables[0]
    steps.check(_REFUSE_OTHER.format(table=quote(table), name=quote(name), look=look, refusal=REFUSAL))
    steps.change(_compile(constraint), only_if=f"NOT {exists(table, name)}")
    steps.change(
        f"ALTER TABLE {table} VALIDATE CONSTRAINT {name_of(name)}",
        only_if=exists(table, name, "NOT convalidated"),
    )


def _table(constraint: CheckConstraint | ForeignKeyConstraint) -> str:
    table: Table = constraint.table
    return qualified(table.name, table.schema)


def _action(words: str | None) -> str:
    """How pg_constraint writes what ON DELETE or ON UPDATE does."""
    upper = (words or "NO ACTION").upper()
    return next((letter for action, letter in _ACTIONS.items() if upper.startswith(action)), "a")


def _compile(constraint: Constraint) -> str:
    return str(AddConstraint(constraint).compile(dialect=DIALECT)).strip()
