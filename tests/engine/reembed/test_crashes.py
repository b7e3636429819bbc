"""db.reembed or its server killed at random moments, beside an application that searches and writes.

The next run finishes each step, and no query fails but by a server that is gone.
How many moments, and which: see crash_site.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.migrate.reembed.record import read_all
from rag_factory.migrate.schema import read_schema
from tests.engine.crash_site import MOMENTS, SEED, VICTIMS, Site, open_site
from tests.engine.reembed.application import Client, add_first_notes
from tests.engine.reembed.conftest import NOTES, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl

MODELS = """
from rag_factory.database.embedding import OfflineEmbedder

class New(OfflineEmbedder):
    name = "model-16"

    def __init__(self):
        super().__init__(16)

class Old(OfflineEmbedder):
    name = "model-8"

    def __init__(self):
        super().__init__(8)
"""
ROWS = 600
BEGIN = ("--begin", "--column", "notes.embedding", "--text-column", "content", "--embedder", "models:New")
# Each with how long the vectors are that every column has after it.
STEPS: tuple[tuple[tuple[str, ...], dict[str, int]], ...] = (
    ((*BEGIN, "--batch", "16"), {"embedding": 8, "embedding_new": 16}),
    (("--cut-over",), {"embedding": 16, "embedding_old": 8}),
    (("--back", "--embedder", "models:Old"), {"embedding": 8, "embedding_new": 16}),
    (("--cut-over",), {"embedding": 16, "embedding_old": 8}),
    (("--drop-old", "--yes"), {"embedding": 16}),
)
COLUMNS = """
    SELECT attname, atttypmod FROM pg_attribute
    WHERE attrelid = 'notes'::regclass AND attname ~ '^embedding' AND NOT attisdropped
"""
TRIGGERS = "SELECT tgenabled FROM pg_trigger WHERE tgrelid = 'notes'::regclass AND tgname ~ 'rag_factory'"
INVALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
GONE = ("57P", "08")  # the classes of what a server says that is going down


class Application:
    """Clients that work all the time. They may lose their connection where the server is killed."""

    def __init__(self, url: DatabaseUrl, *, server_dies: bool) -> None:
        self._server_dies = server_dies
        self._over = threading.Event()
        self._failures: list[Exception] = []
        self.clients = [Client(url, SEED + number) for number in range(3)]
        acts = (Client.search, Client.write, Client.read)
        self._threads = [
            threading.Thread(target=self._work, args=each) for each in zip(self.clients, acts, strict=True)
        ]

    def __enter__(self) -> Application:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for client in self.clients:
            client.connection.close()

    def answer(self) -> None:
        """Wait until each client has had an answer again."""
        before = [sum(client.done.values()) for client in self.clients]
        deadline = time.monotonic() + 60
        while any(sum(client.done.values()) <= old for client, old in zip(self.clients, before, strict=True)):
            assert not self._failures
            assert time.monotonic() < deadline
            time.sleep(0.01)  # between two looks

    def _work(self, client: Client, act: Callable[[Client], None]) -> None:
        while not self._over.wait(0.005):
            try:
                act(client)
            except Exception as error:
                if not self._is_forgiven(error):
                    self._failures.append(error)
                    raise
                client.connection.close()
                self._reconnect(client)

    def _reconnect(self, client: Client) -> None:
        while not self._over.wait(0.02):
            with contextlib.suppress(psycopg.OperationalError):
                client.connect()
                return

    def _is_forgiven(self, error: Exception) -> bool:
        gone = isinstance(error, psycopg.OperationalError) and (error.sqlstate or GONE[0]).startswith(GONE)
        return self._server_dies and gone


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, public_folder: Path) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("crashes")
    (root / "models.py").write_text(MODELS)
    with open_site(root, public_folder / "reembed-crashes") as site:
        with psycopg.connect(site.url("postgres").plain, autocommit=True) as session:
            session.execute("CREATE DATABASE before")
        with psycopg.connect(site.url("before").plain, autocommit=True) as session:
            session.execute(f"CREATE EXTENSION vector; {NOTES}")
            add_first_notes(session, ROWS)
        yield site


def check(session: psycopg.Connection[Any], columns: dict[str, int]) -> None:
    """Each column is there once, in step with the texts, and each vector is that of its row's text."""
    assert dict(session.execute(COLUMNS).fetchall()) == columns
    assert session.execute(TRIGGERS).fetchall() == ([("A",)] if len(columns) > 1 else [])
    assert session.execute(INVALID).fetchall() == []
    for column, dimensions in columns.items():
        model = Model(dimensions)
        query = f"SELECT content, {column}::text FROM notes WHERE {column} IS NOT NULL"
        rows = session.execute(query.encode()).fetchall()
        assert len(rows) >= ROWS / 2
        for text, vector in rows:
            found = [float(number) for number in vector[1:-1].split(",")]
            expected = model.embed([text])[0]
            assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-6, (column, text)


@pytest.mark.parametrize("victim", VICTIMS)
def test_next_run_finishes_the_step_and_queries_are_answered(site: Site, victim: str) -> None:
    choose = random.Random(f"{SEED} {victim}")
    site.copy("before", "app")
    began = time.monotonic()
    site.run("db.reembed", "--status")
    # Of a step that was not seen yet: most of it is the time that any task needs.
    usual_seconds = dict.fromkeys(range(len(STEPS)), 2 * (time.monotonic() - began))
    for number in range(MOMENTS):
        site.copy("before", "app")
        with psycopg.connect(site.url().plain, autocommit=True) as session:
            schema = read_schema(session)
        with Application(site.url(), server_dies=victim == "server") as application:
            for place, (options, columns) in enumerate(STEPS):
                if options[0] == "--drop-old":
                    # As the how-to says: before it, the code that knows the new model only.
                    for client in application.clients:
                        client.models = {False: Model(16), True: Model(16)}
                moment = choose.uniform(0, usual_seconds[place])
                site.crash(moment, victim, "db.reembed", *options)
                where = f"CRASH_SEED={SEED}, number {number}, {options[0]}: {moment:.3f} s"
                began = time.monotonic()
                done = site.cli.invoke("db.reembed", *options)
                usual_seconds[place] = time.monotonic() - began
                if done.returncode == 2 and options[0] == "--drop-old":
                    assert "No change of embedding model is under way" in done.stderr, where
                else:
                    assert done.returncode == 0, (where, done.stderr)
                with psycopg.connect(site.url().plain, autocommit=True) as session:
                    check(session, columns)
                application.answer()
        with psycopg.connect(site.url().plain, autocommit=True) as session:
            check(session, STEPS[-1][1])
            query = "SELECT count(*), count(embedding), count(DISTINCT content) FROM notes"
            ((rows, embeddings, texts),) = session.execute(query).fetchall()
            assert rows == embeddings == texts, where
            kept = {text for (text,) in session.execute("SELECT content FROM notes")}
            assert read_schema(session) == tuple(
                sorted(line.replace("vector(8)", "vector(16)") for line in schema)
            )
            assert read_all(session) == []
        written = {text for client in application.clients for text in client.written}
        assert written
        assert written <= kept, where
