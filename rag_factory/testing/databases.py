"""Worker databases: clones of the template, each leased by one process for as long as it lives."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from select import POLLIN, poll
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import psycopg
from psycopg import errors, sql
from psycopg.pq import ConnStatus

from rag_factory.database.driver import connect
from rag_factory.errors import DatabaseMissingError, LockedError, RagFactoryError, RefusedError
from rag_factory.testing import catalog
from rag_factory.testing.template import (
    comment,
    drop,
    is_stale,
    lock_key,
    read_mark,
    try_lock,
    unlock,
    use_template,
    worker_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rag_factory.database.url import DatabaseUrl
    from rag_factory.testing.place import Place
    from rag_factory.testing.template import Template

Origin = Literal["kept", "cloned"]
# How long to wait for the end of sessions that have been closed; others may stay.
QUIET_SECONDS = 0.1
POLL_SECONDS = 0.001
# How many are cloned at once. The server's processors copy, which mostly are this machine's; beyond four,
# the disk is what they wait for.
AT_ONCE = max(2, min(4, os.cpu_count() or 2))


class Ticket(NamedTuple):
    """What the first process of a run hands to a worker, so that it need not look again.

    visits: how often the slot's database, of this oid, was visited; None when it isn't known.
    """

    slot: int
    oid: int = 0
    visits: str | None = None


@dataclass
class WorkerDatabase:
    """A database that is this process's alone until it ends. origin: kept from an earlier run, or cloned now.

    server: the session on the maintenance database that holds the lease; the server frees it when the process
    dies, however it dies. generation: how often it was cloned again; connections to earlier ones are dead.
    is_own_session: whether nobody else closes it. committing: whether the test of now may commit. proved: the
    transaction before which nothing changed. sessions: the process ids of those that tests share; what is
    open there ends with the test. unended: those of others that had not ended what they wrote when last seen.
    restored: before which transaction all was put back after the test of now, and by which.
    """

    place: Place
    template: Template
    name: str
    origin: Origin
    server: psycopg.Connection[Any]
    ticket: Ticket
    generation: int = 0
    is_own_session: bool = False
    committing: bool = False
    proved: int = 0
    sessions: set[int] = field(default_factory=set)
    unended: str = ""
    restored: tuple[int, int] | None = None
    _numbers: count[int] = field(default_factory=count)

    @property
    def url(self) -> DatabaseUrl:
        """Its address."""
        return self.place.url_of(self.name)

    def keep(self) -> None:
        """Take the lease anew when its session was ended, as by a test that ends all that it finds.

        Raises LockedError: another run has taken it meanwhile.
        """
        if not has_ended(self.server):
            return
        server = open_keeper(self.place.url)
        if not try_lock(server, lock_key(self.name)):
            server.close()
            raise LockedError(
                f"The session that leased {self.name} was ended, and another run has leased it since.",
                fix="End no sessions but those of a test's own, then run the tests again.",
            )
        use_template(server, self.template.name, self.template.strategy)
        self.server, self.is_own_session = server, True

    def renew(self) -> None:
        """Clone it again: something was left in it that a rollback can't take back.

        Raises LockedError: see `keep`. RefusedError: somebody is in it who may not be sent away.
        """
        self.keep()
        self.generation += 1
        self.proved = 0
        self.unended = ""
        self.restored = None
        drop(self.server, self.name)
        create_clone(self.server, self.template, self.name)
        _note_states(self.server, [self])

    def clone(self) -> str:
        """Make a private clone; its name. It goes with `drop`, or with the checkout's next run.

        Raises LockedError: see `keep`.
        """
        self.keep()
        while True:
            name = self.reserve()
            # One of a killed run is still there when somebody is looking at it.
            with suppress(errors.DuplicateDatabase):
                create_clone(self.server, self.template, name)
                return name

    def reserve(self) -> str:
        """A name for a database that is made some other way, and goes like a clone."""
        return f"{self.name}_f{next(self._numbers)}"

    def drop(self, name: str) -> None:
        """Drop a private clone.

        Raises LockedError: see `keep`. RefusedError: somebody is in it who may not be sent away.
        """
        self.keep()
        drop(self.server, name)

    def close(self) -> None:
        """End the lease. The database stays for the next run, which need not look into it.

        Raises LockedError: see `keep`.
        """
        self.keep()
        if self.proved:
            self._settle()
        unlock(self.server, lock_key(self.name))
        if self.is_own_session:
            self.server.close()

    def _settle(self) -> None:
        """Note the state in which it is left, when that is how it was cloned; else the next run looks."""
        try:
            with connect(self.url) as connection:
                changed = catalog.settle(connection, self.proved)
                catalog.vacuum(connection)
            if not changed:
                _note_states(self.server, [self])
        except (RagFactoryError, psycopg.Error):
            # It can't be used as it is, which the next run finds out for itself.
            return


def open_keeper(url: DatabaseUrl, connect_timeout_seconds: int = 10) -> psycopg.Connection[Any]:
    """Open a session on the maintenance database for locks, which the server doesn't end while it waits."""
    options = f"{url.options.get('options', '')} -c idle_session_timeout=0"
    patient = replace(url, options={**url.options, "options": options})
    return connect(patient, connect_timeout_seconds=connect_timeout_seconds)


