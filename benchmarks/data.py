"""Measure the data layer: ingest beside a bare COPY and the ORM, search beside its own SQL, and recall.

Runs on a server of its own, whose data is in memory where there is a tmpfs.
Run it: uv run python benchmarks/data.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import event

from benchmarks import data_rows
from benchmarks.data_rows import DIMENSIONS, SMALL_DOCUMENTS
from benchmarks.places import fast_server, in_memory
from benchmarks.timing import Comparison, Figure, describe_machine, parse_arguments, progress, race, report
from rag_factory.database.config import DatabaseConfig
from rag_factory.database.connection import DatabaseConnection
from rag_factory.database.driver import connect_maintenance
from rag_factory.database.ingest import ingest
from rag_factory.database.search import search_hybrid, search_text, search_vector, set_locally
from rag_factory.database.search_options import DEFAULT_LIMIT, read_options
from rag_factory.database.url import DatabaseUrl
from rag_factory.server import find_binaries
from rag_factory.testing.build import migrate_new_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from uuid import UUID

    import numpy as np
    import numpy.typing as npt
    from sqlalchemy.orm import Session

    Vectors = npt.NDArray[np.float32]

PROJECT = Path(__file__).parent.parent
PACKAGES = ("sqlalchemy", "psycopg", "pgvector", "numpy")
PARTS = ("ingest", "memory", "search", "recall")
INDEX = "idx_chunks_embedding_hnsw"
QUERIES = 100
WANTED_RECALL = 0.95
ROLE = "confined"


@dataclass(frozen=True)
class Table:
    """Figures that are no race. rows: the cells of each, the first being its name."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def as_markdown(self) -> str:
        """The figure as a table."""
        lines = [f"### {self.title}", "", f"| {' | '.join(self.head)} |"]
        lines.append(f"| --- |{' ---: |' * (len(self.head) - 1)}")
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join(lines)

    def as_data(self) -> dict[str, Any]:
        """The figure for a machine."""
        return {"title": self.title, "rows": [dict(zip(self.head, row, strict=True)) for row in self.rows]}


