"""A small corpus to begin with: the project's own documentation, cut, embedded and stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert

from rag_factory.database.embedding import OfflineEmbedder
from rag_factory.database.embedding import load_embedder as make_embedder
from rag_factory.database.ingest import IngestReport, NewChunk, NewDocument, ingest
from rag_factory.database.markdown import PARAGRAPH, split_markdown
from rag_factory.database.models import Collection, Document
from rag_factory.database.models.documents import DIMENSIONS
from rag_factory.database.search import search_hybrid
from rag_factory.database.search_options import LARGEST_LIMIT, check_limit, read_query
from rag_factory.errors import DocumentError, RagFactoryError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sqlalchemy.orm import Session

    from rag_factory.database.embedding import Embedder, Embeddings
    from rag_factory.database.search import HybridHit

# Its id is the same in every database, so that two who seed at once make one collection.
COLLECTION_ID = uuid5(NAMESPACE_URL, "https://rag-factory.invalid/collections/documentation")
NAME, DESCRIPTION = "documentation", "The project's own documentation."
# Where Markdown is looked for, from the project's root.
PATTERNS = ("*.md", "docs/**/*.md", "tests/*.md", "benchmarks/*.md")
# A change of how documents are cut has them all stored anew.
FORM = "1"
# How many more hits are looked for than sections are given.
OVERFETCH = 4


@dataclass(frozen=True)
class SeedReport:
    """What seeding did. removed: documents whose files are gone."""

    ingested: IngestReport
    removed: int


def load_embedder(name: str | None) -> Embedder:
    """Make the embedder of this name, `package.module:Class`; None: the one that needs no model.

    Raises SettingsError: there is none of that name, or its embeddings have another length than the column.
    """
    if name is None:
        return OfflineEmbedder(DIMENSIONS)
    setting = f"embedder in [tool.rag_factory] of pyproject.toml is {name}"
    embedder = make_embedder(name, setting)
    if embedder.dimensions != DIMENSIONS:
        raise SettingsError(
            f"{setting}, of {embedder.dimensions} dimensions; chunks.embedding has {DIMENSIONS}.",
            fix="Use a model of that length, or change the column: docs/howto/change-the-embedding-model.md",
        )
    return embedder


def find_files(root: Path) -> list[Path]:
    """The Markdown files of the documentation, in their order."""
    return sorted({path for pattern in PATTERNS for path in root.glob(pattern) if path.is_file()})


def seed(
    session: Session,
    root: Path,
    embedder: Embedder,
    on_progress: Callable[[IngestReport], None] | None = None,
) -> SeedReport:
    """Have the collection hold the documentation as it is: files that changed replaced, those gone removed.

    Commits the session. To do it again changes nothing. Raises DocumentError: a file can't be stored.
    Raises RagFactoryError: the embedder failed. Either way what was stored stays, and none is removed.
    """
    values = {"collection_id": COLLECTION_ID, "name": NAME, "description": DESCRIPTION}
    session.execute(insert(Collection).values(values).on_conflict_do_nothing())
    session.commit()
    files = find_files(root)
    report = ingest(session, (_read(root, path, embedder) for path in files), on_progress=on_progress)
    gone = delete(Document).where(
        Document.collection_id == COLLECTION_ID,
        Document.source_path.not_in([path.relative_to(root).as_posix() for path in files]),
    )
    removed = session.execute(gone.returning(Document.document_id)).all()
    session.commit()
    return SeedReport(report, len(removed))


def ask(session: Session, query: str, embedder: Embedder, limit: int) -> list[HybridHit]:
    """Find the sections that answer a question best, by words and by embedding; one hit of each section.

    limit: how many at most, 1 to 2,500. Raises UsageError: the query or the limit is wrong.
    Raises RagFactoryError: the embedder failed.
    """
    # Before the embedder, which may cost money.
    read_query(query)
    check_limit(limit, largest=LARGEST_LIMIT // OVERFETCH)
    [embedding] = _embed(embedder, [query])
    # A section and its paragraphs are found together: more are looked for than are given.
    hits = search_hybrid(session, query, embedding, limit=OVERFETCH * limit)
    best: dict[UUID, HybridHit] = {}
    for hit in hits:
        section = hit.parent_chunk_id if hit.hierarchy_level >= PARAGRAPH else None
        best.setdefault(section or hit.chunk_id, hit)
    return list(best.values())[:limit]


def is_seeded(session: Session) -> bool:
    """Whether there is any document to be found."""
    return session.scalar(select(Document.document_id).limit(1)) is not None


def _read(root: Path, path: Path, embedder: Embedder) -> NewDocument:
    content = path.read_bytes()
    source_path = path.relative_to(root).as_posix()
    digest = hashlib.sha256(f"{FORM} {embedder.name} {embedder.dimensions}\n".encode() + content)
    return NewDocument(
        path.name,
        _cut(content, source_path, path.stem, embedder),
        source_path=source_path,
        collection_id=COLLECTION_ID,
        content_hash=digest.hexdigest(),
    )


def _cut(content: bytes, source_path: str, title: str, embedder: Embedder) -> Iterator[NewChunk]:
    """The chunks of a file. It runs only for one that isn't stored as it is.

    Raises DocumentError: it is not UTF-8.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"it is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}"
        raise DocumentError(source_path, None, what, fix="Save it as UTF-8.") from error
    pieces = split_markdown(text, title)
    # A paragraph alone often doesn't say what it is about; its headings do.
    texts = [" ".join((*piece.headings, piece.text)) for piece in pieces]
    for piece, embedding in zip(pieces, _embed(embedder, texts), strict=True):
        yield NewChunk(
            piece.text,
            embedding,
            {"headings": list(piece.headings)},
            level=piece.level,
            parent=piece.parent,
        )


def _embed(embedder: Embedder, texts: Sequence[str]) -> Embeddings:
    """Compute embeddings. Raises RagFactoryError: the embedder failed, or gave not one for each text."""
    try:
        embeddings = embedder.embed(texts)
        number = len(embeddings)
    except Exception as error:  # whatever somebody else's code raises, such as for want of a network
        what = f"{type(error).__name__}: {error}"
        raise RagFactoryError(f"The embedder {embedder.name} failed: {what}") from error
    if number != len(texts):
        raise RagFactoryError(
            f"The embedder {embedder.name} gave {number} embeddings for {len(texts)} texts."
        )
    return embeddings
