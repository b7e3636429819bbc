"""What every table has in common."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import DateTime, MetaData, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# With these, a constraint has the same name on every machine, and a revision can drop it by that name.
NAMING_CONVENTION = {
    "ix": "idx_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

UPDATE_UPDATED_AT = """
CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END;
$$
"""


class Base(DeclarativeBase):
    """The root of all models; `Base.metadata` is what autogenerate compares."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Timestamps:
    """When a row was made and last changed, with time zone. A trigger keeps `updated_at`."""

    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


def updated_at_trigger(table: str) -> str:
    """The statement that creates the trigger of one table."""
    return f"""
CREATE TRIGGER update_{table}_updated_at BEFORE UPDATE ON {table}
FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()
"""