def has_ended(connection: psycopg.BaseConnection[Any]) -> bool:
    """Whether the server has ended a session, also while nobody used it: then there is something to read."""
    libpq = connection.pgconn
    if libpq.status != ConnStatus.OK:
        return True
    waiting = poll()
    waiting.register(libpq.socket, POLLIN)
    try:
        # First its farewell, then the end; or what was sent to a LISTEN.
        while libpq.status == ConnStatus.OK and waiting.poll(0):
            libpq.consume_input()
    except psycopg.Error:
        return True
    return bool(libpq.status != ConnStatus.OK)


def lease(
    server: psycopg.Connection[Any], place: Place, template: Template, checkout: str, ticket: Ticket
) -> WorkerDatabase:
    """Lease one database, in the ticket's slot if that is still free, and make it ready.

    server: the session on the maintenance database that holds the lease.
    A database kept from an earlier run is used again only when one round trip proves its schema and rows
    unchanged; else it is cloned anew.
    """
    name = worker_name(place, checkout, ticket.slot)
    if ticket.visits:
        free, visits, now = _rows(server, _TAKE_TICKET, (lock_key(name), *[ticket.oid] * 3))[0]
        if free and visits == ticket.visits:
            return WorkerDatabase(place, template, name, "kept", server, ticket, proved=now)
        if free:
            unlock(server, lock_key(name))
    return lease_many(server, place, template, checkout, 1, ticket.slot)[0]


def lease_many(
    server: psycopg.Connection[Any],
    place: Place,
    template: Template,
    checkout: str,
    number: int,
    first_slot: int = 0,
) -> Sequence[WorkerDatabase]:
    """Lease several at once. Those that must be looked into or cloned are made ready in parallel."""
    slots: list[_Slot] = []
    while len(slots) < number:
        slots += _take_slots(server, place, checkout, first_slot, number - len(slots))
        first_slot += number
    _drop_orphans(server, slots)
    databases = [
        WorkerDatabase(
            place,
            template,
            slot.name,
            "kept",
            server,
            slot.ticket,
            proved=slot.now if slot.keeps(template) else 0,
        )
        for slot in slots
    ]
    rest = [pair for pair in zip(databases, slots, strict=True) if not pair[0].proved]
    if len(rest) == 1:
        _make_all_ready(server, rest)
    elif rest:
        from concurrent.futures import ThreadPoolExecutor

        # One for all threads: whichever is done takes the next.
        waiting = iter(rest)

        def make_ready_too() -> None:
            with connect(place.url) as own_session:
                _make_all_ready(own_session, waiting)

        others = min(AT_ONCE, len(rest)) - 1
        with ThreadPoolExecutor(others) as pool:
            more = [pool.submit(make_ready_too) for _ in range(others)]
            _make_all_ready(server, waiting)
            for done in more:
                done.result()
    if rest:
        _note_states(server, [database for database, _ in rest])
    return databases


