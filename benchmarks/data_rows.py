"""The rows that `data.py` measures with, and the rivals that store and search them.

As a program it ingests and prints by how much it grew: DOCUMENTS CHUNKS, the database's URL on stdin.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import numpy as np
import psycopg
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.connection import DatabaseConnection
from rag_factory.database.encoding import BinaryVector
from rag_factory.database.ingest import NewChunk, NewDocument, ingest
from rag_factory.database.models import Chunk, Collection, Document
from rag_factory.database.url import DatabaseUrl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt
    from sqlalchemy.orm import Session

    Vectors = npt.NDArray[np.float32]

DIMENSIONS = 384
DOCUMENTS, SMALL_DOCUMENTS, CHUNKS_EACH = 1000, 200, 100
CHUNKS = DOCUMENTS * CHUNKS_EACH
CLUSTERS = 500
SPREAD = 0.5  # of a cluster, as a part of the distance between their centres
ORM_BATCH = 1000
VOCABULARY = [f"{first}{second}" for first in ("ba", "do", "ki", "lu", "me") for second in "bdfgklmnprstvz"]
FIELDS = (
    "document_id", "chunk_id", "parent_chunk_id", "chunk_index", "hierarchy_level",
    "text", "embedding", "metadata",
)  # fmt: skip
TYPES = ("uuid", "uuid", "uuid", "int4", "int2", "text", "vector", "jsonb")


def embeddings(document: int) -> Vectors:
    """A document's embeddings, shape (CHUNKS_EACH, DIMENSIONS), each beside the centre of a cluster."""
    generator = np.random.default_rng(document)
    clusters = generator.integers(CLUSTERS, size=CHUNKS_EACH)
    noise = generator.standard_normal((CHUNKS_EACH, DIMENSIONS), dtype=np.float32)
    return centres()[clusters] + np.float32(SPREAD) * noise


def queries(number: int) -> Vectors:
    """What to search by: beside the centres too, and none of the stored ones."""
    generator = np.random.default_rng(10**9)
    noise = generator.standard_normal((number, DIMENSIONS), dtype=np.float32)
    return centres()[generator.integers(CLUSTERS, size=number)] + np.float32(SPREAD) * noise


def words(number: int) -> list[str]:
    """Two words each, which a hundredth of the chunks or so hold."""
    generator = np.random.default_rng(10**9 + 1)
    return [" ".join(generator.choice(VOCABULARY, size=2, replace=False)) for _ in range(number)]


def texts(document: int) -> list[str]:
    """A document's texts, 20 words each."""
    generator = np.random.default_rng(document + 10**6)
    return [" ".join(row) for row in generator.choice(VOCABULARY, size=(CHUNKS_EACH, 20))]


_centres: Vectors | None = None


def centres() -> Vectors:
    """The clusters' centres, made once."""
    global _centres  # noqa: PLW0603 - a cache
    if _centres is None:
        _centres = np.random.default_rng(0).standard_normal((CLUSTERS, DIMENSIONS), dtype=np.float32)
    return _centres


def new_documents(numbers: Sequence[int] = range(DOCUMENTS)) -> Iterator[NewDocument]:
    """The documents as `ingest` takes them."""
    for number in numbers:
        chunks = [
            NewChunk(text, embedding)
            for text, embedding in zip(texts(number), embeddings(number), strict=True)
        ]
        yield NewDocument(f"{number}.md", chunks, source_path=f"docs/{number}.md")


def one_document(documents: int) -> Iterator[NewDocument]:
    """All chunks in a single document."""
    chunks = (chunk for document in new_documents(range(documents)) for chunk in document.chunks)
    yield NewDocument("all.md", chunks, source_path="docs/all.md")


