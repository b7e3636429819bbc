"""The asynchronous face of the database, for an application's request handlers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rag_factory.database.connection import NO_ENVIRONMENT
from rag_factory.database.models import Chunk, Document
from rag_factory.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

    from rag_factory.database.config import DatabaseConfig


@dataclass(frozen=True)
class Hit:
    """A chunk that a search found. distance: cosine, 0 (same direction) to 2 (opposite)."""

    chunk: Chunk
    distance: float


class PostgresqlDatabaseService:
    """Documents and their chunks. Use it with `async with`, which closes its engine.

    bind: an engine, or one connection whose transaction is somebody else's, as in a test.
    """

    def __init__(self, bind: AsyncEngine | AsyncConnection) -> None:
        self._bind = bind

    @classmethod
    def from_config(cls, config: DatabaseConfig) -> Self:
        """A service on the settings' database, with a pool of their sizes.

        Raises SettingsError: DATABASE_URL is not set.
        """
        if config.url is None:
            raise SettingsError(
                "DATABASE_URL is not set.", fix="Set it: invoke db.url shows the embedded one."
            )
        return cls(
            create_async_engine(
                "postgresql+psycopg://",
                pool_pre_ping=True,
                pool_size=config.db_pool_size,
                max_overflow=config.db_max_overflow,
                pool_timeout=config.db_pool_timeout_seconds,
                connect_args=NO_ENVIRONMENT
                | {"connect_timeout": config.db_connect_timeout_seconds}
                | config.url.libpq,
            )
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._bind, AsyncEngine):
            await self._bind.dispose()

    def session(self) -> AsyncSession:
        """A session of its own, to be used with `async with`."""
        return AsyncSession(bind=self._bind, join_transaction_mode="create_savepoint", expire_on_commit=False)

    async def check_health(self) -> None:
        """Make one round trip. Raises whatever the driver raises when the database doesn't answer."""
        async with self.session() as session:
            await session.execute(text("SELECT 1"))

    async def add_document(
        self, filename: str, chunks: Iterable[tuple[str, Sequence[float] | None]] = ()
    ) -> UUID:
        """Store a document and its chunks, in their order, in one transaction. Returns the document's id.

        chunks: each a text and its embedding, float32, shape (DIMENSIONS,), or None.
        """
        async with self.session() as session, session.begin():
            document = Document(filename=filename)
            session.add(document)
            await session.flush()
            rows = [
                Chunk(document_id=document.document_id, chunk_index=index, text=content, embedding=embedding)
                for index, (content, embedding) in enumerate(chunks)
            ]
            session.add_all(rows)
            document.total_chunks = len(rows)
            return document.document_id

    async def get_document(self, document_id: UUID) -> Document | None:
        """The document of that id."""
        async with self.session() as session:
            return await session.get(Document, document_id)

    async def delete_document(self, document_id: UUID) -> bool:
        """Delete a document with its chunks. Returns whether it was there."""
        async with self.session() as session, session.begin():
            document = await session.get(Document, document_id)
            if document is None:
                return False
            await session.delete(document)
            return True

    async def search_chunks(self, embedding: Sequence[float], limit: int = 10) -> list[Hit]:
        """The chunks nearest to an embedding, nearest first. embedding: float32, shape (DIMENSIONS,)."""
        distance = Chunk.embedding.cosine_distance(embedding)
        nearest = select(Chunk, distance).where(Chunk.embedding.is_not(None)).order_by(distance).limit(limit)
        # The index gives no more rows than it considers, 40 unless it is told; 1000 is its limit.
        considered = text("SELECT set_config('hnsw.ef_search', :number, true)")
        async with self.session() as session:
            await session.execute(considered, {"number": str(min(max(limit, 40), 1000))})
            return [Hit(chunk, float(value)) for chunk, value in await session.execute(nearest)]
