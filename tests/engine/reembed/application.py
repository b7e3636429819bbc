"""An application that goes on searching and writing while the embedding model changes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import psycopg

from tests.engine.reembed.conftest import Model, add_notes

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.database.url import DatabaseUrl
    from tests.engine.reembed.conftest import Session

CONSTANT_NOTES = 50
WHICH = """
    SELECT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = 'notes'::regclass AND attname = 'embedding_old' AND NOT attisdropped)
"""
NEAREST = "SELECT content FROM notes WHERE embedding IS NOT NULL ORDER BY embedding <=> %s::vector LIMIT 3"
UPDATES = "UPDATE notes SET content = %s, embedding = %s::vector WHERE note_id = %s"


class Client:
    """One connection of the application. Every statement is prepared at its first use."""

    def __init__(self, url: DatabaseUrl, seed: int) -> None:
        self._url = url.plain
        self.connect()
        self.random = random.Random(seed)
        self.models = {False: Model(8), True: Model(16)}
        self.done = {False: 0, True: 0}
        self.written: list[str] = []

    def connect(self) -> None:
        self.connection = psycopg.connect(self._url, autocommit=True, prepare_threshold=0)

    def vector_and(self, text: str, work: Callable[[str], None]) -> bool:
        """Embed with the model that the column has, and work while it has it: the how-to's way.

        Returns whether it was done, and not just told that it has another one meanwhile.
        """
        which = bool(self.connection.execute(WHICH).fetchone()[0])  # type: ignore[index] # one row
        vector = self.models[which].vector(text)
        with self.connection.transaction():
            self.connection.execute("LOCK TABLE notes IN ACCESS SHARE MODE")
            same = bool(self.connection.execute(WHICH).fetchone()[0]) == which  # type: ignore[index] # one row
            if same:
                work(vector)
        self.done[which] += same
        return same

    def search(self) -> None:
        number = self.random.randrange(CONSTANT_NOTES)

        def work(vector: str) -> None:
            found = self.connection.execute(NEAREST, (vector,)).fetchall()
            assert found[0][0] == f"constant note number {number}"

        self.vector_and(f"constant note number {number}", work)

    def write(self) -> None:
        text, note = f"written {self.random.random()}", self.random.randrange(CONSTANT_NOTES + 1, 100)
        kind = self.random.randrange(3)
        if kind == 0:
            self.connection.execute("UPDATE notes SET stars = stars + 1 WHERE note_id = %s", (note,))
        elif kind == 1:
            self.vector_and(text, lambda vector: self._execute(UPDATES, text, vector, note))
        else:
            insert = "INSERT INTO notes (content, embedding) VALUES (%s, %s::vector)"
            if self.vector_and(text, lambda vector: self._execute(insert, text, vector)):
                self.written.append(text)

    def read(self) -> None:
        rows = self.connection.execute("SELECT note_id, content FROM notes WHERE note_id <= 50").fetchall()
        assert len(rows) == CONSTANT_NOTES
        self.done = {which: number + 1 for which, number in self.done.items()}

    def _execute(self, query: str, *values: object) -> None:
        self.connection.execute(query.encode(), values)


def add_first_notes(notes: Session, rows: int) -> None:
    """Fill an empty table: with notes that nobody changes, and at least as many others."""
    add_notes(notes, [f"constant note number {number}" for number in range(CONSTANT_NOTES)])
    add_notes(notes, [f"other {number}" for number in range(rows - CONSTANT_NOTES)])
