"""The service on a real database: alone in a test's transaction, and with others on one that commits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import InternalError

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.hierarchy import expand
from rag_factory.database.ingest import IngestReport, NewChunk, NewDocument
from rag_factory.database.models.documents import DIMENSIONS
from rag_factory.database.search import search_text
from rag_factory.errors import DocumentError, UsageError
from rag_factory.services.database.postgres import PostgresqlDatabaseService

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

EAST = [1.0] + [0.0] * (DIMENSIONS - 1)
NORTH = [0.0, 1.0] + [0.0] * (DIMENSIONS - 2)
DOCUMENT = NewDocument(
    "a.md",
    [NewChunk("compass", NORTH), NewChunk("east", EAST, level=1, parent=0), NewChunk("later")],
    source_path="docs/a.md",
)


async def test_document_is_stored_with_its_chunks(db_service: PostgresqlDatabaseService) -> None:
    reports: list[IngestReport] = []
    assert await db_service.ingest([DOCUMENT], on_progress=reports.append) == IngestReport(added=1, chunks=3)
    assert await db_service.ingest([DOCUMENT]) == IngestReport(unchanged=1)
    assert reports[-1].added == 1
    hit = (await db_service.search_vector(EAST, limit=1))[0]
    document = await db_service.get_document(hit.document_id)
    assert document is not None
    assert (document.filename, document.total_chunks) == ("a.md", 3)


async def test_every_search_gives_the_best_first(db_service: PostgresqlDatabaseService) -> None:
    await db_service.ingest([DOCUMENT])
    assert [hit.text for hit in await db_service.search_vector(EAST)] == ["east", "compass"]
    assert [hit.text for hit in await db_service.search_vector(EAST, metric="l2", limit=1)] == ["east"]
    assert [hit.text for hit in await db_service.search_text("later")] == ["later"]
    hits = await db_service.search_hybrid("compass", EAST, text_weight=2)
    assert [hit.text for hit in hits] == ["compass", "east"]
    assert await db_service.search_vector(EAST, collection_id=uuid4()) == []


async def test_tree_is_walked_in_every_direction(db_service: PostgresqlDatabaseService) -> None:
    await db_service.ingest([DOCUMENT])
    east = (await db_service.search_text("east"))[0].chunk_id
    compass = (await db_service.search_text("compass"))[0].chunk_id
    assert [node.chunk_id for node in await db_service.ancestors(east)] == [compass]
    assert [node.chunk_id for node in await db_service.descendants(compass)] == [east]
    assert [node.text for node in await db_service.siblings(compass)] == ["later"]
    assert [node.text for node in await db_service.subtree(compass)] == ["compass", "east"]
    assert (await db_service.expand(east)).text == "compass\n\neast"
    assert await db_service.find_problems() == []


async def test_several_calls_share_a_transaction(db_service: PostgresqlDatabaseService) -> None:
    await db_service.ingest([DOCUMENT])
    async with db_service.session() as session:
        hits = await session.run_sync(search_text, "east")
        section = await session.run_sync(expand, hits[0].chunk_id)
    assert section.text == "compass\n\neast"


async def test_bad_calls_are_refused(db_service: PostgresqlDatabaseService) -> None:
    with pytest.raises(DocumentError, match=r"bad\.md.*chunk 1: its text holds a NUL"):
        await db_service.ingest([NewDocument("bad.md", [NewChunk("good", EAST), NewChunk("nul \0 byte")])])
    with pytest.raises(UsageError, match="limit is 0"):
        await db_service.search_vector(EAST, limit=0)
    async with db_service.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM documents")) == 0


async def test_deleting_says_whether_it_was_there(db_service: PostgresqlDatabaseService) -> None:
    await db_service.ingest([DOCUMENT])
    document_id = (await db_service.search_text("east"))[0].document_id
    assert await db_service.delete_document(document_id)
    assert not await db_service.delete_document(document_id)
    assert await db_service.get_document(document_id) is None
    assert await db_service.search_text("east") == []


async def test_unknown_document_is_none(db_service: PostgresqlDatabaseService) -> None:
    assert await db_service.get_document(uuid4()) is None


# [tenancy
async def test_scoped_service_works_for_its_tenant(db_service: PostgresqlDatabaseService) -> None:
    tenant_id, user_id = uuid4(), uuid4()
    async with db_service.session() as session:
        await session.execute(text("INSERT INTO tenants VALUES (:id, 'a tenant')"), {"id": tenant_id})
    scoped = db_service.scoped(tenant_id=tenant_id, user_id=user_id)
    await scoped.ingest([DOCUMENT])
    await db_service.ingest([DOCUMENT])
    async with db_service.session() as session:
        rows = await session.execute(text("SELECT tenant_id, count(*) FROM chunks GROUP BY 1"))
        assert {tuple(row) for row in rows} == {(tenant_id, 3), (None, 3)}


# tenancy]


async def test_read_only_service_refuses_to_write(db_service: PostgresqlDatabaseService) -> None:
    await db_service.ingest([DOCUMENT])
    reader = db_service.scoped(read_only=True)
    assert len(await reader.search_vector(EAST)) == 2
    with pytest.raises(InternalError, match="read-only transaction"):
        await reader.ingest([NewDocument("b.md", [NewChunk("text")])])


@pytest.fixture
def config(committing_database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatabaseConfig:
    """Settings that lead to the database that may commit."""
    monkeypatch.setenv("DATABASE_URL", committing_database.url.render_as_string(hide_password=False))
    return DatabaseConfig.load(tmp_path)


async def test_many_at_once_share_the_pool(config: DatabaseConfig) -> None:
    async with PostgresqlDatabaseService.from_config(config) as service:
        await service.check_health()
        documents = [NewDocument(f"{number}.md", [NewChunk("text", EAST)]) for number in range(40)]
        await asyncio.gather(*(service.ingest([document]) for document in documents))
        async with service.session() as session:
            assert await session.scalar(text("SELECT count(*) FROM chunks")) == 40


async def test_cancelled_ingest_leaves_its_document_out(config: DatabaseConfig) -> None:
    async with PostgresqlDatabaseService.from_config(config) as service:
        await service.ingest([DOCUMENT])
        copying = asyncio.Event()

        def documents() -> Iterator[NewDocument]:
            for _ in range(10_000):
                copying.set()
                yield NewDocument("big.md", [NewChunk("word " * 200, EAST) for _ in range(500)])

        task = asyncio.create_task(service.ingest(documents()))
        await copying.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with service.session() as session:
            wrong = await session.scalar(text(INCOMPLETE))
            assert wrong == 0
        assert [hit.text for hit in await service.search_text("east")] == ["east"]


INCOMPLETE = """
    SELECT count(*) FROM documents
    WHERE total_chunks <> (SELECT count(*) FROM chunks WHERE chunks.document_id = documents.document_id)
"""


def test_nothing_of_the_tests_before_is_left(db_connection: Session) -> None:
    assert db_connection.scalar(text("SELECT count(*) FROM documents")) == 0
