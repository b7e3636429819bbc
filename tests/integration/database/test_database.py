"""The service on a real database: alone in a test's transaction, and with others on one that commits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.models.documents import DIMENSIONS
from rag_factory.services.database.postgres import PostgresqlDatabaseService

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

EAST = [1.0] + [0.0] * (DIMENSIONS - 1)
NORTH = [0.0, 1.0] + [0.0] * (DIMENSIONS - 2)


async def test_document_is_stored_with_its_chunks(db_service: PostgresqlDatabaseService) -> None:
    document_id = await db_service.add_document("a.md", [("east", EAST), ("north", NORTH), ("later", None)])
    document = await db_service.get_document(document_id)
    assert document is not None
    assert (document.filename, document.total_chunks) == ("a.md", 3)


async def test_search_gives_the_nearest_first(db_service: PostgresqlDatabaseService) -> None:
    await db_service.add_document("a.md", [("north", NORTH), ("east", EAST), ("later", None)])
    hits = await db_service.search_chunks(EAST, limit=5)
    assert [hit.chunk.text for hit in hits] == ["east", "north"]
    assert [hit.distance for hit in hits] == pytest.approx([0, 1])


async def test_document_with_a_bad_chunk_is_not_stored(db_service: PostgresqlDatabaseService) -> None:
    with pytest.raises(DBAPIError):
        await db_service.add_document("bad.md", [("good", EAST), ("nul \0 byte", EAST)])
    async with db_service.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM documents")) == 0


async def test_deleting_says_whether_it_was_there(db_service: PostgresqlDatabaseService) -> None:
    document_id = await db_service.add_document("a.md", [("east", EAST)])
    assert await db_service.delete_document(document_id)
    assert not await db_service.delete_document(document_id)
    assert await db_service.get_document(document_id) is None


async def test_unknown_document_is_none(db_service: PostgresqlDatabaseService) -> None:
    assert await db_service.get_document(uuid4()) is None


@pytest.fixture
def config(committing_database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatabaseConfig:
    """Settings that lead to the database that may commit."""
    monkeypatch.setenv("DATABASE_URL", committing_database.url.render_as_string(hide_password=False))
    return DatabaseConfig.load(tmp_path)


async def test_many_at_once_share_the_pool(config: DatabaseConfig) -> None:
    async with PostgresqlDatabaseService.from_config(config) as service:
        await service.check_health()
        await asyncio.gather(*(service.add_document(f"{n}.md", [("text", EAST)]) for n in range(40)))
        async with service.session() as session:
            assert await session.scalar(text("SELECT count(*) FROM chunks")) == 40


def test_nothing_of_the_tests_before_is_left(db_connection: Session) -> None:
    assert db_connection.scalar(text("SELECT count(*) FROM documents")) == 0
