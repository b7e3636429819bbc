"""The recall: that it is the index's, and what it says of good and bad ones."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from rag_factory.migrate.reembed.recall import Recall, measure_recall
from rag_factory.migrate.reembed.record import read_all
from tests.engine.reembed.conftest import Changer, begin

if TYPE_CHECKING:
    from tests.engine.reembed.conftest import Session

ROWS, CLUSTERS = 1500, 30


@pytest.fixture
def clustered(notes: Session) -> Changer:
    """Rows in clusters: the new embeddings have those of the old ones, each moved a little."""
    generator = random.Random(5)
    centres = [[generator.gauss(0, 1) for _ in range(8)] for _ in range(CLUSTERS)]
    notes.execute("TRUNCATE notes; ALTER TABLE notes ALTER note_id RESTART")
    changer = begin(notes)
    with notes.cursor().copy("COPY notes (content, embedding, embedding_new) FROM STDIN") as copy:
        for number in range(ROWS):
            vector = [value + generator.gauss(0, 0.1) for value in centres[number % CLUSTERS]]
            moved = [value + generator.gauss(0, 0.05) for value in vector] + [0.0] * 8
            copy.write_row((f"text {number}", str(vector), str(moved)))
    changer.make_ready()
    return changer


def measure(changer: Changer, **options: float) -> Recall:
    return measure_recall(changer.session, changer.change, changer.table, **options)  # type: ignore[arg-type] # any of its options


def test_recall_of_good_and_bad_searches(clustered: Changer) -> None:
    found = measure(clustered)
    assert found.rows == 50
    assert found.new is not None
    assert found.old is not None
    assert found.shared is not None
    assert 0.9 <= found.new <= 1
    assert 0.9 <= found.old <= 1
    # The clusters are the same, the order within them isn't.
    assert 0.2 < found.shared < 0.95
    assert read_all(clustered.session)[0].recall == vars(found)

    # It is the index that was searched: with a worse search, less is found.
    clustered.session.execute("SET hnsw.ef_search = 4")
    found = measure(clustered)
    assert (found.new or 1) <= 0.4
    assert (found.old or 1) <= 0.4

    assert measure(clustered, budget_seconds=0) == Recall(0, None, None, None)
    clustered.session.execute("TRUNCATE notes")
    assert measure(clustered) == Recall(0, None, None, None)
