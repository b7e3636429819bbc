"""What every table has in common."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import DateTime, Enum, MetaData, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# With these, a constraint has the same name on every machine, and a revision can drop it by that name.
NAMING_CONVENTION = {
    "ix": "idx_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# A migration that fills in what follows from the rest of a row changes it for nobody: it says so by this
# setting, in its own transactions only.
UPDATE_UPDATED_AT = """
CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('rag_factory.backfill', true) IS DISTINCT FROM 'on' THEN
        NEW.updated_at = now();
    END IF;
    RETURN NEW;
END;
$$
"""

NEW_UUID = sa.text("gen_random_uuid()")


class Base(DeclarativeBase):
    """The root of all models; `Base.metadata` is what autogenerate compares.

    No `create_all()`: functions, triggers and views come of the revisions only: `invoke db.migrate`.
    """

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Timestamps:
    """When a row was made and last changed, with time zone. A trigger keeps `updated_at`."""

    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Metadata:
    """What an application wants to keep of a row. The attribute ends in `_`: Base has a `metadata`."""

    metadata_: Mapped[dict[str, Any]] = mapped_column(
        "metadata", JSONB, server_default=sa.text("'{}'::jsonb")
    )


def enum_of(kind: type[StrEnum], name: str) -> Enum:
    """The type of a column that holds the values of an enum."""
    return Enum(kind, name=name, values_callable=lambda members: [member.value for member in members])


def updated_at_trigger(table: str) -> str:
    """The statement that creates the trigger of one table."""
    return f"""
CREATE TRIGGER update_{table}_updated_at BEFORE UPDATE ON {table}
FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()
"""
