"""Worker databases: clones of the template, each leased by one process for as long as it lives."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import sql

from rag_factory.database.connection import connect
from rag_factory.errors import DatabaseMissingError, RagFactoryError
from rag_factory.testing import catalog
from rag_factory.testing.template import (
    drop,
    is_stale,
    lock_key,
    read_mark,
    unlock,
    worker_name,
    write_mark,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag_factory.database.url import DatabaseUrl
    from rag_factory.testing.place import Place
    from rag_factory.testing.template import Template

Origin = Literal["kept", "cloned"]
# How long to wait for the end of sessions that have been closed; others may stay.
QUIET_SECONDS = 0.1
POLL_SECONDS = 0.001


@dataclass
class WorkerDatabase:
    """A database that is this process's alone until it ends. origin: kept from an earlier run, or cloned now.

    server: the session on the maintenance database that holds the lease; the server frees it when the process
    dies, however it dies. generation: how often it was cloned again; connections to earlier ones are dead.
    committing: whether the test of now may commit. proved: the transaction before which nothing changed.
    """

    place: Place
    template: Template
    name: str
    origin: Origin
    server: psycopg.Connection[Any]
    generation: int = 0
    committing: bool = False
    proved: int = 0
    _numbers: count[int] = field(default_factory=count)

    @property
    def url(self) -> DatabaseUrl:
        """Its address."""
        return self.place.url_of(self.name)

    def renew(self) -> None:
        """Clone it again: something was left in it that a rollback can't take back."""
        self.generation += 1
        self.proved = 0
        _clone(self.server, self.template, self.name)

    def clone(self) -> str:
        """Make a private clone; its name. It goes with `drop`, or when the slot is leased again."""
        name = self.reserve()
        create_clone(self.server, self.template, name)
        return name

    def reserve(self) -> str:
        """A name for a database that is made some other way, and goes like a clone."""
        return f"{self.name}_f{next(self._numbers)}"

    def drop(self, name: str) -> None:
        """Drop a private clone."""
        drop(self.server, name)

    def close(self) -> None:
        """End the lease. The database stays for the next run, which need not look into it."""
        if self.proved:
            self._settle()
        unlock(self.server, lock_key(self.name))

    def _settle(self) -> None:
        """Note the state in which it is left, when that is how it was cloned; else the next run looks."""
        try:
            with connect(self.url) as connection:
                changed = catalog.settle(connection, self.proved)
            if not changed:
                _note_state(self.server, self.template, self.name)
        except (RagFactoryError, psycopg.Error):
            # It can't be used as it is, which the next run finds out for itself.
            return


def open_keeper(url: DatabaseUrl, connect_timeout_seconds: int = 10) -> psycopg.Connection[Any]:
    """Open a session on the maintenance database for locks, which the server doesn't end while it waits."""
    server = connect(url, connect_timeout_seconds=connect_timeout_seconds)
    server.execute("SET idle_session_timeout = 0")
    return server


def lease(
    server: psycopg.Connection[Any], place: Place, template: Template, checkout: str, first_slot: int = 0
) -> WorkerDatabase:
    """Lease the first free slot from `first_slot` on, and make its database ready.

    server: the session on the maintenance database that holds the lease.
    A database kept from an earlier run is used again only when one round trip proves its schema and rows
    unchanged; else it is cloned anew.
    """
    slot = _take_slot(server, place, checkout, first_slot)
    origin: Origin = "kept" if slot.keeps(template) else _make_ready(server, place, template, slot)
    return WorkerDatabase(place, template, slot.name, origin, server)


def lease_many(
    server: psycopg.Connection[Any], place: Place, template: Template, checkout: str, number: int
) -> Sequence[WorkerDatabase]:
    """Lease several at once. Those that must be looked into or cloned are made ready in parallel."""
    slots: list[_Slot] = []
    while len(slots) < number:
        slots.append(_take_slot(server, place, checkout, slots[-1].number + 1 if slots else 0))
    origins: dict[str, Origin] = {slot.name: "kept" for slot in slots if slot.keeps(template)}
    rest = [slot for slot in slots if slot.name not in origins]
    if len(rest) == 1:
        origins[rest[0].name] = _make_ready(server, place, template, rest[0])
    elif rest:
        from concurrent.futures import ThreadPoolExecutor

        def make_ready(slot: _Slot) -> Origin:
            with connect(place.url) as own_session:
                return _make_ready(own_session, place, template, slot)

        with ThreadPoolExecutor(len(rest)) as pool:
            origins |= zip((slot.name for slot in rest), pool.map(make_ready, rest), strict=True)
    return [WorkerDatabase(place, template, slot.name, origins[slot.name], server) for slot in slots]


