"""Readers and writers while the columns are swapped: no query fails, and none finds wrong things."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.engine.reembed.application import Client, add_first_notes
from tests.engine.reembed.conftest import Model, begin, value

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.database.url import DatabaseUrl
    from tests.engine.reembed.conftest import Session

SWAPS = 6


def test_no_query_fails_while_the_columns_are_swapped(notes: Session, database_url: DatabaseUrl) -> None:
    notes.execute("TRUNCATE notes; ALTER TABLE notes ALTER note_id RESTART")
    add_first_notes(notes, 100)
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
