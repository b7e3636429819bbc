"""Find chunks: by the direction of their embedding, by their words, and by both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from rag_factory.database.encoding import BinaryVector, accept_vectors, encode_vector
from rag_factory.database.search_options import (
    DEFAULT_LIMIT,
    LARGEST_LIMIT,
    Filters,
    HybridOptions,
    VectorFilters,
    check_limit,
    read_filters,
    read_options,
    read_query,
    read_weights,
    refuse_unknown,
)
from rag_factory.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack
    from uuid import UUID

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import Pool

    from rag_factory.database.encoding import Embedding

Metric = Literal["cosine", "inner_product", "l2"]

OVERFETCH = 4
# Constant of reciprocal rank fusion: https://doi.org/10.1145/1571941.1572114
RANK_CONSTANT = 60
_OPERATORS: dict[Metric, str] = {"cosine": "<=>", "inner_product": "<#>", "l2": "<->"}
_SCORES: dict[Metric, str] = {"cosine": "1 - distance", "inner_product": "-distance", "l2": "-distance"}
# The language that the trigger on chunks.text has.
_QUERY = "websearch_to_tsquery('pg_catalog.english', %(query)s)"
_CHUNK = "chunk_id, document_id, chunk_index, text, metadata, parent_chunk_id, hierarchy_level"
_FIELDS = (
    "chunk_id, document_id, chunk_index, text, {table}.metadata, parent_chunk_id, hierarchy_level,"
    " filename, source_path"
)
_MINUS_ZERO = b"\x80\0\0\0"
_DIMENSIONS = (
    "SELECT nullif(atttypmod, -1) FROM pg_attribute"
    " WHERE attrelid = 'chunks'::regclass AND attname = 'embedding'"
)


@dataclass(frozen=True)
class Hit:
    """A chunk that was found, and its document's names. score: the greater the better, see the search."""

    chunk_id: UUID
    document_id: UUID
    chunk_index: int
    text: str
    metadata: dict[str, Any]
    parent_chunk_id: UUID | None
    hierarchy_level: int
    filename: str
    source_path: str | None
    score: float


@dataclass(frozen=True)
class HybridHit(Hit):
    """A hit of `search_hybrid`, with its place in either list, from 1; None: it isn't on that list."""

    vector_rank: int | None
    text_rank: int | None


def search_vector(
    session: Session,
    embedding: Embedding,
    *,
    limit: int = DEFAULT_LIMIT,
    metric: Metric = "cosine",
    **options: Unpack[VectorFilters],
) -> list[Hit]:
    """Find the chunks whose embedding is nearest, nearest first.

    embedding: finite, shape (dimensions of chunks.embedding,).
    limit: how many at most, 1 to 10,000. options: see Filters and VectorOptions.
    score: with `cosine` the cosine, -1 (opposite) to 1 (same direction); with `inner_product` the product
    itself; with `l2` the Euclidean distance negated, 0 (same) and below.
    Only cosine has an index, idx_chunks_embedding_hnsw. The others compare every chunk that the filters
    leave, which is exact.
    Raises UsageError: an argument is wrong; nothing was searched.
    """
    refuse_unknown(options, VectorFilters)
    check_limit(limit)
    if metric not in _OPERATORS:
        raise UsageError(f"The metric {metric!r} is not known.", fix=f"Use one of: {', '.join(_OPERATORS)}.")
    settings = read_options(limit, options)
    conditions, parameters = read_filters(options)
    connection = _connect(session)
    parameters |= {"vector": _read_vector(connection, embedding, metric), "limit": limit}
    _set(connection, settings)
    return [Hit(*row) for row in _fetch(connection, _vector_query(metric, conditions), parameters)]


def search_text(
    session: Session, query: str, *, limit: int = DEFAULT_LIMIT, **filters: Unpack[Filters]
) -> list[Hit]:
    """Find the chunks that hold the words of a query, best first.

    query: words, which must all be there in some form; "quoted words" in this order; `or`; -without.
    limit: how many at most, 1 to 10,000.
    score: ts_rank_cd, by how often and how near each other the words are, scaled to 0 to 1; only to be
    compared within one query. A query of nothing but stop words finds nothing.
    Raises UsageError: an argument is wrong; nothing was searched.
    """
    refuse_unknown(filters, Filters)
    check_limit(limit)
    conditions, parameters = read_filters(filters)
    parameters |= {"query": read_query(query), "limit": limit}
    statement = (
        f"SELECT {_FIELDS.format(table='matching')}, score"
        f" FROM ({_matching(conditions)}) AS matching JOIN documents USING (document_id)"
        " ORDER BY score DESC, chunk_id"
    )
    return [Hit(*row) for row in _fetch(_connect(session), statement, parameters)]


