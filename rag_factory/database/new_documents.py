"""Documents that are to be stored: what they are given as, their checks, and their rows."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from rag_factory.database.binary_copy import NULL, Rows, encode_field
from rag_factory.database.encoding import encode_json, encode_text, encode_vector
from rag_factory.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from hashlib import _Hash as Hash

    from rag_factory.database.encoding import Embedding

# The columns of chunks in the order of the rows; the first is left to whoever knows the document's id.
COLUMNS = (
    "document_id",
    "chunk_id",
    "parent_chunk_id",
    "chunk_index",
    "hierarchy_level",
    "text",
    "embedding",
    "metadata",
)
DEEPEST_LEVEL = 3
LARGEST_INDEX = 2**31 - 1
_BEGINNING = struct.Struct(">hi")  # number of columns, length of the first
_ID = struct.Struct(">i12si")
_PLACE = struct.Struct(">iiih")  # index and level, each after its length
_CONTENT = struct.Struct(">iii")
_UUID_BYTES = 16


@dataclass(frozen=True)
class NewChunk:
    """A piece of a document that is to be stored.

    embedding: finite as float32, shape (dimensions of chunks.embedding,); None: to be computed later.
    level: 0 document, 1 section, 2 paragraph, 3 sentence.
    parent: the index of a chunk before it, of a smaller level; None: it has none.
    index: its place in the document, unique there; None: one after the chunk before it.
    """

    text: str
    embedding: Embedding | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    level: int = 0
    parent: int | None = None
    index: int | None = None


@dataclass(frozen=True)
class NewDocument:
    """A document that is to be stored.

    chunks: in their order, at least one. A generator is run only if the document is not stored already.
    source_path: what the document is known by in its tenant and collection, such as a path or an address;
        None: by nothing, and each time it is ingested it is another one.
    content_hash: of what the chunks are made from, such as `hashlib.sha256(file).hexdigest()`. When a stored
        document has the same, its chunks, embeddings and all, needn't be computed.
        None: the hash of all that is to be stored, embeddings included.
    """

    filename: str
    chunks: Iterable[NewChunk]
    source_path: str | None = None
    collection_id: UUID | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    content_hash: str | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.filename if self.source_path is None else self.source_path


@dataclass(frozen=True)
class EncodedDocument:
    """A document that was checked, and its chunks as rows for COPY.

    document_id: if it turns out to be new. metadata: JSON. rows: without what `beginning` writes.
    """

    document: NewDocument
    document_id: UUID
    content_hash: str
    metadata: str
    rows: Rows

    @property
    def key(self) -> object:
        """What it is known by in its tenant."""
        path = self.document.source_path
        return self.document_id if path is None else (self.document.collection_id, path)


def encode_document(document: NewDocument, dimensions: int | None) -> EncodedDocument:
    """Check a document and encode it. dimensions: of its embeddings; None for any.

    Raises DocumentError: what is wrong with it. What its iterable of chunks raises passes through.
    """
    metadata = _encode_names(document)
    rows = Rows()
    try:
        content = hashlib.sha256(encode_field(document.filename.encode()) + encode_field(metadata))
        digest = _encode_chunks(document, dimensions, rows, content)
    except BaseException:
        rows.close()
        raise
    content_hash = document.content_hash or digest
    return EncodedDocument(document, uuid4(), content_hash, metadata.decode(), rows)


def is_storable(document: NewDocument) -> bool:
    """Whether all but the chunks can be stored."""
    try:
        _encode_names(document)
    except DocumentError:
        return False
    return True


def beginning(document_id: UUID) -> bytes:
    """How each row of a document begins."""
    return _BEGINNING.pack(len(COLUMNS), len(document_id.bytes)) + document_id.bytes


def _encode_names(document: NewDocument) -> bytes:
    """Check all but the chunks. Returns the metadata as JSON."""
    try:
        for name in ("filename", "source_path", "content_hash"):
            value = getattr(document, name)
            if value is None and name != "filename":
                continue
            if not _named(name, encode_text, value):
                raise ValueError(f"its {name} is empty")
        return _named("metadata", encode_json, document.metadata)
    except ValueError as error:
        raise DocumentError(document.name, None, str(error)) from error


def _encode_chunks(document: NewDocument, dimensions: int | None, rows: Rows, content: Hash) -> str:
    """Check the chunks and add their rows. Returns the hash of all that is stored."""
    # One prefix and the index make the ids, so that a document's lie together in their index: a UUID of
    # version 8, https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-8
    prefix = bytearray(os.urandom(12))
    prefix[6] = 0x80 | prefix[6] & 0x0F
    prefix[8] = 0x80 | prefix[8] & 0x3F
    encode_embedding = partial(encode_vector, dimensions=dimensions)
    levels: dict[int, int] = {}
    index = -1
    for chunk in document.chunks:
        index = index + 1 if chunk.index is None else chunk.index
        parent = -1 if chunk.parent is None else chunk.parent
        try:
            _check_place(chunk, index, levels)
            place = (
                _ID.pack(_UUID_BYTES, prefix, index)
                + (NULL if chunk.parent is None else _ID.pack(_UUID_BYTES, prefix, parent))
                + _PLACE.pack(4, index, 2, chunk.level)
            )
            embedding = NULL
            if chunk.embedding is not None:
                embedding = encode_field(_named("embedding", encode_embedding, chunk.embedding))
            stored = (
                encode_field(_named("text", encode_text, chunk.text))
                + embedding
                # Binary jsonb is a version number and the text.
                + encode_field(b"\x01" + _named("metadata", encode_json, chunk.metadata))
            )
        except ValueError as error:
            raise DocumentError(document.name, index, str(error)) from error
        except (TypeError, struct.error) as error:
            what = "its index, its level or its parent is not a whole number"
            raise DocumentError(document.name, index, what) from error
        levels[index] = chunk.level
        rows.append(place + stored)
        if document.content_hash is None:
            content.update(_CONTENT.pack(index, parent, chunk.level) + stored)
    if not levels:
        raise DocumentError(document.name, None, "it has no chunks")
    return content.hexdigest()


def _check_place(chunk: NewChunk, index: int, levels: Mapping[int, int]) -> None:
    """Check index, level and parent. levels: those of the chunks before, by index."""
    if not 0 <= index <= LARGEST_INDEX:
        raise ValueError(f"its index is not from 0 to {LARGEST_INDEX}")
    if index in levels:
        raise ValueError("another chunk has this index already")
    if not 0 <= chunk.level <= DEEPEST_LEVEL:
        raise ValueError(f"its level {chunk.level} is not from 0 to {DEEPEST_LEVEL}")
    if chunk.parent is None:
        return
    if chunk.parent not in levels:
        raise ValueError(f"its parent {chunk.parent} is not among the document's chunks before it")
    if levels[chunk.parent] >= chunk.level:
        raise ValueError(
            f"its level {chunk.level} is not below level {levels[chunk.parent]} of its parent {chunk.parent}"
        )


def _named(name: str, encode: Callable[[Any], bytes], value: Any) -> bytes:
    """Encode a value. Raises ValueError: what is wrong with it, with its name."""
    try:
        return encode(value)
    except ValueError as error:
        raise ValueError(f"its {name} {error}") from error
