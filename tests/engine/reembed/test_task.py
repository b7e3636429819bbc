"""db.reembed on the real command line: each step, what it says, and kill -9 in the middle of each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest

from rag_factory.migrate.schema import read_schema
from tests.conftest import clean_environment
from tests.engine.reembed.conftest import add_notes, value

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.database.url import DatabaseUrl
    from tests.engine.conftest import Tasks
    from tests.engine.reembed.conftest import Session

BEGIN = ("--begin", "--column", "notes.embedding", "--text-column", "content", "--embedder")
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_notes_embedding_new'::regclass"
MODELS = """
import os, signal
from rag_factory.database.embedding import OfflineEmbedder

class New(OfflineEmbedder):
    name = "new-1"
    calls = 0

    def __init__(self):
        super().__init__(16)

    def embed(self, texts):
        New.calls += 1
        if New.calls == int(os.environ.get("KILLED_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(texts)

class Other(New):
    name = "new-2"

class Old(OfflineEmbedder):
    def __init__(self):
        super().__init__(8)

class NoKey:
    def __init__(self):
        raise RuntimeError("no key")
"""


@pytest.fixture
def models(tasks: Tasks) -> Tasks:
    (tasks.cli.root / "models.py").write_text(MODELS)
    return tasks


def test_steps_and_what_they_say(models: Tasks, notes: Session) -> None:
    schema = read_schema(notes)
    begun = models.succeed("db.reembed", *BEGIN, "models:New", "--batch", "4").stderr.splitlines()
    assert begun[:3] == [
        "computed 10 embeddings with new-1",
        "building idx_notes_embedding_new",
        "measuring the recall",
    ]
    assert begun[3].startswith("recall@10 over 10 rows: new 1.000, old 1.000; the two models share ")
    assert begun[4:] == ["ready: invoke db.reembed --cut-over"]
    models.fail(2, "db.reembed", *BEGIN, "models:Other", says="begun with the embedder name new-1, not new-2")
    models.fail(
        2, "db.reembed", "--embedder", "models:Other", says="embedder is new-2, and notes.embedding was"
    )
    models.fail(4, "db.reembed", "--drop-old", "--yes", says="notes.embedding is not cut over")
    done = models.succeed(
        *("db.reembed", "--cut-over"),
        *("db.reembed", "--cut-over", "--column", "notes.embedding"),
        *("db.reembed", "--status", "--json"),
    )
    assert done.stderr.splitlines() == [
        "notes.embedding now has the embeddings of new-1",
        "notes.embedding is cut over already",
    ]
    [status] = json.loads(done.stdout)
    assert status.pop("recall")["rows"] == 10
    assert status == {
        "column": "notes.embedding",
        "phase": "cut over",
        "type": "vector(16)",
        "embedder": "new-1",
        "rows_waiting": 0,
        "indexes_missing": None,
        "next": "invoke db.reembed --drop-old",
    }
    models.fail(4, "db.reembed", "--drop-old", says=r"This drops notes\.embedding_old in .*add: --yes$")
    notes.execute("INSERT INTO notes (content, embedding) SELECT 'late', embedding FROM notes LIMIT 1")
    done = models.succeed(
        *("db.reembed", "--back", "--embedder", "models:Old"), *("db.reembed", "--give-up", "--yes")
    )
    assert done.stderr.splitlines() == [
        "computed 1 embeddings with offline-1",
        "notes.embedding has its old embeddings again",
        "dropped notes.embedding_new",
    ]
    assert read_schema(notes) == schema


def test_other_tasks_while_it_is_under_way(models: Tasks, database_url: DatabaseUrl) -> None:
    models.succeed(
        "db.migrate",
        *("db.reembed", "--begin", "--column", "chunks.embedding", "--text-column", "text"),
        *("--embedder", "models:New"),
    )
    # A rollback looks at a copy of the schema, whose trigger needs its function.
    done = models.succeed("db.rollback", "--yes", "db.migrate", "db.reembed", "--cut-over")
    assert (
        "chunks.embedding is being re-embedded: taking back what has made it takes that along" in done.stderr
    )
    assert "is at 002" in models.succeed("db.stamp", "--detect").stderr
    with psycopg.connect(database_url.plain, autocommit=True) as session:
        session.execute("ALTER TABLE chunks ADD COLUMN language text")
    done = models.run("db.drift")
    assert done.returncode == 6
    assert done.stdout.splitlines() == ["public.chunks:", "  unexpected column public.chunks.language: text"]
    assert "chunks.embedding is being re-embedded; what that has made is left out" in done.stderr
    done = models.run("db.check")
    assert done.returncode == 6
    assert (
        "chunks.embedding is being re-embedded, and what that has made is among them: leave it" in done.stderr
    )
    models.fail(4, "db.revision", "-m", "x", says="would drop what that has made. Nothing was written")


def test_calls_that_are_refused(models: Tasks, notes: Session) -> None:
    refused: list[tuple[int, tuple[str, ...], str]] = [
        (2, (), "No change of embedding model is under way. Begin one: invoke db.reembed --begin"),
        (
            2,
            ("--begin", "--column", "notes.embedding"),
            "--begin needs --column, --text-column and --embedder",
        ),
        (2, ("--cut-over", "--back"), "--cut-over and --back exclude each other. Give one of them"),
        (2, ("--text-column", "content"), "--text-column and --type belong to --begin"),
        (3, (*BEGIN, "models:NoKey"), "models:NoKey, which can't be made: no key. Name a class"),
    ]
    for code, options, says in refused:
        models.fail(code, "db.reembed", *options, says=says)
    assert value(notes, "SELECT to_regnamespace('rag_factory') IS NULL")


class Killed:
    """A run of the task that is killed as soon as the server shows that it is where it should be."""

    def __init__(self, tasks: Tasks, *options: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "invoke", "db.reembed", *options],
            cwd=tasks.cli.root,
            env=clean_environment(tasks.cli.environment | environment),
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not reached():
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)  # between two looks

    def when(self, reached: Callable[[], bool]) -> None:
        try:
            self.wait_until(reached)
        finally:
            os.kill(self.process.pid, signal.SIGKILL)
            self.end()

    def end(self) -> None:
        assert self.process.wait(timeout=30) == -signal.SIGKILL
        assert self.process.stderr
        self.process.stderr.close()


def test_killed_in_each_step_and_resumed(models: Tasks, notes: Session, database_url: DatabaseUrl) -> None:
    add_notes(notes, [f"more {number}" for number in range(30)])
    waits: LiteralString = (
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'rag-factory'"
        " AND datname = current_database() AND wait_event_type = 'Lock' AND query ~ %s"
    )

    def waiting_for(query: str) -> Callable[[], bool]:
        return lambda: bool(value(notes, waits, query))

    def names() -> Any:
        query = "SELECT array_agg(attname::text ORDER BY attname) FROM pg_attribute"
        return value(notes, query + " WHERE attrelid = 'notes'::regclass AND attname ~ '^embedding'")

    with psycopg.connect(database_url.plain) as other:
        # Begin: the table is in use.
        other.execute("SELECT count(*) FROM notes")
        Killed(models, *BEGIN, "models:New").when(waiting_for("^LOCK TABLE"))
        other.rollback()
        # Filling: the process ends itself within the third batch.
        Killed(models, *BEGIN, "models:New", "--batch", "5", KILLED_AT="3").end()
        assert value(notes, "SELECT count(*) FROM notes WHERE embedding_new IS NOT NULL") == 10
        # The index: its build waits for an older transaction.
        other.execute("UPDATE notes SET stars = 1 WHERE note_id = 1")
        building = waiting_for('^CREATE INDEX CONCURRENTLY "idx_notes')
        Killed(models).when(building)
        deadline = time.monotonic() + 60
        while building():  # the server notices within a second that nobody waits for it any more
            assert time.monotonic() < deadline
            time.sleep(0.005)
        other.commit()
        assert not value(notes, VALID)
        done = models.succeed("db.reembed").stderr
        assert "building idx_notes_embedding_new" in done
        assert "ready" in done
        # The cut-over: at its last statement, when all is renamed.
        other.execute("SELECT * FROM rag_factory.reembeddings FOR UPDATE")
        Killed(models, "--cut-over").when(waiting_for('^UPDATE "rag_factory"'))
        other.rollback()
        assert names() == ["embedding", "embedding_new"]
        # After the cut-over: at the row that came in the moment before.
        other.execute("INSERT INTO notes (content, embedding) SELECT 'late', embedding FROM notes LIMIT 1")
        killed = Killed(models, "--cut-over", KILLED_AT="1")
        killed.wait_until(waiting_for("^LOCK TABLE"))
        other.commit()
        killed.end()
    assert names() == ["embedding", "embedding_old"]
    models.fail(
        5, "db.reembed", "--drop-old", "--yes", says="have only their old embedding.*: invoke db.reembed"
    )
    assert "computed 1 embeddings" in models.succeed("db.reembed").stderr
    with psycopg.connect(database_url.plain) as other:
        other.execute("SELECT * FROM rag_factory.reembeddings FOR UPDATE")
        Killed(models, "--drop-old", "--yes").when(waiting_for("^DELETE FROM"))
    assert names() == ["embedding", "embedding_old"]
    models.succeed("db.reembed", "--drop-old", "--yes")
    assert names() == ["embedding"]
    assert value(notes, "SELECT count(*) FROM notes WHERE vector_dims(embedding) = 16") == 41


def test_second_run_is_refused(models: Tasks, notes: Session, database_url: DatabaseUrl) -> None:
    with psycopg.connect(database_url.plain) as other:
        other.execute("SELECT count(*) FROM notes")
        first = Killed(models, *BEGIN, "models:New")
        holds = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND granted"
        first.wait_until(lambda: bool(value(notes, holds)))
        models.fail(
            8, "db.reembed", *BEGIN, "models:New", says=r"Another db\.reembed works on .*: pid \d+, user app"
        )
        models.succeed("db.reembed", "--status")
        first.when(lambda: True)


def test_table_that_stays_in_use_is_told(models: Tasks, notes: Session, database_url: DatabaseUrl) -> None:
    limits = ("--wait", "0.2")
    with psycopg.connect(database_url.plain, application_name="report") as other:
        held = f"held by pid {other.info.backend_pid} .*idle in transaction"
        says = rf'no lock on .*"notes" .*{held}.*give it longer'
        for options in ((*BEGIN, "models:New"), ("--cut-over",)):
            before = read_schema(notes)
            other.execute("SELECT count(*) FROM notes")
            models.fail(8, "db.reembed", *options, *limits, says=says, DB_LOCK_TIMEOUT_SECONDS="0.05")
            assert read_schema(notes) == before
            other.rollback()
            models.succeed("db.reembed", *options)
    assert value(notes, "SELECT vector_dims(embedding) FROM notes LIMIT 1") == 16
