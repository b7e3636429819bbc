"""Worker databases: clones of the template, each leased by one process for as long as it lives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import sql

from rag_factory.database.driver import connect
from rag_factory.errors import DatabaseMissingError
from rag_factory.testing import catalog
from rag_factory.testing.template import (
    drop,
    is_stale,
    lock_key,
    read_mark,
    touch,
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
        """End the lease. The database stays for the next run."""
        unlock(self.server, lock_key(self.name))


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
    return WorkerDatabase(place, template, slot.name, _make_ready(place, template, slot), server)


def lease_many(
    server: psycopg.Connection[Any], place: Place, template: Template, checkout: str, number: int
) -> Sequence[WorkerDatabase]:
    """Lease several at once, made ready in parallel."""
    slots: list[_Slot] = []
    while len(slots) < number:
        slots.append(_take_slot(server, place, checkout, slots[-1].number + 1 if slots else 0))
    with ThreadPoolExecutor(number) as pool:
        origins = pool.map(lambda slot: _make_ready(place, template, slot), slots)
        return [
            WorkerDatabase(place, template, slot.name, origin, server)
            for slot, origin in zip(slots, origins, strict=True)
        ]


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


_TAKE_SLOT = """
    SELECT pg_try_advisory_lock(%(key)s),
           (SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %(name)s),
           EXISTS (SELECT FROM pg_database WHERE datname ~ ('^' || %(name)s || '_f[0-9]+$'))
"""
_LEFTOVERS = "SELECT datname FROM pg_database WHERE datname ~ ('^' || %s || '_f[0-9]+$')"


@dataclass(frozen=True)
class _Slot:
    """A place for a worker database, leased. mark: of the database that an earlier run left there.

    leftovers: whether there are private clones of a killed run as well.
    """

    number: int
    name: str
    mark: dict[str, Any]
    leftovers: bool


def _take_slot(server: psycopg.Connection[Any], place: Place, checkout: str, first: int) -> _Slot:
    for number in count(first):
        name = worker_name(place, checkout, number)
        row = server.execute(_TAKE_SLOT.encode(), {"key": lock_key(name), "name": name}).fetchone()
        if row and row[0]:
            return _Slot(number, name, read_mark(row[1]), bool(row[2]))
    raise AssertionError  # pragma: no cover - count() doesn't end


def _make_ready(place: Place, template: Template, slot: _Slot) -> Origin:
    """Take what an earlier run left in a slot that is ours now, or clone."""
    kept = slot.mark.get("template") == template.name and _unchanged(place, template, slot.name)
    if kept and not slot.leftovers and not is_stale(slot.mark):
        return "kept"
    # A session of its own: clones are made in parallel.
    with connect(place.url) as server:
        if slot.leftovers:
            for (leftover,) in server.execute(_LEFTOVERS.encode(), (slot.name,)).fetchall():
                drop(server, leftover)
        if not kept:
            _clone(server, template, slot.name)
            return "cloned"
        touch(server, slot.name, slot.mark)
    return "kept"


def _unchanged(place: Place, template: Template, name: str) -> bool:
    """Prove that a kept database is as it was cloned."""
    try:
        with connect(place.url_of(name)) as connection:
            return catalog.fingerprint(connection) == template.fingerprint
    except (DatabaseMissingError, psycopg.Error):
        # Whatever is wrong with it, a new clone is right.
        return False


def _clone(server: psycopg.Connection[Any], template: Template, name: str) -> None:
    drop(server, name)
    create_clone(server, template, name)
    write_mark(server, name, kind="worker", template=template.name)
