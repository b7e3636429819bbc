"""kill -9 of the migrating process at any moment: the next run finishes, nothing is lost or applied twice.

RAG_FACTORY_KILLS: how many moments for each operation, and for its way back (1).
RAG_FACTORY_SEED: to have the same moments again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.conftest import ROOT, clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rag_factory.database.url import DatabaseUrl

KILLS = int(os.environ.get("RAG_FACTORY_KILLS", "1"))
SEED = int(os.environ.get("RAG_FACTORY_SEED", str(random.randrange(10**6))))
ROWS = 20_000
# Each is repeated, and does nothing where it is done.
SEVERAL = """\
op.backfill("books", "n = n + 1", batch_rows=500)
op.add_unique_online("one", "books", ["pages"])
op.add_check_online("few", "books", "pages >= 0")
op.backfill("books", "shelf = pages", where="shelf IS NULL")
op.set_not_null_online("books", "shelf")
"""
SEVERAL_BACK = """\
op.drop_not_null_online("books", "shelf")
op.drop_constraint_online("few", "books", "check")
op.drop_constraint_online("one", "books", "unique")
op.backfill("books", "n = n - 1, shelf = NULL")
"""
UPGRADES = (
    (
        'op.create_index_online("by_pages", "books", ["pages"])',
        'op.drop_index_online("by_pages", "books")',
    ),
    ('op.set_not_null_online("books", "pages")', 'op.drop_not_null_online("books", "pages")'),
    (
        'op.add_foreign_key_online("fk", "books", "authors", ["pages"], ["id"])',
        'op.drop_constraint_online("fk", "books", "foreignkey")',
    ),
    ('op.backfill("books", "n = n + 1", batch_rows=500)', 'op.backfill("books", "n = n - 1")'),
    (SEVERAL, SEVERAL_BACK),
)
OBJECTS = """
    SELECT relname::text || CASE WHEN NOT indisvalid THEN ' invalid' ELSE '' END FROM pg_class
    LEFT JOIN pg_index ON indexrelid = pg_class.oid WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace ORDER BY 1
"""


class Migrator:
    """The process that forks those that are killed."""

    def __init__(self, root: Path, url: DatabaseUrl) -> None:
        self.job = {"root": str(root), "url": url.plain}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("migrator.py"))],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, to: str, *, down: bool = False, kill_after_seconds: float | None = None) -> int:
        """Migrate in a process of its own; its exit code, -9 when it was killed in time."""
        pid = int(self._say(json.dumps({**self.job, "to": to, "down": down})))
        if kill_after_seconds is not None:
            time.sleep(kill_after_seconds)
            os.kill(pid, signal.SIGKILL)
        return int(self._say(""))

    def _say(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture
def migrator(
    project: Path, database_url: DatabaseUrl, query: Callable[..., list[tuple[Any, ...]]]
) -> Iterator[Migrator]:
    with psycopg.connect(database_url.with_database("postgres").plain, autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{database_url.database}"')
    query("CREATE EXTENSION vector")
    query("CREATE TABLE authors (id int PRIMARY KEY)")
    query(f"INSERT INTO authors SELECT generate_series(0, {ROWS})")
    query(
        "CREATE TABLE books (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), pages int, shelf int, "
        "n int NOT NULL DEFAULT 0, writes int NOT NULL DEFAULT 0) WITH (autovacuum_enabled = false)"
    )
    query(f"INSERT INTO books (pages) SELECT generate_series(1, {ROWS})")
    query("CREATE SCHEMA rag_factory")
    made = Migrator(project, database_url)
    yield made
    made.close()


@contextlib.contextmanager
def writing(url: DatabaseUrl) -> Iterator[list[int]]:
    """Let somebody read and write all the time; gives how many writes were committed."""
    committed = [0]
    done = threading.Event()

    def work() -> None:
        chance = random.Random(SEED)
        with psycopg.connect(url.plain, autocommit=True) as session:
            while not done.wait(0.005):
                page = chance.randint(1, ROWS)
                with contextlib.suppress(psycopg.errors.DeadlockDetected):
                    session.execute("UPDATE books SET writes = writes + 1 WHERE pages = %s", (page,))
                    committed[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield committed
    finally:
        done.set()
        thread.join()


def test_killed_migrations_are_finished_by_the_next_run(
    migrator: Migrator,
    database_url: DatabaseUrl,
    query: Callable[..., list[tuple[Any, ...]]],
    write_revision: Callable[..., Path],
) -> None:
    query("CREATE INDEX found ON books (pages)")
    began = time.monotonic()
    assert migrator.run("002") == 0
    usual_seconds = time.monotonic() - began
    before = query(OBJECTS)
    chance = random.Random(SEED)
    print(f"RAG_FACTORY_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    killed = 0
    with writing(database_url) as written:
        for upgrade, downgrade in UPGRADES:
            write_revision("003", upgrade=upgrade, downgrade=downgrade)
            made: list[tuple[Any, ...]] = []
            for down in [False, True] * KILLS:
                to = "002" if down else "003"
                code = migrator.run(to, down=down, kill_after_seconds=chance.uniform(0, usual_seconds))
                killed += code != 0
                assert code in {0, -signal.SIGKILL}
                began = time.monotonic()
                assert migrator.run(to, down=down) == 0
                usual_seconds = 1.2 * (time.monotonic() - began)
                assert query("SELECT version_num FROM alembic_version") == [(to,)]
                objects = query(OBJECTS)
                assert not re.search(" invalid|NOT VALID|_online", str(objects))
                assert objects == (before if down else made or objects)
                made = made if down else objects
                once = 0 if down or "n = n + 1" not in upgrade else 1
                assert query("SELECT n, count(*) FROM books GROUP BY n") == [(once, ROWS)]
    assert query("SELECT sum(writes) FROM books") == [(written[0],)]
    assert query("SELECT count(*) FROM rag_factory.backfills") == [(0,)]
    assert killed
