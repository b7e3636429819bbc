"""Ingest: what is stored, what is known again, what is refused, and that all of it is whole."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy import delete, func, select, text, update

from rag_factory.database import binary_copy
from rag_factory.database import ingest as ingest_module
from rag_factory.database.connection import DatabaseConnection
from rag_factory.database.hierarchy import find_problems
from rag_factory.database.ingest import IngestReport, NewChunk, NewDocument, ingest
from rag_factory.database.models import Chunk, Collection, Document
from rag_factory.database.models.documents import DIMENSIONS
from rag_factory.database.search import search_vector
from rag_factory.errors import DocumentError
from tests.unit.database.conftest import direction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session


def a_document(*texts: str, path: str | None = "docs/a.md", **more: Any) -> NewDocument:
    return NewDocument("a.md", [NewChunk(each) for each in texts or ("text",)], path, **more)


def stored(session: Session) -> list[tuple[str, int, str]]:
    """The path, index and text of each chunk."""
    rows = session.execute(
        select(Document.source_path, Chunk.chunk_index, Chunk.text)
        .join(Document, Document.document_id == Chunk.document_id)
        .order_by(Document.source_path, Chunk.chunk_index)
    )
    return [(row.source_path, row.chunk_index, row.text) for row in rows]


def count(session: Session, model: type[Document | Chunk] = Document) -> int:
    return session.scalar(select(func.count()).select_from(model)) or 0


def test_document_and_chunks_are_stored_with_all_they_have(db_connection: Session) -> None:
    chunks = [
        NewChunk("one ü 𝄞", direction(0), {"page": 1, "back\\u0000slash": ["\\", None]}),
        NewChunk("", None, level=1, parent=0, index=7),
        NewChunk("three", direction(1), level=3, parent=7),
    ]
    document = NewDocument("a.md", chunks, "docs/a.md", metadata={"lang": "de"}, content_hash="abc")
    assert ingest(db_connection, [document]) == IngestReport(added=1, chunks=3)
    row = db_connection.scalars(select(Document)).one()
    assert (row.filename, row.source_path, row.content_hash) == ("a.md", "docs/a.md", "abc")
    assert (row.total_chunks, row.metadata_, row.status) == (3, {"lang": "de"}, "completed")
    first, second, third = db_connection.scalars(select(Chunk).order_by(Chunk.chunk_index))
    assert [(each.chunk_index, each.text, each.hierarchy_level) for each in (first, second, third)] == [
        (0, "one ü 𝄞", 0),
        (7, "", 1),
        (8, "three", 3),
    ]
    assert [each.parent_chunk_id for each in (first, second, third)] == [
        None,
        first.chunk_id,
        second.chunk_id,
    ]
    assert first.metadata_ == {"page": 1, "back\\u0000slash": ["\\", None]}
    assert (list(first.embedding or ()), second.embedding) == (direction(0), None)
    assert find_problems(db_connection) == []


@pytest.mark.parametrize(
    "embedding",
    [
        pytest.param(np.asarray(direction(3, 0.5), dtype="float32"), id="float32"),
        pytest.param(np.asarray(direction(3, 0.5), dtype="float64"), id="float64"),
        pytest.param(np.asarray(direction(3, 0.5), dtype="float16"), id="float16"),
        pytest.param(np.asarray(direction(3, 0.5), dtype=">f4"), id="big-endian"),
        pytest.param(np.asarray(direction(3, 0.5) * 2, dtype="float32")[DIMENSIONS:], id="view"),
        pytest.param(np.repeat(direction(3, 0.5), 2)[::2], id="stride"),
        pytest.param(direction(3, 0.5), id="list"),
        pytest.param(tuple(direction(3, 0.5)), id="tuple"),
    ],
)
def test_embedding_is_kept_whatever_it_comes_in(db_connection: Session, embedding: Any) -> None:
    ingest(db_connection, [NewDocument("a.md", [NewChunk("text", embedding)])])
    kept = db_connection.scalars(select(Chunk.embedding)).one()
    assert list(kept or ()) == direction(3, 0.5)


def test_embedding_may_have_whole_numbers(db_connection: Session) -> None:
    whole = [int(value) for value in direction(2)]
    ingest(db_connection, [NewDocument("a.md", [NewChunk("", whole), NewChunk("", np.array(whole))])])
    kept = db_connection.scalars(select(Chunk.embedding)).all()
    assert [list(each or ()) for each in kept] == [direction(2)] * 2


def test_same_document_again_changes_nothing(db_connection: Session) -> None:
    document = NewDocument("a.md", [NewChunk("text", direction(0))], "docs/a.md")
    ingest(db_connection, [document])
    everything = text(
        "SELECT documents.*::text, chunks.*::text, chunks.xmin FROM documents JOIN chunks USING (document_id)"
    )
    before = db_connection.execute(everything).all()
    assert ingest(db_connection, [document]) == IngestReport(unchanged=1)
    assert db_connection.execute(everything).all() == before


@pytest.mark.parametrize(
    "change",
    [
        {"filename": "b.md"},
        {"metadata": {"lang": "de"}},
        {"chunks": [NewChunk("other", direction(0))]},
        {"chunks": [NewChunk("text", direction(1))]},
        {"chunks": [NewChunk("text", direction(0), {"page": 1})]},
        {"chunks": [NewChunk("text", direction(0), level=1)]},
        {"chunks": [NewChunk("text", direction(0), index=1)]},
        {"chunks": [NewChunk("text")]},
        {"chunks": [NewChunk("text", direction(0)), NewChunk("more")]},
    ],
)
def test_any_change_replaces_the_chunks(db_connection: Session, change: dict[str, Any]) -> None:
    document = NewDocument("a.md", [NewChunk("text", direction(0))], "docs/a.md")
    ingest(db_connection, [document])
    document_id = db_connection.scalar(select(Document.document_id))
    old = db_connection.scalars(select(Chunk.chunk_id)).all()
    changed = replace(document, **change)
    number = len(list(changed.chunks))
    assert ingest(db_connection, [changed]) == IngestReport(replaced=1, chunks=number)
    db_connection.expire_all()
    row = db_connection.scalars(select(Document)).one()
    assert (row.document_id, row.filename, row.total_chunks) == (document_id, changed.filename, number)
    new = db_connection.scalars(select(Chunk.chunk_id)).all()
    assert len(new) == number
    assert not set(old) & set(new)


def test_known_hash_spares_the_chunks(db_connection: Session) -> None:
    def computed() -> Iterator[NewChunk]:
        raise AssertionError("the chunks were asked for")
        yield

    content_hash = hashlib.sha256(b"file").hexdigest()
    ingest(db_connection, [a_document(content_hash=content_hash)])
    again = NewDocument("a.md", computed(), "docs/a.md", content_hash=content_hash)
    assert ingest(db_connection, [again]) == IngestReport(unchanged=1)


def test_hash_is_known_only_of_what_was_completed(db_connection: Session) -> None:
    db_connection.add(Document(filename="a.md", source_path="docs/a.md", content_hash="abc"))
    db_connection.commit()
    assert ingest(db_connection, [a_document(content_hash="abc")]) == IngestReport(replaced=1, chunks=1)
    assert db_connection.scalar(select(Document.status)) == "completed"
    assert count(db_connection, Chunk) == 1


def test_document_without_a_path_is_always_another_one(db_connection: Session) -> None:
    document = a_document(path=None, content_hash="abc")
    assert ingest(db_connection, [document, document]) == IngestReport(added=2, chunks=2)
    assert ingest(db_connection, [document]) == IngestReport(added=1, chunks=1)


def test_path_is_known_within_its_collection(db_connection: Session) -> None:
    collections = [Collection(name=name, description="of a test") for name in "ab"]
    db_connection.add_all(collections)
    db_connection.commit()
    ids = [None, *(each.collection_id for each in collections)]
    documents = [a_document(collection_id=each, content_hash="abc") for each in ids]
    assert ingest(db_connection, documents) == IngestReport(added=3, chunks=3)
    assert ingest(db_connection, documents) == IngestReport(unchanged=3)
    assert ingest(db_connection, [replace(documents[1], content_hash="new")]).replaced == 1
    assert set(db_connection.scalars(select(Document.collection_id))) == set(ids)


def test_last_of_two_with_one_path_is_kept(db_connection: Session) -> None:
    documents = [a_document("first"), a_document("other", path="docs/b.md"), a_document("second")]
    assert ingest(db_connection, documents) == IngestReport(added=2, replaced=1, chunks=3)
    assert stored(db_connection) == [("docs/a.md", 0, "second"), ("docs/b.md", 0, "other")]


def test_nothing_at_all_is_fine(db_connection: Session) -> None:
    assert ingest(db_connection, []) == IngestReport()


# As it is called by those who check no types.
ANYTHING: Any = NewChunk
WANTED = f"and chunks.embedding has {DIMENSIONS}"
NOT_A_NUMBER = [*direction(0)[:-1], float("nan")]
BOTH_INFINITIES = [*direction(0, float("inf"))[:-1], float("-inf")]
WRONG: list[tuple[list[NewChunk], str]] = [
    (
        [NewChunk("t", [1, 2])],
        f"chunk 0: its embedding has 2 dimensions, and chunks.embedding has {DIMENSIONS}",
    ),
    (
        [NewChunk("t", np.ones(3))],
        f"chunk 0: its embedding has 3 dimensions, and chunks.embedding has {DIMENSIONS}",
    ),
    ([NewChunk("t", [])], "chunk 0: its embedding has 0 dimensions"),
    ([NewChunk("t", np.ones((1, DIMENSIONS)))], "chunk 0: its embedding has 2 axes instead of one"),
    ([NewChunk("t", NOT_A_NUMBER)], "chunk 0: its embedding holds NaN or infinity"),
    ([NewChunk("t", np.asarray(NOT_A_NUMBER))], "chunk 0: its embedding holds NaN or infinity"),
    ([NewChunk("t", direction(0, float("inf")))], "chunk 0: its embedding holds NaN or infinity"),
    ([NewChunk("t", BOTH_INFINITIES)], "chunk 0: its embedding holds NaN or infinity"),
    ([NewChunk("t", direction(0, 1e39))], "chunk 0: its embedding holds NaN or infinity"),
    ([NewChunk("t", np.asarray(direction(0, 1e39)))], "chunk 0: its embedding holds NaN or infinity"),
    ([ANYTHING("t", ["a"] * DIMENSIONS)], "chunk 0: its embedding is not a sequence of numbers"),
    ([ANYTHING("t", b"\0\0\0\0" * DIMENSIONS)], "chunk 0: its embedding is not a sequence of numbers"),
    ([ANYTHING("t", np.array(["a"] * DIMENSIONS))], "chunk 0: its embedding is not an array of numbers"),
    ([ANYTHING("t", 1.5)], "chunk 0: its embedding is not a sequence of numbers"),
    ([NewChunk("good"), NewChunk("a\0b")], "chunk 1: its text holds a NUL character"),
    ([NewChunk("\ud800")], "chunk 0: its text holds half a surrogate pair"),
    ([ANYTHING(b"bytes")], "chunk 0: its text is no text but bytes"),
    ([NewChunk("t", metadata={"a": "\0"})], "chunk 0: its metadata holds a NUL character"),
    ([NewChunk("t", metadata={"a": float("nan")})], "chunk 0: its metadata is not JSON"),
    ([NewChunk("t", metadata={"a": object()})], "chunk 0: its metadata is not JSON"),
    ([], "it has no chunks"),
    ([NewChunk("t"), NewChunk("u", index=0)], "chunk 0: another chunk has this index already"),
    (
        [NewChunk("t", index=1), NewChunk("u", index=0), NewChunk("v")],
        "chunk 1: another chunk has this index",
    ),
    ([NewChunk("t", index=-1)], "chunk -1: its index is not from 0"),
    ([NewChunk("t", index=2**31)], f"chunk {2**31}: its index is not from 0"),
    ([NewChunk("t", level=4)], "chunk 0: its level 4 is not from 0 to 3"),
    ([ANYTHING("t", level=0.5)], "chunk 0: its index, its level or its parent is not a whole number"),
    ([ANYTHING("t", index="0")], "chunk 0: its index, its level or its parent is not a whole number"),
    ([NewChunk("t"), NewChunk("u", level=1, parent=5)], "chunk 1: its parent 5 is not among"),
    ([NewChunk("t", level=1, parent=0)], "chunk 0: its parent 0 is not among"),
    ([NewChunk("t", level=1), NewChunk("u", level=1, parent=0)], "chunk 1: its level 1 is not below level 1"),
]


@pytest.mark.parametrize(("chunks", "message"), WRONG, ids=[message for _, message in WRONG])
def test_bad_document_is_refused_and_named(db_connection: Session, chunks: list[Any], message: str) -> None:
    before, after = a_document(path="docs/before.md"), a_document(path="docs/after.md")
    bad = NewDocument("bad.md", chunks, "docs/bad.md")
    with pytest.raises(DocumentError) as caught:
        ingest(db_connection, [before, bad, after])
    assert str(caught.value).startswith(
        f"Document 'docs/bad.md'{': ' if message[:2] == 'it' else ', '}{message}"
    )
    assert caught.value.document == "docs/bad.md"
    assert stored(db_connection) == [("docs/before.md", 0, "text")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": ""}, "its filename is empty"),
        ({"filename": "a\0"}, "its filename holds a NUL"),
        ({"source_path": "a\0"}, "its source_path holds a NUL"),
        ({"content_hash": ""}, "its content_hash is empty"),
        ({"metadata": {"a": {1, 2}}}, "its metadata is not JSON"),
        ({"collection_id": UUID(int=5)}, f"its collection {UUID(int=5)} is not there"),
    ],
)
def test_bad_document_itself_is_refused(db_connection: Session, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError, match=message) as caught:
        ingest(db_connection, [replace(a_document(), **change)])
    assert caught.value.chunk_index is None
    assert count(db_connection) == 0


def test_bad_version_leaves_the_good_one(db_connection: Session) -> None:
    ingest(db_connection, [a_document("good")])
    with pytest.raises(DocumentError):
        ingest(db_connection, [a_document("new", "bad \0")])
    assert stored(db_connection) == [("docs/a.md", 0, "good")]


def test_bad_documents_are_skipped_when_asked(db_connection: Session) -> None:
    documents = [a_document(path=f"{number}") for number in range(4)]
    documents[1] = a_document("\0", path="1")
    documents[2] = replace(documents[2], collection_id=uuid4())
    errors: list[DocumentError] = []
    report = ingest(db_connection, documents, on_error=errors.append)
    assert report == IngestReport(added=2, failed=2, chunks=2)
    assert [error.document for error in errors] == ["1", "2"]
    assert [path for path, _, _ in stored(db_connection)] == ["0", "3"]


def test_failing_iterable_passes_through_and_leaves_its_document_out(db_connection: Session) -> None:
    def failing() -> Iterator[NewChunk]:
        yield NewChunk("stored by nobody")
        raise ValueError("the model is away")

    ingest(db_connection, [a_document("before")])
    with pytest.raises(ValueError, match="the model is away"):
        ingest(db_connection, [NewDocument("a.md", failing(), "docs/a.md")])
    assert stored(db_connection) == [("docs/a.md", 0, "before")]


def test_large_document_goes_through_a_file(db_connection: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_copy, "MEMORY_BYTES", 1000)
    monkeypatch.setattr(ingest_module, "SEND_BYTES", 700)
    texts = [f"text {number} {'x' * (number % 50)}" for number in range(300)]
    document = a_document(*texts)
    assert ingest(db_connection, [document]) == IngestReport(added=1, chunks=300)
    assert stored(db_connection) == [("docs/a.md", index, each) for index, each in enumerate(texts)]
    assert ingest(db_connection, [document]) == IngestReport(unchanged=1)


def test_many_documents_are_stored_batch_by_batch(
    db_connection: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "BATCH_DOCUMENTS", 10)
    monkeypatch.setattr(ingest_module, "AHEAD_DOCUMENTS", 7)
    reports: list[IngestReport] = []
    documents = [a_document(f"text {number}", path=f"{number:02}") for number in range(45)]
    report = ingest(db_connection, documents, on_progress=reports.append)
    assert report == reports[-1] == IngestReport(added=45, chunks=45)
    assert {10, 20, 30, 40} <= {each.added for each in reports}
    assert [path for path, _, _ in stored(db_connection)] == [f"{number:02}" for number in range(45)]


def test_documents_are_asked_for_only_as_they_are_needed(
    db_connection: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "AHEAD_CHUNKS", 10)
    taken = ended = 0

    def documents() -> Iterator[NewDocument]:
        nonlocal taken
        for number in range(10):
            taken += 1
            yield a_document(*["text"] * 10, path=str(number))

    def note(_: IngestReport) -> None:
        nonlocal ended
        ended += 1
        assert taken <= ended

    ingest(db_connection, documents(), on_progress=note)
    assert ended >= 10


# [tenancy
def confine(session: Session) -> UUID:
    """Go on as a role that row level security holds for, which nothing outlives. Returns a tenant."""
    role, tenant_id = f"confined_{uuid4().hex}", uuid4()
    session.execute(text("INSERT INTO tenants VALUES (:id, 'a tenant')"), {"id": tenant_id})
    session.execute(text(f"CREATE ROLE {role}"))
    session.execute(text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"))
    session.execute(text(f"SET LOCAL ROLE {role}"))
    return tenant_id


def test_confined_role_ingests_for_its_tenant(db_connection: Session) -> None:
    ingest(db_connection, [a_document("of nobody", path="mine")])
    tenant_id = confine(db_connection)
    database = DatabaseConnection.on(db_connection.connection())
    chunks = [NewChunk("a", direction(0)), NewChunk("b", level=1, parent=0)]
    document = NewDocument("a.md", chunks, "mine")
    with database.session(tenant_id=tenant_id) as session:
        assert ingest(session, [document]) == IngestReport(added=1, chunks=2)
        assert ingest(session, [document]) == IngestReport(unchanged=1)
        changed = replace(document, chunks=[*chunks, NewChunk("c")])
        assert ingest(session, [changed]) == IngestReport(replaced=1, chunks=3)
        assert [each for _, _, each in stored(session)] == ["a", "b", "c"]
        assert set(session.scalars(select(Chunk.tenant_id))) == {tenant_id}
        assert find_problems(session) == []
    db_connection.execute(text("RESET ROLE"))
    assert sorted(each for _, _, each in stored(db_connection)) == ["a", "b", "c", "of nobody"]


def test_confined_role_without_a_tenant_stores_nothing(db_connection: Session) -> None:
    confine(db_connection)
    database = DatabaseConnection.on(db_connection.connection())
    with pytest.raises(Exception, match="row-level security"), database.session() as session:
        ingest(session, [a_document()])
    db_connection.execute(text("RESET ROLE"))
    assert count(db_connection) == 0


# tenancy]


def test_embeddings_of_half_precision(db_connection: Session) -> None:
    db_connection.execute(text("DROP INDEX idx_chunks_embedding_hnsw"))
    db_connection.execute(text(f"ALTER TABLE chunks ALTER embedding TYPE halfvec({DIMENSIONS})"))
    chunks = [NewChunk("one", direction(0)), NewChunk("two", direction(1)), NewChunk("none")]
    assert ingest(db_connection, [NewDocument("a.md", chunks)]).chunks == 3
    assert [hit.text for hit in search_vector(db_connection, direction(1))] == ["two", "one"]


def test_changes_of_others_to_a_stored_document_are_seen(db_connection: Session) -> None:
    document = a_document()
    ingest(db_connection, [document])
    db_connection.execute(update(Document).values(content_hash=None))
    assert ingest(db_connection, [document]).replaced == 1
    db_connection.execute(delete(Document))
    assert ingest(db_connection, [document]).added == 1