def main() -> None:
    arguments = parse_arguments(__doc__, parts=PARTS)
    rounds: int = arguments.repeat
    figures: list[Figure | Table] = []
    with laboratory() as lab:
        if "ingest" in arguments.only:
            figures.append(measure_ingest(lab, max(rounds // 7, 1)))
        if "memory" in arguments.only:
            figures.append(measure_memory(lab))
        if {"search", "recall"} & set(arguments.only):
            lab.fill()
        if "search" in arguments.only:
            figures += [measure_vector_search(lab, rounds), measure_hybrid_search(lab, rounds)]
        if "recall" in arguments.only:
            figures.append(measure_recall(lab))
        machine = describe_machine(PACKAGES, PostgreSQL=find_binaries().version, **lab.facts())
    report(machine, figures, as_json=arguments.json)


def measure_ingest(lab: Laboratory, rounds: int) -> Figure:
    """Time 100,000 chunks going into the migrated schema without its vector index, built later by all.

    The chunks are in memory before the clock runs.
    """
    documents = list(data_rows.new_documents())
    ours, bare, orm = "`ingest`", "bare binary COPY", "ORM `add_all`, 1,000 at a time"

    def time_ingest() -> float:
        lab.empty()
        began = time.perf_counter()
        with lab.database.session() as session:
            ingest(session, documents)
        return time.perf_counter() - began

    def time_copy() -> float:
        lab.empty()
        began = time.perf_counter()
        data_rows.copy_bare(lab.url, documents)
        return time.perf_counter() - began

    def time_orm() -> float:
        lab.empty()
        began = time.perf_counter()
        with lab.database.session() as session:
            data_rows.add_all(session, documents)
        return time.perf_counter() - began

    rivals = {ours: time_ingest, bare: time_copy, orm: time_orm}
    comparisons = [Comparison(ours, bare, 1.3), Comparison(ours, orm, 0.125)]
    return race(f"Ingest of {data_rows.CHUNKS:,} chunks", rivals, comparisons, rounds)


def measure_memory(lab: Laboratory) -> Table:
    """Measure how far a process grows that ingests, from its state before the first document."""
    rows = []
    for documents in (SMALL_DOCUMENTS, data_rows.DOCUMENTS):
        for number, name in ((documents, "documents of 100"), (1, "one document")):
            lab.empty()
            chunks = documents * data_rows.CHUNKS_EACH
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.data_rows", str(number), str(chunks)],
                cwd=PROJECT,
                input=lab.url.plain,
                capture_output=True,
                text=True,
                check=True,
            )
            rows.append((f"{chunks:,} chunks, {name}", done.stdout.strip()))
    return Table("Memory of `ingest`, target 100 MB", ("", "peak above the start, MB"), rows)


def measure_vector_search(lab: Laboratory, rounds: int) -> Figure:
    """Time 100 searches in an open session against the same statements through psycopg."""
    with lab.database.session() as session, psycopg.connect(lab.url.plain) as connection:
        queries = data_rows.queries(QUERIES)
        ours, bare = "`search_vector`", "the same SQL through psycopg"
        whole = "`search_vector`, each in a session of its own"
        statements = capture(session, lambda: search_vector(session, queries[0]))
        # SQLAlchemy, which is listened to, doesn't see these.
        statements.insert(0, (set_locally(read_options(DEFAULT_LIMIT, {})), None))

        def time_sessions() -> float:
            began = time.perf_counter()
            for query in queries:
                with lab.database.session() as own:
                    search_vector(own, query)
            return time.perf_counter() - began

        rivals = {
            ours: lambda: timed(queries, lambda query: search_vector(session, query)),
            bare: lambda: data_rows.replay(connection, statements, queries),
            whole: time_sessions,
        }
        return race(f"{QUERIES} vector searches", rivals, [Comparison(ours, bare, 1.15)], rounds)


def measure_hybrid_search(lab: Laboratory, rounds: int) -> Figure:
    """Time 100 hybrid searches against both of their parts, each over as many candidates."""
    with lab.database.session() as session:
        queries = data_rows.queries(QUERIES)
        words = data_rows.words(QUERIES)
        pairs = list(zip(words, queries, strict=True))
        ours, parts = "`search_hybrid`", "`search_vector` and `search_text`, 40 each"

        def both(pair: tuple[str, Any]) -> None:
            search_text(session, pair[0], limit=40)
            search_vector(session, pair[1], limit=40)

        rivals = {
            ours: lambda: timed(pairs, lambda pair: search_hybrid(session, *pair)),
            parts: lambda: timed(pairs, both),
        }
        return race(f"{QUERIES} hybrid searches", rivals, [Comparison(ours, parts, 1.3)], rounds)


def measure_recall(lab: Laboratory) -> Table:
    """Hold default searches against exact ones, under filters and row level security."""
    queries = data_rows.queries(QUERIES)
    cases: list[tuple[str, DatabaseConnection, UUID | None, dict[str, Any]]] = [
        ("everything", lab.database, None, {}),
        ("a collection of a tenth", lab.database, None, {"collection_id": lab.collections["tenth"]}),
        ("a collection of a hundredth", lab.database, None, {"collection_id": lab.collections["hundredth"]}),
        ("a tenth by metadata", lab.database, None, {"metadata": {"tenth": 3}}),
        ("a hundredth by metadata", lab.database, None, {"metadata": {"hundredth": 3}}),
        ("a thousandth by metadata", lab.database, None, {"metadata": {"thousandth": 3}}),
        ("one document", lab.database, None, {"document_ids": [lab.document_id]}),
        ("row security, a tenant of a half", lab.confined, lab.tenants["half"], {}),
        ("row security, a tenant of a hundredth", lab.confined, lab.tenants["hundredth"], {}),
        (
            "row security, half, a tenth by metadata",
            lab.confined,
            lab.tenants["half"],
            {"metadata": {"tenth": 3}},
        ),
    ]
    rows = []
    for name, database, tenant_id, filters in cases:
        progress(f"recall: {name}")
        with database.session(tenant_id=tenant_id) as session:
            search_vector(session, queries[0], **filters)
            began = time.perf_counter()
            found = [search_vector(session, query, **filters) for query in queries]
            milliseconds = (time.perf_counter() - began) * 1000 / len(queries)
            session.connection().exec_driver_sql("SET LOCAL enable_indexscan = off")
            began = time.perf_counter()
            exact = [search_vector(session, query, **filters) for query in queries]
            exactly = (time.perf_counter() - began) * 1000 / len(queries)
        hits = wanted = 0
        for some, best in zip(found, exact, strict=True):
            hits += len({hit.chunk_id for hit in some} & {hit.chunk_id for hit in best})
            wanted += len(best)
        recall = hits / wanted
        rows.append(
            (
                name,
                f"{recall:.3f}",
                "met" if recall >= WANTED_RECALL else "missed",
                f"{milliseconds:.1f}",
                f"{exactly:.1f}",
            )
        )
    head = (f"searched in {data_rows.CHUNKS:,} chunks", "recall@10", "target 0.95", "ms", "exact, ms")
    return Table("Recall at the default settings", head, rows)


class Laboratory:
    """A server with a migrated database, whose embeddings have DIMENSIONS; filled only when asked to."""

    def __init__(self, url: DatabaseUrl, stack: ExitStack) -> None:
        self.url = url
        config = DatabaseConfig.load(PROJECT)
        self.database = stack.enter_context(DatabaseConnection(config, url=url))
        self.confined = stack.enter_context(DatabaseConnection(config, url=with_user(url, ROLE)))
        self.tenants: dict[str, UUID] = {}
        self.collections: dict[str, UUID] = {}
        self.document_id: UUID | None = None

    def facts(self) -> dict[str, str]:
        """What the figures depend on besides the versions."""
        return {"data on": "tmpfs" if in_memory() else "disk", "dimensions": str(DIMENSIONS)}

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each in a transaction of its own. Returns the last one's rows."""
        with psycopg.connect(self.url.plain, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def empty(self) -> None:
        """Take away rows and vector index, and what they leave to the next checkpoint."""
        self.run(f"DROP INDEX IF EXISTS {INDEX}", "TRUNCATE tenants CASCADE", "TRUNCATE collections CASCADE")
        self.run("TRUNCATE documents, audit_logs CASCADE", "CHECKPOINT")

    def fill(self) -> None:
        """Store clustered chunks of three tenants and no tenant, in three collections, and index them."""
        progress("filling the database")
        self.empty()
        rows = self.run("INSERT INTO tenants (name) VALUES ('half'), ('hundredth') RETURNING name, tenant_id")
        self.tenants = dict(rows)
        data_rows.fill(self.database, self.tenants, self.collections)
        [(self.document_id,)] = self.run("SELECT document_id FROM documents WHERE tenant_id IS NULL LIMIT 1")
        self.run(
            "SET maintenance_work_mem = '1GB'",
            f"CREATE INDEX {INDEX} ON chunks USING hnsw (embedding vector_cosine_ops)",
            "VACUUM ANALYZE",
        )


def capture(session: Session, search: Callable[[], object]) -> list[tuple[str, Any]]:
    """Note the statements of a search as the driver gets them."""
    statements: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        statements.append((statement, parameters))

    engine = session.connection().engine
    event.listen(engine, "before_cursor_execute", note)
    search()
    statements.clear()  # the first one may have asked for more
    search()
    event.remove(engine, "before_cursor_execute", note)
    return statements


def timed(values: Iterable[Any], function: Callable[[Any], object]) -> float:
    """Call a function with each value. Returns the seconds of all."""
    began = time.perf_counter()
    for value in values:
        function(value)
    return time.perf_counter() - began


def with_user(url: DatabaseUrl, user: str) -> DatabaseUrl:
    """The same database as another role."""
    return DatabaseUrl(url.host, url.port, url.database, user=user)


@contextmanager
def laboratory() -> Iterator[Laboratory]:
    """Start a server and migrate a database on it; stop and remove it at the end."""
    with ExitStack() as stack:
        url = stack.enter_context(fast_server()).with_database("benchmark")
        with connect_maintenance(url) as server:
            migrate_new_database(server, url, PROJECT, "FILE_COPY")
        lab = Laboratory(url, stack)
        lab.run(
            f"DROP INDEX {INDEX}",
            f"ALTER TABLE chunks ALTER COLUMN embedding TYPE vector({DIMENSIONS})",
            f"CREATE ROLE {ROLE} LOGIN",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}",
        )
        yield lab


if __name__ == "__main__":
    main()
