"""The asynchronous face of the data layer, for an application's request handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypedDict, TypeVar

from rag_factory.database import chat, hierarchy, ingest, search
from rag_factory.database.connection import DatabaseConnection
from rag_factory.database.models import Document
from rag_factory.database.search_options import DEFAULT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Unpack
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

    from rag_factory.database.config import DatabaseConfig
    from rag_factory.database.encoding import Embedding
    from rag_factory.database.search_options import Filters, HybridOptions, VectorFilters
    from rag_factory.errors import DocumentError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class PostgresqlDatabaseService:
    """What the plain modules do, each call in an asynchronous session and a transaction of its own.

    Each method is documented where its work is done: `ingest`, `search`, `hierarchy` and `chat`, which also
    take the sessions of `DatabaseConnection` directly. To do several things in one transaction:

        async with service.session() as session:
            hits = await session.run_sync(search_text, "rollback")
            section = await session.run_sync(expand, hits[0].chunk_id)

    Use it with `async with`, which closes what it opened.
    database: a DatabaseConnection; or somebody else's engine or connection, which stays open.
    """

    def __init__(self, database: DatabaseConnection | AsyncEngine | AsyncConnection) -> None:
        if not isinstance(database, DatabaseConnection):
            database = DatabaseConnection.on(database)
        self._database = database
        self._context = _Context()

    @classmethod
    def from_config(cls, config: DatabaseConfig) -> Self:
        """Make one on the settings' database. Raises SettingsError: DATABASE_URL is not set."""
        return cls(DatabaseConnection(config))

    def scoped(
        self, *, tenant_id: UUID | None = None, user_id: UUID | None = None, read_only: bool = False
    ) -> Self:
        """The same service for one tenant and user, or for reading only: see `DatabaseConnection`."""
        service = type(self)(self._database)
        service._context = _Context(tenant_id=tenant_id, user_id=user_id, read_only=read_only)
        return service

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._database.aclose()

    def session(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Lend a session for a block, which is one transaction."""
        return self._database.async_session(**self._context)

    async def check_health(self) -> None:
        """Make one round trip. Raises RagFactoryError: the database doesn't answer."""
        await self._database.async_check_health()

    async def get_document(self, document_id: UUID) -> Document | None:
        """The document of that id."""
        async with self.session() as session:
            return await session.get(Document, document_id)

    async def delete_document(self, document_id: UUID) -> bool:
        """Delete a document with its chunks. Returns whether it was there."""
        async with self.session() as session:
            document = await session.get(Document, document_id)
            if document is not None:
                await session.delete(document)
            return document is not None

    async def ingest(
        self,
        documents: Iterable[ingest.NewDocument],
        *,
        on_progress: Callable[[ingest.IngestReport], None] | None = None,
        on_error: Callable[[DocumentError], None] | None = None,
    ) -> ingest.IngestReport:
        """Store documents; see `ingest.ingest`. The event loop waits while rows are encoded."""
        return await self._run(ingest.ingest, documents, on_progress=on_progress, on_error=on_error)

    async def search_vector(
        self,
        embedding: Embedding,
        *,
        limit: int = DEFAULT_LIMIT,
        metric: search.Metric = "cosine",
        **options: Unpack[VectorFilters],
    ) -> list[search.Hit]:
        """Find the chunks whose embedding is nearest; see `search.search_vector`."""
        return await self._run(search.search_vector, embedding, limit=limit, metric=metric, **options)

    async def search_text(
        self, query: str, *, limit: int = DEFAULT_LIMIT, **filters: Unpack[Filters]
    ) -> list[search.Hit]:
        """Find the chunks that hold the words of a query; see `search.search_text`."""
        return await self._run(search.search_text, query, limit=limit, **filters)

    async def search_hybrid(
        self,
        query: str,
        embedding: Embedding,
        *,
        limit: int = DEFAULT_LIMIT,
        **options: Unpack[HybridOptions],
    ) -> list[search.HybridHit]:
        """Find chunks by words and by embedding; see `search.search_hybrid`."""
        return await self._run(search.search_hybrid, query, embedding, limit=limit, **options)

    async def ancestors(self, chunk_id: UUID, *, max_depth: int = hierarchy.DEEPEST) -> list[hierarchy.Node]:
        """The chunk's parent, its parent, and so on; see `hierarchy.ancestors`."""
        return await self._run(hierarchy.ancestors, chunk_id, max_depth=max_depth)

    async def descendants(
        self, chunk_id: UUID, *, max_depth: int = hierarchy.DEEPEST
    ) -> list[hierarchy.Node]:
        """All that is below a chunk, by depth; see `hierarchy.descendants`."""
        return await self._run(hierarchy.descendants, chunk_id, max_depth=max_depth)

    async def siblings(self, chunk_id: UUID) -> list[hierarchy.Node]:
        """The other chunks of the same parent; see `hierarchy.siblings`."""
        return await self._run(hierarchy.siblings, chunk_id)

    async def subtree(self, chunk_id: UUID, *, max_depth: int = hierarchy.DEEPEST) -> list[hierarchy.Node]:
        """A chunk and all that is below it in document order; see `hierarchy.subtree`."""
        return await self._run(hierarchy.subtree, chunk_id, max_depth=max_depth)

    async def expand(self, chunk_id: UUID, *, levels: int = 1) -> hierarchy.Section:
        """Widen a chunk to the section around it; see `hierarchy.expand`."""
        return await self._run(hierarchy.expand, chunk_id, levels=levels)

    async def find_problems(self, document_id: UUID | None = None) -> list[hierarchy.Problem]:
        """What is wrong with the hierarchy; see `hierarchy.find_problems`."""
        return await self._run(hierarchy.find_problems, document_id)

    # [chat
    async def start_conversation(self, *, user_id: UUID | None = None, title: str | None = None) -> UUID:
        """Begin a conversation; see `chat.start_conversation`."""
        return await self._run(chat.start_conversation, user_id=user_id, title=title)

    async def append_message(
        self,
        conversation_id: UUID,
        role: chat.Role,
        content: str,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> chat.Turn:
        """Add a message at the end of a conversation; see `chat.append_message`."""
        return await self._run(chat.append_message, conversation_id, role, content, metadata=metadata)

    async def read_messages(
        self,
        conversation_id: UUID,
        *,
        limit: int = chat.DEFAULT_PAGE,
        after: chat.Place | None = None,
        before: chat.Place | None = None,
    ) -> list[chat.Turn]:
        """Read a page of a conversation; see `chat.read_messages`."""
        return await self._run(chat.read_messages, conversation_id, limit=limit, after=after, before=before)

    async def last_messages(
        self, conversation_id: UUID, *, limit: int = chat.DEFAULT_PAGE
    ) -> list[chat.Turn]:
        """Read the end of a conversation; see `chat.last_messages`."""
        return await self._run(chat.last_messages, conversation_id, limit=limit)

    async def remember(
        self,
        user_id: UUID,
        content: str,
        *,
        importance: float = chat.DEFAULT_IMPORTANCE,
        metadata: Mapping[str, Any] | None = None,
    ) -> UUID:
        """Keep something of a user; see `chat.remember`."""
        return await self._run(chat.remember, user_id, content, importance=importance, metadata=metadata)

    async def top_memories(self, user_id: UUID, *, limit: int = chat.DEFAULT_MEMORIES) -> list[chat.Memory]:
        """Read the most important memories of a user; see `chat.top_memories`."""
        return await self._run(chat.top_memories, user_id, limit=limit)

    # chat]

    async def _run(
        self,
        function: Callable[Concatenate[Session, Parameters], Result],
        *arguments: Parameters.args,
        **options: Parameters.kwargs,
    ) -> Result:
        async with self.session() as session:
            return await session.run_sync(function, *arguments, **options)


class _Context(TypedDict, total=False):
    tenant_id: UUID | None  # [tenancy]
    user_id: UUID | None
    read_only: bool
