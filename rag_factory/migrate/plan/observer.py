"""See what each statement of a revision does, by whichever driver and connection it runs on the copy."""

from __future__ import annotations

import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event

from rag_factory.migrate.plan import statements
from rag_factory.migrate.plan.catalog import QUERY, Change, Snapshot, find_changes
from rag_factory.migrate.plan.messages import Work, read_messages
from rag_factory.migrate.plan.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rag_factory.database.url import DatabaseUrl

# They change nothing that is looked at; and a look before SET TRANSACTION would make it fail.
_UNSEEN = frozenset(
    {"SET", "RESET", "SHOW", "BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"}
)
# "can't run inside a transaction block", and "invalid transaction termination": a procedure that commits.
_NEEDS_NO_TRANSACTION = frozenset({"25001", "2D000"})
_VACUUM = re.compile(r"(?i)^(?:vacuum|analyze)\s+(?:\([^)]*\)\s*|(?:freeze|verbose|analyze)\s+)*([^()]+)")
_DETACH = re.compile(r"(?i)^alter\s+table\s+(?:only\s+)?(\S+)\s+detach\s+partition\s+(\S+)\s+concurrently")


@dataclass(frozen=True)
class Lock:
    """A lock that a statement took. oid: of the relation. assumed: known of such statements, not measured."""

    oid: int
    mode: str
    assumed: bool = False


@dataclass(frozen=True)
class Observed:
    """What one statement did on the copy. Relations by oid.

    transaction: the number of its transaction within the revision. transactional: False when it can't run
    in one. dropped_in_time: whether the locks were given back when it ended. skipped: it was not run.
    """

    sql: str
    milliseconds: float
    transaction: int
    autocommit: bool
    before: Snapshot
    after: Snapshot
    locks: Sequence[Lock] = ()
    work: Work = field(default_factory=Work)
    changes: Sequence[Change] = ()
    parameters: Any = None
    skipped: bool = False


