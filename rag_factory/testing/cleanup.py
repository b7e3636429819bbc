"""Collect test databases that nobody uses any more."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rag_factory.errors import RefusedError
from rag_factory.testing.template import (
    TEMPLATE,
    WORKER,
    drop,
    lock_key,
    read_mark,
    try_lock,
    unlock,
    use_key,
)

if TYPE_CHECKING:
    import psycopg

Kind = Literal["template", "worker", "clone"]

_DATABASES = """
    SELECT datname, shobj_description(oid, 'pg_database'), CASE WHEN %s THEN pg_database_size(oid) ELSE 0 END
    FROM pg_database WHERE starts_with(datname, %s || '_') ORDER BY datname
"""
# A lock of 64 bits is told in two halves.
_LOCKS = """
    SELECT DISTINCT classid::bigint << 32 | objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True)
class TestDatabase:
    """A database that tests made.

    kind: a template, a worker's database, or a private clone of one test. used: when it last was, in epoch
    seconds, to the day; 0 when it isn't known. leased: a run that is going on builds, clones or uses it.
    """

    __test__: ClassVar[bool] = False

    name: str
    kind: Kind
    size_bytes: int
    used: float
    leased: bool

    @property
    def keys(self) -> tuple[int, ...]:
        """The advisory locks that whoever uses it holds one of. A private clone goes with its worker's."""
        if self.kind == "template":
            return lock_key(self.name), use_key(self.name)
        return (lock_key(re.sub(r"_f\d+$", "", self.name)),)


def describe(server: psycopg.Connection[Any], base: str, *, with_sizes: bool = True) -> list[TestDatabase]:
    """The test databases of this base on the server, by name.

    server: a session on the maintenance database. with_sizes: False leaves them 0, which spares the server
    a look at each of their files.
    """
    ours = re.compile(rf"{re.escape(base)}_({TEMPLATE}_[0-9a-f]{{12}}|{WORKER}_[0-9a-f]{{8}}_\d+(_f\d+)?)")
    # Without our word in it, a name alone proves nothing: the database has our mark, or is somebody else's.
    doubtful = re.compile(rf"{re.escape(base)}_(tpl_[0-9a-f]{{12}}|[0-9a-f]{{8}}_\d+)")
    held = {key for (key,) in server.execute(_LOCKS.encode()).fetchall()}
    found = []
    for name, comment, size in server.execute(_DATABASES.encode(), (with_sizes, base)).fetchall():
        mark = read_mark(comment)
        kind: Kind
        if match := ours.fullmatch(name):
            kind = "template" if match[1].startswith(TEMPLATE) else "clone" if match[2] else "worker"
        elif mark.get("kind") in ("template", "worker") and doubtful.fullmatch(name):
            kind = mark["kind"]
        else:
            continue
        database = TestDatabase(name, kind, size, float(mark.get("used", 0)), False)
        leased = not held.isdisjoint(database.keys)
        found.append(TestDatabase(name, kind, size, database.used, leased))
    return found


def clean(server: psycopg.Connection[Any], base: str, *, unused_for_seconds: float = 0) -> list[str]:
    """Drop the test databases of this base that no run uses, and has not used for so long; their names.

    server: a session on the maintenance database, in autocommit mode, that holds no lease itself.
    What was never finished has no time of use, and goes in any case.
    """
    latest = time.time() - unused_for_seconds
    return [
        database.name
        for database in describe(server, base, with_sizes=False)
        if not database.leased and database.used <= latest and _drop(server, database)
    ]


def _drop(server: psycopg.Connection[Any], database: TestDatabase) -> bool:
    """Drop a database under its locks, which whoever wants to use it takes first. False: somebody has."""
    held = [key for key in database.keys if try_lock(server, key)]
    try:
        if len(held) < len(database.keys):
            return False
        drop(server, database.name)
    except RefusedError:
        return False
    finally:
        unlock(server, *held)
    return True
