"""New values of enum types: op.add_enum_value."""

from __future__ import annotations

from alembic.operations import MigrateOperation, Operations

from rag_factory.migrate.operations.steps import Steps, qualified
from rag_factory.migrate.session import quote


@Operations.register_operation("add_enum_value")
class AddEnumValueOp(MigrateOperation):
    """A value that an enum type gets."""

    def __init__(self, enum_name: str, statement: str) -> None:
        self.enum_name = enum_name
        self.statement = statement

    @classmethod
    def add_enum_value(
        cls,
        operations: Operations,
        enum_name: str,
        value: str = "",
        *,
        before: str | None = None,
        after: str | None = None,
        schema: str | None = None,
        new_value: str = "",
        before_value: str | None = None,
        enum_schema: str | None = None,
    ) -> None:
        """Add a value to an enum type, if it isn't there: at the end, or next to another one.

        new_value, before_value, enum_schema: what alembic-postgresql-enum's autogenerate calls value, before
        and schema, in an operation of this name.
        It is committed at once, so that the next statement of the revision can use it. No table is locked.
        There is no way back: PostgreSQL can't take a value out. A `downgrade` leaves it, and nobody minds.
        """
        value, before, schema = value or new_value, before or before_value, schema or enum_schema
        if before is not None and after is not None:
            raise ValueError("add_enum_value takes before or after, not both")
        place = f" BEFORE {quote(before)}" if before is not None else ""
        place += f" AFTER {quote(after)}" if after is not None else ""
        statement = f"ALTER TYPE {qualified(enum_name, schema)} ADD VALUE IF NOT EXISTS {quote(value)}{place}"
        operations.invoke(cls(enum_name, statement))


def take_name() -> None:
    """Let op.add_enum_value be this one: alembic-postgresql-enum, when loaded, has taken the name."""
    Operations.register_operation("add_enum_value")(AddEnumValueOp)


@Operations.implementation_for(AddEnumValueOp)
def _add_enum_value(operations: Operations, operation: AddEnumValueOp) -> None:
    steps = Steps(operations, f"Adding a value to {operation.enum_name}")
    with steps.begun():
        steps.concurrently(operation.statement)
