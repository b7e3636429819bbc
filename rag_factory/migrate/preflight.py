"""What stands in the way of a migration, or is left of an earlier one: looked for before and after."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rag_factory.errors import LeftOversError
from rag_factory.migrate.position import find_begun
from rag_factory.migrate.reembed.traces import find_changes
from rag_factory.migrate.watch import Blocker

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from rag_factory.migrate.history import Revision
    from rag_factory.migrate.steps import Direction

LONG_SECONDS = 60
_LONG_TRANSACTIONS = """
    SELECT pid, coalesce(usename, ''), coalesce(application_name, ''), coalesce(state, ''),
           extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds, coalesce(query, '')
    FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
      AND xact_start < clock_timestamp() - make_interval(secs => %(seconds)s)
    UNION ALL
    SELECT 0, '', '', '', extract(epoch FROM clock_timestamp() - prepared)::float8, gid FROM pg_prepared_xacts
    WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => %(seconds)s)
    ORDER BY seconds DESC
"""
# One that is being built just now, by somebody else, is no left-over.
_INVALID = """
    SELECT index.relname, indexrelid::regclass::text, indrelid::regclass::text
    FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid
    WHERE NOT indisvalid AND index.relkind = 'i'
      AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index AS build WHERE build.index_relid = indexrelid)
    ORDER BY 2
"""


@dataclass(frozen=True)
class InvalidIndex:
    """What a CREATE INDEX CONCURRENTLY that failed leaves: written at each change, read by no query."""

    name: str
    qualified_name: str
    table: str

    def __str__(self) -> str:
        return (
            f"index {self.qualified_name} on {self.table} is INVALID, left by a concurrent build that failed"
        )


def find_long_transactions(session: psycopg.Connection[Any], seconds: float = LONG_SECONDS) -> list[Blocker]:
    """Transactions older than `seconds` on the session's database, the oldest first."""
    return [Blocker(*row) for row in session.execute(_LONG_TRANSACTIONS, {"seconds": seconds})]


def find_invalid_indexes(session: psycopg.Connection[Any]) -> list[InvalidIndex]:
    """The INVALID indexes of the session's database."""
    return [InvalidIndex(*row) for row in session.execute(_INVALID)]


def find_warnings(session: psycopg.Connection[Any], direction: Direction) -> list[str]:
    """What to tell before the first revision. A pending one may mend an index, so none of it is an error."""
    told = [f"warning: long transaction, may hold us up: {one}" for one in find_long_transactions(session)]
    told += [
        f"warning: {index}. If no pending revision makes it anew: "
        f"REINDEX INDEX CONCURRENTLY {index.qualified_name}"
        for index in find_invalid_indexes(session)
    ]
    if direction == "down":
        told += [
            f"warning: {change.label} is being re-embedded: taking back what has made it takes that along. "
            "See: invoke db.reembed --status"
            for change in find_changes(session)
        ]
    for words, forget in find_begun(session):
        if direction == "up":
            told.append(f"a backfill was left half-way, and goes on in its revision: {words}")
        else:
            told.append(
                f"warning: a backfill was left half-way: {words}. It will go on from there: if this takes "
                f"away what it has filled, let it begin anew: {forget}"
            )
    return told


def check_left_overs(session: psycopg.Connection[Any], applied: Sequence[Revision]) -> None:
    """Check that no revision left an INVALID index that it names.

    CREATE INDEX CONCURRENTLY IF NOT EXISTS takes the left-over of an earlier try for the index, and succeeds.
    Raises LeftOversError: one did; all are applied.
    """
    for index in find_invalid_indexes(session):
        for revision in applied:
            text = revision.path.read_text(encoding="utf-8", errors="replace")
            if re.search(rf"\b{re.escape(index.name)}\b", text):
                raise LeftOversError(
                    f"{revision.id} ({revision.path.name}) is applied, but its {index}.",
                    fix=f"Build it: REINDEX INDEX CONCURRENTLY {index.qualified_name}; and let the revision "
                    "drop such a left-over first, instead of IF NOT EXISTS.",
                )
