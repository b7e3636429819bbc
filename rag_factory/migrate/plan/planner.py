"""Make a plan: rehearse on a copy of the schema, then weigh what was seen by the live database's size."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rag_factory.database.driver import connect
from rag_factory.migrate.bookkeeping import SCHEMA
from rag_factory.migrate.plan import statements
from rag_factory.migrate.plan.advice import advise
from rag_factory.migrate.plan.costs import READ_BYTES_PER_SECOND, graph_bytes, work_seconds, written_seconds
from rag_factory.migrate.plan.live import Live, look
from rag_factory.migrate.plan.model import (
    ONLINE,
    Plan,
    PlannedLock,
    PlannedRevision,
    PlannedStatement,
    Written,
)
from rag_factory.migrate.plan.rehearsal import Rehearsed, rehearse
from rag_factory.migrate.plan.verdict import DEFAULT_SHORT_SECONDS, STRENGTH, judge, size_text
from rag_factory.migrate.scratch import schema_copy
from rag_factory.migrate.state import read_revisions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.migrate.history import History
    from rag_factory.migrate.plan.catalog import Snapshot
    from rag_factory.migrate.plan.observer import Lock, Observed
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target

_WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
# A block that commits as it goes holds its rows for a batch only; so does op.backfill, which notes each.
_BATCHES = re.compile(rf"(?i)\bcommit\s*;|\b{SCHEMA}\.backfills\b")
_MAY_WRITE = frozenset({"DO", "SELECT", "CALL", "WITH", "EXECUTE"})


def make_plan(
    target: Target,
    project: Project,
    history: History,
    to: str | None,
    short_seconds: float = DEFAULT_SHORT_SECONDS,
) -> Plan:
    """Plan the upgrade of the target to the revision `to`, an id.

    short_seconds: how long a lock may be held to count as short. The live database is only read, in short
    statements. Raises LockedError: a table there is locked for longer than the lock timeout.
    Raises RagFactoryError: the schema can't be copied.
    """
    with connect(target.url, connect_timeout_seconds=target.config.db_connect_timeout_seconds) as session:
        at = read_revisions(target, project, session)
    history.check_known(at, where=target.place)
    pending = history.pending(at, to)
    if not pending:
        return Plan(target.url.database, at, to, "", ())
    with schema_copy(target, project) as scratch:
        first, rehearsed = rehearse(scratch, project, pending)
        place = "the embedded server" if scratch.server else scratch.url.server
    with look(target) as live:
        weigher = Weigher(live, first, project, short_seconds)
        planned = [weigher.weigh(each) for each in rehearsed]
    return Plan(target.url.database, at, to, place, planned, pending[len(planned) :])


class Weigher:
    """Turns what was seen on the empty copy into what it means on the live database."""

    def __init__(self, live: Live, first: Snapshot, project: Project, short_seconds: float) -> None:
        self._live = live
        self._short_seconds = short_seconds
        # What the plan itself makes has no rows and no users yet; the version table is Alembic's.
        version_table = ".".join(project.version_table)
        self._names = {
            oid: relation.name
            for oid, relation in first.relations.items()
            if _short(relation.name) != _short(version_table)
        }
        self._oids = {name: oid for oid, name in self._names.items()}

    def weigh(self, rehearsed: Rehearsed) -> PlannedRevision:
        """Weigh one revision."""
        weighed = [self._weigh(observed) for observed in rehearsed.statements]
        planned = []
        for number, (observed, statement, rows_seconds) in enumerate(weighed):
            same = (each for each in weighed[number:] if each[0].transaction == observed.transaction)
            held = sum(other.seconds for _, other, _ in same)
            # One that goes on under a lock taken before it lets that one's victims wait too.
            since = number if statement.seconds < self._short_seconds else 0
            modes = [
                lock.mode
                for other, planned_before, _ in weighed[since : number + 1]
                if other.transaction == observed.transaction
                for lock in planned_before.locks
            ]
            verdict = judge(
                modes,
                statement.seconds,
                held,
                self._rewritten_bytes(observed),
                rows_seconds,
                self._short_seconds,
            )
            judged = replace(statement, held_seconds=held, verdict=verdict)
            planned.append(
                replace(judged, advice=advise(observed, judged, self._rows_of, self._short_seconds))
            )
        return PlannedRevision(
            revision=rehearsed.revision,
            milliseconds=rehearsed.milliseconds,
            statements=planned,
            reversible=rehearsed.reversible,
            irreversible_because=rehearsed.irreversible_because,
            drops=self._dropped(rehearsed.statements),
            loses=self._dropped(rehearsed.way_back),
            error=rehearsed.error,
        )

    def _weigh(self, observed: Observed) -> tuple[Observed, PlannedStatement, float]:
        """Weigh one statement by itself; also gives the seconds for which it holds the rows it writes."""
        if observed.skipped:
            note = "not run on the copy: it changes the whole server, not this database alone"
            return observed, _statement(observed, notes=(note,)), 0.0
        work = observed.work
        writes, scans, rows_seconds = self._rows(observed)
        # Without rows there is little to wait for, unless it is something else than rows.
        own = observed.milliseconds / 1000
        seconds = rows_seconds + (own if own >= DEFAULT_SHORT_SECONDS else 0)
        seconds += work_seconds(work, self._live, self._names)
        scanned = [*work.verified, *(build.table for build in work.built), *(a for a, _ in work.checked)]
        scans += [self._names[oid] for oid in scanned if oid in self._names and oid not in work.rewritten]
        rewritten = [self._names[oid] for oid in work.rewritten if oid in self._names]
        indexes = [name for name in work.rewritten_indexes if name in self._oids]
        locks = [
            (-STRENGTH[lock.mode], observed.before.relations[lock.oid].is_index, self._names[lock.oid], lock)
            for lock in observed.locks
            if lock.oid in self._names
        ]
        statement = _statement(
            observed,
            locks=tuple(
                PlannedLock(_short(name), lock.mode, lock.assumed)
                for *_, name, lock in sorted(locks, key=_order)
            ),
            rewrites=tuple(map(_short, [*rewritten, *indexes])),
            scans=tuple(dict.fromkeys(map(_short, scans))),
            builds=tuple(_short(build.name) for build in work.built if build.table in self._names),
            writes=writes,
            seconds=seconds,
            notes=tuple(self._notes(observed)),
        )
        batches = observed.autocommit and _BATCHES.search(observed.sql)
        return observed, statement, 0.0 if batches or not writes else rows_seconds

    def _rows(self, observed: Observed) -> tuple[list[Written], list[str], float]:
        """The rows that a statement writes, the tables it reads for that, and how long it takes."""
        written: dict[str, Written] = {}
        scans: list[str] = []
        seconds = 0.0
        locked = {self._names[lock.oid] for lock in observed.locks if lock.oid in self._names}
        writing = {
            self._names[lock.oid]
            for lock in observed.locks
            if lock.oid in self._names and lock.mode == "RowExclusiveLock"
        }
        for statement in statements.split(observed.sql):
            head = statements.head(statement)
            if head not in _WRITES | _MAY_WRITE:
                continue
            estimate = self._live.explain(statement, observed.parameters)
            expected = estimate.rows if estimate else {}
            rows = {
                name: Written(_short(name), count, False)
                for name, count in expected.items()
                if not name.startswith(f"{SCHEMA}.")  # the engine's own notes
            }
            read = [name for name in estimate.scans if name in self._oids] if estimate else list(locked)
            scans += read if estimate else []
            # What a function or a block writes, the planner can't tell: the locks do, or the words.
            if (estimate is None and head != "INSERT") or head not in _WRITES:
                named = set(statements.written_in_body(statement)) if head == "DO" else set()
                named_too = {name for name in self._oids if {name, _short(name)} & named}
                rows |= {
                    name: Written(_short(name), self._live.size(name).rows, True)
                    for name in (writing | named_too) - expected.keys()
                }
            written |= rows
            seconds += sum(written_seconds(each.rows, head) for each in rows.values())
            seconds += sum(self._live.size(name).table_bytes for name in read) / READ_BYTES_PER_SECOND
        return [each for each in written.values() if each.rows], scans, seconds

    def _rows_of(self, oid: int) -> int:
        """The rows of a table; -1 when the live database doesn't have it."""
        return self._live.size(self._names[oid]).rows if oid in self._names else -1

    def _rewritten_bytes(self, observed: Observed) -> int:
        """The bytes of the tables and indexes that a statement makes anew."""
        tables = sum(self._live.size(self._names.get(oid, "")).table_bytes for oid in observed.work.rewritten)
        indexes: dict[str, int] = {}
        for size in self._live.sizes.values():
            indexes |= size.indexes
        return tables + sum(indexes.get(name, 0) for name in observed.work.rewritten_indexes)

    def _notes(self, observed: Observed) -> list[str]:
        notes = [
            f"empties {_short(self._names[oid])}" for oid in observed.work.truncated if oid in self._names
        ]
        if any(lock.assumed for lock in observed.locks):
            notes.append("its lock is known of such statements, not measured")
        for build in observed.work.built:
            size = self._live.size(self._names.get(build.table, ""))
            if build.method == "hnsw" and size.rows:
                needed = graph_bytes(size.rows, build.dimensions, 2 if build.type == "halfvec" else 4)
                notes.append(
                    f"the graph of {_short(build.name)} needs about {size_text(needed)} of "
                    "maintenance_work_mem; with less the build is many times slower"
                )
        return notes

    def _dropped(self, observed: Sequence[Observed]) -> list[str]:
        """Tell what statements drop, with its rows: "table notes (about 1,200 rows)"."""
        told = []
        for statement in observed:
            for change in statement.changes:
                if change.kind not in {"table dropped", "column dropped"}:
                    continue
                name = _short(statement.before.relations[change.table].name)
                what = f"table {name}" if change.kind == "table dropped" else f"column {name}.{change.name}"
                rows = self._rows_of(change.table)
                told.append(what + (f" (about {rows:,} row{'' if rows == 1 else 's'})" if rows > 0 else ""))
        return told


def _statement(observed: Observed, **found: Any) -> PlannedStatement:
    empty: dict[str, Any] = {
        "locks": (), "rewrites": (), "scans": (), "builds": (), "writes": (), "seconds": 0.0,
    }  # fmt: skip
    return PlannedStatement(
        sql=statements.shown(observed.sql),
        milliseconds=observed.milliseconds,
        transaction=observed.transaction,
        autocommit=observed.autocommit,
        held_seconds=0.0,
        verdict=ONLINE,
        **empty | found,
    )


def _order(row: tuple[int, bool, str, Lock]) -> tuple[int, bool, str]:
    return row[:3]


def _short(name: str) -> str:
    return name.removeprefix("public.")