def copy_bare(url: DatabaseUrl, documents: Sequence[NewDocument]) -> None:
    """Store the same rows by psycopg's COPY alone, with pgvector's own adapter, in one transaction."""
    with psycopg.connect(url.plain) as connection:
        register_vector(connection)
        cursor = connection.cursor()
        ids = [uuid4() for _ in documents]
        with cursor.copy(
            "COPY documents (document_id, filename, source_path, total_chunks, content_hash) FROM STDIN"
        ) as copy:
            for number, (document_id, document) in enumerate(zip(ids, documents, strict=True)):
                names = (document.filename, document.source_path)
                copy.write_row((document_id, *names, CHUNKS_EACH, str(number)))
        empty = Jsonb({})
        with cursor.copy(f"COPY chunks ({', '.join(FIELDS)}) FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(TYPES)
            for document_id, document in zip(ids, documents, strict=True):
                for index, chunk in enumerate(document.chunks):
                    copy.write_row((document_id, uuid4(), None, index, 0, chunk.text, chunk.embedding, empty))


def add_all(session: Session, documents: Sequence[NewDocument]) -> None:
    """Store the same rows by the ORM, in one transaction."""
    objects: list[Any] = []
    for number, document in enumerate(documents):
        row = Document(
            document_id=uuid4(), filename=document.filename, source_path=document.source_path,
            total_chunks=CHUNKS_EACH, content_hash=str(number),
        )  # fmt: skip
        session.add(row)
        session.flush()
        objects += [
            Chunk(
                document_id=row.document_id, chunk_index=index, text=chunk.text, embedding=chunk.embedding
            )
            for index, chunk in enumerate(document.chunks)
        ]  # fmt: skip
        if len(objects) >= ORM_BATCH:
            session.add_all(objects)
            session.flush()
            session.expunge_all()
            objects.clear()


def replay(
    connection: psycopg.Connection[Any], statements: Sequence[tuple[str, Any]], vectors: Vectors
) -> float:
    """Run the statements of a search for each vector, as somebody would who knows no more than psycopg."""
    register_vector(connection)
    began = time.perf_counter()
    for vector in vectors:
        for statement, parameters in statements:
            if not parameters:
                connection.execute(statement.encode())
                continue
            values = {
                name: vector if isinstance(value, BinaryVector) else value
                for name, value in parameters.items()
            }
            rows = connection.execute(statement.encode(), values).fetchall()
    assert rows
    return time.perf_counter() - began


def fill(database: DatabaseConnection, tenants: Mapping[str, UUID], collections: dict[str, UUID]) -> None:
    """Store the documents: half of them of one tenant, a hundredth of another, the rest of none.

    Of the rest, the first tenth and hundredth of all documents have a collection each.
    """
    half, hundredth, tenth = DOCUMENTS // 2, DOCUMENTS // 100, DOCUMENTS // 10
    with database.session() as session:
        for name in ("tenth", "hundredth"):
            collection = Collection(name=name, description=f"a {name} of all documents")
            session.add(collection)
            session.flush()
            collections[name] = collection.collection_id
    store(database, range(half), tenants["half"], None)
    store(database, range(half, half + hundredth), tenants["hundredth"], None)
    start = half + hundredth
    store(database, range(start, start + tenth), None, collections["tenth"])
    store(database, range(start + tenth, start + tenth + hundredth), None, collections["hundredth"])
    store(database, range(start + tenth + hundredth, DOCUMENTS), None, None)


def store(
    database: DatabaseConnection, numbers: Sequence[int], tenant_id: UUID | None, collection_id: UUID | None
) -> None:
    """Store some documents, with metadata that a tenth, a hundredth and a thousandth of chunks have."""

    def documents() -> Iterator[NewDocument]:
        for number in numbers:
            draw = np.random.default_rng(number + 2 * 10**6).integers([10, 100, 1000], size=(CHUNKS_EACH, 3))
            chunks = [
                NewChunk(
                    text,
                    embedding,
                    {"tenth": int(some[0]), "hundredth": int(some[1]), "thousandth": int(some[2])},
                )
                for text, embedding, some in zip(texts(number), embeddings(number), draw, strict=True)
            ]
            yield NewDocument(f"{number}.md", chunks, f"docs/{number}.md", collection_id)

    with database.session(tenant_id=tenant_id) as session:
        ingest(session, documents())


def peak_megabytes() -> float:
    """The most memory that this process has had."""
    if sys.platform == "linux":  # where getrusage counts what the parent had as well
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> None:
    documents, chunks = map(int, sys.argv[1:])
    config = DatabaseConfig.load(Path(__file__).parent.parent)
    with DatabaseConnection(config, url=DatabaseUrl.parse(sys.stdin.read())) as database:
        some = chunks // CHUNKS_EACH
        with database.session() as session:
            next(new_documents())
            session.connection()
            began = peak_megabytes()
            report = ingest(session, one_document(some) if documents == 1 else new_documents(range(some)))
    if report.chunks != chunks:
        raise RuntimeError(f"{report.chunks} chunks were stored instead of {chunks}")
    print(f"{peak_megabytes() - began:.0f}")


if __name__ == "__main__":
    main()