class Observer:
    """Sees the statements that SQLAlchemy sends to one database while `body` runs.

    Each is followed by one query of the same session, in its transaction: other sessions don't see its
    uncommitted catalog. What the server does with the table it says itself, at the level debug1.
    """

    def __init__(self, url: DatabaseUrl, first: Snapshot) -> None:
        self.last = first
        self.observed: list[Observed] = []
        self._database = url.database
        self._watcher = Watcher(url)
        self._messages: list[str] = []
        self._connections: list[Any] = []
        self._thread: int | None = None
        self._open_by_hand = False
        self._held: frozenset[tuple[int, str]] = frozenset()
        self._transaction: str | None = None
        self._number = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of every connection that is opened in the body, and of every statement on it."""
        hooks: dict[str, Callable[..., Any]] = {
            "connect": self._connected,
            "do_execute": self._execute,
            "do_executemany": self._execute_many,
            "do_execute_no_params": self._execute_bare,
        }
        for name, hook in hooks.items():
            event.listen(Engine, name, hook)
        try:
            yield
        finally:
            for name, hook in hooks.items():
                event.remove(Engine, name, hook)

    def body(self, function: Callable[..., None]) -> Callable[..., None]:
        """The function, watched: what Alembic itself does before and after it is none of its doing."""

        def run(*arguments: Any, **options: Any) -> None:
            self.observed = []
            self._number, self._transaction, self._held = 0, None, frozenset()
            self._thread = threading.get_ident()
            try:
                function(*arguments, **options)
            finally:
                self._thread, self._open_by_hand = None, False

        return run

    def _connected(self, connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT current_database()")
        if cursor.fetchone()[0] == self._database:
            cursor.execute("SET client_min_messages = debug1")
            self._connections.append(connection)
            _hear(getattr(connection, "driver_connection", connection), self._messages.append)
        cursor.close()
        connection.commit()

    def _execute(self, cursor: Any, sql: str, parameters: Any, context: Any) -> bool:
        run = context.dialect.do_execute
        # SQLAlchemy doubles the percent signs for the driver, which halves them when it is given parameters.
        text = sql if parameters else sql.replace("%%", "%")
        return self._see(cursor, text, parameters, context, lambda: run(cursor, sql, parameters, context))

    def _execute_many(self, cursor: Any, sql: str, parameters: Any, context: Any) -> bool:
        run = context.dialect.do_executemany
        return self._see(cursor, sql, None, context, lambda: run(cursor, sql, parameters, context))

    def _execute_bare(self, cursor: Any, sql: str, context: Any) -> bool:
        run = context.dialect.do_execute_no_params
        return self._see(cursor, sql, None, context, lambda: run(cursor, sql, context))

    def _see(self, cursor: Any, sql: str, parameters: Any, context: Any, run: Callable[[], None]) -> bool:
        """Run the statement and look. True: it was run here, and SQLAlchemy needs not."""
        # An operation's own thread, which watches it, is not the revision.
        if self._thread != threading.get_ident():
            return False
        connection = context.root_connection.connection.dbapi_connection
        heads = {statements.head(statement) for statement in statements.split(sql)}
        if not any(connection is ours for ours in self._connections):
            return False
        if heads <= _UNSEEN:
            self._follow(heads)
            return False
        if statements.is_server_wide(sql):
            # An empty result, so that whoever asks for one gets it.
            cursor.execute("SELECT WHERE false")
            self.observed.append(
                Observed(sql, 0.0, max(self._number, 1), False, self.last, self.last, skipped=True)
            )
            return True
        autocommit = context.dialect.detect_autocommit_setting(connection) and not self._open_by_hand
        del self._messages[:]
        if not autocommit:
            self._finish(
                sql, parameters, self._timed(run), _snapshot(connection), connection, autocommit=False
            )
        elif not self._run_in_transaction(sql, parameters, connection, run):
            self._run_alone(sql, parameters, connection, run)
        return True

    def _follow(self, heads: set[str]) -> None:
        """Note a transaction that a revision opens in plain SQL."""
        if heads & {"BEGIN", "START"}:
            self._open_by_hand = True
        elif heads & {"COMMIT", "END", "ROLLBACK", "ABORT"}:
            self._open_by_hand = False

    def _run_in_transaction(
        self, sql: str, parameters: Any, connection: Any, run: Callable[[], None]
    ) -> bool:
        """Run an autocommit statement in a transaction of ours, so that its locks can be read after it.

        False: the server refused, as this one must run outside of any; nothing was done.
        """
        _send(connection, "BEGIN")
        try:
            milliseconds = self._timed(run)
        except Exception as error:
            _send(connection, "ROLLBACK")
            state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
            if state in _NEEDS_NO_TRANSACTION:
                return False
            raise
        snapshot = _snapshot(connection)
        _send(connection, "COMMIT")
        self._finish(sql, parameters, milliseconds, snapshot, connection, autocommit=True)
        return True

    def _run_alone(self, sql: str, parameters: Any, connection: Any, run: Callable[[], None]) -> None:
        del self._messages[:]
        pid = _send(connection, "SELECT pg_backend_pid()")
        with self._watcher.watch(pid) as seen:
            milliseconds = self._timed(run)
        self._finish(
            sql, parameters, milliseconds, _snapshot(connection), connection, autocommit=True, seen=seen
        )

    @staticmethod
    def _timed(run: Callable[[], None]) -> float:
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) * 1000

    def _finish(
        self, sql: str, parameters: Any, milliseconds: float, now: Snapshot, connection: Any,
        *, autocommit: bool, seen: set[tuple[int, str]] | None = None,
    ) -> None:  # fmt: skip
        before, self.last = self.last, now
        if now.transaction != self._transaction or seen is not None:
            self._number += 1
            self._transaction, self._held = now.transaction, frozenset()
        # An index that is gone was of no use to anybody any more when its last lock was taken.
        gone = {oid for oid, old in before.relations.items() if old.is_index and oid not in now.relations}
        held = now.locks if seen is None else frozenset(lock for lock in seen if lock[0] not in gone)
        new = [Lock(oid, mode) for oid, mode in sorted(held - self._held) if mode != "AccessShareLock"]
        if seen is not None:
            new += _assumed(sql, before, new)
        self._held |= held

        def describe(query: str) -> Mapping[str, Any]:
            return dict(json.loads(_send(connection, query)))

        changes = () if now == before else find_changes(before, now, describe)
        work = read_messages(self._messages, sql, before, now, {lock.oid for lock in new}, describe)
        self.observed.append(
            Observed(sql, milliseconds, self._number, autocommit, before, now, new, work, changes, parameters)
        )


def _assumed(sql: str, before: Snapshot, measured: Sequence[Lock]) -> list[Lock]:
    """The locks of what waits for nobody while it has them, and so may be gone before they are read."""
    text = " ".join(statements.split(sql))
    named: dict[str, str] = {}
    if found := _VACUUM.match(text):
        named = dict.fromkeys(found[1].split(","), "ShareUpdateExclusiveLock")
    elif found := _DETACH.match(text):
        named = {found[1]: "ShareUpdateExclusiveLock", found[2]: "AccessExclusiveLock"}
    modes = {name.strip().rpartition(".")[2].strip('"'): mode for name, mode in named.items()}
    known = {(lock.oid, lock.mode) for lock in measured}
    return [
        Lock(relation.oid, modes[relation.bare_name], assumed=True)
        for relation in before.relations.values()
        if relation.bare_name in modes and (relation.oid, modes[relation.bare_name]) not in known
    ]


def _snapshot(connection: Any) -> Snapshot:
    return Snapshot.parse(_send(connection, QUERY))


def _send(connection: Any, sql: str) -> Any:
    """Run a statement of ours on the driver's connection; gives the first value, if there is one."""
    cursor = connection.cursor()
    try:
        cursor.execute(sql)
        row = cursor.fetchone() if cursor.description else None
    finally:
        cursor.close()
    return row[0] if row else None


def _hear(driver: Any, tell: Callable[[str], None]) -> None:
    """Let a driver's connection hand over what the server says."""
    if hasattr(driver, "add_notice_handler"):  # psycopg
        driver.add_notice_handler(lambda diagnostic: tell(diagnostic.message_primary or ""))
    elif hasattr(driver, "add_log_listener"):  # asyncpg
        driver.add_log_listener(lambda _, message: tell(message.message))
    elif hasattr(driver, "notices"):  # psycopg2, which appends "DEBUG:  text\n"
        driver.notices = _Notices(tell)


class _Notices(list[str]):
    """The list psycopg2 appends notices to."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def append(self, text: str) -> None:
        self._tell(text.partition(":")[2].strip())