def search_hybrid(
    session: Session,
    query: str,
    embedding: Embedding,
    *,
    limit: int = DEFAULT_LIMIT,
    **options: Unpack[HybridOptions],
) -> list[HybridHit]:
    """Find chunks by words and by embedding (cosine), those first that are far up in both lists.

    query, embedding, limit: as above. options: see HybridOptions, VectorOptions and Filters.
    score: reciprocal rank fusion, the sum of weight / (60 + rank) over the lists that the chunk is on: 0 to
    (vector_weight + text_weight) / 61.
    Raises UsageError: an argument is wrong; nothing was searched.
    """
    refuse_unknown(options, HybridOptions)
    check_limit(limit)
    candidates = options.get("candidates")
    if candidates is None:
        candidates = max(4 * limit, 40)
    check_limit(candidates, "candidates", largest=4 * LARGEST_LIMIT)
    weights = read_weights(options)
    settings = read_options(candidates, options)
    conditions, parameters = read_filters(options)
    parameters |= {"query": read_query(query), "limit": candidates, "returned": limit}
    parameters |= {"vector_weight": weights[0], "text_weight": weights[1]}
    connection = _connect(session)
    parameters["vector"] = _read_vector(connection, embedding, "cosine")
    _set(connection, settings)
    statement = (
        "WITH by_vector AS MATERIALIZED ("
        " SELECT chunk_id, row_number() OVER (ORDER BY distance, chunk_id) AS rank"
        f" FROM ({_nearest('cosine', conditions, 'chunk_id')}) AS nearest"
        "), by_text AS MATERIALIZED ("
        " SELECT chunk_id, row_number() OVER (ORDER BY score DESC, chunk_id) AS rank"
        f" FROM ({_matching(conditions, 'chunk_id')}) AS matching"
        "), fused AS ("
        " SELECT chunk_id, by_vector.rank AS vector_rank, by_text.rank AS text_rank,"
        f" coalesce(%(vector_weight)s::float8 / ({RANK_CONSTANT} + by_vector.rank), 0)"
        f" + coalesce(%(text_weight)s::float8 / ({RANK_CONSTANT} + by_text.rank), 0) AS score"
        " FROM by_vector FULL JOIN by_text USING (chunk_id)"
        " ORDER BY score DESC, chunk_id LIMIT %(returned)s"
        f") SELECT {_FIELDS.format(table='chunks')}, score, vector_rank, text_rank"
        " FROM fused JOIN chunks USING (chunk_id) JOIN documents USING (document_id)"
        " ORDER BY score DESC, chunk_id"
    )
    return [HybridHit(*row) for row in _fetch(connection, statement, parameters)]


@cache
def _vector_query(metric: Metric, conditions: str) -> str:
    return (
        f"SELECT {_FIELDS.format(table='nearest')}, {_SCORES[metric]} AS score"
        f" FROM ({_nearest(metric, conditions)}) AS nearest JOIN documents USING (document_id)"
        " ORDER BY distance + 0, chunk_id"
    )


def _nearest(metric: Metric, conditions: str, fields: str = _CHUNK) -> str:
    """The query for the nearest chunks. Its inner part has the form that the index can answer."""
    # Behind a filter the index gives what it comes across first: of more, the nearest are chosen. It also
    # tells the planner better how far the index would have to be walked where the filter leaves few.
    fetched = f"{OVERFETCH} * %(limit)s" if conditions else "%(limit)s"
    return (
        f"SELECT {fields}, distance FROM ("
        f"SELECT {fields}, embedding {_OPERATORS[metric]} %(vector)s::vector AS distance FROM chunks"
        f" WHERE embedding IS NOT NULL{conditions} ORDER BY distance LIMIT {fetched}"
        # A vector of zeros has no direction. + 0: sort all of them, and don't believe that the index has.
        ") AS fetched WHERE distance <> 'NaN' ORDER BY distance + 0, chunk_id LIMIT %(limit)s"
    )


def _matching(conditions: str, fields: str = _CHUNK) -> str:
    """The query for the chunks that match best. 32: rank / (rank + 1)."""
    return (
        f"SELECT {fields}, ts_rank_cd(search_vector, {_QUERY}, 32) AS score FROM chunks"
        f" WHERE search_vector @@ {_QUERY}{conditions} ORDER BY score DESC, chunk_id LIMIT %(limit)s"
    )


def _fetch(connection: Connection, statement: str, parameters: Mapping[str, Any]) -> Sequence[Any]:
    """The rows as the driver gives them: SQLAlchemy's would be unpacked at once."""
    result = connection.exec_driver_sql(statement, parameters)
    rows = result.cursor.fetchall()
    result.close()
    return rows


def _set(connection: Connection, settings: Mapping[str, str]) -> None:
    """Set what the index is searched with, all in one round trip, until the transaction ends."""
    # By the driver's cursor: SQLAlchemy would first make a result of nothing.
    cursor = connection.connection.cursor()
    cursor.execute(set_locally(settings))
    cursor.close()


def set_locally(settings: Mapping[str, str]) -> str:
    """The statements that set these for the rest of the transaction."""
    return "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())


def _connect(session: Session) -> Connection:
    """The session's connection, with what the session holds back written, as before any of its queries."""
    if session.autoflush:
        session.flush()
    return session.connection()


# What chunks.embedding takes, by the pool of its database: to be asked once and not with each search.
_known_dimensions: WeakKeyDictionary[Pool, int | None] = WeakKeyDictionary()


def _read_vector(connection: Connection, embedding: Embedding, metric: Metric) -> BinaryVector:
    """Check the vector that is searched by, and encode it."""
    pool = connection.engine.pool
    try:
        try:
            encoded = encode_vector(embedding, _known_dimensions[pool])
        except (KeyError, ValueError):
            # Not known yet, or another length than it was: a migration may have changed it.
            _known_dimensions[pool] = connection.exec_driver_sql(_DIMENSIONS).scalar()
            encoded = encode_vector(embedding, _known_dimensions[pool])
    except ValueError as error:
        raise UsageError(f"The embedding to search by {error}.") from error
    if metric == "cosine" and not any(encoded[4:].replace(_MINUS_ZERO, bytes(4))):
        raise UsageError("The embedding to search by is all zeros, which has no direction.")
    driver: Any = connection.connection.driver_connection
    accept_vectors(driver)
    return BinaryVector(encoded)
