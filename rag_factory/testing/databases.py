"""Worker databases: clones of the template, each leased by one process for as long as it lives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import sql

from rag_factory.database.connection import connect
from rag_factory.errors import DatabaseMissingError
from rag_factory.testing import catalog
from rag_factory.testing.template import drop, lock_key, read_mark, touch, write_mark

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
    committing: whether the test of now may commit.
    """

    place: Place
    template: Template
    name: str
    origin: Origin
    server: psycopg.Connection[Any]
    generation: int = 0
    committing: bool = False
    _numbers: count[int] = field(default_factory=count)

    @property
    def url(self) -> DatabaseUrl:
        """Its address."""
        return self.place.url_of(self.name)

    def renew(self) -> None:
        """Clone it again: something was left in it that a rollback can't take back."""
        self.generation += 1
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
        # The server notices a closed session a little later; the lease shall be free at once.
        self.server.execute("SELECT pg_advisory_unlock_all()")
        self.server.close()


def lease(place: Place, template: Template, checkout: str, first_slot: int = 0) -> WorkerDatabase:
    """Lease the first free slot from `first_slot` on, and make its database ready.

    A database kept from an earlier run is used again only when one round trip proves its schema and rows
    unchanged; else it is cloned anew.
    """
    server = connect(place.url)
    try:
        for slot in count(first_slot):
            name = f"{place.base}_{checkout}_{slot}"
            row = server.execute(_LEASE.encode(), {"key": lock_key(name), "name": name}).fetchone()
            if row and row[0]:
                origin = _make_ready(server, place, template, name, read_mark(row[1]), bool(row[2]))
                return WorkerDatabase(place, template, name, origin, server)
    except BaseException:
        server.close()
        raise
    raise AssertionError  # pragma: no cover - count() doesn't end


def lease_many(place: Place, template: Template, checkout: str, number: int) -> Sequence[WorkerDatabase]:
    """Lease several at once, made ready in parallel. Either all are leased or none."""
    with ThreadPoolExecutor(number) as pool:
        futures = [pool.submit(lease, place, template, checkout, slot) for slot in range(number)]
    leased = [future.result() for future in futures if future.exception() is None]
    if len(leased) < number:
        for database in leased:
            database.close()
    return [future.result() for future in futures]


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


_LEASE = """
    SELECT pg_try_advisory_lock(%(key)s),
           (SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %(name)s),
           EXISTS (SELECT FROM pg_database WHERE starts_with(datname, %(name)s || '_f')),
           set_config('idle_session_timeout', '0', false)
"""
_LEFTOVERS = "SELECT datname FROM pg_database WHERE starts_with(datname, %s || '_f')"


def _make_ready(
    server: psycopg.Connection[Any],
    place: Place,
    template: Template,
    name: str,
    mark: dict[str, Any],
    leftovers: bool,
) -> Origin:
    """Take what an earlier run left in a slot that is ours now, or clone."""
    if leftovers:
        for (leftover,) in server.execute(_LEFTOVERS.encode(), (name,)).fetchall():
            drop(server, leftover)
    if mark.get("template") == template.name and _unchanged(place, template, name):
        touch(server, name, mark)
        return "kept"
    _clone(server, template, name)
    return "cloned"


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
