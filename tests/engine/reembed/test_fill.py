"""Filling: what is embedded and what isn't, beside others who write, and with models that misbehave."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from rag_factory.errors import LockedError, RagFactoryError, UsageError
from rag_factory.migrate.reembed import fill
from rag_factory.migrate.reembed.fill import Filler
from rag_factory.migrate.reembed.index import build_waiting_index
from tests.engine.reembed.conftest import OLD_MODEL, Model, add_notes, begin, value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rag_factory.database.url import DatabaseUrl
    from tests.engine.reembed.conftest import Session

WAITING = "SELECT count(*) FROM notes WHERE embedding_new IS NULL"


def test_rows_without_text_or_embedding_are_left(notes: Session) -> None:
    notes.execute("UPDATE notes SET content = NULL WHERE note_id = 1")
    notes.execute("UPDATE notes SET embedding = NULL WHERE note_id = 2")
    notes.execute("UPDATE notes SET content = '' WHERE note_id = 3")
    changer = begin(notes)
    told: list[int] = []
    filler = Filler(notes, changer.change, changer.table, changer.model, batch_rows=3)
    assert filler.count() == 8
    assert filler.run(told.append) == 8
    assert changer.model.asked == [3, 3, 2]
    assert told == [3, 6, 8]
    left = "SELECT array_agg(note_id ORDER BY note_id) FROM notes WHERE embedding_new IS NULL"
    assert value(notes, left) == [1, 2]
    assert changer.fill() == 0
    notes.execute("UPDATE notes SET embedding = %s WHERE note_id = 2", (OLD_MODEL.vector("late"),))
    assert changer.fill() == 1


def test_keys_are_taken_in_their_own_order(notes: Session) -> None:
    add_notes(notes, [f"note {number}" for number in range(115)])
    changer = begin(notes)
    assert changer.fill(batch_rows=20) == 125
    assert changer.model.asked == [20] * 6 + [5]


def test_batch_reads_no_more_rows_than_it_has(notes: Session) -> None:
    add_notes(notes, ["note"])
    notes.execute(
        "INSERT INTO notes (content, embedding) SELECT content, embedding FROM notes, generate_series(1, 150)"
    )
    changer = begin(notes)
    build_waiting_index(notes, changer.change, changer.table)
    filler = Filler(notes, changer.change, changer.table, changer.model)
    written: list[Any] = []

    class Explaining(psycopg.Cursor[Any]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(query, sql.Composed) and "UPDATE" in query.as_string(self):
                super().execute(sql.SQL("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) ") + query)
                written.extend(self.fetchall())
                return self
            return super().execute(query, *arguments, **options)

    notes.cursor_factory = Explaining
    filler.run()
    scans = [re.search(r"Scan .*notes.* rows=(\d+)", line) for (line,) in written]
    rows = [int(found[1]) for found in scans if found]
    assert len(rows) > 20
    assert max(rows) <= 128


def test_triggers_know_that_it_is_a_backfill(notes: Session) -> None:
    notes.execute("""
        CREATE TABLE seen (setting text);
        CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO seen VALUES (current_setting('rag_factory.backfill', true)); RETURN NULL; END $$;
        CREATE TRIGGER look AFTER UPDATE ON notes EXECUTE FUNCTION look()
    """)
    begin(notes).fill()
    assert value(notes, "SELECT setting FROM seen") == "on"
    assert value(notes, "SELECT current_setting('rag_factory.backfill', true)") == ""


class Doing(Model):
    """A model that does something else while it embeds, once."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__(16)
        self._action = action

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if not self.asked:
            self._action()
        return super().embed(texts)


def test_text_that_changes_while_it_is_embedded(notes: Session, database_url: DatabaseUrl) -> None:
    changer = begin(notes)
    with psycopg.connect(database_url.plain, autocommit=True) as other:
        states: list[Any] = []

        def act() -> None:
            other.execute("UPDATE notes SET content = 'changed' WHERE note_id = 4")
            other.execute("DELETE FROM notes WHERE note_id = 5")
            other.execute("UPDATE notes SET note_id = 60 WHERE note_id = 6")
            other.execute("UPDATE notes SET stars = 4 WHERE note_id = 7")
            query = "SELECT state, xact_start FROM pg_stat_activity WHERE pid = %s"
            states.append(other.execute(query, (notes.info.backend_pid,)).fetchone())

        changer.model = Doing(act)
        changer.fill()
    # However slow the model, no transaction is open meanwhile.
    assert states == [("idle", None)]
    assert changer.model.asked[0] == 10
    assert value(notes, WAITING) == 0
    new = "SELECT embedding_new::text FROM notes WHERE note_id = 4"
    assert value(notes, new) == value(notes, "SELECT %s::vector::text", Model(16).vector("changed"))


