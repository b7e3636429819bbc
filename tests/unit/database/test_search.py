"""Search: what is found, in which order, by which score, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy import select, text

from rag_factory.database.connection import DatabaseConnection
from rag_factory.database.ingest import NewChunk, NewDocument, ingest
from rag_factory.database.models import Collection, Document
from rag_factory.database.models.documents import DIMENSIONS
from rag_factory.database.search import Hit, HybridHit, search_hybrid, search_text, search_vector
from rag_factory.errors import UsageError
from tests.unit.database.conftest import direction

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

EAST, NORTH, WEST = direction(0), direction(1), direction(0, -1)
SETTINGS = text("SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan')")
NORTH_EAST = [1.0, 1.0, *[0.0] * (DIMENSIONS - 2)]


@pytest.fixture
def session(db_connection: Session) -> Session:
    """Two documents, one in a collection. Their texts are their directions, and more words."""
    collection = Collection(name="pool", description="of a test")
    db_connection.add(collection)
    db_connection.commit()
    first = NewDocument(
        "first.md",
        [
            NewChunk("east, where the sun rises", EAST, {"lang": "en", "page": 1}),
            NewChunk("north", NORTH, {"lang": "en", "page": 2}, level=1, parent=0),
            NewChunk("west, where the sun sets; the sun sets late", direction(0, -2), {"lang": "de"}),
            NewChunk("nowhere yet"),
        ],
        "docs/first.md",
    )
    second = NewDocument(
        "second.md", [NewChunk("north-east", NORTH_EAST), NewChunk("sunny", EAST)],
        collection_id=collection.collection_id,
    )  # fmt: skip
    ingest(db_connection, [first, second])
    return db_connection


def texts(hits: list[Hit] | list[HybridHit]) -> list[str]:
    """The first word of each hit."""
    return [hit.text.replace(",", " ").split()[0] for hit in hits]


def test_hit_has_all_that_is_known_of_a_chunk(session: Session) -> None:
    hit = search_vector(session, NORTH, limit=1)[0]
    parent = search_text(session, "rises")[0]
    document = session.scalars(select(Document).where(Document.filename == "first.md")).one()
    assert hit == Hit(
        chunk_id=hit.chunk_id,
        document_id=document.document_id,
        chunk_index=1,
        text="north",
        metadata={"lang": "en", "page": 2},
        parent_chunk_id=parent.chunk_id,
        hierarchy_level=1,
        filename="first.md",
        source_path="docs/first.md",
        score=1.0,
    )


@pytest.mark.parametrize(
    ("metric", "order", "scores"),
    [
        ("cosine", ["east", "north-east", "north", "west"], [1, 0.5**0.5, 0, -1]),
        ("inner_product", ["east", "north-east", "north", "west"], [1, 1, 0, -2]),
        ("l2", ["east", "north-east", "north", "west"], [0, -1, -(2**0.5), -3]),
    ],
)
def test_vector_search_orders_and_scores_by_its_metric(
    session: Session, metric: Any, order: list[str], scores: list[float]
) -> None:
    hits = [hit for hit in search_vector(session, EAST, metric=metric) if hit.text != "sunny"]
    by_score = dict(zip(texts(hits), [hit.score for hit in hits], strict=True))
    assert by_score == pytest.approx(dict(zip(order, scores, strict=True)))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_vector_search_gives_no_more_than_its_limit(session: Session) -> None:
    assert texts(search_vector(session, NORTH_EAST, limit=1)) == ["north-east"]
    assert len(search_vector(session, NORTH_EAST, limit=5)) == 5
    assert len(search_vector(session, NORTH_EAST, limit=1000)) == 5, "without the one that has no embedding"


@pytest.mark.parametrize("kind", ["float32", "float64", "float16"])
def test_vector_search_takes_arrays(session: Session, kind: str) -> None:
    assert texts(search_vector(session, np.asarray(NORTH, dtype=kind), limit=1)) == ["north"]


def test_vector_of_zeros_is_not_found_by_direction(session: Session) -> None:
    ingest(session, [NewDocument("zero.md", [NewChunk("zero", direction(0, 0))])])
    assert "zero" not in texts(search_vector(session, EAST))
    assert "zero" in texts(search_vector(session, EAST, metric="l2"))


@pytest.mark.parametrize("scan", ["strict_order", "relaxed_order"])
def test_every_way_to_scan_gives_the_nearest_first(session: Session, scan: Any) -> None:
    session.execute(text("SET LOCAL enable_seqscan = off"))
    hits = search_vector(session, NORTH_EAST, limit=3, iterative_scan=scan)
    assert [hit.score for hit in hits] == pytest.approx([1, 0.5**0.5, 0.5**0.5])


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, ("100", "relaxed_order")),
        ({"limit": 80}, ("160", "relaxed_order")),
        ({"limit": 10_000}, ("1000", "relaxed_order")),
        ({"ef_search": 7, "iterative_scan": "off"}, ("7", "off")),
        ({"ef_search": None, "iterative_scan": "strict_order"}, ("100", "strict_order")),
    ],
)
def test_options_of_the_index_reach_it(session: Session, options: Any, settings: tuple[str, str]) -> None:
    search_vector(session, EAST, **options)
    assert tuple(session.execute(SETTINGS).one()) == settings


def test_settings_of_a_search_end_with_its_transaction(session: Session) -> None:
    before = session.execute(SETTINGS).one()
    with session.begin_nested() as inner:
        search_vector(session, EAST, ef_search=77)
        assert session.execute(SETTINGS).one() != before
        inner.rollback()
    assert session.execute(SETTINGS).one() == before


def test_text_search_finds_words_in_their_forms(session: Session) -> None:
    assert texts(search_text(session, "rising")) == ["east"]
    assert texts(search_text(session, "SUN")) == ["west", "east"], "where the word is twice comes first"
    assert texts(search_text(session, "sun sets")) == ["west"]
    assert texts(search_text(session, '"sun rises"')) == ["east"]
    assert texts(search_text(session, '"rises sun"')) == []
    assert sorted(texts(search_text(session, "rises or north"))) == ["east", "north", "north-east"]
    assert texts(search_text(session, "sun -rises")) == ["west"]
    assert texts(search_text(session, "sun", limit=1)) == ["west"]


def test_text_scores_are_from_0_to_1(session: Session) -> None:
    scores = [hit.score for hit in search_text(session, "sun or sets or north")]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)


@pytest.mark.parametrize("query", ["the", "'); DROP TABLE chunks; --", "100% %s %(query)s", "a & | ! ( :*"])
def test_text_search_takes_any_text(session: Session, query: str) -> None:
    assert search_text(session, query) == []


def test_hybrid_search_adds_up_the_ranks(session: Session) -> None:
    hits = search_hybrid(session, "north", NORTH)
    assert sorted(texts(hits)[:2]) == ["north", "north-east"]
    for hit in hits:
        expected = sum(1 / (60 + rank) for rank in (hit.vector_rank, hit.text_rank) if rank)
        assert hit.score == pytest.approx(expected)
    by_vector = search_vector(session, NORTH)
    assert [by_vector[hit.vector_rank - 1].chunk_id for hit in hits if hit.vector_rank] == [
        hit.chunk_id for hit in hits if hit.vector_rank
    ]
    assert {hit.text_rank for hit in hits[:2]} == {1, 2}


def test_hybrid_search_finds_what_only_one_list_has(session: Session) -> None:
    hits = search_hybrid(session, "nowhere", NORTH)
    nowhere = next(hit for hit in hits if hit.text == "nowhere yet")
    assert (nowhere.vector_rank, nowhere.text_rank) == (None, 1)
    assert next(hit for hit in hits if hit.text == "north").text_rank is None
    assert texts(search_hybrid(session, "the", NORTH, limit=1)) == ["north"], "a stop word finds nothing"


def test_hybrid_weights_decide(session: Session) -> None:
    assert texts(search_hybrid(session, "sunny", NORTH, limit=1, vector_weight=0.1)) == ["sunny"]
    assert texts(search_hybrid(session, "sunny", NORTH, limit=1, text_weight=0)) == ["north"]


def test_hybrid_lists_are_as_long_as_asked(session: Session) -> None:
    hits = search_hybrid(session, "sun or north", NORTH, candidates=1)
    assert sorted((hit.vector_rank or 0) + (hit.text_rank or 0) for hit in hits) in ([1, 1], [2])


def search_all(session: Session, **filters: Any) -> list[list[str]]:
    """What each search finds under these filters."""
    query = "sun or sunny or north or nowhere"
    return [
        sorted(texts(search_vector(session, EAST, **filters))),
        sorted(texts(search_text(session, query, **filters))),
        sorted(texts(search_hybrid(session, query, EAST, **filters))),
    ]


def test_filter_by_collection(session: Session) -> None:
    collection_id = session.scalar(select(Collection.collection_id))
    assert search_all(session, collection_id=collection_id) == [["north-east", "sunny"]] * 3
    assert search_all(session, collection_id=uuid4()) == [[]] * 3


def test_filter_by_document(session: Session) -> None:
    ids = session.scalars(select(Document.document_id).where(Document.filename == "second.md")).all()
    assert search_all(session, document_ids=ids) == [["north-east", "sunny"]] * 3
    assert search_all(session, document_ids=[]) == [[]] * 3, "no document is not every document"


def test_filter_by_metadata(session: Session) -> None:
    assert search_all(session, metadata={"lang": "en"}) == [["east", "north"]] * 3
    assert search_all(session, metadata={"lang": "en", "page": 2}) == [["north"]] * 3
    assert search_all(session, metadata={"lang": "fr"}) == [[]] * 3


def test_filters_hold_together(session: Session) -> None:
    ids = session.scalars(select(Document.document_id).where(Document.filename == "first.md")).all()
    collection_id = session.scalar(select(Collection.collection_id))
    assert search_all(session, document_ids=ids, metadata={"lang": "de"}) == [["west"]] * 3
    assert search_all(session, document_ids=ids, collection_id=collection_id) == [[]] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding": [1.0]}, f"has 1 dimensions, and chunks.embedding has {DIMENSIONS}"),
        ({"embedding": np.ones((2, DIMENSIONS))}, "has 2 axes"),
        ({"embedding": direction(0, float("nan"))}, "holds NaN or infinity"),
        ({"embedding": direction(0, float("inf"))}, "holds NaN or infinity"),
        ({"embedding": direction(0, 0)}, "is all zeros"),
        ({"embedding": direction(0, -0.0)}, "is all zeros"),
        ({"embedding": "east"}, "is not a sequence of numbers"),
        ({"limit": 0}, "limit is 0, not a whole number from 1 to 10000"),
        ({"limit": -1}, "limit is -1"),
        ({"limit": 10_001}, "limit is 10001"),
        ({"limit": 1.5}, "limit is 1.5"),
        ({"limit": True}, "limit is True"),
        ({"ef_search": 0}, "ef_search is 0"),
        ({"ef_search": 1001}, "ef_search is 1001"),
        ({"iterative_scan": "on"}, "iterative_scan 'on' is not known"),
        ({"metadata": {"a": {1}}}, "metadata to filter by is not JSON"),
        ({"metadata": {"a": "\0"}}, "metadata to filter by holds a NUL"),
    ],
)
def test_wrong_argument_is_refused_before_any_search(
    session: Session, arguments: dict[str, Any], message: str
) -> None:
    given = {"embedding": EAST} | arguments
    with pytest.raises(UsageError, match=message):
        search_vector(session, **given)
    with pytest.raises(UsageError, match=message):
        search_hybrid(session, "north", **given)
    assert session.scalar(text("SELECT 1")) == 1, "no statement failed"


def test_mistyped_filter_is_refused(session: Session) -> None:
    mistyped: Any = {"colection_id": uuid4()}
    for search in (
        lambda: search_vector(session, EAST, **mistyped),
        lambda: search_text(session, "north", **mistyped),
        lambda: search_hybrid(session, "north", EAST, **mistyped),
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument 'colection_id'"):
            search()


def test_wrong_metric_is_refused(session: Session) -> None:
    wrong: Any = "<=>"
    with pytest.raises(UsageError, match="metric '<=>' is not known"):
        search_vector(session, EAST, metric=wrong)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("a\0b", "holds a NUL"),
        ("\ud800", "holds half a surrogate pair"),
        (None, "is no text but NoneType"),
    ],
)
def test_wrong_query_is_refused(session: Session, query: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search_text(session, query)
    with pytest.raises(UsageError, match=message):
        search_hybrid(session, query, EAST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector_weight": -1}, "weights"),
        ({"vector_weight": 0, "text_weight": 0}, "weights"),
        ({"text_weight": float("nan")}, "weights"),
        ({"candidates": 0}, "candidates is 0"),
    ],
)
def test_wrong_hybrid_option_is_refused(session: Session, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search_hybrid(session, "north", EAST, **options)


def test_search_sees_what_the_session_has_not_yet_written(session: Session) -> None:
    document = session.scalars(select(Document).where(Document.filename == "first.md")).one()
    document.filename = "renamed.md"
    assert search_text(session, "rises")[0].filename == "renamed.md"


def test_changed_dimensions_are_noticed(fresh_database: Engine) -> None:
    database = DatabaseConnection.on(fresh_database)
    with database.session() as session:
        assert search_vector(session, EAST) == []
    with fresh_database.begin() as connection:
        connection.execute(text("ALTER TABLE chunks ALTER COLUMN embedding TYPE vector(3)"))
    with database.session() as session:
        ingest(session, [NewDocument("a.md", [NewChunk("a", [1, 2, 3])])])
        assert texts(search_vector(session, [1, 2, 3])) == ["a"]
        with pytest.raises(UsageError, match=f"has {DIMENSIONS} dimensions, and chunks.embedding has 3"):
            search_vector(session, EAST)


@pytest.fixture
def clustered(db_connection: Session) -> tuple[Session, list[Any]]:
    """A thousand chunks around 20 centres, and vectors to search by, also beside the centres."""
    generator = np.random.default_rng(7)
    centres = generator.standard_normal((20, DIMENSIONS))

    def beside(number: int) -> Any:
        return centres[number % 20] + 0.5 * generator.standard_normal(DIMENSIONS)

    chunks = [NewChunk(str(number), beside(number), {"half": number % 2}) for number in range(1000)]
    ingest(db_connection, [NewDocument("clusters.md", chunks)])
    return db_connection, [beside(number) for number in range(20)]


@pytest.mark.parametrize("filters", [{}, {"metadata": {"half": 1}}])
def test_search_by_index_finds_what_an_exact_one_finds(
    clustered: tuple[Session, list[Any]], filters: dict[str, Any]
) -> None:
    session, queries = clustered

    def search(*, index: bool) -> list[set[UUID]]:
        on, off = ("on", "off") if index else ("off", "on")
        session.execute(text(f"SET LOCAL enable_indexscan = {on}"))
        session.execute(text(f"SET LOCAL enable_seqscan = {off}"))
        session.execute(text(f"SET LOCAL enable_bitmapscan = {off}"))
        return [{hit.chunk_id for hit in search_vector(session, query, **filters)} for query in queries]

    some, best = search(index=True), search(index=False)
    assert sum(len(each) for each in best) == 200
    assert sum(len(one & other) for one, other in zip(some, best, strict=True)) / 200 >= 0.9
