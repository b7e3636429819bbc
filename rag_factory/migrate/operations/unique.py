"""Unique constraints added while others write: the index first, then its name as a constraint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import CreateIndexOp, CreateUniqueConstraintOp
from sqlalchemy.sql.elements import conv

from rag_factory.migrate.operations.constraints import constraint_name, exists
from rag_factory.migrate.operations.indexes import DUPLICATES, build_index
from rag_factory.migrate.operations.steps import Steps, name_of, qualified

if TYPE_CHECKING:
    from collections.abc import Sequence


@Operations.register_operation("add_unique_online")
class AddUniqueOnlineOp(MigrateOperation):
    """A unique constraint that is added while others write."""

    def __init__(
        self, constraint_name: str, table_name: str, columns: Sequence[str], schema: str | None, **kw: Any
    ) -> None:
        self.constraint_name = constraint_name
        self.table_name = table_name
        self.columns = columns
        self.schema = schema
        self.kw = kw

    @classmethod
    def add_unique_online(
        cls,
        operations: Operations,
        constraint_name: str,
        table_name: str,
        columns: Sequence[str],
        *,
        schema: str | None = None,
        deferrable: bool | None = None,
        initially: str | None = None,
        **kw: Any,
    ) -> None:
        """Build a unique index CONCURRENTLY, then make it a constraint, with a short lock.

        Arguments as for `op.create_unique_constraint`; kw: of the index, such as postgresql_include.
        Repeatable as `op.create_index_online`.
        The way back is `op.drop_constraint_online(constraint_name, table_name, "unique")`.
        """
        operations.invoke(
            cls(
                constraint_name,
                table_name,
                columns,
                schema,
                deferrable=deferrable,
                initially=initially,
                **kw,
            )
        )


@Operations.implementation_for(AddUniqueOnlineOp)
def _add_unique(operations: Operations, operation: AddUniqueOnlineOp) -> None:
    deferrable, initially = (operation.kw.pop(key) for key in ("deferrable", "initially"))
    table = qualified(operation.table_name, operation.schema)
    made = CreateUniqueConstraintOp(
        operation.constraint_name, operation.table_name, operation.columns, schema=operation.schema
    ).to_constraint(operations.migration_context)
    name = constraint_name(made)
    index = CreateIndexOp(
        conv(name),
        operation.table_name,
        operation.columns,
        schema=operation.schema,
        unique=True,
        **operation.kw,
    )
    build_index(operations, index)
    options = (" DEFERRABLE" if deferrable else "") + (f" INITIALLY {initially}" if initially else "")
    steps = Steps(operations, f"Adding the unique constraint {name}", table)
    with steps.begun(DUPLICATES):
        steps.change(
            f"ALTER TABLE {table} ADD CONSTRAINT {name_of(name)} UNIQUE USING INDEX {name_of(name)}{options}",
            only_if=f"NOT {exists(table, name)}",
        )
