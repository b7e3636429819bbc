"""Store documents and their chunks, many at a time, by binary COPY."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import length_hint
from typing import TYPE_CHECKING

from sqlalchemy import text

from rag_factory.database.binary_copy import MEMORY_BYTES, send
from rag_factory.database.new_documents import (
    COLUMNS,
    EncodedDocument,
    NewChunk,
    NewDocument,
    beginning,
    encode_document,
    is_storable,
)
from rag_factory.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session

__all__ = ["IngestReport", "NewChunk", "NewDocument", "ingest"]

# How far documents are read ahead, to look up many at once; a generator of chunks counts as none.
AHEAD_DOCUMENTS = 256
AHEAD_CHUNKS = 1000
# How many are stored in one transaction, unless MEMORY_BYTES of rows are reached before.
BATCH_DOCUMENTS = 1000
SEND_BYTES = 1_000_000

_COLUMNS = ", ".join(COLUMNS)
_STAGED = "pg_temp.ingested_chunks"
_AS_ENCODED = _COLUMNS.replace("embedding", "embedding::vector AS embedding")

_READ_TARGET = text("""
    SELECT nullif(atttypmod, -1) AS dimensions,
           row_security_active('chunks'::regclass) OR typname <> 'vector' AS staged,
           current_tenant_id() IS NOT NULL AS has_tenant
    FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
    WHERE attrelid = 'chunks'::regclass AND attname = 'embedding'
""")
# Written out for NULLs, which an index finds by IS NULL and not by IS NOT DISTINCT FROM.
_FIND = """
    SELECT given.position, documents.content_hash
    FROM unnest(CAST(:collections AS uuid[]), CAST(:paths AS text[]))
         WITH ORDINALITY AS given (collection_id, source_path, position)
    JOIN documents ON documents.source_path = given.source_path AND documents.status = 'completed'
        AND documents.tenant_id {tenant} AND documents.collection_id = given.collection_id
    UNION ALL
    SELECT given.position, documents.content_hash
    FROM unnest(CAST(:collections AS uuid[]), CAST(:paths AS text[]))
         WITH ORDINALITY AS given (collection_id, source_path, position)
    JOIN documents ON documents.source_path = given.source_path AND documents.status = 'completed'
        AND documents.tenant_id {tenant} AND documents.collection_id IS NULL
    WHERE given.collection_id IS NULL
"""
_FIND_COLLECTIONS = text("SELECT collection_id FROM collections WHERE collection_id = ANY(:ids)")
# In the order of the index, so that two processes never wait for each other crosswise.
_STORE = text("""
    INSERT INTO documents AS stored
        (document_id, filename, source_path, collection_id, content_hash, total_chunks, metadata, status)
    SELECT document_id, filename, source_path, collection_id, content_hash, total_chunks, metadata::jsonb,
           'completed'
    FROM unnest(
        CAST(:document_id AS uuid[]), CAST(:filename AS text[]), CAST(:source_path AS text[]),
        CAST(:collection_id AS uuid[]), CAST(:content_hash AS text[]), CAST(:total_chunks AS integer[]),
        CAST(:metadata AS text[])
    ) AS given (document_id, filename, source_path, collection_id, content_hash, total_chunks, metadata)
    ORDER BY collection_id, source_path
    ON CONFLICT (tenant_id, collection_id, source_path) WHERE source_path IS NOT NULL
    DO UPDATE SET filename = excluded.filename, content_hash = excluded.content_hash,
        total_chunks = excluded.total_chunks, metadata = excluded.metadata, status = excluded.status
    WHERE (stored.content_hash, stored.status) IS DISTINCT FROM (excluded.content_hash, excluded.status)
    RETURNING document_id, collection_id, source_path, xmax = 0 AS added
""")
_DELETE_CHUNKS = text("DELETE FROM chunks WHERE document_id = ANY(:ids)")


@dataclass(frozen=True)
class IngestReport:
    """How many documents were added, replaced, found unchanged, and failed (skipped by `on_error`).

    chunks: how many were stored, with those added and replaced.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    failed: int = 0
    chunks: int = 0


