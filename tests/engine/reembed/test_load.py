"""Readers and writers while the columns are swapped: no query fails, and none finds wrong things."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.engine.reembed.conftest import Model, add_notes, begin, value

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.database.url import DatabaseUrl
    from tests.engine.reembed.conftest import Session

WHICH = """
    SELECT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = 'notes'::regclass AND attname = 'embedding_old' AND NOT attisdropped)
"""
NEAREST = "SELECT content FROM notes WHERE embedding IS NOT NULL ORDER BY embedding <=> %s::vector LIMIT 3"
UPDATES = "UPDATE notes SET content = %s, embedding = %s::vector WHERE note_id = %s"
SWAPS = 6


class Client:
    """One connection of the application. Every statement is prepared at its first use."""

    def __init__(self, url: DatabaseUrl, seed: int) -> None:
        self.connection = psycopg.connect(url.plain, autocommit=True, prepare_threshold=0)
        self.random = random.Random(seed)
        self.models = {False: Model(8), True: Model(16)}
        self.done = {False: 0, True: 0}

    def vector_and(self, text: str, work: Callable[[str], None]) -> None:
        """Embed with the model that the column has, and work while it has it: the how-to's way."""
        which = bool(self.connection.execute(WHICH).fetchone()[0])  # type: ignore[index] # one row
        vector = self.models[which].vector(text)
        with self.connection.transaction():
            self.connection.execute("LOCK TABLE notes IN ACCESS SHARE MODE")
            if bool(self.connection.execute(WHICH).fetchone()[0]) == which:  # type: ignore[index] # one row
                work(vector)
                self.done[which] += 1

    def search(self) -> None:
        number = self.random.randrange(50)

        def work(vector: str) -> None:
            found = self.connection.execute(NEAREST, (vector,)).fetchall()
            assert found[0][0] == f"constant note number {number}"

        self.vector_and(f"constant note number {number}", work)

    def write(self) -> None:
        text, note = f"written {self.random.random()}", self.random.randrange(51, 100)
        kind = self.random.randrange(3)
        if kind == 0:
            self.connection.execute("UPDATE notes SET stars = stars + 1 WHERE note_id = %s", (note,))
        elif kind == 1:
            self.vector_and(text, lambda vector: self._execute(UPDATES, text, vector, note))
        else:
            insert = "INSERT INTO notes (content, embedding) VALUES (%s, %s::vector)"
            self.vector_and(text, lambda vector: self._execute(insert, text, vector))

    def read(self) -> None:
        rows = self.connection.execute("SELECT note_id, content FROM notes WHERE note_id <= 50").fetchall()
        assert len(rows) == 50
        self.done = {which: number + 1 for which, number in self.done.items()}

    def _execute(self, query: str, *values: object) -> None:
        self.connection.execute(query.encode(), values)


def test_no_query_fails_while_the_columns_are_swapped(notes: Session, database_url: DatabaseUrl) -> None:
    notes.execute("TRUNCATE notes; ALTER TABLE notes ALTER note_id RESTART")
    add_notes(notes, [f"constant note number {number}" for number in range(50)])
    add_notes(notes, [f"other {number}" for number in range(50)])
    changer = begin(notes)
    changer.make_ready()
    over, failures = threading.Event(), []
    clients = [Client(database_url, seed) for seed in range(8)]
    work = [Client.search] * 3 + [Client.write] * 3 + [Client.read] * 2

    def run(client: Client, act: Callable[[Client], None]) -> None:
        try:
            while not over.is_set():
                act(client)
        except Exception as error:
            failures.append(error)
            raise

    def wait_for_all() -> None:
        """Until each has worked on this side of the swap."""
        which = changer.change.phase == "cut over"
        before = [client.done[which] for client in clients]
        while any(client.done[which] <= old for client, old in zip(clients, before, strict=True)):
            assert not failures

    threads = [threading.Thread(target=run, args=each) for each in zip(clients, work, strict=True)]
    for thread in threads:
        thread.start()
    try:
        for number in range(SWAPS):
            wait_for_all()
            (changer.go_back if number % 2 else changer.cut_over)()
            changer.fill()
        wait_for_all()
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for client in clients:
            client.connection.close()
    assert failures == []
    assert changer.change.phase == "filling"
    changer.fill()
    assert (
        value(notes, "SELECT count(*) FROM notes WHERE embedding_new IS NULL AND embedding IS NOT NULL") == 0
    )
    # No vector is that of a text which a row no longer has.
    for column, model in (("embedding", Model(8)), ("embedding_new", Model(16))):
        query = f"SELECT content, {column}::text FROM notes WHERE {column} IS NOT NULL"
        for text, vector in notes.execute(query.encode()):
            expected = model.embed([text])[0]
            found = [float(number) for number in vector[1:-1].split(",")]
            assert found == pytest.approx(expected, abs=1e-6), (column, text)


def test_prepared_statement_that_gives_vectors_is_the_one_that_fails(
    notes: Session, database_url: DatabaseUrl
) -> None:
    """Why the how-to says what it says of statements that name the column, or all columns, as a result."""
    changer = begin(notes)
    changer.make_ready()
    with (
        psycopg.connect(database_url.plain, autocommit=True, prepare_threshold=0) as preparing,
        psycopg.connect(database_url.plain, autocommit=True, prepare_threshold=None) as other,
    ):
        for client in (preparing, other):
            client.execute("SELECT embedding FROM notes")
            client.execute("SELECT note_id FROM notes ORDER BY embedding <=> embedding")
        changer.cut_over()
        with pytest.raises(
            psycopg.errors.FeatureNotSupported, match="cached plan must not change result type"
        ):
            preparing.execute("SELECT embedding FROM notes")
        other.execute("SELECT embedding FROM notes")
        for client in (preparing, other):
            client.execute("SELECT note_id FROM notes ORDER BY embedding <=> embedding")
