"""What a plan says, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rag_factory.migrate.bookkeeping import SCHEMA
from rag_factory.migrate.plan.statements import head
from rag_factory.migrate.plan.verdict import MODES, Verdict, blocked_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.migrate.history import Revision

ONLINE = Verdict("online")


@dataclass(frozen=True)
class PlannedLock:
    """A lock by the relation's name. mode: as pg_locks has it. assumed: not measured."""

    relation: str
    mode: str
    assumed: bool = False

    def as_data(self) -> dict[str, Any]:
        """The lock for a machine."""
        return {
            "relation": self.relation,
            "mode": MODES[self.mode],
            "blocks": blocked_by(self.mode),
            "assumed": self.assumed,
        }


@dataclass(frozen=True)
class Written:
    """Rows that a statement writes. at_most: the table has so many; how many of them is not known."""

    relation: str
    rows: int
    at_most: bool

    def __str__(self) -> str:
        rows = f"{self.rows:,} row{'' if self.rows == 1 else 's'}"
        return f"writes {'up to' if self.at_most else 'about'} {rows} of {self.relation}"


@dataclass(frozen=True)
class PlannedStatement:
    """One statement. milliseconds: on the empty copy; seconds: estimated on the live database.

    held_seconds: how long its locks would be held, to the end of its transaction. transaction: its number in
    the revision. notes: what else there is to know.
    """

    sql: str
    milliseconds: float
    transaction: int
    autocommit: bool
    locks: Sequence[PlannedLock]
    rewrites: Sequence[str]
    scans: Sequence[str]
    builds: Sequence[str]
    writes: Sequence[Written]
    seconds: float
    held_seconds: float
    verdict: Verdict
    notes: Sequence[str] = ()
    advice: Sequence[str] = ()

    @property
    def only_looks(self) -> bool:
        """Whether it did nothing to the tables of the live database: a query, a block, the engine's notes."""
        did = (self.locks, self.rewrites, self.scans, self.builds, self.writes, self.notes, self.advice)
        looks = head(self.sql) in {"SELECT", "WITH", "DO", "VALUES", "TABLE", "EXPLAIN"}
        return not any(did) and (looks or SCHEMA in self.sql)

    def as_data(self) -> dict[str, Any]:
        """The statement for a machine."""
        return {
            "sql": self.sql,
            "ms": round(self.milliseconds, 2),
            "transaction": self.transaction,
            "autocommit": self.autocommit,
            "locks": [lock.as_data() for lock in self.locks],
            "rewrites": list(self.rewrites),
            "scans": list(self.scans),
            "builds": list(self.builds),
            "writes": [
                {"relation": each.relation, "rows": each.rows, "at_most": each.at_most}
                for each in self.writes
            ],
            "estimated_seconds": round(self.seconds, 1),
            "held_seconds": round(self.held_seconds, 1),
            "level": self.verdict.level,
            "verdict": str(self.verdict),
            "notes": list(self.notes),
            "advice": list(self.advice),
        }


@dataclass(frozen=True)
class PlannedRevision:
    """One revision. reversible: None when that was not tried. error: it failed on the copy, and why.

    drops, loses: "table x" and "column x.y", with their rows, that go on the way up, and on the way down.
    """

    revision: Revision
    milliseconds: float
    statements: Sequence[PlannedStatement]
    reversible: bool | None
    irreversible_because: str | None
    drops: Sequence[str]
    loses: Sequence[str]
    error: str | None

    @property
    def transactional(self) -> bool:
        """Whether all of it is one transaction, which leaves nothing behind when it fails."""
        return not any(each.autocommit for each in self.statements)

    @property
    def verdict(self) -> Verdict:
        """The worst one of its statements."""
        return max((each.verdict for each in self.statements), key=lambda one: one.badness, default=ONLINE)

    def as_data(self) -> dict[str, Any]:
        """The revision for a machine."""
        return {
            "id": self.revision.id,
            "message": self.revision.message,
            "file": self.revision.path.name,
            "ms": round(self.milliseconds, 2),
            "transactional": self.transactional,
            "reversible": self.reversible,
            "irreversible_because": self.irreversible_because,
            "drops": list(self.drops),
            "lost_on_the_way_down": list(self.loses),
            "estimated_seconds": round(sum(each.seconds for each in self.statements), 1),
            "level": self.verdict.level,
            "verdict": str(self.verdict),
            "error": self.error,
            "statements": [each.as_data() for each in self.statements],
        }


@dataclass(frozen=True)
class Plan:
    """What the pending revisions would do to a database. place: where the copy was."""

    database: str
    at: Sequence[str]
    to: str | None
    place: str
    revisions: Sequence[PlannedRevision]
    not_planned: Sequence[Revision] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst one of its revisions."""
        return max((each.verdict for each in self.revisions), key=lambda one: one.badness, default=ONLINE)

    @property
    def error(self) -> str | None:
        """Why the last revision failed on the copy, if it did."""
        return self.revisions[-1].error if self.revisions else None

    def as_data(self) -> dict[str, Any]:
        """The plan for a machine; docs/database/PLAN.md describes it."""
        return {
            "database": self.database,
            "at": list(self.at),
            "to": self.to,
            "rehearsed_on": self.place,
            "level": self.verdict.level,
            "verdict": str(self.verdict),
            "revisions": [each.as_data() for each in self.revisions],
            "not_planned": [each.id for each in self.not_planned],
        }
