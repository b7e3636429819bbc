"""The corpus: what seeding stores, replaces and removes, and which embedders and files it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from rag_factory.database.embedding import OfflineEmbedder
from rag_factory.database.hierarchy import find_problems
from rag_factory.database.ingest import IngestReport, NewChunk, NewDocument, ingest
from rag_factory.database.models import Chunk, Collection, Document
from rag_factory.database.models.documents import DIMENSIONS
from rag_factory.errors import DocumentError, RagFactoryError, UsageError
from rag_factory.services.corpus import (
    COLLECTION_ID,
    NAME,
    SeedReport,
    ask,
    find_files,
    is_seeded,
    seed,
)
from tests.conftest import clean_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session


ROOT = Path(__file__).parents[3]
EMBEDDER = OfflineEmbedder(DIMENSIONS)
STATE = text("""
    SELECT documents.document_id, source_path, content_hash, documents.updated_at, documents.xmin::text,
           chunk_id, chunks.text, chunks.updated_at, chunks.xmin::text
    FROM documents JOIN chunks USING (document_id) ORDER BY source_path, document_id, chunk_index
""")


class Renamed(OfflineEmbedder):
    """Another model of the same length."""

    name = "another"


class Failing(OfflineEmbedder):
    """One whose service doesn't answer."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise ConnectionError(f"no answer about {len(texts)} texts")


class TooFew(OfflineEmbedder):
    """One that forgets a text."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return super().embed(texts[1:])


class TooShort(OfflineEmbedder):
    """One that doesn't keep to its dimensions."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[1.0]] * len(texts)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with three documents and some files that are none."""
    for name, content in {
        "README.md": "# Project\n\nAbout it.\n\n## Roll back\n\nOne revision.\n\nOr all of them.\n",
        "docs/a/deep.md": "# Deep\n\nDown here.\n",
        "docs/b.md": "",
        "docs/c.txt": "no Markdown",
        "other/d.md": "not looked at",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "docs" / "folder.md").mkdir()
    return tmp_path


def paths(session: Session) -> list[str | None]:
    query = select(Document.source_path).where(Document.collection_id == COLLECTION_ID)
    return list(session.scalars(query.order_by(Document.source_path)))


def test_documentation_is_stored_as_a_tree(db_connection: Session, root: Path) -> None:
    assert not is_seeded(db_connection)
    told: list[IngestReport] = []
    report = seed(db_connection, root, EMBEDDER, told.append)
    assert report == SeedReport(IngestReport(added=3, chunks=6), removed=0)
    assert told[-1] == report.ingested
    assert is_seeded(db_connection)
    assert db_connection.scalars(select(Collection.name)).all() == [NAME]
    assert paths(db_connection) == ["README.md", "docs/a/deep.md", "docs/b.md"]
    rows = db_connection.execute(
        select(Chunk.text, Chunk.hierarchy_level, Chunk.metadata_)
        .join(Document, Chunk.document_id == Document.document_id)
        .where(Document.source_path == "README.md")
        .order_by(Chunk.chunk_index)
    )
    headings = {"headings": ["Project", "Roll back"]}
    assert [tuple(row) for row in rows] == [
        ("Project\n\nAbout it.", 0, {"headings": ["Project"]}),
        ("Project > Roll back\n\nOne revision.\n\nOr all of them.", 1, headings),
        ("One revision.", 2, headings),
        ("Or all of them.", 2, headings),
    ]
    assert find_problems(db_connection) == []


def test_seeding_again_changes_nothing(db_connection: Session, root: Path) -> None:
    seed(db_connection, root, EMBEDDER)
    before = db_connection.execute(STATE).all()
    assert seed(db_connection, root, EMBEDDER) == SeedReport(IngestReport(unchanged=3), removed=0)
    assert db_connection.execute(STATE).all() == before
    (root / "README.md").touch()
    assert seed(db_connection, root, Failing(DIMENSIONS)).ingested.unchanged == 3, "nothing is embedded"


def test_changed_files_are_replaced_and_gone_ones_removed(db_connection: Session, root: Path) -> None:
    other = Collection(name="other", description="An application's own.")
    db_connection.add(other)
    db_connection.flush()
    for collection_id in (other.collection_id, None):
        mine = NewDocument("a.md", [NewChunk("mine")], source_path="mine.md", collection_id=collection_id)
        ingest(db_connection, [mine])
    seed(db_connection, root, EMBEDDER)
    before = db_connection.execute(STATE).all()
    (root / "docs" / "b.md").write_text("# New\n", encoding="utf-8")
    (root / "docs" / "a" / "deep.md").unlink()
    report = seed(db_connection, root, EMBEDDER)
    assert report == SeedReport(IngestReport(replaced=1, unchanged=1, chunks=1), removed=1)
    after = db_connection.execute(STATE).all()
    changed = {"docs/b.md", "docs/a/deep.md"}
    assert [row for row in after if row.source_path not in changed] == [
        row for row in before if row.source_path not in changed
    ]
    assert [row.text for row in after if row.source_path in changed] == ["New"]
    for path in find_files(root):
        path.unlink()
    assert seed(db_connection, root, EMBEDDER) == SeedReport(IngestReport(), removed=2)
    assert db_connection.scalars(select(Document.source_path)).all() == ["mine.md"] * 2