def create_clone(server: psycopg.Connection[Any], template: Template, name: str) -> None:
    """Clone the template. Clones of a template that is closed to connections don't wait for each other."""
    clone = sql.Identifier(name)
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}")
    server.execute(
        statement.format(clone, sql.Identifier(template.name), sql.Identifier(template.strategy.lower()))
    )
    for setting, value in template.settings.items():
        with server.transaction():
            # Here the setting reads its text itself, which a literal in ALTER DATABASE doesn't do for lists.
            server.execute("SELECT set_config(%s, %s, true)", (setting, value))
            names = sql.SQL(".").join(map(sql.Identifier, setting.split(".")))
            server.execute(sql.SQL("ALTER DATABASE {} SET {} FROM CURRENT").format(clone, names))


# A text that stays the same for as long as nobody opens a session on a database or sets anything for it. Null
# while there is a session: what it did is counted when it ends. The counts are forgotten in a crash of the
# server, which the time of the last one tells.
_STATE = """
    CASE WHEN pg_stat_get_db_numbackends(d.oid) = 0 THEN concat_ws(' ',
        d.oid, d.datdba, d.datacl::text, pg_stat_get_db_sessions(d.oid),
        extract(epoch FROM pg_stat_get_db_stat_reset_time(d.oid)),
        (SELECT extract(epoch FROM stats_reset) FROM pg_stat_bgwriter),
        (SELECT string_agg(concat_ws(' ', setrole, setconfig::text), ' ' ORDER BY setrole)
         FROM pg_db_role_setting WHERE setdatabase = d.oid)) END
"""
_TAKE_SLOT = f"""
    SELECT d.mark, d.state, EXISTS (SELECT FROM pg_database WHERE datname ~ ('^' || %(name)s || '_f[0-9]+$'))
    FROM pg_try_advisory_lock(%(key)s) AS free
    LEFT JOIN (SELECT shobj_description(d.oid, 'pg_database') AS mark, {_STATE} AS state
               FROM pg_database AS d WHERE d.datname = %(name)s) AS d ON true
    WHERE free
"""
_READ_STATE = f"SELECT {_STATE} FROM pg_database AS d WHERE d.datname = %s"
_LEFTOVERS = "SELECT datname FROM pg_database WHERE datname ~ ('^' || %s || '_f[0-9]+$')"


@dataclass(frozen=True)
class _Slot:
    """A place for a worker database, leased.

    mark: of the database that an earlier run left there. state: in which it is now; None when it is in use.
    leftovers: whether there are private clones of a killed run as well.
    """

    number: int
    name: str
    mark: dict[str, Any]
    state: str | None
    leftovers: bool

    def keeps(self, template: Template) -> bool:
        """Whether its database is as the template, with nothing to do: nobody has been in it since."""
        return (
            self.mark.get("template") == template.name
            and self.state is not None
            and self.state == self.mark.get("state")
            and not self.leftovers
            and not is_stale(self.mark)
        )


def _take_slot(server: psycopg.Connection[Any], place: Place, checkout: str, first: int) -> _Slot:
    for number in count(first):
        name = worker_name(place, checkout, number)
        row = server.execute(_TAKE_SLOT.encode(), {"key": lock_key(name), "name": name}).fetchone()
        if row:
            return _Slot(number, name, read_mark(row[0]), row[1], bool(row[2]))
    raise AssertionError  # pragma: no cover - count() doesn't end


def _make_ready(server: psycopg.Connection[Any], place: Place, template: Template, slot: _Slot) -> Origin:
    """Take what an earlier run left in a slot that is ours now if it is unchanged, or clone.

    server: a session that nobody else uses meanwhile.
    """
    if slot.leftovers:
        for (leftover,) in server.execute(_LEFTOVERS.encode(), (slot.name,)).fetchall():
            drop(server, leftover)
    if slot.mark.get("template") == template.name and _unchanged(place, template, slot.name):
        _note_state(server, template, slot.name)
        return "kept"
    _clone(server, template, slot.name)
    return "cloned"


def _unchanged(place: Place, template: Template, name: str) -> bool:
    """Look into a kept database: whether it is as it was cloned."""
    try:
        with connect(place.url_of(name)) as connection:
            return catalog.fingerprint(connection) == template.fingerprint
    except (DatabaseMissingError, psycopg.Error):
        # Whatever is wrong with it, a new clone is right.
        return False


def _clone(server: psycopg.Connection[Any], template: Template, name: str) -> None:
    drop(server, name)
    create_clone(server, template, name)
    _note_state(server, template, name)


def _note_state(server: psycopg.Connection[Any], template: Template, name: str) -> None:
    """Mark a database that is as it was cloned, once its sessions have ended."""
    deadline = time.monotonic() + QUIET_SECONDS
    while (row := server.execute(_READ_STATE.encode(), (name,)).fetchone()) is None or row[0] is None:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    write_mark(server, name, kind="worker", template=template.name, state=row[0] if row else None)