def say_origins(template: Template, databases: Sequence[WorkerDatabase]) -> str:
    """How template and databases came about, in words."""
    kept = sum(database.origin == "kept" for database in databases)
    counts = [(kept, "kept"), (len(databases) - kept, "cloned")]
    state = "built" if template.built else "cached"
    return ", ".join([state, *(f"{number} {word}" for number, word in counts if number)])


def create_clone(server: psycopg.Connection[Any], template: Template, name: str) -> None:
    """Clone the template. Clones of a template that is closed to connections don't wait for each other."""
    clone = sql.Identifier(name)
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}")
    server.execute(
        statement.format(clone, sql.Identifier(template.name), sql.Identifier(template.strategy.lower()))
    )
    for role, setting, value in template.settings:
        alter = sql.SQL("ALTER DATABASE {}").format(clone)
        if role:
            alter = sql.SQL("ALTER ROLE {} IN DATABASE {}").format(sql.Identifier(role), clone)
        with server.transaction():
            # Here the setting reads its text itself, which a literal in ALTER DATABASE doesn't do for lists.
            server.execute("SELECT set_config(%s, %s, true)", (setting, value))
            names = sql.SQL(".").join(map(sql.Identifier, setting.split(".")))
            server.execute(sql.SQL("{} SET {} FROM CURRENT").format(alter, names))


# How often a database was visited; the same for as long as nobody opens a session on it. Null while there is
# one: it is counted when it ends.
_VISITS = """
    CASE WHEN pg_stat_get_db_numbackends({oid}) = 0
    THEN concat_ws(' ', pg_stat_get_db_sessions({oid}), pg_stat_get_db_stat_reset_time({oid})) END
"""
# Whoever visits it later has a transaction of this number or a higher one.
_NOW = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
_TAKE_TICKET = f"SELECT pg_try_advisory_lock(%s), {_VISITS.format(oid='%s')}, {_NOW}"
# What can be set for a database without a visit, and the time of the server's last crash, in which it forgets
# the visits.
_SURROUNDINGS = """
    concat_ws(' ', d.datdba, d.datacl, d.datconnlimit, (SELECT stats_reset FROM pg_stat_bgwriter),
              (SELECT string_agg(concat_ws(' ', setrole, setconfig), ' ' ORDER BY setrole)
               FROM pg_db_role_setting WHERE setdatabase = d.oid),
              (SELECT count(*) FROM pg_prepared_xacts WHERE database = d.datname))
"""
_STATE = f"d.oid::bigint, {_VISITS.format(oid='d.oid')}, {_SURROUNDINGS}"
_TAKE_SLOTS = f"""
    SELECT slot, shobj_description(d.oid, 'pg_database'),
           ARRAY(SELECT datname FROM pg_database WHERE datname ~ %s), {_NOW}, {_STATE}
    FROM unnest(%s::int[], %s::text[], %s::bigint[]) AS slots (slot, name, key)
    CROSS JOIN pg_try_advisory_lock(key) AS free LEFT JOIN pg_database AS d ON d.datname = name
    WHERE free
"""
_READ_STATES = f"SELECT d.datname, {_STATE} FROM pg_database AS d WHERE d.datname = ANY (%s)"


@dataclass(frozen=True)
class _Slot:
    """A place for a worker database, leased.

    ticket: for the database that is there. mark: of that from an earlier run. clones: all private ones of
    this checkout, in any slot. surroundings: what is set for the database from outside. now: the transaction
    from which on somebody may have changed what is kept.
    """

    name: str
    ticket: Ticket
    mark: dict[str, Any]
    clones: Sequence[str]
    surroundings: str
    now: int

    @property
    def leftovers(self) -> list[str]:
        """The private clones that a killed run has left in this slot."""
        return [clone for clone in self.clones if _worker_of(clone) == self.name]

    def keeps(self, template: Template) -> bool:
        """Whether its database is as the template, with nothing to do: nobody has been in it since."""
        return (
            self.mark.get("template") == template.name
            and bool(self.ticket.visits)
            and self.mark.get("state") == _state(self.ticket, self.surroundings)
            and not self.leftovers
            and not is_stale(self.mark)
        )


