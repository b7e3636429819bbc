"""How autogenerate writes what Alembic doesn't know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy.types import TypeEngine

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext


def import_type(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    """Let a revision import the types that it names; Alembic itself does so for those of SQLAlchemy only.

    Types of pgvector are imported by name. Returns False where Alembic shall write it: all that is no type.
    """
    module = type(item).__module__
    if kind != "type" or not isinstance(item, TypeEngine) or module.startswith("sqlalchemy."):
        return False
    if module.startswith("pgvector.sqlalchemy."):
        context.imports.add(f"from pgvector.sqlalchemy import {type(item).__name__}")
        return repr(item)
    context.imports.add(f"import {module}")
    return False
