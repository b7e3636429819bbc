"""The pages of the documentation, the driver's connection, and roles that are gone with their test."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from sqlalchemy.orm import Session

HOWTO = Path(__file__).parents[3] / "docs" / "howto"
TENANTS = (UUID(int=0xA), UUID(int=0xB))  # [tenancy]


# [tenancy
def statements(name: str, containing: str) -> list[str]:
    """The SQL statements of the one block of a how-to that has this text in it."""
    blocks = re.findall(r"```sql\n(.*?)```", (HOWTO / name).read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if containing in block]
    return [part.strip() for part in block.split(";") if part.strip()]


# tenancy]


def driver(session: Session) -> psycopg.Connection[Any]:
    """The driver's own connection, in the test's transaction."""
    return cast("psycopg.Connection[Any]", session.connection().connection.driver_connection)


# [tenancy
@pytest.fixture
def role_name(db_connection: Session) -> str:
    """A name for a role of this process: roles belong to the server, which several workers may share."""
    may = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
    if not db_connection.scalar(text(may)):
        # What these tests are about can't be had there; the embedded test server always has it.
        pytest.skip("this server's role is no superuser: making roles and acting as them takes one")
    return f"rag_application_{os.getpid()}"


@pytest.fixture
def application(db_connection: Session, role_name: str) -> str:
    """The role that the how-to makes, by its own statements. It has the how-to's rights and no tenant set."""
    for statement in statements("many-tenants.md", "CREATE ROLE"):
        db_connection.execute(text(statement.replace("rag_application", role_name)))
    return role_name


@pytest.fixture
def act_as(db_connection: Session) -> Callable[..., None]:
    """Become a role that works for a tenant, until the test ends or becomes another one; None: the owner."""

    def act(role: str | None, tenant: UUID | str | None = None, user: UUID | None = None) -> None:
        db_connection.execute(text(f"SET LOCAL ROLE {role}" if role else "RESET ROLE"))
        for setting, value in (("app.current_tenant_id", tenant), ("app.current_user_id", user)):
            db_connection.execute(
                text("SELECT set_config(:setting, :value, true)"),
                {"setting": setting, "value": str(value or "")},
            )

    return act


@pytest.fixture
def rows_of_all(db_connection: Session) -> Session:
    """A row in every table for each of two tenants, and for none; each chunk has a child."""
    connection = driver(db_connection)
    for number, tenant in enumerate((*TENANTS, None), start=1):
        if tenant:
            connection.execute(
                "INSERT INTO tenants (tenant_id, name) VALUES (%s, %s)", (tenant, f"tenant {number}")
            )
        ids = {name: UUID(int=number * 100 + at) for at, name in enumerate("udocklmsxy")}
        values = ids | {
            "t": tenant,
            "path": f"/{number}.md",
            "text": f"secret {number}",
            "email": f"{number}@x",
        }
        for statement in ROWS:
            connection.execute(statement.encode(), values)
    return db_connection


ROWS = (
    "INSERT INTO users (user_id, tenant_id, email) VALUES (%(u)s, %(t)s, %(email)s)",
    "INSERT INTO user_preferences (user_id, tenant_id) VALUES (%(u)s, %(t)s)",
    (
        "INSERT INTO collections (collection_id, tenant_id, name, description) "
        "VALUES (%(c)s, %(t)s, 'handbook', %(text)s)"
    ),
    (
        "INSERT INTO documents (document_id, tenant_id, collection_id, filename, source_path) "
        "VALUES (%(d)s, %(t)s, %(c)s, 'a.md', %(path)s)"
    ),
    "INSERT INTO documents (document_id, tenant_id, filename) VALUES (%(o)s, %(t)s, 'alone.md')",
    (
        "INSERT INTO chunks (chunk_id, tenant_id, document_id, chunk_index, text, embedding) "
        "VALUES (%(k)s, %(t)s, %(d)s, 0, %(text)s, array_fill(1, ARRAY[1536])::vector)"
    ),
    (
        "INSERT INTO chunks (chunk_id, tenant_id, document_id, chunk_index, text, parent_chunk_id, "
        "hierarchy_level) VALUES (%(l)s, %(t)s, %(d)s, 1, %(text)s, %(k)s, 9)"
    ),
    "INSERT INTO conversations (conversation_id, tenant_id, user_id) VALUES (%(m)s, %(t)s, %(u)s)",  # [chat]
    (  # [chat]
        "INSERT INTO messages (message_id, tenant_id, conversation_id, role, content) "
        "VALUES (%(s)s, %(t)s, %(m)s, 'user', %(text)s)"
    ),
    (  # [chat]
        "INSERT INTO scratchpad_entries (scratchpad_entry_id, tenant_id, user_id, entry_type, content) "
        "VALUES (%(x)s, %(t)s, %(u)s, 'note', %(text)s)"
    ),
    (  # [chat]
        "INSERT INTO user_memories (user_memory_id, tenant_id, user_id, content) "
        "VALUES (%(y)s, %(t)s, %(u)s, %(text)s)"
    ),
)
# tenancy]