def _take_slots(
    server: psycopg.Connection[Any], place: Place, checkout: str, first: int, number: int
) -> list[_Slot]:
    """Lease those that are free among so many slots."""
    numbers = list(range(first, first + number))
    names = [worker_name(place, checkout, slot) for slot in numbers]
    clones = f"^{worker_name(place, checkout, 0)[:-1]}[0-9]+_f[0-9]+$"
    rows = _rows(server, _TAKE_SLOTS, (clones, numbers, names, [lock_key(name) for name in names]))
    return [
        _Slot(names[slot - first], Ticket(slot, oid or 0, visits), read_mark(mark), found, surroundings, now)
        for slot, mark, found, now, oid, visits, surroundings in sorted(rows, key=lambda row: row[0])
    ]


def _drop_orphans(server: psycopg.Connection[Any], slots: Sequence[_Slot]) -> None:
    """Drop the private clones that a killed run has left in slots that nobody has taken since."""
    taken = {slot.name for slot in slots}
    for clone in {clone for slot in slots for clone in slot.clones}:
        worker = _worker_of(clone)
        if worker not in taken and try_lock(server, lock_key(worker)):
            _drop_leftover(server, clone)
            unlock(server, lock_key(worker))


def _drop_leftover(server: psycopg.Connection[Any], clone: str) -> None:
    """Drop it, unless somebody is looking at it who may not be sent away."""
    with suppress(RefusedError):
        drop(server, clone)


def _worker_of(clone: str) -> str:
    """The worker database that a private clone has its name from."""
    return clone.rpartition("_f")[0]


def _make_all_ready(server: psycopg.Connection[Any], leased: Iterable[tuple[WorkerDatabase, _Slot]]) -> None:
    """Take what an earlier run left in slots that are ours now if it is unchanged, or clone.

    server: a session that nobody else uses meanwhile.
    """
    for database, slot in leased:
        for leftover in slot.leftovers:
            _drop_leftover(server, leftover)
        if slot.mark.get("template") != database.template.name or not _unchanged(database):
            database.origin = "cloned"
            if slot.ticket.oid:
                drop(server, database.name)
            create_clone(server, database.template, database.name)


def _unchanged(database: WorkerDatabase) -> bool:
    """Look into a kept database: whether it is as it was cloned."""
    try:
        with connect(database.url) as connection:
            # What a killed run has left dead is in nobody's way.
            catalog.vacuum(connection)
            return catalog.fingerprint(connection) == database.template.fingerprint
    except (DatabaseMissingError, psycopg.Error):
        # Whatever is wrong with it, a new clone is right.
        return False


def _note_states(server: psycopg.Connection[Any], databases: Sequence[WorkerDatabase]) -> None:
    """Mark databases that are as they were cloned, once their sessions have ended."""
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        rows = _rows(server, _READ_STATES, ([database.name for database in databases],))
        found = {name: state for name, *state in rows}
        if all(visits for _, visits, _ in found.values()) or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    marks = []
    for database in databases:
        oid, visits, surroundings = found[database.name]
        database.ticket = Ticket(database.ticket.slot, oid, visits)
        state = _state(database.ticket, surroundings) if visits else None
        marks.append(comment(database.name, kind="worker", template=database.template.name, state=state))
    server.execute(sql.SQL("; ").join(marks))


def _state(ticket: Ticket, surroundings: str) -> str:
    return f"{ticket.oid} {ticket.visits} {surroundings}"


def _rows(server: psycopg.Connection[Any], query: str, values: Sequence[Any]) -> list[Any]:
    return server.execute(query.encode(), values).fetchall()
