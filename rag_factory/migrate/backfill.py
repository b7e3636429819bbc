"""Change all rows of a table in use, batch by batch in the order of a key, and go on after any crash.

A batch is one statement: it changes rows and moves the position on, in one transaction, so that each row is
in exactly one batch of a pass, whenever a process or the server is killed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rag_factory.errors import UsageError
from rag_factory.migrate.position import Position, State, find_key, read_state
from rag_factory.migrate.progress import Progress
from rag_factory.migrate.retry import Patience
from rag_factory.migrate.session import DATABASE_ERRORS, as_text, quote, sqlstate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rag_factory.migrate.position import Key
    from rag_factory.migrate.session import Row, Session

FEWEST_ROWS, MOST_ROWS = 10, 50_000
# Others that write one of a batch's rows wait for its end: for the batch, and for the lock that it waits for.
BATCH_SECONDS = 0.2
LOCK_TIMEOUT_SECONDS = 0.2
# A batch that takes so many times as long as it should, its wait for a lock included, is ended by the server
# and tried again in halves: a machine that is slow all at once makes nobody wait longer.
TIMES_TOO_LONG = 2.5
# About a minute of waiting for one row that somebody holds.
ATTEMPTS = 65
LONGEST_PAUSE_SECONDS = 1.0
MOST_PASSES = 100
QUERY_CANCELED = "57014"
_LAG_POLL_SECONDS = 0.5
_LAG = "SELECT max(extract(epoch FROM replay_lag)) FROM pg_stat_replication"
_SETTINGS = {
    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS:g}s",
    "statement_timeout": "0",
    # A trigger may look at it and let a row that has changed for nobody keep its updated_at.
    "rag_factory.backfill": "on",
    # Statistics that are behind must not turn a batch into a scan of the table.
    "enable_seqscan": "off",
    "jit": "off",
}


@dataclass(frozen=True)
class Compute:
    """Values that Python works out: reads and writes are columns, or expressions to read.

    function: gets a batch's rows, each a tuple of what is read, and returns for each a tuple of what is
    written; None leaves the row as it is. No lock is held meanwhile: a row that has changed when the values
    come is left for the next pass. A value is None, a number, a text as PostgreSQL reads the column's type,
    or a sequence of numbers for a vector.
    """

    reads: Sequence[str]
    writes: Sequence[str]
    function: Callable[[list[Row]], Sequence[Sequence[Any] | None]]


@dataclass(frozen=True)
class Backfill:
    """A change of all rows of `table` for which `where` holds; both as in SQL.

    name: under which the position is kept in rag_factory.backfills.
    change: the SET list of an UPDATE, or a Compute.
    where: best a condition that the change ends, `new IS NULL`: then the table is gone through again until no
    row is left, also of those inserted meanwhile. Rows inserted after that are a trigger's or a default's.
    Without it, or where it still holds for changed rows, each row that was there is changed exactly once.
    key: the columns of a unique index; the primary key's unless given.
    batch_rows: of the first batch; then as many as take `batch_seconds`. With a Compute, of each batch.
    pause_seconds: between two batches. max_replica_lag_seconds: wait while a replica is further behind.
    """

    name: str
    table: str
    change: str | Compute
    where: str | None = None
    key: Sequence[str] | None = None
    batch_rows: int = 1000
    batch_seconds: float = BATCH_SECONDS
    pause_seconds: float = 0.0
    max_replica_lag_seconds: float | None = 10.0
    on_progress: Callable[[Progress], None] | None = None

    def run(self, session: Session) -> int:
        """Go on until all is done. Returns how many rows were changed, by interrupted runs too.

        A finished backfill stays known by its name and does nothing when run again, until `forget`.
        Raises LockedError: somebody held a row for a minute. Raises UsageError: there is no such key.
        In each case, and after Ctrl-C or a crash, the next run goes on where this one was.
        """
        if self.batch_rows < 1:
            raise UsageError(f"batch_rows is {self.batch_rows}, and must be 1 or more.")
        with session.ended_with_its_client(), session.settings(_SETTINGS):
            return _Run(self, session).finish()

    def forget(self, session: Session) -> None:
        """Forget how far it was, so that the next run begins anew."""
        Position(self.name).forget(session)


class _Run:
    def __init__(self, backfill: Backfill, session: Session) -> None:
        self.backfill = backfill
        self.session = session
        self.position = Position(backfill.name)
        self.state = self.position.open(session, backfill.table)
        self.key: Key = find_key(session, backfill.table, backfill.key)
        self.batch_rows = backfill.batch_rows
        self.began = time.monotonic()
        self.walked_before = self.state.walked
        self.expected = session.estimated_rows(backfill.table)
        self.types = self._types()
        self.told_lag = False

    def finish(self) -> int:
        """Do what is left."""
        while not self.state.finished:
            if self.state.at_end:
                self._end_pass()
                continue
            self._wait_for_replicas()
            self._batch()
            self._tell()
            if self.backfill.pause_seconds:
                time.sleep(self.backfill.pause_seconds)
        return self.state.total

    def _batch(self) -> None:
        began = time.monotonic()
        if isinstance(self.backfill.change, Compute):
            self._computed_batch(self.backfill.change)
            return
        moved = self._retried(self._next_update)
        seconds = max(time.monotonic() - began, 0.001)
        if moved:
            factor = min(2.0, max(0.5, self.backfill.batch_seconds / seconds))
            self.batch_rows = min(MOST_ROWS, max(FEWEST_ROWS, round(self.batch_rows * factor)))

    def _retried(self, work: Callable[[], bool]) -> bool:
        return self.session.retry(
            f"Backfilling {self.backfill.table}",
            [self.backfill.table],
            work,
            Patience(
                tries=ATTEMPTS,
                first_pause_seconds=LOCK_TIMEOUT_SECONDS,
                longest_pause_seconds=LONGEST_PAUSE_SECONDS,
            ),
            on_failure=self._be_smaller,
        )

    def _be_smaller(self) -> None:
        self.batch_rows = max(1, self.batch_rows // 2)

    def _next_update(self) -> bool:
        """Change the next rows in the order of the key."""
        backfill, key = self.backfill, self.key
        after = key.after(self.state.position)
        last = self.session.execute(
            f"SELECT {key.texts} FROM {backfill.table} WHERE {after} "
            f"ORDER BY {key.columns} OFFSET {self.batch_rows - 1} LIMIT 1"
        )
        until = list(last[0]) if last else None
        # The last batch has no upper end: it takes what was inserted there meanwhile.
        rows = [
            after,
            *([key.until(until)] if until else []),
            *([f"({backfill.where})"] if backfill.where else []),
        ]
        update = f"UPDATE {backfill.table} SET {backfill.change} WHERE {' AND '.join(rows)}"
        walked = self.batch_rows if until else 0
        # Fewer rows would not make it quicker: then each takes what it takes.
        limit = TIMES_TOO_LONG * backfill.batch_seconds if self.batch_rows > FEWEST_ROWS else 0
        with self.session.settings({"statement_timeout": f"{round(limit * 1000)}ms"}):
            began = time.monotonic()
            try:
                return self._apply(update, until, walked=walked, given=None)
            except DATABASE_ERRORS as error:
                if not limit or sqlstate(error) != QUERY_CANCELED or time.monotonic() - began < limit:
                    raise
        self._be_smaller()
        return False

    def _computed_batch(self, compute: Compute) -> None:
        """Read the next rows, have their values worked out, and write them."""
        backfill, key = self.backfill, self.key
        conditions = [key.after(self.state.position), *([f"({backfill.where})"] if backfill.where else [])]
        found = self.session.execute(
            f"SELECT {key.texts}, {backfill.table}.xmin::text, {', '.join(compute.reads)} "
            f"FROM {backfill.table} WHERE {' AND '.join(conditions)} ORDER BY {key.columns} "
            f"LIMIT {backfill.batch_rows}"
        )
        width = len(key.names) + 1
        values = compute.function([row[width:] for row in found]) if found else []
        if len(values) != len(found):
            raise UsageError(f"{len(found)} rows were given, and values for {len(values)} came back.")
        given = [
            (*row[:width], *map(as_text, value))
            for row, value in zip(found, values, strict=True)
            if value is not None
        ]
        full = len(found) == backfill.batch_rows
        until = list(found[-1][: width - 1]) if full else None
        update = self._computed_update(compute, given) if given else None
        self._retried(lambda: self._apply(update, until, walked=len(found), given=len(given)))

    def _computed_update(self, compute: Compute, given: Sequence[Sequence[str | None]]) -> str:
        key_names = [f"rf_key{number}" for number in range(len(self.key.names))]
        new_names = [f"rf_value{number}" for number in range(len(compute.writes))]
        rows = ",\n".join(
            f"({', '.join('NULL' if text is None else quote(text) for text in row)})" for row in given
        )
        sets = ", ".join(
            f"{column} = rf_given.{name}::{type_}"
            for column, name, type_ in zip(compute.writes, new_names, self.types, strict=True)
        )
        same = " AND ".join(
            f"{column} = rf_given.{name}::{type_}"
            for column, name, type_ in zip(self.key.names, key_names, self.key.types, strict=True)
        )
        return (
            f"UPDATE {self.backfill.table} SET {sets} "
            f"FROM (VALUES {rows}) AS rf_given ({', '.join([*key_names, 'rf_xmin', *new_names])}) "
            f"WHERE {same} AND {self.backfill.table}.xmin = rf_given.rf_xmin::xid"
        )

    def _apply(self, update: str | None, until: list[str] | None, *, walked: int, given: int | None) -> bool:
        """Run the update and move on, in one statement. Does nothing when another session has moved on."""
        statement = self.position.moving(
            self.state, update, until, still=self.backfill.where, walked=walked, given=given
        )
        moved = self.session.execute(statement)
        self.state = State(*moved[0]) if moved else read_state(self.session, self.backfill.name)
        return bool(moved)

    def _end_pass(self) -> None:
        """Decide, with all rows gone through, whether any is left to be changed."""
        where, state = self.backfill.where, self.state
        again = False
        if where and not state.still:
            with self.session.settings({"enable_seqscan": "on"}):
                left = self.session.one(f"SELECT EXISTS (SELECT FROM {self.backfill.table} WHERE {where})")
            moving = state.changed > 0 or state.given > state.changed
            again = bool(left) and moving and state.number < MOST_PASSES
            if left and not again:
                self.session.notice(f"{self.backfill.table} still has rows with {where}")
        elif where:
            self.session.notice(
                f"for {state.still} rows of {self.backfill.table} it still holds that {where}"
            )
        self.state = self.position.begin_pass(self.session) if again else self.position.end(self.session)

    def _wait_for_replicas(self) -> None:
        bound = self.backfill.max_replica_lag_seconds
        while bound is not None and float(self.session.one(_LAG) or 0) > bound:
            if not self.told_lag:
                self.session.notice(f"waiting while a replica is more than {bound:g} s behind")
                self.told_lag = True
            time.sleep(_LAG_POLL_SECONDS)

    def _tell(self) -> None:
        if self.backfill.on_progress is None:
            return
        seconds = max(time.monotonic() - self.began, 0.001)
        done = self.expected if self.state.at_end else min(self.state.walked, self.expected)
        rate = max(0, self.state.walked - self.walked_before) / seconds
        self.backfill.on_progress(
            Progress(
                f"backfill {self.backfill.table}",
                done,
                self.expected,
                rows_per_second=rate,
                eta_seconds=(self.expected - done) / rate if rate else None,
            )
        )

    def _types(self) -> list[str]:
        """The types of the columns that values are written to."""
        if not isinstance(self.backfill.change, Compute):
            return []
        table = quote(self.backfill.table)
        types: list[str] = []
        for column in self.backfill.change.writes:
            # parse_ident: the column may be quoted.
            name = f"(parse_ident({quote(column)}))[1]"
            found = self.session.one(
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
                f"WHERE attrelid = {table}::regclass AND attname = {name} AND NOT attisdropped"
            )
            if found is None:
                raise UsageError(f"{self.backfill.table} has no column {column}.")
            types.append(found)
        return types
