"""Ingest by several processes at once, and by one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from tests.conftest import clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

ROOT = Path(__file__).parents[3]
WORK = """
import random
import sys
from pathlib import Path
from rag_factory.database.config import DatabaseConfig
from rag_factory.database.connection import DatabaseConnection
from rag_factory.database.ingest import NewChunk, NewDocument, ingest

name, number, chunks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def documents():
    # In an order of its own, in which they would wait for each other crosswise.
    for each in random.Random(name).sample(range(number), number):
        yield NewDocument("a.md", [NewChunk(f"by {name}")] * chunks, source_path=f"docs/{each}.md")

with DatabaseConnection(DatabaseConfig.load(Path.cwd())) as database, database.session() as session:
    print("ready", flush=True)
    sys.stdin.readline()
    print(ingest(session, documents()), flush=True)
"""
# Documents that aren't all there, or aren't all by one process.
BROKEN = text("""
    SELECT document_id, total_chunks, count(chunk_id), count(DISTINCT text)
    FROM documents LEFT JOIN chunks USING (document_id)
    GROUP BY document_id HAVING count(chunk_id) <> total_chunks OR count(DISTINCT text) <> 1
""")


@pytest.fixture
def start(
    committing_database: Engine, tmp_path: Path
) -> Iterator[Callable[[str, int, int], subprocess.Popen[str]]]:
    """Start a process that will ingest so many documents, as soon as it reads a line."""
    url = committing_database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    environment = clean_environment({"DATABASE_URL": url, "PYTHONPATH": str(ROOT)})
    processes: list[subprocess.Popen[str]] = []

    def start_one(name: str, documents: int, chunks: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, name, str(documents), str(chunks)],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


def wait_until(engine: Engine, query: str, seconds: float = 60) -> None:
    """Wait until a query says true, in a new transaction each time."""
    deadline = time.monotonic() + seconds
    with engine.connect() as connection:
        while not connection.scalar(text(query)):
            connection.rollback()
            assert time.monotonic() < deadline, f"waited {seconds:g} s for: {query}"
            time.sleep(0.005)


def test_processes_that_ingest_the_same_documents_store_each_once(
    start: Callable[[str, int, int], subprocess.Popen[str]], committing_database: Engine
) -> None:
    processes = [start(name, 60, 20) for name in ("one", "two", "three")]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all("unchanged=0" in each for each in said), "each process has other texts"
    with committing_database.connect() as connection:
        paths = connection.scalars(text("SELECT source_path FROM documents")).all()
        assert Counter(paths) == Counter(f"docs/{number}.md" for number in range(60))
        assert connection.execute(BROKEN).all() == []


def test_process_killed_while_it_ingests_leaves_whole_documents(
    start: Callable[[str, int, int], subprocess.Popen[str]], committing_database: Engine
) -> None:
    process = start("victim", 1_000_000, 300)
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    wait_until(committing_database, "SELECT count(*) > 0 FROM documents")
    # In the middle of a batch: its COPY is at work.
    wait_until(
        committing_database, "SELECT count(*) > 0 FROM pg_stat_progress_copy WHERE tuples_processed > 0"
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(
        committing_database,
        "SELECT count(*) = 0 FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'rag-factory'",
    )
    with committing_database.connect() as connection:
        assert (connection.scalar(text("SELECT count(*) FROM documents")) or 0) > 0
        assert connection.execute(BROKEN).all() == []