def test_locked_rows_hold_nobody_up(
    notes: Session, database_url: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    changer = begin(notes)
    monkeypatch.setattr(fill, "PATIENCE_SECONDS", 0.0)
    with psycopg.connect(database_url.plain) as other:
        other.execute("UPDATE notes SET content = 'theirs' WHERE note_id IN (2, 9)")
        with pytest.raises(LockedError, match=r"2 rows of notes\.embedding are locked or changed"):
            changer.fill()
        assert value(notes, WAITING) == 2
        # What only refers to a row, as a foreign key does, isn't in the way.
        other.rollback()
        other.execute("SELECT FROM notes WHERE note_id = 2 FOR KEY SHARE")
        assert changer.fill() == 2


def test_writer_who_never_stops_does_not_keep_it(notes: Session, database_url: DatabaseUrl) -> None:
    with psycopg.connect(database_url.plain, autocommit=True) as other:

        class Busy(Model):
            def embed(self, texts: Sequence[str]) -> list[list[float]]:
                add_notes(other, ["one more"])
                return super().embed(texts)

        changer = begin(notes)
        changer.model = Busy(16)
        assert changer.fill(batch_rows=4) >= 10
        assert value(notes, WAITING) <= 1


class Wrong(Model):
    """A model that goes wrong with the eighth text."""

    def __init__(self, wrong: object) -> None:
        super().__init__(16)
        self._wrong = wrong

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[Any] = super().embed(texts)
        if any("7" in text for text in texts):
            if isinstance(self._wrong, Exception):
                raise self._wrong
            place = next(at for at, text in enumerate(texts) if "7" in text)
            vectors[place : place + 1] = [] if self._wrong is None else [self._wrong]
        return vectors


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([1.0] * 15, "gave 15 dimensions instead of 16 for row 8 of notes"),
        ([], "gave 0 dimensions instead of 16 for row 8"),
        ([float("nan")] * 16, "gave NaN or infinity for row 8"),
        ([1.0] * 15 + [float("inf")], "gave NaN or infinity for row 8"),
        ([1e39] * 16, "gave a number beyond 3.40282e.38 for row 8"),
        (["x"] * 16, "failed on rows 7 to 9 of notes: ValueError: could not convert"),
        (None, "gave 2 embeddings for 3 texts, rows 7 to 9 of notes"),
        (7, "failed on rows 7 to 9 of notes: TypeError"),
        (ConnectionError("no network"), "failed on rows 7 to 9 of notes: ConnectionError: no network"),
    ],
)
def test_wrong_model_is_told_and_what_is_filled_stays(
    shared_notes: Session, wrong: object, says: str
) -> None:
    with shared_notes.transaction(force_rollback=True):
        add_notes(shared_notes, [f"note {number}" for number in range(10)])
        shared_notes.execute("UPDATE notes SET note_id = note_id - (SELECT min(note_id) FROM notes) + 1")
        changer = begin(shared_notes)
        changer.model = Wrong(wrong)
        with pytest.raises(
            RagFactoryError, match=f"^The embedder model-16 {says}.*go on .*invoke db.reembed"
        ):
            changer.fill(batch_rows=3)
        assert value(shared_notes, WAITING) == 4
        changer.model = Model(16)
        assert changer.fill() == 4


def test_numbers_that_half_precision_lacks_are_told(notes: Session) -> None:
    changer = begin(notes, type_name="halfvec")
    changer.model = Wrong([70000.0] * 16)
    with pytest.raises(RagFactoryError, match=r"gave a number beyond 65504 for row 8"):
        changer.fill()


def test_model_of_another_length_is_refused(notes: Session) -> None:
    changer = begin(notes)
    changer.model = Model(8)
    with pytest.raises(UsageError, match=r"has 8 dimensions, and notes\.embedding_new is vector\(16\)"):
        changer.fill()


def test_old_embeddings_of_what_came_meanwhile(notes: Session) -> None:
    changer = begin(notes)
    changer.make_ready()
    changer.cut_over()
    notes.execute("INSERT INTO notes (content, embedding) VALUES ('late', %s)", (Model(16).vector("late"),))
    changer.model = Model(8)
    assert changer.fill(for_old=True) == 1
    changer.go_back()
    assert value(notes, "SELECT count(*) FROM notes WHERE embedding IS NULL") == 0