def ingest(
    session: Session,
    documents: Iterable[NewDocument],
    *,
    on_progress: Callable[[IngestReport], None] | None = None,
    on_error: Callable[[DocumentError], None] | None = None,
) -> IngestReport:
    """Store documents, in bounded memory however many; however this ends, each is whole or not there.

    A document whose content hash is stored already is left alone. One with another hash is replaced, chunks
    and all, under its old document_id. Processes that ingest the same document wait for each other, and it
    is stored once. Commits the session: before it asks a document for its chunks, which may take long to
    compute, and after each batch of some megabytes.
    A role that row level security confines needs the right to temporary tables, which all have by default.

    on_progress: called now and then with what was done so far.
    on_error: called with what is wrong with a document, which is skipped.
    Raises DocumentError, when there is no on_error: a document can't be stored, because of wrong dimensions,
    NaN or infinity, a NUL character, no chunks, an index that occurs twice, a parent that isn't before its
    child and above it, or an unknown collection. What came before it is stored, what comes after is not.
    What the iterables raise passes through; the batches before stay.
    """
    return _Ingest(session, on_progress, on_error).run(documents)


class _Ingest:
    """One call of `ingest`: what was done, and the documents that wait to be stored."""

    def __init__(
        self,
        session: Session,
        on_progress: Callable[[IngestReport], None] | None,
        on_error: Callable[[DocumentError], None] | None,
    ) -> None:
        self._session = session
        self._on_progress = on_progress
        self._on_error = on_error
        self._report = IngestReport()
        self._waiting: dict[object, EncodedDocument] = {}
        self._waiting_bytes = 0
        target = session.execute(_READ_TARGET).one()
        self._dimensions: int | None = target.dimensions
        self._staged: bool = target.staged
        self._find = text(_FIND.format(tenant="= current_tenant_id()" if target.has_tenant else "IS NULL"))

    def run(self, documents: Iterable[NewDocument]) -> IngestReport:
        """Store them all."""
        try:
            for group in _read_ahead(documents):
                for document in self._without_known(group):
                    self._take(document)
                self._tell()
            self._store()
        finally:
            self._forget()
        return self._report

    def _without_known(self, group: Sequence[NewDocument]) -> Iterator[NewDocument]:
        """Leave out those that are stored as they are, and those of no collection that is there."""
        collections = [document.collection_id for document in group]
        # Of one without a hash nothing can be known; one that can't be stored is told when its turn comes.
        paths = [
            document.source_path if document.content_hash is not None and is_storable(document) else None
            for document in group
        ]
        found = self._session.execute(self._find, {"collections": collections, "paths": paths})
        hashes: dict[int, str] = {row.position - 1: row.content_hash for row in found}
        wanted = {each for each in collections if each is not None}
        there = set(self._session.scalars(_FIND_COLLECTIONS, {"ids": list(wanted)})) if wanted else wanted
        self._session.commit()
        for position, document in enumerate(group):
            if document.content_hash is not None and hashes.get(position) == document.content_hash:
                self._count(unchanged=1)
            elif document.collection_id is not None and document.collection_id not in there:
                what = f"its collection {document.collection_id} is not there"
                self._fail(DocumentError(document.name, None, what))
            else:
                yield document

    def _take(self, document: NewDocument) -> None:
        """Check and encode a document, and have it wait. Stores those that wait when they are enough."""
        try:
            encoded = encode_document(document, self._dimensions)
        except DocumentError as error:
            self._fail(error)
            return
        if encoded.key in self._waiting:  # one statement can't store the same one twice
            self._store()
        self._waiting[encoded.key] = encoded
        self._waiting_bytes += encoded.rows.size_bytes
        if self._waiting_bytes >= MEMORY_BYTES or len(self._waiting) >= BATCH_DOCUMENTS:
            self._store()

    def _fail(self, error: DocumentError) -> None:
        if self._on_error is None:
            self._store()
            raise error
        self._on_error(error)
        self._count(failed=1)

    def _store(self) -> None:
        """Store the documents that wait, in one transaction."""
        waiting = list(self._waiting.values())
        if waiting:
            stored = self._store_documents(waiting)
            replaced = [document_id for document_id, _, added in stored if not added]
            if replaced:
                self._session.execute(_DELETE_CHUNKS, {"ids": replaced})
            self._store_chunks([(document_id, encoded) for document_id, encoded, _ in stored])
            self._session.commit()
            self._forget()
            self._count(
                added=len(stored) - len(replaced),
                replaced=len(replaced),
                unchanged=len(waiting) - len(stored),
                chunks=sum(encoded.rows.count for _, encoded, _ in stored),
            )
            self._tell()

    def _store_documents(
        self, waiting: Sequence[EncodedDocument]
    ) -> list[tuple[UUID, EncodedDocument, bool]]:
        """Insert or update the documents. Returns those that weren't there as they are, each with its id."""
        values = {
            "document_id": [encoded.document_id for encoded in waiting],
            "filename": [encoded.document.filename for encoded in waiting],
            "source_path": [encoded.document.source_path for encoded in waiting],
            "collection_id": [encoded.document.collection_id for encoded in waiting],
            "content_hash": [encoded.content_hash for encoded in waiting],
            "total_chunks": [encoded.rows.count for encoded in waiting],
            "metadata": [encoded.metadata for encoded in waiting],
        }
        return [
            (
                row.document_id,
                self._waiting[
                    row.document_id if row.source_path is None else (row.collection_id, row.source_path)
                ],
                row.added,
            )
            for row in self._session.execute(_STORE, values)
        ]

    def _store_chunks(self, stored: Sequence[tuple[UUID, EncodedDocument]]) -> None:
        """Copy the rows into chunks; by a table beside it where COPY can't go.

        That is, where row level security forbids it, and where embeddings are stored as halfvec.
        """
        blocks = _join(
            block for document_id, encoded in stored for block in encoded.rows.blocks(beginning(document_id))
        )
        if not self._staged:
            send(self._session, f"COPY chunks ({_COLUMNS}) FROM STDIN WITH (FORMAT BINARY)", blocks)
            return
        self._session.execute(
            text(f"CREATE TEMPORARY TABLE {_STAGED} AS SELECT {_AS_ENCODED} FROM chunks WITH NO DATA")
        )
        send(self._session, f"COPY {_STAGED} ({_COLUMNS}) FROM STDIN WITH (FORMAT BINARY)", blocks)
        self._session.execute(text(f"INSERT INTO chunks ({_COLUMNS}) SELECT {_COLUMNS} FROM {_STAGED}"))
        self._session.execute(text(f"DROP TABLE {_STAGED}"))

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._report)

    def _forget(self) -> None:
        for encoded in self._waiting.values():
            encoded.rows.close()
        self._waiting.clear()
        self._waiting_bytes = 0

    def _count(self, **numbers: int) -> None:
        report = self._report
        self._report = replace(
            report, **{name: getattr(report, name) + number for name, number in numbers.items()}
        )


def _read_ahead(documents: Iterable[NewDocument]) -> Iterator[Sequence[NewDocument]]:
    """Group the documents, a few if they hold many chunks."""
    group: list[NewDocument] = []
    chunks = 0
    for document in documents:
        group.append(document)
        chunks += length_hint(document.chunks)
        if len(group) >= AHEAD_DOCUMENTS or chunks >= AHEAD_CHUNKS:
            yield group
            group = []
            chunks = 0
    if group:
        yield group


def _join(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Put small blocks together: each that is sent costs a call."""
    joined = bytearray()
    for block in blocks:
        joined += block
        if len(joined) >= SEND_BYTES:
            yield bytes(joined)
            joined.clear()
    if joined:
        yield bytes(joined)
