"""A small corpus to begin with: the project's own documentation, cut, embedded and stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert

from rag_factory.database.embedding import OfflineEmbedder
from rag_factory.database.ingest import IngestReport, NewChunk, NewDocument, ingest
from rag_factory.database.markdown import split_markdown
from rag_factory.database.models import Collection, Document
from rag_factory.database.models.documents import DIMENSIONS
from rag_factory.database.search import search_hybrid
from rag_factory.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sqlalchemy.orm import Session

    from rag_factory.database.embedding import Embedder
    from rag_factory.database.search import HybridHit

# Its id is the same in every database, so that two who seed at once make one collection.
COLLECTION_ID = uuid5(NAMESPACE_URL, "https://rag-factory.invalid/collections/documentation")
NAME, DESCRIPTION = "documentation", "The project's own documentation."
# Where Markdown is looked for, from the project's root.
PATTERNS = ("*.md", "docs/**/*.md", "tests/*.md", "benchmarks/*.md")
# A change of how documents are cut has them all stored anew.
FORM = "1"


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
    module, _, attribute = name.partition(":")
    try:
        embedder: Embedder = getattr(import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{setting}, which can't be made: {error}.",
            fix="Name a class that takes no arguments, like app.embedding:MyEmbedder.",
        ) from error
    if embedder.dimensions != DIMENSIONS:
        raise SettingsError(
            f"{setting}, of {embedder.dimensions} dimensions; chunks.embedding has {DIMENSIONS}.",
            fix="Use a model of that length, or change the column by a revision.",
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

    Raises UsageError: the query or the limit is wrong.
    """
    [embedding] = embedder.embed([query])
    # A section and its paragraphs are found together: more are looked for than are given.
    hits = search_hybrid(session, query, embedding, limit=4 * limit)
    best: dict[Any, HybridHit] = {}
    for hit in hits:
        best.setdefault((hit.document_id, tuple(hit.metadata.get("headings", [hit.chunk_id]))), hit)
    return list(best.values())[:limit]


def is_seeded(session: Session) -> bool:
    """Whether there is any document to be found."""
    return session.scalar(select(Document.document_id).limit(1)) is not None


def _read(root: Path, path: Path, embedder: Embedder) -> NewDocument:
    content = path.read_bytes()
    digest = hashlib.sha256(f"{FORM} {embedder.name} {embedder.dimensions}\n".encode() + content)
    return NewDocument(
        path.name,
        _cut(content.decode("utf-8"), path.stem, embedder),
        source_path=path.relative_to(root).as_posix(),
        collection_id=COLLECTION_ID,
        content_hash=digest.hexdigest(),
    )


def _cut(text: str, title: str, embedder: Embedder) -> Iterator[NewChunk]:
    """The chunks of a text. It runs only for a file that isn't stored as it is."""
    pieces = split_markdown(text, title)
    # A paragraph alone often doesn't say what it is about; its headings do.
    texts: Sequence[str] = [" ".join((*piece.headings, piece.text)) for piece in pieces]
    for piece, embedding in zip(pieces, embedder.embed(texts), strict=True):
        yield NewChunk(
            piece.text,
            embedding,
            {"headings": list(piece.headings)},
            level=piece.level,
            parent=piece.parent,
        )
