"""What a search may be asked for: filters, options of the vector index; read and checked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from rag_factory.database.encoding import encode_json, encode_text
from rag_factory.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

IterativeScan = Literal["strict_order", "relaxed_order", "off"]

DEFAULT_LIMIT = 10
LARGEST_LIMIT = 10_000
# https://github.com/pgvector/pgvector#query-options: 40 is pgvector's default, 1000 its limit.
DEFAULT_EF_SEARCH, LARGEST_EF_SEARCH = 100, 1000


class Filters(TypedDict, total=False):
    """What a chunk must be; of several, all.

    collection_id: its document's collection. document_ids: one of these; none at all when empty.
    metadata: what its metadata holds, as jsonb's @>: {"lang": "de"} finds {"lang": "de", "page": 3}.
    """

    collection_id: UUID | None
    document_ids: Sequence[UUID] | None
    metadata: Mapping[str, Any] | None


class VectorOptions(TypedDict, total=False):
    """How the HNSW index is searched.

    ef_search: how many candidates at a time, 1 to 1000; more find more and take longer. Default: twice the
        limit, at least 100.
    iterative_scan: go on for as long as a filter has left too few: `relaxed_order` (default; finds more, and
        what is found is sorted afterwards), `strict_order`, or `off`. It ends after `hnsw.max_scan_tuples`,
        20,000 by default.

    They are set with SET LOCAL, so they hold for the rest of the session's transaction.
    """

    ef_search: int | None
    iterative_scan: IterativeScan


class VectorFilters(Filters, VectorOptions, total=False):
    """Filters, and options of the index."""


class HybridOptions(VectorFilters, total=False):
    """The weights of the two lists, and how long each is: default four times the limit, at least 40."""

    vector_weight: float
    text_weight: float
    candidates: int | None


def refuse_unknown(options: Mapping[str, Any], known: type[Any]) -> None:
    """Raise TypeError as Python does: a mistyped filter must not be a filter that is left out."""
    for name in options.keys() - known.__optional_keys__:
        raise TypeError(f"got an unexpected keyword argument {name!r}")


def read_filters(filters: Filters) -> tuple[str, dict[str, Any]]:
    """The filters as conditions after others, and their values."""
    conditions = ""
    parameters: dict[str, Any] = {}
    if (collection_id := filters.get("collection_id")) is not None:
        conditions += (
            " AND document_id IN (SELECT document_id FROM documents WHERE collection_id = %(collection_id)s)"
        )
        parameters["collection_id"] = collection_id
    if (document_ids := filters.get("document_ids")) is not None:
        conditions += " AND document_id = ANY(%(document_ids)s::uuid[])"
        parameters["document_ids"] = list(document_ids)
    if (metadata := filters.get("metadata")) is not None:
        conditions += " AND metadata @> %(metadata)s::jsonb"
        try:
            parameters["metadata"] = encode_json(metadata).decode()
        except ValueError as error:
            raise UsageError(f"The metadata to filter by {error}.") from error
    return conditions, parameters


def read_weights(options: HybridOptions) -> tuple[float, float]:
    """The weights of vector and text."""
    weights = options.get("vector_weight", 1.0), options.get("text_weight", 1.0)
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise UsageError(f"The weights {weights} are not two numbers from 0, one of them above it.")
    return weights


def read_options(limit: int, options: VectorOptions) -> dict[str, str]:
    """The settings to search with; their values are safe to be written into a statement."""
    ef_search = options.get("ef_search")
    if ef_search is None:
        ef_search = min(max(2 * limit, DEFAULT_EF_SEARCH), LARGEST_EF_SEARCH)
    check_limit(ef_search, "ef_search", largest=LARGEST_EF_SEARCH)
    scan = options.get("iterative_scan", "relaxed_order")
    if scan not in get_args(IterativeScan):
        choices = ", ".join(get_args(IterativeScan))
        raise UsageError(f"The iterative_scan {scan!r} is not known.", fix=f"Use one of: {choices}.")
    return {
        "hnsw.ef_search": str(ef_search),
        "hnsw.iterative_scan": scan,
        # A plan for these very filters: one for any would use the index also where they leave few.
        "plan_cache_mode": "force_custom_plan",
    }


def read_query(query: str) -> str:
    """A query of words, checked."""
    try:
        encode_text(query)
    except ValueError as error:
        raise UsageError(f"The query {error}.") from error
    if not query.strip():
        raise UsageError("The query is empty.")
    return query


def check_limit(number: int, name: str = "limit", largest: int = LARGEST_LIMIT) -> None:
    """Raise UsageError when a number isn't one to search with."""
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= largest:
        raise UsageError(f"{name} is {number!r}, not a whole number from 1 to {largest}.")
