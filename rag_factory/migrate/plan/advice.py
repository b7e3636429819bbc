"""The safe way, written out: a sentence, then the body of a revision ready to paste.

The operations are those of `rag_factory.migrate.operations`, which env.py registers as `op.…`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rag_factory.migrate.plan import statements
from rag_factory.migrate.plan.forms import ALWAYS, OTHERWISE, WHERE_IT_COSTS, Place, execute, text
from rag_factory.migrate.plan.verdict import LEVELS, time_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rag_factory.migrate.plan.model import PlannedStatement
    from rag_factory.migrate.plan.observer import Observed

# From here on a table has enough users that even a short lock is worth a word.
BUSY_ROWS = 100_000
_UPDATE = re.compile(
    r"(?is)^update\s+(?:only\s+)?(?P<table>[\w.\"]+)\s+set\s+(?P<set>.+?)(?:\s+where\s+(?P<where>.+))?$"
)
_REINDEX = re.compile(r"(?i)^(reindex\s*(?:\([^)]*\))?\s*(?:index|table|schema|database|system))")
_WRITING = frozenset({"UPDATE", "DELETE", "MERGE", "INSERT", "DO", "SELECT", "CALL", "WITH"})


def advise(
    observed: Observed, statement: PlannedStatement, rows: Callable[[int], int], short_seconds: float
) -> Sequence[str]:
    """Write down what to do instead, for each dangerous pattern of one statement.

    rows: of a table by its oid; -1 where the live database has no such table.
    An advice is a sentence in one line; below it, where there is any, the body of a revision.
    """
    dangerous = LEVELS.index(statement.verdict.level) > LEVELS.index("short lock")
    own = statement.seconds >= short_seconds
    told: list[str] = []
    for change in observed.changes:
        if rows(change.table) < 0 and change.kind != "enum value":
            continue
        name = observed.before.relations[change.table].name if change.table else change.name
        advice = ALWAYS.get(change.kind)
        if advice is None and dangerous and own:
            advice = WHERE_IT_COSTS.get(change.kind)
        if advice is None and rows(change.table) >= (1 if change.kind == "type changed" else BUSY_ROWS):
            advice = OTHERWISE.get(change.kind)
        if advice is not None and (said := advice(Place(name), change, observed)):
            told.append(said)
    if dangerous and own and not told:
        told += _advise_by_words(observed, statement)
    if dangerous and not own:
        told.append(
            f"Takes a lock that is held until its transaction ends, {time_text(statement.held_seconds)} "
            "later: put what takes long into a revision of its own, after this one."
        )
    return tuple(told)


def _advise_by_words(observed: Observed, statement: PlannedStatement) -> list[str]:
    """What has no trace in the schema is recognised by its words."""
    parts = statements.split(observed.sql)
    heads = {statements.head(part) for part in parts}
    told = []
    for part in parts:
        if statement.writes and (found := _UPDATE.match(part)) and " from " not in found["set"].lower():
            where = f", where={text(found['where'])}" if found["where"] else ""
            table = Place(found["table"])
            told.append(
                "Locks every row it has written until it ends. In batches, each committed, to be resumed "
                "after a crash:\n"
                f"op.backfill({table.name}, {text(found['set'])}{where}{table.schema})"
            )
        elif statement.writes and statements.head(part) in _WRITING:
            told.append(
                "Locks every row it has written until it ends. Write them by ranges of the key, some "
                "thousand at a time, "
                "each committed: op.backfill for an UPDATE, else a loop in an autocommit_block."
            )
    if heads & {"VACUUM", "CLUSTER"} and statement.rewrites:
        told.append(
            "Nobody can read the table meanwhile. Plain VACUUM frees its space for new rows while others "
            "work; pg_repack "
            "gives it back to the disk with two short locks."
        )
    if "REINDEX" in heads and statement.builds:
        safe = _REINDEX.sub(r"\1 CONCURRENTLY", parts[0])
        told.append(
            "Builds the index anew while others write, in an autocommit_block of its own:\n" + execute(safe)
        )
    if "REFRESH" in heads and statement.rewrites:
        told.append(
            "Readers wait meanwhile. With a unique index on the view they don't: REFRESH MATERIALIZED VIEW "
            "CONCURRENTLY."
        )
    if not told:
        told.append(
            "No online form of this is known: run it when nobody needs the table, or make a new one beside "
            "it, copy the "
            "rows in batches, and change the names in one short lock."
        )
    return told
