"""Databases as an application opens them, and vectors that are easy to tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.models import User
from rag_factory.database.models.documents import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from uuid import UUID

    from sqlalchemy.orm import Session

    from rag_factory.database.connection import DatabaseConnection


@pytest.fixture
def user_id(db_connection: Session) -> UUID:
    """A user, in the test's transaction."""
    user = User(email="ada@example.org")
    db_connection.add(user)
    db_connection.flush()
    return user.user_id


@pytest.fixture
def open_database(
    test_db_url: str,  # noqa: ARG001 - DATABASE_URL is then that of this database
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., DatabaseConnection]]:
    """Open the worker's database with these settings; what is committed through it stays for good.

    Its pool has a single connection, so that each session borrows that of the one before.
    """
    from rag_factory.database.connection import DatabaseConnection

    opened: list[DatabaseConnection] = []

    def open_one(**settings: str) -> DatabaseConnection:
        for name, value in ({"DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": "0"} | settings).items():
            monkeypatch.setenv(name, value)
        opened.append(DatabaseConnection(DatabaseConfig.load(tmp_path)))
        return opened[-1]

    yield open_one
    for database in opened:
        database.close()


def direction(axis: int, length: float = 1.0) -> list[float]:
    """A vector along one axis."""
    return [length if index == axis else 0.0 for index in range(DIMENSIONS)]