def test_another_embedder_embeds_all_anew(db_connection: Session, root: Path) -> None:
    seed(db_connection, root, EMBEDDER)
    assert seed(db_connection, root, Renamed(DIMENSIONS)).ingested == IngestReport(replaced=3, chunks=6)
    assert seed(db_connection, root, Renamed(DIMENSIONS)).ingested == IngestReport(unchanged=3)


def test_sections_are_found_once_each(db_connection: Session, root: Path) -> None:
    seed(db_connection, root, EMBEDDER)
    hits = ask(db_connection, "how do I roll back a revision", EMBEDDER, 5)
    assert hits[0].metadata["headings"] == ["Project", "Roll back"]
    places = [(hit.source_path, *hit.metadata["headings"]) for hit in hits]
    assert len(places) == len(set(places)) == 4
    assert ask(db_connection, "how do I roll back a revision", EMBEDDER, 2) == hits[:2]


def test_documents_of_an_application_are_found_whatever_their_metadata(db_connection: Session) -> None:
    odd: list[Any] = [None, 5, {"a": 1}, [[]]]
    [fox] = EMBEDDER.embed(["a fox"])
    chunks = [NewChunk("a fox", fox, {"headings": headings}, level=2) for headings in odd]
    ingest(db_connection, [NewDocument("a.md", chunks)])
    assert len(ask(db_connection, "fox", EMBEDDER, 5)) == 4


@pytest.mark.parametrize(
    ("query", "limit", "match"),
    [
        ("", 5, "The query is empty"),
        (" ", 5, "The query is empty"),
        ("a\0", 5, "NUL"),
        ("x", 0, "limit is 0, not a whole number from 1 to 2500"),
        ("x", 2501, "limit is 2501, not a whole number from 1 to 2500"),
    ],
)
def test_question_is_checked_before_it_is_embedded(
    db_connection: Session, query: str, limit: int, match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        ask(db_connection, query, Failing(DIMENSIONS), limit)
    assert ask(db_connection, "x", EMBEDDER, 2500) == []


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"# caf\xe9", r"Document 'docs/b.md': it is not UTF-8: byte 5 is 0xe9. Save it as UTF-8."),
        (b"a \0", r"Document 'docs/b.md', chunk 0: its text holds a NUL character"),
    ],
)
def test_file_that_can_not_be_stored_is_named(
    db_connection: Session, root: Path, content: bytes, match: str
) -> None:
    (root / "docs" / "b.md").write_bytes(content)
    with pytest.raises(DocumentError, match=match):
        seed(db_connection, root, EMBEDDER)
    assert paths(db_connection) == ["README.md", "docs/a/deep.md"], "those before it"


def test_byte_order_mark_and_line_ends_of_windows_are_no_text(db_connection: Session, root: Path) -> None:
    (root / "docs" / "b.md").write_bytes(b"\xef\xbb\xbf# Title\r\n\r\none\r\ntwo\r\n")
    seed(db_connection, root, EMBEDDER)
    query = (
        select(Chunk.text)
        .join(Document, Chunk.document_id == Document.document_id)
        .where(Document.source_path == "docs/b.md")
    )
    assert db_connection.scalars(query).all() == ["Title\n\none\ntwo"]


@pytest.mark.parametrize(
    ("embedder", "match"),
    [
        (Failing(DIMENSIONS), "The embedder offline-1 failed: ConnectionError: no answer about 4 texts"),
        (TooFew(DIMENSIONS), "The embedder offline-1 gave 3 embeddings for 4 texts"),
        (TooShort(DIMENSIONS), f"'README.md', chunk 0: its embedding has 1 dimensions, .* {DIMENSIONS}"),
    ],
)
def test_embedder_that_fails_is_named(
    db_connection: Session, root: Path, embedder: OfflineEmbedder, match: str
) -> None:
    with pytest.raises(RagFactoryError, match=match):
        seed(db_connection, root, embedder)
    assert not is_seeded(db_connection)


WORK = """
import sys
from pathlib import Path
from rag_factory.database.config import DatabaseConfig
from rag_factory.database.connection import DatabaseConnection
from rag_factory.services.corpus import load_embedder, seed

root = Path(sys.argv[1])
with DatabaseConnection(DatabaseConfig.load(root)) as database, database.session() as session:
    print("ready", flush=True)
    sys.stdin.readline()
    seed(session, root, load_embedder(None))
"""


def test_two_who_seed_at_once_store_each_file_once(committing_database: Engine, root: Path) -> None:
    url = committing_database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, str(root)],
            env=clean_environment({"DATABASE_URL": url, "PYTHONPATH": str(ROOT)}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        ends = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert ends == [("", 0)] * 2
    with committing_database.connect() as connection:
        stored = connection.execute(STATE).all()
    assert sorted({row.source_path for row in stored}) == ["README.md", "docs/a/deep.md", "docs/b.md"]
    assert len({row.document_id for row in stored}) == 3
    assert len(stored) == 6
